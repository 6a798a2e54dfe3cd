"""What tests of jobs share: runs of tables made of dicts, and jobs driven to their end."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TypeVar

from conure.fileio import FileSystem
from conure.storage.cells import SPILLED, make_cell, open_cell, reference_of
from conure.storage.lsm.blobs import BlobFacts, BlobFile, file_of
from conure.storage.lsm.jobs import (
    FILES_PER_JOB,
    Chunk,
    Feed,
    FlushJob,
    JobLimits,
    JobResult,
    MergeJob,
    flush,
)
from conure.storage.lsm.tables import Table, TableFacts
from conure.storage.lsm.workers import Running

FOLDER = "/lsm"
STEM = "conure.db-0123456789abcdef"
LIMITS = JobLimits(table_bytes=2048, blob_bytes=4096, long_value=200)

_numbers = count(1)
_T = TypeVar("_T")


def number() -> int:
    """Return a first number that no other job of this process has."""
    return next(_numbers) * FILES_PER_JOB


def cell(value: bytes, version: int = 1) -> bytes:
    """Return the cell of a record."""
    return make_cell(value, 5, 9, version, 0, spilled=False)


def end(job: Generator[None, None, _T]) -> _T:
    """Run a job to its end."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            found: _T = stop.value
            return found


def drive(running: Running, seconds: float = 0.05) -> JobResult:
    """Step a job until it is over."""
    while not running.step(seconds):
        pass
    return running.result()


def chunks(items: Mapping[bytes, bytes], size: int = 7) -> Iterator[Chunk]:
    """Yield sorted items a few at a time."""
    keys = sorted(items)
    for at in range(0, len(keys), size):
        part = keys[at : at + size]
        yield part, [items[key] for key in part]


def flushed(
    fs: FileSystem,
    items: Mapping[bytes, bytes],
    *,
    folder: str = FOLDER,
    limits: JobLimits = LIMITS,
) -> JobResult:
    """Write cells as a run of tables."""
    return end(flush(fs, folder, FlushJob(STEM, number(), limits), chunks(items)))


def fed(items: Mapping[bytes, bytes]) -> Feed:
    """Return the feed of a flush that has taken all of *items*."""
    feed = Feed(chunks(items))
    for _ in feed:
        pass
    return feed


def merge_of(
    runs: Iterable[Sequence[TableFacts]],
    *,
    older: tuple[tuple[bytes, bytes], ...] = (),
    emptied: tuple[BlobFacts, ...] = (),
    limits: JobLimits = LIMITS,
) -> MergeJob:
    """Return the job that merges runs, the newest first."""
    inputs = tuple(tuple(run) for run in runs if run)
    return MergeJob(STEM, number(), limits, inputs, 4, older, emptied)


def content(
    fs: FileSystem,
    tables: Iterable[TableFacts],
    blobs: Iterable[BlobFacts] = (),
    folder: str = FOLDER,
) -> dict[bytes, bytes]:
    """Read a run back: cells with their values in them."""
    files = {blob.name: BlobFile.open(fs, folder, blob) for blob in blobs}
    found: dict[bytes, bytes] = {}
    for facts in tables:
        for keys, cells in Table.open(fs, folder, facts).groups(b"", None, False):
            for key, each in zip(keys, cells, strict=True):
                found[key] = each
                if each and each[0] & SPILLED:
                    ref = reference_of(each)
                    _, create, mod, version, expiry = open_cell(each)[0]
                    value = files[file_of(ref)].read(key, ref)
                    found[key] = make_cell(value, create, mod, version, expiry, spilled=False)
    return found


def names(fs: FileSystem, folder: str = FOLDER) -> set[str]:
    """Return the names of the files there are."""
    return set(fs.list(folder))
