"""Clusters on this machine: who leads, who follows, and whether everybody has caught up.

Each member is a process of its own with the defaults of its product, all of them on loopback and
on one disk. :class:`Cluster` knows the running members only by what they say of themselves.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from bench.servers import Conure, Etcd, Server, Standing
from bench.workspace import BenchError, Workspace, note

__all__ = ["SIZE", "Cluster", "Leadership", "start_conure", "start_etcd", "wait_for"]

SIZE = 3
_PATIENCE = 120.0  # seconds
_POLL = 0.02  # seconds
_ATTEMPTS = 3

Leadership = tuple[str, int]
"""Name of the leader and its term: both stay the same as long as nobody else is elected."""

_S_co = TypeVar("_S_co", bound=Server, covariant=True)
_T = TypeVar("_T")


class Cluster(Generic[_S_co]):
    """Servers that agree on one leader. One thread uses it."""

    def __init__(self, members: Sequence[_S_co]) -> None:
        self.members = tuple(members)
        self.elections = 0  # that disturbed the work done under one leader

    def settle(self) -> Leadership:
        """Wait until one leads and all are in its term and have applied what it has.

        All members have to run, and nobody else may be writing. Raises BenchError.
        """
        found: list[Leadership] = []

        def settled() -> bool:
            standings = [_ask(member) for member in self.members]
            leaders = [
                (member.name, standing.term)
                for member, standing in zip(self.members, standings, strict=True)
                if standing is not None and standing.leads
            ]
            found[:] = leaders
            alike = {standing and (standing.term, standing.applied) for standing in standings}
            return len(leaders) == 1 and len(alike) == 1

        wait_for(settled, "the cluster does not settle on one leader and one state")
        return found[0]

    def under_one_leader(self, work: Callable[[], _T]) -> _T:
        """Return what *work* returns when one leader led from its begin to its end.

        It is done again after an election. Raises BenchError if that happens every time.
        """
        for _ in range(_ATTEMPTS):
            before = self.settle()
            result = work()
            after = self.settle()
            if after == before:
                return result
            self.elections += 1
            note(f"again, because of an election: {before} before, {after} after")
        raise BenchError(f"elections during each of {_ATTEMPTS} attempts")

    def leader(self) -> _S_co:
        """Return who leads once the cluster has settled."""
        name, _ = self.settle()
        return next(member for member in self.members if member.name == name)

    def follower(self) -> _S_co:
        """Return a member that does not lead."""
        leader = self.leader()
        return next(member for member in self.members if member is not leader)

    def stop(self) -> None:
        """End all members in the orderly way."""
        for member in self.members:
            member.stop()


def start_conure(
    workspace: Workspace, *, flags: Sequence[str] = (), resp: bool = False, checkout: str = ""
) -> Cluster[Conure]:
    """Start a node with a cluster of its own and make the others members of it, over HTTP."""
    names = [f"node{number}" for number in range(1, SIZE + 1)]
    members = [
        Conure(
            workspace,
            name,
            bootstrap=name == names[0],
            flags=flags,
            resp=resp,
            checkout=checkout,
        )
        for name in names
    ]
    first, *others = members
    first.start()
    for node in others:
        node.launch()
        node.wait_for(Conure.alive)
        first.add(node)
    for node in others:
        wait_for(partial(first.is_voter, node.name), f"{node.name} gets no vote")
        node.wait_for(Conure.ready)
    return Cluster(members)


def start_etcd(workspace: Workspace) -> Cluster[Etcd]:
    """Start all members at once, as etcd's static bootstrap asks for."""
    members = [Etcd(workspace, f"etcd{number}") for number in range(1, SIZE + 1)]
    for member in members:
        member.members = members
        member.launch()
    for member in members:
        member.wait_for(Etcd.ready)
    return Cluster(members)


def wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until *condition* holds. Raises BenchError that says *otherwise* when it never does."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"after {_PATIENCE:.0f} s: {otherwise}")
        time.sleep(_POLL)


def _ask(member: Server) -> Standing | None:
    try:
        return member.standing()
    except (OSError, http.client.HTTPException):
        return None
