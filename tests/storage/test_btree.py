"""The B+tree beside a sorted dict, on pages so small that ten keys split them."""

from __future__ import annotations

import contextlib
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
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
from conure.errors import CorruptionError, DiskFailed, DiskFull, ForeignDirectory, StorageError
from conure.fileio import OsFileSystem
from conure.storage import writeback
from conure.storage.engine import Record
from conure.storage.pages import (
    CELL_OVERHEAD,
    NODE_BYTES,
    RECORD_BYTES,
    REF,
    Leaf,
    cuts,
    decode_node,
    make_cell,
    open_cell,
    separator,
)
from conure.storage.snapshot import Snapshot
from conure.storage.writeback import Checkpoint
from pager import ENVELOPE, INNER, LEAF, OVERFLOW
from tests.lab.crashfs import CrashFileSystem

Model = dict[bytes, Record]


class Pair:
    """A tree and the dict it is compared with."""

    def __init__(self, fs: CrashFileSystem, page_size: int = 256, cache_bytes: int = 8000) -> None:
        self.fs = fs
        self.cache_bytes = cache_bytes
        self.tree = BTree.open(fs, "db", page_size=page_size, cache_bytes=cache_bytes)
        self.model: Model = {}
        self.durable: Model = {}
        self.revision = 0

    def put(self, key: bytes, value: bytes, expiry: int = 0, step: int = 1) -> None:
        self.revision += step
        self.tree.put(key, value, self.revision, expiry)
        old = self.model.get(key)
        create, version = (old.create_revision, old.version + 1) if old else (self.revision, 1)
        self.model[key] = Record(value, create, self.revision, version, expiry)

    def delete(self, key: bytes) -> None:
        assert self.tree.delete(key) == (self.model.pop(key, None) is not None)

    def checkpoint(self) -> None:
        self.tree.checkpoint(self.revision, 1)
        self.durable = dict(self.model)

    def reopen(self) -> None:
        """Come back after losing power, with what the last checkpoint made durable."""
        self.tree.close()
        self.fs = self.fs.after_crash("dropped")
        self.tree = BTree.open(self.fs, "db", cache_bytes=self.cache_bytes)
        self.model = dict(self.durable)

    def verify(self) -> None:
        report = self.tree.check()
        assert report.records == len(self.tree) == len(self.model)
        assert list(self.tree.items()) == sorted(self.model.items())
        tree = self.tree
        unwritten = [*tree._pool.unwritten.values(), *tree._pool.frozen.values()]
        in_lists = sum(len(page.keys) for page in unwritten if isinstance(page, Leaf))
        page_bytes = tree.stats().page_size + NODE_BYTES
        assert tree.unwritten_bytes == len(unwritten) * page_bytes + in_lists * RECORD_BYTES
        assert tree.stats().cache_bytes == sum(tree._pool._ring.values())
        cached = [tree._pool.nodes[number] for number in tree._pool._ring]
        in_lists = sum(len(node.keys) for node in cached if isinstance(node, Leaf))
        assert tree._pool._cached_in_lists == in_lists


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(CrashFileSystem())
    yield pair
    pair.verify()
    pair.checkpoint()
    pair.reopen()
    pair.verify()
    pair.tree.close()


def some_key(rng: random.Random, longest: int) -> bytes:
    size = rng.choice([1, 2, 3, 8, 8, 8, 16, rng.randint(1, longest), longest])
    return rng.randbytes(size) if rng.random() < 0.8 else b"a" * size


def some_value(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 5, 20, 40, 70, 80, rng.randrange(150), 300, 2000]))


# -- one thing after the other -------------------------------------------------------------------


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


# -- the oracle ----------------------------------------------------------------------------------


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
TestTreeMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# -- snapshots -----------------------------------------------------------------------------------


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


# -- space and memory ----------------------------------------------------------------------------


