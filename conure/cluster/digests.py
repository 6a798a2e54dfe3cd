"""Replicas that differ although they applied the same log: how that is noticed, and who is wrong.

Equal applied index means equal contents (R7). Each node keeps a running digest of what it applied
(machine.py). About once a second the leader asks every follower for its digest at a certain index,
and at the next round it looks at the answers: the digest that more than half of all replicas share
is right. If all have answered and there is no such digest, it is the one that most of them share,
the leader's own in a draw. Until then nobody is condemned: the leader may be the one that is wrong.
Who has another digest has been hit by a bug or a broken machine, and must not serve another read.

:class:`Audit` is one question and its answers, and decides; :class:`Audits` asks, answers and takes
the verdict, which ends a node for good. The node's lock guards both.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from conure.cluster.roster import Roster
from conure.cluster.standing import Standing
from conure.consensus.messages import Message, MessageType, State
from conure.consensus.raftlog import RaftLog
from conure.errors import DiskFull, Diverged
from conure.state.machine import Store
from conure.storage.datadir import DataDirectory
from raft import Raft

__all__ = ["Audit", "Audits"]

AUDIT_TICKS = 20
"""Ticks between two comparisons of the replicas' digests."""

log = logging.getLogger("conure.node")


class Audit:
    """One question of a leader to its followers, and the answers to it."""

    def __init__(self) -> None:
        self.index = 0
        self.right_digest = 0
        self._digests: dict[str, int | None] = {}  # of all replicas; None: not answered yet

    def ask(self, node_id: str, followers: Iterable[str], index: int, digest: int) -> None:
        """Begin a round about *index*, at which the leader, *node_id*, has *digest*."""
        self.index = index
        self.right_digest = digest
        self._digests = {**dict.fromkeys(followers), node_id: digest}

    def answer(self, node_id: str, index: int, digest: int) -> None:
        """Take the answer of a follower; one to an earlier question is dropped."""
        if index == self.index and node_id in self._digests:
            self._digests[node_id] = digest

    @property
    def differs(self) -> bool:
        """Whether those that have answered differ, whoever is right."""
        return len(self._count()) > 1

    def deviants(self) -> list[str]:
        """Decide which digest is right, and return who of those that answered has another."""
        counted = self._count()
        if len(counted) < 2:
            return []
        own = self.right_digest
        right = max(counted, key=lambda digest: (counted[digest], digest == own))
        replicas = len(self._digests)
        if 2 * counted[right] <= replicas and counted.total() < replicas:
            return []
        self.right_digest = right
        return sorted(node for node, digest in self._digests.items() if digest not in (None, right))

    def _count(self) -> Counter[int]:
        return Counter(digest for digest in self._digests.values() if digest is not None)


class Audits:
    """Compares *store* with those of the other replicas, as their leader or as one of them.

    *send* gives a message to the transport; *fail* ends the node.
    """

    def __init__(
        self,
        raft: Raft,
        raft_log: RaftLog,
        store: Store,
        directory: DataDirectory,
        roster: Roster,
        standing: Standing,
        send: Callable[[Message], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._raft = raft
        self._log = raft_log
        self._store = store
        self._directory = directory
        self._roster = roster
        self._send = send
        self._fail = fail
        self._is_arbiter = standing.is_arbiter
        self._told = ("", 0, 0)  # the last answer: to whom, in which term, as of when
        self.current = Audit()
        """The leader's last question, and the answers to it."""

    def forget(self) -> None:
        """Another node leads, or none: answers to a leader that was are void."""
        self.current = Audit()

    def tick(self, ticks: int) -> None:
        """Compare the replicas with every AUDIT_TICKS of the leader's *ticks*."""
        if ticks % AUDIT_TICKS == 0 and len(self._roster.members.servers) > 1:
            self._begin(by_mark=ticks % (2 * AUDIT_TICKS) != 0)

    def _begin(self, *, by_mark: bool) -> None:
        """Act on the last comparison of digests and begin the next one (R7)."""
        raft, store, audit = self._raft, self._store, self.current
        if audit.differs:
            log.error("the replicas differ at index %d", audit.index)
        for node_id in audit.deviants():
            log.error("node %s differs from the others at index %d", node_id, audit.index)
            verdict = Message(
                MessageType.AUDIT,
                raft.id,
                node_id,
                raft.term,
                index=audit.index,
                context=audit.right_digest,
                reject=True,
            )
            if node_id == raft.id:
                self.hear(verdict)
            else:
                self._send(verdict)
        # A busy follower has applied something else than the leader by the time it is asked, an
        # idle one has passed no mark for long.
        index, digest = store.last_mark()
        if not by_mark or not index:
            index, digest = store.applied_index, store.digest
        followers = [
            server.id
            for server in self._roster.members.servers
            if server.id != raft.id and server.role == "data"
        ]
        audit.ask(raft.id, followers, index, digest)
        for node_id in followers:
            self._send(Message(MessageType.AUDIT, raft.id, node_id, raft.term, index=index))

    def hear(self, message: Message) -> None:
        """Answer the leader's question, take an answer, or accept the verdict.

        That ends this node for good, so it has to be about what this node has told that leader.
        """
        raft = self._raft
        if self._is_arbiter:
            return
        if message.type is MessageType.AUDIT_RESPONSE:
            is_of_this_term = raft.state is State.LEADER and message.term == raft.term
            if is_of_this_term and raft.has_admitted(message):
                self.current.answer(message.sender, message.index, message.context)
            return
        digest = self._store.digest_at(message.index)
        if not raft.follows(message) or digest is None:
            return
        told = (message.sender, message.term, message.index)
        if not message.reject:
            self._told = told
            answer = Message(
                MessageType.AUDIT_RESPONSE, raft.id, message.sender, raft.term, message.index
            )
            answer.context = digest
            self._send(answer)
        elif digest != message.context and (message.sender == raft.id or self._told == told):
            self._diverge(message.index)

    def _diverge(self, index: int) -> None:
        """End this node, for good: its state isn't what the log says."""
        error = Diverged(self._raft.id, index)
        why = f"its state differed at index {index}"
        try:
            try:
                self._directory.mark_diverged(why)
            except DiskFull:
                self._log.give_up_reserve()  # this log is written to no more
                self._directory.mark_diverged(why)
        except DiskFull as full:
            log.critical("this node starts again, though it must not serve: %s", full)
        finally:
            self._fail(error)
