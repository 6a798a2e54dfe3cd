"""Transactions: what each operation does, and the store beside its model."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btree import BTree
from conure.commands import (
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Event,
    EventKind,
    Expire,
    Get,
    Increment,
    Item,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Result,
    Sequential,
    Target,
    Touch,
    Transaction,
)
from conure.consensus.messages import Entry, EntryKind, SnapshotMeta
from conure.errors import CorruptionError
from conure.state import codec
from conure.state import machine as store_module
from conure.state.machine import LAST_TIME, Inspection, Session, Store
from conure.storage.engine import Record
from tests.lab.crashfs import CrashFileSystem
from tests.lab.engines import fill, of_the_btree, open_engine
from tests.lab.model import Command, Model, agree

PATH = "/conure.db"
pytestmark = pytest.mark.usefixtures("engine")
INT64 = (1 << 63) - 1


def open_store(fs: CrashFileSystem, *, keeps_events: bool = True) -> Store:
    tree = open_engine(fs, PATH, page_size=512, cache_bytes=1 << 20)
    return Store(tree, b"", keeps_events=keeps_events)


def entries(first: int, commands: Sequence[Command]) -> list[Entry]:
    return [
        Entry(1, index, EntryKind.COMMAND, encoded(command))
        for index, command in enumerate(commands, first)
    ]


def encoded(command: Command) -> bytes:
    if isinstance(command, Transaction):
        return codec.encode_transaction(command)
    assert not isinstance(command, Sequential)
    key, value = command
    return codec.encode_delete(key) if value is None else codec.encode_put(key, value)


class Machine:
    """A store with a log, and what each command has to come to."""

    def __init__(self) -> None:
        self.store = open_store(CrashFileSystem())

    def run(self, command: Command) -> Outcome | None:
        outcomes = self.store.apply(entries(self.store.applied_index + 1, [command]))
        return outcomes.get(self.store.applied_index)

    def do(self, *operations: Operation, time: int = 0, **fields: Any) -> Outcome:
        outcome = self.run(Transaction((), operations, time=time, **fields))
        assert outcome is not None
        return outcome

    def put(self, key: bytes, value: bytes) -> None:
        self.run((key, value))

    def value(self, key: bytes) -> bytes | None:
        record = self.store.get(key)
        return None if record is None else record.value

    def expiry(self, key: bytes) -> int:
        record = self.store.get(key)
        assert record is not None
        return record.expiry

    def events(self) -> list[Event]:
        return [
            Event(event[0], EventKind(event[1]), *event[2:]) for event in self.store.take_events()
        ]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.store.engine.check()


def refused(outcome: Outcome) -> Refusal:
    """Return why a transaction was refused, which then has no other trace."""
    assert outcome.refusal
    assert (outcome.succeeded, outcome.results) == (False, ())
    return outcome.refusal


# -- comparisons and branches --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "operand", "holding"),
    [
        (Target.VALUE, b"m", {Relation.EQUAL}),
        (Target.VALUE, b"a", {Relation.NOT_EQUAL, Relation.GREATER}),
        (Target.VALUE, b"ma", {Relation.NOT_EQUAL, Relation.LESS}),
        (Target.VERSION, 2, {Relation.EQUAL}),
        (Target.CREATE_REVISION, 1, {Relation.EQUAL}),
        (Target.MOD_REVISION, 3, {Relation.NOT_EQUAL, Relation.LESS}),
        (Target.MOD_REVISION, 1, {Relation.NOT_EQUAL, Relation.GREATER}),
    ],
)
def test_comparisons_with_a_key(
    machine: Machine, target: Target, operand: bytes | int, holding: set[Relation]
) -> None:
    machine.put(b"k", b"l")
    machine.put(b"k", b"m")
    for relation in Relation:
        outcome = machine.run(Transaction((Compare(b"k", target, relation, operand),), ()))
        assert outcome is not None
        assert outcome.succeeded == (relation in holding)
        assert outcome.current == (0 if relation in holding else 2)


@pytest.mark.parametrize(
    ("target", "operand", "holding"),
    [
        (Target.VALUE, b"", {Relation.NOT_EQUAL}),
        (Target.VERSION, 0, {Relation.EQUAL}),
        (Target.CREATE_REVISION, 0, {Relation.EQUAL}),
        (Target.MOD_REVISION, 1, {Relation.NOT_EQUAL, Relation.LESS}),
    ],
)
def test_comparisons_with_a_key_that_is_not_there(
    machine: Machine, target: Target, operand: bytes | int, holding: set[Relation]
) -> None:
    for relation in Relation:
        outcome = machine.run(Transaction((Compare(b"k", target, relation, operand),), ()))
        assert outcome is not None
        assert outcome.succeeded == (relation in holding)
        assert outcome.current == 0


def test_the_first_comparison_that_fails_says_where_its_key_stands(machine: Machine) -> None:
    for key in (b"a", b"b", b"c"):
        machine.put(key, b"1")
    compares = (
        Compare(b"a", Target.VERSION, Relation.EQUAL, 1),
        Compare(b"b", Target.VERSION, Relation.EQUAL, 7),
        Compare(b"c", Target.VERSION, Relation.EQUAL, 7),
    )
    outcome = machine.run(Transaction(compares, (Delete(b"a"),), (Put(b"d", b"4"), Get(b"a"))))
    assert outcome == Outcome(
        4,
        False,
        (
            Result(items=(Item(b"d", None, 4, 4, 1),)),
            Result(1, items=(Item(b"a", b"1", 1, 1, 1),)),
        ),
        current=2,
    )
    assert machine.value(b"d") == b"4"


def test_a_refused_transaction_leaves_nothing_but_its_revision(machine: Machine) -> None:
    """All or nothing, in either branch (commands.py, 1)."""
    machine.put(b"a", b"no number")
    before = list(machine.store.engine.items(b"k"))
    operations = (Put(b"b", b"1"), Delete(b"a"), Increment(b"a", 1), Put(b"c", b"1"))
    for branches in ((operations, ()), ((), operations)):
        compare = Compare(b"x", Target.VERSION, Relation.EQUAL, 0 if branches[0] else 1)
        outcome = machine.run(Transaction((compare,), *branches))
        assert outcome is not None
        assert refused(outcome) is Refusal.NOT_A_NUMBER
        assert outcome.refused_key == b"a"
    assert list(machine.store.engine.items(b"k")) == before
    assert [event.key for event in machine.events()] == [b"a"]
    assert machine.store.applied_index == 3


def test_operations_see_what_those_before_them_did(machine: Machine) -> None:
    machine.put(b"b", b"old")
    outcome = machine.do(Get(b"a"), Put(b"a", b"1"), Get(b"a"), Delete(b"b"), Range(b"", None, 9))
    assert [each.items for each in outcome.results] == [
        (),
        (Item(b"a", None, 2, 2, 1),),
        (Item(b"a", b"1", 2, 2, 1),),
        (),
        (Item(b"a", b"1", 2, 2, 1),),
    ]


def test_an_operation_that_one_before_it_made_impossible_does_nothing(machine: Machine) -> None:
    """Nobody should propose it; if somebody does, no lock outlives its session (machine.py, 8)."""
    machine.do(OpenSession(b"s", 100, False, b""))
    machine.put(b"n", b"1")
    outcome = machine.do(
        EndSession(b"s"),
        Acquire(b"a", b"s", b"1"),
        Put(b"n", b"x"),
        Increment(b"n", 1),
        Delete(b"n"),
        Touch(b"n", 5),
    )
    nothing = Result()
    assert outcome.results[1] == outcome.results[3] == outcome.results[5] == nothing
    assert machine.store.holder(b"a") is None
    assert machine.store.records == 0


# -- keys ----------------------------------------------------------------------------------------


def test_ranges(machine: Machine) -> None:
    for key in (b"a", b"b", b"ba", b"bb", b"c", b"\xff"):
        machine.put(key, key.upper())
    machine.do(OpenSession(b"s", 100, False, b""), Put(b"bb", b"BB", 50))

    def keys(start: bytes, end: bytes | None, limit: int, **how: bool) -> tuple[list[bytes], bool]:
        (result,) = machine.do(Range(start, end, limit, **how)).results
        assert result.total == len(result.items)
        return [item.key for item in result.items], result.more

    assert keys(b"", None, 9) == ([b"a", b"b", b"ba", b"bb", b"c", b"\xff"], False)
    assert keys(b"b", b"c", 9) == ([b"b", b"ba", b"bb"], False)
    assert keys(b"b", b"c", 3) == ([b"b", b"ba", b"bb"], False)
    assert keys(b"b", b"c", 2) == ([b"b", b"ba"], True)
    assert keys(b"b", b"c", 2, reverse=True) == ([b"bb", b"ba"], True)
    assert keys(b"", None, 1, reverse=True) == ([b"\xff"], True)
    assert keys(b"", None, 0) == ([], True)
    assert keys(b"c", b"b", 9) == ([], False)
    assert len(keys(b"", None, 2**64 - 1)[0]) == 6
    (result,) = machine.do(Range(b"bb", b"c", 1, keys_only=True)).results
    assert result.items == (Item(b"bb", None, 4, 7, 2, 50),)


def test_what_a_transaction_reads_is_bounded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node reads it, and a remembered outcome has to fit into a snapshot and a backup."""
    monkeypatch.setattr("conure.state.machine.READ_BYTES", 100)
    for key in (b"a", b"b", b"c", b"d"):
        machine.put(key, key * 45)
    read = machine.do(Range(b"", None, 9), Get(b"a"), Range(b"", None, 9), Get(b"x")).results
    assert [item.value for item in read[0].items] == [b"a" * 45, b"b" * 45, b"c" * 45]
    assert read[0].more
    assert read[1] == Result(1, True, (Item(b"a", None, 1, 1, 1),))  # all but the value
    assert read[2:] == (Result(0, True), Result())
    read = machine.do(Get(b"a"), Get(b"a"), Get(b"a"), Get(b"a")).results
    assert [bool(each.items[0].value) for each in read] == [True, True, True, False]
    read = machine.do(Range(b"b", None, 9, True, True), Range(b"", b"a", 9)).results
    assert read == (Result(3, False, read[0].items), Result())


