"""What the LSM engine has beyond the seam: merges, places, marks, workers, files that go bad."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from conure.errors import (
    CorruptionError,
    DiskFailed,
    DiskFull,
    Exhausted,
    JobLost,
    VersionTooNew,
)
from conure.fileio import Mapped, OsFileSystem
from conure.storage.engine import EngineOptions, Record
from conure.storage.lsm import compaction, lsmengine, manifest
from conure.storage.lsm.durable import folder_of
from conure.storage.lsm.jobs import FlushJob, JobResult
from conure.storage.lsm.lsmengine import LSMEngine
from conure.storage.lsm.marks import SKIPPED
from conure.storage.lsm.state import PAUSE
from conure.storage.lsm.tables import TableFacts
from conure.storage.lsm.workers import FLUSH_PATIENCE, PATIENCE, InProcess, Running, Worker
from tests.lab.crashfs import CrashFile, CrashFileSystem
from tests.storage.lsm.enginetools import (
    HOME,
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


def opened(fs: CrashFileSystem, options: EngineOptions = SMALL) -> LSMEngine:
    return KIND.open(fs, PLACE, options, create=True)


def filled(fs: CrashFileSystem, rounds: int = 6, seed: int = 1) -> tuple[LSMEngine, Model]:
    """Return an engine with tables on several levels, long values and a memtable."""
    engine, model, rng = opened(fs), Model(), random.Random(seed)
    for index in range(1, rounds + 1):
        change(engine, model, rng, 60)
        engine.checkpoint(index, 1)
        if index == rounds // 2:
            settle(engine)
    return engine, model


# -- merging ---------------------------------------------------------------------------------------


def test_level_0_drains_and_pressure_with_it() -> None:
    fs = disk()
    engine, model, rng = opened(fs), Model(), random.Random(1)
    seen = []
    for index in range(1, 15):
        change(engine, model, rng, 30)
        engine.checkpoint(index, 1)
        seen.append(engine.pressure)
    assert seen[:8] == [0.0] * 8
    assert seen[8:12] == [0.25, 0.5, 0.75, 1.0]
    assert seen[12:] == [1.0, 1.0]
    settle(engine)
    assert engine.pressure == 0.0
    assert engine.stats().tables[0][0] <= 4
    assert dict(engine.items()) == model
    assert not engine.compact(0.01)


def test_what_was_deleted_goes_from_the_disk() -> None:
    fs = disk()
    engine, model = filled(fs)
    for key in model:
        engine.delete(key)
    engine.checkpoint(50, 1)
    settle(engine)
    assert files(fs) == []
    assert engine.stats().file_bytes == 0
    assert engine.check().records == 0


def test_one_key_overwritten_again_and_again_takes_no_room() -> None:
    fs = disk()
    engine = opened(fs)
    for index in range(1, 21):
        for _ in range(500):
            engine.put(b"counter", b"%d" % index, index)
        engine.checkpoint(index, 1)
        settle(engine)
    record = engine.get(b"counter")
    assert record is not None
    assert record.version == 10_000
    assert fs.used_bytes() < 10_000


def test_space_is_given_back_when_little_is_written_and_not_before() -> None:
    fs = disk()
    engine, model = opened(fs), Model()
    change(engine, model, random.Random(1), 60)
    engine.checkpoint(1, 1)
    for key in sorted(model):
        engine.delete(key)
    engine.checkpoint(2, 1)
    compactions = engine.stats().written.compactions
    for number in range(300):
        engine.put(b"%d" % number, bytes(10_000), 1)
        assert engine.compact(0.01)
    assert engine.stats().written.compactions == compactions
    for number in range(300):
        engine.put(b"%d" % number, b"", 1)
        engine.compact(0.01)
    assert engine.stats().written.compactions > compactions


def test_readers_and_iterators_stay_where_they_are_while_all_moves() -> None:
    fs = disk()
    engine, model, rng = opened(fs), Model(), random.Random(3)
    pinned = []
    for index in range(1, 30):
        change(engine, model, rng, 30)
        rows = sorted(model.items())
        reverse = rng.random() < 0.5
        found = engine.items(reverse=reverse)
        begun = list(islice(found, 3))
        pinned.append((engine.snapshot(), dict(model)))
        engine.checkpoint(index, 1)
        change(engine, model, rng, 30)
        settle(engine)
        rest = begun + list(found)
        assert rest == (rows[::-1] if reverse else rows)
        if len(pinned) > 5:
            reader, then = pinned.pop(0)
            assert dict(reader.items()) == then
            assert [reader.get(key) for key in then] == list(then.values())
            assert len(reader) == len(then)
            reader.close()
    assert engine.stats().readers == len(pinned)
    del reader
    pinned.clear()
    assert engine.stats().readers == 0


def _read_all(
    engine: LSMEngine, lock: threading.Lock, stop: threading.Event, failures: list[object]
) -> None:
    """Pin states of 200 keys, whose values begin with the keys, and read them without the lock."""
    rng = random.Random()
    while not stop.is_set():
        with lock:
            reader = engine.snapshot()
        keys = list(reader.keys())
        if len(keys) != 200 or keys != sorted(keys):
            failures.append(keys)
        key = b"%03d" % rng.randrange(200)
        record = reader.get(key)
        if record is None or record.value[:3] != key:
            failures.append(key)
        reader.close()


def _write_on(engine: LSMEngine, lock: threading.Lock, stop: threading.Event) -> None:
    rng = random.Random(1)
    revision = 1
    while not stop.is_set():
        with lock:
            for _ in range(10):
                revision += 1
                key = b"%03d" % rng.randrange(200)
                engine.put(key, key * rng.choice([2, 20, 90]), revision)


def test_threads_read_while_flushes_and_merges_go_on(tmp_path: Path) -> None:
    place = str(tmp_path / "conure.db")
    engine = KIND.open(OsFileSystem(), place, SMALL, create=True)
    lock, stop = threading.Lock(), threading.Event()
    failures: list[object] = []
    for number in range(200):
        engine.put(b"%03d" % number, b"%03d" % number * 20, 1)
    threads = [
        threading.Thread(target=_read_all, args=(engine, lock, stop, failures)),
        threading.Thread(target=_read_all, args=(engine, lock, stop, failures)),
        threading.Thread(target=_write_on, args=(engine, lock, stop)),
    ]
    for thread in threads:
        thread.start()
    for index in range(1, 10):
        with lock:
            running = engine.begin_checkpoint(index, 1)
        while not running.step(0.001):
            engine.compact(0.001)
        running.finish()
        for _ in range(20):
            engine.compact(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert engine.check().records == 200
    engine.close()


# -- jobs that come to nothing ---------------------------------------------------------------------


class Losing(InProcess):
    """A runner that loses each job when it is over, but for its files."""

    jobs = 0

    def start(self, job, chunks=()):  # type: ignore[no-untyped-def]
        self.jobs += 1
        return _Lost(super().start(job, chunks))


class _Lost:
    def __init__(self, running: Running) -> None:
        self._running = running
        self.job = running.job
        self.feed = running.feed
        self.is_remote = running.is_remote

    def step(self, seconds: float) -> bool:
        return self._running.step(seconds)

    def result(self) -> JobResult:
        raise JobLost("the process was killed")

    def abort(self) -> None:
        self._running.abort()


def test_a_lost_job_is_done_again_and_at_last_in_this_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fs = disk()
    engine, model, rng = opened(fs), Model(), random.Random(4)
    losing = Losing(fs, folder_of(PLACE))
    engine._flusher = losing
    engine._compaction._runner = engine._runner_of(losing)
    for index in range(1, 7):
        change(engine, model, rng, 40)
        engine.checkpoint(index, 1)
        assert losing.jobs == 2 * index
    settle(engine)
    assert losing.jobs > 12
    assert len(caplog.records) == losing.jobs  # an operator hears of each
    assert {record.getMessage() for record in caplog.records} == {
        "the process was killed; it is done again"
    }
    assert engine.stats().written.compactions > 0
    assert dict(engine.items()) == model
    assert files(fs) == named(fs, PLACE)
    engine.check()


def test_a_result_that_is_not_what_it_says_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = disk()
    engine, model = filled(fs, 3)
    lies: list[JobResult] = []

    def lie(self: Running) -> JobResult:
        found = result(self)
        if len(lies) < 2:
            lies.append(found)
            return found._replace(tables=found.tables[:-1])
        return found

    running = type(InProcess(fs, folder_of(PLACE)).start(FlushJob("x", 0, engine._jobs)))
    result = running.result
    monkeypatch.setattr(running, "result", lie)
    change(engine, model, random.Random(9), 40)
    engine.checkpoint(9, 1)
    assert len(lies) == 2
    assert dict(engine.items()) == model
    engine.check()
    assert files(fs) == named(fs, PLACE)


def test_closing_gives_a_merge_up_and_removes_what_it_made() -> None:
    fs = disk()
    engine, model = filled(fs, 10)
    while engine.compact(0.0) and engine._compaction._running is None:
        pass
    engine.compact(0.0)
    reader = engine.snapshot()
    engine.close()
    assert files(fs) == named(fs, PLACE)
    assert not engine.compact(1.0)
    assert dict(reader.items()) == model
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as again:
        assert dict(again.items()) == model


def test_a_merge_that_runs_when_a_load_begins_brings_nothing_back() -> None:
    fs = disk()
    engine, model = filled(fs, 10)
    while engine.compact(0.0) and engine._compaction._running is None:
        pass
    for key in model:
        engine.delete(key)
    loader = engine.loader()
    loader.add([(b"new", Record(b"v", 1, 1, 1))])
    loader.finish()
    assert engine.mergeable() is None  # it would make the load durable
    settle(engine)
    assert [key for key, _ in engine.items()] == [b"new"]
    engine.checkpoint(20, 1)
    assert engine.mergeable() is not None
    settle(engine)
    assert engine.check().records == 1
    assert files(fs) == named(fs, PLACE)


def test_a_load_that_is_given_up_leaves_no_file() -> None:
    fs = disk()
    engine = opened(fs)
    loader = engine.loader()
    loader.add((b"%05d" % number, Record(bytes(300), 1, 1, 1)) for number in range(3000))
    assert len(files(fs)) > 1
    loader.abort()
    assert files(fs) == []
    engine.put(b"k", b"v", 1)
    engine.checkpoint(1, 1)
    assert engine.check().records == 1


def test_a_range_that_was_asked_for_before_a_merge_ended_is_read_where_it_was() -> None:
    fs = disk()
    engine, model = filled(fs, 10)
    scan, reverse = engine.scan(), engine.scan_headings(reverse=True)
    settle(engine)
    assert dict(filter(None, scan)) == model
    assert [key for key, _ in filter(None, reverse)] == sorted(model, reverse=True)


def test_a_checkpoint_may_end_after_the_engine_was_closed() -> None:
    fs = disk()
    engine, model = filled(fs, 3)
    engine.put(b"last", b"x", 999)
    running = engine.begin_checkpoint(9, 1)
    engine.close()
    while not running.step(0.0):
        pass
    running.finish()
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as again:
        assert dict(again.items()) == {**model, b"last": Record(b"x", 999, 999, 1)}


def test_flushes_and_merges_run_in_processes_where_that_is_allowed(tmp_path: Path) -> None:
    place = str(tmp_path / "conure.db")
    engine = KIND.open(OsFileSystem(), place, replace(SMALL, workers=True), create=True)
    model: Model = {}
    rng = random.Random(5)
    for index in range(1, 7):
        change(engine, model, rng, 40)
        engine.checkpoint(index, 1)
    while engine.compact(0.01):
        pass
    assert engine.stats().written.compactions > 0
    assert dict(engine.items()) == model
    engine.check()
    engine.close()
    assert named(OsFileSystem(), place) == files(OsFileSystem(), place)


def test_a_flush_waits_less_long_for_a_stopped_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written meanwhile stays in memory."""
    assert FLUSH_PATIENCE < PATIENCE / 2
    monkeypatch.setattr(lsmengine, "FLUSH_PATIENCE", 0.5)
    place = str(tmp_path / "conure.db")
    engine = KIND.open(OsFileSystem(), place, replace(SMALL, workers=True), create=True)
    worker = engine._flusher
    assert isinstance(worker, Worker)
    engine.put(b"k", b"v", 1)
    checkpoint = engine.begin_checkpoint(1, 1)
    assert not checkpoint.step(0.0)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    while not checkpoint.step(0.02):
        assert time.monotonic() - stopped < PATIENCE
    checkpoint.finish()
    assert engine.applied_index == 1
    engine.close()


