"""A copy-on-write B+tree of records in one file: get, put, delete, scans, snapshots, checkpoints.

``pager.py`` draws the file and its meta pages, ``pages.py`` the pages of the tree and what they
are in memory.

1. A node is changed in place only in the epoch it was made in. In every later one it first moves
   to another page, and with it the path to it: once per checkpoint or pinned snapshot, not once
   per write (S1). The pager knows when the old page may be used again.
2. A node made since the last checkpoint stays in memory until a checkpoint writes it; the others
   are cached within bounds (S7, ``bufferpool.py``). What these leave of the room has records that
   were read lately (``recent.py``).
3. A checkpoint freezes the epoch in a moment, writes the frozen nodes in slices beside new writes,
   syncs, and then makes the meta page name the new root (S2, ``writeback.py``). Until that moment
   the file holds the last checkpoint unharmed, so one that runs out of space is simply dropped.
4. What a snapshot still sees is never changed. It costs the writer copies, and space until it is
   closed, but neither ever waits for the other (``snapshot.py``).
5. Bytes that come from the file pass a CRC and bounds checks (S3); whatever a page claims, the
   answer is a CorruptionError or a well-formed record, and no descent is deeper than the root's
   level (``search.py``). The order of keys is for :meth:`BTree.check` to prove (S4,
   ``treecheck.py``).
6. Separators in inner nodes are no longer than they need to be (``layout.py``).
7. A spilled value that is replaced or removed is out of the tree at once; its pages are found one
   after the other, so they become free by and by (:meth:`BTree.maintain`, ``spilled.py``), and all
   of them before the next checkpoint begins. Who writes long values frees more than that takes.

Threads: one writer at a time, in the caller's lock: ``put``, ``delete``, ``touch``, ``get``,
``heading``, ``beginning``, ``snapshot``, ``items``, ``keys``, ``scan``, ``scan_headings``,
``scan_keys``, ``len``, ``bulk_load``, ``begin_checkpoint``, ``check``, ``maintain``. Any thread at
any time: everything on a snapshot, the iterators that ``items`` and ``keys`` return, ``stats`` and
the methods of one checkpoint. The pager's lock guards what these share.
"""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from math import inf
from typing import TypeAlias, TypeVar, cast

from conure.fileio import FileSystem
from conure.storage.atonce import make_at_once
from conure.storage.bufferpool import MANY, BufferPool
from conure.storage.bulkload import Loader
from conure.storage.cells import NARROW, NARROW_HEAD, NARROW_SIZE, make_cell, new_record
from conure.storage.engine import CheckReport, EngineOptions, Record, StorageEngine
from conure.storage.layout import Layout
from conure.storage.pages import (
    CELL_OVERHEAD,
    CHUNK,
    MAX_VALUE,
    REF,
    Inner,
    Leaf,
    Limits,
    Node,
)
from conure.storage.recent import Recent
from conure.storage.search import Search
from conure.storage.snapshot import Snapshot, State
from conure.storage.spilled import SpilledValues
from conure.storage.treecheck import TreeCheck
from conure.storage.treestats import TreeStats
from conure.storage.writeback import Checkpoint
from pager import ENVELOPE, OVERFLOW, Meta, Pager

__all__ = ["BTree", "BTreeKind"]

_GIVEN_BACK = 32  # records read lately that make room for a page of the tree
_RECENT_AT_ONCE = 500  # and that go at once where nothing but that is done
_RECLAIMED_PAGES = 64  # of values that are out of the tree, freed in one go
_TAIL_PAGES = 64  # how many pages a checkpoint moves from the end of the file at most
_MOVE_PAGES = 256  # and how many it writes for that; the last value may take it beyond
_MOVE_CHAIN = 320  # a longer overflow chain stays where it is

_Path: TypeAlias = list[tuple[Inner, int]]
_Group = TypeVar("_Group")


# -- the tree ------------------------------------------------------------------------------------


