"""The reactor with front ends that aren't HTTP's, and the links that it reads from."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import pytest

from conure.http.server import HTTPServer
from conure.net import reactor as reactor_file
from conure.net.link import Link, PlainLink
from conure.net.listener import Listener, bind
from conure.net.reactor import IN, Bounds, Reactor
from tests.lab.httpdriver import Recorder, connect, exchange, read_all, statuses, wait_until

GET = b"GET /kv?key=a HTTP/1.1\r\nHost: a\r\n\r\n"


class EchoConnection:
    """Sends what it receives, at the end of the round; one that is closed has sent all."""

    def __init__(self, front: Echo, link: Link) -> None:
        self.front = front
        self.reactor = front.reactor
        self.link = link
        self.interest: int = IN
        self.size = 4096  # bytes that it reads at a time
        self.listens_once = False
        self.out = b""

    @property
    def pending(self) -> int:
        return len(self.out)

    def receive(self) -> None:
        data = self.link.receive(self.size)
        if not data:
            self.close()
            return
        self.reactor.requests += 1
        self.front.waiting.append((self, data))
        if self.listens_once:
            self.listen_for(0)

    def listen_for(self, interest: int) -> None:
        self.interest = interest
        self.reactor.change_interest(self)

    def react(self, event: int) -> None:
        self.receive()

    def send(self) -> None:
        self.out = self.out[self.link.send(self.out) :]

    def close(self) -> None:
        if self.reactor.connections.pop(self.link.descriptor, None):
            self.link.close()

    def resume(self) -> None: ...
    def feed(self) -> None: ...
    def check_deadlines(self) -> None: ...
    def blocked_since(self) -> float | None: ...
    def drop(self) -> None: ...
    def close_if_idle(self) -> None:
        self.close()


class Echo:
    """A front end that answers each line by itself, with the round's other ones."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.waiting: list[tuple[EchoConnection, bytes]] = []
        self.ticks = 0
        reactor.serve(self)
        reactor.at_round_end(self.answer)

    def accept(self, link: Link, peer: Any) -> EchoConnection | None:
        return EchoConnection(self, link) if peer[0] == "127.0.0.1" else None

    def release(self, connection: EchoConnection) -> None: ...

    def tick(self) -> None:
        self.ticks += 1

    def answer(self) -> bool:
        for connection, data in self.waiting:
            connection.out += data
            self.reactor.dirty.append(connection)
        self.waiting.clear()
        return False


def fail(error: BaseException) -> None:
    raise AssertionError(error)


def test_one_reactor_serves_two_front_ends_on_two_addresses() -> None:
    reactor = Reactor(Bounds(), fail, "net")
    application = Recorder()
    server = HTTPServer(("127.0.0.1", 0), application, reactor=reactor)
    front = Echo(reactor)
    echo = Listener(bind(("127.0.0.1", 0)), reactor, front, fail, "echo")
    try:
        server.start()
        echo.start()
        with socket.create_connection(("127.0.0.1", echo.port), 10) as client:
            for line in (b"one\n", b"two\n"):
                client.sendall(line)
                assert client.recv(100) == line
                assert statuses(exchange(server, GET)) == [200]
            with connect(server) as other:
                other.sendall(GET)
                assert statuses(other.recv(4096)) == [200]
                wait_until(lambda: len(reactor.connections) == 2)
        assert (echo.connections_accepted, server.connections_accepted) == (1, 3)
        assert application.events.count("GET /kv") == 3
        assert front.ticks > 0
    finally:
        echo.stop()
        assert server.drain(10)
    assert not reactor.connections


class Blocked(EchoConnection):
    """One for which bytes wait since a time."""

    def __init__(self, front: Echo, link: Link, since: float | None) -> None:
        super().__init__(front, link)
        self.since = since

    def blocked_since(self) -> float | None:
        return self.since

    def drop(self) -> None:
        self.reactor.leaving -= 10
        self.close()


def test_who_takes_nothing_is_dropped_in_turns_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_file, "_CLOSING_TIME", 0.0)
    reactor = Reactor(Bounds(max_leaving_bytes=80), fail, "net")
    front = Echo(reactor)
    pairs = [socket.socketpair() for _ in range(12)]
    ours = []
    for number, (mine, _) in enumerate(pairs):
        since = None if number == 11 else float(number % 4)
        connection = Blocked(front, PlainLink(mine), since)
        reactor.connections[mine.fileno()] = connection
        ours.append(connection)
    reactor.leaving = 120
    left = [reactor.round() and len(reactor.connections) for _ in range(3)]
    assert left == [11, 10, 9]
    ours[1].since = None  # it has taken something meanwhile
    while reactor._blocked:
        reactor.round()
    assert reactor.leaving == 60
    gone = [number for number, each in enumerate(ours) if each not in reactor.connections.values()]
    assert gone == [0, 2, 4, 5, 8, 9]  # those since 0, then all but one of those since 1, then one
    for pair in pairs:
        for each in pair:
            each.close()
    reactor.close()


