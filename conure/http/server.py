"""HTTP/1.1 on ``ThreadingHTTPServer``, with every connection resting in one thread's selector.

The server class accepts connections as the standard library's does. What it does not do is start a
thread for each of them: ``process_request`` hands the connection to the *reactor*, one thread with
one epoll object. The module knows no route: an :class:`Application` gets the requests.

A round of the reactor::

    wait -> read all that are readable -> hand over every complete request (Application.handle)
         -> what takes turns (Request.go_on): a few milliseconds of it
         -> Application.flush: the reads of the round, then its writes, as one batch
         -> one send per connection: answers to a pipelined run leave together

Each part of a round is bounded in number, bytes or time, and the rest is left to the next round:
whatever clients send and ask for, the sockets of :meth:`HTTPServer.watch` are looked at again
within milliseconds.

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
H5  What a client may make us keep or wait for is bounded by :class:`Limits`; how many connections
    one may have, by places.py. A reserve answers probes when there is no other place.
H6  A request whose end is not beyond doubt (RFC 9112 section 6.3) is refused and the connection
    closed; nothing behind it is read as a request.
H7  A stream is complete or visibly cut: a reader that is too slow is dropped and misses nothing in
    the middle. Whoever feeds it is told when it is over, whatever ended it.
H8  Nothing is done for a browser under a name that isn't the server's, nor for a foreign web page:
    origins.py. It is judged once for each header block, and answered as the application would.

An answer without a length is a :class:`Stream`: chunks for HTTP/1.1, all up to the close for
HTTP/1.0. What is sent to it waits in the stream and moves into the connection's output only when
that is empty. A round feeds so many streams, and the next ones in the next round: a piece for
thousands of streams holds up nobody's request for longer than that.

Threads: ``Application`` is called in the reactor thread only. ``Request.respond``, ``fail``,
``stream`` and ``on_leave`` and all of ``Stream`` may be called from any thread. Accepting runs in
the thread of ``serve_forever``. Counters may be read from any thread. The reactor's ``lock`` guards
what several threads change: what was given to streams, and how many there are. It is held for a
few instructions, or for one loop over the streams of a broadcast; nobody else's code runs under it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from os import sched_yield
from socketserver import TCPServer
from threading import get_ident
from time import perf_counter, sleep
from typing import Any, Final, Protocol

from conure.errors import BadRequest, ConureError, TooManyRequests, Unavailable
from conure.http.origins import Access, Judgement
from conure.net.places import Places
from conure.values import Authority, parse_authority

__all__ = [
    "Application",
    "Body",
    "Fields",
    "HTTPServer",
    "Headers",
    "Limits",
    "Request",
    "RequestTarget",
    "Stream",
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
_ROUND_BYTES = 4 << 20  # of bodies that a round takes in, about; no fewer than one body
_ROUND_TIME = 0.006  # seconds of a round in which requests are taken; a quarter of it as above
_VISIT = 0.0005  # seconds of these for one connection, if others wait
_TURNS_TIME = 0.004  # seconds of a round for all that takes turns
_TURN = 0.001  # seconds of these for one, if others wait
_AT_TURNS = 4  # so many take turns, the others wait: what is half done takes memory
_SENT_BYTES = 4 << 20  # that a round sends, about
_SENDING_TIME = 0.004  # seconds of a round in which answers are sent
_SENT_TOGETHER = 256 << 10  # bytes of unsent answers that are copied into one piece
_MOST_PIECES = 64  # of a send that copies nothing
_CHUNKS = 1024  # of a body that are decoded in a round
_WAVE = 64  # streams that are fed in a round
_STREAM_PIECE = 64 << 10  # bytes that move from a stream into the output at a time
_SMALL_PIECE = 4 << 10  # the same, while too much waits to be read
_KEEPALIVE = 30  # seconds of silence after which the system asks whether the client is still there
_SLOW_LINES = 5  # of the log in a tick, for slow requests
_SHOWN_KEY = 64  # bytes of a key in the log
_FIRST_RUN = 16  # reads of a new connection that are taken before the first one is answered
_LONG_ANSWER = 16 << 10  # bytes of a body; longer ones are counted before their turn comes, too
_LINGER_TIME = 2.0  # seconds
_LINGER_BYTES = 16 << 20
_TICK = 1.0  # seconds between two looks at the deadlines
_AWAKE_FOR_ANSWERS = 300e-6  # seconds that the reactor stays awake while requests are unanswered
_AWAKE_FOR_CLIENTS = 100e-6  # seconds, after a round that has answered all
_FEW = 100  # requests of a round; more are better taken in one go, and their answers too
_DRAIN_TICK = 0.02  # seconds between two looks at what is left while draining
_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has no file descriptor left
_RESERVE_TIME = 2.0  # seconds for a connection in the reserve
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_MAX_FIELDS = 100
_MAX_PARAMETERS = 100
_LINE_EXTRA = 64  # bytes of a request line besides the target: method, spaces, version
_LONGEST_METHOD = 32  # bytes; RFC 9110 knows none beyond 9
_MAX_CHUNK_LINE = 4096
_MAX_EXTENSIONS = 16 << 10  # bytes of chunk extensions in one body
_KNOWN_HEADS = 1024
_KNOWN_HEAD_BYTES = 2048
_KNOWN_TARGETS = 4096
_KNOWN_TARGET_BYTES = 128
_KNOWN_STARTS = 1024

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_CLOSE, _KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
_RETRY = b"Retry-After: 1\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_RESET, _NO_RESET = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # SO_LINGER, on close

_TOKEN_BYTES = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_FIELD_PATTERN = rb"[" + _TOKEN_BYTES + rb"]+:[\t -~\x80-\xff]*\r\n"
_is_token = re.compile(rb"[" + _TOKEN_BYTES + rb"]+").fullmatch
_is_field = re.compile(_FIELD_PATTERN).fullmatch
_are_fields = re.compile(rb"(?:" + _FIELD_PATTERN + rb")*").fullmatch
_is_absolute = re.compile(rb"(?i:https?)://([^/@]+)(/.*)?").fullmatch
_is_chunk_line = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t ]*[" + _TOKEN_BYTES + rb"][\t -~\x80-\xff]*)?)\r\n"
).fullmatch
_find_id = re.compile(
    rb"\r\n(?i:X-Request-Id):[ \t]*([!-~](?:[ -~]{0,126}[!-~])?)[ \t]*(?=\r\n)"
).search
_names_id = re.compile(rb"\n(?i:X-Request-Id):").search
_token_octets = frozenset(c for c in range(256) if _is_token(bytes([c])))

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_READS = {"GET", "HEAD"}
_SAFE = {*_READS, "OPTIONS", "TRACE"}
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

    # It may have a method `without_body(request)` as well, which is asked about a request whose
    # body is still to come, in chunks or after a 100 (Continue). It returns what answers the
    # request at once, if the body isn't needed; the connection ends with that answer.


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for (H5). Sizes are in bytes, times in seconds."""

    max_target_bytes: int = 64 << 10  # 414
    max_header_bytes: int = 32 << 10  # 431, the whole header block; so are more than 100 fields
    max_body_bytes: int = 1 << 20  # 413
    max_body_bytes_at: Mapping[str, int] = field(default_factory=dict)  # less, at some paths: 413
    max_connections: int = 10_000  # 503; how many of them a client may have: places.py
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks that stand for many clients
    max_arriving_bytes: int = 256 << 20  # of all unfinished bodies together: 503
    max_leaving_bytes: int = 256 << 20  # of all unsent answers and streams together: 503 to long
    #                                     reads, and the slowest streams are ended
    max_pipelined: int = 128  # unanswered requests of one connection; the next ones wait
    request_timeout: float = 30.0  # from a request's first byte to its last: 408
    idle_timeout: float = 120.0  # between two requests
    write_timeout: float = 30.0  # for a client that reads nothing
    max_requests_in_flight: int = 20_000  # handed over and unanswered, of all together: 429
    max_streams: int = 10_000  # streams and held requests, which don't count above: 429
    slow_request: float = 1.0  # answers that took longer are logged; 0: none is


Fields = Iterable[tuple[str, str]] | bytes
"""Header fields of an answer: names and values, or lines that are rendered already."""


class Headers:
    """The header fields of a request: names in any case, values as they were sent.

    Requests that send the same fields share one object. ``note`` is the application's: what it
    has made of the fields, so that it need not do so again.
    """

    __slots__ = ("_fields", "note")

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields
        self.note: Any = None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a field's value (ISO 8859-1); fields of the same name are joined by commas."""
        return self._fields.get(name.lower(), default)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields


