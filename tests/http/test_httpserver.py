"""httpserver: the rules of HTTP/1.1 by raw sockets, order, limits, and clients that misbehave."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import queue
import re
import resource
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from conure.errors import BadRequest, ConureError, KeyNotFound, NotLeader
from conure.http import connection as connection_module
from conure.http import known as known_module
from conure.http.limits import Limits
from conure.http.request import Body, Request, decode_form, error_body
from conure.http.server import HTTPServer
from conure.net import listener as listener_module
from conure.net import reactor as reactor_module
from tests.lab.httpdriver import (
    Clock,
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

HOST = b"Host: a\r\n"
GET = b"GET /kv?key=a HTTP/1.1\r\n" + HOST + b"\r\n"
PUT = b"PUT /kv?key=a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
SMALL = Limits(max_target_bytes=200, max_header_bytes=300, max_body_bytes=100)


def get(fields: bytes = b"", target: bytes = b"/kv?key=a", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + HOST + fields + b"\r\n"


def chunked(body: bytes, fields: bytes = b"") -> bytes:
    head = b"PUT /kv HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
    return head + fields + b"\r\n" + body


def sized(length: bytes, body: bytes = b"", fields: bytes = b"") -> bytes:
    head = b"PUT /kv HTTP/1.1\r\n" + HOST + b"Content-Length: " + length
    return head + b"\r\n" + fields + b"\r\n" + body


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving() as running:
        yield running


def fail_if_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- the rules of RFC 9112 -----------------------------------------------------------------------

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
    """H6: one answer that says so, then the end; nothing behind the request is read as one."""
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
    """The body is asked for, in its turn behind the answers to earlier requests."""
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


# -- requests and answers ------------------------------------------------------------------------


class Custom:
    """An application of one function."""

    def __init__(self, handle: Callable[[Request], None]) -> None:
        self.handle = handle

    def flush(self) -> bool:
        return False


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


class Late:
    """Answers every request in flush, the last one first."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.requests.append(request)

    def flush(self) -> bool:
        requests, self.requests = self.requests, []
        for request in reversed(requests):
            request.respond(200, b"x" * int(request.query))
        return False


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


# -- order (H1, H2) ------------------------------------------------------------------------------


def test_safety_classes_are_handed_over_one_after_the_other() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(PUT + PUT + GET + GET + PUT + PUT + GET)
    assert statuses(stepped.end()) == [200] * 7
    stepped.close()
    assert application.events == [
        *("PUT /kv", "PUT /kv", "flush"),
        *("GET /kv", "GET /kv", "PUT /kv", "PUT /kv", "flush"),
        *("GET /kv", "flush"),
    ]


def test_answers_keep_their_order_whoever_gives_them() -> None:
    application = Recorder()
    keep = [get(target=b"/keep?%d" % i) for i in range(15)]
    with serving(application) as server, connect(server) as client:
        client.sendall(b"".join(keep) + GET)
        kept = list(application.wait_for(15))
        threads = [
            threading.Thread(target=request.respond, args=(200, request.query))
            for request in reversed(kept)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = read_answers(client, 16)
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers.split(b"HTTP/1.1")[1:]]
    assert bodies[:15] == [b"%d" % i for i in range(15)]


def test_refusal_waits_for_the_answers_before_it() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep") + b"nonsense\r\n\r\n")
        (request,) = application.wait_for(1)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        request.respond(200)
        assert statuses(read_all(client)) == [200, 400]


def test_requests_behind_an_unanswered_one_wait_in_bounded_memory() -> None:
    """H5: with max_pipelined unanswered nothing more is taken, and soon nothing more is read."""
    application = Recorder()
    stepped = Stepped(application, Limits(max_pipelined=4))
    run = b"".join(get(target=b"/keep?%d" % i) for i in range(10))
    stepped.send(run)
    assert len(application.kept) == 4
    for _ in range(10):
        stepped.send(get(b"X: " + b"a" * 30000 + b"\r\n"))
    (connection,) = connections_of(stepped.reactor)
    assert len(connection.buffer) < 140_000
    answered = 0
    while answered < 10:
        for request in application.kept[answered:]:
            request.respond(200)
            answered += 1
        stepped.run()
    assert statuses(stepped.end()) == [200] * 20
    stepped.close()


def test_half_closed_client_gets_all_its_answers() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(PUT + GET + get(target=b"/keep") + PUT + GET)
        client.shutdown(socket.SHUT_WR)
        (request,) = application.wait_for(1)
        request.respond(200)
        assert statuses(read_all(client)) == [200] * 5


def test_one_answer_counts(caplog: pytest.LogCaptureFixture) -> None:
    def handle(request: Request) -> None:
        request.respond(200, b"first")
        request.respond(200, b"second")

    with serving(Custom(handle)) as server:
        answers = exchange(server, GET + GET)
    assert answers.count(b"first") == 2
    assert b"second" not in answers
    assert "answered twice" in caplog.text


# -- clients that misbehave (H4, H5) -------------------------------------------------------------


