"""Real servers become a cluster: the steps of the README, membership, moves, learners, arbiters.

What must hold: a change of membership is carried out once or refused with a reason, and a refusal
changes nothing (R4); a node is known by its directory and not by its name alone; whoever was away
for long comes back equal to the others (R7).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conure.client import Client
from tests.lab.cluster import Cluster, Member, free_port, free_ports, wait_until
from tests.lab.process import ROOT, Answer, ServerProcess

CURL = shutil.which("curl")
BINARY = bytes(range(256))
SMALL_LOG = (
    "--log-segment-bytes=64KiB",
    "--checkpoint-entries=40",
    "--checkpoint-log-bytes=8KiB",  # or the log would be kept for those that are away
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as empty:
        yield empty


def curl(*arguments: str, send: bytes = b"") -> tuple[int, bytes]:
    """Run curl; return the status of the last answer and the body."""
    assert CURL is not None
    command = [CURL, "-sS", "--max-time", "20", "-w", "%{stderr}%{http_code}", *arguments]
    done = subprocess.run(command, input=send, capture_output=True, check=True)
    return int(done.stderr[-3:]), done.stdout


def refusal(answer: Answer) -> str:
    """See that a request was refused for a reason that names it; return that."""
    assert 400 <= answer.status < 500, answer
    text = answer.body.decode()
    assert text.endswith("\n")
    assert text.strip()
    assert "\n" not in text.strip()
    return text


# -- the documents' own steps ----------------------------------------------------------------------


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_three_terminals_as_the_readme_starts_them(tmp_path: Path) -> None:
    """Flags, joins from any terminal, and what each node then answers, all by curl."""
    ports = [free_ports("127.0.0.1") for _ in range(3)]
    raft = [f"127.0.0.1:{port}" for _, port in ports]
    http = [port for port, _ in ports]
    urls = [f"http://localhost:{port}" for port in http]
    servers: list[ServerProcess] = []

    def launch(number: int, *flags: str) -> None:
        name = f"node{number + 1}"
        address, port = f"--raft-addr={raft[number]}", f"--http-addr=:{http[number]}"
        data = tmp_path / name
        servers.append(ServerProcess(data, f"--node-id={name}", address, port, *flags))

    def join(url: str, number: int, *flags: str) -> tuple[int, bytes]:
        facts = json.dumps({"ID": f"node{number + 1}", "RaftAddr": raft[number]})
        kind = ("-H", "Content-Type: application/json")
        return curl("-X", "POST", *flags, f"{url}/join", *kind, "-d", facts)

    def voters(url: str) -> dict[str, str]:
        config = json.loads(curl(f"{url}/raft/config")[1])
        return {s["id"]: s["address"] for s in config["servers"] if s["suffrage"] == "voter"}

    try:
        launch(0, "--bootstrap")
        launch(1)
        launch(2)
        for server in servers:
            server.wait_until_listening()
        assert join(urls[0], 1) == (200, b"OK\n")
        wait_until(lambda: len(voters(urls[1])) == 2)  # node2 knows where the leader is
        status, body = join(urls[1], 2)
        assert status == 307
        assert json.loads(body)["leader_id"] == "node1"
        assert join(urls[1], 2, "-L") == (200, b"OK\n")
        assert join(urls[0], 2) == (200, b"OK\n")  # the same facts again are no change
        everyone = {f"node{n + 1}": raft[n] for n in range(3)}
        wait_until(lambda: all(voters(url) == everyone for url in urls))

        assert curl("-X", "PUT", f"{urls[0]}/kv?key=k&value=v1") == (200, b"OK\n")
        assert curl(f"{urls[0]}/kv?key=k") == (200, b"v1")
        stale = [f"{url}/kv?key=k&stale=true" for url in urls]
        wait_until(lambda: all(curl(target) == (200, b"v1") for target in stale))
        for url in urls[1:]:
            assert curl(f"{url}/kv?key=k")[0] == 307
            assert curl("-L", f"{url}/kv?key=k") == (200, b"v1")
            status_of = json.loads(curl(f"{url}/status")[1])
            assert (status_of["is_leader"], status_of["leader"]) == (False, raft[0])
        body_flags = ("--data-binary", "@-", f"{urls[1]}/kv?key=b")
        assert curl("-L", "-X", "PUT", *body_flags, send=BINARY) == (200, b"OK\n")
        assert curl(f"{urls[0]}/kv?key=b") == (200, BINARY)
        assert curl("-L", "-X", "DELETE", f"{urls[2]}/kv?key=k") == (200, b"OK\n")
        assert curl(f"{urls[0]}/kv?key=k") == (404, b"key not found\n")
    finally:
        for server in servers:
            server.kill()


def test_followers_that_forward_need_no_client_that_follows(tmp_path: Path) -> None:
    with Cluster(tmp_path, "--follower-mode=forward") as cluster:
        cluster.start(3)
        for number, member in enumerate(cluster.followers()):
            key = f"key%20{number}%FF"
            put = member.request("PUT", f"/kv?key={key}", BINARY)
            assert (put.status, put.body) == (200, b"OK\n")
            got = member.request("GET", f"/kv?key={key}")
            assert (got.status, got.body) == (200, BINARY)
            assert got.headers["content-type"] == "application/octet-stream"
            gone = member.request("DELETE", f"/kv?key={key}")
            assert gone.status == 200
            none = member.request("GET", f"/kv?key={key}")
            assert (none.status, none.body) == (404, b"key not found\n")
            unknown = member.post("/remove", {"ID": "nobody"}, follow=False)
            assert unknown.status == 404
        late = cluster.add().start()
        facts = {"ID": late.name, "RaftAddr": late.raft_address}
        assert cluster.followers()[0].post("/join", facts, follow=False).status == 200
        cluster.wait_until_voters(4)


def test_a_node_waits_for_seeds_that_come_up_later(cluster: Cluster) -> None:
    first = cluster.add()
    seeds = f"--join=http://{first.host}:1,{first.url}"
    others = [cluster.add().start(seeds), cluster.add().start(seeds)]
    for member in others:
        assert member.request("GET", "/kv?key=k").status == 503
        assert member.request("GET", "/readyz").status == 503
        assert member.request("GET", "/livez").status == 200
    first.start("--bootstrap")
    cluster.wait_until_voters(3)
    assert others[0].put("k", b"v").status == 200
    wait_until(lambda: all(m.request("GET", "/readyz").status == 200 for m in cluster.members))


def test_a_node_is_added_by_a_member_that_it_reaches_over_the_raft_port(cluster: Cluster) -> None:
    """Whether that leads or not. An address where nobody is, and the node itself, are passed over;
    a seed that is no Raft port is told of."""
    first = cluster.add().start("--bootstrap")
    second = cluster.add()
    seeds = f"{first.host}:1,{second.raft_address},{first.raft_address}"
    second.start(f"--join={seeds}")
    cluster.wait_until_voters(2)
    follower = next(member for member in cluster.members if member is not cluster.leader())
    third = cluster.add()
    third.start(f"--join={first.host}:{first.http_port},{follower.raft_address}")
    cluster.wait_until_voters(3)
    assert third.put("k", b"v").status in (200, 307)
    assert "did not add this node: this is the node itself" in second.text
    assert f"seed {first.raft_address} has added this node to its cluster" in second.text
    assert f"seed {follower.raft_address} has added this node to its cluster" in third.text
    wrong = f"seed {first.host}:{first.http_port} did not add this node: no node answers at"
    assert wrong in third.text
    assert "is that a member's Raft port?" in third.text


def test_only_who_has_the_secret_is_added_over_the_raft_port(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Whoever has another one hears nothing, and is told by its own log what that may mean."""
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("0123456789abcdef" * 4)
    other.write_text("fedcba9876543210" * 4)
    known = f"--cluster-secret-file={secret}"
    first = cluster.add(known).start("--bootstrap")
    second = cluster.add(known).start(f"--join={first.raft_address}")
    cluster.wait_until_voters(2)
    for number, flag in enumerate((f"--cluster-secret-file={other}", "--log-level=info")):
        stranger = cluster.add(flag)
        stranger.start(f"--join={first.raft_address},{second.raft_address}")
        refused = f"seed {second.raft_address} did not add this node: no node answers at"
        wait_until(lambda: refused in stranger.text)  # noqa: B023
        assert "secret" in stranger.text
        assert stranger.status()["cluster_id"] == ""
        assert len(first.servers()) == 2
        assert f"{stranger.name} asks to be added" not in first.text + second.text, number
    assert second.put("k", b"v").status in (200, 307)


