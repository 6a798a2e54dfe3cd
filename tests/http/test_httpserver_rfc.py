"""The HTTP server held to RFC 9112; requests and answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import cast

import pytest

from conure.errors import BadRequest, ConureError, KeyNotFound, NotLeader
from conure.http import known as known_module
from conure.http.limits import Limits
from conure.http.request import Request, decode_form, error_body
from conure.http.server import HTTPServer
from conure.net import reactor as reactor_module
from tests.lab.httpapps import (
    GET,
    HOST,
    PUT,
    Custom,
    Late,
    chunked,
    fail_if_logged,
    get,
    rounds,
)
from tests.lab.httpdriver import (
    Recorder,
    Stepped,
    bytewise,
    connect,
    connections_of,
    exchange,
    play,
    read_all,
    read_answers,
    serving,
    statuses,
    wait_until,
    without_dates,
)

SMALL = Limits(max_target_bytes=200, max_header_bytes=300, max_body_bytes=100)


def sized(length: bytes, body: bytes = b"", fields: bytes = b"") -> bytes:
    head = b"PUT /kv HTTP/1.1\r\n" + HOST + b"Content-Length: " + length
    return head + b"\r\n" + fields + b"\r\n" + body


REFUSED = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (get(b"Host: a\r\n"), 400),
    "host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "host with a slash": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "method too long": (b"G" * 33 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "version 2.0": (get(version=b"HTTP/2.0"), 505),
    "version 1.2": (get(version=b"HTTP/1.2"), 505),
    "version 0.9": (get(version=b"HTTP/0.9"), 505),
    "version of two digits": (get(version=b"HTTP/1.10"), 400),
    "version in small letters": (get(version=b"http/1.1"), 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "two spaces before the target": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces behind the target": (b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space at the end": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "space at the start": (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab for a space": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "method not a token": (b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "method empty": (b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /kv?key=a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "NUL in the target": (get(target=b"/\0"), 400),
    "bare CR in the target": (get(target=b"/\r"), 400),
    "line feed in the target": (get(target=b"/\n"), 400),
    "DEL in the target": (get(target=b"/\x7f"), 400),
    "a line end and a field in the target": (get(target=b"/\r\nX:"), 400),
    "target without a slash": (get(target=b"kv"), 400),
    "octets above ASCII in the query": (get(target=b"/?k=\xff"), 400),
    "text above ASCII in the path": (get(target="/\u00e4".encode()), 400),
    "fragment in the target": (get(target=b"/kv#top"), 400),
    "host with two ports": (b"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400),
    "host with a port beyond all ports": (b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
    "host with half a bracket": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    "host with a name in brackets": (b"GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", 400),
    "host with a bad escape": (b"GET / HTTP/1.1\r\nHost: %zz\r\n\r\n", 400),
    "host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "absolute form with two ports": (get(target=b"http://a:1:2/kv"), 400),
    "absolute form with a port only": (get(target=b"http://:80/kv"), 400),
    "asterisk for GET": (get(target=b"*"), 400),
    "absolute form of another scheme": (get(target=b"ftp://a/kv"), 400),
    "absolute form with a user": (get(target=b"http://u@a/kv"), 400),
    "absolute form without an authority": (get(target=b"http:///kv"), 400),
    "bad escape in the path": (get(target=b"/%zz"), 400),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "CONNECT with a path": (b"CONNECT /kv HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare CR in a field": (get(b"X: a\rb\r\n"), 400),
    "NUL in a field": (get(b"X: a\0b\r\n"), 400),
    "control character in a field": (get(b"X: a\x01b\r\n"), 400),
    "DEL in a field": (get(b"X: a\x7fb\r\n"), 400),
    "folded field": (get(b"X: a\r\n b\r\n"), 400),
    "folded first field": (b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400),
    "space before the colon": (get(b"X : a\r\n"), 400),
    "tab before the colon": (get(b"X\t: a\r\n"), 400),
    "field without a colon": (get(b"X\r\n"), 400),
    "field without a name": (get(b": a\r\n"), 400),
    "field name not a token": (get(b"X(: a\r\n"), 400),
    "field name not ASCII": (get(b"X\xe9: a\r\n"), 400),
    "length and chunks": (sized(b"3", b"abc", b"Transfer-Encoding: chunked\r\n"), 400),
    "chunks and length": (chunked(b"0\r\n\r\n", b"Content-Length: 3\r\n"), 400),
    "two differing lengths": (sized(b"3", b"abc", b"Content-Length: 4\r\n"), 400),
    "two equal lengths": (sized(b"3", b"abc", b"Content-Length: 3\r\n"), 400),
    "listed lengths": (sized(b"3, 3", b"abc"), 400),
    "length +5": (sized(b"+5", b"abcde"), 400),
    "length -1": (sized(b"-1"), 400),
    "length 0x10": (sized(b"0x10"), 400),
    "length 1_0": (sized(b"1_0"), 400),
    "length 1.0": (sized(b"1.0"), 400),
    "length empty": (sized(b""), 400),
    "length with a space": (sized(b"1 0"), 400),
    "length in superscript": (sized("\u00b3".encode("latin-1")), 400),
    "length in Arabic digits": (sized("\u0663".encode()), 400),
    "length beyond all bounds": (sized(b"9" * 5000), 413),
    "length just over the limit": (sized(b"%d" % (Limits().max_body_bytes + 1)), 413),
    "gzip": (get(b"Transfer-Encoding: gzip\r\n"), 501),
    "gzip, chunked": (get(b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    "chunked, gzip": (get(b"Transfer-Encoding: chunked, gzip\r\n"), 501),
    "identity": (get(b"Transfer-Encoding: identity\r\n"), 501),
    "chunked twice": (get(b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    "chunked in two fields": (chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"), 400),
    "coding empty": (get(b"Transfer-Encoding:\r\n"), 400),
    "coding with a vertical tab": (get(b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    "chunks in 1.0": (
        get(b"Transfer-Encoding: chunked\r\n", version=b"HTTP/1.0") + b"0\r\n\r\n",
        400,
    ),
    "chunk size empty": (chunked(b"\r\n"), 400),
    "chunk size not hexadecimal": (chunked(b"g\r\n"), 400),
    "chunk size 0x3": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size +3": (chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size -3": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size 1_0": (chunked(b"1_0\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with a space before": (chunked(b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with a space behind": (chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size overflow": (chunked(b"1" + b"0" * 16 + b"\r\n"), 400),
    "chunk size over the limit": (chunked(b"fffffffffffffff\r\n"), 413),
    "chunks over the limit": (chunked(b"80000\r\n" + bytes(0x80000) + b"\r\n80001\r\n"), 413),
    "chunk line ends in LF": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "chunk data too long": (chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk data ends in LF": (chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "chunk line without end": (chunked(b"3;" + b"x" * 5000), 400),
    "chunk extension with a control": (chunked(b"3;\0\r\nabc\r\n0\r\n\r\n"), 400),
    "too many chunk extensions": (
        chunked((b"1;" + b"x" * 4000 + b"\r\na\r\n") * 5 + b"0\r\n\r\n"),
        400,
    ),
    "trailer malformed": (chunked(b"0\r\nX : a\r\n\r\n"), 400),
    "trailer folded": (chunked(b"0\r\nX: a\r\n b\r\n\r\n"), 400),
    "trailer ends in LF": (chunked(b"0\r\nX: a\n\r\n\r\n"), 400),
    "trailer too long": (chunked(b"0\r\nX: " + b"a" * 40000), 431),
    "another expectation": (sized(b"3", b"abc", b"Expect: 200-ok\r\n"), 417),
    "target too long": (get(target=b"/" + b"a" * 65536), 414),
    "request line without end": (b"GET /" + b"a" * 66000, 414),
    "header too long": (get(b"X: " + b"a" * 32768 + b"\r\n"), 431),
    "header without end": (b"GET / HTTP/1.1\r\nX: " + b"a" * 33000, 431),
    "too many fields": (get(b"X: a\r\n" * 100), 431),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(
    server: HTTPServer, data: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """H6: one answer that says so, then the end; nothing after the request is read as one."""
    answers = exchange(server, GET + data + GET)
    assert statuses(answers) == [200, status]
    refused = answers[answers.rfind(b"HTTP/1.1 %d " % status) :]
    head, _, body = refused.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert body.endswith(b"\n")
    assert body.count(b"\n") == 1
    fail_if_logged(caplog)


ACCEPTED = {
    "plain": (GET, ["GET", "/kv", "key=a", ""]),
    "no query": (get(target=b"/"), ["GET", "/", "", ""]),
    "query empty": (get(target=b"/?"), ["GET", "/", "", ""]),
    "two question marks": (get(target=b"/a?b?c"), ["GET", "/a", "b?c", ""]),
    "escaped path": (get(target=b"/%6bv%2f"), ["GET", "/kv/", "", ""]),
    "plus in the path": (get(target=b"/a+b"), ["GET", "/a+b", "", ""]),
    "absolute form": (get(target=b"http://b:80/kv?key=a"), ["GET", "/kv", "key=a", ""]),
    "absolute form, capitals": (get(target=b"HTTP://b/kv"), ["GET", "/kv", "", ""]),
    "absolute form without a path": (get(target=b"http://b"), ["GET", "/", "", ""]),
    "absolute form, query only": (get(target=b"http://b?x"), ["GET", "/", "x", ""]),
    "asterisk": (
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        ["OPTIONS", "*", "", ""],
    ),
    "another method": (
        b"M-SEARCH /kv HTTP/1.1\r\n" + HOST + b"\r\n",
        ["M-SEARCH", "/kv", "", ""],
    ),
    "empty line before": (b"\r\n" + GET, ["GET", "/kv", "key=a", ""]),
    "empty lines before": (b"\r\n\r\n\r\n" + GET, ["GET", "/kv", "key=a", ""]),
    "host empty": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", ["GET", "/", "", ""]),
    "host with a port": (b"GET / HTTP/1.1\r\nhOST:[::1]:80\r\n\r\n", ["GET", "/", "", ""]),
    "field with text above ASCII": (get(b"X: caf\xc3\xa9\r\n"), ["GET", "/kv", "key=a", ""]),
    "field with tabs around": (get(b"X:\t a \t\r\n"), ["GET", "/kv", "key=a", ""]),
    "100 fields": (get(b"X: a\r\n" * 99), ["GET", "/kv", "key=a", ""]),
    "body": (PUT, ["PUT", "/kv", "key=a", "abc"]),
    "no length": (b"PUT /kv HTTP/1.1\r\n" + HOST + b"\r\n", ["PUT", "/kv", "", ""]),
    "length zero": (sized(b"0"), ["PUT", "/kv", "", ""]),
    "length with zeros before": (sized(b"0003", b"abc"), ["PUT", "/kv", "", "abc"]),
    "body on GET": (get(b"Content-Length: 3\r\n") + b"abc", ["GET", "/kv", "key=a", "abc"]),
    "body that looks like a request": (
        sized(b"%d" % len(GET), GET),
        ["PUT", "/kv", "", GET.decode()],
    ),
    "chunks": (
        chunked(b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n"),
        ["PUT", "/kv", "", "abc0123456789"],
    ),
    "no chunk": (chunked(b"0\r\n\r\n"), ["PUT", "/kv", "", ""]),
    "chunk with line ends in it": (
        chunked(b"6\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"),
        ["PUT", "/kv", "", "\r\n\r\n\r\n"],
    ),
    "chunk extensions": (
        chunked(b'3 ; a="b"\r\nabc\r\n0;x\r\n\r\n'),
        ["PUT", "/kv", "", "abc"],
    ),
    "trailers": (chunked(b"3\r\nabc\r\n0\r\nX: a\r\nY: b\r\n\r\n"), ["PUT", "/kv", "", "abc"]),
    "Chunked in capitals": (
        b"PUT / HTTP/1.1\r\n" + HOST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n",
        ["PUT", "/", "", ""],
    ),
}


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_is_accepted(server: HTTPServer, data: bytes, expected: list[str]) -> None:
    """The connection goes on afterwards: a second request on it is answered too."""
    answers = exchange(server, data + GET)
    assert statuses(answers) == [200, 200]
    body = answers.split(b"\r\n\r\n")[1].partition(b"HTTP/1.1 200")[0]
    assert json.loads(body) == expected


@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED])
def test_splits_do_not_change_answers(name: str) -> None:
    """H3: byte by byte, and cut anywhere near the front, the answers are the same as at once."""
    data = GET + (REFUSED.get(name) or ACCEPTED[name])[0] + PUT
    if len(data) > 2000:
        pieces = [data[i : i + 999] for i in range(0, len(data), 999)]
    else:
        pieces = bytewise(data)
    at_once = play([data[i : i + 60000] for i in range(0, len(data), 60000)])
    assert statuses(at_once)[0] == 200
    assert play(pieces) == at_once


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x16\x03",
        b" ",
        b"\rG",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        chunked(b"3\n"),
        chunked(b"0\r\nX: a\n"),
    ],
)
def test_hopeless_requests_are_refused_at_once(beginning: bytes) -> None:
    """Not only when they are complete: they may never be."""
    assert statuses(play([beginning])) == [400]


def test_limits_are_exact() -> None:
    fits = SMALL.max_target_bytes - 1
    assert statuses(play([get(target=b"/" + b"a" * fits)], SMALL)) == [200]
    assert statuses(play([get(target=b"/" + b"a" * (fits + 1))], SMALL)) == [414]
    fits = SMALL.max_header_bytes - len(HOST) - len(b"X: \r\n")
    assert statuses(play([get(b"X: " + b"a" * fits + b"\r\n")], SMALL)) == [200]
    assert statuses(play([get(b"X: " + b"a" * (fits + 1) + b"\r\n")], SMALL)) == [431]
    fits = SMALL.max_body_bytes
    assert statuses(play([sized(b"%d" % fits, b"a" * fits)], SMALL)) == [200]
    assert statuses(play([sized(b"%d" % (fits + 1))], SMALL)) == [413]
    assert statuses(play([chunked(b"%x\r\n" % fits + b"a" * fits + b"\r\n0\r\n\r\n")], SMALL)) == [
        200
    ]
    assert statuses(play([chunked(b"%x\r\n" % (fits + 1))], SMALL)) == [413]


@pytest.mark.parametrize(
    ("version", "option", "persists"),
    [
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"Connection: close\r\n", False),
        (b"HTTP/1.1", b"Connection: Upgrade, Close\r\n", False),
        (b"HTTP/1.1", b"Connection: keep-alive\r\n", True),
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"Connection: Keep-Alive\r\n", True),
        (b"HTTP/1.0", b"Connection: keep-alive, close\r\n", False),
    ],
)
def test_persistence(server: HTTPServer, version: bytes, option: bytes, persists: bool) -> None:
    answers = exchange(server, get(option, version=version) + GET)
    assert statuses(answers) == [200, 200] if persists else [200]
    assert (b"Connection: close" in answers) is not persists
    if version == b"HTTP/1.0" and persists:
        assert b"Connection: keep-alive\r\n" in answers


def test_answer_is_complete(server: HTTPServer) -> None:
    head, _, body = exchange(server, GET).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert lines[2:] == [
        b"X-Content-Type-Options: nosniff",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    sent = time.mktime(time.strptime(lines[1].decode(), "Date: %a, %d %b %Y %H:%M:%S GMT"))
    assert abs(sent - time.mktime(time.gmtime())) < 10


def test_head_has_the_length_and_no_body(server: HTTPServer) -> None:
    whole = without_dates(exchange(server, GET.replace(b"GET", b"PUT")))
    answer = without_dates(exchange(server, GET.replace(b"GET", b"HEAD") + GET))
    assert answer.startswith(
        whole.partition(b"\r\n\r\n")[0].replace(b"27", b"28") + b"\r\n\r\nHTTP"
    )
    refused = exchange(server, b"HEAD /kv HTTP/1.1\r\n" + HOST + b"Host: a\r\n\r\n")
    assert statuses(refused) == [400]
    assert refused.endswith(b"\r\n\r\n")


def test_expect_continue(server: HTTPServer) -> None:
    """The body is asked for, in its turn after the answers to earlier requests."""
    with connect(server) as client:
        client.sendall(PUT + sized(b"5", b"", b"Expect: 100-Continue\r\n"))
        answers = read_answers(client, 1)
        while statuses(answers) == [200]:
            answers += client.recv(1000)
        assert statuses(answers) == [200, 100]
        client.sendall(b"hello")
        assert b"hello" in read_answers(client, 1)


def test_expect_continue_is_not_for_everyone(server: HTTPServer) -> None:
    refused = exchange(server, sized(b"99999999", b"", b"Expect: 100-continue\r\n"))
    assert statuses(refused) == [413]
    assert statuses(exchange(server, sized(b"0", b"", b"Expect: 100-continue\r\n"))) == [200]
    old = sized(b"3", b"abc", b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert statuses(exchange(server, old)) == [200]


def test_refused_body_can_be_sent_in_full(server: HTTPServer) -> None:
    """The answer isn't lost to a reset although the client writes on."""
    with connect(server) as client:
        client.sendall(sized(b"3000000") + bytes(3_000_000))
        assert statuses(read_all(client)) == [413]


