"""The product as its users meet it: a real process, HTTP, and curl among the clients.

One server is shared by whatever does not disturb anybody else; keys carry the test's own name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes, urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conure import VERSION
from conure.client import Client
from conure.errors import PayloadTooLarge
from conure.fileio import OsFileSystem
from conure.settings import SETTINGS
from conure.storage.engines import LSM
from tests.lab import forkserver
from tests.lab.cluster import free_port
from tests.lab.engines import ENGINES, open_engine
from tests.lab.process import ROOT, Answer, ServerProcess, running, wait_until
from tests.lab.tlstunnel import over_tls

MAX_VALUE = 1 << 20
MAX_BODY = 16 << 20
MAX_KEY = 1024

CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")

BINARY = [
    pytest.param(b"plain", id="plain"),
    pytest.param(b"\0", id="nul"),
    pytest.param(b"two\nlines\r\n", id="line-ends"),
    pytest.param(b"\xff\xfe\x80", id="not-utf-8"),
    pytest.param("schlüssel/键".encode(), id="utf-8"),
    pytest.param(b"a+b", id="plus"),
    pytest.param(b"a%2Bb", id="percent-2b"),
    pytest.param(b"a b", id="space"),
    pytest.param(b"a&value=b", id="ampersand"),
    pytest.param(b"k=v#f?g;h/../", id="delimiters"),
    pytest.param(bytes(range(256)), id="every-octet"),
    pytest.param(b"k" * MAX_KEY, id="longest-key"),
]


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ("--metrics-addr=127.0.0.1:0", f"--engine={request.param}")
    tls = over_tls(request.param)
    with running(tmp_path_factory.mktemp("contract"), *flags, tls=tls) as process:
        yield process


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A node with an identity of its own that nobody has told to begin a cluster."""
    with running(tmp_path_factory.mktemp("waiting"), "--node-id=n2") as process:
        yield process


def curl(*arguments: str, send: bytes = b"") -> tuple[int, bytes]:
    """Run curl; return the status of the last answer and the body."""
    assert CURL is not None
    command = [CURL, "--silent", "--show-error", "--max-time", "20", "-w", "%{http_code}"]
    done = subprocess.run([*command, *arguments], input=send, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout[-3:]), done.stdout[:-3]


def kv(server: ServerProcess, key: str, **more: str) -> str:
    return f"{server.url}/kv?" + urlencode({"key": key, **more})


def commit_index(server: ServerProcess) -> int:
    return int(json.loads(server.request("GET", "/status").body)["commit_index"])


