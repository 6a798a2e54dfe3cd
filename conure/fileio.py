"""The only file calls of ConureDB: the seam at which tests put a failing or crashing disk.

Everything durable goes through a :class:`FileSystem` and the :class:`File` objects it opens.
:class:`OsFileSystem` is the real one. Tests bring a twin that keeps files in memory, drops or
tears what was not synced, or fails the n-th call.

What the callers may rely on:

1. ``pwrite`` and ``pwritev`` write everything or raise; ``pread`` is short only at the end of
   the file.
2. When ``sync`` returns, everything written before to that file is on disk. A new, renamed or
   removed name is on disk only after ``sync_directory`` of its folder.
3. A lack of space is :class:`~errors.DiskFull`: nothing that was synced before is harmed, and
   the same write may be tried again. Any other failure of a write or sync is
   :class:`~errors.DiskFailed`, and the file is poisoned: every later write and sync of it raises
   :class:`~errors.DiskFailed` without touching the disk (S6). A failed ``sync`` always poisons,
   even for lack of space: the kernel may have dropped the pages it could not write.

4. A file that is mapped is read without calls, and what is read is what a ``pread`` would show.
   A map stays readable when its file is removed, and is let go with its last reference. Nobody
   maps a file that may still shrink: a read error of a mapped page ends the process (SIGBUS),
   where a ``pread`` raises DiskFailed. So :meth:`FileSystem.map` does either.

Positions and sizes are in bytes. Any thread may call anything; two threads that write the same
bytes of one file must agree on an order among themselves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from typing import NoReturn, Protocol

from conure.errors import (
    CorruptionError,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    Exhausted,
    ForeignDirectory,
)

__all__ = [
    "File",
    "FileSystem",
    "Lock",
    "Mapped",
    "OsFileSystem",
    "ReadInPlace",
    "check_size",
    "others_who_may_write",
]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PLACE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS,
        errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
        errno.ENOENT,  # of a directory that is to be made: below /proc and the like
    }
)  # fmt: skip
_NO_MORE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_MAX_BUFFERS = 512  # below IOV_MAX (1024) everywhere
_ZEROS = bytes(1 << 20)


class File(Protocol):
    """An open file. There is no current position: every call says where."""

    @property
    def path(self) -> str: ...

    def pread(self, size: int, offset: int) -> bytes: ...

    def pwrite(self, data: bytes, offset: int) -> None: ...

    def pwritev(self, buffers: Sequence[bytes], offset: int) -> None:
        """Write the buffers one after the other, beginning at *offset*."""

    def allocate(self, offset: int, size: int) -> None:
        """Fill the range with zeros, so that later writes into it need no new space."""

    def sync(self) -> None:
        """Put everything written so far on disk (fdatasync)."""

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Mapped(Protocol):
    """A file's bytes to read from, of a size that is fixed. Any thread.

    What lies behind the end is left out, as with ``bytes``. Positions are never negative. Raises
    DiskFailed where bytes have to be fetched.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> bytes: ...

    def view(self, start: int, stop: int, /) -> memoryview:
        """Return the range as something to cast and to index: the map itself, or a copy of it."""


class Lock(Protocol):
    """A data directory held by this process until :meth:`release`."""

    def release(self) -> None: ...