def reset(client: socket.socket) -> None:
    """Close with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_disconnects_disturb_nobody(
    leave: Callable[[socket.socket], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server, connect(server) as other:
        for stop in range(len(PUT)):
            client = connect(server)
            client.sendall(PUT[:stop])
            leave(client)
            if stop % 10 == 0:
                other.sendall(GET)
                read_answers(other, 1)
        wait_until(lambda: server.connections_open == 1)
    fail_if_logged(caplog)


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_answer_to_a_client_that_went_away(
    leave: Callable[[socket.socket], None], caplog: pytest.LogCaptureFixture
) -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(target=b"/keep") + get(target=b"/keep"))
        kept = application.wait_for(2)
        leave(client)
        for request in kept:
            request.respond(200, b"too late")
        wait_until(lambda: server.connections_open == 0)
        assert statuses(exchange(server, GET)) == [200]
    fail_if_logged(caplog)


def test_client_that_never_reads_holds_up_nobody() -> None:
    """Its answers wait in bounded memory; the others are served meanwhile."""
    with serving() as server, connect(server) as lazy:
        lazy.sendall(get(target=b"/big?size=900000") * 100)
        for _ in range(50):
            assert statuses(exchange(server, GET)) == [200]
        assert server.requests < 50 + 30
        received = 0
        while received < 100 * 900_000:
            received += len(lazy.recv(1 << 20))
        assert server.requests == 50 + 100


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    "beginning", [b"GE", PUT[:-1], PUT[:-3], chunked(b"3\r\nab"), GET + b"GET ", PUT + PUT[:-1]]
)
def test_slow_request_is_ended(clock: Clock, beginning: bytes) -> None:
    """The time runs from the request's first byte, not from its last."""
    stepped = Stepped(Recorder())
    clock.sleep(stepped, 100)
    stepped.send(beginning[:-1])
    clock.sleep(stepped, 20)
    stepped.send(beginning[-1:])
    clock.sleep(stepped, 9)
    assert 408 not in statuses(stepped.received)
    clock.sleep(stepped, 2)
    assert statuses(stepped.received)[-1] == 408
    clock.sleep(stepped, 3)
    assert not stepped.reactor.connections
    assert stepped.front.refused == {408: 1}
    stepped.close()


def test_idle_connection_is_closed(clock: Clock) -> None:
    stepped = Stepped(Recorder())
    for _ in range(3):
        clock.sleep(stepped, 119)
        stepped.send(GET)
    clock.sleep(stepped, 119)
    assert stepped.reactor.connections
    clock.sleep(stepped, 2)
    assert not stepped.reactor.connections
    assert statuses(stepped.received) == [200] * 3
    stepped.close()


def test_waiting_for_the_application_is_not_the_clients_fault(clock: Clock) -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(target=b"/keep") + b"GET ")
    clock.sleep(stepped, 500)
    application.kept[0].respond(200)
    stepped.run()
    clock.sleep(stepped, 20)
    stepped.send(GET[4:])
    assert statuses(stepped.received) == [200, 200]
    stepped.close()


def test_late_answer_can_be_read(clock: Clock) -> None:
    """The time in which a client may read the last answer begins when it was sent."""
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(b"Connection: close\r\n", b"/keep"))
    clock.now += 100
    answering = threading.Thread(target=application.kept[0].respond, args=(200,))
    answering.start()
    answering.join()
    stepped.run()
    clock.sleep(stepped, 1.5)
    assert stepped.reactor.connections
    stepped.send(GET)
    clock.sleep(stepped, 1)
    assert not stepped.reactor.connections
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_client_that_writes_on_after_the_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_LINGER_BYTES", 1000)
    stepped = Stepped(Recorder())
    stepped.send(get(b"Connection: close\r\n"))
    stepped.send(bytes(1000))
    assert stepped.reactor.connections
    stepped.send(bytes(1))
    assert not stepped.reactor.connections
    stepped.close()


def test_client_that_reads_nothing_is_cut_off(clock: Clock) -> None:
    """Reading a little is enough to be kept; reading nothing for a while isn't."""
    stepped = Stepped(Recorder())

    def wait(seconds: float) -> None:
        clock.now += seconds
        stepped._wake()
        stepped.reactor.round()

    stepped.client.sendall(get(target=b"/big?size=5000000"))
    wait(0)
    for _ in range(4):
        wait(20)
        assert stepped.client.recv(500_000)
        wait(0)
    wait(29)
    assert stepped.reactor.connections
    wait(2)
    assert not stepped.reactor.connections
    stepped.close()


def test_client_that_writes_on_but_reads_nothing_is_cut_off(clock: Clock) -> None:
    stepped = Stepped(Recorder())
    stepped.client.sendall(get(target=b"/big?size=900000"))
    for _ in range(6):
        stepped._wake()
        stepped.reactor.round()
        if stepped.reactor.connections:
            stepped.client.send(b"G")
        clock.now += 10
    assert not stepped.reactor.connections
    stepped.close()


def test_long_answer_leaves_nothing_behind() -> None:
    stepped = Stepped(Recorder())
    for _ in range(2):
        stepped.send(get(target=b"/big?size=5000000"))
        (connection,) = connections_of(stepped.reactor)
        assert connection.interest == reactor_module.IN
        assert connection.pending == 0
    assert stepped.received.count(b"x" * 1000) == 10_000
    stepped.close()


