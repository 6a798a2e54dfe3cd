"""Faults that real Raft systems have shipped, each with a test that the core does not have it.

Grouped as the faults are: votes and persistence, apply, elections, membership, log and snapshots.
Those of reads are in test_raft_paper.py, thesis 6.4.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.cluster.membership import arbiters_warning
from conure.consensus.members import Configuration, Outlook, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
    State,
)
from conure.errors import (
    Conflict,
    CorruptionError,
    MemberNotFound,
    NotLeader,
    ProtocolViolation,
    Unavailable,
)
from raft import Raft, RaftOptions, Replication, bootstrap
from tests.lab.raft_cluster import Cluster, MemoryLog, Node, configuration_of, server

ELECTION = RaftOptions("").election_ticks
LEAP = 1 << 32
FARTHEST = 1 << 62


def raft_over(
    storage: MemoryLog, configuration: Configuration, *, applied: int = 0, hard_state: HardState
) -> Raft:
    return Raft(RaftOptions("a"), storage, hard_state, applied, configuration, random.Random(1))


def founded(*voters: str) -> tuple[Raft, MemoryLog]:
    """Return a bare core that nobody drives."""
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of(*voters))
    storage.append([entry])
    storage.sync()
    return raft_over(storage, Configuration(), hard_state=storage.hard_state), storage


def state_of(raft: Raft) -> State:
    return raft.state


def suffrage_of(leader: Node, name: str) -> str:
    member = leader.raft.configuration.get(name)
    assert member is not None
    return member.suffrage


def replication_of(leader: Node, name: str) -> Replication:
    return leader.raft.progress[name].state


def visible(raft: Raft) -> tuple[object, ...]:
    """Return what a message may change of a core."""
    return (
        raft.term,
        raft.vote,
        raft.state,
        raft.leader_id,
        raft.commit_index,
        raft.last_index,
        raft.last_term,
        raft.configuration,
    )


def leader_past_the_cut() -> tuple[Cluster, Node]:
    """Return a cluster whose leader, a, has cut away the entries that c missed."""
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("c")
    leader.propose(*[b"x"] * 10)
    cluster.settle()
    leader.cut()
    cluster.heal()
    return cluster, leader


def commands(*positions: tuple[int, int]) -> list[Entry]:
    """Return entries of these terms and indexes."""
    return [Entry(term, index, COMMAND, b"") for term, index in positions]


def take(raft: Raft) -> Ready:
    ready = raft.ready()
    assert ready is not None
    return ready


# -- votes and persistence -----------------------------------------------------------------------


def test_term_and_vote_are_saved_together_before_the_answer() -> None:
    raft, _ = founded("a", "b", "c")
    take(raft)
    raft.step(Message(MessageType.VOTE, "b", "a", 5, index=1, log_term=1))
    ready = take(raft)
    assert ready.hard_state == HardState(5, "b")
    assert [(m.type, m.reject) for m in ready.messages] == [(MessageType.VOTE_RESPONSE, False)]
    assert raft.ready() is None


def test_a_vote_is_saved_even_when_the_term_is_old_news() -> None:
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.VOTE, "b", "a", 5, index=0, log_term=0))
    assert take(raft).hard_state == HardState(5, "")
    raft.step(Message(MessageType.VOTE, "c", "a", 5, index=1, log_term=1))
    assert take(raft).hard_state == HardState(5, "c")


def test_a_candidate_asks_for_votes_with_its_own_already_saved() -> None:
    raft, _ = founded("a", "b", "c")
    raft.campaign()
    raft.step(Message(MessageType.PRE_VOTE_RESPONSE, "b", "a", 2))
    ready = take(raft)
    assert ready.hard_state == HardState(2, "a")
    assert {m.type for m in ready.messages} == {MessageType.PRE_VOTE, MessageType.VOTE}


def test_the_vote_is_kept_within_a_term() -> None:
    """Also by a candidate that finds another leader, and by who learns of one."""
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.VOTE, "b", "a", 5, index=1, log_term=1))
    raft.step(Message(MessageType.HEARTBEAT, "c", "a", 5))
    raft.step(Message(MessageType.PRE_VOTE, "c", "a", 6, index=1, log_term=1))
    assert (raft.term, raft.vote) == (5, "b")
    raft.step(Message(MessageType.HEARTBEAT, "c", "a", 6))
    assert (raft.term, raft.vote) == (6, "")


def test_who_knows_the_leader_of_a_term_votes_for_nobody_in_it() -> None:
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", 5))
    take(raft)
    raft.step(Message(MessageType.VOTE, "c", "a", 5, index=9, log_term=4))
    assert [m.reject for m in take(raft).messages] == [True]
    assert raft.vote == ""


def test_a_lone_voter_leads_when_its_vote_is_durable() -> None:
    raft, storage = founded("a")
    raft.campaign()
    ready = take(raft)
    assert ready.hard_state == HardState(2, "a")
    assert state_of(raft) is State.CANDIDATE
    raft.persisted(ready)
    assert state_of(raft) is State.LEADER
    # An entry is committed when it is durable: on a single node too.
    ready = take(raft)
    storage.append(ready.entries)
    assert raft.ready() is None
    assert raft.commit_index == 0
    raft.persisted(ready)
    assert raft.commit_index == 2


def test_a_candidate_counts_its_own_vote_only_when_it_is_durable() -> None:
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", 1))
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 1))
    ready = take(raft)
    assert ready.hard_state == HardState(2, "a")
    raft.step(Message(MessageType.VOTE_RESPONSE, "b", "a", 2))
    assert state_of(raft) is State.CANDIDATE
    raft.persisted(ready)
    assert state_of(raft) is State.LEADER


def test_a_late_sync_of_something_else_makes_no_vote_durable() -> None:
    """The log of a follower may be synced after its vote was asked for, and before it is."""
    raft, _ = founded("a", "b")
    raft.step(Message(MessageType.APPEND, "b", "a", 1, 1, 1, entries=commands((1, 2))))
    entries = take(raft)
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 1))
    assert state_of(raft) is State.CANDIDATE
    raft.persisted(entries)
    raft.step(Message(MessageType.VOTE_RESPONSE, "b", "a", 2))
    assert state_of(raft) is State.CANDIDATE
    vote = take(raft)
    assert vote.hard_state == HardState(2, "a")
    raft.persisted(vote)
    assert state_of(raft) is State.LEADER


def test_a_late_sync_of_an_earlier_vote_does_not_count_for_a_later_one() -> None:
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", 1))
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 1))
    first = take(raft)
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", 5))
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 5))
    assert (raft.term, raft.vote, state_of(raft)) == (6, "a", State.CANDIDATE)
    raft.persisted(first)
    raft.step(Message(MessageType.VOTE_RESPONSE, "b", "a", 6))
    assert state_of(raft) is State.CANDIDATE
    raft.persisted(take(raft))
    assert state_of(raft) is State.LEADER


def test_a_new_leader_is_told_nothing_of_what_was_verified_for_the_last() -> None:
    raft, _ = founded("a", "b", "c")
    entries = [Entry(2, index, COMMAND, b"") for index in (2, 3)]
    raft.step(Message(MessageType.APPEND, "b", "a", 2, 1, 1, entries=entries))
    raft.persisted(take(raft))
    assert [m.index for m in take(raft).messages] == [3]
    raft.step(Message(MessageType.APPEND, "c", "a", 3, 1, 1))
    assert [(m.to, m.index) for m in take(raft).messages] == [("c", 1)]


def test_an_acknowledgement_waits_for_the_sync_and_covers_all_of_it() -> None:
    raft, storage = founded("a", "b", "c")
    take(raft)
    waiting = []
    for index, term in ((1, 1), (2, 5), (3, 5)):
        entry = Entry(5, index + 1, COMMAND, b"x")
        raft.step(Message(MessageType.APPEND, "b", "a", 5, index, term, entries=[entry]))
        ready = take(raft)
        assert not ready.messages
        storage.append(ready.entries)
        waiting.append(ready)
    raft.persisted(waiting[0])
    raft.persisted(waiting[1])
    assert [m.index for m in take(raft).messages] == [2, 3]
    raft.persisted(waiting[2])
    assert [m.index for m in take(raft).messages] == [4]
    # Asked again about what is durable, it answers again: the first answer may be lost.
    raft.step(Message(MessageType.APPEND, "b", "a", 5, index=4, log_term=5))
    assert [m.index for m in take(raft).messages] == [4]


def test_a_late_sync_of_replaced_entries_counts_for_nothing() -> None:
    """Entry 2 of term 5 is written, replaced, and written again: the first sync may be reported
    after the second write has begun."""
    raft, storage = founded("a", "b", "c")
    take(raft)
    old, other = Entry(5, 2, COMMAND, b"old"), Entry(6, 2, COMMAND, b"other")
    readies = []
    for leader, term, entry in (("b", 5, old), ("c", 6, other), ("b", 7, old)):
        raft.step(Message(MessageType.APPEND, leader, "a", term, 1, 1, entries=[entry]))
        readies.append(take(raft))
        storage.append(readies[-1].entries)
    raft.persisted(readies[0])
    raft.persisted(readies[1])
    assert [m.index for m in take(raft).messages] == [1]  # what is before it is durable
    raft.persisted(readies[2])
    assert [m.index for m in take(raft).messages] == [2]


def test_a_late_sync_of_what_a_snapshot_replaced_counts_for_nothing() -> None:
    raft, storage = founded("a", "b", "c")
    members = configuration_of("a", "b", "c").encode()
    first, second = SnapshotMeta(4, 3, members), SnapshotMeta(8, 3, members)
    late = [Entry(2, index, COMMAND, b"") for index in range(2, 7)]
    new = [Entry(3, index, COMMAND, b"") for index in (5, 6)]
    readies = []
    for message in (
        Message(MessageType.APPEND, "b", "a", 2, 1, 1, entries=late),
        Message(MessageType.SNAPSHOT, "c", "a", 3, snapshot=first),
        Message(MessageType.APPEND, "c", "a", 3, 4, 3, entries=new),
        Message(MessageType.SNAPSHOT, "c", "a", 3, snapshot=second),
    ):
        raft.step(message)
        readies.append(take(raft))
    for ready in readies[:3]:
        raft.persisted(ready)
        assert raft.ready() is None
    storage.reset(second)
    raft.persisted(readies[3])
    assert [(m.to, m.index) for m in take(raft).messages] == [("c", 8)]


def test_a_node_that_lost_its_disk_is_no_voter_until_it_is_brought_up() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster["c"].crash()
    del cluster.nodes["c"]
    wiped = cluster.add("c")
    wiped.starts = 1
    wiped.start()
    wiped.step(Message(MessageType.VOTE, "b", "c", 3, index=2, log_term=2))
    wiped.step(Message(MessageType.PRE_VOTE, "b", "c", 9, index=2, log_term=2))
    assert [message.reject for message in cluster.drop()] == [True, True]
    wiped.tick(5 * ELECTION)
    assert not cluster.network


def test_a_founder_that_lost_its_disk_founds_nothing_again() -> None:
    """Back as a learner it meets the first configuration, of its earlier life alone, in the log
    that it is sent. It must not lead before it meets itself; nor when it starts again meanwhile."""
    before, now = (Configuration((server("a", incarnation=life),)) for life in ("old", "new"))
    options = RaftOptions("a", incarnation="new")
    storage = MemoryLog()
    raft = Raft(options, storage, HardState(), 0, Configuration(), random.Random(1))
    first = Entry(1, 1, CONFIG, before.encode())
    raft.step(Message(MessageType.APPEND, "b", "a", 3, commit=9, entries=[first]))
    storage.append(take(raft).entries)
    storage.sync()
    for _ in range(3 * ELECTION):
        raft.tick()
    again = Raft(options, storage, HardState(3), 0, Configuration(), random.Random(1))
    again.campaign()
    again.step(Message(MessageType.HEARTBEAT, "b", "a", 3))
    again.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 3))
    assert (raft.state, raft.term) == (again.state, again.term) == (State.FOLLOWER, 3)
    later = Entry(3, 2, CONFIG, now.encode())
    again.step(Message(MessageType.APPEND, "b", "a", 3, 1, 1, entries=[later]))
    again.campaign()
    assert state_of(again) is State.CANDIDATE


def test_a_voter_that_lost_its_disk_is_not_flooded_by_its_leader() -> None:
    """It refuses what it once acknowledged: asked again with each heartbeat, not without end."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster["c"].crash()
    del cluster.nodes["c"]
    wiped = cluster.add("c")
    wiped.starts = 1
    wiped.start()
    leader.propose(b"x")
    for _ in range(3):
        leader.tick()
        cluster.settle(30)
    assert replication_of(leader, "c") is Replication.PROBE


