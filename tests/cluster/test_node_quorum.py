"""The quorum size (R11) as users of a node meet it: changed, shown, refused, between releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from conure.cluster import opening
from conure.cluster.node import Node
from conure.consensus.members import Configuration
from conure.errors import (
    Conflict,
    ConureError,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
    WireError,
)
from tests.lab.nodes import Lab, begin, checkpoint, cluster, put, read


def resize(lab: Lab, size: int) -> ConureError | None:
    answers: list[ConureError | None] = []
    lab.leader().resize(size, answers.append)
    lab.tick_until(lambda: bool(answers))
    return answers[0]


def sized(size: int, *others: str, **changes: Any) -> Lab:
    lab = cluster(*others, **changes)
    lab.tick(12)  # all have caught up
    assert resize(lab, size) is None
    return lab


def shown(node: Node) -> tuple[object, object, object]:
    members = node.members()
    return members["quorum_size"], members["quorum"], members["data_quorum"]


def test_a_size_is_changed_and_shown_everywhere() -> None:
    lab = cluster("n2", "n3")
    assert shown(lab["n2"]) == (None, 2, 2)
    lab.tick(12)
    assert resize(lab, 3) is None
    lab.tick(2)
    for node in lab.nodes.values():
        assert shown(node) == (3, 2, 3)
        assert node.status()["quorum_size"] == 3
        assert ("copies", True, "ok") in node.readiness()
    assert resize(lab, 3) is None  # again
    assert resize(lab, 0) is None
    assert shown(lab["n1"]) == (None, 2, 2)
    assert Configuration.decode(lab["n1"]._store.configuration).encode()[0] == 1
    answers: list[ConureError | None] = []
    lab["n2"].resize(3, answers.append)
    assert isinstance(answers[0], NotLeader)


@pytest.mark.parametrize(("size", "why"), [(2, "changes nothing"), (4, "beyond the 3 data voters")])
def test_sizes_that_are_refused(size: int, why: str) -> None:
    lab = cluster("n2", "n3")
    refused = resize(lab, size)
    assert isinstance(refused, Conflict)
    assert why in str(refused)
    dry = lab["n1"].preview_resize(size)
    assert (dry["allowed"], dry["reason"]) == (False, str(refused))


def test_a_dry_run_counts_by_the_rule_and_warns() -> None:
    lab = cluster("n2", "n3")
    lab.tick(12)
    dry = lab["n1"].preview_resize(3)
    assert dry == {
        "allowed": True, "reason": "", "voters": 3, "quorum": 2, "active": 3, "tolerates": 0,
        "quorum_size": 3, "data_quorum": 3,
        "warning": "of the voters that answer 0 may fail until nothing is written any more, now 1",
    }  # fmt: skip
    assert shown(lab["n1"]) == (None, 2, 2)
    assert resize(lab, 3) is None
    removal = lab["n1"].preview_remove("n3")
    assert (removal["quorum_size"], removal["data_quorum"], removal["allowed"]) == (2, 2, True)
    assert lab["n1"].preview_join("n4", voter=True, role="data")["tolerates"] == 1
    lab.cut.add("n3")
    lab.tick(12)
    joined = lab["n1"].preview_join("n4", voter=True, role="arbiter")
    assert joined["reason"] == "only 2 data voters answer and a write needs 3"
    assert lab["n1"].preview_join("n4", voter=True, role="data")["allowed"]
    with pytest.raises(NotLeader):
        lab["n2"].preview_resize(3)


def test_writes_are_refused_with_the_rule_and_reads_go_on() -> None:
    lab = sized(3, "n2", "n3")
    put(lab, b"k", b"1")
    lab.cut.add("n3")
    early = begin(lab["n1"], (b"k", b"early"))  # before it is known that n3 is away
    lab.settle()
    lab.tick(12)
    late = begin(lab["n1"], (b"k", b"late"))
    lab.tick_until(lambda: "unanswered" not in [*early, *late])
    rule = "by the quorum size of 3 a write needs 3 data voters, and 2 answer"
    assert isinstance(early[0], OutcomeUnknown)
    assert rule in str(early[0])
    assert isinstance(late[0], Unavailable)
    assert str(late[0]).startswith(rule)
    answers = read(lab["n1"])
    lab.settle()
    assert answers == [None]
    assert any(name == "copies" and rule in why for name, _, why in lab["n1"].readiness())
    lab.cut.clear()
    put(lab, b"k", b"2")


def test_what_comes_while_too_few_are_there_is_not_begun() -> None:
    lab = sized(3, "n2", "n3")
    lab.cut.add("n3")
    lab.tick(12)
    before = lab["n1"]._raft.last_index
    outcome = begin(lab["n1"], (b"k", b"v"))
    lab.tick_until(lambda: outcome[0] != "unanswered")
    assert isinstance(outcome[0], Unavailable)  # and so it is known that nothing happened
    assert lab["n1"]._raft.last_index == before


def test_what_waits_is_written_as_soon_as_enough_are_there() -> None:
    lab = sized(3, "n2", "n3")
    lab.cut.add("n3")
    lab.tick(12)
    waiting = begin(lab["n1"], (b"k", b"v"))
    lab.tick(12)
    assert waiting == ["unanswered"]
    lab.cut.clear()
    lab.tick_until(lambda: waiting == [None])


def test_a_new_leader_reads_nothing_before_the_size_is_lowered() -> None:
    lab = sized(3, "n2", "n3")
    lab.stop("n1")
    leader = lab.leader()
    answers = read(leader)
    lab.tick_until(lambda: bool(answers))
    assert "by the quorum size of 3" in str(answers[0])
    assert resize(lab, 0) is None
    answers = read(leader)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]


def test_what_an_earlier_change_is_about_to_end_is_not_taken_for_what_was_asked_for() -> None:
    lab = cluster("n2", "n3", "n4", "n5")
    lab.tick(12)
    lab.cut |= {"n4", "n5"}
    raised: list[ConureError | None] = []
    lab["n1"].resize(5, raised.append)
    lab.settle()
    lab.cut |= {"n2", "n3"}
    back: list[ConureError | None] = []
    lab["n1"].resize(0, back.append)
    lab.settle()
    assert lab["n1"]._roster.members.quorum_size == 0  # as those are that are committed
    assert (raised, back) == ([], [])
    lab.cut.clear()
    lab.tick_until(lambda: bool(back))
    assert back == [None]


def test_a_removal_lowers_the_size_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lab = sized(3, "n2", "n3")
    lab.stop("n3")
    lab.tick(12)
    answers: list[ConureError | None] = []
    notes: list[str] = []
    lab["n1"].remove("n3", force=False, reply=answers.append, note=notes.append)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert notes == ["the quorum size was lowered from 3 to 2: the data voters are 2 now"]
    assert f"with the removal of n3 {notes[0]}" in caplog.text
    lab.stop("n2")
    lab.tick(2)
    lab["n1"].remove("n2", force=True, reply=answers.append, note=notes.append)
    lab.tick_until(lambda: len(answers) == 2)
    assert "from 2 to none" in notes[1]
    put(lab, b"k", b"alone")


def test_a_follower_has_the_leader_change_it() -> None:
    lab = cluster("n2", "n3")
    lab.tick(12)
    told: list[Mapping[str, Any] | ConureError] = []

    def ask(change: str, facts: Mapping[str, Any]) -> Mapping[str, Any] | ConureError:
        lab["n2"].pass_on(change, facts, told.append)
        lab.tick_until(lambda: bool(told))
        return told.pop()

    preview = ask("preview resize", {"size": 3})
    assert isinstance(preview, Mapping)
    assert preview["tolerates"] == 0
    assert ask("resize", {"size": 3}) == {}
    assert isinstance(ask("resize", {"size": 2}), Conflict)
    removed = ask("remove", {"id": "n3", "force": False})
    assert removed == {"note": "the quorum size was lowered from 3 to 2: the data voters are 2 now"}


@pytest.mark.parametrize("size", [1, -1, 1001, True, "3", 2.0, None])
def test_what_no_member_asks_for_is_no_call(size: object) -> None:
    lab = cluster("n2")
    lab["n2"].pass_on("resize", {"size": size}, lambda _: None)
    with pytest.raises(WireError, match="the quorum size without a proper one"):
        lab.settle()
    assert shown(lab["n1"]) == (None, 2, 2)


# -- formed with one, and told another one ---------------------------------------------------------


def test_a_cluster_is_formed_with_one(caplog: pytest.LogCaptureFixture) -> None:
    lab = cluster("n2", "n3", quorum_size=3)
    assert shown(lab["n1"]) == (3, 2, 3)
    assert "quorum_size=" not in caplog.text
    put(lab, b"k", b"v")
    lab.cut.add("n3")
    outcome = begin(lab["n1"], (b"k", b"w"))
    lab.settle()
    assert outcome == ["unanswered"]


def test_a_setting_that_differs_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lab = cluster("n2", quorum_size=5)
    lab.add("n3", quorum_size=4)
    assert lab.join("n3") is None
    assert "quorum_size=4 is not what this cluster has: 5" in caplog.text
    caplog.clear()
    lab.stop("n2")
    lab.add("n2")
    assert "quorum_size=" not in caplog.text
    lab.stop("n2")
    lab.add("n2", quorum_size=2)
    assert "quorum_size=2 is not what this cluster has: 5" in caplog.text
    assert shown(lab["n1"])[0] == 5


# -- between releases ------------------------------------------------------------------------------


def test_no_size_before_every_member_reads_it() -> None:
    lab = cluster("n2")
    lab.add("n3", speaks=2)
    assert lab.join("n3", voter=False) is None
    lab.add("n4")
    assert lab.join("n4") is None
    lab.tick(12)
    refused = resize(lab, 3)
    assert isinstance(refused, Conflict)
    assert "n3 reads up to 2" in str(refused)
    dry = lab["n1"].preview_resize(3)
    assert (dry["allowed"], dry["reason"]) == (False, str(refused))
    lab.stop("n3")
    lab.add("n3")
    lab.tick(2)
    assert resize(lab, 3) is None


def test_a_release_that_knows_none_is_let_in_when_the_log_has_none_any_more() -> None:
    lab = sized(3, "n2", "n3")
    lab.add("n4", speaks=2)
    refused = lab.join("n4")
    assert isinstance(refused, Conflict)
    assert "reads formats up to version 2, and the log holds version 3" in str(refused)
    assert resize(lab, 0) is None
    assert isinstance(lab.join("n4"), Conflict)  # the entry is still in the log
    for number in range(4):
        put(lab, b"k", b"%d" % number)
        lab.tick(2)
        for node in lab.nodes.values():
            checkpoint(node)
    assert lab["n1"]._raft.speaks == 1
    assert lab.join("n4") is None


def test_a_member_that_is_away_is_not_asked_again_what_it_reads() -> None:
    """All read a quorum size while there is one; who is dead says nothing and blocks nothing."""
    lab = cluster("n2", "n3", "n4", "n5", quorum_size=5)
    lab.stop("n5")
    lab.stop("n1")
    lab.add("n1", quorum_size=5)  # has heard nobody since its start
    lab.leader()
    assert resize(lab, 4) is None


def test_nor_is_it_when_all_others_had_lost_power_and_nothing_is_committed_yet() -> None:
    lab = cluster("n2", "n3", "n4", "n5", quorum_size=5)
    for node_id in list(lab.nodes):
        del lab.nodes[node_id]
        lab.disks[node_id] = lab.disks[node_id].after_crash("dropped")
        if node_id != "n5":
            lab.add(node_id)
    lab.leader()
    lab.tick(2)
    assert resize(lab, 4) is None


def test_a_size_outlives_restarts_and_the_cut_of_the_log() -> None:
    lab = sized(3, "n2", "n3")
    for number in range(4):
        put(lab, b"k", b"%d" % number)
        lab.tick(2)
        checkpoint(lab["n1"])
    lab.stop("n1")
    node = lab.add("n1")
    assert shown(node) == (3, 2, 3)
    logged = opening.configuration_at(node._log, node._store.applied_index)
    assert Configuration.decode(logged).quorum_size == 3
