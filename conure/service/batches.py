"""A batch: many writes of one request, handed to the node a part at a time.

Each part is logged and applied in one go, and what others ask for comes in between. A batch is no
transaction: what was committed stays when a later part fails. The reactor thread takes it in; any
thread may tell of its ends.
"""

from __future__ import annotations

import threading

__all__ = ["PART_BYTES", "PART_LINES", "BatchCount", "Line"]

PART_LINES, PART_BYTES = 500, 1 << 20
"""Lines of a batch, and bytes of their values, about, that are logged and applied in one go."""

Line = tuple[bytes, bytes | None, int]
"""Of a batch: key, value (None to delete it) and ttl in milliseconds."""


class BatchCount:
    """Counts which of a batch's *entries* in the log are still missing. Any thread."""

    def __init__(self, entries: int) -> None:
        self._lock = threading.Lock()
        self._entries = self._missing = entries
        self._is_begun = False  # parts of it were proposed, whatever becomes of them

    @property
    def is_over(self) -> bool:
        """Whether all are written, or one of them failed."""
        return self._missing == 0

    def begin(self) -> None:
        """Note that a part is proposed and another is to come."""
        self._is_begun = True

    def note_written(self) -> bool:
        """Note that an entry is written; return whether that was the last one."""
        with self._lock:
            self._missing -= 1
            return not self._missing

    def note_failed(self) -> tuple[bool, bool]:
        """Note that an entry was not written; return whether it is the first one, and whether some
        of the batch may be written."""
        with self._lock:
            missing, self._missing = self._missing, 0
        return missing > 0, self._is_begun or missing < self._entries
