"""What a node shows of itself to people: the answers to ``/status``, ``/raft/config``,
``/raft/stats`` and ``/readyz``, and what a join has to be told. Nothing here changes anything; call
it with the node's lock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from conure.cluster.checkpointing import Upkeep
from conure.cluster.leases import Lease
from conure.cluster.standing import Standing
from conure.cluster.versions import Versions
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import State
from conure.consensus.raftlog import RaftLog
from conure.peers.protocol import Greeting
from conure.state.machine import Store
from conure.storage.datadir import Identity
from raft import Raft

__all__ = [
    "Check",
    "commit_rule",
    "engine_of",
    "facts",
    "liveness",
    "members",
    "raft_stats",
    "readiness",
    "status",
]

Check = tuple[str, bool, str]
"""What is checked, whether it passes, and why."""


def status(
    raft: Raft,
    store: Store,
    identity: Identity,
    version: str,
    forming: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what ``GET /status`` shows; *forming* is what a node shows that looks for peers."""
    leader = raft.configuration.get(raft.leader_id) if raft.leader_id else None
    return {
        "node_id": raft.id,
        "cluster_id": identity.cluster_id,
        "is_leader": raft.state == State.LEADER,
        "leader": leader.raft_address if leader else "",
        "leader_id": raft.leader_id,
        "leader_http": leader.http_address if leader else "",
        "state": raft.state.value,
        "member": raft.configuration.get(raft.id) is not None,
        "role": identity.role,
        "engine": engine_of(identity),
        "quorum_size": raft.configuration.quorum_size or None,
        "term": raft.term,
        "commit_index": raft.commit_index,
        "applied_index": store.applied_index,
        "version": version,
        "forming": forming,
    }


def members(raft: Raft) -> dict[str, Any]:
    """Return what ``GET /raft/config`` shows."""
    configuration = raft.configuration
    leader = configuration.get(raft.leader_id)
    return {
        "leader": leader.raft_address if leader else "",
        **commit_rule(configuration),
        "servers": [
            {
                "id": server.id,
                "address": server.raft_address,
                "suffrage": _suffrage(server),
                "http_address": server.http_address,
                "role": server.role,
            }
            for server in configuration.servers
        ],
    }


def commit_rule(members: Configuration) -> dict[str, Any]:
    """Return what a commit needs by these members: so many voters on whose disks it has to be, and
    so many of these that hold data, whichever they are."""
    data_voters = max(members.copies, members.majority_copies)
    return {
        "quorum_size": members.quorum_size or None,
        "quorum": members.quorum if members.voters else 0,
        "data_quorum": data_voters if members.voters else 0,
    }


def raft_stats(
    raft: Raft,
    raft_log: RaftLog,
    store: Store,
    versions: Versions,
    identity: Identity,
    last_contact: float | None,
) -> dict[str, str]:
    """Return what ``GET /raft/stats`` shows: strings, with hashicorp/raft's keys.

    *last_contact* is how many seconds ago a leader was heard, None for never.
    """
    configuration, snapshot = raft.configuration, raft_log.snapshot
    servers = [
        {"ID": server.id, "Address": server.raft_address, "Suffrage": _suffrage(server)}
        for server in configuration.servers
    ]
    facts = {
        "state": raft.state.value.capitalize(),
        "term": raft.term,
        "last_log_index": raft_log.last_index,
        "last_log_term": raft_log.last_term,
        "commit_index": raft.commit_index,
        "applied_index": store.applied_index,
        "fsm_pending": raft.commit_index - store.applied_index,
        "last_snapshot_index": snapshot.index,
        "last_snapshot_term": snapshot.term,
        "latest_configuration": json.dumps(servers),
        "speaks": json.dumps({server.id: versions.of(server) for server in configuration.servers}),
        "last_contact": _contact(last_contact),
        "engine": engine_of(identity),
        "num_peers": sum(voter != raft.id for voter in configuration.voters),
    }
    return {name: str(value) for name, value in facts.items()}


def liveness(standing: Standing) -> Check:
    """Tell whether the process can go on at all; no quorum is asked. Any thread, without a lock."""
    failure = standing.failure
    return ("process", failure is None, str(failure or "ok"))


def readiness(
    raft: Raft,
    store: Store,
    upkeep: Upkeep,
    lease: Lease,
    standing: Standing,
    waits_for: str = "",
) -> list[Check]:
    """Tell whether a node can serve requests, check by check; *waits_for* says which peers it
    waits for, "" for none."""
    full = upkeep.shortage
    leader = raft.configuration.get(raft.leader_id)
    behind = max(0, raft.state_index - store.applied_index)
    waits = ", and the log waits for room" if upkeep.is_waiting else ""
    is_member = raft.configuration.get(raft.id) is not None
    is_stopping = standing.is_stopping
    return [
        liveness(standing),
        ("member", is_member, "ok" if is_member else waits_for or "of no cluster"),
        ("leader", leader is not None, leader.id if leader else "none is known"),
        ("applied", behind == 0, "ok" if behind == 0 else f"{behind} entries behind"),
        ("disk", True, f"full, writes are refused{waits}: {full}" if full else "ok"),
        ("timeouts", True, lease.differences or "ok"),
        *([("copies", True, standing.lacking() or "ok")] if raft.configuration.copies else []),
        ("stopping", not is_stopping, "yes" if is_stopping else "no"),
    ]


def facts(greeting: Greeting) -> dict[str, Any]:
    """Return what ``POST /join`` has to be told to make a node a member. Any thread."""
    return {
        "ID": greeting.node_id,
        "RaftAddr": greeting.raft_address,
        "HTTPAddr": greeting.http_address,
        "Role": greeting.role,
        "Incarnation": greeting.incarnation,
    }


def engine_of(identity: Identity) -> str:
    """Return which engine keeps a node's records; "" on an arbiter, which keeps none."""
    return identity.engine if identity.role == "data" else ""


def _suffrage(server: Server) -> str:
    return "voter" if server.suffrage == "voter" else "nonvoter"


def _contact(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.0f}ms" if seconds else "0"
