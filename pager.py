"""Fixed-size checksummed pages in one file: meta pages, free space and who still needs it.

The file is an array of pages of one size, a power of two from 256 bytes to 64 KiB that is chosen
when the file is made. All integers are little-endian.

========= ======================================================================================
page      content
========= ======================================================================================
0 and 1   the two meta pages; checkpoint *txid* writes page ``txid & 1``
2 …       tree nodes and overflow pages (``pages.py``), pages of the free map
========= ======================================================================================

Every page but the meta pages has this envelope. The CRC-32 is seeded with the page's number, so
that a page written to the wrong place fails its check as well (S3).

========= ====== ===============================================================================
offset    size   field
========= ====== ===============================================================================
0         1      kind: 1 leaf, 2 inner node, 3 overflow, 4 free map
1         1      level of a node or map page, 0 for a leaf; 0 in overflow pages
2         2      count: records, keys, bytes of the owner's key, or children of a map page
4         4      link: overflow: next page, 0 at the end; 0 in other pages
8         8      epoch in which this version of the page was made
16        …      what the kind says, then zeros
size - 4  4      CRC-32 of everything before it
========= ====== ===============================================================================

The *free map* of a checkpoint tells which pages are not in its tree. Its pages of level 0 hold a
bit for each page of the file, in order, the highest bit of a byte first: 1 if the tree has no use
for the page, as for all beyond the end. The map itself and the meta pages count as no use.
A page of a higher level holds the numbers (4 bytes each) of *count* pages of the level below; all
but the last page of a level are full. The bits of 32,608 pages fit a page of 4 KiB, so the map is
small, and like the tree it is never changed in place: a checkpoint writes only those pages of it
whose bits have changed, and what leads to them.

When the file is opened, a page may be handed out if neither checkpoint's tree or map has it.

A meta page holds the same 84-byte record twice, at its start and at its middle; the rest is zeros.

========= ====== ===============================================================================
offset    size   field
========= ====== ===============================================================================
0         8      magic ``ConureKV``
8         1      format version, 2; then three zeros
12        4      page size
16        8      txid, the number of the checkpoint
24        8      epoch of the tree it holds
32        4      root page
36        4      pages in the file
40        4      root of the free map
44        1      level of the root; then three zeros
48        8      records in the tree
56        8      applied index
64        8      applied term
72        8      digest of what was applied up to there (machine.py)
80        4      CRC-32 of the 80 bytes before it, seeded with the number of the meta page
========= ====== ===============================================================================

Power loss while a meta page is written can tear one of its two records, never both: the other one
still holds the older checkpoint or already the newer. So a meta page without a valid record isn't
the trace of a crash but damage, and opening refuses it instead of going back to an older state.

Which pages are free is a matter of *epochs*. The tree counts them up whenever somebody wants to
keep the present state: a checkpoint or a snapshot reader *pins* the epoch. A page that was made in
epoch *a* and left the tree in epoch *f* belongs to every state *e* with ``a <= e < f``; while one
of those is pinned the page waits, after that it is free. The two meta pages are pins like any
other, which is how S1 is kept: what either of them reaches is never handed out.

In memory a byte for each page says whether it is in the tree, free, or *held*: it waits for a pin,
is part of a map, or lies beyond the end. These bytes come in *segments* of as many pages as one
page of the map covers. What a checkpoint does under a lock is copy the segments that changed.

Threads: ``read`` and ``write`` may be called by any thread. Everything that looks at or changes
free space and pins needs :attr:`Pager.lock`, a leaf in the order of locks, held for microseconds.
``commit`` takes it by itself; one checkpoint runs at a time.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import chain, compress
from struct import Struct
from typing import NamedTuple, TypeAlias
from zlib import crc32

from conure.errors import CorruptionError, DiskFailed, DiskFull, ForeignDirectory
from conure.fileio import File, FileSystem

__all__ = [
    "BATCH_PAGES",
    "ENVELOPE",
    "FREE_MAP",
    "INNER",
    "LEAF",
    "MAX_PAGE_SIZE",
    "MIN_PAGE_SIZE",
    "OVERFLOW",
    "SYNC_BYTES",
    "FreeSpace",
    "Meta",
    "Pager",
]

BATCH_PAGES = 32
"""Pages that are encoded and written in one go, by whoever writes many."""

SYNC_BYTES = 4 << 20
"""So much is written before a sync: the log's own syncs never queue for long."""

