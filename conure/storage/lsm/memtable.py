"""The memtable: what was written since the last flush, as a dict from keys to cells.

A key stays in a memtable once it is there: a deleted one has the cell TOMBSTONE. The keys are
sorted when somebody asks for them in order, or when many new ones have gathered: sorted chunks are
replaced and never changed, so that any thread may go through them while the writer goes on.

Pinning takes constant time. The writer saves the cell that it is about to replace in the newest
*undo*, if anybody holds one; whoever pinned the memtable looks into the memtable first, and then
along the undos from its own to the newest: the first that has the key is right. In this order, as
the writer saves first and replaces then. The writer knows the newest undo by a weak reference, so
who lets go of a pinned state, or just drops it, has nothing to tell.

Threads: one writer at a time, in the caller's lock, for ``put``, ``pin`` and ``settle``; any thread
for the rest. Nobody writes to a memtable that is frozen.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Final
from weakref import ref

from conure.storage.lsm.merging import Group

__all__ = ["PENDING", "RECORD_BYTES", "Memtable", "Pin", "Undo"]

RECORD_BYTES: Final = 150
"""What a record takes in memory beside key and cell: two objects, places in dict and lists."""

PENDING: Final = 1024
"""How many new keys gather at most before they are sorted: about a millisecond's work, 9 ms with
400,000 keys."""

_CHUNK = 400  # keys; a chunk that has twice as many is cut
_FEW = 32  # keys that are inserted one by one; more are merged by sorting
_FIRST = 32  # keys of the first group of a range: who wants a few shouldn't pay for a chunk
_LONG_CHAIN = 8  # undos of one reader that are joined, so that looking through them stays cheap


class Undo(dict[bytes, bytes | None]):
    """Cells as they were before they were replaced, None for a key that wasn't there.

    *later* is the undo that was begun after it; it doesn't change any more from then on.
    """

    __slots__ = ("__weakref__", "later")
    later: Undo | None

    def __init__(self) -> None:
        self.later = None


def _nobody() -> Undo | None:
    return None


class Memtable:
    """Cells by key. *size* is about the memory they take, in bytes, with what was saved for readers
    so far: nobody tells when these let go, so it counts until the memtable does."""

    __slots__ = ("_sorted", "_undo", "cells", "size")

    def __init__(self) -> None:
        self.cells: dict[bytes, bytes] = {}
        self.size = 0
        # First keys of chunks, chunks, and new keys as they came: replaced together.
        self._sorted: tuple[list[bytes], list[list[bytes]], list[bytes]] = ([], [], [])
        self._undo: Callable[[], Undo | None] = _nobody

    def put(self, key: bytes, cell: bytes, old: bytes | None) -> None:
        """Set the cell of *key*; *old* is the one it has here, None if there is none."""
        undo = self._undo()
        if undo is not None and key not in undo:
            undo[key] = old
            self.size += len(key) + len(old or b"") + RECORD_BYTES
        self.cells[key] = cell
        if old is None:
            self.size += len(key) + len(cell) + RECORD_BYTES
            pending = self._sorted[2]
            pending.append(key)
            if len(pending) >= PENDING:
                self.settle()
        else:
            self.size += len(cell) - len(old)

    def pin(self) -> Pin:
        """Return the present state of the memtable, whatever is written to it."""
        undo = self._undo()
        if undo is None or undo:
            newest = Undo()
            if undo is not None:
                undo.later = newest
            self._undo = ref(newest)
            undo = newest
        return Pin(self, undo)

    def settle(self) -> None:
        """Sort the keys that are new: scans are quicker then.

        Of a memtable that is frozen any thread may do that, and several at once.
        """
        firsts, chunks, pending = self._sorted
        if not pending:
            return
        new = sorted(pending)
        chunks = chunks[:]
        end = len(new) if chunks else 0
        while end:  # from the last chunk to the first, so that places stay right
            at = max(0, bisect_right(firsts, new[end - 1]) - 1)
            start = bisect_left(new, firsts[at], 0, end) if at else 0
            chunks[at : at + 1] = _cut(_joined(chunks[at], new[start:end]))
            end = start
        chunks = chunks or _cut(new)
        self._sorted = [chunk[0] for chunk in chunks], chunks, []

    def keys(self, start: bytes, end: bytes | None, *, reverse: bool) -> Iterator[list[bytes]]:
        """Iterate over the keys of a range in ascending lists; the last list comes first if
        *reverse*. Those that are put meanwhile may be among them."""
        firsts, chunks, pending = self._sorted
        new = sorted(
            [key for key in pending[:] if key >= start and (end is None or key < end)]
            if start or end is not None
            else pending
        )
        first = max(0, bisect_right(firsts, start) - 1)
        last = len(chunks) if end is None else bisect_left(firsts, end)
        if first >= last:
            return iter(_cut(new) if not reverse else _cut(new)[::-1]) if new else iter(())
        return self._between(firsts, chunks, new, first, last, start, end, reverse)

    def groups(self, start: bytes, end: bytes | None, *, reverse: bool) -> Iterator[Group]:
        """Iterate over keys and cells of a range, as ``merging.py`` wants them, as long as nobody
        writes."""
        cells = self.cells
        for keys in _growing(self.keys(start, end, reverse=reverse), reverse):
            yield keys, list(map(cells.__getitem__, keys))

    # -- private ---------------------------------------------------------------------------------

    def _between(
        self,
        firsts: list[bytes],
        chunks: list[list[bytes]],
        new: list[bytes],
        first: int,
        last: int,
        start: bytes,
        end: bytes | None,
        reverse: bool,
    ) -> Iterator[list[bytes]]:
        """Iterate over the chunks from *first* to before *last*, each with its part of *new*."""
        for at in range(last - 1, first - 1, -1) if reverse else range(first, last):
            keys = chunks[at]
            if at == first or (end is not None and at == last - 1):
                stop = len(keys) if end is None else bisect_left(keys, end)
                keys = keys[bisect_left(keys, start) : stop]
            if new:
                low = 0 if at == first else bisect_left(new, firsts[at])
                high = len(new) if at == last - 1 else bisect_left(new, firsts[at + 1])
                if low < high:
                    keys = _joined(keys, new[low:high])
            if keys:
                yield keys


class Pin:
    """A memtable as it was. Any one thread at a time."""

    __slots__ = ("_memtable", "_undo")

    def __init__(self, memtable: Memtable, undo: Undo) -> None:
        self._memtable = memtable
        self._undo = undo

    def get(self, key: bytes) -> bytes | None:
        """Return the cell that *key* had, None if it wasn't there."""
        cell = self._memtable.cells.get(key)
        undo: Undo | None = self._shortened()
        while undo is not None:
            if key in undo:
                return undo[key]
            undo = undo.later
        return cell

    def groups(self, start: bytes, end: bytes | None, *, reverse: bool) -> Iterator[Group]:
        """Iterate over keys and cells of a range, as ``merging.py`` wants them."""
        get = self._memtable.cells.get
        for part in _growing(self._memtable.keys(start, end, reverse=reverse), reverse):
            keys, cells = part, list(map(get, part))
            undo: Undo | None = self._shortened()
            chain = []
            while undo is not None:
                if undo:
                    chain.append(undo)
                undo = undo.later
            for each in reversed(chain):  # the oldest that has the key is right, so it is the last
                if len(each) < len(keys):
                    cells = _with_few(each, keys, cells)
                else:
                    cells = [each.get(key, cell) for key, cell in zip(keys, cells, strict=True)]
            if None in cells:
                there = [at for at, cell in enumerate(cells) if cell is not None]
                keys = [keys[at] for at in there]
                cells = [cells[at] for at in there]
            if keys:
                yield keys, cells  # type: ignore[misc]  # no None is left

    def _shortened(self) -> Undo:
        """Return the undo to begin with, after joining those that don't change any more."""
        first = self._undo
        count, each = 0, first
        while each.later is not None:
            count += 1
            each = each.later
        if count > _LONG_CHAIN:
            joined, each = Undo(), first
            while each.later is not None:
                for key, cell in each.items():
                    joined.setdefault(key, cell)
                each = each.later
            joined.later = each
            self._undo = first = joined
        return first


