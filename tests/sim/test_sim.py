"""Clusters in a fake world: many short seeds, a few chosen stories, and proof that it would notice.

More seeds, and longer ones, by hand: ``python -m tests.sim --seeds 10000 --jobs 2``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from btree import BTreeKind
from conure.cluster.forwarding import Forwarding
from conure.cluster.leases import Lease
from conure.cluster.node import Node
from conure.cluster.pending import Read
from conure.cluster.serving import Ask, Serving
from conure.consensus.messages import State
from conure.consensus.raftlog import RaftLog
from conure.errors import (
    ConureError,
    DiskFailed,
    Diverged,
    ForeignDirectory,
    OutcomeUnknown,
    Unavailable,
)
from conure.peers.calls import Answer, AnswerKind, encode_index
from conure.peers.protocol import Greeting
from raft import Raft
from tests.lab.answers import value_of
from tests.lab.linearizability import Violation
from tests.sim.luck import KEYS, Luck
from tests.sim.machine import BROKEN_DISK, Machine
from tests.sim.seeds import fake_world, founders, play
from tests.sim.simulation import Simulation
from tests.sim.world import Broken, Process

SEEDS = 200
CHUNK = 10


Happened = Callable[[int], frozenset[str]]


@pytest.fixture(name="happened", scope="module")
def _happened(tmp_path_factory: pytest.TempPathFactory) -> Happened:
    """Plays a seed, once for all processes of tests; returns the names of what happened in it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each process has a folder of its own below that of the run

    def happened(seed: int) -> frozenset[str]:
        notes = shared / f"seed-{seed}"
        if not notes.exists():
            names = "\n".join(+play(seed).world.counts)
            new = notes.with_suffix(f".{os.getpid()}")
            new.write_text(names)
            new.rename(notes)
        return frozenset(notes.read_text().splitlines())

    return happened


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_short_seeds(first: int, happened: Happened) -> None:
    for seed in range(first, first + CHUNK):
        happened(seed)


# -- the simulator itself ------------------------------------------------------------------------


def test_a_seed_repeats_itself() -> None:
    """Also in another process, where sets and dictionaries of strings have another order."""
    seed, steps = 23, 1500
    trace_hash = play(seed, steps).world.trace_hash
    assert play(seed, steps).world.trace_hash == trace_hash
    assert play(seed + 1, steps).world.trace_hash != trace_hash
    code = f"from tests.sim.seeds import play; print(play({seed}, {steps}).world.trace_hash)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(other.stdout) == trace_hash


def found(
    symptoms: type[BaseException] | tuple[type[BaseException], ...],
    suits: Callable[[Luck], bool] = lambda _: True,
) -> bool:
    """Tell whether one of some seeds whose luck suits shows what is wrong."""
    for seed in islice((seed for seed in range(400) if suits(Luck.draw(seed))), 40):
        try:
            play(seed)
        except symptoms:
            return True
    return False


def test_a_log_that_is_not_synced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(log: RaftLog) -> None:
        log._synced = log.last_index

    monkeypatch.setattr(RaftLog, "sync", sync)
    assert found(Broken)


def test_reads_that_nobody_confirms_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm_read(
        node: Node,
        reply: Callable[[ConureError | None], None],
        requests: int = 1,
        *,
        passes_on: bool = False,
        **_: Any,
    ) -> None:
        reply(None)

    monkeypatch.setattr(Node, "confirm_read", confirm_read)
    assert found(Violation)


def test_reads_that_followers_answer_without_asking_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(forwarding: Forwarding, read: Read) -> None:
        forwarding._monitor.finished.append(partial(read.reply, None))

    monkeypatch.setattr(Forwarding, "read", read)
    assert found(Violation, lambda luck: luck.forward)


