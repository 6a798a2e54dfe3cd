"""Nodes that form a cluster by a list: one short story for each rule (F1 to F4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conure.cluster.forming import LONGEST_PAUSE, MAX_ASKED, MAX_HINTS, Forming
from conure.cluster.node import TICK, Node
from conure.consensus.formation import cluster_id_of
from conure.consensus.members import Configuration
from conure.consensus.messages import Message, MessageType
from conure.errors import DiskFull, Refused, Unavailable
from conure.peers.forming import Question, Shown, check_shown, encode_shown
from conure.storage.datadir import DataDirectory
from tests.lab.nodes import Lab, checkpoint, put

NAMES = ("n1", "n2", "n3")


def peers_of(name: str, names: tuple[str, ...] = NAMES) -> tuple[str, ...]:
    return tuple(f"{other}:7001" for other in names if other != name)


def add(lab: Lab, name: str, names: tuple[str, ...] = NAMES, **changes: Any) -> Node:
    return lab.add(name, **{"peers": peers_of(name, names), **changes})


def started(*who: str, names: tuple[str, ...] = NAMES, **changes: Any) -> Lab:
    lab = Lab()
    for name in who:
        add(lab, name, names, **changes)
    return lab


def cluster_of(node: Node) -> str:
    return str(node.status()["cluster_id"])


def clusters(lab: Lab) -> set[str]:
    return {cluster_of(node) for node in lab.nodes.values()}


def first_entry(node: Node) -> bytes:
    return node._log.entries(1, 2, 1 << 20)[0].data


def first_names(node: Node) -> tuple[str, ...]:
    return Configuration.decode(first_entry(node)).voters


def differs(node: Node) -> str:
    return str(node.status()["forming"]["differs"])


def state(node: Node, address: str) -> str:
    peers = node.status()["forming"]["peers"]
    return next(str(peer["state"]) for peer in peers if peer["address"] == address)


def take(lab: Lab, name: str, shown: Shown, span: int | None = None) -> None:
    """Let a node have an answer: to what it has just asked, or asked in a *span* before."""
    forming = lab[name]._forming
    address = f"{shown.node_id}:7001"
    forming._answered(address, forming._span if span is None else span, shown)


def shown_by(lab: Lab, name: str, **changes: Any) -> Shown:
    return replace(lab[name].asked(Question("somebody", "else", "")), **changes)


def shown_to(lab: Lab, asker: str, name: str) -> Shown:
    question = Question(asker, lab[asker].greeting().incarnation, "")
    return check_shown(encode_shown(lab[name].asked(question)))


def acquainted(*names: str, **changes: Any) -> Lab:
    """Nodes that know each other and show that, and have formed nothing yet."""
    lab = started(*names, names=names, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forming, "_form", lambda *_: None)
        lab.tick(6)
    assert clusters(lab) == {""}
    (digest,) = {node.status()["forming"]["digest"] for node in lab.nodes.values()}
    assert digest
    for node in lab.nodes.values():
        for peer in node._forming._peers.values():
            peer.agreed = 0
    return lab


def begin_alone(lab: Lab, name: str) -> str:
    """Let one node begin the cluster, of which the others hear nothing; return its ID."""
    for other in lab.nodes:
        if other != name:
            take(lab, name, shown_by(lab, other))
    (cluster_id,) = clusters(lab) - {""}
    assert cluster_of(lab[name]) == cluster_id
    return cluster_id


def test_three_nodes_begin_one_cluster() -> None:
    lab = started(*NAMES)
    lab.leader()
    lab.tick_until(lambda: len(clusters(lab)) == 1 and "" not in clusters(lab))
    beginnings = {first_entry(node) for node in lab.nodes.values()}
    assert len(beginnings) == 1
    formation = Configuration.decode(beginnings.pop())
    assert clusters(lab) == {cluster_id_of(formation)}
    assert formation.voters == NAMES
    put(lab, b"k", b"v")
    assert lab.leader().status()["forming"] is None
    assert not any("waiting for peers" in why for _, _, why in lab["n1"].readiness())


def test_nothing_is_formed_before_the_last_one_is_there() -> None:
    lab = started("n1", "n2")
    lab.tick(100)
    assert clusters(lab) == {""}
    assert "can't be reached" in state(lab["n1"], "n3:7001")
    assert state(lab["n1"], "n2:7001") == "(n2) doesn't know all members"
    checks = {name: (passes, why) for name, passes, why in lab["n1"].readiness()}
    passes, why = checks["member"]
    assert not passes
    assert why.startswith("waiting for peers: n2:7001 (n2) doesn't know all members, n3:7001")
    add(lab, "n3")
    lab.tick(6)
    assert len(clusters(lab)) == 1
    assert "" not in clusters(lab)


def test_who_waits_says_so_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conure.node")
    lab = started("n1", "n2")
    lab.tick(2 * 1300)
    said = [line for line in caplog.messages if "waiting for peers" in line and "node n1" in line]
    assert len(said) == 2


def test_questions_become_rare_and_are_frequent_again_when_something_changes() -> None:
    lab = started("n1")
    asked: list[str] = []

    def ask(address: str, question: Question, reply: Callable[[Any], None]) -> None:
        asked.append(address)
        lab.questions.append(("n1", address, question, reply))

    lab["n1"]._peers.ask = ask  # type: ignore[method-assign]
    lab.tick(20)
    early = len(asked)
    lab.tick(400)
    asked.clear()
    lab.tick(20)
    assert len(asked) < early / 3
    add(lab, "n2")
    asked.clear()
    lab.tick(6)
    assert len(asked) >= 4


def questions(lab: Lab, name: str) -> list[tuple[str, Callable[[Any], None]]]:
    """Return, from here on, what a node asks: of whom, and what is to be told the answer."""
    asked: list[tuple[str, Callable[[Any], None]]] = []

    def ask(address: str, question: Question, reply: Callable[[Any], None]) -> None:
        assert not lab[name]._monitor.lock.locked()
        asked.append((address, reply))

    lab[name]._peers.ask = ask  # type: ignore[method-assign]
    return asked


def test_a_few_are_asked_at_a_time_and_each_in_its_turn() -> None:
    many = tuple(f"m{number}:7001" for number in range(31))
    lab = started("n1", peers=many)
    asked = questions(lab, "n1")
    turns = int(2 * LONGEST_PAUSE / TICK)  # in which each is due twice
    seen: list[str] = []
    for _ in range(3 * turns):
        lab.tick()
        assert len(asked) <= MAX_ASKED
        address, reply = asked.pop(0)  # one of them takes long, the next one is asked then
        seen.append(address)
        reply(Unavailable("doesn't answer"))
    for begin in range(0, 3 * turns, turns):
        assert set(seen[begin : begin + turns]) == set(many)


def test_a_question_that_finds_no_thread_is_asked_again() -> None:
    lab = started("n1")

    def ask(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab["n1"]._peers, "ask", ask, raising=False)
        lab.tick(2)
    assert state(lab["n1"], "n2:7001") == "can't be asked: can't start new thread"
    add(lab, "n2")
    add(lab, "n3")
    lab.leader()
    lab.tick_until(lambda: len(clusters(lab)) == 1 and "" not in clusters(lab))


def test_it_is_shown_on_whom_a_node_waits() -> None:
    lab = started("n1", "n2")
    registry = lab.registries["n1"]
    lab.tick(20)
    assert lab["n1"].status()["forming"]["waits_for"] == ["n2:7001", "n3:7001"]
    page = registry.render().decode()
    assert "conure_forming 1\n" in page
    assert 'conure_forming_waits_for{address="n3:7001"} 1\n' in page
    lab.stop("n1")
    lab = acquainted(*NAMES)
    lab.cut.add("n3")
    take(lab, "n1", shown_by(lab, "n2"))
    take(lab, "n1", shown_by(lab, "n3", digest=""))
    assert lab["n1"].status()["forming"]["waits_for"] == ["n3:7001"]
    lab.cut.clear()
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))
    page = lab.registries["n1"].render().decode()
    assert "conure_forming 0\n" in page
    assert "conure_forming_waits_for{" not in page


def test_a_list_over_a_cluster_of_one_says_what_will_not_happen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = Lab()
    lab.add("n1", bootstrap=True)
    lab.stop("n1")
    add(lab, "n1")
    (warning,) = [line for line in caplog.messages if line.startswith("peers is ignored")]
    assert "a cluster of its own already" in warning
    assert "--join=http://n1:8081" in warning
    assert "with an empty data directory" in warning


def test_a_digest_counts_only_if_it_came_while_this_node_showed_it() -> None:
    """What was asked for before does not (F1), though it is the same digest."""
    lab = acquainted("n1", "n2")
    span = lab["n1"]._forming._span
    take(lab, "n1", shown_by(lab, "n2"), span - 1)
    assert clusters(lab) == {""}
    take(lab, "n1", shown_by(lab, "n2"), span)
    assert cluster_of(lab["n1"])


def test_facts_that_change_take_back_what_was_shown() -> None:
    """What others showed before does not count afterwards, though all is as it was (F1)."""
    lab = acquainted(*NAMES)
    digest = lab["n1"].status()["forming"]["digest"]
    take(lab, "n1", shown_by(lab, "n2"))
    take(lab, "n1", shown_by(lab, "n3", incarnation="another life"))
    assert lab["n1"].status()["forming"]["digest"] not in ("", digest)
    take(lab, "n1", shown_by(lab, "n3"))
    assert lab["n1"].status()["forming"]["digest"] == digest
    take(lab, "n1", shown_by(lab, "n3"))
    assert clusters(lab) == {""}  # n2 has to show it again
    take(lab, "n1", shown_by(lab, "n2"))
    assert cluster_of(lab["n1"])


@pytest.mark.parametrize("digest", ["", "0" * 64])
def test_all_others_have_to_show_it(digest: str) -> None:
    lab = acquainted(*NAMES)
    take(lab, "n1", shown_by(lab, "n2"))
    take(lab, "n1", shown_by(lab, "n3", digest=digest))
    assert clusters(lab) == {""}
    take(lab, "n1", shown_by(lab, "n3"))
    assert cluster_of(lab["n1"])


def test_what_was_shown_counts_no_more_once_something_else_is_shown() -> None:
    lab = acquainted(*NAMES)
    take(lab, "n1", shown_by(lab, "n2"))
    take(lab, "n1", shown_by(lab, "n2", digest=""))
    take(lab, "n1", shown_by(lab, "n3"))
    assert clusters(lab) == {""}


def test_a_node_that_was_formed_with_adopts_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """n1 alone has begun the cluster; the others were started again with other settings (F4)."""
    lab = acquainted(*NAMES)
    cluster_id = begin_alone(lab, "n1")
    for name in ("n2", "n3"):
        lab.stop(name)
        add(lab, name, quorum_size=3)
    lab.tick(3)
    assert clusters(lab) == {cluster_id}
    assert len({first_entry(node) for node in lab.nodes.values()}) == 1
    assert lab.leader().status()["quorum_size"] is None
    said = [line for line in caplog.messages if "before it was started with other settings" in line]
    assert len(said) == 2


@pytest.mark.parametrize("place", [{}, {"raft_address": "", "http_address": "", "http_port": 1}])
def test_a_founder_whose_leader_was_lost_before_it_sent_an_entry_begins_the_cluster(
    place: dict[str, Any],
) -> None:
    """It is of the cluster by a heartbeat, and without the first entry it could elect nobody."""
    lab = acquainted(*NAMES, **place)
    cluster_id = begin_alone(lab, "n1")
    lab.failed.add("n3")
    with lab["n2"]._monitor:
        lab["n2"]._admission.meet(replace(lab["n3"].greeting(), cluster_id=cluster_id))
    lab["n2"].receive([Message(MessageType.HEARTBEAT, "n3", "n2", 7)])
    assert cluster_of(lab["n2"]) == cluster_id
    assert lab["n2"]._raft.last_index == 0
    assert lab["n2"]._raft.term == 7
    lab.stop("n2")
    add(lab, "n2", **place)
    put(lab, b"k", b"v")
    assert first_entry(lab["n1"]) == first_entry(lab["n2"])


@pytest.mark.parametrize("has_heard", [False, True])
def test_a_founder_that_lags_is_where_its_cluster_has_it(has_heard: bool) -> None:
    """It leaves that to the lists, which it has forgotten; a leader may have written to it."""
    lab = acquainted(*NAMES, raft_address="")
    cluster_id = begin_alone(lab, "n1")
    if has_heard:
        lab["n2"]._directory.join_cluster(cluster_id)
    lab.stop("n2")
    add(lab, "n2", raft_address="")
    assert lab["n2"].greeting().raft_address == ""
    take(lab, "n2", shown_to(lab, "n2", "n1"))
    assert cluster_of(lab["n2"]) == cluster_id
    assert lab["n2"].greeting().raft_address == "n2:7001"
    put(lab, b"k", b"v")


def test_who_lost_its_disk_amid_it_never_takes_its_old_seat() -> None:
    lab = acquainted(*NAMES)
    cluster_id = begin_alone(lab, "n1")
    lab.wipe("n2")
    add(lab, "n2")
    lab.leader()
    lab.tick(100)
    assert [cluster_of(lab[name]) for name in NAMES] == [cluster_id, "", cluster_id]
    assert "not formed with this node and its data directory" in differs(lab["n2"])
    assert lab["n2"].seeds()
    assert lab["n2"].wants_to_join()
    refusal = lab.join("n2")
    assert refusal is not None
    assert "remove n2 from the cluster" in str(refusal)
    assert lab.remove("n2") is None
    assert lab.join("n2") is None
    lab.tick_until(lambda: clusters(lab) == {cluster_id})
    assert lab["n2"].seeds() == ()


def test_a_cluster_that_is_lost_with_all_its_disks_is_formed_anew() -> None:
    lab = acquainted(*NAMES)
    lost = begin_alone(lab, "n1")
    lab.wipe("n1")
    add(lab, "n1")
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))
    assert len(clusters(lab)) == 1
    assert lost not in clusters(lab)


@pytest.mark.parametrize("field", ["cluster_id", "incarnation"])
def test_what_is_not_formed_with_this_node_is_not_adopted(field: str) -> None:
    lab = acquainted(*NAMES)
    begin_alone(lab, "n1")
    shown = shown_to(lab, "n2", "n1")
    if field == "cluster_id":
        shown = replace(shown, cluster_id="f" * 32)
    else:
        assert shown.formation is not None
        (other,) = [server for server in shown.formation.servers if server.id == "n2"]
        formation = shown.formation.with_server(replace(other, incarnation="another life"))
        shown = replace(shown, formation=formation, cluster_id=cluster_id_of(formation))
    take(lab, "n2", shown)
    assert cluster_of(lab["n2"]) == ""


def test_a_node_that_is_told_of_two_clusters_asks_neither() -> None:
    lab = Lab()
    lab.add("n2", bootstrap=True)
    lab.add("n3", bootstrap=True)
    add(lab, "n1")
    lab.tick(20)
    assert cluster_of(lab["n1"]) == ""
    assert lab["n1"].seeds() == ()


def test_a_peer_that_bootstraps_forms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab()
    lab.add("n1", bootstrap=True)
    add(lab, "n2")
    add(lab, "n3")
    lab.tick(60)
    assert cluster_of(lab["n2"]) == cluster_of(lab["n3"]) == ""
    assert lab["n2"].seeds() == ("n1:7001", "http://n1:8081")  # which an earlier release knows
    said = [line for line in caplog.messages if line.startswith("no cluster is formed")]
    assert len(said) == 2  # once each
    assert lab.join("n2") is None
    assert lab.join("n3") is None
    assert len(clusters(lab)) == 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"node_id": "n1"}, "two nodes have the ID n1"),
        ({"quorum_size": 2}, "the quorum size is not set here and 2 at n2"),
        ({"peers": ("n1:7001",)}, "n2 at n2:7001 doesn't list n3:7001"),
        ({"peers": ("n1:7001", "n3:7001", "n4:7001")}, "lists n4:7001"),
        ({"peers": ("10.0.0.1:7001", "n3:7001")}, "different addresses"),
        ({"peers": ()}, "n2 at n2:7001 has no list"),
        ({"raft_address": "elsewhere:7001"}, "says itself that it is reached at elsewhere:7001"),
    ],
)
def test_whatever_differs_forms_nothing_and_is_told_once(
    changes: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab = started("n1", "n3")
    add(lab, "n2", **changes)
    lab.tick(100)
    assert clusters(lab) == {""}
    assert what in differs(lab["n1"])
    said = [line for line in caplog.messages if what in line]
    assert 1 <= len(said) <= 3  # once by each
    assert what in {name: why for name, _, why in lab["n1"].readiness()}["member"]
    lab.stop("n2")
    if "node_id" in changes:
        del lab.disks["n2"]
    add(lab, "n2")
    lab.leader()
    lab.tick_until(lambda: len(clusters(lab)) == 1)


def test_an_id_that_is_not_the_listed_one_forms_nothing() -> None:
    lab = started("n1", "n2", "n3")
    lab.stop("n1")
    add(lab, "n1", peers=("n9@n2:7001", "n3@n3:7001"))
    lab.tick(60)
    assert cluster_of(lab["n1"]) == ""
    assert differs(lab["n1"]) == "n2 answers at n2:7001, where n9 is listed"


def test_wildcard_addresses_are_what_the_others_list() -> None:
    lab = started(*NAMES, raft_address="", http_address="", http_port=8181)
    assert lab["n1"].greeting().raft_address == ""
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))
    servers = {server["id"]: server for server in lab["n1"].members()["servers"]}
    assert servers["n2"]["address"] == "n2:7001"
    assert servers["n2"]["http_address"] == "http://n2:8181"
    lab.stop("n2")
    add(lab, "n2", raft_address="", http_address="", http_port=8181)
    assert lab["n2"].greeting().raft_address == "n2:7001"  # as the cluster has it
    put(lab, b"k", b"v")


def test_a_node_may_be_on_its_own_list() -> None:
    everyone = tuple(f"{name}:7001" for name in NAMES)
    lab = started(*NAMES, peers=everyone)
    lab.leader()
    lab.tick_until(lambda: len(clusters(lab)) == 1 and "" not in clusters(lab))
    wild = started(*NAMES, peers=everyone, raft_address="", http_address="", http_port=1)
    wild.leader()
    wild.tick_until(lambda: len(clusters(wild)) == 1 and "" not in clusters(wild))


@pytest.mark.parametrize("raft_address", ["n1:7001", ""])
def test_a_name_that_leads_astray_for_a_while_takes_nobody_off_the_list(
    raft_address: str,
) -> None:
    """The name of n2 led to n1 itself for a while, as an old entry of DNS may."""
    lab = started("n3")
    add(lab, "n1", raft_address=raft_address)
    lab.tick(4)
    forming = lab["n1"]._forming
    forming._answered("n2:7001", forming._span, shown_to(lab, "n1", "n1"))
    assert state(lab["n1"], "n2:7001") == "is this node"
    assert "this node is listed at different addresses" in differs(lab["n1"])
    add(lab, "n2")
    lab.leader()
    lab.tick_until(lambda: len(clusters(lab)) == 1 and "" not in clusters(lab))
    assert set(first_names(lab["n1"])) == set(NAMES)


def test_who_is_alone_on_its_list_says_so() -> None:
    lab = started("n1", peers=("n1:7001",), raft_address="")
    lab.tick(60)
    assert differs(lab["n1"]) == "a cluster is formed by 2 to 32 nodes, not by 1"
    assert "is this node" in {name: why for name, _, why in lab["n1"].readiness()}["member"]


def test_one_list_for_all_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "conure.node")
    wild: Any = {"raft_address": "", "http_address": "", "http_port": 1}
    everyone = tuple(f"{name}:7001" for name in NAMES)
    lab = started(*NAMES, peers=everyone, **wild)
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))
    lab.stop("n1")
    add(lab, "n1", peers=everyone, **wild)
    assert "peers is ignored: this node is of a cluster already" in caplog.messages
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_who_is_of_a_cluster_and_not_the_one_that_is_listed_is_not_asked() -> None:
    lab = acquainted(*NAMES)
    begin_alone(lab, "n1")
    lab.wipe("n2")
    add(lab, "n2", peers=("n9@n1:7001", "n3:7001"))
    lab.tick_until(lambda: "n9 is listed" in differs(lab["n2"]))
    assert "belongs to cluster" in state(lab["n2"], "n1:7001")
    lab.cut.add("n3")
    assert lab["n2"].seeds() == ()


def test_the_quorum_size_is_part_of_the_formation() -> None:
    lab = started(*NAMES, quorum_size=3)
    put(lab, b"k", b"v")
    assert lab.leader().status()["quorum_size"] == 3


def test_an_arbiter_takes_part() -> None:
    lab = started("n1", "n2")
    add(lab, "n3", role="arbiter")
    put(lab, b"k", b"v")
    roles = {server["id"]: server["role"] for server in lab["n1"].members()["servers"]}
    assert roles == {"n1": "data", "n2": "data", "n3": "arbiter"}


def test_a_node_of_a_cluster_ignores_its_list(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "conure.node")
    lab = started(*NAMES)
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))
    lab.stop("n1")
    caplog.clear()
    add(lab, "n1")
    assert "peers is ignored: this node is of a cluster already" in caplog.messages
    lab.stop("n1")
    caplog.clear()
    add(lab, "n1", names=("n1", "n2"))
    (warning,) = [line for line in caplog.messages if line.startswith("peers is ignored")]
    assert warning.endswith("at n2:7001, n3:7001")
    lab.leader()


# -- crashes and full disks ----------------------------------------------------------------------


def full(*_: object) -> None:
    raise DiskFull("writing failed: no space left")


def test_a_crash_before_the_cluster_id_is_written_is_finished_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = acquainted(*NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "join_cluster", full)
        for name in ("n2", "n3"):
            take(lab, "n1", shown_by(lab, name))
        assert lab["n1"]._log.last_index == 1
        assert cluster_of(lab["n1"]) == ""
        shown = shown_by(lab, "n1")
        assert (shown.digest, shown.cluster_id, shown.formation) == ("", "", None)
        lab.stop("n1")
        add(lab, "n1")  # a full disk is no reason not to start
        assert cluster_of(lab["n1"]) == ""
    lab.tick(40)
    cluster_id = cluster_of(lab["n1"])
    assert cluster_id == cluster_id_of(Configuration.decode(first_entry(lab["n1"])))
    lab.leader()
    lab.tick_until(lambda: clusters(lab) == {cluster_id})


def test_a_log_without_a_cluster_is_that_of_its_founders(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = acquainted(*NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "join_cluster", full)
        for name in ("n2", "n3"):
            take(lab, "n1", shown_by(lab, name))
        lab.stop("n1")
    add(lab, "n1")
    formation = Configuration.decode(first_entry(lab["n1"]))
    assert cluster_of(lab["n1"]) == cluster_id_of(formation)


def test_a_full_disk_forms_nothing_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = started(*NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "keep_formation", full)
        lab.tick(40)
        assert clusters(lab) == {""}
        assert differs(lab["n1"]).startswith("no room to form a cluster")
    lab.leader()
    lab.tick_until(lambda: "" not in clusters(lab))


def test_a_node_amid_it_hears_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log begins with one cluster; a leader of another one could make it that one's."""
    lab = acquainted(*NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "join_cluster", full)
        for name in ("n2", "n3"):
            take(lab, "n1", shown_by(lab, name))
    other = Lab()
    leader = other.add("n2", bootstrap=True)
    theirs, mine = leader.greeting(), lab["n1"].greeting()
    with lab["n1"]._monitor:
        lab["n1"]._admission.meet(theirs)
    lab["n1"].receive([Message(MessageType.HEARTBEAT, "n2", mine.node_id, 9)])
    assert cluster_of(lab["n1"]) == ""


