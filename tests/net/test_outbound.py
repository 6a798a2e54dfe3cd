"""outbound.py: one exchange with another server, bounded in time and length whatever it answers."""

from __future__ import annotations

import threading
import time
from http.client import HTTPException
from typing import Any

import pytest

from conure.net.outbound import Line, MalformedAnswer, encode_request
from tests.lab.stubserver import MakeStub, hang, raw

GET = encode_request("GET", "http://h/", b"/kv?key=k", [], b"")


@pytest.fixture
def line() -> Line:
    return Line(connect_timeout=5.0)


def soon() -> float:
    return time.monotonic() + 10.0


def test_a_request_as_bytes() -> None:
    fields = [("Accept", "*/*"), ("X-Name", "é")]
    assert encode_request("PUT", "http://[::1]:80/", b"/kv", fields, b"v") == (
        b"PUT /kv HTTP/1.1\r\nHost: [::1]:80\r\nAccept: */*\r\nX-Name: \xe9\r\n"
        b"Content-Length: 1\r\n\r\nv"
    )


def test_each_request_has_a_connection_of_its_own(make_stub: MakeStub, line: Line) -> None:
    stub = make_stub()
    stub.values[b"k"] = b"v"
    for _ in range(3):
        answer = line.exchange(stub.url, GET, soon(), most=100)
        assert (answer.status, answer.body) == (200, b"v")
        assert answer.header("content-length", "none") == "1"
        assert answer.header("x-none", "none") == "none"
    assert stub.connections == 3


def test_of_a_long_answer_no_more_is_read_than_was_asked_for(
    make_stub: MakeStub, line: Line
) -> None:
    stub = make_stub()
    stub.values[b"k"] = b"0123456789"
    with pytest.raises(HTTPException, match="impossible length"):
        line.exchange(stub.url, GET, soon(), most=9)
    for _ in range(2):  # what was left unread is nobody's answer
        answer = line.exchange(stub.url, GET, soon(), most=9, may_cut_short=True)
        assert answer.body == b"012345678"
    assert line.exchange(stub.url, GET, soon(), most=10).body == b"0123456789"
    assert stub.connections == 4


def test_silence_and_the_deadline_end_an_exchange(make_stub: MakeStub, line: Line) -> None:
    for deadline, silence in ((10.0, 0.05), (0.05, 10.0)):
        stub = make_stub()
        stub.acts = [hang]
        with pytest.raises(TimeoutError):
            line.exchange(stub.url, GET, time.monotonic() + deadline, most=9, silence=silence)
        assert len(stub.requests) <= 1
    with pytest.raises(TimeoutError):
        line.exchange(make_stub().url, GET, time.monotonic() - 1, most=9)


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffff\r\n",
        b"Content-Type: multipart/x; boundary*=idna''x\r\nContent-Length: 0\r\n\r\n",
        b"Content-Type: multipart/x; boundary*=\0''x\r\nContent-Length: 0\r\n\r\n",
        b"Content-Type: multipart/x; x*%b*=x\r\nContent-Length: 0\r\n\r\n" % (b"1" * 5000),
    ],
)
@pytest.mark.parametrize("may_cut_short", [False, True])
def test_what_can_not_be_taken_apart_is_an_error_of_its_own(
    make_stub: MakeStub, line: Line, fields: bytes, may_cut_short: bool
) -> None:
    stub = make_stub()
    stub.acts = [raw(b"HTTP/1.1 200 OK\r\n" + fields)]
    with pytest.raises(MalformedAnswer):
        line.exchange(stub.url, GET, soon(), most=9, may_cut_short=may_cut_short)
    stub.values[b"k"] = b"v"
    assert line.exchange(stub.url, GET, soon(), most=9).body == b"v"


@pytest.mark.parametrize(
    "start",
    [
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"100 Continue\r\n\r\n",
    ],
)
def test_an_answer_is_bounded_whatever_it_says_of_its_length(
    make_stub: MakeStub, line: Line, start: bytes
) -> None:
    """A chunk of size -1 has all that comes; trailers and interim answers are skipped."""
    sent = 0

    def flood(handler: Any) -> None:
        nonlocal sent
        again = b"HTTP/1.1 100 Continue\r\n\r\n" if start.startswith(b"100") else b"X: y\r\n"
        handler.wfile.write(b"HTTP/1.1 " + start)
        piece = again * (64 << 10)
        while sent < 64 << 20:
            handler.wfile.write(piece)
            sent += len(piece)

    stub = make_stub()
    stub.acts = [flood]
    with pytest.raises(HTTPException, match="impossible length"):
        line.exchange(stub.url, GET, soon(), most=9)
    stub.stop()
    assert sent < 64 << 20


def test_small_chunks_make_a_long_answer(make_stub: MakeStub, line: Line) -> None:
    stub = make_stub()
    body = b"400\r\n%b\r\n" % bytes(1024) * 4096 + b"0\r\n\r\n"
    stub.acts = [raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)]
    assert len(line.exchange(stub.url, GET, soon(), most=4 << 20).body) == 4 << 20


@pytest.mark.parametrize(
    "server",
    ["http://a..b:80", "http://h:99999", "http://:80", "http://[]:80", "ftp://h:1", "h:1", ""],
)
def test_what_is_no_address(line: Line, server: str) -> None:
    with pytest.raises(OSError, match="no such address"):
        line.exchange(server, GET, soon(), most=9)


def test_what_is_cut_ends_and_nothing_begins_after_it(make_stub: MakeStub, line: Line) -> None:
    stub = make_stub()
    stub.acts = [hang]
    threading.Timer(0.05, line.cut).start()
    with pytest.raises((OSError, HTTPException)):
        line.exchange(stub.url, GET, soon(), most=9)
    with pytest.raises(ConnectionAbortedError, match="stopping"):
        line.exchange(stub.url, GET, soon(), most=9)
    assert len(stub.requests) <= 1
