"""A node joins a cluster of three that takes puts at a steady pace.

For each number of records: a fresh cluster is loaded; the pace is kept for a while without the
join; then a fourth node joins in the middle of the same pace. The time of the join goes from the
request to the moment when the node has a vote and has applied what the leader had applied before
it was asked. A put's delay counts from the moment it was due. In the end all records are read
from the new node's own state and compared.

The nodes have their default settings, so the log is cut where it is cut in practice: a node that
joins a small cluster gets all of the log, one that joins a large one a snapshot first.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.clusters import Cluster, start_conure
from bench.pipeline import paced
from bench.plan import Plan
from bench.records import Keyspace, load_records, read_back
from bench.report import Section, kilo, quantile
from bench.servers import CONURE, Conure, conure_missing
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_PACE = 1_000.0  # puts a second
_GOAL = 500.0  # ms, the longest put
_LONGEST_JOIN = 600.0  # seconds
_AROUND = 2.0  # seconds of the pace before the join and after it
_POLL = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class _Join:
    """What one join was like. Delays are in milliseconds, memory in MiB."""

    records: int
    cut: int  # entries that only a snapshot has
    seconds: float
    before: list[float]  # delays
    during: list[float]  # delays
    leader_memory_before: float
    leader_memory: float
    joiner_memory: float


class _Joining(threading.Thread):
    """Makes a node join while the caller keeps the pace; ``over`` is set in the end.

    The time of its polling is taken from the machine that the nodes run on, so it polls seldom.
    """

    def __init__(self, leader: Conure, joiner: Conure) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.seconds = 0.0
        self.error: Exception | None = None
        self._leader = leader
        self._joiner = joiner

    def run(self) -> None:
        try:
            time.sleep(_AROUND)
            began = time.perf_counter()
            self._leader.add(self._joiner)
            while not self._is_done():
                if time.perf_counter() - began > _LONGEST_JOIN:
                    raise BenchError(f"the node has not joined after {_LONGEST_JOIN:.0f} s")
                time.sleep(_POLL)
            self.seconds = time.perf_counter() - began
            time.sleep(_AROUND)
        except (BenchError, OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            self.over.set()

    def _is_done(self) -> bool:
        applied = self._leader.standing().applied
        name = self._joiner.name
        return self._leader.is_voter(name) and self._joiner.standing().applied >= applied


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure a join at every size of the plan."""
    section = Section("A node joins under load")
    if missing := conure_missing():
        section.text(f"Skipped: {missing}.")
        return section
    joins = [_measure(plan, workspace, records) for records in plan.join_sizes]
    section.text(
        f"Measured: {Conure.version()}. Records of 16 + 100 bytes, {_PACE:,.0f} puts a second over "
        "4 connections at the leader of three nodes; the fourth joins."
    )
    section.table(
        "The join",
        [
            "records",
            "entries in a snapshot only",
            "seconds until it votes and has applied",
            "peak memory, MiB: leader before",
            "leader",
            "joiner",
        ],
        [
            [
                f"{join.records:,}",
                f"{join.cut:,}",
                f"{join.seconds:.2f}",
                f"{join.leader_memory_before:.0f}",
                f"{join.leader_memory:.0f}",
                f"{join.joiner_memory:.0f}",
            ]
            for join in joins
        ],
    )
    section.table(
        "Delay of a put in ms",
        ["records", "", "median", "p99", "p99.9", "max"],
        [
            [
                f"{join.records:,}",
                when,
                *(f"{quantile(delays, q):.2f}" for q in (0.5, 0.99, 0.999)),
                f"{max(delays):.1f}",
            ]
            for join in joins
            for when, delays in (("before", join.before), ("during the join", join.during))
        ],
    )
    section.text("After every join all records were read from the new node and compared.")
    for join in joins:
        what = f"{join.records:,} records, longest put during the join"
        section.at_most(what, max(join.during), _GOAL, "ms")
    return section


def _measure(plan: Plan, workspace: Workspace, records: int) -> _Join:
    cluster = start_conure(workspace)
    rate = load_records(cluster.leader().port, records)
    note(f"loaded {records:,} records, {kilo(rate)} puts a second")
    leader = cluster.leader()
    turns = bytearray(records)  # of each record's latest put
    before = _milliseconds(paced(leader.port, _puts(turns, 1), _PACE, plan.join_seconds))
    leader_memory_before = _mebibytes(leader)
    cut = int(leader.facts("/raft/stats")["last_snapshot_index"])

    joiner = Conure(workspace, "joiner", bootstrap=False)
    joiner.launch()
    joiner.wait_for(Conure.alive)
    joining = _Joining(leader, joiner)
    joining.start()
    puts = _puts(turns, 2)
    delays = paced(leader.port, puts, _PACE, 2 * _LONGEST_JOIN, enough=joining.over.is_set)
    joining.join()
    if joining.error is not None:
        raise BenchError(f"the join failed: {joining.error}") from joining.error
    during = _milliseconds(delays)
    note(f"{records:,} records: joined in {joining.seconds:.2f} s, longest put {max(during):.1f}")

    everybody = Cluster([*cluster.members, joiner])
    everybody.settle()
    read_back(joiner.port, records, CONURE.stale, lambda n: (turns[n],))
    measured = _Join(
        records,
        cut,
        joining.seconds,
        before,
        during,
        leader_memory_before,
        _mebibytes(leader),
        _mebibytes(joiner),
    )
    everybody.stop()
    return measured


def _puts(turns: bytearray, turn: int) -> Iterator[bytes]:
    """Put records at random for ever, and keep in *turns* which were put."""
    chance = random.Random(turn)

    def anywhere() -> Iterator[int]:
        while True:
            n = chance.randrange(len(turns))
            turns[n] = turn
            yield n

    return Keyspace.puts(anywhere(), turn)


def _milliseconds(delays: list[float]) -> list[float]:
    return [delay * 1e3 for delay in delays]


def _mebibytes(node: Conure) -> float:
    return peak_memory(node.pid) / (1 << 20)
