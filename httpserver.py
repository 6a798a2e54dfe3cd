"""HTTP/1.1 on ``ThreadingHTTPServer``, with every connection resting in one thread's selector.

The server class accepts connections as the standard library's does. What it does not do is start a
thread for each of them: ``process_request`` hands the connection to the *reactor*, one thread with
one epoll object. The module knows no route: an :class:`Application` gets the requests.

A round of the reactor::

    wait -> read all that are readable -> hand over every complete request (Application.handle)
         -> Application.flush: the reads of the round, then its writes, as one batch
         -> one send per connection: answers to a pipelined run leave together

The life of a connection:

============= ==================================================================================
``READING``   requests are parsed as their bytes come
``HELD``      a complete request waits until earlier ones are answered, or until answers are sent
``FINISHED``  no further request is taken: the client or an error ended it; answers still go out
``LINGERING`` all is sent and our side is shut; input is thrown away so that the client can read
``CLOSED``    the socket is gone; answers that still come are dropped
============= ==================================================================================

Duties, cited by number in code and tests:

H1  Answers leave a connection in the order of its requests.
H2  A request is handed over only while all unanswered ones of its connection are of its own safety
    class (RFC 9110 section 9.2.1): a run of PUTs is one batch, and a GET behind a PUT sees it.
H3  How the bytes of a connection were split on their way never changes an answer.
H4  An error of one connection ends that connection only; an error of the application is a 500.
H5  What a client may make us keep or wait for is bounded by :class:`Limits`.
H6  A request whose end is not beyond doubt (RFC 9112 section 6.3) is refused and the connection
    closed; nothing behind it is read as a request.

Threads: ``Application`` is called in the reactor thread only. ``Request.respond`` and ``fail`` may
be called from any thread. Accepting runs in the thread of ``serve_forever``. Counters may be read
from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import get_ident
from time import perf_counter, sleep
from typing import Any, Final, Protocol

from errors import BadRequest, ConureError, Unavailable

__all__ = [
    "Application",
    "HTTPServer",
    "Headers",
    "Limits",
    "Request",
    "decode_form",
    "error_body",
]

log = logging.getLogger("conure.http")

TEXT: Final = "text/plain; charset=utf-8"
PROBLEM: Final = "application/problem+json"

READING, HELD, FINISHED, LINGERING, CLOSED = range(5)

_READ_SIZE = 64 << 10
_OUTPUT_HIGH = 1 << 20  # with more than this unsent, no further request of a connection is taken
_ROUND = 2048  # requests of a round, about; so many again of those that had to wait
_FIRST_RUN = 16  # reads of a new connection that are taken before the first one is answered
_LONG_ANSWER = 16 << 10  # bytes of a body; longer ones are counted before their turn comes, too
_LINGER_TIME = 2.0  # seconds
_LINGER_BYTES = 16 << 20
_TICK = 1.0  # seconds between two looks at the deadlines
_DRAIN_TICK = 0.02  # seconds between two looks at what is left while draining
_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has no file descriptor left
_SPARE_CONNECTIONS = 64  # over the limit, kept only for as long as it takes to tell them so
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_MAX_FIELDS = 100
_MAX_PARAMETERS = 100
_LINE_EXTRA = 64  # bytes of a request line besides the target: method, spaces, version
_LONGEST_METHOD = 32  # bytes; RFC 9110 knows none beyond 9
_MAX_CHUNK_LINE = 4096
_MAX_EXTENSIONS = 16 << 10  # bytes of chunk extensions in one body
_KNOWN_HEADS = 1024
_KNOWN_HEAD_BYTES = 2048
_KNOWN_PATHS = 256
_KNOWN_PATH_BYTES = 256
_KNOWN_STARTS = 1024

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_CLOSE, _KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
_RETRY = b"Retry-After: 1\r\n"

_TOKEN_BYTES = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_FIELD_PATTERN = rb"[" + _TOKEN_BYTES + rb"]+:[\t -~\x80-\xff]*\r\n"
_is_token = re.compile(rb"[" + _TOKEN_BYTES + rb"]+").fullmatch
_is_field = re.compile(_FIELD_PATTERN).fullmatch
_are_fields = re.compile(rb"(?:" + _FIELD_PATTERN + rb")*").fullmatch
_is_host = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]*").fullmatch
_is_absolute = re.compile(rb"(?i:https?)://[^/@]+(/.*)?").fullmatch
_is_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t -~\x80-\xff]*)?)\r\n").fullmatch
_token_octets = frozenset(c for c in range(256) if _is_token(bytes([c])))

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_SAFE = {"GET", "HEAD", "OPTIONS", "TRACE"}
_METHODS = {
    name.encode(): (name, name in _SAFE)
    for name in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "POST", "DELETE", "PATCH")
}
_OCTETS = {
    (high + low).encode(): bytes([int(high + low, 16)])
    for high in "0123456789abcdefABCDEF"
    for low in "0123456789abcdefABCDEF"
}


class Application(Protocol):
    """What the server asks of whoever answers the requests. Reactor thread only."""

    def handle(self, request: Request) -> None:
        """Take a request; it must not block. Answer it now, in :meth:`flush`, or later."""

    def flush(self) -> bool:
        """Finish what the requests of a round began; called after the last of them.

        True asks for another call, before which the answers given so far are sent: a client can
        read while the next part keeps this thread busy.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for (H5). Sizes are in bytes, times in seconds."""

    max_target_bytes: int = 64 << 10  # 414
    max_header_bytes: int = 32 << 10  # 431, the whole header block; so are more than 100 fields
    max_body_bytes: int = 1 << 20  # 413
    max_connections: int = 10_000  # 503
    max_arriving_bytes: int = 256 << 20  # of all unfinished bodies together: 503
    max_leaving_bytes: int = 256 << 20  # of all unsent answers together: 503 to long reads
    max_pipelined: int = 128  # unanswered requests of one connection; the next ones wait
    request_timeout: float = 30.0  # from a request's first byte to its last: 408
    idle_timeout: float = 120.0  # between two requests
    write_timeout: float = 30.0  # for a client that reads nothing


class Headers:
    """The header fields of a request: names in any case, values as they were sent."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a field's value (ISO 8859-1); fields of the same name are joined by commas."""
        return self._fields.get(name.lower(), default)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields


