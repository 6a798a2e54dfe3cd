"""The check of a whole state: every file proved, every record counted (engine.check).

Each table and blob file is proved by itself, byte for byte (``tables.py``, ``blobs.py``); then the
order of the levels, the merged records against the count, the marks against the records, and the
order of the keys in memory. Nothing is changed, and the first fault ends it.

For the holder of the caller's lock, without a running checkpoint. A merge may run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from conure.errors import CorruptionError
from conure.storage.engine import CheckReport
from conure.storage.lsm.marks import Mark
from conure.storage.lsm.memtable import Memtable
from conure.storage.lsm.merging import Group, live, merged
from conure.storage.lsm.state import State

__all__ = ["check"]


def check(place: str, state: State, records: int, marks: tuple[Mark, ...]) -> CheckReport:
    """Prove *state*, which has to have so many *records*, and return what was counted.

    Raises CorruptionError and DiskFailed.
    """
    version = state.version
    report = CheckReport("tables", "blocks")
    report.depth = version.runs + 1 + len(state.frozen)
    blocks = values = 0
    for table in version.tables():
        for _ in table.verify():
            pass
        blocks += sum(1 for _ in table.keys(b"", None, False))
        report.used_bytes += table.facts.size
    for blob in version.blobs.values():
        for _ in blob.verify():
            pass
        values += 1
    for memtable in (state.memtable, *state.frozen):
        _prove_order(memtable)
    report.pages = blocks + values
    report.kinds = {"table blocks": blocks, "blob files": values}
    report.records = _counted(place, state, marks)
    if report.records != records:
        raise CorruptionError(
            place, 0, f"the tables have {report.records} records and should have {records}"
        )
    return report


def _counted(place: str, state: State, marks: tuple[Mark, ...]) -> int:
    """Count the records, none of which may be within a mark or refer to a file that isn't there."""
    count = 0
    ends = sorted(marks)
    for keys, cells in _merged(state):
        count += len(keys)
        for start, end in ends:
            at = bisect_left(keys, start)
            if at < len(keys) and keys[at] < end:
                raise CorruptionError(place, 0, f"a scan would miss the key {keys[at][:40]!r}")
        for key, cell in zip(keys, cells, strict=True):
            if cell[0]:
                state.cells.heading(key, cell)
    return count


def _merged(state: State) -> Iterator[Group]:
    last = b""
    for group in merged(state.sources(b"", None, reverse=False)):
        keys = group[0]
        assert last < keys[0], "groups are out of order"
        last = keys[-1]
        yield live(group)


def _prove_order(memtable: Memtable) -> None:
    count = 0
    last = b""
    for keys in memtable.keys(b"", None, reverse=False):
        assert last < keys[0], "the memtable's keys are out of order"
        assert all(a < b for a, b in pairwise(keys)), "the memtable's keys are out of order"
        last = keys[-1]
        count += len(keys)
    assert count == len(memtable.cells), "the memtable has lost keys"
