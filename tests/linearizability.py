"""Is a history of puts, deletes and gets what one correct register could have shown?

Keys don't influence each other, so every key is a register of its own (linearizability is local:
Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects", 1990). The
search is Wing and Gong's in the order that Lowe gave it ("Testing for Linearizability", 2017): the
history is read from its begin to its end while a set of *configurations* is kept, each one way in
which the past may have happened: the register's value, and which of the calls that are still open
have taken effect. When a call returns, each configuration in which it has not taken effect yet lets
it do so, behind any of the other open calls; one that can't is dropped. Equal configurations fall
together, which is what memoisation is in this order. The history is wrong when none is left.

A write whose outcome is not known (``returned`` is None) may take effect at any time after its
invocation, or never. Two facts keep such writes from doubling the work again and again:

1. Values are unique. A put of unknown outcome whose value nobody got may be left out: behind it
   comes another write, or nothing. One whose value somebody got has happened before that get
   returned.
2. A delete of unknown outcome matters only right before a get that found nothing, and which one of
   several it is makes no difference. So they are counted, and used when such a get needs one.

A get without an answer says nothing and is left out.

One thread; nothing here has state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

__all__ = ["DELETE", "GET", "PUT", "Operation", "Violation", "check_history", "explain"]

PUT, DELETE, GET = "put", "delete", "get"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client.

    ``invoked`` and ``returned`` are moments of one clock, each used once in a history; ``returned``
    is None when no answer came, or one that leaves the outcome open. ``value`` is what a put wrote
    or a get found; None is nothing. A call that was refused, and so has changed nothing, is left
    out of the history.
    """

    client: int
    kind: str
    key: bytes
    value: bytes | None
    invoked: int
    returned: int | None

    def __str__(self) -> str:
        what = f"{self.kind} {self.key!r}"
        if self.kind != DELETE:
            what += f" {self.value!r}"
        end = "unknown" if self.returned is None else self.returned
        return f"client {self.client}: {what} [{self.invoked}, {end}]"


class Violation(AssertionError):
    """A history that no correct register could have shown; str() tells where it goes wrong."""


def check_history(operations: Iterable[Operation]) -> None:
    """Raise Violation unless the operations on every key are linearizable, beginning with None."""
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    for history in by_key.values():
        found = explain(history)
        if found is not None:
            raise Violation(found)


def explain(history: Sequence[Operation]) -> str | None:
    """Return where the history of one key goes wrong, or None if it is linearizable."""
    known, deletes = _settle(history)
    events = sorted(
        [(operation.invoked, number) for number, operation in enumerate(known)]
        + [(operation.returned or 0, ~number) for number, operation in enumerate(known)]
        + [(moment, len(known)) for moment in deletes]
    )
    search = _Search()
    for _, number in events:
        if number == len(known):
            search.unknown_deletes += 1
        elif number >= 0:
            search.open[number] = known[number]
        else:
            before = search.configurations
            search.close(~number)
            if not search.configurations:
                return _describe(history, known[~number], before)
    return None


def _settle(history: Sequence[Operation]) -> tuple[list[Operation], list[int]]:
    """Return the calls that have happened, each with an end, and when unknown deletes began."""
    got: dict[bytes | None, int] = {}
    for operation in history:
        if operation.kind == GET and operation.returned is not None:
            earliest = got.get(operation.value, operation.returned)
            got[operation.value] = min(earliest, operation.returned)
    known: list[Operation] = []
    deletes: list[int] = []
    for operation in history:
        if operation.returned is not None:
            known.append(operation)
        elif operation.kind == DELETE:
            deletes.append(operation.invoked)
        elif operation.kind == PUT and got.get(operation.value, 0) > operation.invoked:
            # At the very moment at which that get returns, sorted in front of it.
            known.append(replace(operation, returned=got[operation.value]))
    # Two calls that end at one moment: the put has to be tried before the get that needs it.
    known.sort(key=lambda operation: operation.kind == PUT)
    return known, deletes


_Configuration = tuple[bytes | None, int, frozenset[int]]
"""The value, how many unknown deletes were used up, and which open calls have taken effect."""


class _Search:
    """The configurations at one moment of the history."""

    def __init__(self) -> None:
        self.open: dict[int, Operation] = {}
        self.unknown_deletes = 0
        self.configurations: set[_Configuration] = {(None, 0, frozenset())}

    def close(self, number: int) -> None:
        """Let the call *number* end: it has taken effect in every configuration that remains."""
        remaining: set[_Configuration] = set()
        seen: set[_Configuration] = set()
        waiting = list(self.configurations)
        while waiting:
            configuration = waiting.pop()
            if configuration in seen:
                continue
            seen.add(configuration)
            value, used, done = configuration
            if number in done:
                remaining.add((value, used, done - {number}))
                continue
            moves = [(n, op) for n, op in self.open.items() if n not in done]
            # A get that could happen now may as well: it changes nothing for the others.
            for other, operation in moves:
                if operation.kind == GET and operation.value == value:
                    moves = [(other, operation)]
                    break
            for other, operation in moves:
                waiting += self._after(configuration, other, operation)
        del self.open[number]
        self.configurations = remaining

    def _after(
        self, configuration: _Configuration, number: int, operation: Operation
    ) -> list[_Configuration]:
        """Return what follows when an open call takes effect now; nothing if it can't."""
        value, used, done = configuration
        if operation.kind == PUT:
            return [(operation.value, used, done | {number})]
        if operation.kind == DELETE:
            return [(None, used, done | {number})]
        if operation.value == value:
            return [(value, used, done | {number})]
        if operation.value is None and used < self.unknown_deletes:
            return [(None, used + 1, done | {number})]
        return []


def _describe(history: Sequence[Operation], wrong: Operation, before: set[_Configuration]) -> str:
    values = sorted({repr(value) for value, _, _ in before})
    lines = [
        f"not linearizable: {wrong}",
        f"the value before could only be {' or '.join(values)}, or what open calls made of it",
        "the calls on this key, by their begin:",
        *(f"  {operation}" for operation in sorted(history, key=lambda one: one.invoked)),
    ]
    return "\n".join(lines)
