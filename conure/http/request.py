"""A request, and the way to answer it: what an application gets from the server.

A :class:`Request` belongs to one connection, which it knows as its :class:`Client`. Here are also
the bodies of error answers, and forms. Nothing is parsed but the latter, and nothing sent: answers
go to the connection, in the reactor thread or by way of :meth:`Reactor.post`.

``Request.respond``, ``fail``, ``stream`` and ``on_leave`` may be called from any thread; what a
method says of threads counts otherwise. What the connection needs of a request, and an application
doesn't, are the attributes ``head``, ``answer``, ``at_leave`` and ``client``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import get_ident
from time import perf_counter
from typing import Any, Final, Protocol

from conure.errors import BadRequest, ConureError, Unavailable
from conure.http.grammar import PHRASES, show, unquote
from conure.http.head import Head, Headers, RequestTarget, elements
from conure.http.stream import Carrier, Opening, Stream, call_each

__all__ = [
    "WAITS",
    "Answer",
    "Body",
    "Client",
    "Fields",
    "RenderError",
    "Request",
    "Turns",
    "decode_form",
    "error_body",
]

log = logging.getLogger("conure.http")

TEXT: Final = "text/plain; charset=utf-8"
PROBLEM: Final = "application/problem+json"
WAITS: Final = "waits"
"""In the place of an answer: see :meth:`Request.hold`."""

_MAX_PARAMETERS = 100

Fields = Iterable[tuple[str, str]] | bytes
"""Header fields of an answer: names and values, or lines that are rendered already."""

RenderError = Callable[[int, str, str | None, str | None], tuple[bytes, str]]
"""Makes the body of an error's answer and its content type, as :func:`error_body` does: of a
status, a line for the user, the request's ``Accept``, and a title that may be None."""


class Client(Carrier, Protocol):
    """The connection that a request came by. Reactor thread only, but for the first three."""

    @property
    def peer(self) -> Any:
        """The client's address, as the socket has it."""

    @property
    def principal(self) -> str:
        """Whom the client's certificate names; empty if there is none."""

    @property
    def descriptor(self) -> int:
        """A number that no other open connection has."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come from the client."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to the client any more."""

    working: bool  # a request takes turns, and those after it wait for its answer

    @property
    def render_error(self) -> RenderError:
        """How errors are told to the clients of this front end."""

    def answer(self, request: Request, answer: Answer) -> None:
        """Send an answer in its turn (H1)."""

    def begin(self, request: Request, stream: Stream) -> None:
        """Answer by a stream, in its turn (H1)."""

    def accept_answer(self, request: Request, answer: Answer | Stream) -> None:
        """Do either of these with what another thread answered; doesn't raise."""


