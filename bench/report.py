"""Medians, ratios, tables, targets, and the results file.

A part returns a :class:`Section`. ``RESULTS.md`` holds one section per part, each with the facts
of the run it comes from, so that a part measured again replaces only its own section.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.pairs import Paired, Verdict
from bench.plan import Plan
from bench.servers import Conure
from bench.workspace import Workspace

__all__ = ["Ratio", "Section", "facts", "kilo", "probe_sync", "quantile", "write_results"]

_VERDICTS = {True: Verdict.YES, False: Verdict.NO, None: Verdict.UNKNOWN}
_TITLE = """\
# Results

Written by `python -m bench --write`; what each figure means stands in `bench/__init__.py`.
Machines differ and this kind of measurement is noisy: compare the ratios, which come from one
run each, and not figures of different runs.
"""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times *ours* is *theirs*: of the medians, and the range over the rounds."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        pairs = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(median(ours) / median(theirs), min(pairs), max(pairs))

    def __str__(self) -> str:
        return f"{self.value:.2f} x ({self.low:.2f} - {self.high:.2f})"


@dataclass
class Section:
    """What one part found: Markdown blocks, and its targets with whether they were met."""

    title: str
    blocks: list[str] = field(default_factory=list)
    targets: list[tuple[str, str, str, Verdict]] = field(default_factory=list)

    def text(self, words: str) -> None:
        self.blocks.append(words)

    def table(self, caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [f"**{caption}**", "", _row(header), "|---" * len(header) + "|"]
        self.blocks.append("\n".join([*lines, *map(_row, rows)]))

    def target(self, what: str, goal: str, measured: str, *, met: bool | None) -> None:
        """Add a target; *met* is None when the run can't tell."""
        self.targets.append((what, goal, measured, _VERDICTS[met]))

    def at_least(self, what: str, ratio: Ratio, goal: float) -> None:
        """Add the target that a ratio of medians reaches *goal*."""
        self.target(what, f">= {goal} x", str(ratio), met=ratio.value >= goal)

    def reaches(self, what: str, ratio: Paired, goal: float) -> None:
        """Add the target that a ratio of pairs is at least *goal*."""
        self.targets.append((what, f">= {goal:g} x", str(ratio), ratio.reaches(goal)))

    def stays_within(self, what: str, ratio: Paired, goal: float) -> None:
        """Add the target that a ratio of pairs is at most *goal*."""
        self.targets.append((what, f"<= {goal:g} x", str(ratio), ratio.stays_within(goal)))

    def at_most(self, what: str, value: float, goal: float, unit: str) -> None:
        """Add the target that a value stays within *goal*."""
        self.target(what, f"<= {goal:g} {unit}", f"{value:.3g} {unit}", met=value <= goal)

    def render(self, provenance: str) -> str:
        blocks = [f"## {self.title}", provenance, *self.blocks]
        if self.targets:
            header = ["target", "goal", "measured", "met"]
            lines = ["**Targets**", "", _row(header), "|---|---|---|---|", *map(_row, self.targets)]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"


def kilo(rate: float) -> str:
    """Write a rate per second the short way: ``950``, ``7.6 k``, ``114 k``, ``2.30 M``."""
    if rate >= 999_500:
        return f"{rate / 1e6:.2f} M"
    if rate >= 9_950:
        return f"{rate / 1e3:.0f} k"
    return f"{rate / 1e3:.1f} k" if rate >= 1_000 else f"{rate:.0f}"


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value that a share *q* of the others does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def facts(plan: Plan, workspace: Workspace) -> str:
    """Return the list of facts a result is worthless without."""
    now = dt.datetime.now(dt.UTC)
    machine = f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB"
    system = f"{platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.2f}"
    sync = median(probe_sync(workspace, 300)) * 1e3
    python = platform.python_version()
    lines = [
        (
            f"{now:%Y-%m-%d %H:%M} UTC, commit {_commit()}, {plan.name} plan, "
            f"{plan.rounds} rounds ({plan.rounds_of(1_000_000)} with 1 M records), "
            f"{plan.pairs} pairs"
        ),
        f"{machine}, {system}",
        f"ConureDB's servers on {Conure.runtime()}, all else on CPython {python}",
        f"{workspace.filesystem}; fdatasync of 4 KiB into preallocated blocks: {sync:.2f} ms",
    ]
    return "\n".join(f"- {line}" for line in lines)


def probe_sync(workspace: Workspace, count: int, pace: float = 0.0) -> list[float]:
    """Time *count* writes of 4 KiB with an fdatasync each, one every *pace* seconds.

    Returns seconds. This is what a durable write costs on this disk before any program has
    done anything.
    """
    path = workspace.path("probe")
    block = bytes(4096)
    delays = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for start in range(0, 4 << 20, len(block)):
            os.pwrite(fd, block, start)
        os.fsync(fd)
        due = time.perf_counter()
        for n in range(count):
            if pace:
                due += pace
                time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            os.pwrite(fd, block, n % 1024 * len(block))
            os.fdatasync(fd)
            delays.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        os.remove(path)
    return delays


def write_results(path: str, sections: Iterable[tuple[str, str]]) -> None:
    """Put the rendered sections, by title, into the results file; other sections stay."""
    kept: dict[str, str] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            parts = re.split(r"(?m)^(?=## )", file.read())[1:]
        kept = {part.split("\n", 1)[0].removeprefix("## "): part for part in parts}
    kept.update(sections)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([_TITLE, *(part.rstrip() + "\n" for part in kept.values())]))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _commit() -> str:
    commit = _git("rev-parse", "--short", "HEAD")
    results = ":!/bench/RESULTS.md"  # which the parts of a run write one after the other
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", results)
    return commit + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, check=True, text=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / float(1 << 30)
