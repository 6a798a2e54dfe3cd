"""origins: pages of the origins that the server was told, and what their browsers are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conure.http.limits import Limits
from conure.http.origins import Access, Names
from conure.http.server import HTTPServer
from tests.lab.httpdriver import Recorder, Streamer, connect, exchange, read_all, statuses

PAGE, OTHER = "https://admin.example.com", "http://ops.example:3000"
ACCESS = Access(Names(["db.example"]), frozenset({"/public"}), origins=frozenset({PAGE, OTHER}))


@contextmanager
def serving(access: Access = ACCESS, application: Recorder | None = None) -> Iterator[HTTPServer]:
    limits = Limits(max_body_bytes=100)
    server = HTTPServer(("127.0.0.1", 0), application or Recorder(), limits, access=access)
    server.start()
    try:
        yield server
    finally:
        server.drain(0)


def request_of(
    line: str = "GET /kv", origin: str | None = PAGE, *more: str, host: str = "db.example"
) -> bytes:
    fields = [f"{line} HTTP/1.1", f"Host: {host}", *more]
    if origin is not None:
        fields.append(f"Origin: {origin}")
    return "\r\n".join([*fields, "", ""]).encode()


def fields_of(answer: bytes, name: str) -> list[str]:
    head = answer.partition(b"\r\n\r\n")[0].decode()
    return re.findall(rf"\r\n{name}: ([^\r]*)", head)


def preflight(
    origin: str | None = PAGE, *more: str, method: str = "PUT", host: str = "db.example"
) -> bytes:
    asked = f"Access-Control-Request-Method: {method}"
    return request_of("OPTIONS /kv?key=a", origin, asked, *more, host=host)


@pytest.mark.parametrize("origin", [PAGE, OTHER])
@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
def test_a_page_that_may_ask_is_answered_and_its_browser_told(
    origin: str, site: str | None
) -> None:
    more = [] if site is None else [f"Sec-Fetch-Site: {site}"]
    with serving() as server:
        for line in ("GET /kv?key=a", "PUT /kv?key=a", "DELETE /kv", "HEAD /kv"):
            answer = exchange(server, request_of(line, origin, *more))
            assert statuses(answer) == [200]
            assert fields_of(answer, "Access-Control-Allow-Origin") == [origin]
            assert "Origin" in fields_of(answer, "Vary")
            (exposed,) = fields_of(answer, "Access-Control-Expose-Headers")
            assert {"ETag", "X-Conure-Index", "X-Conure-TTL"} <= set(exposed.split(", "))
            assert b"Access-Control-Allow-Credentials" not in answer


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "http://admin.example.com", "https://admin.example.com:8443"),
        *("https://admin.example.com.evil.example", "https://admin.example.com/", "null", "*", ""),
        *("https://ADMIN.example.com", f"{PAGE} {OTHER}", f"{PAGE}, {PAGE}", "https://x.example"),
    ],
)
def test_another_page_is_refused_as_ever(origin: str) -> None:
    application = Recorder()
    with serving(application=application) as server:
        for request in (request_of("GET /kv", origin), preflight(origin)):
            answer = exchange(server, request)
            assert statuses(answer) == [403]
            assert not fields_of(answer, "Access-Control-Allow-Origin")
            assert fields_of(answer, "Vary") == ["Origin"]
    assert "GET /kv" not in application.events


def test_what_is_known_of_one_origin_is_never_told_to_another() -> None:
    """Answers by turns on one connection, out of header blocks that are known."""
    origins = [PAGE, OTHER, None, "https://evil.example", None, OTHER, PAGE, PAGE]
    run = b"".join(request_of("GET /kv", origin) for origin in 3 * origins)
    with serving() as server:
        answers = exchange(server, run)
    heads = re.split(rb"(?=HTTP/1\.1 )", answers)[1:]
    assert len(heads) == len(3 * origins)
    for head, origin in zip(heads, 3 * origins, strict=True):
        told = [origin] if origin in (PAGE, OTHER) else []
        assert fields_of(head, "Access-Control-Allow-Origin") == told
        assert fields_of(head, "Vary") == ["Origin"]


def test_without_origins_nothing_is_told() -> None:
    with serving(Access(Names(["db.example"]))) as server:
        answer = exchange(server, request_of("GET /kv", None))
        assert statuses(answer) == [200]
        assert b"Vary" not in answer
        assert b"Access-Control" not in answer
        assert statuses(exchange(server, preflight())) == [403]


def test_an_id_and_an_end_come_back_beside_it() -> None:
    with serving() as server:
        answer = exchange(server, request_of("GET /kv", PAGE, "X-Request-Id: r7"))
        assert fields_of(answer, "X-Request-Id") == ["r7"]
        assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]
        answer = exchange(server, request_of("GET /kv", PAGE, "Connection: close"))
        assert fields_of(answer, "Connection") == ["close"]
        assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]
        target = "GET http://db.example/kv"
        answer = exchange(server, request_of(target, PAGE, "X-Request-Id: r8", host="x"))
        assert fields_of(answer, "X-Request-Id") == ["r8"]
        assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]


def test_a_preflight_is_answered_by_no_route() -> None:
    application = Recorder()
    with serving(application=application) as server:
        more = ["Access-Control-Request-Headers: if-match, content-type", "X-Request-Id: r7"]
        run = preflight(PAGE, *more) + preflight(OTHER, method="DELETE") + request_of()
        answers = exchange(server, run)
        assert statuses(answers) == [204, 204, 200]
        first = answers[: answers.index(b"\r\n\r\n") + 4]
        assert answers[len(first) :].startswith(b"HTTP/1.1 204 ")
        assert fields_of(first, "Access-Control-Allow-Origin") == [PAGE]
        assert {"DELETE", "GET", "POST", "PUT"} <= set(
            fields_of(first, "Access-Control-Allow-Methods")[0].split(", ")
        )
        assert {"Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"} <= set(
            fields_of(first, "Access-Control-Allow-Headers")[0].split(", ")
        )
        assert fields_of(first, "Access-Control-Max-Age") == ["600"]
        assert fields_of(first, "X-Request-Id") == ["r7"]
        assert fields_of(first, "Content-Length") == fields_of(first, "Content-Type") == []
        assert fields_of(first, "X-Content-Type-Options") == ["nosniff"]
        assert not server.refused
    assert [event for event in application.events if event != "flush"] == ["GET /kv"]


def test_what_only_looks_like_a_preflight_goes_to_its_route() -> None:
    application = Recorder()
    with serving(application=application) as server:
        asked = "Access-Control-Request-Method: PUT"
        assert statuses(exchange(server, request_of("OPTIONS /kv", PAGE))) == [200]
        assert statuses(exchange(server, request_of("GET /kv", PAGE, asked))) == [200]
        assert statuses(exchange(server, request_of("OPTIONS /kv", None, asked))) == [200]
    assert [event for event in application.events if event != "flush"] == [
        *("OPTIONS /kv", "GET /kv", "OPTIONS /kv")
    ]


def test_a_name_that_is_not_ours_is_refused_to_pages_that_may_ask_too() -> None:
    with serving() as server:
        for request in (request_of(host="evil.example"), preflight(host="evil.example")):
            assert statuses(exchange(server, request)) == [421]


def test_errors_of_the_server_are_told_to_the_page_too() -> None:
    with serving() as server:
        answer = exchange(server, request_of("PUT /kv", PAGE, "Content-Length: 101"))
        assert statuses(answer) == [413]
        assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]
        evil = request_of("PUT /kv", "https://evil.example", "Content-Length: 101")
        answer = exchange(server, evil)
        assert statuses(answer) == [413]
        assert not fields_of(answer, "Access-Control-Allow-Origin")
        answer = exchange(server, request_of("GET /boom", PAGE))
        assert statuses(answer) == [500]
        assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]


def test_streams_are_told_to_the_page_too() -> None:
    application = Streamer()
    with serving(application=application) as server, connect(server) as client:
        client.sendall(request_of("GET /stream", PAGE, "Connection: close"))
        (stream,) = application.wait_for_streams(1)
        stream.finish()
        answer = read_all(client)
    assert statuses(answer) == [200]
    assert fields_of(answer, "Access-Control-Allow-Origin") == [PAGE]
    assert fields_of(answer, "X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize(
    ("scheme", "origin", "site", "status"),
    [
        ("https", "https://db.example", None, 200),
        ("https", "https://db.example", "same-origin", 200),
        ("https", "http://db.example", None, 403),
        ("https", "http://db.example", "same-origin", 403),
        ("https", "https://db.example:8443", None, 403),
        ("http", "http://db.example", None, 200),
        ("http", "https://db.example", None, 403),
        ("http", "https://db.example", "same-origin", 200),
    ],
)
def test_a_page_of_this_server_is_of_its_scheme(
    scheme: str, origin: str, site: str | None, status: int
) -> None:
    more = [] if site is None else [f"Sec-Fetch-Site: {site}"]
    with serving(Access(Names(["db.example"]), scheme=scheme)) as server:
        assert statuses(exchange(server, request_of("PUT /kv", origin, *more))) == [status]
