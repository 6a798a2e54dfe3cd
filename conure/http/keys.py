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
POST     /kv/batch      stores or deletes what each line of JSON says
POST     /txn           a transaction
POST     /session       begins a session; GET tells of it, PUT renews it, DELETE ends it
======== ============== ========================================================================

1. A write is answered after it is committed and applied (R8); a time-out is 504, since its
   outcome is unknown.
2. All writes of one round of the server become one proposal, and all its linearizable reads
   share one confirmation (R6). The reads are answered and sent before the writes are synced.
3. A request that is refused has changed nothing: every limit is checked before the proposal, and
   conditions are judged by the state machine, all or nothing.
4. Each answer to a stale read says in ``X-Conure-Last-Contact`` how many milliseconds ago this
   node last heard a leader, or ``never``. With ``max_stale`` an older contact is a 503.
5. Each answer about keys says in ``X-Conure-Index`` as of which revision it is true.

A plain put, get or delete takes the short way: no transaction, no state pinned, no JSON. What takes
long (JSON of more than a few KiB in or out, many or long values to be read, a batch) is done in
steps that the reactor carries on in turns with everything else (:meth:`Request.go_on`). Reactor
thread only, but for what is given to the backend as a callback: any thread may call that.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from math import ceil
from secrets import token_hex
from sys import maxsize
from time import perf_counter
from typing import Any, Protocol

from conure.commands import (
    READ_BYTES,
    Acquire,
    Committed,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Get,
    Increment,
    Item,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Target,
    Touch,
    Transaction,
)
from conure.errors import (
    BadRequest,
    Conflict,
    ConureError,
    KeyNotFound,
    KeyReused,
    NotFound,
    NotLeader,
    NotRead,
    PayloadTooLarge,
    PreconditionFailed,
    TargetTooLong,
    Unavailable,
)
from conure.http import documents, jsonsteps
from conure.http.documents import MAX_KEY_BYTES
from conure.http.jsonsteps import Steps, all_of
from conure.http.parameters import (
    PLAIN,
    STALENESS,
    Conditions,
    Query,
    Scan,
    bounds,
    compares,
    conditions_of,
    duration,
    flag,
    key_of,
    named_by,
    names_revision,
    number,
    refuse_conditions,
    refuse_conditions_of_read,
    refuse_others,
    scan_of,
    session_id,
    shown,
    staleness,
    ttl_of,
)
from conure.http.request import Body, Request

__all__ = [
    "Command",
    "Desk",
    "KeyValueBackend",
    "KeyValues",
    "Record",
    "Reply",
    "Route",
    "State",
    "WriteReply",
    "index_field",
    "items_of",
]

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
OCTETS = "application/octet-stream"
OK = b"OK\n"

INLINE_ITEMS = 256
"""Records that are read and shown in the reactor's thread; more are a worker's."""

MAX_WAIT = 600.0
"""Seconds that a request may wait for a change."""

MAX_RANGE_BYTES = 8 << 20
"""Bytes of records in one JSON answer, about; the rest is to be asked for."""

MAX_BATCH_LINES = 10_000
"""Lines of a batch."""

MAX_KEYED_LINES = 500
"""Lines of a batch with an Idempotency-Key: it is one change, and everybody waits for it."""

PART_LINES, PART_BYTES = 500, 1 << 20
"""Lines of a batch, and bytes of their values, about, that are logged and applied in one go."""

SLICE_BYTES = 1 << 20
"""Bytes of values that are read in one go, about. The longer ones among the others are read later,
a slice of so many bytes at a time, with the node's lock let go in between."""

LONG_VALUE = 16 << 10
"""Bytes; values that are no longer than this are always read at once."""

_READERS = 256  # who are answered in one go if some of their values are long
_LATE_READERS = 64  # whose values are looked for together, once a first part is read
_AT_ONCE = 0.002  # seconds for the first steps of something; the reactor goes on with the rest
_DIGESTED = 256 << 10  # bytes of a body in one step

MAX_HELD = 1_000
"""Keys that a session holds, about: who asks for many at a time may get some more."""

MAX_PROMISED = 64 << 20
"""Bytes that the transactions under way may read, at worst: their outcomes are kept until they are
shown. More transactions wait, as they do while too much waits for clients to read it (H5)."""

MAX_ATTEMPTS = 8
"""How often a deletion in parts looks where its part ends, while others add keys to it."""

MAX_IDEMPOTENCY_KEY = 128
"""Characters of an Idempotency-Key."""

Command = tuple[bytes, bytes | None] | Transaction
"""A key and its new value, None to delete it; or a transaction, whose time the backend sets."""

WriteReply = Callable[[int, int, Committed | ConureError], None]
"""Told how the commands *start* to *stop* of a batch have ended: done, or why not."""

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""

Route = Callable[[Request], None]

Answer = Callable[[Request, int, Outcome | None], None]
"""Answers a write that was committed, given its revision and what came of a transaction."""


