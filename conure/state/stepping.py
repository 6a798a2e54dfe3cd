"""Carries out the steps of one sequential transaction on the records of the state machine.

1. Everything is judged by the records, by the entry's time (``Records.clock``) and by what stands
   in the entry; nothing else comes in (R7).
2. What is due and hasn't been ended by an entry yet (commands.Expire) is there, as it is for
   transactions and for reads.
3. The work of an entry is bounded: steps read READ_BYTES of values, the last one may go beyond, and
   write WRITTEN_BYTES or a value of the longest size. What would be more is TOO_MUCH. A value
   counts as read as a whole, whatever is shown of it, and so does that of a record that is given
   an expiry.
4. Each key that was changed has one event, in the order of the first changes: its state after the
   entry. A key that wasn't there before and isn't after has none.
5. An entry may take several turns; who calls decides what may come between (lengthy.py).

Everything here belongs to whoever holds the node's lock, for the time of one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from conure.commands import READ_BYTES, WRITTEN_BYTES, EventKind
from conure.state.floats import add, format_float, parse_float
from conure.steps import (
    REWRITTEN,
    WRITTEN,
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Lapse,
    Life,
    Limit,
    Look,
    Move,
    Obstacle,
    Overlay,
    Read,
    Step,
    When,
    Write,
    span,
)
from conure.storage.engine import Record

__all__ = ["LAST_TIME", "PIECE", "Changed", "Heading", "Records", "carry_out"]

PIECE: Final = 8
"""Steps that are done in one go: they take some tenths of a millisecond, long values apart, or as
long as it takes to read READ_BYTES and write WRITTEN_BYTES."""

LAST_TIME: Final = (1 << 63) - 1
"""No time is later than this one, in milliseconds since the Unix epoch."""

_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_PUT, _DELETE = EventKind.PUT.value, EventKind.DELETE.value
_ALWAYS, _EXISTS, _ABSENT, _EQUAL, _, _EXPIRES, _LASTS = When
_FOREVER = LAST_TIME + 1  # later than any expiry
_GONE = -1  # an expiry that isn't after the entry's time
_HAS_NONE, _HAS_ONE, _LATER, _EARLIER = [limit.value for limit in Limit if limit]
_NONE = Obstacle.NONE
_UNREAD = Record(b"", 0, 0, 0)
_SKIPPED = Done(Obstacle.SKIPPED)

Before = tuple[()] | tuple[bytes | None]


class Heading(NamedTuple):
    """A record without its value: how long that is, and the expiry, 0: never."""

    size: int
    expiry: int


class Records(Protocol):
    """Users' records, as steps see and change them; they keep the index by expiry."""

    @property
    def clock(self) -> int: ...

    def get(self, key: bytes) -> Record | None: ...

    def heading(self, key: bytes) -> Heading | None:
        """Return what is known of a record without reading its value."""

    def beginning(self, key: bytes, most: int) -> bytes | None:
        """Return the first *most* bytes of a value."""

    def put(self, key: bytes, value: bytes, expiry: int) -> int:
        """Set a record and return its version, 1 if there was none."""

    def delete(self, key: bytes) -> bool:
        """Remove a record and tell whether it was there."""

    def touch(self, key: bytes, expiry: int) -> None:
        """Set the expiry of a record that is there."""

    def before(self, key: bytes) -> Before:
        """Return the value for an event that shows what was before the entry, if one does."""


class Changed(NamedTuple):
    """What became of a key: the fields of an event but the revision."""

    kind: int
    key: bytes
    value: bytes
    version: int
    before: Before


def carry_out(
    records: Records, steps: Iterable[Step], longest: int, *, notes: bool
) -> Generator[None, None, tuple[tuple[Done, ...], Iterator[Changed]]]:
    """Do all steps, and yield where something else may have its turn; return what came of each, and
    if *notes* says so what became of each key. Raises what *steps* raises."""
    return _Steps(records, longest, notes=notes).run(steps)


