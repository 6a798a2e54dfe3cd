"""A search for secrets in all that servers and their tools print and answer.

:class:`Search` is told the secrets of a run, then what was heard of whom, and says where a secret
stands in it: as it is, or as text, hex, base64 of either alphabet at any offset, percent-encoded or
escaped, and in parts: a run of :data:`_RUN` characters that begins at a multiple of so many gives a
secret away, so twice as many of it are never missed. Private keys are looked for by the numbers
that make them up, which finds them in PEM and DER as well.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

__all__ = ["Heard", "Search"]

_RUN = 12  # characters
_BLOCK = re.compile(rb"-----BEGIN [^-]*PRIVATE KEY.*?END[^-]*-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard of whom; *by_clients*: whoever asks a server hears it, too."""

    where: str
    data: bytes
    by_clients: bool = False


class Search:
    """The secrets of a run."""

    def __init__(self) -> None:
        self._needles: dict[bytes, tuple[str, bool]] = {}

    def add(self, name: str, secret: bytes, *, from_clients_only: bool = False) -> None:
        """Look for a secret. What is kept *from clients only* may stand in logs and files."""
        assert len(secret) >= _RUN, "too short to be told from chance"
        for form in _forms(secret):
            for start in range(0, len(form) - _RUN + 1, _RUN):
                self._needles[form[start : start + _RUN]] = (name, from_clients_only)

    def add_private_key(self, name: str, pem: bytes) -> None:
        """Look for the private key in a block of PEM."""
        key = load_pem_private_key(pem, None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            numbers = [key.private_numbers().private_value]
        else:
            assert isinstance(key, rsa.RSAPrivateKey)
            private = key.private_numbers()
            numbers = [private.d, private.p, private.q]
        for number in numbers:
            self.add(name, number.to_bytes((number.bit_length() + 7) // 8, "big"))

    def add_private_keys_of(self, folder: Path) -> None:
        """Look for all private keys in the files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file() and b"PRIVATE KEY" in (pem := path.read_bytes()):
                for block in _BLOCK.findall(pem):
                    self.add_private_key(path.name, block)

    def found(self, heard: Iterable[Heard]) -> list[str]:
        """Return where which secret stands; nothing, if all is well."""
        return sorted(
            {
                f"{name} in {each.where}"
                for each in heard
                for needle, (name, from_clients_only) in self._needles.items()
                if (each.by_clients or not from_clients_only) and needle in each.data
            }
        )


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yield how a secret may be written."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield secret[::-1]
    for offset in range(3):  # where it begins in a group of three bytes
        encoded = base64.b64encode(bytes(offset) + secret)
        inner = encoded[4 if offset else 0 : -4]  # what the neighbours have no part in
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")
    yield quote_from_bytes(secret, safe="").encode()
    yield repr(secret)[2:-1].encode()
    yield json.dumps(secret.decode("latin-1"))[1:-1].encode()
