"""The routes of keys over a store without consensus: what becomes of a round, and of refusals.

What a client sees of each feature is tests/system/test_contract_features.py's.
"""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from conure.commands import (
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    OpenSession,
    Put,
    Relation,
    Release,
    Target,
    Transaction,
)
from conure.errors import ConureError, CorruptionError, NotLeader, OutcomeUnknown, Unavailable
from conure.http.request import Request
from conure.http.transactions import MAX_BATCH_LINES, MAX_KEYED_LINES
from conure.service import promises
from conure.service import requests as requests_module
from conure.service import slices as slices_module
from conure.service.backend import Command, WriteReply
from conure.service.parts import MAX_ATTEMPTS
from tests.lab.httpdriver import read_answers, statuses
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.process import Answer, wait_until

SESSION = "0123456789abcdef" * 2


def raw(method: str, target: str, *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def ask(service: Service, method: str, target: str, body: bytes = b"", **fields: str) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return service.request(method, target, body, **headers)


# -- rounds ----------------------------------------------------------------------------------------


def test_plain_writes_are_no_transactions(service: Service, backend: FakeBackend) -> None:
    put, delete = raw("PUT", "/kv?key=a&value=1"), raw("DELETE", "/kv?key=b")
    conditional = raw("PUT", "/kv?key=c&value=3&cas=0")
    received = service.converse(put + delete + conditional + put, 4)
    assert received.count(b" 200 OK\r\n") == 4
    [round_] = backend.batches
    compare = Compare(b"c", Target.MOD_REVISION, Relation.EQUAL, 0)
    transaction = Transaction((compare,), (Put(b"c", b"3"),))
    assert round_ == [(b"a", b"1"), (b"b", None), transaction, (b"a", b"1")]


def test_answers_of_a_round_go_to_their_requests(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"word": b"one"}
    received = service.converse(
        raw("PUT", "/kv?key=a&value=1")
        + raw("PUT", "/kv?key=b&value=2&cas=77")
        + raw("POST", "/kv/incr?key=word")
        + raw("POST", "/kv/incr?key=n&by=5")
        + raw("DELETE", "/kv?key=a"),
        5,
    )
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"412", b"409", b"200", b"200"]
    indexes = [int(part.split(b"\r\n")[0]) for part in received.split(b"X-Conure-Index: ")[1:]]
    assert indexes == list(range(2, 7))
    assert len(backend.batches) == 1


def test_all_reads_of_a_round_share_a_confirmation(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"a": b"1", b"b": b"2"}
    service.converse(
        raw("GET", "/kv?key=a")
        + raw("GET", "/kv?key=b&meta=true")
        + raw("GET", "/kv?prefix=")
        + raw("GET", "/kv/count"),
        4,
    )
    assert backend.confirmations == 1


def test_header_fields_that_change_nothing_leave_a_put_plain(
    service: Service, backend: FakeBackend
) -> None:
    ask(service, "PUT", "/kv?key=a", b"1", Accept="*/*", X_Request_Id="r", Content_Type="a/b")
    assert backend.batches == [[(b"a", b"1")]]


class Torn(FakeBackend):
    """Commits the first command of each batch; of the rest nobody knows."""

    error_behind: ConureError = OutcomeUnknown("who knows")

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        reply(0, 1, self.apply(commands[:1]))
        for position in range(1, len(commands)):
            reply(position, position + 1, self.error_behind)


def test_a_batch_that_fails_half_way_is_answered_once() -> None:
    service = Service(Torn())
    lines = b"\n".join(b'{"key": "%d", "value": "v"}' % n for n in range(5))
    answer = ask(service, "POST", "/kv/batch", lines)
    assert (answer.status, answer.body) == (504, b"who knows\n")
    assert ask(service, "GET", "/kv?key=0").body == b"v"
    service.close()


# -- what becomes of a request ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "operation"),
    [
        ("ttl=90s", Put(b"k", b"v", 90_000)),
        ("keepttl=true", Put(b"k", b"v", keep_ttl=True)),
        ("keepttl=false", Put(b"k", b"v")),
        (f"acquire={SESSION}", Acquire(b"k", SESSION.encode(), b"v")),
        (f"release={SESSION}", Release(b"k", SESSION.encode(), b"v")),
    ],
)
def test_puts_that_ask_for_more(
    service: Service, backend: FakeBackend, query: str, operation: object
) -> None:
    ask(service, "PUT", f"/kv?key=k&{query}", b"v")
    assert backend.batches == [[Transaction((), (operation,))]]  # type: ignore[arg-type]


