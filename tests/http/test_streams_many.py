"""Many streams, bounds over all clients, the end; names of requests, slow ones."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import suppress

import pytest

from conure.errors import ConureError, TooManyRequests
from conure.http import server as server_module
from conure.http.limits import Limits
from conure.http.request import Request
from conure.http.stream import broadcast
from conure.net import reactor as reactor_module
from conure.net import sockets
from conure.net.link import PlainLink
from tests.lab.httpdriver import (
    Clock,
    Recorder,
    Stepped,
    Streamer,
    connect,
    connections_of,
    dechunk,
    exchange,
    play,
    read_all,
    read_answers,
    serving,
    statuses,
    wait_until,
)
from tests.lab.httpstreams import (
    GET,
    OLD_STREAM,
    PUT,
    STREAM,
    begun,
    body_of,
    get,
    head_of,
    receive_until,
    reset,
)


def named(request_id: bytes, path: bytes = b"/kv") -> bytes:
    return get(path, b"X-Request-Id: " + request_id + b"\r\n")


def test_broadcast() -> None:
    """Each gets it in its own framing and in the order of what else it is sent."""
    application = Streamer()
    requests = [STREAM] * 5 + [OLD_STREAM] * 2
    with serving(application) as server:
        clients = [connect(server) for _ in requests]
        for number, (client, request) in enumerate(zip(clients, requests, strict=True)):
            client.sendall(request)
            application.wait_for_streams(number + 1)
        streams = application.streams
        reset(clients[0])
        application.wait_for_ends(1)
        streams[1].send(b"<only you>")
        for number in range(10):
            broadcast(server.reactor, streams, b"<%d>" % number)
            broadcast(server.reactor, streams, b"")
        for stream in streams:
            stream.finish()
        bodies = [body_of(receive_until(client, b"0\r\n\r\n")) for client in clients[1:5]]
        bodies += [body_of(read_all(client)) for client in clients[5:]]
        expected = b"".join(b"<%d>" % number for number in range(10))
        assert [dechunk(body)[0] for body in bodies[:4]] == [b"<only you>" + expected] + [
            expected
        ] * 3
        assert bodies[4:] == [expected] * 2
        application.wait_for_ends(7)
        reactor = server.reactor
        assert reactor.queued == 0
        for client in clients:
            client.close()


def test_broadcast_drops_who_reads_too_slowly() -> None:
    application = Streamer(max_unsent=100)
    stepped = Stepped(application)
    stepped.send(get(b"/keep") + STREAM)
    (stream,) = application.streams
    broadcast(stepped.reactor, [stream], b"x" * 90)
    broadcast(stepped.reactor, [stream], b"x" * 90)
    assert not stream.send(b"x")
    assert stepped.reactor.streams_dropped == 1
    stepped.close()


class Listeners:
    """Clients of streams, which read only when they are told to; *held* ones have no turn yet."""

    def __init__(self, count: int, limits: Limits, *, held: bool = False) -> None:
        self.application = Streamer(max_unsent=1 << 30)
        self.stepped = Stepped(self.application, limits)
        self.reactor = self.stepped.reactor
        self.clients: list[socket.socket] = []
        for number in range(count):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            theirs.settimeout(10)
            self.stepped.adopt(ours, ("127.0.0.1", number))
            theirs.sendall(get(b"/keep") + STREAM if held else STREAM)
            self.clients.append(theirs)
        self.stepped.run()
        self.streams = list(self.application.streams)
        assert len(self.streams) == count

    def drain(self) -> None:
        """Let every client read all that there is."""
        for _ in range(1000):
            self.stepped.run()
            for client in self.clients:
                with suppress(OSError):  # nothing has come, or it has left
                    client.setblocking(False)
                    client.recv(1 << 20)
            if not any(stream.unsent for stream in self.streams):
                return
        raise AssertionError("there is no end of it")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.stepped.close()


def test_a_broadcast_counts_once_until_the_last_has_taken_it() -> None:
    listeners = Listeners(3, Limits(), held=True)
    broadcast(listeners.reactor, listeners.streams, b"x" * 100_000)
    once = listeners.reactor.queued
    assert 100_000 < once < 100_100
    listeners.streams[0].send(b"y" * 1000)
    assert once + 1000 < listeners.reactor.queued < once + 1100
    first, second, third = listeners.application.kept
    first.respond(200)
    listeners.stepped.run()
    assert listeners.reactor.queued >= once  # the others keep it still
    listeners.clients[1].close()
    listeners.stepped.run()
    listeners.reactor.connections[second.connection].close()
    assert listeners.reactor.queued >= once
    third.respond(200)
    listeners.drain()
    assert listeners.reactor.queued == 0
    listeners.close()


def test_what_all_have_is_moved_in_pieces_and_arrives_whole() -> None:
    """H7: a piece of what others keep as well is copied, so it is a small one."""
    listeners = Listeners(2, Limits())
    data = bytes(range(256)) * 2000
    broadcast(listeners.reactor, listeners.streams, data)
    listeners.stepped.run()
    for connection in connections_of(listeners.reactor):
        assert connection.pending <= 64 << 10
    received = b""
    for stream in listeners.streams:
        stream.finish()
    while not received.endswith(b"0\r\n\r\n"):
        listeners.clients[0].setblocking(False)
        with suppress(BlockingIOError):
            received += listeners.clients[0].recv(1 << 20)
        listeners.stepped.run()
    assert dechunk(body_of(received)) == (data, b"")
    listeners.close()


def test_streams_that_are_not_read_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bound = 1_000_000
    listeners = Listeners(40, Limits(max_leaving_bytes=bound))
    reactor = listeners.reactor
    broadcast(listeners.reactor, listeners.streams, b"x" * 500_000)
    broadcast(listeners.reactor, listeners.streams[:20], b"y" * 600_000)
    assert reactor.is_full()
    clock.sleep(listeners.stepped, 0.1)
    # Little moves on while it is full; and it is kept once for those who have yet to take it.
    assert reactor.leaving + reactor.queued < bound + 40 * 5000 + 100_000
    clock.sleep(listeners.stepped, 1.1)
    assert reactor.leaving + reactor.queued <= bound * 3 // 4
    assert reactor.streams_dropped == sum(stream.over for stream in listeners.streams) > 0
    listeners.close()


def test_the_slowest_streams_are_ended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bound = 1_000_000
    listeners = Listeners(3, Limits(max_leaving_bytes=bound))
    slowest, slow, idle = listeners.streams
    slowest.send(b"x" * 400_000)
    clock.sleep(listeners.stepped, 3)
    slow.send(b"x" * 400_000)
    clock.sleep(listeners.stepped, 3)
    assert not any(stream.over for stream in listeners.streams)
    idle.send(b"x" * 300_000)
    clock.sleep(listeners.stepped, 0.1)
    clock.sleep(listeners.stepped, 1.1)
    assert [stream.over for stream in listeners.streams] == [True, False, False]
    assert listeners.reactor.streams_dropped == 1
    listeners.drain()
    assert listeners.reactor.queued == listeners.reactor.leaving == 0
    listeners.close()


def test_long_reads_are_refused_for_what_streams_keep() -> None:
    listeners = Listeners(1, Limits(max_leaving_bytes=100_000), held=True)
    stepped = listeners.stepped
    stepped.send(get(b"/big?size=50000"))
    assert statuses(stepped.received) == [200]
    listeners.streams[0].send(b"x" * 60_000)
    stepped.send(get(b"/big?size=50000"))
    assert statuses(stepped.received) == [200, 503]
    listeners.close()


def test_many_streams_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round feeds some of them and takes requests; what came meanwhile leaves together."""
    monkeypatch.setattr(reactor_module, "_WAVE", 2)
    monkeypatch.setattr(reactor_module, "_TICK", 60.0)
    application = Streamer()
    stepped = Stepped(application)
    reactor = stepped.reactor
    pairs = [socket.socketpair() for _ in range(7)]
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            stepped.adopt(ours, ("127.0.0.1", 1))
            theirs.sendall(STREAM)
            reactor.wake()
            reactor.round()
        for _, theirs in pairs:
            theirs.recv(1000)
            theirs.setblocking(False)
        for stream in application.streams:
            stream.send(b"one")
        stepped.client.send(GET)
        reactor.round()
        stepped._read()
        assert statuses(stepped.received) == [200]
        assert len(reactor.ready) == 5
        for stream in application.streams:
            stream.send(b"two")
        while reactor.ready:
            reactor.round()  # doesn't wait
        received = [theirs.recv(1000) for _, theirs in pairs]
        assert received[2:] == [b"3\r\none\r\n3\r\ntwo\r\n"] * 5
    finally:
        for _, theirs in pairs:
            theirs.close()
        stepped.close()


