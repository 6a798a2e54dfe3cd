"""What befalls a real node with the LSM engine, its processes and its files, seen from outside.

No acknowledged write is lost or changed by any of it (R8), damage is named and never data (S3), and
whoever asks meanwhile is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.process import ROOT, ServerProcess, command_lines, running, wait_until
from tests.system.test_durability import Writer, verify

SMALL = (
    "--engine=lsm",
    "--max-mem-size=64KiB",
    "--checkpoint-entries=400",
    "--log-segment-bytes=64KiB",
)
Values = dict[bytes, list[bytes | None]]


def offline(command: str, data: Path, status: int = 0) -> str:
    """Carry out a command for a stopped node; return what it says."""
    words = [sys.executable, str(ROOT / "conuredb.py"), command, str(data)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def end(*processes: int, number: int = signal.SIGKILL) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def is_gone(*processes: int) -> Callable[[], bool]:
    return lambda: not set(processes) & command_lines().keys()


class Load:
    """Values that are overwritten again and again, each of them acknowledged."""

    def __init__(self, server: ServerProcess, keys: int = 300) -> None:
        self.server = server
        self.keys = keys
        self.values: dict[str, str] = {}
        self.count = 0

    def put(self) -> int:
        """Write some more values, all or none of them; return the status of the answer."""
        values = {
            f"k{n * 7 % self.keys}": f"{n}." * 200 for n in range(self.count, self.count + 20)
        }
        lines = [json.dumps({"key": key, "value": value}) for key, value in values.items()]
        answer = self.server.request("POST", "/kv/batch", "\n".join(lines).encode())
        if answer.status == 200:
            self.values |= values
            self.count += len(values)
        return answer.status

    def until(self, condition: Callable[[], bool]) -> None:
        """Write until the condition holds; no write is refused."""

        def holds() -> bool:
            assert self.put() == 200
            return condition()

        wait_until(holds, 60)

    def verify(self, server: ServerProcess) -> None:
        rows = json.loads(server.request("GET", "/kv?prefix=k&limit=2000").body)["items"]
        assert {row["key"]: row["value"] for row in rows} == self.values
        assert server.get("k7").body.decode() == self.values["k7"]


def is_more(server: ServerProcess, name: str, than: float) -> Callable[[], bool]:
    return lambda: server.metric(f"conure_lsm_{name}") > than


# -- ends ------------------------------------------------------------------------------------------


def test_acknowledged_writes_outlive_the_kill_of_a_node_and_its_workers(tmp_path: Path) -> None:
    """All at once, in any order, at any moment of a flush or a merge; or the node alone."""
    moment = random.Random(1)
    values: Values = {}
    merges = 0.0
    for number in range(5):
        with running(tmp_path, *SMALL) as server:
            verify(server, values)
            writers = [Writer(server.port, b"%d" % n, number, values) for n in range(4)]
            for writer in writers:
                writer.start()
            wait_until(is_more(server, "flushes_total", 2))
            time.sleep(moment.uniform(0.0, 0.3))  # the fault itself: a kill at a random moment
            merges += server.metric("conure_lsm_compactions_total")
            workers = server.workers()
            doomed = [server.process.pid, *(workers if number % 3 else ())]
            moment.shuffle(doomed)
            end(*doomed)
            server.kill()
            for writer in writers:
                writer.join()
    assert merges > 0
    wait_until(is_gone(*workers))
    with running(tmp_path, *SMALL) as server:
        verify(server, values)
        assert server.terminate() == 0
    assert "all in order" in offline("check", tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_goes_on_when_its_workers_end_or_stop(tmp_path: Path, number: int) -> None:
    with running(tmp_path, *SMALL) as server:
        load = Load(server)
        load.until(is_more(server, "compactions_total", 0))
        workers = server.workers()
        assert len(workers) == 2
        flushes = server.metric("conure_lsm_flushes_total")
        end(*workers, number=number)
        load.until(is_more(server, "flushes_total", flushes + 4))
        load.verify(server)
        if number == signal.SIGSTOP:
            assert "it said nothing for 3 s; it is done again" in server.text
        assert "Traceback" not in server.text
        end(*workers)  # one that has stopped would hold the server's log open
    wait_until(is_gone(*workers))
    with running(tmp_path, *SMALL) as server:
        load.verify(server)


def test_a_worker_that_outlives_its_node_harms_nothing(tmp_path: Path) -> None:
    """It is stopped amid a job and goes on when the next node has long begun."""
    with running(tmp_path, *SMALL) as server:
        load = Load(server)
        load.until(is_more(server, "compactions_total", 0))
        orphans = server.workers()
        end(*orphans, number=signal.SIGSTOP)
        try:
            assert {load.put() for _ in range(15)} == {200}  # more than fit into memory
            end(server.process.pid)
            with running(tmp_path, *SMALL) as later:
                load.server = later
                load.until(is_more(later, "flushes_total", 1))
                end(*orphans, number=signal.SIGCONT)
                wait_until(is_gone(*orphans))
                load.until(is_more(later, "compactions_total", 1))
                load.verify(later)
                assert later.terminate() == 0
        finally:
            end(*orphans)
    assert "all in order" in offline("check", tmp_path)


# -- room ------------------------------------------------------------------------------------------


def limit_files(server: ServerProcess, size: int) -> None:
    """Let no file get longer than *size*, as if the disk were full, until it is told anew; new
    workers have it from the node."""
    for process in (server.process.pid, *server.workers()):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_amid_a_flush_refuses_writes_and_nothing_else(tmp_path: Path) -> None:
    flags = [*SMALL, "--max-mem-size=300KiB", "--checkpoint-entries=100000"]
    with running(tmp_path, *flags) as server:
        load = Load(server)
        load.until(is_more(server, "flushes_total", 0))
        limit_files(server, 100_000)  # a segment of the log fits, a table doesn't
        wait_until(lambda: load.put() == 507, 60)
        refused = server.put("k0", b"refused")
        assert refused.status == 507
        assert b"/lsm/" in refused.body
        assert b"free some space" in refused.body
        assert server.metric("conure_disk_full") == 1
        load.verify(server)
        ready = server.request("GET", "/readyz?verbose").body
        assert b"disk full" in ready
        limit_files(server, resource.RLIM_INFINITY)
        wait_until(lambda: load.put() == 200)
        assert server.metric("conure_disk_full") == 0
        load.until(is_more(server, "flushes_total", 2))
        load.verify(server)
        server.kill()
    with running(tmp_path, *flags) as server:
        load.verify(server)
        assert "Traceback" not in server.text


def test_a_disk_that_is_full_amid_a_merge_refuses_nothing(tmp_path: Path) -> None:
    """It is merged when there is room again, by itself."""
    with running(tmp_path, *SMALL) as server:
        load = Load(server, 1500)
        limit_files(server, 400_000)  # what a flush writes fits, but not what merges do
        load.until(lambda: "merges have to wait" in server.text)
        merges = server.metric("conure_lsm_compactions_total")
        assert server.metric("conure_disk_full") == 0
        load.verify(server)
        limit_files(server, resource.RLIM_INFINITY)
        load.until(is_more(server, "compactions_total", merges))
        wait_until(lambda: "merges go on" in server.text)
        load.verify(server)
        assert "Traceback" not in server.text
        assert server.terminate() == 0
    assert "all in order" in offline("check", tmp_path)


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="healthy")
def _healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of one table and one file of values, which are those of the two keys."""
    data = tmp_path_factory.mktemp("healthy") / "data"
    with running(data, "--engine=lsm") as server:
        for key, value in RECORDS.items():
            assert server.put(key, value).status == 200
        assert server.terminate() == 0
    assert {path.suffix for path in (data / "lsm").iterdir()} == {".sst", ".blob"}
    return data


