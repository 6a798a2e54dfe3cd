"""Which merge is next: a pure function of which tables there are.

Level 0 has what was flushed, in tables that overlap. Each level below is one run of disjoint
tables, the last one being level :data:`LAST_LEVEL` from the start; a store grows upwards from
there, and levels between that aren't needed are empty. What is where:

======== =========================================================================================
level 0  4 tables are merged at once, if that costs little; 7 in any case
1 … 3    what came from above in one job; in a store too large for that, half of the next level
         that isn't empty
last     the rest; once settled, seven eighths or more of all bytes, and nearly all of a store that
         one job can merge
======== =========================================================================================

Level 0 takes the levels below it along, down to the first that is more than twice as large as all
that comes upon it, and goes into the last one that it takes; into the empty one above if it takes
none. So levels double, each byte is written few times before it is in the last level, and a store
that is written to little rewrites little. When all above the last level is three fifths of that,
everything is merged.

1. A job has about :data:`INPUTS` tables' worth of bytes, so that its time and its temporary space
   are bounded; in a larger store levels go down in parts.
2. A job moves records down, or values out of blob files that are to go: so merging ends. Values of
   files of which there are too many go into one that holds twice as much as the fullest of them,
   or stay: so with each such job the sum of the squares of what is in each file grows, which can't
   go on for ever.
3. Level 0 goes before all else, unless a level is so full that merging into it would cost more.
4. *Idle* jobs give space back: what is in upper levels may hide as much below, and a tombstone
   hides a record. They run until that is an eighth of the rest, and blob files are mostly live; and
   until it is a twenty-fifth where one job can merge the store, for a scan of one run takes half as
   long as that of two.

Which of a level's tables go first: those with most to gain, moved bytes and tombstones, for what is
written.

Nothing here reads a file. Any thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import JobLimits, MergeJob
from conure.storage.lsm.tables import TableFacts

__all__ = ["INPUTS", "LAST_LEVEL", "MOST_INPUTS", "Layout", "load_level", "pick"]

LAST_LEVEL = 4
INPUTS = 12
"""Tables of full size that a job reads, as a goal; level 0 may bring four more."""

MOST_INPUTS = 48
"""Tables that a job reads, however small they are: each is an open file."""

_L0_DUE, _L0_LATE = 4, 7
_L0_INPUTS = INPUTS + 4
_CHEAP = 1.5  # times the bytes of level 0 that are written beside them
_ALONG = 2  # times what comes upon a level: with up to so much it goes along
_ALL = 0.6  # of the last level: with more above it, everything is merged
_SHARE = 0.5  # of the next level that one may have, if a job can't have both
_FULL = 0.5  # of how late level 0 is, that a full level may be and still take from there
_GARBAGE = 0.12  # of what is live, that may remain when there is nothing else to do
_APART = 0.04  # likewise of what isn't in the last level, in a store that one job can merge
_TOMBSTONE_GAIN = 4  # records' worth of bytes
_TABLES = 256  # of a store, about; then they grow
_BLOBS = 256  # likewise
_FULLER = 2  # times as much is in a file that several become as in any of them
_MUCH_DEAD = 1 / 3  # of the bytes of all blob files: no waiting for an idle time then


class HasFacts(Protocol):
    """An open table."""

    @property
    def facts(self) -> TableFacts: ...


class HasBlobFacts(Protocol):
    """An open blob file."""

    @property
    def facts(self) -> BlobFacts: ...


class Layout(Protocol):
    """Tables and blob files, as ``version.Version`` has them."""

    @property
    def levels(self) -> Sequence[Sequence[HasFacts]]:
        """The tables by level: of level 0 the newest first, of the others in order."""

    @property
    def blobs(self) -> Mapping[str, HasBlobFacts]: ...

    @property
    def live_bytes(self) -> Mapping[str, int]:
        """How many bytes of each blob file are referred to."""


class _Part(NamedTuple):
    """What to merge: runs, the newest first, for a level."""

    runs: tuple[Sequence[TableFacts], ...]
    level: int


def load_level(size: int, limits: JobLimits) -> int:  # noqa: ARG001
    """Return the level for *size* bytes that come sorted into an empty store."""
    return LAST_LEVEL


def pick(
    layout: Layout, limits: JobLimits, stem: str, number: int, *, idle: bool = True
) -> MergeJob | None:
    """Return the next merge, None if there is nothing to do; *stem* and *number* name its outputs.

    Pass *idle* when writes have paused, and space may be given back. The answer is the same for the
    same layout; with a thousand tables it takes a millisecond.
    """
    return _Picking(layout, limits).pick(stem, number, idle=idle)


class _Picking:
    def __init__(self, layout: Layout, limits: JobLimits) -> None:
        levels = [[table.facts for table in level] for level in layout.levels]
        assert len(levels) <= LAST_LEVEL + 1
        levels += [[] for _ in range(LAST_LEVEL + 1 - len(levels))]
        self._levels = levels
        self._sizes = [sum(table.size for table in level) for level in levels]
        self._blobs = {name: blob.facts for name, blob in layout.blobs.items()}
        self._live = layout.live_bytes
        blob_bytes = sum(blob.size for blob in self._blobs.values())
        self._dead = blob_bytes - sum(self._live.values())
        self._blob_bytes = blob_bytes
        self._limits = JobLimits(
            max(limits.table_bytes, sum(self._sizes) // _TABLES),
            max(limits.blob_bytes, 2 * blob_bytes // _BLOBS),
            limits.long_value,
        )
        self._most_bytes = _L0_INPUTS * self._limits.table_bytes
        records = sum(table.records for table in levels[LAST_LEVEL])
        self._record_bytes = self._sizes[LAST_LEVEL] / records if records else 0.0

    def pick(self, stem: str, number: int, *, idle: bool) -> MergeJob | None:
        emptied = self._to_empty(idle=idle)
        part = self._due()
        if part is None and emptied:
            part = self._emptying(emptied)
        if part is None and len(self._blobs) > _BLOBS:
            part, emptied = self._joining()
        if part is None and idle:
            part = self._settling()
        if part is None:
            return None
        runs = tuple(tuple(run) for run in part.runs if run)
        touched = {name for run in runs for table in run for name, _ in table.blobs}
        return MergeJob(
            stem,
            number,
            self._limits,
            runs,
            part.level,
            self._older(runs, part.level),
            tuple(self._blobs[name] for name in sorted(emptied & touched)),
        )

    # -- tables ----------------------------------------------------------------------------------

    def _due(self) -> _Part | None:
        """Return what has to be merged whatever else there is to do."""
        fullest, full = self._fullest()
        count = len(self._levels[0])
        if count >= _L0_DUE and full <= _FULL * max(2.0, count / _L0_LATE):
            part = self._from_level_0()
            size = self._sizes[0]
            written = sum(table.size for run in part.runs for table in run)
            if count >= _L0_LATE or written - size <= _CHEAP * size:
                return part
        return self._down_from(fullest) if full > 1 else None

    def _fullest(self) -> tuple[int, float]:
        """Return the level that has most in relation to what it may have, and that relation;
        one that can go along with level 0 may have any size."""
        fullest, full = 0, 0.0
        below = self._sizes[LAST_LEVEL]
        for level in range(LAST_LEVEL - 1, 0, -1):
            size = self._sizes[level]
            if size:
                relation = size / max(1.0, below * _SHARE)
                if relation > full and size + below > self._most_bytes:
                    fullest, full = level, relation
                below = size
        return fullest, full

    def _from_level_0(self) -> _Part:
        """Merge level 0, the oldest of it if it has too many tables for a job, and what goes
        along."""
        chosen = self._levels[0][-_L0_INPUTS:]
        runs = [[table] for table in chosen]
        first = self._next_below(0)
        if not self._levels[first]:
            return _Part(tuple(runs), LAST_LEVEL)
        if sum(self._sizes[:LAST_LEVEL]) >= _ALL * self._sizes[LAST_LEVEL]:
            part = self._down_to(LAST_LEVEL, runs, 0)
            if part is not None:
                return part
        best = None
        size = sum(table.size for table in chosen)
        for level in range(first, LAST_LEVEL):
            if self._levels[level]:
                is_light = self._sizes[level] <= _ALONG * size
                # There is no empty level above level 1, so it goes along however large it is.
                part = self._down_to(level, runs, 0) if is_light or level == 1 else None
                if part is None:
                    break
                best = part
                size += self._sizes[level]
        if best is None and first == 1:
            return self._down_from(1)
        return best or _Part(tuple(runs), first - 1)

    def _down_to(
        self, target: int, runs: Sequence[Sequence[TableFacts]], above: int
    ) -> _Part | None:
        """Merge *runs*, of level *above*, and all that overlaps them down to level *target*.

        Returns None if that is too much for one job.
        """
        inputs = [table for run in runs for table in run]
        count = 0
        below: list[list[TableFacts]] = []
        while count < len(inputs):  # what goes along may overlap more than what it goes along with
            count = len(inputs)
            below = [self._overlapping(level, inputs) for level in range(above + 1, target + 1)]
            inputs = [table for run in (*runs, *below) for table in run]
        if count > MOST_INPUTS or sum(table.size for table in inputs) > self._most_bytes:
            return None
        return _Part((*runs, *below), target)

    def _down_from(self, level: int) -> _Part:
        """Merge some tables of a level into the next one that isn't empty."""
        tables, target = self._levels[level], self._next_below(level)
        best: tuple[float, int, int, list[TableFacts]] | None = None
        for first in range(len(tables)):
            moved = gain = 0.0
            for last in range(first, min(len(tables), first + INPUTS)):
                table = tables[last]
                moved += table.size
                gain += table.size + _TOMBSTONE_GAIN * table.tombstones * self._record_bytes
                overlapping = self._overlapping(target, tables[first : last + 1])
                if last - first + 1 + len(overlapping) > INPUTS and last > first:
                    break
                cost = (moved + sum(table.size for table in overlapping)) / gain
                if best is None or cost < best[0]:
                    best = (cost, first, last + 1, overlapping)
        assert best is not None, "an empty level"
        _, first, end, overlapping = best
        return _Part((tables[first:end], overlapping), target)

    def _settling(self) -> _Part | None:
        """Return what to merge so that space is given back, if there is much to be had."""
        hidden = [
            size + sum(table.tombstones for table in level) * self._record_bytes
            for size, level in zip(self._sizes[:LAST_LEVEL], self._levels, strict=False)
        ]
        dead = sum(hidden) - sum(self._sizes[:LAST_LEVEL])
        live = max(0.0, self._sizes[LAST_LEVEL] - dead)
        may_be_one = sum(self._sizes) <= self._most_bytes
        if not any(hidden) or sum(hidden) <= (_APART if may_be_one else _GARBAGE) * live:
            return None
        top = 0 if self._levels[0] else self._next_below(0)
        if top < LAST_LEVEL:
            tables = self._levels[top]
            runs = [tables] if top else [[table] for table in tables]
            part = self._down_to(LAST_LEVEL, runs, top)
            if part is not None:
                return part
        level = max(range(LAST_LEVEL), key=hidden.__getitem__)
        return self._down_from(level) if level else self._from_level_0()

    def _next_below(self, level: int) -> int:
        below = range(level + 1, LAST_LEVEL)
        return next((each for each in below if self._levels[each]), LAST_LEVEL)

    def _overlapping(self, level: int, tables: Sequence[TableFacts]) -> list[TableFacts]:
        """Return those of a level's tables that can have a key of *tables*."""
        first = min(table.first for table in tables)
        last = max(table.last for table in tables)
        return self._between(level, first, last)

    def _between(self, level: int, first: bytes, last: bytes) -> list[TableFacts]:
        tables = self._levels[level]
        start = bisect_left(tables, first, key=_last_of)
        return tables[start : bisect_right(tables, last, key=_first_of)]

    def _older(
        self, runs: Sequence[Sequence[TableFacts]], level: int
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return where something older than *runs* may be, in levels below *level*."""
        first = min(run[0].first for run in runs)
        last = max(run[-1].last for run in runs)
        ranges = sorted(
            (table.first, table.last)
            for below in range(level + 1, LAST_LEVEL + 1)
            for table in self._between(below, first, last)
        )
        return tuple(_joined(ranges))

    # -- blob files ------------------------------------------------------------------------------

    def _to_empty(self, *, idle: bool) -> frozenset[str]:
        """Return the names of blob files that are to go, since they are mostly dead."""
        share = 0.5
        live = self._blob_bytes - self._dead
        if idle and self._dead > _GARBAGE * live:
            share = 1 - _GARBAGE
        names = {
            name for name, blob in self._blobs.items() if self._live[name] <= share * blob.size
        }
        if not idle and self._dead <= _MUCH_DEAD * self._blob_bytes:
            names.clear()
        return frozenset(names)

    def _emptying(self, emptied: frozenset[str]) -> _Part | None:
        """Rewrite neighbours of one level that refer to such files, where they are; what is in
        level 0 goes down."""
        best, where = 0, (0, 0)
        for level in range(1, LAST_LEVEL + 1):
            for at, table in enumerate(self._levels[level]):
                found = _bytes_in(table, emptied)
                if found > best:
                    best, where = found, (level, at)
        level, at = where
        if not level:
            in_0 = any(_bytes_in(table, emptied) for table in self._levels[0])
            return self._from_level_0() if in_0 else None
        tables = self._levels[level]
        end = at + 1
        while end < len(tables) and end - at < INPUTS and _bytes_in(tables[end], emptied):
            end += 1
        while at and end - at < INPUTS and _bytes_in(tables[at - 1], emptied):
            at -= 1
        return _Part((tables[at:end],), level)

    def _joining(self) -> tuple[_Part | None, frozenset[str]]:
        """Return neighbours of one level that refer to files with little in them, and the names of
        these, whose values become one file: those with most to gain for what is written."""
        best, part, joined = 0.0, None, frozenset[str]()
        for level, tables in enumerate(self._levels[1:], 1):
            for at in range(0, len(tables), INPUTS // 2):
                window = tables[at : at + INPUTS]
                names, moved, gain = self._least(window)
                while names and not _bytes_in(window[0], names):
                    window = window[1:]
                while names and not _bytes_in(window[-1], names):
                    window = window[:-1]
                gain /= moved + sum(table.size for table in window)
                if gain > best:
                    best, part, joined = gain, _Part((window,), level), names
        return part, joined

    def _least(self, tables: Sequence[TableFacts]) -> tuple[frozenset[str], int, float]:
        """Return the files with the least in them to which tables refer, as many as make one; how
        many bytes are moved out of them, and how many files there are less for it."""
        found: dict[str, int] = {}
        for table in tables:
            for name, size in table.blobs:
                found[name] = found.get(name, 0) + size
        least: tuple[frozenset[str], int, float] = frozenset(), 0, 0.0
        names: list[str] = []
        moved, gain = 0, -1.0
        for name in sorted(found, key=self._live.__getitem__):
            moved += found[name]
            if moved > self._limits.blob_bytes:
                break
            names.append(name)
            gain += found[name] / self._live[name]
            if moved >= _FULLER * self._live[name]:
                least = frozenset(names), moved, gain
        return least


def _first_of(table: TableFacts) -> bytes:
    return table.first


def _last_of(table: TableFacts) -> bytes:
    return table.last


def _bytes_in(table: TableFacts, files: frozenset[str]) -> int:
    return sum(size for name, size in table.blobs if name in files)


def _joined(ranges: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Join sorted ranges that overlap."""
    current: tuple[bytes, bytes] | None = None
    for first, last in ranges:
        if current is None or first > current[1]:
            if current is not None:
                yield current
            current = (first, last)
        else:
            current = (current[0], max(current[1], last))
    if current is not None:
        yield current
