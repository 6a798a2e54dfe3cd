"""Rude clients of RESP, full disks, lost leaders and cut links, met by real processes.

What must hold: one client never holds up another, of whichever protocol; an error tells whether
anything was done; and what was acknowledged is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cluster import Cluster, Member, Workload, wait_until
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


@contextlib.contextmanager
def as_many_files_as_may_be() -> Iterator[int]:
    """Let this process open as many files as it may, and tell how many, for the length of the
    block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kibibytes(server: ServerProcess) -> int:
    facts = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in facts.splitlines() if "VmRSS" in line))


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


def test_ten_thousand_connections_that_say_nothing(tmp_path: Path) -> None:
    """About: of the files that a server may open here, clients of HTTP and tables get some."""
    with contextlib.ExitStack() as stack:
        open_files = stack.enter_context(as_many_files_as_may_be())
        flags = (*FLAGS, "--resp-max-connections=11000")
        server = stack.enter_context(running(tmp_path / "data", *flags))
        with RespClient(resp_port(server)) as client:
            found = re.search(rb"maxclients:(\d+)", client.ask("INFO", "clients"))
            assert found is not None
            count = min(10_000, int(found[1]) - 100, open_files - 500)
            before = resident_kibibytes(server)
            with contextlib.ExitStack() as idle:
                for _ in range(count):
                    idle.enter_context(RespClient(resp_port(server)))
                told = b"connected_clients:%d\r\n" % (count + 1)
                wait_until(lambda: told in client.ask("INFO", "clients"))
                with others_are_served(server):
                    for number in range(200):
                        assert client.ask("INCR", "n") == number + 1
                    assert client.ask("CLIENT", "LIST").count(b"\n") == count + 1
                assert resident_kibibytes(server) - before < 8 * count
            wait_until(lambda: b"connected_clients:1\r\n" in client.ask("INFO", "clients"))


def test_storms_of_subscribers_that_leave(server: ServerProcess) -> None:
    ended = threading.Event()
    errors: list[BaseException] = []

    def come_and_go(number: int) -> None:
        try:
            while not ended.is_set():
                with RespClient(resp_port(server)) as client:
                    names = [f"c{number}-{each}" for each in range(100)]
                    client.send(command("SUBSCRIBE", "all", *names) + command("PSUBSCRIBE", "a*"))
                    client.read()  # and goes, whatever is still on its way
        except BaseException as error:  # noqa: BLE001  # shown below
            errors.append(error)

    threads = [threading.Thread(target=come_and_go, args=(each,)) for each in range(4)]
    with RespClient(resp_port(server)) as listener, RespClient(resp_port(server)) as publisher:
        assert listener.ask("SUBSCRIBE", "all") == [b"subscribe", b"all", 1]
        for thread in threads:
            thread.start()
        try:
            with others_are_served(server):
                for number in range(150):
                    assert publisher.ask("PUBLISH", "all", number) >= 1
                    assert listener.read() == [b"message", b"all", b"%d" % number]
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not errors
        wait_until(lambda: publisher.ask("PUBSUB", "NUMSUB", "all") == [b"all", 1])
        assert publisher.ask("PUBSUB", "CHANNELS") == [b"all"]
        assert publisher.ask("PUBSUB", "NUMPAT") == 0


def test_messages_are_no_entries_of_the_log(server: ServerProcess) -> None:
    def last() -> int:
        return int(json.loads(server.request("GET", "/status").body)["applied_index"])

    with RespClient(resp_port(server)) as client, RespClient(resp_port(server)) as listener:
        listener.ask("SUBSCRIBE", "c")
        before = last()
        for number in range(50):
            assert client.ask("PUBLISH", "c", number) == 1
            assert listener.read() == [b"message", b"c", b"%d" % number]
        assert last() == before
        assert client.ask("SET", "k", "v") == b"OK"
        assert last() == before + 1