class Request:
    """A complete request, and the way to answer it.

    ``path`` is percent-decoded text. ``started`` is ``time.perf_counter()`` of the round that
    took it up.
    """

    __slots__ = (
        "answer",
        "at_leave",
        "body",
        "client",
        "head",
        "method",
        "path",
        "started",
        "target",
    )

    def __init__(
        self,
        client: Client,
        head: Head,
        method: str,
        target: RequestTarget,
        body: bytes,
        started: float,
    ) -> None:
        self.client = client
        self.head = head
        self.target = target
        self.answer: Answer | Stream | str | None = None
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
        return self.head.request_id

    @property
    def headers(self) -> Headers:
        return self.head.headers

    @property
    def http_version(self) -> str:
        """``"1.0"`` or ``"1.1"``."""
        return self.head.version

    @property
    def peer(self) -> str:
        """The client's address and port, for a log."""
        host, port = self.client.peer[:2]
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
        client = self.client
        fields = headers if type(headers) is bytes else _render_fields(headers)
        answer = (status, body, content_type, fields)
        if get_ident() == client.reactor.ident:
            client.answer(self, answer)
        else:
            client.reactor.post(client.accept_answer, self, answer)

    @property
    def connection(self) -> int:
        """A number that the requests of one connection share, as long as it is open."""
        return self.client.descriptor

    @property
    def is_answered(self) -> bool:
        """Whether the request has its answer, if not all of that."""
        return self.answer is not None and self.answer is not WAITS

    @property
    def room(self) -> int:
        """How many bytes of long answers may still be given before clients have read some (H5);
        about that, in other threads than the reactor's."""
        reactor = self.client.reactor
        return reactor.bounds.max_leaving_bytes - reactor.leaving

    def apart(self, ahead: int) -> Request:  # noqa: ARG002
        """Return itself: it has one answer; see ``Waiter.apart``."""
        return self

    def go_on(self, steps: Iterator[object], *, alone: bool = False) -> None:
        """Have the reactor carry on *steps*, in turns with all else, until they end. Any thread.

        It is for what keeps a processor busy and waits for nothing. A step takes a millisecond
        at most; one that yields True ends the turn, and what the application has begun is flushed
        before the next. With *alone*, in the reactor's thread only, what the client sends after
        this request waits for its answer (H2), the body counts as one that is arriving, and the
        steps are closed when the client has gone. Raises Unavailable, with *alone*, if there is
        too much of such bodies.
        """
        reactor = self.client.reactor
        if get_ident() != reactor.ident:
            assert not alone
            reactor.post(reactor.take_turns, Turns(self, steps, alone=False))
            return
        if alone:
            size = len(self.body)
            if reactor.arriving + size > reactor.bounds.max_arriving_bytes:
                raise Unavailable("too much is being sent at once; try again shortly")
            reactor.arriving += size
            self.client.working = True
        reactor.take_turns(Turns(self, steps, alone=alone))

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
        client = self.client
        reactor = client.reactor
        opening = Opening(status, content_type, _render_fields(headers))
        reactor.begin_stream()
        stream = Stream(client, opening, max_unsent, chunked=self.http_version == "1.1")
        if get_ident() == reactor.ident:
            client.begin(self, stream)
        else:
            reactor.post(client.accept_answer, self, stream)
        return stream

    def wait(self) -> None:
        """Declare that the answer comes when something happens, which may take its time.

        Such a request counts with the streams and not with the requests in flight, and is never
        slow. The reactor's thread only, before the request is answered. Raises TooManyRequests
        beyond ``Limits.max_streams``.
        """
        reactor = self.client.reactor
        assert get_ident() == reactor.ident
        assert self.answer is None
        reactor.begin_stream()
        reactor.in_flight -= 1
        self.at_leave: list[Callable[[], None]] = []  # there is one only while it waits
        self.answer = WAITS

    def on_leave(self, action: Callable[[], None]) -> None:
        """Have *action* called once when nothing more will come from the client of a request that
        waits; now, if that is so already.

        It has gone, mostly; one that only shut its sending side can still read an answer. So give
        one soon, or the request keeps its place among the streams. Any thread; *action* is called
        as that of :meth:`Stream.on_close` is, and the answer may be on its way by then.
        """
        self.at_leave.append(action)
        if self.client.ended:
            call_each(self.at_leave)

    def fail(
        self,
        error: ConureError | int,
        message: str = "",
        headers: Fields = (),
    ) -> None:
        """Answer with an error: one of ours, or a status and a line for the user. Any thread."""
        accept = self.head.headers.get("accept")
        if isinstance(error, int):
            body, content_type = self.client.render_error(error, message, accept, None)
            self.respond(error, body, content_type, headers)
            return
        if isinstance(error, Unavailable):
            headers = _render_fields(headers) + b"Retry-After: %d\r\n" % error.retry_after
        body, content_type = self.client.render_error(
            error.status, message or str(error), accept, error.title
        )
        self.respond(error.status, body, content_type, headers)


class Body:
    """The body of an answer in *pieces*, in which it leaves: nobody puts them together."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._size


Answer = tuple[int, bytes | Body, str, bytes]
"""Status, body, content type, more header lines."""


class Turns:
    """What a request has the reactor carry on in turns (conure/net/reactor.py); see
    :meth:`Request.go_on`. Reactor thread only."""

    __slots__ = ("_alone", "_steps", "request")

    def __init__(self, request: Request, steps: Iterator[object], *, alone: bool) -> None:
        self.request = request
        self._steps = steps
        self._alone = alone

    def go_on(self, until: float) -> bool | None:
        """Return whether it may go on in this round; None if it is over."""
        request = self.request
        if self._alone and request.client.is_closed:
            if not request.is_answered:  # or it would be in flight for ever
                request.fail(503, "the client has gone")
            return None
        try:
            for is_done_for_now in self._steps:
                if is_done_for_now:
                    return False
                if perf_counter() >= until:
                    return True
        except Exception:
            log.exception("%s failed", request)
            if not request.is_answered:
                request.fail(500, "internal error; the log of this node has more")
        return None

    def end(self) -> None:
        """Let what the client sent after the request go on."""
        if self._alone:
            client = self.request.client
            size = len(self.request.body)
            client.reactor.bulk += size
            client.reactor.arriving -= size
            client.working = False
        self._steps = iter(())  # lets go of what they hold


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
    title = title or PHRASES.get(status, "error")
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
            name = unquote(name.replace(b"+", b" "))
            value = unquote(value.replace(b"+", b" "))
        if name in parameters:
            raise BadRequest(f"the parameter {show(name)} is given twice; give it once")
        if pair:
            parameters[name] = value
    return parameters


# -- private --------------------------------------------------------------------------------------


def _accepts_json(accept: str | None) -> bool:
    if accept is None or "json" not in accept.lower():
        return False
    for element in elements(accept):
        kind, _, parameters = element.replace(" ", "").partition(";")
        if kind in ("application/json", PROBLEM) and not re.search(r"(^|;)q=0(\.0*)?$", parameters):
            return True
    return False


def _render_fields(fields: Fields) -> bytes:
    if isinstance(fields, bytes):
        return fields
    lines = []
    for name, value in fields:
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line end in the value of {name}")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1")
