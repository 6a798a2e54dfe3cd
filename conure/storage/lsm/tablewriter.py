"""Writes a table (``tables.py``) from records that come in the order of their keys.

Records are gathered to :data:`GATHERED` bytes and then laid out and written all at once. What is
written is synced every :data:`SYNC_BYTES`, so that the last sync has no more than that to wait for.
Nothing believes in the table before it is finished and its name is durable, which is for the caller
to see to; one that is given up is removed.

One thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import lt
from zlib import crc32

from conure.fileio import FileSystem
from conure.storage.lsm.blobs import refer
from conure.storage.lsm.blockindex import BlockIndexBuilder
from conure.storage.lsm.hashindex import HashBuilder
from conure.storage.lsm.records import HEAD, MAX_CELL, MAX_KEY, pack, pack_laid, places_of
from conure.storage.lsm.tables import MAGIC, TOMBSTONE, Footer, TableFacts

__all__ = ["BLOCK_BYTES", "GATHERED", "SYNC_BYTES", "TableWriter"]

BLOCK_BYTES = 4096
SYNC_BYTES = 8 << 20
GATHERED = 128 << 10
"""Bytes of keys and cells that are laid out at once: 1 to 2 ms."""


class TableWriter:
    """Makes the file *name* in *folder*, where nothing may have that name. :meth:`add` records,
    then :meth:`finish`; after an error, or to give up, :meth:`abort`.

    With *copies* what it takes are not cells but whole records of other tables, which have neither
    tombstones nor long values; they are written as they are. Raises FileExistsError, DiskFull and
    DiskFailed.
    """

    def __init__(
        self,
        fs: FileSystem,
        folder: str,
        name: str,
        *,
        block_bytes: int = BLOCK_BYTES,
        copies: bool = False,
    ) -> None:
        self.size = len(MAGIC)
        """About how many bytes the table has so far, its indexes apart."""
        self._fs = fs
        self._name = name
        self._path = os.path.join(folder, name)
        self._block_bytes = block_bytes
        self._copies = copies
        self._facts: TableFacts | None = None
        self._keys: list[bytes] = []  # not laid out yet
        self._cells: list[bytes] = []
        self._gathered = 0
        self._first = b""
        self._last = b""
        self._tombstones = 0
        self._longest = 0
        self._blobs: dict[str, int] = {}
        self._index = BlockIndexBuilder(len(MAGIC))
        self._hashes = HashBuilder()
        self._written = 0
        self._unsynced = 0
        self._file = fs.open(self._path, exclusive=True)
        self._exists = True

    @property
    def facts(self) -> TableFacts:
        """What there is to know of the table, once it is finished."""
        assert self._facts is not None
        return self._facts

    def add(self, keys: Sequence[bytes], cells: Sequence[bytes]) -> None:
        """Take records. Raises ValueError if the keys don't ascend, over all calls, or if a key or
        a cell is too long or makes no sense; DiskFull and DiskFailed."""
        if len(keys) != len(cells):
            raise ValueError("there are not as many cells as keys")
        if not keys:
            return
        if not all(map(lt, chain((self._last,), keys), keys)):
            raise ValueError("the keys don't ascend")
        if not self._copies:
            if max(map(len, keys)) > MAX_KEY or max(map(len, cells)) > MAX_CELL:
                raise ValueError(f"a key has more than {MAX_KEY} bytes, or a cell {MAX_CELL}")
            refer(keys, cells, self._blobs)
            self._tombstones += cells.count(TOMBSTONE)
        self._first = self._first or keys[0]
        self._last = keys[-1]
        self._keys += keys
        self._cells += cells
        size = self._size_of(keys, cells)
        self.size += size
        self._gathered += size
        if self._gathered >= GATHERED:
            self._write_blocks(whole=False)

    def finish(self) -> Iterator[None]:
        """Write the rest and sync, in slices of a few milliseconds. Raises DiskFull, DiskFailed."""
        assert self._last, "a table without a record"
        self._write_blocks(whole=True)
        yield
        index = self._index.build()
        blocks_end = self._written
        self._write([index])
        yield
        parts = yield from self._hashes.build()
        self._write(parts)
        yield
        records = len(parts[-1])
        blobs = tuple(sorted(self._blobs.items()))
        facts = TableFacts(
            self._name, 0, 0, records, self._tombstones, self._first, self._last, blobs
        )
        content = facts.encode()
        crc = 0
        for part in parts:
            crc = crc32(part, crc)
        footer = Footer.of(
            self._hashes.is_crowded,
            records,
            len(self._index),
            self._longest,
            (blocks_end, len(index), sum(map(len, parts))),
            (crc32(index), crc, crc32(content)),
        ).encode()
        self._write([content, footer])
        self._file.sync()
        self._file.close()
        size = self._written
        self._facts = facts._replace(size=size, footer=int.from_bytes(footer[-4:], "little"))
        self.size = size

    def close(self) -> None:
        """Let go of the file as it is, for whoever removes it later or not at all."""
        self._file.close()

    def abort(self) -> None:
        """Remove the file; a second time, nothing happens. Raises DiskFailed."""
        if self._exists:
            self._exists = False
            self._file.close()
            self._fs.remove(self._path)

    def _write_blocks(self, *, whole: bool) -> None:
        """Lay out what is gathered and write it; the last block waits for more unless *whole*."""
        keys, cells = self._keys, self._cells
        lay_out = pack_laid if self._copies else pack
        packed = lay_out(keys, cells, self._block_bytes, whole=whole)
        count = len(packed.sizes)
        if not count:
            return
        at = self._written or len(MAGIC)
        self._hashes.extend(packed.hashes, places_of(at, packed.sizes))
        self._longest = max(self._longest, *packed.sizes)
        first = 0
        for block, records in packed.blocks:
            self._index.add(block, keys[first], keys[first + records - 1])
            first += records
        blocks = [block for block, _ in packed.blocks]
        self._write(blocks if self._written else [MAGIC, *blocks])
        del keys[:count], cells[:count]
        self._gathered = self._size_of(keys, cells)

    def _size_of(self, keys: Sequence[bytes], cells: Sequence[bytes]) -> int:
        """Return about how many bytes these records have."""
        size = sum(map(len, cells))
        return size if self._copies else size + sum(map(len, keys)) + len(keys) * HEAD.size

    def _write(self, parts: list[bytes]) -> None:
        size = sum(map(len, parts))
        self._file.pwritev(parts, self._written)
        self._written += size
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES:
            self._file.sync()
            self._unsynced = 0
