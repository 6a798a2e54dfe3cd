"""A disk in memory that loses power, runs full and breaks on command.

:class:`CrashFileSystem` is the deterministic twin of :class:`fileio.OsFileSystem`: the same
protocol, the same errors, the same poisoning. In addition it knows what is really on the disk:

1. A file has its synced content and, after it, the operations that no sync has covered yet.
2. A name that was made, replaced or removed is on the disk only after ``sync_directory`` of its
   folder; syncing the file itself does not help. ``make_directory`` is durable when it returns.
3. The disk writes whole sectors of 512 bytes, aligned to the file; a sector is never half written.
   A write that arrives in a sector brings along what was written to that sector before it.
4. A write into sectors that were written before needs no new space; a hole does. On a disk that
   ``copies_on_write`` it does as well, until the old sectors are given back.

Power is lost with :meth:`CrashFileSystem.after_crash`, which returns the disk as the next boot
finds it and leaves this one alone, so that one run can be examined in every mode:

=========== ==================================================================================
``dropped`` nothing unsynced arrived
``kept``    everything arrived, although nobody waited for it
``torn``    names arrived; of every unsynced write only the leading sectors, how many is random
``random``  every write and name is on its own kept or dropped, and a third of the writes loses
            single sectors; a file may have grown without its bytes, which then read as zeros
=========== ==================================================================================

Any thread may call anything; one lock guards it all.
"""

from __future__ import annotations

import contextlib
import posixpath
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NoReturn

from conure.errors import DirectoryInUse, DiskFailed, DiskFull, ForeignDirectory
from conure.fileio import Mapped, ReadInPlace, check_size

__all__ = [
    "SECTOR",
    "CrashFile",
    "CrashFileSystem",
    "CrashMap",
    "CrashMode",
    "FailureKind",
    "SimulatedCrash",
]

SECTOR = 512

CrashMode = Literal["dropped", "kept", "torn", "random"]
FailureKind = Literal["io", "full", "half"]
_Write = tuple[int, bytes]  # offset, data
_Truncate = tuple[int, None]  # size
_NameChange = tuple[str | None, str | None, "_Inode | None"]  # name gone, name made, its file


RANDOM_STATES = 20
"""How many disks :meth:`CrashFileSystem.survivors` lets chance make."""


class SimulatedCrash(Exception):
    """The power went off. Every later call on this file system raises it as well."""


class _Inode:
    """A file's bytes, whatever it is called: as programs see them, and as the disk has them."""

    __slots__ = ("data", "durable", "durable_sectors", "pending", "sectors")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[_Write | _Truncate] = []
        self.sectors: set[int] = set()  # the ones that take space; a hole does not
        self.durable_sectors: set[int] = set()

    def write(self, data: bytes, offset: int) -> None:
        _overwrite(self.data, data, offset)
        self.pending.append((offset, data))
        self.sectors.update(_sectors(offset, len(data)))

    def truncate(self, size: int) -> None:
        _resize(self.data, size)
        self.pending.append((size, None))
        self.sectors = _below(self.sectors, size)

    def sync(self) -> None:
        for offset, data in self.pending:
            if data is None:
                _resize(self.durable, offset)
                self.durable_sectors = _below(self.durable_sectors, offset)
            else:
                _overwrite(self.durable, data, offset)
                self.durable_sectors.update(_sectors(offset, len(data)))
        self.pending.clear()

    def after_crash(self, mode: CrashMode, rng: random.Random) -> _Inode:
        survivor = _Inode()
        content = survivor.data = bytearray(self.durable)
        sectors = survivor.sectors = set(self.durable_sectors)
        seen = bytearray(self.durable)  # by programs, when each write was made
        for offset, data in self.pending if mode != "dropped" else ():
            if data is None:
                _resize(seen, offset)
                if mode != "random" or rng.random() < 0.5:
                    _resize(content, offset)
                    sectors.intersection_update(_below(sectors, offset))
                continue
            _overwrite(seen, data, offset)
            arrived = _arrived(_sectors(offset, len(data)), mode, rng)
            for sector in arrived:
                start, end = sector * SECTOR, (sector + 1) * SECTOR
                _overwrite(content, bytes(seen[start:end]), start)
            sectors.update(arrived)
            if mode == "random" and len(content) < offset + len(data) and rng.random() < 0.25:
                _resize(content, offset + len(data))
        survivor.durable = bytearray(content)
        survivor.durable_sectors = set(sectors)
        return survivor


