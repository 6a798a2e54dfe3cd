"""Fixed-size checksummed pages in one file: meta pages, free space and who still needs it.

The file is an array of pages of one size, a power of two from 256 bytes to 64 KiB that is chosen
when the file is made. All integers are little-endian.

========= ======================================================================================
page      content
========= ======================================================================================
0 and 1   the two meta pages; checkpoint *txid* writes page ``txid & 1``
2 …       tree nodes and overflow pages (``nodes.py``), pages of the free list
========= ======================================================================================

Every page but the meta pages has this envelope. The CRC-32 is seeded with the page's number, so
that a page written to the wrong place fails its check as well (S3).

========= ====== ===============================================================================
offset    size   field
========= ====== ===============================================================================
0         1      kind: 1 leaf, 2 inner node, 3 overflow, 4 free list
1         1      level of a node, 0 for a leaf; 0 in other pages
2         2      count: records, keys, bytes of the owner's key, or runs
4         4      link: overflow, free list: next page, 0 at the end; 0 in other pages
8         8      epoch in which this version of the page was made
16        …      what the kind says, then zeros
size - 4  4      CRC-32 of everything before it
========= ====== ===============================================================================

A free-list page holds *count* runs of 8 bytes: the first page of the run (4) and its length (4).
The highest bit of the length marks pages that the other meta page still reaches.

A meta page holds the same 84-byte record twice, at its start and at its middle; the rest is zeros.

========= ====== ===============================================================================
offset    size   field
========= ====== ===============================================================================
0         8      magic ``ConureKV``
8         1      format version, 1; then three zeros
12        4      page size
16        8      txid, the number of the checkpoint
24        8      epoch of the tree it holds
32        4      root page
36        4      pages in the file
40        4      first page of the free list, 0 if nothing is free
44        1      level of the root; then three zeros
48        8      records in the tree
56        8      applied index
64        8      applied term
72        8      digest of what was applied up to there (store.py)
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

Threads: ``read`` and ``write`` may be called by any thread. Everything that looks at or changes
free space and pins needs :attr:`Pager.lock`, a leaf in the order of locks, held for microseconds.
``commit`` takes it by itself; one checkpoint runs at a time.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import chain
from struct import Struct
from typing import NamedTuple, TypeAlias
from zlib import crc32

from errors import CorruptionError, ForeignDirectory
from fileio import File, FileSystem

__all__ = [
    "ENVELOPE",
    "FREE_LIST",
    "INNER",
    "LEAF",
    "MAX_PAGE_SIZE",
    "MIN_PAGE_SIZE",
    "OVERFLOW",
    "FreeSpace",
    "Meta",
    "Pager",
]

MIN_PAGE_SIZE = 256
MAX_PAGE_SIZE = 65536
LEAF, INNER, OVERFLOW, FREE_LIST = 1, 2, 3, 4

ENVELOPE = Struct("<BBHIQ")
assert ENVELOPE.size == 16

_MAGIC = b"ConureKV"
_VERSION = 1
_META = Struct("<8sB3xIQQIIIB3xQQQQ")
assert _META.size == 80
_CRC = Struct("<I")
_RUN = Struct("<II")
_UNREACHABLE_SOON = 1 << 31
_RESIDUE = 0x2144DF1C  # what crc32 gives for any bytes followed by their own CRC
_TAIL_PAGES = 64  # how many live pages one checkpoint moves towards the front
_WRITE_PAGES = 256  # largest group of neighbouring pages in one call


class Meta(NamedTuple):
    """One checkpoint, as a meta page states it."""

    page_size: int
    txid: int
    epoch: int
    root: int
    pages: int
    free_root: int
    level: int
    records: int
    applied_index: int
    applied_term: int
    digest: int  # the state machine's own; the tree only keeps it


# Pages that left the tree and that a pinned state may still need, three numbers each: the page's,
# and the epochs in which it was made and left.
_Waiting: TypeAlias = list[int]


class FreeSpace(NamedTuple):
    """The free space as it was when a checkpoint began."""

    free: list[int]
    waiting: dict[int, _Waiting]  # by the pinned epoch that needs them
    pages: int


class Pager:
    """The pages of one file, which of them are free, and which states are pinned."""

    def __init__(self, file: File, meta: Meta, older: Meta | None) -> None:
        self.lock = threading.Lock()
        self.meta = meta  # the last durable checkpoint
        self.page_size = meta.page_size
        self.pages = meta.pages  # pages handed out so far: the file's size once all are written
        self.tail: list[int] = []  # live pages whose moving would let the file shrink
        self.waiting_pages = 0
        self._file = file
        self._free: list[int] = []  # a heap: the lowest number is handed out first
        self._waiting: dict[int, _Waiting] = {}  # by the newest pinned epoch that needs them
        self._pins: dict[int, int] = {}
        self._pinned: list[int] = []  # the keys of _pins, sorted
        self._list_pages: list[int] = []
        self._older_epoch = meta.epoch if older is None else older.epoch
        self.pin(self._older_epoch)
        self.pin(meta.epoch)
        self._read_free_list()

    @classmethod
    def open(cls, fs: FileSystem, path: str, page_size: int, *, create: bool) -> Pager:
        """Open *path*, or make it if it is missing and *create* is set.

        Reads the meta pages and the free list and nothing else. Raises FileNotFoundError,
        ForeignDirectory for a newer format, and CorruptionError, for a file of another kind too.
        """
        if create and not fs.exists(path):
            _create(fs, path, page_size)
        file = fs.open(path)
        try:
            meta, older = _newest(file)
            return cls(file, meta, older)
        except BaseException:
            file.close()
            raise

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def list_pages(self) -> Sequence[int]:
        """The pages that hold the free list of the last durable checkpoint."""
        return self._list_pages

    @property
    def pinned_epochs(self) -> int:
        """How many pins there are, the two meta pages included."""
        return sum(self._pins.values())

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
        body = body.ljust(self.page_size - 4, b"\0")
        assert len(body) == self.page_size - 4, f"page {number} is over-full"
        return body + _CRC.pack(crc32(body, number))

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
        """Hand out the lowest free page, or a new one at the end of the file."""
        if self._free:
            return heappop(self._free)
        self.pages += 1
        return self.pages - 1

    def has_free_below(self, number: int) -> bool:
        return bool(self._free) and self._free[0] < number

    def free(self, number: int, born: int, left: int) -> bool:
        """Give back a page that was in the tree from epoch *born* until before *left*.

        Returns whether it is free at once; otherwise it waits for the pin that needs it.
        """
        at = bisect_left(self._pinned, left) - 1
        if at >= 0 and (pin := self._pinned[at]) >= born:
            self._waiting.setdefault(pin, []).extend((number, born, left))
            self.waiting_pages += 1
            return False
        heappush(self._free, number)
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
        for number in numbers:
            heappush(self._free, number)
        return numbers

    def freeze(self) -> FreeSpace:
        """Return the free space of this moment, for the checkpoint that begins now."""
        waiting = {pin: numbers[:] for pin, numbers in self._waiting.items()}
        return FreeSpace(self._free[:], waiting, self.pages)

    def free_numbers(self) -> list[int]:
        """Return every page that is free or waits, for ``check()``."""
        return self._free + [number for group in self._waiting.values() for number in group[::3]]

    # -- checkpoints -----------------------------------------------------------------------------

    def commit(self, space: FreeSpace, state: Meta) -> int:
        """Make *state* durable, whose pages have been written, and return the epoch to settle.

        Size, txid, pages and free list are filled in here, the rest of *state* counts. Takes the
        lock by itself. Raises DiskFull, after which nothing has changed, and DiskFailed.
        """
        durable = self.meta.epoch
        reusable = set(space.free)
        soon: set[int] = set()  # what only the other meta page will reach
        for pin, waiting in space.waiting.items():
            numbers = waiting[::3]
            if pin < durable:
                reusable.update(numbers)
            elif pin == durable:
                soon.update(numbers)
            else:  # a reader's, and the durable state's too unless they were made after it
                for number, born in zip(numbers, waiting[1::3], strict=True):
                    (soon if born <= durable else reusable).add(number)
        soon.update(self._list_pages)
        per_page = (self.page_size - 4 - ENVELOPE.size) // _RUN.size
        room = 0
        own: list[int] = []
        wanted = _count_runs(reusable) + _count_runs(soon)
        with self.lock:
            # Taking a page for the list can split one run in two, and the file may end in between.
            while room < wanted + 2 * len(own) and (wanted or own):
                own.append(self.allocate())
                room += per_page
        pages = max([space.pages, *(number + 1 for number in own)])
        reusable.update(range(space.pages, pages))
        reusable.difference_update(own)
        try:
            runs = _runs(reusable, 0) + _runs(soon, _UNREACHABLE_SOON)
            runs.sort()
            while runs and sum(runs[-1]) == pages:  # never one that the other meta page reaches
                pages = runs.pop()[0]
            self._write_free_list(own, runs, per_page, state.epoch)
            self.sync()  # S2: the data before the meta page that names it
            meta = state._replace(
                page_size=self.page_size,
                txid=self.meta.txid + 1,
                pages=pages,
                free_root=own[0] if own else 0,
            )
            self._file.pwrite(_meta_page(meta), (meta.txid & 1) * self.page_size)
            self.sync()
        except BaseException:
            with self.lock:
                for number in own:
                    heappush(self._free, number)
            raise
        with self.lock:
            self.tail = self._movable(runs, pages, own)
            self.pin(meta.epoch)
            for number in self._list_pages:
                self.free(number, durable, meta.epoch)
            self._list_pages = own
            self.meta = meta
            settled, self._older_epoch = self._older_epoch, durable
            self.unpin(settled)
        return settled

    def shrink(self) -> None:
        """Cut the free pages at the end of the file off. Takes the lock by itself."""
        with self.lock:
            free = self._free
            free.sort()  # a sorted list is a heap
            while free and free[-1] == self.pages - 1:
                self.pages = free.pop()
            size = self.pages * self.page_size
        # A little slack stays: writing into blocks that exist is faster than growing the file.
        if self._file.size() > size + size // 16 + 16 * self.page_size:
            self._file.truncate(size)

    # -- private ---------------------------------------------------------------------------------

    def _write_group(self, group: list[bytes], offset: int) -> None:
        if len(group) == 1:
            self._file.pwrite(group[0], offset)
        elif group:
            self._file.pwritev(group, offset)

    def _write_free_list(
        self, own: list[int], runs: list[tuple[int, int]], per_page: int, epoch: int
    ) -> None:
        pages = []
        for at, number in enumerate(own):
            part = runs[at * per_page : (at + 1) * per_page]
            link = own[at + 1] if at + 1 < len(own) else 0
            head = ENVELOPE.pack(FREE_LIST, 0, len(part), link, epoch)
            body = head + Struct(f"<{2 * len(part)}I").pack(*chain.from_iterable(part))
            pages.append((number, self.seal(number, body)))
        self.write(pages)

    def _read_free_list(self) -> None:
        pages = self.meta.pages
        number = self.meta.free_root
        free: list[int] = []
        while number:
            if not 2 <= number < pages or len(self._list_pages) >= pages:
                raise self.corrupt(number, "the free list leads out of the file or in a circle")
            page = self.read(number)
            self._list_pages.append(number)
            kind, _, count, link, _ = ENVELOPE.unpack_from(page)
            end = ENVELOPE.size + count * _RUN.size
            if kind != FREE_LIST or end > self.page_size - 4:
                raise self.corrupt(number, "this is not a page of the free list")
            for start, length in _RUN.iter_unpack(page[ENVELOPE.size : end]):
                run = range(start, start + (length & ~_UNREACHABLE_SOON))
                if start < 2 or run.stop > pages:
                    raise self.corrupt(number, f"free pages {start}… are not in the file")
                if len(free) + len(run) > pages:
                    raise self.corrupt(number, "more free pages than pages in the file")
                if length & _UNREACHABLE_SOON:
                    for page_number in run:
                        self.free(page_number, 0, self.meta.epoch)
                else:
                    free.extend(run)
            number = link
        self._free += free
        self._free.sort()

    def _movable(self, runs: list[tuple[int, int]], pages: int, own: list[int]) -> list[int]:
        """Return the last live pages of the file if there is much free space before them."""
        free = len(self._free)
        if free <= 16 + pages // 8 + self.waiting_pages:
            return []
        tail: list[int] = []
        listed = set(own)
        end = pages
        for start, length in [*reversed(runs), (0, 2)]:
            stop = start + (length & ~_UNREACHABLE_SOON)
            for number in range(end - 1, stop - 1, -1):
                if len(tail) == _TAIL_PAGES:
                    return tail
                if number not in listed:
                    tail.append(number)
            end = start
        return tail


def _create(fs: FileSystem, path: str, page_size: int) -> None:
    """Make the file under another name first, so that it is there whole or not at all."""
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page_size has to be a power of two from 256 to 65536, not {page_size}")
    file = fs.open(path + ".new", create=True)
    try:
        file.truncate(0)
        meta = Meta(page_size, 0, 0, 2, 3, 0, 0, 0, 0, 0, 0)
        pager = Pager(file, meta, None)
        leaf = ENVELOPE.pack(LEAF, 0, 0, 0, 0)
        file.pwrite(_meta_page(meta), 0)
        file.pwrite(_meta_page(meta._replace(txid=1)), page_size)
        pager.write([(2, pager.seal(2, leaf))])
        file.sync()
    finally:
        file.close()
    fs.rename(path + ".new", path)
    fs.sync_directory(os.path.dirname(path) or ".")


def _meta_page(meta: Meta) -> bytes:
    body = _META.pack(_MAGIC, _VERSION, *meta)
    record = body + _CRC.pack(crc32(body, meta.txid & 1))
    return record.ljust(meta.page_size // 2, b"\0") * 2


def _parse_meta(data: bytes, offset: int, slot: int) -> tuple[int, Meta] | None:
    """Return format version and record, or None if there is no valid record at *offset*."""
    record = data[offset : offset + _META.size + 4]
    if len(record) != _META.size + 4 or crc32(record, slot) != _RESIDUE:
        return None
    magic, version, *fields = _META.unpack_from(record)
    return (version, Meta(*fields)) if magic == _MAGIC else None


def _newest(file: File) -> tuple[Meta, Meta | None]:
    """Return the newest checkpoint and the one the other meta page holds."""
    data = file.pread(2 * MAX_PAGE_SIZE, 0)
    size = MIN_PAGE_SIZE
    while size <= MAX_PAGE_SIZE:
        slots: list[list[Meta]] = [[], []]
        for slot in (0, 1):
            for offset in (slot * size, slot * size + size // 2):
                found = _parse_meta(data, offset, slot)
                if found and found[0] > _VERSION:
                    raise ForeignDirectory(
                        f"{file.path} was written by a newer version (format {found[0]}); "
                        "use that version of ConureDB"
                    )
                if found and found[1].page_size == size:
                    slots[slot].append(found[1])
        if slots[0] or slots[1]:
            return _choose(file, slots, size)
        size *= 2
    raise CorruptionError(file.path, 0, "neither meta page has a valid record")


def _choose(file: File, slots: list[list[Meta]], size: int) -> tuple[Meta, Meta | None]:
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


def _count_runs(numbers: set[int]) -> int:
    return len(numbers - {number + 1 for number in numbers})


def _runs(numbers: set[int], flag: int) -> list[tuple[int, int]]:
    """Return the numbers as runs (start, length | flag)."""
    following = {number + 1 for number in numbers}
    bounds = zip(sorted(numbers - following), sorted(following - numbers), strict=True)
    return [(start, stop - start | flag) for start, stop in bounds]