def test_unfinished_request_leaves_no_trace() -> None:
    """Whatever the byte at which the client stops, nothing is handed over or answered."""
    for request in (GET, PUT, chunked(b"3\r\nabc\r\n0\r\n\r\n"), sized(b"3", b"abc")):
        for stop in range(len(request)):
            application = Recorder()
            stepped = Stepped(application)
            stepped.send(request[:stop])
            assert stepped.end() == b""
            assert application.events == []
            stepped.close()


def test_unfinished_bodies_share_one_bound() -> None:
    limits = Limits(max_body_bytes=1000, max_arriving_bytes=1500)
    head = b"PUT /kv HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n"
    with serving(Recorder(), limits) as server:
        first = socket.create_connection(("127.0.0.1", server.port))
        first.sendall(head + b"x" * 900)
        wait_until(lambda: server.reactor.arriving == 900)
        second = exchange(server, head + b"y" * 900)
        assert statuses(second) == [503]
        assert b"Retry-After: 1\r\n" in second
        wait_until(lambda: server.reactor.arriving == 900)
        first.sendall(b"x" * 100)
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert server.reactor.arriving == 0
        first.sendall(head + b"x" * 900)
        wait_until(lambda: server.reactor.arriving == 900)
        first.close()
        wait_until(lambda: server.reactor.arriving == 0)


