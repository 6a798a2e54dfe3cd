"""Bytes for log entries, and for frames, in which bytes travel or are kept.

A decoder takes any bytes at all: it returns what an encoder was given or raises
:class:`WireError`, and never allocates more than the bytes it was handed would explain. Every
number is big-endian and unsigned. Nothing here has state: any thread may call anything.

**Batch**: log entries of one term with consecutive indexes, column by column. That makes a batch
of 64 entries some ten times cheaper than 64 records would be::

       0    8   term of every entry
       8    8   index of the first entry
      16    4   n, the number of entries
      20   4n   length of each entry's data
       …    n   kind of each entry
       …    …   each entry's data

**Log record**: a batch as raftlog.py writes it. ``salt`` belongs to the segment file, so what
another file or an earlier life of this one left behind is never taken for a record::

       0    4   CRC-32 of everything after it
       4    4   CRC-32 of bytes 8 to 44: the length can be trusted even if the data can't
       8    4   salt
      12    4   length of the batch after byte 44
      16    4   how many entries before this batch were not synced when it was written
      20    1   version      01
      21    3   00
      24    …   batch

**Frame**: what the bytes between two nodes consist of::

       0    4   length of the payload, not 0
       4    4   CRC-32 of the payload
       8    …   payload
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count, pairwise
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

from conure.consensus.messages import CONFIG, Entry
from conure.errors import WireError

__all__ = [
    "BATCH",
    "FRAME_HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_NODE_ID_BYTES",
    "RECORD_HEADER_BYTES",
    "Record",
    "check_frame",
    "check_record",
    "decode_batch",
    "decode_record",
    "encode_batch",
    "encode_frame",
    "encode_record",
    "frame_length",
    "prove_frame",
    "read_record_header",
    "split_batches",
    "take_frames",
]
MAX_NODE_ID_BYTES: Final = 255
MAX_FRAME_BYTES: Final = 128 << 20  # the largest value allowed anywhere is 64 MiB

_VERSION = 1

BATCH = struct.Struct(">QQI")
_RECORD = struct.Struct(">IIIIIB3xQQI")
_PER_ENTRY = 5

_FRAME = struct.Struct(">II")
_LENGTH = struct.Struct(">I")

_Decoded = TypeVar("_Decoded")

RECORD_HEADER_BYTES: Final = _RECORD.size
FRAME_HEADER_BYTES: Final = _FRAME.size
assert _RECORD.size == 44


class Record(NamedTuple):
    """What a log record's header says, with ``end``, the offset of the byte after the record."""

    end: int
    unsynced: int
    term: int
    first_index: int
    entries: int


def split_batches(
    entries: Sequence[Entry], max_bytes: int
) -> Iterator[tuple[Sequence[Entry], int]]:
    """Cut consecutive entries into batches of one term and at most *max_bytes* each.

    Yields each batch with its size: RECORD_HEADER_BYTES more is what its record takes. A larger
    entry gets a batch of its own.
    """
    if not entries:
        return
    total = sum([len(entry.data) for entry in entries]) + _PER_ENTRY * len(entries)
    if total <= max_bytes and entries[0].term == entries[-1].term:  # terms never decrease
        yield entries, total
        return
    start, total = 0, 0
    for position, entry in enumerate(entries):
        size = len(entry.data) + _PER_ENTRY
        if position > start and (total + size > max_bytes or entry.term != entries[start].term):
            yield entries[start:position], total
            start, total = position, 0
        total += size
    yield entries[start:], total


def encode_record(batch: Sequence[Entry], salt: int, unsynced: int) -> bytes:
    """Return the log record of a batch: entries of one term, consecutive, at least one."""
    head, body = encode_batch(batch)
    rest = struct.pack(">IIIB3x", salt, len(body), unsynced, _VERSION) + head
    covered = b"".join((crc32(rest).to_bytes(4, "big"), rest, body))
    return crc32(covered).to_bytes(4, "big") + covered


def read_record_header(buffer: bytes, offset: int, salt: int) -> Record:
    """Return what a record's header says if the header is whole, whatever its data are.

    Raises WireError.
    """
    try:
        _, check, found, size, unsynced, version, term, index, n = _RECORD.unpack_from(
            buffer, offset
        )
    except struct.error:
        raise WireError("a record's header is cut short") from None
    if crc32(buffer[offset + 8 : offset + RECORD_HEADER_BYTES]) != check:
        raise WireError("a record's header fails its checksum")
    if found != salt or version != _VERSION or not n or n * _PER_ENTRY > size:
        raise _unknown_record(found == salt, version, n, size)
    return Record(offset + RECORD_HEADER_BYTES + size, unsynced, term, index, n)