def _with_few(undo: Undo, keys: list[bytes], cells: list[bytes | None]) -> list[bytes | None]:
    """Return the cells with those of an undo that has fewer keys than the group."""
    for key, cell in [*undo.items()]:
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            cells[at] = cell
    return cells


def _growing(lists: Iterator[list[bytes]], reverse: bool) -> Iterator[list[bytes]]:
    """Cut lists of keys into parts that begin small."""
    size = _FIRST
    for keys in lists:
        left = len(keys)
        at = 0
        while left:
            part = min(size, left)
            if part == len(keys):
                yield keys
            elif reverse:
                yield keys[left - part : left]
            else:
                yield keys[at : at + part]
            at += part
            left -= part
            size = min(4 * size, _CHUNK)


def _joined(keys: list[bytes], new: list[bytes]) -> list[bytes]:
    """Return two sorted lists as one."""
    if not keys or keys[-1] < new[0]:
        return keys + new
    if len(new) > _FEW:
        return sorted(keys + new)
    keys = keys[:]
    for key in new:
        insort(keys, key)
    return keys


def _cut(keys: list[bytes]) -> list[list[bytes]]:
    """Cut a sorted list into chunks."""
    count = len(keys)
    if count < 2 * _CHUNK:
        return [keys]
    starts = range(0, count - _CHUNK, _CHUNK)  # the last one has the rest
    return [keys[at : at + _CHUNK] for at in starts[:-1]] + [keys[starts[-1] :]]
