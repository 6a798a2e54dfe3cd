"""``scaling.py`` against clusters of real processes: founding, growing and shrinking, stopping."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from conure.errors import Unavailable
from conure.ops import scaling
from conure.ops.scaling import Names
from tests.lab.cluster import Cluster, Member, fetch, wait_until
from tests.lab.process import ROOT, ServerProcess
from tests.lab.stubserver import MakeStub, refuse
from tests.lab.tlsfiles import Issuer

NOBODY = "http://127.0.0.1:1"
NOWHERE = "nobody.invalid"

BEGIN = """
import sys
sys.path.insert(0, {root!r})
from conure.ops import scaling
*flags, witnesses = sys.argv[1:]
scaling.begin(flags[0].partition("=")[2], {peers!r}, witnesses.split(","), flags)
"""


class LocalNames(Names):
    """Names of processes on this machine: *domain* holds their addresses."""

    def url(self, member: str) -> str:
        return str(json.loads(self.domain).get(member, ["http://127.0.0.1:1"])[0])

    def raft_address(self, member: str) -> str:
        return str(json.loads(self.domain)[member][1])


def names_of(cluster: Cluster, voters: int, arbiter: bool = False) -> Names:
    places = {member.name: [member.url, member.raft_address] for member in cluster.members}
    return LocalNames("db", json.dumps(places), voters, arbiter)


def start(cluster: Cluster, voters: int, arbiter: bool = False) -> Member:
    """Start a cluster whose members are called as the chart's pods are; return its founder."""
    names = Names("db", "", voters, arbiter).wanted
    for name in names:
        cluster.add(*["--role=arbiter"] * ("arbiter" in name)).name = name
    cluster.start(len(names))
    return cluster.members[0]