class FileSystem(Protocol):
    """What ConureDB asks of a file system. Paths are strings."""

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> File:
        """Open a file; with *create* make it, empty, if it is missing.

        With *exclusive* it is made, and it is a FileExistsError if anything has that name. Raises
        FileNotFoundError without either when it is missing.
        """

    def map(self, path: str, size: int, *, mapped: bool = True) -> Mapped:
        """Open a file of that *size* for reading at random; without *mapped* by ``pread``.

        Raises FileNotFoundError when it is missing, and CorruptionError when it is of another
        size, before any of it is mapped.
        """

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. Raises FileNotFoundError if it is missing."""

    def make_directory(self, path: str) -> None:
        """Make a directory and its parents, durably; one that exists is left as it is."""

    def rename(self, old: str, new: str) -> None:
        """Replace *new* by *old* atomically; durable after :meth:`sync_directory`."""

    def remove(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def free_bytes(self, path: str) -> int:
        """Return how much space there is for files in a directory. Raises DiskFailed."""

    def lock(self, path: str, holder: str) -> Lock:
        """Take the lock file *path*, leaving *holder* in it for whoever comes second.

        Raises DirectoryInUse, naming the holder, when another process has it, and ForeignDirectory
        when the path is a symbolic link.
        """


class OsFile:
    """A file of the operating system; made by :meth:`OsFileSystem.open`."""

    __slots__ = ("_failure", "_fd", "_path")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._failure: str | None = None

    @property
    def path(self) -> str:
        return self._path

    @property
    def fd(self) -> int:
        """The descriptor, for :class:`OsFileSystem` to map."""
        return self._fd

    def pread(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
            if len(data) == size:
                return data
            while more := os.pread(self._fd, size - len(data), offset + len(data)):
                data += more
        except OSError as error:
            raise DiskFailed(_describe("reading", self._path, error)) from error
        return data

    def pwrite(self, data: bytes, offset: int) -> None:
        self._refuse_if_poisoned()
        try:
            written = os.pwrite(self._fd, data, offset)
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], offset + written)
        except OSError as error:
            self._write_failed("writing", error)

    def pwritev(self, buffers: Sequence[bytes], offset: int) -> None:
        self._refuse_if_poisoned()
        for start in range(0, len(buffers), _MAX_BUFFERS):
            group = buffers[start : start + _MAX_BUFFERS]
            wanted = sum(map(len, group))
            try:
                written = os.pwritev(self._fd, group, offset)
            except OSError as error:
                self._write_failed("writing", error)
            if written < wanted:
                self.pwrite(b"".join(group)[written:], offset + written)
            offset += wanted

    def allocate(self, offset: int, size: int) -> None:
        self._refuse_if_poisoned()
        for start in range(offset, offset + size, len(_ZEROS)):
            self.pwrite(_ZEROS[: offset + size - start], start)

    def sync(self) -> None:
        self._refuse_if_poisoned()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._poison("syncing", error)

    def truncate(self, size: int) -> None:
        self._refuse_if_poisoned()
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._poison("truncating", error)

    def size(self) -> int:
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise DiskFailed(_describe("sizing", self._path, error)) from error

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _refuse_if_poisoned(self) -> None:
        if self._failure is not None:
            raise DiskFailed(self._failure)

    def _write_failed(self, doing: str, error: OSError) -> NoReturn:
        if error.errno in _NO_SPACE:
            raise DiskFull(_describe(doing, self._path, error) + "; free some space") from error
        self._poison(doing, error)

    def _poison(self, doing: str, error: OSError) -> NoReturn:
        self._failure = _describe(doing, self._path, error)
        raise DiskFailed(self._failure) from error


class ReadInPlace:
    """What :class:`Mapped` asks for, of a file that is read by ``pread`` whenever it is asked for.

    The file is closed with the last reference to it.
    """

    __slots__ = ("_file", "_size")

    def __init__(self, file: File, size: int) -> None:
        self._file = file
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice, /) -> bytes:
        start, stop, _ = where.indices(self._size)
        return self._file.pread(stop - start, start) if start < stop else b""

    def view(self, start: int, stop: int, /) -> memoryview:
        return memoryview(self[start:stop])

    def __del__(self) -> None:
        self._file.close()


class OsMap(mmap.mmap):
    """A file of the operating system in this process's memory; it has a descriptor of its own."""

    def view(self, start: int, stop: int, /) -> memoryview:
        return memoryview(self)[start:stop]


