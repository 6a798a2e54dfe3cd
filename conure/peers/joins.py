"""What a node says that asks a member, over the Raft port, to be added to its cluster.

The Raft port is what all nodes reach of each other, where the members' HTTP API may be open to its
own machine only, or ask for what a node doesn't have. The handshake of such a connection is JSON in
frames (records.py draws these), one for the question and two for the answer::

    asker     {"protocol": 1, "kind": "join", "join": 1,
               "node_id": …, "incarnation": …, "role": "data" | "arbiter",
               "raft_address": …, "http_address": its base URL, or ""}
    member    {"protocol": 1, "join": 1, "node_id": its own}                  at once, or
              {"protocol": 1, "refused": why}
    member    {"added": true}                                                 when it is known, or
              {"added": false, "why": text}

``join`` is the version of these. What the asker says is what ``POST /join`` takes, and means the
same: the leader asks who is at that address before it proposes anything (membership.py). A member
that doesn't lead passes it on to its leader; so whoever asks needs to reach only one of them. Who
is added is sent all records, so who asks has proved itself (PeerSecurity.lets_apply); whoever
hasn't is told one line that names nothing, and no more is done about it. A
release that knows no such connection ends it without a word.

What strangers say is checked here before anybody acts on it. Functions of fields only: any thread
may call anything, and nothing here touches a socket or decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from conure.consensus.records import MAX_NODE_ID_BYTES
from conure.errors import ConureError, Refused, WireError
from conure.peers.protocol import PROTOCOL, raise_if_refused
from conure.values import is_address, is_base_url

__all__ = [
    "JOIN",
    "JOIN_TIME",
    "MAX_JOINS",
    "NO_PROOF",
    "Applicant",
    "check_added",
    "check_applicant",
    "check_taken",
    "encode_added",
    "encode_applicant",
    "encode_taken",
]

JOIN: Final = "join"
"""The kind of a connection that asks."""

JOIN_TIME: Final = 20.0
"""Seconds until whoever asks has an answer: a majority has to agree, and the next seed may be a
better one."""

MAX_JOINS: Final = 4
"""Nodes at a time that a member takes the wish of: each has a thread until it is decided."""

NO_PROOF: Final = (
    "whoever asks to be added here has to prove that it may: by the secret of the cluster or a "
    "certificate"
)
"""All that somebody is told who has proved nothing where that is asked for (P4)."""

_VERSION: Final = 1
_MAX_TEXT: Final = 512
_MAX_WHY: Final = 2048
_ROLES = ("data", "arbiter")


@dataclass(frozen=True, slots=True)
class Applicant:
    """A node that asks to be added; the fields are drawn above."""

    node_id: str
    incarnation: str
    role: str
    raft_address: str
    http_address: str


def encode_applicant(applicant: Applicant) -> dict[str, Any]:
    """Return what an asker says."""
    return {"protocol": PROTOCOL, "kind": JOIN, "join": _VERSION, **asdict(applicant)}


def check_applicant(fields: Mapping[str, Any]) -> Applicant:
    """Read what an asker says. Raises WireError, and Refused for another version."""
    _check_version(fields)
    role, raft_address = fields.get("role"), _text(fields, "raft_address")
    http_address = _text(fields, "http_address")
    if role not in _ROLES:
        raise WireError("a node that asks to be added, without a proper role")
    if not is_address(raft_address):
        raise WireError("a node that asks to be added, without a proper raft_address")
    if http_address and not is_base_url(http_address):
        raise WireError("a node that asks to be added, without a proper http_address")
    incarnation = _name(fields, "incarnation")
    return Applicant(_name(fields, "node_id"), incarnation, role, raft_address, http_address)


def encode_taken(node_id: str) -> dict[str, Any]:
    """Return what a member says at once that is going to answer."""
    return {"protocol": PROTOCOL, "join": _VERSION, "node_id": node_id}


def check_taken(fields: Mapping[str, Any]) -> str:
    """Return the ID of a member that is going to answer. Raises WireError, and Refused if it
    refuses, or for another version."""
    raise_if_refused(fields)
    _check_version(fields)
    return _name(fields, "node_id")


def encode_added(error: ConureError | None) -> dict[str, Any]:
    """Return what a member says in the end: None if the node was added, or why not."""
    return {"added": True} if error is None else {"added": False, "why": str(error)[:_MAX_WHY]}


def check_added(fields: Mapping[str, Any]) -> None:
    """Raise Refused, in the member's words, unless the node was added; and WireError."""
    added, why = fields.get("added"), fields.get("why", "")
    if not isinstance(added, bool) or not isinstance(why, str):
        raise WireError("an answer to a node that asks to be added, which says neither yes nor no")
    if not added:
        raise Refused("".join([char if char.isprintable() else "?" for char in why[:_MAX_WHY]]))


# -- private -------------------------------------------------------------------------------------


def _check_version(fields: Mapping[str, Any]) -> None:
    if fields.get("protocol") != PROTOCOL or fields.get("join") != _VERSION:
        raise Refused(
            "the nodes speak different versions of how a node asks to be added; "
            f"{_VERSION} was expected here: name a base URL of the member as the seed"
        )


def _text(fields: Mapping[str, Any], name: str) -> str:
    text = fields.get(name)
    # Printable, because it gets into the log; that excludes what UTF-8 can't encode, too.
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
        raise WireError(f"a node that asks to be added, without a proper {name}")
    return text


def _name(fields: Mapping[str, Any], name: str) -> str:
    text = _text(fields, name)
    if not 0 < len(text.encode()) <= MAX_NODE_ID_BYTES:
        raise WireError(f"a node that asks to be added, without a proper {name}")
    return text
