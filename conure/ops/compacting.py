"""The records of a stopped node, written anew: what nothing needs any more is gone then.

All records are read in the order of their keys and loaded into an engine of the same kind beside
the one there is, at a place where the next start would take them for a state that was never
received completely, and remove them. When they are durable they are put in the other's place, in
one step. So a crash or an error at any moment leaves the records as they were, or all of them
written anew; what a crash has left beside them goes at the next start. The log isn't touched.

It takes as much room on the disk as the records need, until it ends. Memory stays bounded by a
batch, or by one large value, and what the engine keeps.

For the main thread of a process that holds the directory's lock, and in which no node runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

from conure.errors import CorruptionError
from conure.fileio import FileSystem
from conure.state.backup import Progress
from conure.storage.engine import EngineKind, EngineOptions, Reader, Record, StorageEngine

__all__ = ["Compacted", "compact"]

BATCH_BYTES: Final = 1 << 20
"""About how many bytes of records are loaded in one go."""

_DATABASE, _STAGED = "conure.db", "incoming-compact.db"
_RECORD_OVERHEAD = 38


class Compacted(NamedTuple):
    """How many bytes the files with the records had, and have; and how many records there are."""

    before: int
    after: int
    records: int


def compact(
    fs: FileSystem, directory: str, kind: EngineKind, options: EngineOptions, progress: Progress
) -> Compacted:
    """Write the records in a data directory anew, if that makes their files smaller.

    Raises CorruptionError for a fault in them, DiskFull and DiskFailed; they are as they were then.
    """
    database, staged = os.path.join(directory, _DATABASE), os.path.join(directory, _STAGED)
    try:
        engine = kind.open(fs, database, options, create=False)
    except FileNotFoundError:
        raise CorruptionError(database, 0, "the file is missing") from None
    with closing(engine):
        kind.remove(fs, staged)  # what a crash has left
        try:
            compacted = _write(fs, staged, kind, options, engine, progress)
        except BaseException:
            kind.remove(fs, staged)
            raise
    if compacted.after < compacted.before:
        kind.sync(fs, staged)
        kind.put_in_place(fs, staged, database)
    else:
        kind.remove(fs, staged)
        compacted = compacted._replace(after=compacted.before)
    return compacted


def _write(
    fs: FileSystem,
    staged: str,
    kind: EngineKind,
    options: EngineOptions,
    engine: StorageEngine,
    progress: Progress,
) -> Compacted:
    """Write all that *engine* holds into a new one, durably."""
    before = engine.stats().file_bytes
    with (
        closing(kind.open(fs, staged, options, create=True)) as new,
        closing(engine.snapshot()) as reader,
    ):
        loader = new.loader()
        try:
            loaded = 0
            for batch in _batches(reader):
                loader.add(batch)
                loaded += len(batch)
                progress("compacting", loaded, len(reader))
            records = loader.finish()
        except BaseException:
            loader.abort()
            raise
        new.checkpoint(engine.applied_index, engine.applied_term, engine.applied_digest)
        return Compacted(before, new.stats().file_bytes, records)


def _batches(reader: Reader) -> Iterator[list[tuple[bytes, Record]]]:
    batch: list[tuple[bytes, Record]] = []
    size = 0
    for key, record in reader.items():
        batch.append((key, record))
        size += len(key) + len(record.value) + _RECORD_OVERHEAD
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
