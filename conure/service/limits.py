"""What one request may carry and one change may do, whatever protocol it comes by.

A change is one entry of the log and, unless it is sequential, applied in one go while everybody
waits, so it is bounded here, before it is proposed. Nothing here has state: any thread may use
anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from conure.commands import MAX_KEY_BYTES, WRITTEN_BYTES, Compare
from conure.errors import BadRequest, PayloadTooLarge
from conure.steps import (
    AddFloat,
    Append,
    Check,
    Erase,
    Lapse,
    Move,
    Overlay,
    Step,
    Write,
    plain_writes,
)

__all__ = [
    "MAX_CHANGE_BYTES",
    "MAX_NUMBER",
    "MAX_OPERATIONS",
    "MAX_STEPS",
    "MAX_TTL",
    "MAX_WATCHED",
    "MAX_WORK",
    "STEPS_AT_ONCE",
    "Limits",
    "check_key",
    "check_ttl",
]

MAX_OPERATIONS: Final = 128
"""Comparisons and operations of one transaction."""

MAX_WORK: Final = 5_000
"""Records that the ranges of one change may read or delete, and KiB of values that it writes, all
together: everybody waits while it is applied."""

MAX_STEPS: Final = 10_000
"""Steps of one sequential transaction, which takes turns where it is applied (state/lengthy.py)."""

MAX_WATCHED: Final = 2_000
"""Comparisons of one sequential transaction."""

STEPS_AT_ONCE: Final = 500
"""Steps that are checked and encoded in one go; so many take a millisecond or less."""

MAX_CHANGE_BYTES: Final = WRITTEN_BYTES
"""Bytes of all values that one change brings, for the same reason; a single value may be longer."""

MAX_TTL: Final = 10 * 365 * 86_400_000
"""Milliseconds; ten years."""

MAX_NUMBER: Final = (1 << 63) - 1


class Limits:
    """What a request may carry: bytes of a value, records of one answer."""

    __slots__ = ("change_bytes", "deleted_items", "range_items", "text_length", "value_bytes")

    def __init__(self, *, value_bytes: int, range_items: int) -> None:
        self.value_bytes = value_bytes
        self.range_items = range_items
        self.deleted_items = min(range_items, MAX_WORK)
        self.change_bytes = max(value_bytes, MAX_CHANGE_BYTES)
        # The longest string that can be of use: a value as base64, or a key.
        self.text_length = 4 * (max(value_bytes, MAX_KEY_BYTES) // 3 + 1)

    def check_change(self, size: int) -> None:
        """Raise PayloadTooLarge if the values of one change have too many bytes in all."""
        if size > self.change_bytes:
            raise PayloadTooLarge(
                f"the values have {size:,} bytes in all; one change may write up to "
                f"{self.change_bytes:,}"
            )

    def check_steps(self, steps: Sequence[Step], compares: Sequence[Compare]) -> None:
        """Raise PayloadTooLarge if there are more steps or comparisons, or bytes in them, than one
        sequential transaction may have, and BadRequest for a key that nobody may have."""
        for _ in self.check_in_turns(steps, compares):
            pass

    def check_in_turns(self, steps: Sequence[Step], compares: Sequence[Compare]) -> Iterator[None]:
        """Raise likewise, and yield where something else may have its turn."""
        if len(steps) > MAX_STEPS or len(compares) > MAX_WATCHED:
            raise PayloadTooLarge(
                f"the transaction has {len(steps):,} steps and {len(compares):,} watched keys; it "
                f"may have {MAX_STEPS:,} steps and {MAX_WATCHED:,} watched keys"
            )
        for compare in compares:
            check_key(compare.key)
        size = self._check_some(steps[:STEPS_AT_ONCE])
        for start in range(STEPS_AT_ONCE, len(steps), STEPS_AT_ONCE):
            yield
            size += self._check_some(steps[start : start + STEPS_AT_ONCE])
        self.check_change(size)

    def _check_some(self, steps: Sequence[Step]) -> int:
        """Check the keys and values of steps; return how many bytes the values have."""
        writes = plain_writes(steps)
        if writes is not None:
            keys, values = writes
            sizes, of_values = [*map(len, keys)], [*map(len, values)]
            if not 0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES:
                for key in keys:
                    check_key(key)
            if max(of_values) > self.value_bytes:
                self.check_value(max(values, key=len))
            return sum(of_values)
        size = 0
        for step in steps:
            check_key(step.key)
            match step:
                case Write(_, value, (_, operand)):
                    size += len(self.check_value(value)) + len(operand)
                case Append(_, value) | Overlay(_, _, value) | AddFloat(_, value):
                    size += len(self.check_value(value))
                case Check(_, (_, operand), _) | Erase(_, (_, operand)):
                    size += len(operand)
                case Lapse(_, _, (_, operand)):
                    size += len(operand)
                case Move(_, target):
                    check_key(target)
        return size

    def check_value(self, value: bytes, where: str = "") -> bytes:
        """Return the value. Raises PayloadTooLarge."""
        if len(value) > self.value_bytes:
            raise PayloadTooLarge(
                f"{where}the value has {len(value):,} bytes; the limit is {self.value_bytes:,} "
                "(max_value_bytes)"
            )
        return value


def check_key(key: bytes) -> None:
    """Raise BadRequest unless a key has as many bytes as one may have."""
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise BadRequest(f"a key has 1 to {MAX_KEY_BYTES:,} bytes, and this one {len(key):,}")


def check_ttl(milliseconds: int, *, least: int = 1, where: str = "") -> int:
    """Return a time to live in milliseconds. Raises BadRequest."""
    if not least <= milliseconds <= MAX_TTL:
        raise BadRequest(
            f"{where}a ttl is {least} ms at least and {MAX_TTL // 86_400_000} days at most"
        )
    return milliseconds
