"""Streams: form, order, slow readers, clients that leave (H1, H2, H5, H7)."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from conure.http.limits import Limits
from conure.http.request import Request
from conure.http.stream import Stream
from conure.net import reactor as reactor_module
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
    serving,
    statuses,
    wait_until,
    without_dates,
)
from tests.lab.httpstreams import (
    GET,
    HOST,
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


def test_stream_is_chunked_and_the_connection_goes_on() -> None:
    stepped, application, stream = begun()
    head = without_dates(stepped.received)
    assert head == (
        b"HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nContent-Type: text/plain\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    assert stream.send(b"one")
    stepped.run()
    assert stepped.received.endswith(b"\r\n\r\n3\r\none\r\n")
    assert stream.send(b"")  # an empty chunk would end it
    assert stream.send(b"two" * 10)
    stream.finish()
    stepped.run()
    assert dechunk(body_of(stepped.received)) == (b"one" + b"two" * 10, b"")
    assert stream.over
    assert application.ended == [stream]
    assert not stream.send(b"more")
    stepped.send(GET)
    assert statuses(stepped.received) == [200, 200]
    assert stream.unsent == stepped.reactor.in_flight == stepped.reactor.streams == 0
    assert stepped.reactor.queued == 0
    stepped.close()


@pytest.mark.parametrize("option", [b"", b"Connection: keep-alive\r\n"])
def test_stream_for_http_1_0_ends_with_the_connection(option: bytes) -> None:
    stepped, _, stream = begun(request=OLD_STREAM[:-2] + option + b"\r\n" + GET)
    stream.send(b"one")
    stream.send(b"two")
    stream.finish()
    answer = without_dates(stepped.end())
    assert answer == (
        b"HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nContent-Type: text/plain\r\n"
        b"Connection: close\r\n\r\nonetwo"
    )
    stepped.close()


def test_stream_for_http_1_0_leaves_no_request_behind_it() -> None:
    application = Recorder()
    stepped = Stepped(application)
    first = b"GET /keep HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    stepped.send(first + get(b"/kv", b"Content-Length: 1000\r\n") + b"x" * 500)
    assert stepped.reactor.arriving == 500
    stream = application.kept[0].stream(200, "text/plain")
    assert stepped.reactor.arriving == 0
    stream.finish()
    assert statuses(stepped.end()) == [200]
    stepped.close()


def test_stream_of_a_connection_that_is_to_close() -> None:
    stepped, _, stream = begun(request=get(b"/stream", b"Connection: close\r\n") + GET)
    stream.send(b"x" * 300_000)
    stream.finish()
    answer = stepped.end()
    assert b"\r\nConnection: close\r\n" in head_of(answer)
    assert dechunk(body_of(answer)) == (b"x" * 300_000, b"")
    stepped.close()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_head_of_a_stream(version: bytes) -> None:
    stepped, _, stream = begun(
        request=b"HEAD /stream HTTP/" + version + b"\r\n" + HOST + b"\r\n" + GET
    )
    assert stream.over
    assert not stream.send(b"one")
    answer = stepped.end()
    assert (b"Transfer-Encoding: chunked" in head_of(answer)) is (version == b"1.1")
    assert body_of(answer)[:9] == (b"HTTP/1.1 " if version == b"1.1" else b"")
    assert stepped.reactor.streams == 0
    stepped.close()


def test_fields_of_a_stream() -> None:
    class Application(Recorder):
        def handle(self, request: Request) -> None:
            request.stream(206, "text/x", [("X-Name", "v"), ("ETag", '"3"')]).finish()

    answer = play([GET])
    stepped = Stepped(Application())
    stepped.send(GET)
    answer = stepped.end()
    stepped.close()
    assert answer.startswith(b"HTTP/1.1 206 Partial Content\r\n")
    assert b'\r\nX-Name: v\r\nETag: "3"\r\n' in answer
    assert body_of(answer) == b"0\r\n\r\n"


def test_other_peoples_clients_read_streams() -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        response = http.client.HTTPResponse(client)
        for number in range(100):
            stream.send(b"%d\n" % number)
        stream.finish()
        response.begin()
        assert response.read() == b"".join(b"%d\n" % number for number in range(100))


def test_stream_waits_for_the_answers_before_it() -> None:
    application = Streamer()
    stepped = Stepped(application)
    stepped.send(get(b"/keep") + STREAM + get(b"/keep"))
    (stream,) = application.streams
    assert stream.send(b"one")
    stream.finish()
    stepped.run()
    assert stepped.received == b""
    assert stream.unsent > 0
    application.kept[0].respond(200, b"first")
    stepped.run()
    assert statuses(stepped.received) == [200, 200]
    first, second = stepped.received.split(b"HTTP/1.1 200")[1:]
    assert body_of(first) == b"first"
    assert dechunk(body_of(second)) == (b"one", b"")
    application.kept[1].respond(200, b"third")
    stepped.run()
    assert stepped.received.endswith(b"third")
    stepped.close()


def test_request_behind_a_stream_waits_until_it_is_over() -> None:
    stepped, application, stream = begun(request=STREAM + GET + PUT)
    stepped.send(GET)
    assert application.events == ["GET /stream", "flush"]
    stream.send(b"one")
    stepped.run()
    assert application.events == ["GET /stream", "flush"]
    stream.finish()
    stepped.run()
    assert [event for event in application.events if event != "flush"] == [
        *("GET /stream", "GET /kv", "PUT /kv", "GET /kv"),
    ]
    content, rest = dechunk(body_of(stepped.received))
    assert content == b"one"
    assert statuses(rest or b"") == [200] * 3
    stepped.close()


def test_streams_one_after_the_other() -> None:
    """A run of them, some begun at once, some before their turn; each is whole and in order."""
    application = Streamer()
    stepped = Stepped(application)
    stepped.send(STREAM * 3)
    for number in range(3):
        stream = application.streams[number]
        stream.send(b"<%d" % number)
        stepped.run()
        stream.send(b">")
        stream.finish()
        stepped.run()
    rest: bytes | None = stepped.end()
    for number in range(3):
        content, rest = dechunk(body_of(rest or b""))
        assert content == b"<%d>" % number
    assert rest == b""
    stepped.close()


def test_input_behind_a_stream_is_kept_in_bounded_memory() -> None:
    stepped, _, stream = begun()
    for _ in range(10):
        stepped.send(get(b"/kv", b"X: " + b"a" * 30000 + b"\r\n"))
    (connection,) = connections_of(stepped.reactor)
    assert len(connection.buffer) < 140_000
    stream.finish()
    stepped.run()
    assert statuses(stepped.end()) == [200] * 11
    stepped.close()


def test_pieces_of_many_threads() -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)

        def produce(name: int) -> None:
            for number in range(500):
                assert stream.send(b"%d:%d " % (name, number))

        threads = [threading.Thread(target=produce, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.finish()
        content, _ = dechunk(body_of(receive_until(client, b"0\r\n\r\n")))
    pieces = [piece.split(b":") for piece in content.split()]
    for name in range(4):
        numbers = [int(number) for owner, number in pieces if int(owner) == name]
        assert numbers == list(range(500))
    assert stream.unsent == 0


def test_a_request_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(Recorder):
        def handle(self, request: Request) -> None:
            request.stream(200, "text/plain").finish()
            assert request.stream(200, "text/plain").over
            request.respond(200, b"again")

    stepped = Stepped(Twice())
    stepped.send(GET)
    assert statuses(stepped.received) == [200]
    assert caplog.text.count("answered twice") == 2
    assert stepped.reactor.streams == stepped.reactor.in_flight == 0
    stepped.close()


def test_slow_reader_is_dropped_and_nobody_else() -> None:
    """What it got is a beginning of what was sent, and visibly not all."""
    application = Streamer(max_unsent=300_000)
    with serving(application) as server, connect(server) as slow, connect(server) as quick:
        slow.sendall(STREAM)
        lazy = application.wait_for_streams(1)[0]
        quick.sendall(STREAM)
        stream = application.wait_for_streams(2)[1]
        expected, received = bytearray(), bytearray()
        while not application.ended:
            piece = b"%08x" % len(expected) * 10_000
            expected += piece
            lazy.send(piece)
            assert stream.send(piece)
            assert stream.wait(1, 10)
            received += quick.recv(1 << 20)
        assert application.ended == [lazy]
        assert not lazy.send(b"more")
        assert server.streams_dropped == 1
        assert server.streams_open == 1
        stream.finish()
        answer = receive_until(quick, b"0\r\n\r\n", bytes(received))
        assert dechunk(body_of(answer)) == (bytes(expected), b"")
        content, rest = dechunk(body_of(read_all(slow)))
        assert rest is None
        assert 0 < len(content) < len(expected)
        assert expected.startswith(content)


def test_the_limit_of_a_stream_is_exact() -> None:
    stepped, _, stream = begun(max_unsent=110)
    assert stream.send(b"x" * 50)  # 56 with its frame
    assert stream.unsent == 56
    assert stream.send(b"x" * 48)
    assert stream.unsent == 110
    stepped.run()
    assert stream.unsent == 0
    assert stream.send(b"x" * 50)
    assert not stream.send(b"x" * 49)
    stepped.run()
    assert stream.over
    assert not stepped.reactor.connections
    stepped.close()


def test_streams_share_one_bound() -> None:
    """Whoever is sent more while all keep too much is dropped; who has read everything isn't."""
    application = Streamer()
    stepped = Stepped(application, Limits(max_leaving_bytes=1000))
    other, adopted = socket.socketpair()
    adopted.setblocking(False)
    stepped.adopt(adopted, ("127.0.0.1", 2))
    with other:
        stepped.send(get(b"/keep") + STREAM)
        other.sendall(STREAM)
        stepped.run()
        waiting, other_stream = application.streams
        assert waiting.send(b"x" * 900)
        assert waiting.send(b"x" * 100)
        assert stepped.reactor.is_full()
        assert other_stream.send(b"y")
        stepped.run()
        assert not waiting.send(b"x")
        stepped.run()
        assert stepped.reactor.streams_dropped == 1
        application.kept[0].respond(200)  # its turn comes, and with it the end
        stepped.run()
        assert waiting.over
        assert not stepped.reactor.is_full()
        assert not other_stream.over
    stepped.close()


