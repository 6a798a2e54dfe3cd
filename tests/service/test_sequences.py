"""Sequential transactions at the desk: the gate, the bounds, and room for what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from conure.commands import (
    READ_BYTES,
    WRITTEN_BYTES,
    Committed,
    Compare,
    Outcome,
    Relation,
    Sequential,
    Target,
)
from conure.errors import BadRequest, ConureError, Forbidden, PayloadTooLarge
from conure.metrics import Registry
from conure.service import promises
from conure.service.backend import Found
from conure.service.freshness import Contact
from conure.service.gate import Action, AllowAll, Caller, Gate, steps_of
from conure.service.limits import MAX_STEPS, MAX_WATCHED, STEPS_AT_ONCE, Limits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from conure.state.history import History
from conure.steps import (
    KEPT,
    WHEN_ABSENT,
    WHEN_EXISTS,
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Life,
    Look,
    Move,
    Overlay,
    Read,
    Step,
    When,
    Write,
)
from tests.lab.httpservice import FakeBackend
from tests.lab.lineproto import Line, Refer

TTL = Expiry(Life.TTL, 100)
SECRET = b"secret"


class Front:
    """Keeps what it is told."""

    def __init__(self, backend: FakeBackend, gate: Gate | None = None) -> None:
        watchers: Watchers[object] = Watchers(History(), Registry())  # type: ignore[type-var]
        limits = Limits(value_bytes=1000, range_items=1000)
        self.requests = Requests(backend, gate or AllowAll(), watchers, limits, max_workers=1)
        self.desk = self.requests.for_front(self, Refer())
        self.told: list[tuple[object, int, Outcome | None] | ConureError] = []

    def begin(self, *steps: Step, compares: Sequence[Compare] = (), answer: object = "") -> bool:
        """Hand steps over, and tell whether they are in the round at once."""
        promise = self.desk.promise_steps(steps)
        turns = self.desk.sequence(Line(), steps, compares, promise, answer or promise)
        return not any(turns)

    def end(self) -> None:
        while self.requests.end_round():
            pass

    def caller_of(self, line: Line) -> Caller:
        return Caller("a test", str(line.connection))

    def written(
        self,
        lines: Sequence[Line],
        answers: Mapping[int, object],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        for position in range(start, stop):
            if isinstance(ended, ConureError):
                self.told.append(ended)
            else:
                revision = ended.first + position
                outcome = ended.outcomes.get(revision)
                self.told.append((answers.get(position), revision, outcome))

    def found(
        self, lines: Sequence[Line], records: Sequence[Found], index: int, contact: Contact | None
    ) -> None:
        raise AssertionError

    def failed(self, line: Line, error: ConureError, contact: Contact | None = None) -> None:
        raise AssertionError(error)

    def broken(self, line: Line, how: str = "") -> None:
        raise AssertionError(how)


class Denying:
    """Denies all that touches one key, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Action, bytes, bytes | None]] = []

    def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
        self.asked.append((action, start, end))
        if start <= SECRET and (end is None or end > SECRET):
            raise Forbidden("that is secret")


def test_steps_are_one_entry_of_the_round(backend: FakeBackend) -> None:
    backend.values = {b"k": b"1"}
    backend.now = 7
    front = Front(backend)
    absent = Compare(b"n", Target.MOD_REVISION, Relation.EQUAL, 0)
    assert front.begin(Add(b"k", 1), Write(b"n", b"new"), compares=(absent,), answer="one")
    assert front.begin(Write(b"n", b"newer"), compares=(absent,), answer="two")
    assert backend.batches == []
    front.end()
    whole = Sequential((absent,), (Add(b"k", 1), Write(b"n", b"new")), 1000)
    assert backend.batches == [[whole, Sequential((absent,), (Write(b"n", b"newer"),), 1000)]]
    done = (Done(existed=True, number=2), Done())
    assert front.told == [
        ("one", 2, Outcome(2, True, done=done, time=7)),
        ("two", 3, Outcome(3, False, current=2, time=7)),
    ]
    assert backend.values == {b"k": b"2", b"n": b"new"}


