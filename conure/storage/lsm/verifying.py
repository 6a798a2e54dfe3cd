"""What the engine believes of a job's result: nothing that it has not read in the files.

A worker is our own code, but it may be of another time: killed and half done, its answer cut, mixed
up or stale, its files written over. So before a manifest names a table, :func:`prove` looks at

1. the names, which must be the job's own, each once;
2. each file: its size, footer and every byte by its checksum, and that its facts are those that
   were told;
3. the order: tables ascend and don't overlap, and hold no key beyond those that went in;
4. the balance: what was read is what went in, and each record of it came out, was superseded by a
   newer one or was a tombstone that hides nothing;
5. the references: to blob files that are there and stay, and to no more bytes than these can have;
   each one to a new file leads to a value of its key.

What fails is a :class:`~conure.errors.JobLost`: nobody uses these files, and the job may be done
again. Any one thread, without a lock.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

from conure.errors import CorruptionError, JobLost
from conure.fileio import FileSystem
from conure.storage.cells import SPILLED, reference_of
from conure.storage.lsm.blobs import BlobFile, file_of
from conure.storage.lsm.jobs import Feed, FlushJob, Job, JobResult, is_output
from conure.storage.lsm.tables import Table, TableFacts

__all__ = ["Proved", "prove"]


class Proved(NamedTuple):
    """The files of a result, open."""

    tables: list[Table]
    blobs: list[BlobFile]


def prove(
    fs: FileSystem,
    folder: str,
    job: Job,
    result: JobResult,
    feed: Feed | None = None,
    *,
    mapped: bool = True,
) -> Generator[None, None, Proved]:
    """Prove a result in slices of a few milliseconds and return its files, open.

    *feed* is what a flush was fed. Raises JobLost if anything is not as it should be, DiskFailed.
    """
    try:
        _prove_names(job, result)
        _prove_order(job, result, feed)
        _prove_balance(job, result, feed)
        _prove_references(job, result)
        proved = Proved([], [])
        for facts in result.tables:
            table = Table.open(fs, folder, facts, mapped=mapped)
            yield from table.prove_bytes()
            proved.tables.append(table)
        for blob_facts in result.blobs:
            blob = BlobFile.open(fs, folder, blob_facts, mapped=mapped)
            yield from blob.verify()
            proved.blobs.append(blob)
        files = {blob.facts.name: blob for blob in proved.blobs}
        for table in proved.tables:
            if any(name in files for name, _ in table.facts.blobs):
                yield from _prove_values(table, files)
    except (CorruptionError, FileNotFoundError, _Lie) as error:
        why = str(error)
        if isinstance(error, CorruptionError):  # the remedy is another one here
            why = f"{error.file}, byte {error.offset}: {error.why}"
        raise JobLost(f"the result of a flush or merge isn't what it should be: {why}") from error
    return proved


class _Lie(Exception):
    """Why a result can't be."""


def _prove_names(job: Job, result: JobResult) -> None:
    tables = [table.name for table in result.tables]
    blobs = [blob.name for blob in result.blobs]
    if len({*tables, *blobs}) < len(tables) + len(blobs):
        raise _Lie("it names a file twice")
    for names, ending in ((tables, ".sst"), (blobs, ".blob")):
        for name in names:
            if not is_output(name, job) or not name.endswith(ending):
                raise _Lie(f"{name!r} is not a name of its own")


def _prove_order(job: Job, result: JobResult, feed: Feed | None) -> None:
    before = b""
    for table in result.tables:
        if not before < table.first <= table.last:
            raise _Lie(f"{table.name} is out of order")
        before = table.last
    if not result.tables:
        return
    first, last = _keys_in(job, feed)
    if result.tables[0].first < first or before > last:
        raise _Lie("it has keys that did not go in")


def _keys_in(job: Job, feed: Feed | None) -> tuple[bytes, bytes]:
    if isinstance(job, FlushJob):
        assert feed is not None
        return feed.first, feed.last
    return min(run[0].first for run in job.inputs), max(run[-1].last for run in job.inputs)


def _prove_balance(job: Job, result: JobResult, feed: Feed | None) -> None:
    tables, _, read, superseded, dropped = result
    came_out = sum(table.records for table in tables)
    tombstones = sum(table.tombstones for table in tables)
    if min(read, superseded, dropped) < 0 or read != came_out + superseded + dropped:
        raise _Lie(
            f"it read {read} records, wrote {came_out}, and {superseded} were superseded and "
            f"{dropped} dropped"
        )
    if isinstance(job, FlushJob):
        assert feed is not None
        went_in, deleted = feed.records, feed.tombstones
        may_leave_out = 0
        if tombstones != deleted:
            raise _Lie(f"it wrote {tombstones} tombstones of {deleted}")
    else:
        went_in = sum(table.records for table in _inputs(job.inputs))
        deleted = sum(table.tombstones for table in _inputs(job.inputs))
        # A key is superseded once for each run but the newest that has it.
        largest = max(sum(table.records for table in run) for run in job.inputs)
        may_leave_out = went_in - largest
    if read != went_in:
        raise _Lie(f"it read {read} records of {went_in}")
    if superseded > may_leave_out or dropped + tombstones > deleted:
        raise _Lie(f"{superseded} were superseded and {dropped} dropped, which is too many")


def _prove_references(job: Job, result: JobResult) -> None:
    """Prove that blob files are referred to only as far as there is something."""
    may_have = {blob.name: blob.size for blob in result.blobs}
    if not isinstance(job, FlushJob):
        emptied = {blob.name for blob in job.emptied}
        for table in _inputs(job.inputs):
            for name, size in table.blobs:
                if name not in emptied:
                    may_have[name] = may_have.get(name, 0) + size
    for table in result.tables:
        for name, size in table.blobs:
            may_have[name] = may_have.get(name, 0) - size
            if may_have[name] < 0:
                raise _Lie(f"{table.name} refers to bytes of {name} that it can't know")


def _prove_values(table: Table, files: Mapping[str, BlobFile]) -> Iterator[None]:
    """Prove that each reference to a new file leads to a value of its key, block by block."""
    for keys, cells in table.groups(b"", None, False):
        for key, cell in zip(keys, cells, strict=True):
            if cell and cell[0] & SPILLED:
                ref = reference_of(cell)
                file = files.get(file_of(ref))
                if file is not None:
                    file.beginning(key, ref, 0)
        yield


def _inputs(runs: tuple[tuple[TableFacts, ...], ...]) -> Iterator[TableFacts]:
    for run in runs:
        yield from run
