"""Upkeep of what is on disk: checkpoints of the store, what it merges, and both ends of the log.

The state on disk lags behind the log. A checkpoint brings it up to date and lets the log be cut,
so that a restart has little to replay; the next segments of the log are made ahead of need, so
that a write finds its room.

1. A full disk is no failure as long as nothing half-written matters: a checkpoint that does not
   fit is dropped and taken again later, and what has to be in the log and isn't waits for room.
   Until then ``obstacle`` says why writes are refused.
   Where descriptors or memory have run out, a checkpoint is tried again likewise. Whatever keeps
   checkpoints from being made, or makes them slow: nothing more is taken once changes take
   MOST_SHARE times the memory that they may (S7).
2. The log is cut after a durable checkpoint only (S2), and keeps what others still need of it: a
   follower that finds its entries gone needs the whole state.

3. An engine that merges (engine.StorageEngine.compact) does so between checkpoints and in the rests
   of one, so that a checkpoint that is due never waits for it. The other way round one does, as
   long as memory and log have room: while merging is far behind, another table would make it worse.

:meth:`Upkeep.checkpoint`, :meth:`Upkeep.compact` and :meth:`Upkeep.prepare` belong to one thread at
a time, which holds ``exclusive`` from the beginning of a checkpoint to its end and while something
is merged, takes the node's lock for moments and works without it otherwise. Whoever replaces the
store's files takes ``exclusive`` first. The other methods belong to the holder of the node's lock.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, sleep

from conure.consensus.messages import SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.errors import ConureError, DiskFull, Exhausted, Unavailable
from conure.metrics import Registry
from conure.state.machine import Store

__all__ = ["Upkeep", "UpkeepOptions"]

DISK_FULL_RETRY = 1.0
"""Seconds between attempts to checkpoint onto a full disk."""

SLICE = 0.002
"""Seconds a checkpoint works before it rests as long, so that requests get their turn."""

MAINTAIN_SECONDS = 0.1
"""Seconds for which the store is maintained, before what else is to be kept up gets its turn."""

LOOK = 0.02
"""Seconds between two looks at what others merge."""

MOST_SHARE = 2.0
"""How many times the memory that they may take changes take before writes are refused, and entries
of the leader."""

LOG_TAIL = 4
"""How many times ``checkpoint_log_bytes`` of old log are kept at most for slow followers."""

log = logging.getLogger("conure.node")


@dataclass(frozen=True, slots=True)
class UpkeepOptions:
    """When a checkpoint is due: after so much log, so many entries, so many seconds if anything
    changed, or *urgent_bytes* of changes in memory, which may be *max_unwritten_bytes* (S7)."""

    log_bytes: int
    entries: int
    interval: float
    urgent_bytes: int
    max_unwritten_bytes: int


class Upkeep:
    """Keeps the log short and the store durable. *lock* is the node's.

    *keep_from* returns the index up to which others don't need the log any more, or None if there
    are no others. *may_work* is false when the node has failed. *stopping* is set to end without
    rests.
    """

    def __init__(
        self,
        options: UpkeepOptions,
        lock: threading.Lock,
        raft_log: RaftLog,
        store: Store,
        clock: Callable[[], float],
        registry: Registry,
        *,
        keep_from: Callable[[], int | None],
        may_work: Callable[[], bool],
        stopping: threading.Event,
    ) -> None:
        self.exclusive = threading.Lock()
        self._options = options
        self._lock = lock
        self._log = raft_log
        self._store = store
        self._clock = clock
        self._keep_from = keep_from
        self._may_work = may_work
        self._stopping = stopping
        self._full: DiskFull | None = None  # why the last checkpoint did not fit
        self._waiting: DiskFull | None = None  # why the log does not have what it should have
        self._cramped: DiskFull | None = None  # why the next log segment can't be made
        self._starved: Exhausted | None = None  # why the last checkpoint could not be made
        self._is_log_starved = False  # nor the next log segment, which was logged
        self._prepare_again_at = 0.0
        self._look_at = 0.0  # when what others merge is looked at again; perf_counter
        self._checkpointed_at = clock()
        self._base_bytes = 0  # what size_bytes of the log would be with nothing new in it
        self._cuts = deque([store.meta])  # the checkpoints at which the log may be cut
        self._seconds = registry.histogram(
            "conure_checkpoint_duration_seconds",
            "Time from the beginning of a checkpoint to its end, in seconds.",
        )
        registry.gauge_callback(
            "conure_disk_full",
            "1 while there is no room for a checkpoint or for more log, and writes are refused.",
            lambda: int(self.shortage is not None),
        )

    @property
    def obstacle(self) -> ConureError | None:
        """Why every write has to be refused, if it has to. Any thread."""
        error = self._waiting or self._full
        if error is None and self.is_crowded:
            return self._starved or Unavailable(
                "changes are written to the disk too slowly, and take as much memory as they may; "
                "try again shortly"
            )
        return error

    @property
    def is_crowded(self) -> bool:
        """Tell whether changes take so much memory that no more can be taken (S7). Any thread."""
        return self.memory_share() > MOST_SHARE

    @property
    def shortage(self) -> DiskFull | None:
        """What there is no room for. Any thread."""
        return self._waiting or self._full or self._cramped

    @property
    def is_waiting(self) -> bool:
        """Tell whether something that has to be in the log waits for room. Any thread."""
        return self._waiting is not None

    def wait_for_room(self, error: DiskFull) -> None:
        """Take note that something has to be in the log and finds no room there."""
        if self._waiting is None:
            log.error("the log has no room left, so this node waits for some: %s", error)
        self._waiting = error

    def found_room(self) -> None:
        """Take note that nothing waits any more."""
        if self._waiting is not None:
            log.info("there is room in the log again")
            self._waiting = None

    def is_urgent(self) -> bool:
        """Tell whether a restart would have much to apply, or memory much to give back (S7)."""
        options, store = self._options, self._store
        return (
            self._behind() >= options.entries
            or self._log.size_bytes - self._base_bytes >= options.log_bytes
            or store.unwritten_bytes >= options.urgent_bytes
        )

    def memory_share(self) -> float:
        """Return how much memory changes take, where 1.0 is as much as they may (S7). Any
        thread."""
        return self._store.unwritten_bytes / self._options.max_unwritten_bytes

    def _is_held_back(self) -> bool:
        """Tell whether a checkpoint had better wait for what is being merged (3)."""
        options, store = self._options, self._store
        return (
            store.pressure >= 1.0
            and self.memory_share() <= 1.0
            and self._log.size_bytes - self._base_bytes < 2 * options.log_bytes
            and not self._is_late()
        )

    def _is_late(self) -> bool:
        """Tell whether a restart would have more to apply than it should: no time to rest."""
        return self._behind() >= 2 * self._options.entries

    def _behind(self) -> int:
        """Return how many entries a restart would have to apply."""
        return self._store.applied_index - self._store.checkpointed_index

    def is_due(self) -> bool:
        """Tell whether to checkpoint now."""
        elapsed = self._clock() - self._checkpointed_at
        if self.shortage is not None or self._starved is not None:
            return elapsed >= DISK_FULL_RETRY
        return (elapsed >= self._options.interval or self.is_urgent()) and not self._is_held_back()

    def prepare(self) -> None:
        """Make the segments that the log will need, and its reserve. Raises DiskFailed."""
        if self._cramped is not None and self._clock() < self._prepare_again_at:
            return  # every attempt fills what room there is with zeros
        try:
            self._log.prepare()
        except DiskFull as error:
            # The writes that need the room will be refused, each with the reason.
            if self._cramped is None:
                log.error("no room for the next log segment, writes will be refused: %s", error)
            self._cramped = error
            self._prepare_again_at = self._clock() + DISK_FULL_RETRY
        except Exhausted as error:  # it is needed only when those that there are have been used up
            if not self._is_log_starved:
                log.warning("the next log segment has to wait: %s", error)
            self._is_log_starved = True
        else:
            self._cramped = None
            self._is_log_starved = False

    def maintain(self) -> bool:
        """Let the store do what it has put off, in turns of work and rest; tell whether there is
        more, after some time. Raises CorruptionError.

        A checkpoint is best begun when there is nothing: it does the rest under the lock.
        """
        until = perf_counter() + MAINTAIN_SECONDS
        while not self._stopping.is_set():
            with self._lock:
                if not self._may_work() or not self._store.maintain(SLICE):
                    return False
            if perf_counter() >= until:
                return True
            sleep(0.0 if self._is_late() else SLICE)
        return False

    def compact(self) -> bool:
        """Let the store merge, in turns of work and rest, for some time or until a checkpoint is
        due; tell whether there is more. Takes ``exclusive`` for each turn.

        Raises CorruptionError and DiskFailed.
        """
        until = perf_counter() + MAINTAIN_SECONDS
        while not self._stopping.is_set():
            with self.exclusive:
                if not self._may_work():
                    return False
                started = perf_counter()
                if not self._store.compact(SLICE):
                    return False
                now = perf_counter()
            if now >= until or self.is_due():
                return True
            sleep(SLICE if now - started >= SLICE / 2 else LOOK)
        return False

    def checkpoint(self, slice_seconds: float = SLICE) -> None:
        """Bring the state as of now to disk, then cut the log after it. Raises DiskFailed.

        Works and rests in turns of *slice_seconds* (0: without rest).
        """
        with self.exclusive:
            self._checkpoint(slice_seconds)

    def cut_positions(self) -> None:
        """Cut an arbiter's log, under the lock: it needs it for votes, and they need its end.

        On a full disk it is cut sooner, for the sake of the room.
        """
        elapsed = self._clock() - self._checkpointed_at
        if self._log.size_bytes - self._base_bytes < self._options.log_bytes and (
            self.shortage is None or elapsed < DISK_FULL_RETRY
        ):
            return
        self._checkpointed_at = self._clock()
        try:
            self._log.cut(self._store.meta)
        except DiskFull as error:
            if self._full is None:
                log.error("no room to cut the log, it gets longer: %s", error)
            self._full = error
        else:
            self._full = None
            self._base_bytes = self._log.size_bytes

    def installed(self, meta: SnapshotMeta) -> None:
        """The log begins after a snapshot now."""
        self._cuts = deque([meta])
        self._base_bytes = self._log.size_bytes

    def _checkpoint(self, slice_seconds: float) -> None:
        store, raft_log = self._store, self._log
        with self._lock:
            if store.is_amid:  # some moments later it isn't
                return
            is_new = store.applied_index > store.checkpointed_index
            self._checkpointed_at = self._clock()
            is_again = self._full is not None or self._starved is not None
            if not self._may_work() or not (is_new or is_again):
                return
            running = store.begin_checkpoint()
            logged = raft_log.size_bytes
        started = perf_counter()
        try:
            while not running.step(slice_seconds or 1.0):
                if slice_seconds and not self._stopping.is_set():
                    if not self._is_late():
                        sleep(slice_seconds)
                    self.prepare()
                    self._look_at_merging()
            running.finish()
            with self._lock:
                cut = raft_log.size_bytes
                self._cut(running.meta)
                cut -= raft_log.size_bytes
        except DiskFull as error:
            running.abort()
            if self._full is None:
                log.error("a checkpoint does not fit on the disk, writes are refused: %s", error)
            self._full = error
            return
        except Exhausted as error:
            running.abort()
            if self._starved is None:
                log.warning("a checkpoint has to wait and is tried again by itself: %s", error)
            self._starved = error
            return
        self._base_bytes = logged - cut
        if self._full is not None:
            log.info("there is room again, writes are accepted")
            self._full = None
        if self._starved is not None:
            log.info("a checkpoint could be made again")
            self._starved = None
        seconds = perf_counter() - started
        self._seconds.observe(seconds)
        log.debug("checkpoint at index %d in %.3f s", running.meta.index, seconds)

    def _look_at_merging(self) -> None:
        """Amid a checkpoint, let the store go on with what it merges now and then."""
        if perf_counter() >= self._look_at:
            self._store.compact(SLICE)
            self._look_at = perf_counter() + LOOK

    def _cut(self, checkpoint: SnapshotMeta) -> None:
        """Cut the log after a checkpoint, but keep what others will need of it.

        With others about, it is cut at the checkpoint before at most, and not before they have
        got there; unless the log grows too long over that.
        """
        cuts, limit = self._cuts, checkpoint.index
        needed = self._keep_from()
        if needed is not None and self._log.size_bytes < LOG_TAIL * self._options.log_bytes:
            limit = min(cuts[-1].index, needed)
        cuts.append(checkpoint)
        while len(cuts) > 1 and cuts[1].index <= limit:
            cuts.popleft()
        if cuts[0].index <= limit:
            self._log.cut(cuts[0])
