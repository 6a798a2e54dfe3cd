"""tlslink.py: a link that encrypts, against the standard library's own TLS at the other end."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic, time

import pytest

from conure.net import tlslink
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


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; return how many bytes that were."""
    size = 0
    try:
        while True:
            size += sock.send(b"x" * 1000)
    except BlockingIOError:
        return size


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


# -- handshakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("key_type", ["ECDSA", "RSA"])
def test_versions_and_keys(authority: Authority, key_type: str, version: ssl.TLSVersion) -> None:
    client = client_context(authority.root)
    client.maximum_version = version
    made = authority.issue("localhost", key_type=key_type)
    with paired(server_context(made), client) as pair:
        pair.shake()
        pair.client.say(b"hello")
        assert pair.receive(5) == b"hello"
        assert pair.link.send(b"x" * 100_000) == 100_000
        assert pair.client.hear(100_000) == b"x" * 100_000


def test_one_byte_at_a_time(authority: Authority, certificate: Certificate) -> None:
    """However the bytes were split on their way; and nothing is pending that can't be had."""
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        client, link = pair.client, pair.link
        got = b""

        def trickle() -> None:
            nonlocal got
            for byte in client.outgoing.read():
                client.socket.send(bytes((byte,)))
                with suppress(BlockingIOError):
                    got += link.receive(100)
                if not got:
                    assert not link.pending

        while True:
            try:
                client.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                trickle()
                client.pull()
        trickle()
        client.tls.write(b"one by one")
        trickle()
        assert got == b"one by one"


def test_nothing_is_sent_before_the_handshake_is_done(
    authority: Authority, certificate: Certificate
) -> None:
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        with pytest.raises(ConnectionAbortedError):
            pair.link.send(b"too early")
        assert not pair.client.pull()


def test_who_only_connects_costs_no_object(authority: Authority, certificate: Certificate) -> None:
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        with pytest.raises(BlockingIOError):
            pair.link.receive(1)
        assert pair.link._object is None
        pair.client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            pair.link.receive(1)
        assert not pair.failures  # a probe of the port, say


def test_who_ends_amid_the_handshake_is_told_of(
    authority: Authority, certificate: Certificate
) -> None:
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        pair.client.shake()
        pair.client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeFailed, match="before the handshake was done"):
            pair.link.receive(1)
        assert len(pair.failures) == 1


def test_who_takes_too_long_is_told_of(authority: Authority, certificate: Certificate) -> None:
    for deadline, told in ((-inf, ["the handshake took too long"]), (inf, [])):
        pair = Pair(server_context(certificate), client_context(authority.root), deadline=deadline)
        pair.client.shake()
        with pytest.raises(BlockingIOError):
            pair.link.receive(1)
        pair.close()
        assert pair.failures == told


def test_plain_text_is_answered_in_plain_text(
    authority: Authority, certificate: Certificate
) -> None:
    pair = Pair(server_context(certificate), client_context(authority.root), plain_reply=b"TLS!")
    pair.client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeFailed):
        pair.link.receive(1)
    assert pair.client.socket.recv(10) == b"TLS!"
    assert pair.failures == ["it speaks plain text, and this port speaks TLS (https)"]
    pair.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("expired", "its certificate has expired"),
        ("not yet", "its certificate is not valid yet"),
        ("other CA", "the CA of its certificate is none of those that we know"),
        ("none", "it has shown no certificate"),
        ("gap", "its chain has a gap"),
    ],
)
def test_a_client_without_the_right_certificate(
    authority: Authority, certificate: Certificate, tmp_path: Path, kind: str, said: str
) -> None:
    between = Authority(tmp_path / "between", parent=authority)
    shown = {
        "expired": lambda: authority.expired("c"),
        "not yet": lambda: authority.not_yet_valid("c"),
        "other CA": lambda: Authority(tmp_path / "other").issue("c"),
        "none": lambda: None,
        "gap": lambda: between.issue("c", with_chain=False),
    }[kind]()
    client = client_context(authority.root, shown)
    with paired(server_context(certificate, authority.root), client) as pair:
        with pytest.raises((HandshakeFailed, ssl.SSLError)):
            pair.shake()
        assert said in pair.failures[0]


