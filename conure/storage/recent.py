"""Records that were read lately: their cells by key, in front of an engine.

To find a key, an engine touches a dozen places of memory, which with many keys are in no cache of
the processor; here it is two or three. An engine asks here first, adds what it has found elsewhere,
and tells of each key that it writes or removes.

1. What is here is what the engine would find: :meth:`Recent.replace` and :meth:`Recent.drop` are
   called for each write, before anybody reads again.
2. Only a cell that says all by itself is kept (``cells.py``): without flags, so without an expiry
   and with its value, and of :data:`LONGEST` bytes at most.
3. Cells are in two generations: what is read is, or becomes, *young*. Where there is no room, old
   ones go, a few at a time; when none is left, all that are young are old. So what is read again
   and again stays, and nothing takes longer than a few microseconds.

Everything belongs to the holder of the engine's caller's lock; ``bytes`` is for any thread.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ENTRY_BYTES", "LONGEST", "MOST_BYTES", "Recent"]

LONGEST: Final = 1024
"""Bytes of a cell that is kept."""

ENTRY_BYTES: Final = 170
"""What an entry takes in memory beside the bytes of key and cell: two objects, its place in a dict,
and the room that a dict has to spare."""

MOST_BYTES: Final = 32 << 20
"""Bytes of all entries, whatever room there is: a dict that grows moves all it has, which takes a
millisecond or two for as many as these."""

_GOING: Final = 8
"""How many go at most for one that comes."""


class Recent:
    """Cells by key. ``young`` and ``old`` are for engines to look into; no key is in both.
    ``bytes`` is about the memory that they take."""

    __slots__ = ("bytes", "old", "young")

    def __init__(self) -> None:
        self.young: dict[bytes, bytes] = {}
        self.old: dict[bytes, bytes] = {}
        self.bytes = 0

    def again(self, key: bytes) -> bytes | None:
        """Return the cell of a key that isn't young, which it is from now on; None if there is
        none."""
        cell = self.old.pop(key, None)
        if cell is not None:
            self.young[key] = cell
        return cell

    def add(self, key: bytes, cell: bytes, room: int) -> None:
        """Keep a cell of a key that isn't here, if all of it takes no more than *room*, in bytes,
        or soon won't; one that can't be kept is passed over."""
        if cell[0] or len(cell) > LONGEST:
            return
        self.bytes += ENTRY_BYTES + len(key) + len(cell)
        self.young[key] = cell
        self.shrink(room)

    def shrink(self, room: int, most: int = _GOING) -> bool:
        """Let a few go, *most* of them, if all take more than *room*; tell whether they still
        may."""
        for _ in range(most):
            if not self.bytes or self.bytes <= min(room, MOST_BYTES):
                return False
            if not self.old:
                self.young, self.old = self.old, self.young
            key, cell = self.old.popitem()
            self.bytes -= ENTRY_BYTES + len(key) + len(cell)
        return True

    def replace(self, key: bytes, cell: bytes) -> None:
        """Take note of the new cell of a key that is here."""
        if cell[0] or len(cell) > LONGEST:
            self.drop(key)
            return
        generation = self.young if key in self.young else self.old
        self.bytes += len(cell) - len(generation[key])
        generation[key] = cell

    def drop(self, key: bytes) -> None:
        """Take note that a key has no cell any more, or one that can't be kept."""
        cell = self.young.pop(key, None)
        if cell is None:
            cell = self.old.pop(key, None)
        if cell is not None:
            self.bytes -= ENTRY_BYTES + len(key) + len(cell)
