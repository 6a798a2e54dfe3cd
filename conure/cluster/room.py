"""What has to be durable and finds no room: duties that wait in their order, and when they go on.

A full disk is no failure as long as nothing half-written matters. What the core wants written and
can't be waits in :attr:`Room.unwritten`, after what waits already; if term and vote can't be
written, the whole :class:`Ready` waits in :attr:`Room.stalled` and nothing leaves this node before
they are durable (R1). All of it is tried again until there is room.

Which duty comes when is the node's to say (``Node._carry_out``); here is how each of them is done.
Everything here belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

from conure.cluster.checkpointing import DISK_FULL_RETRY, Upkeep
from conure.cluster.standing import Standing
from conure.consensus.messages import Ready, SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.errors import DiskFull
from conure.metrics import Histogram
from raft import Raft

__all__ = ["Room"]


class Room:
    """Makes durable what the core wants, in *raft_log*, and keeps what there is no room for.

    *install* puts a received state in place of this node's; it may raise DiskFull and be called
    again. *sync_seconds* observes how long a sync takes.
    """

    def __init__(
        self,
        raft: Raft,
        raft_log: RaftLog,
        upkeep: Upkeep,
        standing: Standing,
        install: Callable[[SnapshotMeta], None],
        clock: Callable[[], float],
        sync_seconds: Histogram,
    ) -> None:
        self._raft = raft
        self._log = raft_log
        self._upkeep = upkeep
        self._standing = standing
        self._install = install
        self._clock = clock
        self._sync_seconds = sync_seconds
        self._write_again_at = 0.0
        self.unwritten: deque[Ready] = deque()
        """What waits for room: entries and snapshots, in their order."""
        self.stalled: Ready | None = None
        """Whose term and vote wait for room, so that nothing else of it may happen."""

    def save(self, ready: Ready) -> bool:
        """Make term and vote durable; False, and nothing else happens before they are (R1)."""
        assert ready.hard_state is not None
        try:
            self._log.set_hard_state(ready.hard_state)
        except DiskFull as error:
            self.stalled = ready
            self._upkeep.wait_for_room(error)
            return False
        self._note()
        return True

    def take_stalled(self) -> Ready:
        """Return what is stalled, to be carried out from its beginning."""
        assert self.stalled is not None
        stalled, self.stalled = self.stalled, None
        return stalled

    def persist(self, ready: Ready) -> None:
        """Make entries and snapshot durable and tell the core, or let them wait for room behind
        what waits already; a snapshot makes void what waits."""
        if ready.snapshot is not None:
            self.unwritten.clear()
        if self.unwritten or not self._write(ready):
            self._put_off(ready)
        else:
            self._raft.persisted(ready)

    def is_time(self) -> bool:
        """Tell whether to try again now what waits for room, or is void meanwhile; once, and not
        again for a while: every attempt to make room fills what there is with zeros."""
        if not self._upkeep.is_waiting or self._clock() < self._write_again_at:
            return False
        self._write_again_at = self._clock() + DISK_FULL_RETRY
        return True

    def write_waiting(self) -> None:
        """Write what waits, in its order and as far as there is room. The caller holds
        ``Upkeep.exclusive`` as well, because a snapshot may be among it."""
        while self._standing.is_working and self.unwritten:
            if not self._write(self.unwritten[0]):
                break
            self._raft.persisted(self.unwritten.popleft())
        self._note()

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
        """Let what has to be durable wait for room, after what waits already."""
        if ready.entries or ready.snapshot is not None:  # the rest of it is done
            self.unwritten.append(ready)
        if ready.hard_state is not None:  # it is durable already: see save
            self._raft.persisted(Ready(hard_state=ready.hard_state))

    def _note(self) -> None:
        if not self.unwritten and self.stalled is None:
            self._upkeep.found_room()
