"""Disks that are full, where nobody can be refused any more: what a node has to log by itself.

Several nodes in one thread, as in lab/nodes.py. A disk is *full* when it takes nothing new;
what its files have is theirs. No full disk ends a node.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from conure.cluster.checkpointing import DISK_FULL_RETRY
from conure.cluster.node import Node
from conure.commands import Put
from conure.consensus import raftlog
from conure.consensus.messages import COMMAND, Entry, Message, MessageType, State
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.consensus.spares import RESERVE_BYTES, RESERVE_FILES
from conure.errors import (
    ConureError,
    DiskFull,
    ForeignDirectory,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from conure.state.codec import encode_put
from conure.state.snapshots import OutgoingSnapshot
from tests.cluster.test_node_writes import do
from tests.lab.answers import value_of
from tests.lab.nodes import Lab, begin, cluster, put, read, suffrages


def fill(lab: Lab, *node_ids: str, cow: bool = False) -> None:
    """Let disks take nothing new, and the logs on them have no room but their reserve."""
    for node_id in node_ids:
        disk = lab.disks[node_id]
        disk.set_capacity(disk.used_bytes())
        disk.copies_on_write = cow


def fill_logs(lab: Lab, *node_ids: str) -> None:
    """The same, with logs that are written to the end of what clients' writes may use."""
    for node_id in node_ids:
        log = lab[node_id]._log
        lab[node_id]._upkeep.prepare()
        for _, path in log._spares.ready:
            lab.disks[node_id].remove(path)
        log._spares.ready.clear()
        seal(log)
    fill(lab, *node_ids)


def seal(log: RaftLog) -> None:
    """Let the segment that is written to be full, as far as this process knows."""
    log._segments[-1].size = log._segments[-1].end


def write_to_the_end(lab: Lab, node_id: str) -> None:
    """Fill a lone voter's log to its last byte, on a full disk."""
    fill(lab, node_id)
    log = lab[node_id]._log
    while True:
        left = log._segments[-1].size - log._segments[-1].end
        most = max([left, *[size - 64 for size, _ in log._spares.ready]])
        if left < 100:
            if most == left:
                break
            left = most
        value = left - ENTRY_OVERHEAD - len(encode_put(b"k", b""))
        assert begin(lab[node_id], (b"k", bytes(value))) == [None]
    assert left < ENTRY_OVERHEAD


def use_up_reserve(lab: Lab, *node_ids: str) -> None:
    """Let a log have no room whatever."""
    for node_id in node_ids:
        lab[node_id]._log.give_up_reserve()
        seal(lab[node_id]._log)
    fill(lab, *node_ids)


def free(lab: Lab, *node_ids: str) -> None:
    """Let there be room, and as much time pass as a node may need to see that."""
    for node_id in node_ids:
        lab.disks[node_id].set_capacity(None)
        lab.disks[node_id].copies_on_write = False
    pass_time(lab, node_ids)


def kill(lab: Lab, node_id: str) -> None:
    """End a process without a checkpoint, and so without a cut of its log."""
    lab.nodes.pop(node_id)
    lab.disks[node_id].restart_process()


def pass_time(lab: Lab, node_ids: Iterable[str]) -> None:
    lab.now += DISK_FULL_RETRY
    for node_id in node_ids:
        if node_id in lab.nodes:
            lab[node_id].housekeep()
    lab.settle()


def depose(lab: Lab) -> str:
    """Let the leader be cut off; return its name."""
    name = lab.leader()._raft.id
    lab.cut.add(name)
    return name


def disk_of(node: Node) -> str:
    return next(found for name, _, found in node.readiness() if name == "disk")


def is_ready(node: Node) -> bool:
    return all(passes for _, passes, _ in node.readiness())


NAMES = ("n1", "n2", "n3")


# -- within the reserve ----------------------------------------------------------------------------


def test_elections_and_changes_of_members_go_on_where_all_disks_are_full() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill_logs(lab, *NAMES)
    old = depose(lab)
    leader = lab.leader()
    answers = read(leader)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert value_of(leader, b"a") == b"b"
    assert isinstance(begin(leader, (b"k", b"v"))[0], DiskFull)
    lab.cut.clear()
    lab.tick(5)
    assert lab.remove(old) is None
    assert set(suffrages(lab.leader())) == set(NAMES) - {old}
    assert not lab.failed
    assert any(node._log._segments[-1].is_reserve for node in lab.nodes.values())
    free(lab, *NAMES)
    put(lab, b"a", b"c")
    assert not lab.leader()._log._segments[-1].is_reserve
    assert len(lab.leader()._log._spares.reserve) == RESERVE_FILES