@pytest.mark.parametrize("end", ["read", "reset"])
def test_unsent_answers_share_one_bound(end: str) -> None:
    """H5: few bytes that ask for many are answered in bounded memory, whoever reads or not."""
    limits = Limits(max_leaving_bytes=10_000_000)
    stepped = Stepped(Late(), limits)
    stepped.client.send(get(target=b"/?1000000") * 40)
    stepped._wake()
    stepped.reactor.round()
    (connection,) = connections_of(stepped.reactor)
    assert 8_000_000 < stepped.reactor.leaving < 10_000_000
    assert stepped.reactor.leaving == connection.pending
    if end == "reset":
        connection.close()
    else:
        stepped.run()
        # 16 at once, of which 10 fit; the others one by one, each when the one before has left.
        assert sorted(statuses(stepped.received)) == [200] * 34 + [503] * 6
        assert stepped.received.count(b"Retry-After: 1\r\n") == 6
        stepped.send(get(target=b"/?1000000"))
        assert statuses(stepped.received)[-1] == 200
    assert stepped.reactor.leaving == connection.parked == 0
    stepped.close()


def test_what_has_left_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """H5: who reads all but the end of long answers keeps no more of them than is counted."""

    class Long(Recorder):
        def handle(self, request: Request) -> None:
            request.respond(200, b"x" * 900_000)

    monkeypatch.setattr(reactor_module, "_SENT_BYTES", 100_000)
    stepped = Stepped(Long())
    stepped.client.send(GET)
    rounds(stepped, 1)
    (connection,) = connections_of(stepped.reactor)
    kept = []
    while connection.pending:
        (rest,) = connection.out
        whole = cast("bytes", rest.obj if isinstance(rest, memoryview) else rest)
        kept.append(len(whole) / len(rest))
        stepped._read()
        rounds(stepped, 1)
    assert max(kept[:-1]) > 1, "some of it was sent"
    assert max(kept) <= 2
    stepped.close()


