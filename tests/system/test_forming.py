"""Clusters of real processes that are formed by a list: one cluster or none, whatever is killed."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.process import ROOT
from tests.lab.respclient import RespClient

IN_TIME = 10.0
"""Seconds from the last start until a leader is there; one on an idle machine."""


def with_lists(cluster: Cluster, count: int, *flags: str, arbiter: bool = False) -> list[Member]:
    """Make members, each with the list of the others; none is started."""
    members = [cluster.add(*flags) for _ in range(count)]
    for member in members:
        give_list(member, members)
    if arbiter:
        members[-1].flags.append("--role=arbiter")
    return members


def give_list(member: Member, members: Sequence[Member]) -> None:
    others = ",".join(each.raft_address for each in members if each is not member)
    member.flags.append(f"--peers={others}")


def cluster_ids(members: Sequence[Member]) -> set[str]:
    """Return what clusters the directories say they are of, "" for none."""
    found = set()
    for member in members:
        identity = member.data / "identity.json"
        found.add(json.loads(identity.read_text())["cluster_id"] if identity.exists() else "")
    return found


def is_formed(members: Sequence[Member]) -> bool:
    ids = {member.status().get("cluster_id", "") for member in members}
    return len(ids) == 1 and "" not in ids


@pytest.mark.parametrize(("count", "arbiter"), [(2, False), (3, False), (3, True), (5, False)])
def test_a_list_becomes_a_cluster(tmp_path: Path, count: int, arbiter: bool) -> None:
    with Cluster(tmp_path, resp=True) as cluster:
        *first, last = with_lists(cluster, count, arbiter=arbiter)
        for member in first:
            member.launch()
        for member in first:
            member.wait_until_listening()
            wait_until(lambda: "can't be reached" in str(first[0].status().get("forming")))
            assert member.status()["cluster_id"] == ""
        started = time.monotonic()
        last.start()
        wait_until(lambda: is_formed(cluster.members))
        cluster.leader()
        assert time.monotonic() - started < IN_TIME
        cluster.wait_until_voters(count)
        for number, member in enumerate(first):
            assert member.put(f"k{number}", b"v").status == 200
            assert member.get(f"k{number}").body == b"v"
        leader = cluster.leader()
        with RespClient(leader.resp_port, leader.host) as client:
            assert client.ask("SET", "r", "x") in ("OK", b"OK")
        cluster.wait_until_equal()
        assert all(member.status()["forming"] is None for member in cluster.members)
        roles = {server["role"] for server in leader.servers().values()}
        assert roles == ({"data", "arbiter"} if arbiter else {"data"})


def test_wildcards_and_the_same_list_for_all(tmp_path: Path) -> None:
    """Nodes that name no host are where the others list them; here even the lists are the same."""
    with Cluster(tmp_path) as cluster:
        members = [cluster.add() for _ in range(3)]
        everyone = [f"{member.name}@localhost:{member.raft_port}" for member in members]
        for member in members:
            member.flags += [
                f"--raft-addr=:{member.raft_port}",
                f"--http-addr=:{member.http_port}",
                f"--peers={','.join(everyone)}",
                "--allowed-hosts=*",
            ]
            member.launch()
        for member in members:
            member.wait_until_listening()
        wait_until(lambda: is_formed(members))
        leader = cluster.leader()
        for member in members:
            server = leader.servers()[member.name]
            assert server["address"] == f"localhost:{member.raft_port}"
            assert server["http_address"] == f"http://localhost:{member.http_port}"
        assert members[0].put("k", b"v").status == 200
        members[0].terminate()
        members[0].start()
        cluster.wait_until_equal()


@pytest.mark.parametrize("seed", range(4))
def test_killed_and_wiped_amid_it(tmp_path: Path, seed: int) -> None:
    """At drawn moments nodes are killed, and some of them lose their directories. In the end there
    is one cluster, and who lost a directory that it names waits to be removed."""
    rng = random.Random(f"formation/{seed}")
    with Cluster(tmp_path) as cluster:
        members = with_lists(cluster, rng.choice([2, 3, 3]))
        for member in members:
            member.launch()
        wiped = 0
        for _ in range(8):
            time.sleep(rng.uniform(0.0, 0.25))
            member = rng.choice(members)
            member.kill()
            if rng.random() < 0.3 and member.data.exists():
                member.wipe()
                wiped += 1
            assert len(cluster_ids(members) - {""}) <= 1
            member.launch()
        for member in members:
            member.wait_until_listening()
        wait_until(lambda: all(is_settled(member) for member in members))
        assert len(cluster_ids(members) - {""}) == 1
        outside = [member for member in members if not member.status()["cluster_id"]]
        if not outside:
            assert cluster.leader().put("k", b"v").status == 200
            cluster.wait_until_equal()
        assert len(outside) <= wiped
        logs = "\n".join(member.whole_text for member in members)
        assert "Traceback" not in logs
        begun = set(re.findall(r"belongs to cluster (\w+) now", logs))
        assert len(begun) <= 1 + wiped


def is_settled(member: Member) -> bool:
    """Tell whether a node is of a cluster, or has found one that was formed with a directory that
    it has lost."""
    status = member.status()
    was_lost = "was not formed with this node" in str(status.get("forming"))
    return bool(status) and (status["cluster_id"] != "" or was_lost)


def test_a_wiped_founder_waits_until_its_old_self_is_removed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        members = with_lists(cluster, 3)
        for member in members:
            member.launch()
        for member in members:
            member.wait_until_listening()
        wait_until(lambda: is_formed(members))
        leader = cluster.leader()
        wiped = next(member for member in members if member is not leader)
        wiped.kill()
        wiped.wipe()
        wiped.start()
        wait_until(lambda: "did not add this node" in wiped.text)
        assert "remove" in wiped.text
        assert wiped.status()["cluster_id"] == ""
        assert "belongs to cluster" in str(wiped.status()["forming"])
        answer = leader.post("/remove", {"ID": wiped.name})
        assert answer.status == 200, answer
        wait_until(lambda: is_formed(members), 40.0)
        cluster.wait_until_voters(3)


def test_a_wiped_founder_comes_back_where_only_raft_ports_are_reached(tmp_path: Path) -> None:
    """As on another machine, where the HTTP API of the members is on loopback. A node that comes
    late, and that nobody lists, is added over the Raft port as well."""
    with Cluster(tmp_path) as cluster:
        members = with_lists(cluster, 3)
        for member in members:
            member.launch(f"--http-advertise=http://{member.host}:1")  # nobody is there
        for member in members:
            member.wait_until_listening()
        wait_until(lambda: is_formed(members))
        cluster.wait_until_voters(3)
        leader = cluster.leader()
        assert leader.put("k", b"v").status == 200
        wiped = next(member for member in members if member is not leader)
        wiped.kill()
        wiped.wipe()
        wiped.start(f"--http-advertise=http://{wiped.host}:1")
        others = [member for member in members if member is not wiped]
        for other in others:  # a follower passes it on, and has the leader's words
            line = rf"seed {other.raft_address} did not add this node: {wiped.name} was not added: "
            wait_until(lambda: bool(re.search(line + ".*remove", wiped.text)))  # noqa: B023
        assert wiped.status()["cluster_id"] == ""
        assert leader.post("/remove", {"ID": wiped.name}).status == 200
        wait_until(lambda: is_formed(members), 40.0)
        late = cluster.add(f"--peers={','.join(member.raft_address for member in others)}")
        late.start(f"--http-advertise=http://{late.host}:1")
        wait_until(lambda: is_formed(cluster.members), 40.0)
        cluster.wait_until_voters(4)
        assert any(
            f"{late.name} asks to be added, at {late.raft_address}" in m.text for m in others
        )
        cluster.wait_until_equal()


def test_a_node_of_another_cluster_on_the_list_is_asked_to_add_it(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        members = [cluster.add() for _ in range(3)]
        members[0].start("--bootstrap")
        for member in members[1:]:
            give_list(member, members)
            member.start()
        wait_until(lambda: is_formed(members))
        cluster.wait_until_voters(3)
        assert members[1].put("k", b"v").status == 200


def test_whatever_differs_is_told_and_can_be_put_right(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        members = with_lists(cluster, 3, "--quorum-size=3")
        for member in members[:2]:
            member.start()
        members[2].flags.remove("--quorum-size=3")
        members[2].start()
        line = "no cluster is formed: the quorum size is 3 here and not set at node3"
        wait_until(lambda: all(line in member.text for member in members[:2]))
        status = members[0].request("GET", "/readyz?verbose")
        assert status.status == 503
        assert b"the quorum size is 3 here and not set at node3" in status.body
        assert cluster_ids(members) == {""}
        members[2].terminate()
        members[2].start("--quorum-size=3")
        wait_until(lambda: is_formed(members))
        assert cluster.leader().status()["quorum_size"] == 3


@pytest.mark.parametrize("flag", ["--bootstrap", "--join=http://127.0.0.1:1"])
def test_a_list_beside_another_way_is_refused_in_one_line(tmp_path: Path, flag: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "conuredb.py", "--peers=127.0.0.1:9", flag],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a list of peers forms a cluster by itself" in done.stderr
    assert not list(tmp_path.iterdir())