# -- descriptors and memory that run out -----------------------------------------------------------


class Starved(CrashFileSystem):
    """A disk whose files can't be opened for a while: for *left* attempts, or all of them (-1)."""

    left = 0

    def _take(self) -> None:
        if self.left:
            self.left -= 1
            raise Exhausted("too many open files; raise the limit (ulimit -n)")

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> CrashFile:
        self._take()
        return super().open(path, create=create, read_only=read_only, exclusive=exclusive)

    def map(self, path: str, size: int, *, mapped: bool = True) -> Mapped:
        self._take()
        return super().map(path, size, mapped=mapped)

    def list(self, path: str) -> list[str]:
        self._take()
        return super().list(path)

    def sync_directory(self, path: str) -> None:
        self._take()
        super().sync_directory(path)


@pytest.mark.parametrize("left", range(1, 12))
def test_a_flush_that_can_open_nothing_changes_nothing_and_is_done_later(left: int) -> None:
    """Whichever file it is that can't be opened; the lists of files that are left can't either."""
    fs = Starved(left)
    fs.make_directory(HOME)
    fs.sync_directory("/")
    engine, model = filled(fs, 2)
    rng = random.Random(left)
    change(engine, model, rng, 60)
    opened_ = 0

    def take() -> None:
        nonlocal opened_
        opened_ += 1
        if left <= opened_ < left + 4:
            raise Exhausted("no")

    fs._take = take  # type: ignore[method-assign]
    with contextlib.suppress(Exhausted):
        engine.checkpoint(3, 1)
    assert dict(engine.items()) == model
    change(engine, model, rng, 5)
    opened_ = 100
    engine.checkpoint(4, 1)
    later = KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False)
    assert later.applied_index == 4
    assert dict(later.items()) == dict(engine.items()) == model
    engine.close()
    KIND.open(fs, PLACE, SMALL, create=False).close()
    assert files(fs) == named(fs, PLACE)


