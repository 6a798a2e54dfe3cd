"""What can be told of a stopped node: whether it is in order, its figures, its records.

For the commands that show it (offline.py, kvstopped.py), each in its own way. Nothing is printed
here, and nothing in the directory is changed.

A record as JSON has ``key``, ``value``, ``create_revision``, ``mod_revision``, ``version``, and if
the key expires ``expiry`` in milliseconds since the Unix epoch. Where key or value aren't UTF-8
both are in base64, and ``encoding`` says so.

Everything here belongs to the main thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import starmap
from typing import Any, Final, NamedTuple, TypeVar

from conure.commands import as_text
from conure.consensus.raftlog import RaftLog
from conure.errors import StorageError
from conure.ops.stopped import CACHE_BYTES, Stopped
from conure.state.machine import Store
from conure.storage.engine import Record

__all__ = ["Examination", "examine", "facts_of", "lines_of", "note_of", "shown_record"]

_T = TypeVar("_T")
_LINES: Final = 1000  # of a dump that are written in one go


class Examination(NamedTuple):
    """What was found: lines for people, and faults, a line each."""

    lines: list[str]
    faults: list[str]


def examine(stopped: Stopped) -> Examination:
    """Read everything, and go on after a fault as far as that makes sense."""
    lines = [stopped.describe()]
    faults: list[str] = []
    if stopped.diverged:
        faults.append(f"its data differ from the cluster's: {stopped.diverged}")
    _attempt(stopped.check_formation, faults)
    raft_log = _attempt(stopped.open_log, faults)
    if raft_log is not None:
        lines.append(_describe_log(raft_log))
    if stopped.holds_records:
        lines += _check_records(stopped, raft_log, faults)
    return Examination(lines, faults)


def facts_of(stopped: Stopped) -> dict[str, Any]:
    """Return the figures of a directory by name; raises what reading it raises."""
    raft_log = stopped.open_log()
    identity, snapshot = stopped.identity, raft_log.snapshot
    facts: dict[str, Any] = {
        "node_id": identity.node_id,
        "cluster_id": identity.cluster_id,
        "incarnation": identity.incarnation,
        "role": identity.role,
        "diverged": stopped.diverged,
        "term": raft_log.hard_state.term,
        "vote": raft_log.hard_state.vote,
        "log_first_index": raft_log.first_index,
        "log_last_index": raft_log.last_index,
        "log_last_term": raft_log.last_term,
        "log_segments": raft_log.segments,
        "log_bytes": raft_log.size_bytes,
        "snapshot_index": snapshot.index,
        "snapshot_term": snapshot.term,
    }
    if stopped.holds_records:
        engine = stopped.open_engine(raft_log)
        figures = engine.stats()
        facts |= {
            "engine": identity.engine,
            "applied_index": engine.applied_index,
            "applied_term": engine.applied_term,
            "digest": engine.applied_digest,
            **Store(engine, b"").census()._asdict(),
            "tree_records": figures.records,
            "depth": figures.depth,
            **{each.name: each.value for each in figures.figures() if each.name},
            "file_bytes": figures.file_bytes,
            "free_bytes": figures.free_bytes,
        }
    return facts


def note_of(store: Store, behind: int) -> str:
    """Return what has to be said of records that the log is ahead of, "" if it isn't."""
    if not behind:
        return ""
    return (
        f"these are the records as of entry {store.applied_index}; {behind} entries "
        "that follow are in the log only: start the node and stop it to have all of them"
    )


def shown_record(key: bytes, record: Record) -> dict[str, str | int | None]:
    """Return a record as it stands in JSON."""
    key_text, value_text, is_base64 = as_text(key, record.value)
    facts: dict[str, str | int | None] = {"key": key_text, "value": value_text}
    if is_base64:
        facts["encoding"] = "base64"
    facts["create_revision"] = record.create_revision
    facts["mod_revision"] = record.mod_revision
    facts["version"] = record.version
    if record.expiry:
        facts["expiry"] = record.expiry
    return facts


def lines_of(items: Iterable[tuple[bytes, Record]]) -> Iterator[list[bytes]]:
    """Yield records as lines of JSON, as many in one go as are best written together."""
    batch: list[bytes] = []
    for line in starmap(_line, items):
        batch.append(line)
        if len(batch) == _LINES or len(line) > CACHE_BYTES // _LINES:
            yield batch
            batch = []
    yield batch


def _line(key: bytes, record: Record) -> bytes:
    return json.dumps(shown_record(key, record), ensure_ascii=False).encode() + b"\n"


def _check_records(stopped: Stopped, raft_log: RaftLog | None, faults: list[str]) -> list[str]:
    engine = _attempt(partial(stopped.open_engine, raft_log), faults)
    if engine is None:
        return []
    if raft_log is not None:
        _attempt(partial(stopped.check_agreement, raft_log, engine), faults)
    report = _attempt(engine.check, faults)
    if report is None:
        return []
    parts = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items())
    as_of = f"as of entry {engine.applied_index} of term {engine.applied_term}"
    census = Store(engine, b"").census()
    own = census.describe_own()
    counted = f"{report.pages:,} {report.parts} ({parts})"
    return [
        f"{report.whole}: {census.records:,} records {as_of}, {counted}",
        *([f"beside them {own}"] if own else []),
    ]


def _attempt(step: Callable[[], _T], faults: list[str]) -> _T | None:
    """Return what *step* does, or None if it finds a fault, of which note is taken."""
    try:
        return step()
    except StorageError as error:
        faults.append(str(error))
        return None


def _describe_log(raft_log: RaftLog) -> str:
    entries = (
        f"entries {raft_log.first_index} to {raft_log.last_index}"
        if raft_log.last_index >= raft_log.first_index
        else f"no entries behind {raft_log.snapshot.index}"
    )
    state = raft_log.hard_state
    return (
        f"log: {entries}, {raft_log.size_bytes:,} bytes in {raft_log.segments} segments, "
        f"term {state.term}, vote {state.vote or 'none'}"
    )
