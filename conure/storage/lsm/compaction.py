"""Compaction: what is to be merged, merged a bit at a time, and put in its place.

``picking.py`` says what to merge next, a runner does it (``workers.py``), its result is proved
(``verifying.py``), and then a manifest names the outputs instead of the inputs; the engine swaps
its version, and the inputs are removed.

1. A worker that is lost or tells nonsense costs time alone: the merge is done again, the third time
   in this process.
2. A disk that is too full costs nothing but the merge: it is tried again after the next checkpoint,
   or after so many calls; there may be room by then. Likewise where descriptors or memory have run
   out, for which the merge is tried in this process first. Both are logged, once.
3. An input that is corrupt is a CorruptionError: no replica may go on with it.

For the thread that makes checkpoints, without the caller's lock; :meth:`Compaction.give_up` and
:meth:`Compaction.close` are for any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import Protocol

from conure.errors import DiskFull, Exhausted, JobLost
from conure.storage.lsm.blobs import BlobFile
from conure.storage.lsm.durable import Durable, outcome_within
from conure.storage.lsm.flushing import ATTEMPTS
from conure.storage.lsm.jobs import JobLimits, MergeJob
from conure.storage.lsm.picking import pick
from conure.storage.lsm.tables import Table
from conure.storage.lsm.verifying import Proved
from conure.storage.lsm.version import Version
from conure.storage.lsm.workers import Runner, Running

__all__ = ["Compaction", "Merges"]

_PAUSE = 50  # calls until a merge is tried again for which there was no room
_QUIET = 100  # calls, some seconds in a node, in which little was written: time to give space back
_LITTLE = 256 << 10  # bytes in memory

log = logging.getLogger("conure.lsm")


class Merges(Protocol):
    """What compaction asks of the engine. Any thread."""

    def mergeable(self) -> Version | None:
        """Return the present version; None if the durable one is another."""

    @property
    def unwritten_bytes(self) -> int:
        """It grows with what is written."""

    def merged(self, job: MergeJob, tables: Sequence[Table], blobs: Sequence[BlobFile]) -> None:
        """Put these new files in the place of the job's inputs, durably."""


class Compaction:
    """Merges one job after the other."""

    def __init__(
        self,
        engine: Merges,
        durable: Durable,
        runner: Callable[[int], Runner],
        limits: JobLimits,
    ) -> None:
        self._engine = engine
        self._durable = durable
        self._runner = runner
        self._limits = limits
        # Serials of versions: nothing is to be merged; only if idle; there was no room for it.
        self._settled = self._in_time = self._full = -1
        self._written = 0
        self._grown = 0  # bytes that were written since it was looked at afresh
        self._quiet = 0  # calls in a row in which that was little
        self._job: MergeJob | None = None
        self._attempts = 0
        self._running: Running | None = None
        self._proof: Generator[None, None, Proved] | None = None
        self._pause = 0
        self._is_starved = False  # room, descriptors or memory had run out, which was logged
        self._is_closed = False
        self._lock = threading.Lock()  # held while work is done

    def work(self, seconds: float) -> bool:
        """Merge for about *seconds*; tell whether there is more to do now.

        Raises CorruptionError and DiskFailed.
        """
        with self._lock:
            if self._is_closed:
                return False
            until = perf_counter() + seconds
            self._look_for_writes()
            while self._has_job():
                try:
                    if not self._went_on(max(0.0, until - perf_counter())):
                        return True
                except JobLost as error:
                    self._give_up()
                    if self._attempts >= ATTEMPTS:
                        raise
                    log.warning("%s; it is done again", error)
                except DiskFull as error:
                    self._starve(error)
                    return False
                except Exhausted as error:
                    if self._attempts >= ATTEMPTS:
                        self._starve(error)
                        return False
                    self._give_up()
                    self._attempts = ATTEMPTS - 1
                if perf_counter() >= until:
                    return True
            return self._may_be_idle_soon()

    def give_up(self) -> None:
        """Give up what is being merged."""
        with self._lock:
            self._give_up()
            self._job = None

    def close(self) -> None:
        """Give up what is being merged, and merge nothing any more."""
        with self._lock:
            self._is_closed = True
            self._give_up()

    # -- private, with the lock held -------------------------------------------------------------

    def _starve(self, error: DiskFull | Exhausted) -> None:
        """Give the merge up, to be tried again when there may be what it lacks, and say so if that
        is new."""
        if not self._is_starved:
            log.warning("merges have to wait and are tried again by themselves: %s", error)
        self._is_starved = True
        version = self._engine.mergeable()
        self._full = -1 if version is None else version.serial
        self._pause = _PAUSE
        self._give_up()
        self._job = None

    def _look_for_writes(self) -> None:
        """See whether this is an idle time: counted in calls, so that equal calls do equal work."""
        written = self._engine.unwritten_bytes
        self._grown += max(0, written - self._written)
        self._written = written
        self._quiet += 1
        if self._grown > _LITTLE:
            self._grown = self._quiet = 0
        elif not self._quiet % _QUIET:
            self._grown = 0

    def _may_be_idle_soon(self) -> bool:
        """Tell whether there might be something to merge if little is written until then."""
        version = self._engine.mergeable()
        if version is None or version.serial in (self._settled, self._full):
            return False
        return self._quiet < _QUIET

    def _has_job(self) -> bool:
        """Tell whether there is something to merge now."""
        if self._job is not None:
            return True
        version = self._engine.mergeable()
        if version is None or version.serial == self._settled:
            return False
        if version.serial == self._full and self._pause > 0:
            self._pause -= 1
            return False
        return self._has_picked(version)

    def _has_picked(self, version: Version) -> bool:
        """Pick a job, one to give space back only if nothing is being written."""
        durable, limits = self._durable, self._limits
        self._attempts = 0
        if version.serial != self._in_time:
            self._job = pick(version, limits, durable.stem, durable.next_number(), idle=False)
            if self._job is None:
                self._in_time = version.serial
        if self._job is None and self._quiet >= _QUIET:
            self._job = pick(version, limits, durable.stem, durable.next_number(), idle=True)
            if self._job is None:
                self._settled = version.serial
        return self._job is not None

    def _went_on(self, seconds: float) -> bool:
        """Take the job a bit further; tell whether there may be time for more."""
        assert self._job is not None
        if self._running is None:
            self._attempts += 1
            if self._attempts > 1:
                self._job = self._job._replace(number=self._durable.next_number())
            self._running = self._runner(self._attempts).start(self._job)
        if self._proof is None:
            if not self._running.step(0.0 if self._running.is_remote else seconds):
                return False
            self._proof = self._durable.proof(self._running)
            return True
        proved = outcome_within(self._proof, seconds)
        if proved is not None:
            self._install(self._job, *proved)
        return proved is not None

    def _install(self, job: MergeJob, tables: Sequence[Table], blobs: Sequence[BlobFile]) -> None:
        # If the disk fails, nobody knows whether the manifest names the new files: they stay.
        running, self._running, self._proof = self._running, None, None
        try:
            self._engine.merged(job, tables, blobs)
        except (DiskFull, Exhausted):
            self._running = running
            raise
        self._job = None
        if self._is_starved:
            log.info("merges go on")
            self._is_starved = False

    def _give_up(self) -> None:
        running, self._running, self._proof = self._running, None, None
        if running is not None:
            running.abort()
