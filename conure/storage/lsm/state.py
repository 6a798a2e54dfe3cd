"""A state: the memtable, the frozen ones and the version of the files, seen as one sorted map.

A state is replaced and never changed, though its memtable is written to. Who reads takes the
engine's state once and stays with it. What was deleted is left out; a long run of deleted keys is
jumped over where a mark tells of it, and leaves a mark otherwise (``marks.py``). Who goes through
one comes back after every :data:`PAUSE` of them, with an empty group, and has left a mark up to
there; so no step takes long, and who gives up hasn't begun in vain.

The holder of the caller's lock reads a :class:`State` while nothing is written. A :class:`Pinned`
state is for any one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from conure.storage.lsm.marks import SKIPPED, Marks
from conure.storage.lsm.memtable import Memtable, Pin
from conure.storage.lsm.merging import Group, merged
from conure.storage.lsm.reading import Cells
from conure.storage.lsm.version import Version

__all__ = ["PAUSE", "Leave", "Pinned", "Source", "State", "live_groups"]

PAUSE: Final = 2000
"""Deleted keys, about: a millisecond or two."""

Leave = Callable[[bytes, bytes], None]
"""Called with start and end of a range in which a scan found nothing but many deleted keys."""


class Source(Protocol):
    """What can be merged to the records of a range."""

    def sources(self, start: bytes, end: bytes | None, *, reverse: bool) -> list[Iterator[Group]]:
        """Return sorted groups by age, the newest first."""


class State(NamedTuple):
    """What there is: *frozen* memtables, the newest first, lie between memtable and files."""

    memtable: Memtable
    frozen: tuple[Memtable, ...]
    version: Version
    cells: Cells

    def find(self, key: bytes) -> bytes | None:
        """Return the cell of *key*; b"" or None if it has none."""
        cell = self.memtable.cells.get(key)
        return self.older(key) if cell is None else cell

    def older(self, key: bytes) -> bytes | None:
        """Return the cell that *key* has without the memtable."""
        for memtable in self.frozen:
            cell = memtable.cells.get(key)
            if cell is not None:
                return cell
        return self.version.find(key)

    def sources(self, start: bytes, end: bytes | None, *, reverse: bool) -> list[Iterator[Group]]:
        """Return its sources (Source)."""
        return [
            *(
                memtable.groups(start, end, reverse=reverse)
                for memtable in (self.memtable, *self.frozen)
                if memtable.cells
            ),
            *self.version.sources(start, end, reverse=reverse),
        ]


class Pinned:
    """A state as it was when it was pinned."""

    __slots__ = ("_frozen", "_pin", "_version", "cells")

    def __init__(self, state: State) -> None:
        memtable, self._frozen, self._version, self.cells = state
        self._pin: Pin | None = memtable.pin() if memtable.cells else None

    def find(self, key: bytes) -> bytes | None:
        """Return the cell that *key* had; b"" or None if it had none."""
        cell = None if self._pin is None else self._pin.get(key)
        if cell is not None:
            return cell
        for memtable in self._frozen:
            cell = memtable.cells.get(key)
            if cell is not None:
                return cell
        return self._version.find(key)

    def sources(self, start: bytes, end: bytes | None, *, reverse: bool) -> list[Iterator[Group]]:
        """Return its sources (Source)."""
        return [
            *(
                memtable.groups(start, end, reverse=reverse)
                for memtable in (self._pin, *self._frozen)
                if memtable is not None
            ),
            *self._version.sources(start, end, reverse=reverse),
        ]


def live_groups(
    source: Source, marks: Marks, leave: Leave, start: bytes, end: bytes | None, *, reverse: bool
) -> Iterator[Group]:
    """Iterate over the records of a range in groups, deleted ones left out. An empty group is a
    pause among these.

    *marks* are those of the state. Of runs of deleted keys that are not in them *leave* is told.
    """
    if reverse:
        return _downwards(source, marks, leave, start, end)
    return _upwards(source, marks, leave, start, end)


def _downwards(
    source: Source, marks: Marks, leave: Leave, start: bytes, end: bytes | None
) -> Iterator[Group]:
    position = end if end is None else marks.before(end)
    top, skipped = end, 0  # below it nothing was alive, but so many keys were deleted
    walked = 0  # deleted keys since the last pause
    is_over = False
    while not is_over and (position is None or start < position):
        is_over = True
        for keys, cells in merged(source.sources(start, position, reverse=True), reverse=True):
            if top is None:
                top = keys[-1] + b"\0"
            if all(cells):
                if skipped > SKIPPED:
                    leave(keys[-1] + b"\0", top)
                yield keys, cells
                top, skipped = keys[0], 0
                continue
            there = [at for at, cell in enumerate(cells) if cell]
            if there:
                if skipped + len(keys) - 1 - there[-1] > SKIPPED:
                    leave(keys[there[-1]] + b"\0", top)
                yield [keys[at] for at in there], [cells[at] for at in there]
                top, skipped = keys[there[0]], there[0]
            else:
                skipped += len(keys)
            walked += len(keys) - len(there)
            if walked >= PAUSE:
                walked = 0
                if skipped > SKIPPED:
                    leave(keys[0], top)
                yield [], []
            position = marks.before(keys[0])
            if position != keys[0]:
                is_over = False
                break
    if top is not None and skipped > SKIPPED:
        leave(start, top)


def _upwards(
    source: Source, marks: Marks, leave: Leave, start: bytes, end: bytes | None
) -> Iterator[Group]:
    position = marks.after(start)
    begin, skipped = start, 0  # from there on nothing was alive, but so many keys were deleted
    walked = 0  # deleted keys since the last pause
    is_over = False
    while not is_over and (end is None or position < end):
        is_over = True
        for keys, cells in merged(source.sources(position, end, reverse=False)):
            if all(cells):
                if skipped > SKIPPED:
                    leave(begin, keys[0])
                yield keys, cells
                begin, skipped = keys[-1] + b"\0", 0
                continue
            there = [at for at, cell in enumerate(cells) if cell]
            if there:
                if skipped + there[0] > SKIPPED:
                    leave(begin, keys[there[0]])
                yield [keys[at] for at in there], [cells[at] for at in there]
                begin, skipped = keys[there[-1]] + b"\0", len(keys) - 1 - there[-1]
            else:
                skipped += len(keys)
            following = keys[-1] + b"\0"
            walked += len(keys) - len(there)
            if walked >= PAUSE:
                walked = 0
                if skipped > SKIPPED:
                    leave(begin, following)
                yield [], []
            position = marks.after(following)
            if position != following:
                is_over = False
                break
    if skipped > SKIPPED:
        leave(begin, position if end is None else end)
