"""security/: contexts of files, what is wrong with them, and files that change while they serve."""

from __future__ import annotations

import logging
import os
import ssl
from contextlib import suppress
from pathlib import Path
from time import time

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from conure.config import load
from conure.errors import ConfigError
from conure.metrics import Registry
from conure.security import trial
from conure.security.fronts import FrontTls
from conure.security.fronts import given as given_setting
from conure.security.handshakes import Handshakes
from conure.security.reloading import GivenFile, Reloaded, Watcher
from conure.security.tls import ClientTls, ServerTls, expiries
from conure.security.trial import Trial
from conure.security.x509 import certificates_in, facts_of
from tests.lab.certificates import DAY, Authority, Certificate
from tests.lab.process import wait_until

DER = certificates_in(trustme.CA().issue_cert("a.example", "10.0.0.1").cert_chain_pems[0].bytes())[
    0
]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def given_file(path: Path, setting: str = "tls_cert") -> GivenFile:
    return GivenFile(setting, "a test", str(path))


def server(made: Certificate, client_ca: Path | None = None, version: str = "1.3") -> ServerTls:
    return ServerTls(
        given_file(made.cert),
        given_file(made.key, "tls_key"),
        given_file(client_ca, "tls_client_ca") if client_ca else None,
        "require" if client_ca else "none",
        version,
    )


