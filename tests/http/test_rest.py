"""REST over a store without consensus: each row of what a request may say, and what comes of it.

What curl sends and what clusters do is tests/system/test_rest.py's.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.commands import Compare, Delete, Put, Relation, Target
from conure.errors import (
    ConureError,
    DiskFull,
    Forbidden,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
)
from conure.http.counts import RequestMetrics
from conure.http.limits import Limits
from conure.http.rest import Rest
from conure.metrics import Registry
from conure.service.gate import Action, AllowAll, Caller
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from tests.lab.httpdriver import Stepped, bytewise, read_answers, statuses, without_dates
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.process import Answer

OCTETS = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> Iterator[Service]:
    running = Service(backend, value_bytes=1 << 20, rest=True)
    yield running
    running.close()


def put(service: Service, target: str, value: bytes = b"v", **headers: str) -> Answer:
    return service.ask_rest("PUT", target, value, Content_Type=OCTETS, **headers)


def converse(service: Service, data: bytes, answers: int = 1) -> bytes:
    assert service.rest is not None
    with socket.create_connection(("127.0.0.1", service.rest.port), timeout=10) as client:
        client.sendall(data)
        return read_answers(client, answers)


def conversation(service: Service, data: bytes) -> bytes:
    """Send bytes, and the end of them; return everything that comes."""
    assert service.rest is not None
    with socket.create_connection(("127.0.0.1", service.rest.port), timeout=10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def shown(answer: Answer, status: int = 200) -> Any:
    """Return the JSON of an answer."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body)


def error(answer: Answer, status: int) -> str:
    found = shown(answer, status)
    assert found.keys() == {"error"}
    assert isinstance(found["error"], str)
    return str(found["error"])


# -- a key, a value --------------------------------------------------------------------------------


def test_a_value_and_its_time(service: Service, backend: FakeBackend) -> None:
    body = b'{"value": "Saurab", "ttl": 3600}'
    answer = service.ask_rest("PUT", "/user123", body, Content_Type=FORM)
    assert shown(answer) == {"revision": 1}
    assert answer.headers["x-conure-index"] == "1"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["x-conure-ttl"] == "3600.000"
    answer = service.ask_rest("GET", "/user123")
    assert shown(answer) == {"key": "user123", "value": "Saurab", "ttl": 3600.0}
    assert answer.body == b'{"key": "user123", "value": "Saurab", "ttl": 3600.0}\n'
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["x-conure-index"] == "1"
    assert answer.headers["x-conure-create-revision"] == "1"
    assert answer.headers["x-conure-version"] == "1"
    assert answer.headers["x-conure-ttl"] == "3600.000"
    assert answer.headers["vary"] == "Accept"
    backend.now += 1500
    assert shown(service.ask_rest("GET", "/user123"))["ttl"] == 3598.5
    assert shown(service.ask_rest("PUT", "/user123", b'{"value": "x"}')) == {"revision": 2}
    assert shown(service.ask_rest("GET", "/user123")) == {"key": "user123", "value": "x"}
    assert shown(service.ask_rest("DELETE", "/user123")) == {"revision": 3}
    assert error(service.ask_rest("GET", "/user123"), 404) == "key not found"


def test_a_plain_put_is_no_transaction(service: Service, backend: FakeBackend) -> None:
    service.ask_rest("PUT", "/a", b'{"value": "1"}')
    put(service, "/b", b"2")
    service.ask_rest("PUT", "/c", b'{"value": "\\u0033"}')
    assert backend.batches == [[(b"a", b"1")], [(b"b", b"2")], [(b"c", b"3")]]


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        (None, True),
        ("", True),
        ("application/json", True),
        ("Application/JSON; Charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; charset=us-ascii", True),
        (FORM, True),
        (FORM + "; charset=utf-8", True),
        (OCTETS, False),
        ("text/plain", False),
        ("text/json", False),
        ("application/vnd.api+json", False),
        ("application/jsonx", False),
        ("multipart/form-data; boundary=x", False),
        ("image/png", False),
    ],
)
def test_the_content_type_alone_says_what_the_body_is(
    service: Service, backend: FakeBackend, content_type: str | None, is_json: bool
) -> None:
    headers: dict[str, Any] = {} if content_type is None else {"Content_Type": content_type}
    body = b'{"value": "v"}'
    assert service.ask_rest("PUT", "/k", body, **headers).status == 200
    assert backend.values == {b"k": b"v" if is_json else body}
    answer = service.ask_rest("PUT", "/k", b"plain", **headers)
    assert answer.status == (400 if is_json else 200)
    assert backend.values == {b"k": b"v" if is_json else b"plain"}
    if is_json:
        assert f"Content-Type: {OCTETS}" in error(answer, 400)


