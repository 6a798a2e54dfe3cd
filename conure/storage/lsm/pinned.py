"""A pinned state as the seam knows it (engine.Reader).

It holds references and nothing else: no file is kept from being removed by it, and no writer waits
for it. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from conure.errors import StorageError
from conure.storage.engine import Record
from conure.storage.lsm.marks import Marks
from conure.storage.lsm.merging import Group
from conure.storage.lsm.reading import Rows
from conure.storage.lsm.state import Leave, Pinned, live_groups

__all__ = ["PinnedReader"]

_Read = Callable[[list[bytes], list[bytes]], Iterable[Record]]


class PinnedReader:
    """A state, until :meth:`close`. *marks* are those of the state, for it alone.

    *leave* is told of long runs of deleted keys; *ended* is called with the reader's id when it is
    closed or dropped.
    """

    def __init__(
        self,
        pinned: Pinned,
        records: int,
        marks: Marks,
        leave: Leave,
        ended: Callable[[int], None],
    ) -> None:
        self._pinned: Pinned | None = pinned
        self._records = records
        self._marks = marks
        self._leave = leave
        self._ended = ended

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        return self._records

    def get(self, key: bytes) -> Record | None:
        """Return the record that *key* had."""
        pinned = self._held()
        cell = pinned.find(key)
        return pinned.cells.record(key, cell) if cell else None

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return that record without its value, and how many bytes that has."""
        pinned = self._held()
        cell = pinned.find(key)
        return pinned.cells.heading(key, cell) if cell else None

    def items(self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False) -> Rows:
        """Iterate over keys and records, start <= key < end."""
        return chain.from_iterable(self._item_groups(start, end, reverse))

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone."""
        return chain.from_iterable(self._key_groups(start, end, reverse))

    def items_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate over keys and records, and None where that takes a while."""
        records = self._held().cells.records
        return chain.from_iterable(
            self._rows(records, group, reverse) if group[0] else (None,)
            for group in self._groups(start, end, reverse)
        )

    def keys_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate over the keys alone, and None where that takes a while."""
        return chain.from_iterable(
            keys or (None,) for keys in self._key_groups(start, end, reverse)
        )

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        if self._pinned is not None:
            self._pinned = None
            self._ended(id(self))

    # -- private ---------------------------------------------------------------------------------

    def _held(self) -> Pinned:
        pinned = self._pinned
        if pinned is None:
            raise StorageError("this pinned state is closed; pin another one")
        return pinned

    def _groups(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[Group]:
        if not self._records:
            return
        yield from live_groups(self._held(), self._marks, self._leave, start, end, reverse=reverse)

    def _item_groups(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[Rows]:
        records = self._held().cells.records
        for group in self._groups(start, end, reverse):
            yield self._rows(records, group, reverse)

    def _rows(self, records: _Read, group: Group, reverse: bool) -> Rows:
        self._held()
        keys, cells = (group[0][::-1], group[1][::-1]) if reverse else group
        return zip(keys, records(keys, cells), strict=True)

    def _key_groups(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[list[bytes]]:
        self._held()
        for keys, _ in self._groups(start, end, reverse):
            self._held()
            yield keys[::-1] if reverse else keys
