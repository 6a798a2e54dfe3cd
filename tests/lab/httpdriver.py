"""Drives the HTTP server in a test: a plain client, a reactor stepped by hand, and an application.

:class:`Recorder` answers each request with what it understood of it. :class:`Stepped` runs the
reactor in the test's own thread, one round after each piece of input: no clock, no race.
:class:`Streamer` begins a stream for each request for /stream and leaves it to the test.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from conure.errors import ConureError
from conure.http import connection as connection_module
from conure.http import request as request_module
from conure.http import server as server_module
from conure.http.connection import HTTPConnection
from conure.http.limits import Limits
from conure.http.origins import Access
from conure.http.request import Request
from conure.http.server import HTTPFront, HTTPServer, bounds_of
from conure.http.stream import Stream
from conure.net import outlet as outlet_module
from conure.net import reactor as reactor_module
from conure.net.link import PlainLink
from conure.net.reactor import Reactor

_CHUNK_SIZE = re.compile(rb"([0-9a-f]+)\r\n")


class Recorder:
    """Answers GET at once and everything else in flush, and keeps what happened in ``events``."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.batch: list[Request] = []
        self.kept: list[Request] = []
        self.arrived = threading.Condition()

    def handle(self, request: Request) -> None:
        self.events.append(f"{request.method} {request.path}")
        if request.path == "/keep":
            with self.arrived:
                self.kept.append(request)
                self.arrived.notify_all()
        elif request.path == "/boom":
            raise RuntimeError("boom")
        elif request.path == "/big":
            request.respond(200, b"x" * int(request.parameters()[b"size"]))
        elif request.method in ("GET", "HEAD", "OPTIONS"):
            request.respond(200, describe(request), "application/json")
        else:
            self.batch.append(request)

    def flush(self) -> bool:
        self.events.append("flush")
        batch, self.batch = self.batch, []
        for request in batch:
            if request.path == "/flush-boom":
                raise RuntimeError("boom in flush")
            request.respond(200, describe(request), "application/json")
        return False

    def wait_for(self, count: int) -> list[Request]:
        """Wait until *count* requests for /keep have come; return them."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.kept) >= count, 10)
            return self.kept


class Streamer(Recorder):
    """Answers /stream by a stream of at most *max_unsent* unsent bytes, the rest as a Recorder."""

    def __init__(self, max_unsent: int = 1 << 20) -> None:
        super().__init__()
        self.max_unsent = max_unsent
        self.streams: list[Stream] = []
        self.ended: list[Stream] = []

    def handle(self, request: Request) -> None:
        if request.path != "/stream":
            super().handle(request)
            return
        self.events.append(f"{request.method} {request.path}")
        try:
            stream = request.stream(200, "text/plain", max_unsent=self.max_unsent)
        except ConureError as error:
            request.fail(error)
            return
        stream.on_close(lambda: self._note_end(stream))
        with self.arrived:
            self.streams.append(stream)
            self.arrived.notify_all()

    def wait_for_streams(self, count: int) -> list[Stream]:
        """Wait until *count* streams have begun; return them."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.streams) >= count, 10)
            return self.streams

    def wait_for_ends(self, count: int) -> None:
        """Wait until *count* streams are over."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.ended) >= count, 10)

    def _note_end(self, stream: Stream) -> None:
        with self.arrived:
            self.ended.append(stream)
            self.arrived.notify_all()


def describe(request: Request) -> bytes:
    """Return what a request is, as JSON."""
    facts = [request.method, request.path, request.query, request.body]
    return json.dumps([x.decode("latin-1") if isinstance(x, bytes) else x for x in facts]).encode()


def dechunk(data: bytes) -> tuple[bytes, bytes | None]:
    """Return what is in the chunks, and what follows the last one; None if it hasn't come."""
    pieces: list[bytes] = []
    position = 0
    while match := _CHUNK_SIZE.match(data, position):
        size = int(match[1], 16)
        if not size:
            assert data[match.end() : match.end() + 2] == b"\r\n"
            return b"".join(pieces), data[match.end() + 2 :]
        end = match.end() + size
        pieces.append(data[match.end() : end])
        if data[end : end + 2] != b"\r\n":
            assert len(data) < end + 2, "a chunk that is longer than its size says"
            break
        position = end + 2
    return b"".join(pieces), None


