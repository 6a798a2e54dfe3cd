"""The log and snapshots of a cluster of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conure.cluster import transfers
from conure.cluster.node import TICK
from conure.consensus.messages import (
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
    State,
)
from conure.errors import (
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
)
from conure.state import codec
from conure.state.snapshots import IncomingSnapshot
from tests.lab.answers import value_of
from tests.lab.nodes import (
    Lab,
    begin,
    checkpoint,
    cluster,
    header,
    put,
)


def test_a_lone_node_cuts_its_log_at_each_checkpoint_others_keep_a_tail() -> None:
    lone = cluster()
    put(lone, b"k", b"v")
    checkpoint(lone["n1"])
    assert lone["n1"]._log.snapshot.index == lone["n1"]._store.applied_index
    lab = cluster("n2", "n3")
    node = lab["n1"]
    seen = [node._log.snapshot.index]
    for number in range(4):
        before = node._store.engine.applied_index
        put(lab, b"k", b"%d" % number)
        checkpoint(node)
        assert node._log.snapshot.index == before
        seen.append(node._log.snapshot.index)
    assert seen[-1] > seen[0]


def test_a_node_that_was_away_for_a_moment_gets_the_entries_that_it_lacks() -> None:
    lab = cluster("n2", "n3")
    node = lab["n1"]
    lab.tick(5)
    lab.stop("n3")
    has = node._log.last_index
    for number in range(4):
        put(lab, b"%d" % number, b"v")
        checkpoint(node)
    assert node._log.snapshot.index <= has < node._store.engine.applied_index
    lab.sent.clear()
    lab.add("n3")
    lab.tick(20)
    assert value_of(lab["n3"], b"3") == b"v"
    assert MessageType.SNAPSHOT not in {message.type for message in lab.sent}


def test_a_node_that_was_away_for_long_gets_the_whole_state() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    assert lab["n1"]._log.snapshot.index > 20
    lab.add("n3")
    lab.tick(20)
    assert lab["n3"]._store.digest == lab["n1"]._store.digest
    assert list(lab["n3"]._store.engine.items()) == list(lab["n1"]._store.engine.items())
    lab["n3"]._store.engine.check()
    lab["n3"]._log.check()
    put(lab, b"after", b"all")
    lab.tick(5)
    lab.stop("n3")
    lab.add("n3")
    assert value_of(lab["n3"], b"05") == b"45"


def test_a_state_takes_the_place_of_what_waits_to_be_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    busy = lab["n3"]
    lab.later["n3"] = lambda action, seconds: None
    with monkeypatch.context() as patch:
        patch.setattr(busy._applying, "apply_some", list)
        put(lab, b"00", b"waits")
        lab.tick(2)
        assert busy._applying.backlog
        lab.cut.add("n3")
        for number in range(60):
            put(lab, b"%02d" % (number % 20), b"%d" % number)
            checkpoint(lab["n1"])
        lab.cut.clear()
        lab.tick_until(lambda: busy._store.applied_index >= lab["n1"]._log.snapshot.index)
    put(lab, b"after", b"all")
    lab.tick_until(lambda: value_of(busy, b"after") == b"all")
    assert value_of(busy, b"00") == b"40"


def test_an_arbiter_that_was_away_for_long_begins_behind_the_cut() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a") is None
    lab.stop("a")
    for number in range(30):
        put(lab, b"k", b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("a", role="arbiter")
    lab.tick(20)
    assert lab["a"]._log.snapshot.index > 20
    lab.stop("n2")
    put(lab, b"k", b"with the arbiter")


def test_an_arbiter_cuts_its_log_of_positions() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter", checkpoint_log_bytes=500)
    assert lab.join("a") is None
    for number in range(60):
        put(lab, b"k", b"%d" % number)
        lab["a"].housekeep()
    assert lab["a"]._log.snapshot.index > 20
    lab.stop("a")
    lab.add("a", role="arbiter", checkpoint_log_bytes=500)
    put(lab, b"k", b"v")


def test_a_state_that_no_leader_sends_is_dropped() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    state = lab["n1"]._store.snapshot()
    for sender, configuration in (("n1", b"\xff"), ("n3", state.meta.configuration)):
        meta = SnapshotMeta(10_000, lab["n1"]._raft.term, configuration)
        message = Message(MessageType.SNAPSHOT, sender, "n2", lab["n1"]._raft.term, snapshot=meta)
        header = SnapshotHeader(message, state.digest, 0, sender)
        with pytest.raises(ProtocolViolation):
            lab["n2"].begin_snapshot(header)
        assert staged(lab, "n2") == []
    meta = replace(meta, configuration=state.meta.configuration)
    message = replace(message, sender="n1", snapshot=meta)
    incoming = lab["n2"].begin_snapshot(SnapshotHeader(message, state.digest, 0, "late"))
    assert incoming is not None
    lab["n1"].hand_over("n3", lambda _: None)
    lab.tick_until(lambda: lab["n2"]._raft.leader_id == "n3")
    incoming.finish()
    state.reader.close()
    assert lab.failed == set()
    assert staged(lab, "n2") == []
    put(lab, b"k", b"w")
    lab.tick(3)
    assert value_of(lab["n2"], b"k") == b"w"


def test_a_state_that_was_given_up_amid_its_end_is_not_installed() -> None:
    """Another transfer takes its place while it is made durable; both are as of one index."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    node, term = lab["n2"], lab["n1"]._raft.term
    meta = SnapshotMeta(10_000, term, lab["n1"]._store.configuration)
    message = Message(MessageType.SNAPSHOT, "n1", "n2", term, snapshot=meta)
    first = node.begin_snapshot(SnapshotHeader(message, 0, 0, "1"))
    assert first is not None
    finished = first._finished

    next_header = SnapshotHeader(message, 0, 0, "2")
    begun: list[IncomingSnapshot | None] = []

    def late(incoming: IncomingSnapshot) -> None:
        # Its lock is held no more: the next transfer begins, and discards this one.
        begun.append(node.begin_snapshot(next_header))
        finished(incoming)

    first._finished = late
    first.finish()
    assert lab.failed == set()
    assert begun[0] is not first
    assert node.begin_snapshot(next_header) is begun[0]  # and goes on
    assert node._raft.commit_index < meta.index
    assert value_of(node, b"k") == b"v"
    assert len(staged(lab, "n2")) == 1
    put(lab, b"k", b"w")
    lab.tick(3)
    assert value_of(node, b"k") == b"w"


