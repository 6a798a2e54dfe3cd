"""The durable Raft log: entries in segments, term and vote, and where the log begins.

One directory holds it all. Every number is big-endian and unsigned::

    state                   term and vote, in two slots that are written in turn
    snapshot                the last entry that was cut away, and the configuration as of it
    <first index>.log       a segment, named by 20 digits; the one made last is written to
    <n>.spare               a segment to come, full of zeros
    <n>.reserve             the same, small, for what has to be written on a full disk (below)
    <n>.old                 a segment that is no longer needed, to be made a spare or removed
    <n>.tmp                 half made; removed by the next open

    state: slot 0 at byte 0, slot 1 at byte 4096; slot n has the even or odd serial numbers
       0    8   magic        "CONURVOT"
       8    1   version      01
       9    1   length of the vote
      10    2   00
      12    8   serial       the slot with the higher one counts
      20    8   term
      28    …   vote         a node id (UTF-8) or nothing; 00 after it
     508    4   CRC-32 of bytes 0 to 508

    snapshot
       0    8   magic        "CONURSNP"
       8    1   version      01
       9    3   00
      12    8   index, 0 if nothing was cut away
      20    8   term
      28    8   sequence     segments with a lower one are of no use any more
      36    4   length of the configuration
      40    …   configuration as raft.Configuration encodes it
       …    4   CRC-32 of everything before it

    segment
       0    8   magic        "CONURLOG"
       8    1   version      01
       9    3   00
      12    4   salt         of every record in this file
      16    8   sequence     one more than that of the segment made before
      24    8   first index
      32    8   term of the entry before it
      40    8   size of the file
      48    1   01 if it was begun in the reserve, else 00
      49   11   00
      60    4   CRC-32 of bytes 0 to 60
      64    …   records of records.py, one after the other, then 00 to the end

**What is never broken**

1. A segment gets its name when its header and everything in older segments is synced. So only the
   youngest segment can have a torn tail (S3).
2. Bytes of a segment that no record was written to are 00: a spare is zeroed and synced before
   it is called a spare, and a torn tail is zeroed before anything is written after it.
3. Records are only ever added. Entries that conflict are cut off by a new segment that begins at
   their index: the segment with the higher sequence counts, at once and for good.
4. One write into one sector of 512 bytes happens as a whole or not at all. A slot of ``state``
   is one sector, so a slot that fails its check is corrupt, never torn.
5. ``snapshot`` is replaced as a whole (written aside, synced, renamed) before a segment goes.

**Torn or corrupt**: the record at which reading the youngest segment stops was being written when
the power failed if one of its sectors is still 00, and if no later record says that it was on the
disk already (records count the entries before them that are not synced yet). It is cut off with
everything after it. In any other case the bytes arrived and changed later: CorruptionError. What
can't be told apart is a change in the very last group of entries, if the changed record also has
a whole sector of 00, and sectors at the end of the log that turn into 00 as a whole.

**The reserve**: four files of 16 KiB beside the spares, for a disk that is full. ``reserve``
refuses clients' writes when neither the segment that is written to nor a spare has room for them.
What nobody can refuse any more goes on in the reserve:

- no-ops and configurations take all of it, commands (expiries, and what a leader has sent) no more
  than half. A record takes 44 bytes and 5 for each entry beside its data. So the half that commands
  leave alone has room for 666 no-ops, and one file for a configuration of a hundred usual members,
  or of the 19 largest that there can be;
- a segment that begins in it takes nothing else: as soon as there is room, the next record begins
  one in a spare, and ``prepare`` makes the reserve anew;
- a ``snapshot`` that finds no room is written into a file of it.

When that is gone too, ``append``, ``cut`` and ``reset`` raise DiskFull and may be called again. On
a file system that copies on write any write may find the disk full, into whatever file it goes:
the same. A release that knows of no reserve leaves its files alone, and reads a segment that was
begun in it like any other.

``prepare`` may be called by any thread at any time before ``close``; one lock guards the lists of
spares that it hands over. Everything else belongs to the owner of the log (the node's lock).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, NamedTuple
from zlib import crc32

from conure.consensus.messages import COMMAND, Entry, HardState, SnapshotMeta
from conure.consensus.records import (
    MAX_NODE_ID_BYTES,
    RECORD_HEADER_BYTES,
    Record,
    check_record,
    decode_record,
    encode_record,
    read_record_header,
    split_batches,
)
from conure.errors import CorruptionError, DiskFull, WireError
from conure.fileio import File, FileSystem

__all__ = ["ENTRY_OVERHEAD", "Compacted", "RaftLog", "check"]

ENTRY_OVERHEAD: Final = RECORD_HEADER_BYTES + 5
"""How many bytes an entry takes beside its data, at most: what ``reserve`` has to count in."""

RESERVE_BYTES = 16 << 10
"""The size of a file of the reserve."""

RESERVE_FILES: Final = 4
"""How many of them there are; commands leave half of them alone."""

_SECTOR = 512
_VERSION = 1
_SLOT_MAGIC, _SNAPSHOT_MAGIC, _SEGMENT_MAGIC = b"CONURVOT", b"CONURSNP", b"CONURLOG"
_SLOT = struct.Struct(">8sBB2xQQ")
_SLOT_DISTANCE = 4096
_SNAPSHOT = struct.Struct(">8sB3xQQQI")
_SEGMENT = struct.Struct(">8sB3xIQQQQB11x")
_CHECKSUM = struct.Struct(">I")
_FIRST_RECORD = _SEGMENT.size + _CHECKSUM.size

_SPARES = 2
_BATCH_BYTES = 1 << 20  # a record of several entries; what reading one of them costs at worst
_MARK_BYTES = 16 << 10  # between two marks of a segment's index
_CACHED_ENTRY_BYTES = 120  # what an Entry takes in memory beside its data


_Spare = tuple[int, str]
"""The size of a file of zeros, and its path."""


class Compacted(LookupError):
    """The entry is no longer in the log; the snapshot covers it."""


class _Segment:
    """A segment file and where its records are.

    ``end`` is the offset after the last record, ``marks`` and ``offsets`` the first index and
    the offset of a record every 16 KiB or so.
    """

    __slots__ = (
        "end",
        "file",
        "first",
        "is_reserve",
        "marks",
        "offsets",
        "path",
        "previous_term",
        "salt",
        "sequence",
        "size",
    )

    def __init__(
        self,
        file: File,
        path: str,
        salt: int,
        sequence: int,
        first: int,
        previous_term: int,
        size: int,
        is_reserve: int,
    ) -> None:
        self.file = file
        self.path = path
        self.salt = salt
        self.sequence = sequence
        self.first = first
        self.previous_term = previous_term
        self.size = size
        self.is_reserve = bool(is_reserve)
        self.end = _FIRST_RECORD
        self.marks: list[int] = []
        self.offsets: list[int] = []

    def header(self) -> bytes:
        facts = (self.salt, self.sequence, self.first, self.previous_term, self.size)
        header = _SEGMENT.pack(_SEGMENT_MAGIC, _VERSION, *facts, self.is_reserve)
        return header + _CHECKSUM.pack(crc32(header))

    def has_room(self, size: int) -> bool:
        return self.end + size <= self.size

    def added(self, index: int, size: int) -> None:
        """Take note of a record of *size* bytes at the end, its first entry *index*."""
        if not self.marks or self.end - self.offsets[-1] >= _MARK_BYTES:
            self.marks.append(index)
            self.offsets.append(self.end)
        self.end += size

    def offset_of(self, index: int) -> int:
        """Return the offset of the mark at or before *index*."""
        mark = bisect_right(self.marks, index) - 1
        return self.offsets[mark] if mark >= 0 else _FIRST_RECORD

    def read(self, index: int) -> list[Entry]:
        """Return the entries from *index* to the next mark, at least one (S3)."""
        mark = bisect_right(self.marks, index) - 1
        start = self.offsets[mark]
        end = self.offsets[mark + 1] if mark + 1 < len(self.offsets) else self.end
        buffer = self.file.pread(end - start, start)
        entries: list[Entry] = []
        offset = 0
        try:
            while offset < end - start:
                record, more = decode_record(buffer, offset, self.salt)
                entries += more
                offset = record.end
        except WireError as error:
            raise CorruptionError(self.path, start + offset, str(error)) from error
        wanted = index - self.marks[mark]
        if len(entries) <= wanted or entries[wanted].index != index:
            raise CorruptionError(self.path, start, f"entry {index} is not where it was written")
        return entries[wanted:]


class _Terms:
    """The term of every entry, as the indexes at which a new term begins."""

    __slots__ = ("starts", "terms")

    def __init__(self, index: int, term: int) -> None:
        self.starts = [index]
        self.terms = [term]

    def at(self, index: int) -> int:
        return self.terms[bisect_right(self.starts, index) - 1]

    def add(self, index: int, term: int) -> None:
        if term != self.terms[-1]:
            self.starts.append(index)
            self.terms.append(term)

    def cut_before(self, index: int) -> None:
        position = bisect_right(self.starts, index) - 1
        del self.starts[:position], self.terms[:position]
        self.starts[0] = max(self.starts[0], index)

    def cut_from(self, index: int) -> None:
        position = bisect_right(self.starts, index - 1)
        del self.starts[position:], self.terms[position:]


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


class _Contents(NamedTuple):
    """What a directory holds, as :func:`_examine` found it."""

    state_file: File
    serial: int
    hard_state: HardState
    snapshot: SnapshotMeta
    segments: list[_Segment]
    dead: list[_Segment]
    terms: _Terms
    last_index: int
    sequence: int
    torn: bool


class RaftLog:
    """The log of one node; also the Storage that raft.py reads through.

    ``hard_state``, ``snapshot`` (index 0: none) and ``last_index`` are plain attributes to read.
    The log holds the entries from ``snapshot.index + 1`` to ``last_index``.
    """

    def __init__(self, fs: FileSystem, directory: str, segment_bytes: int, cache_bytes: int):
        """For :meth:`open` only."""
        found = _examine(fs, directory)
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
        self._preparing = threading.Lock()  # held by whoever makes a spare; taken before _lock
        self._lock = threading.Lock()  # guards the four below
        self._spares: list[_Spare] = []
        self._reserve: list[_Spare] = []
        self._old: list[str] = []
        self._number = 0
        self._is_cramped = False  # the last attempt to make a spare has found no room
        self._find_spares()
        self._make_trustworthy(found)
        for segment in found.dead:
            self._retire(segment)
        self._count_bytes()
        with contextlib.suppress(DiskFull):  # prepare() says so, and goes on trying
            self._fill_reserve()

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
        assert segment_bytes > _FIRST_RECORD + RECORD_HEADER_BYTES
        _create(fs, directory)
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
        self._state_file.pwrite(_encode_slot(serial, state), serial % 2 * _SLOT_DISTANCE)
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
        self._find_spare(nbytes + _FIRST_RECORD, may_make=may_make)

    def may_use_reserve(self, nbytes: int, *, commands: bool) -> bool:
        """Tell whether the reserve has room for entries of *nbytes*, counted as for
        :meth:`reserve`; whether there are *commands* among them decides how much of it is theirs.
        """
        with self._lock:
            left = len(self._reserve)
            fits = any(size >= nbytes + _FIRST_RECORD for size, _ in self._reserve)
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
        return _SPARES * self._segment_bytes + RESERVE_FILES * RESERVE_BYTES

    def give_up_reserve(self) -> None:
        """Let something else have the room of the reserve. Raises DiskFailed."""
        with self._preparing:
            while (path := self._take_reserve(0)) is not None:
                self._fs.remove(path)

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
        self._terms = _Terms(meta.index, meta.term)
        self._drop_segments(self._segments)
        self._cache.clear()
        self._count_bytes()

    # -- housekeeping ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the reserve and the spares that appending will need, and clear away old segments.
        Any thread.

        Raises DiskFull, leaving nothing half made, or DiskFailed.
        """
        working = True
        while working:
            with self._preparing:  # one step at a time: the owner may be waiting for it
                working = self._prepare_one()

    def check(self) -> None:
        """Read everything back and compare it with what this object believes.

        Raises CorruptionError for what is wrong on disk.
        """
        found = _examine(self._fs, self._directory, read_only=True)
        _close(found)
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
        needed = size + _FIRST_RECORD
        # Where none could be made lately it isn't tried again as long as the reserve has room.
        for may_make in (False, True) if self._is_cramped else (True,):
            try:
                spare = self._find_spare(needed, may_make=may_make)
                return self._begin_segment(first, spare, self._spares)
            except DiskFull as error:
                full = error
            if self.may_use_reserve(size, commands=any(e.kind == COMMAND for e in batch)):
                last = self._segments[-1] if self._segments else None
                if last and last.is_reserve and last.has_room(size) and first > self.last_index:
                    return None
                in_reserve = self._smallest(self._reserve, needed)
                if in_reserve is not None:  # or entries conflict, and can't go on in the last one
                    return self._begin_segment(first, in_reserve, self._reserve)
        raise full

    def _begin_segment(self, first: int, spare: _Spare, spares: list[_Spare]) -> None:
        """Make one of the *spares* the segment that entry *first* begins, and cut off the entries
        from there on."""
        self.sync()
        previous_term = self.term(first - 1)
        assert previous_term is not None
        file_size, spare_path = spare
        segment = _Segment(
            self._fs.open(spare_path),
            os.path.join(self._directory, f"{first:020}.log"),
            salt=int.from_bytes(os.urandom(4), "big") | 1,
            sequence=self._sequence + 1,
            first=first,
            previous_term=previous_term,
            size=file_size,
            is_reserve=spares is self._reserve,
        )
        try:
            segment.file.pwrite(segment.header(), 0)
            segment.file.sync()
        except DiskFull:
            segment.file.close()
            raise
        self._fs.rename(spare_path, segment.path)
        self._fs.sync_directory(self._directory)
        with self._lock:
            spares.remove(spare)
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

    def _drop_segments(self, segments: list[_Segment], *, replaced_by: str = "") -> None:
        self._segments = [s for s in self._segments if s not in segments]
        for segment in segments:
            if segment.path == replaced_by:
                segment.file.close()
            else:
                self._retire(segment)

    def _count_bytes(self) -> None:
        self.size_bytes = sum(s.end - _FIRST_RECORD for s in self._segments[1:])
        if self.first_index <= self.last_index:
            oldest = self._segments[0]
            self.size_bytes += oldest.end - oldest.offset_of(self.first_index)

    # -- private: spares -------------------------------------------------------------------------

    def _find_spares(self) -> None:
        for name in self._fs.list(self._directory):
            stem, _, kind = name.rpartition(".")
            path = os.path.join(self._directory, name)
            if kind not in ("spare", "reserve", "old", "tmp"):
                continue
            if stem.isdigit():
                self._number = max(self._number, int(stem))
            if kind in ("spare", "reserve"):
                self._spares_of(kind).append((self._size(path), path))
            elif kind == "old":
                self._old.append(path)
            else:
                self._fs.remove(path)

    def _size(self, path: str) -> int:
        file = self._fs.open(path, read_only=True)
        try:
            return file.size()
        finally:
            file.close()

    def _spares_of(self, kind: str) -> list[_Spare]:
        return self._reserve if kind == "reserve" else self._spares

    def _find_spare(self, size: int, *, may_make: bool = True) -> _Spare:
        """Return the smallest spare that has *size* bytes, making one if need be. DiskFull if that
        finds no room, or may not be tried."""
        spare = self._smallest(self._spares, size)
        if spare is None and not may_make:
            raise DiskFull(f"there was no room for more log in {self._directory} a moment ago")
        if spare is None:
            with self._preparing:  # and while we waited for it, one may have been made
                spare = self._smallest(self._spares, size)
                if spare is None:
                    spare = self._make_spare(max(size, self._segment_bytes), None)
        return spare

    def _smallest(self, spares: list[_Spare], size: int) -> _Spare | None:
        with self._lock:
            return min((spare for spare in spares if spare[0] >= size), default=None)

    def _take_reserve(self, size: int) -> str | None:
        """Take a file of *size* bytes away from the reserve, if there is one; return its path."""
        spare = self._smallest(self._reserve, size)
        if spare is None:
            return None
        with self._lock:
            self._reserve.remove(spare)
        return spare[1]

    def _fill_reserve(self) -> None:
        while len(self._reserve) < RESERVE_FILES:
            self._prepare_one()

    def _prepare_one(self) -> bool:
        """Make a file that is missing, or remove one that isn't needed; False: all done."""
        with self._lock:
            lacking = RESERVE_FILES - len(self._reserve)
            missing = len(self._spares) < _SPARES
            old = self._old.pop() if self._old else None
        if lacking > 0:
            self._make_spare(RESERVE_BYTES, old, kind="reserve")
            if lacking == 1:
                self._fs.sync_directory(self._directory)  # it is there to outlast a crash
        elif missing:
            self._make_spare(self._segment_bytes, old)
        elif old is not None:
            self._fs.remove(old)
        return lacking > 0 or missing or old is not None

    def _make_spare(self, size: int, old: str | None, *, kind: str = "spare") -> _Spare:
        """Make a file of zeros, from an old segment if one is given (its blocks are there)."""
        temporary = self._new_path("tmp")
        if old is not None:
            self._fs.rename(old, temporary)
            self._fs.sync_directory(self._directory)  # before its bytes go, its old name has to
        try:
            file = self._fs.open(temporary, create=True)
            try:
                file.truncate(min(size, file.size()))
                file.allocate(0, size)
                file.sync()
            finally:
                file.close()
        except DiskFull:
            if self._fs.exists(temporary):
                self._fs.remove(temporary)
            self._is_cramped = True
            raise
        self._is_cramped = False
        spare = (size, self._new_path(kind))
        self._fs.rename(temporary, spare[1])
        with self._lock:
            self._spares_of(kind).append(spare)
        return spare

    def _write_snapshot(self, meta: SnapshotMeta, sequence: int) -> None:
        """Write ``snapshot``, on a full disk into a file of the reserve."""
        data = _encode_snapshot(meta, sequence)
        temporary = os.path.join(self._directory, "snapshot.tmp")
        try:
            _replace(self._fs, self._directory, "snapshot", data)
        except DiskFull:
            had_room = self._fs.exists(temporary) and self._size(temporary) >= len(data)
            path = None if had_room else self._take_reserve(len(data))
            if path is None:
                raise
            self._fs.rename(path, temporary)
            self._fs.sync_directory(self._directory)  # before its zeros go, its old name has to
            _replace(self._fs, self._directory, "snapshot", data)

    def _retire(self, segment: _Segment) -> None:
        segment.file.close()
        path = self._new_path("old")
        self._fs.rename(segment.path, path)
        with self._lock:
            self._old.append(path)

    def _new_path(self, kind: str) -> str:
        with self._lock:
            self._number += 1
            return os.path.join(self._directory, f"{self._number}.{kind}")

    # -- private: opening ------------------------------------------------------------------------

    def _make_trustworthy(self, found: _Contents) -> None:
        """Put on disk what was found, for a killed process may have left it to the page cache."""
        if found.segments:
            last = found.segments[-1]
            if found.torn:
                last.file.allocate(last.end, last.size - last.end)
            last.file.sync()
        found.state_file.sync()
        self._fs.sync_directory(self._directory)


