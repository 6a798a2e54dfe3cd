"""Damaged tables and blob files: each read tells the truth or names file and offset (S3)."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zlib import crc32

import pytest

from conure.errors import CorruptionError
from conure.fileio import OsFileSystem
from conure.storage.cells import make_cell
from conure.storage.lsm.blobs import CHUNK, BlobFacts, BlobFile
from conure.storage.lsm.tables import TOMBSTONE, Table, TableFacts
from tests.lab.crashfs import CrashFileSystem
from tests.lab.crc import colliding_keys
from tests.lab.lsmfiles import Records, drained, find, items_of, write_blobs, write_table

FOOTER = 68
FLIPS = (0x01, 0x80, 0xFF)
ABSENT = [b"", b"aa", b"zzz", *colliding_keys(9)[6:]]
RANGES: list[tuple[bytes, bytes | None]] = [(b"", None), (b"d", b"m3"), (b"m", None), (b"", b"m")]

Made = tuple[CrashFileSystem, TableFacts, Records]
MadeBlobs = tuple[CrashFileSystem, BlobFacts, dict[bytes, bytes]]


def told(path: str, size: int, read: Callable[[], object]) -> bool:
    """Run a read; return whether it told of damage, and at a place in the file."""
    try:
        read()
    except CorruptionError as error:
        found = error
    else:
        return False
    assert found.file == path
    assert 0 <= found.offset <= size
    return True


# -- tables ----------------------------------------------------------------------------------------


def table_records() -> Records:
    rng = random.Random(8)
    records = {rng.randbytes(rng.randrange(1, 5)): b"\0" * rng.randrange(20) for _ in range(12)}
    ref = bytes(12) + b"a.blob"
    records |= {b"dead": TOMBSTONE, b"far": make_cell(ref, 1, 2, 3, 0, spilled=True)}
    records |= dict.fromkeys(colliding_keys(6), b"cell")
    return records | {b"m%d" % number: b"cell" for number in range(5)}


def look_up(table: Table, key: bytes, cell: bytes | None) -> None:
    assert find(table, key) == cell


def look_through(table: Table, records: Records, start: bytes, end: bytes | None) -> None:
    keys = [key for key in sorted(records) if start <= key and (end is None or key < end)]
    assert items_of(table, start, end) == [(key, records[key]) for key in keys]


def tells_the_truth(table: Table, records: Records) -> None:
    """Whatever is read of a table is right or a CorruptionError."""
    size = table.facts.size
    for key in [*records, *ABSENT]:
        told("/d/t", size, partial(look_up, table, key, records.get(key)))
    for start, end in RANGES:
        told("/d/t", size, partial(look_through, table, records, start, end))


@pytest.fixture
def made() -> Made:
    fs = CrashFileSystem()
    fs.make_directory("/d")
    records = table_records()
    return fs, write_table(fs, "/d/t", records, 64), records


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("mapped", [True, False])
def test_every_byte_of_a_table_flipped(made: Made, flip: int, mapped: bool) -> None:
    fs, facts, records = made
    opened = 0

    def read() -> None:
        nonlocal opened
        table = Table.open(fs, "/d", facts, mapped=mapped)
        tells_the_truth(table, records)
        assert told("/d/t", facts.size, lambda: drained(table.prove_bytes()))
        assert told("/d/t", facts.size, lambda: drained(table.verify()))
        opened += 1

    for offset in range(facts.size):
        fs.corrupt("/d/t", offset, flip)
        told("/d/t", facts.size, read)
        fs.corrupt("/d/t", offset, flip)
    assert opened == facts.size - 8 - FOOTER, "all but head and footer"
    drained(Table.open(fs, "/d", facts, mapped=mapped).verify())


@pytest.mark.parametrize("mapped", [True, False])
def test_a_table_damaged_while_it_is_read(made: Made, mapped: bool) -> None:
    """What was proved once is in memory, or is proved again whenever it leads anywhere."""
    fs, facts, records = made
    table = Table.open(fs, "/d", facts, mapped=mapped)
    assert dict(items_of(table)) == records
    assert find(table, b"dead") == TOMBSTONE
    for offset in range(facts.size):
        for flip in FLIPS:
            fs.corrupt("/d/t", offset, flip)
            tells_the_truth(table, records)
            assert told("/d/t", facts.size, partial(drained, table.verify()))
            fs.corrupt("/d/t", offset, flip)


def test_places_that_change_while_a_table_is_mapped(tmp_path: Path) -> None:
    """They alone are not in memory; each that leads elsewhere is found out."""
    fs = OsFileSystem()
    path = str(tmp_path / "t")
    keys = [b"%d" % number for number in range(40)]
    facts = write_table(fs, path, dict.fromkeys(keys, b"cell"), 64)
    file = fs.open(path)
    hash_at = int.from_bytes(file.pread(8, facts.size - FOOTER + 36), "little")
    places = file.pread(4 * len(keys), hash_at)
    table = Table.open(fs, str(tmp_path), facts)
    assert all(find(table, key) == b"cell" for key in keys)
    assert len({crc32(key) & 0xFF for key in keys}) == len(keys), "so each place is the only one"
    for shift in range(4, len(places), 4):
        file.pwrite(places[shift:] + places[:shift], hash_at)
        for key in keys:
            assert told(path, facts.size, partial(find, table, key))
    file.pwrite(b"\xff" * len(places), hash_at)
    assert all(told(path, facts.size, partial(find, table, key)) for key in keys)
    file.pwrite(places, hash_at)
    assert all(find(table, key) == b"cell" for key in keys)
    file.close()


def test_every_length_of_a_table(made: Made) -> None:
    fs, facts, _ = made
    content = fs.contents("/d/t")
    for size in [*range(facts.size), facts.size + 1, 3 * facts.size]:
        other = CrashFileSystem()
        other.make_directory("/d")
        other.open("/d/t", create=True).pwrite((content * 3)[:size], 0)
        with pytest.raises(CorruptionError, match="bytes and not") as caught:
            Table.open(other, "/d", facts)
        assert caught.value.file == "/d/t"
        assert caught.value.offset == min(size, facts.size)
        if size != 3 * facts.size:  # and whoever believes that size
            with pytest.raises(CorruptionError):
                Table.open(other, "/d", facts._replace(size=size))


def test_bytes_that_are_another_tables(made: Made) -> None:
    """Swapped, or stale: of the same size, whole, and not what is known of it."""
    fs, facts, records = made
    other = write_table(fs, "/d/u", {**records, b"m3": b"cool"}, 64)
    assert other.size == facts.size
    assert other.footer != facts.footer
    fs.rename("/d/u", "/d/t")
    with pytest.raises(CorruptionError, match="another table"):
        Table.open(fs, "/d", facts)


@pytest.mark.parametrize("lie", ["first", "last", "tombstones", "blobs"])
def test_facts_that_are_not_the_tables_are_told(made: Made, lie: str) -> None:
    fs, facts, _ = made
    lies = {
        "first": facts._replace(first=b"!" * len(facts.first)),
        "last": facts._replace(last=b"!" * len(facts.last)),
        "tombstones": facts._replace(tombstones=facts.tombstones + 1),
        "blobs": facts._replace(blobs=tuple((name, 7) for name, _ in facts.blobs)),
    }
    table = Table.open(fs, "/d", lies[lie])
    with pytest.raises(CorruptionError, match="facts"):
        drained(table.prove_bytes())


# -- blob files ------------------------------------------------------------------------------------


VALUES = {b"one": b"1" * 40, b"two": b"22", b"": b"x", b"none": b""}


def look_into(blobs: BlobFile, key: bytes, ref: bytes, most: int) -> None:
    assert blobs.beginning(key, ref, most) == VALUES[key][:most]
    assert blobs.read(key, ref) == VALUES[key]


def blobs_tell_the_truth(blobs: BlobFile, refs: dict[bytes, bytes]) -> None:
    size = blobs.facts.size
    for key, ref in refs.items():
        for most in (0, 1, 100):
            told("/d/b", size, partial(look_into, blobs, key, ref, most))
        for other in VALUES.keys() - {key}:
            assert told("/d/b", size, partial(blobs.read, other, ref)), "another key's"


@pytest.fixture
def blobs() -> MadeBlobs:
    fs = CrashFileSystem()
    fs.make_directory("/d")
    return (fs, *write_blobs(fs, "/d/b", VALUES))


@pytest.mark.parametrize("mapped", [True, False])
def test_every_byte_of_a_blob_file_flipped(blobs: MadeBlobs, mapped: bool) -> None:
    fs, facts, refs = blobs
    opened = BlobFile.open(fs, "/d", facts, mapped=mapped)
    blobs_tell_the_truth(opened, refs)
    drained(opened.verify())
    for offset in range(facts.size):
        for flip in FLIPS:
            fs.corrupt("/d/b", offset, flip)
            assert told("/d/b", facts.size, lambda: drained(opened.verify()))
            blobs_tell_the_truth(opened, refs)
            if offset < 16:
                with pytest.raises(CorruptionError):
                    BlobFile.open(fs, "/d", facts, mapped=mapped)
            fs.corrupt("/d/b", offset, flip)


def read_everything(fs: CrashFileSystem, facts: BlobFacts, refs: dict[bytes, bytes]) -> None:
    opened = BlobFile.open(fs, "/d", facts)
    blobs_tell_the_truth(opened, refs)
    drained(opened.verify())


def test_every_length_of_a_blob_file(blobs: MadeBlobs) -> None:
    fs, facts, refs = blobs
    content = fs.contents("/d/b")
    ends = {int.from_bytes(ref[:8], "little") for ref in refs.values()}  # of the records before
    for size in [*range(facts.size), facts.size + 1, 2 * facts.size]:
        other = CrashFileSystem()
        other.make_directory("/d")
        other.open("/d/b", create=True).pwrite((content * 2)[:size], 0)
        with pytest.raises(CorruptionError, match="bytes and not"):
            BlobFile.open(other, "/d", facts)
        believed = facts._replace(size=size)
        assert told("/d/b", size, partial(read_everything, other, believed, refs)) == (
            size not in ends
        )


def test_blobs_of_another_file_or_place(blobs: MadeBlobs) -> None:
    fs, facts, refs = blobs
    fs.rename("/d/b", "/d/c")
    with pytest.raises(CorruptionError, match="another file"):
        BlobFile.open(fs, "/d", BlobFacts("c", facts.size))
    content = fs.contents("/d/c")
    fs.open("/d/b", create=True).pwrite(content[:16] + content[16:] * 2, 0)
    opened = BlobFile.open(fs, "/d", BlobFacts("b", 2 * facts.size - 16))
    place = (int.from_bytes(refs[b"one"][:8], "little") + facts.size - 16).to_bytes(8, "little")
    assert opened.read(b"one", refs[b"one"]) == VALUES[b"one"]
    with pytest.raises(CorruptionError, match="heading"):
        opened.read(b"one", place + refs[b"one"][8:])


def test_references_to_nowhere() -> None:
    fs = CrashFileSystem()
    facts, refs = write_blobs(fs, "/b", {b"k": bytes(2 * CHUNK)})
    opened = BlobFile.open(fs, "/", facts)
    ref = refs[b"k"]
    rng = random.Random(2)
    wrong = [b"", ref[:12], ref[:8] + b"\xff" * 4 + b"b", b"\xff" * 8 + ref[8:], ref[:-1] + b"\xff"]
    wrong += [rng.randbytes(12) + b"b" for _ in range(200)]
    wrong += [rng.randrange(17, facts.size).to_bytes(8, "little") + ref[8:] for _ in range(200)]
    wrong += [ref[:8] + length.to_bytes(4, "little") + b"b" for length in range(9)]
    for each in wrong:
        for most in (0, 1 << 20):
            assert told("/b", facts.size, partial(opened.beginning, b"k", each, most))
