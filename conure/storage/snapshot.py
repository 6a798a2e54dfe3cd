"""A state of a tree as something to read: the present one, or one that is pinned.

The tree pins a state and gives it out; here it is read and let go of. What was found is passed on
only if the state was certainly still pinned when it was taken out of the pages: after that these
may hold other things.

Any thread may use a :class:`Snapshot`. A plain :class:`State` is for the tree's writer, who writes
nothing as long as it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from types import TracebackType
from typing import Self, TypeVar

from conure.errors import StorageError
from conure.storage.engine import Record
from conure.storage.pages import Leaf
from conure.storage.search import Search, bounds

__all__ = ["Snapshot", "State"]

_Group = TypeVar("_Group")


class State:
    """A state of the tree, for as long as nothing is written over it: nothing lets go of it."""

    _open = True

    def __init__(self, search: Search, root: int, level: int, records: int) -> None:
        self._search = search
        self._root = root
        self._level = level
        self._records = records

    def __len__(self) -> int:
        return self._records

    def get(self, key: bytes) -> Record | None:
        """Return the record that *key* had."""
        try:
            return self._search.get(self._root, self._level, key)
        finally:
            self._refuse_if_closed()

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end."""
        return chain.from_iterable(self._guarded(self.item_groups(start, end, reverse)))

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone; several times faster than :meth:`items`."""
        return chain.from_iterable(self._guarded(self.key_groups(start, end, reverse)))

    def key_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Sequence[bytes]]:
        """Iterate over the keys in a range leaf by leaf, without a look at whether it is closed."""
        search = self._search
        for leaf in search.leaves(self._root, self._level, start, end, reverse):
            keys = search.pool.keys(leaf)
            first, last = bounds(keys, start, end)
            keys = keys[first:last]
            yield keys[::-1] if reverse else keys

    def item_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Iterable[tuple[bytes, Record]]]:
        """Iterate over keys and records like :meth:`key_groups`."""
        return self._search.groups(self._root, self._level, start, end, reverse, self._records_of)

    # -- private ---------------------------------------------------------------------------------

    def _refuse_if_closed(self) -> None:
        if not self._open:
            raise StorageError("this state of the tree is closed, its pages may be others by now")

    def _guarded(self, groups: Iterator[_Group]) -> Iterator[_Group]:
        """Pass on what was taken out of the pages while they were certainly still pinned."""
        while True:
            try:
                group = next(groups, None)
            finally:
                self._refuse_if_closed()
            if group is None:
                return
            yield group

    def _record(self, number: int, key: bytes, cell: bytes) -> Record:
        try:
            return self._search.record(number, key, cell)
        finally:
            self._refuse_if_closed()

    def _records_of(
        self, leaf: Leaf, keys: list[bytes], first: int, last: int, reverse: bool
    ) -> Iterable[Record]:
        try:
            records = leaf.records(first, last)
        except ValueError as error:
            raise self._search.corrupt(leaf.number, error) from error
        if records is None:
            # Spilled values come one by one: there is only one in memory at a time.
            cells = self._search.pool.lists(leaf)[1][first:last]
            if reverse:
                cells.reverse()
            return map(self._record, repeat(leaf.number), keys, cells)
        return reversed([*records]) if reverse else records


class Snapshot(State):
    """A state of the tree, pinned until :meth:`close`; a context manager. Any thread may use it.

    What is read of it while another thread closes it ends with StorageError, and is never data of
    another state. *closed* is called with *epoch* when it is closed, *abandoned* when it is dropped
    without that, in any thread and whatever lock that holds.
    """

    def __init__(
        self,
        search: Search,
        root: int,
        level: int,
        records: int,
        epoch: int,
        *,
        closed: Callable[[int], None],
        abandoned: Callable[[int], None],
    ) -> None:
        # What State.__init__ does, without a call: there is a snapshot for every small range.
        self._search = search
        self._root = root
        self._level = level
        self._records = records
        self._epoch = epoch
        self._closed = closed
        self._abandoned = abandoned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The lock may be held by this very thread, in which the collector happens to run.
        if self._open:
            self._abandoned(self._epoch)

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record that *key* had without its value, and how many bytes that has."""
        search = self._search
        try:
            leaf = search.leaf(self._root, self._level, key)
            _, cell = search.find(leaf, key)
            return None if cell is None else search.heading(leaf.number, cell)
        finally:
            self._refuse_if_closed()

    def items_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate over keys and records: nothing that was deleted is in the way."""
        return self.items(start, end, reverse=reverse)

    def keys_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate over the keys alone."""
        return self.keys(start, end, reverse=reverse)

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        if self._open:
            self._open = False
            self._closed(self._epoch)
