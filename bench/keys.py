"""Keys for servers that are measured behind locked doors: certificates, and a cluster's secret.

Every server has the same certificate, by ECDSA over P-256, as most have today: what a handshake
costs is then the same for all. Load generators believe any certificate.
"""

from __future__ import annotations

import os
import secrets
import shutil
import ssl
from dataclasses import dataclass

from bench.workspace import Workspace

__all__ = ["UNVERIFIED", "Keys", "keys_missing", "make_keys"]

_SECONDS = 20.0  # for one certificate
_NAMES = "DNS:localhost,IP:127.0.0.1,DNS:node1,DNS:node2,DNS:node3"

UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that ask servers of this run."""
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE


@dataclass(frozen=True, slots=True)
class Keys:
    """Files: a CA's certificate, a certificate by it with its key, and a cluster's secret."""

    ca: str
    certificate: str
    key: str
    secret: str


def make_keys(workspace: Workspace) -> Keys:
    """Make all of them. Raises BenchError."""
    folder = workspace.directory("keys")
    ca, ca_key, certificate, key, secret = (
        os.path.join(folder, name)
        for name in ("ca.crt", "ca.key", "node.crt", "node.key", "secret")
    )
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    new += ["-nodes", "-days", "2"]
    made_by_itself = ["-subj", "/CN=bench", "-addext", "keyUsage=critical,keyCertSign"]
    workspace.run([*new, *made_by_itself, "-keyout", ca_key, "-out", ca], _SECONDS)
    signed = ["-CA", ca, "-CAkey", ca_key, "-subj", "/CN=localhost"]
    signed += ["-addext", "basicConstraints=critical,CA:FALSE"]
    signed += ["-addext", f"subjectAltName={_NAMES}"]
    workspace.run([*new, *signed, "-keyout", key, "-out", certificate], _SECONDS)
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return Keys(ca, certificate, key, secret)


def keys_missing() -> str:
    """Return what to do about a missing openssl, or an empty string."""
    return "" if shutil.which("openssl") else "openssl is missing: apt-get install openssl"