def conversation(server: ServerProcess, data: bytes) -> bytes:
    """Send bytes as they are and return everything that comes until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


# -- storing and reading ---------------------------------------------------------------------------


@needs_curl
@pytest.mark.parametrize(
    ("arguments", "send", "stored"),
    [
        pytest.param(["-d", "in a body"], b"", b"in a body", id="form"),
        pytest.param(["-d", "value=text"], b"", b"value=text", id="form-is-not-decoded"),
        pytest.param(["-d", "@-"], b"from stdin", b"from stdin", id="d-stdin"),
        pytest.param(["--data-binary", "@-"], b"\0\r\n\xff", b"\0\r\n\xff", id="binary"),
        pytest.param(
            ["-H", "Content-Type: application/json", "-d", '{"a": 1}'], b"", b'{"a": 1}', id="json"
        ),
        pytest.param(
            ["-H", "Content-Type: multipart/form-data; boundary=x", "-d", "--x"],
            b"",
            b"--x",
            id="multipart",
        ),
        pytest.param(["-H", "Content-Type:", "-d", "untyped"], b"", b"untyped", id="no-type"),
        pytest.param(["-T", "-"], b"uploaded" * 1000, b"uploaded" * 1000, id="chunked-upload"),
        pytest.param(
            ["-H", "Transfer-Encoding: chunked", "--data-binary", "@-"],
            b"c" * 100_000,
            b"c" * 100_000,
            id="chunked",
        ),
        pytest.param(
            ["-H", "Expect: 100-continue", "--data-binary", "@-"],
            b"v" * MAX_VALUE,
            b"v" * MAX_VALUE,
            id="continue-largest",
        ),
        pytest.param(["--http1.0", "-d", "old"], b"", b"old", id="http-1.0"),
        pytest.param(["-d", ""], b"", b"", id="empty"),
    ],
)
def test_curl_puts_a_body_as_the_value(
    server: ServerProcess, request: pytest.FixtureRequest, arguments: list[str],
    send: bytes, stored: bytes,
) -> None:  # fmt: skip
    target = kv(server, request.node.name)
    assert curl("-X", "PUT", *arguments, target, send=send) == (200, b"OK\n")
    assert curl(target) == (200, stored)
    assert curl(target + "&stale=true") == (200, stored)
    assert curl(target + "&stale=1") == (200, stored)


@needs_curl
def test_curl_puts_reads_and_deletes_with_parameters(server: ServerProcess) -> None:
    target = kv(server, "parameters")
    assert curl("-X", "PUT", target + "&value=first") == (200, b"OK\n")
    assert curl(target) == (200, b"first")
    put = [server.url + "/kv", "-G", "-X", "PUT", "--data-urlencode", "key=parameters"]
    assert curl(*put, "--data-urlencode", "value=ä + b&c") == (200, b"OK\n")
    assert curl(target) == (200, "ä + b&c".encode())
    assert curl("-X", "DELETE", target) == (200, b"OK\n")
    assert curl(target) == (404, b"key not found\n")
    assert curl("-X", "DELETE", target) == (200, b"OK\n")


def test_the_value_parameter_may_be_empty_and_wins_over_a_body(server: ServerProcess) -> None:
    assert server.request("PUT", "/kv?key=both&value=parameter", b"body").status == 200
    assert server.get("both").body == b"parameter"
    assert server.request("PUT", "/kv?key=both&value=").status == 200
    answer = server.get("both")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "0"


def test_answers_have_their_types(server: ServerProcess) -> None:
    answer = server.put("types", b"x")
    assert (answer.body, answer.headers["content-type"]) == (b"OK\n", "text/plain; charset=utf-8")
    assert server.get("types").headers["content-type"] == "application/octet-stream"
    for path in ("/status", "/raft/config", "/raft/stats"):
        assert server.request("GET", path).headers["content-type"] == "application/json"
    assert server.request("GET", "/metrics").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("key", BINARY)
def test_any_bytes_make_a_key(server: ServerProcess, key: bytes) -> None:
    value = b"value of " + key
    answer = server.put(key, value)
    assert (answer.status, answer.body) == (200, b"OK\n")
    assert server.get(key).body == value
    everything_escaped = "".join(f"%{octet:02x}" for octet in key)
    assert server.request("GET", f"/kv?key={everything_escaped}").body == value
    assert server.request("DELETE", "/kv?" + urlencode({"key": key})).status == 200
    assert server.get(key).status == 404


@pytest.mark.parametrize("value", [*BINARY, pytest.param(b"", id="empty")])
def test_any_bytes_make_a_value(
    server: ServerProcess, request: pytest.FixtureRequest, value: bytes
) -> None:
    key = request.node.name
    for how in ("body", "parameter", "chunked"):
        assert server.put(key, b"before").status == 200
        if how == "body":
            answer = server.put(key, value)
        elif how == "parameter":
            answer = server.request("PUT", "/kv?" + urlencode({"key": key, "value": value}))
        else:
            size = max(1, len(value) // 3)
            pieces = [value[i : i + size] for i in range(0, len(value), size)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
            head = f"PUT /kv?key={quote_from_bytes(key.encode())} HTTP/1.1\r\nHost: x\r\n"
            raw = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
            answer = Answer(int(conversation(server, raw).split()[1]), {}, b"OK\n")
        if how == "chunked" and not value:
            assert answer.status == 400  # what a client sends that has lost its body
            assert server.get(key).body == b"before"
            continue
        assert (answer.status, answer.body) == (200, b"OK\n")
        assert server.get(key).body == value, how


@needs_curl
def test_curl_has_to_say_that_a_value_is_empty(server: ServerProcess) -> None:
    target = kv(server, "unsaid")
    server.put("unsaid", b"kept")
    status, line = curl("-X", "PUT", target)
    assert (status, line) == (
        400, b"send value= or a body; Content-Length: 0 stores an empty value\n"
    )  # fmt: skip
    assert curl(target) == (200, b"kept")
    assert curl("-X", "PUT", target + "&value=") == (200, b"OK\n")
    assert curl(target) == (200, b"")


@needs_curl
def test_curl_from_a_web_page_or_under_another_name(server: ServerProcess) -> None:
    """What a browser would send; `curl -d` sends a form's type, and is no browser."""
    url = f"http://127.0.0.1:{server.port}"
    batch = ("-d", '{"key": "web", "value": "1"}', f"{url}/kv/batch")
    assert curl(*batch)[0] == 200
    for field in ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Origin: null"):
        assert curl("-H", field, *batch)[0] == 403
        assert curl("-H", field, f"{url}/kv?key=web")[0] == 403
        assert curl("-H", field, f"{url}/livez")[0] == 200
    scheme = server.own_url.partition("://")[0]
    assert curl("-H", f"Origin: {scheme}://127.0.0.1:{server.port}", *batch)[0] == 200
    status, line = curl("-H", "Host: evil.example", f"{url}/kv?key=web")
    assert status == 421
    assert b"--allowed-hosts=evil.example" in line
    for host in ("conure", "conure-0.conure-hs.default.svc:8081", "x.localhost", "[::1]:8081"):
        assert curl("-H", f"Host: {host}", f"{url}/kv?key=web") == (200, b"1")


@needs_curl
def test_names_that_a_server_is_told(tmp_path: Path) -> None:
    flags = (
        "--allowed-hosts=db.example.com,.inside.example",
        "--http-advertise=http://advertised.example:80",
        "--metrics-addr=127.0.0.1:0",
    )
    with running(tmp_path, *flags) as server:
        url = f"http://127.0.0.1:{server.port}/livez"
        machine = socket.gethostname()
        for host in ("db.example.com", "a.inside.example:1", "advertised.example", machine):
            assert curl("-H", f"Host: {host}", url)[0] == 200, host
        assert curl("-H", "Host: x.db.example.com", url)[0] == 421


def test_keys_that_look_alike_are_different(server: ServerProcess) -> None:
    alike = ["look", "Look", "look ", " look", "look\0", "loo%6b", "look/", "look+", "löök", "lo"]
    for number, key in enumerate(alike):
        assert server.put(key, b"%d" % number).status == 200
    assert [server.get(key).body for key in alike] == [b"%d" % n for n in range(len(alike))]


def test_head_is_get_without_the_body(server: ServerProcess) -> None:
    server.put("head", b"12345")
    target = "/kv?key=head"
    get, head = server.request("GET", target), server.request("HEAD", target)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == "5"
    assert head.headers.keys() == get.headers.keys()
    assert server.request("HEAD", "/kv?key=no-such-key").status == 404
    for path in ("/", "/status", "/raft/config", "/raft/stats", "/livez", "/readyz", "/metrics"):
        answer = server.request("HEAD", path)
        assert (answer.status, answer.body) == (200, b""), path


# -- limits ----------------------------------------------------------------------------------------


def chunked(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]