def test_deleting_a_range(machine: Machine) -> None:
    for key in (b"a", b"b", b"ba", b"c"):
        machine.put(key, b"1")
    machine.events()
    assert machine.do(DeleteRange(b"b", b"c")).results == (Result(2),)
    assert machine.events() == [
        Event(5, EventKind.DELETE, b"b", b"", 0),
        Event(5, EventKind.DELETE, b"ba", b"", 0),
    ]
    assert machine.store.records == 2
    assert machine.do(DeleteRange(b"", None), DeleteRange(b"", None)).results == (
        Result(2),
        Result(0),
    )
    assert machine.store.records == 0


@pytest.mark.parametrize(
    ("value", "by", "end"),
    [
        (None, 5, 5),
        (None, -5, -5),
        (b"41", 1, 42),
        (b"-1", -1, -2),
        (b"007", 1, 8),
        (b"%d" % INT64, -1, INT64 - 1),
        (b"%d" % INT64, 0, INT64),
        (b"%d" % (-INT64 - 1), 0, -INT64 - 1),
        (b"%d" % INT64, 1, Refusal.NUMBER_TOO_LARGE),
        (b"%d" % -INT64, -2, Refusal.NUMBER_TOO_LARGE),
        (b"9" * 19, 0, Refusal.NOT_A_NUMBER),
        (b"9" * 20, 0, Refusal.NOT_A_NUMBER),
        (b"", 1, Refusal.NOT_A_NUMBER),
        (b" 1", 1, Refusal.NOT_A_NUMBER),
        (b"1\n", 1, Refusal.NOT_A_NUMBER),
        (b"+1", 1, Refusal.NOT_A_NUMBER),
        (b"1_0", 1, Refusal.NOT_A_NUMBER),
        ("٣".encode(), 1, Refusal.NOT_A_NUMBER),
    ],
)
def test_increments(machine: Machine, value: bytes | None, by: int, end: int) -> None:
    if value is not None:
        machine.do(Put(b"n", value, 70))
    outcome = machine.do(Increment(b"n", by))
    if isinstance(end, Refusal):
        assert refused(outcome) is end
        assert machine.value(b"n") == value
    else:
        assert outcome.results[0].number == end
        assert machine.value(b"n") == b"%d" % end
        assert machine.expiry(b"n") == (0 if value is None else 70)