def talk(ours: ssl.SSLContext, theirs: ssl.SSLContext, name: str = "localhost") -> ssl.SSLObject:
    """Let a server's context shake hands with a client's; return the client's object."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(back, there, server_hostname=name)
    serving = ours.wrap_bio(there, back, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(6):
        for end in (client, serving):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    assert done == {client, serving}
    return client


def test_a_certificate_says_whose_it_is(authority: Authority) -> None:
    made = authority.issue("localhost", "10.0.0.7", "::1", common_name="somebody")
    (der,) = certificates_in(made.cert.read_bytes())
    facts = facts_of(der)
    assert facts.names == ("localhost", "10.0.0.7", "::1")
    assert facts.subject == "somebody"
    (ca,) = certificates_in(authority.pem)
    assert facts.issuer == facts_of(ca).subject
    shown = ssl._ssl._test_decode_cert(str(made.cert))  # type: ignore[attr-defined]
    assert facts.ends == ssl.cert_time_to_seconds(shown["notAfter"])
    assert facts.begins == ssl.cert_time_to_seconds(shown["notBefore"])


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 40, 100, 200])
def test_half_a_certificate_is_none(authority: Authority, cut: int) -> None:
    (der,) = certificates_in(authority.pem)
    with pytest.raises(ValueError, match="no certificate"):
        facts_of(der[:cut])


@given(st.data())
def test_bytes_that_are_no_certificate(data: st.DataObject) -> None:
    """Whatever they are, they say something or are a ValueError."""
    altered = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(DER) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        assert str(facts_of(bytes(altered)))


def test_a_server_and_a_client_agree(authority: Authority) -> None:
    made = authority.issue("localhost")
    tls = server(made, made.ca)
    client = ClientTls(given_file(made.ca), given_file(made.cert), given_file(made.key))
    assert talk(tls.context, client.context).version() == "TLSv1.3"
    assert "for localhost" in tls.shown


def test_the_oldest_version_is_as_it_is_set(authority: Authority) -> None:
    made = authority.issue("localhost", key_type="RSA")
    client = ClientTls(given_file(made.ca)).context
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    cipher = talk(server(made, version="1.2").context, client).cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-RSA-")
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        talk(server(made).context, client)


def test_names_are_checked_unless_somebody_else_does(authority: Authority) -> None:
    made = authority.issue("elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(server(made).context, ClientTls(given_file(made.ca)).context)
    talk(server(made).context, ClientTls(given_file(made.ca), checks_names=True).context)


def test_what_is_wrong_with_a_file_is_said(authority: Authority, tmp_path: Path) -> None:
    made, other = authority.issue("a"), authority.issue("b")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    encrypted = tmp_path / "encrypted"
    encrypted.write_bytes(made.key.read_bytes().replace(b"BEGIN ", b"BEGIN ENCRYPTED "))
    cut = tmp_path / "cut"
    cut.write_bytes(made.cert.read_bytes().replace(b"MII", b"MIA", 1))
    for wrong, why in (
        (
            Certificate(tmp_path / "none", made.key, made.ca),
            r"tls_cert .*none can't be read: No su",
        ),
        (Certificate(empty, made.key, made.ca), r"tls_cert .*empty has no certificate"),
        (
            Certificate(cut, made.key, made.ca),
            r"tls_cert .*cut has a certificate that can't be rea",
        ),
        (Certificate(made.cert, empty, made.ca), r"tls_key .*empty has no private key"),
        (Certificate(made.cert, encrypted, made.ca), r"tls_key .*is encrypted"),
        (Certificate(made.cert, other.key, made.ca), r"tls_key .*is not the key of the certificat"),
    ):
        with pytest.raises(ConfigError, match=why):
            server(wrong)
    with pytest.raises(ConfigError, match=r"tls_client_ca .*empty has no certificate"):
        server(made, empty)


def test_a_key_that_others_may_read_is_warned_about(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    made = authority.issue("a")
    server(made)
    assert "chmod 600" not in caplog.text
    made.key.chmod(0o640)
    server(made)
    assert f"{made.key} (tls_key) may be read or written by others" in caplog.text


def test_dates_are_warned_about(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    for made, said in (
        (authority.expired("a"), "expired at"),
        (authority.not_yet_valid("a"), "is not valid yet"),
        (authority.issue("a", ends=DAY / 4), "expires at"),
    ):
        caplog.clear()
        server(made)
        assert said in caplog.text
    caplog.clear()
    server(authority.issue("a"))
    assert not caplog.text


def test_files_are_read_again_when_they_change(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    made, other = authority.issue("localhost"), authority.issue("elsewhere")
    tls = server(made)
    first = tls.context
    assert not tls.look()
    assert tls.context is first
    # Half of a change: what doesn't fit is told once, and the old one serves on.
    os.replace(other.cert, made.cert)
    assert not tls.look()
    assert not tls.look()
    assert tls.context is first
    assert caplog.text.count("what was read before stays in use") == 1
    assert "is not the key of the certificate" in caplog.text
    os.replace(other.key, made.key)
    assert tls.look()
    assert tls.context is not first
    assert "for elsewhere" in tls.shown


def test_a_ca_that_is_taken_out_is_believed_no_more(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue("localhost")
    other = Authority(tmp_path / "other")
    theirs = other.issue("client")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.pem + other.pem)
    tls = server(made, bundle, "1.2")
    client = ClientTls(given_file(made.ca), given_file(theirs.cert), given_file(theirs.key)).context
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    talk(tls.context, client)
    bundle.write_bytes(authority.pem)
    assert tls.look()
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(tls.context, client)


def test_when_the_first_certificate_of_a_file_expires(authority: Authority, tmp_path: Path) -> None:
    late, early = authority.issue("a", ends=9 * DAY), authority.issue("b", ends=2 * DAY)
    both = tmp_path / "both.pem"
    both.write_bytes(late.cert.read_bytes() + early.cert.read_bytes())
    files = [given_file(both), given_file(late.key), given_file(tmp_path / "none")]
    ((labels, seconds),) = expiries(files)
    assert labels == ("tls_cert", str(both))
    assert 2 * DAY.total_seconds() - 60 < seconds <= 2 * DAY.total_seconds()


def test_a_watcher_looks_at_once_when_it_is_hurried(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file = given_file(path)
    made = Reloaded([file], file.read)
    watcher = Watcher()
    assert not watcher.has_work
    watcher.add(made.look)
    watcher.start()
    path.write_text("22")
    watcher.hurry()
    wait_until(lambda: made.value == b"22")
    path.write_text("333")  # and by itself
    wait_until(lambda: made.value == b"333")
    assert made.reloads == 2
    watcher.stop()


def test_a_failure_is_told_once_of_each_client(caplog: pytest.LogCaptureFixture) -> None:
    handshakes = Handshakes(lambda: "a.pem")
    for _ in range(3):
        handshakes.failed("http", "192.0.2.1", "it is a stranger")
    handshakes.failed("resp", "192.0.2.2", "it is a stranger")
    assert handshakes.failures == {"http": 3, "resp": 1}
    assert len(caplog.records) == 2
    for number in range(300):
        handshakes.failed("http", f"192.0.2.{number}", "another reason")
    assert len(caplog.records) <= 256
    assert caplog.records[0].getMessage() == (
        "TLS with 192.0.2.1 (http) failed: it is a stranger [a.pem]"
    )


# -- --tls-auto ------------------------------------------------------------------------------------


def context_of(made: Trial) -> ssl.SSLContext:
    cert, key = (
        given_file(Path(made.path("server.pem"))),
        given_file(Path(made.path("server.key"))),
    )
    return ServerTls(cert, key).context


def test_a_trial_makes_what_it_takes_and_keeps_it(tmp_path: Path) -> None:
    place = tmp_path / "tls"
    made = Trial(str(place), ["db1.example", "0.0.0.0", "a b", "10.1.2.3"], "flag", has_client=True)
    assert made.renew()
    ca = given_file(place / "ca.pem")
    client = ClientTls(ca, given_file(place / "client.pem"), given_file(place / "client.key"))
    for name in ("localhost", "127.0.0.1", "db1.example", "10.1.2.3"):
        talk(context_of(made), client.context, name)
    assert {path.name for path in place.iterdir()} == {
        f"{name}.{kind}" for name in ("ca", "server", "client") for kind in ("pem", "key")
    }
    for path in place.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not made.renew()
    words = made.how_to_ask("https://localhost:1").split()
    assert words[:3] == ["curl", "--cacert", str(place / "ca.pem")]
    assert "--cert" in words


def test_a_trial_renews_what_is_of_no_use(tmp_path: Path, authority: Authority) -> None:
    place = tmp_path / "tls"
    made = Trial(str(place), [], "flag", has_client=False)
    made.renew()
    before = (place / "server.pem").read_bytes()
    assert Trial(str(place), ["new.example"], "flag", has_client=False).renew()  # another name
    assert (place / "server.pem").read_bytes() != before
    assert not made.renew()
    (place / "server.key").write_bytes(authority.issue("a").key.read_bytes())  # half of a change
    assert made.renew()
    old = authority.issue("localhost", "127.0.0.1", "::1", begins=-70 * DAY, ends=20 * DAY)
    for path, name in ((old.cert, "server.pem"), (old.key, "server.key"), (old.ca, "ca.pem")):
        (place / name).write_bytes(path.read_bytes())
    assert made.renew()  # the CA has no key of its own any more
    talk(context_of(made), ClientTls(given_file(place / "ca.pem")).context)


def test_a_trial_renews_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tls"
    made = Trial(str(place), [], "flag", has_client=False)
    made.renew()
    ca, cert = (place / "ca.pem").read_bytes(), (place / "server.pem").read_bytes()
    monkeypatch.setattr(trial, "time", lambda: time() + 55 * DAY.total_seconds())
    assert not made.renew()
    monkeypatch.setattr(trial, "time", lambda: time() + 65 * DAY.total_seconds())
    made.look()
    assert (place / "ca.pem").read_bytes() == ca
    assert (place / "server.pem").read_bytes() != cert


def test_a_trial_without_openssl_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"program openssl, which isn't there.*--tls-cert"):
        Trial(str(tmp_path / "tls"), [], "flag", has_client=False).renew()


# -- the settings ----------------------------------------------------------------------------------


def test_fronts_are_made_by_the_settings(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    made = authority.issue("localhost", key_type="RSA")
    flags = [f"--tls-cert={made.cert}", f"--tls-key={made.key}"]
    registry, watcher = Registry(), Watcher()
    tls = FrontTls(load(flags, {}), (), watcher, registry)
    assert watcher.has_work
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert tls.context.verify_mode is ssl.CERT_NONE
    with caplog.at_level(logging.WARNING):
        tls.failed("http", "192.0.2.1", "why")
    text = registry.render().decode()
    assert 'conure_tls_handshake_failures_total{front="http"} 1' in text
    assert f'conure_tls_certificate_expiry_seconds{{setting="tls_cert",file="{made.cert}"}}' in text
    more = [*flags, f"--tls-client-ca={made.ca}", "--tls-min-version=1.2"]
    for mode, meant in (("request", ssl.CERT_OPTIONAL), ("require", ssl.CERT_REQUIRED)):
        config = load([*more, f"--tls-client-auth={mode}"], {})
        context = FrontTls(config, (), Watcher(), Registry()).context
        assert context.verify_mode is meant
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert given_setting(load(flags, {}), "tls_client_ca") is None