def test_a_commit_index_beyond_the_log_is_clamped() -> None:
    raft, _ = founded("a", "b", "c")
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", 5, commit=99))
    assert raft.commit_index == 1
    raft.step(
        Message(
            MessageType.APPEND, "b", "a", 5, 1, 1, commit=99, entries=[Entry(5, 2, COMMAND, b"")]
        )
    )
    assert raft.commit_index == 2


def test_a_late_append_commits_only_what_it_compared() -> None:
    """The follower's own entries behind the compared ones may be somebody else's."""
    raft, storage = founded("a", "b", "c")
    storage.append([Entry(2, 2, COMMAND, b"mine"), Entry(2, 3, COMMAND, b"mine")])
    raft = raft_over(storage, Configuration(), hard_state=HardState(2, ""))
    raft.step(Message(MessageType.APPEND, "b", "a", 5, index=1, log_term=1, commit=3))
    assert raft.commit_index == 1


# -- apply ---------------------------------------------------------------------------------------


def test_committed_entries_are_handed_out_once_in_order_and_only_when_durable() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.manual_sync = True
    leader.propose(b"x", b"y")
    cluster.settle()
    # The followers have made it a commit; the leader's own disk hasn't got it yet.
    assert leader.raft.commit_index == 4
    assert leader.raft.applied_index == 2
    leader.sync()
    assert leader.raft.applied_index == 4


def test_a_restart_begins_behind_what_was_applied_durably() -> None:
    cluster = Cluster("a", options=RaftOptions("", max_append_bytes=100))
    node = cluster.elect("a")
    node.propose(*[b"%d" % i for i in range(50)])
    node.checkpoint = node.machine
    node.propose(*[b"%d" % i for i in range(50)])
    digest = node.machine
    node.crash()
    node.start()
    assert node.machine.index == 52
    node.campaign()
    assert node.machine.index == 103
    assert (digest.index, node.raft.term) == (102, 3)