@pytest.mark.parametrize(
    "content_type",
    [
        "json",
        "a/b/c",
        "application/json, text/plain",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
    ],
)
def test_a_content_type_that_leaves_a_doubt(
    service: Service, backend: FakeBackend, content_type: str
) -> None:
    answer = service.ask_rest("PUT", "/k", b'{"value": "v"}', Content_Type=content_type)
    assert error(answer, 400)
    assert not backend.batches
    assert service.ask_rest("GET", "/k", Content_Type=content_type).status == 404


def test_a_refused_body_says_what_is_wrong(service: Service, backend: FakeBackend) -> None:
    said = error(service.ask_rest("PUT", "/k", b'{"value": "v", "tll": 3}'), 400)
    assert "tll" in said
    assert OCTETS in said
    said = error(service.ask_rest("PUT", "/k", b'{"value": "' + b"v" * 20_000 + b'"'), 400)
    assert OCTETS in said  # one that is read in turns
    assert not backend.batches


KEYS = [
    ("/user123", b"user123"),
    ("/a/b/c", b"a/b/c"),
    ("/a%2Fb", b"a/b"),
    ("/a/", b"a/"),
    ("//a", b"/a"),
    ("/a//b", b"a//b"),
    ("/a+b", b"a+b"),
    ("/a%2Bb%20c", b"a+b c"),
    ("/a%3Fb", b"a?b"),
    ("/a%3fstale=true", b"a?stale=true"),
    ("/a?", b"a"),
    ("/%00", b"\0"),
    ("/%0d%0a", b"\r\n"),
    ("/%ff%FE", b"\xff\xfe"),
    ("/%EF%BF%BD", b"\xef\xbf\xbd"),
    ("/%C3%A9", "é".encode()),
    ("/.", b"."),
    ("/../../etc", b"../../etc"),
    ("/a;b=c,d:e@f!$&'()*~", b"a;b=c,d:e@f!$&'()*~"),
    ("/*", b"*"),
    ('/"', b'"'),
    ("/%25", b"%"),
    ("/http://x/y", b"http://x/y"),
    ("http://127.0.0.1/absolute/form", b"absolute/form"),
    *[(f"/{name}", name.encode()) for name in ("kv", "kv/count", "txn", "status", "metrics", "join",
                                               "session", "livez", "readyz", "openapi.json",
                                               "raft/config", "watch", "backup", "leader")],
    ("/" + "k" * 1024, b"k" * 1024),
    ("/" + "%ff" * 1024, b"\xff" * 1024),
]  # fmt: skip


@pytest.mark.parametrize(("target", "key"), KEYS, ids=[target[:30] for target, _ in KEYS])
def test_the_path_is_the_key(
    service: Service, backend: FakeBackend, target: str, key: bytes
) -> None:
    assert put(service, target, b"v" * 70_000).status == 200  # more than /join takes there
    assert backend.values == {key: b"v" * 70_000}
    answer = service.ask_rest("GET", target, Accept=OCTETS)
    assert (answer.status, answer.body) == (200, b"v" * 70_000)
    assert service.ask_rest("DELETE", target).status == 200
    assert backend.values == {}


def test_keys_that_are_none(service: Service, backend: FakeBackend) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert "key is missing" in error(service.ask_rest(method, "/"), 400)
        assert "key is missing" in error(service.ask_rest(method, "/?stale=true"), 400)
        assert "limit is 1,024" in error(service.ask_rest(method, "/" + "k" * 1025), 414)
        assert "%" in error(service.ask_rest(method, "/%"), 400)
        assert "%" in error(service.ask_rest(method, "/a%2"), 400)
    assert not backend.batches


