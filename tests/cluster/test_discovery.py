"""joining.py: a node asks until it is a member, logs what it is told once, and stops at once."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conure.clienttls import ClientTls
from conure.cluster import joining
from conure.cluster.joining import Joiner
from conure.errors import ConureError, Refused, Unavailable
from conure.peers.joins import Applicant
from tests.lab.process import wait_until
from tests.lab.stubserver import MakeStub, StubServer, close, garbage, hang, raw, refuse
from tests.lab.tlsfiles import Issuer

FACTS = {
    "ID": "n2",
    "RaftAddr": "10.0.0.2:7001",
    "HTTPAddr": "http://10.0.0.2:8081",
    "Role": "data",
}

APPLICANT = Applicant("n2", "i2", "data", "10.0.0.2:7001", "http://10.0.0.2:8081")

MakeJoiner = Callable[..., "Case"]


class Case:
    """A joiner in quick motion, and what it needs."""

    def __init__(self, seeds: list[str], tls: ClientTls | None = None) -> None:
        self.seeds = seeds
        self.needed = True
        self.looks = 0
        self.facts: dict[str, Any] = dict(FACTS)
        context = None if tls is None else tls.context
        self.asked: list[tuple[str, Applicant]] = []  # over the Raft port
        self.refusal: ConureError | None = None
        self.gave_up = threading.Event()
        self.joiner = Joiner(
            lambda: self.seeds,
            lambda: self.facts,
            self._look,
            context,
            roads=self,
            applicant=lambda: APPLICANT,
        )

    def join(self, address: str, applicant: Applicant) -> None:
        self.asked.append((address, applicant))
        if self.refusal is not None:
            raise self.refusal

    def give_up_joining(self) -> None:
        self.gave_up.set()

    def _look(self) -> bool:
        self.looks += 1
        return self.needed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "LOOK", 0.01)
    monkeypatch.setattr(joining, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(joining, "LONGEST_PAUSE", 0.04)


@pytest.fixture(name="asking")
def _asking() -> Iterator[MakeJoiner]:
    cases: list[Case] = []

    def make(*seeds: str, tls: ClientTls | None = None) -> Case:
        cases.append(Case(list(seeds), tls))
        cases[-1].joiner.start()
        return cases[-1]

    yield make
    for case in cases:
        case.joiner.stop()
        assert not case.joiner._thread.is_alive()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_it_tells_who_it_is(make_stub: MakeStub, asking: MakeJoiner) -> None:
    stub = make_stub()
    asking(stub.url)
    wait_until(lambda: len(stub.requests) > 0)
    method, target, body = stub.requests[0]
    assert (method, target, json.loads(body)) == ("POST", "/join", FACTS)
    assert stub.headers[0]["Content-Type"] == "application/json"


def test_it_asks_as_long_as_it_is_needed_and_again_when_it_is(
    make_stub: MakeStub, asking: MakeJoiner
) -> None:
    stub = make_stub()
    case = asking(stub.url)
    wait_until(lambda: len(stub.requests) >= 3)  # a yes is not the end: only the log tells
    case.needed = False
    looks = case.looks
    wait_until(lambda: case.looks >= looks + 2)
    asked = len(stub.requests)
    wait_until(lambda: case.looks >= looks + 10)
    assert len(stub.requests) == asked
    case.facts["RaftAddr"] = "10.0.0.3:7001"
    case.needed = True
    wait_until(lambda: len(stub.requests) > asked)
    assert json.loads(stub.requests[-1][2])["RaftAddr"] == "10.0.0.3:7001"


def test_seeds_may_be_found_later_and_change(
    make_stub: MakeStub, asking: MakeJoiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked soon then, however long there were none."""
    monkeypatch.setattr(joining, "FIRST_PAUSE", 60.0)
    first, second = make_stub(), make_stub()
    case = asking()
    time.sleep(0.1)  # a round in which nobody was there to be asked would have passed
    case.seeds = [first.url]
    wait_until(lambda: len(first.requests) > 0)
    case.needed = False
    case.seeds = [second.url]
    looks = case.looks
    wait_until(lambda: case.looks > looks)
    case.needed = True
    wait_until(lambda: len(second.requests) > 0)


def test_seeds_are_asked_in_turn_until_one_agrees(make_stub: MakeStub, asking: MakeJoiner) -> None:
    refusing, agreeing, last = make_stub(), make_stub(), make_stub()
    refusing.acts = [refuse(503, "no leader is known")] * 1000
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    asking(nobody, "http://a..b:80", "http://127.0.0.1:99999", refusing.url, agreeing.url, last.url)
    wait_until(lambda: len(agreeing.requests) >= 2)
    assert len(refusing.requests) >= 2
    assert last.requests == []


