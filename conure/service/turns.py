"""What keeps a processor busy for long: done in steps that the reactor carries on in turns.

A step takes a millisecond at most. One that yields True ends the turn: what has been gathered by
then is committed first. The reactor thread, or whichever thread answers: see each function.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter

from conure.errors import ConureError
from conure.service.front import WaiterT

__all__ = ["AT_ONCE", "Turns", "begin", "or_fail"]

AT_ONCE = 0.002
"""Seconds for the first steps of something; the reactor goes on with the rest."""

Turns = Generator[bool | None, None, None]
"""What the reactor carries on in turns: see ``Waiter.go_on``."""

Fail = Callable[[WaiterT, ConureError], None]
"""Answers a waiter with an error."""


def begin(waiter: WaiterT, steps: Turns, fail: Fail[WaiterT], until: float | None = None) -> None:
    """Do something now, as far as little time suffices, up to ``perf_counter()`` *until*; the
    reactor goes on with the rest. Any thread. Raises what the first steps do."""
    if until is None:
        until = perf_counter() + AT_ONCE
    while perf_counter() < until:
        try:
            next(steps)
        except StopIteration:
            return
    waiter.go_on(or_fail(waiter, steps, fail))


def or_fail(waiter: WaiterT, steps: Turns, fail: Fail[WaiterT]) -> Turns:
    """Carry on steps; answer the waiter with the error that ends them."""
    try:
        yield from steps
    except ConureError as error:
        fail(waiter, error)
