"""The committed members as the state machine has them, and what their changes mean to this node.

The core counts with the latest configuration in its log, committed or not (R4). What is shown to
have happened, to whoever waits for a join or a removal, is what is committed and applied. A node
that finds itself removed there ends those who watch at it, and leads its clients on to whom led
the cluster then, as long as it runs.

Everything here belongs to the holder of the node's lock; nothing here changes the core.
"""

from __future__ import annotations

import logging

from conure.consensus.members import Configuration, Server
from conure.state.history import History
from conure.state.machine import Store
from raft import Raft

__all__ = ["Roster"]

log = logging.getLogger("conure.node")


class Roster:
    """The members of the cluster of the node whose core is *raft*, as of what *store* has
    applied. *told_size* is the quorum size that the node was started with, 0 for none."""

    def __init__(self, raft: Raft, store: Store, history: History, told_size: int = 0) -> None:
        self._raft = raft
        self._told_size = told_size
        self._store = store
        self._history = history
        self.encoded = store.configuration
        """The committed ones as the state machine has them; the same object as long as it has them.
        """
        self.members = Configuration.decode(self.encoded)
        """The committed ones."""
        self.was_removed = False
        """Whether this node was removed while it ran, and not added again."""
        self.left_to: Server | None = None
        """Who led when this node was removed."""

    def adopt(self) -> None:
        """The committed members have changed: take over those of the state."""
        self.encoded = self._store.configuration
        members = Configuration.decode(self.encoded)
        was_member = self.members.get(self._raft.id) is not None
        self.members = members
        if was_member and members.get(self._raft.id) is None:
            self.was_removed = True
            self.left_to = members.get(self._raft.leader_id)
            self._history.reset(self._store.applied_index)  # whoever watches here goes elsewhere
            log.warning("node %s was removed from the cluster", self._raft.id)
        elif members.get(self._raft.id) is not None:
            self.was_removed, self.left_to = False, None
            if not was_member:
                self.compare_size()

    def compare_size(self) -> None:
        """Say in the log if the cluster has another quorum size than this node was told: a cluster
        that exists keeps its own."""
        size = self.members.quorum_size
        if self.members.servers and self._told_size not in (0, size):
            log.warning(
                "quorum_size=%d is not what this cluster has: %s; it is taken when a cluster is "
                "made, and changed later by POST /quorum",
                self._told_size,
                size or "a majority alone decides",
            )