def test_event_of_an_older_connection_is_ignored() -> None:
    """A descriptor's number is used again: its new owner may have nothing to read yet."""
    stepped = Stepped(Recorder())
    (descriptor,) = stepped.reactor.connections
    stepped.reactor._receive([(descriptor, reactor_module.IN)])
    stepped.reactor._receive([(descriptor, select.EPOLLHUP | select.EPOLLERR)])
    stepped.send(GET)
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_reset_while_nothing_is_read() -> None:
    application = Recorder()
    with serving(application) as server:
        client = connect(server)
        client.sendall(get(b"Connection: close\r\n", b"/keep"))
        application.wait_for(1)
        client.sendall(GET)
        (connection,) = connections_of(server.reactor)
        wait_until(lambda: connection.interest == 0)
        reset(client)
        wait_until(lambda: server.connections_open == 0)


def test_too_many_connections() -> None:
    with serving(limits=Limits(max_connections=3)) as server:  # of which one is the reserve
        clients = [connect(server) for _ in range(2)]
        wait_until(lambda: server.connections_open == 2)
        with connect(server) as refused:
            refused.sendall(GET)
            answer = read_all(refused)
        assert statuses(answer) == [503]
        assert b"\r\nRetry-After: 1\r\n" in answer
        clients[0].close()
        wait_until(lambda: server.connections_open == 1)
        assert statuses(exchange(server, GET)) == [200]
        assert server.refused == {503: 1}
        for client in clients:
            client.close()


def test_two_thousand_idle_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4600
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the hard limit for open files is {hard}; this test needs {wanted}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        with serving() as server, ExitStack() as clients:
            idle = [clients.enter_context(connect(server)) for _ in range(2000)]
            wait_until(lambda: server.connections_open == 2000)
            for client in idle[::100]:
                client.sendall(GET)
                assert statuses(read_answers(client, 1)) == [200]
            assert statuses(exchange(server, GET)) == [200]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left_does_not_spin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting pauses, complains once, and goes on when there are descriptors again."""
    tries: list[float] = []
    real = HTTPServer.get_request

    class Exhausted:
        """The listening socket of a process that is out of descriptors."""

        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> tuple[socket.socket, object]:
            tries.append(time.monotonic())
            if len(tries) < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.listener.accept()

    def get_request(self: HTTPServer) -> tuple[socket.socket, object]:
        whole = self.socket
        self.socket = Exhausted(whole)  # type: ignore[assignment]
        try:
            return real(self)
        finally:
            self.socket = whole

    monkeypatch.setattr(HTTPServer, "get_request", get_request)
    with serving() as server:
        assert statuses(exchange(server, GET)) == [200]
    assert tries[3] - tries[0] >= 3 * listener_module._ACCEPT_PAUSE * 0.9
    assert caplog.text.count("can't accept") == 1


# -- errors of the application (H4) --------------------------------------------------------------


def test_exceptions_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    boom = b"PUT /flush-boom HTTP/1.1\r\n" + HOST + b"\r\n"
    with serving() as server:
        assert statuses(exchange(server, GET + get(target=b"/boom") + GET)) == [200, 500, 200]
        assert "boom" in caplog.text
        assert "Traceback" in caplog.text
        assert statuses(exchange(server, PUT + boom + GET)) == [200, 500, 200]
        assert "boom in flush" in caplog.text
        assert statuses(exchange(server, boom + boom)) == [500, 500]
        assert statuses(exchange(server, GET)) == [200]


def test_a_path_can_not_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Late):
        def handle(self, request: Request) -> None:
            raise RuntimeError("boom")

    with serving(Failing()) as server:
        assert statuses(exchange(server, get(target=b"/a%0aforged%1b[2J"))) == [500]
    (record,) = caplog.records
    assert record.getMessage() == r"GET '/a\nforged\x1b[2J' failed"


def test_failed_flush_concerns_its_round_only() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        assert statuses(exchange(server, PUT.replace(b"/kv", b"/flush-boom"))) == [500]
        request.respond(200)
        assert statuses(read_answers(client, 1)) == [200]


def test_unusable_answer_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        request.respond(200, "text for bytes")  # type: ignore[arg-type]
        assert client.recv(1) == b""
        assert statuses(exchange(server, GET)) == [200]
    assert "an unusable answer" in caplog.text


def test_status_without_a_phrase() -> None:
    with serving(Custom(lambda request: request.fail(599, "no such status"))) as server:
        assert exchange(server, GET).startswith(b"HTTP/1.1 599 \r\n")


def test_death_of_the_reactor_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []
    died = threading.Event()

    def on_fatal(error: BaseException) -> None:
        told.append(error)
        died.set()

    def handle(request: Request) -> None:
        raise SystemExit(3)

    with serving(Custom(handle), on_fatal=on_fatal) as server, connect(server) as client:
        client.sendall(GET)
        assert died.wait(10)
        assert isinstance(told[0], SystemExit)
        assert client.recv(1) == b""
        with connect(server) as late:
            assert late.recv(1) == b""
    assert "the reactor ended" in caplog.text


# -- sockets of others ---------------------------------------------------------------------------


def in_reactor(server: HTTPServer, action: Callable[[], None]) -> None:
    """Have something done in the reactor's thread, as by input of a socket that it watches."""
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def act() -> None:
        if ours.recv(1):
            action()
            done.set()

    with ours, theirs:
        server.reactor.register(ours, act)
        theirs.send(b"!")
        assert done.wait(10)
        server.reactor.unregister(ours)


