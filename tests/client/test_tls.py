"""The client by https: who is trusted, what a cut answer is, what is said when it fails."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from conure.client import Client, calls
from conure.clienttls import ClientTls
from conure.errors import ConfigError, ConureError, OutcomeUnknown, Unavailable, Untrusted
from tests.lab.stubserver import Act, MakeStub, StubServer, close, raw, refuse, sse, stream
from tests.lab.tlsfiles import Files, Issuer

HOST = "127.0.0.1"


@pytest.fixture(scope="module", name="issuer")
def _issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module", name="stranger")
def _stranger(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module", name="own")
def _own(issuer: Issuer) -> Files:
    return issuer.issue(HOST, "localhost")


@pytest.fixture(name="secure_stub")
def _secure_stub(make_stub: MakeStub, own: Files) -> StubServer:
    return make_stub(own.server_context())


@pytest.fixture
def slow_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client spends its last quarter of a second waiting: it ends amid no exchange."""
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.25)


def cut(data: bytes) -> Act:
    """Answer with just these bytes, and close the connection."""

    def act(handler: Any) -> None:
        raw(data)(handler)
        close(handler)

    return act


# -- what it does ----------------------------------------------------------------------------------


def test_everything_is_as_by_http(secure_stub: StubServer, issuer: Issuer, tmp_path: Path) -> None:
    large = os.urandom(1 << 20)
    with Client(secure_stub.url, ca=issuer.file) as db:
        assert db.put("k", "v") == 1
        assert db.put("large", large) == 2
        assert (db.get("k"), db.get("large"), db.get("none")) == (b"v", large, None)
        assert db.leader == secure_stub.url
        event = sse("put", "e-5", key="k", value="v", revision=5, version=1)
        secure_stub.acts = [stream(sse("progress", "e-4"), event, end="stay")]
        with db.watch("k") as watch:
            assert next(watch).value == b"v"
        assert secure_stub.connections == 1  # which the watch had at last
        secure_stub.acts = [stream(b"no backup", X_Conure_Index="7")]
        with pytest.raises(ConureError, match="not what the server has sent"):
            db.backup(str(tmp_path / "b"))


def test_the_next_connection_begins_with_a_session(secure_stub: StubServer, issuer: Issuer) -> None:
    with Client(secure_stub.url, ca=issuer.file) as db:
        for _ in range(3):
            secure_stub.acts = [refuse(503, "no leader")]  # after which the connection is closed
            db.put("k", "v")
    assert secure_stub.connections == 4
    assert secure_stub.resumed == 3


def test_servers_of_both_kinds(make_stub: MakeStub, own: Files, issuer: Issuer) -> None:
    plain, secure = make_stub(), make_stub(own.server_context())
    plain.stop()
    with Client([plain.url, secure.url], ca=issuer.file) as db:
        db.put("k", "v")
    assert secure.values == {b"k": b"v"}


def test_a_redirect_leads_to_https_and_never_away_from_it(
    make_stub: MakeStub, secure_stub: StubServer, issuer: Issuer
) -> None:
    plain = make_stub()
    plain.leader = secure_stub.url
    with Client(plain.url, ca=issuer.file) as db:
        db.put("k", "v")
        assert (secure_stub.values, plain.values) == ({b"k": b"v"}, {})
    plain.leader = None
    secure_stub.acts = [refuse(307, "", Location=f"{plain.url}/kv?key=k")] * 1000
    with Client(secure_stub.url, timeout=0.3, ca=issuer.file) as db:
        with pytest.raises(Unavailable, match="redirects to http:"):
            db.put("k", "secret")
        assert plain.values == {}
        assert len(plain.requests) == 1


# -- who is trusted --------------------------------------------------------------------------------

