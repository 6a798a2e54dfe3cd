"""HTTP clients of our own for what wrk can't tell: which requests were answered, and when.

:func:`exchange` keeps many requests under way on a few connections and says how each was answered,
up to the moment the server goes away. :func:`paced` sends at a steady rate whatever the answers
do, and measures each delay from the time the request was *due*: a server that stalls is charged
for everything that would have been sent meanwhile.

Both run in the calling thread, and expect answers with a ``Content-Length``.
"""

from __future__ import annotations

import functools
import gc
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator

from bench.keys import UNVERIFIED
from bench.workspace import BenchError

__all__ = ["exchange", "paced"]

_CHUNK = 1 << 18
_PATIENCE = 60.0  # seconds without any answer after which a server counts as hung


class _Connection:
    """A connection with requests under way; answers come in the requests' order."""

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = UNVERIFIED.wrap_socket(self.socket)
        self.waiting: deque[int] = deque()
        self._buffer = b""

    def receive(self) -> list[tuple[int, bytes]] | None:
        """Read once; return status and body of every answer that is complete, None at the end."""
        data = self._read()
        if data is None:
            return None
        buffer = self._buffer + data
        position = 0
        answers = []
        while (end := buffer.find(b"\r\n\r\n", position)) >= 0:
            status, length = _head(buffer[position:end])
            following = end + 4 + length
            if following > len(buffer):
                break
            answers.append((status, buffer[end + 4 : following]))
            position = following
        self._buffer = buffer[position:]
        return answers

    def _read(self) -> bytes | None:
        """Return what has come, of TLS maybe no byte of an answer; None at the end."""
        if not isinstance(self.socket, ssl.SSLSocket):
            return self.socket.recv(_CHUNK) or None
        data = b""
        self.socket.settimeout(0.0)
        try:
            while piece := self.socket.recv(_CHUNK):
                data += piece
        except ssl.SSLWantReadError:  # also of a ticket, which comes before any answer
            return data
        else:
            return data or None
        finally:
            self.socket.settimeout(_PATIENCE)


def exchange(
    port: int,
    requests: Iterator[bytes],
    on_answer: Callable[[int, int, bytes], None],
    *,
    connections: int = 16,
    depth: int = 64,
) -> bool:
    """Send *requests*, at most *depth* unanswered ones on each connection.

    ``on_answer(index, status, body)`` is called for each answer; *index* counts the requests from
    0. Returns True when all were answered, False when the server went away before that; then every
    answer that had arrived has still been handed on.
    """
    numbered = enumerate(requests)
    held = [_Connection(port) for _ in range(connections)]
    lost = False
    try:
        with selectors.DefaultSelector() as selector:
            for connection in held:
                _send(connection, numbered, depth)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            while selector.get_map():
                ready = selector.select(_PATIENCE)
                if not ready:
                    raise BenchError(f"no answer within {_PATIENCE:.0f} s")
                for key, _ in ready:
                    if not _advance(key.data, numbered, on_answer):
                        selector.unregister(key.data.socket)
                        lost = lost or bool(key.data.waiting)
    finally:
        for connection in held:
            connection.socket.close()
    return not lost


def paced(
    port: int,
    requests: Iterator[bytes],
    rate: float,
    seconds: float,
    *,
    connections: int = 4,
    enough: Callable[[], bool] | None = None,
    tls: bool = False,
) -> list[float]:
    """Send *rate* requests a second for *seconds*; return the delay of each in seconds.

    It ends earlier once *enough* says so, when all that was sent is answered. Raises BenchError
    for an answer other than 200, or when the server goes away.
    """
    total = round(rate * seconds)
    delays: list[float] = []
    held = [_Connection(port, tls=tls) for _ in range(connections)]
    # select(2) takes microseconds; epoll would round the wait up to a millisecond.
    selector = selectors.SelectSelector()
    for connection in held:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    gc.disable()
    try:
        start = time.perf_counter() + 0.1
        sent = 0
        while len(delays) < total:
            if enough is not None and sent < total and enough():
                total = sent
                continue
            wait = start + sent / rate - time.perf_counter() if sent < total else _PATIENCE
            if wait <= 0:
                connection = held[sent % connections]
                connection.waiting.append(sent)
                connection.socket.sendall(next(requests))
                sent += 1
                wait = 0.0
            ready = selector.select(wait)
            if not ready and wait == _PATIENCE:
                raise BenchError(f"no answer within {_PATIENCE:.0f} s")
            for key, _ in ready:
                _take_delays(key.data, start, rate, delays)
    finally:
        gc.enable()
        selector.close()
        for connection in held:
            connection.socket.close()
    return delays


def _take_delays(connection: _Connection, start: float, rate: float, delays: list[float]) -> None:
    answers = connection.receive()
    if answers is None:
        raise BenchError("the server closed a connection")
    now = time.perf_counter()
    for status, body in answers:
        if status != 200:
            raise BenchError(f"a request was answered with {status}: {body[:200]!r}")
        delays.append(now - start - connection.waiting.popleft() / rate)


def _advance(
    connection: _Connection,
    numbered: Iterator[tuple[int, bytes]],
    on_answer: Callable[[int, int, bytes], None],
) -> bool:
    """Take the answers that are there and send as many requests; False when it has ended."""
    try:
        answers = connection.receive()
        if answers is None:
            return False
        for status, body in answers:
            on_answer(connection.waiting.popleft(), status, body)
        _send(connection, numbered, len(answers))
    except ConnectionError:  # the others may still hold answers that arrived before
        return False
    return bool(connection.waiting)


def _send(connection: _Connection, numbered: Iterator[tuple[int, bytes]], count: int) -> None:
    """Send up to *count* requests with one call."""
    requests = []
    for _, (index, request) in zip(range(count), numbered):  # noqa: B905
        connection.waiting.append(index)
        requests.append(request)
    if requests:
        connection.socket.sendall(b"".join(requests))


@functools.lru_cache(maxsize=256)
def _head(head: bytes) -> tuple[int, int]:
    """Return status and Content-Length of a header block; servers repeat the same few."""
    lines = head.split(b"\r\n")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(lines[0][9:12]), int(value)
    raise BenchError(f"an answer without Content-Length: {head!r}")
