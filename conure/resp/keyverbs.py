"""The commands of keys, whatever their values are: what each asks of the store, and its answer.

Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from conure.resp import words
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError, Verb
from conure.steps import (
    FOREVER,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Limit,
    Look,
    Move,
    Obstacle,
    When,
)

__all__ = ["KEY_VERBS"]

Words = Sequence[bytes]

_READS = frozenset({"readonly", "fast"})
_WRITES = frozenset({"write", "fast"})
_SLOW_WRITES = frozenset({"write"})
_ONE, _ALL, _TWO = (1, 1, 1), (1, -1, 1), (1, 2, 1)
_LIMITS = {
    b"NX": Limit.HAS_NONE,
    b"XX": Limit.HAS_ONE,
    b"GT": Limit.LATER,
    b"LT": Limit.EARLIER,
}


# -- replies -------------------------------------------------------------------------------------


def _count(done: Sequence[Done], replies: Replies) -> None:
    """Reply how many of the keys were there, and not spared by a condition."""
    if not words.reply_error(done, replies):
        replies.integer(sum(each.existed and not each.obstacle for each in done))


def _one_if_done(done: Sequence[Done], replies: Replies) -> None:
    """Reply whether the step was done; a key that isn't there is no error."""
    (one,) = done
    if one.obstacle is Obstacle.NO_KEY or not words.reply_error(done, replies):
        replies.integer(int(not one.obstacle))


def _one_if_moved(done: Sequence[Done], replies: Replies) -> None:
    """Reply whether the record was moved; there has to be one."""
    if not words.reply_error(done, replies):
        replies.integer(int(not done[0].obstacle))


