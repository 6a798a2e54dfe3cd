"""The routes of sessions, which hold locks: begun, seen, renewed, ended.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
POST     /session       begins a session; GET tells of it, PUT renews it, DELETE ends it
======== ============== ========================================================================

The routes are the reactor's; what answers them may be called by any thread.
"""

from __future__ import annotations

import json
from functools import partial
from secrets import token_hex

from conure.commands import MAX_KEY_BYTES, EndSession, OpenSession, Outcome, RenewSession
from conure.errors import BadRequest, ConureError, NotFound, TargetTooLong
from conure.http.answers import JSON, OK, TEXT, Answers, Route
from conure.http.commits import Commits
from conure.http.fields import contact_field, index_field
from conure.http.parameters import (
    STALENESS,
    conditions_of,
    freshness_of,
    refuse_conditions_of_read,
    refuse_others,
    session_id,
    ttl_of,
)
from conure.http.request import Request
from conure.service.freshness import Contact
from conure.service.once import session_of
from conure.service.quoting import shown
from conure.service.refusals import NO_SESSION
from conure.service.requests import Desk

__all__ = ["Sessions"]


class Sessions:
    """The routes of sessions."""

    def __init__(self, desk: Desk[Request], answers: Answers, commits: Commits) -> None:
        self._desk = desk
        self._answers = answers
        self._commits = commits

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {
            "/session": {
                "POST": self._open,
                "GET": self._show,
                "HEAD": self._show,
                "PUT": self._renew,
                "DELETE": self._end,
            },
        }

    def _open(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"ttl", b"name", b"behavior"})
        ttl = ttl_of(query, "ttl=15s")
        behavior = query.get(b"behavior", b"release")
        if behavior not in (b"release", b"delete"):
            raise BadRequest(
                f"behavior is {shown(behavior)}; it has to be release or delete: what becomes "
                "of the keys that the session holds at its end"
            )
        name = query.get(b"name", b"")
        if len(name) > MAX_KEY_BYTES:
            raise TargetTooLong(f"the name has {len(name):,} bytes; the limit is {MAX_KEY_BYTES:,}")
        key = request.headers.get("idempotency-key")
        # A repetition has to be told the same one.
        session = token_hex(16).encode() if key is None else session_of(key, request.query)
        operation = OpenSession(session, ttl, behavior == b"delete", name)
        self._commits.commit_one(request, operation, partial(self._answer_open, session, ttl))

    def _renew(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"id"})
        operation = RenewSession(session_id(query, b"id"))
        self._commits.commit_one(request, operation, self._answer_done)

    def _end(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"id"})
        operation = EndSession(session_id(query, b"id"))
        self._commits.commit_one(request, operation, self._answer_done)

    def _answer_open(
        self, session: bytes, ttl: int, request: Request, revision: int, _: Outcome | None
    ) -> None:
        shown = {"id": session.decode(), "ttl": ttl / 1000}
        self._answers.respond_json(request, shown, revision)

    def _answer_done(self, request: Request, revision: int, _: Outcome | None) -> None:
        self._answers.respond(request, OK, TEXT, index_field(revision))

    def _show(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, STALENESS | {b"id"})
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        session = session_id(query, b"id")
        look = partial(self._look, request, session)
        self._desk.look_at_session(request, freshness_of(query), look)

    def _look(self, request: Request, session: bytes, contact: Contact | None) -> None:
        index, found = self._desk.backend.session(session)
        fields = contact_field(contact) + index_field(index)
        if found is None or isinstance(found, ConureError):
            self._answers.fail(request, found or NotFound(NO_SESSION), fields)
            return
        left = max(0, found.expiry - self._desk.backend.time()) / 1000
        shown = {
            "id": session.decode("latin-1"),
            "name": found.name.decode(errors="replace"),
            "behavior": "delete" if found.deletes else "release",
            "ttl": found.ttl / 1000,
            "left": left,
        }
        body = json.dumps(shown).encode() + b"\n"
        self._answers.respond(request, body, JSON, fields)
