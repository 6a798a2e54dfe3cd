"""TLS as its users meet it: a real process, curl among the clients, and files that change while it
serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.certificates import Authority, Certificate, client_context
from tests.lab.process import ServerProcess, own_port, running, wait_until

CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")
FRONTS = ("--resp-addr=127.0.0.1:0", "--rest-addr=127.0.0.1:0")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def flags_of(made: Certificate, *more: str) -> tuple[str, ...]:
    return f"--tls-cert={made.cert}", f"--tls-key={made.key}", *more


@contextmanager
def connected(port: int, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") as client:
        yield client


def say(client: socket.socket, data: bytes, until: bytes) -> bytes:
    """Send *data* and return what comes, up to *until*."""
    client.sendall(data)
    got = b""
    while until not in got:
        more = client.recv(1 << 16)
        assert more, got
        got += more
    return got


def get(client: socket.socket, key: str = "a") -> bytes:
    return say(
        client, f"GET /kv?key={key} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), b"\r\n\r\n"
    )


def subject_of(client: ssl.SSLSocket) -> Any:
    certificate = client.getpeercert()
    assert certificate
    return certificate["subjectAltName"]


def replace(old: Certificate, new: Certificate) -> None:
    """Put one pair in the place of another, as `mv` does."""
    for source, target in ((new.cert, old.cert), (new.key, old.key)):
        copy = target.with_suffix(".new")
        shutil.copy(source, copy)
        os.replace(copy, target)


def test_whom_a_client_names(authority: Authority, tmp_path: Path) -> None:
    """Its certificate's name is in the log of slow requests and in CLIENT LIST, at every front."""
    made, named = authority.issue("localhost"), authority.issue("reader.example")
    flags = flags_of(made, f"--tls-client-ca={authority.root}", "--slow-request=1ms", *FRONTS)
    context = client_context(authority.root, named)
    with running(tmp_path / "data", "--bootstrap", *flags) as server:
        with connected(own_port(server, "RESP"), context) as client:
            said = say(client, b"SET a b\r\nCLIENT LIST\r\n", b"lib-ver")
            assert said.startswith(b"+OK\r\n")
            assert b" user=reader.example " in said
        with connected(own_port(server, "REST"), context) as client:
            assert b" 200 " in say(client, b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n", b'"b"')
        with connected(server.own_port, context) as client:
            assert b" 200 " in get(client)
            value = b"x" * 500_000
            head = b"PUT /kv?key=b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n"
            assert b" 200 " in say(client, head + value, b"\r\n\r\n")
        pattern = re.compile(r"slow: .* of reader\.example at 127\.0\.0\.1:\d+ answered 200")
        wait_until(lambda: any(pattern.search(line) for line in server.log))
        # Whoever shows none is nobody here.
        with (
            connected(server.own_port, client_context(authority.root)) as client,
            pytest.raises((ssl.SSLError, ConnectionResetError)),
        ):
            get(client)
        wait_until(lambda: "it has shown no certificate, and has to" in server.text)
        assert f"[{made.cert}: for localhost, by " in server.text


def test_files_that_change_end_no_connection(authority: Authority, tmp_path: Path) -> None:
    made, later = authority.issue("localhost"), authority.issue("localhost", "later")
    other = Authority(tmp_path / "other")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.pem + other.pem)
    flags = flags_of(made, f"--tls-client-ca={bundle}")
    ours = client_context(authority.root, authority.issue("ours"))
    theirs = client_context(authority.root, other.issue("theirs"))
    with (
        running(tmp_path / "data", "--bootstrap", *flags) as server,
        connected(server.own_port, theirs) as open_before,
    ):
        assert b" 404 " in get(open_before)
        with connected(server.own_port, ours) as client:
            assert ("DNS", "later") not in subject_of(client)
        replace(made, later)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: f"read again: {made.cert}" in server.text)
        with connected(server.own_port, ours) as client:
            assert ("DNS", "later") in subject_of(client)
        # Half of a file is said, and changes nothing; nobody has to send a signal for that.
        whole = made.key.read_bytes()
        made.key.write_bytes(whole[: len(whole) // 2])
        wait_until(lambda: "what was read before stays in use" in server.text)
        with connected(server.own_port, ours) as client:
            assert b" 404 " in get(client)
        made.key.write_bytes(whole)
        wait_until(lambda: server.text.count("read again: ") == 2)
        # A CA that is taken out: whoever is connected stays, and gets in no more.
        bundle.write_bytes(authority.pem)
        wait_until(lambda: server.text.count("read again: ") == 3)
        with (
            connected(server.own_port, theirs) as client,
            pytest.raises((ssl.SSLError, ConnectionResetError)),
        ):
            get(client)
        assert b" 404 " in get(open_before)
        assert server.terminate() == 0


def test_what_cannot_be_used_ends_the_start(authority: Authority, tmp_path: Path) -> None:
    made, other = authority.issue("localhost"), authority.issue("localhost")
    wrong = Certificate(made.cert, other.key, made.ca)
    server = ServerProcess(tmp_path / "data", *flags_of(wrong))
    assert server.wait() == 2
    assert f"tls_key (flag --tls-key): {other.key} is not the key of" in server.text
    assert not (tmp_path / "data").exists()


@needs_curl
def test_a_trial(tmp_path: Path) -> None:
    """--tls-auto takes nothing but itself, and says how to ask; what it made is used on."""
    data = tmp_path / "data"
    for _ in range(2):
        with running(data, "--bootstrap", "--tls-auto", "--tls-client-auth=require") as server:
            wait_until(lambda: "ask it so: " in server.text)
            line = next(line for line in server.log if "ask it so: " in line)
            words = line.partition("ask it so: ")[2].split()
            assert words[0] == "curl"
            asked = subprocess.run(
                [*words, "--silent", "--max-time", "20"], capture_output=True, check=True
            )
            assert json.loads(asked.stdout)["leader_http"] == f"https://127.0.0.1:{server.own_port}"
            made = (data / "tls" / "server.pem").read_bytes()
            assert server.terminate() == 0
    assert (data / "tls" / "server.pem").read_bytes() == made
    assert "making" not in server.text


def test_the_wrong_tongue(authority: Authority, tmp_path: Path) -> None:
    """Plain text at a port with TLS, and the reverse, are told so at once, at every front."""
    with running(tmp_path / "tls", *flags_of(authority.issue("localhost")), *FRONTS) as server:
        for front in ("HTTP", "REST"):
            port = server.own_port if front == "HTTP" else own_port(server, front)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                assert b"this port speaks TLS; use https://" in get(client) + client.recv(1000)
        address = ("127.0.0.1", own_port(server, "RESP"))
        with socket.create_connection(address, timeout=20) as client:
            assert say(client, b"PING\r\n", b"\r\n") == b"-ERR this port speaks TLS\r\n"
        wait_until(lambda: "(resp) failed: it speaks plain text" in server.text)
    with running(tmp_path / "plain", *FRONTS) as server:
        for port in (server.own_port, own_port(server, "REST"), own_port(server, "RESP")):
            with (
                pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"),
                connected(port, client_context(authority.root)),
            ):
                raise AssertionError("nobody speaks TLS there")
        wait_until(lambda: "127.0.0.1 speaks TLS, and this port doesn't" in server.text)
        wait_until(lambda: "a TLS handshake, and this port speaks no TLS" in server.text)


def test_a_thousand_idle_connections(authority: Authority, tmp_path: Path) -> None:
    """They take some tens of KiB each, and are let go of."""

    def resident() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]

    context = client_context(authority.root)
    with running(tmp_path / "data", *flags_of(authority.issue("localhost"))) as server:
        with ExitStack() as clients:
            for _ in range(50):  # what is made once is made
                clients.enter_context(connected(server.own_port, context))
            before = resident()
            for _ in range(1000):
                clients.enter_context(connected(server.own_port, context))
            grown = resident() - before
        assert grown < 64 * 1000, f"{grown} KiB for 1,000 connections"
        print(f"{grown} KiB for 1,000 idle connections")
