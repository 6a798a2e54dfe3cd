"""Leases (R9): a confirmed round means that nobody else leads for an election time-out.

Each part of the rule and of its proof has a test here, at the tick at which it ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from conure.consensus.members import Configuration
from conure.consensus.messages import Message, MessageType, State
from conure.errors import ProtocolViolation
from raft import Raft, RaftOptions, bootstrap
from tests.lab.raft_cluster import Cluster, MemoryLog, Node, configuration_of, server

ELECTION = RaftOptions("").election_ticks
QUIET = RaftOptions("", quiet_ticks=ELECTION)
BOUNDARY = pytest.mark.parametrize("ticks", [ELECTION - 1, ELECTION])
"""The last tick at which the promise binds, and the first at which it doesn't."""


def leader_of(*names: str, options: RaftOptions | None = None) -> tuple[Cluster, Node]:
    cluster = Cluster(*names, options=options)
    cluster.tick_all((options or QUIET).quiet_ticks)  # nobody votes before that
    cluster.drop()
    leader = cluster.leader
    return cluster, cluster.elect("a") if leader is None or leader.id != "a" else leader


def renew(leader: Node, now: float) -> None:
    leader.raft.renew_lease(now)
    leader.drive()


def since(leader: Node) -> float | None:
    return leader.raft.lease_since


def answer(cluster: Cluster, leader: Node, *names: str) -> None:
    """Let these nodes, and nobody else, answer what the leader has sent them; lose the rest."""
    for name in names:
        for message in [e.message for e in cluster.network if e.message.to == name]:
            cluster[name].step(message)
    for message in [e.message for e in cluster.network if e.message.to == leader.id]:
        leader.step(message)
    cluster.drop()


def stand(cluster: Cluster, name: str) -> bool:
    """Let a node that hears no leader stand for election; tell whether it leads."""
    cluster.drop()
    cluster[name].campaign()
    cluster.settle()
    return cluster[name].raft.state is State.LEADER


def learner(cluster: Cluster, leader: Node, name: str) -> None:
    """Add a learner that has caught up."""
    cluster.add(name).start()
    leader.change(lambda: leader.raft.add_learner(server(name, "nonvoter")))
    cluster.settle()
    leader.tick()
    cluster.settle()


# -- how long --------------------------------------------------------------------------------------


@BOUNDARY
def test_who_has_confirmed_a_round_elects_nobody_for_an_election_timeout(ticks: int) -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("c")
    cluster["c"].tick(2 * ELECTION)  # it hears nobody for so long that it could be elected
    cluster.drop()
    renew(leader, 5.0)
    answer(cluster, leader, "b")
    assert since(leader) == 5.0
    cluster.heal()
    cluster.isolate("a")
    cluster["b"].tick(ticks)
    assert stand(cluster, "c") is (ticks == ELECTION)


@BOUNDARY
def test_nor_if_it_is_restarted_at_once(ticks: int) -> None:
    cluster, leader = leader_of("a", "b", "c", options=QUIET)
    cluster.isolate("c")
    cluster["c"].tick(2 * ELECTION)
    cluster.drop()
    renew(leader, 5.0)
    answer(cluster, leader, "b")
    assert since(leader) == 5.0
    cluster["b"].crash()
    cluster["b"].start()
    cluster.heal()
    cluster.isolate("a")
    cluster["b"].tick(ticks)
    assert stand(cluster, "c") is (ticks == ELECTION)


@pytest.mark.parametrize("seed", range(20))
def test_nor_does_it_stand_itself(seed: int) -> None:
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of("a", "b", "c"))
    storage.append([entry])
    storage.sync()
    options = RaftOptions("b")
    rng = random.Random(seed)
    raft = Raft(options, storage, storage.hard_state, 0, Configuration(), rng)
    raft.step(Message(MessageType.HEARTBEAT, "a", "b", 2, context=1))
    for _ in range(ELECTION - 1):
        raft.tick()
        assert raft.state is State.FOLLOWER
    for _ in range(ELECTION):
        raft.tick()
    assert raft.leader_id == ""


