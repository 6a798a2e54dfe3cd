"""Where the others are: what the configuration says, and what they have said themselves since.

A member that comes back at a new address says so in its handshake. It is answered there at once,
for without that it could never tell a leader; the configuration entry that makes it known to all
follows when there is a leader. Removed members are written to for a moment longer: they have to
hear of it.

An :class:`AddressBook` belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Iterator

from raft import Configuration
from transport import Greeting

__all__ = ["AddressBook"]

LINGER = 1.0
"""Seconds for which a member that was removed is still written to."""

MAX_STRANGERS = 64
"""Nodes that are no members here whose addresses are kept: a leader that this node, being behind,
doesn't know yet."""


class AddressBook:
    """The addresses of all nodes but this one, whose ID is *own_id*."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._members: dict[str, str] = {}  # by the latest configuration
        self._met: dict[str, Greeting] = {}  # newer than that
        self._leaving: dict[str, tuple[str, float]] = {}  # removed members: address, until when

    def adopt(self, configuration: Configuration, now: float) -> None:
        """Take the latest configuration. Its word on an address that changed is the newest."""
        before = self._members
        self._members = {s.id: s.raft_address for s in configuration.servers}
        for node_id, address in before.items():
            if node_id not in self._members:
                self._leaving[node_id] = (address, now + LINGER)
            elif self._members[node_id] != address:
                self._met.pop(node_id, None)
        for node_id in self._members:
            self._leaving.pop(node_id, None)

    def meet(self, peer: Greeting) -> bool:
        """Take what an admitted node says of itself; return whether its address is news."""
        known = self.addresses().get(peer.node_id)
        if known is None and len(self._met) >= MAX_STRANGERS:
            return False
        self._met[peer.node_id] = peer
        return known != peer.raft_address

    def forget(self, now: float) -> bool:
        """Drop the removed members whose time is up; return whether there were any."""
        gone = [node_id for node_id, (_, until) in self._leaving.items() if until <= now]
        for node_id in gone:
            del self._leaving[node_id]
            self._met.pop(node_id, None)
        return bool(gone)

    def addresses(self) -> dict[str, str]:
        """Return the ID and the Raft address of everybody to write to."""
        found = {node_id: address for node_id, (address, _) in self._leaving.items()}
        found |= self._members
        found |= {node_id: peer.raft_address for node_id, peer in self._met.items()}
        found.pop(self._own_id, None)
        return found

    def greetings(self) -> Iterator[Greeting]:
        """Return what the others have said of themselves."""
        return iter(self._met.values())
