"""client.py: what is repeated, what is followed and what is left to the caller."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import Client
from errors import (
    BadRequest,
    ConfigError,
    Conflict,
    ConureError,
    DiskFull,
    MemberNotFound,
    NotImplementedHere,
    OutcomeUnknown,
    PayloadTooLarge,
    RequestError,
    TargetTooLong,
    Unavailable,
)
from tests.stubserver import (
    MakeStub,
    StubServer,
    close,
    close_later,
    drip,
    garbage,
    hang,
    refuse,
    reset_later,
    truncate,
)


@pytest.fixture(name="stub")
def _stub(make_stub: MakeStub) -> StubServer:
    return make_stub()


@pytest.fixture(name="db")
def _db(stub: StubServer) -> Iterator[Client]:
    with Client(stub.url) as db:
        yield db


def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


# -- what it does ----------------------------------------------------------------------------------


def test_put_get_delete(db: Client, stub: StubServer) -> None:
    db.put("greeting", "hällo")
    assert db.get("greeting") == "hällo".encode()
    assert db.get(b"greeting") == "hällo".encode()
    db.delete("greeting")
    db.delete("greeting")
    assert db.get("greeting") is None
    assert stub.connections == 1, "one connection is kept and used again"


@settings(deadline=None, max_examples=60)
@given(key=st.binary(min_size=1, max_size=40), value=st.binary(max_size=40))
def test_keys_and_values_are_any_bytes(
    shared: tuple[StubServer, Client], key: bytes, value: bytes
) -> None:
    stub, db = shared
    db.put(key, value)
    assert stub.values[key] == value
    assert db.get(key) == value


@pytest.fixture(name="shared", scope="module")
def _shared() -> Iterator[tuple[StubServer, Client]]:
    stub = StubServer()
    with Client(stub.url) as db:
        yield stub, db
    stub.stop()


def test_what_the_server_says_of_itself(db: Client, stub: StubServer) -> None:
    assert db.status()["path"] == "/status"
    assert db.raft_config()["path"] == "/raft/config"
    assert db.raft_stats()["path"] == "/raft/stats"


def test_membership(db: Client, stub: StubServer) -> None:
    db.join("n2", "10.0.0.2:7001")
    db.join("n3", "10.0.0.3:7001", "http://10.0.0.3:8081", voter=False, role="arbiter")
    db.remove("n2")
    db.remove("n2", force=True)
    db.hand_over()
    db.hand_over("n3")
    bodies = [(target, json.loads(body)) for _, target, body in stub.requests]
    assert bodies == [
        ("/join", {"ID": "n2", "RaftAddr": "10.0.0.2:7001"}),
        ("/join", {
            "ID": "n3", "RaftAddr": "10.0.0.3:7001", "HTTPAddr": "http://10.0.0.3:8081",
            "NonVoter": True, "Role": "arbiter",
        }),
        ("/remove", {"ID": "n2"}),
        ("/remove", {"ID": "n2", "Force": True}),
        ("/leader", {}),
        ("/leader", {"ID": "n3"}),
    ]  # fmt: skip


def test_a_stale_read_asks_the_named_server_and_says_so(make_stub: MakeStub) -> None:
    leader, follower = make_stub(), make_stub()
    follower.leader = leader.url
    follower.values[b"k"] = b"old"
    leader.values[b"k"] = b"new"
    with Client([follower.url, leader.url]) as db:
        assert db.get("k") == b"new"
        assert db.get("k", stale=True) == b"old"
    assert follower.requests[-1][1] == "/kv?key=k&stale=true"


def test_a_stale_read_asks_another_server_if_the_first_is_too_stale(make_stub: MakeStub) -> None:
    lagging, fresh = make_stub(), make_stub()
    lagging.values[b"k"] = b"old"
    fresh.values[b"k"] = b"new"
    lagging.acts = [refuse(503, "this node last heard a leader 9.000 s ago")]
    with Client([lagging.url, fresh.url]) as db:
        assert db.get("k", stale=True, max_stale=0.5) == b"new"
    assert lagging.requests[0][1] == "/kv?key=k&stale=true&max_stale=500ms"


# -- leaders ---------------------------------------------------------------------------------------


def test_a_redirect_is_followed_and_remembered(make_stub: MakeStub) -> None:
    leader, follower = make_stub(), make_stub()
    follower.leader = leader.url
    with Client(follower.url) as db:
        db.put("k", "v")
        db.put("k", "w")
        assert db.leader == leader.url
    assert leader.values == {b"k": b"w"}
    assert len(follower.requests) == 1


def test_when_the_learned_leader_dies_the_named_servers_are_asked(make_stub: MakeStub) -> None:
    first, second, follower = make_stub(), make_stub(), make_stub()
    follower.leader = first.url
    with Client(follower.url) as db:
        db.put("k", "1")
        first.stop()
        follower.leader = second.url
        db.put("k", "2")
        assert db.leader == second.url
    assert second.values == {b"k": b"2"}


def test_two_servers_that_point_at_each_other_until_one_leads(make_stub: MakeStub) -> None:
    a, b = make_stub(), make_stub()
    a.leader, b.leader = b.url, a.url
    timer = threading.Timer(0.2, lambda: setattr(a, "leader", None))
    timer.start()
    with Client([a.url, b.url]) as db:
        db.put("k", "v")
    timer.join()
    assert a.values == {b"k": b"v"}
    assert len(a.requests) + len(b.requests) < 40, "it waits between its rounds"


def test_no_leader_ends_with_what_the_server_said(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(503, "no leader is known; try again shortly", Retry_After="1")] * 1000
    with Client(stub.url, timeout=0.3) as db:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"no leader is known.*gave up after 0\.3 s"):
            db.put("k", "v")
        assert 0.25 < time.monotonic() - started < 2
    assert 2 <= len(stub.requests) < 12


def test_503_changed_nothing_and_is_repeated_for_writes_too(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(503, "no leader"), refuse(503, "no leader")]
    db.put("k", "v")
    assert stub.values == {b"k": b"v"}
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    "location",
    ["https://127.0.0.1:1/kv", "ftp://127.0.0.1/", "file:///etc/passwd", "/kv?key=k", "", "http://",
     "http://user@127.0.0.1:1/", "http://[::1/", "http://127.0.0.1:99999/", "http://a..b:1/"],
)  # fmt: skip
def test_a_redirect_that_is_no_http_server_is_not_followed(stub: StubServer, location: str) -> None:
    stub.acts = [refuse(307, "", Location=location)] * 1000
    with Client(stub.url, timeout=0.1) as db:
        with pytest.raises(Unavailable, match="redirects to"):
            db.put("k", "v")
        assert db.leader == stub.url


def test_of_a_redirect_only_host_and_port_are_taken(make_stub: MakeStub) -> None:
    leader, follower = make_stub(), make_stub()
    follower.acts = [refuse(307, "", Location=f"{leader.url}/remove?key=other")]
    with Client(follower.url) as db:
        db.put("k", "v")
    assert leader.requests == [("PUT", "/kv?key=k", b"v")]


# -- lost connections ------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_passed_over(make_stub: MakeStub) -> None:
    stub = make_stub()
    with Client([unused_url(), stub.url]) as db:
        db.put("k", "v")
        assert db.get("k") == b"v"
        assert db.status()["path"] == "/status"


def test_nobody_there() -> None:
    with Client([unused_url(), unused_url()], timeout=0.2) as db:
        with pytest.raises(Unavailable, match="connection refused"):
            db.put("k", "v")
        with pytest.raises(Unavailable, match="connection refused"):
            db.get("k")


def test_a_server_that_comes_up_in_time_gets_the_write() -> None:
    stub = StubServer()
    url, port = stub.url, stub.port
    stub.stop()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def come_up() -> None:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n")

    timer = threading.Timer(0.2, come_up)
    timer.start()
    with listener, Client(url) as db:
        db.put("k", "v")
        timer.join()


@pytest.mark.parametrize("act", [close, garbage, truncate])
def test_a_read_is_repeated_when_the_connection_is_lost(
    db: Client, stub: StubServer, act: Callable[[object], None]
) -> None:
    stub.values[b"k"] = b"v"
    stub.acts = [act]
    assert db.get("k") == b"v"
    assert len(stub.requests) == 2


@pytest.mark.parametrize("act", [close, garbage, truncate])
@pytest.mark.parametrize(
    "write",
    [
        lambda db: db.put("k", "v"), lambda db: db.delete("k"), lambda db: db.remove("n2"),
        lambda db: db.join("n2", "h:1"), lambda db: db.hand_over(),
    ],
)  # fmt: skip
def test_a_write_that_was_sent_is_never_sent_again(
    make_stub: MakeStub, act: Callable[[object], None], write: Callable[[Client], None]
) -> None:
    one, two = make_stub(), make_stub()
    one.acts = [act]
    with Client([one.url, two.url]) as db:
        with pytest.raises(OutcomeUnknown, match="may or may not"):
            write(db)
        assert len(one.requests) == 1
        assert two.requests == []
        write(db)  # the client itself is as good as before


@pytest.mark.parametrize("status", [500, 502, 504])
def test_an_unknown_outcome_said_by_the_server(db: Client, stub: StubServer, status: int) -> None:
    stub.acts = [refuse(status, "the write's outcome is unknown")]
    with pytest.raises(OutcomeUnknown, match="the write's outcome is unknown"):
        db.put("k", "v")
    assert len(stub.requests) == 1


def test_a_write_that_gets_no_answer_in_time_is_unknown(stub: StubServer) -> None:
    stub.acts = [hang]
    with Client(stub.url, timeout=0.2) as db, pytest.raises(OutcomeUnknown, match="in time"):
        db.put("k", "v")
    assert len(stub.requests) == 1


def test_the_time_limit_bounds_an_answer_that_never_ends(stub: StubServer) -> None:
    stub.acts += [drip] * 2
    with Client(stub.url, timeout=0.3) as db:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            db.get("k")
        with pytest.raises(OutcomeUnknown):
            db.put("k", "v")
        assert time.monotonic() - started < 5


def test_a_read_leaves_a_hanging_server_for_another(make_stub: MakeStub) -> None:
    hanging, sound = make_stub(), make_stub()
    hanging.acts = [hang]
    sound.values[b"k"] = b"v"
    with Client([hanging.url, sound.url], timeout=1) as db:
        assert db.get("k") == b"v"
        assert db.leader == sound.url


def test_a_connection_closed_while_resting_costs_no_write(db: Client, stub: StubServer) -> None:
    for number in range(5):
        stub.acts = [close_later]
        db.put("k", str(number))
        wait_until_closed(db)
    assert stub.values == {b"k": b"4"}
    assert stub.connections == 5


def wait_until_closed(db: Client, events: int = select.POLLIN) -> None:
    """Wait until a connection that rests in the pool has seen one of *events*."""
    ((connection,),) = db._resting.values()
    poll = select.poll()
    poll.register(connection.sock, events)
    assert poll.poll(5_000)


def test_a_write_of_which_no_byte_was_sent_is_repeated(
    db: Client, stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.acts = [reset_later]
    db.put("k", "1")
    wait_until_closed(db, select.POLLHUP)
    # The reset comes between the look at the connection and the first byte.
    monkeypatch.setattr("client._Connection.is_quiet", lambda connection: True)
    db.put("k", "2")
    assert stub.values == {b"k": b"2"}
    assert [body for _, _, body in stub.requests] == [b"1", b"2"]


def test_a_refusal_is_read_even_if_the_body_could_not_be_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse_early() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 413 x\r\nContent-Length: 10\r\nConnection: close\r\n\r\ntoo large\n"
                )
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 20):
                    pass

        thread = threading.Thread(target=refuse_early)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url) as db, pytest.raises(PayloadTooLarge, match="too large"):
            db.put("k", b"x" * (8 << 20))
        thread.join()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest), (409, Conflict), (413, PayloadTooLarge), (414, TargetTooLong),
        (405, RequestError), (431, RequestError), (501, NotImplementedHere), (507, DiskFull),
    ],
)  # fmt: skip
def test_errors_are_what_the_server_said(
    db: Client, stub: StubServer, status: int, kind: type[ConureError]
) -> None:
    for call in (lambda: db.put("k", "v"), lambda: db.get("k")):
        stub.requests.clear()
        stub.acts = [refuse(status, "what is wrong; what to do")]
        with pytest.raises(kind, match=r"^what is wrong; what to do$"):
            call()
        assert len(stub.requests) == 1


def test_an_unknown_member(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(404, "no member n9")]
    with pytest.raises(MemberNotFound, match="no member n9"):
        db.remove("n9")


def test_an_internal_error_of_a_read(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(500, "page 7 is corrupt")]
    with pytest.raises(ConureError, match="page 7 is corrupt"):
        db.get("k")


def test_another_kind_of_server_is_not_taken_for_an_empty_database(
    db: Client, stub: StubServer
) -> None:
    stub.acts = [refuse(404, "<html>404 Not Found</html>"), refuse(301, ""), refuse(200, "<html>")]
    with pytest.raises(ConureError, match="not what a ConureDB server answers"):
        db.get("k")
    with pytest.raises(ConureError, match="not what a ConureDB server answers"):
        db.get("k")
    with pytest.raises(ConureError, match="not what a ConureDB server answers"):
        db.status()


def test_an_error_without_words(db: Client, stub: StubServer) -> None:
    stub.acts = [lambda handler: handler.answer(400, b"")]
    with pytest.raises(BadRequest, match="answered 400"):
        db.get("k")


@pytest.mark.parametrize(
    "server",
    ["", "127.0.0.1:8081", "localhost", "https://a:1", "http://", "http://a:b", "http://a:99999",
     "http://a/path", "http://a?x=1", "http://u:p@a", "http://[::1", "http://a b:1", "http://a\n:1",
     "http://a..b:1", "http://" + "a" * 64 + ":1"],
)  # fmt: skip
def test_a_bad_server_is_named_with_the_remedy(server: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like http://127\.0\.0\.1:8081"):
        Client(server)


def test_good_servers() -> None:
    assert Client("http://db1/").leader == "http://db1:80"
    assert Client(["http://[::1]:9"]).leader == "http://[::1]:9"
    assert Client().leader == "http://127.0.0.1:8081"
    with pytest.raises(ConfigError):
        Client([])


# -- threads ---------------------------------------------------------------------------------------


def test_threads_share_a_client(db: Client, stub: StubServer) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        key = f"k{number}"
        for turn in range(25):
            db.put(key, str(turn))
            if db.get(key) != str(turn).encode():
                failures.append((key, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert stub.connections <= 8


def test_close_while_a_call_runs(make_stub: MakeStub) -> None:
    stub = make_stub()
    db = Client(stub.url)
    db.put("k", "v")
    stub.acts = [hang]
    answers: list[bytes | None] = []
    thread = threading.Thread(target=lambda: answers.append(db.get("k")))
    thread.start()
    while len(stub.requests) < 2:
        time.sleep(0.001)
    db.close()
    stub.released.set()  # the read is repeated on a new connection, which isn't kept
    thread.join()
    assert answers == [b"v"]
    assert db._resting == {}
