"""Whom a browser may ask this server for: names that are the server's own, and foreign web pages.

A browser carries out what any web page tells it, and it reaches what the page's author can't: a
database on this machine or behind a firewall. Two rules keep such pages out, whatever a request
says of its content; a program that is no browser meets neither of them by accident.

1. **Names.** A page whose own name is made to lead here (DNS rebinding) is same-origin with this
   server, for its browser. So a request is answered only under a name that no stranger can give
   away: an IP address, a name without a dot, what ends in ``.localhost``, ``.svc`` or
   ``.svc.cluster.local``, and the names that the server was told. Any other is 421.
2. **Origins.** What a page of another origin asks for is 403, unless it only reads a public page.
   Browsers say where a request comes from: in ``Origin`` for all that is no plain read, and in
   ``Sec-Fetch-Site``, which no page can forge.

Pages of the origins that the server was told may ask like its own (CORS). Their browsers let them
read an answer only if it names their origin; whoever keeps answers is told that they differ by
origin, those to others, too. Before what is no plain request a browser asks with OPTIONS whether
the page may (a preflight), which is answered here and by no route.

A header block is judged once and not for each request that has it. Any thread may call anything.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from conure.net.rates import Rates
from conure.protection import OPEN, Door
from conure.values import Authority, is_host_name, parse_authority, plain_host

__all__ = [
    "PREFLIGHT",
    "Access",
    "Judgement",
    "Names",
]

Judgement = tuple[int, str]
"""A status and one line for the user."""
_origin = re.compile(r"(https?)://([^/]+)", re.ASCII).fullmatch
_PORTS = {"http": 80, "https": 443}
_NOBODY_ELSES = (".localhost", ".svc", ".svc.cluster.local")
_SHOWN = 100  # characters of what somebody sent

_EXPOSED = (
    "Allow, ETag, Location, Retry-After, X-Conure-Create-Revision, X-Conure-Fencing-Token, "
    "X-Conure-Index, X-Conure-Known-Leader, X-Conure-Last-Contact, X-Conure-TTL, "
    "X-Conure-Version, X-Request-Id"
)
_VARIES: Final = b"Vary: Origin\r\n"
_SHARED: Final = (
    b"Access-Control-Allow-Origin: %b\r\n"
    b"Access-Control-Expose-Headers: " + _EXPOSED.encode() + b"\r\n"
)
PREFLIGHT: Final = (
    b"Access-Control-Allow-Methods: DELETE, GET, HEAD, PATCH, POST, PUT\r\n"
    b"Access-Control-Allow-Headers: Accept, Authorization, Content-Type, Idempotency-Key, "
    b"If-Match, If-None-Match, Last-Event-ID, X-Request-Id\r\n"
    b"Access-Control-Max-Age: 600\r\n"
)
"""The header lines of the answer to a preflight, besides those of every answer."""


class Names:
    """The names that a server answers to.

    *allowed* are patterns as :func:`parse_pattern` returns them, *own* names of this server, and
    *also* tells those of its names that may change while it runs.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        own: Iterable[str] = (),
        also: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._own = frozenset(map(plain_host, own))
        self._also = also
        allowed = tuple(allowed)
        self._any = "*" in allowed
        self._exact = frozenset(pattern.removeprefix(".") for pattern in allowed)
        self._ends = tuple(p.removeprefix("*") for p in allowed if p.startswith((".", "*.")))

    def __contains__(self, host: str) -> bool:
        """Tell whether this is a name, as :class:`Authority` has it."""
        if self._any or not host or host.startswith("["):
            return True
        if not is_host_name(host):
            return False
        return (
            "." not in host
            or host.endswith(_NOBODY_ELSES)
            or host in self._exact
            or host.endswith(self._ends)
            or host in self._own
            or _is_ipv4(host)
            or host in map(plain_host, self._also())
        )


@dataclass(frozen=True, slots=True)
class Access:
    """Who is answered: under which name, which pages, from which machines, and how often.

    *public* are the paths that any web page may read, *probes* those that are answered even when
    there is no room for another connection. Pages of the *origins* may ask for everything; each is
    written as ``conure.values.parse_origin`` returns it. The server itself is asked by *scheme*.
    Without *rates* anybody may ask as often as it likes.
    """

    names: Names = field(default_factory=Names)
    public: frozenset[str] = frozenset()
    probes: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    scheme: str = "http"
    door: Door = OPEN
    rates: Rates | None = None

    def judge(
        self, asked: Authority | None, origin: str | None, site: str | None
    ) -> Judgement | None:
        """Tell why a request is refused, if it is: 421 always, 403 unless it reads a public page.

        *asked* is whom it was sent to, None if it doesn't say: no browser leaves that out.
        *origin* and *site* are its ``Origin`` and ``Sec-Fetch-Site``.
        """
        if asked is not None and asked.host not in self.names:
            name = asked.host[:_SHOWN]
            return 421, (
                f"this server is not known as {name}; if that is a name of it, start it with "
                f"--allowed-hosts={name}"
            )
        if origin not in self.origins and _is_foreign(asked, origin, site, self.scheme):
            page = f"Sec-Fetch-Site: {site}" if origin is None else origin
            return 403, (
                f"a web page of another origin ({page[:_SHOWN]}) may not ask for this; "
                "programs that are no browser send neither Origin nor Sec-Fetch-Site"
            )
        return None

    def share(self, origin: str | None) -> bytes:
        """Return the header lines by which a browser lets the page that asked read an answer, if
        it may; and by which nobody takes that for the answer to another page."""
        if not self.origins:
            return b""
        if origin not in self.origins:
            return _VARIES
        return _VARIES + _SHARED % origin.encode()


def _is_foreign(asked: Authority | None, origin: str | None, site: str | None, own: str) -> bool:
    """Tell whether a page isn't of this server, which is asked by the scheme *own*."""
    if origin is None:
        return site not in (None, "none", "same-origin")
    if site not in (None, "none", "same-origin", "same-site"):
        return True
    match = _origin(origin)
    if match is None or asked is None:  # "null", for one
        return True
    scheme, page = match[1], parse_authority(match[2])
    if page is None or page.host != asked.host or not page.host:
        return True
    # In front of a server that speaks http there may be a proxy that speaks https: its browser
    # vouches for the page then.
    if scheme != own and (own == "https" or site != "same-origin"):
        return True
    default = _PORTS[scheme]
    return (page.port or default) != (asked.port or default)


def _is_ipv4(host: str) -> bool:
    """Tell whether this is an address, in one of the ways that there are; such a name is none."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True
