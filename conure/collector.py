"""Python's garbage collector, kept from long turns.

Most that a node keeps is kept for long: entries of the log, records, events. A full collection
looks at each of these objects again, which takes 20 ms for some 100,000 of them, in whichever
thread allocates the next one. So what a full collection has found alive is frozen: later ones
pass it over, and it is freed as ever when nothing refers to it any more.

What is frozen and becomes part of a cycle is never collected, so everything is thawed once in a
while, and looked at as a whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import monotonic

__all__ = ["THAW", "Collector"]

THAW = 3600.0
"""Seconds between two collections that look at all there is."""

_FULL = 2  # the generation that is collected with all younger ones


class Collector:
    """Freezes what full collections leave, from :meth:`start` to :meth:`stop`; one for a process.
    *clock* tells seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next_thaw = 0.0

    def start(self) -> None:
        """Freeze what there is now, and what each full collection leaves. Once; any thread."""
        gc.freeze()
        self._next_thaw = self._clock() + THAW
        gc.callbacks.append(self._note)

    def stop(self) -> None:
        """Let the collector do as it does. Any thread."""
        gc.callbacks.remove(self._note)
        gc.unfreeze()

    def _note(self, phase: str, info: Mapping[str, int]) -> None:
        """Take note of a collection, in the thread that has begun it."""
        if info["generation"] != _FULL:
            return
        if phase == "stop":
            gc.freeze()
        elif self._clock() >= self._next_thaw:
            self._next_thaw = self._clock() + THAW
            gc.unfreeze()
