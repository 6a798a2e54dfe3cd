"""Nodes that prove themselves by secret or certificate, in every mode, and strangers that can't."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conure.consensus.records import encode_frame
from conure.errors import ConureError, Unavailable
from conure.peers import sockets
from conure.peers.calls import Answer, AnswerKind, Call, CallKind
from conure.peers.forming import Question, Shown
from conure.peers.protocol import MAX_HANDSHAKE, Greeting
from conure.peers.proving import OFFER, OPEN, REQUIRE, PeerSecurity
from conure.security.secret import (
    ACCEPTOR,
    DIALLER,
    HELLO_BYTES,
    VERSION,
    Nonces,
    prove,
    seals_of,
)
from tests.lab.certificates import Authority, Certificate
from tests.lab.transports import (
    PATIENCE,
    Net,
    Node,
    State,
    address,
    eventually,
    frame,
    hello,
    is_closed,
    message_to,
    probe,
    read_exactly,
)

A, B = b"a" * 32, b"b" * 32


def by_secret(*secrets: bytes, mode: str = REQUIRE) -> PeerSecurity:
    return PeerSecurity(mode, lambda: secrets)


class Certificates:
    """What proves nodes by certificates of one CA."""

    def __init__(self, place: Path) -> None:
        self.authority = Authority(place)

    def of(
        self,
        *names: str,
        mode: str = REQUIRE,
        secrets: Sequence[bytes] = (),
        certificate: Certificate | None = None,
        ca: Path | None = None,
    ) -> PeerSecurity:
        shown = certificate or self.authority.issue(*names)

        def context(protocol: int) -> ssl.SSLContext:
            made = ssl.SSLContext(protocol)
            made.check_hostname = False
            made.verify_mode = ssl.CERT_REQUIRED
            made.load_cert_chain(shown.cert, shown.key)
            made.load_verify_locations(ca or shown.ca)
            return made

        client = context(ssl.PROTOCOL_TLS_CLIENT)
        server = context(ssl.PROTOCOL_TLS_SERVER)
        return PeerSecurity(mode, lambda: secrets, lambda: client, lambda: server)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ca"))


def talk(a: Node, b: Node) -> None:
    """Have a reach b in every way there is, and b answer."""
    a.knows(b)
    eventually(lambda: a.send("b", 7) or b.messages)  # type: ignore[func-returns-value]
    assert b.messages[0].index == 7
    a.transport.send_snapshot(State("b", 95))
    eventually(lambda: a.sent)
    assert a.sent == [("b", 70)]
    assert len(b.staged[0].records) == 95
    b.on_call = lambda call, answer: answer(Answer(AnswerKind.CONFIRMED, 2, call.body))
    told: list[Answer | ConureError] = []
    a.transport.call("b", Call(CallKind.CONFIRM, 2, bytes(8)), told.append, PATIENCE)
    eventually(lambda: told)
    assert isinstance(told[0], Answer)
    assert told[0].body == bytes(8)
    assert probe(a, b.address, "b") == b.greeting()
    shown: list[Shown | ConureError] = []
    a.transport.ask(b.address, Question("a", "i-a"), shown.append)
    eventually(lambda: shown)
    assert shown == [b.shown]


def refusal(a: Node, b: Node, node_id: str = "b") -> str:
    """Have a look for b, and return why it isn't there."""
    found = probe(a, b.address, node_id)
    assert isinstance(found, Unavailable)
    return str(found)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# -- who can talk to whom --------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["threads", "reactor"])
@pytest.mark.parametrize("way", ["secret", "certificate", "both"])
def test_every_kind_of_connection_is_proved(
    net: Net, certificates: Certificates, way: str, reads: str
) -> None:
    registrar = None
    if reads == "reactor":
        server = net.reactor()
        server.start()
        registrar = server.reactor
    secrets = [] if way == "certificate" else [A]
    if way == "secret":
        a, b = by_secret(A), by_secret(A)
    else:
        a, b = certificates.of("a", secrets=secrets), certificates.of("b", secrets=secrets)
    talk(
        net.node("a", registrar=registrar, security=a),
        net.node("b", registrar=registrar, security=b),
    )


STEPS = [
    (PeerSecurity(), by_secret(A, mode=OFFER)),
    (by_secret(A, mode=OFFER), PeerSecurity()),
    (by_secret(A, mode=OFFER), by_secret(A, mode=OFFER)),
    (by_secret(A, mode=OFFER), by_secret(A)),
    (by_secret(A), by_secret(A, mode=OFFER)),
    (by_secret(A, mode=OPEN), PeerSecurity()),
    (by_secret(A, mode=OPEN), by_secret(A, mode=OFFER)),
    (by_secret(A), by_secret(B, A)),
    (by_secret(B, A), by_secret(A, B)),
    (by_secret(A, mode=OFFER), by_secret(B, mode=OFFER)),
]


