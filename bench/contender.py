"""What is asked of every engine that is measured in process. Nothing here measures anything.

The loops over many keys are the engine's own, so that each is at its best. What was committed has
to be there when its directory is opened again.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["CACHE_BYTES", "LOG_FOLDER", "RANGE", "Contender", "Item"]

CACHE_BYTES = 64 << 20
"""Of pages in memory, for every engine that keeps some."""

RANGE = 100
"""Records of a range."""

LOG_FOLDER = "raft"
"""The folder of a Raft log in an engine's directory."""

Item = tuple[bytes, bytes]


class Contender(abc.ABC):
    """An open engine. One thread uses it."""

    def batch(self, items: list[Item]) -> Any:
        """Return items as :meth:`put_many` takes them. The time of this isn't the engine's."""
        return items

    @abc.abstractmethod
    def put_many(self, items: Any) -> None:
        """Put what :meth:`batch` has returned and commit, durably."""

    @abc.abstractmethod
    def get_many(self, keys: Iterable[bytes]) -> Sequence[bytes | None]:
        """Get one key after the other."""

    @abc.abstractmethod
    def range_many(self, starts: Iterable[bytes]) -> int:
        """Read :data:`RANGE` records from each start; return how many were read in all."""

    @abc.abstractmethod
    def scan_keys(self, start: bytes, count: int) -> int:
        """Read *count* keys in order; return their total length in bytes."""

    @abc.abstractmethod
    def scan_items(self, start: bytes, count: int) -> int:
        """Read *count* keys and values in order; return how many there were."""

    def settle(self) -> None:  # noqa: B027 - most put nothing off
        """Do all that can be put off, such as merging files, and wait for its end."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close it in the orderly way."""