Make = Callable[[Issuer, Issuer], Files]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda ours, _: ours.issue("other.example"), "bears another name.*127.0.0.1.*--tls-name"),
        (lambda ours, _: ours.issue(HOST, days=(-9, -1)), "has expired"),
        (lambda ours, _: ours.issue(HOST, days=(1, 9)), "is not valid yet"),
        (lambda _, theirs: theirs.issue(HOST), "isn't signed by a CA that is known here.*--ca"),
    ],
    ids=["name", "expired", "early", "stranger"],
)
def test_nothing_is_sent_to_who_can_not_prove_who_it_is(
    make_stub: MakeStub, issuer: Issuer, stranger: Issuer, make: Make, why: str
) -> None:
    stub = make_stub(make(issuer, stranger).server_context())
    begun = time.monotonic()
    with Client(stub.url, 20.0, ca=issuer.file) as db:
        with pytest.raises(Untrusted, match=f"^{stub.url}: its certificate {why}"):
            db.put("k", "v")
        with pytest.raises(Untrusted):
            db.get("k")
    assert stub.requests == []
    assert time.monotonic() - begun < 10  # nobody waits for another certificate


def test_the_systems_authorities_are_asked_without_a_file(secure_stub: StubServer) -> None:
    with Client(secure_stub.url) as db, pytest.raises(Untrusted, match="--ca"):
        db.get("k")


def test_a_name_in_place_of_the_address(make_stub: MakeStub, issuer: Issuer) -> None:
    stub = make_stub(issuer.issue("db.example").server_context())
    with Client(stub.url, ca=issuer.file, tls_name="db.example") as db:
        assert db.put("k", "v") == 1
    with Client(stub.url, ca=issuer.file, tls_name="db2.example") as db:  # noqa: SIM117
        with pytest.raises(Untrusted, match="another name"):
            db.get("k")


def test_another_server_is_asked_beside_one_that_is_not_trusted(
    make_stub: MakeStub, secure_stub: StubServer, issuer: Issuer, stranger: Issuer
) -> None:
    bad = make_stub(stranger.issue(HOST).server_context())
    with Client([bad.url, secure_stub.url], ca=issuer.file) as db:
        db.put("k", "v")
        assert db.leader == secure_stub.url
    assert bad.requests == []


def test_a_server_asks_for_a_certificate(
    make_stub: MakeStub, own: Files, issuer: Issuer, stranger: Issuer
) -> None:
    stub = make_stub(own.server_context(issuer.file))
    with Client(stub.url, ca=issuer.file) as db, pytest.raises(Untrusted, match=r"asks.*--cert"):
        db.put("k", "v")
    theirs = stranger.issue("me")
    with Client(stub.url, ca=issuer.file, cert=theirs.cert, key=theirs.key) as db:  # noqa: SIM117
        with pytest.raises(Untrusted, match="doesn't know the CA of this side's certificate"):
            db.put("k", "v")
    old = issuer.issue("me", days=(-9, -1))
    with Client(stub.url, ca=issuer.file, cert=old.cert, key=old.key) as db:  # noqa: SIM117
        with pytest.raises(Untrusted, match="this side's certificate has expired"):
            db.put("k", "v")
    assert stub.requests == []
    mine = issuer.issue("me")
    with Client(stub.url, ca=issuer.file, cert=mine.cert, key=mine.key) as db:
        db.put("k", "v")
    both = Path(mine.cert).with_suffix(".both")
    both.write_bytes(Path(mine.key).read_bytes() + Path(mine.cert).read_bytes())
    with Client(stub.url, ca=issuer.file, cert=str(both)) as db:
        db.put("k", "v2")
    assert stub.values == {b"k": b"v2"}


@pytest.mark.usefixtures("slow_to_repeat")
def test_tls_on_one_side_only(make_stub: MakeStub, issuer: Issuer) -> None:
    plain = make_stub()
    with Client(plain.url.replace("http:", "https:"), 0.5, ca=issuer.file) as db:  # noqa: SIM117
        with pytest.raises(Unavailable, match="doesn't speak TLS"):
            db.put("k", "v")
    assert plain.requests == []
    plain.acts = [cut(b"\x15\x03\x03\x00\x02\x02\x46")] * 1000  # as TLS says that it isn't TLS
    with Client(plain.url, 0.3) as db, pytest.raises(Unavailable, match="https://"):
        db.get("k")


