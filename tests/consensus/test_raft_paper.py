"""The Raft paper and its author's dissertation, section by section.

Names carry the section: 5.2 is the paper's, ``thesis_6_4`` the dissertation's. Longer stories,
figure 8 among them, are scripts in testdata/raft/.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from conure.consensus.members import Configuration
from conure.consensus.messages import (
    COMMAND,
    NOOP,
    Entry,
    HardState,
    Message,
    MessageType,
    ReadState,
    SnapshotMeta,
    State,
)
from conure.errors import Conflict, MemberNotFound, NotLeader, Unavailable
from raft import Raft, RaftOptions, Replication, bootstrap
from tests.lab.raft_cluster import Cluster, MemoryLog, Node, configuration_of, server

ELECTION = RaftOptions("").election_ticks


def cluster_with_logs(term: int = 0, /, **terms: Sequence[int]) -> Cluster:
    """Return a cluster whose nodes hold entries of these terms, after the configuration."""
    cluster = Cluster(*terms)
    for node, wanted in zip(cluster.nodes.values(), terms.values(), strict=True):
        node.crash()
        if wanted:
            entries = [Entry(t, i, COMMAND, b"%d" % t) for i, t in enumerate(wanted, 2)]
            node.storage.append(entries)
        node.storage.sync()
        node.storage.hard_state = HardState(term or max(wanted, default=1), "")
        node.start()
    return cluster


def terms_of(node: Node) -> list[int]:
    return [entry.term for entry in node.storage.log[1:]]


def state_of(node: Node) -> State:
    return node.raft.state


def sent(cluster: Cluster, kind: MessageType) -> list[Message]:
    return [item.message for item in cluster.network if item.message.type is kind]


def snapshot(index: int, term: int) -> Message:
    configuration = configuration_of("a", "b").encode()
    meta = SnapshotMeta(index, term, configuration)
    return Message(MessageType.SNAPSHOT, "b", "a", 9, snapshot=meta)


def raft_with_log(*terms: int, applied: int = 1) -> tuple[Raft, MemoryLog]:
    """Return a bare core: entries of these terms after the configuration."""
    storage = MemoryLog()
    configuration = configuration_of("a", "b", "c")
    storage.append([bootstrap(configuration)[1]])
    if terms:
        storage.append([Entry(t, i, COMMAND, b"") for i, t in enumerate(terms, 2)])
    return (
        Raft(RaftOptions("a"), storage, HardState(9, ""), applied, configuration, random.Random(1)),
        storage,
    )


def lead(raft: Raft, storage: MemoryLog) -> None:
    """Make a bare core the leader of term 10, by the votes of b."""
    raft.campaign()
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        raft.step(Message(kind, "b", "a", 10))
        while (ready := raft.ready()) is not None:
            if ready.entries:
                storage.append(ready.entries)
            raft.persisted(ready)
    assert raft.state is State.LEADER


# -- 5.1 Raft basics -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.FOLLOWER, State.PRE_CANDIDATE, State.CANDIDATE])
def test_5_1_a_later_term_makes_a_follower(state: State) -> None:
    cluster = Cluster("a", "b", "c")
    node = cluster["a"]
    if state is not State.FOLLOWER:
        node.campaign()
    if state is State.CANDIDATE:
        node.step(Message(MessageType.PRE_VOTE_RESPONSE, "b", "a", 2))
    assert node.raft.state is state
    node.step(Message(MessageType.HEARTBEAT, "c", "a", 7))
    assert (node.raft.state, node.raft.term, node.raft.leader_id) == (State.FOLLOWER, 7, "c")
    assert node.storage.hard_state == HardState(7, "")


def test_5_1_a_leader_of_an_earlier_term_steps_down() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 5, reject=True))
    assert (leader.raft.state, leader.raft.term) == (State.FOLLOWER, 5)


def test_5_1_a_request_of_an_earlier_term_is_refused() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    follower = cluster["b"]
    stale = Entry(1, 3, COMMAND, b"stale")
    follower.step(Message(MessageType.APPEND, "c", "b", 1, index=2, log_term=1, entries=[stale]))
    assert follower.raft.last_index == 2
    (answer,) = sent(cluster, MessageType.APPEND_RESPONSE)
    assert (answer.term, answer.reject) == (2, True)


# -- 5.2 Leader election -------------------------------------------------------------------------


def test_5_2_nodes_start_as_followers() -> None:
    for node in Cluster("a", "b", "c").nodes.values():
        assert node.raft.state is State.FOLLOWER
        assert node.raft.leader_id == ""


def test_5_2_a_follower_that_hears_nothing_stands_for_election() -> None:
    cluster = Cluster("a", "b", "c")
    cluster["a"].tick(ELECTION - 1)
    assert not cluster.network
    cluster["a"].tick(ELECTION)
    assert {message.to for message in sent(cluster, MessageType.PRE_VOTE)} == {"b", "c"}


def test_5_2_heartbeats_keep_followers_quiet() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.tick_all(5 * ELECTION)
    assert cluster["a"].raft.state is State.LEADER
    assert {node.raft.term for node in cluster.nodes.values()} == {2}


@pytest.mark.parametrize(
    ("size", "granted", "refused", "state"),
    [
        (2, 1, 0, State.LEADER),
        (3, 1, 0, State.LEADER),
        (3, 0, 0, State.CANDIDATE),
        (3, 0, 2, State.FOLLOWER),
        (4, 1, 0, State.CANDIDATE),
        (4, 1, 2, State.FOLLOWER),
        (4, 2, 0, State.LEADER),
        (5, 1, 2, State.CANDIDATE),
        (5, 2, 0, State.LEADER),
        (5, 2, 2, State.LEADER),
        (5, 1, 3, State.FOLLOWER),
    ],
)
def test_5_2_a_majority_of_all_wins(size: int, granted: int, refused: int, state: State) -> None:
    names = "abcde"[:size]
    cluster = Cluster(*names)
    node = cluster["a"]
    node.campaign()
    for name in names[1:]:
        node.step(Message(MessageType.PRE_VOTE_RESPONSE, name, "a", 2))
    assert node.raft.state is State.CANDIDATE
    for position, name in enumerate(names[1 : 1 + granted + refused]):
        answer = Message(MessageType.VOTE_RESPONSE, name, "a", 2, reject=position >= granted)
        node.step(answer)
        node.step(answer)  # counted once
    assert node.raft.state is state


def test_5_2_votes_are_counted_per_node() -> None:
    node = Cluster("a", "b", "c", "d", "e")["a"]
    node.campaign()
    for name in "bcde":
        node.step(Message(MessageType.PRE_VOTE_RESPONSE, name, "a", 2))
    for _ in range(3):
        node.step(Message(MessageType.VOTE_RESPONSE, "b", "a", 2))
    node.step(Message(MessageType.VOTE_RESPONSE, "stranger", "a", 2))
    node.step(Message(MessageType.VOTE_RESPONSE, "c", "a", 1))
    assert state_of(node) is State.CANDIDATE
    node.step(Message(MessageType.VOTE_RESPONSE, "c", "a", 2))
    assert state_of(node) is State.LEADER


def test_5_2_one_vote_a_term_first_come_first_served() -> None:
    cluster = Cluster("a", "b", "c")
    voter = cluster["c"]
    for candidate in "aba":
        voter.step(Message(MessageType.VOTE, candidate, "c", 2, index=1, log_term=1))
    answers = sent(cluster, MessageType.VOTE_RESPONSE)
    assert [(answer.to, answer.reject) for answer in answers] == [
        ("a", False),
        ("b", True),
        ("a", False),
    ]
    voter.step(Message(MessageType.VOTE, "b", "c", 3, index=1, log_term=1))
    assert voter.storage.hard_state == HardState(3, "b")


def test_5_2_a_vote_outlives_a_restart() -> None:
    cluster = Cluster("a", "b", "c")
    voter = cluster["c"]
    voter.step(Message(MessageType.VOTE, "a", "c", 2, index=1, log_term=1))
    voter.crash()
    voter.start()
    voter.step(Message(MessageType.VOTE, "b", "c", 2, index=1, log_term=1))
    assert [answer.reject for answer in sent(cluster, MessageType.VOTE_RESPONSE)] == [False, True]


def test_5_2_a_candidate_that_hears_the_leader_of_its_term_follows() -> None:
    node = Cluster("a", "b", "c")["a"]
    node.campaign()
    node.step(Message(MessageType.PRE_VOTE_RESPONSE, "b", "a", 2))
    node.step(Message(MessageType.APPEND, "c", "a", 2, index=1, log_term=1))
    assert (node.raft.state, node.raft.leader_id, node.raft.vote) == (State.FOLLOWER, "c", "a")


def test_5_2_election_time_outs_are_spread() -> None:
    """Between one and two election time-outs, drawn anew each time."""
    waits = set()
    for seed in range(100):
        cluster = Cluster("a", "b", "c", seed=seed)
        node = cluster["a"]
        for wait in range(1, 2 * ELECTION):
            node.tick()
            if node.raft.state is not State.FOLLOWER:
                waits.add(wait)
                break
    assert waits == set(range(ELECTION, 2 * ELECTION))


def test_5_2_a_split_vote_ends() -> None:
    cluster = Cluster("a", "b", "c", "d")
    for name in "ad":
        cluster[name].campaign()
    cluster.settle()
    cluster.tick_all(4 * ELECTION)
    assert cluster.leader is not None


# -- 5.3 Log replication -------------------------------------------------------------------------


def test_5_3_entries_are_committed_on_a_majority() -> None:
    cluster = Cluster("a", "b", "c", "d", "e")
    leader = cluster.elect("a")
    index = leader.propose(b"x", b"y") + 1
    for message in sent(cluster, MessageType.APPEND):
        assert [entry.data for entry in message.entries] == [b"x", b"y"]
    cluster.isolate("c", "d", "e")
    cluster.settle()
    assert leader.raft.commit_index == index - 2
    cluster.heal()
    cluster.isolate("d", "e")
    cluster.tick_all(2)
    assert leader.raft.commit_index == leader.raft.applied_index == index
    assert cluster["c"].raft.applied_index == index


def test_5_3_entries_are_acknowledged_before_earlier_ones_are_applied() -> None:
    """The leader waits for the first, and nobody for the second."""
    cluster = Cluster("a", "b")
    leader, follower = cluster.elect("a"), cluster["b"].raft
    leader.propose(b"x")
    cluster.settle()
    leader.propose(b"y")
    (append,) = cluster.drop(lambda message: message.type is MessageType.APPEND)
    assert append.commit == follower.commit_index + 1  # x is told to be committed, y is new
    follower.step(append)
    to_write = follower.ready()
    assert to_write is not None
    assert ([entry.data for entry in to_write.entries], to_write.committed) == ([b"y"], ())
    cluster["b"].storage.append(to_write.entries)
    follower.persisted(to_write)
    then = follower.ready()
    assert then is not None
    assert [message.type for message in then.messages] == [MessageType.APPEND_RESPONSE]
    assert [entry.data for entry in then.committed] == [b"x"]


def test_5_3_a_commit_covers_everything_before_it() -> None:
    """Also what an earlier leader left behind."""
    cluster = cluster_with_logs(a=[2, 3], b=[2], c=[])
    leader = cluster.elect("a")
    assert leader.raft.applied_index == 4
    assert [node.raft.applied_index for node in cluster.nodes.values()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("index", "term", "refused"),
    [(0, 0, False), (1, 1, False), (3, 2, False), (3, 1, True), (4, 2, True), (2, 3, True)],
)
def test_5_3_the_consistency_check(index: int, term: int, refused: bool) -> None:
    cluster = cluster_with_logs(a=[2, 2], b=[], c=[])
    cluster["a"].step(Message(MessageType.APPEND, "b", "a", 3, index=index, log_term=term))
    (answer,) = sent(cluster, MessageType.APPEND_RESPONSE)
    assert answer.reject is refused
    assert answer.index == index


@pytest.mark.parametrize(
    ("index", "log_term", "new", "expected"),
    [
        (3, 2, [3], [2, 2, 3]),
        (2, 2, [3, 4], [2, 3, 4]),
        (1, 1, [3], [3]),
        (1, 1, [2], [2, 2]),
        (1, 1, [2, 2], [2, 2]),
        (1, 1, [], [2, 2]),
    ],
)
def test_5_3_only_a_conflict_truncates(
    index: int, log_term: int, new: list[int], expected: list[int]
) -> None:
    follower = cluster_with_logs(a=[2, 2], b=[], c=[])["a"]
    entries = [Entry(t, i, COMMAND, b"%d" % t) for i, t in enumerate(new, index + 1)]
    append = Message(MessageType.APPEND, "b", "a", 4, index, log_term, entries=entries)
    follower.step(append)
    assert terms_of(follower) == expected
    follower.step(append)  # 5.5: again does no harm
    assert terms_of(follower) == expected
    assert follower.raft.last_index == 1 + len(expected)


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("follower", FIGURE_7)
def test_5_3_figure_7_any_log_becomes_the_leaders(follower: str) -> None:
    leaders = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    # A third node without a log gives the vote that the follower may rightly refuse.
    cluster = cluster_with_logs(7, leader=leaders, other=FIGURE_7[follower], third=[])
    leader = cluster.elect("leader")
    cluster.tick_all(2)
    assert terms_of(leader) == terms_of(cluster["other"]) == [*leaders, 8]


def test_5_3_hints_skip_a_whole_term() -> None:
    """The probes cost one message a term, not one an entry."""
    cluster = cluster_with_logs(7, leader=[4] * 30, other=[2] * 20 + [3] * 20, third=[])
    rejected = 0

    def count(line: str) -> None:
        nonlocal rejected
        rejected += "other→leader APPEND_RESPONSE" in line and "reject" in line

    cluster.trace = count
    cluster.elect("leader")
    assert terms_of(cluster["other"]) == [4] * 30 + [8]
    assert rejected == 1


def test_5_3_a_leader_never_overwrites_its_own_log() -> None:
    cluster = cluster_with_logs(a=[2, 2, 3], b=[2], c=[2])
    leader = cluster.elect("a")
    assert terms_of(leader)[:3] == [2, 2, 3]


# -- 5.4 Safety ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MessageType.PRE_VOTE, MessageType.VOTE])
@pytest.mark.parametrize(
    ("log", "index", "term", "refused"),
    [
        ([2], 2, 2, False),
        ([2], 3, 2, False),
        ([2], 1, 1, True),
        ([2, 2], 2, 3, False),
        ([2, 2], 2, 2, True),
        ([3], 5, 2, True),
        ([], 1, 1, False),
    ],
)
def test_5_4_1_a_vote_needs_a_log_at_least_as_complete(
    kind: MessageType, log: list[int], index: int, term: int, refused: bool
) -> None:
    cluster = cluster_with_logs(5, a=log, b=[], c=[])
    cluster["a"].step(Message(kind, "b", "a", 6, index=index, log_term=term))
    assert [item.message.reject for item in cluster.network] == [refused]


def test_5_4_2_an_earlier_terms_entry_is_not_committed_by_counting() -> None:
    raft, storage = raft_with_log(2)
    lead(raft, storage)
    raft.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 10, index=2))
    assert raft.commit_index == 1
    raft.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 10, index=3))
    assert raft.commit_index == 3


def test_5_4_2_every_leader_begins_with_an_entry_of_its_own() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    assert leader.storage.log[-1] == Entry(2, 2, NOOP, b"")


# -- 5.5 Crashes ---------------------------------------------------------------------------------


def test_5_5_appends_and_votes_may_come_twice() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.propose(b"x")
    cluster.network += list(cluster.network)
    cluster.settle()
    assert [len(node.storage.log) for node in cluster.nodes.values()] == [3, 3, 3]
    assert leader.raft.applied_index == 3


def test_5_5_a_follower_that_was_down_is_brought_up() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster["c"].crash()
    for _ in range(3):
        leader.propose(b"x")
        cluster.settle()
    cluster["c"].start()
    cluster.tick_all(2)
    assert cluster["c"].raft.applied_index == 5


# -- 6 Cluster membership changes (thesis 4) -----------------------------------------------------


def test_6_a_configuration_counts_when_it_is_appended() -> None:
    cluster = Cluster("a", "b", "c", "d", "e")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.remove("e"))
    cluster.drop()
    assert leader.raft.configuration.voters == ("a", "b", "c", "d")
    assert leader.raft.configuration.quorum == 3
    assert leader.raft.commit_index == 2


def test_6_one_change_at_a_time() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.remove("c"))
    with pytest.raises(Unavailable, match="under way"):
        leader.raft.remove("b")
    cluster.settle()
    assert leader.change(lambda: leader.raft.remove("b")) == 4


def test_thesis_4_2_1_a_learner_counts_in_no_quorum() -> None:
    cluster = Cluster("a", "b")
    leader = cluster.elect("a")
    cluster.add("c")
    leader.change(lambda: leader.raft.add_learner(server("c", "nonvoter")))
    cluster.settle()
    cluster["b"].crash()
    cluster["c"].start()
    leader.propose(b"x")
    cluster.tick_all()
    assert cluster["c"].raft.last_index == leader.raft.last_index == 4
    assert leader.raft.commit_index == 3
    cluster["c"].tick(3 * ELECTION)
    assert cluster["c"].raft.state is State.FOLLOWER


def test_thesis_4_2_1_a_learner_is_promoted_when_it_has_caught_up() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.add_learner(server("d")))
    cluster.settle()
    with pytest.raises(Unavailable, match="caught up"):
        leader.raft.promote("d")  # it doesn't even run
    cluster.add("d").start()
    cluster.tick_all(2)
    assert leader.raft.caught_up("d")
    leader.change(lambda: leader.raft.promote("d"))
    cluster.settle()
    assert cluster["d"].raft.configuration.voters == ("a", "b", "c", "d")
    cluster["d"].crash()
    cluster.tick_all(ELECTION + 1)
    assert not leader.raft.caught_up("d")


def test_thesis_4_2_2_a_leader_that_removes_itself_steps_down() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.remove("a"))
    cluster.settle()
    cluster.tick_all(ELECTION)
    assert leader.raft.state is State.FOLLOWER
    new = cluster.leader
    assert new is not None
    assert new.id in "bc"
    with pytest.raises(NotLeader):
        leader.propose(b"x")


def test_thesis_4_2_2_and_steps_down_without_a_successor() -> None:
    """The last voters may all be out of reach as soon as they have acknowledged."""
    cluster = Cluster("a", "b")
    leader = cluster.elect("a")
    leader.change(lambda: leader.raft.remove("a"))
    cluster.deliver(cluster.network.pop())
    cluster.isolate("b")
    (acknowledged,) = sent(cluster, MessageType.APPEND_RESPONSE)
    leader.step(acknowledged)
    leader.tick(ELECTION + 1)
    assert leader.raft.state is State.FOLLOWER


def test_thesis_4_2_3_a_removed_node_disturbs_nobody() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.isolate("c")
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    cluster.heal()
    cluster.tick_all(6 * ELECTION)
    assert leader.raft.state is State.LEADER
    assert leader.raft.term == 2


def test_thesis_4_2_3_who_hears_a_leader_ignores_a_candidate() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    for name in "ab":
        cluster[name].step(Message(MessageType.VOTE, "c", name, 9, index=9, log_term=9))
        assert cluster[name].raft.term == 2
    assert not cluster.network
    cluster["b"].tick(ELECTION)
    cluster.drop()
    cluster["b"].step(Message(MessageType.VOTE, "c", "b", 9, index=9, log_term=9))
    assert cluster["b"].storage.hard_state == HardState(9, "c")


# -- 7 Log compaction ----------------------------------------------------------------------------


def test_7_a_follower_behind_the_log_is_sent_a_snapshot() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.isolate("c")
    leader.propose(*[b"x"] * 20)
    cluster.settle()
    leader.cut()
    cluster.heal()
    cluster.tick_all(2)
    other = cluster["c"]
    assert other.storage.snapshot.index == 22
    assert other.machine == leader.machine
    leader.propose(b"y")
    cluster.tick_all(2)
    assert other.machine == leader.machine


def test_7_a_snapshot_is_not_sent_to_the_dead() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    leader.propose(b"x")
    cluster.settle()
    leader.cut()
    leader.raft.report_unreachable("c")
    leader.drive()
    assert not cluster.network
    assert leader.raft.progress["c"].state is Replication.PROBE


def test_7_a_snapshot_replaces_a_log_that_ends_before_it() -> None:
    raft, storage = raft_with_log(2, 2)
    raft.step(snapshot(20, 5))
    ready = raft.ready()
    assert ready is not None
    assert ready.snapshot is not None
    assert ready.snapshot.index == 20
    assert not ready.messages  # not acknowledged before it is durable (R2)
    assert (raft.last_index, raft.last_term, raft.commit_index) == (20, 5, 20)
    assert raft.configuration.voters == ("a", "b")
    storage.reset(ready.snapshot)
    raft.persisted(ready)
    after = raft.ready()
    assert after is not None
    assert [message.index for message in after.messages] == [20]
    assert raft.applied_index == 20


def test_7_nobody_stands_for_election_amid_an_installation() -> None:
    raft, storage = raft_with_log(2)
    raft.step(snapshot(20, 5))
    ready = raft.ready()
    assert ready is not None
    assert ready.snapshot is not None
    raft.campaign()
    assert raft.state is State.FOLLOWER
    storage.reset(ready.snapshot)
    raft.persisted(ready)
    raft.campaign()
    assert raft.state.value == "pre-candidate"


def test_7_a_snapshot_that_conflicts_drops_the_whole_log() -> None:
    raft, _ = raft_with_log(2, 2, 2, 2)
    raft.step(snapshot(3, 5))
    ready = raft.ready()
    assert ready is not None
    assert ready.snapshot is not None
    assert (raft.last_index, raft.last_term) == (3, 5)


def test_7_a_snapshot_of_what_the_log_holds_keeps_the_log() -> None:
    raft, _ = raft_with_log(2, 2, 2, 2)
    raft.step(snapshot(3, 2))
    ready = raft.ready()
    assert ready is not None
    assert ready.snapshot is None
    assert [entry.index for entry in ready.committed] == [2, 3]
    assert raft.last_index == 5


def test_7_a_stale_snapshot_is_ignored() -> None:
    raft, _ = raft_with_log(2, 2, applied=3)
    raft.step(snapshot(2, 9))
    ready = raft.ready()
    assert ready is not None
    assert ready.snapshot is None
    assert raft.commit_index == raft.last_index == 3
    assert [message.index for message in ready.messages] == [3]


# -- thesis 3.10 Leadership transfer -------------------------------------------------------------


def test_thesis_3_10_leadership_is_handed_over_without_a_time_out() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.raft.transfer_leadership("c")
    leader.drive()
    cluster.settle()
    assert cluster["c"].raft.state is State.LEADER
    assert leader.raft.leader_id == "c"


def test_thesis_3_10_the_longest_log_takes_over() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.isolate("b")
    leader.propose(b"x")
    cluster.settle()
    cluster.heal()
    leader.raft.transfer_leadership()
    leader.drive()
    cluster.settle()
    assert cluster["c"].raft.state is State.LEADER


def test_thesis_3_10_proposals_resume_after_an_election_time_out() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster["c"].crash()
    leader.raft.transfer_leadership("c")
    leader.drive()
    with pytest.raises(Unavailable, match="handed over"):
        leader.propose(b"x")
    with pytest.raises(Unavailable, match="handed over"):
        leader.raft.remove("b")
    cluster.tick_all(ELECTION)
    leader.propose(b"x")
    cluster.settle()
    assert leader.raft.applied_index == 3


def test_thesis_3_10_only_who_can_lead_is_asked() -> None:
    cluster = Cluster("a", "b", arbiters="x")
    leader = cluster.elect("a")
    with pytest.raises(Conflict, match="arbiter"):
        leader.raft.transfer_leadership("x")
    with pytest.raises(MemberNotFound):
        leader.raft.transfer_leadership("nobody")
    cluster["b"].crash()
    leader.tick(ELECTION - 1)
    cluster["x"].step(Message(MessageType.TIMEOUT_NOW, "a", "x", 2))
    assert cluster["x"].raft.state is State.FOLLOWER
    alone = Cluster("a").elect("a")
    with pytest.raises(Unavailable, match="no other voter"):
        alone.raft.transfer_leadership()


@pytest.mark.parametrize(
    ("sender", "term", "life"),
    [("b", 3, ""), ("z", 3, ""), ("a", 2, "1"), ("b", 4, ""), ("a", 4, "1"), ("a", 3, "2")],
)
def test_thesis_3_10_only_the_leader_can_hand_over(sender: str, term: int, life: str) -> None:
    """Who says so with another term, under another name or with another directory than the
    leader's would have a working leader deposed: its voters leave it for such a candidate."""
    cluster = Cluster("a", "b", "c")
    cluster.elect("b")
    c = cluster["c"]
    c.step(Message(MessageType.HEARTBEAT, "a", "c", 3, incarnation="1"))
    cluster.network.clear()
    c.step(Message(MessageType.TIMEOUT_NOW, sender, "c", term, incarnation=life))
    assert (c.raft.state, c.raft.term, c.raft.leader_id) == (State.FOLLOWER, 3, "a")
    assert not cluster.network
    c.step(Message(MessageType.TIMEOUT_NOW, "a", "c", 3, incarnation="1"))
    assert (c.raft.state, c.raft.term) == (State.CANDIDATE, 4)