class _Steps:
    """The steps of one entry under way."""

    __slots__ = ("_changes", "_longest", "_notes", "_readable", "_records", "_writable")

    def __init__(self, records: Records, longest: int, *, notes: bool) -> None:
        self._records = records
        self._longest = longest
        self._readable = READ_BYTES
        self._writable = max(longest, WRITTEN_BYTES)
        # By key: whether it was there, what is to be told of that; its value and version now, which
        # is 0 if it isn't there any more.
        self._changes: dict[bytes, tuple[bool, Before, bytes, int]] = {}
        self._notes = notes

    def run(
        self, steps: Iterable[Step]
    ) -> Generator[None, None, tuple[tuple[Done, ...], Iterator[Changed]]]:
        done: list[Done] = []
        skips = 0
        for step in steps:
            if done and not len(done) % PIECE:
                yield
            if skips:
                skips -= 1
                done.append(_SKIPPED)
                continue
            one = _KINDS[type(step)](self, step)
            done.append(one)
            if one[0] and (type(step) is Check or type(step) is Read):
                skips = step.skips
        changed = (
            Changed(_PUT if version else _DELETE, key, value, version, before)
            for key, (existed, before, value, version) in self._changes.items()
            if version or existed
        )
        return tuple(done), changed

    # -- steps that only read

    def _read(self, step: Read) -> Done:
        key, first, last, _ = step
        record = self._get(key)
        if record is None:
            return WRITTEN
        if record is _UNREAD:
            return Done(Obstacle.TOO_MUCH)
        value, expiry = record.value, record.expiry
        size = len(value)
        if first or last != -1:
            start, stop = span(size, first, last)
            value = value[start:stop]
        return Done(_NONE, True, size, value, expiry, self._left(expiry))

    def _look(self, step: Look) -> Done:
        heading = self._records.heading(step.key)
        if heading is None:
            return WRITTEN
        size, expiry = heading
        return Done(_NONE, True, size, None, expiry, self._left(expiry))

    def _check(self, step: Check) -> Done:
        existed, is_met = self._judge(step.key, step.condition)
        return Done(_NONE if is_met else Obstacle.UNMET, existed)

    # -- steps that write

    def _write(self, step: Write) -> Done:
        key, value, condition, (life, time) = step
        if condition[0]:
            existed, is_met = self._judge(key, condition)
            if not is_met:
                return Done(Obstacle.UNMET, existed)
        obstacle = self._spend(len(value))
        if obstacle:
            return Done(obstacle)
        expiry = 0
        if life:
            current = self._records.heading(key)
            expiry = self._expiry(current.expiry if current else 0, life, time)
            if life is Life.LONGER and not expiry:
                return Done(Obstacle.UNMET, current is not None)
            if expiry == _GONE:
                return Done(_NONE, self._delete(key))
        return WRITTEN if self._put(key, value, expiry) == 1 else REWRITTEN

    def _erase(self, step: Erase) -> Done:
        key, condition = step
        if condition[0]:
            existed, is_met = self._judge(key, condition)
            if not is_met:
                return Done(Obstacle.UNMET, existed)
        return Done(_NONE, self._delete(key))

    def _lapse(self, step: Lapse) -> Done:
        key, (life, time), condition, limit = step
        heading = self._records.heading(key)
        if heading is None:
            return Done(Obstacle.NO_KEY)
        size, current = heading
        expiry = self._expiry(current, life, time)
        if (
            (condition[0] and not self._judge(key, condition)[1])
            or (not current and (life is Life.LONGER or life is Life.FOREVER))
            or (limit and _is_against(limit.value, current, expiry))
        ):
            return Done(Obstacle.UNMET, True)
        if expiry == _GONE:
            self._delete(key)
        elif self._readable <= 0:
            return Done(Obstacle.TOO_MUCH, True)
        else:
            self._readable -= size
            self._records.touch(key, expiry)
        return REWRITTEN

    def _add(self, step: Add) -> Done:
        key, by = step
        record = self._get(key)
        if record is _UNREAD:
            return Done(Obstacle.TOO_MUCH)
        total, expiry = by, 0
        if record is not None:
            text, expiry = record.value, record.expiry
            if not _NUMBER.fullmatch(text) or not _LEAST <= int(text) <= _MOST:
                return Done(Obstacle.NOT_AN_INTEGER, True)
            total += int(text)
            if not _LEAST <= total <= _MOST:
                return Done(Obstacle.OVERFLOW, True)
        value = b"%d" % total
        obstacle = self._spend(len(value))
        if obstacle:
            return Done(obstacle, record is not None)
        return Done(_NONE, self._put(key, value, expiry) > 1, total)

    def _add_float(self, step: AddFloat) -> Done:
        key, by = step
        record = self._get(key)
        if record is _UNREAD:
            return Done(Obstacle.TOO_MUCH)
        text, expiry = (record.value, record.expiry) if record else (b"0", 0)
        try:
            number, other = parse_float(text), parse_float(by)
            if number is None or other is None:
                return Done(Obstacle.NOT_A_FLOAT, record is not None)
            value = format_float(add(number, other))
        except OverflowError:
            return Done(Obstacle.NOT_FINITE, record is not None)
        obstacle = self._spend(len(value))
        if obstacle:
            return Done(obstacle, record is not None)
        return Done(_NONE, self._put(key, value, expiry) > 1, value=value)

    def _append(self, step: Append) -> Done:
        key, value = step
        return self._overwrite(key, None, value)

    def _overlay(self, step: Overlay) -> Done:
        key, offset, value = step
        if not value:
            heading = self._records.heading(key)
            return Done(_NONE, True, heading.size) if heading else WRITTEN
        return self._overwrite(key, offset, value)

    def _move(self, step: Move) -> Done:
        key, target, replaces, copies = step
        if self._records.heading(key) is None:
            return Done(Obstacle.NO_KEY)
        if not replaces and self._records.heading(target) is not None:
            return Done(Obstacle.UNMET, True)
        if key == target:
            return REWRITTEN
        record = self._get(key)
        assert record is not None
        if record is _UNREAD:
            return Done(Obstacle.TOO_MUCH, True)
        obstacle = self._spend(len(record.value))
        if obstacle:
            return Done(obstacle, True)
        self._put(target, record.value, record.expiry)
        if not copies:
            self._delete(key)
        return REWRITTEN

    # -- parts of steps

    def _judge(self, key: bytes, condition: Condition) -> tuple[bool, bool]:
        """Tell whether a key is there, and whether a condition holds."""
        when, operand = condition
        if when is _ALWAYS or when is _EXISTS or when is _ABSENT:
            existed = self._records.heading(key) is not None
            return existed, when is _ALWAYS or existed == (when is _EXISTS)
        if when is _EXPIRES or when is _LASTS:
            heading = self._records.heading(key)
            expires = heading is not None and heading.expiry > self._records.clock
            return heading is not None, expires == (when is _EXPIRES)
        value = self._records.beginning(key, len(operand) + 1)
        return value is not None, (value == operand) == (when is _EQUAL)

    def _spend(self, size: int) -> Obstacle:
        """Take so many bytes of what may be written; return the obstacle to writing a value."""
        if size > self._longest:
            return Obstacle.TOO_LONG
        if size > self._writable:
            return Obstacle.TOO_MUCH
        self._writable -= size
        return _NONE

    def _get(self, key: bytes) -> Record | None:
        """Return a record, None if there is none, or _UNREAD if too much was read before."""
        if self._readable <= 0:
            return None if self._records.heading(key) is None else _UNREAD
        record = self._records.get(key)
        if record is not None:
            self._readable -= len(record.value)
        return record

    def _overwrite(self, key: bytes, offset: int | None, value: bytes) -> Done:
        """Put bytes into a value at an offset; None: at its end."""
        heading = self._records.heading(key)
        size, expiry = heading or (0, 0)
        if offset is None:
            offset = size
        total = max(size, offset + len(value))
        if total > self._longest:  # before what may be long is read
            return Done(Obstacle.TOO_LONG, heading is not None, size)
        record = self._get(key)
        if record is _UNREAD:
            return Done(Obstacle.TOO_MUCH, True, size)
        obstacle = self._spend(total)
        if obstacle:
            return Done(obstacle, heading is not None, size)
        old = record.value if record else b""
        whole = b"".join((old[:offset].ljust(offset, b"\0"), value, old[offset + len(value) :]))
        return Done(_NONE, self._put(key, whole, expiry) > 1, total)

    def _expiry(self, current: int, life: Life, time: int) -> int:
        """Return when a record expires, 0: never, _GONE: it has done so."""
        if life is Life.FOREVER:
            return 0
        if life is Life.KEPT:
            return current
        if life is Life.LONGER and not current:
            return 0
        clock = self._records.clock
        base = clock if life is Life.TTL else current if life is Life.LONGER else 0
        expiry = min(base + time, LAST_TIME)
        return expiry if expiry > clock else _GONE

    def _left(self, expiry: int) -> int:
        return max(0, expiry - self._records.clock) if expiry else -1

    # -- records, and what watchers are to be told of them

    def _put(self, key: bytes, value: bytes, expiry: int) -> int:
        if not self._notes:
            return self._records.put(key, value, expiry)
        known = self._changes.get(key)
        existed, before = known[:2] if known else (False, self._records.before(key))
        version = self._records.put(key, value, expiry)
        existed = existed if known else version > 1
        self._changes[key] = existed, before, value, version
        return version

    def _delete(self, key: bytes) -> bool:
        if not self._notes:
            return self._records.delete(key)
        known = self._changes.get(key)
        before = known[1] if known else self._records.before(key)
        was_there = self._records.delete(key)
        if was_there:
            self._changes[key] = known[0] if known else True, before, b"", 0
        return was_there


def _is_against(limit: int, current: int, expiry: int) -> bool:
    """Tell whether a limit forbids an expiry where there is *current*."""
    old, new = current or _FOREVER, expiry or _FOREVER
    return bool(
        (limit & _HAS_NONE and current)
        or (limit & _HAS_ONE and not current)
        or (limit & _LATER and new <= old)
        or (limit & _EARLIER and new >= old)
    )


_KINDS: dict[type, Callable[[_Steps, Any], Done]] = {
    Read: _Steps._read,
    Look: _Steps._look,
    Write: _Steps._write,
    Erase: _Steps._erase,
    Lapse: _Steps._lapse,
    Add: _Steps._add,
    AddFloat: _Steps._add_float,
    Append: _Steps._append,
    Overlay: _Steps._overlay,
    Move: _Steps._move,
    Check: _Steps._check,
}