def check(fs: FileSystem, directory: str) -> None:
    """Read a log that nobody has open, and change nothing. Any thread.

    A torn tail is in order: the next open cuts it off. Raises CorruptionError for anything that
    isn't, and FileNotFoundError if there is no log.
    """
    _close(_examine(fs, directory, read_only=True))


# -- private: what opening and checking read ---------------------------------------------------


def _examine(fs: FileSystem, directory: str, *, read_only: bool = False) -> _Contents:
    """Read and check everything in a log's directory, changing nothing."""
    snapshot, first_sequence = _read_snapshot(fs, directory)
    state_path = os.path.join(directory, "state")
    try:
        state_file = fs.open(state_path, read_only=read_only)
    except FileNotFoundError:
        raise CorruptionError(state_path, 0, "the file is missing") from None
    serial, hard_state = _read_state(state_file)
    segments: list[_Segment] = []
    dead: list[_Segment] = []
    for segment in _read_segments(fs, directory, read_only=read_only):
        if segment.sequence < first_sequence:
            dead.append(segment)
            continue
        while segments and segments[-1].first >= segment.first:
            dead.append(segments.pop())
        segments.append(segment)

    if segments and segments[0].first > snapshot.index + 1:
        why = f"the entries from {snapshot.index + 1} on are missing: a file before it is gone"
        raise CorruptionError(segments[0].path, 0, why)
    index, term = snapshot.index + 1, snapshot.term
    terms = _Terms(snapshot.index, snapshot.term)
    if segments:
        index, term = segments[0].first, segments[0].previous_term
        terms = _Terms(index - 1, term)
    torn = False
    for segment, successor in zip(segments, [*segments[1:], None], strict=False):
        if segment.first != index or segment.previous_term != terms.at(index - 1):
            why = f"it doesn't continue the log, which ends at entry {index - 1}"
            raise CorruptionError(segment.path, 0, why)
        buffer = segment.file.pread(segment.size, 0)
        index = _read_records(segment, buffer, terms, successor.first if successor else None)
        torn = successor is None and bool(buffer[segment.end :].strip(b"\0"))
    _check_snapshot(directory, snapshot, terms, index - 1)
    terms.cut_before(snapshot.index)
    sequence = max([first_sequence - 1, *(s.sequence for s in segments + dead)])
    return _Contents(
        state_file, serial, hard_state, snapshot, segments, dead, terms, index - 1, sequence, torn
    )


