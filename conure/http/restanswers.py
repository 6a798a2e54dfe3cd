"""The front of REST: how what the service tells becomes answers to requests for paths.

They are those of ``/kv`` (answers.py) with the same header fields; what differs is the body, which
is JSON but for a value that is asked for as it is. Every request counts as :data:`ROUTE`.

A long value takes turns to become JSON. Whatever waits for its turn holds no value: it is read
again then, and many who wait for long ones take no memory for them.

Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from conure.commands import Outcome
from conure.errors import ConureError, KeyNotFound, NotLeader, Unavailable
from conure.http.answers import JSON, OCTETS, Answers
from conure.http.counts import Counts, RequestMetrics
from conure.http.documents import INLINE_BYTES
from conure.http.fields import OF_RECORD, contact_field, index_field, ttl_field
from conure.http.parameters import names_revision
from conure.http.referrals import Forwarding
from conure.http.request import Request
from conure.http.restrecords import show, show_in_steps
from conure.http.restrequests import Named
from conure.service.backend import Found, KeyValueBackend
from conure.service.freshness import Contact
from conure.service.turns import AT_ONCE, Turns, or_fail

__all__ = ["ROUTE", "RestAnswers"]

ROUTE: Final = "/{key}"
"""What the requests are counted as."""

_VARY: Final = b"Vary: Accept\r\n"
_SHOWN_AT_ONCE = 256 << 10  # bytes of a value that is no short one, if there is time: a millisecond


class RestAnswers(Answers):
    """Answers the requests of clients that name a key by a path."""

    route = ROUTE

    def __init__(
        self, backend: KeyValueBackend, metrics: RequestMetrics, referral: Forwarding
    ) -> None:
        super().__init__(backend, Counts(metrics, (), ROUTE), referral)

    def found(
        self,
        requests: Sequence[Request],
        records: Sequence[Found],
        index: int,
        contact: Contact | None,
    ) -> None:
        """Answer reads; see ``FrontEnd.found``."""
        fields = contact_field(contact) + index_field(index)
        shown = _VARY + fields
        until = perf_counter() + AT_ONCE  # all of them share it
        count = now = 0
        for request, record in zip(requests, records, strict=True):
            if record is None or isinstance(record, ConureError):
                self.fail(request, record or KeyNotFound(), fields)
                continue
            revision, value, ttl = record.mod_revision, record.value, None
            more = OF_RECORD % (shown, revision, record.create_revision, record.version)
            if record.expiry:
                now = now or self._backend.time()
                more += ttl_field(record.expiry, now)
                ttl = max(0, record.expiry - now) / 1000
            wishes = request.head.headers.note
            if wishes.if_none_match is not None and names_revision(wishes.if_none_match, revision):
                self.respond(request, b"", JSON, more, 304)
                continue
            if wishes.octets:
                request.respond(200, value, OCTETS, more)
            elif len(value) <= INLINE_BYTES or (
                len(value) <= _SHOWN_AT_ONCE and perf_counter() < until
            ):
                request.respond(200, show(request.target.note, value, ttl), JSON, more)
            else:
                request.go_on(or_fail(request, self._show_later(request, contact), self.fail))
                continue
            count += 1
        self._counts.count_many(ROUTE, "GET", 200, requests[0].started, count)

    def fail(self, request: Request, error: ConureError, fields: bytes = b"") -> None:
        """Answer with an error; one that names the leader names no address that these clients
        could ask."""
        if isinstance(error, NotLeader) and error.leader:
            error = Unavailable(
                f"this node can't answer without the leader, {error.leader_id}, or keeps no "
                "records; try again shortly, or ask another server"
            )
        super().fail(request, error, fields)

    def respond_plain(self, request: Request, revision: int) -> None:
        """Answer a plain put; the caller counts it."""
        fields = b'X-Conure-Index: %d\r\nETag: "%d"\r\n' % (revision, revision)
        request.respond(200, b'{"revision": %d}\n' % revision, JSON, fields)

    def put(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        """Answer a put that asked for more than that."""
        assert outcome is not None
        if not outcome.succeeded:
            self.fail_unmet(request, outcome)
            return
        fields = index_field(revision)
        for item in outcome.results[0].items:
            fields += self.record_fields(item)
        self.respond(request, b'{"revision": %d}\n' % revision, JSON, fields)

    def deleted(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        """Answer a deletion; one that found no key has changed nothing."""
        assert outcome is not None
        if not outcome.succeeded:
            self.fail_unmet(request, outcome)
        elif not outcome.results[0].total:
            self.fail(request, KeyNotFound(), index_field(revision))
        else:
            body = b'{"revision": %d}\n' % revision
            self.respond(request, body, JSON, index_field(revision))

    # -- private ---------------------------------------------------------------------------------

    def _show_later(self, request: Request, contact: Contact | None) -> Turns:
        """Answer a read with a long value, read now: what has been confirmed holds all the more."""
        named: Named = request.target.note
        index, (record,) = self._backend.get_all([named.key])
        fields = contact_field(contact) + index_field(index)
        if record is None or isinstance(record, ConureError):
            self.fail(request, record or KeyNotFound(), fields)
            return
        ttl = None
        if record.expiry:
            ttl = max(0, record.expiry - self._backend.time()) / 1000
        yield False
        body = yield from show_in_steps(named, record.value, ttl)
        self.respond(request, body, JSON, _VARY + fields + self.record_fields(record))
