"""The calls that one connection brings, and the answers that go back over it.

Whoever dials asks and whoever accepts answers, in any order; each answer names its call. What a
node that lies can ask for is bounded here, before anybody looks at a call: numbers rise, so many
calls and bytes of them are under way at most, and answers that are not read end the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from conure.errors import WireError
from conure.metrics import Counter
from conure.net.link import Link
from conure.peers.calling import MAX_CALLS
from conure.peers.calls import Answer, Call, decode_call, encode_answer
from conure.peers.line import Line
from conure.peers.protocol import Greeting

__all__ = ["MAX_ASKED_BYTES", "Called", "Calls"]

MAX_ASKED_BYTES = 192 << 20
"""Bytes of the calls of one connection that are under way: one of the largest, and half as much."""


class Called(Protocol):
    """The part of the host that is asked by other nodes, for their clients."""

    def called(self, peer: Greeting, call: Call, answer: Callable[[Answer], None]) -> None:
        """Take a call of a node; *answer* is given each part of the answer, by any thread.

        The thread of the connection's reader calls. Raises WireError for a call that no node makes:
        that ends the connection.
        """


class Calls:
    """What comes in over *link* from *peer*, and what goes out. *expect* is told the size of each
    large frame (Guests.expect); *sent* and *received* count bytes."""

    def __init__(
        self,
        link: Link,
        peer: Greeting,
        host: Called,
        sent: Counter,
        received: Counter,
        expect: Callable[[int], None],
    ) -> None:
        self._peer = peer
        self._host = host
        self._lock = threading.Lock()  # guards the next two; no other lock is taken under it
        self._under_way: dict[int, int] = {}  # bytes, by number
        self._bytes = 0
        self._last = 0  # the greatest number so far
        self.line = Line(link, self._take, sent, received, expect)

    def _take(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            number, call = decode_call(payload)
            if number <= self._last:
                raise WireError(f"call {number} after call {self._last}")
            self._last = number
            with self._lock:
                self._bytes += len(payload)
                self._under_way[number] = len(payload)
                is_full = len(self._under_way) > MAX_CALLS or self._bytes > MAX_ASKED_BYTES
            if is_full:
                raise WireError("more calls at a time than anybody makes")
            self._host.called(self._peer, call, partial(self._answer, number))

    def _answer(self, number: int, answer: Answer) -> None:
        """Give a part of the answer to a call. Any thread."""
        if answer.is_last:
            with self._lock:
                self._bytes -= self._under_way.pop(number)
        self.line.send(encode_answer(number, answer))
