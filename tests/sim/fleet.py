"""The machines that there are, and what can be told of all of them together."""

from __future__ import annotations

from conure.consensus.messages import State
from tests.sim.machine import Machine

__all__ = ["Fleet"]


class Fleet:
    """All machines, up or down, by name."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}

    def all(self) -> list[Machine]:
        """Return the machines, in the order in which they came."""
        return list(self.machines.values())

    def leader(self) -> Machine | None:
        """Return the one machine that leads in the highest term, if there is one."""
        led = [m for m in self.all() if m.up and m.raft.state is State.LEADER]
        return max(led, key=lambda machine: machine.raft.term, default=None)

    def is_listed(self, name: str) -> bool:
        """Tell whether any node that runs takes this one for a member."""
        return any(
            machine.up and machine.raft.configuration.get(name) is not None
            for machine in self.all()
        )

    def learners(self) -> list[Machine]:
        """Return the machines that somebody takes for a learner."""
        names = {
            server.id
            for machine in self.all()
            if machine.up
            for server in machine.raft.configuration.servers
            if server.suffrage == "nonvoter"
        }
        return [machine for name, machine in self.machines.items() if name in names]

    def has_lost_disk(self, machine: Machine) -> bool:
        """Tell whether a machine has lost its disk and is still a member with the old one."""
        if machine.is_wiped and machine.up:
            members = [other.members.get(machine.name) for other in self.all() if other.up]
            known = [server.incarnation for server in members if server is not None]
            machine.is_wiped = machine.incarnation not in known
        return machine.is_wiped

    def agree(self) -> bool:
        """Tell whether all members follow one leader, at one index, with one digest, and what no
        node had room for is on its disk by now."""
        leader = self.leader()
        if leader is None or any(each.up and each.waits_for_room for each in self.all()):
            return False
        raft = leader.raft
        last = raft.last_index
        for server in raft.configuration.servers:
            machine = self.machines[server.id]
            if (
                not machine.up
                or machine.incarnation != server.incarnation
                or machine.address != server.raft_address
                or server.suffrage == "staging"
                or machine.raft.leader_id != leader.name
                or machine.store.applied_index != last
                or (server.role == "data" and machine.store.digest != leader.store.digest)
            ):
                return False
        return True

    def states(self) -> str:
        """Return a line for each machine, for whoever has to find out what is wrong."""
        lines = [""]
        for machine in self.all():
            if not machine.up:
                lines.append(f"{machine.name} is down")
                continue
            raft = machine.raft
            members = " ".join(f"{s.id}:{s.suffrage}" for s in raft.configuration.servers)
            lines.append(
                f"{machine.name} {machine.address} {raft.state} of {raft.leader_id} "
                f"term {raft.term} log {raft.last_index}/{raft.last_term} "
                f"commit {raft.commit_index} applied {machine.store.applied_index} "
                f"wiped {machine.is_wiped} members {members}"
            )
        return "\n".join(lines)
