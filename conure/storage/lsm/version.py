"""A version: which tables and blob files make up the state on disk, and how a key is found there.

Level 0 has one table for each flush, the newest first; they overlap. In each level below the tables
are disjoint and ascend, and whatever is in a level is newer than what is in the levels below it.

A version never changes: a flush or a merge makes another one (:meth:`Version.edited`), and the
engine swaps them by one assignment. Whoever holds a version can read it to its end, even when its
files have no name any more: the tables hold their maps.

Any thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count, pairwise
from zlib import crc32

from conure.errors import CorruptionError
from conure.storage.lsm.blobs import BlobFile, file_of
from conure.storage.lsm.merging import Group
from conure.storage.lsm.sieve import MOST_RECORDS, Sieve
from conure.storage.lsm.tables import Table

__all__ = ["Version"]

_serials = count()
_Find = Callable[[bytes, int], bytes | None]


class Version:
    """Tables by level, and blob files by name.

    There is at least level 0, and no level below the last that has tables.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[Table]] = ((),),
        blobs: Mapping[str, BlobFile] | None = None,
        sieve: Sieve | None = None,
    ) -> None:
        self.serial = next(_serials)
        """No other version has it."""
        tables = [tuple(level) for level in levels] or [()]
        while len(tables) > 1 and not tables[-1]:
            tables.pop()
        self.levels = tuple(tables)
        self.blobs: Mapping[str, BlobFile] = blobs or {}
        for level in self.levels[1:]:
            for before, after in pairwise(level):
                assert before.facts.last < after.facts.first, "tables of a level overlap"
        self._lasts = [[table.facts.last for table in level] for level in self.levels]
        # Where to look before the last level, the newest first; with a sieve, by its cells.
        upper = _upper(self.levels)
        finds = [_find_in(run) for run in upper]
        self._finds = tuple(finds)
        self._sieve = sieve
        self._cells = sieve.cells if sieve else b""
        self._shift = sieve.shift if sieve else 0
        bits = [sieve.bit(run[0]) if sieve else 0 for run in upper]
        self._tried = [
            tuple([find for find, bit in zip(finds, bits, strict=True) if not bit or bit & value])
            for value in range(256 if sieve else 0)
        ]
        self._last_lasts: list[bytes] = self._lasts[-1] if len(self.levels) > 1 else []
        self._last_finds = [table.find for table in self.levels[-1]]

    def find(self, key: bytes) -> bytes | None:
        """Return the newest cell of *key*, b"" if it was deleted; None if no table has it.

        Raises CorruptionError and DiskFailed.
        """
        place = crc32(key)
        cells = self._cells
        finds = self._finds
        if cells:
            finds = self._tried[cells[place >> self._shift << 8 | place & 0xFF]]
        for find in finds:
            cell = find(key, place)
            if cell is not None:
                return cell
        lasts = self._last_lasts
        at = bisect_left(lasts, key)
        return self._last_finds[at](key, place) if at < len(lasts) else None

    def blob(self, place: str, reference: bytes) -> BlobFile:
        """Return the file that a reference of one of its cells names.

        Raises CorruptionError of *place*, where the state lies, if it isn't one of its files.
        """
        try:
            return self.blobs[file_of(reference)]
        except (KeyError, ValueError) as error:
            raise CorruptionError(
                place, 0, f"a record refers to a blob file that isn't there: {reference.hex()}"
            ) from error

    def sources(self, start: bytes, end: bytes | None, *, reverse: bool) -> list[Iterator[Group]]:
        """Return what ``merging.py`` merges to the records of a range, the newest first."""
        found = []
        for table in self.levels[0]:
            facts = table.facts
            if facts.last >= start and (end is None or facts.first < end):
                found.append(table.groups(start, end, reverse))
        for level, lasts in zip(self.levels[1:], self._lasts[1:], strict=True):
            first = bisect_left(lasts, start)
            last = len(level)
            if end is not None:
                last = bisect_left(level, end, first, key=_first_of)
            if first < last:
                found.append(_groups(level[first:last], start, end, reverse))
        return found

    def tables(self) -> Iterator[Table]:
        """Iterate over all tables, those of level 0 first."""
        for level in self.levels:
            yield from level

    def edited(
        self,
        *,
        gone: Iterable[str] = (),
        level: int = 0,
        tables: Sequence[Table] = (),
        blobs: Iterable[BlobFile] = (),
    ) -> Version:
        """Return the version without the tables of some names, and with others in a *level*.

        Blob files that no table refers to any more are not in it.
        """
        names = frozenset(gone)
        levels = [
            [table for table in each if table.facts.name not in names] for each in self.levels
        ]
        while len(levels) <= level:
            levels.append([])
        if level:
            for table in tables:
                levels[level].insert(
                    bisect_right(levels[level], table.facts.first, key=_first_of), table
                )
        else:
            levels[0][:0] = tables
        files = {**self.blobs, **{blob.facts.name: blob for blob in blobs}}
        wanted = {name for each in levels for table in each for name, _ in table.facts.blobs}
        upper = [(run, sum(map(_records_of, run))) for run in _upper(levels)]
        small = [run for run, records in upper if records <= MOST_RECORDS]
        in_small = sum(records for _, records in upper if records <= MOST_RECORDS)
        return Version(
            levels,
            {name: file for name, file in files.items() if name in wanted},
            Sieve(small, in_small, self._sieve) if small else None,
        )

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all its files."""
        return frozenset([*(table.facts.name for table in self.tables()), *self.blobs])

    @cached_property
    def live_bytes(self) -> Mapping[str, int]:
        """How many bytes of each blob file its tables refer to."""
        live = dict.fromkeys(self.blobs, 0)
        for table in self.tables():
            for name, size in table.facts.blobs:
                live[name] += size
        return live

    @cached_property
    def runs(self) -> int:
        """In how many places a key may have to be looked for."""
        return len(self._finds) + bool(self._last_lasts)

    @property
    def sieve_bytes(self) -> int:
        """How much memory its sieve takes."""
        return len(self._cells)

    @cached_property
    def is_empty(self) -> bool:
        """Tell whether there is no table."""
        return not self.runs


def _upper(levels: Sequence[Sequence[Table]]) -> list[Sequence[Table]]:
    """Return the runs above the last level that has tables, the newest first."""
    below = [level for level in levels[1:] if level]
    return [*([table] for table in levels[0]), *below[:-1]]


def _find_in(run: Sequence[Table]) -> _Find:
    """Return what finds a key in disjoint tables."""
    if len(run) == 1:
        return run[0].find
    lasts = [table.facts.last for table in run]
    finds = [table.find for table in run]

    def find(key: bytes, place: int) -> bytes | None:
        at = bisect_left(lasts, key)
        return finds[at](key, place) if at < len(finds) else None

    return find


def _records_of(table: Table) -> int:
    return table.facts.records


def _first_of(table: Table) -> bytes:
    return table.facts.first


def _groups(
    tables: Sequence[Table], start: bytes, end: bytes | None, reverse: bool
) -> Iterator[Group]:
    """Iterate over a range of disjoint tables."""
    for table in reversed(tables) if reverse else tables:
        yield from table.groups(start, end, reverse)
