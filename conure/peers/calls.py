"""Calls as bytes: what a node asks of the leader for its own clients, and the answers.

They travel over a connection of their own kind (protocol.py), one frame (records.py) a call and one
for each part of an answer. Numbers are big-endian and unsigned. A decoder takes any bytes at all
and raises WireError for what no encoder makes. Nothing here has state: any thread may call
anything, and what the bodies mean is the node's concern.

**Call**, from the node that dialled::

    offset size
       0    1   version      01
       1    1   kind         01 write, 02 confirm, 03 change, 04 publish, 05 listen
       2    2   flags        0000; a later one says what stands ahead of the body, such as a list
                             of who asks (name, epoch of rights, address) and which command is whose
       4    8   number       greater than all before it on this connection
      12    8   term         of the leader that is asked: no other one takes it
      20    …   body

    write     4 n, the number of commands; 4n the length of each; the commands (codec.py)
    confirm   8 the index that the node has applied
    change    JSON: what is to be done to the members
    publish   4 n, the number of messages; then of each 4 the length of its channel, 4 its own
              length, the channel, the message
    listen    8 the number after which messages are wanted; all ones: the next one, whichever it is

    "is there more than index 7?", asked of the leader of term 2:
    01 02 0000 0000000000000001 0000000000000002 0000000000000007

A flag that a node doesn't know ends the connection, since what it says may forbid the call. So it
is sent only to nodes whose greeting says that they know it (``Greeting.speaks``).

**Answer**, from the node that was called. A write may be answered in parts, from one command up to
another, in their order::

       0    1   version      01
       1    1   kind         01 committed, 02 confirmed, 03 changed, 04 failed, 05 published,
                             06 heard
       2    2   flags        1 the last part
       4    8   number       that of the call
      12    8   term         that of the call
      20    8   start, stop  4 bytes each: for which commands; 0 and 1 where there are none
      28    …   body

    committed 8 the revision that command 0 of the call has, or would have; 4 n, the number of
              outcomes; then of each 4 its command, 4 its length, the outcome (codec.py)
    confirmed 8 the index that a linearizable read has to see
    changed   JSON: what there is to be told
    published nothing
    heard     8 the number of the last message that it has, or after which the next one will come;
              messages as in publish
    failed    JSON {"error": class of errors.py, "message": …, and its fields}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import accumulate, pairwise
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import Any, Final, NamedTuple

from conure import errors
from conure.consensus.records import encode_frame
from conure.errors import ConureError, WireError
from conure.peers.sockets import parse_json

__all__ = [
    "FROM_NOW",
    "MAX_CALL_BYTES",
    "MAX_COMMANDS",
    "MAX_MESSAGES",
    "Answer",
    "AnswerKind",
    "Call",
    "CallKind",
    "Message",
    "decode_answer",
    "decode_call",
    "decode_commands",
    "decode_error",
    "decode_facts",
    "decode_heard",
    "decode_index",
    "decode_messages",
    "decode_outcomes",
    "encode_answer",
    "encode_call",
    "encode_commands",
    "encode_error",
    "encode_facts",
    "encode_heard",
    "encode_index",
    "encode_messages",
    "encode_outcomes",
]

MAX_COMMANDS: Final = 512
"""Commands of one call."""

MAX_CALL_BYTES: Final = 2 << 20
"""Bytes of all commands of a call but the longest: whoever is called looks at them in one go."""

MAX_MESSAGES: Final = 4096
"""Messages of one call or answer."""

FROM_NOW: Final = (1 << 64) - 1
"""In the place of a message's number: from the next one on."""

Message = tuple[bytes, bytes]
"""A channel, and what is published there."""

_VERSION = 1
_CALL = Struct(">BBHQQ")
_ANSWER = Struct(">BBHQQII")
_INDEX = Struct(">Q")
_COUNT = Struct(">I")
_OUTCOMES = Struct(">QI")
_OUTCOME = Struct(">II")
_MESSAGE = Struct(">II")
_LAST = 1
_MAX_FACTS = 64 << 10  # bytes of JSON
_MAX_MESSAGE = 4096  # characters of an error
assert (_CALL.size, _ANSWER.size) == (20, 28)

_ERRORS: dict[str, type[ConureError]] = {
    name: found
    for name in errors.__all__
    if issubclass(found := getattr(errors, name), ConureError)
}
# The fields of each error, beside its text.
_LEADER = {"leader": str, "leader_id": str, "leader_http": str}
_FIELDS: dict[str, dict[str, type]] = {
    "Compacted": {"oldest": int},
    "ConfigError": {"setting": str, "source": str, "why": str},
    "CorruptionError": {"file": str, "offset": int, "why": str},
    "MethodNotAllowed": {"allowed": list},
    "NotLeader": {"retry_after": int, **_LEADER},
    "NotRead": {"retry_after": int},
    "PreconditionFailed": {"current": int},
    "Refused": {"told": str},
    "TooManyRequests": {"retry_after": int},
    "Unavailable": {"retry_after": int},
    "Untrusted": {"retry_after": int},
    "VersionTooNew": {"found": int},
}