class BTree:
    """An ordered map from keys to records in one file (engine.StorageEngine).

    See the module for who may call what.

    ``applied_index``, ``applied_term`` and ``applied_digest`` are those of the last durable
    checkpoint, kept for the caller. Keys are 1 to ``max_key_bytes`` bytes, values up to 2 GiB.
    ``outdated`` takes down each key whose record with an expiry was changed or removed, and that
    expiry, for a caller that keeps an index of them; whoever reads it empties it.
    """

    def __init__(self, pager: Pager, cache_bytes: int) -> None:
        meta = pager.meta
        self.applied_index = meta.applied_index
        self.applied_term = meta.applied_term
        self.applied_digest = meta.digest
        self.outdated: list[tuple[bytes, int]] = []
        self._pager = pager
        self._lock = pager.lock
        self._limits = Limits.of(pager.page_size)
        self._capacity, self._minimum, self._inline, self.max_key_bytes = self._limits
        self._pool = BufferPool(pager, cache_bytes)
        self._spilled = SpilledValues(pager, self._pool, self._capacity)
        self._search = Search(pager, self._pool, self._spilled)
        self._layout = Layout(pager, self._pool, self._capacity)
        self._recent = Recent()
        self._nodes = self._pool.nodes
        self._find_cell = self._search.cell
        self._leaf = self._search.leaf
        self._find = self._search.find
        self._root = meta.root
        self._level = meta.level  # of the root
        self._records = meta.records
        self._checkpoint: Checkpoint | None = None
        self._is_loading = False
        self._closed = False
        self._abandoned: deque[int] = deque()  # epochs of snapshots that nobody closed

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
        recent = self._recent
        cell = recent.young.get(key) or (recent.old and recent.again(key))
        if not cell:
            number, cell = self._find_cell(self._root, self._level, key)
            if cell is None:
                return None
            if cell[0]:
                return self._search.record(number, key, cell)
            room = self._pool.spare
            if room > 0:
                recent.add(key, cell, room)
            elif recent.bytes:
                recent.shrink(room, _GIVEN_BACK)
        create, mod, version = NARROW.unpack_from(cell, 1)
        return new_record((cell[NARROW_SIZE:], create, mod, version, 0))

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of *key* without its value, and how many bytes that has.

        Nothing of a long value is read. Under the caller's lock, as :meth:`get`.
        """
        leaf = self._leaf(self._root, self._level, key)
        _, cell = self._find(leaf, key)
        return None if cell is None else self._search.heading(leaf.number, cell)

    def beginning(self, key: bytes, most: int) -> bytes | None:
        """Return the first *most* bytes of the value of *key*; None if there is no record.

        No more of a long value is read than it takes. Under the caller's lock, as :meth:`get`.
        """
        leaf = self._leaf(self._root, self._level, key)
        _, cell = self._find(leaf, key)
        if cell is None:
            return None
        record, spilled = self._pool.opened(leaf.number, cell)
        value = record.value
        if spilled:
            size, parts = 0, []
            for _, _, chunk in self._spilled.chain(key, value):
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
        root = self._pool.unwritten.get(self._root)
        with self._lock:
            if root is not None and root.epoch == self._pool.epoch:
                self._pool.epoch += 1
            self._pager.pin(self._pool.epoch - 1)
            self._pool.readers += 1
        return Snapshot(
            self._search,
            self._root,
            self._level,
            self._records,
            self._pool.epoch - 1,
            closed=self._close_reader,
            abandoned=self._abandoned.append,
        )

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end, in the order of the keys.

        Call it under the caller's lock: it shows the state of that moment. The iterator itself
        may be used by any one thread; exhausting or dropping it lets go of the state.
        """
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot.item_groups(start, end, reverse)))

    def scan(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate like :meth:`items` without pinning the state, for a few records it is cheaper.

        Nothing may be written before it is used up or dropped, and no checkpoint begun; the
        writer's thread only. Nothing that was deleted is in the way, so None never comes.
        """
        return self._present().items(start, end, reverse=reverse)

    def scan_headings(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, tuple[Record, int]] | None]:
        """Iterate like :meth:`scan` over keys and what :meth:`heading` returns of them."""
        return chain.from_iterable(
            self._search.groups(self._root, self._level, start, end, reverse, self._search.headings)
        )

    def scan_keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`scan` over the keys alone."""
        return self._present().keys(start, end, reverse=reverse)

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot.key_groups(start, end, reverse)))

    # -- writing ---------------------------------------------------------------------------------

    def put(  # noqa: C901 - every write comes through here, and calls cost time
        self, key: bytes, value: bytes, revision: int, expiry: int = 0
    ) -> int:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Returns the version.

        Raises ValueError if key or value are too long, and CorruptionError.
        """
        key_size = len(key)
        if not 0 < key_size <= self.max_key_bytes:
            raise ValueError(f"a key has 1 to {self.max_key_bytes} bytes, not {key_size}")
        if len(value) > MAX_VALUE:
            raise ValueError(f"a value has up to {MAX_VALUE} bytes, not {len(value)}")
        leaf = self._writable(key)
        if leaf.page:
            slot, old = self._find(leaf, key)
        else:  # as Leaf.find, without the calls
            keys = leaf.keys
            slot = bisect_left(keys, key)
            old = leaf.cells[slot] if slot < len(keys) and keys[slot] == key else None
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
            stored = self._spilled.put(key, value) if spilled else value
            cell = make_cell(stored, create, revision, version, expiry, spilled=spilled)
        else:
            cell = NARROW_HEAD.pack(0, create, revision, version) + value
        growth = len(cell) - len(old) if old else CELL_OVERHEAD + key_size + len(cell)
        if leaf.page and leaf.used + growth > self._capacity:
            self._pool.unpack(leaf)
        if old is None:
            self._records += 1
            if not leaf.page:
                self._pool.added_records += 1
        leaf.put(slot, key, cell, old)
        recent = self._recent
        if recent.bytes and (key in recent.young or key in recent.old):
            recent.replace(key, cell)
        if leaf.used > self._capacity:
            self._split(leaf, key)
        elif growth < 0 and leaf.used < self._minimum:
            self._merge(leaf, key)
        if spilled:
            self._spilled.reclaim(2 + 2 * len(value) // self._capacity)
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
        self._recent.drop(key)
        self._records -= 1
        if not leaf.page:
            self._pool.added_records -= 1
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
        record, spilled = self._pool.opened(leaf.number, old)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        cell = make_cell(*record[:4], expiry, spilled=spilled)
        self._pool.unpack(leaf)
        leaf.put(slot, key, cell, old)
        self._recent.drop(key)
        if leaf.used > self._capacity:
            self._split(leaf, key)
        elif leaf.used < self._minimum:
            self._merge(leaf, key)
        return self.get(key)

    def maintain(self, seconds: float) -> bool:
        """Free pages of values that are out of the tree, and let go of records read lately whose
        room pages have taken, for about that long; tell whether there is more.

        Raises CorruptionError.
        """
        deadline = time.perf_counter() + seconds
        while self._spilled.reclaim(_RECLAIMED_PAGES) or self._recent.shrink(
            self._pool.spare, _RECENT_AT_ONCE
        ):
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
        if self._records or self._checkpoint or self._is_loading:
            raise ValueError("only an empty tree that nothing else writes to can be loaded")
        self._is_loading = True
        return Loader(
            self._pager,
            self._pool,
            self._spilled,
            self._limits,
            adopt=self._adopt,
            dropped=self._stop_loading,
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def begin_checkpoint(
        self, applied_index: int, applied_term: int, digest: int = 0
    ) -> Checkpoint:
        """Freeze the present state for writing; under the caller's lock, in about a millisecond.

        One at a time: the one before has to be finished or aborted. It takes longer if there is
        much for :meth:`maintain` to do.
        """
        assert self._checkpoint is None, "a checkpoint is running already"
        assert not self._is_loading, "a load is running"
        while self._abandoned:
            self._close_reader(self._abandoned.popleft())
        self._move_tail()
        while self._spilled.reclaim(_RECLAIMED_PAGES):
            pass
        with self._lock:
            space = self._pager.freeze()
            state = self._pager.meta._replace(
                epoch=self._pool.epoch,
                root=self._root,
                level=self._level,
                records=self._records,
                applied_index=applied_index,
                applied_term=applied_term,
                digest=digest,
            )
            self._pager.pin(self._pool.epoch)
            self._pool.epoch += 1
            self._pool.freeze()
            self._checkpoint = Checkpoint(
                self._pager,
                self._pool,
                state,
                space,
                committed=self._committed,
                ended=self._checkpoint_ended,
            )
        return self._checkpoint

    def checkpoint(self, applied_index: int, applied_term: int, digest: int = 0) -> None:
        """Make the present state durable. Raises DiskFull, after which it may be tried again."""
        make_at_once(self.begin_checkpoint(applied_index, applied_term, digest))

    @property
    def dirty_pages(self) -> int:
        """Pages that the next checkpoint has to write, those of a running one included."""
        return self._pool.dirty_pages

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory is taken by pages that aren't written yet, in bytes."""
        return self._pool.unwritten_bytes

    # -- observing -------------------------------------------------------------------------------

    def compact(self, seconds: float) -> bool:  # noqa: ARG002
        """Do nothing: a checkpoint gives free pages back."""
        return False

    @property
    def pressure(self) -> float:
        """0.0: nothing is merged here."""
        return 0.0

    def stats(self) -> TreeStats:
        """Return the tree's figures. Any thread.

        Cache hits and misses are those of point reads that go through the tree; scans and writes
        don't use the cache, and what was read lately isn't looked for in it.
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
            cache_bytes=self._pool.cached_bytes,
            recent_bytes=self._recent.bytes,
            cache_hits=max(0, self._search.descents - self._pool.misses),
            cache_misses=self._pool.misses,
            evictions=self._pool.evictions,
            unwritten_pages=self._pool.dirty_pages,
            readers=self._pool.readers,
            txid=pager.meta.txid,
        )

    def check(self) -> CheckReport:
        """Prove S4 for the present state, written or not, and return what was counted.

        Under the caller's lock, without a running checkpoint. Raises CorruptionError.
        """
        self.maintain(inf)
        for key, cell in chain(self._recent.young.items(), self._recent.old.items()):
            assert self._find_cell(self._root, self._level, key)[1] == cell, key
        check = TreeCheck(self._pager, self._pool, self._spilled, self._capacity)
        return check.run(self._root, self._level, self._records)

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

    def _present(self) -> State:
        """Return the tree as it is, to be read before anything is written."""
        return State(self._search, self._root, self._level, self._records)

    def _is_left(self) -> bool:
        """Tell whether the tree is closed and nobody needs its file any more; lock held."""
        return self._closed and not self._pool.readers and self._checkpoint is None

    def _node_at(self, key: bytes, level: int) -> Node:
        """Return the node of a level in which *key* is or would be, or the root below it."""
        node = self._pool.node(self._root)
        while node.level > level and isinstance(node, Inner):
            node = self._child(node, bisect_right(node.keys, key))
        return node

    # -- private: changing -----------------------------------------------------------------------

    def _writable(self, key: bytes) -> Leaf:
        """Return the leaf for *key*, which may be changed in place, as may the path to it."""
        nodes = self._nodes
        pool = self._pool
        epoch = pool.epoch
        level = self._level
        number = self._root
        node = nodes.get(number) or pool.load(number)
        if node.epoch != epoch:
            node = pool.own(number, node)
            self._root = node.number
        while isinstance(node, Inner) and node.level == level:
            level -= 1
            at = bisect_right(node.keys, key)
            number = node.children[at]
            child = nodes.get(number) or pool.load(number)
            if child.epoch != epoch:
                child = pool.own(number, child)
                node.children[at] = child.number
            node = child
        if level or not isinstance(node, Leaf):
            raise self._search.misplaced(node.number)
        if node.uses >= MANY and node.page:
            pool.unpack(node)
        return node

    def _free(self, node: Node) -> None:
        """Take a node out of the tree; with the lock held."""
        self._pool.give_back(node.number, node.epoch)

    def _adopt(self, root: int, level: int, records: int) -> None:
        """Let what a loader has built be the tree."""
        empty = self._pool.node(self._root)
        with self._lock:
            assert not self._records, "the tree was written to while it was loaded"
            self._free(empty)
            self._root = root
            self._level = level
            self._records = records
            self._pool.epoch += 1  # what is written already must not be changed in place
            self._is_loading = False

    def _stop_loading(self) -> None:
        self._is_loading = False

    # -- private: letting go -----------------------------------------------------------------------

    def _close_reader(self, epoch: int) -> None:
        self._pool.unpin(epoch)
        with self._lock:
            self._pool.readers -= 1
            last = self._is_left()
        if last:
            self._pager.close()

    def _committed(self, state: Meta) -> None:
        """Take note that a checkpoint is durable."""
        self.applied_index = state.applied_index
        self.applied_term = state.applied_term
        self.applied_digest = state.digest

    def _checkpoint_ended(self) -> None:
        with self._lock:
            self._checkpoint = None
            last = self._is_left()
        if last:
            self._pager.close()

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
        self._recent.shrink(self._pool.spare, _GIVEN_BACK)
        path = self._path(key)
        # Keys that arrive in order at the end of the tree leave full leaves behind.
        ascending = key == leaf.keys[-1] and all(at == len(node.keys) for node, at in path)
        self._splice(path, *self._layout.leaves(leaf.keys, leaf.cells, [leaf], ascending))

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
        (keys, cells), (more_keys, more_cells) = map(self._pool.lists, pair)
        self._splice(
            path, *self._layout.leaves(keys + more_keys, cells + more_cells, pair), removed=2
        )

    def _splice(
        self, path: _Path, parts: list[Node], separators: list[bytes], removed: int = 1
    ) -> None:
        """Put *parts* where *removed* children began at the end of *path*; mend what is above."""
        while path:
            node, at = path.pop()
            node.replace(at, removed, separators, [part.number for part in parts])
            if node.used > self._capacity:
                parts, separators = self._layout.inners(node.keys, node.children, [node])
                removed = 1
            elif path and node.used < self._minimum:
                above, at = path.pop()
                left = at - (at == len(above.keys))
                pair = [node, node]
                pair[left == at] = cast("Inner", self._child(above, left + (left == at)))
                keys = [*pair[0].keys, above.keys[left], *pair[1].keys]
                parts, separators = self._layout.inners(
                    keys, pair[0].children + pair[1].children, pair
                )
                path.append((above, left))
                removed = 2
            else:
                break
        else:
            if len(parts) > 1:
                children = array("I", [part.number for part in parts])
                parts, _ = self._layout.inners(separators, children, [], parts[0].level + 1)
            self._root = parts[0].number
            self._level = parts[0].level
        root = self._nodes.get(self._root)
        while isinstance(root, Inner) and not root.keys:
            self._root = root.children[0]
            self._level -= 1
            with self._lock:
                self._free(root)
            root = self._nodes.get(self._root)

    def _child(self, node: Inner, at: int) -> Node:
        number = node.children[at]
        child = self._pool.node(number)
        if child.level != node.level - 1:
            raise self._search.misplaced(number)
        return child

    def _move_tail(self) -> None:
        """Copy some of the last live pages to free places before them, so the file can shrink."""
        limit = min(_TAIL_PAGES, 4 + len(self._pool.unwritten))
        with self._lock:
            tail = self._pager.last_in_tree(limit)
        # After an aborted checkpoint a move may free a page that was never written.
        tail = [number for number in tail if number not in self._pool.unwritten]
        budget = _MOVE_PAGES
        for number in tail:
            with self._lock:
                pays = self._pager.has_free_below(number)
            if budget <= 0 or not pays:
                break
            if number not in self._pool.unwritten:
                budget -= self._move(number)

    def _move(self, number: int) -> int:
        """Copy the page to where there is room, if it is still in the tree; return pages written.

        It is written, so whatever has happened to it since, it is still on disk.
        """
        page = self._pager.read(number)
        if page[0] == OVERFLOW:
            return self._move_value(number, page)
        node = self._pool.node(number)
        keys = self._pool.lists(node)[0] if isinstance(node, Leaf) else node.keys
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
        record, spilled = self._pool.opened(leaf.number, cell) if cell else (None, False)
        if not record or not spilled:
            return 0
        chain = list(self._spilled.chain(key, record.value))
        too_long = len(chain) > min(_MOVE_CHAIN, self._pager.free_pages)
        if too_long or all(number != link for link, _, _ in chain):
            return 0
        leaf = self._writable(key)
        ref = self._spilled.put(key, b"".join([chunk for _, _, chunk in chain]))
        slot, cell = self._find(leaf, key)
        assert cell is not None
        record, _ = self._pool.opened(leaf.number, cell)
        self._spilled.let_go(key, record.value)  # elsewhere, and not outdated
        leaf.put(slot, key, cell[: -REF.size] + ref, cell)
        return len(chain)

    def _outdate(self, leaf: Leaf, key: bytes, cell: bytes) -> tuple[int, int]:
        """Let go of a record's value, if it is spilled (7); return create and version."""
        record, spilled = self._pool.opened(leaf.number, cell)
        if record.expiry:
            self.outdated.append((key, record.expiry))
        if spilled:
            self._spilled.let_go(key, record.value)
        return record.create_revision, record.version


