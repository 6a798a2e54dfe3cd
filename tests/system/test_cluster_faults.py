"""Real clusters while things go wrong: killed and paused processes, cut networks, full disks.

What must hold whatever happens: nothing acknowledged is lost and the history is linearizable (R6,
R8), no term has two leaders, whoever has no quorum refuses in time (R5), and the cluster recovers
by itself once the fault is over.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, Workload, wait_until
from tests.lab.netns import Impairment, Lab, why_not
from tests.lab.process import ROOT, Answer, ServerProcess


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as empty:
        yield empty


def get_in_own_time(member: Member, key: str, seconds: float) -> tuple[Answer, float]:
    """A linearizable read at this very member; return the answer and how long it took."""
    started = time.monotonic()
    answer = member.request("GET", f"/kv?key={key}", timeout=seconds)
    return answer, time.monotonic() - started


# -- processes that die ----------------------------------------------------------------------------


def test_the_leader_is_killed_under_load(cluster: Cluster) -> None:
    cluster.start(3)
    with Workload(cluster) as load:
        load.wait_for_writes(100)
        first = cluster.leader()
        first.kill()
        load.wait_for_writes(100)
        assert cluster.leader() is not first
        first.start()
        load.wait_for_writes(50)
        second = cluster.leader()
        second.kill()
        load.wait_for_writes(50)
        second.start()
    load.check()
    cluster.wait_until_equal()


def test_a_leader_that_lost_its_disk_is_back_before_it_is_missed(tmp_path: Path) -> None:
    """It is empty and has its old name and address. A third node stalls, so that the election takes
    a while: it stays out until it is removed and joined, and gets no entry until then."""
    with Cluster(tmp_path, "--election-timeout=2s") as cluster:
        lost = cluster.start(3).leader()
        assert lost.put("k", b"v").status == 200
        cluster.wait_until_equal()
        stalled, other = cluster.followers()
        lost.kill()
        lost.wipe()
        lost.launch()
        stalled.pause()
        lost.wait_until_listening()
        wait_until(lambda: "another data directory" in other.text)  # it was called, and refused
        stalled.resume()
        others = [stalled, other]
        leader = cluster.leader(others)
        assert leader.put("k", b"w").status == 200
        cluster.wait_until_equal(others)
        status = lost.status()
        assert (status["cluster_id"], status["member"], status["term"]) == ("", False, 0)
        assert (status["applied_index"], status["leader_id"]) == (0, "")
        facts = {"ID": lost.name, "RaftAddr": lost.raft_address}
        assert leader.post("/join", facts).status == 409
        assert leader.post("/remove", {"ID": lost.name}).status == 200
        assert leader.post("/join", facts).status == 200
        cluster.wait_until_voters(3)
        cluster.wait_until_equal()
        assert lost.get("k", stale=True).body == b"w"


def test_all_are_killed_at_once_under_load(cluster: Cluster) -> None:
    cluster.start(3)
    with Workload(cluster) as load:
        load.wait_for_writes(100)
        for member in cluster.members:
            member.kill()
        for member in cluster.members:
            member.launch()
        for member in cluster.members:
            member.wait_until_listening()
        load.wait_for_writes(50)
    load.check()
    cluster.wait_until_equal()


def test_a_graceful_stop_of_the_leader_costs_no_election_timeout(tmp_path: Path) -> None:
    election_timeout = 3.0
    with Cluster(tmp_path, f"--election-timeout={election_timeout:.0f}s") as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            leader = cluster.leader()
            stopped_at = time.monotonic()
            assert leader.terminate() == 0
            load.wait_for_writes(100)
        assert load.longest_gap(stopped_at) < election_timeout / 2
        load.check()
        assert "Traceback" not in leader.text
        assert cluster.leader() is not leader
        leader.start()
        wait_until(lambda: leader.get("w0").status in (200, 404))


def test_a_stop_is_heard_while_threads_come_and_go(tmp_path: Path) -> None:
    """The system may notify any thread of a signal, one that is being started most of all.

    So the thread that waits for a reason to stop must not count on being interrupted.
    """
    script = tmp_path / "restless.py"
    script.write_text(
        f"""import sys, threading
sys.path.insert(0, {str(ROOT)!r})
import conuredb
def churn():
    while True:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