def test_methods(service: Service) -> None:
    put(service, "/k")
    for method in ("POST", "PATCH", "OPTIONS", "TRACE", "FOO"):
        for target in ("/k", "/", "/kv/batch", "/txn"):
            answer = service.ask_rest(method, target)
            assert error(answer, 405)
            assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"
    assert statuses(converse(service, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")) == [405]
    head, get = service.ask_rest("HEAD", "/k"), service.ask_rest("GET", "/k")
    assert head.body == b""
    drop = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in drop} == {
        k: v for k, v in get.headers.items() if k not in drop
    }
    assert service.ask_rest("HEAD", "/nobody").status == 404


def test_a_deletion_of_nothing(service: Service, backend: FakeBackend) -> None:
    answer = service.ask_rest("DELETE", "/nobody")
    assert error(answer, 404) == "key not found"
    assert answer.headers["x-conure-index"] == "1"
    assert backend.values == {}


@pytest.mark.parametrize(
    ("accept", "is_alone"),
    [(None, False), ("*/*", False), (OCTETS, True), (f"{OCTETS};q=0.5, application/json", False)],
)
def test_the_value_alone_or_as_json(service: Service, accept: str | None, is_alone: bool) -> None:
    put(service, "/k", b"v")
    headers: dict[str, Any] = {} if accept is None else {"Accept": accept}
    answer = service.ask_rest("GET", "/k", **headers)
    assert answer.headers["content-type"] == (OCTETS if is_alone else "application/json")
    assert answer.body == (b"v" if is_alone else b'{"key": "k", "value": "v"}\n')
    assert error(service.ask_rest("GET", "/nobody", **headers), 404)


@pytest.mark.parametrize("value", [b"\xff" * 400_000, "é".encode() * 200_000, b"v" * (1 << 20)])
def test_long_values(service: Service, value: bytes) -> None:
    body = json.dumps({"value": value.decode("latin-1")}).encode()
    assert service.ask_rest("PUT", "/long", body).status in (200, 413)
    assert put(service, "/long", value).status == 200
    assert service.ask_rest("GET", "/long", Accept=OCTETS).body == value
    found = shown(service.ask_rest("GET", "/long"))
    assert found.keys() == {"key", "value"} | ({"encoding"} if value[:1] == b"\xff" else set())
    again = {name: text for name, text in found.items() if name == "encoding"}
    again |= {"value": found["value"], "ttl": 1}
    assert service.ask_rest("PUT", "/long", json.dumps(again).encode()).status in (200, 413)
    assert service.ask_rest("GET", "/long", Accept=OCTETS).body == value


def test_a_run_of_long_and_short_ones_in_order(service: Service) -> None:
    """H1, H2: a body that is read in turns is stored in its place, and so is what is read."""
    long = b'{"value": "' + b"v" * 300_000 + b'"}'
    head = b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    get = b"GET /k HTTP/1.1\r\nHost: a\r\n\r\n"
    short = b'{"value": "short"}'
    run = [head % len(long) + long + get, head % len(short) + short + get] * 3
    received = converse(service, b"".join(run), 12)
    assert statuses(received) == [200] * 12
    found = [len(body) for body in re.findall(rb'"value": "(\w+)"', received)]
    assert found == [300_000, 5] * 3
    assert [int(n) for n in re.findall(rb'"revision": (\d+)', received)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", [b"", b"Content-Type: application/octet-stream\r\n"])
def test_bodies_in_chunks(service: Service, backend: FakeBackend, kind: bytes) -> None:
    body = b'{"value": "v"}'
    chunks = b"5\r\n" + body[:5] + b"\r\n9\r\n" + body[5:] + b"\r\n0\r\n\r\n"
    start = b"PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + kind
    assert statuses(converse(service, start + b"\r\n" + chunks)) == [200]
    assert backend.values == {b"k": body if kind else b"v"}
    received = conversation(service, start + b"Expect: 100-continue\r\n\r\n" + chunks)
    assert statuses(received) == [100, 200]
    # One that was sent before, perhaps: it stores nothing.
    empty = converse(service, start + b"\r\n0\r\n\r\n")
    assert statuses(empty) == [400]
    assert b"octet-stream" in empty or b"Content-Length: 0 stores" in empty
    assert backend.values == {b"k": body if kind else b"v"}


def test_an_empty_value_is_stored_where_it_is_said(service: Service, backend: FakeBackend) -> None:
    kind = b"Content-Type: text/plain\r\n"
    bare = b"PUT /k HTTP/1.1\r\nHost: a\r\n" + kind
    assert statuses(converse(service, bare + b"\r\n")) == [400]
    assert statuses(converse(service, b"PUT /k HTTP/1.1\r\nHost: a\r\n\r\n")) == [400]
    assert backend.values == {}
    assert statuses(converse(service, bare + b"Content-Length: 0\r\n\r\n")) == [200]
    assert backend.values == {b"k": b""}
    assert shown(service.ask_rest("GET", "/k")) == {"key": "k", "value": ""}


# -- what a query may say --------------------------------------------------------------------------


def test_times_in_the_query(service: Service, backend: FakeBackend) -> None:
    assert put(service, "/k?ttl=1h").status == 200
    assert shown(service.ask_rest("GET", "/k"))["ttl"] == 3600.0
    assert put(service, "/k?keepttl=true", b"w").status == 200
    assert shown(service.ask_rest("GET", "/k")) == {"key": "k", "value": "w", "ttl": 3600.0}
    assert service.ask_rest("PUT", "/k?ttl=2h", b'{"value": "x"}').status == 200
    assert shown(service.ask_rest("GET", "/k"))["ttl"] == 7200.0
    body = b'{"value": "x", "ttl": 1}'
    before = len(backend.batches)
    assert "once" in error(service.ask_rest("PUT", "/k?ttl=2h", body), 400)
    assert "exclude" in error(service.ask_rest("PUT", "/k?keepttl=true", body), 400)
    assert "exclude" in error(put(service, "/k?keepttl=true&ttl=1"), 400)
    for query in ("ttl=0", "ttl=x", "ttl=", "ttl=-1", "ttl=99999d", "keepttl=2"):
        assert error(put(service, f"/k?{query}"), 400)
    assert len(backend.batches) == before


@pytest.mark.parametrize("ttl", [0, -1, -0.5, 0.0001, 1e12, 1e300, 10**400, "-5s", "99999d", "-1"])
def test_a_ttl_out_of_range_is_told_the_range(service: Service, ttl: object) -> None:
    range_ = "a ttl is 1 ms at least and 3650 days at most"
    body = json.dumps({"value": "v", "ttl": ttl}).encode()
    assert range_ in error(service.ask_rest("PUT", "/k", body), 400)
    if not isinstance(ttl, str):
        ttl = f"{ttl:f}" if isinstance(ttl, float) else str(ttl)[:60]
    for answer in (
        put(service, f"/k?ttl={ttl}"),
        service.request("PUT", f"/kv?key=k&value=v&ttl={ttl}"),
    ):
        assert answer.status == 400
        assert range_ in answer.body.decode()
    for other in ('"x"', '"1y"', "true", "[]", "Infinity", "NaN", '"1.2.3s"'):
        body = b'{"value": "v", "ttl": %b}' % other.encode()
        assert "duration" in error(service.ask_rest("PUT", "/k", body), 400)
    assert service.ask_rest("GET", "/k").status == 404


def test_a_body_that_is_coded_is_refused(service: Service, backend: FakeBackend) -> None:
    remedy = "Content-Encoding is 'gzip', and no coding is undone here; send the body as it is"
    assert remedy in error(
        service.ask_rest("PUT", "/k", b'{"value": "v"}', Content_Encoding="gzip"), 415
    )
    assert remedy in error(put(service, "/k", Content_Encoding="gzip"), 415)
    lines = {"Content-Encoding": "identity, br"}
    for method, target in (("PUT", "/kv?key=k"), ("POST", "/kv/batch"), ("POST", "/txn")):
        answer = service.request(method, target, b"v", **lines)
        assert answer.status == 415
        assert "'identity, br'" in answer.body.decode()
    assert not backend.batches
    assert put(service, "/k", Content_Encoding="Identity").status == 200
    assert service.request("PUT", "/kv?key=k", b"w", **{"Content-Encoding": ""}).status == 200
    assert service.ask_rest("GET", "/k", Content_Encoding="gzip").status == 200


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("PUT", "key=k"), ("PUT", "value=v"), ("PUT", "stale=true"), ("PUT", "acquire=" + "0" * 32),
        ("GET", "key=k"), ("GET", "ttl=1"), ("GET", "meta=true"), ("GET", "cas=1"),
        ("GET", "prefix=k"), ("GET", "stale=2"), ("GET", "max_stale=1"), ("GET", "index=1"),
        ("DELETE", "prefix=k"), ("DELETE", "ttl=1"), ("DELETE", "stale=true"),
        ("GET", "stale=true&stale=true"), ("GET", "a%2"), ("PUT", "cas=-1"), ("PUT", "cas=x"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(
    service: Service, backend: FakeBackend, method: str, query: str
) -> None:
    answer = service.ask_rest(method, f"/k?{query}", b"v", Content_Type=OCTETS)
    assert error(answer, 400)
    assert not backend.batches
    assert not backend.reads


def test_stale_reads(service: Service, backend: FakeBackend) -> None:
    put(service, "/k")
    backend.contact = 1.5
    answer = service.ask_rest("GET", "/k?stale=true")
    assert shown(answer) == {"key": "k", "value": "v"}
    assert answer.headers["x-conure-last-contact"] == "1500"
    assert backend.confirmations == 0
    assert service.ask_rest("GET", "/k?stale=true&max_stale=2s").status == 200
    answer = service.ask_rest("GET", "/k?stale=true&max_stale=1s")
    assert "over max_stale" in error(answer, 503)
    answer = service.ask_rest("GET", "/nobody?stale=true")
    assert error(answer, 404)
    assert answer.headers["x-conure-last-contact"] == "1500"
    assert "x-conure-last-contact" not in service.ask_rest("GET", "/k").headers
    assert backend.confirmations == 1


# -- conditions ------------------------------------------------------------------------------------


def test_conditions(service: Service, backend: FakeBackend) -> None:
    assert put(service, "/k", b"1", If_None_Match="*").status == 200
    answer = put(service, "/k", b"2", If_None_Match="*")
    assert "revision is 1" in error(answer, 412)
    assert answer.headers["etag"] == '"1"'
    assert error(put(service, "/k?cas=7", b"2"), 412)
    assert error(put(service, "/k", b"2", If_Match='"7"'), 412)
    assert put(service, "/k?cas=1", b"2").headers["etag"] == '"5"'
    body = b'{"value": "3"}'
    answer = service.ask_rest("PUT", "/k", body, If_Match='"5"')
    assert answer.headers["etag"] == '"6"'
    assert answer.headers["x-conure-version"] == "3"
    assert error(service.ask_rest("DELETE", "/k", If_Match='"5"'), 412)
    assert error(service.ask_rest("DELETE", "/k?cas=5"), 412)
    assert service.ask_rest("DELETE", "/k", If_Match='"6"').status == 200
    assert error(service.ask_rest("DELETE", "/k", If_Match='"6"'), 412)
    assert error(service.ask_rest("DELETE", "/k?cas=0"), 404)
    assert error(put(service, "/k", If_Match="x"), 400)
    condition = Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 5)
    assert backend.batches[5][0].compares == (condition,)  # type: ignore[union-attr]
    assert backend.batches[5][0].success == (Put(b"k", b"3"),)  # type: ignore[union-attr]
    assert backend.batches[8][0].success == (Delete(b"k"),)  # type: ignore[union-attr]


def test_a_read_on_condition(service: Service) -> None:
    put(service, "/k", b"v")
    for accept in ("*/*", OCTETS):
        answer = service.ask_rest("GET", "/k", If_None_Match='"1"', Accept=accept)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", '"1"')
        assert service.ask_rest("GET", "/k", If_None_Match='"2"', Accept=accept).status == 200
    assert service.ask_rest("GET", "/k", If_None_Match='"7", W/"1"').status == 304
    assert service.ask_rest("GET", "/nobody", If_None_Match="*").status == 404
    assert "PUT and DELETE" in error(service.ask_rest("GET", "/k", If_Match='"1"'), 400)


# -- exactly once ----------------------------------------------------------------------------------


def test_a_repetition_is_told_its_first_outcome(service: Service, backend: FakeBackend) -> None:
    for attempt in range(2):
        assert shown(put(service, "/k", b"1", Idempotency_Key="a")) == {"revision": 1}, attempt
    put(service, "/k", b"2")
    assert shown(put(service, "/k", b"1", Idempotency_Key="a")) == {"revision": 1}
    assert backend.values == {b"k": b"2"}
    first = service.ask_rest("DELETE", "/k", Idempotency_Key="d")
    put(service, "/k", b"3")
    again = service.ask_rest("DELETE", "/k", Idempotency_Key="d")
    assert shown(again) == shown(first)
    assert backend.values == {b"k": b"3"}
    assert error(service.ask_rest("DELETE", "/nobody", Idempotency_Key="n"), 404)
    put(service, "/nobody", b"4")
    assert error(service.ask_rest("DELETE", "/nobody", Idempotency_Key="n"), 404)
    assert backend.values == {b"k": b"3", b"nobody": b"4"}


def test_another_request_under_a_used_name(service: Service, backend: FakeBackend) -> None:
    body = b'{"value": "v"}'
    assert put(service, "/%ff", body, Idempotency_Key="a").status == 200
    assert put(service, "/%ff", body, Idempotency_Key="a").status == 200
    others: list[Callable[[], Answer]] = [
        lambda: put(service, "/%fe", body, Idempotency_Key="a"),  # the same text, other bytes
        lambda: put(service, "/%EF%BF%BD", body, Idempotency_Key="a"),
        lambda: put(service, "/%ff", body + b" ", Idempotency_Key="a"),
        lambda: put(service, "/%ff?ttl=1", body, Idempotency_Key="a"),
        lambda: put(service, "/%ff", body, Idempotency_Key="a", If_Match="*"),
        lambda: service.ask_rest("PUT", "/%ff", body, Idempotency_Key="a"),  # the body is JSON
        lambda: service.ask_rest("DELETE", "/%ff", Idempotency_Key="a"),
    ]
    for ask in others:
        assert "Idempotency-Key" in error(ask(), 422)
    headers = {"Idempotency-Key": "a"}
    assert service.request("PUT", "/kv?key=%ff", body, **headers).status == 422
    assert backend.values == {b"\xff": body}
    long = b'{"value": "' + b"v" * 30_000 + b'"}'  # whose fingerprint is taken in turns
    for _ in range(2):
        answer = service.ask_rest("PUT", "/long", long, Idempotency_Key="b")
        assert answer.headers["x-conure-version"] == "1"
    assert error(service.ask_rest("PUT", "/long", long + b" ", Idempotency_Key="b"), 422)
    assert error(put(service, "/k", Idempotency_Key="x" * 129), 400)


# -- errors ----------------------------------------------------------------------------------------

LED = NotLeader("10.0.0.2:7001", "n2", "http://10.0.0.2:8081")


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (NotLeader(), 503),
        (LED, 503),
        (Unavailable("stopping"), 503),
        (OutcomeUnknown("nobody knows"), 504),
        (DiskFull("the disk is full"), 507),
    ],
)
def test_what_goes_wrong_behind_it(
    service: Service, backend: FakeBackend, failure: ConureError, status: int
) -> None:
    backend.error = failure
    for method, body in (("GET", None), ("PUT", b'{"value": "v"}'), ("DELETE", None)):
        answer = service.ask_rest(method, "/k", body)
        said = error(answer, status)
        assert "location" not in answer.headers
        assert ("retry-after" in answer.headers) is (status == 503)
        assert "8081" not in said  # where the other API is served
        if failure is LED:
            assert "n2" in said


