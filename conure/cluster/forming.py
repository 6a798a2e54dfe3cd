"""A node of no cluster and the others on its list begin one cluster together, or none.

Each of them asks the others who they are (conure/peers/forming.py), over and over. What follows
from the facts of all (founders.py) is a *formation*, and its digest is *shown* to whoever asks.

F1  A node shows a digest only while its present facts of all members give it. It begins a cluster
    only when each other member has shown it the same digest, in answer to a question that was asked
    while the node itself showed that digest without interruption. From then on it shows the
    formation it began with, in this life of its directory for ever, and no other one.
F2  Of two formations M and M' that were begun, by a member f of M and a member f' of M', never is
    f in M' and f' in M both, with the same directories. So of the same members, none of whose disks
    is lost, one cluster at most is begun; and a second one of the same IDs only when everybody who
    held the first one has lost the disk.
F3  What begins a cluster is a pure function of the formation (conure/consensus/formation.py), so
    who begins the same one has the same cluster ID, first entry and configuration, byte for byte.
F4  Who is told of a cluster that was formed with this node, by its ID and incarnation, begins that
    very formation, whatever it shows now. Who is told of any other cluster begins none: it asks
    to be joined, under its own incarnation.

Why F2 holds stands in docs/architecture.md, "A cluster that is formed". What it rests on: two
directories never speak under one ID at a time. Where both are on the lists they are found out.

1. What is asked costs little and is bounded: MAX_ASKED questions at a time, of which one for each
   address of the list, after a pause that grows from FIRST_PAUSE to LONGEST_PAUSE and is short
   again when something changes. What a question says is believed in nothing else.
2. The formation is on disk before the core begins with it, the first entry before the cluster ID,
   and that before anybody is told of the cluster. What a crash leaves in between is no cluster, or
   the log of one, which opening.py finishes. Meanwhile nobody is heard (greetings.py).
3. A node that is of a cluster has no use for its list. To strangers it shows that it is of one, and
   where that is asked by HTTP; its incarnation to nobody, and the formation to its founders only.

Belongs to the holder of the node's lock, which the replies take themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from conure.cluster.checkpointing import DISK_FULL_RETRY
from conure.cluster.founders import agree, base_url_at
from conure.cluster.greetings import Admission
from conure.cluster.membership import arbiters_warning
from conure.cluster.monitor import Monitor
from conure.cluster.options import NodeOptions
from conure.cluster.standing import Standing
from conure.consensus.formation import cluster_id_of, digest_of
from conure.consensus.members import Configuration
from conure.consensus.raftlog import RaftLog
from conure.errors import ConureError, DiskFull, Refused, Unavailable
from conure.peers.forming import Facts, Question, Shown
from conure.storage.datadir import DataDirectory
from raft import Raft

__all__ = ["Asking", "Forming"]

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two questions to one address; each pause is half as long again as the last."""

MAX_ASKED = 8
"""Questions at a time: each has a thread, for a second or more where nobody answers."""

REMINDER = 60.0
"""Seconds between two lines in the log that say who is waited for."""

MAX_HINTS = 64
"""Nodes whose last question is remembered."""

log = logging.getLogger("conure.node")


class Asking(Protocol):
    """The part of the transport that asks those who form."""

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        """Ask who is at an address. *reply* is called once, later and by another thread. Raises
        RuntimeError if there is no thread for it."""


@dataclass(slots=True)
class _Peer:
    """What is known of who is at an address of the list."""

    shown: Shown | None = None  # the last answer
    why: str = "was not reached yet"  # or the last failure, "" behind an answer
    is_asked: bool = False
    asked_at: float = float("-inf")
    due: float = float("-inf")
    pause: float = FIRST_PAUSE
    agreed: int = 0  # the span of this node's digest in which this one showed the same; 0: none
    is_itself: bool = False  # whether it was this very node that answered last


