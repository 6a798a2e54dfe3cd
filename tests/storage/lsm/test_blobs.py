"""Long values in blob files: written once, read whole or by their beginning."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import DiskFailed, DiskFull
from conure.fileio import OsFileSystem
from conure.storage.cells import make_cell
from conure.storage.lsm.blobs import (
    CHUNK,
    BlobFacts,
    BlobFile,
    BlobWriter,
    bytes_of,
    file_of,
    length_of,
    refer,
)
from tests.lab.crashfs import CrashFileSystem, FailureKind
from tests.lab.lsmfiles import drained, write_blobs

LENGTHS = st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.dictionaries(st.binary(max_size=5), LENGTHS, min_size=1, max_size=8),
    most=st.lists(st.integers(0, 4 * CHUNK), max_size=4),
    mapped=st.booleans(),
)
def test_values_come_back(lengths: dict[bytes, int], most: list[int], mapped: bool) -> None:
    rng = random.Random(1)
    values = {key: rng.randbytes(length) for key, length in lengths.items()}
    fs = CrashFileSystem()
    facts, refs = write_blobs(fs, "/b", values)
    assert facts == BlobFacts("b", len(fs.contents("/b")))
    blobs = BlobFile.open(fs, "/", facts, mapped=mapped)
    for key, value in values.items():
        assert (file_of(refs[key]), length_of(refs[key])) == ("b", len(value))
        assert blobs.read(key, refs[key]) == value
        for size in [0, *most, len(value)]:
            assert blobs.beginning(key, refs[key], size) == value[:size]
    drained(blobs.verify())
    assert 16 + sum(bytes_of(key, ref) for key, ref in refs.items()) == facts.size


def test_no_more_is_read_than_a_beginning_needs() -> None:
    fs = CrashFileSystem()
    facts, refs = write_blobs(fs, "/b", {b"k": bytes(20 * CHUNK)})
    blobs = BlobFile.open(fs, "/", facts)
    fs.corrupt("/b", 16 + 11 + 3 * (CHUNK + 4))
    assert blobs.beginning(b"k", refs[b"k"], 0) == b""
    assert blobs.beginning(b"k", refs[b"k"], 3 * CHUNK) == bytes(3 * CHUNK)


def test_the_real_disk(tmp_path: Path) -> None:
    fs = OsFileSystem()
    values = {b"%d" % number: bytes([number]) * 70_000 for number in range(20)}
    facts, refs = write_blobs(fs, str(tmp_path / "b"), values)
    for mapped in (True, False):
        blobs = BlobFile.open(fs, str(tmp_path), facts, mapped=mapped)
        assert all(blobs.read(key, refs[key]) == value for key, value in values.items())
        assert drained(blobs.verify()) > 1


def test_cells_tell_how_much_they_refer_to() -> None:
    fs = CrashFileSystem()
    one, one_refs = write_blobs(fs, "/one", {b"a": bytes(5000), b"b": bytes(70_000)})
    two, two_refs = write_blobs(fs, "/two", {b"c": bytes(6000)})
    refs = one_refs | two_refs
    cells = [
        make_cell(ref, 1, 2, 3, number, spilled=True) for number, ref in enumerate(refs.values())
    ]
    found: dict[str, int] = {}
    refer([b"_", *refs, b"z"], [b"", *cells, make_cell(b"v", 1, 2, 3, 0, spilled=False)], found)
    assert found == {"one": one.size - 16, "two": two.size - 16}
    refer([b"c"], cells[2:], found)
    assert found["two"] == 2 * (two.size - 16)
    refer([b"c"], [b""], found)
    refer([], [], found)
    with pytest.raises(ValueError, match="short"):
        refer([b"c"], [cells[2][:-3]], found)


def test_a_value_as_long_as_a_reference_can_say_and_no_longer() -> None:
    writer = BlobWriter(CrashFileSystem(), "/", "b")
    with pytest.raises(ValueError, match="bytes"):
        writer.add(b"k" * 65_536, b"")
    writer.add(b"k" * 65_535, b"v")


def test_a_writer_never_writes_into_a_file_that_is_there() -> None:
    fs = CrashFileSystem()
    write_blobs(fs, "/b", {b"k": b"v"})
    with pytest.raises(FileExistsError):
        BlobWriter(fs, "/", "b")


def test_what_is_finished_outlasts_a_power_failure() -> None:
    fs = CrashFileSystem()
    writer = BlobWriter(fs, "/", "b")
    refs = [writer.add(b"%d" % number, bytes(1 << 20)) for number in range(20)]
    assert fs.syncs >= 2, "one every 8 MiB"
    writer.finish()
    fs.sync_directory("/")
    blobs = BlobFile.open(fs.after_crash("dropped"), "/", writer.facts)
    assert all(len(blobs.read(b"%d" % number, ref)) == 1 << 20 for number, ref in enumerate(refs))


@pytest.mark.parametrize("kind", ["io", "full", "half"])
def test_a_writer_whose_nth_call_fails_leaves_nothing(kind: FailureKind) -> None:
    expected = DiskFailed if kind == "io" else DiskFull
    failures = 0
    while True:
        fs = CrashFileSystem()
        fs.make_directory("/d")
        fs.fail_call(failures + 1, kind)
        writer = None
        try:
            writer = BlobWriter(fs, "/d", "b")
            for number in range(20):
                writer.add(b"%d" % number, bytes(70_000))
            writer.finish()
        except expected:
            failures += 1
            if writer:
                writer.abort()
                writer.abort()
            assert fs.list("/d") == []
            write_blobs(fs, "/d/b", {b"k": b"v"})
        else:
            break
    assert failures >= 5
    fs.fail_call(None)
    writer.abort()
    assert fs.list("/d") == [], "also when it is finished"


def test_golden_bytes() -> None:
    """The format of version 1: what was written once is written so, and read, for ever."""
    values = {b"alpha": b"a long value", b"beta": b""}
    fs = CrashFileSystem()
    facts, refs = write_blobs(fs, "/b.blob", values)
    assert fs.contents("/b.blob") == bytes.fromhex(GOLDEN)
    assert refs[b"beta"] == bytes.fromhex("2f0000000000000000000000") + b"b.blob"
    old = CrashFileSystem()
    old.open("/b.blob", create=True).pwrite(bytes.fromhex(GOLDEN), 0)
    blobs = BlobFile.open(old, "/", facts)
    assert {key: blobs.read(key, ref) for key, ref in refs.items()} == values
    drained(blobs.verify())


GOLDEN = """
434e52424c4f425301000000ed37e720bd26132d0c0000000500616c70686161206c6f6e67207661
6c756528eb796a12da8d4a00000000040062657461
"""
