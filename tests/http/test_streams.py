"""Long answers: ranges, backups and watches over a server of their own, and how they break."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from conure.errors import CorruptionError, NotLeader
from conure.http import streaming
from conure.service.backend import State
from tests.lab.httpdriver import dechunk, wait_until
from tests.lab.httpservice import FakeBackend, Service


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> Iterator[Service]:
    service = Service(backend, value_bytes=1 << 20, max_scans=2, history=backend.history)
    yield service
    service.close()
    assert backend.open_states == 0


def begin(service: Service, target: str, *fields: str) -> socket.socket:
    """Send a request and read nothing of its answer."""
    client = socket.create_connection(("127.0.0.1", service.server.port), timeout=10)
    lines = [f"GET {target} HTTP/1.1", "Host: x", *fields]
    client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    return client


def read_all(client: socket.socket) -> tuple[bytes, bytes]:
    """Read until the connection ends; return the head and what is behind it."""
    received = b""
    try:
        while piece := client.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def test_a_range_of_any_size_is_of_one_revision(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"%05d" % n: b"v" * 1000 for n in range(5000)}
    index = backend.store.applied_index
    client = begin(service, "/kv?prefix=", "Accept: application/x-ndjson", "Connection: close")
    with closing(client):
        client.recv(1)
        backend.values = {b"%05d" % n: b"new" for n in range(5000)}
        head, body = read_all(client)
    assert b"X-Conure-Index: %d\r\n" % index in head
    content, rest = dechunk(body)
    assert rest is not None
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["key"] for line in lines] == [f"{n:05}" for n in range(5000)]
    assert {line["value"] for line in lines} == {"v" * 1000}


def test_workers_are_bounded_and_come_back(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    at_work: list[int] = []
    pin = backend.pin

    def slow_pin() -> State:
        at_work.append(threading.get_ident())
        going_on.wait(10)
        return pin()

    monkeypatch.setattr(backend, "pin", slow_pin)
    clients = [begin(service, "/kv/count", "Connection: close") for _ in range(2)]
    wait_until(lambda: len(at_work) == 2)
    refused = service.request("GET", "/kv/count")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert b"max_scans" in refused.body
    going_on.set()
    for client in clients:
        with closing(client):
            assert b" 200 OK" in read_all(client)[0]
    wait_until(lambda: service.request("GET", "/kv/count").status == 200)


def test_who_takes_nothing_is_cut(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PATIENCE", 0.1)
    backend.values = {b"%02d" % n: b"v" * 500_000 for n in range(60)}
    with closing(begin(service, "/kv?prefix=", "Accept: application/x-ndjson")) as client:
        wait_until(lambda: backend.open_states == 1)
        wait_until(lambda: backend.open_states == 0)
        _, body = read_all(client)
    content, rest = dechunk(body)
    assert rest is None, "a cut answer must not look like a whole one"
    assert content.count(b"\n") < 60


def test_who_leaves_costs_nothing_more(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"%02d" % n: b"v" * 500_000 for n in range(60)}
    client = begin(service, "/kv?prefix=", "Accept: application/x-ndjson")
    wait_until(lambda: backend.open_states == 1)
    client.close()
    wait_until(lambda: backend.open_states == 0)


def damage(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have pinned states fail at a record by its number."""
    pin = backend.pin

    def damaged_pin() -> Any:
        state: Any = pin()
        items = state.items_in_turns

        def some(*bounds: Any, **how: Any) -> Iterator[Any]:
            for count, item in enumerate(items(*bounds, **how)):
                if count == at:
                    raise CorruptionError("conure.db", 8192, "a page fails its checksum")
                yield item

        state.items_in_turns = some
        return state

    monkeypatch.setattr(backend, "pin", damaged_pin)