def test_requests_in_flight_are_bounded() -> None:
    """The one too many is told so in its turn; its connection and all others go on."""
    application = Recorder()
    stepped = Stepped(application, Limits(max_requests_in_flight=2))
    stepped.send(get(b"/keep", b"Accept: application/json\r\n") * 4)
    assert len(application.kept) == 2
    assert stepped.reactor.in_flight == 2
    for request in application.kept:
        request.respond(200)
    stepped.send(GET)
    assert statuses(stepped.received) == [200, 200, 429, 429, 200]
    refused = b"HTTP/1.1 429" + stepped.received.split(b"HTTP/1.1 429")[1]
    assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 1\r\n" in head_of(refused)
    assert json.loads(body_of(refused))["title"] == "too many requests"
    assert stepped.front.refused == {429: 2}
    assert stepped.reactor.in_flight == 0
    stepped.close()


def test_requests_in_flight_are_counted_to_the_end() -> None:
    """Refusals, failures, streams, lost clients: none is forgotten or counted twice."""
    application = Streamer()
    with serving(application) as server:
        exchange(server, GET + PUT + get(b"/boom") + b"nonsense\r\n\r\n")
        exchange(server, PUT + PUT.replace(b"/kv", b"/flush-boom"))
        client = connect(server)
        client.sendall(get(b"/keep") + get(b"/keep"))
        first, second = application.wait_for(2)
        assert server.requests_in_flight == 2
        first.respond(200)
        first.respond(200)
        reset(client)
        wait_until(lambda: server.connections_open == 0)
        second.respond(200)
        wait_until(lambda: server.requests_in_flight == 0)
        with connect(server) as reader:
            reader.sendall(STREAM)
            application.wait_for_streams(1)
            assert server.requests_in_flight == 0
            assert server.streams_open == 1


