"""A backup on its way from a server to a file: checked as it comes, put in its place when whole.

One thread for each backup. state/backup.py has the format, of which the trailer is known here.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

from conure.client.connections import ConnectionFailed, Stream
from conure.errors import ConureError, Unavailable

__all__ = ["save", "save_as"]

_TRAILER = 44  # bytes: a record of length 0, the number of records, SHA-256 of all before


def save(stream: Stream, output: BinaryIO, tell: Callable[[int], None]) -> None:
    """Write a backup to a file. Raises Unavailable or ConureError if it isn't whole."""
    digest = hashlib.sha256()
    size = 0
    tail = b""  # what may be the trailer
    try:
        for piece in iter(stream.read, b""):
            output.write(piece)
            size += len(piece)
            tell(size)
            tail += piece
            digest.update(tail[:-_TRAILER])
            tail = tail[-_TRAILER:]
    except ConnectionFailed as failure:
        raise Unavailable(f"the backup broke off after {size:,} bytes ({failure})") from failure
    digest.update(tail[:-32])
    if len(tail) < _TRAILER or any(tail[:4]) or digest.digest() != tail[-32:]:
        raise ConureError("the backup is not what the server has sent; take another one")


def save_as(stream: Stream, path: str, tell: Callable[[int], None]) -> None:
    """Write a backup to *path*, which gets the whole backup, on disk, or stays as it was.

    The stream is closed. Raises Unavailable, ConureError and OSError.
    """
    handle, unfinished = tempfile.mkstemp(".part", os.path.basename(path), os.path.dirname(path))
    try:
        with open(handle, "wb") as output:
            save(stream, output, tell)
            output.flush()
            os.fsync(handle)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
    finally:
        stream.close()
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
