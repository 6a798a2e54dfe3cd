"""Links that encrypt, in a reactor: handshakes that aren't done, and what others notice of them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from conure.http.limits import Limits
from conure.http.server import SPEAKS_TLS, HTTPServer
from conure.net.listener import bind
from conure.net.tlslink import ServerLinks
from tests.lab.certificates import Authority, Certificate, client_context, server_context
from tests.lab.httpdriver import Recorder, read_all, read_answers
from tests.lab.process import wait_until

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("ca")).issue("localhost")


@contextmanager
def serving(
    context: ssl.SSLContext, seconds: float = 10.0, limits: Limits | None = None
) -> Iterator[tuple[HTTPServer, list[str]]]:
    """Run a server by TLS; yield it with why handshakes failed."""
    failures: list[str] = []
    links = ServerLinks(
        lambda: context, SPEAKS_TLS, lambda address, why: failures.append(why), seconds
    )
    server = HTTPServer(bind(("127.0.0.1", 0)), Recorder(), limits, make_link=links)
    server.start()
    try:
        yield server, failures
    finally:
        server.drain(0)


def ask(server: HTTPServer, context: ssl.SSLContext) -> bytes:
    """Ask once on a connection of its own; return the answer."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with context.wrap_socket(raw, server_hostname="localhost") as client:
        client.sendall(GET)
        return read_answers(client, 1)


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; return how many bytes that were."""
    size = 0
    try:
        while True:
            size += sock.send(b"x" * 1000)
    except BlockingIOError:
        return size


def hello(context: ssl.SSLContext) -> bytes:
    """Return the first words of a client."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_requests_are_answered(certificate: Certificate) -> None:
    with serving(server_context(certificate)) as (server, failures):
        for _ in range(3):
            assert b"HTTP/1.1 200 " in ask(server, client_context(certificate.ca))
        assert not failures


def test_a_large_answer_to_a_client_that_reads_slowly(certificate: Certificate) -> None:
    with serving(server_context(certificate)) as (server, _):
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        with client_context(certificate.ca).wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"GET /big?size=20000000 HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
            answer = read_answers(client, 2)
            assert answer.count(b"x" * 20_000_000) == 1
        wait_until(lambda: server.reactor.leaving == 0)


def test_who_asks_in_plain_text_is_told(certificate: Certificate) -> None:
    with (
        serving(server_context(certificate)) as (server, failures),
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(GET)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\nthis port speaks TLS; use https:// in place of http://\n")
        wait_until(lambda: len(failures) == 1)


def test_unfinished_handshakes_end_in_time(certificate: Certificate) -> None:
    context = client_context(certificate.ca)
    words = hello(context)
    with serving(server_context(certificate), 1.0) as (server, failures), ExitStack() as clients:
        for number in range(300):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            clients.enter_context(closing(client))
            client.sendall((b"", words[:1], words[:100], words)[number % 4])
        # Others are served meanwhile.
        assert b"HTTP/1.1 200 " in ask(server, context)
        wait_until(lambda: server.connections_open == 0)
        # Who has said nothing is no client yet.
        assert {*failures} == {"the handshake took too long"}
        assert len(failures) == 225


def test_those_who_do_not_finish_keep_nobody_out(certificate: Certificate) -> None:
    """They have places as all others, and a probe is answered from the reserve."""
    context = client_context(certificate.ca)
    limits = Limits(max_connections=64)
    with (
        serving(server_context(certificate), 2.0, limits) as (server, _),
        ExitStack() as clients,
    ):
        for _ in range(80):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            clients.enter_context(closing(client))
        wait_until(lambda: server.front.places.taken == server.front.places.ordinary)
        wait_until(lambda: server.front.places.taken == 0)
        assert b"HTTP/1.1 200 " in ask(server, context)


def test_a_handshake_goes_on_when_the_socket_takes_its_words(certificate: Certificate) -> None:
    """They don't fit into a socket that nobody reads: epoll tells when they do."""
    with serving(server_context(certificate)) as (server, failures):
        ours, client = socket.socketpair()  # of these nothing is on its way
        ours.setblocking(False)
        client.settimeout(10)
        left = fill(ours)
        links = ServerLinks(lambda: server_context(certificate), b"", lambda address, why: None)
        link = links(ours, ("127.0.0.1", 1))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(certificate.ca).wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        with closing(client):
            client.sendall(outgoing.read())
            server.reactor.adopt(server.front, link, ("127.0.0.1", 1))
            wait_until(lambda: link.stalled)
            while left:
                left -= len(client.recv(left))
            is_done = False
            while not is_done:
                incoming.write(client.recv(1 << 16))
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    is_done = True
            tls.write(GET)
            client.sendall(outgoing.read())
            answer = b""
            while b"HTTP/1.1 200 " not in answer:
                incoming.write(client.recv(1 << 16))
                with suppress(ssl.SSLWantReadError):
                    while True:
                        answer += tls.read(1 << 16)
        assert not failures


def test_a_certificate_that_changes_ends_no_connection(
    certificate: Certificate, tmp_path: Path
) -> None:
    other = Authority(tmp_path).issue("localhost")
    contexts = [server_context(certificate), server_context(other)]
    context = contexts[0]
    links = ServerLinks(lambda: contexts[0], SPEAKS_TLS, lambda address, why: None)
    server = HTTPServer(bind(("127.0.0.1", 0)), Recorder(), make_link=links)
    server.start()
    try:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        with client_context(certificate.ca).wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(GET)
            read_answers(client, 1)
            contexts.remove(context)
            with pytest.raises(ssl.SSLCertVerificationError):
                ask(server, client_context(certificate.ca))
            assert b"HTTP/1.1 200 " in ask(server, client_context(other.ca))
            client.sendall(GET)
            assert b"HTTP/1.1 200 " in read_answers(client, 1)
    finally:
        server.drain(0)
