"""Engines on disks in memory, with tables so small that some dozens of records fill several."""

from __future__ import annotations

import random
from collections.abc import Sequence

from conure.fileio import FileSystem
from conure.storage.engine import EngineOptions, Record
from conure.storage.lsm import manifest
from conure.storage.lsm.durable import folder_of
from conure.storage.lsm.kind import LSMKind
from conure.storage.lsm.lsmengine import LSMEngine
from tests.lab.crashfs import CrashFileSystem

__all__ = ["HOME", "KIND", "PLACE", "SMALL", "Model", "change", "disk", "files", "named", "settle"]

HOME = "/home"
PLACE = "/home/conure.db"
KIND = LSMKind()
SMALL = EngineOptions(long_value=200, table_bytes=1500)

Model = dict[bytes, Record]


def disk(seed: int = 0) -> CrashFileSystem:
    fs = CrashFileSystem(seed)
    fs.make_directory(HOME)
    fs.sync_directory("/")
    return fs


def files(fs: FileSystem, place: str = PLACE) -> list[str]:
    """Return the names of the files in the folder beside a place."""
    return fs.list(folder_of(place))


def named(fs: FileSystem, *places: str) -> list[str]:
    """Return the names that the manifests at some places name."""
    return sorted(name for place in places for name in manifest.read(fs, place).names())


def settle(engine: LSMEngine) -> None:
    """Let the engine merge all that it wants to."""
    for _ in range(10_000):
        if not engine.compact(0.01):
            return
    raise AssertionError("it comes to no end")


def change(
    engine: LSMEngine,
    model: Model,
    rng: random.Random,
    count: int,
    sizes: Sequence[int] = (0, 5, 30, 60, 500),
) -> None:
    """Write, touch and delete *count* keys of two digits and more, in engine and model."""
    revision = max((record.mod_revision for record in model.values()), default=0)
    for _ in range(count):
        key = b"%02d" % rng.randrange(60)
        old = model.get(key)
        revision += 1
        what = rng.randrange(8)
        if what == 0:
            assert engine.delete(key) == (old is not None)
            model.pop(key, None)
        elif what == 1:
            if old is not None:
                model[key] = old._replace(expiry=9)
            assert engine.touch(key, 9) == model.get(key)
        else:
            value = rng.randbytes(rng.choice(sizes))
            create, version = (old.create_revision, old.version + 1) if old else (revision, 1)
            assert engine.put(key, value, revision) == version
            model[key] = Record(value, create, revision, version)
    engine.outdated.clear()