def test_a_release_without_a_value_stores_none(service: Service, backend: FakeBackend) -> None:
    ask(service, "PUT", f"/kv?key=k&release={SESSION}")
    ask(service, "PUT", f"/kv?key=k&release={SESSION}&value=")
    values = [batch[0].success[0].value for batch in backend.batches]  # type: ignore[union-attr]
    assert values == [None, b""]


@pytest.mark.parametrize(
    ("fields", "compare"),
    [
        ({"If_Match": '"7"'}, (Target.MOD_REVISION, Relation.EQUAL, 7)),
        ({"If_Match": 'W/"7"'}, (Target.MOD_REVISION, Relation.EQUAL, 7)),
        ({"If_Match": "*"}, (Target.VERSION, Relation.GREATER, 0)),
        ({"If_None_Match": "*"}, (Target.VERSION, Relation.EQUAL, 0)),
        ({"If_None_Match": '"7"'}, (Target.MOD_REVISION, Relation.NOT_EQUAL, 7)),
    ],
)
def test_conditions(
    service: Service, backend: FakeBackend, fields: dict[str, str], compare: tuple[object, ...]
) -> None:
    for method in ("PUT", "DELETE"):
        partial(ask, service, method, "/kv?key=k", b"")(**fields)
    expected = Compare(b"k", *compare)  # type: ignore[arg-type]
    assert [batch[0].compares for batch in backend.batches] == [  # type: ignore[union-attr]
        (expected,), (expected,)
    ]  # fmt: skip


def test_a_range_is_deleted_within_a_limit(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"%04d" % n: b"v" for n in range(1001)}
    refused = ask(service, "DELETE", "/kv?prefix=")
    assert refused.status == 413
    assert len(backend.values) == 1001
    assert ask(service, "DELETE", "/kv?prefix=00").status == 200
    assert len(backend.values) == 901
    assert backend.batches[0] == [Transaction((), (DeleteRange(b"", None, 1000),))]


def delete_part(service: Service, target: str, **fields: str) -> dict[str, object]:
    answer = partial(ask, service, "DELETE", target, b"")(**fields)
    assert answer.status == 200, answer.body
    shown = json.loads(answer.body)
    assert isinstance(shown, dict)
    return shown


def test_a_range_of_any_size_is_deleted_in_parts(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"%04d" % n: b"v" for n in range(2500)} | {b"x": b"", b"a": b""}
    answers: list[dict[str, object]] = []
    while not answers or answers[-1]["more"]:
        answers.append(delete_part(service, "/kv?to=5&limit=5000"))  # up to max_range_items
    assert answers == [
        {"deleted": 1000, "more": True},
        {"deleted": 1000, "more": True},
        {"deleted": 500, "more": False},
    ]
    assert set(backend.values) == {b"a", b"x"}
    assert [len(batch) for batch in backend.batches] == [1, 1, 1]
    assert backend.open_states == 0


@pytest.mark.parametrize(
    ("target", "answer", "left"),
    [
        ("prefix=k&limit=1", {"deleted": 1, "more": True}, "k2 k3 l"),
        ("prefix=k&limit=3", {"deleted": 3, "more": False}, "l"),
        ("prefix=k&limit=2", {"deleted": 2, "more": True}, "k3 l"),
        ("from=k2&limit=2", {"deleted": 2, "more": True}, "k1 l"),
        ("from=k2&limit=3", {"deleted": 3, "more": False}, "k1"),
        ("from=k2&to=k3&limit=1", {"deleted": 1, "more": False}, "k1 k3 l"),
        ("from=k3&to=k1&limit=9", {"deleted": 0, "more": False}, "k1 k2 k3 l"),
        ("prefix=m&limit=9", {"deleted": 0, "more": False}, "k1 k2 k3 l"),
        ("prefix=&limit=9", {"deleted": 4, "more": False}, ""),
    ],
)
def test_a_part_is_the_first_keys_of_its_range(
    service: Service, backend: FakeBackend, target: str, answer: dict[str, object], left: str
) -> None:
    backend.values = {b"k1": b"", b"k2": b"", b"k3": b"", b"l": b""}
    assert delete_part(service, f"/kv?{target}") == answer
    assert b" ".join(sorted(backend.values)).decode() == left


