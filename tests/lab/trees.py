"""B-trees on pages so small that ten keys split them, and an oracle beside them."""

from __future__ import annotations

import random

from btree import BTree
from conure.storage.engine import Record
from conure.storage.pages import (
    NODE_BYTES,
    RECORD_BYTES,
    Leaf,
)
from tests.lab.crashfs import CrashFileSystem

Model = dict[bytes, Record]


class Pair:
    """A tree and the dict it is compared with."""

    def __init__(self, fs: CrashFileSystem, page_size: int = 256, cache_bytes: int = 8000) -> None:
        self.fs = fs
        self.cache_bytes = cache_bytes
        self.tree = BTree.open(fs, "db", page_size=page_size, cache_bytes=cache_bytes)
        self.model: Model = {}
        self.durable: Model = {}
        self.revision = 0

    def put(self, key: bytes, value: bytes, expiry: int = 0, step: int = 1) -> None:
        self.revision += step
        self.tree.put(key, value, self.revision, expiry)
        old = self.model.get(key)
        create, version = (old.create_revision, old.version + 1) if old else (self.revision, 1)
        self.model[key] = Record(value, create, self.revision, version, expiry)

    def delete(self, key: bytes) -> None:
        assert self.tree.delete(key) == (self.model.pop(key, None) is not None)

    def checkpoint(self) -> None:
        self.tree.checkpoint(self.revision, 1)
        self.durable = dict(self.model)

    def reopen(self) -> None:
        """Come back after losing power, with what the last checkpoint made durable."""
        self.tree.close()
        self.fs = self.fs.after_crash("dropped")
        self.tree = BTree.open(self.fs, "db", cache_bytes=self.cache_bytes)
        self.model = dict(self.durable)

    def verify(self) -> None:
        report = self.tree.check()
        assert report.records == len(self.tree) == len(self.model)
        assert list(self.tree.items()) == sorted(self.model.items())
        tree = self.tree
        unwritten = [*tree._pool.unwritten.values(), *tree._pool.frozen.values()]
        in_lists = sum(len(page.keys) for page in unwritten if isinstance(page, Leaf))
        page_bytes = tree.stats().page_size + NODE_BYTES
        assert tree.unwritten_bytes == len(unwritten) * page_bytes + in_lists * RECORD_BYTES
        assert tree.stats().cache_bytes == sum(tree._pool._ring.values())
        cached = [tree._pool.nodes[number] for number in tree._pool._ring]
        in_lists = sum(len(node.keys) for node in cached if isinstance(node, Leaf))
        assert tree._pool._cached_in_lists == in_lists
        lists = {node.number for node in cached if isinstance(node, Leaf) and not node.page}
        assert tree._pool._lists.keys() == lists


def some_value(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 5, 20, 40, 70, 80, rng.randrange(150), 300, 2000]))