def test_client_that_reads_nothing_of_a_stream_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    stepped, application, stream = begun(max_unsent=1 << 24)

    def wait(seconds: float) -> None:
        clock.now += seconds
        stepped._wake()
        stepped.reactor.round()

    stream.send(b"x" * 5_000_000)
    wait(0)
    for _ in range(3):
        wait(20)
        assert stepped.client.recv(500_000)
        wait(0)
    wait(29)
    assert not stream.over
    wait(2)
    assert application.ended == [stream]
    assert stepped.reactor.streams_dropped == 1
    assert not stepped.reactor.connections
    stepped.close()


def test_silent_stream_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stepped, _, stream = begun()
    for _ in range(5):
        clock.sleep(stepped, 1000)
    assert stream.send(b"still there")
    stream.finish()
    stepped.run()
    assert dechunk(body_of(stepped.received)) == (b"still there", b"")
    clock.sleep(stepped, 100)
    assert stepped.reactor.connections
    clock.sleep(stepped, 100)  # the connection is idle now
    assert not stepped.reactor.connections
    stepped.close()


def test_who_makes_a_long_body_waits_for_the_reader() -> None:
    application = Streamer(max_unsent=400_000)
    piece = bytes(range(256)) * 400
    most = 0

    def produce(stream: Stream) -> None:
        nonlocal most
        for _ in range(200):
            assert stream.wait(200_000, 10)
            assert stream.send(piece)
            most = max(most, stream.unsent)
        stream.finish()

    with serving(application) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        producer = threading.Thread(target=produce, args=(stream,))
        producer.start()
        data = receive_until(client, b"\r\n0\r\n\r\n")
        producer.join()
        assert dechunk(body_of(data)) == (piece * 200, b"")
        assert most <= 400_000
        assert server.reactor.leaving == 0


