"""Exactly once: a change with an idempotency key, sent again, is told its first outcome.

The state machine remembers the outcome of a transaction under its idempotency key for a *window*,
in milliseconds, and knows a repetition by its *fingerprint*: what else the request says, as a
digest. The same key with another fingerprint is refused. Any thread.
"""

from __future__ import annotations

from collections.abc import Generator
from hashlib import sha256

from conure.commands import Transaction
from conure.errors import BadRequest

__all__ = ["MAX_IDEMPOTENCY_KEY", "STEP_BYTES", "Once", "fingerprint", "session_of"]

MAX_IDEMPOTENCY_KEY = 128
"""Characters of an Idempotency-Key."""

STEP_BYTES = 256 << 10
"""Bytes of a body that are digested in one step, which takes a millisecond."""


class Once:
    """Lets changes with an idempotency key be remembered for *window* milliseconds."""

    def __init__(self, window: int) -> None:
        self._window = window

    def check(self, key: str) -> None:
        """Raise BadRequest for a key that is none."""
        if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
            raise BadRequest(f"an Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters")

    def identify(self, transaction: Transaction, key: str, told: bytes) -> Transaction:
        """Return the transaction under a checked key; *told* is the fingerprint of its request."""
        return transaction._replace(
            idempotency_key=key.encode("latin-1"), fingerprint=told, window=self._window
        )


def fingerprint(head: bytes, body: bytes) -> Generator[None, None, bytes]:
    """Return what tells a request from others under the same key: of its *head* and its *body*."""
    digest = sha256(head)
    view = memoryview(body)
    for start in range(0, len(view), STEP_BYTES):
        digest.update(view[start : start + STEP_BYTES])
        yield
    return digest.digest()[:16]


def session_of(key: str, told: bytes) -> bytes:
    """Return the session that a request under an idempotency key begins: a repetition of what was
    *told* has to be answered the same one."""
    return sha256(f"session {key} ".encode() + told).hexdigest()[:32].encode()
