"""Which engine a test has: the one that the environment names, or one that the test draws or is
told by its fixture.

``CONURE_TEST_ENGINE=lsm`` runs everything with that engine. Without it, tests that take the fixture
``engine`` run with each, clusters in one thread draw one for each node, and the rest has the
B-tree. A test that is about one of them alone says so by :data:`of_the_btree`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable

import pytest

from conure.fileio import FileSystem
from conure.storage.engine import EngineKind, EngineOptions, Record, StorageEngine
from conure.storage.engines import BTREE, KINDS, kind_named

__all__ = [
    "ENGINES", "TOLD", "current", "drawn", "fill", "kind", "names_in", "of_the_btree",
    "open_engine", "use",
]  # fmt: skip

TOLD = os.environ.get("CONURE_TEST_ENGINE", "")
"""The engine that everything is to be run with, if any."""

ENGINES = [TOLD] if TOLD else sorted(KINDS)
"""What tests run with that run with each engine."""

of_the_btree = pytest.mark.parametrize("engine", [BTREE], indirect=True)
"""Marks what is about the B-tree alone, where the other tests have each engine."""

_current = [TOLD or BTREE]


def current() -> str:
    """Return the name of the engine that the present test has."""
    return _current[-1]


def use(name: str) -> None:
    """Let it be this one; "" for the one of before."""
    if name:
        _current.append(name)
    else:
        _current.pop()


def drawn(*what: object) -> str:
    """Return an engine for what is named: the same whenever the same test asks for it."""
    if TOLD:
        return TOLD
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return random.Random(f"engine/{test}/{what}").choice(sorted(KINDS))


def kind() -> EngineKind:
    """Return the kind that the present test has."""
    return kind_named(current())


def open_engine(
    fs: FileSystem,
    place: str,
    *,
    page_size: int = 4096,
    cache_bytes: int = 64 << 20,
    create: bool = True,
) -> StorageEngine:
    """Open an engine of the present test's kind."""
    options = EngineOptions(page_size=page_size, cache_bytes=cache_bytes)
    return kind().open(fs, place, options, create=create)


def fill(engine: StorageEngine, items: Iterable[tuple[bytes, Record]]) -> None:
    """Load sorted items into an empty engine."""
    loader = engine.loader()
    loader.add(items)
    loader.finish()


def names_in(fs: FileSystem, directory: str) -> list[str]:
    """Return what lies in a directory, an empty folder for tables left out."""
    names = fs.list(directory)
    if "lsm" in names and not fs.list(f"{directory}/lsm"):
        names.remove("lsm")
    return names
