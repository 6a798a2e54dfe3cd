"""When requests that wait are taken up: gathered, until a batch or a round is worth its price.

While proposed writes wait for their quorum, others gather, to be proposed together with what comes
of the clients that are answered then. Of a write that was not proposed it is certain that it did
not happen. Reads wait for the confirmation of those before them in the same way, and both for the
clients that either of them has just answered: until all have asked again, or for a moment.

:class:`Pacing` says when; proposing.py makes the batch. Everything here belongs to the holder of
the node's lock, but for :meth:`Pacing.gather`, which takes it.
"""

from __future__ import annotations

from collections.abc import Callable

from conure.cluster.applying import Applying
from conure.cluster.monitor import CallLater, Monitor
from conure.cluster.pending import Read, Reads, Writes
from conure.consensus.messages import State
from conure.errors import ConureError, NotLeader
from raft import Raft

__all__ = ["Pacing"]

GATHER = 100e-6
"""Seconds that gathered requests wait at most for those of clients who have just been answered: one
batch of all is faster than two of halves, and one question whether this still leads than two."""

WORTH_A_BATCH = 64
"""Gathered commands that wait for no others: a sync is shared by enough of them."""


class Pacing:
    """Says when what waits in *writes* and *reads* is taken up by the node whose core is *raft*.

    *take_gathered* takes it up; *call_later* has that done in a moment. *lose* is told of reads
    that can't be confirmed, since this node doesn't lead any more. *has_leases* is whether reads
    are answered by leases.
    """

    def __init__(
        self,
        raft: Raft,
        writes: Writes,
        reads: Reads,
        applying: Applying,
        monitor: Monitor,
        take_gathered: Callable[[], None],
        call_later: CallLater,
        lose: Callable[[Read, ConureError], None],
        *,
        has_leases: bool,
    ) -> None:
        self._raft = raft
        self._writes = writes
        self._reads = reads
        self._applying = applying
        self._monitor = monitor
        self._take_gathered = take_gathered
        self._call_later = call_later
        self._lose = lose
        self._has_leases = has_leases
        self._last_proposed = 0, 0  # term and index of the last command
        self._crowd = 0  # requests that waited before the last answers
        self.is_pausing = False
        """Whether answers are being sent, to clients whose next requests are waited for."""

    def note_proposed(self, term: int, index: int) -> None:
        """Take note of the last command of a batch that was proposed."""
        self._last_proposed = term, index

    def is_busy(self) -> bool:
        """Tell whether proposed writes wait for their quorum, or to be applied."""
        if self._applying.backlog:
            return True
        raft = self._raft
        term, index = self._last_proposed  # in another term it may be lost
        return term == raft.term and raft.commit_index < index and raft.state is State.LEADER

    def must_hold_reads(self) -> bool:
        """Tell whether a read is to be confirmed together with others.

        Not where there are leases: if an answer takes longer than a tick, their rounds follow each
        other without a gap in which the gathered reads would be asked for.
        """
        return not self._has_leases and (
            self.is_pausing or self._raft.is_confirming or self._reads.gathered_count > 0
        )

    def confirm(self) -> None:
        """Ask once for all gathered reads whether this is still the leader, or refuse them.

        Not while others are being confirmed: the fewer such rounds, the more time for requests.
        """
        if self.is_pausing or self._raft.is_confirming:
            return
        for read in self._reads.take():
            try:
                read.index = self._raft.read_index(read)
            except NotLeader as error:
                self._lose(read, error)

    def pause(self, waiting: int) -> None:
        """Wait for what comes of those who are answered now, of so many who were *waiting*.
        Whoever calls it calls :meth:`gather` when the answers are sent."""
        self._crowd = max(waiting, self._crowd) if self.is_pausing else waiting
        self.is_pausing = True

    def gather(self) -> None:
        """Answers have been sent: if requests are gathered, take along those that follow. Takes the
        lock."""
        with self._monitor.lock:
            gathered = self._writes.gathered_count
            self.is_pausing &= gathered > 0 or self._reads.gathered_count > 0
            is_pausing = self.is_pausing
        if is_pausing:
            self._call_later(self._take_gathered, GATHER if gathered < WORTH_A_BATCH else 0.0)

    def end_pause(self) -> None:
        """Wait for nobody any more."""
        self.is_pausing = False

    def end_pause_if_all_are_back(self) -> None:
        """Wait for no more requests than there were before the last answers."""
        if self.is_pausing and self.count_waiting() >= self._crowd:
            self.is_pausing = False

    def count_waiting(self) -> int:
        """Return how many requests have no answer yet."""
        return self._writes.count + self._reads.count
