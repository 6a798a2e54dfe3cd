"""ConureDB's engines behind :class:`~bench.contender.Contender`, whichever kind it is.

================ ===============================================================================
:class:`Bare`    the engine alone: a commit is a checkpoint
:class:`Logged`  the Raft log before it, as in a node: a commit is a sync of the log
:class:`Applied` the state machine above it and no log: what a node does with committed entries
================ ===============================================================================

With the latter two a checkpoint is taken every 50,000 entries, or when half of the memory for
changes is used up, as a node does it. It runs beside the puts in slices, and its time is in theirs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

from bench.contender import CACHE_BYTES, LOG_FOLDER, RANGE, Contender, Item
from conure.consensus.messages import COMMAND, Entry, HardState, SnapshotMeta
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.fileio import OsFileSystem
from conure.state.codec import encode_put
from conure.state.machine import Store
from conure.storage.engine import EngineOptions, StorageEngine
from conure.storage.engines import KINDS, kind_named

__all__ = ["Applied", "Bare", "Logged", "has_kind"]

_CHECKPOINT_ENTRIES = 50_000
_SLICE = 0.002  # seconds, as conure/cluster/checkpointing.py has it
_TERM = 1


def has_kind(kind: str) -> bool:
    """Whether this release has such an engine."""
    return kind in KINDS


class _Running(Protocol):
    """A checkpoint of an engine or of a store."""

    def step(self, seconds: float) -> bool: ...

    def finish(self) -> None: ...


class _Upkeep:
    """Checkpoints of an engine beside its puts. *begin* begins one of the state as of an index."""

    def __init__(self, engine: StorageEngine, begin: Callable[[int], _Running]) -> None:
        self._engine = engine
        self._begin = begin
        self._running: _Running | None = None
        self._covered = engine.applied_index

    def work(self, revision: int, seconds: float) -> int:
        """Work for about *seconds* on what is due at *revision*.

        Returns the index that is durable since, 0 if no checkpoint has ended.
        """
        if self._running is None:
            unwritten = self._engine.unwritten_bytes
            if revision - self._covered >= _CHECKPOINT_ENTRIES or 2 * unwritten >= CACHE_BYTES:
                self._start(revision)
            return 0
        if not self._running.step(max(_SLICE, seconds)):
            return 0
        self._running.finish()
        self._running = None
        return self._covered

    def drain(self, revision: int) -> int:
        """Make everything up to *revision* durable and return it."""
        while self._is_running():
            self.work(revision, 1.0)
        if revision > self._covered:
            self._start(revision)
        while self._is_running():
            self.work(revision, 1.0)
        while self._engine.maintain(1.0):
            pass
        return revision

    def _is_running(self) -> bool:
        return self._running is not None

    def _start(self, revision: int) -> None:
        self._running = self._begin(revision)
        self._covered = revision


class Bare(Contender):
    """An engine without anything around it."""

    def __init__(self, directory: str, kind: str) -> None:
        self._engine = _open(directory, kind)
        self._revision = self._engine.applied_index

    def put_many(self, items: Any) -> None:
        _put(self._engine, items, self._revision)
        self._revision += len(items)
        self._engine.checkpoint(self._revision, _TERM)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        get = self._engine.get
        return [record.value if (record := get(key)) else None for key in keys]

    def range_many(self, starts: Iterable[bytes]) -> int:
        items = self._engine.items
        return sum(len(list(islice(items(start), RANGE))) for start in starts)

    def scan_keys(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._engine.keys(start), count)))

    def scan_items(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._engine.items(start), count))) // 2

    def settle(self) -> None:
        while self._engine.maintain(1.0):
            pass

    def close(self) -> None:
        self._engine.check()
        self._engine.close()


class Logged(Bare):
    """An engine behind a Raft log, which has what came after the last checkpoint."""

    def __init__(self, directory: str, kind: str) -> None:
        super().__init__(directory, kind)
        self._log = RaftLog.open(OsFileSystem(), os.path.join(directory, LOG_FOLDER))
        if not self._log.hard_state.term:
            self._log.set_hard_state(HardState(_TERM, "bench"))
        self._log.prepare()
        engine = self._engine
        self._upkeep = _Upkeep(engine, lambda index: engine.begin_checkpoint(index, _TERM))
        if self._log.last_index > self._revision:
            raise RuntimeError("a log that was not closed in the orderly way")

    def put_many(self, items: Any) -> None:
        began = time.perf_counter()
        entries = _entries(items, self._revision)
        self._log.reserve(sum(len(entry.data) + ENTRY_OVERHEAD for entry in entries))
        self._log.append(entries)
        self._log.sync()
        _put(self._engine, items, self._revision)
        self._revision += len(items)
        self._cut(self._upkeep.work(self._revision, time.perf_counter() - began))

    def settle(self) -> None:
        self._cut(self._upkeep.drain(self._revision))

    def close(self) -> None:
        self.settle()
        self._log.check()
        self._log.close()
        super().close()

    def _cut(self, index: int) -> None:
        if index > self._log.snapshot.index:
            self._log.cut(SnapshotMeta(index, _TERM, b""))
            self._log.prepare()


class Applied(Bare):
    """A state machine that is given committed entries. Nothing of it is durable by itself."""

    def __init__(self, directory: str, kind: str) -> None:
        super().__init__(directory, kind)
        self._store = store = Store(self._engine, b"", keeps_events=True)
        self._upkeep = _Upkeep(self._engine, lambda _: store.begin_checkpoint())

    def batch(self, items: list[Item]) -> list[Entry]:
        first = self._revision
        self._revision += len(items)
        return _entries(items, first)

    def put_many(self, items: Any) -> None:
        began = time.perf_counter()
        self._store.apply(items)
        self._store.take_events()
        self._upkeep.work(self._store.applied_index, time.perf_counter() - began)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        get = self._store.get
        return [record.value if (record := get(key)) else None for key in keys]

    def range_many(self, starts: Iterable[bytes]) -> int:
        return super().range_many(_USER + start for start in starts)

    def scan_keys(self, start: bytes, count: int) -> int:
        return super().scan_keys(_USER + start, count) - count * len(_USER)

    def scan_items(self, start: bytes, count: int) -> int:
        return super().scan_items(_USER + start, count)

    def settle(self) -> None:
        self._upkeep.drain(self._store.applied_index)

    def close(self) -> None:
        self.settle()
        super().close()


_USER = b"k"  # before users' keys in a state machine's engine


def _open(directory: str, kind: str) -> StorageEngine:
    place = os.path.join(directory, "conure.db")
    options = EngineOptions(cache_bytes=CACHE_BYTES)
    return kind_named(kind).open(OsFileSystem(), place, options, create=True)


def _put(engine: StorageEngine, items: list[Item], before: int) -> None:
    put = engine.put
    for revision, (key, value) in enumerate(items, before + 1):
        put(key, value, revision)


def _entries(items: list[Item], before: int) -> list[Entry]:
    return [
        Entry(_TERM, index, COMMAND, encode_put(key, value))
        for index, (key, value) in enumerate(items, before + 1)
    ]
