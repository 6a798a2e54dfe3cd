"""Numbered records of 16 + 100 bytes for engines in process: random keys, and values by number.

The keys lie in a file that every engine's process maps, so that they count for nobody's memory.
"""

from __future__ import annotations

import math
import mmap
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from bench.contender import Item

__all__ = ["DATA_BYTES", "KEY_BYTES", "Samples", "write_keys"]

KEY_BYTES = 16
_VALUE_BYTES = 100
DATA_BYTES = KEY_BYTES + _VALUE_BYTES
"""Of a key and its value."""

_POOL = random.Random(7).randbytes(1 << 16)
_AT_ONCE = 1 << 16  # keys


def write_keys(path: str, count: int) -> None:
    """Write the file with *count* random keys; the same count gives the same keys."""
    chance = random.Random(count)
    with open(path, "wb") as file:
        file.writelines(
            chance.randbytes(min(_AT_ONCE, count - first) * KEY_BYTES)
            for first in range(0, count, _AT_ONCE)
        )


class Samples:
    """The records of one file of keys."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._keys = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.count = len(self._keys) // KEY_BYTES
        # The keys are random, so every step through them that meets each once is a random order.
        candidates = range(self.count * 5 // 8, self.count * 2 + 2)
        self._step = next(n for n in candidates if math.gcd(n, self.count) == 1)
        self._back = pow(self._step, -1, self.count)

    def key(self, n: int) -> bytes:
        return self._keys[n * KEY_BYTES : (n + 1) * KEY_BYTES]

    def absent(self, n: int) -> bytes:
        """Return a key that no record has, near that of record *n*."""
        key = self.key(n)
        return key[:-1] + bytes((key[-1] ^ 1,))

    def value(self, n: int, turn: int) -> bytes:
        """Return what record *n* has after it was put for the *turn*-th time, from 0 on."""
        start = (n * 7919 + turn * 104_729) % (len(_POOL) - _VALUE_BYTES)
        return _POOL[start : start + _VALUE_BYTES]

    def again(self, first: int, count: int) -> Iterator[int]:
        """Yield *count* numbers of another order, from its *first* on; it repeats at its end."""
        return (n * self._step % self.count for n in range(first, first + count))

    def place_again(self, n: int) -> int:
        """Return the place of record *n* in the order of :meth:`again`, from 0 on."""
        return n * self._back % self.count

    def anywhere(self, count: int, seed: str) -> list[int]:
        """Return *count* numbers at random."""
        return random.Random(seed).choices(range(self.count), k=count)

    def batches(
        self, order: Iterable[int], turn_of: Callable[[int], int], size: int
    ) -> Iterator[list[Item]]:
        """Yield the records of *order*, each with its value of the turn that it is put in."""
        left = iter(order)
        while batch := [(self.key(n), self.value(n, turn_of(n))) for n in islice(left, size)]:
            yield batch
