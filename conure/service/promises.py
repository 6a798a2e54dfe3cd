"""Room for what transactions under way may read: their outcomes are kept until they are shown.

Each transaction that reads is promised, before it is proposed, as many bytes as it may read at
worst, and gives them back with its answer. More transactions wait, as they do while too much waits
for clients to read it (H5). Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from conure.commands import MAX_KEY_BYTES, READ_BYTES, Get, Operation, Range, Transaction
from conure.service.limits import Limits
from conure.steps import Read, Step

__all__ = ["MAX_PROMISED", "Promise", "Promises"]

MAX_PROMISED = 64 << 20
"""Bytes that the transactions under way may read, at worst."""


class Promises:
    """Counts the bytes that transactions under way may read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._bytes = 0

    def promise(self, transaction: Transaction) -> Promise:
        """Return what a transaction has to be promised; it isn't yet."""
        branches = transaction.success, transaction.failure
        return Promise(self, max(_most_read(branch, self._limits) for branch in branches))

    def promise_steps(self, steps: Sequence[Step]) -> Promise:
        """Return likewise what steps have to be promised. The last value may go beyond what an
        entry reads."""
        longest = self._limits.value_bytes
        reads = sum(type(step) is Read for step in steps)
        return Promise(self, min(longest * reads, READ_BYTES + longest))

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


class Promise:
    """The bytes that one transaction may read, from its proposal to its answer."""

    __slots__ = ("_bytes", "_promises")

    def __init__(self, promises: Promises, count: int) -> None:
        self._promises = promises
        self._bytes = count

    def take(self, room: int) -> bool:
        """Make the promise, if there is room; once it is made, somebody has to let it go."""
        return self._promises.take(self._bytes, room)

    def let_go(self) -> None:
        """Give back what was taken, once."""
        self._promises.let_go(self._bytes)


def _most_read(branch: tuple[Operation, ...], limits: Limits) -> int:
    """Return about how many bytes the reads of a branch may return at most."""
    ranges = [each for each in branch if isinstance(each, Range)]
    values = limits.value_bytes * sum(isinstance(each, Get) for each in branch)
    if not all(each.keys_only for each in ranges):
        values = READ_BYTES
    keys = sum(each.limit for each in ranges) * MAX_KEY_BYTES
    return min(values, READ_BYTES) + keys
