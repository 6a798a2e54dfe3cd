"""Leases of a cluster of nodes, and replicas that differ."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from conure.cluster.leases import LEASE_SHARE, MAX_TOLD
from conure.cluster.node import TICK
from conure.consensus.messages import (
    Message,
    MessageType,
    State,
)
from conure.errors import (
    ConureError,
    Diverged,
    ForeignDirectory,
    Unavailable,
)
from tests.lab.answers import value_of
from tests.lab.nodes import (
    Lab,
    begin,
    cluster,
    put,
    read,
    suffrages,
)


def test_a_lease_answers_without_a_message_and_runs_out() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert read(lab["n1"]) == [None]  # nothing was delivered in between
    lab.cut |= {"n2", "n3"}
    lab.now += 0.39  # the election time-out, but for a moment
    assert read(lab["n1"]) == []


def test_a_read_without_a_lease_is_confirmed_however_long_the_rounds_of_leases_take() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    node = lab["n1"]

    def far_away(ticks: int) -> None:
        """A message takes a tick, so that a round ends when the next one is asked for already."""
        for _ in range(ticks):
            arriving = lab.under_way.copy()
            lab.under_way.clear()
            lab.now += TICK
            for each in lab.nodes.values():
                each.tick()
            for sender, address, message in arriving:
                receiver = lab.at(address)
                assert receiver is not None
                lab.deliver(sender, receiver, message)

    far_away(10)
    assert node._holds_lease()
    lab.now += 1.0  # it stood still
    assert not node._holds_lease()
    answers = [read(node), read(node)]
    far_away(6)
    assert node._holds_lease()
    assert answers == [[None], [None]]


def test_a_lease_is_void_for_the_rest_of_a_term_with_a_hand_over() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert lab["n1"]._holds_lease()
    lab["n1"].hand_over("n2", lambda _: None)
    lab.under_way.clear()
    lab.tick(3)
    assert not lab["n1"]._holds_lease()


def test_a_lease_is_void_when_a_leader_that_was_removed_hands_over() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert lab["n1"]._holds_lease()
    lab["n1"].remove("n1", force=True, reply=lambda _: None)
    while "n1" in suffrages(lab["n1"]) or lab["n1"]._raft.commit_index < lab["n1"]._raft.last_index:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        assert receiver is not None
        lab.deliver(sender, receiver, message)
    assert lab["n1"]._raft.state is State.LEADER  # and somebody was asked to take over
    assert not lab["n1"]._holds_lease()


def test_a_lease_lasts_its_share_of_the_time_out_to_the_moment() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    node = lab["n1"]
    seconds = LEASE_SHARE * (8 - 1) * TICK  # of eight ticks, the first of which may be a short one
    assert node._lease.seconds == pytest.approx(seconds)
    since = node._raft.lease_since
    assert since == lab.now
    lab.cut |= {"n2", "n3"}
    lab.now = math.nextafter(since + node._lease.seconds, 0.0)
    assert read(node) == [None]
    lab.now = since + node._lease.seconds
    assert read(node) == []


def test_nobody_leads_while_a_lease_holds_though_clocks_run_apart_as_far_as_they_may() -> None:
    """Those who have promised tick at once, then faster than the leader's clock, and don't wait."""
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    others = [lab["n2"], lab["n3"]]
    begun, held = lab.now, 0
    lab.cut.add("n1")
    lab["n2"]._raft._timeout = lab["n2"]._raft.options.election_ticks
    for number in range(20):
        lab.now = begun + LEASE_SHARE * number * TICK
        for node in others:
            node.tick()
        lab.settle()
        if any(node._raft.state is State.LEADER for node in others):
            break
        held += lab["n1"]._holds_lease()
    assert any(node._raft.state is State.LEADER for node in others)
    assert held == 7
    assert not lab["n1"]._holds_lease()


def test_a_lease_ends_with_its_term_even_if_the_next_ones_are_short() -> None:
    lab = cluster("n2", "n3", read_mode="lease", election_timeout=2.0)
    put(lab, b"k", b"old")
    lab.tick(5)
    node, other = lab["n1"], lab["n2"]
    assert node._holds_lease()
    node.hand_over("n2", lambda _: None)
    lab.settle()
    lab.tick()
    assert other._holds_lease()
    assert begin(other, (b"k", b"new")) == ["unanswered"]
    lab.settle()
    other.hand_over("n1", lambda _: None)
    while node._raft.state is not State.LEADER:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        assert receiver is not None
        lab.deliver(sender, receiver, message)
    assert value_of(node, b"k") == b"old"  # it does not know yet that "new" is committed
    assert read(node) == []


def unequal(**timeouts: float) -> Lab:
    """A cluster of n1, which leads, and others, with these election time-outs and leases."""
    lab = Lab()
    for node_id, seconds in timeouts.items():
        facts: dict[str, Any] = {"read_mode": "lease", "election_timeout": seconds}
        lab.add(node_id, bootstrap=node_id == "n1", **facts)
        if node_id != "n1":
            assert lab.join(node_id) is None
    lab.tick(3)
    return lab


def test_a_lease_is_no_longer_than_the_shortest_promise() -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    node = lab["n1"]
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (4 - 1) * TICK)
    lab.cut.add("n3")
    lab.tick(30)  # n3 hears nobody: it would vote at once
    assert node._holds_lease()
    lab.cut = {"n1"}
    lab.tick_until(lambda: lab["n2"]._raft.leader_id in ("n2", "n3"))
    assert node._raft.state is State.LEADER
    assert not node._holds_lease()


def test_a_promise_of_a_member_that_is_removed_counts_until_that_is_committed() -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    node = lab["n1"]
    node.remove("n2", force=True, reply=lambda _: None)
    assert "n2" not in suffrages(node)
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (4 - 1) * TICK)
    lab.settle()
    lab.tick()
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (20 - 1) * TICK)


def test_unequal_election_timeouts_are_told_once_and_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    lab.tick(50)
    told = [record.getMessage() for record in caplog.records if "election time-out" in record.msg]
    assert sorted(text[:60] for text in told) == [
        "node n1 has an election time-out of 1000 ms, node n2 one of ",
        "node n2 has an election time-out of 200 ms, node n1 one of 1",
    ]
    assert all("--election-timeout" in text for text in told)
    checks = {check: (passes, why) for check, passes, why in lab["n1"].readiness()}
    assert checks["timeouts"] == (True, "n2 has 200 ms, this node 1000 ms")
    checks = {check: (passes, why) for check, passes, why in lab["n2"].readiness()}
    assert checks["timeouts"] == (True, "n1 has 1000 ms, this node 200 ms")
    lab.stop("n2")
    lab.add("n2", read_mode="lease", election_timeout=1.0)
    lab.tick(30)
    checks = {check: (passes, why) for check, passes, why in lab["n1"].readiness()}
    assert checks["timeouts"] == (True, "ok")
    assert lab["n1"]._lease.seconds == pytest.approx(LEASE_SHARE * (20 - 1) * TICK)


def test_a_node_that_does_not_tell_its_election_timeout_is_taken_to_have_the_same() -> None:
    lab = cluster("n2", "n3")
    lease = lab["n1"]._lease
    for said, seconds in ((200, 0.1125), (0, 0.2625), (9000, 0.2625)):
        lease.hear(replace(lab["n2"].greeting(), election_timeout=said))
        assert lease.seconds == pytest.approx(seconds)


def test_what_strangers_say_of_their_election_timeouts_is_bounded_and_counts_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2")
    lease, greeting = lab["n1"]._lease, lab["n2"].greeting()
    for number in range(1000):
        lease.hear(replace(greeting, node_id=f"s{number}", election_timeout=100))
    lease.hear(replace(greeting, election_timeout=200))
    assert lease.seconds == pytest.approx(0.1125)
    assert len(lease._told) == MAX_TOLD + 1
    assert caplog.text.count("election time-out") == 1
    lab["n1"].admit("probe", "n1", replace(greeting, election_timeout=300))
    assert lease.seconds == pytest.approx(0.1125)  # who only looks says nothing that counts


def test_what_another_directory_tells_is_not_the_members() -> None:
    """Neither its time-out, of which leases are made, nor what it reads."""
    lab = cluster("n2", "n3", speaks=2)
    node, greeting = lab["n1"], lab["n2"].greeting()
    node._lease.hear(replace(greeting, election_timeout=200))
    other = replace(greeting, incarnation="another", election_timeout=9000, speaks=1)
    node._lease.hear(other)
    assert node._lease.seconds == pytest.approx(0.1125)
    assert "n2 has 200 ms" in node._lease.differences
    members = node._raft.configuration
    member = members.get("n2")
    assert member is not None
    node._versions.hear(other, members)
    assert node._versions.of(member) == greeting.speaks == 2
    node._versions.hear(replace(greeting, speaks=1), members)
    node._versions.hear(replace(other, speaks=9), members)
    assert node._versions.of(member) == 1
    for number in range(1000):
        node._lease.hear(replace(other, incarnation=f"{number}", election_timeout=100))
        node._versions.hear(replace(other, incarnation=f"{number}"), members)
    assert node._lease.seconds == pytest.approx(0.1125)
    assert node._versions.of(member) == 1
    assert len(node._lease._told) <= MAX_TOLD + 3
    assert len(node._versions._said) <= MAX_TOLD + 3


def test_the_time_out_of_a_member_that_comes_back_with_another_directory_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    for times in (1, 2):
        lab.tick(30)
        told = [record.getMessage() for record in caplog.records]
        assert sum("node n2 has an election time-out of 200 ms" in text for text in told) == times
        assert lab.remove("n2") is None
        lab.wipe("n2")
        lab.tick(30)
        lab.add("n2", read_mode="lease", election_timeout=0.2)
        assert lab.join("n2") is None


def test_a_replica_that_differs_stops_and_stays_stopped() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n3"]._store.digest ^= 1
    lab.tick_until(lambda: "n3" in lab.failed)
    assert isinstance(lab["n3"]._standing.failure, Diverged)
    with pytest.raises(Unavailable):
        value_of(lab["n3"], b"k")
    put(lab, b"k", b"w")
    lab.stop("n3")
    with pytest.raises(ForeignDirectory, match="let it join again"):
        lab.add("n3")


def test_a_leader_that_differs_from_the_majority_stops_itself() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n1"]._store.digest ^= 1
    lab.tick_until(lambda: "n1" in lab.failed)
    assert not lab.failed & {"n2", "n3"}
    put(lab, b"k", b"w")


def test_a_leader_that_differs_does_not_end_those_that_are_right() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    lab.stop("n3")
    lab["n1"]._store.digest ^= 1
    lab.tick(100)
    assert lab.failed == set()  # one says this, one says that
    lab.add("n3")
    lab.tick_until(lambda: bool(lab.failed))
    assert lab.failed == {"n1"}


def test_a_leader_that_can_not_note_that_it_differs_ends_all_the_same() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n1"]._store.digest ^= 1
    lab.disks["n1"].set_capacity(0)
    pending: list[ConureError | None] = []
    lab.tick_until(lambda: "n1" in lab.failed)
    assert isinstance(lab["n1"]._standing.failure, Diverged)
    assert pending == []


def test_a_leader_is_followed_in_its_term_and_with_its_directory_only() -> None:
    raft = cluster("n2")["n2"]._raft
    message = Message(MessageType.AUDIT, "n1", "n2", raft.term, index=1)
    assert raft.follows(message)
    assert raft.follows(replace(message, incarnation=raft.leader_incarnation))
    for change in ({"term": raft.term - 1}, {"sender": "n3"}, {"incarnation": "another"}):
        assert not raft.follows(replace(message, **change))


def test_only_who_leads_now_decides_that_a_replica_differs() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    node, term = lab["n2"], lab["n1"]._raft.term
    node._audits._told = ("n1", term, node._store.applied_index)
    for sender, said in (("n3", term), ("n1", term - 1), ("n1", term)):
        assert node._standing.failure is None
        verdict = Message(MessageType.AUDIT, sender, "n2", said, index=node._store.applied_index)
        verdict.reject, verdict.context = True, node._store.digest ^ 1
        node.receive([verdict])
    assert isinstance(node._standing.failure, Diverged)


def test_a_verdict_that_answers_nothing_ends_nobody() -> None:
    """It would be for good: only the leader that was told the digest may say that it is wrong."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(30)
    raft, store = lab["n3"]._raft, lab["n3"]._store
    told, lab["n3"]._audits._told = lab["n3"]._audits._told, ("", 0, 0)
    for sender, term in (("n1", raft.term), ("n2", raft.term), ("n1", 0), ("n1", 1 << 63)):
        verdict = Message(MessageType.AUDIT, sender, "n3", term, index=store.applied_index)
        verdict.context, verdict.reject = store.digest ^ 1, True
        lab["n3"].receive([verdict])
    lab["n3"]._audits._told = told
    for sender, index in (("n2", told[2]), ("n1", told[2] + 1), ("n1", (1 << 64) - 1)):
        verdict = Message(MessageType.AUDIT, sender, "n3", raft.term, index=index)
        verdict.context, verdict.reject = store.digest ^ 1, True
        lab["n3"].receive([verdict])
    assert lab.failed == set()


