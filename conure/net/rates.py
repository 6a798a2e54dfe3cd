"""How much one client may ask for: requests, and bytes of them, a second.

Each client has two buckets that fill while it asks nothing: one of requests, one of bytes. A
second's worth is in each at most.

1. A client whose buckets both hold something may ask; what it asks for is taken out before anything
   is done, whatever that is. So a bucket may owe: a body of 16 MiB at 1 MiB a second is taken, and
   nothing more in the next 15 seconds. No client gets more for long than its rate.
2. A client is whom its certificate names; without one, an address as ``conure/net/places.py``
   counts it. This machine, and trusted proxies, which stand for many clients, aren't counted by
   address.
3. Only clients that have asked lately are remembered, and so many of them at most: one that was
   forgotten begins with full buckets. Who has more addresses than that has full buckets anyway.

The buckets are those of all fronts: whoever makes the fronts hands them one :class:`Rates`. The
thread of the one reactor that these share calls everything; the counters may be read from any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import ceil, floor
from time import perf_counter
from typing import Final

from conure.net.places import UNCOUNTED, Clients
from conure.values import show_size

__all__ = ["Rates", "Visitor"]

_CLIENTS = 1 << 16  # that are remembered; each takes some 300 bytes
_ANY: Final = 1e18  # of what isn't limited, a second


class Rates:
    """What clients have asked for lately.

    *requests* and *size* (in bytes) are what one may ask for in a second, 0: any number; *trusted*
    are addresses and networks of proxies. *clock* tells seconds.
    """

    def __init__(
        self,
        requests: int,
        size: int = 0,
        trusted: Iterable[str] = (),
        clock: Callable[[], float] = perf_counter,
        most_clients: int = _CLIENTS,
    ) -> None:
        assert requests >= 0
        assert size >= 0
        assert requests or size, "without a limit there is nothing to count"
        self.refused = 0
        """Requests and commands that were refused."""
        self._requests = requests or _ANY
        self._bytes = size or _ANY
        self._client_of = Clients(trusted).of
        self._clock = clock
        self._most = most_clients
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()  # those used last at the end

    def visitor(self, address: str, principal: Callable[[], str]) -> Visitor:
        """Return who asks on a connection from an IP address; *principal* tells whom its
        certificate names by now, "" for nobody. Any thread."""
        return Visitor(self, self._client_of(address), principal)

    @property
    def clients(self) -> int:
        """How many clients are remembered."""
        return len(self._buckets)

    def take(self, client: str, requests: int, size: int) -> int:
        """Take so many requests of so many bytes together out of the buckets of a client; return
        how many of them it may make. The bytes are taken if it may make any."""
        now = self._clock()
        buckets = self._of(client, now)
        if buckets.requests <= 0 or buckets.bytes <= 0:
            self.refused += requests
            return 0
        allowed = requests if buckets.requests >= requests else ceil(buckets.requests)
        buckets.requests -= allowed
        buckets.bytes -= size
        self.refused += requests - allowed
        return allowed

    def owe(self, client: str, size: int) -> None:
        """Take more bytes of a request that a client was allowed, whatever the bucket holds."""
        self._of(client, self._clock()).bytes -= size

    def wait(self, client: str) -> int:
        """Return in how many seconds a client may ask again: whole ones, and one at least."""
        buckets = self._of(client, self._clock())
        owed = max(-buckets.requests / self._requests, -buckets.bytes / self._bytes)
        return max(1, floor(owed) + 1)

    def describe(self) -> str:
        """Return what the limits are, for who has met one."""
        limits = []
        if self._requests < _ANY:
            limits.append(f"{self._requests:.0f} requests")
        if self._bytes < _ANY:
            limits.append(f"{show_size(int(self._bytes))} of them")
        return f"{' and '.join(limits)} a second for each client"

    def _of(self, client: str, now: float) -> _Buckets:
        """Return the buckets of a client, filled up to now; forget who was here least lately."""
        buckets = self._buckets.get(client)
        if buckets is None:
            buckets = self._buckets[client] = _Buckets(self._requests, self._bytes, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            return buckets
        self._buckets.move_to_end(client)
        elapsed, buckets.filled = now - buckets.filled, now
        buckets.requests = min(self._requests, buckets.requests + elapsed * self._requests)
        buckets.bytes = min(self._bytes, buckets.bytes + elapsed * self._bytes)
        return buckets


class Visitor:
    """Whoever asks on one connection. The reactor's thread only."""

    __slots__ = ("_address", "_principal", "_rates")

    def __init__(self, rates: Rates, address: str, principal: Callable[[], str]) -> None:
        self._rates = rates
        self._address = address
        self._principal = principal

    def take(self, requests: int, size: int) -> int:
        """Return how many of so many requests, of so many bytes together, may be made; see
        :meth:`Rates.take`."""
        client = self._client()
        return requests if client == UNCOUNTED else self._rates.take(client, requests, size)

    def owe(self, size: int) -> None:
        """Count more bytes of a request that may be made."""
        client = self._client()
        if client != UNCOUNTED:
            self._rates.owe(client, size)

    def refusal(self) -> tuple[str, int]:
        """Return one line for who may not ask now, and in how many seconds it may."""
        seconds = self._rates.wait(self._client())
        return f"rate limit: {self._rates.describe()}; try again in {seconds} s", seconds

    def _client(self) -> str:
        # A handshake may end after the connection has been made. No address has a "=" in it.
        principal = self._principal()
        return f"={principal}" if principal else self._address


class _Buckets:
    """What a client may still ask for, as of *filled*; less than nothing if it owes."""

    __slots__ = ("bytes", "filled", "requests")

    def __init__(self, requests: float, size: float, filled: float) -> None:
        self.requests = requests
        self.bytes = size
        self.filled = filled
