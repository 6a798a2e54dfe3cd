"""The node: the threads that drive the core, the log and the store, and the one lock they share.

The core is a monitor. Whoever brings input (the reactor with a round of requests or a peer's
messages, the timer with a tick) takes the lock, steps the core and carries out every ``Ready`` it
gives (raft.py lists those duties) before letting go. So a write travels without a hand-over:
propose, send to the followers, append, one sync for the whole round; the answers of the followers
commit it, and the thread that reads them applies it and answers.

======================= ======================================================================
thread                  does
======================= ======================================================================
reactor (reactor.py)    the backend's methods; ``receive``, ``take_gathered`` and ``go_on``
peers (transport.py)    the rest of the transport's host: handshakes, snapshots, lost connections
workers, watch pump     ``confirm_read``, ``get_all``, ``pin``, ``backup``, ``time``: long answers
timer                   ``tick``: the core's time, ends what has waited too long
checkpointer            ``housekeep``: checkpoints, cuts the log, makes room for more of it
main                    ``open``, ``recover``, ``start``, ``resign``, ``stop``
======================= ======================================================================

Lock order: ``Upkeep.exclusive``, the node's lock, then the tree's and the log's own small ones. The
first is held by a checkpoint from its beginning to its end and by the installation of a snapshot,
because each of them wants the tree's file for itself. The node's lock guards the core, the log,
the store, every attribute below and all that the other files of this wing keep, where nothing else
is said. Replies are called after it is let go (monitor.py). Syncs of the log happen under it,
because nothing else has anything to do until they return; a checkpoint's pages are written and
synced outside of it.

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
   duties that can't be done wait in their order, and meanwhile nothing is taken that would add to
   them. If term and vote can't be written, nothing leaves this node and nothing is taken until
   they are (room.py, intake.py).
4. A write that was proposed is answered by what was committed at its index: itself, or something
   else, which proves that it is lost. Loss of leadership alone proves nothing.
5. A node that doesn't belong here gets no further than the handshake: another cluster's, or one
   whose data directory isn't the one the member of that name was admitted with (a wiped disk has
   forgotten its vote). Connections are judged again when this node's role, the members or whom it
   follows have changed (greetings.py).
6. While proposed writes wait for their quorum, others gather, and reads while others are confirmed;
   both wait for the clients that have just been answered (pacing.py, proposing.py).
7. What is committed is applied in its order, in turns with all else that the reactor does, and
   nothing more is proposed meanwhile (applying.py).

This file has the monitor: the lock, the steps that are taken under it and the order of what each of
them does. How a duty is done stands in the file of its concern; each of those is given what it
needs, and none of them the node.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from sys import maxsize
from time import sleep
from typing import Any, Protocol

from conure.cluster import membership
from conure.cluster import status as shown
from conure.cluster.applying import Applying
from conure.cluster.border import Border
from conure.cluster.checkpointing import Upkeep, UpkeepOptions
from conure.cluster.digests import Audits
from conure.cluster.expiring import Expiries
from conure.cluster.forming import Asking, Forming
from conure.cluster.forwarding import FactsReply, Forwarding, Lines
from conure.cluster.gauges import add_forming, add_gauges
from conure.cluster.greetings import Admission, Roads
from conure.cluster.intake import Intake
from conure.cluster.leases import Lease, ticks_in
from conure.cluster.membership import Changes, Membership
from conure.cluster.messaging import Messages
from conure.cluster.monitor import CallLater, Monitor
from conure.cluster.opening import (
    Parts,
    describe_start,
    known_formation,
    make_store,
    memory_bounds,
    open_parts,
)
from conure.cluster.options import NodeOptions
from conure.cluster.pacing import Pacing
from conure.cluster.pending import Read, Reads, Reply, Write, WriteReply, Writes, shifted
from conure.cluster.proposing import Command, Proposals
from conure.cluster.reading import LocalState
from conure.cluster.room import Room
from conure.cluster.roster import Roster
from conure.cluster.serving import Serving
from conure.cluster.standing import Standing
from conure.cluster.transfers import Senders, Transfers
from conure.cluster.versions import Versions
from conure.consensus.members import Configuration
from conure.consensus.messages import Message, MessageType, Ready, SnapshotHeader, State
from conure.errors import (
    Conflict,
    ConureError,
    DiskFull,
    Exhausted,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
    StorageError,
    Unavailable,
)
from conure.fileio import FileSystem
from conure.metrics import Registry
from conure.peers.calls import Answer, Call, CallKind
from conure.peers.forming import Question, Shown
from conure.peers.joins import Applicant
from conure.peers.protocol import Greeting
from conure.state.backup import Backup
from conure.state.history import History
from conure.state.machine import PinnedState, Session
from conure.state.snapshots import IncomingSnapshot
from conure.storage.engine import Record
from raft import Raft, RaftOptions

__all__ = ["Node", "Peers"]

TICK = 0.05
"""Seconds between ticks of the core; its time-outs are counted in ticks."""

BRAKE = 0.02
"""Seconds every round of writes waits when changes take as much memory as they may (S7); more, by
the square, when they take more, up to BRAKE_SHARE of the election time-out."""

BRAKE_SHARE = 0.25
"""More of the election time-out, and others would take who waits for dead."""

PRESSURE_BRAKE = 0.004
"""Seconds at most that it waits while what has to be merged gets more."""

HOUSEKEEPING = 0.1
"""Seconds between two looks at whether a checkpoint or a log segment is needed."""

MAX_GATHERED_BYTES = 64 << 20
"""Commands that may wait until those before them have their quorum."""

CALL_OUT_TICKS = 20
"""Ticks between two attempts of a member that doesn't lead to reach the others."""