def test_merges_wait_for_descriptors_and_go_on_by_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fs = Starved()
    fs.make_directory(HOME)
    engine, model, rng = opened(fs), Model(), random.Random(8)
    for index in range(1, 9):
        change(engine, model, rng, 40)
        engine.checkpoint(index, 1)
    fs.left = -1
    for _ in range(200):
        engine.compact(0.01)
    assert engine.stats().tables[0][0] == 8
    (told,) = [record.getMessage() for record in caplog.records]
    assert "merges have to wait" in told
    assert "ulimit -n" in told
    fs.left = 0
    for _ in range(100):
        engine.compact(0.01)
    assert engine.stats().tables[0][0] < 4
    assert [record.getMessage() for record in caplog.records][1:] == ["merges go on"]
    assert dict(engine.items()) == model
    assert files(fs) == named(fs, PLACE)


def test_a_manifest_with_a_new_name_waits_for_a_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody can say which one counts before the directory is synced."""
    monkeypatch.setattr(manifest, "sleep", lambda seconds: None)
    fs = Starved()
    fs.make_directory(HOME)
    engine, model = filled(fs, 1)
    rename, starve = fs.rename, 3

    def renamed(old: str, new: str) -> None:
        rename(old, new)
        fs.left = starve

    monkeypatch.setattr(fs, "rename", renamed)
    engine.checkpoint(2, 1)
    assert fs.left == 0
    later = KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False)
    assert (later.applied_index, dict(later.items())) == (2, model)
    starve = -1
    with pytest.raises(DiskFailed) as failed:
        engine.checkpoint(3, 1)
    assert not isinstance(failed.value, Exhausted)


def test_a_process_without_descriptors_goes_on_when_it_has_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path / "conure.db")
    engine = KIND.open(OsFileSystem(), place, replace(SMALL, workers=True), create=True)
    model: Model = {}
    rng = random.Random(5)
    change(engine, model, rng, 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(Exhausted):
            engine.checkpoint(1, 1)
        assert dict(engine.items()) == model
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert any("no process can be started" in record.getMessage() for record in caplog.records)
    for index in range(1, 7):
        change(engine, model, rng, 40)
        engine.checkpoint(index, 1)
    assert isinstance(engine._flusher, Worker)
    assert engine._flusher.pid is not None
    while engine.compact(0.01):
        pass
    assert dict(engine.items()) == model
    engine.close()
    assert named(OsFileSystem(), place) == files(OsFileSystem(), place)


# -- places ----------------------------------------------------------------------------------------


def test_leftovers_go_and_never_those_of_another_place() -> None:
    fs = disk()
    engine, _ = filled(fs, 2)
    engine.close()
    staged = "/home/incoming-1.db"
    other = KIND.open(fs, staged, SMALL, create=True)
    other.put(b"k", b"v" * 300, 1)
    other.checkpoint(1, 1)
    orphans = [
        "conure.db-0123456789abcdef-7.sst",
        "conure.db-0123456789abcdef-8.blob",
        "incoming-1.db-0123456789abcdef-7.sst",
        "incoming-9.db-0123456789abcdef-7.sst",
    ]
    strangers = ["notes.txt", "conure.db-7.sst"]
    for name in orphans + strangers:
        fs.open(f"/home/lsm/{name}", create=True).close()
    KIND.open(fs, PLACE, SMALL, create=False).close()
    assert files(fs) == sorted([*named(fs, PLACE, staged), *orphans[2:], *strangers])
    KIND.remove(fs, staged)
    assert files(fs) == sorted([*named(fs, PLACE), orphans[3], *strangers])
    KIND.open(fs, PLACE, SMALL, create=False).close()
    assert files(fs) == sorted([*named(fs, PLACE), *strangers])
    assert fs.contents("/home/lsm/notes.txt") == b""


def test_a_state_keeps_the_files_that_it_had_at_its_former_place() -> None:
    fs = disk()
    filled(fs, 3)[0].close()
    staged, claimed = "/home/incoming-1.db", "/home/incoming-0.db"
    other = KIND.open(fs, staged, SMALL, create=True)
    other.put(b"k", b"v" * 300, 1)
    other.checkpoint(50, 1)
    other.close()
    KIND.rename(fs, staged, claimed)
    KIND.put_in_place(fs, claimed, PLACE)
    assert files(fs) == named(fs, PLACE)
    assert all(name.startswith("incoming-1.db-") for name in files(fs))
    again = KIND.open(fs, staged, SMALL, create=True)
    again.put(b"other", b"w" * 300, 1)
    again.checkpoint(1, 1)
    KIND.remove(fs, staged)
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as engine:
        assert dict(engine.items()) == {b"k": Record(b"v" * 300, 1, 1, 1)}
        engine.check()


def keeps_garbage(engine: LSMEngine) -> float:
    figures = {figure.metric: figure.value for figure in engine.stats().figures()}
    return figures["conure_lsm_keeps_garbage"]


def test_nothing_is_removed_as_long_as_a_manifest_beside_it_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fs = disk()
    filled(fs, 2)[0].close()
    fs.open("/home/lsm/conure.db-0123456789abcdef-7.sst", create=True).close()
    other = KIND.open(fs, "/home/incoming-1.db", SMALL, create=True)
    other.close()
    fs.corrupt("/home/incoming-1.db", 20)
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as engine:
        assert keeps_garbage(engine) == 1
    assert "conure.db-0123456789abcdef-7.sst" in files(fs)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "as /home/incoming-1.db may name them" in told
    assert "move it away" in told
    KIND.remove(fs, "/home/incoming-1.db")
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as engine:
        assert keeps_garbage(engine) == 0
    assert files(fs) == named(fs, PLACE)


@pytest.mark.parametrize("content", [b"", b"mine", b"ConureLS" + bytes(50), None])
def test_a_strangers_file_beside_a_place_decides_nothing(
    content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """None: a copy of the manifest, which names what is there now."""
    fs = disk()
    engine, _ = filled(fs, 4)
    if content is None:
        content = fs.contents(PLACE)
    for name in ("x.db", "conure.db.db", "incoming-1.db.old", "my-incoming-1.db"):
        fs.open(f"{HOME}/{name}", create=True).pwrite(content, 0)
    stranger = fs.open("/home/lsm/x.db", create=True)
    stranger.pwrite(content, 0)
    settle(engine)
    engine.checkpoint(9, 1)
    engine.close()
    fs.open("/home/lsm/conure.db-0123456789abcdef-7.sst", create=True).close()
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as engine:
        assert keeps_garbage(engine) == 0
    assert files(fs) == sorted([*named(fs, PLACE), "x.db"])
    assert fs.contents("/home/x.db") == fs.contents("/home/lsm/x.db") == content
    assert not caplog.records


def test_a_lost_manifest_is_not_made_again_and_costs_no_table() -> None:
    fs = disk()
    filled(fs, 2)[0].close()
    manifest_ = fs.contents(PLACE)
    there = files(fs)
    assert KIND.remains(fs, PLACE) == ""
    fs.remove(PLACE)
    assert KIND.remains(fs, PLACE) == f"/home/lsm/{there[0]}"
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"missing, and with it .*restore this node"):
            KIND.open(fs, PLACE, SMALL, create=True)
        assert files(fs) == there
        assert fs.list(HOME) == ["lsm"]
    fs.open(PLACE, create=True).pwrite(manifest_, 0)
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=True)) as engine:
        engine.check()
        assert engine.applied_index == 2


def test_files_of_a_staged_state_without_its_manifest_are_garbage() -> None:
    """It goes before they do, and a crash may come between."""
    fs = disk()
    filled(fs, 2)[0].close()
    staged = "/home/incoming-1.db"
    other = KIND.open(fs, staged, SMALL, create=True)
    other.put(b"k", b"v" * 300, 1)
    other.checkpoint(1, 1)
    other.close()
    fs.remove(staged)
    assert KIND.remains(fs, staged) == ""
    KIND.open(fs, staged, SMALL, create=True).close()
    assert files(fs) == named(fs, PLACE)


def test_what_is_no_state_beside_a_place_is_passed_over(tmp_path: Path) -> None:
    """A directory, a link that leads nowhere."""
    fs = OsFileSystem()
    place = str(tmp_path / "conure.db")
    (tmp_path / "backups.db").mkdir()
    (tmp_path / "moved.db").symlink_to(tmp_path / "nowhere")
    KIND.open(fs, place, SMALL, create=True).close()
    orphan = tmp_path / "lsm" / "conure.db-0123456789abcdef-7.sst"
    orphan.touch()
    KIND.open(fs, place, SMALL, create=False).close()
    assert not orphan.exists()


class _Rival(CrashFileSystem):
    """A disk on which somebody else removes the same files, each a moment earlier."""

    def remove(self, path: str) -> None:
        super().remove(path)
        if path.endswith(".sst"):
            super().remove(path)


def test_a_file_may_be_removed_by_two_at_once() -> None:
    """A merge gives up what came with a received state, and the next one is being received at a
    place of the same name."""
    fs = _Rival()
    fs.make_directory(HOME)
    engine, model = filled(fs, 4)
    settle(engine)
    assert engine.stats().written.compactions > 0
    assert dict(engine.items()) == model
    assert files(fs) == named(fs, PLACE)


def test_a_removed_state_does_not_come_back_without_its_files() -> None:
    for seed in range(30):
        fs = disk(seed)
        filled(fs, 2)[0].close()
        KIND.remove(fs, PLACE)
        later = fs.after_crash("random", random.Random(seed))
        assert KIND.applied(later, PLACE) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"ConureKV" + bytes(8184), b"ConureLS" + bytes(50)])
def test_anything_can_be_removed_from_a_place(content: bytes) -> None:
    fs = disk()
    fs.open(PLACE, create=True).pwrite(content, 0)
    KIND.remove(fs, PLACE)
    assert fs.list(HOME) == []


def test_a_state_whose_file_is_missing_is_corrupt() -> None:
    fs = disk()
    filled(fs, 2)[0].close()
    for name in files(fs):
        later = fs.after_crash("kept")
        later.remove(f"/home/lsm/{name}")
        with pytest.raises(CorruptionError, match="missing"):
            KIND.open(later, PLACE, SMALL, create=False)


def test_applied_reads_the_manifest_only() -> None:
    fs = disk()
    filled(fs, 3)[0].close()
    for name in files(fs):
        fs.remove(f"/home/lsm/{name}")
    assert KIND.applied(fs, PLACE) == (3, 1)


def test_a_start_reads_neither_records_nor_indexes() -> None:
    """However many there are: of a table its two ends, of a file of values its head."""
    fs = disk()
    engine, model = filled(fs, 6)
    engine.close()
    for name in files(fs):
        path = f"/home/lsm/{name}"
        end = len(fs.contents(path)) - (68 if name.endswith(".sst") else 0)
        facts = 0 if name.endswith(".blob") else len(table_facts(fs, name).encode())
        for at in range(64 if name.endswith(".blob") else 8, end - facts):
            fs.corrupt(path, at)
    with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as again:
        assert (again.applied_index, len(again)) == (6, len(model))
        assert again.stats().index_bytes == 0


def table_facts(fs: CrashFileSystem, name: str) -> TableFacts:
    levels = manifest.read(fs, PLACE).levels
    return next(table for level in levels for table in level if table.name == name)


def test_a_state_that_was_just_built_is_not_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it replaces goes by and by: the node's lock is held."""
    fs = disk()
    engine, _ = filled(fs, 4)
    engine.close()
    staged = "/home/incoming-1.db"
    other = KIND.open(fs, staged, SMALL, create=True)
    loader = other.loader()
    loader.add((b"%04d" % number, Record(b"v" * 300, 1, 1, 1)) for number in range(50))
    loader.finish()
    other.checkpoint(9, 3)
    other.close()
    former = named(fs, PLACE)
    KIND.put_in_place(fs, staged, PLACE, removes=False)
    assert files(fs) == sorted([*former, *named(fs, PLACE)])
    with monkeypatch.context() as patch:
        patch.setattr(fs, "map", None)
        patch.setattr(fs, "remove", None)
        again = KIND.open(fs, PLACE, SMALL, create=False, like=other)
    assert again.applied_index == 9
    assert len(dict(again.items())) == 50
    again.check()
    steps = 0
    while again.compact(0.0):
        steps += 1
    assert steps >= len(former)
    assert files(fs) == named(fs, PLACE)
    again.put(b"later", b"x" * 300, 10)
    again.checkpoint(10, 3)
    settle(again)
    assert files(fs) == named(fs, PLACE)
    again.close()


