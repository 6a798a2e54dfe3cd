"""The pages of the tree as bytes and as objects: leaves, inner nodes, overflow pages.

What follows the envelope that ``pager.py`` draws; all integers are little-endian:

============ ===================================================================================
leaf         key offsets (count + 1, 2 each), cell offsets (count + 1, 2 each), keys, cells
inner node   children (count + 1, 4 each), key offsets (count + 1, 2 each), keys
overflow     index in its chain (4), bytes of the value in this page (4), owner's key, the bytes
============ ===================================================================================

Offsets count from the start of the keys or cells and begin with 0. A cell is a record without its
key (``cells.py``); if its value is spilled, it ends with a reference: first overflow page (4),
length of the value (4).

So a small record takes 15 bytes beside key and value: 4 for its offsets, 11 before its value. An
overflow page repeats the key it belongs to, so that whoever finds the page finds its owner. Child
*i* of an inner node holds the keys from ``keys[i - 1]`` up to but not including ``keys[i]``.

In memory a leaf has one of two forms. *Packed* it is its page as one ``bytes``: quick to load and
to write, small, and a single change splices it. *In lists*, keys and cells, it is quicker to read
and to change again and again, but takes three times the memory, and time to make and to write. A
leaf is packed until it has been used a few times, and again, once it is written, where memory is
short.

1. A decoder takes any bytes. It answers with something well-formed or raises ValueError, which
   says what is wrong and which the tree turns into a CorruptionError with file and offset (S3).
2. The order of keys is not looked at here; ``BTree.check`` proves it (S4).

Who may change a node, and when, is for ``btree.py`` to know. :meth:`Leaf.unpack` alone may be
called while other threads read the leaf.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, pairwise
from struct import Struct
from typing import NamedTuple, TypeAlias

from conure.storage.cells import NARROW_SIZE, WIDEST, even_records, records_of
from conure.storage.engine import Record
from pager import ENVELOPE, INNER, LEAF, OVERFLOW

__all__ = [
    "CELL_OVERHEAD",
    "CHILD",
    "CHUNK",
    "MAX_VALUE",
    "NODE_BYTES",
    "RECORD_BYTES",
    "REF",
    "SEPARATOR_BYTES",
    "Inner",
    "Leaf",
    "Limits",
    "Node",
    "Overflow",
    "Page",
    "chunk_of",
    "cuts",
    "decode_node",
]

CELL_OVERHEAD = 4  # two offsets
CHILD = 6  # bytes an inner node spends on a child beside its separator: number and offset
REF = Struct("<II")  # first overflow page, length of the value
MAX_VALUE = 1 << 31  # bytes of a value
CHUNK = Struct("<II")  # index in the chain, bytes in this page

_BASE = ENVELOPE.size
_COUNT_AT = 2  # in the envelope
_U16 = Struct("<H")
_PAIR = Struct("<HH")
# What a node takes in memory beside the bytes of its page: itself and its places in tables, and
# for each record or separator the objects and the places of its parts in lists.
NODE_BYTES = 300
RECORD_BYTES = 100
SEPARATOR_BYTES = 64


_NOTHING: list[bytes] = []  # the lists of a packed leaf; never changed


class Limits(NamedTuple):
    """What fits a page, in bytes.

    A record takes at most half of a leaf and a separator a third of an inner node, so that
    whatever is too full can be cut in two that are not. A key and its value that take more than
    *inline* together are *spilled*: the value goes to overflow pages.
    """

    capacity: int  # of a node
    minimum: int  # what takes less is joined with a neighbour
    inline: int
    max_key_bytes: int

    @classmethod
    def of(cls, page_size: int) -> Limits:
        """Return the limits of pages of that size."""
        capacity = page_size - 4 - ENVELOPE.size
        inline = (capacity - CELL_OVERHEAD) // 2 - CELL_OVERHEAD - WIDEST
        longest = min(inline - REF.size, (capacity - 24) // 3)
        return cls(capacity, capacity // 4, inline, longest)


class Leaf:
    """A leaf: ``page`` if it is packed, otherwise ``keys``, in order, and their ``cells``."""

    __slots__ = ("cells", "epoch", "keys", "number", "page", "used", "uses")
    level = 0

    def __init__(
        self,
        number: int,
        epoch: int,
        used: int,
        page: bytes,
        keys: list[bytes] = _NOTHING,
        cells: list[bytes] = _NOTHING,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.used = used  # bytes it takes in its page after the envelope
        self.page = page  # without padding and checksum; empty in lists
        self.keys = keys
        self.cells = cells
        self.uses = 0  # while it was packed

    @property
    def count(self) -> int:
        """How many records it has."""
        return _count(self.page) if self.page else len(self.keys)

    def copy(self) -> Leaf:
        page = self.page
        return Leaf(self.number, self.epoch, self.used, page, self.keys[:], self.cells[:])

    def packed(self, page: bytes) -> Leaf:
        """Return the same leaf packed, given what :meth:`body` has returned."""
        return Leaf(self.number, self.epoch, self.used, page)

    def unpack(self) -> None:
        """Go from packed to lists. Raises ValueError."""
        self.keys, self.cells = self.lists()
        self.page = b""  # last: a reader looks at it first

    def body(self) -> bytes:
        """Return its page without padding and checksum."""
        page = self.page
        if page:
            head = _head(_count(page), self.epoch)
            return page if page.startswith(head) else head + page[_BASE:]
        keys = self.keys
        cells = self.cells
        head = _head(len(keys), self.epoch)
        return b"".join([head, _offsets(keys), _offsets(cells), *keys, *cells])

    def key_list(self) -> list[bytes]:
        """Return the keys, not to be changed. Raises ValueError."""
        page = self.page
        if not page:
            return self.keys
        count = _count(page)
        return _pieces(page, count, _BASE, _BASE + CELL_OVERHEAD * (count + 1), 0)[0]

    def lists(self) -> tuple[list[bytes], list[bytes]]:
        """Return keys and cells, not to be changed. Raises ValueError."""
        page = self.page
        if not page:
            return self.keys, self.cells
        count = _count(page)
        keys, cells_at = _pieces(page, count, _BASE, _BASE + CELL_OVERHEAD * (count + 1), 0)
        cells, _ = _pieces(page, count, _BASE + 2 * count + 2, cells_at, NARROW_SIZE)
        return keys, cells

    def records(self, first: int, last: int) -> Iterable[Record] | None:
        """Return the records of some slots, all at once; None if one needs a closer look.

        Raises ValueError.
        """
        page = self.page
        if page:
            count = _count(page)
            offsets_at = _BASE + 2 * count + 2
            keys_at = offsets_at + 2 * count + 2
            size = _even_size(page[offsets_at:keys_at], count)
            if size >= NARROW_SIZE:
                at = keys_at + _U16.unpack_from(page, offsets_at - 2)[0]
                return even_records(page[at + first * size : at + last * size], size)
        return records_of(self.lists()[1][first:last])

    def find(self, key: bytes) -> tuple[int, bytes | None]:
        """Return slot and cell of *key*; where it belongs and None if it isn't here.

        Raises ValueError.
        """
        page = self.page
        if not page:
            keys = self.keys
            slot = bisect_left(keys, key)
            if slot < len(keys) and keys[slot] == key:
                return slot, self.cells[slot]
            return slot, None
        count = _U16.unpack_from(page, _COUNT_AT)[0]
        cell_offsets_at = _BASE + 2 * count + 2
        keys_at = cell_offsets_at + 2 * count + 2
        cells_at = keys_at + _U16.unpack_from(page, cell_offsets_at - 2)[0]
        # At the speed of memory: the key among the keys, and where it begins among the offsets.
        at = page.find(key, keys_at, cells_at) - keys_at
        offset_at = page.find(_U16.pack(at), _BASE, cell_offsets_at - 2) if at >= 0 else -1
        if (
            offset_at < 0
            or offset_at & 1
            or _PAIR.unpack_from(page, offset_at) != (at, at + len(key))
        ):
            # It isn't here, or what was found only looks like it: now the usual way.
            keys, _ = _pieces(page, count, _BASE, keys_at, 0)
            slot = bisect_left(keys, key)
            if slot == count or keys[slot] != key:
                return slot, None
        else:
            slot = (offset_at - _BASE) >> 1
        start, end = _PAIR.unpack_from(page, cell_offsets_at + 2 * slot)
        cell = page[cells_at + start : cells_at + end]
        if len(cell) < NARROW_SIZE:
            raise ValueError("a record is too short")
        return slot, cell

    def put(self, slot: int, key: bytes, cell: bytes, old: bytes | None) -> None:
        """Set the cell of *key*, for which :meth:`find` has returned *slot* and *old*.

        Packed, the leaf must have room for it.
        """
        if old is None:
            self.used += CELL_OVERHEAD + len(key) + len(cell)
        else:
            self.used += len(cell) - len(old)
        if self.page:
            self.uses += 1
            self.page = _spliced(self.page, self.epoch, slot, old is not None, key, cell)
        elif old is None:
            self.keys.insert(slot, key)
            self.cells.insert(slot, cell)
        else:
            self.cells[slot] = cell

    def remove(self, slot: int, key: bytes, cell: bytes) -> None:
        """Take a record out, for which :meth:`find` has returned *slot* and *cell*."""
        self.used -= CELL_OVERHEAD + len(key) + len(cell)
        if self.page:
            self.uses += 1
            self.page = _spliced(self.page, self.epoch, slot, True, b"", b"")
        else:
            del self.keys[slot], self.cells[slot]

    def prove(self) -> None:
        """Raise ValueError if the offsets of a packed leaf don't ascend; splicing relies on it."""
        page = self.page
        if page:
            count = _count(page)
            size = 2 * count + 2
            for at in (_BASE, _BASE + size):
                offsets = page[at : at + size]
                if not _even_size(offsets, count):
                    _ascending(offsets, count)


