"""Broken disks, full disks, damaged files and rude clients, met by a real process.

A disk fails through ``faultlib.c``, which is compiled here and loaded before the C library. What
must hold: a failure is final and named (S6), damage is an error and never data (S3), an
acknowledged write is still there after a restart (R8), and one client never holds up another.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conure.cluster.node import Node
from conure.cluster.options import NodeOptions
from conure.consensus.spares import RESERVE_BYTES
from conure.errors import ConureError
from conure.fileio import OsFileSystem
from conure.metrics import Registry
from conure.peers.transport import Transport
from tests.lab.process import ServerProcess, running, wait_until

EIO, ENOSPC = 5, 28
SMALL_LOG = ("--log-segment-bytes=64KiB",)


class FaultyDisk:
    """Orders the failures of a server process that was started with :attr:`environ`."""

    def __init__(self, library: Path, order: Path) -> None:
        self._order = order
        self.environ = {"LD_PRELOAD": str(library), "FAULT_ORDER": str(order)}

    def fail(self, call: str, path: str, number: int) -> None:
        """From now on fail each ``sync`` or ``write`` of files with *path* in their name."""
        new = self._order.with_suffix(".new")
        new.write_text(f"{call} {path} {number}\n")
        new.rename(self._order)

    def heal(self) -> None:
        self._order.unlink()


@pytest.fixture(scope="module")
def fault_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the library that makes the disk fail")
    library = tmp_path_factory.mktemp("faultlib") / "faultlib.so"
    source = Path(__file__).parents[1] / "lab" / "faultlib.c"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def disk(fault_library: Path, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(fault_library, tmp_path / "order")


def fill(server: ServerProcess, start: int, count: int, size: int = 100) -> None:
    """Put the keys k<start> … and see each of them acknowledged, over one connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        requests = [
            b"PUT /kv?key=k%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
            % (number, size, value_of(number, size))
            for number in range(start, start + count)
        ]
        connection.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"OK\n") < count:
            part = connection.recv(65536)
            assert part, answers
            answers += part


def value_of(number: int, size: int = 100) -> bytes:
    return (b"%d." % number * size)[:size]


def assert_filled(server: ServerProcess, count: int, size: int = 100) -> None:
    for number in range(count):
        assert server.get(f"k{number}").body == value_of(number, size), number


# -- a disk that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["sync", "write"])
def test_a_write_that_meets_a_broken_log_ends_the_node(
    tmp_path: Path, disk: FaultyDisk, call: str
) -> None:
    data = tmp_path / "data"
    with running(data, environ=disk.environ) as server:
        fill(server, 0, 20)
        # Nobody else is to meet the failure first.
        wait_until(lambda: len(list((data / "raft").glob("*.spare"))) == 2)
        disk.fail(call, "raft", EIO)
        answer = server.put("unlucky", b"x")
        assert answer.status == 504
        assert b"nput/output error" in answer.body
        assert server.wait() == 1
        assert "can't go on" in server.text
        assert "nput/output error" in server.text
        assert "Traceback" not in server.text
    disk.heal()
    with running(data) as server:
        assert_filled(server, 20)
        assert server.get("unlucky").body in (b"x", b"key not found\n")
        assert server.put("unlucky", b"y").status == 200


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("call", ["sync", "write"])
def test_a_checkpoint_that_meets_a_broken_file_ends_the_node(
    tmp_path: Path, disk: FaultyDisk, call: str
) -> None:
    data = tmp_path / "data"
    with running(data, "--checkpoint-entries=30", environ=disk.environ) as server:
        fill(server, 0, 20)
        disk.fail(call, "conure.db", EIO)
        fill(server, 20, 20)
        assert server.wait() == 1
        assert re.search(r"conure\.db\S* failed", server.text)
        assert "Traceback" not in server.text
    disk.heal()
    with running(data, "--checkpoint-entries=30") as server:
        assert_filled(server, 40)