@BOUNDARY
def test_nor_if_it_installs_a_snapshot(ticks: int) -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("c")
    leader.propose(*[b"x"] * 10)
    cluster.settle()
    leader.cut()
    cluster.heal()
    cluster.isolate("b")
    renew(leader, 5.0)
    cluster.settle()
    assert since(leader) == 5.0
    leader.tick()  # c answers, so it is fed
    cluster.settle()
    assert cluster["c"].machine.index == leader.machine.index
    cluster.heal()
    cluster.isolate("a")
    cluster["b"].tick(2 * ELECTION)
    cluster["c"].tick(ticks)
    assert stand(cluster, "b") is (ticks == ELECTION)


@BOUNDARY
def test_no_change_of_members_ends_a_lease_before_its_time(ticks: int) -> None:
    """Of five voters three have not been asked: two are new. But they have acknowledged the
    changes that made them voters, and that binds them for longer than the lease."""
    cluster, leader = leader_of("a", "b", "c")
    for name in "de":
        learner(cluster, leader, name)
    cluster.drop()
    renew(leader, 5.0)
    answer(cluster, leader, "b")
    assert since(leader) == 5.0
    for name in "de":
        leader.change(lambda name=name: leader.raft.promote(name))  # type: ignore[misc]
        answer(cluster, leader, "c", "d", "e")
    assert leader.raft.configuration.quorum == 3
    assert leader.raft.commit_index == leader.raft.last_index
    assert since(leader) == 5.0
    cluster.isolate("a", "b")
    for name in "de":
        cluster[name].tick(ticks)
    cluster["c"].tick(2 * ELECTION)
    assert stand(cluster, "c") is (ticks == ELECTION)


# -- who confirms ----------------------------------------------------------------------------------


def test_a_quorum_confirms_and_nobody_less() -> None:
    cluster, leader = leader_of("a", "b", "c", "d", "e")
    renew(leader, 5.0)
    answer(cluster, leader, "b")
    assert since(leader) is None
    leader.tick()  # heartbeats of the same round
    answer(cluster, leader, "c")
    assert since(leader) == 5.0


def ask_by_lease(leader: Node) -> Callable[[], bool]:
    renew(leader, 5.0)
    return lambda: since(leader) == 5.0


def ask_by_read(leader: Node) -> Callable[[], bool]:
    leader.read("one")
    return lambda: leader.answered == [("one", leader.raft.commit_index)]


ASKS = pytest.mark.parametrize("ask", [ask_by_lease, ask_by_read])


@ASKS
def test_a_learner_does_not_confirm(ask: Callable[[Node], Callable[[], bool]]) -> None:
    cluster, leader = leader_of("a", "b", "c")
    learner(cluster, leader, "d")
    is_confirmed = ask(leader)
    answer(cluster, leader, "d")
    assert not is_confirmed()
    leader.tick()
    answer(cluster, leader, "b")
    assert is_confirmed()


@ASKS
def test_a_learner_that_is_promoted_amid_a_round_has_promised_like_anybody(
    ask: Callable[[Node], Callable[[], bool]],
) -> None:
    cluster, leader = leader_of("a", "b")
    learner(cluster, leader, "c")
    is_confirmed = ask(leader)
    answer(cluster, leader, "c")
    assert not is_confirmed()
    leader.change(lambda: leader.raft.promote("c"))
    assert is_confirmed()


@ASKS
def test_a_leader_that_is_being_removed_does_not_count_itself(
    ask: Callable[[Node], Callable[[], bool]],
) -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("a"))
    cluster.drop()  # nobody has acknowledged it
    is_confirmed = ask(leader)
    answer(cluster, leader, "b")
    assert not is_confirmed()
    cluster["b"].crash()
    cluster["b"].start()
    leader.tick()
    answer(cluster, leader, "c")
    assert is_confirmed()


