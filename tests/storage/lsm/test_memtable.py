"""The memtable beside a dict, and its pinned states beside copies of that."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import pytest

from conure.storage.lsm import memtable as module
from conure.storage.lsm.memtable import RECORD_BYTES, Memtable, Pin
from conure.storage.lsm.merging import Group

Model = dict[bytes, bytes]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some dozens of keys do what thousands would."""
    monkeypatch.setattr(module, "PENDING", 16)
    monkeypatch.setattr(module, "_CHUNK", 8)
    monkeypatch.setattr(module, "_FEW", 3)
    monkeypatch.setattr(module, "_FIRST", 2)


def put(memtable: Memtable, model: Model, key: bytes, cell: bytes) -> None:
    memtable.put(key, cell, memtable.cells.get(key))
    model[key] = cell


def rows(groups: list[Group], *, reverse: bool) -> list[tuple[bytes, bytes]]:
    """Return what groups hold, in the order of the keys; each group ascends by itself."""
    found: list[tuple[bytes, bytes]] = []
    for keys, cells in groups[::-1] if reverse else groups:
        assert keys
        found += zip(keys, cells, strict=True)
    assert all(a[0] < b[0] for a, b in pairwise(found))
    return found


def within(model: Model, start: bytes, end: bytes | None) -> list[tuple[bytes, bytes]]:
    keys = sorted(key for key in model if start <= key and (end is None or key < end))
    return [(key, model[key]) for key in keys]


def some_range(rng: random.Random) -> tuple[bytes, bytes | None]:
    start = rng.choice([b"", b"%03d" % rng.randrange(300)])
    return start, rng.choice([None, b"%03d" % rng.randrange(300)])


@pytest.mark.parametrize("seed", range(40))
def test_any_history_is_that_of_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    memtable, model = Memtable(), Model()
    pins: list[tuple[Pin, Model]] = []
    for _ in range(150):
        what = rng.randrange(10)
        if what < 6:
            for _ in range(rng.choice([1, 1, 5, 30])):
                put(memtable, model, b"%03d" % rng.randrange(300), rng.randbytes(rng.randrange(4)))
        elif what == 6:
            pins.append((memtable.pin(), dict(model)))
        elif what == 7 and pins:
            pins.pop(rng.randrange(len(pins)))
        elif what == 8:
            memtable.settle()
        start, end = some_range(rng)
        reverse = rng.random() < 0.5
        groups = list(memtable.groups(start, end, reverse=reverse))
        assert rows(groups, reverse=reverse) == within(model, start, end)
        for pin, then in pins:
            key = b"%03d" % rng.randrange(300)
            assert pin.get(key) == then.get(key)
            groups = list(pin.groups(start, end, reverse=reverse))
            assert rows(groups, reverse=reverse) == within(then, start, end)
    assert memtable.cells == model
    in_use = sum(len(key) + len(cell) + module.RECORD_BYTES for key, cell in model.items())
    assert memtable.size >= in_use
    plain = Memtable()
    for _ in range(200):
        put(plain, {}, b"%03d" % rng.randrange(50), rng.randbytes(rng.randrange(4)))
    cells = plain.cells.items()
    assert plain.size == sum(len(key) + len(cell) + module.RECORD_BYTES for key, cell in cells)


def test_nothing_is_saved_when_nobody_has_pinned() -> None:
    memtable, model = Memtable(), Model()
    put(memtable, model, b"a", b"1")
    pin = memtable.pin()
    undo = pin._undo
    put(memtable, model, b"a", b"2")
    assert undo == {b"a": b"1"}
    del pin
    assert memtable._undo() is undo
    del undo
    put(memtable, model, b"a", b"3")
    assert memtable._undo() is None


def test_one_reader_does_not_pay_for_all_that_came_and_went_since() -> None:
    memtable, model = Memtable(), Model()
    put(memtable, model, b"a", b"0")
    first = memtable.pin()
    for number in range(1, 500):
        memtable.pin()
        put(memtable, model, b"%d" % (number % 7), b"x")
        keep = memtable.pin()
        put(memtable, model, b"a", b"%d" % number)
        assert keep.get(b"a") == b"%d" % (number - 1)
        assert first.get(b"a") == b"0"
        count, undo = 0, first._undo
        while undo.later is not None:
            count, undo = count + 1, undo.later
        assert count <= module._LONG_CHAIN
    assert first.get(b"3") is None


def test_pinned_states_are_read_in_other_threads_while_the_writer_goes_on() -> None:
    memtable, model = Memtable(), Model()
    for number in range(100):
        put(memtable, model, b"%03d" % number, b"0")
    failures: list[object] = []
    stop = threading.Event()

    def read(pin: Pin, then: Model) -> None:
        while not stop.is_set():
            groups = list(pin.groups(b"", None, reverse=False))
            if rows(groups, reverse=False) != within(then, b"", None):
                failures.append(groups)
            if pin.get(b"050") != then.get(b"050"):
                failures.append(pin)

    threads = []
    rng = random.Random(1)
    for _ in range(3):
        threads.append(threading.Thread(target=read, args=(memtable.pin(), dict(model))))
        threads[-1].start()
        for _ in range(3000):
            put(memtable, model, b"%03d" % rng.randrange(300), rng.randbytes(2))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_is_kept_for_readers_counts_as_memory() -> None:
    """Or a key that is overwritten again and again, while readers come and stay, would take any."""
    memtable = Memtable()
    memtable.put(b"k", b"v" * 1000, None)
    size, pins = memtable.size, []
    for _ in range(10):
        pins.append(memtable.pin())
        for _ in range(3):
            memtable.put(b"k", b"w" * 1000, memtable.cells[b"k"])
    assert memtable.size == size + 10 * (1 + 1000 + RECORD_BYTES)
    assert pins[0].get(b"k") == b"v" * 1000
    assert pins[9].get(b"k") == b"w" * 1000
