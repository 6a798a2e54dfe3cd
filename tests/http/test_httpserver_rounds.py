"""Rounds of the HTTP server: others' sockets, turns, the end, counters."""

from __future__ import annotations

import http.client
import json
import queue
import re
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from conure.errors import ConureError
from conure.http.limits import Limits
from conure.http.request import Body, Request
from conure.http.server import HTTPServer
from conure.net import reactor as reactor_module
from tests.lab.httpapps import (
    GET,
    HOST,
    PUT,
    chunked,
    get,
    rounds,
)
from tests.lab.httpdriver import (
    Clock,
    Recorder,
    Stepped,
    bytewise,
    connect,
    connections_of,
    exchange,
    play,
    read_all,
    read_answers,
    serving,
    statuses,
    wait_until,
    without_dates,
)


def in_reactor(server: HTTPServer, action: Callable[[], None]) -> None:
    """Have something done in the reactor's thread, as by input of a socket that it watches."""
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def act() -> None:
        if ours.recv(1):
            action()
            done.set()

    with ours, theirs:
        server.reactor.register(ours.fileno(), act)
        theirs.send(b"!")
        assert done.wait(10)
        server.reactor.unregister(ours.fileno())


def test_what_is_answered_for_a_watched_socket_leaves_at_once() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        names: list[str] = []

        def act() -> None:
            names.append(threading.current_thread().name)
            request.respond(200)

        in_reactor(server, act)
        assert statuses(read_answers(client, 1)) == [200]
        assert names == ["http-reactor"]
        assert not server.reactor.registered
        assert statuses(exchange(server, GET)) == [200]  # with the descriptor of that socket


def test_watching_begins_before_the_start_and_ends_after_the_end() -> None:
    server = HTTPServer(("127.0.0.1", 0), Recorder())
    ours, theirs = socket.socketpair()
    came = threading.Event()

    def act() -> None:
        if ours.recv(1):
            came.set()

    with ours, theirs:
        server.reactor.register(ours.fileno(), act)
        theirs.send(b"!")
        server.start()
        assert came.wait(10)
        assert server.drain(10)
        server.reactor.unregister(ours.fileno())
        server.reactor.register(ours.fileno(), came.clear)
        server.reactor.unregister(ours.fileno())
    assert came.is_set()


def test_watched_sockets_are_served_while_draining() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        ended: list[bool] = []
        drain = threading.Thread(target=lambda: ended.append(server.drain(10)))
        drain.start()
        wait_until(lambda: server.reactor.draining)
        in_reactor(server, lambda: server.reactor.call_later(lambda: request.respond(200), 0.0))
        assert statuses(read_all(client)) == [200]
        client.close()  # or the other side lingers
        drain.join(10)
        assert ended == [True]


@pytest.mark.parametrize("later", [False, True])
def test_an_action_that_raises_ends_the_reactor_and_is_told(later: bool) -> None:
    told: list[BaseException] = []
    died = threading.Event()

    def on_fatal(error: BaseException) -> None:
        told.append(error)
        died.set()

    def act() -> None:
        ours.recv(1)
        if later:
            server.reactor.call_later(boom, 0.0005)
        else:
            boom()

    def boom() -> None:
        raise RuntimeError("boom")

    ours, theirs = socket.socketpair()
    with ours, theirs, serving(on_fatal=on_fatal) as server:
        server.reactor.register(ours.fileno(), act)
        theirs.send(b"!")
        assert died.wait(10)
        server.reactor.unregister(ours.fileno())
    assert isinstance(told[0], RuntimeError)


def test_what_is_to_be_done_later_follows_the_answers_and_the_next_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_TICK", 10.0)
    application = Recorder()
    events = application.events
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def act() -> None:
        ours.recv(1)
        application.kept[0].respond(200)
        reactor.later.append((0.0, lambda: events.append(f"later {len(stepped.received)}")))

    try:
        reactor.epoll.register(ours.fileno(), select.EPOLLIN)
        reactor.registered[ours.fileno()] = act
        stepped.send(get(target=b"/keep"))
        theirs.send(b"!")
        reactor.round()
        stepped._read()
        assert statuses(stepped.received) == [200]
        assert "later" not in str(events)
        answered = len(stepped.received)
        stepped.client.send(PUT)
        reactor.round()  # doesn't wait
        assert events == ["GET /keep", "flush", "PUT /kv", "flush", f"later {answered}"]
        begun = time.perf_counter()
        reactor.later.append((begun + 0.02, lambda: events.append("in time")))
        reactor.later.append((begun, lambda: events.append("at once")))
        reactor.round()
        assert events[-1] == "at once"
        reactor.round()
        assert events[-1] == "in time"
        assert 0.02 <= time.perf_counter() - begun < 5
        assert not reactor.later
    finally:
        ours.close()
        theirs.close()
        stepped.close()


