"""What takes long over REST takes turns: long bodies of JSON, and long values as JSON."""

from __future__ import annotations

import json
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conure.http import documents, restanswers
from conure.http.documents import INLINE_BYTES
from conure.http.jsonsteps import all_of
from conure.http.request import Request
from conure.service.limits import Limits
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.process import Answer


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> Iterator[Service]:
    running = Service(backend, value_bytes=1 << 20, rest=True)
    yield running
    running.close()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request that took turns, whether what follows on its connection waited."""
    taken: list[bool] = []
    go_on = Request.go_on

    def noted(request: Request, steps: Any, *, alone: bool = False) -> None:
        taken.append(alone)
        go_on(request, steps, alone=alone)

    monkeypatch.setattr(Request, "go_on", noted)
    return taken


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_only_a_long_body_of_json_is_read_in_turns(
    service: Service, turns: list[bool], kind: str
) -> None:
    is_json = kind == "application/json"
    around = len(json.dumps({"value": ""})) if is_json else 0
    for size, takes in ((INLINE_BYTES, False), (INLINE_BYTES + 1, is_json), (1 << 20, is_json)):
        value = "v" * (size - around)
        body = json.dumps({"value": value}) if is_json else value
        assert len(body) == size
        turns.clear()
        answer = service.ask_rest("PUT", "/k", body.encode(), Content_Type=kind)
        assert answer.status == 200
        assert turns == [True] * takes
        found = service.ask_rest("GET", "/k", Accept="application/octet-stream")
        assert found.body == value.encode()


def test_an_error_in_a_long_body_ends_its_turns(service: Service, turns: list[bool]) -> None:
    for body in (
        b'{"value": "' + b"v" * 100_000,
        b'{"value": "' + b"v" * 100_000 + b'", "key": "k"}',
        b'{"value": "' + b"v" * (1 << 20) + b'v"}',
    ):
        assert service.ask_rest("PUT", "/k", body).status in (400, 413)
        query = service.ask_rest("PUT", "/k?ttl=0", b'{"value": "' + b"v" * 100_000 + b'"}')
        assert query.status == 400
    assert turns == [True] * 6
    assert service.ask_rest("GET", "/k").status == 404


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 20_000), st.booleans())
@example(b"", 1, True)
@example(b"a", 3, True)
def test_a_value_in_parts_is_the_value(piece: bytes, times: int, is_base64: bool) -> None:
    value = piece * times if is_base64 else (piece.decode("latin-1") * times).encode()
    text = b64encode(value).decode() if is_base64 else value.decode()
    body: dict[str, Any] = {"value": text, "ttl": 1} | ({"encoding": "base64"} if is_base64 else {})
    limits = Limits(value_bytes=4 << 20, range_items=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "INLINE_BYTES", -1)
        patch.setattr(documents, "_WHOLE", 8)
        found = all_of(documents.parse_value(json.dumps(body).encode(), limits))
    assert found == (value, 1000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"Y" * 70_001, "no base64"),
        (b"YQ==" + b"Y" * 70_000, "goes on behind a ="),
        (b"Y" * ((64 << 10) - 4) + b"YQ==" + b"YYYY", "goes on behind a ="),
        (b"Y" * 70_000 + b"?Y==", "no base64"),
        (b"Y" * (64 << 10) + b"=YYY", "no base64"),
    ],
)
def test_long_base64_that_is_none(service: Service, text: bytes, why: str) -> None:
    body = b'{"encoding": "base64", "value": "%b"}' % text
    answer = service.ask_rest("PUT", "/k", body)
    assert answer.status == 400
    assert why in answer.body.decode()


@pytest.mark.parametrize("name", ["encoding", "ttl"])
def test_nothing_but_the_value_may_be_long(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "_WHOLE", 1000)
    body = json.dumps({"value": "v", name: "x" * 100_000}).encode()
    answer = service.ask_rest("PUT", "/k", body)
    assert answer.status == 400
    assert name in answer.body.decode()


def test_a_long_value_is_never_copied_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as text nor as bytes: no part of it is put together with another one."""
    monkeypatch.setattr(documents, "_WHOLE", 1 << 20)
    limits = Limits(value_bytes=64 << 20, range_items=1)
    body = json.dumps({"value": "v" * (8 << 20)}).encode()
    steps = documents.parse_value(body, limits)
    tracemalloc.start()
    try:
        made, is_over = [], False
        while not is_over:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            is_over = next(steps, steps) is steps
            made.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert sum(size > 1 << 20 for size in made) == 1  # the room for the value, not written to yet


