"""The files of a log's directory as bytes: read and checked, encoded, replaced as a whole.

Every number is big-endian and unsigned::

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
      40    …   configuration as members.Configuration encodes it
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

One write into one sector of 512 bytes happens as a whole or not at all. A slot of ``state`` is one
sector, so a slot that fails its check is corrupt, never torn. Whatever fails its check is a
CorruptionError with file and offset (S3). The owner of the log only, or who opens it to read.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from operator import attrgetter
from typing import Final
from zlib import crc32

from conure.consensus.messages import Entry, HardState, SnapshotMeta
from conure.consensus.records import MAX_NODE_ID_BYTES, decode_record
from conure.errors import CorruptionError, WireError
from conure.fileio import File, FileSystem

__all__ = [
    "FIRST_RECORD",
    "SECTOR",
    "SLOT_DISTANCE",
    "Segment",
    "create",
    "encode_slot",
    "encode_snapshot",
    "read_segments",
    "read_snapshot",
    "read_state",
    "replace_file",
]

SECTOR: Final = 512
SLOT_DISTANCE: Final = 4096
"""Bytes between the two slots of ``state``."""

_VERSION = 1
_SLOT_MAGIC, _SNAPSHOT_MAGIC, _SEGMENT_MAGIC = b"CONURVOT", b"CONURSNP", b"CONURLOG"
_SLOT = struct.Struct(">8sBB2xQQ")
_SNAPSHOT = struct.Struct(">8sB3xQQQI")
_SEGMENT = struct.Struct(">8sB3xIQQQQB11x")
_CHECKSUM = struct.Struct(">I")
_MARK_BYTES = 16 << 10  # between two marks of a segment's index

FIRST_RECORD: Final = _SEGMENT.size + _CHECKSUM.size
"""The offset of a segment's first record."""


class Segment:
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
        self.end = FIRST_RECORD
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
        return self.offsets[mark] if mark >= 0 else FIRST_RECORD

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


def create(fs: FileSystem, directory: str) -> None:
    """Make an empty log if there is none; ``snapshot`` comes last and says that it is complete."""
    fs.make_directory(directory)
    names = fs.list(directory)
    if "snapshot" in names:
        return
    used = any(name.endswith(".log") for name in names)
    if "state" in names:
        file = fs.open(os.path.join(directory, "state"), read_only=True)
        used = used or read_state(file)[0] > 1
        file.close()
    if used:
        raise CorruptionError(os.path.join(directory, "snapshot"), 0, "the file is missing")
    state = HardState()
    gap = bytes(SLOT_DISTANCE - SECTOR)
    replace_file(fs, directory, "state", encode_slot(0, state) + gap + encode_slot(1, state))
    replace_file(fs, directory, "snapshot", encode_snapshot(SnapshotMeta(), 1))


def encode_slot(serial: int, state: HardState) -> bytes:
    vote = state.vote.encode()
    assert len(vote) <= MAX_NODE_ID_BYTES
    slot = _SLOT.pack(_SLOT_MAGIC, _VERSION, len(vote), serial, state.term) + vote
    slot = slot.ljust(SECTOR - _CHECKSUM.size, b"\0")
    return slot + _CHECKSUM.pack(crc32(slot))


def encode_snapshot(meta: SnapshotMeta, sequence: int) -> bytes:
    size = len(meta.configuration)
    data = _SNAPSHOT.pack(_SNAPSHOT_MAGIC, _VERSION, meta.index, meta.term, sequence, size)
    data += meta.configuration
    return data + _CHECKSUM.pack(crc32(data))


def replace_file(fs: FileSystem, directory: str, name: str, data: bytes) -> None:
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


def read_segments(fs: FileSystem, directory: str, *, read_only: bool) -> list[Segment]:
    """Return every segment, open, in the order in which they were made."""
    segments = []
    for name in fs.list(directory):
        if not name.endswith(".log"):
            continue
        path = os.path.join(directory, name)
        file = fs.open(path, read_only=read_only)
        header = file.pread(FIRST_RECORD, 0)
        _check_header(path, header, _SEGMENT_MAGIC, FIRST_RECORD)
        _, _, *facts = _SEGMENT.unpack_from(header)
        segment = Segment(file, path, *facts)
        if name != f"{segment.first:020}.log":
            why = f"its first entry is {segment.first}, not what its name says"
            raise CorruptionError(path, 24, why)
        if file.size() != segment.size:
            why = f"it has {file.size()} bytes and should have {segment.size}"
            raise CorruptionError(path, 40, why)
        segments.append(segment)
    return sorted(segments, key=attrgetter("sequence"))


def read_state(file: File) -> tuple[int, HardState]:
    found = []
    for slot in (0, 1):
        offset = slot * SLOT_DISTANCE
        data = file.pread(SECTOR, offset)
        _check_header(file.path, data, _SLOT_MAGIC, SECTOR, offset)
        _, _, vote_length, serial, term = _SLOT.unpack_from(data)
        if serial % 2 != slot:
            raise CorruptionError(file.path, offset, "a slot in the other one's place")
        vote = data[_SLOT.size : _SLOT.size + vote_length].decode()
        found.append((serial, HardState(term, vote)))
    return max(found)


def read_snapshot(fs: FileSystem, directory: str) -> tuple[SnapshotMeta, int]:
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
