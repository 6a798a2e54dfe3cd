"""The storage engines in process: ConureDB's beside sqlite3, LMDB, LevelDB and RocksDB.

At each size all engines are open and take turns (``turns.py``): the load and the overwriting come
in as many slices as the plan has pairs, everything else in as many bursts. What is asked of them
stands in ``engine_process.py``. Each gets two chances to show how it reads: as the load has left
it, with files yet to be merged, and settled, after all that it puts off was done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from bench.engine_process import Answer
from bench.engines import (
    APPLIED,
    BTREE,
    ENGINES,
    LEVELDB,
    LSM,
    ROCKSDB,
    SQLITE,
    logged,
    missing,
    version,
)
from bench.pairs import Paired, of_medians, of_totals
from bench.plan import Plan
from bench.report import Section
from bench.samples import DATA_BYTES
from bench.turns import RunningEngine, in_turns, start_engines
from bench.workspace import Workspace, note

__all__ = ["BURSTS", "TOTALS", "burst_of", "compare", "run"]

TOTALS = ("load", "overwrite")
"""What is compared by the sums of all slices: their cost comes in lumps."""

BURSTS = {
    "load": "load, 1,000 a commit",
    "overwrite": "overwrite, 1,000 a commit",
    "put_100": "put, 100 a commit",
    "put_16": "put, 16 a commit",
    "put_1": "put, 1 a commit",
    "get_left": "get, as the load left it",
    "get": "get, settled",
    "miss": "get of a missing key, settled",
    "range": "range of 100, settled",
    "scan_keys": "scan, a key",
    "scan_items": "scan, a record",
}
"""What is measured in turns, and what the tables call it."""

_BATCH = 1_000
_OPENINGS = 5
_LARGE = 1_000_000  # records, at which targets are judged
_MIB = 1 << 20
_GOALS = (  # of which engine, what, than which, multiple
    (logged(LSM), "load", SQLITE, 4.0),
    (logged(LSM), "load", BTREE, 4.0),
    (logged(LSM), "overwrite", SQLITE, 3.0),
    (logged(LSM), "overwrite", BTREE, 4.0),
    (logged(LSM), "put_1", SQLITE, 1.0),
    (logged(LSM), "get_left", SQLITE, 2.0),
    (logged(LSM), "get_left", LEVELDB, 1.2),
    (logged(LSM), "get_left", ROCKSDB, 1.2),
    (logged(LSM), "miss", SQLITE, 2.5),
    (logged(LSM), "range", SQLITE, 0.5),
    (logged(LSM), "scan_keys", SQLITE, 1.0),
    (logged(LSM), "scan_items", SQLITE, 0.65),
    (APPLIED[LSM], "load", APPLIED[BTREE], 2.5),
    (APPLIED[LSM], "overwrite", APPLIED[BTREE], 2.5),
    (BTREE, "get", SQLITE, 2.0),
    (BTREE, "load", SQLITE, 2.0),
    (BTREE, "overwrite", SQLITE, 2.0),
    (BTREE, "scan_keys", SQLITE, 1.0),
    (BTREE, "scan_items", SQLITE, 1.0),
)
_MOST_FILES = 1.3  # times those of sqlite3
_MOST_WRITTEN = 8.0  # times the data
_MOST_GROWTH = 1.5  # times the cost of a record at _LARGE
_MOST_MEMORY, _MOST_OF_A_WORKER = 400.0, 150.0  # MiB


@dataclass
class _Figures:
    """What was found at one size: the bursts by engine and name, and single numbers likewise."""

    bursts: dict[str, dict[str, list[Answer]]] = field(default_factory=dict)
    single: dict[str, dict[str, float]] = field(default_factory=dict)

    def cost(self, engine: str, what: str) -> float:
        """Return the microseconds of one."""
        answers = self.bursts[engine][what]
        if what in TOTALS:
            total = sum(answer.amount for answer in answers)
            return 1e6 * sum(answer.seconds for answer in answers) / total
        return 1e6 * median(_costs(answers))

    def compare(self, ours: str, theirs: str, what: str) -> Paired:
        return compare(what, self.bursts[ours][what], self.bursts[theirs][what])


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure every engine that is there at every size of the plan."""
    section = Section("Storage engines, in process")
    alone, applied = ([*filter(None, map(partial(_present, section), names))] for names in _NAMES)
    section.text(
        "Measured: " + ", ".join(map(version, alone)) + ". Every commit is synced. One of "
        "ConureDB's engines alone is a checkpoint; with its log, as in a node, one is a sync of "
        "the log, with a checkpoint every 50,000 entries beside the puts. sqlite3 has "
        "synchronous=FULL and a write-ahead log, LMDB its defaults, LevelDB and RocksDB sync=true, "
        "bloom filters and no compression. All have 64 MiB for pages; LMDB maps its file. Settled: "
        "LevelDB and RocksDB after merging everything. Files of the Raft log, which a node has "
        "with either engine, are in the bytes written and not in the sizes. Bytes written are the "
        "disk's in an engine's turns, whoever else writes there. With more than 1 M "
        "records ConureDB's engines are measured with their log only; "
        f"{plan.overwrites:,} records are overwritten at most."
    )
    sizes = {}
    for size in plan.engine_sizes:
        # A checkpoint a commit means more to write the more there is: hours with many records.
        shown = alone if size <= _LARGE else [name for name in alone if name not in {BTREE, LSM}]
        sizes[size] = figures = _measure(plan, workspace, shown, applied, size)
        _tabulate(section, shown, size, figures)
        _tabulate_space(section, shown, size, min(size, plan.overwrites), figures)
        _tabulate_ratios(section, shown, size, figures)
        _tabulate_applied(section, applied, size, figures)
    _judge(section, sizes)
    return section