def test_the_file_stays_bounded_under_overwrites(pair: Pair) -> None:
    rng = random.Random(1)
    for i in range(1000):
        pair.put(b"%04d" % i, b"v" * 20)
    pair.checkpoint()
    pages = pair.tree.stats().pages
    for _ in range(150):
        for _ in range(10):
            pair.put(b"%04d" % rng.randrange(1000), b"w" * 20)
        pair.checkpoint()
    assert pair.tree.stats().pages < 1.5 * pages


@pytest.mark.parametrize("size", [10, 700])
def test_the_file_shrinks_after_a_mass_delete_while_serving(pair: Pair, size: int) -> None:
    keys = [b"%04d" % i for i in range(2000)]
    for key in keys:
        pair.put(key, bytes(size))
    for _ in range(3):
        pair.checkpoint()
    large = pair.tree.stats().file_bytes
    random.Random(1).shuffle(keys)
    for key in keys[100:]:
        pair.delete(key)
    for i in range(60):
        pair.put(keys[i], bytes(size))
        assert pair.tree.get(keys[99]) == pair.model[keys[99]]
        pair.checkpoint()
    small = pair.tree.stats()
    assert small.file_bytes < large / 3
    assert small.free_pages < small.pages / 2


def test_a_tree_larger_than_its_cache_stays_within_it(pair: Pair) -> None:
    rng = random.Random(1)
    for i in range(3000):
        pair.put(rng.randbytes(8), bytes(20))
        if i % 100 == 0:
            pair.checkpoint()
            assert pair.tree.stats().cache_bytes <= pair.cache_bytes
    pair.checkpoint()
    keys = list(pair.tree.keys())
    for key in rng.choices(keys, k=500):
        assert pair.tree.get(key) == pair.model[key]
    stats = pair.tree.stats()
    assert 0 < stats.cache_bytes <= pair.cache_bytes < stats.file_bytes
    assert stats.evictions > 0
    assert stats.unwritten_pages == pair.tree.dirty_pages == pair.tree.unwritten_bytes == 0
    held = sum(node.used for node in pair.tree._pool.nodes.values())
    assert held <= pair.cache_bytes


@pytest.mark.parametrize("size", [0, 30, 500])
def test_unwritten_bytes_are_about_what_they_take(size: int) -> None:
    tree = BTree.open(CrashFileSystem(), "db")
    tracemalloc.start(1)
    for i in range(20_000 if size < 100 else 3000):
        tree.put(b"%07d" % i, bytes(size), 1)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < tree.unwritten_bytes / taken < 1.4
    tree.close()


def test_a_leaf_goes_to_lists_when_it_is_used_much_and_is_packed_when_written(pair: Pair) -> None:
    def in_lists() -> list[bool]:
        leaves = [node for node in pair.tree._pool.nodes.values() if isinstance(node, Leaf)]
        return [not leaf.page for leaf in leaves]

    for _ in range(2):
        for changes in (3, 20):
            for i in range(changes):
                pair.put(b"%d" % (i % 3), b"v" * i)
            assert in_lists() == [changes == 20]
        pair.delete(b"1")
        pair.checkpoint()
        assert in_lists() == [False]
        for _ in range(20):
            assert pair.tree.get(b"0") == pair.model[b"0"]
        assert in_lists() == [True]
        pair.checkpoint()
        pair.put(b"0", b"w")
        pair.checkpoint()


def test_lists_are_a_small_part_of_the_cache(pair: Pair) -> None:
    for i in range(400):
        pair.put(b"%03d" % i, b"")
    pair.checkpoint()
    for key in sorted(pair.model)[:150]:
        for _ in range(30):
            assert pair.tree.get(key) == pair.model[key]
    assert 0 < pair.tree._pool._cached_in_lists * RECORD_BYTES < pair.cache_bytes / 4