def test_writes_and_reads_may_be_passed_on(backend: FakeBackend) -> None:
    """Whatever the routes of the other API do with theirs."""
    service = Service(backend, rest=True)
    try:
        put(service, "/k")
        service.ask_rest("GET", "/k")
        assert (backend.kept, backend.passed_on) == ([0], 1)
        service.request("PUT", "/kv?key=k&value=v")
        service.request("GET", "/kv?key=k")
        assert (backend.kept, backend.passed_on) == ([0, 1], 1)
    finally:
        service.close()


def test_a_damaged_record(service: Service, backend: FakeBackend) -> None:
    put(service, "/k")
    backend.damaged = b"k"
    assert "corrupt" in error(service.ask_rest("GET", "/k"), 500)


def test_what_the_server_itself_refuses_is_json_too(service: Service) -> None:
    for data, status in (
        (b"GET /k HTTP/1.1\r\n\r\n", 400),
        (b"GET /k HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"k" * (70 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /k HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /k HTTP/1.1\r\nHost: a\r\nOrigin: http://evil.example\r\n\r\n", 403),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
    ):
        received = converse(service, data)
        head, _, body = received.partition(b"\r\n\r\n")
        assert statuses(received) == [status]
        assert b"Content-Type: application/json\r\n" in head
        assert json.loads(body).keys() == {"error"}
    body = b'{"value": "' + b"v" * ((1 << 20) + 1) + b'"}'
    assert "max_value_bytes" in error(service.ask_rest("PUT", "/k", body), 413)
    assert "max_value_bytes" in error(put(service, "/k", b"v" * ((1 << 20) + 1)), 413)