def crowded(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let others put a key into the range between look and deletion, so many times."""
    puts: list[int] = []
    write = backend.write

    def crowding(commands: Sequence[Command], reply: WriteReply) -> None:
        if len(puts) < times:
            puts.append(len(puts))
            backend.apply([(b"k0%02d" % (99 - len(puts)), b"new")])  # before all others
        write(commands, reply)

    monkeypatch.setattr(backend, "write", crowding)
    return puts


def test_keys_that_come_meanwhile_are_never_too_many(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither more than the limit goes, nor is "more" wrong about what is there by then."""
    backend.values = {b"k1": b"", b"k2": b""}
    with closing(Service(backend, max_scans=2 * MAX_ATTEMPTS)) as service:
        crowded(backend, monkeypatch, 2)
        assert delete_part(service, "/kv?prefix=k&limit=2") == {"deleted": 2, "more": True}
        assert set(backend.values) == {b"k1", b"k2"}  # the others were the first by then
        crowded(backend, monkeypatch, 100)
        answer = ask(service, "DELETE", "/kv?prefix=k&limit=2")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert {b"k1", b"k2"} < set(backend.values)


def test_a_repeated_part_is_answered_alike_and_deletes_nothing(
    service: Service, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first attempt was in vain, which is remembered as such."""
    backend.values = {b"k%d" % n: b"" for n in range(5)}
    crowded(backend, monkeypatch, 1)
    target = "/kv?prefix=k&limit=5"
    first = delete_part(service, target, Idempotency_Key="x")
    assert first == {"deleted": 5, "more": True}
    left = set(backend.values)
    assert delete_part(service, target, Idempotency_Key="x") == first
    assert set(backend.values) == left
    assert ask(service, "DELETE", "/kv?prefix=k&limit=4", Idempotency_Key="x").status == 422


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("prefix=k&limit=0", {}), ("prefix=k&limit=x", {}), ("key=k&limit=1", {}), ("limit=1", {}),
        ("prefix=k&limit=1&reverse=true", {}), ("prefix=k&limit=1", {"If_Match": "*"}),
        ("prefix=k&limit=1", {"Idempotency_Key": "x" * 129}),
    ],
)  # fmt: skip
def test_a_part_that_is_none(
    service: Service, backend: FakeBackend, query: str, fields: dict[str, str]
) -> None:
    backend.values = {b"k": b""}
    assert partial(ask, service, "DELETE", f"/kv?{query}", b"")(**fields).status == 400
    assert set(backend.values) == {b"k"}


# -- increments that begin with a time to live ---------------------------------------------------


def test_a_counter_expires_when_its_first_increment_says(
    service: Service, backend: FakeBackend
) -> None:
    first = ask(service, "POST", "/kv/incr?key=k&by=-3&ttl=30s")
    assert (first.status, first.body, first.headers["x-conure-ttl"]) == (200, b"-3\n", "30.000")
    assert first.headers["x-conure-version"] == "1"
    backend.now += 10_000
    second = ask(service, "POST", "/kv/incr?key=k&by=5&ttl=30s")
    assert (second.body, second.headers["x-conure-ttl"]) == (b"2\n", "20.000")
    third = ask(service, "POST", "/kv/incr?key=k")
    assert (third.body, third.headers["x-conure-ttl"]) == (b"3\n", "20.000")
    assert third.headers["x-conure-version"] == "3"


def test_a_counter_without_an_end_stays_without(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"k": b"7", b"text": b"seven"}
    answer = ask(service, "POST", "/kv/incr?key=k&ttl=30s")
    assert (answer.body, "x-conure-ttl" in answer.headers) == (b"8\n", False)
    assert ask(service, "POST", "/kv/incr?key=text&ttl=30s").status == 409
    for ttl in ("0", "x", "-1s", ""):
        assert ask(service, "POST", f"/kv/incr?key=new&ttl={ttl}").status == 400
    assert ask(service, "POST", "/kv/incr?key=new&ttl=1s", b"", If_Match="*").status == 400
    assert set(backend.values) == {b"k", b"text"}


def test_a_first_increment_that_is_repeated_is_answered_alike(service: Service) -> None:
    target = "/kv/incr?key=k&by=4&ttl=30s"
    answers = [ask(service, "POST", target, b"", Idempotency_Key="x").body for _ in range(3)]
    assert answers == [b"4\n"] * 3
    assert ask(service, "GET", "/kv?key=k").body == b"4"


# -- conditions that nobody looks at -------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/kv?key=k", "If_Match"),
        ("/kv?key=k&meta=true", "If_Match"),
        ("/kv?key=k&stale=true", "If_Match"),
        ("/kv?key=k&index=0&wait=1s", "If_Match"),
        *((target, field) for field in ("If_Match", "If_None_Match") for target in (
            "/kv?prefix=k", "/kv?from=a&to=z", "/kv?limit=5", "/kv/count", "/kv/count?prefix=k",
            "/watch", "/watch?key=k", "/backup", f"/session?id={'0' * 32}",
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_with_a_condition_that_means_nothing_there_is_refused(
    service: Service, backend: FakeBackend, method: str, target: str, field: str
) -> None:
    backend.values = {b"k": b"v"}
    for tag in ("*", '"1"'):
        answer = partial(ask, service, method, target, b"")(**{field: tag})
        assert answer.status == 400
        if method == "GET":
            assert field.replace("_", "-").encode() in answer.body


def test_the_fingerprint_tells_requests_apart(service: Service, backend: FakeBackend) -> None:
    requests = [
        ("PUT", "/kv?key=a&value=1", b"", {}),
        ("PUT", "/kv?key=a&value=2", b"", {}),
        ("DELETE", "/kv?key=a", b"", {}),
        ("PUT", "/kv?key=a", b"1", {}),
        ("PUT", "/kv?key=a", b"2", {}),
        ("PUT", "/kv?key=a", b"1", {"If_Match": "*"}),
        ("PUT", "/kv?key=a", b"1", {"If_None_Match": "*"}),
    ]
    for method, target, body, fields in requests * 2:
        name = f"{method}{target}{body!r}{fields}"
        partial(ask, service, method, target, body, Idempotency_Key=name)(**fields)
    transactions = [batch[0] for batch in backend.batches]
    prints = [each.fingerprint for each in transactions]  # type: ignore[union-attr]
    assert len(set(prints)) == len(requests)
    assert prints[: len(requests)] == prints[len(requests) :]


def test_a_repeated_session_is_the_same_one(service: Service, backend: FakeBackend) -> None:
    def begin(**fields: str) -> str:
        answer = partial(ask, service, "POST", "/session?ttl=5s", b"")(**fields)
        assert answer.status == 200
        return str(json.loads(answer.body)["id"])

    assert begin(Idempotency_Key="a") == begin(Idempotency_Key="a")
    assert len({begin(), begin(), begin(Idempotency_Key="a"), begin(Idempotency_Key="b")}) == 4
    operation = backend.batches[0][0].success[0]  # type: ignore[union-attr]
    assert isinstance(operation, OpenSession)


def test_a_batch_with_a_key_is_one_transaction(service: Service, backend: FakeBackend) -> None:
    lines = b'{"key": "a", "value": "1", "ttl": 1}\n{"key": "b", "delete": true}'
    assert ask(service, "POST", "/kv/batch", lines, Idempotency_Key="x").status == 200
    [[transaction]] = backend.batches
    assert isinstance(transaction, Transaction)
    assert transaction.success == (Put(b"a", b"1", 1000), Delete(b"b"))
    double = b'{"key": "a", "value": "1"}\n{"key": "a", "value": "2"}'
    assert ask(service, "POST", "/kv/batch", double, Idempotency_Key="y").status == 400
    each = [b'{"key":"%d","value":""}' % n for n in range(MAX_BATCH_LINES + 1)]
    for count in (MAX_KEYED_LINES + 1, MAX_BATCH_LINES + 1):
        many = b"\n".join(each[:count])
        assert ask(service, "POST", "/kv/batch", many, Idempotency_Key="z").status == 413
    assert len(backend.batches) == 1
    most = b"\n\n".join(each[:MAX_KEYED_LINES])
    assert ask(service, "POST", "/kv/batch", most, Idempotency_Key="z").status == 200


def test_the_values_of_a_change_are_bounded_together(backend: FakeBackend) -> None:
    service = Service(backend, value_bytes=1 << 20)
    try:
        lines = [b'{"key":"%d","value":"%s"}' % (n, b"x" * (1 << 20)) for n in range(3)]
        body = b"\n".join(lines)
        assert ask(service, "POST", "/kv/batch", body, Idempotency_Key="x").status == 413
        assert backend.batches == []
        assert ask(service, "POST", "/kv/batch", body).status == 200
        body = b"\n".join(lines[:2])
        assert ask(service, "POST", "/kv/batch", body, Idempotency_Key="x").status == 200
    finally:
        service.close()


# -- reads -----------------------------------------------------------------------------------------


def test_time_left_is_by_the_backends_clock(service: Service, backend: FakeBackend) -> None:
    ask(service, "PUT", "/kv?key=k&ttl=10s", b"v")
    backend.now += 2500
    assert ask(service, "GET", "/kv?key=k").headers["x-conure-ttl"] == "7.500"
    assert json.loads(ask(service, "GET", "/kv?key=k&meta=1").body)["ttl"] == 7.5
    backend.now += 60_000  # due, and not yet removed: it is there
    assert ask(service, "GET", "/kv?key=k").headers["x-conure-ttl"] == "0.000"


def test_the_pages_of_a_range_are_all_of_it(service: Service, backend: FakeBackend) -> None:
    keys = [b"k%03d" % n for n in range(50)] + [b"\xff\xff"]
    backend.values = dict.fromkeys(keys, b"v")
    found, after = [], ""
    while True:
        page = json.loads(ask(service, "GET", f"/kv?limit=7{after}").body)
        found += [item["key"] for item in page["items"]]
        if not page["more"]:
            break
        after = "&after=" + page["next"]
    assert len(found) == 51
    assert found[:50] == [key.decode() for key in keys[:50]]
    backwards = json.loads(ask(service, "GET", "/kv?limit=1&reverse=1").body)
    assert (backwards["next"], backwards["next_encoding"]) == ("//8=", "base64")


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("prefix=b&after=b/2", "b/3"),
        ("prefix=b&after=a", "b/1 b/2 b/3"),  # before the range: all of it, and no more
        ("prefix=b&after=c", ""),  # after it: nothing of it
        ("prefix=b&after=b/3", ""),
        ("from=b&after=a/1", "b/1 b/2 b/3 c/1"),
        ("to=b&after=c", ""),
        ("from=b/2&to=c&after=b/2", "b/3"),
        ("prefix=b&reverse=true&after=b/2", "b/1"),
        ("prefix=b&reverse=true&after=c", "b/3 b/2 b/1"),
        ("prefix=b&reverse=true&after=a", ""),
        ("prefix=b&reverse=true&after=b/1", ""),
        ("to=b&reverse=true&after=z", "a/1"),
        ("from=b/2&reverse=true&after=a", ""),
        ("reverse=true&after=b/2", "b/1 a/1"),
        ("after=%ff", ""),
        ("after=", "a/1 b/1 b/2 b/3 c/1"),
    ],
)
def test_after_never_widens_a_range(
    service: Service, backend: FakeBackend, query: str, keys: str
) -> None:
    backend.values = dict.fromkeys((b"a/1", b"b/1", b"b/2", b"b/3", b"c/1"), b"v")
    page = json.loads(ask(service, "GET", f"/kv?{query}").body)
    assert [item["key"] for item in page["items"]] == keys.split()
    lines = ask(service, "GET", f"/kv?{query}", Accept="application/x-ndjson").body.splitlines()
    assert [json.loads(line)["key"] for line in lines] == keys.split()


def test_a_json_answer_has_a_bound_in_bytes(backend: FakeBackend) -> None:
    service = Service(backend, value_bytes=1 << 20)
    backend.values = {b"%02d" % n: bytes(1 << 20) for n in range(12)}
    page = json.loads(ask(service, "GET", "/kv?limit=100").body)
    assert page["more"] is True
    assert 8 <= len(page["items"]) < 12
    service.close()
    assert backend.open_states == 0


@pytest.mark.parametrize(
    "target",
    ["/kv?key=k&meta=true", "/kv?prefix=", "/kv/count", f"/session?id={SESSION}", "/kv?limit=600"],
)
@pytest.mark.parametrize(
    ("error", "status"),
    [(NotLeader("h:1", "n9", "http://h:2"), 307), (NotLeader(), 503), (Unavailable("no"), 503)],
)
def test_reads_need_a_confirmation(
    service: Service, backend: FakeBackend, target: str, error: ConureError, status: int
) -> None:
    backend.error = error
    assert ask(service, "GET", target).status == status


def test_stale_reads_of_every_kind_tell_their_age(service: Service, backend: FakeBackend) -> None:
    backend.values, backend.contact = {b"k": b"v"}, 3.0
    for target in ("/kv?key=k&meta=1", "/kv?prefix=k", "/kv/count?prefix=k"):
        answer = ask(service, "GET", f"{target}&stale=true&max_stale=5s")
        assert (answer.status, answer.headers["x-conure-last-contact"]) == (200, "3000")
        assert ask(service, "GET", f"{target}&stale=true&max_stale=2s").status == 503
    assert backend.confirmations == 0


def test_a_damaged_page_is_an_error(service: Service, backend: FakeBackend) -> None:
    backend.values, backend.damaged = {b"k": b"v"}, b"k"
    answer = ask(service, "GET", "/kv?key=k&meta=true")
    assert answer.status == CorruptionError.status
    assert b"conure.db is corrupt" in answer.body


# -- what never reaches the backend ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/kv?key=k&acquire="),
        ("PUT", "/kv?key=k&acquire=" + "x" * 300),
        ("PUT", "/kv?key=k&acquire=" + SESSION.upper()),
        ("PUT", f"/kv?key=k&acquire={SESSION}&release={SESSION}"),
        ("PUT", f"/kv?key=k&acquire={SESSION}&ttl=1s"),
        ("PUT", "/session"),
        ("DELETE", "/session?id=" + "x" * 60_000),
        ("DELETE", "/kv?key=k&prefix=k"),
        ("DELETE", "/kv"),
        ("POST", "/kv/incr?key=k&by=9223372036854775808"),
        ("POST", "/kv/touch?key=k&ttl=-1"),
        ("GET", "/kv/count?key=k"),
        ("GET", "/kv?key=k&limit=1"),
        ("GET", "/kv?prefix=a&after=" + "x" * 1025),
        ("GET", "/kv?from=" + "x" * 1025),
        ("GET", f"/session?id={SESSION}&key=k"),
    ],
)
def test_a_refused_request_has_changed_nothing(
    service: Service, backend: FakeBackend, method: str, target: str
) -> None:
    assert ask(service, method, target).status in (400, 414)
    assert (backend.batches, backend.confirmations) == ([], 0)


# -- what takes long -------------------------------------------------------------------------------


def long_get(key: str, *, stale: bool = False) -> bytes:
    return raw("GET", f"/kv?key={key}" + ("&stale=true" if stale else ""))


@pytest.mark.parametrize("stale", [False, True])
def test_a_key_of_a_round_is_read_once(
    service: Service, backend: FakeBackend, *, stale: bool
) -> None:
    backend.values = {b"a": b"1\n", b"b": b"2\n"}
    service.converse(b"".join(long_get(key, stale=stale) for key in "abaab"), 5)
    assert backend.reads == [[b"a", b"b"]]


def test_long_values_of_a_round_are_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered, in order; the short ones of other connections don't wait for them."""
    monkeypatch.setattr(slices_module, "SLICE_BYTES", 50_000)
    backend = FakeBackend()
    backend.values = {b"%d" % n: b"%d" % n * 30_000 + b"\n" for n in range(8)} | {b"s": b"s\n"}
    service = Service(backend, value_bytes=100_000)
    keys = [0, 1, 2, 3, 3, 0, "s", 4, 5, 6, 7, "s"]
    received = service.converse(b"".join(long_get(str(key)) for key in keys), len(keys))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 ")[1:]]
    assert [body[:1] for body in bodies] == [str(key).encode() for key in keys]
    assert [len(body) for body in bodies] == [2 if key == "s" else 30_001 for key in keys]
    slices = [{*read} for read in backend.reads[1:]]
    assert len(slices) == 4  # of 2 each; the first one was part of the first read
    service.close()


def test_no_long_value_is_read_once_too_much_waits_for_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slices_module, "SLICE_BYTES", 50_000)
    monkeypatch.setattr(Request, "room", property(lambda _: 0))
    backend = FakeBackend()
    backend.values = {b"%d" % n: b"%d" % n * 30_000 + b"\n" for n in range(8)} | {b"s": b"s\n"}
    service = Service(backend, value_bytes=100_000)
    received = service.converse(b"".join(long_get(key) for key in "01234567s"), 9)
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)] == (
        [200] * 2 + [503] * 6 + [200]
    )
    assert received.count(b"Retry-After: 1\r\n") == 6
    service.close()