def test_a_touch_changes_the_expiry_and_nothing_else(machine: Machine) -> None:
    machine.put(b"k", b"1")
    machine.put(b"k", b"2" * 300)  # spilled, on pages of this size
    machine.events()
    for ttl, expiry in ((50, 60), (0, 0), (7, 17)):
        outcome = machine.do(Touch(b"k", ttl), time=10)
        assert outcome.results == (Result(1, items=(Item(b"k", None, 1, 2, 2, expiry),)),)
        assert machine.store.get(b"k") == Record(b"2" * 300, 1, 2, 2, expiry)
        assert machine.store.next_due() == (expiry or None)
    assert machine.events() == []
    assert refused(machine.do(Touch(b"x", 5))) is Refusal.KEY_NOT_FOUND


def test_touches_split_and_merge_pages(machine: Machine) -> None:
    store = machine.store
    keys = [b"%03d" % n for n in range(200)]
    for key in keys:
        machine.put(key, key * (1 + int(key) % 7 * 5))
    before = dict(store.engine.items(b"k", b"l"))
    running = store.begin_checkpoint()
    while not running.step(1.0):
        pass
    running.finish()
    leaves = []
    for ttl in (50, 60, 0):
        for key in keys:
            machine.do(Touch(key, ttl))
        leaves.append(store.engine.check().kinds.get("leaf"))
        touched = {key: record._replace(expiry=ttl) for key, record in before.items()}
        assert dict(store.engine.items(b"k", b"l")) == touched
        assert (store.next_due(), store.records) == (ttl or None, 200)
    if leaves[0] is not None and leaves[2] is not None:
        assert leaves[0] > leaves[2]


# -- expiry --------------------------------------------------------------------------------------


def test_what_a_put_does_to_the_expiry(machine: Machine) -> None:
    machine.do(Put(b"k", b"1", 50), time=100)
    assert (machine.expiry(b"k"), machine.store.next_due()) == (150, 150)
    machine.do(Put(b"k", b"2", keep_ttl=True), time=120)
    assert (machine.expiry(b"k"), machine.store.next_due()) == (150, 150)
    machine.do(Put(b"k", b"3", 10), time=120)
    assert (machine.expiry(b"k"), machine.store.next_due()) == (130, 130)
    machine.put(b"k", b"4")
    assert (machine.expiry(b"k"), machine.store.next_due()) == (0, None)
    machine.do(Put(b"new", b"", keep_ttl=True))
    assert machine.expiry(b"new") == 0
    assert [key for key, _ in machine.store.engine.items(b"e", b"f")] == []