@pytest.mark.parametrize(
    ("state", "looks"), [("unanswered", 20), ("answered", 10), ("many", 0), ("silent before", 0)]
)
def test_the_reactor_stays_awake_for_what_is_about_to_come(
    monkeypatch: pytest.MonkeyPatch, state: str, looks: int
) -> None:
    """And falls asleep if it doesn't; the next time it does so at once."""
    now = 1000.0
    yields = 0

    def sched_yield() -> None:
        nonlocal now, yields
        now += 1
        yields += 1

    monkeypatch.setattr(reactor_module, "perf_counter", lambda: now)
    monkeypatch.setattr(reactor_module, "sched_yield", sched_yield)
    monkeypatch.setattr(reactor_module, "_TICK", 0.001)
    monkeypatch.setattr(reactor_module, "_AWAKE_FOR_ANSWERS", 20.0)
    monkeypatch.setattr(reactor_module, "_AWAKE_FOR_CLIENTS", 10.0)
    monkeypatch.setattr(reactor_module, "_FEW", 0 if state == "many" else 1)
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    stepped.client.send(get(target=b"/keep" if state == "unanswered" else b"/kv"))
    reactor.round()
    assert reactor.is_prompt
    if state == "silent before":
        reactor.is_prompt = False
    yields = 0
    reactor.round()
    assert yields == looks
    if looks:
        reactor.round()
        assert yields == looks
    stepped.close()


def test_any_thread_has_something_done_later_by_a_reactor_that_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_TICK", 60.0)
    told: queue.Queue[int] = queue.Queue()
    with serving() as server:
        time.sleep(0.05)  # asleep by then, or the test proves less
        server.reactor.call_later(lambda: told.put(threading.get_ident()), 0.0)
        assert told.get(timeout=30) == server.reactor.ident