def test_a_batch_is_written_part_by_part(service: Service, backend: FakeBackend) -> None:
    lines = b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(1234))
    answer = ask(service, "POST", "/kv/batch", lines)
    assert json.loads(answer.body) == {"written": 1234, "revision": 1234}
    assert [len(batch) for batch in backend.batches] == [500, 500, 234]
    assert len(backend.values) == 1234


def test_a_batch_of_long_values_is_written_a_mebibyte_at_a_time(backend: FakeBackend) -> None:
    service = Service(backend, value_bytes=1 << 20)
    lines = b"".join(b'{"key": "%d", "value": "%b"}\n' % (n, b"v" * 600_000) for n in range(5))
    assert ask(service, "POST", "/kv/batch", lines).status == 200
    assert [len(batch) for batch in backend.batches] == [2, 2, 1]
    service.close()


class Deposed(FakeBackend):
    """Leads no more after its first batch."""

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        super().write(commands, reply)
        self.error = NotLeader("h:1", "n9", "http://h:2")


def test_a_batch_whose_leader_is_lost_half_way_is_no_redirect() -> None:
    service = Service(Deposed())
    lines = b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(1500))
    assert ask(service, "POST", "/kv/batch", lines).status == 503
    assert ask(service, "POST", "/kv/batch", lines).status == 307
    service.close()


