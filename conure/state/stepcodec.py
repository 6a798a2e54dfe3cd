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

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple

from conure.errors import WireError
from conure.steps import (
    ALWAYS,
    FOREVER,
    REWRITTEN,
    WRITTEN,
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
    plain_writes,
)

__all__ = [
    "DONE_BYTES",
    "STEP_BYTES",
    "check_steps",
    "decode_done",
    "decode_steps",
    "decode_writes",
    "encode_done",
    "encode_steps",
    "encode_writes",
]

_STEP = Struct(">BBBBHIIqq")
_PLAIN_STEP = Struct(">IHI20s")  # the first four fields in one, and the last three
_DONE = Struct(">BBqQqI")
STEP_BYTES: Final = _STEP.size
"""The least that a step takes."""
DONE_BYTES: Final = _DONE.size
"""The least that a result of one takes."""
assert (STEP_BYTES, _PLAIN_STEP.size, DONE_BYTES) == (30, 30, 30)

_READ, _LOOK, _WRITE, _ERASE, _LAPSE, _ADD, _ADD_FLOAT, _APPEND, _OVERLAY, _MOVE, _CHECK = range(
    1, 12
)
_WHENS, _LIVES, _OBSTACLES = tuple(When), tuple(Life), tuple(Obstacle)
_LIMITS = tuple(map(Limit, range(16)))
_WITH_OPERAND, _TTL = (When.EQUAL, When.DIFFERS), Life.TTL
_EXISTED, _HAS_VALUE = 1, 2
_PLAIN, _ZEROS = _WRITE << 24, bytes(20)  # of a write without condition and expiry
_WRITTEN, _REWRITTEN = [_DONE.pack(*done[:3], *done[4:], 0) for done in (WRITTEN, REWRITTEN)]

_Fields = tuple[int, int, int, int, bytes, bytes, bytes, int, int]


class _Rule(NamedTuple):
    """What a kind of step may have."""

    condition: bool = False
    expiry: bool = False  # its time is the first number
    flags: int = 0  # the largest
    value: bool = False
    least: int = 0  # and the largest first number
    most: int = 0
    second: bool = False


_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_RULES = {
    _READ: _Rule(flags=255, least=_LEAST, most=_MOST, second=True),
    _LOOK: _Rule(),
    _WRITE: _Rule(condition=True, expiry=True, value=True, least=_LEAST, most=_MOST),
    _ERASE: _Rule(condition=True),
    _LAPSE: _Rule(condition=True, expiry=True, flags=len(_LIMITS) - 1, least=_LEAST, most=_MOST),
    _ADD: _Rule(least=_LEAST, most=_MOST),
    _ADD_FLOAT: _Rule(value=True),
    _APPEND: _Rule(value=True),
    _OVERLAY: _Rule(value=True, most=_MOST),
    _MOVE: _Rule(flags=3, value=True),
    _CHECK: _Rule(condition=True, most=_MOST),
}


def encode_steps(steps: Sequence[Step]) -> list[bytes]:
    """Return the bytes of steps, in pieces. Keys and targets have 1 to 65,535 bytes."""
    writes = plain_writes(steps)
    if writes is not None:
        return encode_writes(*writes)
    parts: list[bytes] = []
    for step in steps:
        kind, when, life, flags, key, value, operand, a, b = _fields(step)
        assert key  # in a log it would end every node
        head = _STEP.pack(kind, when, life, flags, len(key), len(value), len(operand), a, b)
        parts += (head, key, value, operand)
    return parts