class RequestTarget:
    """What a request's target says. Requests with the same one share it, and so its ``note``,
    which is the application's as that of the header fields is."""

    __slots__ = ("authority", "note", "path", "query")

    def __init__(self, path: str, query: bytes, authority: Authority | None = None) -> None:
        self.path = path
        self.query = query
        self.authority = authority  # of a target in absolute form; it counts instead of Host
        self.note: Any = None


class Request:
    """A complete request, and the way to answer it.

    ``path`` is percent-decoded text. ``started`` is ``time.perf_counter()`` of the round that
    took it up.
    """

    __slots__ = (
        "_answer",
        "_at_leave",
        "_connection",
        "_head",
        "body",
        "method",
        "path",
        "started",
        "target",
    )

    def __init__(
        self,
        connection: _Connection,
        head: _Head,
        method: str,
        target: RequestTarget,
        body: bytes,
        started: float,
    ) -> None:
        self._connection = connection
        self._head = head
        self.target = target
        self._answer: _Answer | Stream | str | None = None
        self.method = method
        self.path = target.path
        self.body = body
        self.started = started

    def __str__(self) -> str:
        """The request as lines of a log name it: nothing in it can end the line."""
        name = f"{self.method} {self.path!r}"
        return f"{name} (request {self.id})" if self.id else name

    @property
    def id(self) -> str:
        """The request's ``X-Request-Id``, which its answer carries too; empty if it has none.

        One of other than 1 to 128 printable ASCII characters is ignored.
        """
        return self._head.request_id

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

    @property
    def query(self) -> bytes:
        """What is behind the ``?``, as it was sent; see :meth:`parameters`."""
        return self.target.query

    def parameters(self) -> dict[bytes, bytes]:
        """Return the parameters of the query; see :func:`decode_form`. Raises BadRequest."""
        return decode_form(self.target.query)

    def respond(
        self,
        status: int,
        body: bytes | Body = b"",
        content_type: str = TEXT,
        headers: Fields = (),
    ) -> None:
        """Answer the request, once. Any thread; never blocks.

        In the reactor thread the answer leaves at the end of the round; from another thread it is
        handed over, with one wake-up for a burst. An answer to a client that went away is dropped.
        Raises ValueError for a line end in one of *headers*.
        """
        connection = self._connection
        fields = headers if type(headers) is bytes else _render_fields(headers)
        answer = (status, body, content_type, fields)
        if get_ident() == connection.reactor.ident:
            connection.answer(self, answer)
        else:
            connection.reactor.hand_over(self, answer)

    @property
    def connection(self) -> int:
        """A number that the requests of one connection share, as long as it is open."""
        return self._connection.descriptor

    @property
    def is_answered(self) -> bool:
        """Whether the request has its answer, if not all of that."""
        return self._answer is not None and self._answer is not _HELD

    @property
    def room(self) -> int:
        """How many bytes of long answers may still be given before clients have read some (H5);
        about that, in other threads than the reactor's."""
        reactor = self._connection.reactor
        return reactor.limits.max_leaving_bytes - reactor.leaving

    def go_on(self, steps: Iterator[object], *, alone: bool = False) -> None:
        """Have the reactor carry on *steps*, in turns with all else, until they end. Any thread.

        It is for what keeps a processor busy and waits for nothing. A step takes a millisecond
        at most; one that yields True ends the turn, and what the application has begun is flushed
        before the next. With *alone*, in the reactor's thread only, what the client sends after
        this request waits for its answer (H2), the body counts as one that is arriving, and the
        steps are closed when the client has gone. Raises Unavailable, with *alone*, if there is
        too much of such bodies.
        """
        reactor = self._connection.reactor
        if get_ident() != reactor.ident:
            assert not alone
            reactor.hand_over(self, steps)
        else:
            reactor.take_turns(_Turns(self, steps, alone=alone))

    def stream(
        self,
        status: int,
        content_type: str,
        headers: Fields = (),
        *,
        max_unsent: int = 1 << 20,
    ) -> Stream:
        """Answer the request, once, with a body that is still to come. Any thread; never blocks.

        The head leaves at once, in its turn (H1). A stream with more than *max_unsent* bytes
        unsent is dropped. Raises TooManyRequests beyond ``Limits.max_streams``, and then the
        request is still unanswered; ValueError for a line end in one of *headers*.
        """
        assert 200 <= status <= 599
        assert status not in (204, 304), "an answer without a body is no stream"
        connection = self._connection
        reactor = connection.reactor
        opening = (status, content_type, _render_fields(headers))
        reactor.begin_stream()
        stream = Stream(connection, opening, max_unsent, chunked=self.http_version == "1.1")
        if get_ident() == reactor.ident:
            connection.begin(self, stream)
        else:
            reactor.hand_over(self, stream)
        return stream

    def hold(self) -> None:
        """Declare that the answer comes when something happens, which may take its time.

        Such a request counts with the streams and not with the requests in flight, and is never
        slow. The reactor's thread only, before the request is answered. Raises TooManyRequests
        beyond ``Limits.max_streams``.
        """
        reactor = self._connection.reactor
        assert get_ident() == reactor.ident
        assert self._answer is None
        reactor.begin_stream()
        reactor.in_flight -= 1
        self._at_leave: list[Callable[[], None]] = []  # there is one only while it is held
        self._answer = _HELD

    def on_leave(self, action: Callable[[], None]) -> None:
        """Have *action* called once when nothing more will come from the client of a held request;
        now, if that is so already.

        It has gone, mostly; one that only shut its sending side can still read an answer. So give
        one soon, or the request keeps its place among the streams. Any thread; *action* is called
        as that of :meth:`Stream.on_close` is, and the answer may be on its way by then.
        """
        self._at_leave.append(action)
        if self._connection.ended:
            _call_each(self._at_leave)

    def fail(
        self,
        error: ConureError | int,
        message: str = "",
        headers: Fields = (),
    ) -> None:
        """Answer with an error: one of ours, or a status and a line for the user. Any thread."""
        accept = self._head.headers.get("accept")
        if isinstance(error, int):
            body, content_type = error_body(error, message, accept)
            self.respond(error, body, content_type, headers)
            return
        if isinstance(error, Unavailable):
            headers = _render_fields(headers) + b"Retry-After: %d\r\n" % error.retry_after
        body, content_type = error_body(error.status, message or str(error), accept, error.title)
        self.respond(error.status, body, content_type, headers)