def test_a_voter_joins_where_the_leaders_disk_is_full() -> None:
    lab = cluster("n2")
    fill_logs(lab, "n1", "n2")
    lab.add("n3")
    assert lab.join("n3") is None
    assert suffrages(lab.leader())["n3"] == "voter"
    assert not lab.failed


def test_a_lone_voter_starts_on_a_full_disk_as_long_as_it_has_its_reserve() -> None:
    lab = cluster()
    put(lab, b"a", b"b")
    lab["n1"]._upkeep.prepare()
    write_to_the_end(lab, "n1")
    terms = set()
    for _ in range(5):
        kill(lab, "n1")
        node = lab.add("n1", bootstrap=True)
        terms.add(node._raft.term)
        assert value_of(node, b"a") == b"b"
        assert node._log._segments[-1].is_reserve
        assert isinstance(begin(node, (b"k", b"v"))[0], DiskFull)
    assert len(terms) == 5
    assert not lab.failed
    free(lab, "n1")
    put(lab, b"a", b"c")


def test_expiries_take_no_more_than_half_of_the_reserve() -> None:
    lab = cluster()
    for number in range(5):
        do(lab, Put(b"t%d" % number, b"v", ttl=100_000))
    do(lab, Put(b"now", b"v", ttl=1000))
    fill_logs(lab, "n1")
    lab["n1"].housekeep()
    assert lab["n1"]._upkeep.shortage is not None
    lab.tick(25)
    assert value_of(lab["n1"], b"now") is None  # on a full disk
    log = lab["n1"]._log
    assert log._segments[-1].is_reserve
    log._segments[-1].size = log._segments[-1].end  # as if others had filled it
    log.give_up_reserve()
    fill(lab, "n1")
    lab.now += 200
    last = lab["n1"]._raft.last_index
    lab.tick(10)
    assert lab["n1"]._raft.last_index == last
    assert value_of(lab["n1"], b"t0") == b"v"
    free(lab, "n1")
    lab.tick(5)
    assert value_of(lab["n1"], b"t0") is None


def test_an_arbiter_cuts_its_log_on_a_full_disk() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    lab.tick(5)
    fill(lab, "a")
    cuts = set()
    for number in range(300):
        put(lab, b"k", b"%d" % number)
        lab.now += DISK_FULL_RETRY
        lab["a"].housekeep()
        cuts.add(lab["a"]._log.snapshot.index)
    assert len(cuts) > 5
    assert not lab.failed
    lab.stop("n2")  # its votes and acknowledgements count all the same
    put(lab, b"k", b"v")


def test_a_follower_answers_what_needs_no_room_though_it_has_none() -> None:
    """Only entries that the log lacks need any; and after a gap none is taken."""
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(3)
    fill_logs(lab, "n3")
    use_up_reserve(lab, "n3")
    log, term = lab["n3"]._log, lab["n1"]._raft.term
    last = log.last_index
    known = log.entries(2, last + 1, 1 << 20)
    append = Message(MessageType.APPEND, "n1", "n3", term, 1, 1, entries=known)
    answers = answers_to(lab, append)
    assert [(answer.index, answer.reject) for answer in answers] == [(last, False)]
    news = [Entry(term, last + 6, COMMAND, encode_put(b"k", b"x"))]
    append = Message(MessageType.APPEND, "n1", "n3", term, last + 5, term, entries=news)
    answers = answers_to(lab, append)
    assert [(answer.hint, answer.reject) for answer in answers] == [(last, True)]
    news = [Entry(term, last + 1, COMMAND, encode_put(b"k", b"x"))]
    append = Message(MessageType.APPEND, "n1", "n3", term, last, term, entries=news)
    assert answers_to(lab, append) == []
    assert not lab.failed


