"""Bytes for the steps of a sequential transaction and for what came of them, and back.

The command and the outcome that they stand in are codec.py's, and so are the rules of decoders.
Every number is big-endian; those of ``q`` are two's complements of 64 bits.

**Step**::

    offset size
       0    1   kind
       1    1   steps.When, of its condition
       2    1   steps.Life, of its expiry
       3    1   flags
       4    2   length of the key, not 0
       6    4   length of the value
      10    4   length of the operand, of its condition
      14    8   first number (q)
      22    8   second number (q)
      30    …   key, value, operand

    kind              condition  expiry  flags                  value   first   second
     1  read                             skips                          first   last
     2  look
     3  write         yes        yes                            value   time
     4  erase         yes
     5  lapse         yes        yes     steps.Limit                    time
     6  add                                                             by
     7  add a float                                             by
     8  append                                                  value
     9  overlay                                                 value   offset
    10  move                             1 replaces, 2 copies   target
    11  check         yes                                               skips

    write "k" = "hi"  03 00 00 00 0001 00000002 00000000 0*16 0*16 6b 6869

What a kind doesn't have is 0 or empty, and so are the operand of a condition without one and the
time of an expiry without one. A target is 1 byte at least, an offset and skips are not negative.

**Done**, what came of a step::

       0    1   steps.Obstacle
       1    1   flags        1 existed, 2 has a value
       2    8   number (q)
      10    8   expiry
      18    8   left (q)
      26    4   length of the value
      30    …   value
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from conure.errors import WireError
from conure.steps import (
    ALWAYS,
    FOREVER,
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Life,
    Limit,
    Look,
    Move,
    Obstacle,
    Overlay,
    Read,
    Step,
    When,
    Write,
)

__all__ = ["DONE_BYTES", "STEP_BYTES", "decode_done", "decode_steps", "encode_done", "encode_steps"]

_STEP = Struct(">BBBBHIIqq")
_DONE = Struct(">BBqQqI")
STEP_BYTES = _STEP.size
"""The least that a step takes."""
DONE_BYTES = _DONE.size
"""The least that a result of one takes."""
assert (STEP_BYTES, DONE_BYTES) == (30, 30)

_READ, _LOOK, _WRITE, _ERASE, _LAPSE, _ADD, _ADD_FLOAT, _APPEND, _OVERLAY, _MOVE, _CHECK = range(
    1, 12
)
_WHENS, _LIVES, _OBSTACLES = tuple(When), tuple(Life), tuple(Obstacle)
_LIMITS = tuple(map(Limit, range(16)))
_WITH_OPERAND, _TTL = (When.EQUAL, When.DIFFERS), Life.TTL
_EXISTED, _HAS_VALUE = 1, 2

_Fields = tuple[int, int, int, int, bytes, bytes, bytes, int, int]


def encode_steps(steps: Iterable[Step]) -> list[bytes]:
    """Return the bytes of steps, in pieces. Keys and targets have 1 to 65,535 bytes."""
    parts: list[bytes] = []
    for step in steps:
        kind, when, life, flags, key, value, operand, a, b = _fields(step)
        assert key  # in a log it would end every node
        head = _STEP.pack(kind, when, life, flags, len(key), len(value), len(operand), a, b)
        parts += (head, key, value, operand)
    return parts


def decode_steps(data: bytes, at: int, count: int) -> tuple[list[Step], int]:
    """Return so many steps, and where the last one ends. Raises WireError, struct.error."""
    steps: list[Step] = []
    unpack, size = _STEP.unpack_from, len(data)
    for _ in range(count):
        kind, when, life, flags, key_length, length, operand_length, a, b = unpack(data, at)
        value_at = at + STEP_BYTES + key_length
        operand_at = value_at + length
        at = operand_at + operand_length
        if at > size or not key_length:
            raise WireError(f"a step of kind {kind} with a key of {key_length} bytes, ends at {at}")
        key, value = data[value_at - key_length : value_at], data[value_at:operand_at]
        if kind == _WRITE and not (when or life or flags or operand_length or a or b):
            steps.append(Write(key, value))  # most are, and one after the other takes time
            continue
        fields = kind, when, life, flags, key, value, data[operand_at:at], a, b
        step = _step(fields)
        if _fields(step) != fields:
            raise WireError(f"a step of kind {kind} with something it can't have")
        steps.append(step)
    return steps, at


def _fields(step: Step) -> _Fields:
    """Return kind, when, life, flags, key, value, operand and two numbers of a step's encoding.

    An operand or a time that means nothing is left out.
    """
    match step:
        case Read(key, first, last, skips):
            return _READ, 0, 0, skips, key, b"", b"", first, last
        case Look(key):
            return _LOOK, 0, 0, 0, key, b"", b"", 0, 0
        case Write(key, value, (when, operand), (life, time)):
            given, end = operand if when in _WITH_OPERAND else b"", time if life >= _TTL else 0
            return _WRITE, when, life, 0, key, value, given, end, 0
        case Erase(key, (when, operand)):
            return _ERASE, when, 0, 0, key, b"", operand if when in _WITH_OPERAND else b"", 0, 0
        case Lapse(key, (life, time), (when, operand), limit):
            given, end = operand if when in _WITH_OPERAND else b"", time if life >= _TTL else 0
            return _LAPSE, when, life, limit.value, key, b"", given, end, 0
        case Add(key, by):
            return _ADD, 0, 0, 0, key, b"", b"", by, 0
        case AddFloat(key, text):
            return _ADD_FLOAT, 0, 0, 0, key, text, b"", 0, 0
        case Append(key, value):
            return _APPEND, 0, 0, 0, key, value, b"", 0, 0
        case Overlay(key, offset, value):
            return _OVERLAY, 0, 0, 0, key, value, b"", offset, 0
        case Move(key, target, replaces, copies):
            return _MOVE, 0, 0, replaces | copies << 1, key, target, b"", 0, 0
        case Check(key, (when, operand), skips):
            return _CHECK, when, 0, 0, key, b"", operand if when in _WITH_OPERAND else b"", skips, 0


def _step(fields: _Fields) -> Step:
    """Return the step of these fields, whether or not they have something too much."""
    kind, when, life, flags, key, value, operand, a, b = fields
    match kind:
        case 1:
            return Read(key, a, b, flags)
        case 2:
            return Look(key)
        case 3:
            return Write(key, value, _condition(when, operand), _expiry(life, a))
        case 4:
            return Erase(key, _condition(when, operand))
        case 5 if flags < len(_LIMITS):
            return Lapse(key, _expiry(life, a), _condition(when, operand), _LIMITS[flags])
        case 6:
            return Add(key, a)
        case 7:
            return AddFloat(key, value)
        case 8:
            return Append(key, value)
        case 9 if a >= 0:
            return Overlay(key, a, value)
        case 10 if value:
            return Move(key, value, bool(flags & 1), bool(flags & 2))
        case 11 if a >= 0:
            return Check(key, _condition(when, operand), a)
    raise WireError(f"an unknown kind of step {kind}, or one with something that it can't have")


def _condition(when: int, operand: bytes) -> Condition:
    if when >= len(_WHENS) or (operand and when not in _WITH_OPERAND):
        raise WireError(f"a condition {when} with an operand of {len(operand)} bytes")
    return Condition(_WHENS[when], operand) if when else ALWAYS


def _expiry(life: int, time: int) -> Expiry:
    if life >= len(_LIVES) or (time and life < _TTL):
        raise WireError(f"an expiry {life} with a time {time}")
    return Expiry(_LIVES[life], time) if life else FOREVER


def encode_done(done: Sequence[Done]) -> list[bytes]:
    """Return the bytes of what came of steps, in pieces."""
    parts = []
    pack = _DONE.pack
    for obstacle, existed, number, value, expiry, left in done:
        if value is None:
            parts.append(pack(obstacle, existed, number, expiry, left, 0))
        else:
            parts.append(pack(obstacle, existed | _HAS_VALUE, number, expiry, left, len(value)))
            parts.append(value)
    return parts


def decode_done(data: bytes, at: int, count: int) -> tuple[list[Done], int]:
    """Return what came of so many steps, and where the last one ends. Raises WireError,
    struct.error."""
    done = []
    for _ in range(count):
        obstacle, flags, number, expiry, left, length = _DONE.unpack_from(data, at)
        value_at = at + DONE_BYTES
        at = value_at + length
        has_value = flags & _HAS_VALUE
        if obstacle >= len(_OBSTACLES) or flags > _EXISTED | _HAS_VALUE or at > len(data):
            raise WireError(f"a result {obstacle} with flags {flags:#04x}, ends at {at}")
        if length and not has_value:
            raise WireError(f"a result without a value, of {length} bytes")
        value = data[value_at:at] if has_value else None
        done.append(Done(_OBSTACLES[obstacle], bool(flags & _EXISTED), number, value, expiry, left))
    return done, at
