"""A connection to a server that is asked: plain or by TLS, and it waits, but never for long.

Whoever asks servers has one: the node (outbound.py), the client library, kvctl, the probe. It looks
like a socket to those who read answers, http.client among them, and differs in three ways:

1. Every wait ends at :attr:`Dialled.deadline`, in however many pieces the bytes come.
2. By TLS the end of the stream is one only if the server has said so (``close_notify``). Without
   that it is an OSError, so what was cut on its way is never taken for whole.
3. When :meth:`Dialled.send` fails, the server has got nothing that it could act on: what is sent by
   one call is one record at most, and a record that isn't whole can't be opened.

TLS is an ``ssl.SSLContext`` that is handed in: which CA, which certificate and whether names are
checked is decided where it was made (conure/clienttls.py, security/). Nothing here knows HTTP or
RESP, and nothing imports ``ssl`` for who asks without it.

A connection is for one thread, but for :meth:`Dialled.cut`.
"""

from __future__ import annotations

import errno
import io
import math
import select
import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

if TYPE_CHECKING:
    import ssl

__all__ = ["Dialled", "name_to_check"]

_RECORD: Final = 16 << 10  # bytes that one record of TLS has at most (RFC 8446 section 5.1)
_SSL_ERROR_EOF: Final = 8  # ssl.SSL_ERROR_EOF, the errno of an ssl.SSLEOFError


class Dialled:
    """A connected socket, to which :meth:`secure` adds TLS.

    ``deadline`` is a moment of ``monotonic`` at which every wait ends; ``silence`` bounds each wait
    for input besides, in seconds.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.deadline = 0.0
        self.silence = math.inf
        self._socket = connected
        self._is_sealed = False
        self._has_received = False
        self._readers = 0
        self._is_closed = False

    @classmethod
    def connect(cls, host: str, port: int, seconds: float) -> Self:
        """Connect by TCP to a bare host within so many seconds, for each address that it has.

        That is when the deadline is, too. Raises OSError.
        """
        try:
            connected = socket.create_connection((host, port), seconds)
        except (ValueError, OverflowError) as error:  # a name with an empty label, say
            raise OSError("there can be no such address") from error
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        dialled = cls(connected)
        dialled.deadline = monotonic() + seconds
        return dialled

    def secure(
        self, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
    ) -> None:
        """Begin TLS with a server that has to prove that it is *name*.

        *session* is one of this context by which the server may be spared a whole handshake.
        Raises OSError: an ``ssl.SSLError`` if the server can't prove it.
        """
        try:
            name.encode("idna")  # as ssl does, which would lose the socket
            sealed = context.wrap_socket(
                self._socket,
                server_hostname=name,
                do_handshake_on_connect=False,  # by then cut() has to know whom to cut
                suppress_ragged_eofs=False,
                session=session,
            )
        except ValueError as error:
            raise OSError(f"no server can be called {name!r}") from error
        self._socket, self._is_sealed = sealed, True
        self.limit()
        sealed.do_handshake()

    @property
    def is_sealed(self) -> bool:
        """Whether this is TLS."""
        return self._is_sealed

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the next connection to the same server may begin with."""
        session: ssl.SSLSession | None = getattr(self._socket, "session", None)
        return session

    def limit(self) -> None:
        """Let the next call wait until the deadline. Raises TimeoutError if it has passed."""
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)

    def settimeout(self, seconds: float) -> None:
        """Put the deadline so many seconds from now."""
        self.deadline = monotonic() + seconds

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def has_input(self) -> bool:
        """Tell whether something, or the end, could be received at once."""
        if self._is_sealed and self._socket.pending():  # type: ignore[attr-defined]
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def recv_into(self, buffer: Any) -> int:
        """Receive something; 0 at the end (2). Raises OSError, TimeoutError among them."""
        self._limit_input()
        size = self._socket.recv_into(buffer)
        self._has_received = True
        return size

    def recv(self, size: int) -> bytes:
        """Receive at most *size* bytes; none at the end (2). Raises as ``recv_into``."""
        self._limit_input()
        data = self._socket.recv(size)
        self._has_received = True
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send something, and return how much that was (3). Raises OSError."""
        self.limit()
        if not self._is_sealed:
            return self._socket.send(data)
        try:
            return self._socket.send(memoryview(data)[:_RECORD])
        except OSError as error:
            self._raise_reason(error)

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of it, within the deadline. Raises OSError."""
        self.limit()
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._raise_reason(error)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what reads from here; the socket stays open until that is closed, too."""
        assert mode == "rb"
        self._readers += 1
        return io.BufferedReader(_Incoming(self))

    def release(self) -> None:
        """Take note that one of those that read was closed."""
        self._readers -= 1
        self._end_if_done()

    def cut(self) -> None:
        """Let whoever waits here come to an end. Any thread."""
        with suppress(OSError):  # the other side has gone
            # ssl's own shutdown would let what comes next be read as it is on the wire.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket; by TLS the server is told, if that needs no wait."""
        self._is_closed = True
        self._end_if_done()

    def _limit_input(self) -> None:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(min(self.silence, left))

    def _raise_reason(self, error: OSError) -> NoReturn:
        """Raise why nothing can be sent: a server that has gone may have said it before.

        By TLS 1.3 it looks at this side's certificate after this side has begun to send.
        """
        if not self._is_sealed or error.errno != _SSL_ERROR_EOF:
            raise error
        try:
            if not self._has_received:
                self._socket.recv(1)
        except OSError as reason:
            if getattr(reason, "reason", None):
                raise
        raise BrokenPipeError(errno.EPIPE, "the server has closed the connection") from error

    def _end_if_done(self) -> None:
        if not self._is_closed or self._readers or self._socket.fileno() < 0:
            return
        if self._is_sealed:
            with suppress(OSError, ValueError):  # its own farewell is not waited for
                self._socket.settimeout(0)
                self._socket.unwrap()  # type: ignore[attr-defined]
        self._socket.close()


class _Incoming(io.RawIOBase):
    """What comes from a connection, as io.BufferedReader takes it."""

    def __init__(self, dialled: Dialled) -> None:
        self._dialled = dialled

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._dialled.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._dialled.release()


def name_to_check(host: str) -> str:
    """Return the name that a server at a bare host has to prove: without a dot at its end, and an
    IPv6 address without the interface."""
    return host.partition("%")[0].removesuffix(".")