def test_a_leader_that_was_does_not_displace_the_state_that_the_present_one_sends() -> None:
    lab = cluster("n2", "n3")
    node, term = lab["n2"], lab["n1"]._raft.term
    meta = SnapshotMeta(10_000, term - 1, lab["n1"]._store.configuration)
    first = node.begin_snapshot(header(lab, 10_000, "1"))
    old = Message(MessageType.SNAPSHOT, "n3", "n2", term - 1, snapshot=meta)
    with pytest.raises(Refused):
        node.begin_snapshot(SnapshotHeader(old, 0, 1, "2"))
    assert first is not None
    assert node.begin_snapshot(first.header) is first


def test_a_state_that_is_not_needed_is_not_received() -> None:
    lab = cluster("n2")
    put(lab, b"k", b"v")
    lab.tick(3)
    known = lab["n2"]._raft.commit_index
    assert lab["n2"].begin_snapshot(header(lab, known, "1")) is None
    assert staged(lab, "n2") == []
    assert lab["n2"].begin_snapshot(header(lab, known + 1, "2")) is not None


def test_an_installed_state_tells_who_the_members_are() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    lab.add("n4", checkpoint_log_bytes=500)
    assert lab.join("n4") is None
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3", checkpoint_log_bytes=500)
    assert lab["n3"]._roster.members.get("n4") is None
    lab.tick(20)
    assert lab["n3"]._log.snapshot.index == lab["n3"]._store.applied_index
    assert lab["n3"]._roster.members == lab["n1"]._roster.members
    assert lab["n3"]._roster.members.get("n4") is not None


def test_a_write_whose_end_is_hidden_in_a_snapshot_is_of_unknown_outcome() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500, write_timeout=1000.0)
    old = lab["n1"]
    lab.cut.add("n1")
    outcome = begin(old, (b"k", b"old"))
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab.leader())
    assert outcome == ["unanswered"]
    assert lab.leader()._log.snapshot.index > old._raft.last_index
    lab.cut.clear()
    lab.tick(20)
    assert lab.failed == set()
    assert isinstance(outcome[0], OutcomeUnknown)
    assert old._store.digest == lab.leader()._store.digest
    put(lab, b"k", b"new")
    assert value_of(lab.leader(), b"k") == b"new"


