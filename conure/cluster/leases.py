"""Leases: how long a leader answers reads without asking anybody whether it still leads.

The core says since when a quorum's promise counts (R9 in raft.py); how long it lasts is a matter
of clocks and settings:

1. It is counted on this node's monotonic clock, from before the round that was confirmed began.
   Nothing else here moves with time: a leader whose ticks stand still holds no lease for longer.
2. A voter counts its promise in ticks of its own, the first of which may be a short one. Of the
   rest a leader takes LEASE_SHARE: what is left is the margin for clocks that run apart.
3. The promise is the shortest election time-out of all members, as they tell theirs in their
   handshakes: before a node answers a round it has greeted this one. What another data directory
   under its name has told is another node's. Removed members count until that is committed. A node
   of a release that doesn't tell it is taken to have this node's own.
   What can't be seen from here is a voter that is started again at once with a shorter time-out:
   it has forgotten that it promised more (docs/cluster.md says how to shorten it).

A member whose time-out differs is logged, and shown by the node's checks: whoever has the shortest
stands for election first, and leases are no longer than that one allows.

Belongs to the holder of the node's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from conure.consensus.members import Server
from conure.peers.protocol import Greeting
from raft import Raft

__all__ = ["LEASE_SHARE", "Lease", "ticks_in"]

LEASE_SHARE = 0.75
"""The part of an election time-out for which a leader trusts a confirmed round: a lease is sound
while no clock runs faster than another by more than the rest."""

MAX_TOLD = 64
"""Nodes that are no members whose time-outs are kept: they may be about to become some."""

log = logging.getLogger("conure.node")


def ticks_in(timeout: float, tick: float) -> int:
    """Return how many ticks of *tick* seconds an election time-out of so many seconds has."""
    return max(2, round(timeout / tick))


class Lease:
    """The lease of the node whose core is *raft*, while it leads.

    *timeout* is its own election time-out and *tick* the length of the core's tick, in seconds;
    *clock* is monotonic.
    """

    def __init__(self, raft: Raft, timeout: float, tick: float, clock: Callable[[], float]) -> None:
        self._raft = raft
        self._own = round(timeout * 1000)
        self._tick = tick
        self._clock = clock
        # By ID and incarnation: milliseconds, who was heard last is last; and who was logged.
        self._told: dict[tuple[str, str], int] = {}
        self._logged: set[tuple[str, str]] = set()

    def hear(self, peer: Greeting) -> None:
        """Take what a node that was admitted, or recognised, says of its time-out."""
        node_id, said = peer.node_id, peer.election_timeout
        life = node_id, peer.incarnation
        self._told.pop(life, None)
        if said:
            self._told[life] = said
        member = self._raft.configuration.get(node_id)
        is_member = member is not None and member.incarnation in ("", peer.incarnation)
        if is_member and said not in (0, self._own) and life not in self._logged:
            self._logged = {each for each in self._logged if each[0] != node_id} | {life}
            log.warning(
                "node %s has an election time-out of %d ms, node %s one of %d ms: give all nodes "
                "the same --election-timeout (leases last as long as the shortest allows)",
                node_id,
                said,
                self._raft.id,
                self._own,
            )
        members = {(each.id, each.incarnation) for each in self._servers()}
        strangers = [each for each in self._told if each not in members]
        if len(strangers) > MAX_TOLD:
            del self._told[strangers[0]]

    def renew(self) -> None:
        """Let the next read round grant a lease from now on, if this node leads."""
        self._raft.renew_lease(self._clock())

    def holds(self) -> bool:
        """Tell whether nobody else can lead yet, so that what is committed here is all there is."""
        since = self._raft.lease_since
        return since is not None and self._clock() < since + self.seconds

    @property
    def seconds(self) -> float:
        """How long a lease lasts: the part of the shortest promise that is trusted (2, 3)."""
        followers = [progress.server for progress in self._raft.progress.values()]
        told = [said for each in followers if (said := self._said_by(each))]
        ticks = ticks_in(min([self._own, *told]) / 1000, self._tick)
        return LEASE_SHARE * (ticks - 1) * self._tick

    @property
    def differences(self) -> str:
        """Which members have another election time-out than this node, for people; "" if none."""
        servers = self._raft.configuration.servers
        told = [(server.id, self._said_by(server) or self._own) for server in servers]
        others = [f"{node_id} has {said} ms" for node_id, said in told if said != self._own]
        return f"{', '.join(others)}, this node {self._own} ms" if others else ""

    def _servers(self) -> list[Server]:
        """Return the members, and those who are on their way out."""
        leaving = [progress.server for progress in self._raft.progress.values()]
        return [*self._raft.configuration.servers, *leaving]

    def _said_by(self, server: Server) -> int:
        """Return what a member has told, in the life of its data directory that is one; or 0."""
        if server.incarnation:
            return self._told.get((server.id, server.incarnation), 0)
        return min((said for life, said in self._told.items() if life[0] == server.id), default=0)