class CrashFile:
    """An open file of a :class:`CrashFileSystem`."""

    __slots__ = ("_closed", "_disk", "_failure", "_inode", "_path", "_read_only")

    def __init__(self, disk: CrashFileSystem, path: str, inode: _Inode, read_only: bool) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._read_only = read_only
        self._failure: str | None = None
        self._closed = False

    @property
    def path(self) -> str:
        return self._path

    def pread(self, size: int, offset: int) -> bytes:
        with self._disk.guard:
            self._disk.count(f"reading {self._path}")
            if self._closed:
                raise DiskFailed(f"reading {self._path} failed: it is closed")
            return bytes(memoryview(self._inode.data)[offset : offset + size])

    def pwrite(self, data: bytes, offset: int) -> None:
        with self._disk.guard:
            self._write(data, offset)

    def pwritev(self, buffers: Sequence[bytes], offset: int) -> None:
        with self._disk.guard:
            self._write(b"".join(buffers), offset)

    def allocate(self, offset: int, size: int) -> None:
        with self._disk.guard:
            self._write(bytes(size), offset)

    def sync(self) -> None:
        with self._disk.guard:
            self._begin("syncing")
            self._disk.count_sync()
            self._inode.sync()

    def truncate(self, size: int) -> None:
        with self._disk.guard:
            self._begin("truncating")
            self._inode.truncate(size)

    def size(self) -> int:
        return len(self._inode.data)

    def close(self) -> None:
        self._closed = True
        self._failure = f"{self._path} is closed"

    def _begin(self, doing: str, *, may_need_space: bool = False) -> None:
        self._disk.refuse_if_dead()
        if self._failure is None and self._read_only:
            self._failure = f"{doing} {self._path} failed: opened read-only"
        if self._failure is not None:
            raise DiskFailed(self._failure)
        self._disk.count(f"{doing} {self._path}", self._poison, may_need_space=may_need_space)

    def _poison(self, why: str) -> None:
        self._failure = why

    def _write(self, data: bytes, offset: int) -> None:
        try:
            self._begin("writing", may_need_space=True)
        except DiskFull:
            if self._disk.writes_half:
                half = (offset + len(data) // 2) // SECTOR * SECTOR - offset
                self._inode.write(bytes(data[: max(0, half)]), offset)
            raise
        fitting = self._disk.fitting(self._inode, offset, len(data))
        self._inode.write(bytes(data[:fitting]), offset)
        if fitting < len(data):
            raise DiskFull(f"writing {self._path} failed: no space left; free some space")


class CrashMap:
    """A mapped file of a :class:`CrashFileSystem`: what programs see in it, whatever happens to it.

    Looking at it is no call: it neither fails nor counts.
    """

    __slots__ = ("_inode", "_size")

    def __init__(self, inode: _Inode, size: int) -> None:
        self._inode = inode
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice, /) -> bytes:
        start, stop, _ = where.indices(self._size)
        return bytes(self._inode.data[start:stop])

    def find(self, sub: bytes, start: int, end: int, /) -> int:
        return self._inode.data.find(sub, start, min(end, self._size))

    def view(self, start: int, stop: int, /) -> memoryview:
        return memoryview(self[start:stop])  # a copy: a view of the bytes would keep their size


class CrashLock:
    """A lock file that is held; a crash lets go of it."""

    __slots__ = ("_held", "_path")

    def __init__(self, held: dict[str, str], path: str) -> None:
        self._held = held
        self._path = path

    def release(self) -> None:
        self._held.pop(self._path, None)