class Body:
    """The body of an answer in *pieces*, in which it leaves: nobody puts them together."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._size


class _Turns:
    """What the reactor carries on in turns for a request; see :meth:`Request.go_on`."""

    __slots__ = ("alone", "request", "steps")

    def __init__(self, request: Request, steps: Iterator[object], *, alone: bool) -> None:
        self.request = request
        self.steps = steps
        self.alone = alone


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


class Stream:
    """The body of an answer while it is being made; see :meth:`Request.stream`.

    It is over when it has finished, when it was cut or dropped, or when the client has left; what
    is sent to it then goes nowhere. That a client has left is found out while nothing is sent,
    too. A client that only shut its sending side may still read: it gets the whole stream.

    Any thread may call anything, except where a method says otherwise.
    """

    __slots__ = (
        "_at_end",
        "_chunked",
        "_connection",
        "_cut",
        "_finished",
        "_given",
        "_max_unsent",
        "_offset",
        "_opening",
        "_parts",
        "_queued",
        "_sent",
        "_taken",
        "_wanted",
        "over",
    )

    def __init__(
        self,
        connection: _Connection,
        opening: tuple[int, str, bytes],
        max_unsent: int,
        *,
        chunked: bool,
    ) -> None:
        self._opening = opening  # status, content type, further header lines
        self._chunked = chunked
        self.over = False
        self._finished = False  # nothing more is sent; what was sent is still on its way
        self._cut = False  # the same, and the client is to see that something is missing
        self._connection = connection
        self._max_unsent = max_unsent
        self._parts: deque[_Part] = deque()
        self._offset = 0  # bytes of the first part that were taken; the reactor's
        self._queued = False  # among those that the reactor feeds next
        self._given = 0  # bytes that were sent to the stream; the lock guards it
        self._taken = 0  # of these, bytes that were moved to the connection; the reactor's
        self._sent = 0  # of these, bytes that the socket took; the reactor's
        self._wanted: int | None = None  # somebody waits for fewer unsent bytes than this
        self._at_end: list[Callable[[], None]] = []

    @property
    def unsent(self) -> int:
        """Bytes, framing included, that the client's socket hasn't taken; 0 if it is over."""
        return self._given - self._sent

    def send(self, data: bytes) -> bool:
        """Send *data* behind what was sent before; never blocks.

        Return False if it goes nowhere: the stream is over, or has finished, or is dropped for
        having too much unsent.
        """
        part = _Part(_frame_part(data) if self._chunked else data)
        reactor = self._connection.reactor
        with reactor.lock:
            taken = not data or self._give(part)
        reactor.wake_up()
        return taken and not self.over

    def wait(self, below: int, timeout: float) -> bool:
        """Wait until fewer than *below* bytes are unsent; for whoever makes a long body.

        Return False if that takes longer than *timeout* seconds, or if the stream is over. One
        thread at a time, and not the reactor's.
        """
        reactor = self._connection.reactor
        assert get_ident() != reactor.ident
        with reactor.progress:
            # First this, then the look: the reactor does it the other way round.
            self._wanted = below
            reactor.progress.wait_for(lambda: self.over or self.unsent < below, timeout)
            self._wanted = None
            return not self.over and self.unsent < below

    def finish(self) -> None:
        """End the answer behind what was sent; the connection goes on."""
        self._finished = True
        self._queue()

    def abort(self) -> None:
        """End the answer at once, so that the client sees that it isn't complete (H7)."""
        self._cut = True
        self._queue()

    def on_close(self, action: Callable[[], None]) -> None:
        """Have *action* called once when the stream is over; now, if it is already.

        Mostly in the reactor's thread: it neither waits nor takes long.
        """
        self._at_end.append(action)
        if self.over:
            _call_each(self._at_end)

    # -- for the server --------------------------------------------------------------------------

    def _give(self, part: _Part) -> bool:
        """Take one more part, or drop the stream. With the lock."""
        if self.over or self._finished or self._cut:
            return False
        reactor = self._connection.reactor
        size = len(part.data)
        unsent = self._given - self._sent
        if unsent + size > self._max_unsent or (unsent and reactor.is_full()):
            reactor.streams_dropped += 1
            self._cut = True
        else:
            self._given += size
            if not part.holders:
                reactor.queued += size
            part.holders += 1
            self._parts.append(part)
        if not self._queued:
            self._queued = True
            reactor.ready.append(self)
        return not self._cut

    def _take(self) -> list[bytes]:
        """Return what goes into the output next. Reactor thread only."""
        reactor = self._connection.reactor
        parts = self._parts
        pieces: list[bytes] = []
        gone: list[_Part] = []
        size = 0
        most = _SMALL_PIECE if reactor.is_full() else _STREAM_PIECE
        while parts and size < most:
            part = parts[0]
            piece = part.data
            # What others keep as well is copied: so only a piece of it.
            if part.holders > 1 or self._offset:
                piece = piece[self._offset : self._offset + most - size]
            pieces.append(piece)
            size += len(piece)
            self._offset += len(piece)
            if self._offset == len(part.data):
                gone.append(parts.popleft())
                self._offset = 0
        self._taken += size
        with reactor.lock:
            reactor.let_go_of(gone)
        return pieces

    def _unqueue(self) -> _Connection:
        """Return whose stream this is; it is ready to be fed. Reactor thread only."""
        self._queued = False  # before its parts are taken: who adds one later sees it
        return self._connection

    @property
    def _is_empty(self) -> bool:
        return not self._parts

    def _note_progress(self, pending: int) -> None:
        """Note that *pending* bytes are all that the socket hasn't taken. Reactor thread only."""
        if self._taken:  # else they are of earlier answers
            self._sent = self._taken - pending
        if self._wanted is not None and self._given - self._sent < self._wanted:
            self._connection.reactor.tell_waiting = True

    def _end(self) -> None:
        """Be over. Reactor thread only."""
        reactor = self._connection.reactor
        with reactor.lock:
            self.over = True
            self._sent = self._given
            reactor.streams -= 1
            reactor.let_go_of(self._parts)
        self._parts.clear()
        if self._wanted is not None:
            reactor.tell_waiting = True
        _call_each(self._at_end)

    def _queue(self) -> None:
        reactor = self._connection.reactor
        with reactor.lock:
            if not self._queued and not self.over:
                self._queued = True
                reactor.ready.append(self)
        reactor.wake_up()


class HTTPServer(ThreadingHTTPServer):
    """The server: accepts, and keeps the reactor.

    *on_fatal* is told, in the thread concerned, when the reactor or the accepting thread ended by
    an exception: the server is dead then, and the process should end. *access* says under which
    names and to which web pages it answers. Raises OSError where *address* can't be bound; an empty
    host means every address, IPv6 and IPv4.
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
        access: Access | None = None,
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
        # What is accepted inherits this. A silent stream would never learn of a dead machine.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE)
        self._reactor = _Reactor(application, limits or Limits(), self._fatal, access or Access())
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
        """How many requests were handed to the application, or came whole and were refused: one
        too many (429), or for the name or the page (421, 403)."""
        return self._reactor.requests

    @property
    def requests_in_flight(self) -> int:
        """How many requests are with the application, unanswered and not held."""
        return self._reactor.in_flight

    @property
    def streams_open(self) -> int:
        """How many streams are not over and requests held."""
        return self._reactor.streams

    @property
    def streams_dropped(self) -> int:
        """How many streams were dropped because their clients read too slowly."""
        return self._reactor.streams_dropped

    @property
    def slow_requests(self) -> int:
        """How many answers took longer than ``Limits.slow_request``."""
        return self._reactor.slow_requests

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

    def call_later(self, action: Callable[[], None], seconds: float) -> None:
        """Let the reactor call *action* at the end of a round, the next one at the earliest: when
        what is answered by now has been sent, and what clients have asked meanwhile is taken.

        *seconds* may be 0 and are less than a millisecond: the reactor doesn't sleep until then.
        *action* doesn't raise, nor wait for anything. Any thread.
        """
        self._reactor.later.append((perf_counter() + seconds, action))
        self._reactor.wake_up()

    def broadcast(self, streams: Collection[Stream], data: bytes) -> None:
        """Send *data* to each of *streams*: framed once, kept once, and with one wake-up.

        Any thread; never blocks. Whose stream is over or dropped is told by its ``on_close``.
        """
        if data:
            chunk, plain = _Part(_frame_part(data)), _Part(data)
            with self._reactor.lock:
                for stream in streams:
                    stream._give(chunk if stream._chunked else plain)
            self._reactor.wake_up()

    def is_full(self) -> bool:
        """Tell whether too much waits to be read by clients already (H5). Any thread."""
        return self._reactor.is_full()

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

_Answer = tuple[int, bytes | Body, str, bytes]  # status, body, content type, more header lines
_HELD: Final = "held"  # in the place of an answer: see Request.hold


class _Part:
    """Bytes that streams are to send, framed; kept once, and counted once, for all of them."""

    __slots__ = ("data", "holders")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.holders = 0  # streams that have yet to take all of it; the lock guards it


class _Refusal(Exception):
    """A request that can't be taken; the connection ends with the answer (H6)."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.method = "GET"
        self.request_id = ""


class _Head:
    """What a request's version and header block say. Shared by all requests with the same one."""

    __slots__ = (
        "authority",
        "chunked",
        "close",
        "expects",
        "headers",
        "judgement",
        "length",
        "plain",
        "request_id",
        "returned",
        "said",
        "unusual",
        "version",
    )

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self.headers = headers
        self.chunked = False
        self.length = 0
        options = _elements(headers.get("connection", ""))
        self.close = "close" in options or (version == "1.0" and "keep-alive" not in options)
        self.request_id = ""
        self.returned = b""  # the header line that gives the request its ID back
        persistence = _CLOSE if self.close else _KEEP_ALIVE if version == "1.0" else b""
        self.said = persistence  # the header lines of its answer: this one and `returned`
        self.expects = version == "1.1" and "expect" in headers
        self.plain = False  # whether the request ends with its head and the connection goes on
        self.authority: Authority | None = None  # what Host says
        self.judgement: Judgement | None = None  # why the request is refused, if it is
        self.unusual = self.close  # whether there is more to do than to hand the request over

    def judge(self, access: Access, authority: Authority | None) -> None:
        """Find out whether a browser may ask this, of whom *authority* names."""
        headers = self.headers
        self.judgement = access.judge(
            authority, headers.get("origin"), headers.get("sec-fetch-site")
        )
        self.unusual = self.close or self.judgement is not None

    def copy(self) -> _Head:
        """Return a head of the same fields, to be changed for one request alone."""
        head = _Head(self.version, self.headers)
        for name in _Head.__slots__:
            setattr(head, name, getattr(self, name))
        return head

    def closing(self) -> _Head:
        """Return what this head is if the connection ends with the answer."""
        head = self.copy()
        head.close = head.unusual = True
        head.said = head.returned + _CLOSE
        return head

    def with_id(self, request_id: str) -> _Head:
        """Return what this head is with an ``X-Request-Id`` in it."""
        headers = Headers({**self.headers._fields, "x-request-id": request_id})
        head = _Head(self.version, headers)
        head.chunked, head.length, head.plain = self.chunked, self.length, self.plain
        head.authority, head.judgement = self.authority, self.judgement
        head.unusual = self.unusual
        head.request_id = request_id
        head.returned = f"X-Request-Id: {request_id}\r\n".encode()
        head.said = head.returned + self.said
        return head


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
    if host is not None:
        head.authority = parse_authority(host)
        if head.authority is None:
            raise _Refusal(400, "malformed Host header field")
    _frame(head, limits)
    if head.expects and _elements(headers.get("expect", "")) != {"100-continue"}:
        raise _Refusal(417, "the only expectation this server meets is 100-continue", headers)
    head.plain = not (head.chunked or head.length or head.close)
    return head


