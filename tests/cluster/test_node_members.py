"""Members of a cluster of nodes: joining, leaving, moving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conure.cluster.membership import newcomer
from conure.consensus.members import Configuration
from conure.consensus.messages import (
    State,
)
from conure.errors import (
    Conflict,
    ConureError,
    ForeignDirectory,
    MemberNotFound,
    NotLeader,
)
from tests.lab.answers import value_of
from tests.lab.nodes import (
    cluster,
    put,
    read,
    suffrages,
)


def test_three_nodes_join_replicate_and_agree() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    assert suffrages(lab["n3"]) == {"n1": "voter", "n2": "voter", "n3": "voter"}
    assert [value_of(lab[n], b"k") for n in ("n1", "n2", "n3")] == [b"v"] * 3
    assert len({node._store.digest for node in lab.nodes.values()}) == 1
    assert len({node._directory.identity.cluster_id for node in lab.nodes.values()}) == 1


def test_a_node_that_nobody_reaches_is_not_added() -> None:
    lab = cluster()
    answer = lab.join("n2")
    assert isinstance(answer, Conflict)
    assert "nobody answers at n2:7001" in str(answer)
    assert suffrages(lab["n1"]) == {"n1": "voter"}
    put(lab, b"k", b"v")


def test_a_node_of_another_cluster_is_not_added() -> None:
    lab = cluster()
    lab.add("n2", bootstrap=True)
    answers: list[ConureError | None] = []
    lab["n1"].join("n2", "n2:7001", "", voter=True, role="", reply=answers.append)
    assert isinstance(answers[0], Conflict)
    assert str(answers[0]) == "n2 was not added: it belongs to another cluster"
    assert suffrages(lab["n1"]) == {"n1": "voter"}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"raft_address": "n2:9999"}, "nobody answers"),
        ({"http_address": "http://elsewhere:1"}, "clients reach it at http://n2:8081"),
        ({"role": "arbiter"}, "runs with the role data"),
        ({"node_id": "n3"}, "another node is at this address"),
    ],
)
def test_a_join_with_wrong_facts_changes_nothing(facts: dict[str, str], why: str) -> None:
    lab = cluster()
    lab.add("n2")
    given = {"node_id": "n2", "raft_address": "n2:7001", "http_address": "", "role": ""} | facts
    answers: list[ConureError | None] = []
    lab["n1"].join(**given, voter=True, reply=answers.append)
    assert isinstance(answers[0], Conflict)
    assert why in str(answers[0])
    assert suffrages(lab["n1"]) == {"n1": "voter"}


def test_a_node_is_added_under_the_addresses_that_it_knows() -> None:
    """Another one may lead to it today: through a proxy, or a name that is about to change."""
    greeting = cluster()["n1"].greeting()
    wanted: dict[str, Any] = {"raft_address": "n1:7001", "http_address": "", "voter": True}
    assert newcomer(greeting, None, **wanted, role="").raft_address == "n1:7001"
    for changes, why in (
        ({"raft_address": "elsewhere:1"}, "peers reach it at n1:7001, not elsewhere:1"),
        ({"http_address": "http://x:1"}, "clients reach it at http://n1:8081, not http://x:1"),
    ):
        with pytest.raises(Conflict, match=why):
            newcomer(greeting, None, **{**wanted, **changes}, role="")


def test_a_learner_is_shown_as_one() -> None:
    lab = cluster()
    lab.add("n2")
    assert lab.join("n2", voter=False) is None
    assert suffrages(lab["n1"]) == {"n1": "voter", "n2": "nonvoter"}


def test_an_arbiter_holds_no_data_and_keeps_two_data_nodes_writable() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    put(lab, b"k", b"v")
    with pytest.raises(NotLeader):
        value_of(lab["a"], b"k")
    assert len(lab["a"]._store.engine) == 0
    lab.stop("n2")
    put(lab, b"k", b"w")
    lab.stop("a")
    lab.add("a", role="arbiter")
    put(lab, b"k", b"x")
    lab.stop("a")
    with pytest.raises(ForeignDirectory, match="role"):
        lab.add("a")


def test_a_wiped_disk_is_refused_until_the_member_is_removed() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.wipe("n3")
    lab.add("n3")
    lab.tick(20)
    assert any("another data directory" in why for why in lab.refused)
    assert lab["n3"]._log.last_index == 0
    assert isinstance(lab.join("n3"), Conflict)
    assert lab.remove("n3") is None
    assert lab.join("n3") is None
    lab.tick(5)
    assert value_of(lab["n3"], b"k") == b"v"


def test_who_is_behind_follows_a_leader_that_was_admitted_again_meanwhile() -> None:
    """Its log ends where that leader was a member with another disk."""
    lab = cluster("n2", "n3", "n4")
    lab.stop("n3")
    lab.wipe("n2")
    assert lab.remove("n2") is None
    lab.add("n2")
    assert lab.join("n2") is None
    answers: list[ConureError | None] = []
    lab.leader().hand_over("n2", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert lab.leader() is lab["n2"]
    put(lab, b"k", b"v")
    lab.add("n3")
    lab.tick(40)
    assert value_of(lab["n3"], b"k") == b"v"


def test_a_member_that_moved_is_found_and_one_entry_follows() -> None:
    lab = cluster("n2", "n3")
    lab.stop("n3")
    last = lab["n1"]._raft.last_index
    lab.add("n3", raft_address="elsewhere:7001", http_address="http://elsewhere:8081")
    lab.tick(60)
    server = lab.leader()._roster.members.get("n3")
    assert server is not None
    assert (server.raft_address, server.http_address) == ("elsewhere:7001", "http://elsewhere:8081")
    put(lab, b"k", b"v")
    lab.tick(5)
    assert value_of(lab["n3"], b"k") == b"v"
    log = lab["n1"]._log
    entries = log.entries(last + 1, log.last_index + 1, 1 << 20)
    assert sum(entry.kind == 2 for entry in entries) == 1


def test_an_arbiter_that_moved_is_found_without_a_leader() -> None:
    """It campaigns never, so it has to call the others by itself."""
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    lab.stop("n2")
    lab.stop("a")
    lab.tick(40)
    assert lab["n1"]._raft.state is not State.LEADER
    lab.add("a", role="arbiter", raft_address="elsewhere:7001")
    put(lab, b"k", b"v")
    server = lab.leader()._roster.members.get("a")
    assert server is not None
    assert server.raft_address == "elsewhere:7001"


def test_a_cluster_that_moved_as_a_whole_finds_itself_by_its_seeds() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    for node_id in ("n1", "n2", "n3"):
        lab.stop(node_id)
    for node_id in ("n1", "n2", "n3"):
        lab.add(node_id, raft_address=f"new-{node_id}:7001")
    lab.tick(60)
    assert all(node._raft.state is not State.LEADER for node in lab.nodes.values())
    for node_id in ("n2", "n3"):  # what a joiner does
        answers: list[ConureError | None] = []
        address = f"new-{node_id}:7001"
        lab["n1"].join(node_id, address, "", voter=True, role="data", reply=answers.append)
        assert isinstance(answers[0], NotLeader)
    put(lab, b"k", b"w")
    lab.tick(60)
    addresses = {server.id: server.raft_address for server in lab["n3"]._roster.members.servers}
    assert addresses == {n: f"new-{n}:7001" for n in ("n1", "n2", "n3")}


def test_a_removed_node_knows_and_stays_out() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    lab.tick(5)
    assert lab["n3"].status()["member"] is False
    assert not lab["n3"].wants_to_join()
    term = lab["n1"].status()["term"]
    lab.connecting.clear()
    lab.tick(100)
    assert lab["n1"].status()["term"] == term
    assert lab.connecting == {"n2": {"n1", "n2"}}  # n1 leads: it writes to the others anyway


def test_a_removed_node_leads_its_clients_on_to_who_led_then() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    lab.tick(100)
    assert lab["n3"].status()["leader_id"] == ""
    referral = lab["n3"].referral()
    assert referral is not None
    assert (referral.leader_id, referral.leader_http) == ("n1", "http://n1:8081")
    assert lab.join("n3") is None
    lab.tick(3)
    lab.cut.add("n3")
    lab.tick(100)
    assert lab["n3"].status()["leader_id"] == ""
    referral = lab["n3"].referral()
    assert referral is not None
    assert referral.leader_id == ""  # a member again: it waits for what its cluster elects


def test_a_node_that_was_removed_and_added_again_asks_for_its_place_like_any_member() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    assert not lab["n3"].wants_to_join()  # until it is started again
    assert lab.join("n3") is None
    lab.tick(3)
    assert not lab["n3"].wants_to_join()
    lab.cut.add("n3")
    lab.tick(110)  # nobody was heard for longer than five seconds
    assert lab["n3"].wants_to_join()


def test_who_is_about_to_stop_stands_for_nothing() -> None:
    lab = cluster("n2", "n3")
    lab["n2"].begin_stop()
    term = lab["n2"].status()["term"]
    lab.cut |= {"n1", "n3"}
    lab.tick(100)
    status = lab["n2"].status()
    assert (status["state"], status["term"]) == ("follower", term)
    assert ("stopping", False, "yes") in lab["n2"].readiness()


def test_a_removal_waits_until_those_who_stay_have_answered_it() -> None:
    """n3 has died a moment ago and still counts as one that answers."""
    lab = cluster("n2", "n3")
    lab.tick(3)
    lab.stop("n3")
    answers: list[ConureError | None] = []
    lab["n1"].remove("n2", force=False, reply=answers.append)
    lab.tick_until(lambda: bool(answers))
    assert isinstance(answers[0], Conflict)
    assert set(suffrages(lab["n1"])) == {"n1", "n2", "n3"}
    put(lab, b"k", b"v")


def test_nobody_dials_a_removed_member_that_came_back_for_a_while() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n3")
    lab.tick(20)
    assert lab.remove("n3") is None
    lab.tick(100)
    lab.cut.clear()
    lab.tick(60)  # it doesn't know, and asks for votes
    assert "n3" in lab["n2"]._admission._book.addresses()  # a new leader, for all n2 knows
    lab.cut.add("n3")
    lab.connecting.clear()
    lab.tick(100)
    assert lab.connecting["n2"] == {"n1", "n2"}


def test_a_member_that_comes_back_at_once_is_found_at_its_new_address() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.wipe("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    assert lab.remove("n3") is None
    answers: list[ConureError | None] = []
    lab["n1"].join("n3", "elsewhere:7001", "", voter=True, role="", reply=answers.append)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert suffrages(lab["n1"])["n3"] == "voter"
    lab.tick(30)
    assert value_of(lab["n3"], b"k") == b"v"
    member = lab["n1"]._roster.members.get("n3")
    assert member is not None
    assert member.raft_address == "elsewhere:7001"


def test_a_member_at_an_address_that_is_taken_does_not_hold_up_others_that_moved() -> None:
    lab = cluster("n2", "n3", "n4")
    for node_id in ("n2", "n3", "n4"):
        lab.stop(node_id)
    lab.add("n2", raft_address="n4:7001")  # n4's, which is dead
    lab.add("n3", raft_address="elsewhere:7001")
    lab.tick(60)
    moved = lab.leader()._roster.members.get("n3")
    assert moved is not None
    assert moved.raft_address == "elsewhere:7001"


def test_members_that_change_places_are_known_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lab = cluster("n2", "n3", "n4")
    for node_id in ("n2", "n3", "n4"):
        lab.stop(node_id)
    for node_id, place in (("n2", "n3"), ("n3", "n2"), ("n4", "n1")):  # n1's, which stays
        lab.add(node_id, raft_address=f"{place}:7001")
    lab.tick(60)
    members = lab.leader()._roster.members
    addresses = {server.id: server.raft_address for server in members.servers}
    assert addresses == {"n1": "n1:7001", "n2": "n3:7001", "n3": "n2:7001", "n4": "n4:7001"}
    assert set(suffrages(lab.leader()).values()) == {"voter"}
    told = [message for message in caplog.messages if "is reached at" in message]
    assert sorted(told) == [
        "node n2 is reached at n3:7001 now",
        "node n3 is reached at n2:7001 now",
    ]


def test_two_members_that_were_at_one_address_hold_up_no_other_that_moved() -> None:
    """No leader lets that happen; one that lies may have, and what the log holds is there."""
    lab = cluster("n2", "n3", "n4", "n5")
    for node_id in ("n3", "n4"):
        lab.stop(node_id)
    raft = lab.leader()._raft
    n3 = raft.configuration.get("n3")
    assert n3 is not None
    assert raft._leading is not None
    raft._change(raft._leading, raft.configuration.with_server(replace(n3, raft_address="n4:7001")))
    lab.tick(5)
    lab.stop("n2")
    lab.add("n2", raft_address="elsewhere:7001")
    lab.tick(60)
    assert lab.failed == set()
    places = {"n3": "n4:7001", "n4": "n4:7001", "n2": "elsewhere:7001"}
    for node_id, place in places.items():
        member = lab.leader()._roster.members.get(node_id)
        assert member is not None
        assert member.raft_address == place


def test_new_addresses_wait_while_somebody_reads_too_little_for_them() -> None:
    lab = cluster("n2", "n3")
    leader = lab.leader()

    def refuse(version: int, members: Configuration) -> None:
        raise Conflict(f"this needs format version {version}, of {len(members.servers)}")

    known, leader._raft._check_format = leader._raft._check_format, refuse
    lab.stop("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    lab.tick(30)
    assert lab.failed == set()
    assert lab.leader() is leader
    leader._raft._check_format = known
    lab.tick(5)
    moved = leader._roster.members.get("n3")
    assert moved is not None
    assert moved.raft_address == "elsewhere:7001"


def test_a_node_belongs_to_no_cluster_that_takes_it_for_another_one() -> None:
    lab = cluster("n2", "n3")
    lab.wipe("n3")
    lab.add("n3")
    lab.tick(20)
    assert any("another data directory" in why for why in lab.refused)
    assert lab["n3"].greeting().cluster_id == ""


def test_a_removal_is_not_answered_by_a_join_that_is_not_committed() -> None:
    lab = cluster("n2", "n3", write_timeout=1.0)
    lab.add("n4")
    lab.cut |= {"n2", "n3"}
    joined: list[ConureError | None] = []
    lab["n1"].join("n4", "n4:7001", "", voter=True, role="", reply=joined.append)
    removed: list[ConureError | None] = []
    lab["n1"].remove("n4", force=True, reply=removed.append)
    assert removed == []
    lab.cut.clear()
    lab.tick_until(lambda: bool(removed))
    assert removed == [None]
    lab.tick(5)
    assert "n4" not in suffrages(lab["n1"])


def test_a_voter_that_moves_while_it_is_removed_comes_back_as_a_voter() -> None:
    """Its join is asked for while it is a voter, and is done when it is no member any more."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    lab.add("n4")
    answers: dict[str, ConureError | None] = {}

    def told(what: str) -> Callable[[ConureError | None], None]:
        return lambda answer: answers.update({what: answer})

    leader = lab["n1"]
    leader.join("n4", "n4:7001", "", voter=False, role="", reply=told("another change"))
    leader.remove("n3", force=True, reply=told("removal"))
    leader.join("n3", "elsewhere:7001", "", voter=True, role="", reply=told("move"))
    assert suffrages(leader)["n3"] == "voter"
    assert not answers
    lab.tick_until(lambda: len(answers) == 3)
    assert answers == {"another change": None, "removal": None, "move": None}
    assert suffrages(leader)["n3"] == "voter"