def test_a_node_without_seeds_waits_to_be_joined_and_says_so(cluster: Cluster) -> None:
    lonely = cluster.add().start()
    assert "join" in lonely.text
    status = lonely.status()
    assert (status["is_leader"], status["leader"], status["member"]) == (False, "", False)
    assert "[-] member" in lonely.request("GET", "/readyz").body.decode()
    refused = lonely.put("k", b"v")
    assert refused.status == 503
    assert "retry-after" in refused.headers


# -- leaving and coming back -----------------------------------------------------------------------


def test_a_removed_follower_stays_quiet_and_may_come_back(cluster: Cluster) -> None:
    leader = cluster.start(3).leader()
    follower = cluster.followers()[0]
    assert leader.post("/remove", {"ID": follower.name}).body == b"OK\n"
    assert sorted(leader.servers()) == sorted(m.name for m in cluster.members if m != follower)
    wait_until(lambda: "removed" in follower.text or "not a member" in follower.text)
    ready = follower.request("GET", "/readyz")
    assert ready.status == 503
    assert "member" in ready.body.decode()
    term = leader.status()["term"]
    time.sleep(1.5)  # more than an election time-out: it would have campaigned by now
    assert leader.status()["term"] == term
    assert leader.status()["is_leader"]
    assert leader.post("/remove", {"ID": follower.name}).status == 404
    assert leader.put("k", b"v").status == 200

    facts = {"ID": follower.name, "RaftAddr": follower.raft_address}
    assert leader.post("/join", facts).body == b"OK\n"
    cluster.wait_until_voters(3)
    wait_until(lambda: follower.get("k", stale=True).body == b"v")


