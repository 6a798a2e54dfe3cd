"""RESP: ConureDB, one node and three, beside redis with appendfsync always, and beside HTTP.

redis-benchmark sends GET, SET and MSET of 10 keys among 100,000; wrk gets and puts the same keys of
the same node over HTTP, in random order, too. All servers are up and take turns at bursts of a
second, so each ratio is one of pairs. The mix of gets and sets comes from ``resp_load.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

from bench.clusters import Cluster, start_conure
from bench.loads import Outcome, RedisLoad, write_requests, wrk, wrk_missing
from bench.pairs import Paired, of_medians
from bench.plan import Plan
from bench.report import Section, kilo
from bench.resp_load import MIX_KEYS, fill, key_of, mixed
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import CONURE, Conure, Redis, redis_missing, resp_missing
from bench.workspace import BenchError, Workspace, note

__all__ = ["run"]

_COMMANDS = ("GET", "SET", "MSET")
_DEPTHS = (1, 16)
_BUSY = 64
_SECONDS = 1  # of a burst
_WRITES = 0.1  # of the mix
_MIX = "10 % SET, 90 % GET"
_MSET_KEYS = 10
_ONE, _THREE, _REDIS, _HTTP = "ConureDB", "ConureDB, three nodes", "redis", "ConureDB, HTTP"
_OVER_HTTP = ("GET", "SET")
_VALUE_BYTES = 25

_Load = tuple[str, int, int]
"""Command, connections, depth."""

_GOALS = (  # load, whose, than which, multiple
    (("GET", _BUSY, 1), _ONE, _HTTP, 1.0),
    (("SET", _BUSY, 1), _ONE, _HTTP, 1.0),
    (("GET", _BUSY, 1), _ONE, _REDIS, 0.9),
    (("SET", _BUSY, 1), _ONE, _REDIS, 0.65),
    (("GET", _BUSY, 16), _ONE, _REDIS, 0.4),
    (("SET", _BUSY, 16), _ONE, _REDIS, 0.33),
)
_RATES = (  # load, whose, commands a second
    (("GET", _BUSY, 16), _ONE, 350_000),
    (("SET", _BUSY, 16), _ONE, 140_000),
    (("MSET", _BUSY, 1), _ONE, 300_000 // _MSET_KEYS),
    (("SET", _BUSY, 16), _THREE, 60_000),
)
_MOST_LATENCY = 1.2  # times that of redis, on one connection


class _Http:
    """wrk's loads of the keys that redis-benchmark takes, at a node of ours."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        self._workspace = workspace
        self._port = port
        chance = random.Random(port)
        keys = [key_of(chance.randrange(MIX_KEYS)).decode() for _ in range(MIX_KEYS)]
        self._files = {name: workspace.path("requests") for name in _OVER_HTTP}
        write_requests(self._files["GET"], [CONURE.get(key).render() for key in keys])
        value = "v" * _VALUE_BYTES
        write_requests(self._files["SET"], [CONURE.put(key, value).render() for key in keys])

    def load(self, command: str, connections: int, seconds: int) -> Outcome:
        """Send requests for so long."""
        return wrk(self._workspace, self._port, self._files[command], connections, seconds)


class _Figures:
    """The bursts by load and name."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[_Load, str], list[Outcome]] = {}

    def add(self, load: _Load, found: dict[str, list[Outcome]]) -> None:
        self._outcomes.update({(load, name): outcomes for name, outcomes in found.items()})

    def __contains__(self, cell: tuple[_Load, str]) -> bool:
        return cell in self._outcomes

    def rate(self, load: _Load, name: str) -> float:
        return median(rates(self._outcomes[load, name]))

    def ratio(self, load: _Load, ours: str, theirs: str) -> Paired:
        mine, others = self._outcomes[load, ours], self._outcomes[load, theirs]
        return of_medians(rates(mine), rates(others))

    def show(self, load: _Load, name: str) -> str:
        if (load, name) not in self:
            return "-"
        outcomes = self._outcomes[load, name]
        p50, p99 = (median(getattr(each, q) for each in outcomes) for q in ("p50", "p99"))
        return f"{kilo(self.rate(load, name))} ({p50:.1f} / {p99:.1f})"


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure all that is there. Raises BenchError when wrk or redis-benchmark is missing."""
    if missing := wrk_missing() or redis_missing():
        raise BenchError(missing)
    section = Section("RESP, one node and three")
    figures = _Figures()
    loads = [
        (command, connections, depth)
        for command in (*_COMMANDS, _MIX)
        for connections in plan.resp_connections
        for depth in _DEPTHS
    ]
    with _started(workspace, section) as bursts:
        for load in loads:
            contestants = list(bursts(load))
            note(f"{load[0]}, connections: {load[1]}, depth: {load[2]}")
            figures.add(load, bursts_in_turns(contestants, plan.pairs))
    for command in (*_COMMANDS, _MIX):
        mine = [load for load in loads if load[0] == command]
        section.table(
            f"{command}: commands a second (median / p99 latency in ms)",
            ["system", *(f"{count}, {depth} deep" for _, count, depth in mine)],
            [
                [name, *(figures.show(load, name) for load in mine)]
                for name in (_ONE, _THREE, _REDIS, _HTTP)
                if any((load, name) in figures for load in mine)
            ],
        )
    _tabulate_ratios(section, loads, figures)
    _judge(section, figures)
    return section


