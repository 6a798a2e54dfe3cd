"""The routes of keys over a store without consensus: what becomes of a round, and of refusals.

What a client sees of each feature is tests/test_contract_features.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import pytest

from commands import (
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
from errors import ConureError, CorruptionError, NotLeader, OutcomeUnknown, Unavailable
from kvapi import MAX_BATCH_LINES, Command, WriteReply
from tests.httpservice import FakeBackend, Service
from tests.process import Answer

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

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
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
    many = b"\n".join(b'{"key":"%d","value":""}' % n for n in range(MAX_BATCH_LINES + 1))
    assert ask(service, "POST", "/kv/batch", many, Idempotency_Key="z").status == 413
    assert len(backend.batches) == 1


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
        ("prefix=b&after=c", ""),  # behind it: nothing of it
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
