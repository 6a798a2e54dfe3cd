"""What has happened to keys: a window of past events, for whoever watches.

1. The history is complete after its *floor*: every event of a later revision is there. A watch
   may begin at any revision greater than the floor, and at none other.
2. A revision is appended as a whole, so whoever reads it has all of it.

``History.extend`` and ``History.reset`` belong to whoever applies entries, one at a time; anything
else that is public is for any thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from conure.errors import BadRequest

__all__ = [
    "MAX_BYTES",
    "MAX_EVENTS",
    "Change",
    "History",
    "Position",
    "View",
    "parse_event_id",
    "revision_of",
]

MAX_EVENTS = 200_000  # of a history, by default
MAX_BYTES = 64 << 20

_EVENT_BYTES = 200  # what an event takes besides the bytes of its key and value
_BLOCK_EVENTS = 1024
_BLOCKS = 16  # a history that is full has at least so many
_SCAN = 64  # so few events are looked through faster than looked up

Change = tuple[int, int, bytes, bytes, int] | tuple[int, int, bytes, bytes, int, bytes | None]
"""The fields of a :class:`commands.Event`; a plain tuple of them does as well. The sixth, if it is
there, is the value before, None if there was no key."""

revision_of = itemgetter(0)


class Position(NamedTuple):
    """Where a watch begins: at *revision*, after the first *skip* events of it."""

    revision: int
    skip: int = 0


def parse_event_id(text: str) -> Position:
    """Return the position after the event with this id. Raises BadRequest for what is none."""
    revision, dot, number = text.partition(".")
    parts = [revision, number] if dot else [revision]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise BadRequest("the ID of an event is a revision, or a revision, a dot and a number")
    return Position(int(revision), int(number)) if dot else Position(int(revision) + 1)


class _Block:
    """Events in log order, whole revisions only (2); *first* is the number of the first one.

    One block, the last, grows; the others are *sealed*. ``matching`` is the pump's.
    """

    __slots__ = ("_keys", "_order", "events", "first", "sealed", "size")

    def __init__(self, first: int) -> None:
        self.first = first
        self.events: list[Change] = []
        self.size = 0
        self.sealed = False
        self._keys: list[bytes] = []
        self._order: list[int] = []

    def matching(self, start: bytes, end: bytes | None, low: int, high: int) -> Sequence[int]:
        """Return where from *low* up to *high* keys of a range are, ascending."""
        events = self.events
        if not self.sealed or high - low < _SCAN:
            return [
                i
                for i in range(low, high)
                if start <= events[i][2] and (end is None or events[i][2] < end)
            ]
        if not self._keys:
            keys = [event[2] for event in events]
            self._order = sorted(range(len(keys)), key=keys.__getitem__)
            self._keys = sorted(keys)
        first = bisect_left(self._keys, start)
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        return sorted(i for i in self._order[first:last] if low <= i < high)


class View(NamedTuple):
    """The history at one moment. Events are numbered through; *end* is behind the last one."""

    blocks: tuple[_Block, ...]
    end: int
    floor: int
    revision: int

    @property
    def first(self) -> int:
        return self.blocks[0].first

    @property
    def middle(self) -> int:
        """A revision after which there is about half of what the history holds."""
        if len(self.blocks) < _BLOCKS // 2:  # far from being full
            return self.floor
        return self.blocks[len(self.blocks) // 2].events[0][0]

    def find(self, position: Position) -> int | None:
        """Return the number of the first event at a position after the floor.

        None if it isn't known yet which one that will be.
        """
        revision, skip = position
        if revision > self.revision:
            return self.end if position == (self.revision + 1, 0) else None
        for block in self._blocks_from(revision, lambda block: block.events[-1][0]):
            first = bisect_left(block.events, revision, key=revision_of)
            last = bisect_right(block.events, revision, first, key=revision_of)
            return block.first + min(first + skip, last)
        return self.end

    def since(self, at: int) -> Iterator[tuple[list[Change], int]]:
        """Yield the place of each event from number *at* on."""
        for block in self._blocks_from(at + 1, lambda block: block.first + len(block.events)):
            events = block.events
            stop = min(len(events), self.end - block.first)
            for i in range(max(at - block.first, 0), stop):
                yield events, i

    def matching(
        self, start: bytes, end: bytes | None, at: int, stop: int
    ) -> Iterator[tuple[int, list[Change], int]]:
        """Yield number and place of each event of a range of keys, from *at* up to *stop*."""
        for block in self._blocks_from(at + 1, lambda block: block.first + len(block.events)):
            first = block.first
            high = min(len(block.events), stop - first)
            for i in block.matching(start, end, max(at - first, 0), high):
                yield first + i, block.events, i

    def _blocks_from(self, wanted: int, last: Callable[[_Block], int]) -> tuple[_Block, ...]:
        """Return the blocks without those whose *last* is less than what is *wanted*."""
        if not self.blocks[-1].events:  # the only one that may be empty is alone
            return ()
        return self.blocks[bisect_left(self.blocks, wanted, key=last) :]


class History:
    """The latest events, as many as fit.

    It is bounded by *max_events* and *max_bytes*, of which each event takes 200, its key and its
    values; what was appended last in one call stays in any case. ``floor`` is the revision behind
    which it is complete (1), ``revision`` the last one appended. It begins empty, at revision 0.
    ``wants_previous`` asks the writer for the value before of each change; see
    :meth:`want_previous`.
    """

    def __init__(self, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._block_events = min(_BLOCK_EVENTS, max(1, max_events // _BLOCKS))
        self._block_bytes = max_bytes // _BLOCKS
        self._lock = threading.Lock()  # held for microseconds; the last of all to be taken
        self._blocks = deque([_Block(0)])
        self._events = 0
        self._bytes = 0
        self._rings: dict[Callable[[], None], None] = {}
        self.wants_previous = False
        self.floor = 0
        self.revision = 0

    @property
    def events(self) -> int:
        """How many events there are."""
        return self._events

    @property
    def bytes(self) -> int:
        """How much memory they are taken to need."""
        return self._bytes

    def want_previous(self) -> None:
        """Ask for the value before of each change from now on, and for good. Any thread."""
        self.wants_previous = True

    def extend(self, events: Sequence[Change], revision: int) -> None:
        """Append what the entries up to *revision* did, which are behind all before. The writer."""
        assert revision >= self.revision
        if not events:
            self.revision = revision
            return
        assert self.revision < events[0][0]
        assert events[-1][0] <= revision
        size = len(events) * _EVENT_BYTES + sum([len(e[2]) + len(e[3]) for e in events])
        if self.wants_previous:
            size += sum([len(e[5]) for e in events if len(e) > 5 and e[5] is not None])
        with self._lock:
            block = self._blocks[-1]
            if len(block.events) >= self._block_events or block.size >= self._block_bytes:
                block = self._begin_block(block)
            block.events += events
            block.size += size
            self._events += len(events)
            self._bytes += size
            while self._events > self._max_events or self._bytes > self._max_bytes:
                if len(self._blocks) == 1:
                    break
                self._drop()
            self.revision = revision
        self._wake()

    def reset(self, revision: int) -> None:
        """Forget everything: the state is that of *revision* now, from a snapshot. The writer.

        All watches end, and all polls are answered.
        """
        with self._lock:
            last = self._blocks[-1]
            # One number is left out, so that not even who has seen everything goes on from there.
            self._blocks = deque([_Block(last.first + len(last.events) + 1)])
            self._events = self._bytes = 0
            self.floor = self.revision = revision
        self._wake()

    def view(self) -> View:
        """Return what there is, to be read at leisure."""
        with self._lock:
            blocks = tuple(self._blocks)
            last = blocks[-1]
            return View(blocks, last.first + len(last.events), self.floor, self.revision)

    def end(self) -> int:
        """Return the number of the event that will be the next."""
        with self._lock:
            last = self._blocks[-1]
            return last.first + len(last.events)

    def call_once(self, ring: Callable[[], None]) -> None:
        """Let the writer call *ring* when it next changes something; it must be quick. One that is
        waiting already is called once."""
        with self._lock:
            self._rings[ring] = None

    # -- private ---------------------------------------------------------------------------------

    def _begin_block(self, block: _Block) -> _Block:
        block.sealed = True
        block = _Block(block.first + len(block.events))
        self._blocks.append(block)
        return block

    def _drop(self) -> None:
        block = self._blocks.popleft()
        self._events -= len(block.events)
        self._bytes -= block.size
        self.floor = block.events[-1][0]

    def _wake(self) -> None:
        if self._rings:
            with self._lock:
                rings, self._rings = self._rings, {}
            for ring in rings:
                ring()