class DeposedUnheard(FakeBackend):
    """Leads no more after its first batch, of which it never tells what became."""

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        if self.batches:
            self.error = NotLeader("h:1", "n9", "http://h:2")
            super().write(commands, reply)
        else:
            self.batches.append(list(commands))


def test_a_batch_of_which_a_part_may_yet_be_committed_is_no_redirect() -> None:
    service = Service(DeposedUnheard())
    lines = b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(1500))
    assert ask(service, "POST", "/kv/batch", lines).status == 503
    service.close()


def test_what_follows_a_long_transaction_in_its_connection_waits_for_it(
    service: Service, backend: FakeBackend
) -> None:
    body = b'{"success": [{"put": {"key": "k", "value": "1"}}]}' + b" " * 200_000
    head = b"POST /txn HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    before, after = raw("PUT", "/kv?key=k&value=0"), raw("PUT", "/kv?key=k&value=2")
    received = service.converse(before + head + body + after, 3)
    assert received.count(b" 200 OK\r\n") == 3
    flat = [command for batch in backend.batches for command in batch]
    put = Transaction((), (Put(b"k", b"1"),))
    assert flat == [(b"k", b"0"), put, (b"k", b"2")]


def test_a_long_outcome_is_shown_whole(backend: FakeBackend) -> None:
    service = Service(backend, value_bytes=1 << 20, range_items=5000)
    values = {b"k%d" % n: text for n, text in enumerate([b"\x01" * 300_000, b"\xff" * 300_000])}
    values |= {b"s%04d" % n: b"v" for n in range(3000)}
    backend.values = values
    operations = [
        {"get": {"key": "k0"}}, {"get": {"key": "k1"}}, {"range": {"prefix": "s", "limit": 5000}},
    ]  # fmt: skip
    answer = ask(service, "POST", "/txn", json.dumps({"success": operations}).encode())
    first, second, items = json.loads(answer.body)["results"]
    assert first["value"] == "\x01" * 300_000
    assert base64.b64decode(second["value"]) == b"\xff" * 300_000
    assert [item["key"] for item in items["items"]] == [f"s{n:04}" for n in range(3000)]
    assert answer.body == json.dumps(json.loads(answer.body)).encode() + b"\n"
    record = json.loads(ask(service, "GET", "/kv?key=k0&meta=true").body)
    assert record == first
    page = json.loads(ask(service, "GET", "/kv?prefix=k").body)
    assert page["items"] == [first, second]
    service.close()


