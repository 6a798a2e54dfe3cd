"""The manifest: which files make up the last durable state, and how far that reaches.

It is the file at the engine's place; all other files lie in the folder ``lsm`` beside it and count
only if a manifest names them. It is written anew as a whole: to ``<place>.new``, synced, renamed,
and the directory synced; so there is the old one or the new one (S2). All numbers are
little-endian; *name* stands for a length of 2 bytes and as many bytes of ASCII, *key* for the same
with a length of 4:

========= =========================================================================================
0         8 bytes: magic ``ConureLS``
8         4 bytes: version of the format, 1
12        4 bytes: size of the whole file
16        applied index, applied term, digest, records: 8 bytes each
48        number of levels, of blob files, of scan marks: 4 bytes each
60        for each level: number of its tables, 4 bytes, and the tables: *name*, size (8), CRC of
          its footer (4), records (8), tombstones (8), first *key*, last *key*, number of blob files
          that it refers to (4), and for each of these *name* and bytes (8)
          for each blob file: *name*, size (8)
          for each scan mark: start and end, a *key* each
end - 4   CRC-32 of everything before it
========= =========================================================================================

An empty state as of index 7 and term 2 takes 68 bytes: ``ConureLS``, ``01000000 44000000``, the
numbers 7, 2, 0 and 0, ``01000000 00000000 00000000``, no table ``00000000``, the CRC.

A *scan mark* says that no record is alive between two keys, so that a scan need not go through
what was deleted there (``marks.py``).

Any bytes are either a manifest or raise CorruptionError (S3). For the thread that owns the
directory; :func:`read` may be called by any.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count, pairwise
from struct import Struct
from time import sleep
from typing import Final, NamedTuple
from zlib import crc32

from conure.errors import CorruptionError, DiskFailed, DiskFull, Exhausted, VersionTooNew
from conure.fileio import FileSystem
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.tables import TableFacts

__all__ = ["MAGIC", "NEW", "Manifest", "decode", "encode", "read", "write"]

MAGIC: Final = b"ConureLS"
NEW: Final = ".new"
"""The suffix of a manifest that is being written."""

_VERSION: Final = 1
_PATIENCE: Final = 500  # attempts to sync the directory, a hundredth of a second apart
_MOST_BYTES: Final = 1 << 28  # of a manifest; ours have some hundred KiB at most

_HEAD = Struct("<8sII")
_STATE = Struct("<QQQQ")
_COUNTS = Struct("<III")
_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")
_TABLE = Struct("<QIQQ")  # after its name


class Manifest(NamedTuple):
    """What a manifest says. *levels* are as in a ``Version``, *marks* as in ``marks.py``."""

    applied_index: int = 0
    term: int = 0
    digest: int = 0
    records: int = 0
    levels: tuple[tuple[TableFacts, ...], ...] = ((),)
    blobs: tuple[BlobFacts, ...] = ()
    marks: tuple[tuple[bytes, bytes], ...] = ()

    def names(self) -> frozenset[str]:
        """Return the names of the files that it names."""
        tables = [facts.name for level in self.levels for facts in level]
        return frozenset([*tables, *(facts.name for facts in self.blobs)])


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as the bytes of its file."""
    index, term, digest, records, levels, blobs, marks = manifest
    parts = [_STATE.pack(index, term, digest, records)]
    parts.append(_COUNTS.pack(len(levels), len(blobs), len(marks)))
    for level in levels:
        parts.append(_U32.pack(len(level)))
        for facts in level:
            parts.append(_name(facts.name))
            parts.append(_TABLE.pack(facts.size, facts.footer, facts.records, facts.tombstones))
            parts += (_key(facts.first), _key(facts.last), _U32.pack(len(facts.blobs)))
            for name, size in facts.blobs:
                parts += (_name(name), _U64.pack(size))
    for blob in blobs:
        parts += (_name(blob.name), _U64.pack(blob.size))
    for start, end in marks:
        parts += (_key(start), _key(end))
    body = b"".join(parts)
    data = _HEAD.pack(MAGIC, _VERSION, _HEAD.size + len(body) + 4) + body
    return data + _U32.pack(crc32(data))


def decode(path: str, data: bytes) -> Manifest:
    """Return what the bytes of the file *path* say.

    Raises VersionTooNew and CorruptionError.
    """
    if data[:8] != MAGIC:
        raise CorruptionError(path, 0, "it doesn't begin like a manifest of the LSM engine")
    if len(data) < _HEAD.size + 4:
        raise CorruptionError(path, 0, "the manifest is cut short")
    _, version, size = _HEAD.unpack_from(data)
    if crc32(data[:-4]) != _U32.unpack_from(data, len(data) - 4)[0]:
        raise CorruptionError(path, 0, "the checksum of the manifest is wrong")
    if version > _VERSION:
        raise VersionTooNew(path, version, _VERSION)
    if version != _VERSION or size != len(data):
        raise CorruptionError(path, 8, "version or size of the manifest are impossible")
    reader = _Reader(data)
    try:
        return _manifest(reader)
    except ValueError as error:
        raise CorruptionError(path, reader.at, str(error)) from error


