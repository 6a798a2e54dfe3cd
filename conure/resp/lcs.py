"""LCS: the longest common subsequence of two values, found with rows of bits.

The table of lengths has a row for each byte of one value and a column for each of the other. Two
neighbours in a row differ by 0 or 1, so a row is one whole number, with a 0 where it grows, and the
next row takes a few operations on it (Hyyrö, "Bit-parallel LCS-length computation revisited",
2004). The way back through the rows is that of Redis, which decides what is shown of several
subsequences of the same length.

What it takes is bounded by the size of the table (MAX_CELLS) and by the way back along its sides
(MAX_LENGTH): some milliseconds, so replies are written in turns (Plan.takes_long). Nothing here has
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from conure.resp import words
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError
from conure.steps import Done, Read

__all__ = ["MAX_CELLS", "MAX_LENGTH", "Match", "Subsequence", "lcs", "longest"]

MAX_CELLS: Final = 1 << 24
MAX_LENGTH: Final = 8192
"""Bytes of either value."""

_OPTIONS = {b"LEN": False, b"IDX": False, b"WITHMATCHLEN": False, b"MINMATCHLEN": True}
_TOO_LARGE = "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"


class Match(NamedTuple):
    """Bytes that two values have in common, from *start* on in one and *other* in the other."""

    start: int
    other: int
    size: int


class Subsequence(NamedTuple):
    """The longest one, and the runs of bytes that it is made of, the last one first."""

    value: bytes
    matches: list[Match]


def lcs(given: Sequence[bytes], _: Context) -> Plan:
    """Plan the command."""
    found = words.options(given[2:], _OPTIONS, numbers=(b"MINMATCHLEN",))
    least = max(0, words.integer(found.get(b"MINMATCHLEN", b"0")))
    if b"LEN" in found and b"IDX" in found:
        raise ReplyError("ERR If you want both the length and indexes, please just use IDX.")
    one, other = words.keys(given[:2])
    reply = partial(_reply, found, least)
    return Plan((Read(one), Read(other)), reply, takes_long=True)


def longest(one: bytes, other: bytes) -> Subsequence:
    """Return the longest common subsequence of two values whose table is not too large."""
    rows = _rows(one, other)
    taken = bytearray()
    matches: list[Match] = []
    i, j = len(one), len(other)
    run = 0
    while i and j:
        if one[i - 1] == other[j - 1]:
            i -= 1
            j -= 1
            run += 1
            taken.append(one[i])
            continue
        if run:
            matches.append(Match(i, j, run))
            run = 0
        # Where the row grows here, the length is still there one row above.
        if rows[i - 1][j - 1 >> 3] >> (j - 1 & 7) & 1:
            j -= 1
        else:
            i -= 1
    if run:
        matches.append(Match(i, j, run))
    return Subsequence(bytes(reversed(taken)), matches)


def _rows(one: bytes, other: bytes) -> list[bytes]:
    """Return a row for each byte of *one*: a bit for each of *other*, 0 where the length grows."""
    size = len(other)
    every = (1 << size) - 1
    places: dict[int, int] = dict.fromkeys(one, 0)
    for place, byte in enumerate(other):
        if byte in places:
            places[byte] |= 1 << place
    row = every
    rows = []
    for byte in one:
        common = row & places[byte]
        row = (row + common | row - common) & every
        rows.append(row.to_bytes(size + 7 >> 3, "little"))
    return rows


def _reply(found: dict[bytes, bytes], least: int, done: Sequence[Done], replies: Replies) -> None:
    if words.reply_error(done, replies):
        return
    one, other = done[0].value or b"", done[1].value or b""
    if max(len(one), len(other)) > MAX_LENGTH or len(one) * len(other) > MAX_CELLS:
        replies.error(_TOO_LARGE)
        return
    value, matches = longest(one, other)
    if b"IDX" not in found:
        if b"LEN" in found:
            replies.integer(len(value))
        else:
            replies.bulk(value)
        return
    shown = [match for match in matches if match.size >= least]
    has_size = b"WITHMATCHLEN" in found
    replies.map_of(2)
    replies.bulk(b"matches")
    replies.array_of(len(shown))
    for start, start_of_other, size in shown:
        replies.array_of(2 + has_size)
        for first in (start, start_of_other):
            replies.array_of(2)
            replies.integer(first)
            replies.integer(first + size - 1)
        if has_size:
            replies.integer(size)
    replies.bulk(b"len")
    replies.integer(len(value))
