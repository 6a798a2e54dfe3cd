"""forwarding.py: a follower's answers are the leader's, and a write is never sent twice."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from conure.errors import Conflict, DiskFull, NotLeader, Unavailable
from conure.http import forwarding
from conure.http.forwarding import FORWARDED, Forwarder
from conure.metrics import Registry
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.process import Answer, wait_until
from tests.lab.stubserver import (
    StubServer,
    close,
    close_later,
    drip,
    garbage,
    hang,
    raw,
    refuse,
    truncate,
)

EVERY_BYTE = bytes(range(256))


class Follower(Service):
    """A server whose node follows the one at *leader*, and passes requests on."""

    def __init__(self, leader: str, timeout: float = 5.0, idle_timeout: float = 60.0) -> None:
        registry = Registry()
        self.forwarder = Forwarder("n1", registry, timeout=timeout, idle_timeout=idle_timeout)
        super().__init__(FakeBackend(), forward=self.forwarder.forward, registry=registry)
        self.follow(leader)
        self.forwarder.start()

    def follow(self, leader: str) -> None:
        backend_of(self).error = NotLeader("10.0.0.9:7001", "n9", leader)

    def stop(self) -> None:
        self.forwarder.stop()
        assert self.server.drain(5)
        assert not any(thread.is_alive() for thread in self.forwarder._threads)

    def in_background(self, method: str, target: str, body: bytes = b"") -> Background:
        return Background(lambda: self.request(method, target, body))


class Background:
    """A request in a thread of its own."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self.answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self.answers.append(ask()))
        self._thread.start()

    def result(self) -> Answer:
        self._thread.join(20)
        return self.answers[0]


@pytest.fixture(name="leader")
def _leader() -> Iterator[Service]:
    leader = Service(FakeBackend())
    yield leader
    assert leader.server.drain(5)


@pytest.fixture(name="stub")
def _stub() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.stop()


@pytest.fixture(name="before")
def _before(stub: StubServer) -> Iterator[Follower]:
    """A follower before a leader that plays parts."""
    follower = Follower(stub.url)
    yield follower
    follower.stop()


@pytest.fixture(name="follower")
def _follower(leader: Service) -> Iterator[Follower]:
    follower = Follower(leader.url)
    yield follower
    follower.stop()


def backend_of(service: Service) -> FakeBackend:
    assert isinstance(service.backend, FakeBackend)
    return service.backend


# -- what is passed on -----------------------------------------------------------------------------


def test_a_follower_answers_as_the_leader_does(leader: Service, follower: Follower) -> None:
    assert follower.request("PUT", "/kv?key=k", b"v").body == b"OK\n"
    got = follower.request("GET", "/kv?key=k")
    assert (got.status, got.body) == (200, b"v")
    assert got.headers["content-type"] == "application/octet-stream"
    head = follower.request("HEAD", "/kv?key=k")
    assert (head.status, head.headers["content-length"], head.body) == (200, "1", b"")
    assert follower.request("DELETE", "/kv?key=k").body == b"OK\n"
    missing = follower.request("GET", "/kv?key=k")
    assert (missing.status, missing.body) == (404, b"key not found\n")
    assert follower.request("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1"}').body == b"OK\n"
    assert json.loads(follower.request("POST", "/remove?dry_run=1", b'{"ID": "n2"}').body)
    backend = backend_of(leader)
    assert backend.batches == [[(b"k", b"v")], [(b"k", None)]]
    assert backend.joins[0]["id"] == "n2"
    assert backend.previews == [("remove", "n2")]


def test_keys_and_values_are_any_bytes(leader: Service, follower: Follower) -> None:
    target = "/kv?key=" + quote(EVERY_BYTE)
    assert follower.request("PUT", target, EVERY_BYTE).status == 200
    assert backend_of(leader).values == {EVERY_BYTE: EVERY_BYTE}
    assert follower.request("GET", target).body == EVERY_BYTE
    assert follower.request("PUT", f"{target}&value={quote(EVERY_BYTE[::-1])}").status == 200
    assert follower.request("GET", target).body == EVERY_BYTE[::-1]