class Request:
    """A complete request, and the way to answer it.

    ``path`` is percent-decoded text. ``query`` is the raw bytes behind the ``?``; see
    :meth:`parameters`. ``started`` is ``time.perf_counter()`` of the round that took it up.
    """

    __slots__ = ("_answer", "_connection", "_head", "body", "method", "path", "query", "started")

    def __init__(
        self,
        connection: _Connection,
        head: _Head,
        method: str,
        path: str,
        query: bytes,
        body: bytes,
        started: float,
    ) -> None:
        self._connection = connection
        self._head = head
        self._answer: _Answer | None = None
        self.method = method
        self.path = path
        self.query = query
        self.body = body
        self.started = started

    @property
    def headers(self) -> Headers:
        return self._head.headers

    @property
    def http_version(self) -> str:
        """``"1.0"`` or ``"1.1"``."""
        return self._head.version

    @property
    def peer(self) -> str:
        """The client's address and port, for a log."""
        host, port = self._connection.peer[:2]
        host = host.removeprefix("::ffff:")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def parameters(self) -> dict[bytes, bytes]:
        """Return the parameters of the query; see :func:`decode_form`. Raises BadRequest."""
        return decode_form(self.query)

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = TEXT,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Answer the request, once. Any thread; never blocks.

        In the reactor thread the answer leaves at the end of the round; from another thread it is
        handed over, with one wake-up for a burst. An answer to a client that went away is dropped.
        Raises ValueError for a line end in one of *headers*.
        """
        connection = self._connection
        answer = (status, body, content_type, _render_fields(headers) if headers else b"")
        if get_ident() == connection.reactor.ident:
            connection.answer(self, answer)
        else:
            connection.reactor.hand_over(self, answer)

    def fail(
        self,
        error: ConureError | int,
        message: str = "",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Answer with an error: one of ours, or a status and a line for the user. Any thread."""
        accept = self._head.headers.get("accept")
        if isinstance(error, int):
            body, content_type = error_body(error, message, accept)
            self.respond(error, body, content_type, headers)
            return
        if isinstance(error, Unavailable):
            headers = (*headers, ("Retry-After", str(error.retry_after)))
        body, content_type = error_body(error.status, message or str(error), accept, error.title)
        self.respond(error.status, body, content_type, headers)


def error_body(
    status: int, message: str, accept: str | None = None, title: str | None = None
) -> tuple[bytes, str]:
    """Return an error's body and content type.

    One line of text; a problem document (RFC 9457) where *accept* names JSON. *title* defaults to
    the status's own phrase.
    """
    message = " ".join(message.split())
    if not _accepts_json(accept):
        return message.encode(errors="backslashreplace") + b"\n", TEXT
    title = title or _PHRASES.get(status, "error")
    problem = {"type": "about:blank", "title": title, "status": status, "detail": message}
    return json.dumps(problem).encode() + b"\n", PROBLEM


def decode_form(form: bytes) -> dict[bytes, bytes]:
    """Decode ``name=value&name=value`` as HTML forms write it: ``+`` is a space, ``%XX`` an octet.

    Names and values are bytes, any bytes. A name without ``=`` has the empty value. Any thread.
    Raises BadRequest for a ``%`` that two hexadecimal digits don't follow, for a name given twice
    and for more than 100 parameters: to guess would be to store or read the wrong key.
    """
    parameters: dict[bytes, bytes] = {}
    if not form:
        return parameters
    pairs = form.split(b"&", _MAX_PARAMETERS)
    if len(pairs) > _MAX_PARAMETERS:
        raise BadRequest(f"more than {_MAX_PARAMETERS} parameters; send fewer")
    coded = b"%" in form or b"+" in form
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        if coded:
            name = _unquote(name.replace(b"+", b" "))
            value = _unquote(value.replace(b"+", b" "))
        if name in parameters:
            raise BadRequest(f"the parameter {_show(name)} is given twice; give it once")
        if pair:
            parameters[name] = value
    return parameters


