"""The tree one thing after the other, and beside a sorted dict."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from btree import BTree
from conure.errors import DiskFailed, StorageError
from conure.fileio import OsFileSystem
from conure.storage.engine import Record
from conure.storage.snapshot import Snapshot
from conure.storage.writeback import Checkpoint
from tests.lab.crashfs import CrashFileSystem
from tests.lab.trees import Model, Pair, some_value


def some_key(rng: random.Random, longest: int) -> bytes:
    size = rng.choice([1, 2, 3, 8, 8, 8, 16, rng.randint(1, longest), longest])
    return rng.randbytes(size) if rng.random() < 0.8 else b"a" * size


def test_a_record_keeps_its_history(pair: Pair) -> None:
    tree = pair.tree
    assert tree.get(b"k") is None
    pair.put(b"k", b"one")
    assert tree.get(b"k") == Record(b"one", 1, 1, 1, 0)
    pair.put(b"k", b"two", expiry=1_700_000_000_000)
    assert tree.get(b"k") == Record(b"two", 1, 2, 2, 1_700_000_000_000)
    pair.delete(b"k")
    assert not tree.delete(b"k")
    pair.put(b"k", b"three")
    assert tree.get(b"k") == Record(b"three", 3, 3, 1)


def test_the_beginning_of_a_value_is_read_and_headings_without_values(pair: Pair) -> None:
    tree = pair.tree
    values = [b"", b"short", random.Random(1).randbytes(5000)]
    for number, value in enumerate(values):
        pair.put(b"k%d" % number, value, expiry=number)
    for again in (False, True):
        for number, value in enumerate(values):
            for most in (0, 1, 4, 200, 4999, 5000, 9000):
                assert tree.beginning(b"k%d" % number, most) == value[:most]
        assert tree.beginning(b"none", 9) is None
        rows = [
            (key, (record._replace(value=b""), len(record.value))) for key, record in tree.items()
        ]
        assert list(tree.scan_headings()) == rows
        assert list(tree.scan_headings(reverse=True)) == rows[::-1]
        assert list(tree.scan_headings(b"k1", b"k2")) == rows[1:2]
        if not again:
            pair.checkpoint()


def test_the_pages_of_a_value_become_free_by_and_by(pair: Pair) -> None:
    """Removing takes no longer for a long value; a checkpoint leaves none of its pages behind."""
    tree = pair.tree
    for number in range(40):
        pair.put(b"k%02d" % number, bytes(9000))
    pair.put(b"z", b"short")
    pair.checkpoint()
    read: list[int] = []
    pages = tree._pager.read

    def noted(number: int) -> bytes:
        read.append(number)
        return pages(number)

    tree._pager.read = noted  # type: ignore[method-assign]
    for number in range(39):
        pair.delete(b"k%02d" % number)
    assert len(read) < 39  # leaves, and no page of a value
    pair.put(b"k39", b"short")
    free = tree.stats().free_pages
    assert tree.maintain(0.0)
    assert free < tree.stats().free_pages
    while tree.maintain(0.0):
        pass
    tree._pager.read = pages  # type: ignore[method-assign]
    assert not tree._spilled._replaced
    pair.put(b"k39", bytes(9000))
    pair.delete(b"k39")
    pair.checkpoint()  # frees what is left before it begins
    assert not tree._spilled._replaced
    pair.checkpoint()
    assert tree.stats().free_pages > tree.stats().pages // 2


def test_who_replaces_long_values_frees_as_much_as_that_takes(pair: Pair) -> None:
    pair.put(b"k", bytes(50_000))
    pages = pair.tree.stats().pages
    for number in range(20):
        pair.put(b"k", bytes(50_000) + b"%d" % number)
    assert pair.tree.stats().pages < 4 * pages


def test_key_and_value_limits(pair: Pair) -> None:
    longest = pair.tree.max_key_bytes
    assert longest == 70
    for key in (b"", b"k" * (longest + 1)):
        with pytest.raises(ValueError, match="a key has 1 to 70 bytes"):
            pair.tree.put(key, b"", 1)
        assert pair.tree.get(key) is None
        assert not pair.tree.delete(key)
    pair.put(b"k" * longest, b"v" * 5000)
    assert pair.tree.get(b"") is None
    with BTree_of(CrashFileSystem(), 4096) as tree:
        assert tree.max_key_bytes >= 1025


class BTree_of:  # noqa: N801
    """A tree as a context, checked at the end."""

    def __init__(self, fs: CrashFileSystem, page_size: int) -> None:
        self.tree = BTree.open(fs, "db", page_size=page_size)

    def __enter__(self) -> BTree:
        return self.tree

    def __exit__(self, *_: object) -> None:
        self.tree.check()
        self.tree.close()


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_many_keys_in_every_order(pair: Pair, order: str) -> None:
    keys = [b"%05d" % i for i in range(600)]
    if order == "descending":
        keys.reverse()
    elif order == "random":
        random.Random(1).shuffle(keys)
    for key in keys:
        pair.put(key, key)
    pair.verify()
    report = pair.tree.check()
    fill = report.used_bytes / ((report.kinds["leaf"] + report.kinds["inner"]) * 236)
    assert fill > {"ascending": 0.9, "descending": 0.5, "random": 0.55}[order]
    random.Random(2).shuffle(keys)
    for key in keys[:-1]:
        pair.delete(key)
    report = pair.tree.check()
    assert (report.depth, report.kinds["leaf"]) == (1, 1)


def test_separators_are_short(pair: Pair) -> None:
    rng = random.Random(4)
    for _ in range(300):
        pair.put(rng.randbytes(60), b"")
    report = pair.tree.check()
    assert report.kinds["inner"] < report.kinds["leaf"] / 8


def test_scans_in_both_directions_with_every_bound(pair: Pair) -> None:
    for i in range(0, 200, 2):
        pair.put(b"%03d" % i, b"v" * (i % 90))
    bounds = [b"%03d" % i for i in range(0, 202, 7)]
    for start in [b"", *bounds]:
        for end in [None, *bounds]:
            wanted = [
                key for key in sorted(pair.model) if key >= start and (end is None or key < end)
            ]
            assert list(pair.tree.keys(start, end)) == wanted
            assert list(pair.tree.keys(start, end, reverse=True)) == wanted[::-1]
            assert [key for key, _ in pair.tree.items(start, end, reverse=True)] == wanted[::-1]
            assert list(pair.tree.items(start, end)) == [(k, pair.model[k]) for k in wanted]


@pytest.mark.parametrize("size", [0, 77, 78, 79, 150, 151, 1000, 70_000])
def test_values_of_every_size(pair: Pair, size: int) -> None:
    pair.put(b"a", b"small")
    for _ in range(2):  # the second time over an existing value
        pair.put(b"k", random.Random(size).randbytes(size))
        assert pair.tree.get(b"k") == pair.model[b"k"]
    pair.checkpoint()
    pair.reopen()
    assert pair.tree.get(b"k") == pair.model[b"k"]
    pair.put(b"k", b"")
    assert pair.tree.check().kinds["overflow"] == 0


def test_records_widen_in_place_for_expiries_versions_and_large_revisions(pair: Pair) -> None:
    for i in range(14):
        pair.put(b"%02d" % i, b"")
    pair.put(b"03", b"", expiry=7)
    pair.put(b"05", b"", step=1 << 33)
    for _ in range(66_000):
        pair.put(b"06", b"")
    assert pair.tree.get(b"06") == pair.model[b"06"]
    pair.verify()


def test_page_sizes_up_to_64_kib() -> None:
    rng = random.Random(3)
    for page_size in (512, 4096, 32768, 65536):
        pair = Pair(CrashFileSystem(), page_size, cache_bytes=1 << 20)
        for _ in range(400):
            size = rng.choice([10, 100, page_size // 4, page_size // 2 - 60, page_size])
            pair.put(rng.randbytes(rng.choice([8, pair.tree.max_key_bytes])), rng.randbytes(size))
        pair.checkpoint()
        for key in rng.sample(sorted(pair.model), 200):
            pair.delete(key)
        pair.verify()
        pair.checkpoint()
        pair.reopen()
        pair.verify()


class Oracle:
    """Random operations on a pair, some snapshots and at most one checkpoint at a time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pair = Pair(CrashFileSystem(seed))
        self.pool = [some_key(self.rng, self.pair.tree.max_key_bytes) for _ in range(300)]
        self.pinned: list[tuple[Snapshot, Model]] = []
        self.running: tuple[Checkpoint, Model] | None = None

    def operate(self, puts: float) -> None:
        rng, pair = self.rng, self.pair
        key = rng.choice(self.pool)
        dice = rng.random()
        if dice < puts:
            step = 1 << 32 if rng.random() < 0.0005 else 1
            pair.put(key, some_value(rng), rng.choice([0, 0, 0, 0, 5, 1 << 41]), step)
        elif dice < 0.85:
            pair.delete(key)
        elif dice < 0.96:
            assert pair.tree.get(key) == pair.model.get(key)
        elif dice < 0.98:
            self.pinned.append((pair.tree.snapshot(), dict(pair.model)))
        elif self.pinned:
            self.unpin(*self.pinned.pop(rng.randrange(len(self.pinned))))

    def unpin(self, snapshot: Snapshot, model: Model) -> None:
        assert len(snapshot) == len(model)
        assert list(snapshot.items()) == sorted(model.items())
        for key in self.pool[:20]:
            assert snapshot.get(key) == model.get(key)
        snapshot.close()

    def advance_checkpoint(self) -> None:
        if self.running is None:
            if self.rng.random() < 0.02:
                self.running = self.pair.tree.begin_checkpoint(1, 1), dict(self.pair.model)
        elif self.rng.random() < 0.3:
            checkpoint, model = self.running
            if self.rng.random() < 0.05:
                checkpoint.abort()
                self.running = None
            elif checkpoint.step(0):
                checkpoint.finish()
                self.pair.durable = model
                self.running = None

    def lose_power(self) -> None:
        for snapshot, _ in self.pinned:
            snapshot.close()
        self.pinned.clear()
        self.running = None
        self.pair.reopen()
        self.pair.verify()


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_beside_a_dict(seed: int) -> None:
    oracle = Oracle(seed)
    for i in range(2500):
        oracle.operate(puts=0.6 if i // 500 % 2 == 0 else 0.2)
        oracle.advance_checkpoint()
        if i % 100 == 0 and oracle.running is None:
            oracle.pair.verify()
        if oracle.rng.random() < 0.003:
            oracle.lose_power()
    if oracle.running is not None:
        oracle.running[0].abort()
    oracle.pair.verify()


class TreeMachine(RuleBasedStateMachine):
    """The same, driven and shrunk by hypothesis."""

    snapshots = Bundle[tuple[Snapshot, Model]]("snapshots")
    keys = st.one_of(
        st.binary(min_size=1, max_size=3),
        st.integers(1, 70).map(lambda size: b"k" * size),
        st.integers(0, 40).map(lambda i: b"key-%02d" % i),
    )
    values = st.one_of(
        st.binary(max_size=10), st.sampled_from([60, 76, 78, 300]).map(lambda size: b"v" * size)
    )

    @initialize()
    def start(self) -> None:
        self.pair = Pair(CrashFileSystem(), cache_bytes=2000)
        self.running: tuple[Checkpoint, Model] | None = None

    @rule(
        keys=st.lists(keys, min_size=1, max_size=30), value=values, expiry=st.sampled_from([0, 9])
    )
    def put(self, keys: list[bytes], value: bytes, expiry: int) -> None:
        for key in keys:
            self.pair.put(key, value, expiry)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        keys = sorted(self.pair.model) or [b"none"]
        for key in data.draw(st.lists(st.sampled_from(keys), max_size=30)):
            self.pair.delete(key)

    @rule(target=snapshots)
    def pin(self) -> tuple[Snapshot, Model]:
        return self.pair.tree.snapshot(), dict(self.pair.model)

    @rule(pinned=consumes(snapshots))
    def unpin(self, pinned: tuple[Snapshot, Model]) -> None:
        snapshot, model = pinned
        if snapshot._search is self.pair.tree._search:
            assert list(snapshot.items(reverse=True)) == sorted(model.items(), reverse=True)
            snapshot.close()

    @precondition(lambda self: self.running is None)
    @rule()
    def begin(self) -> None:
        self.running = self.pair.tree.begin_checkpoint(1, 1), dict(self.pair.model)

    @precondition(lambda self: self.running is not None)
    @rule(abort=st.booleans())
    def end(self, abort: bool) -> None:
        assert self.running is not None
        checkpoint, model = self.running
        self.running = None
        checkpoint.step(0)
        if abort:
            checkpoint.abort()
            return
        while not checkpoint.step(0):
            pass
        checkpoint.finish()
        self.pair.durable = model

    @precondition(lambda self: self.running is None)
    @rule()
    def reopen(self) -> None:
        self.pair.reopen()

    @invariant()
    def agrees(self) -> None:
        if self.running is None:
            self.pair.verify()


TestTreeMachine = TreeMachine.TestCase


def test_a_snapshot_never_changes(pair: Pair) -> None:
    for i in range(200):
        pair.put(b"%03d" % i, b"old" * 40)
    with pair.tree.snapshot() as snapshot:
        before = dict(pair.model)
        for i in range(0, 200, 3):
            pair.delete(b"%03d" % i)
        for i in range(1, 200, 3):
            pair.put(b"%03d" % i, b"new")
        for _ in range(4):
            pair.checkpoint()
            assert list(snapshot.items()) == sorted(before.items())
        assert snapshot.get(b"000") == before[b"000"]
        assert pair.tree.stats().readers == 1
    assert pair.tree.stats().readers == 0


def test_a_pinned_reader_only_delays_reuse(pair: Pair) -> None:
    for i in range(300):
        pair.put(b"%03d" % i, b"v" * 30)
    pair.checkpoint()
    snapshot = pair.tree.snapshot()
    sizes = []
    for _ in range(12):
        for i in range(300):
            pair.put(b"%03d" % i, b"w" * 30)
        pair.checkpoint()
        sizes.append(pair.tree.stats().pages)
    assert sizes[-1] == sizes[3]  # what was made after the pin is reused all the time
    held = pair.tree.stats().free_pages
    snapshot.close()
    for _ in range(3):
        pair.checkpoint()
    assert pair.tree.stats().pages <= sizes[-1]
    assert pair.tree.stats().free_pages <= held


def test_an_iterator_that_is_dropped_lets_go_of_its_state(pair: Pair) -> None:
    for i in range(100):
        pair.put(b"%03d" % i, b"")
    unstarted = pair.tree.items()
    started = pair.tree.keys()
    assert next(started) == b"000"
    assert pair.tree.stats().readers == 2
    del unstarted, started
    pair.checkpoint()
    assert pair.tree.stats().readers == 0


class Crowd:
    """Readers and a checkpointer in threads of their own, until told to stop."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.failures: list[BaseException] = []
        jobs = (self.read, self.read, self.checkpoint)
        self.threads = [threading.Thread(target=self.repeat, args=(job,)) for job in jobs]

    def repeat(self, job: Callable[[], None]) -> None:
        try:
            while not self.stopped.is_set():
                job()
        except BaseException as error:  # noqa: BLE001
            self.failures.append(error)

    def read(self) -> None:
        with self.lock:
            snapshot, model = self.pair.tree.snapshot(), dict(self.pair.model)
        with snapshot:
            assert list(snapshot.items()) == sorted(model.items())

    def checkpoint(self) -> None:
        with self.lock:
            checkpoint = self.pair.tree.begin_checkpoint(1, 1)
        while not checkpoint.step(0):
            pass
        checkpoint.finish()


def test_a_put_tells_the_version_it_made(pair: Pair) -> None:
    for version in range(1, 4):
        assert pair.tree.put(b"k", b"v" * 300 * (version % 2), 1) == version
    pair.tree.delete(b"k")
    assert pair.tree.put(b"k", b"", 1) == 1
    pair.tree.delete(b"k")


class Reuse:
    """The moment at which a snapshot that is being read is closed and its pages change hands.

    Closing it before a file is read, or its memory looked at, is the worst that another thread
    could do to the reader.
    """

    def __init__(self, pair: Pair, snapshot: Snapshot, at_read: int) -> None:
        self.pair = pair
        self.snapshot = snapshot
        self.reads_left = at_read
        self.read = pair.tree._pager.read
        pair.tree._pager.read = self  # type: ignore[method-assign]

    def __call__(self, number: int) -> bytes:
        self.reads_left -= 1
        if self.reads_left == 0:
            self.happen()
        return self.read(number)

    def happen(self) -> None:
        self.snapshot.close()
        for round_ in range(3):
            for key in list(self.pair.model):
                self.pair.put(key, b"other%d" % round_ * (1 + len(key) % 90))
            self.pair.checkpoint()


@pytest.mark.parametrize("what", ["items", "keys", "reverse"])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_closed_snapshot_is_never_read_as_another_state(what: str, cache_bytes: int) -> None:
    at_read = 0
    while True:
        at_read += 1
        pair = Pair(CrashFileSystem(), cache_bytes=cache_bytes)
        for i in range(60):
            pair.put(b"%02d" % i, b"v" * (500 if i % 7 == 0 else 10))
        pair.checkpoint()
        expected: Sequence[object] = sorted(pair.model.items(), reverse=what == "reverse")
        snapshot = pair.tree.snapshot()
        iterator: Iterator[object] = snapshot.items(reverse=what == "reverse")
        if what == "keys":
            expected = sorted(pair.model)
            iterator = snapshot.keys()
        found: list[object] = []
        reuse = Reuse(pair, snapshot, at_read)
        with contextlib.suppress(StorageError):
            found.extend(iterator)
        assert found == expected[: len(found)]
        if reuse.reads_left > 0:
            assert found == expected
            return
        assert len(found) < len(expected)
        pair.verify()


@pytest.mark.parametrize("taken", range(0, 60, 7))
def test_an_iterator_ends_when_its_snapshot_is_closed(taken: int) -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=1 << 20)
    for i in range(60):
        pair.put(b"%02d" % i, b"v" * (500 if i % 7 == 0 else 10))
    expected = sorted(pair.model.items())
    snapshot = pair.tree.snapshot()
    iterator = snapshot.items()
    found = [next(iterator) for _ in range(taken)]
    snapshot.close()
    pair.put(b"00", b"other")  # changes its leaf in place: nobody seems to need the old one
    with pytest.raises(StorageError, match="closed"):
        found += iterator
    assert found == expected[: len(found)]
    with pytest.raises(StorageError, match="closed"):
        snapshot.get(b"00")


def test_a_closed_tree_is_still_read_by_who_has_pinned_it(tmp_path: Path) -> None:
    """Another tree takes the file's name, and might take its descriptor."""
    fs, path = OsFileSystem(), str(tmp_path / "db")
    tree = BTree.open(fs, path, page_size=256, cache_bytes=0)
    other = BTree.open(fs, str(tmp_path / "other"), page_size=256)
    for i in range(300):
        tree.put(b"%03d" % i, b"v" * (1 + 400 * (i % 50 == 0)), i)
        other.put(b"%03d" % i, b"other", i)
    tree.checkpoint(1, 1)
    other.checkpoint(1, 1)
    other.close()
    expected = list(tree.items())
    first, second = tree.snapshot(), tree.snapshot()
    iterator = first.items()
    found = [next(iterator) for _ in range(10)]
    tree.close()
    tree.close()
    second.close()
    fs.rename(str(tmp_path / "other"), path)
    successor = BTree.open(fs, path)
    found += iterator
    assert found == expected
    first.close()
    with pytest.raises(DiskFailed):  # now the file is closed
        tree.get(b"000")
    assert successor.get(b"000") == Record(b"other", 0, 0, 1)
    successor.close()


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_a_tree_that_is_closed_waits_for_its_checkpoint(pair: Pair, end: str) -> None:
    for i in range(300):
        pair.put(b"%03d" % i, b"v")
    pair.checkpoint()
    pair.put(b"000", b"w")
    checkpoint = pair.tree.begin_checkpoint(9, 9)
    pair.tree.close()
    assert checkpoint.step(1)
    getattr(checkpoint, end)()
    with pytest.raises(DiskFailed):
        pair.tree._pager.read(2)
    if end == "finish":
        pair.durable = dict(pair.model)
    pair.reopen()


def test_readers_in_other_threads_beside_writes_and_checkpoints() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=4000)
    for i in range(400):
        pair.put(b"%03d" % i, b"%d" % i * 20)
    pair.checkpoint()
    crowd = Crowd(pair)
    for thread in crowd.threads:
        thread.start()
    rng = random.Random(1)
    for _ in range(3000):
        key = b"%03d" % rng.randrange(400)
        with crowd.lock:
            if rng.random() < 0.3:
                pair.delete(key)
            else:
                pair.put(key, rng.randbytes(rng.choice([3, 60, 500])))
            assert pair.tree.get(key) == pair.model.get(key)
    crowd.stopped.set()
    for thread in crowd.threads:
        thread.join()
    assert not crowd.failures
    pair.verify()
