"""ConureDB's engines behind :class:`~bench.contender.Contender`, whichever kind it is.

================ ===============================================================================
:class:`Bare`    the engine alone: a commit is a checkpoint
:class:`Logged`  the Raft log before it, as in a node: a commit is a sync of the log
:class:`Applied` the state machine above it and no log: what a node does with committed entries
================ ===============================================================================

With the latter two a checkpoint is taken every 50,000 entries, or when the memory for changes is
used up, as a node does it: in a thread, in turns of work and rest, with merges between. Whatever
takes long is done by worker processes where the engine has some.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

from bench.contender import CACHE_BYTES, LOG_FOLDER, RANGE, Contender, Item
from bench.workspace import BenchError
from conure.consensus.messages import COMMAND, Entry, HardState, SnapshotMeta
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.fileio import OsFileSystem
from conure.state.codec import encode_put
from conure.state.machine import Store
from conure.storage.engine import EngineOptions, StorageEngine
from conure.storage.engines import KINDS, kind_named

__all__ = ["Applied", "Bare", "Logged", "has_kind"]

_CHECKPOINT_ENTRIES = 50_000
_SLICE = 0.002  # seconds of work or rest, as conure/cluster/checkpointing.py has it
_URGENT_BYTES = {"btree": CACHE_BYTES // 2, "lsm": EngineOptions().memtable_bytes}
_MOST_TIMES = 4  # as much memory may changes take before puts wait
_BRAKE = 0.004  # seconds at most that a put waits for merges, as conure/cluster/node.py has it
_TERM = 1


def has_kind(kind: str) -> bool:
    """Whether this release has such an engine."""
    return kind in KINDS


class _Running(Protocol):
    """A checkpoint of an engine or of a store."""

    def step(self, seconds: float) -> bool: ...

    def finish(self) -> None: ...


class _Upkeep:
    """Checkpoints and merges of an engine beside its puts, in a thread, as a node has one.

    The writer holds *lock* while it puts. *begin* begins a checkpoint, under it, and *durable* is
    told under it how far the checkpoint reached.
    """

    def __init__(
        self,
        engine: StorageEngine,
        kind: str,
        begin: Callable[[], _Running],
        durable: Callable[[int], None],
    ) -> None:
        self.lock = threading.Lock()
        self._engine = engine
        self._urgent = _URGENT_BYTES[kind]
        self._begin = begin
        self._durable = durable
        self._revision = engine.applied_index  # of the last put
        self._wanted = False  # a checkpoint of all there is
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wrote(self, revision: int) -> None:
        """Take note of a put, without the lock, and wait where the engine is far behind."""
        self._revision = revision
        if self._is_due():
            self._wake.set()
        while self._engine.unwritten_bytes > _MOST_TIMES * self._urgent:
            self._wait()
        if pressure := self._engine.pressure:
            time.sleep(_BRAKE * pressure)

    def drain(self) -> None:
        """Wait until everything is durable and nothing is left to be merged."""
        self._wanted = True
        self._wake.set()
        while self._wanted:
            self._wait()
        with self.lock:
            while self._engine.maintain(1.0):
                pass

    def stop(self) -> None:
        """End the thread, after the checkpoint that it is at."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _wait(self) -> None:
        if not self._thread.is_alive():
            raise BenchError("the upkeep of an engine has failed")  # its traceback is in the log
        time.sleep(_SLICE)

    def _run(self) -> None:
        while not self._stopping:
            if self._is_due():
                self._checkpoint()
            elif self._engine.compact(_SLICE):
                time.sleep(_SLICE)
            elif self._wanted:
                self._wanted = self._engine.applied_index < self._revision
            else:
                self._wake.wait()
                self._wake.clear()

    def _is_due(self) -> bool:
        behind = self._revision - self._engine.applied_index
        if self._wanted:
            return behind > 0
        is_large = self._engine.unwritten_bytes >= self._urgent
        return (behind >= _CHECKPOINT_ENTRIES or is_large) and self._engine.pressure < 1.0

    def _checkpoint(self) -> None:
        with self.lock:
            running = self._begin()
        while not running.step(_SLICE):
            self._engine.compact(_SLICE)
            time.sleep(_SLICE)
        running.finish()
        with self.lock:
            self._durable(self._engine.applied_index)


class Bare(Contender):
    """An engine without anything around it."""

    def __init__(self, directory: str, kind: str) -> None:
        self._engine = _open(directory, kind)
        self._revision = self._engine.applied_index

    def put_many(self, items: Any) -> None:
        _put(self._engine, items, self._revision)
        self._revision += len(items)
        engine = self._engine
        engine.checkpoint(self._revision, _TERM)
        engine.compact(_SLICE)
        while engine.pressure >= 1.0:
            engine.compact(_SLICE)

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
        while self._engine.maintain(1.0) or self._engine.compact(_SLICE):
            pass

    def close(self) -> None:
        self._engine.check()
        self._engine.close()


class Logged(Bare):
    """An engine behind a Raft log, which has what came after the last checkpoint."""

    def __init__(self, directory: str, kind: str) -> None:
        super().__init__(directory, kind)
        self._log = RaftLog.open(OsFileSystem(), os.path.join(directory, LOG_FOLDER))
        if self._log.last_index > self._revision:
            raise RuntimeError("the log was not closed in the orderly way")
        if not self._log.hard_state.term:
            self._log.set_hard_state(HardState(_TERM, "bench"))
        self._log.prepare()
        self._upkeep = _Upkeep(
            self._engine,
            kind,
            lambda: self._engine.begin_checkpoint(self._revision, _TERM),
            self._cut,
        )

    def put_many(self, items: Any) -> None:
        with self._upkeep.lock:
            entries = _entries(items, self._revision)
            self._log.reserve(sum(len(entry.data) + ENTRY_OVERHEAD for entry in entries))
            self._log.append(entries)
            self._log.sync()
            _put(self._engine, items, self._revision)
            self._revision += len(items)
        self._upkeep.wrote(self._revision)

    def settle(self) -> None:
        self._upkeep.drain()

    def close(self) -> None:
        self._upkeep.drain()
        self._upkeep.stop()
        self._log.check()
        self._log.close()
        super().close()

    def _cut(self, index: int) -> None:
        self._log.cut(SnapshotMeta(index, _TERM, b""))
        self._log.prepare()


class Applied(Bare):
    """A state machine that is given committed entries. Nothing of it is durable by itself."""

    def __init__(self, directory: str, kind: str) -> None:
        super().__init__(directory, kind)
        self._store = store = Store(self._engine, b"", keeps_events=True)
        self._upkeep = _Upkeep(self._engine, kind, store.begin_checkpoint, lambda _: None)

    def batch(self, items: list[Item]) -> list[Entry]:
        first = self._revision
        self._revision += len(items)
        return _entries(items, first)

    def put_many(self, items: Any) -> None:
        with self._upkeep.lock:
            self._store.apply(items)
            self._store.take_events()
        self._upkeep.wrote(self._store.applied_index)

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
        self._upkeep.drain()

    def close(self) -> None:
        self._upkeep.drain()
        self._upkeep.stop()
        super().close()


_USER = b"k"  # before users' keys in a state machine's engine


def _open(directory: str, kind: str) -> StorageEngine:
    place = os.path.join(directory, "conure.db")
    options = EngineOptions(cache_bytes=CACHE_BYTES, workers=True)
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
