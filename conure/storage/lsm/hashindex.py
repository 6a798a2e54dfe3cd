"""The hash index of a table: where the record of a key is, if there is one.

The records are grouped by *bucket*, the first bits of their keys' hashes, of which there are so
many that a bucket has 4 to 8 records; the last byte of a hash is the record's *fingerprint*.
Integers are little-endian; of n records in b buckets:

======== ====== ==================================================================================
size
4 n      places where each record begins in the table, in units of 4 bytes
4 b + 4  starts before each bucket and behind the last one, how many records there are
n        fingerprints
======== ====== ==================================================================================

So a record takes 5.5 to 6 bytes. Who looks for a key searches the fingerprints of its bucket for
the byte of its own and goes to the records of those that are equal: one in 40 searches for a key
that isn't here looks at a record in vain. This is what a Bloom filter is for elsewhere, and here
one would only be in the way: seven probes take longer than the search of a bucket.

CRC-32 is no keyed hash, and who chooses the keys can choose their bucket. More than
:data:`CROWD` records in one make the index *crowded*, which its table says: there it is better to
look for the key by order.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Generator, Iterable
from itertools import accumulate

__all__ = ["CROWD", "HashBuilder", "bits_for", "little_endian", "numbers_of", "size_for"]

CROWD = 64
_SLICE = 8192  # records that are sorted in one go: about 2 ms


def bits_for(records: int) -> int:
    """Return of how many bits the number of a bucket is in an index of so many records."""
    return max(0, (records - 1).bit_length() - 3)


def size_for(records: int) -> int:
    """Return how many bytes the index of so many records has."""
    return 5 * records + 4 * ((1 << bits_for(records)) + 1)


def numbers_of(content: bytes | memoryview) -> memoryview:
    """Return the numbers in bytes of a file, whatever machine this is: in place if it can be."""
    numbers = memoryview(content).cast("B").cast("I")
    if sys.byteorder == "big":
        swapped = array("I", numbers)
        swapped.byteswap()
        return memoryview(swapped)
    return numbers


def little_endian(numbers: array[int]) -> bytes:
    """Return numbers as they are in files, whatever machine this is."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


class HashBuilder:
    """Gathers hashes and places of records, and makes the index of them. One thread."""

    def __init__(self) -> None:
        self._hashes = array("I")
        self._places = array("I")
        self.is_crowded = False  # as :meth:`build` has found

    def extend(self, hashes: Iterable[int], places: Iterable[int]) -> None:
        """Take more records, places in units of 4 bytes."""
        self._hashes.extend(hashes)
        self._places.extend(places)

    def build(self) -> Generator[None, None, list[bytes]]:
        """Return the index in three parts, after slices of a few milliseconds."""
        count = len(self._hashes)
        bits = bits_for(count)
        shift = 32 - bits
        sizes = [0] * (1 << bits)
        for at in range(0, count, _SLICE):
            for hash_ in self._hashes[at : at + _SLICE]:
                sizes[hash_ >> shift] += 1
            yield
        self.is_crowded = max(sizes) > CROWD
        free = list(accumulate(sizes, initial=0))
        starts = little_endian(array("I", free))
        places = array("I", bytes(4 * count))
        marks = bytearray(count)
        for at in range(0, count, _SLICE):
            part = slice(at, at + _SLICE)
            for hash_, place in zip(self._hashes[part], self._places[part], strict=True):
                bucket = hash_ >> shift
                slot = free[bucket]
                free[bucket] = slot + 1
                places[slot] = place
                marks[slot] = hash_ & 0xFF
            yield
        return [little_endian(places), starts, bytes(marks)]
