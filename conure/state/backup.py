"""Backups: the whole state of a node as one file, and a new cluster made from such a file.

A backup is what a node has applied up to one index, every key space of it: the users' records with
their revisions and expiry, and sessions, locks and remembered outcomes beside them. Every number
is big-endian and unsigned::

    header
       0    8   magic        "CONUREBK"
       8    1   version      01
       9    3   00
      12    8   index        the last entry that the state covers, and so its newest revision
      20    8   term         of that entry
      28    8   digest       the state machine's as of it (machine.py)
      36    8   taken        when, in milliseconds since the Unix epoch
      44    8   records      how many follow
      52    2   length of the cluster id
      54    2   length of the node id
      56    …   cluster id, node id (UTF-8): where it was taken
       …    4   CRC-32 of everything before it

    frames of frames.py, any number; the payload of each are records (codec.encode_records), whose
    keys ascend over all frames

    trailer
       0    4   00000000     where the length of a frame would stand, which is never 0
       4    8   records      the same as in the header
      12   32   SHA-256 of everything before it

The file ends there.

1. A file is used as a whole or not at all: :func:`restore` reads every byte of it before it
   touches anything. A file that was cut, altered or extended anywhere is refused with the place.
2. Restoring makes another cluster: the node's incarnation and the cluster's ID are new, so that no
   member of the old cluster takes the restored node for one of its own. Its log begins after the
   backup's index and its term is no lower, so every later revision is greater than all in the file.
3. A restore has one commit point: ``RESTORE-UNFINISHED.json`` becomes ``identity.json`` when all
   the rest is on disk. As long as it has the former name, no node starts there (datadir.py takes it
   for a stranger's directory) and another restore may begin anew.
4. Memory is bounded by a chunk, or by one large value, and a page cache (S7).

A :class:`Backup` belongs to the one thread that sends it and needs no lock; writes go on beside it.
:func:`restore` is for the main thread of a process in which no node runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from operator import ge, itemgetter
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from conure.consensus.members import Configuration, Server
from conure.consensus.messages import HardState, Message, MessageType, SnapshotHeader, SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.consensus.records import FRAME_HEADER_BYTES, check_frame, encode_frame, frame_length
from conure.errors import (
    CorruptionError,
    ForeignDirectory,
    ProtocolViolation,
    StorageError,
    WireError,
)
from conure.fileio import FileSystem
from conure.state import snapshots
from conure.state.codec import decode_records
from conure.state.machine import Census, PinnedState
from conure.state.snapshots import IncomingSnapshot, OutgoingSnapshot
from conure.storage.datadir import Identity, read_identity, write_identity
from conure.storage.engine import EngineKind, EngineOptions
from conure.storage.engines import kind_named

__all__ = [
    "UNFINISHED",
    "Backup",
    "BackupFile",
    "Facts",
    "Header",
    "Progress",
    "Restored",
    "UnusableBackup",
    "restore",
]

PIECE_BYTES: Final = 512 << 10
"""The most bytes that :meth:`Backup.chunks` yields at a time."""

CACHE_BYTES: Final = 4 << 20
"""Page cache of the engine that is built; it is only written."""

UNFINISHED: Final = "RESTORE-UNFINISHED.json"
"""The name of ``identity.json`` until a restore has ended."""

_MAGIC, _VERSION = b"CONUREBK", 1
_HEADER = struct.Struct(">8sB3xQQQQQHH")
_CHECKSUM = struct.Struct(">I")
_END = struct.Struct(">IQ")
_TRAILER_BYTES = _END.size + hashlib.sha256().digest_size
_KEPT = frozenset({"LOCK", "lost+found"})  # an empty directory may have these
_IDENTITY, _DATABASE, _LSM, _RAFT = "identity.json", "conure.db", "lsm", "raft"
_STAGED = "incoming-"

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told now and then what is being done, and how many bytes of how many are."""


