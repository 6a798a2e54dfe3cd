"""Whole states on their way: those that followers are sent, and the one that is being received.

A follower whose next entries are cut from the leader's log is sent the leader's state, one transfer
to each at a time. What is received is staged beside the state that goes on serving
(snapshots.py), and takes its place when it is complete and the core still wants it.

1. A state is begun and installed only by a node whose term and vote are durable, and begun only for
   the leader of its present term or a later one.
2. Of two transfers the later one counts; the end of the one before it changes nothing.
3. Whoever installs holds ``Upkeep.exclusive``, because a checkpoint wants those files as well.

Each method says who may call it. No file is written under the node's lock but by
:meth:`Transfers.install`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from conure.cluster.applying import Applying
from conure.cluster.checkpointing import Upkeep
from conure.cluster.monitor import Monitor
from conure.cluster.opening import engine_options, kind_of, open_engine
from conure.cluster.options import NodeOptions
from conure.cluster.pending import Writes
from conure.cluster.roster import Roster
from conure.cluster.standing import Standing
from conure.consensus.messages import Message, SnapshotHeader, SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.errors import Refused
from conure.peers.transfer import Outgoing
from conure.state import snapshots
from conure.state.history import History
from conure.state.machine import Inspection, Store
from conure.state.snapshots import IncomingSnapshot, OutgoingSnapshot
from conure.storage.datadir import DataDirectory
from raft import Raft

__all__ = ["Senders", "Transfers"]

TRANSFER_REST = 120.0
"""Seconds without a record after which a state that was being received is given up: its sender
would have gone on by then, if it could."""

STAGED_CACHE_BYTES = 4 << 20
"""Page cache of an engine that is built from a snapshot."""

log = logging.getLogger("conure.node")


class Senders(Protocol):
    """The part of the transport that sends states. Nothing here blocks."""

    def send(self, message: Message) -> None:
        """Send a message, if it can be."""

    def send_snapshot(self, outgoing: Outgoing) -> None:
        """Stream a state; ``snapshot_sent`` tells how that ended."""


class Transfers:
    """Sends and receives states for the node whose core is *raft* and whose data are in
    *directory*.

    *is_stalled* tells whether term or vote wait to be durable; *take* gives the core the message of
    a state that was received, and drives it.
    """

    def __init__(
        self,
        options: NodeOptions,
        directory: DataDirectory,
        raft: Raft,
        raft_log: RaftLog,
        store: Store,
        history: History,
        peers: Senders,
        writes: Writes,
        roster: Roster,
        standing: Standing,
        upkeep: Upkeep,
        applying: Applying,
        monitor: Monitor,
        clock: Callable[[], float],
        *,
        is_stalled: Callable[[], bool],
        take: Callable[[Message], None],
    ) -> None:
        self._options = options
        self._directory = directory
        self._raft = raft
        self._log = raft_log
        self._store = store
        self._history = history
        self._peers = peers
        self._writes = writes
        self._roster = roster
        self._standing = standing
        self._upkeep = upkeep
        self._applying = applying
        self._monitor = monitor
        self._clock = clock
        self._is_stalled = is_stalled
        self._take = take
        self._seen: tuple[IncomingSnapshot, int | None] | None = None  # progress of the incoming
        self._seen_since = 0.0  # when that changed last
        self.incoming: IncomingSnapshot | None = None
        """The state that is being received. With the node's lock."""
        self.outgoing: dict[str, int] = {}
        """States on their way out: to whom, as of when. With the node's lock."""

    # -- sending; with the node's lock -----------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send this node's state to whom the core's message is for, unless one is on its way."""
        to = self._raft.configuration.get(message.to)
        if to is not None and to.role == "arbiter":
            self._peers.send(message)
            # It may be lost; if so, it is sent again when the arbiter next answers.
            self._raft.report_snapshot(message.to, None)
            return
        if message.to in self.outgoing:  # begun when this node led before; one at a time
            self._raft.report_snapshot(message.to, None)
            return
        state = self._store.snapshot()
        log.info("sending a snapshot as of index %d to %s", state.meta.index, message.to)
        self.outgoing[message.to] = state.meta.index
        self._peers.send_snapshot(OutgoingSnapshot(message, state))

    def note_sent(self, node_id: str) -> None:
        """Take note that the transfer to a node has ended, however it has."""
        self.outgoing.pop(node_id, None)

    def needed_from(self) -> int | None:
        """Return from where on others need the log; None if there are no others."""
        if len(self._roster.members.servers) <= 1:
            return None
        return min(self._raft.slowest_match(), *self.outgoing.values(), self._log.last_index)

    # -- receiving -------------------------------------------------------------------------------

    def begin(self, header: SnapshotHeader) -> IncomingSnapshot | None:
        """Prepare for a state that the leader wants to send; None if it isn't needed any more.
        A thread of the transport; takes the node's lock.

        Raises Refused, ProtocolViolation, DiskFull or DiskFailed.
        """
        meta = header.message.snapshot
        with self._monitor.lock:
            if (
                not self._standing.is_working
                or self._is_stalled()
                or self._standing.is_arbiter
                or not self._directory.identity.cluster_id
                or meta is None
                or header.message.term < self._raft.term
            ):
                raise Refused(f"node {self._raft.id} takes no snapshot from this node now")
            self._raft.check(header.message)
            if meta.index <= self._raft.commit_index:
                return None
            incoming = self.incoming
            if incoming is not None and incoming.header.id == header.id:
                return incoming
            self.incoming = None
        if incoming is not None:
            incoming.discard()
        log.info("receiving a snapshot as of index %d, %d records", meta.index, header.records)
        incoming = IncomingSnapshot(
            self._directory.fs,
            self._directory.path,
            header,
            options=replace(
                engine_options(self._options),
                page_size=self._store.stats().page_size,
                cache_bytes=STAGED_CACHE_BYTES,
                workers=False,
            ),
            kind=kind_of(self._directory),
            inspection=Inspection(self._options.speaks),
            keep_free=self._log.wanted_bytes,
            finished=self._on_received,
        )
        with self._monitor.lock:
            rival = self.exchange(incoming)
        if rival is not None:
            rival.discard()
        return incoming

    def exchange(self, incoming: IncomingSnapshot | None) -> IncomingSnapshot | None:
        """Let this be what is being received; return what was, which the caller discards when it
        has let go of the lock. With the node's lock."""
        before, self.incoming = self.incoming, incoming
        return before

    def drop_outdated(self) -> None:
        """Remove what was received of a state that the log has passed by now, whose sender leads
        no more, or that doesn't go on. The checkpointer's thread; takes the node's lock."""
        with self._monitor.lock:
            incoming, now = self.incoming, self._clock()
            if incoming is None:
                return
            seen = (incoming, incoming.progress)
            if seen != self._seen:
                self._seen, self._seen_since = seen, now
            is_at_rest = seen[1] is not None and now - self._seen_since > TRANSFER_REST
            if (
                incoming.meta.index > self._raft.commit_index
                and incoming.header.message.term >= self._raft.term
                and not is_at_rest
            ):
                return
            self.incoming = self._seen = None
        incoming.discard()

    def _on_received(self, incoming: IncomingSnapshot) -> None:
        """Install what has been received completely. A thread of the transport; takes the locks."""
        with self._upkeep.exclusive, self._monitor:
            may_install = self._standing.is_working and not self._is_stalled()
            if may_install and incoming is self.incoming:
                self._take(incoming.header.message)
            if incoming is self.incoming:
                self.incoming = None
        if self._standing.failure is None:  # or it may be what the next start goes on with
            incoming.discard()  # unless it was installed

    def install(self, meta: SnapshotMeta) -> None:
        """Replace the state by the staged one, and the log by an empty one after it. With the
        node's lock.

        A data node's caller holds ``Upkeep.exclusive``. After DiskFull it may be called again.
        """
        if self._standing.is_arbiter:
            self._log.reset(meta)
            self._store.skip_to(meta)
        else:
            directory = self._directory
            incoming, kind = self.incoming, kind_of(directory)
            built = incoming.built if incoming is not None and incoming.meta == meta else None
            snapshots.install(
                directory.fs, directory.path, self._log, meta, kind, removes=built is None
            )
            self._store.replace(open_engine(directory, self._options, built), meta)
        self._applying.backlog.clear()  # the state has all of them
        self._upkeep.installed(meta)
        self._history.reset(meta.index)
        self._roster.adopt()
        self._monitor.finished += self._writes.skipped(meta.index)
        log.info("installed a snapshot as of index %d", meta.index)