# -- files that go bad -----------------------------------------------------------------------------


def test_a_flipped_byte_in_any_file_is_found_and_never_read_as_data() -> None:
    fs = disk()
    engine, model = filled(fs, 4)
    engine.close()
    expected = sorted(model.items())
    where: list[str] = []
    rng = random.Random(1)
    for name in files(fs):
        path = f"/home/lsm/{name}"
        size = len(fs.contents(path))
        for at in rng.sample(range(size), 40):
            fs.corrupt(path, at)
            try:
                with contextlib.closing(KIND.open(fs, PLACE, SMALL, create=False)) as bad:
                    for key, record in expected:
                        with contextlib.suppress(CorruptionError):
                            assert bad.get(key) == record
                    with contextlib.suppress(CorruptionError):
                        assert list(bad.scan()) == expected
                    with contextlib.suppress(CorruptionError):
                        assert list(bad.scan(reverse=True)) == expected[::-1]
                    bad.check()
            except VersionTooNew:
                where.append(path)
            except CorruptionError as error:
                where.append(error.file)
            else:
                raise AssertionError(f"byte {at} of {path} is not looked at")
            fs.corrupt(path, at)
        assert where == [path] * 40
        where.clear()


def test_a_corrupt_input_ends_a_merge_and_not_the_data() -> None:
    fs = disk()
    engine, _ = filled(fs, 6)
    for name in files(fs):
        if name.endswith(".sst"):
            fs.corrupt(f"/home/lsm/{name}", 40)
    with pytest.raises(CorruptionError):
        settle(engine)
    engine.close()
    assert files(fs) == named(fs, PLACE)


