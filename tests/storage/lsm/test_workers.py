"""Jobs in a process of their own: what it may do, and all that may befall it."""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import conure
from conure.errors import CorruptionError, DiskFailed, DiskFull, JobLost
from conure.fileio import OsFileSystem
from conure.storage.lsm import workers
from conure.storage.lsm.jobs import Chunk, FlushJob, JobLimits, JobResult
from conure.storage.lsm.orders import Kind, Order, encode_order, frame, greeting
from conure.storage.lsm.verifying import prove
from conure.storage.lsm.worker import BEAT
from conure.storage.lsm.workers import InProcess, Runner, Running, Worker
from tests.lab.crashfs import CrashFileSystem
from tests.storage.lsm.jobtools import (
    FOLDER,
    STEM,
    cell,
    chunks,
    content,
    drive,
    end,
    flushed,
    merge_of,
    names,
    number,
)

ROOT = Path(conure.__file__).parents[1]
LIMITS = JobLimits(table_bytes=16 << 10, blob_bytes=16 << 10, long_value=200)
ITEMS = {b"%04d" % key: cell(b"v" * (key % 4 * 100)) for key in range(300)}
FS = OsFileSystem()

MakeWorker = Callable[..., Worker]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    path = tmp_path / "lsm"
    path.mkdir()
    return str(path)


@pytest.fixture
def make(folder: str) -> Iterator[MakeWorker]:
    made: list[Worker] = []

    def worker(**options: object) -> Worker:
        made.append(Worker(FS, folder, **options))  # type: ignore[arg-type]
        return made[-1]

    yield worker
    for each in made:
        each.close()
        if each.pid is not None:  # of a test that failed amid a job: it may be stopped
            os.kill(each.pid, signal.SIGKILL)
        assert not has_process(each)


def flush_job() -> FlushJob:
    return FlushJob(STEM, number(), LIMITS)


def has_process(worker: Worker) -> bool:
    return worker.pid is not None