def test_thesis_3_10_who_was_started_again_takes_nothing_over() -> None:
    """It knows no leader yet. The leader goes on, and can be asked again."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster["b"].crash()
    cluster["b"].start()
    leader.raft.transfer_leadership("b")
    leader.drive()
    (message,) = cluster.drop(lambda message: message.type is MessageType.TIMEOUT_NOW)
    cluster["b"].step(message)
    assert cluster["b"].raft.state is State.FOLLOWER
    cluster.tick_all(ELECTION)
    assert cluster.leader is leader
    leader.raft.transfer_leadership("b")
    leader.drive()
    cluster.settle()
    assert cluster.leader is cluster["b"]


# -- thesis 6.4 Linearizable reads ---------------------------------------------------------------


def test_thesis_6_4_a_round_begins_after_the_read() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.read("one")
    (early, _) = sent(cluster, MessageType.HEARTBEAT)
    leader.read("two")
    cluster.deliver(cluster.network.pop(0))
    cluster.drop(lambda message: message.to == "c")
    cluster.deliver(cluster.network.pop(0))
    assert [context for context, _ in leader.answered] == ["one"]
    leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "c", "a", 2, context=early.context))
    assert len(leader.answered) == 1  # an answer to the first round says nothing of the second
    cluster.settle()
    assert [context for context, _ in leader.answered] == ["one", "two"]


def test_who_asks_and_the_leader_may_be_a_quorum() -> None:
    """A voter that asks a leader to read says that it follows it: with three voters that is enough,
    with five it isn't, nor if it is no voter, or has lost its disk since it was one (R6)."""
    raft, storage = raft_with_log(2)
    lead(raft, storage)
    assert not raft.is_confirmed_by("b", "")  # nothing of this term is committed
    raft.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 10, index=3))
    assert raft.may_read
    assert raft.is_confirmed_by("b", "")
    assert not raft.is_confirmed_by("a", "")
    assert not raft.is_confirmed_by("nobody", "")
    five = Cluster("a", "b", "c", "d", "e")
    leader = five.elect("a")
    assert leader.raft.may_read
    assert not leader.raft.is_confirmed_by("b", "")