@pytest.mark.parametrize(
    ("method", "key", "value", "how", "status"),
    [
        pytest.param("PUT", "k" * (MAX_KEY + 1), b"v", "body", 414, id="key"),
        pytest.param("GET", "k" * (MAX_KEY + 1), b"", "none", 414, id="get-key"),
        pytest.param("DELETE", "k" * (MAX_KEY + 1), b"", "none", 414, id="delete-key"),
        pytest.param("PUT", "", b"v", "body", 400, id="empty-key"),
        pytest.param("PUT", "large-body", b"v" * (MAX_VALUE + 1), "body", 413, id="body"),
        pytest.param("PUT", "large-chunks", b"v" * (MAX_VALUE + 1), "chunked", 413, id="chunked"),
        pytest.param("PUT", "large-query", b"v" * (MAX_VALUE + 1), "query", 414, id="query"),
        pytest.param("PUT", "huge-body", b"v" * (8 * MAX_VALUE), "body", 413, id="huge-body"),
    ],
)
def test_past_a_limit_nothing_is_stored(
    server: ServerProcess, method: str, key: str, value: bytes, how: str, status: int
) -> None:
    before = commit_index(server)
    target = "/kv?" + urlencode({"key": key} | ({"value": value} if how == "query" else {}))
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n"
    body = b""
    if how == "body":
        head += f"Content-Length: {len(value)}\r\n"
        body = value
    elif how == "chunked":
        head += "Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunked(value)) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):  # it may hang up before it has read it all
            connection.sendall(head.encode() + b"\r\n" + body)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    _, _, message = answer.partition(b"\r\n\r\n")
    assert message.count(b"\n") == 1
    assert commit_index(server) == before
    if len(key) <= MAX_KEY and key:
        assert server.get(key).status == 404


@needs_curl
def test_curl_learns_of_a_limit_before_it_sends_the_body(server: ServerProcess) -> None:
    status, message = curl(
        "-H", "Expect: 100-continue", "-X", "PUT", "--data-binary", "@-",
        kv(server, "too-large"), send=b"v" * (MAX_BODY + 1),
    )  # fmt: skip
    assert status == 413
    assert b"%d" % MAX_BODY in message.replace(b",", b"")


def test_max_value_bytes_is_a_setting(tmp_path: Path) -> None:
    with running(tmp_path, "--max-value-bytes=10") as small:
        assert small.put("k", b"0123456789").status == 200
        refused = small.request("PUT", "/kv?key=k&value=0123456789a")
        assert refused.status == 413
        assert b"max_value_bytes" in refused.body
        assert small.put("k", b"0123456789a").status == 413
        assert small.get("k").body == b"0123456789"


# -- what is wrong with a request ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/kv", 400, "key is missing"),
        ("PUT", "/kv?value=v", 400, "key is missing"),
        ("DELETE", "/kv?", 400, "key is missing"),
        ("GET", "/kv?key=", 400, "key is missing"),
        ("GET", "/kv?key", 400, "key is missing"),
        ("GET", "/kv?Key=k", 400, "key is missing"),
        ("GET", "/kv?key=a&key=b", 400, "twice"),
        ("PUT", "/kv?key=a&value=1&value=2", 400, "twice"),
        ("PUT", "/kv?key=a&value=%zz", 400, "%"),
        ("GET", "/kv?key=a%", 400, "%"),
        ("GET", "/kv?key=a&stale=maybe", 400, "stale"),
        ("GET", "/kv?key=a&stale=true&stale=true", 400, "twice"),
        ("GET", "/kv?" + "&".join(f"p{n}" for n in range(101)), 400, "parameters"),
        ("GET", "/kv?key=absent", 404, "key not found"),
        ("GET", "/kv?key=absent&stale=true", 404, "key not found"),
        ("GET", "/kv?key=absent&stale=0", 404, "key not found"),
        ("GET", "/nothing", 404, "nothing at this path"),
        ("GET", "/kv/", 404, "nothing at this path"),
        ("GET", "//kv?key=a", 404, "nothing at this path"),
        ("PUT", "/KV?key=a", 404, "nothing at this path"),
        ("POST", "/kv?key=a", 405, "DELETE, GET, HEAD, PUT"),
        ("PATCH", "/kv?key=a", 405, "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/kv?key=a", 405, "DELETE, GET, HEAD, PUT"),
        ("BREW", "/kv?key=a", 405, "DELETE, GET, HEAD, PUT"),
        ("get", "/kv?key=a", 405, "DELETE, GET, HEAD, PUT"),
        ("PUT", "/status", 405, "GET, HEAD"),
        ("POST", "/raft/config", 405, "GET, HEAD"),
        ("DELETE", "/raft/stats", 405, "GET, HEAD"),
        ("GET", "/join", 405, "POST"),
        ("PUT", "/remove", 405, "POST"),
        ("POST", "/livez", 405, "GET, HEAD"),
        ("POST", "/readyz", 405, "GET, HEAD"),
        ("POST", "/metrics", 405, "GET, HEAD"),
    ],
)
def test_errors_are_one_line_or_a_problem_document(
    server: ServerProcess, method: str, target: str, status: int, words: str
) -> None:
    before = commit_index(server)
    plain = server.request(method, target)
    assert plain.status == status
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.body.endswith(b"\n")
    assert plain.body.count(b"\n") == 1
    assert len(plain.body) > 5
    if status == 405:
        assert plain.headers["allow"] == words
    else:
        assert words in plain.body.decode()

    for accept in ("application/json", "text/html, application/problem+json;q=0.9"):
        problem = server.request(method, target, headers={"Accept": accept})
        assert problem.status == status
        assert problem.headers["content-type"] == "application/problem+json"
        document = json.loads(problem.body)
        assert document["status"] == status
        assert document["detail"] == plain.body.decode().rstrip("\n")
        assert document["title"]
    assert commit_index(server) == before


