"""Configurations as bytes, and what founds a cluster."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.consensus.members import Configuration, Server
from conure.consensus.messages import CONFIG, HardState, MessageType, State
from conure.errors import CorruptionError, VersionTooNew
from conure.values import MAX_QUORUM_SIZE
from raft import Raft, RaftOptions, bootstrap
from tests.lab.raft_checks import state_of, take
from tests.lab.raft_cluster import MemoryLog, configuration_of, server

texts = st.text(max_size=20)
servers = st.builds(
    Server,
    st.text(min_size=1, max_size=10),
    texts,
    texts,
    st.sampled_from(["voter", "nonvoter", "staging"]),
    st.sampled_from(["data", "arbiter"]),
    texts,
)
configurations = st.builds(
    lambda members, size: Configuration(tuple(members), size if members else 0),
    st.lists(servers, max_size=8, unique_by=lambda one: one.id),
    st.just(0) | st.integers(2, MAX_QUORUM_SIZE),
)

GOLDEN = bytes.fromhex(
    "01 0300"  # version, three servers
    "00 00 0100 0300 0400 0200  61 613a31 682f2f61 6930"  # a, voter, data, "a:1", "h//a", "i0"
    "01 01 0100 0000 0000 0000  62"  # b, learner, arbiter, no addresses, no incarnation
    "02 00 0100 0000 0000 0000  63"  # c, to become a voter, data
)

SIZED = bytes.fromhex(  # of version 2, with a quorum size of 3: as drawn in members.py
    "02 0100 0300 00 00 0100 0300 0000 0000 61 613a31"
)


def test_golden_bytes_of_a_quorum_size() -> None:
    """Version 2 is written only with one, and never for what version 1 can say."""
    alone = Configuration((Server("a", "a:1"),), 3)
    assert alone.encode() == SIZED
    assert Configuration.decode(SIZED) == alone
    assert (alone.speaks, alone.sized(0).speaks) == (3, 1)
    assert alone.sized(0).encode() == b"\1" + SIZED[1:3] + SIZED[5:]
    for size in (0, 1, MAX_QUORUM_SIZE + 1):
        with pytest.raises(CorruptionError, match="a quorum size of"):
            Configuration.decode(SIZED[:3] + size.to_bytes(2, "little") + SIZED[5:])
    with pytest.raises(VersionTooNew):
        Configuration.decode(b"\3" + SIZED[1:])


def test_golden_bytes() -> None:
    configuration = Configuration(
        (
            Server("c", "", "", "staging"),
            Server("b", "", "", "nonvoter", "arbiter"),
            Server("a", "a:1", "h//a", incarnation="i0"),
        )
    )
    assert configuration.encode() == GOLDEN
    assert Configuration.decode(GOLDEN) == configuration
    assert Configuration().encode() == b""
    assert Configuration.decode(b"") == Configuration()


@given(configurations)
@settings(deadline=None, max_examples=100)
def test_round_trip(configuration: Configuration) -> None:
    assert Configuration.decode(configuration.encode()) == configuration


@given(configurations)
@settings(deadline=None, max_examples=50)
def test_the_order_of_servers_makes_no_difference(configuration: Configuration) -> None:
    assert replace(configuration, servers=configuration.servers[::-1]) == configuration


@given(
    st.binary(max_size=60)
    | st.binary(max_size=60).map(lambda data: b"\x01\x01\x00" + data)
    | st.binary(max_size=60).map(lambda data: b"\x02\x01\x00\x02\x00" + data)
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    try:
        configuration = Configuration.decode(data)
    except CorruptionError:
        return
    except VersionTooNew:
        assert data[0] > 2
        return
    assert configuration.encode() == data


@pytest.mark.parametrize("position", range(len(GOLDEN)))
def test_bytes_that_are_cut_short_are_corrupt(position: int) -> None:
    if position:
        with pytest.raises(CorruptionError):
            Configuration.decode(GOLDEN[:position])
        with pytest.raises(CorruptionError):
            Configuration.decode(SIZED[: min(position, len(SIZED) - 1)])


def test_changes_make_new_configurations() -> None:
    configuration = configuration_of("a", "b", "c", "d", arbiters="x")
    assert configuration.quorum == 3
    assert configuration.may_lead("a")
    assert not configuration.may_lead("x")
    assert not configuration.may_lead("nobody")
    learner = configuration.with_server(server("a", "nonvoter"))
    assert learner.voters == ("b", "c", "d", "x")
    assert not learner.may_lead("a")
    staging = configuration.with_server(server("a", "staging"))
    assert staging.voters == learner.voters
    assert not staging.may_lead("a")
    assert configuration.without("a").get("a") is None
    assert [configuration_of(*"abc"[:n]).quorum for n in (1, 2, 3)] == [1, 2, 2]


def test_a_removal_lowers_the_size_to_the_data_voters_that_are_left() -> None:
    members = configuration_of("a", "b", "c", arbiters="x", size=3)
    assert (members.data_voters, members.copies) == (("a", "b", "c"), 3)
    assert members.without("x").quorum_size == 3
    assert members.without("a").quorum_size == 2
    assert members.without("a").without("b").quorum_size == 0
    forming = configuration_of("a", "b", size=5).with_server(server("d", "nonvoter"))
    assert (forming.quorum_size, forming.copies) == (5, 2)
    assert forming.without("d").quorum_size == 5


def test_founding_members_write_the_same() -> None:
    configuration = configuration_of("a", "b")
    state, entry = bootstrap(configuration)
    assert state == HardState(1, "")
    assert (entry.term, entry.index, entry.kind) == (1, 1, CONFIG)
    assert Configuration.decode(entry.data) == configuration
    with pytest.raises(AssertionError):
        bootstrap(configuration_of(arbiters="x"))


def test_a_core_that_is_told_its_founders_begins_as_one_that_had_found_them() -> None:
    """What it makes durable is what bootstrap says, and it waits for an election like all."""
    configuration = configuration_of("a", "b", "c")
    storage = MemoryLog()
    raft = Raft(RaftOptions("a"), storage, HardState(), 0, Configuration(), random.Random(1))
    take(raft)
    raft.tick()
    raft.found(configuration)
    ready = take(raft)
    hard_state, entry = bootstrap(configuration)
    assert (ready.hard_state, ready.entries) == (hard_state, [entry])
    assert ready.configuration == raft.configuration == configuration
    assert not ready.messages
    assert not ready.committed
    assert state_of(raft) is State.FOLLOWER
    storage.append(ready.entries)
    storage.sync()
    raft.persisted(ready)
    for _ in range(2 * raft.options.election_ticks):
        raft.tick()
    asked = take(raft).messages
    assert {(m.to, m.type, m.term) for m in asked} == {
        ("b", MessageType.PRE_VOTE, 2),
        ("c", MessageType.PRE_VOTE, 2),
    }
    with pytest.raises(AssertionError):
        raft.found(configuration)  # once
