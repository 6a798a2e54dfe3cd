"""Sequential transactions: what each step does, and the store beside its model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import (
    Acquire,
    Compare,
    Event,
    EventKind,
    Expire,
    OpenSession,
    Outcome,
    Put,
    Refusal,
    Relation,
    Sequential,
    Target,
    Transaction,
)
from conure.consensus.messages import Entry, EntryKind
from conure.state import codec
from conure.state.machine import LAST_TIME, Store
from conure.steps import (
    ALWAYS,
    FOREVER,
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
    Limit,
    Look,
    Move,
    Obstacle,
    Overlay,
    Read,
    Step,
    When,
    Write,
)
from conure.storage.engine import EngineOptions
from conure.storage.engines import BTREE, KINDS, kind_named
from tests.lab.crashfs import CrashFileSystem
from tests.lab.model import Command, Model, agree

INT64 = (1 << 63) - 1
LONGEST = 1 << 20
DONE, WAS_THERE = Done(), Done(existed=True)


def open_store(kind: str = BTREE, *, keeps_events: bool = True) -> Store:
    options = EngineOptions(page_size=512, cache_bytes=1 << 20)
    engine = kind_named(kind).open(CrashFileSystem(), "/conure.db", options, create=True)
    return Store(engine, b"", keeps_events=keeps_events)


def encoded(command: Command) -> bytes:
    if isinstance(command, Sequential):
        return codec.encode_sequential(command)
    if isinstance(command, Transaction):
        return codec.encode_transaction(command)
    key, value = command
    return codec.encode_delete(key) if value is None else codec.encode_put(key, value)


class Machine:
    """A store with a log."""

    def __init__(self, kind: str = BTREE, *, keeps_events: bool = True) -> None:
        self.store = open_store(kind, keeps_events=keeps_events)

    def run(self, *commands: Command) -> Outcome | None:
        first = self.store.applied_index + 1
        entries = [
            Entry(1, index, EntryKind.COMMAND, encoded(command))
            for index, command in enumerate(commands, first)
        ]
        return self.store.apply(entries).get(self.store.applied_index)

    def sequence(self, *steps: Step, **fields: Any) -> Outcome:
        outcome = self.run(
            Sequential(**{"compares": (), "longest": LONGEST, **fields, "steps": steps})
        )
        assert outcome is not None
        return outcome

    def do(self, *steps: Step, time: int = 0, longest: int = LONGEST) -> tuple[Done, ...]:
        outcome = self.sequence(*steps, time=time, longest=longest)
        assert outcome.succeeded
        return outcome.done

    def one(self, step: Step, **fields: Any) -> Done:
        (done,) = self.do(step, **fields)
        return done

    def obstacle(self, step: Step, **fields: Any) -> Obstacle:
        return self.one(step, **fields).obstacle

    def value(self, key: bytes) -> bytes | None:
        record = self.store.get(key)
        return None if record is None else record.value

    def expiry(self, key: bytes) -> int:
        record = self.store.get(key)
        assert record is not None
        return record.expiry

    def events(self) -> list[Event]:
        return [Event(each[0], EventKind(each[1]), *each[2:]) for each in self.store.take_events()]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.store.engine.check()


# -- the whole -----------------------------------------------------------------------------------


def test_steps_see_what_those_before_them_did(machine: Machine) -> None:
    done = machine.do(
        Read(b"k"), Write(b"k", b"1"), Read(b"k"), Add(b"k", 4), Append(b"k", b"0"), Read(b"k"),
        Erase(b"k"), Look(b"k"), Write(b"k", b"again"),
    )  # fmt: skip
    assert done == (
        DONE,
        DONE,
        Done(Obstacle.NONE, True, 1, b"1"),
        Done(Obstacle.NONE, True, 5),
        Done(Obstacle.NONE, True, 2),
        Done(Obstacle.NONE, True, 2, b"50"),
        WAS_THERE,
        DONE,
        DONE,
    )
    record = machine.store.get(b"k")
    assert record is not None
    assert record[:4] == (b"again", 1, 1, 1)


def test_steps_leave_no_circles_to_the_collector() -> None:
    machine = Machine()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            machine.do(Append(b"k", b"v"), Erase(b"n"))
        assert gc.collect() < 20
    finally:
        gc.enable()


def test_a_step_that_can_not_be_done_changes_nothing_and_the_others_go_on(machine: Machine) -> None:
    machine.run((b"k", b"text"))
    done = machine.do(Write(b"a", b"1"), Add(b"k", 1), Move(b"none", b"x"), Write(b"b", b"2"))
    assert [each.obstacle.name for each in done] == ["NONE", "NOT_AN_INTEGER", "NO_KEY", "NONE"]
    assert [machine.value(key) for key in (b"a", b"b", b"k", b"x")] == [b"1", b"2", b"text", None]


def test_comparisons_are_judged_by_the_state_before(machine: Machine) -> None:
    machine.run((b"watched", b"1"), (b"other", b"1"))
    unchanged = Compare(b"watched", Target.MOD_REVISION, Relation.EQUAL, 1)
    absent = Compare(b"absent", Target.MOD_REVISION, Relation.EQUAL, 0)
    outcome = machine.sequence(
        Write(b"watched", b"2"), Write(b"absent", b"2"), compares=(unchanged, absent), time=9
    )
    assert outcome == Outcome(3, True, done=(WAS_THERE, DONE), time=9)
    machine.events()
    for compare, current in ((unchanged, 3), (absent, 3)):
        outcome = machine.sequence(Write(b"other", b"2"), compares=(compare,))
        assert outcome == Outcome(outcome.revision, False, current=current, time=9)
    assert (machine.value(b"other"), machine.events()) == (b"1", [])


def test_it_is_done_once_with_an_idempotency_key(machine: Machine) -> None:
    once = {"idempotency_key": b"id", "fingerprint": b"fp", "window": 50, "time": 5}
    first = machine.sequence(Add(b"n", 1), Read(b"n"), **once)
    again = machine.sequence(Add(b"n", 1), Read(b"n"), **{**once, "time": 8})
    assert again == first._replace(repeated=True)
    assert first.time == 5
    assert machine.value(b"n") == b"1"
    other = machine.sequence(Add(b"n", 1), **{**once, "fingerprint": b"other"})
    assert (other.refusal, other.done) == (Refusal.KEY_REUSED, ())


def test_the_time_is_that_of_the_entry_and_never_goes_back(machine: Machine) -> None:
    life = Expiry(Life.TTL, 100)
    assert machine.sequence(Write(b"k", b"v", expiry=life), time=1_000).time == 1_000
    assert machine.sequence(Write(b"l", b"v", expiry=life), time=400).time == 1_000
    assert (machine.expiry(b"k"), machine.expiry(b"l")) == (1_100, 1_100)
    assert machine.one(Look(b"k"), time=1_030) == Done(Obstacle.NONE, True, 1, None, 1_100, 70)


def test_what_is_due_is_there_until_an_entry_ends_it(machine: Machine) -> None:
    machine.do(Write(b"k", b"v", expiry=Expiry(Life.TTL, 100)), time=1_000)
    late = machine.do(Read(b"k"), Write(b"k", b"w", WHEN_ABSENT), time=1_200)
    assert late == (Done(Obstacle.NONE, True, 1, b"v", 1_100, 0), Done(Obstacle.UNMET, True))
    machine.run(Transaction((), (Expire(9),), time=1_200))
    assert machine.do(Read(b"k"), Write(b"k", b"w", WHEN_ABSENT)) == (DONE, DONE)


def test_a_lock_says_nothing_about_the_record_of_its_key(machine: Machine) -> None:
    machine.run(
        Transaction((), (OpenSession(b"s", 100, True, b""),)),
        Transaction((), (Acquire(b"k", b"s", b"v"),)),
    )
    machine.do(Move(b"k", b"l"))
    assert machine.store.holder(b"k") is not None
    assert (machine.value(b"k"), machine.value(b"l")) == (None, b"v")


# -- events --------------------------------------------------------------------------------------


def test_a_key_has_one_event_of_an_entry_with_its_last_state(machine: Machine) -> None:
    machine.run((b"gone", b"1"), (b"back", b"1"), (b"kept", b"1"))
    machine.events()
    machine.do(
        Write(b"twice", b"1"),
        Erase(b"gone"),
        Write(b"never", b"1"),
        Erase(b"back"),
        Write(b"twice", b"2"),
        Erase(b"never"),
        Write(b"back", b"2"),
        Lapse(b"kept", Expiry(Life.TTL, 100)),  # changes no revision
        Read(b"kept"),
        Erase(b"none"),
    )
    assert machine.events() == [
        Event(4, EventKind.PUT, b"twice", b"2", 2),
        Event(4, EventKind.DELETE, b"gone", b"", 0),
        Event(4, EventKind.PUT, b"back", b"2", 1),
    ]


def test_an_event_tells_what_was_there_before_the_entry(machine: Machine) -> None:
    machine.run((b"a", b"old"), (b"b", b"old"))
    machine.store.keep_previous(True)
    machine.events()
    machine.do(Write(b"a", b"1"), Write(b"a", b"2"), Erase(b"b"), Write(b"c", b"3"), time=7)
    assert machine.store.take_events() == [
        (3, 0, b"a", b"2", 3, b"old"),
        (3, 1, b"b", b"", 0, b"old"),
        (3, 0, b"c", b"3", 1, None),
    ]


def test_events_change_nothing_of_the_state() -> None:
    steps = (
        Write(b"a", b"1"), Erase(b"a"), Write(b"a", b"2"), Move(b"a", b"b", copies=True),
        Erase(b"b"),
    )  # fmt: skip
    with_events, without = Machine(), Machine(keeps_events=False)
    assert with_events.do(*steps) == without.do(*steps)
    assert with_events.store.digest == without.store.digest
    assert without.store.take_events() == []


# -- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "there", "absent"),
    [
        (ALWAYS, True, True),
        (WHEN_EXISTS, True, False),
        (WHEN_ABSENT, False, True),
        (Condition(When.EQUAL, b"old"), True, False),
        (Condition(When.EQUAL, b"ol"), False, False),
        (Condition(When.EQUAL, b"old1"), False, False),
        (Condition(When.EQUAL, b""), False, False),
        (Condition(When.DIFFERS, b"old"), False, True),
        (Condition(When.DIFFERS, b"ol"), True, True),
    ],
)
def test_conditions(machine: Machine, condition: Condition, there: bool, absent: bool) -> None:
    for value, holds in ((b"old", there), (None, absent)):
        machine.run((b"k", value))
        existed = value is not None
        unmet = Done(Obstacle.UNMET, existed)
        assert machine.one(Check(b"k", condition, 0)) == (Done(existed=existed) if holds else unmet)
        steps: list[Step] = [Write(b"k", b"new", condition), Erase(b"k", condition)]
        for step in steps:
            machine.run((b"k", value))
            done = machine.one(step)
            assert done == (Done(existed=existed) if holds else unmet)
            assert (machine.value(b"k") == value) == (
                not holds or (value is None and step is steps[1])
            )
    machine.run((b"k", b"old"))
    lapse = Lapse(b"k", Expiry(Life.AT, 50), condition)
    assert machine.one(lapse) == (WAS_THERE if there else Done(Obstacle.UNMET, True))
    assert machine.expiry(b"k") == (50 if there else 0)
    assert machine.obstacle(Lapse(b"none", Expiry(Life.AT, 50), condition)) is Obstacle.NO_KEY


def test_conditions_on_the_expiry(machine: Machine) -> None:
    machine.do(
        Write(b"for ever", b""), Write(b"due", b"", expiry=Expiry(Life.TTL, 5)),
        Write(b"later", b"", expiry=Expiry(Life.TTL, 6)), time=100,
    )  # fmt: skip
    for key, expires in ((b"none", False), (b"for ever", False), (b"due", False), (b"later", True)):
        existed = key != b"none"
        met, unmet = Done(existed=existed), Done(Obstacle.UNMET, existed)
        checks = [Check(key, Condition(when), 0) for when in (When.EXPIRES, When.LASTS)]
        assert machine.do(*checks, time=105) == ((met, unmet) if expires else (unmet, met))


def test_a_check_leaves_out_the_steps_that_follow_it(machine: Machine) -> None:
    done = machine.do(
        Check(b"a", WHEN_EXISTS, 2),
        Write(b"a", b"1"),
        Check(b"b", WHEN_EXISTS, 9),
        Write(b"c", b"1"),
        Check(b"c", WHEN_EXISTS, 1),
        Write(b"d", b"1"),
        Check(b"c", WHEN_ABSENT, 1 << 40),
        Write(b"e", b"1"),
    )
    names = ["UNMET", "SKIPPED", "SKIPPED", "NONE", "NONE", "NONE", "UNMET", "SKIPPED"]
    assert [each.obstacle.name for each in done] == names
    assert [machine.value(key) for key in (b"a", b"c", b"d", b"e")] == [None, b"1", b"1", None]


# -- expiry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expiry", "there", "absent"),
    [
        (Expiry(Life.FOREVER), 0, 0),
        (KEPT, 5_000, 0),
        (Expiry(Life.TTL, 1), 1_001, 1_001),
        (Expiry(Life.AT, 1_001), 1_001, 1_001),
        (Expiry(Life.TTL, INT64), LAST_TIME, LAST_TIME),
        (Expiry(Life.LONGER, 10), 5_010, None),
        (Expiry(Life.LONGER, -10), 4_990, None),
        (Expiry(Life.TTL, 0), None, None),
        (Expiry(Life.TTL, -5), None, None),
        (Expiry(Life.AT, 1_000), None, None),
        (Expiry(Life.AT, -INT64), None, None),
        (Expiry(Life.LONGER, -4_000), None, None),
    ],
)
def test_a_write_sets_the_expiry(
    machine: Machine, expiry: Expiry, there: int | None, absent: int | None
) -> None:
    machine.do(Write(b"k", b"v", expiry=Expiry(Life.AT, 5_000)), time=1_000)
    for key, end in ((b"k", there), (b"l", absent)):
        machine.do(Write(key, b"w", expiry=expiry))
        if end is None:
            assert machine.value(key) is None
        else:
            assert (machine.value(key), machine.expiry(key)) == (b"w", end)


@pytest.mark.parametrize("limit", [Limit(bits) for bits in range(16)])
@pytest.mark.parametrize("current", [0, 5_000])
@pytest.mark.parametrize("new", [0, 900, 4_000, 5_000, 6_000])
def test_limits_of_an_expiry(machine: Machine, limit: Limit, current: int, new: int) -> None:
    machine.do(Write(b"k", b"v"), time=1_000)
    if current:
        machine.do(Lapse(b"k", Expiry(Life.AT, current)))
    old_end, new_end = current or 1 << 70, new or 1 << 70
    allowed = not (
        (Limit.HAS_NONE in limit and current)
        or (Limit.HAS_ONE in limit and not current)
        or (Limit.LATER in limit and new_end <= old_end)
        or (Limit.EARLIER in limit and new_end >= old_end)
    )
    if new == current == 0 and not limit & Limit.LATER:
        allowed = False  # there is nothing to take away
    if new == current == 0 == limit:
        allowed = False
    expiry = Expiry(Life.AT, new) if new else Expiry(Life.FOREVER)
    done = machine.one(Lapse(b"k", expiry, limit=limit))
    assert (done.obstacle, done.existed) == (Obstacle.NONE if allowed else Obstacle.UNMET, True)
    if allowed and new == 900:
        assert machine.value(b"k") is None
    else:
        assert machine.expiry(b"k") == (new if allowed else current)


def test_a_lapse_changes_no_revision(machine: Machine) -> None:
    machine.run((b"k", b"v"))
    machine.do(Lapse(b"k", Expiry(Life.TTL, 100)), Lapse(b"k", Expiry(Life.LONGER, 5)), time=10)
    record = machine.store.get(b"k")
    assert record is not None
    assert record == (b"v", 1, 1, 1, 115)
    assert machine.obstacle(Lapse(b"none", Expiry(Life.TTL, 100))) is Obstacle.NO_KEY
    machine.do(Lapse(b"k", Expiry(Life.FOREVER)))
    assert machine.expiry(b"k") == 0
    assert machine.obstacle(Lapse(b"k", Expiry(Life.LONGER, 5))) is Obstacle.UNMET


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "by", "end"),
    [
        (None, -5, -5),
        (b"41", 1, 42),
        (b"-1", -1, -2),
        (b"%d" % INT64, -1, INT64 - 1),
        (b"%d" % (-INT64 - 1), 0, -INT64 - 1),
        (b"%d" % INT64, 1, Obstacle.OVERFLOW),
        (b"%d" % -INT64, -2, Obstacle.OVERFLOW),
        (b"9" * 19, 0, Obstacle.NOT_AN_INTEGER),
        (b"007", 1, Obstacle.NOT_AN_INTEGER),
        (b"-0", 1, Obstacle.NOT_AN_INTEGER),
        (b"", 1, Obstacle.NOT_AN_INTEGER),
        (b" 1", 1, Obstacle.NOT_AN_INTEGER),
        (b"1\n", 1, Obstacle.NOT_AN_INTEGER),
        (b"+1", 1, Obstacle.NOT_AN_INTEGER),
        ("٣".encode(), 1, Obstacle.NOT_AN_INTEGER),
        (bytes(1000), 1, Obstacle.NOT_AN_INTEGER),
    ],
)
def test_additions(machine: Machine, value: bytes | None, by: int, end: int) -> None:
    if value is not None:
        machine.do(Write(b"n", value, expiry=Expiry(Life.TTL, 70)))
    done = machine.one(Add(b"n", by))
    if isinstance(end, Obstacle):
        assert done == Done(end, True)
        assert machine.value(b"n") == value
    else:
        assert done == Done(Obstacle.NONE, value is not None, end)
        assert machine.value(b"n") == b"%d" % end
        assert machine.expiry(b"n") == (0 if value is None else 70)


def test_additions_of_floats(machine: Machine) -> None:
    machine.do(Write(b"n", b"10.50", expiry=Expiry(Life.TTL, 70)))
    assert machine.one(AddFloat(b"n", b"0.1")) == Done(Obstacle.NONE, True, 0, b"10.6")
    assert (machine.value(b"n"), machine.expiry(b"n")) == (b"10.6", 70)
    assert machine.one(AddFloat(b"m", b"-3")) == Done(Obstacle.NONE, False, 0, b"-3")
    machine.run((b"n", b"9e200"), (b"x", b"text"))
    assert machine.one(AddFloat(b"n", b"9e200")) == Done(Obstacle.NOT_FINITE, True)
    assert machine.one(AddFloat(b"n", b"inf")) == Done(Obstacle.NOT_FINITE, True)
    assert machine.one(AddFloat(b"x", b"1")) == Done(Obstacle.NOT_A_FLOAT, True)
    assert machine.one(AddFloat(b"y", b"text")) == Done(Obstacle.NOT_A_FLOAT, False)
    assert machine.value(b"y") is None


def test_bytes_are_put_behind_and_over_a_value(machine: Machine) -> None:
    machine.do(Write(b"k", b"Hello", expiry=Expiry(Life.TTL, 70)))
    assert machine.one(Append(b"k", b" World")) == Done(Obstacle.NONE, True, 11)
    assert machine.one(Overlay(b"k", 6, b"Redis")) == Done(Obstacle.NONE, True, 11)
    assert (machine.value(b"k"), machine.expiry(b"k")) == (b"Hello Redis", 70)
    assert machine.one(Overlay(b"k", 13, b"!")) == Done(Obstacle.NONE, True, 14)
    assert machine.value(b"k") == b"Hello Redis\0\0!"
    assert machine.one(Overlay(b"n", 2, b"x")) == Done(Obstacle.NONE, False, 3)
    assert machine.one(Overlay(b"o", 2, b"")) == DONE
    assert machine.one(Overlay(b"n", 90, b"")) == Done(Obstacle.NONE, True, 3)
    assert machine.one(Append(b"e", b"")) == DONE
    assert [machine.value(key) for key in (b"n", b"o", b"e")] == [b"\0\0x", None, b""]


def test_records_are_moved_and_copied_with_their_expiry(machine: Machine) -> None:
    machine.do(Write(b"k", b"v", expiry=Expiry(Life.TTL, 70)), Write(b"l", b"w"))
    assert machine.obstacle(Move(b"none", b"l")) is Obstacle.NO_KEY
    assert machine.one(Move(b"k", b"l", replaces=False)) == Done(Obstacle.UNMET, True)
    assert machine.obstacle(Move(b"k", b"k", replaces=False)) is Obstacle.UNMET
    assert machine.one(Move(b"k", b"k")) == WAS_THERE
    assert machine.one(Move(b"k", b"c", replaces=False, copies=True)) == WAS_THERE
    machine.events()
    assert machine.one(Move(b"k", b"l")) == WAS_THERE
    assert [machine.value(key) for key in (b"k", b"l", b"c")] == [None, b"v", b"v"]
    assert (machine.expiry(b"l"), machine.expiry(b"c")) == (70, 70)
    assert [(event.kind.name, event.key) for event in machine.events()] == [
        ("PUT", b"l"),
        ("DELETE", b"k"),
    ]
    machine.run(Transaction((), (Expire(9),), time=100))
    assert machine.store.records == 0


def test_parts_of_values_are_read(machine: Machine) -> None:
    machine.run((b"k", b"This is a string"))
    parts = [machine.one(Read(b"k", *ends)).value for ends in ((0, 3), (-3, -1), (10, 100), (5, 4))]
    assert parts == [b"This", b"ing", b"string", b""]
    assert machine.one(Read(b"k", 0, 0)).number == 16


# -- bounds --------------------------------------------------------------------------------------


def test_no_value_is_longer_than_the_entry_allows(machine: Machine) -> None:
    machine.run((b"k", b"12345678"))
    steps: list[Step] = [
        Write(b"k", b"123456789"), Append(b"k", b"9"), Overlay(b"k", 8, b"9"),
        AddFloat(b"k", b"1e8"), Overlay(b"n", INT64, b"x"), Add(b"k", 99_999_999),
    ]  # fmt: skip
    for step in steps:
        assert machine.obstacle(step, longest=8) is Obstacle.TOO_LONG
    assert machine.obstacle(Move(b"k", b"l"), longest=7) is Obstacle.TOO_LONG
    assert machine.obstacle(Append(b"k", b""), longest=8) is Obstacle.NONE
    assert [machine.value(b"k"), machine.value(b"n")] == [b"12345678", None]


def test_what_the_steps_of_an_entry_read_is_bounded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.stepping.READ_BYTES", 100)
    machine.run((b"k", bytes(60)))
    reads: tuple[Step, ...] = (
        Read(b"k", 0, 0), Read(b"k"), Read(b"k"), Read(b"none"), Look(b"k"), Append(b"k", b"x"),
        Add(b"k", 1), AddFloat(b"k", b"1"), Move(b"k", b"l"), Lapse(b"k", Expiry(Life.TTL, 5)),
        Write(b"k", b"1"),
    )  # fmt: skip
    names = [each.obstacle.name for each in machine.do(*reads)]
    assert names == [
        "NONE", "NONE", "TOO_MUCH", "NONE", "NONE", "TOO_MUCH", "TOO_MUCH", "TOO_MUCH", "TOO_MUCH",
        "TOO_MUCH", "NONE",
    ]  # fmt: skip


def test_what_was_not_read_is_not_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.stepping.READ_BYTES", 100)
    machine.run((b"k", bytes(60)), (b"l", bytes(60)), (b"m", b"v"))
    steps: list[Step] = [Read(b"k"), Read(b"l"), Read(b"m", skips=1), Erase(b"m"), Look(b"m")]
    names = [each.obstacle.name for each in machine.do(*steps)]
    assert names == ["NONE", "NONE", "TOO_MUCH", "SKIPPED", "NONE"]
    assert machine.value(b"m") == b"v"


def test_a_value_counts_as_read_where_its_expiry_is_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may have to read it for that."""
    monkeypatch.setattr("conure.state.stepping.READ_BYTES", 100)
    machine.run((b"k", bytes(60)))
    lapses = [Lapse(b"k", Expiry(Life.TTL, 5 + n)) for n in range(3)]
    done = machine.do(*lapses)
    assert [each.obstacle.name for each in done] == ["NONE", "NONE", "TOO_MUCH"]
    assert machine.expiry(b"k") == 6


