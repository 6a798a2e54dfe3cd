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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import accumulate, chain, pairwise, repeat
from operator import ge
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias, TypeVar, cast

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
_ENTRY_BYTES = 300  # memory a cached node takes beside its page, roughly
_SEPARATOR_BYTES = 64  # and an inner node for each separator
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
_LENGTH = Struct("<H")
_PAIR = Struct("<HH")
_LEAF_HEAD = ENVELOPE.size + _CELL
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
        "used",
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
        self.count = count
        self.form = form
        self.key_offsets = key_offsets
        self.value_offsets = value_offsets
        self.spilled = spilled
        self.rows = rows
        self.keys = keys
        self.values = values
        # bytes it takes in its page behind the envelope
        self.used = 4 * count + 4 + 2 * len(spilled) + len(rows) + len(keys) + len(values)

    def copy(self) -> _Leaf:
        return _Leaf(
            self.number,
            self.epoch,
            self.count,
            self.form,
            self.key_offsets,
            self.value_offsets,
            self.spilled,
            self.rows,
            self.keys,
            self.values,
        )

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
        """Return the slot of *key*, -1 if it isn't here."""
        at = self.keys.find(key)  # at the speed of memory; nearly always the key itself
        if at < 0:
            return -1
        slot = at // len(key)  # and it is here if the keys are all of one length
        if slot < self.count and _PAIR.unpack_from(self.key_offsets, 2 * slot) == (
            at,
            at + len(key),
        ):
            return slot
        slot = self.place(key)
        if slot == self.count:
            return -1
        start, end = _PAIR.unpack_from(self.key_offsets, 2 * slot)
        return slot if self.keys[start:end] == key else -1

    def place(self, key: bytes) -> int:
        """Return how many keys are less than *key*: the slot where it belongs."""
        return bisect_left(self.key_list(), key)

    def row(self, slot: int) -> tuple[int, ...]:
        """Return create and mod revision, version and, unless it is format 0, expiry."""
        form = self.form
        return _ROWS[form].unpack_from(self.rows, slot * _WIDTHS[form])

    def value(self, slot: int) -> bytes:
        """Return the value's bytes in this leaf; of a spilled value, its reference."""
        start, end = _PAIR.unpack_from(self.value_offsets, 2 * slot)
        return self.values[start:end]

    def key_list(self) -> Sequence[bytes]:
        return _split(self.keys, self.key_offsets, self.count)

    def value_list(self) -> Sequence[bytes]:
        return _split(self.values, self.value_offsets, self.count)

    def add_to(self, cells: _Cells) -> None:
        """Append its records to *cells*."""
        for numbers in _ROWS[self.form].iter_unpack(self.rows):
            create, mod, version, expiry = (*numbers, 0)[:4]
            cells.rows.append((create, mod, version, expiry))
        cells.keys += self.key_list()
        cells.values += self.value_list()
        cells.spilled += [slot in self.spilled for slot in range(self.count)]

    def insert(self, slot: int, key: bytes, row: bytes, value: bytes, spilled: bool) -> None:
        """Put a record before *slot*; the caller has made sure that it fits."""
        at = 2 * slot
        column = self.key_offsets
        start = int.from_bytes(column[at : at + 2], "little")
        self.key_offsets = column[: at + 2] + _shifted(column[at:], len(key))
        self.keys = self.keys[:start] + key + self.keys[start:]
        column = self.value_offsets
        start = int.from_bytes(column[at : at + 2], "little")
        self.value_offsets = column[: at + 2] + _shifted(column[at:], len(value))
        self.values = self.values[:start] + value + self.values[start:]
        at = slot * len(row)
        self.rows = self.rows[:at] + row + self.rows[at:]
        self.count += 1
        self.used += _CELL + len(row) + len(key) + len(value) + 2 * spilled
        if self.spilled or spilled:
            moved = [other + (other >= slot) for other in self.spilled]
            self.spilled = tuple(sorted([*moved, slot] if spilled else moved))

    def replace(self, slot: int, row: bytes, value: bytes, spilled: bool) -> None:
        """Give the record at *slot* another value; the caller has made sure that it fits."""
        at = 2 * slot + 2
        start, end = _PAIR.unpack_from(self.value_offsets, at - 2)
        self.values = self.values[:start] + value + self.values[end:]
        growth = len(value) - end + start
        if growth:
            column = self.value_offsets
            self.value_offsets = column[:at] + _shifted(column[at:], growth)
            self.used += growth
        at = slot * len(row)
        self.rows = self.rows[:at] + row + self.rows[at + len(row) :]
        if (slot in self.spilled) != spilled:
            others = [other for other in self.spilled if other != slot]
            self.spilled = tuple(sorted([*others, slot] if spilled else others))
            self.used += 2 if spilled else -2

    def remove(self, slot: int) -> None:
        """Take the record at *slot* out."""
        at = 2 * slot
        column = self.key_offsets
        start, end = _PAIR.unpack_from(column, at)
        self.key_offsets = column[: at + 2] + _shifted(column[at + 4 :], start - end)
        self.keys = self.keys[:start] + self.keys[end:]
        width = _WIDTHS[self.form]
        self.used -= _CELL + width + end - start
        column = self.value_offsets
        start, end = _PAIR.unpack_from(column, at)
        self.value_offsets = column[: at + 2] + _shifted(column[at + 4 :], start - end)
        self.values = self.values[:start] + self.values[end:]
        at = slot * width
        self.rows = self.rows[:at] + self.rows[at + width :]
        self.count -= 1
        self.used -= end - start
        if slot in self.spilled:
            self.used -= 2
        if self.spilled:
            self.spilled = tuple(other - (other > slot) for other in self.spilled if other != slot)

    def is_sound(self) -> bool:
        """Tell whether the offsets ascend, as splicing relies on."""
        return _ascend(self.key_offsets, self.count) and _ascend(self.value_offsets, self.count)


