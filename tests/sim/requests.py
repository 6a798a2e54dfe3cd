"""Requests from outside: how they get to a node, their answers back, and the account of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from conure.cluster.node import Node
from conure.commands import Committed, Outcome
from conure.errors import ConureError, NotLeader, Unavailable
from tests.lab.linearizability import Call, Operation
from tests.lab.model import Command
from tests.sim.fleet import Fleet
from tests.sim.luck import KEYS
from tests.sim.machine import Machine
from tests.sim.world import Pending, World

__all__ = ["Account", "Administration", "Done", "Reply", "Requests", "administer", "read", "write"]

Reply = Callable[[int, int, Sequence[object]], None]
"""Takes the answers to some of a request's commands: from one position up to another."""

Request = Callable[[Node, Reply], None]
"""What a client asks of a node."""

Administration = Callable[[Node, Callable[[object], None]], None]
"""A request for a change, and who is told how it ended."""


class Done(NamedTuple):
    """A command was committed, at *revision*; of a transaction, how it ended."""

    revision: int
    outcome: Outcome | None


def write(commands: Sequence[Command], *, passes_on: bool) -> Request:
    """Return the request to commit commands, which a follower refuses or passes on; each is
    answered by Done or an error."""

    def call(node: Node, reply: Reply) -> None:
        def ended(start: int, stop: int, answer: Committed | ConureError) -> None:
            if isinstance(answer, Committed):
                outcomes = answer.outcomes
                revisions = range(answer.first + start, answer.first + stop)
                reply(start, stop, [Done(each, outcomes.get(each)) for each in revisions])
            else:
                reply(start, stop, [answer] * (stop - start))

        node.write(commands, ended, 0 if passes_on else None)

    return call


def read(keys: Sequence[bytes], stale: bool, *, passes_on: bool) -> Request:
    """Return the request for the records of keys, as httpapi.py puts it, which a follower refuses
    or has confirmed; each comes with the revision of the state that has it."""

    def call(node: Node, reply: Reply) -> None:
        def confirmed(error: ConureError | None) -> None:
            if error is not None:
                reply(0, len(keys), [error] * len(keys))
                return
            index, records = node.get_all(keys)
            for position, found in enumerate(records):
                answer = found if isinstance(found, ConureError) else (index, found)
                reply(position, position + 1, [answer])

        if stale:
            confirmed(None)
        else:
            node.confirm_read(confirmed, passes_on=passes_on)

    return call


def administer(request: Administration) -> Request:
    """Return a request with one answer."""
    return lambda node, reply: request(node, lambda answer: reply(0, 1, [answer]))


class Account:
    """What clients asked for, when, and what they were told, by a clock that all of them share."""

    def __init__(self, world: World) -> None:
        self.keys = KEYS[: world.luck.keys]
        """The keys of the plain clients."""
        self.registers: dict[int, Operation] = {}
        """What was done to those keys, by one of its moments."""
        self.calls: list[Call] = []
        """Everything that has returned."""
        self._rng = world.rng
        self._moment = 0
        self._values = 0

    def next_moment(self) -> int:
        """Return a moment after all others."""
        self._moment += 1
        return self._moment

    def note(self, call: Call) -> None:
        """Keep a call that has returned just now."""
        self.calls.append(replace(call, returned=self.next_moment()))

    def new_value(self) -> bytes:
        """Return a value unlike all others."""
        self._values += 1
        size = self._rng.choice([0, 0, 10, 10, 100, 700])
        return b"%d:" % self._values + b"." * size


class Requests:
    """The way of requests, and where each client, by its number, sends its next one."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._fleet = fleet
        self._favourites: dict[int, str] = {}

    def send(self, machine: Machine, call: Request, size: int = 1) -> Pending:
        """Send a request to a machine; yield what is returned to get the answers."""
        pending = Pending(self._world, size)
        delay = self._world.luck.delay

        def reply(start: int, stop: int, answers: Sequence[object]) -> None:
            if generation != machine.generation or machine.disk.is_dead:
                return
            if self._world.mending or self._world.rng.random() >= self._world.luck.loss:
                when = max(self._world.now, machine.busy_until) + delay
                self._world.at(when, partial(pending.answer, start, stop, answers))

        def arrive() -> None:
            if machine.up and generation == machine.generation:
                machine.run(call, machine.node, reply)

        generation = machine.generation
        if machine.up:
            self._world.after(delay, lambda: machine.when_free(arrive))
        else:
            refusal = Unavailable("the connection was refused")
            self._world.after(delay, partial(pending.answer, 0, size, [refusal] * size))
        return pending

    def machine_for(self, client: int) -> Machine:
        """Return where a client sends its next request."""
        name = self._favourites.get(client)
        if name is None or self._world.rng.random() < 0.05:
            name = self._world.rng.choice(list(self._fleet.machines))
        return self._fleet.machines[name]

    def learn(self, client: int, answer: object) -> None:
        """Follow a hint to the leader; ask anybody after any other failure."""
        if isinstance(answer, NotLeader) and answer.leader_id in self._fleet.machines:
            self._favourites[client] = answer.leader_id
        elif isinstance(answer, ConureError):
            self._favourites.pop(client, None)

    def prefer(self, client: int, machine: Machine) -> None:
        """Have a client send its next request there."""
        self._favourites[client] = machine.name
