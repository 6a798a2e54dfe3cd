"""guarded: connections of other machines in protected mode, and clients that are counted."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conure.http.limits import Limits
from conure.http.origins import Access
from conure.http.server import HTTPServer
from conure.net.rates import Rates
from conure.protection import Door
from httpapi import PROBES
from tests.lab.httpdriver import (
    Recorder,
    Streamer,
    connect,
    exchange,
    read_all,
    read_answers,
    statuses,
    wait_until,
)
from tests.lab.visitors import visit

DOOR = Door("http_addr", "--http-addr=127.0.0.1:8081", PROBES)
CLOSED = Access(probes=PROBES, door=DOOR)
GET = b"GET /kv?key=a HTTP/1.1\r\nHost: n\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: n\r\n\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(
    access: Access, application: Recorder, limits: Limits | None = None
) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), application, limits, access=access)
    server.start()
    try:
        yield server
    finally:
        server.drain(0)


def asked(server: HTTPServer, data: bytes, address: str = "192.0.2.7") -> bytes:
    """Return all that another machine is answered, until the server closes."""
    with visit(server, address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def put(size: int, target: bytes = b"/kv", fields: bytes = b"") -> bytes:
    head = b"PUT %b HTTP/1.1\r\nHost: n\r\n%bContent-Length: %d\r\n\r\n"
    return head % (target, fields, size)


# -- protected mode ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        GET,
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"GET", b"OPTIONS"),
        GET.replace(b"GET", b"BREW"),
        put(3) + b"abc",
        put(1 << 20),
        put(3, fields=b"Expect: 100-continue\r\n"),
        put(3, b"/livez") + b"abc",
        LIVEZ.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + b"abc",
        LIVEZ.replace(b"GET", b"POST"),
        LIVEZ.replace(b"livez", b"livez/"),
        LIVEZ.replace(b"/livez", b"http://n/kv"),
        b"PUT /kv HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: n\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"POST /join HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n",
    ],
)  # fmt: skip
def test_another_machine_is_answered_nothing_but_probes(request_: bytes) -> None:
    application = Recorder()
    with serving(CLOSED, application) as server:
        answers = asked(server, request_ + GET)
        assert statuses(answers) == [403]
        assert b"X-Content-Type-Options: nosniff\r\n" in answers
        if not request_.startswith(b"HEAD"):
            assert answers.endswith(DOOR.why.encode() + b"\n")
        assert server.refused == {403: 1}
        assert server.reactor.arriving == 0
        wait_until(lambda: not server.connections_open)
    assert [event for event in application.events if event != "flush"] == []


def test_probes_are_answered_and_the_connection_goes_on() -> None:
    application = Recorder()
    with serving(CLOSED, application) as server:
        run = 3 * LIVEZ + LIVEZ.replace(b"GET", b"HEAD") + LIVEZ.replace(b"livez", b"readyz")
        assert statuses(asked(server, run)) == [200] * 5
        assert statuses(asked(server, LIVEZ + GET + LIVEZ)) == [200, 403]


def test_this_machine_is_answered_by_the_same_header_block() -> None:
    """What is known of a header block says nothing about who sends it."""
    with serving(CLOSED, Recorder()) as server:
        for _ in range(3):
            assert statuses(exchange(server, GET)) == [200]
            assert statuses(asked(server, GET)) == [403]
            assert statuses(asked(server, GET, "127.0.0.5")) == [200]
            assert statuses(asked(server, GET, "::ffff:127.0.0.1")) == [200]


def test_who_is_barred_may_ask_for_json_and_for_its_id() -> None:
    fields = b"Accept: application/json\r\nX-Request-Id: r7\r\n\r\n"
    with serving(CLOSED, Recorder()) as server:
        answer = asked(server, GET[:-2] + fields)
    assert b"\r\nX-Request-Id: r7\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == DOOR.why


def test_a_front_without_probes_answers_other_machines_nothing() -> None:
    with serving(Access(door=Door("rest_addr", "--rest-addr=127.0.0.1:1")), Recorder()) as server:
        assert statuses(asked(server, LIVEZ)) == [403]
        assert statuses(exchange(server, LIVEZ)) == [200]


def test_a_barred_client_holds_a_place_no_longer_than_others() -> None:
    limits = Limits(max_connections=40, idle_timeout=0.05)
    with serving(CLOSED, Recorder(), limits) as server:
        clients = [visit(server) for _ in range(20)]
        wait_until(lambda: not server.connections_open)
        for client in clients:
            client.close()


# -- rates ---------------------------------------------------------------------------------------


def counted(clock: Clock, requests: int, size: int = 0) -> tuple[Access, Rates]:
    rates = Rates(requests, size, ["198.51.100.0/24"], clock)
    return Access(probes=PROBES, rates=rates), rates


def retry_after(answers: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"\r\nRetry-After: (\d+)\r\n", answers)]


def test_each_of_a_pipeline_is_counted_and_the_connection_stays() -> None:
    clock, application = Clock(), Recorder()
    access, rates = counted(clock, 4)
    with serving(access, application) as server, visit(server) as client:
        client.sendall(6 * GET)
        answers = read_answers(client, 6)
        assert statuses(answers) == [200] * 4 + [429] * 2
        assert retry_after(answers) == [1, 1]
        assert b"rate limit: 4 requests a second for each client; try again in 1 s\n" in answers
        assert server.refused == {429: 2}
        clock.now += 0.5
        client.sendall(3 * GET)
        assert statuses(read_answers(client, 3)) == [200, 200, 429]
        assert rates.refused == 3
    assert application.events.count("GET /kv") == 6


def test_all_connections_of_a_client_count_together() -> None:
    access, _ = counted(Clock(), 4)
    with serving(access, Recorder()) as server:
        assert statuses(asked(server, 3 * GET)) == [200] * 3
        assert statuses(asked(server, 3 * GET, "::ffff:192.0.2.7")) == [200, 429, 429]
        assert statuses(asked(server, 3 * GET, "192.0.2.8")) == [200] * 3
        for address in ("127.0.0.1", "198.51.100.3"):
            assert statuses(asked(server, 30 * GET, address)) == [200] * 30


def test_probes_are_never_too_many() -> None:
    access, rates = counted(Clock(), 1)
    with serving(access, Recorder()) as server:
        assert statuses(asked(server, 9 * LIVEZ + 2 * GET + 9 * LIVEZ)) == (
            [200] * 10 + [429] + [200] * 9
        )
        assert rates.refused == 1
        assert statuses(asked(server, put(0, b"/livez"))) == [429], "that is no probe"


def test_a_body_is_counted_before_it_is_read() -> None:
    clock, application = Clock(), Recorder()
    access, _ = counted(clock, 0, 1000)
    with serving(access, application) as server:
        with visit(server) as first, visit(server) as second:
            first.sendall(put(4000))
            wait_until(lambda: server.reactor.bytes_in > 0)
            second.sendall(put(4000))
            answers = read_all(second)
            assert statuses(answers) == [429]
            assert b"\r\nConnection: close\r\n" in answers
            assert 3 <= retry_after(answers)[0] <= 4
            first.sendall(4000 * b"x")
            assert statuses(read_answers(first, 1)) == [200]
        assert statuses(asked(server, put(4000, fields=b"Expect: 100-continue\r\n"))) == [429]
        clock.now += 5
        assert statuses(asked(server, put(9) + b"123456789")) == [200]
        assert statuses(asked(server, put(9) + b"123456789" + put(1) + b"x")) == [200, 200]
    assert application.events.count("PUT /kv") == 4


def test_heads_and_targets_are_bytes_too() -> None:
    access, _ = counted(Clock(), 0, 3000)
    long = GET[:-2] + b"X-A: " + 4000 * b"a" + b"\r\n\r\n"
    with serving(access, Recorder()) as server:
        assert statuses(asked(server, 2 * long)) == [200, 429]
        target = b"GET /kv?key=" + 4000 * b"a" + b" HTTP/1.1\r\nHost: n\r\n\r\n"
        assert statuses(asked(server, 2 * target, "192.0.2.8")) == [200, 429]
        named = GET[:-2] + b"X-Request-Id: " + 100 * b"a" + b"\r\n\r\n"
        assert 429 in statuses(asked(server, 40 * named, "192.0.2.9"))


def test_a_body_in_chunks_is_counted_as_it_comes() -> None:
    clock, application = Clock(), Recorder()
    access, _ = counted(clock, 0, 1000)
    head = b"PUT /kv HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(access, application) as server, visit(server) as client:
        client.sendall(head + b"fa0\r\n" + 4000 * b"x" + b"\r\n")
        wait_until(lambda: server.reactor.arriving == 4000)
        assert statuses(asked(server, GET)) == [429]
        client.sendall(b"0\r\n\r\n")
        assert statuses(read_answers(client, 1)) == [200]
        clock.now += 5
        assert statuses(asked(server, GET)) == [200]
    assert [event for event in application.events if event != "flush"] == ["PUT /kv", "GET /kv"]


def test_a_stream_is_one_request_however_long_it_lasts() -> None:
    application = Streamer()
    access, rates = counted(Clock(), 2, 1000)
    with serving(access, application) as server, visit(server) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: n\r\n\r\n")
        (stream,) = application.wait_for_streams(1)
        for _ in range(50):
            stream.send(1000 * b"x")
        stream.finish()
        assert statuses(asked(server, 2 * GET)) == [200, 429]
        assert client.recv(10)
    assert rates.refused == 1


def test_what_is_no_request_is_counted_as_one() -> None:
    access, _ = counted(Clock(), 2)
    with serving(access, Recorder()) as server:
        for _ in range(2):
            assert statuses(asked(server, b"GET / HTTP/1.1\r\n\r\n")) == [400]
        assert statuses(asked(server, GET)) == [429]


def test_without_a_limit_nothing_is_counted() -> None:
    with serving(Access(probes=PROBES), Recorder()) as server, connect(server) as client:
        client.sendall(40 * GET)
        assert statuses(read_answers(client, 40)) == [200] * 40
        (connection,) = server.reactor.connections.values()
        assert type(connection).__name__ == "HTTPConnection"
