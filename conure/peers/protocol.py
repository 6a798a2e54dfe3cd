"""What two nodes say on a connection beside the core's messages: as JSON, its rules and its shapes.

Connections go one way: whoever dials sends or asks, whoever accepts only answers. So two nodes that
talk have two connections, and a half that broke says nothing about the other. What travels is
frames (frames.py, calls.py), and each connection begins with a handshake of one frame each way,
JSON::

    dialer     {"protocol": 1, "kind": "messages" | "snapshot" | "calls" | "probe",
                "to": node id,
                "node_id": …, "cluster_id": …, "incarnation": …, "role": …,
                "raft_address": …, "http_address": …, "speaks": …, "election_timeout": …,
                "known_as": the incarnation that the dialer takes the acceptor to have}
    acceptor   {"protocol": 1, "node_id": …, and so on as above}, or
               {"protocol": 1, "refused": why}

    messages   dialer: one frame a message, without end
    calls      dialer: one frame a call; acceptor: one frame for each part of an answer (calls.py)
    probe      nothing: the answer to the handshake is what was asked for
    snapshot   dialer: {"message": base64 of the message's frame, "digest": …, "records": …,
                        "id": …}
               acceptor: {"after": base64 of the last key it has}, {"needed": false} or
                         {"refused": why}
               dialer: frames of records with the keys after that one, then
                       {"chunks": how many of them came over this connection}
               acceptor: {"done": true} or {"refused": why}

Records begin with their version byte, JSON with ``{``: that tells them apart.

What strangers say is checked here before anybody acts on it: a text is printable and short, a
number small, an address one that can be dialled. Who is refused is told what :class:`Refused` lets
out, and no name. Functions of fields only: any thread may call anything, and nothing here touches a
socket (sockets.py) or decides who is admitted (the host).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple

from conure.consensus.messages import MessageType, SnapshotHeader
from conure.consensus.records import MAX_NODE_ID_BYTES
from conure.errors import ConureError, Refused, WireError
from conure.peers.frames import decode_message, encode_message
from conure.values import is_address, is_base_url

__all__ = [
    "CALLS_SINCE",
    "MAX_ANSWER",
    "MAX_HANDSHAKE",
    "MAX_HEADER",
    "NOT_BELIEVED",
    "PROTOCOL",
    "Greeting",
    "Hello",
    "check_answer",
    "check_hello",
    "decode_base64",
    "decode_header",
    "encode_answer",
    "encode_header",
    "encode_hello",
    "encode_refusal",
    "raise_if_refused",
    "told",
]

PROTOCOL: Final = 1

CALLS_SINCE: Final = 2
"""What a node speaks at least that takes connections for calls."""

MAX_HANDSHAKE: Final = 8 << 10
"""Bytes of a frame of the handshake."""

MAX_HEADER: Final = 256 << 10
"""Bytes of the frame that announces a snapshot: all members in base64."""

MAX_ANSWER: Final = 128 << 10
"""Bytes of an answer within a snapshot: a key in base64."""

NOT_BELIEVED: Final = "it isn't who belongs to the cluster under that name, or not any more"
"""Why a connection is closed that would not be made again; for the log."""

_MAX_TEXT = 512  # characters of a node id, an address, a reason
_KINDS = ("messages", "snapshot", "calls", "probe")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node says of itself at the beginning of each connection. Printable text.

    *speaks* is the newest version of formats that it reads, *election_timeout* its own in
    milliseconds, 0 if it doesn't say. Nodes of earlier releases say neither.
    """

    node_id: str
    cluster_id: str
    incarnation: str
    role: str
    raft_address: str
    http_address: str
    speaks: int = 1
    election_timeout: int = 0


_TEXTS = tuple(field.name for field in fields(Greeting) if field.type == "str")
_NUMBERS = {field.name: field.default for field in fields(Greeting) if field.type == "int"}


class Hello(NamedTuple):
    """What a node says that has dialled."""

    kind: str
    """``messages``, ``snapshot``, ``calls`` or ``probe``."""
    to: str
    """The id of the node that it looks for."""
    greeting: Greeting
    known_as: str
    """The incarnation that it takes the acceptor to have, "" if it doesn't say."""


# -- the handshake -------------------------------------------------------------------------------