@pytest.mark.parametrize(
    "query", [b"key=a%2Bb+c%00&value=%e4%f6", b"value=x&key=a;b=c/d?e", b"key=%C3%A4", b"key=+"]
)
def test_the_query_is_passed_on_as_it_was_sent(
    before: Follower, stub: StubServer, query: bytes
) -> None:
    stub.acts = [refuse(200, "OK")]
    before.converse(b"PUT /kv?%b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv" % query, 1)
    assert stub.requests == [("PUT", "/kv?" + query.decode("latin-1"), b"v")]


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("key=k&index=0&wait=1ms", "key=k"),
        ("index=0&wait=1ms&key=k", "key=k"),
        ("wait=1ms&key=index=0&index=0", "key=index=0"),
        ("%69ndex=0&key=k&w%61it=1ms&stale=false", "key=k&stale=false"),
    ],
)
def test_a_wait_for_a_change_is_not_passed_on_however_it_is_written(
    before: Follower, stub: StubServer, query: str, left: str
) -> None:
    """The leader would wait once more, and the thread that asks it as well."""
    stub.acts = [refuse(200, "OK")]
    assert before.request("GET", "/kv?" + query).status == 200
    assert stub.requests == [("GET", "/kv?" + left, b"")]


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (DiskFull("no space; free some"), 507, None),
        (Conflict("no"), 409, None),
        (Unavailable("no quorum", 7), 503, ("retry-after", "7")),
    ],
)
def test_what_the_leader_refuses_is_relayed(
    leader: Service, follower: Follower, error: DiskFull, status: int,
    field: tuple[str, str] | None,
) -> None:  # fmt: skip
    backend_of(leader).error = error
    plain = follower.request("PUT", "/kv?key=k", b"v")
    assert (plain.status, plain.body.decode()) == (status, f"{error}\n")
    problem = follower.request("PUT", "/kv?key=k", b"v", Accept="application/json")
    assert problem.headers["content-type"] == "application/problem+json"
    assert json.loads(problem.body)["detail"] == str(error)
    if field:
        assert plain.headers[field[0]] == field[1]


def test_only_header_fields_that_matter_are_relayed_and_none_can_split_the_answer(
    before: Follower, stub: StubServer
) -> None:
    stub.acts = [
        raw(
            b"HTTP/1.1 200 OK\r\nX-Conure-Last-Contact: 7\r\nETag: a\r\n b\r\nServer: x\r\n"
            b"Content-Type: text/x\r\n y\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nv"
        )
    ]
    answer = before.request("GET", "/kv?key=k")
    assert answer.body == b"v"
    del answer.headers["date"]
    assert answer.headers == {
        "content-type": "text/x y",
        "content-length": "1",
        "x-conure-last-contact": "7",
        "etag": "a b",
        "x-content-type-options": "nosniff",
    }


def test_a_chunked_answer_of_something_in_between(before: Follower, stub: StubServer) -> None:
    stub.acts = [
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nOK\r\n1\r\n\n\r\n0\r\n\r\n")
    ]
    assert before.request("PUT", "/kv?key=k", b"v").body == b"OK\n"


def test_connections_to_the_leader_are_kept(leader: Service, follower: Follower) -> None:
    for _ in range(100):
        assert follower.request("PUT", "/kv?key=k", b"v").status == 200
        assert follower.request("GET", "/kv?key=k").status == 200
    assert leader.server.connections_accepted <= forwarding.THREADS


def test_a_new_leader_is_asked_instead(before: Follower, stub: StubServer, leader: Service) -> None:
    assert before.request("PUT", "/kv?key=k", b"1").status == 200
    before.follow(leader.url)
    for _ in range(2 * forwarding.THREADS):
        assert before.request("PUT", "/kv?key=k", b"2").status == 200
    assert stub.values == {b"k": b"1"}
    assert backend_of(leader).values == {b"k": b"2"}


# -- nobody leads ----------------------------------------------------------------------------------


def test_two_followers_that_take_each_other_for_the_leader() -> None:
    one, two = Follower(""), Follower("")
    one.follow(two.url)
    two.follow(one.url)
    for follower in (one, two):
        for method in ("PUT", "GET"):
            answer = follower.request(method, "/kv?key=k", b"v")
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert b"n1 took this node for the leader" in answer.body
    assert len(backend_of(one).batches) == len(backend_of(two).batches) == 2
    one.stop()
    two.stop()


def test_requests_are_marked(before: Follower, stub: StubServer) -> None:
    before.request("PUT", "/kv?key=k", b"v")
    assert stub.headers[0][FORWARDED] == "n1"
    assert before.request("PUT", "/kv?key=k", b"v", **{FORWARDED: "n7"}).status == 503
    assert len(stub.requests) == 1


