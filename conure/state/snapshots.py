"""The state on its way between nodes: pinned and sent, received and staged, installed or dropped.

A follower whose missing entries the leader has cut from its log gets the leader's state instead
(paper 7). The leader pins its state as of its applied index and sends all records in the order of
their keys; the follower fills an engine of its own with them at another place, beside the state it
still has, and changes over when all of it is there. What lies at a place, one file or several, is
for the engine's kind to know (engine.EngineKind).

====================== =========================================================================
``incoming-<n>.db``    where a state is being built, each transfer has its own; it is complete when
                       a checkpoint of it has the index and term of the snapshot, and not before
``incoming-0.db``      the one that is being installed, no longer its transfer's to remove
``incoming-….db…``     whatever else its kind needs there, such as its beginning (pager.py)
====================== =========================================================================

1. A staged state is *complete* only when every record that was announced is in it, in ascending
   order, from another node each of them one that a state machine makes (machine.Inspection), and
   it is durable. Any other transfer is an error and leaves no file behind.
2. :func:`install` has one commit point: the log that begins after the snapshot. Before it a
   crash leaves the old state with the old log; after it the staged state is on the disk, and the
   next start puts it in place (:func:`recover`).
3. A transfer that broke off goes on after the last key that arrived. Records that come twice are
   dropped: under one id they are the same.
4. Memory is bounded by a chunk, or by one large value, and the page cache (S7). A transfer is given
   up before it takes the room that the log needs (*keep_free*), whatever its sender announces.

Neither side needs the node's lock. An :class:`OutgoingSnapshot` belongs to the thread that sends
it; any thread may close it. An :class:`IncomingSnapshot` may be used by any thread, one after the
other. :func:`install` and :func:`recover` belong to the owner of the log (the node's lock).

An arbiter has no state to send or receive: its driver calls ``RaftLog.reset`` and nothing here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from uuid import uuid4

from conure.consensus.messages import Message, SnapshotHeader, SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.errors import CorruptionError, DiskFull, ProtocolViolation, Refused, StorageError
from conure.fileio import FileSystem
from conure.state.codec import decode_records, encode_records
from conure.state.machine import Inspection, PinnedState
from conure.storage.engine import (
    DATABASE,
    STAGED,
    SUFFIX,
    EngineKind,
    EngineOptions,
    Record,
    StorageEngine,
)

__all__ = [
    "IncomingSnapshot",
    "OutgoingSnapshot",
    "install",
    "is_recoverable",
    "recover",
    "staged_places",
]

CHUNK_BYTES = 256 << 10
"""About how many bytes of records are sent in one piece; one large value may take more."""

_RECORD_OVERHEAD = 38  # what a record takes in a chunk beside its key and value
_LEAST_RECORD = 15  # bytes that any record takes in a file
_CLAIMED = f"{STAGED}0{SUFFIX}"
_numbers = count(1)  # no two transfers of this process share a file


class OutgoingSnapshot:
    """A pinned state to be sent (transfer.Outgoing); it closes the state with itself.

    *message* is the SNAPSHOT message of the core; in ``header`` it names what *state* covers.
    """

    def __init__(self, message: Message, state: PinnedState) -> None:
        self.header = SnapshotHeader(
            message=replace(message, snapshot=state.meta),
            digest=state.digest,
            records=len(state.reader),
            id=uuid4().hex,
        )
        self._reader = state.reader

    def chunks(self, after: bytes) -> Iterator[bytes]:
        """Encode the records whose keys are greater than *after*; b"" begins at the start.

        Raises CorruptionError, DiskFailed, and StorageError once the state is closed.
        """
        rows: list[tuple[bytes, bytes, int, int, int, int]] = []
        size = 0
        for key, record in self._reader.items(after and after + b"\0"):
            more = len(key) + len(record.value) + _RECORD_OVERHEAD
            if rows and size + more > CHUNK_BYTES:
                yield encode_records(rows)
                rows.clear()
                size = 0
            rows.append((key, *record))
            size += more
        if rows:
            yield encode_records(rows)

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        self._reader.close()


class IncomingSnapshot:
    """A state that is being received (transfer.Incoming), built by an engine of its own.

    *kind* and *options* are those of the staged engine; *inspection* looks at what comes
    from another node; *finished* is called at the end of :meth:`finish`. *keep_free* is how many
    bytes of the disk it leaves to others. Raises ProtocolViolation, DiskFull or DiskFailed.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        header: SnapshotHeader,
        *,
        kind: EngineKind,
        options: EngineOptions,
        finished: Callable[[IncomingSnapshot], None],
        inspection: Inspection | None = None,
        keep_free: int = 0,
    ) -> None:
        if header.message.snapshot is None:
            raise ProtocolViolation("a snapshot that doesn't say what it covers")
        self.header = header
        self.meta = header.message.snapshot
        self._fs = fs
        self._kind = kind
        self._directory = directory
        self._keep_free = keep_free
        self._check_room(_LEAST_RECORD * header.records)
        self._path = os.path.join(directory, f"{STAGED}{next(_numbers)}{SUFFIX}")
        self._finished = finished
        self._lock = threading.Lock()
        self._last = b""
        self._records = 0
        self._inspection = inspection
        self._is_finishing = False
        self._engine: StorageEngine | None = None
        self._built: StorageEngine | None = None
        try:
            engine = kind.open(fs, self._path, options, create=True)
        except BaseException:
            self._drop()
            raise
        self._engine = engine
        self._loader = engine.loader()

    @property
    def progress(self) -> int | None:
        """How many records have come; None once nothing is awaited any more. Any thread, without
        waiting."""
        return None if self._is_finishing else self._records

    @property
    def built(self) -> StorageEngine | None:
        """The engine that has built the state, closed, once it is complete. Any thread."""
        return self._built

    def resume_after(self) -> bytes:
        """Return the last key that has arrived, b"" at the beginning."""
        with self._lock:
            self._staged_engine()
            return self._last

    def add(self, chunk: bytes) -> None:
        """Take the next records.

        Raises WireError for bytes that are no chunk, ProtocolViolation for records that don't
        fit, DiskFull and DiskFailed, and gives the transfer up; Refused if it is over already.
        """
        with self._lock:
            self._staged_engine()
            try:
                self._add(chunk)
            except BaseException:
                self._drop()
                raise

    def finish(self) -> None:
        """Make the state durable, all of which must have come, and call *finished*.

        Raises like :meth:`add`.
        """
        with self._lock:
            engine = self._staged_engine()
            try:
                if self._records != self.header.records:
                    raise ProtocolViolation(
                        f"a snapshot of {self.header.records} records ended after {self._records}"
                    )
                if self._inspection is not None:
                    self._inspection.finish()
                self._is_finishing = True
                self._loader.finish()
                engine.checkpoint(self.meta.index, self.meta.term, self.header.digest)
            except BaseException:
                self._drop()
                raise
            engine.close()
            self._engine, self._built = None, engine
        self._finished(self)

    def interrupted(self) -> None:
        """Keep what has come: the connection broke, and a later one may bring the rest."""

    def discard(self) -> None:
        """Give the transfer up and remove what it has staged, unless that was installed.

        Calling it again does nothing. Raises DiskFailed.
        """
        with self._lock:
            self._drop()

    # -- private, with the lock held -------------------------------------------------------------

    def _staged_engine(self) -> StorageEngine:
        if self._engine is None:
            raise Refused("this snapshot is complete or was given up")
        return self._engine

    def _add(self, chunk: bytes) -> None:
        rows = decode_records(chunk)
        if rows and rows[0][0] <= self._last:
            rows = [row for row in rows if row[0] > self._last]
        if not rows:
            return
        self._records += len(rows)
        if self._records > self.header.records:
            raise ProtocolViolation(f"a snapshot of {self.header.records} records has more")
        if self._inspection is not None:
            self._inspection.look(rows)
        self._check_room(len(chunk))
        try:
            self._loader.add([(row[0], Record._make(row[1:])) for row in rows])
        except ValueError as error:
            raise ProtocolViolation(f"a snapshot that makes no tree: {error}") from error
        self._last = rows[-1][0]

    def _check_room(self, size: int) -> None:
        free = self._fs.free_bytes(self._directory)
        if size + self._keep_free > free:
            raise DiskFull(
                f"{self._directory} has {free} bytes free: a state that is received needs {size}, "
                f"and the log {self._keep_free} beside it; free some space"
            )

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._kind.remove(self._fs, self._path)