class CallKind(IntEnum):
    """What is asked for."""

    WRITE = 1
    CONFIRM = 2
    CHANGE = 3
    PUBLISH = 4
    LISTEN = 5


class AnswerKind(IntEnum):
    """What is answered."""

    COMMITTED = 1
    CONFIRMED = 2
    CHANGED = 3
    FAILED = 4
    PUBLISHED = 5
    HEARD = 6


class Call(NamedTuple):
    """What is asked of the leader of a *term*."""

    kind: CallKind
    term: int
    body: bytes


class Answer(NamedTuple):
    """What it says to a call: to its commands *start* to *stop*, if it has any."""

    kind: AnswerKind
    term: int
    body: bytes
    start: int = 0
    stop: int = 1
    is_last: bool = True


# -- calls and answers -----------------------------------------------------------------------------


def encode_call(number: int, call: Call) -> bytes:
    """Return the whole frame of a call."""
    return encode_frame(_CALL.pack(_VERSION, call.kind, 0, number, call.term) + call.body)


def decode_call(payload: bytes) -> tuple[int, Call]:
    """Return the number and the call that a frame's payload has. Raises WireError."""
    try:
        version, kind, flags, number, term = _CALL.unpack_from(payload)
        if version != _VERSION or flags:
            raise WireError(f"a call of format version {version}, flags {flags:#06x}")
        return number, Call(CallKind(kind), term, payload[_CALL.size :])
    except (struct_error, ValueError) as error:
        raise WireError(f"a malformed call: {error}") from error


def encode_answer(number: int, answer: Answer) -> bytes:
    """Return the whole frame of an answer, or of a part of it."""
    kind, term, body, start, stop, is_last = answer
    flags = _LAST if is_last else 0
    return encode_frame(_ANSWER.pack(_VERSION, kind, flags, number, term, start, stop) + body)


def decode_answer(payload: bytes) -> tuple[int, Answer]:
    """Return the number and the answer that a frame's payload has. Raises WireError."""
    try:
        version, kind, flags, number, term, start, stop = _ANSWER.unpack_from(payload)
        if version != _VERSION or flags & ~_LAST or start >= stop:
            raise WireError(f"an answer of format version {version}, flags {flags:#06x}")
        body = payload[_ANSWER.size :]
        return number, Answer(AnswerKind(kind), term, body, start, stop, bool(flags & _LAST))
    except (struct_error, ValueError) as error:
        raise WireError(f"a malformed answer: {error}") from error


# -- their bodies ----------------------------------------------------------------------------------


def encode_commands(commands: Sequence[bytes]) -> bytes:
    """Return the body of a write: up to MAX_COMMANDS commands, of MAX_CALL_BYTES."""
    n = len(commands)
    assert 0 < n <= MAX_COMMANDS
    return b"".join([pack(f">I{n}I", n, *map(len, commands)), *commands])


def decode_commands(body: bytes) -> list[bytes]:
    """Return what :func:`encode_commands` was given. Raises WireError."""
    try:
        (n,) = _COUNT.unpack_from(body)
        if not 0 < n <= MAX_COMMANDS:
            raise WireError(f"a call with {n} commands")
        lengths = unpack_from(f">{n}I", body, _COUNT.size)
    except struct_error:
        raise WireError(f"commands in {len(body)} bytes") from None
    bounds = list(accumulate(lengths, initial=_COUNT.size * (n + 1)))
    if bounds[-1] != len(body):
        raise WireError(f"commands of {bounds[-1]} bytes in a body of {len(body)}")
    if sum(lengths) - max(lengths) > MAX_CALL_BYTES:
        raise WireError(f"{n} commands of {sum(lengths)} bytes in one call")
    return [body[a:b] for a, b in pairwise(bounds)]


