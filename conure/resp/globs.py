"""Patterns of keys and channels, as Redis reads them: ``*``, ``?``, ``[abc]``, ``[^a-z]``, ``\\x``.

A pattern is cut at its stars, and what is between two of them is looked for from left to right: the
first place is as good as any, so nothing is ever tried again, whatever the pattern. That bounds the
time for a key by the product of both lengths, in C.

Nothing here has state; any thread may match.
"""

from __future__ import annotations

import re

from conure.errors import BadRequest

__all__ = ["MAX_PATTERN_BYTES", "Glob"]

MAX_PATTERN_BYTES = 1024
"""Of a pattern: as many as a key has."""

_FEW = 32  # bytes of a pattern that are looked for at every place of a key
_ALL_BYTES = frozenset(range(256))


class Glob:
    """A pattern; raises BadRequest for one that is too long."""

    __slots__ = ("_first", "_last", "_least", "_middle", "is_costly", "literal", "prefix")

    def __init__(self, pattern: bytes) -> None:
        if len(pattern) > MAX_PATTERN_BYTES:
            raise BadRequest(
                f"the pattern has {len(pattern):,} bytes; the limit is {MAX_PATTERN_BYTES:,}"
            )
        parts, self.prefix, is_literal = _parts(pattern)
        self.literal = self.prefix if is_literal and len(parts) == 1 else None
        """The one key that matches, if there is one only."""
        self.is_costly = sum(map(len, parts[1:-1])) > _FEW
        """Whether one key may take a millisecond: look at the time after a few."""
        self._first = _compiled(parts[0])
        self._middle = [_compiled(part) for part in parts[1:-1] if part]
        self._last = _compiled(parts[-1]) if len(parts) > 1 else None
        self._least = len(parts[-1])

    def matches(self, key: bytes) -> bool:
        """Tell whether the whole key matches."""
        if self._last is None:
            return self._first.fullmatch(key) is not None
        begin = self._first.match(key)
        if begin is None:
            return False
        position = begin.end()
        for part in self._middle:
            found = part.search(key, position)
            if found is None:
                return False
            position = found.end()
        start = len(key) - self._least
        return start >= position and self._last.fullmatch(key, start) is not None


def _compiled(part: list[frozenset[int]]) -> re.Pattern[bytes]:
    return re.compile(b"".join(map(_one, part)), re.DOTALL)


def _one(choice: frozenset[int]) -> bytes:
    """Return the expression of one byte out of several."""
    if len(choice) == 256:
        return b"."
    if not choice:
        return b"(?!)"
    if len(choice) > 128:
        return b"[^%b]" % _ranges(_ALL_BYTES - choice)
    return b"[%b]" % _ranges(choice)


def _ranges(choice: frozenset[int]) -> bytes:
    """Return what stands in a bracket: few ranges, since each byte of its own takes time to
    compile."""
    shown = b""
    low = previous = min(choice)
    for byte in (*sorted(choice), 257):
        if byte > previous + 1:
            shown += b"\\x%02x" % low
            if previous > low:
                shown += b"-\\x%02x" % previous
            low = byte
        previous = byte
    return shown


def _parts(pattern: bytes) -> tuple[list[list[frozenset[int]]], bytes, bool]:
    """Return what stands between the stars, as the choices for each byte; the bytes with which
    every match begins; and whether all is plain."""
    parts: list[list[frozenset[int]]] = [[]]
    prefix = bytearray()
    is_literal = True
    position, size = 0, len(pattern)
    while position < size:
        byte = pattern[position]
        position += 1
        if byte == 42:  # *
            is_literal = False
            parts.append([])
            continue
        if byte == 63:  # ?
            choice = _ALL_BYTES
        elif byte == 91:  # [
            choice, position = _choice(pattern, position)
        else:
            if byte == 92 and position < size:
                byte = pattern[position]
                position += 1
            choice = frozenset((byte,))
        if len(choice) == 1 and is_literal:
            prefix += bytes(choice)
        else:
            is_literal = False
        parts[-1].append(choice)
    return parts, bytes(prefix), is_literal


def _choice(pattern: bytes, position: int) -> tuple[frozenset[int], int]:
    """Return the bytes that a bracket allows, given where it begins, and what comes after it."""
    size = len(pattern)
    is_inverted = pattern[position : position + 1] == b"^"
    position += is_inverted
    chosen: set[int] = set()
    while position < size and pattern[position] != 93:  # ]
        byte = pattern[position]
        if byte == 92 and position + 1 < size:
            chosen.add(pattern[position + 1])
            position += 2
        elif pattern[position + 1 : position + 2] == b"-" and position + 2 < size:
            low, high = sorted((byte, pattern[position + 2]))
            chosen.update(range(low, high + 1))
            position += 3
        else:
            chosen.add(byte)
            position += 1
    return (_ALL_BYTES - chosen if is_inverted else frozenset(chosen)), min(position + 1, size)