def test_what_is_refused_changes_nothing() -> None:
    cluster = Cluster("a", "b", options=RaftOptions("", max_uncommitted_bytes=10))
    leader = cluster.elect("a")
    with pytest.raises(NotLeader) as refusal:
        cluster["b"].raft.propose([b"x"])
    assert refusal.value.leader_id == "a"
    assert refusal.value.leader == "a:7001"
    assert refusal.value.leader_http == "http://a:8081"
    cluster.isolate("b")
    leader.propose(b"12345", b"67890")
    cluster.settle()
    before = leader.raft.last_index
    with pytest.raises(Unavailable, match="wait for a quorum"):
        leader.propose(b"x")
    assert leader.raft.last_index == before
    cluster.heal()
    cluster.tick_all(2)
    leader.propose(b"x")


# -- elections -----------------------------------------------------------------------------------


def test_a_node_at_an_early_term_learns_of_a_later_one_by_asking() -> None:
    """It has the log, the other has the term, and pre-votes change no term: a refusal that
    carries the term is the only way out."""
    cluster = Cluster("a", "b", "c")
    cluster["c"].crash()
    ahead = cluster["b"]
    ahead.crash()
    ahead.storage.hard_state = HardState(9, "b")
    ahead.start()
    cluster["a"].crash()
    cluster["a"].storage.append([Entry(1, 2, COMMAND, b"x")])
    cluster["a"].storage.sync()
    cluster["a"].start()
    cluster.tick_all(4 * ELECTION)
    assert state_of(cluster["a"].raft) is State.LEADER
    assert cluster["a"].raft.term == 10


def test_a_new_leader_is_given_time_to_be_answered() -> None:
    leader = Cluster("a", "b", "c")["a"]
    leader.tick(3 * ELECTION)
    leader.campaign()
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        leader.step(Message(kind, "b", "a", 2))
    leader.tick(ELECTION)
    assert state_of(leader.raft) is State.LEADER
    leader.tick()
    assert state_of(leader.raft) is State.FOLLOWER


def test_a_leader_in_a_minority_steps_down_and_the_majority_elects() -> None:
    cluster = Cluster("a", "b", "c", "d", "e")
    old = cluster.elect("a")
    cluster.isolate("a", "b")
    cluster.tick_all(4 * ELECTION)
    assert old.raft.state is not State.LEADER
    new = cluster.leader
    assert new is not None
    assert new.id in "cde"


@pytest.mark.parametrize(
    "kind",
    [
        MessageType.PRE_VOTE_RESPONSE,
        MessageType.VOTE_RESPONSE,
        MessageType.APPEND_RESPONSE,
        MessageType.HEARTBEAT_RESPONSE,
    ],
)
def test_a_late_answer_does_not_part_a_follower_from_its_leader(kind: MessageType) -> None:
    """b asked c while it heard nobody, and now hears a again, which may read by a lease. If c's
    answer from a later term made b forget that, b would vote for c within the lease."""
    cluster, leader = leader_of("a", "b", "c")
    follower = cluster["b"]
    follower.step(Message(kind, "c", "b", 3, reject=True))
    follower.step(Message(MessageType.VOTE, "c", "b", 4, index=9, log_term=2))
    assert (follower.raft.term, follower.raft.leader_id) == (2, "a")
    assert not cluster.network
    # The leader learns of the later term from c itself, and who hears no leader from any answer.
    cluster.isolate("a")
    follower.tick(2 * ELECTION)
    cluster.drop()
    follower.step(Message(kind, "c", "b", 3, reject=True))
    assert follower.raft.term == 3
    assert leader.raft.state is State.LEADER


def test_a_bridge_keeps_one_leader() -> None:
    """a and b can't reach each other, c reaches both: nobody's term runs away."""
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.cut_links = {("a", "b"), ("b", "a")}
    cluster.tick_all(6 * ELECTION)
    assert cluster["a"].raft.state is State.LEADER
    assert cluster["c"].raft.term == 2
    cluster["a"].crash()
    cluster.tick_all(4 * ELECTION)
    assert cluster.leader is not None


def test_a_bridge_of_five_elects_who_reaches_a_majority() -> None:
    """The leader loses its majority; only the middle reaches both sides."""
    cluster = Cluster("a", "b", "c", "d", "e")
    cluster.elect("a")
    for one in "ab":
        for other in "de":
            cluster.cut_links |= {(one, other), (other, one)}
    cluster.cut_links |= {("a", "c"), ("c", "a")}
    cluster.tick_all(10 * ELECTION)
    assert cluster["a"].raft.state is not State.LEADER
    leader = cluster.leader
    assert leader is not None
    leader.propose(b"x")
    cluster.settle()
    assert leader.raft.applied_index == leader.raft.last_index


def test_a_pre_vote_looks_at_the_log() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.isolate("c")
    leader.propose(b"x")
    cluster.settle()
    cluster["a"].crash()
    cluster.heal()
    cluster["b"].tick(ELECTION)
    cluster.drop()
    cluster["c"].campaign()
    cluster.settle()
    assert cluster["c"].raft.state is not State.CANDIDATE
    assert cluster["c"].raft.term == 2
    cluster.elect("b")


def test_a_leader_that_comes_back_begins_afresh() -> None:
    """What the last leadership left uncommitted or half handed over refuses no proposal."""
    cluster = Cluster("a", "b", "c", options=RaftOptions("", max_uncommitted_bytes=1))
    leader = cluster.elect("a")
    cluster.isolate("a")
    leader.propose(b"x")
    with pytest.raises(Unavailable):
        leader.propose(b"y")
    leader.raft.transfer_leadership("b")
    leader.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 3, reject=True))
    assert state_of(leader.raft) is State.FOLLOWER
    cluster.heal()
    cluster.drop()
    cluster.elect("a")
    assert leader.propose(b"y") == 5


def test_a_transfer_answers_the_leaders_own_stickiness() -> None:
    """A candidate that the leader sent may depose it; any other may not."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    vote = Message(MessageType.VOTE, "b", "a", 3, index=2, log_term=2)
    leader.step(vote)
    assert state_of(leader.raft) is State.LEADER
    vote.force = True
    leader.step(vote)
    assert state_of(leader.raft) is State.FOLLOWER
    assert leader.raft.vote == "b"


def test_a_hand_over_is_remembered_for_the_rest_of_the_term() -> None:
    """Its target may be elected at any later time, by who hears this leader: no lease holds."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    assert not leader.raft.has_handed_over
    leader.raft.transfer_leadership("a")
    assert not leader.raft.has_handed_over
    leader.raft.transfer_leadership("b")
    leader.drive()
    cluster.drop()
    for _ in range(2 * ELECTION):
        leader.tick()
        cluster.settle()
        assert leader.raft.has_handed_over
    leader.propose(b"x")  # given up long ago
    cluster.settle()
    cluster.elect("b")
    assert not cluster.elect("a").raft.has_handed_over


def test_a_leader_that_removes_itself_hands_over() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.remove("a"))
    while leader.raft.commit_index != leader.raft.last_index:
        cluster.deliver(cluster.network.pop(0))
    assert leader.raft.state is State.LEADER
    assert leader.raft.has_handed_over


# -- room in the log -----------------------------------------------------------------------------


def ticks_until_it_stands(raft: Raft) -> int:
    """Return how long after a leader's last word a follower asks for votes."""
    raft.step(Message(MessageType.HEARTBEAT, "b", "a", max(raft.term, 2)))
    count = 0
    while state_of(raft) is State.FOLLOWER:
        raft.tick()
        count += 1
    return count


def test_who_has_no_room_lets_others_stand_first_but_stands() -> None:
    raft, _ = founded("a", "b", "c")
    for _ in range(20):
        raft.note_room(True)
        assert ELECTION <= ticks_until_it_stands(raft) < 2 * ELECTION
        raft.note_room(False)
        assert 3 * ELECTION <= ticks_until_it_stands(raft) < 4 * ELECTION