def test_a_write_that_was_done_is_not_answered_503() -> None:
    stepped = Stepped(Late(), Limits(max_leaving_bytes=100_000))
    stepped.send(PUT.replace(b"/kv?key=a", b"/?50000") * 10)
    assert statuses(stepped.received) == [200] * 10
    assert stepped.reactor.leaving == 0
    stepped.close()


def test_answers_before_their_turn_count_until_the_client_goes() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(target=b"/keep") + get(target=b"/big?size=100000") * 3)
    assert stepped.reactor.leaving == 300_000
    stepped.client.close()
    (connection,) = connections_of(stepped.reactor)
    connection.close()
    application.kept[0].respond(200, b"x" * 100_000)
    assert stepped.reactor.leaving == 0
    stepped.close()


class TwoParts:
    """Answers GETs in a first flush and the rest in a second one, which waits to be let go."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.go_on = threading.Event()

    def handle(self, request: Request) -> None:
        self.requests.append(request)

    def flush(self) -> bool:
        reads = [request for request in self.requests if request.method == "GET"]
        for request in reads:
            request.respond(200, b"read")
            self.requests.remove(request)
        if reads and self.requests:
            return True
        if self.requests:
            assert self.go_on.wait(10)
        for request in self.requests:
            request.respond(200, b"written")
        self.requests.clear()
        return False


def test_what_one_flush_answers_is_sent_before_the_next() -> None:
    application = TwoParts()
    stepped = Stepped(application)
    clients = []
    for method in (b"PUT", b"GET"):
        client, adopted = socket.socketpair()
        adopted.setblocking(False)
        stepped.adopt(adopted, ("127.0.0.1", 1))
        client.sendall(method + b" /kv HTTP/1.1\r\n" + HOST + b"\r\n")
        clients.append(client)
    writer, reader = clients
    received: list[bytes] = []

    def read() -> None:
        received.append(reader.recv(1000))
        application.go_on.set()

    thread = threading.Thread(target=read)
    thread.start()
    stepped.reactor.round()
    thread.join()
    assert received[0].endswith(b"read")
    assert writer.recv(1000).endswith(b"written")
    for client in clients:
        client.close()
    stepped.close()


def test_what_a_request_knows() -> None:
    seen: list[Request] = []

    def handle(request: Request) -> None:
        seen.append(request)
        request.respond(200, headers=[("X-Name", "v1"), ("Location", "/x")])

    stepped = Stepped(Custom(handle))
    stepped.send(get(b"X: a\r\nAccept: b \r\nx: c\r\n", b"/?k=%00%ff+"))
    assert 0 <= stepped.reactor.now - seen[0].started < 10
    assert b"\r\nX-Name: v1\r\nLocation: /x\r\n" in stepped.end()
    stepped.close()
    (request,) = seen
    assert request.headers.get("x") == "a, c"
    assert request.headers.get("ACCEPT") == "b"
    assert request.headers.get("y", "none") == "none"
    assert "Accept" in request.headers
    assert "y" not in request.headers
    assert request.http_version == "1.1"
    assert request.peer == "127.0.0.1:1"
    assert request.parameters() == {b"k": b"\0\xff "}


def test_requests_share_a_parsed_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered never changes an answer, and takes bounded room."""
    monkeypatch.setattr(known_module, "_KNOWN_TARGETS", 3)
    seen: list[Request] = []

    def handle(request: Request) -> None:
        seen.append(request)
        request.respond(200, b"%d" % len(request.parameters()))

    stepped = Stepped(Custom(handle))
    stepped.send(3 * get(target=b"/%6b?a=1&b=%32"))
    assert [(r.path, r.query) for r in seen] == 3 * [("/k", b"a=1&b=%32")]
    assert seen[0].parameters() == {b"a": b"1", b"b": b"2"}
    seen[0].target.note = "something"
    assert [request.target.note for request in seen] == 3 * ["something"]
    for number in range(10):
        stepped.send(get(target=b"/k?n=%d" % number))
        assert seen[-1].parameters() == {b"n": b"%d" % number}
        assert 0 < len(stepped.front.known.targets) <= 3
    stepped.send(get(target=b"/k?long=" + 1000 * b"x"))
    assert all(len(target) < 1000 for target in stepped.front.known.targets)
    for _ in range(2):  # the target of OPTIONS alone
        stepped.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
        assert seen[-1].path == "*"
    stepped.send(get(target=b"*"))
    assert statuses(stepped.end()) == 16 * [200] + [400]
    stepped.close()