def _read_records(segment: _Segment, buffer: bytes, terms: _Terms, stop: int | None) -> int:
    """Take note of a segment's records and return the index after the last of its entries.

    *stop* is the first index of the segment after it; the youngest one has none, and ends where
    its records end.
    """
    index = segment.first
    while stop is None or index < stop:
        try:
            record = check_record(buffer, segment.end, segment.salt)
        except WireError as error:
            if stop is None and _is_torn(segment, buffer, index):
                break
            raise CorruptionError(segment.path, segment.end, str(error)) from error
        _check_order(segment, record, index, terms.terms[-1])
        terms.add(index, record.term)
        segment.added(index, record.end - segment.end)
        index += record.entries
    if stop is not None:
        terms.cut_from(stop)
        return stop
    return index


def _check_order(segment: _Segment, record: Record, index: int, term: int) -> None:
    why = ""
    if record.first_index != index:
        why = f"entry {record.first_index} stands where {index} belongs"
    elif record.term < term:
        why = f"term {record.term} follows term {term}"
    elif record.unsynced > index - segment.first:
        why = "a record of a segment that was never written"
    if why:
        raise CorruptionError(segment.path, segment.end, why)


def _is_torn(segment: _Segment, buffer: bytes, index: int) -> bool:
    """Tell whether the bytes after the last good record are what a power failure leaves.

    *index* is the entry that should begin there. False means that the bytes were whole once.
    """
    start = segment.end
    try:
        end = read_record_header(buffer, start, segment.salt).end
    except WireError:
        end = start + RECORD_HEADER_BYTES
    if not _has_blank_sector(buffer, start, end):
        return False
    salt = segment.salt.to_bytes(4, "big")
    found = buffer.find(salt, start)
    while found >= 0:
        try:
            record = read_record_header(buffer, found - 8, segment.salt)
        except WireError:
            found = buffer.find(salt, found + 1)
            continue
        if record.first_index - record.unsynced > index:
            return False  # when that one was written, ours was on disk
        found = buffer.find(salt, record.end)
    return True


