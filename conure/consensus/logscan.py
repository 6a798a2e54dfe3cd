"""What a log's directory has in it, examined without changing anything: for opening and checking.

**Torn or corrupt**: the record at which reading the youngest segment stops was being written when
the power failed if one of its sectors is still 00, and if no later record says that it was on the
disk already (records count the entries before them that are not synced yet). It is cut off with
everything after it. In any other case the bytes arrived and changed later: CorruptionError. What
can't be told apart is a change in the very last group of entries, if the changed record also has
a whole sector of 00, and sectors at the end of the log that turn into 00 as a whole.

Any thread, while nobody writes the log.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import NamedTuple

from conure.consensus.logfiles import (
    SECTOR,
    Segment,
    read_segments,
    read_snapshot,
    read_state,
)
from conure.consensus.messages import HardState, SnapshotMeta
from conure.consensus.records import RECORD_HEADER_BYTES, Record, check_record, read_record_header
from conure.errors import CorruptionError, WireError
from conure.fileio import File, FileSystem

__all__ = ["Contents", "Terms", "examine"]


class Terms:
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


class Contents(NamedTuple):
    """What a directory has in it, as :func:`examine` found it; its files are open."""

    state_file: File
    serial: int
    hard_state: HardState
    snapshot: SnapshotMeta
    segments: list[Segment]
    dead: list[Segment]
    terms: Terms
    last_index: int
    sequence: int
    torn: bool

    def close(self) -> None:
        """Close the files."""
        self.state_file.close()
        for segment in self.segments + self.dead:
            segment.file.close()


def examine(fs: FileSystem, directory: str, *, read_only: bool = False) -> Contents:
    """Read and check everything in a log's directory, changing nothing.

    A torn tail is in order: the next open cuts it off. Raises CorruptionError for anything that
    isn't, and FileNotFoundError if there is no log.
    """
    snapshot, first_sequence = read_snapshot(fs, directory)
    state_path = os.path.join(directory, "state")
    try:
        state_file = fs.open(state_path, read_only=read_only)
    except FileNotFoundError:
        raise CorruptionError(state_path, 0, "the file is missing") from None
    serial, hard_state = read_state(state_file)
    segments: list[Segment] = []
    dead: list[Segment] = []
    for segment in read_segments(fs, directory, read_only=read_only):
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
    terms = Terms(snapshot.index, snapshot.term)
    if segments:
        index, term = segments[0].first, segments[0].previous_term
        terms = Terms(index - 1, term)
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
    return Contents(
        state_file, serial, hard_state, snapshot, segments, dead, terms, index - 1, sequence, torn
    )


def _read_records(segment: Segment, buffer: bytes, terms: Terms, stop: int | None) -> int:
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


def _check_order(segment: Segment, record: Record, index: int, term: int) -> None:
    why = ""
    if record.first_index != index:
        why = f"entry {record.first_index} stands where {index} belongs"
    elif record.term < term:
        why = f"term {record.term} follows term {term}"
    elif record.unsynced > index - segment.first:
        why = "a record of a segment that was never written"
    if why:
        raise CorruptionError(segment.path, segment.end, why)


def _is_torn(segment: Segment, buffer: bytes, index: int) -> bool:
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
    for sector in range(start - start % SECTOR, min(end, len(buffer)), SECTOR):
        if not buffer[max(start, sector) : sector + SECTOR].strip(b"\0"):
            return True
    return start >= len(buffer)


def _check_snapshot(directory: str, snapshot: SnapshotMeta, terms: Terms, last_index: int) -> None:
    path = os.path.join(directory, "snapshot")
    if last_index < snapshot.index:
        raise CorruptionError(path, 12, f"the log ends at {last_index}, before the snapshot")
    if terms.at(snapshot.index) != snapshot.term:
        raise CorruptionError(path, 20, "the log has another term at the snapshot's last entry")