def test_streams_are_bounded() -> None:
    application = Streamer()
    with serving(application, Limits(max_streams=2)) as server:
        clients = [connect(server) for _ in range(3)]
        for number in range(2):
            clients[number].sendall(STREAM)
            application.wait_for_streams(number + 1)
        for request in (STREAM, get(b"/stream", b"Accept: application/json\r\n")):
            clients[2].sendall(request)
            refused = read_answers(clients[2], 1)
            assert statuses(refused) == [429]
            assert b"\r\nRetry-After: 1\r\n" in refused
        reset(clients[0])
        application.wait_for_ends(1)
        clients[2].sendall(GET + STREAM)
        application.wait_for_streams(3)[2].finish()
        assert statuses(receive_until(clients[2], b"0\r\n\r\n")) == [200, 200]
        assert server.streams_open == 1
        for client in clients[1:]:
            client.close()


class Holding(Recorder):
    """Holds what it keeps, if it may."""

    def handle(self, request: Request) -> None:
        if request.path == "/keep":
            try:
                request.wait()
            except ConureError as error:
                request.fail(error)
                return
        super().handle(request)


def test_held_requests_count_with_the_streams() -> None:
    application = Holding()
    stepped = Stepped(application, Limits(max_requests_in_flight=1, max_streams=2))
    stepped.send(get(b"/keep") * 3)
    assert stepped.reactor.in_flight == 0
    assert stepped.reactor.streams == 2
    assert len(application.kept) == 2
    for request in application.kept:
        request.respond(200)
    stepped.send(GET)
    assert statuses(stepped.received) == [200, 200, 429, 200]
    assert stepped.reactor.in_flight == stepped.reactor.streams == 0
    stepped.close()


def test_held_request_may_become_a_stream() -> None:
    application = Holding()
    stepped = Stepped(application)
    stepped.send(get(b"/keep"))
    stream = application.kept[0].stream(200, "text/plain")
    assert stepped.reactor.streams == 1
    stream.finish()
    stepped.run()
    assert stepped.reactor.in_flight == stepped.reactor.streams == 0
    stepped.close()


