"""tlslink.py: a link that encrypts, against the standard library's own TLS at the other end."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic

import pytest

from conure.net.link import Link
from conure.net.tlslink import HandshakeFailed, TlsLink
from conure.net.tlsreasons import reason_of
from tests.lab.certificates import Authority, Certificate, client_context, server_context

TIME = 10.0  # seconds that a test waits at most


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("localhost")


class Client:
    """The other end: the standard library's, in memory, over a socket that a test may look at."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.socket = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def push(self) -> None:
        self.socket.sendall(self.outgoing.read())

    def pull(self) -> bool:
        """Take what has come; tell whether something has."""
        try:
            data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()
        return True

    def shake(self) -> bool:
        """Carry the handshake on; tell whether it is done."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.push()
        return True

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.push()

    def hear(self, size: int) -> bytes:
        """Return so many bytes, or what there was before the end."""
        heard = b""
        until = monotonic() + TIME
        while len(heard) < size:
            try:
                more = self.tls.read(size - len(heard))
            except ssl.SSLWantReadError:
                assert monotonic() < until, f"only {len(heard)} bytes of {size}"
                if not self.pull():
                    select.select([self.socket], [], [], 0.1)
                continue
            if not more:
                break
            heard += more
        return heard


class Pair:
    """A link of the server's side, and its client."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str = "localhost",
        deadline: float = inf,
        plain_reply: bytes = b"",
    ) -> None:
        self.failures: list[str] = []
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.link = TlsLink(
            ours,
            server,
            server_side=True,
            deadline=deadline,
            plain_reply=plain_reply,
            failed=self.failures.append,
        )
        self.client = Client(theirs, client, name)

    def shake(self) -> None:
        """Do the handshake, and whatever it brings."""
        until = monotonic() + TIME
        is_done = False
        while not is_done or self.link.deadline != inf or self.link._shakes:
            assert monotonic() < until
            is_done = self.client.shake() or is_done
            with suppress(BlockingIOError):
                self.link.handshake()
            self.client.pull()

    def receive(self, size: int) -> bytes:
        """Receive so many bytes at the link, waiting as a reactor does."""
        got = b""
        while len(got) < size:
            got += wait(self.link, partial(self.link.receive, size - len(got)))
        return got

    def close(self) -> None:
        self.link.close()
        self.client.socket.close()


def wait(link: Link, action: Callable[[], bytes]) -> bytes:
    """Do what may raise BlockingIOError until it doesn't, waiting for the socket."""
    until = monotonic() + TIME
    poll = select.poll()
    poll.register(link.descriptor, select.POLLIN)
    while True:
        try:
            return action()
        except BlockingIOError:
            assert monotonic() < until
            if not link.pending:
                poll.poll(100)


@pytest.fixture
def pair(authority: Authority, certificate: Certificate) -> Iterator[Pair]:
    pair = Pair(server_context(certificate), client_context(authority.root))
    pair.shake()
    yield pair
    pair.close()


@contextmanager
def paired(server: ssl.SSLContext, client: ssl.SSLContext, **more: str) -> Iterator[Pair]:
    pair = Pair(server, client, **more)  # type: ignore[arg-type]
    try:
        yield pair
    finally:
        pair.close()


def test_bytes_go_both_ways(pair: Pair) -> None:
    pair.client.say(b"hello")
    assert pair.receive(5) == b"hello"
    assert pair.link.send(b"good day") == 8
    assert pair.client.hear(8) == b"good day"
    assert not pair.failures


def test_much_is_received_as_it_was_sent(pair: Pair) -> None:
    data = bytes(range(256)) * 4096
    sender = threading.Thread(target=pair.client.say, args=(data,))
    sender.start()
    assert pair.receive(len(data)) == data
    sender.join()


def test_what_has_come_with_the_handshake_is_pending(
    authority: Authority, certificate: Certificate
) -> None:
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        assert not pair.client.shake()
        with pytest.raises(BlockingIOError):
            pair.link.receive(10)
        pair.client.pull()
        pair.client.tls.do_handshake()
        pair.client.tls.write(b"early")
        pair.client.push()
        assert pair.link.receive(10) == b"early"


def test_bytes_count_as_sent_when_they_have_left(pair: Pair) -> None:
    """And what was encrypted and has not left is not encrypted again."""
    data = bytes(range(256)) * 16384
    sent = 0
    full = 0
    heard = b""
    while sent < len(data):
        try:
            sent += pair.link.send(data[sent : sent + 300_000])
        except BlockingIOError:
            full += 1
            assert not pair.link.stalled
            heard += pair.client.hear(min(200_000, sent - len(heard)))
    heard += pair.client.hear(len(data) - len(heard))
    assert full > 3
    assert heard == data


def test_pieces_leave_in_a_row(pair: Pair) -> None:
    pieces: list[bytes | memoryview] = [b"a" * 3, memoryview(b"bc" * 20_000), b"", b"d" * 100]
    assert pair.link.send_pieces(pieces) == 40_103
    assert pair.client.hear(40_103) == b"".join(pieces)


def test_an_end_without_a_word_is_no_end(pair: Pair) -> None:
    pair.client.say(b"half of")
    pair.client.socket.shutdown(socket.SHUT_WR)
    assert pair.receive(7) == b"half of"
    with pytest.raises(ConnectionResetError):
        pair.link.receive(7)


def test_an_end_that_is_said_is_one(pair: Pair) -> None:
    pair.client.tls.write(b"all")
    with suppress(ssl.SSLWantReadError):
        pair.client.tls.unwrap()
    pair.client.push()
    assert pair.receive(3) == b"all"
    assert pair.link.receive(3) == b""
    assert pair.link.pending  # as epoll would tell it again
    assert pair.link.receive(3) == b""
    assert pair.link.send(b"answer") == 6  # it still listens
    assert pair.client.hear(6) == b"answer"


def test_a_link_that_is_shut_receives_on(pair: Pair) -> None:
    pair.client.say(b"x" * 30_000)
    assert pair.receive(1) == b"x"  # the rest is amid its way
    pair.link.shut()
    assert pair.client.hear(1) == b""
    pair.client.say(b"more")
    assert pair.receive(30_003) == b"x" * 29_999 + b"more"


def test_a_close_says_the_end(pair: Pair) -> None:
    pair.link.close()
    assert pair.client.hear(1) == b""


def test_why_a_handshake_fails_is_said_at_both_ends(
    authority: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    other = Authority(tmp_path)
    with paired(server_context(certificate), client_context(other.root)) as pair:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            pair.shake()
        assert "CA of its certificate is none of those that we know" in reason_of(caught.value)
        with pytest.raises(HandshakeFailed):
            pair.link.handshake()
        assert len(pair.failures) == 1
        assert pair.failures[0].startswith("it does not know the CA of our certificate")
