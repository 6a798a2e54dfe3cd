"""What a certificate says of itself: whose it is, whose CA has signed it, and until when.

The standard library shows a certificate only once it has been believed. This file reads as much of
one as messages and metrics need (RFC 5280 section 4.1), and decides nothing: whether a certificate
is to be believed is for OpenSSL to say. DER is a tree of tag, length and content; an example, the
last second of 2049 as it stands in a certificate::

    17 0d 34 39 31 32 33 31 32 33 35 39 35 39 5a      UTCTime, 13 bytes: 491231235959Z

Nothing here has state: any thread may call anything. Bytes that are no certificate are a
ValueError, whatever they are.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

__all__ = ["Facts", "certificates_in", "facts_of"]

_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)"
    rb"-----END (?:TRUSTED |X509 )?CERTIFICATE-----"
)
_SEQUENCE, _SET, _OBJECT, _OCTETS = 0x30, 0x31, 0x06, 0x04
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_COMMON_NAME: Final = bytes.fromhex("550403")
_ALTERNATIVE_NAMES: Final = bytes.fromhex("551d11")
_EMAIL, _DNS, _URI, _ADDRESS = 0x81, 0x82, 0x86, 0x87
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun",
                  "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # fmt: skip


class Facts(NamedTuple):
    """What a certificate says. Times are seconds since 1970, *ends_at* is the same for people."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float
    ends_at: str

    def __str__(self) -> str:
        whose = ", ".join(self.names) or self.subject or "nobody"
        return f"for {whose}, by {self.issuer or 'nobody'}, until {self.ends_at}"


def certificates_in(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM file as DER, in their order."""
    return [base64.b64decode(b"".join(block.split())) for block in _BLOCK.findall(pem)]


def facts_of(der: bytes) -> Facts:
    """Return what a certificate says. Raises ValueError."""
    try:
        certificate = _only(der, _SEQUENCE)
        fields = list(_children(_only(certificate, _SEQUENCE, whole=False)))
        if fields and fields[0][0] == _VERSION:
            fields = fields[1:]
        # The serial number and the algorithm stand before these, the key behind.
        issuer, validity, subject = (content for _, content in fields[2:5])
        begins, ends = (_time(tag, content) for tag, content in _children(validity))
        extensions = [content for tag, content in fields[6:] if tag == _EXTENSIONS]
        return Facts(
            _name(subject),
            _name(issuer),
            tuple(_alternatives(extensions[0])) if extensions else (),
            *(_seconds(begins), _seconds(ends)),
            "{}-{}-{} {}:{}:{} UTC".format(*ends),
        )
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError(f"no certificate: {error}") from error


def _children(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of what stands one after the other."""
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("a length that DER doesn't have")
            length = int.from_bytes(data[position : position + size])
            position += size
        if position + length > len(data):
            raise ValueError("it is cut off")
        yield tag, data[position : position + length]
        position += length


def _only(data: bytes, tag: int, *, whole: bool = True) -> bytes:
    """Return the content of the first thing in *data*, which is *whole* if there is no other."""
    found = list(_children(data)) if whole else [next(_children(data))]
    if len(found) != 1 or found[0][0] != tag:
        raise ValueError("it is something else")
    return found[0][1]


def _time(tag: int, content: bytes) -> tuple[str, ...]:
    """Return year, month, day, hour, minute and second."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a time of an unknown kind")
    if not re.fullmatch(r"\d{14}Z", text):
        raise ValueError("a time that is none")
    return text[:4], *(text[i : i + 2] for i in range(4, 14, 2))


def _seconds(parts: tuple[str, ...]) -> float:
    year, month, day, hour, minute, second = parts
    name = _MONTHS[int(month) - 1]
    return ssl.cert_time_to_seconds(f"{name} {int(day):2} {hour}:{minute}:{second} {year} GMT")


def _name(content: bytes) -> str:
    """Return the common name of somebody, or all that is said of them."""
    parts = []
    for _, relative in _children(content):
        for _, pair in _children(relative):
            (_, kind), (_, value) = _children(pair)
            text = value.decode("utf-8", "replace")
            if kind == _COMMON_NAME:
                return text
            parts.append(text)
    return ", ".join(parts)


def _alternatives(content: bytes) -> Iterator[str]:
    """Yield the names of a certificate but for its common one."""
    for _, extension in _children(_only(content, _SEQUENCE)):
        parts = list(_children(extension))
        if parts[0][1] != _ALTERNATIVE_NAMES or parts[-1][0] != _OCTETS:
            continue
        for tag, name in _children(_only(parts[-1][1], _SEQUENCE)):
            if tag in (_EMAIL, _DNS, _URI):
                yield name.decode("utf-8", "replace")
            elif tag == _ADDRESS:
                yield str(ip_address(name))