def _has_blank_sector(buffer: bytes, start: int, end: int) -> bool:
    """Tell whether a sector of the bytes from *start* to *end* has nothing but 00 from there."""
    for sector in range(start - start % _SECTOR, min(end, len(buffer)), _SECTOR):
        if not buffer[max(start, sector) : sector + _SECTOR].strip(b"\0"):
            return True
    return start >= len(buffer)


def _check_snapshot(directory: str, snapshot: SnapshotMeta, terms: _Terms, last_index: int) -> None:
    path = os.path.join(directory, "snapshot")
    if last_index < snapshot.index:
        raise CorruptionError(path, 12, f"the log ends at {last_index}, before the snapshot")
    if terms.at(snapshot.index) != snapshot.term:
        raise CorruptionError(path, 20, "the log has another term at the snapshot's last entry")


def _read_segments(fs: FileSystem, directory: str, *, read_only: bool) -> list[_Segment]:
    """Return every segment, open, in the order in which they were made."""
    segments = []
    for name in fs.list(directory):
        if not name.endswith(".log"):
            continue
        path = os.path.join(directory, name)
        file = fs.open(path, read_only=read_only)
        header = file.pread(_FIRST_RECORD, 0)
        _check_header(path, header, _SEGMENT_MAGIC, _FIRST_RECORD)
        _, _, *facts = _SEGMENT.unpack_from(header)
        segment = _Segment(file, path, *facts)
        if name != f"{segment.first:020}.log":
            why = f"its first entry is {segment.first}, not what its name says"
            raise CorruptionError(path, 24, why)
        if file.size() != segment.size:
            why = f"it has {file.size()} bytes and should have {segment.size}"
            raise CorruptionError(path, 40, why)
        segments.append(segment)
    return sorted(segments, key=attrgetter("sequence"))


