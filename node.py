"""The node: the threads that drive the core, the log and the store, and the one lock they share.

The core is a monitor. Whoever brings input (the reactor with a round of requests, the timer with
a tick) takes the lock, steps the core and carries out every ``Ready`` it gives (raft.py lists
those duties) before letting go. So a write travels without a hand-over: propose, append, one sync
for the whole round, commit, apply, answer.

======================= ======================================================================
thread                  does
======================= ======================================================================
reactor (httpserver.py) ``write``, ``confirm_read``, ``get`` and the rest of the backend's methods
timer                   ticks the core, ends what has waited too long
checkpointer            checkpoints the store, cuts the log, prepares the next log segment
main                    ``open``, ``start``, ``stop``
======================= ======================================================================

Lock order: the node's lock, then the tree's and the log's own small ones. The node's lock guards
the core, the log, the store and every attribute below that is not marked otherwise. Replies are
called after it is let go. Syncs happen under it, because nothing else has anything to do until
they return; a checkpoint's pages are written and synced outside of it.

1. Nothing is acknowledged before it is on disk, committed and applied (R1, R2, R8).
2. What fails half-way ends the node (S6): :meth:`Node._fail` answers whoever waits that the
   outcome is unknown, and the process exits. A restart replays the log.
3. A full disk is no failure as long as nothing half-written matters: room in the log is reserved
   before the core hears of a write, and a checkpoint that does not fit is taken again later.
   Until then writes are refused and reads go on.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic, perf_counter, sleep
from typing import Any, Protocol

import wire
from btree import BTree
from datadir import DataDirectory
from errors import (
    Conflict,
    ConureError,
    CorruptionError,
    DiskFull,
    MemberNotFound,
    NotImplementedHere,
    NotLeader,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)
from fileio import FileSystem
from metrics import BATCH_SIZES, Registry
from raft import (
    Configuration,
    Entry,
    EntryKind,
    Raft,
    RaftOptions,
    Server,
    State,
    bootstrap,
)
from raftlog import ENTRY_OVERHEAD, RaftLog
from store import Store

__all__ = ["Node", "NodeOptions"]

TICK = 0.05
"""Seconds between ticks of the core; its time-outs are counted in ticks."""

BRAKE = 0.02
"""Seconds every round of writes waits while changed pages take too much memory."""

HOUSEKEEPING = 0.1
"""Seconds between two looks at whether a checkpoint or a log segment is needed."""

DISK_FULL_RETRY = 1.0
"""Seconds between attempts to checkpoint onto a full disk."""

CHECKPOINT_SLICE = 0.002
"""Seconds a checkpoint works before it rests as long, so that requests get their turn."""

MAX_READ_BYTES = 1 << 20
"""Bytes of log entries read in one go at the start."""

log = logging.getLogger("conure.node")

WriteReply = Callable[[int, int, ConureError | None], None]
Reply = Callable[[ConureError | None], None]


class Closable(Protocol):
    """What was opened and has to be closed again if the rest can't be."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node has to be told. Times in seconds, sizes in bytes."""

    node_id: str
    told_node_id: bool
    data_dir: str
    raft_address: str
    http_address: str
    bootstrap: bool
    version: str
    barrier_timeout: float = 3.0
    write_timeout: float = 10.0
    page_size: int = 4096
    cache_bytes: int = 64 << 20
    log_segment_bytes: int = 4 << 20
    checkpoint_log_bytes: int = 32 << 20
    checkpoint_entries: int = 100_000
    checkpoint_interval: float = 60.0
    max_unwritten_bytes: int = 256 << 20


@dataclass(slots=True)
class _Batch:
    """Commands proposed together: entries *first* to *first* + *count* - 1 of the log."""

    first: int
    count: int
    reply: WriteReply
    deadline: float
    answered: int = 0


@dataclass(slots=True)
class _Read:
    """A read that waits for its confirmation, or for its index to be applied."""

    reply: Reply
    deadline: float
    index: int | None = None


