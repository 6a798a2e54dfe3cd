"""The founding members of a cluster that is formed by a list, and all that follows from them.

A *formation* is a configuration of two founders or more, all of them voters with their
incarnations. Everything else is a pure function of it, so that nodes which agree on the members
begin the same cluster without another word (F1 to F4, conure/cluster/forming.py):

- the canonical bytes are those of :meth:`Configuration.encode`: a version, the quorum size, and the
  members sorted by ID with role, addresses and incarnation;
- the *digest* is SHA-256 over ``conure formation 1``, a line feed and these bytes, in hexadecimal;
- the cluster ID is the first 32 digits of the digest;
- the first entry of the log is what ``raft.bootstrap`` makes of it.

Voters "a" at "a:1" and "b" at "b:1", of incarnations "x" and "y", without base URLs::

    01 02 00  00 00 01 00 03 00 00 00 01 00  61 61 3a 31 78
              00 00 01 00 03 00 00 00 01 00  62 62 3a 31 79
    digest      b627d3dfb82a9971a691eb3f6b535ca5
                762870f60bf6188818c191fc9d6960a8
    cluster ID  b627d3dfb82a9971a691eb3f6b535ca5

Any node calls this, and nothing here has state. What never happens in here: a decision of whether
to form (forming.py).
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from conure.consensus.members import Configuration
from conure.errors import CorruptionError
from conure.values import MAX_FOUNDERS, is_address, is_base_url

__all__ = ["cluster_id_of", "decode_formation", "digest_of", "hindrance"]

_TAG: Final = b"conure formation 1\n"
_CLUSTER_ID_DIGITS: Final = 32


def digest_of(formation: Configuration) -> str:
    """Return what stands for a formation, and for no other one: 64 hexadecimal digits."""
    return sha256(_TAG + formation.encode()).hexdigest()


def cluster_id_of(formation: Configuration) -> str:
    """Return the ID of the cluster that these founders begin: 32 hexadecimal digits."""
    return digest_of(formation)[:_CLUSTER_ID_DIGITS]


def hindrance(members: Configuration) -> str:
    """Say why these members can't begin a cluster whoever wants to, or ""."""
    count, data = len(members.servers), len(members.data_voters)
    if not 2 <= count <= MAX_FOUNDERS:
        return f"a cluster is formed by 2 to {MAX_FOUNDERS} nodes, not by {count}"
    if not data:
        return "every node is an arbiter, and an arbiter never leads: list a data node"
    if members.quorum_size > data:
        return (
            f"a quorum size of {members.quorum_size} is beyond the {data} data nodes: "
            "lower --quorum-size, or list more of them"
        )
    return ""


def decode_formation(data: bytes) -> Configuration:
    """Read the canonical bytes of a formation. Raises CorruptionError for anything else, and
    VersionTooNew."""
    found = Configuration.decode(data)
    fault = hindrance(found)
    for server in found.servers:
        if server.suffrage != "voter" or not server.incarnation:
            fault = f"{server.id!r} is no founder"
        if not is_address(server.raft_address):
            fault = f"{server.id!r} has no address"
        if server.http_address and not is_base_url(server.http_address):
            fault = f"{server.id!r} has no proper base URL"
    if fault:
        raise CorruptionError("a formation", 0, fault)
    return found
