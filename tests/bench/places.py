"""What tests of the benchmarks share: a workspace on a disk, and waiting for a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.workspace import BenchError, Workspace


def workspace_in(parent: Path) -> Workspace:
    try:
        return Workspace(str(parent))
    except BenchError as error:
        pytest.skip(str(error))  # temporary files lie in memory here


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
