"""Where jobs run: in slices in the caller's thread, or in a process that this thread feeds.

Whoever starts a job calls :meth:`Running.step` until it returns True and then
:meth:`Running.result`; or :meth:`Running.abort`. Both runners do the same (``jobs.py``) and differ
in who pays: a :class:`Worker` has an interpreter of its own, so that the node's threads lose no
time to it; :class:`InProcess` needs no process, and is what a Worker falls back to.

1. No step takes much longer than it is told, whatever the process does: pipes don't block here.
2. A process that ends, makes no sense, or says nothing for ``patience`` seconds, is killed; its job
   is lost (:class:`JobLost`), its files are removed, and the next job gets a new process.
3. What a worker answers is a claim. ``verifying.py`` finds out whether it is true.
4. A process is started when it is first needed, holds no file of the node's open, and ends with it.

A runner and what it has started belong to one thread at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from time import monotonic, sleep
from typing import Protocol

import conure
from conure.errors import JobLost, StorageError
from conure.fileio import FileSystem
from conure.storage.lsm.jobs import Chunk, Feed, FlushJob, Job, JobResult, discard, pieces, work
from conure.storage.lsm.orders import (
    Frames,
    Kind,
    Order,
    decode_answer,
    decode_failure,
    encode_items,
    encode_order,
    frame,
    greeting,
)

__all__ = ["FLUSH_PATIENCE", "PATIENCE", "InProcess", "Runner", "Running", "Worker"]

PATIENCE = 10.0
"""Seconds of silence after which a process counts as lost; a live one speaks ten times a second."""

FLUSH_PATIENCE = 3.0
"""The same for flushes: what is written meanwhile stays in memory."""

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(conure.__file__)))  # may be an archive
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from conure.storage.lsm.worker import main; main(int(sys.argv[2]))"
)
_PIPE_BYTES = 1 << 20
_MAX_ANSWER = 64 << 20
_READ_BYTES = 64 << 10
_STRIKES = 3  # processes in a row that end before they have said a word
_AFTER_STRIKES = 60.0  # seconds until the next one is tried: memory may have been short
_GLIMPSE = 0.5  # seconds of silence that one look counts at most: this process may have slept
_MOMENT = 0.002
_ENDING = 0.5  # seconds for a killed process to be gone

log = logging.getLogger("conure.lsm")


class Running(Protocol):
    """A job under way."""

    @property
    def job(self) -> Job: ...

    @property
    def feed(self) -> Feed:
        """What it has been fed so far; nothing, if it is a merge."""

    @property
    def is_remote(self) -> bool:
        """Whether a process does the work, so that a step just waits for it."""

    def step(self, seconds: float) -> bool:
        """Work, or wait for the process, for about *seconds*; tell whether the job is over."""

    def result(self) -> JobResult:
        """Return the result of a job that is over, or raise what ended it.

        That is DiskFull, DiskFailed, CorruptionError, or JobLost: the job may be done again. In all
        of these cases no file of it is left.
        """

    def abort(self) -> None:
        """End the job and remove all its files, also if it is over. Again, it does nothing."""


class Runner(Protocol):
    """Runs one job at a time."""

    def start(self, job: Job, chunks: Iterable[Chunk] = ()) -> Running:
        """Begin a job; *chunks* are the items of a flush, taken from as it goes on."""

    def close(self) -> None:
        """Let go of the process once the job that is running is over."""


class InProcess:
    """Runs jobs in the caller's thread, on any file system."""

    def __init__(self, fs: FileSystem, folder: str) -> None:
        self._fs = fs
        self._folder = folder

    def start(self, job: Job, chunks: Iterable[Chunk] = ()) -> Running:
        return _Sliced(self._fs, self._folder, job, Feed(chunks))

    def close(self) -> None:
        """There is nothing to let go of."""


