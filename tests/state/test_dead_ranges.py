"""The state machine over ranges of which much was deleted: it goes through them in steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from conure.commands import DeleteRange, Expire, Operation, Put, Range, Transaction
from conure.consensus.messages import Entry, EntryKind
from conure.state.codec import encode_delete, encode_put, encode_transaction
from conure.state.machine import Store
from conure.storage.engines import LSM, kind_named
from conure.storage.lsm import lsmengine, state
from tests.lab.crashfs import CrashFileSystem
from tests.storage.lsm.enginetools import PLACE, SMALL, disk

DEAD = 2000


@pytest.fixture(name="store")
def _store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of which all keys but the first and the last were deleted."""
    monkeypatch.setattr(state, "PAUSE", 50)
    monkeypatch.setattr(lsmengine, "PAUSE", 50)
    monkeypatch.setattr(state, "SKIPPED", 20)
    return filled(disk())


def filled(fs: CrashFileSystem) -> Store:
    store = Store(kind_named(LSM).open(fs, PLACE, SMALL, create=True), b"")
    keys = [b"k%04d" % number for number in range(DEAD)]
    apply(store, *(encode_put(key, b"") for key in keys))
    ttls = [Put(b"t%04d" % number, b"", 1000 + number) for number in range(100)]
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
def test_an_entry_waits_until_its_way_is_short(store: Store, operation: Operation) -> None:
    """One step at a time, where there is time for no more; what comes of it is what always does."""
    other = filled(disk())
    command = whole(operation, time=5000)
    todo = entries(store, command, encode_put(b"after", b""))
    calls = 0
    while store.applied_index < todo[0].index:
        assert store.digest != 0
        outcomes = store.apply(todo, lambda: True)
        calls += 1
        assert calls < 1000
    assert calls > 1
    assert todo[0].index in outcomes
    assert store.applied_index == todo[0].index
    store.apply(todo[1:], lambda: True)
    apply(other, command, encode_put(b"after", b""))
    assert (store.digest, store.records) == (other.digest, other.records)
    store.engine.check()


def test_what_expires_next_is_found_out_in_several_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    clock: Callable[[], float] = lambda: float(next(ticks))  # noqa: E731
    monkeypatch.setattr("conure.state.machine.perf_counter", clock)
    looks = 0
    while (due := store.next_due()) is None:
        looks += 1
        assert looks < 100
    assert looks > 0
    assert due == 1 + 1000 + 99


def test_a_part_of_a_range_ends_where_going_on_would_take_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.machine._MOST_PAUSES", 2)
    pinned = store.snapshot()
    assert pinned.key_after(10, b"") == b"k1999"  # of 10 there is one before it, and many deleted
    assert pinned.key_after(1, b"k1999") == b"t0099"
    assert pinned.key_after(2, b"k1999") is None
    counts = list(pinned.count())
    assert counts[-1] == 3
    assert len(counts) > 3  # other things may have their turn at each pause
    assert [key for key in pinned.keys_in_turns() if key] == [b"k0000", b"k1999", b"t0099"]
    pinned.close()