threading.Thread(target=churn, daemon=True).start()
sys.exit(conuredb.main(sys.argv[1:]))
"""
    )
    servers: list[ServerProcess] = []
    try:
        for number in range(5):
            flags = ("--bootstrap", "--raft-addr=127.0.0.1:0")
            servers.append(ServerProcess(tmp_path / str(number), *flags, script=script))
        for server in servers:
            server.wait_until_listening()
            server.process.terminate()
        for server in servers:
            assert server.wait(10) == 0, server.text
    finally:
        for server in servers:
            server.kill()


# -- processes that stand still --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["index", "lease"])
def test_a_leader_that_stood_still_never_answers_with_old_data(tmp_path: Path, mode: str) -> None:
    """Reads that arrive while it is stopped are answered when it runs again: not by memory."""
    with Cluster(tmp_path, f"--read-mode={mode}") as cluster:
        cluster.start(3)
        old = cluster.leader()
        others = cluster.followers()
        assert old.put("k", b"before").status == 200
        kept = [http.client.HTTPConnection(old.host, old.http_port, timeout=20) for _ in range(8)]
        with contextlib.ExitStack() as stack:
            for connection in kept:
                stack.callback(connection.close)
                connection.request("GET", "/kv?key=k")
                assert connection.getresponse().read() == b"before"
            old.pause()
            new = cluster.leader(others)
            assert new.put("k", b"after").status == 200
            for connection in kept:
                connection.request("GET", "/kv?key=k")
            old.resume()
            for connection in kept:
                response = connection.getresponse()
                body = response.read()
                assert response.status in (200, 307, 503)
                assert response.status != 200 or body == b"after"
        wait_until(lambda: old.get("k", stale=True).body == b"after")
        assert not old.status()["is_leader"]


def test_pauses_of_leader_and_follower_under_load(cluster: Cluster) -> None:
    cluster.start(3)
    with Workload(cluster) as load:
        load.wait_for_writes(50)
        leader = cluster.leader()
        leader.pause()
        load.wait_for_writes(50)
        leader.resume()
        load.wait_for_writes(20)
        follower = cluster.followers()[0]
        follower.pause()
        load.wait_for_writes(50)
        follower.resume()
        for _ in range(5):  # shorter than an election time-out: nobody need notice
            leader = cluster.leader()
            leader.pause()
            time.sleep(0.1)
            leader.resume()
        load.wait_for_writes(20)
    load.check()
    cluster.wait_until_equal()


def test_leaders_come_and_go_while_followers_pass_on(tmp_path: Path) -> None:
    """Clients at all nodes: what was on its way to a leader is done once, or not, or unknown."""
    with Cluster(tmp_path, "--follower-mode=forward") as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(100)
            first = cluster.leader()
            first.kill()
            load.wait_for_writes(50)
            first.start()
            second = cluster.leader()
            second.pause()
            load.wait_for_writes(50)
            second.resume()
            third = cluster.leader()
            successor = next(each for each in cluster.members if each is not third)
            asked = next(each for each in cluster.members if each not in (third, successor))
            answer = asked.post("/leader", {"ID": successor.name}, follow=False)
            assert answer.status in (200, 503), answer  # a node that is behind takes none
            load.wait_for_writes(50)
            cluster.leader().terminate()
            load.wait_for_writes(50)
        load.check()
        for member in cluster.members:
            if member not in cluster.running:
                member.start()
        cluster.wait_until_equal()


def days_shown(cluster: Cluster) -> set[str]:
    """Return the days that the nodes' Date fields tell."""
    return {member.request("GET", "/livez").headers["date"][:16] for member in cluster.running}


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the clock that jumps")
def test_wall_clocks_that_jump_depose_nobody(tmp_path: Path, cluster: Cluster) -> None:
    library, order = tmp_path / "clocklib.so", tmp_path / "order"
    source = Path(__file__).parents[1] / "lab" / "clocklib.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    for number in range(3):
        cluster.add(environ={"LD_PRELOAD": str(library), "CLOCK_ORDER": f"{order}{number}"})
    cluster.start(3)
    term = cluster.leader().status()["term"]
    with Workload(cluster) as load:
        for number, seconds in [(0, 86_400), (1, -86_400), (2, 3_600), (0, -86_400), (1, 3_600)]:
            Path(f"{order}{number}").write_text(str(seconds))
            load.wait_for_writes(30)
        wait_until(lambda: len(days_shown(cluster)) > 1)  # or the clocks did not jump
    assert cluster.leader().status()["term"] == term
    load.check()
    cluster.wait_until_equal()


def test_without_a_quorum_reads_and_writes_are_refused_in_time(tmp_path: Path) -> None:
    with Cluster(tmp_path, "--barrier-timeout=700ms", "--write-timeout=1s") as cluster:
        leader = cluster.start(3).leader()
        assert leader.put("k", b"v").status == 200
        followers = cluster.followers()
        for member in followers:
            member.kill()
        for _ in range(3):
            answer, took = get_in_own_time(leader, "k", 5)
            assert answer.status == 503, answer
            assert int(answer.headers["retry-after"]) >= 1
            assert took < 1.5
            assert leader.get("k", stale=True).body == b"v"
            assert leader.put("lost?", b"x").status in (503, 504)
        wait_until(lambda: not leader.status()["is_leader"])  # R5
        assert leader.request("GET", "/readyz").status == 503
        assert leader.request("GET", "/livez").status == 200
        assert leader.put("k", b"refused").status == 503
        followers[0].start()
        wait_until(lambda: leader.put("k", b"w").status == 200)
        assert leader.get("k").body == b"w"


