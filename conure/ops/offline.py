"""The commands for a node that doesn't run: restore, check, stats, dump, compact.

============================ ===================================================================
command                      does
============================ ===================================================================
``restore FILE [settings]``  makes a data directory, and a new cluster, from a backup (backup.py)
``check DIR``                reads a whole data directory and proves that it is in order
``stats DIR``                tells what is in it, as text or with ``--json`` as an object
``dump DIR``                 writes the users' records to standard output, one JSON object a line
``compact DIR``              writes the records anew, in smaller files (compacting.py)
============================ ===================================================================

1. ``check``, ``stats`` and ``dump`` change nothing but the lock file. They open every file for
   reading, through a :class:`_View` in which renames and removals only seem to happen: so the code
   that a start would run sees what it would make of the directory, and the disk doesn't.
2. They hold the directory's lock meanwhile; a server that runs there is named and left alone.
3. The records are as of the last checkpoint. After a clean stop that is everything. After a crash
   the log holds more, and how much is said; a start applies it.
4. A line of ``dump`` has ``key``, ``value``, ``create_revision``, ``mod_revision``, ``version``,
   and if the key expires ``expiry`` in milliseconds since the Unix epoch. Where key or value aren't
   UTF-8 both are in base64, and ``encoding`` says so.
5. The engine is the one that ``identity.json`` names; ``restore`` alone is told by ``--engine``.
6. ``compact`` reads the log like the others. Before it opens the records it finishes what a start
   would finish, on the disk.

Exit status: 0 if all is well, 1 for anything that isn't, 2 for a command that can't be used.

Everything here belongs to the main thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import Any, Final, NoReturn, TypeVar

from conure.cluster.opening import check_agreement, kind_of
from conure.commands import as_text, prefix_end
from conure.config import SETTINGS, load
from conure.consensus.raftlog import RaftLog
from conure.errors import ConfigError, CorruptionError, ForeignDirectory, StorageError
from conure.fileio import File, FileSystem, Lock, Mapped, OsFileSystem, ReadInPlace, check_size
from conure.ops.compacting import Compacted, compact
from conure.state import snapshots
from conure.state.backup import UNFINISHED, Progress, restore
from conure.state.machine import Store
from conure.storage.datadir import DataDirectory, read_identity
from conure.storage.engine import EngineOptions, Record, StorageEngine
from conure.storage.engines import kind_named

__all__ = ["COMMANDS", "run"]

COMMANDS: Final = ("restore", "check", "stats", "dump", "compact")

CACHE_BYTES: Final = 4 << 20
"""Memory for pages, and as much again for entries of the log."""

TERMINAL_INTERVAL: Final = 0.5
"""Seconds between two states of the line that shows progress on a terminal."""

LOG_INTERVAL: Final = 10.0
"""The same where each state is a line of its own."""

_T = TypeVar("_T")
_LINES = 1000  # of a dump that are written in one go
_RESTORE_SETTINGS = (
    "profile", "data_dir", "node_id", "raft_addr", "http_addr", "raft_advertise", "http_advertise",
    "engine", "page_size", "config",
)  # fmt: skip
_RESTORE_FLAGS = [
    flag for setting in SETTINGS if setting.name in _RESTORE_SETTINGS for flag in setting.flags
]


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out a command line that begins with one of COMMANDS; return the exit status.

    Raises ConfigError for a command line that can't be used, other ConureErrors for what it finds,
    and SystemExit(0) for ``--help``.
    """
    options = _parse(argv)
    progress = _ProgressLine(quiet=options.quiet)
    status = 0
    try:
        status = _carry_out(options, environ, progress)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        why = f"{options.command} was interrupted; nothing is lost, and it can be run again"
        raise StorageError(why) from None
    finally:
        progress.end()
    return status


def _carry_out(
    options: argparse.Namespace, environ: Mapping[str, str], progress: _ProgressLine
) -> int:
    if options.command == "restore":
        return _restore(options, environ, progress)
    with contextlib.closing(_Stopped(OsFileSystem(), options.directory, progress)) as stopped:
        if options.command == "check":
            return _check(stopped, progress, quiet=options.quiet)
        if options.command == "stats":
            return _stats(stopped, as_json=options.json)
        if options.command == "compact":
            return _compact(stopped, progress, quiet=options.quiet)
        return _dump(stopped, os.fsencode(options.prefix), progress)


