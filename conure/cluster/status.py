"""What a node shows of itself to people: the answers to ``/status``, ``/raft/config`` and
``/raft/stats``. Nothing here changes anything; call it under the node's lock."""

from __future__ import annotations

import json
from typing import Any

from conure.cluster.versions import Versions
from conure.consensus.members import Server
from conure.consensus.messages import State
from conure.consensus.raftlog import RaftLog
from conure.state.machine import Store
from conure.storage.datadir import Identity
from raft import Raft

__all__ = ["members", "raft_stats", "status"]


def status(raft: Raft, store: Store, identity: Identity, version: str) -> dict[str, Any]:
    """Return what ``GET /status`` shows."""
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
        "term": raft.term,
        "commit_index": raft.commit_index,
        "applied_index": store.applied_index,
        "version": version,
    }


def members(raft: Raft) -> dict[str, Any]:
    """Return what ``GET /raft/config`` shows."""
    leader = raft.configuration.get(raft.leader_id)
    return {
        "leader": leader.raft_address if leader else "",
        "servers": [
            {
                "id": server.id,
                "address": server.raft_address,
                "suffrage": _suffrage(server),
                "http_address": server.http_address,
                "role": server.role,
            }
            for server in raft.configuration.servers
        ],
    }


def raft_stats(
    raft: Raft,
    raft_log: RaftLog,
    store: Store,
    versions: Versions,
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
        "num_peers": sum(voter != raft.id for voter in configuration.voters),
    }
    return {name: str(value) for name, value in facts.items()}


def _suffrage(server: Server) -> str:
    return "voter" if server.suffrage == "voter" else "nonvoter"


def _contact(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.0f}ms" if seconds else "0"
