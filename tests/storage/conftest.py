"""Fixtures of storage."""

from __future__ import annotations

import contextlib
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from btree import BTree
from conure.errors import CorruptionError, DiskFailed, DiskFull, ForeignDirectory, StorageError
from conure.fileio import OsFileSystem
from conure.storage import writeback
from conure.storage.engine import Record
from conure.storage.pages import (
    CELL_OVERHEAD,
    NODE_BYTES,
    RECORD_BYTES,
    REF,
    Leaf,
    cuts,
    decode_node,
    make_cell,
    open_cell,
    separator,
)
from conure.storage.snapshot import Snapshot
from conure.storage.writeback import Checkpoint
from pager import ENVELOPE, INNER, LEAF, OVERFLOW
from tests.lab.crashfs import CrashFileSystem
from tests.lab.trees import (Model, Pair, some_value)



@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(CrashFileSystem())
    yield pair
    pair.verify()
    pair.checkpoint()
    pair.reopen()
    pair.verify()
    pair.tree.close()

