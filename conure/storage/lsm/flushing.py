"""A checkpoint: frozen memtables written as tables of level 0, and then named by the manifest.

The engine freezes its memtable in a moment, under the caller's lock; all that takes time is done
here, beside further writes. If it is given up, the frozen memtables stay where they are, between
the memtable and the files, and the next checkpoint writes them too. There may be several then; when
they get many they are joined, so that looking a key up stays cheap.

A worker that is lost costs time alone: the flush is done again, the third time in this process.
Where descriptors or memory have run out it is tried in this process at once, and given up then: the
next checkpoint writes it.

Any one thread may use a :class:`Checkpoint`, without the caller's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import Protocol

from conure.errors import DiskFull, Exhausted, JobLost
from conure.storage.lsm.blobs import BlobFile
from conure.storage.lsm.durable import Durable, outcome_within
from conure.storage.lsm.jobs import FlushJob, JobLimits
from conure.storage.lsm.marks import Mark
from conure.storage.lsm.memtable import Memtable
from conure.storage.lsm.merging import Group, live, merged
from conure.storage.lsm.tables import Table
from conure.storage.lsm.verifying import Proved
from conure.storage.lsm.workers import Runner, Running

__all__ = ["ATTEMPTS", "Checkpoint", "Flushes"]

ATTEMPTS = 3
"""The attempt at a job that is made in this process, whatever became of the ones before."""

_MOST_FROZEN = 4
_JOINED_AT_ONCE = 500  # records

log = logging.getLogger("conure.lsm")


class Flushes(Protocol):
    """What a checkpoint asks of the engine. Any thread."""

    def joined(self, memtable: Memtable) -> None:
        """Put *memtable* in the place of all frozen ones, of which it is the sum."""

    def flushed(
        self,
        checkpoint: Checkpoint,
        tables: Sequence[Table],
        blobs: Sequence[BlobFile],
    ) -> None:
        """Make it durable, with these new files, and the frozen memtables superfluous."""

    def ended(self) -> None:
        """Let the next checkpoint begin."""


class Checkpoint:
    """A frozen state on its way to the disk (engine.Checkpoint).

    *frozen* are the memtables, the newest first; *applied*, *records* and *marks* describe the
    state. Without *older* files its tombstones hide nothing.
    """

    def __init__(
        self,
        engine: Flushes,
        durable: Durable,
        runner: Callable[[int], Runner],
        limits: JobLimits,
        frozen: tuple[Memtable, ...],
        *,
        applied: tuple[int, int, int],
        records: int,
        marks: tuple[Mark, ...],
        older: bool,
    ) -> None:
        self.applied = applied
        self.records = records
        self.marks = marks
        self._engine = engine
        self._durable = durable
        self._runner = runner
        self._limits = limits
        self._frozen = frozen
        self._older = older
        self._joining = self._join() if len(frozen) > _MOST_FROZEN else iter(())
        self._attempts = 0
        self._running: Running | None = None
        self._proof: Generator[None, None, Proved] | None = None
        self._proved = Proved([], [])
        self._is_written = not frozen
        self._is_over = False

    def step(self, seconds: float) -> bool:
        """Write for about that long; return whether all is written.

        Raises DiskFull, Exhausted and DiskFailed.
        """
        until = perf_counter() + seconds
        for memtable in self._frozen:
            memtable.settle()
        for _ in self._joining:
            if perf_counter() >= until:
                return False
        while not self._is_written:
            try:
                if not self._went_on(max(0.0, until - perf_counter())):
                    return False
            except JobLost as error:
                self._give_up()
                if self._attempts >= ATTEMPTS:
                    raise
                log.warning("%s; it is done again", error)
            except Exhausted:
                self._give_up()
                if self._attempts >= ATTEMPTS:
                    raise
                self._attempts = ATTEMPTS - 1  # this process may have what a worker lacks
            if perf_counter() >= until:
                break
        return self._is_written

    def finish(self) -> None:
        """Make the checkpoint durable (S2). Raises DiskFull or Exhausted, then :meth:`abort` is
        due, and DiskFailed."""
        assert self._is_written, "records are missing"
        # If the disk fails, nobody knows whether the manifest names the new files: they stay.
        running, self._running = self._running, None
        try:
            self._engine.flushed(self, *self._proved)
        except (DiskFull, Exhausted):
            self._running = running
            raise
        self._end()

    def abort(self) -> None:
        """Give the checkpoint up, unless it is over. The last one stays the durable state."""
        if self._is_over:
            return
        try:
            self._give_up()
        finally:
            self._end()

    # -- private ---------------------------------------------------------------------------------

    def _went_on(self, seconds: float) -> bool:
        """Take the job a bit further; tell whether that was all for now and there may be time."""
        if self._running is None:
            self._attempts += 1
            job = FlushJob(self._durable.stem, self._durable.next_number(), self._limits)
            self._running = self._runner(self._attempts).start(job, self._chunks())
        if self._proof is None:
            if not self._running.step(seconds):
                return False
            self._proof = self._durable.proof(self._running)
            return True
        proved = outcome_within(self._proof, seconds)
        if proved is not None:
            self._proved = proved
            self._is_written = True
        return proved is not None

    def _chunks(self) -> Iterator[Group]:
        """Iterate over all records of the frozen memtables."""
        sources = [memtable.groups(b"", None, reverse=False) for memtable in self._frozen]
        for group in merged(sources):
            chunk = group if self._older else live(group)
            if chunk[0]:
                yield chunk

    def _join(self) -> Iterator[None]:
        """Put all frozen memtables into one."""
        one = Memtable()
        count = 0
        for memtable in reversed(self._frozen):
            for key, cell in memtable.cells.items():
                one.put(key, cell, one.cells.get(key))
                count += 1
                if not count % _JOINED_AT_ONCE:
                    yield
        self._engine.joined(one)
        self._frozen = (one,)

    def _give_up(self) -> None:
        running, self._running, self._proof = self._running, None, None
        if running is not None:
            running.abort()

    def _end(self) -> None:
        self._is_over = True
        self._engine.ended()