def test_a_server_that_redirects_leads_no_more(before: Follower, stub: StubServer) -> None:
    stub.leader = "http://127.0.0.1:1"
    for method in ("PUT", "GET"):
        answer = before.request(method, "/kv?key=k", b"v")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    "leader",
    [
        "http://127.0.0.1:1",
        "http://a..b:80",
        "http://127.0.0.1:99999",
        "http://[::x]:1",
        "http://\u2026:1",
    ],
)
def test_a_leader_that_can_not_be_reached(leader: str) -> None:
    follower = Follower(leader)
    for method in ("PUT", "GET"):
        answer = follower.request(method, "/kv?key=k", b"v")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    follower.stop()


# -- lost on the way -------------------------------------------------------------------------------

chunks = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nOK\r\n0\r\n\r\n")
interim = raw(b"HTTP/1.1 102 Processing\r\n\r\n")
LOSSES = [close, garbage, truncate, chunks, interim]


@pytest.mark.parametrize("act", LOSSES)
def test_a_write_whose_answer_is_lost_is_unknown_and_sent_once(
    before: Follower, stub: StubServer, act: Callable[[object], None]
) -> None:
    for method, target in (("PUT", "/kv?key=k"), ("DELETE", "/kv?key=k"), ("POST", "/leader")):
        stub.requests.clear()
        stub.acts = [act]
        answer = before.request(method, target, b"")
        assert answer.status == 504
        assert b"may or may not" in answer.body
        assert len(stub.requests) == 1


@pytest.mark.parametrize("act", LOSSES)
def test_a_read_whose_answer_is_lost_is_asked_for_once_more(
    before: Follower, stub: StubServer, act: Callable[[object], None]
) -> None:
    stub.values[b"k"] = b"v"
    stub.acts = [act]
    assert before.request("GET", "/kv?key=k").body == b"v"
    stub.acts = [act, act, act]
    assert before.request("GET", "/kv?key=k").status == 503
    assert len(stub.requests) == 4


@pytest.mark.parametrize("act", [hang, drip])
def test_an_answer_that_takes_too_long(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, act: Callable[[object], None]
) -> None:
    monkeypatch.setattr(forwarding, "MARGIN", 0.05)
    follower = Follower(stub.url, timeout=0.1)
    stub.acts = [act, act]
    write = follower.request("PUT", "/kv?key=k", b"v")
    assert (write.status, b"no answer in time" in write.body) == (504, True)
    assert follower.request("GET", "/kv?key=k").status == 503
    assert len(stub.requests) == 2
    follower.stop()


def test_an_interim_answer_leaves_nothing_for_the_next_request(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "THREADS", 1)
    follower = Follower(stub.url)

    def in_two_steps(handler: Any) -> None:
        interim(handler)
        handler.wfile.flush()
        time.sleep(0.1)
        handler.answer(200, b"for whoever asked first")

    stub.values[b"k"] = b"v"
    stub.acts = [in_two_steps]
    assert follower.request("PUT", "/kv?key=a", b"v").status == 504
    assert follower.request("GET", "/kv?key=k").body == b"v"
    follower.stop()


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffff\r\n",
        b"Content-Type: multipart/x; boundary*=idna''x\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_malformed_answer_costs_one_request_and_no_thread(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, fields: bytes
) -> None:
    monkeypatch.setattr(forwarding, "THREADS", 1)
    follower = Follower(stub.url)
    stub.acts = [raw(b"HTTP/1.1 200 OK\r\n" + fields)]
    assert follower.request("PUT", "/kv?key=k", b"v").status == 504
    assert follower.request("PUT", "/kv?key=k", b"v").status == 200
    follower.stop()