@pytest.mark.parametrize(("a", "b"), STEPS)
def test_neighbours_of_a_rolling_change_talk(net: Net, a: PeerSecurity, b: PeerSecurity) -> None:
    talk(net.node("a", security=a), net.node("b", security=b))


def test_a_certificate_comes_step_by_step(net: Net, certificates: Certificates) -> None:
    with_both = certificates.of("a", secrets=[A])
    with_secret = by_secret(A)
    talk(net.node("a", security=with_both), net.node("b", security=with_secret))
    a, b = (
        net.node("a", security=with_secret),
        net.node("b", security=certificates.of("b", secrets=[A])),
    )
    talk(a, b)
    alone = certificates.of("a")
    talk(net.node("a", security=alone), net.node("b", security=certificates.of("b", secrets=[A])))


@pytest.mark.parametrize(
    ("a", "b", "why", "told"),
    [
        (PeerSecurity(), by_secret(A), "or --peer-tls-cert here", "proves nothing"),
        (by_secret(A), PeerSecurity(), "knows nothing of a cluster", "--peer-auth=open"),
        (by_secret(A), by_secret(A, mode=OPEN), "knows nothing of a", "--peer-auth=offer"),
        (by_secret(A), by_secret(B), "does not accept this node's", "another cluster secret"),
        (by_secret(B, A), by_secret(A), "does not accept", "has another cluster secret"),
    ],
)  # fmt: skip
def test_both_logs_say_what_to_do(
    net: Net,
    caplog: pytest.LogCaptureFixture,
    a: PeerSecurity,
    b: PeerSecurity,
    why: str,
    told: str,
) -> None:
    acceptor = net.node("b", security=b)
    dialler = net.node("a", security=a)
    for _ in range(3):
        assert why in refusal(dialler, acceptor)
    assert acceptor.admitted == []
    eventually(lambda: warnings(caplog))
    assert len(warnings(caplog)) == 1
    assert told in warnings(caplog)[0]


# -- certificates ----------------------------------------------------------------------------------