def test_who_has_no_room_for_the_no_ops_of_many_terms_does_not_stand() -> None:
    raft, _ = founded("a", "b", "c")
    entries = [Entry(2, index, COMMAND, b"") for index in range(2, 66)]
    raft.step(Message(MessageType.APPEND, "b", "a", 2, 1, 1, entries=entries))
    ready = take(raft)
    raft.note_room(False)
    raft.campaign()
    assert state_of(raft) is State.FOLLOWER
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 2))
    assert state_of(raft) is State.FOLLOWER
    raft.persisted(ready)
    raft.campaign()
    assert state_of(raft) is State.PRE_CANDIDATE


def test_a_leader_without_room_hands_over_to_who_holds_what_it_does_not() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.raft.note_room(False)
    cluster.tick_all(3 * ELECTION)
    assert cluster.leader is leader  # it has no less than the others
    leader.manual_sync = True
    cluster.isolate("b")
    leader.propose(b"x")
    cluster.tick_all(ELECTION + 1)
    assert cluster.leader is cluster["c"]


def test_a_leader_with_room_is_only_slow() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.manual_sync = True
    leader.propose(b"x")
    cluster.tick_all(3 * ELECTION)
    assert cluster.leader is leader


def test_a_leader_reads_by_the_state_before_its_own_no_op() -> None:
    """Others hold its NOOP durably and it doesn't: nothing of the state is in there."""
    cluster, leader = leader_of("a", "b", "c")
    leader.propose(b"x")
    cluster.settle()
    before = leader.machine.index
    other = cluster["b"]
    other.manual_sync = True
    leader.raft.transfer_leadership("b")
    leader.drive()
    cluster.settle()  # the others elect it
    assert other.raft.state is State.LEADER
    assert other.raft.commit_index > other.machine.index == before
    assert (other.raft.state_index, other.raft.may_read) == (before, True)
    other.read("r1")
    cluster.settle()
    assert other.answered[-1] == ("r1", before)
    other.propose(b"y")
    cluster.settle()
    assert other.raft.state_index == other.raft.commit_index > before
    other.read("r2")  # a command that it could not apply yet is no part of what it shows
    cluster.settle()
    assert other.answered[-1][0] == "r1"
    other.sync()
    cluster.settle()
    assert other.answered[-1] == ("r2", other.machine.index)


def test_a_vote_of_ones_own_need_not_wait_for_entries_that_wait_for_room() -> None:
    raft, _ = founded("a", "b", "c")
    entry = Entry(2, 2, COMMAND, b"x")
    raft.step(Message(MessageType.APPEND, "b", "a", 2, 1, 1, entries=[entry]))
    raft.step(Message(MessageType.TIMEOUT_NOW, "b", "a", 2))
    ready = take(raft)
    assert ready.entries
    raft.step(Message(MessageType.VOTE_RESPONSE, "b", "a", 3))
    assert state_of(raft) is State.CANDIDATE
    raft.persisted(Ready(hard_state=ready.hard_state))
    assert state_of(raft) is State.LEADER
    take(raft)
    assert raft.commit_index == 0
    raft.persisted(ready)
    raft.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 3, index=3))
    assert raft.commit_index == 0  # of two, itself and b, it has not yet made durable what counts


# -- membership ----------------------------------------------------------------------------------


def leader_of(*names: str) -> tuple[Cluster, Node]:
    cluster = Cluster(*names)
    return cluster, cluster.elect(names[0])


def test_no_change_before_an_entry_of_the_term_is_committed() -> None:
    node = Cluster("a", "b", "c")["a"]
    node.campaign()
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        node.step(Message(kind, "b", "a", 2))
    assert node.raft.state is State.LEADER
    with pytest.raises(Unavailable, match="just been elected"):
        node.raft.remove("c")


def test_a_configuration_goes_with_its_entry() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("a")
    leader.change(lambda: leader.raft.remove("c"))
    assert leader.raft.configuration == configuration_of("a", "b")
    cluster.settle()
    cluster.elect("b")
    cluster.heal()
    cluster.tick_all(2)
    assert leader.raft.configuration == configuration_of("a", "b", "c")


def test_an_unreachable_server_costs_a_lone_voter_nothing() -> None:
    cluster, leader = leader_of("a")
    leader.change(lambda: leader.raft.add_learner(server("z")))
    leader.propose(b"x")
    assert leader.raft.applied_index == 4
    cluster.settle()
    leader.tick(5 * ELECTION)
    with pytest.raises(Unavailable, match="caught up"):
        leader.raft.promote("z")
    assert leader.raft.state is State.LEADER
    leader.change(lambda: leader.raft.remove("z"))
    leader.propose(b"y")
    assert leader.raft.applied_index == 6


def test_a_dead_node_can_be_replaced() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    cluster.add("d").start()
    leader.change(lambda: leader.raft.add_learner(server("d")))
    cluster.tick_all(2)
    leader.change(lambda: leader.raft.promote("d"))
    cluster.settle()
    leader.change(lambda: leader.raft.remove("c"))
    cluster.tick_all(2)
    assert cluster["d"].raft.configuration.voters == ("a", "b", "d")
    assert cluster["d"].raft.commit_index == leader.raft.last_index


def test_a_change_that_would_lose_the_quorum_is_refused() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    with pytest.raises(Conflict, match=r"only 1 of the 2 voters .* 2 must: .* force"):
        leader.raft.remove("b")
    leader.change(lambda: leader.raft.remove("c"))


def test_members_are_told_from_each_other() -> None:
    _, leader = leader_of("a", "b")
    raft = leader.raft
    with pytest.raises(MemberNotFound):
        raft.remove("z")
    with pytest.raises(MemberNotFound):
        raft.promote("z")
    with pytest.raises(Conflict, match="has the address b:7001"):
        raft.add_learner(Server("z", "b:7001"))
    with pytest.raises(Conflict, match="role data"):
        raft.add_learner(server("b", role="arbiter"))
    lone = Cluster("a", arbiters="x").elect("a").raft
    with pytest.raises(Conflict, match="arbiter"):
        lone.remove("a")
    with pytest.raises(Conflict, match="last voter"):
        Cluster("a").elect("a").raft.remove("a")


def test_a_member_may_move_without_losing_its_vote() -> None:
    cluster, leader = leader_of("a", "b", "c")
    moved = Server("b", "elsewhere:7001", "http://elsewhere:8081")
    index = leader.change(lambda: leader.raft.add_learner(moved))
    cluster.settle()
    assert cluster["c"].raft.configuration.get("b") == moved
    assert cluster["c"].raft.configuration.voters == ("a", "b", "c")
    assert leader.change(lambda: leader.raft.add_learner(moved)) == index
    assert leader.raft.last_index == index


def test_members_may_change_places_in_one_entry() -> None:
    cluster, leader = leader_of("a", "b", "c", "d")
    voters = leader.raft.configuration.voters
    swapped = [Server("b", "c:7001", "http://c:8081"), Server("c", "b:7001", "http://b:8081")]
    index = leader.raft.last_index
    leader.change(lambda: leader.raft.move(swapped))
    cluster.settle()
    assert leader.raft.last_index == index + 1
    members = cluster["d"].raft.configuration
    assert [members.get("b"), members.get("c")] == swapped
    assert members.voters == voters
    known = members.get("d")
    assert known is not None
    there = Server("d", "z:7001", "http://z:8081", "nonvoter", "arbiter", "another")
    leader.change(lambda: leader.raft.move([there]))  # its addresses and nothing else of it
    assert leader.raft.configuration.get("d") == replace(
        known, raft_address="z:7001", http_address="http://z:8081"
    )
    cluster.settle()
    with pytest.raises(Conflict, match="one address"):
        leader.raft.move([Server("b", "z:7001")])
    with pytest.raises(MemberNotFound):
        leader.raft.move([Server("z", "z:7001")])