def test_leadership_is_handed_over_and_reads_say_where_it_is() -> None:
    lab = cluster("n2", "n3")
    answers: list[ConureError | None] = []
    lab["n1"].hand_over("n3", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert lab.leader() is lab["n3"]
    lab.tick(2)
    (refusal,) = read(lab["n1"])
    assert isinstance(refusal, NotLeader)
    assert refusal.leader_http == "http://n3:8081"


def test_dry_runs_tell_the_quorum_and_change_nothing() -> None:
    lab = cluster("n2", "n3")
    before = lab["n1"].members()
    joined = lab["n1"].preview_join("n4", voter=True, role="data")
    assert joined == {
        "allowed": True, "reason": "", "warning": "",
        "voters": 4, "quorum": 3, "active": 4, "tolerates": 1,
        "quorum_size": None, "data_quorum": 3
    }  # fmt: skip
    removed = lab["n1"].preview_remove("n3")
    assert (removed["voters"], removed["quorum"], removed["tolerates"]) == (2, 2, 0)
    assert lab["n1"].members() == before
    with pytest.raises(NotLeader):
        lab["n2"].preview_remove("n3")


def test_dry_runs_warn_of_arbiters_that_make_a_cluster_weaker() -> None:
    lab = cluster("n2")
    assert lab["n1"].preview_join("a", voter=True, role="arbiter")["warning"] == ""
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    third = lab["n1"].preview_join("n3", voter=True, role="data")
    assert third["allowed"]
    assert third["warning"].startswith(
        "3 data nodes and an arbiter can be blocked by the loss of 1 of the data nodes, "
        "where 3 data nodes alone survive the loss of 1"
    )
    assert lab["n1"].preview_join("n3", voter=False, role="data")["warning"] == ""
    lab.add("n3")
    assert lab.join("n3") is None
    assert lab["n1"].preview_join("n4", voter=True, role="data")["warning"] == ""
    assert lab["n1"].preview_remove("a")["warning"] == ""
    lone = cluster("n2", "n3")
    joined = lone["n1"].preview_join("a", voter=True, role="arbiter")
    assert (joined["allowed"], joined["warning"]) == (True, third["warning"])


def test_dry_runs_refuse_what_would_be_refused() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    leaving = lab["n1"].preview_remove("n1")
    assert not leaving["allowed"]
    assert "arbiter" in leaving["reason"]
    last = cluster()
    assert "last voter" in last["n1"].preview_remove("n1")["reason"]
    with pytest.raises(MemberNotFound):
        last["n1"].preview_remove("n9")
    for facts in ({"voter": False, "role": ""}, {"voter": True, "role": "arbiter"}):
        joined = lab["n1"].preview_join("n2", **facts)  # type: ignore[arg-type]
        assert not joined["allowed"]
        assert joined["reason"]