def test_a_removed_leader_hands_over_and_may_come_back(cluster: Cluster) -> None:
    old = cluster.start(3).leader()
    assert old.put("k", b"1").status == 200
    assert old.post("/remove", {"ID": old.name}).body == b"OK\n"
    others = [member for member in cluster.members if member is not old]
    new = cluster.leader(others)
    wait_until(lambda: sorted(new.servers()) == sorted(m.name for m in others))
    assert new.put("k", b"2").status == 200
    term = new.status()["term"]
    time.sleep(1)
    assert new.status()["term"] == term
    assert not old.status()["is_leader"]
    assert old.get("k", follow=False).status != 200

    facts = {"ID": old.name, "RaftAddr": old.raft_address}
    assert new.post("/join", facts).body == b"OK\n"
    cluster.wait_until_voters(3)
    wait_until(lambda: old.get("k", stale=True).body == b"2")


def test_changes_asked_for_at_once_are_made_one_by_one(cluster: Cluster) -> None:
    leader = cluster.start(3).leader()
    others = cluster.followers()
    answers: list[Answer] = []

    def remove(member: Member) -> None:
        answers.append(leader.post("/remove", {"ID": member.name}))

    def rejoin(member: Member) -> None:
        facts = {"ID": member.name, "RaftAddr": member.raft_address}
        answers.append(leader.post("/join", facts))

    for change in (remove, rejoin):
        threads = [threading.Thread(target=change, args=(member,)) for member in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200, 200], answers
        answers.clear()
        if change is remove:
            assert list(leader.servers()) == [leader.name]
            assert "last voter" in refusal(leader.post("/remove", {"ID": leader.name}))
            assert leader.put("k", b"alone").status == 200
    cluster.wait_until_voters(3)
    cluster.wait_until_equal()


# -- learners, hand-over, dry runs -----------------------------------------------------------------