def test_what_is_too_long_is_told_with_the_limit(tmp_path: Path) -> None:
    flags = (*FLAGS, "--max-value-bytes=1000", "--max-body-bytes=2000")
    with running(tmp_path / "data", *flags) as server, RespClient(resp_port(server)) as client:
        for words in (["SET", "k", "v" * 1001], ["MSET", "a", "b", "k", "v" * 1001]):
            told = str(client.ask(*words))
            assert told.startswith("ERR ")
            assert "1,000" in told
        told = str(client.ask("SET", "k" * 1025, "v"))
        assert told.startswith("ERR ")
        assert "1,024" in told
        assert client.ask("SET", "k", "v" * 1000) == b"OK"
        assert code_of(client.ask("APPEND", "k", "v")) == "ERR"
        assert client.ask("STRLEN", "k") == 1000
        assert client.ask("EXISTS", "a") == 0
        client.send(b"*2\r\n$3\r\nGET\r\n$2001\r\n")
        told = "ERR Protocol error: invalid bulk length"
        assert client.read_to_end() == f"-{told}\r\n".encode()


def test_a_node_that_is_no_member_yet(tmp_path: Path) -> None:
    with (
        running(tmp_path / "data", "--bootstrap=false", "--resp-addr=127.0.0.1:0") as server,
        RespClient(resp_port(server)) as client,
    ):
        assert client.ask("PING") == b"PONG"
        assert b"redis_version:" in client.ask("INFO")
        loading = ErrorReply("LOADING this node is no member of a cluster yet")
        for words in (
            ["GET", "k"], ["SET", "k", "v"], ["INCR", "n"], ["MGET", "a", "b"], ["DBSIZE"],
            ["SCAN", "0"], ["FLUSHALL"], ["WATCH", "k"], ["PUBLISH", "c", "m"], ["SUBSCRIBE", "c"],
        ):  # fmt: skip
            assert client.ask(*words) == loading, words
        client.send(command("SET", "k", "v") * 3 + command("GET", "k") * 3)
        assert [client.read() for _ in range(6)] == [loading] * 6
        client.send(command("MULTI") + command("SET", "k", "v") + command("EXEC"))
        assert [client.read() for _ in range(3)] == [b"OK", b"QUEUED", loading]


def test_multi_without_end_and_too_many_watched_keys(server: ServerProcess) -> None:
    with RespClient(resp_port(server)) as client, others_are_served(server):
        assert client.ask("MULTI") == b"OK"
        client.send(command("SET", "k", "v") * 12_000)
        replies = [client.read() for _ in range(12_000)]
        assert code_of(next(each for each in replies if each != b"QUEUED")) == "ERR"
        assert code_of(client.ask("EXEC")) == "EXECABORT"
        assert client.ask("EXISTS", "k") == 0
        keys = [b"w%d" % number for number in range(10_000)]
        assert client.ask("WATCH", *keys) == ErrorReply(
            "ERR too many keys are watched, the limit is 2,000"
        )
        assert client.ask("WATCH", *keys[:2000]) == b"OK"
        assert client.ask("SET", keys[1999], "v") == b"OK"
        client.send(command("MULTI") + command("SET", "k", "v") + command("EXEC"))
        assert [client.read() for _ in range(3)] == [b"OK", b"QUEUED", None]
        assert client.ask("EXISTS", "k") == 0


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


def test_histories_of_both_protocols_while_links_are_cut(tmp_path: Path) -> None:
    """Leaders are cut off, whole and in one direction: whatever was answered is true."""
    if reason := why_not():
        pytest.skip(reason)
    flags = ("--barrier-timeout=500ms", "--write-timeout=1s", "--follower-mode=forward")
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(contextlib.closing(Lab(3)))
        stack.enter_context(lab.enter())
        cluster = stack.enter_context(Cluster(tmp_path, *flags, lab=lab, resp=True))
        cluster.start(3)
        numbers = {member: number for number, member in enumerate(cluster.members, 1)}
        with Workload(cluster, clients=2, resp_clients=3) as load:
            for is_whole in (True, False):
                load.wait_for_writes(25)
                old, others = cluster.leader(), cluster.followers()
                if is_whole:
                    lab.cut(numbers[old], *(numbers[each] for each in others))
                else:
                    for each in others:
                        lab.cut_one_way(numbers[old], numbers[each])
                cluster.leader(others)
                load.wait_for_writes(25)
                lab.heal()
                load.wait_for_writes(25)
        assert {operation.client for operation in load.history} == set(range(5))
        load.check()
        cluster.wait_until_equal()