class OsLock:
    """A lock file held with flock(2): the kernel lets go of it however the process ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class OsFileSystem:
    """The operating system's files."""

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> OsFile:
        # A pipe of that name would be waited for, until somebody writes to it.
        flags = os.O_CLOEXEC | (os.O_RDONLY | os.O_NONBLOCK if read_only else os.O_RDWR)
        if create or exclusive:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        try:
            fd = os.open(path, flags, 0o640)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise _cannot_open(path, error) from error
        kind = os.fstat(fd).st_mode
        if read_only and not stat.S_ISREG(kind):
            os.close(fd)
            what = "a directory" if stat.S_ISDIR(kind) else "no file but a pipe or a device"
            raise ForeignDirectory(f"opening {path} failed: is {what}")
        return OsFile(path, fd)

    def map(self, path: str, size: int, *, mapped: bool = True) -> Mapped:
        file = self.open(path, read_only=True)
        try:
            check_size(path, size, file.size())
            if not (mapped and size):
                return ReadInPlace(file, size)
            found = OsMap(file.fd, size, access=mmap.ACCESS_READ)
        except OSError as error:
            file.close()
            raise _failed("mapping", path, error) from error
        except BaseException:
            file.close()
            raise
        file.close()
        return found

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _cannot_open(path, error) from error

    def make_directory(self, path: str) -> None:
        path = os.path.abspath(path)
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        try:
            os.mkdir(path, 0o750)
        except FileExistsError as error:
            if not os.path.isdir(path):  # or another process has made it just now
                what = "a symbolic link that leads nowhere" if os.path.islink(path) else "a file"
                raise ForeignDirectory(f"{path} is {what}; name a directory") from error
        except OSError as error:
            raise _cannot_open(path, error) from error
        self.sync_directory(parent)

    def rename(self, old: str, new: str) -> None:
        try:
            os.replace(old, new)
        except OSError as error:
            raise DiskFailed(_describe("renaming", old, error)) from error

    def remove(self, path: str) -> None:
        try:
            os.remove(path)
        except OSError as error:
            raise DiskFailed(_describe("removing", path, error)) from error

    def sync_directory(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("syncing the directory", path, error) from error
        try:
            os.fsync(fd)
        except OSError as error:  # whatever it lacked: a second sync may not tell what it has lost
            raise DiskFailed(_describe("syncing the directory", path, error)) from error
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        try:
            found = os.statvfs(path)
        except OSError as error:
            raise DiskFailed(_describe("looking for room in", path, error)) from error
        return found.f_bavail * found.f_frsize

    def lock(self, path: str, holder: str) -> OsLock:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ForeignDirectory(
                    f"{path} is a symbolic link, and what it leads to would be overwritten; "
                    "remove the link"
                ) from error
            raise _cannot_open(path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(fd, 200, 0).decode(errors="replace").strip()
            os.close(fd)
            raise DirectoryInUse(
                f"{os.path.dirname(path)} is in use by {other or 'another process'}; "
                "stop that process or name another data_dir"
            ) from error
        except OSError as error:
            os.close(fd)
            raise DiskFailed(_describe("locking", path, error)) from error
        with contextlib.suppress(OSError):  # who holds it is a courtesy, the lock itself is taken
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode() + b"\n", 0)
        return OsLock(fd)


def others_who_may_write(path: str) -> str:
    """Return who beside its owner may write a directory: "everybody", "its group" or "".

    A group of this process to which new files fall, too (setgid), is how an orchestrator hands a
    volume over; it is not counted. Raises OSError.
    """
    found = os.stat(path)
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    is_handed_over = found.st_mode & stat.S_ISGID and found.st_gid in {
        os.getegid(),
        *os.getgroups(),
    }
    return "its group" if found.st_mode & stat.S_IWGRP and not is_handed_over else ""


def check_size(path: str, expected: int, found: int) -> None:
    """Raise CorruptionError if a file isn't of the size that it is to be mapped with."""
    if found != expected:
        why = f"the file has {found} bytes and not {expected}"
        raise CorruptionError(path, min(expected, found), why)


def _describe(doing: str, path: str, error: OSError) -> str:
    return f"{doing} {path} failed: {error.strerror or error}"


def _cannot_open(path: str, error: OSError) -> DiskFull | DiskFailed | ForeignDirectory:
    if error.errno in _NO_SPACE:
        return DiskFull(_describe("creating", path, error) + "; free some space")
    if error.errno in _NO_PLACE:
        return ForeignDirectory(
            _describe("opening", path, error) + "; data_dir has to be a directory this user owns"
        )
    return _failed("opening", path, error)


def _failed(doing: str, path: str, error: OSError) -> DiskFailed:
    """Return what has failed for good, or for now."""
    why = _describe(doing, path, error)
    if error.errno in _NO_MORE:
        return Exhausted(f"{why}; raise the limit (ulimit -n), or leave more memory to this node")
    return DiskFailed(why)
