"""A copy-on-write B+tree of records in one file: get, put, delete, scans, snapshots, checkpoints.

``pager.py`` draws the file and its meta pages, ``pages.py`` the pages of the tree and what they
are in memory.

1. A node is changed in place only in the epoch it was made in. In every later one it first moves
   to another page, and with it the path to it: once per checkpoint or pinned snapshot, not once
   per write (S1). The pager knows when the old page may be used again.
2. A node made since the last checkpoint is *unwritten* and stays in memory until a checkpoint
   writes it. Written nodes form the cache, whose bytes are bounded (S7): second chance, and each
   node counts as its page plus what its objects take. A leaf that is used a few times goes to
   lists, in the cache only as long as these are a small part of it, and is packed again when a
   checkpoint has written it.
3. A checkpoint freezes the epoch in a moment, writes the frozen nodes in slices beside new writes,
   syncs, and then makes the meta page name the new root (S2). Until that moment the file holds
   the last checkpoint unharmed, so one that runs out of space is simply dropped.
4. What a snapshot still sees is never changed. It costs the writer copies, and space until it is
   closed, but neither ever waits for the other.
5. Bytes that come from the file pass a CRC and bounds checks (S3); whatever a page claims, the
   answer is a CorruptionError or a well-formed record, and no descent is deeper than the root's
   level. The order of keys is for :meth:`BTree.check` to prove (S4).
6. Separators in inner nodes are no longer than they need to be.
7. A spilled value that is replaced or removed is out of the tree at once; its pages are found one
   after the other, so they become free by and by (:meth:`BTree.reclaim`), and all of them before
   the next checkpoint begins. Who writes long values frees more than that takes.

Threads: one writer at a time, in the caller's lock: ``put``, ``delete``, ``touch``, ``get``,
``heading``, ``beginning``, ``snapshot``, ``items``, ``keys``, ``scan``, ``scan_headings``, ``len``,
``bulk_load``, ``begin_checkpoint``, ``check``, ``reclaim``. Any thread at any time: everything on a
:class:`Snapshot`, the iterators that ``items`` and ``keys`` return, ``stats`` and the methods of
one :class:`Checkpoint`. The pager's lock guards what these share.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise, repeat
from math import inf
from operator import ge
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, cast

from conure.errors import CorruptionError, StorageError
from conure.fileio import FileSystem
from conure.storage.pages import (
    CELL_OVERHEAD,
    CHILD,
    CHUNK,
    NARROW,
    NARROW_HEAD,
    NARROW_SIZE,
    NODE_BYTES,
    RECORD_BYTES,
    REF,
    SEPARATOR_BYTES,
    WIDEST,
    Inner,
    Leaf,
    Node,
    Overflow,
    Page,
    Record,
    chunk_of,
    cuts,
    decode_node,
    make_cell,
    new_record,
    open_cell,
    separator,
)
from pager import ENVELOPE, OVERFLOW, FreeSpace, Meta, Pager

__all__ = [
    "BTree",
    "CheckReport",
    "Checkpoint",
    "Loader",
    "Record",
    "Snapshot",
    "TreeStats",
]

_MAX_VALUE = 1 << 31
_MANY = 8  # a packed leaf that was used so often goes to lists
_LISTS_SHARE = 64  # in the cache, lists take up to one part in so many beyond their packed form
_BATCH_PAGES = 32  # pages encoded and written in one go
_SYNC_BYTES = 4 << 20  # so much is written before a sync: the log's own syncs never queue for long
_RECLAIMED_PAGES = 64  # of values that are out of the tree, freed in one go
_SETTLE_PAGES = 1000  # freed pages looked at while the lock is held once
_TAIL_PAGES = 64  # how many pages a checkpoint moves from the end of the file at most
_MOVE_PAGES = 256  # and how many it writes for that; the last value may take it beyond
_MOVE_CHAIN = 320  # a longer overflow chain stays where it is

_Path: TypeAlias = list[tuple[Inner, int]]
_Group = TypeVar("_Group")


@dataclass(slots=True)
class TreeStats:
    """Figures of a tree; sizes are in bytes. Cheap to take, whatever the size of the tree."""

    page_size: int
    pages: int
    free_pages: int
    file_bytes: int
    free_bytes: int
    depth: int
    records: int
    cache_bytes: int
    cache_hits: int
    cache_misses: int
    evictions: int
    unwritten_pages: int
    readers: int
    txid: int


@dataclass(slots=True)
class CheckReport:
    """What :meth:`BTree.check` counted. ``used_bytes`` is the used part of leaves and nodes."""

    pages: int = 0
    leaf_pages: int = 0
    inner_pages: int = 0
    overflow_pages: int = 0
    free_pages: int = 0
    map_pages: int = 0
    records: int = 0
    depth: int = 0
    used_bytes: int = 0


# -- the tree ------------------------------------------------------------------------------------


class BTree:
    """An ordered map from keys to records in one file. See the module for who may call what.

    ``applied_index``, ``applied_term`` and ``applied_digest`` are those of the last durable
    checkpoint, kept for the caller. Keys are 1 to ``max_key_bytes`` bytes, values up to 2 GiB.
    ``outdated`` takes down each key whose record with an expiry was changed or removed, and that
    expiry, for a caller that keeps an index of them; whoever reads it empties it.
    """

    def __init__(self, pager: Pager, cache_bytes: int) -> None:
        meta = pager.meta
        page_size = pager.page_size
        self.applied_index = meta.applied_index
        self.applied_term = meta.applied_term
        self.applied_digest = meta.digest
        self._pager = pager
        self._lock = pager.lock
        self._root = meta.root
        self._level = meta.level  # of the root
        self._records = meta.records
        self._epoch = meta.epoch + 1
        self._nodes: dict[int, Node] = {}
        self._unwritten: dict[int, Page] = {}
        self._frozen: dict[int, Page] = {}  # the unwritten pages of the running checkpoint
        self._overflow: dict[int, Overflow] = {}  # unwritten, of either kind
        self._replaced: deque[tuple[bytes, bytes]] = (
            deque()
        )  # values out of the tree: key, reference
        self._reclaiming: Iterator[tuple[int, int, bytes]] = iter(())  # pages of one before those
        self._checkpoint: Checkpoint | None = None
        self._loader: Loader | None = None
        self.outdated: list[tuple[bytes, int]] = []
        self._closed = False
        self._abandoned: deque[int] = deque()  # epochs of snapshots that nobody closed
        self._readers = 0
        self._ring: OrderedDict[int, int] = OrderedDict()  # sizes of written nodes, victims first
        self._touched: set[int] = set()  # those used since they were last looked at
        # Records in the lists of unwritten leaves: what came and went with these, under the lock,
        # and what the writer has added.
        self._unwritten_records = 0
        self._added_records = 0
        self._cache_limit = cache_bytes
        self._cached_bytes = 0
        self._cached_in_lists = 0  # records of the cache's leaves that are in lists
        self._descents = 0
        self._misses = 0
        self._evictions = 0
        # A record takes at most half of a leaf and a separator a third of an inner node, so that
        # whatever is too full can be cut in two that are not.
        self._capacity = page_size - 4 - ENVELOPE.size
        self._minimum = self._capacity // 4
        self._inline = (self._capacity - CELL_OVERHEAD) // 2 - CELL_OVERHEAD - WIDEST
        self.max_key_bytes = min(self._inline - REF.size, (self._capacity - 24) // 3)

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        path: str,
        *,
        page_size: int = 4096,
        cache_bytes: int = 64 << 20,
        create: bool = True,
    ) -> BTree:
        """Open the tree in *path*; with *create*, make an empty one if the file is missing.

        *page_size* counts only when the file is made. *cache_bytes* bounds the written nodes kept
        in memory. Reads the meta pages and the free maps. Raises FileNotFoundError,
        ForeignDirectory, CorruptionError, DiskFull and DiskFailed.
        """
        return cls(Pager.open(fs, path, page_size, create=create), cache_bytes)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> Record | None:
        """Return the record of *key*. Under the caller's lock; a checkpoint may be running."""
        return self._get(self._root, self._level, key)

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of *key* without its value, and how many bytes that has.

        Nothing of a long value is read. Under the caller's lock, as :meth:`get`.
        """
        leaf = self._leaf(self._root, self._level, key)
        _, cell = self._find(leaf, key)
        return None if cell is None else self._heading(leaf.number, cell)

    def beginning(self, key: bytes, most: int) -> bytes | None:
        """Return the first *most* bytes of the value of *key*; None if there is no record.

        No more of a long value is read than it takes. Under the caller's lock, as :meth:`get`.
        """
        leaf = self._leaf(self._root, self._level, key)
        _, cell = self._find(leaf, key)
        if cell is None:
            return None
        record, spilled = self._opened(leaf.number, cell)
        value = record.value
        if spilled:
            size, parts = 0, []
            for _, _, chunk in self._chain(key, value):
                parts.append(chunk)
                size += len(chunk)
                if size >= most:
                    break
            value = b"".join(parts)
        return value[:most]

    def __len__(self) -> int:
        return self._records

    def snapshot(self) -> Snapshot:
        """Pin the present state for reading in any thread. Under the caller's lock; constant time.

        Close it: until then the pages it sees can't be used again.
        """
        assert not self._closed
        root = self._unwritten.get(self._root)
        with self._lock:
            if root is not None and root.epoch == self._epoch:
                self._epoch += 1
            self._pager.pin(self._epoch - 1)
            self._readers += 1
        return Snapshot(self, self._root, self._level, self._epoch - 1, self._records)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end, in the order of the keys.

        Call it under the caller's lock: it shows the state of that moment. The iterator itself
        may be used by any one thread; exhausting or dropping it lets go of the state.
        """
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot._item_groups(start, end, reverse)))

    def scan(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate like :meth:`items` without pinning the state, for a few records it is cheaper.

        Nothing may be written before it is used up or dropped; the writer's thread only.
        """
        present = _Present(self, self._root, self._level, self._epoch, self._records)
        return present.items(start, end, reverse=reverse)

    def scan_headings(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, tuple[Record, int]]]:
        """Iterate like :meth:`scan` over keys and what :meth:`heading` returns of them."""
        for leaf in self._leaves(self._root, self._level, start, end, reverse):
            keys, cells = self._lists(leaf)
            part = slice(*_bounds(keys, start, end))
            keys, cells = keys[part], cells[part]
            if reverse:
                keys.reverse()
                cells.reverse()
            yield from zip(keys, map(self._heading, repeat(leaf.number), cells), strict=True)

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot._key_groups(start, end, reverse)))

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> int:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Returns the version.

        Raises ValueError if key or value are too long, and CorruptionError.
        """
        key_size = len(key)
        if not 0 < key_size <= self.max_key_bytes:
            raise ValueError(f"a key has 1 to {self.max_key_bytes} bytes, not {key_size}")
        if len(value) > _MAX_VALUE:
            raise ValueError(f"a value has up to {_MAX_VALUE} bytes, not {len(value)}")
        leaf = self._writable(key)
        slot, old = self._find(leaf, key)
        if old is not None:
            if old[0]:
                create, version = self._outdate(leaf, key, old)
            else:
                create, _, version = NARROW.unpack_from(old, 1)
            version += 1
        else:
            create = revision
            version = 1
        spilled = key_size + len(value) > self._inline
        if spilled or expiry or version >> 16 or (create | revision) >> 32:
            stored = self._spill(key, value) if spilled else value
            cell = make_cell(stored, create, revision, version, expiry, spilled=spilled)
        else:
            cell = NARROW_HEAD.pack(0, create, revision, version) + value
        growth = len(cell) - len(old) if old else CELL_OVERHEAD + key_size + len(cell)
        if leaf.page and leaf.used + growth > self._capacity:
            self._unpack(leaf)
        if old is None:
            self._records += 1
            if not leaf.page:
                self._added_records += 1
        leaf.put(slot, key, cell, old)
        if leaf.used > self._capacity:
            self._split(leaf, key)
        elif growth < 0 and leaf.used < self._minimum:
            self._merge(leaf, key)
        if spilled:
            self._reclaim(2 + 2 * len(value) // self._capacity)
        return version

    def delete(self, key: bytes) -> bool:
        """Remove *key* and return whether it was there. Raises CorruptionError."""
        if self._find(self._leaf(self._root, self._level, key), key)[1] is None:
            return False  # before a path is copied for nothing
        leaf = self._writable(key)
        slot, cell = self._find(leaf, key)
        assert cell is not None
        if cell[0]:
            self._outdate(leaf, key, cell)
        leaf.remove(slot, key, cell)
        self._records -= 1
        if not leaf.page:
            self._added_records -= 1
        if leaf.used < self._minimum:
            self._merge(leaf, key)
        return True

    def touch(self, key: bytes, expiry: int) -> Record | None:
        """Set the expiry of *key* and nothing else; return the record, or None if there is none.

        Raises CorruptionError.
        """
        if self._find(self._leaf(self._root, self._level, key), key)[1] is None:
            return None
        leaf = self._writable(key)
        slot, old = self._find(leaf, key)
        assert old is not None
        record, spilled = self._opened(leaf.number, old)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        cell = make_cell(*record[:4], expiry, spilled=spilled)
        self._unpack(leaf)
        leaf.put(slot, key, cell, old)
        if leaf.used > self._capacity:
            self._split(leaf, key)
        elif leaf.used < self._minimum:
            self._merge(leaf, key)
        return self.get(key)

    def reclaim(self, seconds: float) -> bool:
        """Free pages of values that are out of the tree, for about that long; tell whether there
        are more. Raises CorruptionError."""
        deadline = time.perf_counter() + seconds
        while self._reclaim(_RECLAIMED_PAGES):
            if time.perf_counter() >= deadline:
                return True
        return False

    def bulk_load(self, items: Iterable[tuple[bytes, Record]]) -> int:
        """Fill an empty tree from sorted items and return how many there were.

        Pages are filled up and written as they come, so memory stays bounded; the next checkpoint
        makes them durable. Raises ValueError if the tree isn't empty or the keys don't ascend;
        after an error the tree is empty as before.
        """
        loader = self.loader()
        try:
            loader.add(items)
            return loader.finish()
        except BaseException:
            loader.abort()
            raise

    def loader(self) -> Loader:
        """Return what fills this empty tree step by step; until its end nothing else may write.

        Raises ValueError if the tree isn't empty, or if a checkpoint or another load is running.
        """
        if self._records or self._checkpoint or self._loader:
            raise ValueError("only an empty tree that nothing else writes to can be loaded")
        self._loader = Loader(self)
        return self._loader

    # -- checkpoints -----------------------------------------------------------------------------

    def begin_checkpoint(
        self, applied_index: int, applied_term: int, digest: int = 0
    ) -> Checkpoint:
        """Freeze the present state for writing; under the caller's lock, in about a millisecond.

        One at a time: the one before has to be finished or aborted. It takes longer if there is
        much to :meth:`reclaim`.
        """
        assert self._checkpoint is None, "a checkpoint is running already"
        assert self._loader is None, "a load is running"
        while self._abandoned:
            self._close_reader(self._abandoned.popleft())
        self._move_tail()
        self.reclaim(inf)
        with self._lock:
            space = self._pager.freeze()
            state = self._pager.meta._replace(
                epoch=self._epoch,
                root=self._root,
                level=self._level,
                records=self._records,
                applied_index=applied_index,
                applied_term=applied_term,
                digest=digest,
            )
            self._pager.pin(self._epoch)
            self._epoch += 1
            self._frozen, self._unwritten = self._unwritten, {}
            self._checkpoint = Checkpoint(self, state, space)
        return self._checkpoint

    def checkpoint(self, applied_index: int, applied_term: int, digest: int = 0) -> None:
        """Make the present state durable. Raises DiskFull, after which it may be tried again."""
        running = self.begin_checkpoint(applied_index, applied_term, digest)
        try:
            while not running.step(1.0):
                pass
            running.finish()
        except StorageError:
            running.abort()
            raise

    @property
    def dirty_pages(self) -> int:
        """Pages that the next checkpoint has to write, those of a running one included."""
        return len(self._unwritten) + len(self._frozen)

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory is taken by pages that aren't written yet, in bytes."""
        records = self._unwritten_records + self._added_records
        return self.dirty_pages * (self._pager.page_size + NODE_BYTES) + records * RECORD_BYTES

    # -- observing -------------------------------------------------------------------------------

    def stats(self) -> TreeStats:
        """Return the tree's figures. Any thread.

        Cache hits and misses are those of point reads; scans and writes don't use the cache.
        """
        pager = self._pager
        with self._lock:
            free = pager.free_pages + pager.waiting_pages
        return TreeStats(
            page_size=pager.page_size,
            pages=pager.pages,
            free_pages=free,
            file_bytes=pager.file_bytes(),
            free_bytes=free * pager.page_size,
            depth=self._level + 1,
            records=self._records,
            cache_bytes=self._cached_bytes,
            cache_hits=max(0, self._descents - self._misses),
            cache_misses=self._misses,
            evictions=self._evictions,
            unwritten_pages=self.dirty_pages,
            readers=self._readers,
            txid=pager.meta.txid,
        )

    def check(self) -> CheckReport:
        """Prove S4 for the present state, written or not, and return what was counted.

        Every page of the tree that is on disk is read again. Each page of the file must be in
        exactly one place: the tree, free, waiting for a pinned state, the free map, a meta page.
        Also proves the order and bounds of all keys, levels, sizes and counts. Under the caller's
        lock, without a running checkpoint. Raises CorruptionError.
        """
        self.reclaim(inf)
        return _Checker(self).run()

    def close(self) -> None:
        """Close the file. What no checkpoint has made durable is dropped.

        Snapshots that are still open can be read to their end, and a checkpoint that is running
        may end: the last of them closes the file.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = self._is_left()
        if last:
            self._pager.close()

    # -- private: finding ------------------------------------------------------------------------

    def _is_left(self) -> bool:
        """Tell whether the tree is closed and nobody needs its file any more; lock held."""
        return self._closed and not self._readers and self._checkpoint is None

    def _get(self, root: int, level: int, key: bytes) -> Record | None:
        self._descents += 1
        leaf = self._leaf(root, level, key)
        if leaf.page:
            leaf.uses += 1
            if leaf.uses >= _MANY:
                self._unpack(leaf)
        try:
            _, cell = leaf.find(key)
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error
        if cell is None:
            return None
        if cell[0]:
            return self._record(leaf.number, key, cell)
        return new_record((cell[NARROW_SIZE:], *NARROW.unpack_from(cell, 1), 0))

    def _leaf(self, number: int, level: int, key: bytes) -> Leaf:
        """Return the leaf in which *key* is or would be, below a node of that *level*."""
        nodes = self._nodes
        touched = self._touched
        while True:
            node = nodes.get(number)
            if node is None:
                node = self._fetch(number)
            else:
                touched.add(number)
            if not level:
                break
            if not isinstance(node, Inner):
                raise self._misplaced(number)
            number = node.children[bisect_right(node.keys, key)]
            level -= 1
        if not isinstance(node, Leaf):
            raise self._misplaced(number)
        return node

    def _find(self, leaf: Leaf, key: bytes) -> tuple[int, bytes | None]:
        try:
            return leaf.find(key)
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def _record(self, number: int, key: bytes, cell: bytes) -> Record:
        """Return the record of a cell of any kind in the leaf *number*."""
        record, spilled = self._opened(number, cell)
        if spilled:
            chain = self._chain(key, record.value)
            return record._replace(value=b"".join([chunk for _, _, chunk in chain]))
        return record

    def _heading(self, number: int, cell: bytes) -> tuple[Record, int]:
        record, spilled = self._opened(number, cell)
        length = REF.unpack(record.value)[1] if spilled else len(record.value)
        return record._replace(value=b""), length

    def _opened(self, number: int, cell: bytes) -> tuple[Record, bool]:
        try:
            return open_cell(cell)
        except ValueError as error:
            raise self._pager.corrupt(number, str(error)) from error

    def _fetch(self, number: int) -> Node:
        """Read a node into the cache."""
        self._misses += 1
        node = self._load(number)
        with self._lock:
            found = self._nodes.setdefault(number, node)
            if found is node:
                self._admit(node)
        return found

    def _node(self, number: int) -> Node:
        """Return a node without a place in the cache for it: scans don't push others out."""
        return self._nodes.get(number) or self._load(number)

    def _node_at(self, key: bytes, level: int) -> Node:
        """Return the node of a level in which *key* is or would be, or the root below it."""
        node = self._node(self._root)
        while node.level > level and isinstance(node, Inner):
            node = self._child(node, bisect_right(node.keys, key))
        return node

    def _misplaced(self, number: int) -> CorruptionError:
        return self._pager.corrupt(number, "the page is not of the level it should be")

    def _leaves(
        self, number: int, level: int, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Leaf]:
        """Iterate over the leaves below a node that may hold keys, start <= key < end."""
        node = self._node(number)
        if node.level != level:
            raise self._misplaced(number)
        if isinstance(node, Leaf):
            yield node
            return
        last = len(node.keys) if end is None else bisect_left(node.keys, end)
        children = node.children[bisect_right(node.keys, start) : last + 1]
        for child in reversed(children) if reverse else children:
            yield from self._leaves(child, level - 1, start, end, reverse)

    def _admit(self, node: Node) -> None:
        """Count a written node to the cache and push others out; with the lock held."""
        number = node.number
        size = node.used + NODE_BYTES
        if isinstance(node, Leaf):
            size += RECORD_BYTES * len(node.keys)
            self._cached_in_lists += len(node.keys)
        else:
            size += SEPARATOR_BYTES * len(node.keys)
        ring = self._ring
        ring[number] = size
        self._cached_bytes += size
        while self._cached_bytes > self._cache_limit:
            number, size = ring.popitem(last=False)
            if number in self._touched:
                self._touched.discard(number)
                ring[number] = size
            else:
                self._evict(number, size)
                self._evictions += 1

    def _evict(self, number: int, size: int) -> None:
        node = self._nodes.pop(number)
        self._cached_bytes -= size
        if isinstance(node, Leaf):
            self._cached_in_lists -= len(node.keys)

    def _written(self, page: Page, body: bytes) -> None:
        """Move a page that has been written from memory's care to the cache's; lock held."""
        if isinstance(page, Overflow):
            del self._overflow[page.number]
            return
        if isinstance(page, Leaf) and not page.page:
            self._unwritten_records -= len(page.keys)
            page = self._nodes[page.number] = page.packed(body)
        self._admit(page)

    # -- private: changing -----------------------------------------------------------------------

    def _writable(self, key: bytes) -> Leaf:
        """Return the leaf for *key*, which may be changed in place, as may the path to it."""
        nodes = self._nodes
        epoch = self._epoch
        level = self._level
        number = self._root
        node = nodes.get(number) or self._load(number)
        if node.epoch != epoch:
            node = self._own(number, node)
            self._root = node.number
        while isinstance(node, Inner) and node.level == level:
            level -= 1
            at = bisect_right(node.keys, key)
            number = node.children[at]
            child = nodes.get(number) or self._load(number)
            if child.epoch != epoch:
                child = self._own(number, child)
                node.children[at] = child.number
            node = child
        if level or not isinstance(node, Leaf):
            raise self._misplaced(node.number)
        if node.uses >= _MANY and node.page:
            self._unpack(node)
        return node

    def _unpack(self, leaf: Leaf) -> None:
        """Put a leaf in lists, if it is unwritten or the cache has room for them. Any thread."""
        number = leaf.number
        with self._lock:
            if not leaf.page or self._nodes.get(number) is not leaf:
                return  # another reader was faster, or the cache has dropped it
            cached = number in self._ring
            if cached and self._cached_in_lists * RECORD_BYTES * _LISTS_SHARE > self._cache_limit:
                leaf.uses = 0
                return
            try:
                leaf.unpack()
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            if cached:
                self._cached_bytes -= self._ring.pop(number)
                self._admit(leaf)
            else:
                self._unwritten_records += len(leaf.keys)

    def _own(self, number: int, node: Node) -> Node:
        """Return a node of an earlier epoch as one that may be changed in place."""
        if isinstance(node, Leaf):
            try:
                node.prove()
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            node.uses = 0
        if self._readers or number not in self._ring:
            node = node.copy()  # a snapshot may see it, or it is on its way to the disk
        born = node.epoch
        node.epoch = self._epoch
        with self._lock:
            self._give_back(number, born)
            node.number = self._pager.allocate()
            self._register(node)
        return node

    def _register(self, page: Page) -> None:
        """Enter a new, unwritten page; with the lock held."""
        number = page.number
        self._drop_stale(number)
        self._unwritten[number] = page
        if isinstance(page, Overflow):
            self._overflow[number] = page
        else:
            self._nodes[number] = page
            if isinstance(page, Leaf):
                self._unwritten_records += len(page.keys)

    def _drop_stale(self, number: int) -> None:
        """Drop from the cache what a page held before it was free; with the lock held."""
        size = self._ring.pop(number, 0)
        if size:
            self._evict(number, size)
            self._touched.discard(number)

    def _free(self, page: Page) -> None:
        """Take a page out of the tree; with the lock held."""
        self._give_back(page.number, page.epoch)

    def _give_back(self, number: int, born: int) -> None:
        freed = self._pager.free(number, born, self._epoch)
        if freed:
            self._forget(number)
        if freed or not self._readers:
            self._drop_stale(number)  # nobody will look at it again

    def _forget(self, number: int) -> None:
        """Drop an unwritten page that nobody can see any more; with the lock held."""
        page = self._unwritten.pop(number, None) or self._frozen.pop(number, None)
        if page is not None:
            self._nodes.pop(number, None)
            self._overflow.pop(number, None)
            self._touched.discard(number)
            if isinstance(page, Leaf):
                self._unwritten_records -= len(page.keys)

    def _close_reader(self, epoch: int) -> None:
        self._unpin(epoch)
        with self._lock:
            self._readers -= 1
            last = self._is_left()
        if last:
            self._pager.close()

    def _unpin(self, epoch: int) -> None:
        """Let go of a state and of the pages that only it still needed. Any thread."""
        with self._lock:
            self._pager.unpin(epoch)
        self._settle(epoch)

    def _settle(self, epoch: int) -> None:
        while True:
            with self._lock:
                released = self._pager.settle(epoch, _SETTLE_PAGES)
                if released is None:
                    return
                for number in released:
                    if number in self._unwritten or number in self._frozen:
                        self._forget(number)

    # -- private: changing the shape -------------------------------------------------------------

    def _path(self, key: bytes) -> _Path:
        """Return the inner nodes above a leaf for *key* that was made writable, and ways taken."""
        path: _Path = []
        node = self._nodes[self._root]
        while isinstance(node, Inner):
            at = bisect_right(node.keys, key)
            path.append((node, at))
            node = self._nodes[node.children[at]]
        return path

    def _split(self, leaf: Leaf, key: bytes) -> None:
        """Cut a leaf that is over-full since *key* was put."""
        path = self._path(key)
        # Keys that arrive in order at the end of the tree leave full leaves behind.
        ascending = key == leaf.keys[-1] and all(at == len(node.keys) for node, at in path)
        self._splice(path, *self._lay_out(leaf.keys, leaf.cells, [leaf], ascending))

    def _merge(self, leaf: Leaf, key: bytes) -> None:
        """Join a leaf that has become small with a neighbour; they may come out as two again."""
        path = self._path(key)
        if not path:
            return
        parent, at = path.pop()
        left = at - (at == len(parent.keys))
        pair = [leaf, leaf]
        pair[left == at] = cast("Leaf", self._child(parent, left + (left == at)))
        path.append((parent, left))
        (keys, cells), (more_keys, more_cells) = map(self._lists, pair)
        self._splice(path, *self._lay_out(keys + more_keys, cells + more_cells, pair), removed=2)

    def _keys(self, leaf: Leaf) -> list[bytes]:
        try:
            return leaf.key_list()
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def _lists(self, leaf: Leaf) -> tuple[list[bytes], list[bytes]]:
        try:
            return leaf.lists()
        except ValueError as error:
            raise self._pager.corrupt(leaf.number, str(error)) from error

    def _lay_out(
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
        with self._lock:
            for leaf in old:
                self._free(leaf)
            for end in ends:
                used = sum(sizes[start:end]) + CELL_OVERHEAD
                number = self._pager.allocate()
                part = keys[start:end], cells[start:end]
                leaves.append(Leaf(number, self._epoch, used, b"", *part))
                self._register(leaves[-1])
                if start:
                    separators.append(separator(keys[start - 1], keys[start]))
                start = end
        return leaves, separators

    def _splice(
        self, path: _Path, parts: list[Node], separators: list[bytes], removed: int = 1
    ) -> None:
        """Put *parts* where *removed* children began at the end of *path*; mend what is above."""
        while path:
            node, at = path.pop()
            node.replace(at, removed, separators, [part.number for part in parts])
            if node.used > self._capacity:
                parts, separators = self._divide(node.keys, node.children, [node])
                removed = 1
            elif path and node.used < self._minimum:
                above, at = path.pop()
                left = at - (at == len(above.keys))
                pair = [node, node]
                pair[left == at] = cast("Inner", self._child(above, left + (left == at)))
                keys = [*pair[0].keys, above.keys[left], *pair[1].keys]
                parts, separators = self._divide(keys, pair[0].children + pair[1].children, pair)
                path.append((above, left))
                removed = 2
            else:
                break
        else:
            if len(parts) > 1:
                children = array("I", [part.number for part in parts])
                parts, _ = self._divide(separators, children, [], parts[0].level + 1)
            self._root = parts[0].number
            self._level = parts[0].level
        root = self._nodes.get(self._root)
        while isinstance(root, Inner) and not root.keys:
            self._root = root.children[0]
            self._level -= 1
            with self._lock:
                self._free(root)
            root = self._nodes.get(self._root)

    def _divide(
        self, keys: list[bytes], children: array[int], old: list[Inner], level: int = 0
    ) -> tuple[list[Node], list[bytes]]:
        """Return new inner nodes in the place of *old* ones, and the separators between them."""
        ends = cuts([len(key) + CHILD for key in keys], self._capacity - CHILD)
        nodes: list[Node] = []
        start = 0
        with self._lock:
            for node in old:
                self._free(node)
                level = node.level
            for end in ends:
                part = keys[start:end]
                used = CHILD * (len(part) + 1) + sum(map(len, part))
                number = self._pager.allocate()
                nodes.append(
                    Inner(number, self._epoch, level, part, children[start : end + 1], used)
                )
                self._register(nodes[-1])
                start = end + 1
        return nodes, [keys[end] for end in ends[:-1]]

    def _child(self, node: Inner, at: int) -> Node:
        number = node.children[at]
        child = self._node(number)
        if child.level != node.level - 1:
            raise self._misplaced(number)
        return child

    def _move_tail(self) -> None:
        """Copy some of the last live pages to free places before them, so the file can shrink."""
        limit = min(_TAIL_PAGES, 4 + len(self._unwritten))
        with self._lock:
            tail = self._pager.last_in_tree(limit)
        # After an aborted checkpoint a move may free a page that was never written.
        tail = [number for number in tail if number not in self._unwritten]
        budget = _MOVE_PAGES
        for number in tail:
            with self._lock:
                pays = self._pager.has_free_below(number)
            if budget <= 0 or not pays:
                break
            if number not in self._unwritten:
                budget -= self._move(number)

    def _move(self, number: int) -> int:
        """Copy the page to where there is room, if it is still in the tree; return pages written.

        It is written, so whatever has happened to it since, it is still on disk.
        """
        page = self._pager.read(number)
        if page[0] == OVERFLOW:
            return self._move_value(number, page)
        node = self._node(number)
        keys = self._lists(node)[0] if isinstance(node, Leaf) else node.keys
        key = keys[0] if keys else b""
        if self._node_at(key, node.level).number != number:
            return 0
        self._writable(key)  # copies the path, and with it this node
        return 1 + self._level

    def _move_value(self, number: int, page: bytes) -> int:
        _, _, key_size, _, _ = ENVELOPE.unpack_from(page)
        start = ENVELOPE.size + CHUNK.size
        key = page[start : start + key_size]
        leaf = self._node_at(key, 0)
        if not isinstance(leaf, Leaf):
            return 0
        _, cell = self._find(leaf, key)
        record, spilled = self._opened(leaf.number, cell) if cell else (None, False)
        if not record or not spilled:
            return 0
        chain = list(self._chain(key, record.value))
        too_long = len(chain) > min(_MOVE_CHAIN, self._pager.free_pages)
        if too_long or all(number != link for link, _, _ in chain):
            return 0
        leaf = self._writable(key)
        ref = self._spill(key, b"".join([chunk for _, _, chunk in chain]))
        slot, cell = self._find(leaf, key)
        assert cell is not None
        self._outdate(leaf, key, cell)
        leaf.put(slot, key, cell[: -REF.size] + ref, cell)
        return len(chain)

    # -- private: spilled values -----------------------------------------------------------------

    def _spill(self, key: bytes, value: bytes) -> bytes:
        """Put a value into overflow pages and return the reference to it."""
        ref, pages = self._overflow_pages(key, value)
        with self._lock:
            for page in pages:
                self._register(page)
        return ref

    def _overflow_pages(self, key: bytes, value: bytes) -> tuple[bytes, list[Overflow]]:
        """Return the reference to a value and the pages that hold it."""
        room = self._capacity - CHUNK.size - len(key)
        starts = range(0, len(value), room)
        epoch = self._epoch
        with self._lock:
            numbers = [self._pager.allocate() for _ in starts]
            for number in numbers:
                self._drop_stale(number)
        pages = [
            Overflow(number, epoch, key, index, value[index * room : (index + 1) * room], link)
            for index, (number, link) in enumerate(pairwise([*numbers, 0]))
        ]
        return REF.pack(numbers[0], len(value)), pages

    def _chain(self, key: bytes, ref: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Iterate over a spilled value's pages: number, epoch and the part of the value there."""
        number, left = REF.unpack(ref)
        limit = self._pager.page_size - 4
        index = 0
        while left:
            unwritten = self._overflow.get(number)
            page = unwritten.content if unwritten else self._pager.read(number)
            try:
                chunk, link, epoch = chunk_of(page, limit, key, index, left)
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            yield number, epoch, chunk
            number = link
            left -= len(chunk)
            index += 1

    def _outdate(self, leaf: Leaf, key: bytes, cell: bytes) -> tuple[int, int]:
        """Let go of a record's value, if it is spilled (7); return create and version."""
        record, spilled = self._opened(leaf.number, cell)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        if spilled:
            self._replaced.append((key, record.value))
        return record.create_revision, record.version

    def _reclaim(self, count: int) -> bool:
        """Free so many pages of values that are out of the tree; tell whether there are more."""
        while count > 0:
            pages = [(number, epoch) for number, epoch, _ in islice(self._reclaiming, count)]
            with self._lock:
                for number, epoch in pages:
                    self._give_back(number, epoch)
            count -= len(pages)
            if not pages:
                if not self._replaced:
                    return False
                self._reclaiming = self._chain(*self._replaced.popleft())
        return True

    # -- private: decoding -----------------------------------------------------------------------

    def _load(self, number: int) -> Node:
        """Read a node.

        Raises CorruptionError if the checksum or the bounds of what is in it don't hold (S3).
        """
        page = self._pager.read(number)
        try:
            node = decode_node(number, page, self._epoch)
        except ValueError as error:
            raise self._pager.corrupt(number, str(error)) from error
        return node


class Snapshot:
    """A state of the tree, pinned until :meth:`close`; a context manager. Any thread may use it.

    What is read of it while another thread closes it ends with StorageError, and is never data of
    another state.
    """

    def __init__(self, tree: BTree, root: int, level: int, epoch: int, records: int) -> None:
        self._tree = tree
        self._root = root
        self._level = level
        self._epoch = epoch
        self._records = records
        self._open = True

    def __len__(self) -> int:
        return self._records

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
            self._tree._abandoned.append(self._epoch)

    def get(self, key: bytes) -> Record | None:
        """Return the record that *key* had."""
        try:
            return self._tree._get(self._root, self._level, key)
        finally:
            self._refuse_if_closed()

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end."""
        return chain.from_iterable(self._guarded(self._item_groups(start, end, reverse)))

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone; several times faster than :meth:`items`."""
        return chain.from_iterable(self._guarded(self._key_groups(start, end, reverse)))

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        if self._open:
            self._open = False
            self._tree._close_reader(self._epoch)

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
            return self._tree._record(number, key, cell)
        finally:
            self._refuse_if_closed()

    def _key_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Sequence[bytes]]:
        tree = self._tree
        for leaf in tree._leaves(self._root, self._level, start, end, reverse):
            keys = tree._keys(leaf)
            first, last = _bounds(keys, start, end)
            keys = keys[first:last]
            yield keys[::-1] if reverse else keys

    def _item_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Iterable[tuple[bytes, Record]]]:
        tree = self._tree
        for leaf in tree._leaves(self._root, self._level, start, end, reverse):
            keys = tree._keys(leaf)
            first, last = _bounds(keys, start, end)
            if first >= last:
                continue
            keys = keys[first:last]
            try:
                records = leaf.records(first, last)
            except ValueError as error:
                raise tree._pager.corrupt(leaf.number, str(error)) from error
            if records is None:
                # Spilled values come one by one: there is only one in memory at a time.
                cells = tree._lists(leaf)[1][first:last]
                if reverse:
                    keys.reverse()
                    cells.reverse()
                yield zip(keys, map(self._record, repeat(leaf.number), keys, cells), strict=True)
            elif reverse:
                yield zip(reversed(keys), reversed([*records]), strict=True)
            else:
                yield zip(keys, records, strict=True)


class _Present(Snapshot):
    """The state as it is now, for as long as nothing is written: there is nothing to let go of."""

    def __del__(self) -> None:
        pass

    def close(self) -> None:
        pass


class Checkpoint:
    """A checkpoint on its way to the disk, made by :meth:`BTree.begin_checkpoint`.

    Call :meth:`step` until it returns True and then :meth:`finish`, from any one thread and without
    the caller's lock. After DiskFull, or to give it up, :meth:`abort`: the tree goes on as it is
    and the next checkpoint writes what this one did not.
    """

    def __init__(self, tree: BTree, state: Meta, space: FreeSpace) -> None:
        self._tree = tree
        self._state = state
        self._space = space
        self._order: list[int] | None = None
        self._next = 0
        self._unsynced = 0
        self._committed = False

    def step(self, seconds: float) -> bool:
        """Encode and write pages for about that long; return whether all are written.

        Raises DiskFull and DiskFailed.
        """
        tree = self._tree
        pager = tree._pager
        deadline = time.perf_counter() + seconds
        if self._order is None:
            with tree._lock:
                self._order = list(tree._frozen)
            self._order.sort()
        order = self._order
        while self._next < len(order):
            batch = order[self._next : self._next + _BATCH_PAGES]
            found = [(number, tree._frozen.get(number)) for number in batch]
            bodies = [(number, page, page.body()) for number, page in found if page]
            pager.write([(number, pager.seal(number, body)) for number, _, body in bodies])
            with tree._lock:
                for number, page, body in bodies:
                    if tree._frozen.pop(number, None):
                        tree._written(page, body)
            self._next += len(batch)
            self._unsynced += len(batch) * pager.page_size
            if self._unsynced >= _SYNC_BYTES:
                pager.sync()
                self._unsynced = 0
            if time.perf_counter() >= deadline:
                break
        return self._next >= len(order)

    def finish(self) -> None:
        """Make the checkpoint durable (S2) and give the pages back that it makes free.

        Raises DiskFull, then :meth:`abort` is due, and DiskFailed.
        """
        tree = self._tree
        assert self._order is not None, "no step was made"
        assert self._next >= len(self._order), "pages are missing"
        settled = tree._pager.commit(self._space, self._state)
        tree.applied_index = self._state.applied_index
        tree.applied_term = self._state.applied_term
        tree.applied_digest = self._state.digest
        try:
            tree._unpin(self._state.epoch)
            tree._settle(settled)
            tree._pager.shrink()
        finally:
            self._end()

    def abort(self) -> None:
        """Give the checkpoint up. The last one stays what the file holds."""
        tree = self._tree
        if tree._checkpoint is not self:
            return
        with tree._lock:
            tree._frozen.update(tree._unwritten)
            tree._unwritten, tree._frozen = tree._frozen, {}
            tree._pager.thaw(self._space)
        tree._unpin(self._state.epoch)
        self._end()

    def _end(self) -> None:
        tree = self._tree
        with tree._lock:
            tree._checkpoint = None
            last = tree._is_left()
        if last:
            tree._pager.close()


# -- helpers -------------------------------------------------------------------------------------


class Loader:
    """Fills an empty tree with sorted items, made by :meth:`BTree.loader`.

    It builds leaf after leaf, each level as full as it gets, and writes pages as they come, so
    memory stays bounded. One thread at a time. After an error, or to give up, :meth:`abort`.
    """

    def __init__(self, tree: BTree) -> None:
        self._tree = tree
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
        tree = self._tree
        keys, cells, used, previous = self._keys, self._cells, self._used, self._last
        capacity, inline, max_key_bytes = tree._capacity, tree._inline, tree.max_key_bytes
        for key, (value, create, mod, version, expiry) in items:
            key_size = len(key)
            if not previous < key or key_size > max_key_bytes or len(value) > _MAX_VALUE:
                raise ValueError(
                    f"keys have to ascend, with 1 to {max_key_bytes} bytes each, "
                    f"and values to have up to {_MAX_VALUE} bytes"
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
        tree = self._tree
        count = self._count + len(self._keys)
        self._leaf(self._keys, self._cells, self._used)
        root = self._finish_levels()
        self._flush()
        empty = tree._node(tree._root)
        with tree._lock:
            assert not tree._records, "the tree was written to while it was loaded"
            tree._free(empty)
            tree._root = root
            tree._level = len(self._levels) - 1
            tree._records = count
            tree._epoch += 1  # what is written already must not be changed in place
            tree._loader = None
        return count

    def abort(self) -> None:
        """Give all pages back: the tree is empty as before. Nothing after :meth:`finish`."""
        tree = self._tree
        with tree._lock:
            if tree._loader is not self:
                return
            tree._loader = None
            for number in self._taken:
                tree._pager.free(number, tree._epoch, tree._epoch)

    def _leaf(
        self, keys: list[bytes], cells: list[bytes], used: int, following: bytes = b""
    ) -> None:
        """Write a leaf; *following* is the separator between it and the next one."""
        leaf = Leaf(self._allocate(), self._tree._epoch, used, b"", keys, cells)
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
        if sum(map(len, keys)) + CHILD * len(keys) > 2 * self._tree._capacity:
            ends = list(accumulate(len(key) + CHILD for key in keys[1:]))
            self._inner(level, 1 + bisect_right(ends, self._tree._capacity - CHILD))

    def _inner(self, level: int, count: int) -> None:
        """Write the first *count* children of a level as one node and hand it to the next level."""
        keys, children = self._levels[level]
        number = self._allocate()
        part = keys[1:count]
        node = Inner(number, self._tree._epoch, level + 1, part, children[:count], 0)
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
            for end in cuts(sizes, self._tree._capacity):
                self._inner(level, end - start)
                start = end
            level += 1

    def _spill(self, key: bytes, value: bytes) -> bytes:
        ref, pages = self._tree._overflow_pages(key, value)
        self._taken.extend(page.number for page in pages)
        for page in pages:
            self._write(page)
        return ref

    def _allocate(self) -> int:
        with self._tree._lock:
            number = self._tree._pager.allocate()
            self._tree._drop_stale(number)
        self._taken.append(number)
        return number

    def _write(self, page: Page) -> None:
        pager = self._tree._pager
        self._pages.append((page.number, pager.seal(page.number, page.body())))
        if len(self._pages) >= _BATCH_PAGES:
            self._flush()

    def _flush(self) -> None:
        pager = self._tree._pager
        pager.write(self._pages)
        self._unsynced += len(self._pages) * pager.page_size
        self._pages = []
        if self._unsynced >= _SYNC_BYTES:
            pager.sync()
            self._unsynced = 0


class _Checker:
    """Walks the whole tree once; see :meth:`BTree.check`."""

    def __init__(self, tree: BTree) -> None:
        self._tree = tree
        self._pager = tree._pager
        self._report = CheckReport(pages=tree._pager.pages)
        self._seen = bytearray(tree._pager.pages)

    def run(self) -> CheckReport:
        tree = self._tree
        report = self._report
        with tree._lock:
            free = self._pager.free_numbers()
            listed = self._pager.map_pages
        for number in (0, 1, *listed, *free):
            self._claim(number)
        report.free_pages = len(free)
        report.map_pages = len(listed)
        report.depth = tree._level + 1
        self._node(tree._root, report.depth - 1, b"", None)
        if report.records != len(tree):
            raise self._pager.corrupt(
                tree._root, f"the tree has {report.records} records and should have {len(tree)}"
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
        tree = self._tree
        node = tree._unwritten.get(number) or tree._frozen.get(number)
        if node is None or isinstance(node, Overflow):
            node = tree._load(number)
        if node.level != level:
            raise self._pager.corrupt(number, "the page is not of the level it should be")
        keys = tree._lists(node)[0] if isinstance(node, Leaf) else node.keys
        if any(map(ge, keys, keys[1:])) or (keys and keys[0] < low):
            raise self._pager.corrupt(number, "the keys are out of order")
        if keys and high is not None and keys[-1] >= high:
            raise self._pager.corrupt(number, "a key is beyond its parent's separator")
        if node.used > tree._capacity or b"" in keys:
            raise self._pager.corrupt(number, "the node is over-full or has an empty key")
        self._report.used_bytes += node.used
        if isinstance(node, Inner):
            self._report.inner_pages += 1
            bounds = pairwise([low, *keys, high])
            for child, (start, end) in zip(node.children, bounds, strict=True):
                self._node(child, level - 1, cast("bytes", start), end)
        else:
            self._report.leaf_pages += 1
            self._leaf(node)

    def _leaf(self, leaf: Leaf) -> None:
        tree = self._tree
        keys, cells = tree._lists(leaf)
        self._report.records += len(keys)
        if not keys and leaf.number != tree._root:
            raise self._pager.corrupt(leaf.number, "the leaf is empty")
        for key, cell in zip(keys, cells, strict=True):
            record, spilled = tree._opened(leaf.number, cell)
            if spilled:
                for number, _, _ in tree._chain(key, record.value):
                    self._claim_for_tree(number)
                    self._report.overflow_pages += 1


def _closing(snapshot: Snapshot, groups: Iterator[_Group]) -> Iterator[_Group]:
    """Pass the groups on and close the snapshot behind the last one."""
    with snapshot:
        yield from groups


def _bounds(keys: Sequence[bytes], start: bytes, end: bytes | None) -> tuple[int, int]:
    return bisect_left(keys, start), len(keys) if end is None else bisect_left(keys, end)