def hand_over(cluster: Cluster, to: Member) -> None:
    assert cluster.members[0].post("/leader", {"ID": to.name}).status == 200
    wait_until(lambda: bool(to.status().get("is_leader")))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LOOK", 0.05)
    monkeypatch.setattr(scaling, "ASK_TIMEOUT", 1.0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        yield made


# -- growing and shrinking -------------------------------------------------------------------------


def test_surplus_goes_youngest_first_and_the_arbiter_last() -> None:
    names = Names("db", "x", 3, False)
    members = [
        "db-arbiter-0",
        "db-2",
        "db-10",
        "db-bootstrap-0",
        "db-0",
        "db-1",
        "other-7",
        "xdb-9",
    ]
    assert names.surplus(members) == ["db-10", "db-2", "db-arbiter-0"]
    assert names._replace(arbiter=True).surplus(members) == ["db-10", "db-2"]
    assert names.wanted == ["db-bootstrap-0", "db-0", "db-1"]


def test_a_cluster_shrinks_by_its_leader_and_its_arbiter_and_may_be_told_again(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    founder = start(cluster, 4, arbiter=True)
    assert founder.put("kept", b"value").status == 200
    hand_over(cluster, cluster.members[3])
    names = names_of(cluster, 3)

    assert scaling.resize(names, 20.0) == 0

    assert set(founder.servers()) == set(names.wanted)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("db-2 has handed leadership over to db-")
    assert told[1:3] == [
        "db-2 was removed from the cluster",
        "db-arbiter-0 was removed from the cluster",
    ]
    for member in cluster.members[3:]:
        member.kill()
    assert founder.get("kept").body == b"value"

    before = founder.stats()["latest_configuration"]
    assert scaling.resize(names, 20.0) == 0
    assert founder.stats()["latest_configuration"] == before


def test_a_removal_that_would_cost_the_quorum_is_refused(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    founder = start(cluster, 5)
    hand_over(cluster, founder)
    cluster.members[1].kill()
    cluster.members[2].kill()

    assert scaling.resize(names_of(cluster, 4), 3.0) == 1

    assert len(founder.servers()) == 5
    assert "refused: only 2 of the 4 voters besides db-3 answer" in capsys.readouterr().err


def test_a_removal_is_not_asked_for_where_too_few_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader counts on who answered a moment ago; a removal can't be taken back then."""
    members = {
        f"db-{n}": {"id": f"db-{n}", "suffrage": "voter", "http_address": f"http://db-{n}"}
        for n in range(5)
    }
    members["db-9"] = {"id": "db-9", "suffrage": "nonvoter", "http_address": "http://db-9"}
    answering = {"http://db-0", "http://db-1", "http://db-4", "http://db-9"}
    monkeypatch.setattr(scaling, "_status", lambda url: {} if url in answering else None)
    with pytest.raises(Unavailable, match="only 2 of the 4 voters besides db-4 answer, and 3 must"):
        scaling._check_quorum("db-4", members)
    answering.add("http://db-2")
    scaling._check_quorum("db-4", members)
    for member in members.values():
        member["role"] = "data"
    scaling._check_quorum("db-4", members, 3)
    with pytest.raises(Unavailable, match=r"only 3 of the data .* size 4 must"):
        scaling._check_quorum("db-4", members, 4)
    members["db-0"]["role"] = "arbiter"
    with pytest.raises(Unavailable, match=r"only 2 of the data .* size 3 must"):
        scaling._check_quorum("db-4", members, 4)


def test_without_a_leader_only_pods_that_have_to_go_hold_an_upgrade_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "ASK_TIMEOUT", 0.2)
    monkeypatch.setattr(scaling, "UNREACHABLE", 0.2)
    names = LocalNames("db", "{}", 3, False)
    assert scaling.resize(names, 5.0) == 0
    assert "need not be asked" in capsys.readouterr().err

    monkeypatch.setattr(scaling, "resolves", lambda host: host.startswith("db-2."))
    assert scaling.resize(names, 1.0) == 1
    assert "refused: none of" in capsys.readouterr().err


def test_who_was_removed_and_is_wanted_again_comes_back(cluster: Cluster) -> None:
    """An upgrade that is given up after its removals, and rolled back: no pod is restarted."""
    founder = start(cluster, 4)
    assert scaling.resize(names_of(cluster, 3), 20.0) == 0
    removed = cluster.members[3]
    wait_until(lambda: removed.status().get("member") is False)

    assert scaling.resize(names_of(cluster, 4), 20.0) == 0

    wait_until(lambda: removed.name in founder.voters())


def test_an_old_claim_comes_back_with_its_ordinal(cluster: Cluster) -> None:
    """Scaled down, and up again later: the directory is the old one, and is brought up to date."""
    founder = start(cluster, 4)
    old = cluster.members[3]
    assert founder.put("before", b"1").status == 200
    assert scaling.resize(names_of(cluster, 3), 20.0) == 0
    old.terminate()
    assert founder.put("between", b"2").status == 200
    assert founder.delete("before").status == 200

    old.start(f"--join={founder.url}")

    wait_until(lambda: old.name in founder.voters())
    wait_until(lambda: old.get("between", stale=True).body == b"2")
    assert old.get("before", stale=True).status == 404


# -- founding and joining --------------------------------------------------------------------------


@pytest.fixture
def processes() -> Iterator[list[ServerProcess]]:
    started: list[ServerProcess] = []
    yield started
    for process in started:
        process.kill()


def begin(
    processes: list[ServerProcess], data: Path, witnesses: Sequence[str], *flags: str
) -> ServerProcess:
    script = data.parent / "begin.py"
    script.write_text(BEGIN.format(root=str(ROOT), peers=NOWHERE))
    process = ServerProcess(data, *flags, ",".join(witnesses), script=script)
    processes.append(process)
    return process


def test_a_cluster_is_founded_once_and_for_all(
    tmp_path: Path, processes: list[ServerProcess]
) -> None:
    data = tmp_path / "founder"
    witness = ServerProcess(tmp_path / "db-0", "--node-id=db-0")
    processes.append(witness.wait_until_listening())

    # Not while somebody who might know better can't be asked.
    founder = begin(processes, data, [witness.url, NOBODY], "--node-id=db-bootstrap-0")
    wait_until(lambda: any(f"before {NOBODY} can be asked" in line for line in founder.log))
    assert founder.terminate() != 0
    assert not scaling.cluster_of(str(data))

    founder = begin(processes, data, [witness.url], "--node-id=db-bootstrap-0")
    founder.wait_until_listening()
    cluster_id = scaling.cluster_of(str(data))
    assert cluster_id

    # With its state it needs nobody.
    founder.kill()
    founder = begin(processes, data, [NOBODY], "--node-id=db-bootstrap-0")
    founder.wait_until_listening()
    assert scaling.cluster_of(str(data)) == cluster_id


def test_the_founder_that_lost_its_disk_founds_nothing_again(
    cluster: Cluster, processes: list[ServerProcess], tmp_path: Path
) -> None:
    lost = start(cluster, 3)
    assert lost.put("kept", b"value").status == 200
    first, second = cluster.members[1:]
    lost.kill()
    lost.wipe()
    leader = cluster.leader([first, second])

    back = begin(
        processes,
        lost.data,
        [first.url, second.url],
        f"--node-id={lost.name}",
        f"--raft-addr={lost.raft_address}",
        f"--join={first.url}",
    )
    wait_until(lambda: any("remove db-bootstrap-0" in line for line in back.log))
    assert json.loads(back.request("GET", "/status").body)["member"] is False

    assert leader.post("/remove", {"ID": lost.name}).status == 200
    wait_until(lambda: lost.name in leader.voters())
    wait_until(lambda: back.get("kept", stale="true").body == b"value")
    assert scaling.cluster_of(str(lost.data)) == scaling.cluster_of(str(first.data))


def test_waiting_ends_with_a_founder_a_cluster_or_state_of_ones_own(
    tmp_path: Path, cluster: Cluster
) -> None:
    scaling.wait(str(tmp_path), "localhost", NOBODY)
    start(cluster, 2)
    scaling.wait(str(tmp_path), NOWHERE, cluster.members[1].url)
    scaling.wait(str(cluster.members[1].data), NOWHERE, NOBODY)

    waiting = threading.Thread(target=scaling.wait, args=(str(tmp_path), NOWHERE, NOBODY))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    (tmp_path / "identity.json").write_text("not what it should be: the server says so")
    waiting.join(10)
    assert not waiting.is_alive()


# -- stopping in turn ------------------------------------------------------------------------------


def leave(member: Member, settle: float = 0.0, linger: float = 0.0) -> threading.Thread:
    thread = threading.Thread(
        target=scaling.leave,
        args=(member.url,),
        kwargs={"settle": settle, "timeout": 30.0, "linger": linger},
    )
    thread.start()
    return thread


def test_a_leader_that_may_stop_hands_over_and_stays_a_member(cluster: Cluster) -> None:
    start(cluster, 3)
    leader = cluster.leader()
    leave(leader).join(10)
    wait_until(lambda: leader.status().get("is_leader") is False)
    assert leader.name in cluster.leader().voters()


def test_nobody_stops_while_a_quorum_needs_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two controllers restart their pods at one time: one waits until the other's is back."""
    monkeypatch.setattr(scaling, "PATIENCE", 0.0)
    start(cluster, 3)
    first, second = cluster.members[:2]
    second.kill()
    leaving = leave(first)
    leaving.join(1.0)
    assert leaving.is_alive()
    second.start()
    leaving.join(10)
    assert not leaving.is_alive()


def test_who_settles_waits_for_the_others_to_be_there_for_some_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = []
    is_up = scaling._is_up

    def look(server: str, known_index: int) -> bool:
        found = is_up(server, known_index)
        if not found:
            missed.append(time.monotonic())
        return found

    monkeypatch.setattr(scaling, "_is_up", look)
    start(cluster, 3)
    leaving = leave(cluster.members[0], settle=1.0)
    cluster.members[1].terminate()
    gone = time.monotonic()
    wait_until(lambda: bool(missed) and missed[-1] > gone)
    cluster.members[1].start()
    leaving.join(20)
    assert not leaving.is_alive()
    assert time.monotonic() - missed[-1] >= 1.0


def test_one_that_is_gone_for_long_holds_nobody_up_that_a_quorum_can_spare(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster, 4)
    cluster.members[3].kill()
    monkeypatch.setattr(scaling, "PATIENCE", 0.5)
    # Four voters need three: with one gone nobody can be spared, until the dead one is removed.
    leaving = leave(cluster.members[1])
    leaving.join(1.0)
    assert leaving.is_alive()
    assert cluster.members[0].post("/remove", {"ID": cluster.members[3].name}).status == 200
    leaving.join(10)
    assert not leaving.is_alive()


def test_who_has_no_cluster_to_care_for_stops_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "FORLORN", 0.3)
    monkeypatch.setattr(scaling, "OWN_TIMEOUT", 0.5)
    scaling.leave(NOBODY, settle=60.0, timeout=60.0)
    start(cluster, 3)
    last = cluster.members[2]
    for member in cluster.members[:2]:
        member.kill()
    leave(last, settle=60.0).join(10)
    assert last.status()["leader_id"] == ""


def test_whose_release_is_uninstalled_stops_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster, 3)
    monkeypatch.setattr(scaling, "resolves", lambda host: False)
    leaving = leave(cluster.members[0], settle=60.0)
    leaving.join(10)
    assert not leaving.is_alive()


