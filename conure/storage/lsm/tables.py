"""Tables: files of sorted records that are written once and never changed.

A table from its beginning to its end; integers are little-endian:

============ =====================================================================================
head         the 8 bytes ``CNRTABLE``
blocks       the records in the order of their keys (``records.py``)
block index  where each block is, its CRC, its first key shortened (``blockindex.py``)
hash index   where the record of a key is (``hashindex.py``)
facts        records, tombstones (4 bytes each), length of the first and of the last key (2 each),
             number of blob files (4); the first key, the last key; of each blob file that cells
             refer to: length of its name (2), bytes (8), its name
footer       68 bytes, below
============ =====================================================================================

The footer, of a table of one record that ends at byte 124:

====== ==== ========== ==========================================================================
offset size
0      8    CNRTABLE
8      4    1          version of the format
12     4    0          flags: bit 0: the hash index is crowded
16     4    1          records
20     4    1          blocks
24     4    16         bytes of the longest record
28     8    24         where the block index begins
36     8    44         where the hash index begins
44     8    60         where the facts begin
52     4               CRC-32 of the block index
56     4               CRC-32 of the hash index
60     4               CRC-32 of the facts
64     4               CRC-32 of the footer so far
====== ==== ========== ==========================================================================

So the last CRC stands for the whole table: whoever knows it, as the manifest does, can't be given
another table's bytes. Each part is proved before it is believed: the footer when the table is
opened; each index when it is first used; a block whenever it is read; a record, by its own CRC,
whenever it is found by its key. What the indexes say lies in memory once it is proved, except for
the places of records; a place that has changed since leads to a record with another hash.

A tombstone is a record whose cell is empty: its key is deleted, whatever older tables say. There is
no Bloom filter before the hash index, which says by itself that a key isn't here. Measured in one
run on 130,000 records of 127 bytes: a miss takes 0.34 µs by the fingerprints, 0.42 by a filter of
two probes and 1.1 by one of seven, and each hit takes so much longer.

Whoever writes a table is ``tablewriter.py``. A :class:`Table` is immutable but for indexes that it
has read, and for any thread.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple, NoReturn
from zlib import crc32

from conure.errors import CorruptionError, VersionTooNew
from conure.fileio import FileSystem, Mapped
from conure.storage.lsm.blobs import refer
from conure.storage.lsm.blockindex import BlockIndex, BlockIndexBuilder
from conure.storage.lsm.hashindex import CROWD, HashBuilder, bits_for, numbers_of, size_for
from conure.storage.lsm.records import HEAD, pack, places_of, split, split_keys, split_laid

__all__ = ["MAGIC", "TOMBSTONE", "Footer", "Table", "TableFacts"]

TOMBSTONE = b""
"""The cell of a deleted key."""

MAGIC = b"CNRTABLE"
VERSION = 1

_FOOTER = Struct("<8sIIIIIQQQIII")
_CRC = Struct("<I")
_FOOTER_SIZE = _FOOTER.size + _CRC.size
_FACTS = Struct("<IIHHI")
_BLOB = Struct("<HQ")
_CROWDED = 1  # bit of the flags
_unpack = HEAD.unpack_from
_KEY_AT = HEAD.size
_AT_ONCE = 512  # bytes: records beyond, if they are rare, are read in two steps
_PROVED_AT_ONCE = 32  # blocks, about 2 ms


class TableFacts(NamedTuple):
    """What is known of a table without opening it.

    *size* is that of the file and *footer* the CRC in its last bytes. *records* counts tombstones
    too. *blobs* are the names of the blob files that cells refer to, in order, each with the bytes
    that these references stand for.
    """

    name: str
    size: int
    footer: int
    records: int
    tombstones: int
    first: bytes
    last: bytes
    blobs: tuple[tuple[str, int], ...]

    def encode(self) -> bytes:
        """Return the facts as they stand in the table itself."""
        first, last, blobs = self.first, self.last, self.blobs
        parts = [
            _FACTS.pack(self.records, self.tombstones, len(first), len(last), len(blobs)),
            first,
            last,
        ]
        for name, size in blobs:
            encoded = name.encode()
            parts += [_BLOB.pack(len(encoded), size), encoded]
        return b"".join(parts)


class Footer(NamedTuple):
    """The footer of a table, drawn above."""

    flags: int
    records: int
    blocks: int
    longest: int
    blocks_end: int
    hash_at: int
    facts_at: int
    blocks_crc: int
    hash_crc: int
    facts_crc: int

    @classmethod
    def of(
        cls,
        crowded: bool,
        records: int,
        blocks: int,
        longest: int,
        sizes: tuple[int, int, int],
        crcs: tuple[int, int, int],
    ) -> Footer:
        """Return the footer of a table, given the sizes of blocks and indexes, and three CRCs."""
        hash_at = sizes[0] + sizes[1]
        flags = _CROWDED if crowded else 0
        return cls(flags, records, blocks, longest, sizes[0], hash_at, hash_at + sizes[2], *crcs)

    def encode(self) -> bytes:
        head = _FOOTER.pack(MAGIC, VERSION, *self)
        return head + _CRC.pack(crc32(head))

    @classmethod
    def decode(cls, content: bytes) -> tuple[Footer, int]:
        """Return a footer and its CRC. Raises ValueError and VersionTooNew."""
        if len(content) != _FOOTER_SIZE:
            raise ValueError("the footer is cut")
        crc: int = _CRC.unpack_from(content, _FOOTER.size)[0]
        if crc32(content[: _FOOTER.size]) != crc:
            raise ValueError("the footer fails its check")
        magic, version, *numbers = _FOOTER.unpack_from(content)
        if magic != MAGIC:
            raise ValueError("this is not the footer of a table")
        if version > VERSION:
            raise VersionTooNew("a table", version, VERSION)
        footer = cls(*numbers)
        end = footer.blocks_end
        ascend = len(MAGIC) < end < footer.hash_at < footer.facts_at and not end % 4
        hash_size = footer.facts_at - footer.hash_at
        has_records = footer.records and footer.blocks
        is_known = version and footer.flags <= _CROWDED
        if not (is_known and ascend and has_records and hash_size == size_for(footer.records)):
            raise ValueError("the footer contradicts itself")
        return footer, crc


class Table:
    """A table to read from. Reading raises CorruptionError, and DiskFailed unless it is mapped."""

    __slots__ = (
        "_at_once",
        "_blocks",
        "_crowded_starts",
        "_data",
        "_footer",
        "_is_mapped",
        "_marks",
        "_path",
        "_places",
        "_shift",
        "_starts",
        "facts",
    )  # fmt: skip

    def __init__(self, path: str, data: Mapped, facts: TableFacts, footer: Footer, mapped: bool):
        self.facts = facts
        self._path = path
        self._data = data
        self._footer = footer
        self._is_mapped = mapped
        usual = 2 * footer.blocks_end // max(1, footer.records)
        self._at_once = min(footer.longest, max(usual, _AT_ONCE))
        self._shift = 32 - bits_for(footer.records)
        self._blocks: BlockIndex | None = None  # until it is used
        # The hash index, likewise. What is crowded isn't in _starts, so that nobody finds it there.
        self._starts: memoryview | None = None
        self._crowded_starts: memoryview | None = None
        self._marks = b""
        self._places: memoryview = memoryview(b"")

    @classmethod
    def open(cls, fs: FileSystem, folder: str, facts: TableFacts, *, mapped: bool = True) -> Table:
        """Open the table of these facts. Only its head and footer are read.

        Without *mapped* it is read by calls. Raises FileNotFoundError, CorruptionError,
        VersionTooNew and DiskFailed.
        """
        path = os.path.join(folder, facts.name)
        data = fs.map(path, facts.size, mapped=mapped)
        at = max(0, facts.size - _FOOTER_SIZE)
        try:
            footer, crc = Footer.decode(data[at : facts.size])
            if crc != facts.footer or footer.records != facts.records:
                raise ValueError("the footer is that of another table")
            content = facts.encode()
            if footer.facts_at + len(content) != at or crc32(content) != footer.facts_crc:
                raise ValueError("the facts are not those that are known of the table")
        except ValueError as error:
            raise CorruptionError(path, at, str(error)) from error
        if data[: len(MAGIC)] != MAGIC:
            raise CorruptionError(path, 0, "the file doesn't begin like a table")
        return cls(path, data, facts, footer, mapped)

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return self._footer.blocks

    @property
    def memory_bytes(self) -> int:
        """How much memory its indexes take so far, the mapped file apart."""
        starts = self._starts or self._crowded_starts
        size = self._blocks.size if self._blocks else 0
        if starts is not None:
            size += starts.nbytes + len(self._marks)
            if not self._is_mapped:
                size += 4 * self._footer.records
        return size

    # -- one record --------------------------------------------------------------------------------

    def find(self, key: bytes, hash: int) -> bytes | None:  # noqa: A002
        """Return the cell of *key*, :data:`TOMBSTONE` if it is deleted, None if it isn't here.

        *hash* is ``crc32(key)``, which the caller needs for several tables.
        """
        starts = self._starts
        if starts is None:
            return self._find_first(key, hash)
        bucket = hash >> self._shift
        end = starts[bucket + 1]
        slot = self._marks.find(hash & 0xFF, starts[bucket], end)
        if slot < 0:
            return None
        # The usual case once more, without a call: _look decides whatever isn't that.
        at = self._places[slot] << 2
        record = self._data[at : at + self._at_once]
        start = len(key) + _KEY_AT
        if record[_KEY_AT:start] == key:
            crc, key_size, cell_size = _unpack(record)
            cell = record[start : start + cell_size]
            if crc32(cell, hash) == crc and len(cell) == cell_size and start == key_size + _KEY_AT:
                return cell
        return self._look(key, hash, slot, end)

    def fingerprints(self, bits: int) -> Iterator[bytes]:
        """Yield the last bytes of the hashes of its keys, for each value of their first *bits*
        bits; of more keys, if the hash index has fewer buckets."""
        starts = self._starts or self._crowded_starts or self._read_hash_index()
        marks = self._marks
        finer = 32 - self._shift - bits
        for part in range(1 << bits):
            if finer >= 0:
                yield marks[starts[part << finer] : starts[(part + 1) << finer]]
            else:
                yield marks[starts[part >> -finer] : starts[(part >> -finer) + 1]]

    def _look(self, key: bytes, hash_: int, slot: int, end: int) -> bytes | None:
        """Return the cell of *key*, whose record may be in *slot* or a later one before *end*."""
        data = self._data
        while slot >= 0:
            at = self._places[slot] << 2
            record = data[at : at + self._at_once]
            try:
                crc, key_size, cell_size = _unpack(record)
            except struct.error:
                self._fail(self._footer.hash_at + 4 * slot, "the hash index leads out of the table")
            start = _KEY_AT + key_size
            stop = start + cell_size
            if stop > len(record):
                if at + stop > self._footer.blocks_end:
                    self._fail(at, "a record leads out of the table")
                record = data[at : at + stop]
            cell = record[start:stop]
            if record[_KEY_AT:start] == key:
                if crc32(cell, hash_) != crc:
                    self._fail(at, "a record fails its check")
                return cell
            other = crc32(record[_KEY_AT:start])
            if crc32(cell, other) != crc:
                self._fail(at, "a record fails its check")
            if other >> self._shift != hash_ >> self._shift or (other ^ hash_) & 0xFF:
                self._fail(self._footer.hash_at + 4 * slot, "the hash index leads elsewhere")
            slot = self._marks.find(hash_ & 0xFF, slot + 1, end)
        return None

    def _find_first(self, key: bytes, hash_: int) -> bytes | None:
        """Find a key before the hash index was used, or if it is crowded."""
        starts = self._starts or self._crowded_starts or self._read_hash_index()
        bucket = hash_ >> self._shift
        start, end = starts[bucket], starts[bucket + 1]
        if end - start > CROWD:
            return self._find_by_order(key)
        slot = self._marks.find(hash_ & 0xFF, start, end)
        return self._look(key, hash_, slot, end)

    def _find_by_order(self, key: bytes) -> bytes | None:
        keys, cells = self._split(self._block_index().block_with(key))
        slot = bisect_left(keys, key)
        return cells[slot] if slot < len(keys) and keys[slot] == key else None

    # -- many records ------------------------------------------------------------------------------

    def groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Iterate over keys and cells, start <= key < end, a block of about 4 KiB at a time.

        The lists are the caller's and not empty. With *reverse* the blocks come from the last to
        the first; within each the keys ascend all the same.
        """
        for number, is_first, is_last in self._numbers(start, end, reverse):
            keys, cells = self._split(number)
            if is_last and end is not None:
                slot = bisect_left(keys, end)
                del keys[slot:], cells[slot:]
            if is_first:
                slot = bisect_left(keys, start)
                del keys[:slot], cells[:slot]
            if keys:
                yield keys, cells

    def keys(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[list[bytes]]:
        """Iterate over the keys alone, otherwise like :meth:`groups`."""
        for number, is_first, is_last in self._numbers(start, end, reverse):
            try:
                keys = split_keys(self._block(number))
            except ValueError as error:
                self._fail(self._block_index().place(number)[0], str(error))
            if is_last and end is not None:
                del keys[bisect_left(keys, end) :]
            if is_first:
                del keys[: bisect_left(keys, start)]
            if keys:
                yield keys

    def laid(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Iterate over all keys, and the records as they lie in their blocks, block by block."""
        index = self._block_index()
        for number in range(len(index)):
            try:
                yield split_laid(self._block(number))
            except ValueError as error:
                self._fail(index.place(number)[0], str(error))

    def _numbers(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[tuple[int, bool, bool]]:
        """Yield the numbers of the blocks of a range, and whether it begins or ends in each."""
        index = self._block_index()
        first = index.block_with(start)
        last = len(index) - 1 if end is None else index.last_before(end)
        numbers = range(first, last + 1)
        for number in reversed(numbers) if reverse else numbers:
            yield number, number == first, number == last

    def _block(self, number: int) -> bytes:
        """Return the bytes of a block, proved."""
        start, stop, crc = self._block_index().place(number)
        block = self._data[start:stop]
        if crc32(block) != crc:
            self._fail(start, "a block fails its check")
        return block

    def _split(self, number: int) -> tuple[list[bytes], list[bytes]]:
        """Return keys and cells of a block."""
        try:
            return split(self._block(number))
        except ValueError as error:
            self._fail(self._block_index().place(number)[0], str(error))

    # -- the indexes -------------------------------------------------------------------------------

    def _block_index(self) -> BlockIndex:
        if self._blocks is None:
            self._blocks = self._read_block_index()
        return self._blocks

    def _read_block_index(self) -> BlockIndex:
        footer = self._footer
        content = self._data[footer.blocks_end : footer.hash_at]
        if crc32(content) != footer.blocks_crc:
            self._fail(footer.blocks_end, "the block index fails its check")
        try:
            return BlockIndex(content, footer.blocks)
        except ValueError as error:
            self._fail(footer.blocks_end, str(error))

    def _read_hash_index(self) -> memoryview:
        """Read, prove and keep the hash index; return its starts."""
        footer = self._footer
        starts_at = footer.hash_at + 4 * footer.records
        places = self._data.view(footer.hash_at, starts_at)
        rest = self._data[starts_at : footer.facts_at]
        if crc32(rest, crc32(places)) != footer.hash_crc:
            self._fail(footer.hash_at, "the hash index fails its check")
        starts = numbers_of(rest[: -footer.records])
        self._marks = rest[-footer.records :]
        self._places = numbers_of(places)
        if footer.flags & _CROWDED:
            self._crowded_starts = starts
        else:
            self._starts = starts  # last: a reader looks at it first
        return starts

    # -- proofs ------------------------------------------------------------------------------------

    def prove_bytes(self) -> Iterator[None]:
        """Prove each byte by its checksum, without taking records apart, in slices of about 2 ms.

        This is what there is to ask of a table that came from a writer that can be trusted.
        """
        footer = self._footer
        self._read_block_index()
        self._read_hash_index()
        if self._data[footer.facts_at : self.facts.size - _FOOTER_SIZE] != self.facts.encode():
            self._fail(footer.facts_at, "the facts are not those that are known of the table")
        if self._data[self.facts.size - _FOOTER_SIZE : self.facts.size] != footer.encode():
            self._fail(self.facts.size - _FOOTER_SIZE, "the footer has changed")
        if self._data[: len(MAGIC)] != MAGIC:
            self._fail(0, "the file doesn't begin like a table")
        at = len(MAGIC)
        for number in range(footer.blocks):
            start, at = self._proved_place(number, at)
            if crc32(self._data.view(start, at)) != self._block_index().place(number)[2]:
                self._fail(start, "a block fails its check")
            if not number % (8 * _PROVED_AT_ONCE):
                yield
        if at != footer.blocks_end:
            self._fail(at, "the blocks don't end where their index begins")

    def _proved_place(self, number: int, at: int) -> tuple[int, int]:
        """Return where a block begins and ends, which has to begin at *at*."""
        start, stop, _ = self._block_index().place(number)
        if start != at or not start < stop <= self._footer.blocks_end:
            self._fail(self._footer.blocks_end, "the blocks don't follow one another")
        return start, stop

    def verify(self) -> Iterator[None]:
        """Prove everything in slices of a few milliseconds.

        That is: every byte, the order of the keys, that each record is reached by its hash, and
        the facts. For this the table is made anew in memory, a part at a time, and compared.
        """
        yield from self.prove_bytes()
        footer = self._footer
        index = BlockIndexBuilder(len(MAGIC))
        hashes = HashBuilder()
        blobs: dict[str, int] = {}
        tombstones = longest = 0
        last = b""
        for number in range(footer.blocks):
            keys, cells = self._split(number)
            at, _, _ = self._block_index().place(number)
            block = self._block(number)
            packed = pack(keys, cells, len(block), whole=True)
            if [block for block, _ in packed.blocks] != [block]:
                self._fail(at, "a record fails its check")
            if keys != sorted(set(keys)) or keys[0] <= last:
                self._fail(at, "the keys don't ascend")
            last = keys[-1]
            try:
                refer(keys, cells, blobs)
            except ValueError as error:
                self._fail(at, str(error))
            index.add(block, keys[0], last)
            hashes.extend(packed.hashes, places_of(at, packed.sizes))
            tombstones += cells.count(TOMBSTONE)
            longest = max(longest, *packed.sizes)
            if not number % _PROVED_AT_ONCE:
                yield
        self._compare(footer.blocks_end, index.build(), "the block index is not that of the blocks")
        parts = yield from hashes.build()
        self._compare(footer.hash_at, b"".join(parts), "the hash index is not that of the records")
        first = next(self.keys(b"", None, False))[0]
        counted = self.facts._replace(
            records=len(parts[-1]),
            tombstones=tombstones,
            first=first,
            last=last,
            blobs=tuple(sorted(blobs.items())),
        )
        if counted != self.facts or longest != footer.longest:
            self._fail(footer.facts_at, "the facts are not those of the records")
        if hashes.is_crowded != bool(footer.flags & _CROWDED):
            self._fail(self.facts.size - _FOOTER_SIZE, "the hash index isn't what the footer says")

    def _compare(self, at: int, expected: bytes, why: str) -> None:
        found = self._data[at : at + len(expected)]
        if found != expected:
            self._fail(at, why)

    def _fail(self, at: int, why: str) -> NoReturn:
        raise CorruptionError(self._path, min(at, self.facts.size), why)