class Node:
    """One member of a cluster, with everything it owns in its data directory.

    *on_failure* is called once, from any thread, when the node can't go on; it must only note
    the fact. The node refuses everything from then on.
    """

    def __init__(
        self,
        options: NodeOptions,
        directory: DataDirectory,
        raft_log: RaftLog,
        tree: BTree,
        registry: Registry,
        on_failure: Callable[[], None],
    ) -> None:
        self._options = options
        self._directory = directory
        self._log = raft_log
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._store = Store(tree, _configuration_at(raft_log, tree.applied_index))
        self._raft = self._make_core()
        self._batches: deque[_Batch] = deque()
        self._reads: deque[_Read] = deque()
        self._finished: list[Callable[[], None]] = []
        self._failure: BaseException | None = None
        self._stopping = False
        self._full: DiskFull | None = None  # why the last checkpoint did not fit
        self._cramped: DiskFull | None = None  # why the next log segment can't be made
        self._prepare_again_at = 0.0
        self._checkpointed_at = monotonic()
        self._checkpointed_bytes = 0  # what size_bytes of the log would be with nothing new in it
        self._checkpoint_wanted = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._add_metrics(registry)

    @classmethod
    def open(
        cls,
        options: NodeOptions,
        fs: FileSystem,
        registry: Registry,
        on_failure: Callable[[], None],
    ) -> Node:
        """Open or make the data directory and what is in it; begin a cluster if that is wanted.

        Raises DirectoryInUse, ForeignDirectory, CorruptionError, DiskFull or DiskFailed.
        """
        directory = DataDirectory.open(
            fs, options.data_dir, options.node_id, told_node_id=options.told_node_id
        )
        opened: list[Closable] = [directory]
        try:
            raft_log = RaftLog.open(
                fs, directory.raft_path, segment_bytes=options.log_segment_bytes
            )
            opened.append(raft_log)
            tree = BTree.open(
                fs,
                directory.database_path,
                page_size=options.page_size,
                cache_bytes=options.cache_bytes,
            )
            opened.append(tree)
            _check_agreement(raft_log, tree, directory)
            if options.bootstrap and raft_log.last_index == 0:
                _begin_cluster(options, directory, raft_log)
            return cls(options, directory, raft_log, tree, registry, on_failure)
        except BaseException:
            for each in reversed(opened):
                each.close()
            raise

    def start(self) -> None:
        """Apply what the log holds beyond the last checkpoint and start the threads."""
        with self._lock:
            configuration = self._raft.configuration
            if configuration.voters == (self._raft.id,):
                self._raft.campaign()
                self._drive()
                self._announce_addresses()
            elif not configuration.servers:
                log.warning(
                    "node %s belongs to no cluster: waiting to be joined at %s "
                    "(start it with --bootstrap to begin a cluster of its own)",
                    self._raft.id,
                    self._options.raft_address,
                )
            failure = self._failure
        if failure is not None:
            raise failure
        log.info(
            "node %s is %s at index %d, %d records",
            self._raft.id,
            self._raft.state,
            self._store.applied_index,
            len(self._store.tree),
        )
        for name, run in (("timer", self._keep_time), ("checkpointer", self._keep_checkpoints)):
            # A main thread that fails, even over stopping, must not leave these behind for ever.
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def begin_stop(self) -> None:
        """Fail readiness, so that nobody sends anything new; requests are still served."""
        self._stopping = True

    def stop(self) -> None:
        """End the threads, write a last checkpoint unless the node has failed, close the files."""
        self._stopping = True
        self._stopped.set()
        self._checkpoint_wanted.set()
        for thread in self._threads:
            thread.join()
        if self._failure is None and self._store.applied_index > self._store.tree.applied_index:
            self._checkpoint(0.0)
        with self._lock:
            self._answer_all(
                OutcomeUnknown("the node has stopped; a write may still be committed by the others")
            )
            finished = self._take_finished()
        _run(finished)
        self._log.close()
        self._store.tree.close()
        self._directory.close()

    # -- what the routes ask for (httpapi.Backend) -----------------------------------------------

    def write(self, commands: Sequence[tuple[bytes, bytes | None]], reply: WriteReply) -> None:
        """Commit a key's new value, or with None its deletion, for each command in order.

        *reply* gets ranges of positions in *commands* and how they ended; each position once.
        """
        encoded = [
            wire.encode_delete(key) if value is None else wire.encode_put(key, value)
            for key, value in commands
        ]
        refusal: ConureError | None = None
        with self._lock:
            try:
                self._refuse_if_unable()
                self._log.reserve(sum(map(len, encoded)) + ENTRY_OVERHEAD * len(encoded))
                first = self._raft.propose(encoded)
            except ConureError as error:
                refusal = self._refused(error)
            else:
                deadline = monotonic() + self._options.write_timeout
                self._batches.append(_Batch(first, len(encoded), reply, deadline))
                self._batch_sizes.observe(len(encoded))
                self._drive()
            finished = self._take_finished()
            must_brake = self._store.tree.unwritten_bytes > self._options.max_unwritten_bytes
        if refusal is not None:
            reply(0, len(commands), refusal)
        _run(finished)
        if must_brake:
            sleep(BRAKE)  # the checkpoint gets the time it needs to catch up (S7)

    def confirm_read(self, reply: Reply) -> None:
        """Call *reply* once everything acknowledged before now is in the local state (R6)."""
        refusal: ConureError | None = None
        with self._lock:
            try:
                self._refuse_if_failed()
                read = _Read(reply, monotonic() + self._options.barrier_timeout)
                read.index = self._raft.read_index(read)
            except ConureError as error:
                refusal = error
            else:
                if read.index is None or read.index > self._store.applied_index:
                    self._reads.append(read)
                    self._drive()
                else:
                    self._finished.append(partial(reply, None))
            finished = self._take_finished()
        if refusal is not None:
            reply(refusal)
        _run(finished)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of *key* in this node's own state, or None.

        Raises CorruptionError for a page that fails its check (S3), DiskFailed or Unavailable.
        """
        with self._lock:
            self._refuse_if_failed()
            try:
                record = self._store.get(key)
            except StorageError as error:
                log.error("a read met a damaged tree: %s", error)
                raise
        return None if record is None else record.value

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
    ) -> None:
        """Make a node a member. Known facts are answered at once; more than that is refused."""
        reply(self._join_refusal(Server(node_id, raft_address, http_address), voter, role))

    def remove(self, node_id: str, reply: Reply) -> None:
        """End a node's membership. The last voter can't go: nobody would be left to agree."""
        with self._lock:
            refusal: ConureError = self._not_leading() or (
                MemberNotFound(f"{node_id} is no member; GET /raft/config lists them")
                if self._raft.configuration.get(node_id) is None
                else Conflict(f"{node_id} is the only voter; without it nothing could be written")
            )
        reply(refusal)

    def status(self) -> dict[str, Any]:
        """Return what ``GET /status`` shows."""
        with self._lock:
            raft = self._raft
            leader = raft.configuration.get(raft.leader_id) if raft.leader_id else None
            return {
                "node_id": raft.id,
                "cluster_id": self._directory.identity.cluster_id,
                "is_leader": raft.state == State.LEADER,
                "leader": leader.raft_address if leader else "",
                "leader_id": raft.leader_id,
                "leader_http": leader.http_address if leader else "",
                "state": raft.state.value,
                "member": raft.configuration.get(raft.id) is not None,
                "term": raft.term,
                "commit_index": raft.commit_index,
                "applied_index": self._store.applied_index,
                "version": self._options.version,
            }

    def members(self) -> dict[str, Any]:
        """Return what ``GET /raft/config`` shows."""
        with self._lock:
            configuration = self._raft.configuration
            leader = configuration.get(self._raft.leader_id)
        return {
            "leader": leader.raft_address if leader else "",
            "servers": [
                {
                    "id": server.id,
                    "address": server.raft_address,
                    "suffrage": server.suffrage,
                    "http_address": server.http_address,
                    "role": server.role,
                }
                for server in configuration.servers
            ],
        }

    def raft_stats(self) -> dict[str, str]:
        """Return what ``GET /raft/stats`` shows: strings, with hashicorp/raft's keys."""
        with self._lock:
            raft, configuration = self._raft, self._raft.configuration
            snapshot = self._log.snapshot
            members = [
                {"ID": server.id, "Address": server.raft_address, "Suffrage": server.suffrage}
                for server in configuration.servers
            ]
            facts = {
                "state": raft.state.value.capitalize(),
                "term": raft.term,
                "last_log_index": self._log.last_index,
                "last_log_term": self._log.last_term,
                "commit_index": raft.commit_index,
                "applied_index": self._store.applied_index,
                "fsm_pending": raft.commit_index - self._store.applied_index,
                "last_snapshot_index": snapshot.index,
                "last_snapshot_term": snapshot.term,
                "latest_configuration": json.dumps(members),
                "last_contact": _last_contact(raft.last_contact),
                "num_peers": sum(voter != raft.id for voter in configuration.voters),
            }
        return {name: str(value) for name, value in facts.items()}

    def liveness(self) -> tuple[str, bool, str]:
        """Tell whether this process can go on at all; no quorum is asked."""
        failure = self._failure
        return ("process", failure is None, str(failure or "ok"))

    def readiness(self) -> list[tuple[str, bool, str]]:
        """Tell whether this node can serve requests: each check, whether it passes, and why."""
        with self._lock:
            raft, full = self._raft, self._full or self._cramped
            leader = raft.configuration.get(raft.leader_id)
            behind = raft.commit_index - self._store.applied_index
        return [
            self.liveness(),
            ("leader", leader is not None, leader.id if leader else "none is known"),
            ("applied", behind == 0, "ok" if behind == 0 else f"{behind} entries behind"),
            ("disk", True, f"full, writes are refused: {full}" if full else "ok"),
            ("stopping", not self._stopping, "yes" if self._stopping else "no"),
        ]

    def _announce_addresses(self) -> None:
        """Let one configuration entry follow if this node is reached at other addresses now."""
        known = self._raft.configuration.get(self._raft.id)
        if self._failure is not None or known is None:
            return
        options = self._options
        here = replace(known, raft_address=options.raft_address, http_address=options.http_address)
        if here != known:
            self._raft.add_learner(here)  # of a member it changes the addresses only
            self._drive()
            log.info("node %s is reached at %s now", here.id, here.raft_address)

    # -- driving the core; under the lock --------------------------------------------------------

    def _drive(self) -> None:
        """Carry out every Ready of the core (its docstring numbers the duties)."""
        raft, raft_log = self._raft, self._log
        try:
            while (ready := raft.ready()) is not None:
                assert not ready.messages, "a lone voter has nobody to write to"
                if ready.hard_state is not None:
                    raft_log.set_hard_state(ready.hard_state)
                if ready.entries:
                    raft_log.append(ready.entries)
                    started = perf_counter()
                    raft_log.sync()
                    self._sync_seconds.observe(perf_counter() - started)
                if ready.must_persist:
                    raft.persisted(ready)
                if ready.committed:
                    self._apply(ready.committed)
                for context, index in ((read.context, read.index) for read in ready.reads):
                    assert isinstance(context, _Read)
                    context.index = index
            self._finish_reads()
        except Exception as error:  # noqa: BLE001 - whatever stops a step half-way ends the node
            self._fail(error)

    def _apply(self, entries: Sequence[Entry]) -> None:
        self._store.apply(entries)
        last = entries[-1].index
        self._raft.applied(last)
        while self._batches and self._batches[0].first <= last:
            batch = self._batches[0]
            done = min(batch.count, last - batch.first + 1)
            self._finished.append(partial(batch.reply, batch.answered, done, None))
            batch.answered = done
            if done < batch.count:
                break
            self._batches.popleft()
        if self._is_much_unwritten():
            self._checkpoint_wanted.set()

    def _is_much_unwritten(self) -> bool:
        """Tell whether a restart would have much to apply, or memory much to give back (S7)."""
        options, store = self._options, self._store
        return (
            store.applied_index - store.tree.applied_index >= options.checkpoint_entries
            or self._log.size_bytes - self._checkpointed_bytes >= options.checkpoint_log_bytes
            or store.tree.unwritten_bytes >= options.max_unwritten_bytes // 2
        )

    def _finish_reads(self) -> None:
        applied = self._store.applied_index
        while self._reads and (index := self._reads[0].index) is not None and index <= applied:
            self._finished.append(partial(self._reads.popleft().reply, None))

    def _take_finished(self) -> list[Callable[[], None]]:
        finished, self._finished = self._finished, []
        return finished

    def _refuse_if_unable(self) -> None:
        """Raise what stands in the way of a write, before anything of it exists."""
        self._refuse_if_failed()
        if self._full is not None:
            raise self._full

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"this node has failed and is stopping: {self._failure}")

    def _refused(self, error: ConureError) -> ConureError:
        """Pass on why a write was refused; a disk that failed over it ends the node."""
        if isinstance(error, DiskFull):
            if self._full is None:
                self._checkpoint_wanted.set()  # it lets the log be cut and its space used again
        elif isinstance(error, StorageError):
            self._fail(error)
        return error

    def _fail(self, error: Exception) -> None:
        """Stop for good: what waits gets no definite answer any more (S6)."""
        if self._failure is not None:
            return
        self._failure = error
        log.critical(
            "this node can't go on: %s", error, exc_info=not isinstance(error, ConureError)
        )
        self._answer_all(OutcomeUnknown(f"the node failed while it worked on this: {error}"))
        self._on_failure()

    def _answer_all(self, error: ConureError) -> None:
        for batch in self._batches:
            self._finished.append(partial(batch.reply, batch.answered, batch.count, error))
        self._batches.clear()
        for read in self._reads:
            self._finished.append(partial(read.reply, Unavailable(str(error))))
        self._reads.clear()

    def _not_leading(self) -> NotLeader | None:
        raft = self._raft
        if raft.state == State.LEADER:
            return None
        leader = raft.configuration.get(raft.leader_id)
        if leader is None:
            return NotLeader()
        return NotLeader(leader.raft_address, leader.id, leader.http_address)

    def _join_refusal(self, server: Server, voter: bool, role: str) -> ConureError | None:
        with self._lock:
            not_leading = self._not_leading()
            known = self._raft.configuration.get(server.id)
        if not_leading is not None:
            return not_leading
        if known is None:
            return NotImplementedHere(
                f"{server.id} was not added: this version runs clusters of one node only"
            )
        same = (
            known.raft_address == server.raft_address
            and server.http_address in ("", known.http_address)
            and (known.suffrage == "voter") == voter
            and known.role == role
        )
        if same:
            return None
        return Conflict(
            f"{server.id} is a member already, as a {known.suffrage} at {known.raft_address}"
        )

    # -- threads ---------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Tick the core, and end what has waited too long."""
        while not self._stopped.wait(TICK):
            with self._lock:
                if self._failure is None:
                    self._raft.tick()
                    self._drive()
                self._expire(monotonic())
                finished = self._take_finished()
            _run(finished)

    def _expire(self, now: float) -> None:
        while self._batches and self._batches[0].deadline <= now:
            batch = self._batches.popleft()
            error = OutcomeUnknown(
                "the write was not committed in time; it may still be, so read before repeating it"
            )
            self._finished.append(partial(batch.reply, batch.answered, batch.count, error))
        while self._reads and self._reads[0].deadline <= now:
            read = self._reads.popleft()
            self._finished.append(
                partial(read.reply, Unavailable("no quorum has confirmed the read in time"))
            )

    def _keep_checkpoints(self) -> None:
        """Checkpoint when enough was written or enough time has passed; keep the log ahead."""
        try:
            while True:
                self._checkpoint_wanted.wait(HOUSEKEEPING)
                if self._stopped.is_set():
                    return
                self._checkpoint_wanted.clear()
                self._prepare_log()
                elapsed = monotonic() - self._checkpointed_at
                if self._full is not None or self._cramped is not None:
                    due = elapsed >= DISK_FULL_RETRY
                else:
                    due = elapsed >= self._options.checkpoint_interval or self._is_much_unwritten()
                if due:
                    self._checkpoint(CHECKPOINT_SLICE)
        except Exception as error:  # noqa: BLE001 - a failed disk, or a bug: neither is survived
            with self._lock:
                self._fail(error)
                finished = self._take_finished()
            _run(finished)

    def _prepare_log(self) -> None:
        if self._cramped is not None and monotonic() < self._prepare_again_at:
            return  # every attempt fills what room there is with zeros
        try:
            self._log.prepare()
        except DiskFull as error:
            # The writes that need the room will be refused, each with the reason.
            if self._cramped is None:
                log.error("no room for the next log segment, writes will be refused: %s", error)
            self._cramped = error
            self._prepare_again_at = monotonic() + DISK_FULL_RETRY
        else:
            self._cramped = None

    def _checkpoint(self, slice_seconds: float) -> None:
        """Bring the state as of now to disk, then cut the log behind it.

        Works and rests in turns of *slice_seconds* (0: without rest).
        """
        with self._lock:
            if self._failure is not None or (
                self._store.applied_index == self._store.tree.applied_index and self._full is None
            ):
                self._checkpointed_at = monotonic()
                return
            checkpoint = self._store.begin_checkpoint()
            logged = self._log.size_bytes
        self._checkpointed_at = monotonic()
        started = perf_counter()
        try:
            while not checkpoint.step(slice_seconds or 1.0):
                if slice_seconds and not self._stopped.is_set():
                    sleep(slice_seconds)
                    self._prepare_log()
            checkpoint.finish()
            with self._lock:
                cut = self._log.size_bytes
                self._log.cut(checkpoint.meta)
                cut -= self._log.size_bytes
        except DiskFull as error:
            checkpoint.abort()
            if self._full is None:
                log.error("a checkpoint does not fit on the disk, writes are refused: %s", error)
            self._full = error
            return
        self._checkpointed_bytes = logged - cut
        if self._full is not None:
            log.info("there is room again, writes are accepted")
            self._full = None
        seconds = perf_counter() - started
        self._checkpoint_seconds.observe(seconds)
        log.debug("checkpoint at index %d in %.3f s", checkpoint.meta.index, seconds)

    def _add_metrics(self, registry: Registry) -> None:
        tree, raft_log, raft, store = self._store.tree, self._log, self._raft, self._store
        self._sync_seconds = registry.histogram(
            "conure_log_sync_duration_seconds", "Time a sync of the log took, in seconds."
        )
        self._batch_sizes = registry.histogram(
            "conure_write_batch_size",
            "Commands that were committed together, with one sync.",
            BATCH_SIZES,
        )
        self._checkpoint_seconds = registry.histogram(
            "conure_checkpoint_duration_seconds",
            "Time from the beginning of a checkpoint to its end, in seconds.",
        )
        gauge, counter = registry.gauge_callback, registry.counter_callback
        gauge("conure_raft_term", "Current term.", lambda: raft.term)
        gauge("conure_raft_is_leader", "1 on the leader.", lambda: int(raft.state == State.LEADER))
        gauge("conure_raft_commit_index", "Last committed index.", lambda: raft.commit_index)
        gauge("conure_raft_applied_index", "Last applied index.", lambda: store.applied_index)
        gauge("conure_log_size_bytes", "Live bytes in the log.", lambda: raft_log.size_bytes)
        gauge("conure_log_segments", "Files of the log.", lambda: raft_log.segments)
        gauge("conure_db_size_bytes", "Size of the tree's file.", lambda: tree.stats().file_bytes)
        gauge("conure_db_free_bytes", "Free pages in it.", lambda: tree.stats().free_bytes)
        gauge("conure_db_records", "Records in the tree.", lambda: len(tree))
        gauge("conure_db_depth", "Levels of the tree.", lambda: tree.stats().depth)
        gauge(
            "conure_db_unwritten_pages",
            "Changed pages that wait for the next checkpoint.",
            lambda: tree.stats().unwritten_pages,
        )
        gauge("conure_page_cache_bytes", "Pages in memory.", lambda: tree.stats().cache_bytes)
        counter(
            "conure_page_cache_hits_total", "Pages found there.", lambda: tree.stats().cache_hits
        )
        counter(
            "conure_page_cache_misses_total",
            "Pages read from the file.",
            lambda: tree.stats().cache_misses,
        )
        counter(
            "conure_page_cache_evictions_total",
            "Pages dropped to make room.",
            lambda: tree.stats().evictions,
        )
        gauge(
            "conure_disk_full",
            "1 while there is no room for a checkpoint or for more log, and writes are refused.",
            lambda: int((self._full or self._cramped) is not None),
        )

    def _make_core(self) -> Raft:
        configuration = self._store.configuration
        return Raft(
            RaftOptions(self._directory.identity.node_id),
            self._log,
            self._log.hard_state,
            self._store.applied_index,
            Configuration.decode(configuration) if configuration else Configuration(()),
            random.Random(),
        )


