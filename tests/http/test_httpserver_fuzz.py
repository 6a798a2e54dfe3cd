"""httpserver under random input and random streams: nothing escapes, hangs, or is out of order."""

from __future__ import annotations

import json
import logging
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.http.limits import Limits
from conure.http.request import Request, decode_form
from conure.http.server import HTTPServer
from conure.http.stream import Stream
from tests.lab.httpdriver import (
    Stepped,
    Streamer,
    bytewise,
    connect,
    dechunk,
    exchange,
    play,
    read_all,
    serving,
    statuses,
    without_dates,
)

LIMITS = Limits(max_target_bytes=150, max_header_bytes=250, max_body_bytes=200)
GOOD = b"GET /kv?key=a HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SEEDS = [
    GOOD,
    b"PUT /kv?key=a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    CHUNKED + b"3;a\r\nabc\r\n0\r\nX: a\r\n\r\n",
    CHUNKED + b"1\r\na\r\n0A\r\n0123456789\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\nAccept: application/json\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nX: 1\r\nx: 2\r\nConnection: close\r\n\r\n",
    b"GET http://a/b%20c?d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nDELETE /kv HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"GET /kv HTTP/1.1\r\nX-Request-Id: one two\r\nHost: a\r\nContent-Length: 1\r\n\r\n!",
]
SPECIAL = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"%", b"\xff", b"\r\n\r\n"),
    *(b"0", b"1", b"f", b"_", b"+", b"-", b"x" * 160, b"X: y\r\n", b"Content-Length: 4\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n", b"HTTP/1.1"),
    *(
        b"X-Request-Id: b\r\n",
        b"Connection: close\r\n",
        b"/",
        b"*",
        b"GET",
        b"0\r\n\r\n",
        b"fffffffffffffffff",
        b"Y" * 300,
        b"Origin: http://b\r\n",
        b"Origin: http://a\r\n",
        b".b",
        b"a.b/",
    ),
]
PAGES = {403, 421}  # refused for the name or the page, after which the connection goes on
KNOWN = {100, 200, 400, 413, 414, 417, 431, 501, 505} | PAGES


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A run of requests, with a few mutations."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 6)))
        middle = draw(
            st.one_of(
                st.sampled_from(SPECIAL),
                st.binary(max_size=4),
                st.just(data[start:stop] * 2),
                st.just(b""),
            )
        )
        data = data[:start] + middle + data[stop:]
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving(limits=LIMITS) as running:
        yield running


@settings(deadline=None, max_examples=400)
@given(data=streams(), places=st.lists(st.integers(0, 2000), max_size=6))
def test_splits_never_change_answers(data: bytes, places: list[int]) -> None:
    """H3; and every answer is one of ours, with no request taken after a refusal (H6)."""
    at_once = play([data], LIMITS)
    assert play(cut(data, places), LIMITS) == at_once
    assert play(bytewise(data), LIMITS) == at_once
    answered = statuses(at_once)
    assert set(answered) <= KNOWN
    assert not any(status >= 400 and status not in PAGES for status in answered[:-1])


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 300), max_size=6))
def test_noise(data: bytes, places: list[int]) -> None:
    assert play(cut(GOOD + data, places), LIMITS) == play([GOOD + data], LIMITS)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=streams(), stop=st.integers(0, 600), leaves=st.booleans())
def test_a_good_request_works_afterwards(
    server: HTTPServer,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    stop: int,
    leaves: bool,
) -> None:
    """Over TCP: an answer or a close, no exception, and the next client is served."""
    with connect(server) as client:
        client.sendall(data[:stop])
        if not leaves:
            client.shutdown(socket.SHUT_WR)
            assert set(statuses(read_all(client))) <= KNOWN
    assert statuses(exchange(server, GOOD)) == [200]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- well-formed requests are understood exactly -------------------------------------------------

