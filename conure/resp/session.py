"""What a client has told of itself, and what its connection is in the middle of.

One for each connection, in the reactor's thread. Nothing here writes a reply.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from conure.resp.replies import RESP2
from conure.service.freshness import LINEARIZABLE, STALE, Freshness

__all__ = ["Session", "Subscriptions", "Transaction"]


class Transaction(Protocol):
    """What MULTI has begun (transactions.py)."""

    @property
    def size(self) -> int:
        """How many commands are queued."""


class Subscriptions(Protocol):
    """What a client has subscribed to (audience.py)."""

    @property
    def channels(self) -> Collection[bytes]:
        """The channels."""

    @property
    def patterns(self) -> Collection[bytes]:
        """The patterns."""

    @property
    def shards(self) -> Collection[bytes]:
        """The shard channels."""


class Session:
    """The state of one client."""

    __slots__ = (
        "freshness",
        "is_plain",
        "is_stale",
        "is_watching",
        "lib_name",
        "lib_version",
        "name",
        "protocol",
        "silent",
        "skips",
        "subscriptions",
        "transaction",
        "watched",
        "watched_bytes",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Be as at the beginning."""
        self.protocol = RESP2
        self.name = b""
        self.lib_name = b""
        self.lib_version = b""
        self.freshness: Freshness = LINEARIZABLE
        self.is_stale = False  # READONLY
        self.is_watching = False
        self.silent = False  # CLIENT REPLY OFF
        self.skips = 0  # 2: the next command has no reply; 1: this one has none
        self.transaction: Transaction | None = None
        self.subscriptions: Subscriptions | None = None  # None: there are none
        self.watched: dict[bytes, int] = {}  # the revision of each key; 0: it wasn't there
        self.watched_bytes = 0  # of all keys that were asked for, about
        self.is_plain = True
        """Whether commands are done as they come, and answered."""

    @property
    def is_muted(self) -> bool:
        """Whether the present command has no reply."""
        return self.silent or self.skips == 1

    @property
    def only_listens(self) -> bool:
        """Whether it has subscriptions, and a protocol that knows no pushes: whatever is sent to it
        is a message or an answer to a few commands."""
        return self.subscriptions is not None and self.protocol == RESP2

    def refresh(self) -> None:
        """Find out again whether the session is plain."""
        is_noisy = not (self.silent or self.skips)
        self.is_plain = self.transaction is None and is_noisy and not self.only_listens

    def read_here(self, *, stale: bool) -> None:
        """Read this node's own state as it is, or as a leader confirms it."""
        self.is_stale = stale
        self._choose()

    def begin_watching(self) -> None:
        """Read what a leader confirms from now on: what is read of a watched key has to be no older
        than the revision that EXEC compares."""
        self.is_watching = True
        self._choose()

    def end_watching(self) -> None:
        """Forget the watched keys, and read as before."""
        self.watched = {}  # another one: what is still to be found goes into the old one
        self.is_watching = False
        self._choose()

    def _choose(self) -> None:
        self.freshness = STALE if self.is_stale and not self.is_watching else LINEARIZABLE