# -- the command line ----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are ConfigErrors, one line each."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        raise ConfigError(command, "command line", f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    command, *rest = argv
    about = {
        "restore": "Makes a data directory from a backup: a new cluster of one node.",
        "check": "Reads the data directory of a stopped node and proves that it is in order.",
        "stats": "Tells what is in the data directory of a stopped node.",
        "dump": "Writes the records of a stopped node to standard output, a JSON object a line.",
        "compact": "Writes the records of a stopped node anew, so that their files get smaller. It "
        "needs as much room on the disk as the records take.",
    }[command]
    parser = _Parser(prog=f"conuredb.py {command}", description=about, allow_abbrev=False)
    parser.set_defaults(command=command)
    parser.set_defaults(quiet=False)
    if command in ("restore", "check", "compact"):
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    if command == "dump":
        parser.add_argument("--quiet", action="store_true", help="show no progress")
    if command == "restore":
        parser.add_argument("file", metavar="FILE", help="what GET /backup has answered")
        for setting in SETTINGS:
            if setting.name in _RESTORE_SETTINGS:
                default = f" (default: {setting.default})" if setting.default else ""
                for flag in setting.flags:  # with a profile they may mean different settings
                    parser.add_argument(
                        flag, dest=flag, metavar=setting.placeholder, help=setting.help + default
                    )
        return parser.parse_args(rest)
    parser.add_argument("directory", metavar="DIR", help="the node's data_dir")
    if command == "stats":
        parser.add_argument("--json", action="store_true", help="print a JSON object")
    if command == "dump":
        parser.add_argument("--prefix", default="", help="only the keys that begin with this")
    return parser.parse_args(rest)


class _ProgressLine:
    """Progress on standard error: one line that changes on a terminal, else a line now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._on_terminal = sys.stderr.isatty()
        self._interval = TERMINAL_INTERVAL if self._on_terminal else LOG_INTERVAL
        self._next = time.monotonic() + self._interval
        self._is_shown = False

    def __call__(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next or self._quiet:
            return
        self._next = now + self._interval
        percent = 100 * min(done, total) // max(total, 1)
        if self._on_terminal:
            print(f"\r{doing}: {percent} %\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = True
        else:
            print(f"{doing}: {percent} %", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away, if there is one."""
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = False


# -- restore -------------------------------------------------------------------------------------


def _restore(
    options: argparse.Namespace, environ: Mapping[str, str], progress: _ProgressLine
) -> int:
    given = {flag: getattr(options, flag, None) for flag in _RESTORE_FLAGS}
    config = load([f"{flag}={text}" for flag, text in given.items() if text is not None], environ)
    if config.role != "data":
        why = "a backup holds records, and an arbiter keeps none; restore a data node"
        raise ConfigError("role", config.sources["role"], why)
    try:
        made = restore(
            OsFileSystem(),
            options.file,
            config.data_dir,
            node_id=config.node_id,
            raft_address=config.raft_advertised(config.raft_addr.port),
            http_address=config.http_advertised(config.http_addr.port),
            kind=kind_named(config.engine),
            page_size=config.page_size,
            progress=progress,
        )
    except FileNotFoundError:
        raise ConfigError("FILE", "command line", f"there is no file {options.file}") from None
    finally:
        progress.end()
    if not options.quiet:
        header, identity = made.header, made.identity
        taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(header.taken / 1000))
        own = made.census.describe_own()
        print(
            f"restored {made.census.records:,} records as of revision {header.index}, "
            f"taken {taken} from node {header.node_id} of cluster {header.cluster_id}\n"
            + (f"beside them {own}\n" if own else "")
            + f"{config.data_dir} belongs to node {identity.node_id} of the new cluster "
            f"{identity.cluster_id}; start it with\n"
            f"  python3 conuredb.py --data-dir={shlex.quote(config.data_dir)}"
        )
    return 0


# -- check, stats, dump, compact -----------------------------------------------------------------


def _check(stopped: _Stopped, progress: _ProgressLine, *, quiet: bool) -> int:
    """Read everything, and go on after a fault as far as that makes sense."""
    lines = [stopped.describe()]
    faults: list[str] = []
    if stopped.diverged:
        faults.append(f"its data differ from the cluster's: {stopped.diverged}")
    raft_log = _attempt(stopped.open_log, faults)
    if raft_log is not None:
        lines.append(_describe_log(raft_log))
    if stopped.holds_records:
        lines += _check_records(stopped, raft_log, faults)
    progress.end()
    if not quiet:
        print("\n".join(lines if faults else [*lines, "all in order"]))
    for fault in faults:
        print(f"conuredb: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _check_records(stopped: _Stopped, raft_log: RaftLog | None, faults: list[str]) -> list[str]:
    engine = _attempt(partial(stopped.open_engine, raft_log), faults)
    if engine is None:
        return []
    if raft_log is not None:
        _attempt(partial(stopped.check_agreement, raft_log, engine), faults)
    report = _attempt(engine.check, faults)
    if report is None:
        return []
    parts = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items())
    as_of = f"as of entry {engine.applied_index} of term {engine.applied_term}"
    census = Store(engine, b"").census()
    own = census.describe_own()
    counted = f"{report.pages:,} {report.parts} ({parts})"
    return [
        f"{report.whole}: {census.records:,} records {as_of}, {counted}",
        *([f"beside them {own}"] if own else []),
    ]