def test_the_log_is_kept_behind_a_state_that_is_on_its_way() -> None:
    """Or whoever gets it would need another one at once, and so on for as long as others write."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    for number in range(200):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
    for number in range(3):
        put(lab, b"k", b"%d" % number)
        lab.tick()
        checkpoint(lab["n1"])
    lab.add("n3")

    def go_on() -> None:
        """Let time pass, while the state is on its way."""
        lab.now += TICK
        for node in lab.nodes.values():
            node.tick()
        while lab.under_way:
            sender, address, message = lab.under_way.popleft()
            receiver = lab.at(address)
            if receiver is not None:
                lab.deliver(sender, receiver, message)

    for _ in range(20):
        go_on()
    ((_, outgoing),) = lab.snapshots
    assert outgoing.header.message.snapshot is not None
    index = outgoing.header.message.snapshot.index
    lab.stop("n3")  # it answers no more, so that nothing else keeps the log
    for number in range(20):
        begin(lab["n1"], (b"k", b"%d" % number * 10))
        go_on()
        checkpoint(lab["n1"])
    assert lab["n1"]._store.engine.applied_index > index
    assert lab["n1"]._log.snapshot.index <= index
    lab.snapshots.clear()
    outgoing.close()
    lab["n1"].snapshot_sent("n3", None)
    for number in range(2):
        begin(lab["n1"], (b"k", b"%d" % number))
        go_on()
        checkpoint(lab["n1"])
    assert lab["n1"]._log.snapshot.index > index


def staged(lab: Lab, node_id: str) -> list[str]:
    return [name for name in lab.disks[node_id].list("/data") if name.startswith("incoming-")]


def test_a_state_that_does_not_go_on_leaves_no_file() -> None:
    """Its disk room is not for who announces a state and never sends it."""
    lab = cluster("n2", "n3")
    far = lab["n2"].begin_snapshot(header(lab, 1 << 40, "far"))
    assert far is not None
    rows = [(b"ka", b"v", 1, 1, 1, 0)]
    lab["n2"].housekeep()
    lab.now += transfers.TRANSFER_REST - 1
    far.add(codec.encode_records(rows))
    lab["n2"].housekeep()
    lab.now += transfers.TRANSFER_REST - 1
    lab["n2"].housekeep()
    assert len(staged(lab, "n2")) == 1  # a record has come meanwhile
    lab.now += 2
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []
    with pytest.raises(Refused, match="complete or was given up"):
        far.add(codec.encode_records(rows))


def test_a_state_of_who_leads_no_more_leaves_no_file() -> None:
    lab = cluster("n2", "n3")
    assert lab["n2"].begin_snapshot(header(lab, 1 << 40, "far")) is not None
    lab["n2"].housekeep()
    assert len(staged(lab, "n2")) == 1
    lab["n1"].hand_over("n3", lambda _: None)
    lab.tick_until(lambda: lab["n2"]._raft.leader_id == "n3")
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []


def test_a_state_that_is_needed_no_more_leaves_no_file() -> None:
    lab = cluster("n2")
    first = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "1"))
    assert first is not None
    assert len(staged(lab, "n2")) == 1
    assert lab["n2"].begin_snapshot(first.header) is first
    second = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "2"))
    assert second is not first
    assert len(staged(lab, "n2")) == 1
    first.interrupted()
    for number in range(5):
        put(lab, b"k", b"%d" % number)
    lab.tick(3)
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []
    third = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "3"))
    assert third is not None
    lab.stop("n2")
    assert staged(lab, "n2") == []
    with pytest.raises(Refused):
        third.resume_after()


def test_a_second_transfer_waits_for_the_one_of_an_earlier_term() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3")
    for _ in range(20):  # n3 answers, and is sent a state: a long one
        lab.now += TICK
        lab["n1"].tick()
        while lab.under_way:
            sender, address, message = lab.under_way.popleft()
            receiver = lab.at(address)
            assert receiver is not None
            lab.deliver(sender, receiver, message)
    ((_, outgoing),) = lab.snapshots
    incoming = lab["n3"].begin_snapshot(outgoing.header)
    assert incoming is not None
    lab.snapshots.clear()
    with lab["n1"]._monitor.lock:
        lab["n1"]._raft._become_follower(lab["n1"]._raft.term)
        lab["n1"]._raft._become_candidate(force=True)
        lab["n1"]._drive()
    sent = len(lab.sent)
    lab.tick(20)
    assert lab["n1"]._raft.state is State.LEADER
    assert lab["n1"]._transfers.outgoing  # and nothing but this one goes to n3
    assert lab["n3"]._store.digest != lab["n1"]._store.digest
    assert len(lab.sent) > sent
    for chunk in outgoing.chunks(b""):
        incoming.add(chunk)
    incoming.finish()
    outgoing.close()
    lab["n1"].snapshot_sent("n3", incoming.meta.index)
    lab.tick(20)
    assert not lab["n1"]._transfers.outgoing
    assert lab["n3"]._store.digest == lab["n1"]._store.digest
