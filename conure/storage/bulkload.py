"""Loading in bulk: an empty tree filled from sorted items.

It is built leaf after leaf, each level as full as it gets, beside the empty one, which stays the
tree until :meth:`Loader.finish`. Pages are written as they come, so memory stays bounded, and
synced in portions; the next checkpoint makes them durable. Nothing of what was there before is
changed or written over.

One thread at a time may use a :class:`Loader`, without the tree's writer, who waits for its end.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate

from conure.storage.bufferpool import BufferPool
from conure.storage.cells import make_cell, separator
from conure.storage.engine import Record
from conure.storage.pages import (
    CELL_OVERHEAD,
    CHILD,
    MAX_VALUE,
    Inner,
    Leaf,
    Limits,
    Page,
    cuts,
)
from conure.storage.spilled import SpilledValues
from pager import BATCH_PAGES, SYNC_BYTES, Pager

__all__ = ["Loader"]


class Loader:
    """Fills an empty tree with sorted items (engine.Loader).

    *adopt* makes the tree that was built the content: it is given its root, the level of that and
    the number of records. *dropped* is called, with the pool's lock held, if there won't be one.
    """

    def __init__(
        self,
        pager: Pager,
        pool: BufferPool,
        spilled: SpilledValues,
        limits: Limits,
        *,
        adopt: Callable[[int, int, int], None],
        dropped: Callable[[], None],
    ) -> None:
        self._pager = pager
        self._pool = pool
        self._spilled = spilled
        self._limits = limits
        self._adopt = adopt
        self._dropped = dropped
        self._is_over = False
        self._taken = array("I")  # every page number, to give them back after an error
        self._pages: list[tuple[int, bytes]] = []
        self._unsynced = 0
        self._levels: list[tuple[list[bytes], array[int]]] = []
        self._separator = b""  # before the next leaf
        self._keys: list[bytes] = []  # of the leaf that grows
        self._cells: list[bytes] = []
        self._used = CELL_OVERHEAD
        self._count = 0
        self._last = b""

    def add(self, items: Iterable[tuple[bytes, Record]]) -> None:
        """Take items whose keys ascend, over all calls.

        Raises ValueError if they don't or are too long, DiskFull and DiskFailed.
        """
        keys, cells, used, previous = self._keys, self._cells, self._used, self._last
        capacity, _, inline, max_key_bytes = self._limits
        for key, (value, create, mod, version, expiry) in items:
            key_size = len(key)
            if not previous < key or key_size > max_key_bytes or len(value) > MAX_VALUE:
                raise ValueError(
                    f"keys have to ascend, with 1 to {max_key_bytes} bytes each, "
                    f"and values to have up to {MAX_VALUE} bytes"
                )
            if key_size + len(value) > inline:
                reference = self._spill(key, value)
                cell = make_cell(reference, create, mod, version, expiry, spilled=True)
            else:
                cell = make_cell(value, create, mod, version, expiry, spilled=False)
            size = CELL_OVERHEAD + key_size + len(cell)
            if used + size > capacity:
                self._count += len(keys)
                self._leaf(keys, cells, used, separator(previous, key))
                keys, cells, used = [], [], CELL_OVERHEAD
            keys.append(key)
            cells.append(cell)
            used += size
            previous = key
        self._keys, self._cells, self._used, self._last = keys, cells, used, previous

    def finish(self) -> int:
        """Make the items the content of the tree and return how many there are.

        They become durable with the next checkpoint. Raises DiskFull and DiskFailed.
        """
        count = self._count + len(self._keys)
        self._leaf(self._keys, self._cells, self._used)
        root = self._finish_levels()
        self._flush()
        self._adopt(root, len(self._levels) - 1, count)
        self._is_over = True
        return count

    def abort(self) -> None:
        """Give all pages back: the tree is empty as before. Nothing after :meth:`finish`."""
        pool = self._pool
        with pool.lock:
            if self._is_over:
                return
            self._is_over = True
            self._dropped()
            for number in self._taken:
                self._pager.free(number, pool.epoch, pool.epoch)

    # -- private ---------------------------------------------------------------------------------

    def _leaf(
        self, keys: list[bytes], cells: list[bytes], used: int, following: bytes = b""
    ) -> None:
        """Write a leaf; *following* is the separator between it and the next one."""
        leaf = Leaf(self._allocate(), self._pool.epoch, used, b"", keys, cells)
        self._write(leaf)
        self._add(0, self._separator, leaf.number)
        self._separator = following

    def _add(self, level: int, separator: bytes, child: int) -> None:
        """Append a child to the node that grows on a level; *separator* stands before it."""
        if level == len(self._levels):
            self._levels.append(([], array("I")))
        keys, children = self._levels[level]
        keys.append(separator)
        children.append(child)
        if sum(map(len, keys)) + CHILD * len(keys) > 2 * self._limits.capacity:
            ends = list(accumulate(len(key) + CHILD for key in keys[1:]))
            self._inner(level, 1 + bisect_right(ends, self._limits.capacity - CHILD))

    def _inner(self, level: int, count: int) -> None:
        """Write the first *count* children of a level as one node and hand it to the next level."""
        keys, children = self._levels[level]
        number = self._allocate()
        part = keys[1:count]
        node = Inner(number, self._pool.epoch, level + 1, part, children[:count], 0)
        self._write(node)
        first = keys[0]
        del keys[:count], children[:count]
        self._add(level + 1, first, number)

    def _finish_levels(self) -> int:
        level = 0
        while True:
            keys, children = self._levels[level]
            if len(children) == 1 and level + 1 == len(self._levels):
                return children[0]
            sizes = [len(key) + CHILD for key in keys]
            start = 0
            for end in cuts(sizes, self._limits.capacity):
                self._inner(level, end - start)
                start = end
            level += 1

    def _spill(self, key: bytes, value: bytes) -> bytes:
        ref, pages = self._spilled.lay_out(key, value)
        self._taken.extend(page.number for page in pages)
        for page in pages:
            self._write(page)
        return ref

    def _allocate(self) -> int:
        (number,) = self._pool.allocate(1)
        self._taken.append(number)
        return number

    def _write(self, page: Page) -> None:
        pager = self._pager
        self._pages.append((page.number, pager.seal(page.number, page.body())))
        if len(self._pages) >= BATCH_PAGES:
            self._flush()

    def _flush(self) -> None:
        pager = self._pager
        pager.write(self._pages)
        self._unsynced += len(self._pages) * pager.page_size
        self._pages = []
        if self._unsynced >= SYNC_BYTES:
            pager.sync()
            self._unsynced = 0
