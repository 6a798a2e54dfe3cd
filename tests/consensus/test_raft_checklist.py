"""Faults that other implementations have shipped: votes, persistence, elections, applying."""

from __future__ import annotations

import random

import pytest

from conure.consensus.members import Configuration
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    Entry,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
    State,
)
from conure.errors import (
    NotLeader,
    Unavailable,
)
from raft import Raft, RaftOptions, Replication, bootstrap
from tests.lab.raft_checks import (
    ELECTION,
    commands,
    leader_of,
    replication_of,
    state_of,
    take,
)
from tests.lab.raft_cluster import Cluster, MemoryLog, configuration_of, server


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