# -- what was cut ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow_to_repeat")
def test_what_ends_without_a_word_is_not_whole(secure_stub: StubServer, issuer: Issuer) -> None:
    """The stub closes without close_notify: an attacker who cuts a connection can do that."""
    body = cut(b"HTTP/1.0 200 OK\r\nX-Conure-Index: 7\r\n\r\nhalf of the val")
    with Client(secure_stub.url, 0.5, ca=issuer.file) as db:
        secure_stub.acts = [body] * 100
        with pytest.raises(Unavailable, match="before its end"):
            db.get("k")
        secure_stub.acts = [body]
        with pytest.raises(OutcomeUnknown, match="before its end"):
            db.put("k", "v")
        secure_stub.acts = [close]
        with pytest.raises(OutcomeUnknown):
            db.put("k", "v")


def test_an_end_that_was_said_is_one(own: Files, issuer: Issuer) -> None:
    """A body without a length, as it may come through a proxy, ends with close_notify."""
    context = own.server_context()
    with socket.create_server((HOST, 0)) as server:

        def answer() -> None:
            with context.wrap_socket(server.accept()[0], server_side=True) as sealed:
                sealed.recv(9999)
                sealed.sendall(b"HTTP/1.0 200 OK\r\n\r\nwhole")
                sealed.unwrap()

        thread = threading.Thread(target=answer)
        thread.start()
        with Client(f"https://{HOST}:{server.getsockname()[1]}", ca=issuer.file) as db:
            assert db.get("k") == b"whole"
        thread.join(10)
        assert not thread.is_alive()


# -- files -----------------------------------------------------------------------------------------


def test_what_was_renewed_is_used_by_the_next_connection(
    make_stub: MakeStub, issuer: Issuer, stranger: Issuer, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(stranger.file, ca)
    stub = make_stub(issuer.issue(HOST).server_context())
    with Client(stub.url, ca=str(ca)) as db:
        with pytest.raises(Untrusted):
            db.get("k")
        ca.write_text("-----BEGIN CERTIFICATE-----\nhalf of")  # changes nothing
        with pytest.raises(Untrusted, match="CA"):
            db.get("k")
        shutil.copy(issuer.file, ca)
        assert db.put("k", "v") == 1


def test_a_context_is_made_once(issuer: Issuer, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(issuer.file, ca)
    tls = ClientTls(str(ca))
    first = tls.context()
    assert first.check_hostname
    assert first.verify_mode == ssl.CERT_REQUIRED
    assert first.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls.context() is first
    ca.unlink()
    assert tls.context() is first
    shutil.copy(issuer.file, ca)
    assert tls.context() is not first


def test_files_that_can_not_be_used(
    issuer: Issuer, stranger: Issuer, own: Files, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("nothing")
    locked = tmp_path / "locked.key"
    secret = load_pem_private_key(Path(own.key).read_bytes(), None)
    locked.write_bytes(
        secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    theirs = stranger.issue("x")
    for facts, words in (
        ({"ca": "/none"}, ("ca (/none)", "no such file")),
        ({"ca": str(text)}, (f"ca ({text})", "no certificate")),
        ({"ca": str(tmp_path)}, (f"ca ({tmp_path})",)),
        ({"cert": "/none", "key": own.key}, ("cert (/none)", "no such file")),
        ({"cert": own.cert, "key": "/none"}, ("key (/none)", "no such file")),
        ({"cert": str(text), "key": own.key}, (f"cert ({text})",)),
        ({"cert": own.cert, "key": str(text)}, (f"key ({text})",)),
        ({"cert": own.cert, "key": theirs.key}, ("key (", "not that of the certificate")),
        ({"cert": own.cert}, (f"cert ({own.cert})",)),
        ({"cert": own.cert, "key": str(locked)}, (f"key ({locked})", "encrypted")),
        ({"key": own.key}, ("key (", "needs a certificate")),
    ):
        with pytest.raises(ConfigError) as caught:
            Client("https://h:1", **facts)  # type: ignore[arg-type]
        for word in words:
            assert word in str(caught.value)
    with pytest.raises(ConfigError):  # a redirect may lead to https
        Client("http://h:1", ca="/none")
