"""A checkpoint of a tree on its way to the disk: frozen pages written, synced, and named.

The tree freezes its state in a moment, under its caller's lock; all that takes time is done here,
beside further writes. Pages are written in slices and synced in portions. The meta page names the
new root only when all of them are on the disk (S2); until then the file holds the last checkpoint
unharmed.

Any one thread may use a :class:`Checkpoint`, without the caller's lock. Nothing here looks at the
tree: the pool's lock guards the frozen pages, which the writer may take out at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from conure.storage.bufferpool import BufferPool
from pager import BATCH_PAGES, SYNC_BYTES, FreeSpace, Meta, Pager

__all__ = ["Checkpoint"]


class Checkpoint:
    """A frozen state that is being written (engine.Checkpoint).

    *committed* is called with *state* when that is durable, and *ended*, without a lock, when
    the next checkpoint may begin.
    """

    def __init__(
        self,
        pager: Pager,
        pool: BufferPool,
        state: Meta,
        space: FreeSpace,
        *,
        committed: Callable[[Meta], None],
        ended: Callable[[], None],
    ) -> None:
        self._pager = pager
        self._pool = pool
        self._state = state
        self._space = space
        self._committed = committed
        self._ended = ended
        self._is_over = False
        self._order: list[int] | None = None
        self._next = 0
        self._unsynced = 0

    def step(self, seconds: float) -> bool:
        """Encode and write pages for about that long; return whether all are written.

        Raises DiskFull and DiskFailed.
        """
        pager, pool = self._pager, self._pool
        deadline = time.perf_counter() + seconds
        if self._order is None:
            with pool.lock:
                self._order = list(pool.frozen)
            self._order.sort()
        order = self._order
        while self._next < len(order):
            batch = order[self._next : self._next + BATCH_PAGES]
            found = [(number, pool.frozen.get(number)) for number in batch]
            bodies = [(number, page, page.body()) for number, page in found if page]
            pager.write([(number, pager.seal(number, body)) for number, _, body in bodies])
            with pool.lock:
                for number, page, body in bodies:
                    if pool.frozen.pop(number, None):
                        pool.written(page, body)
            self._next += len(batch)
            self._unsynced += len(batch) * pager.page_size
            if self._unsynced >= SYNC_BYTES:
                pager.sync()
                self._unsynced = 0
            if time.perf_counter() >= deadline:
                break
        return self._next >= len(order)

    def finish(self) -> None:
        """Make the checkpoint durable (S2) and give the pages back that it makes free.

        Raises DiskFull, then :meth:`abort` is due, and DiskFailed.
        """
        assert self._order is not None, "no step was made"
        assert self._next >= len(self._order), "pages are missing"
        settled = self._pager.commit(self._space, self._state)
        self._committed(self._state)
        try:
            self._pool.unpin(self._state.epoch)
            self._pool.settle(settled)
            self._pager.shrink()
        finally:
            self._end()

    def abort(self) -> None:
        """Give the checkpoint up, unless it is over. The last one stays what the file holds."""
        if self._is_over:
            return
        with self._pool.lock:
            self._pool.thaw()
            self._pager.thaw(self._space)
        self._pool.unpin(self._state.epoch)
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._ended()
