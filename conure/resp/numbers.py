"""Numbers among the words of a command. Nothing here has state: any thread may use it."""

from __future__ import annotations

__all__ = ["parse_integer"]

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def parse_integer(word: bytes) -> int | None:
    """Return a whole number of 64 bits, signed, written in the one way that Redis takes: without
    a plus, spaces or leading zeros; None if it is none."""
    digits = word[1:] if word[:1] == b"-" else word
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and word != b"0"):
        return None
    number = int(word)
    return number if _LEAST <= number <= _MOST else None