def test_a_broken_disk_at_the_last_checkpoint_is_not_passed_over(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    data = tmp_path / "data"
    with running(data, environ=disk.environ) as server:
        fill(server, 0, 10)
        disk.fail("sync", "conure.db", EIO)
        assert server.terminate() == 1
        assert re.search(r"conure\.db\S* failed", server.text)
    disk.heal()
    with running(data) as server:
        assert_filled(server, 10)


def test_a_disk_that_is_broken_at_the_start_is_named(tmp_path: Path, disk: FaultyDisk) -> None:
    data = tmp_path / "data"
    disk.fail("sync", str(data), EIO)
    server = ServerProcess(data, environ=disk.environ)
    assert server.wait() == 1
    assert server.log[-1].startswith("conuredb: ")
    assert "nput/output error" in server.log[-1]
    disk.heal()
    with running(data) as server:
        assert server.put("k", b"v").status == 200


# -- a disk that is full -------------------------------------------------------------------------


def is_written(server: ServerProcess, key: str, value: bytes) -> Callable[[], bool]:
    return lambda: server.put(key, value).status == 200


def fill_up(server: ServerProcess, size: int, start: int) -> int:
    """Write until a write is refused for lack of space; return the first number not stored."""
    for number in range(start, start + 1000):
        answer = server.put(f"k{number}", value_of(number, size))
        if answer.status == 507:
            assert b"free some space" in answer.body
            return number
        assert answer.status == 200
    raise AssertionError("the disk never ran full")


def test_a_full_disk_refuses_writes_and_recovers(tmp_path: Path, disk: FaultyDisk) -> None:
    data, size = tmp_path / "data", 5000
    with running(data, *SMALL_LOG, environ=disk.environ) as server:
        disk.fail("write", ".tmp", ENOSPC)  # no new segment
        count = fill_up(server, size, 0)
        assert count > 10
        assert server.get(f"k{count}").status == 404
        assert_filled(server, count, size)
        assert server.request("GET", "/livez").status == 200
        wait_until(lambda: b"conure_disk_full 1\n" in server.request("GET", "/metrics").body)
        assert "Traceback" not in server.text
        disk.heal()
        wait_until(is_written(server, f"k{count}", value_of(count, size)))
        assert_filled(server, count + 1, size)
        assert server.terminate() == 0
    with running(data, *SMALL_LOG) as server:
        assert_filled(server, count + 1, size)


@pytest.mark.usefixtures("engine")
def test_a_checkpoint_that_does_not_fit_is_taken_again(tmp_path: Path, disk: FaultyDisk) -> None:
    data = tmp_path / "data"
    flags = ("--checkpoint-entries=50",)
    with running(data, *flags, environ=disk.environ) as server:
        disk.fail("write", "conure.db", ENOSPC)
        fill(server, 0, 60)
        wait_until(lambda: server.put("k60", value_of(60)).status == 507)
        wait_until(lambda: "writes are refused" in server.text)
        ready = server.request("GET", "/readyz?verbose")
        assert "disk full" in ready.body.decode()
        assert b"conure_disk_full 1\n" in server.request("GET", "/metrics").body
        assert_filled(server, 60)
        assert server.request("DELETE", "/kv?key=k0").status == 507
        disk.heal()
        wait_until(is_written(server, "k60", value_of(60)))
        assert b"conure_disk_full 0\n" in server.request("GET", "/metrics").body
        assert_filled(server, 61)
    with running(data, *flags) as server:
        assert_filled(server, 61)


def test_starts_on_a_full_disk_go_on_in_the_reserve(tmp_path: Path, disk: FaultyDisk) -> None:
    data, size = tmp_path / "data", 1000
    with running(data, *SMALL_LOG, environ=disk.environ) as server:
        disk.fail("write", ".tmp", ENOSPC)
        count = fill_up(server, size, 0)
        server.kill()
    sizes: list[int] = []
    for _ in range(10):
        with running(data, *SMALL_LOG, environ=disk.environ) as server:
            assert_filled(server, count, size)
            count = fill_up(server, size, count)
            server.kill()
        sizes += [path.stat().st_size for path in sorted((data / "raft").glob("*.log"))[-1:]]
    assert sizes[-1] == RESERVE_BYTES
    assert sizes.count(RESERVE_BYTES) >= 3  # one file of it serves many starts
    disk.heal()
    with running(data, *SMALL_LOG, environ=disk.environ) as server:
        wait_until(is_written(server, "k", b"v"))
        assert server.terminate() == 0


def test_a_start_without_any_room_says_so_in_one_line(tmp_path: Path, disk: FaultyDisk) -> None:
    data = tmp_path / "data"
    with running(data, environ=disk.environ) as server:
        fill(server, 0, 10)
        server.kill()
    disk.fail("write", "raft", ENOSPC)  # as where nothing is written in its place
    server = ServerProcess(data, environ=disk.environ)
    assert server.wait() == 1
    assert server.log[-1].startswith("conuredb: ")
    assert server.log[-1].endswith("No space left on device; free some space")
    assert "Traceback" not in server.text
    disk.heal()
    with running(data) as server:
        assert_filled(server, 10)


def test_a_write_that_finds_no_room_where_some_was_made_waits(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    """As on file systems that copy on write."""
    data = tmp_path / "data"
    with running(data, environ=disk.environ) as server:
        fill(server, 0, 10)
        disk.fail("write", "raft", ENOSPC)
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(server.put("w", b"1").status))
        waiting.start()
        wait_until(lambda: b"waits for room" in server.request("GET", "/readyz?verbose").body)
        assert b"conure_disk_full 1\n" in server.request("GET", "/metrics").body
        refused = server.put("k0", b"other")
        assert refused.status == 507
        assert b"free some space" in refused.body
        assert_filled(server, 10)
        assert server.get("w").status == 404
        assert not answers
        disk.heal()
        waiting.join()
        assert answers == [200]
        assert server.get("w").body == b"1"
        assert_filled(server, 10)
        assert server.text.count("the log has no room left") == 1
        assert server.terminate() == 0
    with running(data) as server:
        assert server.get("w").body == b"1"


def test_a_stop_with_a_full_disk_loses_nothing(tmp_path: Path, disk: FaultyDisk) -> None:
    data = tmp_path / "data"
    with running(data, environ=disk.environ) as server:
        fill(server, 0, 10)
        disk.fail("write", "conure.db", ENOSPC)
        assert server.terminate() == 0
    with running(data, environ=disk.environ) as server:  # the log is what counts
        assert_filled(server, 10)


@pytest.mark.usefixtures("engine")
def test_a_really_full_disk(small_disk: tuple[Path, list[str]]) -> None:
    point, wrapper = small_disk
    flags = (*SMALL_LOG, "--checkpoint-entries=100")
    with running(point / "data", *flags, wrapper=wrapper) as server:
        inside = Path(f"/proc/{server.process.pid}/root{point}")  # the mount as the server sees it
        fill(server, 0, 10, 2000)
        ballast = inside / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        count = fill_up(server, 2000, 10)
        assert_filled(server, count, 2000)
        started = time.monotonic()
        assert server.put("refused", b"x" * 60_000).status == 507
        assert time.monotonic() - started < 2
        ballast.unlink()
        wait_until(is_written(server, f"k{count}", value_of(count, 2000)))
        assert_filled(server, count + 1, 2000)
        assert server.get("refused").status == 404
        copy = point.parent / "copy"
        shutil.copytree(inside / "data", copy)
    with running(copy, *flags) as server:
        assert_filled(server, count + 1, 2000)


# -- damaged files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint, a cut log of several segments and entries behind it."""
    data = tmp_path_factory.mktemp("healthy") / "data"
    flags = (*SMALL_LOG, "--checkpoint-entries=100", "--engine=btree")
    with running(data, *flags) as server:
        fill(server, 0, 150, 1500)

        def is_cut() -> bool:
            snapshot = server.request("GET", "/raft/stats").body
            match = re.search(rb'"last_snapshot_index": "(\d+)"', snapshot)
            return match is not None and int(match[1]) >= 100

        wait_until(is_cut)
        server.kill()
    with running(data, "--log-segment-bytes=64KiB") as server:
        fill(server, 150, 150, 1500)
        server.kill()
    assert len(list((data / "raft").glob("*.log"))) >= 3
    return data


@pytest.fixture
def data(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "data"))