def test_answer_cannot_be_split_by_a_header(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Custom(lambda r: r.respond(200, headers=[("X", "a\r\nSet-Cookie: b")]))) as server:
        assert statuses(exchange(server, GET)) == [500]
    assert "line end" in caplog.text


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (b"", {}),
        (b"a=b", {b"a": b"b"}),
        (b"a", {b"a": b""}),
        (b"a=", {b"a": b""}),
        (b"=a", {b"": b"a"}),
        (b"a=b=c", {b"a": b"b=c"}),
        (b"a=b&&c=d&", {b"a": b"b", b"c": b"d"}),
        (b"a=+%2B%20", {b"a": b" + "}),
        (b"%61=%00%fF%Fe", {b"a": b"\0\xff\xfe"}),
        (b"a=%26%3d", {b"a": b"&="}),
        (b"a=\xff;b", {b"a": b"\xff;b"}),
    ],
)
def test_decode_form(form: bytes, expected: dict[bytes, bytes]) -> None:
    assert decode_form(form) == expected


@pytest.mark.parametrize(
    "form",
    [
        b"a=%",
        b"a=%1",
        b"a=%zz",
        b"a=%+1",
        b"%=a",
        b"a=1&a=2",
        b"a=1&%61=2",
        b"&".join(b"%d" % i for i in range(101)),
    ],
)
def test_decode_form_refuses(form: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_form(form)


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, False),
        ("*/*", False),
        ("text/html, */*", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/problem+json", True),
        ("text/plain, application/json;q=0.5", True),
        ("application/json;q=0", False),
        ("application/json; q=0.0", False),
    ],
)
def test_error_body(accept: str | None, is_json: bool) -> None:
    body, content_type = error_body(404, "no\nsuch thing", accept)
    assert body.endswith(b"\n")
    if is_json:
        assert content_type == "application/problem+json"
        assert json.loads(body) == {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "no such thing",
        }
    else:
        assert (body, content_type) == (b"no such thing\n", "text/plain; charset=utf-8")