def check_record(buffer: bytes, offset: int, salt: int) -> Record:
    """Return what the record at *offset* says after checking every byte of it (S3).

    Raises WireError.
    """
    try:
        check, _, found, size, unsynced, version, term, index, n = _RECORD.unpack_from(
            buffer, offset
        )
    except struct.error:
        raise WireError("a record's header is cut short") from None
    end = offset + RECORD_HEADER_BYTES + size
    if end > len(buffer):
        raise WireError(f"a record of {size} bytes is cut short")
    if crc32(buffer[offset + 4 : end]) != check:
        raise WireError("a record fails its checksum")
    if found != salt or version != _VERSION or not n or n * _PER_ENTRY > size:
        raise _unknown_record(found == salt, version, n, size)
    return Record(end, unsynced, term, index, n)


def decode_record(buffer: bytes, offset: int, salt: int) -> tuple[Record, list[Entry]]:
    """Return a record's header and entries after checking every byte of it (S3).

    Raises WireError.
    """
    record = check_record(buffer, offset, salt)
    batch = offset + RECORD_HEADER_BYTES - BATCH.size
    return record, decode_batch(buffer, batch, record.end)


def _unknown_record(ours: bool, version: int, n: int, size: int) -> WireError:
    if version != _VERSION:
        return WireError(f"a record of format version {version}; this version knows {_VERSION}")
    if not ours:
        return WireError("a record of another file")
    return WireError(f"a record of {n} entries in {size} bytes")


def encode_batch(batch: Sequence[Entry]) -> tuple[bytes, bytes]:
    datas = [entry.data for entry in batch]
    n = len(datas)
    head = BATCH.pack(batch[0].term, batch[0].index, n)
    lengths = struct.pack(f">{n}I", *map(len, datas))
    return head, b"".join([lengths, bytes([entry.kind for entry in batch]), *datas])


def decode_batch(buffer: bytes, offset: int, end: int) -> list[Entry]:
    """Return the entries of the batch that fills the bytes from *offset* to *end*."""
    term, index, n = BATCH.unpack_from(buffer, offset)
    offset += BATCH.size
    kinds_at = offset + 4 * n
    data_at = kinds_at + n
    if not n or data_at > end:
        raise WireError(f"a batch of {n} entries in {end - offset} bytes")
    if (
        n == 1
        and buffer[kinds_at] <= CONFIG
        and data_at + _LENGTH.unpack_from(buffer, offset)[0] == end
    ):
        return [Entry(term, index, buffer[kinds_at], buffer[data_at:end])]
    lengths = struct.unpack_from(f">{n}I", buffer, offset)
    kinds = buffer[kinds_at:data_at]
    if max(kinds) > CONFIG:
        raise WireError(f"an unknown entry kind {max(kinds)}; a newer version wrote it")
    if data_at + sum(lengths) != end:
        raise WireError("a batch whose lengths don't add up")
    bounds = pairwise(accumulate(lengths, initial=data_at))
    return [
        Entry(term, i, kind, buffer[a:b])
        for i, kind, (a, b) in zip(count(index), kinds, bounds, strict=False)
    ]


def encode_frame(payload: bytes) -> bytes:
    """Return the frame of a payload of 1 to MAX_FRAME_BYTES bytes."""
    assert 0 < len(payload) <= MAX_FRAME_BYTES
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def frame_length(header: bytes, most: int = MAX_FRAME_BYTES) -> int:
    """Return how many bytes follow a frame's first FRAME_HEADER_BYTES.

    Raises WireError for none and for more than *most*: the bytes are out of step, or hostile.
    """
    if len(header) < FRAME_HEADER_BYTES:
        raise WireError("a frame's header is cut short")
    length = int.from_bytes(header[:4], "big")
    if not 0 < length <= most:
        raise WireError(f"a frame of {length} bytes; 1 to {most} are possible here")
    return length


def take_frames(
    buffer: bytearray, decode: Callable[[bytes], _Decoded]
) -> tuple[list[_Decoded], int]:
    """Cut all complete frames off a buffer and return what *decode* makes of each; also return the
    size that the buffer needs for the next one. Raises WireError."""
    decoded: list[_Decoded] = []
    at, needed = 0, FRAME_HEADER_BYTES
    with memoryview(buffer) as data:  # no more than one copy of a large one
        while at + FRAME_HEADER_BYTES <= len(data):
            size = FRAME_HEADER_BYTES + frame_length(bytes(data[at : at + FRAME_HEADER_BYTES]))
            if at + size > len(data):
                needed = size
                break
            decoded.append(decode(bytes(data[at : at + size])))
            at += size
    del buffer[:at]
    return decoded, needed


def check_frame(frame: bytes) -> bytes:
    """Return the payload of a whole frame, its header included. Raises WireError."""
    prove_frame(frame)
    return frame[FRAME_HEADER_BYTES:]


def prove_frame(frame: bytes) -> None:
    """Raise WireError unless a whole frame has the length and the checksum that it says."""
    if frame_length(frame) != len(frame) - FRAME_HEADER_BYTES:
        raise WireError(f"a frame of {len(frame)} bytes has another length than it says")
    if crc32(memoryview(frame)[FRAME_HEADER_BYTES:]) != int.from_bytes(frame[4:8], "big"):
        raise WireError("a frame fails its checksum")
