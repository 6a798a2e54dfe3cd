"""What the addresses of nodes look like: a host and a port, or the base URL of an HTTP API.

One rule for what a user sets, what a join names, and what other nodes say of themselves and of the
members. It is narrow on purpose: an address that has passed can stand in a log, in JSON and in a
header field as it is.

======== =====================================================================================
address  ``host:port``; the host is a name, an IPv4 address, or an IPv6 address in brackets
base URL ``http://host`` or ``https://host``, with ``:port`` and one slash behind it or not
======== =====================================================================================

Nothing here has state: any thread may call anything.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv6Address
from typing import Final, NamedTuple

__all__ = [
    "ADDRESS",
    "BASE_URL",
    "Authority",
    "host_of",
    "is_address",
    "is_base_url",
    "is_host_name",
    "is_ipv6",
    "parse_authority",
    "parse_pattern",
    "plain_host",
]

_HOST = r"(?:\[([^\]\s]{0,80})\]|([A-Za-z0-9._-]{0,253}))"
_SCOPE = re.compile(r"[A-Za-z0-9._-]{1,32}")

ADDRESS: Final = re.compile(_HOST + r":(\d{1,5})", re.ASCII)
"""An address, or one to listen at: without a host, or with port 0. Groups: IPv6 address, any other
host, port."""

BASE_URL: Final = re.compile(rf"(https?)://{_HOST}(?::(\d{{1,5}}))?/?", re.ASCII)
"""A base URL. Groups: scheme, and those of :data:`ADDRESS`."""


def is_address(text: str) -> bool:
    """Tell whether *text* is an address that one can connect to, if somebody is there."""
    match = ADDRESS.fullmatch(text)
    return match is not None and _is_place(match[1], match[2], match[3])


def is_base_url(text: str) -> bool:
    """Tell whether *text* is a base URL that a redirect can begin with."""
    match = BASE_URL.fullmatch(text)
    return match is not None and _is_place(match[2], match[3], match[4] or "80")


def is_ipv6(text: str) -> bool:
    """Tell whether *text* is an IPv6 address; it may name the interface, as in ``fe80::1%eth0``."""
    address, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _SCOPE.fullmatch(scope) is not None


def _is_place(ipv6: str | None, host: str, port: str) -> bool:
    return 0 < int(port) < 1 << 16 and (is_ipv6(ipv6) if ipv6 is not None else host != "")


_authority = re.compile(
    r"(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]"
    r"|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)"
    r"(?::([0-9]{0,5}))?",
    re.ASCII,
).fullmatch
_NAME = r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+"
is_host_name = re.compile(_NAME, re.ASCII).fullmatch
_is_pattern = re.compile(rf"\*|(?:\*?\.)?{_NAME}\.?", re.ASCII).fullmatch


class Authority(NamedTuple):
    """Whom a request was sent to: a host in small letters, without a dot at its end; and a port,
    None if none was named."""

    host: str
    port: int | None


def parse_authority(text: str) -> Authority | None:
    """Read ``host:port`` (RFC 3986 section 3.2, without a user); None if it is malformed."""
    match = _authority(text)
    if match is None:
        return None
    host, port = match[1].lower(), int(match[2]) if match[2] else None
    if port is not None and port > 65535:
        return None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1].partition('%')[0])}]"
        except ValueError:
            return None
    return Authority(host.removesuffix("."), port)


def parse_pattern(text: str) -> str:
    """Return a name that is to be answered to as :class:`Names` takes it.

    That is ``db.example.com``; ``.example.com``, with everything below it; ``*.example.com``, only
    what is below it; or ``*``, any name. Raises ValueError with the remedy.
    """
    if _is_pattern(text.lower()):
        return plain_host(text)
    if "://" in text or re.search(r":[0-9]+$", text):
        why = "name the host alone, without a scheme or a port"
    else:
        why = "write it like db.example.com, .example.com (and all below it) or * (any)"
    raise ValueError(f"{text!r} is no host name; {why}")


def host_of(address: str) -> str:
    """Return the host of a base URL or of ``host:port``; empty if there is none."""
    authority = parse_authority(address.removeprefix("http://"))
    return authority.host if authority else ""


def plain_host(host: str) -> str:
    return host.lower().removesuffix(".")