def test_the_cost_of_a_write_does_not_grow_with_the_tree() -> None:
    calls = {}
    for count in (200, 20_000):
        fs = CrashFileSystem()
        tree = BTree.open(fs, "db", page_size=512)
        tree.bulk_load((b"%06d" % i, Record(b"v", 1, 1, 1)) for i in range(count))
        for _ in range(3):
            tree.checkpoint(1, 1)
        tree.close()
        tree = BTree.open(fs, "db")
        before = fs.calls
        tree.put(b"%06d" % (count // 2), b"w", 2)
        tree.checkpoint(2, 1)
        calls[count] = fs.calls - before - tree.stats().depth * 2
        tree.check()
    assert calls[20_000] <= calls[200] + 2


def test_opening_reads_only_the_meta_pages_and_the_free_maps() -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    tree.bulk_load((b"%06d" % i, Record(b"v", 1, 1, 1)) for i in range(5000))
    tree.checkpoint(1, 1)
    tree.close()
    before = fs.calls
    BTree.open(fs, "db").close()
    assert fs.calls - before < 6


# -- bulk load -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25, 400, 3000])
def test_bulk_load_fills_pages(pair: Pair, count: int) -> None:
    rng = random.Random(count)
    records = {
        b"%05d" % i: Record(some_value(rng) if i % 7 == 0 else b"v", i, i + 1, 3, i % 2)
        for i in range(count)
    }
    assert pair.tree.bulk_load(iter(records.items())) == count
    pair.model = records
    report = pair.tree.check()
    if count == 3000:
        assert report.used_bytes > 0.8 * 236 * (report.kinds["leaf"] + report.kinds["inner"])
    pair.checkpoint()
    for i in range(0, count, 3):
        pair.delete(b"%05d" % i)
    pair.put(b"more", b"m" * 400)


def test_bulk_load_refuses_what_is_not_sorted_and_stays_empty(pair: Pair) -> None:
    record = Record(b"v" * 300, 1, 1, 1)
    for bad in ([b"b", b"a"], [b"a", b"a"], [b""], [b"k" * 71]):
        with pytest.raises(ValueError, match="ascend"):
            pair.tree.bulk_load(
                [(b"%03d" % i, record) for i in range(99)] + [(k, record) for k in bad]
            )
        pair.verify()
    pair.put(b"x", b"y")
    with pytest.raises(ValueError, match="empty"):
        pair.tree.bulk_load([])


def test_a_tree_is_loaded_in_pieces(pair: Pair) -> None:
    records = {b"%05d" % i: Record(b"v" * (i % 300), i, i, 1) for i in range(1500)}
    items = list(records.items())
    loader = pair.tree.loader()
    for start in range(0, len(items), 40):
        loader.add(items[start : start + 40])
        assert len(pair.tree) == 0
        assert not list(pair.tree.items())
        assert pair.tree.dirty_pages == 0
    loader.add([])
    assert loader.finish() == 1500
    loader.abort()  # changes nothing any more
    pair.model = records


def test_a_load_that_is_given_up_leaves_an_empty_tree(pair: Pair) -> None:
    records = {b"%05d" % i: Record(b"v" * 300, i, i, 1) for i in range(200)}
    loader = pair.tree.loader()
    loader.add(records.items())
    with pytest.raises(ValueError, match="empty"):
        pair.tree.loader()  # one at a time
    with pytest.raises(ValueError, match="ascend"):
        loader.add([(b"00000", Record(b"", 1, 1, 1))])
    loader.abort()
    loader.abort()
    pair.verify()
    assert pair.tree.bulk_load(records.items()) == 200
    pair.model = records


def test_bulk_load_holds_little_in_memory(pair: Pair) -> None:
    seen = 0

    def items() -> Iterator[tuple[bytes, Record]]:
        nonlocal seen
        for i in range(2000):
            seen = max(seen, pair.tree.dirty_pages)
            yield b"%05d" % i, Record(b"v" * 300, 1, 1, 1)

    pair.tree.bulk_load(items())
    assert seen == 0
    pair.model = dict(items())


# -- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_shows_the_state_it_began_with(pair: Pair) -> None:
    for i in range(2000):
        pair.put(b"%04d" % i, b"before")
    checkpoint = pair.tree.begin_checkpoint(41, 7, 0xABCD)
    before = dict(pair.model)
    assert (pair.tree.applied_index, pair.tree.applied_term, pair.tree.applied_digest) == (0, 0, 0)
    steps = 0
    while not checkpoint.step(0):
        pair.put(b"%04d" % steps, b"after")
        pair.delete(b"%04d" % (1999 - steps))
        steps += 1
    assert steps > 1
    checkpoint.finish()
    pair.durable = before
    for _ in range(2):
        tree = pair.tree
        assert (tree.applied_index, tree.applied_term, tree.applied_digest) == (41, 7, 0xABCD)
        pair.reopen()
        pair.verify()


def test_large_checkpoints_sync_in_portions(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "SYNC_BYTES", 64 * 256)
    for i in range(2000):
        pair.put(b"%04d" % i, b"")
    written = pair.tree.dirty_pages
    before = pair.fs.syncs
    pair.checkpoint()
    assert pair.fs.syncs - before >= written // 64


def test_a_full_disk_drops_the_checkpoint_and_nothing_else(pair: Pair) -> None:
    for i in range(200):
        pair.put(b"%03d" % i, b"v")
    pair.checkpoint()
    pair.fs.set_capacity(pair.fs.used_bytes() + 2048)
    for i in range(600):
        pair.put(b"%03d" % i, b"w" * 60)
    for _ in range(3):
        with pytest.raises(DiskFull):
            pair.tree.checkpoint(9, 9)
        pair.verify()
    assert pair.tree.applied_index == 200
    pair.fs.set_capacity(None)
    pair.put(b"last", b"write")
    pair.checkpoint()


# -- bytes from outside --------------------------------------------------------------------------


def test_every_damaged_page_is_an_error_and_never_data(pair: Pair) -> None:
    for i in range(60):
        pair.put(b"%02d" % i, b"v" * (200 if i % 9 == 0 else 10))
    pair.checkpoint()
    size = len(pair.fs.contents("db"))
    wanted = dict(pair.model)
    noticed = 0
    for at in range(2 * 256 + 7, size, 256):
        pair.fs.corrupt("db", at)
        where = -1
        try:
            assert dict(BTree.open(pair.fs, "db").items()) == wanted  # it was a free page
        except CorruptionError as error:
            where = error.offset
            noticed += 1
        assert where in (-1, at - 7)
        pair.fs.corrupt("db", at)
    assert noticed > 10


def exercise(fs: CrashFileSystem, keys: list[bytes]) -> None:
    """Do everything with a tree that may be full of nonsense."""
    jobs = [
        lambda tree: tree.check(),
        lambda tree: [tree.get(key) for key in keys],
        lambda tree: list(tree.items()),
        lambda tree: list(tree.keys(reverse=True)),
        lambda tree: [tree.put(key, b"v" * 30, 1) for key in keys],
        lambda tree: [tree.delete(key) for key in keys],
        lambda tree: [tree.checkpoint(1, 1) for _ in range(2)],
    ]
    for job in jobs:
        with contextlib.suppress(CorruptionError):
            job(BTree.open(fs, "db"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_pages_with_valid_checksums_never_surprise(data: st.DataObject) -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    keys = [b"%02d" % i for i in range(40)]
    for i, key in enumerate(keys):
        tree.put(key, b"v" * (200 if i % 9 == 0 else 10), 1)
    tree.checkpoint(1, 1)
    pages = tree.stats().pages
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(2, pages - 1))
        body = bytearray(fs.contents("db")[number * 256 : number * 256 + 252])
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.one_of(st.integers(0, 30), st.integers(0, 251)))
            body[at] = data.draw(st.one_of(st.integers(0, 12), st.integers(0, 255)))
        fs.open("db").pwrite(tree._pager.seal(number, bytes(body)), number * 256)
    exercise(fs, keys)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([LEAF, INNER, OVERFLOW, 0, 9]),
    detail=st.integers(0, 4),
    count=st.one_of(st.integers(0, 12), st.integers(0, 65535)),
    link=st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1)),
    rest=st.binary(max_size=236),
)
def test_random_roots_never_surprise(
    kind: int, detail: int, count: int, link: int, rest: bytes
) -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    page = tree._pager.seal(2, ENVELOPE.pack(kind, detail, count, link, 0) + rest)
    fs.open("db").pwrite(page, 2 * 256)
    exercise(fs, [b"a", b"\0", b"\xff" * 9])


