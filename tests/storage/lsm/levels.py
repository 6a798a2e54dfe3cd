"""A store of levels with nothing but keys and sizes: what ``picking.pick`` makes of its histories.

Keys are numbers; a table is a set of them, some deleted, some with a value in a blob file. Merges
are carried out on sets, and each is held to what a job has to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, pairwise

from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import JobLimits, MergeJob
from conure.storage.lsm.picking import INPUTS, LAST_LEVEL, MOST_INPUTS, pick
from conure.storage.lsm.tables import TableFacts

RECORD = 145  # bytes in a table of one with 16 + 100 bytes

_numbers = count(1)


@dataclass(slots=True)
class SimTable:
    """Keys and what is said of each: 0 deleted, 1 a short value, or the name of a blob file."""

    facts: TableFacts
    records: dict[int, int | str]


@dataclass(slots=True)
class SimBlob:
    facts: BlobFacts


def name_of(key: int) -> bytes:
    return b"%012d" % key


@dataclass
class Store:
    """Levels, blob files, and what has been written of them. A long value has *value* bytes."""

    limits: JobLimits
    value: int = 5000
    levels: list[list[SimTable]] = field(default_factory=lambda: [[]])
    blobs: dict[str, SimBlob] = field(default_factory=dict)
    live_bytes: dict[str, int] = field(default_factory=dict)
    flushed: int = 0
    written: int = 0
    jobs: int = 0
    most_bytes: int = 0

    # -- writes ----------------------------------------------------------------------------------

    def flush(self, items: Mapping[int, int]) -> None:
        """Write what was put (1 short, 2 long) or deleted (0)."""
        blob = f"b{next(_numbers)}"
        long = [key for key, each in items.items() if each == 2]
        if long:
            self.blobs[blob] = SimBlob(BlobFacts(blob, self.value * len(long)))
        records = {key: blob if each == 2 else each for key, each in items.items()}
        table = self._table(records)
        self.flushed += table.facts.size
        self.written += table.facts.size
        self.levels[0].insert(0, table)
        self._forget()

    def run(self, *, idle: bool = False, most: int = 10_000) -> int:
        """Do merges until there is none to do, or that many; return how many were done."""
        for done in range(most):
            job = pick(self, self.limits, "s", 0, idle=idle)
            if job is None:
                return done
            self.carry_out(job)
        assert most < 10_000, "merging doesn't end"
        return most

    # -- what there is ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return sum(table.facts.size for level in self.levels for table in level)

    @property
    def blob_size(self) -> int:
        return sum(blob.facts.size for blob in self.blobs.values())

    @property
    def runs(self) -> int:
        return len(self.levels[0]) + sum(1 for level in self.levels[1:] if level)

    def content(self) -> set[int]:
        """Return the keys that are there."""
        found: dict[int, int | str] = {}
        for level in reversed(self.levels):
            for table in reversed(level):
                found |= table.records
        return {key for key, each in found.items() if each}

    # -- a merge ---------------------------------------------------------------------------------

    def carry_out(self, job: MergeJob) -> None:
        """Do a merge, after proving that it may be done."""
        inputs = {table.name for run in job.inputs for table in run}
        self._prove(job, inputs)
        by_name = {table.facts.name: table for level in self.levels for table in level}
        merged: dict[int, int | str] = {}
        for run in reversed(job.inputs):
            for facts in run:
                merged |= by_name[facts.name].records
        kept = {
            key: each
            for key, each in merged.items()
            if each or any(first <= name_of(key) <= last for first, last in job.older)
        }
        self._move_values(job, kept)
        before = self.content()
        self.levels = [
            [table for table in level if table.facts.name not in inputs] for level in self.levels
        ]
        while len(self.levels) <= job.level:
            self.levels.append([])
        new = list(self._cut(kept, job.limits.table_bytes))
        self.written += sum(table.facts.size for table in new)
        level = self.levels[job.level]
        level += new
        level.sort(key=lambda table: table.facts.first)
        for one, other in pairwise(level):
            assert one.facts.last < other.facts.first
        if self.jobs < 300 or self.jobs % 50 == 0:  # in a large store it is what takes the time
            assert self.content() == before
        self.jobs += 1
        self.most_bytes = max(
            self.most_bytes, sum(table.size for run in job.inputs for table in run)
        )
        self._forget()

    def _prove(self, job: MergeJob, inputs: set[str]) -> None:
        assert 0 < len(inputs) <= MOST_INPUTS
        size = sum(table.size for run in job.inputs for table in run)
        assert size <= (INPUTS + 4) * job.limits.table_bytes or len(inputs) <= INPUTS + 4
        assert len(inputs) == sum(map(len, job.inputs))
        assert 1 <= job.level <= LAST_LEVEL
        assert all(job.inputs)
        taken = [t.facts.name in inputs for t in self.levels[0]]
        assert taken == sorted(taken), "what is older in level 0 would come out newer"
        assert all(blob.name in self.blobs for blob in job.emptied)
        # Nothing between the inputs and where they go may have the same keys.
        first = min(table.first for run in job.inputs for table in run)
        last = max(table.last for run in job.inputs for table in run)
        depths = [
            depth
            for depth, level in enumerate(self.levels)
            if any(table.facts.name in inputs for table in level)
        ]
        for depth in range(max(1, min(depths) + 1), min(job.level, len(self.levels) - 1) + 1):
            for table in self.levels[depth]:
                apart = table.facts.last < first or table.facts.first > last
                assert apart or table.facts.name in inputs

    def _move_values(self, job: MergeJob, kept: dict[int, int | str]) -> None:
        emptied = {blob.name for blob in job.emptied}
        moved = [key for key, each in kept.items() if each in emptied]
        if moved:
            blob = f"b{next(_numbers)}"
            self.blobs[blob] = SimBlob(BlobFacts(blob, self.value * len(moved)))
            kept.update(dict.fromkeys(moved, blob))

    def _cut(self, records: dict[int, int | str], table_bytes: int) -> Iterable[SimTable]:
        keys = sorted(records)
        step = max(1, table_bytes // RECORD)
        for at in range(0, len(keys), step):
            yield self._table({key: records[key] for key in keys[at : at + step]})

    def _table(self, records: dict[int, int | str]) -> SimTable:
        blobs: dict[str, int] = {}
        for each in records.values():
            if isinstance(each, str):
                blobs[each] = blobs.get(each, 0) + self.value
        tombstones = sum(1 for each in records.values() if each == 0)
        facts = TableFacts(
            f"t{next(_numbers)}",
            RECORD * len(records) - 100 * tombstones,
            0,
            len(records),
            tombstones,
            name_of(min(records)),
            name_of(max(records)),
            tuple(sorted(blobs.items())),
        )
        return SimTable(facts, records)

    def _forget(self) -> None:
        """Drop blob files that nothing refers to, and count what is referred to of the others."""
        live: dict[str, int] = {}
        for level in self.levels:
            for table in level:
                for name, size in table.facts.blobs:
                    live[name] = live.get(name, 0) + size
        self.blobs = {name: blob for name, blob in self.blobs.items() if name in live}
        self.live_bytes = live
