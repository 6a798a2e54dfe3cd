"""An entry that is applied in several turns, and what is seen of the state in between.

One entry may ask for more than anybody should wait for in one go. The state machine then goes on
with it turn by turn (:class:`UnderWay`), and whoever reads between two turns reads the state before
the entry: the present one as long as it has written nothing, and from then on the one that was
pinned for it (:class:`Before`). All of an entry is seen, or nothing of it. What comes of it, that
is its events, its outcome, the digest and the applied index, there is after its last turn only.
No checkpoint begins before that, so a crash in between leaves the state before on disk, and the
whole entry is applied again.

The pinned state can be held by several: by the state machine and by each who reads it in a thread
of its own (:class:`Shared`). It is closed when the last of them lets go.

Nothing here writes. :class:`UnderWay` and :class:`Before` belong to whoever holds the node's lock,
a :class:`Hold` to one thread at a time, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from conure.commands import Outcome
from conure.errors import StorageError
from conure.storage.engine import Reader, Record

__all__ = ["Before", "Hold", "Shared", "UnderWay"]


class UnderWay(NamedTuple):
    """The entry with a *revision*, and its *rest*: piece by piece, then its outcome with the CRC of
    its bytes."""

    revision: int
    rest: Generator[None, None, tuple[Outcome, int]]


class Shared:
    """A pinned state that several hold, by *reader*; closed with the last of its holds."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()  # guards the number; no other lock is taken under it
        self._holds = 0

    def hold(self) -> Hold:
        """Return a hold of the state. While there is one, any thread."""
        with self._lock:
            self._holds += 1
        return Hold(self._reader, self._let_go)

    def _let_go(self) -> None:
        with self._lock:
            self._holds -= 1
            is_last = not self._holds
        if is_last:
            self._reader.close()


class Hold:
    """One of several holds of a pinned state (engine.Reader)."""

    def __init__(self, reader: Reader, let_go: Callable[[], None]) -> None:
        self._reader: Reader | None = reader
        self._let_go = let_go

    def __len__(self) -> int:
        return len(self._held())

    def get(self, key: bytes) -> Record | None:
        """Return the record that *key* had, or None."""
        return self._held().get(key)

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return that record without its value, and how many bytes that has."""
        return self._held().heading(key)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end, in the order of the keys."""
        return self._held().items(start, end, reverse=reverse)

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone."""
        return self._held().keys(start, end, reverse=reverse)

    def items_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate like :meth:`items`, with None amid what is deleted."""
        return self._held().items_in_turns(start, end, reverse=reverse)

    def keys_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`keys`, likewise."""
        return self._held().keys_in_turns(start, end, reverse=reverse)

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        if self._reader is not None:
            self._reader = None
            self._let_go()

    def _held(self) -> Reader:
        reader = self._reader
        if reader is None:
            raise StorageError("this pinned state is closed; pin another one")
        return reader


class Before:
    """The state before an entry that is under way: *records* is how many keys users had."""

    def __init__(self, reader: Reader, records: int) -> None:
        self._shared = Shared(reader)
        self.records = records
        self.hold = self._shared.hold()

    def share(self) -> Hold:
        """Return a hold for somebody else."""
        return self._shared.hold()

    def end(self) -> None:
        """Let go of the state: the entry is done, or nobody goes on with it."""
        self.hold.close()
