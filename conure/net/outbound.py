"""The one way in which a server asks another server by HTTP.

A :class:`Line` connects, sends a request that somebody has encoded, and reads the answer whole. All
of that is bounded: connecting in time, the exchange by a deadline however slowly the bytes come,
the answer in its length, and in all the bytes that it takes. A server at a base URL of https is
asked by TLS, by the context that is handed in. What is asked, and what a failure
means, is for the caller: joining.py asks the seeds.
The client library (client/) has a way of its own: it reads answers without a length, and runs where
there is no server.

No redirect is followed here, nothing is sent twice, and nothing of an answer is understood but its
framing.

Threads: a line belongs to one thread; only :meth:`Line.cut` is for others.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from http.client import HTTPException, HTTPResponse
from time import monotonic
from typing import Any, NamedTuple

from conure.net.dialled import Dialled, name_to_check
from conure.values import authority_of, is_https, split_base_url

__all__ = ["Answer", "Line", "MalformedAnswer", "encode_request"]


_BESIDE = 1 << 20  # bytes that an answer may take beside its body: head, trailer


class MalformedAnswer(HTTPException):
    """An answer that can't be taken apart."""


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str, default: str) -> str:
        """Return the first value of a header field, whose name is in small letters."""
        return next((value for each, value in self.headers if each.lower() == name), default)


def encode_request(
    method: str, server: str, target: bytes, fields: Iterable[tuple[str, str]], body: bytes
) -> bytes:
    """Return a request for the server at a base URL, with a length whatever its method is."""
    head = f"Host: {authority_of(server)}\r\n"
    for name, value in fields:
        head += f"{name}: {value}\r\n"
    return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
        method.encode(),
        target,
        head.encode("latin-1", "replace"),  # an address may be any text
        len(body),
        body,
    )


class Line:
    """Asks one server at a time, over a connection for each request. Connecting takes
    *connect_timeout* seconds at most, and a handshake as long again.

    *tls* returns what a server is asked by whose base URL is one of https, as of now.
    """

    def __init__(
        self, *, connect_timeout: float, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._connection: _Connection | None = None
        self._is_cut = False

    def exchange(
        self,
        server: str,
        message: bytes,
        deadline: float,
        *,
        most: int,
        silence: float = math.inf,
        may_cut_short: bool = False,
    ) -> Answer:
        """Send a request to the server at a base URL and return its answer.

        *deadline* is a moment of ``monotonic``, *silence* how many seconds may pass without a byte.
        A body of more than *most* bytes is an error; if one *may_cut_short*, the rest is left
        unread. An interim answer is an error too. Raises OSError, among them TimeoutError and
        ``ssl.SSLError``, and HTTPException, among them MalformedAnswer.
        """
        connection = self._connect(server, deadline)
        connection.deadline, connection.silence = deadline, silence
        connection.room = 2 * most + _BESIDE  # chunks may be so small that half of it is sizes
        try:
            _send(connection, message)
            with closing(HTTPResponse(connection)) as response:  # type: ignore[arg-type]
                return _read(response, most, may_cut_short)
        finally:
            self._connection = None
            connection.close()

    def cut(self) -> None:
        """End what is under way, and let nothing begin. Any thread."""
        self._is_cut = True
        connection = self._connection
        if connection is not None:
            connection.cut()

    def _connect(self, server: str, deadline: float) -> _Connection:
        try:
            host, port = split_base_url(server)
        except ValueError as error:
            raise OSError("there can be no such address") from error
        if is_https(server) and self._tls is None:
            raise OSError("it is asked by TLS, and this node was told nothing of that")
        connection = _Connection.connect(host, port, self._connect_timeout)
        self._connection = connection
        try:
            if self._is_cut:  # looked at after the connection can be seen by cut()
                raise ConnectionAbortedError("this node is stopping; ask another server")
            if is_https(server) and self._tls is not None:
                connection.deadline = min(monotonic() + self._connect_timeout, deadline)
                connection.secure(self._tls(), name_to_check(host))
        except BaseException:
            self._connection = None
            connection.close()
            raise
        return connection


class _Connection(Dialled):
    """A connection on which so many bytes may come.

    A chunk whose size is -1 has everything that comes, to the standard library.
    """

    room = math.inf

    def recv_into(self, buffer: Any) -> int:
        size = super().recv_into(buffer)
        self.room -= size
        if self.room < 0:
            raise HTTPException("an answer of impossible length")
        return size


def _send(connection: _Connection, message: bytes) -> None:
    count = connection.send(message)
    if count < len(message):
        # A server may refuse a body while it is being sent; its reason can still be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(memoryview(message)[count:])


def _read(response: HTTPResponse, most: int, may_cut_short: bool) -> Answer:
    try:
        response.begin()
        if response.status < 200:
            raise HTTPException("an interim answer")
        if (response.length or 0) > most and not may_cut_short:
            raise HTTPException("an answer of impossible length")
        # Without a limit only if there is a length: what is cut short is noticed that way.
        size = most if may_cut_short else most + 1 if response.length is None else None
        body = response.read(size)
    except (OSError, HTTPException):
        raise
    except Exception as error:  # what the library says of odd sizes and parameters has many types
        raise MalformedAnswer("an answer that can't be taken apart") from error
    if len(body) > most:
        raise HTTPException("an answer of impossible length")
    return Answer(response.status, response.getheaders(), body)
