"""One request and its answer on one connection, the body of an answer that lasts, and the pool.

Used by calls.py, which decides whom to ask and what to repeat, and by those who read a stream.
Nothing here knows more than one server, follows a redirect or tries a second time. A resting
connection is looked at before it is used again. One that the server has closed is dropped then,
while no byte is on its way.

A connection and a stream are for one thread at a time, but for ``Stream.cut``; the pool is for any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse
from ssl import SSLContext, SSLSession
from typing import Any, NamedTuple

from conure.client.model import understanding
from conure.clienttls import ClientTls
from conure.net.dialled import Dialled, name_to_check
from conure.tlswords import TLS_ALERT, is_refusal, why_failed
from conure.values import is_https, split_base_url

__all__ = [
    "Answer",
    "Connection",
    "ConnectionFailed",
    "Pool",
    "Request",
    "Stream",
    "describe",
    "pieces",
    "time_left",
]

_SILENCE = 15.0  # seconds without a byte of a stream; a watch hears something every 5 s
_READ_BYTES = 64 << 10


class Request(NamedTuple):
    """What is asked for, and what its repetition may and may not do."""

    method: str
    target: str
    body: bytes | None = None
    is_read: bool = False
    any_server: bool = False  # not only the leader can answer
    headers: Mapping[str, str] | None = None
    repeatable: bool = False  # a write that may be sent again even if it may have been done
    is_stream: bool = False
    wait: float = 0.0  # seconds that the server is asked to wait
    timeout: float | None = None  # the client's if None


@dataclass(slots=True)
class Answer:
    """What a server has said: *body*, or the stream that *opened* for it."""

    server: str
    status: int
    headers: Message
    body: bytes = b""
    opened: Stream | None = None

    @property
    def stream(self) -> Stream:
        """The body that is still to come, of a request that asked for a stream."""
        assert self.opened is not None
        return self.opened

    @property
    def revision(self) -> int:
        """The revision that the answer is about. Raises ConureError."""
        with understanding:
            return int(self.field("X-Conure-Index"))

    def field(self, name: str) -> str:
        """Return a field of the head, "" if there is none."""
        return self.headers.get(name) or ""


class ConnectionFailed(Exception):
    """There was no whole answer; *was_sent*: the server may have had the request; *is_refusal*:
    a certificate was no good, so the next attempt will fail as well."""

    def __init__(self, why: str, was_sent: bool, *, is_refusal: bool = False) -> None:
        super().__init__(why)
        self.was_sent = was_sent
        self.is_refusal = is_refusal


class Sessions:
    """What the next connection to each server may begin with, which spares half of a handshake.

    Any thread: each step is one of a dictionary.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[SSLContext, SSLSession]] = {}

    def of(self, server: str, context: SSLContext) -> SSLSession | None:
        """Return what fits a context, if there is anything."""
        known = self._known.get(server)
        return known[1] if known is not None and known[0] is context else None

    def keep(self, server: str, context: SSLContext, session: SSLSession | None) -> None:
        """Take note of the session of a connection on which an answer came."""
        if session is not None:
            self._known[server] = (context, session)


class Connection(HTTPConnection):
    """A connection that knows whether any byte of the current request has left.

    *tls* is what a server of https is asked by; nothing is sent to such a one before it has proved
    who it is.
    """

    was_sent = False
    sock: Any  # None, or a Dialled
    _parts: list[bytes]

    def __init__(self, server: str, tls: ClientTls | None, sessions: Sessions) -> None:
        host, port = split_base_url(server)
        super().__init__(host, port)
        self._server = server
        self._tls = tls
        self._sessions = sessions
        self._context: SSLContext | None = None

    def limit(self, seconds: float) -> None:
        """Let connecting, sending and the whole of an answer take so long from now."""
        self.timeout = max(seconds, 0.001)
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def connect(self) -> None:
        """Connect, within the limit, and shake hands within it once more."""
        assert self.timeout is not None
        self.sock = Dialled.connect(self.host, self.port, self.timeout)
        if not is_https(self._server):
            return
        assert self._tls is not None, "calls.py has it for servers of https"
        self._context = self._tls.context()
        session = self._sessions.of(self._server, self._context)
        self.sock.settimeout(self.timeout)
        name = self._tls.name or name_to_check(self.host)
        self.sock.secure(self._context, name, session)

    def open(self) -> None:
        """Connect unless that was done; no byte of the next request was sent. Raises OSError."""
        self.was_sent = False
        if self.sock is None:
            self.connect()

    def is_quiet(self) -> bool:
        """Whether the resting connection is open and nothing has come in unasked."""
        return not self.sock.has_input()

    def exchange(self, request: Request) -> Answer:
        """Send a request and read its answer, or the head of a stream.

        Raises OSError and HTTPException.
        """
        self._parts = []
        self.request(request.method, request.target, request.body, request.headers or {})
        data = b"".join(self._parts)  # the server meets head and body in one round
        try:
            count = self.sock.send(data)  # if this fails the server can act on nothing
            self.was_sent = True
            self.sock.sendall(memoryview(data)[count:])
        except (BrokenPipeError, ConnectionResetError):
            # A server may refuse a body while it is being sent; its reason can still be read.
            if not self.was_sent:
                raise
        connected = self.sock
        try:
            response = self.getresponse()
            answer = Answer(self._server, response.status, response.headers)
            if request.is_stream and response.status == 200:
                answer.opened = Stream(self, connected, response)
            else:
                answer.body = response.read()
        except (ValueError, OverflowError) as error:  # what the library can't take apart
            raise HTTPException("a malformed answer") from error
        except OSError as error:
            if is_refusal(error):  # by TLS 1.3 it comes after this side's end of the handshake
                self.was_sent = False
            raise
        if self._context is not None:
            self._sessions.keep(self._server, self._context, connected.session)
        return answer

    def send(self, data: Any) -> None:
        """Take what the base class would send; ``exchange`` sends it at once."""
        self._parts.append(data)