# -- networks that are cut -------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.closing(Lab(3)) as three, three.enter():
        yield three


def number_of(member: Member) -> int:
    return int(member.name.removeprefix("node"))


def test_a_leader_that_is_cut_off_steps_down(lab: Lab, tmp_path: Path) -> None:
    with Cluster(tmp_path, "--barrier-timeout=1s", lab=lab) as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            old, others = cluster.leader(), cluster.followers()
            lab.cut(number_of(old), *map(number_of, others))
            answer, took = get_in_own_time(old, "w0", 5)
            assert answer.status in (307, 503), answer
            assert took < 1.5
            assert old.get("w0", stale=True).status in (200, 404)
            new = cluster.leader(others)
            assert new.put("side", b"majority").status == 200
            assert old.put("side", b"minority", follow=False).status in (503, 504)
            wait_until(lambda: not old.status()["is_leader"])
            answer, took = get_in_own_time(old, "side", 5)
            assert answer.status == 503
            load.wait_for_writes(50)
            lab.heal()
            load.wait_for_writes(50)
            term = new.status()["term"]
            wait_until(lambda: old.get("side", stale=True).body == b"majority")
        load.check()
        assert new.status()["term"] == term  # it came back without a new election (R5)
        cluster.wait_until_equal()


def test_a_leader_is_cut_off_while_followers_pass_on(lab: Lab, tmp_path: Path) -> None:
    """What they have sent to it waits no longer than others know that somebody else leads."""
    flags = ("--barrier-timeout=1s", "--follower-mode=forward")
    with Cluster(tmp_path, *flags, lab=lab) as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            old, others = cluster.leader(), cluster.followers()
            lab.cut(number_of(old), *map(number_of, others))
            cluster.leader(others)
            for member in others:
                put = functools.partial(member.put, "side", b"majority")
                wait_until(lambda: put().status == 200, 3)  # noqa: B023
                assert member.get("side", follow=False).body == b"majority"
            answer, took = get_in_own_time(old, "side", 5)
            assert answer.status == 503
            assert took < 2.0
            lab.heal()
            wait_until(lambda: old.get("side", follow=False).body == b"majority")
            load.wait_for_writes(50)
        load.check()
        cluster.wait_until_equal()


@pytest.mark.parametrize("direction", ["from the leader", "to the leader"])
def test_a_cut_in_one_direction(lab: Lab, tmp_path: Path, direction: str) -> None:
    with Cluster(tmp_path, "--barrier-timeout=1s", lab=lab) as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            old, others = cluster.leader(), cluster.followers()
            for member in others:
                pair = (number_of(old), number_of(member))
                lab.cut_one_way(*(pair if direction == "from the leader" else pair[::-1]))
            new = cluster.leader(others)
            load.wait_for_writes(30)
            wait_until(lambda: not old.status()["is_leader"])
            assert new.status()["is_leader"]
            lab.heal()
            load.wait_for_writes(30)
        load.check()
        cluster.wait_until_equal()


def test_a_bridge_between_two_that_do_not_meet(lab: Lab, tmp_path: Path) -> None:
    """The leader and one follower lose each other; the third reaches both, and somebody leads."""
    with Cluster(tmp_path, "--barrier-timeout=1s", lab=lab) as cluster:
        cluster.start(3)
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            leader, (far, _) = cluster.leader(), cluster.followers()
            lab.cut(number_of(leader), number_of(far))
            time.sleep(1.5)
            load.wait_for_writes(50)
            lab.heal()
            load.wait_for_writes(20)
        load.check()
        assert len(load.leaders) <= 3, load.leaders  # no election after the other (R5)
        cluster.wait_until_equal()


def test_links_that_hold_packets_back_and_lose_some(lab: Lab, tmp_path: Path) -> None:
    """The leader is heard late and not always; nothing acknowledged is lost by that."""
    if reason := why_not(to_impair=True):
        pytest.skip(reason)
    with Cluster(tmp_path, "--election-timeout=1s", lab=lab) as cluster:
        cluster.start(3)
        leader = cluster.leader()
        with Workload(cluster) as load:
            load.wait_for_writes(30)
            for member in cluster.members:
                how = Impairment(delay=0.02, jitter=0.02, loss=0.03)
                lab.impair(number_of(member), how)
            answer, took = get_in_own_time(leader, "w0", 5)
            assert answer.status != 200 or took > 0.04  # there and back (R6)
            load.wait_for_writes(30)
            lab.heal()
            healed_at = time.monotonic()
            load.wait_for_writes(100)
            assert load.longest_gap(healed_at) < 5
        load.check()
        cluster.wait_until_equal()


