"""The pages of a tree that are in memory: those no checkpoint has written, and a cache of others.

The pool owns the objects of pages, from the moment in which one is read or made until it is
dropped, and what they weigh. It knows nothing of keys: how a tree is searched and shaped is for
``btree.py``, and which pages of the file are free for ``pager.py``, to whom the pool gives back
what leaves the tree.

1. A page made since the last checkpoint began is *unwritten*, one of the running checkpoint is
   *frozen*; both stay in memory until a checkpoint has written them. ``overflow`` has those of
   either kind that are parts of long values.
2. Written nodes are the cache, whose bytes are bounded (S7): second chance, each node counts as its
   page plus what its objects take.
3. A node is changed in place only in the epoch in which it was made. :meth:`BufferPool.own` moves
   one of an earlier epoch to another page, as a copy if somebody else may look at it (S1).
4. A leaf that is used a few times goes to lists, and is packed again when a checkpoint has written
   it. In the cache, lists have what room it can spare, and a small part of it in any case: where
   room is short, leaves in lists are packed before any page is dropped for them.

Threads: the tree's writer, in its caller's lock, makes and changes pages; any thread may look nodes
up, read pages and let go of a pinned state. ``lock`` is the pager's; methods that say "lock held"
are called with it. ``nodes`` and ``touched`` are looked at without it on the way to a leaf: an
entry of a dictionary is there or not.
"""

from __future__ import annotations

from collections import OrderedDict

from conure.storage.cells import open_cell
from conure.storage.engine import Record
from conure.storage.pages import (
    NODE_BYTES,
    RECORD_BYTES,
    REF,
    SEPARATOR_BYTES,
    Leaf,
    Node,
    Overflow,
    Page,
    decode_node,
)
from pager import Pager

__all__ = ["MANY", "BufferPool"]

_REFERENCE = REF.size
MANY = 8
"""A packed leaf that was used so often goes to lists."""

_LISTS_SHARE = 64  # in a full cache, lists take up to one part in so many beyond their packed form
_SPARED = 16  # one part of the cache in so many is to be free of lists beyond that
_SETTLE_PAGES = 1000  # freed pages looked at while the lock is held once


