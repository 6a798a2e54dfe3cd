"""``python -m bench pairs WHAT OURS THEIRS``: one comparison, told as a ratio with its interval.

Of storage engines in process, each as in the part ``engines``::

    python -m bench pairs get_left lsm+log leveldb --records 1000000
    python -m bench pairs load lsm+store btree+store

Of servers, which are all up and hold the same records::

    python -m bench pairs put node:--engine=lsm node --records 1000000
    python -m bench pairs get node node@../before       # another checkout: what has a change cost?
    python -m bench pairs SET node redis --depth 16     # over RESP, by redis-benchmark
    python -m bench pairs GET follower leader           # of two clusters with three nodes each

Over HTTP that is ``put`` and ``get``, over RESP ``GET``, ``SET``, ``MSET`` and ``MIX``. Who is
asked is a single ``node``, or the ``leader`` or a ``follower`` of three; then come ``@`` and a
checkout, and ``:`` and flags with commas between, where wanted. A follower that is asked over HTTP
needs ``--follower-mode=forward``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.clusters import start_conure
from bench.engine_part import BURSTS, burst_of, compare
from bench.engine_process import Answer
from bench.engines import (
    APPLIED,
    BTREE,
    LEVELDB,
    LMDB,
    LSM,
    ROCKSDB,
    SQLITE,
    logged,
    missing,
)
from bench.footprint import processor_seconds
from bench.loads import Outcome, RedisLoad, write_requests, wrk, wrk_missing
from bench.pairs import ENOUGH, Paired, of_medians
from bench.plan import FULL, LEAST_RECORDS
from bench.records import Keyspace, load_records, random_puts
from bench.report import kilo
from bench.resp_load import MIX_KEYS, fill, mixed
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import CONURE, Conure, Redis, redis_missing
from bench.turns import RunningEngine, in_turns, start_engines
from bench.workspace import BenchError, Process, Workspace, note

__all__ = ["SETTLED", "NodeSpec", "main", "node_spec"]

_ENGINES = {
    "btree": BTREE,
    "lsm": LSM,
    "btree+log": logged(BTREE),
    "lsm+log": logged(LSM),
    "btree+store": APPLIED[BTREE],
    "lsm+store": APPLIED[LSM],
    "sqlite3": SQLITE,
    "lmdb": LMDB,
    "leveldb": LEVELDB,
    "rocksdb": ROCKSDB,
}
_ROLES = _NODE, _LEADER, _FOLLOWER = ("node", "leader", "follower")
_OVER_HTTP = ("put", "get")
_MIX = "MIX"
_OVER_RESP = ("GET", "SET", "MSET", _MIX)
_REQUESTS = 50_000  # that are rendered for wrk
_WRITES = 0.1  # of the mix
SETTLED = ("get", "miss", "range", "scan_keys", "scan_items")
"""What is asked of engines after all that they put off is done."""


class NodeSpec(NamedTuple):
    """Who is asked, as it is named on the command line."""

    role: str  # one of _ROLES
    checkout: str  # empty: this one
    flags: Sequence[str]


class _Asked(NamedTuple):
    """Who is asked over HTTP or RESP, and what belongs to it."""

    port: int
    leader: int  # process id
    stop: Callable[[], None]
    process: Process | None  # that may stand still


def main(arguments: Sequence[str]) -> int:
    """Carry out the command; return the exit status."""
    options = _parser().parse_args(arguments)
    in_process = {options.ours, options.theirs} <= _ENGINES.keys()
    known = BURSTS.keys() if in_process else (*_OVER_HTTP, *_OVER_RESP)
    if options.what not in known:
        raise BenchError(f"{options.what} is nothing to compare them by; there are {sorted(known)}")
    if options.records < LEAST_RECORDS or options.pairs < 1:
        raise BenchError(f"at least {LEAST_RECORDS:,} records and one pair are needed")
    with Workspace() as workspace:
        found = _compare_engines(options, workspace) if in_process else _servers(options, workspace)
    enough = "" if found.pairs >= ENOUGH else f"; a judgement takes {ENOUGH}"
    print(f"{options.what}: {options.ours} is {found} as fast as {options.theirs}{enough}")
    return 0


def node_spec(text: str) -> NodeSpec | None:
    """Read ``node[@CHECKOUT][:FLAG,…]`` and the like; None for anything else."""
    head, _, flags = text.partition(":")
    role, _, checkout = head.partition("@")
    if role not in _ROLES:
        return None
    return NodeSpec(role, checkout, flags.split(",") if flags else ())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="WHAT")
    parser.add_argument("ours", metavar="OURS")
    parser.add_argument("theirs", metavar="THEIRS")
    parser.add_argument("--records", type=int, default=100_000, metavar="N")
    parser.add_argument("--pairs", type=int, default=ENOUGH, metavar="N")
    parser.add_argument("--seconds", type=int, default=1, metavar="N", help="of a burst of servers")
    parser.add_argument("--connections", type=int, default=64, metavar="N")
    parser.add_argument("--depth", type=int, default=1, metavar="N", help="commands of a pipeline")
    return parser


# -- engines -------------------------------------------------------------------------------------


def _compare_engines(options: argparse.Namespace, workspace: Workspace) -> Paired:
    names = [_ENGINES[options.ours], _ENGINES[options.theirs]]
    if why := next(filter(None, map(missing, names)), ""):
        raise BenchError(why)
    if names[0] == names[1]:
        raise BenchError("an engine can't be compared with itself: both would have one directory")
    plan = FULL.with_pairs(options.pairs)
    engines, _ = start_engines(workspace, names, options.records)

    def bursts(what: str) -> dict[str, list[Answer]]:
        note(what)
        return in_turns(engines, options.pairs, burst_of(what, plan, options.records))

    found = bursts("load")
    if options.what in SETTLED:
        for engine in engines:
            engine.call("settle")
    if options.what != "load":
        found = bursts(options.what)
    _close(engines)
    return compare(options.what, *(found[name] for name in names))


def _close(engines: Sequence[RunningEngine]) -> None:
    for engine in engines:
        engine.call("verify")
        engine.call("close")
        engine.end()


# -- servers -------------------------------------------------------------------------------------


def _servers(options: argparse.Namespace, workspace: Workspace) -> Paired:
    over_resp = options.what in _OVER_RESP
    if why := redis_missing() if over_resp else wrk_missing():
        raise BenchError(why)
    words = {"ours": options.ours, "theirs": options.theirs}
    # Both may be the same: then the interval shows how sure one can be.
    asked = {name: _start(workspace, text, over_resp=over_resp) for name, text in words.items()}
    costs: dict[str, list[float]] = {name: [] for name in asked}
    contestants = [
        Contestant(
            name, _costed(_burst(options, workspace, each.port), each, costs[name]), each.process
        )
        for name, each in asked.items()
    ]
    found = bursts_in_turns(contestants, options.pairs)
    for name, each in asked.items():
        each.stop()
        cost = 1e6 * median(costs[name])
        print(f"{options.what}: {words[name]}: {cost:.1f} µs of its leader's processor time each")
    return of_medians(rates(found["ours"]), rates(found["theirs"]))


def _start(workspace: Workspace, text: str, *, over_resp: bool) -> _Asked:
    if text == "redis" and over_resp:
        redis = Redis(workspace)
        return _Asked(redis.port, redis.pid, redis.stop, redis.process)
    spec = node_spec(text)
    if spec is None:
        raise BenchError(f"{text} is no server that can be asked so: node…, or redis over RESP")
    role, checkout, flags = spec
    if role == _NODE:
        node = Conure(workspace, flags=flags, resp=over_resp, checkout=checkout)
        node.start()
        port = node.resp_port if over_resp else node.port
        return _Asked(port, node.pid, node.stop, node.process)
    cluster = start_conure(workspace, flags=flags, resp=over_resp, checkout=checkout)
    leader = cluster.leader()
    member = leader if role == _LEADER else cluster.follower()
    port = member.resp_port if over_resp else member.port
    return _Asked(port, leader.pid, cluster.stop, None)


def _costed(
    burst: Callable[[], Outcome], asked: _Asked, costs: list[float]
) -> Callable[[], Outcome]:
    """Note the processor seconds that a request of each burst costs the leader."""

    def costed() -> Outcome:
        spent, began = processor_seconds(asked.leader), time.perf_counter()
        outcome = burst()
        share = (processor_seconds(asked.leader) - spent) / (time.perf_counter() - began)
        costs.append(share / outcome.rate)
        return outcome

    return costed


def _burst(options: argparse.Namespace, workspace: Workspace, port: int) -> Callable[[], Outcome]:
    connections, seconds = options.connections, options.seconds
    if options.what in _OVER_RESP:
        fill(port)
        if options.what == _MIX:
            return partial(mixed, port, connections, options.depth, seconds, _WRITES)
        load = RedisLoad(workspace, port, options.what, connections, MIX_KEYS, options.depth)
        load.calibrate()
        return partial(load.run, seconds)
    rate = load_records(port, options.records)
    note(f"loaded {options.records:,} records, {kilo(rate)} a second")
    if options.what == "put":
        requests = random_puts(options.records, 1, _REQUESTS)
    else:
        chosen = Keyspace.sample(options.records, 1, _REQUESTS)
        requests = (CONURE.get(Keyspace.key(n)).render() for n in chosen)
    path = workspace.path("requests")
    write_requests(path, requests)
    return partial(wrk, workspace, port, path, connections, seconds)
