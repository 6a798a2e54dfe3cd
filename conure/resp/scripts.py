"""EVAL, EVALSHA and SCRIPT for scripts that are known: by their SHA-1, and by what they mean; and
FUNCTION, for there are no functions.

Nothing interprets Lua here. A script of a library in the table stands for steps, which are done in
one entry of the log, as Redis does a script in one go; what it replies is what Redis would. Any
other script is refused by an error that says so. Known scripts need no loading, and no FLUSH
forgets them.

A digest is that of the very text which its library sends: another release of a library may send
another one. Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha1
from typing import Final, NamedTuple

from conure.resp import words
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError, Verb
from conure.steps import (
    WHEN_ABSENT,
    WHEN_EXISTS,
    Add,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Life,
    Limit,
    Look,
    Obstacle,
    Read,
    Step,
    When,
    Write,
)

__all__ = ["KNOWN", "SCRIPT_VERBS", "Script"]

Words = Sequence[bytes]
_DIGEST_WORD = 40  # bytes of a digest in hexadecimal
_NO_SCRIPT = "NOSCRIPT No matching script. Please use EVAL."
_UNKNOWN = (
    "ERR this script is not one of those that ConureDB knows by their SHA-1: it runs no Lua; send "
    "the commands in MULTI and EXEC"
)


class Script(NamedTuple):
    """A known script: whose it is, how many keys (0: any number) and arguments it takes, and the
    plan of a call."""

    name: str
    keys: int
    arguments: int
    plan: Callable[[Words, Words, Context], Plan]


# -- replies -------------------------------------------------------------------------------------


def _nil(_: Sequence[Done], replies: Replies) -> None:
    replies.null()


def _count(done: Sequence[Done], replies: Replies) -> None:
    """Reply how many records were there and had the token."""
    if not words.reply_error(done, replies):
        replies.integer(sum(each.existed and not each.obstacle for each in done))


def _one_if_done(done: Sequence[Done], replies: Replies) -> None:
    (one,) = done
    if one.obstacle is Obstacle.NO_KEY or not words.reply_error(done, replies):
        replies.integer(int(not one.obstacle))


def _sum_then_expiry(done: Sequence[Done], replies: Replies) -> None:
    """Reply with the sum of an addition, whatever its key's expiry came to."""
    if not words.reply_error(done, replies):
        replies.integer(done[0].number)


# -- locks ---------------------------------------------------------------------------------------


def _release(keys: Words, given: Words, _: Context) -> Plan:
    """Remove the keys whose value is the token; reply how many."""
    return Plan(tuple(Erase(key, _is(given[0])) for key in keys), _count)


def _extend(keys: Words, given: Words, context: Context) -> Plan:
    """Of a lock with an expiry, set that, or add to it if the last word is 0."""
    life = Life.LONGER if given[2] == b"0" else Life.TTL
    expiry = Expiry(life, _milliseconds(given[1], context))
    lapse = Lapse(keys[0], expiry, _is(given[0]), Limit.HAS_ONE)
    return Plan((lapse,), _one_if_done)


def _renew(keys: Words, given: Words, context: Context) -> Plan:
    """Set when the key expires if its value is the token."""
    expiry = Expiry(Life.TTL, _milliseconds(given[1], context))
    return Plan((Lapse(keys[0], expiry, _is(given[0])),), _one_if_done)


def _time_held(keys: Words, given: Words, _: Context) -> Plan:
    """Reply how many milliseconds the key has left if its value is the token, else 0."""
    return Plan((Check(keys[0], _is(given[0]), 1), Look(keys[0])), _left_or_0)


def _left_or_0(done: Sequence[Done], replies: Replies) -> None:
    replies.integer(max(0, done[1].left))


def _acquire_all(keys: Words, given: Words, context: Context) -> Plan:
    """Set all keys to the token, if none of them is there; reply how many."""
    return _set_all(keys, given, WHEN_ABSENT, context)


def _extend_all(keys: Words, given: Words, context: Context) -> Plan:
    """Set all keys to the token again, if all of them have it; reply how many."""
    return _set_all(keys, given, _is(given[0]), context)


def _set_all(keys: Words, given: Words, condition: Condition, context: Context) -> Plan:
    expiry = words.expiry_of(given[1], words.EXPIRIES[b"PX"], "set", context.now)
    token = words.value(given[0], context)
    rest = 2 * len(keys)
    checks = [Check(key, condition, rest - n) for n, key in enumerate(keys, 1)]
    writes = [Write(key, token, expiry=expiry) for key in keys]
    return Plan((*checks, *writes), _half_if_done)


