"""What clients may make the server keep or wait for (H5), as one table.

Numbers only. Who keeps to them is told where they are used: grammar.py, connection.py, and
``conure/net/reactor.py`` for what all connections share. How many connections one client may have
stands in ``conure/net/places.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for, and all together. Sizes are in bytes, times in seconds."""

    max_target_bytes: int = 64 << 10  # 414
    max_header_bytes: int = 32 << 10  # 431, the whole header block; so are more than 100 fields
    max_body_bytes: int = 1 << 20  # 413
    max_body_bytes_at: Mapping[str, int] = field(default_factory=dict)  # less, at some paths: 413
    max_connections: int = 10_000  # 503; how many of them a client may have: places.py
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks that stand for many clients
    max_arriving_bytes: int = 256 << 20  # of all unfinished bodies together: 503
    max_leaving_bytes: int = 256 << 20  # of all unsent answers and streams together: 503 to long
    #                                     reads, and the slowest streams are ended
    max_pipelined: int = 128  # unanswered requests of one connection; the next ones wait
    request_timeout: float = 30.0  # from a request's first byte to its last: 408
    idle_timeout: float = 120.0  # between two requests
    write_timeout: float = 30.0  # for a client that reads nothing
    max_requests_in_flight: int = 20_000  # handed over and unanswered, of all together: 429
    max_streams: int = 10_000  # streams and waiting requests, which don't count above: 429
    slow_request: float = 1.0  # answers that took longer are logged; 0: none is
