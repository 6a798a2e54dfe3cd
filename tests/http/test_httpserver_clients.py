"""Order in a connection, clients that misbehave, errors of the application (H1, H2, H4, H5)."""

from __future__ import annotations

import errno
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from conure.http import connection as connection_module
from conure.http.limits import Limits
from conure.http.request import Request
from conure.http.server import HTTPServer
from conure.net import listener as listener_module
from conure.net import reactor as reactor_module
from tests.lab.httpapps import (
    GET,
    HOST,
    PUT,
    Custom,
    Late,
    chunked,
    fail_if_logged,
    get,
    reset,
)
from tests.lab.httpdriver import (
    Clock,
    Recorder,
    Stepped,
    connect,
    connections_of,
    exchange,
    read_all,
    read_answers,
    serving,
    statuses,
    wait_until,
)


def test_safety_classes_are_handed_over_one_after_the_other() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(PUT + PUT + GET + GET + PUT + PUT + GET)
    assert statuses(stepped.end()) == [200] * 7
    stepped.close()
    assert application.events == [
        *("PUT /kv", "PUT /kv", "flush"),
        *("GET /kv", "GET /kv", "PUT /kv", "PUT /kv", "flush"),
        *("GET /kv", "flush"),
    ]


def test_answers_keep_their_order_whoever_gives_them() -> None:
    application = Recorder()
    keep = [get(target=b"/keep?%d" % i) for i in range(15)]
    with serving(application) as server, connect(server) as client:
        client.sendall(b"".join(keep) + GET)
        kept = list(application.wait_for(15))
        threads = [
            threading.Thread(target=request.respond, args=(200, request.query))
            for request in reversed(kept)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = read_answers(client, 16)
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers.split(b"HTTP/1.1")[1:]]
    assert bodies[:15] == [b"%d" % i for i in range(15)]


def test_refusal_waits_for_the_answers_before_it() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep") + b"nonsense\r\n\r\n")
        (request,) = application.wait_for(1)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        request.respond(200)
        assert statuses(read_all(client)) == [200, 400]


def test_requests_behind_an_unanswered_one_wait_in_bounded_memory() -> None:
    """H5: with max_pipelined unanswered nothing more is taken, and soon nothing more is read."""
    application = Recorder()
    stepped = Stepped(application, Limits(max_pipelined=4))
    run = b"".join(get(target=b"/keep?%d" % i) for i in range(10))
    stepped.send(run)
    assert len(application.kept) == 4
    for _ in range(10):
        stepped.send(get(b"X: " + b"a" * 30000 + b"\r\n"))
    (connection,) = connections_of(stepped.reactor)
    assert len(connection.buffer) < 140_000
    answered = 0
    while answered < 10:
        for request in application.kept[answered:]:
            request.respond(200)
            answered += 1
        stepped.run()
    assert statuses(stepped.end()) == [200] * 20
    stepped.close()


def test_half_closed_client_gets_all_its_answers() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(PUT + GET + get(target=b"/keep") + PUT + GET)
        client.shutdown(socket.SHUT_WR)
        (request,) = application.wait_for(1)
        request.respond(200)
        assert statuses(read_all(client)) == [200] * 5


