"""Tables beside a sorted dict: found, ranged over, proved, whatever the records look like."""

from __future__ import annotations

import random
from bisect import bisect_left
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import DiskFailed, DiskFull
from conure.fileio import OsFileSystem
from conure.storage.cells import make_cell
from conure.storage.lsm.hashindex import CROWD
from conure.storage.lsm.records import MAX_KEY
from conure.storage.lsm.tables import TOMBSTONE, Table, TableFacts
from conure.storage.lsm.tablewriter import GATHERED, SYNC_BYTES, TableWriter
from tests.lab.crashfs import CrashFileSystem, FailureKind
from tests.lab.crc import colliding_keys
from tests.lab.lsmfiles import drained, find, items_of, write_table

KEYS = st.binary(min_size=1, max_size=6) | st.sampled_from(colliding_keys(12))
CELLS = st.sampled_from([TOMBSTONE, b"\0", b"cell", b"c" * 11, b"c" * 12, b"cell" * 30])
FOOTER = 68


def made_of(
    records: dict[bytes, bytes], block_bytes: int = 64
) -> tuple[CrashFileSystem, TableFacts]:
    fs = CrashFileSystem()
    return fs, write_table(fs, "/t", records, block_bytes)


@settings(max_examples=150, deadline=None)
@given(
    records=st.dictionaries(KEYS, CELLS, min_size=1, max_size=60),
    others=st.lists(KEYS, max_size=20),
    bounds=st.lists(st.tuples(KEYS | st.just(b""), KEYS | st.none()), max_size=8),
    at_once=st.integers(1, 50),
    mapped=st.booleans(),
)
def test_a_table_is_a_sorted_dict(
    records: dict[bytes, bytes],
    others: list[bytes],
    bounds: list[tuple[bytes, bytes | None]],
    at_once: int,
    mapped: bool,
) -> None:
    fs = CrashFileSystem()
    facts = write_table(fs, "/t", records, 64, at_once)
    keys = sorted(records)
    tombstones = list(records.values()).count(TOMBSTONE)
    counts = (len(keys), tombstones, keys[0], keys[-1], ())
    assert (facts.records, facts.tombstones, facts.first, facts.last, facts.blobs) == counts
    assert facts.size == len(fs.contents("/t"))
    table = Table.open(fs, "/", facts, mapped=mapped)
    assert table.blocks == len(list(table.keys(b"", None, False)))
    for key in [*keys, *others]:
        assert find(table, key) == records.get(key)
    for start, end in [(b"", None), *bounds]:
        last = len(keys) if end is None else bisect_left(keys, end)
        expected = keys[bisect_left(keys, start) : last]
        assert items_of(table, start, end) == [(key, records[key]) for key in expected]
    drained(table.verify())


def test_how_a_table_is_added_to_makes_no_difference() -> None:
    rng = random.Random(4)
    records = {rng.randbytes(rng.randrange(1, 30)): b"c" * rng.randrange(300) for _ in range(3000)}
    contents = set()
    for at_once in (1, 7, 1000, 3000):
        fs = CrashFileSystem()
        write_table(fs, "/t", records, at_once=at_once)
        contents.add(fs.contents("/t"))
    assert len(contents) == 1


def test_records_of_every_size() -> None:
    longest = b"\xff" * MAX_KEY
    records = {b"a": b"x", b"b": TOMBSTONE, b"c": bytes(8 << 20), longest: b"y", longest[:-1]: b"z"}
    records |= {b"d%d" % size: b"c" * size for size in range(500, 530)}
    fs, facts = made_of(records, 4096)
    for mapped in (True, False):
        table = Table.open(fs, "/", facts, mapped=mapped)
        assert all(find(table, key) == cell for key, cell in records.items())
        assert dict(items_of(table)) == records
        assert items_of(table, b"bb", b"d") == [(b"c", bytes(8 << 20))]
        assert find(table, b"\xff" * (MAX_KEY - 2)) is None
        drained(table.verify())


def test_long_records_among_many_short_ones() -> None:
    records = {b"%05d" % number: b"cell" for number in range(2000)}
    records |= {b"%05d" % number: bytes(600 + number) for number in range(0, 2000, 400)}
    fs, facts = made_of(records, 4096)
    table = Table.open(fs, "/", facts)
    assert all(find(table, key) == cell for key, cell in records.items())


