"""What both engines make of a record: its *cell*, and the shortest keys between two others.

A cell is a record without its key, and says by itself how to read it; all integers are
little-endian:

========= =======================================================================================
flags     1 byte: bit 0 it has an expiry, bit 1 its numbers are wide, bit 2 its value is spilled
numbers   create revision, mod revision (4 bytes each), version (2); 8 bytes each if wide
expiry    8 bytes, if bit 0 is set
value     the bytes; if the value is *spilled*, a reference to where the engine keeps it
========= =======================================================================================

So a small record's cell takes 11 bytes beside the value: ``00 05000000 09000000 0200`` and then
the value for the second version, made at index 5 and written again at index 9. What a reference
looks like is for the engine to know (``pages.py``, ``lsm/blobs.py``).

A decoder takes any bytes. It answers with something well-formed or raises ValueError, which says
what is wrong. Nothing here reads or writes a file. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import repeat
from operator import itemgetter
from struct import Struct
from typing import cast

from conure.storage.engine import Record

__all__ = [
    "NARROW",
    "NARROW_HEAD",
    "NARROW_SIZE",
    "SPILLED",
    "WIDEST",
    "even_records",
    "make_cell",
    "new_record",
    "open_cell",
    "records_of",
    "reference_of",
    "separator",
]

_EXPIRY, _WIDE, SPILLED = 1, 2, 4  # bits of the flags
_HEADS = (Struct("<BIIH"), Struct("<BIIHQ"), Struct("<BQQQ"), Struct("<BQQQQ"))  # by two flags
NARROW = Struct("<IIH")  # the numbers of a cell whose flags are 0, at offset 1
NARROW_HEAD = _HEADS[0]
NARROW_SIZE = NARROW_HEAD.size
WIDEST = _HEADS[3].size

_make = cast("Callable[[type[Record], Iterable[object]], Record]", tuple.__new__)
_FLAGS = itemgetter(0)
_FIELDS = itemgetter(4, 1, 2, 3, 0)  # of a narrow cell in a record's order: no flags, no expiry

new_record = cast("Callable[[Iterable[object]], Record]", partial(tuple.__new__, Record))


def make_cell(
    value: bytes, create: int, mod: int, version: int, expiry: int, *, spilled: bool
) -> bytes:
    """Return the smallest cell for a record; of a spilled value, *value* is the reference."""
    wide = (create | mod) >> 32 or version >> 16
    flags = (_EXPIRY if expiry else 0) | (_WIDE if wide else 0)
    numbers = (create, mod, version, expiry) if expiry else (create, mod, version)
    return _HEADS[flags].pack(flags | (SPILLED if spilled else 0), *numbers) + value


def open_cell(cell: bytes, reference: int = 0) -> tuple[Record, bool]:
    """Return the record of a cell and whether its value is only a reference.

    *reference* is how many bytes each reference has, 0 if that varies. Raises ValueError.
    """
    flags = cell[0] if cell else 0xFF
    head = _HEADS[flags & (_EXPIRY | _WIDE)]
    value = cell[head.size :]
    spilled = bool(flags & SPILLED)
    if flags > _EXPIRY | _WIDE | SPILLED or len(cell) < head.size:
        raise ValueError("a record has unknown flags or is too short")
    if spilled and len(value) != (reference or len(value) or -1):
        raise ValueError("a spilled value has no reference")
    _, create, mod, version, expiry = (*head.unpack_from(cell), 0)[:5]
    return Record(value, create, mod, version, expiry), spilled


def reference_of(cell: bytes) -> bytes:
    """Return the reference with which a cell ends; nothing if its value isn't spilled."""
    if not cell or not cell[0] & SPILLED:
        return b""
    return cell[_HEADS[cell[0] & (_EXPIRY | _WIDE)].size :]


def records_of(cells: list[bytes]) -> Iterable[Record] | None:
    """Return the records of well-formed cells, all at once; None if one needs a closer look."""
    sizes = set(map(len, cells))
    if len(sizes) == 1:
        return even_records(b"".join(cells), sizes.pop())
    if any(map(_FLAGS, cells)):
        return None
    numbers = NARROW.unpack_from
    return [new_record((cell[NARROW_SIZE:], *numbers(cell, 1), 0)) for cell in cells]


def even_records(column: bytes, size: int) -> Iterable[Record] | None:
    """Return the records of cells that all have *size* bytes; None if one has flags."""
    if any(column[::size]):
        return None
    cells = _even_cells(size - NARROW_SIZE).iter_unpack(column)
    return map(_make, repeat(Record), map(_FIELDS, cells))


def separator(left: bytes, right: bytes) -> bytes:
    """Return the shortest key that is greater than *left* and not greater than *right*."""
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return right[: at + 1]
    return right[: len(left) + 1]


@lru_cache(256)
def _even_cells(value_size: int) -> Struct:
    return Struct(f"<BIIH{value_size}s")