PUT = b"PUT /kv?key=smuggled HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        PUT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        PUT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        PUT + b"Content-Length: -1\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked\r\n\r\nz\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"PUT /kv?key=smuggled HTTP/1.1\nHost: x\n\n",
        b"PUT /kv?key=smuggled\r\n\r\n",
        b"PUT /kv?key=smuggled HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_request_without_a_certain_end_is_400_and_the_end_of_its_connection(
    server: ServerProcess, request_bytes: bytes
) -> None:
    answer = conversation(server, request_bytes + b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert server.get("smuggled").status == 404


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PUT /kv?key=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"PUT /kv?key=a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"PUT /kv?key=a HTTP/1.1\r\nHost: x\r\nExpect: tea\r\nContent-Length: 1\r\n\r\na", 417),
    ],
)
def test_limits_of_the_protocol(server: ServerProcess, head: bytes, status: int) -> None:
    answer = conversation(server, head)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"\r\nContent-Length: ") == 1


def test_pipelined_requests_are_answered_in_order_and_see_each_other(server: ServerProcess) -> None:
    sent, expected = b"", []
    for number in range(30):
        sent += b"PUT /kv?key=pipe&value=%d HTTP/1.1\r\nHost: x\r\n\r\n" % number
        sent += b"GET /kv?key=pipe HTTP/1.1\r\nHost: x\r\n\r\n"
        expected += [b"OK\n", b"%d" % number]
    sent += b"DELETE /kv?key=pipe HTTP/1.1\r\nHost: x\r\n\r\n"
    sent += b"GET /kv?key=pipe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    expected += [b"OK\n", b"key not found\n"]
    received = conversation(server, sent)
    for body in expected:
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404" if b"not found" in body else b"HTTP/1.1 200")
        assert received.startswith(body)
        received = received[len(body) :]
    assert received == b""


def test_100_continue_is_sent_before_the_body_is_awaited(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"PUT /kv?key=continue HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 4\r\n\r\n"
        )
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert server.get("continue").body == b"body"


def raft_address(server: ServerProcess) -> str:
    """Return where a lone server listens to peers."""
    return str(json.loads(server.request("GET", "/raft/config").body)["servers"][0]["address"])


# -- what a node says of itself --------------------------------------------------------------------


def test_status(server: ServerProcess) -> None:
    server.put("status", b"x")
    status = json.loads(server.request("GET", "/status").body)
    assert status["is_leader"] is True
    assert status["leader"] == raft_address(server)
    assert status["node_id"] == status["leader_id"] == "node1"
    assert status["leader_http"] == server.own_url
    assert status["state"] == "leader"
    assert status["version"] == VERSION
    assert status["term"] >= 1
    assert status["commit_index"] >= status["applied_index"] >= 3


def test_raft_config(server: ServerProcess) -> None:
    address = raft_address(server)
    assert json.loads(server.request("GET", "/raft/config").body) == {
        "leader": address,
        "quorum_size": None,
        "quorum": 1,
        "data_quorum": 1,
        "servers": [
            {
                "id": "node1",
                "address": address,
                "suffrage": "voter",
                "http_address": server.own_url,
                "role": "data",
            }
        ],
    }


def test_raft_stats(server: ServerProcess) -> None:
    server.put("stats", b"x")
    stats = json.loads(server.request("GET", "/raft/stats").body)
    assert all(isinstance(value, str) for value in stats.values())
    assert stats["state"] == "Leader"
    assert stats["num_peers"] == stats["fsm_pending"] == stats["last_contact"] == "0"
    numbers = ("term", "last_log_index", "last_log_term", "commit_index", "applied_index",
               "last_snapshot_index", "last_snapshot_term")  # fmt: skip
    assert all(stats[name].isdigit() for name in numbers)
    assert int(stats["last_log_index"]) >= int(stats["commit_index"]) >= 3
    members = json.loads(stats["latest_configuration"])
    assert [member["ID"] for member in members] == ["node1"]


def test_the_root_lists_every_route(server: ServerProcess) -> None:
    index = server.request("GET", "/").body.decode()
    assert VERSION in index
    routes = ("/kv", "/status", "/raft/config", "/raft/stats", "/join", "/remove", "/quorum",
              "/livez", "/readyz", "/metrics")  # fmt: skip
    assert all(route in index for route in routes)


def test_health(server: ServerProcess) -> None:
    assert server.request("GET", "/livez").status == 200
    assert server.request("GET", "/readyz").status == 200
    verbose = server.request("GET", "/readyz?verbose")
    assert verbose.status == 200
    lines = verbose.body.decode().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("[+] ") for line in lines)


PROMISED = {
    "conure_build_info": "gauge",
    "conure_db_depth": "gauge",
    "conure_db_free_bytes": "gauge",
    "conure_db_records": "gauge",
    "conure_db_size_bytes": "gauge",
    "conure_disk_full": "gauge",
    "conure_http_connections": "gauge",
    "conure_http_connections_accepted": "counter",
    "conure_http_request_duration_seconds": "histogram",
    "conure_http_requests": "counter",
    "conure_http_refused": "counter",
    "conure_http_received_bytes": "counter",
    "conure_http_sent_bytes": "counter",
    "conure_log_segments": "gauge",
    "conure_log_size_bytes": "gauge",
    "conure_log_sync_duration_seconds": "histogram",
    "conure_checkpoint_duration_seconds": "histogram",
    "conure_raft_applied_index": "gauge",
    "conure_raft_commit_index": "gauge",
    "conure_raft_is_leader": "gauge",
    "conure_raft_term": "gauge",
    "conure_write_batch_size": "histogram",
    "process_cpu_seconds": "counter",
    "process_open_fds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "conure_engine_info": "gauge",
    "kvstore_operations": "counter",
    "conure_write_stalls": "counter",
    "conure_write_stall_seconds": "counter",
}  # without the _total that a counter's samples carry

