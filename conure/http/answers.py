"""The front of HTTP: how what came of requests about keys becomes their answers.

The service tells :class:`Answers` what was found and written, in slices of a round (front.py); the
routes answer by it, too. A plain write or read has no answer of its own: it is answered here.
Everything else comes with a callable that answers it, called once with its outcome.

Any thread.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from conure.commands import Committed, Item, Outcome
from conure.errors import (
    ConureError,
    KeyNotFound,
    MethodNotAllowed,
    NotLeader,
    PreconditionFailed,
)
from conure.http import jsonsteps
from conure.http.counts import Counts
from conure.http.fields import (
    OF_RECORD,
    contact_field,
    etag_field,
    index_field,
    record_fields,
    ttl_field,
)
from conure.http.jsonsteps import Steps
from conure.http.referrals import Forwarding, HTTPReferral
from conure.http.request import Body, Request
from conure.service.backend import Found, KeyValueBackend, Record
from conure.service.freshness import Contact
from conure.service.gate import ANONYMOUS, Caller
from conure.service.refusals import error_of
from conure.service.turns import AT_ONCE, Turns, begin

__all__ = ["JSON", "OCTETS", "OK", "TEXT", "Answer", "Answers", "FullAnswer", "Route"]

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
OCTETS = "application/octet-stream"
OK = b"OK\n"

Route = Callable[[Request], None]

Answer = Callable[[Request, int, Outcome | None], None]
"""Answers a write that was committed, given its revision and what came of a transaction."""

log = logging.getLogger("conure.http")

_BROKEN = "an internal error, see the server's log"


class FullAnswer(ABC):
    """An :data:`Answer` that answers failures, too."""

    @abstractmethod
    def __call__(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        """Answer a write that was committed."""

    @abstractmethod
    def fail(self, request: Request, error: ConureError, fields: bytes) -> None:
        """Answer a write that nothing came of."""


class Answers:
    """Answers the requests of clients that speak HTTP."""

    route = "/kv"
    """Where plain writes and reads are counted."""

    def __init__(
        self, backend: KeyValueBackend, counts: Counts, referral: HTTPReferral | Forwarding
    ) -> None:
        self._backend = backend
        self._counts = counts
        self._referral = referral
        self._until = 0.0  # when the answers of committed transactions have had their time at once

    # -- what the service tells (front.FrontEnd) -------------------------------------------------

    def caller_of(self, request: Request) -> Caller:
        """Return who asks: by the certificate that the client has shown, if it has."""
        return Caller(request.client.principal or ANONYMOUS, request.peer)

    def written(
        self,
        requests: Sequence[Request],
        answers: Mapping[int, Answer],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        """Answer writes; see ``FrontEnd.written``."""
        if isinstance(ended, ConureError):
            for position in range(start, stop):
                self._fail_write(requests[position], answers.get(position), ended)
            return
        revision = ended.first + start
        plain: Sequence[Request]
        if answers:
            plain = self._answer_each(requests, answers, start, stop, ended)
        else:
            plain = requests[start:stop]
            respond = self.respond_plain
            for request in plain:
                respond(request, revision)
                revision += 1
        if plain:
            puts = sum([request.method == "PUT" for request in plain])
            count = self._counts.count_many
            count(self.route, "PUT", 200, plain[0].started, puts)
            count(self.route, "DELETE", 200, plain[0].started, len(plain) - puts)

    def found(
        self,
        requests: Sequence[Request],
        records: Sequence[Found],
        index: int,
        contact: Contact | None,
    ) -> None:
        """Answer reads of plain keys; see ``FrontEnd.found``."""
        found = 0
        fields = index_field(index)
        if contact is not None:
            fields = contact_field(contact) + fields
        now = 0
        for request, record in zip(requests, records, strict=True):
            if record is None:
                self.fail(request, KeyNotFound(), fields)
            elif isinstance(record, ConureError):  # a damaged page; the other keys can be read
                self.fail(request, record, fields)
            else:
                found += 1
                revisions = record.mod_revision, record.create_revision, record.version
                more = OF_RECORD % (fields, *revisions)
                if record.expiry:
                    now = now or self._backend.time()
                    more += ttl_field(record.expiry, now)
                request.respond(200, record.value, OCTETS, more)
        self._counts.count_many(self.route, "GET", 200, requests[0].started, found)

    def failed(self, request: Request, error: ConureError, contact: Contact | None = None) -> None:
        """Answer with an error; see ``FrontEnd.failed``."""
        self.fail(request, error, contact_field(contact))

    def broken(self, request: Request, how: str = "") -> None:
        """Answer what a bug has kept from its answer; see ``FrontEnd.broken``."""
        if how:
            log.exception("%s was %s", request, how)
        request.fail(500, _BROKEN)

    # -- what the routes answer ------------------------------------------------------------------

    def fail(self, request: Request, error: ConureError, fields: bytes = b"") -> None:
        """Answer with an error: by way of the leader, if that is what is wrong."""
        if isinstance(error, NotLeader) and self._referral.refer(request, error, fields):
            return
        if isinstance(error, MethodNotAllowed):
            fields += b"Allow: %b\r\n" % ", ".join(error.allowed).encode()
        request.fail(error, headers=fields)
        self._counts.count(request, error.status)

    def fail_unmet(self, request: Request, outcome: Outcome) -> None:
        """Answer a write whose conditions didn't hold."""
        fields = index_field(outcome.revision)
        if outcome.current:
            fields += etag_field(outcome.current)
        self.fail(request, PreconditionFailed(outcome.current), fields)

    def respond_plain(self, request: Request, revision: int) -> None:
        """Answer a plain write; the caller counts it."""
        if request.method == "PUT":
            fields = b'X-Conure-Index: %d\r\nETag: "%d"\r\n' % (revision, revision)
        else:
            fields = index_field(revision)
        request.respond(200, OK, TEXT, fields)

    def respond(
        self,
        request: Request,
        body: bytes | Body,
        content_type: str,
        fields: bytes = b"",
        status: int = 200,
    ) -> None:
        """Answer, and count that."""
        request.respond(status, body, content_type, fields)
        self._counts.count(request, status)

    def respond_json(
        self, request: Request, found: object, revision: int, more: bytes = b""
    ) -> None:
        """Answer with JSON that is short."""
        body = json.dumps(found).encode() + b"\n"
        self.respond(request, body, JSON, index_field(revision) + more)

    def count(self, request: Request, status: int) -> None:
        """Count a request that was answered."""
        self._counts.count(request, status)

    def begin(self, request: Request, steps: Turns) -> None:
        """Do something now, as far as little time suffices; the reactor goes on with the rest."""
        begin(request, steps, self.fail)

    def begin_outcome(self, request: Request, steps: Turns) -> None:
        """Do likewise with what shows the outcome of a transaction: all transactions that were
        committed together share that time."""
        begin(request, steps, self.fail, self._until)

    def show(self, request: Request, shown: Steps[Any], fields: bytes) -> Turns:
        """Answer with what steps come to, as JSON."""
        found = yield from shown
        pieces = []
        for piece in jsonsteps.write(found):
            pieces.append(piece)
            yield False
        pieces.append(b"\n")
        self.respond(request, Body(pieces), JSON, fields)

    def record_fields(self, record: Record | Item) -> bytes:
        """Return the header fields of a record, which a write may have left."""
        return record_fields(record, self._backend.time() if record.expiry else 0)

    # -- private ---------------------------------------------------------------------------------

    def _answer_each(
        self,
        requests: Sequence[Request],
        answers: Mapping[int, Answer],
        start: int,
        stop: int,
        ended: Committed,
    ) -> list[Request]:
        """Answer writes not all of which are plain; return the requests of those that are."""
        plain = []
        self._until = perf_counter() + AT_ONCE  # all of them share it: they may be thousands
        for position in range(start, stop):
            request, revision = requests[position], ended.first + position
            answer = answers.get(position)
            if answer is None:
                self.respond_plain(request, revision)
                plain.append(request)
                continue
            outcome = ended.outcomes.get(revision)
            try:
                if outcome is None:
                    answer(request, revision, None)
                elif outcome.refusal:
                    fields = index_field(outcome.revision)
                    self._fail_write(request, answer, error_of(outcome), fields)
                else:
                    answer(request, outcome.revision, outcome)
            except Exception:  # a bug; those after it are to be answered all the same
                log.exception("%s was not answered", request)
                request.fail(500, "an internal error after the write, see the server's log")
        return plain

    def _fail_write(
        self, request: Request, answer: Answer | None, error: ConureError, fields: bytes = b""
    ) -> None:
        if isinstance(answer, FullAnswer):
            answer.fail(request, error, fields)
        else:
            self.fail(request, error, fields)