def change(path: Path, offset: int, damage: Callable[[bytes], bytes], size: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(size)
        file.seek(offset)
        file.write(damage(before))


def flip(data: bytes) -> bytes:
    return bytes(octet ^ 0x10 for octet in data)


def blank(data: bytes) -> bytes:
    return bytes(len(data))


def segments(data: Path) -> list[Path]:
    return sorted((data / "raft").glob("*.log"))


def last_record(path: Path) -> tuple[int, int]:
    """Where the last written byte of a segment is, and where the sector of it begins."""
    content = path.read_bytes().rstrip(b"\0")
    return len(content), len(content) // 512 * 512


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "first meta page": (lambda d: change(d / "conure.db", 0, flip, 4096), "conure.db"),
    "second meta page": (lambda d: change(d / "conure.db", 4096, blank, 4096), "conure.db"),
    "both meta pages": (lambda d: change(d / "conure.db", 0, blank, 8192), "conure.db"),
    "truncated tree": (lambda d: os.truncate(d / "conure.db", 8192), "conure.db"),
    "empty tree": (lambda d: os.truncate(d / "conure.db", 0), "conure.db"),
    "missing tree": (lambda d: (d / "conure.db").unlink(), "conure.db"),
    "text for a tree": (lambda d: (d / "conure.db").write_text("hello"), "conure.db"),
    "log record": (lambda d: change(segments(d)[1], 2000, flip), ".log"),
    "blank sector in the log": (lambda d: change(segments(d)[1], 2048, blank, 512), ".log"),
    "log header": (lambda d: change(segments(d)[1], 20, flip), ".log"),
    "flipped bit at the end of the log": (
        lambda d: change(segments(d)[-1], last_record(segments(d)[-1])[0] - 700, flip),
        ".log",
    ),
    "truncated segment": (lambda d: os.truncate(segments(d)[1], 3000), ".log"),
    "missing segment": (lambda d: segments(d)[1].unlink(), ".log"),
    "missing first segment": (lambda d: segments(d)[0].unlink(), ".log"),
    "term and vote": (lambda d: change(d / "raft" / "state", 0, blank, 8192), "state"),
    "missing term and vote": (lambda d: (d / "raft" / "state").unlink(), "state"),
    "log snapshot": (lambda d: change(d / "raft" / "snapshot", 20, flip), "snapshot"),
    "missing log snapshot": (lambda d: (d / "raft" / "snapshot").unlink(), "snapshot"),
    "missing log": (lambda d: shutil.rmtree(d / "raft"), "conure.db"),
    "identity": (lambda d: (d / "identity.json").write_text("{"), "identity.json"),
    "empty identity": (lambda d: (d / "identity.json").write_text(""), "identity.json"),
    "other identity": (lambda d: (d / "identity.json").write_text("[1]"), "identity.json"),
    "missing identity": (lambda d: (d / "identity.json").unlink(), "identity.json"),
}