def test_a_learner_has_the_data_and_no_vote_until_it_is_made_a_voter(cluster: Cluster) -> None:
    cluster.flags = ("--write-timeout=1s",)
    cluster.start(2)
    leader, follower = cluster.leader(), cluster.followers()[0]
    learner = cluster.add().start()
    facts = {"ID": learner.name, "RaftAddr": learner.raft_address, "NonVoter": True}
    assert leader.post("/join", facts).status == 200
    assert leader.put("k", b"v").status == 200
    wait_until(lambda: learner.get("k", stale=True).body == b"v")
    assert leader.servers()[learner.name]["suffrage"] == "nonvoter"
    assert learner.get("k").body == b"v"  # redirected, as by any follower
    assert leader.post("/leader", {"ID": learner.name}).status == 409

    follower.kill()  # one of two voters: the learner does not count
    assert leader.put("k", b"lost?").status in (503, 504)
    follower.start()
    cluster.leader()
    assert cluster.suffrage()[learner.name] == "nonvoter"
    del facts["NonVoter"]
    assert follower.post("/join", facts).status == 200
    cluster.wait_until_voters(3)


def test_leadership_is_handed_over_on_request(cluster: Cluster) -> None:
    old = cluster.start(3).leader()
    assert old.put("k", b"1").status == 200
    chosen = cluster.followers()[-1]
    assert cluster.followers()[0].post("/leader", {"ID": chosen.name}).status == 200  # by redirect
    assert cluster.leader() is chosen
    assert chosen.put("k", b"2").status == 200
    assert chosen.post("/leader", {}).status == 200
    wait_until(lambda: cluster.leader() is not chosen)
    leader = cluster.leader()
    assert leader.post("/leader", {"ID": "nobody"}).status == 404
    assert leader.post("/leader", {"ID": leader.name}).status in (200, 409)
    assert cluster.leader() is leader
    assert leader.get("k").body == b"2"


def test_a_dry_run_tells_and_changes_nothing(cluster: Cluster) -> None:
    leader = cluster.start(3).leader()
    before = leader.servers()
    index = leader.stats()["last_log_index"]

    def preview(path: str, facts: dict[str, Any]) -> dict[str, Any]:
        answer = leader.post(path + "?dry_run=true", facts)
        assert answer.status == 200, answer
        result = json.loads(answer.body)
        assert isinstance(result, dict)
        return result

    new = {"ID": "node9", "RaftAddr": "127.0.0.1:9"}
    assert preview("/join", new) == {
        "allowed": True, "reason": "", "warning": "",
        "voters": 4, "quorum": 3, "active": 4, "tolerates": 1,
        "quorum_size": None, "data_quorum": 3,
    }  # fmt: skip
    assert preview("/join", {**new, "NonVoter": True})["voters"] == 3
    fewer = preview("/remove", {"ID": "node3"})
    assert fewer["allowed"]
    assert (fewer["voters"], fewer["quorum"], fewer["tolerates"]) == (2, 2, 0)
    dead = next(member for member in cluster.followers())
    alive = next(m for m in cluster.followers() if m is not dead)
    assert leader.post("/remove?dry_run=true", {"ID": "nobody"}).status == 404
    dead.kill()
    wait_until(lambda: not preview("/remove", {"ID": alive.name})["allowed"])
    refused = preview("/remove", {"ID": alive.name})
    assert "1 of" in refused["reason"]
    assert (refused["voters"], refused["active"]) == (2, 1)
    assert preview("/remove", {"ID": dead.name})["allowed"]
    assert leader.servers() == before
    assert leader.stats()["last_log_index"] == index


