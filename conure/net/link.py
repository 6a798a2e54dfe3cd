"""A byte stream to whoever is connected: what a connection reads from and writes to.

A connection knows a :class:`Link` and not whether the bytes on the wire are encrypted.
:class:`PlainLink` is a socket and nothing else; tlslink.py has the one that encrypts. Nothing is
parsed here, and nothing ever waits. A link belongs to one thread, that of its connection; where two
threads share one, one of them may receive while the other sends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Protocol

from conure.net.sockets import reset_on_close

__all__ = ["Link", "PlainLink"]


class Link(Protocol):
    """Whatever its bytes are wrapped in, it behaves as a non-blocking socket.

    BlockingIOError means "not now", of either direction, and any other OSError that the link is
    broken. A link that has to read before it can write, or the other way round, keeps that to
    itself: ``ssl.SSLWantReadError`` is an OSError and no BlockingIOError, so it never leaves here.

    Bytes count as sent when what became of them has left for the socket. A link that took fewer
    than it was offered, or raised BlockingIOError, may have encrypted more of them: whoever sends
    again offers those same bytes first.
    """

    @property
    def pending(self) -> bool:
        """Whether bytes can be received that the socket, and so epoll, no longer announces."""

    @property
    def stalled(self) -> bool:
        """Whether bytes of the link's own, such as a handshake's, wait until the socket can be
        written: :meth:`flush` sends them, and so does the next call of any other method."""

    @property
    def deadline(self) -> float:
        """When, by ``perf_counter``, a handshake that isn't done is to be given up."""

    @property
    def principal(self) -> str:
        """Whom the other side's verified certificate names; empty if there is none."""

    @property
    def names(self) -> frozenset[str]:
        """All names of that certificate: DNS names and URIs; its common name if it has neither."""

    @property
    def proof(self) -> str:
        """How the other side has proved itself: ``certificate``, ``secret``, or empty: not."""

    @property
    def descriptor(self) -> int:
        """The socket's, for epoll; the same until the link is closed."""

    @property
    def receive(self) -> Callable[[int], bytes]:
        """Return at most so many bytes of what has come; none at the end of the stream.

        ConnectionResetError where the stream ended and the other side didn't say so, if the link
        can tell: what was cut off on its way is never taken for whole."""

    @property
    def receive_into(self) -> Callable[[bytearray | memoryview], int]:
        """Do as ``receive`` into a buffer; return how many bytes that was."""

    @property
    def send(self) -> Callable[[bytes | memoryview], int]:
        """Send what can be sent at once; return how many bytes that was."""

    def local_address(self) -> str:
        """Return the IP address of this machine that the link is to. Raises OSError."""

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Do as ``send`` with several pieces in a row, without copying them together."""

    def flush(self) -> None:
        """Send what is the link's own as far as that can be done at once. Raises OSError."""

    def shut(self) -> None:
        """Say that nothing more will be sent; it can still be received. Raises OSError."""

    def reset_on_close(self, *, resets: bool) -> None:
        """Say whether :meth:`close` shows as a broken connection. Raises OSError."""

    def close(self) -> None:
        """Let go of the socket."""


class PlainLink:
    """A TCP socket as it is, or another stream socket; it is made non-blocking before."""

    __slots__ = ("descriptor", "receive", "receive_into", "send", "socket")

    pending: Final = False
    stalled: Final = False
    deadline: Final = inf
    principal: Final = ""
    names: Final[frozenset[str]] = frozenset()
    proof: Final = ""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.descriptor = connected.fileno()
        # The socket's own methods: a call more for each request would be one too many.
        self.receive = connected.recv
        self.receive_into: Callable[[bytearray | memoryview], int] = connected.recv_into
        self.send = connected.send

    def local_address(self) -> str:
        return str(self.socket.getsockname()[0])

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.socket.sendmsg(pieces)

    def flush(self) -> None:
        """Return: a socket has nothing of its own to send."""

    def shut(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset_on_close(self, *, resets: bool) -> None:
        reset_on_close(self.socket, resets=resets)

    def close(self) -> None:
        self.socket.close()
