"""Who belongs here: connections that last, are judged again, and are refused without a name.

The clusters are those of lab/nodes.py, but a connection has one handshake, made by the
first message, and lasts while both processes live and neither has closed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conure.cluster.node import Node
from conure.consensus.messages import Message, MessageType, State
from conure.errors import Conflict, ConureError, Refused
from conure.peers.protocol import Greeting
from tests.lab.answers import value_of
from tests.lab.nodes import Lab, begin, put, suffrages

HEARTBEAT, VOTE = MessageType.HEARTBEAT, MessageType.VOTE
Way = tuple[int, int]


class Kept(Lab):
    """A lab whose connections last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[Way, tuple[Node, Greeting, str, Node, Greeting]] = {}
        self.closed: list[str] = []
        self.is_lost: Callable[[Message], bool] = lambda message: False

    def deliver(self, sender: str, receiver: Node, message: Message) -> None:
        if self.is_lost(message):
            return
        source = self[sender]
        way = (id(source), id(receiver))
        if way not in self.open:
            caller, known_as = source.greeting(), source.known_as(message.to)
            answerer = receiver.greeting()
            try:
                receiver.admit("messages", message.to, caller, known_as)
                source.recognise(message.to, answerer)
            except Refused as refusal:
                self.refused.append(f"{sender}→{message.to}: {refusal}")
                return
            self.open[way] = (source, caller, known_as, receiver, answerer)
        receiver.receive([message])

    def judge(
        self,
        node_id: str,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> None:
        judge = self.nodes.get(node_id)
        for way, (source, caller, known_as, target, answerer) in list(self.open.items()):
            if (target is judge and not believes(caller, known_as)) or (
                source is judge and not expects(answerer)
            ):
                del self.open[way]
                self.closed.append(f"{caller.node_id}→{answerer.node_id} by {node_id}")

    def is_open(self, source: Node, target: Node) -> bool:
        return (id(source), id(target)) in self.open


def kept(*others: str, **changes: Any) -> Kept:
    lab = Kept()
    lab.add("n1", bootstrap=True, **changes)
    for node_id in others:
        lab.add(node_id, **changes)
        assert lab.join(node_id) is None
    lab.tick(5)
    return lab


def lead(lab: Lab, node_id: str) -> Node:
    """Have a node lead."""
    answers: list[ConureError | None] = []
    lab.leader().hand_over(node_id, answers.append)
    lab.tick_until(lambda: bool(answers))
    lab.tick(3)
    assert lab.leader() is lab[node_id]
    return lab[node_id]


def last_heartbeat(lab: Lab, to: str) -> Message:
    return [m for m in lab.sent if m.type is HEARTBEAT and m.to == to][-1]


# -- disks that are lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("votes", ["an election", "no election"])
def test_a_leader_that_lost_its_disk_is_no_voter_before_anybody_misses_it(votes: str) -> None:
    """It is back, empty, while the others follow it and have messages for it; n1 lacks a write."""
    lab = kept("n2", "n3")
    leader = lead(lab, "n3")
    n1, n2 = lab["n1"], lab["n2"]
    lab.is_lost = lambda m: m.to == "n1" and m.type is MessageType.APPEND and bool(m.entries)
    written = begin(leader, (b"k", b"v"))
    lab.settle()
    lab.tick()
    assert written == [None]
    late = last_heartbeat(lab, "n2")
    lab.wipe("n3")
    empty = lab.add("n3")
    lab.under_way.clear()
    assert n2._raft.leader_id == "n3"
    n2.receive([late])  # it was in n2's buffer, and is answered
    lab.settle()
    assert any("n2→n3: n3 is a member with another data directory" in r for r in lab.refused)
    assert not lab.is_open(n2, empty)
    if votes == "no election":
        lab.cut = {"n1"}
    lab.is_lost = lambda m: False
    lab.tick(60)
    assert not [way for way in lab.open if id(empty) in way]
    assert empty.greeting().cluster_id == ""
    assert empty._raft.last_index == 0
    if votes == "no election":
        assert n2._raft.state is not State.LEADER
        assert n1._raft.state is not State.LEADER
        lab.cut = set()
    assert lab.leader() is n2  # who alone has all that was acknowledged
    assert n2._raft.progress["n3"].match == 0
    assert value_of(n2, b"k") == b"v"
    assert isinstance(lab.join("n3"), Conflict)
    assert lab.remove("n3") is None
    assert lab.join("n3") is None
    lab.tick(5)
    assert value_of(empty, b"k") == b"v"


def test_an_acknowledgement_of_a_former_disk_counts_for_nothing() -> None:
    lab = kept("n2", "n3")
    leader = lab.leader()
    put(lab, b"k", b"v")
    lab.tick(2)
    acknowledged = MessageType.APPEND_RESPONSE
    late = [m for m in lab.sent if m.type is acknowledged and m.sender == "n3" and not m.reject][-1]
    lab.wipe("n3")
    assert lab.remove("n3") is None
    lab.add("n3")
    lab.is_lost = lambda m: m.sender == "n3"
    leader.join("n3", "n3:7001", "", voter=True, role="", reply=lambda _: None)
    lab.tick(2)
    progress = leader._raft.progress["n3"]
    assert progress.match < late.index <= leader._raft.last_index
    assert late.term == leader._raft.term
    leader.receive([late])
    assert progress.match == 0
    assert suffrages(leader)["n3"] == "nonvoter"  # yet
    lab.is_lost = lambda m: False
    lab.tick_until(lambda: suffrages(leader)["n3"] == "voter")
    assert value_of(lab["n3"], b"k") == b"v"


def test_a_former_disk_is_heard_no_more_once_the_new_one_is_admitted() -> None:
    lab = kept("n2", "n3")
    former = lab["n3"]
    leader = lab.leader()
    assert lab.is_open(former, leader)
    lab.nodes.pop("n3")
    del lab.disks["n3"]
    empty = lab.add("n3")
    assert lab.remove("n3") is None
    assert lab.is_open(former, leader)  # it has a moment to hear of it
    assert lab.join("n3") is None
    assert not lab.is_open(former, leader)
    assert not lab.is_open(leader, former)
    assert lab.is_open(leader, empty)
    lab.tick(30)
    assert f"n3→n1 by {leader._raft.id}" in lab.closed


def test_a_removed_member_is_heard_for_a_moment() -> None:
    lab = kept("n2", "n3")
    leader, leaving = lab.leader(), lab["n3"]
    assert lab.remove("n3") is None
    assert lab.is_open(leaving, leader)
    lab.tick(30)
    assert not lab.is_open(leaving, leader)
    assert leaving.status()["member"] is False


# -- who is believed -------------------------------------------------------------------------------


def stranger(lab: Lab, node_id: str = "n9", **facts: Any) -> Greeting:
    cluster = lab["n1"].greeting().cluster_id
    given = {"cluster_id": cluster, "incarnation": "9" * 32} | facts
    return Greeting(node_id, role="data", raft_address="n9:7001", http_address="", **given)


@pytest.mark.parametrize("kind", ["messages", "snapshot", "probe"])
@pytest.mark.parametrize("node_id", ["n9", "n1", "n3"])
def test_only_who_names_its_incarnation_is_believed_by_a_node_that_may_be_behind(
    kind: str, node_id: str
) -> None:
    """A stranger, or a member with another directory; even if it says that it is the leader."""
    lab = kept("n2", "n3")
    mine = lab["n2"].greeting().incarnation
    caller = stranger(lab, node_id)
    for known_as in ("", "0" * 32, lab["n1"].greeting().incarnation):
        with pytest.raises(Refused):
            lab["n2"].admit(kind, "n2", caller, known_as)
    lab["n2"].admit(kind, "n2", caller, mine)
    with pytest.raises(Refused):  # a leader isn't behind
        lab["n1"].admit(kind, "n1", stranger(lab, "n3"), lab["n1"].greeting().incarnation)


def test_a_node_without_a_configuration_believes_anybody_of_its_cluster() -> None:
    lab = kept()
    node = lab.add("n2")
    caller = stranger(lab)
    node.admit("messages", "n2", caller)
    node.receive([Message(HEARTBEAT, "n9", "n2", 1)])
    assert node.greeting().cluster_id == caller.cluster_id
    node.admit("messages", "n2", stranger(lab, "n8"))
    with pytest.raises(Refused):
        node.admit("messages", "n2", stranger(lab, cluster_id="another"))


def test_a_cluster_is_joined_by_the_word_of_a_leader_only() -> None:
    lab = kept()
    node = lab.add("n2")
    node.admit("messages", "n2", stranger(lab))
    others = [kind for kind in MessageType if kind.name not in ("APPEND", "HEARTBEAT", "SNAPSHOT")]
    for kind in others:
        node.receive([Message(kind, "n9", "n2", 7, index=1, log_term=1)])
    assert node.greeting().cluster_id == ""
    assert (node._raft.term, node._raft.last_index) == (0, 0)
    node.receive([Message(VOTE, "n9", "n2", 7), Message(HEARTBEAT, "n9", "n2", 7)])
    assert node.greeting().cluster_id == lab["n1"].greeting().cluster_id


def test_whom_a_node_believes_is_looked_at_again_when_it_leads() -> None:
    lab = kept("n2", "n3")
    n2 = lab["n2"]
    caller = stranger(lab, "n3")
    n2.admit("messages", "n2", caller, n2.greeting().incarnation)
    judged: list[bool] = []
    lab.judge = lambda node_id, believes, expects: (  # type: ignore[method-assign]
        judged.append(believes(caller, n2.greeting().incarnation)) if node_id == "n2" else None
    )
    lead(lab, "n2")
    assert judged[-1] is False


def test_healthy_connections_outlive_elections_and_changes_of_members() -> None:
    lab = kept("n2", "n3", "n4")
    lab.closed.clear()
    for node_id in ("n2", "n3", "n4", "n1"):
        lead(lab, node_id)
    assert lab.remove("n4") is None
    lab.tick(60)
    assert lab.closed
    assert all("n4" in each for each in lab.closed)
    assert lab.join("n4") is None
    lab.cut = {"n1"}
    lab.leader()
    lab.cut.clear()
    lab.tick(60)
    assert all("n4" in each for each in lab.closed)
    assert len(lab.closed) <= 6  # each once, and none of them was opened again before the join


def test_who_is_behind_answers_a_candidate_it_has_never_heard_of() -> None:
    """n6 and the new n2 came while n3 was away. Then two are lost, and n3 has to vote."""
    lab = kept("n2", "n3", "n4", "n5")
    lab.cut = {"n3"}
    lab.wipe("n2")
    assert lab.remove("n2") is None
    lab.add("n2")
    assert lab.join("n2") is None
    assert lab.remove("n5") is None
    lab.stop("n5")
    lab.add("n6")
    assert lab.join("n6") is None
    put(lab, b"k", b"v")
    lab.tick(5)
    lab.stop("n1")
    lab.stop("n4")
    lab.cut.clear()
    n3 = lab["n3"]
    assert "n6" not in suffrages(n3)
    assert lab.leader() is not n3
    lab.tick(20)
    assert value_of(n3, b"k") == b"v"


def test_who_is_behind_and_in_a_later_term_is_heard_by_a_leader_it_does_not_know() -> None:
    """It knows n2 with another disk, and has to tell it of its term before it can follow it."""
    lab = kept("n2", "n3", "n4")
    lab.cut = {"n3"}
    lab.wipe("n2")
    assert lab.remove("n2") is None
    lab.add("n2")
    assert lab.join("n2") is None
    lead(lab, "n2")
    n3 = lab["n3"]
    with n3._monitor.lock:
        n3._raft._become_candidate(force=True)
        n3._raft._become_candidate(force=True)
        n3._drive()
    lab.settle()
    assert n3._raft.term > lab["n2"]._raft.term
    lab.cut.clear()
    put(lab, b"k", b"v")
    lab.tick_until(lambda: n3._raft.leader_id != "")
    lab.tick(10)
    assert value_of(n3, b"k") == b"v"


def test_a_node_that_knows_nobody_any_more_comes_back_by_naming_itself() -> None:
    """It was removed, and all whom it knew have left. Its seeds know the cluster."""
    lab = kept("n2", "n3")
    assert lab.remove("n3") is None
    lab.tick(30)
    for node_id in ("n4", "n5"):
        lab.add(node_id)
        assert lab.join(node_id) is None
    lead(lab, "n4")
    for node_id in ("n1", "n2"):
        assert lab.remove(node_id) is None
        lab.stop(node_id)
    answer = lab.join("n3")
    assert isinstance(answer, Conflict)
    assert "it doesn't know who asks" in str(answer)
    facts = lab["n3"].facts()
    assert lab.join("n3", incarnation=facts["Incarnation"]) is None
    put(lab, b"k", b"v")
    lab.tick(5)
    assert value_of(lab["n3"], b"k") == b"v"


def test_a_leader_gives_a_member_no_address_of_another_disk() -> None:
    lab = kept("n2", "n3")
    n2 = lab["n2"]
    impostor = stranger(lab, "n3")
    lab.cut = {"n3"}  # or it would say itself where it is
    n2.admit("messages", "n2", impostor, n2.greeting().incarnation)
    lead(lab, "n2")
    lab.tick(30)
    member = n2._roster.members.get("n3")
    assert member is not None
    assert member.raft_address == "n3:7001"


# -- what a refusal tells --------------------------------------------------------------------------


def test_a_refusal_names_nothing_and_the_log_here_has_the_names() -> None:
    lab = kept("n2", "n3")
    node = lab["n2"]
    mine, other = node.greeting(), "c" * 32
    secrets = [
        mine.node_id, mine.cluster_id, mine.incarnation, mine.raft_address, mine.http_address,
        "n1", "n3", "9" * 32, other,
    ]  # fmt: skip
    told = set()
    for to in ("n2", "n3", "?"):
        for cluster in (mine.cluster_id, other, ""):
            for node_id in ("n1", "n2", "n9"):
                for known_as in ("", "x"):
                    for kind in ("messages", "snapshot", "probe"):
                        caller = stranger(lab, node_id, cluster_id=cluster)
                        with pytest.raises(Refused) as refusal:
                            node.admit(kind, to, caller, known_as)
                        told.add(refusal.value.told)
    assert not [(text, name) for text in told for name in secrets if name in text]
    assert told == {
        "it belongs to another cluster",
        "another node is at this address",
        "two nodes have the same ID",
        "it doesn't know who asks, or knows it with another data directory",
    }
    with pytest.raises(Refused, match="this is n2, not n7"):
        node.admit("messages", "n7", stranger(lab))
    with pytest.raises(Refused, match=f"n9 belongs to cluster {other}, n2 to cluster"):
        node.admit("messages", "n2", stranger(lab, cluster_id=other))


def test_a_stranger_without_the_cluster_hears_the_same_whatever_it_guesses() -> None:
    lab = kept("n2")
    heard = set()
    for to in ("n1", "n2", ""):
        for node_id in ("n1", "n2", "n9"):
            with pytest.raises(Refused) as refusal:
                lab["n1"].admit("probe", to, stranger(lab, node_id, cluster_id="guess"))
            heard.add(refusal.value.told)
    assert len(heard) == 1
