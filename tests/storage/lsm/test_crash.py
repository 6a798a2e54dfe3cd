"""Power lost at each sync, calls that fail, and disks that run full, under the whole engine."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from conure.errors import DiskFailed, DiskFull
from conure.fileio import FileSystem
from conure.storage.lsm.lsmengine import LSMEngine
from tests.lab.crashfs import CrashFileSystem, CrashMode, FailureKind, SimulatedCrash
from tests.storage.lsm.enginetools import (
    KIND,
    PLACE,
    SMALL,
    Model,
    change,
    disk,
    files,
    named,
    settle,
)

ROUNDS = 7
MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random", "random")


class History:
    """What an engine went through: its state at each index, and which index is durable."""

    def __init__(self, fs: CrashFileSystem, seed: int) -> None:
        self.fs = fs
        self.rng = random.Random(seed)
        self.states: dict[int, Model] = {0: {}}
        self.durable = 0
        self.under_way = 0

    def run(self) -> None:
        engine = KIND.open(self.fs, PLACE, SMALL, create=True)
        for index in range(1, ROUNDS + 1):
            model = dict(self.states[index - 1])
            change(engine, model, self.rng, 40)
            self.states[index] = model
            self.under_way = index
            engine.checkpoint(index, 1, index * 3)
            self.durable = index
            if index % 2:
                settle(engine)
        engine.close()

    def prove(self, later: FileSystem) -> None:
        """Open what a crash has left, and find one of the two states that it may have left."""
        if not later.exists(PLACE):
            assert not self.durable
            assert KIND.applied(later, PLACE) == (0, 0)
            engine = KIND.open(later, PLACE, SMALL, create=True)
        else:
            engine = KIND.open(later, PLACE, SMALL, create=False)
        index = engine.applied_index
        assert index in (self.durable, self.under_way)
        assert engine.applied_digest == index * 3
        assert dict(engine.items()) == self.states[index]
        assert engine.check().records == len(self.states[index])
        assert files(later) == named(later, PLACE)
        engine.put(b"new", b"x" * 300, 1 << 20)
        engine.checkpoint(index + 1, 2)
        settle(engine)
        assert engine.get(b"new") is not None
        engine.close()


@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_any_sync_leaves_the_last_state_or_the_new_one(part: int) -> None:
    at = part + 1
    while True:
        fs = disk(at)
        history = History(fs, 3)
        fs.crash_at_sync = at
        with contextlib.suppress(SimulatedCrash):
            history.run()
        for mode in MODES:
            history.prove(fs.after_crash(mode, random.Random(f"{at} {mode}")))
        if fs.crash_at_sync is None or fs.crash_at_sync > 0:
            break
        at += 4
    assert at > 60


def test_a_killed_process_leaves_what_the_next_one_goes_on_with() -> None:
    """All that was written is there, synced or not, and power is lost later."""
    for at in range(1, 60, 5):
        fs = disk(at)
        history = History(fs, 4)
        fs.crash_at_sync = at
        with contextlib.suppress(SimulatedCrash):
            history.run()
        fs.restart_process()
        with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=True)) as engine:
            found = dict(engine.items())
            index = engine.applied_index
        assert found == history.states[index]
        for later in fs.survivors(at):
            engine = KIND.open(later, PLACE, SMALL, create=True)
            assert dict(engine.items()) == history.states[engine.applied_index]
            engine.check()


@pytest.mark.parametrize("part", range(4))
def test_a_call_that_fails_costs_nothing_durable(part: int) -> None:
    at = part + 1
    while True:
        fs = disk(at)
        history = History(fs, 5)
        fs.fail_call(at)
        with contextlib.suppress(DiskFailed):
            history.run()
        is_over = fs.failure_is_due
        fs.fail_call(None)
        history.prove(fs.after_crash("random", random.Random(at)))
        if is_over:
            break
        at += 4
    assert at > 400


@pytest.mark.parametrize("kind", ["full", "half"])
def test_a_disk_that_is_full_for_a_call_is_tried_again(kind: FailureKind) -> None:
    """What did not fit leaves nothing behind, whether a flush or a merge wrote it."""
    at, refused, is_over = -1, 0, False
    while not is_over:
        at += 3
        fs = disk(at)
        rng = random.Random(6)
        engine = KIND.open(fs, PLACE, SMALL, create=True)
        model: Model = {}
        fs.fail_call(at, kind)
        for index in range(1, 6):
            change(engine, model, rng, 40)
            try:
                engine.checkpoint(index, 1)
            except DiskFull:
                refused += 1
                assert dict(engine.items()) == model
                assert files(fs) == named(fs, PLACE)
                assert fs.list("/home") == ["conure.db", "lsm"]
                change(engine, model, rng, 10)
                engine.checkpoint(index, 1)
            settle(engine)
            assert files(fs) == named(fs, PLACE)
        is_over = fs.failure_is_due
        assert dict(engine.items()) == model
        assert engine.check().records == len(model)
        later = KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False)
        assert dict(later.items()) == model
    assert at > 30
    assert refused > 5


def test_checkpoints_that_never_fit_lose_nothing_and_keep_reads_cheap() -> None:
    fs = disk()
    engine = KIND.open(fs, PLACE, SMALL, create=True)
    model: Model = {}
    rng = random.Random(7)
    change(engine, model, rng, 50)
    engine.checkpoint(1, 1)
    durable = dict(model)
    fs.set_capacity(fs.used_bytes())
    for index in range(2, 30):
        change(engine, model, rng, 5)
        with pytest.raises(DiskFull):
            engine.checkpoint(index, 1)
        assert len(engine._state.frozen) <= 6
        assert dict(engine.items()) == model
    assert dict(KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False).items()) == durable
    fs.set_capacity(None)
    engine.checkpoint(31, 1)
    assert engine.unwritten_bytes == 0
    assert dict(KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False).items()) == model


def test_a_merge_that_does_not_fit_is_tried_again_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fs = disk()
    engine = KIND.open(fs, PLACE, SMALL, create=True)
    model: Model = {}
    rng = random.Random(8)
    for index in range(1, 9):
        change(engine, model, rng, 40)
        engine.checkpoint(index, 1)
    assert engine.stats().tables[0][0] == 8
    fs.set_capacity(fs.used_bytes())
    for _ in range(200):
        engine.compact(0.01)
    assert engine.stats().tables[0][0] == 8
    assert files(fs) == named(fs, PLACE)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "merges have to wait" in told
    assert "free some space" in told
    fs.set_capacity(None)
    for _ in range(100):
        engine.compact(0.01)
    assert engine.stats().tables[0][0] < 4
    assert [record.getMessage() for record in caplog.records][1:] == ["merges go on"]
    assert dict(engine.items()) == model


def load(engine: LSMEngine, model: Model) -> None:
    loader = engine.loader()
    loader.add(sorted(model.items()))
    loader.finish()


def empty(engine: LSMEngine, model: Model) -> None:
    for key in model:
        engine.delete(key)


@pytest.mark.parametrize("step", ["load", "merge", "checkpoint"])
def test_a_load_counts_with_the_next_checkpoint_and_not_before(step: str) -> None:
    """Whatever else becomes durable in between."""
    steps: dict[str, Callable[[LSMEngine], None]] = {
        "load": lambda engine: None,
        "merge": settle,
        "checkpoint": lambda engine: engine.checkpoint(3, 1),
    }
    at, is_over = 0, False
    while not is_over:
        at += 1
        fs = disk(at)
        before: Model = {}
        engine = KIND.open(fs, PLACE, SMALL, create=True)
        for index in range(1, 3):
            change(engine, before, random.Random(index), 60)
            engine.checkpoint(index, 1)
        loaded: Model = {}
        change(KIND.open(disk(), PLACE, SMALL, create=True), loaded, random.Random(9), 200)
        fs.crash_at_sync = at
        try:
            empty(engine, before)
            load(engine, loaded)
            steps[step](engine)
            is_over = True
        except SimulatedCrash:
            pass
        for later in fs.survivors(at):
            again = KIND.open(later, PLACE, SMALL, create=False)
            is_new = again.applied_index == 3
            assert dict(again.items()) == (loaded if is_new else before)
            assert is_new or not (is_over and step == "checkpoint")
            assert again.check().records == len(again)
            assert files(later) == named(later, PLACE)
    assert at > 2
