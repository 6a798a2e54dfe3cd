"""Faults that others have shipped in log, snapshots and messages from outside."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.consensus.members import Configuration, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    Message,
    MessageType,
    SnapshotMeta,
    State,
)
from conure.errors import (
    CorruptionError,
    ProtocolViolation,
)
from raft import RaftOptions, Replication
from tests.lab.raft_checks import (
    ELECTION,
    commands,
    leader_of,
    replication_of,
    visible,
)
from tests.lab.raft_cluster import Cluster, Node, configuration_of, server

LEAP = 1 << 32


FARTHEST = 1 << 62


def leader_past_the_cut() -> tuple[Cluster, Node]:
    """Return a cluster whose leader, a, has cut away the entries that c missed."""
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("c")
    leader.propose(*[b"x"] * 10)
    cluster.settle()
    leader.cut()
    cluster.heal()
    return cluster, leader


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
