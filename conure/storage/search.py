"""Reading a tree whose root is known: one record, a range of them, the leaves in a range.

It serves the tree as it is now and any pinned state alike; which root and level are meant is for
the caller to say, and to keep from being written over meanwhile. Nothing is changed but the cache
and the form of a leaf in it. Whatever a page claims, the answer is a CorruptionError or a
well-formed record, and no descent is deeper than the root's level (S3).

Any thread may call everything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import TypeVar

from conure.errors import CorruptionError
from conure.storage.bufferpool import MANY, BufferPool
from conure.storage.cells import NARROW, NARROW_SIZE, new_record
from conure.storage.engine import Record
from conure.storage.pages import REF, Inner, Leaf
from conure.storage.spilled import SpilledValues
from pager import Pager

__all__ = ["Search", "bounds"]

_Row = TypeVar("_Row")


class Search:
    """Reads the trees of one file. ``descents`` counts the point reads, ``pool`` has the pages."""

    def __init__(self, pager: Pager, pool: BufferPool, spilled: SpilledValues) -> None:
        self.descents = 0
        self._pager = pager
        self.pool = pool
        self._spilled = spilled
        self._nodes = pool.nodes
        self._touched = pool.touched

    def get(self, root: int, level: int, key: bytes) -> Record | None:
        """Return the record of *key* in the tree below *root*, a node of that *level*, or None."""
        number, cell = self.cell(root, level, key)
        if cell is None:
            return None
        if cell[0]:
            return self.record(number, key, cell)
        create, mod, version = NARROW.unpack_from(cell, 1)
        return new_record((cell[NARROW_SIZE:], create, mod, version, 0))

    def cell(self, root: int, level: int, key: bytes) -> tuple[int, bytes | None]:
        """Return the leaf in which *key* is or would be, likewise, and its cell, or None."""
        self.descents += 1
        leaf = self.leaf(root, level, key)
        if leaf.page:
            leaf.uses += 1
            if leaf.uses >= MANY:
                self.pool.unpack(leaf)
            return leaf.number, self.find(leaf, key)[1]
        keys = leaf.keys  # as Leaf.find, without the calls
        slot = bisect_left(keys, key)
        if slot == len(keys) or keys[slot] != key:
            return leaf.number, None
        return leaf.number, leaf.cells[slot]

    def leaf(self, number: int, level: int, key: bytes) -> Leaf:
        """Return the leaf in which *key* is or would be, below a node of that *level*."""
        nodes = self._nodes
        touched = self._touched
        while True:
            node = nodes.get(number)
            if node is None:
                node = self.pool.fetch(number)
            else:
                touched.add(number)
            if not level:
                break
            if not isinstance(node, Inner):
                raise self.misplaced(number)
            number = node.children[bisect_right(node.keys, key)]
            level -= 1
        if not isinstance(node, Leaf):
            raise self.misplaced(number)
        return node

    def find(self, leaf: Leaf, key: bytes) -> tuple[int, bytes | None]:
        """Return slot and cell of *key* in a leaf; where it belongs and None if it isn't there."""
        try:
            return leaf.find(key)
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def record(self, number: int, key: bytes, cell: bytes) -> Record:
        """Return the record of a cell of any kind in the leaf *number*."""
        record, spilled = self.pool.opened(number, cell)
        if spilled:
            chain = self._spilled.chain(key, record.value)
            return record._replace(value=b"".join([chunk for _, _, chunk in chain]))
        return record

    def heading(self, number: int, cell: bytes) -> tuple[Record, int]:
        """Return the record of a cell in the leaf *number* without its value, and the length of
        that."""
        if not cell[0]:
            return new_record((b"", *NARROW.unpack_from(cell, 1), 0)), len(cell) - NARROW_SIZE
        record, spilled = self.pool.opened(number, cell)
        length = REF.unpack(record.value)[1] if spilled else len(record.value)
        return record._replace(value=b""), length

    def leaves(
        self, number: int, level: int, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Leaf]:
        """Iterate over the leaves below a node that may hold keys, start <= key < end."""
        node = self.pool.node(number)
        if node.level != level:
            raise self.misplaced(number)
        if isinstance(node, Leaf):
            yield node
            return
        last = len(node.keys) if end is None else bisect_left(node.keys, end)
        children = node.children[bisect_right(node.keys, start) : last + 1]
        for child in reversed(children) if reverse else children:
            yield from self.leaves(child, level - 1, start, end, reverse)

    def groups(
        self,
        root: int,
        level: int,
        start: bytes,
        end: bytes | None,
        reverse: bool,
        read: Callable[[Leaf, list[bytes], int, int, bool], Iterable[_Row]],
    ) -> Iterator[Iterable[tuple[bytes, _Row]]]:
        """Iterate over the keys, start <= key < end, leaf by leaf, each with what *read* finds.

        That is given the leaf, its keys in the order wanted, the first of its slots that they come
        from and the one after the last, and whether the order is reversed.
        """
        for leaf in self.leaves(root, level, start, end, reverse):
            keys = self.pool.keys(leaf)
            first, last = bounds(keys, start, end)
            if first >= last:
                continue
            keys = keys[first:last]
            if reverse:
                keys.reverse()
            yield zip(keys, read(leaf, keys, first, last, reverse), strict=True)

    def headings(
        self, leaf: Leaf, _: list[bytes], first: int, last: int, reverse: bool
    ) -> Iterable[tuple[Record, int]]:
        """Return the headings in some slots of a leaf, for :meth:`groups`."""
        cells = self.pool.lists(leaf)[1][first:last]
        if reverse:
            cells.reverse()
        return map(self.heading, repeat(leaf.number), cells)

    def corrupt(self, number: int, error: ValueError) -> CorruptionError:
        """Return the error for a page in which a decoder has found *error*, to be raised."""
        return self._pager.corrupt(number, str(error))

    def misplaced(self, number: int) -> CorruptionError:
        """Return the error for a page that is no node of the level it should be, to be raised."""
        return self._pager.corrupt(number, "the page is not of the level it should be")


def bounds(keys: Sequence[bytes], start: bytes, end: bytes | None) -> tuple[int, int]:
    """Return where start <= key < end among *keys*: the first, and one beyond the last."""
    return bisect_left(keys, start), len(keys) if end is None else bisect_left(keys, end)
