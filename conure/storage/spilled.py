"""Values too long for a leaf: as chains of overflow pages, read, written and given back.

A leaf keeps a reference in the value's place: first page and length. ``pages.py`` draws both. A
value that was replaced or removed is out of the tree at once. Its pages are found one after the
other, so they become free by and by (:meth:`SpilledValues.reclaim`); who writes long values frees
more than that takes.

Threads: any may call :meth:`SpilledValues.chain` and :meth:`SpilledValues.lay_out`; the rest is for
the tree's writer, in its caller's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise

from conure.storage.bufferpool import BufferPool
from conure.storage.pages import CHUNK, REF, Overflow, chunk_of
from pager import Pager

__all__ = ["SpilledValues"]


class SpilledValues:
    """The long values of one tree. *capacity* is that of a node, in bytes."""

    def __init__(self, pager: Pager, pool: BufferPool, capacity: int) -> None:
        self._pager = pager
        self._pool = pool
        self._capacity = capacity
        self._replaced: deque[tuple[bytes, bytes]] = deque()  # out of the tree: key, reference
        self._reclaiming: Iterator[tuple[int, int, bytes]] = iter(())  # pages of one before those

    def put(self, key: bytes, value: bytes) -> bytes:
        """Put the value of *key* into unwritten pages and return the reference to it."""
        ref, pages = self.lay_out(key, value)
        with self._pool.lock:
            for page in pages:
                self._pool.register(page)
        return ref

    def lay_out(self, key: bytes, value: bytes) -> tuple[bytes, list[Overflow]]:
        """Return the reference to a value and the pages that hold it, which are the caller's."""
        room = self._capacity - CHUNK.size - len(key)
        starts = range(0, len(value), room)
        epoch = self._pool.epoch
        numbers = self._pool.allocate(len(starts))
        pages = [
            Overflow(number, epoch, key, index, value[index * room : (index + 1) * room], link)
            for index, (number, link) in enumerate(pairwise([*numbers, 0]))
        ]
        return REF.pack(numbers[0], len(value)), pages

    def chain(self, key: bytes, ref: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Iterate over a value's pages: number, epoch and the part of the value there.

        Raises CorruptionError and DiskFailed.
        """
        number, left = REF.unpack(ref)
        limit = self._pager.page_size - 4
        index = 0
        while left:
            unwritten = self._pool.overflow.get(number)
            page = unwritten.content if unwritten else self._pager.read(number)
            try:
                chunk, link, epoch = chunk_of(page, limit, key, index, left)
            except ValueError as error:
                raise self._pager.corrupt(number, str(error)) from error
            yield number, epoch, chunk
            number = link
            left -= len(chunk)
            index += 1

    def let_go(self, key: bytes, ref: bytes) -> None:
        """Take note that the value of *key* with that reference is out of the tree."""
        self._replaced.append((key, ref))

    def reclaim(self, count: int) -> bool:
        """Free *count* pages of values that are out of the tree; tell whether there are more.

        Raises CorruptionError and DiskFailed.
        """
        while count > 0:
            pages = [(number, epoch) for number, epoch, _ in islice(self._reclaiming, count)]
            with self._pool.lock:
                for number, epoch in pages:
                    self._pool.give_back(number, epoch)
            count -= len(pages)
            if not pages:
                if not self._replaced:
                    return False
                self._reclaiming = self.chain(*self._replaced.popleft())
        return True