def test_a_manifest_that_miscounts_is_found_by_the_check() -> None:
    fs = disk()
    engine, model = filled(fs, 3)
    engine.close()
    there = manifest.read(fs, PLACE)
    manifest.write(fs, PLACE, there._replace(records=there.records + 1))
    with pytest.raises(CorruptionError, match="records"):
        KIND.open(fs, PLACE, SMALL, create=False).check()
    key = sorted(model)[5]
    manifest.write(fs, PLACE, there._replace(marks=((key, key + b"\0"),)))
    with pytest.raises(CorruptionError, match="scan would miss"):
        KIND.open(fs, PLACE, SMALL, create=False).check()


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
def test_values_of_any_length_are_what_they_were(mapped: bool) -> None:
    fs = disk()
    options = EngineOptions(mapped=mapped)
    engine = opened(fs, options)
    sizes = [0, 1, 100, 4000, 4090, 4096, 65_535, 65_536, 65_537, 200_000, 3_000_000]
    values = {b"%d" % size: random.Random(size).randbytes(size) for size in sizes}
    for key, value in values.items():
        engine.put(key, value, 1)
    for _ in range(2):
        for key, value in values.items():
            found = engine.get(key)
            assert found is not None
            assert found.value == value
            assert engine.heading(key) == (Record(b"", 1, 1, 1), len(value))
            for most in (0, 1, 70_000):
                assert engine.beginning(key, most) == value[:most]
        headings = [(key, (Record(b"", 1, 1, 1), len(values[key]))) for key in sorted(values)]
        assert list(engine.scan_headings()) == headings
        engine.checkpoint(1, 1)
    assert len([name for name in files(fs) if name.endswith(".blob")]) == 1