@pytest.mark.parametrize("mapped", [True, False])
def test_the_real_disk(tmp_path: Path, mapped: bool) -> None:
    fs = OsFileSystem()
    rng = random.Random(1)
    records = {rng.randbytes(16): b"\0" + rng.randbytes(110) for _ in range(4000)}
    facts = write_table(fs, str(tmp_path / "t"), records)
    table = Table.open(fs, str(tmp_path), facts, mapped=mapped)
    assert table.memory_bytes == 0
    assert all(find(table, key) == cell for key, cell in records.items())
    hash_bytes = 4 * (512 + 1) + (1 if mapped else 5) * 4000
    assert table.memory_bytes == hash_bytes
    assert dict(items_of(table)) == records
    assert hash_bytes + 12 * 130 < table.memory_bytes < hash_bytes + 30 * 150
    (tmp_path / "t").unlink()
    assert dict(items_of(table)) == records
    drained(table.verify())


# -- keys chosen to collide ------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "is_crowded"), [(CROWD - 10, False), (CROWD + 1, True)])
def test_colliding_keys(count: int, is_crowded: bool) -> None:
    keys = colliding_keys(count + 40)
    others = keys[1::2][:40]
    records = {key: b"cell" + key for key in keys if key not in others}
    rng = random.Random(3)
    some = {rng.randbytes(8): b"cell" for _ in range(4000)}
    fs, facts = made_of(records | some, 4096)
    flags = fs.contents("/t")[facts.size - FOOTER + 12]
    assert flags == is_crowded
    table = Table.open(fs, "/", facts, mapped=False)
    for key, cell in (records | some).items():
        assert find(table, key) == cell
    assert dict(items_of(table)) == records | some
    for key in others:
        calls = fs.calls
        assert find(table, key) is None
        assert fs.calls - calls <= (1 if is_crowded else CROWD + 1)
    assert all(find(table, rng.randbytes(8)) is None for _ in range(1000))
    drained(table.verify())


# -- writers ---------------------------------------------------------------------------------------


def test_a_writer_takes_ascending_keys_only() -> None:
    fs = CrashFileSystem()
    writer = TableWriter(fs, "/", "t")
    writer.add([b"b", b"c"], [b"1", b"2"])
    writer.add([], [])
    for keys in ([b"c"], [b"a"], [b"d", b"d"], [b"e", b"d"], [b""]):
        with pytest.raises(ValueError, match="ascend"):
            writer.add(keys, [b""] * len(keys))
    with pytest.raises(ValueError, match="as many"):
        writer.add([b"d"], [])
    with pytest.raises(ValueError, match="bytes"):
        writer.add([b"d" * (MAX_KEY + 1)], [b""])
    with pytest.raises(ValueError, match="reference"):
        writer.add([b"d"], [make_cell(b"", 1, 1, 1, 0, spilled=True)])
    with pytest.raises(ValueError, match="ascend"):
        TableWriter(fs, "/", "u").add([b""], [b""])
    writer.add([b"d"], [b"3"])
    drained(writer.finish())
    assert items_of(Table.open(fs, "/", writer.facts)) == [(b"b", b"1"), (b"c", b"2"), (b"d", b"3")]


def test_a_writer_never_writes_into_a_file_that_is_there() -> None:
    fs, _ = made_of({b"k": b"cell"})
    before = fs.contents("/t")
    with pytest.raises(FileExistsError):
        TableWriter(fs, "/", "t")
    assert fs.contents("/t") == before


def test_a_table_is_synced_as_it_grows_and_at_its_end() -> None:
    fs = CrashFileSystem()
    writer = TableWriter(fs, "/", "t")
    cell = bytes(GATHERED)
    synced = 0
    while writer.size < 2 * SYNC_BYTES + 4 * GATHERED:
        before = fs.syncs
        writer.add([writer.size.to_bytes(4, "big")], [cell])
        if fs.syncs > before:
            synced = writer.size
        assert writer.size - synced <= SYNC_BYTES + 2 * GATHERED
    assert fs.syncs == 2
    slices = drained(writer.finish())
    assert slices > 2
    fs.sync_directory("/")
    after = fs.after_crash("dropped")
    drained(Table.open(after, "/", writer.facts).verify())