class Inner:
    """An inner node: separators and the page numbers of the children between them."""

    __slots__ = ("children", "epoch", "image", "keys", "level", "number", "used")

    def __init__(
        self,
        number: int,
        epoch: int,
        level: int,
        keys: list[bytes],
        children: array[int],
        used: int,
        image: bytes | None = None,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.level = level
        self.keys = keys
        self.children = children
        self.used = used  # bytes it takes in its page after the envelope
        self.image = image  # offsets and keys as the page has them, while these don't change

    def copy(self) -> Inner:
        children = self.children[:]
        return Inner(
            self.number, self.epoch, self.level, self.keys[:], children, self.used, self.image
        )

    def body(self) -> bytes:
        """Return its page without padding and checksum."""
        keys = self.keys
        if self.image is None:
            self.image = _offsets(keys) + b"".join(keys)
        head = ENVELOPE.pack(INNER, self.level, len(keys), 0, self.epoch)
        return head + _little_endian(self.children).tobytes() + self.image

    def replace(self, at: int, removed: int, keys: list[bytes], children: list[int]) -> None:
        """Put *children*, separated by *keys*, in the place of *removed* children from *at* on."""
        gone = self.keys[at : at + removed - 1]
        self.keys[at : at + removed - 1] = keys
        self.children[at : at + removed] = array("I", children)
        self.used += CHILD * (len(children) - removed) + sum(map(len, keys)) - sum(map(len, gone))
        self.image = None


class Overflow:
    """One page of a spilled value that is not written yet."""

    __slots__ = ("content", "epoch", "number")

    def __init__(
        self, number: int, epoch: int, key: bytes, index: int, chunk: bytes, link: int
    ) -> None:
        self.number = number
        self.epoch = epoch
        head = ENVELOPE.pack(OVERFLOW, 0, len(key), link, epoch)
        self.content = b"".join((head, CHUNK.pack(index, len(chunk)), key, chunk))

    def body(self) -> bytes:
        return self.content


Node: TypeAlias = Leaf | Inner
Page: TypeAlias = Leaf | Inner | Overflow


# -- pages -----------------------------------------------------------------------------------------


def decode_node(number: int, page: bytes, now: int) -> Node:
    """Return the node in a page. It has to be older than the epoch *now*.

    Of a leaf only the outer bounds are proved here. Raises ValueError.
    """
    limit = len(page) - 4
    kind, level, count, _, epoch = ENVELOPE.unpack_from(page)
    if epoch >= now:
        raise ValueError("the page is newer than the tree")
    if kind == LEAF and not level:
        end = _BASE + CELL_OVERHEAD * (count + 1)
        if end <= limit:
            end += _U16.unpack_from(page, _BASE + 2 * count)[0]
            end += _U16.unpack_from(page, _BASE + 4 * count + 2)[0]
            if end <= limit:
                return Leaf(number, epoch, end - _BASE, page[:end])
    elif kind == INNER and level and count:
        offsets_at = _BASE + 4 * count + 4
        keys_at = offsets_at + 2 * count + 2
        if keys_at <= limit:
            end = keys_at + _U16.unpack_from(page, keys_at - 2)[0]
            if end <= limit:
                keys, _ = _pieces(page, count, offsets_at, keys_at, 0)
                children = _little_endian(array("I", page[_BASE:offsets_at]))
                image = page[offsets_at:end]
                return Inner(number, epoch, level, keys, children, end - _BASE, image)
    raise ValueError("the page is no well-formed node")


def chunk_of(page: bytes, limit: int, key: bytes, index: int, left: int) -> tuple[bytes, int, int]:
    """Return the part of a value in an overflow page, the link to the next page and the epoch.

    It has to be the page with that *index* in the value of *key*, of which *left* bytes are still
    missing; what it holds ends at *limit*. Raises ValueError.
    """
    kind, _, key_size, link, epoch = ENVELOPE.unpack_from(page)
    at, size = CHUNK.unpack_from(page, _BASE)
    key_at = _BASE + CHUNK.size
    start = key_at + len(key)
    if (kind, key_size, at) != (OVERFLOW, len(key), index) or page[key_at:start] != key:
        raise ValueError("the page is not the next one of its value")
    if not 0 < size <= min(left, limit - start):
        raise ValueError("the part of a value has an impossible length")
    return page[start : start + size], link, epoch


# -- laying out ------------------------------------------------------------------------------------


def cuts(sizes: list[int], capacity: int) -> list[int]:
    """Cut a row of cells into parts that fit, as even as may be; return where each part ends.

    No cell is larger than half the capacity, so each cut leaves two parts that are smaller.
    """
    ends = list(accumulate(sizes, initial=0))
    found = []
    parts = [(0, len(sizes))]
    while parts:
        start, end = parts.pop()
        if ends[end] - ends[start] <= capacity:
            found.append(end)
            continue
        middle = (ends[start] + ends[end]) // 2
        cut = bisect_left(ends, middle, start + 1, end - 1)
        if cut - 1 > start and middle - ends[cut - 1] < ends[cut] - middle:
            cut -= 1
        parts += [(cut, end), (start, cut)]
    return found


# -- private ---------------------------------------------------------------------------------------


@lru_cache(None)
def _numbers(count: int) -> Struct:
    return Struct(f"<{count}H")


@lru_cache(None)
def _ones(count: int) -> int:
    """Return 1 in each of *count* 16-bit places."""
    return ((1 << 16 * count) - 1) // 0xFFFF


@lru_cache(1024)
def _even(count: int, size: int) -> tuple[bytes, Struct]:
    """Return the offsets of *count* pieces of *size* bytes each, and what takes them apart."""
    offsets = _numbers(count + 1).pack(*range(0, count * size + 1, size))
    return offsets, Struct(f"{size}s" * count)


def _offsets(pieces: list[bytes]) -> bytes:
    return _numbers(len(pieces) + 1).pack(*accumulate(map(len, pieces), initial=0))


def _head(count: int, epoch: int) -> bytes:
    return ENVELOPE.pack(LEAF, 0, count, 0, epoch)


def _count(page: bytes) -> int:
    count: int = _U16.unpack_from(page, _COUNT_AT)[0]
    return count


def _spliced(page: bytes, epoch: int, slot: int, replace: bool, key: bytes, cell: bytes) -> bytes:
    """Return a leaf's page with another record, before *slot* or in the place of the one there.

    Without *key* there is none: the one at *slot* goes.
    """
    count = _U16.unpack_from(page, _COUNT_AT)[0]
    cell_offsets_at = _BASE + 2 * count + 2
    keys_at = cell_offsets_at + 2 * count + 2
    cells_at = keys_at + _U16.unpack_from(page, cell_offsets_at - 2)[0]
    before = 2 * slot + (2 if key else 0)
    behind = 2 * slot + (2 if replace else 0)
    start = cells_at + _U16.unpack_from(page, cell_offsets_at + 2 * slot)[0]
    end = cells_at + _U16.unpack_from(page, cell_offsets_at + behind)[0]
    head = ENVELOPE.pack(LEAF, 0, count + (before - behind) // 2, 0, epoch)
    if replace and len(cell) == end - start:
        return b"".join((head, page[_BASE:start], cell, page[end:]))
    key_start = keys_at + _U16.unpack_from(page, _BASE + 2 * slot)[0]
    key_end = keys_at + _U16.unpack_from(page, _BASE + behind)[0]
    return b"".join(
        (
            head,
            page[_BASE : _BASE + before],
            _shifted(page[_BASE + behind : cell_offsets_at], len(key) - key_end + key_start),
            page[cell_offsets_at : cell_offsets_at + before],
            _shifted(page[cell_offsets_at + behind : keys_at], len(cell) - end + start),
            page[keys_at:key_start],
            key,
            page[key_end:start],
            cell,
            page[end:],
        )
    )


def _shifted(offsets: bytes, distance: int) -> bytes:
    """Add *distance* to each offset, all at once: none of them leaves its 16 bits."""
    if not distance:
        return offsets
    size = len(offsets)
    moved = int.from_bytes(offsets, "little") + distance * _ones(size // 2)
    return moved.to_bytes(size, "little")


def _ascending(offsets: bytes, count: int) -> tuple[int, ...]:
    """Return offsets that begin with 0 and never go back. Raises ValueError."""
    numbers = _numbers(count + 1).unpack(offsets)
    if numbers[0] or list(numbers) != sorted(numbers):
        raise ValueError("the offsets in the page don't ascend")
    return numbers


def _pieces(
    page: bytes, count: int, offsets_at: int, at: int, least: int
) -> tuple[list[bytes], int]:
    """Return the *count* keys or cells that begin at *at*, and where they end.

    Each has to have *least* bytes.
    """
    offsets = page[offsets_at : offsets_at + 2 * count + 2]
    end = at + _U16.unpack_from(offsets, 2 * count)[0]
    size = _even_size(offsets, count)
    if size and size >= least:
        return list(_even(count, size)[1].unpack_from(page, at)), end
    column = page[at:end]
    found = [column[start:stop] for start, stop in pairwise(_ascending(offsets, count))]
    if least and found and min(map(len, found)) < least:
        raise ValueError("a record is too short")
    return found, end


def _even_size(offsets: bytes, count: int) -> int:
    """Return the size of the pieces if they are all of one, as they often are; otherwise 0."""
    total = _U16.unpack_from(offsets, 2 * count)[0]
    if not count or not total or total % count:
        return 0
    size: int = total // count
    return size if offsets == _even(count, size)[0] else 0


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
