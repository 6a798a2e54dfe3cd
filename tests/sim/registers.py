"""Clients that put, get and delete a few keys anywhere: each key is a register with a history.

Until the answer to a write is there, it may have happened at any time; a refused one never has.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from conure.errors import DiskFull, OutcomeUnknown
from tests.lab.linearizability import DELETE, GET, PUT, Call, Operation, Seen
from tests.sim import requests
from tests.sim.machine import Machine
from tests.sim.requests import Account, Done, Requests
from tests.sim.world import Lost, Pending, Process, World

__all__ = ["PlainClients"]


class PlainClients:
    """What they do, and what was refused to them."""

    def __init__(self, world: World, requests: Requests, account: Account) -> None:
        self._world = world
        self._requests = requests
        self._account = account
        self._refused: set[bytes] = set()
        self._late_readers = 0

    def client(self, number: int) -> Process:
        """Write and read, with a little time to think, until the faults end."""
        rng, luck = self._world.rng, self._world.luck
        keys = self._account.keys
        while not self._world.mending:
            yield rng.expovariate(1 / luck.think)
            some = rng.sample(keys, min(len(keys), rng.choice([1, 1, 1, 2, 3])))
            chance = rng.random()
            if chance < 0.45:
                yield from self.write(number, [(key, self._account.new_value()) for key in some])
            elif chance < 0.55:
                yield from self.write(number, [(key, None) for key in some])
            else:
                yield from self.read(number, some, stale=chance > 0.95)

    def write(
        self, client: int, commands: Sequence[tuple[bytes, bytes | None]]
    ) -> Generator[Pending, Any, bool]:
        """Put and delete once; tell whether all of it is known to have happened."""
        account, counts = self._account, self._world.counts
        machine = self._requests.machine_for(client)
        begun = []
        for key, value in commands:
            kind = DELETE if value is None else PUT
            moment = account.next_moment()
            begun.append(moment)
            account.registers[moment] = Operation(client, kind, key, value, moment, None)
        answers = yield self._requests.send(
            machine, requests.write(commands, passes_on=self._world.luck.forward), len(commands)
        )
        for moment, command, answer in zip(begun, commands, answers, strict=True):
            value = command[1]
            if isinstance(answer, Done):
                done = replace(account.registers[moment], returned=account.next_moment())
                account.registers[moment] = done
                account.note(Call(client, moment, 0, answer.revision, command))
                counts["writes"] += 1
            elif isinstance(answer, (Lost, OutcomeUnknown)):
                counts["unknown writes"] += 1
            else:  # refused, and so without any effect
                del account.registers[moment]
                counts["writes that a full disk refused"] += isinstance(answer, DiskFull)
                if value is not None:
                    self._refused.add(value)
        self._requests.learn(client, answers[0])
        return all(isinstance(answer, Done) for answer in answers)

    def read(
        self, client: int, keys: Sequence[bytes], *, stale: bool = False
    ) -> Generator[Pending, Any, bool]:
        """Get once; tell whether all was found out."""
        account, counts = self._account, self._world.counts
        machine = self._requests.machine_for(client)
        moment = account.next_moment()
        answers = yield self._requests.send(
            machine, requests.read(keys, stale, passes_on=self._world.luck.forward), len(keys)
        )
        for key, answer in zip(keys, answers, strict=True):
            if not isinstance(answer, tuple):
                continue
            index, record = answer
            value = record.value if record else None
            seen = (Seen("records", key, record),)
            account.note(Call(client, moment, 0, index, seen=seen, is_stale=stale))
            self._world.expect(value not in self._refused, f"{value!r} is there, but was refused")
            if stale:
                counts["stale reads"] += 1
            else:
                counts["reads by lease" if self._world.luck.lease else "reads"] += 1
                end = account.next_moment()
                account.registers[end] = Operation(client, GET, key, value, moment, end)
        self._requests.learn(client, answers[0])
        return all(isinstance(answer, tuple) for answer in answers)

    def say_farewell(self, client: int) -> Process:
        """Write and read every key, as often as it takes."""
        for key in self._account.keys:
            while not (yield from self.write(client, [(key, self._account.new_value())])):
                yield 0.05
            while not (yield from self.read(client, [key])):
                yield 0.05

    def read_late(self, machine: Machine) -> None:
        """Let somebody read there at once, who may have read elsewhere before."""
        self._late_readers += 1
        reader = 1000 + self._late_readers
        self._requests.prefer(reader, machine)
        self._world.counts["reads after a pause"] += 1
        self._world.start(self._read_once(reader))

    def _read_once(self, client: int) -> Process:
        yield from self.read(client, [self._world.rng.choice(self._account.keys)])
