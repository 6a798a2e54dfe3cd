"""Files of zeros beside the log: spares for segments to come, and the reserve for a full disk.

A spare is zeroed and synced before it is called a spare. A name says what a file is::

    <n>.spare               a segment to come
    <n>.reserve             the same, small, for what has to be written on a full disk (below)
    <n>.old                 a segment that is no longer needed, to be made a spare or removed
    <n>.tmp                 half made; removed by the next open

**The reserve**: four files of 16 KiB beside the spares, for a disk that is full. Clients' writes
are refused (``RaftLog.reserve``) when neither the segment that is written to nor a spare has room
for them. What nobody can refuse any more goes on in the reserve:

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

:meth:`Spares.prepare` may be called by any thread, and so may the rest, but for what says that it
is the log's owner's. One lock guards the lists, another one lets one file be made at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

from conure.errors import DiskFull, Exhausted
from conure.fileio import FileSystem

__all__ = ["RESERVE_BYTES", "RESERVE_FILES", "Spare", "Spares", "file_size"]

RESERVE_BYTES = 16 << 10
"""The size of a file of the reserve."""

RESERVE_FILES: Final = 4
"""How many of them there are; commands leave half of them alone."""

_SPARES = 2

Spare = tuple[int, str]
"""The size of a file of zeros, and its path."""


class Spares:
    """The spares, the reserve, and the segments that are no longer needed, of one directory.

    *segment_bytes* is the size of a spare.
    """

    def __init__(self, fs: FileSystem, directory: str, segment_bytes: int) -> None:
        """Look for what there is; remove what is half made. Raises DiskFailed."""
        self._fs = fs
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._preparing = threading.Lock()  # held by whoever makes a file; taken before _lock
        self._lock = threading.Lock()  # guards the four below
        self.ready: list[Spare] = []
        self.reserve: list[Spare] = []
        self._old: list[str] = []
        self._number = 0
        self.is_cramped = False
        """Whether the last attempt to make a file found no room."""
        self._look_around()

    @property
    def wanted_bytes(self) -> int:
        """How much free space may be needed for the next files that are made."""
        return _SPARES * self._segment_bytes + RESERVE_FILES * RESERVE_BYTES

    def prepare(self) -> None:
        """Make the reserve and the spares that are missing, and clear away old segments.

        Raises DiskFull or Exhausted, leaving nothing half made, or DiskFailed.
        """
        working = True
        while working:
            with self._preparing:  # one step at a time: the owner may be waiting for it
                working = self._prepare_one()

    def fill_reserve(self) -> None:
        """Make the files of the reserve that are missing, if there is room. The owner only."""
        with contextlib.suppress(DiskFull, Exhausted):  # prepare() says so, and goes on trying
            while len(self.reserve) < RESERVE_FILES:
                self._prepare_one()

    def give_up_reserve(self) -> None:
        """Let something else have the room of the reserve. Raises DiskFailed."""
        with self._preparing:
            while (path := self.take_reserve(0)) is not None:
                self._fs.remove(path)

    def find(self, size: int, *, may_make: bool = True) -> Spare:
        """Return the smallest spare that has *size* bytes, making one if need be. DiskFull if that
        finds no room, or may not be tried."""
        spare = self._smallest(self.ready, size)
        if spare is None and not may_make:
            raise DiskFull(f"there was no room for more log in {self._directory} a moment ago")
        if spare is None:
            with self._preparing:  # and while we waited for it, one may have been made
                spare = self._smallest(self.ready, size)
                if spare is None:
                    try:
                        spare = self._make(max(size, self._segment_bytes), None)
                    except Exhausted as error:
                        raise DiskFull(f"no room can be made for more log now: {error}") from error
        return spare

    def find_in_reserve(self, size: int) -> Spare | None:
        """Return the smallest file of the reserve that has *size* bytes, if there is one."""
        return self._smallest(self.reserve, size)

    def room_in_reserve(self, size: int) -> tuple[int, bool]:
        """Return how many files the reserve has, and whether one of them has *size* bytes."""
        with self._lock:
            return len(self.reserve), any(each >= size for each, _ in self.reserve)

    def take(self, spare: Spare) -> None:
        """Let go of a file that is a segment now, or has another use."""
        with self._lock:
            (self.reserve if spare in self.reserve else self.ready).remove(spare)

    def take_reserve(self, size: int) -> str | None:
        """Take a file of *size* bytes away from the reserve, if there is one; return its path."""
        spare = self._smallest(self.reserve, size)
        if spare is None:
            return None
        self.take(spare)
        return spare[1]

    def retire(self, path: str) -> None:
        """Take a segment that is no longer needed, and closed. Raises DiskFailed."""
        old = self._new_path("old")
        self._fs.rename(path, old)
        with self._lock:
            self._old.append(old)

    # -- private ---------------------------------------------------------------------------------

    def _look_around(self) -> None:
        for name in self._fs.list(self._directory):
            stem, _, kind = name.rpartition(".")
            path = os.path.join(self._directory, name)
            if kind not in ("spare", "reserve", "old", "tmp"):
                continue
            if stem.isdigit():
                self._number = max(self._number, int(stem))
            if kind in ("spare", "reserve"):
                self._list_of(kind).append((file_size(self._fs, path), path))
            elif kind == "old":
                self._old.append(path)
            else:
                self._fs.remove(path)

    def _smallest(self, spares: list[Spare], size: int) -> Spare | None:
        with self._lock:
            return min((spare for spare in spares if spare[0] >= size), default=None)

    def _prepare_one(self) -> bool:
        """Make a file that is missing, or remove one that isn't needed; False: all done."""
        with self._lock:
            lacking = RESERVE_FILES - len(self.reserve)
            missing = len(self.ready) < _SPARES
            old = self._old.pop() if self._old else None
        if lacking > 0:
            self._make(RESERVE_BYTES, old, kind="reserve")
            if lacking == 1:
                self._fs.sync_directory(self._directory)  # it is there to outlast a crash
        elif missing:
            self._make(self._segment_bytes, old)
        elif old is not None:
            self._fs.remove(old)
        return lacking > 0 or missing or old is not None

    def _make(self, size: int, old: str | None, *, kind: str = "spare") -> Spare:
        """Make a file of zeros, from an old segment if one is given (its blocks are there)."""
        temporary = self._new_path("tmp")
        try:
            if old is not None:
                self._fs.rename(old, temporary)
                self._fs.sync_directory(self._directory)  # before its bytes go, its name has to
            file = self._fs.open(temporary, create=True)
            try:
                file.truncate(min(size, file.size()))
                file.allocate(0, size)
                file.sync()
            finally:
                file.close()
        except (DiskFull, Exhausted) as error:
            if self._fs.exists(temporary):
                self._fs.remove(temporary)
            self.is_cramped = isinstance(error, DiskFull)
            raise
        self.is_cramped = False
        spare = (size, self._new_path(kind))
        self._fs.rename(temporary, spare[1])
        with self._lock:
            self._list_of(kind).append(spare)
        return spare

    def _list_of(self, kind: str) -> list[Spare]:
        return self.reserve if kind == "reserve" else self.ready

    def _new_path(self, kind: str) -> str:
        with self._lock:
            self._number += 1
            return os.path.join(self._directory, f"{self._number}.{kind}")


def file_size(fs: FileSystem, path: str) -> int:
    """Return the size in bytes of a file that nobody has open."""
    file = fs.open(path, read_only=True)
    try:
        return file.size()
    finally:
        file.close()
