"""The last messages of a leader's term, by their numbers, and how far each listening node has got.

Messages are numbered from 1 on. The window keeps the last ones for those who will ask for them, up
to WINDOW_MESSAGES and WINDOW_BYTES. A node that has been given less than what the last half of the
window holds is *outrun*; if it has asked lately, it is worth waiting for.

messaging.py alone calls it, with the node's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from conure.peers.calls import MAX_MESSAGES, Message

__all__ = [
    "ANSWER_BYTES",
    "MESSAGE_BYTES",
    "PATIENCE",
    "WINDOW_BYTES",
    "WINDOW_MESSAGES",
    "Window",
    "size_of",
]

WINDOW_MESSAGES = 16_384
"""Messages that a leader keeps for those who will ask for them."""

WINDOW_BYTES = 16 << 20
"""Bytes of them, with MESSAGE_BYTES for each; the last one stays however long it is."""

MESSAGE_BYTES = 128
"""Bytes that a message counts for beside its own."""

ANSWER_BYTES = 1 << 20
"""Bytes of messages after which a call or an answer takes no more of them."""

PATIENCE = 1.0
"""Seconds since a node has asked, for which publishers wait for it."""


def size_of(message: Message) -> int:
    """Return how many bytes a message counts for."""
    return len(message[0]) + len(message[1]) + MESSAGE_BYTES


class Window:
    """The messages of one term. Holder of the node's lock."""

    def __init__(self) -> None:
        self.last = 0
        """The number of the last message."""
        self.bytes = 0
        """Bytes of the messages that are kept."""
        self._messages: deque[Message] = deque()
        self._half = 0  # what came after this number is half a window at most
        self._half_bytes = 0
        self._places: dict[str, tuple[int, float]] = {}  # by node: what it was given, and when

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: Sequence[Message]) -> None:
        """Number messages, and let those go that there is no room for any more."""
        kept = self._messages
        kept += messages
        size = sum(map(size_of, messages))
        self.last += len(messages)
        self.bytes += size
        self._half_bytes += size
        while 2 * (self.last - self._half) > WINDOW_MESSAGES or (
            2 * self._half_bytes > WINDOW_BYTES and self.last - self._half > 1
        ):
            self._half_bytes -= size_of(kept[self._half - self.last])
            self._half += 1
        while len(kept) > WINDOW_MESSAGES or (self.bytes > WINDOW_BYTES and len(kept) > 1):
            self.bytes -= size_of(kept.popleft())

    def after(self, number: int) -> list[Message] | None:
        """Return what comes after a number, as much as one answer takes; None if some of it is
        gone, or there never was such a number."""
        missing = self.last - number
        if not 0 <= missing <= len(self._messages):
            return None
        some: list[Message] = []
        size = 0
        for place in range(-missing, 0):
            if size >= ANSWER_BYTES or len(some) == MAX_MESSAGES:
                break
            some.append(self._messages[place])
            size += size_of(some[-1])
        return some

    def note_place(self, name: str, number: int, now: float) -> None:
        """Take note that a node has asked now, and has or is given all up to a number."""
        self._places[name] = number, now

    def forget_place(self, name: str) -> None:
        """Take note that a node has missed some."""
        self._places.pop(name, None)

    def is_outrun(self, now: float) -> bool:
        """Tell whether a node that has asked lately lacks more than half of a window."""
        return any(
            number < self._half and now - asked <= PATIENCE
            for number, asked in self._places.values()
        )
