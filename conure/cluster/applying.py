"""What is committed, applied in its order: how much of it in one go, and what comes of it.

Entries are applied for the node's ``apply_seconds`` at a time and at least one of them, or a piece
of one. The rest (``backlog``) takes turns with all else that the reactor does, as long ones as that
takes (APPLY_SHARE). A sequential transaction that asks for much takes several of these turns; until
its last one it isn't applied (lengthy.py), and that one ends with it, whatever follows: amid such
entries, one after the other, there would never be a moment for a checkpoint to begin. Any other
entry takes as long as it takes: who proposes it bounds that (limits.py).

Everything here belongs to the holder of the node's lock. Nothing is applied here that this node
would lose in a crash: the core hands out what is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from conure.cluster.checkpointing import Upkeep
from conure.cluster.pending import Answers, Writes
from conure.cluster.roster import Roster
from conure.cluster.standing import Standing
from conure.commands import Outcome
from conure.consensus.messages import Entry
from conure.state.history import History
from conure.state.machine import Store
from raft import Raft

__all__ = ["Applying"]

APPLY_SHARE = 4
"""How many times ``apply_seconds`` a turn is at most where all else takes longer: as long as that
did, and longer if much is left, or a follower that is busy with reads would fall behind without
end."""

LONG_BACKLOG = 2048
"""Entries after each of which a turn may be as much longer again as all else took."""


class Applying:
    """Applies what the core has committed to *store*, for *seconds* in one go.

    *want_checkpoint* is called when a restart would have much to apply by now.
    """

    def __init__(
        self,
        raft: Raft,
        store: Store,
        history: History,
        writes: Writes,
        roster: Roster,
        standing: Standing,
        upkeep: Upkeep,
        clock: Callable[[], float],
        seconds: float,
        want_checkpoint: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._store = store
        self._history = history
        self._writes = writes
        self._roster = roster
        self._upkeep = upkeep
        self._clock = clock
        self._seconds = seconds
        self._want_checkpoint = want_checkpoint
        self._is_arbiter = standing.is_arbiter
        self._until = 0.0  # when it has been applied for long enough
        self._applied_at = 0.0  # when something was applied last
        self.backlog: list[Entry] = []
        """Committed, and to be applied by and by."""

    def begin(self) -> None:
        """Begin a step: what it commits is applied at once for as long as usual."""
        self._until = self._clock() + self._seconds

    def begin_share(self) -> None:
        """Begin a step that goes on with the backlog: it may take as long as all else took."""
        now, seconds = self._clock(), self._seconds
        if self.backlog:
            rest = (now - self._applied_at) * (1 + len(self.backlog) // LONG_BACKLOG)
            seconds = max(seconds, min(rest, APPLY_SHARE * seconds))
        self._until = now + seconds

    def add(self, entries: Sequence[Entry]) -> Answers:
        """Apply committed entries, or let them wait behind those that are still to be applied.
        Returns and raises the same as :meth:`apply_some`."""
        is_next = not self.backlog
        self.backlog += entries
        if is_next and self._clock() < self._until:
            return self.apply_some()
        return []

    def apply_some(self) -> Answers:
        """Apply entries of the backlog, as many as there is time for in one go; return the answers
        to the writes that they were. Raises what ends the node."""
        store, entries = self._store, self.backlog
        outcomes: Mapping[int, Outcome] = {}
        if self._is_arbiter:
            store.skip(entries)
            done, self.backlog = entries, []
        else:
            clock, until, was_amid = self._clock, self._until, store.is_amid
            store.keep_previous(self._history.wants_previous)
            outcomes = store.apply(
                entries, lambda: clock() >= until or (was_amid and not store.is_amid)
            )
            count = store.applied_index - entries[0].index + 1  # 0: it is amid the first one
            done, self.backlog = entries[:count], entries[count:]
            self._history.extend(store.take_events(), store.applied_index)
            self._applied_at = clock()
            if was_amid and not store.is_amid:
                self._until = self._applied_at  # what is committed next waits for the next turn
        self._raft.applied(store.applied_index)
        if store.configuration is not self._roster.encoded:
            self._roster.adopt()
        answers = self._writes.applied(done, outcomes) if done else []
        if not self._is_arbiter and self._upkeep.is_urgent():
            self._want_checkpoint()
        return answers
