"""Two releases in one cluster, as processes: while it is upgraded, and if it is put back.

The release before is taken out of the project's history; where there is none, nothing is shown.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.history import archived
from tests.lab.process import ROOT, ServerProcess, running

BEFORE = "c4a0292bbce5cceb70675d3720db0206cc1d09de"
"""The last commit whose nodes say nothing of what they read."""


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archived(BEFORE, tmp_path_factory.mktemp("before"))


def hand_over(cluster: Cluster, to: Member) -> None:
    assert cluster.leader().post("/leader", {"ID": to.name}).status == 200
    wait_until(lambda: cluster.leader() is to)


def test_two_releases_share_a_cluster_and_open_each_others_data(
    tmp_path: Path, release_before: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        old = [cluster.add() for _ in range(3)][2]
        for member in cluster.members:
            member.engine = "btree"  # the only one that the release before knows
        old.script = release_before
        cluster.start(3)
        assert "speaks" not in old.stats()  # it is the release before
        written = 0

        def write() -> None:
            nonlocal written
            for _ in range(20):
                key, value = f"k{written}", b"%d" % written
                wait_until(lambda: cluster.leader().put(key, value).status == 200)  # noqa: B023
                written += 1

        write()
        hand_over(cluster, old)  # the release before leads the new one
        write()
        old.kill()
        write()
        old.start()
        cluster.wait_until_equal()
        hand_over(cluster, cluster[1])
        cluster[1].kill()
        write()
        cluster[1].start()
        cluster.wait_until_equal()
        assert '"node3": 1' in cluster[2].stats()["speaks"]  # it says nothing, which is 1

        # Each opens what the other has written, one node after the other.
        for member in cluster.members:
            member.terminate()
            member.script = ROOT / "conuredb.py" if member is old else release_before
            member.start()
            cluster.wait_until_voters(3)
            write()
        cluster.wait_until_equal()
        leader = cluster.leader()
        for number in range(written):
            assert leader.get(f"k{number}").body == b"%d" % number


def test_the_release_before_leaves_a_directory_of_the_other_engine_alone(
    tmp_path: Path, release_before: Path
) -> None:
    data = tmp_path / "data"
    with running(data, "--engine=lsm") as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        assert server.put("k", b"v").status == 200
        assert server.terminate() == 0

    def files() -> dict[str, bytes]:
        found = [path for path in data.rglob("*") if path.is_file() and path.name != "LOCK"]
        return {str(path): path.read_bytes() for path in found}

    before = files()
    server = ServerProcess(data, script=release_before)
    assert server.wait() == 2
    assert "has format 2, this version reads format 1" in server.text
    assert files() == before
    with running(data) as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        assert server.get("k").body == b"v"
