"""Tables and blob files for tests: made in one go, and read in every way there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from zlib import crc32

from conure.fileio import FileSystem
from conure.storage.lsm.blobs import BlobFacts, BlobWriter
from conure.storage.lsm.blockindex import BlockIndexBuilder
from conure.storage.lsm.hashindex import HashBuilder
from conure.storage.lsm.records import pack, places_of
from conure.storage.lsm.tables import MAGIC, TOMBSTONE, Footer, Table, TableFacts
from conure.storage.lsm.tablewriter import BLOCK_BYTES, TableWriter

__all__ = ["Records", "drained", "find", "forge_table", "items_of", "write_blobs", "write_table"]

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


def forge_table(
    fs: FileSystem,
    path: str,
    groups: Sequence[tuple[list[bytes], list[bytes]]],
    change: Callable[[dict[str, bytes]], None],
) -> TableFacts:
    """Write a table with a block for each group, in whatever order, and every checksum right.

    *change* may put others in the place of its parts first: ``blocks``, ``index``, ``hash`` (of
    their own sizes) and ``facts``.
    """
    index = BlockIndexBuilder(len(MAGIC))
    hashes = HashBuilder()
    blocks: list[bytes] = []
    for keys, cells in groups:
        packed = pack(keys, cells, 1 << 20, whole=True)
        at = len(MAGIC) + sum(map(len, blocks))
        hashes.extend(packed.hashes, places_of(at, packed.sizes))
        blocks += [block for block, _ in packed.blocks]
        index.add(blocks[-1], keys[0], keys[-1])
    building = hashes.build()
    while True:
        try:
            next(building)
        except StopIteration as ended:
            hash_parts: list[bytes] = ended.value
            break
    all_cells = [cell for _, cells in groups for cell in cells]
    facts = TableFacts(
        os.path.basename(path), 0, 0, len(all_cells), all_cells.count(TOMBSTONE),
        groups[0][0][0], groups[-1][0][-1], (),
    )  # fmt: skip
    parts = {
        "blocks": MAGIC + b"".join(blocks),
        "index": index.build(),
        "hash": b"".join(hash_parts),
        "facts": facts.encode(),
    }
    change(parts)
    footer = Footer.of(
        hashes.is_crowded,
        len(all_cells),
        len(groups),
        max(size for keys, cells in groups for size in pack(keys, cells, 1, whole=True).sizes),
        (len(parts["blocks"]), len(parts["index"]), len(parts["hash"])),
        (crc32(parts["index"]), crc32(parts["hash"]), crc32(parts["facts"])),
    ).encode()
    content = b"".join(parts.values()) + footer
    file = fs.open(path, create=True)
    file.truncate(0)
    file.pwrite(content, 0)
    file.close()
    return facts._replace(size=len(content), footer=int.from_bytes(footer[-4:], "little"))


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
