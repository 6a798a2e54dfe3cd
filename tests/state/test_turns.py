"""Transactions that read, remove or end many records: in turns, whatever comes in between, each is
there whole or not at all, and no turn has much to do at least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import (
    Acquire,
    Compare,
    DeleteRange,
    EndSession,
    Event,
    EventKind,
    Expire,
    Get,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Result,
    Target,
    Touch,
    Transaction,
)
from conure.state import codec
from conure.state.machine import Change, Holder, Session, Store
from conure.storage.engine import EngineOptions, Record
from conure.storage.engines import KINDS, kind_named
from conure.storage.lsm import state as lsm_state
from tests.http.test_transactions import COMMANDS, KEYS
from tests.lab.crashfs import CrashFileSystem
from tests.lab.model import Command, Model, agree
from tests.state.test_lengthy import entries_of, in_turns, shown

OPTIONS = EngineOptions(page_size=512, cache_bytes=1 << 20)
SESSIONS = [b"s", b"s\xff", b"t"]
Seen = tuple[Mapping[bytes, Record | None], list[Session | None], list[Holder | None]]


def open_store(kind: str, fs: CrashFileSystem | None = None) -> Store:
    engine = kind_named(kind).open(fs or CrashFileSystem(), "/conure.db", OPTIONS, create=True)
    return Store(engine, b"", keeps_events=True)


def run(store: Store, *operations: Operation, time: int = 1, **fields: Any) -> Outcome:
    command = Transaction((), operations, time=time, **fields)
    index = store.applied_index + 1
    return store.apply(entries_of([command], index))[index]


def seen(store: Store) -> Seen:
    """Return what a store shows of all that the commands of the model are about."""
    return (
        shown(store, KEYS),
        [store.session(each) for each in SESSIONS],
        [store.holder(key) for key in KEYS],
    )


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def short_turns() -> Iterator[None]:
    """Let a turn be over after each record, read or written, and after each deleted key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PIECE", "_WRITTEN_AT_ONCE", "_READ_AT_ONCE", "_KEYS_AT_ONCE"):
            patch.setattr(f"conure.state.machine.{name}", 1)
        patch.setattr("conure.state.machine._READ_BYTES_AT_ONCE", 0)
        patch.setattr(codec, "_PARTS_AT_ONCE", 1)
        patch.setattr(codec, "_ITEMS_AT_ONCE", 1)
        patch.setattr(lsm_state, "PAUSE", 1)
        patch.setattr(lsm_state, "SKIPPED", 2)
        yield


@settings(deadline=None, max_examples=100)
@given(COMMANDS, st.sampled_from(sorted(KINDS)), st.integers(0, 9))
def test_turns_make_no_difference(commands: list[Command], kind: str, frozen: int) -> None:
    """Neither to states, revisions, outcomes, events and digests, nor to who looks in between."""
    whole, other, model = open_store(kind), open_store(kind), Model()
    expected = {}
    log = entries_of(commands)
    before = [seen(other)]

    def look() -> None:
        assert seen(other) == before[-1]
        assert other.take_events() == []
        other.next_due()

    outcomes: dict[int, Outcome] = {}
    changes: list[Change] = []
    with short_turns():
        for index, (command, entry) in enumerate(zip(commands, log, strict=True), 1):
            outcome = model.run(command)
            assert whole.apply([entry]).get(index) == outcome
            if outcome is not None:
                expected[index] = outcome
            if index == frozen:  # what is deleted from now on lies over what there was
                other.engine.begin_checkpoint(index, 1).abort()
            outcomes |= in_turns(other, [entry], look)
            changes += other.take_events()
            before.append(seen(other))
            assert not other.is_amid
    assert outcomes == expected
    assert changes == whole.take_events()
    assert [Event(each[0], EventKind(each[1]), *each[2:]) for each in changes] == model.events
    assert other.digest == whole.digest
    assert [*other.engine.items()] == [*whole.engine.items()]
    agree(other, model)
    other.engine.check()


# -- how much is done in one go ------------------------------------------------------------------


MANY = 800
CALLS = ("get", "heading", "beginning", "put", "delete", "touch", "snapshot")
SCANS = ("scan", "scan_headings", "scan_keys")