def test_thesis_6_4_waiting_reads_share_a_round() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    for number in range(50):
        leader.read(number)
    assert len(sent(cluster, MessageType.HEARTBEAT)) == 2
    cluster.deliver(cluster.network.pop(0))
    cluster.deliver(cluster.network.pop())
    assert len(sent(cluster, MessageType.HEARTBEAT)) == 3
    cluster.settle()
    assert [context for context, _ in leader.answered] == list(range(50))


def test_thesis_6_4_no_read_before_the_terms_first_commit() -> None:
    raft, storage = raft_with_log(2)
    lead(raft, storage)
    assert raft.read_index("early") is None
    assert raft.ready() is None
    raft.step(Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", 10))
    assert raft.ready() is None
    raft.step(Message(MessageType.APPEND_RESPONSE, "b", "a", 10, index=3))
    ready = raft.ready()
    assert ready is not None
    assert not ready.reads
    raft.step(Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", 10, context=1))
    ready = raft.ready()
    assert ready is not None
    assert ready.reads == [ReadState(3, "early")]


def test_thesis_6_4_a_lone_voter_answers_at_once_but_not_before_its_first_commit() -> None:
    node = Cluster("a")["a"]
    node.manual_sync = True
    node.campaign()
    node.sync()
    assert node.raft.state is State.LEADER
    node.read("early")
    assert not node.answered
    node.sync()
    assert node.answered == [("early", 2)]
    assert node.raft.read_index("late") == 2


def test_thesis_6_4_a_read_outlives_the_voters_it_waited_for() -> None:
    """Nobody is left to answer the round when a leader's last peer is removed."""
    cluster = Cluster("a", "b")
    leader = cluster.elect("a")
    leader.read("one")
    assert len(cluster.drop()) == 1
    leader.change(lambda: leader.raft.remove("b"))
    assert leader.answered == [("one", 2)]
    leader.read("two")
    assert leader.answered == [("one", 2), ("two", 3)]


def test_thesis_6_4_a_deposed_leader_gives_reads_back() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.isolate("a")
    leader.read("one")
    leader.read("two")
    leader.tick(ELECTION + 1)
    assert leader.raft.state is State.FOLLOWER
    assert leader.lost_reads == ["one", "two"]
    with pytest.raises(NotLeader):
        leader.raft.read_index("three")


# -- thesis 9.6 Pre-vote -------------------------------------------------------------------------


def test_thesis_9_6_a_node_that_was_cut_off_changes_no_term() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.isolate("c")
    cluster.tick_all(5 * ELECTION)
    assert cluster["c"].raft.state is State.PRE_CANDIDATE
    cluster.heal()
    cluster.tick_all(2)
    assert cluster["c"].raft.leader_id == "a"
    assert {node.raft.term for node in cluster.nodes.values()} == {2}


def test_thesis_9_6_a_pre_vote_promises_nothing() -> None:
    cluster = Cluster("a", "b", "c")
    for candidate in "ab":
        cluster["c"].step(Message(MessageType.PRE_VOTE, candidate, "c", 2, index=1, log_term=1))
    answers = sent(cluster, MessageType.PRE_VOTE_RESPONSE)
    assert [(answer.reject, answer.term) for answer in answers] == [(False, 2), (False, 2)]
    assert cluster["c"].storage.hard_state == HardState(1, "")


def test_a_node_without_a_configuration_keeps_quiet_and_follows() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    stranger = cluster.add("d")
    stranger.start()
    stranger.tick(5 * ELECTION)
    stranger.campaign()
    assert not cluster.network
    stranger.step(Message(MessageType.VOTE, "b", "d", 9, index=9, log_term=9))
    assert [message.reject for message in cluster.drop()] == [True]
    assert stranger.raft.configuration == Configuration()
    leader.change(lambda: leader.raft.add_learner(server("d")))
    cluster.settle()
    cluster.tick_all(2 * ELECTION)
    assert stranger.raft.leader_id == (cluster.leader or leader).id