def test_a_leader_alone_needs_no_lease() -> None:
    cluster, leader = leader_of("a")
    renew(leader, 5.0)
    assert since(leader) is None
    assert not leader.raft.is_confirming
    learner(cluster, leader, "b")
    renew(leader, 6.0)
    assert not cluster.network


# -- which round -----------------------------------------------------------------------------------


def test_a_lease_counts_from_before_its_own_round() -> None:
    cluster, leader = leader_of("a", "b", "c")
    renew(leader, 1.0)
    (early, _) = [envelope.message for envelope in cluster.network]
    for now in (2.0, 3.0):
        renew(leader, now)  # while that round is on its way
    answer(cluster, leader, "b")
    assert since(leader) == 1.0
    leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "c", "a", 2, context=early.context))
    assert since(leader) == 1.0
    assert leader.raft.is_confirming
    leader.tick()
    answer(cluster, leader, "c")
    assert since(leader) == 3.0
    assert not leader.raft.is_confirming


def test_nobody_confirms_a_round_that_has_not_begun() -> None:
    cluster, leader = leader_of("a", "b", "c")
    for name in "bc":
        with pytest.raises(ProtocolViolation):
            leader.step(Message(MessageType.HEARTBEAT_RESPONSE, name, "a", 2, context=1000))
    renew(leader, 5.0)
    assert since(leader) is None
    cluster.settle()
    assert since(leader) == 5.0


def test_no_lease_before_the_terms_first_commit() -> None:
    cluster, _ = leader_of("a", "b", "c")
    cluster.isolate("a")
    cluster["b"].tick(2 * ELECTION)
    cluster["c"].tick(2 * ELECTION)
    cluster.drop()
    cluster["b"].campaign()
    while cluster["b"].raft.state is not State.LEADER:
        cluster.deliver(cluster.network.pop(0))
    renew(cluster["b"], 5.0)
    assert not any(e.message.type is MessageType.HEARTBEAT for e in cluster.network)
    cluster.settle()
    assert since(cluster["b"]) == 5.0


def test_a_lease_ends_with_its_term() -> None:
    cluster, leader = leader_of("a", "b", "c")
    renew(leader, 5.0)
    cluster.settle()
    assert since(leader) == 5.0
    late = Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", leader.raft.term, context=1)
    renew(leader, 6.0)
    cluster.drop()
    leader.tick(ELECTION + 1)  # nobody answers: it steps down
    assert leader.raft.state is State.FOLLOWER
    assert since(leader) is None
    cluster.drop()
    assert cluster.elect("a") is leader
    assert since(leader) is None
    renew(leader, 7.0)
    cluster.drop()
    leader.step(late)
    assert since(leader) is None
    leader.tick()
    cluster.settle()
    assert since(leader) == 7.0


def test_a_hand_over_ends_the_leases_of_its_term() -> None:
    cluster, leader = leader_of("a", "b", "c")
    renew(leader, 5.0)
    cluster.settle()
    renew(leader, 6.0)
    leader.raft.transfer_leadership("b")
    leader.drive()
    assert since(leader) is None
    cluster.drop(lambda message: message.type is MessageType.TIMEOUT_NOW)
    for now in range(7, 7 + 2 * ELECTION):
        renew(leader, float(now))
        leader.tick()
        cluster.settle()
        assert leader.raft.state is State.LEADER
        assert since(leader) is None


def test_who_was_asked_to_take_over_does_at_once_and_whenever_it_hears_of_it() -> None:
    """That is why: no promise holds against it."""
    cluster, leader = leader_of("a", "b", "c")
    leader.raft.transfer_leadership("b")
    leader.drive()
    (late,) = cluster.drop()
    leader.tick(2)
    cluster.settle()
    cluster["b"].step(late)
    cluster.isolate("a")
    cluster.settle()
    assert cluster["b"].raft.state is State.LEADER
    assert leader.raft.state is State.LEADER