def test_a_transaction_that_can_not_be_read_is_answered_after_its_turns(service: Service) -> None:
    body = b'{"success": [' + b"[]," * 100_000 + b"[]]}"
    answer = ask(service, "POST", "/txn", body)
    assert (answer.status, b"8,192 values" in answer.body) == (413, True)
    assert service.server.reactor.arriving == 0


@pytest.mark.parametrize("path", ["/join", "/remove", "/leader", "/session"])
@pytest.mark.parametrize("chunked", [False, True])
def test_some_bodies_are_short(service: Service, path: str, *, chunked: bool) -> None:
    """Nothing of a longer one is kept: its length says enough."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n"
    if chunked:
        sent = head + "Transfer-Encoding: chunked\r\n\r\n10001\r\n"
    else:
        sent = head + "Content-Length: 65537\r\n\r\n"
    received = service.converse(sent.encode(), 1)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert f"over the limit of 65536 bytes for {path}".encode() in received


# -- room for outcomes -----------------------------------------------------------------------------


class Committing(FakeBackend):
    """Commits when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[Sequence[Command], WriteReply]] = []
        self.ended = 0

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        self.begun.append((commands, reply))

    @property
    def count(self) -> int:
        return self.ended + sum(len(commands) for commands, _ in self.begun)

    def end_all(self) -> None:
        begun, self.begun = self.begun, []
        for commands, reply in begun:
            self.ended += len(commands)
            reply(0, len(commands), self.error or self.apply(commands))