MIN_PAGE_SIZE = 256
MAX_PAGE_SIZE = 65536
LEAF, INNER, OVERFLOW, FREE_MAP = 1, 2, 3, 4

ENVELOPE = Struct("<BBHIQ")
assert ENVELOPE.size == 16

_MAGIC = b"ConureKV"
_VERSION = 2
_META = Struct("<8sB3xIQQIIIB3xQQQQ")
assert _META.size == 80
_CRC = Struct("<I")
_RECORD_BYTES = _META.size + _CRC.size  # of a meta page, which has two of them
_NUMBER = Struct("<I")
_RESIDUE = 0x2144DF1C  # what crc32 gives for any bytes followed by their own CRC
_WRITE_PAGES = 256  # largest group of neighbouring pages in one call
_ROOT, _MAP_ROOT = 2, 3  # of the tree and of the free map, in a new file

_IN_TREE, _FREE, _HELD = 0, 1, 2
_BITS = bytes.maketrans(bytes((_IN_TREE, _FREE, _HELD)), b"011")
_STATES = bytes.maketrans(b"01", bytes((_IN_TREE, _FREE)))


class Meta(NamedTuple):
    """One checkpoint, as a meta page states it."""

    page_size: int
    txid: int
    epoch: int
    root: int
    pages: int
    map_root: int
    level: int
    records: int
    applied_index: int
    applied_term: int
    digest: int  # the state machine's own; the tree only keeps it


# Pages that left the tree and that a pinned state may still need, three numbers each: the page's,
# and the epochs in which it was made and left.
_Waiting: TypeAlias = list[int]


class FreeSpace(NamedTuple):
    """What a checkpoint has to know of the moment in which it began."""

    pages: int
    enough: int  # pages of the map from there on move to the front
    changed: dict[int, bytes]  # the segments whose part of the map has to be written