def test_damage_at_the_beginning_is_told(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.values = {b"k": b"v"}
    damage(backend, monkeypatch, 0)
    answer = service.request("GET", "/kv?prefix=", accept="application/x-ndjson")
    assert answer.status == 500
    assert b"conure.db" in answer.body


def test_damage_cuts_a_long_answer(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.values = {b"%03d" % n: b"v" * 1000 for n in range(300)}
    damage(backend, monkeypatch, 200)
    with closing(begin(service, "/kv?prefix=", "Accept: application/x-ndjson")) as client:
        head, body = read_all(client)
    assert not head or dechunk(body)[1] is None  # a reset may take the beginning with it
    assert service.request("GET", "/kv?prefix=&limit=300").status == 500


def test_a_bug_in_a_worker_is_a_500(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> State:
        raise ZeroDivisionError

    monkeypatch.setattr(backend, "pin", broken)
    assert service.request("GET", "/kv/count").status == 500
    monkeypatch.undo()
    for _ in range(5):  # the worker is free again
        assert service.request("GET", "/kv/count").status == 200


def test_a_backup_is_a_file(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"k": b"v"}
    answer = service.request("GET", "/backup")
    assert answer.body == b"one, two"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="conuredb-1.backup"'
    backend.error = NotLeader("h:1", "n9", "http://h:2")  # an arbiter has nothing to give
    assert service.request("GET", "/backup").headers["location"] == "http://h:2/backup"


def events(client: socket.socket, count: int, received: bytes = b"") -> list[dict[str, str]]:
    """Read so many events of a watch after what was read before, without those of progress."""
    while True:
        _, _, body = received.partition(b"\r\n\r\n")
        content, _ = dechunk(body)
        found = [
            dict(line.split(": ", 1) for line in event.split("\n"))
            for event in content.decode().split("\n\n")[:-1]
        ]
        found = [event for event in found if event["event"] != "progress"]
        if len(found) >= count:
            return found
        piece = client.recv(1 << 16)
        assert piece, received
        received += piece


def test_a_watch_begins_where_it_is_told(service: Service, backend: FakeBackend) -> None:
    for n in range(1, 6):
        backend.values = {b"a": b"%d" % n, b"b": b"x"}  # revisions 2n-1 and 2n
    for target, field, first in (
        ("/watch?key=a&from=5", "", "5"),
        ("/watch?key=a", "Last-Event-ID: 5", "7"),
        ("/watch?key=a&from=1", "Last-Event-ID: 7", "9"),
        ("/watch?prefix=&from=4", "", "4"),
    ):
        fields = (field,) if field else ()
        with closing(begin(service, target, *fields)) as client:
            assert events(client, 1)[0]["id"] == first
    with closing(begin(service, "/watch?key=a")) as client:
        begun = b""
        while b"event: progress" not in begun:
            begun += client.recv(1 << 16)
        backend.values = {b"a": b"now"}
        [event] = events(client, 1, begun)
        assert json.loads(event["data"])["value"] == "now"


def test_a_watch_of_what_is_forgotten_is_refused(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"a": b"1"}
    backend.history.reset(7)
    answer = service.request("GET", "/watch?key=a&from=3")
    assert answer.status == 410
    assert b"from revision 8 on" in answer.body


def test_a_watch_ends_with_its_client(service: Service, backend: FakeBackend) -> None:
    client = begin(service, "/watch?key=a")
    wait_until(lambda: b"conure_watches 1\n" in service.request("GET", "/metrics").body)
    client.close()
    wait_until(lambda: b"conure_watches 0\n" in service.request("GET", "/metrics").body)


def test_a_watch_that_shows_the_value_before_knows_it_from_its_beginning_on(
    service: Service, backend: FakeBackend
) -> None:
    backend.values = {b"k": b"old"}
    with closing(begin(service, "/watch?key=k&prev=true")) as client:
        received = b""
        while b"event: progress" not in received:
            received += client.recv(1 << 20)
        backend.apply([(b"k", b"new")])
        while b'"prev":"old"' not in received:
            piece = client.recv(1 << 20)
            assert piece
            received += piece
    assert b'"value":"new"' in received


@pytest.mark.parametrize("fields", ["prev=x", "prev="])
def test_a_watch_shows_the_value_before_or_not(
    service: Service, backend: FakeBackend, fields: str
) -> None:
    assert service.request("GET", f"/watch?key=k&{fields}").status == 400
    assert not backend.history.wants_previous