def test_error_of_a_file_whose_name_is_no_text() -> None:
    assert error_body(500, "/data/\udcff is full")[0] == b"/data/\\udcff is full\n"
    problem = error_body(500, "/data/\udcff is full", "application/json")[0]
    assert json.loads(problem)["detail"] == "/data/\udcff is full"


def test_decode_form_does_not_repeat_all_of_a_long_name() -> None:
    with pytest.raises(BadRequest) as raised:
        decode_form(b"&".join([b"\0" * 10_000 + b"=1"] * 2))
    assert len(str(raised.value)) < 1000


def test_fail() -> None:
    errors: list[ConureError | int] = [KeyNotFound(), NotLeader(), 405]
    answers: list[bytes] = []

    def handle(request: Request) -> None:
        error = errors[len(answers)]
        if isinstance(error, int):
            request.fail(error, "only GET", [("Allow", "GET")])
        else:
            request.fail(error)

    for _ in errors:
        stepped = Stepped(Custom(handle))
        stepped.send(get(b"Accept: application/json\r\n"))
        answers.append(stepped.end())
        stepped.close()
    assert [statuses(answer)[0] for answer in answers] == [404, 503, 405]
    assert json.loads(answers[0].partition(b"\r\n\r\n")[2])["title"] == "key not found"
    assert b"\r\nRetry-After: 1\r\n" in answers[1]
    assert b"\r\nAllow: GET\r\n" in answers[2]


def test_refusal_in_json(server: HTTPServer) -> None:
    answer = exchange(server, sized(b"99999999", b"", b"Accept: application/json\r\n"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 413
