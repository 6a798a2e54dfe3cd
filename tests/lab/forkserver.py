"""Processes of the project's scripts without the price of a new interpreter: forks of a helper.

Most of what a test with processes costs is interpreters that import the same modules. The helper,
one for each process of tests, imports them once; :func:`spawn` asks it for a fork that runs a
script as ``__main__``. That runs in what an ``exec`` would give it: a process ID, a session, a
directory, arguments, an environment and standard streams of its own, no other open file, Python's
own signal handlers; it ends as an interpreter ends, with a status of its own. What only a new
interpreter has, such as a preloaded library, is for :mod:`subprocess`.

The helper has one thread. It reads requests from a socket of messages: JSON, and with it the
descriptors of standard input, output and error and of a channel. There it writes the process ID at
once and the return code when the process has ended. Until the other end of the channel is closed
the process stays a zombie, and its ID its own; then the helper closes its end as well. When the
tests' end of the socket is closed, the helper ends the sessions that it has begun, and itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

__all__ = ["Child", "run", "spawn"]

ROOT = Path(__file__).parents[2]
SCRIPTS = ("conuredb.py", "conuresh.py")
"""What the helper imports and compiles before it forks."""

MAX_REQUEST = 1 << 17
_NUMBER = struct.Struct("!i")


# -- the tests' side -------------------------------------------------------------------------------


class Child:
    """A fork of the helper: as much of :class:`subprocess.Popen` as tests use. Any thread."""

    def __init__(self, pid: int, channel: socket.socket, stderr: IO[bytes] | None) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._channel = channel
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the return code, negative for a signal. Raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                self._channel.settimeout(timeout)
                try:
                    self.returncode = _receive_number(self._channel)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0) from None
                self._channel.settimeout(None)
                self._channel.shutdown(socket.SHUT_WR)
                self._channel.recv(1)  # nothing: it is closed when the process is a zombie no more
                self._channel.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def spawn(
    command: Sequence[str | Path | bytes],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int = 0,
    stdout: int = 1,
    stderr: int | None = None,
) -> Child:
    """Run *command*, a script and its arguments, in a new session. Any thread.

    The streams are descriptors; without one for standard error it is a pipe, ``Child.stderr``.
    """
    with contextlib.ExitStack() as stack:
        pipe: IO[bytes] | None = None
        if stderr is None:
            reading, stderr = os.pipe()
            stack.callback(os.close, stderr)
            pipe = os.fdopen(reading, "rb")
        ours, theirs = socket.socketpair()
        stack.enter_context(theirs)
        facts = {
            "command": [os.fsdecode(part) for part in command],
            "cwd": str(cwd),
            "env": dict(env),
        }
        message = json.dumps(facts).encode()
        assert len(message) <= MAX_REQUEST
        socket.send_fds(_helper(), [message], [stdin, stdout, stderr, theirs.fileno()])
    return Child(_receive_number(ours), ours, pipe)


def run(
    command: Sequence[str | Path | bytes],
    *,
    input: bytes = b"",  # noqa: A002  # as subprocess.run has it
    timeout: float = 60.0,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run *command* to its end as :func:`subprocess.run` does, with its output captured.

    *environ* is added to the environment. A process that doesn't end in time is killed, and
    subprocess.TimeoutExpired raised.
    """
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(open(os.memfd_create(name), "w+b"))
            for name in ("stdin", "stdout", "stderr")
        ]
        files[0].write(input)
        files[0].seek(0)
        stdin, stdout, stderr = (file.fileno() for file in files)
        child = spawn(
            command,
            cwd=cwd or Path.cwd(),
            env={**os.environ, **(environ or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            child.wait(timeout)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        for file in files:
            file.seek(0)
        _, out, err = (file.read() for file in files)
        return subprocess.CompletedProcess(list(command), child.wait(), out, err)


@functools.lru_cache(maxsize=1)
def _helper_of(pid: int) -> socket.socket:
    """The socket of the helper of this process, which has the ID *pid*."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.forkserver", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C at a terminal is for the tests
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


_starting = threading.Lock()


def _helper() -> socket.socket:
    with _starting:
        return _helper_of(os.getpid())


def _receive_number(channel: socket.socket) -> int:
    answer = channel.recv(_NUMBER.size)
    assert answer, "the helper has ended"
    return int(_NUMBER.unpack(answer)[0])


# -- the helper ------------------------------------------------------------------------------------


class _Job(NamedTuple):
    """What a fork is to become."""

    command: list[str]
    cwd: str
    env: dict[str, str]
    streams: list[int]


class _Helper:
    """Forks on request, tells how forks have ended, and keeps nothing else."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._channels: dict[int, socket.socket] = {}  # of each fork, until it is forgotten
        self._ended: set[int] = set()
        self._left: set[int] = set()  # those whose channel's other end is closed

    def serve(self) -> _Job | None:
        """Return twice or more often: in each fork what it is to do, and here None at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    message, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST, 4)
                    if not message:
                        self._end_all()
                        return None
                    if (job := self._fork(message, fds)) is not None:
                        return job
                else:
                    pid, is_channel = key.data
                    self._selector.unregister(key.fileobj)
                    if is_channel:
                        self._left.add(pid)
                    else:
                        os.close(key.fd)
                        self._tell(pid)
                    if pid in self._ended & self._left:
                        self._forget(pid)

    def _fork(self, message: bytes, fds: list[int]) -> _Job | None:
        *streams, channel_fd = fds
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            for held in (self._control, *self._channels.values()):
                held.close()
            os.close(channel_fd)
            return _Job(**json.loads(message), streams=streams)
        for fd in streams:
            os.close(fd)
        channel = self._channels[pid] = socket.socket(fileno=channel_fd)
        self._selector.register(channel, selectors.EVENT_READ, (pid, True))
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, False))
        self._send(pid, pid)
        return None

    def _tell(self, pid: int) -> None:
        self._ended.add(pid)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        has_exited = found.si_code == os.CLD_EXITED
        self._send(pid, found.si_status if has_exited else -found.si_status)

    def _forget(self, pid: int) -> None:
        os.waitpid(pid, 0)
        self._ended.remove(pid)
        self._left.remove(pid)
        self._channels.pop(pid).close()

    def _send(self, pid: int, number: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it
            self._channels[pid].sendall(_NUMBER.pack(number))

    def _end_all(self) -> None:
        for pid in self._channels:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _become(job: _Job, codes: Mapping[str, Any]) -> None:
    """Run the script as a new interpreter would; it ends with SystemExit or its last line."""
    os.setsid()
    os.chdir(job.cwd)
    for fd, stream in enumerate(job.streams):
        os.dup2(stream, fd)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(job.env)
    script = job.command[0]
    sys.argv[:] = job.command
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    module = ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    code = codes.get(script) or compile(Path(script).read_text(), script, "exec")
    exec(code, vars(module))


def main() -> None:
    """The helper's own life, and at its end those of its forks."""
    codes = {}
    for name in SCRIPTS:
        importlib.import_module(name.removesuffix(".py"))
        path = ROOT / name
        codes[str(path)] = compile(path.read_text(), str(path), "exec")
    gc.collect()
    gc.freeze()  # or each fork's collections would copy all of these pages
    job = _Helper(socket.socket(fileno=int(sys.argv[1]))).serve()
    if job is not None:
        _become(job, codes)


if __name__ == "__main__":
    main()