# -- disks that are full ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_full_disk_of_one_node(
    small_disk: tuple[Path, list[str]], tmp_path: Path, role: str
) -> None:
    point, wrapper = small_disk
    flags = ("--log-segment-bytes=64KiB", "--checkpoint-entries=100")
    with Cluster(tmp_path, *flags) as cluster:
        small = cluster.add(wrapper=wrapper)
        small.data = point / "data"
        cluster.start(3)
        wanted = small if role == "leader" else cluster[2]
        wait_until(lambda: cluster.leader().post("/leader", {"ID": wanted.name}).status != 503)
        wait_until(lambda: cluster.leader() is wanted)
        inside = Path(f"/proc/{small.pid}/root{point}")  # the mount as that process sees it
        with Workload(cluster) as load:
            load.wait_for_writes(20)
            ballast = inside / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            for number in range(60):  # 1.2 MB: more than what it has kept ready
                answer = cluster[2].put(f"big{number}", b"x" * 20_000)
                assert answer.status in (200, 503, 504, 507), answer
                if role == "follower":
                    assert answer.status == 200, answer
            assert small.is_running, small.text
            assert b"full" in small.request("GET", "/readyz?verbose").body
            assert small.get("w0", stale=True).status in (200, 404)
            ballast.unlink()
            wait_until(lambda: cluster[2].put("after", b"1").status == 200)
            load.wait_for_writes(20)
        load.check()
        cluster.wait_until_equal()
        wait_until(functools.partial(_is_ready, small))
        assert small.get("big0", stale=True).body == cluster[2].get("big0", stale=True).body


def test_an_election_where_all_disks_are_full(
    small_disk: tuple[Path, list[str]], tmp_path: Path
) -> None:
    point, wrapper = small_disk
    flags = ("--log-segment-bytes=64KiB", "--checkpoint-entries=100")
    with Cluster(tmp_path, *flags) as cluster:
        for _ in range(3):
            cluster.add(wrapper=wrapper).data = point / "data"  # each has a mount of its own
        cluster.start(3)
        assert cluster[1].put("k", b"1").status == 200
        disks = [Path(f"/proc/{each.pid}/root{point}") for each in cluster.members]
        for disk in disks:  # equal room in advance: whom others are ahead of can't help them
            wait_until(lambda disk=disk: len(list(disk.glob("data/raft/*.spare"))) == 2)  # type: ignore[misc]
        ballast = [disk / "ballast" for disk in disks]
        for path in ballast:
            with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        leader = cluster.leader()
        wait_until(lambda: leader.put("big", b"x" * 3000).status == 507)
        wait_until(lambda: leader.put("small", b"x").status == 507)
        for _ in range(3):
            leader = cluster.leader()
            others = [each for each in cluster.members if each is not leader]
            leader.pause()
            second = cluster.leader(others)
            wait_until(lambda second=second: second.get("k").body == b"1")  # type: ignore[misc]
            assert second.put("small", b"y").status in (503, 507)
            leader.resume()
            wait_until(lambda leader=leader: leader.get("k").body == b"1")  # type: ignore[misc]
        assert all(each.is_running for each in cluster.members)
        for path in ballast:
            path.unlink()
        wait_until(lambda: cluster[1].put("k", b"2").status == 200)
        assert cluster[2].get("k").body == b"2"
        cluster.wait_until_equal()


def _is_ready(member: Member) -> bool:
    return member.request("GET", "/readyz").status == 200


# -- changes under load ----------------------------------------------------------------------------


def test_members_come_and_go_under_load(cluster: Cluster) -> None:
    """Hand-overs, removals and joins while clients write: nobody may notice more than a pause."""
    cluster.start(3)
    with Workload(cluster) as load:
        load.wait_for_writes(30)
        new = cluster.add().start(f"--join={cluster[2].url}")
        cluster.wait_until_voters(4)
        load.wait_for_writes(30)
        assert cluster.leader().post("/leader", {"ID": new.name}).status == 200
        load.wait_for_writes(30)
        removed = threading.Thread(
            target=lambda: cluster[1].post("/remove", {"ID": cluster[1].name})
        )
        removed.start()
        removed.join()
        cluster.wait_until_voters(3)
        load.wait_for_writes(30)
        cluster[1].kill()
        load.wait_for_writes(10)
    load.check()
    cluster.wait_until_equal()