class _Inner:
    """An inner node: separators and the page numbers of the children between them."""

    __slots__ = ("children", "epoch", "image", "keys", "level", "number", "used")

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
        self.level = level
        self.keys = keys
        self.children = children
        self.used = used  # bytes it takes in its page behind the envelope
        self.image = image  # offsets and keys as the page has them, while these don't change

    def copy(self) -> _Inner:
        children = self.children[:]
        return _Inner(
            self.number, self.epoch, self.level, self.keys[:], children, self.used, self.image
        )

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
_Group = TypeVar("_Group")


class _Overflow:
    """One page of a spilled value that is not written yet."""

    __slots__ = ("content", "epoch", "number")

    def __init__(self, number: int, epoch: int, content: bytes) -> None:
        self.number = number
        self.epoch = epoch
        self.content = content

    def body(self) -> bytes:
        return self.content


_Cached: TypeAlias = _Leaf | _Inner | bytes  # bytes are the page of a written leaf, unpadded
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
        self._level = meta.level  # of the root
        self._records = meta.records
        self._epoch = meta.epoch + 1
        self._nodes: dict[int, _Cached] = {}
        self._unwritten: dict[int, _Page] = {}
        self._frozen: dict[int, _Page] = {}  # the unwritten pages of the running checkpoint
        self._overflow: dict[int, _Overflow] = {}  # unwritten, of either kind
        self._checkpoint: Checkpoint | None = None
        self._abandoned: deque[int] = deque()  # epochs of snapshots that nobody closed
        self._readers = 0
        self._ring: OrderedDict[int, int] = OrderedDict()  # sizes of written nodes, victims first
        self._touched: set[int] = set()  # those used since they were last looked at
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
        return self._get(self._root, key)

    def __len__(self) -> int:
        return self._records

    def snapshot(self) -> Snapshot:
        """Pin the present state for reading in any thread. Under the caller's lock; constant time.

        Close it: until then the pages it sees can't be used again.
        """
        root = self._unwritten.get(self._root)
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
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot._item_groups(start, end, reverse)))

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""
        snapshot = self.snapshot()
        return chain.from_iterable(_closing(snapshot, snapshot._key_groups(start, end, reverse)))

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> None:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Raises ValueError if key or value are too long and CorruptionError; then nothing changed.
        """
        key_size = len(key)
        if not 0 < key_size <= self.max_key_bytes:
            raise ValueError(f"a key has 1 to {self.max_key_bytes} bytes, not {key_size}")
        if len(value) > _MAX_VALUE:
            raise ValueError(f"a value has up to {_MAX_VALUE} bytes, not {len(value)}")
        leaf, path = self._writable(key)
        slot = leaf.find(key)
        if slot >= 0:
            create, _, version, *_ = leaf.row(slot)
            version += 1
            start, end = _PAIR.unpack_from(leaf.value_offsets, 2 * slot)
            growth = start - end
            if slot in leaf.spilled:
                self._free_value(leaf, key, leaf.value(slot))
        else:
            create = revision
            version = 1
            growth = _CELL + _WIDTHS[leaf.form] + key_size
            self._records += 1
        spilled = key_size + len(value) > self._inline
        stored = self._spill(key, value) if spilled else value
        growth += len(stored) + 2 * spilled
        numbers = (create, revision, version, expiry)
        wide = expiry or version >> 16 or revision >> 32
        if leaf.used + growth > self._capacity or (wide and _row_format([numbers]) > leaf.form):
            self._rearrange(leaf, path, slot, key, numbers, stored, spilled)
            return
        row = _ROWS[leaf.form].pack(*numbers) if leaf.form else _NARROW.pack(*numbers[:3])
        if slot >= 0:
            leaf.replace(slot, row, stored, spilled)
        else:
            leaf.insert(leaf.place(key), key, row, stored, spilled)
        if growth < 0 and leaf.used < self._minimum and path:
            self._merge(leaf, path)

    def delete(self, key: bytes) -> bool:
        """Remove *key* and return whether it was there."""
        if self._leaf(self._root, key).find(key) < 0:
            return False  # before a path is copied for nothing
        leaf, path = self._writable(key)
        slot = leaf.find(key)
        if slot in leaf.spilled:
            self._free_value(leaf, key, leaf.value(slot))
        leaf.remove(slot)
        self._records -= 1
        if path and leaf.used < self._minimum:
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
        empty = self._node(self._root)
        loader = _Loader(self)
        try:
            root, level, count = loader.load(items)
        except BaseException:
            loader.undo()
            raise
        with self._lock:
            self._free(empty)
            self._root = root
            self._level = level
            self._records = count
            self._epoch += 1  # what is written already must not be changed in place
        return count

    # -- checkpoints -----------------------------------------------------------------------------

    def begin_checkpoint(self, applied_index: int, applied_term: int) -> Checkpoint:
        """Freeze the present state for writing; under the caller's lock, in about a millisecond.

        One at a time: the one before has to be finished or aborted.
        """
        assert self._checkpoint is None, "a checkpoint is running already"
        while self._abandoned:
            self._close_reader(self._abandoned.popleft())
        self._move_tail()
        with self._lock:
            state = self._pager.meta._replace(
                epoch=self._epoch,
                root=self._root,
                level=self._level,
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
        return self.dirty_pages * (self._pager.page_size + _ENTRY_BYTES)

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
        self._descents += 1
        number, page = self._seek(root, key)
        if not isinstance(page, bytes):
            slot = page.find(key)
            return None if slot < 0 else self._record(page, key, slot)
        # The same for a packed leaf, without unpacking what isn't needed.
        _, form, count, spilled, _ = ENVELOPE.unpack_from(page)
        values_at = ENVELOPE.size + 2 * count + 2
        rows_at = values_at + 2 * count + 2 + 2 * spilled
        keys_at = rows_at + count * _WIDTHS[form]
        at = page.find(key, keys_at) - keys_at
        if at < 0:
            return None
        slot = at // len(key)
        if (
            spilled
            or slot >= count
            or _PAIR.unpack_from(page, ENVELOPE.size + 2 * slot)
            != (
                at,
                at + len(key),
            )
        ):
            leaf = self._unpack(number, page)
            slot = leaf.find(key)
            return None if slot < 0 else self._record(leaf, key, slot)
        start, end = _PAIR.unpack_from(page, values_at + 2 * slot)
        data_at = keys_at + _LENGTH.unpack_from(page, values_at - 2)[0]
        value = page[data_at + start : data_at + end]
        if form == 0:
            return _new_record((value, *_NARROW.unpack_from(page, rows_at + 10 * slot), 0))
        return _new_record((value, *_ROWS[form].unpack_from(page, rows_at + _WIDTHS[form] * slot)))

    def _record(self, leaf: _Leaf, key: bytes, slot: int) -> Record:
        value = leaf.value(slot)
        if slot in leaf.spilled:
            value = self._read_value(leaf, key, value)
        if leaf.form == 0:
            return _new_record((value, *leaf.row(slot), 0))
        return _new_record((value, *leaf.row(slot)))

    def _seek(self, root: int, key: bytes) -> tuple[int, _Leaf | bytes]:
        """Return number and content of the leaf in which *key* is or would be."""
        nodes = self._nodes
        number = root
        node = nodes.get(root) or self._fetch(root)
        level = node.level if isinstance(node, _Inner) else 0
        while level:
            if not isinstance(node, _Inner) or node.level != level:
                raise self._misplaced(number)
            number = node.children[bisect_right(node.keys, key)]
            child = nodes.get(number)
            if child is None:
                child = self._fetch(number)
            else:
                self._touched.add(number)
            node = child
            level -= 1
        if isinstance(node, _Inner):
            raise self._misplaced(number)
        return number, node

    def _leaf(self, root: int, key: bytes) -> _Leaf:
        """Return the leaf in which *key* is or would be."""
        number, leaf = self._seek(root, key)
        return self._unpack(number, leaf) if isinstance(leaf, bytes) else leaf

    def _fetch(self, number: int) -> _Cached:
        """Read a node into the cache."""
        self._misses += 1
        node = self._load(number)
        with self._lock:
            found = self._nodes.setdefault(number, node)
            if found is node:
                self._admit(number, node)
        return found

    def _node(self, number: int) -> _Node:
        """Return a node without a place in the cache for it: scans don't push others out."""
        node = self._nodes.get(number) or self._load(number)
        return self._unpack(number, node) if isinstance(node, bytes) else node

    def _misplaced(self, number: int) -> CorruptionError:
        return self._pager.corrupt(number, "the page is not of the level it should be")

    def _leaves(
        self, number: int, start: bytes, end: bytes | None, reverse: bool, level: int = -1
    ) -> Iterator[_Leaf]:
        """Iterate over the leaves below a node that may hold keys, start <= key < end."""
        node = self._node(number)
        if level not in (-1, node.level):
            raise self._misplaced(number)
        if isinstance(node, _Inner):
            last = len(node.keys) if end is None else bisect_left(node.keys, end)
            children = node.children[bisect_right(node.keys, start) : last + 1]
            for child in reversed(children) if reverse else children:
                yield from self._leaves(child, start, end, reverse, node.level - 1)
        else:
            yield node

    def _admit(self, number: int, node: _Inner | bytes) -> None:
        """Count a written node to the cache and push others out; with the lock held."""
        ring = self._ring
        touched = self._touched
        if isinstance(node, bytes):
            size = len(node) + _ENTRY_BYTES
        else:
            size = node.used + _ENTRY_BYTES + _SEPARATOR_BYTES * len(node.keys)
        ring[number] = size
        self._cached_bytes += size
        while self._cached_bytes > self._cache_limit:
            number, size = ring.popitem(last=False)
            if number in touched:
                touched.discard(number)
                ring[number] = size
            else:
                del self._nodes[number]
                self._cached_bytes -= size
                self._evictions += 1

    def _written(self, page: _Page, body: bytes) -> None:
        """Move a page that has been written from memory's care to the cache's; lock held."""
        if isinstance(page, _Overflow):
            del self._overflow[page.number]
        else:
            node = self._nodes[page.number] = body if isinstance(page, _Leaf) else page
            self._admit(page.number, node)

    # -- private: changing -----------------------------------------------------------------------

    def _writable(self, key: bytes) -> tuple[_Leaf, _Path]:
        """Return the leaf for *key*, which may be changed in place, and the path to it."""
        nodes = self._nodes
        epoch = self._epoch
        node = nodes.get(self._root) or self._load(self._root)
        if isinstance(node, bytes) or node.epoch != epoch:
            node = self._own(self._root, node)
            self._root = node.number
        level = node.level
        path: _Path = []
        while isinstance(node, _Inner):
            if node.level != level:
                raise self._misplaced(node.number)
            level -= 1
            at = bisect_right(node.keys, key)
            number = node.children[at]
            child = nodes.get(number) or self._load(number)
            if isinstance(child, bytes) or child.epoch != epoch:
                child = self._own(number, child)
                node.children[at] = child.number
            path.append((node, at))
            node = child
        if level:
            raise self._misplaced(node.number)
        return node, path

    def _own(self, number: int, node: _Cached) -> _Node:
        """Return a copy of a node from an earlier epoch that may be changed in place."""
        if isinstance(node, bytes):
            node = self._unpack(number, node)
            if not node.is_sound():
                raise self._pager.corrupt(number, "the offsets in the page don't ascend")
        else:
            node = node.copy()
        born = node.epoch
        node.epoch = self._epoch
        with self._lock:
            self._give_back(number, born)
            node.number = self._pager.allocate()
            self._register(node)
        return node

    def _register(self, page: _Page) -> None:
        """Enter a new, unwritten page; with the lock held."""
        number = page.number
        self._drop_stale(number)
        self._unwritten[number] = page
        if isinstance(page, _Overflow):
            self._overflow[number] = page
        else:
            self._nodes[number] = page

    def _drop_stale(self, number: int) -> None:
        """Drop from the cache what a page held before it was free; with the lock held."""
        size = self._ring.pop(number, 0)
        if size:
            self._cached_bytes -= size
            self._touched.discard(number)
            del self._nodes[number]

    def _free(self, page: _Page) -> None:
        """Take a page out of the tree; with the lock held."""
        self._give_back(page.number, page.epoch)

    def _give_back(self, number: int, born: int) -> None:
        if self._pager.free(number, born, self._epoch):
            self._forget(number)
        elif not self._readers:
            self._drop_stale(number)  # nobody will look at it again

    def _forget(self, number: int) -> None:
        """Drop an unwritten page that nobody can see any more; with the lock held."""
        page = self._unwritten.pop(number, None) or self._frozen.pop(number, None)
        if page is not None:
            self._nodes.pop(number, None)
            self._overflow.pop(number, None)
            self._touched.discard(number)

    def _close_reader(self, epoch: int) -> None:
        with self._lock:
            self._readers -= 1
        self._unpin(epoch)

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
                    self._forget(number)

    # -- private: changing the shape -------------------------------------------------------------

    def _rearrange(
        self,
        leaf: _Leaf,
        path: _Path,
        slot: int,
        key: bytes,
        numbers: tuple[int, int, int, int],
        value: bytes,
        spilled: bool,
    ) -> None:
        """Put a record that the leaf has no room for: at *slot*, or as a new one if that is -1."""
        cells = _Cells()
        leaf.add_to(cells)
        at = slot if slot >= 0 else leaf.place(key)
        end = at + 1 if slot >= 0 else at
        cells.keys[at:end] = [key]
        cells.values[at:end] = [value]
        cells.rows[at:end] = [numbers]
        cells.spilled[at:end] = [spilled]
        # Keys that arrive in order at the end of the tree leave full leaves behind.
        ascending = at == leaf.count and all(i == len(node.keys) for node, i in path)
        self._splice(path, *self._lay_out(cells, [leaf], ascending))

    def _merge(self, leaf: _Leaf, path: _Path) -> None:
        """Join a leaf that has become small with a neighbour; they may come out as two again."""
        parent, at = path.pop()
        left = at - (at == len(parent.keys))
        pair = [leaf, leaf]
        pair[left == at] = cast("_Leaf", self._child(parent, left + (left == at)))
        cells = _Cells()
        for each in pair:
            each.add_to(cells)
        path.append((parent, left))
        self._splice(path, *self._lay_out(cells, pair), removed=2)

    def _lay_out(
        self, cells: _Cells, old: list[_Leaf], ascending: bool = False
    ) -> tuple[list[_Node], list[bytes]]:
        """Return new leaves in the place of *old* ones, and the separators between them."""
        sizes = cells.sizes()
        cuts = _cuts(sizes, self._capacity - 4)
        if ascending and len(cuts) == 2 and sum(sizes[:-1]) <= self._capacity - 4:
            cuts[0] = len(sizes) - 1
        leaves: list[_Node] = []
        separators = []
        start = 0
        with self._lock:
            for leaf in old:
                self._free(leaf)
            for end in cuts:
                leaves.append(cells.leaf(start, end, self._pager.allocate(), self._epoch))
                self._register(leaves[-1])
                if start:
                    separators.append(_separator(cells.keys[start - 1], cells.keys[start]))
                start = end
        return leaves, separators

    def _splice(
        self, path: _Path, parts: list[_Node], separators: list[bytes], removed: int = 1
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
                pair[left == at] = cast("_Inner", self._child(above, left + (left == at)))
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
        while isinstance(root, _Inner) and not root.keys:
            self._root = root.children[0]
            self._level -= 1
            with self._lock:
                self._free(root)
            root = self._nodes.get(self._root)

    def _divide(
        self, keys: list[bytes], children: array[int], old: list[_Inner], level: int = 0
    ) -> tuple[list[_Node], list[bytes]]:
        """Return new inner nodes in the place of *old* ones, and the separators between them."""
        cuts = _cuts([len(key) + _CHILD for key in keys], self._capacity - _CHILD)
        nodes: list[_Node] = []
        start = 0
        with self._lock:
            for node in old:
                self._free(node)
                level = node.level
            for end in cuts:
                part = keys[start:end]
                used = _CHILD * (len(part) + 1) + sum(map(len, part))
                number = self._pager.allocate()
                nodes.append(
                    _Inner(number, self._epoch, level, part, children[start : end + 1], used)
                )
                self._register(nodes[-1])
                start = end + 1
        return nodes, [keys[end] for end in cuts[:-1]]

    def _child(self, node: _Inner, at: int) -> _Node:
        number = node.children[at]
        child = self._node(number)
        if child.level != node.level - 1:
            raise self._misplaced(number)
        return child

    def _move_tail(self) -> None:
        """Copy some of the last live pages to free places before them, so the file can shrink."""
        budget = _MOVE_PAGES
        for number in self._pager.tail:
            if budget <= 0 or not self._pager.has_free_below(number):
                break
            budget -= self._move(number)
        self._pager.tail = []

    def _move(self, number: int) -> int:
        """Copy the page to where there is room, if it is still in the tree; return pages written.

        It was part of the last checkpoint, so whatever has happened since it is still on disk.
        """
        page = self._pager.read(number)
        if page[0] == OVERFLOW:
            return self._move_value(number, page)
        node = self._node(number)
        key = next(iter(node.keys if isinstance(node, _Inner) else node.key_list()), b"")
        live = self._node(self._root)
        while live.level > node.level and isinstance(live, _Inner):
            live = self._child(live, bisect_right(live.keys, key))
        if live.number != number:
            return 0
        self._writable(key)  # copies the path, and with it this node
        return 1 + self._level

    def _move_value(self, number: int, page: bytes) -> int:
        _, _, key_size, _, _ = ENVELOPE.unpack_from(page)
        start = ENVELOPE.size + _CHUNK.size
        key = page[start : start + key_size]
        leaf = self._leaf(self._root, key)
        slot = leaf.find(key)
        if slot < 0 or slot not in leaf.spilled:
            return 0
        ref = leaf.value(slot)
        chain = list(self._chain(leaf, key, ref))
        too_long = len(chain) > min(_MOVE_PAGES, self._pager.free_pages)
        if too_long or all(number != link for link, _, _ in chain):
            return 0
        leaf, _ = self._writable(key)
        row_at = slot * _WIDTHS[leaf.form]
        row = leaf.rows[row_at : row_at + _WIDTHS[leaf.form]]
        moved = self._spill(key, b"".join([chunk for _, _, chunk in chain]))
        self._free_value(leaf, key, ref)
        leaf.replace(slot, row, moved, True)
        return len(chain)

    # -- private: spilled values -----------------------------------------------------------------

    def _spill(self, key: bytes, value: bytes) -> bytes:
        """Put a value into overflow pages and return the reference to it."""
        ref, pages = self._overflow_pages(key, value)
        with self._lock:
            for page in pages:
                self._register(page)
        return ref

    def _overflow_pages(self, key: bytes, value: bytes) -> tuple[bytes, list[_Overflow]]:
        """Return the reference to a value and the pages that hold it."""
        room = self._capacity - _CHUNK.size - len(key)
        starts = range(0, len(value), room)
        with self._lock:
            numbers = [self._pager.allocate() for _ in starts]
            for number in numbers:
                self._drop_stale(number)
        pages = []
        for index, (number, link) in enumerate(pairwise([*numbers, 0])):
            chunk = value[starts[index] : starts[index] + room]
            head = ENVELOPE.pack(OVERFLOW, 0, len(key), link, self._epoch)
            content = b"".join((head, _CHUNK.pack(index, len(chunk)), key, chunk))
            pages.append(_Overflow(number, self._epoch, content))
        return _REF.pack(numbers[0], len(value)), pages

    def _chain(self, leaf: _Leaf, key: bytes, ref: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Iterate over a spilled value's pages: number, epoch and the part of the value there."""
        if len(ref) != _REF.size:
            raise self._pager.corrupt(leaf.number, "a spilled value has no reference")
        number, left = _REF.unpack(ref)
        index = 0
        start = ENVELOPE.size + _CHUNK.size + len(key)
        while left:
            unwritten = self._overflow.get(number)
            page = unwritten.content if unwritten else self._pager.read(number)
            kind, _, key_size, link, epoch = ENVELOPE.unpack_from(page)
            at, size = _CHUNK.unpack_from(page, ENVELOPE.size)
            if (kind, key_size, at) != (OVERFLOW, len(key), index) or page[
                start - len(key) : start
            ] != key:
                raise self._pager.corrupt(number, "the page is not the next one of its value")
            if not 0 < size <= min(left, self._capacity + ENVELOPE.size - start):
                raise self._pager.corrupt(number, "the part of a value has an impossible length")
            yield number, epoch, page[start : start + size]
            number = link
            left -= size
            index += 1

    def _read_value(self, leaf: _Leaf, key: bytes, ref: bytes) -> bytes:
        return b"".join([chunk for _, _, chunk in self._chain(leaf, key, ref)])

    def _free_value(self, leaf: _Leaf, key: bytes, ref: bytes) -> None:
        pages = [(number, epoch) for number, epoch, _ in self._chain(leaf, key, ref)]
        with self._lock:
            for number, epoch in pages:
                if self._pager.free(number, epoch, self._epoch):
                    self._forget(number)

    # -- private: decoding -----------------------------------------------------------------------

    def _load(self, number: int) -> _Inner | bytes:
        """Read a node: an inner node, or a leaf's page without the padding.

        Raises CorruptionError if the checksum or the bounds of what is in it don't hold (S3).
        """
        page = self._pager.read(number)
        limit = len(page) - 4
        kind, detail, count, link, epoch = ENVELOPE.unpack_from(page)
        if epoch >= self._epoch:
            raise self._pager.corrupt(number, "the page is newer than the tree")
        if kind == LEAF and detail < len(_ROWS):
            end = _LEAF_HEAD + 4 * count + 2 * link + count * _WIDTHS[detail]
            if end <= limit:
                end += _LENGTH.unpack_from(page, ENVELOPE.size + 2 * count)[0]
                end += _LENGTH.unpack_from(page, ENVELOPE.size + 2 + 4 * count)[0]
                if end <= limit:
                    return page[:end]
        elif kind == INNER and detail and count:
            offsets_at = ENVELOPE.size + 4 * count + 4
            keys_at = offsets_at + 2 * count + 2
            if keys_at <= limit:
                offsets = _U16[count + 1].unpack_from(page, offsets_at)
                end = keys_at + offsets[-1]
                if end <= limit and offsets[0] == 0 and list(offsets) == sorted(offsets):
                    keys = [page[keys_at + a : keys_at + b] for a, b in pairwise(offsets)]
                    children = _little_endian(array("I", page[ENVELOPE.size : offsets_at]))
                    image = page[offsets_at:end]
                    used = end - ENVELOPE.size
                    return _Inner(number, epoch, detail, keys, children, used, image)
        raise self._pager.corrupt(number, "the page is no well-formed node")

    def _unpack(self, number: int, page: bytes) -> _Leaf:
        """Cut a leaf's page into columns."""
        _, form, count, link, epoch = ENVELOPE.unpack_from(page)
        values_at = ENVELOPE.size + 2 * count + 2
        spilled_at = values_at + 2 * count + 2
        rows_at = spilled_at + 2 * link
        keys_at = rows_at + count * _WIDTHS[form]
        data_at = keys_at + _LENGTH.unpack_from(page, values_at - 2)[0]
        spilled = _U16[link].unpack_from(page, spilled_at) if link else ()
        if spilled and max(spilled) >= count:
            raise self._pager.corrupt(number, "a spilled value has no record")
        return _Leaf(
            number,
            epoch,
            count,
            form,
            page[ENVELOPE.size : values_at],
            page[values_at:spilled_at],
            spilled,
            page[rows_at:keys_at],
            page[keys_at:data_at],
            page[data_at:],
        )


class Snapshot:
    """A state of the tree, pinned until :meth:`close`; a context manager. Any thread may use it."""

    def __init__(self, tree: BTree, root: int, epoch: int, records: int) -> None:
        self._tree = tree
        self._root = root
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
        return self._tree._get(self._root, key)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end."""
        return chain.from_iterable(self._item_groups(start, end, reverse))

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone; several times faster than :meth:`items`."""
        return chain.from_iterable(self._key_groups(start, end, reverse))

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""
        if self._open:
            self._open = False
            self._tree._close_reader(self._epoch)

    # -- private ---------------------------------------------------------------------------------

    def _key_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Sequence[bytes]]:
        for leaf in self._tree._leaves(self._root, start, end, reverse):
            keys = leaf.key_list()
            first, last = _bounds(keys, start, end)
            keys = keys[first:last]
            yield keys[::-1] if reverse else keys

    def _item_groups(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[Iterable[tuple[bytes, Record]]]:
        for leaf in self._tree._leaves(self._root, start, end, reverse):
            keys = leaf.key_list()
            first, last = _bounds(keys, start, end)
            if first >= last:
                continue
            if leaf.spilled:
                yield self._large_items(leaf, keys, range(first, last), reverse)
                continue
            width = _WIDTHS[leaf.form]
            rows = leaf.rows[first * width : last * width]
            columns: list[Iterable[object]] = [
                *zip(*_ROWS[leaf.form].iter_unpack(rows), strict=True)
            ]
            if leaf.form == 0:
                columns.append(repeat(0))
            values = leaf.value_list()[first:last]
            records = map(_new_record, zip(values, *columns, strict=False))
            items = zip(keys[first:last], records, strict=True)
            yield [*items][::-1] if reverse else items

    def _large_items(
        self, leaf: _Leaf, keys: Sequence[bytes], slots: range, reverse: bool
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over part of a leaf with spilled values, one value in memory at a time."""
        for slot in reversed(slots) if reverse else slots:
            yield keys[slot], self._tree._record(leaf, keys[slot], slot)


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
        tree._checkpoint = None
        tree._unpin(self._state.epoch)
        tree._settle(settled)
        tree._pager.shrink()

    def abort(self) -> None:
        """Give the checkpoint up. The last one stays what the file holds."""
        tree = self._tree
        if tree._checkpoint is not self:
            return
        with tree._lock:
            tree._frozen.update(tree._unwritten)
            tree._unwritten, tree._frozen = tree._frozen, {}
            tree._checkpoint = None
        tree._unpin(self._state.epoch)


# -- helpers -------------------------------------------------------------------------------------


class _Loader:
    """Builds a tree from sorted items, leaf after leaf, each level as full as it gets."""

    def __init__(self, tree: BTree) -> None:
        self._tree = tree
        self._taken = array("I")  # every page number, to give them back after an error
        self._pages: list[tuple[int, bytes]] = []
        self._unsynced = 0
        self._levels: list[tuple[list[bytes], array[int]]] = []
        self._last_key = b""

    def load(self, items: Iterable[tuple[bytes, Record]]) -> tuple[int, int, int]:
        """Write all pages; return the root's number and level and the count of records."""
        tree = self._tree
        full = 2 * tree._capacity
        cells = _Cells()
        used = form = count = 0
        previous = b""
        for key, (value, *numbers) in items:
            if not previous < key or len(key) > tree.max_key_bytes or len(value) > _MAX_VALUE:
                raise ValueError(
                    f"keys have to ascend, with 1 to {tree.max_key_bytes} bytes each, "
                    f"and values to have up to {_MAX_VALUE} bytes"
                )
            previous = key
            spilled = len(key) + len(value) > tree._inline
            row = cast("tuple[int, int, int, int]", tuple(numbers))
            cells.keys.append(key)
            cells.values.append(self._spill(key, value) if spilled else value)
            cells.rows.append(row)
            cells.spilled.append(spilled)
            count += 1
            form = max(form, _row_format([row]))
            used += len(key) + len(cells.values[-1]) + 2 * spilled
            if used + len(cells.keys) * (_CELL + _WIDTHS[form]) > full:
                cells = self._full_leaf(cells)
                used = sum(map(len, cells.keys)) + sum(map(len, cells.values))
                used += 2 * sum(cells.spilled)
                form = _row_format(cells.rows)
        start = 0
        for end in _cuts(cells.sizes(), tree._capacity - 4):
            self._leaf(cells, start, end)
            start = end
        root = self._finish_levels()
        self._flush()
        return root, len(self._levels) - 1, count

    def undo(self) -> None:
        """Give all pages back."""
        tree = self._tree
        with tree._lock:
            for number in self._taken:
                tree._pager.free(number, tree._epoch, tree._epoch)

    def _full_leaf(self, cells: _Cells) -> _Cells:
        """Write the fullest leaf that the first records make and return the rest."""
        ends = list(accumulate(cells.sizes()))
        end = bisect_right(ends, self._tree._capacity - 4)
        self._leaf(cells, 0, end)
        rest = _Cells()
        rest.keys = cells.keys[end:]
        rest.values = cells.values[end:]
        rest.rows = cells.rows[end:]
        rest.spilled = cells.spilled[end:]
        return rest

    def _leaf(self, cells: _Cells, start: int, end: int) -> None:
        leaf = cells.leaf(start, end, self._allocate(), self._tree._epoch)
        self._write(leaf)
        first = cells.keys[start] if end else b""
        self._add(0, _separator(self._last_key, first), leaf.number)
        self._last_key = cells.keys[end - 1] if end else b""

    def _add(self, level: int, separator: bytes, child: int) -> None:
        """Append a child to the node that grows on a level; *separator* stands before it."""
        if level == len(self._levels):
            self._levels.append(([], array("I")))
        keys, children = self._levels[level]
        keys.append(separator)
        children.append(child)
        if sum(map(len, keys)) + _CHILD * len(keys) > 2 * self._tree._capacity:
            ends = list(accumulate(len(key) + _CHILD for key in keys[1:]))
            self._inner(level, 1 + bisect_right(ends, self._tree._capacity - _CHILD))

    def _inner(self, level: int, count: int) -> None:
        """Write the first *count* children of a level as one node and hand it to the next level."""
        keys, children = self._levels[level]
        number = self._allocate()
        part = keys[1:count]
        node = _Inner(number, self._tree._epoch, level + 1, part, children[:count], 0)
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
            sizes = [len(key) + _CHILD for key in keys]
            start = 0
            for end in _cuts(sizes, self._tree._capacity):
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

    def _write(self, page: _Page) -> None:
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
            listed = list(self._pager.list_pages)
        for number in (0, 1, *listed, *free):
            self._claim(number)
        report.free_pages = len(free)
        report.list_pages = len(listed)
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

    def _node(self, number: int, level: int, low: bytes, high: bytes | None) -> None:
        """Check the node and all below it; its keys have to be low <= key < high."""
        self._claim(number)
        tree = self._tree
        node = tree._unwritten.get(number) or tree._frozen.get(number)
        if node is None or isinstance(node, _Overflow):
            stored = tree._load(number)
            node = tree._unpack(number, stored) if isinstance(stored, bytes) else stored
        if node.level != level:
            raise self._pager.corrupt(number, "the page is not of the level it should be")
        keys = node.keys if isinstance(node, _Inner) else node.key_list()
        if any(map(ge, keys, keys[1:])) or (keys and keys[0] < low):
            raise self._pager.corrupt(number, "the keys are out of order")
        if keys and high is not None and keys[-1] >= high:
            raise self._pager.corrupt(number, "a key is beyond its parent's separator")
        if node.used > tree._capacity or b"" in keys:
            raise self._pager.corrupt(number, "the node is over-full or has an empty key")
        self._report.used_bytes += node.used
        if isinstance(node, _Inner):
            self._report.inner_pages += 1
            bounds = pairwise([low, *keys, high])
            for child, (start, end) in zip(node.children, bounds, strict=True):
                self._node(child, level - 1, cast("bytes", start), end)
        else:
            self._report.leaf_pages += 1
            self._leaf(node, keys)

    def _leaf(self, leaf: _Leaf, keys: Sequence[bytes]) -> None:
        self._report.records += leaf.count
        if not leaf.is_sound() or (not keys and leaf.number != self._tree._root):
            raise self._pager.corrupt(leaf.number, "the leaf is empty or its offsets don't ascend")
        for slot in leaf.spilled:
            for number, _, _ in self._tree._chain(leaf, keys[slot], leaf.value(slot)):
                self._claim(number)
                self._report.overflow_pages += 1


def _closing(snapshot: Snapshot, groups: Iterator[_Group]) -> Iterator[_Group]:
    """Pass the groups on and close the snapshot behind the last one."""
    with snapshot:
        yield from groups


def _bounds(keys: Sequence[bytes], start: bytes, end: bytes | None) -> tuple[int, int]:
    return bisect_left(keys, start), len(keys) if end is None else bisect_left(keys, end)


def _row_format(rows: list[tuple[int, int, int, int]]) -> int:
    """Return the smallest row format that fits all rows."""
    if not rows:
        return 0
    creates, mods, versions, expiries = zip(*rows, strict=True)
    if (max(creates) | max(mods)) >> 32 or max(versions) >> 16:
        return 2
    return 1 if any(expiries) else 0


def _separator(left: bytes, right: bytes) -> bytes:
    """Return the shortest key that is greater than *left* and not greater than *right*."""
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return right[: at + 1]
    return right[: len(left) + 1]


def _cuts(sizes: list[int], capacity: int) -> list[int]:
    """Cut a row of cells into parts that fit, as even as may be; return where each part ends.

    No cell is larger than half the capacity, so each cut leaves two parts that are smaller.
    """
    ends = list(accumulate(sizes, initial=0))
    cuts = []
    parts = [(0, len(sizes))]
    while parts:
        start, end = parts.pop()
        if ends[end] - ends[start] <= capacity:
            cuts.append(end)
            continue
        middle = (ends[start] + ends[end]) // 2
        cut = bisect_left(ends, middle, start + 1, end - 1)
        if cut - 1 > start and middle - ends[cut - 1] < ends[cut] - middle:
            cut -= 1
        parts += [(cut, end), (start, cut)]
    return cuts


@lru_cache(1024)
def _even(count: int, step: int) -> tuple[bytes, Struct]:
    """Return the offsets of *count* cells of *step* bytes each, and what takes them apart."""
    offsets = _U16[count + 1].pack(*range(0, count * step + 1, step))
    return offsets, Struct(f"{step}s" * count)


def _is_even(offsets: bytes, count: int) -> Struct | None:
    """Return what takes *count* cells apart if they all have the same size, as they often do."""
    if count == 0:
        return None
    size = offsets[-2] + 256 * offsets[-1]
    if size < count or size % count:
        return None
    expected, cells = _even(count, size // count)
    return cells if offsets == expected else None


def _ascend(offsets: bytes, count: int) -> bool:
    """Tell whether the offsets of a column begin with 0 and never go back."""
    if _is_even(offsets, count):
        return True
    numbers = _U16[count + 1].unpack(offsets)
    return numbers[0] == 0 and list(numbers) == sorted(numbers)


def _split(column: bytes, offsets: bytes, count: int) -> Sequence[bytes]:
    """Take a column apart into its cells."""
    cells = _is_even(offsets, count)
    if cells:
        return cells.unpack(column)
    numbers = _U16[count + 1].unpack(offsets)
    return [column[start:end] for start, end in pairwise(numbers)]


@cache
def _ones(count: int) -> int:
    """Return 1 in each of *count* 16-bit places."""
    return ((1 << 16 * count) - 1) // 0xFFFF


def _shifted(offsets: bytes, distance: int) -> bytes:
    """Add *distance* to each offset, all at once: none of them leaves its 16 bits."""
    size = len(offsets)
    moved = int.from_bytes(offsets, "little") + distance * _ones(size // 2)
    return moved.to_bytes(size, "little")


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
