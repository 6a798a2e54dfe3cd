"""What a node and its worker process say to each other, as bytes.

Both directions are a row of frames; integers are little-endian:

====== ===== ======================================================================
offset bytes
====== ===== ======================================================================
0      4     length of the body, at most MAX_BODY
4      4     CRC-32 of kind and body
8      1     kind, a :class:`Kind`
9            body
====== ===== ======================================================================

So an end of items is ``00000000 37be0b4b 03``. To the worker go

===== =============================================================================
JOB   JSON: the serial of the job, what it is, its folder; bytes as hexadecimal
ITEMS count (4); lengths of the keys, then of the cells (4 each); keys; cells
END   there are no more items
===== =============================================================================

and each job is answered by one of the last two, with its serial:

====== ============================================================================
HELLO  JSON: format and version of ConureDB, once, before anything else
ALIVE  the process isn't stopped; every tenth of a second of a job, whatever it does
DONE   JSON: the serial, and the result
FAILED JSON: the serial, the error's class, and what it is made of
====== ============================================================================

Node and worker are of one release and one process tree. The frames are checked nevertheless: a
decoder takes any bytes, and whatever no encoder made is a ValueError. Any thread.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

from conure import VERSION
from conure.errors import CorruptionError, DiskFailed, DiskFull, Exhausted, StorageError
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import Chunk, FlushJob, Job, JobLimits, JobResult, MergeJob
from conure.storage.lsm.tables import TableFacts

__all__ = [
    "MAX_BODY",
    "Frames",
    "Kind",
    "Order",
    "decode_answer",
    "decode_failure",
    "decode_items",
    "decode_order",
    "encode_answer",
    "encode_failure",
    "encode_items",
    "encode_order",
    "frame",
    "greeting",
]

FORMAT = 1
MAX_BODY = 1 << 30
"""Bytes of a body: more than the longest record, and than any job or result."""

_HEAD = Struct("<IIB")
_COUNT = Struct("<I")
_WIDTH = 4
assert array("I").itemsize == _WIDTH


class Kind(IntEnum):
    """What a frame is."""

    JOB = 1
    ITEMS = 2
    END = 3
    HELLO = 17
    ALIVE = 18
    DONE = 19
    FAILED = 20


class Order(NamedTuple):
    """A job for the worker, with the number by which it is answered."""

    serial: int
    folder: str
    job: Job


class Frames:
    """Frames cut out of a stream of bytes that arrive in pieces of any size."""

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._held += data

    def __iter__(self) -> Iterator[tuple[Kind, bytes]]:
        """Yield each whole frame, and hold no byte of it. Raises ValueError, after which the stream
        is of no use."""
        held = self._held
        while len(held) >= _HEAD.size:
            size, checksum, kind = _HEAD.unpack_from(held)
            if size > self._max_body:
                raise ValueError(f"a frame of {size} bytes")
            if len(held) < _HEAD.size + size:
                break
            yield Kind(kind), self._cut(size, checksum)

    def _cut(self, size: int, checksum: int) -> bytes:
        """Take the first frame and return its body. Raises ValueError."""
        end = _HEAD.size + size
        with memoryview(self._held) as view:
            if crc32(view[8:end]) != checksum:
                raise ValueError("a frame fails its checksum")
            body = bytes(view[_HEAD.size : end])
        del self._held[:end]
        return body


def frame(kind: Kind, *parts: bytes) -> bytes:
    """Return the frame of a body that is handed over in parts."""
    checksum = crc32(kind.to_bytes(1, "little"))
    size = 0
    for part in parts:
        checksum = crc32(part, checksum)
        size += len(part)
    assert size <= MAX_BODY
    return b"".join((_HEAD.pack(size, checksum, kind), *parts))


def greeting() -> bytes:
    """Return the body with which a worker says of which release it is."""
    return _json({"format": FORMAT, "version": VERSION})


# -- items ---------------------------------------------------------------------------------------


def encode_items(chunk: Chunk) -> tuple[bytes, ...]:
    """Return the body of some items, in parts."""
    keys, cells = chunk
    sizes = array("I", map(len, keys))
    sizes.extend(map(len, cells))
    if sys.byteorder == "big":
        sizes.byteswap()
    return (_COUNT.pack(len(keys)), sizes.tobytes(), b"".join(keys), b"".join(cells))


def decode_items(body: bytes) -> Chunk:
    """Return the items of a body. Raises ValueError."""
    if len(body) < _COUNT.size:
        raise ValueError("items without a count")
    (count,) = _COUNT.unpack_from(body)
    start = _COUNT.size + 2 * _WIDTH * count
    if len(body) < start:
        raise ValueError("items without their lengths")
    sizes = array("I", body[_COUNT.size : start])
    if sys.byteorder == "big":
        sizes.byteswap()
    ends = accumulate(sizes, initial=start)
    pieces = [body[at:end] for at, end in pairwise(ends)]
    if start + sum(sizes) != len(body):
        raise ValueError("items of another length")
    return pieces[:count], pieces[count:]


# -- jobs, results and errors --------------------------------------------------------------------


def encode_order(order: Order) -> bytes:
    """Return the body of a job."""
    job = order.job
    facts: dict[str, Any] = {
        "serial": order.serial,
        "folder": os.fsencode(order.folder).hex(),
        "stem": job.stem,
        "number": job.number,
        "limits": list(job.limits),
    }
    if isinstance(job, MergeJob):
        facts["inputs"] = [[_table_out(table) for table in run] for run in job.inputs]
        facts["level"] = job.level
        facts["older"] = [[first.hex(), last.hex()] for first, last in job.older]
        facts["emptied"] = [list(blob) for blob in job.emptied]
    return _json(facts)


def decode_order(body: bytes) -> Order:
    """Return the job of a body. Raises ValueError."""
    try:
        facts = json.loads(body)
        stem, number = str(facts["stem"]), int(facts["number"])
        limits = JobLimits(*map(int, facts["limits"]))
        job: Job = FlushJob(stem, number, limits)
        if "inputs" in facts:
            job = MergeJob(
                stem,
                number,
                limits,
                tuple(tuple(map(_table_in, run)) for run in facts["inputs"]),
                int(facts["level"]),
                tuple((bytes.fromhex(a), bytes.fromhex(b)) for a, b in facts["older"]),
                tuple(map(_blob_in, facts["emptied"])),
            )
        return Order(int(facts["serial"]), os.fsdecode(bytes.fromhex(facts["folder"])), job)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"an order that makes no sense: {error!r}") from error


def encode_answer(serial: int, result: JobResult) -> bytes:
    """Return the body of a result."""
    tables, blobs, read, superseded, dropped = result
    return _json(
        {
            "serial": serial,
            "tables": [_table_out(table) for table in tables],
            "blobs": [list(blob) for blob in blobs],
            "balance": [read, superseded, dropped],
        }
    )


def decode_answer(body: bytes, serial: int) -> JobResult:
    """Return the result of the job with that serial. Raises ValueError."""
    try:
        facts = json.loads(body)
        if facts["serial"] != serial:
            raise ValueError("the answer to another job")
        read, superseded, dropped = map(int, facts["balance"])
        tables = tuple(map(_table_in, facts["tables"]))
        return JobResult(tables, tuple(map(_blob_in, facts["blobs"])), read, superseded, dropped)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"an answer that makes no sense: {error!r}") from error


def encode_failure(serial: int, error: StorageError) -> bytes:
    """Return the body of an error that ended a job; what is none of the four is DiskFailed."""
    name = DiskFailed.__name__
    made_of: list[str | int] = [str(error)]
    if isinstance(error, CorruptionError):
        name, made_of = CorruptionError.__name__, [error.file, error.offset, error.why]
    elif isinstance(error, DiskFull | Exhausted):
        name = type(error).__name__
    return _json({"serial": serial, "error": name, "of": made_of})


def decode_failure(body: bytes, serial: int) -> StorageError:
    """Return the error that ended the job with that serial. Raises ValueError."""
    try:
        facts = json.loads(body)
        if facts["serial"] != serial:
            raise ValueError("the failure of another job")
        name, made_of = facts["error"], facts["of"]
        if name == CorruptionError.__name__:
            file, offset, why = made_of
            return CorruptionError(str(file), int(offset), str(why))
        (why,) = made_of
        for known in (DiskFull, Exhausted, DiskFailed):
            if name == known.__name__:
                return known(str(why))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a failure that makes no sense: {error!r}") from error
    raise ValueError(f"a failure of no kind that is known: {name!r}")


def _table_out(table: TableFacts) -> list[Any]:
    name, size, footer, records, tombstones, first, last, blobs = table
    return [
        name,
        size,
        footer,
        records,
        tombstones,
        first.hex(),
        last.hex(),
        list(map(list, blobs)),
    ]


def _table_in(facts: list[Any]) -> TableFacts:
    name, size, footer, records, tombstones, first, last, blobs = facts
    return TableFacts(
        str(name),
        int(size),
        int(footer),
        int(records),
        int(tombstones),
        bytes.fromhex(first),
        bytes.fromhex(last),
        tuple((str(file), int(taken)) for file, taken in blobs),
    )


def _blob_in(facts: list[Any]) -> BlobFacts:
    name, size = facts
    return BlobFacts(str(name), int(size))


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode()