@pytest.mark.parametrize("has_reserve", [False, True])
def test_a_follower_without_room_tries_to_make_some_at_times_only(has_reserve: bool) -> None:
    """An attempt fills a segment with zeros while everything else in the node waits."""
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(3)
    fill_logs(lab, "n3")
    if not has_reserve:
        use_up_reserve(lab, "n3")
    log, term = lab["n3"]._log, lab["n1"]._raft.term
    disk, attempts = lab.disks["n3"], []
    made = log._spares._make
    log._spares._make = lambda *of, **how: attempts.append(of) or made(*of, **how)  # type: ignore[method-assign, func-returns-value]

    def append() -> bool:
        last = log.last_index
        news = [Entry(term, last + 1, COMMAND, encode_put(b"k", b"x"))]
        answers_to(lab, Message(MessageType.APPEND, "n1", "n3", term, last, term, entries=news))
        return log.last_index > last

    assert [append() for _ in range(10)] == [has_reserve] * 10
    assert len(attempts) == 1
    lab.now += DISK_FULL_RETRY
    assert append() == has_reserve
    assert len(attempts) == 2
    disk.set_capacity(None)
    lab.now += DISK_FULL_RETRY
    assert append()
    assert append()
    assert len(attempts) == 3
    assert not log._segments[-1].is_reserve
    log.check()


def answers_to(lab: Lab, message: Message) -> list[Message]:
    lab.sent.clear()
    lab[message.to].receive([message])
    return list(lab.sent)


# -- when the reserve is gone ----------------------------------------------------------------------


def test_a_cluster_without_any_room_waits_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill_logs(lab, *NAMES)
    use_up_reserve(lab, *NAMES)
    caplog.set_level("INFO")
    caplog.clear()
    old = depose(lab)
    leader = lab.leader()
    lab.tick(100)
    leader = lab.leader()
    assert leader._upkeep.is_waiting
    assert "the log waits for room" in disk_of(leader)
    assert len(leader._room.unwritten) < 70
    assert caplog.text.count("the log has no room left") <= 2  # each node that leads says it once
    assert value_of(leader, b"a") == b"b"  # stale reads go on
    (answer,) = read(leader)
    assert isinstance(answer, Unavailable)
    assert "stale=true" in str(answer)
    assert isinstance(begin(leader, (b"k", b"v"))[0], DiskFull)
    answers: list[ConureError | None] = []
    leader.remove(old, force=True, reply=answers.append)
    assert isinstance(answers[0], DiskFull)
    assert not lab.failed
    lab.cut.clear()
    free(lab, *NAMES)
    lab.tick(5)
    put(lab, b"a", b"c")
    answers = read(lab.leader())
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    lab.tick(5)
    assert [value_of(node, b"a") for node in lab.nodes.values()] == [b"c"] * 3
    assert "there is room in the log again" in caplog.text
    assert disk_of(lab.leader()) == "ok"


def test_a_leader_without_room_for_its_first_entry_reads_by_the_others_disks() -> None:
    lab = cluster("n2", "n3", election_timeout=30.0)
    put(lab, b"a", b"b")
    lab.tick(5)
    fill_logs(lab, "n2")
    use_up_reserve(lab, "n2")
    answers: list[ConureError | None] = []
    lab["n1"].hand_over("n2", answers.append)
    lab.tick_until(lambda: lab["n2"]._raft.state is State.LEADER)
    lab.tick(3)
    assert lab["n2"]._room.unwritten
    assert lab["n2"]._raft.may_read
    answers = read(lab["n2"])
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert is_ready(lab["n2"])
    assert isinstance(begin(lab["n2"], (b"k", b"v"))[0], DiskFull)


def test_a_leader_without_room_leaves_it_to_one_that_has_some() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill_logs(lab, "n2")
    use_up_reserve(lab, "n2")
    answers: list[ConureError | None] = []
    lab["n1"].hand_over("n2", answers.append)
    lab.tick_until(lambda: lab["n2"]._raft.state is State.LEADER)
    lab.tick_until(lambda: lab["n2"]._raft.state is not State.LEADER)
    put(lab, b"a", b"c")
    assert lab.leader() is not lab["n2"]
    assert not lab.failed
    free(lab, "n2")
    lab.tick(5)
    assert value_of(lab["n2"], b"a") == b"c"