class BufferPool:
    """The pages of one tree in memory. *cache_bytes* bounds the written ones."""

    def __init__(self, pager: Pager, cache_bytes: int) -> None:
        self.lock = pager.lock
        self.epoch = pager.meta.epoch + 1  # nodes made in it may be changed in place
        self.nodes: dict[int, Node] = {}
        self.touched: set[int] = set()  # nodes used since they were last looked at
        self.unwritten: dict[int, Page] = {}
        self.frozen: dict[int, Page] = {}
        self.overflow: dict[int, Overflow] = {}
        self.readers = 0  # states that are pinned for somebody who reads them
        self.added_records = 0  # to the lists of unwritten leaves, by the writer
        self.cached_bytes = 0
        self.misses = 0
        self.evictions = 0
        self._pager = pager
        self._limit = cache_bytes
        self._ring: OrderedDict[int, int] = OrderedDict()  # sizes of written nodes, victims first
        self._lists: OrderedDict[int, None] = OrderedDict()  # leaves of these in lists, likewise
        self._listed_records = 0  # what came to and went from such lists with these, lock held
        self._cached_in_lists = 0  # records of the cache's leaves that are in lists

    @property
    def dirty_pages(self) -> int:
        """Pages that the next checkpoint has to write, those of a running one included."""
        return len(self.unwritten) + len(self.frozen)

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory is taken by pages that aren't written yet, in bytes."""
        records = self._listed_records + self.added_records
        return self.dirty_pages * (self._pager.page_size + NODE_BYTES) + records * RECORD_BYTES

    @property
    def spare(self) -> int:
        """How many bytes nodes leave of what the cache may take, less what it has to spare for them
        soon; below 0: none. Any thread."""
        return self._limit - self._limit // _SPARED - self.cached_bytes

    # -- looking at pages, any thread --------------------------------------------------------------

    def node(self, number: int) -> Node:
        """Return a node without a place in the cache for it: scans don't push others out.

        Raises like :meth:`load`.
        """
        return self.nodes.get(number) or self.load(number)

    def fetch(self, number: int) -> Node:
        """Read a node into the cache. Raises like :meth:`load`."""
        self.misses += 1
        node = self.load(number)
        with self.lock:
            found = self.nodes.setdefault(number, node)
            if found is node:
                self._admit(node)
        return found

    def load(self, number: int) -> Node:
        """Read a node.

        Raises CorruptionError if the checksum or the bounds of what is in it don't hold (S3), and
        DiskFailed.
        """
        page = self._pager.read(number)
        try:
            node = decode_node(number, page, self.epoch)
        except ValueError as error:
            raise self._pager.corrupt(number, str(error)) from error
        return node

    def keys(self, leaf: Leaf) -> list[bytes]:
        """Return the keys of a leaf, not to be changed. Raises CorruptionError."""
        try:
            return leaf.key_list()
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def lists(self, leaf: Leaf) -> tuple[list[bytes], list[bytes]]:
        """Return keys and cells of a leaf, not to be changed. Raises CorruptionError."""
        try:
            return leaf.lists()
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def opened(self, number: int, cell: bytes) -> tuple[Record, bool]:
        """Return the record in a cell of the leaf *number*, and whether its value is a reference.

        Raises CorruptionError.
        """
        try:
            return open_cell(cell, _REFERENCE)
        except ValueError as error:
            raise self._pager.corrupt(number, str(error)) from error

    def unpack(self, leaf: Leaf) -> None:
        """Put a leaf in lists, if it is unwritten or the cache has room for them.

        Raises CorruptionError.
        """
        number = leaf.number
        with self.lock:
            if not leaf.page or self.nodes.get(number) is not leaf:
                return  # another reader was faster, or the cache has dropped it
            cached = number in self._ring
            if cached and self._has_many_lists() and not self._has_spare(leaf.count):
                leaf.uses = 0
                return
            try:
                leaf.unpack()
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            if cached:
                self.cached_bytes -= self._ring.pop(number)
                self._admit(leaf)
            else:
                self._listed_records += len(leaf.keys)

    # -- making and giving back pages, the writer --------------------------------------------------

    def own(self, number: int, node: Node) -> Node:
        """Return a node of an earlier epoch as one that may be changed in place.

        Raises CorruptionError.
        """
        if isinstance(node, Leaf):
            try:
                node.prove()
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            node.uses = 0
        if self.readers or number not in self._ring:
            node = node.copy()  # a snapshot may see it, or it is on its way to the disk
        born = node.epoch
        node.epoch = self.epoch
        with self.lock:
            self.give_back(number, born)
            node.number = self._pager.allocate()
            self.register(node)
        return node

    def allocate(self, count: int) -> list[int]:
        """Return pages for what is not registered, or later. Any thread."""
        with self.lock:
            numbers = [self._pager.allocate() for _ in range(count)]
            for number in numbers:
                self._drop_stale(number)
        return numbers

    def register(self, page: Page) -> None:
        """Enter a new, unwritten page; lock held."""
        number = page.number
        self._drop_stale(number)
        self.unwritten[number] = page
        if isinstance(page, Overflow):
            self.overflow[number] = page
        else:
            self.nodes[number] = page
            if isinstance(page, Leaf):
                self._listed_records += len(page.keys)

    def give_back(self, number: int, born: int) -> None:
        """Take a page of the epoch *born* out of the tree; lock held."""
        freed = self._pager.free(number, born, self.epoch)
        if freed:
            self._forget(number)
        if freed or not self.readers:
            self._drop_stale(number)  # nobody will look at it again

    # -- pinned states, any thread -----------------------------------------------------------------

    def unpin(self, epoch: int) -> None:
        """Let go of a state and of the pages that only it still needed."""
        with self.lock:
            self._pager.unpin(epoch)
        self.settle(epoch)

    def settle(self, epoch: int) -> None:
        """Drop the pages that waited for an epoch which is pinned no more."""
        while True:
            with self.lock:
                released = self._pager.settle(epoch, _SETTLE_PAGES)
                if released is None:
                    return
                for number in released:
                    if number in self.unwritten or number in self.frozen:
                        self._forget(number)

    # -- checkpoints, lock held --------------------------------------------------------------------

    def freeze(self) -> None:
        """Let all unwritten pages be those of the checkpoint that begins."""
        self.frozen, self.unwritten = self.unwritten, {}

    def thaw(self) -> None:
        """Leave the frozen pages, which the checkpoint has not written, to the next one."""
        self.frozen.update(self.unwritten)
        self.unwritten, self.frozen = self.frozen, {}

    def written(self, page: Page, body: bytes) -> None:
        """Move a page that has been written from memory's care to the cache's."""
        if isinstance(page, Overflow):
            del self.overflow[page.number]
            return
        if isinstance(page, Leaf) and not page.page:
            self._listed_records -= len(page.keys)
            if not self._has_spare(len(page.keys), page.used + NODE_BYTES):
                page = self.nodes[page.number] = page.packed(body)
        self._admit(page)

    # -- private, lock held ------------------------------------------------------------------------

    def _admit(self, node: Node) -> None:
        """Count a written node to the cache and push others out."""
        ring = self._ring
        self._count(node)
        while self.cached_bytes > self._limit:
            if self._has_many_lists(2):  # or one would be packed for each that goes to lists
                self._pack_one()
                continue
            number, size = ring.popitem(last=False)
            if number in self.touched:
                self.touched.discard(number)
                ring[number] = size
            else:
                self._evict(number, size)
                self.evictions += 1

    def _pack_one(self) -> None:
        """Pack the leaf of the cache that went to lists first, or one after it that nobody has used
        since."""
        number = next(iter(self._lists))
        if number in self.touched:
            self.touched.discard(number)
            self._lists.move_to_end(number)
            return
        leaf = self.nodes[number]
        assert isinstance(leaf, Leaf)
        self._evict(number, self._ring.pop(number))
        # As another object: somebody may be reading this one.
        self.nodes[number] = packed = leaf.packed(leaf.body())
        self._count(packed)

    def _count(self, node: Node) -> None:
        """Let a node be the last one of the cache."""
        size = node.used + NODE_BYTES
        if isinstance(node, Leaf):
            size += RECORD_BYTES * len(node.keys)
            self._cached_in_lists += len(node.keys)
            if not node.page:
                self._lists[node.number] = None
        else:
            size += SEPARATOR_BYTES * len(node.keys)
        self._ring[node.number] = size
        self.cached_bytes += size

    def _has_many_lists(self, times: int = 1) -> bool:
        """Whether lists take so many *times* as much of the cache as a full one has for them."""
        return self._cached_in_lists * RECORD_BYTES * _LISTS_SHARE > times * self._limit

    def _has_spare(self, records: int, more: int = 0) -> bool:
        """Whether the cache has room for so many more *records* in lists, and *more* bytes, that
        nothing else needs by now."""
        return records * RECORD_BYTES + more <= self.spare

    def _evict(self, number: int, size: int) -> None:
        node = self.nodes.pop(number)
        self.cached_bytes -= size
        if isinstance(node, Leaf):
            self._cached_in_lists -= len(node.keys)
            self._lists.pop(number, None)

    def _drop_stale(self, number: int) -> None:
        """Drop from the cache what a page held before it was free."""
        size = self._ring.pop(number, 0)
        if size:
            self._evict(number, size)
            self.touched.discard(number)

    def _forget(self, number: int) -> None:
        """Drop an unwritten page that nobody can see any more."""
        page = self.unwritten.pop(number, None) or self.frozen.pop(number, None)
        if page is not None:
            self.nodes.pop(number, None)
            self.overflow.pop(number, None)
            self.touched.discard(number)
            if isinstance(page, Leaf):
                self._listed_records -= len(page.keys)