def test_puts_together_are_one_entry_of_the_round(backend: FakeBackend) -> None:
    backend.now = 7
    backend.values = {b"k": b"1"}
    front = Front(backend)
    front.desk.write_together(Line(), [b"k", b"n"], [b"2", b"3"])
    front.end()
    done = (Done(existed=True), Done())
    assert front.told == [(None, 2, Outcome(2, True, done=done, time=7))]
    assert backend.values == {b"k": b"2", b"n": b"3"}


def test_puts_together_are_asked_about_and_bounded(backend: FakeBackend) -> None:
    gate = Denying()
    front = Front(backend, gate)
    with pytest.raises(Forbidden):
        front.desk.write_together(Line(), [b"k", SECRET], [b"v", b"v"])
    assert gate.asked[0] == (Action.WRITE, b"k", b"k\0")
    many = [b"%d" % n for n in range(WRITTEN_BYTES // 1000 + 1)]
    with pytest.raises(PayloadTooLarge):
        front.desk.write_together(Line(), many, [bytes(1000)] * len(many))
    front.end()
    assert backend.batches == []


EQUAL = Condition(When.EQUAL, b"x")
READS, WRITES, BOTH = [Action.READ], [Action.WRITE], [Action.READ, Action.WRITE]


@pytest.mark.parametrize(
    ("step", "actions"),
    [
        (Read(SECRET), READS),
        (Look(SECRET), READS),
        (Check(SECRET, WHEN_EXISTS, 1), READS),
        (Write(SECRET, b"v"), WRITES),
        (Write(SECRET, b"v", expiry=TTL), WRITES),
        (Write(SECRET, b"v", WHEN_ABSENT), BOTH),
        (Write(SECRET, b"v", EQUAL), BOTH),
        (Write(SECRET, b"v", expiry=KEPT), BOTH),
        (Write(SECRET, b"v", expiry=Expiry(Life.LONGER, 1)), BOTH),
        (Erase(SECRET), WRITES),
        (Erase(SECRET, EQUAL), BOTH),
        (Lapse(SECRET, TTL), BOTH),
        (Add(SECRET, 1), BOTH),
        (AddFloat(SECRET, b"1"), BOTH),
        (Append(SECRET, b"v"), BOTH),
        (Overlay(SECRET, 1, b"v"), BOTH),
    ],
)
def test_every_step_is_asked_about(backend: FakeBackend, step: Step, actions: list[Action]) -> None:
    only = SECRET, SECRET + b"\0"
    command = Sequential((), (step,), 9)
    assert list(steps_of(command, lambda _: True)) == [(each, *only) for each in actions]
    gate = Denying()
    front = Front(backend, gate)
    with pytest.raises(Forbidden):
        front.begin(Write(b"open", b"v"), step)
    front.end()
    assert (backend.batches, backend.values) == ([], {})
    assert gate.asked == [(Action.WRITE, b"open", b"open\0"), (actions[0], *only)]


def test_a_move_and_a_comparison_are_asked_about_each_key() -> None:
    one, other = (b"k", b"k\0"), (b"l", b"l\0")
    compare = Compare(b"c", Target.VERSION, Relation.EQUAL, 0)
    reads = [(Action.READ, b"c", b"c\0"), (Action.READ, *one)]
    target = [(Action.READ, *other), (Action.WRITE, *other)]
    for copies in (False, True):
        command = Sequential((compare,), (Move(b"k", b"l", copies=copies),), 9)
        asked = list(steps_of(command, lambda _: True))
        assert asked == [*reads, *([] if copies else [(Action.WRITE, *one)]), *target]


# -- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [Write(b"k", b"v"), Write(b"k", b"v", expiry=TTL), Look(b"k"), Erase(b"k")]
)
def test_an_entry_has_so_many_steps(backend: FakeBackend, step: Step) -> None:
    front = Front(backend)
    most = [step] * MAX_STEPS
    with pytest.raises(PayloadTooLarge, match="10,001 steps"):
        front.begin(*most, step)
    assert front.begin(*most)


def test_many_steps_are_handed_over_in_turns(backend: FakeBackend) -> None:
    """They are checked and encoded bit by bit, and one command all the same."""
    front = Front(backend)
    steps = [Write(b"%d" % n, b"v") for n in range(3 * STEPS_AT_ONCE)]
    turns = front.desk.sequence(Line(), steps, (), front.desk.promise_steps(steps), "many")
    assert [*turns] == [False] * 6
    assert front.begin(Add(b"0", 1), answer="one")
    front.end()
    (many, revision, outcome), (one, *_) = front.told  # type: ignore[misc]
    assert (many, revision, one) == ("many", 1, "one")
    assert isinstance(outcome, Outcome)
    assert outcome.done == (Done(),) * len(steps)
    front = Front(backend)
    with pytest.raises(PayloadTooLarge, match="max_value_bytes"):
        front.begin(*steps, Write(b"k", bytes(1001)))


def test_so_many_keys_are_watched(backend: FakeBackend) -> None:
    front = Front(backend)
    compares = [Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 0)] * MAX_WATCHED
    assert front.begin(Look(b"k"), compares=compares)
    with pytest.raises(PayloadTooLarge, match="2,001 watched keys"):
        front.begin(Look(b"k"), compares=[*compares, compares[0]])


