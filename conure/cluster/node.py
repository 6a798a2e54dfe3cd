"""The node: the threads that drive the core, the log and the store, and the one lock they share.

The core is a monitor. Whoever brings input (the reactor with a round of requests or a peer's
messages, the timer with a tick) takes the lock, steps the core and carries out every ``Ready`` it
gives (raft.py lists those duties) before letting go. So a write travels without a hand-over:
propose, send to the followers, append, one sync for the whole round; the answers of the followers
commit it, and the thread that reads them applies it and answers.

======================= ======================================================================
thread                  does
======================= ======================================================================
reactor (server.py) the backend's methods; ``receive`` and ``take_held``
peers (transport.py)    the rest of the transport's host: handshakes, snapshots, lost connections
workers, watch pump     ``confirm_read``, ``get_all``, ``pin``, ``backup``, ``time``: long answers
timer                   ``tick``: the core's time, ends what has waited too long
checkpointer            ``housekeep``: checkpoints, cuts the log, makes room for more of it
main                    ``open``, ``recover``, ``start``, ``resign``, ``stop``
======================= ======================================================================

Lock order: ``Upkeep.exclusive``, the node's lock, then the tree's and the log's own small ones. The
first is held by a checkpoint from its beginning to its end and by the installation of a snapshot,
because each of them wants the tree's file for itself. The node's lock guards the core, the log,
the store and every attribute below that is not marked otherwise. Replies are called after it is
let go. Syncs of the log happen under it, because nothing else has anything to do until they
return; a checkpoint's pages are written and synced outside of it.

1. Nothing is acknowledged before it is on a majority of disks, committed and applied (R1, R2, R8).
   Entries are synced in the step that appends them, so nothing is applied here that this node
   would lose in a crash, and a checkpoint is never ahead of its log.
2. What fails half-way ends the node (S6): :meth:`Node._fail` answers whoever waits that the
   outcome is unknown, and the process exits. A restart replays the log.
3. A full disk is no failure as long as nothing half-written matters: room in the log is reserved
   before the core hears of a write, and a checkpoint that does not fit is taken again later.
   Until then writes are refused and reads go on. A follower takes no entries that it has no room
   for; it is sent them again. What the node itself has to log (no-ops, members) goes into the
   log's reserve. When that is gone too, and wherever the disk is full although room was made, the
   duties that can't be done wait in their order (``_unwritten``), and meanwhile nothing is taken
   that would add to them. If term and vote can't be written, nothing leaves this node and nothing
   is taken until they are (``_stalled``). All of it is tried again until there is room.
4. A write that was proposed is answered by what was committed at its index: itself, or something
   else, which proves that it is lost. Loss of leadership alone proves nothing.
5. A node that doesn't belong here gets no further than the handshake: another cluster's, or one
   whose data directory isn't the one the member of that name was admitted with (a wiped disk has
   forgotten its vote). Connections are judged again when this node's role, the members or whom it
   follows have changed (greetings.py).
6. While proposed writes wait for their quorum, others are held back, to be proposed together with
   what comes of the clients that are answered then. Of a held write it is certain that it did not
   happen. Reads wait for the confirmation of those before them in the same way, and both for the
   clients that either of them has just answered: until all have asked again, or for a moment.
7. What is committed is applied in its order, for APPLY_SECONDS at a time and at least one entry.
   The rest (``_unapplied``) takes turns with all else that the reactor does, as long ones as that
   takes (APPLY_SHARE), and nothing more is proposed meanwhile. One entry takes as long as it takes:
   who proposes it bounds that (documents.py).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from sys import maxsize
from time import perf_counter, sleep
from typing import Any, Protocol

from conure import errors
from conure.cluster import membership
from conure.cluster import status as status_module
from conure.cluster.checkpointing import DISK_FULL_RETRY, Upkeep, UpkeepOptions
from conure.cluster.digests import Audit
from conure.cluster.greetings import Admission, Roads
from conure.cluster.leases import Lease, ticks_in
from conure.cluster.membership import Change, Changes
from conure.cluster.pending import Answers, Held, Read, Reads, Reply, WriteReply, Writes
from conure.cluster.versions import Versions
from conure.commands import Committed, Expire, Outcome, Transaction
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import (
    Entry,
    EntryKind,
    Message,
    MessageType,
    Ready,
    SnapshotHeader,
    SnapshotMeta,
    State,
)
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.errors import (
    Conflict,
    ConureError,
    CorruptionError,
    DiskFull,
    Diverged,
    NotLeader,
    NotRead,
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
    StorageError,
    Unavailable,
    VersionTooNew,
)
from conure.fileio import FileSystem
from conure.metrics import BATCH_SIZES, Registry
from conure.peers.protocol import Greeting
from conure.peers.transfer import Outgoing
from conure.state import codec, snapshots
from conure.state.backup import Backup, Facts
from conure.state.history import History
from conure.state.leaderclock import LeaderClock
from conure.state.machine import Inspection, PinnedState, Session, Store
from conure.state.snapshots import IncomingSnapshot, OutgoingSnapshot
from conure.storage.datadir import DataDirectory
from conure.storage.engine import EngineOptions, Record, StorageEngine
from conure.storage.engines import BTREE, kind_named
from raft import Raft, RaftOptions, bootstrap

__all__ = ["Node", "NodeOptions", "Peers", "check_agreement"]

TICK = 0.05
"""Seconds between ticks of the core; its time-outs are counted in ticks."""

BRAKE = 0.02
"""Seconds every round of writes waits while changed pages take too much memory."""

GATHER = 100e-6
"""Seconds that held requests wait at most for those of clients who have just been answered: one
batch of all is faster than two of halves, and one question whether this still leads than two."""

WORTH_A_BATCH = 64
"""Held commands that wait for no others: a sync is shared by enough of them."""

HOUSEKEEPING = 0.1
"""Seconds between two looks at whether a checkpoint or a log segment is needed."""

MAX_READ_BYTES = 1 << 20
"""Bytes of log entries read in one go at the start."""

APPLY_SECONDS = 0.004
"""Seconds for which committed entries are applied in one go; more of them take turns with all else
that the reactor does."""

APPLY_SHARE = 4
"""How many times that it is at most where all else takes longer: as long as that did, and longer if
much is left, or a follower that is busy with reads would fall behind without end."""

MAX_UNAPPLIED = 32_768
"""Committed entries that may wait to be applied, about: beyond that a follower takes no more, and
is sent them again."""

MAX_HELD_BYTES = 64 << 20
"""Commands that may wait until those before them have their quorum."""

MAX_BATCH, MAX_BATCH_BYTES = 2048, 4 << 20
"""Held commands, and their bytes, after which no more are proposed in one go: to log and apply
them keeps the reactor busy, and those who lead or follow have to hear of each other meanwhile."""

CALL_OUT_TICKS = 20
"""Ticks between two attempts of a member that doesn't lead to reach the others."""

AUDIT_TICKS = 20
"""Ticks between two comparisons of the replicas' digests."""

MAX_EXPIRED = 1000
"""Keys and sessions that one entry ends; the rest of what is due has to wait for the next tick."""

JOIN_AFTER = 5.0
"""Seconds without a leader after which a member asks its seeds whether it still is one."""

TRANSFER_REST = 120.0
"""Seconds without a record after which a state that was being received is given up: its sender
would have gone on by then, if it could."""

STAGED_CACHE_BYTES = 4 << 20
"""Page cache of an engine that is built from a snapshot."""

ENGINE = kind_named(BTREE)
"""The kind of engine that holds the records."""

Command = tuple[bytes, bytes | None] | Transaction
"""A key and its new value, None to delete it; or a transaction, whose time is set by the node."""

log = logging.getLogger("conure.node")


class Closable(Protocol):
    """What was opened and has to be closed again if the rest can't be."""

    def close(self) -> None: ...


class Peers(Roads, Protocol):
    """The way to the other nodes: transport.py, or a simulated network. Nothing here blocks."""

    def send(self, message: Message) -> None:
        """Send a message, if it can be."""

    def send_snapshot(self, outgoing: Outgoing) -> None:
        """Stream a state; ``snapshot_sent`` tells how that ended."""


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
    role: str = "data"
    election_timeout: float = 0.4
    read_mode: str = "index"
    barrier_timeout: float = 3.0
    write_timeout: float = 10.0
    page_size: int = 4096
    cache_bytes: int = 64 << 20
    log_segment_bytes: int = 4 << 20
    checkpoint_log_bytes: int = 32 << 20
    checkpoint_entries: int = 50_000
    checkpoint_interval: float = 60.0
    max_unwritten_bytes: int = 256 << 20
    speaks: int = codec.SPEAKS
    apply_seconds: float = APPLY_SECONDS


