"""One engine in a process of its own, which is told on standard input what to do next.

``python -m bench.engine_process ENGINE KEYS DIRECTORY`` opens the engine in DIRECTORY. Each line
that it reads is a JSON object with the name of an operation and its arguments; each answer is one
of two on a line: ``{"seconds": …, "amount": …}``, or ``{"error": …}``, after which it ends.

================= ================================================================================
``load``          puts records that the engine hasn't, in the order of their numbers
``overwrite``     puts records again, in another order
``put``           puts records anywhere, which the engine has
``get``, ``miss`` gets records anywhere, or keys that no record has
``range``         reads ranges from anywhere
``scan_keys``     reads neighbouring keys, from a share of the key space on
``scan_items``    the same with their values
``settle``        lets the engine do all that it has put off
``verify``        compares all records with what was put
``close``         closes the engine
``open``          opens it, gets one record, and closes it again
================= ================================================================================

An *amount* is of records, or of ranges. Seconds are those of the engine: making up records and
comparing values is not in them.
"""

from __future__ import annotations

import json
import operator
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.contender import RANGE, Contender
from bench.engines import open_engine
from bench.samples import KEY_BYTES, Samples
from bench.workspace import BenchError

__all__ = ["Answer", "Session", "main"]

_LEAST_SECONDS = 0.05  # what is shorter is repeated
_BY_THE_WAY = 10_000  # records compared at a time


class Answer(NamedTuple):
    """What an operation took, and of how much that is."""

    seconds: float
    amount: int


class Session:
    """An engine, the records in it, and the operations by their names."""

    def __init__(self, name: str, samples: Samples, directory: str) -> None:
        self._name = name
        self._samples = samples
        self._directory = directory
        self._engine: Contender | None = open_engine(name, directory)
        self._overwritten = 0  # records, the first of another order

    def load(self, first: int, count: int, batch: int) -> Answer:
        return self._put(range(first, first + count), batch)

    def overwrite(self, first: int, count: int, batch: int) -> Answer:
        """Each call goes on where the one before has ended."""
        self._overwritten = first + count
        return self._put(self._samples.again(first, count), batch)

    def put(self, burst: int, count: int, batch: int) -> Answer:
        return self._put(self._samples.anywhere(count, f"put {burst}"), batch)

    def get(self, burst: int, count: int) -> Answer:
        numbers = self._samples.anywhere(count, f"get {burst}")
        keys = [self._samples.key(n) for n in numbers]
        get_many = self._open_engine.get_many
        answer = _timed(lambda: get_many(keys), count)
        self._compare(numbers)
        return answer

    def miss(self, burst: int, count: int) -> Answer:
        keys = [self._samples.absent(n) for n in self._samples.anywhere(count, f"miss {burst}")]
        get_many = self._open_engine.get_many
        answer = _timed(lambda: get_many(keys), count)
        if any(value is not None for value in get_many(keys)):
            raise BenchError(f"{self._name} has records that were never put")
        return answer

    def range(self, burst: int, count: int) -> Answer:
        numbers = self._samples.anywhere(count, f"range {burst}")
        starts = [self._samples.key(n) for n in numbers]
        range_many = self._open_engine.range_many
        found = range_many(starts[:1])
        if not 0 < found <= RANGE:
            raise BenchError(f"{self._name} found {found} records in a range")
        return _timed(lambda: range_many(starts), count)

    def scan_keys(self, share: float, count: int) -> Answer:
        engine, start = self._open_engine, _key_at(share)
        if engine.scan_keys(start, count) != count * KEY_BYTES:
            raise BenchError(f"{self._name} has other keys than were put")
        return _timed(lambda: engine.scan_keys(start, count), count)

    def scan_items(self, share: float, count: int) -> Answer:
        engine, start = self._open_engine, _key_at(share)
        if engine.scan_items(start, count) != count:
            raise BenchError(f"{self._name} holds another number of records than were put")
        return _timed(lambda: engine.scan_items(start, count), count)

    def settle(self) -> Answer:
        began = time.perf_counter()
        self._open_engine.settle()
        return Answer(time.perf_counter() - began, 0)

    def verify(self) -> Answer:
        count = self._samples.count
        for first in range(0, count, _BY_THE_WAY):
            self._compare(range(first, min(count, first + _BY_THE_WAY)))
        if self._open_engine.scan_items(b"", count + 1) != count:
            raise BenchError(f"{self._name} holds another number of records than were put")
        return Answer(0.0, count)

    def close(self) -> Answer:
        began = time.perf_counter()
        self._open_engine.close()
        self._engine = None
        return Answer(time.perf_counter() - began, 0)

    def open(self) -> Answer:
        n = self._samples.count // 2
        began = time.perf_counter()
        self._engine = open_engine(self._name, self._directory)
        found = self._engine.get_many([self._samples.key(n)])
        seconds = time.perf_counter() - began
        self.close()
        if list(found) != [self._value(n)]:
            raise BenchError(f"{self._name}: a record is gone after opening again")
        return Answer(seconds, 1)

    @property
    def _open_engine(self) -> Contender:
        assert self._engine is not None
        return self._engine

    def _turn_of(self, n: int) -> int:
        return int(self._samples.place_again(n) < self._overwritten)

    def _value(self, n: int) -> bytes:
        return self._samples.value(n, self._turn_of(n))

    def _put(self, numbers: Iterable[int], batch_size: int) -> Answer:
        engine = self._open_engine
        seconds, count = 0.0, 0
        for items in self._samples.batches(numbers, self._turn_of, batch_size):
            batch = engine.batch(items)
            began = time.perf_counter()
            engine.put_many(batch)
            seconds += time.perf_counter() - began
            count += len(items)
        return Answer(seconds, count)

    def _compare(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        found = self._open_engine.get_many([self._samples.key(n) for n in numbers])
        if any(map(operator.ne, found, map(self._value, numbers))):
            raise BenchError(f"{self._name} returned other values than were put")


def _key_at(share: float) -> bytes:
    """Return the key with so large a share of all possible keys before it."""
    return int(share * 2**32).to_bytes(4, "big") + bytes(KEY_BYTES - 4)


def _timed(work: Callable[[], object], amount: int) -> Answer:
    """Time one call; short ones are repeated."""
    began = time.perf_counter()
    calls = 0
    while True:
        work()
        calls += 1
        seconds = time.perf_counter() - began
        if seconds >= _LEAST_SECONDS:
            return Answer(seconds, amount * calls)


def main(name: str, keys: str, directory: str) -> None:
    """Answer line by line until the input ends."""
    session = Session(name, Samples(keys), directory)
    for line in sys.stdin:
        wanted = json.loads(line)
        operation = getattr(session, wanted.pop("operation"))
        try:
            answer = operation(**wanted)._asdict()
        except BenchError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
