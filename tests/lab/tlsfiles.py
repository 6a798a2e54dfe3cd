"""Certificates for tests of those who ask by TLS: an authority, and files that it has issued."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

__all__ = ["Files", "Issuer"]

_DAY = timedelta(days=1)


class Files:
    """A certificate and its key, as PEM files."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert, self.key = str(cert), str(key)

    def server_context(self, client_ca: str = "") -> ssl.SSLContext:
        """Return what a server with this certificate wraps its sockets by; it asks clients for
        theirs if there is a CA to check them by."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
        return context


class Issuer:
    """An authority: ``file`` has its own certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self._numbers: Iterator[int] = iter(range(1000))
        self._name = name
        self.file = str(folder / f"{name}.pem")
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, days: tuple[float, float] = (-1, 30)) -> Files:
        """Issue a certificate for some names, which is good between two days from now."""
        now = datetime.now(UTC)
        issued = self._authority.issue_cert(
            *names, not_before=now + days[0] * _DAY, not_after=now + days[1] * _DAY
        )
        place = self._folder / f"{self._name}-{next(self._numbers)}"
        files = Files(place.with_suffix(".crt"), place.with_suffix(".key"))
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        place.with_suffix(".crt").write_bytes(chain)
        issued.private_key_pem.write_to_path(files.key)
        return files