@pytest.mark.parametrize("way", ["end", "reset"])
@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"])
def test_who_holds_a_request_is_told_that_its_client_has_left(way: str, closes: bytes) -> None:
    """Or it would keep its place, and the connection, until something happens (H5)."""
    application = Holding()
    with serving(application) as server, connect(server) as client:
        client.sendall(b"GET /keep HTTP/1.1\r\nHost: x\r\n%b\r\n" % closes)
        (request,) = application.wait_for(1)
        told: list[int] = []

        def answer() -> None:
            told.append(len(told))
            request.respond(200, b"early")

        request.on_leave(answer)
        assert server.streams_open == 1
        if way == "end":
            client.shutdown(socket.SHUT_WR)
            assert read_all(client).endswith(b"\r\n\r\nearly")
        else:
            reset(client)
        wait_until(lambda: server.streams_open == server.connections_open == 0)
        assert told == [0]
        late: list[int] = []
        request.on_leave(lambda: late.append(1))
        assert late == [1]
        assert server.requests_in_flight == 0


def test_held_request_behind_which_others_wait_is_told_as_well() -> None:
    application = Holding()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(b"/keep") + PUT)
        (request,) = application.wait_for(1)
        request.on_leave(lambda: request.respond(200, b"early"))
        client.shutdown(socket.SHUT_WR)
        assert statuses(read_all(client)) == [200, 200]
        assert server.streams_open == server.requests_in_flight == 0


def test_failure_of_a_round_is_an_answer_to_held_requests() -> None:
    class Failing(Holding):
        def flush(self) -> bool:
            raise RuntimeError("boom")

    stepped = Stepped(Failing())
    stepped.send(get(b"/keep"))
    assert statuses(stepped.received) == [500]
    assert stepped.reactor.in_flight == stepped.reactor.streams == 0
    stepped.close()


def test_failure_of_who_holds_a_request_is_an_answer() -> None:
    class Failing(Holding):
        def handle(self, request: Request) -> None:
            super().handle(request)
            raise RuntimeError("boom")

    stepped = Stepped(Failing())
    stepped.send(get(b"/keep"))
    assert statuses(stepped.received) == [500]
    assert stepped.reactor.in_flight == stepped.reactor.streams == 0
    stepped.close()


def test_stream_that_does_not_end_is_cut_in_time() -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client, connect(server) as old:
        client.sendall(STREAM)
        application.wait_for_streams(1)
        old.sendall(OLD_STREAM)
        application.wait_for_streams(2)
        receive_until(client, b"\r\n\r\n")
        receive_until(old, b"\r\n\r\n")
        assert server.drain(0.05) is False
        assert len(application.ended) == 2
        assert read_all(client) == b""
        with pytest.raises(ConnectionResetError):
            read_all(old)


def test_long_body_may_be_completed_while_draining() -> None:
    application = Streamer(max_unsent=1 << 24)
    with serving(application) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        stream.send(bytes(3_000_000))
        ended: list[bool] = []
        drain = threading.Thread(target=lambda: ended.append(server.drain(10)))
        drain.start()
        wait_until(lambda: server.reactor.draining)
        stream.send(bytes(3_000_000))
        stream.finish()
        assert dechunk(body_of(read_all(client))) == (bytes(6_000_000), b"")
        drain.join()
        assert ended == [True]


def test_stream_that_begins_while_draining() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(b"/keep", b"X-Request-Id: r1\r\n"))
    stepped.reactor.draining = True
    stepped.run()
    stream = application.kept[0].stream(200, "text/plain")
    stream.finish()
    stepped.run()
    head = head_of(stepped.received)
    assert head.endswith(b"X-Request-Id: r1\r\nConnection: close\r\n")
    assert body_of(stepped.received) == b"0\r\n\r\n"
    stepped.close()


@pytest.mark.parametrize(
    "request_id", [b"a", b"7f3c-91/x", b"two words", b'"quoted", and', b"~" * 128]
)
def test_request_id_is_given_back(request_id: bytes) -> None:
    line = b"\r\nX-Request-Id: " + request_id + b"\r\n"
    boom = named(request_id, b"/boom")
    answers = play([named(request_id), GET, PUT[:-5] + line[2:] + b"\r\nabc", boom])
    assert statuses(answers) == [200, 200, 200, 500]
    parts = answers.split(b"HTTP/1.1")[1:]
    assert [line in head_of(part) for part in parts] == [True, False, True, True]