def test_a_removed_leader_steps_down_even_if_nobody_takes_over() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("a"))
    for _ in range(ELECTION):
        assert leader.raft.state is State.LEADER
        while cluster.network:
            cluster.drop(lambda message: message.type is MessageType.TIMEOUT_NOW)
            if cluster.network:
                cluster.deliver(cluster.network.pop(0))
        leader.tick()
    assert state_of(leader.raft) is State.FOLLOWER


def test_a_removed_node_keeps_quiet_once_it_knows() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    cluster["c"].tick(10 * ELECTION)
    assert not cluster.network
    cluster["c"].step(Message(MessageType.HEARTBEAT, "a", "c", 2))
    cluster.network.clear()  # its answer
    cluster["c"].step(Message(MessageType.TIMEOUT_NOW, "a", "c", 2))
    assert not cluster.network


def test_who_was_removed_and_added_again_does_not_stand_for_what_it_was_before() -> None:
    """After a restart it knows of no commit, but that the second change followed on the first.
    A leader that is no voter would be left as it is: it promotes others, when they catch up."""
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    leader.change(lambda: leader.raft.add_learner(server("c", "staging")))
    cluster.settle()
    again = cluster["c"]
    assert again.raft.last_index == leader.raft.last_index
    again.crash()
    again.start()
    assert again.raft.commit_index == 0
    again.tick(10 * ELECTION)
    again.step(Message(MessageType.TIMEOUT_NOW, "a", "c", again.raft.term))
    assert not cluster.network
    cluster.tick_all(3)
    assert suffrage_of(leader, "c") == "voter"


def test_an_arbiter_is_sent_positions_and_never_leads() -> None:
    cluster = Cluster("a", "b", arbiters="x")
    leader = cluster.elect("a")
    cluster["b"].crash()
    leader.propose(b"secret")
    cluster.settle()
    assert leader.raft.commit_index == 3  # by the arbiter's acknowledgement
    assert [entry.data for entry in cluster["x"].storage.log if entry.kind == COMMAND] == [b""]
    assert [entry.kind for entry in cluster["x"].storage.log].count(CONFIG) == 1
    leader.crash()
    cluster["x"].tick(10 * ELECTION)
    cluster["x"].campaign()
    assert cluster["x"].raft.state is State.FOLLOWER
    # What that blocks: b lacks the entry, and the arbiter says so. It comes back with a.
    cluster["b"].start()
    cluster.tick_all(5 * ELECTION)
    assert cluster.leader is None
    leader.start()
    cluster.tick_all(5 * ELECTION)
    assert leader.raft.state is State.LEADER
    assert cluster["b"].machine.index == leader.machine.index


def test_an_arbiter_holds_nothing_that_its_leader_may_lose() -> None:
    """Or it is left alone with the longest log, and lets nobody win."""
    cluster = Cluster("a", "b", arbiters="x")
    leader = cluster.elect("a")
    cluster["b"].crash()
    leader.manual_sync = True
    leader.propose(b"one")
    cluster.settle()
    assert cluster["x"].raft.last_index == 2
    leader.sync()
    cluster.settle()
    assert cluster["x"].raft.last_index == leader.raft.commit_index == 3


@pytest.mark.parametrize(
    ("data", "arbiters", "lost", "is_blocked"),
    [
        ("abc", "", "a", False),
        ("abc", "x", "a", True),  # what three data nodes survive
        ("abcd", "x", "a", False),
        ("abcd", "x", "ab", True),  # as any two of four would
        ("abcde", "", "ab", False),
        ("abcde", "x", "ab", True),
        ("abcde", "x", "a", False),
    ],
)
def test_what_an_arbiter_has_taken_can_block_who_is_left(
    data: str, arbiters: str, lost: str, is_blocked: bool
) -> None:
    """The entry isn't even committed: its leader and the arbiter have it; the leader is lost."""
    cluster = Cluster(*data, arbiters=arbiters)
    leader = cluster.elect("a")
    leader.propose(b"one")
    cluster.drop(lambda message: message.to not in arbiters)
    cluster.settle()
    assert leader.raft.commit_index < leader.raft.last_index
    for name in arbiters:
        assert cluster[name].raft.last_index == leader.raft.last_index
    for name in lost:
        cluster[name].crash()
    cluster.tick_all(10 * ELECTION)
    assert (cluster.leader is None) == is_blocked
    warning = arbiters_warning(leader.raft.configuration)
    assert bool(warning) == (arbiters != "" and len(data) in (3, 5))
    if warning:
        assert f"{len(data)} data nodes and an arbiter can be blocked" in warning


def test_a_staging_server_becomes_a_voter_by_itself() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.tick_all(3)
    assert suffrage_of(leader, "d") == "staging"  # it doesn't even run
    assert leader.raft.configuration.quorum == 2
    cluster.add("d").start()
    cluster.tick_all(2)
    assert suffrage_of(leader, "d") == "voter"
    assert cluster["d"].raft.configuration.voters == ("a", "b", "c", "d")


def test_a_learner_that_answers_but_lags_is_not_promoted() -> None:
    """It would make every commit wait for what it still has to be sent (thesis 4.2.1)."""
    options = RaftOptions("", max_inflight=1, max_append_bytes=40)
    cluster = Cluster("a", "b", options=options)
    leader = cluster.elect("a")
    leader.propose(*[b"x"] * 50)
    cluster.settle()
    leader.tick(ELECTION)
    cluster.settle()
    cluster.add("c").start()
    leader.change(lambda: leader.raft.add_learner(server("c", "staging")))
    for _ in range(5 * ELECTION):
        leader.tick()
        leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", 2))
        leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "c", "a", 2))
        cluster.drop(lambda message: message.to == "c")
        with pytest.raises(Unavailable, match="caught up"):
            leader.raft.promote("c")
    assert suffrage_of(leader, "c") == "staging"
    cluster.tick_all(2)
    assert suffrage_of(leader, "c") == "voter"


def test_a_learner_for_good_is_not_promoted() -> None:
    cluster, leader = leader_of("a", "b")
    cluster.add("c").start()
    leader.change(lambda: leader.raft.add_learner(server("c")))
    cluster.tick_all(2 * ELECTION)
    assert leader.raft.caught_up("c")
    assert suffrage_of(leader, "c") == "nonvoter"


def test_staging_servers_are_promoted_one_at_a_time() -> None:
    cluster, leader = leader_of("a", "b", "c")
    for joining in (server("d", "staging"), server("e", "staging")):
        cluster.add(joining.id).start()
        leader.change(partial(leader.raft.add_learner, joining))
        cluster.settle()
    leader.tick()
    cluster.drop(lambda message: message.type is MessageType.HEARTBEAT)
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "staging"]
    leader.tick(2)
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "staging"]
    cluster.settle()
    leader.tick()
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "voter"]


def test_nobody_is_promoted_while_leadership_is_handed_over() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.add("d").start()
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.settle()
    leader.raft.transfer_leadership("b")
    leader.tick()
    assert suffrage_of(leader, "d") == "staging"


