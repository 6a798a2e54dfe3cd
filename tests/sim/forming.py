"""Clusters that are formed by a list, in the fake world: one cluster or none, whatever happens.

Machines are started at any time, each with the list of the others. While they form they lose power
at any step, lose their disks, are cut off, paused and started again with other settings; answers
are lost and late, names lead elsewhere for a while, and some are started with another list or at
another address. After every step of a machine (F1 to F4, conure/cluster/forming.py):

==================== ===========================================================================
one cluster or none  all disks that are of a cluster at this moment are of the same one; where lists
                     change, of one of those whose founders have the same IDs, as long as one of
                     these has its disk
F2                   of two clusters never is one that began the first a founder of the second and
                     one that began the second a founder of the first, both with these disks
equal beginnings     whoever has the first entry of a cluster's log has the same bytes there, and
                     the cluster's ID follows from them
no stolen seats      a disk holds a log only if the members name it (checks.py)
formed in time       without faults every list becomes a cluster, within seconds
==================== ===========================================================================

When the faults have ended, what was formed goes on wherever enough of its disks are left, and who
has lost a disk comes back by being removed and joined. Where other lists have made two clusters,
nothing more is asked of them. By hand::

    python -m tests.sim.forming --seeds 1000 [--start N] [--verbose]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from conure.consensus.formation import cluster_id_of
from conure.consensus.members import Configuration
from conure.consensus.messages import Entry
from tests.sim.checks import Checks
from tests.sim.fleet import Fleet
from tests.sim.luck import Luck
from tests.sim.machine import Machine
from tests.sim.membership import Membership
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.registers import PlainClients
from tests.sim.requests import Account, Requests
from tests.sim.seeds import fake_world
from tests.sim.world import Broken, Process, World

__all__ = ["Fate", "Formation", "play_formation"]

AT_ONCE = 2.0
"""Seconds of the fake clock from the last start until a cluster serves, without faults."""


@dataclass(frozen=True)
class Fate:
    """What a seed decides of how a cluster is formed. Faults in times a second."""

    nodes: int = 3
    arbiter: bool = False
    quorum_size: int = 0
    wildcards: int = 0  # how many nodes leave it to the others where they are
    late: float = 0.5  # seconds within which all are started
    seconds: float = 0.0  # for which faults happen
    wipe: float = 0.0
    restart: float = 0.0  # with other settings
    relist: float = 0.0  # the share of those starts that have another list
    move: float = 0.0  # and that of those at another address
    astray: float = 0.0  # names that lead elsewhere for a while
    ambush: float = 0.0  # the chance that one is wiped just when a node shows a new digest
    bystander: bool = False  # whether one of the list is of a cluster of its own

    @classmethod
    def draw(cls, seed: int) -> Fate:
        """Return the fate of a seed."""
        rng = random.Random(f"fate/{seed}")
        nodes = rng.choice([2, 2, 3, 3, 3, 5])
        arbiter = nodes > 2 and rng.random() < 0.2
        data = nodes - arbiter
        faulty = rng.random() < 0.9
        more = random.Random(f"lists and names/{seed}")
        bystander = more.random() < 0.05
        return cls(
            nodes=nodes,
            arbiter=arbiter,
            quorum_size=data if data > 1 and rng.random() < 0.2 else 0,
            wildcards=rng.choice([0, 0, 1, nodes]),
            late=rng.choice([0.0, 0.5, 3.0]),
            seconds=rng.choice([1.0, 3.0, 6.0]) if faulty else 0.0,
            wipe=rng.choice([0.0, 0.0, 0.5, 2.0]),
            restart=rng.choice([0.0, 0.5, 2.0]),
            relist=0.0 if bystander else more.choice([0.0, 0.0, 0.3, 0.6]),
            move=more.choice([0.0, 0.2]),
            astray=more.choice([0.0, 0.5, 2.0]) if faulty else 0.0,
            bystander=bystander,
            ambush=random.Random(f"ambush/{seed}").choice([0.0, 0.0, 0.6]) if faulty else 0.0,
        )

    def luck(self, seed: int) -> Luck:
        """Return the luck of the world around."""
        rng = random.Random(f"luck of a formation/{seed}")

        def maybe(*values: float) -> float:
            return rng.choice(values) if self.seconds and rng.random() < 0.6 else 0.0

        return Luck(
            data_nodes=self.nodes - self.arbiter,
            arbiter=self.arbiter,
            loss=maybe(0.01, 0.1, 0.3),
            straggling=maybe(0.02, 0.2),
            delay=rng.choice([0.0003, 0.001, 0.02]),
            cut=maybe(0.3, 1.0, 3.0),
            crash=maybe(0.3, 1.0, 3.0),
            crash_amid=maybe(0.5, 2.0, 5.0),
            blackout=maybe(0.1, 0.3),
            pause=maybe(0.2, 1.0),
            fill=maybe(0.1, 0.5),
            slow=maybe(0.2),
            checkpoint_entries=rng.choice([5, 60]),
            segment_bytes=rng.choice([1024, 8192]),
            engines=rng.choice([0, 1, 2, 3]),
        )


class FormationChecks(Checks):
    """All that is always true, and the rules of a formation."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        super().__init__(world, fleet)
        self._held: dict[str, tuple[int, str]] = {}  # by machine: the life of a disk, its cluster
        self._beginnings: dict[str, bytes] = {}
        self.bystander = ""
        """The machine that is of a cluster of its own, if there is one."""
        self.is_parted = False
        """Whether lists that were changed have made a second cluster."""

    def holders(self) -> dict[str, str]:
        """Return the cluster of each disk that is there and of one, by machine."""
        return {
            machine.name: self._held[machine.name][1]
            for machine in self._fleet.all()
            if self._held.get(machine.name, (-1, ""))[0] == machine.lives
            and machine.name != self.bystander
        }

    def founders(self, cluster_id: str) -> Configuration:
        """Return who formed a cluster."""
        return Configuration.decode(self._beginnings[cluster_id])

    def _remember(self, name: str, entries: Iterable[Entry], before: int, is_arbiter: bool) -> None:
        first, *_ = entries = [*entries]
        seen = self._entries.get((1, 1))
        is_other = (first.index, first.term) == (1, 1) and seen and seen[2] != first.data
        if is_other and not self.holders():
            # Everybody who held the cluster before has lost the disk: all begins anew.
            self._world.counts["clusters lost with all their disks"] += 1
            self.forget()
        elif is_other and seen:
            old, new = Configuration.decode(seen[2] or b""), Configuration.decode(first.data)
            if old.voters != new.voters or not self._left_of(old):
                self._part()  # whether it may be is seen when its ID is on the disk
        if not self.is_parted:
            super()._remember(name, entries, before, is_arbiter)
        else:  # indexes and terms are of two logs
            for entry in entries:
                self._note_admissions(entry)

    def _commit(self, machine: Machine, index: int, term: int) -> None:
        if not self.is_parted:
            super()._commit(machine, index, term)

    def inspect(self, machine: Machine) -> None:
        cluster_id = machine.cluster_id
        self._note_beginning(machine, cluster_id)
        if cluster_id and self._held.get(machine.name) != (machine.lives, cluster_id):
            self._note(machine, cluster_id)
        if not self.is_parted:
            super().inspect(machine)

    def _note_beginning(self, machine: Machine, cluster_id: str) -> None:
        log = machine.log
        if cluster_id and log.first_index == 1 and log.last_index:
            with machine.disk.without_faults():
                first = log.entries(1, 2, 1 << 20)[0].data
            seen = self._beginnings.setdefault(cluster_id, first)
            self._expect(seen == first, f"{machine.name} begins cluster {cluster_id} otherwise")
            founders = Configuration.decode(first)
            is_lone = len(founders.servers) == 1
            self._expect(
                is_lone or cluster_id_of(founders) == cluster_id,
                f"{machine.name} is of {cluster_id}, which isn't that of its founders",
            )

    def _note(self, machine: Machine, cluster_id: str) -> None:
        before = self._held.get(machine.name, (-1, ""))
        self._expect(before[0] != machine.lives, f"{machine.name} changes its cluster")
        others = set(self.holders().values())
        self._held[machine.name] = machine.lives, cluster_id
        if machine.name != self.bystander:
            for other in others - {cluster_id}:
                self._compare(machine, cluster_id, other)
        self._world.trace(f"{machine.name} is of cluster {cluster_id}")

    def address_of(self, machine: Machine) -> str:
        """Return where a machine was when the cluster was formed that its disk is of; "" if it was
        not formed with this disk."""
        cluster_id = self.holders().get(machine.name, "")
        if not cluster_id:
            return ""
        server = self.founders(cluster_id).get(machine.name)
        is_there = server is not None and server.incarnation == machine.incarnation
        return server.raft_address if server is not None and is_there else ""

    def _compare(self, machine: Machine, mine: str, other: str) -> None:
        """See that two clusters may be there at once (F2): nodes were told of other members."""
        what = f"{machine.name} is of cluster {mine}, others of {other}"
        beginnings = [self._beginnings.get(each) for each in (mine, other)]
        self._expect(None not in beginnings, f"{what}, which nobody has begun")
        first, second = self.founders(mine), self.founders(other)
        has_other_founders = first.voters != second.voters
        self._expect(has_other_founders or not self._left_of(second), f"{what}, of the same ones")
        here, there = self._beginners(mine, second), self._beginners(other, first)
        self._expect(not (here and there), f"{what}, and {here} and {there} are in both (F2)")
        self._part()

    def _part(self) -> None:
        self._world.counts["lists that made two clusters"] += not self.is_parted
        self.is_parted = True

    def _left_of(self, founders: Configuration) -> list[str]:
        """Return the founders of a cluster that are of one with the disks that formed it. Those who
        were added later may be on nobody's list, and so are not asked."""
        names = [server.id for server in founders.servers if server.id in self.holders()]
        return [
            name
            for name in names
            if founders.get(name).incarnation == self._fleet.machines[name].incarnation  # type: ignore[union-attr]
        ]

    def _beginners(self, cluster_id: str, founders: Configuration) -> list[str]:
        """Return who began a cluster and is with this disk among the founders of another one."""
        mine = self.founders(cluster_id)
        return [
            name
            for name, held in self.holders().items()
            if held == cluster_id
            for incarnation in [self._fleet.machines[name].incarnation]
            if all(
                (server := each.get(name)) is not None and server.incarnation == incarnation
                for each in (mine, founders)
            )
        ]