class Pager:
    """The pages of one file, which of them are free, and which states are pinned."""

    def __init__(self, file: File, meta: Meta, older: Meta) -> None:
        self.lock = threading.Lock()
        self.meta = meta  # the last durable checkpoint
        self.page_size = meta.page_size
        self.pages = meta.pages  # pages handed out so far: the file's size once all are written
        self.free_pages = 0
        self.waiting_pages = 0
        self._file = file
        room = self.page_size - 4 - ENVELOPE.size
        self._segment_pages = 8 * room
        self._fan_out = room // _NUMBER.size
        self._segments: list[bytearray] = []
        self._roomy = bytearray()  # not 0 for segments that may have a free page
        self._changed: set[int] = set()  # segments whose part of the map isn't durable
        self._map: list[list[int]] = []  # the pages of the durable map, level by level from 0
        self._waiting: dict[int, _Waiting] = {}  # by the newest pinned epoch that needs them
        self._pins: dict[int, int] = {}
        self._pinned: list[int] = []  # the keys of _pins, sorted
        self._older_epoch = older.epoch
        self.pin(older.epoch)
        self.pin(meta.epoch)
        self._read_maps(older)

    @classmethod
    def open(cls, fs: FileSystem, path: str, page_size: int, *, create: bool) -> Pager:
        """Open *path*, or make it if it is missing and *create* is set.

        Reads the meta pages and the free maps and nothing else. Raises FileNotFoundError,
        ForeignDirectory for another format, and CorruptionError, for a file of another kind too.
        """
        if create and not fs.exists(path):
            _create(fs, path, page_size)
        file = fs.open(path)
        try:
            # What a killed process wrote last may yet be lost with the power, and pages be reused
            # then that the checkpoint before has.
            file.sync()
            meta, older = _newest(file)
            return cls(file, meta, older)
        except BaseException:
            file.close()
            raise

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def map_pages(self) -> list[int]:
        """The pages that hold the free map of the last durable checkpoint."""
        return [*chain.from_iterable(self._map)]

    def file_bytes(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()

    # -- pages -----------------------------------------------------------------------------------

    def read(self, number: int) -> bytes:
        """Return a page whose check holds. Raises CorruptionError (S3) and DiskFailed."""
        size = self.page_size
        page = self._file.pread(size, number * size)
        if len(page) != size:
            raise self.corrupt(number, "the file ends before the end of this page")
        if crc32(page, number) != _RESIDUE:
            raise self.corrupt(number, "the page's checksum does not match")
        return page

    def seal(self, number: int, body: bytes) -> bytes:
        """Return the page that holds *body*, with its checksum."""
        return _sealed(self.page_size, number, body)

    def write(self, pages: Sequence[tuple[int, bytes]]) -> None:
        """Write sealed pages, neighbours in one call. Raises DiskFull and DiskFailed."""
        size = self.page_size
        first = 0
        group: list[bytes] = []
        for number, page in pages:
            if number != first + len(group) or len(group) == _WRITE_PAGES:
                self._write_group(group, first * size)
                first, group = number, []
            group.append(page)
        self._write_group(group, first * size)

    def sync(self) -> None:
        self._file.sync()

    def corrupt(self, number: int, why: str) -> CorruptionError:
        """Return the error for a damaged page, for the caller to raise."""
        return CorruptionError(self.path, number * self.page_size, why)

    # -- free space, with the lock held ----------------------------------------------------------

    def allocate(self) -> int:
        """Hand out the lowest free page, or a new one at the end of the file, for the tree."""
        number = self._take()
        segment, at = divmod(number, self._segment_pages)
        self._segments[segment][at] = _IN_TREE
        self._changed.add(segment)
        return number

    def has_free_below(self, number: int) -> bool:
        return 0 <= self._lowest_free() < number

    def last_in_tree(self, limit: int) -> list[int]:
        """Return the last pages of the tree, if moving them to free ones pays: the last first."""
        found: list[int] = []
        if self._enough() >= self.pages:
            return found
        for index in reversed(range(len(self._segments))):
            at = self._segment_pages
            while (at := self._segments[index].rfind(_IN_TREE, 0, at)) >= 0:
                if len(found) == limit:
                    return found
                found.append(index * self._segment_pages + at)
        return found

    def free(self, number: int, born: int, left: int) -> bool:
        """Give back a page that was in the tree from epoch *born* until before *left*.

        Returns whether it is free at once; otherwise it waits for the pin that needs it.
        """
        segment, at = divmod(number, self._segment_pages)
        states = self._segments[segment]
        assert states[at] != _FREE, f"page {number} is free already"
        if states[at] == _IN_TREE:
            self._changed.add(segment)
        newest = bisect_left(self._pinned, left) - 1
        if newest >= 0 and (pin := self._pinned[newest]) >= born:
            states[at] = _HELD
            self._waiting.setdefault(pin, []).extend((number, born, left))
            self.waiting_pages += 1
            return False
        states[at] = _FREE
        self._roomy[segment] = True
        self.free_pages += 1
        return True

    def pin(self, epoch: int) -> None:
        """Keep every page of the state *epoch*."""
        count = self._pins.get(epoch, 0)
        self._pins[epoch] = count + 1
        if not count:
            insort(self._pinned, epoch)

    def unpin(self, epoch: int) -> None:
        """Undo one :meth:`pin`; follow it with :meth:`settle` until that returns None."""
        count = self._pins[epoch] - 1
        if count:
            self._pins[epoch] = count
        else:
            del self._pins[epoch]
            self._pinned.remove(epoch)

    def settle(self, epoch: int, limit: int) -> list[int] | None:
        """Look again at up to *limit* pages that waited for *epoch* and return the free ones.

        Returns None when there are none left. In portions, so that the lock is never held long.
        """
        waiting = self._waiting.get(epoch)
        if waiting is None or epoch in self._pins:
            return None
        portion = waiting[-3 * limit :]
        del waiting[-3 * limit :]
        if not waiting:
            del self._waiting[epoch]
        numbers = portion[::3]
        self.waiting_pages -= len(numbers)
        if self._pinned[0] < epoch:  # an older state may need some of them as well
            each = zip(numbers, portion[1::3], portion[2::3], strict=True)
            return [number for number, born, left in each if self.free(number, born, left)]
        self._release(numbers)
        return numbers

    def freeze(self) -> FreeSpace:
        """Return what the checkpoint that begins now has to know; then commit or thaw it."""
        self._trim()
        enough = self._enough()
        moving = {at for at, number in enumerate(self._map[0]) if number >= enough}
        changed = self._changed | moving.intersection(range(len(self._segments)))
        self._changed = set()
        return FreeSpace(self.pages, enough, {at: bytes(self._segments[at]) for at in changed})

    def thaw(self, space: FreeSpace) -> None:
        """Leave what a checkpoint would have made durable to the next one."""
        self._changed.update(at for at in space.changed if at < len(self._segments))

    def is_in_tree(self, number: int) -> bool:
        """Tell what the next checkpoint's map would say of a page."""
        segment, at = divmod(number, self._segment_pages)
        return self._segments[segment][at] == _IN_TREE

    def free_numbers(self) -> list[int]:
        """Return every page that is free or waits, for ``check()``."""
        numbers = [number for group in self._waiting.values() for number in group[::3]]
        first = 0
        for segment in self._segments:
            numbers += compress(range(first, first + len(segment)), map(_FREE.__eq__, segment))
            first += len(segment)
        return numbers

    # -- checkpoints -----------------------------------------------------------------------------

    def commit(self, space: FreeSpace, state: Meta) -> int:
        """Make *state* durable, whose pages have been written, and return the epoch to settle.

        Size, txid, pages and map are filled in here, the rest of *state* counts. Takes the lock by
        itself. Raises DiskFull, then :meth:`thaw` is due and nothing else has changed, and
        DiskFailed.
        """
        durable = self.meta.epoch
        shape, stale = self._plan_map(space)
        with self.lock:
            own = [[self._take() for _ in indexes] for indexes in stale]
        new = list(chain.from_iterable(own))
        try:
            levels = self._write_map(space, shape, stale, own, state.epoch)
            meta = state._replace(
                page_size=self.page_size,
                txid=self.meta.txid + 1,
                pages=max([space.pages, *(number + 1 for number in new)]),
                map_root=levels[-1][0],
            )
            if self._file.size() < meta.pages * self.page_size:
                # Its last pages were held for a reader who has gone since, so nobody wrote them.
                self._file.pwrite(bytes(self.page_size), (meta.pages - 1) * self.page_size)
            self.sync()  # S2: the data before the meta page that names it
            self._write_meta(meta)
            self.sync()
        except BaseException:
            with self.lock:
                self._release(new)
            raise
        with self.lock:
            self.pin(meta.epoch)
            outdated = set(self.map_pages)
            self._map = levels
            outdated.difference_update(self.map_pages)
            self._hold(outdated, durable, meta.epoch)
            self.meta = meta
            settled, self._older_epoch = self._older_epoch, durable
            self.unpin(settled)
        return settled

    def shrink(self) -> None:
        """Cut the end of the file off that the last checkpoint has no use for."""
        with self.lock:
            size = max(self.pages, self.meta.pages) * self.page_size
        # A little slack stays: writing into blocks that exist is faster than growing the file.
        if self._file.size() > size + size // 16 + 16 * self.page_size:
            self._file.truncate(size)

    # -- private ---------------------------------------------------------------------------------

    def _write_group(self, group: list[bytes], offset: int) -> None:
        if len(group) == 1:
            self._file.pwrite(group[0], offset)
        elif group:
            self._file.pwritev(group, offset)

    def _write_meta(self, meta: Meta) -> None:
        page, offset = _meta_page(meta), (meta.txid & 1) * self.page_size
        try:
            self._file.pwrite(page, offset)
        except DiskFull as error:
            # If one of its records has arrived, a crash from now on brings this checkpoint back:
            # none of its pages may be used again, so there is no going on without it (S1).
            if self._file.pread(_RECORD_BYTES, offset) == page[:_RECORD_BYTES]:
                raise DiskFailed(f"only a part of a meta page was written: {error}") from error
            raise

    def _lowest_free(self) -> int:
        """Return the lowest free page, or -1."""
        while (index := self._roomy.find(True)) >= 0:
            at = self._segments[index].find(_FREE)
            if at >= 0:
                return index * self._segment_pages + at
            self._roomy[index] = False
        return -1

    def _take(self) -> int:
        """Take the lowest free page, or a new one at the end of the file, and hold it."""
        number = self._lowest_free()
        if number >= 0:
            segment, at = divmod(number, self._segment_pages)
            self._segments[segment][at] = _HELD
            self.free_pages -= 1
            return number
        number = self.pages
        self.pages += 1
        if number == len(self._segments) * self._segment_pages:
            self._append_segment()
        return number

    def _append_segment(self) -> None:
        """Add the states of pages beyond the end."""
        self._changed.add(len(self._segments))
        self._segments.append(bytearray((_HELD,)) * self._segment_pages)
        self._roomy.append(False)

    def _release(self, numbers: Iterable[int]) -> None:
        """Make pages free that were held."""
        for number in numbers:
            segment, at = divmod(number, self._segment_pages)
            self._segments[segment][at] = _FREE
            self._roomy[segment] = True
            self.free_pages += 1

    def _hold(self, numbers: Iterable[int], epoch: int, left: int) -> None:
        """Let pages wait that the state *epoch* needs and that of *left* doesn't."""
        waiting = self._waiting.setdefault(epoch, [])
        for number in numbers:
            segment, at = divmod(number, self._segment_pages)
            self._segments[segment][at] = _HELD
            waiting += (number, epoch, left)
            self.waiting_pages += 1

    def _enough(self) -> int:
        """Return how many pages the file could do with, if it pays to make it that short."""
        free = self.free_pages
        return self.pages - free * (free > 16 + self.pages // 8 + self.waiting_pages)

    def _trim(self) -> None:
        """Take free pages at the end out of the file."""
        while True:
            first = (len(self._segments) - 1) * self._segment_pages
            states = self._segments[-1][: self.pages - first]
            kept = len(states.rstrip(bytes((_FREE,))))
            count = len(states) - kept
            self._segments[-1][kept : len(states)] = bytes((_HELD,)) * count
            self.free_pages -= count
            self.pages -= count
            if kept:
                return
            del self._segments[-1], self._roomy[-1]
            self._changed.discard(len(self._segments))

    # -- private: the free map -------------------------------------------------------------------

    def _plan_map(self, space: FreeSpace) -> tuple[list[int], list[list[int]]]:
        """Return, for each level of the next map, its number of pages and which to write anew."""
        count = -(-space.pages // self._segment_pages)
        shape = [count]
        stale = [sorted(space.changed)]
        while count > 1:
            below = len(shape) - 1
            parents = {at // self._fan_out for at in stale[below]}
            count = -(-count // self._fan_out)
            if len(self._map) <= len(shape):
                parents.update(range(count))  # a level that wasn't there
            else:
                numbers = self._map[len(shape)][:count]
                parents.update(at for at, number in enumerate(numbers) if number >= space.enough)
                if len(self._map[below]) != shape[below]:
                    parents.add(count - 1)  # its last child has gone or come
            shape.append(count)
            stale.append(sorted(parents))
        return shape, stale

    def _write_map(
        self,
        space: FreeSpace,
        shape: list[int],
        stale: list[list[int]],
        own: list[list[int]],
        epoch: int,
    ) -> list[list[int]]:
        """Write the pages of the map that are *stale* to their *own* places; return all levels."""
        levels: list[list[int]] = []
        pages: list[tuple[int, bytes]] = []
        for level, count in enumerate(shape):
            numbers = self._map[level][:count] if level < len(self._map) else []
            numbers += [0] * (count - len(numbers))
            for at, number in zip(stale[level], own[level], strict=True):
                numbers[at] = number
                if level:
                    part = levels[-1][at * self._fan_out : (at + 1) * self._fan_out]
                    body = Struct(f"<{len(part)}I").pack(*part)
                else:
                    part = []
                    body = _bits(space.changed[at])
                head = ENVELOPE.pack(FREE_MAP, level, len(part), 0, epoch)
                pages.append((number, self.seal(number, head + body)))
            assert all(numbers)
            levels.append(numbers)
        self.write(pages)
        return levels

    def _read_maps(self, older: Meta) -> None:
        """Find out which pages are free, and which only the *older* checkpoint needs (S1)."""
        meta, size = self.meta, self._segment_pages
        found: dict[int, bytes] = {}  # the pages of both maps
        self._map = self._read_map(meta, found)
        before = self._read_map(older, found)  # which may cover more, if the file has shrunk
        waiting: list[int] = []
        for index in range(-(-meta.pages // size)):
            inside = range(index * size, min((index + 1) * size, meta.pages))
            unused = self._unused(self._map[0], index, found)
            reusable = unused & self._unused(before[0], index, found)
            waiting += compress(inside, self._states(unused ^ reusable))
            self._append_segment()
            self._segments[index][: len(inside)] = self._states(reusable)[: len(inside)]
            self._roomy[index] = True
        self._changed.difference_update(range(len(self._map[0])))
        for number in {0, 1, *found}:
            segment, at = divmod(number, size)
            if self._segments[segment][at] != _FREE:
                raise self.corrupt(number, "the free map says that the tree has this page")
            self._segments[segment][at] = _HELD
        if self._segments[meta.root // size][meta.root % size] != _IN_TREE:
            raise self.corrupt(meta.root, "the free map says that the tree has not this page")
        self.free_pages = sum(segment.count(_FREE) for segment in self._segments)
        self._hold(waiting, older.epoch, meta.epoch)
        self._hold(set(found).difference(self.map_pages), older.epoch, meta.epoch)

    def _read_map(self, meta: Meta, found: dict[int, bytes]) -> list[list[int]]:
        """Return the pages of a checkpoint's map, level by level; *found* takes what is in them."""
        levels = [[meta.map_root]]
        most = -(-meta.pages // self._segment_pages)
        while True:
            children: list[int] = []
            below = len(levels)
            for at, number in enumerate(levels[0], 1):
                if not 2 <= number < self.pages:
                    raise self.corrupt(number, "the free map leads out of the file")
                if number not in found:
                    found[number] = self.read(number)
                kind, level, count, _, _ = ENVELOPE.unpack_from(found[number])
                if below == 1:
                    top = level + 1
                is_full = count == self._fan_out or at == len(levels[0])
                fits = 0 < count <= self._fan_out and is_full if level else not count
                if kind != FREE_MAP or level != top - below or not fits:
                    raise self.corrupt(number, "this is not a page of the free map")
                part = found[number][ENVELOPE.size : ENVELOPE.size + _NUMBER.size * count]
                children += chain.from_iterable(_NUMBER.iter_unpack(part))
                if len(children) > most:
                    raise self.corrupt(number, "the free map is too large")
            if not children:
                break
            levels.insert(0, children)
        numbers = [*chain.from_iterable(levels)]
        if len(numbers) != len(set(numbers)):
            raise self.corrupt(meta.map_root, "the free map names a page twice")
        return levels

    def _unused(self, leaves: list[int], index: int, found: dict[int, bytes]) -> int:
        """Return the bits of a segment, the first page's the highest. Not covered: all ones."""
        if index >= len(leaves):
            return (1 << self._segment_pages) - 1
        return int.from_bytes(found[leaves[index]][ENVELOPE.size : -_CRC.size], "big")

    def _states(self, bits: int) -> bytes:
        """Return _FREE for each bit that is set, otherwise _IN_TREE."""
        return format(bits, f"0{self._segment_pages}b").encode().translate(_STATES)


def _create(fs: FileSystem, path: str, page_size: int) -> None:
    """Make the file under another name first, so that it is there whole or not at all."""
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page_size has to be a power of two from 256 to 65536, not {page_size}")
    file = fs.open(path + ".new", create=True)
    try:
        file.truncate(0)
        meta = Meta(page_size, 0, 0, _ROOT, _MAP_ROOT + 1, _MAP_ROOT, 0, 0, 0, 0, 0)
        states = bytearray((_FREE,)) * (8 * (page_size - _CRC.size - ENVELOPE.size))
        states[_ROOT] = _IN_TREE
        leaf = ENVELOPE.pack(LEAF, 0, 0, 0, 0)
        free_map = ENVELOPE.pack(FREE_MAP, 0, 0, 0, 0) + _bits(states)
        file.pwrite(_meta_page(meta), 0)
        file.pwrite(_meta_page(meta._replace(txid=1)), page_size)
        file.pwrite(_sealed(page_size, _ROOT, leaf), _ROOT * page_size)
        file.pwrite(_sealed(page_size, _MAP_ROOT, free_map), _MAP_ROOT * page_size)
        file.sync()
    finally:
        file.close()
    fs.rename(path + ".new", path)
    fs.sync_directory(os.path.dirname(path) or ".")


def _sealed(page_size: int, number: int, body: bytes) -> bytes:
    body = body.ljust(page_size - _CRC.size, b"\0")
    assert len(body) == page_size - _CRC.size, f"page {number} is over-full"
    return body + _CRC.pack(crc32(body, number))


def _bits(states: bytes | bytearray) -> bytes:
    """Return a bit for each page, set if the tree doesn't have it."""
    return int(states.translate(_BITS), 2).to_bytes(len(states) // 8, "big")


def _meta_page(meta: Meta) -> bytes:
    body = _META.pack(_MAGIC, _VERSION, *meta)
    record = body + _CRC.pack(crc32(body, meta.txid & 1))
    return record.ljust(meta.page_size // 2, b"\0") * 2


def _parse_meta(data: bytes, offset: int, slot: int) -> tuple[int, Meta] | None:
    """Return format version and record, or None if there is no valid record at *offset*."""
    record = data[offset : offset + _RECORD_BYTES]
    if len(record) != _RECORD_BYTES or crc32(record, slot) != _RESIDUE:
        return None
    magic, version, *fields = _META.unpack_from(record)
    return (version, Meta(*fields)) if magic == _MAGIC else None


def _newest(file: File) -> tuple[Meta, Meta]:
    """Return the newest checkpoint and the one the other meta page holds."""
    data = file.pread(2 * MAX_PAGE_SIZE, 0)
    size = MIN_PAGE_SIZE
    while size <= MAX_PAGE_SIZE:
        slots: list[list[Meta]] = [[], []]
        for slot in (0, 1):
            for offset in (slot * size, slot * size + size // 2):
                found = _parse_meta(data, offset, slot)
                if found and found[0] != _VERSION:
                    other = "a newer" if found[0] > _VERSION else "an older"
                    raise ForeignDirectory(
                        f"{file.path} was written by {other} version (format {found[0]}); "
                        "use that version of ConureDB"
                    )
                if found and found[1].page_size == size:
                    slots[slot].append(found[1])
        if slots[0] or slots[1]:
            return _choose(file, slots, size)
        size *= 2
    raise CorruptionError(file.path, 0, "neither meta page has a valid record")


def _choose(file: File, slots: list[list[Meta]], size: int) -> tuple[Meta, Meta]:
    for slot in (0, 1):
        if not slots[slot]:
            raise CorruptionError(file.path, slot * size, "no valid record in this meta page")
    newest, older = sorted(
        (max(slot, key=lambda meta: meta.txid) for slot in slots),
        reverse=True,
        key=lambda meta: meta.txid,
    )
    if not 2 <= newest.root < newest.pages or older.epoch > newest.epoch:
        raise CorruptionError(file.path, (newest.txid & 1) * size, "the meta page makes no sense")
    if file.size() < newest.pages * size:
        raise CorruptionError(
            file.path, file.size(), f"the file ends before its {newest.pages} pages of {size} bytes"
        )
    return newest, older
