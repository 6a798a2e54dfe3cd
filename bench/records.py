"""Numbered records of 16 + 100 bytes: loading them through a server and reading them back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator

from bench.pipeline import exchange
from bench.servers import CONURE, Request
from bench.workspace import BenchError

__all__ = ["Keyspace", "load_records", "random_puts", "read_back"]

_MIXER = 0x9E37_79B9_7F4A_7C15  # odd, so multiplying by it permutes the 64-bit numbers


class Keyspace:
    """Keys in random order, and values that tell the record and the pass (*turn*) they are of."""

    @staticmethod
    def key(n: int) -> str:
        return f"{n * _MIXER & 0xFFFF_FFFF_FFFF_FFFF:016x}"

    @staticmethod
    def value(n: int, turn: int) -> str:
        return f"{turn:04}{n:096}"

    @staticmethod
    def sample(records: int, seed: int, count: int) -> list[int]:
        """Return *count* numbers of records at random."""
        return random.Random(seed).choices(range(records), k=count)

    @classmethod
    def puts(cls, order: Iterable[int], turn: int) -> Iterator[bytes]:
        return (CONURE.put(cls.key(n), cls.value(n, turn)).render() for n in order)


def random_puts(records: int, turn: int, count: int) -> Iterator[bytes]:
    """Render *count* puts of existing records at random."""
    return Keyspace.puts(Keyspace.sample(records, turn, count), turn)


def load_records(port: int, count: int) -> float:
    """Put records 0 to *count* - 1 and return the puts a second."""
    began = time.perf_counter()

    def accepted(index: int, status: int, body: bytes) -> None:
        if status != 200:
            raise BenchError(f"put {index} was answered with {status}: {body[:200]!r}")

    if not exchange(port, Keyspace.puts(range(count), 0), accepted):
        raise BenchError("the server went away during the load")
    return count / (time.perf_counter() - began)


def read_back(
    port: int,
    count: int,
    request: Callable[[str], Request],
    turns: Callable[[int], Iterable[int]],
) -> None:
    """Read records 0 to *count* - 1. Raises BenchError if one is of none of its *turns*."""

    def on_answer(index: int, status: int, body: bytes) -> None:
        allowed = [Keyspace.value(index, turn).encode() for turn in turns(index)]
        if status != 200 or body not in allowed:
            raise BenchError(
                f"record {index} should be of pass {turns(index)} and is not: {status} {body!r}"
            )

    gets = (request(Keyspace.key(n)).render() for n in range(count))
    if not exchange(port, gets, on_answer):
        raise BenchError("the server went away while its records were read back")