def test_the_other_api_keeps_its_errors(service: Service) -> None:
    assert service.request("GET", "/kv?key=nobody").body == b"key not found\n"


class Keeper:
    """A gate that knows one key."""

    def __init__(self) -> None:
        self.asked: list[tuple[Action, bytes]] = []

    def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
        self.asked.append((action, start))
        if start != b"mine":
            raise Forbidden("not yours")


def test_the_gate_is_asked(backend: FakeBackend) -> None:
    gate = Keeper()
    service = Service(backend, rest=True, gate=gate)
    try:
        assert put(service, "/mine").status == 200
        assert service.ask_rest("GET", "/mine").status == 200
        assert service.ask_rest("DELETE", "/mine").status == 200
        for method in ("GET", "PUT", "DELETE"):
            body = b'{"value": "v"}'
            assert error(service.ask_rest(method, "/yours", body), 403) == "not yours"
        asked = [Action.WRITE, Action.READ, Action.WRITE, Action.READ, Action.WRITE, Action.WRITE]
        assert [action for action, _ in gate.asked] == asked
    finally:
        service.close()


# -- all fronts are one ----------------------------------------------------------------------------


def test_requests_are_counted_by_front(backend: FakeBackend) -> None:
    registry = Registry()
    service = Service(backend, rest=True, registry=registry)
    try:
        put(service, "/kv")
        service.ask_rest("GET", "/kv")
        service.ask_rest("GET", "/nobody")
        service.ask_rest("DELETE", "/kv")
        service.ask_rest("POST", "/status")
        service.request("PUT", "/kv?key=k&value=v")
        page = registry.render().decode()
    finally:
        service.close()
    counted = re.findall(r"^conure_http_requests_total\{(.*)\} (\d+)$", page, re.MULTILINE)
    assert {
        tuple(re.findall(r'(?:route|code|method)="(.*?)"', labels)): int(n) for labels, n in counted
    } == {
        ("/{key}", "PUT", "200"): 1,
        ("/{key}", "GET", "200"): 1,
        ("/{key}", "GET", "404"): 1,
        ("/{key}", "DELETE", "200"): 1,
        ("/{key}", "POST", "405"): 1,
        ("/kv", "PUT", "200"): 1,
    }


