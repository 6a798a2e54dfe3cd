"""A cluster in a fake world: how its parts are put together, and the two phases of a history."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from conure.errors import ConureError
from conure.state.history import Position
from tests.sim.checks import Checks
from tests.sim.clients import Clients
from tests.sim.disk import Disk
from tests.sim.fleet import Fleet
from tests.sim.luck import Luck
from tests.sim.machine import Machine
from tests.sim.membership import Membership
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.operator import Operator
from tests.sim.registers import PlainClients
from tests.sim.requests import Account, Requests
from tests.sim.verdict import Verdict
from tests.sim.watchers import Poller, Watcher
from tests.sim.world import CALM_BEFORE, Broken, Process, World

__all__ = ["Simulation"]

WATCHED: list[tuple[bytes, bytes | None]] = [(b"", None), (b"n", b"p"), (b"t", b"t\0")]
"""The ranges of keys that watchers watch, one each."""

POLLED = (b"a", b"n")
"""The keys that are polled."""


class Simulation:
    """One history, as its seed decides it. A failure raises Broken, or linearizability's error."""

    def __init__(self, seed: int, luck: Luck, *, verbose: bool = False) -> None:
        self.world = world = World(seed, luck, verbose=verbose)
        self.fleet = fleet = Fleet()
        self.checks = checks = Checks(world, fleet)
        self.network = network = Network(world, fleet, checks)
        self.account = account = Account(world)
        requests = Requests(world, fleet)
        self.clients = PlainClients(world, requests, account)
        self.membership = Membership(world, fleet, requests)
        self.nemesis = Nemesis(world, fleet, network, self.clients)
        self.operator = Operator(world, fleet, self.membership, self.nemesis, self.add)
        self._others = Clients(world, requests, account, self.clients)
        self._verdict = Verdict(world, fleet, checks, account, self._others)
        self._watchers: list[Watcher] = []
        self._pollers: list[Poller] = []
        self._founded = 0  # entries up to here are from before; there are no commands among them

    def add(self, name: str, role: str = "data", *, bootstrap: bool = False) -> Machine:
        """Add a machine with an empty disk; it is down."""
        world, luck = self.world, self.world.luck
        machine = Machine(
            world,
            name,
            role,
            self.network,
            self.checks,
            self.membership.discover,
            bootstrap=bootstrap,
        )
        machine.rate = 1.0 + luck.drift * world.rng.uniform(-1, 1)
        machine.wall_offset = luck.skew * world.rng.uniform(-1, 1)
        if luck.uneven:
            machine.election_timeout = world.rng.choice([0.2, 0.4, 0.8])
        world.counts["arbiters"] += role == "arbiter"
        self.fleet.machines[name] = machine
        return machine

    # -- the two phases --------------------------------------------------------------------------

    def begin(self, roles: Sequence[str]) -> None:
        """Begin a cluster from nothing: one node that is joined by the others."""
        for number, role in enumerate(roles, 1):
            machine = self.add(f"n{number}", role, bootstrap=number == 1)
            machine.boot()
            if number > 1:
                self.finish(self.membership.join(machine), f"{machine.name} can't join")
        self.settle()

    def restore(self, disks: Iterable[tuple[str, str, Disk]]) -> None:
        """Begin with machines that have these disks."""
        for name, role, disk in disks:
            machine = self.add(name, role)
            machine.insert(disk)
            machine.boot()
            self._founded = max(self._founded, machine.raft.last_index)

    def run(self, steps: int) -> None:
        """Let the faults happen for a while."""
        world, luck = self.world, self.world.luck
        if luck.quorum_size:
            self.settle()
            self.resize(luck.quorum_size)
        for number in range(luck.clients):
            world.start(self.clients.client(number))
        for number in range(luck.others):
            world.start(self._others.client(100 + number))
        for number, keys in enumerate(WATCHED[: luck.watchers]):
            begin = Position(self._founded + 1 + (luck.ahead if number else 0))
            watcher = Watcher(world, self.fleet, self.network, f"w{number + 1}", *keys, begin)
            self._watchers.append(watcher)
            watcher.connect()
        self._pollers = [Poller(world, self.fleet, key) for key in POLLED[: luck.pollers]]
        for poller in self._pollers:
            world.start(poller.poll())
        if luck.members:
            world.start(self.operator.run())
        world.start(self.nemesis.run())
        while world.steps < steps:
            world.step()

    def mend(self) -> None:
        """End the faults; see that everything comes back, and that nothing was lost."""
        self.world.end_faults()
        self.network.heal()
        for machine in self.fleet.all():
            machine.mend()
        for machine in self.fleet.all():
            if self.fleet.has_lost_disk(machine):
                change = self.membership.replace(machine, CALM_BEFORE)
                self.finish(change, f"{machine.name} doesn't come back")
        for machine in self.fleet.learners():
            if machine.is_voter:
                self.finish(self.membership.join(machine), f"{machine.name} doesn't become a voter")
        for client in range(self.world.luck.clients):
            self.finish(self.clients.say_farewell(client), f"client {client} isn't served")
        if self.world.luck.others:
            self.finish(self._others.count_to_the_end(0), "nobody counts")
        self._wait_until(lambda: not self._verdict.is_overdue(), "something doesn't expire")
        self.settle()
        end, watchers = Position(self.checks.last_committed + 1), self._watchers
        if not self.world.run_until(lambda: self._verdict.have_seen(watchers, end)):
            raise Broken(f"{[(each.name, each.position) for each in watchers]} wait for {end}")
        self.settle()
        self._verdict.check(self._founded, watchers, self._pollers)

    # -- what stories are made of, too -----------------------------------------------------------

    def settle(self) -> None:
        """Let time pass until all members agree."""
        self._wait_until(self.fleet.agree, "the nodes don't agree")

    def resize(self, quorum_size: int) -> None:
        """Give the cluster a quorum size, as soon as all that are to hold more have caught up."""

        def resizing() -> Process:
            while (yield from self.membership.resize(quorum_size)) is not None:
                yield 0.1

        self.finish(resizing(), "it doesn't get its quorum size")

    def finish(self, process: Generator[Any, Any, object], otherwise: str) -> None:
        """Let a process come to its end. Raises Broken if it takes too long or ends badly."""
        ended: list[object] = []

        def wrapped() -> Process:
            ended.append((yield from process))

        self.world.start(wrapped())
        if not self.world.run_until(lambda: bool(ended)) or isinstance(ended[0], ConureError):
            raise Broken(f"{otherwise}: {ended} {self.fleet.states()}")

    def _wait_until(self, what: Callable[[], bool], otherwise: str) -> None:
        if not self.world.run_until(what):
            raise Broken(f"{otherwise}: {self.fleet.states()}")