class Formation:
    """One history, as its seed decides it. A failure raises Broken."""

    def __init__(self, seed: int, fate: Fate, luck: Luck, *, verbose: bool = False) -> None:
        self.fate = fate
        self.world = world = World(seed, luck, verbose=verbose)
        self.fleet = fleet = Fleet()
        self.checks = checks = FormationChecks(world, fleet)
        self.network = network = Network(world, fleet, checks)
        requests = Requests(world, fleet)
        self.membership = Membership(world, fleet, requests)
        self.clients = PlainClients(world, requests, Account(world))
        self._nemesis = Nemesis(world, fleet, network, self.clients)
        names = [f"n{number}" for number in range(1, fate.nodes + 1)]
        for name in names:
            is_arbiter = fate.arbiter and name == names[-1]
            machine = Machine(
                world,
                name,
                "arbiter" if is_arbiter else "data",
                network,
                checks,
                self._discover,
                bootstrap=fate.bystander and name == names[0],
            )
            machine.stays_down = True
            fleet.machines[name] = machine
        if fate.bystander:
            checks.bystander = names[0]
        for machine in fleet.all():
            self.give_settings(machine)

    def give_settings(self, machine: Machine) -> None:
        """Let a machine be started as it should be."""
        number = int(machine.name[1:])
        machine.host = self._home(machine)
        machine.peers = () if machine.bootstrap else tuple(self._others_of(machine))
        machine.quorum_size = self.fate.quorum_size
        machine.is_wildcard = number <= self.fate.wildcards and not machine.bootstrap

    def _others_of(self, machine: Machine) -> list[str]:
        others = [each for each in self.fleet.all() if each is not machine]
        return [f"{self._home(each)}:7001" for each in others]

    def _home(self, machine: Machine) -> str:
        """Return the host at which a machine should be: where its cluster was formed with it."""
        return self.checks.address_of(machine).partition(":")[0] or machine.name

    # -- the phases ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start every machine, one after the other."""
        world = self.world
        for machine in self.fleet.all():
            if self.fate.relist and world.rng.random() < self.fate.relist:
                machine.peers = self._another_list(machine)
            world.after(world.rng.uniform(0.0, self.fate.late), partial(self._start, machine))

    def run(self) -> None:
        """Let the faults happen for a while."""
        world = self.world
        self.begin()
        world.start(self._nemesis.run())
        world.start(self._operate())
        if self.fate.ambush:
            world.start(self._lie_in_wait())
        if self.fate.astray:
            world.start(self._lead_astray())
        world.run_for(self.fate.seconds + self.fate.late)

    def mend(self) -> None:
        """End the faults; see that there is a cluster, where one can be."""
        world = self.world
        world.end_faults()
        self.network.heal()
        self.network.astray.clear()
        for machine in self.fleet.all():
            machine.stays_down = False
            machine.disk.mend()
            if machine.up and self._has_other_settings(machine):
                machine.resume(machine.generation)
                machine.crash()
            self.give_settings(machine)
            machine.mend()
        self._come_to_rest()

    def _come_to_rest(self) -> None:
        world, checks = self.world, self.checks
        if self.fate.bystander:
            world.run_for(5.0)
            world.expect(
                set(checks.holders().values()) <= {self._bystanders_cluster()},
                f"a cluster is formed though a peer is of one: {checks.holders()}",
            )
            world.check()
            world.counts["bystanders"] += 1
            return
        if not world.run_until(lambda: bool(checks.holders())):
            raise Broken(f"nothing is formed: {self._waiting()}")
        homes = {self._home(machine) for machine in self.fleet.all()}
        if checks.is_parted or len(homes) < self.fate.nodes:
            world.counts["histories that other lists or names have decided"] += 1
            world.run_for(5.0)
            return
        (cluster_id,) = set(checks.holders().values())
        founders = checks.founders(cluster_id)
        members = self._members_of(founders)  # with those that were added since
        voters = [server for server in members.servers if server.suffrage == "voter"]
        left = [s.id for s in members.servers if self._is_there(s.id, s.incarnation)]
        if len(left) < len(members.servers):
            is_weak = bool(founders.quorum_size) or self.fate.arbiter
            if sum(voter.id in left for voter in voters) < members.quorum or is_weak:
                world.counts["clusters that lost too much"] += 1
                world.run_for(5.0)
                return
            world.counts["clusters that lost a member"] += 1
            for machine in self.fleet.all():
                if machine.name not in left:
                    self._finish(self._replace(machine), f"{machine.name} doesn't come back")
        if not world.run_until(self.fleet.agree):
            raise Broken(f"what was formed doesn't serve: {self.fleet.states()} {self._waiting()}")
        late = [each for each in self.fleet.all() if founders.get(each.name) is None]
        if not world.run_until(lambda: all(each.cluster_id == cluster_id for each in late)):
            raise Broken(f"who was not listed is not joined: {self._waiting()}")
        world.counts["nodes that were left out at first"] += len(late)
        world.counts["formed"] += 1

    def _replace(self, machine: Machine) -> Process:
        yield from self.membership.replace(machine, 30.0)

    def _finish(self, process: Process, otherwise: str) -> None:
        ended: list[bool] = []

        def wrapped() -> Process:
            yield from process
            ended.append(True)

        self.world.start(wrapped())
        if not self.world.run_until(lambda: bool(ended), 60.0):
            raise Broken(f"{otherwise}: {self.fleet.states()}")

    # -- faults ----------------------------------------------------------------------------------

    def _operate(self) -> Process:
        """Lose disks, and start machines with other settings."""
        world, fate = self.world, self.fate
        rates = [fate.wipe, fate.restart]
        while sum(rates) and not world.mending:
            yield world.rng.expovariate(sum(rates))
            (task,) = world.rng.choices([self._wipe, self._restart], rates)
            machine = world.rng.choice(self.fleet.all())
            if not world.mending and machine.up and machine.name != self.checks.bystander:
                task(machine)

    def _lie_in_wait(self) -> Process:
        """Strike one just when a node has got to know all others: within what they take to begin
        the cluster."""
        world, seen = self.world, {""}
        while not world.mending:
            yield 0.005
            for machine in self.fleet.all():
                if machine.up and machine.shown_digest not in seen:
                    seen.add(machine.shown_digest)
                    if world.rng.random() < self.fate.ambush:
                        victim = world.rng.choice(self.fleet.all())
                        world.after(world.rng.uniform(0.0, 0.2), partial(self._strike, victim))

    def _strike(self, machine: Machine) -> None:
        if not self.world.mending and machine.up and machine.name != self.checks.bystander:
            self.world.rng.choice([self._wipe, self._wipe, self._restart])(machine)

    def _wipe(self, machine: Machine) -> None:
        machine.stays_down = True
        machine.resume(machine.generation)
        machine.crash()
        machine.wipe()
        pause = self.world.rng.choice([0.0, 0.05, 0.5])
        self.world.after(pause, partial(self._start, machine))

    def _restart(self, machine: Machine) -> None:
        """Start a machine with other settings; sooner or later the right ones come back."""
        rng, is_free = self.world.rng, not machine.cluster_id
        machine.stays_down = True
        machine.resume(machine.generation)
        machine.crash()
        self.world.counts["starts with other settings"] += 1
        chance = rng.random()
        if self.fate.relist and rng.random() < self.fate.relist:
            machine.peers = self._another_list(machine)
        elif is_free and self.fate.move and rng.random() < self.fate.move:
            self._move(machine)
        elif chance < 0.3:
            self.give_settings(machine)
        elif chance < 0.4:
            machine.quorum_size = 2 if machine.quorum_size == 0 else 0
        elif chance < 0.6:
            machine.is_wildcard = not machine.is_wildcard
        else:  # which nobody has to agree on, and which is part of the formation
            machine.http_port = 8081 + 8082 - machine.http_port
        self.world.after(rng.choice([0.0, 0.3]), partial(self._start, machine))

    def _another_list(self, machine: Machine) -> tuple[str, ...]:
        """Return a list that has only the first or only the last ones, leaves one out, has one that
        nobody is, or says the same otherwise."""
        rng = self.world.rng
        others = self._others_of(machine)
        kind = rng.random()
        self.world.counts["starts with another list"] += 1
        if kind < 0.5 and len(others) > 1:
            is_first = machine.name <= "n2"
            others = [each for each in others if (each.removeprefix("moved-") < "n3") == is_first]
        elif kind < 0.55 and len(others) > 1:
            others.remove(rng.choice(others))
        elif kind < 0.6:
            others.append("n9:7001")
        elif kind < 0.8:
            others = [f"{address.partition(':')[0]}@{address}" for address in others]
        else:
            others.append(machine.address)
        return tuple(others)

    def _move(self, machine: Machine) -> None:
        """Have a machine at another address, and on some lists there."""
        machine.host = f"moved-{machine.name}"
        self.world.counts["starts at another address"] += 1
        for other in self.fleet.all():
            if other is not machine and self.world.rng.random() < 0.5:
                here = f"{machine.name}:7001"
                other.peers = tuple(
                    machine.address if peer == here else peer for peer in other.peers
                )

    def _lead_astray(self) -> Process:
        """Let a name lead to another machine for a while, for one who looks it up or for all."""
        world, rng = self.world, self.world.rng
        while not world.mending:
            yield rng.expovariate(self.fate.astray)
            machines = self.fleet.all()
            address, there = rng.choice(machines).address, rng.choice(machines).address
            who = rng.choice([machines, [rng.choice(machines)]])
            ways = [(machine.name, address) for machine in who]
            self.network.astray |= dict.fromkeys(ways, there)
            world.after(rng.choice([0.2, 1.0]), partial(self._lead_right, ways))

    def _lead_right(self, ways: list[tuple[str, str]]) -> None:
        for way in ways:
            self.network.astray.pop(way, None)

    def _start(self, machine: Machine) -> None:
        machine.stays_down = False
        machine.boot_again()

    def _has_other_settings(self, machine: Machine) -> bool:
        return (
            machine.quorum_size != self.fate.quorum_size
            or machine.host != self._home(machine)
            or {*machine.peers} != {*(() if machine.bootstrap else self._others_of(machine))}
        )

    # -- looks -----------------------------------------------------------------------------------

    def _members_of(self, founders: Configuration) -> Configuration:
        """Return the members of a cluster as of the longest log that there is of it."""
        logs = [machine.raft for machine in self.fleet.all() if machine.up]
        longest = max(logs, key=lambda raft: (raft.last_term, raft.last_index))
        return longest.configuration if longest.configuration.servers else founders

    def _is_there(self, name: str, incarnation: str) -> bool:
        machine = self.fleet.machines[name]
        return machine.up and machine.incarnation == incarnation

    def _bystanders_cluster(self) -> str:
        return self.fleet.machines[self.checks.bystander].cluster_id

    def _waiting(self) -> str:
        return "\n".join(
            f"{machine.name}: {machine.waits_for}" for machine in self.fleet.all() if machine.up
        )

    def _discover(self, machine: Machine, generation: int) -> Process:
        """Ask to be joined, as joining.py does, where a cluster is there already."""
        world = self.world
        while True:
            yield 0.2 + 0.4 * world.rng.random()
            if generation != machine.generation:
                return
            node = machine.node
            if machine.paused or not node.seeds() or not node.wants_to_join():
                continue
            world.counts["nodes that ask to be joined"] += 1
            yield from self.membership.join(
                machine, patience=1.0, is_itself=True, by_raft_port=world.rng.random() < 0.5
            )


def play_formation(
    seed: int, fate: Fate | None = None, luck: Luck | None = None, *, verbose: bool = False
) -> Formation:
    """Play one seed to its end; a failure names it and how to repeat it."""
    fate = fate or Fate.draw(seed)
    luck = luck or fate.luck(seed)
    with fake_world() as use:
        formation = Formation(seed, fate, luck, verbose=verbose)
        use(formation.world)
        try:
            formation.run()
            formation.mend()
        except Exception as error:
            error.add_note(f"seed {seed}: {fate} {luck}")
            error.add_note(f"repeat with: python -m tests.sim.forming --start {seed} --seeds 1")
            raise
    return formation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.forming")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="show each event")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    failed: list[int] = []
    started = time.monotonic()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        try:
            world = play_formation(seed, verbose=arguments.verbose).world
        except Exception:  # noqa: BLE001 - every one of them is a finding
            traceback.print_exc()
            failed.append(seed)
        else:
            counts.update(world.counts)
    print(f"{arguments.seeds} seeds in {time.monotonic() - started:.1f} s")
    for name, count in sorted(counts.items()):
        print(f"{count:12,d} {name}")
    print(f"failing seeds: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