class Counting:
    """An engine that counts what is asked of it; *most* is the most since the last turn."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.count = self.most = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if name in CALLS:
            self.note(1)
        if name in SCANS:
            return lambda *args, **kwargs: self._counted(found(*args, **kwargs))
        return found

    def __len__(self) -> int:
        return len(self._engine)

    def note(self, number: float) -> None:
        self.count += number  # type: ignore[assignment]
        self.most = max(self.most, self.count)

    def is_over(self) -> bool:
        self.count = 0
        return True

    def _counted(self, rows: Iterator[Any]) -> Iterator[Any]:
        for row in rows:
            self.note(0.1)  # a scan takes a tenth of the time for each record
            yield row


def filled(kind: str, *first: Operation) -> Store:
    store = open_store(kind)
    if first:
        run(store, *first)
    puts = [Transaction((), (Put(b"k%05d" % n, b"", 1000 + n % 7),), time=1) for n in range(MANY)]
    store.apply(entries_of(puts, store.applied_index + 1))
    store.take_events()
    return store


def holding(kind: str, *, deletes: bool) -> Store:
    store = filled(kind, OpenSession(b"s", 500, deletes, b""))
    locks = [Transaction((), (Acquire(b"k%05d" % n, b"s", None),), time=1) for n in range(MANY)]
    store.apply(entries_of(locks, store.applied_index + 1))
    store.take_events()
    return store


def most_at_once(store: Store, command: Command) -> tuple[Outcome, int, int]:
    """Apply a command in the shortest turns; return its outcome, the number of turns, and the most
    that was asked of the engine in one of them."""
    counting = Counting(store.engine)
    todo = entries_of([command], store.applied_index + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "engine", counting)
        patch.setattr(store, "_shown", counting)
        turns = 0
        while not (outcomes := store.apply(todo, counting.is_over)):
            assert store.is_amid
            turns += 1
            counting.is_over()
        patch.undo()
    store._shown = store.engine
    return outcomes[store.applied_index], turns, counting.most


@pytest.mark.parametrize(
    ("operations", "total"),
    [
        ((Range(b"", None, MANY, keys_only=True),), MANY),
        ((Range(b"", None, MANY + 5, reverse=True),), MANY),
        ((DeleteRange(b"", b"l", 5000),), MANY),
        ((DeleteRange(b"k", b"k002"),), 200),
        ((Put(b"k00000x", b""), DeleteRange(b"k", b"l", 5000)), None),
        ((Range(b"k", b"l", 9), Put(b"a", b""), DeleteRange(b"k", b"l", 5000)), 9),
        ((Expire(300),), 300),
        ((Expire(9_999), Put(b"b", b"")), MANY),
        (tuple(Put(b"k%05d" % n, b"new") for n in range(300)), None),
        (tuple(Get(b"k%05d" % n) for n in range(300)), 1),
    ],
)
@pytest.mark.parametrize("key", [b"", b"once"])
def test_no_turn_has_much_to_do_at_least(
    kind: str, operations: tuple[Operation, ...], total: int | None, key: bytes
) -> None:
    store, whole = filled(kind), filled(kind)
    command = Transaction((), operations, time=2000, idempotency_key=key, window=99)
    outcome, turns, most = most_at_once(store, command)
    assert outcome.succeeded
    assert total in (None, outcome.results[0].total)
    assert turns > 2
    assert most <= 250
    assert [*whole.apply(entries_of([command], whole.applied_index + 1)).values()] == [outcome]
    assert store.digest == whole.digest
    assert store.take_events() == whole.take_events()
    assert [*store.engine.items()] == [*whole.engine.items()]
    store.engine.check()


@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("operation", [EndSession(b"s"), Expire(3), Expire(9999)])
def test_a_session_that_holds_much_ends_in_turns(
    kind: str, deletes: bool, operation: Operation
) -> None:
    store = holding(kind, deletes=deletes)
    assert store.holdings(b"s", b"x") == MANY

    def of_it() -> list[object]:
        first, last = (store.holder(b"k%05d" % n) for n in (0, MANY - 1))
        return [store.session(b"s"), first, last, store.records]

    command = Transaction((), (operation,), time=600)
    before, turns = of_it(), 0

    def look() -> None:
        nonlocal turns
        turns += 1
        assert of_it() == before

    outcomes = in_turns(store, entries_of([command], store.applied_index + 1), look)
    ((_, outcome),) = outcomes.items()
    assert outcome.results[0].total == (MANY if isinstance(operation, EndSession) else 1)
    assert turns > MANY // 50
    assert (store.session(b"s"), store.holder(b"k00000")) == (None, None)
    assert store.records == (0 if deletes else MANY)
    assert store.holdings(b"s", b"x") == 0
    store.engine.check()
    again = holding(kind, deletes=deletes)
    _, _, most = most_at_once(again, command)
    assert most <= 250


def test_what_writes_little_is_not_left_amid(kind: str) -> None:
    """Nothing has to be pinned for it."""
    store = filled(kind)
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_show_before", lambda: calls.append("pinned"))
        for operation in (Put(b"a", b"", 5), DeleteRange(b"k0000", b"k0001"), Expire(9)):
            compare = Compare(b"x", Target.VERSION, Relation.EQUAL, 0)
            command = Transaction((compare,), (operation,), time=1)
            before = store.records

            def look(records: int = before) -> None:
                assert store.records == records

            in_turns(store, entries_of([command], store.applied_index + 1), look)
    assert calls == []
    assert store.records == MANY + 1 - 10


def test_long_values_that_are_to_expire_take_turns(kind: str) -> None:
    store = open_store(kind)
    keys = [b"a", b"b", b"c"]
    run(store, *[Put(key, bytes(200_000)) for key in keys])
    command = Transaction((), tuple([Touch(key, 5) for key in keys]), time=2)
    before = shown(store, keys)
    turns = 0

    def look() -> None:
        nonlocal turns
        turns += 1
        assert shown(store, keys) == before

    in_turns(store, entries_of([command], store.applied_index + 1), look)
    assert turns >= len(keys)
    assert store.next_due() == 7


def test_a_long_outcome_is_told_again_in_turns(kind: str) -> None:
    store = filled(kind)
    command = Transaction(
        (), (Range(b"", None, MANY),), time=2, idempotency_key=b"i", fingerprint=b"f", window=9
    )
    index = store.applied_index + 1
    first = store.apply(entries_of([command], index))[index]
    turns: list[int] = []
    again = in_turns(store, entries_of([command], index + 1), lambda: turns.append(1))
    assert again[index + 1] == first._replace(repeated=True)
    assert len(turns) >= MANY // 250
    whole = filled(kind)
    whole.apply(entries_of([command, command], index))
    assert store.digest == whole.digest


def test_an_entry_that_only_reads_takes_as_long_a_turn_as_any(kind: str) -> None:
    """The node lets a turn be over with the end of what was under way when it began."""
    store = filled(kind)
    store.keep_previous(True)
    commands: list[Command] = [Transaction((), (Range(b"", None, MANY),), time=2), (b"k00000", b"")]
    index = store.applied_index + 1
    todo = entries_of(commands, index)
    assert not store.apply(todo, lambda: True)
    assert store.is_amid
    assert store.apply(todo, lambda: not store.is_amid)[index].results[0].total == MANY
    assert store.applied_index == index
    store.apply(todo[1:])
    again = entries_of(commands, index + 2)
    store.apply(again, lambda: True)
    store.apply(again)
    values = [change[5:] for change in store.take_events()[-2:]]
    assert values == [(b"",), (b"",)]


def test_no_checkpoint_begins_while_a_range_is_read(kind: str) -> None:
    """What is read is the present state, in which a checkpoint may move records."""
    store = filled(kind)
    command = Transaction((), (Range(b"", None, MANY),), time=2)
    store.apply(entries_of([command], store.applied_index + 1), lambda: True)
    assert store.is_amid
    with pytest.raises(AssertionError, match="half of an entry"):
        store.begin_checkpoint()
    assert store.stats().readers == 0


def test_an_entry_that_is_left_amid_is_refused_as_a_whole(kind: str) -> None:
    store = filled(kind)
    command = Transaction((), (DeleteRange(b"k", b"l", MANY - 1), Put(b"a", b"")), time=2)
    outcomes = in_turns(store, entries_of([command], store.applied_index + 1))
    ((_, outcome),) = outcomes.items()
    assert (outcome.refusal, outcome.results) == (Refusal.TOO_MANY_KEYS, ())
    assert (store.records, store.get(b"a"), store.is_amid) == (MANY, None, False)
    assert store.take_events() == []


@pytest.mark.parametrize("turns", [0, 1, 8])
def test_an_entry_is_applied_again_after_a_crash_amid_it(kind: str, turns: int) -> None:
    fs = CrashFileSystem()
    store = open_store(kind, fs)
    puts = entries_of([(b"k%05d" % n, b"v") for n in range(MANY)])
    store.apply(puts)
    store.engine.checkpoint(store.applied_index, 1, store.digest)
    todo = entries_of(
        [Transaction((), (DeleteRange(b"k", b"k002"), Put(b"a", b"1")))], store.applied_index + 1
    )
    for _ in range(turns):
        assert not store.apply(todo, lambda: True)
    assert store.is_amid == bool(turns)
    store.close()
    store = open_store(kind, fs.after_crash("dropped"))
    assert (store.applied_index, store.records, store.is_amid) == (MANY, MANY, False)
    outcome = store.apply(todo)[MANY + 1]
    assert outcome.results[0] == Result(200)
    whole = open_store(kind)
    whole.apply([*puts, *todo])
    assert store.digest == whole.digest
    assert [*store.engine.items()] == [*whole.engine.items()]
    store.engine.check()


def test_values_before_are_bounded_by_the_entry_and_not_by_the_turn(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.machine.READ_BYTES", 100)
    store, whole = open_store(kind), open_store(kind)
    puts: list[Command] = [(b"k%03d" % n, b"v" * 10) for n in range(100)]
    command = Transaction((), (DeleteRange(b"k", b"l", 500),))
    for each in (whole, store):
        each.keep_previous(True)
        each.apply(entries_of(puts))
        each.take_events()
    whole.apply(entries_of([command], 101))
    in_turns(store, entries_of([command], 101))
    events = whole.take_events()
    assert sum(len(each) > 5 for each in events) == 10
    assert store.take_events() == events
