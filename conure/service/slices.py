"""Reads of single keys: each key of a round is read once, and long values a slice at a time.

A round may ask for thousands of long values. No more of them are in memory than a slice at a time,
and only as far as there is room for what clients have yet to read (H5); the node's lock is let go
in between. Of the reads of one connection none is answered before those ahead of it, so no answer
is older than one before it. Whichever thread confirms a read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from conure.errors import ConureError, NotRead
from conure.service.backend import Found, KeyValueBackend
from conure.service.freshness import Contact
from conure.service.front import FrontEnd, WaiterT
from conure.service.turns import Turns

__all__ = ["LONG_VALUE", "SLICE_BYTES", "Slices", "failing"]

SLICE_BYTES = 1 << 20
"""Bytes of values that are read in one go, about. The longer ones among the others are read later,
a slice of so many bytes at a time, with the node's lock let go in between."""

LONG_VALUE = 16 << 10
"""Bytes; values that are no longer than this are always read at once."""

_READERS = 256  # who are answered in one go if some of their values are long
_LATE_READERS = 64  # whose values are looked for together, once a first part is read


class Slices:
    """Answers the reads of a round."""

    def __init__(self, backend: KeyValueBackend) -> None:
        self._backend = backend

    def answer(
        self,
        front: FrontEnd[WaiterT],
        waiters: list[WaiterT],
        keys: list[bytes],
        contact: Contact | None,
    ) -> None:
        """Answer reads of plain keys. Those of long values may come later, and so do those behind
        them in their connections."""
        wanted = list(dict.fromkeys(keys))
        index, records = self._backend.get_all(wanted, SLICE_BYTES, LONG_VALUE)
        if len(wanted) < len(keys):
            found = dict(zip(wanted, records, strict=True))
            records = [found[key] for key in keys]
        if len(keys) > _READERS and any(map(_is_long, records)):
            steps = self._answer_in_turns(front, waiters, keys, records, index, contact)
            waiters[0].go_on(steps)
            return
        if NotRead not in map(type, records):
            front.found(waiters, records, index, contact)
            return
        late = _answer_found(front, waiters, records, index, contact, set())
        if late:
            waiters = [waiters[n] for n in late]
            waiters[0].go_on(self._answer_late(front, waiters, [keys[n] for n in late], contact))

    def _answer_in_turns(
        self,
        front: FrontEnd[WaiterT],
        waiters: list[WaiterT],
        keys: list[bytes],
        records: Sequence[Found],
        index: int,
        contact: Contact | None,
    ) -> Turns:
        late: list[int] = []
        blocked: set[int] = set()
        with failing(front, waiters):
            for start in range(0, len(keys), _READERS):
                part = slice(start, start + _READERS)
                some = waiters[part]
                found = _answer_found(front, some, records[part], index, contact, blocked)
                waiters[part] = some
                late += [start + n for n in found]
                yield False
        waiters = [waiters[n] for n in late]
        yield from self._answer_late(front, waiters, [keys[n] for n in late], contact)

    def _answer_late(
        self,
        front: FrontEnd[WaiterT],
        waiters: list[WaiterT],
        keys: list[bytes],
        contact: Contact | None,
    ) -> Turns:
        """Answer reads in their order, as long as there is room for long values (H5)."""
        while waiters:
            with failing(front, waiters):
                some = keys[:_LATE_READERS]
                wanted = list(dict.fromkeys(some))
                blocked: set[int] | None = set() if waiters[0].room > 0 else None
                most = 0 if blocked is None else SLICE_BYTES
                index, records = self._backend.get_all(wanted, most, LONG_VALUE)
                found = dict(zip(wanted, records, strict=True))
                records = [found[key] for key in some]
                first = waiters[: len(some)]
                late = _answer_found(front, first, records, index, contact, blocked)
                waiters = [first[n] for n in late] + waiters[len(some) :]
                keys = [keys[n] for n in late] + keys[len(some) :]
                yield False


def _answer_found(
    front: FrontEnd[WaiterT],
    waiters: list[WaiterT],
    records: Sequence[Found],
    index: int,
    contact: Contact | None,
    blocked: set[int] | None,
) -> list[int]:
    """Answer reads, but for those whose values were not read and those after them in their
    connections, which are *blocked* from then on; return the positions of these, where now those
    are who wait for them (``Waiter.apart``). Without such a set they are refused."""
    if blocked is None or not (blocked or NotRead in map(type, records)):
        front.found(waiters, records, index, contact)
        return []
    late: list[int] = []
    ready: list[int] = []
    ahead: dict[WaiterT, int] = {}  # how many of the answers that are ready are whose
    for position, (waiter, record) in enumerate(zip(waiters, records, strict=True)):
        if blocked and waiter.connection in blocked:
            late.append(position)
        elif isinstance(record, NotRead):
            late.append(position)
            waits = waiters[position] = waiter.apart(ahead.get(waiter, 0))
            blocked.add(waits.connection)
        else:
            ready.append(position)
            ahead[waiter] = ahead.get(waiter, 0) + 1
    if ready:
        front.found([waiters[n] for n in ready], [records[n] for n in ready], index, contact)
    return late


@contextmanager
def failing(front: FrontEnd[WaiterT], waiters: list[WaiterT]) -> Iterator[None]:
    """Let a bug end in answers and go on as what it is: nobody is to wait for ever."""
    try:
        yield
    except Exception:
        for waiter in waiters:
            if not waiter.is_answered:
                front.broken(waiter)
        raise


def _is_long(record: Found) -> bool:
    if record is None or isinstance(record, ConureError):
        return False
    return len(record.value) > LONG_VALUE
