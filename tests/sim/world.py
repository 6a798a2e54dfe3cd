"""The world that all parts share: its time, its chance, and the account of what has happened.

Events come in the order of their time, those of one moment in the order in which they were
announced. One random generator decides about all of them, so that a seed repeats its history to
the last event; the *trace* is what shows that it does.
"""

from __future__ import annotations

import heapq
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any
from zlib import crc32

from conure.errors import ConureError
from tests.sim.luck import Luck

__all__ = ["CALM_BEFORE", "Broken", "Lost", "Pending", "Process", "World"]

CALM_BEFORE = 30.0
"""Seconds of the fake clock within which a mended cluster has to serve everybody."""

CALL_TIMEOUT = 1.2


class Broken(AssertionError):
    """Something that must never happen has happened; str() says what."""


class Lost(ConureError):
    """No answer came: the request may have been carried out, or may still be."""


Process = Generator["float | Pending", Any, None]
"""Something that goes on by itself: it yields seconds to wait or a request to be answered."""


class Pending:
    """A request on its way: its answers, one for each of *size* commands."""

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        self.answers: list[Any] = [Lost("no answer came")] * size
        self._missing = size
        self._waiting: Process | None = None

    def wait(self, process: Process) -> None:
        """Let a process go on with the answers when all have come, or when it is too late."""
        self._waiting = process
        self._world.after(CALL_TIMEOUT, self._go_on)

    def answer(self, start: int, stop: int, answers: Sequence[object]) -> None:
        """Take the answers to some of the commands: errors, or what was done or read."""
        if self._waiting is None:
            return
        self.answers[start:stop] = answers
        self._missing -= stop - start
        if self._missing == 0:
            self._go_on()

    def _go_on(self) -> None:
        process, self._waiting = self._waiting, None
        if process is not None:
            self._world.go_on(process, self.answers)


class World:
    """Time, chance and account of one history. What must not happen raises Broken."""

    def __init__(self, seed: int, luck: Luck, *, verbose: bool = False) -> None:
        self.seed = seed
        self.luck = luck
        self.rng = random.Random(f"sim/{seed}")
        self.now = 0.0
        self.steps = 0
        self.mending = False
        """Whether the faults have ended."""
        self.running: list[Callable[[float], None]] = []
        """What sleep() is for the processes that are amid something, the innermost last."""
        self.counts: Counter[str] = Counter()
        self.trace_hash = 0
        self.broken: Broken | None = None
        self._verbose = verbose
        self._recent: deque[str] = deque(maxlen=80)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0  # of the last event

    # -- time ------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Have something happen at a time that has not passed yet."""
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """Have something happen some seconds from now."""
        self.at(self.now + seconds, what)

    def start(self, process: Process) -> None:
        """Let a process begin."""
        self.go_on(process, None)

    def go_on(self, process: Process, value: object) -> None:
        """Let a process take what it has waited for, and run until it waits again."""
        try:
            wanted = process.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Pending):
            wanted.wait(process)
        else:
            self.after(wanted, partial(self.go_on, process, None))

    def step(self) -> None:
        """Let the next thing happen."""
        when, _, what = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.steps += 1
        what()
        self.check()

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.now = max(self.now, end)

    def run_until(self, what: Callable[[], bool], seconds: float = CALM_BEFORE) -> bool:
        """Let time pass until something is true; tell whether that was in time."""
        end = self.now + seconds
        while not what():
            if self.now > end:
                return False
            self.step()
        return True

    def rest(self, seconds: float) -> None:
        """What a node calls for sleep(): the others, and its own other threads, go on."""
        self.running[-1](seconds)

    def end_faults(self) -> None:
        """From here on everything is to come back."""
        self.trace("the faults end")
        self.mending = True

    # -- the account -----------------------------------------------------------------------------

    def trace(self, line: str) -> None:
        """Note what happens."""
        self.trace_hash = crc32(line.encode(), self.trace_hash)
        self._recent.append(f"{self.now:9.4f} {line}")
        if self._verbose:
            print(self._recent[-1])

    def explain(self, line: str) -> None:
        """Note what only somebody who reads along wants to know."""
        if self._verbose:
            self.trace(line)

    def fail(self, what: str, error: BaseException | None = None) -> None:
        """Note that something must not have happened; the step at hand ends with it."""
        if self.broken is None:
            if error is not None:
                what += ": " + "".join(traceback.format_exception(error))
            recent = "\n".join(self._recent)
            self.broken = Broken(f"{what}\nat {self.now:.4f} s, behind\n{recent}")

    def expect(self, truth: bool, what: str) -> None:
        """Fail with what is said, unless it is true."""
        if not truth:
            self.fail(what)

    def check(self) -> None:
        """Raise what has been found broken so far."""
        if self.broken is not None:
            raise self.broken
