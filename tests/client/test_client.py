"""client.py: what is repeated, what is followed and what is left to the caller."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.client import Client, Event, LockLost, calls
from conure.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    Conflict,
    ConureError,
    DiskFull,
    KeyReused,
    MemberNotFound,
    NotImplementedHere,
    OutcomeUnknown,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    TargetTooLong,
    TooManyRequests,
    Unavailable,
)
from tests.lab.stubserver import (
    Act,
    MakeStub,
    StubServer,
    close,
    close_later,
    drip,
    garbage,
    hang,
    raw,
    refuse,
    reset_later,
    sse,
    stream,
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


@pytest.fixture
def slow_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half a second, a client spends the second half waiting: it ends amid no exchange."""
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.25)


@pytest.mark.usefixtures("slow_to_repeat")
def test_no_leader_ends_with_what_the_server_said(stub: StubServer) -> None:
    stub.acts = [refuse(503, "no leader is known; try again shortly", Retry_After="1")] * 1000
    with Client(stub.url, timeout=0.5) as db:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"no leader is known.*gave up after 0\.5 s"):
            db.put("k", "v")
        assert 0.45 < time.monotonic() - started < 2
    assert 2 <= len(stub.requests) < 12


def test_503_changed_nothing_and_is_repeated_for_writes_too(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(503, "no leader"), refuse(503, "no leader")]
    db.put("k", "v")
    assert stub.values == {b"k": b"v"}
    assert len(stub.requests) == 3
    assert stub.connections == 3  # after one address the next one may lead to another server


@pytest.mark.parametrize(
    "location",
    ["https://u@127.0.0.1:1/kv", "ftp://127.0.0.1/", "file:///etc/passwd", "/kv?key=k", "", "http://",
     "http://user@127.0.0.1:1/", "http://[::1/", "http://127.0.0.1:99999/", "http://a..b:1/"],
)  # fmt: skip
@pytest.mark.usefixtures("slow_to_repeat")
def test_a_redirect_that_is_no_http_server_is_not_followed(stub: StubServer, location: str) -> None:
    stub.acts = [refuse(307, "", Location=location)] * 1000
    with Client(stub.url, timeout=0.5) as db:
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
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nX-Conure-Index: 1\r\nContent-Length: 3\r\n\r\nOK\n"
            )

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
    ((connection,),) = db._calls._pool._resting.values()
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
    monkeypatch.setattr("conure.client.connections.Connection.is_quiet", lambda connection: True)
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


# -- writes with a key -----------------------------------------------------------------------------

KEYED = [
    lambda db: db.put("k", "v", ttl=30), lambda db: db.put("k", "v", keep_ttl=True),
    lambda db: db.put("k", "v", if_revision=3), lambda db: db.delete("k", if_revision=3),
    lambda db: db.put("k", "v", acquire="s"), lambda db: db.put("k", "v", release="s"),
]  # fmt: skip
LOST = [close, garbage, truncate, refuse(504, "unknown"), refuse(500, "a bug"), refuse(502, "?")]


def keys_of(stub: StubServer) -> list[str | None]:
    return [headers["Idempotency-Key"] for headers in stub.headers]


@pytest.mark.parametrize("act", LOST)
@pytest.mark.parametrize("write", KEYED)
def test_a_write_with_a_key_is_repeated_with_the_same_key(
    make_stub: MakeStub, act: Callable[[object], None], write: Callable[[Client], None]
) -> None:
    one, two = make_stub(), make_stub()
    one.acts = [act]
    with Client([one.url, two.url]) as db:
        write(db)
        (first,), (second,) = keys_of(one), keys_of(two)
        assert first
        assert first == second
        assert one.requests == two.requests
        write(db)
        assert keys_of(two)[1] not in (None, first), "another write has another key"


def test_plain_writes_have_a_key_if_exactly_once_is_asked_for(db: Client, stub: StubServer) -> None:
    db.put("k", "v")
    db.delete("k")
    assert keys_of(stub) == [None, None]
    with Client(stub.url, exactly_once=True) as careful:
        for write in (lambda: careful.put("k", "v"), lambda: careful.delete("k")):
            stub.headers.clear()
            stub.acts = [close]
            write()
            first, second = keys_of(stub)
            assert first is not None
            assert first == second


