"""How writes end in a cluster of nodes; time, outcomes and what watchers see."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from conure.cluster import pacing
from conure.cluster.node import Node
from conure.commands import (
    Acquire,
    Committed,
    EventKind,
    Increment,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Refusal,
    Transaction,
)
from conure.consensus.messages import (
    Message,
    MessageType,
    State,
)
from conure.errors import (
    ConureError,
    CorruptionError,
    DiskFull,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
)
from conure.state.machine import Session
from conure.storage.engine import Record
from tests.lab.answers import value_of
from tests.lab.nodes import (
    Lab,
    begin,
    checkpoint,
    cluster,
    put,
    read,
)


def do(lab: Lab, *operations: Operation, **facts: Any) -> Outcome:
    """Carry a transaction out and return how it ended."""
    told: list[Committed | ConureError] = []
    wanted = Transaction((), operations, **facts)
    lab.leader().write([wanted], lambda _, __, ended: told.append(ended))
    lab.tick_until(lambda: bool(told))
    (ended,) = told
    assert isinstance(ended, Committed)
    return ended.outcomes[ended.first]


def test_a_write_that_another_leader_commits_is_acknowledged_by_the_old_one() -> None:
    lab = cluster("n2", "n3")
    outcome = begin(lab["n1"], (b"k", b"v"))
    lab.settle()  # committed: but first let the answers be lost
    assert outcome == [None]
    pending = begin(lab["n1"], (b"k", b"w"))
    while lab.under_way:  # the followers hold it; what they answer goes down
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        if sender == "n1" and receiver is not None:
            lab.deliver(sender, receiver, message)
    lab.under_way.clear()
    assert pending == ["unanswered"]
    lab.cut.add("n1")
    assert lab.leader() is not lab["n1"]
    lab.cut.clear()
    lab.tick_until(lambda: pending != ["unanswered"])
    assert pending == [None]
    assert value_of(lab["n1"], b"k") == b"w"


def test_a_write_that_was_overwritten_is_refused_and_may_be_tried_again() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    lost = begin(lab["n1"], (b"k", b"lost"), (b"l", b"lost"))
    lab.settle()
    put(lab, b"k", b"kept")
    put(lab, b"m", b"kept")
    lab.cut.clear()
    lab.tick_until(lambda: "unanswered" not in lost)
    assert [type(error) for error in lost] == [Unavailable, Unavailable]
    lab.tick(5)
    assert value_of(lab["n1"], b"k") == b"kept"
    assert value_of(lab["n1"], b"l") is None


class Later(list[tuple[Callable[[], None], float]]):
    """What n1 wants to do later, and after how many seconds; done by hand."""

    def act(self) -> float:
        """Do the one thing there is; return for how long it was to wait."""
        ((action, seconds),) = self
        self.clear()
        action()
        return seconds

    def act_on(self) -> None:
        """Do everything, and what comes of it."""
        while self:
            action, _ = self.pop(0)
            action()


def paused(lab: Lab) -> Later:
    later = Later()
    lab.later["n1"] = lambda action, seconds: later.append((action, seconds))
    return later


def batches(node: Node) -> list[int]:
    """The numbers of commands that were proposed together."""
    sizes: list[int] = []
    propose = node._raft.propose

    def noted(commands: Sequence[bytes]) -> int:
        first = propose(commands)
        sizes.append(len(commands))
        return first

    node._raft.propose = noted  # type: ignore[method-assign]
    return sizes


def test_writes_gather_while_others_wait_and_need_no_tick() -> None:
    lab = cluster("n2", "n3")
    sizes = batches(lab["n1"])
    outcomes = [begin(lab["n1"], (b"k", b"%d" % number)) for number in range(4)]
    assert sizes == [1]
    lab.settle()  # time stands still
    assert outcomes == [[None]] * 4
    assert sizes == [1, 3]
    assert value_of(lab["n1"], b"k") == b"3"
    outcomes = [begin(lab["n1"], (b"k", b"4"))]
    lab.settle()
    assert (outcomes, sizes) == ([[None]], [1, 3, 1])


def test_a_write_that_comes_while_answers_are_sent_goes_with_those_held_back() -> None:
    lab = cluster("n2", "n3")
    later, sizes = paused(lab), batches(lab["n1"])
    begin(lab["n1"], (b"k", b"0"), (b"l", b"0"), (b"m", b"0"))
    outcomes = [begin(lab["n1"], (b"k", b"1"))]
    lab.settle()
    outcomes.append(begin(lab["n1"], (b"k", b"2")))
    lab.tick()  # does not come before its turn
    assert sizes == [3]
    later.act()
    outcomes.append(begin(lab["n1"], (b"k", b"3")))
    assert sizes == [3]
    later.act()
    lab.settle()
    assert outcomes == [[None]] * 3
    assert sizes == [3, 3]
    later.act()  # nothing is held
    assert later == []
    outcomes.append(begin(lab["n1"], (b"k", b"4")))
    assert sizes == [3, 3, 1]  # nobody else is waited for


def test_nobody_is_waited_for_once_all_who_were_answered_have_asked_again() -> None:
    lab = cluster("n2", "n3")
    later, sizes, before = paused(lab), batches(lab["n1"]), rounds(lab)
    outcomes = [begin(lab["n1"], (b"k", b"1"), (b"l", b"1")), begin(lab["n1"], (b"k", b"2"))]
    lab.settle()
    assert outcomes == [[None, None], ["unanswered"]]
    outcomes.append(begin(lab["n1"], (b"k", b"3")))
    assert sizes == [2]
    answers = read(lab["n1"])  # the third of three
    assert sizes == [2, 2]
    assert rounds(lab) == before + 1
    later.act_on()
    lab.settle()
    assert (outcomes, answers) == ([[None, None], [None], [None]], [None])
    assert sizes == [2, 2]


@pytest.mark.parametrize(
    ("held", "waits"),
    [
        (0, []),
        (1, [pacing.GATHER]),
        (63, [pacing.GATHER]),
        (64, [0.0]),
    ],
)
def test_few_held_writes_wait_a_moment_for_those_of_who_was_answered(
    held: int, waits: list[float]
) -> None:
    lab = cluster("n2", "n3")
    later = paused(lab)
    outcomes = [begin(lab["n1"], (b"k", b"%d" % number)) for number in range(1 + held)]
    lab.settle()
    assert later.act() == 0.0
    assert [seconds for _, seconds in later] == waits
    later.act_on()
    lab.settle()
    assert outcomes == [[None]] * (1 + held)


def test_a_lone_node_holds_nothing_back() -> None:
    lab = cluster()
    later = paused(lab)
    assert [begin(lab["n1"], (b"k", b"v")), begin(lab["n1"], (b"k", b"w"))] == [[None], [None]]
    assert later == []


def rounds(lab: Lab) -> int:
    """How many rounds n1 has begun to confirm reads."""
    leading = lab["n1"]._raft._leading
    assert leading is not None
    return leading.read_round


def test_reads_gather_while_others_are_confirmed_and_need_no_tick() -> None:
    lab = cluster("n2", "n3")
    before = rounds(lab)
    answers = [read(lab["n1"]) for _ in range(4)]
    assert rounds(lab) == before + 1
    lab.settle()  # time stands still
    assert answers == [[None]] * 4
    assert rounds(lab) == before + 2


def test_a_read_that_comes_while_answers_are_sent_goes_with_those_held_back() -> None:
    lab = cluster("n2", "n3")
    later, before = paused(lab), rounds(lab)
    answers = [read(lab["n1"], 3), read(lab["n1"])]
    lab.settle()
    assert answers == [[None], []]
    answers.append(read(lab["n1"]))
    lab.tick()  # does not come before its turn
    assert rounds(lab) == before + 1
    assert later.act() == 0.0
    answers.append(read(lab["n1"]))
    assert rounds(lab) == before + 1
    assert later.act() == pacing.GATHER
    lab.settle()
    assert answers == [[None]] * 4
    assert rounds(lab) == before + 2
    later.act()  # nothing is held
    assert later == []
    answers.append(read(lab["n1"]))
    assert rounds(lab) == before + 3  # nobody else is waited for


@pytest.mark.parametrize("ask", ["write", "read"])
def test_what_is_held_goes_on_when_a_smaller_quorum_has_ended_what_it_waits_for(ask: str) -> None:
    lab = cluster("n2")
    later, node = paused(lab), lab["n1"]
    ended = [begin(node, (b"k", b"v")) if ask == "write" else read(node) for _ in range(2)]
    node.remove("n2", force=True, reply=lambda _: None)
    lab.settle()  # time stands still
    later.act_on()
    assert ended == [[None], [None]]


def test_answers_in_a_pause_do_not_end_it_for_those_who_were_answered_before() -> None:
    lab = cluster("n2", "n3")
    later, sizes = paused(lab), batches(lab["n1"])
    read(lab["n1"], 3)
    begin(lab["n1"], (b"k", b"1"), (b"l", b"1"), (b"m", b"1"))
    heartbeats = [each for each in lab.under_way if each[2].type is MessageType.HEARTBEAT]
    lab.under_way = deque([each for each in lab.under_way if each not in heartbeats])
    lab.settle()  # the writes are answered
    begin(lab["n1"], (b"k", b"2"))
    lab.under_way.extend(heartbeats)
    lab.settle()  # the reads are
    read(lab["n1"], 3)
    assert sizes == [3]  # two more are to come
    begin(lab["n1"], (b"k", b"3"), (b"l", b"3"))
    assert sizes == [3, 3]
    later.act_on()


def settle_without_appends(lab: Lab) -> None:
    while lab.under_way:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        if message.type is not MessageType.APPEND and receiver is not None:
            lab.deliver(sender, receiver, message)


def test_a_read_does_not_wait_for_writes_that_wait_for_their_quorum() -> None:
    lab = cluster("n2", "n3")
    outcomes = [begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))]
    answers = read(lab["n1"])
    settle_without_appends(lab)
    assert answers == [None]
    assert outcomes == [["unanswered"], ["unanswered"]]


def test_a_read_does_not_wait_for_writes_that_are_held_back() -> None:
    """It is taken up with them, and answered without them."""
    lab = cluster("n2", "n3")
    later = paused(lab)
    outcomes = [begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))]
    lab.settle()
    answers = read(lab["n1"])
    later.act_on()
    settle_without_appends(lab)
    assert answers == [None]
    assert value_of(lab["n1"], b"k") == b"1"
    assert outcomes == [[None], ["unanswered"]]


def test_a_held_read_is_not_answered_by_the_round_before_it() -> None:
    lab = cluster("n2", "n3")
    later, old = paused(lab), lab["n1"]
    first, second = read(old), read(old)
    lab.settle()
    assert (first, second) == ([None], [])
    lab.cut.add("n1")
    put(lab, b"k", b"v")  # by another leader
    later.act_on()
    assert [type(error) for error in second] == [NotLeader]


@pytest.mark.parametrize("end", ["step down", "time", "failure", "stop", "lead again"])
def test_reads_that_are_held_back_are_answered_once_however_it_ends(end: str) -> None:
    lab = cluster("n2", "n3", barrier_timeout=0.2, election_timeout=30.0)
    later, node = paused(lab), lab["n1"]
    read(node)
    held = [read(node), read(node)]
    expected: object = Unavailable
    if end == "step down":
        node.receive([Message(MessageType.APPEND, "n2", "n1", node._raft.term + 1)])
        expected = NotLeader
    elif end == "time":
        lab.cut |= {"n2", "n3"}
        lab.tick(5)
    elif end == "failure":
        with node._monitor:
            node._fail(CorruptionError("conure.db", 0, "it is torn"))
    elif end == "stop":
        lab.stop("n1")
    else:
        lab.settle()  # the first one is answered
        with node._monitor.lock:
            node._raft._become_follower(node._raft.term)
            node._raft._become_candidate(force=True)
            node._drive()
        lab.settle()
        expected = type(None)
    later.act_on()
    lab.settle()
    later.act_on()
    assert [[type(error) for error in each] for each in held] == [[expected], [expected]]


def test_a_reply_that_raises_does_not_hold_up_the_writes_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2", "n3")

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        raise RuntimeError("boom")

    lab["n1"].write([(b"k", b"v")], reply)
    held = begin(lab["n1"], (b"k", b"w"))
    lab.settle()
    assert held == [None]
    assert "boom" in caplog.text


def test_what_was_proposed_in_an_earlier_term_holds_nothing_back() -> None:
    """Its entries were overwritten, and the log is shorter than it was."""
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    lost = begin(lab["n1"], *[(b"k%d" % number, b"v") for number in range(50)])
    lab.leader()
    lab.cut.clear()
    lab.tick_until(lambda: "unanswered" not in lost)
    assert lab["n1"]._raft.state is State.FOLLOWER
    answers: list[ConureError | None] = []
    lab.leader().hand_over("n1", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert lab["n1"]._raft.last_index < 50
    outcome = begin(lab["n1"], (b"k", b"w"))
    lab.settle()
    assert outcome == [None]


def test_writes_that_are_held_back_go_to_the_new_leader() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    proposed, held = begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))
    leader = lab.leader()
    assert [type(error) for error in held] == [NotLeader]  # it stepped down: there is no quorum
    assert proposed == ["unanswered"]
    lab.cut.clear()
    lab.tick_until(lambda: proposed != ["unanswered"])
    assert [type(error) for error in proposed] == [Unavailable]

    lab.tick(5)
    proposed, held = begin(leader, (b"k", b"3")), begin(leader, (b"k", b"4"))
    term = leader._raft.term + 1
    message = Message(MessageType.APPEND, "n1", leader._raft.id, term)
    leader.receive([message])  # n1 leads now
    (error,) = held
    assert isinstance(error, NotLeader)
    assert error.leader_id == "n1"
    assert proposed == ["unanswered"]


def test_writes_that_are_held_back_are_proposed_by_who_leads_again() -> None:
    lab = cluster("n2", "n3")
    later, node = paused(lab), lab["n1"]
    outcomes = [begin(node, (b"k", b"1")), begin(node, (b"k", b"2"))]
    lab.settle()
    with node._monitor.lock:  # loses leadership and has it again before its turn comes
        node._raft._become_follower(node._raft.term)
        node._raft._become_candidate(force=True)
        node._drive()
    lab.settle()
    assert node._raft.state is State.LEADER
    later.act_on()
    lab.settle()
    assert outcomes == [[None], [None]]


@pytest.mark.parametrize("end", ["time", "disk", "failure", "stop"])
def test_writes_that_are_held_back_are_answered_once_however_it_ends(end: str) -> None:
    lab = cluster("n2", "n3", write_timeout=0.2, election_timeout=30.0)
    later, node = paused(lab), lab["n1"]
    proposed = begin(node, (b"k", b"1"))
    held = [begin(node, (b"k", b"2" * 9000), (b"l", b"2")), begin(node, (b"k", b"3"))]
    expected: type[ConureError] = Unavailable
    if end == "time":
        lab.cut |= {"n2", "n3"}
        lab.tick(5)
        assert isinstance(proposed[0], OutcomeUnknown)
    elif end == "disk":
        lab.settle()
        lab.disks["n1"].set_capacity(lab.disks["n1"].used_bytes())
        expected = DiskFull
    elif end == "failure":
        with node._monitor:
            node._fail(CorruptionError("conure.db", 0, "it is torn"))
        assert isinstance(proposed[0], OutcomeUnknown)
    else:
        lab.stop("n1")
        assert isinstance(proposed[0], OutcomeUnknown)
    node.take_gathered()
    later.act_on()
    lab.settle()
    assert [[type(error) for error in each] for each in held] == [[expected] * 2, [expected]]


def test_what_is_held_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.cluster.node.MAX_GATHERED_BYTES", 1000)
    lab = cluster("n2", "n3")
    outcomes = [begin(lab["n1"], (b"k", b"v" * 600)) for _ in range(4)]
    assert [type(each[0]) for each in outcomes] == [str, str, str, Unavailable]
    lab.settle()
    assert [each[0] for each in outcomes[:3]] == [None] * 3
    assert begin(lab["n1"], (b"k", b"v")) == ["unanswered"]  # there is room again


def test_a_write_without_a_quorum_is_of_unknown_outcome_in_time() -> None:
    lab = cluster("n2", "n3", write_timeout=1.0)
    lab.cut |= {"n2", "n3"}
    outcome = begin(lab["n1"], (b"k", b"v"))
    lab.tick(21)
    assert isinstance(outcome[0], OutcomeUnknown)
    assert [type(error) for error in read(lab["n1"])] == [NotLeader]


def test_reads_that_lose_their_leader_are_told_at_once() -> None:
    lab = cluster("n2", "n3", barrier_timeout=3600.0)
    lab.cut |= {"n2", "n3"}
    answers = read(lab["n1"])
    lab.tick(30)
    assert [type(error) for error in answers] == [NotLeader]


def test_a_key_expires_by_an_entry_and_everywhere_at_once() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000))
    lab.tick(19)
    assert [value_of(node, b"k") for node in lab.nodes.values()] == [b"v"] * 3
    lab.cut.add("n3")
    lab.tick(4)
    assert value_of(lab.leader(), b"k") is None
    assert value_of(lab["n3"], b"k") == b"v"  # no node finds out by itself
    lab.cut.clear()
    lab.tick(5)
    assert value_of(lab["n3"], b"k") is None
    assert lab["n1"]._store.digest == lab["n3"]._store.digest


def test_a_wall_clock_that_jumps_means_nothing_while_its_node_leads() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000))
    for ahead in (7200.0, -7200.0):
        lab.ahead["n1"] = ahead
        lab.tick(9)
        assert value_of(lab["n1"], b"k") == b"v"
    lab.tick(5)
    assert lab.leader() is lab["n1"]
    assert value_of(lab["n1"], b"k") is None


def test_time_goes_on_at_a_leader_whose_wall_clock_is_behind() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000), Put(b"l", b"v", ttl=60_000))
    lab.ahead = {"n2": -7200.0, "n3": -7200.0}
    before = lab["n1"].time()
    lab.cut.add("n1")
    lab.tick_until(lambda: value_of(lab.leader(), b"k") is None)
    assert lab.leader() is not lab["n1"]
    assert before <= lab.leader().time() < before + 10_000
    assert value_of(lab.leader(), b"l") == b"v"


def test_what_is_due_ends_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.cluster.expiring.MAX_EXPIRED", 2)
    lab = cluster("n2")
    do(lab, *[Put(b"%d" % number, b"v", ttl=100) for number in range(5)])
    lab.tick_until(lambda: len(lab["n1"]._store.engine) == 1)  # but for the clock
    kinds = [
        kind for block in lab["n1"]._applying._history.view().blocks for _, kind, *_ in block.events
    ]
    assert kinds == [EventKind.PUT] * 5 + [EventKind.EXPIRE] * 5


def test_an_outcome_is_remembered_by_whoever_leads_next() -> None:
    lab = cluster("n2", "n3")
    facts = {"idempotency_key": b"once", "fingerprint": b"f", "window": 60_000}
    first = do(lab, Increment(b"n", 1), **facts)
    lab.stop("n1")
    again = do(lab, Increment(b"n", 1), **facts)
    assert again == first._replace(repeated=True)
    lab.add("n1")
    lab.tick(20)
    assert value_of(lab["n1"], b"n") == b"1"
    other = do(lab, Increment(b"n", 1), **{**facts, "fingerprint": b"g"})
    assert other.refusal is Refusal.KEY_REUSED


def test_a_session_and_what_it_holds_are_seen_until_it_ends() -> None:
    lab = cluster("n2")
    do(lab, OpenSession(b"s", 1000, True, b"name"))
    token = do(lab, Acquire(b"k", b"s", b"mine")).results[0].number
    lab.tick(3)
    index, record, holder = lab["n2"].look(b"k")
    assert isinstance(record, Record)
    assert (record.mod_revision, record.value, holder) == (token, b"mine", (b"s", token))
    assert index >= token
    _, session = lab["n2"].session(b"s")
    assert isinstance(session, Session)
    assert session.name == b"name"
    lab.tick(25)
    assert lab["n2"].look(b"k")[1:] == (None, None)
    assert lab["n2"].session(b"s")[1] is None
    ((*_, last),) = [b.events for b in lab["n2"]._applying._history.view().blocks]
    _, kind, key, _, _ = last[:5]
    assert (kind, key) == (EventKind.EXPIRE, b"k")


def test_an_arbiter_has_no_state_to_show() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    do(lab, Put(b"k", b"v", ttl=100))
    lab.tick(20)
    for refuses in (lab["a"].pin, lab["a"].backup):
        with pytest.raises(NotLeader):
            refuses()
    assert isinstance(lab["a"].look(b"k")[1], NotLeader)
    assert isinstance(lab["a"].session(b"s")[1], NotLeader)
    assert value_of(lab["n1"], b"k") is None  # it has acknowledged that all the same


def test_only_a_member_with_records_can_be_watched() -> None:
    lab = cluster("n2", "n3")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    lab.add("stranger")
    for node_id in ("n1", "n2", "n3"):
        lab[node_id].check_watchable()
    with pytest.raises(Unavailable, match="an arbiter keeps no records; watch at another"):
        lab["a"].check_watchable()
    with pytest.raises(Unavailable, match="this node is of no cluster; watch at another"):
        lab["stranger"].check_watchable()
    put(lab, b"k", b"v")
    lab.tick(5)
    events = lab["n3"]._applying._history.view()
    assert lab.remove("n3") is None
    lab.tick(5)
    with pytest.raises(Unavailable, match="this node is of no cluster; watch at another"):
        lab["n3"].check_watchable()
    assert lab["n3"]._applying._history.view().floor > events.revision, (
        "those who watch there are ended"
    )
    assert lab["n2"]._applying._history.view().floor == 0


def test_a_log_that_is_damaged_while_it_is_read_ends_the_node_and_sends_nothing() -> None:
    """A follower that was away needs what only the leader's disk still has (S3)."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    for number in range(20):
        put(lab, b"%02d" % number, bytes(100))
    leader = lab["n1"]
    leader._log._cache.clear()
    assert not leader._raft._log.recent
    segment = leader._log._segments[0]
    for offset in range(segment.offset_of(1), segment.end, 40):
        lab.disks["n1"].corrupt(segment.path, offset)
    lab.sent.clear()
    lab.add("n3")
    lab.tick_until(lambda: "n1" in lab.failed)
    assert isinstance(leader._standing.failure, CorruptionError)
    assert leader._standing.failure.file == segment.path
    assert not [m for m in lab.sent if m.sender == "n1" and m.to == "n3" and m.entries]
    put(lab, b"after", b"the others go on")
    lab.tick(10)
    assert value_of(lab["n3"], b"07") == bytes(100)


def test_an_installed_state_begins_another_history() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3")
    lab.tick(20)
    history = lab["n3"]._applying._history
    assert history.floor > lab["n1"]._applying._history.floor
    assert history.events < lab["n1"]._applying._history.events
    put(lab, b"after", b"all")
    lab.tick(5)
    revision, _, key, _, _ = history.view().blocks[-1].events[-1][:5]
    assert (revision, key) == (history.revision, b"after")
