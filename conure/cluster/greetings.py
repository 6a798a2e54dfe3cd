"""Who may talk to this node, and where the others are: decisions on greetings.

Every connection begins with what a node says of itself (protocol.Greeting). It is compared with
the latest configuration and with this node's own identity. Another cluster's node gets no further,
and in its own cluster a node believes

1. a member, with the data directory it was admitted with: a wiped disk has forgotten its vote;
2. anybody, as long as it has no configuration and so knows nobody;
3. whoever *names this node's own incarnation*, unless it leads: only who holds a configuration in
   which this node is admitted can. So a node that is behind believes a leader or a candidate that
   was admitted after it was cut off, and no emptied directory: that knows nobody.

Whom it has dialled it believes as a member likewise, or as the leader of this term or the caller
that it believed before, with the same directory. Connections are judged again whenever what they
are judged by has changed: this node's role, the members, or whom it follows. A node of no cluster
joins the one whose leader first writes to it.

A node that is refused is told a reason that names nothing; the log here has the names.

What an admitted node says of its address is kept (addresses.py), told to the transport at once
and, by the leader, to all in a configuration entry.

Belongs to the holder of the node's lock.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from conure.cluster.addresses import AddressBook
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import Message, MessageType, State
from conure.errors import Conflict, ConureError, Refused, Unavailable
from conure.peers.protocol import Greeting
from conure.storage.datadir import DataDirectory
from raft import Raft

__all__ = ["Admission", "Roads"]

log = logging.getLogger("conure.node")

_FROM_LEADER = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT})


class Roads(Protocol):
    """The part of the transport that leads to others."""

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Tell where the others are: IDs and addresses."""

    def connect(self, node_ids: Iterable[str]) -> None:
        """Open the connections to these that are missing."""

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        """Ask who is at an address, where a node of that ID and incarnation is thought to be."""

    def judge(
        self,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> None:
        """Close the connections that would not be made now. The first one judges a node that has
        dialled, by its greeting and what it takes this node for; the other one who was dialled."""


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

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str = "") -> None:
        """Decide on a node that has connected, asking for node *to*, whose incarnation it takes to
        be *known_as*, "" if it doesn't know. Raises Refused."""
        mine = self._directory.identity
        if mine.cluster_id and peer.cluster_id != mine.cluster_id:
            raise Refused(self._of_another_cluster(peer), "it belongs to another cluster")
        if not peer.cluster_id:
            raise Refused(f"{peer.node_id} belongs to no cluster", "who asks belongs to no cluster")
        if to != mine.node_id:
            raise Refused(f"this is {mine.node_id}, not {to}", "another node is at this address")
        if peer.node_id == mine.node_id:
            raise Refused(f"two nodes have the ID {mine.node_id}", "two nodes have the same ID")
        if not self.believes(peer, known_as):
            raise Refused(
                self._unlike(peer),
                "it doesn't know who asks, or knows it with another data directory",
            )
        is_stranger = self._raft.configuration.get(peer.node_id) is None
        if kind != "probe" or not is_stranger:
            self.meet(peer)

    def believes(self, peer: Greeting, known_as: str) -> bool:
        """Tell whether a node that has dialled may speak here (1 to 3)."""
        raft, mine = self._raft, self._directory.identity
        if mine.cluster_id not in ("", peer.cluster_id):
            return False
        may_be_behind = raft.state is not State.LEADER and known_as == mine.incarnation
        return not raft.configuration.servers or self._is_member(peer) or may_be_behind

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on a node that has answered this one's call. Raises Refused."""
        self._compare(expected_id, peer)
        if not self.expects(peer):
            raise Refused(self._unlike(peer))

    def expects(self, peer: Greeting) -> bool:
        """Tell whether a node that was dialled may be spoken to."""
        raft, mine = self._raft, self._directory.identity
        if mine.cluster_id and peer.cluster_id not in ("", mine.cluster_id):
            return False
        if self._is_member(peer):
            return True
        if raft.state is State.LEADER:
            return False
        leads = raft.leader_id == peer.node_id and raft.leader_incarnation == peer.incarnation
        met = self._book.met(peer.node_id)
        return leads or (met is not None and met.incarnation == peer.incarnation)

    def check_newcomer(self, expected_id: str, peer: Greeting) -> None:
        """Raise Refused for a node that answers where one that is to join is said to be, unless it
        is that one and may."""
        self._compare(expected_id, peer)
        known = self._raft.configuration.get(expected_id)
        if known is not None and not _is_same(known, peer):
            raise Refused(self._unlike(peer))

    def known_as(self, node_id: str) -> str:
        """Return the incarnation with which a node was admitted, "" if that isn't known."""
        member = self._book.member(node_id)
        return "" if member is None else member.incarnation

    def hears(self, messages: Sequence[Message]) -> bool:
        """Take note of an admitted node's messages; tell whether it is of this cluster.

        A node of none becomes one of the cluster whose leader first writes to it: that one has
        recognised it, where others may have taken it for whoever had its name before.
        """
        sender = messages[0].sender
        if self._book.hear(sender):
            self._tell_peers()
        mine, peer = self._directory.identity, self._book.met(sender)
        if not mine.cluster_id and self._raft.configuration.servers:
            return False  # it has begun a cluster itself, whose ID is still to be written
        if peer is None:
            return mine.cluster_id != ""
        if not mine.cluster_id and any(message.type in _FROM_LEADER for message in messages):
            self.belong(peer.cluster_id)
            return True
        return peer.cluster_id == mine.cluster_id

    def belong(self, cluster_id: str) -> None:
        """Let the node, which is of no cluster, be of this one, for ever. Raises DiskFull."""
        self._directory.join_cluster(cluster_id)
        log.info("node %s belongs to cluster %s now", self._raft.id, cluster_id)
        self.judge()

    def be_at(self, raft_address: str, http_address: str) -> None:
        """Say from now on that this node is reached there."""
        self._raft_address, self._http_address = raft_address, http_address

    def judge(self) -> None:
        """Have every connection judged again: something that it was judged by has changed."""
        self._roads.judge(self.believes, self.expects)

    def meet(self, peer: Greeting) -> None:
        """Take what a node that was recognised says of itself."""
        if self._book.meet(peer):
            self._tell_peers()

    def adopt(self, configuration: Configuration, now: float) -> None:
        """Take the latest configuration."""
        self._book.adopt(configuration, now)
        self._tell_peers()
        self.judge()

    def lose(self, node_id: str) -> None:
        """Look elsewhere for a node that isn't found where it was thought to be."""
        if self._book.look_elsewhere(node_id):
            self._tell_peers()

    def forget(self, now: float) -> None:
        """Write no more to members that were removed a while ago, and hear them no more."""
        if self._book.forget(now):
            self._tell_peers()
            self.judge()

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
            self._roads.probe(address, node_id, lambda _: None, self.known_as(node_id))

    def follow_addresses(self) -> None:
        """Let a configuration entry follow for the members that are at other addresses now, if
        this node leads."""
        if self._raft.state is not State.LEADER:
            return
        configuration = self._raft.configuration
        moved: dict[str, Server] = {}
        for greeting in (self.greeting(), *self._book.greetings()):
            known = configuration.get(greeting.node_id)
            if known is None or not _is_same(known, greeting):
                continue
            here = replace(
                known, raft_address=greeting.raft_address, http_address=greeting.http_address
            )
            if here != known:
                moved[here.id] = here
        _leave_where_it_was_known(moved, configuration)
        if not moved:
            return
        try:
            self._raft.move(list(moved.values()))
        except (Conflict, Unavailable) as error:
            log.debug("the new addresses of %s have to wait: %s", ", ".join(moved), error)
        else:
            for here in moved.values():
                log.info("node %s is reached at %s now", here.id, here.raft_address)

    # -- private ---------------------------------------------------------------------------------

    def _tell_peers(self) -> None:
        """Tell the transport where everybody is, by what is known now."""
        self._roads.set_peers(self._book.addresses())

    def _compare(self, expected_id: str, peer: Greeting) -> None:
        """Raise Refused for another node than the expected one, or one of another cluster."""
        if peer.node_id != expected_id:
            raise Refused(f"the node at {peer.raft_address} is {peer.node_id}")
        mine = self._directory.identity
        if mine.cluster_id and peer.cluster_id not in ("", mine.cluster_id):
            raise Refused(self._of_another_cluster(peer))

    def _is_member(self, peer: Greeting) -> bool:
        known = self._book.member(peer.node_id)
        return known is not None and _is_same(known, peer)

    def _of_another_cluster(self, peer: Greeting) -> str:
        mine = self._directory.identity
        theirs = f"cluster {peer.cluster_id}" if peer.cluster_id else "no cluster"
        return f"{peer.node_id} belongs to {theirs}, {mine.node_id} to cluster {mine.cluster_id}"

    def _unlike(self, peer: Greeting) -> str:
        """Say why a node of this cluster isn't the one it says it is, as far as is known here."""
        if self._book.member(peer.node_id) is None:
            return f"{peer.node_id} is no member of the cluster, as far as is known here"
        return (
            f"{peer.node_id} is a member with another data directory; if this one lost its "
            f"disk, remove {peer.node_id} from the cluster before it joins again"
        )


def _leave_where_it_was_known(moved: dict[str, Server], configuration: Configuration) -> None:
    """Drop from *moved* who would be where another member is, which may be about to move."""
    taken = [""]
    while taken:
        after = [moved.get(server.id, server) for server in configuration.servers]
        at = Counter(server.raft_address for server in after)
        taken = [node_id for node_id, here in moved.items() if at[here.raft_address] > 1]
        for node_id in taken:
            log.debug("the new address of %s is another member's", node_id)
            del moved[node_id]


def _is_same(known: Server, peer: Greeting) -> bool:
    """Tell whether a node has the data directory that a member was admitted with."""
    return known.incarnation in ("", peer.incarnation)
