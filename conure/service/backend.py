"""What the requests of a front need of a node: its records and sessions, and changes to them.

The service asks for no more than this, so a test can put a plain state machine in the node's place.
Protocols only: nothing here runs. Which thread may call what is said at each method; none of them
blocks for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from sys import maxsize
from typing import Any, Protocol

from conure.commands import Committed, Sequential, Transaction
from conure.errors import ConureError

__all__ = [
    "Backup",
    "Command",
    "Found",
    "KeyValueBackend",
    "Record",
    "Reply",
    "Session",
    "State",
    "WriteReply",
]

Command = tuple[bytes, bytes | None] | Transaction | Sequential | bytes
"""A key and its new value, None to delete it; or a transaction, whose time the backend sets. Bytes
are a sequential one as codec.py encodes it, where that was done in turns or can be done at once."""

WriteReply = Callable[[int, int, Committed | ConureError], None]
"""Told how the commands *start* to *stop* of a batch have ended: done, or why not."""

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""


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


Found = Record | ConureError | None
"""A record, why it can't be read, or that there is none."""


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

    def items_in_turns(
        self, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Any:  # likewise, and None
        """Yield the same, and None in between where that takes a while."""

    def keys(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[bytes]:
        """Yield the keys of a range; reads no values."""

    def keys_in_turns(
        self, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Yield the same, and None in between where that takes a while."""

    def count(self, start: bytes, end: bytes | None) -> Iterator[int]:
        """Yield how many keys there are so far; the last number is the answer."""

    def key_after(self, count: int, start: bytes, end: bytes | None) -> bytes | None:
        """Return the key after the first *count* of a range, or after fewer, one at least, where
        going through them takes long; None if there are no more."""

    def close(self) -> None: ...


class Backup(Protocol):
    """A backup to be sent; closed by whoever asked for it."""

    def chunks(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class KeyValueBackend(Protocol):
    """What the service needs of a node. Any thread; nothing here may block long."""

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        """Commit the commands in order; *reply* covers each of them exactly once.

        Where this node doesn't lead, the first *kept* of them, None: all, are refused with
        NotLeader, and those after them passed on to the leader.
        """

    def confirm_read(
        self,
        reply: Reply,
        requests: int = 1,
        *,
        passes_on: bool = False,
        kept: Reply | None = None,
        kept_requests: int = 0,
    ) -> None:
        """Call *reply*, which answers so many *requests*, once the local state holds every write
        acknowledged before now. Where this node doesn't lead, the leader is asked for that with
        *passes_on*; without it the reply is NotLeader. *kept* is told the same for so many
        requests more, which aren't passed on."""

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, Sequence[Found]]:
        """Return the revision of this node's own state, and each key's record in it, None, or why
        it can't be read. Raises nothing.

        Once values of *most* bytes are read, none of more than *longest* bytes is any more, and
        NotRead is in its place.
        """

    def look(self, key: bytes) -> tuple[int, Found, tuple[bytes, int] | None]:
        """Return the same of one key, and which session holds it, with its fencing token."""

    def session(self, session: bytes) -> tuple[int, Session | ConureError | None]:
        """Return the revision, and a session in it, None, or why it can't be read."""

    def holdings(self, session: bytes, key: bytes) -> int:
        """Count the keys that a session holds, if this node leads; 0 if it doesn't, or if *key* is
        one of them. Raises ConureError."""

    def pin(self) -> State:
        """Return this node's own state. Raises ConureError."""

    def check_watchable(self) -> None:
        """Raise Unavailable where nothing, or nothing any more, would come to a watch."""

    def time(self) -> int:
        """Return what expiries are counted by, in milliseconds since the Unix epoch."""

    def key_count(self) -> int:
        """Return how many keys users have in this node's own state; that is known, and takes no
        time."""

    def last_contact(self) -> float | None:
        """Return for how many seconds no leader was heard; 0.0 on the leader, None: never yet."""

    def backup(self) -> tuple[int, Backup]:
        """Return the revision and a backup of this node's own state. Raises ConureError."""
