"""The records of a table as bytes, one after the other in blocks.

A record; integers are little-endian:

====== ==== ======================================================================================
offset size
0      4    CRC-32 of key and cell
4      2    bytes of the key
6      4    bytes of the cell
10          the key, the cell, zeros up to a multiple of 4
====== ==== ======================================================================================

The key ``k`` with the cell ``cell`` is ``bfe903c2 0100 04000000 6b 63656c6c 00``. The CRC of the
key alone is the key's *hash*, and the CRC of the record goes on from there.

A *block* is about 4 KiB of records; a longer record is a block of its own. Records of one size, as
they often are, are packed and taken apart all at once.

A decoder takes any bytes. It answers with something well-formed or raises ValueError, which says
what is wrong. Nothing here reads or writes a file. Any thread.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import add
from struct import Struct
from typing import NamedTuple
from zlib import crc32

__all__ = [
    "ALIGNMENT",
    "HEAD",
    "MAX_CELL",
    "MAX_KEY",
    "Packed",
    "pack",
    "pack_laid",
    "places_of",
    "split",
    "split_keys",
    "split_laid",
]

HEAD = Struct("<IHI")  # CRC, bytes of the key, bytes of the cell
ALIGNMENT = 4
MAX_KEY = (1 << 16) - 1
MAX_CELL = (1 << 32) - 1

_KEY_AT = HEAD.size
_SIZES = Struct("<HI")
_SIZES_AT = 4
_PADS = tuple(bytes(-(_KEY_AT + size) % ALIGNMENT) for size in range(ALIGNMENT))
# So many records of one size are walked: fewer are quicker that way, and more would take too much
# memory for what takes them apart, which is kept.
_FEW, _MANY = 3, 512


class Packed(NamedTuple):
    """Records laid out in blocks: each block with the number of records in it; all hashes, and
    all sizes in bytes. The last records are left out if they don't fill a block."""

    blocks: list[tuple[bytes, int]]
    hashes: list[int]
    sizes: list[int]


def pack(keys: Sequence[bytes], cells: Sequence[bytes], block_bytes: int, *, whole: bool) -> Packed:
    """Lay out records in blocks; only with *whole* the last block may be short of *block_bytes*."""
    hashes = list(map(crc32, keys))
    key_sizes = list(map(len, keys))
    cell_sizes = list(map(len, cells))
    heads = map(HEAD.pack, map(crc32, cells, hashes), key_sizes, cell_sizes)
    bodies = list(map(add, key_sizes, cell_sizes))
    count = len(keys)
    if len(set(bodies)) == 1:
        pads = [_PADS[bodies[0] % ALIGNMENT]] * count
        sizes = [_size(bodies[0])] * count
    else:
        pads = [_PADS[size & 3] for size in bodies]
        sizes = [(size + _KEY_AT + 3) & -ALIGNMENT for size in bodies]
    pieces = [b""] * (4 * count)
    pieces[0::4] = heads
    pieces[1::4] = keys
    pieces[2::4] = cells
    pieces[3::4] = pads
    blocks = []
    first = 0
    for last in _cuts(sizes, block_bytes, whole):
        blocks.append((b"".join(pieces[4 * first : 4 * last]), last - first))
        first = last
    return Packed(blocks, hashes[:first], sizes[:first])


def pack_laid(
    keys: Sequence[bytes], records: Sequence[bytes], block_bytes: int, *, whole: bool
) -> Packed:
    """Lay out records that come from other blocks (:func:`split_laid`), otherwise like
    :func:`pack`."""
    sizes = list(map(len, records))
    blocks = []
    first = 0
    for last in _cuts(sizes, block_bytes, whole):
        blocks.append((b"".join(records[first:last]), last - first))
        first = last
    return Packed(blocks, list(map(crc32, keys[:first])), sizes[:first])


def places_of(at: int, sizes: Sequence[int]) -> Iterator[int]:
    """Return where records of these sizes begin, the first one at *at*, in units of 4 bytes."""
    return (end >> 2 for end in accumulate(sizes[:-1], initial=at))


