"""What a process and its children take of memory, and what a disk was given to write (Linux).

*Anonymous* memory is what a program has allocated itself. Pages of files that are mapped are left
out: the kernel takes them back when it needs them.

What is written is counted at the disk, whoever has written it. The counter of a process in
``/proc`` won't do: it counts whole folios, 1 MiB for a few bytes on some file systems.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench.workspace import BenchError

__all__ = ["Footprint", "processor_seconds", "written_bytes"]

_USER_TIME = 11  # behind the name in /proc/PID/stat; the system's follows
_SECTORS_WRITTEN, _SECTOR = 6, 512  # Documentation/admin-guide/iostats.rst


class Footprint:
    """The most memory that a process and its largest child were seen with. One thread uses it.

    Memory is looked at by :meth:`sample` alone, so a peak between two samples is missed.
    """

    def __init__(self, pid: int) -> None:
        self.own = 0  # bytes
        self.child = 0  # bytes; 0: there was none
        self._pid = pid

    def sample(self) -> None:
        """Look once. Raises BenchError if the process is gone."""
        own = _anonymous(self._pid)
        if own is None:
            raise BenchError(f"the system doesn't tell the memory of process {self._pid}")
        self.own = max(self.own, own)
        for child in _children(self._pid):
            self.child = max(self.child, _anonymous(child) or 0)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far, its children's not included."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[_USER_TIME : _USER_TIME + 2])) / os.sysconf("SC_CLK_TCK")


def written_bytes(directory: str) -> int:
    """Return how many bytes the disk of *directory* has written since the machine was started.

    0 where the file system lies on no disk of its own, or the system doesn't tell.
    """
    device = os.stat(directory).st_dev
    fields = _read(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").split()
    return int(fields[_SECTORS_WRITTEN]) * _SECTOR if fields else 0


def _children(pid: int) -> Iterator[int]:
    """Yield the ids of all descendants that live."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return
    for thread in threads:
        for child in _read(f"/proc/{pid}/task/{thread}/children").split():
            yield int(child)
            yield from _children(int(child))


def _anonymous(pid: int) -> int | None:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return None


def _read(path: str) -> str:
    """Return what a file of the kernel says, nothing if what it is about is gone."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