def _read_state(file: File) -> tuple[int, HardState]:
    found = []
    for slot in (0, 1):
        offset = slot * _SLOT_DISTANCE
        data = file.pread(_SECTOR, offset)
        _check_header(file.path, data, _SLOT_MAGIC, _SECTOR, offset)
        _, _, vote_length, serial, term = _SLOT.unpack_from(data)
        if serial % 2 != slot:
            raise CorruptionError(file.path, offset, "a slot in the other one's place")
        vote = data[_SLOT.size : _SLOT.size + vote_length].decode()
        found.append((serial, HardState(term, vote)))
    return max(found)


def _read_snapshot(fs: FileSystem, directory: str) -> tuple[SnapshotMeta, int]:
    path = os.path.join(directory, "snapshot")
    file = fs.open(path, read_only=True)
    data = file.pread(file.size(), 0)
    file.close()
    _check_header(path, data, _SNAPSHOT_MAGIC, _SNAPSHOT.size + _CHECKSUM.size)
    _, _, index, term, sequence, length = _SNAPSHOT.unpack_from(data)
    if len(data) != _SNAPSHOT.size + length + _CHECKSUM.size:
        raise CorruptionError(path, 36, f"a configuration of {length} bytes that it doesn't hold")
    configuration = data[_SNAPSHOT.size : _SNAPSHOT.size + length]
    return SnapshotMeta(index, term, configuration), sequence


