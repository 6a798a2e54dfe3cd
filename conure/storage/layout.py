"""New nodes in the place of old ones: what is too full is cut, what is too small was joined.

The tree says which records or children belong together; here they are laid out in as few nodes as
hold them, about equally full, with the shortest separators between leaves. Where those nodes go in
the tree is not known here.

For the tree's writer, in its caller's lock.
"""

from __future__ import annotations

from array import array

from conure.storage.bufferpool import BufferPool
from conure.storage.cells import separator
from conure.storage.pages import CELL_OVERHEAD, CHILD, Inner, Leaf, Node, cuts
from pager import Pager

__all__ = ["Layout"]


class Layout:
    """Lays out the nodes of one tree. *capacity* is that of a node, in bytes."""

    def __init__(self, pager: Pager, pool: BufferPool, capacity: int) -> None:
        self._pager = pager
        self._pool = pool
        self._capacity = capacity

    def leaves(
        self, keys: list[bytes], cells: list[bytes], old: list[Leaf], ascending: bool = False
    ) -> tuple[list[Node], list[bytes]]:
        """Return new leaves in the place of *old* ones, and the separators between them."""
        sizes = [
            len(key) + len(cell) + CELL_OVERHEAD for key, cell in zip(keys, cells, strict=True)
        ]
        ends = cuts(sizes, self._capacity - CELL_OVERHEAD)
        if ascending and len(ends) == 2 and sum(sizes[:-1]) <= self._capacity - CELL_OVERHEAD:
            ends[0] = len(sizes) - 1
        leaves: list[Node] = []
        separators = []
        start = 0
        with self._pool.lock:
            for leaf in old:
                self._pool.give_back(leaf.number, leaf.epoch)
            for end in ends:
                used = sum(sizes[start:end]) + CELL_OVERHEAD
                number = self._pager.allocate()
                part = keys[start:end], cells[start:end]
                leaves.append(Leaf(number, self._pool.epoch, used, b"", *part))
                self._pool.register(leaves[-1])
                if start:
                    separators.append(separator(keys[start - 1], keys[start]))
                start = end
        return leaves, separators

    def inners(
        self, keys: list[bytes], children: array[int], old: list[Inner], level: int = 0
    ) -> tuple[list[Node], list[bytes]]:
        """Return new inner nodes in the place of *old* ones, and the separators between them."""
        ends = cuts([len(key) + CHILD for key in keys], self._capacity - CHILD)
        nodes: list[Node] = []
        start = 0
        with self._pool.lock:
            for node in old:
                self._pool.give_back(node.number, node.epoch)
                level = node.level
            for end in ends:
                part = keys[start:end]
                used = CHILD * (len(part) + 1) + sum(map(len, part))
                number = self._pager.allocate()
                nodes.append(
                    Inner(number, self._pool.epoch, level, part, children[start : end + 1], used)
                )
                self._pool.register(nodes[-1])
                start = end + 1
        return nodes, [keys[end] for end in ends[:-1]]
