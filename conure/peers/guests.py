"""Incoming connections of the Raft port: who may have one, and how many bytes may be on their way.

Before a handshake anybody may be at the other end, and after it somebody who is believed only
because this node is behind, or of no cluster yet. So members come first in both, and with them
whoever has proved itself (proving.py, P4):

1. Of ``MAX_INCOMING`` connections those who aren't members as the configuration has them have
   ``MAX_STRANGERS`` at most, handshakes among them. One more takes the place of the oldest one of
   the address that has most of them: who opens many pushes out its own.
2. Frames that are not complete take ``MAX_ARRIVING`` bytes over all connections, and those of
   strangers half of that: one of the largest. A frame of up to ``SMALL_FRAME`` bytes needs no
   room, a larger one takes it as a whole when its length is known, so that no two of them wait
   for each other half-way. A member that finds none ends the frames of strangers.
3. A frame that has begun has ``FRAME_TIME`` to be complete, and a second more for every
   ``SLOWEST`` bytes of it that have come.

Whoever calls a method of :class:`Guests` has the lock of accepting.py; nothing here waits.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from conure.consensus.records import MAX_FRAME_BYTES
from conure.errors import WireError

__all__ = ["MAX_INCOMING", "MAX_STRANGERS", "SMALL_FRAME", "Guests", "is_stalled"]

MAX_INCOMING: Final = 64
"""Incoming connections at a time."""

MAX_STRANGERS: Final = MAX_INCOMING // 4
"""Those of them that aren't members'."""

MAX_ARRIVING: Final = 2 * MAX_FRAME_BYTES
SMALL_FRAME: Final = 1 << 20
FRAME_TIME: Final = 10.0
SLOWEST: Final = 64 << 10


def is_stalled(seconds: float, received: int) -> bool:
    """Tell whether a frame has made too little progress since it began (3)."""
    return seconds > FRAME_TIME + received / SLOWEST


@dataclass(slots=True, eq=False)
class _Guest:
    source: str  # the address of its machine
    is_member: Callable[[], bool]
    arriving: int = 0
    is_leaving: bool = False  # it was ended; its thread has not noticed yet


class Guests:
    """All incoming connections, the oldest first."""

    def __init__(self) -> None:
        self._guests: dict[socket.socket, _Guest] = {}

    def sockets(self) -> Iterable[socket.socket]:
        """Return all of them."""
        return self._guests.keys()

    def enter(self, sock: socket.socket, source: str) -> tuple[bool, socket.socket | None]:
        """Take a new connection in, if there is room; also return one to be shut for it (1)."""
        guests = self._guests
        leaving = sum(guest.is_leaving for guest in guests.values())
        strangers = [
            (each, guest)
            for each, guest in guests.items()
            if not guest.is_leaving and not guest.is_member()
        ]
        is_full = len(guests) - leaving >= MAX_INCOMING
        oldest = None
        if strangers and (is_full or len(strangers) >= MAX_STRANGERS):
            crowd = Counter(guest.source for _, guest in strangers)
            most = max(crowd.values())
            oldest, guest = next(item for item in strangers if crowd[item[1].source] == most)
            guest.is_leaving = True
            is_full, leaving = False, leaving + 1
        if is_full or leaving > MAX_STRANGERS:
            return False, oldest
        guests[sock] = _Guest(source, is_member=_nobody)
        return True, oldest

    def recognise(self, sock: socket.socket, is_member: Callable[[], bool]) -> None:
        """Take note who it is; *is_member* may be asked at any time, with the lock held."""
        if sock in self._guests:
            self._guests[sock].is_member = is_member

    def leave(self, sock: socket.socket) -> None:
        """Forget a connection that has ended."""
        self._guests.pop(sock, None)

    @property
    def arriving(self) -> int:
        """How many bytes unfinished frames may take by now."""
        return sum(each.arriving for each in self._guests.values())

    def expect(self, sock: socket.socket, size: int) -> list[socket.socket]:
        """Make room for a frame of so many bytes, in place of the one before it (2).

        Returns connections to be shut for it. Raises WireError if there is no room.
        """
        guest = self._guests.get(sock)
        if guest is None:
            return []
        guest.arriving = 0
        if size <= SMALL_FRAME:
            return []
        taken = self.arriving
        strangers = [(s, g) for s, g in self._guests.items() if g.arriving and not g.is_member()]
        ended: list[socket.socket] = []
        if not guest.is_member():
            of_strangers = sum(each.arriving for _, each in strangers)
            fits = of_strangers + size <= MAX_ARRIVING // 2 + SMALL_FRAME
        else:
            fits = True
            for each, stranger in strangers:
                if taken + size > MAX_ARRIVING + SMALL_FRAME:
                    taken -= stranger.arriving
                    stranger.arriving, stranger.is_leaving = 0, True
                    ended.append(each)
        if not fits or taken + size > MAX_ARRIVING + SMALL_FRAME:
            raise WireError(f"a frame of {size} bytes, while too much else arrives: send it again")
        guest.arriving = size
        return ended


def _nobody() -> bool:
    return False
