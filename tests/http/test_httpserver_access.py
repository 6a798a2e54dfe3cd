"""httpserver: who is answered at all: names, web pages, places for connections, slow heads."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from conure.http import connection as connection_module
from conure.http.limits import Limits
from conure.http.origins import Access, Judgement, Names
from conure.http.request import Request
from conure.http.server import HTTPServer
from conure.values import Authority
from tests.lab.httpdriver import (
    Clock,
    Recorder,
    Stepped,
    Streamer,
    bytewise,
    connect,
    connections_of,
    exchange,
    play,
    read_all,
    read_answers,
    statuses,
    wait_until,
)

ACCESS = Access(Names(["db.example"]), frozenset({"/public"}), frozenset({"/livez"}))
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EVIL = b"Origin: http://evil.example\r\n"
NOSNIFF = b"\r\nX-Content-Type-Options: nosniff\r\n"


def request_of(
    line: bytes, host: bytes = b"node1", fields: bytes = b"", body: bytes | None = None
) -> bytes:
    head = line + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + fields
    if body is None:
        return head + b"\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@contextmanager
def serving(
    application: object | None = None, limits: Limits | None = None, access: Access = ACCESS
) -> Iterator[HTTPServer]:
    chosen: object = application or Recorder()
    server = HTTPServer(("127.0.0.1", 0), chosen, limits, access=access)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.drain(0)


# -- names ---------------------------------------------------------------------------------------


def test_another_name_is_misdirected_and_the_connection_goes_on() -> None:
    application = Recorder()
    with serving(application) as server:
        answers = exchange(
            server,
            request_of(b"GET /kv?key=a")
            + request_of(b"GET /kv?key=a", b"evil.example:8081")
            + request_of(b"PUT /kv", b"evil.example", body=b"GET / HTTP/1.1\r\n\r\n")
            + request_of(b"GET /public", b"evil.example")
            + request_of(b"GET /kv?key=b", b"DB.example.:80"),
        )
        assert statuses(answers) == [200, 421, 421, 421, 200]
        assert b"--allowed-hosts=evil.example\n" in answers
        assert server.refused == {421: 3}
    assert [event for event in application.events if event != "flush"] == ["GET /kv", "GET /kv"]


def test_a_misdirected_request_is_answered_as_any_other() -> None:
    fields = b"X-Request-Id: r7\r\nAccept: application/json\r\n"
    with serving() as server:
        answer = exchange(server, request_of(b"GET /", b"evil.example", fields))
        head = exchange(server, request_of(b"HEAD /", b"evil.example"))
    assert b"\r\nX-Request-Id: r7\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 421
    assert statuses(head) == [421]
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://evil.example/kv", b"node1", 421),
        (b"http://evil.example:8081/kv", b"node1", 421),
        (b"HTTP://EVIL.example", b"node1", 421),
        (b"http://node1/kv", b"evil.example", 200),
        (b"http://[::1]:8081/kv", b"node1", 200),
        (b"http://db.example./kv", b"node1", 200),
    ],
)
def test_a_target_in_absolute_form_counts_instead_of_host(
    target: bytes, host: bytes, status: int
) -> None:
    run = 2 * (request_of(b"GET " + target, host) + request_of(b"GET /kv", b"node1"))
    with serving() as server:
        assert statuses(exchange(server, run)) == [status, 200] * 2


def test_whoever_names_nobody_is_answered() -> None:
    with serving() as server:
        assert statuses(exchange(server, b"GET /kv HTTP/1.0\r\n\r\n")) == [200]
        assert statuses(exchange(server, request_of(b"GET /kv", b""))) == [200]
        assert statuses(exchange(server, request_of(b"OPTIONS *", b"evil.example"))) == [421]
        assert statuses(exchange(server, request_of(b"OPTIONS *"))) == [200]


class Counting(Access):
    """Counts how often a header block is judged."""

    def judge(
        self, asked: Authority | None, origin: str | None, site: str | None
    ) -> Judgement | None:
        JUDGED.append(asked)
        return super().judge(asked, origin, site)


JUDGED: list[Authority | None] = []


def test_a_header_block_is_judged_once_unless_it_is_refused() -> None:
    names = ["old.example"]
    JUDGED.clear()
    with serving(access=Counting(Names(also=lambda: names))) as server:
        assert statuses(exchange(server, 9 * request_of(b"GET /kv"))) == [200] * 9
        assert JUDGED == [("node1", None)]
        named = 9 * request_of(b"GET /kv", fields=b"X-Request-Id: a\r\n")
        assert statuses(exchange(server, named)) == [200] * 9
        assert JUDGED == [("node1", None)]
        assert statuses(exchange(server, request_of(b"GET /kv", b"new.example"))) == [421]
        names.append("new.example")
        assert statuses(exchange(server, request_of(b"GET /kv", b"new.example"))) == [200]


def test_a_name_is_judged_with_a_request_id_too() -> None:
    fields = b"X-Request-Id: a\r\n"
    with serving() as server:
        for host, status in ((b"evil.example", 421), (b"node1", 200)):
            run = 2 * request_of(b"GET /kv", host, fields)
            assert statuses(exchange(server, run)) == [status] * 2


# -- pages of other origins ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        EVIL,
        b"Origin: null\r\n",
        b"Sec-Fetch-Site: cross-site\r\n",
        b"Sec-Fetch-Site: same-site\r\n",
        EVIL + b"Content-Type: application/json\r\n",
        b"Origin: http://node1:8082\r\n",
        b"Origin: http://node1\r\nOrigin: http://evil.example\r\n",
        EVIL + b"X-Request-Id: a\r\n",
    ],
)
def test_a_page_of_another_origin_may_read_public_pages_only(fields: bytes) -> None:
    application = Recorder()
    with serving(application) as server:
        refused = [b"GET /kv?key=a", b"PUT /public", b"POST /kv", b"OPTIONS /public", b"HEAD /kv"]
        for line in refused:
            body = b"{}" if line.startswith(b"P") else None
            run = request_of(line, fields=fields, body=body)
            assert statuses(exchange(server, run + request_of(b"GET /kv"))) == [403, 200], line
        for line in (b"GET /public", b"HEAD /public", b"GET /public?verbose"):
            assert statuses(exchange(server, request_of(line, fields=fields))) == [200]
        assert server.refused == {403: len(refused)}
    reached = {event for event in application.events if event != "flush"}
    assert reached == {"GET /kv", "GET /public", "HEAD /public"}


def test_a_page_of_this_server_and_programs_may_do_everything() -> None:
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    with serving() as server:
        for fields in (
            form,
            b"Origin: http://node1\r\nSec-Fetch-Site: same-origin\r\n",
            b"Origin: http://NODE1:80\r\n",
            b"Sec-Fetch-Site: none\r\n",
        ):
            run = request_of(b"POST /kv", fields=fields, body=b"{}")
            assert statuses(exchange(server, run)) == [200], fields


def test_the_origin_is_compared_with_whom_the_request_names() -> None:
    run = request_of(b"POST http://node2/kv", b"node1", b"Origin: http://node2\r\n", b"")
    run += request_of(b"POST http://node2/kv", b"node1", b"Origin: http://node1\r\n", b"")
    with serving() as server:
        assert statuses(exchange(server, run)) == [200, 403]


def test_refusals_do_not_depend_on_how_bytes_were_split() -> None:
    run = request_of(b"POST /kv", fields=EVIL, body=b"{}") + request_of(b"GET /kv", b"evil.example")
    run += request_of(b"PUT /kv", b"evil.example", CHUNKED)
    run += b"1\r\na\r\n0\r\n\r\n" + request_of(b"GET /kv")
    assert statuses(play([run])) == [403, 421, 421, 200]
    assert play(bytewise(run)) == play([run])


# -- what every answer says ----------------------------------------------------------------------


def test_no_browser_guesses_what_an_answer_contains(monkeypatch: pytest.MonkeyPatch) -> None:
    application = Streamer()
    clock = Clock(monkeypatch)
    stepped = Stepped(application)
    stepped.send(request_of(b"GET /kv") + request_of(b"GET /kv", b"evil.example"))
    stepped.send(request_of(b"GET /boom") + request_of(b"GET /keep"))
    application.kept[0].respond(304)
    stepped.send(request_of(b"GET /stream"))
    application.streams[0].finish()
    stepped.run()
    stepped.send(b"GET /late")
    clock.sleep(stepped, 31)
    assert statuses(stepped.received) == [200, 421, 500, 304, 200, 408]
    assert stepped.received.count(NOSNIFF) == 6
    stepped.close()


# -- places for connections ----------------------------------------------------------------------

LIVEZ = request_of(b"GET /livez")
STATUS = request_of(b"GET /status")


class Crowd:
    """Connections to a reactor that runs only when told to, from addresses as the test says."""

    def __init__(self, limits: Limits) -> None:
        self.stepped = Stepped(Recorder(), limits, ACCESS)
        self.reactor = self.stepped.reactor
        self.front = self.stepped.front
        self.stepped.client.close()
        self.run()
        assert not self.reactor.connections

    def join(self, address: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(10)
        self.stepped.adopt(ours, (address, 1))
        return theirs

    def run(self) -> None:
        self.reactor.wake()
        self.reactor.round()

    def ask(self, client: socket.socket, data: bytes) -> bytes:
        """Return all that is answered up to the close; the client has not ended."""
        client.sendall(data)
        for _ in range(3):
            self.run()
        return read_all(client)


@pytest.fixture
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.net.places.LEAST_SHARE", 3)


@pytest.mark.usefixtures("small_shares")
def test_one_client_can_not_take_all_connections() -> None:
    crowd = Crowd(Limits(max_connections=20, trusted_proxies=("10.0.0.0/8",)))
    with ExitStack() as stack:

        def join(address: str) -> socket.socket:
            return stack.enter_context(crowd.join(address))

        greedy = [join("192.0.2.1") for _ in range(4)]
        for client in greedy[:3]:
            client.sendall(STATUS)
            crowd.run()
            assert statuses(client.recv(1000)) == [200]
        answer = crowd.ask(greedy[3], STATUS)
        assert statuses(answer) == [503]
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert b"\r\nConnection: close\r\n" in answer
        others = [join(address) for address in ("192.0.2.2", "10.0.0.1", "10.0.0.1", "127.0.0.1")]
        for client in [*others, join("10.0.0.1"), join("10.0.0.1")]:
            client.sendall(STATUS)
            crowd.run()
            assert statuses(client.recv(1000)) == [200]
        greedy[0].close()
        crowd.run()
        again = join("::ffff:192.0.2.1")
        again.sendall(STATUS)
        crowd.run()
        assert statuses(again.recv(1000)) == [200]
    crowd.stepped.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (LIVEZ, 200),
        (request_of(b"HEAD /livez"), 200),
        (LIVEZ + STATUS, 200),
        (request_of(b"GET /livez?verbose", fields=b"X-Request-Id: a\r\n"), 200),
        (STATUS, 503),
        (request_of(b"POST /livez"), 503),
        (request_of(b"GET /livez", body=b"x"), 503),
        (request_of(b"PUT /kv", fields=b"Content-Length: 1000000\r\n"), 503),
        (request_of(b"PUT /kv", fields=CHUNKED), 503),
        (request_of(b"PUT /kv", fields=b"Expect: 100-continue\r\nContent-Length: 9\r\n"), 503),
        (request_of(b"GET /livez", b"evil.example"), 421),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_the_reserve_answers_one_probe(data: bytes, status: int) -> None:
    crowd = Crowd(Limits(max_connections=4))
    with crowd.join("127.0.0.1"), crowd.join("127.0.0.1"), crowd.join("192.0.2.1") as last:
        answer = crowd.ask(last, data)
        assert statuses(answer) == [status]
        assert b"\r\nConnection: close\r\n" in answer
    assert crowd.reactor.in_flight == 0
    crowd.stepped.close()


def test_a_connection_in_the_reserve_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    crowd = Crowd(Limits(max_connections=4))
    with ExitStack() as stack:
        idle = [stack.enter_context(crowd.join("127.0.0.1")) for _ in range(2)]
        silent, slow = [stack.enter_context(crowd.join("127.0.0.1")) for _ in range(2)]
        clock.now += 1.5  # what comes late is late all the same
        for _ in range(2):
            slow.sendall(b"G")
            crowd.run()
            clock.now += 0.5
        clock.now += 0.1
        crowd.run()
        crowd.run()  # what is refused for its time is told in the next round
        assert statuses(read_all(silent)) == [503]
        assert slow.recv(100) == b""
        assert len(crowd.reactor.connections) == 3  # one of them lingers
        clock.now += 3
        crowd.run()
        assert len(crowd.reactor.connections) == len(idle)
        assert not crowd.front.reserved
    crowd.stepped.close()


def test_who_has_waited_longest_in_the_reserve_gives_way() -> None:
    crowd = Crowd(Limits(max_connections=4))
    with ExitStack() as stack:
        clients = [stack.enter_context(crowd.join("127.0.0.1")) for _ in range(4)]
        probe = stack.enter_context(crowd.join("192.0.2.1"))
        assert statuses(crowd.ask(probe, LIVEZ)) == [200]
        assert clients[2].recv(10) == b""
        clients[3].sendall(LIVEZ)
        crowd.run()
        assert statuses(read_all(clients[3])) == [200]
        # Faster than the reactor can follow: there is an end to that, too.
        more = [stack.enter_context(crowd.join("127.0.0.1")) for _ in range(9)]
        assert len(crowd.reactor.connections) <= 4 + crowd.front.places.reserve
        assert more[-1].recv(10) == b""
    crowd.stepped.close()


def test_probes_are_answered_while_all_other_places_are_taken() -> None:
    with serving(limits=Limits(max_connections=200)) as server, ExitStack() as stack:
        for number in range(400):  # more than there are places, the reserve included
            stack.enter_context(connect(server))
            if number < 136:
                wait_until(lambda n=number: server.connections_open > n)  # type: ignore[misc]
        wait_until(lambda: server.connections_accepted == 400)
        # The reactor makes room, once it gets to it; until then whoever comes is turned away.
        wait_until(lambda: len(server.front.reserved) <= server.front.places.reserve)
        for _ in range(20):
            assert statuses(exchange(server, LIVEZ)) == [200]
        assert statuses(exchange(server, STATUS)) == [503]
        stack.close()
        wait_until(lambda: server.connections_open == 0)
        assert statuses(exchange(server, STATUS)) == [200]


# -- a head that comes byte by byte ---------------------------------------------------------------


class Watched(bytes):
    """Notes how many bytes are looked at."""

    looked = 0

    def find(self, sub: bytes, start: int = 0, end: int = 1 << 60) -> int:  # type: ignore[override]
        found = super().find(sub, start, end)
        Watched.looked += (found if found >= 0 else min(end, len(self))) - start
        return found

    def count(self, sub: bytes, start: int = 0, end: int = 1 << 60) -> int:  # type: ignore[override]
        Watched.looked += min(end, len(self)) - start
        return super().count(sub, start, end)


HEADS = {
    "target": b"GET /" + b"a" * 3000,
    "field": request_of(b"GET /", fields=b"X: " + b"b" * 3000)[:-4],
    "fields": request_of(b"GET /", fields=b"X: b\r\n" * 90)[:-4],
    "trailer": request_of(b"PUT /", fields=CHUNKED) + b"0\r\nX: " + b"b" * 3000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_head_that_comes_byte_by_byte_is_looked_at_once(head: bytes) -> None:
    """Some bytes twice, where a line end may begin; but not all of them for each that comes."""
    stepped = Stepped(Recorder())
    (connection,) = connections_of(stepped.reactor)
    Watched.looked = 0
    for octet in bytewise(head):
        connection.advance(Watched(connection.buffer + octet))
    assert len(head) <= Watched.looked < 20 * len(head)
    ending = b" HTTP/1.1\r\nHost: a\r\n\r\n" if head.startswith(b"GET /a") else b"\r\n\r\n"
    stepped.send(ending + request_of(b"GET /kv"))
    assert statuses(stepped.received) == [200, 200]
    stepped.close()


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize(
    "end",
    [b"\r\n\r\n", b"\n\r\n", b"\r\n\n", b"\n\n", b"\r\nY: b\n\r\n", b"\r\n\r\n\r\n", b"\r\r\n\r\n"],
)
def test_the_end_of_a_head_is_found_wherever_it_is_split(end: bytes, split: int) -> None:
    run = request_of(b"GET /kv", fields=b"X: b")[:-2] + end + request_of(b"PUT /", body=b"1234")
    run += request_of(b"PUT /", fields=CHUNKED) + b"0\r\nX: b" + end
    run += request_of(b"GET /kv")
    pieces = [run[i : i + split] for i in range(0, len(run), split)]
    assert play(pieces) == play([run])


# -- answers before the body ----------------------------------------------------------------------


class Elsewhere(Recorder):
    """Answers PUT without its body."""

    def without_body(self, request: Request) -> Callable[[Request], None] | None:
        self.events.append(f"asked about {request.method}")
        if request.method != "PUT":
            return None
        return lambda request: request.respond(307, b"elsewhere")


EARLY = {
    "chunked": (CHUNKED, b"3\r\nabc\r\n0\r\n\r\n"),
    "expected": (b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"abc"),
    "both": (b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize(("fields", "body"), EARLY.values(), ids=EARLY.keys())
def test_a_body_that_is_not_needed_is_not_waited_for(fields: bytes, body: bytes) -> None:
    application = Elsewhere()
    with serving(application) as server, connect(server) as client:
        client.sendall(request_of(b"PUT /kv", fields=fields))
        answer = read_all(client)  # the server shuts its side
        assert statuses(answer) == [307]
        assert b"\r\nConnection: close\r\n" in answer
    assert application.events.count("PUT /kv") == 0
    for pieces in ([request_of(b"PUT /kv", fields=fields) + body], bytewise(body)):
        run = [request_of(b"PUT /kv", fields=fields), *pieces] if len(pieces) > 1 else pieces
        stepped = Stepped(Elsewhere())
        for piece in run:
            stepped.send(piece)
        stepped.send(request_of(b"GET /kv"))
        assert statuses(stepped.end()) == [307]
        stepped.close()


def test_a_long_body_may_follow_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends all of a body before it reads must find the answer, and no reset."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(connection_module, "_LINGER_BYTES", 1000)
    stepped = Stepped(Elsewhere(), Limits(max_body_bytes=50_000))
    stepped.client.send(request_of(b"PUT /kv", fields=CHUNKED))
    stepped._wake()
    stepped.reactor.round()
    for _ in range(5):
        clock.now += 5
        assert stepped.client.send(bytes(10_000)) == 10_000
        stepped._wake()
        stepped.reactor.round()
    assert stepped.reactor.connections
    clock.sleep(stepped, 10)
    assert not stepped.reactor.connections
    assert statuses(stepped.received) == [307]
    stepped.close()


def test_nobody_waits_long_for_such_a_body_while_draining() -> None:
    application = Elsewhere()
    with serving(application) as server, connect(server) as client:
        client.sendall(request_of(b"PUT /kv", fields=CHUNKED))
        assert statuses(read_all(client)) == [307]
        assert server.drain(8)


def test_only_bodies_that_are_still_to_come_are_asked_about() -> None:
    application = Elsewhere()
    with serving(application) as server, connect(server) as client:
        client.sendall(request_of(b"PUT /kv", body=b"abc") + request_of(b"PUT /kv"))
        client.sendall(request_of(b"PUT /kv", fields=b"Expect: 100-continue\r\n", body=b""))
        assert statuses(read_answers(client, 3)) == [200] * 3
        assert not any(event.startswith("asked") for event in application.events)
        client.sendall(request_of(b"POST /kv", fields=CHUNKED) + b"0\r\n\r\n")
        assert statuses(read_answers(client, 1)) == [200]
        client.sendall(request_of(b"PUT /kv", fields=CHUNKED + EVIL))
        assert statuses(read_all(client)) == [403]
