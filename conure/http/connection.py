"""One client's connection: its bytes, its unanswered requests, and the order of both.

The life of a connection:

============= ==================================================================================
``READING``   requests are parsed as their bytes come
``WAITING``   a complete request waits until earlier ones are answered, or until answers are sent
``FINISHED``  no further request is taken: the client or an error ended it; answers still go out
``LINGERING`` all is sent and our side is shut; input is thrown away so that the client can read
``CLOSED``    the link is gone; answers that still come are dropped
============= ==================================================================================

H1  Answers leave a connection in the order of its requests.
H2  A request is handed over only while all unanswered ones of its connection are of its own safety
    class (RFC 9110 section 9.2.1): a run of PUTs is one batch, and a GET after a PUT sees it.
H4  An error of one connection ends that connection only; an error of the application is a 500.

The grammar is grammar.py's, and what is known already known.py's. Whom a request is handed to, and
what is refused for its name or its page, says the :class:`Front`, which server.py is. A connection
belongs to the reactor's thread, once it is adopted; nothing in it waits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, Protocol

from conure.errors import TooManyRequests
from conure.http.grammar import (
    LAST_CHUNK,
    METHODS,
    READS,
    ChunkedBody,
    Refusal,
    SizedBody,
    TLSRefusal,
    body_too_large,
    check_extent,
    render_stream_start,
)
from conure.http.head import CLOSE, NO_HEAD, NO_TARGET, Head
from conure.http.known import Known
from conure.http.limits import Limits
from conure.http.request import WAITS, Answer, Body, RenderError, Request
from conure.http.stream import Stream, call_each
from conure.net.link import Link
from conure.net.outlet import Outlet
from conure.net.reactor import IN, OUT, Reactor
from conure.protection import Door

__all__ = ["Front", "HTTPConnection", "ReservedConnection"]

log = logging.getLogger("conure.http")

READING, WAITING, FINISHED, LINGERING, CLOSED = range(5)

_READ_SIZE = 64 << 10
_FIRST_RUN = 16  # reads of a new connection that are taken before the first one is answered
_LONG_ANSWER = 16 << 10  # bytes of a body; longer ones are counted before their turn comes, too
_LINGER_TIME = 2.0  # seconds
_LINGER_BYTES = 16 << 20
_RESERVE_TIME = 2.0  # seconds for a connection in the reserve
_RETRY: Final = b"Retry-After: 1\r\n"


class Front(Protocol):
    """What a connection asks of the front end that made it. Reactor thread only."""

    limits: Limits
    known: Known
    probes: frozenset[str]  # paths that are answered in the reserve, too
    door: Door  # who is barred
    slow_request: float  # seconds
    render_error: RenderError  # how errors are told to its clients
    handle: Callable[[Request], None]  # what the application does with a request
    # Asked about a request whose body is still to come: what answers it without, or None.
    without_body: Callable[[Request], Callable[[Request], None] | None]

    def is_refused(self, request: Request) -> bool:
        """Tell whether a request may not be made by the web page that made it (H8)."""

    def refuse_page(self, request: Request) -> None:
        """Answer a request that is refused for its name or its origin."""

    def answer_preflight(self, request: Request) -> None:
        """Tell a browser what a page of another origin that may ask may send."""

    def count_refusal(self, status: int) -> None:
        """Note that the server itself refused a request or a connection."""

    def note_tls(self, connection: HTTPConnection) -> None:
        """Note a client that speaks TLS where nobody does."""

    def note_slow(self, request: Request, status: int) -> None:
        """Note a request whose answer took long."""

    def release(self, connection: HTTPConnection) -> None:
        """Let another connection have the place of one."""


class HTTPConnection(Outlet):
    """One client's bytes and unanswered requests. Reactor thread only, once it is adopted."""

    __slots__ = (
        "arriving",
        "begun",
        "body",
        "buffer",
        "discarded",
        "ended",
        "front",
        "known",
        "line",
        "more",
        "parked",
        "patience",
        "peer",
        "place",
        "resets",
        "run",
        "safe",
        "seen",
        "state",
        "stream",
        "waiting",
        "working",
    )

    def __init__(
        self, reactor: Reactor, front: Front, link: Link, peer: Any, place: str | None
    ) -> None:
        super().__init__(reactor, link)
        self.front = front
        self.known = front.known
        self.place = place  # whose place it has; None: it is in the reserve
        self.peer = peer
        self.state = READING
        self.ended = False  # the client sent its last byte
        self.buffer = b""  # received, not parsed
        self.seen = self.line = 0  # bytes of the head that it begins with: see check_extent
        self.body: SizedBody | ChunkedBody | None = None  # of the request that is arriving
        self.arriving: Request | None = None  # that one, if it has such a body
        self.waiting: deque[Request] = deque()  # unanswered, or answered before their turn (H1)
        self.safe = True  # the safety class of those (H2)
        self.run = _FIRST_RUN  # how many reads may be among them
        self.more = False  # while draining: a request is being handed over and more bytes follow
        self.stream: Stream | None = None  # whose turn it is
        self.parked = 0  # bytes of long answers before their turn
        self.begun = self.touched  # the first byte of a request
        self.discarded = 0
        self.patience = _LINGER_TIME  # seconds for a client to read the last answer
        self.resets = False  # the link is to be closed by a reset
        self.working = False  # a request takes turns, and those after it wait for its answer

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

    def resume(self) -> None:
        """Take up the requests that had to wait; more reads at a time while answers are short."""
        self.run = max(1, min(2 * self.run, self.front.limits.max_pipelined))
        if self.state == WAITING:
            self.advance(self.buffer)

    def advance(self, data: bytes) -> None:
        """Hand over every complete request in *data*, as far as their order allows (H2)."""
        reactor = self.reactor
        self.state = READING
        position = 0
        try:
            position = self._hand_over_all(data)
        except Refusal as refusal:
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
            if not self.interest & IN:
                self.listen_for(self.interest | IN)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error of the server's own, in its turn (H1); take nothing more (H6)."""
        reactor = self.reactor
        self.front.count_refusal(refusal.status)
        if isinstance(refusal, TLSRefusal):
            self.front.note_tls(self)
        self.state = FINISHED
        accept = refusal.headers.get("accept") if refusal.headers else None
        body, content_type = self.front.render_error(refusal.status, str(refusal), accept, None)
        head = self.arriving.head if self.arriving is not None else NO_HEAD
        request_id = refusal.request_id or head.request_id
        head = self.known.head_of_refused(refusal.headers, request_id)
        request = Request(self, head, refusal.method, NO_TARGET, b"", reactor.now)
        self.waiting.append(request)
        reactor.in_flight += 1
        fields = _RETRY if refusal.status == 503 else b""
        self.answer(request, (refusal.status, body, content_type, fields))

    # -- output

    def answer(self, request: Request, answer: Answer) -> None:
        """Send an answer, and those after it that waited for it, at the end of the round (H1)."""
        reactor = self.reactor
        if request.answer is not None:
            if request.answer is not WAITS:
                log.error("%s was answered twice", request)
                return
            reactor.end_wait()
        elif perf_counter() - request.started > self.front.slow_request:
            self.front.note_slow(request, answer[0])
        reactor.in_flight -= 1
        if len(answer[1]) > _LONG_ANSWER:
            answer = self._admit(request, answer)
        request.answer = answer
        waiting = self.waiting
        if waiting:
            if waiting[0] is request:
                self._emit(waiting.popleft(), answer)
            if waiting:
                self._emit_all()

    def begin(self, request: Request, stream: Stream) -> None:
        """Answer by a stream, in its turn (H1)."""
        reactor = self.reactor
        if request.answer is not None:
            if request.answer is not WAITS:
                log.error("%s was answered twice", request)
                stream.end()
                return
            reactor.end_wait()
        reactor.in_flight -= 1
        request.answer = stream
        if self.state == CLOSED:
            stream.end()
        else:
            self._emit_all()

    def accept_answer(self, request: Request, answer: Answer | Stream) -> None:
        """Take what another thread answered; the connection ends if it is unusable (H4)."""
        try:
            if isinstance(answer, Stream):
                self.begin(request, answer)
            else:
                self.answer(request, answer)
        except Exception:
            log.exception("an unusable answer to %s", request)
            self.close()

    def feed(self, head: bytes = b"") -> None:
        """Move the next piece of the stream whose turn it is into the output, or end it.

        Nothing is moved while earlier output waits: it would be copied again and again.
        """
        stream = self.stream
        if stream is None:
            return
        if stream.cut:
            self.close()
            return
        if self.out:
            if head:
                self.put(head)
            return
        pieces = stream.take()
        if head:
            pieces.insert(0, head)
        ends = stream.finished and stream.is_empty
        if ends and stream.chunked:
            pieces.append(LAST_CHUNK)
        if pieces:
            self.put(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        if ends:
            self._end_stream()
            self._emit_all()

    def after_send(self) -> None:
        """Go on with a stream, with requests that had to wait, or with the end."""
        stream = self.stream
        if stream is not None:
            stream.note_progress(self.pending)
            if not self.out:
                self.feed()
                if self.out:
                    self.touched = self.reactor.now
        if self.state and not (self.waiting or self.out):
            if self.state == WAITING:
                self.reactor.resumed.append(self)
            elif self.state == FINISHED:
                self._finish()

    # -- time and the end

    def check_deadlines(self) -> None:
        """Refuse, or close, what took too long (H5). Raises OSError."""
        limits = self.front.limits
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
                self.refuse(Refusal(408, "the request took too long to arrive"))
                self._drop_body()
        elif idle > limits.idle_timeout:
            self.close()

    def blocked_since(self) -> float | None:
        """Tell since when the bytes of a stream wait for the client to take any (H5)."""
        return self.touched if self.stream is not None and self.interest & OUT else None

    def drop(self) -> None:
        """Close because the client takes nothing."""
        if self.stream is not None:
            with self.reactor.lock:
                self.reactor.streams_dropped += 1
        self.close()

    def close_if_idle(self) -> None:
        if not (self.buffer or self.body or self.waiting or self.out) and self.state == READING:
            self.close()

    @property
    def principal(self) -> str:
        """Whom the client's certificate names; empty if there is none."""
        return self.link.principal

    @property
    def render_error(self) -> RenderError:
        """How errors are told to the clients of this front end."""
        return self.front.render_error

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to the client any more."""
        return self.state == CLOSED

    def close(self) -> None:
        """Let go of the link; what is unanswered or unsent is dropped."""
        if self.state != CLOSED:
            self.state = CLOSED
            self.ended = True
            self._drop_body()
            streams = [r.answer for r in self.waiting if isinstance(r.answer, Stream)]
            lasting = self._lasting()
            if self.resets and not (streams or self.out):  # nothing is missing
                self.link.reset_on_close(resets=False)
            self.stream = None
            self.buffer = b""
            self.waiting.clear()
            self.drop_output()
            self.reactor.leaving -= self.parked
            self.front.release(self)  # first: who sees that it is gone may have its place
            del self.reactor.connections[self.descriptor]  # before the number can be used again
            self.link.close()
            for stream in streams:
                stream.end()
            for request in lasting:
                call_each(request.at_leave)

    # -- private

    def _hand_over_all(self, data: bytes) -> int:
        """Return the position after the last byte that was used. Raises Refusal."""
        reactor = self.reactor
        known = self.known
        waiting = self.waiting
        position = 0
        size = len(data)
        begin = max(self.seen - 3, 0)  # the end of the first head isn't before that
        while position < size and self.state == READING:
            if self.arriving is not None and self.body is not None:
                position = self._feed(self.body, data, position)
                if not self.body.done:
                    break
                self._complete(self.arriving, self.body, position < size)
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
                name, safe = METHODS[method]
                head = known.heads[tail]
            except (ValueError, KeyError):
                name, safe, target, head = known.parse(data, position, end)
            meant = known.targets.get(target)
            if meant is None:
                known.check_target(target, data, position, end)
                meant, head = known.resolve(name, target, head)
            if (waiting and self._must_wait(safe, head)) or (self.pending and self.must_send()):
                self.state = WAITING
                break
            may_be_late = not (reactor.requests & 3 and head.plain)
            if may_be_late and position and perf_counter() > reactor.leave:
                self._wait_a_round()
                break
            request = Request(self, head, name, meant, b"", reactor.now)
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
        if request.head.unusual:
            if request.head.close:
                self.state = FINISHED
            if self.front.is_refused(request):
                handle = self.front.refuse_page
            elif request.head.is_preflight and request.method == "OPTIONS" and handle is None:
                handle = self.front.answer_preflight
        self.waiting.append(request)
        reactor.requests += 1
        reactor.in_flight += 1
        if reactor.in_flight > reactor.most_in_flight:
            self.front.count_refusal(429)
            request.fail(TooManyRequests("too many requests are under way; try again shortly"))
            return
        try:
            (handle or self.front.handle)(request)
        except Exception:
            log.exception("%s failed", request)
            if isinstance(request.answer, Stream):
                request.answer.abort()
            elif request.answer is None or request.answer is WAITS:
                request.fail(500, "internal error; the log of this node has more")

    def _length(self, request: Request) -> int:
        """Return how long the body of a request says it is. Raises Refusal."""
        length = request.head.length
        if length > self.front.limits.max_body_bytes_at.get(request.path, length):
            raise body_too_large(request.path, request.head, self.front.limits)
        return length

    def _begin_body(self, request: Request, moved_on: bool) -> None:
        head = request.head
        if head.chunked or head.expects:
            action = self.front.without_body(request)
            if action is not None:
                self._answer_early(request, action)
                return
        self.arriving = request
        if head.chunked:
            self.body = ChunkedBody(request.path, head, self.front.limits)
        else:
            self.body = SizedBody(head.length)
        if moved_on or not self.buffer:
            self.begun = self.reactor.now
        if head.expects:
            self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer_early(self, request: Request, action: Callable[[Request], None]) -> None:
        """Let a request be answered without its body, and end the connection with that.

        Many clients send all of a body before they look for an answer, however long it takes
        them. Until then the body is thrown away: to close would be to take the answer back.
        """
        limits = self.front.limits
        self.patience = limits.request_timeout
        self.discarded = -limits.max_body_bytes  # so much more may come
        request.head = request.head.closing()
        self._hand_over(request, False, action)

    def _feed(self, body: SizedBody | ChunkedBody, data: bytes, position: int) -> int:
        """Give the body its next bytes, unless those of all connections are too many (H5)."""
        reactor = self.reactor
        before = len(body.content)
        try:
            position = body.feed(data, position)
        finally:
            reactor.arriving += len(body.content) - before
        if body.paused:
            self._wait_a_round()
        if reactor.arriving > reactor.bounds.max_arriving_bytes:
            raise Refusal(503, "too much is being sent at once; try again shortly")
        return position

    def _wait_a_round(self) -> None:
        self.state = WAITING
        self.reactor.resumed.append(self)

    def _drop_body(self) -> None:
        if self.body is not None:
            self.reactor.arriving -= len(self.body.content)
            self.body = self.arriving = None

    def _complete(self, request: Request, body: SizedBody | ChunkedBody, more: bool) -> None:
        self._drop_body()
        request.body = bytes(body.content)
        self.reactor.bulk += len(request.body)
        request.started = self.reactor.now
        self._hand_over(request, more)

    def _must_wait(self, safe: bool, head: Head) -> bool:
        return (
            safe is not self.safe
            or head.expects  # its 100 (Continue) would overtake the answers before it (H1)
            or len(self.waiting) >= self.front.limits.max_pipelined
            or (safe and (len(self.waiting) >= self.run or self.reactor.is_crowded()))
            or self.working
            or self.stream is not None
            or isinstance(self.waiting[-1].answer, Stream)
        )

    def _admit(self, request: Request, answer: Answer) -> Answer:
        """Count a long answer, or give another in its place if too much waits already (H5)."""
        reactor = self.reactor
        size = len(answer[1])
        if self.state == CLOSED:
            return answer
        if self.safe and reactor.is_full(size):
            self.front.count_refusal(503)
            accept = request.headers.get("accept")
            message = "too much waits to be read by clients; try again shortly"
            return (503, *self.front.render_error(503, message, accept, None), _RETRY)
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
        self.line = check_extent(data, position, end, self.front.limits, seen, line)
        return position

    def _emit_all(self) -> None:
        """Emit the answers whose turn it is; a stream keeps the turn until it is over."""
        waiting = self.waiting
        while waiting and self.stream is None:
            answer = waiting[0].answer
            if isinstance(answer, tuple):
                self._emit(waiting.popleft(), answer)
            elif isinstance(answer, Stream):
                self._begin_stream(waiting[0], answer)
            else:
                break

    def _begin_stream(self, request: Request, stream: Stream) -> None:
        reactor = self.reactor
        status, content_type, fields = stream.opening
        said = request.head.said
        is_last = reactor.draining and len(self.waiting) == 1 and not self.more
        if not stream.chunked or (is_last and self.state == READING):
            said = request.head.returned + CLOSE
            self.state = FINISHED
            self.buffer = b""
            self._drop_body()
        if not self.ended:  # or nobody would see the end
            self.listen_for(self.interest | IN)
        if not stream.chunked:
            self._let_end_show()
        head = render_stream_start(status, content_type, self.known.date, stream.chunked)
        head += fields + said + b"\r\n"
        self.stream = stream
        if request.method == "HEAD":
            self.put(head)
            self._end_stream()
        else:
            self.feed(head)

    def _end_stream(self) -> None:
        """Give the turn to the answer after the stream."""
        assert self.stream is not None
        stream, self.stream = self.stream, None
        self.waiting.popleft()
        stream.end()

    def _let_end_show(self) -> None:
        """Make whatever closes the socket too early reset it, our own end included: the client
        could take a close for the end of the stream (H7)."""
        self.resets = True
        self.link.reset_on_close(resets=True)

    def _note_end(self) -> None:
        """Note that nothing more will come; find out whether the client is there to read on.

        The end of what it sends looks the same whether it has closed or waits for the rest of a
        stream. A byte more is answered by a reset if it has closed, and does no harm if not: a
        chunk's size may begin with a zero (RFC 9112 section 7.1).
        """
        self.ended = True
        # Amid a chunk the byte would be one of its own, and the rest of it is answered as well.
        if self.stream is not None and self.stream.chunked and not self.stream.is_amid_part:
            self._let_end_show()  # some clients take a zero without a line end for the last chunk
            self.put(b"0")
        for request in self._lasting():
            call_each(request.at_leave)

    def _lasting(self) -> list[Request]:
        return [request for request in self.waiting if request.answer is WAITS]

    def _emit(self, request: Request, answer: Answer) -> None:
        reactor = self.reactor
        status, body, content_type, fields = answer
        size = len(body)
        start = self.known.starts.get((status, content_type, size))
        if start is None:
            start = self.known.render_start(status, content_type, size)
        said = request.head.said
        if reactor.draining and not (self.waiting or self.more) and self.state == READING:
            self.state = FINISHED
            said = request.head.returned + CLOSE
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
        elif self.state == WAITING and len(self.buffer) < _READ_SIZE:
            data = self.receive_bytes(_READ_SIZE)
            self.reactor.bytes_in += len(data)
            self.buffer += data
            if not data:  # the end; it is read again when what waits has been taken up
                self._note_end()
                self.listen_for(self.interest & ~IN)
        elif self.state == FINISHED and (self.stream is not None or self._lasting()):
            data = self.receive_bytes(_READ_SIZE)
            self.discarded += len(data)
            if not data:
                self._note_end()
            if not data or self.discarded > _LINGER_BYTES:
                self.listen_for(self.interest & ~IN)
        else:
            self.listen_for(self.interest & ~IN)

    def _finish_soon(self) -> None:
        """Take no further request; close once the answers are out."""
        self.state = FINISHED
        self.buffer = b""
        self._drop_body()
        if self.waiting or self.out:
            self.listen_for(self.interest & ~IN)
        else:
            self._finish()

    def _finish(self) -> None:
        if self.ended:
            self.close()
            return
        self.link.shut()
        self.state = LINGERING
        self.touched = self.reactor.now
        self.listen_for(IN)


class ReservedConnection(HTTPConnection):
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
        is_probe = request.method in READS and request.path in self.front.probes
        if not is_probe or request.body:
            raise self._refusal(request)
        request.head = request.head.closing()
        super()._hand_over(request, more, handle)

    def _begin_body(self, request: Request, moved_on: bool) -> None:  # noqa: ARG002
        raise self._refusal(request)

    def _refusal(self, request: Request | None = None) -> Refusal:
        refusal = Refusal(
            503, "too many connections, of all clients or of yours; try again shortly"
        )
        if request is not None:
            refusal.headers, refusal.method = request.headers, request.method
            refusal.request_id = request.id
        return refusal
