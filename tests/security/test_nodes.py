"""What nodes prove themselves by: of which settings it is made, and made again."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest

from conure.config import load
from conure.errors import ConfigError
from conure.metrics import Registry
from conure.security.nodes import NodeProofs
from conure.security.reloading import Watcher
from tests.lab.certificates import Authority, Certificate

A, B = b"a" * 32, b"b" * 32


class Looks(Watcher):
    """A watcher whose looks are the test's."""

    def look(self) -> None:
        for look in self._looks:
            look()


def made(*flags: str) -> tuple[NodeProofs, Looks, Registry]:
    looks, registry = Looks(), Registry()
    return NodeProofs(load(flags, {}), looks, registry), looks, registry


def tls_flags(certificate: Certificate, ca: Path | None = None) -> list[str]:
    return [
        f"--peer-tls-cert={certificate.cert}",
        f"--peer-tls-key={certificate.key}",
        f"--peer-tls-ca={ca or certificate.ca}",
    ]


def secret_file(tmp_path: Path, text: bytes) -> Path:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(text)
    return path


def test_without_settings_there_is_nothing() -> None:
    proofs, looks, registry = made()
    assert (proofs.client, proofs.server, proofs.secrets()) == (None, None, ())
    assert not looks.has_work
    assert b"expiry" not in registry.render()


def test_a_secret_is_read_again_and_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = secret_file(tmp_path, A)
    proofs, looks, _ = made(f"--cluster-secret-file={path}")
    assert proofs.secrets() == (A,)
    for text in (b"", b"swordfish", A + b"\nswordfish"):
        path.write_bytes(text)
        looks.look()
        assert proofs.secrets() == (A,)
    path.unlink()
    looks.look()
    assert proofs.secrets() == (A,)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 4
    assert "swordfish" not in caplog.text
    secret_file(tmp_path, B + b"\n" + A)
    looks.look()
    assert proofs.secrets() == (B, A)


def test_a_secret_that_others_may_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = secret_file(tmp_path, A)
    made(f"--cluster-secret-file={path}")
    assert caplog.records == []
    path.chmod(0o644)
    made(f"--cluster-secret-file={path}")
    assert "may be read or written by others" in caplog.text
    assert "chmod 600" in caplog.text


def test_certificates_are_shown_and_asked_for_on_both_sides(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).issue("node1")
    proofs, looks, registry = made(*tls_flags(certificate))
    assert proofs.client is not None
    assert proofs.server is not None
    for context in (proofs.client(), proofs.server()):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert not context.check_hostname  # proving.py compares node IDs
        assert context.cert_store_stats()["x509_ca"] == 1
    before = proofs.client(), proofs.server()
    looks.look()
    assert (proofs.client(), proofs.server()) == before
    renewed = Authority(tmp_path / "new").issue("node1")
    for old, new in ((certificate.cert, renewed.cert), (certificate.key, renewed.key)):
        old.write_bytes(new.read_bytes())
    looks.look()
    assert proofs.client() is not before[0]
    assert proofs.server() is not before[1]
    page = registry.render().decode()
    assert page.count("conure_peer_tls_certificate_expiry_seconds{") == 2


def test_what_can_not_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    one, other = (Authority(tmp_path / name).issue("node1") for name in "ab")
    mixed = Certificate(one.cert, other.key, one.ca)
    with pytest.raises(ConfigError, match=r"peer_tls_key .* is not the key of the certificate"):
        made(*tls_flags(mixed))
    with pytest.raises(ConfigError, match=r"peer_tls_ca .* has no certificate"):
        made(*tls_flags(one, one.key))
    with pytest.raises(ConfigError, match=r"cluster_secret_file .* can't be read"):
        made(f"--cluster-secret-file={tmp_path / 'none'}")
