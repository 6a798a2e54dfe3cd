"""Where the entries by expiry begin: what is due next, found without a look at all that has ended.

The state machine keeps an entry for each record with an expiry, in one index for each kind of
record, and what expires goes from the front. So the front of an index is full of deleted keys, and
going through these again for each look would take ever longer. An index is therefore known by a
*front*: a key before which there is no entry. It is *exact* if it is the first entry, or the end of
an index that has none.

1. No entry is ever before its index' front: :meth:`DueIndex.put` lowers it, and only what was read
   raises it.
2. A look that takes long goes on in the next call (:class:`_Look`), in a pinned state, whatever is
   written meanwhile: what was put since it began is kept track of, and what was deleted since can't
   make the front wrong, only less exact. If nobody asks any more, :meth:`DueIndex.let_go_of_old`
   ends it.

Nothing here writes, and nothing of it is part of the state: after a restart the fronts are where
the indexes begin. For the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

from conure.commands import prefix_end
from conure.storage.engine import Reader, StorageEngine

__all__ = ["DueIndex", "time_of"]


class _Look:
    """A look for the first entry of an index in a pinned state, from *start* to *end*. *least* is
    the least entry that was put since, *end* if none was; *is_old*, whether nobody has gone on with
    it for a while."""

    __slots__ = ("_reader", "is_old", "keys", "least")

    def __init__(self, reader: Reader, start: bytes, end: bytes) -> None:
        self._reader = reader
        self.keys: Iterator[bytes | None] = reader.keys_in_turns(start, end)
        self.least = end
        self.is_old = False

    def close(self) -> None:
        self._reader.close()


class DueIndex:
    """The fronts of the indexes of *engine* whose keys begin with one of *prefixes*, a byte each,
    and go on with a time (8 bytes)."""

    def __init__(self, engine: StorageEngine, prefixes: Sequence[bytes]) -> None:
        self._engine = engine
        self._fronts = {prefix: prefix for prefix in prefixes}
        self._ends = {prefix: _end_of(prefix) for prefix in prefixes}
        self._exact: set[bytes] = set()  # prefixes of the indexes whose fronts are exact
        self._looks: dict[bytes, _Look] = {}

    def put(self, entry: bytes) -> None:
        """Take note of an entry that is in the engine now."""
        prefix = entry[:1]
        if entry < self._fronts[prefix]:
            self._fronts[prefix] = entry
            self._exact.add(prefix)
        look = self._looks.get(prefix)
        if look is not None and entry < look.least:
            look.least = entry

    def drop(self, entry: bytes) -> None:
        """Take note of an entry that isn't in the engine any more."""
        prefix = entry[:1]
        if entry == self._fronts[prefix]:
            self._exact.discard(prefix)

    def front(self, prefix: bytes) -> bytes:
        """Return a key before which the index of *prefix* has no entry."""
        return self._fronts[prefix]

    def note_first(self, prefix: bytes, entry: bytes | None, end: bytes) -> None:
        """Take note that *entry* is the first one of an index, in the present state; None: there
        is none before *end*."""
        if entry is not None:
            self._fronts[prefix] = entry
            self._exact.add(prefix)
        elif self._fronts[prefix] < end:
            self._fronts[prefix] = end
            self._exact.discard(prefix)

    def first_time(self, seconds: float) -> int | None:
        """Return the time of the first entry of all, 0 if there is none; None if it takes longer
        than about so many *seconds* to find it: the next call goes on with that."""
        until = perf_counter() + seconds
        firsts = []
        for prefix, end in self._ends.items():
            if not self._is_found(prefix, until):
                return None
            if self._fronts[prefix] != end:
                firsts.append(time_of(self._fronts[prefix]))
        return min(firsts, default=0)

    def let_go_of_old(self) -> None:
        """Let go of what is pinned for looks that nobody has gone on with since the last call."""
        for prefix, look in [*self._looks.items()]:
            if look.is_old:
                self._let_go(prefix)
            look.is_old = True

    def close(self) -> None:
        """Let go of what looks have pinned; the next ones begin anew."""
        while self._looks:
            self._looks.popitem()[1].close()

    # -- private ---------------------------------------------------------------------------------

    def _is_found(self, prefix: bytes, until: float) -> bool:
        """Make a front exact, if there is time for it."""
        end = self._ends[prefix]
        while prefix not in self._exact:
            look = self._looks.get(prefix)
            if look is None:
                front = self._fronts[prefix]
                first = next(self._engine.scan_keys(front, end), end)
                if first is not None:
                    self._fronts[prefix] = first
                    self._exact.add(prefix)
                    break
                look = self._looks[prefix] = _Look(self._engine.snapshot(), front, end)
            look.is_old = False
            for key in look.keys:
                if key is not None:
                    break
                if perf_counter() >= until:
                    return False
            else:
                key = end
            self._fronts[prefix] = min(key, look.least)
            self._let_go(prefix)
        else:
            self._let_go(prefix)
        return True

    def _let_go(self, prefix: bytes) -> None:
        look = self._looks.pop(prefix, None)
        if look is not None:
            look.close()


def time_of(entry: bytes) -> int:
    """Return the time in an entry of an index."""
    return int.from_bytes(entry[1:9], "big")


def _end_of(prefix: bytes) -> bytes:
    end = prefix_end(prefix)
    assert end is not None
    return end
