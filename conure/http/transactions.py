"""The routes whose bodies are JSON of any length: transactions, and batches of writes.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
POST     /kv/batch      stores or deletes what each line of JSON says
POST     /txn           a transaction
======== ============== ========================================================================

A body is read, and an outcome shown, in steps that the reactor carries on in turns with everything
else; a connection whose body is being read waits with what follows it (H2). A batch goes into the
log a part at a time, unless it has an Idempotency-Key: it is one change then, and short.

The routes are the reactor's; what answers them may be called by any thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from conure.commands import Delete, Operation, Outcome, Put, Transaction
from conure.errors import BadRequest, ConureError, NotLeader, PayloadTooLarge, Unavailable
from conure.http import documents
from conure.http.answers import JSON, Answers, FullAnswer, Route
from conure.http.commits import Commits, fingerprint_of
from conure.http.fields import index_field
from conure.http.parameters import (
    Conditions,
    conditions_of,
    refuse_coding,
    refuse_conditions,
    refuse_others,
)
from conure.http.request import Request
from conure.service.batches import BatchCount, Line
from conure.service.limits import Limits
from conure.service.promises import Promise
from conure.service.requests import Desk
from conure.service.turns import Turns, or_fail

__all__ = ["MAX_BATCH_LINES", "MAX_KEYED_LINES", "Transactions"]

MAX_BATCH_LINES = 10_000
"""Lines of a batch."""

MAX_KEYED_LINES = 500
"""Lines of a batch with an Idempotency-Key: it is one change, and everybody waits for it."""


class Transactions:
    """The routes of transactions and batches."""

    def __init__(
        self, desk: Desk[Request], answers: Answers, commits: Commits, limits: Limits
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._commits = commits
        self._limits = limits

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {"/kv/batch": {"POST": self._batch}, "/txn": {"POST": self._transact}}

    def _batch(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        refuse_coding(conditions)
        self._take(request, self._take_batch(request, conditions))

    def _take_batch(self, request: Request, conditions: Conditions) -> Turns:
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
            answer = _BatchAnswer(self._answers, BatchCount(1), len(lines))
            told = yield from fingerprint_of(request)
            self._commits.commit(request, conditions, transaction, answer, told)
            return
        count = BatchCount(len(lines))
        answer = _BatchAnswer(self._answers, count, len(lines))
        yield from self._desk.write_lines(request, lines, answer, count)

    def _transact(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        refuse_coding(conditions)
        self._take(request, self._take_transaction(request, conditions))

    def _take_transaction(self, request: Request, conditions: Conditions) -> Turns:
        transaction = yield from documents.parse_transaction(request.body, self._limits)
        told = b""
        if conditions.idempotency_key is not None:
            told = yield from fingerprint_of(request)
        identified = self._commits.identified(request, conditions, transaction, told)
        promise = self._desk.promise(transaction)
        answer = _TransactionAnswer(self._desk, self._answers, transaction, promise)
        yield from self._desk.transact(request, identified, promise, answer)

    def _take(self, request: Request, steps: Turns) -> None:
        """Take a request into a round once its body is read: into this one, if it is short and
        has to wait for nothing."""
        must_wait = len(request.body) > documents.INLINE_BYTES or any(steps)
        if must_wait:
            request.go_on(or_fail(request, steps, self._answers.fail), alone=True)


class _TransactionAnswer(FullAnswer):
    """Answers a transaction, and keeps its promise until then."""

    def __init__(
        self,
        desk: Desk[Request],
        answers: Answers,
        transaction: Transaction,
        promise: Promise,
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._transaction = transaction
        self._promise = promise

    def __call__(self, request: Request, _: int, outcome: Outcome | None) -> None:
        """Show what came of a transaction, and then keep no more of it."""
        assert outcome is not None
        now = self._desk.backend.time()
        shown = documents.show_outcome(self._transaction, outcome, now)
        steps = self._answers.show(request, shown, index_field(outcome.revision))
        self._answers.begin_outcome(request, self._keep(steps))

    def fail(self, request: Request, error: ConureError, fields: bytes) -> None:
        """Answer a transaction that nothing came of."""
        self._promise.let_go()
        self._answers.fail(request, error, fields)

    def _keep(self, steps: Turns) -> Turns:
        try:
            yield from steps
        finally:
            self._promise.let_go()


class _BatchAnswer(FullAnswer):
    """Answers a batch when all of its lines are written; it is answered once."""

    def __init__(self, answers: Answers, count: BatchCount, lines: int) -> None:
        self._answers = answers
        self._count = count
        self._lines = lines

    def __call__(self, request: Request, revision: int, _: Outcome | None) -> None:
        if self._count.note_written():
            body = json.dumps({"written": self._lines, "revision": revision}).encode() + b"\n"
            self._answers.respond(request, body, JSON, index_field(revision))

    def fail(self, request: Request, error: ConureError, fields: bytes) -> None:
        """Take note that a line was not written."""
        is_first, is_begun = self._count.note_failed()
        if is_first:
            if is_begun and isinstance(error, NotLeader):
                error = Unavailable("the leader was lost when a part was stored; send all again")
            if not request.is_answered:  # it is if its client has gone before it was read
                self._answers.fail(request, error, fields)


def _as_operations(lines: Sequence[Line]) -> tuple[Operation, ...]:
    """Return what the lines of a batch ask for as operations of one transaction."""
    if len({key for key, _, _ in lines}) < len(lines):
        raise BadRequest("a batch with an Idempotency-Key may name each key once only")
    return tuple(
        Delete(key) if value is None else Put(key, value, ttl) for key, value, ttl in lines
    )
