"""What a process and its children take: memory without mapped files, and bytes written (Linux).

*Anonymous* memory is what a program has allocated itself. Pages of files that are mapped are left
out: the kernel takes them back when it needs them. All figures come from ``/proc``; those of a
child that has ended are in its parent's where they are sums, and gone where they are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench.workspace import BenchError

__all__ = ["Footprint", "written_bytes"]


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


def written_bytes(pid: int) -> int:
    """Return the bytes that a process and its children have had written to the disk so far."""
    return sum(_written(each) for each in (pid, *_children(pid)))


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


def _written(pid: int) -> int:
    for line in _read(f"/proc/{pid}/io").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def _read(path: str) -> str:
    """Return what a file of /proc says, nothing if the process has ended meanwhile."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
