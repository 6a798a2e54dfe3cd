"""What a flush and a merge do: the one implementation, run by a worker process or in slices.

A flush writes sorted items into new tables, long values apart into blob files. A merge reads runs
of tables and writes one run in their stead: of each key the record of the newest run. Both are
generators that yield every few milliseconds and return a :class:`JobResult`.

1. No input is ever changed or removed, and nothing but new files is written, with names that no
   other job may use: ``STEM-NUMBER.sst`` and ``STEM-NUMBER.blob``, NUMBER from the job's first on.
2. All or nothing: an error that ends a job removes its files. A generator that is closed early only
   lets go of them, since nobody may be there to hear of a disk that fails; these files, and those
   that a killed process leaves behind, are for :func:`discard`.
3. On return all outputs are synced, and then their folder: a manifest may name them.
4. A tombstone is dropped only where nothing older than the inputs can hold its key.
5. Memory is bounded by the number of runs, whatever the size of the tables: about 128 KiB of items
   a run, and what writers keep for their indexes.

Nothing here decides what is to be merged (``picking.py``) or believes a result (``verifying.py``).
A generator belongs to one thread; the file system is all that jobs share.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from conure.errors import CorruptionError, DiskFailed, Exhausted, StorageError
from conure.fileio import FileSystem
from conure.storage.cells import SPILLED, make_cell, open_cell, reference_of
from conure.storage.engine import Record
from conure.storage.lsm.blobs import BlobFacts, BlobFile, BlobWriter, file_of
from conure.storage.lsm.tables import TOMBSTONE, Table, TableFacts
from conure.storage.lsm.tablewriter import TableWriter

__all__ = [
    "FILES_PER_JOB",
    "Chunk",
    "Feed",
    "FlushJob",
    "Job",
    "JobLimits",
    "JobResult",
    "MergeJob",
    "Outputs",
    "discard",
    "flush",
    "is_output",
    "merge",
    "pieces",
    "remove_output",
    "work",
]

FILES_PER_JOB = 1_000_000
"""How far apart the first numbers of two jobs with the same stem have to be."""

_SLICE_RECORDS = 1000  # after about so many records a job yields: 2 to 3 ms
_SLICE_BYTES = 1 << 20
_CHUNK_RECORDS = 512  # of a run that are held to be merged
_CHUNK_BYTES = 128 << 10
_CHUNK_SHARE = 16  # of a table: small tables are cut where they should be, too

Chunk = tuple[Sequence[bytes], Sequence[bytes]]
"""Keys, ascending, and their cells."""


class JobLimits(NamedTuple):
    """Sizes in bytes: a table and a blob file end soon after theirs; key and value that take
    more than *long_value* together are kept apart, in a blob file."""

    table_bytes: int
    blob_bytes: int
    long_value: int


class FlushJob(NamedTuple):
    """Write sorted items as tables that don't overlap. *stem* and *number* name the outputs."""

    stem: str
    number: int
    limits: JobLimits


class MergeJob(NamedTuple):
    """Merge *inputs*, runs of disjoint tables in order, the newest run first, for *level*.

    *older* are ranges of keys, from first to last inclusive, sorted and disjoint: a tombstone
    outside of them is dropped. Values in the blob files *emptied* are written anew.
    """

    stem: str
    number: int
    limits: JobLimits
    inputs: tuple[tuple[TableFacts, ...], ...]
    level: int
    older: tuple[tuple[bytes, bytes], ...] = ()
    emptied: tuple[BlobFacts, ...] = ()


Job = FlushJob | MergeJob


class JobResult(NamedTuple):
    """What a job has written, and its balance in records:
    ``read == sum(table.records for table in tables) + superseded + dropped``."""

    tables: tuple[TableFacts, ...]
    blobs: tuple[BlobFacts, ...]
    read: int
    superseded: int
    dropped: int