def test_a_heading_reads_nothing_of_a_long_value_and_a_beginning_no_more_than_it_takes() -> None:
    fs = disk()
    engine = opened(fs)
    engine.put(b"k", bytes(500_000), 1)
    engine.checkpoint(1, 1)
    (blob,) = [name for name in files(fs) if name.endswith(".blob")]
    fs.corrupt(f"/home/lsm/{blob}", 300_000)
    engine.close()
    engine = KIND.open(fs, PLACE, SMALL, create=False)
    assert engine.heading(b"k") == (Record(b"", 1, 1, 1), 500_000)
    assert [size for _, (_, size) in filter(None, engine.scan_headings())] == [500_000]
    assert engine.beginning(b"k", 100_000) == bytes(100_000)
    with pytest.raises(CorruptionError):
        engine.get(b"k")
    with pytest.raises(CorruptionError):
        engine.beginning(b"k", 400_000)


def test_a_touched_long_value_outlives_the_file_that_it_was_in() -> None:
    fs = disk()
    engine = opened(fs)
    for number in range(8):
        engine.put(b"%d" % number, b"%d" % number * 1000, 1)
    engine.checkpoint(1, 1)
    assert engine.touch(b"3", 77) == Record(b"3" * 1000, 1, 1, 1, 77)
    for number in (0, 1, 2, 4, 5, 6, 7):
        engine.delete(b"%d" % number)
    engine.checkpoint(2, 1)
    settle(engine)
    assert dict(engine.items()) == {b"3": Record(b"3" * 1000, 1, 1, 1, 77)}
    engine.check()
    assert fs.used_bytes() < 8000


# -- marks -----------------------------------------------------------------------------------------


def looked_at(
    engine: LSMEngine, start: bytes, end: bytes | None = None, *, reverse: bool = False
) -> tuple[bytes | None, int]:
    """Return the first key of a range, and how many keys were gone through for it."""
    state = engine._state
    count = 0
    sources = type(state).sources

    def counted(self: object, *args: object, **kwargs: object) -> object:
        def counting(source):  # type: ignore[no-untyped-def]
            nonlocal count
            for group in source:
                count += len(group[0])
                yield group

        return [counting(source) for source in sources(self, *args, **kwargs)]  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr(type(state), "sources", counted)
    try:
        rows = filter(None, engine.scan(start, end, reverse=reverse))
        return next((key for key, _ in rows), None), count
    finally:
        patch.undo()


def queue(fs: CrashFileSystem, count: int = 5 * SKIPPED) -> LSMEngine:
    """Return an engine with a queue of which only the end is left."""
    engine = opened(fs, EngineOptions(table_bytes=20_000))
    for number in range(count):
        engine.put(b"q%06d" % number, b"", 1)
    engine.put(b"a", b"", 1)
    engine.put(b"z", b"", 1)
    engine.checkpoint(1, 1)
    for number in range(count - 10):
        engine.delete(b"q%06d" % number)
    return engine


