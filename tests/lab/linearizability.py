"""Is a history what one correct server could have shown? Of two kinds of history:

**Puts, deletes and gets** (:func:`check_history`), of which nothing else is known. Keys don't
influence each other, so every key is a register of its own (linearizability is local: Herlihy and
Wing, "Linearizability: A Correctness Condition for Concurrent Objects", 1990). The search is Wing
and Gong's in the order that Lowe gave it ("Testing for Linearizability", 2017): the history is
read from its begin to its end while a set of *configurations* is kept, each one way in which the
past may have happened: the register's value, and which of the calls that are still open have taken
effect. When a call returns, each configuration in which it has not taken effect yet lets it do so,
after any of the other open calls; one that can't is dropped. Equal configurations fall together,
which is what memoisation is in this order. The history is wrong when none is left.

A write whose outcome is not known (``returned`` is None) may take effect at any time after its
invocation, or never. Two facts keep such writes from doubling the work again and again:

1. Values are unique. A put of unknown outcome whose value nobody got may be left out: after it
   comes another write, or nothing. One whose value somebody got has happened before that get
   returned.
2. A delete of unknown outcome matters only right before a get that found nothing, and which one of
   several it is makes no difference. So they are counted, and used when such a get needs one.

A get without an answer says nothing and is left out.

**Calls with revisions** (:func:`check_calls`), of any kind and over any number of keys: writes tell
their revision and what came of them, reads the revision of the state they saw. Then no order has to
be searched for: the log is the one. Such a history is linearizable, and strictly serializable, if

3. carrying out the log in a model (model.py) gives each write the outcome it was told, and each
   read what it saw, at their revisions;
4. the order of the revisions is one that time allows: who begins when another call has returned has
   a later revision; a read may have the same one. A repetition counts from the first attempt on. A
   stale read may come too late, but nobody who comes after it can write what it should have seen;
5. the log has nothing that was refused.

Calls of unknown outcome need no search either: what the log has of them has happened.

One thread; nothing here has state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conure.commands import Outcome, Sequential, Transaction
from tests.lab.model import Command, Model

__all__ = [
    "DELETE",
    "GET",
    "PUT",
    "Call",
    "Operation",
    "Seen",
    "Violation",
    "check_calls",
    "check_history",
    "explain",
]

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


# -- with revisions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read found: the *found* at *key* in one of the model's tables, None if nothing.

    In the table ``range``, *key* is a pair of bounds and *found* a list of keys and records.
    """

    table: str
    key: Any
    found: object

    def __str__(self) -> str:
        return f"{self.table} {self.key!r}: {self.found!r}"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has returned; moments are as in :class:`Operation`.

    A write: *command*, the *revision* of the entry that answers it, and for a transaction its
    *outcome*. A read: no command, what was *seen*, and the revision of that state.
    """

    client: int
    invoked: int
    returned: int
    revision: int
    command: Command | None = None
    outcome: Outcome | None = None
    seen: tuple[Seen, ...] = ()
    is_stale: bool = False

    @property
    def effective(self) -> int:
        """The revision at which it happened: for a repetition, that of the first attempt."""
        return self.outcome.revision if self.outcome else self.revision

    def __str__(self) -> str:
        what = (
            f"{self.command} -> {self.outcome}" if self.command else ", ".join(map(str, self.seen))
        )
        return f"client {self.client}: {what} at {self.revision} [{self.invoked}, {self.returned}]"


def check_calls(
    calls: Sequence[Call], log: Mapping[int, Command], refused: Collection[Command] = ()
) -> Model:
    """Raise Violation unless the log explains all calls; return the model as the log leaves it.

    *log* has all commands that were committed, by revision, and *refused* those that can't have
    been; these have to differ from all others.
    """
    _check_order(calls, sorted(log))
    model = Model()
    waiting = sorted(calls, key=lambda call: call.revision, reverse=True)
    for revision in [*sorted(log), max([*log, *(call.revision for call in calls)], default=0) + 1]:
        while waiting and waiting[-1].revision < revision:
            _check_read(waiting.pop(), model)
        if revision not in log:
            break
        command = log[revision]
        if _timeless(command) in refused:
            raise Violation(f"it was refused, and yet it is entry {revision}: {command}")
        model.revision = revision - 1
        outcome = model.run(command)
        at_once = []
        while waiting and waiting[-1].revision == revision:
            at_once.append(waiting.pop())
        for call in at_once:
            if call.command is None:
                _check_read(call, model)
            elif (_timeless(command), outcome) != (_timeless(call.command), call.outcome):
                raise Violation(f"{call}\nbut entry {revision} is {command} -> {outcome}")
    return model


def _check_order(calls: Iterable[Call], commands: Sequence[int]) -> None:
    """See that the revisions keep the order of time.

    A state is that of its last command, whatever entries follow that are none: a leader that has
    no room for its own no-op reads by the state before (Raft.state_index), and a follower that has
    it may have told the higher index already.
    """

    def reached(call: Call) -> int:
        if call.command is not None:
            return call.effective
        last = bisect_right(commands, call.revision)
        return commands[last - 1] if last else 0

    moments = [(call.invoked, False, call) for call in calls]
    moments += [(call.returned, True, call) for call in calls]
    latest, latest_call = 0, None
    before: dict[int, tuple[int, Call | None]] = {}
    for _, has_returned, call in sorted(moments, key=lambda moment: moment[:2]):
        if not has_returned:
            before[id(call)] = latest, latest_call
            continue
        bound, by = before[id(call)]
        found = reached(call)
        is_late = found > bound or (call.command is None and found == bound)
        if not (is_late or call.is_stale):
            raise Violation(f"{call}\nis not behind what had returned before it began:\n{by}")
        if found > latest:
            latest, latest_call = found, call


def _check_read(call: Call, model: Model) -> None:
    if call.command is not None:
        raise Violation(f"{call}\nbut the log has no entry {call.revision}")
    for seen in call.seen:
        if seen.table == "range":
            there: object = [(key, model.records[key]) for key in model.keys(*seen.key)]
        else:
            there = getattr(model, seen.table).get(seen.key)
        if there != seen.found:
            raise Violation(f"{call}\nsaw {seen}, but the state was {there!r}")


def _timeless(command: Command) -> Command:
    """Return a command as its client sent it: the node sets the time."""
    if isinstance(command, Transaction | Sequential):
        return command._replace(time=0)
    return command
