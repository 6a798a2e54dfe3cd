"""Throughput and latency over HTTP: one node of ConureDB beside etcd and redis.

1,000 keys, 25-byte values, keep-alive connections, one load thread on the same machine. All
servers run during the whole part, and those whose turn it isn't have nothing to do. In every
round each key gets a new value, and after the round every key is read back and compared.
"""

from __future__ import annotations

import random
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Protocol

from bench.loads import Outcome, redis_benchmark, write_requests, wrk, wrk_missing
from bench.plan import Plan
from bench.report import Ratio, Section, kilo
from bench.servers import (
    CONURE,
    GATEWAY,
    V2,
    Api,
    Conure,
    Etcd,
    Redis,
    ask,
    conure_missing,
    etcd_missing,
    redis_missing,
)
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_KEYS = 1_000
_PUT, _GET, _STALE = "durable put", "linearizable get", "stale get"
_MIX, _PIPELINED, _IDLE = "10 % put, 90 % get", "put, pipelined 16 deep", "put beside idle"
_DEPTH = 16
_PUTS_IN_MIX = 0.1
_BUSY = 64  # connections of the loads that are compared
_PAUSE = 0.2  # seconds between two loads

_Cell = tuple[str, str, int]  # system, operation, connections


class _System(Protocol):
    """One row of the tables."""

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[str]: ...

    def begin_round(self, number: int) -> None: ...

    def load(self, operation: str, connections: int, seconds: int) -> Outcome: ...

    def verify(self) -> None:
        """Raise BenchError if anything but the round's values is stored."""


class _HttpSystem:
    """A server behind an HTTP API, loaded by wrk."""

    operations: Sequence[str] = (_PUT, _GET, _STALE)

    def __init__(self, workspace: Workspace, api: Api, port: int) -> None:
        self.name = api.name
        self._workspace = workspace
        self._api = api
        self.port = port
        self._round = 0
        self._files: dict[str, str] = {}

    def begin_round(self, number: int) -> None:
        """Render the round's requests and put every key once."""
        self._round = number
        api = self._api
        keys = [_key(n) for n in range(_KEYS)]
        puts = [api.put(_key(n), self._value(n)) for n in range(_KEYS)]
        self._write(_PUT, [put.render() for put in puts])
        self._write(_GET, [api.get(key).render() for key in keys])
        self._write(_STALE, [api.stale(key).render() for key in keys])
        for put in puts:
            status, body = ask(self.port, put)
            if status not in {200, 201}:
                raise BenchError(f"{self.name} answered a put with {status}: {body[:200]!r}")

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        return wrk(self._workspace, self.port, self._files[operation], connections, seconds)

    def verify(self) -> None:
        for ask_for in (self._api.get, self._api.stale):
            for n in range(_KEYS):
                status, body = ask(self.port, ask_for(_key(n)))
                if status != 200 or self._api.value(body) != self._value(n):
                    raise BenchError(
                        f"{self.name} has not stored {_key(n)}: {status} {body[:200]!r}"
                    )

    def _value(self, n: int) -> str:
        return f"round-{self._round:03}-value-{n:09}"

    def _write(self, operation: str, requests: list[bytes]) -> None:
        path = self._workspace.path("requests")
        write_requests(path, requests)
        self._files[operation] = path


class _ConureSystem(_HttpSystem):
    """ConureDB, which also meets the loads that only it is asked to bear."""

    operations = (_PUT, _GET, _STALE, _MIX, _PIPELINED)

    def begin_round(self, number: int) -> None:
        super().begin_round(number)
        puts = [CONURE.put(_key(n), self._value(n)).render() for n in range(_KEYS)]
        gets = [CONURE.get(_key(n)).render() for n in range(_KEYS)]
        chance = random.Random(number)
        mix = [
            chance.choice(puts if n % 10 < 10 * _PUTS_IN_MIX else gets) for n in range(10 * _KEYS)
        ]
        chance.shuffle(mix)
        self._write(_MIX, mix)
        self._write(
            _PIPELINED, [b"".join(puts[n : n + _DEPTH]) for n in range(0, _KEYS - _DEPTH, _DEPTH)]
        )


class _RedisSystem:
    """redis, loaded by redis-benchmark. It has one kind of get: from its memory."""

    name = "redis, appendfsync always"
    operations = (_PUT, _GET)

    def __init__(self, workspace: Workspace, server: Redis) -> None:
        self._workspace = workspace
        self._server = server

    def begin_round(self, number: int) -> None:
        del number  # redis-benchmark chooses keys and values itself
        self.load(_PUT, _BUSY, 1)

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        command = "SET" if operation == _PUT else "GET"
        port = self._server.port
        return redis_benchmark(self._workspace, port, command, connections, seconds, _KEYS)

    def verify(self) -> None:
        stored = self._server.command("DBSIZE")
        length = self._server.command(f"STRLEN key:{0:012}")
        if stored != f":{_KEYS}" or length != ":25":
            raise BenchError(f"redis holds {stored} keys, one of them of {length} bytes")