def _attempt(step: Callable[[], _T], faults: list[str]) -> _T | None:
    """Return what *step* does, or None if it finds a fault, of which note is taken."""
    try:
        return step()
    except StorageError as error:
        faults.append(str(error))
        return None


def _stats(stopped: _Stopped, *, as_json: bool) -> int:
    raft_log = stopped.open_log()
    identity, snapshot = stopped.identity, raft_log.snapshot
    facts: dict[str, Any] = {
        "node_id": identity.node_id,
        "cluster_id": identity.cluster_id,
        "incarnation": identity.incarnation,
        "role": identity.role,
        "diverged": stopped.diverged,
        "term": raft_log.hard_state.term,
        "vote": raft_log.hard_state.vote,
        "log_first_index": raft_log.first_index,
        "log_last_index": raft_log.last_index,
        "log_last_term": raft_log.last_term,
        "log_segments": raft_log.segments,
        "log_bytes": raft_log.size_bytes,
        "snapshot_index": snapshot.index,
        "snapshot_term": snapshot.term,
    }
    if stopped.holds_records:
        engine = stopped.open_engine(raft_log)
        figures = engine.stats()
        facts |= {
            "engine": identity.engine,
            "applied_index": engine.applied_index,
            "applied_term": engine.applied_term,
            "digest": engine.applied_digest,
            **Store(engine, b"").census()._asdict(),
            "tree_records": figures.records,
            "depth": figures.depth,
            **{each.name: each.value for each in figures.figures() if each.name},
            "file_bytes": figures.file_bytes,
            "free_bytes": figures.free_bytes,
        }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}".rstrip())
    return 0


def _dump(stopped: _Stopped, prefix: bytes, progress: Progress) -> int:
    if not stopped.holds_records:
        raise ForeignDirectory(
            f"{stopped.path} belongs to an arbiter, which keeps no records; name a data node's"
        )
    raft_log = stopped.open_log()
    store = Store(stopped.open_engine(raft_log), b"")
    behind = raft_log.last_index - store.applied_index
    if behind:
        print(
            f"conuredb: these are the records as of entry {store.applied_index}; {behind} entries "
            "that follow are in the log only: start the node and stop it to have all of them",
            file=sys.stderr,
        )
    written = 0
    state = store.snapshot()
    for lines in _batches(starmap(_line, state.items(prefix, prefix_end(prefix)))):
        sys.stdout.buffer.write(b"".join(lines))
        written += len(lines)
        if not prefix and not sys.stdout.isatty():
            progress("dumping", written, store.records)
    state.close()
    return 0


def _compact(stopped: _Stopped, progress: _ProgressLine, *, quiet: bool) -> int:
    compacted = stopped.compact(progress)
    progress.end()
    if not quiet:
        saved = compacted.before - compacted.after
        print(
            f"{stopped.path}: {compacted.records:,} records, {compacted.before:,} bytes before, "
            f"{compacted.after:,} after" + ("" if saved else ": nothing to be saved")
        )
    return 0


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _LINES or len(line) > CACHE_BYTES // _LINES:
            yield batch
            batch = []
    yield batch


def _line(key: bytes, record: Record) -> bytes:
    key_text, value_text, is_base64 = as_text(key, record.value)
    facts: dict[str, str | int | None] = {"key": key_text, "value": value_text}
    if is_base64:
        facts["encoding"] = "base64"
    facts["create_revision"] = record.create_revision
    facts["mod_revision"] = record.mod_revision
    facts["version"] = record.version
    if record.expiry:
        facts["expiry"] = record.expiry
    return json.dumps(facts, ensure_ascii=False).encode() + b"\n"


def _describe_log(raft_log: RaftLog) -> str:
    entries = (
        f"entries {raft_log.first_index} to {raft_log.last_index}"
        if raft_log.last_index >= raft_log.first_index
        else f"no entries behind {raft_log.snapshot.index}"
    )
    state = raft_log.hard_state
    return (
        f"log: {entries}, {raft_log.size_bytes:,} bytes in {raft_log.segments} segments, "
        f"term {state.term}, vote {state.vote or 'none'}"
    )


# -- a stopped node ------------------------------------------------------------------------------


class _Stopped:
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

    def compact(self, progress: Progress) -> Compacted:
        """Write the records anew: the one thing that changes the directory.

        Raises ForeignDirectory if there are none or they are no good, CorruptionError, DiskFull and
        DiskFailed, and leaves them as they were then.
        """
        if not self.holds_records:
            raise ForeignDirectory(
                f"{self.path} belongs to an arbiter, which keeps no records; name a data node's"
            )
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
        create: bool = False,  # noqa: ARG002
        read_only: bool = False,  # noqa: ARG002
        exclusive: bool = False,  # noqa: ARG002
    ) -> File:
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


class _ViewedFile:
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

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()
