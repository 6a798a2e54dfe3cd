"""The start of a node: its data directory opened or made, and what is in it held against itself.

:func:`open_parts` opens the directory, the log and the engine, finishes what a crash has left of a
received state, compares log and engine, and begins a cluster if that is wanted. What it gives
belongs together, or it raises and has closed everything again. Called by ``Node.open`` before there
is a node, a lock or a second thread; the offline tools call :func:`check_agreement` likewise.
Nothing here may be called once the node runs, but for :func:`open_engine`, when a received state
replaces the engine.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

from conure.cluster.options import NodeOptions
from conure.consensus.formation import cluster_id_of, decode_formation
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import EntryKind
from conure.consensus.raftlog import RaftLog
from conure.errors import CorruptionError, DiskFull
from conure.fileio import FileSystem
from conure.state import snapshots
from conure.state.machine import Store
from conure.storage.datadir import DataDirectory
from conure.storage.engine import EngineKind, EngineOptions, StorageEngine
from conure.storage.engines import BTREE, kind_named
from raft import Raft, bootstrap

__all__ = [
    "Parts",
    "check_agreement",
    "check_presence",
    "configuration_at",
    "describe_start",
    "engine_options",
    "kind_of",
    "known_formation",
    "make_store",
    "memory_bounds",
    "open_engine",
    "open_parts",
]

MEMTABLES = 4
"""How many times ``memtable_bytes`` changes may take before writers are slowed down."""

MAX_READ_BYTES = 1 << 20
"""Bytes of log entries read in one go at the start."""

log = logging.getLogger("conure.node")


class Closable(Protocol):
    """What was opened and has to be closed again if the rest can't be."""

    def close(self) -> None: ...


class Parts(NamedTuple):
    """What a node owns on its disk. Whoever gets it closes it, in reverse order."""

    directory: DataDirectory
    raft_log: RaftLog
    engine: StorageEngine

    def close(self) -> None:
        """Close all of it, the last opened first."""
        for each in reversed(self):
            each.close()


def open_parts(options: NodeOptions, fs: FileSystem) -> Parts:
    """Open or make the data directory and what is in it; begin a cluster if that is wanted.

    Raises DirectoryInUse, ForeignDirectory, CorruptionError, DiskFull or DiskFailed, and nothing
    is open then.
    """
    directory = DataDirectory.open(
        fs,
        options.data_dir,
        options.node_id,
        told_node_id=options.told_node_id,
        role=options.role,
        engine=options.engine,
        told_engine=options.told_engine,
    )
    opened: list[Closable] = [directory]
    try:
        raft_log = RaftLog.open(fs, directory.raft_path, segment_bytes=options.log_segment_bytes)
        opened.append(raft_log)
        check_presence(raft_log, directory)
        snapshots.recover(fs, directory.path, raft_log, kind_of(directory))
        engine = open_engine(directory, options)
        opened.append(engine)
        check_agreement(raft_log, engine, directory)
        if not directory.identity.cluster_id and (options.bootstrap or raft_log.last_index):
            _begin_cluster(options, directory, raft_log)
        return Parts(directory, raft_log, engine)
    except BaseException:
        for each in reversed(opened):
            each.close()
        raise


def open_engine(
    directory: DataDirectory, options: NodeOptions, like: StorageEngine | None = None
) -> StorageEngine:
    """Open or make the engine of a data directory, as the options say; *like* is one that has had
    the same state open (engine.EngineKind).

    Raises CorruptionError, DiskFull or DiskFailed.
    """
    kind, how = kind_of(directory), engine_options(options)
    return kind.open(directory.fs, directory.database_path, how, create=True, like=like)


def kind_of(directory: DataDirectory) -> EngineKind:
    """Return the kind of engine that holds the records of a data directory."""
    return kind_named(directory.identity.engine)


def engine_options(options: NodeOptions) -> EngineOptions:
    """Return how a node opens its engine."""
    return EngineOptions(
        page_size=options.page_size,
        cache_bytes=options.cache_bytes,
        memtable_bytes=options.memtable_bytes,
        mapped=options.mapped_reads,
        workers=options.workers,
    )


def memory_bounds(directory: DataDirectory, options: NodeOptions) -> tuple[int, int]:
    """Return how many bytes of changes in memory make a checkpoint urgent, and beyond how many
    writers are slowed down (S7)."""
    if directory.identity.engine == BTREE:
        return options.max_unwritten_bytes // 2, options.max_unwritten_bytes
    return options.memtable_bytes, MEMTABLES * options.memtable_bytes


def make_store(parts: Parts, speaks: int) -> Store:
    """Return the state machine over the engine, with the members as of what the engine holds; an
    arbiter's log is all it has."""
    directory, raft_log, engine = parts
    if directory.identity.role == "arbiter":
        store = Store(engine, b"", speaks)
        store.skip_to(raft_log.snapshot)
        return store
    members = configuration_at(raft_log, engine.applied_index)
    return Store(engine, members, speaks, keeps_events=True)