def test_a_quorum_size_is_kept_by_real_nodes(cluster: Cluster) -> None:
    leader = cluster.start(3).leader()
    wait_until(lambda: leader.post("/quorum", {"size": 3}).status == 200)
    assert "changes nothing" in refusal(leader.post("/quorum", {"size": 2}))
    assert leader.put("k", b"1").status == 200
    dead = cluster.followers()[0]
    dead.kill()
    wait_until(lambda: b"quorum size of 3" in leader.request("GET", "/readyz?verbose").body)
    assert leader.request("GET", "/kv?key=k").body == b"1"  # by a majority, as ever
    waiting: list[Answer] = []
    thread = threading.Thread(target=lambda: waiting.append(leader.put("k", b"2")))
    thread.start()
    wait_until(lambda: leader.post("/quorum", {"size": None}).status == 200)
    thread.join()
    assert waiting[0].status == 200  # what waited is written as soon as the size allows it
    assert "caught up" in refusal(leader.post("/quorum", {"size": 3}))
    dead.start()
    wait_until(lambda: leader.post("/quorum", {"size": 3}).status == 200)
    dead.kill()
    follower = next(member for member in cluster.followers() if member is not dead)
    follower.post("/quorum?dry_run=true", {"size": 3})
    removed = leader.post("/remove", {"ID": dead.name})
    assert removed.body == (
        b"OK\nthe quorum size was lowered from 3 to 2: the data voters are 2 now\n"
    )
    config = json.loads(follower.request("GET", "/raft/config").body)
    assert (config["quorum_size"], config["quorum"], config["data_quorum"]) == (2, 2, 2)
    assert leader.put("k", b"3").status == 200


def test_followers_are_connected_before_they_need_each_other(cluster: Cluster) -> None:
    """An election need not wait until a name has been looked up."""
    followers = cluster.start(3).followers()

    def are_connected() -> bool:
        pages = [member.request("GET", "/metrics").body for member in followers]
        return all(b"conure_peers_connected 2\n" in page for page in pages)

    wait_until(are_connected)


def test_nodes_tell_each_other_that_their_election_timeouts_differ(cluster: Cluster) -> None:
    cluster.flags = ("--read-mode=lease",)
    for milliseconds in (400, 400, 900):
        cluster.add(f"--election-timeout={milliseconds}ms")
    one, _, other = cluster.start(3).members

    def shows(member: Member, what: bytes) -> bool:
        return what in member.request("GET", "/readyz?verbose").body

    wait_until(lambda: shows(one, f"{other.name} has 900 ms, this node 400 ms".encode()))
    wait_until(lambda: shows(other, f"{one.name} has 400 ms".encode()))
    assert one.request("GET", "/readyz").status == 200
    assert one.put("k", b"v").status == 200
    assert one.get("k").body == b"v"


def test_a_removal_that_would_cost_the_quorum_needs_force(cluster: Cluster) -> None:
    cluster.flags = ("--election-timeout=1s",)
    leader = cluster.start(3).leader()
    alive, dead = cluster.followers()
    dead.pause()
    answers = []

    def is_refused() -> bool:
        answers.append(leader.post("/remove?dry_run=true", {"ID": alive.name}))
        return not json.loads(answers[-1].body)["allowed"]

    wait_until(is_refused)  # the leader has noticed that one is dead
    reason = refusal(leader.post("/remove", {"ID": alive.name}))
    assert "1 of" in reason
    assert "force" in reason
    assert len(leader.servers()) == 3
    assert leader.put("k", b"v").status == 200

    forced = threading.Thread(
        target=lambda: answers.append(leader.post("/remove?force=true", {"ID": alive.name}))
    )
    forced.start()
    wait_until(lambda: len(leader.servers()) == 2)
    dead.resume()  # or the change could not be committed
    forced.join()
    assert answers[-1].status == 200, answers[-1]
    cluster.wait_until_voters(2)
    assert alive.name not in cluster.leader([leader, dead]).servers()


# -- joins that must not be ------------------------------------------------------------------------


def test_joins_that_cannot_be_right_are_refused_and_change_nothing(cluster: Cluster) -> None:
    leader = cluster.start(3).leader()
    follower = cluster.followers()[0]
    stranger = cluster.add().start()  # waits to be joined, as node4
    before, index = leader.servers(), leader.stats()["last_log_index"]
    nobody = f"127.0.0.1:{free_port('127.0.0.1')}"

    def join(node_id: str, address: str) -> str:
        return refusal(leader.post("/join", {"ID": node_id, "RaftAddr": address}))

    assert nobody in join("node4", nobody)
    wrong = join("node5", stranger.raft_address)
    assert "another node is at this address" in wrong
    wait_until(lambda: "this is node4, not node5" in stranger.text)  # who asks isn't told its name
    assert "node5" in wrong
    assert "node" in join("node5", follower.raft_address)  # one address, two names
    join("node4", leader.raft_address)
    join("node4", f"{stranger.host}:{stranger.http_port}")  # HTTP is spoken there, not Raft
    assert leader.servers() == before
    assert leader.stats()["last_log_index"] == index
    assert leader.put("k", b"v").status == 200

    facts = {"ID": "node4", "RaftAddr": stranger.raft_address}
    assert leader.post("/join", facts).status == 200
    cluster.wait_until_voters(4)


