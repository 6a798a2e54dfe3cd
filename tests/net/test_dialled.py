"""dialled.py: a connection that is asked by, plain or by TLS: waits, ends, reasons."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conure.clienttls import ClientTls
from conure.net.dialled import Dialled, name_to_check
from conure.tlswords import JOINING, is_refusal, why_failed
from tests.lab.tlsfiles import Issuer

HOST = "127.0.0.1"


@pytest.fixture(scope="module", name="issuer")
def _issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("ca"))


Play = Callable[[socket.socket], None]
Serve = Callable[[Play], int]


@pytest.fixture(name="serve")
def _serve() -> Iterator[Serve]:
    """Let one connection be answered by a play; return the port."""
    threads: list[threading.Thread] = []

    def serve(play: Play) -> int:
        server = socket.create_server((HOST, 0))

        def run() -> None:
            with server, server.accept()[0] as accepted:
                play(accepted)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield serve
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def sealed(context: ssl.SSLContext, play: Play) -> Play:
    def run(accepted: socket.socket) -> None:
        with context.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as link:
            play(link)

    return run


def dial(port: int, issuer: Issuer | None = None, seconds: float = 10.0) -> Dialled:
    dialled = Dialled.connect(HOST, port, seconds)
    if issuer is not None:
        dialled.secure(ClientTls(issuer.file).context(), HOST)
    return dialled


@pytest.mark.parametrize("by_tls", [False, True])
def test_what_is_sent_and_received(serve: Serve, issuer: Issuer, by_tls: bool) -> None:
    large = bytes(range(256)) * 4096
    seen: list[bytes] = []

    def echo(accepted: socket.socket) -> None:
        data = b""
        while len(data) < len(large):
            data += accepted.recv(1 << 16)
        accepted.sendall(data)
        try:
            seen.append(accepted.recv(9))  # the client says that it goes
        except OSError as error:
            seen.append(repr(error).encode())

    context = issuer.issue(HOST).server_context()
    dialled = dial(serve(sealed(context, echo) if by_tls else echo), issuer if by_tls else None)
    assert dialled.is_sealed == by_tls
    count = dialled.send(large)
    assert 0 < count <= (16384 if by_tls else len(large))
    dialled.sendall(memoryview(large)[count:])
    with dialled.makefile("rb") as reader:
        assert reader.read(len(large)) == large
        assert not dialled.has_input()
        dialled.close()
        assert dialled.fileno() >= 0  # until the reader is closed, too
    assert dialled.fileno() == -1
    dialled.close()
    wait_for(lambda: bool(seen))
    assert seen == [b""]


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_came_decrypted_is_input(serve: Serve, issuer: Issuer) -> None:
    done = threading.Event()

    def play(accepted: socket.socket) -> None:
        accepted.sendall(b"two bytes and more")
        done.wait(10)

    dialled = dial(serve(sealed(issuer.issue(HOST).server_context(), play)), issuer)
    assert dialled.recv(2) == b"tw"
    assert dialled.has_input()
    assert dialled.recv(99) == b"o bytes and more"
    assert not dialled.has_input()
    done.set()
    dialled.close()


def test_every_wait_has_an_end(serve: Serve, issuer: Issuer) -> None:
    done = threading.Event()

    def wait(_: socket.socket) -> None:
        done.wait(10)

    dialled = Dialled.connect(HOST, serve(wait), 0.1)
    with pytest.raises(TimeoutError):
        dialled.secure(ClientTls(issuer.file).context(), HOST)
    dialled.close()
    dialled = dial(serve(wait))
    for deadline, silence in ((0.05, 10.0), (10.0, 0.05)):
        dialled.settimeout(deadline)
        dialled.silence = silence
        with pytest.raises(TimeoutError):
            dialled.recv(1)
    dialled.deadline = time.monotonic() - 1
    with pytest.raises(TimeoutError):
        dialled.send(b"x")
    dialled.close()
    done.set()


def ask(dialled: Dialled) -> bytes:
    dialled.send(b"x")
    return dialled.recv(1)


def test_a_refusal_is_told_however_late_it_comes(serve: Serve, issuer: Issuer) -> None:
    context = issuer.issue(HOST).server_context(issuer.file)

    def refuse(accepted: socket.socket) -> None:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(accepted, server_side=True)

    for pause in (0.0, 0.1):
        dialled = dial(serve(refuse), issuer)
        time.sleep(pause)  # after which the server has gone and nothing can be sent
        with pytest.raises(ssl.SSLError) as caught:
            ask(dialled)
        assert is_refusal(caught.value)
        assert "asks for a certificate" in why_failed(caught.value)
        assert "--tls-cert" in why_failed(caught.value, JOINING)
        dialled.close()


@pytest.mark.parametrize("by_tls", [False, True])
def test_who_has_gone_takes_nothing(serve: Serve, issuer: Issuer, by_tls: bool) -> None:
    def play(accepted: socket.socket) -> None:
        accepted.sendall(b"x")

    context = issuer.issue(HOST).server_context()
    dialled = dial(serve(sealed(context, play) if by_tls else play), issuer if by_tls else None)
    assert dialled.recv(1) == b"x"
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_ever(dialled)
    dialled.close()


def send_for_ever(dialled: Dialled) -> None:
    while True:
        dialled.send(b"y")
        dialled.sendall(b"y" * 100_000)


def test_another_thread_cuts_a_wait(serve: Serve, issuer: Issuer) -> None:
    done = threading.Event()

    def wait(_: socket.socket) -> None:
        done.wait(10)

    dialled = dial(serve(sealed(issuer.issue(HOST).server_context(), wait)), issuer)
    threading.Timer(0.05, dialled.cut).start()
    with pytest.raises(OSError, match="EOF"):
        dialled.recv(1)
    dialled.cut()
    dialled.close()
    dialled.cut()
    done.set()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", ""])
def test_names_that_nobody_can_have(serve: Serve, issuer: Issuer, host: str) -> None:
    def play(accepted: socket.socket) -> None:
        accepted.recv(1)

    dialled = dial(serve(play))
    with pytest.raises(OSError, match=r"can be called|Name or service|such address"):
        dialled.secure(ClientTls(issuer.file).context(), host)
    dialled.close()


def test_the_name_that_a_server_has_to_prove(tmp_path: Path) -> None:
    assert name_to_check("fe80::1%eth0") == "fe80::1"
    assert name_to_check("db.example.") == "db.example"
    assert why_failed(OSError(1, "no")) == why_failed(TimeoutError("x")) == ""
    assert not is_refusal(OSError(1, str(tmp_path)))