def test_who_is_sent_little_does_not_wait_for_all_who_are_sent_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one of those is sent something in each round, however many the others are."""
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    clock = Clock(monkeypatch)
    sent: list[int] = []

    def send(pending: int) -> None:
        clock.now += reactor_module._SENDING_TIME / 100
        sent.append(pending)

    sizes = [1 << 20] * 300 + [100] * 50
    reactor.dirty = [SimpleNamespace(pending=size, send=partial(send, size)) for size in sizes]
    reactor._send()
    assert sent[:51] == [1 << 20] + [100] * 50
    assert len(sent) == pytest.approx(101, abs=1)
    assert len(sent) + len(reactor.dirty) == len(sizes)
    reactor.dirty = []
    monkeypatch.undo()
    stepped.close()


@pytest.mark.parametrize("has_body", [False, True])
def test_a_round_is_shared_among_the_connections(
    monkeypatch: pytest.MonkeyPatch, *, has_body: bool
) -> None:
    """Who sends many requests at once gives way to the others after a while."""
    monkeypatch.setattr(reactor_module, "_ROUND_TIME", 6.0)
    clock = Clock(monkeypatch)
    application = Recorder()
    handle = application.handle

    def take_time(request: Request) -> None:
        clock.now += 1.0
        handle(request)

    application.handle = take_time  # type: ignore[method-assign]
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    many = b"POST /many HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1" if has_body else PUT
    stepped.client.send(many * 40)
    theirs.send(get(target=b"/livez"))
    reactor.round()
    told = application.events[: application.events.index("flush")]
    # Half of the round's time, but for looking at the clock with every fourth one only.
    assert 4 <= len(told) <= (5 if has_body else 8)
    assert "GET /livez" in told
    for _ in range(60):
        stepped._wake()
        reactor.round()
    assert sum(event != "flush" for event in application.events) == 41
    theirs.close()
    ours.close()
    stepped.close()


def test_many_requests_hold_up_neither_peers_nor_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_ROUND", 4)
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    pairs = [socket.socketpair() for _ in range(11)]
    (peer, other), *clients = pairs
    served: list[int] = []
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.setblocking(False)
        for ours, _ in clients:
            stepped.adopt(ours, ("127.0.0.1", 1))
        reactor.epoll.register(peer.fileno(), select.EPOLLIN)
        reactor.registered[peer.fileno()] = lambda: served.append(len(peer.recv(9)))
        for _, theirs in clients:
            theirs.send(GET)
        for number in range(1, 4):
            other.send(b"!")
            before = reactor.requests
            reactor.round()
            assert len(served) == number
            assert reactor.requests - before <= 4
            for _, theirs in clients[:4]:  # who comes again and again waits for the others
                theirs.send(GET)
        assert [statuses(theirs.recv(1 << 16)) for _, theirs in clients[4:]] == [[200]] * 6
    finally:
        for _, theirs in pairs:
            theirs.close()
        peer.close()
        stepped.close()


def test_runs_that_had_to_wait_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_ROUND", 2)
    stepped = Stepped(Recorder())
    pairs = [socket.socketpair() for _ in range(6)]
    answers = [b""] * len(pairs)
    run = b"".join([get(target=b"/%d" % number) + PUT for number in range(5)])
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.settimeout(10)
            theirs.sendall(run)
            stepped.adopt(ours, ("127.0.0.1", 1))
        while stepped.reactor.requests < 10 * len(pairs):
            before = stepped.reactor.requests
            stepped.reactor.wake()
            stepped.reactor.round()
            assert stepped.reactor.requests - before <= 4
        stepped.reactor.round()
        for number, (_, theirs) in enumerate(pairs):
            answers[number] = read_answers(theirs, 10)
    finally:
        for _, theirs in pairs:
            theirs.close()
        stepped.close()
    for each in answers:
        assert statuses(each) == [200] * 10
        assert re.findall(rb'"GET", "/(.)"', each) == [b"%d" % number for number in range(5)]


def test_drain_finishes_what_is_in_flight() -> None:
    application = Recorder()
    with serving(application) as server:
        idle, busy, partial = connect(server), connect(server), connect(server)
        busy.sendall(get(target=b"/keep"))
        partial.sendall(PUT[:-1])
        (request,) = application.wait_for(1)
        wait_until(lambda: server.bytes_in == len(get(target=b"/keep")) + len(PUT) - 1)
        ended: list[bool] = []
        draining = threading.Thread(target=lambda: ended.append(server.drain(10)))
        draining.start()
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        request.respond(200)
        partial.sendall(PUT[-1:])
        for client in (busy, partial):
            answer = read_all(client)
            assert statuses(answer) == [200]
            assert b"\r\nConnection: close\r\n" in answer
        for client in (idle, busy, partial):
            client.close()
        draining.join(10)
        assert ended == [True]


def test_drain_answers_a_pipeline() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(target=b"/keep") + GET)
    stepped.reactor.draining = True
    stepped.send(PUT + GET)
    application.kept[0].respond(200)
    stepped.run()
    answers = stepped.received
    assert statuses(answers) == [200, 200, 200, 200]
    assert answers.count(b"Connection: close") == 1
    assert b"Connection: close" in answers.rpartition(b"HTTP/1.1")[2]
    stepped.close()


def test_drain_answers_all_that_came_together() -> None:
    stepped = Stepped(Recorder())
    stepped.reactor.draining = True
    stepped.send(GET + GET + GET)
    assert statuses(stepped.received) == [200, 200, 200]
    assert b"Connection: close" in stepped.received.rpartition(b"HTTP/1.1")[2]
    stepped.close()


def test_drain_cuts_off_what_takes_too_long() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        assert server.drain(0.05) is False
        assert client.recv(1) == b""
        request.respond(200)
        assert server.connections_open == 0


def test_drain_serves_what_was_connected_before() -> None:
    """A client in the backlog is answered, not reset."""
    application = Recorder()
    server = HTTPServer(("127.0.0.1", 0), application)
    with connect(server) as client:
        client.sendall(GET)
        server._accepting = False
        server.start()
        assert server.drain(10)
        assert statuses(read_all(client)) == [200]


def test_drain_ends_though_clients_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        came = []
        monkeypatch.setattr(server, "get_request", lambda: (None, None))
        monkeypatch.setattr(server, "process_request", lambda *_: came.append(1))
        assert server.drain(5)
        assert came


def test_drain_without_start() -> None:
    assert HTTPServer(("127.0.0.1", 0), Recorder()).drain(1)


def test_serve_forever_returns_after_drain() -> None:
    server = HTTPServer(("127.0.0.1", 0), Recorder())
    serving_thread = threading.Thread(target=server.serve_forever)
    serving_thread.start()
    assert statuses(exchange(server, GET)) == [200]
    assert server.drain(1)
    serving_thread.join(10)
    assert not serving_thread.is_alive()


def test_empty_host_is_both_families() -> None:
    server = HTTPServer(("", 0), Recorder())
    server.start()
    try:
        assert statuses(exchange(server, GET)) == [200]
        if server.address_family == socket.AF_INET6:
            with socket.create_connection(("::1", server.port), 10) as client:
                client.sendall(get(b"Connection: close\r\n"))
                assert statuses(read_all(client)) == [200]
    finally:
        server.drain(0)


def test_port_in_use(server: HTTPServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HTTPServer(("127.0.0.1", server.port), Recorder())


def test_counters() -> None:
    with serving() as server:
        sent = len(exchange(server, GET + PUT))
        exchange(server, b"nonsense\r\n\r\n")
        wait_until(lambda: server.connections_open == 0)
        assert server.connections_accepted == 2
        assert server.requests == 2
        assert server.refused == {400: 1}
        assert server.bytes_in == len(GET + PUT) + len(b"nonsense\r\n\r\n")
        assert server.bytes_out > sent


def test_http_client(server: HTTPServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for body in (b"x", bytes(range(256)) * 4000, iter([b"chunk", b"", b"s"])):
        connection.request("PUT", "/kv?key=a", body)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read().startswith(b'["PUT", "/kv", "key=a"')
    connection.request("HEAD", "/kv")
    response = connection.getresponse()
    assert response.read() == b""
    connection.request("GET", "/big?size=1000000")
    assert connection.getresponse().read() == b"x" * 1_000_000
    connection.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
def test_curl(server: HTTPServer) -> None:
    url = f"http://127.0.0.1:{server.port}/kv?key=a"
    for options in (
        ["-d", "hello", "-X", "PUT", "-H", "Expect: 100-continue"],
        ["-T", "-", "-H", "Transfer-Encoding: chunked"],
        ["-d", "hello", "-X", "PUT", "--http1.0"],
        ["-d", "hello", "-X", "PUT", "-H", "Content-Type: text/x"],
    ):
        done = subprocess.run(
            ["curl", "-sS", "--fail", "--max-time", "10", *options, url],
            input=b"hello",
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout) == ["PUT", "/kv", "key=a", "hello"]


class Worker(Recorder):
    """Answers POST /work by steps, of which it notes each, and the rest as a Recorder."""

    def __init__(self, count: int, *, pauses: bool = False) -> None:
        super().__init__()
        self.count = count
        self.pauses = pauses
        self.closed: list[str] = []

    def handle(self, request: Request) -> None:
        if request.method != "POST":
            super().handle(request)
        else:
            request.go_on(self.steps(request), alone=True)

    def steps(self, request: Request) -> Iterator[bool]:
        try:
            for number in range(self.count):
                self.events.append(f"step {number}")
                if request.path == "/boom":
                    raise RuntimeError("boom")
                yield self.pauses
            self.batch.append(request)
        finally:
            self.closed.append(request.path)


def post(path: bytes, body: bytes = b"") -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    return head + body


def test_what_takes_long_takes_turns_with_all_else() -> None:
    """Other clients are answered and watched sockets served between two steps; what follows in
    its own connection waits (H1, H2)."""
    application = Worker(20, pauses=True)
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, other = socket.socketpair()
    peer, away = socket.socketpair()
    for each in (ours, peer):
        each.setblocking(False)
    served: list[bytes] = []
    try:
        stepped.adopt(ours, ("127.0.0.1", 2))
        reactor.epoll.register(peer.fileno(), select.EPOLLIN)
        reactor.registered[peer.fileno()] = lambda: served.append(peer.recv(9))
        stepped.client.send(post(b"/work", b"x" * 100) + PUT)
        rounds(stepped, 3)
        assert reactor.arriving == 100
        for number in range(5):
            other.send(GET)
            away.send(b"!")
            rounds(stepped, 1)
            assert len(served) == number + 1
            assert statuses(other.recv(1 << 16)) == [200]
        assert application.closed == []
        while reactor.turns:
            rounds(stepped, 1)
        stepped.run()
        assert statuses(stepped.received) == [200, 200]
        assert re.findall(rb'\["(POST|PUT)"', stepped.received) == [b"POST", b"PUT"]
        assert application.events.index("PUT /kv") > application.events.index("step 19")
        assert (reactor.arriving, reactor.in_flight) == (0, 0)
    finally:
        for each in (other, peer, away):
            each.close()
        stepped.close()


def test_steps_of_a_client_that_went_away_are_dropped() -> None:
    application = Worker(1000, pauses=True)
    stepped = Stepped(application)
    stepped.client.send(post(b"/work", b"x" * 100))
    rounds(stepped, 3)
    assert (stepped.reactor.arriving, application.closed) == (100, [])
    (connection,) = connections_of(stepped.reactor)
    connection.close()
    rounds(stepped, 2)
    assert application.closed == ["/work"]
    assert (stepped.reactor.arriving, len(stepped.reactor.turns)) == (0, 0)
    assert stepped.reactor.in_flight == 0  # or such clients would use up the bound for all
    stepped.close()


def test_steps_that_fail_are_answered_500() -> None:
    stepped = Stepped(Worker(3))
    stepped.send(post(b"/boom") + PUT)
    assert statuses(stepped.end()) == [500, 200]
    assert stepped.reactor.arriving == 0
    stepped.close()


def test_a_turn_can_end_with_a_flush() -> None:
    application = Worker(3, pauses=True)
    stepped = Stepped(application)
    stepped.send(post(b"/work"))
    while stepped.reactor.turns:
        rounds(stepped, 1)
    assert application.events == [
        "step 0", "flush", "step 1", "flush", "step 2", "flush", "flush",
    ]  # fmt: skip
    stepped.run()
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_bodies_that_come_all_the_time_starve_nobodys_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    application = Worker(3, pauses=True)
    stepped = Stepped(application)
    stepped.client.send(post(b"/work", b"x"))
    while not stepped.reactor.turns:
        rounds(stepped, 1)
    monkeypatch.setattr(reactor_module, "_ROUND_BYTES", 0)  # as if each round had taken enough
    rounds(stepped, 8)
    stepped.run()
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_bodies_that_are_being_read_share_the_bound_of_those_that_arrive() -> None:
    class Catching(Worker):
        def handle(self, request: Request) -> None:
            try:
                super().handle(request)
            except ConureError as error:
                request.fail(error)

    stepped = Stepped(Catching(1000, pauses=True), Limits(max_arriving_bytes=150))
    ours, other = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    stepped.client.send(post(b"/work", b"x" * 100))
    rounds(stepped, 2)
    other.send(post(b"/work", b"x" * 100))
    rounds(stepped, 2)
    assert statuses(other.recv(1 << 16)) == [503]
    other.close()
    stepped.close()


def test_steps_may_be_handed_over_by_another_thread() -> None:
    done: list[int] = []

    def steps(request: Request) -> Iterator[None]:
        for _ in range(100):
            yield
        done.append(threading.get_ident())
        request.respond(200, b"done")

    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        request.go_on(steps(request))
        assert statuses(read_answers(client, 1)) == [200]
        assert done == [server.reactor.ident]


def test_a_round_takes_requests_for_so_long_only(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """However long each of them takes; a connection goes on where it was."""
    monkeypatch.setattr(reactor_module, "_ROUND_TIME", 0.006)

    class Slow(Recorder):
        def handle(self, request: Request) -> None:
            super().handle(request)
            clock.now += 0.005

    stepped = Stepped(Slow())
    ours, other = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    stepped.client.send(b"".join(get(target=b"/%d" % n) for n in range(16)))
    other.send(GET)
    before = clock.now
    taken = 0
    while stepped.reactor.requests < 17:
        rounds(stepped, 1)
        assert stepped.reactor.requests - taken <= 6
        taken = stepped.reactor.requests
        assert clock.now - before < 1
    stepped.run()
    found = re.findall(rb'"GET", "/(\d+)"', stepped.received)
    assert found == [b"%d" % n for n in range(16)]
    assert statuses(other.recv(1 << 16)) == [200]
    other.close()
    stepped.close()


def test_tiny_chunks_are_decoded_in_several_rounds() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.client.setblocking(True)
    sent = chunked(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
    stepped.client.sendall(sent)
    count = 0
    while not application.events:
        rounds(stepped, 1)
        count += 1
        assert count < 20
    assert count >= 5
    stepped.client.setblocking(False)
    stepped.run()
    assert statuses(stepped.received) == [200]
    assert stepped.received.count(b"x") == 5000
    stepped.close()


@pytest.mark.parametrize("split", [False, True])
def test_a_body_may_be_bounded_by_its_path(*, split: bool) -> None:
    """H3: by whatever pieces it comes."""
    limits = Limits(max_body_bytes=100, max_body_bytes_at={"/short": 5})
    for data, expected in [
        (post(b"/short", b"12345"), [200]),
        (post(b"/short", b"123456"), [413]),
        (post(b"/long", b"1" * 100), [200]),
        (post(b"/long", b"1" * 101), [413]),
        (chunked(b"5\r\n12345\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [200]),
        (chunked(b"6\r\n123456\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [413]),
        (chunked(b"3\r\n123\r\n3\r\n123\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [413]),
    ]:
        assert statuses(play(bytewise(data) if split else [data], limits)) == expected


def test_long_answers_are_sent_in_turns_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"x" * 900_000

    class Long(Recorder):
        def handle(self, request: Request) -> None:
            request.respond(200, body)

    monkeypatch.setattr(reactor_module, "_SENT_BYTES", 100_000)
    stepped = Stepped(Long())
    stepped.client.send(GET * 2)
    rounds(stepped, 1)
    (connection,) = connections_of(stepped.reactor)
    first = connection.out[0]
    assert isinstance(first, memoryview)
    assert first.obj is body
    assert len(connection.out) == 3
    assert connection.out[2] is body
    assert stepped.reactor.leaving == connection.pending == sum(map(len, connection.out))
    stepped.run()
    assert statuses(stepped.received) == [200] * 2
    assert stepped.received.count(body[:1000]) == 1800
    assert (stepped.reactor.leaving, connection.pending) == (0, 0)
    stepped.close()


@pytest.mark.parametrize("sizes", [[], [0], [5, 0, 7], [100_000, 0, 300_000, 1]])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_body_may_have_pieces(sizes: list[int], method: bytes) -> None:
    class Pieces(Recorder):
        def handle(self, request: Request) -> None:
            request.respond(200, Body([b"%d" % (n % 10) * size for n, size in enumerate(sizes)]))

    stepped = Stepped(Pieces())
    stepped.send(GET.replace(b"GET", method) * 2)
    head, _, rest = without_dates(stepped.received).partition(b"\r\n\r\n")
    assert f"Content-Length: {sum(sizes)}".encode() in head
    whole = b"".join(b"%d" % (n % 10) * size for n, size in enumerate(sizes))
    assert rest.startswith(b"HTTP/1.1" if method == b"HEAD" else whole + b"HTTP/1.1")
    assert stepped.reactor.leaving == 0
    stepped.close()


def test_reads_are_taken_one_by_one_while_much_waits_for_clients() -> None:
    application = Recorder()
    stepped = Stepped(application, Limits(max_leaving_bytes=100_000))
    stepped.reactor.leaving = 60_000
    stepped.client.send(get(target=b"/keep") * 8)
    for number in range(3):
        rounds(stepped, 3)
        assert len(application.kept) == number + 1
        application.kept[-1].respond(200, b"one")
    stepped.reactor.leaving -= 60_000
    rounds(stepped, 3)
    assert len(application.kept) > 4
    stepped.close()
