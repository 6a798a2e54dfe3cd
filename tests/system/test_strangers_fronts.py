"""Strangers at the ports of a locked node's clients: they reach nothing, and nobody waits for them.

Whoever has no certificate of the right CA gets nothing of a request read, at any front.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.certificates import Authority, client_context
from tests.lab.process import ServerProcess, resp_port, rest_port, running
from tests.lab.strangers import (
    CLIENT_HELLO,
    HELLO_BY_SECRET,
    OPEN_FRAME,
    PLAIN_HTTP,
    PLAIN_RESP,
    say_raw,
)

SECONDS = 10.0


@pytest.fixture(scope="module")
def fronts(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ServerProcess, dict[str, int], Authority]]:
    """A node that serves only who has a certificate, and its ports."""
    place = tmp_path_factory.mktemp("fronts")
    ours = Authority(place / "ca")
    server = ours.issue("127.0.0.1")
    flags = [
        f"--tls-cert={server.cert}",
        f"--tls-key={server.key}",
        f"--tls-client-ca={ours.root}",
        "--resp-addr=127.0.0.1:0",
        "--rest-addr=127.0.0.1:0",
    ]
    with running(place / "data", "--bootstrap", *flags) as process:
        ports = {"http": process.port, "resp": resp_port(process), "rest": rest_port(process)}
        yield process, ports, ours


def by_tls(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Shake hands, send bytes and return what is answered."""
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as link,
    ):
        link.sendall(data)
        return link.recv(1 << 16)


def test_without_a_certificate_of_that_ca_nobody_is_answered(
    fronts: tuple[ServerProcess, dict[str, int], Authority], tmp_path: Path
) -> None:
    _, ports, ours = fronts
    strangers = Authority(tmp_path / "strangers")
    known = client_context(ours.root, ours.issue("alice"))
    paths = (
        b"/kv?key=k",
        b"/livez",
        b"/metrics",
        b"/status",
        b"/backup",
        b"/",
        b"/join",
        b"/nowhere",
    )
    for front, port in ports.items():
        said = PLAIN_RESP if front == "resp" else PLAIN_HTTP
        assert by_tls(port, known, said)  # it is the certificate that is lacking
        for nobody in (None, strangers.issue("alice"), ours.expired("alice")):
            for path in paths:
                request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
                heard = b""
                with contextlib.suppress(OSError):  # of TLS, or the connection is gone
                    heard = by_tls(port, client_context(ours.root, nobody), request)
                assert heard == b"", (front, path)


@pytest.mark.parametrize(
    "said", [PLAIN_HTTP, PLAIN_RESP, HELLO_BY_SECRET, OPEN_FRAME, CLIENT_HELLO, b"\x16" * 70_000]
)
def test_other_tongues_are_turned_away_at_every_port(
    fronts: tuple[ServerProcess, dict[str, int], Authority], said: bytes
) -> None:
    process, ports, _ = fronts
    for front, port in ports.items():
        heard = say_raw("127.0.0.1", port, said)
        assert len(heard) < 300
        assert heard[:1] in (b"", b"\x15") or b"speaks TLS" in heard, (front, heard)
    assert "Traceback" not in process.text


@pytest.mark.parametrize("count", [800])
def test_handshakes_that_never_end_delay_nobody(
    fronts: tuple[ServerProcess, dict[str, int], Authority], count: int
) -> None:
    process, ports, ours = fronts
    context = client_context(ours.root, ours.issue("alice"))
    hello = client_hello(context)

    def worst(requests: int = 200) -> list[float]:
        with (
            socket.create_connection(("127.0.0.1", process.port), SECONDS) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as link,
        ):
            times = []
            for _ in range(requests):
                began = time.perf_counter()
                link.sendall(PLAIN_HTTP)
                assert link.recv(1 << 16).startswith(b"HTTP/1.1 404")
                times.append(time.perf_counter() - began)
        return sorted(times)

    alone = worst()
    with contextlib.ExitStack() as stack:
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", ports["http"]), SECONDS)
            stack.enter_context(sock)
            sock.sendall(hello[: number % len(hello)])
        beside = worst()
    at = -len(alone) // 50
    print(f"{count} unfinished handshakes: {alone[at] * 1e3:.2f} -> {beside[at] * 1e3:.2f} ms")
    assert beside[-1] < 1.0


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first bytes of a client's handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    assert struct.unpack(">BHH", hello[:5])[2] == len(hello) - 5
    return hello
