"""The worker process's side: orders come in, the jobs of ``jobs.py`` are done, answers go out.

Started by ``workers.py``, which is the only other user. The process shares nothing with its node
but two pipes and the files: it takes frames (``orders.py``) on standard input and answers on
standard output, one job after the other.

1. It ends when its input ends, and within a moment of its parent's death, also in the middle of a
   job. What it leaves behind then is files that no manifest names.
2. A signal to a whole group or container (SIGINT, SIGTERM, SIGHUP) doesn't end it: its node needs
   it for its last checkpoint.
3. It gives way to its node: by its niceness, and when memory runs out.
4. An error of the disk or the data is an answer, and the last one. Any other error is a bug: the
   process ends with its traceback on standard error, and the node takes the job for lost.

Two threads: the main one works; the other watches the parent and says that the process is alive,
so that a node can tell a slow disk from a process that is stopped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from conure.errors import StorageError
from conure.fileio import FileSystem, OsFileSystem
from conure.storage.lsm.jobs import Chunk, FlushJob, JobResult, work
from conure.storage.lsm.orders import (
    Frames,
    Kind,
    Order,
    decode_items,
    decode_order,
    encode_answer,
    encode_failure,
    frame,
    greeting,
)

__all__ = ["BEAT", "main"]

BEAT = 0.1
"""Seconds between two signs of life during a job."""

_NICENESS = 5
_OOM_SCORE = b"500"  # of 1000; a node has 0
_READ_BYTES = 256 << 10


def main(parent: int) -> NoReturn:
    """Serve the process *parent* until it has nothing more to say. The main thread, once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a courtesy, as is the next one
        os.nice(_NICENESS)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as score:
        score.write(_OOM_SCORE)
    line = _Line(*_own_pipes())
    threading.Thread(target=_watch, args=(line, parent), name="watch", daemon=True).start()
    line.say(Kind.HELLO, greeting())
    _serve(line, OsFileSystem())
    os._exit(0)  # at once: there is nothing to put in order


def _own_pipes() -> tuple[int, int]:
    """Return the two pipes under numbers of their own, out of the way of whatever prints."""
    source, sink = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return source, sink


class _Line:
    """The connection to the node. Any thread may :meth:`say`; the main one listens."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.is_busy = False  # a job is being done
        self._sink = sink
        self._saying = threading.Lock()
        self._frames = Frames()

    def say(self, kind: Kind, body: bytes = b"") -> None:
        """Send a frame; end if nobody is there to read it."""
        data = memoryview(frame(kind, body))
        try:
            with self._saying:
                while data:
                    data = data[os.write(self._sink, data) :]
        except BrokenPipeError:
            os._exit(1)

    def heard(self) -> Iterator[tuple[Kind, bytes]]:
        """Yield frames until the input ends. Raises ValueError."""
        while True:
            yield from self._frames
            data = os.read(self.source, _READ_BYTES)
            if not data:
                return
            self._frames.feed(data)


def _watch(line: _Line, parent: int) -> None:
    """Tell that this process is alive, and end it when its node is gone."""
    hangup = select.poll()
    hangup.register(line.source, 0)
    while os.getppid() == parent and not hangup.poll(BEAT * 1000):
        if line.is_busy:
            line.say(Kind.ALIVE)
    os._exit(1)


def _serve(line: _Line, fs: FileSystem) -> None:
    """Do jobs until the input ends or one fails: items of a failed one may be on their way."""
    heard = line.heard()
    for kind, body in heard:
        if kind is not Kind.JOB:
            raise ValueError(f"{kind!r} where a job is due")
        order = decode_order(body)
        line.is_busy = True
        try:
            result = _carried_out(order, fs, heard)
        except StorageError as error:
            line.say(Kind.FAILED, encode_failure(order.serial, error))
            return
        line.is_busy = False
        line.say(Kind.DONE, encode_answer(order.serial, result))


def _carried_out(order: Order, fs: FileSystem, heard: Iterator[tuple[Kind, bytes]]) -> JobResult:
    chunks = _items(heard) if isinstance(order.job, FlushJob) else ()
    doing = work(fs, order.folder, order.job, chunks)
    while True:
        try:
            next(doing)
        except StopIteration as end:
            result: JobResult = end.value
            return result


def _items(heard: Iterator[tuple[Kind, bytes]]) -> Iterator[Chunk]:
    for kind, body in heard:
        if kind is Kind.END:
            return
        if kind is not Kind.ITEMS:
            raise ValueError(f"{kind!r} among items")
        chunk = decode_items(body)
        del body  # or a long value would be held twice while it is written
        yield chunk
        del chunk
    raise ValueError("the input ended among items")