class Feed:
    """Chunks on their way into a flush, counted: what its result has to add up to."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.records = 0
        self.tombstones = 0
        self.first = b""
        self.last = b""
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        keys, cells = chunk = next(self._chunks)
        assert len(keys) == len(cells)
        if keys:
            if not self.records:
                self.first = keys[0]
            self.last = keys[-1]
            self.records += len(keys)
            self.tombstones += cells.count(TOMBSTONE)
        return chunk


def work(
    fs: FileSystem, folder: str, job: Job, chunks: Iterable[Chunk] = ()
) -> Generator[None, None, JobResult]:
    """Return the generator of a job of either sort."""
    return flush(fs, folder, job, chunks) if isinstance(job, FlushJob) else merge(fs, folder, job)


def flush(
    fs: FileSystem, folder: str, job: FlushJob, chunks: Iterable[Chunk]
) -> Generator[None, None, JobResult]:
    """Write *chunks*, whose keys ascend over all of them, with their values inline.

    Raises DiskFull and DiskFailed; ValueError if keys don't ascend.
    """
    out = Outputs(fs, folder, job)
    read = 0
    try:
        for keys, cells in chunks:
            read += len(keys)
            yield from _flushed(out, keys, cells)
            del keys, cells  # or long values would be held until the next chunk has come
        return (yield from out.finish(read, 0, 0))
    except GeneratorExit:
        out.close()
        raise
    except BaseException:
        out.abort()
        raise


def _flushed(out: Outputs, keys: Sequence[bytes], cells: Sequence[bytes]) -> Iterator[None]:
    for piece in pieces(keys, cells):
        yield from out.add(piece[0], out.without_long_values(*piece))
        yield


def merge(fs: FileSystem, folder: str, job: MergeJob) -> Generator[None, None, JobResult]:
    """Merge the inputs, in slices. Raises DiskFull, DiskFailed and CorruptionError."""
    # Records are copied as they are, unless some of them may have to go or to change.
    tables = [table for run in job.inputs for table in run]
    has_tombstones = any(table.tombstones for table in tables)
    copies = not has_tombstones and not any(table.blobs for table in tables)
    out = Outputs(fs, folder, job, copies=copies)
    chunk_bytes = min(_CHUNK_BYTES, job.limits.table_bytes // _CHUNK_SHARE)
    runs = [_Run(_groups(fs, folder, run, copies), chunk_bytes) for run in job.inputs[::-1]]
    read = superseded = dropped = 0
    unyielded = 0
    try:
        emptied = _Emptied(fs, folder, job.emptied) if job.emptied else None
        older = _Ranges(job.older)
        while True:
            for run in runs:
                unyielded += run.fill()
                if unyielded >= _SLICE_RECORDS:
                    unyielded = 0
                    yield
            runs = [run for run in runs if run.keys]
            if not runs:
                break
            bound = min(run.keys[-1] for run in runs)
            parts = [part for run in runs if (part := run.take(bound))[0]]
            taken = sum(len(part[0]) for part in parts)
            keys, cells = parts[0] if len(parts) == 1 else _merged(parts)
            read += taken
            superseded += taken - len(keys)
            if has_tombstones and TOMBSTONE in cells:
                before = len(keys)
                keys, cells = older.without_needless(keys, cells)
                dropped += before - len(keys)
            for piece in pieces(keys, cells):
                live = piece[1] if emptied is None else emptied.moved(*piece, out)
                yield from out.add(piece[0], live)
                unyielded += len(piece[0])
                if unyielded >= _SLICE_RECORDS:
                    unyielded = 0
                    yield
        return (yield from out.finish(read, superseded, dropped))
    except GeneratorExit:
        out.close()
        raise
    except BaseException:
        out.abort()
        raise


def pieces(keys: Sequence[bytes], cells: Sequence[bytes]) -> Iterator[Chunk]:
    """Cut a chunk into what one slice may write, or one frame may hold."""
    if len(keys) <= _SLICE_RECORDS and sum(map(len, cells)) <= _SLICE_BYTES:
        if keys:
            yield keys, cells
        return
    start = size = 0
    for at, cell in enumerate(cells):
        size += len(cell)
        if at - start >= _SLICE_RECORDS or size > _SLICE_BYTES:
            if at > start:
                yield keys[start:at], cells[start:at]
            start, size = at, len(cell)
    yield keys[start:], cells[start:]


def is_output(name: str, job: Job) -> bool:
    """Tell whether a file of that name can be an output of *job*."""
    stem, _, rest = name.rpartition("-")
    number, _, kind = rest.partition(".")
    return (
        stem == job.stem
        and kind in ("sst", "blob")
        and number.isascii()
        and number.isdigit()
        and str(int(number)) == number
        and job.number <= int(number) < job.number + FILES_PER_JOB
    )


def discard(fs: FileSystem, folder: str, job: Job) -> None:
    """Remove all outputs of a job that is over, and of which nothing is used. Raises DiskFailed.

    Without a descriptor to look for them they stay until the next start.
    """
    try:
        names = fs.list(folder)
    except (FileNotFoundError, Exhausted):
        return
    for name in names:
        if is_output(name, job):
            remove_output(fs, f"{folder}/{name}")


def remove_output(fs: FileSystem, path: str) -> None:
    """Remove a file that a job has made, unless its process is faster: one whose job fails removes
    its own, also when its node was killed or has given the job up. Raises DiskFailed."""
    try:
        fs.remove(path)
    except DiskFailed:
        if fs.exists(path):
            raise


# -- what goes in --------------------------------------------------------------------------------


class _Run:
    """One input of a merge: tables one after the other, of which a chunk is held."""

    def __init__(self, groups: Iterator[Chunk], chunk_bytes: int) -> None:
        self.keys: list[bytes] = []
        self._cells: list[bytes] = []
        self._chunk_bytes = chunk_bytes
        self._groups = groups

    def fill(self) -> int:
        """Hold something, if there is anything left; return how many records were read."""
        if self.keys:
            return 0
        keys, cells, size = self.keys, self._cells, 0
        for more_keys, more_cells in self._groups:
            keys += more_keys
            cells += more_cells
            size += sum(map(len, more_keys)) + sum(map(len, more_cells))
            if len(keys) >= _CHUNK_RECORDS or size >= self._chunk_bytes:
                break
        return len(keys)

    def take(self, bound: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return what is held up to and including *bound*, and hold it no longer."""
        keys, cells = self.keys, self._cells
        count = len(keys) if keys[-1] <= bound else bisect_right(keys, bound)
        self.keys, self._cells = keys[count:], cells[count:]
        return keys[:count], cells[:count]


