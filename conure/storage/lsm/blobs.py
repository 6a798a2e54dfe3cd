"""Blob files: long values, which tables only refer to.

A blob file is written once and never changed. Integers are little-endian:

====== ==== ======================================================================================
offset size
0      8    ``CNRBLOBS``
8      4    1: version of the format
12     4    CRC-32 of the file's name and the 12 bytes before: the file's *seed*
16          records
====== ==== ======================================================================================

A record, at the offset that a reference names:

====== ==== ======================================================================================
offset size
0      4    CRC-32 of this record's offset (8 bytes), what follows up to the chunks, and the key,
            begun with the file's seed
4      4    bytes of the value
8      2    bytes of the key
10          the key
            *chunks*: 64 KiB of the value, or what is left of it, and 4 bytes: CRC-32 of these
            bytes, begun with the CRC before
====== ==== ======================================================================================

So each CRC stands for everything before it in its record, its place and its file: the beginning of
a value is proved without the rest, and the bytes of another file, place or key are never taken for
it.

A reference, with which the cell in a table ends: offset of the record (8), bytes of the value (4),
the name of the file. A value of 70,000 bytes of the key ``k`` takes 70,019 bytes.

Which of them are still referred to is known from the tables. A :class:`BlobWriter` is for one
thread at a time, a :class:`BlobFile` for any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from operator import itemgetter
from struct import Struct
from typing import NamedTuple, NoReturn
from zlib import crc32

from conure.errors import CorruptionError, VersionTooNew
from conure.fileio import FileSystem, Mapped
from conure.storage.cells import SPILLED, reference_of

__all__ = [
    "CHUNK",
    "BlobFacts",
    "BlobFile",
    "BlobWriter",
    "bytes_of",
    "file_of",
    "length_of",
    "refer",
]

CHUNK = 64 << 10
"""Bytes of a value that have a CRC of their own."""

SYNC_BYTES = 8 << 20
GATHERED = 256 << 10
"""Bytes that are written at once."""

_MAGIC = b"CNRBLOBS"
_VERSION = 1
_HEAD = Struct("<8sI")
_CRC = Struct("<I")
_HEAD_SIZE = _HEAD.size + _CRC.size
_RECORD = Struct("<IIH")  # CRC, bytes of the value, bytes of the key
_SIZES = Struct("<IH")
_OFFSET = Struct("<Q")
_REF = Struct("<QI")  # offset, bytes of the value; the file's name follows
_MAX_KEY = (1 << 16) - 1
_MAX_VALUE = (1 << 32) - 1
_STRIDE = CHUNK + _CRC.size
_FLAGS = itemgetter(slice(0, 1))  # of a cell, as bytes; nothing of an empty one


class BlobFacts(NamedTuple):
    """What is known of a blob file without opening it; *size* is in bytes."""

    name: str
    size: int


# -- references ------------------------------------------------------------------------------------


def length_of(ref: bytes) -> int:
    """Return how many bytes the value has. Raises ValueError."""
    return _opened(ref)[1]


def file_of(ref: bytes) -> str:
    """Return the name of the file that has the value. Raises ValueError."""
    return _opened(ref)[2]


def bytes_of(key: bytes, ref: bytes) -> int:
    """Return how many bytes of its file the value of *key* takes. Raises ValueError."""
    return _record_size(len(key), _opened(ref)[1])


def refer(keys: Sequence[bytes], cells: Sequence[bytes], blobs: dict[str, int]) -> None:
    """Add up in *blobs* the bytes of each file that cells refer to. Raises ValueError."""
    if not any(flags and flags[0] & SPILLED for flags in set(map(_FLAGS, cells))):
        return
    for key, cell in zip(keys, cells, strict=True):
        if cell and cell[0] & SPILLED:
            _, length, name = _opened(reference_of(cell))
            blobs[name] = blobs.get(name, 0) + _record_size(len(key), length)


def _opened(ref: bytes) -> tuple[int, int, str]:
    """Return offset, length and name of the file. Raises ValueError."""
    if len(ref) <= _REF.size:
        raise ValueError("a reference to a value is too short")
    offset, length = _REF.unpack_from(ref)
    return offset, length, ref[_REF.size :].decode()


def _record_size(key_size: int, length: int) -> int:
    return _RECORD.size + key_size + length + _CRC.size * -(-length // CHUNK)


def _place(offset: int, seed: int) -> int:
    """Return the CRC with which a record begins at that offset."""
    return crc32(_OFFSET.pack(offset), seed)


def _seed(name: str, head: bytes) -> int:
    return crc32(head, crc32(name.encode()))


# -- writing ---------------------------------------------------------------------------------------


class BlobWriter:
    """Makes the file *name* in *folder*, where nothing may have that name. :meth:`add` values,
    then :meth:`finish`; after an error, or to give up, :meth:`abort`.

    Raises FileExistsError, DiskFull and DiskFailed.
    """

    def __init__(self, fs: FileSystem, folder: str, name: str) -> None:
        self._fs = fs
        self._path = os.path.join(folder, name)
        self._name = name
        self._is_finished = False
        head = _HEAD.pack(_MAGIC, _VERSION)
        self._seed = _seed(name, head)
        self._parts = [head, _CRC.pack(self._seed)]  # not written yet
        self._written = 0
        self._synced = 0
        self.size = _HEAD_SIZE
        """How many bytes the file has so far."""
        self._file = fs.open(self._path, exclusive=True)
        self._exists = True

    @property
    def facts(self) -> BlobFacts:
        """What there is to know of the file, once it is finished."""
        assert self._is_finished
        return BlobFacts(self._name, self.size)

    def add(self, key: bytes, value: bytes) -> bytes:
        """Take the value of *key* and return the reference to it. Raises ValueError if one of them
        is too long, DiskFull and DiskFailed."""
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise ValueError(f"a key has more than {_MAX_KEY} bytes, or a value {_MAX_VALUE}")
        offset = self.size
        sizes = _SIZES.pack(len(value), len(key))
        crc = crc32(key, crc32(sizes, _place(offset, self._seed)))
        self._parts += (_CRC.pack(crc), sizes, key)
        self.size += _RECORD.size + len(key)
        for at in range(0, len(value), CHUNK):
            chunk = value[at : at + CHUNK]
            crc = crc32(chunk, crc)
            self._parts += (chunk, _CRC.pack(crc))
            self.size += len(chunk) + _CRC.size
            if self.size - self._written >= GATHERED:  # also amid a value: no copy of it is held
                self._write()
        return _REF.pack(offset, len(value)) + self._name.encode()

    def finish(self) -> None:
        """Write the rest and sync. Raises DiskFull and DiskFailed."""
        self._write()
        self._file.sync()
        self._file.close()
        self._is_finished = True

    def close(self) -> None:
        """Let go of the file as it is, for whoever removes it later or not at all."""
        self._file.close()

    def abort(self) -> None:
        """Remove the file; a second time, nothing happens. Raises DiskFailed."""
        if self._exists:
            self._exists = False
            self._file.close()
            self._fs.remove(self._path)

    def _write(self) -> None:
        self._file.pwritev(self._parts, self._written)
        self._written = self.size
        self._parts = []
        if self._written - self._synced >= SYNC_BYTES:
            self._file.sync()
            self._synced = self._written


# -- reading ---------------------------------------------------------------------------------------


class BlobFile:
    """A blob file to read from. Immutable; any thread.

    Reading raises CorruptionError, and DiskFailed unless the file is mapped.
    """

    __slots__ = ("_data", "_path", "_seed", "facts")

    def __init__(self, path: str, data: Mapped, facts: BlobFacts, seed: int) -> None:
        self.facts = facts
        self._path = path
        self._data = data
        self._seed = seed

    @classmethod
    def open(
        cls, fs: FileSystem, folder: str, facts: BlobFacts, *, mapped: bool = True
    ) -> BlobFile:
        """Open the file of these facts; without *mapped* it is read by calls.

        Raises FileNotFoundError, CorruptionError, VersionTooNew and DiskFailed.
        """
        path = os.path.join(folder, facts.name)
        data = fs.map(path, facts.size, mapped=mapped)
        content = data[:_HEAD_SIZE]
        head = content[: _HEAD.size]
        seed = _seed(facts.name, head)
        if content[_HEAD.size :] != _CRC.pack(seed):
            raise CorruptionError(path, 0, "the head fails its check, or is another file's")
        magic, version = _HEAD.unpack(head)
        if magic != _MAGIC:
            raise CorruptionError(path, 0, "the file doesn't begin like a blob file")
        if version > _VERSION:
            raise VersionTooNew("a blob file", version, _VERSION)
        return cls(path, data, facts, seed)

    def read(self, key: bytes, ref: bytes) -> bytes:
        """Return the value of *key* to which *ref* refers."""
        return self.beginning(key, ref, _MAX_VALUE)

    def beginning(self, key: bytes, ref: bytes, most: int) -> bytes:
        """Return the first *most* bytes of that value; no more than 64 KiB beyond are read.

        With *most* 0 this only proves that the reference leads to a value of *key*.
        """
        try:
            offset, length, _ = _opened(ref)
        except ValueError as error:
            self._fail(0, str(error))
        if offset + _record_size(len(key), length) > self.facts.size:
            self._fail(min(offset, self.facts.size), "a reference leads out of the file")
        found, crc, at = self._heading(offset, len(key))
        if found != (length, key):
            self._fail(offset, "there is another value where a reference leads")
        chunks = [chunk for _, chunk in self._chunks(at, crc, length, most)]
        if len(chunks) == 1:
            return chunks[0][:most]
        return b"".join(chunks)[:most]

    def verify(self) -> Iterator[None]:
        """Prove the whole file, record by record, in slices of a few milliseconds."""
        size = self.facts.size
        head = self._data[:_HEAD_SIZE]
        if head != _HEAD.pack(_MAGIC, _VERSION) + _CRC.pack(self._seed):
            self._fail(0, "the head fails its check")
        at = _HEAD_SIZE
        slices = 0
        while at < size:
            (length, key), crc, start = self._heading(at, None)
            end = at + _record_size(len(key), length)
            if end > size:
                self._fail(at, "a record leads out of the file")
            slices += 1
            for number, _ in self._chunks(start, crc, length, length):
                slices += 1
                if not number % 16:
                    yield
            if not slices % 16:
                yield
            at = end

    def _heading(self, offset: int, key_size: int | None) -> tuple[tuple[int, bytes], int, int]:
        """Return length and key of the record at *offset*, its CRC so far and where chunks begin.

        A key of another size than *key_size* is no key of this record.
        """
        size = self.facts.size
        head = self._data[offset : offset + _RECORD.size + (key_size or 0)]
        if len(head) < _RECORD.size:
            self._fail(offset, "a record is cut")
        crc, length, found = _RECORD.unpack_from(head)
        start = offset + _RECORD.size + found
        if key_size is None:
            head += self._data[offset + _RECORD.size : start]
        elif found != key_size:
            self._fail(offset, "there is another key where a reference leads")
        if start > size:
            self._fail(offset, "a record is cut")
        expected = crc32(head[_CRC.size :], _place(offset, self._seed))
        if expected != crc:
            self._fail(offset, "the heading of a value fails its check")
        return (length, head[_RECORD.size :]), crc, start

    def _chunks(self, at: int, crc: int, length: int, most: int) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the bytes of each chunk that the first *most* bytes are in."""
        data = self._data
        for number, start in enumerate(range(0, min(length, most), CHUNK)):
            size = min(CHUNK, length - start)
            place = at + number * _STRIDE
            chunk = data[place : place + size]
            crc = crc32(chunk, crc)
            if data[place + size : place + size + _CRC.size] != _CRC.pack(crc):
                self._fail(place, "a part of a value fails its check")
            yield number, chunk

    def _fail(self, at: int, why: str) -> NoReturn:
        raise CorruptionError(self._path, at, why)