# -- codecs --------------------------------------------------------------------------------------

cells = st.dictionaries(
    st.binary(min_size=1, max_size=12),
    st.tuples(
        st.binary(max_size=12),
        st.integers(0, 1 << 33),
        st.integers(0, 1 << 17),
        st.sampled_from([0, 0, 1, 1 << 41]),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(records=cells)
def test_a_leaf_comes_back_as_it_was_packed(
    records: dict[bytes, tuple[bytes, int, int, int]],
) -> None:
    keys = sorted(records)
    opened = []
    cells = []
    for key in keys:
        value, revision, version, expiry = records[key]
        record = Record(value, revision // 2, revision, version, expiry)
        spilled = len(value) == REF.size
        opened.append((record, spilled))
        cells.append(make_cell(value, *record[1:], spilled=spilled))
    used = CELL_OVERHEAD * (len(keys) + 1) + sum(map(len, keys + cells))
    body = Leaf(3, 5, used, b"", keys, cells).body()
    assert len(body) == ENVELOPE.size + used
    leaf = decode_node(3, body.ljust(400, b"\0"), 6)
    assert isinstance(leaf, Leaf)
    leaf.prove()
    assert leaf.page == leaf.body() == body
    assert leaf.lists() == (keys, cells)
    assert leaf.key_list() == keys
    assert (leaf.number, leaf.epoch, leaf.used) == (3, 5, used)
    assert list(map(open_cell, cells)) == opened
    together = leaf.records(0, len(keys)) if keys else ()
    if any(cell[0] for cell in cells):
        assert together is None
    else:
        assert together is not None
        assert list(together) == [record for record, _ in opened]
    leaf.unpack()
    again = leaf.records(0, len(keys))
    assert (again is None) == (together is None)
    assert again is None or list(again) == [record for record, _ in opened]


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=4).map(str.encode), st.integers(-9, 9)),
        max_size=40,
    )
)
def test_a_packed_leaf_and_one_in_lists_are_the_same(changes: list[tuple[bytes, int]]) -> None:
    packed = Leaf(3, 5, CELL_OVERHEAD, Leaf(3, 5, 0, b"", [], []).body())
    lists = Leaf(3, 5, CELL_OVERHEAD, b"", [], [])
    for key, size in changes:
        slot, old = lists.find(key)
        assert packed.find(key) == (slot, old)
        for leaf in (packed, lists):
            if size >= 0:
                cell = make_cell(b"v" * size, 1, 2, 3, 0, spilled=False)
                leaf.put(slot, key, cell, old)
            elif old is not None:
                leaf.remove(slot, key, old)
        assert packed.page
        assert packed.body() == lists.body()
        assert len(packed.body()) == ENVELOPE.size + packed.used == ENVELOPE.size + lists.used
    packed.unpack()
    assert (packed.keys, packed.cells) == (lists.keys, lists.cells)


