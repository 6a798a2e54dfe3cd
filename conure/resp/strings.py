"""GET, SET and MSET of plain keys, as fast as can be: runs of GETs and SETs go to the service
column by column, and those of clients that have no other command under way together (lone.py); an
MSET becomes the bytes of its entry without a step for each key.

What else they may be asked for, keys that can't be and values that are too long are left to the
verbs (verb.py), which know what to say. The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import TypeVar

from conure.commands import MAX_KEY_BYTES, Committed
from conure.errors import ConureError
from conure.resp import words as checked
from conure.resp.connection import RespConnection
from conure.resp.failures import error_text
from conure.resp.grammar import Run
from conure.resp.lone import Lone, LoneGets, LonePuts
from conure.resp.replies import OK, Replies
from conure.resp.table import Handler
from conure.resp.waiters import Gets, Pending, Puts
from conure.service.freshness import LINEARIZABLE
from conure.service.limits import STEPS_AT_ONCE, Limits
from conure.service.requests import Desk

__all__ = ["PlainGets", "PlainMsets", "PlainSets"]

_obstacle_of = itemgetter(0)

_Asked = TypeVar("_Asked")


class PlainGets:
    """The fast way of GET; *otherwise* does what is left."""

    def __init__(self, desk: Desk[Pending], otherwise: Handler) -> None:
        self._desk = desk
        self._otherwise = otherwise
        self._lone: LoneGets | None = None  # of a round

    def get(self, client: RespConnection, words: list[bytes]) -> None:
        """Read one key."""
        key = words[1]
        if not 0 < len(key) <= MAX_KEY_BYTES:
            self._otherwise(client, words)
            return
        session = client.session
        pending = Gets(client, 1, session.protocol)
        try:
            self._desk.get(pending, key, session.freshness)
        except ConureError as error:
            client.fail(error_text(error))
        else:
            client.begin(pending)

    def get_alone(self, client: RespConnection, words: list[bytes]) -> None:
        """Read one key, while nothing else of its client is under way."""
        key = words[1]
        if client.session.freshness is not LINEARIZABLE or not 0 < len(key) <= MAX_KEY_BYTES:
            self.get(client, words)
            return
        lone = self._lone
        if lone is None or lone.started != client.reactor.now:
            lone = self._lone = LoneGets(client)
        _join(lone, client, self._desk.get, key)

    def get_all(self, client: RespConnection, run: Run) -> None:
        """Read the keys of a run."""
        keys = run.columns[0]
        sizes = list(map(len, keys))
        if 0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES:
            session = client.session
            pending = Gets(client, run.size, session.protocol)
            with suppress(ConureError):  # some keys are refused, and none is taken
                self._desk.get_all(pending, keys, session.freshness)
                client.begin(pending)
                return
        for key in keys:
            self.get(client, [run.name, key])


class PlainSets:
    """The fast way of SET; *otherwise* does what is left."""

    def __init__(self, desk: Desk[Pending], limits: Limits, otherwise: Handler) -> None:
        self._desk = desk
        self._longest = limits.value_bytes
        self._otherwise = otherwise
        self._lone: LonePuts | None = None  # of a round

    def put(self, client: RespConnection, words: list[bytes]) -> None:
        """Set one key, if nothing else is asked for."""
        if len(words) != 3 or not self._can_put(words[1], words[2]):
            self._otherwise(client, words)
            return
        pending = Puts(client, 1)
        try:
            self._desk.write(pending, (words[1], words[2]))
        except ConureError as error:
            client.fail(error_text(error))
        else:
            client.begin(pending)

    def put_alone(self, client: RespConnection, words: list[bytes]) -> None:
        """Set one key, while nothing else of its client is under way."""
        _, key, value = words
        if not 0 < len(key) <= MAX_KEY_BYTES or len(value) > self._longest:
            self._otherwise(client, words)
            return
        lone = self._lone
        if lone is None or lone.started != client.reactor.now:
            lone = self._lone = LonePuts(client)
        _join(lone, client, self._desk.write, (key, value))

    def put_all(self, client: RespConnection, run: Run) -> None:
        """Set the keys of a run."""
        columns = run.columns
        if len(columns) == 2:
            keys, values = columns
            if _are_plain(keys, values, self._longest):
                pending = Puts(client, run.size)
                with suppress(ConureError):  # some keys are refused, and none is taken
                    self._desk.write_all(pending, list(zip(keys, values, strict=True)))
                    client.begin(pending)
                    return
        for words in zip(*columns, strict=True):
            self.put(client, [run.name, *words])

    def _can_put(self, key: bytes, value: bytes) -> bool:
        return 0 < len(key) <= MAX_KEY_BYTES and len(value) <= self._longest


class PlainMsets:
    """The fast way of MSET; *otherwise* does what is left."""

    def __init__(self, desk: Desk[Pending], limits: Limits, otherwise: Handler) -> None:
        self._desk = desk
        self._longest = limits.value_bytes
        self._otherwise = otherwise

    def put(self, client: RespConnection, words: list[bytes]) -> None:
        """Set all keys as one entry of the log, if they are few, and each is there once."""
        keys, values = words[1::2], words[2::2]
        count = len(keys)
        if not (
            count == len(values) <= STEPS_AT_ONCE
            and _are_plain(keys, values, self._longest)
            and len(set(keys)) == count
        ):
            self._otherwise(client, words)
            return
        pending = _PutTogether(client)
        try:
            self._desk.write_together(pending, keys, values)
        except ConureError as error:
            client.fail(error_text(error))
        else:
            client.begin(pending)


class _PutTogether(Pending):
    """Plain writes of one entry, answered OK."""

    __slots__ = ()

    def take_written(self, count: int, first: int, ended: Committed) -> None:
        assert count == 1, count
        done = ended.outcomes[first].done
        if not any(map(_obstacle_of, done)):
            self.finish(OK)
            return
        replies = Replies()
        checked.reply_error(done, replies)
        self.finish(replies.take())


def _are_plain(keys: Sequence[bytes], values: Sequence[bytes], longest: int) -> bool:
    """Tell whether all keys can be keys, and no value is too long; there are some of both."""
    sizes = [*map(len, keys)]
    return 0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES and max(map(len, values)) <= longest


def _join(
    lone: Lone, client: RespConnection, hand_over: Callable[[Lone, _Asked], None], asked: _Asked
) -> None:
    """Hand over what a client asks for while nothing else of it is under way, which makes it a
    member of *lone*."""
    lone.add(client)
    try:
        hand_over(lone, asked)
    except ConureError as error:
        lone.take_back()
        client.fail(error_text(error))
    except BaseException:  # a bug: the next member's answer is not this one's
        lone.take_back()
        raise
    else:
        client.begin_lone(lone)