def test_whom_a_certificate_names(
    authority: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    between = Authority(tmp_path / "between", parent=authority)
    for made, principal, names in (
        (authority.issue("a.example", "b.example", common_name="c"), "a.example",
         {"a.example", "b.example"}),
        (authority.issue("10.0.0.7", common_name="c"), "10.0.0.7", set()),
        (between.issue("d.example"), "d.example", {"d.example"}),
    ):  # fmt: skip
        client = client_context(authority.root, made)
        with paired(server_context(certificate, authority.root), client) as pair:
            assert pair.link.proof == ""
            pair.shake()
            assert (pair.link.principal, set(pair.link.names)) == (principal, names)
            assert pair.link.proof == "certificate"


def test_a_certificate_that_expired_since_its_session_began(
    authority: Authority, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authority.issue("a.example")
    server, client = (
        server_context(certificate, authority.root),
        client_context(authority.root, made),
    )
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with paired(server, client) as pair:
        pair.shake()
        session = pair.client.tls.session

    def resume() -> Pair:
        pair = Pair(server, client)
        pair.client.tls.session = session
        try:
            pair.shake()
        except BaseException:
            pair.close()
            raise
        return pair

    pair = resume()
    assert pair.client.tls.session_reused
    assert pair.link.principal == "a.example"
    pair.close()
    monkeypatch.setattr(tlslink, "time", lambda: time() + 40 * 86400)
    with pytest.raises(HandshakeFailed, match="expired since the session began"):
        resume()


def test_a_client_of_ours(authority: Authority, certificate: Certificate) -> None:
    """Both ends are links, and look at names; what the server says of a client comes late (1.3)."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    server = TlsLink(
        ours, server_context(certificate, authority.root), server_side=True, deadline=inf
    )
    client = TlsLink(
        theirs,
        client_context(authority.root),
        server_side=False,
        deadline=inf,
        hostname="localhost",
    )
    with pytest.raises(BlockingIOError):
        client.handshake()
    with pytest.raises(BlockingIOError):
        server.handshake()
    client.handshake()
    assert client.proof == "certificate"
    with pytest.raises(HandshakeFailed):
        server.handshake()
    with pytest.raises(ConnectionResetError, match="wants a certificate of us"):
        client.receive(1)
    server.close()
    client.close()


# -- records ---------------------------------------------------------------------------------------


def test_a_record_that_was_altered_ends_the_connection(pair: Pair) -> None:
    pair.client.tls.write(b"right")
    whole = pair.client.outgoing.read()
    pair.client.tls.write(b"wrong")
    altered = bytearray(pair.client.outgoing.read())
    altered[-1] ^= 1
    pair.client.socket.sendall(whole + altered)
    assert (
        wait(pair.link, partial(pair.link.receive, 100)) == b"right"
    )  # what came before is given first
    assert pair.link.pending
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match=r"(?i)mac"):
            pair.link.receive(5)
    with pytest.raises(ConnectionResetError):
        pair.link.send(b"x")


@pytest.mark.parametrize(
    "record",
    [b"\x17\x03\x03\xff\xff" + b"x" * 30_000, b"\x17\x03\x03\x00\x01x", b"\x99" * 50],
    ids=["oversized", "too short", "of no kind"],
)
def test_records_that_are_none(pair: Pair, record: bytes) -> None:
    pair.client.socket.sendall(record)
    with pytest.raises(ConnectionResetError):
        wait(pair.link, partial(pair.link.receive, 1))


def test_a_record_that_is_cut_is_never_given(pair: Pair) -> None:
    pair.client.tls.write(b"x" * 10_000)
    whole = pair.client.outgoing.read()
    pair.client.socket.sendall(whole[:-1])
    pair.client.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        wait(pair.link, partial(pair.link.receive, 1))


def test_one_call_decrypts_so_many_records(pair: Pair) -> None:
    for _ in range(500):
        pair.client.tls.write(b"x")
    pair.client.push()
    sizes: list[int] = []
    while sum(sizes) < 500:
        sizes.append(len(pair.link.receive(1000)))
        assert pair.link.pending or sum(sizes) == 500
    assert max(sizes) <= 64 + 1
    assert len(sizes) <= 9
    with pytest.raises(BlockingIOError):
        pair.link.receive(1)
    assert not pair.link.pending


def test_nobody_changes_what_was_agreed_on(authority: Authority, certificate: Certificate) -> None:
    """A renegotiation (1.2) is refused: the client is told so, or the connection ends."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    context = server_context(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = subprocess.Popen(
            [
                openssl,
                "s_client",
                "-tls1_2",
                "-connect",
                f"127.0.0.1:{port}",
                "-legacy_renegotiation",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert client.stdin is not None
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        link = TlsLink(accepted, context, server_side=True, deadline=inf)
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        assert wait(link, partial(link.receive, 6)) == b"hello\n"
        client.stdin.write(b"R\n")
        client.stdin.flush()
        with suppress(ConnectionResetError):
            assert wait(link, partial(link.receive, 6)) == b""
        link.close()
        client.communicate(timeout=TIME)


def test_who_makes_it_speak_and_listens_to_nothing(
    authority: Authority, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenSSL has to say by itself is bounded, and sent when the socket takes it."""
    monkeypatch.setattr(tlslink, "_MOST_UNSENT", 100)
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        ours = pair.link.socket
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        fill(ours)
        pair.client.shake()
        with pytest.raises(ConnectionResetError, match="reads nothing"):
            pair.link.receive(1)


def test_what_waits_for_the_socket_is_sent_by_itself(
    authority: Authority, certificate: Certificate
) -> None:
    """A reactor has epoll tell when a link is stalled no more, and the handshake goes on."""
    with paired(server_context(certificate), client_context(authority.root)) as pair:
        ours = pair.link.socket
        left = fill(ours)
        pair.client.shake()
        with pytest.raises(BlockingIOError):
            pair.link.receive(1)
        states = [pair.link.stalled]
        while left:
            left -= len(pair.client.socket.recv(left))
        pair.link.flush()
        states.append(pair.link.stalled)
        assert states == [True, False]
        pair.shake()
        pair.client.say(b"hello")
        assert pair.receive(5) == b"hello"