def _ok(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.ok()


def _type(done: Sequence[Done], replies: Replies) -> None:
    replies.simple(b"string" if done[0].existed else b"none")


def _time(of: Callable[[Done], int], unit: int, done: Sequence[Done], replies: Replies) -> None:
    """Reply with a time in a unit of milliseconds; -1: it lives for ever, -2: there is no key."""
    (one,) = done
    if not one.existed:
        replies.integer(-2)
    elif not one.expiry:
        replies.integer(-1)
    else:
        replies.integer((of(one) + unit // 2) // unit)


def _left(done: Done) -> int:
    return done.left


def _end(done: Done) -> int:
    return done.expiry


# -- commands ------------------------------------------------------------------------------------


def _del(given: Words, _: Context) -> Plan:
    return Plan(tuple(map(Erase, words.keys(given))), _count)


def _delex(given: Words, _: Context) -> Plan:
    name = words.key(given[0])
    if len(given) == 1:
        return Plan((Erase(name),), _count)
    if len(given) != 3:
        raise words.wrong_arity("delex")
    when = {b"IFEQ": When.EQUAL, b"IFNE": When.DIFFERS}.get(given[1].upper())
    if when is None:
        raise ReplyError("ERR Invalid condition. Use IFEQ or IFNE")
    return Plan((Erase(name, Condition(when, given[2])),), _count)


def _exists(given: Words, _: Context) -> Plan:
    return Plan(tuple(map(Look, words.keys(given))), _count)


def _type_of(given: Words, _: Context) -> Plan:
    return Plan((Look(words.key(given[0])),), _type)


def _times(of: Callable[[Done], int], unit: int, given: Words, _: Context) -> Plan:
    return Plan((Look(words.key(given[0])),), partial(_time, of, unit))


def _expire(command: str, option: bytes, given: Words, context: Context) -> Plan:
    limit = Limit.NONE
    for word in given[2:]:
        if word.upper() not in _LIMITS:
            raise ReplyError(f"ERR Unsupported option {word.decode('utf-8', 'surrogateescape')}")
        limit |= _LIMITS[word.upper()]
    if Limit.HAS_NONE in limit and limit != Limit.HAS_NONE:
        raise ReplyError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if Limit.LATER in limit and Limit.EARLIER in limit:
        raise ReplyError("ERR GT and LT options at the same time are not compatible")
    number = words.integer(given[1])
    expiry = words.expiry_at(number, words.EXPIRIES[option], command, context.now)
    return _lapse(given[0], expiry, limit)


def _persist(given: Words, _: Context) -> Plan:
    return _lapse(given[0], FOREVER, Limit.NONE)


def _lapse(name: bytes, expiry: Expiry, limit: Limit) -> Plan:
    return Plan((Lapse(words.key(name), expiry, limit=limit),), _one_if_done)


def _rename(given: Words, _: Context) -> Plan:
    return Plan((Move(words.key(given[0]), words.key(given[1])),), _ok)


def _renamenx(given: Words, _: Context) -> Plan:
    move = Move(words.key(given[0]), words.key(given[1]), replaces=False)
    return Plan((move,), _one_if_moved)


def _copy(given: Words, _: Context) -> Plan:
    name, target, *rest = given
    found = words.options(rest, {b"DB": True, b"REPLACE": False}, numbers=(b"DB",))
    if words.integer(found.get(b"DB", b"0")):
        raise ReplyError("ERR DB index is out of range")
    if name == target:
        raise ReplyError("ERR source and destination objects are the same")
    move = Move(words.key(name), words.key(target), b"REPLACE" in found, copies=True)
    return Plan((move,), _one_if_done)


def _expiring(name: str, option: bytes, since: str, summary: str) -> Verb:
    plan = partial(_expire, name, option)
    return Verb(name, -3, _WRITES, _ONE, "generic", since, summary, plan)


def _telling(name: str, of: Callable[[Done], int], unit: int, since: str, summary: str) -> Verb:
    return Verb(name, 2, _READS, _ONE, "generic", since, summary, partial(_times, of, unit))


KEY_VERBS = [
    Verb("del", -2, _SLOW_WRITES, _ALL, "generic", "1.0.0", "Deletes one or more keys.", _del),
    Verb("unlink", -2, _WRITES, _ALL, "generic", "4.0.0", "Deletes one or more keys.", _del),
    Verb("delex", -2, _WRITES, _ONE, "string", "8.4.0",
         "Deletes a key whose value is, or isn't, another one.", _delex),
    Verb("exists", -2, _READS, _ALL, "generic", "1.0.0",
         "Tells how many of the keys exist.", _exists),
    Verb("touch", -2, _READS, _ALL, "generic", "3.2.1",
         "Tells how many of the keys exist.", _exists),
    Verb("type", 2, _READS, _ONE, "generic", "1.0.0",
         "Tells the type of the value of a key.", _type_of),
    _expiring("expire", b"EX", "1.0.0", "Sets the expiration time of a key in seconds."),
    _expiring("pexpire", b"PX", "2.6.0", "Sets the expiration time of a key in milliseconds."),
    _expiring("expireat", b"EXAT", "1.2.0",
              "Sets the expiration time of a key to a Unix timestamp."),
    _expiring("pexpireat", b"PXAT", "2.6.0",
              "Sets the expiration time of a key to a Unix timestamp in milliseconds."),
    _telling("ttl", _left, 1000, "1.0.0", "Returns the seconds that a key has left."),
    _telling("pttl", _left, 1, "2.6.0", "Returns the milliseconds that a key has left."),
    _telling("expiretime", _end, 1000, "7.0.0",
             "Returns the expiration time of a key as a Unix timestamp."),
    _telling("pexpiretime", _end, 1, "7.0.0",
             "Returns the expiration time of a key as a Unix timestamp in milliseconds."),
    Verb("persist", 2, _WRITES, _ONE, "generic", "2.2.0",
         "Removes the expiration time of a key.", _persist),
    Verb("rename", 3, _SLOW_WRITES, _TWO, "generic", "1.0.0",
         "Renames a key, over the one there is.", _rename),
    Verb("renamenx", 3, _WRITES, _TWO, "generic", "1.0.0",
         "Renames a key unless the target exists.", _renamenx),
    Verb("copy", -3, frozenset({"write", "denyoom"}), _TWO, "generic", "6.2.0",
         "Copies the value of a key to another one.", _copy),
]  # fmt: skip
