"""The commands of strings: what each asks of the store, and how it is answered.

A command that reads and then writes is a read and a write of one entry, in this order, and what
could not be read is not overwritten (steps.Read.skips). Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from conure.resp import words
from conure.resp.lcs import lcs
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError, Verb
from conure.state.floats import parse_float
from conure.steps import (
    ALWAYS,
    FOREVER,
    KEPT,
    WHEN_ABSENT,
    WHEN_EXISTS,
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Look,
    Obstacle,
    Overlay,
    Read,
    Step,
    When,
    Write,
    write_all,
)

__all__ = ["STRING_VERBS"]

Words = Sequence[bytes]

_READS = frozenset({"readonly", "fast"})
_SLOW_READS = frozenset({"readonly"})
_WRITES = frozenset({"write", "denyoom", "fast"})
_SLOW_WRITES = frozenset({"write", "denyoom"})
_REMOVES = frozenset({"write", "fast"})
_ONE, _ALL, _PAIRS, _TWO = (1, 1, 1), (1, -1, 1), (1, -1, 2), (1, 2, 1)
_NOTHING: tuple[Step, ...] = ()


# -- replies -------------------------------------------------------------------------------------


def _value(done: Sequence[Done], replies: Replies) -> None:
    """Reply with the value that the first step has read."""
    if not words.reply_error(done, replies):
        replies.bulk(done[0].value)


def _part(done: Sequence[Done], replies: Replies) -> None:
    """Reply with a part of a value; of none it is empty."""
    if not words.reply_error(done, replies):
        replies.bulk(done[0].value or b"")


def _number(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.integer(done[0].number)


def _ok(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.ok()


def _was_set(done: Sequence[Done], replies: Replies) -> None:
    """Reply with OK, or with nothing if a condition was not met."""
    if words.reply_error(done, replies):
        return
    if done[0].obstacle:
        replies.null()
    else:
        replies.ok()


def _one_if_done(done: Sequence[Done], replies: Replies) -> None:
    """Reply whether the last step was done."""
    if not words.reply_error(done[-1:], replies):
        replies.integer(int(not done[-1].obstacle))


def _values(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.array_of(len(done))
        replies.bulks([each.value for each in done])


# -- reading -------------------------------------------------------------------------------------


def _get(given: Words, _: Context) -> Plan:
    return Plan((Read(words.key(given[0])),), _value)


def _mget(given: Words, _: Context) -> Plan:
    return Plan(tuple(map(Read, words.keys(given))), _values)


def _strlen(given: Words, _: Context) -> Plan:
    return Plan((Look(words.key(given[0])),), _number)


def _getrange(given: Words, _: Context) -> Plan:
    first, last = words.integer(given[1]), words.integer(given[2])
    return Plan((Read(words.key(given[0]), first, last),), _part)


# -- setting -------------------------------------------------------------------------------------

_SET_OPTIONS = {
    b"NX": False, b"XX": False, b"GET": False, b"KEEPTTL": False,
    b"IFEQ": True, b"IFNE": True, **dict.fromkeys(words.EXPIRIES, True),
}  # fmt: skip
_CONDITIONS = (b"NX", b"XX", b"IFEQ", b"IFNE")
_SET_APART = (_CONDITIONS, (b"KEEPTTL", *words.EXPIRIES))


def _set(given: Words, context: Context) -> Plan:
    name, value, *rest = given
    words.key(name)
    words.value(value, context)
    if not rest:
        return Plan((Write(name, value),), _ok)
    found = words.options(rest, _SET_OPTIONS, _SET_APART)
    expiry = KEPT if b"KEEPTTL" in found else _expiry(found, "set", context)
    write = Write(name, value, condition_of(found), expiry or FOREVER)
    if b"GET" in found:
        return Plan((Read(name, skips=1), write), _value_before)
    return Plan((write,), _was_set)


def condition_of(found: dict[bytes, bytes]) -> Condition:
    """Return the condition that options say."""
    if b"NX" in found:
        return WHEN_ABSENT
    if b"XX" in found:
        return WHEN_EXISTS
    for option, when in ((b"IFEQ", When.EQUAL), (b"IFNE", When.DIFFERS)):
        if option in found:
            return Condition(when, found[option])
    return ALWAYS


def _expiry(found: dict[bytes, bytes], command: str, context: Context) -> Expiry | None:
    """Return the expiry that options say, if they do. Raises ReplyError."""
    for option, how in words.EXPIRIES.items():
        if option in found:
            return words.expiry_of(found[option], how, command, context.now)
    return None


def _value_before(done: Sequence[Done], replies: Replies) -> None:
    """Reply with what was read before a key was set."""
    if not words.reply_error(done, replies):
        replies.bulk(done[0].value)


def _setnx(given: Words, context: Context) -> Plan:
    write = Write(words.key(given[0]), words.value(given[1], context), WHEN_ABSENT)
    return Plan((write,), _one_if_done)


def _setex_like(command: str, option: bytes, given: Words, context: Context) -> Plan:
    expiry = words.expiry_of(given[1], words.EXPIRIES[option], command, context.now)
    name, value = words.key(given[0]), words.value(given[2], context)
    return Plan((Write(name, value, expiry=expiry),), _ok)


def _setex(given: Words, context: Context) -> Plan:
    return _setex_like("setex", b"EX", given, context)


def _psetex(given: Words, context: Context) -> Plan:
    return _setex_like("psetex", b"PX", given, context)


def _getset(given: Words, context: Context) -> Plan:
    name = words.key(given[0])
    write = Write(name, words.value(given[1], context))
    return Plan((Read(name, skips=1), write), _value_before)


def _getdel(given: Words, _: Context) -> Plan:
    name = words.key(given[0])
    return Plan((Read(name, skips=1), Erase(name)), _value_before)


_GETEX_OPTIONS = {b"PERSIST": False, **dict.fromkeys(words.EXPIRIES, True)}


def _getex(given: Words, context: Context) -> Plan:
    name = words.key(given[0])
    found = words.options(given[1:], _GETEX_OPTIONS, (tuple(_GETEX_OPTIONS),))
    try:
        expiry = FOREVER if b"PERSIST" in found else _expiry(found, "getex", context)
    except ReplyError as error:
        return Plan((Look(name),), partial(_nothing_or_error, str(error)))
    if expiry is None:
        return Plan((Read(name),), _value)
    return Plan((Read(name, skips=1), Lapse(name, expiry)), _value_of_lapse)


def _nothing_or_error(text: str, done: Sequence[Done], replies: Replies) -> None:
    """Reply with an error that is one only if the key is there."""
    if done[0].existed:
        replies.error(text)
    else:
        replies.null()


def _value_of_lapse(done: Sequence[Done], replies: Replies) -> None:
    """Reply with what was read, of a key that may not be there or had no expiry to lose."""
    read, lapse = done
    if lapse.obstacle in (Obstacle.NO_KEY, Obstacle.UNMET):
        replies.bulk(read.value)
    else:
        _value(done, replies)


def _pairs(command: str, given: Words, context: Context) -> tuple[Words, Words]:
    """Return the keys and the values that words are. Raises ReplyError."""
    if len(given) % 2:
        raise words.wrong_arity(command)
    return words.keys(given[::2]), words.values(given[1::2], context)


def _mset(given: Words, context: Context) -> Plan:
    last = dict(zip(*_pairs("mset", given, context), strict=True))  # of each key
    return Plan(write_all(last.keys(), last.values()), _ok)


def _msetnx(given: Words, context: Context) -> Plan:
    writes = write_all(*_pairs("msetnx", given, context))
    names = list(dict.fromkeys(write.key for write in writes))
    rest = len(names) + len(writes)
    checks = [Check(name, WHEN_ABSENT, rest - n) for n, name in enumerate(names, 1)]
    return Plan((*checks, *writes), _all_set)


def _all_set(done: Sequence[Done], replies: Replies) -> None:
    """Reply whether the last step was done: checks leave out all others."""
    last = done[-1]
    if last.obstacle is Obstacle.SKIPPED:
        replies.integer(0)
    elif not words.reply_error(done, replies):
        replies.integer(1)


# -- changing ------------------------------------------------------------------------------------


def _incr(given: Words, _: Context) -> Plan:
    return Plan((Add(words.key(given[0]), 1),), _number)


def _decr(given: Words, _: Context) -> Plan:
    return Plan((Add(words.key(given[0]), -1),), _number)


def _incrby(given: Words, _: Context) -> Plan:
    return Plan((Add(words.key(given[0]), words.integer(given[1])),), _number)


def _decrby(given: Words, _: Context) -> Plan:
    by = -words.integer(given[1])
    if by > words.MOST:
        raise ReplyError("ERR decrement would overflow")
    return Plan((Add(words.key(given[0]), by),), _number)


def _incrbyfloat(given: Words, _: Context) -> Plan:
    name, by = words.key(given[0]), given[1]
    try:
        is_number = parse_float(by) is not None
    except OverflowError:
        is_number = True  # what it makes of a value is for the step to tell
    if not is_number:
        raise ReplyError("ERR value is not a valid float")
    return Plan((AddFloat(name, by),), _value)


def _append(given: Words, context: Context) -> Plan:
    return Plan((Append(words.key(given[0]), words.value(given[1], context)),), _number)


def _setrange(given: Words, context: Context) -> Plan:
    offset = words.integer(given[1])
    if offset < 0:
        raise ReplyError("ERR offset is out of range")
    name, value = words.key(given[0]), words.value(given[2], context)
    return Plan((Overlay(name, offset, value),), _number)


STRING_VERBS = [
    Verb("get", 2, _READS, _ONE, "string", "1.0.0", "Returns the string value of a key.", _get),
    Verb("mget", -2, _READS, _ALL, "string", "1.0.0",
         "Returns the string values of one or more keys.", _mget),
    Verb("strlen", 2, _READS, _ONE, "string", "2.2.0", "Returns the length of a value.", _strlen),
    Verb("getrange", 4, _SLOW_READS, _ONE, "string", "2.4.0",
         "Returns a part of the string of a key.", _getrange),
    Verb("substr", 4, _SLOW_READS, _ONE, "string", "1.0.0",
         "Returns a part of the string of a key.", _getrange),
    Verb("lcs", -3, _SLOW_READS, _TWO, "string", "7.0.0",
         "Finds the longest common subsequence of two strings.", lcs),
    Verb("set", -3, _SLOW_WRITES, _ONE, "string", "1.0.0",
         "Sets the string value of a key, whatever it had.", _set),
    Verb("setnx", 3, _WRITES, _ONE, "string", "1.0.0",
         "Sets the string value of a key that doesn't exist.", _setnx),
    Verb("setex", 4, _SLOW_WRITES, _ONE, "string", "2.0.0",
         "Sets the string value and expiration time of a key.", _setex),
    Verb("psetex", 4, _SLOW_WRITES, _ONE, "string", "2.6.0",
         "Sets the string value and expiration time in milliseconds of a key.", _psetex),
    Verb("getset", 3, _WRITES, _ONE, "string", "1.0.0",
         "Returns the string value of a key after setting another one.", _getset),
    Verb("getdel", 2, _REMOVES, _ONE, "string", "6.2.0",
         "Returns the string value of a key after deleting it.", _getdel),
    Verb("getex", -2, _REMOVES, _ONE, "string", "6.2.0",
         "Returns the string value of a key after setting its expiration time.", _getex),
    Verb("mset", -3, _SLOW_WRITES, _PAIRS, "string", "1.0.1",
         "Sets the string values of one or more keys at once.", _mset),
    Verb("msetnx", -3, _SLOW_WRITES, _PAIRS, "string", "1.0.1",
         "Sets the string values of one or more keys at once, if none of them exists.", _msetnx),
    Verb("incr", 2, _WRITES, _ONE, "string", "1.0.0", "Increments the integer of a key.", _incr),
    Verb("decr", 2, _WRITES, _ONE, "string", "1.0.0", "Decrements the integer of a key.", _decr),
    Verb("incrby", 3, _WRITES, _ONE, "string", "1.0.0",
         "Increments the integer of a key by a number.", _incrby),
    Verb("decrby", 3, _WRITES, _ONE, "string", "1.0.0",
         "Decrements the integer of a key by a number.", _decrby),
    Verb("incrbyfloat", 3, _WRITES, _ONE, "string", "2.6.0",
         "Increments the floating-point number of a key by a number.", _incrbyfloat),
    Verb("append", 3, _WRITES, _ONE, "string", "2.0.0",
         "Appends a string to the value of a key.", _append),
    Verb("setrange", 4, _SLOW_WRITES, _ONE, "string", "2.2.0",
         "Overwrites a part of the string of a key.", _setrange),
]  # fmt: skip