def test_one_sequence_of_revisions(service: Service, backend: FakeBackend) -> None:
    """Several clients of both fronts write at a time; each write has a revision of its own."""
    found: list[int] = []

    def write(over_rest: bool) -> None:
        for number in range(40):
            if over_rest:
                answer = put(service, f"/k{number}")
            else:
                answer = service.request("PUT", f"/kv?key=k{number}&value=v")
            found.append(int(answer.headers["x-conure-index"]))

    threads = [threading.Thread(target=write, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 161))
    assert sum(map(len, backend.batches)) == 160


# -- any input -------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [b"GET ", b"PUT ", b"DELETE ", b"HEAD ", b"/", b"/k", b"%", b"%ff", b"%2F", b"?", b"ttl=1",
     b"&", b"stale=true", b" HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"Content-Length: 14\r\n",
     b'{"value": "v"}', b"Transfer-Encoding: chunked\r\n", b"e\r\n", b"0\r\n\r\n", b"\xff", b"\0",
     b"Content-Type: text/plain\r\n", b"Accept: application/octet-stream\r\n", b"If-Match: *\r\n",
     b"Expect: 100-continue\r\n", b"Idempotency-Key: a\r\n", b"X-Request-Id: r\r\n"]
)  # fmt: skip
WHOLE = st.sampled_from(
    [
        b"GET /k HTTP/1.1\r\nHost: a\r\n\r\n",
        b'PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"value": "v"}',
        b"PUT /%ff?ttl=5 HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\nhi",
        b"DELETE /k HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
)
STATUSES = {100, 200, 400, 404, 405, 411, 412, 413, 414, 417, 421, 422, 431, 501, 505}


@pytest.fixture(scope="module")
def lasting() -> Iterator[Service]:
    running = Service(FakeBackend(), value_bytes=1000, rest=True)
    yield running
    running.close()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.lists(WHOLE | PIECES, max_size=12).map(b"".join))
