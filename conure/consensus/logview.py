"""The log as the core sees it: what is on the disk, and after it what isn't yet.

Of raft.py alone, and so under its driver's lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from conure.consensus.messages import Entry, SnapshotMeta, Storage

__all__ = [
    "LogView",
]

_ENTRY_OVERHEAD: Final = 32  # bytes an entry costs beside its data, when a message is filled


class LogView:
    """The log as the core sees it: what storage holds, then what is recent, in memory.

    Indexes, from old to new (``persisted <= written <= last_index``)::

        storage.first_index ... offset - 1 | offset ... persisted ... written ... last_index
        read through storage               | ``recent``: until it is durable and applied

    ``written`` was handed to the driver, ``persisted`` was reported durable. ``installing`` is a
    snapshot that isn't durable yet; nothing before its end is asked for meanwhile. ``epoch``
    counts the times entries were taken back, which makes reports about them void.

    Lists of entries are shared and never changed once they are handed out: the same one goes to
    every follower that is up to date and to the driver.
    """

    __slots__ = (
        "_last_slice",
        "epoch",
        "installing",
        "last_index",
        "last_term",
        "offset",
        "persisted",
        "recent",
        "storage",
        "written",
    )

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.installing: SnapshotMeta | None = None
        self.last_index = self.written = self.persisted = storage.last_index
        self.offset = self.last_index + 1
        self.recent: list[Entry] = []
        self.epoch = 0
        self._last_slice: tuple[int, int, list[Entry]] = (0, 0, [])  # from, before, and it
        self.last_term = self.term(self.last_index) or 0

    @property
    def base(self) -> SnapshotMeta:
        """Where the log begins."""
        return self.installing or self.storage.snapshot

    def term(self, index: int) -> int | None:
        """Return the term of the entry, or None if it was cut away or doesn't exist yet."""
        if index > self.last_index:
            return None
        if index >= self.offset:
            return self.recent[index - self.offset].term
        base = self.base
        if index == base.index:
            return base.term
        if index == 0:
            return 0
        return self.storage.term(index)

    def kind(self, index: int) -> int:
        """Return the kind of an entry that isn't durable yet."""
        return self.recent[index - self.offset].kind

    def last_up_to_term(self, low: int, high: int, term: int) -> int:
        """Return the last index from *low* to *high* of at most this term, or *low*."""
        low = max(low, self.storage.first_index - 1)
        later = bisect_right(range(low, high + 1), term, key=lambda index: self.term(index) or 0)
        return max(low, low + later - 1)

    def slice(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Return entries from *low*, before *high*: at least one, then what fits."""
        assert self.storage.first_index <= low < high <= self.last_index + 1
        if self._last_slice[0] == low and self._last_slice[1] == high:
            return self._last_slice[2]
        offset = self.offset
        if low < offset:
            return self.storage.entries(low, min(high, offset), max_bytes)
        most = max(max_bytes // _ENTRY_OVERHEAD, 1)
        found = self.recent[low - offset : min(high, low + most) - offset]
        size = sum([len(entry.data) for entry in found]) + len(found) * _ENTRY_OVERHEAD
        if size > max_bytes:
            size = 0
            for count, entry in enumerate(found):
                size += len(entry.data) + _ENTRY_OVERHEAD
                if size > max_bytes and count:
                    del found[count:]
                    break
        self._last_slice = (low, low + len(found), found)
        return found

    def scan(self, low: int, max_bytes: int) -> Iterator[Entry]:
        """Yield all entries from *low* on."""
        while low <= self.last_index:
            page = self.slice(low, self.last_index + 1, max_bytes)
            yield from page
            low = page[-1].index + 1

    def unwritten(self) -> list[Entry]:
        """Return what the driver hasn't been given yet; it counts as given now."""
        low, self.written = self.written + 1, self.last_index
        if self._last_slice[0] == low and self._last_slice[1] == self.last_index + 1:
            return self._last_slice[2]
        return self.recent[low - self.offset :]

    def append(self, entries: Sequence[Entry]) -> None:
        assert entries[0].index == self.last_index + 1
        assert entries[0].term >= self.last_term
        self.recent += entries
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term

    def truncate(self, first: int) -> None:
        """Drop the entries from *first* on."""
        self._last_slice = (0, 0, [])
        del self.recent[max(first - self.offset, 0) :]
        self.offset = min(self.offset, first)
        self.last_index = first - 1
        self.last_term = self.term(first - 1) or 0
        self.written = min(self.written, first - 1)
        self.persisted = min(self.persisted, first - 1)
        self.epoch += 1

    def trim(self, applied: int) -> None:
        """Forget the recent entries that are applied, and so durable."""
        if applied >= self.offset:
            assert applied <= self.persisted
            del self.recent[: applied + 1 - self.offset]
            self.offset = applied + 1

    def restore(self, meta: SnapshotMeta) -> None:
        """Begin anew after a snapshot that the driver is going to install."""
        self.installing = meta
        self._last_slice = (0, 0, [])
        self.recent = []
        self.offset = meta.index + 1
        self.last_index = self.written = meta.index
        self.last_term = meta.term
        self.persisted = 0
        self.epoch += 1

    def installed(self, meta: SnapshotMeta) -> None:
        """Storage begins after this snapshot now."""
        if self.installing == meta:
            self.installing = None
            self.persisted = max(self.persisted, meta.index)
