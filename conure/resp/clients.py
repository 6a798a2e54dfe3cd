"""Who is connected: clients by their numbers, and how each is shown and found.

The accepting thread adds, the reactor's thread does everything else.
"""

from __future__ import annotations

from itertools import count
from time import perf_counter

from conure.resp.connection import RespConnection

__all__ = ["Clients", "describe"]


class Clients:
    """All clients of one front end."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._clients: dict[int, RespConnection] = {}
        self.accepted = 0

    def __len__(self) -> int:
        return len(self._clients)

    def next_number(self) -> int:
        """Return the number of a new client, which no other one had. The accepting thread."""
        return next(self._numbers)

    def add(self, client: RespConnection) -> None:
        """Know a client from now on. The accepting thread."""
        self._clients[client.id] = client
        self.accepted += 1

    def remove(self, client: RespConnection) -> None:
        """Know it no more. Any thread."""
        self._clients.pop(client.id, None)

    def get(self, number: int) -> RespConnection | None:
        """Return the client with a number, or None."""
        return self._clients.get(number)

    def all(self) -> list[RespConnection]:
        """Return all, the oldest first."""
        return list(self._clients.values())


def describe(client: RespConnection) -> bytes:
    """Return the line of CLIENT LIST for a client."""
    session = client.session
    now = perf_counter()
    transaction = session.transaction
    flags = "x" if transaction else ""
    flags += "P" if session.subscriptions else ""
    flags += "r" if session.is_stale else ""
    subscriptions = session.subscriptions
    channels = len(subscriptions.channels) if subscriptions else 0
    patterns = len(subscriptions.patterns) if subscriptions else 0
    shards = len(subscriptions.shards) if subscriptions else 0
    queued = transaction.size if transaction else -1
    line = (
        f"id={client.id} addr={client.address} fd={client.descriptor} "
        f"name={_text(session.name)} age={int(now - client.created)} "
        f"idle={max(0, int(now - client.touched))} flags={flags or 'N'} db=0 "
        f"sub={channels} psub={patterns} ssub={shards} multi={queued} "
        f"watch={len(session.watched)} qbuf={client.reader.unread + client.reader.held} "
        f"qbuf-free=0 argv-mem={client.reader.held} multi-mem=0 rbs=0 rbp=0 obl=0 "
        f"oll={len(client.out)} omem={client.pending} tot-mem={client.pending} "
        f"events={'r' if client.interest & 1 else ''}{'w' if client.interest & 4 else ''} "
        f"cmd={client.last_command or 'NULL'} user={_user(client)} redir=-1 "
        f"resp={session.protocol} "
        f"lib-name={_text(session.lib_name)} lib-ver={_text(session.lib_version)}\n"
    )
    return line.encode("utf-8", "surrogateescape")


def _user(client: RespConnection) -> str:
    """Return whom the client's certificate names, as a word; else what Redis says."""
    return "_".join(client.principal.split()) or "default"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
