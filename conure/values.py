"""What durations, sizes, addresses and base URLs look like, in settings, requests and on the wire.

One home for what a user writes, what a join names, and what other nodes say of themselves and of
the members. The rule for addresses is narrow on purpose: one that has passed can stand in a log, in
JSON and in a header field as it is.

========= ====================================================================================
address   ``host:port``; the host is a name, an IPv4 address, or an IPv6 address in brackets
base URL  ``http://host`` or ``https://host``, with ``:port`` and one slash at its end or not
duration  numbers with units, ``1m30s``: :data:`SETTING` (from nanoseconds to hours),
          :data:`REQUEST` and :data:`COMMAND` (from milliseconds to days)
size      bytes, with a unit or not: ``4096``, ``64KiB`` (binary), ``1MB`` (decimal)
========= ====================================================================================

What parses raises ValueError with the reason and the remedy, unless it says otherwise. Nothing here
has state: any thread may call anything.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple

__all__ = [
    "COMMAND",
    "MAX_FOUNDERS",
    "MAX_QUORUM_SIZE",
    "REQUEST",
    "SETTING",
    "Address",
    "Authority",
    "Durations",
    "authority_of",
    "bracketed",
    "host_of",
    "is_address",
    "is_base_url",
    "is_host_name",
    "is_https",
    "is_ipv6",
    "parse_authority",
    "parse_base_url",
    "parse_listening_address",
    "parse_milliseconds",
    "parse_origin",
    "parse_pattern",
    "parse_seconds",
    "parse_server",
    "parse_size",
    "plain_host",
    "redirected_to",
    "show_size",
    "split_address",
    "split_base_url",
    "split_location",
]

MAX_QUORUM_SIZE: Final = 1000
"""The largest quorum size; no cluster has so many members. The smallest is 2."""

MAX_FOUNDERS: Final = 32
"""The nodes that a cluster is formed by, at most."""

_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": _KIB, "mib": _MIB, "gib": _GIB, "tib": _TIB,
    "ki": _KIB, "mi": _MIB, "gi": _GIB, "ti": _TIB,
}  # fmt: skip
_SIZE = re.compile(r"(\d+) ?([A-Za-z]*)", re.ASCII)

# -- durations -----------------------------------------------------------------------------------


class Durations:
    """A way to write durations: numbers with units, one next to the other.

    *units* says what each unit is worth. A number has up to *digits* digits, and up to *decimals*
    after its point; as many as there are if that is "".
    """

    def __init__(
        self, units: Mapping[str, float], *, digits: int | str = "", decimals: int | str = ""
    ) -> None:
        number = rf"\d{{1,{digits}}}(?:\.\d{{1,{decimals}}})?"
        self._units = units
        self._is_one = re.compile(rf"(?:{number}(?:{'|'.join(units)}))+", re.ASCII).fullmatch
        self._parts = re.compile(rf"([\d.]+)({'|'.join(units)})", re.ASCII).findall

    def parse(self, text: str) -> float | None:
        """Return the sum of the parts; None for what isn't written like that."""
        if not self._is_one(text):
            return None
        return sum(float(number) * self._units[unit] for number, unit in self._parts(text))


SETTING: Final = Durations(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
)
"""Durations of settings, in seconds."""

REQUEST: Final = Durations(
    {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}, digits=15, decimals=9
)
"""Durations of requests, in milliseconds."""

COMMAND: Final = Durations({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}, digits=9)
"""Durations that the shell takes, in seconds."""

_is_seconds = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?").fullmatch


def parse_seconds(text: str) -> float:
    """Return the duration that a setting is, in seconds."""
    seconds = SETTING.parse(text)
    if seconds is not None:
        return seconds
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise ValueError(f"{text} has no unit; write {text}s for seconds or {text}ms")
    raise ValueError(f"{text!r} is no duration; write it like 3s, 500ms or 1m30s")


@lru_cache(256)
def parse_milliseconds(text: str) -> int | None:
    """Return the duration that a request names, seconds if it has no unit, in milliseconds.

    None for what is none. Some are kept as they were parsed: the caller bounds their length.
    """
    if _is_seconds(text):
        return round(float(text) * 1000)
    found = REQUEST.parse(text)
    return None if found is None else round(found)


# -- sizes ---------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Return a size in bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or (unit := match[2].lower()) not in _BYTES:
        raise ValueError(f"{text!r} is no size; write it like 4096, 64KiB or 1MB")
    return int(match[1]) * _BYTES[unit]


def show_size(size: int) -> str:
    """Return a size as a user would write it."""
    for unit, factor in (("TiB", _TIB), ("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


# -- addresses -----------------------------------------------------------------------------------

_HOST = r"(?:\[([^\]\s]{0,80})\]|([A-Za-z0-9._-]{0,253}))"
_SCOPE = re.compile(r"[A-Za-z0-9._-]{1,32}")

# An address, or one to listen at: without a host, or with port 0. Groups: IPv6 address, any other
# host, port.
_ADDRESS = re.compile(_HOST + r":(\d{1,5})", re.ASCII)

# A base URL. Groups: scheme, and those of an address.
_BASE_URL = re.compile(rf"(https?)://{_HOST}(?::(\d{{1,5}}))?/?", re.ASCII)

_DEFAULT_PORTS = {"http": "80", "https": "443"}

# Where a redirect leads to. Groups: scheme, host, port, all after them.
_LOCATION = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)"
    r"(?::(\d{1,5}))?([/?][^\s]*)?",
    re.ASCII,
)