def test_the_next_leader_promotes_whom_the_last_one_added() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.settle()
    cluster.add("d").start()
    leader.crash()
    new = cluster["b"]
    cluster.isolate("b")
    new.tick(2 * ELECTION)
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        new.step(Message(kind, "c", "b", 3))
    cluster.drop()
    new.tick()
    assert state_of(new.raft) is State.LEADER
    assert suffrage_of(new, "d") == "staging"  # nothing of this term is committed (R4)
    cluster.heal()
    cluster.tick_all(3)
    assert suffrage_of(new, "d") == "voter"


def test_adding_again_never_takes_a_vote_away() -> None:
    cluster, leader = leader_of("a", "b")

    def add(name: str, suffrage: str) -> str:
        leader.change(lambda: leader.raft.add_learner(server(name, suffrage)))
        cluster.settle()
        return suffrage_of(leader, name)

    assert [add("b", suffrage) for suffrage in ("nonvoter", "staging")] == ["voter", "voter"]
    assert [add("c", suffrage) for suffrage in ("voter", "nonvoter")] == ["nonvoter", "nonvoter"]
    assert [add("c", suffrage) for suffrage in ("staging", "nonvoter")] == ["staging", "staging"]


def test_a_member_with_another_disk_is_not_taken_for_itself() -> None:
    """It would vote and acknowledge as if it had not forgotten what it did before."""
    cluster, leader = leader_of("a", "b", "c")
    raft = leader.raft

    def add(incarnation: str) -> None:
        leader.change(lambda: raft.add_learner(server("c", incarnation=incarnation)))
        cluster.settle()

    add("first")  # the founders' directories may not have been known yet
    add("first")
    for other in ("second", ""):
        with pytest.raises(Conflict, match="another data directory; remove it first"):
            raft.add_learner(server("c", incarnation=other))
    leader.change(lambda: raft.remove("c"))
    cluster.settle()
    add("second")
    member = raft.configuration.get("c")
    assert member is not None
    assert (member.incarnation, member.suffrage) == ("second", "nonvoter")


def test_force_skips_the_refusal_for_want_of_voters_and_nothing_else() -> None:
    cluster, leader = leader_of("a", "b", "c")
    raft = leader.raft
    with pytest.raises(MemberNotFound):
        raft.remove("z", force=True)
    with pytest.raises(Conflict, match="last voter"):
        Cluster("a").elect("a").raft.remove("a", force=True)
    with pytest.raises(Conflict, match="arbiter"):
        Cluster("a", arbiters="x").elect("a").raft.remove("a", force=True)
    with pytest.raises(NotLeader):
        cluster["b"].raft.remove("c", force=True)
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    leader.change(lambda: raft.remove("b", force=True))
    assert raft.configuration.voters == ("a", "c")
    with pytest.raises(Unavailable, match="under way"):
        raft.add_learner(server("d"))
    cluster["c"].start()
    cluster.tick_all(3 * ELECTION)
    assert cluster.leader is not None
    assert cluster.leader.raft.configuration.voters == ("a", "c")


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_forced_removal_leaves_the_rest_an_election_time_out_to_answer(comes_back: bool) -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    leader.change(lambda: leader.raft.remove("b", force=True))
    leader.tick(ELECTION - 1)
    assert leader.raft.state is State.LEADER
    if comes_back:
        cluster["c"].start()
    leader.tick()
    cluster.settle()
    leader.tick()
    assert (leader.raft.state is State.LEADER) is comes_back


def test_the_outlook_counts_who_answers() -> None:
    cluster, leader = leader_of("a", "b", "c", "d", "e")
    raft = leader.raft
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=5)
    assert raft.outlook().tolerates == 2
    cluster["e"].crash()
    cluster.tick_all(ELECTION + 1)
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=4)
    assert raft.outlook().tolerates == 1
    assert raft.outlook(raft.check_removal("e")) == Outlook(voters=4, quorum=3, active=4)
    assert raft.outlook(raft.check_removal("d")) == Outlook(voters=4, quorum=3, active=3)
    assert raft.outlook(raft.check_addition(server("f"))) == raft.outlook()
    assert Outlook(voters=3, quorum=2, active=1).tolerates == 0
    with pytest.raises(NotLeader):
        cluster["b"].raft.outlook()


def test_an_answer_of_the_tick_in_which_it_was_asked_for_may_be_an_older_one() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.tick()
    cluster.settle()
    asked = leader.raft.ticks
    assert not leader.raft.have_answered(leader.raft.configuration, asked)
    leader.tick()
    assert not leader.raft.have_answered(leader.raft.configuration, asked)
    cluster.settle()
    assert leader.raft.have_answered(leader.raft.configuration, asked)


def test_a_dry_run_changes_nothing() -> None:
    cluster, leader = leader_of("a", "b", "c")
    before = visible(leader.raft)
    assert leader.raft.check_removal("c") == configuration_of("a", "b")
    added = leader.raft.check_addition(server("d", "staging"))
    assert added == leader.raft.configuration.with_server(server("d", "staging"))
    for check in (cluster["b"].raft.check_removal, leader.raft.check_removal):
        with pytest.raises((NotLeader, MemberNotFound)):
            check("z")
    assert visible(leader.raft) == before
    assert leader.raft.ready() is None


# -- a quiet start -------------------------------------------------------------------------------


QUIET = ELECTION + 1


def restarted(*voters: str) -> Raft:
    """Return a core that votes and campaigns no earlier than a promise of its last life ends."""
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of(*voters))
    storage.append([entry])
    storage.sync()
    options = RaftOptions("a", quiet_ticks=QUIET)
    raft = Raft(options, storage, storage.hard_state, 0, Configuration(), random.Random(1))
    take(raft)
    return raft


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("kind", [MessageType.VOTE, MessageType.PRE_VOTE])
def test_a_node_that_has_just_started_elects_nobody(kind: MessageType, term: int) -> None:
    """The leader that it answered before may still read by its lease, of this term or the last."""
    raft = restarted("a", "b", "c")
    request = Message(kind, "b", "a", term, index=1, log_term=1)
    for _ in range(QUIET):
        raft.step(request)
        ready = raft.ready()
        assert ready is None or [message.reject for message in ready.messages] == [True]
        assert (raft.term, raft.vote) == (1, "")
        raft.tick()
    request.term = 2
    raft.step(request)
    granted = [m for m in take(raft).messages if m.sender == "a" and m.to == "b" and not m.reject]
    assert granted


def test_a_quiet_node_follows_its_leaders_wish() -> None:
    raft = restarted("a", "b", "c")
    raft.step(Message(MessageType.VOTE, "b", "a", 2, index=1, log_term=1, force=True))
    assert (raft.term, raft.vote) == (2, "b")


def test_a_quiet_node_does_not_stand_itself() -> None:
    """Its own vote is one of those that elect another leader."""
    raft = restarted("a", "b", "c")
    raft.campaign()
    assert raft.state is State.FOLLOWER
    for _ in range(QUIET):
        assert raft.state is State.FOLLOWER
        raft.tick()
    raft.campaign()
    assert state_of(raft) is State.PRE_CANDIDATE


def test_a_lone_voter_starts_at_once_unless_it_was_not_alone() -> None:
    raft = restarted("a")
    raft.campaign()
    assert raft.state is State.CANDIDATE
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of("a", "b"))
    storage.append([entry, Entry(1, 2, CONFIG, configuration_of("a").encode())])
    storage.sync()
    options = RaftOptions("a", quiet_ticks=QUIET)
    raft = Raft(options, storage, storage.hard_state, 0, Configuration(), random.Random(1))
    raft.campaign()
    assert state_of(raft) is State.FOLLOWER


