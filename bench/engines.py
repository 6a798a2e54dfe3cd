"""The engines that are measured in process, by the names that the tables have for them."""

from __future__ import annotations

import importlib.util
import sqlite3
from dataclasses import dataclass
from importlib.metadata import version as package_version

from bench.contender import Contender
from bench.ours import Applied, Bare, Logged, has_kind
from bench.peers import LevelDb, Lmdb, RocksDb, Sqlite, leveldb_version, lmdb_version

__all__ = [
    "APPLIED",
    "BTREE",
    "ENGINES",
    "LEVELDB",
    "LMDB",
    "LSM",
    "PEERS",
    "ROCKSDB",
    "SQLITE",
    "logged",
    "missing",
    "open_engine",
    "version",
]

BTREE, LSM = "ConureDB B-tree", "ConureDB LSM"
SQLITE, LMDB, LEVELDB, ROCKSDB = PEERS = ("sqlite3", "LMDB", "LevelDB", "RocksDB")

_KINDS = {BTREE: "btree", LSM: "lsm"}
_MODULES = {LMDB: "lmdb", LEVELDB: "plyvel", ROCKSDB: "rocksdict"}  # what is to be installed


def logged(name: str) -> str:
    """Return the name of ConureDB's engine *name* behind a Raft log."""
    return f"{name} + log"


APPLIED = {name: f"{name}, applied" for name in _KINDS}
"""The names of ConureDB's engines under the state machine, by their own."""

ENGINES = (*_KINDS, *map(logged, _KINDS), *PEERS)
"""All that keep their promise by themselves, in the order of the tables."""


@dataclass(frozen=True, slots=True)
class _Ours:
    kind: str
    form: type[Bare]


_OURS = (
    {name: _Ours(kind, Bare) for name, kind in _KINDS.items()}
    | {logged(name): _Ours(kind, Logged) for name, kind in _KINDS.items()}
    | {APPLIED[name]: _Ours(kind, Applied) for name, kind in _KINDS.items()}
)
_OTHERS: dict[str, type[Sqlite | Lmdb | LevelDb | RocksDb]] = {
    SQLITE: Sqlite,
    LMDB: Lmdb,
    LEVELDB: LevelDb,
    ROCKSDB: RocksDb,
}


def open_engine(name: str, directory: str) -> Contender:
    """Open or make the engine *name* in a directory that nobody else uses."""
    if name in _OURS:
        return _OURS[name].form(directory, _OURS[name].kind)
    return _OTHERS[name](directory)


def missing(name: str) -> str:
    """Return why an engine can't be measured and what to do about it, or an empty string."""
    if name in _OURS:
        kind = _OURS[name].kind
        return "" if has_kind(kind) else f"{name}: this release has no engine {kind!r}"
    module = _MODULES.get(name, "")
    if module and importlib.util.find_spec(module) is None:
        return f"{name} is missing: pip install -r requirements-bench.txt"
    return ""


def version(name: str) -> str:
    """Return an engine's name and version."""
    match name:
        case "sqlite3":
            return f"{name} {sqlite3.sqlite_version}"
        case "LMDB":
            return f"{name} {lmdb_version()}"
        case "LevelDB":
            return f"{name} {leveldb_version()}"
        case "RocksDB":
            return f"{name} by rocksdict {package_version('rocksdict')}"
    return name
