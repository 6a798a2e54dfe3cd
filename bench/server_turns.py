"""Servers that take turns at short bursts of load, all of them up.

Who may stand still (SIGSTOP) between its bursts does so, workers included: it flushes and merges
in its own time. A member of a cluster may not, since the others would elect somebody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.loads import Outcome
from bench.report import kilo
from bench.workspace import Process, note

__all__ = ["Contestant", "bursts_in_turns", "rates"]

_PAUSE = 0.1  # seconds between two bursts


class Contestant(NamedTuple):
    """Who is measured, what one burst is, and the process that stands still meanwhile, if any."""

    name: str
    burst: Callable[[], Outcome]
    process: Process | None = None


def bursts_in_turns(contestants: Sequence[Contestant], pairs: int) -> dict[str, list[Outcome]]:
    """Let each do as many bursts, in an order that moves on; return the outcomes by name.

    Whoever may stand still does until its first burst, and none does at the end.
    """
    done: dict[str, list[Outcome]] = {each.name: [] for each in contestants}
    still = [each.process for each in contestants if each.process is not None]
    for process in still:
        process.pause()
    try:
        for number in range(pairs):
            turn = number % len(contestants)
            for each in (*contestants[turn:], *contestants[:turn]):
                if each.process is not None:
                    each.process.resume()
                time.sleep(_PAUSE)
                outcome = each.burst()
                if each.process is not None:
                    each.process.pause()
                done[each.name].append(outcome)
                note(f"{each.name}: {kilo(outcome.rate)}/s, p99 {outcome.p99:.2f} ms")
    finally:
        for process in still:
            process.resume()
    return done


def rates(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the requests a second of each burst."""
    return [outcome.rate for outcome in outcomes]
