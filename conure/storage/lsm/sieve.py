"""The sieve: which of the newest tables may have a key, told by one byte.

What is new lies in several runs, and most keys are in none of them: looking into each one costs a
quarter of a microsecond. A sieve has a *cell* for the first bits, up to 12, and the last byte of a
key's CRC, which are what hash indexes have of it (``hashindex.py``), and in the cell a bit for each
run that has a key like that. Runs with bits are those of up to :data:`MOST_RECORDS` records; with
more, most cells would have the bit. Runs beyond the seventh share the last bit.

1. A bit that isn't set is a proof: the run doesn't have the key. One that is set may be a mistake.
2. A sieve never changes. One for other runs is made of it: bits of runs that are gone are dropped
   from all cells at once, and only tables that are new are gone through, in 3 to 15 ms. With many
   more records it becomes larger, and all tables are gone through.
3. There is none until something is flushed or merged: opening a store reads no index.

Measured beside a store of a million records: a key that none of four runs has is found out in
0.7 µs instead of 1.6.

Immutable; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

__all__ = ["MOST_RECORDS", "Member", "Sieve"]

MOST_RECORDS: Final = 1 << 18
"""Records of the largest run that has a bit: its bit is in a quarter of the cells then."""

_MOST_FIRST_BITS: Final = 12  # a MiB of cells
_CELLS_A_RECORD: Final = 8  # as long as that is possible
_TOO_LARGE: Final = 3  # bits more than it takes: then it becomes smaller
_BITS: Final = 8


class Member(Protocol):
    """A table, as far as a sieve knows it."""

    def fingerprints(self, bits: int) -> Iterable[bytes]:
        """Yield the last bytes of the hashes of its keys, for each value of their first *bits*
        bits in turn."""


class Sieve:
    """The sieve of *runs*, the newest first, each with the tables that make it up, that have about
    so many *records* together. The cell of a hash is number ``hash >> shift << 8 | hash & 0xFF``.

    *before* is the sieve of other runs, some of whose tables may be among these. Raises what
    reading tables raises.
    """

    __slots__ = ("_bits", "cells", "shift")

    def __init__(
        self, runs: Sequence[Sequence[Member]], records: int, before: Sieve | None = None
    ) -> None:
        first_bits = min(_MOST_FIRST_BITS, (records * _CELLS_A_RECORD // 256).bit_length())
        if before and first_bits <= 32 - before.shift < first_bits + _TOO_LARGE:
            first_bits = 32 - before.shift
        else:
            before = None
        known = before._bits if before else {}
        bits = {table: 1 << min(at, _BITS - 1) for at, run in enumerate(runs) for table in run}
        cells = bytearray(256 << first_bits)
        if before:
            moves = [(known[table], bit) for table, bit in bits.items() if table in known]
            cells = bytearray(before.cells.translate(_moved(moves)))
        for table, bit in bits.items():
            if table not in known:
                _mark(cells, table, bit, first_bits)
        self._bits: Mapping[Member, int] = bits
        self.cells: bytes = bytes(cells)
        self.shift: int = 32 - first_bits

    def bit(self, table: Member) -> int:
        """Return the bit of the run of *table*, 0 if it has none."""
        return self._bits.get(table, 0)


def _moved(moves: Sequence[tuple[int, int]]) -> bytes:
    """Return what becomes of each value of a cell when bits move; others are dropped."""
    become = []
    for value in range(256):
        after = 0
        for old, new in moves:
            if value & old:
                after |= new
        become.append(after)
    return bytes(become)


def _mark(cells: bytearray, table: Member, bit: int, first_bits: int) -> None:
    first = 0
    for marks in table.fingerprints(first_bits):
        for mark in marks:
            cells[first | mark] |= bit
        first += 256