class HTTPServer(ThreadingHTTPServer):
    """The server: accepts, and keeps the reactor.

    *on_fatal* is told, in the thread concerned, when the reactor or the accepting thread ended by
    an exception: the server is dead then, and the process should end. Raises OSError where
    *address* can't be bound; an empty host means every address, IPv6 and IPv4.
    """

    request_queue_size = 4096
    allow_reuse_address = True
    allow_reuse_port = False  # or a second server would bind the same port and share its clients

    def __init__(
        self,
        address: tuple[str, int],
        application: Application,
        limits: Limits | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._on_fatal = on_fatal
        self._accepting = False
        self._out_of_descriptors = False
        host, port = address
        if not host and socket.has_dualstack_ipv6():
            host = "::"
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host.strip("[]"), port), BaseHTTPRequestHandler)
        self.socket.setblocking(False)
        self._reactor = _Reactor(application, limits or Limits(), self._fatal)
        self.connections_accepted = 0

    @property
    def port(self) -> int:
        """The port that is bound: the one asked for, or the system's choice for 0."""
        return int(self.server_address[1])

    @property
    def connections_open(self) -> int:
        return len(self._reactor.connections)

    @property
    def requests(self) -> int:
        """How many requests were handed to the application."""
        return self._reactor.requests

    @property
    def refused(self) -> dict[int, int]:
        """How many requests or connections the server itself refused, by HTTP status."""
        return dict(self._reactor.refused)

    @property
    def bytes_in(self) -> int:
        return self._reactor.bytes_in

    @property
    def bytes_out(self) -> int:
        return self._reactor.bytes_out

    def start(self) -> None:
        """Serve in threads of the server's own; returns at once."""
        self._accepting = True
        threading.Thread(target=self._accept_forever, name="http-accept", daemon=True).start()

    def watch(self, sock: socket.socket, action: Callable[[], None]) -> None:
        """Let the reactor call *action* whenever a socket that isn't a client's has input.

        What is answered in there leaves at the end of the same round, and no other thread has to
        be woken for it. *action* takes some of the input; it neither waits nor raises: that would
        end the reactor. It may be called once more than there is input. Any thread. Raises OSError.
        """
        with contextlib.suppress(ValueError):  # the reactor has ended: nobody reads any more
            self._reactor.epoll.register(sock.fileno(), _IN)
        self._reactor.watched[sock.fileno()] = action

    def unwatch(self, sock: socket.socket) -> None:
        """Undo :meth:`watch`, before the socket is closed. Any thread."""
        del self._reactor.watched[sock.fileno()]
        with contextlib.suppress(OSError, ValueError):  # the reactor has ended
            self._reactor.epoll.unregister(sock.fileno())

    def call_soon(self, action: Callable[[], None]) -> None:
        """Let the reactor call *action* at the end of its next round, which follows at once: when
        what is answered by now has been sent, and what clients have asked meanwhile is taken.

        *action* neither waits nor raises. The reactor's own thread only.
        """
        assert get_ident() == self._reactor.ident
        self._reactor.soon.append(action)

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        """Serve, accepting in this thread, until another thread calls :meth:`drain`."""
        self._accepting = True
        self._reactor.start()
        super().serve_forever(poll_interval)

    def drain(self, timeout: float) -> bool:
        """Stop: accept nothing more, finish what is in flight, close everything.

        Answers carry ``Connection: close``; idle connections are closed at once. After *timeout*
        seconds the rest is cut off. Returns whether nothing had to be. Not from the thread of
        :meth:`serve_forever`, nor from the application.
        """
        if self._accepting:
            self.shutdown()
            with contextlib.suppress(OSError):  # what the system has accepted for us is in flight
                for _ in range(self.request_queue_size):
                    self.process_request(*self.get_request())
        self.server_close()
        return self._reactor.drain(timeout)

    # -- what socketserver calls; the accepting thread ------------------------------------------

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            only6 = int(self.server_address[0] != "::")
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
        TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for our name, and may hang

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            accepted = self.socket.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                if not self._out_of_descriptors:
                    log.warning("can't accept connections for now: %s", error.strerror)
                self._out_of_descriptors = True
                sleep(_ACCEPT_PAUSE)  # the backlog stays readable: don't spin on it
            raise
        self._out_of_descriptors = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections_accepted += 1
        request.setblocking(False)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reactor.adopt(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.warning("a connection was lost before its first request", exc_info=True)

    # -- private --------------------------------------------------------------------------------

    def _accept_forever(self) -> None:
        try:
            self.serve_forever()
        except BaseException as error:
            log.critical("the accepting thread ended", exc_info=True)
            self._fatal(error)

    def _fatal(self, error: BaseException) -> None:
        if self._on_fatal is not None:
            self._on_fatal(error)


# -- private: what is known of a request before its body -----------------------------------------

_Answer = tuple[int, bytes, str, bytes]  # status, body, content type, further header lines


class _Refusal(Exception):
    """A request that can't be taken; the connection ends with the answer (H6)."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.method = "GET"


class _Head:
    """What a request's version and header block say. Shared by all requests with the same one."""

    __slots__ = (
        "chunked",
        "close",
        "connection",
        "expects",
        "headers",
        "length",
        "plain",
        "version",
    )

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self.headers = headers
        self.chunked = False
        self.length = 0
        options = _elements(headers.get("connection", ""))
        self.close = "close" in options or (version == "1.0" and "keep-alive" not in options)
        self.connection = _CLOSE if self.close else _KEEP_ALIVE if version == "1.0" else b""
        self.expects = version == "1.1" and "expect" in headers
        self.plain = False  # whether the request ends with its head and the connection goes on


def _parse_head(tail: bytes, limits: Limits) -> _Head:
    """Parse a head from its version on: ``HTTP/1.1 CRLF fields CRLF``. Raises _Refusal."""
    version, _, block = tail.partition(b"\r\n")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version):
            raise _Refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0 only")
        raise _Refusal(400, "malformed request line; it is METHOD SP TARGET SP HTTP/1.1")
    headers = Headers(_parse_fields(block[:-2]))
    head = _Head(version[5:].decode(), headers)
    host = headers.get("host")
    if host is None and head.version == "1.1":
        raise _Refusal(400, "the Host header field is missing")
    if host is not None and not _is_host(host):
        raise _Refusal(400, "malformed Host header field")
    _frame(head, limits)
    if head.expects and _elements(headers.get("expect", "")) != {"100-continue"}:
        raise _Refusal(417, "the only expectation this server meets is 100-continue", headers)
    head.plain = not (head.chunked or head.length or head.close)
    return head


def _parse_fields(block: bytes) -> dict[str, str]:
    """Parse header fields, each with its line end (RFC 9112 section 5). Raises _Refusal."""
    if block.count(b"\r\n") > _MAX_FIELDS:
        raise _Refusal(431, f"more than {_MAX_FIELDS} header fields")
    if not _are_fields(block):
        raise _Refusal(400, _what_is_wrong(block))
    fields: dict[str, str] = {}
    for line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in fields:
            if name == "host":
                raise _Refusal(400, "more than one Host header field")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    return fields


def _what_is_wrong(block: bytes) -> str:
    for line in block.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return "a header field is folded over two lines; put it on one"
        if not _is_field(line + b"\r\n"):
            name, colon, _ = line.partition(b":")
            if not colon:
                return "a header field without a colon"
            if name[-1:] in (b" ", b"\t"):
                return "white space before the colon of a header field"
            break
    return "a character in a header field that isn't allowed there"