def _cut_id(block: bytes) -> tuple[str, bytes]:
    """Return the ID that header fields give their request, and the fields without it.

    Each request has another ID, and else the same head as many; so that one can be looked up.
    """
    match = _find_id(block)
    if match is None:
        return "", block
    rest = block[: match.start()] + block[match.end() :]
    return ("", block) if _names_id(rest) else (match[1].decode(), rest)


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
            raise _too_large(limits.max_body_bytes, headers)
        head.length = int(digits or "0")


def _too_large(most: int, headers: Headers, where: str = "") -> _Refusal:
    return _Refusal(413, f"the body is over the limit of {most} bytes{where}", headers)


def _body_too_large(request: Request, limits: Limits) -> _Refusal:
    most = limits.max_body_bytes_at.get(request.path)
    if most is None:
        return _too_large(limits.max_body_bytes, request.headers)
    refusal = _too_large(most, request.headers, f" for {request.path}")
    refusal.request_id = request.id
    return refusal


def _check_extent(
    data: bytes, position: int, end: int, limits: Limits, seen: int = 0, block: int = 0
) -> int:
    """Refuse a head that is too long or has a bare line feed; *end* < 0: as far as it has come.

    Looks at the same bytes in the same order whether the head is complete or not (H3). What was
    found to be right before isn't looked at again: *seen* bytes of the head, of which *block* are
    its first line, or none if that wasn't complete. Returns the length of the first line, if it is.
    """
    longest = limits.max_target_bytes + _LINE_EXTRA
    if not block:
        if data[position] not in _token_octets:
            raise _Refusal(400, "this isn't HTTP: a request begins with its method")
        line_end = data.find(b"\n", position + seen, position + longest + 2)
        if line_end < 0:
            if len(data) - position >= longest + 2:
                raise _target_too_long(limits)
            return 0
        if data[line_end - 1] != 13:
            raise _Refusal(400, "a line that ends in a bare LF; lines end in CRLF")
        block = line_end + 1 - position
    stop = position + block + limits.max_header_bytes + 2
    start = position + max(block, seen)
    _refuse_bare_line_feed(data, start, stop if end < 0 else min(stop, end))
    if (len(data) if end < 0 else end + 3) >= stop:
        raise _Refusal(431, f"the header is over the limit of {limits.max_header_bytes} bytes")
    return block


def _refuse_bare_line_feed(data: bytes, start: int, stop: int) -> None:
    if data[start - 1 : start + 1] == b"\r\n":
        start -= 1  # the place where a look ended before may be between the two
    if data.count(b"\n", start, stop) != data.count(b"\r\n", start, stop):
        raise _Refusal(400, "a line that ends in a bare LF; lines end in CRLF")


def _target_too_long(limits: Limits) -> _Refusal:
    return _Refusal(414, f"the request target is over the limit of {limits.max_target_bytes} bytes")


def _decode_path(method: str, path: bytes) -> tuple[str, Authority | None]:
    """Return the path of a target as text; and whom it names, in absolute form. Raises _Refusal."""
    if path == b"*" and method == "OPTIONS":
        return "*", None
    authority = None
    if path[:1] != b"/":
        match = _is_absolute(path)
        authority = parse_authority(match[1].decode("latin-1")) if match else None
        if match is None or authority is None or not authority.host:
            raise _Refusal(400, "malformed request target; it begins with /")
        path = match[2] or b"/"
    try:
        return _unquote(path).decode("utf-8", "replace"), authority
    except BadRequest as error:
        raise _Refusal(400, str(error)) from error


def _elements(value: str | None) -> set[str]:
    """Return the elements of a comma-separated list, in lower case."""
    return {element.strip(" \t") for element in (value or "").lower().split(",")}


def _accepts_json(accept: str | None) -> bool:
    if accept is None or "json" not in accept.lower():
        return False
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


def _show(name: bytes, most: int = 100) -> str:
    shown = repr(name[:most].decode("utf-8", "backslashreplace"))
    return shown if len(name) <= most else f"{shown}…"


_NO_HEAD = _Head("1.0", Headers({}))
_NO_TARGET = RequestTarget("", b"")


# -- private: bodies -----------------------------------------------------------------------------


