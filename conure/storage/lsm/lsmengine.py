"""The LSM engine: a memtable over immutable tables, with the Raft log as its write-ahead log.

``memtable.py`` keeps what is new, ``version.py`` what is on disk, ``state.py`` reads both as one.

1. A write changes the memtable and nothing else. A checkpoint freezes the memtable, writes it as a
   table of level 0, and lets the manifest name it (``flushing.py``); what came after the last
   checkpoint is lost in a crash, and the log has it (S2).
2. A put reads the record that it replaces: its version, its create revision and its expiry. So this
   engine and the B-tree make the same of the same writes.
3. Readers take the state once, which is replaced by one assignment: at a freeze under the caller's
   lock, at the end of a flush or a merge without it.
4. Nothing is expired, flushed or merged but by the caller: the engine has no thread.
   Flushes and merges run in worker processes, if these are allowed, or in slices
   (``workers.py``), and nothing but bytes that were proved is believed.
5. What is deleted is a tombstone until a merge drops it, and a long run of them is jumped over
   (``marks.py``).

Threads: one writer at a time, in the caller's lock: ``put``, ``delete``, ``touch``, ``get``,
``heading``, ``beginning``, ``snapshot``, ``items``, ``keys``, ``scan``, ``scan_headings``,
``scan_keys``, ``len``, ``begin_checkpoint``, ``check``, ``maintain``, ``loader``. ``compact`` and
the methods of one checkpoint belong to the thread that makes checkpoints. Any thread at any time:
everything on a snapshot, the iterators that ``items`` and ``keys`` return, ``stats``, ``pressure``,
``close``.
The engine's own lock is held for assignments alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from time import perf_counter
from typing import TypeVar

from conure.fileio import FileSystem
from conure.storage.atonce import make_at_once
from conure.storage.cells import NARROW, NARROW_HEAD, NARROW_SIZE, make_cell
from conure.storage.engine import CheckReport, EngineOptions, Record
from conure.storage.lsm.blobs import BlobFile
from conure.storage.lsm.checking import check
from conure.storage.lsm.compaction import Compaction
from conure.storage.lsm.durable import Durable, remove_files
from conure.storage.lsm.figures import LSMStats, Written
from conure.storage.lsm.flushing import ATTEMPTS, Checkpoint
from conure.storage.lsm.jobs import JobLimits, MergeJob
from conure.storage.lsm.loading import Loader
from conure.storage.lsm.manifest import Manifest
from conure.storage.lsm.marks import Marks
from conure.storage.lsm.memtable import Memtable
from conure.storage.lsm.merging import Group
from conure.storage.lsm.pinned import PinnedReader
from conure.storage.lsm.reading import Cells, Rows
from conure.storage.lsm.state import Pinned, State, live_groups
from conure.storage.lsm.tables import TOMBSTONE, Table
from conure.storage.lsm.version import Version
from conure.storage.lsm.workers import FLUSH_PATIENCE, InProcess, Runner, Worker
from conure.storage.pages import MAX_VALUE, Limits

__all__ = ["LSMEngine"]

_KEEPS_UP = 8
"""Tables of level 0 up to which merging keeps up with the writes."""

_HOLD_BACK = 12
"""Tables of level 0 from which on checkpoints had better wait for merging."""

_MOST_FOUND = 256
_PAUSED = (None,)
_BLOB_SHARE = 4  # a blob file is so many times as long as a table

_numbers = NARROW.unpack_from
_new: Callable[[type[Record], tuple[object, ...]], Record] = tuple.__new__

_Thing = TypeVar("_Thing")


class LSMEngine:
    """A store of sorted records (engine.StorageEngine); see the module's docstring."""

    def __init__(
        self,
        fs: FileSystem,
        place: str,
        present: Manifest,
        options: EngineOptions,
        known: Version | None = None,
    ) -> None:
        self.applied_index = present.applied_index
        self.applied_term = present.term
        self.applied_digest = present.digest
        self.outdated: list[tuple[bytes, int]] = []
        # What the B-tree refuses is refused here too: the members of a cluster agree on it.
        self.max_key_bytes = Limits.of(options.page_size).max_key_bytes
        self._place = place
        self._options = options
        self._lock = threading.Lock()
        self._durable = Durable(fs, place, present, mapped=options.mapped)
        self._jobs = JobLimits(
            options.table_bytes, options.table_bytes * _BLOB_SHARE, options.long_value
        )
        version = self._durable.opened(present, known)
        self._state = self._made(Memtable(), (), version)
        self._records = present.records
        self._marks = Marks(present.marks)
        self._insertions = 0  # of keys that weren't there
        # What pinned readers have found, to be marks.
        self._found: deque[tuple[int, bytes, bytes]] = deque(maxlen=_MOST_FOUND)
        self._readers: set[int] = set()
        self._checkpoint: Checkpoint | None = None
        self._is_loading = False
        self._is_loaded = False  # and no checkpoint has made that durable
        self._is_closed = False
        self._keeps_garbage = False
        self._garbage: list[str] = []  # to be removed by and by
        self._written = Written()
        folder = self._durable.folder
        self._here = InProcess(fs, folder)
        self._flusher: Runner = self._here
        self._merger: Runner = self._here
        if options.workers:
            self._flusher = Worker(fs, folder, patience=FLUSH_PATIENCE)
            self._merger = Worker(fs, folder)
        self._compaction = Compaction(
            self, self._durable, self._runner_of(self._merger), self._jobs
        )

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> Record | None:
        """Return the record of *key*. Under the caller's lock."""
        state = self._state
        cell = state[0].cells.get(key)
        if cell is None:
            cell = state.older(key) if state[1] else state[2].find(key)
        if not cell:
            return None
        if cell[0] or len(cell) < NARROW_SIZE:
            return state.cells.record(key, cell)
        create, mod, version = _numbers(cell, 1)
        return _new(Record, (cell[NARROW_SIZE:], create, mod, version, 0))

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of *key* without its value, and how many bytes that has."""
        state = self._state
        cell = state.find(key)
        return state.cells.heading(key, cell) if cell else None

    def beginning(self, key: bytes, most: int) -> bytes | None:
        """Return the first *most* bytes of the value of *key*; None if there is no record."""
        state = self._state
        cell = state.find(key)
        return state.cells.beginning(key, cell, most) if cell else None

    def __len__(self) -> int:
        return self._records

    def scan(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate over keys and records, and None where many are deleted; nothing may be written
        before the end."""
        state = self._state
        return chain.from_iterable(self._rows(state, state.cells.records, start, end, reverse))

    def scan_headings(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, tuple[Record, int]] | None]:
        """Iterate like :meth:`scan` over keys and what :meth:`heading` returns of them."""
        state = self._state
        return chain.from_iterable(self._rows(state, state.cells.headings, start, end, reverse))

    def scan_keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`scan` over the keys alone."""
        groups = self._groups(self._state, start, end, reverse)
        return chain.from_iterable(
            (keys[::-1] if reverse else keys) if keys else _PAUSED for keys, _ in groups
        )

    def snapshot(self) -> PinnedReader:
        """Pin the present state for reading in any thread. Under the caller's lock, in constant
        time."""
        assert not self._is_closed
        stamp = self._insertions
        found = self._found
        reader = PinnedReader(
            Pinned(self._state),
            self._records,
            Marks(self._known_marks().all),
            lambda start, end: found.append((stamp, start, end)),
            self._readers.discard,
        )
        self._readers.add(id(reader))
        return reader

    def items(self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False) -> Rows:
        """Iterate over keys and records of the moment of the call."""
        return self.snapshot().items(start, end, reverse=reverse)

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""
        return self.snapshot().keys(start, end, reverse=reverse)

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> int:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Returns the version. Raises ValueError if key or value are too long.
        """
        if not 0 < len(key) <= self.max_key_bytes:
            raise ValueError(f"a key has 1 to {self.max_key_bytes} bytes, not {len(key)}")
        if len(value) > MAX_VALUE:
            raise ValueError(f"a value has up to {MAX_VALUE} bytes, not {len(value)}")
        state = self._state
        memtable = state[0]
        here = memtable.cells.get(key)
        old = state.older(key) if here is None else here
        if old:
            if old[0] or len(old) < NARROW_SIZE:
                create, version = self._outdate(key, old)
            else:
                create, _, version = NARROW.unpack_from(old, 1)
            version += 1
        else:
            create, version = revision, 1
            self._records += 1
            self._insertions += 1
            if self._marks.all:
                self._marks.put(key)
        if expiry or version >> 16 or (create | revision) >> 32:
            cell = make_cell(value, create, revision, version, expiry, spilled=False)
        else:
            cell = NARROW_HEAD.pack(0, create, revision, version) + value
        memtable.put(key, cell, here)
        return version

    def delete(self, key: bytes) -> bool:
        """Remove *key* and return whether it was there."""
        state = self._state
        here = state.memtable.cells.get(key)
        old = state.older(key) if here is None else here
        if not old:
            return False
        if old[0]:
            self._outdate(key, old)
        state.memtable.put(key, TOMBSTONE, here)
        self._records -= 1
        if self._marks.all:
            self._marks.delete(key)
        return True

    def touch(self, key: bytes, expiry: int) -> Record | None:
        """Set the expiry of *key* and nothing else; return the record, or None if there is none.

        A long value comes back into memory with it, so that no reference outlives its file.
        """
        state = self._state
        here = state.memtable.cells.get(key)
        old = state.older(key) if here is None else here
        if not old:
            return None
        record = state.cells.record(key, old)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        record = record._replace(expiry=expiry)
        state.memtable.put(key, make_cell(*record, spilled=False), here)
        return record

    def maintain(self, seconds: float) -> bool:  # noqa: ARG002
        """Do nothing: nothing is put off that the writer would have to do."""
        return False

    def loader(self) -> Loader:
        """Return what fills this empty engine step by step; until its end nothing else may write.

        Raises ValueError if it isn't empty, or if a checkpoint or another load is running.
        """
        if self._records or self._checkpoint or self._is_loading:
            raise ValueError("only an empty engine that nothing else writes to can be loaded")
        self._is_loading = True
        self._compaction.give_up()  # or what it merges would be beside what is loaded
        return Loader(
            self._durable,
            self._jobs,
            (self.max_key_bytes, MAX_VALUE),
            adopt=self._adopt,
            dropped=self._stop_loading,
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def begin_checkpoint(self, index: int, term: int, digest: int = 0) -> Checkpoint:
        """Freeze the present state for writing; under the caller's lock, in constant time."""
        assert self._checkpoint is None, "a checkpoint is running already"
        assert not self._is_loading, "a load is running"
        with self._lock:
            state = self._state
            if state.memtable.cells:
                frozen = (state.memtable, *state.frozen)
                state = self._state = State(Memtable(), frozen, state.version, state.cells)
            self._checkpoint = Checkpoint(
                self,
                self._durable,
                self._runner_of(self._flusher),
                self._jobs,
                state.frozen,
                applied=(index, term, digest),
                records=self._records,
                marks=self._known_marks().all,
                older=not state.version.is_empty,
            )
        return self._checkpoint

    def checkpoint(self, index: int, term: int, digest: int = 0) -> None:
        """Make the present state durable. Raises DiskFull, after which it may be tried again."""
        make_at_once(self.begin_checkpoint(index, term, digest))

    def joined(self, memtable: Memtable) -> None:
        """Put *memtable* in the place of all frozen ones (flushing.Flushes)."""
        with self._lock:
            self._state = self._state._replace(frozen=(memtable,))

    def flushed(
        self, checkpoint: Checkpoint, tables: Sequence[Table], blobs: Sequence[BlobFile]
    ) -> None:
        """Make a checkpoint durable, and drop what was frozen for it (flushing.Flushes)."""
        version = self._state.version
        if tables:
            version = version.edited(tables=tables, blobs=blobs)
        before = self._durable.manifest
        self._durable.write(
            version,
            applied=checkpoint.applied,
            records=checkpoint.records,
            marks=checkpoint.marks,
        )
        self._swap(version, frozen=())
        self._is_loaded = False
        self.applied_index, self.applied_term, self.applied_digest = checkpoint.applied
        written = self._written
        written.flushes += bool(tables)
        written.flush_bytes += _bytes_of(tables, blobs)
        self._durable.collect(before)

    def ended(self) -> None:
        """Let the next checkpoint begin (flushing.Flushes)."""
        with self._lock:
            self._checkpoint = None
            last = self._is_closed
        if last:
            self._flusher.close()

    # -- merging ---------------------------------------------------------------------------------

    def compact(self, seconds: float) -> bool:
        """Merge for about *seconds*, or see how far a worker is; tell whether there is more to do.

        Raises CorruptionError and DiskFailed.
        """
        until = perf_counter() + seconds
        while self._garbage:
            remove_files(self._durable.fs, self._durable.folder, [self._garbage.pop()])
            if perf_counter() >= until:
                return True
        return self._compaction.work(seconds)

    @property
    def pressure(self) -> float:
        """How far merging is behind the writes, from 0.0 to 1.0. Any thread."""
        count = len(self._state.version.levels[0])
        return min(1.0, max(0.0, (count - _KEEPS_UP) / (_HOLD_BACK - _KEEPS_UP)))

    def mergeable(self) -> Version | None:
        """Return the present version, if it is the durable one (compaction.Merges)."""
        return None if self._is_loaded or self._is_loading else self._state.version

    def merged(self, job: MergeJob, tables: Sequence[Table], blobs: Sequence[BlobFile]) -> None:
        """Put new files in the place of a job's inputs, durably (compaction.Merges)."""
        gone = [facts.name for run in job.inputs for facts in run]
        version = self._state.version.edited(gone=gone, level=job.level, tables=tables, blobs=blobs)
        before = self._durable.manifest
        self._durable.write(version)
        self._swap(version)
        written = self._written
        written.compactions += 1
        written.compaction_bytes += _bytes_of(tables, blobs)
        self._durable.collect(before, [blob.facts.name for blob in blobs])

    @property
    def version(self) -> Version:
        """Its files, open, also after :meth:`close`. Any thread."""
        return self._state.version

    def remove_later(self, names: Iterable[str]) -> None:
        """Remove these files, which nothing needs, in the turns of :meth:`compact`; what is left
        at the end is for the next start."""
        self._garbage += names

    def note_collected(self, *, complete: bool) -> None:
        """Take note whether all files that nothing needs could be removed at the start."""
        self._keeps_garbage = not complete

    # -- observing -------------------------------------------------------------------------------

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory changes take that no checkpoint has written. Any thread."""
        state = self._state
        return state.memtable.size + sum([memtable.size for memtable in state.frozen])

    def stats(self) -> LSMStats:
        """Return the engine's figures. Any thread."""
        state = self._state
        version = state.version
        tables = [
            (len(level), sum([table.facts.size for table in level])) for level in version.levels
        ]
        table_bytes = sum([size for _, size in tables])
        blob_bytes = sum([blob.facts.size for blob in version.blobs.values()])
        dead_bytes = max(0, blob_bytes - sum(version.live_bytes.values()))
        stored = sum([table.facts.records for table in version.tables()])
        superfluous = max(0, stored - self._records)
        return LSMStats(
            page_size=self._options.page_size,
            file_bytes=table_bytes + blob_bytes,
            free_bytes=dead_bytes + table_bytes * superfluous // (stored or 1),
            depth=version.runs + 1 + len(state.frozen),
            records=self._records,
            readers=len(self._readers),
            memtable_bytes=self.unwritten_bytes,
            tables=tables,
            blob_bytes=blob_bytes,
            blob_dead_bytes=dead_bytes,
            index_bytes=version.sieve_bytes
            + sum([table.memory_bytes for table in version.tables()]),
            runs=version.runs,
            written=self._written,
            keeps_garbage=self._keeps_garbage,
        )

    def check(self) -> CheckReport:
        """Prove all files and what is in memory, and return what was counted.

        Under the caller's lock, without a running checkpoint. Raises CorruptionError.
        """
        return check(self._place, self._state, self._records, self._known_marks().all)

    def close(self) -> None:
        """Give up what is being merged. What no checkpoint has made durable is dropped.

        Pinned states can be read to their end, and a checkpoint that is running may end.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            last = self._checkpoint is None
        self._compaction.close()
        self._merger.close()
        if last:
            self._flusher.close()

    # -- private ---------------------------------------------------------------------------------

    def _made(self, memtable: Memtable, frozen: tuple[Memtable, ...], version: Version) -> State:
        return State(memtable, frozen, version, Cells(self._place, version))

    def _swap(self, version: Version, frozen: tuple[Memtable, ...] | None = None) -> None:
        """Let *version* be the one that is read."""
        with self._lock:
            state = self._state
            frozen = state.frozen if frozen is None else frozen
            self._state = self._made(state.memtable, frozen, version)

    def _outdate(self, key: bytes, cell: bytes) -> tuple[int, int]:
        """Note the expiry of a record that is changed or removed; return create and version."""
        record, _ = self._state.cells.heading(key, cell)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        return record.create_revision, record.version

    def _rows(
        self,
        state: State,
        read: Callable[[list[bytes], list[bytes]], Iterable[_Thing]],
        start: bytes,
        end: bytes | None,
        reverse: bool,
    ) -> Iterator[Iterable[tuple[bytes, _Thing] | None]]:
        """Iterate over a range of the present state in groups, and pauses among them."""
        for keys, cells in self._groups(state, start, end, reverse):
            if not keys:
                yield _PAUSED
            elif reverse:
                yield zip(keys[::-1], read(keys[::-1], cells[::-1]), strict=True)
            else:
                yield zip(keys, read(keys, cells), strict=True)

    def _groups(
        self, state: State, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Group]:
        """Iterate over what is alive in a range of the present state; an empty group is a pause."""
        if not self._records:
            return
        for memtable in (state.memtable, *state.frozen):
            memtable.settle()
        marks = self._known_marks()
        yield from live_groups(state, marks, marks.add, start, end, reverse=reverse)

    def _known_marks(self) -> Marks:
        """Return the marks, with those that pinned readers have found and that are still true."""
        found = self._found
        while found:
            stamp, start, end = found.popleft()
            if stamp == self._insertions:
                self._marks.add(start, end)
        return self._marks

    def _adopt(self, version: Version, records: int) -> None:
        """Let what a loader has built be the content."""
        assert not self._records, "the engine was written to while it was loaded"
        before = self._state.version
        with self._lock:
            self._state = self._made(Memtable(), (), version)
            self._records = records
            self._insertions += 1
            self._marks.clear()
            self._is_loading = False
            self._is_loaded = True
        unnamed = before.names - self._durable.manifest.names()
        remove_files(self._durable.fs, self._durable.folder, unnamed)

    def _stop_loading(self) -> None:
        self._is_loading = False

    def _runner_of(self, runner: Runner) -> Callable[[int], Runner]:
        """Return what says where an attempt is made: the last one in this process."""
        return lambda attempt: self._here if attempt >= ATTEMPTS else runner


def _bytes_of(tables: Sequence[Table], blobs: Sequence[BlobFile]) -> int:
    return sum(table.facts.size for table in tables) + sum(blob.facts.size for blob in blobs)
