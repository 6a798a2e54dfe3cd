"""Rude clients of RESP, full disks, lost leaders and cut links, met by real processes.

What must hold: one client never holds up another, of whichever protocol; an error tells whether
anything was done; and what was acknowledged is there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.netns import Lab, why_not
from tests.lab.process import ServerProcess, resp_port, running
from tests.lab.respclient import ErrorReply, RespClient, command

PATIENCE = 1.0  # seconds: milliseconds on a machine that does nothing else
FLAGS = ("--bootstrap", "--resp-addr=127.0.0.1:0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running(tmp_path / "data", *FLAGS, "--slow-request=1ms") as server:
        yield server
        assert "Traceback" not in server.text


@contextlib.contextmanager
def others_are_served(server: ServerProcess) -> Iterator[None]:
    """See that for the length of the block /livez is answered soon."""
    took: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            begun = time.monotonic()
            assert server.request("GET", "/livez").status == 200
            took.append(time.monotonic() - begun)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
        wait_until(lambda: len(took) >= 3)
    finally:
        done.set()
        thread.join()
    assert max(took) < PATIENCE


def code_of(reply: Any) -> str:
    assert isinstance(reply, ErrorReply), reply
    return str(reply).partition(" ")[0]


# -- clients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("SET", "k", "v"), ("INCR", "n"), ("GET", "k"), ("FOO",)])
def test_a_pipeline_of_100_000(server: ServerProcess, words: Sequence[str]) -> None:
    with RespClient(resp_port(server)) as client, others_are_served(server):
        sending = threading.Thread(target=client.send, args=(command(*words) * 100_000,))
        sending.start()
        replies = [client.read() for _ in range(100_000)]
        sending.join()
    if words[0] == "INCR":
        assert replies == list(range(1, 100_001))
    else:
        assert len(set(map(str, replies))) == 1


def test_readers_that_never_read(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RespClient(resp_port(server))) for _ in range(10)]
        assert clients[0].ask("SET", "big", b"x" * 1_000_000) == b"OK"
        with others_are_served(server):
            for client in clients:
                client.send(command("GET", "big") * 300)
            with RespClient(resp_port(server)) as client:
                assert client.ask("INCR", "n") == 1
        peak = Path(f"/proc/{server.process.pid}/status").read_text()
        kibibytes = next(line.split()[1] for line in peak.splitlines() if "VmHWM" in line)
        assert int(kibibytes) < 500_000  # of 3 GB that they have asked for


def test_a_thousand_connections_that_say_nothing(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(900):
            stack.enter_context(RespClient(resp_port(server)))
        with others_are_served(server), RespClient(resp_port(server)) as client:
            assert client.ask("PING") == b"PONG"
            wait_until(lambda: b"connected_clients:901\r\n" in client.ask("INFO", "clients"))
    with RespClient(resp_port(server)) as client:
        wait_until(lambda: b"connected_clients:1\r\n" in client.ask("INFO", "clients"))


def test_multi_without_end_and_too_many_watched_keys(server: ServerProcess) -> None:
    with RespClient(resp_port(server)) as client, others_are_served(server):
        assert client.ask("MULTI") == b"OK"
        client.send(command("SET", "k", "v") * 12_000)
        replies = [client.read() for _ in range(12_000)]
        assert code_of(next(each for each in replies if each != b"QUEUED")) == "ERR"
        assert code_of(client.ask("EXEC")) == "EXECABORT"
        assert client.ask("EXISTS", "k") == 0
        keys = [b"w%d" % number for number in range(10_000)]
        watched = client.ask("WATCH", *keys)
        assert client.ask("MULTI") == b"OK"
        assert client.ask("SET", "k", "v") == b"QUEUED"
        done = client.ask("EXEC")
        assert "watched" in str(watched if isinstance(watched, ErrorReply) else done)


def test_what_took_long_is_in_the_slow_log(server: ServerProcess) -> None:
    with RespClient(resp_port(server)) as client:
        value = b"v" * 1000
        for _ in range(20):
            client.ask("MSET", *[word for n in range(500) for word in (b"k%d" % n, value)])
        wait_until(lambda: client.ask("SLOWLOG", "LEN") > 0)
        _, _, took, words, *_ = client.ask("SLOWLOG", "GET", 1)[0]
        assert took >= 1000
        assert words[0] in (b"MSET", b"SLOWLOG")
        assert len(words) <= 32
        assert client.ask("SLOWLOG", "RESET") == b"OK"


def test_a_request_of_http_does_nothing(server: ServerProcess) -> None:
    requests = [
        b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nSET attacked yes\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nSET attacked yes\r\n",
    ]
    for request in requests:
        with RespClient(resp_port(server)) as client:
            client.send(request)
            with contextlib.suppress(ConnectionResetError):
                assert b"+OK" not in client.read_to_end()
    assert server.get("attacked").status == 404


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="small disks need root")
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", script, str(disk)]
    if subprocess.run([*wrapper, "true"], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    flags = (*FLAGS, "--log-segment-bytes=64KiB")
    with running(disk / "data", *flags, wrapper=wrapper) as server:
        with RespClient(resp_port(server)) as client:
            value = b"v" * 50_000
            written = 0
            while (reply := client.ask("SET", b"k%d" % written, value)) == b"OK":
                written += 1
            assert code_of(reply) == "OOM"
            assert written > 10
            assert code_of(client.ask("MSET", "a", value, "b", value)) == "OOM"
            assert code_of(client.ask("APPEND", "k0", value)) == "OOM"
            client.send(command("MULTI") + command("SET", "a", value) + command("EXEC"))
            assert code_of([client.read() for _ in range(3)][-1]) == "OOM"
            assert client.ask("EXISTS", "a", "b") == 0
            assert client.ask("STRLEN", "k0") == len(value)
            assert client.ask("GET", b"k%d" % (written - 1)) == value
            assert server.request("GET", "/livez").status == 200
        assert "Traceback" not in server.text


# -- leaders and links -----------------------------------------------------------------------------


def client_of(member: Member) -> RespClient:
    wait_until(lambda: member.resp_port > 0)
    return RespClient(member.resp_port, member.host)


def test_without_a_leader(tmp_path: Path) -> None:
    flags = ("--barrier-timeout=500ms", "--write-timeout=1s")
    with Cluster(tmp_path, *flags, resp=True) as cluster:
        cluster.start(3)
        follower = cluster.followers()[0]
        with client_of(follower) as client:
            assert client.ask("SET", "k", "v") == b"OK"
            assert client.ask("GET", "k") == b"v"
            for member in cluster.members:
                if member is not follower:
                    member.kill()
            wait_until(lambda: not follower.status()["leader_id"])
            for words in (["SET", "k", "w"], ["INCR", "n"], ["GET", "k"], ["WATCH", "k"]):
                assert str(client.ask(*words)) == "CLUSTERDOWN no leader is known, try again"
            client.send(command("MULTI") + command("SET", "k", "w") + command("EXEC"))
            assert code_of([client.read() for _ in range(3)][-1]) == "CLUSTERDOWN"
            assert client.ask("READONLY") == b"OK"
            assert client.ask("GET", "k") == b"v"
            for member in cluster.members:
                if member is not follower:
                    member.start()
            cluster.leader()
            wait_until(lambda: client.ask("SET", "k", "x") == b"OK")
            assert client.ask("READWRITE") == b"OK"
            assert client.ask("GET", "k") == b"x"


def test_a_follower_is_cut_off(tmp_path: Path) -> None:
    """Its clients keep their connections, and each command has an answer that is true."""
    if reason := why_not():
        pytest.skip(reason)
    flags = ("--barrier-timeout=500ms", "--write-timeout=1s")
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(contextlib.closing(Lab(3)))
        stack.enter_context(lab.enter())
        cluster = stack.enter_context(Cluster(tmp_path, *flags, lab=lab, resp=True))
        cluster.start(3)
        follower = cluster.followers()[0]
        numbers = {member: number for number, member in enumerate(cluster.members, 1)}
        own = numbers.pop(follower)
        client = stack.enter_context(client_of(follower))
        assert client.ask("INCR", "n") == 1
        lab.cut(own, *numbers.values())
        unknown = 0
        for _ in range(5):
            reply = client.ask("INCR", "n")
            assert code_of(reply) in ("UNKNOWN", "CLUSTERDOWN", "TRYAGAIN")
            unknown += code_of(reply) == "UNKNOWN"
        assert code_of(client.ask("GET", "n")) in ("CLUSTERDOWN", "TRYAGAIN")
        lab.heal()
        wait_until(lambda: isinstance(client.ask("GET", "n"), bytes))
        assert 1 <= int(client.ask("GET", "n")) <= 1 + unknown