class _SizedBody:
    """Gathers a body whose length is known."""

    __slots__ = ("content", "done", "missing", "request")

    paused = False

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
    """Decodes a chunked body (RFC 9112 section 7.1); extensions and trailers are thrown away.

    ``paused`` says that there was too much in one feed, and that what follows is to be fed later.
    """

    __slots__ = (
        "_extensions",
        "_left",
        "_limits",
        "_most",
        "_seen",
        "_state",
        "content",
        "done",
        "paused",
        "request",
    )

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request = request
        self.content = bytearray()
        self.done = False
        self.paused = False
        self._limits = limits
        self._most = limits.max_body_bytes_at.get(request.path, limits.max_body_bytes)
        self._state = self._SIZE
        self._left = 0
        self._extensions = 0
        self._seen = 0  # bytes of the trailer that were looked at

    def feed(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return the position behind what could be used.

        Raises _Refusal.
        """
        chunks = 0
        self.paused = False
        while not self.done:
            if self._state == self._SIZE:
                following = self._read_size(data, position)
                chunks += 1
                if chunks > _CHUNKS:
                    self.paused = following > position
                    return following
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
        if len(self.content) + self._left > self._most:
            raise _body_too_large(self.request, self._limits)
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
        end = data.find(b"\r\n\r\n", position + max(self._seen - 3, 0), most)
        _refuse_bare_line_feed(data, position + self._seen, end if end >= 0 else most)
        if end < 0:
            if len(data) >= most:
                raise _Refusal(431, "the trailer section is too long")
            self._seen = len(data) - position
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
        "line",
        "more",
        "out",
        "parked",
        "patience",
        "peer",
        "pending",
        "place",
        "reactor",
        "receive_bytes",
        "resets",
        "run",
        "safe",
        "seen",
        "send_bytes",
        "socket",
        "state",
        "stream",
        "touched",
        "waiting",
        "working",
    )

    def __init__(
        self, reactor: _Reactor, connected: socket.socket, peer: Any, place: str | None
    ) -> None:
        self.reactor = reactor
        self.place = place  # whose place it has; None: it is in the reserve
        self.socket = connected
        self.descriptor = connected.fileno()
        self.receive_bytes = connected.recv
        self.send_bytes = connected.send
        self.peer = peer
        self.state = READING
        self.ended = False  # the client sent its last byte
        self.interest = _IN
        self.buffer = b""  # received, not parsed
        self.seen = self.line = 0  # bytes of the head that it begins with: see _check_extent
        self.body: _Body | None = None  # of the request that is arriving
        self.waiting: deque[Request] = deque()  # unanswered, or answered before their turn (H1)
        self.safe = True  # the safety class of those (H2)
        self.run = _FIRST_RUN  # how many reads may be among them
        self.more = False  # while draining: a request is being handed over and more bytes follow
        self.out: list[bytes | memoryview] = []
        self.stream: Stream | None = None  # whose turn it is
        self.pending = 0  # bytes in out
        self.parked = 0  # bytes of long answers before their turn
        self.touched = self.begun = perf_counter()  # last progress; first byte of a request
        self.discarded = 0
        self.patience = _LINGER_TIME  # seconds for a client to read the last answer
        self.resets = False  # the socket is to be closed by a reset
        self.working = False  # a request takes turns, and those behind it wait for its answer

    # -- input

    def receive(self) -> None:
        """Read once and hand over what is complete. Raises OSError."""
        if self.state != READING:
            self._receive_out_of_turn()
            return
        data = self.receive_bytes(_READ_SIZE)
        if not data:
            self._note_end()
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
        self.seen = 0
        if self.state == READING:
            if self.body is None:
                self.seen = len(self.buffer)
            if not self.interest & _IN:
                self.watch(self.interest | _IN)

    def refuse(self, refusal: _Refusal) -> None:
        """Answer with an error of the server's own, in its turn (H1); take nothing more (H6)."""
        reactor = self.reactor
        reactor.count_refusal(refusal.status)
        self.state = FINISHED
        accept = refusal.headers.get("accept") if refusal.headers else None
        body, content_type = error_body(refusal.status, str(refusal), accept)
        head = self.body.request._head if self.body is not None else _NO_HEAD
        request_id = refusal.request_id or head.request_id
        head = _NO_HEAD.with_id(request_id) if request_id else _NO_HEAD
        request = Request(self, head, refusal.method, _NO_TARGET, b"", reactor.now)
        self.waiting.append(request)
        reactor.in_flight += 1
        fields = _RETRY if refusal.status == 503 else b""
        self.answer(request, (refusal.status, body, content_type, fields))

    # -- output

    def answer(self, request: Request, answer: _Answer) -> None:
        """Send an answer, and those behind it that waited for it, at the end of the round (H1)."""
        reactor = self.reactor
        if request._answer is not None:
            if request._answer is not _HELD:
                log.error("%s was answered twice", request)
                return
            reactor.let_go()
        elif perf_counter() - request.started > reactor.slow_request:
            reactor.note_slow(request, answer[0])
        reactor.in_flight -= 1
        if len(answer[1]) > _LONG_ANSWER:
            answer = self._admit(request, answer)
        request._answer = answer
        waiting = self.waiting
        if waiting:
            if waiting[0] is request:
                self._emit(waiting.popleft(), answer)
            if waiting:
                self._emit_all()

    def begin(self, request: Request, stream: Stream) -> None:
        """Answer by a stream, in its turn (H1)."""
        reactor = self.reactor
        if request._answer is not None:
            if request._answer is not _HELD:
                log.error("%s was answered twice", request)
                stream._end()
                return
            reactor.let_go()
        reactor.in_flight -= 1
        request._answer = stream
        if self.state == CLOSED:
            stream._end()
        else:
            self._emit_all()

    def feed(self, head: bytes = b"") -> None:
        """Move the next piece of the stream whose turn it is into the output, or end it.

        Nothing is moved while earlier output waits: it would be copied again and again.
        """
        stream = self.stream
        if stream is None:
            return
        if stream._cut:
            self.close()
            return
        if self.out:
            if head:
                self.put(head)
            return
        pieces = stream._take()
        if head:
            pieces.insert(0, head)
        ends = stream._finished and stream._is_empty
        if ends and stream._chunked:
            pieces.append(_LAST_CHUNK)
        if pieces:
            self.put(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        if ends:
            self._end_stream()
            self._emit_all()

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
        sent, is_full = self._offer(out)
        reactor = self.reactor
        reactor.bytes_out += sent
        if sent < self.pending:
            if sent or not self.interest & _OUT:
                self.touched = reactor.now
            self._drop_sent(sent)
            if self.stream is not None:
                self.stream._note_progress(self.pending)
            if is_full:
                self.watch(self.interest | _OUT)
            else:
                reactor.dirty.append(self)  # the next round sends more
            return
        out.clear()
        reactor.leaving -= self.pending
        self.pending = 0
        if self.interest & _OUT:
            self.watch(self.interest & ~_OUT)
        if self.stream is not None:
            self.stream._note_progress(0)
            self.feed()
            if self.out:
                self.touched = reactor.now
                return
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
            if idle > (_LINGER_TIME if self.reactor.draining else self.patience):
                self.close()
        elif self.out:
            if idle > limits.write_timeout:
                self.drop()
        elif self.waiting:
            # Time that the application takes isn't the client's.
            self.touched = self.begun = self.reactor.now
        elif self.buffer or self.body is not None:
            if self.reactor.now - self.begun > limits.request_timeout:
                self.buffer = b""
                self.refuse(_Refusal(408, "the request took too long to arrive"))
                self._drop_body()
        elif idle > limits.idle_timeout:
            self.close()

    def close_if_idle(self) -> None:
        if not (self.buffer or self.body or self.waiting or self.out) and self.state == READING:
            self.close()

    def watch(self, interest: int) -> None:
        """Change what the socket is watched for. Raises OSError."""
        if interest != self.interest:
            self.interest = interest
            self.reactor.epoll.modify(self.descriptor, interest)

    def close(self) -> None:
        """Let go of the socket; what is unanswered or unsent is dropped."""
        if self.state != CLOSED:
            self.state = CLOSED
            self.ended = True
            self._drop_body()
            streams = [r._answer for r in self.waiting if isinstance(r._answer, Stream)]
            held = self._held()
            if self.resets and not (streams or self.out):  # nothing is missing
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_RESET)
            self.stream = None
            self.buffer = b""
            self.waiting.clear()
            self.out.clear()
            self.reactor.leaving -= self.pending + self.parked
            self.reactor.release(self)  # first: who sees that it is gone may have its place
            del self.reactor.connections[self.descriptor]  # before the number can be used again
            self.socket.close()
            for stream in streams:
                stream._end()
            for request in held:
                _call_each(request._at_leave)

    # -- private

    def _hand_over_all(self, data: bytes) -> int:
        """Return the position behind the last byte that was used. Raises _Refusal."""
        reactor = self.reactor
        waiting = self.waiting
        position = 0
        size = len(data)
        begin = max(self.seen - 3, 0)  # the end of the first head isn't before that
        while position < size and self.state == READING:
            if self.body is not None:
                position = self._feed(self.body, data, position)
                if not self.body.done:
                    break
                self._complete(self.body, position < size)
                continue
            end = data.find(b"\r\n\r\n", position or begin)
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
            known = reactor.targets.get(target)
            if known is None:
                reactor.check_target(target, data, position, end)
                known, head = reactor.resolve(name, target, head)
            if (waiting and self._must_wait(safe, head)) or (self.pending and self._must_send()):
                self.state = HELD
                break
            may_be_late = not (reactor.requests & 3 and head.plain)
            if may_be_late and position and perf_counter() > reactor.leave:
                self._wait_a_round()
                break
            request = Request(self, head, name, known, b"", reactor.now)
            self.safe = safe
            if head.plain:
                position = end
            else:
                following = end + self._length(request)
                if following > size or head.chunked or (head.expects and head.length):
                    self._begin_body(request, bool(position))
                    position = end
                    continue
                request.body = data[end:following]
                position = following
            self._hand_over(request, position < size)
        return position

    def _hand_over(
        self, request: Request, more: bool, handle: Callable[[Request], None] | None = None
    ) -> None:
        """Hand a request to the application, or to *handle* in its place."""
        reactor = self.reactor
        if reactor.draining:
            self.more = more
        if request._head.unusual:
            if request._head.close:
                self.state = FINISHED
            if reactor.is_refused(request):
                handle = reactor.refuse_page
        self.waiting.append(request)
        reactor.requests += 1
        reactor.in_flight += 1
        if reactor.in_flight > reactor.most_in_flight:
            reactor.count_refusal(429)
            request.fail(TooManyRequests("too many requests are under way; try again shortly"))
            return
        try:
            (handle or reactor.handle)(request)
        except Exception:
            log.exception("%s failed", request)
            if isinstance(request._answer, Stream):
                request._answer.abort()
            elif request._answer is None or request._answer is _HELD:
                request.fail(500, "internal error; the log of this node has more")

    def _length(self, request: Request) -> int:
        """Return how long the body of a request says it is. Raises _Refusal."""
        length = request._head.length
        if length > self.reactor.limits.max_body_bytes_at.get(request.path, length):
            raise _body_too_large(request, self.reactor.limits)
        return length

    def _begin_body(self, request: Request, moved_on: bool) -> None:
        head = request._head
        limits = self.reactor.limits
        if head.chunked or head.expects:
            action = self.reactor.without_body(request)
            if action is not None:
                self._answer_early(request, action)
                return
        self.body = _ChunkedBody(request, limits) if head.chunked else _SizedBody(request)
        if moved_on or not self.buffer:
            self.begun = self.reactor.now
        if head.expects:
            self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer_early(self, request: Request, action: Callable[[Request], None]) -> None:
        """Let a request be answered without its body, and end the connection with that.

        Many clients send all of a body before they look for an answer, however long it takes
        them. Until then the body is thrown away: to close would be to take the answer back.
        """
        limits = self.reactor.limits
        self.patience = limits.request_timeout
        self.discarded = -limits.max_body_bytes  # so much more may come
        request._head = request._head.closing()
        self._hand_over(request, False, action)

    def _feed(self, body: _Body, data: bytes, position: int) -> int:
        """Give the body its next bytes, unless those of all connections are too many (H5)."""
        reactor = self.reactor
        before = len(body.content)
        try:
            position = body.feed(data, position)
        finally:
            reactor.arriving += len(body.content) - before
        if body.paused:
            self._wait_a_round()
        if reactor.arriving > reactor.limits.max_arriving_bytes:
            raise _Refusal(503, "too much is being sent at once; try again shortly")
        return position

    def _wait_a_round(self) -> None:
        self.state = HELD
        self.reactor.resumed.append(self)

    def _drop_body(self) -> None:
        if self.body is not None:
            self.reactor.arriving -= len(self.body.content)
            self.body = None

    def _complete(self, body: _Body, more: bool) -> None:
        self._drop_body()
        request = body.request
        request.body = bytes(body.content)
        self.reactor.bulk += len(request.body)
        request.started = self.reactor.now
        self._hand_over(request, more)

    def _must_wait(self, safe: bool, head: _Head) -> bool:
        return (
            safe is not self.safe
            or head.expects  # its 100 (Continue) would overtake the answers before it (H1)
            or len(self.waiting) >= self.reactor.limits.max_pipelined
            or (safe and (len(self.waiting) >= self.run or self.reactor.is_crowded()))
            or self.working
            or self.stream is not None
            or isinstance(self.waiting[-1]._answer, Stream)
        )

    def _must_send(self) -> bool:
        reactor = self.reactor
        return self.pending > _OUTPUT_HIGH or reactor.leaving > reactor.limits.max_leaving_bytes

    def _offer(self, out: list[bytes | memoryview]) -> tuple[int, bool]:
        """Give output to the socket; return how much it took, and whether it takes no more."""
        try:
            if self.pending > _SENT_TOGETHER:
                pieces = out[:_MOST_PIECES]
                sent = self.socket.sendmsg(pieces)
                return sent, sent < sum(map(len, pieces))
            if len(out) > 1:
                out[:] = (b"".join(out),)
            return self.send_bytes(out[0]), True
        except BlockingIOError:
            return 0, True

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
            out[0] = bytes(rest) if len(rest) * 2 < memoryview(rest.obj).nbytes else rest

    def _admit(self, request: Request, answer: _Answer) -> _Answer:
        """Count a long answer, or give another in its place if too much waits already (H5)."""
        reactor = self.reactor
        size = len(answer[1])
        if self.state == CLOSED:
            return answer
        if self.safe and reactor.is_full(size):
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
                self.line = 0
                return position
        seen, line = (0, 0) if position or not self.seen else (self.seen, self.line)
        self.line = _check_extent(data, position, end, self.reactor.limits, seen, line)
        return position

    def _emit_all(self) -> None:
        """Emit the answers whose turn it is; a stream keeps the turn until it is over."""
        waiting = self.waiting
        while waiting and self.stream is None:
            answer = waiting[0]._answer
            if isinstance(answer, tuple):
                self._emit(waiting.popleft(), answer)
            elif isinstance(answer, Stream):
                self._begin_stream(waiting[0], answer)
            else:
                break

    def _begin_stream(self, request: Request, stream: Stream) -> None:
        reactor = self.reactor
        status, content_type, fields = stream._opening
        said = request._head.said
        is_last = reactor.draining and len(self.waiting) == 1 and not self.more
        if not stream._chunked or (is_last and self.state == READING):
            said = request._head.returned + _CLOSE
            self.state = FINISHED
            self.buffer = b""
            self._drop_body()
        if not self.ended:  # or nobody would see the end
            self.watch(self.interest | _IN)
        if not stream._chunked:
            self._let_end_show()
        head = _render_stream_start(status, content_type, reactor._date, stream._chunked)
        head += fields + said + b"\r\n"
        self.stream = stream
        if request.method == "HEAD":
            self.put(head)
            self._end_stream()
        else:
            self.feed(head)

    def _end_stream(self) -> None:
        """Give the turn to the answer behind the stream."""
        assert self.stream is not None
        stream, self.stream = self.stream, None
        self.waiting.popleft()
        stream._end()

    def drop(self) -> None:
        """Close because the client takes nothing."""
        if self.stream is not None:
            with self.reactor.lock:
                self.reactor.streams_dropped += 1
        self.close()

    def _let_end_show(self) -> None:
        """Make whatever closes the socket too early reset it, our own end included: the client
        could take a close for the end of the stream (H7)."""
        self.resets = True
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _note_end(self) -> None:
        """Note that nothing more will come; find out whether the client is there to read on.

        The end of what it sends looks the same whether it has closed or waits for the rest of a
        stream. A byte more is answered by a reset if it has closed, and does no harm if not: a
        chunk's size may begin with a zero (RFC 9112 section 7.1).
        """
        self.ended = True
        # Amid a chunk the byte would be one of its own, and the rest of it is answered as well.
        if self.stream is not None and self.stream._chunked and not self.stream._offset:
            self._let_end_show()  # some clients take a zero without a line end for the last chunk
            self.put(b"0")
        for request in self._held():
            _call_each(request._at_leave)

    def _held(self) -> list[Request]:
        return [request for request in self.waiting if request._answer is _HELD]

    def _emit(self, request: Request, answer: _Answer) -> None:
        reactor = self.reactor
        status, body, content_type, fields = answer
        size = len(body)
        start = reactor.starts.get((status, content_type, size))
        if start is None:
            start = reactor.render_start(status, content_type, size)
        said = request._head.said
        if reactor.draining and not (self.waiting or self.more) and self.state == READING:
            self.state = FINISHED
            said = request._head.returned + _CLOSE
        if size > _LONG_ANSWER:
            self.parked -= size
            reactor.leaving -= size
            self.run = 0  # one by one, until answers are short again
        if request.method == "HEAD":
            body = b""
        pieces = body.pieces if isinstance(body, Body) else (body,)
        if size <= _LONG_ANSWER:
            self.put(b"".join((start, fields, said, b"\r\n", *pieces)))
            return
        self.put(b"".join((start, fields, said, b"\r\n")))
        for piece in pieces:
            if piece:
                self.put(piece)

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
                self._note_end()
                self.watch(self.interest & ~_IN)
        elif self.state == FINISHED and (self.stream is not None or self._held()):
            data = self.receive_bytes(_READ_SIZE)
            self.discarded += len(data)
            if not data:
                self._note_end()
            if not data or self.discarded > _LINGER_BYTES:
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


class _Reserved(_Connection):
    """A connection in the reserve: one probe is answered, and anything else turned away."""

    __slots__ = ()

    def check_deadlines(self) -> None:
        if self.reactor.now - self.begun > _RESERVE_TIME:
            if self.state == READING and not self.buffer:
                self.refuse(self._refusal())
            else:
                self.close()

    def advance(self, data: bytes) -> None:
        begun = self.begun
        super().advance(data)
        self.begun = begun  # its time is counted from its adoption

    def _hand_over(
        self, request: Request, more: bool, handle: Callable[[Request], None] | None = None
    ) -> None:
        is_probe = request.method in _READS and request.path in self.reactor.access.probes
        if not is_probe or request.body:
            raise self._refusal(request)
        request._head = request._head.closing()
        super()._hand_over(request, more, handle)

    def _begin_body(self, request: Request, moved_on: bool) -> None:  # noqa: ARG002
        raise self._refusal(request)

    def _refusal(self, request: Request | None = None) -> _Refusal:
        refusal = _Refusal(
            503, "too many connections, of all clients or of yours; try again shortly"
        )
        if request is not None:
            refusal.headers, refusal.method = request.headers, request.method
            refusal.request_id = request.id
        return refusal


# -- private: the reactor ------------------------------------------------------------------------


class _Reactor:
    """The thread in which every connection rests."""

    def __init__(
        self,
        application: Application,
        limits: Limits,
        on_fatal: Callable[[BaseException], None],
        access: Access | None = None,
    ) -> None:
        self.handle = application.handle
        self.flush = application.flush
        self.without_body: Callable[[Request], Callable[[Request], None] | None] = getattr(
            application, "without_body", _needs_body
        )
        self.limits = limits
        self.access = access or Access()
        self.places = Places(limits.max_connections, limits.trusted_proxies)
        self.reserved: dict[_Connection, None] = {}  # in the reserve, the oldest first
        # ASCII that can be seen; a fragment, from # on, is the client's own (RFC 9112 section 3.2).
        self.is_target = re.compile(rb"[!\"$-~]{1,%d}" % limits.max_target_bytes).fullmatch
        self.ident = 0
        self.now = perf_counter()
        self.draining = False
        self.connections: dict[int, _Connection] = {}
        self.dirty: list[_Connection] = []  # to be sent to at the end of the round
        self.resumed: list[_Connection] = []  # to be taken up again in the next round
        self.late: dict[int, int] = {}  # events that a round had no time for
        # Clients repeat themselves: what they sent, parsed.
        self.heads: dict[bytes, _Head] = {}
        self.targets: dict[bytes, RequestTarget] = {}
        self.starts: dict[tuple[int, str, int], bytes] = {}  # of answers, rendered this second
        self.watched: dict[int, Callable[[], None]] = {}  # sockets of others: see HTTPServer.watch
        self.later: deque[tuple[float, Callable[[], None]]] = deque()  # when due; see call_later
        self.turns: deque[_Turns] = deque()  # the first _AT_TURNS of them are under way
        self.turned: list[Request] = []  # whose turn it was in this round
        self.until = inf  # when this round has taken in requests for long enough
        self.leave = inf  # when it has taken enough of those of one connection
        self.bulk = 0  # bytes of bodies that this round has taken in
        self.requests = self.bytes_in = self.bytes_out = 0
        self.taken = 0  # requests, in the last round
        self.is_prompt = False  # the last wait was a short one
        self.in_flight = 0  # requests handed over and unanswered, but for those held
        self.most_in_flight = limits.max_requests_in_flight
        self.slow_request = limits.slow_request or inf  # seconds
        self.slow_requests = 0
        self.lock = threading.Lock()  # see the module's docstring; guards the next four
        self.streams = 0  # not over, and requests held
        self.streams_dropped = 0
        self.ready: deque[Stream] = deque()  # to be fed
        self.queued = 0  # bytes that streams have yet to take; those of a broadcast count once
        self.progress = threading.Condition()  # for those who wait for streams to be sent
        self.tell_waiting = False
        self.arriving = 0  # bytes of unfinished bodies
        self.leaving = 0  # bytes of unsent answers
        self.refused: dict[int, int] = {}
        self.epoll = select.epoll()
        self._on_fatal = on_fatal
        # From other threads; what is neither an answer nor a stream takes turns.
        self._answers: deque[tuple[Request, _Answer | Stream | Iterator[object]]] = deque()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._woken = False
        self._next_tick = 0.0
        self._date = b""
        self._cut = False  # drain() ran out of time
        self._slow_lines = 0  # logged since the last tick, or not for there being too many
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

    def hand_over(self, request: Request, answer: _Answer | Stream | Iterator[object]) -> None:
        """Bring an answer to the reactor, or what leads to one, waking it unless that was done
        already."""
        self._answers.append((request, answer))
        if not self._woken:
            self._wake()

    def begin_stream(self) -> None:
        """Count one more stream or held request. Raises TooManyRequests."""
        with self.lock:
            if self.streams >= self.limits.max_streams:
                raise TooManyRequests("too many streams are open; try again shortly")
            self.streams += 1

    def let_go(self) -> None:
        """Count a held request among the others again. Reactor thread only."""
        self.in_flight += 1
        with self.lock:
            self.streams -= 1

    def is_crowded(self) -> bool:
        """Return whether so much waits for clients that reads are taken one by one."""
        return self.leaving > self.limits.max_leaving_bytes // 2

    def is_full(self, more: int = 0) -> bool:
        """Tell whether too much waits to be read by clients, with so many bytes more. Any thread;
        what it finds may be different a moment later."""
        return self.leaving + self.queued + more > self.limits.max_leaving_bytes

    def let_go_of(self, parts: Iterable[_Part]) -> None:
        """Note that a stream keeps some parts no longer. With the lock."""
        for part in parts:
            part.holders -= 1
            if not part.holders:
                self.queued -= len(part.data)

    def wake_up(self) -> None:
        if not self._woken and get_ident() != self.ident:
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
        place = self.places.take(peer[0])
        if place is None and len(self.reserved) >= 2 * self.places.reserve:
            self.count_refusal(503)
            connected.close()
            return
        kind = _Connection if place is not None else _Reserved
        connection = kind(self, connected, peer, place)
        descriptor = connection.descriptor
        self.connections[descriptor] = connection
        if place is None:
            self.reserved[connection] = None
        try:
            self.epoll.register(descriptor, connection.interest)
        except (OSError, ValueError):  # ValueError: the reactor has just ended
            del self.connections[descriptor]
            self.release(connection)
            raise
        if len(self.reserved) > self.places.reserve:
            self._wake()

    def release(self, connection: _Connection) -> None:
        """Let another connection have the place of one. Any thread."""
        if connection.place is None:
            del self.reserved[connection]
        else:
            self.places.give_back(connection.place)

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
            if not self.is_target(target):
                if len(target) > self.limits.max_target_bytes:
                    raise _target_too_long(self.limits)
                raise _Refusal(400, "malformed request target; write other characters as %XX")
            if name == "CONNECT":
                raise _Refusal(501, "this server is no proxy", head.headers)
        except _Refusal as refusal:
            refusal.method = name
            refusal.request_id, _ = _cut_id(tail)
            raise
        return name, safe, target, head

    def check_target(self, target: bytes, data: bytes, position: int, end: int) -> None:
        """Raise _Refusal for a target of a head in data[position:end] that can't be one."""
        if not self.is_target(target):
            self.parse(data, position, end)  # raises, with the words for what is wrong

    def resolve(self, method: str, target: bytes, head: _Head) -> tuple[RequestTarget, _Head]:
        """Return what a target says that isn't known yet; and the head, judged by whom the target
        names if it does (RFC 9112 section 3.2.2). Raises _Refusal."""
        path, _, query = target.partition(b"?")
        try:
            decoded, authority = _decode_path(method, path)
        except _Refusal as refusal:
            refusal.request_id = head.request_id
            raise
        found = RequestTarget(decoded, query, authority)
        # "*" is no path for most methods, and who is asked in absolute form is looked at each time.
        if len(target) <= _KNOWN_TARGET_BYTES and path != b"*" and authority is None:
            if len(self.targets) >= _KNOWN_TARGETS:
                self.targets.clear()
            self.targets[target] = found
        if authority is not None:
            head = head.copy()
            head.judge(self.access, authority)
        return found, head

    def render_start(self, status: int, content_type: str, length: int) -> bytes:
        """Render how an answer begins, up to its other fields; good until the date changes."""
        start = _render_start(status, content_type, length, self._date)
        if len(self.starts) < _KNOWN_STARTS:
            self.starts[status, content_type, length] = start
        return start

    def round(self) -> bool:
        """Wait, then carry one round through; return whether there is to be another.

        Raises only what is no single connection's and no application's fault.
        """
        draining = self.draining
        later = [self.later.popleft() for _ in range(len(self.later))]
        events = self._wait(later)
        if self.late:
            events = [*{**self.late, **dict(events)}.items()]  # in the order of their coming
            self.late = {}
        self.now = perf_counter()
        requests = self.requests
        self.bulk = 0
        if self.now >= self._next_tick:
            self._tick()
        if self.resumed:
            self._resume()
        self._receive(events)
        if self.turns:
            self._take_turns()
        if self.requests != requests or self.turned:
            while self._flush():
                self._send()
            self.turned.clear()
        self.taken = self.requests - requests
        if later:
            self._act(later)
        if self.ready:
            self._feed_streams()
        self._send()
        if self.tell_waiting:
            self._tell_waiting()
        return not (draining and self._is_drained())

    def is_refused(self, request: Request) -> bool:
        """Tell whether a request may not be made by the web page that made it."""
        judgement = request._head.judgement
        if judgement is None:
            return False
        is_public = request.method in _READS and request.path in self.access.public
        return judgement[0] != 403 or not is_public

    def refuse_page(self, request: Request) -> None:
        """Answer a request that is refused for its name or its origin."""
        assert request._head.judgement is not None
        status, message = request._head.judgement
        self.count_refusal(status)
        request.fail(status, message)

    def take_turns(self, turns: _Turns) -> None:
        """Carry something on from the next turns on. Raises Unavailable."""
        if turns.alone:
            size = len(turns.request.body)
            if self.arriving + size > self.limits.max_arriving_bytes:
                raise Unavailable("too much is being sent at once; try again shortly")
            self.arriving += size
            turns.request._connection.working = True
        self.turns.append(turns)

    def note_slow(self, request: Request, status: int) -> None:
        """Log a request whose answer took long, unless too many of them have been already."""
        self.slow_requests += 1
        self._slow_lines += 1
        if self._slow_lines <= _SLOW_LINES:
            took = perf_counter() - request.started
            log.warning(
                "slow: %s%s of %s answered %d after %.3f s",
                *(request, _show_key(request), request.peer, status, took),
            )

    # -- private

    def _learn(self, tail: bytes) -> _Head:
        request_id, rest = _cut_id(tail)
        if request_id:
            return (self.heads.get(rest) or self._learn(rest)).with_id(request_id)
        head = _parse_head(tail, self.limits)
        head.judge(self.access, head.authority)
        # One that is refused isn't kept: the names of this server may change.
        is_short = len(tail) <= _KNOWN_HEAD_BYTES
        if is_short and "x-request-id" not in head.headers and head.judgement is None:
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
            self._take_answers()  # with no connection left: streams that begin now are over
            self._tell_waiting()
            self.epoll.close()
            self._waker.close()
            self._wakened.close()
            self._done.set()
        if failure is not None:
            self._on_fatal(failure)

    def _wait(self, later: Collection[tuple[float, Any]]) -> list[tuple[int, int]]:
        """Wait for input, awake for a while if it has come at once the last time.

        To fall asleep and be woken takes longer than a client on this machine takes to ask again,
        and a good part of what a quorum takes. Whoever wants the processor gets it meanwhile.
        """
        poll = self.epoll.poll
        if self.resumed or self.ready or self.dirty or self.turns:
            return poll(0)
        begun = perf_counter()
        awake = _AWAKE_FOR_ANSWERS if self.in_flight else _AWAKE_FOR_CLIENTS
        if later:
            until = min([due for due, _ in later])
        elif self.is_prompt and max(self.taken, self.in_flight) <= _FEW:
            until = begun + awake
        else:
            until = begun
        while not (events := poll(0)) and perf_counter() < until:
            sched_yield()
        if not (events or later):
            events = poll(_DRAIN_TICK if self.draining else _TICK)
        self.is_prompt = perf_counter() - begun < awake
        return events

    def _act(self, later: Iterable[tuple[float, Callable[[], None]]]) -> None:
        now = perf_counter()
        for due, action in later:
            if due <= now:
                action()
            else:
                self.later.append((due, action))

    def _resume(self) -> None:
        last = self.requests + _ROUND
        self.until = perf_counter() + _ROUND_TIME / 4
        resumed, self.resumed = self.resumed, []
        visit = max(_VISIT, _ROUND_TIME / 4 / len(resumed))
        for number, connection in enumerate(resumed):
            if self._is_over(last, visit):
                self.resumed += resumed[number:]
                return
            self._each((connection,), _Connection.resume)

    def _is_over(self, last: int, visit: float) -> bool:
        """Tell whether the round has taken in enough: peers must not wait long for the next one.
        If not, a connection has so many seconds for a *visit*: nor must others."""
        now = perf_counter()
        self.leave = min(self.until, now + visit)
        return self.requests >= last or self.bulk >= _ROUND_BYTES or now > self.until

    def _receive(self, events: list[tuple[int, int]]) -> None:
        connections = self.connections
        last = self.requests + _ROUND
        self.until = self.now + _ROUND_TIME
        visit = max(_VISIT, _ROUND_TIME / (len(events) or 1))
        for descriptor, event in events:
            connection = connections.get(descriptor)
            if connection is None:
                self.watched.get(descriptor, self._take_answers)()
                continue
            if self._is_over(last, visit):
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

    def _feed_streams(self) -> None:
        """Feed as many of the streams that are ready as a round has time for."""
        ready = self.ready
        for _ in range(min(len(ready), _WAVE)):
            stream = ready.popleft()
            connection = stream._unqueue()
            if connection.stream is stream:
                self._each((connection,), _Connection.feed)

    def _tell_waiting(self) -> None:
        self.tell_waiting = False
        with self.progress:
            self.progress.notify_all()

    def _take_turns(self) -> None:
        """Carry on what takes turns, for as long as a round has time for it; once at least."""
        until = perf_counter() + _TURNS_TIME
        turns = self.turns
        ended_early: list[_Turns] = []
        while turns:
            turn = turns.popleft()
            self.turned.append(turn.request)
            goes_on = self._take_turn(turn, perf_counter() + _TURN)
            if goes_on is None:
                self._end_turns(turn)
            elif goes_on:
                turns.insert(_AT_TURNS - 1, turn)
            else:
                ended_early.append(turn)
            if self.bulk >= _ROUND_BYTES or perf_counter() > until:
                break
        turns.extendleft(reversed(ended_early))

    def _take_turn(self, turn: _Turns, until: float) -> bool | None:
        """Return whether it may go on in this round; None if it is over."""
        steps, request = turn.steps, turn.request
        if turn.alone and request._connection.state == CLOSED:
            if not request.is_answered:  # or it would be in flight for ever
                request.fail(503, "the client has gone")
            return None
        try:
            for is_done_for_now in steps:
                if is_done_for_now:
                    return False
                if perf_counter() >= until:
                    return True
        except Exception:
            log.exception("%s failed", request)
            if request._answer is None or request._answer is _HELD:
                request.fail(500, "internal error; the log of this node has more")
        return None

    def _end_turns(self, turn: _Turns) -> None:
        if turn.alone:
            size = len(turn.request.body)
            self.bulk += size
            self.arriving -= size
            turn.request._connection.working = False
        turn.steps = iter(())  # lets go of what they hold

    def _send(self) -> None:
        """Send what a round has time for; the rest in the next one.

        Who is sent little doesn't wait for all who are sent much; one of those has its turn though.
        """
        if not self.dirty:
            return
        dirty, self.dirty = self.dirty, []
        last = self.bytes_out + _SENT_BYTES
        until = perf_counter() + _SENDING_TIME
        if len(dirty) > _FEW:
            long = [each for each in dirty if each.pending > _SENT_TOGETHER]
            dirty = [each for each in dirty if each.pending <= _SENT_TOGETHER]
            self._each(long[:1], _Connection.send)
            dirty += long[1:]
        for number, connection in enumerate(dirty):
            if self.bytes_out >= last or perf_counter() > until:
                self.dirty = dirty[number:] + self.dirty
                break
            self._each((connection,), _Connection.send)

    def _flush(self) -> bool:
        try:
            return self.flush()
        except Exception:
            log.exception("flushing a round failed")
            for connection in list(self.connections.values()):
                for request in list(connection.waiting):
                    is_of_this_round = request.started == self.now or request in self.turned
                    if is_of_this_round and request._answer in (None, _HELD):
                        request.fail(500, "internal error; a write may or may not have happened")
            return False

    def _take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        self._woken = False
        if len(self.reserved) > self.places.reserve:  # the oldest give way
            self._each(list(self.reserved)[: -self.places.reserve], _Connection.close)
        answers = self._answers
        while answers:
            request, answer = answers.popleft()
            try:
                if isinstance(answer, Stream):
                    request._connection.begin(request, answer)
                elif isinstance(answer, Iterator):
                    self.take_turns(_Turns(request, answer, alone=False))
                else:
                    request._connection.answer(request, answer)
            except Exception:
                log.exception("an unusable answer to %s", request)
                request._connection.close()

    def _wake(self) -> None:
        self._woken = True
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody is left to wake
            self._waker.send(b"!")

    def _tick(self) -> None:
        self._next_tick = self.now + _TICK
        self._date = formatdate(usegmt=True).encode()
        self.starts.clear()
        if self._slow_lines > _SLOW_LINES:
            log.warning("slow: %d more requests", self._slow_lines - _SLOW_LINES)
        self._slow_lines = 0
        if self.is_full():
            self._relieve()
        self._each(list(self.connections.values()), lambda each: each.check_deadlines())

    def _relieve(self) -> None:
        """End the streams whose clients have taken nothing for the longest, until there is room
        again (H5)."""
        blocked = [c for c in self.connections.values() if c.stream and c.interest & _OUT]
        blocked.sort(key=lambda connection: connection.touched)
        for connection in blocked:
            if not self.is_full(self.limits.max_leaving_bytes // 4):
                break
            self._each((connection,), _Connection.drop)

    def _is_drained(self) -> bool:
        if not self.late:
            for connection in list(self.connections.values()):
                connection.close_if_idle()
        return self._cut or not self.connections


def _render_line(status: int, date: bytes) -> str:
    """Render how every answer begins. No browser is to guess what type of content it has."""
    phrase = _PHRASES.get(status, "")
    return (
        f"HTTP/1.1 {status} {phrase}\r\nDate: {date.decode()}\r\n"
        "X-Content-Type-Options: nosniff\r\n"
    )


def _render_start(status: int, content_type: str, length: int, date: bytes) -> bytes:
    line = _render_line(status, date)
    if status == 304:  # it has no body, and tells nothing of the one there would be
        return line.encode()
    return f"{line}Content-Type: {content_type}\r\nContent-Length: {length}\r\n".encode()


def _render_stream_start(status: int, content_type: str, date: bytes, chunked: bool) -> bytes:
    line = _render_line(status, date)
    coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
    return f"{line}Content-Type: {content_type}\r\n{coding}".encode()


def _needs_body(request: Request) -> None:
    """Stand for an application that wants the body of each request."""


def _frame_part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _call_each(actions: list[Callable[[], None]]) -> None:
    """Call what is in *actions*, each once, whoever else does the same meanwhile."""
    while True:
        try:
            action = actions.pop(0)
        except IndexError:
            return
        try:
            action()
        except Exception:
            log.exception("telling that a stream or its client has gone failed")


def _show_key(request: Request) -> str:
    """Return the key that a request names, shortened, for a log; empty if there is none."""
    try:
        key = request.parameters().get(b"key")
    except BadRequest:
        key = None
    return "" if key is None else f" key {_show(key, _SHOWN_KEY)}"


def _render_fields(fields: Fields) -> bytes:
    if isinstance(fields, bytes):
        return fields
    lines = []
    for name, value in fields:
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line end in the value of {name}")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1")
