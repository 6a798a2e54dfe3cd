"""The routes over a backend that does as the test says: batching, redirects, errors, limits."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path

import pytest

from conure.commands import MAX_KEY_BYTES, Acquire, Release, Transaction
from conure.errors import (
    Conflict,
    ConureError,
    DiskFull,
    MemberNotFound,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
)
from conure.http.answers import JSON
from conure.http.server import HTTPServer
from conure.metrics import Registry
from conure.service.backend import Command, WriteReply
from httpapi import PUBLIC, MetricsAPI
from tests.lab.httpservice import FakeBackend, Service

LEADER = NotLeader("10.0.0.9:7001", "n9", "http://10.0.0.9:8081")


def put(key: bytes, value: bytes) -> bytes:
    return b"PUT /kv?key=%b&value=%b HTTP/1.1\r\nHost: x\r\n\r\n" % (key, value)


# -- rounds ----------------------------------------------------------------------------------------


def test_writes_of_a_round_are_one_batch_in_order(service: Service, backend: FakeBackend) -> None:
    delete = b"DELETE /kv?key=b HTTP/1.1\r\nHost: x\r\n\r\n"
    service.converse(put(b"a", b"1") + put(b"b", b"2") + delete + put(b"a", b"3"), 4)
    assert backend.batches == [[(b"a", b"1"), (b"b", b"2"), (b"b", None), (b"a", b"3")]]


def test_reads_of_a_round_share_one_confirmation(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"a": b"1\n", b"b": b"2\n"}
    get = b"GET /kv?key=%b HTTP/1.1\r\nHost: x\r\n\r\n"
    received = service.converse(get % b"a" + get % b"b" + get % b"c", 3)
    assert received.index(b"1\n") < received.index(b"2\n") < received.index(b"key not found")
    assert backend.confirmations == 1
    assert backend.reads == [[b"a", b"b", b"c"]]
    assert b"X-Conure-Last-Contact" not in received


def test_reads_of_a_round_are_answered_although_others_in_it_fail(
    service: Service, backend: FakeBackend
) -> None:
    backend.values, backend.error = {b"a": b"1\n"}, NotLeader()
    fresh = b"GET /kv?key=a HTTP/1.1\r\nHost: x\r\n\r\n"
    stale = b"GET /kv?key=a&stale=true HTTP/1.1\r\nHost: x\r\n\r\n"
    received = service.converse(fresh + stale + fresh + stale, 4)
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert received.count(b"HTTP/1.1 503 ") == 2
    assert backend.reads == [[b"a"]]  # each key once


# -- stale reads -----------------------------------------------------------------------------------


def test_a_stale_read_asks_nobody(service: Service, backend: FakeBackend) -> None:
    backend.values, backend.error = {b"a": b"1"}, NotLeader()
    assert service.request("GET", "/kv?key=a&stale=true").body == b"1"
    assert service.request("GET", "/kv?stale=1&key=a").body == b"1"
    assert service.request("GET", "/kv?key=b&stale=true").status == 404
    assert backend.confirmations == 0
    assert service.request("GET", "/kv?key=a&stale=false").status == 503


@pytest.mark.parametrize(
    ("contact", "shown"), [(0.0, "0"), (0.0121, "13"), (7.0, "7000"), (None, "never")]
)
def test_each_answer_to_a_stale_read_says_when_a_leader_was_heard(
    service: Service, backend: FakeBackend, contact: float | None, shown: str
) -> None:
    backend.values, backend.damaged, backend.contact = {b"a": b"1"}, b"c", contact
    for key, status in (("a", 200), ("b", 404), ("c", 500)):
        for method in ("GET", "HEAD"):
            answer = service.request(method, f"/kv?key={key}&stale=true")
            assert (answer.status, answer.headers["x-conure-last-contact"]) == (status, shown)


@pytest.mark.parametrize(
    ("limit", "contact", "status"),
    [
        ("5s", 5.0, 200), ("5s", 5.001, 503), ("500ms", 0.4, 200), ("500ms", 0.6, 503),
        ("1m30s", 89.0, 200), ("1.5s", 1.6, 503), ("0s", 0.0, 200), ("1h", None, 503),
    ],
)  # fmt: skip
def test_max_stale_bounds_how_long_ago_a_leader_was_heard(
    service: Service, backend: FakeBackend, limit: str, contact: float | None, status: int
) -> None:
    backend.values, backend.contact = {b"a": b"1"}, contact
    answer = service.request("GET", f"/kv?key=a&max_stale={limit}&stale=true")
    assert answer.status == status
    assert "x-conure-last-contact" in answer.headers
    assert bool(backend.reads) == (status == 200)
    if status == 503:
        assert answer.headers["retry-after"] == "1"
        assert b"another server" in answer.body


def test_a_refusal_for_staleness_says_by_how_much(service: Service, backend: FakeBackend) -> None:
    backend.contact = 2.25
    body = service.request("GET", "/kv?key=a&stale=true&max_stale=500ms").body
    assert b"2.250 s ago" in body
    assert b"1.750 s over" in body


class PartialBackend(FakeBackend):
    """Answers a batch piece by piece, from another thread, the last one as of unknown outcome."""

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        done = self.apply(commands)

        def answer() -> None:
            reply(0, 1, done)
            reply(1, len(commands) - 1, done)
            reply(len(commands) - 1, len(commands), OutcomeUnknown("who knows"))

        threading.Thread(target=answer).start()


def test_a_batch_may_be_answered_in_pieces_and_from_any_thread() -> None:
    service = Service(PartialBackend())
    received = service.converse(b"".join(put(b"%d" % n, b"v") for n in range(5)), 5)
    codes = [line.split()[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/")]
    assert codes[0] == b"200"
    # What follows an answer's body begins after it, so look at the statuses in the whole text.
    assert received.count(b"HTTP/1.1 200 ") == 4
    assert received.index(b"HTTP/1.1 504 ") > received.rindex(b"HTTP/1.1 200 ")
    assert b"who knows" in received
    service.close()


def test_one_damaged_page_does_not_take_the_other_reads_with_it(
    service: Service, backend: FakeBackend
) -> None:
    backend.values, backend.damaged = {b"a": b"1", b"c": b"3\n"}, b"b"
    get = b"GET /kv?key=%b HTTP/1.1\r\nHost: x\r\n\r\n"
    received = service.converse(get % b"a" + get % b"b" + get % b"c", 3)
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert received.count(b"HTTP/1.1 500 ") == 1
    assert b"conure.db is corrupt at byte 4096" in received
    assert received.endswith(b"3\n")


# -- errors of the backend -------------------------------------------------------------------------


REQUESTS = [
    pytest.param("PUT", "/kv?key=k&value=v", b"", id="put"),
    pytest.param("DELETE", "/kv?key=k", b"", id="delete"),
    pytest.param("GET", "/kv?key=k", b"", id="get"),
    pytest.param("HEAD", "/kv?key=k", b"", id="head"),
    pytest.param("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1"}', id="join"),
    pytest.param("POST", "/remove", b'{"ID": "n2"}', id="remove"),
    pytest.param("POST", "/leader", b"", id="leader"),
    pytest.param("POST", "/quorum", b'{"size": 3}', id="quorum"),
    pytest.param("POST", "/quorum?dry_run=1", b'{"size": null}', id="dry-quorum"),
    pytest.param("POST", "/join?dry_run=1", b'{"ID": "n2", "RaftAddr": "h:1"}', id="dry-join"),
    pytest.param("POST", "/remove?dry_run=1", b'{"ID": "n2"}', id="dry-remove"),
]


@pytest.mark.parametrize(("method", "target", "body"), REQUESTS)
def test_a_follower_sends_clients_to_the_leader(
    service: Service, backend: FakeBackend, method: str, target: str, body: bytes
) -> None:
    backend.error = LEADER
    answer = service.request(method, target, body, Accept="application/json")
    assert answer.status == 307
    assert answer.headers["location"] == "http://10.0.0.9:8081" + target
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        assert json.loads(answer.body) == {
            "leader": "10.0.0.9:7001",
            "leader_id": "n9",
            "leader_http": "http://10.0.0.9:8081",
        }


@pytest.mark.parametrize(
    "query",
    [
        b"key=a%2Bb+c%00&value=%e4%f6",
        b"value=x&key=a;b=c/d?e",
        b"key=%C3%A4",
        b"key=http://elsewhere/",
    ],
)
def test_a_redirect_keeps_the_query_as_it_was_sent(
    service: Service, backend: FakeBackend, query: bytes
) -> None:
    backend.error = LEADER
    for start in (b"/kv", b"http://anything:1/kv"):
        request = b"PUT %b?%b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv" % (start, query)
        received = service.converse(request, 1)
        assert b"\r\nLocation: http://10.0.0.9:8081/kv?%b\r\n" % query in received


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example\r\nSet-Cookie: x=y\r\nX: ",
        "http://\u20ac",
        "http://h:1/path",
        "http://user@h:1",
        "javascript:alert(1)",
        "//h:1",
    ],
)
def test_no_header_is_made_of_what_is_no_base_url(
    service: Service, backend: FakeBackend, url: str
) -> None:
    """Logs that an older release wrote may hold anything as the address of a leader."""
    backend.error = NotLeader("h:1", "n9", url)
    received = service.converse(b"GET /kv?key=a HTTP/1.1\r\nHost: x\r\n\r\n", 1)
    head, _, _ = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Location" not in head
    assert b"Cookie" not in head


def test_a_base_url_may_end_with_a_slash(service: Service, backend: FakeBackend) -> None:
    backend.error = NotLeader("h:1", "n9", "http://[::1]:8081/")
    received = service.converse(b"GET /kv?key=a HTTP/1.1\r\nHost: x\r\n\r\n", 1)
    assert b"\r\nLocation: http://[::1]:8081/kv?key=a\r\n" in received


@pytest.mark.parametrize(("method", "target", "body"), REQUESTS)
@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        pytest.param(NotLeader(), 503, ("retry-after", "1"), id="no-leader"),
        pytest.param(NotLeader("h:1", "n9", ""), 503, ("retry-after", "1"), id="no-leader-url"),
        pytest.param(Unavailable("no quorum", 7), 503, ("retry-after", "7"), id="no-quorum"),
        pytest.param(OutcomeUnknown("too late"), 504, None, id="outcome-unknown"),
        pytest.param(DiskFull("no space"), 507, None, id="disk-full"),
    ],
)
def test_what_the_backend_says_reaches_the_client(
    service: Service, backend: FakeBackend, error: ConureError, status: int,
    header: tuple[str, str] | None, method: str, target: str, body: bytes,
) -> None:  # fmt: skip
    backend.error = error
    answer = service.request(method, target, body)
    assert answer.status == status
    assert "location" not in answer.headers
    if header:
        assert answer.headers[header[0]] == header[1]
    if method != "HEAD":
        assert answer.body.decode() == f"{error}\n"
        problem = service.request(method, target, body, Accept="application/json")
        assert json.loads(problem.body) == {
            "type": "about:blank",
            "title": error.title,
            "status": status,
            "detail": str(error),
        }


@pytest.mark.parametrize(("method", "target", "body"), REQUESTS)
def test_a_follower_may_pass_requests_on_instead(
    backend: FakeBackend, method: str, target: str, body: bytes
) -> None:
    service = Service(backend, forward=True)
    backend.error = LEADER
    backend.found = Conflict("the leader refuses that")  # of changes of members
    answer = service.request(method, target, body)
    path = target.partition("?")[0]
    if path in ("/join", "/remove", "/leader", "/quorum"):
        assert answer.status == 409
        assert len(backend.changes) == 1
    else:  # what the backend has not passed on by then, it can't
        assert answer.status == 307
        assert backend.passed_on + backend.kept.count(0) == 1
    backend.error = backend.found = NotLeader()
    assert service.request(method, target, body).status == 503
    service.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_follows_to_the_leader_with_method_and_body(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"body")
    leading, following = FakeBackend(), FakeBackend()
    leader, follower = Service(leading), Service(following)
    following.error = NotLeader("h:1", "n9", leader.url)
    target = f"{follower.url}/kv?key=a%2Bb"
    for arguments in (
        ["-X", "PUT", "--data-binary", "body"],
        ["-T", str(tmp_path / "value")],
        ["-X", "PUT", "-H", "Expect: 100-continue", "-d", f"@{tmp_path / 'value'}"],
    ):
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "-L", *arguments, target],
            capture_output=True, check=True, timeout=20,
        )  # fmt: skip
        assert done.stdout == b"OK\n", done
        assert leading.values == {b"a+b": b"body"}
        leading.apply([(b"a+b", None)])
    leading.values = {b"a+b": b"read"}
    done = subprocess.run(["curl", "-s", "-L", target], capture_output=True, check=True, timeout=20)
    assert done.stdout == b"read"
    assert following.values == {}
    leader.close()
    follower.close()


# -- what never reaches the backend ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("PUT", f"/kv?key={'k' * (MAX_KEY_BYTES + 1)}", b"v", 414),
        ("DELETE", f"/kv?key={'%00' * (MAX_KEY_BYTES + 1)}", b"", 414),
        ("PUT", "/kv?key=k", b"v" * 1001, 413),
        ("PUT", "/kv?key=k&value=" + "v" * 1001, b"", 413),
        ("PUT", "/kv", b"v", 400),
        ("PUT", "/kv?key=k&key=k", b"v", 400),
        ("GET", "/kv?key=k&stale=perhaps", b"", 400),
        ("GET", "/kv?key=k&max_stale=5s", b"", 400),
        ("GET", "/kv?key=k&max_stale=5s&stale=false", b"", 400),
        ("GET", "/kv?key=k&stale=true&max_stale=", b"", 400),
        ("GET", "/kv?key=k&stale=true&max_stale=-1s", b"", 400),
        ("GET", "/kv?key=k&stale=true&max_stale=1e3s", b"", 400),
        ("GET", "/kv?key=k&stale=true&stale=true", b"", 400),
        ("POST", "/join", b"[]", 400),
        ("POST", "/join", b'{"ID": "n2"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "Role": "none"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "HTTPAddr": "h:1"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "HTTPAddr": null}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "Role": 1}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "NonVoter": "true"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "Incarnation": "n2"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:1", "ID": "n2"}', 400),
        ("POST", "/join", b'{"ID": 2, "RaftAddr": "h:1"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:0"}', 400),
        ("POST", "/join", b'{"ID": "n2", "RaftAddr": "h:65536"}', 400),
        ("POST", "/join", b'{"RaftAddr": "h:1"}', 400),
        ("POST", "/join", b"", 400),
        ("POST", "/join?dry_run=perhaps", b'{"ID": "n2", "RaftAddr": "h:1"}', 400),
        ("POST", "/join?dry_run=1&dry_run=1", b'{"ID": "n2", "RaftAddr": "h:1"}', 400),
        ("POST", "/join?dry_run=1", b'{"ID": "n2"}', 400),
        ("POST", "/remove", b'{"ID": ""}', 400),
        ("POST", "/remove", b'{"ID": null}', 400),
        ("POST", "/remove", b'{"ID": "n2", "Force": "yes"}', 400),
        ("POST", "/remove", b'{"ID": "n2", "Force": true, "Force": true}', 400),
        ("POST", "/remove?force=yes", b'{"ID": "n2"}', 400),
        ("POST", "/remove?dry_run=", b'{"ID": "n2"}', 400),
        *[
            ("POST", target, body, 400)
            for target in ("/quorum", "/quorum?dry_run=true")
            for body in (
                b"",
                b"3",
                b"{}",
                b'{"size": -1}',
                b'{"size": 1}',
                b'{"size": true}',
                b'{"size": false}',
                b'{"size": "2"}',
                b'{"size": 2.5}',
                b'{"size": 3.0}',
                b'{"size": 1e3}',
                b'{"size": 1001}',
                b'{"size": 9' + b"9" * 5000 + b"}",
                b'{"size": NaN}',
                b'{"Size": 3}',
                b'{"size": 3, "size": 3}',
                b'{"size": 3, "force": true}',
                b'{"size": [3]}',
            )
        ],
        ("POST", "/quorum?dry_run=maybe", b'{"size": 3}', 400),
        ("GET", "/quorum", b"", 405),
        ("POST", "/leader", b'{"ID": ""}', 400),
        ("POST", "/leader", b'{"ID": null}', 400),
        ("POST", "/leader", b'"n2"', 400),
        ("POST", "/leader", b"n2", 400),
        ("GET", "/leader", b"", 405),
        ("POST", "/kv?key=k", b"v", 405),
        ("PUT", "/nowhere", b"v", 404),
    ],
)
def test_a_refused_request_has_changed_nothing(
    service: Service, backend: FakeBackend, method: str, target: str, body: bytes, status: int
) -> None:
    assert service.request(method, target, body).status == status
    assert (backend.batches, backend.confirmations) == ([], 0)
    assert (backend.joins, backend.removed, backend.handed_over) == ([], [], [])
    assert (backend.reads, backend.previews) == ([], [])


def test_the_largest_of_everything_is_taken(service: Service, backend: FakeBackend) -> None:
    key = "%00" * MAX_KEY_BYTES
    assert service.request("PUT", f"/kv?key={key}", b"v" * 1000).status == 200
    assert backend.batches == [[(bytes(MAX_KEY_BYTES), b"v" * 1000)]]


# -- members, health, metrics ----------------------------------------------------------------------


def test_join_hands_over_the_facts(service: Service, backend: FakeBackend) -> None:
    facts: dict[str, object] = {"ID": "n2", "RaftAddr": "[::1]:7001"}
    assert service.request("POST", "/join", json.dumps(facts).encode()).body == b"OK\n"
    facts |= {"HTTPAddr": "http://h-2:8081", "NonVoter": True, "Role": "arbiter", "Extra": None}
    facts |= {"Incarnation": "0123456789abcdef" * 2}
    assert service.request("POST", "/join", json.dumps(facts).encode()).body == b"OK\n"
    assert backend.joins == [
        {"id": "n2", "raft": "[::1]:7001", "http": "", "voter": True, "role": "",
         "incarnation": ""},
        {"id": "n2", "raft": "[::1]:7001", "http": "http://h-2:8081", "voter": False,
         "role": "arbiter", "incarnation": "0123456789abcdef" * 2},
    ]  # fmt: skip


def test_remove_hands_over_the_id(service: Service, backend: FakeBackend) -> None:
    assert service.request("POST", "/remove", b'{"ID": "n.2_x-y"}').body == b"OK\n"
    assert service.request("POST", "/remove?force=true", b'{"ID": "n2"}').body == b"OK\n"
    assert service.request("POST", "/remove", b'{"ID": "n2", "Force": true}').body == b"OK\n"
    forced = ("n2", True)
    assert backend.removed == [("n.2_x-y", False), forced, forced]
    backend.error = MemberNotFound("n3 is no member")
    answer = service.request("POST", "/remove", b'{"ID": "n3"}')
    assert (answer.status, answer.body) == (404, b"n3 is no member\n")


def test_a_removal_that_lowers_the_quorum_size_says_so(
    service: Service, backend: FakeBackend
) -> None:
    backend.note = "the quorum size was lowered"
    answer = service.request("POST", "/remove", b'{"ID": "n2"}')
    assert answer.body == b"OK\nthe quorum size was lowered\n"
    backend.error = LEADER
    backend.found = {"note": "the leader has lowered it"}
    passing = Service(backend, forward=True)
    answer = passing.request("POST", "/remove", b'{"ID": "n2"}')
    assert answer.body == b"OK\nthe leader has lowered it\n"
    backend.found = {"note": "\ud800"}  # a member that lies may say anything that JSON can
    answer = passing.request("POST", "/remove", b'{"ID": "n2"}')
    assert answer.body == b"OK\n\\ud800\n"


def test_quorum_hands_over_the_size(service: Service, backend: FakeBackend) -> None:
    for body in (b'{"size": 3}', b'{"size": 0}', b'{"size": null}', b'{"size": 1000}'):
        assert service.request("POST", "/quorum", body).body == b"OK\n"
    assert backend.resized == [3, 0, 0, 1000]
    assert json.loads(service.request("POST", "/quorum?dry_run=1", b'{"size": 5}').body)["allowed"]
    assert (backend.previews, len(backend.resized)) == ([("resize", 5)], 4)
    backend.error = Conflict("only 2 have caught up")
    answer = service.request("POST", "/quorum", b'{"size": 3}')
    assert (answer.status, answer.body) == (409, b"only 2 have caught up\n")
    backend.error = LEADER
    passing = Service(backend, forward=True)
    backend.found = {}
    assert passing.request("POST", "/quorum", b'{"size": 4}').body == b"OK\n"
    assert backend.changes[-1] == ("resize", {"size": 4})


def test_leader_hands_over(service: Service, backend: FakeBackend) -> None:
    for body in (b"", b"{}", b'{"ID": "n2"}'):
        assert service.request("POST", "/leader", body).body == b"OK\n"
    assert backend.handed_over == ["", "", "n2"]
    backend.error = Conflict("n3 is no voter")
    answer = service.request("POST", "/leader", b'{"ID": "n3"}')
    assert (answer.status, answer.body) == (409, b"n3 is no voter\n")


def test_a_dry_run_tells_and_does_nothing(service: Service, backend: FakeBackend) -> None:
    facts = b'{"ID": "n2", "RaftAddr": "h:1", "NonVoter": true, "Role": "arbiter"}'
    joining = service.request("POST", "/join?dry_run=true", facts)
    removing = service.request("POST", "/remove?dry_run=1", b'{"ID": "n2", "Force": true}')
    assert joining.headers["content-type"] == removing.headers["content-type"] == JSON
    assert json.loads(joining.body) == json.loads(removing.body)
    assert json.loads(joining.body)["tolerates"] == 1
    assert backend.previews == [("join", "n2", False, "arbiter"), ("remove", "n2")]
    assert (backend.joins, backend.removed) == ([], [])
    assert service.request("POST", "/join?dry_run=false", facts).body == b"OK\n"
    backend.error = MemberNotFound("n3 is no member")
    assert service.request("POST", "/remove?dry_run=1", b'{"ID": "n3"}').status == 404


def test_health(service: Service, backend: FakeBackend) -> None:
    assert service.request("GET", "/readyz").body == b"OK\n"
    assert service.request("GET", "/readyz?verbose").body == b"[+] process ok\n[+] leader n1\n"
    backend.checks[1] = ("leader", False, "none is known")
    failing = service.request("GET", "/readyz")
    assert failing.status == 503
    assert failing.body == b"[+] process ok\n[-] leader none is known\n"
    assert service.request("GET", "/livez").status == 200  # it never asks for a quorum
    backend.checks[0] = ("process", False, "disk failed")
    assert service.request("GET", "/livez").status == 503


def test_requests_are_counted_by_route_method_and_code(
    service: Service, backend: FakeBackend
) -> None:
    service.converse(put(b"a", b"1") + put(b"b", b"2") + put(b"a" * 2000, b"3"), 3)
    service.converse(b"DELETE /kv?key=a HTTP/1.1\r\nHost: x\r\n\r\n", 1)
    service.request("GET", "/kv?key=b")
    service.request("GET", "/kv?key=b&stale=true")
    service.request("GET", "/kv?key=c")
    service.request("GET", "/some/path/nobody/serves")
    service.request("BREW", "/kv?key=a")
    backend.error = LEADER
    service.request("GET", "/kv?key=b")
    page = service.request("GET", "/metrics").body.decode()
    for route, method, code, count in (
        ("/kv", "PUT", 200, 2),
        ("/kv", "PUT", 414, 1),
        ("/kv", "DELETE", 200, 1),
        ("/kv", "GET", 200, 2),
        ("/kv", "GET", 404, 1),
        ("/kv", "GET", 307, 1),
        ("other", "GET", 404, 1),
        ("/kv", "other", 405, 1),
    ):
        labels = f'route="{route}",method="{method}",code="{code}"'
        assert f"conure_http_requests_total{{{labels}}} {count}\n" in page
    assert 'conure_http_request_duration_seconds_count{route="/kv",method="PUT"} 3\n' in page


def test_metrics_alone() -> None:
    registry = Registry()
    registry.gauge("conure_test", "A test.").set(5)
    server = HTTPServer(("127.0.0.1", 0), MetricsAPI(registry))
    server.start()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    answers: list[tuple[int, bytes]] = []
    ask: Callable[[str, str], None] = connection.request
    for method, path in (("GET", "/metrics"), ("HEAD", "/metrics"), ("GET", "/kv"),
                         ("DELETE", "/metrics")):  # fmt: skip
        ask(method, path)
        response = connection.getresponse()
        answers.append((response.status, response.read()))
    connection.close()
    assert [status for status, _ in answers] == [200, 200, 404, 405]
    assert b"conure_test 5" in answers[0][1]
    assert answers[1][1] == b""
    assert server.drain(5)


# -- values that are not said --------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
SESSION = b"0123456789abcdef0123456789abcdef"


def put_of(query: bytes, fields: bytes = b"", body: bytes = b"") -> bytes:
    return b"PUT /kv?" + query + b" HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body


@pytest.mark.parametrize("more", [b"", b"&ttl=1h", b"&keepttl=true", b"&cas=1"])
@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"", b""),
        (CHUNKED, b"0\r\n\r\n"),
        (b"Idempotency-Key: a\r\n", b""),
        (b"If-Match: *\r\n" + CHUNKED, b"0\r\n\r\n"),
    ],
)
def test_a_put_without_any_value_is_refused(
    service: Service, backend: FakeBackend, fields: bytes, body: bytes, more: bytes
) -> None:
    backend.values = {b"k": b"kept"}
    answer = service.converse(put_of(b"key=k" + more, fields, body), 1)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"send value= or a body; Content-Length: 0 stores an empty value\n")
    assert backend.values == {b"k": b"kept"}
    assert backend.batches == []


@pytest.mark.parametrize("more", [b"", b"&ttl=1h", b"&keepttl=true", b"&cas=1"])
@pytest.mark.parametrize(
    ("query", "fields", "body"),
    [
        (b"&value=", b"", b""),
        (b"&value=", CHUNKED, b"0\r\n\r\n"),
        (b"", b"Content-Length: 0\r\n", b""),
    ],
)
def test_an_empty_value_that_is_said_is_stored(
    service: Service, backend: FakeBackend, query: bytes, fields: bytes, body: bytes, more: bytes
) -> None:
    backend.values = {b"k": b"before"}
    answer = service.converse(put_of(b"key=k" + query + more, fields, body), 1)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert backend.values == {b"k": b""}


@pytest.mark.parametrize("verb", [b"acquire", b"release"])
@pytest.mark.parametrize(
    ("query", "fields", "body", "value"),
    [
        (b"", b"", b"", None),
        (b"", b"Content-Length: 0\r\n", b"", None),
        (b"", CHUNKED, b"0\r\n\r\n", None),
        (b"&value=", b"", b"", b""),
        (b"", b"Content-Length: 1\r\n", b"v", b"v"),
    ],
)
def test_a_lock_without_a_value_leaves_it_alone(
    service: Service,
    backend: FakeBackend,
    verb: bytes,
    query: bytes,
    fields: bytes,
    body: bytes,
    value: bytes | None,
) -> None:
    service.converse(put_of(b"key=k&" + verb + b"=" + SESSION + query, fields, body), 1)
    ((transaction,),) = backend.batches
    assert isinstance(transaction, Transaction)
    (operation,) = transaction.success
    assert isinstance(operation, Acquire | Release)
    assert operation.value == value


# -- redirects before the body -------------------------------------------------------------------


def early(service: Service, line: bytes, fields: bytes) -> bytes:
    """Return what is answered to a head whose body doesn't come."""
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as client:
        client.sendall(line + b" HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


WRITES = [b"PUT /kv?key=k", b"POST /kv/batch", b"POST /txn", b"POST /session?ttl=1s", b"POST /join"]
COMING = [CHUNKED, b"Expect: 100-continue\r\nContent-Length: 5\r\n"]


@pytest.mark.parametrize("line", WRITES)
@pytest.mark.parametrize("fields", COMING)
def test_a_follower_redirects_before_it_reads_a_body(
    service: Service, backend: FakeBackend, line: bytes, fields: bytes
) -> None:
    backend.error = LEADER
    answer = early(service, line, fields)
    assert answer.startswith(b"HTTP/1.1 307 ")
    target = line.partition(b" ")[2]
    assert b"\r\nLocation: http://10.0.0.9:8081%b\r\n" % target in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert not backend.batches
    assert not backend.joins
    backend.error = NotLeader()
    assert early(service, line, fields).startswith(b"HTTP/1.1 503 ")
    page = service.request("GET", "/metrics").body.decode()
    path = target.decode().partition("?")[0]
    assert f'route="{path}",method="{line[:4].decode().strip()}",code="307"}} 1' in page


def test_reads_and_what_there_is_not_wait_for_the_body(
    service: Service, backend: FakeBackend
) -> None:
    backend.error = LEADER
    for line, status in ((b"PUT /nothing", 404), (b"POST /kv", 405), (b"GET /livez", 200)):
        request = line + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n"
        answer = service.converse(request, 1)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" not in answer


def test_a_leader_and_a_node_that_passes_on_read_the_body(
    service: Service, backend: FakeBackend
) -> None:
    request = put_of(b"key=k", CHUNKED, b"1\r\nv\r\n0\r\n\r\n")
    assert service.converse(request, 1).startswith(b"HTTP/1.1 200 ")
    assert backend.values == {b"k": b"v"}
    backend.error = LEADER
    service = Service(backend, forward=True)
    backend.batches.clear()
    assert service.converse(request + b"", 1).startswith(b"HTTP/1.1 307 ")
    assert backend.batches == [[(b"k", b"v")]]
    empty = put_of(b"key=k", CHUNKED, b"0\r\n\r\n")
    assert service.converse(empty, 1).startswith(b"HTTP/1.1 400 ")
    assert len(backend.batches) == 1
    service.close()


# -- web pages -----------------------------------------------------------------------------------


def test_no_read_changes_anything(service: Service, backend: FakeBackend) -> None:
    backend.values = {b"k": b"v"}
    revision = backend.store.applied_index
    for path, methods in service.api._routes.items():
        for method in methods.keys() & {"GET", "HEAD"}:
            for query in ("", "?key=k", "?prefix=", f"?id={SESSION.decode()}"):
                if path != "/watch" or method == "HEAD":
                    service.request(method, path + query)
    assert not backend.batches
    assert not backend.joins
    assert not backend.removed
    assert not backend.handed_over
    assert backend.store.applied_index == revision


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/livez", "/readyz"])
def test_public_pages_may_be_read_by_any_page(service: Service, path: str) -> None:
    assert service.request("GET", path, Origin="http://evil.example").status == 200


def test_nothing_else_is_public(service: Service, backend: FakeBackend) -> None:
    for path, methods in service.api._routes.items():
        for method in methods:
            if path in PUBLIC:
                continue
            answer = service.request(method, path + "?key=k", Origin="http://evil.example")
            assert answer.status == 403, (method, path)
            assert b"http://evil.example" in answer.body or method == "HEAD"
    assert not backend.batches
    assert not backend.reads