def _begin_cluster(options: NodeOptions, directory: DataDirectory, raft_log: RaftLog) -> None:
    """Write the beginning of a cluster of this one node. The directory belongs to it at the end:
    a log without a cluster is the trace of a crash in here, and gets one at the next start. So is
    one that begins with several founders, whose cluster was to be formed (forming.py), which goes
    on without it as long as the disk is full."""
    identity = directory.identity
    if raft_log.last_index == 0:
        server = Server(
            identity.node_id,
            options.raft_address,
            options.http_address,
            role=identity.role,
            incarnation=identity.incarnation,
        )
        hard_state, entry = bootstrap(Configuration((server,), options.quorum_size))
        raft_log.set_hard_state(hard_state)
        raft_log.append([entry])
        raft_log.sync()
    founders = Configuration.decode(raft_log.entries(1, 2, MAX_READ_BYTES)[0].data)
    if len(founders.servers) > 1:
        try:
            directory.join_cluster(cluster_id_of(founders))
        except DiskFull as error:
            log.error("node %s has no room for its cluster's ID yet: %s", identity.node_id, error)
            return
    else:
        directory.begin_cluster()
    log.info("node %s begins cluster %s", identity.node_id, directory.identity.cluster_id)


def known_formation(parts: Parts) -> Configuration | None:
    """Return the formation with which the cluster of a directory was begun, if that was formed
    with this node. Raises CorruptionError."""
    directory, raft_log, _ = parts
    data, cluster_id = directory.formation(), directory.identity.cluster_id
    formation = decode_formation(data) if data else None
    if formation is None or (not cluster_id and not raft_log.last_index):
        return None
    return formation if cluster_id in ("", cluster_id_of(formation)) else None


def check_presence(raft_log: RaftLog, directory: DataDirectory) -> None:
    """Refuse a directory whose records are gone, before anything in it is changed: an empty engine
    in their place would lose what the log doesn't have.

    A log that begins with the first entry has all of it; so has one that was just begun. Raises
    CorruptionError.
    """
    fs, path = directory.fs, directory.database_path
    kind, first = kind_of(directory), raft_log.snapshot.index
    if directory.identity.role == "arbiter" or fs.exists(path):
        return
    if snapshots.is_recoverable(fs, directory.path, raft_log, kind):
        return
    remains = kind.remains(fs, path)
    if remains:
        raise CorruptionError(path, 0, f"the file is missing, and with it what {remains} is for")
    if first:
        raise CorruptionError(
            path, 0, f"the file is missing, and the log begins behind entry {first}"
        )


def check_agreement(raft_log: RaftLog, engine: StorageEngine, directory: DataDirectory) -> None:
    """Refuse a log and an engine that can't belong together: one of them has lost something.

    Raises CorruptionError.
    """
    hard_state = raft_log.hard_state
    if raft_log.last_index == 0 and hard_state.vote:
        # Who votes knows the members, and so has an entry or a snapshot: somebody has removed it.
        raise CorruptionError(
            directory.raft_path, 0, f"the log is empty, yet there was a vote for {hard_state.vote}"
        )
    if directory.identity.role == "arbiter":
        return
    path = directory.database_path
    applied, first = engine.applied_index, raft_log.snapshot.index
    if applied < first:
        raise CorruptionError(
            path, 0, f"it holds entries up to {applied}, the log begins behind {first}"
        )
    if applied > raft_log.last_index:
        raise CorruptionError(
            path, 0, f"it holds entries up to {applied}, the log ends at {raft_log.last_index}"
        )
    logged = raft_log.term(applied)
    if logged is not None and logged != engine.applied_term:
        raise CorruptionError(
            path, 0, f"entry {applied} is of term {engine.applied_term} here, {logged} in the log"
        )


def configuration_at(raft_log: RaftLog, index: int) -> bytes:
    """Return the encoded members as of *index*: the log's last word on them up to there."""
    configuration = raft_log.snapshot.configuration
    next_index = raft_log.snapshot.index + 1
    while next_index <= index:
        entries = raft_log.entries(next_index, index + 1, MAX_READ_BYTES)
        for entry in entries:
            if entry.kind == EntryKind.CONFIG:
                configuration = entry.data
        next_index = entries[-1].index + 1
    return configuration


def describe_start(raft: Raft, raft_log: RaftLog, store: Store, *, is_arbiter: bool) -> str:
    """Say what a node that has just started has and, if its log has more, that this isn't lost."""
    applied, last = store.applied_index, raft_log.last_index
    if last > applied:
        return (
            f"{raft.state} in term {raft.term}: its log reaches to index {last}; what it has "
            f"behind index {applied} is applied as soon as a leader confirms it"
        )
    records = "no records" if is_arbiter else f"{store.records} records"
    return f"{raft.state} at index {applied}, {records}"
