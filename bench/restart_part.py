"""kill -9 under full load, and the time until the node serves again.

A node is loaded with pipelined puts of random 16-byte keys and 100-byte values and killed in the
middle of them once the wanted number was acknowledged. Two times are measured from its start:
until ``/readyz`` answers 200, and until a put is accepted. Afterwards every record whose put was
acknowledged is read back and compared. The same directory is then loaded and killed again, so
that the later rounds restart from a tree that has been checkpointed many times.

The operating system survives the kill, so the files are likely to be in its cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from statistics import median

from bench.pipeline import exchange
from bench.plan import Plan
from bench.records import Keyspace, read_back
from bench.report import Section, kilo
from bench.servers import (
    CONURE,
    DEFAULT_ENGINE,
    Conure,
    ask,
    conure_missing,
    engine_missing,
)
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_GOALS = {DEFAULT_ENGINE: 3.0, "lsm": 2.0}  # seconds, by engine


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure restarts after each amount of records of the plan."""
    section = Section("Restart after kill -9 under load")
    if missing := conure_missing():
        section.text(f"Skipped: {missing}.")
        return section
    rows = []
    for engine, goal in _GOALS.items():
        if why := engine_missing(engine):
            section.text(f"Skipped: {why}.")
            continue
        for count in plan.restart_sizes:
            restarts = list(_restarts(plan, workspace, engine, count))
            ready, accepted, memory = zip(*restarts, strict=True)
            sizes = [engine, f"{count:,}"]
            rows.append([*sizes, _spread(ready), _spread(accepted), f"{max(memory):.0f}"])
            what = f"{engine}, {count:,} records, start to first put"
            section.at_most(what, median(accepted), goal, "s")
    section.table(
        "Seconds from the start, median (min - max)",
        [
            "engine",
            "records",
            "until /readyz is 200",
            "until a put is accepted",
            "peak memory, MiB",
        ],
        rows,
    )
    section.text("After every restart all acknowledged records were read back and compared.")
    return section


def _restarts(
    plan: Plan, workspace: Workspace, engine: str, count: int
) -> Iterator[tuple[float, float, float]]:
    """Load, kill and restart; yield seconds to ready and to the first put, and MiB."""
    node = Conure(workspace, flags=[f"--engine={engine}"] if engine != DEFAULT_ENGINE else [])
    node.start()
    acknowledged = bytearray(count)  # by record: the pass of its latest acknowledged put
    for turn in range(plan.rounds_of(count)):
        _load_and_kill(node, count, turn, acknowledged)
        ready = node.start()
        began = time.perf_counter()
        status = 0
        while status != 200:
            status, _ = ask(node.port, CONURE.put("first-put", "x"))
        accepted = ready + time.perf_counter() - began
        memory = peak_memory(node.pid) / (1 << 20)
        note(f"{count:,} records: ready after {ready:.2f} s, put after {accepted:.2f} s")
        _verify(node, acknowledged)
        yield ready, accepted, memory
    node.stop()


def _load_and_kill(node: Conure, count: int, turn: int, acknowledged: bytearray) -> None:
    """Put every record once, go on with a second pass, and kill the node in the middle of it.

    Each pass has values of its own, so that the last puts before the kill can be told from
    those they replaced.
    """
    first = 2 * turn + 1
    began = time.perf_counter()

    def on_answer(index: int, status: int, body: bytes) -> None:
        if status != 200:
            raise BenchError(f"put {index} was answered with {status}: {body[:200]!r}")
        acknowledged[index % count] = first + index // count
        if index == count + count // 10:
            node.kill()

    passes = itertools.chain.from_iterable(
        Keyspace.puts(range(count), number) for number in (first, first + 1)
    )
    if exchange(node.port, passes, on_answer):
        raise BenchError("the load ended before the node was killed")
    if min(acknowledged) < first:
        raise BenchError("the node was killed before every record was acknowledged")
    rate = kilo(count * 1.1 / (time.perf_counter() - began))
    note(f"{count:,} records and a tenth again: {rate} puts a second, then killed")


def _verify(node: Conure, acknowledged: bytearray) -> None:
    """Read every record back, linearizably: the acknowledged value, or that of the pass after.

    A put that was under way at the kill may have taken effect without having been acknowledged.
    """

    def allowed(n: int) -> tuple[int, int]:
        return acknowledged[n], acknowledged[n] + 1

    read_back(node.port, len(acknowledged), CONURE.get, allowed)


def _spread(values: tuple[float, ...]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} - {max(values):.2f})"
