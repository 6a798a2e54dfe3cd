"""One request and its answer on one connection, the body of an answer that lasts, and the pool.

Used by calls.py, which decides whom to ask and what to repeat, and by those who read a stream.
Nothing here knows more than one server, follows a redirect or tries a second time. A resting
connection is looked at before it is used again. One that the server has closed is dropped then,
while no byte is on its way.

A connection and a stream are for one thread at a time, but for ``Stream.cut``; the pool is for any.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, NamedTuple

from conure.client.model import understanding

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
    """There was no whole answer; *was_sent*: the server may have had the request."""

    def __init__(self, why: str, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent


class _Socket(socket.socket):
    """Waits for input up to one moment, in however many pieces it comes."""

    deadline = 0.0

    def recv_into(self, *args: Any, **named: Any) -> int:
        left = time_left(self.deadline)
        if not left:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*args, **named)


class Connection(HTTPConnection):
    """A connection that knows whether any byte of the current request has left."""

    was_sent = False
    sock: Any  # None, or a _Socket
    _parts: list[bytes]

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").rpartition(":")
        super().__init__(host.strip("[]"), int(port))
        self._server = server

    def limit(self, seconds: float) -> None:
        """Let connecting, sending and the whole of an answer take so long from now."""
        self.timeout = max(seconds, 0.001)
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
            self.sock.deadline = time.monotonic() + self.timeout

    def connect(self) -> None:
        """Connect as the base class does, and bound the waits for input."""
        super().connect()
        plain = self.sock
        self.sock = _Socket(plain.family, plain.type, plain.proto, plain.detach())

    def open(self) -> None:
        """Connect unless that was done; no byte of the next request was sent. Raises OSError."""
        self.was_sent = False
        if self.sock is None:
            self.connect()  # sets TCP_NODELAY

    def is_quiet(self) -> bool:
        """Whether the resting connection is open and nothing has come in unasked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, request: Request) -> Answer:
        """Send a request and read its answer, or the head of a stream.

        Raises OSError and HTTPException.
        """
        self._parts = []
        self.request(request.method, request.target, request.body, request.headers or {})
        data = b"".join(self._parts)  # the server meets head and body in one round
        try:
            count = self.sock.send(data)  # if this fails the kernel has taken nothing
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
        return answer

    def send(self, data: Any) -> None:
        """Take what the base class would send; ``exchange`` sends it at once."""
        self._parts.append(data)


class Stream:
    """The body of an answer, as it comes. For one thread, but for ``cut``."""

    def __init__(self, connection: Connection, connected: _Socket, response: HTTPResponse) -> None:
        self._connection: Connection | None = connection
        self._socket = connected
        self._response = response

    def read(self) -> bytes:
        """Return what has come, at least a byte; b"" at the end. Raises ConnectionFailed."""
        self._socket.deadline = time.monotonic() + _SILENCE
        try:
            return self._response.read1(_READ_BYTES)
        except (OSError, HTTPException) as error:
            raise ConnectionFailed(describe(error), was_sent=True) from error
        except (ValueError, OverflowError) as error:  # what the library can't take apart
            raise ConnectionFailed("a malformed answer", was_sent=True) from error

    def cut(self) -> None:
        """Let whoever reads come to an end. Any thread."""
        with contextlib.suppress(OSError):  # the other side has gone
            self._socket.shutdown(socket.SHUT_RDWR)

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
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


class Pool:
    """The connections that rest until the next request, by server. Any thread.

    A request takes one out, or opens one if there is none, and puts it back, so there are as many
    as there were requests at one time. The lock is never held during input or output.
    """

    def __init__(self) -> None:
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
        return Connection(server)

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
