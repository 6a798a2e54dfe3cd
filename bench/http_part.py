"""Throughput and latency over HTTP: one node of ConureDB beside etcd and redis.

All servers run during the whole part, and those whose turn it isn't have nothing to do. What they
are asked stands in ``systems.py``.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from bench.loads import Outcome, redis_benchmark, wrk_missing
from bench.plan import Plan
from bench.report import Ratio, Section, kilo
from bench.servers import (
    CONURE,
    GATEWAY,
    V2,
    Conure,
    Etcd,
    Redis,
    conure_missing,
    etcd_missing,
    redis_missing,
)
from bench.systems import (
    BUSY,
    GET,
    KEYS,
    OPERATIONS,
    PUT,
    STALE,
    Figures,
    HttpSystem,
    System,
    key,
)
from bench.workspace import BenchError, Workspace, note, peak_memory

__all__ = ["run"]

_MIX, _PIPELINED, _IDLE = "10 % put, 90 % get", "put, pipelined 16 deep", "put beside idle"
_DEPTH = 16
_PUTS_IN_MIX = 0.1


class _ConureSystem(HttpSystem):
    """ConureDB, which also meets the loads that only it is asked to bear."""

    operations = (*OPERATIONS, _MIX, _PIPELINED)

    def begin_round(self, number: int) -> None:
        super().begin_round(number)
        puts = [CONURE.put(key(n), self.value(n)).render() for n in range(KEYS)]
        gets = [CONURE.get(key(n)).render() for n in range(KEYS)]
        chance = random.Random(number)
        mix = [
            chance.choice(puts if n % 10 < 10 * _PUTS_IN_MIX else gets) for n in range(10 * KEYS)
        ]
        chance.shuffle(mix)
        self.write(_MIX, mix)
        self.write(
            _PIPELINED, [b"".join(puts[n : n + _DEPTH]) for n in range(0, KEYS - _DEPTH, _DEPTH)]
        )


class _RedisSystem:
    """redis, loaded by redis-benchmark. It has one kind of get: from its memory."""

    name = "redis, appendfsync always"
    operations = (PUT, GET)

    def __init__(self, workspace: Workspace, server: Redis) -> None:
        self._workspace = workspace
        self._server = server

    def begin_round(self, number: int) -> None:
        del number  # redis-benchmark chooses keys and values itself
        self.load(PUT, BUSY, 1)

    def load(self, operation: str, connections: int, seconds: int) -> Outcome:
        command = "SET" if operation == PUT else "GET"
        port = self._server.port
        return redis_benchmark(self._workspace, port, command, connections, seconds, KEYS)

    def verify(self) -> None:
        stored = self._server.command("DBSIZE")
        length = self._server.command(f"STRLEN key:{0:012}")
        if stored != f":{KEYS}" or length != ":25":
            raise BenchError(f"redis holds {stored} keys, one of them of {length} bytes")


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure all systems that are there. Raises BenchError when wrk is missing."""
    if missing := wrk_missing():
        raise BenchError(missing)
    section = Section("HTTP, one node")
    section.text(
        "Latencies: wrk corrects its percentiles for coordinated omission and redis-benchmark "
        "doesn't, so redis's look better beside the others than they are."
    )
    figures = Figures()
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
) -> Iterator[tuple[list[System], dict[str, int]]]:
    """Start every server that is there; tell the section which are not."""
    systems: list[System] = []
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
        etcd.start()
        systems += [HttpSystem(workspace, api, etcd.port) for api in (GATEWAY, V2)]
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


def _measure_round(plan: Plan, systems: list[System], number: int, figures: Figures) -> None:
    note(f"round {number + 1} of {plan.rounds}")
    seconds = plan.load_seconds
    for system in systems:
        system.begin_round(number)
    figures.compare(systems, plan.connections, seconds)
    for system in systems:
        if isinstance(system, _ConureSystem):
            for operation in OPERATIONS:
                figures.load(system, operation, plan.many_connections, seconds)
            for operation in (_MIX, _PIPELINED):
                figures.load(system, operation, BUSY, seconds)
            with _idle_connections(system.port, plan.idle_connections):
                figures.load(system, PUT, BUSY, seconds, into=_IDLE)
    for system in systems:
        system.verify()


@contextmanager
def _idle_connections(port: int, count: int) -> Iterator[None]:
    """Hold connections that have been answered once and then say nothing."""
    probe = CONURE.get(key(0)).render()
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


def _tabulate(section: Section, plan: Plan, names: list[str], figures: Figures) -> None:
    figures.tabulate(section, names, plan.connections)
    if CONURE.name not in names:
        return
    special = [(operation, plan.many_connections) for operation in OPERATIONS]
    special += [(operation, BUSY) for operation in (_MIX, _PIPELINED, _IDLE)]
    section.table(
        f"ConureDB under other loads ({plan.idle_connections} idle connections)",
        ["load", "connections", "requests a second (median / p99 latency in ms)"],
        [[operation, str(count), _show(figures, operation, count)] for operation, count in special],
    )


def _show(figures: Figures, operation: str, count: int) -> str:
    if operation == _PIPELINED:  # wrk times such a group as one request: its times mean nothing
        return kilo(median(figures.rates(CONURE.name, operation, count)))
    return figures.show(CONURE.name, operation, count)


def _judge(section: Section, plan: Plan, figures: Figures) -> None:
    """Compare ConureDB's figures with the targets."""
    against = [
        (PUT, GATEWAY.name, 4.0),
        (PUT, V2.name, 2.0),
        (PUT, _RedisSystem.name, 0.6),
        (GET, GATEWAY.name, 5.0),
        (GET, V2.name, 3.0),
        (STALE, V2.name, 1.5),
    ]
    for operation, other, goal in against:
        if (other, operation, BUSY) in figures:
            what = f"{operation} at {BUSY} connections, than {other}"
            section.at_least(what, figures.ratio(operation, BUSY, other), goal)
    ours = CONURE.name
    if (GATEWAY.name, PUT, 1) in figures:
        mine, theirs = figures.p50(ours, PUT, 1), figures.p50(GATEWAY.name, PUT, 1)
        section.at_most(f"{PUT} on 1 connection, median, than the gateway", mine, theirs, "ms")

    def keeps(what: str, rates: Callable[[str], list[float]], goal: float) -> None:
        for operation in OPERATIONS:
            busy = figures.rates(ours, operation, BUSY)
            section.at_least(f"{operation} {what}", Ratio.of(rates(operation), busy), goal)

    if (ours, PUT, 256) in figures:
        keeps("at 256 than at 64", lambda operation: figures.rates(ours, operation, 256), 0.9)
    for count, limit in ((256, 25.0), (plan.many_connections, 80.0)):
        for operation in OPERATIONS:
            if (ours, operation, count) in figures:
                p99 = figures.p99(ours, operation, count)
                section.at_most(f"{operation} at {count} connections, p99", p99, limit, "ms")
    puts, gets = figures.rates(ours, PUT, BUSY), figures.rates(ours, GET, BUSY)
    idle = Ratio.of(figures.rates(ours, _IDLE, BUSY), puts)
    section.at_least(f"{PUT} beside {plan.idle_connections} idle than without", idle, 0.95)
    expected = [
        1 / (_PUTS_IN_MIX / put + (1 - _PUTS_IN_MIX) / get)
        for put, get in zip(puts, gets, strict=True)
    ]
    mix = Ratio.of(figures.rates(ours, _MIX, BUSY), expected)
    section.at_least(f"{_MIX} than the time-weighted mean of both", mix, 0.8)
