"""The state machine over ranges of which much was deleted: it goes through them in turns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from conure.commands import (
    Acquire,
    DeleteRange,
    EndSession,
    Expire,
    OpenSession,
    Operation,
    Put,
    Range,
    Release,
    Transaction,
)
from conure.consensus.messages import Entry, EntryKind
from conure.state import holdings
from conure.state.codec import encode_delete, encode_put, encode_transaction
from conure.state.machine import Store
from conure.storage.engines import LSM, kind_named
from conure.storage.lsm import state
from tests.lab.crashfs import CrashFileSystem
from tests.storage.lsm.enginetools import PLACE, SMALL, disk

DEAD = 2000
TTLS = 400
LAST = b"t%04d" % (TTLS - 1)
LAST_DUE = 1 + 1000 + TTLS - 1


@pytest.fixture(name="store")
def _store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of which all keys but the first and the last were deleted."""
    monkeypatch.setattr(state, "PAUSE", 50)
    monkeypatch.setattr(state, "SKIPPED", 20)
    return filled(disk())


def filled(fs: CrashFileSystem) -> Store:
    store = Store(kind_named(LSM).open(fs, PLACE, SMALL, create=True), b"")
    keys = [b"k%04d" % number for number in range(DEAD)]
    apply(store, *(encode_put(key, b"") for key in keys))
    ttls = [Put(b"t%04d" % number, b"", 1000 + number) for number in range(TTLS)]
    for operation in ttls:
        apply(store, whole(operation))
    store.begin_checkpoint().abort()
    apply(store, *(encode_delete(key) for key in keys[1:-1]))
    apply(store, *(encode_delete(each.key) for each in ttls[:-1]))
    return store


def whole(*operations: Operation, time: int = 1) -> bytes:
    return encode_transaction(Transaction((), operations, time=time))


def entries(store: Store, *commands: bytes) -> list[Entry]:
    first = store.applied_index + 1
    return [Entry(1, index, EntryKind.COMMAND, data) for index, data in enumerate(commands, first)]


def apply(store: Store, *commands: bytes) -> None:
    store.apply(entries(store, *commands))


@pytest.mark.parametrize(
    "operation",
    [
        Range(b"", None, 10),
        Range(b"", None, 1, reverse=True),
        Range(b"k0001", b"l", 5, keys_only=True),
        DeleteRange(b"", b"l", 10),
        DeleteRange(b"k0001", b"k1998"),
        Expire(10),
    ],
)
def test_an_entry_goes_through_them_in_turns(store: Store, operation: Operation) -> None:
    """One step at a time, where there is time for no more; what comes of it is what always does."""
    other = filled(disk())
    command = whole(operation, time=5000)
    todo = entries(store, command, encode_put(b"after", b""))
    calls = 0
    while store.applied_index < todo[0].index:
        before = store.digest, store.records, store.snapshot().index
        outcomes = store.apply(todo, lambda: True)
        calls += 1
        assert calls < 1000
        assert not store.is_amid or before == (store.digest, store.records, before[2])
    assert calls > 2
    assert todo[0].index in outcomes
    assert store.applied_index == todo[0].index
    store.apply(todo[1:], lambda: True)
    apply(other, command, encode_put(b"after", b""))
    assert (store.digest, store.records) == (other.digest, other.records)
    store.engine.check()


def test_many_short_runs_of_deleted_keys_are_gone_through_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They leave no marks, so that nothing of the way through them can be left out."""
    monkeypatch.setattr(state, "PAUSE", 50)
    for operation in (Range(b"", None, 5000), DeleteRange(b"", None, 5000), DeleteRange(b"", None)):
        store = Store(kind_named(LSM).open(disk(), PLACE, SMALL, create=True), b"")
        keys = [b"k%04d" % number for number in range(DEAD)]
        apply(store, *(encode_put(key, b"") for key in keys))
        store.begin_checkpoint().abort()
        apply(store, *(encode_delete(key) for number, key in enumerate(keys) if number % 10))
        todo = entries(store, whole(operation))
        calls = 0
        while not (outcomes := store.apply(todo, lambda: True)):
            calls += 1
            assert store.records == DEAD // 10
        assert calls > 5
        assert outcomes[store.applied_index].results[0].total == DEAD // 10
        store.engine.check()


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the clock be a second later than the one before."""
    ticks = count()
    clock: Callable[[], float] = lambda: float(next(ticks))  # noqa: E731
    monkeypatch.setattr("conure.state.dueindex.perf_counter", clock)