def read(fs: FileSystem, path: str) -> Manifest:
    """Read the manifest at *path*.

    Raises FileNotFoundError, and what :func:`decode` raises, and DiskFailed.
    """
    file = fs.open(path, read_only=True)
    try:
        size = file.size()
        data = file.pread(min(size, _MOST_BYTES) if size > 8 else 8, 0)
    finally:
        file.close()
    return decode(path, data)


def write(fs: FileSystem, path: str, manifest: Manifest) -> None:
    """Make *manifest* the durable one at *path*. What it names has to be durable already (S2).

    Raises DiskFull and Exhausted, with nothing changed, and DiskFailed.
    """
    new = path + NEW
    try:
        file = fs.open(new, create=True)
        try:
            file.truncate(0)
            file.pwrite(encode(manifest), 0)
            file.sync()
        finally:
            file.close()
    except DiskFull:
        if fs.exists(new):
            fs.remove(new)
        raise
    fs.rename(new, path)
    _sync_directory(fs, os.path.dirname(path) or ".")


# -- private ---------------------------------------------------------------------------------------


def _sync_directory(fs: FileSystem, directory: str) -> None:
    """Sync the directory whose manifest has changed its name, as soon as there is a descriptor:
    nobody can go on, or back, before."""
    for attempt in count(1):
        try:
            fs.sync_directory(directory)
        except Exhausted as error:
            if attempt == _PATIENCE:
                raise DiskFailed(str(error)) from error
            sleep(0.01)
        else:
            return


def _name(name: str) -> bytes:
    data = name.encode("ascii")
    return _U16.pack(len(data)) + data


def _key(key: bytes) -> bytes:
    return _U32.pack(len(key)) + key


class _Reader:
    """Takes fields from bytes one after the other. Raises ValueError where they end too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._end = len(data) - 4
        self.at = _HEAD.size

    def numbers(self, layout: Struct) -> tuple[int, ...]:
        at = self.at
        if at + layout.size > self._end:
            raise ValueError("the manifest ends too soon")
        self.at += layout.size
        return layout.unpack_from(self._data, at)

    def number(self, layout: Struct) -> int:
        return self.numbers(layout)[0]

    def count(self, least: int) -> int:
        """Return how many things follow; each takes at least so many bytes."""
        count = self.number(_U32)
        self.check(count, least)
        return count

    def check(self, count: int, least: int) -> None:
        if count * least > self._end - self.at:
            raise ValueError("the manifest ends too soon")

    def piece(self, size: int) -> bytes:
        at = self.at
        if at + size > self._end:
            raise ValueError("the manifest ends too soon")
        self.at += size
        return self._data[at : at + size]

    def name(self) -> str:
        name = self.piece(self.number(_U16))
        if not name or not name.isascii() or b"/" in name or name.startswith(b"."):
            raise ValueError("a file has an impossible name")
        return name.decode()

    def key(self) -> bytes:
        return self.piece(self.number(_U32))

    def ended(self) -> bool:
        return self.at == self._end


def _manifest(reader: _Reader) -> Manifest:
    index, term, digest, records = reader.numbers(_STATE)
    level_count, blob_count, mark_count = reader.numbers(_COUNTS)
    reader.check(level_count, 4)
    if not level_count:
        raise ValueError("there is no level")
    levels = []
    for number in range(level_count):
        level = [_table(reader) for _ in range(reader.count(44))]
        if number and any(a.last >= b.first for a, b in pairwise(level)):
            raise ValueError("tables of a level overlap")
        levels.append(tuple(level))
    reader.check(blob_count, 10)
    blobs = tuple([BlobFacts(reader.name(), reader.number(_U64)) for _ in range(blob_count)])
    reader.check(mark_count, 8)
    marks = tuple([(reader.key(), reader.key()) for _ in range(mark_count)])
    if not reader.ended():
        raise ValueError("something follows the last field")
    _prove_names(levels, blobs)
    return Manifest(index, term, digest, records, tuple(levels), blobs, marks)


def _table(reader: _Reader) -> TableFacts:
    name = reader.name()
    size, footer, records, tombstones = reader.numbers(_TABLE)
    first, last = reader.key(), reader.key()
    refers = tuple([(reader.name(), reader.number(_U64)) for _ in range(reader.count(10))])
    if not b"" < first <= last or not 0 <= tombstones <= records:
        raise ValueError(f"the facts of {name} are impossible")
    return TableFacts(name, size, footer, records, tombstones, first, last, refers)


def _prove_names(levels: Sequence[Sequence[TableFacts]], blobs: Sequence[BlobFacts]) -> None:
    """Raise ValueError if a name is there twice, or a blob file that is referred to isn't."""
    files = {blob.name for blob in blobs}
    tables = [facts for level in levels for facts in level]
    if len({facts.name for facts in tables} | files) != len(tables) + len(blobs):
        raise ValueError("a file is named twice")
    if not files.issuperset(name for facts in tables for name, _ in facts.blobs):
        raise ValueError("a blob file is missing")
