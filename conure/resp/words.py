"""The words of data commands, read and checked, and the errors that data commands are answered by.

All texts are those of Redis 7, which clients compare, but where Redis has no such limit. Nothing
here has state: any thread may call anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from conure.commands import MAX_KEY_BYTES
from conure.resp.numbers import parse_integer
from conure.resp.replies import Replies
from conure.resp.verb import Context, ReplyError
from conure.steps import Done, Expiry, Life, Obstacle

__all__ = [
    "EXPIRIES",
    "MOST",
    "SYNTAX",
    "TOO_MUCH",
    "ExpiryWord",
    "expiry_at",
    "expiry_of",
    "integer",
    "key",
    "keys",
    "options",
    "reply_error",
    "value",
    "values",
    "wrong_arity",
]

LEAST, MOST = -(1 << 63), (1 << 63) - 1
SYNTAX: Final = "ERR syntax error"
_NOT_AN_INTEGER = "ERR value is not an integer or out of range"
TOO_MUCH: Final = (
    "ERR one command or transaction may not read or write so much; ask for less at once"
)
_OBSTACLES: Final = {
    Obstacle.NO_KEY: "ERR no such key",
    Obstacle.NOT_AN_INTEGER: _NOT_AN_INTEGER,
    Obstacle.OVERFLOW: "ERR increment or decrement would overflow",
    Obstacle.NOT_A_FLOAT: "ERR value is not a valid float",
    Obstacle.NOT_FINITE: "ERR increment would produce NaN or Infinity",
    Obstacle.TOO_LONG: "ERR string exceeds maximum allowed size (max_value_bytes)",
    Obstacle.TOO_MUCH: TOO_MUCH,
    Obstacle.SKIPPED: TOO_MUCH,
}


class ExpiryWord:
    """An option that says when a key expires: how its number counts, and in which unit."""

    __slots__ = ("life", "milliseconds")

    def __init__(self, life: Life, milliseconds: int) -> None:
        self.life = life
        self.milliseconds = milliseconds


EXPIRIES: Final = {
    b"EX": ExpiryWord(Life.TTL, 1000),
    b"PX": ExpiryWord(Life.TTL, 1),
    b"EXAT": ExpiryWord(Life.AT, 1000),
    b"PXAT": ExpiryWord(Life.AT, 1),
}


def key(word: bytes) -> bytes:
    """Return the key that a word is. Raises ReplyError."""
    if not 0 < len(word) <= MAX_KEY_BYTES:
        raise ReplyError(f"ERR a key has 1 to {MAX_KEY_BYTES:,} bytes, and this one {len(word):,}")
    return word


def keys(words: Sequence[bytes]) -> Sequence[bytes]:
    """Return the keys that words are. Raises ReplyError."""
    sizes = [*map(len, words)]
    if sizes and not 0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES:
        for word in words:
            key(word)
    return words


def value(word: bytes, context: Context) -> bytes:
    """Return the value that a word is. Raises ReplyError."""
    longest = context.limits.value_bytes
    if len(word) > longest:
        raise ReplyError(
            f"ERR string exceeds maximum allowed size ({longest:,} bytes, max_value_bytes)"
        )
    return word


def values(words: Sequence[bytes], context: Context) -> Sequence[bytes]:
    """Return the values that words are. Raises ReplyError."""
    if words and max(map(len, words)) > context.limits.value_bytes:
        value(max(words, key=len), context)
    return words


def integer(word: bytes) -> int:
    """Return the whole number of 64 bits that a word is. Raises ReplyError."""
    number = parse_integer(word)
    if number is None:
        raise ReplyError(_NOT_AN_INTEGER)
    return number


def expiry_of(word: bytes, how: ExpiryWord, command: str, now: int) -> Expiry:
    """Return the expiry that an option of a command says. Raises ReplyError unless it is more than
    0, and in time."""
    number = integer(word)
    if number <= 0:
        raise invalid_expiry(command)
    return expiry_at(number, how, command, now)


def expiry_at(number: int, how: ExpiryWord, command: str, now: int) -> Expiry:
    """Return the expiry of a number, which may be over. Raises ReplyError if no time is so far."""
    milliseconds = number * how.milliseconds
    base = now if how.life is Life.TTL else 0
    if not LEAST <= milliseconds <= MOST - base:
        raise invalid_expiry(command)
    return Expiry(how.life, milliseconds)


def invalid_expiry(command: str) -> ReplyError:
    """Return the error for a time that no key can expire at."""
    return ReplyError(f"ERR invalid expire time in '{command}' command")


def options(
    words: Sequence[bytes],
    known: Mapping[bytes, bool],
    apart: Collection[Collection[bytes]] = (),
    numbers: Collection[bytes] = (),
) -> dict[bytes, bytes]:
    """Return the options among words, in capitals, each with the word after it if *known* says that
    it has one, else b"". An option may stand there twice, but not beside another one of the same
    group of *apart*; those of *numbers* have to be whole ones each time. Raises ReplyError."""
    found: dict[bytes, bytes] = {}
    rest = iter(words)
    for word in rest:
        name = word.upper()
        if name not in known:
            raise ReplyError(SYNTAX)
        given = next(rest, None) if known[name] else b""
        if given is None:
            raise ReplyError(SYNTAX)
        if name in numbers:
            integer(given)
        found[name] = given
        for group in apart:
            if name in group and sum(each in found for each in group) > 1:
                raise ReplyError(SYNTAX)
    return found


def wrong_arity(command: str) -> ReplyError:
    """Return the error for words that can't be so many."""
    return ReplyError(f"ERR wrong number of arguments for '{command}' command")


def reply_error(done: Sequence[Done], replies: Replies) -> bool:
    """Write the error of the first step that met an obstacle, unless that is a condition that was
    not met; tell whether there is one."""
    for each in done:
        if each.obstacle and each.obstacle is not Obstacle.UNMET:
            replies.error(_OBSTACLES[each.obstacle])
            return True
    return False