def test_next_piece_of_a_stream_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_TICK", 60.0)
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        for _ in range(5):
            stream.send(bytes(70_000))
        stream.finish()
        assert dechunk(body_of(receive_until(client, b"0\r\n\r\n")))[0] == bytes(350_000)


def test_waiting_ends_with_the_time_or_the_stream() -> None:
    application = Streamer(max_unsent=1 << 30)
    with serving(application) as server:
        client = connect(server)
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        assert stream.wait(1, 10)
        stream.send(bytes(20_000_000))
        assert not stream.wait(1, 0.05)
        leaving = threading.Timer(0.05, client.close)
        leaving.start()
        before = time.monotonic()
        assert not stream.wait(1, 10)
        assert time.monotonic() - before < 5
        assert stream.over
        leaving.join()


def test_the_reactor_may_not_wait() -> None:
    stepped, _, stream = begun()
    with pytest.raises(AssertionError):
        stream.wait(1, 1)
    stepped.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("request_", [STREAM, get(b"/stream", b"Connection: close\r\n")])
def test_leaving_is_found_out_while_nothing_is_sent(
    leave: Callable[[socket.socket], None], request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    application = Streamer()
    with serving(application) as server:
        client = connect(server)
        client.sendall(request_)
        (stream,) = application.wait_for_streams(1)
        receive_until(client, b"\r\n\r\n")
        leave(client)
        application.wait_for_ends(1)
        assert stream.over
        assert not stream.send(b"too late")
        wait_until(lambda: server.connections_open == server.streams_open == 0)
        assert statuses(exchange(server, GET)) == [200]
    assert caplog.records == []


def test_leaving_with_requests_behind_the_stream_is_found_out() -> None:
    application = Streamer()
    with serving(application) as server:
        client = connect(server)
        client.sendall(STREAM + GET)
        application.wait_for_streams(1)
        receive_until(client, b"\r\n\r\n")
        client.close()
        application.wait_for_ends(1)
        assert server.requests == 1


def test_leaving_is_found_out_though_input_was_ignored_before() -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(b"/keep", b"Connection: close\r\n"))
        (request,) = application.wait_for(1)
        client.sendall(GET)
        (connection,) = connections_of(server.reactor)
        wait_until(lambda: connection.interest == 0)
        ended = threading.Event()
        request.stream(200, "text/plain").on_close(ended.set)
        receive_until(client, b"\r\n\r\n")
        client.close()
        assert ended.wait(10)