def test_finishing_a_large_table_goes_in_slices() -> None:
    fs = CrashFileSystem()
    writer = TableWriter(fs, "/", "t")
    keys = [b"%08d" % number for number in range(40_000)]
    writer.add(keys, keys)
    assert drained(writer.finish()) >= 10
    assert drained(Table.open(fs, "/", writer.facts).verify()) >= 10


@pytest.mark.parametrize("kind", ["io", "full", "half"])
def test_a_writer_whose_nth_call_fails_leaves_nothing(kind: FailureKind) -> None:
    records = {b"%05d" % number: b"cell" * 20 for number in range(5000)}
    expected = DiskFailed if kind == "io" else DiskFull
    failures = 0
    while True:
        fs = CrashFileSystem()
        fs.make_directory("/d")
        fs.fail_call(failures + 1, kind)
        writer = None
        try:
            writer = TableWriter(fs, "/d", "t")
            for key, cell in records.items():
                writer.add([key], [cell])
            drained(writer.finish())
        except expected:
            failures += 1
            if writer:
                writer.abort()
                writer.abort()
            assert fs.list("/d") == []
            assert write_table(fs, "/d/t", records).records == 5000
        else:
            break
    assert failures >= 5
    fs.fail_call(None)
    writer.abort()
    assert fs.list("/d") == [], "also when it is finished"


def test_a_disk_too_small_leaves_nothing_and_can_be_tried_again() -> None:
    records = {b"%05d" % number: b"cell" * 20 for number in range(5000)}
    fs = CrashFileSystem()
    fs.set_capacity(300_000)
    writer = TableWriter(fs, "/", "t")
    with pytest.raises(DiskFull):
        writer.add(list(records), list(records.values()))
    writer.abort()
    assert fs.used_bytes() == 0
    fs.set_capacity(None)
    drained(Table.open(fs, "/", write_table(fs, "/t", records)).verify())


def test_reading_whose_nth_call_fails_goes_on_after_it() -> None:
    records = {b"%03d" % number: b"cell" for number in range(100)}
    fs, facts = made_of(records)
    number = 0
    while True:
        number += 1
        fs.fail_call(number)
        try:
            table = Table.open(fs, "/", facts, mapped=False)
            assert find(table, b"050") == b"cell"
            assert dict(items_of(table)) == records
            drained(table.verify())
        except DiskFailed:
            if not fs.failure_is_due and number > 10:
                assert find(table, b"050") == b"cell"
                assert dict(items_of(table)) == records
                drained(table.verify())
        else:
            break
    assert number > 50


# -- format ----------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    """The format of version 1: what was written once is written so, and read, for ever."""
    cell = make_cell(b"value", 5, 9, 2, 0, spilled=False)
    ref = (16).to_bytes(8, "little") + (7000).to_bytes(4, "little") + b"b.blob"
    spilled = make_cell(ref, 1, 2, 3, 4, spilled=True)
    records = {b"alpha": cell, b"beta": TOMBSTONE, b"gamma": spilled}
    fs, facts = made_of(records, 48)
    assert fs.contents("/t") == bytes.fromhex(GOLDEN)
    assert facts == TableFacts("t", 277, 0x299A71DA, 3, 1, b"alpha", b"gamma", (("b.blob", 7019),))
    old = CrashFileSystem()
    file = old.open("/t", create=True)
    file.pwrite(bytes.fromhex(GOLDEN), 0)
    table = Table.open(old, "/", facts)
    assert dict(items_of(table)) == records
    drained(table.verify())


GOLDEN = """
434e525441424c45e386d239050010000000616c706861000500000009000000020076616c756500
6304918f0400000000006265746100000fdf881205002500000067616d6d61050100000002000000
030004000000000000001000000000000000581b0000622e626c6f62020000000e0000001b000000
510575a1429c557100000000000000000100000067000000020000000a0000000e00000000000000
030000006a637103000000010000000500050001000000616c70686167616d6d6106006b1b000000
000000622e626c6f62434e525441424c4501000000000000000300000002000000340000006c0000
00000000009000000000000000a7000000000000006e3ed19309d92a12ba07ab4bda719a29
"""


def test_a_key_may_have_the_hash_of_another() -> None:
    one, other, third = colliding_keys(3)
    fs, facts = made_of({one: b"1", other: b"2"})
    table = Table.open(fs, "/", facts)
    assert crc32(one) == crc32(third)
    assert (find(table, one), find(table, other), find(table, third)) == (b"1", b"2", None)