def test_a_certificate_is_good_for_the_node_that_it_names(
    net: Net, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b", security=certificates.of("b"))
    impostor = net.node("a", security=certificates.of("c", "a.example", "*.a"))
    assert "does this node's certificate name its node ID?" in refusal(impostor, b)
    assert b.admitted == []
    eventually(lambda: warnings(caplog))
    assert (
        "it says that it is a, and its certificate names *.a, a.example, c" in warnings(caplog)[0]
    )
    # Nor does it get any further with a question.
    shown: list[Shown | ConureError] = []
    impostor.transport.ask(b.address, Question("a", "i-a"), shown.append)
    eventually(lambda: shown)
    assert isinstance(shown[0], Unavailable)
    assert b.questions == []


def test_nothing_is_said_to_a_node_whose_certificate_is_another_ones(
    net: Net, certificates: Certificates
) -> None:
    a = net.node("a", security=certificates.of("a"))
    b = net.node("b", security=certificates.of("c"))
    assert "it says that it is b, and its certificate names c" in refusal(a, b)
    assert b.admitted == []
    shown: list[Shown | ConureError] = []
    a.transport.ask(b.address, Question("a", "i-a"), shown.append)
    eventually(lambda: shown)
    assert "it says that it is b, and its certificate names c" in str(shown[0])


@pytest.mark.parametrize(
    ("fault", "why", "told"),
    [
        ("expired", "says that our certificate has expired", "has expired"),
        ("not_yet_valid", "our certificate", "not valid yet"),
        ("stranger", "does not know the CA of our certificate", "none of those that we know"),
    ],
)
def test_a_bad_certificate_is_told_in_both_logs(
    net: Net,
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    why: str,
    told: str,
) -> None:
    authority = Authority(tmp_path) if fault == "stranger" else certificates.authority
    shown = authority.issue("a") if fault == "stranger" else getattr(authority, fault)("a")
    a = net.node("a", security=certificates.of(certificate=shown, ca=certificates.authority.root))
    b = net.node("b", security=certificates.of("b"))
    assert why in refusal(a, b)
    eventually(lambda: warnings(caplog))
    assert told in warnings(caplog)[0]
    assert b.admitted == []


def test_a_secret_helps_out_where_a_certificate_has_expired(
    net: Net, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    expired = certificates.authority.expired("a")
    a = net.node("a", security=certificates.of(certificate=expired, secrets=[A]))
    b = net.node("b", security=certificates.of("b", secrets=[A]))
    talk(a, b)
    said = [line for line in warnings(caplog) if line.startswith("b at ")]
    assert len(said) == 1
    assert "is talked to by the cluster secret; by certificate: " in said[0]
    assert "expired" in said[0]


# -- offer -----------------------------------------------------------------------------------------


def test_who_proves_nothing_is_told_once_where_it_is_let_in(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.node("a"), net.node("b", security=by_secret(A, mode=OFFER))
    for _ in range(3):
        assert not isinstance(probe(a, b.address, "b"), ConureError)
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].startswith("a (127.0.0.1) has proved nothing, and --peer-auth=offer")
    for _ in range(3):
        assert not isinstance(probe(b, a.address, "a"), ConureError)
    assert len(warnings(caplog)) == 3
    assert "is talked to without a proof; by secret: it knows nothing" in "".join(warnings(caplog))


# -- strangers -------------------------------------------------------------------------------------


def prove_by_hand(
    sock: socket.socket, secret: bytes = A, nonce: bytes = b"n" * 32
) -> tuple[Nonces, bytes]:
    """Begin to prove oneself, and return the nonces and what would prove it."""
    sock.sendall(VERSION + nonce)
    answer = read_exactly(sock, HELLO_BYTES)
    assert answer.startswith(VERSION)
    nonces = Nonces(nonce, answer[len(VERSION) :])
    return nonces, prove(secret, DIALLER, nonces)


def test_a_node_by_hand_is_heard(net: Net) -> None:
    """What the others here leave out, or change, is all that keeps them out."""
    b = net.node("b", security=by_secret(A))
    sock = net.dial(b)
    nonces, shown = prove_by_hand(sock)
    sock.sendall(shown)
    assert read_exactly(sock, 32) == prove(A, ACCEPTOR, nonces)
    sending, receiving = seals_of(A, nonces)
    sock.sendall(sending.seal(frame(hello(b))))
    head = read_exactly(sock, 4)
    record = head + read_exactly(sock, receiving.length(head) - 4)
    assert receiving.proves(memoryview(record))
    assert b'"node_id": "b"' in record
    sock.sendall(sending.seal(message_to(b, 1)))
    eventually(lambda: b.messages)
    sock.sendall(sending.seal(message_to(b, 2))[:-1] + b"\0")
    assert is_closed(sock)
    assert [message.index for message in b.messages] == [1]


def other_role(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    nonces, _ = prove_by_hand(sock)
    sock.sendall(prove(A, ACCEPTOR, nonces))
    return rest_of(sock)


def reflected(net: Net, b: Node) -> bytes:
    """Say back what is heard, on the same connection."""
    sock = net.dial(b)
    sock.sendall(VERSION + b"n" * 32)
    sock.sendall(read_exactly(sock, HELLO_BYTES)[:32])
    return rest_of(sock)


def replayed(net: Net, b: Node) -> bytes:
    """Say what another node once said, from its nonce to its greeting."""
    sock = net.dial(b)
    nonces, shown = prove_by_hand(sock)
    sock.sendall(shown)
    read_exactly(sock, 32)
    sending, _ = seals_of(A, nonces)
    said = sending.seal(frame(hello(b)))
    sock.sendall(said)
    read_exactly(sock, 4)
    sock.close()
    eventually(lambda: b.admitted)
    b.admitted.clear()
    sock = net.dial(b)
    sock.sendall(VERSION + b"n" * 32 + shown + said)
    read_exactly(sock, HELLO_BYTES)
    return rest_of(sock)


def another_secret(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    _, shown = prove_by_hand(sock, B)
    sock.sendall(shown + frame(hello(b)))
    return rest_of(sock)


def not_sealed(net: Net, b: Node) -> bytes:
    """Know everything that can be known without the secret, and go on without a proof."""
    sock = net.dial(b)
    sock.sendall(frame(hello(b)))
    return rest_of(sock)


def another_version(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    sock.sendall(b"CDB\x02" + bytes(32))
    return rest_of(sock)


def half_a_proof(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    _, shown = prove_by_hand(sock)
    sock.sendall(shown[:31])
    sock.shutdown(socket.SHUT_WR)
    return rest_of(sock)


def speaks_tls(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300))
    return rest_of(sock)


def speaks_http(net: Net, b: Node) -> bytes:
    sock = net.dial(b)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
    return rest_of(sock)


def rest_of(sock: socket.socket) -> bytes:
    """Return all that is still said."""
    data = b""
    try:
        while piece := sock.recv(1000):
            data += piece
    except ConnectionResetError:
        pass
    return data


STRANGERS = [
    other_role, reflected, replayed, another_secret, not_sealed, another_version, half_a_proof,
    speaks_tls, speaks_http,
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_with_everything_but_the_secret_hears_nothing(
    net: Net, stranger: Callable[[Net, Node], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b", security=by_secret(A))
    assert stranger(net, b) == b""
    assert (b.admitted, b.messages) == ([], [])
    eventually(lambda: not b.transport._acceptor._guests._guests)
    for secret in (A, B):
        assert secret.decode() not in caplog.text
        assert secret.hex() not in caplog.text


@pytest.mark.parametrize("answer", ["nothing", "garbage", "the dialler's own proof"])
def test_an_impostor_that_is_dialled_hears_nothing_but_a_proof(net: Net, answer: str) -> None:
    listener = net.listener()
    a = net.node("a", security=by_secret(A))
    found: list[Greeting | ConureError] = []
    a.transport.probe(address(listener), "b", found.append)
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(PATIENCE)
        assert read_exactly(sock, HELLO_BYTES).startswith(VERSION)
        sock.sendall(VERSION + b"m" * 32)
        shown = read_exactly(sock, 32)
        if answer != "nothing":
            sock.sendall(bytes(32) if answer == "garbage" else shown)
        else:
            sock.shutdown(socket.SHUT_WR)
        assert rest_of(sock) == b""
    eventually(lambda: found)
    assert isinstance(found[0], Unavailable)
    assert "secret" in str(found[0])


@pytest.mark.parametrize("certificate", ["none", "of another CA", "expired"])
def test_a_stranger_without_a_certificate_hears_nothing_but_an_alert(
    net: Net, certificates: Certificates, tmp_path: Path, certificate: str
) -> None:
    b = net.node("b", security=certificates.of("b"))
    context = ssl.create_default_context(cafile=str(certificates.authority.root))
    context.check_hostname = False
    if certificate == "of another CA":
        shown = Authority(tmp_path).issue("x")
        context.load_cert_chain(shown.cert, shown.key)
    elif certificate == "expired":
        shown = certificates.authority.expired("x")
        context.load_cert_chain(shown.cert, shown.key)
    sock = context.wrap_socket(net.dial(b))
    with sock:
        heard = b""
        try:
            sock.sendall(frame(hello(b)))
            heard = sock.recv(1000)
        except OSError:
            pass  # TLS's alert, or the end
        assert heard == b""
    assert b.admitted == []


def test_a_handshake_has_its_time_and_no_more(net: Net) -> None:
    """One byte at a time, to the last one."""
    b = net.node("b", security=by_secret(A))
    sock = net.dial(b)
    stop = threading.Event()

    def trickle() -> None:
        for byte in VERSION + bytes(32):
            if stop.wait(0.05):
                return
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert is_closed(sock)
    finally:
        stop.set()
        thread.join()
    assert b.admitted == []


@pytest.mark.parametrize("stage", ["silent", "nonce", "proof", "tls"])
def test_handshakes_that_stall_take_no_members_place(
    net: Net, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 60.0)
    b = net.node("b", security=certificates.of("b", secrets=[A]))
    a = net.node("a", security=by_secret(A))
    a.knows(b)
    eventually(lambda: a.send("b", 1) or b.messages)  # type: ignore[func-returns-value]
    strangers = [net.dial(b) for _ in range(70)]
    for sock in strangers:
        try:
            if stage == "tls":
                sock.sendall(b"\x16\x03\x01")
            elif stage == "nonce":
                sock.sendall(VERSION + bytes(31))
            elif stage == "proof":
                sock.sendall(VERSION + bytes(32) + bytes(31))
        except OSError:
            pass  # another one has taken its place
    a.send("b", 2)
    eventually(lambda: b.messages[-1].index == 2)
    assert a.lost == []  # over the same connection
    # One that comes now has its place, too.
    c = net.node("c", security=by_secret(A))
    c.transport.set_peers({"b": b.address})
    eventually(lambda: c.send("b", 3) or b.messages[-1].index == 3)  # type: ignore[func-returns-value]
    assert sum(t.name == "peer-in" for t in threading.enumerate()) < 40


def test_a_secret_is_looked_up_each_time(net: Net) -> None:
    """A file that is read again counts for the next connection; those that are open go on."""
    known = [(A,), (A,)]
    a = net.node("a", security=PeerSecurity(REQUIRE, lambda: known[0]))
    b = net.node("b", security=PeerSecurity(REQUIRE, lambda: known[1]))
    a.knows(b)
    eventually(lambda: a.send("b", 1) or b.messages)  # type: ignore[func-returns-value]
    known[1] = (B,)
    a.send("b", 2)
    eventually(lambda: b.messages[-1].index == 2)
    assert "does not accept" in refusal(a, b)
    known[0] = (B,)
    assert probe(a, b.address, "b") == b.greeting()


def test_a_frame_of_the_open_handshake_begins_with_no_byte_of_another() -> None:
    first = encode_frame(bytes(MAX_HANDSHAKE))[:1]
    assert first not in (VERSION[:1], b"\x16")