def reading(*operations: dict[str, Any]) -> bytes:
    body = json.dumps({"success": operations}).encode()
    return b"POST /txn HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("ends", ["shown", "refused", "failed"])
def test_transactions_wait_for_those_that_may_read_much(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Until their outcomes are shown, or nothing came of them. Others go on meanwhile."""
    monkeypatch.setattr(promises, "MAX_PROMISED", 20 << 20)
    backend = Committing()
    backend.values = {b"a": b"no number"}
    service = Service(backend, value_bytes=1 << 20)
    operations: list[dict[str, Any]] = [{"range": {"prefix": "a"}}]
    operations += [{"incr": {"key": "a"}}] if ends == "refused" else []
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as client:
        client.sendall(reading(*operations) * 3)
        wait_until(lambda: backend.count == 2)
        other = socket.create_connection(("127.0.0.1", service.server.port), timeout=10)
        other.sendall(raw("PUT", "/kv?key=b&value=1"))
        wait_until(lambda: backend.count == 3)  # that one, and not the third transaction
        assert backend.begun[-1][0] == [(b"b", b"1")]
        if ends == "failed":
            backend.error = Unavailable("no quorum")
        backend.end_all()
        wait_until(lambda: backend.count == 4)
        backend.end_all()
        answers = read_answers(client, 3)
    other.close()
    assert statuses(answers) == [{"shown": 200, "refused": 409, "failed": 503}[ends]] * 3
    service.close()


@pytest.mark.parametrize("name", ["", "x" * 129])
def test_a_refused_idempotency_key_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, service: Service, name: str
) -> None:
    """Neither its answer, for whoever writes next, nor what the transaction was promised."""
    monkeypatch.setattr(promises, "MAX_PROMISED", 20 << 20)
    body = b'{"success": [{"range": {"prefix": "a"}}]}'
    line = b'{"key": "a", "value": "1"}'
    for _ in range(4):
        assert ask(service, "POST", "/txn", body, Idempotency_Key=name).status == 400
        assert ask(service, "PUT", "/kv?key=b&value=1").body == b"OK\n"
        assert ask(service, "POST", "/kv/batch", line, Idempotency_Key=name).status == 400
        assert ask(service, "PUT", "/kv?key=b&value=1").body == b"OK\n"
        assert ask(service, "POST", "/kv/incr?key=n", Idempotency_Key=name).status == 400
        assert ask(service, "DELETE", "/kv?key=b").body == b"OK\n"
    assert ask(service, "POST", "/txn", body).status == 200


def test_a_transaction_waits_while_too_much_waits_for_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = 0
    monkeypatch.setattr(Request, "room", property(lambda _: room))
    backend = FakeBackend()
    service = Service(backend)
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as client:
        client.sendall(reading({"get": {"key": "a"}}))
        assert (
            ask(service, "POST", "/txn", b'{"success": [{"delete": {"key": "b"}}]}').status == 200
        )
        assert [len(batch) for batch in backend.batches] == [1]  # it reads nothing
        room = 1
        assert statuses(read_answers(client, 1)) == [200]
    service.close()


def test_a_session_holds_a_bounded_number_of_keys(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """All of them end with it in one change."""
    monkeypatch.setattr(requests_module, "MAX_HELD", 3)
    session = json.loads(ask(service, "POST", "/session?ttl=1h").body)["id"]
    answers = [ask(service, "PUT", f"/kv?key={n}&acquire={session}") for n in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 409]
    assert b"holds 3 keys" in answers[3].body
    assert ask(service, "PUT", f"/kv?key=2&acquire={session}").status == 200  # it is held already
    assert ask(service, "PUT", f"/kv?key=0&release={session}").status == 200
    assert ask(service, "PUT", f"/kv?key=3&acquire={session}").status == 200
