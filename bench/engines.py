"""The storage engines behind one interface, each measured in a process of its own.

``python -m bench.engines ENGINE RECORDS PLAN DIRECTORY`` fills a fresh directory with random
16-byte keys and 100-byte values, measures, verifies and prints one JSON object:

==================== ========================================================================
``put_load``         puts a second into the empty engine, 1,000 a durable commit
``put_overwrite``    the same for keys that exist, in another random order
``put_100, put_1``   100 a commit and 1 a commit, for keys that exist
``get``              gets of random keys a second
``range``            ranges of 100 records from a random key, ranges a second
``scan_keys``        keys a second, all in order
``scan_items``       keys with their values a second
``bytes_load``       bytes of all files after the load
``bytes_overwrite``  bytes of all files after every record has been overwritten
``open``             seconds to open it again and get one record, median of five
``peak_memory``      the most resident memory of the process, its share of mapped files included
==================== ========================================================================

All have a page cache of 64 MiB, but for LMDB, which maps the whole file. Each is used in the way
that is fastest for it: sqlite3 and LMDB take a batch in one call.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from statistics import median
from typing import TYPE_CHECKING, Protocol

from bench.plan import FULL, QUICK, SHORT, Plan
from bench.workspace import BenchError, peak_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENGINES", "OURS", "missing", "version"]

OURS = "ConureDB B-tree"
_CACHE_BYTES = 64 << 20
_KEY, _VALUE = 16, 100
_BATCH, _SMALL_BATCH, _RANGE = 1_000, 100, 100
_LEAST_SECONDS = 0.2  # what is shorter is repeated
_POOL = bytes(random.Random(7).randbytes(1 << 16))

Item = tuple[bytes, bytes]


class Engine(Protocol):
    """What is measured. The loops over many keys are the engine's own, so that each is at its best.

    ``close`` and opening again must show what was committed.
    """

    def put_many(self, items: Sequence[Item]) -> None:
        """Put all of them and commit durably."""

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]: ...

    def range_many(self, starts: Iterable[bytes]) -> int:
        """Read :data:`_RANGE` records from each start; return how many were read in all."""

    def scan_keys(self) -> int:
        """Read every key in order; return their total length in bytes."""

    def scan_items(self) -> int:
        """Read every key and value in order; return the number of records."""

    def close(self) -> None: ...


class ConureTree:
    """ConureDB's B-tree without the server: a commit is a checkpoint."""

    def __init__(self, directory: str) -> None:
        from btree import BTree
        from conure.fileio import OsFileSystem

        path = os.path.join(directory, "conure.db")
        self._tree = BTree.open(OsFileSystem(), path, cache_bytes=_CACHE_BYTES)
        self._revision = self._tree.applied_index

    def put_many(self, items: Sequence[Item]) -> None:
        put = self._tree.put
        for revision, (key, value) in enumerate(items, self._revision + 1):
            put(key, value, revision)
        self._revision += len(items)
        self._tree.checkpoint(self._revision, 1)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        get = self._tree.get
        return [record.value if (record := get(key)) else None for key in keys]

    def range_many(self, starts: Iterable[bytes]) -> int:
        items = self._tree.items
        return sum(len(list(islice(items(start), _RANGE))) for start in starts)

    def scan_keys(self) -> int:
        return sum(map(len, self._tree.keys()))

    def scan_items(self) -> int:
        return sum(map(len, self._tree.items())) // 2

    def close(self) -> None:
        self._tree.check()
        self._tree.close()


class Sqlite:
    """sqlite3 with a write-ahead log and a sync for every commit."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "sqlite.db")
        self._connection = sqlite3.connect(path, isolation_level=None)
        execute = self._connection.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        execute(f"PRAGMA cache_size=-{_CACHE_BYTES >> 10}")
        execute("CREATE TABLE IF NOT EXISTS t (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def put_many(self, items: Sequence[Item]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany("REPLACE INTO t VALUES (?, ?)", items)
        self._connection.execute("COMMIT")

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        execute = self._connection.execute
        query = "SELECT v FROM t WHERE k = ?"
        rows = (execute(query, (key,)).fetchone() for key in keys)
        return [row[0] if row else None for row in rows]

    def range_many(self, starts: Iterable[bytes]) -> int:
        execute = self._connection.execute
        query = f"SELECT k, v FROM t WHERE k >= ? ORDER BY k LIMIT {_RANGE}"
        return sum(len(execute(query, (start,)).fetchall()) for start in starts)

    def scan_keys(self) -> int:
        rows = self._connection.execute("SELECT k FROM t ORDER BY k")
        return sum(map(len, chain.from_iterable(rows)))

    def scan_items(self) -> int:
        return sum(map(len, self._connection.execute("SELECT k, v FROM t ORDER BY k"))) // 2

    def close(self) -> None:
        self._connection.close()


class Lmdb:
    """LMDB as it comes: every commit is synced."""

    def __init__(self, directory: str) -> None:
        import lmdb

        self._environment = lmdb.open(directory, map_size=16 << 30)

    def put_many(self, items: Sequence[Item]) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(items)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        with self._environment.begin() as transaction:
            return list(map(transaction.get, keys))

    def range_many(self, starts: Iterable[bytes]) -> int:
        total = 0
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            for start in starts:
                cursor.set_range(start)
                total += len(list(islice(cursor.iternext(), _RANGE)))
        return total

    def scan_keys(self) -> int:
        with self._environment.begin() as transaction:
            return sum(map(len, transaction.cursor().iternext(values=False)))

    def scan_items(self) -> int:
        with self._environment.begin() as transaction:
            return sum(map(len, transaction.cursor().iternext())) // 2

    def close(self) -> None:
        self._environment.close()


ENGINES: dict[str, Callable[[str], Engine]] = {OURS: ConureTree, "sqlite3": Sqlite, "LMDB": Lmdb}


def missing(engine: str) -> str:
    """Return why an engine can't be measured and what to do about it, or an empty string."""
    if engine == OURS and importlib.util.find_spec("btree") is None:
        return "there is no btree.py beside bench/"
    if engine == "LMDB" and importlib.util.find_spec("lmdb") is None:
        return "LMDB is missing: pip install -r requirements-bench.txt"
    return ""


