"""Entries that take several turns: whatever comes in between, each is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import Compare, Event, EventKind, Outcome, Relation, Sequential, Target
from conure.consensus.messages import Entry, EntryKind, SnapshotMeta
from conure.errors import CorruptionError, StorageError
from conure.state import codec
from conure.state.machine import Change, PinnedState, Store
from conure.steps import ALWAYS, FOREVER, Add, Append, Check, Done, Erase, Expiry, Life, Step, Write
from conure.storage.engine import EngineOptions, Record
from conure.storage.engines import BTREE, KINDS, kind_named
from conure.storage.lsm.reading import Cells
from conure.storage.search import Search
from tests.lab.crashfs import CrashFileSystem
from tests.lab.model import Command, Model, agree
from tests.state.test_sequential import COMMANDS, KEYS, VALUES, Machine, encoded, open_store

MANY = 100
SETS = st.builds(
    Sequential,
    st.just(()),
    st.lists(
        st.builds(Write, KEYS, VALUES, st.just(ALWAYS), st.just(FOREVER)), min_size=1, max_size=4
    ).map(tuple),
    st.sampled_from([1 << 20, 2]),
    st.integers(0, 200),
    st.just(b""),
    st.just(b""),
    st.just(0),
)
OPTIONS = EngineOptions(page_size=512, cache_bytes=1 << 20)


def entries_of(commands: Sequence[Command], first: int = 1) -> list[Entry]:
    return [
        Entry(1, index, EntryKind.COMMAND, encoded(command))
        for index, command in enumerate(commands, first)
    ]


def many(*steps: Step, compares: tuple[Compare, ...] = ()) -> Sequential:
    """Steps, and more than are done in one go."""
    return Sequential(compares, (*steps, *[Add(b"n%d" % n, 1) for n in range(MANY)]), 1 << 20)


def in_turns(
    store: Store, entries: list[Entry], look: Callable[[], None] = lambda: None
) -> dict[int, Outcome]:
    """Apply entries in the shortest turns there are, and look in between."""
    outcomes: dict[int, Outcome] = {}
    while entries:
        outcomes |= store.apply(entries, lambda: True)
        entries = [entry for entry in entries if entry.index > store.applied_index]
        if store.is_amid:
            look()
    return outcomes


def shown(store: Store, keys: Sequence[bytes]) -> Mapping[bytes, Record | None]:
    """Return what a store shows of keys, in all ways in which it does."""
    found = {key: store.get(key) for key in keys}
    there = {key: record for key, record in found.items() if record is not None}
    for key, record in found.items():
        heading = store.heading(key)
        expected = (record._replace(value=b""), len(record.value)) if record else None
        assert heading == expected, key
    assert store.records == len(there)
    state = store.snapshot()
    assert state.index == store.applied_index
    assert dict(state.items()) == there
    assert [*state.keys()] == sorted(there)
    assert all(state.get(key) == record for key, record in found.items())
    state.close()
    return found


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def short_turns(*, one_pass: bool = False) -> Iterator[None]:
    """Let all sequential transactions take turns, the shortest there are; with *one_pass* all but
    those that only set keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "LENGTHY_STEPS", 0)
        patch.setattr("conure.state.stepping.PIECE", 1)
        if not one_pass:
            patch.setattr(codec, "MOST_WRITES", 0)
        yield


