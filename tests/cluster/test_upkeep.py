"""What an engine merges behind the writes: when, for how long, beside what, and who waits for it.

The engine is the real one; what it would merge, and how far behind it is, is made up, so that each
moment can be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conure.cluster import checkpointing
from conure.cluster import node as node_module
from conure.cluster.checkpointing import LOOK, MOST_SHARE, SLICE
from conure.cluster.node import BRAKE, BRAKE_SHARE, PRESSURE_BRAKE, Node
from conure.cluster.opening import MEMTABLES, memory_bounds
from conure.errors import CorruptionError, Exhausted, Unavailable
from tests.cluster.test_node import checkpoint, open_node, options, write
from tests.lab.answers import value_of
from tests.lab.crashfs import CrashFile, CrashFileSystem
from tests.lab.nodes import Lab, cluster, put


class Merges:
    """Plays what an engine has to merge: *left* turns of it, each of *seconds*."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
        self.node = node
        self.left = 0
        self.seconds = 0.0
        self.now = 0.0
        self.turns = 0
        self.rests: list[float] = []
        self.on_turn: Callable[[], None] = lambda: None
        self.engine = node._store.engine
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(self.engine, "compact", self.compact)
        monkeypatch.setattr(checkpointing, "perf_counter", lambda: self.now)
        monkeypatch.setattr(checkpointing, "sleep", self.sleep)

    def compact(self, seconds: float) -> bool:
        assert seconds == SLICE
        assert self.node._upkeep.exclusive.locked()
        assert not self.node._monitor.lock.locked()
        if not self.left:
            return False
        self.left -= 1
        self.turns += 1
        self.now += self.seconds
        self.on_turn()
        return True

    def sleep(self, seconds: float) -> None:
        assert not self.node._upkeep.exclusive.locked()
        self.rests.append(seconds)
        self.now += seconds

    def press(self, pressure: float) -> None:
        """Let merging be so far behind."""
        self.monkeypatch.setattr(
            type(self.engine), "pressure", property(lambda engine: pressure), raising=True
        )


@pytest.fixture(name="node")
def _node() -> Node:
    """A node without threads that has just made a checkpoint."""
    node = open_node(CrashFileSystem(), checkpoint_entries=100)
    node.recover()
    checkpoint(node)
    return node