@pytest.mark.parametrize(
    "step",
    [
        Write(b"k", bytes(1001)),
        Append(b"k", bytes(1001)),
        Overlay(b"k", 0, bytes(1001)),
        AddFloat(b"k", b"1" * 1001),
    ],
)
def test_no_value_is_longer_than_values_may_be(backend: FakeBackend, step: Step) -> None:
    with pytest.raises(PayloadTooLarge, match="max_value_bytes"):
        Front(backend).begin(step)


def test_all_that_an_entry_brings_is_bounded() -> None:
    limits = Limits(value_bytes=1 << 20, range_items=1000)
    equal = Condition(When.EQUAL, bytes(1 << 20))
    for step in (
        Write(b"k", bytes(1 << 20)), Write(b"k", b"", equal), Erase(b"k", equal),
        Check(b"k", equal, 0), Lapse(b"k", TTL, equal), Append(b"k", bytes(1 << 20)),
    ):  # fmt: skip
        limits.check_steps([step, step], ())
        with pytest.raises(PayloadTooLarge, match="in all"):
            limits.check_steps([step, step, Write(b"k", b"1")], ())


@pytest.mark.parametrize("key", [b"", bytes(1025)])
def test_a_key_that_nobody_may_have_is_refused(backend: FakeBackend, key: bytes) -> None:
    """It would end every node that applies the entry."""
    for step in (Read(key), Move(b"k", key), Write(key, b"v")):
        with pytest.raises(BadRequest, match="a key has 1 to 1,024 bytes"):
            Front(backend).begin(step)
    compare = Compare(key, Target.MOD_REVISION, Relation.EQUAL, 0)
    with pytest.raises(BadRequest, match="a key has 1 to 1,024 bytes"):
        Front(backend).begin(Read(b"k"), compares=[compare])


def test_steps_that_read_wait_for_room(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises, "MAX_PROMISED", 2500)
    front = Front(backend)
    assert front.begin(Read(b"a"), Read(b"b"))  # of up to 1,000 bytes each
    assert not front.begin(Read(b"c"))
    assert front.begin(Write(b"d", b"v"), Look(b"e"))  # reads no value
    front.end()
    for answer, _, _ in [told for told in front.told if not isinstance(told, ConureError)]:
        assert isinstance(answer, promises.Promise)
        answer.let_go()
    assert front.begin(Read(b"c"))
    front.end()


def test_no_more_is_promised_than_an_entry_reads() -> None:
    limits = Limits(value_bytes=1 << 20, range_items=1000)
    room = promises.Promises(limits)
    promise = room.promise_steps([Read(b"k")] * 1000)
    assert promise.take(1 << 40)
    most = READ_BYTES + (1 << 20)
    assert room.take(promises.MAX_PROMISED - most, 1 << 40)
    assert not room.take(1, 1 << 40)