def test_a_seed_without_a_scheme_is_asked_over_the_raft_port(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conure.discovery")
    stub = make_stub()
    case = asking("10.0.0.1:7001", stub.url)
    wait_until(lambda: len(case.asked) >= 2)
    assert case.asked[0] == ("10.0.0.1:7001", APPLICANT)
    assert stub.requests == []
    assert lines(caplog) == ["seed 10.0.0.1:7001 has added this node to its cluster"]
    case.refusal = Refused("n2 was not added: remove n2 first")
    wait_until(lambda: len(stub.requests) >= 2)
    case.refusal = Unavailable("no node answers at 10.0.0.1:7001: timed out")
    wait_until(lambda: "timed out" in "".join(lines(caplog)))
    refused = "seed 10.0.0.1:7001 did not add this node: n2 was not added: remove n2 first"
    assert lines(caplog).count(refused) == 1
    case.joiner.stop()
    assert case.gave_up.is_set()


def test_a_seed_in_protected_mode_is_told_with_the_way_on(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    stub = make_stub()
    stub.acts = [refuse(403, "protected mode: other machines are not answered")] * 1000
    asking(stub.url)
    wait_until(lambda: bool(lines(caplog)))
    (line,) = lines(caplog)
    assert "protected mode: other machines are not answered; a member can be asked over" in line
    assert "HOST:PORT without http://" in line


def test_redirects_are_followed_to_the_leader(make_stub: MakeStub, asking: MakeJoiner) -> None:
    follower, leader = make_stub(), make_stub()
    follower.leader = leader.url
    asking(follower.url)
    wait_until(lambda: len(leader.requests) >= 2)
    assert json.loads(leader.requests[0][2]) == FACTS
    assert leader.requests[0][1] == "/join"


@pytest.mark.parametrize(
    "location", ["/join", "https://u@127.0.0.1:1/join", "", "http://user@127.0.0.1:1/", "ftp://a:1"]
)
def test_a_redirect_to_elsewhere_is_not_followed(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture, location: str
) -> None:
    stub = make_stub()
    stub.acts = [refuse(307, "", Location=location)] * 1000
    asking(stub.url)
    wait_until(lambda: len(stub.requests) >= 2)
    assert lines(caplog) == [f"seed {stub.url} did not add this node: it answered 307"]


def test_two_that_point_at_each_other(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = make_stub(), make_stub()
    one.leader, two.leader = two.url, one.url
    asking(one.url)
    wait_until(lambda: len(two.requests) >= 4)
    assert lines(caplog) == [f"seed {one.url} did not add this node: it redirects in a circle"]


def test_each_thing_it_is_told_is_logged_once(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stub = make_stub()
    stub.acts = [
        *[refuse(409, "n2 is somebody else\x1b[2J")] * 3, *[close] * 2, *[garbage] * 2,
        *[refuse(200, "OK")] * 3, *[refuse(503, "no leader")] * 2,
    ]  # fmt: skip
    asking(stub.url)
    wait_until(lambda: len(stub.requests) >= 14)
    told = [line.removeprefix(f"seed {stub.url} ") for line in lines(caplog)]
    assert told[0] == "did not add this node: n2 is somebody else[2J"
    assert told[1].startswith("can't be asked: ")
    assert told[2].startswith("can't be asked: SSH-2.0")
    assert told[3:] == [
        "has added this node to its cluster",
        "did not add this node: no leader",
        "has added this node to its cluster",
    ]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "INFO", "INFO", "WARNING", "INFO"]


def test_pauses_grow_up_to_a_bound(
    make_stub: MakeStub, asking: MakeJoiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[float] = []

    def refuse_and_note(handler: Any) -> None:
        moments.append(time.monotonic())
        refuse(503, "no leader")(handler)

    stub = make_stub()
    stub.acts = [refuse_and_note] * 8
    asking(stub.url)
    wait_until(lambda: len(moments) == 8)
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    # Half of each is up to chance, and a busy machine makes them longer, never shorter.
    for pause, longest in zip(pauses, (0.01, 0.02, 0.04, 0.04, 0.04, 0.04, 0.04), strict=True):
        assert pause >= longest * 0.45


def test_stopping_does_not_wait_for_a_pause_or_an_answer(
    make_stub: MakeStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "LOOK", 60.0)
    for act in (hang, refuse(503, "no leader")):
        stub = make_stub()
        stub.acts = [act]
        monkeypatch.setattr(joining, "FIRST_PAUSE", 60.0)
        case = Case([stub.url, stub.url])
        case.joiner.start()
        wait_until(partial(has_been_asked, stub))
        started = time.monotonic()
        case.joiner.stop()
        assert time.monotonic() - started < 5
        assert not case.joiner._thread.is_alive()


def has_been_asked(stub: StubServer) -> bool:
    return len(stub.requests) >= 1


def test_stopping_does_not_wait_for_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    released, asked = threading.Event(), threading.Event()

    def resolve(*args: object, **named: object) -> list[Any]:
        asked.set()
        released.wait(20)
        raise OSError("no such name")

    monkeypatch.setattr(joining, "STOP_TIMEOUT", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    case = Case(["http://db1:8081"])
    case.joiner.start()
    assert asked.wait(10)
    case.joiner.stop()
    assert not released.is_set()
    released.set()
    case.joiner._thread.join(10)
    assert not case.joiner._thread.is_alive()


def test_a_seed_that_drips_keeps_nobody_from_the_next_one(
    make_stub: MakeStub, asking: MakeJoiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "LONGEST_EXCHANGE", 0.2)

    def drip(handler: Any) -> None:
        with contextlib.suppress(OSError):  # it has heard enough
            handler.wfile.write(b"HTTP/1.1 503 x\r\nX: ")
            while not handler.server.stub.released.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()

    dripping, agreeing = make_stub(), make_stub()
    dripping.acts = [drip] * 1000
    asking(dripping.url, agreeing.url)
    wait_until(lambda: len(agreeing.requests) >= 2)


def test_a_stranger_that_says_yes_to_anything_is_passed_over(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    stranger, agreeing = make_stub(), make_stub()
    stranger.acts = [refuse(200, "<!doctype html>")] * 1000
    asking(stranger.url, agreeing.url)
    wait_until(lambda: len(agreeing.requests) >= 2)
    assert lines(caplog) == [f"seed {stranger.url} did not add this node: <!doctype html>"]


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffff\r\n",
        b"Content-Type: multipart/x; boundary*=idna''x\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_malformed_answer_ends_nothing(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture, fields: bytes
) -> None:
    caplog.set_level(logging.INFO)
    stub = make_stub()
    stub.acts = [raw(b"HTTP/1.1 503 x\r\n" + fields)] * 1000
    asking(stub.url)
    wait_until(lambda: len(stub.requests) >= 3)
    assert lines(caplog) == [f"seed {stub.url} can't be asked: its answer is malformed"]


def test_a_long_answer_is_not_read_to_its_end(
    make_stub: MakeStub, asking: MakeJoiner, caplog: pytest.LogCaptureFixture
) -> None:
    stub = make_stub()
    stub.acts = [raw(b"HTTP/1.1 503 x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 10_000)] * 1000
    asking(stub.url)
    wait_until(lambda: len(stub.requests) >= 2)
    assert all(len(line) < 5000 for line in lines(caplog))


# -- by https --------------------------------------------------------------------------------------


@pytest.fixture(name="issuer")
def _issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def test_a_seed_is_asked_by_tls(make_stub: MakeStub, asking: MakeJoiner, issuer: Issuer) -> None:
    mine = issuer.issue("n2")
    secure = make_stub(issuer.issue("127.0.0.1").server_context(issuer.file))
    plain = make_stub()
    plain.acts = [refuse(307, "", Location=f"{secure.url}/join")]
    asking(plain.url, tls=ClientTls(issuer.file, mine.cert, mine.key))
    wait_until(lambda: len(secure.requests) > 0)
    assert json.loads(secure.requests[0][2]) == FACTS
    assert secure.headers[0]["Host"] == secure.url.removeprefix("https://")


def test_a_seed_that_can_not_be_trusted_is_told_nothing(
    make_stub: MakeStub, asking: MakeJoiner, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    stub = make_stub(issuer.issue("other.example").server_context())
    secure = make_stub(issuer.issue("127.0.0.1").server_context(issuer.file))
    case = asking(stub.url, tls=ClientTls(issuer.file))
    wait_until(lambda: len(lines(caplog)) == 1)
    case.seeds = [secure.url]
    wait_until(lambda: len(lines(caplog)) == 2)
    first, second = caplog.records
    assert f"seed {stub.url} can't be asked: its certificate bears another name" in first.message
    assert "it asks for a certificate; name one that it takes by --tls-cert" in second.message
    assert {first.levelname, second.levelname} == {"WARNING"}
    assert stub.requests == secure.requests == []


def test_a_seed_never_leads_from_tls_to_plain(
    make_stub: MakeStub, asking: MakeJoiner, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_stub()
    secure = make_stub(issuer.issue("127.0.0.1").server_context())
    secure.acts = [refuse(307, "", Location=f"{plain.url}/join")] * 1000
    asking(secure.url, tls=ClientTls(issuer.file))
    wait_until(lambda: len(secure.requests) >= 2)
    assert lines(caplog) == [f"seed {secure.url} did not add this node: it answered 307"]
    assert plain.requests == []


def test_tls_with_a_silent_seed_ends_with_a_stop(asking: MakeJoiner, issuer: Issuer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        case = asking(f"https://127.0.0.1:{server.getsockname()[1]}", tls=ClientTls(issuer.file))
        with server.accept()[0] as accepted:
            assert accepted.recv(1) == b"\x16"  # it has begun a handshake
            begun = time.monotonic()
            case.joiner.stop()
            assert time.monotonic() - begun < joining.STOP_TIMEOUT
