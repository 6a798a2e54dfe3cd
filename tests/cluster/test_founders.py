"""What the facts of all founders give: one formation for all of them, or what differs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from conure.cluster.founders import Agreement, agree, base_url_at
from conure.consensus.members import Configuration
from conure.peers.forming import Facts, Shown

ALL = ("n1:7001", "n2:7001", "n3:7001")


def own(number: int = 1, **changes: object) -> Facts:
    name = f"n{number}"
    facts = Facts(name, f"i{number}", "data", 0, f"{name}:7001", f"http://{name}:8081", 8081)
    return replace(facts, **changes)  # type: ignore[arg-type]


def shown(number: int, **changes: object) -> Shown:
    name = f"n{number}"
    others = tuple(address for address in ALL if address != f"{name}:7001")
    facts = Shown(
        name, f"i{number}", "data", 0, f"{name}:7001", f"http://{name}:8081", 8081, others
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


def listed(*addresses: str, **ids: str) -> dict[str, str]:
    return {address: ids.get(address.partition(":")[0], "") for address in addresses}


OTHERS = listed(*ALL[1:])
BOTH = {"n2:7001": shown(2), "n3:7001": shown(3)}


def told(**changes: object) -> str:
    """Return what differs where n2 shows something else."""
    return agree(own(), OTHERS, {**BOTH, "n2:7001": shown(2, **changes)}).differs


def test_all_of_them_come_to_the_same_formation() -> None:
    found = agree(own(), OTHERS, BOTH)
    assert found.formation is not None
    assert [server.id for server in found.formation.servers] == ["n1", "n2", "n3"]
    assert [server.incarnation for server in found.formation.servers] == ["i1", "i2", "i3"]
    assert found.formation.voters == ("n1", "n2", "n3")
    assert found.differs == ""
    others = {"n1:7001": shown(1), "n3:7001": shown(3)}
    assert agree(own(2), listed(ALL[0], ALL[2]), others).formation == found.formation


def test_each_has_a_base_url_of_the_scheme_that_it_serves() -> None:
    second = shown(2, http_address="", https=True)
    found = agree(replace(own(), http_address="", https=True), OTHERS, {**BOTH, "n2:7001": second})
    assert found.formation is not None
    urls = [server.http_address for server in found.formation.servers]
    assert urls == ["https://n1:8081", "https://n2:8081", "http://n3:8081"]


def test_nothing_is_formed_as_long_as_one_is_unknown() -> None:
    assert agree(own(), OTHERS, {"n2:7001": shown(2)}) == Agreement(None, "n1:7001", "")


def test_a_node_is_where_the_others_list_it() -> None:
    wild = own(raft_address="", http_address="")
    assert agree(wild, OTHERS, {}) == Agreement(None, "", "")
    assert agree(wild, OTHERS, {"n3:7001": shown(3)}).address == "n1:7001"
    found = agree(wild, OTHERS, BOTH)
    assert found.formation == agree(own(), OTHERS, BOTH).formation
    wild_too = shown(2, raft_address="", http_address="")
    assert agree(wild, OTHERS, {**BOTH, "n2:7001": wild_too}).formation == found.formation


def test_where_a_node_finds_itself_has_to_be_where_it_is() -> None:
    for node in (own(), own(raft_address="")):
        assert (
            agree(node, OTHERS, BOTH, ["n1:7001"]).formation == agree(own(), OTHERS, BOTH).formation
        )
        astray = agree(node, listed("n3:7001"), {"n3:7001": shown(3)}, ["n2:7001"])
        assert astray.formation is None
        assert "n1 has it at n2:7001" in astray.differs
        two = agree(node, listed("n3:7001"), {"n3:7001": shown(3)}, ["n1:7001", "n2:7001"])
        assert "different addresses" in two.differs
    wild = own(raft_address="")
    assert agree(wild, {}, {}, ["n1:7001"]).address == "n1:7001"


def test_a_list_that_may_have_the_own_address_differs_from_none_yet() -> None:
    wild, everyone = own(raft_address=""), listed(*ALL)
    assert agree(wild, everyone, {"n2:7001": shown(2)}) == Agreement(None, "", "")
    all_three = {**BOTH, "n1:7001": shown(9, node_id="n9", peers=ALL)}
    assert "doesn't list this node" in agree(wild, everyone, all_three).differs


def test_who_is_not_listed_by_a_cluster_is_told_what_it_lacks() -> None:
    formed = {at: replace(peer, cluster_id="c9", peers=("n2:7001",)) for at, peer in BOTH.items()}
    wild = agree(own(raft_address=""), OTHERS, formed)
    assert wild.differs.endswith("nobody lists this node: name --raft-advertise to join")
    assert "--raft-advertise" not in agree(own(), OTHERS, formed).differs


def test_the_others_have_to_agree_on_where_a_node_is() -> None:
    elsewhere = shown(2, peers=("10.0.0.1:7001", "n3:7001"))
    for node in (own(), own(raft_address="")):
        found = agree(node, OTHERS, {**BOTH, "n2:7001": elsewhere})
        assert found.formation is None
        assert "different addresses" in found.differs
        assert "10.0.0.1:7001" in found.differs


def test_base_urls_are_made_of_the_host_of_the_address() -> None:
    assert base_url_at("[::1]:7001", 8081) == "http://[::1]:8081"
    assert base_url_at("[::1]:7001", 8081, https=True) == "https://[::1]:8081"
    assert base_url_at("db1:7001", 0) == ""


def test_whatever_differs_is_named() -> None:
    assert told(node_id="n1") == "two nodes have the ID n1: here and at n2:7001"
    assert told(node_id="n3") == "two nodes have the ID n3: at n2:7001 and at n3:7001"
    assert told(quorum_size=2) == "the quorum size is not set here and 2 at n2"
    assert told(cluster_id="c9").startswith("n2 at n2:7001 belongs to cluster c9 already")
    assert told(peers=()) == "n2 at n2:7001 has no list: start it with --peers"
    assert told(peers=("n1:7001",)) == "n2 at n2:7001 doesn't list n3:7001, which this node does"
    assert told(peers=("n3:7001",)) == "n2 at n2:7001 doesn't list this node"
    more = ("n1:7001", "n3:7001", "n4:7001")
    assert told(peers=more) == "n2 at n2:7001 lists n4:7001, which this node doesn't"
    assert told(raft_address="n9:7001").startswith("n2 is listed at n2:7001 here, and says itself")
    named = listed(*ALL[1:], n2="other")
    assert agree(own(), named, BOTH).differs == "n2 answers at n2:7001, where other is listed"
    assert agree(own(), listed(*ALL[1:], n2="n2"), BOTH).formation is not None


def test_members_that_can_elect_nobody_are_refused() -> None:
    arbiter = own(role="arbiter")
    others = {at: replace(peer, role="arbiter") for at, peer in BOTH.items()}
    found = agree(arbiter, OTHERS, others)
    assert found.formation is None
    assert "every node is an arbiter" in found.differs
    sized = {at: replace(peer, quorum_size=4) for at, peer in BOTH.items()}
    assert "beyond the 3 data nodes" in agree(own(quorum_size=4), OTHERS, sized).differs


facts = st.fixed_dictionaries(
    {},
    optional={
        "node_id": st.sampled_from(["n1", "n2", "n3"]),
        "incarnation": st.sampled_from(["i1", "i2", "i9"]),
        "quorum_size": st.sampled_from([0, 2]),
        "raft_address": st.sampled_from(["", "n2:7001", "n9:7001"]),
        "role": st.sampled_from(["data", "arbiter"]),
        "cluster_id": st.sampled_from(["", "c9"]),
        "peers": st.lists(st.sampled_from([*ALL, "n9:7001"]), max_size=4, unique=True).map(tuple),
    },
)


@given(facts, facts)
def test_a_formation_has_what_each_member_says_of_itself(
    of_second: dict[str, object], of_third: dict[str, object]
) -> None:
    peers = {"n2:7001": shown(2, **of_second), "n3:7001": shown(3, **of_third)}
    found = agree(own(), OTHERS, peers)
    assert (found.formation is None) == bool(found.differs)
    if found.formation is None:
        return
    assert isinstance(found.formation, Configuration)
    for at, peer in peers.items():
        server = found.formation.get(peer.node_id)
        assert server is not None
        assert (server.raft_address, server.incarnation) == (at, peer.incarnation)
        assert {*peer.peers, at} == {*ALL}
        assert peer.quorum_size == 0
        assert not peer.cluster_id
