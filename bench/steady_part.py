"""Full load for minutes: three nodes that have no cause for an election, and should have none.

64 connections put and get 1,000 keys at the leader, as fast as it answers, on a machine that all
three nodes and the load share. The term at the end has to be the one at the begin.
"""

from __future__ import annotations

import random

from bench.clusters import start_conure
from bench.loads import wrk_missing
from bench.plan import Plan
from bench.report import Section, kilo
from bench.servers import CONURE, Conure, conure_missing
from bench.systems import BUSY, KEYS, HttpSystem, key
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_HALVES = "half puts, half gets"


def run(plan: Plan, workspace: Workspace) -> Section:
    """Load a cluster and compare its terms. Raises BenchError when wrk is missing."""
    if missing := wrk_missing():
        raise BenchError(missing)
    section = Section("Full load without an election")
    if missing := conure_missing():
        section.text(f"Skipped: {missing}.")
        return section
    cluster = start_conure(workspace)
    system = HttpSystem(workspace, CONURE, cluster.leader().port)
    system.begin_round(0)
    requests = [CONURE.put(key(n), system.value(n)).render() for n in range(KEYS)]
    requests += [CONURE.get(key(n)).render() for n in range(KEYS)]
    random.Random(0).shuffle(requests)
    system.write(_HALVES, requests)

    leader, term = cluster.settle()
    note(f"{leader} leads in term {term}; now {plan.steady_seconds} s of load")
    outcome = system.load(_HALVES, BUSY, plan.steady_seconds)
    leader_after, term_after = cluster.settle()
    if leader_after == leader:
        system.verify()
    memory = [f"{peak_memory(node.pid) / (1 << 20):.0f}" for node in cluster.members]
    cluster.stop()

    assert outcome.p999 is not None
    section.text(f"Measured: {Conure.version()}.")
    section.table(
        f"{BUSY} connections, {_HALVES}, for {plan.steady_seconds} s",
        [
            "requests a second",
            "median, ms",
            "p99, ms",
            "p99.9, ms",
            "peak resident memory of the nodes, MiB",
        ],
        [
            [
                kilo(outcome.rate),
                *(f"{value:.1f}" for value in (outcome.p50, outcome.p99, outcome.p999)),
                ", ".join(memory),
            ]
        ],
    )
    section.target(
        f"leader and term after {plan.steady_seconds} s of full load",
        f"{leader}, {term}",
        f"{leader_after}, {term_after}",
        met=(leader_after, term_after) == (leader, term),
    )
    return section