def _check_header(path: str, data: bytes, magic: bytes, size: int, offset: int = 0) -> None:
    """Check the magic, the version and the checksum at the end of at least *size* bytes."""
    if len(data) < size:
        raise CorruptionError(path, offset, f"{len(data)} bytes are too few")
    if crc32(data[:-4]) != _CHECKSUM.unpack_from(data, len(data) - 4)[0]:
        raise CorruptionError(path, offset, "a checksum that doesn't match")
    if data[:8] != magic:
        raise CorruptionError(path, offset, f"it doesn't begin with {magic.decode()}")
    if data[8] != _VERSION:
        raise CorruptionError(path, offset, f"format version {data[8]}; this is {_VERSION}")


def _close(found: _Contents) -> None:
    found.state_file.close()
    for segment in found.segments + found.dead:
        segment.file.close()


# -- private: the two small files ----------------------------------------------------------------


def _create(fs: FileSystem, directory: str) -> None:
    """Make an empty log if there is none; ``snapshot`` comes last and says that it is complete."""
    fs.make_directory(directory)
    names = fs.list(directory)
    if "snapshot" in names:
        return
    used = any(name.endswith(".log") for name in names)
    if "state" in names:
        file = fs.open(os.path.join(directory, "state"), read_only=True)
        used = used or _read_state(file)[0] > 1
        file.close()
    if used:
        raise CorruptionError(os.path.join(directory, "snapshot"), 0, "the file is missing")
    state = HardState()
    gap = bytes(_SLOT_DISTANCE - _SECTOR)
    _replace(fs, directory, "state", _encode_slot(0, state) + gap + _encode_slot(1, state))
    _replace(fs, directory, "snapshot", _encode_snapshot(SnapshotMeta(), 1))