def test_deleted_keys_at_the_head_are_gone_through_once() -> None:
    fs = disk()
    engine = queue(fs)
    first = b"q%06d" % (5 * SKIPPED - 10)
    found, count = looked_at(engine, b"q", b"r")
    assert found == first
    assert count > 5 * SKIPPED
    found, count = looked_at(engine, b"q", b"r")
    assert found == first
    assert count < 200
    found, count = looked_at(engine, b"q000777", b"r")
    assert (found, count < 200) == (first, True)
    engine.checkpoint(2, 1)
    engine.close()
    again = KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False)
    assert again.check().records == 12
    found, count = looked_at(again, b"q", b"r")
    assert (found, count < 200) == (first, True)


@pytest.mark.parametrize("end", [None, b"r"])
def test_deleted_keys_at_the_tail_are_gone_through_once(end: bytes | None) -> None:
    """By who goes down, of what is taken from like a stack."""
    fs = disk()
    engine = opened(fs, EngineOptions(table_bytes=20_000))
    for number in range(5 * SKIPPED):
        engine.put(b"q%06d" % number, b"", 1)
    engine.checkpoint(1, 1)
    for number in range(10, 5 * SKIPPED):
        engine.delete(b"q%06d" % number)
    found, count = looked_at(engine, b"q", end, reverse=True)
    assert found == b"q000009"
    assert count > 4 * SKIPPED
    assert looked_at(engine, b"q", end, reverse=True)[0] == b"q000009"
    engine.delete(b"q000009")  # the mark gets longer
    engine.put(b"q002000", b"", 2)  # and is cut in two
    assert looked_at(engine, b"q", end, reverse=True)[0] == b"q002000"
    engine.delete(b"q002000")
    assert [mark[0] for mark in engine._marks.all] == [b"q000009"]
    engine.checkpoint(2, 1)
    engine.close()
    again = KIND.open(fs.after_crash("dropped"), PLACE, SMALL, create=False)
    found, count = looked_at(again, b"q", end, reverse=True)
    assert (found, count < 2 * SKIPPED) == (b"q000008", True)
    assert looked_at(again, b"q000100", end, reverse=True)[0] is None
    assert list(islice(filter(None, again.scan_keys(b"q000008", end)), 2)) == [b"q000008"]
    assert again.check().records == 9


def test_what_is_left_between_deleted_keys_is_seen_going_down() -> None:
    engine = queue(disk())
    left = [b"q000003", b"q%06d" % (2 * SKIPPED), b"q%06d" % (4 * SKIPPED - 100)]
    for key in left:
        engine.put(key, b"", 2)
    end = b"q%06d" % (5 * SKIPPED - 10)
    for _ in range(2):
        assert list(filter(None, engine.scan_keys(b"q", end, reverse=True))) == left[::-1]
        engine.check()
    assert len(engine._marks.all) == 3


def test_what_a_reader_has_gone_down_through_the_next_scan_need_not() -> None:
    engine = queue(disk())
    reader = engine.snapshot()
    last = b"q%06d" % (5 * SKIPPED - 11)
    assert list(reader.keys(b"q", last, reverse=True)) == []
    assert looked_at(engine, b"q", last, reverse=True) == (None, 0)
    assert next(engine.keys(b"b", last, reverse=True), None) is None
    engine.check()


def test_the_first_key_after_deleted_ones_is_never_jumped_over() -> None:
    """Also where one source has it beside them."""
    engine = queue(disk())
    first = b"q%06d" % (5 * SKIPPED - 10)
    engine.put(first, b"again", 2)
    assert [looked_at(engine, b"q", b"r")[0] for _ in range(3)] == [first] * 3
    engine.check()


def test_a_queue_that_is_taken_from_stays_cheap() -> None:
    engine = queue(disk())
    looked_at(engine, b"q", b"r")
    for number in range(5 * SKIPPED, 7 * SKIPPED):
        engine.put(b"q%06d" % number, b"", 2)
        key = next(filter(None, engine.scan_keys(b"q", b"r")))
        engine.delete(key)
    found, count = looked_at(engine, b"q", b"r")
    assert found == b"q%06d" % (7 * SKIPPED - 10)
    assert count < 2 * SKIPPED
    engine.check()


def test_a_new_key_among_deleted_ones_is_seen() -> None:
    engine = queue(disk())
    looked_at(engine, b"q", b"r")
    engine.put(b"q000500", b"", 2)
    assert list(islice(filter(None, engine.scan_keys(b"q")), 2)) == [
        b"q000500",
        b"q%06d" % (5 * SKIPPED - 10),
    ]
    engine.delete(b"q000500")
    key, count = looked_at(engine, b"q", b"r")
    assert key == b"q%06d" % (5 * SKIPPED - 10)
    assert count < 200
    engine.check()


def test_what_an_iterator_has_gone_through_the_next_scan_need_not() -> None:
    engine = queue(disk())
    assert next(engine.keys(b"q")) == b"q%06d" % (5 * SKIPPED - 10)
    assert looked_at(engine, b"q", b"r")[1] < 200
    late = queue(disk())
    keys = late.keys(b"q")
    late.put(b"q000300", b"", 2)
    assert next(keys) == b"q%06d" % (5 * SKIPPED - 10)
    assert next(late.scan_keys(b"q")) == b"q000300"
    late.check()


def test_a_range_of_deleted_keys_alone_is_empty_at_once() -> None:
    engine = queue(disk())
    end = b"q%06d" % (3 * SKIPPED)
    assert looked_at(engine, b"q", end)[0] is None
    assert looked_at(engine, b"q", end) == (None, 0)
    assert list(engine.scan(b"q", end, reverse=True)) == []


