"""recent.py: what was read lately is what the engine would find, and takes its room alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.storage import recent as recent_file
from conure.storage.recent import ENTRY_BYTES, LONGEST, Recent
from tests.lab.crashfs import CrashFileSystem
from tests.lab.trees import Pair

CELLS = st.one_of(
    st.binary(max_size=30).map(lambda data: b"\0" + data),
    st.sampled_from([b"\0" * LONGEST, b"\0" * (LONGEST + 1), b"\1flagged"]),
)
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "write", "drop", "shrink"]),
        st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"eeeee"]),
        CELLS,
        st.integers(-100, 1500),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(ACTS)
def test_cells_are_those_of_the_model_and_counted(
    acts: list[tuple[str, bytes, bytes, int]],
) -> None:
    recent = Recent()
    model: dict[bytes, bytes] = {}
    for act, key, cell, room in acts:
        if act == "read":
            found = recent.young.get(key) or recent.again(key)
            if found is None and key in model:
                recent.add(key, model[key], room)
        elif act == "write":
            model[key] = cell
            if key in recent.young or key in recent.old:
                recent.replace(key, cell)
        elif act == "drop":
            model.pop(key, None)
            recent.drop(key)
        else:
            recent.shrink(room)
        held = {**recent.young, **recent.old}
        assert not recent.young.keys() & recent.old.keys()
        assert all(model[key] == cell for key, cell in held.items())
        assert all(not cell[0] and len(cell) <= LONGEST for cell in held.values())
        sizes = [len(key) + len(cell) + ENTRY_BYTES for key, cell in held.items()]
        assert recent.bytes == sum(sizes)


def test_what_is_read_again_stays_and_others_go() -> None:
    recent = Recent()
    size = ENTRY_BYTES + 4 + 10
    for number in range(1000):
        key = b"%04d" % number
        recent.add(key, bytes(10), 100 * size)
        assert recent.bytes <= 100 * size
        for again in (b"0000", b"0001"):
            assert recent.young.get(again) or recent.again(again) or number == 0
    assert recent.bytes > 80 * size


def test_no_more_is_kept_than_a_dict_can_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_file, "MOST_BYTES", 5000)
    recent = Recent()
    for number in range(100):
        recent.add(b"%d" % number, bytes(10), 1 << 30)
        assert recent.bytes <= 5000


def test_room_that_is_needed_is_given_back_little_by_little() -> None:
    recent = Recent()
    for number in range(100):
        recent.add(b"%d" % number, bytes(10), 1 << 20)
    recent.shrink(0)
    assert len(recent.young) + len(recent.old) == 92
    for _ in range(20):
        recent.shrink(0)
    assert recent.bytes == 0
    recent.add(b"k", bytes(10), 0)
    assert recent.bytes == 0


def test_a_tree_finds_what_was_read_lately() -> None:
    luck = random.Random(3)
    pair = Pair(CrashFileSystem(), cache_bytes=30_000)
    recent = pair.tree._recent
    for turn in range(1500):
        key = b"%03d" % luck.randrange(300)
        match luck.randrange(8):
            case 0 | 1 if key in pair.model:
                pair.delete(key)
            case 2:
                pair.put(key, b"v" * luck.choice([0, 10, 60, 2000]), luck.choice([0, 0, 9]))
            case 3:
                record = pair.tree.touch(key, turn)
                assert (record is None) == (key not in pair.model)
                if record is not None:
                    pair.model[key] = record
            case 4 if turn % 50 == 0:
                pair.checkpoint()
            case _:
                pair.put(key, b"%d" % turn)
        for _ in range(2):
            other = b"%03d" % luck.randrange(300)
            assert pair.tree.get(other) == pair.model.get(other)
        assert recent.bytes <= pair.cache_bytes
        if turn % 100 == 0:
            pair.verify()
    assert recent.bytes > 0
    assert pair.tree.stats().recent_bytes == recent.bytes
    pair.verify()
    pair.tree.close()


def test_pages_come_before_records() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=30_000)
    for number in range(150):
        pair.put(b"%04d" % number, b"v")
    pair.checkpoint()
    for key in pair.model:
        assert pair.tree.get(key) == pair.model[key]
    assert pair.tree._recent.bytes > 3000
    for number in range(150, 1500):
        pair.put(b"%04d" % number, b"v")
        if number % 20 == 0:
            pair.checkpoint()
    recent, pool = pair.tree._recent, pair.tree._pool
    assert pool.cached_bytes > 0.8 * pair.cache_bytes
    assert recent.bytes + pool.cached_bytes <= pair.cache_bytes  # what was written took the room
    for _ in range(2):
        for key in pair.model:
            assert pair.tree.get(key) == pair.model[key]
            assert recent.bytes + pool.cached_bytes <= pair.cache_bytes + 300
    pair.verify()
    pair.tree.close()


def test_pages_that_were_written_get_their_room_without_a_read() -> None:
    pair = Pair(CrashFileSystem(), cache_bytes=30_000)
    for number in range(800):
        pair.put(b"%04d" % number, b"v")
    for key in pair.model:  # while no page is written yet
        assert pair.tree.get(key) == pair.model[key]
    recent, pool = pair.tree._recent, pair.tree._pool
    assert recent.bytes > 0.8 * pair.cache_bytes
    pair.checkpoint()
    while pair.tree.maintain(0.0):
        assert pair.tree.get(b"0000") == pair.model[b"0000"]
    assert pool.cached_bytes > 0.8 * pair.cache_bytes
    assert recent.bytes + pool.cached_bytes <= pair.cache_bytes
    pair.verify()
    pair.tree.close()