@settings(deadline=None, max_examples=60)
@given(
    st.lists(COMMANDS | SETS, min_size=1, max_size=8), st.sampled_from(sorted(KINDS)), st.booleans()
)
def test_turns_make_no_difference(commands: list[Command], kind: str, one_pass: bool) -> None:
    """Neither to states, revisions, outcomes, events and digests, nor to who looks in between."""
    whole, model, keys = Machine(kind), Model(), [b"a", b"b", b"c"]
    expected = {}
    for index, command in enumerate(commands, 1):
        outcome = model.run(command)
        assert whole.run(command) == outcome
        if outcome is not None:
            expected[index] = outcome
    other = open_store(kind)
    outcomes: dict[int, Outcome] = {}
    changes: list[Change] = []
    before: list[Mapping[bytes, Record | None]] = [shown(other, keys)]

    def look() -> None:
        assert shown(other, keys) == before[-1]
        assert other.take_events() == []

    with short_turns(one_pass=one_pass):
        for entry in entries_of(commands):
            outcomes |= in_turns(other, [entry], look)
            changes += other.take_events()
            before.append(shown(other, keys))
    assert outcomes == expected
    assert changes == whole.store.take_events()
    assert [Event(each[0], EventKind(each[1]), *each[2:]) for each in changes] == model.events
    assert other.digest == whole.store.digest
    assert [*other.engine.items()] == [*whole.store.engine.items()]
    agree(other, model)
    other.engine.check()


@pytest.mark.parametrize("count", [codec.MOST_WRITES, codec.MOST_WRITES + 1])
def test_keys_that_are_set_at_once_are_set_as_one_after_the_other(kind: str, count: int) -> None:
    """In one pass, or in turns; beside one that the general way does as another step is in it."""
    keys = [b"%04d" % n for n in range(count)]
    one, other = open_store(kind), open_store(BTREE)
    for store, more in ((one, ()), (other, (Check(b"k", ALWAYS, 0),))):
        steps = tuple(Write(key, b"v" + key) for key in keys)
        before: list[Command] = [
            Sequential((), (Write(keys[1], b"old", expiry=Expiry(Life.TTL, 50)),), 99, 7),
            (keys[3], b"old"),
        ]
        outcomes = in_turns(store, entries_of([*before, Sequential((), (*steps, *more), 99, 8)]))
        done = outcomes[3].done[:count]
        assert [n for n, each in enumerate(done) if each.existed] == [1, 3]
        assert done == tuple(Done(existed=n in (1, 3)) for n in range(count))
        assert store.next_due() is None
    assert one.take_events() == other.take_events()
    assert [*one.engine.items()] == [*other.engine.items()]


def test_a_key_that_is_set_twice_has_one_event(kind: str) -> None:
    store = open_store(kind)
    steps = (Write(b"a", b"1"), Write(b"b", b"2"), Write(b"a", b"3"))
    outcome = store.apply(entries_of([Sequential((), steps, 9)]))[1]
    assert outcome.done == (Done(), Done(), Done(existed=True))
    assert store.take_events() == [(1, 0, b"a", b"3", 2), (1, 0, b"b", b"2", 1)]


def test_what_is_pinned_in_between_is_the_state_before(kind: str) -> None:
    store = open_store(kind)
    store.apply(entries_of([(b"k", b"old"), (b"gone", b"1")]))
    pinned: list[PinnedState] = []

    def look() -> None:
        pinned.append(store.snapshot())
        assert store.records == 2

    in_turns(store, entries_of([many(Write(b"k", b"new"), Erase(b"gone"))], 3), look)
    assert len(pinned) > 2
    assert store.records == 1 + MANY
    for state in pinned:
        assert (state.index, [*state.keys()]) == (2, [b"gone", b"k"])
        assert state.get(b"k") == Record(b"old", 1, 1, 1)
        state.close()
        with pytest.raises(StorageError, match="closed"):
            state.get(b"k")
    assert store.stats().readers == 0
    store.engine.check()


