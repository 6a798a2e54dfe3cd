"""Real servers of both engines in one cluster: they hold the same, and take each other's states."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.engines import TOLD
from tests.lab.process import ROOT, ServerProcess, running

SMALL = (
    "--log-segment-bytes=64KiB",
    "--checkpoint-entries=100",
    "--checkpoint-log-bytes=8KiB",
    "--max-mem-size=64KiB",
)
pytestmark = pytest.mark.skipif(TOLD != "", reason="these have both engines")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three members that are not started yet: node1 has the B-tree, the others the LSM engine."""
    with Cluster(tmp_path, *SMALL) as cluster:
        for engine in ("btree", "lsm", "lsm"):
            cluster.add(f"--engine={engine}")
        yield cluster


def told(command: str, data: Path, *flags: str) -> str:
    argv = [sys.executable, str(ROOT / "conuredb.py"), command, str(data), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout


def batch(cluster: Cluster, number: int, size: int = 300) -> None:
    lines = [
        json.dumps({"key": f"key-{(number * 37 + each) % 500}", "value": f"{number}" * size})
        for each in range(60)
    ]
    answer = cluster.leader().request("POST", "/kv/batch", "\n".join(lines).encode(), follow=True)
    assert answer.status == 200, answer


def test_members_of_both_engines_hold_the_same(cluster: Cluster) -> None:
    """While one is killed, another one is sent a whole state, and all checkpoint and merge."""
    cluster.start()
    assert [member.status()["engine"] for member in cluster.members] == ["btree", "lsm", "lsm"]
    for number in range(10):
        batch(cluster, number)
    cluster[3].kill()
    for number in range(10, 20):
        batch(cluster, number)
    cluster[3].launch().wait_until_listening()
    fourth = cluster.add("--engine=lsm")
    fourth.launch(f"--join={cluster[1].url}").wait_until_listening()
    cluster.wait_until_voters(4)
    for number in range(20, 25):
        batch(cluster, number, 3000)
    deadline = time.monotonic() + 2.5  # the leader asks every second for what differs
    while time.monotonic() < deadline:
        batch(cluster, 25)
    leader = cluster.leader()
    wait_until(lambda: len({member.applied() for member in cluster.members}) == 1)
    for member in cluster.members:
        assert member.is_running, member.text
    for member in [*[each for each in cluster.members if each is not leader], leader]:
        member.terminate()
    dumps = {told("dump", member.data) for member in cluster.members}
    assert len(dumps) == 1
    facts = [json.loads(told("stats", member.data, "--json")) for member in cluster.members]
    assert [each["engine"] for each in facts] == ["btree", "lsm", "lsm", "lsm"]
    digests = {each["applied_index"]: {each["digest"]} for each in facts}
    for each in facts:
        digests[each["applied_index"]].add(each["digest"])
    assert all(len(each) == 1 for each in digests.values())
    for member in cluster.members:
        told("check", member.data)


def test_a_cluster_changes_its_engine_while_it_serves(tmp_path: Path) -> None:
    """A member at a time is removed and comes back empty, as docs/engines.md says."""
    with Cluster(tmp_path, *SMALL) as cluster:
        for _ in range(3):
            cluster.add("--engine=btree")
        cluster.start()
        batch(cluster, 0)
        for member in cluster.members:
            stay = [each for each in cluster.members if each is not member]
            assert stay[0].post("/remove", {"ID": member.name}).status == 200
            assert member.terminate() == 0
            member.wipe()
            member.flags.append("--engine=lsm")
            member.start(f"--join={stay[0].url}")
            cluster.wait_until_voters(3)
            batch(cluster, 1)
        cluster.wait_until_equal()
        assert {member.status()["engine"] for member in cluster.members} == {"lsm"}
        assert len({str(contents(member)) for member in cluster.members}) == 1


def contents(member: Member) -> list[dict[str, object]]:
    answer = member.request("GET", "/kv?prefix=&stale=true")
    items: list[dict[str, object]] = json.loads(answer.body)["items"]
    assert len(items) == 97
    return items


def test_each_engine_gets_the_others_backup(tmp_path: Path) -> None:
    contents = []
    source = tmp_path / "0"
    with running(source, "--engine=btree", *SMALL) as server:
        fill(server)
        contents.append(told_of(server))
        backup = server.request("GET", "/backup").body
    for number, engine in enumerate(("lsm", "btree", "lsm"), 1):
        file, data = tmp_path / f"{number}.backup", tmp_path / str(number)
        file.write_bytes(backup)
        told("restore", file, f"--data-dir={data}", f"--engine={engine}")
        with running(data, "--node-id=node1", *SMALL) as server:
            wait_until(lambda: server.request("GET", "/readyz").status == 200)
            assert json.loads(server.request("GET", "/status").body)["engine"] == engine
            contents.append(told_of(server))
            backup = server.request("GET", "/backup").body
    assert contents == contents[:1] * 4


def fill(server: ServerProcess) -> None:
    wait_until(lambda: server.request("GET", "/readyz").status == 200)
    for number in range(300):
        assert server.put(f"key-{number % 200}", b"%d" % number * (number % 9 * 40)).status == 200
    assert server.put("long", bytes(100_000)).status == 200


def told_of(server: ServerProcess) -> list[dict[str, object]]:
    answer = server.request("GET", "/kv?prefix=&limit=1000", headers={"Accept": "application/json"})
    assert answer.status == 200, answer
    items: list[dict[str, object]] = json.loads(answer.body)["items"]
    assert len(items) == 201
    return items