def encode_writes(keys: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
    """Return the bytes of steps that write and ask for nothing else, in pieces."""
    assert all(keys)  # in a log it would end every node
    sizes = map(len, keys), map(len, values)
    heads = map(_PLAIN_STEP.pack, repeat(_PLAIN), *sizes, repeat(_ZEROS))
    return [*chain.from_iterable(zip(heads, keys, values, strict=False))]


def decode_writes(
    data: bytes, at: int, count: int
) -> tuple[Sequence[bytes], Sequence[bytes]] | None:
    """Return the keys and the values of so many steps up to the end of *data*, if all of them write
    and ask for nothing else; None of others, and of what is malformed."""
    keys: list[bytes] = []
    values: list[bytes] = []
    unpack = _PLAIN_STEP.unpack_from
    try:
        _, key_length, length, _ = unpack(data, at)
        if at + count * (STEP_BYTES + key_length + length) == len(data):
            even = _decode_even_writes(data[at:], count, key_length, length)
            if even is not None:
                return even
        for _ in range(count):
            head, key_length, length, rest = unpack(data, at)
            if head != _PLAIN or rest != _ZEROS or not key_length:
                return None
            value_at = at + STEP_BYTES + key_length
            keys.append(data[value_at - key_length : value_at])
            at = value_at + length
            values.append(data[value_at:at])
    except struct_error:
        return None
    return (keys, values) if at == len(data) else None


def _decode_even_writes(
    data: bytes, count: int, key_length: int, length: int
) -> tuple[Sequence[bytes], Sequence[bytes]] | None:
    """Return likewise the keys and the values of writes that are all as long as the first one; None
    if they aren't."""
    rows = _even_writes(key_length, length).iter_unpack(data)
    heads, key_lengths, lengths, rests, keys, values = zip(*rows, strict=True)
    if not (key_length and heads.count(_PLAIN) == rests.count(_ZEROS) == count):
        return None
    if not key_lengths.count(key_length) == lengths.count(length) == count:
        return None
    return keys, values


@lru_cache(256)
def _even_writes(key_length: int, length: int) -> Struct:
    return Struct(f"{_PLAIN_STEP.format}{key_length}s{length}s")


def decode_steps(data: bytes, at: int, count: int) -> Iterator[Step]:
    """Yield so many steps, which end where *data* does. Raises WireError, struct.error."""
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
            yield Write(key, value)  # most are, and one after the other takes time
            continue
        _check_head(kind, when, life, flags, length, operand_length, a, b)
        yield _step((kind, when, life, flags, key, value, data[operand_at:at], a, b))
    _check_end(at, size)


def check_steps(data: bytes, at: int, count: int, longest: int) -> list[bytes]:
    """Check that :func:`decode_steps` can read steps, and that no key has more than *longest*
    bytes; makes none of them, which is cheaper. Return the keys whose values they read.

    Raises WireError, struct.error.
    """
    unpack, size = _STEP.unpack_from, len(data)
    read = []
    for _ in range(count):
        kind, when, life, flags, key_length, length, operand_length, a, b = unpack(data, at)
        value_at = at + STEP_BYTES + key_length
        at = value_at + length + operand_length
        if at > size or not key_length:
            raise WireError(f"a step of kind {kind} with a key of {key_length} bytes, ends at {at}")
        if kind != _WRITE or when or life or flags or operand_length or a or b:
            _check_head(kind, when, life, flags, length, operand_length, a, b)
        if key_length > longest or (kind == _MOVE and length > longest):
            raise WireError(f"a step with a key of {max(key_length, length)} bytes")
        if kind == _READ:
            read.append(data[value_at - key_length : value_at])
    _check_end(at, size)
    return read


def _check_head(
    kind: int, when: int, life: int, flags: int, length: int, operand_length: int, a: int, b: int
) -> None:
    """Raise WireError unless a step of this kind may have all that."""
    rule = _RULES.get(kind)
    if rule is None:
        raise WireError(f"an unknown kind of step {kind}; a newer version wrote it")
    if (
        (when and not (rule.condition and when < len(_WHENS)))
        or (life and not (rule.expiry and life < len(_LIVES)))
        or flags > rule.flags
        or (length and not rule.value)
        or (operand_length and when not in _WITH_OPERAND)
        or not rule.least <= a <= rule.most
        or (a and rule.expiry and life < _TTL)
        or (b and not rule.second)
        or (kind == _MOVE and not length)
    ):
        raise WireError(f"a step of kind {kind} with something it can't have")


def _check_end(at: int, size: int) -> None:
    if at != size:
        raise WireError(f"a sequential transaction of {at} bytes in a command of {size} bytes")


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
    """Return the step of these fields, which were checked."""
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
        case 5:
            return Lapse(key, _expiry(life, a), _condition(when, operand), _LIMITS[flags])
        case 6:
            return Add(key, a)
        case 7:
            return AddFloat(key, value)
        case 8:
            return Append(key, value)
        case 9:
            return Overlay(key, a, value)
        case 10:
            return Move(key, value, bool(flags & 1), bool(flags & 2))
    assert kind == _CHECK, kind
    return Check(key, _condition(when, operand), a)


def _condition(when: int, operand: bytes) -> Condition:
    return Condition(_WHENS[when], operand) if when else ALWAYS


def _expiry(life: int, time: int) -> Expiry:
    return Expiry(_LIVES[life], time) if life else FOREVER


def encode_done(done: Sequence[Done]) -> list[bytes]:
    """Return the bytes of what came of steps, in pieces."""
    parts = []
    pack = _DONE.pack
    for each in done:
        if each is WRITTEN:  # most are one of these, and packing takes time
            parts.append(_WRITTEN)
            continue
        if each is REWRITTEN:
            parts.append(_REWRITTEN)
            continue
        obstacle, existed, number, value, expiry, left = each
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
        if data.startswith(_WRITTEN, at):
            done.append(WRITTEN)
            at += DONE_BYTES
            continue
        if data.startswith(_REWRITTEN, at):
            done.append(REWRITTEN)
            at += DONE_BYTES
            continue
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
