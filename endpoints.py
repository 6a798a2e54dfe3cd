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
from typing import Final

__all__ = ["ADDRESS", "BASE_URL", "is_address", "is_base_url", "is_ipv6"]

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
