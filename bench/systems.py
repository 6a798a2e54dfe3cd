"""What is put beside each other over HTTP: one row of the tables each, and all their figures.

1,000 keys, 25-byte values, keep-alive connections, one load thread on the same machine. In every
round each key gets a new value, and after the round every key is read back and compared.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Protocol

from bench.loads import Outcome, write_requests, wrk
from bench.report import Ratio, Section, kilo
from bench.servers import CONURE, Api, Request, ask
from bench.workspace import BenchError, Workspace, note

__all__ = [
    "BUSY",
    "GET",
    "KEYS",
    "OPERATIONS",
    "PUT",
    "STALE",
    "Cell",
    "Figures",
    "HttpSystem",
    "System",
    "key",
]

KEYS = 1_000
PUT, GET, STALE = "durable put", "linearizable get", "stale get"
OPERATIONS = (PUT, GET, STALE)
BUSY = 64  # connections of the loads that are compared

_PAUSE = 0.2  # seconds between two loads
_CATCH_UP = 5.0  # seconds a follower has to show what its leader has acknowledged

Cell = tuple[str, str, int]
"""System, operation, connections."""


class System(Protocol):
    """One row of the tables."""

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[str]: ...

    def begin_round(self, number: int) -> None: ...

    def load(self, operation: str, connections: int, seconds: int) -> Outcome: ...

    def verify(self) -> None:
        """Raise BenchError if anything but the round's values is stored."""


class HttpSystem:
    """A server behind an HTTP API, loaded by wrk."""

    operations: Sequence[str] = OPERATIONS

    def __init__(self, workspace: Workspace, api: Api, port: int, *, tls: bool = False) -> None:
        self.name = f"{api.name}, TLS" if tls else api.name
        self.port = port
        self._tls = tls
        self._workspace = workspace
        self._api = api
        self._round = 0
        self._files: dict[str, str] = {}

    def port_for(self, operation: str) -> int:
        """Return where an operation is asked for."""
        del operation  # this one has a single server
        return self.port

    def begin_round(self, number: int) -> None:
        """Render the round's requests and put every key once."""
        self._round = number
        api = self._api
        puts = [api.put(key(n), self.value(n)) for n in range(KEYS)]
        self.write(PUT, [put.render() for put in puts])
        self.write(GET, [api.get(key(n)).render() for n in range(KEYS)])
        self.write(STALE, [api.stale(key(n)).render() for n in range(KEYS)])
        port = self.port_for(PUT)
        for put in puts:
            status, body = ask(port, put, tls=self._tls)
            if status not in {200, 201}:
                raise BenchError(f"{self.name} answered a put with {status}: {body[:200]!r}")

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        port = self.port_for(operation)
        file = self._files[operation]
        return wrk(self._workspace, port, file, connections, seconds, tls=self._tls)

    def verify(self) -> None:
        for operation, request in ((GET, self._api.get), (STALE, self._api.stale)):
            port = self.port_for(operation)
            deadline = time.monotonic() + _CATCH_UP
            for n in range(KEYS):
                while not self._holds(port, request(key(n)), self.value(n)):
                    if operation == GET or time.monotonic() > deadline:
                        raise BenchError(f"{self.name} does not have {key(n)} at a {operation}")

    def value(self, n: int) -> str:
        """Return the value of key *n* in this round."""
        return f"round-{self._round:03}-value-{n:09}"

    def write(self, operation: str, requests: list[bytes]) -> None:
        """Keep the requests that make up the load of an operation."""
        path = self._workspace.path("requests")
        write_requests(path, requests)
        self._files[operation] = path

    def _holds(self, port: int, request: Request, value: str) -> bool:
        status, body = ask(port, request, tls=self._tls)
        return status == 200 and self._api.value(body) == value


class Figures:
    """The outcomes of all rounds, by system, operation and number of connections."""

    def __init__(self) -> None:
        self._outcomes: dict[Cell, list[Outcome]] = defaultdict(list)

    def compare(self, systems: Sequence[System], counts: Sequence[int], seconds: int) -> None:
        """Let the systems take turns at every operation and number of connections."""
        for operation in OPERATIONS:
            for connections in counts:
                for system in systems:
                    if operation in system.operations:
                        self.load(system, operation, connections, seconds)

    def load(
        self, system: System, operation: str, connections: int, seconds: int, *, into: str = ""
    ) -> None:
        """Load a system for a while; the outcome counts for *into*, else for the operation."""
        time.sleep(_PAUSE)
        outcome = system.load(operation, connections, seconds)
        what = into or operation
        self._outcomes[system.name, what, connections].append(outcome)
        rate = kilo(outcome.rate)
        note(f"{system.name}, {what}, {connections}: {rate}/s, p99 {outcome.p99:.1f}")

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._outcomes

    def rates(self, *cell: *Cell) -> list[float]:
        return [outcome.rate for outcome in self._outcomes[cell]]

    def p50(self, *cell: *Cell) -> float:
        return median(outcome.p50 for outcome in self._outcomes[cell])

    def p99(self, *cell: *Cell) -> float:
        return median(outcome.p99 for outcome in self._outcomes[cell])

    def show(self, *cell: *Cell) -> str:
        if cell not in self._outcomes:
            return "-"
        return f"{kilo(median(self.rates(*cell)))} ({self.p50(*cell):.1f} / {self.p99(*cell):.1f})"

    def ratio(self, operation: str, connections: int, other: str) -> Ratio:
        """Return how many times the other's throughput ConureDB's is."""
        mine = self.rates(CONURE.name, operation, connections)
        return Ratio.of(mine, self.rates(other, operation, connections))

    def tabulate(self, section: Section, names: Sequence[str], counts: Sequence[int]) -> None:
        """Draw a table for each operation, and one of ConureDB's multiples of the others."""
        for operation in OPERATIONS:
            section.table(
                f"{operation}: requests a second (median / p99 latency in ms) by connections",
                ["system", *map(str, counts)],
                [
                    [name, *(self.show(name, operation, count) for count in counts)]
                    for name in names
                    if (name, operation, counts[0]) in self
                ],
            )
        if CONURE.name not in names:
            return
        section.table(
            "ConureDB: throughput as a multiple of the others' by connections",
            ["operation", "than", *map(str, counts)],
            [
                [operation, name, *(str(self.ratio(operation, count, name)) for count in counts)]
                for operation in OPERATIONS
                for name in names
                if name != CONURE.name and (name, operation, counts[0]) in self
            ],
        )


def key(n: int) -> str:
    """Return the *n*-th of the keys."""
    return f"key-{n:06}"
