"""TLS contexts made of files: what a server shows and asks for, and what a client does.

A :class:`ServerTls` is for those who accept, a :class:`ClientTls` for those who dial. Each has a
``context``, which is another one once a file has changed (reloading.py); a connection keeps the one
that it began with. What can't be used is a ConfigError that names setting, file and remedy, at the
start; later on it is logged, and what was read before stays in use.

What is spoken: TLS 1.3, or from 1.2 on with ciphers that have forward secrecy and authenticate what
they encrypt; neither renegotiation nor compression. Whose certificate it is, is checked by OpenSSL
against the CAs of a file, and a server's name by whoever dials unless it says otherwise.

Any thread may read ``context`` and ``shown``; nothing else is for more than one.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Sequence
from time import time
from typing import Final

from conure.errors import ConfigError
from conure.security.reloading import GivenFile, Reloaded, warn_of_mode
from conure.security.x509 import Facts, certificates_in, facts_of

__all__ = ["ClientTls", "ServerTls", "expiries"]

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of 1.2
_AUTH: Final = {
    "none": ssl.CERT_NONE,
    "request": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}
_SOON: Final = 14 * 86400.0  # seconds of validity that are left when it is time to warn

log = logging.getLogger("conure.security")


class ServerTls:
    """Contexts for those who accept. *client_auth* is ``none``, ``request`` or ``require``, the
    certificate of each client, checked by *client_ca*. Raises ConfigError."""

    def __init__(
        self,
        cert: GivenFile,
        key: GivenFile,
        client_ca: GivenFile | None = None,
        client_auth: str = "none",
        min_version: str = "1.3",
    ) -> None:
        assert client_auth == "none" or client_ca is not None
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._verify_mode = _AUTH[client_auth]
        self._min_version = min_version
        files = [cert, key, *([client_ca] if client_ca else [])]
        self._made = Reloaded(files, self._make)

    @property
    def context(self) -> ssl.SSLContext:
        """The context of new connections. Any thread."""
        return self._made.value[0]

    @property
    def shown(self) -> str:
        """What is shown and who is believed, in words. Any thread."""
        return self._made.value[1]

    @property
    def files(self) -> Sequence[GivenFile]:
        """Which files it is made of."""
        return self._made.files

    def look(self) -> bool:
        """Read the files again if they have changed; see :meth:`Reloaded.look`."""
        return self._made.look()

    def _make(self) -> tuple[ssl.SSLContext, str]:
        context = _new_context(ssl.PROTOCOL_TLS_SERVER, self._min_version)
        shown = f"{self._cert.path}: {_load_pair(context, self._cert, self._key)}"
        if self._client_ca is not None:
            shown += f"; {self._client_ca.path}: {_load_cas(context, self._client_ca)}"
        context.verify_mode = self._verify_mode
        return context, shown


class ClientTls:
    """Contexts for those who dial. Servers are checked by *ca*, or by the system's CAs; *cert* and
    *key* are shown to those who ask. Whoever *checks_names* itself says so. Raises ConfigError."""

    def __init__(
        self,
        ca: GivenFile | None,
        cert: GivenFile | None = None,
        key: GivenFile | None = None,
        min_version: str = "1.2",
        *,
        checks_names: bool = False,
    ) -> None:
        assert (cert is None) == (key is None)
        self._ca, self._cert, self._key = ca, cert, key
        self._min_version = min_version
        self._checks_names = checks_names
        self._made = Reloaded([file for file in (ca, cert, key) if file], self._make)

    @property
    def context(self) -> ssl.SSLContext:
        """The context of new connections. Any thread."""
        return self._made.value

    @property
    def files(self) -> Sequence[GivenFile]:
        """Which files it is made of."""
        return self._made.files

    def look(self) -> bool:
        """Read the files again if they have changed; see :meth:`Reloaded.look`."""
        return self._made.look()

    def _make(self) -> ssl.SSLContext:
        context = _new_context(ssl.PROTOCOL_TLS_CLIENT, self._min_version)
        context.check_hostname = not self._checks_names
        if self._ca is not None:
            _load_cas(context, self._ca)
        else:
            context.load_default_certs()
        if self._cert is not None and self._key is not None:
            _load_pair(context, self._cert, self._key)
        return context


def expiries(files: Sequence[GivenFile]) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield setting and path of each of *files* that has certificates, and in how many seconds the
    first of these expires; below 0, that long ago. Files that can't be read now are left out."""
    for file in files:
        try:
            found = certificates_in(file.read())
            ends = [facts_of(der).ends for der in found]
        except (OSError, ValueError, ConfigError):
            continue
        if ends:
            yield (file.setting, file.path), min(ends) - time()


def _new_context(protocol: int, min_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    return context


def _load_pair(context: ssl.SSLContext, cert: GivenFile, key: GivenFile) -> Facts:
    """Give a context a certificate with its chain, and the key. Raises ConfigError."""
    facts = _facts_in(cert)[0]
    content = key.read()
    if b"PRIVATE KEY-----" not in content:
        raise key.error("has no private key; it has to be PEM, from BEGIN … PRIVATE KEY on")
    if b"ENCRYPTED" in content:
        raise key.error("is encrypted, and nobody can be asked for its password; `openssl pkey`")
    try:
        context.load_cert_chain(cert.path, key.path, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise key.error(f"is not the key of the certificate in {cert.path}") from error
        raise key.error(f"can't be used with {cert.path}: {error.reason or error}") from error
    except OSError as error:
        raise key.error(f"can't be used with {cert.path}: {error.strerror}") from error
    warn_of_mode(key)
    _warn_of_dates(cert, facts)
    return facts


def _load_cas(context: ssl.SSLContext, file: GivenFile) -> str:
    """Give a context CAs to believe; return their names. Raises ConfigError."""
    found = _facts_in(file)
    try:
        context.load_verify_locations(cadata=file.read().decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise file.error(f"can't be used: {error}") from error
    return ", ".join(facts.subject or "a CA without a name" for facts in found)


def _facts_in(file: GivenFile) -> list[Facts]:
    """Return what the certificates of a file say. Raises ConfigError."""
    try:
        found = [facts_of(der) for der in certificates_in(file.read())]
    except ValueError as error:
        raise file.error(f"has a certificate that can't be read: {error}") from error
    if not found:
        raise file.error("has no certificate; it has to be PEM, from BEGIN CERTIFICATE on")
    return found


def _warn_of_dates(cert: GivenFile, facts: Facts) -> None:
    now = time()
    if now > facts.ends:
        log.warning("the certificate in %s (%s) expired at %s", *_named(cert), facts.ends_at)
    elif now < facts.begins:
        log.warning("the certificate in %s (%s) is not valid yet", *_named(cert))
    elif facts.ends - now < min(_SOON, (facts.ends - facts.begins) / 3):
        log.warning("the certificate in %s (%s) expires at %s", *_named(cert), facts.ends_at)


def _named(file: GivenFile) -> tuple[str, str]:
    return file.path, file.setting
