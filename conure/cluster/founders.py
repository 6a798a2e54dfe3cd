"""What the facts of all founders give: one formation, or what stands in its way.

Each node has a list of the others' addresses, and has been shown by whoever answers there what that
one is and what its list has. :func:`agree` holds all of it against each other:

- every member counts the same members: the addresses of its list and the one at which it is found
  itself. So a node that doesn't know its own address (a wildcard ``raft_addr``) is at the one that
  the others list beside those of its own list, and they have to agree on it;
- every ID stands for one node, the one that is listed if the list names IDs;
- all were told one quorum size.

Addresses are compared and kept as they are listed; what a name resolves to is nobody's business.
A pure function: any thread. What never happens here: belief in what a stranger says of a third
node; each member speaks for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from conure.consensus.formation import hindrance
from conure.consensus.members import Configuration, Server
from conure.peers.forming import Facts, Shown

__all__ = ["Agreement", "agree", "base_url_at"]


class Agreement(NamedTuple):
    """What came of it.

    *formation* is there once all members are known and nothing differs. *address* is where this
    node is found, "" while nobody has said so. *differs* says what stands in the way, or "".
    """

    formation: Configuration | None
    address: str
    differs: str


def base_url_at(address: str, port: int, *, https: bool = False) -> str:
    """Return the base URL of a port at the host of a Raft address; "" without a port."""
    scheme = "https" if https else "http"
    return f"{scheme}://{address.rpartition(':')[0]}:{port}" if port else ""


def agree(
    own: Facts,
    listed: Mapping[str, str],
    shown: Mapping[str, Shown],
    itself: Sequence[str] = (),
) -> Agreement:
    """Hold this node and those that answer at the addresses of its list against each other.

    *listed* has an address of each other node, with the ID that is listed for it, or ""; *shown*
    has what those have shown that have answered. *itself* are the addresses of the list that have
    led to this node: the one at which it is, or a name that leads astray.
    """
    addresses = _own_addresses(own, listed, shown, itself)
    address = own.raft_address or (next(iter(addresses)) if len(addresses) == 1 else "")
    differs = next(_differences(own, listed, shown, addresses), "")
    if differs or not address or shown.keys() != listed.keys():
        return Agreement(None, address, differs)
    http_address = own.http_address or base_url_at(address, own.http_port, https=own.https)
    servers = [_founder(own, address, http_address)]
    for at, peer in shown.items():
        url = peer.http_address or base_url_at(at, peer.http_port, https=peer.https)
        servers.append(_founder(peer, at, url))
    formation = Configuration(tuple(servers), own.quorum_size)
    differs = hindrance(formation)
    return Agreement(None if differs else formation, address, differs)


def _founder(facts: Facts, raft_address: str, http_address: str) -> Server:
    return Server(
        facts.node_id,
        raft_address,
        http_address,
        role=facts.role,
        incarnation=facts.incarnation,
    )


def _own_addresses(
    own: Facts, listed: Mapping[str, str], shown: Mapping[str, Shown], itself: Sequence[str]
) -> dict[str, str]:
    """Return the addresses at which this node is, by itself and the lists, each with one who says
    so."""
    found = dict.fromkeys([*([own.raft_address] if own.raft_address else []), *itself], own.node_id)
    for at, peer in shown.items():
        rest = {*peer.peers, at} - listed.keys() if peer.peers else set()
        if len(rest) > 1:
            rest -= {*itself}  # that have led astray: who is listed there is another node
        if len(rest) == 1:
            found.setdefault(rest.pop(), peer.node_id)
    return found


def _differences(
    own: Facts,
    listed: Mapping[str, str],
    shown: Mapping[str, Shown],
    addresses: Mapping[str, str],
) -> Iterator[str]:
    """Yield what stands in the way, the plainest first."""
    places = {own.node_id: "here"}
    for at, peer in shown.items():
        if peer.node_id in places:
            yield f"two nodes have the ID {peer.node_id}: {places[peer.node_id]} and at {at}"
        places[peer.node_id] = f"at {at}"
        if listed[at] not in ("", peer.node_id):
            yield f"{peer.node_id} answers at {at}, where {listed[at]} is listed"
    for at, peer in shown.items():
        if peer.cluster_id:
            yield (
                f"{peer.node_id} at {at} belongs to cluster {peer.cluster_id} already, which was "
                "not formed with this node and its data directory"
                + ("" if addresses else "; nobody lists this node: name --raft-advertise to join")
            )
        elif not peer.peers:
            yield f"{peer.node_id} at {at} has no list: start it with --peers"
    if len(addresses) > 1:
        said = [f"{name} has it at {at}" for at, name in addresses.items()]
        yield f"this node is listed at different addresses: {', '.join(said)}"
    for at, peer in shown.items():
        if peer.raft_address not in ("", at):
            yield (
                f"{peer.node_id} is listed at {at} here, and says itself that it is reached at "
                f"{peer.raft_address}"
            )
        if peer.quorum_size != own.quorum_size:
            yield (
                f"the quorum size is {own.quorum_size or 'not set'} here and "
                f"{peer.quorum_size or 'not set'} at {peer.node_id}"
            )
        may_be_listed = not addresses and shown.keys() != listed.keys()  # it may be one of those
        yield from _list_differences(own, at, peer, listed, may_be_listed=may_be_listed)


def _list_differences(
    own: Facts, at: str, peer: Shown, listed: Mapping[str, str], *, may_be_listed: bool
) -> Iterator[str]:
    """Yield how the list of another node differs from this node's, which has its own address too
    if *may_be_listed*."""
    theirs = {*peer.peers, at}
    unknown = [each for each in listed if each not in theirs]
    if unknown:
        yield f"{peer.node_id} at {at} doesn't list {', '.join(unknown)}, which this node does"
    rest = sorted(theirs - listed.keys())
    if not rest and not may_be_listed:
        yield f"{peer.node_id} at {at} doesn't list this node"
    elif len(rest) > 1:
        others = [each for each in rest if each != own.raft_address]
        yield f"{peer.node_id} at {at} lists {', '.join(others)}, which this node doesn't"
