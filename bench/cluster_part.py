"""Throughput and latency over HTTP: three nodes of ConureDB beside three of etcd.

Both clusters run on this machine during the whole part, and the one whose turn it isn't has
nothing to do. Puts and linearizable gets go to the leader, stale gets to a follower. What is asked
stands in ``systems.py``; etcd's gRPC is called by h2load, with one key instead of many. A load
during which somebody else was elected is done again: its requests would have been redirected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.clusters import Cluster, start_conure, start_etcd
from bench.loads import Outcome, h2load, h2load_missing, wrk_missing
from bench.plan import Plan
from bench.report import Section
from bench.servers import (
    CONURE,
    GATEWAY,
    V2,
    Api,
    Conure,
    Etcd,
    Server,
    ask,
    conure_missing,
    etcd_missing,
)
from bench.systems import GET, KEYS, OPERATIONS, PUT, STALE, Figures, HttpSystem, System, key
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_GRPC = "etcd gRPC"
_SERIALIZABLE = b"\x38\x01"  # field 7 of a RangeRequest: true
_GOALS = (  # operation, than, multiple, from so many connections on
    (PUT, GATEWAY.name, 3.0, 16),
    (PUT, _GRPC, 1.5, 16),
    (GET, GATEWAY.name, 3.0, 1),
    (GET, _GRPC, 1.0, 16),
    (STALE, V2.name, 1.5, 16),
)


class _ClusterSystem(HttpSystem):
    """A cluster behind an HTTP API."""

    def __init__(self, workspace: Workspace, api: Api, cluster: Cluster[Server]) -> None:
        super().__init__(workspace, api, cluster.members[0].port)
        self._cluster = cluster

    def port_for(self, operation: str) -> int:
        return _server_for(self._cluster, operation).port

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        load = super().load
        return self._cluster.under_one_leader(lambda: load(operation, connections, seconds))


class _GrpcSystem:
    """etcd's cluster behind its own protocol: one key is put and got over and over."""

    name = _GRPC
    operations: Sequence[str] = OPERATIONS
    _KEY = key(KEYS)  # the first that the gateway's rows don't use

    def __init__(self, workspace: Workspace, cluster: Cluster[Server]) -> None:
        self._workspace = workspace
        self._cluster = cluster
        self._value = ""

    def begin_round(self, number: int) -> None:
        self._value = f"round-{number:03}-value-{0:09}"
        self.load(PUT, 1, 1)

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        return self._cluster.under_one_leader(lambda: self._load(operation, connections, seconds))

    def verify(self) -> None:
        _, body = ask(self._cluster.leader().port, GATEWAY.get(self._KEY))
        if GATEWAY.value(body) != self._value:
            raise BenchError(f"{self.name} holds another value than was put: {body!r}")

    def _load(self, operation: str, connections: int, seconds: int) -> Outcome:
        port = _server_for(self._cluster, operation).port
        key, value = _field(1, self._KEY), _field(2, self._value)
        method, message = {
            PUT: ("etcdserverpb.KV/Put", key + value),
            GET: ("etcdserverpb.KV/Range", key),
            STALE: ("etcdserverpb.KV/Range", key + _SERIALIZABLE),
        }[operation]
        before = self._version()
        answered = h2load(self._workspace, port, method, message, connections, seconds)
        puts = self._version() - before
        # What is under way at the end is carried out without having been counted.
        expected = answered.answers if operation == PUT else 0
        if not expected <= puts <= expected + connections:
            raise BenchError(f"{self.name}: {expected} puts were answered and {puts} carried out")
        if operation != PUT and answered.bytes < answered.answers * len(self._value):
            raise BenchError(f"{self.name}: {answered.bytes} bytes in {answered.answers} answers")
        return answered.outcome

    def _version(self) -> int:
        """Return how often the key has been put."""
        _, body = ask(self._cluster.leader().port, GATEWAY.get(self._KEY))
        found = json.loads(body).get("kvs", [])
        return int(found[0]["version"]) if found else 0


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure both clusters, or the one that is there. Raises BenchError when wrk is missing."""
    if missing := wrk_missing():
        raise BenchError(missing)
    section = Section("HTTP, three nodes")
    section.text(
        "Latencies: wrk corrects its percentiles for coordinated omission and h2load doesn't, so "
        "gRPC's look better beside the others than they are."
    )
    figures = Figures()
    with _started(workspace, section) as (systems, clusters):
        for number in range(plan.rounds):
            note(f"round {number + 1} of {plan.rounds}")
            turn = number % len(systems)
            order = systems[turn:] + systems[:turn]
            for system in order:
                system.begin_round(number)
            figures.compare(order, plan.connections, plan.load_seconds)
            for system in order:
                system.verify()
        memory = {
            name: [peak_memory(member.pid) / (1 << 20) for member in cluster.members]
            for name, cluster in clusters.items()
        }
        elections = {name: cluster.elections for name, cluster in clusters.items()}
    names = [system.name for system in systems]
    figures.tabulate(section, names, plan.connections)
    section.table(
        "The clusters",
        ["cluster", "peak resident memory of the nodes, MiB", "loads disturbed by an election"],
        [
            [name, ", ".join(f"{size:.0f}" for size in sizes), str(elections[name])]
            for name, sizes in memory.items()
        ],
    )
    if CONURE.name in names:
        _judge(section, plan, figures)
    return section


@contextmanager
def _started(
    workspace: Workspace, section: Section
) -> Iterator[tuple[list[System], dict[str, Cluster[Server]]]]:
    """Start every cluster that is there; tell the section which are not."""
    systems: list[System] = []
    clusters: dict[str, Cluster[Server]] = {}
    versions = []
    for missing in filter(None, (conure_missing(), etcd_missing(), h2load_missing())):
        section.text(f"Skipped: {missing}.")
        note(f"skipped: {missing}")
    if not conure_missing():
        ours = clusters["ConureDB"] = start_conure(workspace)
        systems.append(_ClusterSystem(workspace, CONURE, ours))
        versions.append(Conure.version())
    if not etcd_missing():
        theirs = clusters["etcd"] = start_etcd(workspace)
        systems += [_ClusterSystem(workspace, api, theirs) for api in (GATEWAY, V2)]
        if not h2load_missing():
            systems.append(_GrpcSystem(workspace, theirs))
        versions.append(Etcd.version())
    section.text(
        "Measured: "
        + ", ".join(versions)
        + ". Every put is synced by a majority before its answer."
    )
    yield systems, clusters
    for cluster in clusters.values():
        cluster.stop()


def _judge(section: Section, plan: Plan, figures: Figures) -> None:
    """Compare ConureDB's figures with the targets."""
    for operation, other, goal, least in _GOALS:
        for count in plan.connections:
            if count >= least and (other, operation, count) in figures:
                what = f"{operation}, connections: {count}, than {other}"
                section.at_least(what, figures.ratio(operation, count, other), goal)
    if (GATEWAY.name, PUT, 1) in figures:
        mine, theirs = figures.p50(CONURE.name, PUT, 1), figures.p50(GATEWAY.name, PUT, 1)
        section.at_most(f"{PUT} on 1 connection, median, than the gateway", mine, theirs, "ms")


def _server_for(cluster: Cluster[Server], operation: str) -> Server:
    return cluster.follower() if operation == STALE else cluster.leader()


def _field(number: int, text: str) -> bytes:
    """Encode a string of less than 128 bytes as a field of a protocol buffer."""
    return bytes([number << 3 | 2, len(text)]) + text.encode()