def test_expiry_is_an_operation_and_nothing_else(machine: Machine) -> None:
    machine.do(Put(b"a", b"1", 50), Put(b"b", b"2", 51), Put(b"c", b"3"), time=100)
    machine.events()
    machine.do(Get(b"a"), time=1000)
    assert machine.value(b"a") == b"1"  # due for long, and still there
    for time, limit, result in ((0, 1, Result(1, True)), (0, 5, Result(1)), (0, 5, Result(0))):
        assert machine.do(Expire(limit), time=time).results == (result,)
    assert [(event.kind, event.key, event.version) for event in machine.events()] == [
        (EventKind.EXPIRE, b"a", 0),
        (EventKind.EXPIRE, b"b", 0),
    ]
    assert (machine.value(b"c"), machine.store.records) == (b"3", 1)
    assert machine.store.next_due() is None


def test_what_is_due_first_ends_first_whatever_it_is(machine: Machine) -> None:
    machine.do(
        Put(b"late", b"", 40), OpenSession(b"s", 20, False, b""), idempotency_key=b"i", window=30
    )
    machine.do(Put(b"early", b"", 10))
    left: list[tuple[int | None, int, int]] = []
    for _ in range(5):
        outcome = machine.do(Expire(1), time=40)
        left.append(
            (
                machine.store.next_due(),
                outcome.results[0].total,
                len([*machine.store.engine.items(b"i", b"j")]),
            )
        )
    assert left == [(20, 1, 1), (30, 1, 1), (40, 1, 0), (None, 1, 0), (None, 0, 0)]


def test_the_clock_never_goes_back_and_ends_at_last(machine: Machine) -> None:
    clocks = []
    for time in (50, 20, 60, 59, 2**64 - 1, 70):
        machine.do(Put(b"k%d" % time, b"", 10), time=time)
        clocks.append((machine.store.clock, machine.expiry(b"k%d" % time)))
    end = (LAST_TIME, LAST_TIME)
    assert clocks == [(50, 60), (50, 60), (60, 70), (60, 70), end, end]
    assert machine.do(Expire(2**64 - 1)).results == (Result(6),)


def test_a_key_once_seen_expired_stays_so(machine: Machine) -> None:
    machine.do(Put(b"k", b"1", 50), time=100)
    assert machine.do(Expire(9), time=149).results == (Result(0),)
    assert machine.do(Expire(9), time=150).results == (Result(1),)
    for operation in (Get(b"k"), Expire(9), Delete(b"k")):
        machine.do(operation, time=3)
        assert machine.store.get(b"k") is None
    machine.do(Put(b"k", b"2", 50), time=3)
    assert machine.expiry(b"k") == 200


# -- sessions and locks --------------------------------------------------------------------------


def test_a_session_from_its_beginning_to_its_end(machine: Machine) -> None:
    store = machine.store
    machine.do(OpenSession(b"s", 30, True, b"job"), time=5)
    session = Session(b"s", 30, True, b"job", 35)
    assert store.session(b"s") == session
    machine.do(RenewSession(b"s"), time=20)
    assert store.session(b"s") == session._replace(expiry=50)
    machine.do(OpenSession(b"r", 1, False, b""), time=20)
    assert machine.do(Expire(9), time=49).results == (Result(1),)
    assert store.session(b"r") is None
    assert store.session(b"s") is not None
    assert machine.do(EndSession(b"s")).succeeded
    assert store.session(b"s") is None
    assert store.next_due() is None
    for operation in (EndSession(b"s"), RenewSession(b"s"), Acquire(b"k", b"s", None)):
        assert refused(machine.do(operation)) is Refusal.SESSION_NOT_FOUND


def test_one_session_holds_a_key(machine: Machine) -> None:
    for session in (b"s", b"t"):
        machine.do(OpenSession(session, 100, False, b""))
    first = machine.do(Acquire(b"k", b"s", b"mine"))
    assert first.results == (Result(items=(Item(b"k", None, 3, 3, 1),), number=3),)
    assert machine.store.holder(b"k") == (b"s", 3)
    outcome = machine.do(Acquire(b"k", b"t", b"no, mine"))
    assert (refused(outcome), outcome.refused_key) == (Refusal.HELD_BY_ANOTHER, b"k")
    assert refused(machine.do(Release(b"k", b"t", None))) is Refusal.NOT_THE_HOLDER
    assert machine.value(b"k") == b"mine"

    again = machine.do(Acquire(b"k", b"s", None))
    assert again.results == first.results  # the token stays
    assert machine.do(Release(b"k", b"s", b"free")).results[0].items[0].version == 2
    assert machine.store.holder(b"k") is None
    assert [*machine.store.engine.items(b"h", b"i")] == []
    assert refused(machine.do(Release(b"k", b"s", None))) is Refusal.NOT_THE_HOLDER
    assert machine.do(Acquire(b"k", b"t", None)).results[0].number == machine.store.applied_index


