"""Engines of others behind :class:`~bench.contender.Contender`, each as it is fastest.

Every commit is synced. None compresses: the values are random. A module is imported when its
engine is opened, so that no process holds the code of an engine that it doesn't measure.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain, islice

from bench.contender import CACHE_BYTES, RANGE, Contender, Item

__all__ = ["LevelDb", "Lmdb", "RocksDb", "Sqlite", "leveldb_version", "lmdb_version"]

_BLOOM_BITS = 10  # a key, of both that have such filters
_MAP_BYTES = 64 << 30  # of address space


class Sqlite(Contender):
    """sqlite3 with a write-ahead log and a sync for every commit."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "sqlite.db")
        self._connection = sqlite3.connect(path, isolation_level=None)
        execute = self._connection.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        execute(f"PRAGMA cache_size=-{CACHE_BYTES >> 10}")
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
        query = f"SELECT k, v FROM t WHERE k >= ? ORDER BY k LIMIT {RANGE}"
        return sum(len(execute(query, (start,)).fetchall()) for start in starts)

    def scan_keys(self, start: bytes, count: int) -> int:
        query = "SELECT k FROM t WHERE k >= ? ORDER BY k LIMIT ?"
        rows = self._connection.execute(query, (start, count))
        return sum(map(len, chain.from_iterable(rows)))

    def scan_items(self, start: bytes, count: int) -> int:
        query = "SELECT k, v FROM t WHERE k >= ? ORDER BY k LIMIT ?"
        return sum(map(len, self._connection.execute(query, (start, count)))) // 2

    def settle(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self._connection.close()


class Lmdb(Contender):
    """LMDB as it comes: every commit is synced, and the file is mapped as a whole."""

    def __init__(self, directory: str) -> None:
        import lmdb

        self._environment = lmdb.open(directory, map_size=_MAP_BYTES)

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
                total += len(list(islice(cursor.iternext(), RANGE)))
        return total

    def scan_keys(self, start: bytes, count: int) -> int:
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            cursor.set_range(start)
            return sum(map(len, islice(cursor.iternext(values=False), count)))

    def scan_items(self, start: bytes, count: int) -> int:
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            cursor.set_range(start)
            return sum(map(len, islice(cursor.iternext(), count))) // 2

    def close(self) -> None:
        self._environment.close()


class LevelDb(Contender):
    """LevelDB by plyvel, with a bloom filter. It merges in a thread of its own."""

    def __init__(self, directory: str) -> None:
        import plyvel

        self._db = plyvel.DB(
            directory,
            create_if_missing=True,
            lru_cache_size=CACHE_BYTES,
            bloom_filter_bits=_BLOOM_BITS,
            compression=None,
        )

    def put_many(self, items: Sequence[Item]) -> None:
        with self._db.write_batch(sync=True) as batch:
            put = batch.put
            for key, value in items:
                put(key, value)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return list(map(self._db.get, keys))

    def range_many(self, starts: Iterable[bytes]) -> int:
        iterator = self._db.iterator
        return sum(len(list(islice(iterator(start=start), RANGE))) for start in starts)

    def scan_keys(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._db.iterator(start=start, include_value=False), count)))

    def scan_items(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._db.iterator(start=start), count))) // 2

    def settle(self) -> None:
        """Merge everything: there is no way to wait for what it does by itself."""
        self._db.compact_range()

    def close(self) -> None:
        self._db.close()


class RocksDb(Contender):
    """RocksDB by rocksdict, with a bloom filter and two threads for flushes and merges."""

    def __init__(self, directory: str) -> None:
        from rocksdict import (
            BlockBasedOptions,
            Cache,
            DBCompressionType,
            Options,
            Rdict,
            WriteBatch,
            WriteOptions,
        )

        blocks = BlockBasedOptions()
        blocks.set_block_cache(Cache(CACHE_BYTES))
        blocks.set_bloom_filter(_BLOOM_BITS, block_based=False)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.increase_parallelism(2)
        options.set_compression_type(DBCompressionType.none())
        options.set_block_based_table_factory(blocks)
        synced = WriteOptions()
        synced.sync = True
        self._batch = WriteBatch
        self._db = Rdict(directory, options)
        self._db.set_write_options(synced)

    def put_many(self, items: Sequence[Item]) -> None:
        batch = self._batch(raw_mode=True)
        put = batch.put
        for key, value in items:
            put(key, value)
        self._db.write(batch)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return list(map(self._db.get, keys))

    def range_many(self, starts: Iterable[bytes]) -> int:
        items = self._db.items
        return sum(len(list(islice(items(from_key=start), RANGE))) for start in starts)

    def scan_keys(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._db.keys(from_key=start), count)))

    def scan_items(self, start: bytes, count: int) -> int:
        return sum(map(len, islice(self._db.items(from_key=start), count))) // 2

    def settle(self) -> None:
        """Merge everything: there is no way to wait for what it does by itself."""
        self._db.flush()
        self._db.compact_range(None, None)

    def close(self) -> None:
        self._db.close()


def lmdb_version() -> str:
    """Return the version of the library, not of the package."""
    import lmdb

    return ".".join(map(str, lmdb.version()))


def leveldb_version() -> str:
    """Return the version of the library, not of the package."""
    import plyvel

    return str(plyvel.__leveldb_version__)
