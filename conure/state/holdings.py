"""How many keys each session holds, as the state machine is asked for each lock that is wanted.

Counted once, and kept up to date from then on. The entries of what a session has held before may
lie between those of what it holds, deleted and not yet merged away; going through many of them goes
on in the next call, in a pinned state (:class:`_Look`), and what comes and goes meanwhile is added.
If nobody asks any more, :meth:`Holdings.let_go_of_old` ends it.

Nothing here writes, and nothing of it is part of the state: another node, or this one after a
restart, counts anew. For the holder of the node's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from conure.commands import prefix_end
from conure.storage.engine import Reader, StorageEngine

__all__ = ["Holdings"]

MOST_COUNTS = 10_000  # sessions whose number is kept, some hundred bytes each
MOST_LOOKS = 16  # and that are being counted
PAUSES = 2  # of 2,000 deleted keys each, in one call
KEYS_AT_ONCE = 5_000


class _Look:
    """A count of the entries in a pinned state that begin with *prefix*; *count* is how many there
    are so far, with those that came and less those that went since; *is_old*, whether nobody has
    gone on with it for a while."""

    __slots__ = ("_reader", "count", "is_old", "keys")

    def __init__(self, reader: Reader, prefix: bytes) -> None:
        self._reader = reader
        self.keys: Iterator[bytes | None] = reader.keys_in_turns(prefix, prefix_end(prefix))
        self.count = 0
        self.is_old = False

    def close(self) -> None:
        self._reader.close()


class Holdings:
    """Counts the entries of *engine* that begin with a prefix, which stands for a session."""

    def __init__(self, engine: StorageEngine) -> None:
        self._engine = engine
        self._counts: OrderedDict[bytes, int] = OrderedDict()  # the last used is the last
        self._looks: OrderedDict[bytes, _Look] = OrderedDict()

    def count(self, prefix: bytes) -> int | None:
        """Return how many there are; None if it takes longer to count them: ask again."""
        known = self._counts.get(prefix)
        if known is not None:
            self._counts.move_to_end(prefix)
            return known
        look = self._looks.pop(prefix, None) or _Look(self._engine.snapshot(), prefix)
        if not _is_through(look):
            look.is_old = False
            self._looks[prefix] = look
            if len(self._looks) > MOST_LOOKS:
                self._looks.popitem(last=False)[1].close()
            return None
        look.close()
        self._counts[prefix] = look.count
        if len(self._counts) > MOST_COUNTS:
            self._counts.popitem(last=False)
        return look.count

    def knows(self, prefix: bytes) -> bool:
        """Tell whether :meth:`count` would answer at once."""
        return prefix in self._counts

    def add(self, prefix: bytes, number: int) -> None:
        """Take note of entries that came, or went if *number* is negative."""
        if prefix in self._counts:
            self._counts[prefix] += number
        elif prefix in self._looks:
            self._looks[prefix].count += number

    def forget(self, prefix: bytes) -> None:
        """Take note that a session ends, and all its entries with it."""
        self._counts.pop(prefix, None)
        look = self._looks.pop(prefix, None)
        if look is not None:
            look.close()

    def let_go_of_old(self) -> None:
        """Let go of what is pinned for counts that nobody has gone on with since the last call."""
        for prefix, look in [*self._looks.items()]:
            if look.is_old:
                self._looks.pop(prefix).close()
            look.is_old = True

    def close(self) -> None:
        """Let go of what is pinned; who isn't counted yet is counted anew."""
        while self._looks:
            self._looks.popitem()[1].close()


def _is_through(look: _Look) -> bool:
    """Count on, for some milliseconds; tell whether that was all."""
    pauses, most = 0, look.count + KEYS_AT_ONCE
    for key in look.keys:
        if key is not None:
            look.count += 1
        else:
            pauses += 1
        if pauses >= PAUSES or look.count >= most:
            return False
    return True
