"""kill -9 at any moment: every acknowledged write is there afterwards, and nothing else.

Real processes, real files. The writers note for each key what they sent and what was
acknowledged; what may stand there after the kill is the last acknowledged value, or one that was
sent after it (R8: its outcome is unknown).
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest

from tests.lab.process import ServerProcess, running, wait_until

ROUNDS = [
    pytest.param([], id="defaults"),
    pytest.param(["--checkpoint-entries=20"], id="checkpoints"),
    pytest.param(["--log-segment-bytes=64KiB"], id="segments"),
    pytest.param(
        ["--checkpoint-entries=50", "--log-segment-bytes=64KiB", "--cache-bytes=1MiB"], id="both"
    ),
]


class Writer(threading.Thread):
    """Writes to keys of its own over one connection, in pipelined runs, until it is cut off."""

    def __init__(
        self, port: int, name: bytes, seed: int, values: dict[bytes, list[bytes | None]]
    ) -> None:
        super().__init__()
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.prefix = name
        self.values = values
        self.random = random.Random(b"%b %d" % (name, seed))
        self.acknowledged = 0

    def run(self) -> None:
        with contextlib.suppress(OSError), self.connection:
            while True:
                self.run_of(self.random.randrange(1, 20))

    def run_of(self, count: int) -> None:
        """Send *count* requests and wait for as many answers, noting each as it comes."""
        sent: list[bytes] = []
        requests = []
        for _ in range(count):
            key = b"%b-%d" % (self.prefix, self.random.randrange(40))
            value: bytes | None = None
            if self.random.random() < 0.85:
                value = self.random.randbytes(self.random.choice([0, 1, 20, 100, 3000]))
            sent.append(key)
            self.values.setdefault(key, [None]).append(value)  # noted before it is sent
            body = b"" if value is None else value
            requests.append(
                b"%b /kv?key=%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                % (b"DELETE" if value is None else b"PUT", key, len(body), body)
            )
        self.connection.sendall(b"".join(requests))
        pending = b""
        for key in sent:
            while b"OK\n" not in pending:
                part = self.connection.recv(65536)
                if not part:
                    raise ConnectionError
                pending += part
            answer, _, pending = pending.partition(b"OK\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            del self.values[key][0]  # what was there before this write can't come back any more
            self.acknowledged += 1


def values_in(server: ServerProcess, keys: list[bytes]) -> list[bytes | None]:
    """Read many keys over one connection."""
    found: list[bytes | None] = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        stream = connection.makefile("rb")
        for start in range(0, len(keys), 200):
            group = keys[start : start + 200]
            connection.sendall(
                b"".join(
                    b"GET /kv?key=%b HTTP/1.1\r\nHost: x\r\n\r\n" % quote_from_bytes(key).encode()
                    for key in group
                )
            )
            for _ in group:
                status = int(stream.readline().split()[1])
                length = 0
                while (line := stream.readline()) != b"\r\n":
                    if line.startswith(b"Content-Length: "):
                        length = int(line[16:])
                body = stream.read(length)
                assert status in (200, 404), (status, body)
                found.append(body if status == 200 else None)
        stream.close()
    return found


def records_in(server: ServerProcess) -> int:
    page = server.request("GET", "/metrics").body.decode()
    match = re.search(r"^conure_db_records (\d+)$", page, re.MULTILINE)
    assert match
    return int(match[1])


def verify(server: ServerProcess, values: dict[bytes, list[bytes | None]]) -> None:
    """Compare what the server has with what it may have; what it has is certain from now on."""
    keys = list(values)
    found = values_in(server, keys)
    for key, value in zip(keys, found, strict=True):
        assert value in values[key], (key, value, values[key])
        values[key] = [value]
    assert records_in(server) == sum(value is not None for value in found)  # and nothing else


@pytest.mark.parametrize("flags", ROUNDS)
def test_acknowledged_writes_outlive_a_kill_at_any_moment(
    tmp_path: Path, flags: list[str], request: pytest.FixtureRequest
) -> None:
    moment = random.Random(request.node.name)
    values: dict[bytes, list[bytes | None]] = {}
    written = 0
    for number in range(3):
        with running(tmp_path, *flags) as server:
            verify(server, values)
            writers = [Writer(server.port, b"%d" % n, number, values) for n in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(moment.uniform(0.05, 0.4))  # the fault itself: a kill at a random moment
            server.kill()
            for writer in writers:
                writer.join()
            written += sum(writer.acknowledged for writer in writers)
    assert written > 100
    with running(tmp_path, *flags) as server:
        verify(server, values)
        assert server.terminate() == 0
    with running(tmp_path, *flags) as server:
        verify(server, values)


def test_a_kill_during_the_start_loses_nothing(tmp_path: Path) -> None:
    moment = random.Random(7)
    acknowledged = {}
    for number in range(6):
        flags = ("--checkpoint-entries=5", "--log-segment-bytes=64KiB")
        server = ServerProcess(tmp_path, *flags, fresh=True)
        try:
            if number % 3 == 0:
                server.wait_until_listening()
                key = b"%d" % number
                assert server.put(key, key * 1000).status == 200
                acknowledged[key] = key * 1000
            else:
                time.sleep(moment.uniform(0.05, 0.35))  # the fault itself
        finally:
            server.kill()
    with running(tmp_path) as server:
        assert values_in(server, list(acknowledged)) == list(acknowledged.values())


def test_the_first_start_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    moment = random.Random(11)
    for _ in range(6):
        server = ServerProcess(tmp_path / "data", fresh=True)
        time.sleep(moment.uniform(0.08, 0.25))  # the fault itself
        server.kill()
    with running(tmp_path / "data") as server:
        assert json.loads(server.request("GET", "/status").body)["is_leader"] is True
        assert server.put("k", b"v").status == 200
        assert records_in(server) == 1


def test_a_hundred_thousand_records_outlive_a_kill(tmp_path: Path) -> None:
    count, connections, run = 100_000, 4, 250
    values = {b"key-%d" % n: b"value of %d, and some more of it" % n for n in range(count)}
    keys = list(values)

    def load(port: int, share: list[bytes]) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for start in range(0, len(share), run):
                group = share[start : start + run]
                connection.sendall(
                    b"".join(
                        b"PUT /kv?key=%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                        % (key, len(values[key]), values[key])
                        for key in group
                    )
                )
                answers = b""
                while answers.count(b"OK\n") < len(group):
                    part = connection.recv(1 << 20)
                    assert part, answers
                    answers += part
                assert answers.count(b"HTTP/1.1 200 OK\r\n") == len(group)
                acknowledged.extend(group)

    acknowledged: list[bytes] = []
    with running(tmp_path, "--checkpoint-entries=30000") as server:
        threads = [
            threading.Thread(target=load, args=(server.port, keys[n::connections]))
            for n in range(connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(acknowledged) == count
        server.kill()
    with running(tmp_path) as server:
        assert records_in(server) == count
        assert dict(zip(keys, values_in(server, keys), strict=True)) == values
        assert server.terminate() == 0
    with running(tmp_path) as server:
        assert records_in(server) == count
        assert "at index" in server.text


def test_the_log_is_cut_and_its_space_used_again(tmp_path: Path) -> None:
    flags = ["--checkpoint-entries=200", "--log-segment-bytes=64KiB"]
    with running(tmp_path, *flags) as server:
        values: dict[bytes, list[bytes | None]] = {}
        writer = Writer(server.port, b"w", 0, values)
        largest = 0
        with writer.connection:
            for _ in range(120):
                writer.run_of(25)
                largest = max(largest, bytes_in(tmp_path / "raft"))
            assert writer.acknowledged == 3000

        def is_short() -> bool:
            return len(list((tmp_path / "raft").glob("*.log"))) <= 3

        wait_until(is_short)
        assert largest < 1 << 20  # that much is written, and more
        server.kill()
    with running(tmp_path, *flags) as server:
        verify(server, values)


def bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been renamed or removed just now
            size += path.stat().st_size
    return size
