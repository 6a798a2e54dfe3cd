"""How the routes hand a transaction over: with its Idempotency-Key, and the answer it is to have.

Reactor thread only.
"""

from __future__ import annotations

from conure.commands import Operation, Transaction
from conure.http.answers import Answer
from conure.http.jsonsteps import Steps, all_of
from conure.http.parameters import Conditions, conditions_of, refuse_conditions
from conure.http.request import Request
from conure.service.once import Once, fingerprint
from conure.service.requests import Desk

__all__ = ["Commits", "fingerprint_of"]


class Commits:
    """Takes transactions into the round."""

    def __init__(self, desk: Desk[Request], once: Once) -> None:
        self._desk = desk
        self._once = once

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
        identified = self.identified(request, conditions, transaction, told)
        self._desk.write(request, identified, answer)

    def identified(
        self,
        request: Request,
        conditions: Conditions,
        transaction: Transaction,
        told: bytes = b"",
    ) -> Transaction:
        """Return the transaction with the request's Idempotency-Key, if it has one; *told* is the
        request's fingerprint, if it is known. Raises BadRequest."""
        key = conditions.idempotency_key
        if key is None:
            return transaction
        self._once.check(key)
        return self._once.identify(transaction, key, told or all_of(fingerprint_of(request)))


def fingerprint_of(request: Request) -> Steps[bytes]:
    """Return what tells a request with an Idempotency-Key from others with the same one."""
    request_line = f"{request.method} {request.path}?".encode() + request.query
    told = request.headers.get("if-match"), request.headers.get("if-none-match")
    return fingerprint(b"\n".join((request_line, repr(told).encode(), b"")), request.body)