def test_what_the_steps_of_an_entry_write_is_bounded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.stepping.WRITTEN_BYTES", 100)
    steps: list[Step] = [
        Write(b"a", bytes(60)), Move(b"a", b"b"), Append(b"a", b"x"), Write(b"c", bytes(40)),
        Write(b"d", b"1"), Write(b"e", b""),
    ]  # fmt: skip
    names = [each.obstacle.name for each in machine.do(*steps, longest=70)]
    assert names == ["NONE", "TOO_MUCH", "TOO_MUCH", "NONE", "TOO_MUCH", "NONE"]
    assert machine.obstacle(Write(b"d", bytes(150)), longest=150) is Obstacle.NONE


# -- the model -----------------------------------------------------------------------------------

KEYS = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.sampled_from([b"", b"1", b"7", b"-12", b"0.5", b"xy", b"007", b"%d" % INT64])
CONDITIONS = st.just(ALWAYS) | st.one_of(
    st.sampled_from([WHEN_EXISTS, WHEN_ABSENT, Condition(When.EXPIRES), Condition(When.LASTS)]),
    st.builds(Condition, st.sampled_from([When.EQUAL, When.DIFFERS]), VALUES),
)
EXPIRIES = st.one_of(
    st.sampled_from([Expiry(Life.FOREVER), KEPT]),
    st.builds(Expiry, st.sampled_from([Life.TTL, Life.LONGER]), st.integers(-20, 60)),
    st.builds(Expiry, st.just(Life.AT), st.integers(0, 300)),
)
LIMITS = st.sampled_from([Limit(bits) for bits in range(16)])
BYS = st.integers(-20, 20) | st.sampled_from([INT64, -INT64 - 1])
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(Write, KEYS, VALUES, CONDITIONS, EXPIRIES),
    st.builds(Write, KEYS, VALUES, st.just(ALWAYS), st.just(FOREVER)),
    st.builds(Read, KEYS, st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 2)),
    st.builds(Look, KEYS),
    st.builds(Erase, KEYS, CONDITIONS),
    st.builds(Lapse, KEYS, EXPIRIES, CONDITIONS, LIMITS),
    st.builds(Lapse, KEYS, EXPIRIES, st.just(ALWAYS), st.just(Limit.NONE)),
    st.builds(Add, KEYS, BYS),
    st.builds(AddFloat, KEYS, st.sampled_from([b"1", b"0.5", b"-2.25", b"x"])),
    st.builds(Append, KEYS, VALUES),
    st.builds(Overlay, KEYS, st.integers(0, 6), VALUES),
    st.builds(Move, KEYS, KEYS, st.booleans(), st.booleans()),
    st.builds(Check, KEYS, CONDITIONS, st.integers(0, 3)),
)
COMPARES = st.builds(
    Compare, KEYS, st.just(Target.MOD_REVISION), st.just(Relation.EQUAL), st.integers(0, 3)
)
TIMES = st.integers(0, 200)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        Sequential,
        st.just(()) | st.lists(COMPARES, max_size=1).map(tuple),
        st.lists(STEPS, max_size=8).map(tuple),
        st.sampled_from([LONGEST, LONGEST, 4]),
        TIMES,
        st.sampled_from([b"", b"", b"id"]),
        st.just(b"fp"),
        st.just(40),
    ),
    st.tuples(KEYS, st.none() | VALUES),
    st.builds(lambda time: Transaction((), (Expire(9),), time=time), TIMES),
    st.builds(lambda key, ttl: Transaction((), (Put(key, b"v", ttl),)), KEYS, st.integers(1, 50)),
)


@settings(deadline=None)
@given(st.lists(COMMANDS, max_size=12), st.sampled_from(sorted(KINDS)))
def test_the_store_does_what_the_model_does(commands: list[Command], kind: str) -> None:
    machine, model = Machine(kind), Model()
    for command in commands:
        assert machine.run(command) == model.run(command)
        agree(machine.store, model)
    assert machine.events() == model.events
    machine.store.engine.check()


@settings(deadline=None, max_examples=30)
@given(st.lists(COMMANDS, min_size=1, max_size=12), st.data())
def test_replicas_come_to_the_same_digest(commands: list[Command], data: st.DataObject) -> None:
    """However entries are cut, with and without events, on any kind of engine."""
    one = Machine()
    one.run(*commands)
    other = Machine(data.draw(st.sampled_from(sorted(KINDS))), keeps_events=False)
    cut = data.draw(st.integers(0, len(commands)))
    for part in (commands[:cut], commands[cut:]):
        if part:
            other.run(*part)
    assert one.store.digest == other.store.digest
    assert list(one.store.engine.items()) == list(other.store.engine.items())
