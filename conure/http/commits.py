"""How the routes hand a transaction over: with its Idempotency-Key, and the answer it is to have.

A request with such a key is known by a fingerprint, for which all of its body is digested; that of
a long one takes turns, whatever the request makes of its body.

Reactor thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from conure.commands import Operation, Transaction
from conure.http.answers import Answer
from conure.http.jsonsteps import Steps, all_of
from conure.http.parameters import Conditions, conditions_of, refuse_conditions
from conure.http.request import Request
from conure.service.once import STEP_BYTES, Once, fingerprint
from conure.service.requests import Desk
from conure.service.turns import Fail, Turns, or_fail

__all__ = ["Commits", "fingerprint_of"]

Fingerprint = Callable[[Request], Steps[bytes]]
"""Returns what tells a request from others with the same Idempotency-Key."""


def fingerprint_of(request: Request) -> Steps[bytes]:
    """Return what tells a request with an Idempotency-Key from others with the same one."""
    request_line = f"{request.method} {request.path}?".encode() + request.query
    told = request.headers.get("if-match"), request.headers.get("if-none-match")
    return fingerprint(b"\n".join((request_line, repr(told).encode(), b"")), request.body)


class Commits:
    """Takes transactions into the round. *fail* answers a request that has taken turns by an error,
    and *told_by* gives the fingerprint of one whose caller knows none."""

    def __init__(
        self,
        desk: Desk[Request],
        once: Once,
        fail: Fail[Request],
        told_by: Fingerprint = fingerprint_of,
    ) -> None:
        self._desk = desk
        self._once = once
        self._fail = fail
        self._told_by = told_by

    def commit_one(self, request: Request, operation: Operation, answer: Answer) -> None:
        """Take an operation that has no conditions into the round. Raises ConureError."""
        conditions = request.headers.note or conditions_of(request.headers)
        refuse_conditions(conditions)
        self.commit(request, conditions, Transaction((), (operation,)), answer)

    def commit(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        answer: Answer,
        told: bytes = b"",
    ) -> None:
        """Take a transaction into the round; *told* is the request's fingerprint, if it is known.
        Raises ConureError."""
        take = partial(self._write, request, answer)
        self.hand_over(request, conditions, transaction, take, told)

    def hand_over(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        take: Callable[[Transaction], None],
        told: bytes = b"",
    ) -> None:
        """Have *take*, which may raise ConureError, called with the transaction as
        :meth:`identified` returns it: now, or when its request has had its turns. Raises
        ConureError."""
        if told or (key := conditions.idempotency_key) is None or len(request.body) <= STEP_BYTES:
            take(self.identified(request, conditions, transaction, told))
            return
        self._once.check(key)
        steps = self._hand_over_later(request, conditions, transaction, take)
        request.go_on(or_fail(request, steps, self._fail), alone=True)

    def identified(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        told: bytes = b"",
    ) -> Transaction:
        """Return the transaction with the request's Idempotency-Key, if it has one; *told* is the
        request's fingerprint, if it is known, as it has to be of a long one. Raises BadRequest."""
        key = conditions.idempotency_key
        if key is None:
            return transaction
        self._once.check(key)
        return self._once.identify(transaction, key, told or all_of(self._told_by(request)))

    # -- private ---------------------------------------------------------------------------------

    def _write(self, request: Request, answer: Answer, transaction: Transaction) -> None:
        self._desk.write(request, transaction, answer)

    def _hand_over_later(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        take: Callable[[Transaction], None],
    ) -> Turns:
        told = yield from self._told_by(request)
        take(self.identified(request, conditions, transaction, told))