def _encode_slot(serial: int, state: HardState) -> bytes:
    vote = state.vote.encode()
    assert len(vote) <= MAX_NODE_ID_BYTES
    slot = _SLOT.pack(_SLOT_MAGIC, _VERSION, len(vote), serial, state.term) + vote
    slot = slot.ljust(_SECTOR - _CHECKSUM.size, b"\0")
    return slot + _CHECKSUM.pack(crc32(slot))


def _encode_snapshot(meta: SnapshotMeta, sequence: int) -> bytes:
    size = len(meta.configuration)
    data = _SNAPSHOT.pack(_SNAPSHOT_MAGIC, _VERSION, meta.index, meta.term, sequence, size)
    data += meta.configuration
    return data + _CHECKSUM.pack(crc32(data))


def _replace(fs: FileSystem, directory: str, name: str, data: bytes) -> None:
    """Put a file in place of the one of that name, durably, as a whole or not at all."""
    temporary = os.path.join(directory, f"{name}.tmp")
    file = fs.open(temporary, create=True)
    try:
        file.pwrite(data, 0)  # first, so that room that the file has isn't lost
        file.truncate(len(data))
        file.sync()
    finally:
        file.close()
    fs.rename(temporary, os.path.join(directory, name))
    fs.sync_directory(directory)


def _up_to(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """Return the leading entries with at most *max_bytes* of data, at least one."""
    size = 0
    for position, entry in enumerate(entries):
        size += len(entry.data)
        if size > max_bytes and position:
            return entries[:position]
    return entries