def split(block: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the keys and cells of a block. Raises ValueError."""
    shape = _shape(block)
    if shape is not None:
        pieces = _even(*shape).unpack(block)
        sizes = pieces[0::3]
        if sizes.count(sizes[0]) == len(sizes):
            return list(pieces[1::3]), list(pieces[2::3])
    keys: list[bytes] = []
    cells: list[bytes] = []
    at = 0
    try:
        while at < len(block):
            key_size, cell_size = _SIZES.unpack_from(block, at + _SIZES_AT)
            start = at + _KEY_AT + key_size
            stop = start + cell_size
            keys.append(block[at + _KEY_AT : start])
            cells.append(block[start:stop])
            at = (stop + 3) & -ALIGNMENT
    except struct.error:
        at = -1
    if at != len(block):
        raise ValueError("the records don't end where their block does")
    return keys, cells


def split_laid(block: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the keys of a block, and its records as they lie there. Raises ValueError."""
    shape = _shape(block)
    if shape is not None:
        pieces = _even_keys(*shape).unpack(block)
        sizes = pieces[0::2]
        if sizes.count(sizes[0]) == len(sizes):
            return list(pieces[1::2]), list(_even_laid(*shape).unpack(block))
    keys: list[bytes] = []
    records: list[bytes] = []
    at = 0
    try:
        while at < len(block):
            key_size, cell_size = _SIZES.unpack_from(block, at + _SIZES_AT)
            stop = at + _size(key_size + cell_size)
            keys.append(block[at + _KEY_AT : at + _KEY_AT + key_size])
            records.append(block[at:stop])
            at = stop
    except struct.error:
        at = -1
    if at != len(block):
        raise ValueError("the records don't end where their block does")
    return keys, records


def split_keys(block: bytes) -> list[bytes]:
    """Return the keys of a block. Raises ValueError."""
    shape = _shape(block)
    if shape is not None:
        pieces = _even_keys(*shape).unpack(block)
        sizes = pieces[0::2]
        if sizes.count(sizes[0]) == len(sizes):
            return list(pieces[1::2])
    keys: list[bytes] = []
    at = 0
    try:
        while at < len(block):
            key_size, cell_size = _SIZES.unpack_from(block, at + _SIZES_AT)
            stop = at + _KEY_AT + key_size
            keys.append(block[at + _KEY_AT : stop])
            at = (stop + cell_size + 3) & -ALIGNMENT
    except struct.error:
        at = -1
    if at != len(block):
        raise ValueError("the records don't end where their block does")
    return keys


def _shape(block: bytes) -> tuple[int, int, int] | None:
    """Return the sizes of key and cell, and the number of records, of a block of records that may
    all be of one size, if it pays to look at it like that."""
    if len(block) < _KEY_AT:
        return None
    _, key_size, cell_size = HEAD.unpack_from(block)
    count, rest = divmod(len(block), _size(key_size + cell_size))
    return None if rest or not _FEW < count < _MANY else (key_size, cell_size, count)


def _size(body: int) -> int:
    """Return the bytes of a record whose key and cell have *body* bytes together."""
    return (body + _KEY_AT + 3) & -ALIGNMENT


def _cuts(sizes: Sequence[int], block_bytes: int, whole: bool) -> Iterator[int]:
    """Yield where each block ends, as a number of records."""
    ends = list(accumulate(sizes))
    count = len(ends)
    first = 0
    before = 0
    while first < count:
        last = max(bisect_right(ends, before + block_bytes, first), first + 1)
        if last == count and ends[-1] - before < block_bytes and not whole:
            return
        yield last
        first = last
        before = ends[last - 1]


@lru_cache(256)
def _even(key_size: int, cell_size: int, count: int) -> Struct:
    """Return what takes a block of *count* records of one size apart: sizes, key, cell of each."""
    body = key_size + cell_size
    pad = _size(body) - _KEY_AT - body
    return Struct("<" + f"4x6s{key_size}s{cell_size}s{pad}x" * count)


@lru_cache(256)
def _even_keys(key_size: int, cell_size: int, count: int) -> Struct:
    """Return the same without the cells."""
    rest = _size(key_size + cell_size) - _KEY_AT - key_size
    return Struct("<" + f"4x6s{key_size}s{rest}x" * count)


@lru_cache(256)
def _even_laid(key_size: int, cell_size: int, count: int) -> Struct:
    """Return what takes it apart into whole records."""
    return Struct("<" + f"{_size(key_size + cell_size)}s" * count)