LEADER_WAIT = 3.0
"""Election time-outs for which what is passed on waits while no leader is known or reached: longer
than most elections take."""

CHANGE_MARGIN = 3.0
"""Seconds that a change of members may take beyond its own limits, where the leader is asked."""

JOIN_AFTER = 5.0
"""Seconds without a leader after which a member asks its seeds whether it still is one."""

log = logging.getLogger("conure.node")


class Peers(Roads, Senders, Lines, Asking, Protocol):
    """The way to the other nodes: transport.py, or a simulated network. Nothing here blocks."""


def _at_once(action: Callable[[], None], _: float) -> None:
    """Call nothing later: there is nobody else whose turn it could be."""
    action()


class Node:
    """One member of a cluster, with everything it owns in its data directory.

    *on_failure* is called once, from any thread, when the node can't go on; it must only note
    the fact. The node refuses everything from then on. *call_later* has something done after some
    seconds, in the thread that brings the messages. *clock* is monotonic and *wall* tells the time
    since the Unix epoch, both in seconds.
    """

    def __init__(
        self,
        options: NodeOptions,
        parts: Parts,
        peers: Peers,
        registry: Registry,
        on_failure: Callable[[], None],
        history: History,
        call_later: CallLater,
        clock: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
    ) -> None:
        directory, raft_log, _ = parts
        identity = directory.identity
        is_arbiter = identity.role == "arbiter"
        self._options = options
        self._directory = directory
        self._log = raft_log
        self._peers = peers
        self._on_failure = on_failure
        self._call_later = call_later
        self._clock = clock
        self._heard: float | None = None  # when a leader was heard last
        self._ticks = 0
        self._checkpoint_wanted = threading.Event()
        self._stopped = threading.Event()
        lock = threading.Lock()
        self._threads: list[threading.Thread] = []

        # The core, and what is replicated.
        self._store = store = make_store(parts, options.speaks)
        self._versions = versions = Versions(
            identity.node_id,
            options.speaks,
            lambda: max(store.version, roster.members.speaks, raft.configuration.speaks),
        )
        history.reset(store.applied_index)
        election_ticks = ticks_in(options.election_timeout, TICK)
        self._raft = raft = Raft(
            RaftOptions(
                identity.node_id,
                incarnation=identity.incarnation,
                election_ticks=election_ticks,
                quiet_ticks=election_ticks,  # the leader may read by leases, if this does not
            ),
            raft_log,
            raft_log.hard_state,
            store.applied_index,
            Configuration.decode(store.configuration),
            rng,
            check_format=versions.check,
        )
        self._border = Border(
            options.is_guarded, raft.id, bool(identity.cluster_id), raft.configuration
        )
        self._last_role = (raft.state, raft.leader_id)  # as last logged
        self._roster = roster = Roster(raft, store, history, options.quorum_size)
        self._standing = standing = Standing(raft, roster, is_arbiter=is_arbiter)
        self._upkeep = upkeep = Upkeep(
            UpkeepOptions(
                options.checkpoint_log_bytes,
                options.checkpoint_entries,
                options.checkpoint_interval,
                *memory_bounds(directory, options),
            ),
            lock,
            raft_log,
            store,
            clock,
            registry,
            keep_from=self._keep_from,
            may_work=lambda: standing.is_working,
            stopping=self._stopped,
        )
        self._observed = observed = add_gauges(registry, raft, raft_log, store, identity.engine)

        # Requests that wait, and the others.
        self._writes = writes = Writes()
        self._reads = reads = Reads()
        self._changes = Changes(raft)
        want_checkpoint, seconds = self._checkpoint_wanted.set, options.apply_seconds
        self._applying = applying = Applying(
            raft,
            store,
            history,
            writes,
            roster,
            standing,
            upkeep,
            clock,
            seconds,
            want_checkpoint,
        )
        self._monitor = monitor = Monitor(lock, applying, standing, self.go_on, call_later)
        told_timeout = round(options.election_timeout * 1000)
        self._admission = admission = Admission(
            raft, directory, peers, options.raft_address, options.http_address, told_timeout
        )
        self._lease = Lease(raft, options.election_timeout, TICK, clock)

        # The duties of a step, in the order in which they know of each other.
        self._transfers = Transfers(
            options,
            directory,
            raft,
            raft_log,
            store,
            history,
            peers,
            writes,
            roster,
            standing,
            upkeep,
            applying,
            monitor,
            clock,
            is_stalled=lambda: self._room.stalled is not None,
            take=self._take_state,
        )
        install, sync_seconds = self._transfers.install, observed.sync_seconds
        self._room = room = Room(raft, raft_log, upkeep, standing, install, clock, sync_seconds)
        has_leases = options.read_mode == "lease"
        self._pacing = pacing = Pacing(
            raft,
            writes,
            reads,
            applying,
            monitor,
            self.take_gathered,
            call_later,
            self._lose_read,
            has_leases=has_leases,
        )
        self._expiries = expiries = Expiries(
            raft, raft_log, store, writes, upkeep, clock, wall, options.write_timeout
        )
        self._proposals = Proposals(
            raft,
            raft_log,
            writes,
            pacing,
            room,
            upkeep,
            versions,
            expiries,
            monitor,
            self._refused,
            self._lose_write,
            self._fail,
            clock,
            options.write_timeout,
            observed.batch_sizes,
        )
        self._intake = Intake(
            raft_log,
            room,
            upkeep,
            applying,
            admission,
            standing,
            clock,
            self._refused,
            options.speaks,
        )
        self._audits = Audits(
            raft, raft_log, store, directory, roster, standing, peers.send, self._fail
        )
        self._membership = Membership(
            raft,
            self._changes,
            peers,
            admission,
            roster,
            standing,
            upkeep,
            self._border,
            monitor,
            clock,
            options.write_timeout,
            options.election_timeout,
            greeting=self.greeting,
            hear=self._hear,
            check_peer=self._check_peer,
            drive=self._drive,
        )
        self._forming = Forming(
            options,
            known_formation(parts),
            raft,
            raft_log,
            directory,
            peers,
            admission,
            standing,
            monitor,
            clock,
            self._drive,
            self._fail,
        )
        add_forming(registry, self._forming.missing)
        self._local = LocalState(raft, store, directory, standing, expiries, monitor, wall)
        self._forwarding = Forwarding(
            raft,
            store,
            reads,
            standing,
            versions,
            peers,
            monitor,
            clock,
            call_later,
            self._proposals.take_in,
            self._confirm,
            registry,
            write_timeout=options.write_timeout,
            read_timeout=options.barrier_timeout,
            leader_wait=LEADER_WAIT * options.election_timeout,
            change_timeout=options.write_timeout + 2 * options.election_timeout + CHANGE_MARGIN,
        )
        self.messages = Messages(
            raft,
            standing,
            versions,
            peers,
            monitor,
            clock,
            self._confirm,
            self._drive,
            registry,
            timeout=options.barrier_timeout,
            patience=LEADER_WAIT * options.election_timeout,
        )
        """What is published to channels, and who hears it; see its methods for threads."""
        self._serving = Serving(
            raft,
            store,
            standing,
            monitor,
            clock,
            call_later,
            self._take_in,
            self._confirm_for_other,
            self,
            write_timeout=options.write_timeout,
            read_timeout=options.barrier_timeout,
        )

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
        call_later: CallLater = _at_once,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> Node:
        """Open or make the data directory and what is in it; begin a cluster if that is wanted.

        Raises DirectoryInUse, ForeignDirectory, CorruptionError, DiskFull or DiskFailed.
        """
        parts = open_parts(options, fs)
        try:
            return cls(
                options,
                parts,
                peers,
                registry,
                on_failure,
                history or History(),
                call_later,
                clock,
                wall,
                rng or random.Random(),
            )
        except BaseException:
            parts.close()
            raise

    def recover(self) -> None:
        """Apply what the log holds beyond the last checkpoint, if nobody else has to be asked."""
        with self._monitor.lock:
            configuration = self._raft.configuration
            self._roster.compare_size()
            if configuration.voters == (self._raft.id,):
                self._raft.campaign()
            elif not configuration.servers and not self._forming.is_wanted:
                log.warning(
                    "node %s belongs to no cluster: waiting to be joined at %s "
                    "(--join names a member to ask, --peers the others of a cluster to be formed, "
                    "--bootstrap begins a cluster of its own)",
                    self._raft.id,
                    self._options.raft_address,
                )
            self._border.warn()
            self._forming.begin()
            self._drive()
            if self._standing.is_working:
                self._admission.follow_addresses()
            self._drive()
            while self._applying.backlog and self._standing.is_working:
                self._go_on()
            failure = self._standing.failure
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
        is_arbiter = self._standing.is_arbiter
        return describe_start(self._raft, self._log, self._store, is_arbiter=is_arbiter)

    def begin_stop(self) -> None:
        """Fail readiness, so that nobody sends anything new; requests are still served."""
        self._standing.begin_stop()

    def resign(self, timeout: float = 2.0) -> None:
        """Hand leadership over, if this node has it and somebody can take it. Main thread."""
        self._membership.resign(timeout)

    def stop(self) -> None:
        """End the threads, write a last checkpoint unless the node has failed, close the files.

        The transport has to be closed before. What one of its threads, being late, still brings
        is refused from then on.
        """
        self._standing.begin_stop()
        self._stopped.set()
        self._checkpoint_wanted.set()
        for thread in self._threads:
            thread.join()
        is_whole = self._standing.failure is None
        if is_whole and self._store.applied_index > self._store.checkpointed_index:
            self._upkeep.checkpoint(0.0)
        with self._upkeep.exclusive, self._monitor:
            self._standing.end()
            self._answer_all(
                OutcomeUnknown("the node has stopped; a write may still be committed by the others")
            )
            incoming = self._transfers.exchange(None)
        if incoming is not None:
            incoming.discard()
        self._log.close()
        self._store.close()
        self._directory.close()

    # -- what the routes ask for (httpapi.Backend) -----------------------------------------------

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        """Commit commands in order: a key's new value, its deletion (None), or a transaction.

        *reply* gets ranges of positions in *commands* and how they ended; each position once.
        Transactions get their time here. The first *kept* of them, None: all, are refused with
        NotLeader where this node doesn't lead; those after them are passed on to the leader.
        """
        kept = len(commands) if kept is None else kept
        with self._monitor:
            try:
                self._standing.refuse_if_failed()
            except ConureError as error:
                self._monitor.finished.append(partial(reply, 0, len(commands), error))
                return
            if kept:
                self._write(commands[:kept], reply, passes_on=False)
            if kept < len(commands):
                self._write(commands[kept:], shifted(reply, kept), passes_on=True)
            self._propose_gathered()
            rest = self._rest_of_writers()
        self._slow_down(rest)

    def confirm_read(
        self,
        reply: Reply,
        requests: int = 1,
        *,
        passes_on: bool = False,
        kept: Reply | None = None,
        kept_requests: int = 0,
    ) -> None:
        """Call *reply* once everything acknowledged before now is in the local state (R6).

        It answers so many *requests*. With *passes_on* the leader is asked, if that is another
        node; an arbiter, which has no state, refuses that like all others do. *kept* is told the
        same for so many more, but NotLeader where another node would have to be asked.
        """
        with self._monitor:
            read = Read(reply, self._clock() + self._options.barrier_timeout)
            read.requests, read.kept, read.kept_requests = requests, kept, kept_requests
            read.passes_on = passes_on and not self._standing.is_arbiter
            try:
                self._standing.refuse_if_failed()
                if read.passes_on and self._raft.state is not State.LEADER:
                    self._refuse_kept(read, self._standing.not_leader())
                    self._forwarding.read(read)
                    return
                self._standing.refuse_if_not_leading()
                self._confirm(read)
            except ConureError as error:
                self._monitor.finished.append(partial(read.answer, error))
            self._drive()

    def pass_on(self, change: str, facts: Mapping[str, Any], reply: FactsReply) -> None:
        """Ask the leader for a change of members, as Serving names it and its facts; *reply* is
        told what came of it, by any thread."""
        self._forwarding.change(change, facts, reply)

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, list[Record | ConureError | None]]:
        """Return the revision of this node's state, and of each key in it the record, None if
        there is none, or what went wrong.

        Once values of *most* bytes are read, none of more than *longest* bytes is any more, and
        NotRead is in its place.
        """
        return self._local.get_all(keys, most, longest)

    def pin(self) -> PinnedState:
        """Return this node's state as of now, for any thread; whoever gets it closes it.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        return self._local.pin()

    def look(self, key: bytes) -> tuple[int, Record | ConureError | None, tuple[bytes, int] | None]:
        """Return the same of one key, and which session holds it, with its fencing token."""
        return self._local.look(key)

    def session(self, session: bytes) -> tuple[int, Session | ConureError | None]:
        """Return the revision of this node's state, and a session in it, or what went wrong."""
        return self._local.session(session)

    def holdings(self, session: bytes, key: bytes) -> int:
        """Count the keys that a session holds in the leader's state; 0 if *key* is one of them, and
        elsewhere, where nothing is decided by it. Raises ConureError."""
        return self._local.holdings(session, key)

    def backup(self) -> tuple[int, Backup]:
        """Return the revision of this node's state, and a backup of it, for any one thread.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        return self._local.backup()

    def check_watchable(self) -> None:
        """Raise Unavailable where nothing, or nothing any more, would come to a watch."""
        self._local.check_watchable()

    def time(self) -> int:
        """Return what expiries are counted by, in milliseconds since the Unix epoch.

        Exact on the leader; elsewhere by this node's own wall clock.
        """
        return self._local.time()

    def key_count(self) -> int:
        """Return how many keys users have, in this node's own state."""
        with self._monitor.lock:
            return self._store.records

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
        """Make a node a member, after asking it who it is; *reply* is told once it is one. See
        :meth:`Membership.join`."""
        self._membership.join(
            node_id,
            raft_address,
            http_address,
            voter=voter,
            role=role,
            reply=reply,
            incarnation=incarnation,
        )

    def remove(
        self,
        node_id: str,
        *,
        force: bool,
        reply: Reply,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """End a node's membership; *reply* is told once that is committed, and *note* before that
        if it has lowered the quorum size.

        *force* insists although too few of the others answer at this moment.
        """
        self._membership.remove(node_id, force=force, reply=reply, note=note)

    def resize(self, quorum_size: int, reply: Reply) -> None:
        """Change the quorum size, 0 for none; *reply* is told once that is committed. See
        :meth:`Membership.resize`."""
        self._membership.resize(quorum_size, reply)

    def hand_over(self, node_id: str, reply: Reply) -> None:
        """Hand leadership to a member, or with "" to the most up to date; told when it has it."""
        self._membership.hand_over(node_id, reply)

    def referral(self) -> NotLeader | None:
        """Return whom writes are to be asked of, if that isn't this node."""
        with self._monitor.lock:
            return None if self._raft.state is State.LEADER else self._standing.not_leader()

    def names(self) -> tuple[str, ...]:
        """Return the addresses under which the cluster knows this node. Any thread."""
        server = self._raft.configuration.get(self._raft.id)
        return (server.http_address, server.raft_address) if server else ()

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        """Return what the quorum would be with this member, and what it would survive."""
        with self._monitor.lock:
            self._standing.refuse_if_not_leading()
            return membership.preview_join(self._raft, node_id, voter=voter, role=role)

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        """Return what the quorum would be without this member. Raises MemberNotFound."""
        with self._monitor.lock:
            self._standing.refuse_if_not_leading()
            return membership.preview_remove(self._raft, node_id)

    def preview_resize(self, quorum_size: int) -> dict[str, Any]:
        """Return what a commit would take with this quorum size, 0 for none."""
        with self._monitor.lock:
            self._standing.refuse_if_not_leading()
            return membership.preview_resize(self._raft, quorum_size)

    def status(self) -> dict[str, Any]:
        """Return what ``GET /status`` shows."""
        with self._monitor.lock:
            return shown.status(
                self._raft,
                self._store,
                self._directory.identity,
                self._options.version,
                self._forming.status(),
            )

    def members(self) -> dict[str, Any]:
        """Return what ``GET /raft/config`` shows."""
        with self._monitor.lock:
            return shown.members(self._raft)

    def raft_stats(self) -> dict[str, str]:
        """Return what ``GET /raft/stats`` shows: strings, with hashicorp/raft's keys."""
        with self._monitor.lock:
            return shown.raft_stats(
                self._raft,
                self._log,
                self._store,
                self._versions,
                self._directory.identity,
                self.last_contact(),
            )

    def liveness(self) -> tuple[str, bool, str]:
        """Tell whether this process can go on at all; no quorum is asked."""
        return shown.liveness(self._standing)

    def readiness(self) -> list[tuple[str, bool, str]]:
        """Tell whether this node can serve requests: each check, whether it passes, and why."""
        with self._monitor.lock:
            return shown.readiness(
                self._raft,
                self._store,
                self._upkeep,
                self._lease,
                self._standing,
                self._forming.waits_for(),
            )

    def facts(self) -> dict[str, Any]:
        """Return what ``POST /join`` has to be told to make this node a member."""
        return shown.facts(self.greeting())

    def applicant(self) -> Applicant:
        """Return what a member has to be told, over the Raft port, to make this node one."""
        said = self.greeting()
        return Applicant(
            said.node_id, said.incarnation, said.role, said.raft_address, said.http_address
        )

    def wants_to_join(self) -> bool:
        """Tell whether somebody should be asked to add this node: it is no member, or hears from
        no leader. One that was removed while it ran stays out until it is started again."""
        with self._monitor.lock:
            if (
                not self._standing.is_working
                or self._roster.was_removed
                or self._standing.is_stopping
            ):
                return False
            last_contact = self.last_contact()
            is_member = self._raft.configuration.get(self._raft.id) is not None
            return not is_member or last_contact is None or last_contact > JOIN_AFTER

    def seeds(self) -> tuple[str, ...]:
        """Return where members of a cluster are that this node, looking for peers, has found to be
        there already: it has to be joined."""
        with self._monitor.lock:
            return self._border.of_here(self._forming.seeds())

    # -- what the transport asks for (transport.Host) --------------------------------------------

    def greeting(self) -> Greeting:
        """Return what this node says of itself to others."""
        return replace(self._admission.greeting(), speaks=self._options.speaks)

    def known_as(self, node_id: str) -> str:
        """Return the incarnation with which a node was admitted, "" if that isn't known."""
        with self._monitor.lock:
            return self._admission.known_as(node_id)

    def lets_in(self, peer: str, local: str) -> bool:
        """Tell whether a connection of nodes from one IP address to another is taken; see
        :class:`Border`. Any thread."""
        return self._border.lets_in(peer, local)

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str = "") -> None:
        """Decide on a node that has connected, taking this one for the incarnation *known_as*.

        Raises Refused (5).
        """
        with self._monitor.lock:
            if not self._standing.is_working:
                raise Refused("this node is stopping")
            self._admission.admit(kind, to, peer, known_as)
            self._hear(peer)
            if kind != "probe":
                self._lease.hear(peer)

    def asked(self, question: Question) -> Shown:
        """Show this node to one that forms a cluster. Raises Refused."""
        with self._monitor.lock:
            if not self._standing.is_working:
                raise Refused("this node is stopping")
            return self._forming.show(question)

    def asked_to_add(
        self, applicant: Applicant, reply: Callable[[ConureError | None], None]
    ) -> None:
        """Make a node a member that asks for it over the Raft port, as ``POST /join`` would, or
        have the leader do so; *reply* is told once: any thread."""
        with self._monitor.lock:
            error = self._why_not_asked(applicant)
        if error is not None:
            reply(error)
            return

        def passed_on(found: Mapping[str, Any] | ConureError) -> None:
            reply(found if isinstance(found, ConureError) else None)

        def ended(error: ConureError | None) -> None:
            if isinstance(error, NotLeader):
                self.pass_on("join", membership.facts_of(applicant), passed_on)
            else:
                reply(error)

        log.info("%s asks to be added, at %s", applicant.node_id, applicant.raft_address)
        self.join(
            applicant.node_id,
            applicant.raft_address,
            applicant.http_address,
            voter=True,
            role=applicant.role,
            reply=ended,
            incarnation=applicant.incarnation,
        )

    def _why_not_asked(self, applicant: Applicant) -> ConureError | None:
        """Return why this node is the wrong one to be asked to add another one, or None."""
        if not self._standing.is_working:
            return Unavailable("this node is stopping")
        if applicant.node_id == self._raft.id:
            is_itself = applicant.incarnation == self._directory.identity.incarnation
            return Conflict(
                "this is the node itself"
                if is_itself
                else f"two nodes have the ID {self._raft.id}; start one with another --node-id"
            )
        if self._raft.configuration.get(self._raft.id) is None:
            return Unavailable("it is a member of no cluster itself, as far as it knows")
        return None

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on a node that has answered this one's call. Raises Refused (5)."""
        with self._monitor.lock:
            self._admission.recognise(expected_id, peer)
            self._hear(peer)
            self._lease.hear(peer)

    def is_member(self, peer: Greeting) -> bool:
        """Tell whether a node is a member, as it was admitted. Takes no lock."""
        known = self._raft.configuration.get(peer.node_id)
        return known is not None and known.incarnation in ("", peer.incarnation)

    def receive(self, messages: Sequence[Message]) -> None:
        """Take messages from an admitted node, all that have arrived together."""
        self._serve(messages)

    def called(self, peer: Greeting, call: Call, answer: Callable[[Answer], None]) -> None:
        """Serve what another node asks for its clients. Raises WireError for what none asks."""
        if call.kind in (CallKind.PUBLISH, CallKind.LISTEN):
            self.messages.take(peer, call, answer)
            return
        self._serving.take(peer, call, answer)
        if call.kind is CallKind.WRITE:
            with self._monitor.lock:
                rest = self._rest_of_writers()
            self._slow_down(rest)

    def take_gathered(self) -> None:
        """Take up the requests that came while others waited for their quorum, or refuse them."""
        with self._monitor:
            self._pacing.end_pause()
            if self._standing.is_working:
                self._take_gathered()
                self._drive()

    def go_on(self) -> None:
        """Apply more of what is committed (7)."""
        self._serve(None)

    def unreachable(self, node_id: str) -> None:
        """Take note that messages to a node were lost."""
        with self._monitor.lock:
            if self._standing.is_working:
                self._raft.report_unreachable(node_id)
                self._admission.lose(node_id)

    def begin_snapshot(self, header: SnapshotHeader) -> IncomingSnapshot | None:
        """Prepare for a state that the leader wants to send; None if it isn't needed any more.

        Raises Refused, ProtocolViolation, DiskFull or DiskFailed.
        """
        return self._transfers.begin(header)

    def snapshot_sent(self, node_id: str, index: int | None) -> None:
        """Take note how sending a snapshot has ended; None: it failed."""
        with self._monitor:
            self._transfers.note_sent(node_id)
            if self._standing.is_working:
                self._raft.report_snapshot(node_id, index)
                self._drive()

    # -- time; the timer's and the checkpointer's threads, or a simulator ------------------------

    def tick(self) -> None:
        """Let one TICK pass: the core's timers, what has waited too long."""
        with self._monitor:
            now = self._clock()
            if self._standing.is_working:
                try:
                    self._raft.note_room(self._upkeep.shortage is None)
                    if self._room.stalled is None and (
                        not self._standing.is_stopping or self._raft.state is State.LEADER
                    ):
                        self._raft.tick()  # who is about to stop stands for nothing any more
                    self._ticks += 1
                    if self._raft.state is State.LEADER:
                        self._tick_leading()
                    elif self._ticks % CALL_OUT_TICKS == 0:
                        self._admission.call_out()
                    self._admission.forget(now)
                    self._forming.go_on()
                    self._take_gathered()
                    self._forwarding.go_on()
                except Exception as error:  # noqa: BLE001 - a bug, or a failed disk; see _drive
                    self._fail(error)
                else:
                    self._go_on()
            self._forwarding.expire(now)
            self.messages.go_on()
            self._monitor.finished += self._expired(now)

    def housekeep(self) -> None:
        """Checkpoint if enough was written or enough time has passed, or else merge what is to be
        merged; keep the log ahead."""
        upkeep = self._upkeep
        try:
            self._transfers.drop_outdated()
            upkeep.prepare()
            self._write_waiting()
            if self._standing.is_arbiter:
                with self._monitor.lock:
                    if self._standing.is_working:
                        upkeep.cut_positions()
            elif upkeep.maintain():  # the rest of it is next
                self._checkpoint_wanted.set()
            elif upkeep.is_due():
                upkeep.checkpoint()
            elif upkeep.compact():
                self._checkpoint_wanted.set()
        except Exception as error:  # noqa: BLE001 - a failed disk, or a bug: neither is survived
            with self._monitor:
                self._fail(error)

    # -- steps in which others may be answered ---------------------------------------------------

    def _serve(self, messages: Sequence[Message] | None) -> None:
        """Take a turn with messages, or None: with what is still to be applied. Takes the lock.

        Who is answered then may have more to ask, so their next requests are gathered (6). The end
        of a confirmation counts where messages have brought it.
        """
        raft, pacing = self._raft, self._pacing
        has_answered, rest = False, 0.0
        try:
            with self._monitor:
                if messages is not None and (
                    not self._standing.is_working or self._room.stalled is not None
                ):
                    return
                was_busy = pacing.is_busy()
                was_confirming = messages is not None and raft.is_confirming
                waiting = pacing.count_waiting() if was_busy or was_confirming else 0
                if messages is None:
                    self._apply_more()
                else:
                    self._take(messages)
                if messages is None or any(message.entries for message in messages):
                    rest = self._rest_of_writers()
                has_answered = (was_busy and not pacing.is_busy()) or (
                    was_confirming and not raft.is_confirming
                )
                if has_answered:
                    pacing.pause(waiting)
        finally:
            if has_answered:
                self._call_later(pacing.gather, 0.0)
        self._slow_down(rest)  # the leader waits for this node's acknowledgements, or goes on

    def _take(self, messages: Sequence[Message]) -> None:
        """Take what has arrived, as far as there is room for it."""
        try:
            if self._intake.hears(messages):
                for message in self._intake.that_fit(messages):
                    self._step(message)
        except Exception as error:  # noqa: BLE001 - a bug; see _drive
            self._fail(error)
        else:
            self._drive()

    def _apply_more(self) -> None:
        self._monitor.went_on()
        if self._standing.is_working:
            self._go_on()

    def _write_waiting(self) -> None:
        """Write what waits for room, if there is some now. Takes the locks."""
        if self._room.is_time():
            with self._upkeep.exclusive, self._monitor:
                self._room.write_waiting()
                if self._standing.is_working:
                    self._drive()

    # -- driving the core; under the lock --------------------------------------------------------

    def _drive(self, *, is_share: bool = False) -> None:
        """Carry out every Ready of the core, and go on with changes that somebody waits for.

        What is committed is applied at once as long as there is time for it (7): as much as usual,
        or *is_share*: what is left of a share that has begun.
        """
        raft = self._raft
        if not is_share:
            self._applying.begin()
        try:
            self._carry_out_all()
            if self._changes:
                now = self._clock()
                for reply, error in self._changes.pursue(self._roster.members, now):
                    self._monitor.finished.append(partial(reply, error))
                self._carry_out_all()
                self._take_gathered()  # with fewer voters, those before them may be done by now
                self._carry_out_all()
            self._monitor.finished += self._reads.applied(self._store.applied_index)
            role = (raft.state, raft.leader_id)
            if role != self._last_role:
                if self._last_role[0] is State.LEADER:
                    self._heard = self._clock()  # up to now it was this node that led
                    self._take_back_gathered()
                self._last_role = role
                self._admission.judge()
                self._audits.forget()
                self._log_role()
                self._forwarding.note_role()
                self.messages.go_on()
                self._take_gathered()
                self._carry_out_all()
        except Exception as error:  # noqa: BLE001 - whatever stops a step half-way ends the node
            self._fail(error)

    def _go_on(self) -> None:
        """Drive the core, and apply more of what is committed first."""
        applying = self._applying
        applying.begin_share()
        try:
            if applying.backlog:
                self._monitor.finished += applying.apply_some()
            if not applying.backlog:
                self._take_gathered()
        except Exception as error:  # noqa: BLE001 - see _drive
            self._fail(error)
        else:
            self._drive(is_share=True)

    def _carry_out_all(self) -> None:
        room = self._room
        if room.stalled is not None:
            self._carry_out(room.take_stalled())
        while room.stalled is None and (ready := self._raft.ready()) is not None:
            self._carry_out(ready)

    def _carry_out(self, ready: Ready) -> None:
        """Do what raft.Ready numbers, in its order; what there is no room for is put off (3)."""
        if ready.hard_state is not None and not self._room.save(ready):
            return
        if ready.configuration is not None:
            self._admission.adopt(ready.configuration, self._clock())
        for message in ready.messages:
            if message.type is MessageType.SNAPSHOT:
                self._transfers.send(message)
            else:
                self._peers.send(message)
        if ready.must_persist:
            self._room.persist(ready)
        if ready.committed:
            self._monitor.finished += self._applying.add(ready.committed)
        if ready.reads or ready.lost_reads:
            self._take_reads(ready)

    def _expired(self, now: float) -> list[Callable[[], None]]:
        """Return the answers to those whose time is up."""
        why = self._standing.lacking()
        waits_for_copies = why if not self._raft.may_read else ""
        return self._writes.expired(now, why) + self._reads.expired(now, waits_for_copies)

    def _take_gathered(self) -> None:
        self._proposals.propose()
        self._pacing.confirm()

    def _write(self, commands: Sequence[Command], reply: WriteReply, *, passes_on: bool) -> None:
        """Gather commands, or pass them on, or refuse them."""
        if self._raft.state is State.LEADER:
            try:
                self._refuse_if_crowded()
            except Unavailable as error:
                self._monitor.finished.append(partial(reply, 0, len(commands), error))
            else:
                self._proposals.gather(commands, reply, passes_on=passes_on)
        elif passes_on:
            self._forwarding.write(self._proposals.to_pass_on(commands, reply))
        else:
            not_leader = self._standing.not_leader()
            self._monitor.finished.append(partial(reply, 0, len(commands), not_leader))

    def _take_in(self, write: Write) -> None:
        """Gather what another node was asked for. Raises Unavailable."""
        self._refuse_if_crowded()
        self._proposals.take_in(write)
        self._propose_gathered()

    def _refuse_if_crowded(self) -> None:
        if self._writes.gathered_bytes > MAX_GATHERED_BYTES:
            raise Unavailable("too many writes wait for a quorum; try again shortly")

    def _propose_gathered(self) -> None:
        """Propose what was gathered, if it is time for that."""
        pacing, writes = self._pacing, self._writes
        if not writes.gathered_bytes:
            return
        pacing.end_pause_if_all_are_back()
        self._take_gathered()
        self._drive()
        if writes.gathered_bytes and not pacing.is_busy():  # any more
            self._proposals.propose()
            self._drive()
        waits = pacing.is_pausing or pacing.is_busy() or self._proposals.is_held_up
        if writes.gathered_bytes and not waits:
            # Nobody else would take it up soon.
            self._monitor.finished.append(partial(self._call_later, self.take_gathered, 0.0))

    def _confirm(self, read: Read, *, may_use_lease: bool = True) -> None:
        """Have a leader's read confirmed, together with others if others are being confirmed.
        Raises ConureError."""
        if self._room.unwritten and not self._raft.may_read:
            raise Unavailable(
                "the log of this leader waits for room, and nobody has its first entry: "
                f"{self._upkeep.shortage}; read with stale=true, or try again later"
            )
        if may_use_lease and self._holds_lease():
            read.index = self._raft.state_index
        elif self._pacing.must_hold_reads():
            self._reads.gather(read)
            self._pacing.end_pause_if_all_are_back()
            self._take_gathered()
            return
        else:
            read.index = self._raft.read_index(read)
        if read.index is None or read.index > self._store.applied_index:
            self._reads.add(read)
        else:
            self._monitor.finished.append(partial(read.answer, None))

    def _confirm_for_other(self, read: Read, peer: Greeting, applied: int) -> None:
        """Have a read of another node confirmed, which has got so far. Raises ConureError.

        One that is behind is told by the messages of a round that more is committed, and by nothing
        so soon without one.
        """
        raft = self._raft
        is_behind = applied < raft.state_index
        if not is_behind and raft.is_confirmed_by(peer.node_id, peer.incarnation):
            read.index = raft.state_index
            self._monitor.finished.append(partial(read.answer, None))
            return
        self._confirm(read, may_use_lease=not is_behind)
        self._drive()

    def _take_back_gathered(self) -> None:
        """Pass on what was gathered to be proposed here, ahead of all that comes from now on.

        What another node has asked for may not wait until this one leads again: the leader in
        between was asked for what comes behind it. The rest waits for the next proposal, which
        finds out who leads by then.
        """
        for write in self._writes.take():
            if write.passes_on or write.term:
                self._lose_write(write, self._standing.not_leader())
            else:
                self._writes.gather(write)

    def _lose_write(self, write: Write, error: ConureError) -> None:
        """Take back a write that was gathered, from a leader that is one no more."""
        if write.passes_on and isinstance(error, NotLeader):
            self._forwarding.take_back(write)
        else:
            self._monitor.finished.append(write.answer(error))

    def _lose_read(self, read: Read, error: ConureError) -> None:
        """Likewise a read that waits for its confirmation."""
        if read.passes_on:
            self._refuse_kept(read, error)
            self._forwarding.resume(read)
        else:
            self._monitor.finished += self._reads.lost(read, error)

    def _refuse_kept(self, read: Read, error: ConureError) -> None:
        """Refuse those of a read that aren't passed on."""
        if (kept := read.split()) is not None:
            self._monitor.finished.append(partial(kept, error))

    def _take_reads(self, ready: Ready) -> None:
        for read_state in ready.reads:
            assert isinstance(read_state.context, Read)
            read_state.context.index = read_state.index
        for context in ready.lost_reads:
            assert isinstance(context, Read)
            self._lose_read(context, self._standing.not_leader())

    def _take_state(self, message: Message) -> None:
        """Give the core the message of a state that was received completely, and drive it."""
        try:
            self._step(message, has_state=True)
        except Exception as error:  # noqa: BLE001 - a bug; see _drive
            self._fail(error)
        else:
            self._drive()

    def _step(self, message: Message, *, has_state: bool = False) -> None:
        """Give a message to the core, unless it is one between drivers."""
        raft, kind = self._raft, message.type
        if kind is MessageType.SNAPSHOT and not (has_state or self._standing.is_arbiter):
            return  # it comes with its data, by begin_snapshot
        try:
            if kind is MessageType.AUDIT or kind is MessageType.AUDIT_RESPONSE:
                raft.check(message)
                self._audits.hear(message)
                return
            newest = self._intake.check_commands(message) if message.entries else 1
            raft.step(message)
            self._versions.note_logged(newest)
        except ProtocolViolation as error:
            self._intake.drop(message, error)
            return
        if raft.leader_id == message.sender:
            self._heard = self._clock()

    def _tick_leading(self) -> None:
        if not self._room.unwritten:
            self._admission.follow_addresses()
        self._expiries.expire()
        if self._options.read_mode == "lease":
            self._lease.renew()
        self._audits.tick(self._ticks)

    def _holds_lease(self) -> bool:
        return self._options.read_mode == "lease" and self._lease.holds()

    def _rest_of_writers(self) -> float:
        """Return how many seconds who writes has to rest after this step, without the lock."""
        share = self._upkeep.memory_share()
        if share > 1.0:
            return min(BRAKE * share**2, max(BRAKE, BRAKE_SHARE * self._options.election_timeout))
        return PRESSURE_BRAKE * self._store.pressure

    def _slow_down(self, seconds: float) -> None:
        """Let what is behind the writes catch up. Without the lock."""
        if seconds:
            self._observed.stalls.inc()
            self._observed.stall_seconds.inc(seconds)
            sleep(seconds)

    def _log_role(self) -> None:
        raft = self._raft
        log.info(
            "node %s is %s in term %d, leader %s",
            raft.id,
            raft.state,
            raft.term,
            raft.leader_id or "unknown",
        )

    # -- what the others read (5); under the lock ------------------------------------------------

    def _hear(self, peer: Greeting) -> None:
        """Take note of what a node reads that was recognised. Raises Refused: it isn't enough."""
        self._versions.hear(peer, self._raft.configuration)
        self._check_peer(peer)

    def _check_peer(self, peer: Greeting) -> None:
        """Raise Refused for a node that can't read what the log holds: what is committed, for who
        doesn't lead, since a leader that reads less may still take back the rest."""
        held = max(self._store.version, self._roster.members.speaks)
        if self._raft.state is State.LEADER:
            held = max(held, self._versions.logged, self._raft.speaks)
        self._versions.check_peer(peer, held)

    # -- refusals and failures; under the lock ---------------------------------------------------

    def _refused(self, error: ConureError) -> ConureError:
        """Pass on why a write was refused; a disk that failed over it for good ends the node."""
        if isinstance(error, DiskFull):
            if self._upkeep.obstacle is None:
                self._checkpoint_wanted.set()  # it lets the log be cut and its space used again
        elif isinstance(error, StorageError) and not isinstance(error, Exhausted):
            self._fail(error)
        return error

    def _fail(self, error: Exception) -> None:
        """Stop for good: what waits gets no definite answer any more (S6)."""
        if self._standing.failure is not None:
            return
        self._standing.fail(error)
        log.critical(
            "this node can't go on: %s", error, exc_info=not isinstance(error, ConureError)
        )
        self._answer_all(OutcomeUnknown(f"the node failed while it worked on this: {error}"))
        self._on_failure()

    def _answer_all(self, error: ConureError) -> None:
        finished = self._monitor.finished
        finished += self._writes.ended(error) + self._reads.ended(Unavailable(str(error)))
        self._forwarding.end(error)
        self.messages.end(error)
        for reply in self._changes.end():
            finished.append(partial(reply, error))

    def _keep_from(self) -> int | None:
        """Return from where on others need the log; None if there are no others."""
        return self._transfers.needed_from()

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