def without_dates(answers: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", answers)


def statuses(answers: bytes) -> list[int]:
    """Return the statuses of joined answers, (Continue) included."""
    return [int(match) for match in re.findall(rb"HTTP/1\.1 (\d\d\d) ", answers)]


@contextmanager
def serving(
    application: object | None = None,
    limits: Limits | None = None,
    on_fatal: Callable[[BaseException], None] | None = None,
) -> Iterator[HTTPServer]:
    """Run a server on a port of the system's choice, with a Recorder unless told otherwise."""
    chosen: object = application or Recorder()
    server = HTTPServer(("127.0.0.1", 0), chosen, limits, on_fatal)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.drain(0)


def connect(server: HTTPServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes."""
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def read_answers(client: socket.socket, count: int) -> bytes:
    """Read until *count* answers with a Content-Length are complete."""
    data = b""
    while not _complete(data, count):
        piece = client.recv(1 << 16)
        assert piece, f"the server closed after {data!r}"
        data += piece
    return data


def exchange(server: HTTPServer, data: bytes) -> bytes:
    """Send *data* and the end of it on a new connection; return all that comes back."""
    with connect(server) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def connections_of(reactor: Reactor) -> list[HTTPConnection]:
    """Return the HTTP connections that rest in a reactor."""
    return [each for each in reactor.connections.values() if isinstance(each, HTTPConnection)]


class Stepped:
    """One connection to a reactor that runs only when told to."""

    def __init__(
        self, application: object, limits: Limits | None = None, access: Access | None = None
    ) -> None:
        self.failures: list[BaseException] = []
        limits = limits or Limits()
        self.reactor = Reactor(bounds_of(limits), self.failures.append, "http")
        self.front = HTTPFront(
            self.reactor,
            application,  # type: ignore[arg-type]
            limits,
            access or Access(),
        )
        self.reactor.ident = threading.get_ident()
        self.received = b""
        self.open = True
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.client = theirs
        self.adopt(ours)

    def adopt(self, ours: socket.socket, peer: tuple[str, int] = ("127.0.0.1", 1)) -> None:
        """Let another socket be a client's."""
        self.reactor.adopt(self.front, PlainLink(ours), peer)

    def send(self, data: bytes) -> None:
        """Send *data* if the server still reads, and run until it has nothing to do at once."""
        try:
            assert self.client.send(data) == len(data)
        except BrokenPipeError:
            self.open = False
        self.run()

    def run(self) -> None:
        while True:
            self._wake()
            self.reactor.round()
            if self.reactor.resumed or self.reactor.ready or self.reactor.dirty:
                continue
            if not self._read():
                return

    def end(self) -> bytes:
        """Say that nothing more will come, and return everything that was answered."""
        try:
            self.client.shutdown(socket.SHUT_WR)
        except OSError:
            self.open = False
        while self.reactor.connections:
            self.run()
        self._read()
        return self.received

    def close(self) -> None:
        self.client.close()
        for connection in list(self.reactor.connections.values()):
            connection.close()
        self.reactor.close()

    def _wake(self) -> None:
        self.reactor.wake()  # so that no round waits

    def _read(self) -> bool:
        before = len(self.received)
        try:
            while piece := self.client.recv(1 << 20):
                self.received += piece
        except (BlockingIOError, ConnectionResetError):
            pass
        return len(self.received) > before


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (
            reactor_module,
            outlet_module,
            connection_module,
            request_module,
            server_module,
        ):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def sleep(self, stepped: Stepped, seconds: float) -> None:
        self.now += seconds
        stepped.run()


def play(pieces: Iterable[bytes], limits: Limits | None = None) -> bytes:
    """Send the pieces, a round for each; return all the answers, without their dates."""
    stepped = Stepped(Recorder(), limits)
    try:
        for piece in pieces:
            stepped.send(piece)
        return without_dates(stepped.end())
    finally:
        stepped.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def _complete(data: bytes, count: int) -> bool:
    position = 0
    for _ in range(count):
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            return False
        match = re.search(rb"Content-Length: (\d+)", data[position:end])
        assert match, data
        position = end + 4 + int(match[1])
    return len(data) >= position