class Record(Protocol):
    """What is stored under a key."""

    @property
    def value(self) -> bytes: ...
    @property
    def create_revision(self) -> int: ...
    @property
    def mod_revision(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def expiry(self) -> int: ...


class Session(Protocol):
    """A session: how long it lives without being renewed, and until when; in milliseconds."""

    @property
    def ttl(self) -> int: ...
    @property
    def expiry(self) -> int: ...
    @property
    def deletes(self) -> bool: ...
    @property
    def name(self) -> bytes: ...


class State(Protocol):
    """The records as of one revision, for any one thread; closed by whoever asked for it."""

    @property
    def index(self) -> int: ...

    def items(
        self, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Any: ...  # of pairs of a key and its record

    def count(self, start: bytes, end: bytes | None) -> Iterator[int]:
        """Yield how many keys there are so far; the last number is the answer."""

    def key_after(self, count: int, start: bytes, end: bytes | None) -> bytes | None:
        """Return the key behind the first *count* of a range; None if there are no more."""

    def close(self) -> None: ...


class KeyValueBackend(Protocol):
    """What the routes of keys need of a node. Nothing here may block long."""

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
        """Commit the commands in order; *reply* covers each of them exactly once."""

    def confirm_read(self, reply: Reply, requests: int = 1) -> None:
        """Call *reply*, which answers so many *requests*, once the local state holds every write
        acknowledged before now."""

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, Sequence[Found]]:
        """Return the revision of this node's own state, and each key's record in it, None, or why
        it can't be read. Raises nothing.

        Once values of *most* bytes are read, none of more than *longest* bytes is any more, and
        NotRead is in its place.
        """

    def look(self, key: bytes) -> tuple[int, Record | ConureError | None, tuple[bytes, int] | None]:
        """Return the same of one key, and which session holds it, with its fencing token."""

    def session(self, session: bytes) -> tuple[int, Session | ConureError | None]:
        """Return the revision, and a session in it, None, or why it can't be read."""

    def holdings(self, session: bytes, key: bytes, most: int) -> int:
        """Count the keys that a session holds, up to *most*, if this node leads; 0 if it doesn't,
        or if *key* is one of them. Raises ConureError."""

    def pin(self) -> State:
        """Return this node's own state. Raises ConureError."""

    def check_watchable(self) -> None:
        """Raise Unavailable where nothing, or nothing any more, would come to a watch."""

    def time(self) -> int:
        """Return what expiries are counted by, in milliseconds since the Unix epoch."""

    def last_contact(self) -> float | None:
        """Return for how many seconds no leader was heard; 0.0 on the leader, None: never yet."""

    def backup(self) -> tuple[int, Backup]:
        """Return the revision and a backup of this node's own state. Raises ConureError."""


class Backup(Protocol):
    """A backup to be sent; closed by whoever asked for it."""

    def chunks(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Desk(Protocol):
    """What is around the routes: the backend, and what becomes of a request that fails."""

    @property
    def backend(self) -> KeyValueBackend: ...

    def fail(self, request: Request, error: ConureError, fields: bytes = b"") -> None:
        """Answer with an error; by way of the leader, if that is what is wrong."""

    def count(self, request: Request, status: int) -> None:
        """Count one request that was answered."""

    def count_many(self, route: str, method: str, status: int, started: float, times: int) -> None:
        """Count requests that were answered together."""

    @property
    def passes_on(self) -> bool:
        """Whether what only the leader can do is asked of it by this node, not by the client."""

    def wait_for(
        self, request: Request, key: bytes, after: int, seconds: float, action: Callable[[], None]
    ) -> None:
        """Do something when a key has changed after a revision, or the time is over, or the client
        has left. Raises ConureError."""

    def work(self, request: Request, action: Callable[[], None]) -> None:
        """Have something done that takes long, in a thread of its own."""

    def stream_range(self, request: Request, scan: Scan, fields: bytes) -> None:
        """Answer with all the records of a range, a line of JSON each."""


log = logging.getLogger("conure.http")

_OF_RECORD = b'%bETag: "%d"\r\nX-Conure-Create-Revision: %d\r\nX-Conure-Version: %d\r\n'
_NO_SESSION = "there is no such session; it has ended, or never began"
_PUT = frozenset({b"key", b"value", b"ttl", b"keepttl", b"cas", b"acquire", b"release"})
_EXCLUSIVE = frozenset({b"ttl", b"keepttl", b"acquire", b"release"})
_BOUNDS = frozenset({b"prefix", b"from", b"to"})
_RANGE = _BOUNDS | {b"limit", b"after", b"reverse", b"keys"}
_LOOK = STALENESS | {b"key", b"meta", b"index", b"wait"}
_KEY_AND_VALUE = frozenset({b"key", b"value"})

Found = Record | ConureError | None
"""A record, why it can't be read, or that there is none."""

_Look = tuple[Request, Callable[[bytes], None]]
"""A request, and what answers it, given fields for its answer."""

_Turns = Generator[bool | None, None, None]
"""What the reactor carries on in turns: see Request.go_on."""


class KeyValues:
    """The routes of keys, and what they gather in a round.

    *window* is for how long, in milliseconds, the outcome of an idempotent request is remembered.
    """

    def __init__(self, desk: Desk, limits: documents.Limits, *, window: int) -> None:
        self._desk = desk
        self._limits = limits
        self._window = window
        # What a round asks for: writes, each with its request, and how those are answered that
        # aren't plain, by position; reads of plain keys, and others; stale reads of plain keys.
        self._commands: list[Command] = []
        self._writers: list[Request] = []
        self._answers: dict[int, Answer] = {}
        self._keys: list[bytes] = []
        self._readers: list[Request] = []
        self._looks: list[_Look] = []
        self._stale_keys: list[bytes] = []
        self._stale_readers: list[Request] = []
        self._promised = _Promised()
        self._until = 0.0  # when the answers of committed transactions have had their time at once

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {
            "/kv": {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete},
            "/kv/count": {"GET": self._count, "HEAD": self._count},
            "/kv/incr": {"POST": self._increment},
            "/kv/touch": {"POST": self._touch},
            "/kv/batch": {"POST": self._batch},
            "/txn": {"POST": self._transact},
            "/session": {
                "POST": self._open_session,
                "GET": self._show_session,
                "HEAD": self._show_session,
                "PUT": self._renew_session,
                "DELETE": self._end_session,
            },
        }

    def flush(self) -> bool:
        """End a round: answer its reads together, then commit its writes as one batch."""
        has_read = False
        if self._stale_readers:
            readers, self._stale_readers = self._stale_readers, []
            keys, self._stale_keys = self._stale_keys, []
            # Asked before the records are read: they are at least as new as this contact.
            contact = self._desk.backend.last_contact()
            self._answer_reads(readers, keys, _contact_field(contact))
            has_read = True
        if self._readers or self._looks:
            readers, self._readers = self._readers, []
            keys, self._keys = self._keys, []
            looks, self._looks = self._looks, []
            reply = partial(self._confirmed, readers, keys, looks)
            self._desk.backend.confirm_read(reply, len(readers) + len(looks))
            has_read = True
        if self._writers and not has_read:
            writers, self._writers = self._writers, []
            commands, self._commands = self._commands, []
            answers, self._answers = self._answers, {}
            self._desk.backend.write(commands, partial(self._written, writers, answers))
        return bool(self._writers)

    # -- writes ----------------------------------------------------------------------------------

    def _put(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN and not is_stale:
            value = request.body or _empty_value(request)
            self._commands.append((key, self._limits.check_value(value)))
            self._writers.append(request)
            return
        key = key_of(query)
        value = self._limits.check_value(query.get(b"value", request.body))
        if conditions is PLAIN and query.keys() == _KEY_AND_VALUE:
            self._commands.append((key, value))
            self._writers.append(request)
            return
        refuse_others(query, _PUT)
        if len(query.keys() & _EXCLUSIVE) > 1:
            raise BadRequest("ttl, keepttl, acquire and release exclude each other")
        given = value if b"value" in query or request.body else None
        operation: Operation
        if b"acquire" in query:
            session = session_id(query, b"acquire")
            if self._desk.backend.holdings(session, key, MAX_HELD) >= MAX_HELD:
                raise Conflict(
                    f"the session holds {MAX_HELD:,} keys, which end with it in one change: "
                    "release some, or begin another session"
                )
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
        self._commit(request, conditions, transaction, self._answer_put)

    def _delete(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN and not is_stale:
            self._commands.append((key, None))
            self._writers.append(request)
            return
        if b"key" not in query and query.keys() & _BOUNDS:
            refuse_others(query, _BOUNDS | {b"limit"})
            if b"limit" in query:
                self._delete_part(request, query, conditions)
                return
            self._commit_one(
                request,
                DeleteRange(*bounds(query), self._limits.deleted_items),
                self._answer_delete_range,
            )
            return
        key = key_of(query)
        refuse_others(query, {b"key", b"cas"})
        transaction = Transaction(compares(key, query, conditions), (Delete(key),))
        self._commit(request, conditions, transaction, self._answer_done)

    def _increment(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"key", b"by", b"ttl"})
        by = number(query, b"by", -documents.MAX_NUMBER - 1) if b"by" in query else 1
        key = key_of(query)
        operation = Increment(key, by)
        if b"ttl" not in query:
            self._commit_one(request, operation, self._answer_increment)
            return
        exists = Compare(key, Target.VERSION, Relation.GREATER, 0)
        begin = Put(key, b"%d" % by, ttl_of(query, "ttl=30s"))
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        transaction = Transaction((exists,), (operation,), (begin,))
        answer = partial(self._answer_first_increment, by)
        self._commit(request, conditions, transaction, answer)

    def _touch(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"key", b"ttl"})
        ttl = ttl_of(query, "ttl=30s, or ttl=0 to let the key live for ever", least=0)
        self._commit_one(request, Touch(key_of(query), ttl), self._answer_put)

    def _batch(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        self._take(request, self._take_batch(request, conditions))

    def _take_batch(self, request: Request, conditions: Conditions) -> _Turns:
        lines = yield from documents.parse_batch(request.body, self._limits, MAX_BATCH_LINES)
        if not lines:
            raise BadRequest('the batch is empty; send lines such as {"key": "k", "value": "v"}')
        if conditions.idempotency_key is not None:
            if len(lines) > MAX_KEYED_LINES:
                raise PayloadTooLarge(
                    f"{len(lines):,} lines; with an Idempotency-Key a batch is one change, of up "
                    f"to {MAX_KEYED_LINES:,}: send it in parts, each with a key of its own"
                )
            self._limits.check_change(sum(len(value or b"") for _, value, _ in lines))
            transaction = Transaction((), _as_operations(lines))
            answer = _BatchAnswer(self._desk, 1, len(lines))
            fingerprint = yield from _fingerprint(request)
            self._commit(request, conditions, transaction, answer, fingerprint)
            return
        answer = _BatchAnswer(self._desk, len(lines), len(lines))
        count = size = 0
        for key, value, ttl in lines:
            if count >= PART_LINES or size >= PART_BYTES:
                count = size = 0
                yield True  # what there is by now is committed first
                if answer.is_over:
                    return
                answer.is_begun = True
            self._answers[len(self._commands)] = answer
            self._writers.append(request)
            if ttl and value is not None:
                self._commands.append(Transaction((), (Put(key, value, ttl),)))
            else:
                self._commands.append((key, value))
            count += 1
            size += len(value or b"")

    def _transact(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        self._take(request, self._take_transaction(request, conditions))

    def _take_transaction(self, request: Request, conditions: Conditions) -> _Turns:
        transaction = yield from documents.parse_transaction(request.body, self._limits)
        fingerprint = b""
        if conditions.idempotency_key is not None:
            fingerprint = yield from _fingerprint(request)
        identified = self._identified(request, conditions, transaction, fingerprint)
        promised = max(
            _most_read(transaction.success, self._limits),
            _most_read(transaction.failure, self._limits),
        )
        while not self._promised.take(promised, request.room):
            yield True
        # Nothing fails from here on, so that the promise is taken back with the answer.
        self._add(request, identified, _TransactionAnswer(self, transaction, promised))

    def _take(self, request: Request, steps: _Turns) -> None:
        """Take a request into a round once its body is read: into this one, if it is short and
        has to wait for nothing."""
        must_wait = len(request.body) > documents.INLINE_BYTES or any(steps)
        if must_wait:
            request.go_on(self._or_fail(request, steps), alone=True)

    def _or_fail(self, request: Request, steps: _Turns) -> _Turns:
        try:
            yield from steps
        except ConureError as error:
            self._desk.fail(request, error)

    def _begin(self, request: Request, steps: _Turns, until: float | None = None) -> None:
        """Do something now, as far as little time suffices; the reactor goes on with the rest."""
        if until is None:
            until = perf_counter() + _AT_ONCE
        while perf_counter() < until:
            try:
                next(steps)
            except StopIteration:
                return
        request.go_on(self._or_fail(request, steps))

    def _open_session(self, request: Request) -> None:
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
        if key is None:
            session = token_hex(16).encode()
        else:  # a repetition has to be told the same one
            session = sha256(f"session {key} ".encode() + request.query).hexdigest()[:32].encode()
        operation = OpenSession(session, ttl, behavior == b"delete", name)
        self._commit_one(request, operation, partial(self._answer_session, session, ttl))

    def _renew_session(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"id"})
        self._commit_one(request, RenewSession(session_id(query, b"id")), self._answer_done)

    def _end_session(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"id"})
        self._commit_one(request, EndSession(session_id(query, b"id")), self._answer_done)

    def _commit_one(self, request: Request, operation: Operation, answer: Answer) -> None:
        """Take an operation that has no conditions into the round."""
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        self._commit(request, conditions, Transaction((), (operation,)), answer)

    def _commit(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        answer: Answer,
        fingerprint: bytes = b"",
    ) -> None:
        """Take a transaction into the round; *fingerprint* is the request's, if it is known."""
        self._add(request, self._identified(request, conditions, transaction, fingerprint), answer)

    def _add(self, request: Request, transaction: Transaction, answer: Answer) -> None:
        self._answers[len(self._commands)] = answer
        self._commands.append(transaction)
        self._writers.append(request)

    def _identified(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        fingerprint: bytes = b"",
    ) -> Transaction:
        """Return the transaction with the request's Idempotency-Key, if it has one; *fingerprint*
        is the request's, if it is known."""
        key = conditions.idempotency_key
        if key is None:
            return transaction
        if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
            raise BadRequest(f"an Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters")
        return transaction._replace(
            idempotency_key=key.encode("latin-1"),
            fingerprint=fingerprint or all_of(_fingerprint(request)),
            window=self._window,
        )

    def _written(
        self,
        requests: list[Request],
        answers: Mapping[int, Answer],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        if isinstance(ended, ConureError):
            for position in range(start, stop):
                self._fail(requests[position], answers.get(position), ended)
            return
        revision = ended.first + start
        if answers:
            plain = self._answer_each(requests, answers, start, stop, ended)
        else:
            plain = requests[start:stop]
            for request in plain:
                _respond_plain(request, revision)
                revision += 1
        if plain:
            puts = sum([request.method == "PUT" for request in plain])
            count = self._desk.count_many
            count("/kv", "PUT", 200, plain[0].started, puts)
            count("/kv", "DELETE", 200, plain[0].started, len(plain) - puts)

    def _fail(
        self, request: Request, answer: Answer | None, error: ConureError, fields: bytes = b""
    ) -> None:
        if isinstance(answer, _BatchAnswer | _TransactionAnswer):
            answer.fail(request, error, fields)
        else:
            self._desk.fail(request, error, fields)

    def _answer_each(
        self,
        requests: list[Request],
        answers: Mapping[int, Answer],
        start: int,
        stop: int,
        ended: Committed,
    ) -> list[Request]:
        """Answer writes not all of which are plain; return the requests of those that are."""
        plain = []
        self._until = perf_counter() + _AT_ONCE  # all of them share it: they may be thousands
        for position in range(start, stop):
            request, revision = requests[position], ended.first + position
            answer = answers.get(position)
            if answer is None:
                _respond_plain(request, revision)
                plain.append(request)
                continue
            outcome = ended.outcomes.get(revision)
            try:
                if outcome is None:
                    answer(request, revision, None)
                elif outcome.refusal:
                    fields = index_field(outcome.revision)
                    self._fail(request, answer, _refused(outcome), fields)
                else:
                    answer(request, outcome.revision, outcome)
            except Exception:  # a bug; those behind it are to be answered all the same
                log.exception("%s was not answered", request)
                request.fail(500, "an internal error after the write, see the server's log")
        return plain

    def _respond(
        self, request: Request, body: bytes, content_type: str, fields: bytes, status: int = 200
    ) -> None:
        request.respond(status, body, content_type, fields)
        self._desk.count(request, status)

    def _respond_json(
        self, request: Request, found: object, revision: int, more: bytes = b""
    ) -> None:
        body = json.dumps(found).encode() + b"\n"
        self._respond(request, body, JSON, index_field(revision) + more)

    def _show(self, request: Request, shown: Steps[Any], fields: bytes) -> _Turns:
        """Answer with what steps come to, as JSON."""
        found = yield from shown
        pieces = []
        for piece in jsonsteps.write(found):
            pieces.append(piece)
            yield False
        pieces.append(b"\n")
        request.respond(200, Body(pieces), JSON, fields)
        self._desk.count(request, 200)

    def _answer_done(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        if outcome is not None and not outcome.succeeded:
            self._answer_unmet(request, outcome)
        else:
            self._respond(request, OK, TEXT, index_field(revision))

    def _answer_unmet(self, request: Request, outcome: Outcome) -> None:
        fields = index_field(outcome.revision)
        if outcome.current:
            fields += b'ETag: "%d"\r\n' % outcome.current
        self._desk.fail(request, PreconditionFailed(outcome.current), fields)

    def _answer_put(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        assert outcome is not None
        if not outcome.succeeded:
            self._answer_unmet(request, outcome)
            return
        (result,) = outcome.results
        fields = index_field(revision)
        if result.items:
            fields += self._item_fields(result.items[0])
        if result.number:
            fields += b"X-Conure-Fencing-Token: %d\r\n" % result.number
        self._respond(request, OK, TEXT, fields)

    def _answer_increment(self, request: Request, revision: int, outcome: Outcome | None) -> None:
        assert outcome is not None
        (result,) = outcome.results
        fields = index_field(revision) + self._item_fields(result.items[0])
        self._respond(request, b"%d\n" % result.number, TEXT, fields)

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
        self._respond_json(request, {"deleted": outcome.results[0].total}, revision)

    # -- a deletion in parts -----------------------------------------------------------------------

    def _delete_part(self, request: Request, query: Query, conditions: Conditions) -> None:
        """Delete the first keys of a range, up to a limit.

        The log has no operation for that, so where the part ends is looked up first. What comes in
        between decides nothing: the entry deletes the part unless it has more keys than the limit
        by then, in which case its end is looked up again, and tells whether there are keys behind.
        """
        start, end = bounds(query)
        limit = min(number(query, b"limit", 1), self._limits.deleted_items)
        refuse_conditions(conditions)
        part = _Part(request, start, end, limit)
        whole = Transaction((), (DeleteRange(start, end, limit),))
        part.transaction = self._identified(request, conditions, whole)
        self._looks.append((request, lambda _: self._find_part(part)))

    def _find_part(self, part: _Part) -> None:
        self._desk.work(part.request, partial(self._commit_part, part))

    def _commit_part(self, part: _Part) -> None:
        with closing(self._desk.backend.pin()) as state:
            transaction = part.bounded_by(state)
        self._desk.backend.write([transaction], partial(self._part_written, part))

    def _part_written(self, part: _Part, _: int, __: int, ended: Committed | ConureError) -> None:
        if isinstance(ended, ConureError):
            self._desk.fail(part.request, ended)
            return
        outcome = ended.outcomes[ended.first]
        if outcome.refusal is Refusal.TOO_MANY_KEYS and part.attempts < MAX_ATTEMPTS:
            self._find_part(part)
        elif outcome.refusal:
            error = _refused(outcome)
            if outcome.refusal is Refusal.TOO_MANY_KEYS:
                error = Unavailable("keys come into the range faster than their number is known")
            self._desk.fail(part.request, error, index_field(outcome.revision))
        else:
            deleted, *left = outcome.results
            shown = {"deleted": deleted.total, "more": any(result.total for result in left)}
            self._respond_json(part.request, shown, outcome.revision)

    def answer_transaction(
        self, transaction: Transaction, request: Request, outcome: Outcome, promised: int
    ) -> None:
        """Show what came of a transaction, and then keep no more of it."""
        shown = documents.show_outcome(transaction, outcome, self._desk.backend.time())
        steps = self._show(request, shown, index_field(outcome.revision))
        self._begin(request, self._keep(steps, promised), self._until)

    def _keep(self, steps: _Turns, promised: int) -> _Turns:
        try:
            yield from steps
        finally:
            self._promised.let_go(promised)

    def fail_transaction(
        self, request: Request, error: ConureError, fields: bytes, promised: int
    ) -> None:
        """Answer a transaction that nothing came of."""
        self._promised.let_go(promised)
        self._desk.fail(request, error, fields)

    def _answer_session(
        self, session: bytes, ttl: int, request: Request, revision: int, _: Outcome | None
    ) -> None:
        self._respond_json(request, {"id": session.decode(), "ttl": ttl / 1000}, revision)

    def _item_fields(self, item: Item) -> bytes:
        return _record_fields(item, self._desk.backend.time() if item.expiry else 0)

    # -- reads -----------------------------------------------------------------------------------

    def _get(self, request: Request) -> None:
        headers = request.headers
        conditions = headers.note or conditions_of(headers)
        key, is_stale, query = request.target.note or named_by(request)
        if key and conditions is PLAIN:
            if is_stale:
                self._stale_keys.append(key)
                self._stale_readers.append(request)
            else:
                self._keys.append(key)
                self._readers.append(request)
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
            self._read(request, query, look)
        else:
            self._wait(request, query, key, look)

    def _wait(
        self, request: Request, query: Query, key: bytes, look: Callable[[bytes], None]
    ) -> None:
        """Have a look when the key has changed after a revision, or when the wait is over."""
        after = number(query, b"index", 0)
        seconds = duration(query, b"wait") / 1000 if b"wait" in query else 30.0
        if not seconds <= MAX_WAIT:
            raise BadRequest(f"wait may be up to {MAX_WAIT:.0f}s")

        is_stale, limit = staleness(query)
        request.hold()

        def wait(_: bytes) -> None:
            self._desk.wait_for(request, key, after, seconds, look_again)

        def look_again() -> None:
            if is_stale:
                self._look_stale(request, limit, look)
            else:
                looks: list[_Look] = [(request, look)]
                self._desk.backend.confirm_read(partial(self._confirmed, [], [], looks))

        if self._desk.passes_on:
            wait(b"")  # here, so that the leader has only to be asked what there is
        else:
            self._read(request, query, wait)

    def _read(self, request: Request, query: Query, look: Callable[[bytes], None]) -> None:
        """Have a look at the records when that is due: now if a stale read was asked for."""
        is_stale, limit = staleness(query)
        if is_stale:
            self._look_stale(request, limit, look)
        else:
            self._looks.append((request, look))

    def _look_stale(
        self, request: Request, limit: float | None, look: Callable[[bytes], None]
    ) -> None:
        contact = self._desk.backend.last_contact()
        try:
            if limit is not None and (contact is None or contact > limit):
                raise _too_stale(contact, limit)
            look(_contact_field(contact))
        except ConureError as error:
            self._desk.fail(request, error, _contact_field(contact))

    def _confirmed(
        self,
        requests: list[Request],
        keys: list[bytes],
        looks: list[_Look],
        error: ConureError | None,
    ) -> None:
        if error is None:
            if requests:
                self._answer_reads(requests, keys, b"")
            if looks:
                self._begin(looks[0][0], self._look_each(looks))
            return
        for request in requests:
            self._desk.fail(request, error)
        for request, _ in looks:
            self._desk.fail(request, error)

    def _answer_reads(self, requests: list[Request], keys: list[bytes], fields: bytes) -> None:
        """Answer reads of plain keys, each key read once. Those of long values may come later,
        and so do those behind them in their connections: no answer is older than one before it."""
        wanted = list(dict.fromkeys(keys))
        index, records = self._desk.backend.get_all(wanted, SLICE_BYTES, LONG_VALUE)
        if len(wanted) < len(keys):
            found = dict(zip(wanted, records, strict=True))
            records = [found[key] for key in keys]
        if len(keys) > _READERS and any(map(_is_long, records)):
            steps = self._answer_in_turns(requests, keys, records, index, fields)
            requests[0].go_on(steps)
            return
        late = self._answer_found(requests, records, index, fields, set())
        if late:
            requests = [requests[n] for n in late]
            requests[0].go_on(self._answer_late(requests, [keys[n] for n in late], fields))

    def _answer_in_turns(
        self,
        requests: list[Request],
        keys: list[bytes],
        records: Sequence[Found],
        index: int,
        fields: bytes,
    ) -> _Turns:
        late: list[int] = []
        waiting: set[int] = set()
        with _failing(requests):
            for start in range(0, len(keys), _READERS):
                part = slice(start, start + _READERS)
                found = self._answer_found(requests[part], records[part], index, fields, waiting)
                late += [start + n for n in found]
                yield False
        requests = [requests[n] for n in late]
        yield from self._answer_late(requests, [keys[n] for n in late], fields)

    def _answer_late(self, requests: list[Request], keys: list[bytes], fields: bytes) -> _Turns:
        """Answer reads in their order, as long as there is room for long values (H5)."""
        while requests:
            with _failing(requests):
                some = keys[:_LATE_READERS]
                wanted = list(dict.fromkeys(some))
                waiting: set[int] | None = set() if requests[0].room > 0 else None
                most = 0 if waiting is None else SLICE_BYTES
                index, records = self._desk.backend.get_all(wanted, most, LONG_VALUE)
                found = dict(zip(wanted, records, strict=True))
                records = [found[key] for key in some]
                late = self._answer_found(requests[: len(some)], records, index, fields, waiting)
                requests = [requests[n] for n in late] + requests[len(some) :]
                keys = [keys[n] for n in late] + keys[len(some) :]
                yield False

    def _answer_found(
        self,
        requests: Sequence[Request],
        records: Sequence[Found],
        index: int,
        fields: bytes,
        waiting: set[int] | None,
    ) -> list[int]:
        """Answer reads, but for those whose values were not read and those behind them in their
        connections, which are *waiting* from then on; return the positions of these. Without such
        a set they are refused."""
        found = 0
        late: list[int] = []
        fields += index_field(index)
        now = 0
        for position, (request, record) in enumerate(zip(requests, records, strict=True)):
            if waiting and request.connection in waiting:
                late.append(position)
            elif record is None:
                self._desk.fail(request, KeyNotFound(), fields)
            elif isinstance(record, ConureError):  # a damaged page; the other keys can be read
                if isinstance(record, NotRead) and waiting is not None:
                    late.append(position)
                    waiting.add(request.connection)
                else:
                    self._desk.fail(request, record, fields)
            else:
                found += 1
                revisions = record.mod_revision, record.create_revision, record.version
                more = _OF_RECORD % (fields, *revisions)
                if record.expiry:
                    now = now or self._desk.backend.time()
                    more += _ttl_field(record.expiry, now)
                request.respond(200, record.value, OCTETS, more)
        self._desk.count_many("/kv", "GET", 200, requests[0].started, found)
        return late

    def _look_each(self, looks: list[_Look]) -> _Turns:
        for request, look in looks:
            try:
                look(b"")
            except ConureError as reason:
                self._desk.fail(request, reason)
            except Exception:  # a bug; those behind it are to be answered all the same
                log.exception("%s was not answered", request)
                request.fail(500, "an internal error, see the server's log")
            yield False

    def _look(
        self, request: Request, key: bytes, none_match: str | None, as_json: bool, fields: bytes
    ) -> None:
        """Answer a read of one key that asks for more than the value."""
        backend = self._desk.backend
        index, record, holder = backend.look(key)
        fields += index_field(index)
        if record is None or isinstance(record, ConureError):
            self._desk.fail(request, record or KeyNotFound(), fields)
            return
        now = backend.time()
        fields += _record_fields(record, now)
        if none_match is not None and names_revision(none_match, record.mod_revision):
            self._respond(request, b"", OCTETS, fields, 304)
        elif not as_json:
            self._respond(request, record.value, OCTETS, fields)
        else:
            shown = _show_record(_item(key, record), holder, now)
            self._begin(request, self._show(request, shown, fields))

    def _get_range(self, request: Request, query: Query, conditions: Conditions) -> None:
        refuse_conditions_of_read(conditions, of_range=True)
        scan = scan_of(query, most=self._limits.range_items, as_lines=conditions.lines)

        def action(fields: bytes) -> None:
            if conditions.lines:
                self._desk.stream_range(request, scan, fields)
            elif scan.limit is not None and scan.limit <= INLINE_ITEMS:
                self._begin(request, self._answer_range(request, scan, fields))
            else:
                steps = self._answer_range(request, scan, fields)
                self._desk.work(request, partial(all_of, steps))

        self._read(request, query, action)

    def _answer_range(self, request: Request, scan: Scan, fields: bytes) -> _Turns:
        now = self._desk.backend.time()
        with closing(self._desk.backend.pin()) as state:
            page = _Page(items_of(state, scan), scan.limit)
            items = yield from documents.show_items(page, now)
        shown: dict[str, Any] = {"items": items, "more": page.more, "index": state.index}
        if page.more:
            shown |= documents.show_text("next", page.last)
        yield from self._show(request, _known(shown), index_field(state.index) + fields)

    def _count(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, STALENESS | _BOUNDS)
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        start, end = bounds(query)

        def action(fields: bytes) -> None:
            self._desk.work(request, partial(self._answer_count, request, start, end, fields))

        self._read(request, query, action)

    def _answer_count(
        self, request: Request, start: bytes, end: bytes | None, fields: bytes
    ) -> None:
        count = 0
        with closing(self._desk.backend.pin()) as state:
            for count in state.count(start, end):  # noqa: B007 - the last one is the answer
                pass
        self._respond_json(request, {"count": count, "index": state.index}, state.index, fields)

    def _show_session(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, STALENESS | {b"id"})
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        session = session_id(query, b"id")

        def action(fields: bytes) -> None:
            index, found = self._desk.backend.session(session)
            fields += index_field(index)
            if found is None or isinstance(found, ConureError):
                self._desk.fail(request, found or NotFound(_NO_SESSION), fields)
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
            self._respond(request, body, JSON, fields)

        self._read(request, query, action)


class _Part:
    """A deletion of the first *limit* keys of a range, on its way.

    ``transaction`` is the deletion of the whole range, with its Idempotency-Key.
    """

    transaction: Transaction

    def __init__(self, request: Request, start: bytes, end: bytes | None, limit: int) -> None:
        self.request = request
        self.attempts = 0
        self._start = start
        self._end = end
        self._limit = limit

    def bounded_by(self, state: State) -> Transaction:
        """Return the deletion of what is the first part in a state. Any thread."""
        following = state.key_after(self._limit, self._start, self._end)
        transaction = self.transaction
        if following is not None:
            operations = (
                DeleteRange(self._start, following, self._limit),
                Range(following, self._end, 1, keys_only=True),
            )
            transaction = transaction._replace(success=operations)
        # The outcome of an attempt in vain is remembered like any other. A repetition of the
        # request finds all of them again, one after the other, and so comes to the same end.
        if self.attempts and transaction.idempotency_key:
            name = b"%b\0%d" % (transaction.idempotency_key, self.attempts)
            transaction = transaction._replace(idempotency_key=name)
        self.attempts += 1
        return transaction


class _Promised:
    """Counts the bytes that transactions under way may read. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    def take(self, count: int, room: int) -> bool:
        """Promise so many bytes, if there is *room* for that, or nobody else has any."""
        with self._lock:
            fits = self._bytes + count <= min(room, MAX_PROMISED)
            is_taken = not count or fits or (room > 0 and not self._bytes)
            self._bytes += count * is_taken
            return is_taken

    def let_go(self, count: int) -> None:
        """Take a promise back."""
        with self._lock:
            self._bytes -= count


class _TransactionAnswer:
    """Answers a transaction, whose answer was *promised* so many bytes."""

    def __init__(self, routes: KeyValues, transaction: Transaction, promised: int) -> None:
        self._routes = routes
        self._transaction = transaction
        self._promised = promised

    def __call__(self, request: Request, _: int, outcome: Outcome | None) -> None:
        assert outcome is not None
        self._routes.answer_transaction(self._transaction, request, outcome, self._promised)

    def fail(self, request: Request, error: ConureError, fields: bytes) -> None:
        """Answer a transaction that nothing came of."""
        self._routes.fail_transaction(request, error, fields, self._promised)


class _BatchAnswer:
    """Answers a batch when all of its lines are written; they are *entries* of the log.

    Any thread may tell of some of them.
    """

    def __init__(self, desk: Desk, entries: int, lines: int) -> None:
        self._lock = threading.Lock()
        self._desk = desk
        self._entries = self._missing = entries
        self._lines = lines
        self.is_begun = False  # parts of it were proposed, whatever becomes of them

    @property
    def is_over(self) -> bool:
        """Whether the batch is answered."""
        return self._missing == 0

    def __call__(self, request: Request, revision: int, _: Outcome | None) -> None:
        with self._lock:
            self._missing -= 1
            is_over = not self._missing
        if is_over:
            body = json.dumps({"written": self._lines, "revision": revision}).encode() + b"\n"
            request.respond(200, body, JSON, index_field(revision))
            self._desk.count(request, 200)

    def fail(self, request: Request, error: ConureError, fields: bytes) -> None:
        """Take note that a line was not written; the batch is answered once."""
        with self._lock:
            missing, self._missing = self._missing, 0
        if missing > 0:
            is_begun = self.is_begun or missing < self._entries
            if is_begun and isinstance(error, NotLeader):
                error = Unavailable("the leader was lost when a part was stored; send all again")
            if not request.is_answered:  # it is if its client has gone before it was read
                self._desk.fail(request, error, fields)


class _Page:
    """The first records of a range, up to *limit* and MAX_RANGE_BYTES; then, whether there are
    *more* behind the *last* one."""

    def __init__(self, items: Iterator[Item], limit: int | None) -> None:
        self._items = items
        self._limit = limit
        self.more = False
        self.last = b""

    def __iter__(self) -> Iterator[Item]:
        size = 0
        for count, item in enumerate(self._items):
            if count == self._limit or size > MAX_RANGE_BYTES:
                self.more = True
                return
            yield item
            size += len(item.key) + len(item.value or b"")
            self.last = item.key


# -- what is in an answer ------------------------------------------------------------------------


def _empty_value(request: Request) -> bytes:
    """Return what a put without a value stores if it says so: nothing. Raises BadRequest.

    A client that has sent a stream, and sends it again after a redirect, sends chunks with nothing
    in them: it doesn't mean an empty value.
    """
    if "content-length" not in request.headers:
        raise BadRequest("send value= or a body; Content-Length: 0 stores an empty value")
    return b""


def _respond_plain(request: Request, revision: int) -> None:
    if request.method == "PUT":
        fields = b'X-Conure-Index: %d\r\nETag: "%d"\r\n' % (revision, revision)
    else:
        fields = index_field(revision)
    request.respond(200, OK, TEXT, fields)


def index_field(revision: int) -> bytes:
    """Return the header field that says as of which revision an answer is true."""
    return b"X-Conure-Index: %d\r\n" % revision


def _contact_field(contact: float | None) -> bytes:
    shown = "never" if contact is None else str(ceil(contact * 1000))
    return b"X-Conure-Last-Contact: %b\r\n" % shown.encode()


def _record_fields(record: Record | Item, now: int) -> bytes:
    revisions = record.mod_revision, record.create_revision, record.version
    fields = _OF_RECORD % (b"", *revisions)
    return fields + _ttl_field(record.expiry, now) if record.expiry else fields


def _ttl_field(expiry: int, now: int) -> bytes:
    return b"X-Conure-TTL: %.3f\r\n" % (max(0, expiry - now) / 1000)


def _too_stale(contact: float | None, limit: float) -> Unavailable:
    if contact is None:
        found = "this node has heard no leader since it was started"
    else:
        over = contact - limit
        found = f"this node last heard a leader {contact:.3f} s ago, {over:.3f} s over max_stale"
    return Unavailable(f"{found}; ask another server, or allow for more")


def items_of(state: State, scan: Scan) -> Iterator[Item]:
    """Yield the records that are asked for, without regard to the limit. Raises ConureError."""
    if scan.end is not None and scan.start >= scan.end:
        return
    for key, record in state.items(scan.start, scan.end, reverse=scan.reverse):
        item = _item(key, record)
        yield item._replace(value=None) if scan.keys_only else item


def _as_operations(lines: Sequence[tuple[bytes, bytes | None, int]]) -> tuple[Operation, ...]:
    """Return what the lines of a batch ask for as operations of one transaction."""
    if len({key for key, _, _ in lines}) < len(lines):
        raise BadRequest("a batch with an Idempotency-Key may name each key once only")
    return tuple(
        Delete(key) if value is None else Put(key, value, ttl) for key, value, ttl in lines
    )


def _most_read(branch: tuple[Operation, ...], limits: documents.Limits) -> int:
    """Return about how many bytes the reads of a branch may return at most."""
    ranges = [each for each in branch if isinstance(each, Range)]
    values = limits.value_bytes * sum(isinstance(each, Get) for each in branch)
    if not all(each.keys_only for each in ranges):
        values = READ_BYTES
    keys = sum(each.limit for each in ranges) * MAX_KEY_BYTES
    return min(values, READ_BYTES) + keys


def _fingerprint(request: Request) -> Steps[bytes]:
    """Return what tells a request with an Idempotency-Key from others with the same one."""
    request_line = f"{request.method} {request.path}?".encode() + request.query
    told = request.headers.get("if-match"), request.headers.get("if-none-match")
    digest = sha256(b"\n".join((request_line, repr(told).encode(), b"")))
    body = memoryview(request.body)
    for start in range(0, len(body), _DIGESTED):
        digest.update(body[start : start + _DIGESTED])
        yield
    return digest.digest()[:16]


@contextmanager
def _failing(requests: list[Request]) -> Iterator[None]:
    """Let a bug end in answers: nobody is to wait for ever."""
    try:
        yield
    except Exception:
        for request in requests:
            if not request.is_answered:
                request.fail(500, "an internal error, see the server's log")
        raise


def _is_long(record: Found) -> bool:
    if record is None or isinstance(record, ConureError):
        return False
    return len(record.value) > LONG_VALUE


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


def _item(key: bytes, record: Record) -> Item:
    return Item(
        key,
        record.value,
        record.create_revision,
        record.mod_revision,
        record.version,
        record.expiry,
    )


def _refused(outcome: Outcome) -> ConureError:
    """Return the error that a refused transaction is answered with."""
    key = shown(outcome.refused_key)
    match outcome.refusal:
        case Refusal.NOT_A_NUMBER:
            return Conflict(f"the value of {key} is no whole number of 64 bits")
        case Refusal.NUMBER_TOO_LARGE:
            return Conflict(f"the sum under {key} would not fit into 64 bits; nothing was changed")
        case Refusal.KEY_NOT_FOUND:
            return KeyNotFound()
        case Refusal.SESSION_NOT_FOUND:
            return NotFound(_NO_SESSION)
        case Refusal.HELD_BY_ANOTHER:
            return Conflict(f"{key} is held by another session")
        case Refusal.NOT_THE_HOLDER:
            return Conflict(f"{key} is not held by this session")
        case Refusal.KEY_REUSED:
            return KeyReused()
        case Refusal.TOO_MANY_KEYS:
            return PayloadTooLarge(
                "the range has more keys than one change may delete (max_range_items, and up to "
                f"{documents.MAX_WORK:,}), and nothing was deleted; delete it in parts, with limit"
            )
        case _:
            raise AssertionError(outcome)
