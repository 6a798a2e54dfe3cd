"""Play many seeds: ``python -m tests.sim --help``."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import partial

from tests.sim.seeds import STEPS, play


def _play_some(seeds: Sequence[int], steps: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    counts: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        try:
            world = play(seed, steps).world
        except Exception as error:  # noqa: BLE001 - every one of them is a finding
            failures.append((seed, "".join(traceback.format_exception(error))))
        else:
            counts.update(world.counts)
            counts["seconds"] += int(world.now)
            counts["steps"] += world.steps
        counts["seeds"] += 1
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Play many seeds.")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--verbose", action="store_true", help="show each event; for one seed")
    arguments = parser.parse_args()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    if arguments.verbose:
        for seed in seeds:
            world = play(seed, arguments.steps, verbose=True).world
            print(dict(world.counts), f"trace {world.trace_hash:08x}")
        return 0
    started = time.monotonic()
    groups = [seeds[first : first + 10] for first in range(0, len(seeds), 10)]
    counts: Counter[str] = Counter()
    failed: list[int] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        for some, failures in pool.imap(partial(_play_some, steps=arguments.steps), groups):
            counts.update(some)
            for seed, text in failures:
                print(text)
                failed.append(seed)
    seconds = counts.pop("seconds", 0)
    print(f"{seconds / 3600:.2f} hours simulated in {time.monotonic() - started:.1f} s")
    for name, count in sorted(counts.items()):
        print(f"{count:12,d} {name}")
    print(f"failing seeds: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
