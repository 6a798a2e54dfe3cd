"""Protected mode between nodes: whether those of other machines are dealt with that prove nothing.

While nodes prove nothing to each other, whoever reaches the Raft port could be one. So a *new*
cluster reaches no further than its machine, until somebody has chosen one of the remedies
(``conure/protection.py``): the Raft port takes connections of this machine alone, and no node of
another one is added, asked or formed a cluster with.

A cluster that reaches across machines already goes on as it is, and says so at every start: an
upgrade must not cost it its quorum. A node is of such a cluster if the configuration that it starts
with has another member elsewhere; or if it belongs to a cluster and knows no member of it, as one
that was added and stopped before it heard more. That is decided once, at the start: no node turns
into one while it runs. Members of such a cluster are added and replaced as before, where the new
node itself is started with a remedy: it is of no cluster yet.

Made before there is a second thread; any thread may ask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from conure.consensus.members import Configuration
from conure.errors import Conflict
from conure.fileio import FileSystem
from conure.protection import NODES_REMEDIES, is_elsewhere, is_same_machine
from conure.storage.datadir import belongs_to_cluster
from conure.values import host_of

__all__ = ["Border", "why_refused"]

log = logging.getLogger("conure.node")


class Border:
    """How far the cluster of a node reaches. *is_guarded*: nodes prove nothing, and protected mode
    is on. *node_id* is the node's ID, *belongs* whether its directory is of a cluster, and
    *members* are those that it starts with. *elsewhere* judges addresses that are told, and
    *is_ours* the two ends of a connection."""

    def __init__(
        self,
        is_guarded: bool,
        node_id: str,
        belongs: bool,
        members: Configuration,
        *,
        elsewhere: Callable[[str], bool] = is_elsewhere,
        is_ours: Callable[[str, str], bool] = is_same_machine,
    ) -> None:
        self._elsewhere = elsewhere
        self._is_ours = is_ours
        self._members_elsewhere = [
            server.raft_address
            for server in members.servers
            if server.id != node_id and elsewhere(server.raft_address)
        ]
        is_unknown = belongs and not members.servers
        self._is_across = bool(self._members_elsewhere) or is_unknown
        self._is_guarded = is_guarded

    @property
    def is_closed(self) -> bool:
        """Whether nodes of other machines are kept out."""
        return self._is_guarded and not self._is_across

    def warn(self) -> None:
        """Say in the log what a cluster goes on with that would not be begun like this. Once."""
        if self._is_guarded and self._is_across:
            whom = ", ".join(self._members_elsewhere) or "members that this node doesn't know yet"
            log.warning(
                "nodes of other machines (%s) prove nothing here: who reaches the Raft ports can "
                "take this cluster over. It goes on, as it has reached across machines before; to "
                "end that, %s",
                *(whom, NODES_REMEDIES),
            )

    def lets_in(self, peer: str, local: str) -> bool:
        """Tell whether a connection to the Raft port from one IP address to another is taken."""
        return not self.is_closed or self._is_ours(peer, local)

    def check_newcomer(self, node_id: str, address: str) -> None:
        """Raise Conflict for a node that is to be added and is on another machine."""
        if self.is_closed and self._elsewhere(address):
            raise Conflict(
                f"{node_id} was not added: {address} is no loopback address, and nodes of other "
                "machines prove nothing here (protected mode); for this node and that one, "
                f"{NODES_REMEDIES}"
            )

    def of_here(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return those of some addresses that may be asked."""
        return tuple(
            address for address in addresses if not (self.is_closed and self._elsewhere(address))
        )


def why_refused(fs: FileSystem, data_dir: str, addresses: Iterable[str]) -> str:
    """Return why a node that is to ask nodes at *addresses* may not start, while nodes prove
    nothing to each other; empty if it may: none of them is elsewhere, or its directory belongs to a
    cluster already. Nothing is locked or changed. Raises DiskFailed."""
    others = [address for address in addresses if is_elsewhere(address)]
    if not others or belongs_to_cluster(fs, data_dir):
        return ""
    hosts = ", ".join(dict.fromkeys(host_of(address) or address for address in others))
    return (
        f"{hosts}: no loopback address, and nodes of other machines prove nothing here (protected "
        f"mode); on all nodes, {NODES_REMEDIES}"
    )
