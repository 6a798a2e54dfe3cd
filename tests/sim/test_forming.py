"""Clusters that are formed by a list in the fake world: many short seeds, what they have to have
seen, and proof that they would notice.

More seeds by hand: ``python -m tests.sim.forming --seeds 10000``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conure.cluster.forming import Forming
from conure.consensus.members import Configuration
from conure.peers.forming import Shown
from tests.sim.forming import AT_ONCE, Fate, Formation, play_formation
from tests.sim.luck import Luck
from tests.sim.seeds import fake_world
from tests.sim.world import Broken

SEEDS = 100
CHUNK = 20


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_formations_end_in_one_cluster_or_none(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        counts.update(play_formation(seed).world.counts)
    assert counts["formed"] > CHUNK / 3
    for happened in (
        "crashes",
        "wiped disks",
        "starts with other settings",
        "starts with another list",
        "names that led astray",
        "partitions",
    ):
        assert counts[happened], happened


@pytest.mark.parametrize("nodes", [2, 3, 5])
@pytest.mark.parametrize("wildcards", [0, 9])
def test_without_faults_a_cluster_serves_at_once(nodes: int, wildcards: int) -> None:
    """That is soon after the last one has started, however late that is."""
    for seed, late in enumerate((0.0, 0.3, 20.0)):
        fate = Fate(nodes=nodes, wildcards=wildcards, late=late)
        with fake_world() as use:
            formation = Formation(seed, fate, Luck(data_nodes=nodes))
            use(formation.world)
            formation.begin()
            formation.world.run_for(late)
            assert all(machine.up for machine in formation.fleet.all())
            assert formation.world.run_until(formation.fleet.agree, AT_ONCE)


def test_two_nodes_of_one_id_form_nothing() -> None:
    fate = Fate(nodes=3)
    with fake_world() as use:
        formation = Formation(1, fate, Luck())
        use(formation.world)
        formation.begin()
        twin = formation.fleet.machines["n3"]
        twin.name = "n2"  # what its process says; its address stays n3's
        formation.world.run_for(10.0)
        assert not formation.checks.holders()


def test_two_lists_make_two_clusters_and_right_ones_make_no_third() -> None:
    """What is begun by F2 at once is told apart from what isn't."""
    with fake_world() as use:
        formation = Formation(1, Fate(nodes=5), Luck(data_nodes=5))
        use(formation.world)
        machines, checks, world = formation.fleet.all(), formation.checks, formation.world
        for group in (machines[:2], machines[2:]):
            for machine in group:
                machine.peers = tuple(each.address for each in group if each is not machine)
        formation.begin()
        assert world.run_until(lambda: len(checks.holders()) == 5)
        assert checks.is_parted
        for machine in machines:
            machine.crash()
            formation.give_settings(machine)
        world.run_for(5.0)
        first, second = sorted({*checks.holders().values()})
        everybody = [*checks.founders(first).servers, *checks.founders(second).servers]
        checks._beginnings[first] = Configuration(tuple(everybody)).encode()
        checks._beginnings[second] = Configuration(tuple(everybody), 2).encode()
        checks._compare(machines[0], first, second)
        with pytest.raises(Broken, match="of the same ones"):
            world.check()
        world.broken = None
        more = replace(everybody[0], id="n6", raft_address="n6:7001", incarnation="another")
        checks._beginnings[second] = Configuration((*everybody, more)).encode()
        checks._compare(machines[0], first, second)
        with pytest.raises(Broken, match="F2"):
            world.check()


# -- it would notice -----------------------------------------------------------------------------


def found(symptoms: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Tell whether some seeds with many lost disks show what is wrong."""
    for seed in range(100):
        fate = Fate(nodes=3, late=0.0, seconds=4.0, wipe=0.2, ambush=0.7)
        luck = Luck(loss=0.1, straggling=0.1, delay=0.02)
        try:
            play_formation(seed, fate, luck)
        except symptoms:
            return True
    return False


def forms_at_sight(self: Forming, peer: Any, span: int, found: Shown) -> None:
    """Begin the cluster as soon as all members are known."""
    peer.shown, peer.why = found, ""
    formation = self._look()
    if not self._adopt(found) and formation is not None:
        self._form(formation)


def adopts_by_name(self: Forming, found: Shown) -> bool:
    """Begin the cluster that was formed with a node of this one's ID, in whichever life."""
    formation = found.formation
    if formation is None or formation.get(self._own.node_id) is None:
        return False
    if not self._directory.identity.cluster_id:
        self._form(formation)
    return True


def test_the_rules_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    rules: list[tuple[type, str, Callable[..., Any]]] = [
        (Forming, "_take", forms_at_sight),
        (Forming, "_adopt", adopts_by_name),
    ]
    for owner, name, instead in rules:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, instead)
            assert found((Broken, AssertionError)), instead.__name__
