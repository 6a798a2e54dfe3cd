"""What the tests of the checklist share."""

from __future__ import annotations

from conure.consensus.messages import (
    COMMAND,
    Entry,
    Ready,
    State,
)
from raft import Raft, RaftOptions, Replication
from tests.lab.raft_cluster import Cluster, Node

ELECTION = RaftOptions("").election_ticks


def state_of(raft: Raft) -> State:
    return raft.state


def replication_of(leader: Node, name: str) -> Replication:
    return leader.raft.progress[name].state


def visible(raft: Raft) -> tuple[object, ...]:
    """Return what a message may change of a core."""
    return (
        raft.term,
        raft.vote,
        raft.state,
        raft.leader_id,
        raft.commit_index,
        raft.last_index,
        raft.last_term,
        raft.configuration,
    )


def commands(*positions: tuple[int, int]) -> list[Entry]:
    """Return entries of these terms and indexes."""
    return [Entry(term, index, COMMAND, b"") for term, index in positions]


def take(raft: Raft) -> Ready:
    ready = raft.ready()
    assert ready is not None
    return ready


def leader_of(*names: str) -> tuple[Cluster, Node]:
    cluster = Cluster(*names)
    return cluster, cluster.elect(names[0])