def test_what_expires_next_is_found_out_in_several_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ranges others look into meanwhile: their marks take the place of these."""
    ticking(monkeypatch)
    monkeypatch.setattr("conure.storage.lsm.marks.MOST_MARKS", 1)
    looks = 0
    while (due := store.next_due()) is None:
        looks += 1
        assert looks < 100
        apply(store, whole(Range(b"k0001", b"k1000", 5)))
    assert looks > 1
    assert due == LAST_DUE
    assert store.stats().readers == 0
    assert store.next_due() == due


def test_what_is_put_and_ends_between_two_looks_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch)
    assert store.next_due() is None
    assert store.stats().readers == 1
    apply(store, whole(Put(b"t0050", b"", 1040)))  # among those that are gone
    due = store.next_due()
    while due is None:
        due = store.next_due()
    assert due == 1041
    apply(store, whole(Put(b"first", b"", 5)), whole(Put(b"first", b"", 9)))
    assert store.next_due() == 10
    apply(store, encode_delete(b"first"), encode_delete(b"t0050"))
    while (due := store.next_due()) is None:
        pass
    assert due == LAST_DUE
    apply(store, encode_delete(LAST))
    while (due := store.next_due()) is not None or store.stats().readers:
        assert due is None
    apply(store, whole(Put(b"k", b"", 70)))
    assert store.next_due() == 71


def test_what_has_ended_is_not_gone_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front of an index is known, though nothing of it is marked."""
    monkeypatch.setattr(state, "PAUSE", 50)
    monkeypatch.setattr("conure.storage.lsm.marks.MOST_MARKS", 1)
    store = Store(kind_named(LSM).open(disk(), PLACE, SMALL, create=True), b"")
    apply(store, *(whole(Put(b"t%04d" % number, b"", 1000 + number)) for number in range(2000)))
    for time in range(1100, 3100, 100):
        while (due := store.next_due()) is None:  # on a busy machine it takes several looks
            pass
        assert due == time - 99
        todo = entries(store, whole(Expire(100), time=time))
        pauses = 0
        while not store.apply(todo, lambda: True):
            pauses += 1
        assert pauses < 20
    assert store.records == 0


def test_the_holdings_of_a_session_are_counted_in_several_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes and goes meanwhile counts; once they are counted, no way is gone again."""
    monkeypatch.setattr(state, "PAUSE", 50)
    store = Store(kind_named(LSM).open(disk(), PLACE, SMALL, create=True), b"")
    names = [b"%04d" % number for number in range(DEAD)]
    apply(store, whole(OpenSession(b"s", 9_000, False, b"")))
    apply(store, *(whole(Acquire(name, b"s", None)) for name in names))
    store.begin_checkpoint().abort()
    released = [name for number, name in enumerate(names) if number % 10]
    apply(store, *(whole(Release(name, b"s", None)) for name in released))
    calls = 0
    while (held := store.holdings(b"s", b"x")) is None:
        calls += 1
        apply(store, whole(Acquire(b"new%d" % calls, b"s", None)))
    assert calls > 2
    assert held == DEAD // 10 + calls
    assert store.stats().readers == 0
    apply(store, whole(Release(b"new1", b"s", None)))
    assert store.holdings(b"s", b"x") == held - 1
    assert store.holdings(b"s", b"new2") == 0
    apply(store, whole(EndSession(b"s")))
    assert store.holdings(b"s", b"x") == 0


def test_not_all_sessions_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PAUSE", 10)
    monkeypatch.setattr(holdings, "MOST_LOOKS", 2)
    monkeypatch.setattr(holdings, "MOST_COUNTS", 2)
    store = Store(kind_named(LSM).open(disk(), PLACE, SMALL, create=True), b"")
    sessions = [b"a", b"b", b"c"]
    for session in sessions:
        apply(store, whole(OpenSession(session, 9_000, False, b"")))
        names = [session + b"%03d" % number for number in range(100)]
        apply(store, *(whole(Acquire(name, session, None)) for name in names))
        apply(store, *(whole(Release(name, session, None)) for name in names[:-1]))
    for _ in range(2):
        assert [store.holdings(session, b"x") for session in sessions] == [None] * 3
        assert store.stats().readers == 2
    for session in sessions:
        while store.holdings(session, b"x") is None:
            assert store.stats().readers <= 2
    assert [store.holdings(session, b"x") for session in sessions[1:]] == [1, 1]
    assert store.holdings(b"a", b"x") is None
    store.close()
    assert store.stats().readers == 0


def test_what_nobody_goes_on_with_is_not_pinned_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads no more asks for nothing that is due."""
    ticking(monkeypatch)
    monkeypatch.setattr(state, "PAUSE", 10)
    monkeypatch.setattr(holdings, "PAUSES", 1)
    apply(store, whole(OpenSession(b"s", 9_000_000, False, b"")))
    names = [b"%04d" % number for number in range(500)]
    apply(store, *(whole(Acquire(name, b"s", None)) for name in names))
    apply(store, *(whole(Release(name, b"s", None)) for name in names))
    assert store.next_due() is None
    assert store.holdings(b"s", b"x") is None
    store.begin_checkpoint().abort()
    assert store.stats().readers == 2
    assert store.next_due() is None  # somebody goes on with that
    for readers in (1, 0, 0):
        store.begin_checkpoint().abort()
        assert store.stats().readers == readers
    while store.next_due() is None or store.holdings(b"s", b"x") is None:
        pass
    assert (store.next_due(), store.holdings(b"s", b"x")) == (LAST_DUE, 0)
    assert store.stats().readers == 0


def test_a_part_of_a_range_ends_where_going_on_would_take_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.machine._MOST_PAUSES", 2)
    pinned = store.snapshot()
    assert pinned.key_after(10, b"") == b"k1999"  # of 10 there is one before it, and many deleted
    assert pinned.key_after(1, b"k1999") == LAST
    monkeypatch.setattr("conure.state.machine._MOST_PAUSES", 99)
    assert pinned.key_after(2, b"k1999") is None
    counts = list(pinned.count())
    assert counts[-1] == 3
    assert len(counts) > 3  # other things may have their turn at each pause
    assert [key for key in pinned.keys_in_turns() if key] == [b"k0000", b"k1999", LAST]
    pinned.close()
