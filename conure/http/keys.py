"""The routes of keys: what each request reads or writes, and how it is answered.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
PUT      /kv            stores ``value`` (parameter or body) under ``key``; with ``ttl``,
                        ``keepttl``, ``cas``, ``acquire`` or ``release``: see docs/http-api.md
GET      /kv            the value of ``key``, its record as JSON with ``meta=true``, or the
                        records of a ``prefix`` or of all keys ``from`` … ``to``
DELETE   /kv            removes ``key``, whether it was there or not; or a ``prefix``, atomically,
                        with ``limit`` the first keys of it
GET      /kv/count      how many keys there are with a ``prefix``
POST     /kv/incr       adds ``by`` to a number
POST     /kv/touch      sets when a key expires
======== ============== ========================================================================

1. A write is answered after it is committed and applied (R8); a time-out is 504, since its
   outcome is unknown.
2. A request that is refused has changed nothing: every limit is checked before the proposal, and
   conditions are judged by the state machine, all or nothing.
3. Each answer to a stale read says in ``X-Conure-Last-Contact`` how many milliseconds ago this
   node last heard a leader, or ``never``. With ``max_stale`` an older contact is a 503.
4. Each answer about keys says in ``X-Conure-Index`` as of which revision it is true.

A plain put, get or delete takes the short way: no transaction, no state pinned, no JSON. The routes
are the reactor's; what answers them may be called by any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from conure.commands import (
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    Increment,
    Item,
    Operation,
    Outcome,
    Put,
    Refusal,
    Relation,
    Release,
    Target,
    Touch,
    Transaction,
)
from conure.errors import (
    BadRequest,
    ConureError,
    KeyNotFound,
    Unavailable,
)
from conure.http import documents
from conure.http.answers import OCTETS, OK, TEXT, Answers, Route
from conure.http.commits import Commits
from conure.http.fields import (
    contact_field,
    index_field,
    record_fields,
    token_field,
)
from conure.http.jsonsteps import Steps, all_of
from conure.http.parameters import (
    PLAIN,
    STALENESS,
    Conditions,
    Query,
    bounds,
    compares,
    conditions_of,
    duration,
    flag,
    freshness_of,
    key_of,
    named_by,
    names_revision,
    number,
    refuse_coding,
    refuse_conditions,
    refuse_conditions_of_read,
    refuse_others,
    scan_of,
    session_id,
    ttl_of,
)
from conure.http.request import Request
from conure.service.freshness import STALE, Contact
from conure.service.limits import MAX_NUMBER, Limits
from conure.service.refusals import error_of
from conure.service.requests import Desk
from conure.service.rounds import Look
from conure.service.scans import Page, Scan, item_of, items_in_turns
from conure.service.turns import Turns

__all__ = ["INLINE_ITEMS", "MAX_WAIT", "KeyValues"]

INLINE_ITEMS = 256
"""Records that are read and shown in the reactor's thread; more are a worker's."""

MAX_WAIT = 600.0
"""Seconds that a request may wait for a change."""

_PUT = frozenset({b"key", b"value", b"ttl", b"keepttl", b"cas", b"acquire", b"release"})
_EXCLUSIVE = frozenset({b"ttl", b"keepttl", b"acquire", b"release"})
_BOUNDS = frozenset({b"prefix", b"from", b"to"})
_RANGE = _BOUNDS | {b"limit", b"after", b"reverse", b"keys"}
_LOOK = STALENESS | {b"key", b"meta", b"index", b"wait"}
_KEY_AND_VALUE = frozenset({b"key", b"value"})


class KeyValues:
    """The routes of keys. *stream_range* answers with all the records of a range, a line of JSON
    each, and with the header fields it is given."""

    def __init__(
        self,
        desk: Desk[Request],
        answers: Answers,
        commits: Commits,
        limits: Limits,
        stream_range: Callable[[Request, Scan, bytes], None],
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._commits = commits
        self._limits = limits
        self._stream_range = stream_range

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {
            "/kv": {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete},
            "/kv/count": {"GET": self._count, "HEAD": self._count},
            "/kv/incr": {"POST": self._increment},
            "/kv/touch": {"POST": self._touch},
        }

    # -- writes ----------------------------------------------------------------------------------

    def _put(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN and not is_stale:
            value = request.body or _empty_value(request)
            self._desk.write(request, (key, self._limits.check_value(value)))
            return
        key = key_of(query)
        refuse_coding(conditions)
        value = self._limits.check_value(query.get(b"value", request.body))
        if conditions is PLAIN and query.keys() == _KEY_AND_VALUE:
            self._desk.write(request, (key, value))
            return
        refuse_others(query, _PUT)
        if len(query.keys() & _EXCLUSIVE) > 1:
            raise BadRequest("ttl, keepttl, acquire and release exclude each other")
        given = value if b"value" in query or request.body else None
        operation: Operation
        if b"acquire" in query:
            session = session_id(query, b"acquire")
            self._desk.check_holdings(request, session, key)
            operation = Acquire(key, session, given)
        elif b"release" in query:
            operation = Release(key, session_id(query, b"release"), given)
        else:
            if given is None:
                value = _empty_value(request)
            if b"ttl" in query:
                operation = Put(key, value, ttl_of(query, "ttl=30s"))
            else:
                operation = Put(key, value, keep_ttl=flag(query, b"keepttl"))
        transaction = Transaction(compares(key, query, conditions), (operation,))
        self._commits.commit(request, conditions, transaction, self._answer_put)

    def _delete(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN and not is_stale:
            self._desk.write(request, (key, None))
            return
        if b"key" not in query and query.keys() & _BOUNDS:
            refuse_others(query, _BOUNDS | {b"limit"})
            if b"limit" in query:
                self._delete_part(request, query, conditions)
                return
            self._commits.commit_one(
                request,
                DeleteRange(*bounds(query), self._limits.deleted_items),
                self._answer_delete_range,
            )
            return
        key = key_of(query)
        refuse_others(query, {b"key", b"cas"})
        transaction = Transaction(compares(key, query, conditions), (Delete(key),))
        self._commits.commit(request, conditions, transaction, self._answer_delete)

    def _delete_part(self, request: Request, query: Query, conditions: Conditions) -> None:
        """Delete the first keys of a range, up to a limit."""
        start, end = bounds(query)
        limit = min(number(query, b"limit", 1), self._limits.deleted_items)
        refuse_conditions(conditions)
        whole = Transaction((), (DeleteRange(start, end, limit),))
        ended = partial(self._answer_part, request)
        take = partial(self._desk.delete_part, request, ended=ended)
        self._commits.hand_over(request, conditions, whole, take)

    def _increment(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"key", b"by", b"ttl"})
        by = number(query, b"by", -MAX_NUMBER - 1) if b"by" in query else 1
        key = key_of(query)
        operation = Increment(key, by)
        if b"ttl" not in query:
            self._commits.commit_one(request, operation, self._answer_increment)
            return
        exists = Compare(key, Target.VERSION, Relation.GREATER, 0)
        begin = Put(key, b"%d" % by, ttl_of(query, "ttl=30s"))
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        transaction = Transaction((exists,), (operation,), (begin,))
        answer = partial(self._answer_first_increment, by)
        self._commits.commit(request, conditions, transaction, answer)

    def _touch(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"key", b"ttl"})
        ttl = ttl_of(query, "ttl=30s, or ttl=0 to let the key live for ever", least=0)
        self._commits.commit_one(request, Touch(key_of(query), ttl), self._answer_put)

    # -- what came of a write --------------------------------------------------------------------

    def _answer_put(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        assert outcome is not None
        if not outcome.succeeded:
            self._answers.fail_unmet(request, outcome)
            return
        (result,) = outcome.results
        fields = index_field(revision)
        if result.items:
            fields += self._answers.record_fields(result.items[0])
        if result.number:
            fields += token_field(result.number)
        self._answers.respond(request, OK, TEXT, fields)

    def _answer_delete(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        if outcome is not None and not outcome.succeeded:
            self._answers.fail_unmet(request, outcome)
        else:
            self._answers.respond(request, OK, TEXT, index_field(revision))

    def _answer_increment(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        assert outcome is not None
        (result,) = outcome.results
        fields = index_field(revision) + self._answers.record_fields(result.items[0])
        self._answers.respond(request, b"%d\n" % result.number, TEXT, fields)

    def _answer_first_increment(
        self, by: int, request: Request, revision: int, outcome: Outcome | None
    ) -> None:
        """Answer an increment that was to begin with a number that expires."""
        assert outcome is not None
        if not outcome.succeeded:  # there was no key: it was put
            (result,) = outcome.results
            outcome = outcome._replace(results=(result._replace(number=by),))
        self._answer_increment(request, revision, outcome)

    def _answer_delete_range(
        self, request: Request, revision: int, outcome: Outcome | None
    ) -> None:
        assert outcome is not None
        self._answers.respond_json(request, {"deleted": outcome.results[0].total}, revision)

    def _answer_part(self, request: Request, ended: Outcome | ConureError) -> None:
        """Answer a deletion in parts, whose last attempt it was."""
        if isinstance(ended, ConureError):
            self._answers.fail(request, ended)
        elif ended.refusal:
            error = error_of(ended)
            if ended.refusal is Refusal.TOO_MANY_KEYS:
                error = Unavailable("keys come into the range faster than their number is known")
            self._answers.fail(request, error, index_field(ended.revision))
        else:
            deleted, *left = ended.results
            shown = {"deleted": deleted.total, "more": any(result.total for result in left)}
            self._answers.respond_json(request, shown, ended.revision)

    # -- reads -----------------------------------------------------------------------------------

    def _get(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN:
            if is_stale:
                self._desk.get(request, key, STALE)
            else:
                self._desk.get(request, key)
            return
        if b"key" not in query and query.keys() & _RANGE:
            self._get_range(request, query, conditions)
            return
        refuse_conditions_of_read(conditions)
        key = key_of(query)
        refuse_others(query, _LOOK)
        as_json = flag(query, b"meta") or conditions.objects
        look = partial(self._look, request, key, conditions.if_none_match, as_json)
        if b"index" not in query:
            if b"wait" in query:
                raise BadRequest("wait bounds a wait for a change; add the index to wait from")
            self._desk.look(request, key, key + b"\0", freshness_of(query), look)
        else:
            self._wait(request, query, key, look)

    def _wait(self, request: Request, query: Query, key: bytes, look: Look) -> None:
        """Have a look when the key has changed after a revision, or when the wait is over."""
        after = number(query, b"index", 0)
        seconds = duration(query, b"wait") / 1000 if b"wait" in query else 30.0
        if not seconds <= MAX_WAIT:
            raise BadRequest(f"wait may be up to {MAX_WAIT:.0f}s")
        self._desk.wait(request, key, after, seconds, freshness_of(query), look)

    def _look(
        self,
        request: Request,
        key: bytes,
        none_match: str | None,
        as_json: bool,
        contact: Contact | None,
    ) -> None:
        """Answer a read of one key that asks for more than the value."""
        backend = self._desk.backend
        index, record, holder = backend.look(key)
        fields = contact_field(contact) + index_field(index)
        if record is None or isinstance(record, ConureError):
            self._answers.fail(request, record or KeyNotFound(), fields)
            return
        now = backend.time()
        fields += record_fields(record, now)
        if none_match is not None and names_revision(none_match, record.mod_revision):
            self._answers.respond(request, b"", OCTETS, fields, 304)
        elif not as_json:
            self._answers.respond(request, record.value, OCTETS, fields)
        else:
            shown = _show_record(item_of(key, record), holder, now)
            self._answers.begin(request, self._answers.show(request, shown, fields))

    def _get_range(self, request: Request, query: Query, conditions: Conditions) -> None:
        refuse_conditions_of_read(conditions, of_range=True)
        scan = scan_of(query, most=self._limits.range_items, as_lines=conditions.lines)

        def look(contact: Contact | None) -> None:
            fields = contact_field(contact)
            if conditions.lines:
                self._stream_range(request, scan, fields)
            elif scan.limit is not None and scan.limit <= INLINE_ITEMS:
                self._answers.begin(request, self._answer_range(request, scan, fields))
            else:
                steps = self._answer_range(request, scan, fields)
                self._desk.work(request, partial(all_of, steps))

        self._desk.look(request, scan.start, scan.end, freshness_of(query), look)

    def _answer_range(self, request: Request, scan: Scan, fields: bytes) -> Turns:
        now = self._desk.backend.time()
        with closing(self._desk.backend.pin()) as state:
            page = Page(items_in_turns(state, scan), scan.limit)
            items = yield from documents.show_items(page, now)
        shown: dict[str, Any] = {"items": items, "more": page.more, "index": state.index}
        if page.more:
            shown |= documents.show_text("next", page.last)
        yield from self._answers.show(request, _known(shown), index_field(state.index) + fields)

    def _count(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, STALENESS | _BOUNDS)
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        start, end = bounds(query)

        def look(contact: Contact | None) -> None:
            fields = contact_field(contact)
            self._desk.work(request, partial(self._answer_count, request, start, end, fields))

        self._desk.look(request, start, end, freshness_of(query), look)

    def _answer_count(
        self, request: Request, start: bytes, end: bytes | None, fields: bytes
    ) -> None:
        count = 0
        with closing(self._desk.backend.pin()) as state:
            for count in state.count(start, end):  # noqa: B007 - the last one is the answer
                pass
        found = {"count": count, "index": state.index}
        self._answers.respond_json(request, found, state.index, fields)


def _empty_value(request: Request) -> bytes:
    """Return what a put without a value stores if it says so: nothing. Raises BadRequest.

    A client that has sent a stream, and sends it again after a redirect, sends chunks with nothing
    in them: it doesn't mean an empty value.
    """
    if "content-length" not in request.headers:
        raise BadRequest("send value= or a body; Content-Length: 0 stores an empty value")
    return b""


def _show_record(item: Item, holder: tuple[bytes, int] | None, now: int) -> Steps[dict[str, Any]]:
    """Return a record as an object, with who holds its key."""
    shown = documents.show_item(item, now)
    yield
    if holder is not None:
        shown["session"], shown["fencing_token"] = holder[0].decode("latin-1"), holder[1]
    return shown


def _known(shown: dict[str, Any]) -> Steps[dict[str, Any]]:
    yield
    return shown