def test_one_answer_counts(caplog: pytest.LogCaptureFixture) -> None:
    def handle(request: Request) -> None:
        request.respond(200, b"first")
        request.respond(200, b"second")

    with serving(Custom(handle)) as server:
        answers = exchange(server, GET + GET)
    assert answers.count(b"first") == 2
    assert b"second" not in answers
    assert "answered twice" in caplog.text


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_disconnects_disturb_nobody(
    leave: Callable[[socket.socket], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server, connect(server) as other:
        for stop in range(len(PUT)):
            client = connect(server)
            client.sendall(PUT[:stop])
            leave(client)
            if stop % 10 == 0:
                other.sendall(GET)
                read_answers(other, 1)
        wait_until(lambda: server.connections_open == 1)
    fail_if_logged(caplog)


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_answer_to_a_client_that_went_away(
    leave: Callable[[socket.socket], None], caplog: pytest.LogCaptureFixture
) -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(target=b"/keep") + get(target=b"/keep"))
        kept = application.wait_for(2)
        leave(client)
        for request in kept:
            request.respond(200, b"too late")
        wait_until(lambda: server.connections_open == 0)
        assert statuses(exchange(server, GET)) == [200]
    fail_if_logged(caplog)


def test_client_that_never_reads_holds_up_nobody() -> None:
    """Its answers wait in bounded memory; the others are served meanwhile."""
    with serving() as server, connect(server) as lazy:
        lazy.sendall(get(target=b"/big?size=900000") * 100)
        for _ in range(50):
            assert statuses(exchange(server, GET)) == [200]
        assert server.requests < 50 + 30
        received = 0
        while received < 100 * 900_000:
            received += len(lazy.recv(1 << 20))
        assert server.requests == 50 + 100


@pytest.mark.parametrize(
    "beginning", [b"GE", PUT[:-1], PUT[:-3], chunked(b"3\r\nab"), GET + b"GET ", PUT + PUT[:-1]]
)
def test_slow_request_is_ended(clock: Clock, beginning: bytes) -> None:
    """The time runs from the request's first byte, not from its last."""
    stepped = Stepped(Recorder())
    clock.sleep(stepped, 100)
    stepped.send(beginning[:-1])
    clock.sleep(stepped, 20)
    stepped.send(beginning[-1:])
    clock.sleep(stepped, 9)
    assert 408 not in statuses(stepped.received)
    clock.sleep(stepped, 2)
    assert statuses(stepped.received)[-1] == 408
    clock.sleep(stepped, 3)
    assert not stepped.reactor.connections
    assert stepped.front.refused == {408: 1}
    stepped.close()


def test_idle_connection_is_closed(clock: Clock) -> None:
    stepped = Stepped(Recorder())
    for _ in range(3):
        clock.sleep(stepped, 119)
        stepped.send(GET)
    clock.sleep(stepped, 119)
    assert stepped.reactor.connections
    clock.sleep(stepped, 2)
    assert not stepped.reactor.connections
    assert statuses(stepped.received) == [200] * 3
    stepped.close()


def test_waiting_for_the_application_is_not_the_clients_fault(clock: Clock) -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(target=b"/keep") + b"GET ")
    clock.sleep(stepped, 500)
    application.kept[0].respond(200)
    stepped.run()
    clock.sleep(stepped, 20)
    stepped.send(GET[4:])
    assert statuses(stepped.received) == [200, 200]
    stepped.close()


def test_late_answer_can_be_read(clock: Clock) -> None:
    """The time in which a client may read the last answer begins when it was sent."""
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(b"Connection: close\r\n", b"/keep"))
    clock.now += 100
    answering = threading.Thread(target=application.kept[0].respond, args=(200,))
    answering.start()
    answering.join()
    stepped.run()
    clock.sleep(stepped, 1.5)
    assert stepped.reactor.connections
    stepped.send(GET)
    clock.sleep(stepped, 1)
    assert not stepped.reactor.connections
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_client_that_writes_on_after_the_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_LINGER_BYTES", 1000)
    stepped = Stepped(Recorder())
    stepped.send(get(b"Connection: close\r\n"))
    stepped.send(bytes(1000))
    assert stepped.reactor.connections
    stepped.send(bytes(1))
    assert not stepped.reactor.connections
    stepped.close()


def test_client_that_reads_nothing_is_cut_off(clock: Clock) -> None:
    """Reading a little is enough to be kept; reading nothing for a while isn't."""
    stepped = Stepped(Recorder())

    def wait(seconds: float) -> None:
        clock.now += seconds
        stepped._wake()
        stepped.reactor.round()

    stepped.client.sendall(get(target=b"/big?size=5000000"))
    wait(0)
    for _ in range(4):
        wait(20)
        assert stepped.client.recv(500_000)
        wait(0)
    wait(29)
    assert stepped.reactor.connections
    wait(2)
    assert not stepped.reactor.connections
    stepped.close()


def test_client_that_writes_on_but_reads_nothing_is_cut_off(clock: Clock) -> None:
    stepped = Stepped(Recorder())
    stepped.client.sendall(get(target=b"/big?size=900000"))
    for _ in range(6):
        stepped._wake()
        stepped.reactor.round()
        if stepped.reactor.connections:
            stepped.client.send(b"G")
        clock.now += 10
    assert not stepped.reactor.connections
    stepped.close()


def test_long_answer_leaves_nothing_behind() -> None:
    stepped = Stepped(Recorder())
    for _ in range(2):
        stepped.send(get(target=b"/big?size=5000000"))
        (connection,) = connections_of(stepped.reactor)
        assert connection.interest == reactor_module.IN
        assert connection.pending == 0
    assert stepped.received.count(b"x" * 1000) == 10_000
    stepped.close()


