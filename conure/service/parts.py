"""A deletion in parts: of the first keys of a range, up to a limit.

The log has no operation for that, so where the part ends is looked up first. What comes in between
decides nothing: the entry deletes the part unless it has more keys than the limit by then, in which
case its end is looked up again, and tells whether there are keys after it.

Looked up and proposed by a worker; whichever thread commits brings the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from conure.commands import Committed, DeleteRange, Outcome, Range, Refusal, Transaction
from conure.errors import ConureError
from conure.service.backend import Command, KeyValueBackend, State, WriteReply

__all__ = ["MAX_ATTEMPTS", "PartOfRange"]

MAX_ATTEMPTS = 8
"""How often a deletion in parts looks where its part ends, while others add keys to it."""


class PartOfRange:
    """A deletion of the first *limit* keys of a range, on its way.

    *whole* deletes the whole range, under the idempotency key of the request. *write* commits, as
    the backend does. *again* has :meth:`commit` called by a worker, once the backend's state has
    what was committed before; *ended* is told what came of it.
    """

    def __init__(
        self,
        backend: KeyValueBackend,
        write: Callable[[Sequence[Command], WriteReply], None],
        whole: Transaction,
        again: Callable[[PartOfRange], None],
        ended: Callable[[Outcome | ConureError], None],
    ) -> None:
        (operation,) = whole.success
        assert isinstance(operation, DeleteRange)
        self._range = operation
        self._whole = whole
        self._backend = backend
        self._write = write
        self._again = again
        self._ended = ended
        self._attempts = 0

    def commit(self) -> None:
        """Look where the part ends, and propose its deletion. A worker. Raises ConureError."""
        with closing(self._backend.pin()) as state:
            transaction = self._bounded_by(state)
        self._write([transaction], self._written)

    def _bounded_by(self, state: State) -> Transaction:
        """Return the deletion of what is the first part in a state."""
        start, end, limit = self._range
        following = state.key_after(limit, start, end)
        transaction = self._whole
        if following is not None:
            operations = (
                DeleteRange(start, following, limit),
                Range(following, end, 1, keys_only=True),
            )
            transaction = transaction._replace(success=operations)
        # The outcome of an attempt in vain is remembered like any other. A repetition of the
        # request finds all of them again, one after the other, and so comes to the same end.
        if self._attempts and transaction.idempotency_key:
            name = b"%b\0%d" % (transaction.idempotency_key, self._attempts)
            transaction = transaction._replace(idempotency_key=name)
        self._attempts += 1
        return transaction

    def _written(self, _: int, __: int, ended: Committed | ConureError) -> None:
        if isinstance(ended, ConureError):
            self._ended(ended)
            return
        outcome = ended.outcomes[ended.first]
        if outcome.refusal is Refusal.TOO_MANY_KEYS and self._attempts < MAX_ATTEMPTS:
            self._again(self)
        else:
            self._ended(outcome)
