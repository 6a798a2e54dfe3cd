"""How whoever asks a server by TLS makes sure of it, and proves who it is itself.

:class:`ClientTls` owns the files that a user has named (the CA, an own certificate and its key) and
gives the ``ssl.SSLContext`` that stands for them as of now: what was renewed on disk is used by the
next connection, and a file that is half written meanwhile changes nothing. TLS 1.2 is the least,
names are checked, and there is no way to check nothing.

For the client library and the commands that ask servers; imported only where TLS is spoken, as
``ssl`` takes 20 ms. A node's own files are security/'s business. Any thread.
"""

from __future__ import annotations

import os
import ssl
import threading
from contextlib import suppress
from typing import Final, NoReturn

from conure.errors import ConfigError

__all__ = ["ClientTls"]

_WORDS: Final = {
    "NO_CERTIFICATE_OR_CRL_FOUND": "it has no certificate as PEM",
    "NO_START_LINE": "it has no certificate, or no key, as PEM",
    "PEM_LIB": "it has no certificate, or no key, as PEM",
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NOT_ENOUGH_DATA": "it is cut short",
}


class ClientTls:
    """What servers are checked by, and a certificate for those who ask for one.

    *ca* is a file with CA certificates, "" for the system's; *cert* and *key* are those of this
    side, "" for none, and *key* is "" if *cert* has it, too. *name* is what every server has to
    prove to be, in place of the name that it was asked by. Without *checks_names* a server of the
    CA may have any name: for probes of the same machine. Raises ConfigError, which names the file.
    """

    def __init__(
        self,
        ca: str = "",
        cert: str = "",
        key: str = "",
        *,
        name: str = "",
        checks_names: bool = True,
    ) -> None:
        if key and not cert:
            raise ConfigError("key", key, "it needs a certificate beside it; name that as cert")
        self.name = name
        self._ca, self._cert, self._key = ca, cert, key
        self._checks_names = checks_names
        self._lock = threading.Lock()  # guards the next two
        self._stamps = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context of what the files say now; of what they said before, if that is no
        good."""
        stamps = self._look()
        with self._lock:
            if stamps != self._stamps:
                self._stamps = stamps
                with suppress(ConfigError):  # half written, or one of two: it will change again
                    self._context = self._load()
            return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Return what tells one content of the files from another."""
        return [_stamp(path) for path in (self._ca, self._cert, self._key)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self._checks_names
        if self._ca:
            try:
                context.load_verify_locations(self._ca)
            except OSError as error:
                raise _unusable("ca", self._ca, error) from error
        else:
            context.load_default_certs()
        if self._cert:
            try:
                context.load_cert_chain(self._cert, self._key or None, _no_password)
            except OSError as error:
                raise _unusable(*self._guilty(error), error) from error
            except _Encrypted:
                path = self._key or self._cert
                why = "it is encrypted, and nobody can be asked for its password; decrypt it"
                raise ConfigError("key", path, why) from None
        return context

    def _guilty(self, error: OSError) -> tuple[str, str]:
        """Return which of certificate and key an error is about."""
        is_key = bool(self._key) and _readable(self._cert)
        if isinstance(error, ssl.SSLError) and error.reason != "KEY_VALUES_MISMATCH":
            is_key = is_key and _has_certificate(self._cert)
        return ("key", self._key) if is_key else ("cert", self._cert)


class _Encrypted(Exception):
    """A key needs a password."""


def _no_password() -> NoReturn:
    raise _Encrypted


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # not there just now; nothing named: never there
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK)


def _has_certificate(path: str) -> bool:
    with open(path, "rb") as file:
        return b"-----BEGIN CERTIFICATE-----" in file.read(1 << 20)


def _unusable(what: str, path: str, error: OSError) -> ConfigError:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        why = _WORDS.get(reason, f"it can't be used ({reason.replace('_', ' ').lower()})")
    else:
        why = f"it can't be read: {(error.strerror or str(error)).lower()}"
    return ConfigError(what, path, f"{why}; name another file")
