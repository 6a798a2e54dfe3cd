"""What a checkpoint costs the writes beside it.

Two nodes with the same records get puts of random existing keys at a steady pace, in turns. One
takes a checkpoint every few thousand entries, the other none. A put's delay counts from the
moment it was due. The third row is the disk alone: a write of 4 KiB with an fdatasync at the
same pace; nothing that waits for a disk can be steadier than that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from statistics import median

from bench.pipeline import paced
from bench.plan import Plan
from bench.records import Keyspace, load_records
from bench.report import Section, kilo, probe_sync, quantile
from bench.servers import Conure, conure_missing
from bench.workspace import BenchError, Workspace, note

__all__ = ["run"]

_PACE = 2_000.0  # puts a second
_GOAL = 50.0  # ms
_NEVER = 1_000_000_000  # entries
_NO_OTHER_CHECKPOINTS = (
    "--checkpoint-log-bytes=64GiB",
    "--checkpoint-interval=24h",
    "--cache-bytes=512MiB",  # or one comes for the memory that changed pages take
)
_WITH, _WITHOUT, _DISK = "puts beside checkpoints", "puts without", "fdatasync alone"


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure put delays with and without checkpoints."""
    section = Section("Puts beside a checkpoint")
    if missing := conure_missing():
        section.text(f"Skipped: {missing}.")
        return section
    entries = {_WITH: plan.checkpoint_entries, _WITHOUT: _NEVER}
    nodes = {name: Conure(workspace) for name in entries}
    for name, node in nodes.items():
        node.start()
        rate = load_records(node.port, plan.checkpoint_records)
        note(f"loaded {plan.checkpoint_records:,} records, {kilo(rate)} puts a second")
        node.stop()
        node.start(f"--checkpoint-entries={entries[name]}", *_NO_OTHER_CHECKPOINTS)
    delays: dict[str, list[list[float]]] = {_WITH: [], _WITHOUT: [], _DISK: []}
    covered = 0
    for turn in range(plan.rounds):
        for name, node in nodes.items():
            before = _snapshot_index(node)
            delays[name].append(_phase(plan, node, turn))
            moved = _snapshot_index(node) - before
            if bool(moved) != (name == _WITH):
                raise BenchError(f"{name}: the checkpoint's index moved by {moved}")
            covered += moved
        count = round(_PACE * plan.checkpoint_seconds)
        probe = probe_sync(workspace, count, 1 / _PACE)
        delays[_DISK].append([delay * 1e3 for delay in probe])
        for name, rounds in delays.items():
            note(f"{name}: max {max(rounds[-1]):.1f} ms")
    for node in nodes.values():
        node.stop()
    _tabulate(section, plan, delays, covered)
    return section


def _phase(plan: Plan, node: Conure, turn: int) -> list[float]:
    """Keep the pace for a while and return the delays in milliseconds."""
    chance = random.Random(turn)

    def anywhere() -> Iterator[int]:
        while True:
            yield chance.randrange(plan.checkpoint_records)

    puts = Keyspace.puts(anywhere(), turn + 1)
    return [delay * 1e3 for delay in paced(node.port, puts, _PACE, plan.checkpoint_seconds)]


def _snapshot_index(node: Conure) -> int:
    return int(node.facts("/raft/stats")["last_snapshot_index"])


def _tabulate(
    section: Section, plan: Plan, delays: dict[str, list[list[float]]], covered: int
) -> None:
    section.text(
        f"{plan.checkpoint_records:,} records of 16 + 100 bytes, {_PACE:,.0f} puts a second over "
        f"4 connections, {plan.checkpoint_seconds:.0f} s a round; a checkpoint every "
        f"{plan.checkpoint_entries:,} entries, {covered:,} entries covered by them."
    )
    rows = []
    for name, rounds in delays.items():
        row = [f"{median(quantile(each, q) for each in rounds):.2f}" for q in (0.5, 0.99, 0.999)]
        worst = [max(each) for each in rounds]
        rows.append([name, *row, f"{median(worst):.1f}", f"{max(worst):.1f}"])
    section.table(
        "Delay of a put in ms, medians of the rounds",
        ["", "median", "p99", "p99.9", "max", "max of all rounds"],
        rows,
    )
    worst_with = max(map(max, delays[_WITH]))
    worst_without = max(map(max, delays[_WITHOUT]))
    section.target(
        "longest delay through a checkpoint",
        f"<= {_GOAL:.0f} ms",
        f"{worst_with:.1f} ms; {worst_without:.1f} ms without one",
        met=_met(worst_with, worst_without),
    )


def _met(worst_with: float, worst_without: float) -> bool | None:
    """Judge the longest delay; None when the machine stalls as long without any checkpoint."""
    if worst_with <= _GOAL:
        return True
    return None if worst_without > _GOAL else False