def test_what_is_answered_for_a_watched_socket_leaves_at_once() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        names: list[str] = []

        def act() -> None:
            names.append(threading.current_thread().name)
            request.respond(200)

        in_reactor(server, act)
        assert statuses(read_answers(client, 1)) == [200]
        assert names == ["http-reactor"]
        assert not server.reactor.registered
        assert statuses(exchange(server, GET)) == [200]  # with the descriptor of that socket


def test_watching_begins_before_the_start_and_ends_after_the_end() -> None:
    server = HTTPServer(("127.0.0.1", 0), Recorder())
    ours, theirs = socket.socketpair()
    came = threading.Event()

    def act() -> None:
        if ours.recv(1):
            came.set()

    with ours, theirs:
        server.reactor.register(ours, act)
        theirs.send(b"!")
        server.start()
        assert came.wait(10)
        assert server.drain(10)
        server.reactor.unregister(ours)
        server.reactor.register(ours, came.clear)
        server.reactor.unregister(ours)
    assert came.is_set()


def test_watched_sockets_are_served_while_draining() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        ended: list[bool] = []
        drain = threading.Thread(target=lambda: ended.append(server.drain(10)))
        drain.start()
        wait_until(lambda: server.reactor.draining)
        in_reactor(server, lambda: server.reactor.call_later(lambda: request.respond(200), 0.0))
        assert statuses(read_all(client)) == [200]
        client.close()  # or the other side lingers
        drain.join(10)
        assert ended == [True]


@pytest.mark.parametrize("later", [False, True])
def test_an_action_that_raises_ends_the_reactor_and_is_told(later: bool) -> None:
    told: list[BaseException] = []
    died = threading.Event()

    def on_fatal(error: BaseException) -> None:
        told.append(error)
        died.set()

    def act() -> None:
        ours.recv(1)
        if later:
            server.reactor.call_later(boom, 0.0005)
        else:
            boom()

    def boom() -> None:
        raise RuntimeError("boom")

    ours, theirs = socket.socketpair()
    with ours, theirs, serving(on_fatal=on_fatal) as server:
        server.reactor.register(ours, act)
        theirs.send(b"!")
        assert died.wait(10)
        server.reactor.unregister(ours)
    assert isinstance(told[0], RuntimeError)


def test_what_is_to_be_done_later_follows_the_answers_and_the_next_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_TICK", 10.0)
    application = Recorder()
    events = application.events
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def act() -> None:
        ours.recv(1)
        application.kept[0].respond(200)
        reactor.later.append((0.0, lambda: events.append(f"later {len(stepped.received)}")))

    try:
        reactor.epoll.register(ours.fileno(), select.EPOLLIN)
        reactor.registered[ours.fileno()] = act
        stepped.send(get(target=b"/keep"))
        theirs.send(b"!")
        reactor.round()
        stepped._read()
        assert statuses(stepped.received) == [200]
        assert "later" not in str(events)
        answered = len(stepped.received)
        stepped.client.send(PUT)
        reactor.round()  # doesn't wait
        assert events == ["GET /keep", "flush", "PUT /kv", "flush", f"later {answered}"]
        begun = time.perf_counter()
        reactor.later.append((begun + 0.02, lambda: events.append("in time")))
        reactor.later.append((begun, lambda: events.append("at once")))
        reactor.round()
        assert events[-1] == "at once"
        reactor.round()
        assert events[-1] == "in time"
        assert 0.02 <= time.perf_counter() - begun < 5
        assert not reactor.later
    finally:
        ours.close()
        theirs.close()
        stepped.close()


@pytest.mark.parametrize(
    ("state", "looks"), [("unanswered", 20), ("answered", 10), ("many", 0), ("silent before", 0)]
)
def test_the_reactor_stays_awake_for_what_is_about_to_come(
    monkeypatch: pytest.MonkeyPatch, state: str, looks: int
) -> None:
    """And falls asleep if it doesn't; the next time it does so at once."""
    now = 1000.0
    yields = 0

    def sched_yield() -> None:
        nonlocal now, yields
        now += 1
        yields += 1

    monkeypatch.setattr(reactor_module, "perf_counter", lambda: now)
    monkeypatch.setattr(reactor_module, "sched_yield", sched_yield)
    monkeypatch.setattr(reactor_module, "_TICK", 0.001)
    monkeypatch.setattr(reactor_module, "_AWAKE_FOR_ANSWERS", 20.0)
    monkeypatch.setattr(reactor_module, "_AWAKE_FOR_CLIENTS", 10.0)
    monkeypatch.setattr(reactor_module, "_FEW", 0 if state == "many" else 1)
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    stepped.client.send(get(target=b"/keep" if state == "unanswered" else b"/kv"))
    reactor.round()
    assert reactor.is_prompt
    if state == "silent before":
        reactor.is_prompt = False
    yields = 0
    reactor.round()
    assert yields == looks
    if looks:
        reactor.round()
        assert yields == looks
    stepped.close()