@pytest.mark.parametrize(
    "cell",
    [
        bytes([8]) + bytes(40),  # flags of no version
        bytes([1]) + bytes(17),
        bytes([2]) + bytes(23),
        bytes([4]) + bytes(10 + REF.size - 1),
        bytes([7]) + bytes(32 + REF.size + 1),
    ],
)
def test_a_cell_that_makes_no_sense_is_an_error(cell: bytes) -> None:
    with pytest.raises(ValueError, match=r"flags|reference"):
        open_cell(cell)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), max_size=60))
def test_cuts_leave_no_part_too_large(sizes: list[int]) -> None:
    ends = cuts(sizes, 100)
    starts = [0, *ends[:-1]]
    assert ends[-1] == len(sizes)
    parts = [sizes[start:end] for start, end in zip(starts, ends, strict=True)]
    assert all(sum(part) <= 100 for part in parts)
    assert all(parts) or not sizes


@given(left=st.binary(max_size=6), right=st.binary(max_size=6))
def test_a_separator_is_the_shortest_key_between(left: bytes, right: bytes) -> None:
    if left < right:
        between = separator(left, right)
        assert left < between <= right
        assert not left < between[:-1]


# -- the format ----------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "testdata" / "conure-v2.db"
FIRST = Path(__file__).parents[1] / "testdata" / "conure-v1.db"  # the same content