@contextmanager
def _started(
    workspace: Workspace, section: Section
) -> Iterator[Callable[[_Load], Iterator[Contestant]]]:
    """Start every server that is there; yield what tells the contestants of a load."""
    redis = Redis(workspace)
    ports: dict[str, Callable[[], int]] = {_REDIS: lambda: redis.port}
    versions = [Redis.version()]
    cluster: Cluster[Conure] | None = None
    node: Conure | None = None
    http: _Http | None = None
    if why := resp_missing():
        section.text(f"Skipped: {why}.")
        note(f"skipped: {why}")
    else:
        node = Conure(workspace, resp=True)
        node.start()
        ours, three = node, start_conure(workspace, resp=True)
        cluster = three
        ports = {
            _ONE: lambda: ours.resp_port,
            _THREE: lambda: three.leader().resp_port,
            **ports,
        }
        versions.insert(0, Conure.version())
        http = _Http(workspace, node.port)
    for port in ports.values():
        fill(port())
    section.text(
        "Measured: "
        + ", ".join(versions)
        + f". Every write is synced before its answer. {MIX_KEYS:,} keys, values of 25 bytes; MSET "
        f"sets {_MSET_KEYS} keys. HTTP is wrk with the same keys on the same node: another client, "
        "which costs less. Latencies of the mix are those of all commands sent together."
    )

    def contestants(load: _Load) -> Iterator[Contestant]:
        command, connections, depth = load
        for name, port in ports.items():
            if command == _MIX:
                burst = partial(mixed, port(), connections, depth, _SECONDS, _WRITES)
            else:
                sent = RedisLoad(workspace, port(), command, connections, MIX_KEYS, depth)
                sent.calibrate()
                burst = partial(sent.run, _SECONDS)
            yield Contestant(name, burst)
        if http is not None and command in _OVER_HTTP and depth == 1:
            yield Contestant(_HTTP, partial(http.load, command, connections, _SECONDS))

    yield contestants
    if node is not None:
        node.stop()
    if cluster is not None:
        cluster.stop()
    redis.stop()


def _tabulate_ratios(section: Section, loads: Sequence[_Load], figures: _Figures) -> None:
    rows = [
        [command, str(connections), str(depth), other, str(figures.ratio(load, _ONE, other))]
        for load in loads
        for other in (_REDIS, _HTTP)
        if (load, _ONE) in figures and (load, other) in figures
        for command, connections, depth in (load,)
    ]
    if rows:
        section.table(
            "ConureDB, one node: throughput as a multiple",
            ["command", "connections", "depth", "than", "ratio"],
            rows,
        )


def _judge(section: Section, figures: _Figures) -> None:
    for load, ours, theirs, goal in _GOALS:
        if (load, ours) in figures:
            section.reaches(_label(load, ours, theirs), figures.ratio(load, ours, theirs), goal)
    for load, ours, least in _RATES:
        if (load, ours) in figures:
            rate = figures.rate(load, ours)
            found = f"{kilo(rate)} a second"
            section.target(
                _label(load, ours), f">= {kilo(least)} a second", found, met=rate >= least
            )
    for command in ("GET", "SET"):
        load = command, 1, 1
        if (load, _ONE) in figures:  # on one connection a rate is one over the latency
            latency = figures.ratio(load, _REDIS, _ONE)
            section.stays_within(f"{_label(load, _ONE, _REDIS)}: latency", latency, _MOST_LATENCY)


def _label(load: _Load, ours: str, theirs: str = "") -> str:
    command, connections, depth = load
    label = f"{ours}: {command}, connections: {connections}, {depth} deep"
    return f"{label}, than {theirs}" if theirs else label
