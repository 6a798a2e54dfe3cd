"""One client against all, with real processes.

What it sends, and what it asks for and never reads, holds up neither other clients nor the messages
between nodes, and takes no memory beyond a bound.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.process import ServerProcess, running

MIB = 1 << 20
BODIES = {
    "/txn": [
        b'{"success":[' + b"[]," * (5 * MIB) + b"[]]}",
        b'{"success":[' + b"{}," * (5 * MIB) + b"{}]}",
        b"[" * 16 * MIB,
        b'{"a":"' + b"\\n" * (7 * MIB) + b'"}',
    ],
    "/kv/batch": [
        b"\n" * 16 * MIB,
        b"[" + b"{}," * (5 * MIB) + b"{}]",
    ],
    "/leader": [b"[" + b"{}," * (5 * MIB) + b"{}]"],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running(tmp_path, "--bootstrap") as process:
        yield process


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) >> 10


def test_bodies_made_to_keep_a_server_busy_take_little_memory(server: ServerProcess) -> None:
    for path, bodies in BODIES.items():
        for body in bodies:
            assert server.request("POST", path, body).status in (400, 413)
            assert server.request("GET", "/livez").status == 200
    assert peak_memory(server.process.pid) < 200


@pytest.mark.parametrize("keys", [1, 40])
def test_answers_that_nobody_reads_take_bounded_memory(server: ServerProcess, keys: int) -> None:
    """2,080 requests, 91 KiB in all, for a MiB each."""
    for n in range(keys):
        assert server.put(f"big{n}", bytes(MIB)).status == 200
    assert server.put("small", b"s").status == 200
    with contextlib.ExitStack() as clients:
        for n in range(130):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            clients.enter_context(client)
            client.sendall(
                b"".join(
                    b"GET /kv?key=big%d&stale=true HTTP/1.1\r\nHost: a\r\n\r\n" % ((n + k) % keys)
                    for k in range(16)
                )
            )
        for _ in range(5):
            assert server.request("GET", "/livez").status == 200
            assert server.get("small").body == b"s"
    assert peak_memory(server.process.pid) < 400


def test_no_election_for_a_clients_sake(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start(3)
        leader = cluster.leader()
        term = leader.status()["term"]
        for path, bodies in BODIES.items():
            for body in bodies:
                assert leader.request("POST", path, body).status in (400, 413)
        assert leader.status()["term"] == term
        assert leader.status()["is_leader"]
