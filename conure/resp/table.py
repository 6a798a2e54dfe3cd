"""A row of the table of commands: what a command is called, what it takes, and what does it.

The facts are those that ``COMMAND`` shows to clients, in Redis' terms. A row also says in which
*lane* a command goes: reads and writes of one connection wait for each other (connection.py), what
needs neither is done at once; what changes more than an entry of the log can is done alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import maxsize
from typing import Any, Final

from conure.resp.grammar import Run
from conure.resp.numbers import parse_integer
from conure.resp.verb import Plan

__all__ = [
    "ALONE",
    "ANY",
    "MESSAGES",
    "MOST_WORDS",
    "READS",
    "WRITES",
    "Command",
    "Handler",
    "KeySpan",
]

MOST_WORDS: Final = 4_096
"""Of a command that isn't made for more: what is done for each word is done in one go."""

ANY: Final = 0
READS: Final = 1
WRITES: Final = 2
ALONE: Final = 3
MESSAGES: Final = 4  # are published when the writes before them are answered

Handler = Callable[[Any, list[bytes]], None]
"""Does a command, given the client and all words; replies now, or begins a pending."""

RunHandler = Callable[[Any, Run], None]

KeySpan = tuple[int, int, int]
"""Where the keys are among the words: the first, the last (negative: from the end), the step."""


class Command:
    """A command. *arity* counts its name, too; negative: so many words at least, and *most* of them
    at most. What is planned has bounds of its own.

    *run* does several of them at once, *lone* one that has *least* words while nothing else of its
    client is under way (lone.py), *join* a read among writes that are unanswered. *plan* tells what
    it asks of the store. *in_multi* tells what MULTI makes of it: ``queue`` it, do it
    ``now``, or ``refuse`` it. *subcommands* are named by the second word; a command that has some
    takes no other, and none only if its arity is -1.
    """

    __slots__ = (
        "arity",
        "calls",
        "flags",
        "group",
        "handle",
        "in_multi",
        "join",
        "keys",
        "lane",
        "least",
        "lone",
        "most",
        "name",
        "plan",
        "run",
        "since",
        "subcommands",
        "summary",
    )

    def __init__(
        self,
        name: str,
        arity: int,
        handle: Handler,
        summary: str,
        *,
        flags: frozenset[str] = frozenset(),
        group: str = "connection",
        since: str = "1.0.0",
        keys: KeySpan = (0, 0, 0),
        lane: int = ANY,
        run: RunHandler | None = None,
        in_multi: str = "queue",
        join: Handler | None = None,
        plan: Callable[[Sequence[bytes]], Plan] | None = None,
        subcommands: Mapping[str, Command] | None = None,
        most: int = MOST_WORDS,
    ) -> None:
        assert in_multi in ("queue", "now", "refuse"), in_multi
        self.name = name
        self.arity = arity
        self.least = abs(arity)
        self.handle = handle
        self.summary = summary
        self.flags = flags
        self.group = group
        self.since = since
        self.keys = keys
        self.lane = lane
        self.run = run
        self.lone: Handler | None = None
        self.in_multi = in_multi
        self.join = join
        self.plan = plan
        self.most = maxsize if plan else most
        self.subcommands = {name.encode(): each for name, each in (subcommands or {}).items()}
        self.calls = 0

    @property
    def counts_keys(self) -> bool:
        """Whether the third word says how many keys follow: EVAL's and EVALSHA's."""
        return "movablekeys" in self.flags

    def takes(self, found: list[bytes] | Run) -> bool:
        """Tell whether it takes so many words."""
        if self.subcommands and not (self.arity == -1 and len(found) == 1):
            return False
        count = len(found) if type(found) is list else len(found.columns) + 1  # type: ignore[union-attr]
        return count == self.arity or (self.arity < 0 and -self.arity <= count <= self.most)

    def keys_of(self, words: list[bytes]) -> list[bytes]:
        """Return the keys among the words."""
        if self.counts_keys:
            count = parse_integer(words[2]) or 0
            return words[3 : 3 + count] if 0 < count <= len(words) - 3 else []
        first, last, step = self.keys
        if not first:
            return []
        stop = last + 1 if last >= 0 else len(words) + last + 1
        return words[first:stop:step]