@pytest.mark.parametrize("gone", [False, True])
def test_where_one_of_three_disks_is_full_another_node_leads_and_takes_writes(gone: bool) -> None:
    for seed in range(6):
        lab = cluster("n2", "n3")
        put(lab, b"a", b"b")
        lab.tick(5 + seed)
        fill_logs(lab, "n3")
        if gone:
            use_up_reserve(lab, "n3")
        lab["n3"].housekeep()
        lab.tick(3)
        lab["n3"]._raft._timeout = 1  # it would be the first
        lab.cut.add("n1")
        assert lab.leader() is lab["n2"], seed
        lab.cut.clear()
        put(lab, b"a", b"c")
        assert lab.leader() is lab["n2"], seed
        assert not lab.failed


def test_a_node_without_room_leads_where_nobody_else_can() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    lab.cut.add("n3")
    put(lab, b"a", b"c")  # n1 and n2 have it
    fill_logs(lab, "n2")
    lab["n2"].housekeep()
    lab.cut |= {"n1"}
    lab.cut.remove("n3")
    lab.tick_until(lambda: lab["n2"]._raft.state is State.LEADER)
    lab.tick(20)
    assert value_of(lab["n3"], b"a") == b"c"
    assert not lab.failed


def test_a_lone_voter_without_any_room_says_so_and_does_not_start() -> None:
    lab = cluster()
    put(lab, b"a", b"b")
    lab["n1"]._upkeep.prepare()
    write_to_the_end(lab, "n1")
    lab["n1"]._log.give_up_reserve()
    fill(lab, "n1")
    kill(lab, "n1")
    with pytest.raises(DiskFull, match="free some space"):
        lab.add("n1", bootstrap=True)
    lab.stop("n1")
    lab.disks["n1"].set_capacity(None)
    lab.add("n1", bootstrap=True)
    assert value_of(lab["n1"], b"a") == b"b"
    put(lab, b"a", b"c")


def test_who_joins_needs_room_to_say_so_and_joins_when_there_is_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster()
    lab.add("n2")
    fill(lab, "n2")
    answers: list[ConureError | None] = []
    lab["n1"].join("n2", "n2:7001", "", voter=True, role="", reply=answers.append)
    lab.tick(40)
    assert not lab.failed
    assert caplog.text.count("no room to become a member") == 1
    assert lab["n2"]._directory.identity.cluster_id == ""
    assert "identity.json.new" not in lab.disks["n2"].list("/data")
    free(lab, "n2")
    lab.tick_until(lambda: suffrages(lab["n1"])["n2"] == "voter")


def test_a_replica_that_differs_is_marked_on_a_full_disk() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    fill_logs(lab, "n3")
    lab["n3"]._store.digest ^= 1
    lab.tick_until(lambda: "n3" in lab.failed)
    lab["n3"]._log.close()
    lab["n3"]._directory.close()
    with pytest.raises(ForeignDirectory, match="let it join again"):
        lab.add("n3")


def stand_again(node: Node) -> None:
    with node._monitor:
        node._raft._become_follower(node._raft.term)
        node._raft._become_candidate(force=True)
        node._drive()


def test_the_vote_of_a_candidate_need_not_wait_for_what_waits_for_room() -> None:
    lab = cluster("n2", election_timeout=30.0)
    put(lab, b"a", b"b")
    fill_logs(lab, "n1")
    use_up_reserve(lab, "n1")
    node = lab["n1"]
    for count in (1, 2, 3):
        stand_again(node)
        lab.settle()
        assert node._raft.state is State.LEADER  # of two voters, so its own vote has counted
        assert len([ready for ready in node._room.unwritten if ready.entries]) == count
    free(lab, "n1")
    put(lab, b"a", b"c")
    node._log.check()


def test_terms_that_pass_while_a_node_waits_for_room_take_no_memory() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill_logs(lab, "n3")
    use_up_reserve(lab, "n3")
    node = lab["n3"]
    stand_again(node)
    lab.settle()
    assert len(node._room.unwritten) == 1  # its first entry
    for _ in range(20):
        term = node._raft.term + 1
        node.receive([Message(MessageType.HEARTBEAT, "n2", "n3", term)])
        assert node._log.hard_state.term == term
    assert len(node._room.unwritten) == 1
    assert not lab.failed


