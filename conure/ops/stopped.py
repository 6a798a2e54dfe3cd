"""The data directory of a node that doesn't run: locked, read, and left as it is.

:class:`Stopped` is what the commands for a stopped node have of it (offline.py, kvstopped.py): its
identity, its log, its records. Every file is opened for reading, through a :class:`_View` in which
renames and removals only seem to happen: so the code that a start would run sees what it would make
of the directory, and the disk doesn't. Nothing is ever written but the lock file, except by
:meth:`Stopped.compact`; and records are never changed here, since that would go around the log.

Everything here belongs to the main thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conure.cluster.opening import check_agreement, kind_of
from conure.consensus.formation import decode_formation
from conure.consensus.raftlog import RaftLog
from conure.errors import CorruptionError, ForeignDirectory
from conure.fileio import File, FileSystem, Lock, Mapped, ReadInPlace, check_size
from conure.ops.compacting import Compacted, compact
from conure.state import snapshots
from conure.state.backup import UNFINISHED, Progress
from conure.state.machine import Store
from conure.storage.datadir import DataDirectory, read_identity
from conure.storage.engine import EngineOptions, StorageEngine
from conure.storage.lsm import manifest
from conure.storage.lsm.manifest import Manifest

__all__ = ["CACHE_BYTES", "Records", "Stopped"]

CACHE_BYTES = 4 << 20
"""Memory for pages, and as much again for entries of the log."""


class Records(NamedTuple):
    """The records as of the last checkpoint, and how many entries that follow the log alone has."""

    store: Store
    behind: int


class Stopped:
    """A data directory that is read, and locked until :meth:`close`.

    Raises DirectoryInUse, ForeignDirectory, CorruptionError.
    """

    def __init__(self, fs: FileSystem, path: str, progress: Progress) -> None:
        identity_path = os.path.join(path, "identity.json")
        if fs.exists(os.path.join(path, UNFINISHED)):
            raise ForeignDirectory(f"a restore into {path} has not ended; run it again")
        if not fs.exists(identity_path):
            raise ForeignDirectory(
                f"{path} is no data directory, {identity_path} is missing; "
                "name the data_dir of a node"
            )
        holder = f"process {os.getpid()} on {socket.gethostname()} (reading it)"
        self.path = path
        self._fs = fs
        self._lock: Lock = fs.lock(os.path.join(path, "LOCK"), holder)
        self._opened: list[RaftLog | StorageEngine] = []
        try:
            self._view = _View(fs, path, progress)
            self.identity, self.diverged = read_identity(self._view, identity_path)
        except BaseException:
            self._lock.release()
            raise
        self._directory = DataDirectory(self._view, path, self._lock, self.identity)
        self._kind = kind_of(self._directory)

    @property
    def holds_records(self) -> bool:
        return self.identity.role == "data"

    def open_log(self) -> RaftLog:
        """Read and check the whole log. Raises CorruptionError and DiskFailed."""
        directory = self._directory.raft_path
        if not self._view.exists(os.path.join(directory, "snapshot")):
            raise CorruptionError(os.path.join(directory, "snapshot"), 0, "the file is missing")
        raft_log = RaftLog.open(self._view, directory, cache_bytes=CACHE_BYTES)
        self._opened.append(raft_log)
        return raft_log

    def open_engine(self, raft_log: RaftLog | None) -> StorageEngine:
        """Open the records: those that a start would put in place, if it would.

        Raises CorruptionError and DiskFailed.
        """
        if raft_log is not None:
            snapshots.recover(self._view, self.path, raft_log, self._kind)
        path = self._directory.database_path
        try:
            how = EngineOptions(cache_bytes=CACHE_BYTES)
            engine = self._kind.open(self._view, path, how, create=False)
        except FileNotFoundError:
            raise CorruptionError(path, 0, "the file is missing") from None
        self._opened.append(engine)
        return engine

    def open_records(self) -> Records:
        """Open log and records for reading.

        Raises ForeignDirectory if there are none, CorruptionError and DiskFailed.
        """
        self.refuse_without_records()
        raft_log = self.open_log()
        store = Store(self.open_engine(raft_log), b"")
        return Records(store, raft_log.last_index - store.applied_index)

    def refuse_without_records(self) -> None:
        """Raise ForeignDirectory if the node is one that keeps no records."""
        if not self.holds_records:
            raise ForeignDirectory(
                f"{self.path} belongs to an arbiter, which keeps no records; name a data node's"
            )

    def manifest(self) -> Manifest:
        """Return which tables and files of long values the records of an LSM engine lie in.

        After :meth:`open_engine`. Raises CorruptionError and DiskFailed.
        """
        return manifest.read(self._view, self._directory.database_path)

    def compact(self, progress: Progress) -> Compacted:
        """Write the records anew: the one thing that changes the directory.

        Raises ForeignDirectory if there are none or they are no good, CorruptionError, DiskFull and
        DiskFailed, and leaves them as they were then.
        """
        self.refuse_without_records()
        if self.diverged:
            raise ForeignDirectory(
                f"the data in {self.path} differ from the cluster's ({self.diverged}) and are left "
                "as they are; restore a backup, or let the node join again with an empty directory"
            )
        raft_log = self.open_log()
        engine = self.open_engine(raft_log)  # through the view: nothing is changed if this fails
        self.check_agreement(raft_log, engine)
        how = EngineOptions(page_size=engine.stats().page_size, cache_bytes=CACHE_BYTES)
        snapshots.recover(self._fs, self.path, raft_log, self._kind)
        return compact(self._fs, self.path, self._kind, how, progress)

    def check_agreement(self, raft_log: RaftLog, engine: StorageEngine) -> None:
        """Prove that log and records belong together. Raises CorruptionError."""
        check_agreement(raft_log, engine, self._directory)

    def check_formation(self) -> None:
        """Read with whom the cluster was formed, if it was. Raises CorruptionError."""
        kept = self._directory.formation()
        if kept:
            decode_formation(kept)

    def describe(self) -> str:
        mine = self.identity
        cluster = f"cluster {mine.cluster_id}" if mine.cluster_id else "no cluster"
        return f"{self.path}: node {mine.node_id} ({mine.role}) of {cluster}"

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self._directory.close()


@dataclass(slots=True)
class _Reading:
    """How much of a directory was read, told on."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, size: int) -> None:
        self.done += size
        self.progress("reading", self.done, self.total)


