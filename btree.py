"""A copy-on-write B+tree of records in one file: get, put, delete, scans, snapshots, checkpoints.

Pages are those of ``pager.py``, which also draws their common envelope. What follows it:

============ ===================================================================================
leaf         key offsets (count + 1, 2 each), value offsets (count + 1, 2 each), slots of the
             spilled values (link, 2 each), rows (count, by row format), keys, values
inner node   children (count + 1, 4 each), key offsets (count + 1, 2 each), keys
overflow     index in its chain (4), bytes of the value in this page (4), owner's key, the bytes
============ ===================================================================================

Offsets count from the start of the keys or values and begin with 0. A row is a record's numbers:
format 0 ``create 4, mod 4, version 2`` (10 bytes, no expiry), format 1 the same and ``expiry 8``
(18), format 2 all four in 8 bytes (32); a leaf uses the smallest that fits all of its records.
A value too large for a leaf is spilled: the leaf has the number of its first overflow page (4)
and its length (4) instead. An overflow page repeats the key it belongs to, so that whoever finds
the page finds its owner. Child *i* of an inner node holds the keys from ``keys[i - 1]`` up to but
not including ``keys[i]``; these separators are no longer than they need to be.

In memory a leaf is its page cut into columns, one ``bytes`` each. A change splices the columns, so
a leaf is never unpacked into objects for a single read or write; only a split or merge does that.

1. A node is changed in place only in the epoch it was made in. In every later one it is first
   copied to another page, and with it the path to it: once per checkpoint or pinned snapshot, not
   once per write (S1). The pager knows when the old page may be used again.
2. A node made since the last checkpoint is *unwritten* and stays in memory until a checkpoint
   writes it. Written nodes form the cache, whose bytes are bounded (S7): second chance, and each
   node counts as its page plus what its objects take.
3. A checkpoint freezes the epoch in a moment, writes the frozen nodes in slices beside new writes,
   syncs, and then makes the meta page name the new root (S2). Until that moment the file holds
   the last checkpoint unharmed, so one that runs out of space is simply dropped.
4. What a snapshot still sees is never changed. It costs the writer copies, and space until it is
   closed, but neither ever waits for the other.
5. Bytes that come from the file pass a CRC and bounds checks (S3); whatever a page claims, the
   answer is a CorruptionError or a well-formed record, and no descent is deeper than the root's
   level. The order of keys is for :meth:`BTree.check` to prove (S4).

Threads: one writer at a time, in the caller's lock: ``put``, ``delete``, ``get``, ``snapshot``,
``items``, ``keys``, ``len``, ``bulk_load``, ``begin_checkpoint``, ``check``. Any thread at any
time: everything on a :class:`Snapshot`, the iterators that ``items`` and ``keys`` return, ``stats``
and the methods of one :class:`Checkpoint`. The pager's lock guards what these share.
"""

from __future__ import annotations

import sys
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, chain, pairwise, repeat
from operator import add
from struct import Struct
from types import TracebackType
from typing import NamedTuple, TypeAlias, cast

from errors import CorruptionError, StorageError
from fileio import FileSystem
from pager import ENVELOPE, INNER, LEAF, OVERFLOW, FreeSpace, Meta, Pager

__all__ = ["BTree", "CheckReport", "Checkpoint", "Record", "Snapshot", "TreeStats"]

_MAX_VALUE = 1 << 31
_REF = Struct("<II")  # first overflow page, length of the value
_CHUNK = Struct("<II")  # index in the chain, bytes in this page
_ROWS = (Struct("<IIH"), Struct("<IIHQ"), Struct("<QQQQ"))
_WIDTHS = tuple(row.size for row in _ROWS)
_NARROW, _WIDE = _ROWS[0], _WIDTHS[2]
_CELL = 4  # bytes a leaf spends on a record beside row, key and value: two offsets
_CHILD = 6  # bytes an inner node spends on a child beside its separator: number and offset
_NODE_OVERHEAD = 600  # bytes of memory a cached node takes beside its page, roughly
_BATCH_PAGES = 32  # pages encoded and written in one go
_SYNC_BYTES = 4 << 20  # so much is written before a sync: the log's own syncs never queue for long
_SETTLE_PAGES = 1000  # freed pages looked at while the lock is held once
_MOVE_PAGES = 1024  # a longer overflow chain stays where it is