def test_a_lock_is_advice(machine: Machine) -> None:
    machine.do(OpenSession(b"s", 100, False, b""))
    assert machine.do(Acquire(b"k", b"s", None)).results == (Result(number=2),)
    assert machine.value(b"k") is None
    machine.put(b"k", b"of anybody")
    machine.run((b"k", None))
    machine.do(DeleteRange(b"", None))
    assert machine.store.holder(b"k") == (b"s", 2)


@pytest.mark.parametrize("deletes", [True, False])
@pytest.mark.parametrize("by_time", [True, False])
def test_the_end_of_a_session_lets_go_of_what_it_held(
    machine: Machine, deletes: bool, by_time: bool
) -> None:
    for session in (b"s", b"s2", b"s\xff"):  # none takes another's keys for its own
        machine.do(OpenSession(session, 50 if session == b"s" else 500, deletes, b""))
        for key in (b"1", b"2", b"\xff"):
            machine.do(Acquire(session + b"/" + key, session, b"v"))
    machine.run((b"s/2", None))
    machine.do(Put(b"s/\xff", b"v", 50))
    machine.events()
    if by_time:
        assert machine.do(Expire(9), time=50).results[0].more is False
    else:
        assert machine.do(EndSession(b"s")).results == (Result(3),)
    store = machine.store
    assert [store.holder(b"s/" + key) for key in (b"1", b"2", b"\xff")] == [None] * 3
    assert store.holder(b"s\xff/\xff") is not None
    assert machine.value(b"s/1") == (None if deletes else b"v")
    kind = EventKind.EXPIRE if by_time else EventKind.DELETE
    gone = {(event.kind, event.key) for event in machine.events()}
    if deletes:
        assert gone == {(kind, b"s/1"), (kind, b"s/\xff")}
    else:
        assert gone == ({(kind, b"s/\xff")} if by_time else set())
    assert len([*store.engine.items(b"h", b"i")]) == len([*store.engine.items(b"l", b"m")]) == 6
    assert machine.do(EndSession(b"s\xff")).results == (Result(3),)
    assert store.holder(b"s2/1") is not None


def test_what_a_session_holds_counts_for_the_limit(machine: Machine) -> None:
    for session in (b"s", b"t"):
        machine.do(OpenSession(session, 50, False, b""))
        for n in range(5):
            machine.do(Acquire(session + b"%d" % n, session, None))
    assert machine.do(Expire(6), time=50).results == (Result(1, True),)
    assert machine.store.session(b"s") is None
    assert machine.do(Expire(1)).results == (Result(1),)
    assert machine.store.records == len(machine.store.engine) - 1 == 0


# -- exactly once --------------------------------------------------------------------------------


def test_a_repetition_gets_the_first_outcome_and_changes_nothing(machine: Machine) -> None:
    first = machine.do(
        Increment(b"n", 1), Get(b"n"), idempotency_key=b"i", fingerprint=b"f", window=10
    )
    machine.events()
    again = machine.do(Increment(b"n", 7), idempotency_key=b"i", fingerprint=b"f", window=10)
    assert again == first._replace(repeated=True)
    assert again.revision == 1
    other = machine.do(Put(b"n", b"0"), idempotency_key=b"i", fingerprint=b"g")
    assert refused(other) is Refusal.KEY_REUSED
    assert machine.value(b"n") == b"1"
    assert machine.events() == []
    machine.do(Expire(9), time=10)
    fresh = machine.do(Increment(b"n", 1), idempotency_key=b"i", fingerprint=b"g")
    assert (fresh.repeated, fresh.results[0].number) == (False, 2)


def test_a_failure_is_remembered_as_well(machine: Machine) -> None:
    compare = Compare(b"k", Target.VERSION, Relation.EQUAL, 1)
    unmet = Transaction((compare,), (), idempotency_key=b"i", window=10)
    outcome = machine.run(unmet)
    refusal = machine.do(Touch(b"k", 1), idempotency_key=b"j", window=10)
    machine.put(b"k", b"now it is there")
    assert outcome is not None
    assert machine.run(unmet) == outcome._replace(repeated=True)
    again = machine.do(Touch(b"k", 1), idempotency_key=b"j", window=10)
    assert again == refusal._replace(repeated=True)
    assert refused(again) is Refusal.KEY_NOT_FOUND


# -- the store around them -----------------------------------------------------------------------


def test_outcomes_come_by_index_and_only_of_transactions() -> None:
    store = open_store(CrashFileSystem())
    get = Transaction((), (Get(b"a"),))
    log = entries(1, [(b"a", b"1"), get, (b"a", None), get])
    outcomes = store.apply(log)
    assert {index: outcome.results[0].total for index, outcome in outcomes.items()} == {2: 1, 4: 0}
    assert store.apply(entries(5, [(b"b", b"1")])) == {}