class Address(NamedTuple):
    """A host and a TCP port, as :func:`socket.bind` takes them; ``str()`` is ``host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether this names every interface, so that nobody can connect to it by this name."""
        return self.host == "" or _is_unspecified(self.host)


def is_address(text: str) -> bool:
    """Tell whether *text* is an address that one can connect to, if somebody is there."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and _is_place(match[1], match[2], match[3])


def is_base_url(text: str) -> bool:
    """Tell whether *text* is a base URL that a redirect can begin with."""
    match = _BASE_URL.fullmatch(text)
    return match is not None and _is_place(match[2], match[3], match[4] or "80")


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of an address, as they are connected to: an IPv6 address is bare.

    Any host will do: whether there is such a one is for whoever looks it up. Raises ValueError.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError("it isn't an address of the form host:port")
    return host.strip("[]"), int(port)


def split_base_url(text: str) -> tuple[str, int]:
    """Return host and port of a base URL, as they are connected to. Raises ValueError."""
    match = _BASE_URL.fullmatch(text)
    if match is None:
        raise ValueError("it isn't a base URL of the form http://host:port")
    port = match[4] or _DEFAULT_PORTS[match[1]]
    return split_address(f"{match[2] or match[3] or ''}:{port}")


def is_https(url: str) -> bool:
    """Tell whether the server at a base URL is asked by TLS."""
    return url.startswith("https://")


def authority_of(url: str) -> str:
    """Return host and port of a base URL as they stand there: what a request names as Host."""
    return url.removeprefix("https://" if is_https(url) else "http://").removesuffix("/")


def parse_listening_address(text: str) -> Address:
    """Return an address to listen at: without a host (every interface), or with port 0 as well."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(_address_hint(text))
    return _address(match[1], match[2], match[3])


def parse_base_url(text: str) -> str:
    """Return a base URL as it is compared and shown: with its port, without a slash."""
    match = _BASE_URL.fullmatch(text)
    if match is None or match[3] == "":
        raise ValueError(f"{text!r} is no base URL; write it like http://10.0.0.5:8081")
    address = _address(match[2], match[3], match[4] or _DEFAULT_PORTS[match[1]])
    if address.is_wildcard or address.port == 0:
        raise ValueError(f"nobody can connect to {text}; name a node's host and port")
    return f"{match[1]}://{address}"


def parse_origin(text: str) -> str:
    """Return the origin of web pages as a browser writes it (RFC 6454): without a default port."""
    match = _BASE_URL.fullmatch(text.lower())
    if match is None or match[3] == "":
        raise ValueError(f"{text!r} is no origin; write it like https://admin.example.com")
    scheme = match[1]
    host, port = _address(match[2], match[3], match[4] or _DEFAULT_PORTS[scheme])
    shown = "" if str(port) == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{bracketed(host)}{shown}"


def parse_server(text: str) -> str:
    """Return the base URL of a server to ask, with its port and without a slash.

    The host is a name that DNS could know, or an IP address. Raises ValueError without a remedy.
    """
    server, rest = split_location(text)
    if rest not in ("", "/"):
        raise ValueError("no base URL")
    return server


def split_location(text: str) -> tuple[str, str]:
    """Return the base URL of the server that a URL is of, as :func:`parse_server` does, and all
    that is behind it, "" if there is nothing. Raises ValueError without a remedy."""
    match = _LOCATION.fullmatch(text)
    if match is None:
        raise ValueError("no base URL")
    port = match[3] or _DEFAULT_PORTS[match[1]]
    if not 0 < int(port) < 65536:
        raise ValueError("no base URL")
    return f"{match[1]}://{match[2]}:{port}", match[4] or ""


def redirected_to(location: str, server: str) -> str | None:
    """Return the server that a redirect by *server* leads to; None for one that isn't followed.

    Who was asked by TLS is never left for who can be read and changed on the way.
    """
    try:
        leader, _ = split_location(location)
    except ValueError:
        return None
    return None if is_https(server) and not is_https(leader) else leader


def bracketed(host: str) -> str:
    """Return a host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def is_ipv6(text: str) -> bool:
    """Tell whether *text* is an IPv6 address; it may name the interface, as in ``fe80::1%eth0``."""
    address, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _SCOPE.fullmatch(scope) is not None


def _address(ipv6: str | None, host: str, port: str) -> Address:
    if ipv6 is not None and not is_ipv6(ipv6):
        raise ValueError(f"[{ipv6}] is no IPv6 address; write it like [::1]:{port}")
    if int(port) > 65535:
        raise ValueError(f"{port} is no TCP port; use 0 to 65535")
    return Address(host if ipv6 is None else ipv6, int(port))


def _address_hint(text: str) -> str:
    hint = "write it like 127.0.0.1:8081, :8081 or [::1]:8081"
    if text.isdecimal():
        return f"{text} is a port without an address; write :{text}"
    if "://" in text:
        return f"{text!r} is a URL; {hint}"
    if text.count(":") > 1:
        return f"{text!r} is no host and port; an IPv6 address goes in brackets: [::1]:8081"
    return f"{text!r} is no host and port; {hint}"


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_place(ipv6: str | None, host: str, port: str) -> bool:
    return 0 < int(port) < 1 << 16 and (is_ipv6(ipv6) if ipv6 is not None else host != "")


# -- names ---------------------------------------------------------------------------------------

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
    authority = parse_authority(authority_of(address))
    return authority.host if authority else ""


def plain_host(host: str) -> str:
    return host.lower().removesuffix(".")