def install(
    fs: FileSystem,
    directory: str,
    raft_log: RaftLog,
    meta: SnapshotMeta,
    kind: EngineKind,
    *,
    removes: bool = True,
) -> None:
    """Make a complete staged state that of this node, and *meta* the beginning of its log.

    The engine in use stays open and readable; open the new one when this returns. Without *removes*
    the files of the former state are left to that (engine.EngineKind). Raises
    StorageError if no such state is there and DiskFull, with nothing changed, or DiskFailed, after
    which only :func:`recover` can tell how far it came.
    """
    staged = _complete_at(fs, directory, meta, kind)
    if staged is None:
        raise StorageError(f"{directory} holds no received state as of index {meta.index}")
    # Behind the commit point it is all there is of the state: if the disk fails then, who gives
    # the transfer up must not find it.
    claimed = os.path.join(directory, _CLAIMED)
    if staged != claimed:
        kind.remove(fs, claimed)  # what an earlier attempt has left
        kind.rename(fs, staged, claimed)
    raft_log.reset(meta)
    kind.put_in_place(fs, claimed, os.path.join(directory, DATABASE), removes=removes)


def recover(fs: FileSystem, directory: str, raft_log: RaftLog, kind: EngineKind) -> None:
    """Finish an installation that a crash has interrupted, and remove what else was staged.

    At the start, before the engine is opened. Raises CorruptionError, DiskFull or DiskFailed.
    """
    meta = raft_log.snapshot
    database = os.path.join(directory, DATABASE)
    if staged_places(fs, directory) and kind.applied(fs, database)[0] < meta.index:
        staged = _complete_at(fs, directory, meta, kind)
        if staged is not None:
            kind.put_in_place(fs, staged, database)
    for place in staged_places(fs, directory):
        kind.remove(fs, place)


def is_recoverable(fs: FileSystem, directory: str, raft_log: RaftLog, kind: EngineKind) -> bool:
    """Tell whether there is a whole staged state as of the beginning of the log, for
    :func:`recover` to put in place. Changes nothing. Raises DiskFailed."""
    meta = raft_log.snapshot
    try:
        return meta.index > 0 and _complete_at(fs, directory, meta, kind) is not None
    except CorruptionError:
        return False


def staged_places(fs: FileSystem, directory: str) -> list[str]:
    """Return the places at which there is something of a staged state, whole or not."""
    places = set()
    for name in fs.list(directory):
        if name.startswith(STAGED):
            place, suffix, _ = name.partition(SUFFIX)
            places.add(os.path.join(directory, place + suffix))
    return sorted(places)


def _complete_at(
    fs: FileSystem, directory: str, meta: SnapshotMeta, kind: EngineKind
) -> str | None:
    """Return the place of a durable staged state as of *meta*; by R7 any of them will do."""
    for place in staged_places(fs, directory):
        if place.endswith(SUFFIX) and kind.applied(fs, place) == (meta.index, meta.term):
            kind.sync(fs, place)  # its own transfer may be about to do that
            return place
    return None