class _Sliced:
    """A job in the caller's thread."""

    is_remote = False

    def __init__(self, fs: FileSystem, folder: str, job: Job, feed: Feed) -> None:
        self.job = job
        self.feed = feed
        self._fs = fs
        self._folder = folder
        self._work: Generator[None, None, JobResult] | None = work(fs, folder, job, feed)
        self._outcome: JobResult | StorageError | None = None

    def step(self, seconds: float) -> bool:
        until = monotonic() + seconds
        while self._work is not None:
            try:
                next(self._work)
            except StopIteration as end:
                self._work, self._outcome = None, end.value
            except StorageError as error:
                self._work, self._outcome = None, error
            else:
                if monotonic() >= until:
                    return False
        return True

    def result(self) -> JobResult:
        return _result(self._outcome)

    def abort(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.close()
        if work is not None or isinstance(self._outcome, JobResult):
            self._outcome = JobLost("it was given up")
            discard(self._fs, self._folder, self.job)


class Worker:
    """Runs jobs in a process of their own; in this one, if none can be started."""

    def __init__(
        self,
        fs: FileSystem,
        folder: str,
        *,
        executable: str = sys.executable or "",
        root: str = _ROOT,
        patience: float = PATIENCE,
    ) -> None:
        self._fs = fs
        self._folder = folder
        self._executable = executable
        self._root = root
        self._patience = patience
        self._here = InProcess(fs, folder)
        self._process: _Process | None = None
        self._running: _Remote | None = None
        self._serial = 0
        self._strikes = 0
        self._struck_at = 0.0
        self._has_told = False
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process's id, if there is one."""
        return self._process.pid if self._process else None

    def start(self, job: Job, chunks: Iterable[Chunk] = ()) -> Running:
        assert self._running is None, "one job at a time"
        assert not self._is_closed
        if self._process is not None and self._process.is_gone():
            self._let_go()
        process = self._process or self._new_process()
        if process is None:
            return self._here.start(job, chunks)
        self._process = process
        self._serial += 1
        order = Order(self._serial, self._folder, job)
        self._running = _Remote(
            self._fs, process, order, Feed(chunks), self._patience, self._on_end
        )
        return self._running

    def close(self) -> None:
        self._is_closed = True
        if self._running is None:
            self._let_go()

    def _new_process(self) -> _Process | None:
        why = ""
        if self._strikes >= _STRIKES and monotonic() - self._struck_at < _AFTER_STRIKES:
            why = f"{self._strikes} in a row ended before they had begun"
        elif not self._executable:
            why = "where this Python is isn't known"
        else:
            try:
                return _Process(self._executable, self._root)
            except OSError as error:
                why = str(error)
        if not self._has_told:
            log.warning(
                "no process can be started for flushes and merges, so they run in this one "
                "and slow requests down: %s",
                why,
            )
            self._has_told = True
        return None

    def _on_end(self) -> None:
        """The running job is over, and so is the process if it isn't greeted or not alive."""
        assert self._process is not None
        self._running = None
        if self._process.is_greeted:
            self._strikes, self._has_told = 0, False
        else:
            self._strikes, self._struck_at = self._strikes + 1, monotonic()
        if self._process.is_ended or self._is_closed:
            self._let_go()

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


class _Remote:
    """A job in a process."""

    is_remote = True

    def __init__(
        self,
        fs: FileSystem,
        process: _Process,
        order: Order,
        feed: Feed,
        patience: float,
        on_end: Callable[[], None],
    ) -> None:
        self.job = order.job
        self.feed = feed
        self._fs = fs
        self._folder = order.folder
        self._process = process
        self._order = order
        self._patience = patience
        self._on_end = on_end
        self._source = feed if isinstance(order.job, FlushJob) else None
        self._silence = 0.0
        self._looked_at = monotonic()
        self._outcome: JobResult | StorageError | None = None
        self._is_over = False
        process.send(frame(Kind.JOB, encode_order(order)))

    def step(self, seconds: float) -> bool:
        if self._is_over:
            return True
        until = monotonic() + seconds
        while self._outcome is None:
            self._send_some()
            heard: list[tuple[Kind, bytes]] = []
            try:
                heard = self._process.exchange(max(0.0, min(until - monotonic(), _GLIMPSE)))
                self._take(heard)
            except ValueError as error:
                self._lose(f"it made no sense: {error}")
            now = monotonic()
            self._silence = 0.0 if heard else self._silence + min(now - self._looked_at, _GLIMPSE)
            self._looked_at = now
            if now >= until:
                break
        if self._outcome is None and self._silence > self._patience:
            self._lose(f"it said nothing for {self._patience:g} s")
        if self._outcome is None:
            return False
        if not self._is_settled():  # a process that was killed isn't gone yet
            sleep(min(seconds, _MOMENT))
        return self._is_over

    def result(self) -> JobResult:
        return _result(self._outcome if self._is_over else None)

    def abort(self) -> None:
        if not self._is_over:
            self._lose("it was given up")
            self._process.wait(_ENDING)
            self._end()
        elif isinstance(self._outcome, JobResult):
            self._discard()
            self._outcome = JobLost("it was given up")

    def _send_some(self) -> None:
        """Let the process have as many items as it takes."""
        if self._source is None or self._process.is_behind:
            return
        try:
            chunk = next(self._source, None)
        except BaseException:
            self.abort()
            raise
        if chunk is None:
            self._source = None
            self._process.send(frame(Kind.END))
            return
        for piece in pieces(*chunk):
            self._process.send(frame(Kind.ITEMS, *encode_items(piece)))

    def _take(self, heard: list[tuple[Kind, bytes]]) -> None:
        """Take what the process says. Raises ValueError."""
        for kind, body in heard:
            if kind is Kind.DONE and self._source is None:
                self._outcome = decode_answer(body, self._order.serial)
            elif kind is Kind.FAILED:
                self._fail(decode_failure(body, self._order.serial))
            elif kind is not Kind.ALIVE:
                raise ValueError(f"{kind!r} is no answer")
        if self._outcome is None and self._process.is_ended:
            self._lose("it ended")

    def _lose(self, why: str) -> None:
        self._fail(JobLost(f"a worker process lost its job: {why}"))

    def _fail(self, error: StorageError) -> None:
        self._outcome = error
        self._process.kill()

    def _is_settled(self) -> bool:
        """Tell whether the job is over: nobody writes its files any more, or they are removed."""
        if isinstance(self._outcome, JobResult) or self._process.is_gone():
            self._end()
        return self._is_over

    def _end(self) -> None:
        self._is_over = True
        self._on_end()
        if not isinstance(self._outcome, JobResult):
            self._discard()

    def _discard(self) -> None:
        try:
            discard(self._fs, self._folder, self.job)
        except StorageError as error:
            if isinstance(self._outcome, JobResult | JobLost):
                self._outcome = error


class _Process:
    """A worker process and the pipes to it. Raises OSError if it can't be started."""

    def __init__(self, executable: str, root: str) -> None:
        self.is_greeted = False
        self.is_ended = False  # it has closed its end, or was killed
        self._frames = Frames(_MAX_ANSWER)
        self._pending: deque[memoryview] = deque()
        # Isolated from its surroundings: no variables, no folder of the user's, not this folder;
        # nothing is written. A session of its own, so that no terminal's signal comes that way.
        self._popen = subprocess.Popen(  # noqa: S603
            [executable, "-I", "-S", "-B", "-c", _START, root, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to, self._from = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        with contextlib.suppress(OSError):  # more than the kernel lets us have
            fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_behind(self) -> bool:
        """Tell whether something waits to be sent."""
        return bool(self._pending)

    def send(self, data: bytes) -> None:
        """Let *data* wait to be sent."""
        if not self._pending:
            self._poll.register(self._to, select.POLLOUT)
        self._pending.append(memoryview(data))

    def exchange(self, seconds: float) -> list[tuple[Kind, bytes]]:
        """Send and receive what can be, after waiting at most that long. Raises ValueError."""
        for fd, _ in self._poll.poll(seconds * 1000):
            if fd == self._to:
                self._write()
            else:
                self._read()
        heard = list(self._frames)
        if heard and not self.is_greeted:
            if heard.pop(0) != (Kind.HELLO, greeting()):
                raise ValueError("it is of another release")
            self.is_greeted = True
            heard.append((Kind.ALIVE, b""))
        return heard

    def kill(self) -> None:
        """Let it end now, in whatever state it is."""
        self.is_ended = True
        self._popen.kill()

    def is_gone(self) -> bool:
        """Tell whether it has ended."""
        return self._popen.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait for its end, for that long."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("worker process %d was killed %g s ago and is there yet", self.pid, seconds)

    def close(self) -> None:
        """End it; it has nothing to do any more."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.kill()
        self._popen.stdin.close()
        self._popen.stdout.close()
        self.wait(_ENDING)

    def _write(self) -> None:
        pending = self._pending
        try:
            while pending:
                written = os.write(self._to, pending[0])
                if written < len(pending[0]):
                    pending[0] = pending[0][written:]
                    return
                pending.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:  # what it has to say about that is yet to be read
            pending.clear()
        self._poll.unregister(self._to)

    def _read(self) -> None:
        try:
            data = os.read(self._from, _READ_BYTES)
        except BlockingIOError:
            return
        self._frames.feed(data)
        if not data:
            self.is_ended = True


def _result(outcome: JobResult | StorageError | None) -> JobResult:
    assert outcome is not None, "the job isn't over"
    if isinstance(outcome, StorageError):
        raise outcome
    return outcome