def golden_content(tree: BTree) -> None:
    for i in range(12):
        tree.put(b"key-%02d" % i, b"value" * (i % 3), 10 + i, 1_700_000_000_000 * (i == 5))
    tree.put(b"large", bytes(range(256)) * 2, 30)
    tree.checkpoint(30, 2, 0x1234)
    tree.put(b"key-03", b"again", 31)
    tree.delete(b"key-04")
    tree.checkpoint(32, 3, 0xFEDCBA98)


def test_the_bytes_of_format_version_2() -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    golden_content(tree)
    assert fs.contents("db") == GOLDEN.read_bytes()


def test_a_file_of_format_version_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "conure.db"
    path.write_bytes(FIRST.read_bytes())
    with pytest.raises(ForeignDirectory, match=r"older version .format 1."):
        BTree.open(OsFileSystem(), str(path), create=False)
    assert path.read_bytes() == FIRST.read_bytes()


def test_a_file_of_format_version_2_opens(tmp_path: Path) -> None:
    path = tmp_path / "conure.db"
    path.write_bytes(GOLDEN.read_bytes())
    tree = BTree.open(OsFileSystem(), str(path), create=False)
    assert (tree.applied_index, tree.applied_term, len(tree)) == (32, 3, 12)
    assert tree.applied_digest == 0xFEDCBA98
    assert tree.get(b"key-03") == Record(b"again", 13, 31, 2)
    assert tree.get(b"key-05") == Record(b"value" * 2, 15, 15, 1, 1_700_000_000_000)
    assert tree.get(b"large") == Record(bytes(range(256)) * 2, 30, 30, 1)
    tree.check()
    tree.put(b"key-03", b"more", 40)
    tree.checkpoint(40, 4)
    tree.check()
    tree.close()


@pytest.mark.parametrize("size", [0, 1, 50, 300, 5000])
def test_a_heading_is_the_record_without_its_value(pair: Pair, size: int) -> None:
    tree = pair.tree
    assert tree.heading(b"k") is None
    pair.put(b"k", bytes(size), 9)
    record = tree.get(b"k")
    assert record is not None
    for _ in range(2):
        assert tree.heading(b"k") == (record._replace(value=b""), size)
        pair.checkpoint()


@pytest.mark.parametrize(("seed", "keys", "most"), [(12, 60, 8), (16, 60, 16), (1, 100, 16)])
def test_no_page_is_moved_that_was_never_written(
    monkeypatch: pytest.MonkeyPatch, seed: int, keys: int, most: int
) -> None:
    """After an aborted checkpoint, to move one page may free another that isn't on disk."""
    rng = random.Random(seed)
    tree = BTree.open(CrashFileSystem(), "db", page_size=512)
    moved: list[int] = []
    move = tree._move

    def noted(number: int) -> int:
        moved.append(number)
        return move(number)

    monkeypatch.setattr(tree, "_move", noted)
    snapshot = None
    for revision in range(1, 120):
        for _ in range(rng.randrange(most)):
            key = b"%d" % rng.randrange(keys)
            if rng.random() < 0.5:
                tree.delete(key)
            else:
                tree.put(key, bytes(rng.choice((5, 300, 600, 3000, 9000))), revision)
        if rng.random() < 0.2:
            if snapshot is None:
                snapshot = tree.snapshot()
            else:
                snapshot.close()
                snapshot = None
        unwritten = set(tree._pool.unwritten)
        moved.clear()
        running = tree.begin_checkpoint(revision, 1)
        assert unwritten.isdisjoint(moved)
        if rng.random() < 0.3:
            if rng.random() < 0.5:
                running.step(0.0)
            running.abort()
            continue
        while not running.step(1.0):
            pass
        running.finish()