def test_the_word_of_who_does_not_lead_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked says yes, and how far he is."""

    def read(serving: Serving, peer: Greeting, term: int, applied: int, answer: Ask) -> None:
        index = serving._store.applied_index
        answer(Answer(AnswerKind.CONFIRMED, term, encode_index(index)))

    monkeypatch.setattr(Serving, "_read", read)
    assert found(Violation, lambda luck: luck.forward and luck.cut + luck.pause > 0)


def test_a_write_that_is_sent_again_after_it_was_lost_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take = Forwarding._take_answer

    def take_answer(forwarding: Forwarding, sent: Any, answer: Answer | ConureError) -> None:
        if isinstance(answer, OutcomeUnknown):
            answer = Unavailable("as if it had not been sent")
        take(forwarding, sent, answer)

    monkeypatch.setattr(Forwarding, "_take_answer", take_answer)
    assert found(
        (Broken, Violation),
        lambda luck: luck.forward and luck.others > 1 and luck.loss > 0.01,
    )


def test_a_lease_that_outlives_what_it_relies_on_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lease, "seconds", 3.0)
    assert found((Broken, Violation), lambda luck: luck.lease)


def test_commits_without_their_copies_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(raft: Raft, *_: object) -> int:
        return raft.last_index

    monkeypatch.setattr(Raft, "_held_by_data_voters", held)
    assert found(Broken, lambda luck: luck.quorum_size > 0)


# -- chosen stories ------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(data_nodes: int = 3, arbiter: bool = False, **luck: Any) -> Iterator[Simulation]:
    """A calm cluster that has a leader; at the end everything is mended and compared."""
    with fake_world() as use:
        sim = Simulation(1, Luck(data_nodes, arbiter, **luck))
        use(sim.world)
        sim.restore(founders(data_nodes, arbiter))
        sim.settle()
        yield sim
        sim.mend()


def leader_of(sim: Simulation) -> Machine:
    leader = sim.fleet.leader()
    assert leader is not None
    return leader


def followers_of(sim: Simulation) -> list[Machine]:
    """Return the data nodes that could take over."""
    leader = leader_of(sim)
    return [m for m in sim.fleet.all() if m is not leader and m.role == "data"]


def serve(sim: Simulation, times: int = 1) -> None:
    """See that the cluster takes writes and reads, on every key and as often as asked."""

    def client() -> Process:
        for _ in range(times):
            for key in KEYS:
                while not (yield from sim.clients.write(0, [(key, b"%f" % sim.world.now)])):
                    yield 0.05
                while not (yield from sim.clients.read(0, [key])):
                    yield 0.05

    sim.finish(client(), "the cluster doesn't serve")


def suffrages(sim: Simulation) -> dict[str, str]:
    configuration = leader_of(sim).raft.configuration
    return {server.id: server.suffrage for server in configuration.servers}


def writing(sim: Simulation, commands: list[tuple[bytes, bytes | None]]) -> Process:
    while not (yield from sim.clients.write(0, commands)):
        yield 0.05


def is_behind(machine: Machine, key: bytes) -> bool:
    """Tell whether a snapshot is coming in and has got after that key."""
    incoming = machine.incoming
    return incoming is not None and incoming.resume_after() > key


def are_interrupted(sim: Simulation, times: int) -> bool:
    return sim.world.counts["interrupted snapshots"] >= times


def joining(sim: Simulation, machine: Machine) -> Process:
    yield from sim.membership.join(machine)


def test_a_cluster_begins_with_one_node_and_grows() -> None:
    with fake_world() as use:
        sim = Simulation(2, Luck())
        use(sim.world)
        sim.begin(["data", "data", "data", "arbiter"])
        assert suffrages(sim) == dict.fromkeys(("n1", "n2", "n3", "n4"), "voter")
        serve(sim)
        sim.mend()


def test_a_wiped_disk_stays_out_until_its_member_was_removed() -> None:
    with cluster() as sim:
        machine = followers_of(sim)[0]
        machine.crash()
        machine.wipe()
        machine.boot()
        serve(sim)
        sim.world.run_for(3.0)
        assert not machine.raft.configuration.servers
        assert sim.world.counts["refused connections"]
        sim.finish(sim.membership.replace(machine), "it doesn't come back")
        sim.settle()
        assert suffrages(sim)[machine.name] == "voter"


@pytest.mark.parametrize(("voters", "can_be_spared"), [(1, False), (2, True)])
def test_a_learner_beside_one_voter_cannot_be_spared(voters: int, can_be_spared: bool) -> None:
    """Its leader may make a voter of it an instant after it has lost its disk."""
    with cluster(voters) as sim:
        learner = sim.add("n9")
        learner.boot()
        sim.finish(sim.membership.join(learner, voter=False), "it doesn't join")
        sim.settle()
        assert suffrages(sim)["n9"] == "nonvoter"
        assert sim.operator.can_be_spared(learner) == can_be_spared


def test_the_founder_that_lost_its_disk_founds_nothing_again() -> None:
    """It meets the first configuration, of itself alone, in the log that it is sent."""
    with cluster(max_append_bytes=1, max_inflight=1) as sim:
        founder = sim.fleet.machines["n1"]
        founder.crash()
        founder.wipe()
        founder.bootstrap = False
        founder.boot()
        serve(sim)
        sim.finish(sim.membership.remove("n1"), "it can't be removed")
        leader = leader_of(sim)
        sim.world.start(joining(sim, founder))
        assert sim.world.run_until(lambda: founder.raft.last_index >= 1)
        sim.network.cut.update((leader.name, name) for name in sim.fleet.machines)
        sim.world.run_for(2.0)
        assert founder.raft.state is not State.LEADER


def test_members_are_found_at_their_new_addresses() -> None:
    with cluster() as sim:
        for machine in (*followers_of(sim), leader_of(sim)):
            machine.crash()
            machine.host = f"moved-{machine.name}"
            machine.boot()
            sim.settle()
            serve(sim)
        servers = leader_of(sim).raft.configuration.servers
        assert {server.raft_address for server in servers} == {
            f"moved-{name}:7001" for name in ("n1", "n2", "n3")
        }


def test_a_snapshot_goes_on_where_the_network_was_cut() -> None:
    with cluster(chunk_bytes=1, checkpoint_entries=5, segment_bytes=1024, delay=0.01) as sim:
        machine = followers_of(sim)[0]
        machine.stays_down = True
        machine.crash()
        many: list[tuple[bytes, bytes | None]] = [
            (b"key %d" % number, b"value") for number in range(20)
        ]
        for start in range(0, 20, 5):
            sim.finish(writing(sim, many[start : start + 5]), "no writes")
        serve(sim, 10)
        machine.boot()
        reached = b""
        for interruptions in (1, 2, 3):
            assert sim.world.run_until(partial(is_behind, machine, reached))
            assert machine.incoming is not None
            reached = machine.incoming.resume_after()
            sim.network.cut |= {(machine.name, name) for name in sim.fleet.machines}
            assert sim.world.run_until(partial(are_interrupted, sim, interruptions))
            sim.network.heal()
        sim.settle()
        assert sim.world.counts["snapshots installed"] == 1
        assert value_of(machine.node, b"key 19") == b"value"


def test_an_installation_that_the_disk_stops_half_way_is_finished_by_the_next_start() -> None:
    """The log begins after the snapshot already: the staged tree is all that holds the state."""
    with cluster(checkpoint_entries=5, segment_bytes=1024) as sim:
        machine = followers_of(sim)[0]
        machine.stays_down = True
        machine.crash()
        serve(sim, 20)
        machine.boot()

        def put_in_place(*_: object, **__: object) -> None:
            raise DiskFailed("renaming failed: input/output error")

        with mock.patch.object(BTreeKind, "put_in_place", put_in_place):
            machine.excuses = BROKEN_DISK
            assert sim.world.run_until(lambda: not machine.up)
        machine.excuses = ()
        machine.boot()
        sim.settle()
        assert sim.world.counts["snapshots installed"] == 1


def test_two_data_nodes_and_an_arbiter_survive_the_loss_of_one() -> None:
    with cluster(2, arbiter=True) as sim:
        for _ in range(2):
            lost = leader_of(sim)
            lost.stays_down = True
            lost.crash()
            serve(sim)
            assert leader_of(sim).role == "data"
            lost.boot()
            sim.settle()


@pytest.mark.parametrize("survivor", ["n1", "n2", "n3"])
def test_all_disks_but_one_are_lost_and_nothing_that_was_acknowledged(survivor: str) -> None:
    """Whichever disk that is, of as many as the quorum size asks for (R11), amid writes."""
    with fake_world() as use:
        sim = Simulation(1, Luck(3, delay=0.01))
        use(sim.world)
        sim.restore(founders(3, arbiter=False))
        sim.settle()
        sim.resize(3)
        for client in range(3):
            sim.world.start(sim.clients.client(client))
        before = sim.checks.last_committed
        assert sim.world.run_until(lambda: sim.checks.last_committed >= before + 25)
        for machine in sim.fleet.all():
            machine.stays_down = True
            machine.crash()
            if machine.name != survivor:
                machine.wipe()
        last = sim.fleet.machines[survivor]
        last.boot()
        assert last.log.last_index >= sim.checks.last_committed
        for index in range(max(before + 1, last.log.first_index), sim.checks.last_committed + 1):
            assert last.log.term(index) == sim.checks.term_of(index)


def test_a_leader_without_enough_copies_says_so_and_goes_on_reading() -> None:
    with cluster() as sim:
        sim.resize(3)
        away = followers_of(sim)[0]
        away.stays_down = True
        away.crash()
        leader = leader_of(sim)
        assert sim.world.run_until(lambda: leader.raft.lacks_copies)
        answers: list[object] = []
        leader.run(
            leader.node.write, [(b"a", b"late")], lambda start, stop, ended: answers.append(ended)
        )
        reads: list[object] = []
        leader.run(leader.node.confirm_read, reads.append)
        assert sim.world.run_until(lambda: bool(answers) and bool(reads))
        assert reads == [None]
        assert isinstance(answers[0], Unavailable)
        assert "by the quorum size of 3 a write needs 3 data voters, and 2 answer" in str(
            answers[0]
        )
        away.stays_down = False
        away.boot()
        serve(sim)


def test_a_replica_that_differs_stops_serving_for_good() -> None:
    with cluster() as sim:
        machine = followers_of(sim)[0]
        sim.checks.compares_digests = False  # the nodes have to notice by themselves
        machine.excuses = (Diverged, ForeignDirectory)
        machine.store.digest ^= 1
        serve(sim, 3)
        assert sim.world.run_until(lambda: isinstance(machine.failure, Diverged))
        assert sim.world.run_until(lambda: isinstance(machine.failure, ForeignDirectory))
        serve(sim)
        machine.wipe()
        machine.boot()
        sim.finish(sim.membership.replace(machine), "it doesn't come back")


# -- the seeds again, which have been played by now -----------------------------------------------


def test_the_seeds_hold_what_a_cluster_may_meet(happened: Happened) -> None:
    """Whatever else they are changed to: each of these has happened within some of them."""
    wanted = {
        "arbiters",
        "changes amid cuts and crashes",
        "commits of a quorum size",
        "commits that wait for copies",
        "quorum sizes changed",
        "quorum sizes refused",
        "conditional puts",
        "events watched",
        "failed conditions",
        "forced removals",
        "full disks",
        "histories lost",
        "keys expired",
        "leaders of two terms at once",
        "learners promoted",
        "locks",
        "locks and sessions refused",
        "polls told of a change",
        "polls told of none",
        "power losses amid pauses",
        "re-used addresses",
        "reads after a pause",
        "reads by lease",
        "repetitions",
        "resumed snapshots",
        "snapshots installed",
        "unknown transactions",
        "wall clocks set",
        "wiped disks",
        "writes that a full disk refused",
    }
    for seed in range(SEEDS):
        if not wanted:
            break
        luck = Luck.draw(seed)
        if luck.members == 3 or luck.fill or (luck.chunk_bytes == 1 and luck.disconnect):
            wanted -= happened(seed)
    assert not wanted
