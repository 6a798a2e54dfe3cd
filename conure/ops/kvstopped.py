"""What kvctl does with the data directory of a stopped node: it reads, and writes records anew.

1. No record is ever put or deleted here. The records of a node are what its log says: one that came
   around the log would be on this replica only, and the cluster would part with it as damaged. So
   ``put`` and ``delete`` are refused before anything is opened.
2. Nothing in the directory changes but its lock file, except by ``compact``, which leaves the same
   records (compacting.py).
3. The engine is the one that the directory was made for; nobody has to name it.
4. What a start would not accept is one line that says so: a directory in use, damaged bytes, a
   newer version.

The directory is read by stopped.py; what is told of it comes from reports.py, as for the commands
of conuredb.py. Imported by the starter (kvctl.py) once a directory is to be opened. For the main
thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, Final

from conure.commands import as_texts, prefix_end
from conure.fileio import OsFileSystem
from conure.ops.kvoutput import (
    Output,
    complain,
    fields_of,
    shown_bytes,
    shown_duration,
    shown_key,
)
from conure.ops.kvwords import Failed, Line
from conure.ops.progress import ProgressLine
from conure.ops.reports import examine, facts_of, lines_of, note_of, shown_record
from conure.ops.stopped import Stopped
from conure.state.machine import Store
from conure.storage.engine import Record
from conure.storage.engines import LSM
from conure.storage.lsm.manifest import Manifest

__all__ = ["run"]

_LONGEST: Final = 32  # characters of a key in a table
_USER: Final = b"k"  # what a user's key begins with in the engine (machine.py)
_HEADS: Final = ("level", "file", "size", "records", "tombstones", "first key", "last key")

_REFUSED: Final[Mapping[str, str]] = {
    "put": "a value in a stopped directory would be none in the log, and this replica would differ "
    "from the others; start the node and put it there (--addr)",
    "delete": "a deletion in a stopped directory would be none in the log, and this replica would "
    "differ from the others; start the node and delete it there (--addr)",
    "watch": "nothing happens in the directory of a stopped node; start it and watch it (--addr)",
}


def run(line: Line, output: Output) -> int:
    """Carry out a command; return the exit status. Raises Failed and ConureError."""
    if line.command in _REFUSED:
        raise Failed(_REFUSED[line.command])
    if line.options.get("write"):
        raise Failed("--write tries a server; nothing is written into a stopped directory")
    progress = ProgressLine(quiet=False)
    try:
        with closing(Stopped(OsFileSystem(), line.data_dir, progress)) as stopped:
            return _ACTIONS[line.command](stopped, line, output, progress)
    finally:
        progress.end()


# -- records ---------------------------------------------------------------------------------------


def _get(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:
    key = os.fsencode(line.arguments[0])
    record = _record(stopped, key, progress)
    if output.as_json:
        output.json(shown_record(key, record))
    else:
        output.value(record.value)
    return 0


def _ttl(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:
    key = os.fsencode(line.arguments[0])
    expiry = _record(stopped, key, progress).expiry
    left = expiry - time.time_ns() // 1_000_000
    if output.as_json:
        ttl = {"ttl": left / 1000, "expiry": expiry} if expiry else {"ttl": None}
        output.json({**fields_of(key), **ttl})
    elif not expiry:
        output.line("never")
    elif left > 0:
        output.line(shown_duration(left))
    else:
        output.line(f"due since {shown_duration(-left)}: it goes as soon as a leader has it")
    return 0


def _scan(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:
    prefix = os.fsencode(line.arguments[0]) if line.arguments else b""
    reverse = line.options.get("reverse", False)
    with closing(_opened(stopped, progress).snapshot()) as state:
        if line.options.get("values"):
            items = state.items(prefix, prefix_end(prefix), reverse=reverse)
            for key, record in islice(items, line.options.get("limit")):
                if output.as_json:
                    output.json(shown_record(key, record))
                else:
                    output.line(key, record.value)
            return 0
        keys = state.keys(prefix, prefix_end(prefix), reverse=reverse)
        for key in islice(keys, line.options.get("limit")):
            if output.as_json:
                output.json(fields_of(key))
            else:
                output.line(key)
    return 0


def _dump(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:
    prefix = os.fsencode(line.arguments[0]) if line.arguments else b""
    store = _opened(stopped, progress)
    written = 0
    with closing(store.snapshot()) as state:
        items = state.items(prefix, prefix_end(prefix))
        if output.is_terminal:  # which isn't handed any character as it is
            for key, record in items:
                output.json(shown_record(key, record))
            return 0
        for lines in lines_of(items):
            output.write(b"".join(lines))
            written += len(lines)
            if not prefix:
                progress("dumping", written, store.records)
    return 0


def _record(stopped: Stopped, key: bytes, progress: ProgressLine) -> Record:
    with closing(_opened(stopped, progress).snapshot()) as state:
        record = state.get(key)
    if record is None:
        raise Failed("key not found")
    return record


def _opened(stopped: Stopped, progress: ProgressLine) -> Store:
    """Return the records, and say what they lack."""
    store, behind = stopped.open_records()
    progress.end()
    if stopped.diverged:
        complain(f"the data here differ from the cluster's: {stopped.diverged}")
    note = note_of(store, behind)
    if note:
        complain(note)
    return store


# -- the whole of it -------------------------------------------------------------------------------


def _stats(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:  # noqa: ARG001
    facts = facts_of(stopped)
    progress.end()
    if output.as_json:
        output.json(facts)
    else:
        output.pairs(facts)
    return 0


def _check(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:  # noqa: ARG001
    lines, faults = examine(stopped)
    progress.end()
    if output.as_json:
        output.json({"ok": not faults, "found": lines, "faults": faults})
    else:
        for each in lines if faults else [*lines, "all in order"]:
            output.line(each)
    for fault in faults:
        complain(fault)
    return 1 if faults else 0


def _compact(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:
    compacted = stopped.compact(progress)
    progress.end()
    if output.as_json:
        output.json(compacted._asdict())
        return 0
    saved = compacted.before - compacted.after
    output.line(
        f"{line.data_dir}: {compacted.records:,} records, {shown_bytes(compacted.before)} before, "
        f"{shown_bytes(compacted.after)} after" + ("" if saved else ": nothing to be saved")
    )
    return 0


def _tables(stopped: Stopped, line: Line, output: Output, progress: ProgressLine) -> int:  # noqa: ARG001
    stopped.refuse_without_records()
    engine = stopped.open_engine(stopped.open_log())
    progress.end()
    if stopped.identity.engine == LSM:
        _show_levels(stopped.manifest(), output)
        return 0
    figures = engine.stats()
    facts: dict[str, Any] = {
        "engine": stopped.identity.engine,
        "file_bytes": figures.file_bytes,
        "free_bytes": figures.free_bytes,
        "depth": figures.depth,
        "tree_records": figures.records,
        **{each.name: each.value for each in figures.figures() if each.name},
    }
    if output.as_json:
        output.json(facts)
    else:
        output.pairs(facts)
    return 0


def _show_levels(found: Manifest, output: Output) -> None:
    """Show tables by level and files of long values, and what they come to."""
    live = {blob.name: 0 for blob in found.blobs}
    for level in found.levels:
        for table in level:
            for name, size in table.blobs:
                live[name] += size
    if output.as_json:
        output.json(_levels_as_json(found, live))
        return
    rows = [
        (
            str(number),
            table.name,
            shown_bytes(table.size),
            f"{table.records:,}",
            f"{table.tombstones:,}",
            _engine_key(table.first),
            _engine_key(table.last),
        )
        for number, level in enumerate(found.levels)
        for table in level
    ]
    if rows:
        output.table(rows, _HEADS, right=(0, 2, 3, 4))
    if found.blobs:
        output.line("")
        output.table(
            [(each.name, shown_bytes(each.size), shown_bytes(live[each.name]))
             for each in found.blobs],
            ("long values", "size", "in use"),
            right=(1, 2),
        )  # fmt: skip
    if rows:
        output.line("")
    tables = sum(map(len, found.levels))
    size = sum(table.size for level in found.levels for table in level)
    blobs = sum(blob.size for blob in found.blobs)
    output.line(
        f"{_counted(tables, 'table')}, {shown_bytes(size)}; "
        f"{_counted(len(found.blobs), 'file')} of long values, {shown_bytes(blobs)}; "
        f"{found.records:,} records, the store's own included, as of entry {found.applied_index}"
    )


def _levels_as_json(found: Manifest, live: Mapping[str, int]) -> dict[str, Any]:
    """Return tables and files as an object; keys are the engine's (machine.py tells what their
    first byte says)."""
    tables = []
    for number, level in enumerate(found.levels):
        for table in level:
            (first, last), is_base64 = as_texts(table.first, table.last)
            tables.append(
                {
                    "level": number,
                    "file": table.name,
                    "bytes": table.size,
                    "records": table.records,
                    "tombstones": table.tombstones,
                    "first_key": first,
                    "last_key": last,
                    **({"encoding": "base64"} if is_base64 else {}),
                }
            )
    return {
        "engine": LSM,
        "applied_index": found.applied_index,
        "records": found.records,
        "tables": tables,
        "long_values": [
            {"file": blob.name, "bytes": blob.size, "used_bytes": live[blob.name]}
            for blob in found.blobs
        ],
        "scan_marks": len(found.marks),
    }


def _engine_key(key: bytes) -> str:
    """Return one of the engine's keys for people: a user's as it is, another by its kind."""
    if key[:1] == _USER:
        return shown_key(key[1:], _LONGEST)
    return f"<{shown_key(key[:1])}>"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


_ACTIONS: Final[Mapping[str, Callable[[Stopped, Line, Output, ProgressLine], int]]] = {
    "get": _get,
    "scan": _scan,
    "ttl": _ttl,
    "stats": _stats,
    "check": _check,
    "compact": _compact,
    "tables": _tables,
    "dump": _dump,
}
