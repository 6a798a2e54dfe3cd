"""Where the others are: what the configuration says, and what they have said themselves since.

A member that comes back at a new address says so in its handshake. It is answered there at once,
for without that it could never tell a leader; the configuration entry that makes it known to all
follows when there is a leader. Removed members are written to and heard for a moment longer: they
have to hear of it, and may have to be sent something else before.

An :class:`AddressBook` belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from conure.consensus.members import Configuration, Server
from conure.peers.protocol import Greeting

__all__ = ["AddressBook"]

LINGER = 1.0
"""Seconds for which a member that was removed is still written to, and heard."""

MAX_STRANGERS = 64
"""Nodes that are no members here whose addresses are kept: a leader that this node, being behind,
doesn't know yet."""


class AddressBook:
    """The addresses of all nodes but this one, whose ID is *own_id*."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._members: dict[str, Server] = {}  # by the latest configuration
        self._met: dict[str, Greeting] = {}  # newer than that; who was met last is last
        self._former: dict[str, Greeting] = {}  # what members said before that
        self._failures: dict[str, int] = {}  # how often a node was not where it was looked for
        self._leaving: dict[str, tuple[Server, float]] = {}  # removed members, until when

    def adopt(self, configuration: Configuration, now: float) -> None:
        """Take the latest configuration.

        Its word is newer than what a member said at the place that it has left. Whoever is at a
        third one has moved again, and this configuration is an old one that arrives late.
        """
        before, addresses = self._members, self.addresses()
        self._members = {server.id: server for server in configuration.servers}
        for node_id, old in before.items():
            new, met = self._members.get(node_id), self._met.get(node_id)
            if new is None and node_id != self._own_id:
                there = replace(old, raft_address=addresses[node_id])
                self._leaving[node_id] = (there, now + LINGER)
            if met is None:
                continue
            if new is not None and met.incarnation == old.incarnation != new.incarnation:
                del self._met[node_id]  # another node has its name now
                self._failures.pop(node_id, None)
            elif new is None or (new != old and _place(met) == _place(old)):
                self._former[node_id] = self._met.pop(node_id)
                self._failures.pop(node_id, None)
        for node_id, server in self._members.items():
            self._leaving.pop(node_id, None)
            former = self._former.get(node_id)
            if former is not None and former.incarnation != server.incarnation:
                del self._former[node_id]  # another node under its name

    def meet(self, peer: Greeting) -> bool:
        """Take what an admitted node says of itself; return whether its address is news."""
        node_id = peer.node_id
        known = self.addresses().get(node_id)
        for words in (self._met, self._former, self._failures):
            words.pop(node_id, None)
        self._met[node_id] = peer
        strangers = [node_id for node_id in self._met if node_id not in self._members]
        if len(strangers) > MAX_STRANGERS:
            del self._met[strangers[0]]
        return known != peer.raft_address

    def hear(self, node_id: str) -> bool:
        """A node that was admitted before speaks; return whether it was forgotten meanwhile.

        Who was removed by the log that is known here may have been admitted again and lead.
        """
        if node_id in self._met or node_id in self._members or node_id not in self._former:
            return False
        self._met[node_id] = self._former.pop(node_id)
        return True

    def look_elsewhere(self, node_id: str) -> bool:
        """A node isn't where it is looked for; return whether there is another place to look at.

        A log that is replayed tells of old addresses as if they were news, so no word is final.
        """
        if len(self._places(node_id)) < 2:
            return False
        self._failures[node_id] = self._failures.get(node_id, 0) + 1
        return True

    def forget(self, now: float) -> bool:
        """Drop the removed members whose time is up; return whether there were any."""
        gone = [node_id for node_id, (_, until) in self._leaving.items() if until <= now]
        for node_id in gone:
            del self._leaving[node_id]
        return bool(gone)

    def addresses(self) -> dict[str, str]:
        """Return the ID and the Raft address of everybody to write to."""
        found = {node_id: server.raft_address for node_id, (server, _) in self._leaving.items()}
        for node_id in {**self._members, **self._met}:  # a set would make the order random
            places = self._places(node_id)
            found[node_id] = places[self._failures.get(node_id, 0) % len(places)]
        found.pop(self._own_id, None)
        return found

    def member(self, node_id: str) -> Server | None:
        """Return a member, by the latest configuration; one that was removed a moment ago too."""
        leaving, _ = self._leaving.get(node_id, (None, 0.0))
        return self._members.get(node_id, leaving)

    def met(self, node_id: str) -> Greeting | None:
        """Return what a node has said of itself, if that is the latest word on it."""
        return self._met.get(node_id)

    def greetings(self) -> Iterator[Greeting]:
        """Return what the others have said of themselves."""
        return iter(self._met.values())

    def _places(self, node_id: str) -> list[str]:
        """Return the addresses a node may be at, the likeliest first."""
        member = self._members.get(node_id)
        words = (self._met.get(node_id), member, self._former.get(node_id) if member else None)
        return list(dict.fromkeys(word.raft_address for word in words if word is not None))


def _place(of: Server | Greeting) -> tuple[str, str]:
    return of.raft_address, of.http_address
