"""Places for connections, counted by client, so that none can take them all.

======================================= =======================================================
from                                    may have
======================================= =======================================================
this machine, and trusted proxies       all places but the reserve
any other client                        a tenth of all places, and 1,024 if that is less; never
                                        more than there are beside the reserve
the reserve, 64 places                  whoever finds no other, for one probe
======================================= =======================================================

With fewer than 128 places the reserve is half of them, and at least one. A client is an IPv4
address or the first 64 bits of an IPv6 one: whoever has one address of such a network has all of
them. An IPv4 address that is written as an IPv6 one (``::ffff:10.0.0.1``) is the same client.

Any thread may call anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

__all__ = ["UNCOUNTED", "Clients", "Places"]

RESERVE = 64
SHARE = 10
LEAST_SHARE = 1024

UNCOUNTED: Final = ""
"""The client of whoever is not counted by address."""


class Clients:
    """Whose an address is. *trusted* are addresses and networks of proxies, for many clients."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = [ip_network(network) for network in trusted]
        self.of = lru_cache(4096)(self._of)
        """Return the client that an IP address is counted as, or UNCOUNTED."""

    def _of(self, address: str) -> str:
        ip = ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address):
            ip = ip.ipv4_mapped or ip
        if ip.is_loopback or any(ip in network for network in self._trusted):
            return UNCOUNTED
        if isinstance(ip, IPv6Address):
            return str(ip_network((ip, 64), strict=False))
        return str(ip)


class Places:
    """*most* places; *trusted* are addresses and networks of proxies, for many clients each."""

    def __init__(self, most: int, trusted: Iterable[str] = ()) -> None:
        self.reserve = max(1, min(RESERVE, most // 2))
        self.ordinary = max(1, most - self.reserve)
        self.share = min(self.ordinary, max(LEAST_SHARE, most // SHARE))
        self._client = Clients(trusted).of
        self._lock = threading.Lock()  # held for a few instructions
        self._taken: dict[str, int] = {}  # by client
        self._total = 0

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._total

    def take(self, address: str) -> str | None:
        """Take a place for a connection; return whose it is, or None if there is none for it."""
        client = self._client(address)
        most = self.ordinary if client == UNCOUNTED else self.share
        with self._lock:
            taken = self._taken.get(client, 0)
            if taken >= most or self._total >= self.ordinary:
                return None
            self._taken[client] = taken + 1
            self._total += 1
        return client

    def give_back(self, client: str) -> None:
        """Give a place back that *client* has."""
        with self._lock:
            self._total -= 1
            left = self._taken[client] - 1
            if left:
                self._taken[client] = left
            else:
                del self._taken[client]
