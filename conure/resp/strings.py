"""GET and SET of plain keys, as fast as can be: runs of them go to the service column by column,
and those of clients that have no other command under way together (lone.py).

What else GET and SET may be asked for, keys that can't be and values that are too long are left to
the verbs (verb.py), which know what to say. The reactor's thread only.
"""

from __future__ import annotations

from contextlib import suppress

from conure.commands import MAX_KEY_BYTES
from conure.errors import ConureError
from conure.resp.connection import RespConnection
from conure.resp.failures import error_text
from conure.resp.grammar import Run
from conure.resp.lone import LoneGets, LonePuts
from conure.resp.table import Handler
from conure.resp.waiters import Gets, Pending, Puts
from conure.service.freshness import LINEARIZABLE
from conure.service.limits import Limits
from conure.service.requests import Desk

__all__ = ["PlainGets", "PlainSets"]


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
        lone.add(client)
        try:
            self._desk.get(lone, key)
        except ConureError as error:
            lone.take_back()
            client.fail(error_text(error))
        except BaseException:  # a bug: the next member's answer is not this one's
            lone.take_back()
            raise
        else:
            client.begin_lone(lone)

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
        if not self._can_put(key, value):
            self._otherwise(client, words)
            return
        lone = self._lone
        if lone is None or lone.started != client.reactor.now:
            lone = self._lone = LonePuts(client)
        lone.add(client)
        try:
            self._desk.write(lone, (key, value))
        except ConureError as error:
            lone.take_back()
            client.fail(error_text(error))
        except BaseException:  # a bug: the next member's answer is not this one's
            lone.take_back()
            raise
        else:
            client.begin_lone(lone)

    def put_all(self, client: RespConnection, run: Run) -> None:
        """Set the keys of a run."""
        columns = run.columns
        if len(columns) == 2:
            keys, values = columns
            sizes = list(map(len, keys))
            if (
                0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES
                and max(map(len, values)) <= self._longest
            ):
                pending = Puts(client, run.size)
                with suppress(ConureError):  # some keys are refused, and none is taken
                    self._desk.write_all(pending, list(zip(keys, values, strict=True)))
                    client.begin(pending)
                    return
        for words in zip(*columns, strict=True):
            self.put(client, [run.name, *words])

    def _can_put(self, key: bytes, value: bytes) -> bool:
        return 0 < len(key) <= MAX_KEY_BYTES and len(value) <= self._longest
