"""What has to be true in the end, when the faults are over and everybody has been served.

Trees and logs are whole, all members are what they were to be, and nothing is left that should have
expired. The history of each key has to be linearizable as a register's, the committed log has to
explain every answer (linearizability.py) and be what the nodes have made of it (model.py), and each
watcher has to have seen all of it once.
"""

from __future__ import annotations

from collections.abc import Sequence

from conure.commands import EventKind
from conure.state.history import Position
from tests.lab.linearizability import check_history
from tests.lab.model import agree
from tests.sim.checks import Checks
from tests.sim.clients import Clients
from tests.sim.fleet import Fleet
from tests.sim.machine import Machine
from tests.sim.requests import Account
from tests.sim.watchers import Poller, Watcher
from tests.sim.world import World

__all__ = ["Verdict"]


class Verdict:
    """Judges a whole history."""

    def __init__(
        self, world: World, fleet: Fleet, checks: Checks, account: Account, clients: Clients
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._checks = checks
        self._account = account
        self._clients = clients

    def have_seen(self, watchers: Sequence[Watcher], end: Position) -> bool:
        """Tell whether all watchers have got so far; those who watch at no member go elsewhere."""
        leader = self._fleet.leader()
        if leader is not None:
            for watcher in watchers:
                machine = watcher.machine
                if machine and leader.raft.configuration.get(machine.name) is None:
                    watcher.hang_up()
        return all(watcher.position >= end for watcher in watchers)

    def is_overdue(self) -> bool:
        """Tell whether something is still there a while after its time."""
        leader = self._fleet.leader()
        if leader is None:
            return True
        due = leader.store.next_due()
        return due is not None and due < leader.node.time() - 500

    def check(self, founded: int, watchers: Sequence[Watcher], pollers: Sequence[Poller]) -> None:
        """See that everybody is what it was to be, and that nothing was lost; no command is at the
        index *founded* or before."""
        leader = self._fleet.leader()
        assert leader is not None
        self._check_members(leader)
        self._check_files()
        self._world.check()
        check_history(self._account.registers.values())
        model = self._clients.check(self._checks.commands(founded), leader.node)
        agree(leader.store, model)
        for watcher in watchers:
            watcher.check(model.events)
        for poller in pollers:
            poller.check(model.events)
        self._world.counts["keys expired"] += sum(e.kind is EventKind.EXPIRE for e in model.events)
        self._world.check()

    def _check_members(self, leader: Machine) -> None:
        for server in leader.raft.configuration.servers:
            is_as_asked = server.suffrage == "voter" or not self._fleet.machines[server.id].is_voter
            self._world.expect(is_as_asked, f"{server.id} was to become a voter")

    def _check_files(self) -> None:
        for machine in self._fleet.all():
            if machine.up and not machine.keeping:
                machine.log.check()
                if machine.role == "data":
                    machine.store.engine.check()
                    self._checks.check_contents(machine)