class CrashFileSystem:
    """The disk: see the module's docstring for what it knows and how it fails.

    ``syncs`` counts syncs of files and directories, ``calls`` everything that can fail.
    ``crash_at_sync = k`` raises :class:`SimulatedCrash` at the k-th sync from now (1 is the next
    one) before it takes effect; None switches that off. ``seed`` decides what a crash leaves
    when :meth:`after_crash` is given no generator of its own.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.syncs = 0
        self.calls = 0
        self.crash_at_sync: int | None = None
        self.copies_on_write = False
        self.guard = threading.RLock()
        self._fail_at: int | None = None
        self._fail_kind: FailureKind = "io"
        self._capacity: int | None = None
        self._dead = False
        self._directories = {"/", "."}
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._name_changes: list[_NameChange] = []
        self._held: dict[str, str] = {}

    # -- what tests do to the disk ---------------------------------------------------------------

    def after_crash(self, mode: CrashMode, rng: random.Random | None = None) -> CrashFileSystem:
        """Return the disk as the next boot finds it; this one stays as it is."""
        rng = rng or random.Random(self.seed)
        with self.guard:
            names = dict(self._durable_names)
            for change in self._name_changes:
                if mode in ("kept", "torn") or (mode == "random" and rng.random() < 0.5):
                    _change_names(names, change)
            disk = CrashFileSystem(self.seed)
            disk._directories = set(self._directories)
            disk._capacity = self._capacity
            disk.copies_on_write = self.copies_on_write
            for path in sorted(names):
                disk._names[path] = names[path].after_crash(mode, rng)
            disk._durable_names = dict(disk._names)
            return disk

    def survivors(self, seed: int) -> Iterator[CrashFileSystem]:
        """Yield each of the disks that the next boot may find: of equal ones the first.

        One for each mode, and RANDOM_STATES that chance makes of *seed*: a name that is missing
        or a byte that isn't there may take two accidents at once.
        """
        seen = set()
        once: tuple[CrashMode, ...] = ("dropped", "kept", "torn")
        chance: tuple[CrashMode, ...] = ("random",)
        for number, mode in enumerate(once + RANDOM_STATES * chance):
            disk = self.after_crash(mode, random.Random(f"{seed} {number}"))
            files = frozenset((path, bytes(file.data)) for path, file in disk._names.items())
            if files not in seen:
                seen.add(files)
                yield disk

    def restart_process(self) -> None:
        """End the process that used this disk, but not the machine: what it wrote stays.

        Locks, orders to fail and a crash that happened are gone; unsynced bytes and names are
        seen by the next process and still wait to reach the disk.
        """
        self._dead = False
        self._held.clear()
        self.crash_at_sync = self._fail_at = None

    def fail_call(self, n: int | None, kind: FailureKind = "io") -> None:
        """Let the n-th call from now fail once (1 is the next one); None calls it off.

        ``io`` counts every call that can fail and raises DiskFailed, which poisons the file if
        it was written, synced or truncated. ``full`` counts only calls that may need space
        (create, write, allocate, a new directory) and raises DiskFull with nothing written;
        ``half`` is the same for a disk that found out when the sectors of half a write were done.
        """
        self._fail_at = n
        self._fail_kind = kind

    @property
    def failure_is_due(self) -> bool:
        """Tell whether the failure ordered by :meth:`fail_call` has not happened yet."""
        return self._fail_at is not None

    def set_capacity(self, size: int | None) -> None:
        """Limit the disk to *size* bytes, in whole sectors; None lifts the limit."""
        self._capacity = size

    @property
    def capacity(self) -> int | None:
        """The limit in bytes, None without one."""
        return self._capacity

    def free_bytes(self, path: str) -> int:
        if self._capacity is None:
            return 1 << 62
        return max(0, self._capacity - self.used_bytes())

    def used_bytes(self) -> int:
        """Return how many bytes the files' sectors take."""
        return SECTOR * sum(len(inode.sectors) for inode in self._names.values())

    def corrupt(self, path: str, offset: int, xor: int = 1) -> None:
        """Flip bits of the byte at *offset*, on the disk and for everyone who has it open."""
        inode = self._names[_normal(path)]
        inode.data[offset] ^= xor
        if offset < len(inode.durable):
            inode.durable[offset] ^= xor

    def contents(self, path: str) -> bytes:
        """Return a file's bytes as programs see them now."""
        return bytes(self._names[_normal(path)].data)

    # -- fileio.FileSystem -----------------------------------------------------------------------

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> CrashFile:
        path = _normal(path)
        create |= exclusive
        with self.guard:
            missing = path not in self._names
            self.count(f"opening {path}", may_need_space=create and missing)
            if exclusive and (not missing or path in self._directories):
                raise FileExistsError(path)
            if path in self._directories:
                raise ForeignDirectory(f"opening {path} failed: is a directory")
            if missing:
                if not create or _parent(path) not in self._directories:
                    raise FileNotFoundError(path)
                self._change((None, path, _Inode()))
            return CrashFile(self, path, self._names[path], read_only)

    def map(self, path: str, size: int, *, mapped: bool = True) -> Mapped:
        file = self.open(path, read_only=True)
        with self.guard:
            check_size(path, size, file.size())
            if not mapped:
                return ReadInPlace(file, size)
            self.count(f"mapping {path}")
            return CrashMap(self._names[_normal(path)], size)

    def exists(self, path: str) -> bool:
        self.refuse_if_dead()
        path = _normal(path)
        return path in self._names or path in self._directories

    def list(self, path: str) -> list[str]:
        self.refuse_if_dead()
        path = _normal(path)
        if path not in self._directories:
            raise FileNotFoundError(path)
        with self.guard:
            entries = [*self._names, *self._directories]
        return sorted(posixpath.basename(e) for e in entries if _parent(e) == path and e != path)

    def make_directory(self, path: str) -> None:
        path = _normal(path)
        with self.guard:
            self.refuse_if_dead()
            if path in self._names:
                raise ForeignDirectory(f"{path} is a file; name a directory")
            if path in self._directories:
                return
            self.make_directory(_parent(path))
            self.count(f"making {path}", may_need_space=True)
            self._directories.add(path)

    def rename(self, old: str, new: str) -> None:
        old, new = _normal(old), _normal(new)
        with self.guard:
            self.count(f"renaming {old}")
            if old not in self._names:
                raise DiskFailed(f"renaming {old} failed: no such file")
            self._change((old, new, self._names[old]))

    def remove(self, path: str) -> None:
        path = _normal(path)
        with self.guard:
            self.count(f"removing {path}")
            if path not in self._names:
                raise DiskFailed(f"removing {path} failed: no such file")
            self._change((path, None, None))

    def sync_directory(self, path: str) -> None:
        path = _normal(path)
        with self.guard:
            self.count(f"syncing the directory {path}")
            if path not in self._directories:
                raise DiskFailed(f"syncing the directory {path} failed: no such directory")
            self.count_sync()
            waiting = []
            for change in self._name_changes:
                if path in (_parent(change[0] or ""), _parent(change[1] or "")):
                    _change_names(self._durable_names, change)
                else:
                    waiting.append(change)
            self._name_changes = waiting

    def lock(self, path: str, holder: str) -> CrashLock:
        path = _normal(path)
        with self.guard:
            if path in self._held:
                raise DirectoryInUse(
                    f"{posixpath.dirname(path)} is in use by {self._held[path]}; "
                    "stop that process or name another data_dir"
                )
            file = self.open(path, create=True)
            with contextlib.suppress(DiskFull):  # who holds it is a courtesy
                file.truncate(0)
                file.pwrite(holder.encode() + b"\n", 0)
            self._held[path] = holder
            return CrashLock(self._held, path)

    # -- for CrashFile ---------------------------------------------------------------------------

    @property
    def writes_half(self) -> bool:
        """Tell whether a write that is ordered to find the disk full has written a half."""
        return self._fail_kind == "half"

    def refuse_if_dead(self) -> None:
        """Raise SimulatedCrash when the power is off."""
        if self._dead:
            raise SimulatedCrash("the power is off")

    def count(
        self,
        doing: str,
        poison: Callable[[str], None] | None = None,
        *,
        may_need_space: bool = False,
    ) -> None:
        """Count a call, and fail it if it is the one that was ordered to fail."""
        self.refuse_if_dead()
        self.calls += 1
        if self._fail_at is None or (self._fail_kind != "io" and not may_need_space):
            return
        self._fail_at -= 1
        if self._fail_at == 0:
            self._fail_at = None
            self._fail(doing, poison)

    def count_sync(self) -> None:
        """Count a sync, and lose power if it is the one that was ordered to crash."""
        self.syncs += 1
        if self.crash_at_sync is None:
            return
        self.crash_at_sync -= 1
        if self.crash_at_sync == 0:
            self._dead = True
            raise SimulatedCrash(f"at sync {self.syncs}")

    def fitting(self, inode: _Inode, offset: int, size: int) -> int:
        """Return how many of *size* bytes at *offset* still find space."""
        if self._capacity is None:
            return size
        free = (self._capacity - self.used_bytes()) // SECTOR
        for sector in _sectors(offset, size):
            if sector not in inode.sectors or self.copies_on_write:
                free -= 1
                if free < 0:
                    return max(0, sector * SECTOR - offset)
        return size

    def _fail(self, doing: str, poison: Callable[[str], None] | None) -> NoReturn:
        if self._fail_kind != "io":
            raise DiskFull(f"{doing} failed: no space left; free some space")
        why = f"{doing} failed: input/output error"
        if poison is not None:
            poison(why)
        raise DiskFailed(why)

    def _change(self, change: _NameChange) -> None:
        _change_names(self._names, change)
        self._name_changes.append(change)


def _change_names(names: dict[str, _Inode], change: _NameChange) -> None:
    gone, made, inode = change
    if gone is not None:
        names.pop(gone, None)
    if made is not None:
        assert inode is not None
        names[made] = inode


def _arrived(sectors: range, mode: CrashMode, rng: random.Random) -> Sequence[int]:
    """Return which sectors of a write reach the disk."""
    if mode == "kept":
        return sectors
    if mode == "torn":
        return sectors[: rng.randrange(len(sectors))] if sectors else sectors
    fate = rng.randrange(3)
    if fate == 0:
        return sectors
    return [sector for sector in sectors if fate == 1 and rng.random() < 0.5]


def _overwrite(content: bytearray, data: bytes, offset: int) -> None:
    if len(content) < offset:
        _resize(content, offset)
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _sectors(offset: int, size: int) -> range:
    return range(offset // SECTOR, -(-(offset + size) // SECTOR)) if size else range(0)


def _below(sectors: set[int], size: int) -> set[int]:
    end = -(-size // SECTOR)
    return {sector for sector in sectors if sector < end}


def _normal(path: str) -> str:
    return posixpath.normpath(path)


def _parent(path: str) -> str:
    return posixpath.dirname(path) or "."
