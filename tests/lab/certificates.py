"""CAs and certificates for tests, made by trustme as they are needed, and kept in files.

An :class:`Authority` issues them; a :class:`Certificate` is three files: the certificate with its
chain, its key, and the CA's own certificate. Contexts for both ends of a connection come from them.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import trustme
from trustme import KeyType

__all__ = ["Authority", "Certificate", "client_context", "server_context"]

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """Files of PEM: *cert* has the chain as well."""

    cert: Path
    key: Path
    ca: Path


class Authority:
    """A CA, or with a *parent* an intermediate one; its files are in *place*."""

    def __init__(
        self, place: Path, *, parent: Authority | None = None, key_type: str = "ECDSA"
    ) -> None:
        self._place = place
        self._parent = parent
        self._numbers = count()
        above = parent._ca if parent else None
        self._ca: trustme.CA = trustme.CA(parent_cert=above, key_type=KeyType[key_type])
        place.mkdir(parents=True, exist_ok=True)
        self.root: Path = parent.root if parent else place / "ca.pem"
        """The certificate that whoever checks has to know."""
        if parent is None:
            self._ca.cert_pem.write_to_path(str(self.root))

    @property
    def pem(self) -> bytes:
        """The CA's own certificate."""
        return self._ca.cert_pem.bytes()

    def issue(
        self,
        *names: str,
        common_name: str = "",
        key_type: str = "ECDSA",
        begins: timedelta = -DAY,
        ends: timedelta = 30 * DAY,
        with_chain: bool = True,
    ) -> Certificate:
        """Issue a certificate for names or addresses, valid from and up to a time from now."""
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            *names,
            common_name=common_name or None,
            key_type=KeyType[key_type],
            not_before=now + begins,
            not_after=now + ends,
        )
        number = next(self._numbers)
        cert, key = self._place / f"{number}.pem", self._place / f"{number}.key"
        chain = issued.cert_chain_pems if with_chain else issued.cert_chain_pems[:1]
        cert.write_bytes(b"".join(pem.bytes() for pem in chain))
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return Certificate(cert, key, self.root)

    def expired(self, *names: str) -> Certificate:
        """Issue a certificate that was valid until yesterday."""
        return self.issue(*names, begins=-10 * DAY, ends=-DAY)

    def not_yet_valid(self, *names: str) -> Certificate:
        """Issue a certificate that is valid from tomorrow on."""
        return self.issue(*names, begins=DAY, ends=10 * DAY)


def server_context(certificate: Certificate, clients: Path | None = None) -> ssl.SSLContext:
    """Return a server's context; with *clients*, the CAs of those, it wants their certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    context.options |= ssl.OP_NO_RENEGOTIATION
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path, certificate: Certificate | None = None) -> ssl.SSLContext:
    """Return the context of a client that knows one CA, and may show a certificate."""
    context = ssl.create_default_context(cafile=str(ca))
    if certificate is not None:
        context.load_cert_chain(certificate.cert, certificate.key)
    return context
