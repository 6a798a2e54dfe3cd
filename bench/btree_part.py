"""The storage engine in process, beside sqlite3 and LMDB.

What is measured, and how, stands in ``engines.py``; this part lets the engines take turns at each
size, each in a fresh process and directory, and draws the tables.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from statistics import median

from bench.engines import ENGINES, OURS, missing, version
from bench.plan import Plan
from bench.report import Ratio, Section, kilo
from bench.workspace import Workspace, note

__all__ = ["run"]

_RATES = {
    "put_load": "put into the empty engine, 1,000 a commit",
    "put_overwrite": "overwrite, 1,000 a commit",
    "put_100": "overwrite, 100 a commit",
    "put_1": "overwrite, 1 a commit",
    "get": "get",
    "range": "range of 100 records",
    "scan_keys": "scan, keys",
    "scan_items": "scan, items",
}
_DATA = 116  # bytes of a key and its value
_TIMEOUT = 1_800.0  # seconds

_Figures = dict[tuple[str, int, str], list[float]]  # by engine, records, measurement


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure every engine that is there at every size of the plan."""
    section = Section("B-tree, in process")
    engines = []
    for name in ENGINES:
        if why := missing(name):
            section.text(f"Skipped: {why}.")
            note(f"skipped: {why}")
        else:
            engines.append(name)
    section.text(
        "Measured: " + ", ".join(map(version, engines)) + ". Every commit is synced: a checkpoint "
        "for the B-tree, synchronous=FULL with a write-ahead log for sqlite3, LMDB's default."
    )
    figures: _Figures = defaultdict(list)
    for size in plan.tree_sizes:
        for number in range(plan.rounds_of(size)):
            turn = number % len(engines)
            for name in engines[turn:] + engines[:turn]:
                for what, value in _measure(plan, workspace, name, size).items():
                    figures[name, size, what].append(value)
    for size in plan.tree_sizes:
        _tabulate(section, engines, size, figures)
    _tabulate_growth(section, engines, plan.tree_sizes, figures)
    if OURS in engines:
        _judge(section, plan.tree_sizes[-1], figures)
    return section


def _measure(plan: Plan, workspace: Workspace, name: str, size: int) -> dict[str, float]:
    directory = workspace.directory("engine")
    argv = [sys.executable, "-m", "bench.engines", name, str(size), plan.name, directory]
    figures: dict[str, float] = json.loads(workspace.run(argv, _TIMEOUT))
    shutil.rmtree(directory)
    rates = ", ".join(f"{what} {kilo(figures[what])}" for what in _RATES)
    note(f"{name}, {size:,} records: {rates}")
    return figures


def _tabulate(section: Section, engines: list[str], size: int, figures: _Figures) -> None:
    others = [name for name in engines if name != OURS] if OURS in engines else []

    def row(what: str, label: str) -> list[str]:
        cells = [kilo(median(figures[name, size, what])) for name in engines]
        ours = figures[OURS, size, what]
        return [label, *cells, *(str(Ratio.of(ours, figures[name, size, what])) for name in others)]

    section.table(
        f"{size:,} records: operations a second" + ", and the B-tree's multiple" * bool(others),
        ["operation", *engines, *(f"than {name}" for name in others)],
        [row(what, label) for what, label in _RATES.items()],
    )

    def plain(label: str, what: str, divisor: float, digits: int) -> list[str]:
        values = (median(figures[name, size, what]) / divisor for name in engines)
        return [label, *(f"{value:.{digits}f}" for value in values)]

    section.table(
        f"{size:,} records: space and opening",
        ["", *engines],
        [
            plain("bytes a record after the load", "bytes_load", size, 0),
            plain("bytes a record after overwriting all", "bytes_overwrite", size, 0),
            plain("peak resident memory, MiB", "peak_memory", 1 << 20, 0),
            plain("open and get one record, ms", "open", 1e-3, 2),
        ],
    )


def _tabulate_growth(
    section: Section, engines: list[str], sizes: tuple[int, ...], figures: _Figures
) -> None:
    section.table(
        "Microseconds an operation by number of records",
        ["operation", "engine", *(f"{size:,}" for size in sizes)],
        [
            [
                label,
                name,
                *(f"{1e6 / median(figures[name, size, what]):.2f}" for size in sizes),
            ]
            for what, label in _RATES.items()
            for name in engines
        ],
    )


def _judge(section: Section, size: int, figures: _Figures) -> None:
    def against(what: str, goal: float) -> None:
        ratio = Ratio.of(figures[OURS, size, what], figures["sqlite3", size, what])
        section.at_least(f"{_RATES[what]}, {size:,} records, than sqlite3", ratio, goal)

    against("get", 2.0)
    against("put_load", 2.0)
    against("put_overwrite", 2.0)
    against("scan_keys", 1.0)
    against("scan_items", 1.0)
    for what, label in (("bytes_load", "the load"), ("bytes_overwrite", "overwriting all")):
        share = median(figures[OURS, size, what]) / (size * _DATA)
        section.at_most(f"file after {label}, of the data's size", share, 2.0, "x")
    memory = median(figures[OURS, size, "peak_memory"]) / (1 << 20)
    section.at_most("peak resident memory", memory, 400, "MiB")
    section.at_most("open", median(figures[OURS, size, "open"]), 0.2, "s")
