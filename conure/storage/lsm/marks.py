"""Scan marks: ranges of keys of which it is known that no record is alive in them.

A scan that had to skip many deleted keys leaves a mark, and the next one jumps over them: the head
of a queue, or of an index of expiries, costs nothing the second time. A new key within a mark cuts
it in two, so each mark stays true as long as the state is written to by :meth:`Marks.put` alone. A
deletion can't make a mark untrue; one at either end makes it longer.

There are a few marks; the one that was used longest ago goes when there are too many. What a
checkpoint froze is described by the marks of that moment, so they are durable with it. As nothing
in them is taken from the disk but what a checkpoint has put there, the engine's check proves them.

For the holder of the caller's lock.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_MARKS", "SKIPPED", "Mark", "Marks"]

Mark = tuple[bytes, bytes]
"""Start and end: start <= key < end for the keys that aren't there."""

SKIPPED: Final = 1000
"""After so many deleted keys in a row a scan leaves a mark."""

MOST_MARKS: Final = 16


class Marks:
    """The marks of a state; *all* is replaced and never changed, the last used comes first."""

    __slots__ = ("all",)

    def __init__(self, marks: tuple[Mark, ...] = ()) -> None:
        self.all = marks

    def after(self, start: bytes) -> bytes:
        """Return the first key from *start* on that may be there."""
        for mark in self.all:
            if mark[0] <= start < mark[1]:
                self._use(mark)
                return self.after(mark[1])
        return start

    def before(self, end: bytes) -> bytes:
        """Return the key before which the last one below *end* may be."""
        for mark in self.all:
            if mark[0] < end <= mark[1]:
                self._use(mark)
                return self.before(mark[0])
        return end

    def add(self, start: bytes, end: bytes) -> None:
        """Take note that nothing is there from *start* to *end*."""
        kept = []
        for mark in self.all:
            if mark[0] <= end and start <= mark[1]:
                start, end = min(start, mark[0]), max(end, mark[1])
            else:
                kept.append(mark)
        self.all = ((start, end), *kept[: MOST_MARKS - 1])

    def put(self, key: bytes) -> None:
        """Take note of a key that wasn't there and is now."""
        for mark in self.all:
            if mark[0] <= key < mark[1]:
                following = key + b"\0"
                parts = [(mark[0], key), (following, mark[1])]
                parts = [part for part in parts if part[0] < part[1]]
                kept = [each for each in self.all if each is not mark]
                self.all = (*parts, *kept)[:MOST_MARKS]
                return

    def delete(self, key: bytes) -> None:
        """Take note of a key that isn't there any more."""
        following = key + b"\0"
        for mark in self.all:
            if mark[1] == key or mark[0] == following:
                self.add(key, following)
                return

    def clear(self) -> None:
        """Forget them all."""
        self.all = ()

    def _use(self, mark: Mark) -> None:
        """Let *mark* come first."""
        if mark is not self.all[0]:
            self.all = (mark, *[each for each in self.all if each is not mark])
