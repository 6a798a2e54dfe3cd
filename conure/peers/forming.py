"""What nodes ask each other that are to form a cluster by a list: one question, one answer.

A node that is *forming* (conure/cluster/forming.py) asks each address of its list who is there. The
handshake of such a connection is all of it: one frame each way (records.py draws frames), JSON::

    asker      {"protocol": 1, "kind": "forming", "forming": 1,
                "node_id": …, "incarnation": …, "digest": what the asker shows, or ""}
    answerer   {"protocol": 1, "forming": 1,
                "node_id": …, "incarnation": … or "" in a cluster, "role": …,
                "quorum_size": 0 or 2 to 1000,
                "raft_address": its own, or "": as the others list it,
                "http_address": its base URL, or "": by its Raft address' host and the next,
                "http_port": …,
                "https": whether that port speaks TLS; not there: it doesn't,
                "peers": [the addresses of its list, without its own],
                "digest": the formation that it shows (formation.py), or "",
                "cluster_id": its cluster, or "",
                "formation": base64 of the formation that began it, for one of its founders, or "",
                "leader_http": its leader's base URL, or ""}, or
               {"protocol": 1, "refused": why}

``forming`` is the version of these two. Any node answers, of a cluster or of none. What a question
says is believed in nothing: it has the answerer ask sooner, and is held against the formation,
whose incarnations are for those who have one of them already.

What strangers say is checked here before anybody acts on it: sizes before they are held
(sockets.py), then texts, numbers, addresses, and that base64 is a formation. Functions of fields
only: any thread may call anything, and nothing here touches a socket or decides anything.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conure.consensus.formation import decode_formation
from conure.consensus.members import Configuration
from conure.consensus.records import MAX_NODE_ID_BYTES
from conure.errors import CorruptionError, Refused, VersionTooNew, WireError
from conure.peers.protocol import PROTOCOL, decode_base64, raise_if_refused
from conure.values import MAX_FOUNDERS, MAX_QUORUM_SIZE, is_address, is_base_url

__all__ = [
    "FORMING",
    "MAX_SHOWN",
    "Facts",
    "Question",
    "Shown",
    "check_question",
    "check_shown",
    "encode_question",
    "encode_shown",
]

FORMING: Final = "forming"
"""The kind of a connection that asks."""

MAX_SHOWN: Final = 64 << 10
"""Bytes of an answer: the longest list, and a formation of as many in base64."""

_VERSION: Final = 1
_MAX_TEXT: Final = 512
_ROLES = ("data", "arbiter")
_is_digest = re.compile(r"[0-9a-f]{64}|").fullmatch


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks, and which digest that node shows ("": none)."""

    node_id: str
    incarnation: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node is that forms a cluster. *raft_address* is "" if it is where the others list it,
    *http_address* if it is a base URL of the same host and *http_port*, of scheme https if
    *https*."""

    node_id: str
    incarnation: str
    role: str
    quorum_size: int
    raft_address: str
    http_address: str
    http_port: int
    https: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Shown(Facts):
    """What a node shows of itself to those that form; the fields are drawn above."""

    peers: tuple[str, ...]
    digest: str = ""
    cluster_id: str = ""
    formation: Configuration | None = None
    leader_http: str = ""


def encode_question(question: Question) -> dict[str, Any]:
    """Return what an asker says."""
    return {
        "protocol": PROTOCOL,
        "kind": FORMING,
        "forming": _VERSION,
        "node_id": question.node_id,
        "incarnation": question.incarnation,
        "digest": question.digest,
    }


def check_question(fields: Mapping[str, Any]) -> Question:
    """Read what an asker says. Raises WireError, and Refused for another version."""
    _check_version(fields)
    return Question(_name(fields, "node_id"), _name(fields, "incarnation"), _digest(fields))


def encode_shown(shown: Shown) -> dict[str, Any]:
    """Return how a node answers."""
    formation = shown.formation.encode() if shown.formation is not None else b""
    return {
        "protocol": PROTOCOL,
        "forming": _VERSION,
        "node_id": shown.node_id,
        "incarnation": shown.incarnation,
        "role": shown.role,
        "quorum_size": shown.quorum_size,
        "raft_address": shown.raft_address,
        "http_address": shown.http_address,
        "http_port": shown.http_port,
        "peers": list(shown.peers),
        "digest": shown.digest,
        "cluster_id": shown.cluster_id,
        "formation": b64encode(formation).decode(),
        "leader_http": shown.leader_http,
        "https": shown.https,
    }


def check_shown(fields: Mapping[str, Any]) -> Shown:
    """Read how a node answers. Raises WireError, and Refused if it refuses, or for another
    version."""
    raise_if_refused(fields)
    _check_version(fields)
    role = fields.get("role")
    if role not in _ROLES:
        raise WireError("an answer without a proper role")
    quorum_size = _number(fields, "quorum_size", MAX_QUORUM_SIZE)
    if quorum_size == 1:
        raise WireError("an answer without a proper quorum_size")
    peers = fields.get("peers")
    if not isinstance(peers, list) or len(peers) > MAX_FOUNDERS:
        raise WireError("an answer without a proper list of peers")
    if not all(isinstance(peer, str) and is_address(peer) for peer in peers):
        raise WireError("an answer whose list of peers has what is no address")
    https = fields.get("https", False)  # a release without TLS says nothing of it
    if not isinstance(https, bool):
        raise WireError("an answer without a proper https")
    cluster_id = _text(fields, "cluster_id")
    return Shown(
        _name(fields, "node_id"),
        _text(fields, "incarnation") if cluster_id else _name(fields, "incarnation"),
        role,
        quorum_size,
        _address(fields, "raft_address"),
        _base_url(fields, "http_address"),
        _number(fields, "http_port", (1 << 16) - 1),
        tuple(peers),
        _digest(fields),
        cluster_id,
        _formation(fields),
        _base_url(fields, "leader_http"),
        https=https,
    )


# -- private -------------------------------------------------------------------------------------


def _check_version(fields: Mapping[str, Any]) -> None:
    if fields.get("protocol") != PROTOCOL or fields.get("forming") != _VERSION:
        raise Refused(
            "the nodes speak different versions of how a cluster is formed; "
            f"{_VERSION} was expected here: run the same version of ConureDB on both"
        )


def _text(fields: Mapping[str, Any], name: str) -> str:
    text = fields.get(name)
    # Printable, because it gets into the log; that excludes what UTF-8 can't encode, too.
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
        raise WireError(f"a node that forms, without a proper {name}")
    return text


def _name(fields: Mapping[str, Any], name: str) -> str:
    text = _text(fields, name)
    if not 0 < len(text.encode()) <= MAX_NODE_ID_BYTES:
        raise WireError(f"a node that forms, without a proper {name}")
    return text


def _digest(fields: Mapping[str, Any]) -> str:
    text = _text(fields, "digest")
    if not _is_digest(text):
        raise WireError("a node that forms, with a digest that is none")
    return text


def _address(fields: Mapping[str, Any], name: str) -> str:
    text = _text(fields, name)
    if text and not is_address(text):
        raise WireError(f"a node that forms, without a proper {name}")
    return text


def _base_url(fields: Mapping[str, Any], name: str) -> str:
    text = _text(fields, name)
    if text and not is_base_url(text):
        raise WireError(f"a node that forms, without a proper {name}")
    return text


def _number(fields: Mapping[str, Any], name: str, most: int) -> int:
    number = fields.get(name)
    if type(number) is not int or not 0 <= number <= most:
        raise WireError(f"a node that forms, without a proper {name}")
    return number


def _formation(fields: Mapping[str, Any]) -> Configuration | None:
    data = decode_base64(fields.get("formation"))
    try:
        return decode_formation(data) if data else None
    except CorruptionError as error:
        raise WireError(f"an answer with a formation that is none: {error.why}") from error
    except VersionTooNew as error:
        raise WireError(f"an answer with a formation of another version: {error}") from error