def is_running(pid: int) -> bool:
    """Tell whether there is such a process, and not as a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lost(running: Running, why: str) -> None:
    with pytest.raises(JobLost, match=why):
        drive(running)


def endless() -> Iterator[Chunk]:
    """Yield items without end."""
    at = 0
    while True:
        yield [b"%012d" % key for key in range(at, at + 500)], [cell(b"v" * 100)] * 500
        at += 500


def started(worker: Worker) -> tuple[Running, int]:
    """Begin an endless flush, and return it and the process once that is at work."""
    running = worker.start(flush_job(), endless())
    pid = worker.pid
    assert pid is not None
    while running.feed.records < 20_000:
        assert not running.step(0.05), running.result()
    return running, pid


# -- what it does ----------------------------------------------------------------------------------


def test_a_worker_does_what_is_done_in_process(make: MakeWorker, folder: str) -> None:
    worker, here = make(), InProcess(FS, folder)
    flushes: list[JobResult] = []
    merges: list[JobResult] = []
    runners: tuple[Runner, ...] = (worker, here)
    for runner in runners:
        running = runner.start(flush_job(), chunks(ITEMS))
        flushes.append(drive(running))
        assert running.feed.records == len(ITEMS)
        end(prove(FS, folder, running.job, flushes[-1], running.feed))
        gone = flushed(FS, {b"0007": b"", b"0008": b""}, folder=folder).tables
        job = merge_of([gone, flushes[-1].tables], emptied=flushes[-1].blobs[:1], limits=LIMITS)
        running = runner.start(job)
        merges.append(drive(running))
        proved = end(prove(FS, folder, job, merges[-1]))
        assert len(proved.tables) == len(merges[-1].tables) > 1
    for one, other in (flushes, merges):
        assert [table[3:7] for table in one.tables] == [table[3:7] for table in other.tables]
        assert [blob.size for blob in one.blobs] == [blob.size for blob in other.blobs]
        assert one[2:] == other[2:]
    kept = [*flushes[0].blobs[1:], *merges[0].blobs]
    expected = {key: each for key, each in ITEMS.items() if key not in (b"0007", b"0008")}
    assert content(FS, merges[0].tables, kept, folder) == expected


def test_a_long_value_is_held_twice_at_most(make: MakeWorker, folder: str) -> None:
    """Once as it came, and once as it is written, copied from file to file or checked."""

    def peak() -> int:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) << 10

    worker, size = make(), 24 << 20
    drive(worker.start(flush_job(), chunks(ITEMS)))
    before = peak()
    values = {b"%d" % number: cell(bytes((number,)) * size) for number in range(3)}
    flushed_values = drive(worker.start(flush_job(), chunks(values)))
    assert peak() - before < 2.6 * size
    assert len(flushed_values.blobs) > 1
    job = merge_of([flushed_values.tables], emptied=flushed_values.blobs, limits=LIMITS)
    merged_values = drive(worker.start(job))
    assert sum(blob.size for blob in merged_values.blobs) > 3 * size
    assert peak() - before < 2.6 * size


def test_one_process_does_job_after_job_and_ends_with_its_runner(make: MakeWorker) -> None:
    worker = make()
    assert not has_process(worker)  # not before it is needed
    drive(worker.start(flush_job(), chunks(ITEMS)))
    pid = worker.pid
    assert pid is not None
    for _ in range(3):
        drive(worker.start(flush_job(), chunks(ITEMS)))
    assert worker.pid == pid
    worker.close()
    assert not is_running(pid)


def test_closing_lets_a_running_job_end(make: MakeWorker) -> None:
    worker = make()
    running = worker.start(flush_job(), chunks(ITEMS))
    worker.close()
    assert drive(running).read == len(ITEMS)
    assert not has_process(worker)


@pytest.mark.parametrize("kind", ["worker", "here"])
def test_giving_up_leaves_nothing(make: MakeWorker, folder: str, kind: str) -> None:
    runner: Runner = make() if kind == "worker" else InProcess(FS, folder)
    running = runner.start(flush_job(), endless())
    while not names(FS, folder):
        assert not running.step(0.01)
    running.abort()
    running.abort()
    assert names(FS, folder) == set()
    with pytest.raises(JobLost, match="given up"):
        running.result()
    running = runner.start(flush_job(), chunks(ITEMS))
    drive(running)
    assert names(FS, folder)
    running.abort()  # over, and not believed
    assert names(FS, folder) == set()
    assert drive(runner.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)


def test_what_the_feed_raises_is_raised(make: MakeWorker, folder: str) -> None:
    def broken() -> Iterator[Chunk]:
        yield from chunks(ITEMS)
        raise CorruptionError("f", 1, "it was read from somewhere")

    worker = make()
    running = worker.start(flush_job(), broken())
    with pytest.raises(CorruptionError, match="from somewhere"):
        drive(running)
    assert names(FS, folder) == set()
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)


# -- errors of the disk ----------------------------------------------------------------------------


def test_damage_is_told_as_it_was_found(make: MakeWorker, folder: str) -> None:
    worker = make()
    tables = flushed(FS, ITEMS, folder=folder).tables
    path = f"{folder}/{tables[0].name}"
    file = FS.open(path)
    file.pwrite(b"\xff\xff", 40)
    before = names(FS, folder)
    found = []
    for runner in (worker, InProcess(FS, folder)):
        with pytest.raises(CorruptionError) as caught:
            drive(runner.start(merge_of([tables])))
        found.append((caught.value.file, caught.value.offset, caught.value.why))
    assert found[0] == found[1]
    assert found[0][0] == path
    assert names(FS, folder) == before


def test_a_full_disk_is_told_and_the_next_job_done(make: MakeWorker, folder: str) -> None:
    worker = make()
    drive(worker.start(flush_job(), chunks(ITEMS)))
    before = names(FS, folder)
    assert worker.pid is not None
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with pytest.raises(DiskFull, match=os.strerror(errno.EFBIG)):
        drive(worker.start(FlushJob(STEM, number(), LIMITS._replace(blob_bytes=1 << 20)),
                           chunks(ITEMS)))  # fmt: skip
    assert names(FS, folder) == before
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)


def test_a_folder_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    worker = Worker(FS, str(tmp_path / "file" / "lsm"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFailed):
        drive(worker.start(flush_job(), chunks(ITEMS)))
    worker.close()


def test_errors_in_process_are_results_too() -> None:
    fs = CrashFileSystem()
    fs.make_directory(FOLDER)
    running = InProcess(fs, FOLDER).start(flush_job(), chunks(ITEMS))
    fs.fail_call(5, "full")
    while not running.step(0.0):
        pass
    with pytest.raises(DiskFull):
        running.result()


# -- what befalls it -------------------------------------------------------------------------------


def test_a_killed_worker_loses_its_job_and_is_replaced(make: MakeWorker, folder: str) -> None:
    worker = make()
    for records in (0, 1000, 30_000):
        running = worker.start(flush_job(), endless())
        while running.feed.records < records:
            assert not running.step(0.0)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        lost(running, "it ended")
        assert names(FS, folder) == set()
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)


def test_a_worker_that_is_killed_between_jobs_is_replaced(make: MakeWorker) -> None:
    worker = make()
    drive(worker.start(flush_job(), chunks(ITEMS)))
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
    assert worker.pid != pid


def test_a_worker_without_memory_loses_its_job_and_is_replaced(
    make: MakeWorker, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = make()
    drive(worker.start(flush_job(), chunks(ITEMS)))
    before = names(FS, folder)
    pid = worker.pid
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
    running = worker.start(flush_job(), chunks({b"k": cell(bytes(8 << 20))}))
    lost(running, "it ended")
    assert "MemoryError" in capfd.readouterr().err
    assert names(FS, folder) == before
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
    assert worker.pid != pid


def test_a_stopped_worker_is_no_obstacle_to_closing(make: MakeWorker) -> None:
    worker = make()
    drive(worker.start(flush_job(), chunks(ITEMS)))
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    worker.close()
    until(lambda: not is_running(pid))


def test_an_idle_worker_says_nothing() -> None:
    """Or the pipe would be full of it after some hours."""
    with by_hand(os.getpid()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hello = frame(Kind.HELLO, greeting())
        assert process.stdout.read(len(hello)) == hello
        time.sleep(3 * BEAT)
        process.stdin.close()
        assert process.stdout.read() == b""


@pytest.mark.timeout(40)
def test_a_stopped_worker_holds_nobody_up_and_is_replaced(make: MakeWorker, folder: str) -> None:
    worker = make(patience=1.0)
    running, pid = started(worker)
    os.kill(pid, signal.SIGSTOP)
    slowest = 0.0
    steps = 0
    while not running.step(0.02):
        now = time.monotonic()
        steps += 1
        running.step(0.0)
        slowest = max(slowest, time.monotonic() - now)
    assert steps > 10
    assert slowest < 0.5
    with pytest.raises(JobLost, match="said nothing for 1 s"):
        running.result()
    assert not is_running(pid)
    assert names(FS, folder) == set()
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
    assert worker.pid != pid


@pytest.mark.timeout(40)
def test_a_worker_that_takes_nothing_is_fed_no_more_than_a_pipe_holds(make: MakeWorker) -> None:
    worker = make()
    running = worker.start(flush_job(), endless())
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    for _ in range(50):
        assert not running.step(0.005)
    assert 500 <= running.feed.records <= (1 << 20) // 100
    running.abort()


def test_who_does_not_look_takes_nobody_for_lost(make: MakeWorker) -> None:
    """A node that was stopped itself, or had other things to do."""
    worker = make(patience=0.6)
    running, pid = started(worker)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.8)
    assert not running.step(0.0)
    os.kill(pid, signal.SIGCONT)
    for _ in range(30):
        assert not running.step(0.02)
    running.abort()


def test_a_stopped_worker_is_given_up_at_once(make: MakeWorker, folder: str) -> None:
    worker = make()
    running, pid = started(worker)
    os.kill(pid, signal.SIGSTOP)
    running.abort()
    until(lambda: not is_running(pid))
    assert names(FS, folder) == set()


def test_signals_to_everybody_do_not_end_it(make: MakeWorker) -> None:
    worker = make()
    running, pid = started(worker)
    assert os.getsid(pid) == pid  # no terminal reaches it
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, each)
    before = running.feed.records
    while running.feed.records < before + 50_000:
        assert not running.step(0.05)
    running.abort()


def test_it_gives_way_and_holds_nothing_of_ours_open(make: MakeWorker, tmp_path: Path) -> None:
    with open(tmp_path / "ours", "w") as ours:
        os.set_inheritable(ours.fileno(), True)
        worker = make()
        running, pid = started(worker)
        opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert str(tmp_path / "ours") not in opened
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
        running.abort()


# -- others in its place ---------------------------------------------------------------------------

IMPOSTOR = """#!{python}
import os, sys, time
sys.path.insert(0, {root!r})
from conure.storage.lsm.orders import *
from conure.storage.lsm.jobs import JobResult
from conure.errors import DiskFull
def say(*parts): os.write(1, b"".join(parts))
{body}
time.sleep(60)
"""

HELLO = "say(frame(Kind.HELLO, greeting()))\n"
EMPTY = "JobResult((), (), 0, 0, 0)"
NONSENSE = {
    "noise": ("say(b'Traceback, or whatever else' * 9)", "made no sense: a frame of"),
    "another release": ("say(frame(Kind.HELLO, b'{}'))", "another release"),
    "no greeting": ("say(frame(Kind.ALIVE))", "another release"),
    "flipped": ("say(frame(Kind.HELLO, greeting())[:-1] + b'?')", "fails its checksum"),
    "too long": ("say(b'\\xff' * 9)", "a frame of"),
    "another job's answer": (
        f"{HELLO}say(frame(Kind.DONE, encode_answer(99, {EMPTY})))",
        "another job",
    ),
    "another job's failure": (
        f"{HELLO}say(frame(Kind.FAILED, encode_failure(9, DiskFull('x'))))",
        "another job",
    ),
    "an order": (f"{HELLO}say(frame(Kind.JOB))", "is no answer"),
    "cut": (
        f"{HELLO}say(frame(Kind.DONE, encode_answer(1, {EMPTY}))[:-5]); sys.exit()",
        "it ended",
    ),
    "silence": ("", "said nothing"),
    "an end": ("sys.exit(3)", "it ended"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_not_believed(name: str, make: MakeWorker, folder: str, tmp_path: Path) -> None:
    body, why = NONSENSE[name]
    script = tmp_path / "impostor"
    script.write_text(IMPOSTOR.format(python=sys.executable, root=str(ROOT), body=body))
    script.chmod(0o755)
    worker = make(executable=str(script), patience=1.0 if name == "silence" else 20.0)
    job = merge_of([flushed(FS, {b"k": cell(b"v")}, folder=folder).tables])
    running = worker.start(job)
    pid = worker.pid
    assert pid is not None
    lost(running, why)
    assert not is_running(pid)


def test_an_answer_before_all_is_sent_is_no_answer(
    make: MakeWorker, folder: str, tmp_path: Path
) -> None:
    script = tmp_path / "impostor"
    body = f"{HELLO}say(frame(Kind.DONE, encode_answer(1, {EMPTY})))"
    script.write_text(IMPOSTOR.format(python=sys.executable, root=str(ROOT), body=body))
    script.chmod(0o755)
    lost(make(executable=str(script)).start(flush_job(), endless()), "is no answer")


def test_without_an_interpreter_jobs_run_here(
    make: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    for executable in ("", "/nowhere/python", "/dev/null"):
        caplog.clear()
        worker = make(executable=executable)
        with caplog.at_level(logging.WARNING, "conure.lsm"):
            for _ in range(3):
                assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
        assert not has_process(worker)
        (record,) = caplog.records
        assert "run in this one" in record.message


def test_who_never_begins_is_tried_three_times_and_after_a_while(
    make: MakeWorker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make(executable=shutil.which("false") or "/bin/false")
    with caplog.at_level(logging.WARNING, "conure.lsm"):
        for _ in range(3):
            lost(worker.start(flush_job(), chunks(ITEMS)), "it ended")
        assert not caplog.records
        for _ in range(2):
            assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
        with monkeypatch.context() as later:
            later.setattr(workers, "_AFTER_STRIKES", 0.0)
            lost(worker.start(flush_job(), chunks(ITEMS)), "it ended")
        assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
    assert len(caplog.records) == 1


# -- the process by itself -------------------------------------------------------------------------


def by_hand(parent: int) -> subprocess.Popen[bytes]:
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    start += f"from conure.storage.lsm.worker import main; main({parent})"
    command = [sys.executable, "-I", "-S", "-B", "-c", start]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_it_ends_when_its_parent_is_another() -> None:
    with by_hand(os.getpid() + 1) as process:
        assert process.wait(20) == 1


def test_it_ends_when_its_input_does() -> None:
    with by_hand(os.getpid()) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) in (0, 1)


def test_it_ends_with_its_input_in_the_middle_of_a_job(folder: str) -> None:
    """Here of one that takes some tenths of a second, of which none has passed."""
    rows = {b"k%06d" % number: cell(b"v" * 100) for number in range(60_000)}
    tables = flushed(FS, rows, folder=folder).tables
    with by_hand(os.getpid()) as process:
        assert process.stdin is not None
        pipe = process.stdin
        pipe.write(frame(Kind.JOB, encode_order(Order(1, folder, merge_of([tables])))))
        pipe.flush()
        until(lambda: not unread(pipe.fileno()))
        os.kill(process.pid, signal.SIGSTOP)
        pipe.close()
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(20) == 1


def unread(pipe: int) -> int:
    """Return how many bytes of a pipe nobody has read."""
    found = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return found[0]


def test_nonsense_from_its_node_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    for sent in (b"x" * 100, frame(Kind.END), frame(Kind.JOB, b"{}")):
        with by_hand(os.getpid()) as process:
            assert process.stdin is not None
            process.stdin.write(sent)
            process.stdin.flush()
            assert process.wait(20) == 1
        assert "ValueError" in capfd.readouterr().err


DRIVER = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from tests.storage.lsm.test_workers import *
worker = Worker(FS, {folder!r})
running, pid = started(worker)
print(pid, flush=True)
while True: running.step(0.05)
"""


