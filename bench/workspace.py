"""Directories, ports and processes of a benchmark run.

A :class:`Workspace` lies on a real disk and is removed at the end. Processes are started through
it and ended by their id when it closes; where util-linux's ``setpriv`` exists the kernel ends
them even if the run itself is killed. One thread uses a workspace.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, NoReturn, Self

__all__ = [
    "BenchError",
    "Process",
    "Talker",
    "Workspace",
    "filesystem_type",
    "free_ports",
    "note",
    "peak_memory",
    "raise_file_limit",
    "stop",
    "wait_until",
]

_STOP_SECONDS = 20.0
_SERVER_PORTS = (10_000, 32_768)
_MOUNTS = "/proc/self/mountinfo"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class BenchError(Exception):
    """The run can't go on, or a figure would not mean what it says."""


class Process(subprocess.Popen[bytes]):
    """A server that was started; what it prints goes into the file *log*.

    It leads a process group of its own, which its children are in.
    """

    def __init__(self, argv: Sequence[str], log: str) -> None:
        self.log = log
        with open(log, "wb") as output:
            super().__init__(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def pause(self) -> None:
        """Let it and its children stand still until :meth:`resume`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on, if they stand still."""
        os.killpg(self.pid, signal.SIGCONT)


class Talker(subprocess.Popen[bytes]):
    """A program that is told something by the line and answers by the line.

    It leads a process group of its own, whose members end with it. What it says on standard error
    goes into the file *log*.
    """

    def __init__(self, argv: Sequence[str], log: str) -> None:
        self._log = log
        with open(log, "wb") as errors:
            super().__init__(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
            )
        assert self.stdin is not None
        assert self.stdout is not None
        self._input: IO[bytes] = self.stdin
        self.output: IO[bytes] = self.stdout

    def send(self, line: str) -> None:
        """Hand it a line. Raises BenchError if it has ended."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            self._fail()

    def receive(self) -> str:
        """Wait for its next line. Raises BenchError if it ends before."""
        line = self.output.readline()
        if not line.endswith(b"\n"):
            self._fail()
        return line.decode()

    def kill(self) -> None:
        """End it and its children by force."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; nothing can be told or heard afterwards."""
        code = super().wait(timeout)
        self.output.close()
        with suppress(BrokenPipeError):
            self._input.close()
        return code

    def _fail(self) -> NoReturn:
        with open(self._log, "rb") as log:
            said = log.read()[-2000:].decode(errors="replace")
        raise BenchError(f"{self.args!r} has ended; it said:\n{said}")


class Workspace:
    """A temporary directory below *parent* and the processes of a run; a context manager."""

    def __init__(self, parent: str = os.path.join("build", "bench")) -> None:
        os.makedirs(parent, exist_ok=True)
        kind = filesystem_type(parent)
        if kind in _IN_MEMORY:
            raise BenchError(
                f"{parent} lies on {kind}, where a sync costs nothing; use a real disk"
            )
        self.filesystem = kind
        self._root = tempfile.mkdtemp(dir=os.path.abspath(parent))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if isinstance(process, Process):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        shutil.rmtree(self._root)

    def path(self, name: str) -> str:
        """Return a path of this run that nobody else was given."""
        self._names += 1
        return os.path.join(self._root, f"{self._names:03}-{name}")

    def directory(self, name: str) -> str:
        """Make a fresh directory."""
        path = self.path(name)
        os.mkdir(path)
        return path

    def start(self, name: str, argv: Sequence[str]) -> Process:
        """Start a server; what it prints is shown only if it ends before it should."""
        process = Process([*_die_with_parent(), *argv], self.path(f"{name}.log"))
        self._processes.append(process)
        return process

    def converse(self, name: str, argv: Sequence[str]) -> Talker:
        """Start a program that answers line by line."""
        process = Talker([*_die_with_parent(), *argv], self.path(f"{name}.log"))
        self._processes.append(process)
        return process

    def run(self, argv: Sequence[str], timeout: float) -> str:
        """Run a program to its end and return what it printed. Raises BenchError if it fails."""
        return self.begin(argv)(timeout)

    def begin(self, argv: Sequence[str]) -> Callable[[float], str]:
        """Start a program that prints little; what is returned waits so long for its end and
        returns what it printed. Raises BenchError if it fails."""
        process = subprocess.Popen(
            [*_die_with_parent(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._processes.append(process)

        def end(timeout: float) -> str:
            try:
                output, errors = process.communicate(timeout=timeout)
            finally:
                process.kill()
                process.wait()
                self._processes.remove(process)
            if process.returncode != 0:
                said = (errors or output).decode(errors="replace").strip()
                status = process.returncode
                raise BenchError(f"{argv[0]} ended with status {status}: {said[-2000:]}")
            return output.decode()

        return end


def stop(process: Process) -> None:
    """End a server in the orderly way (SIGTERM), or by force if it takes too long."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], process: Process, seconds: float) -> None:
    """Wait for *condition*. Raises BenchError if the process ends or the time is up before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            with open(process.log, "rb") as log:
                said = log.read()[-2000:].decode(errors="replace")
            what = "is not ready" if process.returncode is None else "has ended"
            raise BenchError(f"{process.args!r} {what}; it said:\n{said}")
        time.sleep(0.005)


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback interface that nobody listens on.

    They lie below the range that outgoing connections get theirs from: none of those can take
    the port of a server that is down for a moment.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(*_SERVER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def peak_memory(pid: int) -> int:
    """Return the most resident memory a process ever had, in bytes (Linux)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    raise BenchError(f"the system doesn't tell the memory of process {pid}")


def filesystem_type(path: str) -> str:
    """Return the type of the file system that holds *path*, ``unknown`` where nobody says."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    if not os.path.exists(_MOUNTS):
        return kind
    with open(_MOUNTS, encoding="utf-8") as mounts:
        for line in mounts:
            fields, _, source = line.partition(" - ")
            point = fields.split()[4]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, source.split()[0]
    return kind


def note(line: str) -> None:
    """Say on standard error how far the run is."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _die_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
