"""The block index of a table: where its blocks are, their checksums, and which keys are where.

Integers are little-endian; of n blocks:

======== ====== ==================================================================================
size
4 n + 4  places where each block begins in the table and where the last one ends, in units of 4
4 n      CRCs   CRC-32 of each block
4 n + 4  ends   where each separator begins among them, and where the last one ends
         keys   the separators, and zeros up to a multiple of 4
======== ====== ==================================================================================

A separator is the shortest key that is greater than all keys before its block and not greater than
those in it; that of the first block is empty.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from zlib import crc32

from conure.storage.cells import separator
from conure.storage.lsm.hashindex import little_endian, numbers_of

__all__ = ["BlockIndex", "BlockIndexBuilder"]


class BlockIndexBuilder:
    """Gathers what there is to say of blocks, and makes the index of them. One thread.

    The first block begins at *start*.
    """

    def __init__(self, start: int) -> None:
        self._places = array("I", [start >> 2])
        self._crcs = array("I")
        self._keys: list[bytes] = []
        self._last = b""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, block: bytes, first: bytes, last: bytes) -> None:
        """Take the next block, given the first and the last key in it."""
        self._places.append(self._places[-1] + (len(block) >> 2))
        self._crcs.append(crc32(block))
        self._keys.append(separator(self._last, first) if self._keys else b"")
        self._last = last

    def build(self) -> bytes:
        """Return the index of the blocks so far."""
        ends = array("I", accumulate(map(len, self._keys), initial=0))
        parts = [*map(little_endian, (self._places, self._crcs, ends)), *self._keys]
        return b"".join([*parts, bytes(-ends[-1] % 4)])


class BlockIndex:
    """The index of *count* blocks, in memory. Immutable; any thread. Raises ValueError."""

    __slots__ = ("_count", "_crcs", "_ends", "_keys", "_places", "size")

    def __init__(self, content: bytes, count: int) -> None:
        places_end = 4 * count + 4
        crcs_end = places_end + 4 * count
        keys_at = crcs_end + 4 * count + 4
        if len(content) < keys_at:
            raise ValueError("the block index is too short")
        self._count = count
        self._places = numbers_of(content[:places_end])
        self._crcs = numbers_of(content[places_end:crcs_end])
        self._ends = numbers_of(content[crcs_end:keys_at])
        if not count or self._ends[1]:
            raise ValueError("the first block has a separator")
        self._keys = content[keys_at:]
        self.size = len(content)
        """How much memory it takes, in bytes."""

    def __len__(self) -> int:
        return self._count

    def block_with(self, key: bytes) -> int:
        """Return the number of the block in which *key* is, if it is anywhere."""
        return bisect_right(range(self._count), key, key=self._separator) - 1

    def last_before(self, key: bytes) -> int:
        """Return the number of the last block that may have a key below *key*, -1 if none has."""
        return bisect_left(range(self._count), key, key=self._separator) - 1

    def place(self, number: int) -> tuple[int, int, int]:
        """Return where a block begins and ends, in bytes, and its CRC."""
        return self._places[number] << 2, self._places[number + 1] << 2, self._crcs[number]

    def _separator(self, number: int) -> bytes:
        ends = self._ends
        return self._keys[ends[number] : ends[number + 1]]