@pytest.mark.parametrize(
    "answer",
    [
        b"Content-Length: 999999999999999999\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n8\r\n12345678\r\n",
        b"\r\n" + bytes(100),
    ],
)
def test_an_answer_of_impossible_length(
    before: Follower, stub: StubServer, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(forwarding, "MAX_ANSWER_BYTES", 10)
    stub.acts = [raw(b"HTTP/1.1 200 OK\r\n" + answer)]
    refused = before.request("PUT", "/kv?key=k", b"v")
    assert (refused.status, b"impossible length" in refused.body) == (504, True)


def test_a_connection_that_the_leader_closed_while_it_rested_costs_no_write(
    before: Follower, stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = before.forwarder._lines
    for number in range(3 * forwarding.THREADS):
        stub.acts = [close_later]
        assert before.request("PUT", "/kv?key=k", b"%d" % number).status == 200
        wait_until(lambda: all(is_over(line._socket) for line in lines))
    assert stub.values == {b"k": b"%d" % (3 * forwarding.THREADS - 1)}
    assert stub.connections == 3 * forwarding.THREADS


def is_over(connection: socket.socket | None) -> bool:
    """Whether the other side has closed."""
    try:
        return connection is None or connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def test_a_write_uses_no_connection_that_has_rested_for_long(stub: StubServer) -> None:
    follower = Follower(stub.url, idle_timeout=0.0)
    for _ in range(3):
        assert follower.request("PUT", "/kv?key=k", b"v").status == 200
    assert stub.connections == 3
    for _ in range(5 * forwarding.THREADS):
        assert follower.request("GET", "/kv?key=k").status == 200
    assert stub.connections <= 3 + forwarding.THREADS
    follower.stop()


# -- bounds and the end ----------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 1), ("MAX_WAITING_BYTES", 20)])
def test_what_waits_is_bounded(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(forwarding, "THREADS", 1)
    monkeypatch.setattr(forwarding, bound, most)
    follower = Follower(stub.url)
    stub.acts = [hang]
    under_way = follower.in_background("PUT", "/kv?key=a", b"v")
    wait_until(lambda: len(stub.requests) == 1)
    waits = follower.in_background("PUT", "/kv?key=b", b"v" * 10)
    wait_until(lambda: len(follower.forwarder._waiting) == 1)
    refused = follower.request("PUT", "/kv?key=c", b"v" * 10)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert b"too much waits" in refused.body
    assert b"conure_forward_waiting_requests 1\n" in follower.request("GET", "/metrics").body
    stub.released.set()
    assert under_way.result().status == 504
    assert waits.result().status == 200
    assert follower.forwarder._waiting_bytes == 0
    follower.stop()


def test_what_has_waited_for_too_long_is_not_sent(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "THREADS", 1)
    follower = Follower(stub.url)
    stub.acts = [hang]
    under_way = follower.in_background("PUT", "/kv?key=a", b"v")
    wait_until(lambda: len(stub.requests) == 1)
    waits = follower.in_background("PUT", "/kv?key=b", b"v")
    wait_until(lambda: len(follower.forwarder._waiting) == 1)
    long_ago = follower.forwarder._timeout + 1
    follower.forwarder._waiting[0] = task = follower.forwarder._waiting[0]._replace(
        since=follower.forwarder._waiting[0].since - long_ago
    )
    assert task.request.query == b"key=b"
    stub.released.set()
    late = waits.result()
    assert late.status == 503
    assert b"the leader takes too long for those who wait" in late.body
    assert under_way.result().status == 504
    assert [target for _, target, _ in stub.requests] == ["/kv?key=a"]
    assert follower.request("PUT", "/kv?key=c", b"v").status == 200
    follower.stop()


def test_stopping_answers_what_waits_and_cuts_off_what_is_under_way(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "THREADS", 2)
    follower = Follower(stub.url)
    stub.acts = [hang, hang]
    write = follower.in_background("PUT", "/kv?key=a", b"v")
    read = follower.in_background("GET", "/kv?key=a")
    wait_until(lambda: len(stub.requests) == 2)
    waits = follower.in_background("PUT", "/kv?key=b", b"v")
    wait_until(lambda: len(follower.forwarder._waiting) == 1)
    follower.forwarder.stop()
    assert not any(thread.is_alive() for thread in follower.forwarder._threads)
    assert write.result().status == 504
    assert read.result().status == 503
    assert waits.result().status == 503
    late = follower.request("PUT", "/kv?key=c", b"v")
    assert (late.status, b"stopping" in late.body) == (503, True)
    assert len(stub.requests) == 2
    follower.stop()


def test_forwarded_requests_are_counted(before: Follower, stub: StubServer) -> None:
    before.request("PUT", "/kv?key=k", b"v")
    before.request("GET", "/kv?key=none")
    before.request("PUT", "/kv?key=k", b"v", **{FORWARDED: "n7"})
    stub.acts = [close]
    before.request("PUT", "/kv?key=k", b"v")
    page = before.request("GET", "/metrics").body.decode()
    for code in (200, 404, 503, 504):
        assert f'conure_forwarded_requests_total{{code="{code}"}} 1\n' in page
        method = "GET" if code == 404 else "PUT"
        labels = f'route="/kv",method="{method}",code="{code}"'
        assert f"conure_http_requests_total{{{labels}}} 1\n" in page
    assert "conure_forward_duration_seconds_count 4\n" in page
