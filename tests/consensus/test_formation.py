"""The founders of a cluster as bytes, and what follows from them: a pure function (F3)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.consensus.formation import cluster_id_of, decode_formation, digest_of, hindrance
from conure.consensus.members import Configuration, Server
from conure.errors import CorruptionError, VersionTooNew
from conure.values import MAX_FOUNDERS
from raft import bootstrap

A = Server("a", "a:1", incarnation="x")
B = Server("b", "b:1", incarnation="y")

names = st.text("abc019._-", min_size=1, max_size=5)
servers = st.builds(
    Server,
    names,
    names.map(lambda name: f"{name}:7001"),
    names.map(lambda name: f"http://{name}:8081") | st.just(""),
    role=st.sampled_from(["data", "data", "arbiter"]),
    incarnation=names,
)
formations = st.builds(
    Configuration,
    st.lists(servers, min_size=2, max_size=5, unique_by=lambda server: server.id).map(tuple),
    st.sampled_from([0, 0, 2]),
).filter(lambda formation: not hindrance(formation))


def test_the_example_of_the_head() -> None:
    formation = Configuration((A, B))
    assert formation.encode() == bytes.fromhex(
        "010200 0000 0100 0300 0000 0100 61613a3178 0000 0100 0300 0000 0100 62623a3179"
    )
    digest = "b627d3dfb82a9971a691eb3f6b535ca5762870f60bf6188818c191fc9d6960a8"
    assert digest_of(formation) == digest
    assert cluster_id_of(formation) == digest[:32]


def test_a_quorum_size_and_an_arbiter_as_golden_bytes() -> None:
    arbiter = Server("c", "c:1", "http://c:2", role="arbiter", incarnation="z")
    formation = Configuration((A, B, arbiter), 2)
    digest = "b5b643c1462d168e9cb406ac7d20eff7"
    assert cluster_id_of(formation) == digest


@given(formations, st.randoms(use_true_random=False))
def test_the_order_of_the_founders_says_nothing(
    formation: Configuration, rng: random.Random
) -> None:
    mixed = list(formation.servers)
    rng.shuffle(mixed)
    other = Configuration(tuple(mixed), formation.quorum_size)
    assert digest_of(other) == digest_of(formation)
    assert bootstrap(other) == bootstrap(formation)
    assert decode_formation(formation.encode()) == formation


@given(formations, st.data())
def test_every_fact_of_a_founder_tells(formation: Configuration, data: st.DataObject) -> None:
    server = data.draw(st.sampled_from(formation.servers))
    others = [
        replace(server, id="another"),
        replace(server, raft_address="elsewhere:1"),
        replace(server, http_address="http://elsewhere:1"),
        replace(server, incarnation="another life"),
        replace(server, role={"data": "arbiter", "arbiter": "data"}[server.role]),
    ]
    rest = tuple(each for each in formation.servers if each is not server)
    found = {digest_of(Configuration((*rest, each), formation.quorum_size)) for each in others}
    found |= {digest_of(formation), digest_of(formation.sized(3))}
    assert len(found) == len(others) + 2


def test_who_can_begin_no_cluster() -> None:
    arbiters = Configuration((replace(A, role="arbiter"), replace(B, role="arbiter")))
    assert "arbiter" in hindrance(arbiters)
    assert "2 to 32" in hindrance(Configuration((A,)))
    many = [Server(f"n{n}", f"n{n}:1", incarnation="x") for n in range(MAX_FOUNDERS + 1)]
    assert "not by 33" in hindrance(Configuration(tuple(many)))
    assert not hindrance(Configuration(tuple(many[:-1])))
    assert "beyond the 1 data nodes" in hindrance(Configuration((A, replace(B, role="arbiter")), 2))
    assert not hindrance(Configuration((A, B), 2))


@pytest.mark.parametrize(
    "wrong",
    [
        Configuration((A,)),
        Configuration((A, replace(B, suffrage="nonvoter"))),
        Configuration((A, replace(B, incarnation=""))),
        Configuration((A, replace(B, raft_address=":1"))),
        Configuration((A, replace(B, http_address="ftp://b"))),
        Configuration((A, B), 3),
    ],
)
def test_what_is_no_formation_is_refused(wrong: Configuration) -> None:
    with pytest.raises(CorruptionError):
        decode_formation(wrong.encode())


@given(st.binary(max_size=80))
def test_any_bytes_are_a_formation_or_refused(data: bytes) -> None:
    try:
        found = decode_formation(data)
    except (CorruptionError, VersionTooNew):
        return
    assert found.encode() == data
