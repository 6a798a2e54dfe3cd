"""The nemesis: cuts links, crashes, stops, pauses and slows down machines, fills disks, lets them
fail, and sets wall clocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.lab.crashfs import SECTOR, FailureKind
from tests.sim.fleet import Fleet
from tests.sim.machine import BROKEN_DISK, SYNC_SECONDS, Machine
from tests.sim.network import Network
from tests.sim.registers import PlainClients
from tests.sim.world import Process, World

__all__ = ["Nemesis"]


class Nemesis:
    """Does what the luck says. Somebody of *clients* reads where a pause has ended."""

    def __init__(self, world: World, fleet: Fleet, network: Network, clients: PlainClients) -> None:
        self._world = world
        self._luck = world.luck
        self._rng = world.rng
        self._counts = world.counts
        self._fleet = fleet
        self._network = network
        self._clients = clients

    def run(self) -> Process:
        """Do what the luck says, until the faults end."""
        luck = self._luck
        faults: list[tuple[float, Callable[[Machine], None]]] = [
            (luck.cut, self.cut),
            (luck.crash, lambda machine: machine.crash()),
            (luck.crash_amid, self._crash_amid),
            (luck.blackout, self._black_out),
            (luck.stop, self._stop),
            (luck.pause, self._pause),
            (luck.pause_and_crash, self._pause_and_crash),
            (luck.fill, self._fill),
            (luck.flood, self._flood),
            (luck.fail, self._fail_disk),
            (luck.slow, self._slow_down),
            (luck.disconnect, lambda _: self._network.disconnect()),
            (luck.jump, self._set_clock),
        ]
        rates = [rate for rate, _ in faults]
        total = sum(rates)
        while total and not self._world.mending:
            yield self._rng.expovariate(total)
            (fault,) = self._rng.choices([fault for _, fault in faults], rates)
            machine = self._rng.choice(self._fleet.all())
            if self._rng.random() < 0.3:  # whose faults matter most
                machine = self._fleet.leader() or machine
            if not self._world.mending and machine.up:
                fault(machine)

    def cut(self, machine: Machine) -> None:
        """Cut some links: around one machine, between two groups, one way or both."""
        names = list(self._fleet.machines)
        self._counts["partitions"] += 1
        group = (
            {machine.name}
            if self._rng.random() < 0.5
            else {name for name in names if self._rng.random() < 0.5}
        )
        one_way = self._rng.random()
        links = [
            (a, b)
            for a in names
            for b in names
            if (a in group) != (b in group) and (one_way < 0.6 or (a in group) == (one_way < 0.8))
        ]
        if self._rng.random() < 0.2:
            links = [link for link in links if self._rng.random() < 0.5]
        self._network.cut.update(links)
        self._world.trace(f"{len(links)} links are cut around {sorted(group)}")

        def heal() -> None:
            self._world.trace("links are mended")
            self._network.cut.difference_update(links)

        self._world.after(self._rng.uniform(0.1, 2.0), heal)

    def _crash_amid(self, machine: Machine) -> None:
        machine.disk.crash_in = self._rng.randint(1, 40)

    def _black_out(self, _: Machine) -> None:
        self._world.trace("everything loses power")
        for machine in self._fleet.all():
            machine.crash()

    def _stop(self, machine: Machine) -> None:
        if not machine.keeping and not machine.paused:
            machine.stop()

    def _pause(self, machine: Machine) -> None:
        if not machine.paused:
            machine.pause()
            election = self._luck.election_timeout * self._rng.uniform(1, 2)  # a lease ends before
            seconds = self._rng.choice([0.1, 0.5, 1.5, election])
            self._world.after(seconds, partial(self._wake, machine, machine.generation))

    def _wake(self, machine: Machine, generation: int) -> None:
        """End a pause; somebody reads there at once."""
        machine.resume(generation)
        if generation == machine.generation and not self._world.mending:
            self._clients.read_late(machine)

    def _pause_and_crash(self, machine: Machine) -> None:
        """Pause some of the others, and let this one lose power amid that."""
        others = [m for m in self._fleet.all() if m is not machine and m.up]
        for other in self._rng.sample(others, self._rng.randint(0, len(others))):
            self._pause(other)
        generation = machine.generation

        def crash() -> None:
            if generation == machine.generation and not self._world.mending:
                machine.crash()

        self._counts["power losses amid pauses"] += 1
        self._world.after(self._rng.uniform(0.0, 0.5), crash)

    def _fill(self, machine: Machine) -> None:
        """Let the disk be almost full, for a while."""
        self._fill_for(machine, self._rng.uniform(0.5, 5.0))

    def _flood(self, _: Machine) -> None:
        """Let many disks be almost full for so long that much else happens meanwhile."""
        seconds = self._rng.uniform(5.0, 30.0)
        machines = self._fleet.all()
        for machine in self._rng.sample(machines, self._rng.randint(1, len(machines))):
            self._fill_for(machine, seconds)

    def _fill_for(self, machine: Machine, seconds: float) -> None:
        """Somebody else takes all room but a little, perhaps whatever is given back as well."""
        machine.disk.set_capacity(
            machine.disk.used_bytes() + SECTOR * self._rng.choice([0, 0, 1, 10, 40])
        )
        machine.disk.copies_on_write = self._rng.random() < 0.2
        is_greedy = self._rng.random() < 0.5
        end = self._world.now + seconds
        self._counts["full disks"] += 1
        self._world.trace(f"the disk of {machine.name} fills for {seconds:.1f} s")

        def go_on() -> None:
            disk = machine.disk
            if self._world.mending or self._world.now >= end:
                disk.set_capacity(None)
                disk.copies_on_write = False
                return
            if is_greedy and (capacity := disk.capacity) is not None:
                disk.set_capacity(min(capacity, disk.used_bytes()))
            self._world.after(min(0.1, end - self._world.now), go_on)

        go_on()

    def _fail_disk(self, machine: Machine) -> None:
        """Let one of the next file calls fail for good, or find no room."""
        kinds: list[FailureKind] = ["io", "full", "half"]
        kind = self._rng.choice(kinds)
        machine.disk.fail_call(self._rng.randint(1, 30), kind)
        if kind != "full":  # half a meta page is no lack of room any more (S1)
            machine.excuses = BROKEN_DISK
        self._counts["disk faults"] += 1
        self._world.trace(f"the disk of {machine.name} fails")

    def _slow_down(self, machine: Machine) -> None:
        machine.sync_seconds = self._rng.choice([0.005, 0.05])
        self._world.after(
            self._rng.uniform(0.5, 2.0), lambda: setattr(machine, "sync_seconds", SYNC_SECONDS)
        )

    def _set_clock(self, machine: Machine) -> None:
        """Let a wall clock jump."""
        machine.wall_offset += self._rng.choice([-3600.0, -3.0, 0.5, 3.0, 3600.0])
        self._counts["wall clocks set"] += 1
        self._world.trace(f"the clock of {machine.name} is {machine.wall_offset:.3f} s ahead")