def dead_head(fs: CrashFileSystem, dead: int = 30 * PAUSE) -> LSMEngine:
    """Return an engine with three live keys, and many deleted ones before, between and after."""
    engine = opened(fs, EngineOptions(table_bytes=20_000))
    for number in range(dead):
        engine.put(b"q%06d" % number, b"", 1)
    engine.checkpoint(1, 1)
    left = {dead // 2, dead // 2 + 1, dead - 2 * PAUSE}
    for number in range(dead):
        if number not in left:
            engine.delete(b"q%06d" % number)
    assert not engine._marks.all
    return engine


LEFT = [b"q030000", b"q030001", b"q056000"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reader_pauses_on_its_way_through_deleted_keys(reverse: bool) -> None:
    engine = dead_head(disk())
    expected = LEFT[::-1] if reverse else LEFT
    reader, other = engine.snapshot(), engine.snapshot()
    keys = list(reader.keys_in_turns(b"q", b"r", reverse=reverse))
    assert [key for key in keys if key is not None] == expected
    rows = list(other.items_in_turns(b"q", b"r", reverse=reverse))
    assert [row and row[0] for row in rows] == keys
    assert 1 <= keys.index(expected[0]) <= 15
    assert keys.count(None) > 5
    assert list(engine.snapshot().keys(b"q", b"r")) == LEFT


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_that_is_given_up_is_shorter_the_next_time(reverse: bool) -> None:
    """So it pauses, and who comes back after every pause gets there."""
    engine = dead_head(disk())
    steps = 0
    while (first := next(engine.scan_keys(b"q", b"r", reverse=reverse))) is None:
        steps += 1
        engine.check()
    assert 0 < steps <= 16
    assert first == (LEFT[-1] if reverse else LEFT[0])
    found, count = looked_at(engine, b"q", b"r", reverse=reverse)
    assert found == first
    assert count < 4 * PAUSE
    engine.put(b"q000007", b"", 2)
    assert next(engine.scan_keys(b"q", b"r")) == b"q000007"
    engine.check()


@pytest.mark.parametrize("reverse", [False, True])
def test_all_scans_pause_alike_on_their_way_through_deleted_keys(reverse: bool) -> None:
    expected = LEFT[::-1] if reverse else LEFT
    for scan in (LSMEngine.scan, LSMEngine.scan_headings, LSMEngine.scan_keys):
        engine = dead_head(disk())
        rows: list[Any] = list(scan(engine, b"q", b"r", reverse=reverse))
        keys = [row if scan is LSMEngine.scan_keys else row[0] for row in rows if row is not None]
        assert keys == expected
        assert rows.count(None) > 5
        assert looked_at(engine, b"q", b"q055999")[1] < 4 * PAUSE
        engine.check()
    assert list(opened(disk()).scan_keys()) == []


def test_many_short_runs_of_deleted_keys_are_paused_amid_though_they_leave_no_marks() -> None:
    engine = opened(disk(), EngineOptions(table_bytes=20_000))
    left = [b"q%06d" % number for number in range(0, 10 * PAUSE, 100)]
    for number in range(10 * PAUSE):
        engine.put(b"q%06d" % number, b"", 1)
    for number in range(10 * PAUSE):
        if number % 100:
            engine.delete(b"q%06d" % number)
    for reverse in (False, True):
        keys = list(engine.scan_keys(b"q", b"r", reverse=reverse))
        assert [key for key in keys if key] == (left[::-1] if reverse else left)
        assert keys.count(None) >= 5
    assert not engine._marks.all


# -- what it tells ---------------------------------------------------------------------------------


def test_the_figures_add_up() -> None:
    fs = disk()
    engine, model = filled(fs, 6)
    stats = engine.stats()
    on_disk = sum(len(fs.contents(f"/home/lsm/{name}")) for name in files(fs))
    assert stats.file_bytes == on_disk
    assert stats.file_bytes == sum(size for _, size in stats.tables) + stats.blob_bytes
    assert sum(count for count, _ in stats.tables) + len(engine._state.version.blobs) == len(
        files(fs)
    )
    assert 0 <= stats.blob_dead_bytes < stats.blob_bytes
    assert 0 <= stats.free_bytes < stats.file_bytes
    assert stats.records == len(model)
    assert stats.written.flushes == 6
    figures = {figure.metric: figure for figure in stats.figures()}
    assert figures["conure_lsm_flushes_total"].value == 6
    assert figures["conure_lsm_write_amplification"].value > 1.0
    assert figures["conure_lsm_index_bytes"].value > 0
    levels = [figure.label for figure in stats.figures() if figure.metric == "conure_lsm_tables"]
    assert levels[0] == ("level", "0")
    report = engine.check()
    assert report.kinds["blob files"] == len(engine._state.version.blobs)
    assert report.pages == sum(report.kinds.values())


def test_merges_without_a_flush_amplify_nothing() -> None:
    """After a start that finds much to merge."""
    fs = disk()
    engine, _ = filled(fs, 1)
    for index in range(2, 5):
        engine.put(b"%d" % index, b"x", index)
        engine.checkpoint(index, 1)
    engine.close()
    again = KIND.open(fs, PLACE, SMALL, create=False)
    settle(again)
    written = again.stats().written
    assert written.compactions > 0
    assert written.flushes == 0
    figures = {figure.metric: figure.value for figure in again.stats().figures()}
    assert figures["conure_lsm_write_amplification"] == 0.0


def test_a_call_that_finds_nothing_to_merge_costs_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, _ = filled(disk(), 6)
    settle(engine)
    monkeypatch.setattr(compaction, "pick", None)
    for _ in range(5):
        assert not engine.compact(0.01)


def test_errors_of_the_disk_are_told() -> None:
    fs = disk()
    engine, _ = filled(fs, 10)
    fs.fail_call(1)
    with pytest.raises((DiskFailed, DiskFull)):
        settle(engine)