def test_event_of_an_older_connection_is_ignored() -> None:
    """A descriptor's number is used again: its new owner may have nothing to read yet."""
    stepped = Stepped(Recorder())
    (descriptor,) = stepped.reactor.connections
    stepped.reactor._receive([(descriptor, reactor_module.IN)])
    stepped.reactor._receive([(descriptor, select.EPOLLHUP | select.EPOLLERR)])
    stepped.send(GET)
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_reset_while_nothing_is_read() -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(b"Connection: close\r\n", b"/keep"))
        application.wait_for(1)
        client.sendall(GET)
        (connection,) = connections_of(server.reactor)
        wait_until(lambda: connection.interest == 0)
        reset(client)
        wait_until(lambda: server.connections_open == 0)


def test_too_many_connections() -> None:
    with serving(limits=Limits(max_connections=3)) as server:  # of which one is the reserve
        clients = [connect(server) for _ in range(2)]
        wait_until(lambda: server.connections_open == 2)
        with connect(server) as refused:
            refused.sendall(GET)
            answer = read_all(refused)
        assert statuses(answer) == [503]
        assert b"\r\nRetry-After: 1\r\n" in answer
        clients[0].close()
        wait_until(lambda: server.connections_open == 1)
        assert statuses(exchange(server, GET)) == [200]
        assert server.refused == {503: 1}
        for client in clients:
            client.close()


def test_two_thousand_idle_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4600
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the hard limit for open files is {hard}; this test needs {wanted}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        with serving() as server, ExitStack() as clients:
            idle = [clients.enter_context(connect(server)) for _ in range(2000)]
            wait_until(lambda: server.connections_open == 2000)
            for client in idle[::100]:
                client.sendall(GET)
                assert statuses(read_answers(client, 1)) == [200]
            assert statuses(exchange(server, GET)) == [200]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left_does_not_spin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting pauses, complains once, and goes on when there are descriptors again."""
    tries: list[float] = []
    real = HTTPServer.get_request

    class Exhausted:
        """The listening socket of a process that is out of descriptors."""

        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> tuple[socket.socket, object]:
            tries.append(time.monotonic())
            if len(tries) < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.listener.accept()

    def get_request(self: HTTPServer) -> tuple[socket.socket, object]:
        whole = self.socket
        self.socket = Exhausted(whole)  # type: ignore[assignment]
        try:
            return real(self)
        finally:
            self.socket = whole

    monkeypatch.setattr(HTTPServer, "get_request", get_request)
    with serving() as server:
        assert statuses(exchange(server, GET)) == [200]
    assert tries[3] - tries[0] >= 3 * listener_module._ACCEPT_PAUSE * 0.9
    assert caplog.text.count("can't accept") == 1


def test_exceptions_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    boom = b"PUT /flush-boom HTTP/1.1\r\n" + HOST + b"\r\n"
    with serving() as server:
        assert statuses(exchange(server, GET + get(target=b"/boom") + GET)) == [200, 500, 200]
        assert "boom" in caplog.text
        assert "Traceback" in caplog.text
        assert statuses(exchange(server, PUT + boom + GET)) == [200, 500, 200]
        assert "boom in flush" in caplog.text
        assert statuses(exchange(server, boom + boom)) == [500, 500]
        assert statuses(exchange(server, GET)) == [200]


def test_a_path_can_not_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Late):
        def handle(self, request: Request) -> None:
            raise RuntimeError("boom")

    with serving(Failing()) as server:
        assert statuses(exchange(server, get(target=b"/a%0aforged%1b[2J"))) == [500]
    (record,) = caplog.records
    assert record.getMessage() == r"GET '/a\nforged\x1b[2J' failed"


def test_failed_flush_concerns_its_round_only() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        assert statuses(exchange(server, PUT.replace(b"/kv", b"/flush-boom"))) == [500]
        request.respond(200)
        assert statuses(read_answers(client, 1)) == [200]


def test_unusable_answer_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        request.respond(200, "text for bytes")  # type: ignore[arg-type]
        assert client.recv(1) == b""
        assert statuses(exchange(server, GET)) == [200]
    assert "an unusable answer" in caplog.text


def test_status_without_a_phrase() -> None:
    with serving(Custom(lambda request: request.fail(599, "no such status"))) as server:
        assert exchange(server, GET).startswith(b"HTTP/1.1 599 \r\n")


def test_death_of_the_reactor_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []
    died = threading.Event()

    def on_fatal(error: BaseException) -> None:
        told.append(error)
        died.set()

    def handle(request: Request) -> None:
        raise SystemExit(3)

    with serving(Custom(handle), on_fatal=on_fatal) as server, connect(server) as client:
        client.sendall(GET)
        assert died.wait(10)
        assert isinstance(told[0], SystemExit)
        assert client.recv(1) == b""
        with connect(server) as late:
            assert late.recv(1) == b""
    assert "the reactor ended" in caplog.text