def _half_if_done(done: Sequence[Done], replies: Replies) -> None:
    """Reply how many keys there are, each of which has a check and a write; 0 if none was set."""
    if not done or done[-1].obstacle is Obstacle.SKIPPED:
        replies.integer(0)
    elif not words.reply_error(done, replies):
        replies.integer(len(done) // 2)


# -- counters ------------------------------------------------------------------------------------


def _count_in_window(keys: Words, given: Words, context: Context) -> Plan:
    """Add an amount; what is the amount by then was no counter before, and expires in seconds."""
    amount = words.integer(given[1])
    seconds = words.expiry_at(words.integer(given[0]), words.EXPIRIES[b"EX"], "expire", context.now)
    lapse = Lapse(keys[0], seconds, _is(b"%d" % amount))
    return Plan((Add(keys[0], amount), lapse), _sum_then_expiry)


def _count_and_left(keys: Words, given: Words, context: Context) -> Plan:
    """Add points to a counter, which expires in seconds from its first one; reply with the sum and
    the milliseconds that are left."""
    key = keys[0]
    seconds = words.expiry_of(given[1], words.EXPIRIES[b"EX"], "set", context.now)
    steps: tuple[Step, ...] = (
        Write(key, b"0", WHEN_ABSENT, seconds),
        Add(key, words.integer(given[0])),
        Lapse(key, seconds, limit=Limit.HAS_NONE),
        Look(key),
    )
    return Plan(steps, _sum_and_left)


def _sum_and_left(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.array_of(2)
        replies.integer(done[1].number)
        replies.integer(done[-1].left)


def _hit(keys: Words, given: Words, context: Context) -> Plan:
    """Count a hit; a counter that is due or never expires begins anew. Reply with the hits and the
    milliseconds that are left."""
    key = keys[0]
    window = words.expiry_of(given[0], words.EXPIRIES[b"PX"], "set", context.now)
    steps: tuple[Step, ...] = (
        Check(key, Condition(When.EXPIRES), 1),
        Add(key, 1),
        Write(key, b"1", Condition(When.LASTS), window),
        Look(key),
    )
    return Plan(steps, _hits_and_left)


def _hits_and_left(done: Sequence[Done], replies: Replies) -> None:
    check, add, write, look = done
    if not words.reply_error((check, write) if check.obstacle else (add,), replies):
        replies.array_of(2)
        replies.integer(1 if check.obstacle else add.number)
        replies.integer(look.left)


def _hits(keys: Words, _: Words, __: Context) -> Plan:
    """Reply with the value of a counter and the milliseconds that are left."""
    return Plan((Read(keys[0]),), _value_and_left)


def _value_and_left(done: Sequence[Done], replies: Replies) -> None:
    if not words.reply_error(done, replies):
        replies.array_of(2)
        replies.bulk(done[0].value)
        replies.integer(done[0].left if done[0].existed else -2)


def _add_if_there(keys: Words, given: Words, _: Context) -> Plan:
    """Add to a counter that is there; reply with the sum, or with nothing."""
    add = Add(keys[0], words.integer(given[0]))
    return Plan((Check(keys[0], WHEN_EXISTS, 1), add), _sum_or_nil)


def _sum_or_nil(done: Sequence[Done], replies: Replies) -> None:
    if done[0].obstacle:
        replies.null()
    else:
        _sum_then_expiry(done[1:], replies)


def _add(keys: Words, given: Words, _: Context) -> Plan:
    return Plan((Add(keys[0], words.integer(given[0])),), _sum_then_expiry)


def _nothing(_: Words, __: Words, ___: Context) -> Plan:
    return Plan((), _nil)


def _is(token: bytes) -> Condition:
    return Condition(When.EQUAL, token)


def _milliseconds(word: bytes, context: Context) -> int:
    number = words.integer(word)
    return words.expiry_at(number, words.EXPIRIES[b"PX"], "pexpire", context.now).time


KNOWN: Final[Mapping[bytes, Script]] = {
    bytes.fromhex(digest): script
    for digest, script in {
        "c3f8721cbb97f72bc19e972846bd7aaf91901658": Script("redis-py, release", 1, 1, _release),
        "a4e8783852e6b949f9ef3a97212805108459a890": Script("redis-py, extend", 1, 3, _extend),
        "1cac51482acf5858da00f6d685d68f886cd6b6b2": Script("redis-py, reacquire", 1, 2, _renew),
        "4e92fdc63815b3a0a2dd1c1df3694de73607c88d": Script("redlock-py, unlock", 1, 1, _release),
        "f5f7bd3a3aa4a63c507c1155c5ea1219b350d992": Script("pottery, acquired", 1, 1, _time_held),
        "ba015a80261b616e7a62d35df0b8e3edbe6c9414": Script("pottery, extend", 1, 2, _renew),
        "a4aada0b36710970eedaaaeec4a6b7d8c78c4f80": Script("pottery, release", 1, 1, _release),
        "e5a322e2634ef59a516e8ea150cb085afafee684": Script("redlock 4, lock", 0, 2, _acquire_all),
        "0f0f23b9048b36752b5be114f357ba083449f908": Script("redlock 4, unlock", 0, 1, _release),
        "ce46f80993d5dac20dd066eb301a4e37994bdbed": Script("redlock 4, extend", 0, 2, _extend_all),
        "96da70f7716f27d278a5218544df37fd8b0a5e4c": Script("redlock 5, lock", 0, 2, _acquire_all),
        "e4612211c9f8f51c257e26e056b0a654b3187242": Script("redlock 5, unlock", 0, 1, _release),
        "aed6f382e410db8ba7926d4e5e9aab410bf2a78a": Script("redlock 5, extend", 0, 2, _extend_all),
        "628bd136a573a06b346879695681af12ccef300f": Script("limits, hit", 1, 2, _count_in_window),
        "f4a7da3e5d8ea3b46642af08427151cae0190400": Script("django-redis", 1, 1, _add_if_there),
        "4d15273b16b10c15e1d9202cbe93c959ab7d250b": Script("django-redis", 1, 1, _add),
        "a1de965f42e177aa339706bd580f049065eca79a": Script(
            "rate-limiter-flexible", 1, 2, _count_and_left
        ),
        "895b92e1712734e1b464999be23953485475357b": Script("rate-limit-redis, hit", 1, 1, _hit),
        "6aeb97ed6086dcdeafdc6fda3999a0d0e38ec96a": Script("rate-limit-redis, get", 1, 0, _hits),
        # ``return``, by which clients see whether there are scripts.
        "63143b6f8007b98c53ca2149822777b3566f9241": Script("return", 0, 0, _nothing),
    }.items()
}
"""By the SHA-1 of its text."""


# -- commands ------------------------------------------------------------------------------------


def _eval(given: Words, context: Context) -> Plan:
    count = _count_of_keys(given)
    script = KNOWN.get(sha1(given[0], usedforsecurity=False).digest())
    if script is None:
        raise ReplyError(_UNKNOWN)
    return _call(script, count, given[2:], context)


def _evalsha(given: Words, context: Context) -> Plan:
    if len(given[0]) != _DIGEST_WORD:
        raise ReplyError(_NO_SCRIPT)
    count = _count_of_keys(given)
    script = _known(given[0])
    if script is None:
        raise ReplyError(_NO_SCRIPT)
    return _call(script, count, given[2:], context)


def _count_of_keys(given: Words) -> int:
    """Return how many of the words behind the script and this number are keys."""
    count = words.integer(given[1])
    if count > len(given) - 2:
        raise ReplyError("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise ReplyError("ERR Number of keys can't be negative")
    return count


def _call(script: Script, count: int, given: Words, context: Context) -> Plan:
    keys, arguments = words.keys(given[:count]), given[count:]
    if script.keys > count or script.arguments > len(arguments):
        raise ReplyError(f"ERR the script of {script.name} takes more keys or arguments")
    return script.plan(keys, arguments, context)


def _known(digest: bytes) -> Script | None:
    try:
        return KNOWN.get(bytes.fromhex(digest.decode("ascii")))
    except ValueError:
        return None


def _load(given: Words, _: Context) -> Plan:
    digest = sha1(given[0], usedforsecurity=False)
    if digest.digest() not in KNOWN:
        raise ReplyError(_UNKNOWN)
    name = digest.hexdigest().encode()
    return Plan((), lambda _, replies: replies.bulk(name))


def _exists(given: Words, _: Context) -> Plan:
    found = [int(_known(digest) is not None) for digest in given]

    def reply(_: Sequence[Done], replies: Replies) -> None:
        replies.array_of(len(found))
        for each in found:
            replies.integer(each)

    return Plan((), reply)


def _flush(given: Words, _: Context) -> Plan:
    return _flushed("SCRIPT FLUSH only support", given)


def _flush_functions(given: Words, _: Context) -> Plan:
    return _flushed("FUNCTION FLUSH only supports", given)


def _flushed(only: str, given: Words) -> Plan:
    if len(given) > 1 or (given and given[0].upper() not in (b"SYNC", b"ASYNC")):
        raise ReplyError(f"ERR {only} SYNC|ASYNC option")
    return Plan((), lambda _, replies: replies.ok())


_EVAL = frozenset({"noscript", "stale", "skip_monitor", "movablekeys"})
_SCRIPT = frozenset({"noscript"})
_ANY = (0, 0, 0)

SCRIPT_VERBS = [
    Verb("eval", -3, _EVAL, _ANY, "scripting", "2.6.0", "Does what a known script means.", _eval),
    Verb("evalsha", -3, _EVAL, _ANY, "scripting", "2.6.0",
         "Does what a known script means, by its SHA-1.", _evalsha),
    Verb("script load", 3, _SCRIPT, _ANY, "scripting", "2.6.0",
         "Returns the SHA-1 of a known script.", _load),
    Verb("script exists", -3, _SCRIPT, _ANY, "scripting", "2.6.0",
         "Tells which scripts are known.", _exists),
    Verb("script flush", -2, _SCRIPT, _ANY, "scripting", "2.6.0",
         "Forgets nothing: known scripts stay so.", _flush),
    Verb("function flush", -2, _SCRIPT, _ANY, "scripting", "7.0.0",
         "Does nothing: there are no functions.", _flush_functions),
]  # fmt: skip
