"""The table of data commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from conure.resp.numbers import parse_integer
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError, Verb
from conure.steps import WHEN_ABSENT, WHEN_EXISTS, Add, Done, Erase, Obstacle, Read, Write

__all__ = ["VERBS"]


def _get(words: Sequence[bytes], context: Context) -> Plan:
    del context
    return Plan((Read(words[0]),), lambda done, replies: replies.bulk(done[0].value))


def _mget(words: Sequence[bytes], context: Context) -> Plan:
    del context

    def reply(done: Sequence[Done], replies: Replies) -> None:
        replies.array_of(len(done))
        replies.bulks(each.value for each in done)

    return Plan(tuple(map(Read, words)), reply)


def _set(words: Sequence[bytes], context: Context) -> Plan:
    del context
    step = Write(words[0], words[1])
    match [word.upper() for word in words[2:]]:
        case []:
            pass
        case [b"NX"]:
            step = step._replace(condition=WHEN_ABSENT)
        case [b"XX"]:
            step = step._replace(condition=WHEN_EXISTS)
        case _:
            raise ReplyError("ERR syntax error")

    def reply(done: Sequence[Done], replies: Replies) -> None:
        if done[0].obstacle is Obstacle.NONE:
            replies.ok()
        else:
            replies.null()

    return Plan((step,), reply)


def _mset(words: Sequence[bytes], context: Context) -> Plan:
    del context
    if len(words) % 2:
        raise ReplyError("ERR wrong number of arguments for 'mset' command")
    steps = tuple(map(Write, words[::2], words[1::2]))
    return Plan(steps, lambda _, replies: replies.ok())


def _del(words: Sequence[bytes], context: Context) -> Plan:
    del context
    return Plan(
        tuple(map(Erase, words)),
        lambda done, replies: replies.integer(sum(each.existed for each in done)),
    )


def _incrby(words: Sequence[bytes], context: Context) -> Plan:
    del context
    by = parse_integer(words[1]) if len(words) > 1 else 1
    if by is None:
        raise ReplyError("ERR value is not an integer or out of range")

    def reply(done: Sequence[Done], replies: Replies) -> None:
        match done[0].obstacle:
            case Obstacle.NONE:
                replies.integer(done[0].number)
            case Obstacle.OVERFLOW:
                replies.error("ERR increment or decrement would overflow")
            case _:
                replies.error("ERR value is not an integer or out of range")

    return Plan((Add(words[0], by),), reply)


_READ: Final = frozenset({"readonly", "fast"})
_WRITE: Final = frozenset({"write", "denyoom"})
_TABLE = (
    Verb("GET", 2, _READ, (1, 1, 1), "string", "1.0.0", "Returns a value.", _get),
    Verb("MGET", -2, _READ, (1, -1, 1), "string", "1.0.0", "Returns values.", _mget),
    Verb("SET", -3, _WRITE, (1, 1, 1), "string", "1.0.0", "Sets a value.", _set),
    Verb("MSET", -3, _WRITE, (1, -1, 2), "string", "1.0.1", "Sets values.", _mset),
    Verb("DEL", -2, _WRITE, (1, -1, 1), "generic", "1.0.0", "Deletes keys.", _del),
    Verb("INCR", 2, _WRITE, (1, 1, 1), "string", "1.0.0", "Adds one.", _incrby),
    Verb("INCRBY", 3, _WRITE, (1, 1, 1), "string", "1.0.0", "Adds a number.", _incrby),
)
VERBS: Mapping[str, Verb] = {verb.name: verb for verb in _TABLE}