class Forming:
    """Forms a cluster for the node whose core is *raft*, if *options* have a list of peers.

    *formation* is the one with which the directory's cluster was begun, if it was formed.
    *drive* carries out what the core asks for, *fail* ends the node.
    """

    def __init__(
        self,
        options: NodeOptions,
        formation: Configuration | None,
        raft: Raft,
        raft_log: RaftLog,
        directory: DataDirectory,
        roads: Asking,
        admission: Admission,
        standing: Standing,
        monitor: Monitor,
        clock: Callable[[], float],
        drive: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        identity = directory.identity
        self._raft = raft
        self._log = raft_log
        self._directory = directory
        self._roads = roads
        self._admission = admission
        self._standing = standing
        self._monitor = monitor
        self._clock = clock
        self._drive = drive
        self._fail = fail
        self._formation = formation
        self._own = Facts(
            identity.node_id,
            identity.incarnation,
            identity.role,
            options.quorum_size,
            options.raft_address.lower() if options.peers else options.raft_address,
            options.http_address,
            options.http_port,
            https=options.https,
        )
        self._listed = _read_list(options.peers, self._own.raft_address)
        self._peers = {address: _Peer() for address in self._listed}
        self._address = self._own.raft_address
        self._digest = ""
        self._span = 0  # counts the times that the digest has changed
        self._differs = ""
        self._obstacle = ""  # what this node lacks itself
        self._settle_again_at = 0.0
        self._hints: dict[str, tuple[str, str]] = {}  # what the others' last questions said
        self._remind_at = clock() + REMINDER
        known = raft.configuration.get(raft.id)
        if self._address and self._peers:
            self._be_at(self._address)
        elif known is not None and not self._address:
            self._be_at(known.raft_address)

    @property
    def is_wanted(self) -> bool:
        """Whether this node looks for the others on its list: it knows no members yet."""
        return bool(self._peers) and not self._raft.configuration.servers

    def begin(self) -> None:
        """Say in the log what the list is good for here. Once, before anything is asked."""
        members = self._raft.configuration.servers
        if self.is_wanted:
            log.info(
                "node %s looks for the others of its cluster: %s",
                self._own.node_id,
                ", ".join(self._peers),
            )
        elif self._listed and members:
            there = {server.raft_address for server in members if server.id != self._raft.id}
            if there == self._listed.keys() - {self._address}:
                log.debug("peers is ignored: this node is of a cluster already")
            else:
                log.warning("peers is ignored: %s", self._why_ignored(there))

    def show(self, question: Question) -> Shown:
        """Return what this node shows to whoever asks, and ask sooner if that may be news (1)."""
        own, cluster_id = self._own, self._directory.identity.cluster_id
        self._take_hint(question)
        shown = Shown(
            own.node_id,
            own.incarnation,
            own.role,
            own.quorum_size,
            own.raft_address,
            own.http_address,
            own.http_port,
            tuple(self._others()),
            self._shown_digest(),
            https=own.https,
        )
        if not cluster_id:
            return shown
        leader = self._raft.configuration.get(self._raft.leader_id)
        return replace(
            shown,
            incarnation="",  # who names a member's is believed (greetings.py): strangers can't
            http_address=self._admission.greeting().http_address,
            cluster_id=cluster_id,
            formation=self._formation_for(question),
            leader_http="" if leader is None else leader.http_address,
        )

    def go_on(self) -> None:
        """Ask who is due; write what waited for room. At every tick."""
        self._settle()
        if not self.is_wanted:
            return
        now = self._clock()
        self._ask_some(now)
        if now >= self._remind_at:
            self._remind_at = now + REMINDER
            log.info("node %s is %s", self._own.node_id, self.waits_for())

    # -- what is shown to people -------------------------------------------------------------------

    def waits_for(self) -> str:
        """Say whom this node waits for and why, or "" if it doesn't look for anybody."""
        if not self.is_wanted:
            return ""
        others = [f"{address} {self._state(peer)}" for address, peer in self._peers.items()]
        differs = f"{self._obstacle or self._differs}; " if self._obstacle or self._differs else ""
        return f"waiting for peers: {differs}{', '.join(others)}"

    def missing(self) -> list[str]:
        """Return the addresses of those that have yet to show the same members as this node; none
        once it knows its own. Takes no lock: for any thread that can do with what was so lately."""
        if not self.is_wanted:
            return []
        digest = self._digest
        return [address for address, peer in self._peers.items() if not _is_ready(peer, digest)]

    def status(self) -> dict[str, Any] | None:
        """Return what ``GET /status`` shows of it; None once this node knows its members."""
        if not self.is_wanted:
            return None
        return {
            "digest": self._shown_digest(),
            "differs": self._obstacle or self._differs,
            "waits_for": self.missing(),
            "peers": [
                {
                    "address": address,
                    "node_id": peer.shown.node_id if peer.shown is not None else "",
                    "state": self._state(peer),
                }
                for address, peer in self._peers.items()
            ],
        }

    def seeds(self) -> tuple[str, ...]:
        """Return where to ask a cluster that this node has to ask to be joined (F4): the addresses
        at which members have just answered, and their base URLs, which earlier releases are asked
        at, the leader's first. None as long as it has met no such cluster, or more than one."""
        if not self.is_wanted or not self._address:
            return ()
        met = {
            address: peer.shown
            for address, peer in self._peers.items()
            if peer.shown is not None
            and peer.shown.cluster_id
            and self._listed[address] in ("", peer.shown.node_id)
        }
        if len({shown.cluster_id for shown in met.values()}) != 1:
            return ()
        urls = [*[each.leader_http for each in met.values()]]
        urls += [each.http_address for each in met.values()]
        return tuple(dict.fromkeys(filter(None, [*met, *urls])))

    # -- private ---------------------------------------------------------------------------------

    def _why_ignored(self, there: Collection[str]) -> str:
        """Say why the list is of no use here, where the other members are at these addresses."""
        if there:
            where = ", ".join(sorted(there))
            return f"this node is of a cluster already, whose other members are at {where}"
        url = self._admission.greeting().http_address
        return (
            "this node is a cluster of its own already, by what its data directory says, and forms "
            f"no other one. To keep its records, start each of the others with --join={url} and "
            "without --peers; to form a new cluster, start this node with an empty data directory"
        )

    def _ask_some(self, now: float) -> None:
        """Ask who is due, whoever has waited longest first; after this step, without the lock."""
        own, peers = self._own, self._peers
        room = MAX_ASKED - sum(peer.is_asked for peer in peers.values())
        due = [address for address, each in peers.items() if not each.is_asked and each.due <= now]
        for address in sorted(due, key=lambda address: peers[address].due)[:room]:
            peers[address].is_asked, peers[address].asked_at = True, now
            question = Question(own.node_id, own.incarnation, self._shown_digest())
            self._monitor.finished.append(partial(self._ask, address, question, self._span))

    def _ask(self, address: str, question: Question, span: int) -> None:
        """Put a question of that span of this node's digest. Without the lock."""
        reply = partial(self._answered, address, span)
        try:
            self._roads.ask(address, question, reply)
        except RuntimeError as error:  # too many threads in this process, or on this machine
            reply(Unavailable(f"can't be asked: {error}"))

    def _take_hint(self, question: Question) -> None:
        hint = (question.incarnation, question.digest)
        if self.is_wanted and self._hints.get(question.node_id) != hint:
            if len(self._hints) >= MAX_HINTS:
                self._hints.clear()
            self._hints[question.node_id] = hint
            self._hurry(FIRST_PAUSE)

    def _formation_for(self, question: Question) -> Configuration | None:
        """Return the formation of this node's cluster for one of its founders, by ID and
        incarnation; to anybody else it would tell the incarnations of members."""
        if self._formation is None:
            return None
        founder = self._formation.get(question.node_id)
        if founder is None or founder.incarnation != question.incarnation:
            return None
        return self._formation

    def _shown_digest(self) -> str:
        """Return the digest that is shown; none any more as soon as a cluster is begun (F1)."""
        return self._digest if self.is_wanted else ""

    def _state(self, peer: _Peer) -> str:
        """Say how far the node at an address is."""
        shown = peer.shown
        if shown is None or peer.why:
            return peer.why if shown is None else f"({shown.node_id}) {peer.why}"
        if shown.cluster_id:
            return f"({shown.node_id}) belongs to cluster {shown.cluster_id}"
        if not shown.digest:
            return f"({shown.node_id}) doesn't know all members"
        if not self._digest:
            return f"({shown.node_id}) knows all members"
        is_same = shown.digest == self._digest
        return f"({shown.node_id}) shows {'the same' if is_same else 'other'} members"

    def _hurry(self, rest: float) -> None:
        """Ask everybody again soon: something has changed. *rest* seconds are between two
        questions at least."""
        for peer in self._peers.values():
            peer.pause = FIRST_PAUSE
            peer.due = min(peer.due, peer.asked_at + rest)

    def _answered(self, address: str, span: int, found: Shown | ConureError) -> None:
        """Take an answer to a question of that span of this node's digest. Takes the lock."""
        with self._monitor:
            peer = self._peers.get(address)
            if peer is None or not self._standing.is_working:
                return
            peer.is_asked = False
            peer.due = self._clock() + peer.pause
            peer.pause = min(1.5 * peer.pause, LONGEST_PAUSE)
            if not self.is_wanted:
                return
            if isinstance(found, ConureError):
                why = str(found).removeprefix(f"{address} ")
                peer.why = f"refuses: {why}" if isinstance(found, Refused) else why
                return
            try:
                self._take(peer, span, found)
            except Exception as error:  # noqa: BLE001 - a failed disk, or a bug
                self._fail(error)

    def _take(self, peer: _Peer, span: int, found: Shown) -> None:
        own = self._own
        is_itself = (found.node_id, found.incarnation) == (own.node_id, own.incarnation)
        shown = None if is_itself else found
        if (shown, is_itself) != (peer.shown, peer.is_itself):
            self._hurry(FIRST_PAUSE)
        peer.shown, peer.is_itself, peer.why = shown, is_itself, "is this node" if is_itself else ""
        if not is_itself and self._adopt(found):
            return
        formation = self._look()
        is_agreed = found.digest == self._digest != "" and span == self._span
        peer.agreed = self._span if is_agreed else 0
        if formation is not None and all(
            each.is_itself or each.agreed == self._span for each in self._peers.values()
        ):
            self._form(formation)

    def _others(self) -> dict[str, str]:
        """Return the addresses of the list at which it isn't this node itself that answers, as
        where all nodes are given the same list; each with the ID that is listed or ""."""
        return {
            address: node_id
            for address, node_id in self._listed.items()
            if not self._peers[address].is_itself
        }

    def _look(self) -> Configuration | None:
        """Return the formation that all present facts give; show its digest (F1)."""
        shown = {
            address: peer.shown for address, peer in self._peers.items() if peer.shown is not None
        }
        itself = [address for address, peer in self._peers.items() if peer.is_itself]
        formation, address, differs = agree(self._own, self._others(), shown, itself)
        if address != self._address and address:
            self._be_at(address)
        if self._directory.identity.cluster_id:
            formation = None  # it is of a cluster whose leader has yet to write to it
        digest = "" if formation is None else digest_of(formation)
        if digest != self._digest:
            self._digest = digest
            self._span += 1
            self._hurry(0.0)
        if differs != self._differs:
            self._differs = differs
            if differs:
                log.warning("no cluster is formed: %s", differs)
        return formation

    def _be_at(self, address: str) -> None:
        """Take note where the others list this node."""
        self._address = address
        own = self._own
        url = own.http_address or base_url_at(address, own.http_port, https=own.https)
        self._admission.be_at(address, url)

    def _adopt(self, found: Shown) -> bool:
        """Begin the cluster of a node that was formed with this one (F4); tell whether.

        This one may be of that cluster already, by a leader that was lost before it had sent an
        entry: without the first one it could help to elect no other.
        """
        formation, own = found.formation, self._own
        mine = self._directory.identity.cluster_id
        if formation is None or mine not in ("", found.cluster_id) or self._raft.last_index:
            return False
        server = formation.get(own.node_id)
        if server is None or server.incarnation != own.incarnation:
            return False
        if cluster_id_of(formation) != found.cluster_id:
            return False
        address = own.raft_address or server.raft_address
        if (server.raft_address, formation.quorum_size) != (address, own.quorum_size):
            log.warning(
                "cluster %s was formed with this node at %s and a quorum size of %s, before it was "
                "started with other settings",
                found.cluster_id,
                server.raft_address,
                formation.quorum_size or "no number",
            )
        self._form(formation)
        return True

    def _form(self, formation: Configuration) -> None:
        """Begin the cluster of these members (2)."""
        raft = self._raft
        assert self._directory.identity.cluster_id in ("", cluster_id_of(formation))
        assert raft.last_index == 0
        try:
            self._directory.keep_formation(formation.encode())
        except DiskFull as error:
            self._lack_room(error)
            return
        self._formation = formation
        founders = ", ".join(server.id for server in formation.servers)
        log.info("node %s forms a cluster with %s", self._own.node_id, founders)
        warning = arbiters_warning(formation)
        if warning:
            log.warning("%s", warning)
        founder = formation.get(raft.id)
        assert founder is not None
        if not self._address:
            self._be_at(founder.raft_address)
        raft.found(formation)
        self._drive()
        self._settle()

    def _settle(self) -> None:
        """Belong to the cluster that was begun, once its first entry is on the disk (2)."""
        if self._directory.identity.cluster_id or self._formation is None:
            return
        if not self._raft.configuration.servers or self._log.last_index == 0:
            return
        now = self._clock()
        if now < self._settle_again_at or not self._standing.is_working:
            return
        try:
            self._admission.belong(cluster_id_of(self._formation))
        except DiskFull as error:
            self._settle_again_at = now + DISK_FULL_RETRY
            self._lack_room(error)

    def _lack_room(self, error: DiskFull) -> None:
        obstacle = f"no room to form a cluster: {error}"
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            log.error("%s", obstacle)


def _is_ready(peer: _Peer, digest: str) -> bool:
    """Tell whether whoever is at an address shows this digest, or is this very node."""
    if peer.is_itself:
        return True
    return not peer.why and peer.shown is not None and peer.shown.digest == digest != ""


def _read_list(peers: tuple[str, ...], own_address: str) -> dict[str, str]:
    """Return the addresses of a list without the own one, each with the ID that is listed or ""."""
    listed: dict[str, str] = {}
    for text in peers:
        node_id, _, address = text.rpartition("@")
        if address != own_address:
            listed[address] = node_id
    return listed