def test_what_is_to_be_merged_is_merged_in_turns(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    merges.left, merges.seconds = 5, SLICE
    node.housekeep()
    assert merges.turns == 5
    assert merges.rests == [SLICE] * 5  # as long as it has worked
    assert not node._checkpoint_wanted.is_set()
    node.stop()


def test_who_has_others_do_the_work_is_asked_now_and_then(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    merges.left = 3
    node.housekeep()
    assert merges.rests == [LOOK] * 3
    node.housekeep()
    assert merges.rests == [LOOK] * 3  # and not at all when nothing is to be done
    node.stop()


def test_other_duties_get_their_turn(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = Merges(monkeypatch, node)
    merges.left, merges.seconds = 1000, SLICE
    node.housekeep()
    assert 20 < merges.turns < 30
    assert node._checkpoint_wanted.is_set()  # to go on at once
    node.stop()


def test_a_checkpoint_that_is_due_waits_for_no_merge(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    merges.left, merges.seconds = 1000, SLICE

    def turn() -> None:
        if merges.turns == 3:
            write(node, *[(b"%d" % number, b"v") for number in range(200)])

    merges.on_turn = turn
    node.housekeep()
    assert merges.turns == 3
    before = node._store.checkpointed_index
    merges.on_turn = lambda: None
    node.housekeep()
    assert node._store.checkpointed_index > before
    node.stop()


def test_a_stop_waits_for_no_merge(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = Merges(monkeypatch, node)
    merges.left, merges.seconds = 1000, SLICE
    merges.on_turn = node._stopped.set
    node.housekeep()
    assert merges.turns == 1
    node.stop()
    assert merges.turns == 1


def test_merging_goes_on_beside_a_long_checkpoint(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    monkeypatch.setattr(merges, "sleep", lambda seconds: None)
    monkeypatch.setattr(checkpointing, "sleep", lambda seconds: None)
    merges.left = 1000
    write(node, *[(b"%d" % number, bytes(300)) for number in range(90)])
    node._upkeep.checkpoint(1e-9)
    assert merges.turns == 1  # there was no time for another one
    merges.now += LOOK
    write(node, *[(b"%d" % number, bytes(300)) for number in range(90)])
    node._upkeep.checkpoint(1e-9)
    assert merges.turns == 2
    node.stop()


def test_damage_that_a_merge_finds_ends_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    merges.left = 1

    def turn() -> None:
        raise CorruptionError("lsm/conure.db-0-1.sst", 17, "its checksum doesn't match")

    merges.on_turn = turn
    node.housekeep()
    assert isinstance(node._standing.failure, CorruptionError)
    node.stop()


# -- pressure --------------------------------------------------------------------------------------


def fill(node: Node, entries: int, size: int = 10) -> None:
    write(node, *[(b"%d" % number, bytes(size)) for number in range(entries)])


def test_a_checkpoint_waits_for_what_is_far_behind(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch, node)
    before = node._store.checkpointed_index
    fill(node, 120)
    assert node._upkeep.is_due()
    merges.press(0.9)
    assert node._upkeep.is_due()
    merges.press(1.0)
    assert not node._upkeep.is_due()
    merges.left = 1
    node.housekeep()
    assert (merges.turns, node._store.checkpointed_index) == (1, before)
    fill(node, 120)  # a restart would have too much to apply
    assert node._upkeep.is_due()
    node.housekeep()
    assert node._store.checkpointed_index > before
    node.stop()


def test_it_waits_as_long_as_memory_and_log_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: Any
    monkeypatch.setattr(node_module, "sleep", lambda seconds: None)
    memory = {"max_unwritten_bytes": 20_000, "memtable_bytes": 10_000}
    for changes in (memory, {"checkpoint_log_bytes": 40_000}):
        node = open_node(CrashFileSystem(), **changes)
        node.recover()
        checkpoint(node)
        with monkeypatch.context() as patched:
            merges = Merges(patched, node)
            merges.press(1.0)
            waited = written = 0
            while not node._upkeep.is_due():
                waited += node._upkeep.is_urgent()
                assert write(node, (b"%d" % written, bytes(1000))) == [None]
                written += 1
            assert waited > 3
        node.stop()


def test_writers_rest_the_longer_the_more_is_behind(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(node_module, "sleep", rests.append)
    merges = Merges(monkeypatch, node)
    for pressure in (0.0, 0.25, 1.0):
        merges.press(pressure)
        assert write(node, (b"k", b"v")) == [None]
    assert rests == [PRESSURE_BRAKE / 4, PRESSURE_BRAKE]
    assert max(rests) <= 0.005  # or others would take it for dead
    assert node._observed.stalls.value == 2
    assert node._observed.stall_seconds.value == sum(rests)
    node.stop()


def test_writers_rest_the_longer_the_more_memory_changes_take(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(node_module, "sleep", rests.append)
    for share in (1.0, 1.5, 2.0, 100.0):
        monkeypatch.setattr(node._upkeep, "memory_share", lambda share=share: share)
        assert (write(node, (b"k", b"v")) == [None]) == (share <= MOST_SHARE)
    longest = BRAKE_SHARE * node._options.election_timeout
    assert rests == [BRAKE * 2.25, BRAKE * 4, longest]
    assert longest <= node._options.election_timeout / 4  # or others would take it for dead
    assert node._observed.stalls.value == 3
    node.stop()


def test_a_follower_rests_for_entries_and_nobody_does_for_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab: Lab = cluster("n2", "n3")
    rests: list[float] = []
    monkeypatch.setattr(node_module, "sleep", rests.append)
    merges = Merges(monkeypatch, lab["n2"])
    merges.press(1.0)  # of all that have this engine
    lab.tick(5)
    assert rests == []
    put(lab, b"k", b"v")
    assert rests == [PRESSURE_BRAKE] * 3


def test_how_much_memory_changes_may_take() -> None:
    facts = options(memtable_bytes=1000, max_unwritten_bytes=7000)
    for engine, bounds in (("btree", (3500, 7000)), ("lsm", (1000, MEMTABLES * 1000))):
        node = open_node(CrashFileSystem(), engine=engine)
        assert memory_bounds(node._directory, facts) == bounds
        node.stop()
    assert MEMTABLES > 2  # one is filled while another one is written


class Starved(CrashFileSystem):
    """A disk on which nothing can be opened at some times."""

    is_starved = False

    def open(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> CrashFile:
        if self.is_starved:
            raise Exhausted(f"opening {path} failed: too many open files")
        return super().open(path, create=create, read_only=read_only, exclusive=exclusive)


def test_a_node_without_descriptors_waits_and_refuses_only_what_it_can_not_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fs = Starved()
    node = open_node(fs, engine="lsm", told_engine=True, checkpoint_entries=10)
    node.recover()
    fs.is_starved = True
    for number in range(30):
        assert write(node, (b"k%d" % number, b"v")) == [None]
        checkpoint(node)
        node.housekeep()
    assert node._store.checkpointed_index == 0
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("a checkpoint has to wait" in each for each in told) == 1
    monkeypatch.setattr(node._upkeep, "memory_share", lambda: MOST_SHARE + 0.1)
    (refused,) = write(node, (b"k", b"v"))
    assert isinstance(refused, Exhausted)
    monkeypatch.undo()
    fs.is_starved = False
    checkpoint(node)
    assert node._store.checkpointed_index > 30
    assert write(node, (b"k", b"v")) == [None]
    node.stop()


@pytest.mark.parametrize("engine", ["btree", "lsm"])
def test_changes_never_take_more_memory_than_they_may_and_a_write(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Whatever keeps a checkpoint from being made."""
    monkeypatch.setattr(node_module, "BRAKE", 0.0)
    node = open_node(
        CrashFileSystem(),
        engine=engine,
        told_engine=True,
        memtable_bytes=20_000,
        max_unwritten_bytes=80_000,
    )
    node.recover()
    checkpoint(node)
    hard = MOST_SHARE * MEMTABLES * 20_000
    most, number = 0, 0
    while (answer := write(node, (b"k%03d" % number, bytes(3000)))) == [None]:
        number += 1
        most = max(most, node._store.unwritten_bytes)
        assert most <= hard + 20_000
    assert most > hard
    assert isinstance(answer[0], Unavailable)
    assert "take as much memory as they may" in str(answer[0])
    assert node._store.records == number
    checkpoint(node)
    assert write(node, (b"k", b"v")) == [None]
    node.stop()


def test_a_follower_takes_no_entries_that_it_has_no_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is sent them again."""
    lab = cluster("n2", "n3")
    crowded = lab["n3"]
    with monkeypatch.context() as patch:
        patch.setattr(crowded._upkeep, "memory_share", lambda: MOST_SHARE + 0.1)
        before = crowded._log.last_index
        for number in range(5):
            put(lab, b"%d" % number, b"v")
        assert crowded._log.last_index == before
        assert lab["n1"]._store.applied_index == before + 5
    lab.tick_until(lambda: value_of(crowded, b"4") == b"v")
    assert crowded._log.last_index == lab["n1"]._log.last_index