@pytest.mark.parametrize("role", ["data", "arbiter"])
def test_a_snapshot_that_finds_no_room_at_its_end_is_installed_later(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = cluster("n2", checkpoint_log_bytes=500)
    lab.add("n3", role=role, checkpoint_log_bytes=500)
    assert lab.join("n3", role=role) is None
    lab.tick(5)
    lab.cut.add("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        for name in ("n1", "n2"):
            lab[name]._upkeep.checkpoint(0.0)
    reset = raftlog.RaftLog.reset

    def full(self: raftlog.RaftLog, meta: object) -> None:
        use_up_reserve(lab, "n3")
        reset(self, meta)  # type: ignore[arg-type]

    monkeypatch.setattr(raftlog.RaftLog, "reset", full)
    lab.cut.clear()
    lab.tick_until(lambda: bool(lab["n3"]._room.unwritten))
    lab.tick(20)
    assert not lab.failed
    assert lab["n3"]._raft.state is State.FOLLOWER
    monkeypatch.setattr(raftlog.RaftLog, "reset", reset)
    pass_time(lab, ["n3"])
    assert lab["n3"]._room.unwritten  # there is no room yet
    put(lab, b"k", b"v")
    free(lab, "n3")
    lab.tick(20)
    assert not lab["n3"]._room.unwritten
    assert lab["n3"]._store.applied_index == lab["n1"]._store.applied_index
    if role == "data":
        assert lab["n3"]._store.digest == lab["n1"]._store.digest


def test_a_snapshot_leaves_the_log_of_its_receiver_some_room() -> None:
    lab = cluster("n2", "n3")
    lab.tick(5)
    lab.cut.add("n3")
    put(lab, b"a", bytes(20_000))
    node, store, disk = lab["n3"], lab["n1"]._store, lab.disks["n3"]
    asked = Message(MessageType.SNAPSHOT, "n1", "n3", lab["n1"]._raft.term, snapshot=store.meta)
    outgoing = OutgoingSnapshot(asked, store.snapshot())
    (chunk,) = outgoing.chunks(b"")
    wanted = node._log.wanted_bytes
    assert wanted == 2 * 4096 + RESERVE_FILES * RESERVE_BYTES
    disk.set_capacity(disk.used_bytes() + wanted + len(chunk) - 1)
    incoming = node.begin_snapshot(outgoing.header)
    assert incoming is not None
    with pytest.raises(DiskFull, match=f"and the log {wanted} beside it"):
        incoming.add(chunk)
    assert [name for name in disk.list("/data") if name.startswith("incoming")] == []
    outgoing.close()
    disk.set_capacity(None)
    lab.cut.clear()
    lab.tick(20)
    assert value_of(node, b"a") == bytes(20_000)
    assert not lab.failed


def test_a_snapshot_ends_the_wait_of_what_it_makes_void() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    put(lab, b"a", b"b")
    lab.tick(3)
    fill(lab, "n3", cow=True)
    put(lab, b"a", b"c")
    lab.tick(3)
    assert lab["n3"]._room.unwritten
    lab.cut.add("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        for name in ("n1", "n2"):
            lab[name]._upkeep.checkpoint(0.0)
    lab.disks["n3"].set_capacity(None)  # it doesn't know that yet
    lab.cut.clear()
    lab.tick_until(lambda: lab["n3"]._log.snapshot.index > 0)
    assert not lab["n3"]._room.unwritten
    pass_time(lab, ["n3"])
    assert not lab["n3"]._upkeep.is_waiting
    lab.tick(5)
    assert lab["n3"]._store.digest == lab["n1"]._store.digest
    assert not lab.failed


# -- room that was made and isn't there ------------------------------------------------------------


def test_a_write_that_finds_no_room_where_some_was_made_waits_for_it() -> None:
    lab = cluster()
    lab["n1"]._upkeep.prepare()
    put(lab, b"a", b"b")
    fill(lab, "n1", cow=True)
    outcome = begin(lab["n1"], (b"a", b"c"))
    lab.tick(3)
    assert outcome == ["unanswered"]
    assert value_of(lab["n1"], b"a") == b"b"
    assert read(lab["n1"]) == [None]  # it is not committed
    refused = begin(lab["n1"], (b"a", b"d"))
    lab.tick()
    assert isinstance(refused[0], DiskFull)
    assert not lab.failed
    free(lab, "n1")
    assert outcome == [None]
    assert value_of(lab["n1"], b"a") == b"c"
    lab["n1"]._log.check()


def test_nothing_overtakes_what_waits_for_room() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    fill(lab, "n1", cow=True)
    outcome = begin(lab["n1"], (b"a", b"c"))
    lab.settle()
    assert outcome == ["unanswered"]
    lab.disks["n1"].set_capacity(None)  # it doesn't know that yet
    stand_again(lab["n1"])
    lab.settle()
    assert lab["n1"]._raft.state is State.LEADER
    assert len([ready for ready in lab["n1"]._room.unwritten if ready.entries]) == 2
    assert not lab.failed
    free(lab, "n1")
    assert outcome == [None]
    put(lab, b"a", b"d")
    lab["n1"]._log.check()


def test_a_write_that_waits_too_long_for_room_is_of_unknown_outcome() -> None:
    lab = cluster(write_timeout=1.0)
    put(lab, b"a", b"b")
    fill(lab, "n1", cow=True)
    outcome = begin(lab["n1"], (b"a", b"c"))
    lab.tick(25)
    assert isinstance(outcome[0], OutcomeUnknown)
    free(lab, "n1")
    assert value_of(lab["n1"], b"a") == b"c"


def test_a_follower_that_waits_acknowledges_nothing_and_takes_no_more() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill(lab, "n3", cow=True)
    for number in range(20):
        put(lab, b"k", b"%d" % number)
    lab.tick(5)
    waiting = lab["n3"]._room.unwritten
    assert len(waiting) == 1
    progress = lab["n1"]._raft.progress["n3"]
    assert progress.match < waiting[0].entries[0].index
    assert lab["n3"]._raft.last_index == waiting[0].entries[-1].index
    free(lab, "n3")
    lab.tick(10)
    assert value_of(lab["n3"], b"k") == b"19"
    assert not lab.failed


def test_a_vote_that_finds_no_room_is_not_given_before_it_is_written() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    fill(lab, "n3", cow=True)
    lab.cut.add("n1")
    lab.sent.clear()
    lab.tick(60)
    stalled = lab["n3"]._room.stalled
    assert stalled is not None
    assert stalled.hard_state is not None
    written = lab["n3"]._log.hard_state.term
    assert stalled.hard_state.term > written
    preliminary = (MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESPONSE)  # of no term yet
    said = [each for each in lab.sent if each.sender == "n3" and each.type not in preliminary]
    assert all(message.term <= written for message in said)
    term = lab["n3"]._raft.term
    lab["n3"].receive([Message(MessageType.HEARTBEAT, "n2", "n3", term + 5)])
    lab["n3"].tick()
    assert lab["n3"]._raft.term == term  # nor does it take anything
    assert not lab.failed
    assert lab["n2"]._raft.state is not State.LEADER
    free(lab, "n3")
    put(lab, b"a", b"c")
    assert lab["n3"]._room.stalled is None
    assert not lab["n3"]._upkeep.is_waiting


def test_a_node_whose_term_waits_for_room_takes_no_snapshot() -> None:
    """Not even at the end of one that it has taken until then: nothing depends on that term yet."""
    lab = cluster("n2", "n3")
    lab.cut.add("n3")
    put(lab, b"a", b"b")
    lab.tick(5)
    node, store = lab["n3"], lab["n1"]._store
    asked = Message(MessageType.SNAPSHOT, "n1", "n3", lab["n1"]._raft.term, snapshot=store.meta)
    outgoing = OutgoingSnapshot(asked, store.snapshot())
    incoming = node.begin_snapshot(outgoing.header)
    assert incoming is not None
    for chunk in outgoing.chunks(b""):
        incoming.add(chunk)
    fill(lab, "n3", cow=True)
    lab.cut = {"n1"}
    lab.tick_until(lambda: node._room.stalled is not None)
    lab.disks["n3"].set_capacity(None)  # it doesn't know that yet
    term = incoming.header.message.term = node._raft.term
    incoming.finish()
    assert (node._raft.leader_id, node._raft.term) == ("", term)
    assert (node._log.snapshot.index, node._log.hard_state.term) == (0, term - 1)
    assert [name for name in lab.disks["n3"].list("/data") if name.startswith("incoming")] == []
    with pytest.raises(Refused, match="takes no snapshot"):
        node.begin_snapshot(outgoing.header)
    pass_time(lab, ["n3"])
    assert node._room.stalled is None
    outgoing.close()
    assert not lab.failed
