"""Configurations as bytes, and what founds a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.consensus.members import Configuration, Server
from conure.consensus.messages import CONFIG, HardState
from conure.errors import CorruptionError, VersionTooNew
from raft import bootstrap
from tests.lab.raft_cluster import configuration_of, server

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
configurations = st.lists(servers, max_size=8, unique_by=lambda one: one.id).map(
    lambda members: Configuration(tuple(members))
)

GOLDEN = bytes.fromhex(
    "01 0300"  # version, three servers
    "00 00 0100 0300 0400 0200  61 613a31 682f2f61 6930"  # a, voter, data, "a:1", "h//a", "i0"
    "01 01 0100 0000 0000 0000  62"  # b, learner, arbiter, no addresses, no incarnation
    "02 00 0100 0000 0000 0000  63"  # c, to become a voter, data
)


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
    assert Configuration(configuration.servers[::-1]).encode() == configuration.encode()


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x01\x01\x00" + data))
@settings(deadline=None, max_examples=300)
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    try:
        configuration = Configuration.decode(data)
    except CorruptionError:
        return
    except VersionTooNew:
        assert data[0] > 1
        return
    assert configuration.encode() == data


@pytest.mark.parametrize("position", range(len(GOLDEN)))
def test_bytes_that_are_cut_short_are_corrupt(position: int) -> None:
    if position:
        with pytest.raises(CorruptionError):
            Configuration.decode(GOLDEN[:position])


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


def test_founding_members_write_the_same() -> None:
    configuration = configuration_of("a", "b")
    state, entry = bootstrap(configuration)
    assert state == HardState(1, "")
    assert (entry.term, entry.index, entry.kind) == (1, 1, CONFIG)
    assert Configuration.decode(entry.data) == configuration
    with pytest.raises(AssertionError):
        bootstrap(configuration_of(arbiters="x"))
