"""Loading in bulk: an empty engine filled from sorted items, straight into the tables of one level.

The files are made as the items come, beside what is there, so memory stays bounded. Nothing of
them counts before :meth:`Loader.finish`, and nothing is durable before the next checkpoint; until
then what the manifest names is kept, although nothing reads it any more.

One thread at a time may use a :class:`Loader`, without the engine's writer, who waits for its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from conure.storage.cells import make_cell
from conure.storage.engine import Record
from conure.storage.lsm.durable import Durable
from conure.storage.lsm.jobs import FlushJob, JobLimits, Outputs
from conure.storage.lsm.picking import load_level
from conure.storage.lsm.version import Version

__all__ = ["Loader"]

_AT_ONCE = 1000  # records
_BYTES_AT_ONCE = 1 << 20


class Loader:
    """Fills an empty engine (engine.Loader).

    *adopt* makes a version of so many records the content; *dropped* is called if there won't be
    one.
    """

    def __init__(
        self,
        durable: Durable,
        limits: JobLimits,
        longest: tuple[int, int],
        *,
        adopt: Callable[[Version, int], None],
        dropped: Callable[[], None],
    ) -> None:
        job = FlushJob(durable.stem, durable.next_number(), limits)
        self._out = Outputs(durable.fs, durable.folder, job)
        self._durable = durable
        self._limits = limits
        self._max_key, self._max_value = longest
        self._adopt = adopt
        self._dropped = dropped
        self._is_over = False
        self._keys: list[bytes] = []
        self._cells: list[bytes] = []
        self._size = 0
        self._count = 0
        self._last = b""

    def add(self, items: Iterable[tuple[bytes, Record]]) -> None:
        """Take items whose keys ascend, over all calls.

        Raises ValueError if they don't or are too long, DiskFull and DiskFailed.
        """
        for key, (value, create, mod, version, expiry) in items:
            size = len(value)
            if not self._last < key or len(key) > self._max_key or size > self._max_value:
                raise ValueError(
                    f"keys have to ascend, with 1 to {self._max_key} bytes each, "
                    f"and values to have up to {self._max_value} bytes"
                )
            self._last = key
            self._keys.append(key)
            self._cells.append(make_cell(value, create, mod, version, expiry, spilled=False))
            self._size += size
            if len(self._keys) >= _AT_ONCE or self._size >= _BYTES_AT_ONCE:
                self._write()

    def finish(self) -> int:
        """Make the items the content and return how many there are.

        They become durable with the next checkpoint. Raises DiskFull and DiskFailed.
        """
        self._write()
        steps = self._out.finish(self._count, 0, 0)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            result = end.value
        durable = self._durable
        tables = [durable.table(facts) for facts in result.tables]
        blobs = {facts.name: durable.blob(facts) for facts in result.blobs}
        level = load_level(sum(facts.size for facts in result.tables), self._limits)
        self._adopt(Version([*([()] * level), tables], blobs), self._count)
        self._is_over = True
        return self._count

    def abort(self) -> None:
        """Remove what was made: the engine is empty as before. Nothing after :meth:`finish`."""
        if not self._is_over:
            self._is_over = True
            self._out.abort()
            self._dropped()

    # -- private ---------------------------------------------------------------------------------

    def _write(self) -> None:
        keys, cells = self._keys, self._cells
        if keys:
            self._count += len(keys)
            self._keys, self._cells, self._size = [], [], 0
            self._add(keys, self._out.without_long_values(keys, cells))

    def _add(self, keys: Sequence[bytes], cells: Sequence[bytes]) -> None:
        for _ in self._out.add(keys, cells):
            pass