def open_again(data: Path) -> None:
    options = NodeOptions(
        node_id="node1", told_node_id=False, data_dir=str(data), raft_address="h:1",
        http_address="http://h:2", bootstrap=True, version="test",
    )  # fmt: skip
    peers = Transport(("127.0.0.1", 0), Registry())
    try:
        Node.open(options, OsFileSystem(), peers, Registry(), lambda: None).stop()
    finally:
        peers.close()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_refused(data: Path, name: str) -> None:
    damage, file = DAMAGE[name]
    damage(data)
    server = ServerProcess(data)
    assert server.wait() == 1, server.text
    assert server.log[-1].startswith("conuredb: "), server.text
    assert file in server.log[-1]
    assert "Traceback" not in server.text
    with pytest.raises(ConureError, match=re.escape(file)):  # nothing was mended in silence
        open_again(data)


def test_without_damage_everything_is_there(data: Path) -> None:
    with running(data) as server:
        assert_filled(server, 300, 1500)


def test_a_torn_tail_is_cut_off_and_nothing_else(data: Path) -> None:
    """What a power failure leaves of the write it interrupts: sectors that never arrived (S3)."""
    end, sector = last_record(segments(data)[-1])
    change(segments(data)[-1], sector, blank, end - sector)
    with running(data) as server:
        assert_filled(server, 150, 1500)
        found = [server.get(f"k{n}").status for n in range(150, 300)]
        torn = found.count(404)
        assert torn > 0
        assert found == [200] * (150 - torn) + [404] * torn
        fill(server, 300 - torn, torn, 1500)
        server.kill()
    with running(data) as server:
        assert_filled(server, 300, 1500)


