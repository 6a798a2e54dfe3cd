"""Bytes for the messages between nodes, and back.

A decoder takes any bytes at all: it returns what an encoder was given or raises
:class:`WireError`, and never allocates more than the bytes it was handed would explain. Every
number is big-endian and unsigned. Nothing here has state: any thread may call anything.

**Message**: the payload of one kind of frame (records.py)::

       0    1   version      01
       1    1   type         messages.MessageType
       2    1   flags        1 reject, 2 force, 4 a snapshot follows
       3    1   length of the sender's node id
       4    1   length of the receiver's node id
       5   48   term, index, log_term, commit, hint, context: 8 bytes each
      53    …   sender, receiver (UTF-8)
       …    …   the snapshot: index (8), term (8), length of its configuration (4), configuration
       …    …   batches (records.py) to the end; of each one its length (4), then itself
"""

from __future__ import annotations

import struct
from typing import Final

from conure.consensus.messages import Entry, Message, MessageType, SnapshotMeta
from conure.consensus.records import (
    BATCH,
    FRAME_HEADER_BYTES,
    MAX_FRAME_BYTES,
    decode_batch,
    encode_batch,
    encode_frame,
    prove_frame,
    split_batches,
)
from conure.errors import WireError

__all__ = [
    "MAX_MESSAGE_ENTRIES",
    "decode_message",
    "encode_message",
]
MAX_MESSAGE_ENTRIES: Final = 1 << 16  # an entry takes 20 times the bytes as an object, if empty

_VERSION = 1
_MESSAGE = struct.Struct(">BBBBBQQQQQQ")
_SNAPSHOT = struct.Struct(">QQI")
_LENGTH = struct.Struct(">I")
_REJECT, _FORCE, _WITH_SNAPSHOT = 1, 2, 4
assert _MESSAGE.size == 53


# -- messages ------------------------------------------------------------------------------------


def encode_message(message: Message) -> bytes:
    """Return the whole frame of a message.

    Its entries have to be consecutive, and MAX_MESSAGE_ENTRIES at most.
    """
    assert len(message.entries) <= MAX_MESSAGE_ENTRIES
    sender, to = message.sender.encode(), message.to.encode()
    snapshot = message.snapshot
    flags = (
        (_REJECT if message.reject else 0)
        | (_FORCE if message.force else 0)
        | (_WITH_SNAPSHOT if snapshot is not None else 0)
    )
    parts = [
        _MESSAGE.pack(
            _VERSION,
            message.type,
            flags,
            len(sender),
            len(to),
            message.term,
            message.index,
            message.log_term,
            message.commit,
            message.hint,
            message.context,
        ),
        sender,
        to,
    ]
    if snapshot is not None:
        size = len(snapshot.configuration)
        parts += (_SNAPSHOT.pack(snapshot.index, snapshot.term, size), snapshot.configuration)
    for batch, _ in split_batches(message.entries, MAX_FRAME_BYTES):
        head, body = encode_batch(batch)
        parts += (_LENGTH.pack(len(head) + len(body)), head, body)
    return encode_frame(b"".join(parts))


def decode_message(frame: bytes) -> Message:
    """Return the message of a whole frame, its header included.

    Raises WireError for anything that :func:`encode_message` of this version doesn't make.
    """
    prove_frame(frame)
    if frame[FRAME_HEADER_BYTES] != _VERSION:
        raise WireError(
            f"a message of format version {frame[FRAME_HEADER_BYTES]}; "
            f"this version knows {_VERSION}"
        )
    try:
        return _decode_fields(frame)
    except (struct.error, ValueError) as error:
        raise WireError(f"a malformed message: {error}") from error


def _decode_fields(frame: bytes) -> Message:
    _, kind, flags, sender_length, to_length, *numbers = _MESSAGE.unpack_from(frame, 8)
    if flags & ~(_REJECT | _FORCE | _WITH_SNAPSHOT):
        raise WireError(f"unknown message flags {flags:#04x}; a newer version sent them")
    to_at = FRAME_HEADER_BYTES + _MESSAGE.size + sender_length
    at = to_at + to_length
    if at > len(frame):
        raise WireError("a message whose node ids are cut short")
    snapshot = None
    if flags & _WITH_SNAPSHOT:
        index, term, size = _SNAPSHOT.unpack_from(frame, at)
        at += _SNAPSHOT.size + size
        if at > len(frame):
            raise WireError("a message whose snapshot is cut short")
        snapshot = SnapshotMeta(index, term, frame[at - size : at])
    term, index, log_term, commit, hint, context = numbers
    return Message(
        type=MessageType(kind),
        sender=frame[to_at - sender_length : to_at].decode(),
        to=frame[to_at : to_at + to_length].decode(),
        term=term,
        index=index,
        log_term=log_term,
        commit=commit,
        hint=hint,
        context=context,
        reject=bool(flags & _REJECT),
        force=bool(flags & _FORCE),
        entries=_decode_batches(frame, at),
        snapshot=snapshot,
    )


def _decode_batches(frame: bytes, at: int) -> list[Entry]:
    entries: list[Entry] = []
    while at < len(frame):
        (size,) = _LENGTH.unpack_from(frame, at)
        at += _LENGTH.size + size
        if size < BATCH.size or at > len(frame):
            raise WireError(f"a message with a batch of {size} bytes that it doesn't hold")
        n = BATCH.unpack_from(frame, at - size)[2]
        if len(entries) + n > MAX_MESSAGE_ENTRIES:
            raise WireError(f"a message of more than {MAX_MESSAGE_ENTRIES} entries")
        batch = decode_batch(frame, at - size, at)
        if entries and batch[0].index != entries[-1].index + 1:
            raise WireError("a message whose entries are not consecutive")
        entries += batch
    return entries
