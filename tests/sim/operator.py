"""The operator: joins, removes, moves and wipes nodes, and hands leadership over.

A disk is only lost where a cluster survives that. Leaders that lose theirs may be back before they
are missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from conure.errors import Conflict
from tests.sim.fleet import Fleet
from tests.sim.machine import Machine
from tests.sim.membership import Membership
from tests.sim.nemesis import Nemesis
from tests.sim.world import Process, World

__all__ = ["Operator"]


class Operator:
    """Does one thing after the other; *add* gives it another machine, by name and role."""

    def __init__(
        self,
        world: World,
        fleet: Fleet,
        membership: Membership,
        nemesis: Nemesis,
        add: Callable[[str, str], Machine],
    ) -> None:
        self._world = world
        self._luck = world.luck
        self._rng = world.rng
        self._counts = world.counts
        self._fleet = fleet
        self._membership = membership
        self._nemesis = nemesis
        self._add = add
        self._owners: dict[str, str] = {}  # of hosts: who was moved there last

    def run(self) -> Process:
        """Change who the members are, one thing after the other, until the faults end."""
        while not self._world.mending:
            yield self._rng.expovariate(self._luck.members)
            tasks = [
                self._grow,
                self._promote,
                self._shrink,
                self._hand_over,
                self._wipe,
                self._move,
            ]
            tasks += [self._wipe_leader] * 4 * self._luck.wipes_leaders
            tasks += [self._resize] * 3 * bool(self._luck.quorum_size)
            task = self._rng.choice(tasks)
            if not self._world.mending:
                yield from task()

    def _members(self) -> list[str]:
        """Return the members as one of the nodes that are up knows them."""
        up = [machine for machine in self._fleet.all() if machine.up]
        if not up:
            return []
        return [server.id for server in self._rng.choice(up).raft.configuration.servers]

    def _grow(self) -> Process:
        members = self._members()
        if not members or len(members) > self._luck.data_nodes + 1:
            return
        outside = [m for name, m in self._fleet.machines.items() if name not in members]
        machine = self._rng.choice([*outside, None])
        if machine is None and len(self._fleet.machines) < 8:
            role = "arbiter" if self._rng.random() < 0.2 else "data"
            machine = self._add(f"n{len(self._fleet.machines) + 1}", role)
        if machine is None or self._fleet.has_lost_disk(machine):
            return
        if not machine.up:
            machine.boot()
        machine.is_voter = self._rng.random() < 0.6
        yield from self._membership.join(machine, voter=machine.is_voter)

    def _promote(self) -> Process:
        """Make a voter of a learner; mend() sees to it that it becomes one."""
        learners = self._fleet.learners()
        if not learners:
            return
        machine = self._rng.choice(learners)
        machine.is_voter = True
        answer = yield from self._membership.join(machine)
        self._counts["learners promoted"] += answer is None

    def _shrink(self) -> Process:
        members = self._members()
        if len(members) <= 2 or any(map(self._fleet.has_lost_disk, self._fleet.all())):
            return
        name = self._rng.choice(members)
        others = [self._fleet.machines[other] for other in members if other != name]
        if self._rng.random() < 0.4:
            yield from self._bring_down(self._rng.sample(others, len(others) // 2))
        if self._rng.random() < 0.3:
            self._cut_and_crash_soon()
        answer = yield from self._membership.remove(name)
        if isinstance(answer, Conflict) and not self._world.mending:  # too few of the others answer
            answer = yield from self._membership.remove(name, force=True)
            self._counts["forced removals"] += answer is None
        if answer is None and self._rng.random() < 0.5:
            yield 0.3
            if not self._world.mending:
                self._fleet.machines[name].crash()

    def _cut_and_crash_soon(self) -> None:
        """Let the network be cut and somebody lose power amid a change."""

        def strike(fault: Callable[[Machine], None]) -> None:
            machine = self._rng.choice(self._fleet.all())
            if machine.up and not self._world.mending:
                fault(machine)

        self._counts["changes amid cuts and crashes"] += 1
        for fault in (self._nemesis.cut, Machine.crash):
            self._world.after(self._rng.uniform(0.0, 0.1), partial(strike, fault))

    def _bring_down(self, machines: Sequence[Machine]) -> Process:
        """Crash machines that stay down for so long that their leader notices."""

        def bring_up() -> None:
            for machine in machines:
                machine.stays_down = False
                machine.boot_again()

        for machine in machines:
            machine.stays_down = True
            machine.crash()
        self._world.after(self._luck.election_timeout * self._rng.uniform(2, 5), bring_up)
        yield self._luck.election_timeout * 1.5

    def _resize(self) -> Process:
        """Change the quorum size, sometimes while those who are to hold more are going down."""
        size = self._rng.choice([0, *range(2, self._luck.data_nodes + 1)])
        if self._rng.random() < 0.3:
            self._cut_and_crash_soon()
        answer = yield from self._membership.resize(size, self._rng.choice([0.5, 5.0]))
        self._counts["quorum sizes changed"] += answer is None
        self._counts["quorum sizes refused"] += isinstance(answer, Conflict)

    def _hand_over(self) -> Process:
        members = self._members()
        to = self._rng.choice([*members, ""]) if members else ""
        answer = yield from self._membership.ask_leader(
            lambda node, reply: node.hand_over(to, reply), 1.0
        )
        self._world.trace(f"leadership to {to or 'anybody'}: {type(answer).__name__}")

    def _wipe(self) -> Process:
        """Lose a disk, and replace the member by itself with the new one."""
        machine = self._rng.choice(self._fleet.all())
        if not self.can_be_spared(machine):
            return
        machine.crash()
        machine.wipe()
        yield self._rng.random()
        if not machine.up:
            machine.boot()
        yield from self._membership.replace(machine, 4.0)

    def _wipe_leader(self) -> Process:
        """Let the leader lose its disk and be back before the others miss it. It is replaced later,
        when they may have elected somebody."""
        machine = self._fleet.leader()
        if machine is None or not self.can_be_spared(machine):
            return
        machine.crash()
        machine.wipe()
        self._counts["wiped leaders"] += 1
        yield self._luck.election_timeout * self._rng.random() / 2
        if not machine.up:
            machine.boot()
        yield self._luck.election_timeout * self._rng.uniform(0, 6)
        if not self._world.mending:
            yield from self._membership.replace(machine, 4.0)

    def can_be_spared(self, lost: Machine) -> bool:
        """Tell whether a cluster survives the loss of a disk, as a careful operator would see it.

        All others have to be up, and be a quorum of every configuration that anybody has, also
        with this one as a voter: a learner that answered a moment ago may be made one now. Beside
        an arbiter no data node can be spared: what it and the arbiter have committed alone would
        be gone for ever (raft.py says so).
        """
        others = [machine for machine in self._fleet.all() if machine is not lost]
        if (
            lost.keeping
            or not lost.up
            or not all(m.up and not self._fleet.has_lost_disk(m) for m in others)
        ):
            return False
        for machine in self._fleet.all():
            for configuration in machine.configurations:
                remaining = set(configuration.voters) - {lost.name}
                is_member = configuration.get(lost.name) is not None
                if not remaining or 2 * len(remaining) <= len(remaining) + is_member:
                    return False
                roles = [server.role for server in configuration.servers]
                if "arbiter" in roles and lost.role == "data":
                    return False
        return True

    def _move(self) -> Process:
        """Restart a machine at another address, if the others can learn of that.

        They do when it calls them; an arbiter calls nobody. Two may move at once, one of them to
        where the other one was.
        """
        machines = self._fleet.all()
        known = [
            self._fleet.machines[server.id].address == server.raft_address
            for other in machines
            if other.up
            for server in other.raft.configuration.servers
        ]
        moving = self._rng.sample(machines, self._rng.choice([1, 1, min(2, len(machines))]))
        if not all(known) or any(m.keeping or m.role == "arbiter" for m in moving):
            return
        for machine in moving:
            machine.crash()
        taken = {machine.host for machine in machines}
        free = [name for name in (*self._fleet.machines, "h1", "h2", "h3") if name not in taken]
        hosts = [machine.host for machine in moving[1:]] + [self._rng.choice(free)]
        for machine, host in zip(moving, hosts, strict=True):
            first = host if host in self._fleet.machines else machine.name
            owner = self._owners.get(host, first)
            self._counts["re-used addresses"] += owner != machine.name
            self._owners[host] = machine.name
            machine.host = host
        yield 0.1 * self._rng.random()
        for machine in moving:
            if not machine.up:
                machine.boot()