def test_a_tree_that_was_never_checkpointed_is_rebuilt_from_the_log(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        fill(server, 0, 20)
        server.kill()
    (tmp_path / "conure.db").unlink()
    with running(tmp_path) as server:
        assert_filled(server, 20)


def test_a_damaged_page_is_an_error_and_never_a_value(data: Path) -> None:
    with running(data) as server:
        assert server.terminate() == 0
    position = (data / "conure.db").read_bytes().find(value_of(70, 400))
    assert position > 8192
    change(data / "conure.db", position, flip)
    with running(data) as server:
        answer = server.get("k70")
        assert answer.status == 500
        assert b"conure.db is corrupt" in answer.body
        assert server.get("k70", stale="true").status == 500
        wait_until(lambda: "conure.db is corrupt" in server.text)
        assert server.get("k200").body == value_of(200, 1500)
        pipelined = b"".join(
            b"GET /kv?key=k%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in (1, 70, 200)
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(pipelined)
            answers = b""
            while answers.count(b"HTTP/1.1 ") < 3 or value_of(200, 1500) not in answers:
                part = connection.recv(65536)
                assert part
                answers += part
        codes = re.findall(rb"HTTP/1.1 (\d+)", answers)
        assert codes == [b"200", b"500", b"200"]


# -- rude clients ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("rude")) as process:
        yield process


def open_to(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def assert_prompt(server: ServerProcess) -> None:
    """See that writes and reads of others take no noticeable time."""
    started = time.monotonic()
    for number in range(10):
        assert server.put(f"prompt{number}", b"x").status == 200
        assert server.get(f"prompt{number}").body == b"x"
    assert time.monotonic() - started < 2


def test_a_client_that_sends_byte_by_byte_holds_up_nobody(server: ServerProcess) -> None:
    request = b"PUT /kv?key=slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    with open_to(server) as slow:
        for position in range(len(request)):
            slow.sendall(request[position : position + 1])
            if position % 20 == 0:
                assert_prompt(server)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert server.get("slow").body == b"abc"


def test_clients_that_read_nothing_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    with running(tmp_path) as server, contextlib.ExitStack() as stack:
        server.put("large", bytes(1 << 20))
        before = resident_bytes(server)
        for _ in range(4):
            deaf = stack.enter_context(open_to(server))
            deaf.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(1000):
                    deaf.send(b"GET /kv?key=large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert_prompt(server)
        assert resident_bytes(server) - before < 200e6  # the answers would be 4 GB (S7, H5)


def resident_bytes(server: ServerProcess) -> float:
    page = server.request("GET", "/metrics").body
    match = re.search(rb"^process_resident_memory_bytes ([\d.e+]+)$", page, re.MULTILINE)
    assert match
    return float(match[1])


@pytest.mark.parametrize(
    "part",
    [
        b"P",
        b"PUT /kv?key=gone&value=x HTTP/1.1\r\nHost",
        b"PUT /kv?key=gone HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf",
        b"PUT /kv?key=gone HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    server: ServerProcess, part: bytes, reset: bool
) -> None:
    connection = open_to(server)
    connection.sendall(part)
    if reset:
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()
    assert_prompt(server)
    assert server.get("gone").status == 404


def test_a_client_that_does_not_wait_for_its_answer_has_written(server: ServerProcess) -> None:
    with open_to(server) as connection:
        connection.sendall(
            b"".join(
                b"PUT /kv?key=hasty&value=%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(100)
            )
        )
    wait_until(lambda: server.get("hasty").body == b"99")


def test_two_thousand_idle_connections(server: ServerProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("not enough file descriptors for 2,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(open_to(server)) for _ in range(2000)]
        wait_until(lambda: connections(server) > 2000)
        assert_prompt(server)
        idle[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: connections(server) < 10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connections(server: ServerProcess) -> int:
    page = server.request("GET", "/metrics").body
    match = re.search(rb"^conure_http_connections (\d+)$", page, re.MULTILINE)
    assert match
    return int(match[1])


def test_connections_are_bounded_in_number_and_time(tmp_path: Path) -> None:
    flags = ("--max-connections=5", "--idle-timeout=300ms", "--request-timeout=300ms")
    with running(tmp_path, *flags) as server, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(open_to(server)) for _ in range(3)]  # 2 more are for probes
        crowd[0].sendall(b"PUT /kv?key=k HTTP/1.1\r\n")
        probe = stack.enter_context(open_to(server))
        probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert probe.recv(1000).startswith(b"HTTP/1.1 200 ")
        one_more = stack.enter_context(open_to(server))
        one_more.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = one_more.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert crowd[0].recv(1000).startswith(b"HTTP/1.1 408 ")
        assert crowd[1].recv(1000) == b""
        assert server.put("k", b"v").status == 200
