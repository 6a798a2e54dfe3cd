"""Changes of the membership, asked for until they are done, by an operator or the nodes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from conure.errors import Conflict, ConureError, MemberNotFound, NotLeader
from conure.peers.joins import check_applicant, encode_applicant
from tests.sim.fleet import Fleet
from tests.sim.machine import Machine
from tests.sim.requests import Administration, Requests, administer
from tests.sim.world import Pending, Process, World

__all__ = ["Change", "Membership"]

Change = Generator[float | Pending, Any, ConureError | None]
"""A change under way; it returns the last answer, None if it was done."""


class Membership:
    """Asks whoever leads."""

    def __init__(self, world: World, fleet: Fleet, requests: Requests) -> None:
        self._world = world
        self._fleet = fleet
        self._requests = requests

    def ask_leader(self, request: Administration, patience: float = 5.0) -> Change:
        """Ask for a change until it is done or refused for good; return the last answer."""
        end = self._world.now + patience
        hint = ""
        while True:
            machine = self._fleet.machines.get(hint) or self._world.rng.choice(self._fleet.all())
            (answer,) = yield self._requests.send(machine, administer(request))
            refused = isinstance(answer, MemberNotFound) or (
                isinstance(answer, Conflict) and not self._world.mending
            )
            if answer is None or refused or self._world.now > end:
                return answer  # type: ignore[no-any-return]
            hint = answer.leader_id if isinstance(answer, NotLeader) else ""
            if not hint:
                yield 0.1

    def join(
        self,
        machine: Machine,
        *,
        voter: bool = True,
        patience: float = 5.0,
        is_itself: bool = False,
        by_raft_port: bool = False,
    ) -> Change:
        """Make a machine a member; one that asks by itself names its data directory, and may do so
        over the Raft port, where whoever is asked passes it on."""
        if by_raft_port:
            applicant = check_applicant(encode_applicant(machine.node.applicant()))
            answer = yield from self.ask_leader(
                lambda node, reply: node.asked_to_add(applicant, reply), patience
            )
            self._world.trace(f"{machine.name} is added: {type(answer).__name__}")
            self._world.counts["wishes to be added, over the Raft port"] += 1
            return answer
        answer = yield from self.ask_leader(
            lambda node, reply: node.join(
                machine.name,
                machine.address,
                "",
                voter=voter,
                role="",
                reply=reply,
                incarnation=machine.incarnation if is_itself else "",
            ),
            patience,
        )
        self._world.trace(f"{machine.name} joins: {type(answer).__name__}")
        self._world.explain(f"  {answer}")
        return answer

    def remove(self, name: str, *, force: bool = False, patience: float = 5.0) -> Change:
        """End a machine's membership."""
        answer = yield from self.ask_leader(
            lambda node, reply: node.remove(name, force=force, reply=reply), patience
        )
        self._world.trace(f"{name} is removed: {type(answer).__name__}")
        self._world.explain(f"  {answer}")
        return answer

    def resize(self, quorum_size: int, patience: float = 5.0) -> Change:
        """Change the quorum size."""
        answer = yield from self.ask_leader(
            lambda node, reply: node.resize(quorum_size, reply), patience
        )
        self._world.trace(f"the quorum size is to be {quorum_size}: {type(answer).__name__}")
        self._world.explain(f"  {answer}")
        return answer

    def replace(self, machine: Machine, patience: float = 5.0) -> Change:
        """Remove and join a machine that has lost its disk."""
        answer = yield from self.remove(machine.name, patience=patience)
        if answer is None or isinstance(answer, MemberNotFound):
            answer = yield from self.join(machine, patience=patience)
        return answer

    def discover(self, machine: Machine, generation: int) -> Process:
        """Ask others to add this node, as joining.py does.

        Without seeds only a member asks, which may have been moved, perhaps before it knew that it
        is one, or call others at addresses they have left. That is what its operator does then.
        """
        world = self._world
        while True:
            yield 0.2 + 0.4 * world.rng.random()
            if generation != machine.generation:
                return
            if machine.paused or not machine.node.wants_to_join():
                continue
            if world.luck.seeds or self._fleet.is_listed(machine.name):
                yield from self.join(machine, voter=machine.is_voter, patience=1.0, is_itself=True)
