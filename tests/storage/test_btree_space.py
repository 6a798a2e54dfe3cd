"""Space, memory, bulk loads, checkpoints and the format of the tree."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btree import BTree
from conure.errors import CorruptionError, DiskFull, ForeignDirectory
from conure.fileio import OsFileSystem
from conure.storage import bufferpool, writeback
from conure.storage.cells import make_cell, open_cell, separator
from conure.storage.engine import Record
from conure.storage.pages import (
    CELL_OVERHEAD,
    RECORD_BYTES,
    REF,
    Leaf,
    cuts,
    decode_node,
)
from pager import ENVELOPE, INNER, LEAF, OVERFLOW
from tests.lab.crashfs import CrashFileSystem
from tests.lab.trees import Pair, some_value


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


@pytest.mark.parametrize("is_spare", [False, True])
def test_a_leaf_goes_to_lists_when_it_is_used_much_and_is_packed_when_written(
    is_spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_spare:
        monkeypatch.setattr(bufferpool, "_SPARED", 1)
    pair = Pair(CrashFileSystem())

    def in_lists() -> list[bool]:
        leaves = [node for node in pair.tree._pool.nodes.values() if isinstance(node, Leaf)]
        return [not leaf.page for leaf in leaves]

    for number in range(2):
        for changes in (3, 20):
            for i in range(changes):
                pair.put(b"%d" % (i % 3), b"v" * i)
            assert in_lists() == [changes == 20 or (is_spare and number == 1)]
        pair.delete(b"1")
        pair.checkpoint()
        assert in_lists() == [is_spare]
        use(pair, [b"0"], 20)
        assert in_lists() == [True]
        pair.checkpoint()
        pair.put(b"0", b"w")
        pair.checkpoint()
    pair.verify()
    pair.tree.close()


def use(pair: Pair, keys: Iterable[bytes], times: int = 10) -> None:
    """Read keys in the tree, whatever was read lately."""
    with pair.tree.snapshot() as state:
        for key in keys:
            for _ in range(times):
                assert state.get(key) == pair.model[key]


def use_all(pair: Pair, times: int = 10) -> None:
    use(pair, pair.model, times)


def test_lists_take_what_the_cache_can_spare() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=200_000)
    pool = pair.tree._pool
    for i in range(500):
        pair.put(b"%04d" % i, b"v" * 10)
    use_all(pair)
    pair.checkpoint()
    assert pool._cached_in_lists == 500  # as they are: they were used much while unwritten
    pair.verify()
    pair.put(b"0250", b"w")
    pair.checkpoint()
    assert pool._cached_in_lists == 500
    for i in range(500, 5000):  # more than fits
        pair.put(b"%04d" % i, b"v" * 10)
        if i % 500 == 0:
            pair.checkpoint()
            pair.verify()
            if pair.tree.stats().evictions == 0:
                use_all(pair, 1)
    pair.checkpoint()
    assert pool._cached_in_lists * RECORD_BYTES < pair.cache_bytes / 16
    assert pool.cached_bytes <= pair.cache_bytes
    pair.verify()
    pair.tree.close()


def test_lists_are_packed_before_a_page_is_dropped() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=200_000)
    pool = pair.tree._pool
    for i in range(1200):
        pair.put(b"%04d" % i, b"v" * 10)
    pair.checkpoint()
    use_all(pair)
    listed = pool._cached_in_lists
    assert listed > 400
    held = [(leaf, leaf.keys) for leaf in pool.nodes.values() if isinstance(leaf, Leaf)]
    pinned = pair.tree.snapshot()
    for i in range(1200, 2000):
        pair.put(b"%04d" % i, b"v" * 10)
    pair.checkpoint()
    use_all(pair, 1)
    assert pool._cached_in_lists < listed / 2
    assert pair.tree.stats().evictions == 0
    assert all(leaf.keys is keys for leaf, keys in held if keys)  # who reads one may go on
    assert len(list(pinned.items())) == 1200
    pinned.close()
    pair.verify()
    pair.tree.close()


def test_lists_are_a_small_part_of_a_full_cache() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=60_000)
    for i in range(3000):
        pair.put(b"%04d" % i, b"")
    pair.checkpoint()
    use(pair, sorted(pair.model)[:150], 30)
    assert 0 < pair.tree._pool._cached_in_lists * RECORD_BYTES < pair.cache_bytes / 16
    pair.verify()
    pair.tree.close()


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
    assert [open_cell(cell, REF.size) for cell in cells] == opened
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
        b"",
        bytes([8]) + bytes(40),  # flags of no version
        bytes([1]) + bytes(17),
        bytes([2]) + bytes(23),
        bytes([4]) + bytes(10 + REF.size - 1),
        bytes([7]) + bytes(32 + REF.size + 1),
    ],
)
def test_a_cell_that_makes_no_sense_is_an_error(cell: bytes) -> None:
    with pytest.raises(ValueError, match=r"flags|reference"):
        open_cell(cell, REF.size)


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