PROMISED_OF = {
    "btree": {
        "conure_db_unwritten_pages": "gauge",
        "conure_page_cache_hits": "counter",
        "conure_page_cache_misses": "counter",
    },
    "lsm": {
        "kvstore_memtable_size_bytes": "gauge",
        "kvstore_sstable_count": "gauge",
        "conure_lsm_memtable_bytes": "gauge",
        "conure_lsm_tables": "gauge",
        "conure_lsm_table_bytes": "gauge",
        "conure_lsm_flushes": "counter",
        "conure_lsm_compactions": "counter",
        "conure_lsm_flush_bytes": "counter",
        "conure_lsm_compaction_bytes": "counter",
        "conure_lsm_write_amplification": "gauge",
        "conure_lsm_blob_bytes": "gauge",
        "conure_lsm_blob_dead_bytes": "gauge",
    },
}


def test_metrics_are_what_prometheus_reads(server: ServerProcess) -> None:
    server.put("metrics", b"x")
    server.request("GET", "/nothing")
    conversation(server, b"nonsense\r\n\r\n")
    page = server.request("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    engine = server.request("GET", "/status").body
    promised = PROMISED | PROMISED_OF[json.loads(engine)["engine"]]
    assert promised.items() <= {name: family.type for name, family in families.items()}.items()
    assert all(family.documentation for family in families.values())
    puts = [
        sample.value
        for sample in families["conure_http_requests"].samples
        if sample.labels == {"route": "/kv", "method": "PUT", "code": "200"}
    ]
    assert puts[0] >= 1
    refused = {s.labels["code"]: s.value for s in families["conure_http_refused"].samples}
    assert refused["400"] >= 1
    assert families["conure_raft_is_leader"].samples[0].value == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say_about_the_metrics(server: ServerProcess) -> None:
    page = server.request("GET", "/metrics").body
    # A gauge isn't to end in _count; this one has the name that another system gave it.
    page = re.sub(rb"(?m)^(# \w+ )?kvstore_sstable_count.*\n", b"", page)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_metrics_addr_serves_metrics_and_nothing_else(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    with running(tmp_path, f"--metrics-addr=127.0.0.1:{port}", tls=over_tls(LSM)) as process:
        main_port, process.port = process.port, process.lead_to(port)
        assert b"conure_raft_term" in process.request("GET", "/metrics").body
        assert process.request("GET", "/kv?key=a").status == 404
        assert process.request("GET", "/status").status == 404
        refused = process.request("POST", "/metrics")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
        process.port = main_port
        assert process.request("GET", "/metrics").status == 200


# -- the shell and the client ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "send", "status", "output"),
    [
        (["put", "shell", "two words"], b"", 0, b"OK\n"),
        (["get", "shell"], b"", 0, b"value"),
        (["put", "shell", "-"], b"\0bytes\n", 0, b"OK\n"),
        (["get", "no-such-key"], b"", 1, b""),
        (["delete", "no-such-key"], b"", 0, b"OK\n"),
        (["get"], b"", 2, b""),
        (["fetch", "shell"], b"", 2, b""),
        ([], b"put shell 'a \"b\"'\nget shell\ndelete shell\nexit\n", 0, b'OK\na "b"\nOK\n'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_shell(
    server: ServerProcess, arguments: list[str], send: bytes, status: int, output: bytes
) -> None:
    server.put("shell", b"value")
    command = [str(ROOT / "conuresh.py"), f"--server={server.url}", *arguments]
    done = forkserver.run(command, input=send, timeout=20)
    assert (done.returncode, done.stdout) == (status, output)
    assert bool(done.stderr) == bool(status)
    if arguments[-1:] == ["-"]:
        assert server.get("shell").body == send


def test_the_client(server: ServerProcess) -> None:
    with Client(server.url) as client:
        client.put(b"client\0+", b"\xff")
        assert client.get(b"client\0+") == client.get(b"client\0+", stale=True) == b"\xff"
        client.delete(b"client\0+")
        assert client.get(b"client\0+") is None
        with pytest.raises(PayloadTooLarge):
            client.put("client", bytes(MAX_VALUE + 1))


# -- members ---------------------------------------------------------------------------------------


MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b"not json", id="text"),
    pytest.param(b"{", id="cut-short"),
    pytest.param(b"\xff\xfe\x00", id="bytes"),
    pytest.param(b"[]", id="array"),
    pytest.param(b'"node2"', id="string"),
    pytest.param(b"17", id="number"),
    pytest.param(b"null", id="null"),
    pytest.param(b"1" * 60_000, id="digits"),
    pytest.param(b"[" * 60_000, id="nested"),
    pytest.param(b'{"a":' * 10_000, id="nested-objects"),
    pytest.param(b"{}", id="no-id"),
    pytest.param(b'{"ID": null, "RaftAddr": "a:1"}', id="null-id"),
    pytest.param(b'{"ID": 5, "RaftAddr": "a:1"}', id="number-id"),
    pytest.param(b'{"ID": ["node2"], "RaftAddr": "a:1"}', id="array-id"),
    pytest.param(b'{"ID": {}, "RaftAddr": "a:1"}', id="object-id"),
    pytest.param(b'{"ID": "", "RaftAddr": "a:1"}', id="empty-id"),
    pytest.param(b'{"ID": "a b", "RaftAddr": "a:1"}', id="space-in-id"),
    pytest.param(b'{"ID": "a\\n", "RaftAddr": "a:1"}', id="line-end-in-id"),
    pytest.param(b'{"ID": "a\\ud800", "RaftAddr": "a:1"}', id="surrogate-in-id"),
    pytest.param(b'{"ID": "' + b"n" * 129 + b'", "RaftAddr": "a:1"}', id="long-id"),
    pytest.param(b'{"id": "node2", "raftaddr": "a:1"}', id="lower-case"),
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("path", ["/join", "/remove", "/quorum"])
def test_membership_requests_have_to_be_well_formed(
    server: ServerProcess, path: str, body: bytes
) -> None:
    before = commit_index(server)
    answer = server.request("POST", path, body, {"Content-Type": "application/json"})
    assert answer.status == 400, answer.body
    assert answer.body.count(b"\n") == 1
    assert len(answer.body) < 1000
    assert commit_index(server) == before


@pytest.mark.parametrize(
    "facts",
    [
        {"RaftAddr": None},
        {"RaftAddr": 7001},
        {"RaftAddr": ["10.0.0.2:7001"]},
        {"RaftAddr": ""},
        {"RaftAddr": "10.0.0.2"},
        {"RaftAddr": ":7001"},
        {"RaftAddr": "10.0.0.2:"},
        {"RaftAddr": "10.0.0.2:0"},
        {"RaftAddr": "10.0.0.2:65536"},
        {"RaftAddr": "10.0.0.2:1e3"},
        {"RaftAddr": "10.0.0.2:" + "9" * 5000},
        {"RaftAddr": "http://10.0.0.2:7001"},
        {"RaftAddr": "10.0.0.2:7001\n"},
        {"RaftAddr": "10.0.0.2:\u0667"},
        {"RaftAddr": "h" * 10_000 + ":1"},
        {"HTTPAddr": 8081},
        {"HTTPAddr": {"a": 1}},
        {"NonVoter": "true"},
        {"NonVoter": 1},
        {"NonVoter": None},
        {"Role": "king"},
        {"Role": 1},
        {"Role": None},
        {"HTTPAddr": "10.0.0.2:8081"},
        {"HTTPAddr": "ftp://10.0.0.2:8081"},
        {"HTTPAddr": "http://10.0.0.2:8081/kv"},
        {"HTTPAddr": "http://user@10.0.0.2:8081"},
        {"HTTPAddr": "http://10.0.0.2:8081\r\nX: y"},
        {"HTTPAddr": "http://" + "h" * 10_000 + ":1"},
    ],
    ids=lambda facts: str(facts)[:40],
)
def test_join_checks_every_fact(server: ServerProcess, facts: dict[str, object]) -> None:
    body = json.dumps({"ID": "node2", "RaftAddr": "10.0.0.2:7001", **facts}).encode()
    answer = server.request("POST", "/join", body)
    assert answer.status == 400, answer.body
    assert next(iter(facts)).encode() in answer.body
    assert answer.body.count(b"\n") == 1
    assert len(answer.body) < 1000


@needs_curl
def test_join_with_known_facts_is_no_change(server: ServerProcess) -> None:
    before = commit_index(server)
    facts = {"ID": "node1", "RaftAddr": raft_address(server)}
    assert curl("-d", json.dumps(facts), server.url + "/join") == (200, b"OK\n")
    facts["HTTPAddr"] = server.own_url
    assert curl("-d", json.dumps(facts), server.url + "/join") == (200, b"OK\n")
    more = {**facts, "NonVoter": False, "Role": "data", "Unknown": [1]}
    assert curl("-d", json.dumps(more), server.url + "/join") == (200, b"OK\n")
    assert commit_index(server) == before


def test_one_node_refuses_changes_and_says_why(server: ServerProcess) -> None:
    before = server.request("GET", "/raft/config").body
    nobody = f"127.0.0.1:{free_port('127.0.0.1')}"
    other = json.dumps({"ID": "node2", "RaftAddr": nobody}).encode()
    answer = server.request("POST", "/join", other)
    assert (answer.status, nobody.encode() in answer.body) == (409, True)
    moved = json.dumps({"ID": "node1", "RaftAddr": nobody}).encode()
    assert server.request("POST", "/join", moved).status == 409
    assert server.request("POST", "/remove", b'{"ID": "node1"}').status == 409
    unknown = server.request("POST", "/remove", b'{"ID": "node9"}')
    assert (unknown.status, b"node9" in unknown.body) == (404, True)
    assert server.request("GET", "/raft/config").body == before
    assert server.get("absent").status == 404  # and it still leads


# -- a node that waits to be joined ----------------------------------------------------------------


def test_a_node_that_waits_says_so(waiting: ServerProcess) -> None:
    assert "waiting to be joined" in waiting.text
    assert "--bootstrap" in waiting.text
    status = json.loads(waiting.request("GET", "/status").body)
    assert status["node_id"] == "n2"
    assert (status["is_leader"], status["leader"], status["leader_id"]) == (False, "", "")
    assert status["state"] == "follower"
    assert status["member"] is False
    assert json.loads(waiting.request("GET", "/raft/config").body) == {
        "leader": "", "quorum_size": None, "quorum": 0, "data_quorum": 0, "servers": []
    }  # fmt: skip
    assert json.loads(waiting.request("GET", "/raft/stats").body)["state"] == "Follower"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/kv?key=k&value=v", b""),
        ("DELETE", "/kv?key=k", b""),
        ("GET", "/kv?key=k", b""),
        ("POST", "/join", b'{"ID": "n3", "RaftAddr": "10.0.0.3:7001"}'),
        ("POST", "/remove", b'{"ID": "n3"}'),
    ],
)
def test_a_node_without_a_leader_answers_503_and_when_to_try_again(
    waiting: ServerProcess, method: str, target: str, body: bytes
) -> None:
    answer = waiting.request(method, target, body)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert b"leader" in answer.body


def test_a_node_that_waits_lives_and_is_not_ready(waiting: ServerProcess) -> None:
    assert waiting.request("GET", "/livez").status == 200
    ready = waiting.request("GET", "/readyz")
    assert ready.status == 503
    assert "[-] leader" in ready.body.decode()
    assert waiting.get("k", stale="true").status == 404
    assert waiting.request("GET", "/metrics").status == 200


# -- the command line ------------------------------------------------------------------------------


def run(
    *flags: str, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the server until it ends by itself; without a flag its addresses are the system's choice,
    since those of the default may be in use."""
    anywhere = {"CONURE_RAFT_ADDR": "127.0.0.1:0", "CONURE_HTTP_ADDR": "127.0.0.1:0"}
    done = forkserver.run(
        [ROOT / "conuredb.py", *flags], timeout=20, cwd=cwd, environ={**anywhere, **(environ or {})}
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-such-flag"], ["--no-such-flag", "--help"]),
        (["--htp-addr=:1"], ["--http-addr"]),
        (["stray"], ["stray", "--name=value"]),
        (["--bootstrap=maybe"], ["bootstrap", "flag --bootstrap", "maybe"]),
        (["--barrier-timeout=3"], ["barrier_timeout", "3s"]),
        (["--http-addr=8081"], ["http_addr", ":8081"]),
        (["--http-addr=:99999"], ["http_addr", "99999"]),
        (["--raft-addr=:7001"], ["raft_addr", "--raft-advertise"]),
        (["--max-value-bytes=lots"], ["max_value_bytes", "64KiB"]),
        (["--page-size=5000"], ["page_size", "power of two"]),
        (["--log-level=loud"], ["log_level", "debug"]),
        (["--node-id=a b"], ["node_id", "a b"]),
        (["--data-dir"], ["data_dir", "--data-dir=DIRECTORY"]),
        (["--data-dir="], ["data_dir"]),
        (["--config=no-such-file.yaml"], ["config", "no-such-file.yaml"]),
        (["--http-addr=192.0.2.1:1"], ["http_addr", "192.0.2.1:1", "choose another"]),
        (["--metrics-addr=127.0.0.1:x"], ["metrics_addr"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_setting_that_cannot_be_used_is_one_line_and_status_2(
    tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    done = run(*flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_environment_variable_is_named(tmp_path: Path) -> None:
    done = run(cwd=tmp_path, environ={"CONURE_WRITE_TIMEOUT": "soon"})
    assert done.returncode == 2
    assert "write_timeout (environment CONURE_WRITE_TIMEOUT)" in done.stderr


@pytest.mark.parametrize("setting", ["http_addr", "metrics_addr"])
def test_a_port_in_use_is_named(server: ServerProcess, tmp_path: Path, setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}=127.0.0.1:{server.port}"
    done = run("--http-addr=127.0.0.1:0", flag, f"--data-dir={tmp_path / 'data'}")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert setting in line
    assert f"127.0.0.1:{server.port}" in line
    assert "in use" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("argument", ["--help", "-help", "-h"])
def test_help_names_every_setting(argument: str) -> None:
    done = run(argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(setting.flag in done.stdout for setting in SETTINGS)


@pytest.mark.parametrize("argument", ["--version", "-version"])
def test_version(argument: str) -> None:
    done = run(argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert VERSION in done.stdout


def test_flag_beats_environment_beats_yaml_beats_default(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    settings = tmp_path / "settings.yaml"
    settings.write_text("node_id: from-yaml\nmax_value_bytes: 10\nbootstrap: true\n")
    environ = {"CONURE_CONFIG": str(settings), "CONURE_NODE_ID": "from-environment"}
    for flags, env, expected in (
        (["-node-id", "from-flag"], environ, "from-flag"),
        ([], environ, "from-environment"),
        ([f"--config={settings}"], {}, "from-yaml"),
    ):
        with running(tmp_path / expected, *flags, environ=env) as process:
            status = json.loads(process.request("GET", "/status").body)
            assert status["node_id"] == expected
            assert status["is_leader"] is True
            assert process.put("k", b"x" * 11).status == 413
    with running(tmp_path / "default") as process:
        assert json.loads(process.request("GET", "/status").body)["node_id"] == "node1"
        assert process.put("k", b"x" * 11).status == 200


def test_an_unknown_variable_is_worth_a_line_in_the_log(tmp_path: Path) -> None:
    with running(tmp_path, environ={"CONURE_NODEID": "x"}) as process:
        assert "CONURE_NODEID" in process.text


@pytest.mark.parametrize("bootstrap", ["--bootstrap", "-bootstrap", "--bootstrap=true"])
def test_bootstrap_needs_no_value(tmp_path: Path, bootstrap: str) -> None:
    with running(tmp_path, "--node-id=n7", bootstrap) as process:
        assert process.put("k", b"v").status == 200


# -- the data directory ----------------------------------------------------------------------------


def test_a_bare_start_makes_everything_below_data(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-S", str(ROOT / "conuredb.py"), f"--http-addr=:{free_port('127.0.0.1')}"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CONURE_RAFT_ADDR": "127.0.0.1:0"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert any("listens on" in line for line in process.stderr)
        assert {path.name for path in tmp_path.iterdir()} == {"data"}
        made = {path.name for path in (tmp_path / "data").iterdir()}
        assert made == {"LOCK", "conure.db", "identity.json", "raft"}
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.put("k", b"v")
        done = run(f"--data-dir={tmp_path}", "--http-addr=127.0.0.1:0")
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert "data_dir" in line
        assert f"process {process.process.pid} on {socket.gethostname()}" in line
        assert process.get("k").body == b"v"


def test_another_nodes_directory_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "--node-id=n1", "--bootstrap") as process:
        process.put("k", b"v")
    done = run(f"--data-dir={tmp_path}", "--http-addr=127.0.0.1:0", "--node-id=n2", "--bootstrap")
    assert done.returncode == 2
    assert "'n1'" in done.stderr
    assert "'n2'" in done.stderr
    with running(tmp_path) as process:  # told no name, it is who it was
        assert json.loads(process.request("GET", "/status").body)["node_id"] == "n1"
        assert process.get("k").body == b"v"


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run(f"--data-dir={tmp_path}", "--http-addr=127.0.0.1:0")
    assert done.returncode == 2
    assert "thesis.tex" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        done = run(f"--data-dir={path}", "--http-addr=127.0.0.1:0")
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert str(tmp_path / "file") in done.stderr


def test_a_directory_of_somebody_else_is_refused() -> None:
    script = (
        "import os, sys, conuredb\n"
        "if os.getuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"  # modules are loaded; root may write anywhere
        "sys.exit(conuredb.main(sys.argv[1:]))"
    )
    with tempfile.TemporaryDirectory() as locked:  # tmp_path is hidden from other users
        os.chmod(locked, 0o555)
        for path in (locked, os.path.join(locked, "below")):
            done = subprocess.run(
                [sys.executable, "-c", script, f"--data-dir={path}", "--http-addr=127.0.0.1:0"],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=20,
                env={**os.environ, "CONURE_RAFT_ADDR": "127.0.0.1:0"},
            )  # fmt: skip
            assert done.returncode == 2, done.stderr
            line = done.stderr.splitlines()[-1]
            assert line.startswith("conuredb: data_dir (flag --data-dir): ")
            assert locked in line
            assert "ermission denied" in line


def test_bootstrap_on_existing_state_changes_nothing(tmp_path: Path) -> None:
    seen: list[tuple[str, str, bytes]] = []
    for flags in (["--bootstrap"], ["--bootstrap"], [], ["--bootstrap=false"]):
        where = ["--raft-advertise=127.0.0.1:7001", "--http-advertise=http://h:1"]
        with running(tmp_path, "--node-id=n1", *where, *flags) as process:
            process.put(f"k{len(seen)}", b"v")
            status = json.loads(process.request("GET", "/status").body)
            config = process.request("GET", "/raft/config").body
            seen.append((status["cluster_id"], status["node_id"], config))
            assert all(process.get(f"k{n}").body == b"v" for n in range(len(seen)))
            assert process.terminate() == 0
    assert len(set(seen)) == 1


def test_a_node_that_restarts_elsewhere_announces_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.put("k", b"v")
        old = process.url
    flags = ["--raft-advertise=127.0.0.1:7123", "--http-advertise=http://db.example:80"]
    with running(tmp_path, *flags) as process:
        (server,) = json.loads(process.request("GET", "/raft/config").body)["servers"]
        assert server["address"] == "127.0.0.1:7123"
        assert server["http_address"] == "http://db.example:80" != old
        assert json.loads(process.request("GET", "/status").body)["leader"] == "127.0.0.1:7123"
        assert process.get("k").body == b"v"


def test_yaml_is_checked_like_everything_else(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    settings = tmp_path / "settings.yaml"
    settings.write_text("node_id: n1\nhtp_addr: :8081\n")
    done = run(f"--config={settings}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"htp_addr ({settings} line 2)" in done.stderr
    assert "did you mean http_addr?" in done.stderr


# -- stopping and logging --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as process:
        process.put("before", b"1")
        address = ("127.0.0.1", process.port)
        idle = socket.create_connection(address, timeout=20)
        busy = socket.create_connection(address, timeout=20)
        with idle, busy:
            busy.sendall(b"PUT /kv?key=flight HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha")
            wait_until(lambda: b"conure_http_connections 3" in process.request(
                "GET", "/metrics").body)  # fmt: skip
            process.process.send_signal(number)
            wait_until(lambda: f"{number.name}: stopping" in process.text)
            assert idle.recv(100) == b""
            busy.sendall(b"lf")
            answer = busy.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close" in answer
            assert busy.recv(100) == b""
        assert process.wait() == 0
        assert process.log[-1].endswith("conure: stopped")

    tree = open_engine(OsFileSystem(), str(tmp_path / "conure.db"), create=False)
    found = [tree.get(key) for key in (b"kbefore", b"kflight")]
    tree.close()
    assert [record and record.value for record in found] == [b"1", b"half"]


def test_a_request_that_never_ends_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with running(tmp_path, "--shutdown-timeout=100ms") as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as stuck:
            stuck.sendall(b"PUT /kv?key=k HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            wait_until(lambda: b"conure_http_connections 2" in process.request(
                "GET", "/metrics").body)  # fmt: skip
            assert process.terminate() == 0
        assert "cut off" in process.text


def test_log_formats_and_levels(tmp_path: Path) -> None:
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) +conure[.\w]*: \S.*")
    with running(tmp_path / "text") as process:
        assert process.terminate() == 0
        assert len(process.log) >= 4
        assert all(line.fullmatch(text) for text in process.log), process.text

    with running(tmp_path / "json", "--log-format=json", "--log-level=debug") as process:
        assert process.terminate() == 0
        records = [json.loads(text) for text in process.log]
        assert all(record.keys() == {"time", "level", "logger", "message"} for record in records)
        settings = [record["message"] for record in records if record["level"] == "debug"]
        assert any("log_format = json (flag --log-format)" in text for text in settings)

    port = free_port("127.0.0.1")
    quiet = ServerProcess(tmp_path / "quiet", "--log-level=error", f"--http-addr=127.0.0.1:{port}")
    try:
        quiet.port = port

        def answers() -> bool:
            with contextlib.suppress(ConnectionError):
                return quiet.request("GET", "/readyz").status == 200
            return False

        wait_until(answers)
        assert quiet.terminate() == 0
        assert quiet.log == []
    finally:
        quiet.kill()
