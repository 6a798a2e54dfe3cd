"""Tables and blob files for tests: made in one go, and read in every way there is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from zlib import crc32

from conure.fileio import FileSystem
from conure.storage.lsm.blobs import BlobFacts, BlobWriter
from conure.storage.lsm.tables import Table, TableFacts
from conure.storage.lsm.tablewriter import BLOCK_BYTES, TableWriter

__all__ = ["Records", "drained", "find", "items_of", "write_blobs", "write_table"]

Records = Mapping[bytes, bytes]  # keys and cells


def write_table(
    fs: FileSystem, path: str, records: Records, block_bytes: int = BLOCK_BYTES, at_once: int = 1000
) -> TableFacts:
    """Write a table of these records and return its facts."""
    writer = TableWriter(fs, os.path.dirname(path), os.path.basename(path), block_bytes=block_bytes)
    keys = sorted(records)
    for first in range(0, len(keys), at_once):
        part = keys[first : first + at_once]
        writer.add(part, [records[key] for key in part])
    drained(writer.finish())
    return writer.facts


def write_blobs(
    fs: FileSystem, path: str, values: Mapping[bytes, bytes]
) -> tuple[BlobFacts, dict[bytes, bytes]]:
    """Write a blob file of the values of these keys; return its facts and the references."""
    writer = BlobWriter(fs, os.path.dirname(path), os.path.basename(path))
    refs = {key: writer.add(key, value) for key, value in values.items()}
    writer.finish()
    return writer.facts, refs


def find(table: Table, key: bytes) -> bytes | None:
    return table.find(key, crc32(key))


def items_of(
    table: Table, start: bytes = b"", end: bytes | None = None
) -> list[tuple[bytes, bytes]]:
    """Return keys and cells of a range, having compared all ways to read it."""
    groups = list(table.groups(start, end, False))
    assert list(table.groups(start, end, True)) == groups[::-1]
    keys = [keys for keys, _ in groups]
    assert list(table.keys(start, end, False)) == keys
    assert list(table.keys(start, end, True)) == keys[::-1]
    assert all(keys)
    return [item for group in groups for item in zip(*group, strict=True)]


def drained(slices: Iterator[None] | Iterable[None]) -> int:
    """Run a generator of slices to its end and return how many there were."""
    return sum(1 for _ in slices)