def test_events_are_noted_for_who_wants_them() -> None:
    store = open_store(CrashFileSystem(), keeps_events=False)
    log = entries(1, [(b"a", b"1"), Transaction((), (Put(b"b", b"2"), Delete(b"a"))), (b"b", None)])
    store.apply(log[:2])
    assert store.take_events() == []
    store = open_store(CrashFileSystem())
    store.apply(log[:2])
    assert [event[0] for event in store.take_events()] == [1, 2, 2]
    store.apply(entries(3, [(b"a", b"3"), (b"a", b"4"), (b"b", None), (b"b", None)]))
    assert store.take_events() == [
        (3, EventKind.PUT, b"a", b"3", 1),
        (4, EventKind.PUT, b"a", b"4", 2),
        (5, EventKind.DELETE, b"b", b"", 0),
    ]
    assert store.take_events() == []


def test_events_have_the_values_before_if_they_are_wanted() -> None:
    store = open_store(CrashFileSystem())
    store.apply(entries(1, [(b"a", b"1")]))
    store.keep_previous(True)
    store.apply(entries(2, [
        (b"a", b"2"), (b"a", b""), (b"a", None), (b"a", None), (b"a", b"3"),
        Transaction((), (Put(b"a", b"4"), Increment(b"a", 1), Put(b"b", b"5", 10))),
        Transaction((), (DeleteRange(b"a", b"b"), Expire(9)), (), 50),
    ]))  # fmt: skip
    store.keep_previous(False)
    store.apply(entries(9, [(b"c", b"1"), (b"c", None)]))
    assert store.take_events() == [
        (1, EventKind.PUT, b"a", b"1", 1),
        (2, EventKind.PUT, b"a", b"2", 2, b"1"),
        (3, EventKind.PUT, b"a", b"", 3, b"2"),
        (4, EventKind.DELETE, b"a", b"", 0, b""),
        (6, EventKind.PUT, b"a", b"3", 1, None),
        (7, EventKind.PUT, b"a", b"4", 2, b"3"),
        (7, EventKind.PUT, b"a", b"5", 3, b"4"),
        (7, EventKind.PUT, b"b", b"5", 1, None),
        (8, EventKind.DELETE, b"a", b"", 0, b"5"),
        (8, EventKind.EXPIRE, b"b", b"", 0, b"5"),
        (9, EventKind.PUT, b"c", b"1", 1),
        (10, EventKind.DELETE, b"c", b"", 0),
    ]


