"""Ranges of records: which are asked for, and a page of them at a time.

Any thread, as long as the state that is read belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from conure.commands import Item
from conure.service.backend import Record, State

__all__ = ["MAX_RANGE_BYTES", "Page", "Scan", "item_of", "items_in_turns", "items_of"]

MAX_RANGE_BYTES = 8 << 20
"""Bytes of records in one page, about; the rest is to be asked for."""


class Scan:
    """Which records are asked for, in which order; *limit* None: all there are."""

    __slots__ = ("end", "keys_only", "limit", "reverse", "start")

    def __init__(
        self,
        start: bytes,
        end: bytes | None,
        limit: int | None,
        *,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> None:
        self.start = start
        self.end = end
        self.limit = limit
        self.reverse = reverse
        self.keys_only = keys_only


class Page:
    """The first records of a range, up to *limit* and MAX_RANGE_BYTES; then, whether there are
    *more* after the *last* one. None among them is a pause."""

    def __init__(self, items: Iterator[Item | None], limit: int | None) -> None:
        self._items = items
        self._limit = limit
        self.more = False
        self.last = b""

    def __iter__(self) -> Iterator[Item | None]:
        size = count = 0
        for item in self._items:
            if item is None:
                yield None
                continue
            if count == self._limit or size > MAX_RANGE_BYTES:
                self.more = True
                return
            yield item
            count += 1
            size += len(item.key) + len(item.value or b"")
            self.last = item.key


def items_of(state: State, scan: Scan) -> Iterator[Item]:
    """Yield the records that are asked for, without regard to the limit. Raises ConureError."""
    return (item for item in items_in_turns(state, scan) if item is not None)


def items_in_turns(state: State, scan: Scan) -> Iterator[Item | None]:
    """Yield the same, and None in between where that takes a while. Raises ConureError."""
    if scan.end is not None and scan.start >= scan.end:
        return
    for row in state.items_in_turns(scan.start, scan.end, reverse=scan.reverse):
        if row is None:
            yield None
            continue
        item = item_of(*row)
        yield item._replace(value=None) if scan.keys_only else item


def item_of(key: bytes, record: Record) -> Item:
    """Return a key and its record as one."""
    return Item(
        key,
        record.value,
        record.create_revision,
        record.mod_revision,
        record.version,
        record.expiry,
    )
