"""Fixtures of storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.crashfs import CrashFileSystem
from tests.lab.trees import Pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(CrashFileSystem())
    yield pair
    pair.verify()
    pair.checkpoint()
    pair.reopen()
    pair.verify()
    pair.tree.close()
