"""Power loss, failing calls and a full disk: a reopened tree is the old checkpoint or the new."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from btree import BTree
from conure.errors import CorruptionError, DiskFailed, DiskFull, StorageError
from conure.storage.engine import Record
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

State = dict[bytes, Record]
MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random", "random")


class Run:
    """A tree at work: some rounds of writes, each with a checkpoint, on a disk that may fail.

    ``begun`` and ``durable`` are the states of the last checkpoint that was begun and of the last
    that returned. After a crash the disk has to hold one of the two.
    """

    def __init__(self, fs: CrashFileSystem, seed: int, page_size: int = 256) -> None:
        self.fs = fs
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.begun: State = {}
        self.durable: State = {}

    def go(self, rounds: int) -> None:
        tree = BTree.open(self.fs, "db", page_size=self.page_size, cache_bytes=2000)
        revision = 0
        pinned = tree.snapshot()
        for number in range(1, rounds + 1):
            for _ in range(25):
                revision += 1
                key = b"%02d" % self.rng.randrange(60)
                if self.rng.random() < (0.3 if number % 5 else 0.9):
                    tree.delete(key)
                else:
                    size = self.rng.choice([5, 30, 400])
                    tree.put(key, self.rng.randbytes(size), revision)
            checkpoint = tree.begin_checkpoint(number, 1, digest_at(number))
            self.begun = dict(tree.items())
            while not checkpoint.step(0):
                pass
            tree.put(b"during", b"%d" % number, revision)
            checkpoint.finish()
            self.durable = self.begun
            if number % 3 == 0:
                pinned.close()
                pinned = tree.snapshot()
        pinned.close()
        tree.close()


def digest_at(number: int) -> int:
    return number * 0x01010101


def verify(fs: CrashFileSystem, states: list[State]) -> None:
    tree = BTree.open(fs, "db", page_size=256)
    tree.check()
    assert dict(tree.items()) in states
    # And it goes on from there, twice, without touching what the meta pages reach (S1).
    for round_ in range(2):
        tree.put(b"after", b"the crash", 10_000 + round_)
        tree.checkpoint(10_000 + round_, 2)
        tree.check()
    tree.close()
    again = BTree.open(fs, "db")
    assert again.get(b"after") == Record(b"the crash", 10_000, 10_001, 2)
    again.check()
    again.close()


@pytest.mark.parametrize("page_size", [256, 1024])
def test_power_loss_at_every_sync(page_size: int) -> None:
    probe = CrashFileSystem()
    Run(probe, 1, page_size).go(8)
    assert probe.syncs >= 18
    for k in range(1, probe.syncs + 1):
        fs = CrashFileSystem()
        fs.crash_at_sync = k
        run = Run(fs, 1, page_size)
        with pytest.raises(SimulatedCrash):
            run.go(8)
        for seed, mode in enumerate(MODES):
            rng = random.Random(100 * k + seed)
            survivor = fs.after_crash(mode, rng)
            tree = BTree.open(survivor, "db", page_size=page_size)
            assert tree.applied_digest == digest_at(tree.applied_index)
            verify(survivor, [run.durable, run.begun])


def test_two_power_losses_in_a_row() -> None:
    for k in range(3, 12):
        for seed in range(4):
            rng = random.Random(10 * k + seed)
            fs = CrashFileSystem()
            fs.crash_at_sync = k
            run = Run(fs, 2)
            with pytest.raises(SimulatedCrash):
                run.go(8)
            fs = fs.after_crash("random", rng)
            tree = BTree.open(fs, "db", page_size=256)
            before = dict(tree.items())
            assert before in (run.durable, run.begun)
            for i in range(40):
                tree.put(b"%02d" % i, b"second life", 999)
            fs.crash_at_sync = rng.choice([1, 2])
            now = dict(tree.items())
            with pytest.raises(SimulatedCrash):
                tree.checkpoint(999, 9)
            verify(fs.after_crash("random", rng), [before, now])


@pytest.mark.parametrize("k", range(4, 12))
def test_a_power_loss_after_the_process_was_killed(k: int) -> None:
    """What the killed one wrote is seen by the next one, and may yet be lost."""
    for seed in range(8):
        fs = CrashFileSystem()
        fs.crash_at_sync = k
        run = Run(fs, 2)
        with pytest.raises(SimulatedCrash):
            run.go(8)
        fs.restart_process()
        tree = BTree.open(fs, "db", page_size=256)
        found = dict(tree.items())
        for i in range(40):
            tree.put(b"%02d" % i, b"second life", 999)
        now = dict(tree.items())
        fs.crash_at_sync = 1
        with pytest.raises(SimulatedCrash):
            tree.checkpoint(999, 9)
        verify(fs.after_crash("random", random.Random(seed)), [found, now])


def test_the_nth_call_fails() -> None:
    probe = CrashFileSystem()
    Run(probe, 3).go(4)
    for n in range(1, probe.calls + 1):
        fs = CrashFileSystem(seed=n)
        fs.fail_call(n)
        run = Run(fs, 3)
        with pytest.raises(DiskFailed):
            run.go(4)
        assert not fs.failure_is_due
        verify(fs.after_crash("random"), [run.durable, run.begun])


def test_a_failed_sync_is_final() -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    tree.put(b"k", b"v", 1)
    tree.begin_checkpoint(1, 1).abort()
    checkpoint = tree.begin_checkpoint(1, 1)
    assert checkpoint.step(1)
    fs.fail_call(1)
    with pytest.raises(DiskFailed):
        checkpoint.finish()
    checkpoint.abort()
    with pytest.raises(DiskFailed):  # S6
        tree.checkpoint(2, 1)
    assert tree.applied_index == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_full_disk_at_the_nth_write(seed: int) -> None:
    n = 1
    while True:
        fs = CrashFileSystem()
        tree = BTree.open(fs, "db", page_size=256)
        rng = random.Random(seed)
        for i in range(60):
            tree.put(b"%02d" % i, rng.randbytes(rng.choice([5, 300])), i + 1)
        tree.checkpoint(60, 1)
        durable = dict(tree.items())
        for i in range(0, 60, 2):
            tree.put(b"%02d" % i, rng.randbytes(rng.choice([5, 300])), 60 + i)
            tree.delete(b"%02d" % (i + 1))
        now = dict(tree.items())
        fs.fail_call(n, "full")
        try:
            tree.checkpoint(120, 1)
        except DiskFull:
            assert tree.applied_index == 60
        else:
            fs.fail_call(None)
            assert n > 3
            return
        assert dict(tree.items()) == now
        tree.check()
        survivor = fs.after_crash("random", rng)
        verify(survivor, [durable])
        tree.checkpoint(121, 1)
        tree.check()
        verify(fs.after_crash("dropped"), [now])
        n += 1


@pytest.mark.parametrize("page_size", [256, 1024])
def test_a_disk_that_is_full_amid_the_nth_write(page_size: int) -> None:
    """Half of a meta page may hold the new checkpoint as a whole: then there is no way back."""
    ended: set[type[StorageError]] = set()
    for n in range(1, 9):
        fs = CrashFileSystem(seed=n)
        tree = BTree.open(fs, "db", page_size=page_size)
        states = []
        for round_ in range(3):
            for i in range(20):
                tree.put(b"%02d" % i, b"v" * (100 * round_ + i), round_ + 1)
            states.append(dict(tree.items()))
            if round_ == 1:
                fs.fail_call(n, "half")
            try:
                tree.checkpoint(round_ + 1, 1)
            except DiskFull:
                ended.add(DiskFull)
                verify(fs.after_crash("random"), states[:1])
            except DiskFailed:
                ended.add(DiskFailed)
                break
            else:
                fs.fail_call(None)
        for mode in MODES:
            verify(fs.after_crash(mode), states[-2:])
    assert ended == ({DiskFull} if page_size == 256 else {DiskFull, DiskFailed})


def test_capacity_runs_out_and_comes_back() -> None:
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=512)
    failed = 0
    for number in range(1, 40):
        fs.set_capacity(None if number % 4 == 0 else fs.used_bytes() + 1024)
        for i in range(20):
            tree.put(b"%03d" % (number * 20 + i), b"v" * 100, number)
        try:
            tree.checkpoint(number, 1)
        except DiskFull:
            failed += 1
        tree.check()
    assert failed > 10
    fs.set_capacity(None)
    tree.checkpoint(40, 1)
    verify(fs.after_crash("dropped"), [dict(tree.items())])


def test_bulk_load_that_fails_leaves_nothing_behind() -> None:
    items = [(b"%04d" % i, Record(b"v" * 100, 1, 1, 1)) for i in range(400)]
    fs = CrashFileSystem()
    tree = BTree.open(fs, "db", page_size=256)
    for n in (1, 3):
        fs.fail_call(n, "full")
        with pytest.raises(DiskFull):
            tree.bulk_load(items)
        tree.check()
    assert tree.bulk_load(items) == 400
    verify(fs.after_crash("random"), [{}])
    tree.checkpoint(1, 1)
    verify(fs.after_crash("dropped"), [dict(items)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda fs: fs.open("db").truncate(600),
        lambda fs: [fs.corrupt("db", 20), fs.corrupt("db", 128 + 20)],
        lambda fs: [fs.corrupt("db", 256 + 20), fs.corrupt("db", 256 + 128 + 20)],
    ],
)
def test_damage_is_not_mistaken_for_a_crash(damage: Callable[[CrashFileSystem], object]) -> None:
    fs = CrashFileSystem()
    run = Run(fs, 4)
    run.go(3)
    damage(fs)
    with pytest.raises(CorruptionError) as caught:
        BTree.open(fs, "db")
    assert isinstance(caught.value, StorageError)
    assert caught.value.file == "db"