def test_how_long_a_value_is_is_told_amid_an_entry_without_reading_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no room for long values looks at thousands of them, to leave them out."""
    store = open_store(kind)
    store.apply(entries_of([(b"long", bytes(100_000)), (b"short", b"v")]))
    store.engine.checkpoint(2, 1, store.digest)

    def read(*_: object) -> Record:
        raise AssertionError("a whole value is read")

    def look() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Search, "record", read)
            patch.setattr(Cells, "record", read)
            assert store.heading(b"long") == (Record(b"", 1, 1, 1), 100_000)
            assert store.heading(b"short") == (Record(b"", 2, 2, 1), 1)
            assert store.heading(b"none") is None

    in_turns(store, entries_of([many(Erase(b"long"), Write(b"none", b""))], 3), look)
    assert store.heading(b"long") is None


def test_a_state_that_a_newer_format_made_is_as_before_until_it_is_whole(kind: str) -> None:
    """The mark of the format is part of the entry that needs it."""
    store = open_store(kind)
    store.apply(entries_of([(b"k", b"v")]))
    before = [*store.engine.items()]

    def look() -> None:
        state = store.snapshot()
        assert [*state.reader.items()] == before
        state.close()

    in_turns(store, entries_of([many()], 2), look)
    assert store.version == 2


def test_no_checkpoint_begins_amid_an_entry(kind: str) -> None:
    store = open_store(kind)
    store.apply(entries_of([many()]), lambda: True)
    assert store.is_amid
    with pytest.raises(AssertionError, match="half of an entry"):
        store.begin_checkpoint()


def test_an_entry_is_applied_again_after_a_crash_amid_it(kind: str) -> None:
    fs = CrashFileSystem()
    engine = kind_named(kind).open(fs, "/conure.db", OPTIONS, create=True)
    store = Store(engine, b"")
    entries = entries_of([(b"k", b"1"), many(Append(b"k", b"2"))])
    store.apply(entries[:1])
    store.engine.checkpoint(1, 1, store.digest)
    store.apply(entries[1:], lambda: True)
    assert store.is_amid
    store.close()
    store = Store(kind_named(kind).open(fs, "/conure.db", OPTIONS, create=False), b"")
    assert (store.applied_index, store.records, store.is_amid) == (1, 1, False)
    store.apply(entries[1:])
    whole = open_store(kind)
    whole.apply(entries)
    assert store.digest == whole.digest
    assert [*store.engine.items()] == [*whole.engine.items()]
    store.engine.check()


def test_an_installed_state_takes_the_place_of_one_amid_an_entry(kind: str) -> None:
    store, other = open_store(kind), open_store(kind)
    entries = entries_of([(b"k", b"1"), many(), (b"k", b"2")])
    store.apply(entries[:1])
    store.apply(entries[1:], lambda: True)
    assert store.is_amid
    state = store.snapshot()
    other.apply(entries)
    other.engine.checkpoint(3, 1, other.digest)
    store.replace(other.engine, SnapshotMeta(3, 1, b""))
    assert (store.is_amid, store.records) == (False, 1 + MANY)
    assert state.get(b"k") == Record(b"1", 1, 1, 1)  # who reads the former one may go on
    state.close()
    store.apply(entries_of([(b"k", b"3")], 4))
    assert store.get(b"k") == Record(b"3", 1, 4, 3)


def test_comparisons_take_turns_too_and_are_judged_by_the_state_before(kind: str) -> None:
    store = open_store(kind)
    store.apply(entries_of([(b"k", b"1")]))
    holds = [Compare(b"n%d" % n, Target.MOD_REVISION, Relation.EQUAL, 0) for n in range(MANY)]
    fails = Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 0)
    turns: list[None] = []
    command = many(compares=(*holds, fails, *holds))
    outcomes = in_turns(store, entries_of([command], 2), lambda: turns.append(None))
    assert outcomes == {2: Outcome(2, False, current=1)}
    assert len(turns) > 2
    assert store.records == 1
    outcomes = in_turns(store, entries_of([many(compares=tuple(holds))], 3))
    assert outcomes[3].succeeded
    assert store.records == 1 + MANY


def test_a_malformed_step_far_behind_ends_the_node(kind: str) -> None:
    """It can neither skip the entry nor go on without it."""
    data = encoded(many())
    at = data.rindex(b"n%d" % (MANY - 1)) - 30
    broken = data[:at] + b"\xff" + data[at + 1 :]
    store = open_store(kind)
    with pytest.raises(CorruptionError, match="unknown kind of step 255"):
        store.apply([Entry(1, 1, EntryKind.COMMAND, broken)])
    assert store.is_amid  # so that nothing makes this durable
    with pytest.raises(AssertionError, match="half of an entry"):
        store.begin_checkpoint()
    assert store.records == 0
