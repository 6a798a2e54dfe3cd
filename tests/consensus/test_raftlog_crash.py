"""The log on a disk that loses power, breaks or runs full at every point of a busy life.

What must hold afterwards: term and vote are the last ones that were promised or the ones being
written (R1); every entry that was synced is there (R2); of what wasn't, a run without gaps is
there or nothing; and nothing is there that was never written.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest

from conure.consensus.messages import Entry, HardState, SnapshotMeta
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.errors import DiskFailed, DiskFull
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

DIRECTORY = "/data/raft"
SEGMENT_BYTES = 2048
MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random", "random")


@dataclass
class Version:
    """A log as it was asked for: where it begins and what it holds."""

    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    entries: list[Entry] = field(default_factory=list)

    def appended(self, entries: list[Entry]) -> Version:
        kept = [entry for entry in self.entries if entry.index < entries[0].index]
        return Version(self.snapshot, kept + entries)

    def cut(self, meta: SnapshotMeta) -> Version:
        return Version(meta, [entry for entry in self.entries if entry.index > meta.index])

    def may_be(self, found: Version, synced: Version) -> bool:
        """Tell whether *found* can be left of this version when *synced* is surely on disk."""
        if found.snapshot != self.snapshot:
            return False
        promised = 0
        for entry in self.entries:
            if entry not in synced.entries:
                break
            promised += 1
        size = len(found.entries)
        return size >= promised and found.entries == self.entries[:size]


class Life:
    """A log in use, and what its user was promised."""

    def __init__(self, fs: CrashFileSystem) -> None:
        self.fs = fs
        self.promised_state = HardState()
        self.possible_states = {HardState()}
        self.synced = Version()
        self.versions = [Version()]
        self.log: RaftLog | None = None

    def run(self, operations: list[Callable[[Life], None]]) -> None:
        for operation in operations:
            self.run_one(operation)

    def run_one(self, operation: Callable[[Life], None]) -> None:
        if self.log is None:
            self.log = open_log(self.fs)
        operation(self)

    def vote(self, term: int, vote: str) -> None:
        assert self.log is not None
        state = HardState(term, vote)
        self.possible_states = {self.promised_state, state}
        self.log.set_hard_state(state)
        self.promised_state = state
        self.possible_states = {state}

    def append(self, first: int, last: int, term: int, size: int = 60) -> None:
        assert self.log is not None
        entries = [entry(index, term, size) for index in range(first, last + 1)]
        self.versions.append(self.versions[-1].appended(entries))
        self.log.append(entries)

    def sync(self) -> None:
        assert self.log is not None
        self.log.sync()
        self.settle()

    def cut(self, index: int) -> None:
        assert self.log is not None
        term = self.log.term(index)
        assert term is not None
        meta = SnapshotMeta(index, term, b"all the members at %d " % index * 4)
        self.versions += [version.cut(meta) for version in self.versions]
        self.log.cut(meta)
        self.versions = [version for version in self.versions if version.snapshot == meta]
        self.synced = self.synced.cut(meta)

    def reset(self, index: int, term: int) -> None:
        assert self.log is not None
        meta = SnapshotMeta(index, term, b"all the members at %d " % index * 4)
        self.versions.append(Version(meta))
        self.log.reset(meta)
        self.settle()

    def prepare(self) -> None:
        assert self.log is not None
        with contextlib.suppress(DiskFull):
            self.log.prepare()

    def fill(self) -> None:
        """Somebody else takes all the room there is."""
        self.fs.set_capacity(self.fs.used_bytes())

    def settle(self) -> None:
        self.synced = self.versions[-1]
        self.versions = [self.synced]

    def verify(self, log: RaftLog) -> None:
        assert log.hard_state in self.possible_states
        found = contents(log)
        assert any(version.may_be(found, self.synced) for version in self.versions), (
            found, self.synced, self.versions,
        )  # fmt: skip


def entry(index: int, term: int, size: int = 60) -> Entry:
    data = random.Random(index * 1000 + term).randbytes(size)
    return Entry(term, index, index % 3, data)


def open_log(fs: CrashFileSystem) -> RaftLog:
    return RaftLog.open(fs, DIRECTORY, segment_bytes=SEGMENT_BYTES, cache_bytes=2000)


def contents(log: RaftLog) -> Version:
    entries: list[Entry] = []
    while (index := log.first_index + len(entries)) <= log.last_index:
        entries += log.entries(index, log.last_index + 1, 500)
    assert [log.term(entry.index) for entry in entries] == [entry.term for entry in entries]
    return Version(log.snapshot, entries)


BUSY_LIFE: list[Callable[[Life], None]] = [
    lambda life: life.vote(1, "a"),
    lambda life: life.append(1, 3, term=1),
    lambda life: life.sync(),
    lambda life: life.append(4, 4, term=1, size=700),
    lambda life: life.append(5, 9, term=1),
    lambda life: life.sync(),
    lambda life: life.prepare(),
    lambda life: life.append(10, 30, term=1),
    lambda life: life.append(31, 33, term=1, size=0),
    lambda life: life.sync(),
    lambda life: life.vote(2, ""),
    lambda life: life.vote(2, "b"),
    lambda life: life.append(28, 40, term=2),  # conflicts in the segment that is written to
    lambda life: life.sync(),
    lambda life: life.append(41, 44, term=3),
    lambda life: life.append(12, 50, term=4),  # conflicts segments ago, nothing of it synced
    lambda life: life.sync(),
    lambda life: life.cut(30),
    lambda life: life.prepare(),
    lambda life: life.append(51, 53, term=4, size=5000),  # larger than a segment
    lambda life: life.cut(52),
    lambda life: life.sync(),
    lambda life: life.prepare(),
    lambda life: life.append(54, 80, term=4),
    lambda life: life.reset(70, term=5),
    lambda life: life.append(71, 90, term=5),
    lambda life: life.sync(),
    lambda life: life.prepare(),
    lambda life: life.cut(90),
    lambda life: life.append(91, 99, term=6),
    lambda life: life.reset(200, term=7),
    lambda life: life.vote(7, "c"),
    lambda life: life.append(201, 204, term=7),
    lambda life: life.sync(),
]


LIFE_OF_A_LAGGARD: list[Callable[[Life], None]] = [  # whose leader sends snapshot after snapshot
    lambda life: life.vote(9, ""),
    lambda life: life.reset(500, term=9),  # the first thing its log hears of
    lambda life: life.append(501, 510, term=9),
    lambda life: life.reset(900, term=9),  # with nothing of it synced
    lambda life: life.reset(1000, term=10),
    lambda life: life.append(1001, 1040, term=10),
    lambda life: life.sync(),
    lambda life: life.cut(1020),
    lambda life: life.reset(1030, term=11),  # behind entries that were never committed
    lambda life: life.append(1031, 1035, term=11),
    lambda life: life.sync(),
]


LIFE_ON_A_FULL_DISK: list[Callable[[Life], None]] = [  # what it does, it does in the reserve
    lambda life: life.vote(1, "a"),
    lambda life: life.append(1, 9, term=1),
    lambda life: life.sync(),
    lambda life: life.prepare(),
    lambda life: life.append(10, 12, term=1, size=1000),
    lambda life: life.append(13, 15, term=1, size=1000),
    lambda life: life.sync(),
    lambda life: life.fill(),
    lambda life: life.append(16, 18, term=2, size=1000),
    lambda life: life.vote(3, "b"),
    lambda life: life.append(19, 60, term=3, size=0),
    lambda life: life.sync(),
    lambda life: life.append(50, 53, term=4, size=0),  # conflicts within the reserve
    lambda life: life.append(54, 54, term=4, size=1000),
    lambda life: life.sync(),
    lambda life: life.cut(12),  # in the reserve as well
    lambda life: life.fill(),
    lambda life: life.reset(70, term=5),
    lambda life: life.fill(),
    lambda life: life.prepare(),  # of what is old
    lambda life: life.fill(),
    lambda life: life.append(71, 72, term=5),
    lambda life: life.sync(),
]


def crashed_lives(operations: list[Callable[[Life], None]] = BUSY_LIFE) -> Iterator[Life]:
    """Live once more for every sync in that life, and lose power at that sync."""
    k = 0
    while True:
        k += 1
        life = Life(CrashFileSystem(seed=k))
        life.fs.crash_at_sync = k
        try:
            life.run(operations)
        except SimulatedCrash:
            yield life
        else:
            assert k > len(operations)
            return


@pytest.mark.parametrize(
    "operations",
    [BUSY_LIFE, LIFE_OF_A_LAGGARD, LIFE_ON_A_FULL_DISK],
    ids=["busy", "laggard", "full disk"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_power_failure_at_any_sync_keeps_what_was_promised(
    seed: int, operations: list[Callable[[Life], None]]
) -> None:
    rng = random.Random(seed)
    for life in crashed_lives(operations):
        for mode in MODES:
            after = life.fs.after_crash(mode, rng)
            assert_blank(after)
            log = open_log(after)
            life.verify(log)
            log.check()


def assert_blank(fs: CrashFileSystem) -> None:
    """See that files of zeros are that, but for the header of a segment that they were to be."""
    if fs.exists(DIRECTORY):
        for name in fs.list(DIRECTORY):
            if name.endswith((".spare", ".reserve")):
                assert not fs.contents(f"{DIRECTORY}/{name}")[64:].strip(b"\0"), name


def test_on_a_full_disk_a_log_lives_on_its_reserve() -> None:
    life = Life(CrashFileSystem())
    used = set()
    for operation in LIFE_ON_A_FULL_DISK:
        life.run_one(operation)
        assert life.log is not None
        used |= {segment.path for segment in life.log._segments if segment.is_reserve}
    assert len(used) == 3


def test_a_log_works_on_after_a_power_failure() -> None:
    rng = random.Random(7)
    for life in crashed_lives():
        fs = life.fs.after_crash("random", rng)
        log = open_log(fs)
        before = contents(log)
        more = [entry(log.last_index + 1 + i, log.last_term + 1) for i in range(30)]
        log.append(more)
        log.sync()
        log.prepare()
        again = open_log(fs.after_crash("random", rng))
        assert contents(again) == Version(before.snapshot, before.entries + more)
        again.check()


def test_a_power_failure_during_recovery_does_not_bring_back_what_was_cut_off() -> None:
    rng = random.Random(11)
    for life in crashed_lives():
        first = life.fs.after_crash("random", rng)
        reference = contents(open_log(first.after_crash("kept")))
        k = 0
        while True:
            k += 1
            second = first.after_crash("kept")
            second.crash_at_sync = k
            try:
                open_log(second)
                break
            except SimulatedCrash:
                log = open_log(second.after_crash("random", rng))
                assert contents(log) == reference
                log.check()


def test_what_a_killed_process_left_unsynced_is_synced_before_it_is_believed() -> None:
    for life in crashed_lives():
        life.fs.restart_process()
        log = open_log(life.fs)
        seen = contents(log)
        life.verify(log)
        state = log.hard_state
        later = open_log(life.fs.after_crash("dropped"))
        assert contents(later) == seen
        assert later.hard_state == state


def test_any_failing_call_is_named_and_harms_nothing_that_was_promised() -> None:
    rng = random.Random(5)
    n = 0
    while True:
        n += 1
        life = Life(CrashFileSystem(seed=n))
        life.fs.fail_call(n)
        with contextlib.suppress(DiskFailed):
            life.run(BUSY_LIFE)
        if life.fs.failure_is_due:
            assert n > 150
            return
        for mode in ("dropped", "kept", "random"):
            log = open_log(life.fs.after_crash(mode, rng))
            life.verify(log)
            log.check()


@pytest.mark.parametrize("kind", ["full", "half", "for good"])
def test_a_full_disk_at_any_call_harms_nothing_and_ends_when_there_is_space(
    kind: Literal["full", "half", "for good"],
) -> None:
    rng = random.Random(3)
    n = 0
    while True:
        n += 1
        life = Life(CrashFileSystem(seed=n))
        life.log = open_log(life.fs)
        if kind == "for good":
            life.fs.set_capacity(n * 1024)
        else:
            life.fs.fail_call(n, kind)
        met = False
        for operation in BUSY_LIFE:
            try:
                operation(life)
            except DiskFull:
                met = True
                assert not [
                    name
                    for name in life.fs.list(DIRECTORY)
                    if name[0].isdigit() and name.endswith(".tmp")
                ]
                life.verify(open_log(life.fs.after_crash("random", rng)))
                life.fs.set_capacity(None)
                operation(life)
        assert contents(life.log) == life.versions[-1]
        life.log.check()
        life.verify(open_log(life.fs.after_crash("dropped")))
        if life.fs.failure_is_due or (kind == "for good" and not met):
            assert n > 20
            return


def test_what_was_reserved_can_be_appended_on_a_full_disk() -> None:
    for size in (0, 100, 1500, 1900, 3000, 40000):
        for prepared in (False, True):
            fs = CrashFileSystem()
            log = open_log(fs)
            if prepared:
                log.prepare()
            log.append([entry(1, 1, 1000)])
            log.sync()
            batch = [entry(index, 1, size) for index in range(2, 9)]
            log.reserve(sum(len(e.data) + ENTRY_OVERHEAD for e in batch))
            fs.set_capacity(fs.used_bytes())
            log.append(batch)
            log.sync()
            log.check()
            assert contents(open_log(fs.after_crash("dropped"))).entries[1:] == batch
