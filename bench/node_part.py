"""A node with each storage engine: puts, loads, delays beside flushes and merges, and memory.

Both nodes run, hold the same records and take turns. The one whose turn it isn't stands still, its
workers too, so that each flushes and merges in its own time.

=============== ================================================================================
load            batches over HTTP, one connection, until all records are there
put             durable puts of random existing keys at 64 connections
delays          reads and puts at a steady pace beside as many puts as the node can take
memory          what node and worker have allocated; pages of mapped files are not in it
=============== ================================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import median

from bench.footprint import Footprint
from bench.loads import Outcome, begin_wrk, write_requests, wrk, wrk_missing
from bench.pairs import Paired, of_medians, of_totals
from bench.pipeline import paced
from bench.plan import Plan
from bench.records import Keyspace, random_puts
from bench.report import Section, kilo, quantile
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import CONURE, DEFAULT_ENGINE, PROGRAM, Conure, Request, ask, engine_missing
from bench.workspace import BenchError, Workspace, note

__all__ = ["run", "without_workers"]

_BTREE, _LSM, _FALLBACK = "B-tree", "LSM", "LSM without workers"
_ENGINES = {_BTREE: "btree", _LSM: "lsm", _FALLBACK: "lsm"}
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_WORKERS = "workers=True"
_BUSY = 64  # connections
_SECONDS = 1  # of a burst of puts
_LINES = 5_000  # of a batch
_REQUESTS = 100_000  # that are rendered, and sent over and over
_PACE = 500.0  # requests a second whose delay is measured
_UPKEEP = {
    "conure_checkpoint_duration_seconds_count": "checkpoints",
    "conure_lsm_compactions_total": "merges",
}
_QUANTILES = (("median", 0.5), ("p99", 0.99), ("p99.9", 0.999))
_TIMEOUT = 120.0  # seconds for a batch
_MIB = 1 << 20
_LEAST_PUTS = 1.2  # times the B-tree's
_LEAST_LOADED = 150_000  # records a second
_MOST_DELAY = 20.0  # ms
_MOST_MEMORY, _MOST_OF_A_WORKER = 400.0, 150.0  # MiB


class _Subject:
    """A node with one engine, and what was found of it."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = name
        engine = _ENGINES[name]
        flags = [f"--engine={engine}"] if engine != DEFAULT_ENGINE else []
        checkout = without_workers(workspace) if name == _FALLBACK else ""
        self.node = Conure(workspace, flags=flags, checkout=checkout)
        self.node.start()
        self.memory = Footprint(self.node.pid)
        self.loads: list[Outcome] = []
        self.puts: list[Outcome] = []
        self.delays: list[list[float]] = []  # by round, in ms
        self.full_load: list[Outcome] = []
        self.upkeep = [0.0] * len(_UPKEEP)  # what was done beside that load, by metric

    def counts(self) -> list[float]:
        """Return how often the node has done what _UPKEEP names; an engine may not know it."""
        metrics = self.node.metrics()
        return [metrics.get(name, 0.0) for name in _UPKEEP]

    def burst(self, work: Callable[[], Outcome]) -> Contestant:
        """Return what does *work* as this node, and looks at its memory afterwards."""

        def watched() -> Outcome:
            outcome = work()
            self.memory.sample()
            return outcome

        return Contestant(self.name, watched, self.node.process)


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure a node with each engine that there is. Raises BenchError when wrk is missing."""
    if missing := wrk_missing():
        raise BenchError(missing)
    section = Section("A node with each storage engine")
    subjects = []
    for name, engine in _ENGINES.items():
        if why := engine_missing(engine):
            section.text(f"Skipped: {why}.")
            note(f"skipped: {why}")
        else:
            subjects.append(_Subject(workspace, name))
    records = plan.node_records
    _load(subjects, records, plan.pairs)
    path = workspace.path("puts")
    write_requests(path, random_puts(records, 1, _REQUESTS))
    _put(workspace, subjects, path, plan.pairs)
    for turn in range(plan.rounds):
        for subject in subjects[:: 1 if turn % 2 else -1]:
            _delay(workspace, subjects, subject, path, plan, turn)
    for subject in subjects:
        subject.node.stop()
    section.text(
        f"{records:,} records of 16 + 100 bytes. Delays count from the moment at which a request "
        f"was due: {_PACE:,.0f} a second, half of them gets, over 4 connections, beside "
        f"{_BUSY} connections that put as fast as they are answered, for "
        f"{plan.delay_seconds} s a round."
    )
    _tabulate(section, subjects)
    theirs, *others = subjects
    for ours in others:
        _judge(section, theirs, ours)
    return section


def without_workers(workspace: Workspace) -> str:
    """Return a checkout like this one whose server does everything itself.

    No setting says that, since workers are left out by themselves where they can't be. Raises
    BenchError if the place that has to differ isn't found.
    """
    with open(os.path.join(_ROOT, PROGRAM), encoding="utf-8") as file:
        program = file.read()
    if program.count(_WORKERS) != 1:
        raise BenchError(f"{PROGRAM} has no {_WORKERS} that could be undone")
    checkout = workspace.directory("without-workers")
    for name in os.listdir(_ROOT):
        if name != PROGRAM:
            os.symlink(os.path.join(_ROOT, name), os.path.join(checkout, name))
    with open(os.path.join(checkout, PROGRAM), "w", encoding="utf-8") as file:
        file.write(program.replace(_WORKERS, "workers=False"))
    return checkout


def _load_batch(port: int, first: int, count: int) -> float:
    """Store records by batches over one connection at a time; return the seconds it took.

    Rendering is not in them. Raises BenchError.
    """
    seconds = 0.0
    for begin in range(first, first + count, _LINES):
        numbers = range(begin, min(begin + _LINES, first + count))
        lines = [
            json.dumps({"key": Keyspace.key(n), "value": Keyspace.value(n, 0)}) for n in numbers
        ]
        body = "\n".join(lines).encode()
        began = time.perf_counter()
        status, answer = ask(
            port, Request("POST", "/kv/batch", body, "application/x-ndjson"), _TIMEOUT
        )
        seconds += time.perf_counter() - began
        if status != 200 or json.loads(answer)["written"] != len(numbers):
            raise BenchError(f"a batch was answered with {status}: {answer[:200]!r}")
    return seconds


def _load(subjects: list[_Subject], records: int, pairs: int) -> None:
    def slices(subject: _Subject) -> Callable[[], Outcome]:
        bounds = iter([(records * n // pairs, records * (n + 1) // pairs) for n in range(pairs)])

        def burst() -> Outcome:
            first, end = next(bounds)
            seconds = _load_batch(subject.node.port, first, end - first)
            return Outcome((end - first) / seconds, 0.0, 0.0)

        return burst

    found = bursts_in_turns([each.burst(slices(each)) for each in subjects], pairs)
    for subject in subjects:
        subject.loads = found[subject.name]


def _put(workspace: Workspace, subjects: list[_Subject], path: str, pairs: int) -> None:
    contestants = [
        each.burst(partial(wrk, workspace, each.node.port, path, _BUSY, _SECONDS))
        for each in subjects
    ]
    found = bursts_in_turns(contestants, pairs)
    for subject in subjects:
        subject.puts = found[subject.name]


def _delay(
    workspace: Workspace,
    subjects: list[_Subject],
    subject: _Subject,
    path: str,
    plan: Plan,
    turn: int,
) -> None:
    """Measure the delays of one node for a while, with all others standing still."""
    others = [each.node.process for each in subjects if each is not subject]
    for process in others:
        process.pause()
    try:
        gets = (CONURE.get(Keyspace.key(n)).render() for n in cycle(range(plan.node_records)))
        count = round(_PACE * plan.delay_seconds)
        puts = random_puts(plan.node_records, 2 + turn, count)
        before = subject.counts()
        # The load goes on a little longer than what is measured beside it.
        end = begin_wrk(workspace, subject.node.port, path, _BUSY, plan.delay_seconds + 1)
        each = (request for pair in zip(gets, puts, strict=False) for request in pair)
        delays = paced(subject.node.port, each, _PACE, plan.delay_seconds)
        subject.full_load.append(end())
        done = zip(subject.upkeep, subject.counts(), before, strict=True)
        subject.upkeep = [total + after - earlier for total, after, earlier in done]
    finally:
        for process in others:
            process.resume()
    subject.memory.sample()
    subject.delays.append([1e3 * delay for delay in delays])
    note(f"{subject.name}: longest delay {max(subject.delays[-1]):.1f} ms")


def _tabulate(section: Section, subjects: list[_Subject]) -> None:
    section.table(
        "A second, medians of the bursts",
        ["engine", "records loaded", f"puts at {_BUSY} (median / p99 in ms)"],
        [[each.name, kilo(median(rates(each.loads))), _shown(each.puts)] for each in subjects],
    )
    section.table(
        "Delay of a request at full load in ms, medians of the rounds",
        [
            "engine",
            *(label for label, _ in _QUANTILES),
            "max",
            "max of all rounds",
            "puts beside",
            *_UPKEEP.values(),
        ],
        [
            [
                each.name,
                *(f"{_quantile(each, q):.2f}" for _, q in _QUANTILES),
                f"{median(map(max, each.delays)):.1f}",
                f"{max(map(max, each.delays)):.1f}",
                _shown(each.full_load),
                *(f"{count:.0f}" for count in each.upkeep),
            ]
            for each in subjects
        ],
    )
    section.table(
        "Memory without mapped files, MiB",
        ["engine", "node", "its largest worker"],
        [
            [each.name, f"{each.memory.own / _MIB:.0f}", f"{each.memory.child / _MIB:.0f}"]
            for each in subjects
        ],
    )


def _judge(section: Section, theirs: _Subject, ours: _Subject) -> None:
    delay = _quantile(ours, 0.999)
    section.target(
        f"{ours.name}: p99.9 of delays at full load",
        f"<= {_MOST_DELAY:g} ms",
        f"{delay:.3g} ms; {theirs.name} {_quantile(theirs, 0.999):.3g} ms",
        met=delay <= _MOST_DELAY if all(ours.upkeep) else None,
    )
    if ours.name != _LSM:
        return
    puts = of_medians(rates(ours.puts), rates(theirs.puts))
    section.reaches(f"{ours.name}: puts at {_BUSY}, than {theirs.name}", puts, _LEAST_PUTS)
    loaded = median(rates(ours.loads))
    section.target(
        f"{ours.name}: records loaded by batches",
        f">= {kilo(_LEAST_LOADED)} a second",
        f"{kilo(loaded)} a second; {_loads(ours, theirs)} as fast as {theirs.name}",
        met=loaded >= _LEAST_LOADED,
    )
    section.at_most(f"{ours.name}: memory", ours.memory.own / _MIB, _MOST_MEMORY, "MiB")
    worker = ours.memory.child / _MIB
    section.at_most(f"{ours.name}: its largest worker's", worker, _MOST_OF_A_WORKER, "MiB")


def _loads(ours: _Subject, theirs: _Subject) -> Paired:
    """Compare the seconds of equal slices."""
    mine, others = ([1 / rate for rate in rates(each.loads)] for each in (ours, theirs))
    return of_totals(others, mine)


def _quantile(subject: _Subject, q: float) -> float:
    return median(quantile(each, q) for each in subject.delays)


def _shown(outcomes: list[Outcome]) -> str:
    p50, p99 = (median(getattr(each, q) for each in outcomes) for q in ("p50", "p99"))
    return f"{kilo(median(rates(outcomes)))} ({p50:.1f} / {p99:.1f})"