def test_the_formation_outlives_the_log_of_it() -> None:
    """A founder that was away for long begins the cluster it was formed with, though nobody has
    the first entry any more, and helps to elect a leader."""
    lab = acquainted(*NAMES)
    cluster_id = begin_alone(lab, "n1")
    lab.cut.add("n3")
    lab.leader()
    for number in range(40):
        put(lab, b"%d" % number, b"v" * 300)
    for _ in range(3):
        put(lab, b"k", b"v")
        checkpoint(lab["n1"])
    lab.stop("n2")
    lab.stop("n1")
    lab.cut.clear()
    add(lab, "n1")
    assert lab["n1"]._log.first_index > 1
    lab.tick_until(lambda: cluster_of(lab["n3"]) == cluster_id)
    put(lab, b"more", b"v")


def test_a_member_tells_strangers_nothing_that_they_could_pass_for() -> None:
    lab = acquainted(*NAMES)
    cluster_id = begin_alone(lab, "n1")
    secrets = [node.greeting().incarnation for node in lab.nodes.values()]
    for question in (
        Question("somebody", "else", ""),
        Question("n2", "another life", ""),
        Question("n2", "", ""),
    ):
        shown = lab["n1"].asked(question)
        assert shown.cluster_id == cluster_id
        assert shown.http_address == "http://n1:8081"
        assert not any(secret in str(encode_shown(shown)) for secret in secrets)
        assert shown.formation is None
    founder = shown_to(lab, "n2", "n1")
    assert founder.formation is not None
    assert founder.incarnation == ""


def test_a_formation_that_came_to_nothing_is_not_that_of_the_cluster() -> None:
    """It was kept, nothing was begun, and the node has become a member of another cluster."""
    lab = acquainted(*NAMES)
    formation = lab["n1"]._forming._look()
    assert formation is not None
    lab["n1"]._directory.keep_formation(formation.encode())
    lab["n1"]._directory.join_cluster("c" * 32)
    lab.stop("n1")
    add(lab, "n1")
    assert shown_to(lab, "n2", "n1").formation is None


def test_what_a_peer_refuses_is_shown() -> None:
    lab = started("n1")
    lab["n1"]._forming._answered("n2:7001", 0, Refused("of another time"))
    assert state(lab["n1"], "n2:7001") == "refuses: of another time"


def test_hints_of_strangers_are_bounded() -> None:
    lab = started("n1")
    for number in range(1000):
        lab["n1"].asked(Question(f"s{number}", "x", ""))
    assert len(lab["n1"]._forming._hints) <= MAX_HINTS