# -- log and snapshots ---------------------------------------------------------------------------


def test_a_batch_costs_each_follower_one_append_and_one_answer() -> None:
    cluster, leader = leader_of("a", "b", "c")
    seen: list[MessageType] = []
    cluster.trace = lambda line: seen.append(MessageType[line.split()[1]]) if "→" in line else None
    for count in range(1, 11):
        leader.propose(b"x", b"y")
        cluster.settle()
        assert leader.raft.applied_index == 2 + 2 * count
        assert cluster["b"].raft.applied_index == 2 * count  # the commit travels with the next
    assert seen.count(MessageType.APPEND) == seen.count(MessageType.APPEND_RESPONSE) == 20
    assert len(seen) == 40


def test_an_idle_cluster_learns_of_the_last_commit_with_the_next_heartbeat() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.propose(b"x")
    cluster.settle()
    leader.tick()
    cluster.settle()
    assert [node.raft.applied_index for node in cluster.nodes.values()] == [3, 3, 3]


def test_a_late_rejection_does_not_walk_back() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.propose(b"x")
    cluster.settle()
    progress = leader.raft.progress["b"]
    assert (progress.match, progress.state) == (3, Replication.PIPELINE)
    late = Message(MessageType.APPEND_RESPONSE, "b", "a", 2, 2, 1, reject=True, hint=1)
    leader.step(late)
    assert (progress.match, progress.next, progress.state) == (3, 4, Replication.PIPELINE)
    leader.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 2, index=2))
    assert (progress.match, progress.next) == (3, 4)


def test_a_late_rejection_after_a_snapshot_does_not_walk_back() -> None:
    cluster, leader = leader_past_the_cut()
    cluster.tick_all(2)
    progress = leader.raft.progress["c"]
    assert progress.match == 12
    for index in (2, 12):
        late = Message(MessageType.APPEND_RESPONSE, "c", "a", 2, index, 2, reject=True, hint=2)
        leader.step(late)
        assert (progress.match, progress.next) == (12, 13)
        assert progress.state is Replication.PIPELINE


def test_a_snapshot_on_its_way_is_left_alone() -> None:
    cluster, leader = leader_past_the_cut()
    leader.tick()
    while leader.raft.progress["c"].state is not Replication.SNAPSHOT:
        cluster.deliver(cluster.network.pop(0))
    leader.propose(b"y")
    leader.tick(3)
    leader.step(Message(MessageType.APPEND_RESPONSE, "c", "a", 2, 12, 2, reject=True, hint=2))
    leader.step(Message(MessageType.APPEND_RESPONSE, "c", "a", 2, 2))
    kinds = [item.message.type for item in cluster.network if item.message.to == "c"]
    assert kinds.count(MessageType.SNAPSHOT) == 1
    assert MessageType.APPEND not in kinds[kinds.index(MessageType.SNAPSHOT) :]
    cluster.settle()
    cluster.tick_all(2)
    assert cluster["c"].machine == leader.machine


def test_a_failed_snapshot_is_tried_again() -> None:
    cluster, leader = leader_past_the_cut()
    leader.tick()
    while replication_of(leader, "c") is not Replication.SNAPSHOT:
        cluster.deliver(cluster.network.pop(0))
    leader.raft.report_snapshot("c", None)
    leader.drive()
    assert replication_of(leader, "c") is Replication.PROBE
    cluster.drop()
    cluster.tick_all(ELECTION)
    assert cluster["c"].machine.index == 2  # it may have refused it, and would again
    cluster.tick_all(2)
    assert cluster["c"].machine == leader.machine


def test_who_is_being_removed_is_sent_no_snapshot() -> None:
    cluster, leader = leader_past_the_cut()
    leader.raft.report_unreachable("c")  # so it is asked where it is
    leader.change(lambda: leader.raft.remove("c"))
    assert replication_of(leader, "c") is Replication.PROBE
    cluster.tick_all(2)
    assert cluster["c"].machine.index == 2
    assert list(leader.raft.progress) == ["b"]


def test_flow_control_bounds_what_is_on_its_way() -> None:
    options = RaftOptions("", max_inflight=3, max_append_bytes=100)
    cluster = Cluster("a", "b", "c", options=options)
    leader = cluster.elect("a")
    for _ in range(20):
        leader.propose(b"x" * 60)
    waiting = [item.message for item in cluster.network if item.message.to == "b"]
    assert len(waiting) == 3
    assert all(len(message.entries) == 1 for message in waiting)
    leader.tick()
    for name in "bc":
        leader.step(Message(MessageType.HEARTBEAT_RESPONSE, name, "a", 2))
    extra = [item.message.entries for item in cluster.network if item.message.to == "b"][3:]
    assert not any(extra)  # it asks where the follower is, and sends no more
    cluster.tick_all(2)
    assert [node.raft.applied_index for node in cluster.nodes.values()] == [22, 22, 22]


def test_who_missed_much_is_fed_no_faster_than_it_answers() -> None:
    """A leader that reads its whole log for a newcomer sends nobody a heartbeat meanwhile."""
    options = RaftOptions("", max_inflight=30, max_catch_up=2, max_append_bytes=100)
    cluster = Cluster("a", "b", "c", options=options)
    leader = cluster.elect("a")
    cluster.isolate("c")
    for _ in range(40):
        leader.propose(b"x" * 60)
        cluster.settle()
    cluster.heal()
    most = 0
    for _ in range(400):
        if leader.raft.progress["c"].match == leader.raft.last_index:
            break
        if not cluster.network:
            leader.tick()
        under_way = [e for e in cluster.network if e.message.to == "c" and e.message.entries]
        most = max(most, len(under_way))
        if cluster.network:
            cluster.deliver(cluster.network.pop(0))
    assert leader.raft.progress["c"].match == leader.raft.last_index
    assert most == 2


def test_lost_appends_are_found_without_new_ones() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.propose(b"x")
    cluster.drop()
    cluster.tick_all(2)
    assert [node.raft.applied_index for node in cluster.nodes.values()] == [3, 3, 3]


def test_an_unreachable_follower_is_probed() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.propose(b"x")
    cluster.drop()
    leader.raft.report_unreachable("b")
    leader.drive()
    (probe,) = [item.message for item in cluster.network]
    assert (probe.to, probe.index, len(probe.entries)) == ("b", 2, 1)
    assert leader.raft.progress["b"].state is Replication.PROBE


# -- bytes and messages from outside -------------------------------------------------------------