def encode_hello(kind: str, to: str, known_as: str, greeting: Greeting) -> dict[str, Any]:
    """Return what a dialler says first."""
    said = {"protocol": PROTOCOL, "kind": kind, "to": to, "known_as": known_as}
    return said | asdict(greeting)


def check_hello(fields: Mapping[str, Any]) -> Hello:
    """Read what a dialler has said. Raises WireError, and Refused for another protocol."""
    greeting = _check_greeting(fields)
    kind = _text(fields, "kind")
    if kind not in _KINDS:
        raise WireError(f"a connection of an unknown kind {kind!r}")
    # Nodes of earlier releases don't say it.
    known_as = _text(fields, "known_as") if "known_as" in fields else ""
    return Hello(kind, _text(fields, "to"), greeting, known_as)


def encode_answer(greeting: Greeting) -> dict[str, Any]:
    """Return how an acceptor answers a dialler that it admits."""
    return {"protocol": PROTOCOL, **asdict(greeting)}


def encode_refusal(error: ConureError) -> dict[str, Any]:
    """Return how an acceptor answers a dialler that it refuses."""
    return {"protocol": PROTOCOL, "refused": told(error)}


def check_answer(fields: Mapping[str, Any]) -> Greeting:
    """Read an acceptor's answer. Raises WireError, and Refused if it refuses."""
    raise_if_refused(fields)
    return _check_greeting(fields)


def told(error: ConureError) -> str:
    """Return what the other side hears of an error."""
    return (error.told if isinstance(error, Refused) else str(error))[:_MAX_TEXT]


def raise_if_refused(fields: Mapping[str, Any]) -> None:
    """Raise Refused, in the other side's words, if that is what it answers."""
    if "refused" in fields:
        why = str(fields["refused"])[:_MAX_TEXT]
        raise Refused("".join([char if char.isprintable() else "?" for char in why]))


# -- a snapshot ----------------------------------------------------------------------------------


def encode_header(header: SnapshotHeader) -> dict[str, Any]:
    """Return how a snapshot is announced."""
    message = b64encode(encode_message(header.message)).decode()
    return {**header._asdict(), "message": message}


def decode_header(fields: Mapping[str, Any]) -> SnapshotHeader:
    """Read how a snapshot is announced. Raises WireError."""
    message = decode_message(decode_base64(fields.get("message")))
    if message.type != MessageType.SNAPSHOT or message.snapshot is None:
        raise WireError("a snapshot that is announced by another message")
    return SnapshotHeader(
        message, _number(fields, "digest"), _number(fields, "records"), _text(fields, "id")
    )


def decode_base64(text: object) -> bytes:
    """Read bytes in base64. Raises WireError, also for what is no text."""
    try:
        if isinstance(text, str):
            return b64decode(text, validate=True)
    except ValueError as error:
        raise WireError(f"malformed base64: {error}") from error
    raise WireError("base64 is missing")


# -- private -------------------------------------------------------------------------------------


def _check_greeting(fields: Mapping[str, Any]) -> Greeting:
    if fields.get("protocol") != PROTOCOL:
        raise Refused(
            f"the nodes speak different versions of the protocol; {PROTOCOL} was expected here: "
            "run the same version of ConureDB on both"
        )
    said: dict[str, Any] = {name: _text(fields, name) for name in _TEXTS}
    for name in ("node_id", "incarnation"):  # a message that tells none would be anybody's
        if not 0 < len(said[name].encode()) <= MAX_NODE_ID_BYTES:
            raise WireError(f"a handshake without a proper {name}")
    said |= {name: _small_number(fields, name) for name in _NUMBERS}
    if not is_address(said["raft_address"]):
        raise WireError("a handshake without a proper raft_address")
    if said["http_address"] and not is_base_url(said["http_address"]):
        raise WireError("a handshake without a proper http_address")
    return Greeting(**said)


def _text(fields: Mapping[str, Any], name: str) -> str:
    text = fields.get(name)
    # Printable, because it gets into the log; that excludes what UTF-8 can't encode, too.
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
        raise WireError(f"a handshake without a proper {name}")
    return text


def _small_number(fields: Mapping[str, Any], name: str) -> int:
    number = fields.get(name, _NUMBERS[name])
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise WireError(f"a handshake without a proper {name}")
    return number


def _number(fields: Mapping[str, Any], name: str) -> int:
    number = fields.get(name)
    if type(number) is not int or not 0 <= number < 1 << 64:
        raise WireError(f"a snapshot without a proper {name}")
    return number