def test_leaving_an_old_stream_is_found_out_by_sending() -> None:
    application = Streamer()
    with serving(application) as server:
        client = connect(server)
        client.sendall(OLD_STREAM)
        (stream,) = application.wait_for_streams(1)
        receive_until(client, b"\r\n\r\n")
        client.close()
        wait_until(lambda: not stream.send(b"x"))
        application.wait_for_ends(1)


@pytest.mark.parametrize("request_", [STREAM, OLD_STREAM, STREAM + GET])
def test_client_that_has_only_stopped_sending_gets_the_whole_stream(request_: bytes) -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(request_)
        (stream,) = application.wait_for_streams(1)
        data = receive_until(client, b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        if request_ is not OLD_STREAM:  # the end has been noticed, and the client tested
            data = receive_until(client, b"\r\n\r\n0", data)
        for number in range(20):
            assert stream.send(b"<%d>" % number)
        stream.finish()
        data += read_all(client)
    expected = b"".join(b"<%d>" % number for number in range(20))
    if request_ is OLD_STREAM:
        assert body_of(data) == expected
    else:
        content, rest = dechunk(body_of(data))
        assert content == expected
        assert statuses(rest or b"") == [200] * request_.count(b"/kv")
    assert application.ended == [stream]


def test_client_that_stopped_sending_before_the_stream_began() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(b"/keep"))
        client.shutdown(socket.SHUT_WR)
        (request,) = application.wait_for(1)
        (connection,) = connections_of(server.reactor)
        wait_until(lambda: connection.ended)
        stream = request.stream(200, "text/plain")
        stream.send(b"late")
        stream.finish()
        assert dechunk(body_of(read_all(client))) == (b"late", b"")


def test_stream_for_a_client_that_went_before_it_began(caplog: pytest.LogCaptureFixture) -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(b"/keep"))
        (request,) = application.wait_for(1)
        reset(client)
        wait_until(lambda: server.connections_open == 0)
        told = threading.Event()
        stream = request.stream(200, "text/plain")
        stream.on_close(told.set)
        assert told.wait(10)
        assert stream.over
        assert server.streams_open == server.requests_in_flight == 0
    assert caplog.records == []


def test_the_end_is_told_once_whatever_it_is() -> None:
    told: list[str] = []
    stepped, _, stream = begun()
    stream.on_close(lambda: told.append("first"))
    stream.on_close(lambda: told.append("second"))
    stream.finish()
    stream.finish()
    assert told == []
    stepped.run()
    assert told == ["first", "second"]
    stream.on_close(lambda: told.append("third"))
    stream.abort()
    stepped.end()
    stepped.close()
    assert told == ["first", "second", "third"]


def test_an_action_that_raises_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    stepped, _, stream = begun()

    def boom() -> None:
        raise RuntimeError("boom")

    stream.on_close(boom)
    stream.on_close(lambda: told.append("next"))
    stream.finish()
    stepped.send(GET)
    assert told == ["next"]
    assert "boom" in caplog.text
    assert statuses(stepped.received) == [200, 200]
    stepped.close()