def test_any_thread_has_something_done_later_by_a_reactor_that_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_TICK", 60.0)
    told: queue.Queue[int] = queue.Queue()
    with serving() as server:
        time.sleep(0.05)  # asleep by then, or the test proves less
        server.reactor.call_later(lambda: told.put(threading.get_ident()), 0.0)
        assert told.get(timeout=30) == server.reactor.ident


def test_who_is_sent_little_does_not_wait_for_all_who_are_sent_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one of those is sent something in each round, however many the others are."""
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    clock = Clock(monkeypatch)
    sent: list[int] = []

    def send(pending: int) -> None:
        clock.now += reactor_module._SENDING_TIME / 100
        sent.append(pending)

    sizes = [1 << 20] * 300 + [100] * 50
    reactor.dirty = [SimpleNamespace(pending=size, send=partial(send, size)) for size in sizes]
    reactor._send()
    assert sent[:51] == [1 << 20] + [100] * 50
    assert len(sent) == pytest.approx(101, abs=1)
    assert len(sent) + len(reactor.dirty) == len(sizes)
    reactor.dirty = []
    monkeypatch.undo()
    stepped.close()


@pytest.mark.parametrize("has_body", [False, True])
def test_a_round_is_shared_among_the_connections(
    monkeypatch: pytest.MonkeyPatch, *, has_body: bool
) -> None:
    """Who sends many requests at once gives way to the others after a while."""
    monkeypatch.setattr(reactor_module, "_ROUND_TIME", 6.0)
    clock = Clock(monkeypatch)
    application = Recorder()
    handle = application.handle

    def take_time(request: Request) -> None:
        clock.now += 1.0
        handle(request)

    application.handle = take_time  # type: ignore[method-assign]
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    many = b"POST /many HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1" if has_body else PUT
    stepped.client.send(many * 40)
    theirs.send(get(target=b"/livez"))
    reactor.round()
    told = application.events[: application.events.index("flush")]
    # Half of the round's time, but for looking at the clock with every fourth one only.
    assert 4 <= len(told) <= (5 if has_body else 8)
    assert "GET /livez" in told
    for _ in range(60):
        stepped._wake()
        reactor.round()
    assert sum(event != "flush" for event in application.events) == 41
    theirs.close()
    ours.close()
    stepped.close()


def test_many_requests_hold_up_neither_peers_nor_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "_ROUND", 4)
    stepped = Stepped(Recorder())
    reactor = stepped.reactor
    pairs = [socket.socketpair() for _ in range(11)]
    (peer, other), *clients = pairs
    served: list[int] = []
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.setblocking(False)
        for ours, _ in clients:
            stepped.adopt(ours, ("127.0.0.1", 1))
        reactor.epoll.register(peer.fileno(), select.EPOLLIN)
        reactor.registered[peer.fileno()] = lambda: served.append(len(peer.recv(9)))
        for _, theirs in clients:
            theirs.send(GET)
        for number in range(1, 4):
            other.send(b"!")
            before = reactor.requests
            reactor.round()
            assert len(served) == number
            assert reactor.requests - before <= 4
            for _, theirs in clients[:4]:  # who comes again and again waits for the others
                theirs.send(GET)
        assert [statuses(theirs.recv(1 << 16)) for _, theirs in clients[4:]] == [[200]] * 6
    finally:
        for _, theirs in pairs:
            theirs.close()
        peer.close()
        stepped.close()


def test_runs_that_had_to_wait_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_ROUND", 2)
    stepped = Stepped(Recorder())
    pairs = [socket.socketpair() for _ in range(6)]
    answers = [b""] * len(pairs)
    run = b"".join([get(target=b"/%d" % number) + PUT for number in range(5)])
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.settimeout(10)
            theirs.sendall(run)
            stepped.adopt(ours, ("127.0.0.1", 1))
        while stepped.reactor.requests < 10 * len(pairs):
            before = stepped.reactor.requests
            stepped.reactor.wake()
            stepped.reactor.round()
            assert stepped.reactor.requests - before <= 4
        stepped.reactor.round()
        for number, (_, theirs) in enumerate(pairs):
            answers[number] = read_answers(theirs, 10)
    finally:
        for _, theirs in pairs:
            theirs.close()
        stepped.close()
    for each in answers:
        assert statuses(each) == [200] * 10
        assert re.findall(rb'"GET", "/(.)"', each) == [b"%d" % number for number in range(5)]


# -- the end -------------------------------------------------------------------------------------


def test_drain_finishes_what_is_in_flight() -> None:
    application = Recorder()
    with serving(application) as server:
        idle, busy, partial = connect(server), connect(server), connect(server)
        busy.sendall(get(target=b"/keep"))
        partial.sendall(PUT[:-1])
        (request,) = application.wait_for(1)
        wait_until(lambda: server.bytes_in == len(get(target=b"/keep")) + len(PUT) - 1)
        ended: list[bool] = []
        draining = threading.Thread(target=lambda: ended.append(server.drain(10)))
        draining.start()
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        request.respond(200)
        partial.sendall(PUT[-1:])
        for client in (busy, partial):
            answer = read_all(client)
            assert statuses(answer) == [200]
            assert b"\r\nConnection: close\r\n" in answer
        for client in (idle, busy, partial):
            client.close()
        draining.join(10)
        assert ended == [True]


def test_drain_answers_a_pipeline() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.send(get(target=b"/keep") + GET)
    stepped.reactor.draining = True
    stepped.send(PUT + GET)
    application.kept[0].respond(200)
    stepped.run()
    answers = stepped.received
    assert statuses(answers) == [200, 200, 200, 200]
    assert answers.count(b"Connection: close") == 1
    assert b"Connection: close" in answers.rpartition(b"HTTP/1.1")[2]
    stepped.close()


def test_drain_answers_all_that_came_together() -> None:
    stepped = Stepped(Recorder())
    stepped.reactor.draining = True
    stepped.send(GET + GET + GET)
    assert statuses(stepped.received) == [200, 200, 200]
    assert b"Connection: close" in stepped.received.rpartition(b"HTTP/1.1")[2]
    stepped.close()


def test_drain_cuts_off_what_takes_too_long() -> None:
    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        assert server.drain(0.05) is False
        assert client.recv(1) == b""
        request.respond(200)
        assert server.connections_open == 0


def test_drain_serves_what_was_connected_before() -> None:
    """A client in the backlog is answered, not reset."""
    application = Recorder()
    server = HTTPServer(("127.0.0.1", 0), application)
    with connect(server) as client:
        client.sendall(GET)
        server._accepting = False
        server.start()
        assert server.drain(10)
        assert statuses(read_all(client)) == [200]


def test_drain_ends_though_clients_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        came = []
        monkeypatch.setattr(server, "get_request", lambda: (None, None))
        monkeypatch.setattr(server, "process_request", lambda *_: came.append(1))
        assert server.drain(5)
        assert came


def test_drain_without_start() -> None:
    assert HTTPServer(("127.0.0.1", 0), Recorder()).drain(1)


def test_serve_forever_returns_after_drain() -> None:
    server = HTTPServer(("127.0.0.1", 0), Recorder())
    serving_thread = threading.Thread(target=server.serve_forever)
    serving_thread.start()
    assert statuses(exchange(server, GET)) == [200]
    assert server.drain(1)
    serving_thread.join(10)
    assert not serving_thread.is_alive()


# -- addresses, counters, other people's clients -------------------------------------------------


def test_empty_host_is_both_families() -> None:
    server = HTTPServer(("", 0), Recorder())
    server.start()
    try:
        assert statuses(exchange(server, GET)) == [200]
        if server.address_family == socket.AF_INET6:
            with socket.create_connection(("::1", server.port), 10) as client:
                client.sendall(get(b"Connection: close\r\n"))
                assert statuses(read_all(client)) == [200]
    finally:
        server.drain(0)


def test_port_in_use(server: HTTPServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HTTPServer(("127.0.0.1", server.port), Recorder())


def test_counters() -> None:
    with serving() as server:
        sent = len(exchange(server, GET + PUT))
        exchange(server, b"nonsense\r\n\r\n")
        wait_until(lambda: server.connections_open == 0)
        assert server.connections_accepted == 2
        assert server.requests == 2
        assert server.refused == {400: 1}
        assert server.bytes_in == len(GET + PUT) + len(b"nonsense\r\n\r\n")
        assert server.bytes_out > sent


def test_http_client(server: HTTPServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for body in (b"x", bytes(range(256)) * 4000, iter([b"chunk", b"", b"s"])):
        connection.request("PUT", "/kv?key=a", body)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read().startswith(b'["PUT", "/kv", "key=a"')
    connection.request("HEAD", "/kv")
    response = connection.getresponse()
    assert response.read() == b""
    connection.request("GET", "/big?size=1000000")
    assert connection.getresponse().read() == b"x" * 1_000_000
    connection.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
def test_curl(server: HTTPServer) -> None:
    url = f"http://127.0.0.1:{server.port}/kv?key=a"
    for options in (
        ["-d", "hello", "-X", "PUT", "-H", "Expect: 100-continue"],
        ["-T", "-", "-H", "Transfer-Encoding: chunked"],
        ["-d", "hello", "-X", "PUT", "--http1.0"],
        ["-d", "hello", "-X", "PUT", "-H", "Content-Type: text/x"],
    ):
        done = subprocess.run(
            ["curl", "-sS", "--fail", "--max-time", "10", *options, url],
            input=b"hello",
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout) == ["PUT", "/kv", "key=a", "hello"]


# -- what takes turns, and what a round has time for -----------------------------------------------


class Worker(Recorder):
    """Answers POST /work by steps, of which it notes each, and the rest as a Recorder."""

    def __init__(self, count: int, *, pauses: bool = False) -> None:
        super().__init__()
        self.count = count
        self.pauses = pauses
        self.closed: list[str] = []

    def handle(self, request: Request) -> None:
        if request.method != "POST":
            super().handle(request)
        else:
            request.go_on(self.steps(request), alone=True)

    def steps(self, request: Request) -> Iterator[bool]:
        try:
            for number in range(self.count):
                self.events.append(f"step {number}")
                if request.path == "/boom":
                    raise RuntimeError("boom")
                yield self.pauses
            self.batch.append(request)
        finally:
            self.closed.append(request.path)


def post(path: bytes, body: bytes = b"") -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    return head + body


def rounds(stepped: Stepped, count: int) -> None:
    for _ in range(count):
        stepped._wake()
        stepped.reactor.round()


def test_what_takes_long_takes_turns_with_all_else() -> None:
    """Other clients are answered and watched sockets served between two steps; what follows in
    its own connection waits (H1, H2)."""
    application = Worker(20, pauses=True)
    stepped = Stepped(application)
    reactor = stepped.reactor
    ours, other = socket.socketpair()
    peer, away = socket.socketpair()
    for each in (ours, peer):
        each.setblocking(False)
    served: list[bytes] = []
    try:
        stepped.adopt(ours, ("127.0.0.1", 2))
        reactor.epoll.register(peer.fileno(), select.EPOLLIN)
        reactor.registered[peer.fileno()] = lambda: served.append(peer.recv(9))
        stepped.client.send(post(b"/work", b"x" * 100) + PUT)
        rounds(stepped, 3)
        assert reactor.arriving == 100
        for number in range(5):
            other.send(GET)
            away.send(b"!")
            rounds(stepped, 1)
            assert len(served) == number + 1
            assert statuses(other.recv(1 << 16)) == [200]
        assert application.closed == []
        while reactor.turns:
            rounds(stepped, 1)
        stepped.run()
        assert statuses(stepped.received) == [200, 200]
        assert re.findall(rb'\["(POST|PUT)"', stepped.received) == [b"POST", b"PUT"]
        assert application.events.index("PUT /kv") > application.events.index("step 19")
        assert (reactor.arriving, reactor.in_flight) == (0, 0)
    finally:
        for each in (other, peer, away):
            each.close()
        stepped.close()


def test_steps_of_a_client_that_went_away_are_dropped() -> None:
    application = Worker(1000, pauses=True)
    stepped = Stepped(application)
    stepped.client.send(post(b"/work", b"x" * 100))
    rounds(stepped, 3)
    assert (stepped.reactor.arriving, application.closed) == (100, [])
    (connection,) = connections_of(stepped.reactor)
    connection.close()
    rounds(stepped, 2)
    assert application.closed == ["/work"]
    assert (stepped.reactor.arriving, len(stepped.reactor.turns)) == (0, 0)
    assert stepped.reactor.in_flight == 0  # or such clients would use up the bound for all
    stepped.close()


def test_steps_that_fail_are_answered_500() -> None:
    stepped = Stepped(Worker(3))
    stepped.send(post(b"/boom") + PUT)
    assert statuses(stepped.end()) == [500, 200]
    assert stepped.reactor.arriving == 0
    stepped.close()


def test_a_turn_can_end_with_a_flush() -> None:
    application = Worker(3, pauses=True)
    stepped = Stepped(application)
    stepped.send(post(b"/work"))
    while stepped.reactor.turns:
        rounds(stepped, 1)
    assert application.events == [
        "step 0", "flush", "step 1", "flush", "step 2", "flush", "flush",
    ]  # fmt: skip
    stepped.run()
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_bodies_that_come_all_the_time_starve_nobodys_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    application = Worker(3, pauses=True)
    stepped = Stepped(application)
    stepped.client.send(post(b"/work", b"x"))
    while not stepped.reactor.turns:
        rounds(stepped, 1)
    monkeypatch.setattr(reactor_module, "_ROUND_BYTES", 0)  # as if each round had taken enough
    rounds(stepped, 8)
    stepped.run()
    assert statuses(stepped.received) == [200]
    stepped.close()


def test_bodies_that_are_being_read_share_the_bound_of_those_that_arrive() -> None:
    class Catching(Worker):
        def handle(self, request: Request) -> None:
            try:
                super().handle(request)
            except ConureError as error:
                request.fail(error)

    stepped = Stepped(Catching(1000, pauses=True), Limits(max_arriving_bytes=150))
    ours, other = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    stepped.client.send(post(b"/work", b"x" * 100))
    rounds(stepped, 2)
    other.send(post(b"/work", b"x" * 100))
    rounds(stepped, 2)
    assert statuses(other.recv(1 << 16)) == [503]
    other.close()
    stepped.close()


def test_steps_may_be_handed_over_by_another_thread() -> None:
    done: list[int] = []

    def steps(request: Request) -> Iterator[None]:
        for _ in range(100):
            yield
        done.append(threading.get_ident())
        request.respond(200, b"done")

    application = Recorder()
    with serving(application) as server, connect(server) as client:
        client.sendall(get(target=b"/keep"))
        (request,) = application.wait_for(1)
        request.go_on(steps(request))
        assert statuses(read_answers(client, 1)) == [200]
        assert done == [server.reactor.ident]


def test_a_round_takes_requests_for_so_long_only(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """However long each of them takes; a connection goes on where it was."""
    monkeypatch.setattr(reactor_module, "_ROUND_TIME", 0.006)

    class Slow(Recorder):
        def handle(self, request: Request) -> None:
            super().handle(request)
            clock.now += 0.005

    stepped = Stepped(Slow())
    ours, other = socket.socketpair()
    ours.setblocking(False)
    stepped.adopt(ours, ("127.0.0.1", 2))
    stepped.client.send(b"".join(get(target=b"/%d" % n) for n in range(16)))
    other.send(GET)
    before = clock.now
    taken = 0
    while stepped.reactor.requests < 17:
        rounds(stepped, 1)
        assert stepped.reactor.requests - taken <= 6
        taken = stepped.reactor.requests
        assert clock.now - before < 1
    stepped.run()
    found = re.findall(rb'"GET", "/(\d+)"', stepped.received)
    assert found == [b"%d" % n for n in range(16)]
    assert statuses(other.recv(1 << 16)) == [200]
    other.close()
    stepped.close()


def test_tiny_chunks_are_decoded_in_several_rounds() -> None:
    application = Recorder()
    stepped = Stepped(application)
    stepped.client.setblocking(True)
    sent = chunked(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
    stepped.client.sendall(sent)
    count = 0
    while not application.events:
        rounds(stepped, 1)
        count += 1
        assert count < 20
    assert count >= 5
    stepped.client.setblocking(False)
    stepped.run()
    assert statuses(stepped.received) == [200]
    assert stepped.received.count(b"x") == 5000
    stepped.close()


@pytest.mark.parametrize("split", [False, True])
def test_a_body_may_be_bounded_by_its_path(*, split: bool) -> None:
    """H3: by whatever pieces it comes."""
    limits = Limits(max_body_bytes=100, max_body_bytes_at={"/short": 5})
    for data, expected in [
        (post(b"/short", b"12345"), [200]),
        (post(b"/short", b"123456"), [413]),
        (post(b"/long", b"1" * 100), [200]),
        (post(b"/long", b"1" * 101), [413]),
        (chunked(b"5\r\n12345\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [200]),
        (chunked(b"6\r\n123456\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [413]),
        (chunked(b"3\r\n123\r\n3\r\n123\r\n0\r\n\r\n").replace(b"/kv", b"/short"), [413]),
    ]:
        assert statuses(play(bytewise(data) if split else [data], limits)) == expected


def test_long_answers_are_sent_in_turns_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"x" * 900_000

    class Long(Recorder):
        def handle(self, request: Request) -> None:
            request.respond(200, body)

    monkeypatch.setattr(reactor_module, "_SENT_BYTES", 100_000)
    stepped = Stepped(Long())
    stepped.client.send(GET * 2)
    rounds(stepped, 1)
    (connection,) = connections_of(stepped.reactor)
    first = connection.out[0]
    assert isinstance(first, memoryview)
    assert first.obj is body
    assert len(connection.out) == 3
    assert connection.out[2] is body
    assert stepped.reactor.leaving == connection.pending == sum(map(len, connection.out))
    stepped.run()
    assert statuses(stepped.received) == [200] * 2
    assert stepped.received.count(body[:1000]) == 1800
    assert (stepped.reactor.leaving, connection.pending) == (0, 0)
    stepped.close()


@pytest.mark.parametrize("sizes", [[], [0], [5, 0, 7], [100_000, 0, 300_000, 1]])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_body_may_have_pieces(sizes: list[int], method: bytes) -> None:
    class Pieces(Recorder):
        def handle(self, request: Request) -> None:
            request.respond(200, Body([b"%d" % (n % 10) * size for n, size in enumerate(sizes)]))

    stepped = Stepped(Pieces())
    stepped.send(GET.replace(b"GET", method) * 2)
    head, _, rest = without_dates(stepped.received).partition(b"\r\n\r\n")
    assert f"Content-Length: {sum(sizes)}".encode() in head
    whole = b"".join(b"%d" % (n % 10) * size for n, size in enumerate(sizes))
    assert rest.startswith(b"HTTP/1.1" if method == b"HEAD" else whole + b"HTTP/1.1")
    assert stepped.reactor.leaving == 0
    stepped.close()


def test_reads_are_taken_one_by_one_while_much_waits_for_clients() -> None:
    application = Recorder()
    stepped = Stepped(application, Limits(max_leaving_bytes=100_000))
    stepped.reactor.leaving = 60_000
    stepped.client.send(get(target=b"/keep") * 8)
    for number in range(3):
        rounds(stepped, 3)
        assert len(application.kept) == number + 1
        application.kept[-1].respond(200, b"one")
    stepped.reactor.leaving -= 60_000
    rounds(stepped, 3)
    assert len(application.kept) > 4
    stepped.close()
