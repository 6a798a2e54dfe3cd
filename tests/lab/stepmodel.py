"""A model of sequential transactions: what steps do to a plain dictionary of values and expiries.

It knows nothing of revisions, events, bounds or bytes; tests/lab/model.py adds those it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conure.state import floats
from conure.steps import (
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
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
)

__all__ = ["Values", "take"]

INT64 = (1 << 63) - 1
Values = dict[bytes, tuple[bytes, int]]
"""By key, its value and its expiry, 0: never."""


def take(
    steps: Sequence[Step],
    values: Values,
    clock: int,
    longest: int,
    written: Callable[[bytes], None],
) -> list[Done]:
    """Do steps to *values* and return what came of each. *written* is told the key of each value
    that was set or removed, after that."""
    done: list[Done] = []
    left_out = 0
    for step in steps:
        if left_out > 0:
            left_out -= 1
            done.append(Done(Obstacle.SKIPPED))
            continue
        one = _Step(values, clock, longest, written).do(step)
        if isinstance(step, Check) and one.obstacle:
            left_out = step.skips
        done.append(one)
    return done


class _Step:
    def __init__(
        self, values: Values, clock: int, longest: int, written: Callable[[bytes], None]
    ) -> None:
        self.values = values
        self.clock = clock
        self.longest = longest
        self.written = written

    def put(self, key: bytes, value: bytes, expiry: int) -> None:
        self.values[key] = value, expiry
        self.written(key)

    def remove(self, key: bytes) -> None:
        if self.values.pop(key, None):
            self.written(key)

    def holds(self, key: bytes, condition: Condition) -> bool:
        found = self.values.get(key, (None, 0))[0]
        return {
            When.ALWAYS: True,
            When.EXISTS: found is not None,
            When.ABSENT: found is None,
            When.EQUAL: found == condition.operand,
            When.DIFFERS: found != condition.operand,
            When.EXPIRES: self.values.get(key, (None, 0))[1] > self.clock,
            When.LASTS: self.values.get(key, (None, 0))[1] <= self.clock,
        }[condition.when]

    def expiry(self, key: bytes, expiry: Expiry) -> int | None:
        """Return the expiry that is asked for, None if it can't be; it may be over."""
        now = self.values.get(key, (b"", 0))[1]
        match expiry.life:
            case Life.FOREVER:
                return 0
            case Life.KEPT:
                return now
            case Life.TTL:
                return min(INT64, self.clock + expiry.time)
            case Life.AT:
                return min(INT64, expiry.time)
            case Life.LONGER:
                return min(INT64, now + expiry.time) if now else None

    def shown(self, key: bytes, value: bytes | None) -> Done:
        whole, expiry = self.values[key]
        left = max(0, expiry - self.clock) if expiry else -1
        return Done(Obstacle.NONE, True, len(whole), value, expiry, left)

    def do(self, step: Step) -> Done:  # noqa: C901 - all of them at a glance
        key = step.key
        existed = key in self.values
        value, until = self.values.get(key, (b"", 0))
        match step:
            case Read(_, first, last, _):
                if not existed:
                    return Done()
                size = len(value)
                both_behind = first < 0 and last < 0 and first > last
                begin = max(0, first + size) if first < 0 else first
                end = max(0, last + size) if last < 0 else last
                part = (
                    b""
                    if both_behind
                    else bytes(value[i] for i in range(size) if begin <= i <= end)
                )
                return self.shown(key, part)
            case Look():
                return self.shown(key, None) if existed else Done()
            case Check(_, condition, _):
                return Done(
                    Obstacle.NONE if self.holds(key, condition) else Obstacle.UNMET, existed
                )
            case Write(_, new, condition, expiry):
                at = self.expiry(key, expiry)
                if not self.holds(key, condition):
                    return Done(Obstacle.UNMET, existed)
                if len(new) > self.longest:
                    return Done(Obstacle.TOO_LONG)
                if at is None:
                    return Done(Obstacle.UNMET, existed)
                if expiry.life >= Life.TTL and at <= self.clock:
                    self.remove(key)
                else:
                    self.put(key, new, at)
                return Done(existed=existed)
            case Erase(_, condition):
                if not self.holds(key, condition):
                    return Done(Obstacle.UNMET, existed)
                self.remove(key)
                return Done(existed=existed)
            case Lapse(_, expiry, condition, limit):
                return self.lapse(key, expiry, condition, limit)
            case Add(_, by):
                try:
                    number = int(value or b"x") if existed else 0
                except ValueError:
                    return Done(Obstacle.NOT_AN_INTEGER, True)
                if existed and (b"%d" % number != value or not -INT64 - 1 <= number <= INT64):
                    return Done(Obstacle.NOT_AN_INTEGER, True)
                if not -INT64 - 1 <= number + by <= INT64:
                    return Done(Obstacle.OVERFLOW, True)
                return self.set_number(key, b"%d" % (number + by), until, number + by)
            case AddFloat(_, by_text):
                # How floats are added is held to Redis by a test of its own.
                one = floats.parse_float(value if existed else b"0")
                other = floats.parse_float(by_text)
                if one is None or other is None:
                    return Done(Obstacle.NOT_A_FLOAT, existed)
                text = floats.format_float(floats.add(one, other))
                done = self.set_number(key, text, until, 0)
                return done if done.obstacle else done._replace(value=text)
            case Append(_, more):
                return self.grow(key, value + more, until)
            case Overlay(_, offset, more):
                if not more:
                    return Done(existed=existed, number=len(value))
                return self.grow(
                    key,
                    value[:offset].ljust(offset, b"\0") + more + value[offset + len(more) :],
                    until,
                )
            case Move(_, target, replaces, copies):
                if not existed:
                    return Done(Obstacle.NO_KEY)
                if target in self.values and not replaces:
                    return Done(Obstacle.UNMET, True)
                if len(value) > self.longest and key != target:
                    return Done(Obstacle.TOO_LONG, True)
                if key != target:
                    self.put(target, value, until)
                    if not copies:
                        self.remove(key)
                return Done(existed=True)

    def lapse(self, key: bytes, expiry: Expiry, condition: Condition, limit: Limit) -> Done:
        if key not in self.values:
            return Done(Obstacle.NO_KEY)
        value, now = self.values[key]
        at = self.expiry(key, expiry)
        if not self.holds(key, condition) or at is None or (at == now == 0 and not expiry.life):
            return Done(Obstacle.UNMET, True)
        forever = float("inf")
        old, new = now or forever, at or forever
        if expiry.life >= Life.TTL and at <= self.clock:
            new = -1  # gone, however long ago
        if (
            (Limit.HAS_NONE in limit and now)
            or (Limit.HAS_ONE in limit and not now)
            or (Limit.LATER in limit and new <= old)
            or (Limit.EARLIER in limit and new >= old)
        ):
            return Done(Obstacle.UNMET, True)
        if expiry.life >= Life.TTL and at <= self.clock:
            self.remove(key)
        else:
            self.values[key] = value, at
        return Done(existed=True)

    def set_number(self, key: bytes, text: bytes, until: int, number: int) -> Done:
        existed = key in self.values
        if len(text) > self.longest:
            return Done(Obstacle.TOO_LONG, existed)
        self.put(key, text, until)
        return Done(existed=existed, number=number)

    def grow(self, key: bytes, whole: bytes, until: int) -> Done:
        existed = key in self.values
        if len(whole) > self.longest:
            return Done(Obstacle.TOO_LONG, existed, len(self.values.get(key, (b"", 0))[0]))
        self.put(key, whole, until)
        return Done(existed=existed, number=len(whole))