class _Figures:
    """The outcomes of all rounds, by system, operation and number of connections."""

    def __init__(self) -> None:
        self._outcomes: dict[_Cell, list[Outcome]] = defaultdict(list)

    def add(self, cell: _Cell, outcome: Outcome) -> None:
        self._outcomes[cell].append(outcome)
        system, operation, connections = cell
        note(f"{system}, {operation}, {connections}: {kilo(outcome.rate)}/s, p99 {outcome.p99:.1f}")

    def __contains__(self, cell: _Cell) -> bool:
        return cell in self._outcomes

    def rates(self, *cell: *_Cell) -> list[float]:
        return [outcome.rate for outcome in self._outcomes[cell]]

    def p50(self, *cell: *_Cell) -> float:
        return median(outcome.p50 for outcome in self._outcomes[cell])

    def p99(self, *cell: *_Cell) -> float:
        return median(outcome.p99 for outcome in self._outcomes[cell])

    def show(self, *cell: *_Cell) -> str:
        if cell not in self._outcomes:
            return "-"
        return f"{kilo(median(self.rates(*cell)))} ({self.p50(*cell):.1f} / {self.p99(*cell):.1f})"

    def show_special(self, *cell: *_Cell) -> str:
        # wrk times a pipelined group as one request and corrects the times by single answers.
        return kilo(median(self.rates(*cell))) if _PIPELINED in cell else self.show(*cell)

    def ratio(self, operation: str, connections: int, other: str) -> Ratio:
        mine = self.rates(CONURE.name, operation, connections)
        return Ratio.of(mine, self.rates(other, operation, connections))


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure all systems that are there. Raises BenchError when wrk is missing."""
    if missing := wrk_missing():
        raise BenchError(missing)
    section = Section("HTTP, one node")
    section.text(
        "Latencies: wrk corrects its percentiles for coordinated omission and redis-benchmark "
        "doesn't, so redis's look better beside the others than they are."
    )
    figures = _Figures()
    with _started(workspace, section) as (systems, pids):
        for number in range(plan.rounds):
            turn = number % len(systems)
            order = systems[turn:] + systems[:turn]
            _measure_round(plan, order, number, figures)
        memory = {name: peak_memory(pid) for name, pid in pids.items()}
    names = [system.name for system in systems]
    _tabulate(section, plan, names, figures)
    section.table(
        "Peak resident memory",
        ["server", "MiB"],
        [[name, f"{size / (1 << 20):.0f}"] for name, size in memory.items()],
    )
    if CONURE.name in names:
        _judge(section, plan, figures)
    return section


@contextmanager
def _started(
    workspace: Workspace, section: Section
) -> Iterator[tuple[list[_System], dict[str, int]]]:
    """Start every server that is there; tell the section which are not."""
    systems: list[_System] = []
    servers: dict[str, Conure | Etcd | Redis] = {}
    versions = []
    for missing in filter(None, (conure_missing(), etcd_missing(), redis_missing())):
        section.text(f"Skipped: {missing}.")
        note(f"skipped: {missing}")
    if not conure_missing():
        conure = Conure(workspace)
        conure.start()
        systems.append(_ConureSystem(workspace, CONURE, conure.port))
        servers["ConureDB"] = conure
        versions.append(Conure.version())
    if not etcd_missing():
        etcd = Etcd(workspace)
        systems += [_HttpSystem(workspace, api, etcd.port) for api in (GATEWAY, V2)]
        servers["etcd"] = etcd
        versions.append(Etcd.version())
    if not redis_missing():
        redis = Redis(workspace)
        systems.append(_RedisSystem(workspace, redis))
        servers["redis"] = redis
        versions.append(Redis.version())
    section.text("Measured: " + ", ".join(versions) + ". Every put is synced before its answer.")
    yield systems, {name: server.pid for name, server in servers.items()}
    for server in servers.values():
        server.stop()


def _measure_round(plan: Plan, systems: list[_System], number: int, figures: _Figures) -> None:
    def load(system: _System, operation: str, connections: int, *, into: str = "") -> None:
        time.sleep(_PAUSE)
        outcome = system.load(operation, connections, plan.load_seconds)
        figures.add((system.name, into or operation, connections), outcome)

    note(f"round {number + 1} of {plan.rounds}")
    for system in systems:
        system.begin_round(number)
    for operation in (_PUT, _GET, _STALE):
        for connections in plan.connections:
            for system in systems:
                if operation in system.operations:
                    load(system, operation, connections)
    for system in systems:
        if isinstance(system, _ConureSystem):
            for operation in (_PUT, _GET, _STALE):
                load(system, operation, plan.many_connections)
            for operation in (_MIX, _PIPELINED):
                load(system, operation, _BUSY)
            with _idle_connections(system.port, plan.idle_connections):
                load(system, _PUT, _BUSY, into=_IDLE)
    for system in systems:
        system.verify()


@contextmanager
def _idle_connections(port: int, count: int) -> Iterator[None]:
    """Hold connections that have been answered once and then say nothing."""
    probe = CONURE.get(_key(0)).render()
    held = []
    try:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            held.append(connection)
            connection.sendall(probe)
            if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
                raise BenchError(f"idle connection {len(held)} was not answered with 200")
        yield
        for connection in held:
            connection.sendall(probe)
            if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
                raise BenchError("an idle connection was lost during the load")
    finally:
        for connection in held:
            connection.close()


def _tabulate(section: Section, plan: Plan, names: list[str], figures: _Figures) -> None:
    counts = plan.connections
    for operation in (_PUT, _GET, _STALE):
        section.table(
            f"{operation}: requests a second (median / p99 latency in ms) by connections",
            ["system", *map(str, counts)],
            [
                [name, *(figures.show(name, operation, count) for count in counts)]
                for name in names
                if (name, operation, counts[0]) in figures
            ],
        )
    if CONURE.name not in names:
        return
    section.table(
        "ConureDB: throughput as a multiple of the others' by connections",
        ["operation", "than", *map(str, counts)],
        [
            [operation, name, *(str(figures.ratio(operation, count, name)) for count in counts)]
            for operation in (_PUT, _GET, _STALE)
            for name in names
            if name != CONURE.name and (name, operation, counts[0]) in figures
        ],
    )
    special = [(operation, plan.many_connections) for operation in (_PUT, _GET, _STALE)]
    special += [(operation, _BUSY) for operation in (_MIX, _PIPELINED, _IDLE)]
    section.table(
        f"ConureDB under other loads ({plan.idle_connections} idle connections)",
        ["load", "connections", "requests a second (median / p99 latency in ms)"],
        [
            [operation, str(count), figures.show_special(CONURE.name, operation, count)]
            for operation, count in special
        ],
    )


def _judge(section: Section, plan: Plan, figures: _Figures) -> None:
    """Compare ConureDB's figures with the targets."""
    against = [
        (_PUT, GATEWAY.name, 4.0),
        (_PUT, V2.name, 2.0),
        (_PUT, _RedisSystem.name, 0.6),
        (_GET, GATEWAY.name, 5.0),
        (_GET, V2.name, 3.0),
        (_STALE, V2.name, 1.5),
    ]
    for operation, other, goal in against:
        if (other, operation, _BUSY) in figures:
            what = f"{operation} at {_BUSY} connections, than {other}"
            section.at_least(what, figures.ratio(operation, _BUSY, other), goal)
    ours = CONURE.name
    if (GATEWAY.name, _PUT, 1) in figures:
        mine, theirs = figures.p50(ours, _PUT, 1), figures.p50(GATEWAY.name, _PUT, 1)
        section.at_most(f"{_PUT} on 1 connection, median, than the gateway", mine, theirs, "ms")

    def keeps(what: str, rates: Callable[[str], list[float]], goal: float) -> None:
        for operation in (_PUT, _GET, _STALE):
            busy = figures.rates(ours, operation, _BUSY)
            section.at_least(f"{operation} {what}", Ratio.of(rates(operation), busy), goal)

    if (ours, _PUT, 256) in figures:
        keeps("at 256 than at 64", lambda operation: figures.rates(ours, operation, 256), 0.9)
    for count, limit in ((256, 25.0), (plan.many_connections, 80.0)):
        for operation in (_PUT, _GET, _STALE):
            if (ours, operation, count) in figures:
                p99 = figures.p99(ours, operation, count)
                section.at_most(f"{operation} at {count} connections, p99", p99, limit, "ms")
    puts, gets = figures.rates(ours, _PUT, _BUSY), figures.rates(ours, _GET, _BUSY)
    idle = Ratio.of(figures.rates(ours, _IDLE, _BUSY), puts)
    section.at_least(f"{_PUT} beside {plan.idle_connections} idle than without", idle, 0.95)
    expected = [
        1 / (_PUTS_IN_MIX / put + (1 - _PUTS_IN_MIX) / get)
        for put, get in zip(puts, gets, strict=True)
    ]
    mix = Ratio.of(figures.rates(ours, _MIX, _BUSY), expected)
    section.at_least(f"{_MIX} than the time-weighted mean of both", mix, 0.8)


def _key(n: int) -> str:
    return f"key-{n:06}"