def test_the_values_before_of_one_entry_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion of ten thousand keys would else bring all their values into memory at once."""
    monkeypatch.setattr(store_module, "READ_BYTES", 250)
    store = open_store(CrashFileSystem())
    store.apply(entries(1, [(b"%d" % n, bytes(100)) for n in range(9)]))
    store.take_events()
    store.keep_previous(True)
    store.apply(entries(10, [Transaction((), (DeleteRange(b"", b"8"),)), (b"8", b"x")]))
    events = store.take_events()
    assert [event[5:] for event in events] == [(bytes(100),)] * 3 + [()] * 5 + [(bytes(100),)]


def test_a_value_before_that_cannot_be_read_is_left_out() -> None:
    """A put over a damaged page needs nothing of it, and goes on as it would without."""
    store = open_store(CrashFileSystem())
    store.apply(entries(1, [(b"a", b"1")]))
    store.keep_previous(True)

    def damaged(key: bytes) -> None:
        raise CorruptionError("conure.db", 4096, "a page fails its checksum")

    store.engine.get = damaged  # type: ignore[method-assign]
    store.apply(entries(2, [(b"a", b"2"), (b"a", None)]))
    assert store.take_events()[1:] == [
        (2, EventKind.PUT, b"a", b"2", 2),
        (3, EventKind.DELETE, b"a", b"", 0),
    ]


def test_an_installed_state_brings_its_clock_and_no_events() -> None:
    fs = CrashFileSystem()
    source, store = Machine().store, open_store(fs)
    source.apply(entries(1, [Transaction((), (Put(b"k", b"1", 50),), time=100), (b"l", b"2")]))
    store.apply(entries(1, [(b"x", b"1"), Transaction((), (Put(b"y", b"1", 5),), time=900)]))
    other = open_engine(fs, "/other.db", page_size=512)
    fill(other, source.engine.items())
    meta = SnapshotMeta(20, 2, b"members")
    other.checkpoint(meta.index, meta.term, source.digest)
    store.replace(other, meta)
    assert store.take_events() == []
    assert (store.clock, store.next_due(), store.records) == (100, 150, 2)


def test_an_arbiter_passes_over_transactions() -> None:
    store = open_store(CrashFileSystem())
    store.skip(entries(1, [Transaction((), (Put(b"k", b"1"),), time=100), (b"l", b"2")]))
    assert (store.applied_index, store.digest, len(store.engine)) == (2, 0, 0)


def test_a_transaction_nobody_can_read_is_never_skipped() -> None:
    data = codec.encode_transaction(Transaction((), (Get(b"a"),)))
    for broken in (data[:-1], data + b"\0", data[:27] + b"\xee" + data[28:]):
        with pytest.raises(CorruptionError, match="raft log is corrupt"):
            open_store(CrashFileSystem()).apply([Entry(1, 1, EntryKind.COMMAND, broken)])


def test_other_outcomes_give_another_digest() -> None:
    """A replica that differs only in what an operation reads is found out as well."""
    digests = set()
    for value in (None, b"1", b"2"):
        store = open_store(CrashFileSystem())
        if value is not None:
            store.engine.put(b"kk", value, 1)  # what no log has asked for
        store.apply(entries(1, [Transaction((), (Get(b"k"),))]))
        digests.add(store.digest)
    assert len(digests) == 3


def test_a_pinned_state_is_read_by_users_keys() -> None:
    store = open_store(CrashFileSystem())
    keys = [b"%04d" % n for n in range(9000)]
    store.apply(entries(1, [(key, b"") for key in keys]))
    store.apply(entries(9001, [Transaction((), (OpenSession(b"s", 9, False, b""),), time=1)]))
    state = store.snapshot()
    store.apply(entries(9002, [Transaction((), (DeleteRange(b"", b"8"),))]))
    assert [key for key, _ in state.items()] == keys
    assert [key for key, _ in state.items(b"0007", b"001")] == [b"0007", b"0008", b"0009"]
    assert next(state.items(reverse=True))[0] == keys[-1]
    assert next(state.items(b"", b"0100", reverse=True))[0] == b"0099"
    assert state.get(b"0007") == Record(b"", 8, 8, 1)
    assert state.get(b"s") is None
    assert list(state.count()) == [4096, 8192, 9000]
    assert list(state.count(b"1", b"2")) == [1000]
    assert (store.records, len([*store.engine.items(b"k", b"l")])) == (1000, 1000)
    state.reader.close()


# -- beside the model ----------------------------------------------------------------------------


KEYS = [b"a", b"b", b"ab", b"a\xff", b"\xff" * 3]
SOME_KEY = st.sampled_from(KEYS)
VALUE = st.sampled_from([b"", b"1", b"-7", b"%d" % INT64, b"text", b"long" * 100])
TTL = st.integers(0, 20)
SESSION = st.sampled_from([b"s", b"s\xff", b"t"])
MAYBE_VALUE = st.none() | VALUE
BOUND = st.sampled_from([b"", b"a", b"ab", b"b", b"z"])
OPERATIONS = st.one_of(
    st.builds(Put, SOME_KEY, VALUE, TTL, st.booleans()),
    st.builds(Delete, SOME_KEY),
    st.builds(DeleteRange, BOUND, st.none() | BOUND, st.integers(0, 3)),
    st.builds(Get, SOME_KEY),
    st.builds(Range, BOUND, st.none() | BOUND, st.integers(0, 4), st.booleans(), st.booleans()),
    st.builds(Increment, SOME_KEY, st.sampled_from([1, -1, INT64, -INT64])),
    st.builds(Touch, SOME_KEY, TTL),
    st.builds(Acquire, SOME_KEY, SESSION, MAYBE_VALUE),
    st.builds(Acquire, SOME_KEY, SESSION, MAYBE_VALUE),
    st.builds(Release, SOME_KEY, SESSION, MAYBE_VALUE),
    st.builds(OpenSession, SESSION, TTL, st.booleans(), st.binary(max_size=3)),
    st.builds(OpenSession, SESSION, TTL, st.booleans(), st.binary(max_size=3)),
    st.builds(RenewSession, SESSION),
    st.builds(EndSession, SESSION),
    st.builds(Expire, st.integers(0, 3)),
)
BRANCH = st.lists(OPERATIONS, max_size=3).map(tuple)
COMPARES = st.builds(
    Compare, SOME_KEY, st.just(Target.VALUE), st.sampled_from(Relation), VALUE
) | st.builds(
    Compare,
    SOME_KEY,
    st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION]),
    st.sampled_from(Relation),
    st.integers(0, 9),
)
TRANSACTIONS = st.builds(
    Transaction,
    st.lists(COMPARES, max_size=1).map(tuple),
    BRANCH,
    BRANCH,
    st.integers(0, 60),
    st.sampled_from([b"", b"", b"", b"i", b"j"]),
    st.sampled_from([b"", b"f"]),
    st.integers(0, 30),
)
# Half of the histories begin with what takes long to happen by chance: a session that holds a key.
BEGINNINGS: list[list[Command]] = [
    [],
    [
        Transaction((), (OpenSession(b"s", 20, True, b""), OpenSession(b"s\xff", 9, False, b""))),
        Transaction((), (Acquire(b"a", b"s", b"1"), Acquire(b"b", b"s\xff", None)), (), 5),
    ],
]
COMMANDS: st.SearchStrategy[list[Command]] = st.builds(
    operator.add,
    st.sampled_from(BEGINNINGS),
    st.lists(
        st.tuples(SOME_KEY, MAYBE_VALUE) | TRANSACTIONS | TRANSACTIONS, min_size=1, max_size=25
    ),
)


@settings(deadline=None, max_examples=150)
@given(COMMANDS)
def test_the_store_does_what_the_model_does(commands: list[Command]) -> None:
    machine, model = Machine(), Model()
    tokens: dict[bytes, int] = {}
    for command in commands:
        assert machine.run(command) == model.run(command)
        assert machine.events() == model.events
        model.events.clear()
        agree(machine.store, model)
        for key, (_, token) in model.locks.items():
            assert token >= tokens.get(key, 0)  # a fencing token only grows
            tokens[key] = token
    machine.store.engine.check()
    inspection = Inspection(machine.store.version)  # what any commands make, another node takes
    inspection.look([(key, *record) for key, record in machine.store.engine.items()])
    inspection.finish()


@settings(deadline=None, max_examples=60)
@given(COMMANDS, st.randoms(use_true_random=False))
def test_the_same_transactions_end_the_same_however_they_come(
    commands: list[Command], rng: random.Random
) -> None:
    """R7: chunks, checkpoints and restarts leave no trace in contents, outcomes or digest."""
    log = entries(1, commands)
    straight, model = open_store(CrashFileSystem()), Model()
    outcomes = dict(straight.apply(log))
    assert outcomes == {
        index: outcome
        for index, command in enumerate(commands, 1)
        if (outcome := model.run(command)) is not None
    }
    fs = CrashFileSystem()
    winding = open_store(fs)
    while winding.applied_index < len(log):
        at = winding.applied_index
        found = winding.apply(log[at : at + rng.randrange(1, 6)])
        assert all(outcomes[index] == outcome for index, outcome in found.items())
        if rng.random() < 0.4:
            winding.next_due()
        if rng.random() < 0.3:
            running = winding.begin_checkpoint()
            while not running.step(1.0):
                pass
            running.finish()
        if rng.random() < 0.2:
            fs = fs.after_crash("dropped")
            winding = open_store(fs)  # and the log is applied again from there
    assert winding.digest == straight.digest
    assert list(winding.engine.items()) == list(straight.engine.items())
    agree(winding, model)
    winding.engine.check()


@settings(deadline=None, max_examples=100)
@given(COMMANDS)
def test_what_events_say_was_there_before_was_there(commands: list[Command]) -> None:
    """And wanting to know it changes neither the state nor its digest."""
    plain, looking_back = open_store(CrashFileSystem()), open_store(CrashFileSystem())
    looking_back.keep_previous(True)
    log = entries(1, commands)
    assert looking_back.apply(log) == plain.apply(log)
    assert looking_back.digest == plain.digest
    assert list(looking_back.engine.items()) == list(plain.engine.items())
    events = looking_back.take_events()
    assert [event[:5] for event in events] == plain.take_events()
    values: dict[bytes, bytes] = {}
    for _, kind, key, value, _, before in events:  # type: ignore[misc]
        assert before == values.pop(key, None)
        if kind == EventKind.PUT:
            values[key] = value


@of_the_btree
@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize(
    "operand", [b"", b"x", b"x" * 9_000, b"x" * 9_001, b"x" * 8_999 + b"a", b"w" * 20_000, b"y"]
)
def test_no_more_of_a_long_value_is_read_than_a_comparison_takes(
    monkeypatch: pytest.MonkeyPatch, relation: Relation, operand: bytes
) -> None:
    value = b"x" * 9_000
    store = open_store(CrashFileSystem())
    store.apply(entries(1, [(b"k", value), (b"n", b"1" * 9_000)]))
    running = store.begin_checkpoint()
    while not running.step(1.0):
        pass
    running.finish()
    read: list[int] = []
    assert isinstance(store.engine, BTree)
    chain = store.engine._spilled.chain

    def noted(key: bytes, ref: bytes) -> Iterator[tuple[int, int, bytes]]:
        for number, epoch, chunk in chain(key, ref):
            read.append(len(chunk))
            yield number, epoch, chunk

    monkeypatch.setattr(store.engine._spilled, "chain", noted)
    log = entries(3, [
        Transaction((Compare(b"k", Target.VALUE, relation, operand),), (Get(b"none"),), ()),
        Transaction((), (Increment(b"n", 1),)),
        Transaction((), (Range(b"", None, 9, keys_only=True),)),
    ])  # fmt: skip
    outcomes = store.apply(log)
    holds = {
        Relation.EQUAL: value == operand,
        Relation.NOT_EQUAL: value != operand,
        Relation.LESS: value < operand,
        Relation.GREATER: value > operand,
    }
    assert outcomes[3].succeeded == holds[relation]
    assert outcomes[4].refusal is Refusal.NOT_A_NUMBER
    assert [item.key for item in outcomes[5].results[0].items] == [b"k", b"n"]
    assert sum(read) < len(operand) + 2 * max(read) + 1


def test_what_keys_alone_of_a_range_cost_is_what_their_values_do() -> None:
    """Each release has to leave out the same ones."""
    values = [(b"k%d" % n, bytes(1 << 20)) for n in range(10)]
    store = open_store(CrashFileSystem())
    store.apply(entries(1, values))
    log = entries(
        11, [Transaction((), (Range(b"", None, 99, keys_only=keys),)) for keys in (False, True)]
    )
    outcomes = store.apply(log)
    found = [outcomes[index].results[0] for index in (11, 12)]
    assert [(each.total, each.more) for each in found] == [(8, True)] * 2
