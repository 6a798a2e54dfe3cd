"""The leader's time, and the entries by which it ends keys and sessions that are due.

Replicas look at no clock: what is due ends when an entry says so, as of the time in that entry.
The leader proposes one when its own time has come to the earliest expiry. At most one is under way,
and each ends so many keys that the rest of what is due waits for the next tick.

Everything here belongs to the holder of the node's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from conure.cluster.checkpointing import Upkeep
from conure.cluster.pending import Write, Writes
from conure.commands import Committed, Expire, Transaction
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.errors import ConureError
from conure.state import codec
from conure.state.leaderclock import LeaderClock
from conure.state.machine import Store
from raft import Raft

__all__ = ["Expiries"]

MAX_EXPIRED = 1000
"""Keys and sessions that one entry ends; the rest of what is due has to wait for the next tick."""

log = logging.getLogger("conure.node")


class Expiries:
    """Ends what is due in *store*, while the node whose core is *raft* leads.

    *clock* is monotonic and *wall* tells the time since the Unix epoch; *timeout* is how long a
    write may take. All are in seconds.
    """

    def __init__(
        self,
        raft: Raft,
        raft_log: RaftLog,
        store: Store,
        writes: Writes,
        upkeep: Upkeep,
        clock: Callable[[], float],
        wall: Callable[[], float],
        timeout: float,
    ) -> None:
        self._raft = raft
        self._log = raft_log
        self._store = store
        self._writes = writes
        self._upkeep = upkeep
        self._clock = clock
        self._timeout = timeout
        self._leader_clock = LeaderClock(clock, wall)
        self._is_under_way = False  # an Expire

    def time(self) -> int:
        """Return the leader's time, in milliseconds since the Unix epoch."""
        return self._leader_clock.now(self._raft.term, self._store.clock)

    def expire(self) -> None:
        """Let an entry end what is due. It is gathered like any write, and proposed by the tick;
        on a full disk the log's reserve has room for some."""
        due = None if self._is_under_way else self._store.next_due()
        if due is None or due > (now := self.time()):
            return
        command = codec.encode_transaction(Transaction((), (Expire(MAX_EXPIRED),), time=now))
        if self._upkeep.shortage is None:
            self._is_under_way = True
            self._writes.gather(Write([command], self._on_ended, self._clock() + self._timeout))
        elif self._upkeep.obstacle is None and self._log.may_use_reserve(
            len(command) + ENTRY_OVERHEAD, commands=True
        ):
            try:
                first = self._raft.propose([command])
            except ConureError as error:  # leadership is being handed over
                log.debug("nothing expires now: %s", error)
                return
            self._is_under_way = True
            deadline = self._clock() + self._timeout
            self._writes.add(self._raft.term, first, 1, self._on_ended, deadline)

    def _on_ended(self, start: int, stop: int, ended: Committed | ConureError) -> None:  # noqa: ARG002
        self._is_under_way = False  # what it did not end is still due
