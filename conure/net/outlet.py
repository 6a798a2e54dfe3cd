"""The output of a connection: bytes that wait for the socket, and the events that it is told of.

An :class:`Outlet` is the part of a connection that sends. It keeps pieces of bytes until the socket
takes them, and counts them with those of all connections (``Reactor.leaving``): what is put here
is counted, and what has left, or is dropped with the connection, no more. A few short pieces are
sent as one; many bytes are sent as the pieces that they are, without copying them together.

Which bytes, and in which order, is for the connection to say. Nothing here knows a protocol, and
nothing here closes a link. The reactor's thread only, once the connection is adopted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import perf_counter
from typing import Final, cast

from conure.net.link import Link
from conure.net.reactor import IN, OUT, SENT_TOGETHER, Reactor

__all__ = ["Outlet"]

_MOST_PIECES: Final = 64  # of a send that copies nothing
_OUTPUT_HIGH: Final = 1 << 20  # bytes; who has more of them unsent is given nothing more to do


class Outlet(ABC):
    """What a connection has to send, and hears of its socket."""

    __slots__ = (
        "descriptor",
        "interest",
        "link",
        "out",
        "pending",
        "reactor",
        "receive_bytes",
        "send_bytes",
        "touched",
    )

    def __init__(self, reactor: Reactor, link: Link) -> None:
        self.reactor = reactor
        self.link = link
        self.descriptor = link.descriptor
        self.receive_bytes = link.receive
        self.send_bytes = link.send
        self.interest = IN
        self.out: list[bytes | memoryview] = []
        self.pending = 0  # bytes in out
        self.touched = perf_counter()  # last progress, of either direction

    # -- what the reactor calls ------------------------------------------------------------------

    def react(self, event: int) -> None:
        """Do what an event other than plain readability asks for. Raises OSError."""
        if event & OUT:
            self.reactor.dirty.append(self)
        if event & IN:
            self.receive()
        elif not event & OUT:  # an error or the end of both directions, while nothing is read
            self.receive_bytes(1)  # raises BlockingIOError if it is an older connection's
            self.close()

    def send(self) -> None:
        """Send what the socket takes; the rest waits until it takes more. Raises OSError."""
        out = self.out
        if not out:
            return
        reactor = self.reactor
        size = self.pending
        if size > SENT_TOGETHER:
            sent, is_full = self._send_pieces()
        else:
            if len(out) > 1:
                out[:] = (b"".join(out),)
            is_full = True
            try:
                sent = self.send_bytes(out[0])
            except BlockingIOError:
                sent = 0
        reactor.bytes_out += sent
        if sent < size:
            self._keep_rest(sent, is_full=is_full)
        else:
            out.clear()
            reactor.leaving -= size
            self.pending = 0
            if self.interest & OUT:
                self.listen_for(self.interest & ~OUT)
        self.after_send()

    # -- what a connection does ------------------------------------------------------------------

    @abstractmethod
    def receive(self) -> None:
        """Read once; see ``reactor.Connection``."""

    @abstractmethod
    def check_deadlines(self) -> None:
        """Refuse, or close, what took too long; see ``reactor.Connection``."""

    @abstractmethod
    def resume(self) -> None:
        """Take up what had to wait; see ``reactor.Connection``."""

    @abstractmethod
    def feed(self) -> None:
        """Take the next piece of a source; see ``reactor.Connection``."""

    @abstractmethod
    def blocked_since(self) -> float | None:
        """Tell since when a source's bytes wait; see ``reactor.Connection``."""

    @abstractmethod
    def drop(self) -> None:
        """Close because the client takes nothing."""

    @abstractmethod
    def close_if_idle(self) -> None:
        """Close if nothing is under way."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the link; see ``reactor.Connection``."""

    @abstractmethod
    def after_send(self) -> None:
        """Go on after the socket has taken :attr:`out` as far as it does. Raises OSError."""

    # -- what it calls ---------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Send *data* at the end of the round."""
        if not self.out:
            self.reactor.dirty.append(self)
        self.out.append(data)
        size = len(data)
        self.pending += size
        self.reactor.leaving += size

    def put_all(self, pieces: Sequence[bytes]) -> None:
        """Send pieces likewise."""
        if not self.out:
            self.reactor.dirty.append(self)
        self.out += pieces
        size = sum(map(len, pieces))
        self.pending += size
        self.reactor.leaving += size

    def drop_output(self) -> None:
        """Forget what is unsent: the connection is closing."""
        self.reactor.leaving -= self.pending
        self.pending = 0
        self.out.clear()

    def must_send(self) -> bool:
        """Tell whether so much waits for clients, or for this one, that it is given no more."""
        reactor = self.reactor
        return self.pending > _OUTPUT_HIGH or reactor.leaving > reactor.bounds.max_leaving_bytes

    def listen_for(self, interest: int) -> None:
        """Change the events that the connection is told of. Raises OSError."""
        if interest != self.interest:
            self.interest = interest
            self.reactor.change_interest(self)

    # -- private ---------------------------------------------------------------------------------

    def _send_pieces(self) -> tuple[int, bool]:
        """Give the first pieces to the socket; return how many bytes it took, and whether it takes
        no more."""
        pieces = self.out[:_MOST_PIECES]
        try:
            sent = self.link.send_pieces(pieces)
        except BlockingIOError:
            return 0, True
        return sent, sent < sum(map(len, pieces))

    def _keep_rest(self, sent: int, *, is_full: bool) -> None:
        """Keep what the socket didn't take, until it takes more, or *is_full* is false and the next
        round sends it."""
        reactor = self.reactor
        if sent or not self.interest & OUT:
            self.touched = reactor.now
        self._drop_sent(sent)
        if is_full:
            self.listen_for(self.interest | OUT)
        else:
            reactor.dirty.append(self)

    def _drop_sent(self, sent: int) -> None:
        """Forget bytes of the output that the socket took, fewer than there are."""
        self.pending -= sent
        self.reactor.leaving -= sent
        out = self.out
        gone = 0
        while sent >= len(out[gone]):
            sent -= len(out[gone])
            gone += 1
        del out[:gone]
        if sent:
            rest = memoryview(out[0])[sent:]
            # A view keeps all its bytes, those that have left too, and only the rest is counted.
            out[0] = bytes(rest) if len(rest) * 2 < len(cast("bytes", rest.obj)) else rest
