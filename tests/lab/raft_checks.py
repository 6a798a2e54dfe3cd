"""What the tests of the checklist share."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.cluster.membership import arbiters_warning
from conure.consensus.members import Configuration, Outlook, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
    State,
)
from conure.errors import (
    Conflict,
    CorruptionError,
    MemberNotFound,
    NotLeader,
    ProtocolViolation,
    Unavailable,
)
from raft import Raft, RaftOptions, Replication, bootstrap
from tests.lab.raft_cluster import Cluster, MemoryLog, Node, configuration_of, server



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

