"""Who may talk to this node, and where the others are: decisions on greetings.

Every connection begins with what a node says of itself (transport.Greeting). It is compared with
the latest configuration and with this node's own identity: another cluster's node gets no further,
nor does one whose data directory isn't the one the member of that name was admitted with, for a
wiped disk has forgotten its vote. What an admitted node says of its address is kept
(addresses.py), told to the transport at once and, by the leader, to all in a configuration entry.

Belongs to the holder of the node's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from addresses import AddressBook
from datadir import DataDirectory
from errors import Conflict, ConureError, Unavailable
from raft import Configuration, Raft, State
from transport import Greeting, Refused

__all__ = ["Admission", "Roads"]

log = logging.getLogger("conure.node")


class Roads(Protocol):
    """The part of the transport that leads to others."""

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Tell where the others are: IDs and addresses."""

    def connect(self, node_ids: Iterable[str]) -> None:
        """Open the connections to these that are missing."""

    def probe(
        self, address: str, node_id: str, reply: Callable[[Greeting | ConureError], None]
    ) -> None:
        """Ask who is at an address."""


class Admission:
    """Decides for the node whose core is *raft* and whose data are in *directory*.

    *raft_address* and *http_address* are where it says that it is reached, *election_timeout* what
    it says of that, in milliseconds.
    """

    def __init__(
        self,
        raft: Raft,
        directory: DataDirectory,
        roads: Roads,
        raft_address: str,
        http_address: str,
        election_timeout: int,
    ) -> None:
        self._raft = raft
        self._directory = directory
        self._roads = roads
        self._raft_address = raft_address
        self._http_address = http_address
        self._election_timeout = election_timeout
        self._book = AddressBook(raft.id)

    def greeting(self) -> Greeting:
        """Return what this node says of itself to others. Any thread."""
        identity = self._directory.identity
        return Greeting(
            identity.node_id,
            identity.cluster_id,
            identity.incarnation,
            identity.role,
            self._raft_address,
            self._http_address,
            election_timeout=self._election_timeout,
        )

    def admit(self, kind: str, to: str, peer: Greeting) -> None:
        """Decide on a node that has connected, asking for node *to*. Raises Refused."""
        mine = self._directory.identity
        if to != mine.node_id:
            raise Refused(f"this is node {mine.node_id}, not {to}")
        if peer.node_id == mine.node_id:
            raise Refused(f"two nodes have the ID {mine.node_id}")
        self._compare(peer, may_be_behind=self._raft.state is not State.LEADER)
        known = self._raft.configuration.get(peer.node_id)
        if kind == "probe" and (known is None or not mine.cluster_id or not peer.cluster_id):
            return
        if not peer.cluster_id:
            raise Refused(f"{peer.node_id} belongs to no cluster")
        self.meet(peer)

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on a node that has answered this one's call. Raises Refused."""
        if peer.node_id != expected_id:
            raise Refused(f"the node at {peer.raft_address} is {peer.node_id}")
        self._compare(peer, may_be_behind=self._raft.leader_id == expected_id)

    def hears(self, sender: str) -> bool:
        """Take note of an admitted node's messages; tell whether it is of this cluster.

        A node of none becomes one of the cluster whose member first sends it a message: that one
        has recognised it, where others may have taken it for whoever had its name before.
        """
        if self._book.hear(sender):
            self._tell_peers()
        mine, peer = self._directory.identity, self._book.met(sender)
        if peer is None:
            return mine.cluster_id != ""
        if not mine.cluster_id:
            self._directory.join_cluster(peer.cluster_id)
            log.info("node %s belongs to cluster %s now", mine.node_id, peer.cluster_id)
            return True
        return peer.cluster_id == mine.cluster_id

    def meet(self, peer: Greeting) -> None:
        """Take what a node that was recognised says of itself."""
        if self._book.meet(peer):
            self._tell_peers()

    def adopt(self, configuration: Configuration, now: float) -> None:
        """Take the latest configuration."""
        self._book.adopt(configuration, now)
        self._tell_peers()

    def lose(self, node_id: str) -> None:
        """Look elsewhere for a node that isn't found where it was thought to be."""
        if self._book.look_elsewhere(node_id):
            self._tell_peers()

    def forget(self, now: float) -> None:
        """Write no more to members that were removed a while ago."""
        if self._book.forget(now):
            self._tell_peers()

    def call_out(self) -> None:
        """Reach for the other members from time to time, as one that doesn't lead.

        They are connected to, so that an election need not wait until a name has been looked up.
        They are told where this node is, if nobody leads and they don't know: who isn't written to
        and doesn't campaign, as an arbiter, would never be found otherwise.
        """
        raft = self._raft
        known = raft.configuration.get(raft.id)
        if known is None:
            return
        self._roads.connect([server.id for server in raft.configuration.servers])
        if raft.leader_id or known.raft_address == self._raft_address:
            return
        for node_id, address in self._book.addresses().items():
            self._roads.probe(address, node_id, lambda _: None)

    def follow_addresses(self) -> None:
        """Let a configuration entry follow for each member that is at another address now, if
        this node leads."""
        if self._raft.state is not State.LEADER:
            return
        configuration = self._raft.configuration
        for greeting in (self.greeting(), *self._book.greetings()):
            known = configuration.get(greeting.node_id)
            if known is None:
                continue
            here = replace(
                known, raft_address=greeting.raft_address, http_address=greeting.http_address
            )
            if here == known:
                continue
            try:
                self._raft.add_learner(here)  # of a member it changes the addresses only
            except Conflict as error:  # another member has it, which may be about to move
                log.debug("the new address of %s has to wait: %s", here.id, error)
                continue
            except Unavailable as error:
                log.debug("the new address of %s has to wait: %s", here.id, error)
            else:
                log.info("node %s is reached at %s now", here.id, here.raft_address)
            return  # one at a time (R4)

    # -- private ---------------------------------------------------------------------------------

    def _tell_peers(self) -> None:
        """Tell the transport where everybody is, by what is known now."""
        self._roads.set_peers(self._book.addresses())

    def _compare(self, peer: Greeting, *, may_be_behind: bool) -> None:
        """Raise Refused for a node that isn't the one it says it is, as far as is known here.

        Where this node may be behind, it can't tell a wiped disk from a member that was admitted
        again since: then who speaks to it is believed, and whom it follows is answered. A wiped
        node is refused by who leads, and is asked for votes by nobody.
        """
        mine = self._directory.identity
        if mine.cluster_id and peer.cluster_id and mine.cluster_id != peer.cluster_id:
            raise Refused(
                f"{peer.node_id} belongs to cluster {peer.cluster_id}, "
                f"{mine.node_id} to cluster {mine.cluster_id}"
            )
        known = self._raft.configuration.get(peer.node_id)
        is_known = known is None or known.incarnation in ("", peer.incarnation)
        if not is_known and not may_be_behind:
            raise Refused(
                f"{peer.node_id} is a member with another data directory; if this one lost its "
                f"disk, remove {peer.node_id} from the cluster before it joins again"
            )