class Stream:
    """The body of an answer, as it comes. For one thread, but for ``cut``."""

    def __init__(self, connection: Connection, connected: Dialled, response: HTTPResponse) -> None:
        self._connection: Connection | None = connection
        self._socket = connected
        self._response = response

    def read(self) -> bytes:
        """Return what has come, at least a byte; b"" at the end. Raises ConnectionFailed."""
        self._socket.settimeout(_SILENCE)
        try:
            return self._response.read1(_READ_BYTES)
        except (OSError, HTTPException) as error:
            raise ConnectionFailed(describe(error), was_sent=True) from error
        except (ValueError, OverflowError) as error:  # what the library can't take apart
            raise ConnectionFailed("a malformed answer", was_sent=True) from error

    def cut(self) -> None:
        """Let whoever reads come to an end. Any thread."""
        self._socket.cut()

    def let_go(self) -> Connection | None:
        """Return the connection for another request, once and only if all was read."""
        if not self._response.isclosed():
            return None
        connection, self._connection = self._connection, None
        return connection

    def close(self) -> None:
        """End it, and the connection unless that was let go."""
        self._response.close()
        if self._connection is not None:
            self._connection.close()

    def __del__(self) -> None:
        self.close()  # an iterator that was dropped half-way


def pieces(stream: Stream, separator: bytes) -> Generator[bytes, None, None]:
    """Yield what is before each *separator*. Raises ConnectionFailed."""
    buffer = bytearray()
    for piece in iter(stream.read, b""):
        looked = max(len(buffer) - len(separator), 0)
        buffer += piece
        if buffer.find(separator, looked) >= 0:
            *whole, rest = bytes(buffer).split(separator)
            yield from whole
            buffer = bytearray(rest)


def time_left(deadline: float) -> float:
    """Return the seconds until a moment of the monotonic clock, 0 if it is over."""
    return max(deadline - time.monotonic(), 0.0)


def describe(error: OSError | HTTPException) -> str:
    """Return what went wrong with a connection, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BadStatusLine) and str(error).encode("latin-1").startswith(TLS_ALERT):
        return "it speaks TLS; write its address with https://"
    if tls := why_failed(error):
        return tls
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


class Pool:
    """The connections that rest until the next request, by server. Any thread.

    A request takes one out, or opens one if there is none, and puts it back, so there are as many
    as there were requests at one time. The lock is never held during input or output. *tls* is what
    servers of https are asked by; it is asked for when there is such a one.
    """

    def __init__(self, tls: Callable[[], ClientTls]) -> None:
        self._tls = tls
        self._sessions = Sessions()
        self._lock = threading.Lock()  # guards the next two
        self._resting: dict[str, list[Connection]] = {}
        self._closed = False

    def take(self, server: str) -> Connection:
        """Return a connection to *server*, which may be still to be opened."""
        while True:
            with self._lock:
                resting = self._resting.get(server)
                if not resting:
                    break
                connection = resting.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return Connection(server, self._tls() if is_https(server) else None, self._sessions)

    def put_back(self, server: str, connection: Connection) -> None:
        """Let a connection rest whose answer was read to its end."""
        if connection.sock is None:  # the server asked for it to be closed
            return
        with self._lock:
            if not self._closed:
                self._resting.setdefault(server, []).append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what rests, and from now on what is put back."""
        with self._lock:
            self._closed = True
            resting, self._resting = self._resting, {}
        for connections in resting.values():
            for connection in connections:
                connection.close()