TOKEN = st.text("abcXYZ019!#$&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c > 31 and c != 127))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A request as bytes, and what the Recorder says of it."""
    method = draw(st.sampled_from([b"GET", b"PUT", b"DELETE", b"POST", b"OPTIONS", b"BREW"]))
    path = b"/" + draw(st.binary(max_size=10).map(lambda b: b.hex().encode()))
    query = draw(st.text("ab=&%2+;/?:@", max_size=20)).encode()
    target = path + b"?" + query if query or draw(st.booleans()) else path
    if draw(st.booleans()):
        target = b"http://example:8081" + target
    fields = [b"Host: a"]
    for name in draw(st.lists(TOKEN, max_size=4)):
        gap = draw(st.sampled_from([b"", b" ", b"\t "]))
        fields.append(b"X-" + name + b":" + gap + draw(VALUE) + gap)
    body = draw(st.binary(max_size=60))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    sent = b""
    if framing == "length":
        fields.append(b"content-length:%d" % len(body))
        sent = body
    elif framing == "chunked":
        fields.append(b"TRANSFER-ENCODING: chunked")
        for piece in cut(body, draw(st.lists(st.integers(0, 60), max_size=4))):
            sent += b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
        sent += draw(st.sampled_from([b"0\r\n\r\n", b"00;x\r\nA: b\r\n\r\n"]))
    else:
        body = b""
    fields = draw(st.permutations(fields))
    head = method + b" " + target + b" HTTP/1.1\r\n" + b"".join(f + b"\r\n" for f in fields)
    expected = [method.decode(), path.decode(), query.decode(), body.decode("latin-1")]
    return head + b"\r\n" + sent, expected


@settings(deadline=None, max_examples=200)
@given(st.lists(requests(), min_size=1, max_size=5), st.lists(st.integers(0, 3000), max_size=8))
def test_requests_are_understood(run: list[tuple[bytes, list[str]]], places: list[int]) -> None:
    answers = play(cut(b"".join(data for data, _ in run), places))
    bodies = [json.loads(answer.split(b"\r\n\r\n")[1]) for answer in split_answers(answers)]
    assert bodies == [expected for _, expected in run]


def split_answers(answers: bytes) -> list[bytes]:
    return [b"HTTP/1.1 200" + answer for answer in answers.split(b"HTTP/1.1 200")[1:]]


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.binary(max_size=6), st.binary(max_size=12), max_size=5))
def test_forms_are_understood(fields: dict[bytes, bytes]) -> None:
    fields.pop(b"", None)
    form = "&".join(f"{quote_from_bytes(k)}={quote_from_bytes(v, '')}" for k, v in fields.items())
    assert decode_form(form.encode()) == fields
    assert decode_form(form.replace("%20", "+").encode()) == fields


# -- order under late answers (H1, H2) -----------------------------------------------------------


class Late:
    """Answers nothing itself; checks H2 whenever a request comes."""

    def __init__(self) -> None:
        self.unanswered: list[Request] = []
        self.seen: list[bytes] = []

    def handle(self, request: Request) -> None:
        assert len({other.method for other in [*self.unanswered, request]}) == 1
        self.unanswered.append(request)
        self.seen.append(request.query)

    def flush(self) -> bool:
        return False