def _frame(head: _Head, limits: Limits) -> None:
    """Find out where the body ends (RFC 9112 section 6.3). Raises _Refusal (H6)."""
    headers = head.headers
    length = headers.get("content-length")
    codings = headers.get("transfer-encoding")
    if codings is not None:
        if length is not None:
            raise _Refusal(400, "both Content-Length and Transfer-Encoding; send one of them")
        if head.version == "1.0":
            raise _Refusal(400, "Transfer-Encoding in an HTTP/1.0 request")
        if codings.lower() != "chunked":
            if _elements(codings) - {"chunked", ""}:
                raise _Refusal(
                    501, "the only transfer coding this server knows is chunked", headers
                )
            raise _Refusal(400, "malformed Transfer-Encoding header field")
        head.chunked = True
    elif length is not None:
        if not (length.isascii() and length.isdigit()):
            raise _Refusal(400, "malformed Content-Length header field, or more than one")
        digits = length.lstrip("0")
        if len(digits) > 18 or int(digits or "0") > limits.max_body_bytes:
            raise _too_large(limits, headers)
        head.length = int(digits or "0")


def _too_large(limits: Limits, headers: Headers) -> _Refusal:
    return _Refusal(413, f"the body is over the limit of {limits.max_body_bytes} bytes", headers)


def _check_extent(data: bytes, position: int, end: int, limits: Limits) -> None:
    """Refuse a head that is too long or has a bare line feed; *end* < 0: as far as it has come.

    Looks at the same bytes in the same order whether the head is complete or not (H3).
    """
    longest = limits.max_target_bytes + _LINE_EXTRA
    if data[position] not in _token_octets:
        raise _Refusal(400, "this isn't HTTP: a request begins with its method")
    line_end = data.find(b"\n", position, position + longest + 2)
    if line_end < 0:
        if len(data) - position >= longest + 2:
            raise _target_too_long(limits)
        return
    if data[line_end - 1] != 13:
        raise _Refusal(400, "a line that ends in a bare LF; lines end in CRLF")
    block = line_end + 1
    stop = block + limits.max_header_bytes + 2
    _refuse_bare_line_feed(data, block, stop if end < 0 else min(stop, end))
    if (len(data) if end < 0 else end + 3) >= stop:
        raise _Refusal(431, f"the header is over the limit of {limits.max_header_bytes} bytes")


def _refuse_bare_line_feed(data: bytes, start: int, stop: int) -> None:
    if data.count(b"\n", start, stop) != data.count(b"\r\n", start, stop):
        raise _Refusal(400, "a line that ends in a bare LF; lines end in CRLF")


def _target_too_long(limits: Limits) -> _Refusal:
    return _Refusal(414, f"the request target is over the limit of {limits.max_target_bytes} bytes")


def _elements(value: str | None) -> set[str]:
    """Return the elements of a comma-separated list, in lower case."""
    return {element.strip(" \t") for element in (value or "").lower().split(",")}


def _accepts_json(accept: str | None) -> bool:
    for element in _elements(accept):
        kind, _, parameters = element.replace(" ", "").partition(";")
        if kind in ("application/json", PROBLEM) and not re.search(r"(^|;)q=0(\.0*)?$", parameters):
            return True
    return False


def _unquote(coded: bytes) -> bytes:
    first, *rest = coded.split(b"%")
    try:
        return first + b"".join([_OCTETS[part[:2]] + part[2:] for part in rest])
    except KeyError:
        raise BadRequest("a % that two hexadecimal digits don't follow; write % as %25") from None


def _show(name: bytes) -> str:
    shown = repr(name[:100].decode("utf-8", "backslashreplace"))
    return shown if len(name) <= 100 else f"{shown}…"


_NO_HEAD = _Head("1.0", Headers({}))


# -- private: bodies -----------------------------------------------------------------------------