class _View:
    """A file system that is only read (fileio.FileSystem).

    Names that are removed or renamed are so in here alone; what is written is dropped. It suits
    code that tidies up and doesn't read again what it has written.
    """

    def __init__(self, fs: FileSystem, path: str, progress: Progress) -> None:
        self._fs = fs
        self._names: dict[str, str] = {}  # renamed: where it really is; "": removed
        self._reading = _Reading(progress, 0)
        self._reading.total = self._measure(path)

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,  # noqa: ARG002
        exclusive: bool = False,
    ) -> File:
        """Open it for reading; one that would be made is empty, and nobody keeps it."""
        if (create or exclusive) and not self.exists(path):
            return _Unkept(path)
        return _ViewedFile(self._fs.open(self._real(path), read_only=True), self._reading)

    def map(self, path: str, size: int, *, mapped: bool = True) -> Mapped:  # noqa: ARG002
        """Open it for reading by calls, whose bytes count, whatever is asked for."""
        file = self.open(path)
        try:
            check_size(path, size, file.size())
        except BaseException:
            file.close()
            raise
        return ReadInPlace(file, size)

    def exists(self, path: str) -> bool:
        real = self._names.get(path, path)
        return bool(real) and self._fs.exists(real)

    def list(self, path: str) -> list[str]:
        names = {os.path.join(path, name) for name in self._fs.list(path)}
        names |= {name for name in self._names if os.path.dirname(name) == path}
        return sorted(os.path.basename(name) for name in names if self.exists(name))

    def make_directory(self, path: str) -> None:
        """Do nothing: there is no use for one."""

    def rename(self, old: str, new: str) -> None:
        self._names[new] = self._real(old)
        self._names[old] = ""

    def remove(self, path: str) -> None:
        self._names[path] = ""

    def free_bytes(self, path: str) -> int:
        return self._fs.free_bytes(path)

    def sync_directory(self, path: str) -> None:
        """Do nothing: nothing has changed."""

    def lock(self, path: str, holder: str) -> Lock:
        return self._fs.lock(path, holder)

    def _real(self, path: str) -> str:
        real = self._names.get(path, path)
        if not real:
            raise FileNotFoundError(path)
        return real

    def _measure(self, path: str) -> int:
        """Return how many bytes a check reads: the log's files and the engine's."""
        total = 0
        raft, lsm = os.path.join(path, "raft"), os.path.join(path, "lsm")
        for directory, kinds in ((path, "conure.db"), (raft, ".log"), (lsm, (".sst", ".blob"))):
            for name in self._fs.list(directory) if self._fs.exists(directory) else ():
                if name.endswith(kinds):
                    with contextlib.closing(self.open(os.path.join(directory, name))) as file:
                        total += file.size()
        return total


class _Unwritten:
    """The part of a file that takes no writes: it drops them."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Drop it."""

    def pwritev(self, buffers: Sequence[bytes], offset: int) -> None:
        """Drop it."""

    def allocate(self, offset: int, size: int) -> None:
        """Drop it."""

    def sync(self) -> None:
        """Do nothing: nothing was written."""

    def truncate(self, size: int) -> None:
        """Drop it."""


class _Unkept(_Unwritten):
    """A file that a :class:`_View` has made: an empty one, whatever is written (fileio.File)."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def path(self) -> str:
        return self._path

    def pread(self, size: int, offset: int) -> bytes:  # noqa: ARG002
        return b""

    def size(self) -> int:
        return 0

    def close(self) -> None:
        """Do nothing: nothing is open."""


class _ViewedFile(_Unwritten):
    """A file of a :class:`_View` (fileio.File)."""

    def __init__(self, file: File, reading: _Reading) -> None:
        self._file = file
        self._reading = reading

    @property
    def path(self) -> str:
        return self._file.path

    def pread(self, size: int, offset: int) -> bytes:
        data = self._file.pread(size, offset)
        self._reading.add(len(data))
        return data

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()