def test_a_killed_node_is_followed_by_its_worker(folder: str) -> None:
    """What that leaves is a file under a name that no other job has."""
    script = DRIVER.format(root=str(ROOT), tests=str(ROOT), folder=folder)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        assert is_running(pid)
        driver.kill()
    until(lambda: not is_running(pid))
    orphans = names(FS, folder)
    result = drive(InProcess(FS, folder).start(flush_job_of_another(), chunks(ITEMS)))
    assert not orphans & {file.name for file in result.tables}
    assert orphans <= names(FS, folder)


def flush_job_of_another() -> FlushJob:
    return FlushJob("conure.db-fedcba9876543210", 1_000_000, LIMITS)


# -- where it is started from ----------------------------------------------------------------------


@pytest.fixture(params=["archive", "copy"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """ConureDB as one file, and as a folder that nothing may be written to."""
    ignored = shutil.ignore_patterns("__pycache__")
    copy = tmp_path / "site packages \u00e4"
    shutil.copytree(ROOT / "conure", copy / "conure", ignore=ignored)
    if request.param == "copy":
        return copy
    archive = tmp_path / "conuredb.pyz"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in copy.rglob("*.py"):
            target.write(path, path.relative_to(copy))
    shutil.rmtree(copy)
    return archive


def test_it_starts_wherever_conuredb_is(
    root: Path, make: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    for name in ("struct", "json", "conure", "site", "sitecustomize"):
        (here / f"{name}.py").write_text("raise SystemExit('imported from the wrong place')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.setenv("HOME", "/nowhere")
    before = sorted(tmp_path.rglob("*"))
    worker = make(root=str(root))
    assert drive(worker.start(flush_job(), chunks(ITEMS))).read == len(ITEMS)
    assert worker.pid is not None
    new = set(tmp_path.rglob("*")) - set(before)
    assert {path.parent.name for path in new} == {"lsm"}