class _SizedBody:
    """Gathers a body whose length is known."""

    __slots__ = ("content", "done", "missing", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.content = bytearray()
        self.missing = request._head.length
        self.done = False

    def feed(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return the position behind it."""
        piece = data[position : position + self.missing]
        self.content += piece
        self.missing -= len(piece)
        self.done = self.missing == 0
        return position + len(piece)


class _ChunkedBody:
    """Decodes a chunked body (RFC 9112 section 7.1); extensions and trailers are thrown away."""

    __slots__ = ("_extensions", "_left", "_limits", "_state", "content", "done", "request")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request = request
        self.content = bytearray()
        self.done = False
        self._limits = limits
        self._state = self._SIZE
        self._left = 0
        self._extensions = 0

    def feed(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return the position behind what could be used.

        Raises _Refusal.
        """
        while not self.done:
            if self._state == self._SIZE:
                following = self._read_size(data, position)
            elif self._state == self._DATA:
                piece = data[position : position + self._left]
                self.content += piece
                self._left -= len(piece)
                position += len(piece)
                if self._left:
                    return position
                self._state = self._DATA_END
                continue
            elif self._state == self._DATA_END:
                following = self._read_data_end(data, position)
            else:
                following = self._read_trailer(data, position)
            if following == position:
                return position
            position = following
        return position

    def _read_size(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position, position + _MAX_CHUNK_LINE) + 1
        if not end:
            if len(data) - position >= _MAX_CHUNK_LINE:
                raise _Refusal(400, "a chunk's first line is too long")
            return position
        match = _is_chunk_line(data, position, end)
        if not match:
            raise _Refusal(400, "malformed chunk size")
        self._extensions += len(match[2])
        if self._extensions > _MAX_EXTENSIONS:
            raise _Refusal(400, "too many chunk extensions")
        self._left = int(match[1], 16)
        if len(self.content) + self._left > self._limits.max_body_bytes:
            raise _too_large(self._limits, self.request.headers)
        self._state = self._DATA if self._left else self._TRAILER
        return end

    def _read_data_end(self, data: bytes, position: int) -> int:
        mark = data[position : position + 2]
        if len(mark) < 2:
            return position
        if mark != b"\r\n":
            raise _Refusal(400, "a chunk that is longer than its size says")
        self._state = self._SIZE
        return position + 2

    def _read_trailer(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        most = position + self._limits.max_header_bytes
        end = data.find(b"\r\n\r\n", position, most)
        _refuse_bare_line_feed(data, position, end if end >= 0 else most)
        if end < 0:
            if len(data) >= most:
                raise _Refusal(431, "the trailer section is too long")
            return position
        _parse_fields(data[position : end + 2])
        self.done = True
        return end + 4


_Body = _SizedBody | _ChunkedBody


# -- private: a connection -----------------------------------------------------------------------


class _Connection:
    """One client's bytes and unanswered requests. Reactor thread only, once it is adopted."""

    __slots__ = (
        "begun",
        "body",
        "buffer",
        "descriptor",
        "discarded",
        "ended",
        "interest",
        "more",
        "out",
        "parked",
        "peer",
        "pending",
        "reactor",
        "receive_bytes",
        "run",
        "safe",
        "send_bytes",
        "socket",
        "state",
        "touched",
        "waiting",
    )

    def __init__(self, reactor: _Reactor, connected: socket.socket, peer: Any) -> None:
        self.reactor = reactor
        self.socket = connected
        self.descriptor = connected.fileno()
        self.receive_bytes = connected.recv
        self.send_bytes = connected.send
        self.peer = peer
        self.state = READING
        self.ended = False  # the client sent its last byte
        self.interest = _IN
        self.buffer = b""  # received, not parsed
        self.body: _Body | None = None  # of the request that is arriving
        self.waiting: deque[Request] = deque()  # unanswered, or answered before their turn (H1)
        self.safe = True  # the safety class of those (H2)
        self.run = _FIRST_RUN  # how many reads may be among them
        self.more = False  # while draining: a request is being handed over and more bytes follow
        self.out: list[bytes | memoryview] = []
        self.pending = 0  # bytes in out
        self.parked = 0  # bytes of long answers before their turn
        self.touched = self.begun = perf_counter()  # last progress; first byte of a request
        self.discarded = 0

    # -- input

    def receive(self) -> None:
        """Read once and hand over what is complete. Raises OSError."""
        if self.state != READING:
            self._receive_out_of_turn()
            return
        data = self.receive_bytes(_READ_SIZE)
        if not data:
            self.ended = True
            self._finish_soon()
            return
        reactor = self.reactor
        reactor.bytes_in += len(data)
        if not self.out:  # to send is no excuse for not reading
            self.touched = reactor.now
        self.advance(self.buffer + data if self.buffer else data)

    def react(self, event: int) -> None:
        """Do what an event other than plain readability asks for. Raises OSError."""
        if event & _OUT:
            self.reactor.dirty.append(self)
        if event & _IN:
            self.receive()
        elif not event & _OUT:  # an error or the end of both directions, while nothing is read
            self.receive_bytes(1)  # raises BlockingIOError if it is an older connection's
            self.close()

    def resume(self) -> None:
        """Take up the requests that had to wait; more reads at a time while answers are short."""
        self.run = max(1, min(2 * self.run, self.reactor.limits.max_pipelined))
        if self.state == HELD:
            self.advance(self.buffer)

    def advance(self, data: bytes) -> None:
        """Hand over every complete request in *data*, as far as their order allows (H2)."""
        reactor = self.reactor
        self.state = READING
        position = 0
        try:
            position = self._hand_over_all(data)
        except _Refusal as refusal:
            self.refuse(refusal)
        self.more = False
        if self.state >= FINISHED:
            self.buffer = b""
            self._drop_body()
            return
        if self.body is None and (position or not self.buffer):
            self.begun = reactor.now
        self.buffer = data[position:]
        if self.state == READING and not self.interest & _IN:
            self.watch(self.interest | _IN)

    def refuse(self, refusal: _Refusal) -> None:
        """Answer with an error of the server's own, in its turn (H1); take nothing more (H6)."""
        reactor = self.reactor
        reactor.count_refusal(refusal.status)
        self.state = FINISHED
        accept = refusal.headers.get("accept") if refusal.headers else None
        body, content_type = error_body(refusal.status, str(refusal), accept)
        request = Request(self, _NO_HEAD, refusal.method, "", b"", b"", reactor.now)
        self.waiting.append(request)
        fields = _RETRY if refusal.status == 503 else b""
        self.answer(request, (refusal.status, body, content_type, fields))

    # -- output

    def answer(self, request: Request, answer: _Answer) -> None:
        """Send an answer, and those behind it that waited for it, at the end of the round (H1)."""
        if request._answer is not None:
            log.error("%s %r was answered twice", request.method, request.path)
            return
        if len(answer[1]) > _LONG_ANSWER:
            answer = self._admit(request, answer)
        request._answer = answer
        waiting = self.waiting
        while waiting and (answer_in_turn := waiting[0]._answer) is not None:
            self._emit(waiting.popleft(), answer_in_turn)

    def put(self, data: bytes) -> None:
        """Send *data* at the end of the round."""
        if not self.out:
            self.reactor.dirty.append(self)
        self.out.append(data)
        size = len(data)
        self.pending += size
        self.reactor.leaving += size

    def send(self) -> None:
        """Send what the socket takes; the rest waits until it takes more. Raises OSError."""
        out = self.out
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        try:
            sent = self.send_bytes(data)
        except BlockingIOError:
            sent = 0
        reactor = self.reactor
        reactor.bytes_out += sent
        if sent < len(data):
            if sent or not self.interest & _OUT:
                self.touched = reactor.now
            self.out = [memoryview(data)[sent:]]
            reactor.leaving += len(data) - sent - self.pending
            self.pending = len(data) - sent
            self.watch(self.interest | _OUT)
            return
        out.clear()
        reactor.leaving -= self.pending
        self.pending = 0
        if self.interest & _OUT:
            self.watch(self.interest & ~_OUT)
        if self.state and not self.waiting:
            if self.state == HELD:
                reactor.resumed.append(self)
            elif self.state == FINISHED:
                self._finish()

    # -- time and the end

    def check_deadlines(self) -> None:
        """Refuse, or close, what took too long (H5). Raises OSError."""
        limits = self.reactor.limits
        idle = self.reactor.now - self.touched
        if self.state == LINGERING:
            if idle > _LINGER_TIME:
                self.close()
        elif self.out:
            if idle > limits.write_timeout:
                self.close()
        elif self.waiting:
            # Time that the application takes isn't the client's.
            self.touched = self.begun = self.reactor.now
        elif self.buffer or self.body is not None:
            if self.reactor.now - self.begun > limits.request_timeout:
                self.buffer = b""
                self._drop_body()
                self.refuse(_Refusal(408, "the request took too long to arrive"))
        elif idle > limits.idle_timeout:
            self.close()

    def close_if_idle(self) -> None:
        if not (self.buffer or self.body or self.waiting or self.out) and self.state == READING:
            self.close()

    def turn_away(self, answer: bytes) -> None:
        """Begin as a connection that only gets *answer*. Accepting thread, before adoption."""
        self.state = FINISHED
        self.out.append(answer)
        self.interest = _OUT

    def watch(self, interest: int) -> None:
        """Change what the socket is watched for. Raises OSError."""
        if interest != self.interest:
            self.interest = interest
            self.reactor.epoll.modify(self.descriptor, interest)

    def close(self) -> None:
        """Let go of the socket; what is unanswered or unsent is dropped."""
        if self.state != CLOSED:
            self.state = CLOSED
            self._drop_body()
            self.waiting.clear()
            self.out.clear()
            self.reactor.leaving -= self.pending + self.parked
            del self.reactor.connections[self.descriptor]  # before the number can be used again
            self.socket.close()

    # -- private

    def _hand_over_all(self, data: bytes) -> int:
        """Return the position behind the last byte that was used. Raises _Refusal."""
        reactor = self.reactor
        waiting = self.waiting
        position = 0
        size = len(data)
        while position < size and self.state == READING:
            if self.body is not None:
                position = self._feed(self.body, data, position)
                if not self.body.done:
                    break
                self._complete(self.body, position < size)
                continue
            end = data.find(b"\r\n\r\n", position)
            if end < 0 or data[position] == 13:
                following = self._look_at_beginning(data, position, end)
                if following == position:
                    break
                position = following
                continue
            end += 4
            try:
                method, target, tail = data[position:end].split(b" ", 2)
                name, safe = _METHODS[method]
                head = reactor.heads[tail]
            except (ValueError, KeyError):
                name, safe, target, head = reactor.parse(data, position, end)
            if not reactor.is_target(target):
                reactor.parse(data, position, end)  # raises, with the words for what is wrong
            if (waiting and self._must_wait(safe, head)) or (self.pending and self._must_send()):
                self.state = HELD
                break
            path, _, query = target.partition(b"?")
            text = reactor.paths.get(path) or reactor.resolve(name, path)
            request = Request(self, head, name, text, query, b"", reactor.now)
            self.safe = safe
            if head.plain:
                position = end
            else:
                following = end + head.length
                if following > size or head.chunked or (head.expects and head.length):
                    self._begin_body(request, bool(position))
                    position = end
                    continue
                request.body = data[end:following]
                position = following
            self._hand_over(request, position < size)
        return position

    def _hand_over(self, request: Request, more: bool) -> None:
        reactor = self.reactor
        if reactor.draining:
            self.more = more
        if request._head.close:
            self.state = FINISHED
        self.waiting.append(request)
        reactor.requests += 1
        try:
            reactor.handle(request)
        except Exception:
            log.exception("%s %r failed", request.method, request.path)
            if request._answer is None:
                request.fail(500, "internal error; the log of this node has more")

    def _begin_body(self, request: Request, moved_on: bool) -> None:
        head = request._head
        limits = self.reactor.limits
        self.body = _ChunkedBody(request, limits) if head.chunked else _SizedBody(request)
        if moved_on or not self.buffer:
            self.begun = self.reactor.now
        if head.expects:
            self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _feed(self, body: _Body, data: bytes, position: int) -> int:
        """Give the body its next bytes, unless those of all connections are too many (H5)."""
        reactor = self.reactor
        before = len(body.content)
        try:
            position = body.feed(data, position)
        finally:
            reactor.arriving += len(body.content) - before
        if reactor.arriving > reactor.limits.max_arriving_bytes:
            raise _Refusal(503, "too much is being sent at once; try again shortly")
        return position

    def _drop_body(self) -> None:
        if self.body is not None:
            self.reactor.arriving -= len(self.body.content)
            self.body = None

    def _complete(self, body: _Body, more: bool) -> None:
        self._drop_body()
        request = body.request
        request.body = bytes(body.content)
        request.started = self.reactor.now
        self._hand_over(request, more)

    def _must_wait(self, safe: bool, head: _Head) -> bool:
        return (
            safe is not self.safe
            or head.expects  # its 100 (Continue) would overtake the answers before it (H1)
            or len(self.waiting) >= self.reactor.limits.max_pipelined
            or (safe and len(self.waiting) >= self.run)
        )

    def _must_send(self) -> bool:
        reactor = self.reactor
        return self.pending > _OUTPUT_HIGH or reactor.leaving > reactor.limits.max_leaving_bytes

    def _admit(self, request: Request, answer: _Answer) -> _Answer:
        """Count a long answer, or give another in its place if too much waits already (H5)."""
        reactor = self.reactor
        size = len(answer[1])
        if self.state == CLOSED:
            return answer
        if self.safe and reactor.leaving + size > reactor.limits.max_leaving_bytes:
            reactor.count_refusal(503)
            accept = request.headers.get("accept")
            message = "too much waits to be read by clients; try again shortly"
            return (503, *error_body(503, message, accept), _RETRY)
        self.parked += size
        reactor.leaving += size
        return answer

    def _look_at_beginning(self, data: bytes, position: int, end: int) -> int:
        """Skip an empty line (RFC 9112 section 2.2), or check a head that isn't complete."""
        if data[position] == 13:
            if data.startswith(b"\r\n", position):
                return position + 2
            if position + 1 == len(data):
                return position
        _check_extent(data, position, end, self.reactor.limits)
        return position

    def _emit(self, request: Request, answer: _Answer) -> None:
        reactor = self.reactor
        status, body, content_type, fields = answer
        start = reactor.starts.get((status, content_type, len(body)))
        if start is None:
            start = reactor.render_start(status, content_type, len(body))
        persistence = request._head.connection
        if reactor.draining and not (self.waiting or self.more) and self.state == READING:
            self.state = FINISHED
            persistence = _CLOSE
        if len(body) > _LONG_ANSWER:
            self.parked -= len(body)
            reactor.leaving -= len(body)
            self.run = 0  # one by one, until answers are short again
        if request.method == "HEAD":
            body = b""
        if fields or persistence:
            start = b"%b%b%b\r\n" % (start[:-2], fields, persistence)
        self.put(start + body)

    def _receive_out_of_turn(self) -> None:
        if self.state == LINGERING:
            data = self.receive_bytes(_READ_SIZE)
            self.discarded += len(data)
            if not data or self.discarded > _LINGER_BYTES:
                self.close()
        elif self.state == HELD and len(self.buffer) < _READ_SIZE:
            data = self.receive_bytes(_READ_SIZE)
            self.reactor.bytes_in += len(data)
            self.buffer += data
            if not data:  # the end; it is read again when what waits has been taken up
                self.watch(self.interest & ~_IN)
        else:
            self.watch(self.interest & ~_IN)

    def _finish_soon(self) -> None:
        """Take no further request; close once the answers are out."""
        self.state = FINISHED
        self.buffer = b""
        self._drop_body()
        if self.waiting or self.out:
            self.watch(self.interest & ~_IN)
        else:
            self._finish()

    def _finish(self) -> None:
        if self.ended:
            self.close()
            return
        self.socket.shutdown(socket.SHUT_WR)
        self.state = LINGERING
        self.touched = self.reactor.now
        self.watch(_IN)


# -- private: the reactor ------------------------------------------------------------------------


class _Reactor:
    """The thread in which every connection rests."""

    def __init__(
        self,
        application: Application,
        limits: Limits,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.handle = application.handle
        self.flush = application.flush
        self.limits = limits
        self.is_target = re.compile(rb"[!-~\x80-\xff]{1,%d}" % limits.max_target_bytes).fullmatch
        self.ident = 0
        self.now = perf_counter()
        self.draining = False
        self.connections: dict[int, _Connection] = {}
        self.dirty: list[_Connection] = []  # to be sent to at the end of the round
        self.resumed: list[_Connection] = []  # to be taken up again in the next round
        self.late: dict[int, int] = {}  # events that a round had no time for
        self.heads: dict[bytes, _Head] = {}  # clients repeat themselves: their heads, parsed
        self.paths: dict[bytes, str] = {}
        self.starts: dict[tuple[int, str, int], bytes] = {}  # of answers, rendered this second
        self.watched: dict[int, Callable[[], None]] = {}  # sockets of others: see HTTPServer.watch
        self.soon: list[Callable[[], None]] = []  # see HTTPServer.call_soon
        self.requests = self.bytes_in = self.bytes_out = 0
        self.arriving = 0  # bytes of unfinished bodies
        self.leaving = 0  # bytes of unsent answers
        self.refused: dict[int, int] = {}
        self.epoll = select.epoll()
        self._on_fatal = on_fatal
        self._answers: deque[tuple[Request, _Answer]] = deque()  # from other threads
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._woken = False
        self._next_tick = 0.0
        self._date = b""
        self._cut = False  # drain() ran out of time
        self._done = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.epoll.register(self._wakened.fileno(), _IN)

    # -- any thread

    def start(self) -> threading.Thread:
        """Start the thread, unless it was started before; return it."""
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="http-reactor", daemon=True)
                self._thread.start()
            return self._thread

    def hand_over(self, request: Request, answer: _Answer) -> None:
        """Bring an answer to the reactor, waking it unless that was done already."""
        self._answers.append((request, answer))
        if not self._woken:
            self._wake()

    def drain(self, timeout: float) -> bool:
        thread = self.start()
        self.draining = True
        self._wake()
        finished = self._done.wait(timeout)
        if not finished:
            self._cut = True
            self._wake()
        thread.join()
        return finished

    # -- the accepting thread

    def adopt(self, connected: socket.socket, peer: Any) -> None:
        """Take in a new connection, or turn it away. Raises OSError."""
        number = len(self.connections)
        limit = self.limits.max_connections
        if number >= limit + _SPARE_CONNECTIONS or self._done.is_set():
            self.count_refusal(503)
            connected.close()
            return
        connection = _Connection(self, connected, peer)
        if number >= limit:
            self.count_refusal(503)
            body, content_type = error_body(503, "too many connections; try again shortly")
            start = _render_start(503, content_type, len(body), self._date)
            connection.turn_away(b"%b%b%b\r\n%b" % (start[:-2], _RETRY, _CLOSE, body))
        descriptor = connection.descriptor
        self.connections[descriptor] = connection
        try:
            self.epoll.register(descriptor, connection.interest)
        except (OSError, ValueError):  # ValueError: the reactor has just ended
            del self.connections[descriptor]
            raise

    def count_refusal(self, status: int) -> None:
        self.refused[status] = self.refused.get(status, 0) + 1

    # -- the reactor thread: what connections ask for

    def parse(self, data: bytes, position: int, end: int) -> tuple[str, bool, bytes, _Head]:
        """Parse the head in data[position:end]: method, safety, target, header block.

        Raises _Refusal.
        """
        _check_extent(data, position, end - 4, self.limits)
        block = data[position:end]
        parts = block[: block.find(b"\r\n")].split(b" ")
        if len(parts) != 3 or not _is_token(parts[0]):
            raise _Refusal(400, "malformed request line; it is METHOD SP TARGET SP HTTP/1.1")
        method, target, _ = parts
        if len(method) > _LONGEST_METHOD:
            raise _Refusal(501, "this server knows no method with a name as long as this")
        name, safe = _METHODS.get(method) or (method.decode(), False)
        tail = block[len(method) + len(target) + 2 :]
        try:
            head = self.heads.get(tail) or self._learn(tail)
        except _Refusal as refusal:
            refusal.method = name
            raise
        if not self.is_target(target):
            if len(target) > self.limits.max_target_bytes:
                raise _target_too_long(self.limits)
            raise _Refusal(400, "malformed request target; write other characters as %XX")
        if name == "CONNECT":
            raise _Refusal(501, "this server is no proxy", head.headers)
        return name, safe, target, head

    def resolve(self, method: str, path: bytes) -> str:
        """Return the path of a target as text. Raises _Refusal."""
        if path == b"*" and method == "OPTIONS":
            return "*"
        plain = path
        if path[:1] != b"/":
            match = _is_absolute(path)
            if not match:
                raise _Refusal(400, "malformed request target; it begins with /")
            plain = match[1] or b"/"
        try:
            text = _unquote(plain).decode("utf-8", "replace")
        except BadRequest as error:
            raise _Refusal(400, str(error)) from error
        if len(path) <= _KNOWN_PATH_BYTES:
            if len(self.paths) >= _KNOWN_PATHS:
                self.paths.clear()
            self.paths[path] = text
        return text

    def render_start(self, status: int, content_type: str, length: int) -> bytes:
        """Render an answer's status line and header; good until the date changes."""
        start = _render_start(status, content_type, length, self._date)
        if len(self.starts) < _KNOWN_STARTS:
            self.starts[status, content_type, length] = start
        return start

    def round(self) -> bool:
        """Wait, then carry one round through; return whether there is to be another.

        Raises only what is no single connection's and no application's fault.
        """
        draining = self.draining
        soon, self.soon = self.soon, []
        at_once = self.resumed or soon
        events = self.epoll.poll(0 if at_once else _DRAIN_TICK if draining else _TICK)
        if self.late:
            events = [*{**self.late, **dict(events)}.items()]  # in the order of their coming
            self.late = {}
        self.now = perf_counter()
        requests = self.requests
        if self.now >= self._next_tick:
            self._tick()
        if self.resumed:
            self._resume()
        self._receive(events)
        if self.requests != requests:
            while self._flush():
                self._send()
        for action in soon:
            action()
        self._send()
        return not (draining and self._is_drained())

    # -- private

    def _learn(self, tail: bytes) -> _Head:
        head = _parse_head(tail, self.limits)
        if len(tail) <= _KNOWN_HEAD_BYTES:
            if len(self.heads) >= _KNOWN_HEADS:
                self.heads.clear()
            self.heads[tail] = head
        return head

    def _run(self) -> None:
        self.ident = get_ident()
        failure: BaseException | None = None
        try:
            while self.round():
                pass
        except BaseException as error:
            log.critical("the reactor ended", exc_info=True)
            failure = error
        finally:
            for connection in list(self.connections.values()):
                connection.close()
            self.epoll.close()
            self._waker.close()
            self._wakened.close()
            self._done.set()
        if failure is not None:
            self._on_fatal(failure)

    def _resume(self) -> None:
        last = self.requests + _ROUND
        resumed, self.resumed = self.resumed, []
        for number, connection in enumerate(resumed):
            if self.requests >= last:
                self.resumed = resumed[number:]
                return
            self._each((connection,), _Connection.resume)

    def _receive(self, events: list[tuple[int, int]]) -> None:
        connections = self.connections
        last = self.requests + _ROUND  # peers must not wait long for the next round
        for descriptor, event in events:
            connection = connections.get(descriptor)
            if connection is None:
                self.watched.get(descriptor, self._take_answers)()
                continue
            if self.requests >= last:
                self.late[descriptor] = event
                continue
            try:
                if event == _IN:
                    connection.receive()
                else:
                    connection.react(event)
            except BlockingIOError:
                continue  # readable no more: the event was an older connection's
            except OSError:
                connection.close()
            except Exception:
                log.exception("a connection failed")
                connection.close()

    def _each(
        self, connections: Iterable[_Connection], action: Callable[[_Connection], None]
    ) -> None:
        for connection in connections:
            try:
                action(connection)
            except OSError:
                connection.close()
            except Exception:
                log.exception("a connection failed")
                connection.close()

    def _send(self) -> None:
        if self.dirty:
            dirty, self.dirty = self.dirty, []
            self._each(dirty, _Connection.send)

    def _flush(self) -> bool:
        try:
            return self.flush()
        except Exception:
            log.exception("flushing a round failed")
            for connection in list(self.connections.values()):
                for request in list(connection.waiting):
                    if request.started == self.now and request._answer is None:
                        request.fail(500, "internal error; a write may or may not have happened")
            return False

    def _take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        self._woken = False
        answers = self._answers
        while answers:
            request, answer = answers.popleft()
            try:
                request._connection.answer(request, answer)
            except Exception:
                log.exception("an unusable answer to %s %r", request.method, request.path)
                request._connection.close()

    def _wake(self) -> None:
        self._woken = True
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody is left to wake
            self._waker.send(b"!")

    def _tick(self) -> None:
        self._next_tick = self.now + _TICK
        self._date = formatdate(usegmt=True).encode()
        self.starts.clear()
        self._each(list(self.connections.values()), _Connection.check_deadlines)

    def _is_drained(self) -> bool:
        if not self.late:
            for connection in list(self.connections.values()):
                connection.close_if_idle()
        return self._cut or not self.connections


def _render_start(status: int, content_type: str, length: int, date: bytes) -> bytes:
    line = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\nDate: {date.decode()}\r\n"
    return f"{line}Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


def _render_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    lines = []
    for name, value in fields:
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line end in the value of {name}")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1")