@pytest.mark.parametrize(
    ("front", "method", "target"),
    [
        ("rest", "DELETE", "/k"),
        ("rest", "PUT", "/k?keepttl=true"),
        ("kv", "DELETE", "/kv?key=k"),
        ("kv", "DELETE", "/kv?prefix=k"),
        ("kv", "DELETE", "/kv?prefix=k&limit=1"),
        ("kv", "PUT", "/kv?key=k"),
        ("kv", "PUT", "/kv?key=k&value=v"),
        ("kv", "POST", "/kv/incr?key=n"),
        ("kv", "POST", "/kv/touch?key=k&ttl=1h"),
    ],
)
def test_a_long_body_is_told_from_others_in_turns(
    service: Service, backend: FakeBackend, turns: list[bool], front: str, method: str, target: str
) -> None:
    """Also where it is of no use: a client may send one with anything."""
    ask = service.ask_rest if front == "rest" else service.request
    backend.apply([(b"k", b"v")])

    def sent(name: str, body: bytes) -> Answer:
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": name}
        return ask(method, target, body, **headers)

    body = b"x" * (1 << 20)
    first, again = sent("a", body), sent("a", body)
    assert first.status == again.status == 200
    assert again.headers["x-conure-index"] == first.headers["x-conure-index"]
    assert sent("a", body[1:]).status == 422
    assert turns.count(True) == 3
    assert sent("x" * 129, body).status == 400
    assert sent("b", body[:9]).status in (200, 404)
    assert turns.count(True) == 3


@pytest.mark.parametrize("value", [b"v", "é".encode(), b"\xff"])
def test_a_long_value_is_shown_in_turns(
    service: Service, turns: list[bool], monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    monkeypatch.setattr(restanswers, "AT_ONCE", -1.0)  # no step has its time at once
    for size, takes in ((INLINE_BYTES, False), (INLINE_BYTES + 2, True), (1 << 20, True)):
        long = value * (size // len(value))
        kind = {"Content_Type": "application/octet-stream"}
        assert service.ask_rest("PUT", "/k", long, **kind).status == 200
        turns.clear()
        answer = service.ask_rest("GET", "/k")
        assert turns == [False] * takes
        assert answer.status == 200
        assert answer.headers["content-length"] == str(len(answer.body))
        found = json.loads(answer.body)
        assert ("encoding" in found) is (value == b"\xff")
        turns.clear()
        assert service.ask_rest("GET", "/k", Accept="application/octet-stream").body == long
        assert turns == []


def test_as_much_as_there_is_time_for_is_shown_at_once(
    service: Service, turns: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restanswers, "AT_ONCE", 60.0)
    for size, takes in ((256 << 10, False), ((256 << 10) + 1, True)):
        service.ask_rest("PUT", "/k", b"v" * size, Content_Type="application/octet-stream")
        turns.clear()
        assert len(json.loads(service.ask_rest("GET", "/k").body)["value"]) == size
        assert turns == [False] * takes


@pytest.mark.parametrize("then", ["changed", "deleted", "damaged", "stale"])
def test_who_waits_for_a_turn_is_told_what_is_there_then(
    backend: FakeBackend, service: Service, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """And holds no value until then."""
    backend.apply([(b"k", b"v" * (1 << 20))])
    backend.contact = 1.5
    seen: list[Any] = []
    go_on = Request.go_on

    def later(request: Request, steps: Any, *, alone: bool = False) -> None:
        seen.append(
            all(
                not isinstance(held, bytes) or len(held) < 1000
                for held in steps.gi_frame.f_locals["steps"].gi_frame.f_locals.values()
            )
        )
        if then == "changed":
            backend.apply([(b"k", b"w" * 300_000)])
        elif then == "deleted":
            backend.apply([(b"k", None)])
        elif then == "damaged":
            backend.damaged = b"k"
        go_on(request, steps, alone=alone)

    monkeypatch.setattr(Request, "go_on", later)
    answer = service.ask_rest("GET", "/k?stale=true")
    assert seen == [True]
    assert answer.headers["x-conure-last-contact"] == "1500"
    assert answer.headers["x-conure-index"] == ("2" if then in ("changed", "deleted") else "1")
    if then == "changed":
        assert json.loads(answer.body)["value"] == "w" * 300_000
        assert answer.headers["etag"] == '"2"'
    else:
        assert answer.status == {"deleted": 404, "damaged": 500, "stale": 200}[then]
