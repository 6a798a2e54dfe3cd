"""The state machine: commands in log order in, records out, equal on every node (R7)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wire
from btree import BTree
from errors import CorruptionError, DiskFull
from raft import Entry, EntryKind
from store import Checkpoint, Store
from tests.crashfs import CrashFileSystem

PATH = "/conure.db"
Command = tuple[bytes, bytes | None]


def open_store(fs: CrashFileSystem, configuration: bytes = b"") -> Store:
    return Store(BTree.open(fs, PATH, page_size=512, cache_bytes=1 << 20), configuration)


@pytest.fixture
def store() -> Iterator[Store]:
    store = open_store(CrashFileSystem())
    yield store
    store.tree.check()


def entries(first: int, *commands: Command, term: int = 1) -> list[Entry]:
    return [
        Entry(
            term,
            index,
            EntryKind.COMMAND,
            wire.encode_delete(key) if value is None else wire.encode_put(key, value),
        )
        for index, (key, value) in enumerate(commands, first)
    ]


def checkpoint(store: Store) -> None:
    running = store.begin_checkpoint()
    finish(running)


def finish(running: Checkpoint) -> None:
    while not running.step(1.0):
        pass
    running.finish()


def test_commands_are_applied_in_order(store: Store) -> None:
    outcomes = store.apply(
        entries(1, (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"b", None), (b"b", None), term=7)
    )
    assert outcomes == [1, 2, 3, 4, 0]  # the revision a command wrote, or nothing
    record = store.get(b"a")
    assert record is not None
    assert (record.value, record.create_revision, record.mod_revision) == (b"3", 1, 3)
    assert store.get(b"b") is None
    assert (store.applied_index, store.applied_term) == (5, 7)


def test_an_index_is_applied_once_and_in_order(store: Store) -> None:
    store.apply(entries(1, (b"a", b"1")))
    for first in (1, 3):
        with pytest.raises(AssertionError):
            store.apply(entries(first, (b"a", b"2")))
    record = store.get(b"a")
    assert record is not None
    assert record.value == b"1"


def test_entries_without_a_command_count_too(store: Store) -> None:
    store.apply(
        [
            Entry(1, 1, EntryKind.CONFIG, b"members"),
            Entry(2, 2, EntryKind.NOOP, b""),
            *entries(3, (b"a", b"1"), term=2),
        ]
    )
    assert store.configuration == b"members"
    assert (store.applied_index, store.applied_term) == (3, 2)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x02" + wire.encode_put(b"k", b"v")[1:], b"\x01\x63\x00\x00\x01k"]
)
def test_a_command_nobody_knows_is_never_skipped(data: bytes) -> None:
    store = open_store(CrashFileSystem())
    with pytest.raises(CorruptionError, match="raft log is corrupt"):
        store.apply([*entries(1, (b"a", b"1")), Entry(1, 2, EntryKind.COMMAND, data)])


def test_user_keys_have_a_room_of_their_own(store: Store) -> None:
    store.apply(entries(1, (b"k", b"1"), (b"\0", b"2"), (b"\xff", b"3")))
    assert [key for key, _ in store.tree.items()] == [b"k\0", b"kk", b"k\xff"]


def test_a_checkpoint_holds_its_index_and_what_comes_later_does_not_touch_it() -> None:
    fs = CrashFileSystem()
    store = open_store(fs, b"members")
    store.apply(entries(1, *[(b"%d" % n, b"old") for n in range(50)], term=3))
    running = store.begin_checkpoint()
    assert (running.meta.index, running.meta.term, running.meta.configuration) == (
        50, 3, b"members",
    )  # fmt: skip
    store.apply(entries(51, (b"7", b"new"), (b"8", None), (b"later", b"x"), term=4))
    while not running.step(0.0):
        store.apply(entries(store.applied_index + 1, (b"more", b"y"), term=4))
    running.finish()
    again = open_store(fs.after_crash("dropped"))
    assert (again.applied_index, again.applied_term) == (50, 3)
    assert all((record := again.get(b"%d" % n)) and record.value == b"old" for n in range(50))
    assert again.get(b"later") is None
    assert store.get(b"8") is None
    store.tree.check()


def test_a_checkpoint_that_does_not_fit_is_given_up_and_done_again() -> None:
    fs = CrashFileSystem()
    store = open_store(fs)
    store.apply(entries(1, *[(b"%d" % n, bytes(300)) for n in range(40)]))
    fs.set_capacity(fs.used_bytes())
    running = store.begin_checkpoint()
    with pytest.raises(DiskFull):
        finish(running)
    running.abort()
    store.apply(entries(41, (b"x", b"y")))
    fs.set_capacity(None)
    checkpoint(store)
    again = open_store(fs.after_crash("dropped"))
    assert again.applied_index == 41
    assert len(again.tree) == 41


KEYS = st.sampled_from([b"a", b"b", b"c", b"\0", b"a\0", b"long" * 30])
VALUES = st.none() | st.binary(max_size=40) | st.integers(0, 3).map(lambda n: b"%d" % n * 400)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=40), st.randoms(use_true_random=False)
)
def test_the_same_entries_give_the_same_records_however_they_come(
    commands: list[Command], rng: random.Random
) -> None:
    """R7: batches, checkpoints and restarts leave no trace in the contents."""
    log = entries(1, *commands)
    straight = open_store(CrashFileSystem())
    expected = straight.apply(log)

    fs = CrashFileSystem()
    winding = open_store(fs)
    outcomes: list[int] = []
    while winding.applied_index < len(log):
        at = winding.applied_index
        batch = log[at : at + rng.randrange(1, 6)]
        outcomes[at:] = winding.apply(batch)
        if rng.random() < 0.3:
            checkpoint(winding)
        if rng.random() < 0.2:
            fs = fs.after_crash("dropped")
            winding = open_store(fs)  # and the log is applied again from there
    assert outcomes == expected
    assert list(winding.tree.items()) == list(straight.tree.items())
    model: dict[bytes, bytes] = {}
    for key, value in commands:
        model.pop(key, None)
        if value is not None:
            model[key] = value
    assert {key[1:]: record.value for key, record in winding.tree.items()} == model
    winding.tree.check()
