"""Records out of cells, and ranges of records out of memtables and tables.

A cell whose value is spilled ends with a reference to a blob file, and only who wants the value
reads that. Long values are read one by one, so there is one in memory at a time.

What comes from a table has passed its checksum there; a cell that can't be one all the same is a
CorruptionError. Any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from conure.errors import CorruptionError
from conure.storage.cells import open_cell, records_of
from conure.storage.engine import Record
from conure.storage.lsm.blobs import length_of
from conure.storage.lsm.version import Version

__all__ = ["Cells", "Rows"]

Rows = Iterator[tuple[bytes, Record]]


class Cells:
    """Reads the cells of a state whose long values lie in the blob files of *version*."""

    __slots__ = ("_place", "_version")

    def __init__(self, place: str, version: Version) -> None:
        self._place = place
        self._version = version

    def record(self, key: bytes, cell: bytes) -> Record:
        """Return the record of a cell, with its value."""
        record, spilled = self._opened(key, cell)
        if not spilled:
            return record
        ref = record.value
        return record._replace(value=self._version.blob(self._place, ref).read(key, ref))

    def heading(self, key: bytes, cell: bytes) -> tuple[Record, int]:
        """Return the record without its value, and how many bytes that has."""
        record, spilled = self._opened(key, cell)
        value = record.value
        size = length_of(value) if spilled else len(value)
        return record._replace(value=b""), size

    def beginning(self, key: bytes, cell: bytes, most: int) -> bytes:
        """Return the first *most* bytes of the value."""
        record, spilled = self._opened(key, cell)
        ref = record.value
        if not spilled:
            return ref[:most]
        return self._version.blob(self._place, ref).beginning(key, ref, most)

    def records(self, keys: list[bytes], cells: list[bytes]) -> Iterable[Record]:
        """Return the records of a group."""
        try:
            found = records_of(cells)
        except struct.error:  # one of them is none: which?
            found = None
        return map(self.record, keys, cells) if found is None else found

    def headings(self, keys: list[bytes], cells: list[bytes]) -> Iterable[tuple[Record, int]]:
        """Return what :meth:`heading` returns of each cell of a group."""
        return map(self.heading, keys, cells)

    # -- private ---------------------------------------------------------------------------------

    def _opened(self, key: bytes, cell: bytes) -> tuple[Record, bool]:
        try:
            return open_cell(cell)
        except ValueError as error:
            raise CorruptionError(self._place, 0, f"{error}: key {key[:40]!r}") from error