class UnusableBackup(StorageError):
    """A file that is no whole backup. Nothing was changed for its sake.

    ``file`` names it, ``offset`` is the byte at which the fault was found, ``why`` says which.
    """

    title = "unusable backup"

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(
            f"{file} can't be restored, byte {offset}: {why}; "
            "take another copy of it, or another backup"
        )
        self.file = file
        self.offset = offset
        self.why = why


class Facts(NamedTuple):
    """What a backup says of its origin: *taken* in milliseconds since the Unix epoch."""

    cluster_id: str
    node_id: str
    taken: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a backup file; see the head of this module."""

    index: int
    term: int
    digest: int
    taken: int
    records: int
    cluster_id: str
    node_id: str


# -- taking --------------------------------------------------------------------------------------


class Backup:
    """A pinned state on its way into a file; it closes the state with itself."""

    def __init__(self, state: PinnedState, facts: Facts) -> None:
        self.header = Header(
            index=state.meta.index,
            term=state.meta.term,
            digest=state.digest,
            taken=facts.taken,
            records=len(state.reader),
            cluster_id=facts.cluster_id,
            node_id=facts.node_id,
        )
        message = Message(MessageType.SNAPSHOT, facts.node_id, "", state.meta.term)
        self._records = OutgoingSnapshot(message, state)

    def chunks(self) -> Iterator[bytes]:
        """Yield the file in pieces of up to PIECE_BYTES. To be called once.

        Raises CorruptionError, DiskFailed, and StorageError once the state is closed; what was
        yielded until then is refused by :func:`restore`.
        """
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part)
            for start in range(0, len(part), PIECE_BYTES):
                yield part[start : start + PIECE_BYTES]
        yield digest.digest()

    def close(self) -> None:
        """Let go of the state; calling it again does nothing. Any thread."""
        self._records.close()

    def _parts(self) -> Iterator[bytes]:
        yield _encode_header(self.header)
        for payload in self._records.chunks(b""):
            yield encode_frame(payload)
        yield _END.pack(0, self.header.records)


# -- reading -------------------------------------------------------------------------------------


class BackupFile:
    """A backup that is read, whole or not. For one thread; close it."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        """Open *path* and read its header.

        Raises FileNotFoundError, UnusableBackup and DiskFailed.
        """
        self._file = fs.open(path, read_only=True)
        try:
            self._size = self._file.size()
            self._head = self._read_header()
            self.header = self._decode_header()
        except BaseException:
            self._file.close()
            raise

    def verify(self, progress: Progress) -> Census:
        """Read everything and prove that it is what was written, and makes a state; count it.

        Raises UnusableBackup and DiskFailed.
        """
        if not self.header.index:
            raise self._unusable(12, "it was taken where nothing had been applied")
        last = b""
        records = 0
        kinds: Counter[bytes] = Counter()
        for offset, payload in self.payloads("verifying the backup", progress):
            try:
                rows = decode_records(payload)
            except WireError as error:
                raise self._unusable(offset, str(error)) from error
            keys = [row[0] for row in rows]
            if any(map(ge, [last, *keys], keys)):
                raise self._unusable(offset, "its keys don't ascend")
            newest = max(map(itemgetter(3), rows), default=0)
            if newest > self.header.index:
                why = f"a record of revision {newest}, though it ends at {self.header.index}"
                raise self._unusable(offset, why)
            last = keys[-1] if keys else last
            records += len(keys)
            kinds.update([key[:1] for key in keys])
        if records != self.header.records:
            why = f"it has {records} records, and says that it has {self.header.records}"
            raise self._unusable(self._size - _TRAILER_BYTES, why)
        return Census.of(kinds)

    def payloads(self, doing: str, progress: Progress) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and the payload of each frame, of which the checksum holds.

        Ends normally only if the whole file is as it was written; *doing* is for *progress*.
        Raises UnusableBackup and DiskFailed.
        """
        digest = hashlib.sha256(self._head)
        offset = len(self._head)
        while True:
            head = self._read(FRAME_HEADER_BYTES, offset)
            if not any(head[:4]):
                break
            try:
                length = frame_length(head)
            except WireError as error:
                raise self._unusable(offset, str(error)) from error
            frame = self._read(FRAME_HEADER_BYTES + length, offset)
            try:
                payload = check_frame(frame)
            except WireError as error:
                raise self._unusable(offset, str(error)) from error
            digest.update(frame)
            yield offset, payload
            offset += len(frame)
            progress(doing, offset, self._size)
        self._check_trailer(offset, digest)
        progress(doing, self._size, self._size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # -- private ---------------------------------------------------------------------------------

    def _read(self, size: int, offset: int) -> bytes:
        """Return exactly *size* bytes, so many of which a file of this size may have."""
        if offset + size > self._size:
            why = f"it was cut or altered: the file ends at byte {self._size}, amid the backup"
            raise self._unusable(offset, why)
        data = self._file.pread(size, offset)
        if len(data) < size:
            raise self._unusable(offset, "the file became shorter while it was read")
        return data

    def _read_header(self) -> bytes:
        data = self._read(min(_HEADER.size, max(self._size, len(_MAGIC))), 0)
        if data[:8] != _MAGIC:
            raise self._unusable(0, "it doesn't begin like a backup of ConureDB")
        if data[8:9] > bytes((_VERSION,)):
            why = f"format version {data[8]}, and this version of ConureDB knows {_VERSION} only"
            raise self._unusable(8, why)
        *_, cluster_length, node_length = _HEADER.unpack(self._read(_HEADER.size, 0))
        return self._read(_HEADER.size + cluster_length + node_length + _CHECKSUM.size, 0)

    def _decode_header(self) -> Header:
        data = self._head
        (check,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
        if crc32(data[: -_CHECKSUM.size]) != check:
            raise self._unusable(0, "the checksum of its header doesn't match")
        _, version, index, term, digest, taken, records, size, _ = _HEADER.unpack_from(data)
        names = data[_HEADER.size : -_CHECKSUM.size]
        try:
            cluster_id, node_id = names[:size].decode(), names[size:].decode()
        except UnicodeDecodeError:
            raise self._unusable(_HEADER.size, "IDs that are no text") from None
        if version != _VERSION or any(data[9:12]):
            raise self._unusable(8, f"an unknown format version {version}")
        return Header(index, term, digest, taken, records, cluster_id, node_id)

    def _check_trailer(self, offset: int, digest: hashlib._Hash) -> None:
        trailer = self._read(_TRAILER_BYTES, offset)
        if offset + _TRAILER_BYTES != self._size:
            more = self._size - offset - _TRAILER_BYTES
            raise self._unusable(offset, f"there are {more} bytes behind its end")
        digest.update(trailer[: _END.size])
        if digest.digest() != trailer[_END.size :]:
            raise self._unusable(offset, "its SHA-256 doesn't match: some byte before was changed")
        if _END.unpack_from(trailer)[1] != self.header.records:
            raise self._unusable(offset, "header and trailer name different numbers of records")

    def _unusable(self, offset: int, why: str) -> UnusableBackup:
        return UnusableBackup(self._file.path, offset, why)


def _encode_header(header: Header) -> bytes:
    *numbers, cluster_id, node_id = astuple(header)
    names = [cluster_id.encode(), node_id.encode()]
    data = _HEADER.pack(_MAGIC, _VERSION, *numbers, *map(len, names)) + b"".join(names)
    return data + _CHECKSUM.pack(crc32(data))


# -- restoring -----------------------------------------------------------------------------------


class Restored(NamedTuple):
    """What :func:`restore` has made, and of what."""

    identity: Identity
    header: Header
    census: Census


def restore(
    fs: FileSystem,
    path: str,
    directory: str,
    *,
    node_id: str,
    raft_address: str,
    http_address: str,
    kind: EngineKind,
    page_size: int,
    progress: Progress,
) -> Restored:
    """Make *directory* the data directory of a new cluster of one node that holds a backup, in an
    engine of that *kind*, whichever the backup is from.

    The directory has to be missing or empty, or left by a restore that didn't end. The addresses
    count until the node announces its own at its first start. Raises FileNotFoundError and
    UnusableBackup, ForeignDirectory and DirectoryInUse, all of them with nothing changed; DiskFull
    or DiskFailed, after which it may be called again.
    """
    backup = BackupFile(fs, path)
    try:
        if fs.exists(directory):
            _refuse_if_occupied(fs, directory)  # better now than after a long look at the file
        census = backup.verify(progress)
        fs.make_directory(directory)
        holder = f"process {os.getpid()} on {socket.gethostname()} (restoring node {node_id})"
        lock = fs.lock(os.path.join(directory, "LOCK"), holder)
        try:
            _refuse_if_occupied(fs, directory)
            _remove_leftovers(fs, directory, kind)
            identity = Identity(node_id, uuid.uuid4().hex, uuid.uuid4().hex, engine=kind.name)
            member = Server(node_id, raft_address, http_address, incarnation=identity.incarnation)
            write_identity(fs, os.path.join(directory, UNFINISHED), identity)
            fs.sync_directory(directory)
            options = EngineOptions(page_size, CACHE_BYTES)
            _build(fs, directory, backup, Configuration((member,)), kind, options, progress)
            fs.rename(os.path.join(directory, UNFINISHED), os.path.join(directory, _IDENTITY))
            fs.sync_directory(directory)
        finally:
            lock.release()
    finally:
        backup.close()
    return Restored(identity, backup.header, census)


def _refuse_if_occupied(fs: FileSystem, directory: str) -> None:
    names = set(fs.list(directory)) - _KEPT
    if UNFINISHED in names:
        names -= {UNFINISHED, _DATABASE, _LSM, _RAFT}
        names = {name for name in names if not name.startswith(_STAGED)}
    if names:
        raise ForeignDirectory(
            f"{directory} holds {min(names)!r}, and a backup is only restored into a directory "
            "that is new or empty; name another data_dir, or move what is in this one away"
        )


def _remove_leftovers(fs: FileSystem, directory: str, kind: EngineKind) -> None:
    """Remove what a restore that didn't end has made, all but the name that says so.

    It may have been one into another kind of engine; if it can't tell, it has made nothing yet.
    """
    unfinished = os.path.join(directory, UNFINISHED)
    if fs.exists(unfinished):
        with contextlib.suppress(CorruptionError, ForeignDirectory):
            kind = kind_named(read_identity(fs, unfinished)[0].engine)
    kind.remove(fs, os.path.join(directory, _DATABASE))
    for place in snapshots.staged_places(fs, directory):
        kind.remove(fs, place)
    raft = os.path.join(directory, _RAFT)
    if fs.exists(raft):
        for name in fs.list(raft):
            fs.remove(os.path.join(raft, name))
        fs.sync_directory(raft)
    fs.sync_directory(directory)


def _build(
    fs: FileSystem,
    directory: str,
    backup: BackupFile,
    members: Configuration,
    kind: EngineKind,
    options: EngineOptions,
    progress: Progress,
) -> None:
    """Put the records and the log in place, as if the backup were a snapshot from a leader."""
    header = backup.header
    meta = SnapshotMeta(header.index, header.term, members.encode())
    message = Message(MessageType.SNAPSHOT, "", "", header.term, snapshot=meta)
    incoming = IncomingSnapshot(
        fs,
        directory,
        SnapshotHeader(message, header.digest, header.records, uuid.uuid4().hex),
        kind=kind,
        options=options,
        finished=lambda _: None,
    )
    try:
        for _, payload in backup.payloads("restoring", progress):
            incoming.add(payload)
        incoming.finish()
    except ProtocolViolation as error:  # the file was found to be in order
        why = (
            f"{error}; its keys may be too long for pages of {options.page_size} bytes (page_size)"
        )
        raise StorageError(why) from error
    except BaseException:
        incoming.discard()
        raise
    raft_log = RaftLog.open(fs, os.path.join(directory, _RAFT))
    try:
        raft_log.set_hard_state(HardState(header.term))
        snapshots.install(fs, directory, raft_log, meta, kind)
    finally:
        raft_log.close()