def test_a_listener_stops_though_its_reactor_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    reactor = Reactor(Bounds(), failures.append, "net")
    echo = Listener(bind(("127.0.0.1", 0)), reactor, Echo(reactor), fail, "echo")
    echo.start()
    reactor.post(fail, RuntimeError("a bug"))
    wait_until(lambda: bool(failures))
    late: list[socket.socket] = []
    stop_accepting = echo.shutdown

    def shutdown() -> None:
        stop_accepting()
        late.extend(socket.create_connection(("127.0.0.1", echo.port), 10) for _ in range(2))

    monkeypatch.setattr(echo, "shutdown", shutdown)
    echo.stop()
    for client in late:
        with client:
            assert client.recv(1) == b""
    assert reactor.drain(10)


def test_who_is_turned_away_is_closed() -> None:
    with stepping() as (reactor, front, _):
        ours, theirs = socket.socketpair()
        with theirs:
            reactor.adopt(front, PlainLink(ours), ("192.0.2.1", 1))
            assert theirs.recv(1) == b""
        assert not reactor.connections


class Decrypting:
    """A link that takes all that has come and gives it in parts, as one does that decrypts."""

    stalled = False
    deadline = inf
    principal = ""
    names: frozenset[str] = frozenset()
    proof = ""

    def __init__(self, connected: socket.socket) -> None:
        self.plain = PlainLink(connected)
        self.descriptor = self.plain.descriptor
        self.kept = b""

    @property
    def pending(self) -> bool:
        return bool(self.kept)

    def receive(self, size: int) -> bytes:
        if not self.kept:
            self.kept = self.plain.receive(1 << 16)
        data, self.kept = self.kept[:size], self.kept[size:]
        return data

    def local_address(self) -> str:
        return self.plain.local_address()

    def send(self, data: bytes | memoryview) -> int:
        return self.plain.send(data)

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.plain.send(b"".join(pieces))

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        raise AssertionError(len(buffer))

    def flush(self) -> None:
        raise AssertionError

    def shut(self) -> None:
        self.plain.shut()

    def reset_on_close(self, *, resets: bool) -> None:
        self.plain.reset_on_close(resets=resets)

    def close(self) -> None:
        self.plain.close()


@contextmanager
def stepping() -> Iterator[tuple[Reactor, Echo, Callable[[], None]]]:
    """Give a reactor that runs only when told to, its front end, and a round that doesn't wait."""
    reactor = Reactor(Bounds(), fail, "net")
    reactor.ident = -1
    front = Echo(reactor)

    def step() -> None:
        reactor.wake()
        reactor.round()

    yield reactor, front, step
    for connection in list(reactor.connections.values()):
        connection.close()
    reactor.close()


def test_what_a_link_keeps_is_read_though_epoll_tells_nothing() -> None:
    with stepping() as (reactor, front, step):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(10)
        with theirs:
            reactor.adopt(front, Decrypting(ours), ("127.0.0.1", 1))
            connection = reactor.connections[ours.fileno()]
            assert isinstance(connection, EchoConnection)
            connection.size = 2
            theirs.sendall(b"abcdefg")
            for _ in range(4):
                step()
            assert theirs.recv(100) == b"abcdefg"
            assert not reactor.late


def test_what_a_link_keeps_waits_for_who_does_not_listen() -> None:
    """And costs no round meanwhile."""
    with stepping() as (reactor, front, step):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(10)
        with theirs:
            reactor.adopt(front, Decrypting(ours), ("127.0.0.1", 1))
            connection = reactor.connections[ours.fileno()]
            assert isinstance(connection, EchoConnection)
            connection.size = 2
            connection.listens_once = True
            theirs.sendall(b"abcd")
            for expected in (b"ab", b"cd"):
                for _ in range(3):
                    step()
                    assert not reactor.late
                assert theirs.recv(100) == expected
                connection.listen_for(IN)


def test_a_plain_link_is_a_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        link = PlainLink(ours)
        assert (link.pending, link.principal, link.descriptor) == (False, "", ours.fileno())
        with pytest.raises(BlockingIOError):
            link.receive(1)
        assert link.send_pieces([b"a", memoryview(b"bc")]) == 3
        assert link.send(b"d") == 1
        theirs.sendall(b"e")
        assert link.receive(9) == b"e"
        link.shut()
        assert read_all(theirs) == b"abcd"
        link.close()
    assert ours.fileno() == -1


@pytest.mark.parametrize("resets", [True, False])
def test_a_close_shows_as_a_break_where_it_is_to(*, resets: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with client:
            link = PlainLink(accepted)
            link.reset_on_close(resets=True)
            link.reset_on_close(resets=resets)
            link.close()
            if resets:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                assert client.recv(1) == b""