def test_a_member_that_was_removed_stays_only_until_nobody_is_sent_to_it(cluster: Cluster) -> None:
    start(cluster, 4)
    assert scaling.resize(names_of(cluster, 3), 20.0) == 0
    removed = cluster.members[3]
    wait_until(lambda: removed.status().get("member") is False)
    wait_until(lambda: not removed.status()["leader_id"])
    leaving = leave(removed, settle=60.0, linger=0.5)
    leaving.join(0.3)
    assert leaving.is_alive()
    assert removed.put("late", b"1").status == 200  # it still knows who led
    leaving.join(10)
    assert not leaving.is_alive()


# -- the command line ------------------------------------------------------------------------------


def test_wrong_usage_is_status_2() -> None:
    with pytest.raises(SystemExit) as ended:
        scaling.main(["resize", "--name=db"])
    assert ended.value.code == 2


def test_a_leader_that_is_none_any_more_is_not_believed(cluster: Cluster) -> None:
    founder = start(cluster, 2)
    cluster.members[1].kill()
    wait_until(lambda: not founder.status()["is_leader"])
    with pytest.raises(Unavailable):
        scaling._find_leader([founder.url, NOBODY])
    assert fetch("GET", founder.url + "/livez").status == 200


# -- by https --------------------------------------------------------------------------------------


def test_how_servers_are_asked_stands_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, make_stub: MakeStub, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    mine = issuer.issue("me")
    stub = make_stub(issuer.issue("db.example").server_context(issuer.file))
    answer = refuse(200, json.dumps({"cluster_id": "c"}))
    names = Names("db", "svc", 3, arbiter=False)
    assert names.url("db-0") == "http://db-0.svc:8081"
    for name, value in (("CA", issuer.file), ("CERT", mine.cert), ("KEY", mine.key)):
        monkeypatch.setenv(f"CONURE_{name}", value)
    assert names.url("db-0") == "https://db-0.svc:8081"
    assert scaling._url("::1") == "https://[::1]:8081"
    assert scaling._status(stub.url) is None  # it bears another name
    stub.acts = [answer, answer]
    assert scaling._find_cluster([stub.url], "db.example") == (stub.url, "c")
    monkeypatch.setenv("CONURE_TLS_NAME", "db.example")
    assert scaling._status(stub.url) == {"cluster_id": "c"}
    monkeypatch.setenv("CONURE_SERVER", "http://db-0.svc:8081")
    assert names.url("db-0") == "http://db-0.svc:8081"
