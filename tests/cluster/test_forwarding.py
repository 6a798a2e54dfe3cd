"""forwarding.py and serving.py: what followers ask of the leader for their clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from conure.cluster import forwarding
from conure.cluster.node import LEADER_WAIT, Node
from conure.cluster.proposing import Command
from conure.cluster.serving import COUNTED_AT_ONCE, LOOKED_AT_BYTES
from conure.commands import (
    MAX_HELD,
    Acquire,
    Committed,
    Compare,
    Expire,
    Get,
    Increment,
    OpenSession,
    Outcome,
    Put,
    Range,
    Relation,
    Sequential,
    Target,
    Transaction,
)
from conure.consensus.messages import Message, MessageType, State
from conure.errors import (
    Conflict,
    ConureError,
    DiskFull,
    NotLeader,
    OutcomeUnknown,
    TooManyHeld,
    Unavailable,
    WireError,
)
from conure.peers.calls import (
    MAX_COMMANDS,
    Answer,
    AnswerKind,
    Call,
    CallKind,
    decode_commands,
    decode_error,
    decode_outcomes,
    encode_commands,
    encode_error,
    encode_facts,
    encode_index,
    encode_outcomes,
)
from conure.state import codec
from conure.steps import Overlay
from tests.lab.nodes import Lab, cluster, put, read

Ended = Outcome | ConureError | int | None


def ask(node: Node, *commands: Command) -> list[Ended]:
    """Write at any node, and have it passed on; the list fills with how each command ended: the
    outcome of a transaction, the revision of another one, or an error."""
    answers: list[Ended] = [None] * len(commands)

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        for position in range(start, stop):
            assert answers[position] is None, "answered twice"
            if isinstance(ended, ConureError):
                answers[position] = ended
            else:
                revision = ended.first + position
                answers[position] = ended.outcomes.get(revision, revision)

    node.write(commands, reply, kept=0)
    return answers


def look(node: Node, requests: int = 1) -> list[ConureError | None]:
    answers: list[ConureError | None] = []
    node.confirm_read(answers.append, requests, passes_on=True)
    return answers


def value_of(node: Node, key: bytes) -> bytes | None:
    _, (record,) = node.get_all([key])
    assert not isinstance(record, ConureError)
    return None if record is None else record.value


def count(node: Node, code: int) -> float:
    page = node._forwarding._codes.labels(str(code))
    return page.value


def three() -> Lab:
    """A cluster that n1 leads, in which everybody has greeted everybody."""
    lab = cluster("n2", "n3")
    lab.tick(3)
    return lab


def swap(lab: Lab, node_id: str) -> None:
    """Let another node lead."""
    answers: list[ConureError | None] = []
    lab.leader().hand_over(node_id, answers.append)
    lab.tick_until(lambda: answers == [None])


def transaction(*operations: Any, **fields: Any) -> Transaction:
    return Transaction((), operations, **fields)


# -- writes ----------------------------------------------------------------------------------------


def test_a_follower_has_the_leader_write() -> None:
    lab = three()
    answers = ask(lab["n2"], (b"a", b"1"), transaction(Increment(b"n", 5)), (b"a", None))
    lab.settle()
    first, outcome, last = answers
    assert isinstance(first, int)
    assert last == first + 2
    assert isinstance(outcome, Outcome)
    assert (outcome.revision, outcome.results[0].number) == (first + 1, 5)
    assert value_of(lab["n1"], b"n") == b"5"
    assert count(lab["n2"], 200) == 3
    assert lab["n1"]._forwarding._codes.labels("200").value == 0


def test_what_is_kept_is_refused_and_only_the_rest_is_passed_on() -> None:
    lab = three()
    told: list[tuple[int, int, object]] = []
    commands = [(b"%d" % n, b"v") for n in range(4)]
    lab["n2"].write(commands, lambda *ended: told.append(ended), kept=3)
    assert [(start, stop) for start, stop, _ in told] == [(0, 3)]
    assert isinstance(told[0][2], NotLeader)
    lab.settle()
    start, stop, ended = told[1]
    assert isinstance(ended, Committed)
    assert (start, stop, ended.first + 3) == (3, 4, lab["n1"]._raft.last_index)
    assert value_of(lab["n1"], b"2") is None
    told.clear()
    lab["n1"].write(commands, lambda *ended: told.append(ended), kept=3)
    lab.settle()  # where all are done alike
    assert all(isinstance(ended, Committed) for _, _, ended in told)


def test_a_transaction_has_the_time_of_the_leader() -> None:
    """It is stamped by who proposes it, whatever the follower's clock shows."""
    lab = three()
    lab.ahead["n2"] = 5000.0
    answers = ask(lab["n2"], transaction(Put(b"k", b"v", 60_000)))
    lab.settle()
    assert isinstance(answers[0], Outcome)
    _, (record,) = lab["n1"].get_all([b"k"])
    left = record.expiry - lab["n1"].time()  # type: ignore[union-attr]
    assert 50_000 < left <= 60_000


def test_a_refused_condition_and_a_repetition_come_back_as_they_are() -> None:
    lab = three()
    put(lab, b"k", b"v")
    unmet = Transaction(
        (Compare(b"k", Target.VERSION, Relation.EQUAL, 7),), (Put(b"k", b"x"),), (Get(b"k"),)
    )
    once = transaction(Increment(b"n", 1), idempotency_key=b"key", fingerprint=b"f", window=9999)
    answers = ask(lab["n3"], unmet, once, once)
    lab.settle()
    first, second, third = answers
    assert isinstance(first, Outcome)
    assert not first.succeeded
    assert first.results[0].items[0].value == b"v"
    assert isinstance(second, Outcome)
    assert isinstance(third, Outcome)
    assert (second.results, second.repeated, third.repeated) == (third.results, False, True)


