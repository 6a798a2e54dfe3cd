"""What clients of RESP may make the server keep or wait for, as one table.

Numbers only. Who keeps to them is told where they are used: grammar.py, connection.py,
transactions.py, audience.py and ``conure/net/reactor.py`` for what all connections share. How many
connections one client may have stands in ``conure/net/places.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from conure.service.limits import MAX_STEPS, MAX_WATCHED

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for. Sizes are in bytes, times in seconds."""

    max_connections: int = 10_000  # how many of them a client may have: places.py
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks that stand for many clients
    max_command_bytes: int = 16 << 20  # of a command, and of all that a transaction queues
    max_pipelined: int = 1_024  # unanswered commands of a connection, about; the next ones wait
    max_queued: int = MAX_STEPS  # commands of a transaction, and their steps
    max_watched: int = MAX_WATCHED  # keys that a connection watches
    max_subscriptions: int = 10_000  # channels and patterns of a connection
    max_patterns: int = 1_000  # of a connection
    max_subscribed_bytes: int = 1 << 20  # of their names
    max_all_subscriptions: int = 1_000_000  # of all connections
    max_all_patterns: int = 10_000  # that differ: a message is compared with each
    max_all_subscribed_bytes: int = 128 << 20
    max_unread_bytes: int = 8 << 20  # of messages, for a subscriber that doesn't read
    max_queued_bytes: int = 32 << 20  # of messages that are still to be handed out
    request_timeout: float = 30.0  # from a command's first byte to its last
    idle_timeout: float = 3_600.0  # between two commands
    write_timeout: float = 30.0  # for a client that reads nothing
    slow_command: float = 1.0  # commands that took longer are in SLOWLOG
