"""What a mutation is, and sets of tests that catch some; see ``__main__.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ACCESS_TESTS",
    "ADMISSION_TESTS",
    "CLUSTER_TESTS",
    "CORE_TESTS",
    "FULL_DISK_TESTS",
    "JSON_TESTS",
    "LEASE_TESTS",
    "LOG_TESTS",
    "NODE_TESTS",
    "QUORUM_TESTS",
    "ROUTE_TESTS",
    "SIMULATION",
    "TRANSPORT_TESTS",
    "Mutation",
]

CORE_TESTS = (
    "tests/consensus/test_raft_paper.py",
    "tests/consensus/test_raft_checklist.py",
    "tests/consensus/test_raft_checklist_members.py",
    "tests/consensus/test_raft_checklist_log.py",
    "tests/consensus/test_raft_script.py",
    "tests/consensus/test_raft_random.py",
    "tests/consensus/test_raft_configuration.py",
    "tests/consensus/test_raft_leases.py",
)

NODE_TESTS = (
    "tests/cluster/test_node.py",
    "tests/cluster/test_node_members.py",
    "tests/cluster/test_node_writes.py",
    "tests/cluster/test_node_leases.py",
    "tests/cluster/test_node_snapshots.py",
    "tests/cluster/test_node_liars.py",
)

CLUSTER_TESTS = (
    "tests/cluster/test_node_members.py",
    "tests/cluster/test_node_writes.py",
    "tests/cluster/test_node_leases.py",
    "tests/cluster/test_node_snapshots.py",
    "tests/cluster/test_node_liars.py",
)

QUORUM_TESTS = (
    "tests/consensus/test_raft_quorum.py",
    "tests/consensus/test_raft_configuration.py",
)

LEASE_TESTS = ("tests/consensus/test_raft_leases.py",)

LOG_TESTS = ("tests/consensus/test_raftlog.py", "tests/consensus/test_raftlog_crash.py")

FULL_DISK_TESTS = ("tests/cluster/test_full_disk.py",)

TRANSPORT_TESTS = (
    "tests/peers/test_transport_messages.py",
    "tests/peers/test_transport_handshakes.py",
    "tests/peers/test_transport_snapshots.py",
    "tests/peers/test_guests.py",
)

ADMISSION_TESTS = ("tests/cluster/test_admission.py",)

ACCESS_TESTS = ("tests/http/test_httpserver_access.py",)

JSON_TESTS = ("tests/http/test_jsonsteps.py", "tests/http/test_kvjson.py")

ROUTE_TESTS = (
    "tests/http/test_kvapi.py",
    "tests/http/test_httpserver_rfc.py",
    "tests/http/test_httpserver_clients.py",
    "tests/http/test_httpserver_rounds.py",
)

SIMULATION = ("tests/sim/test_sim.py",)


class Mutation(NamedTuple):
    """A fault: *old* text of *file*, found there once, becomes *new*; *tests* must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str] = CORE_TESTS

    def apply(self, root: Path) -> None:
        """Put the fault into the tree at *root*; ValueError if it doesn't apply."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"found {text.count(self.old)} times in {self.file}: {self.old!r}")
        path.write_text(text.replace(self.old, self.new))