class Record(NamedTuple):
    """A value and its history.

    Revisions are log indexes: *create_revision* of the write that made the key, *mod_revision* of
    the last one; *version* counts the writes since the key was made. *expiry* is in milliseconds
    since the Unix epoch, 0 for never; the tree keeps it and leaves its meaning to the caller.
    """

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    expiry: int = 0


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
    list_pages: int = 0
    records: int = 0
    depth: int = 0
    used_bytes: int = 0


# -- nodes ---------------------------------------------------------------------------------------


class _Numbers(dict[int, Struct]):
    """Structs of n unsigned 16-bit numbers, made when first needed."""

    def __missing__(self, count: int) -> Struct:
        self[count] = made = Struct(f"<{count}H")
        return made


_U16 = _Numbers()
_PAIR = Struct("<HH")
_new_record = cast("Callable[[Iterable[object]], Record]", partial(tuple.__new__, Record))


class _Cells:
    """The records of one or more leaves as lists, for what rearranges them."""

    __slots__ = ("keys", "rows", "spilled", "values")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: list[bytes] = []
        self.rows: list[tuple[int, int, int, int]] = []
        self.spilled: list[bool] = []

    def sizes(self) -> list[int]:
        """Return what each record takes in a leaf; all of them use the same row format."""
        fixed = _CELL + _WIDTHS[_row_format(self.rows)]
        return [
            fixed + len(key) + len(value) + 2 * spilled
            for key, value, spilled in zip(self.keys, self.values, self.spilled, strict=True)
        ]

    def leaf(self, start: int, end: int, number: int, epoch: int) -> _Leaf:
        """Return the leaf that holds the records from *start* to *end*."""
        keys = self.keys[start:end]
        values = self.values[start:end]
        rows = self.rows[start:end]
        form = _row_format(rows)
        row = _ROWS[form]
        if form == 0:
            packed = b"".join([row.pack(*numbers[:3]) for numbers in rows])
        else:
            packed = b"".join([row.pack(*numbers) for numbers in rows])
        offsets = _U16[len(keys) + 1]
        return _Leaf(
            number,
            epoch,
            len(keys),
            form,
            offsets.pack(*accumulate(map(len, keys), initial=0)),
            offsets.pack(*accumulate(map(len, values), initial=0)),
            tuple(slot for slot, spilled in enumerate(self.spilled[start:end]) if spilled),
            packed,
            b"".join(keys),
            b"".join(values),
        )