def _last_contact(ticks: int | None) -> str:
    if ticks is None:
        return "never"
    return f"{ticks * TICK * 1000:.0f}ms" if ticks else "0"


def _run(finished: Sequence[Callable[[], None]]) -> None:
    for reply in finished:
        reply()


def _begin_cluster(options: NodeOptions, directory: DataDirectory, raft_log: RaftLog) -> None:
    """Write the beginning of a cluster of this one node; repeated if a crash comes between."""
    if not directory.identity.cluster_id:
        directory.begin_cluster()
    server = Server(directory.identity.node_id, options.raft_address, options.http_address)
    hard_state, entry = bootstrap(Configuration((server,)))
    raft_log.set_hard_state(hard_state)
    raft_log.append([entry])
    raft_log.sync()
    log.info("node %s begins cluster %s", server.id, directory.identity.cluster_id)


def _check_agreement(raft_log: RaftLog, tree: BTree, directory: DataDirectory) -> None:
    """Refuse a log and a tree that can't belong together: one of them has lost something."""
    term = raft_log.hard_state.term
    if raft_log.last_index == 0 and term > 1 and directory.identity.cluster_id:
        # The founder's first entry is on disk before its first vote: somebody has removed it.
        raise CorruptionError(
            directory.raft_path, 0, f"the log is empty, yet there was term {term}"
        )
    path = directory.database_path
    applied, first = tree.applied_index, raft_log.snapshot.index
    if applied < first:
        raise CorruptionError(
            path, 0, f"it holds entries up to {applied}, the log begins behind {first}"
        )
    if applied > raft_log.last_index:
        raise CorruptionError(
            path, 0, f"it holds entries up to {applied}, the log ends at {raft_log.last_index}"
        )
    logged = raft_log.term(applied)
    if logged is not None and logged != tree.applied_term:
        raise CorruptionError(
            path, 0, f"entry {applied} is of term {tree.applied_term} here, {logged} in the log"
        )


def _configuration_at(raft_log: RaftLog, index: int) -> bytes:
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
