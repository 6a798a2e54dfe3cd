"""Which versions of formats the members read, and so what may be proposed and who may take part.

A release that writes something new (wire.SPEAKS) shares its cluster with the one before while the
nodes are upgraded one after the other. Each says in its greetings what it reads. Two rules follow:

1. Nothing is proposed that is newer than what every member reads, learners and arbiters included.
   A member counts from what it has said since this node started, in the life of its data
   directory that is a member; one that has not been heard could be anything. But what this node's
   state is made of already, every member reads (2): nobody is asked about that again.
2. Nobody takes part who reads less than what the log holds: it would have to stop at that entry.

Everything here belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from conure.consensus.members import Configuration, Server
from conure.errors import Conflict, Refused
from conure.peers.protocol import Greeting

__all__ = ["Versions"]

_MAX_STRANGERS = 64  # nodes that are no members here whose word is kept: one may become one


class Versions:
    """What everybody reads, as known to the node *own_id*, which reads up to version *speaks*.

    *held* tells the newest version of what this node has applied, and of the latest members in its
    log: whoever proposed those has asked all of them.
    """

    def __init__(self, own_id: str, speaks: int, held: Callable[[], int]) -> None:
        self.speaks = speaks
        self._held = held
        self.logged = 1
        """The newest version that this node has had in its log since it started."""
        self._own_id = own_id
        # The version by ID and incarnation; who spoke last is last.
        self._said: dict[tuple[str, str], int] = {}

    def hear(self, peer: Greeting, members: Configuration) -> None:
        """Take what a node says that was recognised as the one it is."""
        life = peer.node_id, peer.incarnation
        self._said.pop(life, None)
        self._said[life] = peer.speaks
        known = {(server.id, server.incarnation) for server in members.servers}
        strangers = [life for life in self._said if life not in known]
        if len(strangers) > _MAX_STRANGERS:
            del self._said[strangers[0]]

    def note_logged(self, version: int) -> None:
        """Take note that an entry of a version comes into the log."""
        self.logged = max(self.logged, version)

    def of(self, server: Server) -> int | None:
        """Return what a member reads, None if it has not said so."""
        if server.id == self._own_id:
            return self.speaks
        if server.incarnation:
            return self._said.get((server.id, server.incarnation))
        return next(
            (self._said[life] for life in reversed(self._said) if life[0] == server.id), None
        )

    def check(self, version: int, members: Configuration) -> None:
        """Raise Conflict if something of this version can't be proposed to these members."""
        if version <= max(1, self._held()):  # which every release reads, or every member has to
            return
        for server in members.servers:
            known = self.of(server)
            if known is None:
                raise Conflict(
                    f"this needs format version {version}, and {server.id} has not said yet what "
                    "it reads; start it, or remove it from the cluster"
                )
            if known < version:
                raise Conflict(
                    f"this needs format version {version}, and {server.id} reads up to {known}; "
                    "upgrade it, or remove it from the cluster"
                )

    def check_peer(self, peer: Greeting, held: int) -> None:
        """Raise Refused for a node that can't read what the log holds, of version *held*."""
        if peer.speaks < held:
            raise Refused(
                f"{peer.node_id} reads formats up to version {peer.speaks}, and the log holds "
                f"version {held}; run a newer release of ConureDB there"
            )