def test_a_node_of_another_cluster_is_not_taken(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(1)
    leader = cluster.leader()
    with Cluster(tmp_path / "other") as others:
        others.add()  # not started: the names of the two clusters differ
        other = others.add().start("--bootstrap")
        wait_until(lambda: other.put("theirs", b"1").status == 200)
        facts = {"ID": other.name, "RaftAddr": other.raft_address}
        assert "cluster" in refusal(leader.post("/join", facts))
        assert list(leader.servers()) == [leader.name]
        assert other.get("theirs").body == b"1"
        assert leader.put("ours", b"2").status == 200
        assert other.get("ours").status == 404
        other.kill()
        other.start(f"--join={leader.url}")  # a member of a cluster does not ask another one
        assert other.get("theirs").body == b"1"
        assert list(leader.servers()) == [leader.name]


# -- moves and lost disks --------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_member_that_moves_says_so_in_one_entry(cluster: Cluster, role: str) -> None:
    leader = cluster.start(3).leader()
    moving = leader if role == "leader" else cluster.followers()[0]
    assert leader.put("k", b"v").status == 200
    moving.kill()
    moving.move()
    others = [member for member in cluster.members if member is not moving]
    others_leader = cluster.leader(others)
    cluster.wait_until_equal(others)
    before = others_leader.stats()
    moving.start()

    def is_known() -> bool:
        servers = cluster.leader().servers()
        server = servers[moving.name]
        return (server["address"], server["http_address"]) == (moving.raft_address, moving.url)

    wait_until(is_known)
    assert cluster.suffrage() == {member.name: "voter" for member in cluster.members}
    cluster.wait_until_equal()
    time.sleep(0.5)
    after = cluster.leader().stats()
    if after["term"] == before["term"]:  # said once, not again and again
        assert int(after["last_log_index"]) == int(before["last_log_index"]) + 1
    for member in cluster.members:
        assert (
            member.get("k").body == b"v"
        )  # redirects lead to the new address, if it is the leader
    if cluster.leader() is not moving:
        handed_over = cluster.leader().post("/leader", {"ID": moving.name})
        assert handed_over.status == 200, handed_over
    assert cluster.leader() is moving  # its votes come to where it is
    assert cluster[1].put("k", b"w").status == 200


def test_a_wiped_disk_is_refused_until_the_node_was_removed(cluster: Cluster) -> None:
    cluster.start(3)
    member = cluster.followers()[0]
    assert member.put("k", b"v").status == 200
    member.kill()
    member.wipe()
    others = [m for m in cluster.members if m is not member]
    seeds = f"--join={','.join(m.url for m in others)}"
    member.start(seeds)
    wait_until(lambda: "another data directory" in member.text or "remove" in member.text)
    time.sleep(1)
    leader = cluster.leader(others)
    assert leader.put("k", b"w").status == 200
    assert member.get("k", stale=True).status != 200
    assert not member.status()["leader"]
    warnings = [line for line in member.text.splitlines() if "remove" in line]
    assert 0 < len(warnings) < 5, member.text  # clear, and no flood
    facts = {"ID": member.name, "RaftAddr": member.raft_address}
    refusal(leader.post("/join", facts))

    assert leader.post("/remove", {"ID": member.name}).status == 200
    cluster.wait_until_voters(3)  # it asks for itself again
    wait_until(lambda: member.get("k", stale=True).body == b"w")


# -- a long absence --------------------------------------------------------------------------------


def test_a_node_behind_the_cut_log_gets_a_snapshot(tmp_path: Path) -> None:
    with Cluster(tmp_path, *SMALL_LOG) as cluster:
        leader = cluster.start(3).leader()
        away = cluster.followers()[0]
        assert leader.put("old", b"1").status == 200
        away.kill()
        values = {f"k{number}": b"%d." % number * 700 for number in range(200)}
        for key, value in values.items():
            assert leader.put(key, value).status == 200
        assert leader.delete("old").status == 200
        wait_until(lambda: int(leader.stats()["last_snapshot_index"]) > 100)
        away.start()
        cluster.wait_until_equal()
        assert "snapshot" in away.text
        assert int(away.stats()["last_snapshot_index"]) > 100
        for key, value in values.items():
            assert away.get(key, stale=True).body == value
        assert away.get("old", stale=True).status == 404

        new = cluster.add().start(f"--join={leader.url}")  # one that never had anything
        cluster.wait_until_voters(4)
        cluster.wait_until_equal()
        assert new.get("k150", stale=True).body == values["k150"]
        away.kill()
        away.start()  # what it was sent is on its disk
        assert away.get("k7", stale=True).body == values["k7"]


# -- an arbiter ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["leader", "follower"])
def test_two_data_nodes_and_an_arbiter_survive_either(cluster: Cluster, lost: str) -> None:
    cluster.start(2)
    arbiter = cluster.add("--role=arbiter").start(f"--join={cluster[1].url}")
    cluster.wait_until_voters(3)
    data = cluster.members[:2]
    leader = cluster.leader()
    assert leader.servers()[arbiter.name]["role"] == "arbiter"
    assert leader.put("k", b"1").status == 200
    assert arbiter.get("k", follow=False, stale=True).status == 307  # it has nothing to show
    assert arbiter.get("k", follow=False).status == 307
    assert arbiter.get("k").body == b"1"
    refusal(leader.post("/leader", {"ID": arbiter.name}))

    dead = leader if lost == "leader" else next(m for m in data if m is not leader)
    dead.kill()
    survivor = next(m for m in data if m is not dead)
    assert cluster.leader([survivor, arbiter]) is survivor
    wait_until(lambda: survivor.put("k", b"2").status == 200)
    assert survivor.get("k").body == b"2"
    dead.start()
    wait_until(lambda: dead.get("k", stale=True).body == b"2")
    for member in data:
        member.kill()
    seen = set()
    deadline = time.monotonic() + 1  # more than an election time-out: others would stand by now
    while time.monotonic() < deadline:
        seen.add(arbiter.status()["state"])
    assert seen == {"follower"}
    for member in data:
        member.start()
    assert cluster.leader() is not arbiter
    assert cluster[1].get("k").body == b"2"


def test_watches_go_on_elsewhere_from_an_arbiter_and_from_a_removed_node(cluster: Cluster) -> None:
    cluster.start(3)
    arbiter = cluster.add("--role=arbiter").start(f"--join={cluster[1].url}")
    cluster.wait_until_voters(4)
    refused = arbiter.request("GET", "/watch?key=k")
    assert refused.status == 503
    assert b"an arbiter keeps no records; watch at another server" in refused.body
    leaving, *_ = (m for m in cluster.followers() if m is not arbiter)
    with Client([arbiter.url, leaving.url, cluster.leader().url], timeout=20) as client:
        with client.watch("k") as watch:
            first = client.put("k", "1")
            assert next(watch).revision == first
            assert b"conure_watches 1\n" in leaving.request("GET", "/metrics").body
            assert cluster.leader().post("/remove", {"ID": leaving.name}).status == 200
            second = client.put("k", "2")
            event = next(watch)
            assert (event.revision, event.value) == (second, b"2")
        wait_until(lambda: leaving.request("GET", "/watch?key=k").status == 503)
        assert b"of no cluster" in leaving.request("GET", "/watch?key=k").body


def test_the_role_of_a_directory_does_not_change(cluster: Cluster) -> None:
    cluster.start(1)
    arbiter = cluster.add().start("--role=arbiter", f"--join={cluster[1].url}")
    cluster.wait_until_voters(2)
    arbiter.kill()
    arbiter.launch("--role=data")
    assert arbiter.process is not None
    assert arbiter.process.wait() in (1, 2)
    assert "arbiter" in arbiter.process.log[-1]
    assert str(ROOT) not in arbiter.process.log[-1]