class _Turn:
    """The node's lock, taken for one step; what the step has finished is answered behind it."""

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        self._node._lock.acquire()

    def __exit__(self, *_: object) -> None:
        node = self._node
        finished, node._finished = node._finished, []
        must_go_on = bool(node._unapplied) and node._is_working and not node._will_go_on
        node._will_go_on |= must_go_on
        node._lock.release()
        if must_go_on:
            node.call_later(node.go_on, 0.0)
        for reply in finished:
            try:
                reply()
            except Exception:  # one of them is no reason for the others to wait for ever
                log.exception("an answer failed")


class Node:
    """One member of a cluster, with everything it owns in its data directory.

    *on_failure* is called once, from any thread, when the node can't go on; it must only note
    the fact. The node refuses everything from then on. *clock* is monotonic and *wall* tells the
    time since the Unix epoch, both in seconds.
    """

    call_later: Callable[[Callable[[], None], float], None] = staticmethod(
        lambda action, seconds: action()  # noqa: ARG005
    )
    """How to have something done after some seconds, in the thread that brings the messages, and
    not before answers have been sent: their receivers' next requests can be taken along then. Any
    thread asks for it."""

    def __init__(
        self,
        options: NodeOptions,
        directory: DataDirectory,
        raft_log: RaftLog,
        engine: StorageEngine,
        peers: Peers,
        registry: Registry,
        on_failure: Callable[[], None],
        history: History,
        clock: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._options = options
        self._directory = directory
        self._log = raft_log
        self._peers = peers
        self._on_failure = on_failure
        self._history = history
        self._clock = clock
        self._wall = wall
        self._leader_clock = LeaderClock(clock, wall)
        self._is_expiring = False  # an Expire is under way
        self._lock = threading.Lock()
        self._turn = _Turn(self)
        self._is_arbiter = directory.identity.role == "arbiter"
        self._versions = Versions(directory.identity.node_id, options.speaks)
        self._store = self._make_store(engine)
        self._store.keeps_events = True
        history.reset(self._store.applied_index)
        self._encoded_members = self._store.configuration
        self._members = Configuration.decode(self._encoded_members)  # the committed ones
        election_ticks = ticks_in(options.election_timeout, TICK)
        self._raft = Raft(
            RaftOptions(
                directory.identity.node_id,
                incarnation=directory.identity.incarnation,
                election_ticks=election_ticks,
                quiet_ticks=election_ticks,  # the leader may read by leases, if this does not
            ),
            raft_log,
            raft_log.hard_state,
            self._store.applied_index,
            self._members,
            rng,
        )
        self._raft.check_format = self._versions.check
        self._writes = Writes()
        self._last_proposed = 0, 0  # term and index of the last command
        self._warn_again_at = 0.0  # of a lack of room
        self._make_again_at = 0.0  # room for a leader's entries, after there was none
        self._unwritten: deque[Ready] = deque()  # what waits for room (3)
        self._write_again_at = 0.0
        self._stalled: Ready | None = None  # whose term and vote wait for room (3)
        self._unapplied: list[Entry] = []  # committed, and to be applied by and by (7)
        self._will_go_on = False  # that has been asked for
        self._until = 0.0  # when it has been applied for long enough
        self._applied_at = 0.0  # when something was applied last
        self._is_pausing = False  # answers are being sent; see call_later
        self._crowd = 0  # requests that waited before those answers
        self._reads = Reads()
        self._changes = Changes(self._raft)
        self._finished: Answers = []
        self._failure: BaseException | None = None
        self._is_working = True  # until it fails or is stopped
        self._stopping = False
        self._was_removed = False
        self._left_to: Server | None = None  # who led when this node was removed
        self._shown = (self._raft.state, self._raft.leader_id)  # as last logged

        # The others.
        self._admission = Admission(
            self._raft,
            directory,
            peers,
            options.raft_address,
            options.http_address,
            round(options.election_timeout * 1000),
        )
        self._lease = Lease(self._raft, options.election_timeout, TICK, clock)
        self._heard: float | None = None  # when a leader was heard last
        self._incoming: IncomingSnapshot | None = None
        self._seen_of_incoming: tuple[IncomingSnapshot, int | None] | None = None  # its progress
        self._incoming_since = 0.0  # when that changed last
        self._transfers: dict[str, int] = {}  # snapshots on their way out: to whom, as of when
        self._ticks = 0
        self._audit = Audit()
        self._untold = 0  # messages that were dropped without a word since
        self._tell_again_at = 0.0  # of messages that were dropped
        self._told = ("", 0, 0)  # the last answer to an audit: to whom, in which term, as of when

        # Threads.
        self._checkpoint_wanted = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._upkeep = Upkeep(
            UpkeepOptions(
                options.checkpoint_log_bytes,
                options.checkpoint_entries,
                options.checkpoint_interval,
                options.max_unwritten_bytes,
            ),
            self._lock,
            raft_log,
            self._store,
            clock,
            registry,
            keep_from=self._keep_from,
            may_work=lambda: self._is_working,
            stopping=self._stopped,
        )
        self._add_metrics(registry)

    @classmethod
    def open(
        cls,
        options: NodeOptions,
        fs: FileSystem,
        peers: Peers,
        registry: Registry,
        on_failure: Callable[[], None],
        history: History | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> Node:
        """Open or make the data directory and what is in it; begin a cluster if that is wanted.

        Raises DirectoryInUse, ForeignDirectory, CorruptionError, DiskFull or DiskFailed.
        """
        directory = DataDirectory.open(
            fs,
            options.data_dir,
            options.node_id,
            told_node_id=options.told_node_id,
            role=options.role,
        )
        opened: list[Closable] = [directory]
        try:
            raft_log = RaftLog.open(
                fs, directory.raft_path, segment_bytes=options.log_segment_bytes
            )
            opened.append(raft_log)
            snapshots.recover(fs, directory.path, raft_log, ENGINE)
            engine = _open_engine(fs, directory, options)
            opened.append(engine)
            check_agreement(raft_log, engine, directory)
            if not directory.identity.cluster_id and (options.bootstrap or raft_log.last_index):
                _begin_cluster(options, directory, raft_log)
            return cls(
                options,
                directory,
                raft_log,
                engine,
                peers,
                registry,
                on_failure,
                history or History(),
                clock,
                wall,
                rng or random.Random(),
            )
        except BaseException:
            for each in reversed(opened):
                each.close()
            raise

    def recover(self) -> None:
        """Apply what the log holds beyond the last checkpoint, if nobody else has to be asked."""
        with self._lock:
            configuration = self._raft.configuration
            if configuration.voters == (self._raft.id,):
                self._raft.campaign()
            elif not configuration.servers:
                log.warning(
                    "node %s belongs to no cluster: waiting to be joined at %s "
                    "(--join names a member to ask, --bootstrap begins a cluster of its own)",
                    self._raft.id,
                    self._options.raft_address,
                )
            self._drive()
            if self._is_working:
                self._admission.follow_addresses()
            self._drive()
            while self._unapplied and self._is_working:
                self._go_on()
            failure = self._failure
            if self._upkeep.is_waiting and configuration.voters == (self._raft.id,):
                failure = self._upkeep.shortage  # it could serve nothing: nobody else can commit
        if failure is not None:
            raise failure

    def start(self) -> None:
        """Recover, and start the threads."""
        self.recover()
        log.info("node %s is %s", self._raft.id, self._describe_start())
        for name, run in (("timer", self._keep_time), ("checkpointer", self._keep_checkpoints)):
            # A main thread that fails, even over stopping, must not leave these behind for ever.
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _describe_start(self) -> str:
        """Say what the node has and, if its log has more, that this isn't lost."""
        state, applied = self._raft.state, self._store.applied_index
        last = self._log.last_index
        if last > applied:
            return (
                f"{state} in term {self._raft.term}: its log reaches to index {last}; what it has "
                f"behind index {applied} is applied as soon as a leader confirms it"
            )
        records = "no records" if self._is_arbiter else f"{self._store.records} records"
        return f"{state} at index {applied}, {records}"

    def begin_stop(self) -> None:
        """Fail readiness, so that nobody sends anything new; requests are still served."""
        self._stopping = True

    def resign(self, timeout: float = 2.0) -> None:
        """Hand leadership over, if this node has it and somebody can take it. Main thread."""
        with self._lock:
            if self._raft.state is not State.LEADER or len(self._raft.configuration.voters) < 2:
                return
        ended = threading.Event()
        outcome: list[ConureError | None] = []

        def reply(error: ConureError | None) -> None:
            outcome.append(error)
            ended.set()

        self.hand_over("", reply)
        if not ended.wait(timeout) or outcome[0] is not None:
            why = outcome[0] if outcome else "nobody took it in time"
            log.warning("leadership was not handed over: %s", why)

    def stop(self) -> None:
        """End the threads, write a last checkpoint unless the node has failed, close the files.

        The transport has to be closed before. What one of its threads, being late, still brings
        is refused from then on.
        """
        self._stopping = True
        self._stopped.set()
        self._checkpoint_wanted.set()
        for thread in self._threads:
            thread.join()
        if self._failure is None and self._store.applied_index > self._store.checkpointed_index:
            self._upkeep.checkpoint(0.0)
        with self._upkeep.exclusive, self._turn:
            self._is_working = False
            self._answer_all(
                OutcomeUnknown("the node has stopped; a write may still be committed by the others")
            )
            incoming = self._exchange_incoming(None)
        if incoming is not None:
            incoming.discard()
        self._log.close()
        self._store.close()
        self._directory.close()

    # -- what the routes ask for (httpapi.Backend) -----------------------------------------------

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
        """Commit commands in order: a key's new value, its deletion (None), or a transaction.

        *reply* gets ranges of positions in *commands* and how they ended; each position once.
        Transactions get their time here.
        """
        with self._turn:
            try:
                self._refuse_if_not_leading()
                if self._writes.held_bytes > MAX_HELD_BYTES:
                    raise Unavailable("too many writes wait for a quorum; try again shortly")
            except ConureError as error:
                self._finished.append(partial(reply, 0, len(commands), error))
                return
            self._hold(self._encode(commands), reply)
            self._end_pause_if_all_are_back()
            self._take_held()
            self._drive()
            if self._writes.held_bytes and not self._is_busy():  # any more
                self._propose()
                self._drive()
            is_left = self._writes.held_bytes and not (self._is_pausing or self._is_busy())
            must_brake = self._must_brake()
        if is_left:  # nobody else would take it up soon
            self.call_later(self.take_held, 0.0)
        if must_brake:
            sleep(BRAKE)  # the checkpoint gets the time it needs to catch up (S7)

    def confirm_read(self, reply: Reply, requests: int = 1) -> None:
        """Call *reply* once everything acknowledged before now is in the local state (R6).

        It answers so many *requests*.
        """
        with self._turn:
            try:
                self._refuse_if_not_leading()
                if self._unwritten and not self._raft.may_read:
                    raise Unavailable(
                        "the log of this leader waits for room, and nobody has its first entry: "
                        f"{self._upkeep.shortage}; read with stale=true, or try again later"
                    )
                read = Read(reply, self._clock() + self._options.barrier_timeout, requests)
                if self._holds_lease():
                    read.index = self._raft.state_index
                elif self._must_hold_reads():
                    self._reads.hold(read)
                    self._end_pause_if_all_are_back()
                    self._take_held()
                    self._drive()
                    return
                else:
                    read.index = self._raft.read_index(read)
            except ConureError as error:
                self._finished.append(partial(reply, error))
                return
            if read.index is None or read.index > self._store.applied_index:
                self._reads.add(read)
                self._drive()
            else:
                self._finished.append(partial(reply, None))

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, list[Record | ConureError | None]]:
        """Return the revision of this node's state, and of each key in it the record, None if
        there is none, or what went wrong.

        Once values of *most* bytes are read, none of more than *longest* bytes is any more, and
        NotRead is in its place.
        """
        left = most
        found: list[Record | ConureError | None] = []
        with self._lock:
            index = self._store.applied_index
            try:
                self._refuse_if_no_records()
            except ConureError as error:
                return index, [error] * len(keys)
            get = self._store.get
            for key in keys:
                try:
                    if left <= 0 and self._is_longer(key, longest):
                        found.append(NotRead())
                        continue
                    record = get(key)
                    found.append(record)
                    if record is not None:
                        left -= len(record.value)
                except StorageError as error:
                    log.error("a read met a damaged tree: %s", error)
                    found.append(error)
        return index, found

    def _is_longer(self, key: bytes, most: int) -> bool:
        heading = self._store.heading(key)
        return heading is not None and heading[1] > most

    def pin(self) -> PinnedState:
        """Return this node's state as of now, for any thread; whoever gets it closes it.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        with self._lock:
            self._refuse_if_no_records()
            return self._store.snapshot()

    def look(self, key: bytes) -> tuple[int, Record | ConureError | None, tuple[bytes, int] | None]:
        """Return the same of one key, and which session holds it, with its fencing token."""
        with self._lock:
            index = self._store.applied_index
            try:
                self._refuse_if_no_records()
                return index, self._store.get(key), self._store.holder(key)
            except ConureError as error:
                return index, error, None

    def session(self, session: bytes) -> tuple[int, Session | ConureError | None]:
        """Return the revision of this node's state, and a session in it, or what went wrong."""
        with self._lock:
            index = self._store.applied_index
            try:
                self._refuse_if_no_records()
                return index, self._store.session(session)
            except ConureError as error:
                return index, error

    def holdings(self, session: bytes, key: bytes, most: int) -> int:
        """Count the keys that a session holds, up to *most*, in the leader's state; 0 if *key* is
        one of them, and elsewhere, where nothing is decided by it. Raises ConureError."""
        with self._lock:
            if self._raft.state is not State.LEADER or self._is_arbiter:
                return 0
            return self._store.holdings(session, key, most)

    def backup(self) -> tuple[int, Backup]:
        """Return the revision of this node's state, and a backup of it, for any one thread.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        state = self.pin()
        try:
            identity = self._directory.identity
            facts = Facts(identity.cluster_id, identity.node_id, int(self._wall() * 1000))
            return state.meta.index, Backup(state, facts)
        except BaseException:
            state.close()
            raise

    def check_watchable(self) -> None:
        """Raise Unavailable where nothing, or nothing any more, would come to a watch."""
        with self._lock:
            self._refuse_if_failed()
            if self._is_arbiter:
                raise Unavailable("an arbiter keeps no records; watch at another server")
            if self._raft.configuration.get(self._raft.id) is None:
                raise Unavailable("this node is of no cluster; watch at another server")

    def time(self) -> int:
        """Return what expiries are counted by, in milliseconds since the Unix epoch.

        Exact on the leader; elsewhere by this node's own wall clock.
        """
        with self._lock:
            if self._raft.state is State.LEADER:
                return self._time()
            return max(self._store.clock, int(self._wall() * 1000))

    def last_contact(self) -> float | None:
        """Return how long ago a leader was heard, in seconds: 0 on the leader, None for never."""
        if self._raft.state is State.LEADER:
            return 0.0
        heard = self._heard
        return None if heard is None else max(0.0, self._clock() - heard)

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
        incarnation: str = "",
    ) -> None:
        """Make a node a member, after asking it who it is; *reply* is told once it is one.

        A voter begins as a learner. If it takes long to catch up, the answer comes before that,
        and the leader makes it a voter as soon as it has. Without a leader nothing can change,
        but a member that asks from a new address is found there from now on: there may be no
        leader because nobody knew where the others had gone.

        *incarnation* is the node's own, if it is known: a node that was a member before believes
        who asks by that, though all whom it knew have left.
        """
        refusal: ConureError | None = None
        with self._lock:
            try:
                self._refuse_if_not_leading()
            except ConureError as error:
                refusal = error
            is_lost = not self._raft.leader_id and self._raft.configuration.get(node_id) is not None
        if refusal is not None:
            if is_lost and node_id != self._raft.id:
                found = partial(self._on_found, node_id, reply, refusal)
                self._peers.probe(raft_address, node_id, found, self.known_as(node_id))
            else:
                reply(refusal)
            return
        asked = partial(
            self._on_probed,
            node_id,
            raft_address,
            http_address,
            voter=voter,
            role=role,
            reply=reply,
        )
        if node_id == self._raft.id:
            asked(self.greeting())
        else:
            self._peers.probe(raft_address, node_id, asked, incarnation or self.known_as(node_id))

    def remove(self, node_id: str, *, force: bool, reply: Reply) -> None:
        """End a node's membership; *reply* is told once that is committed.

        *force* insists although too few of the others answer at this moment.
        """

        asked = self._raft.ticks

        def attempt() -> None:
            configuration = self._raft.configuration
            if configuration.get(node_id) is None and self._members.get(node_id) is not None:
                return  # on its way out already
            rest = self._raft.check_removal(node_id, force=force)
            if not force and not self._raft.have_answered(rest, asked):
                raise Unavailable("too few of the members that stay have answered in time")
            self._raft.remove(node_id, force=force)

        self._pursue(
            Change(
                attempt,
                lambda members: members.get(node_id) is None,
                reply,
                self._clock() + self._options.write_timeout,
                lambda _: OutcomeUnknown(
                    f"the removal of {node_id} was not committed in time; see GET /raft/config"
                ),
            )
        )

    def hand_over(self, node_id: str, reply: Reply) -> None:
        """Hand leadership to a member, or with "" to the most up to date; told when it has it."""

        self._pursue(
            Change(
                partial(self._raft.transfer_leadership, node_id),
                lambda _: (
                    self._raft.leader_id == node_id
                    or (not node_id and self._raft.leader_id not in ("", self._raft.id))
                ),
                reply,
                self._clock() + 2 * self._options.election_timeout + 1.0,
                lambda _: Unavailable(f"{node_id or 'nobody'} has not taken over; try again"),
                needs_leadership=False,
            )
        )

    def referral(self) -> NotLeader | None:
        """Return whom writes are to be asked of, if that isn't this node."""
        with self._lock:
            return None if self._raft.state is State.LEADER else self._not_leader()

    def names(self) -> tuple[str, ...]:
        """Return the addresses under which the cluster knows this node. Any thread."""
        server = self._raft.configuration.get(self._raft.id)
        return (server.http_address, server.raft_address) if server else ()

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        """Return what the quorum would be with this member, and what it would survive."""
        with self._lock:
            self._refuse_if_not_leading()
            return membership.preview_join(self._raft, node_id, voter=voter, role=role)

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        """Return what the quorum would be without this member. Raises MemberNotFound."""
        with self._lock:
            self._refuse_if_not_leading()
            return membership.preview_remove(self._raft, node_id)

    def status(self) -> dict[str, Any]:
        """Return what ``GET /status`` shows."""
        with self._lock:
            return status_module.status(
                self._raft, self._store, self._directory.identity, self._options.version
            )

    def members(self) -> dict[str, Any]:
        """Return what ``GET /raft/config`` shows."""
        with self._lock:
            return status_module.members(self._raft)

    def raft_stats(self) -> dict[str, str]:
        """Return what ``GET /raft/stats`` shows: strings, with hashicorp/raft's keys."""
        with self._lock:
            return status_module.raft_stats(
                self._raft, self._log, self._store, self._versions, self.last_contact()
            )

    def liveness(self) -> tuple[str, bool, str]:
        """Tell whether this process can go on at all; no quorum is asked."""
        failure = self._failure
        return ("process", failure is None, str(failure or "ok"))

    def readiness(self) -> list[tuple[str, bool, str]]:
        """Tell whether this node can serve requests: each check, whether it passes, and why."""
        with self._lock:
            raft, full = self._raft, self._upkeep.shortage
            leader = raft.configuration.get(raft.leader_id)
            behind = max(0, raft.state_index - self._store.applied_index)
            waits = ", and the log waits for room" if self._upkeep.is_waiting else ""
            is_member = raft.configuration.get(raft.id) is not None
            unequal = self._lease.differences
        return [
            self.liveness(),
            ("member", is_member, "ok" if is_member else "of no cluster"),
            ("leader", leader is not None, leader.id if leader else "none is known"),
            ("applied", behind == 0, "ok" if behind == 0 else f"{behind} entries behind"),
            ("disk", True, f"full, writes are refused{waits}: {full}" if full else "ok"),
            ("timeouts", True, unequal or "ok"),
            ("stopping", not self._stopping, "yes" if self._stopping else "no"),
        ]

    def facts(self) -> dict[str, Any]:
        """Return what ``POST /join`` has to be told to make this node a member."""
        greeting = self.greeting()
        return {
            "ID": greeting.node_id,
            "RaftAddr": greeting.raft_address,
            "HTTPAddr": greeting.http_address,
            "Role": greeting.role,
            "Incarnation": greeting.incarnation,
        }

    def wants_to_join(self) -> bool:
        """Tell whether somebody should be asked to add this node: it is no member, or hears from
        no leader. One that was removed while it ran stays out until it is started again."""
        with self._lock:
            if not self._is_working or self._was_removed or self._stopping:
                return False
            last_contact = self.last_contact()
            is_member = self._raft.configuration.get(self._raft.id) is not None
            return not is_member or last_contact is None or last_contact > JOIN_AFTER

    # -- what the transport asks for (transport.Host) --------------------------------------------

    def greeting(self) -> Greeting:
        """Return what this node says of itself to others."""
        return replace(self._admission.greeting(), speaks=self._options.speaks)

    def known_as(self, node_id: str) -> str:
        """Return the incarnation with which a node was admitted, "" if that isn't known."""
        with self._lock:
            return self._admission.known_as(node_id)

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str = "") -> None:
        """Decide on a node that has connected, taking this one for the incarnation *known_as*.

        Raises Refused (5).
        """
        with self._lock:
            if not self._is_working:
                raise Refused("this node is stopping")
            self._admission.admit(kind, to, peer, known_as)
            self._hear(peer)
            if kind != "probe":
                self._lease.hear(peer)

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on a node that has answered this one's call. Raises Refused (5)."""
        with self._lock:
            self._admission.recognise(expected_id, peer)
            self._hear(peer)
            self._lease.hear(peer)

    def is_member(self, peer: Greeting) -> bool:
        """Tell whether a node is a member, as it was admitted. Takes no lock."""
        known = self._raft.configuration.get(peer.node_id)
        return known is not None and known.incarnation in ("", peer.incarnation)

    def receive(self, messages: Sequence[Message]) -> None:
        """Take messages from an admitted node, all that have arrived together."""
        has_answered = False
        try:
            with self._turn:
                if not self._is_working or self._stalled is not None:
                    return
                was_busy, was_confirming = self._is_busy(), self._raft.is_confirming
                waiting = self._count_waiting() if was_busy or was_confirming else 0
                try:
                    if self._hears(messages):
                        for message in self._that_fit(messages):
                            self._step(message)
                except Exception as error:  # noqa: BLE001 - a bug; see _drive
                    self._fail(error)
                else:
                    self._drive()
                must_brake = self._must_brake()
                has_answered = (was_busy and not self._is_busy()) or (
                    was_confirming and not self._raft.is_confirming
                )
                if has_answered:
                    self._pause(waiting)
        finally:
            if has_answered:  # who gets these answers may have more to ask
                self.call_later(self._gather, 0.0)
        if must_brake:
            sleep(BRAKE)  # the leader waits for this node's acknowledgements, or goes on without

    def take_held(self) -> None:
        """Take up the requests that came while others waited for their quorum, or refuse them."""
        with self._turn:
            self._is_pausing = False
            if self._is_working:
                self._take_held()
                self._drive()

    def go_on(self) -> None:
        """Apply more of what is committed (7)."""
        with self._turn:
            self._will_go_on = False
            was_busy, waiting = self._is_busy(), self._count_waiting()
            if self._is_working:
                self._go_on()
            has_answered = was_busy and not self._is_busy()
            if has_answered:
                self._pause(waiting)
            must_brake = self._must_brake()
        if has_answered:
            self.call_later(self._gather, 0.0)
        if must_brake:
            sleep(BRAKE)

    def unreachable(self, node_id: str) -> None:
        """Take note that messages to a node were lost."""
        with self._lock:
            if self._is_working:
                self._raft.report_unreachable(node_id)
                self._admission.lose(node_id)

    def begin_snapshot(self, header: SnapshotHeader) -> IncomingSnapshot | None:
        """Prepare for a state that the leader wants to send; None if it isn't needed any more.

        Raises Refused, ProtocolViolation, DiskFull or DiskFailed.
        """
        meta = header.message.snapshot
        with self._lock:
            if (
                not self._is_working
                or self._stalled is not None
                or self._is_arbiter
                or not self._directory.identity.cluster_id
                or meta is None
                or header.message.term < self._raft.term
            ):
                raise Refused(f"node {self._raft.id} takes no snapshot from this node now")
            self._raft.check(header.message)
            if meta.index <= self._raft.commit_index:
                return None
            incoming = self._incoming
            if incoming is not None and incoming.header.id == header.id:
                return incoming
            self._incoming = None
        if incoming is not None:
            incoming.discard()
        log.info("receiving a snapshot as of index %d, %d records", meta.index, header.records)
        incoming = IncomingSnapshot(
            self._directory.fs,
            self._directory.path,
            header,
            options=EngineOptions(self._store.stats().page_size, STAGED_CACHE_BYTES),
            kind=ENGINE,
            inspection=Inspection(self._options.speaks),
            keep_free=self._log.wanted_bytes,
            finished=self._on_snapshot,
        )
        with self._lock:
            rival = self._exchange_incoming(incoming)
        if rival is not None:
            rival.discard()
        return incoming

    def snapshot_sent(self, node_id: str, index: int | None) -> None:
        """Take note how sending a snapshot has ended; None: it failed."""
        with self._turn:
            self._transfers.pop(node_id, None)
            if self._is_working:
                self._raft.report_snapshot(node_id, index)
                self._drive()

    # -- time; the timer's and the checkpointer's threads, or a simulator ------------------------

    def tick(self) -> None:
        """Let one TICK pass: the core's timers, what has waited too long."""
        with self._turn:
            now = self._clock()
            if self._is_working:
                try:
                    self._raft.has_room = self._upkeep.shortage is None
                    if self._stalled is None and (
                        not self._stopping or self._raft.state is State.LEADER
                    ):
                        self._raft.tick()  # who is about to stop stands for nothing any more
                    self._ticks += 1
                    if self._raft.state is State.LEADER:
                        self._tick_leading()
                    elif self._ticks % CALL_OUT_TICKS == 0:
                        self._admission.call_out()
                    self._admission.forget(now)
                    self._take_held()
                except Exception as error:  # noqa: BLE001 - a bug, or a failed disk; see _drive
                    self._fail(error)
                else:
                    self._go_on()
            self._finished += self._writes.expired(now) + self._reads.expired(now)

    def housekeep(self) -> None:
        """Checkpoint if enough was written or enough time has passed; keep the log ahead."""
        upkeep = self._upkeep
        try:
            self._drop_outdated_snapshot()
            upkeep.prepare()
            self._write_waiting()
            if self._is_arbiter:
                with self._lock:
                    if self._is_working:
                        upkeep.cut_positions()
            elif upkeep.maintain():  # the rest of it is next
                self._checkpoint_wanted.set()
            elif upkeep.is_due():
                upkeep.checkpoint()
        except Exception as error:  # noqa: BLE001 - a failed disk, or a bug: neither is survived
            with self._turn:
                self._fail(error)

    # -- driving the core; under the lock --------------------------------------------------------

    def _drive(self, until: float | None = None) -> None:
        """Carry out every Ready of the core, and go on with changes that somebody waits for.

        What is committed is applied at once as long as it is not yet *until* (7).
        """
        raft = self._raft
        self._until = until or self._clock() + self._options.apply_seconds
        try:
            self._carry_out_all()
            if self._changes:
                now = self._clock()
                for reply, error in self._changes.pursue(self._members, now):
                    self._finished.append(partial(reply, error))
                self._carry_out_all()
                self._take_held()  # with fewer voters, those before them may be done by now
                self._carry_out_all()
            self._finished += self._reads.applied(self._store.applied_index)
            status_module = (raft.state, raft.leader_id)
            if status_module != self._shown:
                if self._shown[0] is State.LEADER:
                    self._heard = self._clock()  # up to now it was this node that led
                self._shown = status_module
                self._admission.judge()
                self._audit = Audit()  # answers to a leader that was are void
                self._log_state()
        except Exception as error:  # noqa: BLE001 - whatever stops a step half-way ends the node
            self._fail(error)

    def _go_on(self) -> None:
        """Drive the core, and apply more of what is committed first."""
        now, seconds = self._clock(), self._options.apply_seconds
        if self._unapplied:
            rest = (now - self._applied_at) * (1 + len(self._unapplied) // MAX_BATCH)
            seconds = max(seconds, min(rest, APPLY_SHARE * seconds))
        self._until = until = now + seconds
        try:
            if self._unapplied:
                self._apply_some()
            if not self._unapplied:
                self._take_held()
        except Exception as error:  # noqa: BLE001 - see _drive
            self._fail(error)
        else:
            self._drive(until)

    def _carry_out_all(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            self._carry_out(stalled)
        while self._stalled is None and (ready := self._raft.ready()) is not None:
            self._carry_out(ready)

    def _carry_out(self, ready: Ready) -> None:
        """Do what raft.Ready numbers, in its order; what there is no room for is put off (3)."""
        raft = self._raft
        if ready.hard_state is not None and not self._save(ready):
            return
        if ready.configuration is not None:
            self._admission.adopt(ready.configuration, self._clock())
        for message in ready.messages:
            if message.type is MessageType.SNAPSHOT:
                self._send_snapshot(message)
            else:
                self._peers.send(message)
        if ready.must_persist:
            if ready.snapshot is not None:
                self._unwritten.clear()
            if self._unwritten or not self._write(ready):
                self._put_off(ready)
            else:
                raft.persisted(ready)
        if ready.committed:
            self._apply(ready.committed)
        if ready.reads or ready.lost_reads:
            self._take_reads(ready)

    def _save(self, ready: Ready) -> bool:
        """Make term and vote durable; False, and nothing else happens before they are (R1)."""
        assert ready.hard_state is not None
        try:
            self._log.set_hard_state(ready.hard_state)
        except DiskFull as error:
            self._stalled = ready
            self._upkeep.wait_for_room(error)
            return False
        self._note_room()
        return True

    def _write(self, ready: Ready) -> bool:
        """Make a snapshot and entries durable; False if there is no room for all of it. Then it
        may be asked again."""
        raft_log = self._log
        try:
            if ready.snapshot is not None and ready.snapshot != raft_log.snapshot:
                self._install(ready.snapshot)
            if ready.entries:
                raft_log.append(ready.entries)
                started = perf_counter()
                raft_log.sync()
                self._sync_seconds.observe(perf_counter() - started)
        except DiskFull as error:
            self._upkeep.wait_for_room(error)
            return False
        return True

    def _put_off(self, ready: Ready) -> None:
        """Let what has to be durable wait for room, behind what waits already."""
        if ready.entries or ready.snapshot is not None:  # the rest of it is done
            self._unwritten.append(ready)
        if ready.hard_state is not None:  # it is durable already: see _save
            self._raft.persisted(Ready(hard_state=ready.hard_state))

    def _write_waiting(self) -> None:
        """Write what waits for room, or is void meanwhile, if there is some now. Takes the locks.

        Not too often: every attempt to make room fills what there is with zeros.
        """
        if not self._upkeep.is_waiting or self._clock() < self._write_again_at:
            return
        self._write_again_at = self._clock() + DISK_FULL_RETRY
        with self._upkeep.exclusive, self._turn:
            while self._is_working and self._unwritten:
                if not self._write(self._unwritten[0]):
                    break
                self._raft.persisted(self._unwritten.popleft())
            self._note_room()
            if self._is_working:
                self._drive()

    def _note_room(self) -> None:
        if not self._unwritten and self._stalled is None:
            self._upkeep.found_room()

    def _encode(self, commands: Sequence[Command]) -> list[bytes]:
        put, delete = codec.encode_put, codec.encode_delete
        encoded = []
        for command in commands:
            if isinstance(command, Transaction):
                stamped = command._replace(time=self._time())
                encoded.append(codec.encode_transaction(stamped))
            else:
                key, value = command
                encoded.append(delete(key) if value is None else put(key, value))
        return encoded

    def _time(self) -> int:
        """Return the leader's time, in milliseconds since the Unix epoch."""
        return self._leader_clock.now(self._raft.term, self._store.clock)

    def _hold(self, encoded: list[bytes], reply: WriteReply) -> None:
        """Let encoded commands wait until they are proposed."""
        deadline = self._clock() + self._options.write_timeout
        self._writes.hold(Held(encoded, reply, deadline))

    def _is_busy(self) -> bool:
        """Tell whether proposed writes wait for their quorum, or to be applied (7)."""
        if self._unapplied:
            return True
        raft = self._raft
        term, index = self._last_proposed  # in another term it may be lost
        return term == raft.term and raft.commit_index < index and raft.state is State.LEADER

    def _propose(self) -> None:
        """Make one batch of log entries of the held writes, all that it takes, or refuse them.

        None while others wait for their quorum. So a batch grows while the one before it is sent
        and synced, and the disks sync for many. But nothing waits behind what waits for room.
        """
        if self._is_pausing or (self._is_busy() and not self._unwritten):
            return
        held = self._writes.release(MAX_BATCH, MAX_BATCH_BYTES)
        if not held:
            return
        commands = list(chain.from_iterable([each.commands for each in held]))
        newest = codec.newest_version(commands)
        if newest > 1:
            held = self._that_all_read(held)
            commands = list(chain.from_iterable([each.commands for each in held]))
            if not commands:
                return
        try:
            obstacle = self._upkeep.obstacle
            if obstacle is not None:
                raise obstacle
            self._log.reserve(sum(map(len, commands)) + ENTRY_OVERHEAD * len(commands))
            first = self._raft.propose(commands)
        except ConureError as error:
            self._finished += [each.answer(self._refused(error)) for each in held]
            return
        except Exception as error:  # noqa: BLE001 - a bug; see _drive
            self._fail(error)
            unknown = OutcomeUnknown(f"the node failed while it worked on this: {error}")
            self._finished += [each.answer(unknown) for each in held]
            return
        self._versions.logged = max(self._versions.logged, newest)
        term = self._raft.term
        self._last_proposed = term, first + len(commands) - 1
        self._batch_sizes.observe(len(commands))
        for commands_of_one, reply, deadline in held:
            self._writes.add(term, first, len(commands_of_one), reply, deadline)
            first += len(commands_of_one)

    def _that_all_read(self, held: Sequence[Held]) -> list[Held]:
        """Return the held writes whose format every member reads, and refuse the others."""
        kept = []
        for each in held:
            try:
                self._versions.check(codec.newest_version(each.commands), self._raft.configuration)
            except Conflict as error:
                self._finished.append(each.answer(error))
            else:
                kept.append(each)
        return kept

    def _gather(self) -> None:
        """Answers have been sent: if requests are held, take along those that follow (6)."""
        with self._lock:
            held = self._writes.held_count
            self._is_pausing &= held > 0 or self._reads.held_count > 0
            is_pausing = self._is_pausing
        if is_pausing:
            self.call_later(self.take_held, GATHER if held < WORTH_A_BATCH else 0.0)

    def _pause(self, waiting: int) -> None:
        """Hold what comes for those who are answered now, of so many who were *waiting* (6)."""
        self._crowd = max(waiting, self._crowd) if self._is_pausing else waiting
        self._is_pausing = True

    def _end_pause_if_all_are_back(self) -> None:
        """Wait for no more requests than there were before the last answers."""
        if self._is_pausing and self._count_waiting() >= self._crowd:
            self._is_pausing = False

    def _count_waiting(self) -> int:
        return self._writes.count + self._reads.count

    def _take_held(self) -> None:
        self._propose()
        self._confirm()

    def _must_hold_reads(self) -> bool:
        """Tell whether a read is to be confirmed together with others.

        Not where there are leases: if an answer takes longer than a TICK, their rounds follow each
        other without a gap in which the held reads would be asked for.
        """
        return self._options.read_mode != "lease" and (
            self._is_pausing or self._raft.is_confirming or self._reads.held_count > 0
        )

    def _confirm(self) -> None:
        """Ask once for all held reads whether this is still the leader, or refuse them.

        Not while others are being confirmed: the fewer such rounds, the more time for requests.
        """
        if self._is_pausing or self._raft.is_confirming:
            return
        for read in self._reads.release():
            try:
                read.index = self._raft.read_index(read)
            except NotLeader as error:
                self._finished += self._reads.lost(read, error)

    def _take_reads(self, ready: Ready) -> None:
        for read_state in ready.reads:
            assert isinstance(read_state.context, Read)
            read_state.context.index = read_state.index
        for context in ready.lost_reads:
            assert isinstance(context, Read)
            self._finished += self._reads.lost(context, self._not_leader())

    def _that_fit(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages without those whose entries the log has no room for (3), or this
        node no time (7)."""
        entries = [entry for message in messages for entry in message.entries]
        if entries:
            if self._unwritten or len(self._unapplied) > MAX_UNAPPLIED:
                return [message for message in messages if not message.entries]
            size = sum([len(entry.data) for entry in entries])
            may_make = self._clock() >= self._make_again_at
            try:
                self._log.reserve(size + ENTRY_OVERHEAD * len(entries), may_make=may_make)
            except DiskFull as error:
                if may_make:  # every attempt fills what room there is with zeros, under the lock
                    self._make_again_at = self._clock() + DISK_FULL_RETRY
                self._refused(error)
                if self._clock() >= self._warn_again_at:
                    self._warn_again_at = self._clock() + 60.0
                    log.warning("entries of the leader find no room: %s", error)
                return self._that_fit_the_reserve(messages)
        return messages

    def _that_fit_the_reserve(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages up to the first whose entries don't fit, and those without any.

        What the log has already needs no room, nor does what the core refuses: entries behind a
        gap. It says so to the leader, which couldn't find out otherwise where the logs agree.
        """
        fitting: list[Message] = []
        last, size, commands, is_full = self._log.last_index, 0, False, False
        for message in messages:
            if message.entries and message.index <= last:
                missing = self._log.missing(message.entries)
                size += sum([len(entry.data) + ENTRY_OVERHEAD for entry in missing])
                commands |= any(entry.kind == EntryKind.COMMAND for entry in missing)
                is_full |= size > 0 and not self._log.may_use_reserve(size, commands=commands)
                last = max(last, message.index + len(message.entries))
            if not (message.entries and is_full):
                fitting.append(message)
        return fitting

    def _hears(self, messages: Sequence[Message]) -> bool:
        """Tell whether to take a node's messages. To become one of its cluster takes some room."""
        try:
            return self._admission.hears(messages)
        except DiskFull as error:
            if self._clock() >= self._warn_again_at:
                self._warn_again_at = self._clock() + 60.0
                sender = messages[0].sender
                log.error("no room to become a member of the cluster of %s: %s", sender, error)
            return False

    def _step(self, message: Message, *, has_state: bool = False) -> None:
        """Give a message to the core, unless it is one between drivers."""
        raft, kind = self._raft, message.type
        if kind is MessageType.SNAPSHOT and not (has_state or self._is_arbiter):
            return  # it comes with its data, by begin_snapshot
        try:
            if kind is MessageType.AUDIT or kind is MessageType.AUDIT_RESPONSE:
                raft.check(message)
                self._on_audit(message)
                return
            newest = self._check_commands(message) if message.entries else 1
            raft.step(message)
            self._versions.logged = max(self._versions.logged, newest)
        except ProtocolViolation as error:
            self._drop(message, error)
            return
        if raft.leader_id == message.sender:
            self._heard = self._clock()

    def _drop(self, message: Message, error: ProtocolViolation) -> None:
        """Say that a message was not taken; once a second, however many come."""
        if self._clock() < self._tell_again_at:
            self._untold += 1
            return
        others = f", and {self._untold} before it" if self._untold else ""
        log.error("a message of %s was dropped%s: %s", message.sender, others, error)
        self._untold, self._tell_again_at = 0, self._clock() + 1.0

    def _check_commands(self, message: Message) -> int:
        """Return the newest version of the commands that a message brings.

        Raises ProtocolViolation for what this node could not apply. In its log that would end it,
        now and at each start: a replica can't skip a command (R7).
        """
        if self._is_arbiter:
            return 1  # it is sent their places only
        try:
            return codec.check_commands(message.entries, self._versions.speaks)
        except (errors.WireError, VersionTooNew) as error:
            raise ProtocolViolation(
                f"{message.sender} sent a command that can't be taken: {error}"
            ) from error

    def _apply(self, entries: Sequence[Entry]) -> None:
        """Apply committed entries, or let them wait behind those that are still to be applied."""
        is_next = not self._unapplied
        self._unapplied += entries
        if is_next and self._clock() < self._until:
            self._apply_some()

    def _apply_some(self) -> None:
        """Apply committed entries, as many as there is time for in one go (7)."""
        store, entries = self._store, self._unapplied
        outcomes: Mapping[int, Outcome] = {}
        if self._is_arbiter:
            store.skip(entries)
            done, self._unapplied = entries, []
        else:
            clock, until = self._clock, self._until
            store.keeps_previous = self._history.wants_previous
            outcomes = store.apply(entries, lambda: clock() >= until)
            count = store.applied_index - entries[0].index + 1
            done, self._unapplied = entries[:count], entries[count:]
            self._history.extend(store.take_events(), store.applied_index)
            self._applied_at = clock()
        self._raft.applied(store.applied_index)
        if store.configuration is not self._encoded_members:
            self._adopt_members()
        self._finished += self._writes.applied(done, outcomes)
        if not self._is_arbiter and self._upkeep.is_urgent():
            self._checkpoint_wanted.set()

    def _adopt_members(self) -> None:
        """The committed members have changed."""
        self._encoded_members = self._store.configuration
        members = Configuration.decode(self._encoded_members)
        was_member = self._members.get(self._raft.id) is not None
        self._members = members
        if was_member and members.get(self._raft.id) is None:
            self._was_removed = True
            self._left_to = members.get(self._raft.leader_id)
            self._history.reset(self._store.applied_index)  # whoever watches here goes elsewhere
            log.warning("node %s was removed from the cluster", self._raft.id)
        elif members.get(self._raft.id) is not None:
            self._was_removed, self._left_to = False, None

    def _must_brake(self) -> bool:
        return self._store.unwritten_bytes > self._options.max_unwritten_bytes

    def _log_state(self) -> None:
        raft = self._raft
        log.info(
            "node %s is %s in term %d, leader %s",
            raft.id,
            raft.state,
            raft.term,
            raft.leader_id or "unknown",
        )

    # -- refusals and failures -------------------------------------------------------------------

    def _refuse_if_failed(self) -> None:
        if not self._is_working:
            why = f"has failed and is stopping: {self._failure}" if self._failure else "has stopped"
            raise Unavailable(f"this node {why}")

    def _refuse_if_no_records(self) -> None:
        self._refuse_if_failed()
        if self._is_arbiter:
            raise self._not_leader()

    def _refuse_if_not_leading(self) -> None:
        self._refuse_if_failed()
        if self._raft.state is not State.LEADER:
            raise self._not_leader()

    def _not_leader(self) -> NotLeader:
        # One that was removed hears from nobody; as long as it runs it leads its clients on.
        leader = self._raft.configuration.get(self._raft.leader_id) or self._left_to
        if leader is None or leader.id == self._raft.id:
            return NotLeader()
        return NotLeader(leader.raft_address, leader.id, leader.http_address)

    def _refused(self, error: ConureError) -> ConureError:
        """Pass on why a write was refused; a disk that failed over it ends the node."""
        if isinstance(error, DiskFull):
            if self._upkeep.obstacle is None:
                self._checkpoint_wanted.set()  # it lets the log be cut and its space used again
        elif isinstance(error, StorageError):
            self._fail(error)
        return error

    def _fail(self, error: Exception) -> None:
        """Stop for good: what waits gets no definite answer any more (S6)."""
        if self._failure is not None:
            return
        self._failure = error
        self._is_working = False
        log.critical(
            "this node can't go on: %s", error, exc_info=not isinstance(error, ConureError)
        )
        self._answer_all(OutcomeUnknown(f"the node failed while it worked on this: {error}"))
        self._on_failure()

    def _answer_all(self, error: ConureError) -> None:
        self._finished += self._writes.ended(error) + self._reads.ended(Unavailable(str(error)))
        for reply in self._changes.end():
            self._finished.append(partial(reply, error))

    # -- members ---------------------------------------------------------------------------------

    def _pursue(self, change: Change) -> None:
        """Take a change up; its reply is told how it ends. Takes the lock."""
        with self._turn:
            try:
                self._refuse_if_not_leading()
                if change.needs_leadership and self._upkeep.is_waiting:
                    assert self._upkeep.shortage is not None
                    raise self._upkeep.shortage
            except ConureError as error:
                self._finished.append(partial(change.reply, error))
            else:
                self._changes.add(change)
                self._drive()

    def _hear(self, peer: Greeting) -> None:
        """Take note of what a node reads that was recognised. Raises Refused: it isn't enough."""
        self._versions.hear(peer, self._raft.configuration)
        self._versions.check_peer(peer, self._held_version())

    def _held_version(self) -> int:
        """Return the newest version that the log holds: what is committed, for who doesn't lead,
        since a leader that reads less may still take back the rest."""
        held, logged = self._store.version, self._versions.logged
        return max(held, logged) if self._raft.state is State.LEADER else held

    def _on_probed(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        found: Greeting | ConureError,
        *,
        voter: bool,
        role: str,
        reply: Reply,
    ) -> None:
        """Go on with a join, now that it is known who is at the address."""
        if isinstance(found, ConureError):
            reply(Conflict(f"{node_id} was not added: {found}"))
            return
        try:
            with self._lock:
                self._admission.check_newcomer(node_id, found)
                self._hear(found)
            server = membership.newcomer(
                found,
                self._raft.configuration.get(node_id),
                raft_address=raft_address,
                http_address=http_address,
                voter=voter,
                role=role,
            )
        except (Conflict, Refused) as error:
            reply(Conflict(f"{node_id} was not added: {error}"))
            return

        def attempt() -> None:
            self._versions.check_peer(found, self._held_version())  # it may have risen since
            self._raft.add_learner(server)

        self._pursue(
            Change(
                attempt,
                lambda members: membership.resembles(members.get(node_id), server),
                reply,
                self._clock() + self._options.write_timeout,
                lambda members: (
                    None  # a learner, and a voter as soon as it has caught up
                    if members.get(node_id) == server
                    else OutcomeUnknown(
                        f"{node_id} was not made a member in time; see GET /raft/config"
                    )
                ),
            )
        )

    def _on_found(
        self, node_id: str, reply: Reply, refusal: ConureError, found: Greeting | ConureError
    ) -> None:
        """Take note where a member is, though nothing else can be done for it now."""
        if isinstance(found, Greeting):
            try:
                with self._lock:
                    self._admission.check_newcomer(node_id, found)
                    if self._is_working and found.cluster_id:
                        self._admission.meet(found)
            except Refused as error:
                refusal = Conflict(str(error))
        reply(refusal)

    # -- what a leader does in time; under the lock ----------------------------------------------

    def _tick_leading(self) -> None:
        if not self._unwritten:
            self._admission.follow_addresses()
        self._expire()
        if self._options.read_mode == "lease":
            self._lease.renew()
        if self._ticks % AUDIT_TICKS == 0 and len(self._members.servers) > 1:
            self._begin_audit()

    def _expire(self) -> None:
        """Let an entry end what is due. It is held like any write, and proposed by the tick; on a
        full disk the log's reserve has room for some."""
        due = None if self._is_expiring else self._store.next_due()
        if due is None or due > (now := self._time()):
            return
        command = codec.encode_transaction(Transaction((), (Expire(MAX_EXPIRED),), time=now))
        if self._upkeep.shortage is None:
            self._is_expiring = True
            self._hold([command], self._on_expired)
        elif self._upkeep.obstacle is None and self._log.may_use_reserve(
            len(command) + ENTRY_OVERHEAD, commands=True
        ):
            try:
                first = self._raft.propose([command])
            except ConureError as error:  # leadership is being handed over
                log.debug("nothing expires now: %s", error)
                return
            self._is_expiring = True
            deadline = self._clock() + self._options.write_timeout
            self._writes.add(self._raft.term, first, 1, self._on_expired, deadline)

    def _on_expired(self, start: int, stop: int, ended: Committed | ConureError) -> None:  # noqa: ARG002
        self._is_expiring = False  # what it did not end is still due

    def _holds_lease(self) -> bool:
        return self._options.read_mode == "lease" and self._lease.holds()

    def _begin_audit(self) -> None:
        """Act on the last comparison of digests and begin the next one (R7; digests.py)."""
        raft, store, audit = self._raft, self._store, self._audit
        if audit.differs:
            log.error("the replicas differ at index %d", audit.index)
        for node_id in audit.deviants():
            log.error("node %s differs from the others at index %d", node_id, audit.index)
            verdict = Message(
                MessageType.AUDIT,
                raft.id,
                node_id,
                raft.term,
                index=audit.index,
                context=audit.right_digest,
                reject=True,
            )
            if node_id == raft.id:
                self._on_audit(verdict)
            else:
                self._peers.send(verdict)
        # A busy follower has applied something else than the leader by the time it is asked, an
        # idle one has passed no mark for long.
        index, digest = store.last_mark()
        if self._ticks % (2 * AUDIT_TICKS) == 0 or not index:
            index, digest = store.applied_index, store.digest
        followers = [
            server.id
            for server in self._members.servers
            if server.id != raft.id and server.role == "data"
        ]
        audit.ask(raft.id, followers, index, digest)
        for node_id in followers:
            self._peers.send(Message(MessageType.AUDIT, raft.id, node_id, raft.term, index=index))

    def _on_audit(self, message: Message) -> None:
        """Answer the leader's question, take an answer, or accept the verdict.

        That ends this node for good, so it has to be about what this node has told that leader.
        """
        raft = self._raft
        if self._is_arbiter:
            return
        if message.type is MessageType.AUDIT_RESPONSE:
            is_of_this_term = raft.state is State.LEADER and message.term == raft.term
            if is_of_this_term and raft.has_admitted(message):
                self._audit.answer(message.sender, message.index, message.context)
            return
        digest = self._store.digest_at(message.index)
        if not raft.follows(message) or digest is None:
            return
        told = (message.sender, message.term, message.index)
        if not message.reject:
            self._told = told
            answer = Message(
                MessageType.AUDIT_RESPONSE, raft.id, message.sender, raft.term, message.index
            )
            answer.context = digest
            self._peers.send(answer)
        elif digest != message.context and (message.sender == raft.id or self._told == told):
            self._diverge(message.index)

    def _diverge(self, index: int) -> None:
        """End this node, for good: its state isn't what the log says."""
        error = Diverged(self._raft.id, index)
        why = f"its state differed at index {index}"
        try:
            try:
                self._directory.mark_diverged(why)
            except DiskFull:
                self._log.give_up_reserve()  # this log is written to no more
                self._directory.mark_diverged(why)
        except DiskFull as full:
            log.critical("this node starts again, though it must not serve: %s", full)
        finally:
            self._fail(error)

    # -- snapshots; under the lock ---------------------------------------------------------------

    def _send_snapshot(self, message: Message) -> None:
        to = self._raft.configuration.get(message.to)
        if to is not None and to.role == "arbiter":
            self._peers.send(message)
            # It may be lost; if so, it is sent again when the arbiter next answers.
            self._raft.report_snapshot(message.to, None)
            return
        if message.to in self._transfers:  # begun when this node led before; one at a time
            self._raft.report_snapshot(message.to, None)
            return
        state = self._store.snapshot()
        log.info("sending a snapshot as of index %d to %s", state.meta.index, message.to)
        self._transfers[message.to] = state.meta.index
        self._peers.send_snapshot(OutgoingSnapshot(message, state))

    def _on_snapshot(self, incoming: IncomingSnapshot) -> None:
        """Install what has been received completely. A thread of the transport; takes the locks."""
        with self._upkeep.exclusive, self._turn:
            if self._is_working and self._stalled is None and incoming is self._incoming:
                try:
                    self._step(incoming.header.message, has_state=True)
                except Exception as error:  # noqa: BLE001 - a bug; see _drive
                    self._fail(error)
                else:
                    self._drive()
            if incoming is self._incoming:
                self._incoming = None
        if self._failure is None:  # or it may be what the next start goes on with
            incoming.discard()  # unless it was installed

    def _exchange_incoming(self, incoming: IncomingSnapshot | None) -> IncomingSnapshot | None:
        """Let this be what is being received; return what was."""
        before, self._incoming = self._incoming, incoming
        return before

    def _drop_outdated_snapshot(self) -> None:
        """Remove what was received of a state that the log has passed by now, whose sender leads
        no more, or that doesn't go on. Takes the lock."""
        with self._lock:
            incoming, now = self._incoming, self._clock()
            if incoming is None:
                return
            seen = (incoming, incoming.progress)
            if seen != self._seen_of_incoming:
                self._seen_of_incoming, self._incoming_since = seen, now
            is_at_rest = seen[1] is not None and now - self._incoming_since > TRANSFER_REST
            if (
                incoming.meta.index > self._raft.commit_index
                and incoming.header.message.term >= self._raft.term
                and not is_at_rest
            ):
                return
            self._incoming = self._seen_of_incoming = None
        incoming.discard()

    def _install(self, meta: SnapshotMeta) -> None:
        """Replace the state by the staged one, and the log by an empty one behind it.

        A data node's caller holds ``Upkeep.exclusive``. After DiskFull it may be called again.
        """
        if self._is_arbiter:
            self._log.reset(meta)
            self._store.applied_index, self._store.applied_term = meta.index, meta.term
            self._store.configuration = meta.configuration
        else:
            directory = self._directory
            snapshots.install(directory.fs, directory.path, self._log, meta, ENGINE)
            self._store.replace(_open_engine(directory.fs, directory, self._options), meta)
        self._unapplied.clear()  # the state has all of them
        self._upkeep.installed(meta)
        self._history.reset(meta.index)
        self._adopt_members()
        self._finished += self._writes.skipped(meta.index)
        log.info("installed a snapshot as of index %d", meta.index)

    # -- threads ---------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        while not self._stopped.wait(TICK):
            self.tick()

    def _keep_checkpoints(self) -> None:
        while True:
            self._checkpoint_wanted.wait(HOUSEKEEPING)
            if self._stopped.is_set():
                return
            self._checkpoint_wanted.clear()
            self.housekeep()

    def _keep_from(self) -> int | None:
        """Return from where on others need the log; None if there are no others."""
        if len(self._members.servers) <= 1:
            return None
        return min(self._raft.slowest_match(), *self._transfers.values(), self._log.last_index)

    def _add_metrics(self, registry: Registry) -> None:
        raft_log, raft, store = self._log, self._raft, self._store
        self._sync_seconds = registry.histogram(
            "conure_log_sync_duration_seconds", "Time a sync of the log took, in seconds."
        )
        self._batch_sizes = registry.histogram(
            "conure_write_batch_size",
            "Commands that were committed together, with one sync.",
            BATCH_SIZES,
        )
        gauge, counter = registry.gauge_callback, registry.counter_callback
        gauge("conure_raft_term", "Current term.", lambda: raft.term)
        gauge("conure_raft_is_leader", "1 on the leader.", lambda: int(raft.state == State.LEADER))
        gauge("conure_raft_commit_index", "Last committed index.", lambda: raft.commit_index)
        gauge("conure_raft_applied_index", "Last applied index.", lambda: store.applied_index)
        gauge("conure_log_size_bytes", "Live bytes in the log.", lambda: raft_log.size_bytes)
        gauge("conure_log_segments", "Files of the log.", lambda: raft_log.segments)
        gauge(
            "conure_db_size_bytes",
            "Size of the tree's file.",
            lambda: store.stats().file_bytes,
        )
        gauge("conure_db_free_bytes", "Free pages in it.", lambda: store.stats().free_bytes)
        gauge("conure_db_records", "Keys of users.", lambda: store.records)
        gauge("conure_db_depth", "Levels of the tree.", lambda: store.stats().depth)
        gauge(
            "conure_db_unwritten_pages",
            "Changed pages that wait for the next checkpoint.",
            lambda: store.stats().unwritten_pages,
        )
        gauge("conure_page_cache_bytes", "Pages in memory.", lambda: store.stats().cache_bytes)
        counter(
            "conure_page_cache_hits_total",
            "Pages found there.",
            lambda: store.stats().cache_hits,
        )
        counter(
            "conure_page_cache_misses_total",
            "Pages read from the file.",
            lambda: store.stats().cache_misses,
        )
        counter(
            "conure_page_cache_evictions_total",
            "Pages dropped to make room.",
            lambda: store.stats().evictions,
        )

    def _make_store(self, engine: StorageEngine) -> Store:
        if self._is_arbiter:  # its log is all it has
            store = Store(engine, self._log.snapshot.configuration, self._options.speaks)
            store.applied_index = self._log.snapshot.index
            store.applied_term = self._log.snapshot.term
            return store
        members = _configuration_at(self._log, engine.applied_index)
        return Store(engine, members, self._options.speaks)


def _open_engine(fs: FileSystem, directory: DataDirectory, options: NodeOptions) -> StorageEngine:
    how = EngineOptions(options.page_size, options.cache_bytes)
    return ENGINE.open(fs, directory.database_path, how, create=True)


def _begin_cluster(options: NodeOptions, directory: DataDirectory, raft_log: RaftLog) -> None:
    """Write the beginning of a cluster of this one node. The directory belongs to it at the end:
    a log without a cluster is the trace of a crash in here, and gets one at the next start."""
    identity = directory.identity
    if raft_log.last_index == 0:
        server = Server(
            identity.node_id,
            options.raft_address,
            options.http_address,
            role=identity.role,
            incarnation=identity.incarnation,
        )
        hard_state, entry = bootstrap(Configuration((server,)))
        raft_log.set_hard_state(hard_state)
        raft_log.append([entry])
        raft_log.sync()
    directory.begin_cluster()
    log.info("node %s begins cluster %s", identity.node_id, directory.identity.cluster_id)


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