@pytest.mark.parametrize("request_", [STREAM, OLD_STREAM])
@pytest.mark.parametrize("half_closed", [False, True])
def test_aborted_stream_is_visibly_incomplete(request_: bytes, half_closed: bool) -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(request_)
        (stream,) = application.wait_for_streams(1)
        stream.send(b"one")
        data = receive_until(client, b"one\r\n" if request_ is STREAM else b"one")
        if half_closed:
            client.shutdown(socket.SHUT_WR)
            if request_ is STREAM:
                data = receive_until(client, b"0", data)
        stream.abort()
        if request_ is STREAM and not half_closed:
            assert dechunk(body_of(data + read_all(client))) == (b"one", None)
        else:  # for these an end could be the stream's own
            with pytest.raises(ConnectionResetError):
                read_all(client)
        application.wait_for_ends(1)
        assert server.streams_dropped == 0


def test_unusable_piece_ends_its_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    application = Streamer()
    with serving(application) as server, connect(server) as client:
        client.sendall(OLD_STREAM)
        (stream,) = application.wait_for_streams(1)
        stream.send("text for bytes")  # type: ignore[arg-type]
        application.wait_for_ends(1)
        assert statuses(exchange(server, GET)) == [200]
    assert "a connection failed" in caplog.text


def test_death_of_the_reactor_ends_streams() -> None:
    died = threading.Event()

    class Dying(Streamer):
        def handle(self, request: Request) -> None:
            if request.path == "/die":
                raise SystemExit(3)
            super().handle(request)

    application = Dying(max_unsent=1 << 30)
    with serving(application, on_fatal=lambda _: died.set()) as server, connect(server) as client:
        client.sendall(STREAM)
        (stream,) = application.wait_for_streams(1)
        stream.send(bytes(20_000_000))
        waiter: list[bool] = []
        waiting = threading.Thread(target=lambda: waiter.append(stream.wait(1, 60)))
        waiting.start()
        wait_until(lambda: stream._wanted is not None)
        with connect(server) as other:
            other.sendall(get(b"/die"))
            assert died.wait(10)
        application.wait_for_ends(1)
        waiting.join(10)
        assert waiter == [False]


@pytest.mark.parametrize("request_", [STREAM, OLD_STREAM])
def test_failure_of_who_began_a_stream_cuts_it(request_: bytes) -> None:
    class Failing(Streamer):
        def handle(self, request: Request) -> None:
            super().handle(request)
            raise RuntimeError("boom")

    with serving(Failing()) as server, connect(server) as client:
        client.sendall(request_)
        with pytest.raises(ConnectionResetError) if request_ is OLD_STREAM else nullcontext():
            assert dechunk(body_of(read_all(client))) == (b"", None)
        wait_until(lambda: server.streams_open == 0)


@pytest.mark.parametrize("half_closed", [False, True])
def test_finished_stream_that_is_not_read_is_visibly_incomplete(
    monkeypatch: pytest.MonkeyPatch, half_closed: bool
) -> None:
    """Its last piece is with the connection already, and not with the system."""
    clock = Clock(monkeypatch)
    application = Streamer(1 << 30)
    stepped = Stepped(application)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=10)
        adopted, peer = listener.accept()
    adopted.setblocking(False)
    stepped.adopt(adopted, peer)
    with client:
        client.sendall(STREAM if half_closed else OLD_STREAM)
        while not application.streams:
            stepped.run()
        data = receive_until(client, b"\r\n\r\n")
        if half_closed:
            client.shutdown(socket.SHUT_WR)
            (connection,) = (
                each
                for each in connections_of(stepped.reactor)
                if each.descriptor == adopted.fileno()
            )
            while not connection.ended:
                stepped.run()
            receive_until(client, b"0", data)
        (stream,) = application.streams
        stream.send(bytes(20_000_000))
        stream.finish()
        stepped.run()
        assert stream.over
        assert len(stepped.reactor.connections) == 2
        clock.sleep(stepped, 100)
        with pytest.raises(ConnectionResetError):
            read_all(client)
    stepped.close()


def test_stream_that_begins_as_the_reactor_dies_is_over() -> None:
    ended = threading.Event()

    class Dying(Recorder):
        def handle(self, request: Request) -> None:
            super().handle(request)
            if request.path == "/die":
                beginning = threading.Thread(target=self.begin)
                beginning.start()
                beginning.join()
                raise SystemExit(3)

        def begin(self) -> None:
            self.kept[0].stream(200, "text/plain").on_close(ended.set)

    with serving(Dying()) as server, connect(server) as client:
        client.sendall(get(b"/keep") + get(b"/die"))
        assert ended.wait(10)
