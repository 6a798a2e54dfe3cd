"""REST: keys as paths, one more application behind the HTTP server.

======== ========= ==============================================================================
method   path      answer
======== ========= ==============================================================================
PUT      /{key}    stores a value; with ``ttl``, ``keepttl``, ``cas`` or the conditions of HTTP
GET      /{key}    the value, as JSON or alone
HEAD     /{key}    the same without its body
DELETE   /{key}    removes the key; 404 if it isn't there
======== ========= ==============================================================================

No path means anything else here: ``/kv``, ``/status`` and ``/metrics`` are keys like all others.
Everything that a request does goes through the one service, with the revisions, bounds,
conditions and Idempotency-Keys of ``/kv`` (keys.py), and nobody is redirected: what only the
leader can do is passed on to it. docs/http-api.md has the whole of it.

``handle`` and ``flush`` are called by the reactor thread only. Nothing here may hand a request to
any route of the other API, or answer by what a body looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from conure.commands import Delete, Put, Transaction
from conure.errors import BadRequest, ConureError, MethodNotAllowed
from conure.http.commits import Commits
from conure.http.counts import RequestMetrics
from conure.http.documents import INLINE_BYTES
from conure.http.jsonsteps import Steps, all_of
from conure.http.parameters import (
    STALENESS,
    compares,
    flag,
    freshness_of,
    refuse_coding,
    refuse_others,
    ttl_of,
)
from conure.http.referrals import Forwarding
from conure.http.request import Request
from conure.http.restanswers import RestAnswers
from conure.http.restrecords import render_error
from conure.http.restrequests import Named, Wishes, named_by, read_short, read_value, wishes_of
from conure.service.backend import KeyValueBackend
from conure.service.limits import Limits
from conure.service.once import Once, fingerprint
from conure.service.requests import Requests
from conure.service.turns import Turns, or_fail

__all__ = ["Rest"]

_PUT: Final = frozenset({b"ttl", b"keepttl", b"cas"})
_DELETE: Final = frozenset({b"cas"})


class Rest:
    """The application. *requests* is the service that all fronts share, *limits* bounds what a
    request carries, *metrics* counts requests, and the outcome of one with an Idempotency-Key is
    remembered for *idempotency_window* milliseconds."""

    def __init__(
        self,
        backend: KeyValueBackend,
        requests: Requests,
        metrics: RequestMetrics,
        limits: Limits,
        *,
        idempotency_window: int = 600_000,
    ) -> None:
        referral = Forwarding()
        self._answers = RestAnswers(backend, metrics, referral)
        self._desk = requests.for_front(self._answers, referral)
        self._commits = Commits(
            self._desk, Once(idempotency_window), self._answers.fail, _fingerprint_of
        )
        self._limits = limits
        self._methods: dict[str, Callable[[Request], None]] = {
            "GET": self._get,
            "HEAD": self._get,
            "PUT": self._put,
            "DELETE": self._delete,
        }
        self.render_error = render_error
        """How errors are told, the server's own among them."""
        self.flush = requests.end_round
        """Ends a round; does nothing where another front has done it."""

    def handle(self, request: Request) -> None:
        """Answer a request, or take it into this round's reads or writes."""
        try:
            action = self._methods.get(request.method)
            if action is None:
                raise MethodNotAllowed(request.method, sorted(self._methods))
            action(request)
        except ConureError as error:
            self._answers.fail(request, error)

    # -- private ---------------------------------------------------------------------------------

    def _get(self, request: Request) -> None:
        wishes: Wishes = request.headers.note or wishes_of(request.headers)
        named: Named = request.target.note or named_by(request)
        if wishes.if_match is not None:
            raise BadRequest(
                "If-Match goes with PUT and DELETE only; compare what the answer's ETag says"
            )
        if not named.query:
            self._desk.get(request, named.key)
            return
        refuse_others(named.query, STALENESS)
        self._desk.get(request, named.key, freshness_of(named.query))

    def _put(self, request: Request) -> None:
        wishes: Wishes = request.headers.note or wishes_of(request.headers)
        named: Named = request.target.note or named_by(request)
        refuse_coding(wishes)
        if wishes.fault:
            raise BadRequest(wishes.fault)
        if wishes.is_json:
            value = read_short(request.body, self._limits)
        else:
            value = self._limits.check_value(request.body or _empty_value(request))
        if value is None:
            steps = self._put_json(request, wishes, named)
            if len(request.body) <= INLINE_BYTES:
                all_of(steps)
            else:
                request.go_on(or_fail(request, steps, self._answers.fail), alone=True)
        elif wishes.is_bare and not named.query:
            self._desk.write(request, (named.key, value))
        else:
            self._store(request, wishes, named, value, 0, b"")

    def _put_json(self, request: Request, wishes: Wishes, named: Named) -> Turns:
        """Store what a body of JSON says, in turns if it is a long one."""
        value, ttl = yield from read_value(request.body, self._limits)
        told = b""
        if wishes.idempotency_key is not None:
            told = yield from _fingerprint_of(request)
        self._store(request, wishes, named, value, ttl, told)

    def _store(
        self, request: Request, wishes: Wishes, named: Named, value: bytes, ttl: int, told: bytes
    ) -> None:
        """Take a put into the round; *told* is the request's fingerprint, if it is known."""
        key, query, _ = named
        if wishes.is_bare and not query and not ttl:
            self._desk.write(request, (key, value))
            return
        refuse_others(query, _PUT)
        if b"ttl" in query:
            if ttl:
                raise BadRequest("the ttl is given in the body and in the query; give it once")
            ttl = ttl_of(query, "ttl=30s")
        keep_ttl = flag(query, b"keepttl")
        if keep_ttl and ttl:
            raise BadRequest("ttl and keepttl exclude each other")
        operation = Put(key, value, ttl, keep_ttl=keep_ttl)
        transaction = Transaction(compares(key, query, wishes), (operation,))
        self._commits.commit(request, wishes, transaction, self._answers.put, told)

    def _delete(self, request: Request) -> None:
        wishes: Wishes = request.headers.note or wishes_of(request.headers)
        key, query, _ = request.target.note or named_by(request)
        refuse_others(query, _DELETE)
        transaction = Transaction(compares(key, query, wishes), (Delete(key),))
        self._commits.commit(request, wishes, transaction, self._answers.deleted)


def _empty_value(request: Request) -> bytes:
    """Return what a put without a body stores if it says so: nothing. Raises BadRequest.

    A client or proxy that sends a stream a second time may send chunks with nothing in them: it
    doesn't mean an empty value.
    """
    if "content-length" not in request.headers:
        raise BadRequest("send a body; Content-Length: 0 stores an empty value")
    return b""


def _fingerprint_of(request: Request) -> Steps[bytes]:
    """Return what tells a request with an Idempotency-Key from others with the same one, those of
    ``/kv`` among them: the bytes of its path, and what its body is."""
    wishes: Wishes = request.headers.note
    told = wishes.if_match, wishes.if_none_match, wishes.is_json
    target = request.target
    path = target.octets  # with its length: a question mark may be part of it
    line = b"REST %b %d %b?%b" % (request.method.encode(), len(path), path, target.query)
    return fingerprint(b"\n".join((line, repr(told).encode(), b"")), request.body)
