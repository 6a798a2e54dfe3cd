"""Seeds, played from their beginning to their end; and the surroundings that a node is given."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import btree
from conure.cluster import checkpointing
from conure.cluster import node as node_module
from conure.consensus import spares
from conure.service import watchers as watchers_module
from conure.state import snapshots
from conure.storage import writeback
from conure.storage.lsm import compaction, durable, flushing, workers
from tests.lab.crashfs import SimulatedCrash
from tests.sim.disk import Disk
from tests.sim.luck import Luck
from tests.sim.simulation import Simulation
from tests.sim.world import World

__all__ = ["STEPS", "fake_world", "founders", "play"]

STEPS = 2500
"""Events of the fake world before its faults end: what a short run takes."""

_templates: dict[tuple[int, bool, int], list[tuple[str, str, Disk]]] = {}


def founders(data_nodes: int, arbiter: bool, engines: int = 0) -> list[tuple[str, str, Disk]]:
    """Return the disks of a cluster that was begun, joined and stopped in order; made once."""
    key = (data_nodes, arbiter, engines)
    if key not in _templates:
        with fake_world() as use:
            simulation = Simulation(0, Luck(data_nodes, arbiter, engines=engines))
            use(simulation.world)
            simulation.begin(["data"] * data_nodes + ["arbiter"] * arbiter)
            for machine in simulation.fleet.all():
                machine.stop()
        _templates[key] = [(m.name, m.role, m.disk) for m in simulation.fleet.all()]
    return _templates[key]


@contextlib.contextmanager
def fake_world() -> Iterator[Callable[[World], None]]:
    """Put what a process asks of its surroundings into the hands of the world that is named.

    A checkpoint measures how long it works; here each look at the clock takes half a millisecond.
    """
    world: World
    looks = 0

    def use(named: World) -> None:
        nonlocal world, looks
        world, looks = named, 0
        snapshots.CHUNK_BYTES = named.luck.chunk_bytes

    def sleep(seconds: float) -> None:
        world.rest(seconds)

    def monotonic() -> float:
        return world.now

    def perf_counter() -> float:
        nonlocal looks
        looks += 1
        return looks * 0.0005

    def exception(what: str) -> None:
        """The node goes on when a reply fails; here that is a failure, but for a power cut."""
        error = sys.exc_info()[1]
        if not isinstance(error, SimulatedCrash):
            world.fail(what, error)

    logger = logging.getLogger("conure")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            mock.patch.object(node_module, "sleep", sleep),
            mock.patch.object(node_module, "JOIN_AFTER", 1.0),
            mock.patch.object(node_module.log, "exception", exception),
            mock.patch.object(checkpointing, "sleep", sleep),
            mock.patch.object(spares, "RESERVE_BYTES", 1024),  # so that it comes to an end
            mock.patch.object(btree, "time", SimpleNamespace(perf_counter=perf_counter)),
            mock.patch.object(writeback, "time", SimpleNamespace(perf_counter=perf_counter)),
            mock.patch.object(checkpointing, "perf_counter", perf_counter),
            mock.patch.object(compaction, "perf_counter", perf_counter),
            mock.patch.object(durable, "perf_counter", perf_counter),
            mock.patch.object(flushing, "perf_counter", perf_counter),
            mock.patch.object(workers, "monotonic", perf_counter),
            mock.patch.object(snapshots, "CHUNK_BYTES", 300),
            mock.patch.object(watchers_module, "monotonic", monotonic),
            mock.patch.object(watchers_module, "_PART", 300),  # so that some are behind
            mock.patch.object(watchers_module, "_STEP", 1000),
        ):
            yield use
    finally:
        logger.setLevel(level)


def play(seed: int, steps: int = STEPS, *, verbose: bool = False) -> Simulation:
    """Play one seed to its end; a failure names the seed, its luck and how to repeat it."""
    luck = Luck.draw(seed)
    with fake_world() as use:
        simulation = Simulation(seed, luck, verbose=verbose)
        use(simulation.world)
        try:
            simulation.restore(founders(luck.data_nodes, luck.arbiter, luck.engines))
            simulation.run(steps)
            simulation.mend()
        except Exception as error:
            error.add_note(f"seed {seed}: {luck}")
            error.add_note(
                f"repeat with: python -m tests.sim --start {seed} --seeds 1 --steps {steps}"
            )
            raise
    return simulation
