"""REST as its users meet it: curl and its defaults, beside the other fronts, at any node, and while
the leader is lost."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.cluster import Cluster, Member, Workload, fetch, wait_until
from tests.lab.engines import ENGINES
from tests.lab.process import Answer, ServerProcess, own_port, resp_port, rest_port, running
from tests.lab.respclient import RespClient
from tests.lab.tlstunnel import over_tls

OCTETS = "application/octet-stream"
CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    fronts = ("--rest-addr=127.0.0.1:0", "--resp-addr=127.0.0.1:0")
    flags = (f"--engine={request.param}", "--slow-request=1ms")
    tls = over_tls(request.param)
    with running(
        tmp_path_factory.mktemp("rest"), "--bootstrap", *fronts, *flags, tls=tls
    ) as process:
        yield process


def ask(
    server: ServerProcess,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    return fetch(method, f"http://127.0.0.1:{rest_port(server)}{target}", body, headers)


def curl(server: ServerProcess, *arguments: str, send: bytes = b"") -> tuple[int, bytes]:
    """Run curl, which is told a path last; return the status of the last answer and the body."""
    assert CURL is not None
    *flags, path = arguments
    url = f"http://127.0.0.1:{rest_port(server)}{path}"
    command = [CURL, "--silent", "--show-error", "--max-time", "20", "-w", "%{http_code}"]
    done = subprocess.run([*command, *flags, url], input=send, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout[-3:]), done.stdout[:-3]


# -- curl ------------------------------------------------------------------------------------------


@needs_curl
@pytest.mark.parametrize(
    ("arguments", "send", "stored"),
    [
        pytest.param(["-d", '{"value": "v", "ttl": 3600}'], b"", b"v", id="d"),
        pytest.param(["-d", "@-"], b'{"value":\n"v"}\n', b"v", id="d-stdin"),
        pytest.param(["--data-binary", "@-"], b'\n{"value":\n"v"}\n', b"v", id="data-binary"),
        pytest.param(["-H", "Content-Type: application/json; charset=utf-8", "-d",
                      '{"value": "\u00e9"}'], b"", "é".encode(), id="json"),
        pytest.param(["-H", "Content-Type:", "-d", '{"value": "v"}'], b"", b"v", id="no-type"),
        pytest.param(["-T", "-"], b'{"value": "v"}', b"v", id="upload-of-json"),
        pytest.param(["-d", '{"value": "/wA=", "encoding": "base64"}'], b"", b"\xff\0",
                     id="base64"),
        pytest.param(["--http1.0", "-d", '{"value": "old"}'], b"", b"old", id="http-1.0"),
        pytest.param(["-d", "just text"], b"", None, id="text"),
        pytest.param(["-d", "value=v"], b"", None, id="a-form"),
        pytest.param(["-T", "-"], b"uploaded", None, id="upload"),
        pytest.param(["-d", ""], b"", None, id="nothing"),
        pytest.param(["-H", "Content-Type: application/json", "-d", "{'value': 'v'}"], b"", None,
                     id="nearly-json"),
        pytest.param(["-H", f"Content-Type: {OCTETS}", "--data-binary", "@-"], b"\0\r\n\xff",
                     b"\0\r\n\xff", id="octets"),
        pytest.param(["-H", "Content-Type: text/plain", "-d", '{"value": "v"}'], b"",
                     b'{"value": "v"}', id="text-plain"),
        pytest.param(["-H", f"Content-Type: {OCTETS}", "-T", "-"], b"u" * 9000, b"u" * 9000,
                     id="chunked-upload"),
        pytest.param(["-H", f"Content-Type: {OCTETS}", "-H", "Expect: 100-continue",
                      "--data-binary", "@-"], b"v" * (1 << 20), b"v" * (1 << 20),
                     id="continue-largest"),
        pytest.param(["-H", f"Content-Type: {OCTETS}", "-d", ""], b"", b"", id="empty"),
        pytest.param(["-H", f"Content-Type: {OCTETS}", "-T", "-"], b"", None, id="empty-upload"),
    ],
)  # fmt: skip
def test_what_curl_puts(
    server: ServerProcess,
    request: pytest.FixtureRequest,
    arguments: list[str],
    send: bytes,
    stored: bytes | None,
) -> None:
    path = f"/curl/{request.node.callspec.id}"
    status, answer = curl(server, "-X", "PUT", *arguments, path, send=send)
    if stored is None:
        assert status == 400
        said = json.loads(answer)["error"]
        assert OCTETS in said or "Content-Length: 0" in said
        assert curl(server, path) == (404, b'{"error": "key not found"}\n')
        return
    assert status == 200
    assert json.loads(answer).keys() == {"revision"}
    assert curl(server, "-H", f"Accept: {OCTETS}", path) == (200, stored)
    status, answer = curl(server, path)
    found = json.loads(answer)
    assert (status, found["key"]) == (200, found["key"])
    assert curl(server, "-I", path)[0] == 200
    assert curl(server, "-X", "DELETE", path)[0] == 200
    assert curl(server, "-X", "DELETE", path) == (404, b'{"error": "key not found"}\n')


# -- beside the other fronts -----------------------------------------------------------------------


def test_names_of_the_other_api_are_keys(server: ServerProcess) -> None:
    for name in ("kv", "status", "metrics", "livez", "join", "session", "openapi.json"):
        value = name.encode() * 20_000  # more than a body of /join may have
        assert ask(server, "GET", f"/{name}").status == 404
        assert ask(server, "PUT", f"/{name}", value, {"Content-Type": OCTETS}).status == 200
        assert server.get(name).body == value
        assert ask(server, "DELETE", f"/{name}").status == 200
    assert ask(server, "GET", "/livez", None, {"Origin": "http://elsewhere.example"}).status == 403
    assert server.request("GET", "/livez", None, {"Origin": "http://e.example"}).status == 200


def test_what_a_node_shows_of_it(server: ServerProcess) -> None:
    port = rest_port(server)
    status = json.loads(server.request("GET", "/status").body)
    assert status["rest"] == f"127.0.0.1:{own_port(server, 'REST')}"
    assert status["resp"] == f"127.0.0.1:{own_port(server, 'RESP')}"
    accepted = server.metric("conure_rest_connections_accepted_total")
    with socket.create_connection(("127.0.0.1", port)) as idle:
        wait_until(lambda: server.metric("conure_rest_connections") == 1)
        assert server.metric("conure_http_connections") == 1  # the one that asks
        assert server.metric("conure_rest_connections_accepted_total") == accepted + 1
        idle.sendall(b"nonsense\r\n\r\n")
        wait_until(lambda: idle.recv(1 << 16) == b"")
    wait_until(lambda: server.metric("conure_rest_connections") == 0)
    assert server.metric("conure_rest_connections_accepted_total") == accepted + 1
    assert server.metric('conure_rest_refused_total{code="400"}') >= 1
    assert ask(server, "PUT", "/shown", b'{"value": "v"}').status == 200
    assert server.metric('conure_http_requests_total{route="/{key}",method="PUT",code="200"}') >= 1
    assert server.metric("conure_rest_slow_requests_total") >= 0


class Fronts:
    """The three ways to the same records."""

    def __init__(self, server: ServerProcess) -> None:
        self._rest = http.client.HTTPConnection("127.0.0.1", rest_port(server), timeout=20)
        self._api = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        self._resp = RespClient(resp_port(server))

    def close(self) -> None:
        self._rest.close()
        self._api.close()
        self._resp.close()

    def put(self, front: int, key: bytes, value: bytes) -> None:
        path, octets = "/" + quote_from_bytes(key, safe=""), {"Content-Type": OCTETS}
        if front == 0:
            self.ask(self._rest, "PUT", path, value, octets)
        elif front == 1:
            fields = {"value": base64.b64encode(value).decode(), "encoding": "base64"}
            self.ask(self._rest, "PUT", path, json.dumps(fields).encode())
        elif front == 2:
            self.ask(self._api, "PUT", "/kv?key=" + quote_from_bytes(key, safe=""), value)
        else:
            assert self._resp.ask("SET", key, value) == b"OK"

    def get(self, front: int, key: bytes) -> bytes:
        path = "/" + quote_from_bytes(key, safe="")
        if front == 0:
            return self.ask(self._rest, "GET", path, None, {"Accept": OCTETS})
        if front == 1:
            found = json.loads(self.ask(self._rest, "GET", path))
            read: Any = base64.b64decode if "encoding" in found else str.encode
            assert read(found["key"]) == key
            return bytes(read(found["value"]))
        if front == 2:
            return self.ask(self._api, "GET", "/kv?key=" + quote_from_bytes(key, safe=""))
        value = self._resp.ask("GET", key)
        assert isinstance(value, bytes)
        return value

    def delete(self, key: bytes) -> None:
        self.ask(self._rest, "DELETE", "/" + quote_from_bytes(key, safe="/"))

    @staticmethod
    def ask(
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        connection.request(method, target, body, dict(headers or {}))
        answer = connection.getresponse()
        found = answer.read()
        assert answer.status == 200, (method, target, answer.status, found)
        return found


@pytest.fixture(scope="module")
def fronts(server: ServerProcess) -> Iterator[Fronts]:
    with closing(Fronts(server)) as made:
        yield made


@settings(deadline=None, max_examples=60)
@given(
    key=st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=20).map(str.encode),
    values=st.lists(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), min_size=4,
                    max_size=4),
    order=st.permutations(range(4)),
)  # fmt: skip
def test_any_key_and_value_by_any_way(
    fronts: Fronts, key: bytes, values: list[bytes], order: list[int]
) -> None:
    for front, value in zip(order, values, strict=True):
        fronts.put(front, key, value)
        assert [fronts.get(other, key) for other in range(4)] == [value] * 4
    fronts.delete(key)


def test_a_watch_sees_every_write_in_one_sequence(server: ServerProcess) -> None:
    first = int(ask(server, "PUT", "/watched/0", b'{"value": "0"}').headers["x-conure-index"])
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as watching:
        watching.request("GET", f"/watch?prefix=watched/&from={first}")
        events = watching.getresponse()
        assert events.status == 200
        revisions = [first]
        for number in range(1, 6):
            answer = ask(server, "PUT", f"/watched/{number}", b'{"value": "v"}')
            revisions.append(int(answer.headers["x-conure-index"]))
            answer = server.put(f"watched/{number}", b"w")
            revisions.append(int(answer.headers["x-conure-index"]))
        revisions.append(int(ask(server, "DELETE", "/watched/1").headers["x-conure-index"]))
        seen: list[int] = []
        while len(seen) < len(revisions):
            line = events.readline()
            assert line
            if line.startswith(b"data:"):
                found = json.loads(line[5:])
                if "key" in found:
                    seen.append(found["revision"])
    assert seen == revisions == sorted(revisions)


def test_locks_and_ttl_of_the_other_fronts_hold(server: ServerProcess) -> None:
    assert ask(server, "PUT", "/soon", b'{"value": "v", "ttl": "1h"}').status == 200
    with closing(RespClient(resp_port(server))) as client:
        assert 3590 < client.ask("TTL", b"soon") <= 3600
        assert client.ask("EXPIRE", b"soon", 100) == 1
    assert 90 < json.loads(ask(server, "GET", "/soon").body)["ttl"] <= 100


# -- clusters --------------------------------------------------------------------------------------


def by_path(
    member: Member,
    method: str,
    key: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    return fetch(method, f"http://{member.host}:{member.rest_port}/{key}", body, headers)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), rest=True) as made:
        yield made.start(3)


def test_a_follower_asks_the_leader_itself(cluster: Cluster) -> None:
    leader, (first, second) = cluster.leader(), cluster.followers()
    assert first.request("PUT", "/kv?key=a&value=v").status == 307  # follower_mode is redirect
    for number in range(20):
        value = b"%d" % number
        answer = by_path(first, "PUT", "k", value, {"Content-Type": OCTETS})
        assert answer.status == 200
        for each in (second, leader, first):  # linearizable at once, wherever it is asked
            found = by_path(each, "GET", "k")
            assert json.loads(found.body) == {"key": "k", "value": value.decode()}
            assert found.headers["etag"] == answer.headers["etag"]
    for attempt in range(2):
        once = by_path(second, "PUT", "k", b'{"value": "once"}', {"Idempotency-Key": "one"})
        assert once.status == 200, attempt
    assert by_path(first, "PUT", "k", b'{"value": "x"}', {"If-None-Match": "*"}).status == 412
    assert by_path(first, "DELETE", "nobody").status == 404
    assert by_path(first, "DELETE", "k").status == 200
    assert by_path(second, "GET", "k").status == 404
    stale = by_path(second, "GET", "k?stale=true")
    assert "x-conure-last-contact" in stale.headers
    body = b'{"value": "' + b"v" * 500_000 + b'"}'
    assert by_path(first, "PUT", "long", body).status == 200
    assert len(json.loads(by_path(second, "GET", "long").body)["value"]) == 500_000


def test_clients_of_rest_and_of_the_api_while_leaders_are_killed(cluster: Cluster) -> None:
    with Workload(cluster, clients=2, rest_clients=3, prefix=b"killed/") as workload:
        workload.wait_for_writes(30)
        for _ in range(2):
            leader = cluster.leader()
            leader.kill()
            workload.wait_for_writes(30)
            leader.start()
            cluster.wait_until_equal()
    workload.check()


def test_without_a_quorum(cluster: Cluster) -> None:
    leader, others = cluster.leader(), cluster.followers()
    for other in others:
        other.kill()
    try:
        found: list[Answer] = []
        threads = [
            threading.Thread(target=lambda m=method: found.append(by_path(leader, m, "k", b"{}")))
            for method in ("GET", "DELETE")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status for answer in found} <= {503, 504}
        assert all(json.loads(answer.body).keys() == {"error"} for answer in found)
        assert by_path(leader, "GET", "k?stale=true").status in (200, 404)
    finally:
        for other in others:
            other.start()
        cluster.wait_until_equal()


@pytest.fixture
def arbiter(cluster: Cluster) -> Iterator[Member]:
    member = cluster.add("--role=arbiter")
    member.start(f"--join={cluster.leader().url}")
    wait_until(lambda: member.status().get("member") is True)
    yield member
    cluster.leader().post("/remove", {"ID": member.name})
    member.kill()


def test_an_arbiter_passes_writes_on_and_refuses_reads(cluster: Cluster, arbiter: Member) -> None:
    assert by_path(arbiter, "PUT", "k", b'{"value": "v"}').status == 200
    answer = by_path(arbiter, "GET", "k")
    assert answer.status == 503
    assert "location" not in answer.headers
    assert "ask another server" in json.loads(answer.body)["error"]
    assert by_path(cluster.leader(), "GET", "k").status == 200


def test_a_stop_answers_what_is_under_way_and_ends_the_rest(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--bootstrap", "--rest-addr=127.0.0.1:0") as server:
        port = rest_port(server)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as idle:
                assert ask(server, "PUT", "/k", b'{"value": "v"}').status == 200
                client.sendall(b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n")
                server.process.send_signal(signal.SIGTERM)
                assert idle.recv(1) == b""
            client.sendall(b'{"value": "w"}')
            answered = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answered
        assert server.wait() == 0
    with running(tmp_path / "data") as server:
        assert server.get("k").body == b"w"


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = ServerProcess(tmp_path / "data", "--bootstrap", f"--rest-addr={address}")
        assert server.wait() == 2
    assert f"rest_addr (flag --rest-addr): can't listen on {address}" in server.text
    assert not (tmp_path / "data").exists()


def test_the_address_is_nobody_s_by_default(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--bootstrap") as server:
        assert "rest" not in json.loads(server.request("GET", "/status").body)
        assert "REST" not in server.text
        assert "conure_rest" not in server.request("GET", "/metrics").body.decode()
