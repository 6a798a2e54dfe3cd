"""Every kind of storage engine beside a dict, through the protocols of engine.py alone.

What an engine has beyond them, and how it lies on the disk, is for its own tests.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conure.errors import DiskFailed, DiskFull, StorageError
from conure.storage.engine import (
    Checkpoint,
    EngineKind,
    EngineOptions,
    Reader,
    Record,
    StorageEngine,
)
from conure.storage.engines import BTREE, KINDS, kind_named
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

SMALL = EngineOptions(page_size=256, cache_bytes=4096, long_value=200, table_bytes=1500)
PLACE = "/home/conure.db"
STAGED = "/home/incoming-1.db"

Model = dict[bytes, Record]
Row = tuple[bytes, Record]


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> EngineKind:
    return kind_named(request.param)


def disk() -> CrashFileSystem:
    fs = CrashFileSystem()
    fs.make_directory("/home")
    fs.sync_directory("/")
    return fs


def within(model: Model, start: bytes, end: bytes | None, *, reverse: bool = False) -> list[Row]:
    """Return what a range of the model holds, in the order asked for."""
    keys = sorted(key for key in model if start <= key and (end is None or key < end))
    return [(key, model[key]) for key in (reversed(keys) if reverse else keys)]


def settle(engine: StorageEngine) -> None:
    """Let an engine merge all that it wants to."""
    for _ in range(10_000):
        if not engine.compact(0.01):
            return
    raise AssertionError("it comes to no end")


def without_value(record: Record) -> tuple[Record, int]:
    return record._replace(value=b""), len(record.value)


# -- any history -----------------------------------------------------------------------------------

KEYS = st.one_of(
    st.integers(0, 40).map(lambda number: b"k%02d" % number),
    st.binary(min_size=1, max_size=3),
    st.integers(0, 5).map(lambda number: b"long" * 14 + b"%d" % number),
)
SIZES = st.sampled_from([0, 1, 20, 60, 60, 300, 3000])
EXPIRIES = st.sampled_from([0, 0, 0, 7, 1 << 40])
ENDS = st.one_of(st.none(), KEYS)
MODES: st.SearchStrategy[CrashMode] = st.sampled_from(["dropped", "kept", "torn", "random"])


class EngineMachine(RuleBasedStateMachine):
    """One engine, its model, and states of it that were pinned or are being written."""

    kind: EngineKind

    @initialize(seed=st.integers(0, 1 << 16))
    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fs = disk()
        self.engine = self.kind.open(self.fs, PLACE, SMALL, create=True)
        self.model: Model = {}
        self.revision = 0
        self.durable: tuple[Model, tuple[int, int, int]] = ({}, (0, 0, 0))
        self.running: tuple[Checkpoint, Model, tuple[int, int, int]] | None = None
        self.all_written = False
        self.pinned: list[tuple[Reader, Model]] = []
        self.iterators: list[tuple[Iterator[Row] | Iterator[bytes], list[Row] | list[bytes]]] = []

    # -- writing -----------------------------------------------------------------------------------

    @rule(key=KEYS, size=SIZES, expiry=EXPIRIES, count=st.integers(1, 8))
    def put(self, key: bytes, size: int, expiry: int, count: int) -> None:
        for number in range(count):
            name = key + b"%d" % number if number else key
            self.revision += self.rng.choice([1, 1, 1, 1 << 33])
            value = self.rng.randbytes(size)
            old = self.model.get(name)
            create, version = (old[1], old.version + 1) if old else (self.revision, 1)
            assert self.engine.put(name, value, self.revision, expiry) == version
            self.model[name] = Record(value, create, self.revision, version, expiry)
            self.outdated(name, old)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        old = self.model.pop(key, None)
        assert self.engine.delete(key) == (old is not None)
        self.outdated(key, old)

    @rule(start=KEYS, end=ENDS)
    def delete_range(self, start: bytes, end: bytes | None) -> None:
        for key in list(self.engine.keys(start, end)):
            old = self.model.pop(key)
            assert self.engine.delete(key)
            self.outdated(key, old)

    @rule(key=KEYS, expiry=EXPIRIES)
    def touch(self, key: bytes, expiry: int) -> None:
        old = self.model.get(key)
        if old is not None:
            self.model[key] = old._replace(expiry=expiry)
        assert self.engine.touch(key, expiry) == self.model.get(key)
        self.outdated(key, old)

    def outdated(self, key: bytes, old: Record | None) -> None:
        outdated = self.engine.outdated
        assert outdated == ([(key, old.expiry)] if old is not None and old.expiry else [])
        outdated.clear()

    # -- reading -----------------------------------------------------------------------------------

    @rule(key=KEYS, most=st.sampled_from([0, 1, 10, 500, 5000]))
    def read(self, key: bytes, most: int) -> None:
        record = self.model.get(key)
        assert self.engine.get(key) == record
        assert self.engine.heading(key) == (None if record is None else without_value(record))
        assert self.engine.beginning(key, most) == (None if record is None else record.value[:most])

    @rule(start=st.one_of(st.just(b""), KEYS), end=ENDS, reverse=st.booleans())
    def read_range(self, start: bytes, end: bytes | None, reverse: bool) -> None:
        rows = within(self.model, start, end, reverse=reverse)
        engine = self.engine
        assert list(engine.scan(start, end, reverse=reverse)) == rows
        assert list(islice(engine.scan(start, end, reverse=reverse), 3)) == rows[:3]
        assert list(engine.items(start, end, reverse=reverse)) == rows
        keys = [key for key, _ in rows]
        assert list(engine.keys(start, end, reverse=reverse)) == keys
        assert list(engine.scan_keys(start, end, reverse=reverse)) == keys
        headings = [(key, without_value(record)) for key, record in rows]
        assert list(engine.scan_headings(start, end, reverse=reverse)) == headings

    @rule(start=st.one_of(st.just(b""), KEYS), end=ENDS, reverse=st.booleans(), keys=st.booleans())
    def begin_iterating(self, start: bytes, end: bytes | None, reverse: bool, keys: bool) -> None:
        rows = within(self.model, start, end, reverse=reverse)
        if keys:
            found = self.engine.keys(start, end, reverse=reverse)
            self.iterators.append((found, [key for key, _ in rows]))
        else:
            self.iterators.append((self.engine.items(start, end, reverse=reverse), rows))

    @precondition(lambda self: self.iterators)
    @rule(count=st.integers(1, 30))
    def go_on_iterating(self, count: int) -> None:
        iterator, expected = self.iterators.pop(0)
        assert list(islice(iterator, count)) == expected[:count]
        if len(expected) >= count:
            self.iterators.append((iterator, expected[count:]))

    @precondition(lambda self: len(self.pinned) < 4)
    @rule()
    def pin(self) -> None:
        self.pinned.append((self.engine.snapshot(), dict(self.model)))

    @precondition(lambda self: self.pinned)
    @rule(start=st.one_of(st.just(b""), KEYS), end=ENDS, reverse=st.booleans(), key=KEYS)
    def read_pinned(self, start: bytes, end: bytes | None, reverse: bool, key: bytes) -> None:
        reader, model = self.rng.choice(self.pinned)
        rows = within(model, start, end, reverse=reverse)
        assert len(reader) == len(model)
        assert reader.get(key) == model.get(key)
        assert list(reader.items(start, end, reverse=reverse)) == rows
        assert list(reader.keys(start, end, reverse=reverse)) == [name for name, _ in rows]

    @precondition(lambda self: self.pinned)
    @rule(key=KEYS)
    def unpin(self, key: bytes) -> None:
        reader, _ = self.pinned.pop(self.rng.randrange(len(self.pinned)))
        reader.close()
        reader.close()
        with pytest.raises(StorageError):
            reader.get(key)
        with pytest.raises(StorageError):
            list(reader.items())

    # -- upkeep ------------------------------------------------------------------------------------

    def facts(self) -> tuple[int, int, int]:
        """Return another index and term for a checkpoint, and a digest."""
        index, term, _ = self.durable[1]
        return index + self.rng.randint(1, 9), term + 1, self.rng.getrandbits(32)

    @precondition(lambda self: self.running is None)
    @rule()
    def checkpoint(self) -> None:
        facts = self.facts()
        self.engine.checkpoint(*facts)
        self.durable = dict(self.model), facts

    @precondition(lambda self: self.running is None)
    @rule()
    def begin_checkpoint(self) -> None:
        facts = self.facts()
        self.running = self.engine.begin_checkpoint(*facts), dict(self.model), facts
        self.all_written = False

    @precondition(lambda self: self.running is not None)
    @rule()
    def step(self) -> None:
        assert self.running is not None
        self.all_written = self.running[0].step(0.0)

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        assert self.running is not None
        checkpoint, model, facts = self.running
        while not checkpoint.step(1.0):
            pass
        checkpoint.finish()
        checkpoint.abort()
        self.running = None
        self.durable = model, facts

    @precondition(lambda self: self.running is not None)
    @rule()
    def abort(self) -> None:
        assert self.running is not None
        self.running[0].abort()
        self.running[0].abort()
        self.running = None

    @precondition(lambda self: self.running is None)
    @rule()
    def checkpoint_on_a_full_disk(self) -> None:
        self.fs.set_capacity(self.fs.used_bytes())
        facts = self.facts()
        try:
            self.engine.checkpoint(*facts)
        except DiskFull:
            pass  # the last one is what counts
        else:
            self.durable = dict(self.model), facts
        self.fs.set_capacity(None)

    @rule()
    def maintain(self) -> None:
        self.engine.maintain(0.0)

    @rule()
    def maintain_to_the_end(self) -> None:
        while self.engine.maintain(0.001):
            pass

    @rule()
    def compact(self) -> None:
        self.engine.compact(0.0)
        assert 0.0 <= self.engine.pressure <= 1.0

    @rule()
    def compact_to_the_end(self) -> None:
        settle(self.engine)
        assert self.engine.pressure == 0.0

    @precondition(lambda self: self.running is None)
    @rule()
    def compact_on_a_full_disk(self) -> None:
        """It costs nothing but the room that it would have given back."""
        self.fs.set_capacity(self.fs.used_bytes())
        settle(self.engine)
        self.fs.set_capacity(None)

    @precondition(lambda self: self.running is None)
    @rule(keep=st.booleans(), reverse=st.booleans())
    def load(self, keep: bool, reverse: bool) -> None:
        self.delete_range(b"", None)
        rows = [
            (b"%04d" % number, Record(self.rng.randbytes(size), number, number + 2, number))
            for number, size in enumerate(self.rng.choices([0, 40, 90, 700], k=60), 1)
        ]
        loader = self.engine.loader()
        with pytest.raises(ValueError, match="load"):
            self.engine.loader()
        loader.add(rows[:20])
        loader.add(rows[20:])
        if reverse:
            with pytest.raises(ValueError, match="ascend"):
                loader.add(rows[:1])
        if keep and not reverse:
            assert loader.finish() == len(rows)
            self.model = dict(rows)
        loader.abort()

    @precondition(lambda self: self.running is None)
    @rule()
    def check(self) -> None:
        report = self.engine.check()
        assert report.records == len(self.model)
        assert sum(report.kinds.values()) <= report.pages

    @rule(mode=MODES)
    def lose_power(self, mode: CrashMode) -> None:
        self.fs = self.fs.after_crash(mode, self.rng)
        self.running, self.pinned, self.iterators = None, [], []
        self.reopen()

    @rule()
    def close_and_reopen(self) -> None:
        """What is pinned can still be read, whatever the next one writes."""
        engine = self.engine
        if self.running is not None:
            checkpoint, self.running = self.running[0], None
            engine.close()
            checkpoint.abort()
        else:
            engine.close()
        for reader, model in self.pinned:
            assert dict(reader.items()) == model
            reader.close()
        self.pinned = []
        for iterator, expected in self.iterators:
            assert list(iterator) == expected
        self.iterators = []
        self.reopen()

    def reopen(self) -> None:
        model, facts = self.durable
        assert self.kind.applied(self.fs, PLACE) == facts[:2]
        self.engine = self.kind.open(self.fs, PLACE, SMALL, create=False)
        self.model = dict(model)
        assert dict(self.engine.items()) == model

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def tells_how_far_it_is(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        assert (engine.applied_index, engine.applied_term, engine.applied_digest) == self.durable[1]
        assert len(engine) == engine.stats().records == len(self.model)
        assert engine.unwritten_bytes >= 0
        assert engine.outdated == []

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if self.running is not None:
            self.running[0].abort()
        for reader, model in self.pinned:
            assert list(reader.items()) == sorted(model.items())
            reader.close()
        for iterator, expected in self.iterators:
            assert list(iterator) == expected
        assert list(self.engine.items()) == sorted(self.model.items())
        assert self.engine.check().records == len(self.model)
        self.engine.close()
        self.engine.close()


def test_any_history_is_that_of_a_dict(kind: EngineKind) -> None:
    machine = type("Machine", (EngineMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


# -- what a history seldom meets -------------------------------------------------------------------


def filled(kind: EngineKind, fs: CrashFileSystem, place: str, index: int) -> Model:
    """Leave a state at *place*, as of *index* and term 3; return what is in it."""
    with contextlib.closing(kind.open(fs, place, SMALL, create=True)) as engine:
        for number in range(1, 200):
            engine.put(b"%03d" % number, bytes(number % 90), number)
        engine.checkpoint(index, 3, index * 7)
        return dict(engine.items())


def test_a_key_that_is_no_key_is_refused(kind: EngineKind) -> None:
    engine = kind.open(disk(), PLACE, SMALL, create=True)
    longest = b"k" * engine.max_key_bytes
    assert engine.put(longest, b"v", 1) == 1
    for key in (b"", longest + b"k"):
        with pytest.raises(ValueError, match="key"):
            engine.put(key, b"v", 2)
    assert list(engine.keys()) == [longest]


def test_what_is_unwritten_is_told_and_no_more_after_a_checkpoint(kind: EngineKind) -> None:
    engine = kind.open(disk(), PLACE, SMALL, create=True)
    for number in range(200):
        engine.put(b"%03d" % number, bytes(50), 1)
    assert engine.unwritten_bytes > 200 * 53
    engine.checkpoint(1, 1)
    assert engine.unwritten_bytes < 53


def test_a_load_shows_nothing_of_what_was_there_before(kind: EngineKind) -> None:
    """What was read before and is in memory still, because somebody had pinned it."""
    engine = kind.open(
        disk(), PLACE, EngineOptions(page_size=256, cache_bytes=1 << 20), create=True
    )
    for number in range(300):
        engine.put(b"%04d" % number, bytes(50), 1)
    engine.checkpoint(1, 1)
    reader = engine.snapshot()
    assert [reader.get(b"%04d" % number) is not None for number in range(300)] == [True] * 300
    for number in range(300):
        engine.delete(b"%04d" % number)
    for index in range(2, 5):
        engine.checkpoint(index, 1)
    reader.close()
    engine.checkpoint(5, 1)
    rows = [(b"%04d" % number, Record(b"new" * 10, 6, 6, 1)) for number in range(300)]
    loader = engine.loader()
    loader.add(rows)
    assert loader.finish() == 300
    assert [(key, engine.get(key)) for key, _ in rows] == list(engine.scan()) == rows


def test_a_load_that_is_given_up_leaves_the_engine_empty(kind: EngineKind) -> None:
    engine = kind.open(disk(), PLACE, SMALL, create=True)
    loader = engine.loader()
    loader.add((b"%04d" % number, Record(bytes(500), 1, 1, 1)) for number in range(300))
    loader.abort()
    loader.abort()
    assert len(engine) == engine.check().records == 0
    assert list(engine.scan()) == []
    assert engine.put(b"k", b"v", 1) == 1
    with pytest.raises(ValueError, match="empty"):
        engine.loader()


def test_long_values_that_are_gone_give_their_room_back(kind: EngineKind) -> None:
    fs = disk()
    engine = kind.open(fs, PLACE, SMALL, create=True)
    for turn in range(12):
        for number in range(20):
            engine.put(b"%d" % number, bytes(20_000), turn + 1)
        while engine.maintain(0.01):
            pass
        engine.checkpoint(turn + 1, 1)
        settle(engine)
    engine.check()
    assert fs.used_bytes() < 6 * 20 * 20_000


@pytest.mark.parametrize("at", range(1, 40, 4))
def test_a_disk_that_fails_costs_nothing_durable(kind: EngineKind, at: int) -> None:
    fs = disk()
    model = filled(kind, fs, PLACE, 5)
    engine = kind.open(fs, PLACE, SMALL, create=False)
    for number in range(150):
        engine.put(b"%03d" % number, bytes(100), 300 + number)
    after = dict(engine.items())
    fs.fail_call(at)
    with contextlib.suppress(DiskFailed, DiskFull):
        engine.checkpoint(6, 4)
    fs.fail_call(None)
    later = fs.after_crash("random", random.Random(at))
    again = kind.open(later, PLACE, SMALL, create=False)
    assert dict(again.items()) == (after if again.applied_index == 6 else model)
    again.check()


def test_an_engine_is_found_by_its_name() -> None:
    assert BTREE in KINDS
    assert all(kind_named(name).name == name for name in KINDS)
    with pytest.raises(ValueError, match="no storage engine 'none'"):
        kind_named("none")


def test_there_is_nothing_at_a_place_before_it_is_made(kind: EngineKind) -> None:
    fs = disk()
    assert kind.applied(fs, PLACE) == (0, 0)
    with pytest.raises(FileNotFoundError):
        kind.open(fs, PLACE, SMALL, create=False)
    kind.remove(fs, PLACE)
    kind.open(fs, PLACE, SMALL, create=True).close()
    assert kind.applied(fs, PLACE) == (0, 0)
    assert fs.list("/home") != []


def test_a_staged_state_is_put_in_the_place_of_another(kind: EngineKind) -> None:
    fs = disk()
    old = filled(kind, fs, PLACE, 5)
    new = filled(kind, fs, STAGED, 9)
    using = kind.open(fs, PLACE, SMALL, create=False)
    reader = using.snapshot()
    claimed = "/home/incoming-0.db"
    kind.rename(fs, STAGED, claimed)
    assert kind.applied(fs, STAGED) == (0, 0)
    kind.sync(fs, claimed)
    kind.put_in_place(fs, claimed, PLACE)
    assert dict(reader.items()) == dict(using.items()) == old
    reader.close()
    using.close()
    for disk_then in (fs, fs.after_crash("dropped")):
        assert kind.applied(disk_then, PLACE) == (9, 3)
        with contextlib.closing(kind.open(disk_then, PLACE, SMALL, create=False)) as engine:
            assert dict(engine.items()) == new
            assert (engine.applied_digest, engine.check().records) == (63, len(new))
        assert kind.applied(disk_then, claimed) == (0, 0)


@pytest.mark.parametrize("mode", ["dropped", "kept", "torn", "random"])
def test_a_staged_state_is_whole_somewhere_until_it_is_in_place(
    kind: EngineKind, mode: CrashMode
) -> None:
    """The log begins after it by then, so the former state is of no more use by itself."""
    claimed = "/home/incoming-0.db"
    states = set()
    done = False
    at = 0
    while not done:
        at += 1
        fs = disk()
        filled(kind, fs, PLACE, 5)
        new = filled(kind, fs, STAGED, 9)
        kind.sync(fs, STAGED)
        fs.sync_directory("/home")
        fs.crash_at_sync = at
        try:
            kind.rename(fs, STAGED, claimed)
            kind.put_in_place(fs, claimed, PLACE)
            done = True
        except SimulatedCrash:
            pass
        for seed in range(5):
            later = fs.after_crash(mode, random.Random(seed))
            places = [
                each for each in (PLACE, claimed, STAGED) if kind.applied(later, each)[0] == 9
            ]
            assert places[:1] == [PLACE] or not done
            states.add(places[0])
            if places[0] != PLACE:
                kind.put_in_place(later, places[0], PLACE)
            with contextlib.closing(kind.open(later, PLACE, SMALL, create=False)) as engine:
                assert dict(engine.items()) == new
                engine.check()
    assert PLACE in states


@pytest.mark.parametrize("left", ["whole", "half"])
def test_removing_a_state_leaves_nothing_of_it(kind: EngineKind, left: str) -> None:
    fs = disk()
    filled(kind, fs, PLACE, 5)
    if left == "whole":
        filled(kind, fs, STAGED, 9)
    else:
        fs.set_capacity(fs.used_bytes() + 300)
        with pytest.raises(DiskFull):
            filled(kind, fs, STAGED, 9)
        fs.set_capacity(None)
    kind.remove(fs, STAGED)
    assert [name for name in fs.list("/home") if name.startswith("incoming-1.db")] == []
    assert kind.applied(fs, PLACE) == (5, 3)


def test_what_a_checkpoint_moves_is_not_outdated(kind: EngineKind) -> None:
    """A long value goes to where there is room; its record is what it was."""
    machine = type("Machine", (EngineMachine,), {"kind": kind})()
    machine.begin(seed=0)
    machine.load(keep=True, reverse=False)
    machine.load(keep=False, reverse=False)
    machine.put(count=1, expiry=7, key=b"k00", size=300)
    machine.checkpoint()
    machine.begin_checkpoint()
    machine.tells_how_far_it_is()
    machine.teardown()