@pytest.mark.usefixtures("slow_to_repeat")
def test_a_write_with_a_key_is_unknown_at_the_end_of_the_time_limit(stub: StubServer) -> None:
    stub.acts = [close] + [refuse(503, "no leader")] * 1000
    with Client(stub.url, timeout=0.5) as db:
        with pytest.raises(OutcomeUnknown, match=r"no leader.*gave up.*may or may not"):
            db.put("k", "v", ttl=1)
        with pytest.raises(Unavailable, match="no leader"):
            db.put("k", "v", ttl=1)


def test_a_repetition_that_is_refused_tells_of_both_attempts_or_of_itself(
    db: Client, stub: StubServer
) -> None:
    stub.acts = [close, refuse(412, "the revision is 7", ETag='"7"')]
    with pytest.raises(PreconditionFailed):  # the outcome, whichever attempt it was
        db.put("k", "v", if_revision=3)
    stub.acts = [close, refuse(507, "the disk is full")]
    with pytest.raises(OutcomeUnknown, match="the disk is full"):  # now, but before?
        db.put("k", "v", if_revision=3)
    stub.acts = [refuse(507, "the disk is full")]
    with pytest.raises(DiskFull):
        db.put("k", "v", if_revision=3)


def test_what_does_no_harm_is_repeated_without_a_key(db: Client, stub: StubServer) -> None:
    begun = b'{"id": "s1", "ttl": 15.0}'
    stub.acts = [close, lambda handler: handler.answer(200, begun)]
    assert db.open_session(15, name="me", behavior="delete") == "s1"
    stub.acts = [close, lambda handler: handler.answer(200, b"OK\n")]
    db.renew_session("s1")
    assert [(method, target) for method, target, _ in stub.requests] == [
        ("POST", "/session?ttl=15000ms&behavior=delete&name=me"),
    ] * 2 + [("PUT", "/session?id=s1")] * 2
    assert keys_of(stub) == [None] * 4


# -- streams ---------------------------------------------------------------------------------------


def line(key: str) -> bytes:
    facts = {"key": key, "value": "v", "create_revision": 1, "mod_revision": 2, "version": 2}
    return json.dumps(facts).encode() + b"\n"


def test_items_come_whole_or_not_at_all(db: Client, stub: StubServer) -> None:
    both = line("a") + line("b")
    stub.acts = [stream(both[:30], both[30:150], both[150:], X_Conure_Index="9")]
    items = db.items("p/")
    assert items.revision == 9
    assert [item.key for item in items] == [b"a", b"b"]
    assert stub.requests[-1][1] == "/kv?prefix=p%2F"
    assert stub.headers[-1]["Accept"] == "application/x-ndjson"
    assert list(items) == []
    db.get("k")
    assert stub.connections == 1, "it is used again when all was read"
    stub.acts = [stream(both[:-10], end="close", X_Conure_Index="9")]
    items = db.items("p/")
    assert next(items).key == b"a"
    with pytest.raises(Unavailable, match="broke off"):
        next(items)
    assert list(items) == []


def test_a_list_that_was_not_begun_is_repeated(db: Client, stub: StubServer) -> None:
    stub.acts = [close, refuse(429, "too many", Retry_After="0"), stream(X_Conure_Index="9")]
    assert list(db.items()) == []