@pytest.mark.parametrize(
    "request_id", [b"", b" \t", b"~" * 129, b"caf\xc3\xa9", b"a\tb", b"a\r\nx-request-id: b"]
)
def test_request_id_that_can_not_be_used_is_ignored(request_id: bytes) -> None:
    answers = play([named(request_id)])
    assert statuses(answers) == [200]
    assert b"request-id" not in answers.lower()


REFUSED_WITH_ID = {
    "no host": (b"GET / HTTP/1.1\r\nX-REQUEST-ID:r1\r\n\r\n", 400),
    "malformed field": (get(b"/", b"X : a\r\nX-Request-Id: r1\r\n"), 400),
    "version": (named(b"r1").replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "target": (named(b"r1", b"/\x7f"), 400),
    "path": (named(b"r1", b"/%zz"), 400),
    "length": (get(b"/", b"X-Request-Id: r1\r\nContent-Length: 99999999\r\n"), 413),
    "chunk": (
        get(b"/", b"X-Request-Id: r1\r\nTransfer-Encoding: chunked\r\n") + b"nonsense\r\n",
        400,
    ),
    "proxy": (named(b"r1").replace(b"GET", b"CONNECT"), 501),
}


@pytest.mark.parametrize(("data", "status"), REFUSED_WITH_ID.values(), ids=REFUSED_WITH_ID.keys())
def test_refusal_gives_the_request_id_back(data: bytes, status: int) -> None:
    """However its bytes were split (H3)."""
    answer = play([data])
    assert statuses(answer) == [status]
    assert b"\r\nX-Request-Id: r1\r\nConnection: close\r\n" in head_of(answer)
    assert play([data[i : i + 1] for i in range(len(data))]) == answer


def test_time_out_gives_the_request_id_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stepped = Stepped(Recorder())
    stepped.send(get(b"/", b"X-Request-Id: r1\r\nContent-Length: 3\r\n") + b"ab")
    clock.sleep(stepped, 31)
    assert statuses(stepped.received) == [408]
    assert b"\r\nX-Request-Id: r1\r\n" in stepped.received
    assert stepped.reactor.arriving == 0
    stepped.close()


def test_request_ids_share_one_parsed_head() -> None:
    """A name of its own for each request costs other clients' heads no place."""
    seen: list[Request] = []

    class Application(Recorder):
        def handle(self, request: Request) -> None:
            seen.append(request)
            request.respond(200)

    stepped = Stepped(Application())
    fields = b"Accept: x\r\nX-Request-ID: r%d\r\nContent-Length: 3\r\nB: c\r\n"
    for number in range(50):
        stepped.send(get(b"/", fields % number) + b"abc")
    stepped.send(named(b"caf\xe9"))
    assert len(stepped.front.known.heads) == 1
    assert [request.id for request in seen] == [*(f"r{number}" for number in range(50)), ""]
    for request in seen[:50]:
        assert request.headers.get("x-request-id") == request.id
        assert request.headers.get("accept") == "x"
        assert request.headers.get("b") == "c"
        assert request.body == b"abc"
    stepped.close()


def test_long_header_is_searched_for_an_id_in_no_time() -> None:
    worst = (b"X-Request-Id: " + b"a " * 60 + b" " * 15000 + b"\x80\r\n") * 2
    before = time.thread_time()
    assert statuses(play([get(b"/", worst[:32000].rpartition(b"X-R")[0])])) == [200]
    assert time.thread_time() - before < 1


def test_log_names_the_request(caplog: pytest.LogCaptureFixture) -> None:
    stepped = Stepped(Recorder())
    stepped.send(named(b"r1", b"/boom"))
    assert "GET '/boom' (request r1) failed" in caplog.text
    stepped.close()


def test_stream_gives_the_request_id_back() -> None:
    stepped, _, stream = begun(request=named(b"r1", b"/stream"))
    stream.finish()
    assert b"\r\nX-Request-Id: r1\r\n" in stepped.end()
    stepped.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_slow_request_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    application = Recorder()
    stepped = Stepped(application)
    target = b"/keep?key=" + b"k%0a" * 500 + b"&value=secret"
    stepped.send(named(b"r1", target) + get(b"/keep") + get(b"/keep?key=a&key=b") + GET)
    clock.now += 1.0
    application.kept[0].respond(200)
    assert warnings(caplog) == []
    clock.now += 0.25
    for request in application.kept[1:]:
        request.fail(TooManyRequests("busy"))
    stepped.run()
    key = "k\\n" * 32
    assert warnings(caplog) == [
        "slow: GET '/keep' of 127.0.0.1:1 answered 429 after 1.250 s",
        "slow: GET '/keep' of 127.0.0.1:1 answered 429 after 1.250 s",
    ]
    caplog.clear()
    stepped.send(named(b"r1", target))
    clock.now += 2
    application.kept[3].respond(200)
    assert warnings(caplog) == [
        f"slow: GET '/keep' (request r1) key '{key}'… of 127.0.0.1:1 answered 200 after 2.000 s"
    ]
    assert stepped.front.slow_requests == 3
    stepped.close()


def test_time_in_the_reactors_own_thread_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that holds up the whole round makes all of its requests slow."""
    clock = Clock(monkeypatch)

    class Blocked(Recorder):
        def flush(self) -> bool:
            clock.now += 3
            return super().flush()

    stepped = Stepped(Blocked())
    stepped.send(PUT)
    assert warnings(caplog) == ["slow: PUT '/kv' key 'a' of 127.0.0.1:1 answered 200 after 3.000 s"]
    stepped.close()


def test_overload_does_not_flood_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    application = Recorder()
    stepped = Stepped(application, Limits(max_pipelined=1000))
    (connection,) = connections_of(stepped.reactor)
    connection.run = 1000
    stepped.send(get(b"/keep") * 100)
    clock.sleep(stepped, 5)
    for request in application.kept:
        request.respond(200)
    stepped.run()
    assert len(warnings(caplog)) == server_module._SLOW_LINES
    clock.sleep(stepped, 2)
    assert warnings(caplog)[server_module._SLOW_LINES :] == ["slow: 95 more requests"]
    caplog.clear()
    stepped.send(get(b"/keep"))
    clock.now += 5
    application.kept[-1].respond(200)
    clock.sleep(stepped, 2)
    assert len(warnings(caplog)) == 1
    assert stepped.front.slow_requests == 101
    stepped.close()


def test_what_is_meant_to_take_long_is_not_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)

    def run(application: Recorder, limits: Limits) -> None:
        stepped = Stepped(application, limits)
        stepped.send(get(b"/keep"))
        clock.sleep(stepped, 100)
        application.kept[0].respond(200)
        stepped.run()
        assert statuses(stepped.received) == [200]
        stepped.close()

    run(Holding(), Limits())
    run(Recorder(), Limits(slow_request=0))
    stepped, _, stream = begun()
    clock.sleep(stepped, 100)
    stream.finish()
    stepped.run()
    stepped.close()
    assert warnings(caplog) == []
    run(Recorder(), Limits())
    assert len(warnings(caplog)) == 1


def test_dead_machines_are_found_out() -> None:
    """What is accepted has the system's probes of silent connections."""
    with serving() as server, connect(server):
        wait_until(lambda: server.connections_open == 1)
        (connection,) = connections_of(server.reactor)
        assert isinstance(connection.link, PlainLink)
        connected = connection.link.socket
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle == sockets.KEEPALIVE


def test_who_stops_sending_amid_a_chunk_gets_that_chunk_as_it_is() -> None:
    """Nothing is put between the pieces of one that another stream keeps as well."""
    data = bytes(range(256)) * 16_000
    application = Streamer(max_unsent=8 << 20)
    with serving(application) as server, connect(server) as other, connect(server) as client:
        for each in (other, client):
            each.sendall(STREAM)
            receive_until(each, b"\r\n\r\n")
        streams = application.wait_for_streams(2)
        broadcast(server.reactor, streams, data)
        wait_until(lambda: all(stream._offset for stream in streams))
        client.shutdown(socket.SHUT_WR)
        (connection,) = (
            each for each in connections_of(server.reactor) if each.stream is streams[1]
        )
        wait_until(lambda: connection.ended)
        streams[1].finish()
        content, _ = dechunk(read_all(client))
        assert content == data
