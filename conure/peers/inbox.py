"""The messages that one connection brings: bytes in, whole messages out, none after an error.

No message is handed over whose sender is another than the node that was admitted, or whose receiver
is not this one, and each is stamped with the incarnation of that node's greeting (duty 2 of
transport.py). The file neither opens nor closes a connection, and nothing here waits: a thread of
the connection's own, or the one that serves the clients, calls when there is input.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from conure.consensus.messages import Message
from conure.consensus.records import FRAME_HEADER_BYTES, take_frames
from conure.errors import WireError
from conure.metrics import Counter
from conure.net.link import Link
from conure.peers.frames import decode_message
from conure.peers.guests import SMALL_FRAME, is_stalled
from conure.peers.protocol import Greeting
from conure.peers.sockets import READ_BYTES

__all__ = ["Inbox"]


class Inbox:
    """What comes in from one node that has dialled this one, *peer*, over *link*.

    *receive* is given the messages of each read, *expect* the size of a frame that is too large for
    its room to be taken for granted (Guests.expect, which may raise WireError). Whoever finds input
    calls :meth:`take`: the connection's own thread, or the registrar's while that one waits for the
    end. ``has_ended`` may be set by any thread, and nothing is handed over after that; ``error``,
    raised by the connection's thread, says why if it wasn't the other side's will.
    """

    def __init__(
        self,
        link: Link,
        peer: Greeting,
        own_id: str,
        receive: Callable[[Sequence[Message]], None],
        received: Counter,
        expect: Callable[[int], None],
    ) -> None:
        self.has_ended: Final = threading.Event()
        self.error: Exception | None = None
        self._receive = receive
        self._link = link
        self._peer = peer
        self._own_id = own_id
        self._received = received
        self._buffer = bytearray()
        self._space = memoryview(bytearray(READ_BYTES))
        self._needed = FRAME_HEADER_BYTES
        self._begun = 0.0  # when the frame that is not complete did
        self._expect = expect

    def take(self) -> None:
        """Read what has come, and hand over the messages that are complete; nothing after an error.

        What the link keeps and no socket announces is taken as well.
        """
        link = self._link
        self._take()
        while link.pending and not self.has_ended.is_set():
            self._take()

    def end_if_stalled(self) -> None:
        """End the connection if the frame that has begun doesn't go on. The connection's thread."""
        received = len(self._buffer)
        if received and is_stalled(monotonic() - self._begun, received):
            self.error = self.error or WireError("a frame that has begun and does not go on")
            self.has_ended.set()

    # -- private ---------------------------------------------------------------------------------

    def _take(self) -> None:
        """Read once."""
        if self.has_ended.is_set():  # a registrar may call once more
            return
        try:
            size = self._link.receive_into(self._space)
            if not size:
                self.has_ended.set()
            self._received.inc(size)
            if not self._buffer:
                self._begun = monotonic()
            self._buffer += self._space[:size]
            if len(self._buffer) >= self._needed:
                before = self._needed
                messages, self._needed = take_frames(self._buffer, decode_message)
                if messages:
                    self._begun = monotonic()
                for message in messages:
                    message.incarnation = self._peer.incarnation
                    if message.sender != self._peer.node_id or message.to != self._own_id:
                        whose = f"from {message.sender!r} to {message.to!r}"
                        raise WireError(f"a message {whose}")  # (2)
                if messages:
                    self._receive(messages)
                if self._needed != before and max(self._needed, before) > SMALL_FRAME:
                    self._expect(self._needed)
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again by the connection's thread
            self.error = error
            self.has_ended.set()