_NAMES = (ENGINES, tuple(APPLIED.values()))


def compare(what: str, ours: Sequence[Answer], theirs: Sequence[Answer]) -> Paired:
    """Return how many times as fast *ours* did *what* in bursts that are pairs."""
    method = of_totals if what in TOTALS else of_medians
    return method(_costs(theirs), _costs(ours))


def burst_of(what: str, plan: Plan, records: int) -> Callable[[RunningEngine, int], Answer]:
    """Return what does the *n*-th burst of *what* with an engine of so many records."""
    operation = what.partition("_")[0]
    pairs = plan.pairs
    if what in TOTALS:

        def slice_of(engine: RunningEngine, n: int) -> Answer:
            total = min(records, plan.overwrites) if what == "overwrite" else records
            first, end = total * n // pairs, total * (n + 1) // pairs
            return engine.call(what, first=first, count=end - first, batch=_BATCH)

        return slice_of
    if operation == "scan":
        count = max(1, records // pairs)
        room = 0.9 * (1 - count / records)  # so that a scan that begins late finds its count
        return lambda engine, n: engine.call(what, share=n / pairs * room, count=count)
    if operation == "put":
        batch = int(what.removeprefix("put_"))
        total = {1: plan.single_commits, 16: plan.few_commits, 100: plan.small_batches}[batch]
        count = max(1, total // pairs // batch) * batch
        return lambda engine, n: engine.call("put", burst=n, count=count, batch=batch)
    count = max(1, (plan.ranges if operation == "range" else plan.gets) // pairs)
    return lambda engine, n: engine.call(operation, burst=n, count=count)


def _present(section: Section, name: str) -> str:
    why = missing(name)
    if why:
        section.text(f"Skipped: {why}.")
        note(f"skipped: {why}")
    return "" if why else name


def _measure(
    plan: Plan, workspace: Workspace, alone: list[str], applied: list[str], size: int
) -> _Figures:
    engines, directory = start_engines(workspace, [*alone, *applied], size)
    figures = _Figures({each.name: {} for each in engines}, {each.name: {} for each in engines})
    whole = engines[: len(alone)]

    def measure(what: str, among: Sequence[RunningEngine]) -> None:
        for name, answers in in_turns(among, plan.pairs, burst_of(what, plan, size)).items():
            figures.bursts[name][what] = answers
            note(f"{name}, {size:,} records, {what}: {figures.cost(name, what):.2f} µs")

    def put_all(what: str) -> None:
        before = {engine.name: engine.written for engine in engines}
        measure(what, engines)
        for engine in engines:
            single = figures.single[engine.name]
            single[f"written {what}"] = engine.written - before[engine.name]
            single[f"left {what}"] = engine.files
        if what == "load":
            measure("get_left", whole)
        for engine in engines:
            single = figures.single[engine.name]
            single[f"settle {what}"] = engine.call("settle").seconds
            single[f"settled {what}"] = engine.files
            single[f"written settled {what}"] = engine.written - before[engine.name]

    put_all("load")
    for what in ("get", "miss", "range", "scan_keys", "scan_items"):
        measure(what, whole)
    put_all("overwrite")
    for what in ("put_100", "put_16", "put_1"):
        measure(what, whole)
    for engine in engines:
        single = figures.single[engine.name]
        engine.call("verify")
        single["memory"], single["child"] = engine.memory.own, engine.memory.child
        engine.call("close")
        single["open"] = median(engine.call("open").seconds for _ in range(_OPENINGS))
        engine.end()
    shutil.rmtree(directory)
    return figures


def _costs(answers: Sequence[Answer]) -> list[float]:
    """Return the seconds of one, by burst."""
    return [answer.seconds / answer.amount for answer in answers]


def _tabulate(section: Section, engines: list[str], size: int, figures: _Figures) -> None:
    section.table(
        f"{size:,} records: microseconds an operation",
        ["engine", *BURSTS.values()],
        [[name, *(_short(figures.cost(name, what)) for what in BURSTS)] for name in engines],
    )


def _tabulate_space(
    section: Section, engines: list[str], size: int, overwritten: int, figures: _Figures
) -> None:
    columns = [
        ("bytes a record, as the load left it", "left load", size),
        ("settled", "settled load", size),
        ("as overwriting left it", "left overwrite", size),
        ("settled", "settled overwrite", size),
        ("bytes the disk wrote for a byte, in the load", "written load", size * DATA_BYTES),
        ("in overwriting", "written overwrite", overwritten * DATA_BYTES),
        ("seconds to settle after the load", "settle load", 1),
        ("after overwriting", "settle overwrite", 1),
        ("open and get, ms", "open", 1e-3),
        ("memory without mapped files, MiB", "memory", _MIB),
        ("its worker's", "child", _MIB),
    ]
    section.table(
        f"{size:,} records: space, writes and memory",
        ["engine", *(label for label, *_ in columns)],
        [
            [name, *(_short(figures.single[name][what] / by) for _, what, by in columns)]
            for name in engines
        ],
    )


def _tabulate_ratios(section: Section, engines: list[str], size: int, figures: _Figures) -> None:
    for ours in (logged(LSM), logged(BTREE)):
        if ours in engines:
            section.table(
                f"{size:,} records: how many times as fast as others {ours} is",
                ["than", *BURSTS.values()],
                [
                    [other, *(_ratio(figures.compare(ours, other, what)) for what in BURSTS)]
                    for other in engines
                    if other != ours
                ],
            )


def _tabulate_applied(section: Section, applied: list[str], size: int, figures: _Figures) -> None:
    section.table(
        f"{size:,} records: the state machine applies entries, with checkpoints of 50,000 beside",
        ["engine", "microseconds a new record", "a record overwritten"],
        [[name, *(_short(figures.cost(name, what)) for what in TOTALS)] for name in applied],
    )


def _judge(section: Section, sizes: dict[int, _Figures]) -> None:
    size = _LARGE if _LARGE in sizes else max(sizes)
    figures = sizes[size]
    for ours, what, other, goal in _GOALS:
        if ours in figures.bursts and other in figures.bursts:
            label = f"{ours}: {BURSTS[what]}, {size:,} records, than {other}"
            section.reaches(label, figures.compare(ours, other, what), goal)
    ours = logged(LSM)
    if ours in figures.single:
        _judge_space(section, size, figures)
    largest = max(sizes)
    if ours in figures.single and largest > size:
        for what, words in BURSTS.items():
            ratio = sizes[largest].cost(ours, what) / figures.cost(ours, what)
            label = f"{ours}: {words}, {largest:,} records, than {size:,}"
            section.at_most(label, ratio, _MOST_GROWTH, "x")
    if BTREE in figures.single:
        opening = figures.single[BTREE]["open"]
        section.at_most(f"{BTREE}: open", opening, 0.2, "s")


def _judge_space(section: Section, size: int, figures: _Figures) -> None:
    ours, single = logged(LSM), figures.single[logged(LSM)]
    for what in TOTALS if SQLITE in figures.single else ():
        ratio = single[f"settled {what}"] / figures.single[SQLITE][f"settled {what}"]
        label = f"{ours}: files after {what}, settled, than sqlite3's"
        section.at_most(label, ratio, _MOST_FILES, "x")
    written = sum(single[f"written settled {what}"] for what in TOTALS)
    amplification = written / (len(TOTALS) * size * DATA_BYTES)
    label = f"{ours}: bytes the disk wrote for a byte of data, log included"
    section.at_most(label, amplification, _MOST_WRITTEN, "x")
    section.at_most(f"{ours}: memory", single["memory"] / _MIB, _MOST_MEMORY, "MiB")
    section.at_most(f"{ours}: its worker's", single["child"] / _MIB, _MOST_OF_A_WORKER, "MiB")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(ratio: Paired) -> str:
    return f"{ratio.value:.2g} ({ratio.low:.2g} - {ratio.high:.2g})"
