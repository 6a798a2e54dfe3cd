"""Random histories of a cluster: loss, doubling, reordering, crashes, partitions, members.

After every step the invariants of :class:`tests.lab.raft_cluster.Cluster` are checked (safety).
Then everything is mended, and the cluster has to elect, commit and agree (liveness). By hand::

    python -m tests.consensus.test_raft_random SEED [STEPS]
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable

import pytest

from conure.consensus.messages import State
from conure.errors import ConureError
from raft import RaftOptions
from tests.lab.raft_cluster import Cluster, Envelope, Node, server

SEEDS = 60
STEPS = 1500

CRASH = 0.012
PARTITION = 0.01
LOSS = 0.04
DOUBLING = 0.04
"""Chances, at each step."""


class History:
    """One random history."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        options = RaftOptions(
            "",
            election_ticks=rng.choice([3, 5]),
            max_inflight=rng.choice([1, 2, 8]),
            max_append_bytes=rng.choice([50, 200, 1 << 20]),
            quiet_ticks=rng.choice([0, 0, 4]),
        )
        names = "abcde"[: rng.choice([1, 2, 3, 3, 5])]
        arbiters = "x" if len(names) == 2 else ""
        size = random.Random(f"size/{seed}").choice([0, 0, 2, 3, 4])
        self.cluster = Cluster(*names, seed=seed, arbiters=arbiters, options=options, size=size)
        for node in self.cluster.nodes.values():
            node.manual_sync = rng.random() < 0.5
        self.count = 0
        self.actions: list[tuple[float, Callable[[], None]]] = [
            (0.50, self.deliver),
            (LOSS, self.lose),
            (DOUBLING, self.double),
            (0.20, self.tick),
            (0.10, self.propose),
            (0.05, self.read),
            (0.08, self.sync),
            (CRASH, self.crash),
            (0.03, self.restart),
            (PARTITION, self.partition),
            (PARTITION, self.cluster.heal),
            (0.02, self.cut),
            (0.03, self.change_members),
            (0.01, self.transfer),
            (0.01, self.resize),
            (0.005, self.lose_connection),
        ]

    def run(self, steps: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for _, action in self.rng.choices(self.actions, weights, k=steps):
            action()

    # -- actions ---------------------------------------------------------------------------------

    def running(self, wanted: Callable[[Node], bool] = lambda _: True) -> Node | None:
        nodes = [node for node in self.cluster.nodes.values() if node.up and wanted(node)]
        return self.rng.choice(nodes) if nodes else None

    def a_leader(self) -> Node | None:
        return self.running(lambda node: node.raft.state is State.LEADER)

    def pick(self) -> Envelope | None:
        """Take a message off the network; mostly an old one."""
        network = self.cluster.network
        if not network:
            return None
        return network.pop(min(self.rng.randrange(len(network)), self.rng.randrange(len(network))))

    def deliver(self) -> None:
        envelope = self.pick()
        if envelope is not None:
            self.cluster.deliver(envelope)

    def lose(self) -> None:
        envelope = self.pick()
        if envelope is not None and envelope.machine is not None:
            self.cluster.report_snapshot(envelope, arrived=False)

    def double(self) -> None:
        if self.cluster.network:
            self.cluster.network.append(self.rng.choice(self.cluster.network))

    def tick(self) -> None:
        node = self.running()
        if node is not None:
            node.tick(self.rng.choice([1, 1, 1, 3]))

    def propose(self) -> None:
        leader = self.a_leader()
        if leader is not None:
            self.count += 1
            commands = [b"%d.%d" % (self.count, i) for i in range(self.rng.choice([1, 1, 3, 8]))]
            self.attempt(lambda: leader.propose(*commands))

    def read(self) -> None:
        leader = self.a_leader()
        if leader is not None:
            self.count += 1
            leader.read(self.count)

    def sync(self) -> None:
        node = self.running(lambda node: bool(node.unsynced))
        if node is not None:
            node.sync()

    def crash(self) -> None:
        node = self.running()
        if node is not None:
            node.crash(keep=self.rng.random() < 0.3)

    def restart(self) -> None:
        down = [node for node in self.cluster.nodes.values() if not node.up]
        if down:
            node = self.rng.choice(down)
            node.manual_sync = self.rng.random() < 0.5
            node.start()

    def partition(self) -> None:
        names = list(self.cluster.nodes)
        self.cluster.isolate(*self.rng.sample(names, self.rng.randrange(1, len(names) + 1)))

    def cut(self) -> None:
        node = self.running()
        if node is not None:
            node.cut()

    def change_members(self) -> None:
        leader = self.a_leader()
        if leader is None:
            return
        raft = leader.raft
        members = raft.configuration.servers
        learners = [one.id for one in members if one.suffrage != "voter"]
        choice = self.rng.random()
        if choice < 0.4 and learners:
            self.attempt(lambda: leader.change(lambda: raft.promote(self.rng.choice(learners))))
        elif choice < 0.7 and len(members) < 6:
            strangers = [
                node.id
                for node in self.cluster.nodes.values()
                if raft.configuration.get(node.id) is None and not node.is_arbiter
            ]
            if strangers and self.rng.random() < 0.5:
                name = self.rng.choice(strangers)
            else:
                name = f"n{len(self.cluster.nodes)}"
                self.cluster.add(name).start()
            newcomer = server(name, self.rng.choice(["nonvoter", "staging"]))
            self.attempt(lambda: leader.change(lambda: raft.add_learner(newcomer)))
        elif choice >= 0.7:
            name = self.rng.choice(members).id
            force = self.rng.random() < 0.2
            self.attempt(lambda: leader.change(lambda: raft.remove(name, force=force)))

    def resize(self) -> None:
        leader = self.a_leader()
        if leader is not None:
            size = self.rng.choice([0, 2, 3, 4, 5])
            self.attempt(lambda: leader.change(lambda: leader.raft.resize(size)))

    def transfer(self) -> None:
        leader = self.a_leader()
        if leader is not None:
            self.attempt(leader.raft.transfer_leadership)
            leader.drive()

    def lose_connection(self) -> None:
        leader = self.a_leader()
        if leader is not None and leader.raft.progress:
            leader.raft.report_unreachable(self.rng.choice(list(leader.raft.progress)))
            leader.drive()

    def attempt(self, what: Callable[[], object]) -> None:
        """Do what may be refused."""
        with contextlib.suppress(ConureError):
            what()

    # -- liveness --------------------------------------------------------------------------------

    def mend(self) -> None:
        """Bring everything back, and have the cluster commit and agree."""
        cluster = self.cluster
        cluster.heal()
        for node in cluster.nodes.values():
            node.manual_sync = False
            if not node.up:
                node.start()
            node.sync()
        cluster.settle()
        term = index = 0
        for _ in range(40 * cluster.options.election_ticks):
            cluster.tick_all()
            leader = cluster.leader
            if leader is None:
                continue
            if leader.raft.term != term:
                try:
                    term, index = leader.raft.term, leader.propose(b"last")
                except ConureError:
                    continue
            if all(
                cluster[one.id].raft.applied_index >= index
                for one in leader.raft.configuration.servers
            ):
                break
        else:
            raise AssertionError("the cluster doesn't come back to life")
        leader.read("last")
        cluster.settle()
        assert "last" in [context for context, _ in leader.answered]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_history(seed: int) -> None:
    play(seed, STEPS)


def play(seed: int, steps: int) -> History:
    """Play one history; a failure names its seed."""
    history = History(seed)
    try:
        history.run(steps)
        history.mend()
    except (AssertionError, ConureError) as error:
        error.add_note(f"repeat with: python -m tests.consensus.test_raft_random {seed} {steps}")
        raise
    return history


if __name__ == "__main__":
    first = int(sys.argv[1])
    play(first, int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