def test_messages_that_no_node_sends_do_no_harm() -> None:
    """For another node, malformed, or from who isn't a member."""
    cluster, leader = leader_of("a", "b", "c")
    for message in (
        Message(MessageType.HEARTBEAT, "a", "a", 9),
        Message(MessageType.HEARTBEAT, "b", "c", 9),
        Message(MessageType.APPEND_RESPONSE, "z", "a", 2, index=2),
        Message(MessageType.APPEND_RESPONSE, "b", "a", 2, index=1000),
        Message(MessageType.HEARTBEAT_RESPONSE, "z", "a", 2, context=9),
        Message(MessageType.APPEND_RESPONSE, "b", "a", 2, index=0, reject=True, hint=7),
        Message(MessageType.TIMEOUT_NOW, "b", "a", 2),
        Message(MessageType.VOTE_RESPONSE, "b", "a", 2, reject=True),
        Message(MessageType.PRE_VOTE_RESPONSE, "b", "a", 3),
    ):
        leader.step(message)
        assert (leader.raft.state, leader.raft.term) == (State.LEADER, 2)
    leader.propose(b"x")
    cluster.tick_all(2)
    assert cluster["b"].raft.applied_index == 3


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.HEARTBEAT, "c", "b", 2),  # a leads this term
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=commands((2, 3), (2, 5))),
        Message(MessageType.APPEND, "a", "b", 2, 1, 1, entries=commands((2, 3))),
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=commands((2, 3), (1, 4), (2, 5))),
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=commands((3, 3))),
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=commands((1, 3))),
        Message(MessageType.APPEND, "c", "b", 3, 2, 2, entries=[Entry(3, 3, CONFIG, b"\x07")]),
        Message(MessageType.SNAPSHOT, "a", "b", 2),
        Message(MessageType.SNAPSHOT, "c", "b", 3, snapshot=SnapshotMeta(9, 3, b"\x07")),
        Message(MessageType.SNAPSHOT, "a", "b", 2, snapshot=SnapshotMeta(9, 3)),
        Message(
            MessageType.APPEND,
            *("a", "b", 2, 2, 2),
            entries=[Entry(2, 3, CONFIG, b"\x07")],
            snapshot=SnapshotMeta(),
        ),
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=[Entry(2, 3, CONFIG, b"")]),
        Message(MessageType.SNAPSHOT, "a", "b", 2, snapshot=SnapshotMeta(9, 2)),
        *[
            Message(MessageType.APPEND, "a", "b", 2, 2, 2, entries=[Entry(2, 3, CONFIG, members)])
            for members in (
                Configuration((Server("b", "b"),)).encode(),
                Configuration((Server("b", "b:7001\r\n"),)).encode(),
                Configuration((Server("b", "b:7001", "http://b\r\nSet-Cookie: x=y"),)).encode(),
                Configuration((Server("b", "b:7001", "http://\u20ac"),)).encode(),
                Configuration((server("b"), server("c" * 65_000))).encode() * 17,
            )
        ],
        # Terms and indexes that leave no room to count on.
        Message(MessageType.HEARTBEAT, "c", "b", FARTHEST),
        Message(MessageType.HEARTBEAT, "c", "b", (1 << 64) - 1),
        Message(MessageType.HEARTBEAT, "c", "b", LEAP + 3),
        Message(MessageType.VOTE, "c", "b", LEAP + 3, FARTHEST - 1, 2),
        Message(MessageType.PRE_VOTE_RESPONSE, "c", "b", LEAP + 3),
        Message(MessageType.HEARTBEAT, "a", "b", 2, commit=FARTHEST),
        Message(MessageType.APPEND, "a", "b", 2, FARTHEST, 2),
        Message(MessageType.APPEND, "a", "b", 2, 2, 2, commit=FARTHEST),
        Message(MessageType.APPEND_RESPONSE, "c", "b", 2, 2, reject=True, hint=FARTHEST),
        Message(MessageType.APPEND_RESPONSE, "c", "b", 1, 2, log_term=FARTHEST),
        Message(
            MessageType.SNAPSHOT,
            *("a", "b", 2),
            snapshot=SnapshotMeta(FARTHEST, 2, configuration_of("a", "b").encode()),
        ),
    ],
    ids=lambda message: f"{message.type.name}-{message.term}",
)
def test_what_no_leader_sends_is_refused_before_anything_has_changed(message: Message) -> None:
    cluster, leader = leader_of("a", "b", "c")
    raft = cluster["b"].raft
    before = visible(raft)
    with pytest.raises(ProtocolViolation):
        raft.step(message)
    assert visible(raft) == before
    assert raft.ready() is None
    leader.propose(b"x")
    cluster.tick_all(2)
    assert cluster["b"].raft.applied_index == 3


def test_a_leap_that_many_elections_explain_is_followed() -> None:
    raft = Cluster("a", "b", "c")["b"].raft
    raft.step(Message(MessageType.HEARTBEAT, "a", "b", raft.term + LEAP))
    assert (raft.term, raft.leader_id) == (1 + LEAP, "a")


def test_a_voice_for_reads_that_were_not_asked_about_is_refused() -> None:
    """It would count for every read that comes, however old this leader is by then."""
    cluster, leader = leader_of("a", "b", "c")
    with pytest.raises(ProtocolViolation, match="never asked"):
        leader.raft.step(Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", 2, context=9))
    cluster.isolate("a")
    leader.read("r")
    cluster.settle()
    assert not leader.answered


def test_a_leader_refuses_another_one_of_its_term() -> None:
    _, leader = leader_of("a", "b", "c")
    with pytest.raises(ProtocolViolation, match="b says that it leads term 2, and so does a"):
        leader.raft.step(Message(MessageType.HEARTBEAT, "b", "a", 2))
    assert leader.raft.state is State.LEADER


numbers = st.integers(0, 6) | st.sampled_from([FARTHEST - 1, FARTHEST, (1 << 64) - 1])
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    st.sampled_from("abcz"),
    st.just("b"),
    st.integers(1, 4) | numbers,
    numbers,
    numbers,
    numbers,
    numbers,
    numbers,
    st.booleans(),
    st.booleans(),
    st.lists(
        st.builds(
            Entry,
            numbers,
            numbers,
            st.sampled_from([NOOP, COMMAND, CONFIG]),
            st.sampled_from([b"", b"x", configuration_of("a", "b").encode()]),
        ),
        max_size=3,
    ),
    st.none()
    | st.builds(SnapshotMeta, numbers, numbers, st.just(configuration_of("a", "b", "c").encode())),
)


@given(st.sampled_from("ab"), st.lists(messages, max_size=8), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_message_is_taken_or_refused(
    leader: str, received: list[Message], in_order: bool
) -> None:
    """Whatever can be decoded, whenever it comes: it is never an error of ours."""
    cluster = Cluster("a", "b", "c")
    cluster.elect(leader)
    node = cluster["b"]
    for message in received:
        if in_order:
            for position, entry in enumerate(message.entries, 1):
                entry.index = message.index + position
                entry.term = max(message.log_term, min(entry.term, message.term))
        before = visible(node.raft)
        try:
            node.raft.step(message)
        except ProtocolViolation:
            assert visible(node.raft) == before
        while (ready := node.raft.ready()) is not None:
            if ready.snapshot is not None:
                node.storage.reset(ready.snapshot)
            if ready.entries:
                node.storage.append(ready.entries)
            node.raft.persisted(ready)
            if ready.committed:
                node.raft.applied(ready.committed[-1].index)


def test_a_configuration_that_cannot_be_read_is_not_appended() -> None:
    """In the log it would stop this node at its next start."""
    cluster, leader = leader_of("a", "b", "c")
    follower = cluster["b"]
    cluster.isolate("a", "b")
    leader.propose(b"x")
    follower.step(cluster.drop()[0])
    assert follower.raft.last_index == 3
    entries = [Entry(3, 3, NOOP, b""), Entry(3, 4, CONFIG, b"\x07")]
    with pytest.raises(ProtocolViolation, match="version 7"):
        follower.step(Message(MessageType.APPEND, "c", "b", 3, 2, 2, entries=entries))
    assert (follower.raft.last_index, follower.raft.last_term, follower.raft.term) == (3, 2, 2)
    with pytest.raises(CorruptionError):
        leader.raft.add_learner(server(""))
    assert leader.raft.last_index == 3
    leader.change(lambda: leader.raft.add_learner(server("d")))