def test_a_list_ends_when_nothing_comes(
    db: Client, stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.client.connections._SILENCE", 0.1)
    stub.acts = [stream(line("a"), end="stay", X_Conure_Index="9")]
    items = db.items()
    assert next(items).key == b"a"
    with pytest.raises(Unavailable, match="no answer in time"):
        next(items)


PROGRESS = sse("progress", "6", revision=6)
PUT_7 = sse("put", "7.1", key="a", value="1", revision=7, version=1)
PUT_7B = sse("put", "7", key="b", value="2", revision=7, version=1)
GONE_8 = sse("delete", "8", key="a", value=None, revision=8, version=0)
END = sse("end", "", reason="this node is stopping")


@pytest.mark.parametrize(
    "lost",
    [
        [stream(PROGRESS, PUT_7, end="close")],
        [stream(PROGRESS, PUT_7, PUT_7B[:20], end="close")],
        [stream(PROGRESS, PUT_7, end="whole")],
        [stream(PROGRESS, PUT_7, END)],
        [stream(PROGRESS, PUT_7, end="stay")],
        [stream(PROGRESS, PUT_7, end="close"), close, refuse(503, "x"), refuse(429, "x")],
    ],
)
def test_a_watch_goes_on_behind_its_last_event(
    make_stub: MakeStub, lost: list[Callable[[object], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.client.connections._SILENCE", 0.3)
    one, two = make_stub(), make_stub()
    one.acts = [lost[0]]
    two.acts = [*lost[1:], stream(sse("progress", "7.1", revision=6), PUT_7B, GONE_8, end="stay")]
    one.acts += [refuse(503, "stopping", Retry_After="0")] * 100
    with Client([one.url, two.url], timeout=5) as db, db.watch(prefix="") as watch:
        assert next(watch) == Event(7, "put", b"a", b"1", 1)
        assert next(watch) == Event(7, "put", b"b", b"2", 1)
        assert next(watch) == Event(8, "delete", b"a", None, 0)
    assert "Last-Event-ID" not in one.headers[0]
    assert two.headers[-1]["Last-Event-ID"] == "7.1"


def test_a_watch_that_saw_no_event_goes_on_where_it_began(make_stub: MakeStub) -> None:
    stub = make_stub()
    stub.acts = [stream(PROGRESS, end="close"), stream(PROGRESS, PUT_7, end="stay")]
    with Client(stub.url) as db, db.watch("a", start_revision=7) as watch:
        assert next(watch).revision == 7
    assert [target for _, target, _ in stub.requests] == ["/watch?key=a&from=7"] * 2
    assert stub.headers[1]["Last-Event-ID"] == "6"


def test_history_is_lost_when_no_server_has_it(make_stub: MakeStub) -> None:
    one, two = make_stub(), make_stub()
    gone = "events are kept from revision {} on; read the keys again and watch from there"
    with Client([one.url, two.url]) as db:
        one.acts = [refuse(410, gone.format(90))]
        two.acts = [stream(PROGRESS, PUT_7, end="close")]
        with db.watch("a", start_revision=7) as watch:
            assert next(watch).revision == 7
            one.acts, two.acts = [refuse(410, gone.format(90))], [refuse(410, gone.format(80))]
            with pytest.raises(Compacted) as lost:
                next(watch)
            assert lost.value.oldest == 80
            assert list(watch) == [], "it is over"


@pytest.mark.usefixtures("slow_to_repeat")
def test_a_watch_that_nobody_serves_is_refused_at_once(stub: StubServer) -> None:
    stub.acts = [refuse(503, "stopping")] * 100
    with Client(stub.url, timeout=0.5) as db, pytest.raises(Unavailable, match="stopping"):
        db.watch("a")
    with Client(stub.url) as db, pytest.raises(BadRequest):
        db.watch("a", prefix="b")


@pytest.mark.parametrize("whom", ["watch", "client"])
@pytest.mark.parametrize("act", [stream(PROGRESS, end="stay"), stream(PROGRESS, end="close")])
def test_closing_ends_a_watch_that_waits(
    stub: StubServer, whom: str, act: Callable[[object], None]
) -> None:
    stub.acts = [act] + [refuse(503, "stopping")] * 1000
    db = Client(stub.url, timeout=0.2)
    watch = db.watch("a")
    events: list[Event] = []
    thread = threading.Thread(target=lambda: events.extend(watch))
    thread.start()
    time.sleep(0.05)
    (watch if whom == "watch" else db).close()
    thread.join(5)
    assert not thread.is_alive()
    assert events == []
    db.close()


def backup_of(content: bytes) -> bytes:
    start = b"CONUREBK" + content + bytes(4) + (1).to_bytes(8, "big")
    return start + sha256(start).digest()


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_a_backup_is_written_when_it_is_whole(
    db: Client, stub: StubServer, tmp_path: Path, size: int
) -> None:
    whole = backup_of(b"x" * size)
    pieces = [whole[start : start + 7000] for start in range(0, len(whole), 7000)]
    stub.acts = [stream(*pieces, X_Conure_Index="12")] * 2
    told: list[int] = []
    assert db.backup(tmp_path / "b", told.append) == 12
    assert (tmp_path / "b").read_bytes() == whole
    assert told[-1] == len(whole)
    output = BytesIO()
    assert db.backup(output) == 12
    assert output.getvalue() == whole


@pytest.mark.parametrize(
    ("act", "kind", "why"),
    [
        (stream(backup_of(b"x")[:-1], X_Conure_Index="1"), ConureError, "not what"),
        (stream(backup_of(b"x") + b"y", X_Conure_Index="1"), ConureError, "not what"),
        (stream(backup_of(b"x").replace(b"x", b"y"), X_Conure_Index="1"), ConureError, "not what"),
        (stream(X_Conure_Index="1"), ConureError, "not what"),
        (stream(backup_of(b"x"), end="close", X_Conure_Index="1"), Unavailable, "broke off after"),
    ],
)
def test_a_backup_that_is_not_whole_leaves_the_file_as_it_was(
    db: Client,
    stub: StubServer,
    tmp_path: Path,
    act: Callable[[object], None],
    kind: type[ConureError],
    why: str,
) -> None:
    (tmp_path / "b").write_bytes(b"before")
    stub.acts = [act]
    with pytest.raises(kind, match=why):
        db.backup(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"before"


# -- sessions and locks ----------------------------------------------------------------------------


def begin_session(stub: StubServer, *acts: Act) -> None:
    stub.acts = [lambda handler: handler.answer(200, b'{"id": "s1"}'), *acts]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_session_is_lost_when_it_can_not_be_renewed(stub: StubServer) -> None:
    begin_session(stub, *[refuse(503, "no leader")] * 1000)
    with Client(stub.url, timeout=0.3) as db:
        started = time.monotonic()
        session = db.session(1.0)
        wait_until(lambda: session.lost)
        assert time.monotonic() - started > 0.9
        stub.acts = [refuse(404, "there is no such session; it has ended, or never began")]
        with pytest.raises(RequestError, match="no such session"):
            session.close()


@pytest.mark.parametrize("late", ["opening", "renewal"])
def test_a_sessions_life_counts_from_the_request_and_not_from_its_answer(
    stub: StubServer, late: str
) -> None:
    """The servers' time begins before the client hears of it; a lock must not outlast it."""
    ttl, delay = 2.0, 0.5
    asked: list[float] = []

    def answer_late(handler: Any) -> None:
        asked.append(time.monotonic())
        stub.released.wait(delay)
        handler.answer(200, b'{"id": "s1"}')

    acts: list[Act] = [answer_late, *[refuse(503, "no leader")] * 1000]
    if late == "renewal":
        acts.insert(0, lambda handler: handler.answer(200, b'{"id": "s1"}'))
    stub.acts = acts
    with Client(stub.url, timeout=5) as db:
        session = db.session(ttl)
        wait_until(lambda: bool(asked))
        time.sleep(max(0.0, asked[0] + ttl - time.monotonic()))  # the time that is tested
        assert session.lost
        stub.acts = [refuse(404, "there is no such session; it has ended, or never began")] * 9
        with pytest.raises(RequestError, match="no such session"):
            session.close()


def test_a_session_outlives_a_server_that_hangs_for_a_moment(stub: StubServer) -> None:
    ok = lambda handler: handler.answer(200, b"OK\n")  # noqa: E731
    begin_session(stub, refuse(503, "no leader"), close, *[ok] * 100)
    with Client(stub.url, timeout=1) as db, db.session(0.6) as session:
        wait_until(lambda: len(stub.requests) > 6)
        assert not session.lost
    assert stub.requests[-1][:2] == ("DELETE", "/session?id=s1")


def test_a_lock_that_was_lost_says_so(stub: StubServer) -> None:
    gone = refuse(404, "there is no such session; it has ended, or never began")
    held = lambda handler: handler.answer(200, b"OK\n", X_Conure_Fencing_Token="5")  # noqa: E731
    with Client(stub.url) as db:
        begin_session(stub, held, *[gone] * 9)
        lock = db.lock("jobs/1", ttl=0.3)
        assert lock.acquire() == 5
        assert not lock.lost
        wait_until(lambda: lock.lost)
        with pytest.raises(LockLost, match="'jobs/1' was lost"):
            lock.release()
        begin_session(stub, held, *[gone] * 9)
        with pytest.raises(ZeroDivisionError), lock:  # the block's own error says more
            raise ZeroDivisionError
        begin_session(stub, held, gone)
        with pytest.raises(LockLost), lock as token:
            assert token == 5


@pytest.mark.usefixtures("slow_to_repeat")
def test_a_lock_that_can_not_be_let_go_says_so(stub: StubServer) -> None:
    held = lambda handler: handler.answer(200, b"OK\n", X_Conure_Fencing_Token="5")  # noqa: E731
    begin_session(stub, held, *[refuse(503, "no leader")] * 1000)
    with (
        Client(stub.url, timeout=0.5) as db,
        pytest.raises(Unavailable, match="no leader"),
        db.lock("jobs/1", ttl=5),
    ):
        pass


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


def test_errors_with_more_in_them(db: Client, stub: StubServer) -> None:
    stub.acts = [refuse(412, "the condition does not hold", ETag='"17"')]
    with pytest.raises(PreconditionFailed) as unmet:
        db.put("k", "v", if_revision=3)
    assert unmet.value.current == 17
    stub.acts = [refuse(412, "the condition does not hold")]
    with pytest.raises(PreconditionFailed, match="does not exist") as unmet:
        db.delete("k", if_revision=3)
    assert unmet.value.current == 0
    stub.acts = [refuse(422, "this Idempotency-Key was used")]
    with pytest.raises(KeyReused):
        db.put("k", "v", ttl=1)


def test_a_server_with_too_much_to_do_is_given_the_time_it_asks_for(stub: StubServer) -> None:
    stub.acts = [refuse(429, "too many requests", Retry_After="1")]
    started = time.monotonic()
    with Client(stub.url, timeout=5) as db:
        db.put("k", "v")
    assert 1 <= time.monotonic() - started < 4
    stub.acts = [refuse(429, "too many requests", Retry_After="1")] * 9
    with (
        Client(stub.url, timeout=0.5) as db,
        pytest.raises(TooManyRequests, match=r"too many requests \(gave up"),
    ):
        db.put("k", "v")


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
    calls: list[Callable[[], object]] = [
        lambda: db.put("k", "v"), lambda: db.record("k"), lambda: db.increment("k"), db.count,
        lambda: db.delete_prefix("k"), lambda: db.txn(success=[]), lambda: db.open_session(5),
        lambda: list(db.items()), lambda: db.backup(BytesIO()), lambda: db.watch("k"),
    ]  # fmt: skip
    for call in calls:
        for body in (b"<html>\n\n</html>", b'{"page": "<html>"}'):
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 2)
            stub.acts = [raw(head + body + b"\n\n")]
            with pytest.raises(ConureError, match=r"not what a ConureDB|not what the server"):
                call()


def test_an_error_without_words(db: Client, stub: StubServer) -> None:
    stub.acts = [lambda handler: handler.answer(400, b"")]
    with pytest.raises(BadRequest, match="answered 400"):
        db.get("k")


@pytest.mark.parametrize(
    "server",
    ["", "127.0.0.1:8081", "localhost", "https:/a:1", "http://", "http://a:b", "http://a:99999",
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
    assert db._calls._pool._resting == {}


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*=idna''x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffff\r\n",
    ],
)
def test_an_answer_that_cannot_be_taken_apart_is_no_answer(stub: StubServer, data: bytes) -> None:
    stub.acts = [raw(data)] * 50
    with Client(stub.url, timeout=0.3) as client, pytest.raises(Unavailable, match="malformed"):
        client.get("k")
