"""A checkpoint made in one go, for who has nothing else to do meanwhile.

Of any engine; whoever holds its caller's lock.
"""

from __future__ import annotations

from conure.errors import StorageError
from conure.storage.engine import Checkpoint

__all__ = ["make_at_once"]


def make_at_once(running: Checkpoint) -> None:
    """Make a checkpoint durable that was just begun, or give it up.

    Raises DiskFull, after which it may be tried again, and DiskFailed.
    """
    try:
        while not running.step(1.0):
            pass
        running.finish()
    except StorageError:
        running.abort()
        raise
