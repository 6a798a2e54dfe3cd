"""The HTTP server: a listener, a reactor and the front end that speaks HTTP/1.1 between them.

It knows no route: an :class:`Application` gets the requests. The server class accepts connections
as the standard library's does; what it does not do is start a thread for each of them. They rest in
the reactor, whose rounds ``conure/net/reactor.py`` describes: there the requests of a round come to
``Application.handle``, and at its end to ``Application.flush``.

The duties of the server are cited by number in code and tests:

== ======================================================================= ======================
H1 answers leave a connection in the order of its requests                 connection.py
H2 unanswered requests of a connection are of one safety class             connection.py
H3 how bytes were split on their way never changes an answer               grammar.py
H4 an error of one connection, or of the application, ends nothing else    connection.py
H5 what clients may make us keep or wait for is bounded                    limits.py, here
H6 a request whose end is in doubt is refused, and nothing after it read  grammar.py
H7 a stream is complete or visibly cut                                     stream.py
H8 nothing is done for a foreign name or a foreign web page, nor for       origins.py, known.py,
   another machine in protected mode                                       guarded.py
== ======================================================================= ======================

H5  What a client may make us keep or wait for is bounded by :class:`Limits`; how many connections
    one may have, by ``conure/net/places.py``, and how often it may ask, by ``conure/net/rates.py``.
    A reserve answers probes when there is no other place.

Threads: ``Application`` is called in the reactor thread only. Accepting runs in the thread of
``serve_forever``. Counters may be read from any thread.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial
from http.server import ThreadingHTTPServer
from math import inf
from time import perf_counter
from typing import Any, Protocol

from conure.errors import BadRequest
from conure.http.connection import HTTPConnection, ReservedConnection
from conure.http.grammar import READS, show
from conure.http.guarded import BarredConnection, CountedConnection
from conure.http.known import Known
from conure.http.limits import Limits
from conure.http.origins import PREFLIGHT, Access
from conure.http.request import RenderError, Request, Turns, error_body
from conure.net.link import Link
from conure.net.listener import Listener, MakeLink, bind
from conure.net.places import Places
from conure.net.reactor import Bounds, Reactor

__all__ = ["SPEAKS_TLS", "Application", "HTTPFront", "HTTPServer", "bounds_of"]

log = logging.getLogger("conure.http")

_TLS_LINE = b"this port speaks TLS; use https:// in place of http://\n"

SPEAKS_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TLS_LINE), _TLS_LINE)
)
"""What a client is sent that speaks plain HTTP to a port that speaks TLS."""

_SLOW_LINES = 5  # of the log in a tick, for slow requests
_SHOWN_KEY = 64  # bytes of a key in the log


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
    # request at once, if the body isn't needed; the connection ends with that answer. And it may
    # have a `render_error` of its own (request.RenderError), for the server's errors, too.


class HTTPFront:
    """The front end: makes connections of links, and hands their requests to *application*.

    Reactor thread only, but for :meth:`accept` and :meth:`release`, and the counters. One thread at
    a time accepts.
    """

    def __init__(
        self, reactor: Reactor, application: Application, limits: Limits, access: Access
    ) -> None:
        self.limits = limits
        self.access = access
        self.probes = access.probes
        self.door = access.door
        self.known = Known(limits, access)
        self.places = Places(limits.max_connections, limits.trusted_proxies)
        self.reserved: dict[HTTPConnection, None] = {}  # in the reserve, the oldest first
        self.handle: Callable[[Request], None] = application.handle
        self.without_body: Callable[[Request], Callable[[Request], None] | None] = getattr(
            application, "without_body", _needs_body
        )
        self.render_error: RenderError = getattr(application, "render_error", error_body)
        self.slow_request = limits.slow_request or inf  # seconds
        self.slow_requests = 0
        self.refused: dict[int, int] = {}  # by status
        self._flush = application.flush
        self._reactor = reactor
        self._tells_of_tls = True  # a client that speaks TLS is logged, the first of each tick
        self._slow_lines = 0  # logged since the last tick, or not for there being too many
        reactor.serve(self)
        reactor.at_round_end(self.flush)

    # -- the accepting thread

    def accept(self, link: Link, peer: Any) -> HTTPConnection | None:
        """Make a connection of a link, with a place or in the reserve, or turn it away."""
        reactor, places = self._reactor, self.places
        place = places.take(peer[0])
        if place is not None:
            if self.door.bars(peer[0], link.local_address):
                return BarredConnection(reactor, self, link, peer, place)
            if self.access.rates is not None:
                visitor = self.access.rates.visitor(peer[0], partial(getattr, link, "principal"))
                return CountedConnection(reactor, self, link, peer, place, visitor)
            return HTTPConnection(reactor, self, link, peer, place)
        if len(self.reserved) >= 2 * places.reserve:
            self.count_refusal(503)
            return None
        connection = ReservedConnection(reactor, self, link, peer, None)
        self.reserved[connection] = None
        if len(self.reserved) > places.reserve:
            reactor.post(self._make_room)
        return connection

    # -- any thread

    @property
    def connections_open(self) -> int:
        """How many connections have a place, or are in the reserve."""
        return self.places.taken + len(self.reserved)

    def release(self, connection: HTTPConnection) -> None:
        """Let another connection have the place of one."""
        if connection.place is None:
            del self.reserved[connection]
        else:
            self.places.give_back(connection.place)

    def count_refusal(self, status: int) -> None:
        """Note that the server itself refused a request or a connection."""
        self.refused[status] = self.refused.get(status, 0) + 1

    # -- the reactor thread

    def tick(self) -> None:
        """Renew the date, and tell of the slow requests that were too many to be logged."""
        self.known.renew_date()
        if self._slow_lines > _SLOW_LINES:
            log.warning("slow: %d more requests", self._slow_lines - _SLOW_LINES)
        self._slow_lines = 0
        self._tells_of_tls = True

    def flush(self) -> bool:
        """Let the application finish the round; answer what it leaves if that fails (H4)."""
        try:
            return self._flush()
        except Exception:
            log.exception("flushing a round failed")
            self._fail_round()
            return False

    def is_refused(self, request: Request) -> bool:
        """Tell whether a request may not be made by the web page that made it (H8)."""
        judgement = request.head.judgement
        if judgement is None:
            return False
        is_public = request.method in READS and request.path in self.access.public
        return judgement[0] != 403 or not is_public

    def refuse_page(self, request: Request) -> None:
        """Answer a request that is refused for its name or its origin."""
        assert request.head.judgement is not None
        status, message = request.head.judgement
        self.count_refusal(status)
        request.fail(status, message)

    def note_tls(self, connection: HTTPConnection) -> None:
        """Log a client that speaks TLS where nobody does, unless another one was just logged."""
        if self._tells_of_tls:
            log.info("%s speaks TLS, and this port doesn't (tls_cert)", connection.peer[0])
        self._tells_of_tls = False

    def answer_preflight(self, request: Request) -> None:
        """Tell a browser what a page of another origin that may ask may send."""
        request.respond(204, headers=PREFLIGHT)

    def note_slow(self, request: Request, status: int) -> None:
        """Log a request whose answer took long, unless too many of them have been already."""
        self.slow_requests += 1
        self._slow_lines += 1
        if self._slow_lines <= _SLOW_LINES:
            took = perf_counter() - request.started
            log.warning(
                "slow: %s%s of %s answered %d after %.3f s",
                *(request, _show_key(request), _show_client(request), status, took),
            )

    # -- private

    def _make_room(self) -> None:
        """Close those who have been in the reserve for the longest."""
        for connection in list(self.reserved)[: -self.places.reserve]:
            self._reactor.guard(connection.close, connection)

    def _fail_round(self) -> None:
        reactor = self._reactor
        turned = {turn.request for turn in reactor.turned if isinstance(turn, Turns)}
        for connection in list(reactor.connections.values()):
            if not isinstance(connection, HTTPConnection) or connection.front is not self:
                continue
            for request in list(connection.waiting):
                is_of_this_round = request.started == reactor.now or request in turned
                if is_of_this_round and not request.is_answered:
                    request.fail(500, "internal error; a write may or may not have happened")


class HTTPServer(Listener, ThreadingHTTPServer):
    """The server: accepts, and keeps the front end and the reactor.

    *on_fatal* is told, in the thread concerned, when the reactor or the accepting thread ended by
    an exception: the server is dead then, and the process should end. *access* says under which
    names and to which web pages it answers. With a *reactor*, the server shares that one, whose
    bounds count then and not those of *limits*; else it makes one of its own. *address* is one to
    bind, or a socket that :func:`bind` has returned. *name* is what the accepting thread and its
    log are called. *make_link* makes links of what is accepted. Raises OSError where it can't be
    bound.
    """

    def __init__(
        self,
        address: tuple[str, int] | socket.socket,
        application: Application,
        limits: Limits | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
        access: Access | None = None,
        reactor: Reactor | None = None,
        name: str = "http",
        make_link: MakeLink | None = None,
    ) -> None:
        limits = limits or Limits()
        tell = on_fatal or _ignore
        bound = address if isinstance(address, socket.socket) else bind(address)
        used = reactor or Reactor(bounds_of(limits), tell, "http")
        self.front = HTTPFront(used, application, limits, access or Access())
        super().__init__(bound, used, self.front, tell, name, make_link)

    @property
    def connections_open(self) -> int:
        """How many connections this server has."""
        return self.front.connections_open

    @property
    def requests(self) -> int:
        """How many requests were handed to the application, or came whole and were refused: one
        too many (429), or for the name or the page (421, 403). This and the next five count what
        all servers of the reactor do."""
        return self.reactor.requests

    @property
    def requests_in_flight(self) -> int:
        """How many requests are with the application, unanswered, that don't wait."""
        return self.reactor.in_flight

    @property
    def streams_open(self) -> int:
        """How many streams are not over and requests that wait."""
        return self.reactor.streams

    @property
    def streams_dropped(self) -> int:
        """How many streams were dropped because their clients read too slowly."""
        return self.reactor.streams_dropped

    @property
    def bytes_in(self) -> int:
        return self.reactor.bytes_in

    @property
    def bytes_out(self) -> int:
        return self.reactor.bytes_out

    @property
    def slow_requests(self) -> int:
        """How many answers took longer than ``Limits.slow_request``."""
        return self.front.slow_requests

    @property
    def refused(self) -> dict[int, int]:
        """How many requests or connections the server itself refused, by HTTP status."""
        return dict(self.front.refused)

    def drain(self, timeout: float) -> bool:
        """Stop: accept nothing more, finish what is in flight, close everything.

        Answers carry ``Connection: close``; idle connections are closed at once. After *timeout*
        seconds the rest is cut off. Returns whether nothing had to be. Not from the thread of
        :meth:`serve_forever`, nor from the application. A shared reactor ends with it.
        """
        self.stop()
        return self.reactor.drain(timeout)


def bounds_of(limits: Limits) -> Bounds:
    """Return what of *limits* bounds all connections together, for a reactor."""
    return Bounds(
        max_arriving_bytes=limits.max_arriving_bytes,
        max_leaving_bytes=limits.max_leaving_bytes,
        max_in_flight=limits.max_requests_in_flight,
        max_streams=limits.max_streams,
    )


def _needs_body(request: Request) -> None:
    """Stand for an application that wants the body of each request."""


def _ignore(error: BaseException) -> None:
    """Stand for nobody who wants to know that the server is dead."""


def _show_client(request: Request) -> str:
    """Return who a client is, for a log: by its certificate, too, if it has shown one."""
    principal = request.client.principal
    return f"{principal} at {request.peer}" if principal else request.peer


def _show_key(request: Request) -> str:
    """Return the key that a request names, shortened, for a log; empty if there is none."""
    try:
        key = request.parameters().get(b"key")
    except BadRequest:
        key = None
    return "" if key is None else f" key {show(key, _SHOWN_KEY)}"