def test_while_a_call_is_under_way_others_gather_and_keep_their_order() -> None:
    lab = three()
    first = ask(lab["n2"], (b"a", b"1"))
    rest = [ask(lab["n2"], (b"a", b"%d" % n)) for n in range(2, 6)]
    assert len(lab.calls) == 1
    lab.settle()
    assert [call.kind for _, call in lab.asked] == [CallKind.WRITE, CallKind.WRITE]
    revisions = [answers[0] for answers in (first, *rest)]
    assert revisions == sorted(revisions, key=lambda revision: int(str(revision)))
    assert value_of(lab["n1"], b"a") == b"5"


def test_a_write_of_any_number_of_commands_goes_in_calls_of_so_many() -> None:
    lab = three()
    size = 2 * MAX_COMMANDS + 3
    answers = ask(lab["n2"], *[(b"k", b"%d" % n) for n in range(size)])
    lab.settle()
    assert answers == [*range(int(str(answers[0])), int(str(answers[0])) + size)]
    assert len(lab.asked) == 3
    lab.asked.clear()
    long = b"." * (forwarding.CALL_BYTES // 2)
    answers = ask(lab["n2"], *[(b"k", long)] * 5)
    lab.settle()
    assert all(isinstance(each, int) for each in answers)
    assert len(lab.asked) == 3
    lab.asked.clear()
    ask(lab["n2"], (b"k", b"."))  # under way
    nearly = (b"k", b"." * (forwarding.CALL_BYTES - 7))
    answers = ask(lab["n2"], nearly) + ask(lab["n2"], nearly, (b"k", long * 9))
    lab.settle()
    assert value_of(lab["n1"], b"k") == long * 9
    assert len(lab.asked) == 2  # the longest one there may be


@pytest.mark.parametrize(
    "error", [DiskFull("no room"), Conflict("no"), Unavailable("too much", retry_after=7)]
)
def test_what_the_leader_refuses_is_refused_with_the_same_error(
    monkeypatch: pytest.MonkeyPatch, error: ConureError
) -> None:
    lab = three()

    def refuse(commands: Sequence[bytes]) -> int:
        raise error

    monkeypatch.setattr(lab["n1"]._raft, "propose", refuse)
    (told,) = ask(lab["n2"], (b"a", b"1"))
    answers = ask(lab["n2"], (b"a", b"1"))
    lab.settle()
    (told,) = answers
    assert type(told) is type(error)
    whose = "the leader n1 has no room: " if isinstance(error, DiskFull) else ""
    assert (str(told), vars(told)) == (f"{whose}{error}", vars(error))


def test_a_leader_that_leads_no_more_has_done_nothing_and_the_next_one_is_asked() -> None:
    lab = three()
    answers = ask(lab["n2"], (b"a", b"1"))
    call = lab.calls.popleft()
    swap(lab, "n3")
    lab.calls.appendleft(call)
    later = ask(lab["n2"], (b"a", b"2"))
    lab.tick_until(lambda: None not in (*answers, *later))
    assert int(str(answers[0])) < int(str(later[0]))
    assert [caller for caller, _ in lab.asked] == ["n2", "n2"]  # the second one has both
    assert value_of(lab["n3"], b"a") == b"2"


def test_no_leader_of_another_term_takes_a_call() -> None:
    """Or a write that was late on its way could come behind others that were sent after it."""
    lab = three()
    ask(lab["n2"], (b"a", b"1"))
    call = lab.calls.popleft()
    swap(lab, "n3")
    swap(lab, "n1")
    assert lab["n1"]._raft.state is State.LEADER
    told: list[Answer | ConureError] = []
    lab.calls.append((*call[:3], told.append))
    lab.settle()
    assert isinstance(told[0], Answer)
    assert isinstance(decode_error(told[0].body), NotLeader)
    assert value_of(lab["n1"], b"a") is None


def test_what_was_overtaken_is_not_sent_again() -> None:
    """A former leader refuses at last, when others were sent to the new one already."""
    lab = three()
    first = ask(lab["n2"], (b"a", b"1"))
    lost = lab.calls.popleft()
    swap(lab, "n3")
    later = ask(lab["n2"], (b"a", b"2"))
    assert later == [None]  # it waits for the answer, for a moment
    lab.tick(int(forwarding.GRACE / 0.05) + 1)
    assert isinstance(later[0], int)
    lab.calls.append(lost)
    lab.settle()
    assert isinstance(first[0], Unavailable)
    assert "nothing happened" in str(first[0])
    assert value_of(lab["n3"], b"a") == b"2"


def test_a_write_whose_answer_is_lost_is_of_unknown_outcome_and_sent_once() -> None:
    lab = three()
    lab.loses_answers = True
    answers = ask(lab["n2"], (b"a", b"1"))
    lab.settle()
    assert isinstance(answers[0], OutcomeUnknown)
    assert len(lab.asked) == 1
    assert value_of(lab["n1"], b"a") == b"1"
    assert count(lab["n2"], 504) == 1


def test_a_write_that_was_never_sent_is_tried_again_for_a_moment() -> None:
    lab = three()
    sent, found = ask(lab["n2"], (b"a", b"1")), look(lab["n3"])
    begun = lab.now
    attempts = 0
    while sent == [None] or found == []:
        for _ in range(len(lab.calls)):  # none of them gets there
            lab.calls.popleft()[3](Unavailable("nobody answers"))
            attempts += 1
        lab.now += 0.02
        for name in ("n2", "n3"):
            with lab[name]._monitor:
                lab[name]._forwarding.go_on()
                lab[name]._forwarding.expire(lab.now)
    assert isinstance(sent[0], Unavailable)
    assert isinstance(found[0], Unavailable)
    waited = LEADER_WAIT * lab["n2"]._options.election_timeout
    assert waited <= lab.now - begun < waited + 0.1
    assert attempts < 2 * (waited / forwarding.ASK_AGAIN + 2)  # and not at once
    lab.settle()
    assert value_of(lab["n1"], b"a") is None


def test_requests_wait_for_the_next_leader() -> None:
    lab = three()
    lab.cut.add("n1")
    answers = ask(lab["n2"], (b"a", b"1"), (b"b", b"2"))
    found = look(lab["n3"])
    lab.tick(5)
    later = ask(lab["n2"], (b"a", b"3"))
    assert (answers, found, later) == ([None, None], [], [None])
    lab.leader()
    lab.tick(3)
    assert [type(each) for each in (*answers, *later)] == [int] * 3
    assert found == [None]
    assert value_of(lab.leader(), b"a") == b"3"


def test_a_write_that_nobody_answers_ends_in_time() -> None:
    lab = three()
    sent = ask(lab["n2"], (b"a", b"1"))
    lab.calls.clear()
    waiting = ask(lab["n2"], (b"a", b"2"))
    timeout = lab["n2"]._options.write_timeout
    lab.tick(int(timeout / 0.05) + 2)
    assert isinstance(waiting[0], Unavailable)
    assert "not begun" in str(waiting[0])
    assert sent == [None]
    lab.tick(int(forwarding.MARGIN / 0.05) + 1)
    assert isinstance(sent[0], OutcomeUnknown)


def test_a_node_that_comes_to_lead_proposes_what_waits() -> None:
    lab = three()
    sent = ask(lab["n2"], (b"a", b"1"))
    lost = lab.calls.popleft()
    waiting = [ask(lab["n2"], (b"a", b"%d" % n)) for n in (2, 3)]
    swap(lab, "n2")
    lab.settle()
    assert [type(each[0]) for each in waiting] == [int, int]
    lab.calls.append(lost)
    lab.settle()
    assert isinstance(sent[0], Unavailable)  # behind those it is too late
    assert value_of(lab["n2"], b"a") == b"3"


def test_what_a_leader_has_gathered_is_passed_on_when_it_leads_no_more() -> None:
    lab = three()
    first = ask(lab["n1"], (b"a", b"1"))
    gathered = ask(lab["n1"], (b"a", b"2"))
    kept: list[object] = []
    lab["n1"].write([(b"b", b"1")], lambda *ended: kept.append(ended))
    assert lab["n1"]._writes.gathered_count == 2
    lab.cut.add("n1")
    lab.under_way.clear()
    lab.tick_until(lambda: lab["n1"]._raft.state is not State.LEADER)
    lab.tick(2)
    assert isinstance(kept[0][2], NotLeader)  # type: ignore[index]
    assert gathered == [None]
    lab.cut.clear()
    lab.tick_until(lambda: None not in (*first, *gathered))
    assert isinstance(gathered[0], int)
    assert value_of(lab.leader(), b"a") == b"2"


def test_what_a_leader_has_gathered_comes_before_what_it_is_asked_for_later() -> None:
    lab = three()
    first = ask(lab["n1"], (b"a", b"1"))
    gathered = ask(lab["n1"], (b"a", b"2"))
    lab.under_way.clear()
    lab["n1"]._pacing.pause(5)  # for clients who were answered just now, until
    lab.later["n1"] = lambda action, seconds: None  # the reactor has got to it
    term = lab["n1"]._raft.term + 1
    lab["n1"].receive([Message(MessageType.HEARTBEAT, "n3", "n1", term)])
    later = ask(lab["n1"], (b"a", b"3"))
    (_, _, call, _) = lab.calls.popleft()
    assert (call.term, first) == (term, [None])
    assert decode_commands(call.body)[0] == codec.encode_put(b"a", b"2")
    assert (gathered, later) == ([None], [None])


@pytest.mark.parametrize("is_taken", [True, False])
def test_what_comes_while_leadership_is_handed_over_waits_for_who_has_it(is_taken: bool) -> None:
    """Or for this node, if nobody takes it. Clients at any node see no error."""
    lab = three()
    if not is_taken:
        lab.cut.add("n3")
    lab["n1"].hand_over("n3", lambda _: None)
    assert lab["n1"]._raft.is_handing_over
    own = ask(lab["n1"], (b"a", b"1")), ask(lab["n1"], (b"a", b"2"))
    other = ask(lab["n2"], (b"b", b"1"))
    while lab.calls:
        lab.ask(*lab.calls.popleft())
    assert (*own, other) == ([None], [None], [None])
    lab.tick_until(lambda: None not in (*own[0], *own[1], *other))
    assert int(str(own[0][0])) < int(str(own[1][0]))
    assert isinstance(other[0], int)
    assert lab.leader() is lab["n3" if is_taken else "n1"]
    assert value_of(lab.leader(), b"a") == b"2"


def test_what_another_node_was_refused_for_is_not_proposed_in_a_later_term() -> None:
    """It has asked the leader in between for what comes behind it."""
    lab = three()
    begun = ask(lab["n1"], (b"z", b"1"))
    answers = serve(lab, write_call(lab, codec.encode_put(b"a", b"1")))
    assert lab["n1"]._writes.gathered_count == 1
    lab["n1"]._pacing.pause(5)  # until the reactor has got to it
    lab.later["n1"] = lambda action, seconds: None
    term = lab["n1"]._raft.term + 1
    lab["n1"].receive([Message(MessageType.HEARTBEAT, "n3", "n1", term)])
    assert lab["n1"]._writes.gathered_count == 0
    assert isinstance(decode_error(answers[0].body), NotLeader)
    assert begun == [None]


def test_where_nobody_leads_nobody_waits_for_long() -> None:
    lab = three()
    lab.cut.add("n2")
    lab.tick_until(lambda: not lab["n2"]._raft.leader_id)
    begun = lab.now
    write, read = ask(lab["n2"], (b"a", b"1")), look(lab["n2"])
    lab.tick_until(lambda: write != [None] and read != [])
    assert lab.now - begun < LEADER_WAIT * lab["n2"]._options.election_timeout + 0.11
    assert isinstance(write[0], NotLeader)
    assert isinstance(read[0], NotLeader)
    changes: list[object] = []
    lab["n2"].pass_on("remove", {"id": "n3", "force": False}, changes.append)
    assert isinstance(changes[0], NotLeader)
    assert not lab.calls


def test_a_leader_of_the_release_before_is_not_asked() -> None:
    lab = cluster("n2", "n3")
    lab["n1"].stop()
    lab.nodes.pop("n1")
    lab.add("n1", speaks=1)
    lab.tick_until(lambda: bool(lab["n2"]._raft.leader_id))
    if lab.leader() is not lab["n1"]:
        swap(lab, "n1")
    for answers in (ask(lab["n2"], (b"a", b"1")), look(lab["n2"])):
        assert type(answers[0]) is Unavailable
        assert "takes no requests from other nodes" in str(answers[0])
    assert not lab.calls


def test_what_waits_is_refused_where_a_leader_of_the_release_before_takes_over() -> None:
    lab = three()
    lab["n1"].stop()
    lab.nodes.pop("n1")
    lab.add("n1", speaks=1)
    if lab.leader() is not lab["n3"]:
        swap(lab, "n3")
    sent, waiting = ask(lab["n2"], (b"a", b"1")), ask(lab["n2"], (b"a", b"2"))
    reading = look(lab["n2"])
    lab.calls.clear()
    swap(lab, "n1")
    assert [type(each[0]) for each in (sent, waiting, reading)] == [
        type(None),
        Unavailable,
        Unavailable,
    ]
    assert "takes no requests from other nodes" in str(waiting[0])
    assert [call.term for _, call in lab.asked if call.term == lab["n1"]._raft.term] == []


def test_a_node_that_ends_answers_what_waits() -> None:
    lab = three()
    sent, waiting, reading = (
        ask(lab["n2"], (b"a", b"1")),
        ask(lab["n2"], (b"a", b"2")),
        look(lab["n2"]),
    )
    lab["n2"].stop()
    assert isinstance(sent[0], OutcomeUnknown)
    assert isinstance(waiting[0], Unavailable)
    assert isinstance(reading[0], Unavailable)
    late = ask(lab["n2"], (b"a", b"3"))
    assert isinstance(late[0], Unavailable)
    lab.nodes.pop("n2")


# -- reads -----------------------------------------------------------------------------------------


def test_reads_at_a_follower_see_what_was_acknowledged_before() -> None:
    lab = three()
    put(lab, b"k", b"v")
    answers = [look(lab["n2"]) for _ in range(5)]
    lab.settle()
    assert answers[0] == [None]
    lab.tick_until(lambda: all(answers))
    assert answers == [[None]] * 5
    assert value_of(lab["n2"], b"k") == b"v"
    assert [call.kind for _, call in lab.asked] == [CallKind.CONFIRM] * 2  # one for those behind


def test_a_read_waits_until_this_node_has_applied_the_index() -> None:
    lab = three()
    lab.cut.add("n2")
    put(lab, b"k", b"v")
    lab.cut.clear()
    assert value_of(lab["n2"], b"k") is None
    answers = look(lab["n2"])
    read_at_once = lab["n2"]._store.applied_index
    while lab.calls or lab.answers:
        while lab.calls:
            lab.ask(*lab.calls.popleft())
        while lab.answers:
            lab.answer(*lab.answers.popleft())
        if lab.under_way:
            sender, address, message = lab.under_way.popleft()
            if message.to != "n2":
                lab.deliver(sender, lab.at(address), message)  # type: ignore[arg-type]
    assert lab["n2"]._store.applied_index == read_at_once
    assert answers == []
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert value_of(lab["n2"], b"k") == b"v"


def confirmation(lab: Lab, node_id: str = "n2") -> tuple[list[ConureError | None], Any, Answer]:
    """Ask for a read at a node, and hold the leader's word back."""
    answers = look(lab[node_id])
    lab.ask(*lab.calls.popleft())
    lab.tick_until(lambda: bool(lab.answers) or bool(answers), 1)
    while not lab.answers:
        sender, address, message = lab.under_way.popleft()
        lab.deliver(sender, lab.at(address), message)  # type: ignore[arg-type]
    _, reply, payload = lab.answers.popleft()
    return answers, reply, payload  # type: ignore[return-value]


def hold_back(lab: Lab) -> tuple[list[ConureError | None], Any, int]:
    """Ask n2 for a read, and return what takes the answer in the place of the leader's."""
    answers = look(lab["n2"])
    (_, _, call, reply) = lab.calls.popleft()
    assert call.kind is CallKind.CONFIRM
    return answers, reply, call.term


def test_the_word_of_a_former_leader_is_none() -> None:
    lab = three()
    answers, reply, term = hold_back(lab)
    swap(lab, "n3")
    index = encode_index(lab["n2"]._store.applied_index)
    assert answers == [None]  # it was asked again, and has its answer by now
    again, second, _ = hold_back(lab)
    reply(Answer(AnswerKind.CONFIRMED, term, index))
    assert again == []  # that was an answer to another question
    second(Answer(AnswerKind.CONFIRMED, term, index))
    assert again == []  # it is of another term
    lab.settle()
    lab.tick_until(lambda: bool(again))
    assert again == [None]


def test_the_word_of_another_life_of_the_leader_is_none() -> None:
    lab = three()
    answers, reply, term = hold_back(lab)
    lab["n2"]._raft.leader_incarnation = "another"
    reply(Answer(AnswerKind.CONFIRMED, term, encode_index(1)))
    assert answers == []
    assert len(lab.calls) == 1  # it is asked again


def test_a_read_that_came_later_is_not_answered_by_an_earlier_question() -> None:
    lab = three()
    first, reply, term = hold_back(lab)
    index = encode_index(lab["n2"]._store.applied_index)
    second = look(lab["n2"])
    assert not lab.calls
    reply(Answer(AnswerKind.CONFIRMED, term, index))
    assert (first, second) == ([None], [])
    assert len(lab.calls) == 1


def test_a_read_is_asked_for_again_while_there_is_time() -> None:
    lab = three()
    answers, reply, term = hold_back(lab)
    reply(OutcomeUnknown("the connection was lost"))
    assert (answers, len(lab.calls)) == ([], 0)  # not at once
    lab.tick(2)
    assert answers == [None]
    answers, reply, term = hold_back(lab)
    reply(Answer(AnswerKind.FAILED, term, encode_error(NotLeader())))
    assert (answers, len(lab.calls)) == ([], 0)  # not at once
    lab.tick(2)
    assert answers == [None]
    answers, reply, term = hold_back(lab)
    reply(Answer(AnswerKind.FAILED, term, encode_error(Unavailable("no quorum"))))
    assert str(answers[0]) == "no quorum"
    answers, reply, term = hold_back(lab)
    lab.tick(int(lab["n2"]._options.barrier_timeout / 0.05) + 1)
    assert isinstance(answers[0], Unavailable)
    reply(Answer(AnswerKind.CONFIRMED, term, encode_index(1)))
    assert len(answers) == 1


def test_reads_that_wait_are_confirmed_by_a_node_that_comes_to_lead() -> None:
    lab = three()
    asked, _, _ = hold_back(lab)
    waiting = look(lab["n2"])
    swap(lab, "n2")
    lab.tick_until(lambda: bool(asked and waiting))
    assert (asked, waiting) == ([None], [None])


def test_reads_of_a_leader_that_loses_its_office_are_asked_of_the_next_one() -> None:
    lab = three()
    first = look(lab["n1"])  # confirmed by nobody
    gathered = look(lab["n1"])
    refused = read(lab["n1"])
    lab.cut.add("n1")
    lab.under_way.clear()
    lab.tick_until(lambda: lab["n1"]._raft.state is not State.LEADER)
    lab.cut.clear()
    lab.tick_until(lambda: bool(first and gathered and refused))
    assert (first, gathered) == ([None], [None])
    assert isinstance(refused[0], NotLeader)


def look_both(node: Node) -> tuple[list[ConureError | None], list[ConureError | None]]:
    """Read for some that are passed on and some that aren't."""
    passed: list[ConureError | None] = []
    kept: list[ConureError | None] = []
    node.confirm_read(passed.append, 2, passes_on=True, kept=kept.append, kept_requests=1)
    return passed, kept


def test_reads_that_are_passed_on_and_those_that_are_not_share_a_confirmation() -> None:
    lab = three()
    lab.sent.clear()
    passed, kept = look_both(lab["n1"])
    assert lab["n1"]._reads.count == 3
    assert len(lab["n1"]._reads._reads) == 1
    lab.settle()
    assert (passed, kept) == ([None], [None])
    passed, kept = look_both(lab["n2"])
    assert (passed, [type(each) for each in kept]) == ([], [NotLeader])
    lab.settle()
    assert passed == [None]
    assert count(lab["n2"], 200) == 2
    lab.under_way.clear()
    passed, kept = look_both(lab["n1"])
    lab.under_way.clear()
    term = lab["n1"]._raft.term + 1
    lab["n1"].receive([Message(MessageType.HEARTBEAT, "n3", "n1", term)])
    assert (passed, [type(each) for each in kept]) == ([], [NotLeader])
    lab.under_way.clear()
    lab.leader()
    lab.tick_until(lambda: bool(passed))
    assert (passed, len(kept)) == ([None], 1)


def test_an_arbiter_has_nothing_to_read() -> None:
    lab = cluster("n2")
    lab.add("x", role="arbiter")
    assert lab.join("x", role="arbiter") is None
    lab.tick(3)
    answers = look(lab["x"])
    assert isinstance(answers[0], NotLeader)
    assert answers[0].leader_id == "n1"
    written = ask(lab["x"], (b"k", b"v"))
    lab.settle()
    assert isinstance(written[0], int)


def test_a_follower_that_is_behind_is_told_what_is_committed_though_there_is_a_lease() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(10)
    assert lab["n1"]._holds_lease()
    assert look(lab["n2"]) == []
    lab.asked.clear()
    lab.ask(*lab.calls.popleft())
    assert len(lab.answers) == 1  # by the lease: nobody has to be asked
    lab.settle()


def test_the_word_of_a_voter_spares_a_round_and_that_of_nobody_else() -> None:
    lab = three()
    lab.add("n4")
    assert lab.join("n4", voter=False) is None
    lab.tick(3)

    def needs_round(node_id: str, incarnation: str = "") -> bool:
        index = encode_index(lab["n1"]._raft.commit_index)
        call = Call(CallKind.CONFIRM, lab["n1"]._raft.term, index)
        answers: list[Answer] = []
        greeting = lab[node_id].greeting()
        greeting = replace(greeting, incarnation=incarnation or greeting.incarnation)
        lab["n1"].called(greeting, call, answers.append)
        is_answered = bool(answers)
        lab.settle()
        assert [answer.kind for answer in answers] == [AnswerKind.CONFIRMED]
        return not is_answered

    assert not needs_round("n2")
    assert needs_round("n4")
    assert needs_round("n2", incarnation="another")
    put(lab, b"k", b"v")
    behind = Call(CallKind.CONFIRM, lab["n1"]._raft.term, encode_index(1))
    assert serve(lab, behind) == []


# -- changes of members ----------------------------------------------------------------------------


def change(lab: Lab, node_id: str, name: str, **facts: Any) -> Any:
    told: list[Any] = []
    lab[node_id].pass_on(name, facts, told.append)
    lab.tick_until(lambda: bool(told))
    return told[0]


def test_changes_of_members_are_passed_on() -> None:
    lab = three()
    lab.add("n4")
    join = {"raft": "n4:7001", "http": "", "voter": True, "role": "", "incarnation": ""}
    preview = change(lab, "n2", "preview join", id="n4", voter=True, role="")
    assert preview["voters"] == 4
    assert change(lab, "n2", "join", id="n4", **join) == {}
    assert "n4" in {server["id"] for server in lab["n2"].members()["servers"]}
    assert change(lab, "n2", "preview remove", id="n4")["voters"] == 3
    assert isinstance(change(lab, "n2", "preview remove", id="nobody"), ConureError)
    assert change(lab, "n2", "remove", id="n4", force=False) == {}
    assert change(lab, "n2", "hand over", id="n3") == {}
    assert lab.leader() is lab["n3"]
    assert count(lab["n2"], 200) == 5


def test_too_many_changes_are_not_passed_on() -> None:
    lab = three()
    told: list[Any] = []
    for _ in range(forwarding.MAX_CHANGES + 1):
        lab["n2"].pass_on("hand over", {"id": "n1"}, told.append)
    assert [each.status for each in told] == [429]
    _, _, _, reply = lab.calls.popleft()
    reply(Answer(AnswerKind.FAILED, 1, encode_error(NotLeader())))
    assert type(told[1]) is Unavailable
    _, _, _, reply = lab.calls.popleft()
    reply(OutcomeUnknown("lost"))
    assert type(told[2]) is OutcomeUnknown
    for answer in (
        Answer(AnswerKind.CONFIRMED, 1, b""),
        Answer(AnswerKind.CHANGED, 1, encode_facts({}), is_last=False),
    ):
        _, _, _, reply = lab.calls.popleft()
        with pytest.raises(WireError):
            reply(answer)
        assert type(told[-1]) is OutcomeUnknown
    assert len(told) == 5


# -- calls that take long --------------------------------------------------------------------------


def turns_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Return what the leader puts off from now on."""
    turns: list[Callable[[], None]] = []
    later = lambda action, _: turns.append(action)  # noqa: E731
    monkeypatch.setattr(lab["n1"]._serving, "_call_later", later)
    return turns


def many_operations() -> list[bytes]:
    """Some commands that it takes several turns to look at."""
    increments = [Increment(b"%03d" % n, 1) for n in range(100)]
    command = codec.encode_transaction(transaction(*increments))
    return [command] * (3 * LOOKED_AT_BYTES // len(command))


def test_a_call_of_many_operations_is_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = three()
    turns, last = turns_of(lab, monkeypatch), lab["n1"]._raft.last_index
    commands = many_operations()
    long = serve(lab, write_call(lab, *commands))
    short = serve(lab, write_call(lab, codec.encode_put(b"000", b"0")))  # overtakes nothing
    taken = []
    while turns:
        taken.append(lab["n1"]._raft.last_index - last)
        turns.pop(0)()
    lab.settle()
    assert taken[:2] == [0, 0]
    assert set(taken[2:]) == {len(commands)}
    assert [answer.kind for answer in (*long, *short)] == [AnswerKind.COMMITTED] * 2
    assert decode_outcomes(long[0].body)[0] == last + 1
    assert decode_outcomes(short[0].body)[0] == last + 1 + len(commands)
    assert value_of(lab["n1"], b"000") == b"0"
    assert value_of(lab["n1"], b"001") == b"%d" % len(commands)


def test_nothing_of_a_call_is_taken_whose_last_command_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = three()
    turns, last = turns_of(lab, monkeypatch), lab["n1"]._raft.last_index
    commands = [*many_operations(), codec.encode_transaction(transaction(Expire(5)))]
    answers = serve(lab, write_call(lab, *commands))
    after = serve(lab, write_call(lab, codec.encode_put(b"k", b"v")))
    while turns:
        turns.pop(0)()
    lab.settle()
    (failed,) = answers
    assert (failed.kind, failed.start, failed.stop) == (AnswerKind.FAILED, 0, len(commands))
    assert isinstance(decode_error(failed.body), WireError)
    assert [answer.kind for answer in after] == [AnswerKind.COMMITTED]
    assert lab["n1"]._raft.last_index == last + 1


# -- a member that lies ----------------------------------------------------------------------------


def serve(lab: Lab, call: Call) -> list[Answer]:
    answers: list[Answer] = []
    lab["n1"].called(lab["n2"].greeting(), call, answers.append)
    return answers


def write_call(lab: Lab, *commands: bytes) -> Call:
    return Call(CallKind.WRITE, lab["n1"]._raft.term, encode_commands(commands))


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\1\1\0",
        b"\1\1\0\0\0v",
        b"\1\x09\0\0\1k",
        codec.encode_transaction(transaction(Expire(5))),
        codec.encode_put(b"k" * 40_000, b"v"),
        codec.encode_put(b"k", bytes(100 << 20)),  # which the log's messages have no room for
        codec.encode_sequential(Sequential((), (Overlay(b"k", 1 << 30, b"v"),), 1 << 31)),
    ],
    ids=range(8),
)
def test_no_command_that_no_client_can_ask_for_is_taken(command: bytes) -> None:
    lab = three()
    last = lab["n1"]._raft.last_index
    with pytest.raises(WireError):
        serve(lab, write_call(lab, codec.encode_put(b"k", b"v"), command))
    assert lab["n1"]._raft.last_index == last
    assert lab["n1"]._standing.failure is None


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"change": "join", "id": "x", "raft": "nowhere", "http": "", "voter": True, "role": "",
         "incarnation": ""},
        {"change": "join", "id": "x", "raft": "h:1", "http": "ftp:", "voter": True, "role": "",
         "incarnation": ""},
        {"change": "join", "id": "x", "raft": "h:1", "http": "", "voter": 1, "role": "",
         "incarnation": ""},
        {"change": "remove", "id": "x\n", "force": False},
        {"change": "preview join", "id": "x", "voter": True, "role": "king"},
        {"change": "burn", "id": "x"},
    ],
)  # fmt: skip
def test_no_change_that_no_route_makes_is_taken(facts: dict[str, Any]) -> None:
    lab = three()
    with pytest.raises(WireError):
        serve(lab, Call(CallKind.CHANGE, lab["n1"]._raft.term, encode_facts(facts)))


def of_sessions(lab: Lab, count: int) -> list[bytes]:
    """Return commands by each of which a session of its own wants a lock."""
    sessions = [b"s%03d" % number for number in range(count)]
    done = ask(
        lab["n2"], *[transaction(OpenSession(each, 60_000, False, b"")) for each in sessions]
    )
    lab.settle()
    assert all(isinstance(each, Outcome) for each in done)
    return [codec.encode_transaction(transaction(Acquire(b"k" + s, s, None))) for s in sessions]


def test_what_sessions_hold_is_counted_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change of leaders, when nobody knows it. The call waits for it."""
    lab = three()
    commands = of_sessions(lab, 9)
    store, counted, waits = lab["n1"]._store, [], [b"s004"] * 3
    holdings = store.holdings

    def slow(session: bytes, key: bytes) -> int | None:
        if not store.has_counted(session, key):
            counted.append(session)
        if session in waits:
            waits.remove(session)
            return None
        return holdings(session, key)

    monkeypatch.setattr(store, "holdings", slow)
    turns, last = turns_of(lab, monkeypatch), lab["n1"]._raft.last_index
    answers = serve(lab, write_call(lab, *commands))
    short = serve(lab, write_call(lab, codec.encode_put(b"000", b"0")))  # overtakes nothing
    taken, most = [lab["n1"]._raft.last_index - last], len(counted)
    while turns:
        before = len(counted)
        turns.pop(0)()
        taken.append(lab["n1"]._raft.last_index - last)
        most = max(most, len(counted) - before)
    assert most <= COUNTED_AT_ONCE
    assert taken.count(0) >= 9 // COUNTED_AT_ONCE + 2
    assert set(taken) - {0} == {len(commands)}  # as a whole
    assert not waits
    lab.settle()
    assert [answer.kind for answer in (*answers, *short)] == [AnswerKind.COMMITTED] * 2
    quick = serve(lab, write_call(lab, *commands))
    assert not turns  # all of it is known
    lab.settle()
    assert [answer.kind for answer in quick] == [AnswerKind.COMMITTED]


def test_who_leads_no_more_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = three()
    commands = of_sessions(lab, 9)
    turns = turns_of(lab, monkeypatch)
    answers = serve(lab, write_call(lab, *commands))
    assert len(turns) == 1
    swap(lab, "n2")
    turns.pop(0)()
    assert not turns
    lab.settle()
    assert isinstance(decode_error(answers[0].body), NotLeader)


def test_a_session_holds_no_more_by_way_of_a_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = three()
    done = ask(lab["n2"], transaction(OpenSession(b"s", 60_000, False, b"")))
    lab.settle()
    monkeypatch.setattr(lab["n1"]._store, "holdings", lambda *_: MAX_HELD)
    answers = ask(
        lab["n2"], (b"a", b"1"), transaction(Acquire(b"x", b"s", None)), (b"b", b"1"), (b"c", b"1")
    )
    lab.settle()
    assert isinstance(done[0], Outcome)
    assert [type(each) for each in answers] == [int, TooManyHeld, int, int]
    assert value_of(lab["n1"], b"c") == b"1"


def test_what_was_taken_in_is_answered_by_its_end_though_the_rest_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = three()
    monkeypatch.setattr(lab["n1"]._store, "holdings", lambda *_: MAX_HELD)
    crowd = iter([None, Unavailable("too many")])

    def refuse() -> None:
        if (error := next(crowd)) is not None:
            raise error

    monkeypatch.setattr(lab["n1"], "_refuse_if_crowded", refuse)
    holding = transaction(Acquire(b"x", b"s", None))
    answers = ask(lab["n2"], (b"a", b"1"), holding, (b"b", b"1"), (b"b", b"2"))
    lab.settle()
    assert [type(each) for each in answers] == [int, TooManyHeld, Unavailable, Unavailable]
    assert value_of(lab["n1"], b"a") == b"1"
    assert value_of(lab["n1"], b"b") is None


def test_no_call_reads_more_than_a_node_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = three()
    put(lab, b"k", b"v" * 1000)
    reading = codec.encode_transaction(transaction(Range(b"", None, 10)))
    answers = serve(lab, write_call(lab, *[reading] * 9))
    assert isinstance(decode_error(answers[0].body), Unavailable)
    plain = codec.encode_transaction(transaction(Get(b"k"), Get(b"none")))
    assert serve(lab, write_call(lab, *[plain] * 500)) == []
    lab.settle()


def test_long_outcomes_are_answered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.cluster.serving._ANSWER_BYTES", 2000)
    lab = three()
    put(lab, b"k", b"v" * 900)
    answers = ask(lab["n2"], *[transaction(Get(b"k"))] * 10, (b"x", b"y"))
    parts = 0
    while lab.calls or lab.under_way or lab.answers:
        if lab.answers:
            parts += 1
            lab.answer(*lab.answers.popleft())
        elif lab.calls:
            lab.ask(*lab.calls.popleft())
        else:
            sender, address, message = lab.under_way.popleft()
            lab.deliver(sender, lab.at(address), message)  # type: ignore[arg-type]
    assert parts == 4
    assert all(each.results[0].items[0].value == b"v" * 900 for each in answers[:-1])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(AnswerKind.CONFIRMED, 0, b"", 0, 2),
        Answer(AnswerKind.FAILED, 0, encode_error(Conflict("x")), 0, 3),
        Answer(AnswerKind.FAILED, 0, encode_error(Conflict("x")), 0, 1),
        Answer(AnswerKind.FAILED, 0, b"[]", 0, 2),
        Answer(AnswerKind.FAILED, 7, encode_error(Conflict("x")), 0, 2),
        Answer(AnswerKind.COMMITTED, 0, b"\0" * 11, 0, 2),
        Answer(AnswerKind.COMMITTED, 0, b"\0" * 12 + b"x", 0, 2),
        Answer(AnswerKind.COMMITTED, 0, bytes(11) + b"\1" + bytes(3) + b"\2" + bytes(4), 0, 2),
        Answer(AnswerKind.COMMITTED, 0, bytes(11) + b"\1" + bytes(3) + b"\1" + bytes(4), 0, 2),
    ],
)
def test_an_answer_that_the_call_cant_have_leaves_the_write_unknown(answer: Answer) -> None:
    lab = three()
    answers = ask(lab["n2"], (b"a", b"1"), (b"b", b"2"))
    (_, _, call, reply) = lab.calls.popleft()
    with pytest.raises(WireError):
        reply(answer._replace(term=answer.term or call.term))
    assert [type(each) for each in answers] == [OutcomeUnknown] * 2
    again = ask(lab["n2"], (b"c", b"1"))
    lab.settle()
    assert isinstance(again[0], int)