def _groups(
    fs: FileSystem, folder: str, tables: Sequence[TableFacts], copies: bool
) -> Iterator[Chunk]:
    for facts in tables:  # not mapped: what was read of a map would count as the worker's memory
        try:
            table = Table.open(fs, folder, facts, mapped=False)
        except FileNotFoundError as error:
            raise CorruptionError(f"{folder}/{facts.name}", 0, "the file is missing") from error
        yield from table.laid() if copies else table.groups(b"", None, False)


def _merged(parts: Sequence[Chunk]) -> tuple[list[bytes], list[bytes]]:
    """Merge chunks, the oldest first: a dict keeps the newest cell, a sort finds the runs."""
    newest: dict[bytes, bytes] = {}
    for keys, cells in parts:
        newest.update(zip(keys, cells, strict=True))
    order = sorted(newest)
    return order, list(map(newest.__getitem__, order))


def _spilled(record: Record, reference: bytes) -> bytes:
    """Return the cell of a record that ends with a reference to its value."""
    return make_cell(reference, *record[1:], spilled=True)


class _Ranges:
    """Where something older than the inputs may be: inclusive ranges, sorted and disjoint."""

    def __init__(self, ranges: Sequence[tuple[bytes, bytes]]) -> None:
        self._firsts = [first for first, _ in ranges]
        self._lasts = [last for _, last in ranges]

    def without_needless(
        self, keys: Sequence[bytes], cells: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        """Return a chunk without the tombstones that hide nothing."""
        firsts, lasts = self._firsts, self._lasts
        if not firsts:
            kept = [at for at, cell in enumerate(cells) if cell]
        else:
            kept = []
            for at, cell in enumerate(cells):
                if not cell:
                    after = bisect_left(lasts, keys[at])
                    if after == len(lasts) or keys[at] < firsts[after]:
                        continue
                kept.append(at)
        return [keys[at] for at in kept], [cells[at] for at in kept]


class _Emptied:
    """Blob files whose values move into new ones."""

    def __init__(self, fs: FileSystem, folder: str, files: Sequence[BlobFacts]) -> None:
        self._files: dict[str, BlobFile] = {}
        for facts in files:
            try:
                self._files[facts.name] = BlobFile.open(fs, folder, facts, mapped=False)
            except FileNotFoundError as error:
                raise CorruptionError(f"{folder}/{facts.name}", 0, "the file is missing") from error

    def moved(self, keys: Sequence[bytes], cells: Sequence[bytes], out: Outputs) -> list[bytes]:
        """Return cells none of which refers to one of the files."""
        moved = list(cells)
        for at, cell in enumerate(cells):
            if cell and cell[0] & SPILLED:
                found = reference_of(cell)
                file = self._files.get(file_of(found))
                if file is not None:
                    reference = out.write_value(keys[at], file.read(keys[at], found))
                    moved[at] = _spilled(open_cell(cell)[0], reference)
        return moved


# -- what comes out ------------------------------------------------------------------------------


class Outputs:
    """The tables and blob files of one job, made one after the other: all of them or none."""

    def __init__(self, fs: FileSystem, folder: str, job: Job, *, copies: bool = False) -> None:
        self._copies = copies  # (tablewriter.TableWriter)
        self._fs = fs
        self._folder = folder
        self._stem = job.stem
        self._number = job.number
        self._end = job.number + FILES_PER_JOB
        self._limits = job.limits
        self._table: TableWriter | None = None
        self._blob: BlobWriter | None = None
        self._writers: list[TableWriter | BlobWriter] = []
        self._tables: list[TableFacts] = []
        self._blobs: list[BlobFacts] = []

    def add(self, keys: Sequence[bytes], cells: Sequence[bytes]) -> Iterator[None]:
        """Write a chunk; slices of a table that ends by it."""
        if not keys:
            return
        if self._table is None:
            name = self._name("sst")
            self._table = TableWriter(self._fs, self._folder, name, copies=self._copies)
            self._writers.append(self._table)
        self._table.add(keys, cells)
        if self._table.size >= self._limits.table_bytes:
            yield from self._end_table()

    def without_long_values(self, keys: Sequence[bytes], cells: Sequence[bytes]) -> Sequence[bytes]:
        """Return cells of which those with long values refer to a blob file instead."""
        limit = self._limits.long_value
        if max(map(len, keys)) + max(map(len, cells)) <= limit:
            return cells
        apart = list(cells)
        for at, cell in enumerate(cells):
            if len(keys[at]) + len(cell) > limit:
                record, _ = open_cell(cell)
                if len(keys[at]) + len(record.value) > limit:
                    apart[at] = _spilled(record, self.write_value(keys[at], record.value))
        return apart

    def write_value(self, key: bytes, value: bytes) -> bytes:
        """Write a value into a blob file and return the reference to it."""
        if self._blob is None:
            self._blob = BlobWriter(self._fs, self._folder, self._name("blob"))
            self._writers.append(self._blob)
        found = self._blob.add(key, value)
        if self._blob.size >= self._limits.blob_bytes:
            self._end_blob()
        return found

    def finish(self, read: int, superseded: int, dropped: int) -> Generator[None, None, JobResult]:
        """End and sync everything, the folder last."""
        yield
        self._end_blob()
        yield
        yield from self._end_table()
        if self._writers:
            self._fs.sync_directory(self._folder)
        return JobResult(tuple(self._tables), tuple(self._blobs), read, superseded, dropped)

    def close(self) -> None:
        """Let go of all that was made, and leave it."""
        for writer in self._writers:
            writer.close()

    def abort(self) -> None:
        """Remove all that was made. A file that can't be removed is garbage, found by the next
        start; the reason to abort is what counts."""
        for writer in self._writers:
            with contextlib.suppress(StorageError):
                writer.abort()

    def _end_table(self) -> Iterator[None]:
        table, self._table = self._table, None
        if table is not None:
            yield from table.finish()
            self._tables.append(table.facts)

    def _end_blob(self) -> None:
        blob, self._blob = self._blob, None
        if blob is not None:
            blob.finish()
            self._blobs.append(blob.facts)

    def _name(self, kind: str) -> str:
        assert self._number < self._end, "a job ran out of file numbers"
        name = f"{self._stem}-{self._number}.{kind}"
        self._number += 1
        return name
