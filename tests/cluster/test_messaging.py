"""messaging.py: messages from any node to all who listen, by way of the leader."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from conure.cluster import messaging, window
from conure.cluster.window import PATIENCE, Window, size_of
from conure.commands import MAX_VALUE_BYTES
from conure.consensus.messages import State
from conure.errors import ConureError, NotLeader, OutcomeUnknown, Unavailable, WireError
from conure.peers.calls import (
    FROM_NOW,
    MAX_MESSAGES,
    Answer,
    AnswerKind,
    Call,
    CallKind,
    decode_error,
    decode_heard,
    decode_messages,
    encode_heard,
    encode_index,
    encode_messages,
)
from tests.lab.nodes import Lab, cluster

Message = tuple[bytes, bytes]


class Hall:
    """An audience that notes what it hears; None: it was lost."""

    def __init__(self) -> None:
        self.heard: list[Message | None] = []
        self.is_busy = False

    def deliver(self, messages: Sequence[Message]) -> None:
        self.heard += messages

    def lose(self) -> None:
        self.heard.append(None)


class Halls:
    """A cluster of three that n1 leads, with an audience at each node."""

    def __init__(self) -> None:
        self.lab = lab = cluster("n2", "n3")
        lab.tick(3)
        self.halls = {name: Hall() for name in lab.nodes}
        for name, node in lab.nodes.items():
            node.messages.attach(self.halls[name])

    def listen(self, *names: str) -> None:
        for name in names:
            assert self.try_to_listen(name) is None

    def try_to_listen(self, name: str) -> ConureError | None:
        ready: list[ConureError | None] = []
        self.lab[name].messages.listen(ready.append)
        self.lab.tick_until(lambda: bool(ready))
        return ready[0]

    def publish(self, name: str, *texts: str) -> list[ConureError | None]:
        answers: list[ConureError | None] = []
        for text in texts:
            self.lab[name].messages.publish(b"c", text.encode(), answers.append)
        self.lab.settle()
        return answers

    def publish_in_time(self, name: str, *texts: str) -> list[ConureError | None]:
        answers = self.publish(name, *texts)
        self.lab.tick_until(lambda: len(answers) == len(texts))
        return answers

    def heard(self, name: str) -> list[str | None]:
        return [each and each[1].decode() for each in self.halls[name].heard]


def test_everybody_hears_what_anybody_publishes() -> None:
    halls = Halls()
    halls.listen("n1", "n2", "n3")
    for name in ("n1", "n2", "n3", "n1"):
        assert halls.publish(name, f"{name}a", f"{name}b") == [None, None]
    assert halls.heard("n1") == [f"n{n}{x}" for n in (1, 2, 3, 1) for x in "ab"]
    assert halls.heard("n2") == halls.heard("n3") == halls.heard("n1")
    halls.lab.tick(200)  # standing calls come to their end, and begin anew
    assert halls.publish("n2", "later") == [None]
    for name in ("n1", "n2", "n3"):
        assert halls.heard(name)[8:] == ["later"]


def test_only_who_listens_asks() -> None:
    halls = Halls()
    halls.publish("n2", "nobody")
    assert [call.kind for _, call in halls.lab.asked] == [CallKind.PUBLISH]
    halls.listen("n2")
    halls.publish("n3", "x")
    assert (halls.heard("n1"), halls.heard("n2"), halls.heard("n3")) == ([], ["x"], [])
    halls.lab["n2"].messages.rest()
    halls.publish("n1", "y")
    halls.lab.tick(100)
    halls.lab.asked.clear()
    halls.lab.tick(200)
    assert halls.lab.asked == []
    assert halls.heard("n2") == ["x"]
    halls.listen("n2")
    halls.publish("n1", "z")
    assert halls.heard("n2") == ["x", "z"]


def test_nothing_is_missed_after_a_subscription_is_confirmed() -> None:
    halls = Halls()
    for number in range(20):
        halls.listen("n3")
        halls.publish("n2", str(number))
        assert halls.heard("n3")[-1] == str(number)
        halls.lab["n3"].messages.rest()


def test_messages_that_come_together_travel_together() -> None:
    halls = Halls()
    halls.listen("n2", "n3")
    halls.lab.asked.clear()
    texts = [str(number) for number in range(5000)]
    answers = halls.publish("n2", *texts)
    assert answers == [None] * 5000
    assert halls.heard("n2") == halls.heard("n3") == texts
    assert len([1 for _, call in halls.lab.asked if call.kind is CallKind.PUBLISH]) == 3


def test_a_message_waits_for_the_next_leader() -> None:
    halls = Halls()
    halls.listen("n3")
    halls.lab.cut.add("n1")
    answers = halls.publish("n2", "a")
    assert answers == []
    halls.lab.leader()
    halls.lab.tick(3)
    assert answers == [None]
    halls.listen("n3")
    assert halls.publish("n2", "b", "c") == [None, None]
    assert halls.heard("n3") == [None, "b", "c"]


def test_a_leader_that_is_cut_off_publishes_nothing_for_sure() -> None:
    halls = Halls()
    halls.lab.cut.add("n1")
    answers = halls.publish("n1", "a")
    assert answers == []
    halls.publish("n1", "b")
    halls.lab.tick_until(lambda: len(answers) == 1)
    assert isinstance(answers[0], OutcomeUnknown)
    halls.lab.cut.clear()
    halls.lab.tick(50)
    assert halls.lab["n1"].messages._unsure.replies == []


def test_nobody_waits_for_a_leader_that_is_one_no_more() -> None:
    halls = Halls()
    halls.lab.answer = lambda *_: None  # type: ignore[method-assign]
    answers = halls.publish("n2", "a")
    assert answers == []
    del halls.lab.answer
    halls.lab.cut.add("n1")
    halls.lab.leader()
    halls.lab.tick(3)
    assert [type(each) for each in answers] == [OutcomeUnknown]
    assert halls.publish("n2", "b") == [None]


def test_who_publishes_more_than_can_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_MESSAGES", 10)
    halls = Halls()
    halls.listen("n2")
    halls.halls["n2"].is_busy = True
    answers = halls.publish("n1", *map(str, range(12)))
    assert [type(each) for each in answers].count(Unavailable) == 5
    assert [each for each in answers if each is None] == [None] * 7
    halls.halls["n2"].is_busy = False
    halls.lab.tick(2)
    assert halls.publish("n3", "later") == [None]
    heard = halls.heard("n2")
    assert len(heard) == 8
    assert (heard[-1], None in heard) == ("later", False)
    halls.halls["n2"].is_busy = True
    halls.publish("n1", "before")
    halls.lab.tick(30)
    assert halls.publish("n1", *map(str, range(12))) == [None] * 12  # n2 has had its time
    halls.halls["n2"].is_busy = False
    halls.lab.tick(3)
    assert halls.heard("n2")[-1] is None


def test_the_window_beside_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_MESSAGES", 8)
    monkeypatch.setattr(window, "WINDOW_BYTES", 2000)
    random, kept, all_messages = Random(3), Window(), list[Message]()
    for number in range(1, 300):
        message = (b"c", b"x" * random.choice((0, 10, 300, 900, 3000)))
        all_messages.append(message)
        kept.add([message])
        assert kept.last == number
        for after in range(number + 2):
            some = kept.after(after)
            missing = all_messages[after:]
            fits = len(missing) <= 8 and sum(map(size_of, missing)) <= 2000
            if after <= number and (fits or len(missing) == 1):
                assert some == missing
            else:
                assert some is None
            kept.note_place("n", min(after, number), 5.0)
            half = len(missing) <= 4 and 2 * sum(map(size_of, missing)) <= 2000
            assert kept.is_outrun(5.0 + PATIENCE) == (not half and len(missing) > 1)
            assert not kept.is_outrun(5.1 + PATIENCE)
            kept.forget_place("n")


def test_another_leader_loses_the_audience() -> None:
    halls = Halls()
    halls.listen("n1", "n2", "n3")
    halls.publish("n3", "a")
    answers: list[ConureError | None] = []
    halls.lab["n1"].hand_over("n2", answers.append)
    halls.lab.tick_until(lambda: answers == [None])
    halls.lab.tick(20)
    for name in ("n1", "n2", "n3"):
        assert halls.heard(name) == ["a", None]
    halls.listen("n1", "n2", "n3")
    assert halls.publish("n3", "b") == [None]
    for name in ("n1", "n2", "n3"):
        assert halls.heard(name) == ["a", None, "b"]


def test_a_leader_that_is_cut_off() -> None:
    halls = Halls()
    halls.listen("n1", "n2", "n3")
    halls.lab.cut.add("n1")
    halls.lab.tick(100)
    assert halls.heard("n1") == [None]  # it leads no more
    assert halls.lab.leader() is not halls.lab["n1"]
    halls.listen("n2", "n3")
    halls.publish("n2", "a")
    assert halls.heard("n2") == halls.heard("n3") == [None, "a"]
    assert isinstance(halls.try_to_listen("n1"), NotLeader)
    halls.lab.cut.clear()
    halls.lab.tick(50)
    halls.listen("n1")
    halls.publish("n3", "b")
    assert halls.heard("n1") == [None, "b"]


def test_a_leader_that_is_killed() -> None:
    halls = Halls()
    halls.listen("n2", "n3")
    halls.publish("n1", "a")
    halls.lab.stop("n1")
    halls.lab.tick(100)
    halls.listen("n2", "n3")
    assert halls.publish("n3", "b") == [None]
    assert halls.heard("n2") == halls.heard("n3") == ["a", None, "b"]


def test_a_leader_that_falls_silent() -> None:
    """Nobody says that it leads no more, and its connections stay as they are."""
    halls = Halls()
    halls.listen("n2", "n3")
    halls.publish("n1", "a")
    halls.lab.failed.add("n1")
    halls.lab.leader()
    halls.lab.tick(5)
    assert halls.heard("n2") == halls.heard("n3") == ["a", None]


def test_a_lost_connection_loses_the_audience() -> None:
    halls = Halls()
    halls.listen("n2", "n3")
    halls.lab.loses_answers = True
    halls.publish("n1", "a")
    assert halls.heard("n2") == halls.heard("n3") == [None]
    halls.lab.loses_answers = False
    halls.listen("n2")
    halls.publish("n1", "b")
    assert (halls.heard("n2"), halls.heard("n3")) == ([None, "b"], [None])


def test_who_is_behind_the_window_has_missed_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_MESSAGES", 10)
    halls = Halls()
    halls.listen("n2", "n3")
    leader = halls.lab["n1"]
    for number in range(12):  # the answers are under way meanwhile
        if number == 6:
            halls.lab.now += PATIENCE + 0.1
        leader.messages.publish(b"c", str(number).encode(), lambda _: None)
    halls.lab.settle()
    assert halls.heard("n2") == halls.heard("n3") == ["0", None]


def test_bytes_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", 1000)
    halls = Halls()
    halls.publish("n1", *["x" * 100] * 50)
    assert halls.lab["n1"].messages._window.bytes <= 1000
    halls.listen("n2")
    halls.publish("n1", "y" * 5000)
    assert halls.heard("n2") == ["y" * 5000]
    assert len(halls.lab["n1"].messages._window) == 1


def test_what_becomes_of_a_message_that_is_sent() -> None:
    halls = Halls()
    halls.listen("n1")
    halls.lab.loses_answers = True
    (lost,) = halls.publish("n2", "a")
    assert isinstance(lost, OutcomeUnknown)
    assert halls.heard("n1") == ["a"]  # and is not sent again
    halls.lab.loses_answers = False
    halls.lab.cut.add("n2")
    (unsent,) = halls.publish_in_time("n2", "b")
    assert isinstance(unsent, Unavailable | NotLeader)
    halls.lab.tick(100)
    (no_leader,) = halls.publish_in_time("n2", "c")
    assert isinstance(no_leader, NotLeader)
    halls.lab.cut.clear()
    halls.lab.tick(50)
    assert halls.publish("n2", "d") == [None]
    assert halls.heard("n1")[-1] == "d"
    assert "b" not in halls.heard("n1")


def test_too_much_that_waits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging, "MAX_OUTBOX_BYTES", 1000)
    halls = Halls()
    answers = halls.publish("n2", *["x" * 500] * 5)
    assert [type(each) for each in answers].count(Unavailable) == 2
    assert halls.publish("n2", "y") == [None]


def test_a_learner_and_an_arbiter_hear_too() -> None:
    lab = cluster("n2", "n3")
    lab.add("n4")
    assert lab.join("n4", voter=False) is None
    lab.add("n5", role="arbiter")
    assert lab.join("n5", role="arbiter") is None
    lab.tick(5)
    halls = Halls.__new__(Halls)
    halls.lab, halls.halls = lab, {name: Hall() for name in lab.nodes}
    for name, node in lab.nodes.items():
        node.messages.attach(halls.halls[name])
    halls.listen("n4", "n5")
    for name in ("n4", "n5"):
        assert halls.publish(name, name) == [None]
    assert halls.heard("n4") == halls.heard("n5") == ["n4", "n5"]


def test_a_node_that_is_no_member_or_has_stopped() -> None:
    lab = Lab()
    stranger = lab.add("n9")
    answers: list[Any] = []
    stranger.messages.publish(b"c", b"m", answers.append)
    stranger.messages.listen(answers.append)
    lab.tick(400)
    assert [type(each) for each in answers] == [NotLeader, NotLeader]
    halls = Halls()
    halls.lab.cut.add("n2")
    halls.lab["n2"].messages.listen(answers.append)
    node = halls.lab["n2"]
    halls.lab.stop("n2")
    assert isinstance(answers[2], ConureError)
    node.messages.publish(b"c", b"m", answers.append)
    node.messages.listen(answers.append)
    assert [type(each) for each in answers[3:]] == [Unavailable, Unavailable]


def test_an_older_leader_is_not_asked() -> None:
    lab = cluster("n2", speaks=1)
    lab.tick(3)
    answers: list[Any] = []
    lab["n2"].messages.publish(b"c", b"m", answers.append)
    lab["n2"].messages.listen(answers.append)
    lab.tick(400)
    assert ["knows no messages" in str(each) for each in answers] == [True, True]
    assert lab.asked == []


def test_only_the_leader_of_the_term_answers() -> None:
    halls = Halls()
    found: list[Answer] = []
    peer = halls.lab["n3"].greeting()
    term = halls.lab["n1"]._raft.term
    for name, asked in (("n2", term), ("n1", term + 1)):
        for kind, body in (
            (CallKind.PUBLISH, encode_messages([(b"c", b"m")])),
            (CallKind.LISTEN, encode_index(0)),
        ):
            halls.lab[name].called(peer, Call(kind, asked, body), found.append)
    assert [each.kind for each in found] == [AnswerKind.FAILED] * 4
    assert all(isinstance(decode_error(each.body), NotLeader) for each in found)
    halls.listen("n1")
    assert halls.heard("n1") == []


def test_what_a_node_that_lies_may_ask_for() -> None:
    halls = Halls()
    peer, leader = halls.lab["n3"].greeting(), halls.lab["n1"]
    term = leader._raft.term
    found: list[Answer] = []
    for after in (7, FROM_NOW - 1):
        leader.called(peer, Call(CallKind.LISTEN, term, encode_index(after)), found.append)
    assert isinstance(decode_error(found[0].body), Unavailable)
    assert isinstance(decode_error(found[1].body), Unavailable)
    for _ in range(100):  # one of a node waits at a time
        leader.called(peer, Call(CallKind.LISTEN, term, encode_index(0)), found.append)
    assert len(found) == 2 + 99
    with pytest.raises(WireError):
        leader.called(peer, Call(CallKind.PUBLISH, term, b"\0\0\0\1"), found.append)
    with pytest.raises(WireError):
        leader.called(peer, Call(CallKind.LISTEN, term, b""), found.append)
    for message in ((b"c", bytes(MAX_VALUE_BYTES + 1)), (bytes(1 << 17), b"")):
        with pytest.raises(WireError):  # the answer to who listens could not hold it
            leader.called(
                peer, Call(CallKind.PUBLISH, term, encode_messages([message])), found.append
            )


@pytest.mark.parametrize("last", [3, 0, 1 << 63])
def test_a_leader_that_lies(last: int) -> None:
    halls = Halls()
    halls.listen("n2")
    messages = halls.lab["n2"].messages
    question, term = messages._question, halls.lab["n2"]._raft.term
    assert question is not None
    body = encode_heard(last, [(b"c", b"m")])
    with pytest.raises(WireError):
        messages._on_heard(question, Answer(AnswerKind.HEARD, term, body))
    assert halls.heard("n2") == [None]


def test_storms_lose_nothing_silently() -> None:
    """Whatever happens, an audience hears a run of what was numbered, or is told that it missed
    something; and nothing twice."""
    for seed in range(8):
        random, halls = Random(seed), Halls()
        lab, number = halls.lab, 0
        listening: dict[str, bool] = {}
        for _ in range(120):
            name = random.choice(("n1", "n2", "n3"))
            match random.randrange(8):
                case 0:
                    lab.cut ^= {name}
                case 1:
                    lab.loses_answers = random.random() < 0.3
                case 2:
                    lab.tick(random.randrange(40))
                case 3:
                    lab[name].messages.listen(lambda _: None)
                    listening[name] = True
                case _:
                    texts = [str(number + each) for each in range(random.randrange(1, 4))]
                    number += len(texts)
                    halls.publish(name, *texts)
        lab.cut.clear()
        lab.loses_answers = False
        lab.tick(200)
        for name in ("n1", "n2", "n3"):
            texts = [each for each in halls.heard(name) if each is not None]
            assert len(texts) == len(set(texts)), seed
        lab.leader()
        halls.listen("n1", "n2", "n3")
        assert halls.publish("n2", "the end") == [None]
        assert {halls.heard(name)[-1] for name in ("n1", "n2", "n3")} == {"the end"}
        assert all(node._raft.state is not State.CANDIDATE for node in lab.nodes.values())


def test_bytes_of_messages() -> None:
    some = [(b"c", b""), (b"", b"m\0"), (b"\xff" * 300, b"x" * 70000)]
    assert decode_messages(encode_messages(some)) == some
    assert decode_heard(encode_heard(9, some)) == (9, some)
    assert encode_heard(2, [(b"c", b"hi")]).hex(" ") == (
        "00 00 00 00 00 00 00 02 00 00 00 01 00 00 00 01 00 00 00 02 63 68 69"
    )
    whole = encode_heard(9, some[:2])
    for size in range(len(whole)):
        with pytest.raises(WireError):
            decode_heard(whole[:size])
    with pytest.raises(WireError):
        decode_heard(whole + b"x")
    with pytest.raises(WireError):
        decode_messages((MAX_MESSAGES + 1).to_bytes(4) + bytes(8 * (MAX_MESSAGES + 1)))
