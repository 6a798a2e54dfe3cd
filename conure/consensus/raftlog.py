"""The durable Raft log: entries in segments, term and vote, and where the log begins.

One directory holds it all; logfiles.py and spares.py say what is in the files::

    state                   term and vote, in two slots that are written in turn
    snapshot                the last entry that was cut away, and the configuration as of it
    <first index>.log       a segment, named by 20 digits; the one made last is written to
    <n>.spare, <n>.reserve  segments to come
    <n>.old, <n>.tmp        segments that are gone, and half made ones

**What is never broken**

1. A segment gets its name when its header and everything in older segments is synced. So only the
   youngest segment can have a torn tail (S3).
2. Bytes of a segment that no record was written to are 00: a spare is zeroed and synced before
   it is called a spare, and a torn tail is zeroed before anything is written after it.
3. Records are only ever added. Entries that conflict are cut off by a new segment that begins at
   their index: the segment with the higher sequence counts, at once and for good.
4. ``snapshot`` is replaced as a whole (written aside, synced, renamed) before a segment goes.

``reserve`` refuses clients' writes when neither the segment that is written to nor a spare has room
for them. What nobody can refuse any more goes on in the reserve, as far as spares.py allows. When
that is gone too, ``append``, ``cut`` and ``reset`` raise DiskFull and may be called again.

``prepare``, ``wanted_bytes`` and ``give_up_reserve`` may be called by any thread at any time before
``close``. Everything else belongs to the owner of the log (the node's lock).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from conure.consensus.logfiles import (
    FIRST_RECORD,
    SLOT_DISTANCE,
    Segment,
    create,
    encode_slot,
    encode_snapshot,
    replace_file,
)
from conure.consensus.logscan import Contents, Terms, examine
from conure.consensus.messages import COMMAND, Entry, HardState, SnapshotMeta
from conure.consensus.records import RECORD_HEADER_BYTES, encode_record, split_batches
from conure.consensus.spares import RESERVE_FILES, Spare, Spares, file_size
from conure.errors import DiskFull
from conure.fileio import FileSystem

__all__ = ["ENTRY_OVERHEAD", "Compacted", "RaftLog"]

ENTRY_OVERHEAD: Final = RECORD_HEADER_BYTES + 5
"""How many bytes an entry takes beside its data, at most: what ``reserve`` has to count in."""

_BATCH_BYTES = 1 << 20  # a record of several entries; what reading one of them costs at worst
_CACHED_ENTRY_BYTES = 120  # what an Entry takes in memory beside its data


class Compacted(LookupError):
    """The entry is no longer in the log; the snapshot covers it."""


class _Cache:
    """The latest entries, up to *limit* bytes of memory."""

    __slots__ = ("_batches", "_bytes", "_limit", "entries")

    def __init__(self, limit: int) -> None:
        self.entries: list[Entry] = []
        self._limit = limit
        self._bytes = 0
        self._batches: deque[tuple[int, int]] = deque()  # entries and bytes of each

    def add(self, batch: Sequence[Entry], size: int) -> None:
        size += _CACHED_ENTRY_BYTES * len(batch)
        self.entries += batch
        self._batches.append((len(batch), size))
        self._bytes += size
        if self._bytes > self._limit:
            self._trim()

    def clear(self) -> None:
        self.entries.clear()
        self._batches.clear()
        self._bytes = 0

    def _trim(self) -> None:
        gone = 0
        while self._bytes > self._limit * 3 // 4:  # well below: cutting a list's head is slow
            count, size = self._batches.popleft()
            gone += count
            self._bytes -= size
        del self.entries[:gone]


class RaftLog:
    """The log of one node; also the Storage that raft.py reads through.

    ``hard_state``, ``snapshot`` (index 0: none) and ``last_index`` are plain attributes to read.
    The log holds the entries from ``snapshot.index + 1`` to ``last_index``.
    """

    def __init__(self, fs: FileSystem, directory: str, segment_bytes: int, cache_bytes: int):
        """For :meth:`open` only."""
        found = examine(fs, directory)
        self.hard_state = found.hard_state
        self.snapshot = found.snapshot
        self.last_index = found.last_index
        self.size_bytes = 0
        self._fs = fs
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._batch_bytes = min(_BATCH_BYTES, segment_bytes // 4)
        self._state_file = found.state_file
        self._serial = found.serial
        self._segments = found.segments
        self._terms = found.terms
        self._sequence = found.sequence
        self._synced = found.last_index
        self._cache = _Cache(cache_bytes)
        self._spares = Spares(fs, directory, segment_bytes)
        self._make_trustworthy(found)
        for segment in found.dead:
            self._retire(segment)
        self._count_bytes()
        self._spares.fill_reserve()

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        directory: str,
        *,
        segment_bytes: int = 4 << 20,
        cache_bytes: int = 8 << 20,
    ) -> RaftLog:
        """Open the log in *directory*, making an empty one if there is none.

        A torn tail is cut off. *segment_bytes* is the size of new segments, *cache_bytes* how much
        memory the latest entries may take. What it returns is on disk, even if the process that
        wrote it was killed before its sync. Raises CorruptionError, DiskFull or DiskFailed.
        """
        assert segment_bytes > FIRST_RECORD + RECORD_HEADER_BYTES
        create(fs, directory)
        return cls(fs, directory, segment_bytes, cache_bytes)

    # -- reading ---------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """The index of the first entry the log holds, or would hold."""
        return self.snapshot.index + 1

    @property
    def last_term(self) -> int:
        """The term of the last entry, or of the snapshot if the log is empty."""
        return self._terms.terms[-1]

    @property
    def segments(self) -> int:
        """How many segments hold entries."""
        return len(self._segments)

    def term(self, index: int) -> int | None:
        """Return the term of an entry, or of the snapshot's last one; None if it isn't known."""
        if self.snapshot.index <= index <= self.last_index:
            return self._terms.at(index)
        return None

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Return the entries with low <= index < high, up to *max_bytes* of data, at least one.

        The latest ones come from memory, older ones from disk. Raises Compacted if *low* was cut
        away, CorruptionError for a record that fails its check, DiskFailed.
        """
        if low <= self.snapshot.index:
            raise Compacted(f"entry {low} was cut away; the log begins at {self.first_index}")
        assert low < high <= self.last_index + 1
        latest = self._cache.entries
        cached = len(latest) - (self.last_index + 1 - low)
        if cached >= 0:
            return _up_to(latest[cached : cached + high - low], max_bytes)
        found: list[Entry] = []
        size = 0
        while low < high and (size < max_bytes or not found):
            position = bisect_right(self._segments, low, key=attrgetter("first")) - 1
            more = self._segments[position].read(low)
            stop = high
            if position + 1 < len(self._segments):
                stop = min(high, self._segments[position + 1].first)
            del more[stop - low :]
            found += more
            size += sum([len(entry.data) for entry in more])
            low += len(more)
        return _up_to(found, max_bytes)

    def missing(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return those of consecutive entries that the log would have to make room for: from the
        first one on that it doesn't have yet, or has another one in place of."""
        for position, entry in enumerate(entries):
            if entry.index > self.last_index or (
                entry.index > self.snapshot.index and entry.term != self._terms.at(entry.index)
            ):
                return entries[position:]
        return ()

    # -- writing ---------------------------------------------------------------------------------

    def set_hard_state(self, state: HardState) -> None:
        """Put term and vote on disk; when this returns they are (R1). One sync.

        Raises DiskFull, which only a file system that copies on write does, with nothing changed,
        or DiskFailed.
        """
        if state == self.hard_state:
            return
        serial = self._serial + 1
        self._state_file.pwrite(encode_slot(serial, state), serial % 2 * SLOT_DISTANCE)
        self._state_file.sync()
        self._serial = serial
        self.hard_state = state

    def append(self, entries: Sequence[Entry]) -> None:
        """Write consecutive entries; they are on disk after :meth:`sync` (R2).

        Entries that the log has already are left as they are. From the first one that conflicts
        on, the old ones are cut off. What finds room nowhere else goes to the reserve. Raises
        DiskFull, with the log as it was before, without the conflicting entries or longer by the
        first of the new ones, after which the same entries may be given again; or DiskFailed.
        """
        entries = self._without_known(entries)
        for batch, size in split_batches(entries, self._batch_bytes):
            self._append(batch, size + RECORD_HEADER_BYTES)

    def sync(self) -> None:
        """Put everything appended so far on disk. Raises DiskFailed."""
        last_index = self.last_index
        if self._synced < last_index:
            self._segments[-1].file.sync()
            self._synced = last_index

    def reserve(self, nbytes: int, *, may_make: bool = True) -> None:
        """Make sure that *nbytes* can be appended without new space on disk, nor the reserve.

        Each entry counts with ENTRY_OVERHEAD beside its data. The promise covers the entries
        appended next, until the next call. Room is found where it was made, or else made now if it
        may be, which fills a segment's with zeros. Raises DiskFull, with nothing changed, or
        DiskFailed.
        """
        if self._segments:
            last = self._segments[-1]
            if last.end + nbytes <= last.size and not last.is_reserve:
                return
        self._spares.find(nbytes + FIRST_RECORD, may_make=may_make)

    def may_use_reserve(self, nbytes: int, *, commands: bool) -> bool:
        """Tell whether the reserve has room for entries of *nbytes*, counted as for
        :meth:`reserve`; whether there are *commands* among them decides how much of it is theirs.
        """
        left, fits = self._spares.room_in_reserve(nbytes + FIRST_RECORD)
        spared = RESERVE_FILES // 2 if commands else 0
        if left < spared:
            return False
        last = self._segments[-1] if self._segments else None
        if last is not None and last.is_reserve and last.has_room(nbytes):
            return True
        return fits and left > spared

    @property
    def wanted_bytes(self) -> int:
        """How much free space the log may need for the next files that it makes. Any thread."""
        return self._spares.wanted_bytes

    def give_up_reserve(self) -> None:
        """Let something else have the room of the reserve. Raises DiskFailed."""
        self._spares.give_up_reserve()

    def cut(self, meta: SnapshotMeta) -> None:
        """Forget the entries up to *meta.index*, and remember its configuration.

        Segments go as a whole, and only when *meta* is on disk. An older *meta* than the
        snapshot's changes nothing. Raises DiskFull, with nothing changed, or DiskFailed.
        """
        if meta.index <= self.snapshot.index:
            return
        assert meta.index <= self.last_index
        assert meta.term == self._terms.at(meta.index)
        if self._synced < meta.index:
            self.sync()  # or a crash would leave a log that ends before its snapshot
        keep = 0
        while keep + 1 < len(self._segments) and self._segments[keep + 1].first <= meta.index + 1:
            keep += 1
        sequence = self._segments[keep].sequence
        self._write_snapshot(meta, sequence)
        self.snapshot = meta
        self._terms.cut_before(meta.index)
        self._drop_segments(self._segments[:keep])
        self._count_bytes()

    def reset(self, meta: SnapshotMeta) -> None:
        """Forget every entry: the log begins after *meta*, a snapshot that was installed.

        Raises DiskFull, with nothing changed, or DiskFailed.
        """
        self._write_snapshot(meta, self._sequence + 1)
        self.snapshot = meta
        self.last_index = self._synced = meta.index
        self._terms = Terms(meta.index, meta.term)
        self._drop_segments(self._segments)
        self._cache.clear()
        self._count_bytes()

    # -- housekeeping ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the reserve and the spares that appending will need, and clear away old segments.
        Any thread.

        Raises DiskFull, leaving nothing half made, or DiskFailed.
        """
        self._spares.prepare()

    def check(self) -> None:
        """Read everything back and compare it with what this object believes.

        Raises CorruptionError for what is wrong on disk.
        """
        found = examine(self._fs, self._directory, read_only=True)
        found.close()
        assert not found.torn
        assert found.hard_state == self.hard_state
        assert found.snapshot == self.snapshot
        assert found.last_index == self.last_index
        assert found.last_index >= self._synced >= self.snapshot.index
        assert (found.terms.starts, found.terms.terms) == (self._terms.starts, self._terms.terms)
        assert [s.path for s in found.segments] == [s.path for s in self._segments]
        assert [s.end for s in found.segments[-1:]] == [s.end for s in self._segments[-1:]]
        assert not self._cache.entries or self._cache.entries[-1].index == self.last_index

    def close(self) -> None:
        """Close the files. What wasn't synced may be lost."""
        self._state_file.close()
        for segment in self._segments:
            segment.file.close()

    # -- private: appending ----------------------------------------------------------------------

    def _without_known(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries from the first that the log doesn't have yet."""
        if not entries:
            return entries
        first = entries[0].index
        assert entries[-1].index - first == len(entries) - 1
        assert first <= self.last_index + 1
        for position in range(min(len(entries), self.last_index + 1 - first)):
            entry = entries[position]
            if entry.index > self.snapshot.index and entry.term != self._terms.at(entry.index):
                return entries[position:]
        return entries[max(0, self.last_index + 1 - first) :]

    def _append(self, batch: Sequence[Entry], size: int) -> None:
        first = batch[0].index
        if (
            first <= self.last_index
            or not self._segments
            or self._segments[-1].end + size > self._segments[-1].size
            or self._segments[-1].is_reserve
        ):
            self._find_segment(batch, size)
        segment = self._segments[-1]
        record = encode_record(batch, segment.salt, first - 1 - self._synced)
        assert len(record) == size
        try:
            segment.file.pwrite(record, segment.end)
        except DiskFull:
            segment.size = segment.end  # a part of it may be there: go on in another segment
            raise
        segment.added(first, size)
        self._terms.add(first, batch[0].term)
        self.last_index = batch[-1].index
        self.size_bytes += size
        self._cache.add(batch, size)

    def _find_segment(self, batch: Sequence[Entry], size: int) -> None:
        """Let the last segment be one that takes a record: a new one, or one of the reserve."""
        first = batch[0].index
        needed = size + FIRST_RECORD
        # Where none could be made lately it isn't tried again as long as the reserve has room.
        for may_make in (False, True) if self._spares.is_cramped else (True,):
            try:
                spare = self._spares.find(needed, may_make=may_make)
                return self._begin_segment(first, spare, is_reserve=False)
            except DiskFull as error:
                full = error
            if self.may_use_reserve(size, commands=any(e.kind == COMMAND for e in batch)):
                last = self._segments[-1] if self._segments else None
                if last and last.is_reserve and last.has_room(size) and first > self.last_index:
                    return None
                in_reserve = self._spares.find_in_reserve(needed)
                if in_reserve is not None:  # or entries conflict, and can't go on in the last one
                    return self._begin_segment(first, in_reserve, is_reserve=True)
        raise full

    def _begin_segment(self, first: int, spare: Spare, *, is_reserve: bool) -> None:
        """Make a spare or a file of the reserve the segment that entry *first* begins, and cut off
        the entries from there on."""
        self.sync()
        previous_term = self.term(first - 1)
        assert previous_term is not None
        file_size, spare_path = spare
        segment = Segment(
            self._fs.open(spare_path),
            os.path.join(self._directory, f"{first:020}.log"),
            salt=int.from_bytes(os.urandom(4), "big") | 1,
            sequence=self._sequence + 1,
            first=first,
            previous_term=previous_term,
            size=file_size,
            is_reserve=is_reserve,
        )
        try:
            segment.file.pwrite(segment.header(), 0)
            segment.file.sync()
        except DiskFull:
            segment.file.close()
            raise
        self._fs.rename(spare_path, segment.path)
        self._fs.sync_directory(self._directory)
        self._spares.take(spare)
        self._sequence += 1
        superseded = [s for s in self._segments if s.first >= first]
        self._drop_segments(superseded, replaced_by=segment.path)
        if first <= self.last_index:
            self._cut_off(first)
        self._segments.append(segment)

    def _cut_off(self, first: int) -> None:
        """Forget the entries from *first* on, which a new segment has just superseded."""
        self._cache.clear()
        self._terms.cut_from(first)
        self.last_index = self._synced = first - 1
        self._count_bytes()

    def _drop_segments(self, segments: list[Segment], *, replaced_by: str = "") -> None:
        self._segments = [s for s in self._segments if s not in segments]
        for segment in segments:
            if segment.path == replaced_by:
                segment.file.close()
            else:
                self._retire(segment)

    def _count_bytes(self) -> None:
        self.size_bytes = sum(s.end - FIRST_RECORD for s in self._segments[1:])
        if self.first_index <= self.last_index:
            oldest = self._segments[0]
            self.size_bytes += oldest.end - oldest.offset_of(self.first_index)

    # -- private: what is cut away ---------------------------------------------------------------

    def _write_snapshot(self, meta: SnapshotMeta, sequence: int) -> None:
        """Write ``snapshot``, on a full disk into a file of the reserve."""
        data = encode_snapshot(meta, sequence)
        temporary = os.path.join(self._directory, "snapshot.tmp")
        try:
            replace_file(self._fs, self._directory, "snapshot", data)
        except DiskFull:
            had_room = self._fs.exists(temporary) and file_size(self._fs, temporary) >= len(data)
            path = None if had_room else self._spares.take_reserve(len(data))
            if path is None:
                raise
            self._fs.rename(path, temporary)
            self._fs.sync_directory(self._directory)  # before its zeros go, its old name has to
            replace_file(self._fs, self._directory, "snapshot", data)

    def _retire(self, segment: Segment) -> None:
        segment.file.close()
        self._spares.retire(segment.path)

    # -- private: opening ------------------------------------------------------------------------

    def _make_trustworthy(self, found: Contents) -> None:
        """Put on disk what was found, for a killed process may have left it to the page cache."""
        if found.segments:
            last = found.segments[-1]
            if found.torn:
                last.file.allocate(last.end, last.size - last.end)
            last.file.sync()
        found.state_file.sync()
        self._fs.sync_directory(self._directory)


def _up_to(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """Return the leading entries with at most *max_bytes* of data, at least one."""
    size = 0
    for position, entry in enumerate(entries):
        size += len(entry.data)
        if size > max_bytes and position:
            return entries[:position]
    return entries