def version(engine: str) -> str:
    """Return an engine's name and version."""
    if engine == "sqlite3":
        return f"sqlite3 {sqlite3.sqlite_version}"
    if engine == "LMDB":
        import lmdb

        return "LMDB " + ".".join(map(str, lmdb.version()))
    return engine


class _Records:
    """Random keys that take 16 bytes each, and values that tell the round they are from."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._keys = random.Random(count).randbytes(count * _KEY)

    def key(self, n: int) -> bytes:
        return self._keys[n * _KEY : (n + 1) * _KEY]

    def value(self, n: int, turn: int) -> bytes:
        start = (n * 7919 + turn * 104_729) % (len(_POOL) - _VALUE)
        return _POOL[start : start + _VALUE]

    def sample(self, count: int, seed: int) -> list[int]:
        chance = random.Random(seed)
        return [chance.randrange(self.count) for _ in range(count)]

    def batches(self, order: Iterable[int], turn: int, size: int) -> Iterator[list[Item]]:
        left = iter(order)
        while batch := [(self.key(n), self.value(n, turn)) for n in islice(left, size)]:
            yield batch


def _measure(name: str, count: int, plan: Plan, directory: str) -> dict[str, float]:
    open_engine = ENGINES[name]
    records = _Records(count)
    engine = open_engine(directory)
    figures = {"put_load": _put(engine, records.batches(range(count), 0, _BATCH))}
    figures["bytes_load"] = _bytes_of(directory)
    # The keys are random, so every step through them that meets each once is a random order.
    step = next(n for n in range(count * 5 // 8, count * 2) if _coprime(n, count))
    again = (n * step % count for n in range(count))
    figures["put_overwrite"] = _put(engine, records.batches(again, 1, _BATCH))
    figures["bytes_overwrite"] = _bytes_of(directory)

    few = records.sample(min(plan.small_batches, count * 10), 1)
    figures["put_100"] = _put(engine, records.batches(few, 1, _SMALL_BATCH))
    figures["put_1"] = _put(engine, records.batches(few[: plan.single_commits], 1, 1))

    wanted = records.sample(plan.gets, 2)
    keys = [records.key(n) for n in wanted]
    seconds = _time(lambda: engine.get_many(keys))
    figures["get"] = len(keys) / seconds
    # Values are compared outside the measured loop, over the same keys.
    expected = (records.value(n, 1) for n in wanted)
    if any(map(operator.ne, engine.get_many(keys), expected)):
        raise BenchError(f"{name} returned other values than were put")

    starts = [records.key(n) for n in records.sample(plan.ranges, 3)]
    figures["range"] = len(starts) / _time(lambda: engine.range_many(starts))
    figures["scan_keys"] = count / _time(engine.scan_keys)
    figures["scan_items"] = count / _time(engine.scan_items)
    if engine.scan_keys() != count * _KEY or engine.scan_items() != count:
        raise BenchError(f"{name} holds another number of records than were put")

    figures["peak_memory"] = peak_memory(os.getpid())
    engine.close()
    figures["open"] = median(_time_open(open_engine, directory, records) for _ in range(5))
    return figures


def _put(engine: Engine, batches: Iterable[list[Item]]) -> float:
    """Return the puts a second, without the time it takes to make up the records."""
    seconds, count = 0.0, 0
    for batch in batches:
        began = time.perf_counter()
        engine.put_many(batch)
        seconds += time.perf_counter() - began
        count += len(batch)
    return count / seconds


def _time(work: Callable[[], object]) -> float:
    """Return the seconds one call takes; short ones are repeated."""
    began = time.perf_counter()
    calls = 0
    while True:
        work()
        calls += 1
        seconds = time.perf_counter() - began
        if seconds >= _LEAST_SECONDS:
            return seconds / calls


def _time_open(open_engine: Callable[[str], Engine], directory: str, records: _Records) -> float:
    began = time.perf_counter()
    engine = open_engine(directory)
    found = engine.get_many([records.key(records.count // 2)])
    seconds = time.perf_counter() - began
    engine.close()
    if found != [records.value(records.count // 2, 1)]:
        raise BenchError("a record is gone after opening again")
    return seconds


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def _bytes_of(directory: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(directory))


if __name__ == "__main__":
    _name, _count, _plan, _directory = sys.argv[1:]
    _chosen = {plan.name: plan for plan in (FULL, SHORT, QUICK)}[_plan]
    print(json.dumps(_measure(_name, int(_count), _chosen, _directory)))
