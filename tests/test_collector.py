"""collector.py: what is frozen, and that nothing is kept for ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from conure.collector import THAW, Collector


class Thing:
    """Something that may refer to itself."""

    def __init__(self) -> None:
        self.other: Thing | None = None


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """The time, while a collector is at work."""
    now = [100.0]
    collector = Collector(lambda: now[0])
    collector.start()
    yield now
    collector.stop()
    assert gc.get_freeze_count() == 0


def test_what_a_full_collection_leaves_is_frozen(clock: list[float]) -> None:
    frozen = gc.get_freeze_count()
    assert frozen > 1000  # what there was before
    things = [Thing() for _ in range(500)]
    gc.collect(1)
    assert gc.get_freeze_count() <= frozen  # fewer where something frozen was freed
    gc.collect()
    assert gc.get_freeze_count() >= frozen + 500
    kept = weakref.ref(things[0])
    things.clear()
    assert kept() is None  # frozen or not, it is freed


def test_a_frozen_cycle_is_collected_in_the_end(clock: list[float]) -> None:
    thing = Thing()
    thing.other = thing
    kept = weakref.ref(thing)
    gc.collect()
    del thing
    gc.collect()
    assert kept() is not None
    clock[0] += THAW
    gc.collect()
    assert kept() is None
    frozen = gc.get_freeze_count()
    assert frozen > 1000  # again