def test_what_a_former_life_of_a_member_says_of_its_digest_counts_for_nothing() -> None:
    """Nor is a question answered, or a verdict taken, of one of the leader's."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick_until(lambda: lab["n1"]._audits.current.index == lab["n1"]._store.applied_index)
    raft, audit, store = lab["n1"]._raft, lab["n1"]._audits.current, lab["n2"]._store
    answer = Message(MessageType.AUDIT_RESPONSE, "n2", "n1", raft.term, index=audit.index)
    answer.context, answer.incarnation = store.digest ^ 1, "a former one"
    lab["n1"].receive([answer])
    assert not audit.differs
    for is_verdict in (False, True):
        lab.sent.clear()
        told = Message(MessageType.AUDIT, "n1", "n2", raft.term, index=audit.index)
        told.reject, told.context, told.incarnation = is_verdict, store.digest ^ 1, "a former one"
        lab["n2"].receive([told])
        assert (lab.sent, lab.failed) == ([], set())
    answer.incarnation = lab["n2"].greeting().incarnation
    lab["n1"].receive([answer])
    assert audit.differs


def test_what_a_leader_was_told_before_it_lost_its_office_condemns_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    node = lab["n1"]
    lab.tick_until(lambda: node._audits.current.index == node._store.applied_index)
    index, wrong = node._audits.current.index, node._store.digest ^ 1
    answer = Message(MessageType.AUDIT_RESPONSE, "n2", "n1", node._raft.term, index=index)
    answer.context = wrong
    node.receive([answer])
    assert node._audits.current.differs
    for node_id in ("n3", "n1"):
        answers: list[ConureError | None] = []
        lab.leader().hand_over(node_id, answers.append)
        lab.tick_until(lambda answers=answers: bool(answers))  # type: ignore[misc]
        assert answers == [None]
    lab.tick(50)
    assert lab.leader() is node
    assert not [message for message in caplog.messages if "differ" in message]


def test_busy_replicas_are_compared_at_marks() -> None:
    lab = cluster("n2", "n3")
    for first in range(0, 1100, 100):
        outcome = begin(lab["n1"], *[(b"%d" % n, b"v") for n in range(first, first + 100)])
        lab.settle()
        assert outcome == [None] * 100
    lab.tick(2)
    assert lab["n2"]._store.last_mark()[0] == 1024
    lab["n2"]._store._marks[1024] ^= 1
    lab.tick_until(lambda: "n2" in lab.failed)