def test_no_bytes_break_it(lasting: Service, data: bytes) -> None:
    received = conversation(lasting, data)
    assert set(statuses(received)) <= STATUSES, received
    assert shown(lasting.ask_rest("PUT", "/sane", b'{"value": "v"}'))
    assert lasting.ask_rest("GET", "/sane").status == 200


def played(pieces: list[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """Send the pieces, a round for each; return the answers without their dates, and what is
    stored."""
    backend, registry = FakeBackend(), Registry()
    limits = RequestLimits(value_bytes=1000, range_items=10)
    watchers = Watchers[Any](backend.history, registry)
    requests = Requests(backend, AllowAll(), watchers, limits, max_workers=1)
    stepped = Stepped(Rest(backend, requests, RequestMetrics(registry), limits))
    try:
        for piece in pieces:
            stepped.send(piece)
        return without_dates(stepped.end()), backend.values
    finally:
        stepped.close()


@settings(deadline=None, max_examples=60)
@given(
    data=st.lists(WHOLE | PIECES, max_size=10).map(b"".join),
    places=st.lists(st.integers(0, 600), max_size=6),
)
def test_splits_change_neither_answers_nor_values(data: bytes, places: list[int]) -> None:
    """H3."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    at_once = played([data])
    assert played([data[start:stop] for start, stop in pairwise(edges)]) == at_once
    assert played(bytewise(data)) == at_once


@settings(deadline=None, max_examples=150)
@given(body=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["value", "ttl", "encoding", "x"]), inner, max_size=3),
    max_leaves=5,
), junk=st.binary(max_size=2), at=st.integers(0, 40))  # fmt: skip
def test_nearly_json_is_refused_or_stored_as_it_is_meant(
    lasting: Service, body: object, junk: bytes, at: int
) -> None:
    """What is stored is what the standard library's reader finds in the body, and nothing else."""
    text = json.dumps(body).encode()
    text = text[:at] + junk + text[at:]
    answer = lasting.ask_rest("PUT", "/nearly", text)
    if answer.status == 200:
        meant = json.loads(text)
        assert meant.keys() <= {"value", "ttl", "encoding"}
        found = shown(lasting.ask_rest("GET", "/nearly"))
        assert found["value"] == meant["value"]
    else:
        assert OCTETS in error(answer, 400)


def test_a_default_limit_is_no_other(service: Service) -> None:
    """Bodies of the names that are short ones elsewhere are as long as any here."""
    assert service.rest is not None
    assert service.rest.front.limits == Limits(max_body_bytes=16 << 20)