class BTreeKind:
    """The B-tree as a kind of engine (engine.EngineKind): a state is one file."""

    name = "btree"

    def open(
        self,
        fs: FileSystem,
        place: str,
        options: EngineOptions,
        *,
        create: bool,
        like: StorageEngine | None = None,  # noqa: ARG002
    ) -> BTree:
        """Open the tree in the file *place*; see :meth:`BTree.open`."""
        return BTree.open(
            fs,
            place,
            page_size=options.page_size,
            cache_bytes=options.cache_bytes,
            create=create,
        )

    def applied(self, fs: FileSystem, place: str) -> tuple[int, int]:
        """Return index and term of the last checkpoint in a file, zeros without a file."""
        if not fs.exists(place):
            return 0, 0
        tree = BTree.open(fs, place, create=False)
        tree.close()
        return tree.applied_index, tree.applied_term

    def remains(self, fs: FileSystem, place: str) -> str:  # noqa: ARG002
        """Return "": there is the file, or nothing."""
        return ""

    def sync(self, fs: FileSystem, place: str) -> None:
        """Sync the file."""
        file = fs.open(place)
        try:
            file.sync()
        finally:
            file.close()

    def rename(self, fs: FileSystem, place: str, new: str) -> None:
        """Give the file another name, which a power failure may undo."""
        fs.rename(place, new)

    def put_in_place(
        self,
        fs: FileSystem,
        staged: str,
        place: str,
        *,
        removes: bool = True,  # noqa: ARG002
    ) -> None:
        """Let the file *staged* be the one at *place*, durably."""
        fs.rename(staged, place)
        fs.sync_directory(os.path.dirname(place) or ".")

    def remove(self, fs: FileSystem, place: str) -> None:
        """Remove the file, and its beginning (pager.py)."""
        for path in (place, place + ".new"):
            if fs.exists(path):
                fs.remove(path)


def _closing(snapshot: Snapshot, groups: Iterator[_Group]) -> Iterator[_Group]:
    """Pass the groups on and close the snapshot after the last one."""
    with snapshot:
        yield from groups
