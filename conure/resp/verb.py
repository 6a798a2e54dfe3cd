"""What a data command is: its row in the table of commands, and what it asks of the store.

A :class:`Verb` turns the arguments of a command into a :class:`Plan`: steps for the store, and what
writes the reply of their results. A plan is made in the reactor's thread before anything happens,
and its reply is written by whichever thread has the results. Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from conure.resp.replies import Replies
from conure.service.limits import Limits
from conure.steps import Done, Step

__all__ = ["Context", "Plan", "ReplyError", "Verb"]


class ReplyError(Exception):
    """A command that can't be done as it stands; ``str()`` is the error reply, its code first."""


class Context(NamedTuple):
    """What a plan may depend on beside the arguments: the limits, and the node's time in
    milliseconds since the Unix epoch."""

    limits: Limits
    now: int


class Plan(NamedTuple):
    """What one data command asks of the store.

    The *steps* are done in order, all in one entry of the log if any of them writes; a plan without
    steps asks for nothing. *reply* writes the reply of their results, which come in the same order:
    an error, too, where one of them met an obstacle. One that *takes_long*, some milliseconds, is
    written in a turn of its own (plans.py).
    """

    steps: tuple[Step, ...]
    reply: Callable[[Sequence[Done], Replies], None]
    takes_long: bool = False


class Verb(NamedTuple):
    """A data command. *arity* counts the name too, negative: at least; *keys* are the positions of
    the first and the last key (negative: from the end) and the step between two, 0: there is none.
    """

    name: str
    arity: int
    flags: frozenset[str]
    keys: tuple[int, int, int]
    group: str
    since: str
    summary: str
    plan: Callable[[Sequence[bytes], Context], Plan]
