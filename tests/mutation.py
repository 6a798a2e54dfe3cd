"""What a mutation is; see mutations.py."""

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
    "ROUTE_TESTS",
    "SIMULATION",
    "TRANSPORT_TESTS",
    "Mutation",
]

CORE_TESTS = (
    "tests/test_raft_paper.py",
    "tests/test_raft_checklist.py",
    "tests/test_raft_script.py",
    "tests/test_raft_random.py",
    "tests/test_raft_configuration.py",
    "tests/test_raft_leases.py",
)

NODE_TESTS = ("tests/test_node.py", "tests/test_node_cluster.py")

CLUSTER_TESTS = ("tests/test_node_cluster.py",)

LEASE_TESTS = ("tests/test_raft_leases.py",)

LOG_TESTS = ("tests/test_raftlog.py", "tests/test_raftlog_crash.py")

FULL_DISK_TESTS = ("tests/test_full_disk.py",)

TRANSPORT_TESTS = ("tests/test_transport.py", "tests/test_guests.py")

ADMISSION_TESTS = ("tests/test_admission.py",)

ACCESS_TESTS = ("tests/test_httpserver_access.py",)

JSON_TESTS = ("tests/test_jsonsteps.py", "tests/test_kvjson.py")

ROUTE_TESTS = ("tests/test_kvapi.py", "tests/test_httpserver.py")

SIMULATION = ("tests/test_sim.py",)


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