class _Leaf:
    """A leaf page cut into columns."""

    __slots__ = (
        "count",
        "epoch",
        "form",
        "key_offsets",
        "keys",
        "number",
        "rows",
        "spilled",
        "touched",
        "value_offsets",
        "values",
    )
    level = 0

    def __init__(
        self,
        number: int,
        epoch: int,
        count: int,
        form: int,
        key_offsets: bytes,
        value_offsets: bytes,
        spilled: tuple[int, ...],
        rows: bytes,
        keys: bytes,
        values: bytes,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.touched = False
        self.count = count
        self.form = form
        self.key_offsets = key_offsets
        self.value_offsets = value_offsets
        self.spilled = spilled
        self.rows = rows
        self.keys = keys
        self.values = values

    def copy(self, number: int, epoch: int) -> _Leaf:
        return _Leaf(
            number,
            epoch,
            self.count,
            self.form,
            self.key_offsets,
            self.value_offsets,
            self.spilled,
            self.rows,
            self.keys,
            self.values,
        )

    def size(self) -> int:
        """Return the bytes it takes in its page behind the envelope."""
        return (
            4 * self.count
            + 4
            + 2 * len(self.spilled)
            + len(self.rows)
            + len(self.keys)
            + len(self.values)
        )

    def memory(self, page_size: int) -> int:
        return page_size + _NODE_OVERHEAD

    def body(self) -> bytes:
        """Return its page without padding and checksum."""
        spilled = self.spilled
        return b"".join(
            (
                ENVELOPE.pack(LEAF, self.form, self.count, len(spilled), self.epoch),
                self.key_offsets,
                self.value_offsets,
                _U16[len(spilled)].pack(*spilled) if spilled else b"",
                self.rows,
                self.keys,
                self.values,
            )
        )

    def find(self, key: bytes) -> int:
        """Return the slot of *key*, or ``~slot`` of where it belongs."""
        keys = self.keys
        count = self.count
        offsets = _U16[count + 1].unpack(self.key_offsets)
        at = keys.find(key)
        if at >= 0:  # very likely the key itself, found at the speed of memory
            slot = bisect_left(offsets, at)
            if offsets[slot] == at and slot < count and offsets[slot + 1] - at == len(key):
                return slot
        slot = bisect_left(
            range(count), key, key=lambda i: keys[offsets[i] : offsets[i + 1]]
        )
        if slot < count and keys[offsets[slot] : offsets[slot + 1]] == key:
            return slot
        return ~slot

    def row(self, slot: int) -> tuple[int, ...]:
        """Return create and mod revision, version and, unless it is format 0, expiry."""
        form = self.form
        return _ROWS[form].unpack_from(self.rows, slot * _WIDTHS[form])

    def value(self, slot: int) -> bytes:
        """Return the value's bytes in this leaf; of a spilled value, its reference."""
        start, end = _PAIR.unpack_from(self.value_offsets, 2 * slot)
        return self.values[start:end]

    def key_list(self) -> list[bytes]:
        keys = self.keys
        offsets = _U16[self.count + 1].unpack(self.key_offsets)
        return [keys[start:end] for start, end in pairwise(offsets)]

    def value_list(self) -> list[bytes]:
        values = self.values
        offsets = _U16[self.count + 1].unpack(self.value_offsets)
        return [values[start:end] for start, end in pairwise(offsets)]

    def add_to(self, cells: _Cells) -> None:
        """Append its records to *cells*."""
        rows = cast("Iterable[tuple[int, int, int, int]]", _ROWS[self.form].iter_unpack(self.rows))
        cells.rows += [(*row, 0) for row in rows] if self.form == 0 else rows
        cells.keys += self.key_list()
        cells.values += self.value_list()
        cells.spilled += [slot in self.spilled for slot in range(self.count)]

    def insert(self, slot: int, key: bytes, row: bytes, value: bytes, spilled: bool) -> None:
        """Put a record before *slot*; the caller has made sure that it fits."""
        at = 2 * slot
        start, _ = _PAIR.unpack_from(self.key_offsets + b"\0\0", at)
        keys = self.keys
        self.keys = keys[:start] + key + keys[start:]
        start, _ = _PAIR.unpack_from(self.value_offsets + b"\0\0", at)
        values = self.values
        self.values = values[:start] + value + values[start:]
        column = self.key_offsets
        self.key_offsets = column[: at + 2] + _shifted(column[at:], len(key))
        column = self.value_offsets
        self.value_offsets = column[: at + 2] + _shifted(column[at:], len(value))
        at = slot * len(row)
        self.rows = self.rows[:at] + row + self.rows[at:]
        self.count += 1
        if self.spilled or spilled:
            moved = [other + (other >= slot) for other in self.spilled]
            self.spilled = tuple(sorted([*moved, slot] if spilled else moved))

    def replace(self, slot: int, row: bytes, value: bytes, spilled: bool) -> None:
        """Give the record at *slot* another value; the caller has made sure that it fits."""
        start, end = _PAIR.unpack_from(self.value_offsets, 2 * slot)
        values = self.values
        self.values = values[:start] + value + values[end:]
        if len(value) != end - start:
            at = 2 * slot + 2
            column = self.value_offsets
            self.value_offsets = column[:at] + _shifted(column[at:], len(value) - end + start)
        at = slot * len(row)
        self.rows = self.rows[:at] + row + self.rows[at + len(row) :]
        if (slot in self.spilled) != spilled:
            others = [other for other in self.spilled if other != slot]
            self.spilled = tuple(sorted([*others, slot] if spilled else others))

    def remove(self, slot: int) -> None:
        """Take the record at *slot* out."""
        at = 2 * slot
        column = self.key_offsets
        start, end = _PAIR.unpack_from(column, at)
        self.key_offsets = column[: at + 2] + _shifted(column[at + 4 :], start - end)
        self.keys = self.keys[:start] + self.keys[end:]
        column = self.value_offsets
        start, end = _PAIR.unpack_from(column, at)
        self.value_offsets = column[: at + 2] + _shifted(column[at + 4 :], start - end)
        self.values = self.values[:start] + self.values[end:]
        width = _WIDTHS[self.form]
        at = slot * width
        self.rows = self.rows[:at] + self.rows[at + width :]
        self.count -= 1
        if self.spilled:
            self.spilled = tuple(
                other - (other > slot) for other in self.spilled if other != slot
            )


class _Inner:
    """An inner node: separators and the page numbers of the children between them."""

    __slots__ = ("children", "epoch", "image", "keys", "level", "number", "touched", "used")

    def __init__(
        self,
        number: int,
        epoch: int,
        level: int,
        keys: list[bytes],
        children: array[int],
        used: int,
        image: bytes | None = None,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.touched = False
        self.level = level
        self.keys = keys
        self.children = children
        self.used = used  # bytes it takes in its page behind the envelope
        self.image = image  # offsets and keys as the page has them, while these don't change

    def copy(self, number: int, epoch: int) -> _Inner:
        return _Inner(
            number, epoch, self.level, self.keys[:], self.children[:], self.used, self.image
        )

    def memory(self, page_size: int) -> int:
        return page_size + _NODE_OVERHEAD + 64 * len(self.keys)

    def body(self) -> bytes:
        """Return its page without padding and checksum."""
        keys = self.keys
        if self.image is None:
            offsets = accumulate(map(len, keys), initial=0)
            self.image = _U16[len(keys) + 1].pack(*offsets) + b"".join(keys)
        head = ENVELOPE.pack(INNER, self.level, len(keys), 0, self.epoch)
        return head + _little_endian(self.children).tobytes() + self.image

    def replace(self, at: int, removed: int, keys: list[bytes], children: list[int]) -> None:
        """Put *children*, separated by *keys*, in the place of *removed* children from *at* on."""
        gone = self.keys[at : at + removed - 1]
        self.keys[at : at + removed - 1] = keys
        self.children[at : at + removed] = array("I", children)
        self.used += _CHILD * (len(children) - removed) + sum(map(len, keys)) - sum(map(len, gone))
        self.image = None


_Node: TypeAlias = _Leaf | _Inner


class _Overflow:
    """One page of a spilled value that is not written yet."""

    __slots__ = ("content", "epoch", "number")

    def __init__(self, number: int, epoch: int, content: bytes) -> None:
        self.number = number
        self.epoch = epoch
        self.content = content

    def body(self) -> bytes:
        return self.content


_Page: TypeAlias = _Leaf | _Inner | _Overflow
_Path: TypeAlias = list[tuple[_Inner, int]]


# -- the tree ------------------------------------------------------------------------------------


class BTree:
    """An ordered map from keys to records in one file. See the module for who may call what.

    ``applied_index`` and ``applied_term`` are those of the last durable checkpoint. Keys are 1 to
    ``max_key_bytes`` bytes, values up to 2 GiB.
    """

    def __init__(self, pager: Pager, cache_bytes: int) -> None:
        meta = pager.meta
        page_size = pager.page_size
        self.applied_index = meta.applied_index
        self.applied_term = meta.applied_term
        self._pager = pager
        self._lock = pager.lock
        self._root = meta.root
        self._records = meta.records
        self._epoch = meta.epoch + 1
        self._nodes: dict[int, _Node] = {}
        self._unwritten: dict[int, _Page] = {}
        self._frozen: dict[int, _Page] = {}  # the unwritten pages of the running checkpoint
        self._overflow: dict[int, _Overflow] = {}  # unwritten, of either kind
        self._checkpoint: Checkpoint | None = None
        self._abandoned: deque[int] = deque()  # epochs of snapshots that nobody closed
        self._readers = 0
        self._ring: OrderedDict[int, _Node] = OrderedDict()  # written nodes, next victim first
        self._cache_limit = cache_bytes
        self._cached_bytes = 0
        self._descents = 0
        self._misses = 0
        self._evictions = 0
        # A record takes at most half of a leaf and a separator a third of an inner node, so that
        # whatever is too full can be cut in two that are not.
        self._capacity = page_size - 4 - ENVELOPE.size
        self._minimum = self._capacity // 4
        self._inline = (self._capacity - 4) // 2 - _CELL - _WIDE
        self.max_key_bytes = min(self._inline - _REF.size - 2, (self._capacity - 24) // 3)

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
        in memory. Reads the meta pages and the free list. Raises FileNotFoundError,
        ForeignDirectory, CorruptionError, DiskFull and DiskFailed.
        """
        return cls(Pager.open(fs, path, page_size, create=create), cache_bytes)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> Record | None:
        """Return the record of *key*. Under the caller's lock; a checkpoint may be running."""
        self._descents += 1
        return self._get(self._root, key)

    def __len__(self) -> int:
        return self._records

    def snapshot(self) -> Snapshot:
        """Pin the present state for reading in any thread. Under the caller's lock; constant time.

        Close it: until then the pages it sees can't be used again.
        """
        root = self._nodes.get(self._root)
        with self._lock:
            if root is not None and root.epoch == self._epoch:
                self._epoch += 1
            self._pager.pin(self._epoch - 1)
            self._readers += 1
        return Snapshot(self, self._root, self._epoch - 1, self._records)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end, in the order of the keys.

        Call it under the caller's lock: it shows the state of that moment. The iterator itself
        may be used by any one thread; exhausting or dropping it lets go of the state.
        """
        return self.snapshot().items(start, end, reverse=reverse)

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""
        return self.snapshot().keys(start, end, reverse=reverse)

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> None:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Raises ValueError if key or value are too long and CorruptionError; then nothing changed.
        """
        key_size = len(key)
        if not 0 < key_size <= self.max_key_bytes:
            raise ValueError(f"a key has 1 to {self.max_key_bytes} bytes, not {key_size}")
        leaf, path = self._writable(key)
        slot = leaf.find(key)
        if slot >= 0:
            create, _, version, *_ = leaf.row(slot)
            version += 1
            if leaf.spilled and slot in leaf.spilled:
                self._free_value(key, leaf.value(slot))
        else:
            create = revision
            version = 1
        spilled = key_size + len(value) > self._inline
        if spilled:
            value = self._spill(key, value)
        if slot >= 0:
            start, end = _PAIR.unpack_from(leaf.value_offsets, 2 * slot)
            added = len(value) - end + start
        else:
            added = key_size + len(value) + _CELL + _WIDTHS[leaf.form]
            self._records += 1
        if spilled:
            added += 2
        narrow = not (expiry or version >> 16 or (create | revision) >> 32)
        form = leaf.form
        if (form == 0 and not narrow) or added > 0 and leaf.size() + added > self._capacity or form == 1 and (version >> 16 or (create | revision) >> 32):
            self._rearrange(leaf, path, slot, key, value, (create, revision, version, expiry), spilled)
            return
        if form == 0:
            row = _NARROW.pack(create, revision, version)
        else:
            row = _ROWS[form].pack(create, revision, version, expiry)
        if slot >= 0:
            leaf.replace(slot, row, value, spilled)
        else:
            leaf.insert(~slot, key, row, value, spilled)
        if added < 0 and path and leaf.size() < self._minimum:
            self._merge(leaf, path)

    def delete(self, key: bytes) -> bool:
        """Remove *key* and return whether it was there."""
        if self._leaf(self._root, key).find(key) < 0:
            return False  # before a path is copied for nothing
        leaf, path = self._writable(key)
        slot = leaf.find(key)
        if slot in leaf.spilled:
            self._free_value(key, leaf.value(slot))
        leaf.remove(slot)
        self._records -= 1
        if path and leaf.size() < self._minimum:
            self._merge(leaf, path)
        return True

    def bulk_load(self, items: Iterable[tuple[bytes, Record]]) -> int:
        """Fill an empty tree from sorted items and return how many there were.

        Pages are filled up and written as they come, so memory stays bounded; the next checkpoint
        makes them durable. Raises ValueError if the tree isn't empty or the keys don't ascend;
        after an error the tree is empty as before.
        """
        if self._records or self._checkpoint:
            raise ValueError("only an empty tree without a running checkpoint can be loaded")
        loader = _Loader(self)
        try:
            root, count = loader.load(items)
        except BaseException:
            loader.undo()
            raise
        with self._lock:
            self._free(self._fetch_locked(self._root))
            self._root = root
            self._records = count
            self._epoch += 1  # what is written must not be changed in place
        return count

    # -- checkpoints -----------------------------------------------------------------------------

    def begin_checkpoint(self, applied_index: int, applied_term: int) -> Checkpoint:
        """Freeze the present state for writing; under the caller's lock, in about a millisecond.

        One at a time: the one before has to be finished or aborted.
        """
        assert self._checkpoint is None, "a checkpoint is running already"
        while self._abandoned:
            self._unpin(self._abandoned.popleft())
        self._move_tail()
        with self._lock:
            state = self._pager.meta._replace(
                epoch=self._epoch,
                root=self._root,
                records=self._records,
                applied_index=applied_index,
                applied_term=applied_term,
            )
            self._pager.pin(self._epoch)
            self._epoch += 1
            self._frozen, self._unwritten = self._unwritten, {}
            self._checkpoint = Checkpoint(self, state, self._pager.freeze())
        return self._checkpoint

    def checkpoint(self, applied_index: int, applied_term: int) -> None:
        """Make the present state durable. Raises DiskFull, after which it may be tried again."""
        running = self.begin_checkpoint(applied_index, applied_term)
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
        return self.dirty_pages * (self._pager.page_size + _NODE_OVERHEAD)

    # -- observing -------------------------------------------------------------------------------

    def stats(self) -> TreeStats:
        """Return the tree's figures. Any thread.

        Cache hits are point reads and writes less the pages that were read from the file.
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
            depth=self._peek(self._root).level + 1,
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
        exactly one place: the tree, free, waiting for a pinned state, the free list, a meta page.
        Also proves the order and bounds of all keys, levels, sizes and counts. Under the caller's
        lock, without a running checkpoint. Raises CorruptionError.
        """
        return _Checker(self).run()

    def close(self) -> None:
        """Close the file. What no checkpoint has made durable is dropped."""
        self._pager.close()

    # -- private: finding ------------------------------------------------------------------------

    def _get(self, root: int, key: bytes) -> Record | None:
        leaf = self._leaf(root, key)
        if key not in leaf.keys:
            return None
        slot = leaf.find(key)
        if slot < 0:
            return None
        value = leaf.value(slot)
        if leaf.spilled and slot in leaf.spilled:
            value = self._read_value(key, value)
        return _new_record((value, *leaf.row(slot), 0)[:5])

    def _leaf(self, root: int, key: bytes) -> _Leaf:
        """Return the leaf in which *key* is or would be."""
        nodes = self._nodes
        node = nodes.get(root) or self._fetch(root)
        while isinstance(node, _Inner):
            number = node.children[bisect_right(node.keys, key)]
            child = nodes.get(number) or self._fetch(number)
            if child.level != node.level - 1:
                raise self._pager.corrupt(number, "the page is not of the level it should be")
            child.touched = True
            node = child
        return node

    def _fetch(self, number: int) -> _Node:
        """Read a node into the cache."""
        self._misses += 1
        node = self._decode(number, self._pager.read(number))
        with self._lock:
            found = self._nodes.setdefault(number, node)
            if found is node:
                self._admit(node)
        return found

    def _peek(self, number: int) -> _Node:
        """Return a node without a place in the cache for it: scans don't push others out."""
        return self._nodes.get(number) or self._decode(number, self._pager.read(number))

    def _admit(self, node: _Node) -> None:
        """Count a written node to the cache and push others out; with the lock held."""
        ring = self._ring
        page_size = self._pager.page_size
        ring[node.number] = node
        self._cached_bytes += node.memory(page_size)
        while self._cached_bytes > self._cache_limit:
            number, victim = ring.popitem(last=False)
            if victim.touched:
                victim.touched = False
                ring[number] = victim
            else:
                del self._nodes[number]
                self._cached_bytes -= victim.memory(page_size)
                self._evictions += 1

    # -- private: changing -----------------------------------------------------------------------

    def _writable(self, key: bytes, level: int = 0) -> tuple[_Leaf, _Path]:
        """Return the leaf for *key*, which may be changed in place, and the path to it."""
        self._descents += 1
        nodes = self._nodes
        epoch = self._epoch
        node = nodes.get(self._root) or self._fetch(self._root)
        if node.epoch != epoch:
            node = self._clone(node)
            self._root = node.number
        path: _Path = []
        while isinstance(node, _Inner):
            at = bisect_right(node.keys, key)
            number = node.children[at]
            child = nodes.get(number) or self._fetch(number)
            if child.level != node.level - 1:
                raise self._pager.corrupt(number, "the page is not of the level it should be")
            if child.epoch != epoch:
                child = self._clone(child)
                node.children[at] = child.number
            path.append((node, at))
            node = child
        return node, path

    def _clone(self, node: _Node) -> _Node:
        with self._lock:
            clone = node.copy(self._pager.allocate(), self._epoch)
            self._register(clone)
            self._free(node)
        return clone

    def _register(self, page: _Page) -> None:
        """Enter a new, unwritten page; with the lock held."""
        number = page.number
        stale = self._ring.pop(number, None)  # from when the page held something else
        if stale is not None:
            self._cached_bytes -= stale.memory(self._pager.page_size)
            del self._nodes[number]
        self._unwritten[number] = page
        if isinstance(page, _Overflow):
            self._overflow[number] = page
        else:
            self._nodes[number] = page

    def _free(self, page: _Page) -> None:
        """Take a page out of the tree; with the lock held."""
        if self._pager.free(page.number, page.epoch, self._epoch):
            self._forget(page.number)

    def _forget(self, number: int) -> None:
        """Drop an unwritten page that nobody can see any more; with the lock held."""
        page = self._unwritten.pop(number, None) or self._frozen.pop(number, None)
        if page is not None:
            self._nodes.pop(number, None)
            self._overflow.pop(number, None)
