"""SLOWLOG: the commands that took longest, the latest first, in bounded memory.

The reactor's thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from conure.resp.connection import RespConnection
from conure.resp.helping import misused
from conure.resp.numbers import parse_integer
from conure.resp.replies import OK
from conure.resp.table import Command

__all__ = ["SlowLog"]

_MOST: Final = 128  # entries that are kept
_SHOWN: Final = 10  # that GET shows unless it is told how many
_WORDS: Final = 32  # of an entry
_WORD_BYTES: Final = 128  # of each of them
_BAD_COUNT: Final = "ERR count should be greater than or equal to -1"


class _Entry(NamedTuple):
    number: int
    time: int  # seconds since the Unix epoch
    took: int  # microseconds
    words: list[bytes]
    address: str
    name: bytes


class SlowLog:
    """Keeps the entries; *time* returns milliseconds since the Unix epoch."""

    def __init__(self, time: Callable[[], int]) -> None:
        self._time = time
        self._entries: deque[_Entry] = deque(maxlen=_MOST)
        self._next = 0

    def add(self, address: str, name: bytes, words: list[bytes], took: float) -> None:
        """Keep a command that took so many seconds."""
        shown = [_shortened(word) for word in words[:_WORDS]]
        if len(words) > _WORDS:
            shown[-1] = b"... (%d more arguments)" % (len(words) - _WORDS + 1)
        entry = _Entry(self._next, self._time() // 1000, int(took * 1e6), shown, address, name)
        self._entries.appendleft(entry)
        self._next += 1

    def command(self) -> Command:
        """Return the row of the table."""
        flags = frozenset({"admin", "loading", "stale"})

        def row(
            name: str, arity: int, handle: Callable[[RespConnection, list[bytes]], None], text: str
        ) -> Command:
            return Command(
                f"slowlog|{name}", arity, handle, text, flags=flags, group="server", since="2.2.12"
            )

        rows = [
            row("get", -2, self._get, "Returns the entries of the slow log."),
            row("len", 2, self._len, "Returns how many entries the slow log has."),
            row("reset", 2, self._reset, "Clears the slow log."),
        ]
        return Command(
            "slowlog",
            -2,
            self._get,
            "A container for slow log commands.",
            group="server",
            since="2.2.12",
            subcommands={each.name.partition("|")[2]: each for each in rows},
        )

    def _get(self, client: RespConnection, words: list[bytes]) -> None:
        count: int | None = _SHOWN
        if len(words) == 3:
            count = parse_integer(words[2])
        elif len(words) > 3:
            client.fail(misused(words))
            return
        if count is None or count < -1:
            client.fail(_BAD_COUNT)
            return
        entries = list(self._entries)[: None if count == -1 else count]
        replies = client.replies()
        replies.array_of(len(entries))
        for entry in entries:
            replies.array_of(6)
            replies.integer(entry.number)
            replies.integer(entry.time)
            replies.integer(entry.took)
            replies.array_of(len(entry.words))
            replies.bulks(entry.words)
            replies.bulk(entry.address.encode())
            replies.bulk(entry.name)
        client.reply(replies.take())

    def _len(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b":%d\r\n" % len(self._entries))

    def _reset(self, client: RespConnection, _: list[bytes]) -> None:
        self._entries.clear()
        client.reply(OK)


def _shortened(word: bytes) -> bytes:
    if len(word) <= _WORD_BYTES:
        return word
    return b"%b... (%d more bytes)" % (word[:_WORD_BYTES], len(word) - _WORD_BYTES)
