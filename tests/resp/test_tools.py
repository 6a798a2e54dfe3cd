"""Real clients against a real server: what is installed of redis-cli, redis-benchmark, redis-py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member
from tests.lab.process import ROOT, resp_port, running
from tests.lab.respclient import RespClient, command
from tests.lab.respservice import RespService

FLAGS = ("--bootstrap", "--resp-addr=127.0.0.1:0")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a server speaks RESP."""
    with running(tmp_path_factory.mktemp("resp") / "data", *FLAGS) as server:
        yield resp_port(server)


def test_one_store_for_both_protocols(tmp_path: Path) -> None:
    with running(tmp_path / "data", *FLAGS) as server:
        with RespClient(resp_port(server)) as client:
            assert client.ask("SET", "k", "v") == b"OK"
            assert server.get("k").body == b"v"
            status = json.loads(server.request("GET", "/status").body)
            assert status["resp"] == f"127.0.0.1:{resp_port(server)}"
            server.put("k", b"w")
            assert client.ask("GET", "k") == b"w"
            assert client.ask("EXPIRE", "k", 100) == 1
            assert b"conure_resp_connections 1\n" in server.request("GET", "/metrics").body
        assert server.terminate() == 0
    with running(tmp_path / "data", *FLAGS) as server, RespClient(resp_port(server)) as client:
        assert client.ask("GET", "k") == b"w"
        assert 0 < client.ask("TTL", "k") <= 100


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli(port: int) -> None:
    def cli(*words: str, told: str = "") -> str:
        command = ["redis-cli", "-p", str(port), *words]
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=True)
        return done.stdout

    assert cli("SET", "greeting", "hello") == "OK\n"
    assert cli("-3", "GET", "greeting") == "hello\n"
    assert cli(told="MULTI\nINCR visits\nGET greeting\nEXEC\n").split() == [
        *("OK", "QUEUED", "QUEUED", "1", "hello")
    ]
    assert sorted(cli("--scan").split()) == ["greeting", "visits"]
    assert cli("DEL", "greeting", "visits") == "2\n"


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_the_readme_shows_what_redis_cli_prints(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    shown = page.partition("\n## Redis clients\n")[2].split("```\n")[1]
    _, found, session = shown.partition("$ redis-cli -p 9090\n")
    assert found
    typed = re.findall(r"^127.0.0.1:9090(?:\(TX\))?> (.*)$", session, re.MULTILINE)
    printed = re.sub(r"^127.0.0.1:9090.*\n", "", session, flags=re.MULTILINE)
    assert len(typed) > 5
    with running(tmp_path / "data", *FLAGS) as server:
        command = ["redis-cli", "--no-raw", "-p", str(resp_port(server))]
        told = "".join(f"{line}\n" for line in typed)
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=True)
        assert done.stdout == printed
        assert server.get("greeting").body == b"hello"


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="it is not installed")
@pytest.mark.parametrize("depth", [1, 16])
def test_redis_benchmark(port: int, depth: int) -> None:
    command = ["redis-benchmark", "-p", str(port), "-n", "1000", "-c", "20", "-P", str(depth)]
    command += ["-t", "ping,get,set,incr,mset", "--csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 7
    assert "rror" not in done.stdout + done.stderr


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(port: int, protocol: int) -> None:
    redis = pytest.importorskip("redis")
    with redis.Redis(port=port, protocol=protocol, decode_responses=True) as client:
        assert client.set("k", "v", ex=100)
        assert client.get("k") == "v"
        assert 0 < client.ttl("k") <= 100
        with client.pipeline() as pipe:
            assert pipe.set("n", 1).incr("n").get("n").execute() == [True, 2, "2"]
        with client.lock("lock", timeout=10) as lock:
            assert client.get("lock") is not None
            assert lock.extend(5)
        assert client.get("lock") is None
        with client.pipeline() as pipe:
            pipe.watch("n")
            client.set("n", 5)
            pipe.multi()
            pipe.set("n", 6)
            with pytest.raises(redis.WatchError):
                pipe.execute()
        assert {"k", "n"} <= set(client.scan_iter("*"))
        assert client.info()["loading"] == 0
        assert client.flushall()


def test_the_page_has_a_row_for_each_command() -> None:
    service = RespService()
    commands = {id(each): each for each in service.resp.front.commands.values()}.values()
    ours = set()
    for each in commands:
        if each.arity == -1 or not each.subcommands:
            ours.add(each.name.upper())
        ours |= {sub.name.upper().replace("|", " ") for sub in each.subcommands.values()}
    service.close()
    page = (ROOT / "docs" / "redis.md").read_text()
    table = page[page.index("\n## The commands") : page.index("\n## Error codes")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    shown = [name for row in rows for name in re.findall("`([A-Z -]+)`", row)]
    assert len(shown) == len(set(shown))
    assert set(shown) == ours


def test_messages_reach_the_subscribers_of_all_nodes(tmp_path: Path) -> None:
    """Three processes; the leader is killed, and everybody subscribes again."""
    with Cluster(tmp_path, "--resp-addr=127.0.0.1:0") as cluster:
        cluster.start(3)
        leader = cluster.leader()

        def connect(member: Member) -> RespClient:
            port = int(member.status()["resp"].rpartition(":")[2])
            client = RespClient(port)
            assert client.ask("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]
            return client

        def publish(member: Member, text: str) -> None:
            with RespClient(int(member.status()["resp"].rpartition(":")[2])) as client:
                assert client.ask("PUBLISH", "c", text) == 1

        listeners = {member.name: connect(member) for member in cluster.members}
        for member in cluster.members:
            publish(member, member.name)
            for client in listeners.values():
                assert client.read() == [b"message", b"c", member.name.encode()]
        with connect(leader) as asking, connect(cluster.followers()[0]) as shard:
            shard.send(command("SSUBSCRIBE", "c"))
            assert shard.read() == [b"ssubscribe", b"c", 1]
            asking.send(command("UNSUBSCRIBE") + command("SPUBLISH", "c", "of a shard"))
            assert [asking.read() for _ in range(2)][1] == 0
            assert shard.read() == [b"smessage", b"c", b"of a shard"]
        leader.kill()
        followers = [member for member in cluster.members if member is not leader]
        for member in followers:
            assert listeners[member.name].read_to_end() == b""
        cluster.leader()
        for client in listeners.values():
            client.close()
        listeners = {member.name: connect(member) for member in followers}
        publish(followers[0], "again")
        for client in listeners.values():
            assert client.read() == [b"message", b"c", b"again"]
            client.close()
