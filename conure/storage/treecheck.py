"""The check of a whole tree: each page in one place, each key in its order (S4).

It reads every page of the tree that is on disk again, and looks at those in memory. Each page of
the file must be in exactly one place: the tree, free, waiting for a pinned state, the free map, a
meta page. It also proves the order and bounds of all keys, levels, sizes and counts. Nothing is
changed, and the first fault ends it.

For the tree's writer, in its caller's lock, without a running checkpoint.
"""

from __future__ import annotations

from itertools import pairwise
from operator import ge
from typing import cast

from conure.storage.bufferpool import BufferPool
from conure.storage.engine import CheckReport
from conure.storage.pages import Inner, Leaf, Overflow
from conure.storage.spilled import SpilledValues
from pager import Pager

__all__ = ["TreeCheck"]

_KINDS = ("leaf", "inner", "overflow", "free", "map")


class TreeCheck:
    """Walks a whole tree once. *capacity* is that of a node, in bytes."""

    def __init__(
        self, pager: Pager, pool: BufferPool, spilled: SpilledValues, capacity: int
    ) -> None:
        self._pager = pager
        self._pool = pool
        self._spilled = spilled
        self._capacity = capacity
        self._root = 0
        self._report = CheckReport(
            "tree", "pages", pages=pager.pages, kinds=dict.fromkeys(_KINDS, 0)
        )
        self._seen = bytearray(pager.pages)

    def run(self, root: int, level: int, records: int) -> CheckReport:
        """Check the tree below *root*, a node of that *level*, which has to have so many records.

        Raises CorruptionError and DiskFailed.
        """
        self._root = root
        report = self._report
        with self._pager.lock:
            free = self._pager.free_numbers()
            listed = self._pager.map_pages
        for number in (0, 1, *listed, *free):
            self._claim(number)
        report.kinds["free"] = len(free)
        report.kinds["map"] = len(listed)
        report.depth = level + 1
        self._node(root, level, b"", None)
        if report.records != records:
            raise self._pager.corrupt(
                root, f"the tree has {report.records} records and should have {records}"
            )
        lost = self._seen.find(0)
        if lost >= 0:
            raise self._pager.corrupt(lost, "the page is neither used nor free (S4)")
        return report

    def _claim(self, number: int) -> None:
        if not 0 <= number < len(self._seen):
            raise self._pager.corrupt(number, "the page is not in the file (S4)")
        if self._seen[number]:
            raise self._pager.corrupt(number, "the page is in two places (S4)")
        self._seen[number] = 1

    def _claim_for_tree(self, number: int) -> None:
        self._claim(number)
        if not self._pager.is_in_tree(number):
            raise self._pager.corrupt(number, "the page is used and would be given away (S4)")

    def _node(self, number: int, level: int, low: bytes, high: bytes | None) -> None:
        """Check the node and all below it; its keys have to be low <= key < high."""
        self._claim_for_tree(number)
        pool = self._pool
        node = pool.unwritten.get(number) or pool.frozen.get(number)
        if node is None or isinstance(node, Overflow):
            node = pool.load(number)
        if node.level != level:
            raise self._pager.corrupt(number, "the page is not of the level it should be")
        keys = pool.lists(node)[0] if isinstance(node, Leaf) else node.keys
        if any(map(ge, keys, keys[1:])) or (keys and keys[0] < low):
            raise self._pager.corrupt(number, "the keys are out of order")
        if keys and high is not None and keys[-1] >= high:
            raise self._pager.corrupt(number, "a key is beyond its parent's separator")
        if node.used > self._capacity or b"" in keys:
            raise self._pager.corrupt(number, "the node is over-full or has an empty key")
        self._report.used_bytes += node.used
        if isinstance(node, Inner):
            self._report.kinds["inner"] += 1
            bounds = pairwise([low, *keys, high])
            for child, (start, end) in zip(node.children, bounds, strict=True):
                self._node(child, level - 1, cast("bytes", start), end)
        else:
            self._report.kinds["leaf"] += 1
            self._leaf(node)

    def _leaf(self, leaf: Leaf) -> None:
        keys, cells = self._pool.lists(leaf)
        self._report.records += len(keys)
        if not keys and leaf.number != self._root:
            raise self._pager.corrupt(leaf.number, "the leaf is empty")
        for key, cell in zip(keys, cells, strict=True):
            record, spilled = self._pool.opened(leaf.number, cell)
            if spilled:
                for number, _, _ in self._spilled.chain(key, record.value):
                    self._claim_for_tree(number)
                    self._report.kinds["overflow"] += 1