def encode_outcomes(first: int, outcomes: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the body of what was committed; *first* is the revision of command 0, and each
    outcome comes with the number of its command."""
    parts = [b""]
    for position, outcome in outcomes:
        parts += (_OUTCOME.pack(position, len(outcome)), outcome)
    parts[0] = _OUTCOMES.pack(first, len(parts) // 2)
    return b"".join(parts)


def decode_outcomes(body: bytes) -> tuple[int, dict[int, bytes]]:
    """Return the revision of command 0, and the outcomes by command. Raises WireError."""
    outcomes: dict[int, bytes] = {}
    try:
        first, n = _OUTCOMES.unpack_from(body)
        at = _OUTCOMES.size
        for _ in range(n):
            position, size = _OUTCOME.unpack_from(body, at)
            at += _OUTCOME.size + size
            if at > len(body):
                raise WireError(f"an outcome of {size} bytes is cut short")
            outcomes[position] = body[at - size : at]
    except struct_error as error:
        raise WireError(f"malformed outcomes: {error}") from error
    if at != len(body) or len(outcomes) != n:
        raise WireError(f"{n} outcomes of {at} bytes in a body of {len(body)}")
    return first, outcomes


def encode_index(index: int) -> bytes:
    """Return the body that is an index."""
    return _INDEX.pack(index)


def decode_index(body: bytes) -> int:
    """Return the index that a body is. Raises WireError."""
    if len(body) != _INDEX.size:
        raise WireError(f"an index of {len(body)} bytes")
    return int.from_bytes(body, "big")


def encode_messages(messages: Sequence[Message]) -> bytes:
    """Return the body that is messages: up to MAX_MESSAGES."""
    assert len(messages) <= MAX_MESSAGES
    parts = [_COUNT.pack(len(messages))]
    for channel, message in messages:
        parts += (_MESSAGE.pack(len(channel), len(message)), channel, message)
    return b"".join(parts)


def decode_messages(body: bytes, start: int = 0) -> list[Message]:
    """Return the messages that a body is, from a place on. Raises WireError."""
    messages = []
    try:
        (n,) = _COUNT.unpack_from(body, start)
        if n > MAX_MESSAGES:
            raise WireError(f"{n} messages at a time")
        at = start + _COUNT.size
        for _ in range(n):
            in_channel, in_message = _MESSAGE.unpack_from(body, at)
            at += _MESSAGE.size
            middle = at + in_channel
            messages.append((body[at:middle], body[middle : middle + in_message]))
            at = middle + in_message
    except struct_error as error:
        raise WireError(f"malformed messages: {error}") from error
    if at != len(body):
        raise WireError(f"messages of {at} bytes in a body of {len(body)}")
    return messages


def encode_heard(last: int, messages: Sequence[Message]) -> bytes:
    """Return the body of what is heard; *last* is the number of the last message."""
    return _INDEX.pack(last) + encode_messages(messages)


def decode_heard(body: bytes) -> tuple[int, list[Message]]:
    """Return what :func:`encode_heard` was given. Raises WireError."""
    if len(body) < _INDEX.size:
        raise WireError(f"messages in {len(body)} bytes")
    return int.from_bytes(body[: _INDEX.size], "big"), decode_messages(body, _INDEX.size)


def encode_facts(facts: Mapping[str, Any]) -> bytes:
    """Return the body that tells facts."""
    return json.dumps(facts).encode()


def decode_facts(body: bytes) -> dict[str, Any]:
    """Return the facts that a body tells. Raises WireError."""
    if len(body) > _MAX_FACTS:
        raise WireError(f"facts of {len(body)} bytes")
    return parse_json(body)


def encode_error(error: ConureError) -> bytes:
    """Return the body that tells of an error."""
    name = type(error).__name__
    told = {field: getattr(error, field) for field in _FIELDS.get(name, ())}
    return encode_facts({"error": name, "message": str(error)[:_MAX_MESSAGE], **told})


def decode_error(body: bytes) -> ConureError:
    """Return the error that a body tells of: of its class, with its text and fields. Raises
    WireError."""
    told = decode_facts(body)
    name, message = told.pop("error", None), told.pop("message", None)
    kind = _ERRORS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(message, str):
        raise WireError("an answer that tells of no error that is known here")
    fields = _FIELDS.get(kind.__name__, {})
    if {field: type(value) for field, value in told.items()} != fields:
        raise WireError(f"an answer with other fields than {kind.__name__} has")
    if not all(map(_is_proper, told.values())):
        raise WireError(f"an answer with fields that no {kind.__name__} has")
    shown = "".join([char if char.isprintable() else "?" for char in message[:_MAX_MESSAGE]])
    error = kind.__new__(kind, shown)
    error.__setstate__(
        {name: tuple(each) if type(each) is list else each for name, each in told.items()}
    )  # as pickle does
    return error


def _is_proper(value: int | str | list[Any]) -> bool:
    """Tell whether that may be a field of an error, which may become a header field of HTTP."""
    if isinstance(value, list):
        return all(isinstance(each, str) and _is_proper(each) for each in value)
    if isinstance(value, str):
        return len(value) <= _MAX_MESSAGE and value.isprintable()
    return 0 <= value < 1 << 64