RECORDS = {"long": b"long" * 2000, "short": b"short" * 20, "whole": b"whole" * 20}


@pytest.fixture(name="data")
def _data(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "data"))


def damaged(data: Path, suffix: str, find: bytes | int) -> str:
    """Flip a bit of a file, at a place or where something is found; return the file's name."""
    (path,) = [*(data / "lsm").glob(f"*{suffix}"), *data.glob(f"conure{suffix}")]
    content = bytearray(path.read_bytes())
    at = content.find(find) + 7 if isinstance(find, bytes) else find % len(content)
    content[at] ^= 0x10
    path.write_bytes(content)
    return path.name


UNREADABLE = {
    "manifest": (".db", 20),
    "head of a table": (".sst", 2),
    "footer of a table": (".sst", -20),
}


@pytest.mark.parametrize("where", UNREADABLE)
def test_what_can_not_be_opened_is_named_and_refused(data: Path, where: str) -> None:
    name = damaged(data, *UNREADABLE[where])
    server = ServerProcess(data)
    assert server.wait() == 1, server.text
    assert server.log[-1].startswith("conuredb: ")
    assert f"{name} is corrupt at byte" in server.log[-1]
    assert "Traceback" not in server.text
    assert f"{name} is corrupt at byte" in offline("check", data, 1)


WRONG: dict[str, tuple[str, bytes | int, str]] = {
    "record": (".sst", b"shortshort", "short"),
    "value": (".blob", b"longlong", "long"),
    "head of a file of values": (".blob", 0, ""),
    "index": (".sst", -110, ""),
}


@pytest.mark.parametrize("where", WRONG)
def test_what_is_damaged_is_an_error_and_never_a_value(data: Path, where: str) -> None:
    suffix, place, key = WRONG[where]
    name = damaged(data, suffix, place)
    said = offline("check", data, 1)
    assert f"{name} is corrupt at byte" in said
    assert "all in order" not in said
    server = ServerProcess(data)
    with contextlib.closing(Ended(server)):
        try:
            server.wait_until_listening()
        except AssertionError:  # it is needed to start
            assert not key
            assert f"{name} is corrupt at byte" in server.log[-1]
            return
        for each, value in RECORDS.items():
            answer = server.get(each)
            assert answer.body == value or (answer.status == 500 and name in answer.body.decode())
            assert (answer.status == 500) == (each == key) or not key
        rows = server.request("GET", "/kv?prefix=")
        assert not key or rows.status == 500
        assert not key or f"{name} is corrupt" in server.text


class Ended:
    """A server that is gone when this is closed."""

    def __init__(self, server: ServerProcess) -> None:
        self.close = server.kill