@pytest.mark.parametrize("seed", range(30))
def test_late_answers_in_any_order(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(seed)
    count = 40
    run = b"".join(
        b"%b /?%d HTTP/1.1\r\nHost: a\r\n\r\n" % (chance.choice([b"GET", b"PUT"]), number)
        for number in range(count)
    )
    application = Late()
    stepped = Stepped(application, Limits(max_pipelined=chance.choice([1, 3, 100])))
    pieces = cut(run, [chance.randrange(len(run)) for _ in range(10)])
    answered = 0
    while answered < count:
        if pieces and chance.random() < 0.5:
            stepped.send(pieces.pop(0))
        elif application.unanswered:
            chosen = chance.randrange(len(application.unanswered))
            request = application.unanswered.pop(chosen)
            request.respond(200, b"<%b>" % request.query)
            answered += 1
            stepped.run()
    answers = without_dates(stepped.end())
    stepped.close()
    expected = [b"%d" % number for number in range(count)]
    assert application.seen == expected
    assert [answer.split(b"<")[1][:-1] for answer in split_answers(answers)] == expected
    assert caplog.records == []


# -- streams (H1, H7) ----------------------------------------------------------------------------

PIECES = st.binary(min_size=1, max_size=40) | st.just(b"x" * 100_000)
STEPS = st.one_of(
    st.tuples(st.just("request"), st.sampled_from([b"/stream", b"/kv", b"/keep"])),
    st.tuples(st.just("send"), st.integers(0, 3), PIECES),
    st.tuples(st.sampled_from(["finish", "abort", "respond"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["run", "round", "read", "stop"])),
)


class Model:
    """What a client must have received: a list of answers, the last ones perhaps not whole."""

    def __init__(self) -> None:
        self.application = Streamer(max_unsent=250_000)
        self.stepped = Stepped(self.application)
        self.requests: list[bytes] = []
        self.sent: list[bytes] = []  # by stream
        self.finished: list[bool] = []
        self.is_cut = False
        self.stopped = False

    def request(self, path: bytes) -> None:
        if not self.stopped:
            self.requests.append(path)
            data = b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"
            with suppress(BrokenPipeError):  # cut
                self.stepped.client.send(data)

    def send(self, number: int, piece: bytes) -> None:
        stream = self.stream(number)
        if stream is not None:
            if stream.send(piece):
                self.sent[number] += piece
            elif not self.finished[number]:
                self.is_cut = True

    def finish(self, number: int) -> None:
        stream = self.stream(number)
        if stream is not None:
            stream.finish()
            self.finished[number] = True

    def abort(self, number: int) -> None:
        stream = self.stream(number)
        if stream is not None:
            self.is_cut |= not stream.over
            stream.abort()

    def respond(self, number: int) -> None:
        if number < len(self.application.kept):
            request = self.application.kept[number]
            if request.answer is None:
                request.respond(200, b"kept")

    def run(self) -> None:
        self.stepped.run()

    def round(self) -> None:
        self.stepped._wake()
        self.stepped.reactor.round()

    def read(self) -> None:
        self.stepped._read()

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.stepped.client.shutdown(socket.SHUT_WR)

    def stream(self, number: int) -> Stream | None:
        streams = self.application.streams
        while len(self.sent) < len(streams):
            self.sent.append(b"")
            self.finished.append(False)
        return streams[number] if number < len(streams) else None

    def end(self) -> None:
        """Finish and answer whatever comes; then nothing is left, neither here nor there."""
        while self.stepped.reactor.connections:
            self.stop()
            self.run()
            for number in range(len(self.application.streams)):
                self.finish(number)
            for number in range(len(self.application.kept)):
                self.respond(number)
        self.read()
        reactor = self.stepped.reactor
        assert reactor.in_flight == reactor.streams == reactor.leaving == 0
        assert reactor.queued == 0
        assert self.application.ended == self.application.streams

    def check(self) -> None:
        """H1, H7: the answers are those to the requests, each whole, up to where it was cut."""
        data: bytes | None = self.stepped.received
        number = 0
        for path in self.requests:
            if not data and self.is_cut:
                return
            assert data is not None
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")
            head, _, data = data.partition(b"\r\n\r\n")
            if path == b"/stream":
                content, data = dechunk(data)
                if data is None:
                    assert self.is_cut
                    assert self.sent[number].startswith(content)
                    return
                assert content == self.sent[number]
                number += 1
            else:
                size = int(head.rpartition(b"Content-Length: ")[2])
                assert path == b"/kv" or data[:size] == b"kept"
                data = data[size:]
        assert data == b""


@settings(deadline=None, max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_streams_among_answers(steps: list[tuple[Any, ...]]) -> None:
    model = Model()
    try:
        for name, *arguments in steps:
            getattr(model, name)(*arguments)
        model.end()
        model.check()
    finally:
        model.stepped.close()
