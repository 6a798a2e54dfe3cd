"""Nodes that ask over the Raft port to be added: by whom, and what they are told."""

from __future__ import annotations

import pytest

from conure.cluster.node import Node
from conure.errors import Conflict, Unavailable
from tests.lab.nodes import Lab, cluster, put, suffrages


def of_three() -> Lab:
    """A cluster of three that n1 leads, and n4 of none."""
    lab = cluster("n2", "n3")
    lab.add("n4")
    return lab


def is_member(lab: Lab, node_id: str) -> bool:
    return lab[node_id]._raft.configuration.get(node_id) is not None


@pytest.mark.parametrize("at", ["n1", "n2"])
def test_any_member_adds_whoever_asks(at: str) -> None:
    """The leader by itself, and the others by asking it."""
    lab = of_three()
    assert lab.leader() is lab["n1"]
    assert lab.apply("n4", at) is None
    lab.tick_until(lambda: is_member(lab, "n4") and suffrages(lab["n1"])["n4"] == "voter")
    server = next(each for each in lab["n1"].members()["servers"] if each["id"] == "n4")
    assert (server["address"], server["http_address"]) == ("n4:7001", "http://n4:8081")
    assert lab.apply("n4", at) is None  # the same again changes nothing
    put(lab, b"k", b"v")


@pytest.mark.parametrize("at", ["n1", "n2"])
def test_the_refusals_are_those_of_a_join(at: str) -> None:
    lab = of_three()
    assert lab.apply("n4", "n1") is None
    lab.tick_until(lambda: is_member(lab, "n4"))
    lab.wipe("n4")
    lab.add("n4")
    refusal = lab.apply("n4", at)
    assert isinstance(refusal, Conflict)
    assert "n4 was not added" in str(refusal)
    assert "remove n4 from the cluster" in str(refusal)
    assert str(refusal) == str(lab.join("n4"))
    assert lab.remove("n4") is None
    assert lab.apply("n4", at) is None
    lab.tick_until(lambda: is_member(lab, "n4"))


def test_a_node_of_another_cluster_is_refused() -> None:
    lab = of_three()
    lab.add("n5", bootstrap=True)
    refusal = lab.apply("n5", "n1")
    assert isinstance(refusal, Conflict)
    assert "another cluster" in str(refusal)


def test_who_can_help_nobody_says_so() -> None:
    lab = of_three()
    lab.add("n5")
    assert "member of no cluster itself" in str(lab.apply("n4", "n5"))
    lab.cut |= {"n1", "n3"}
    lab.tick(60)
    refusal = lab.apply("n4", "n2")
    assert isinstance(refusal, Unavailable)
    assert "no leader" in str(refusal)


def test_a_seed_may_be_the_node_itself_or_another_one_of_its_id() -> None:
    lab = of_three()
    assert str(lab.apply("n2", "n2")) == "this is the node itself"
    other = Lab()
    twin: Node = other.add("n2")
    answers: list[object] = []
    lab["n2"].asked_to_add(twin.applicant(), answers.append)
    assert "two nodes have the ID n2" in str(answers[0])


def test_a_node_that_stops_takes_no_wishes() -> None:
    lab = of_three()
    node = lab.nodes.pop("n2")
    node.stop()
    answers: list[object] = []
    node.asked_to_add(lab["n4"].applicant(), answers.append)
    assert isinstance(answers[0], Unavailable)