@pytest.mark.parametrize("positions", [(), (1,), (0, 1)])
def test_an_outcome_of_a_plain_write_or_none_of_a_transaction_is_no_answer(
    positions: tuple[int, ...],
) -> None:
    lab = three()
    answers = ask(lab["n2"], transaction(Increment(b"n", 1)), (b"a", b"1"))
    (_, _, call, reply) = lab.calls.popleft()
    outcome = codec.encode_outcome(Outcome(77, succeeded=True))
    body = encode_outcomes(77, [(position, outcome) for position in positions])
    with pytest.raises(WireError):
        reply(Answer(AnswerKind.COMMITTED, call.term, body, 0, 2))
    assert [type(each) for each in answers] == [OutcomeUnknown] * 2


def test_a_part_of_the_answer_to_a_read_is_none() -> None:
    lab = three()
    answers = look(lab["n2"])
    (_, _, call, reply) = lab.calls.popleft()
    with pytest.raises(WireError):
        reply(Answer(AnswerKind.CONFIRMED, call.term, encode_index(1), is_last=False))
    assert type(answers[0]) is Unavailable


def test_a_call_of_two_parts_is_over_with_the_second() -> None:
    lab = three()
    answers = ask(lab["n2"], (b"a", b"1"), (b"b", b"2"))
    (_, _, call, reply) = lab.calls.popleft()
    empty = (77).to_bytes(8, "big") + bytes(4)
    reply(Answer(AnswerKind.COMMITTED, call.term, empty, 0, 1, is_last=False))
    assert answers == [77, None]
    reply(Answer(AnswerKind.FAILED, call.term, encode_error(NotLeader()), 1, 2))
    assert isinstance(answers[1], NotLeader)  # of a part it is no reason to send all again
    assert not lab.calls


def test_outcomes_stand_by_their_commands() -> None:
    assert decode_outcomes((9).to_bytes(8, "big") + bytes(4)) == (9, {})
