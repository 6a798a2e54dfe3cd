"""``python -m bench pairs WHAT OURS THEIRS``: one comparison, told as a ratio with its interval.

Of storage engines in process, each as in the part ``engines``::

    python -m bench pairs get_left lsm+log leveldb --records 1000000
    python -m bench pairs load lsm+store btree+store

Of servers, which are all up and hold the same records::

    python -m bench pairs put node:--engine=lsm node --records 1000000
    python -m bench pairs get node node@../before       # another checkout: what has a change cost?
    python -m bench pairs SET node redis --depth 16     # over RESP, by redis-benchmark

Over HTTP that is ``put`` and ``get``, over RESP ``GET``, ``SET``, ``MSET`` and ``MIX``. A node is
``node``, then ``@`` and a checkout, then ``:`` and flags with commas between, where wanted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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
from bench.loads import Outcome, RedisLoad, write_requests, wrk, wrk_missing
from bench.pairs import ENOUGH, Paired, of_medians
from bench.plan import FULL, LEAST_RECORDS
from bench.records import Keyspace, load_records, random_puts
from bench.report import kilo
from bench.resp_load import MIX_KEYS, fill, mixed
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import CONURE, Conure, Redis, redis_missing
from bench.turns import RunningEngine, in_turns, start_engines
from bench.workspace import BenchError, Workspace, note

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
_OVER_HTTP = ("put", "get")
_MIX = "MIX"
_OVER_RESP = ("GET", "SET", "MSET", _MIX)
_REQUESTS = 50_000  # that are rendered for wrk
_WRITES = 0.1  # of the mix
SETTLED = ("get", "miss", "range", "scan_keys", "scan_items")
"""What is asked of engines after all that they put off is done."""


class NodeSpec(NamedTuple):
    """A node as it is named on the command line."""

    checkout: str  # empty: this one
    flags: Sequence[str]


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
    """Read ``node[@CHECKOUT][:FLAG,…]``; None for anything else."""
    head, _, flags = text.partition(":")
    name, _, checkout = head.partition("@")
    if name != "node":
        return None
    return NodeSpec(checkout, flags.split(",") if flags else ())


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
    started = [
        _start(workspace, text, over_resp=over_resp) for text in (options.ours, options.theirs)
    ]
    bursts = [_burst(options, workspace, server) for server in started]
    # Names may be the same: a node beside another one of the same kind shows how sure one can be.
    contestants = [
        Contestant(name, burst, server.process)
        for name, burst, server in zip(("ours", "theirs"), bursts, started, strict=True)
    ]
    found = bursts_in_turns(contestants, options.pairs)
    for server in started:
        server.stop()
    return of_medians(rates(found["ours"]), rates(found["theirs"]))


def _start(workspace: Workspace, text: str, *, over_resp: bool) -> Conure | Redis:
    if text == "redis" and over_resp:
        return Redis(workspace)
    spec = node_spec(text)
    if spec is None:
        raise BenchError(f"{text} is no server that can be asked so: node…, or redis over RESP")
    node = Conure(workspace, flags=spec.flags, resp=over_resp, checkout=spec.checkout)
    node.start()
    return node


def _burst(
    options: argparse.Namespace, workspace: Workspace, server: Conure | Redis
) -> Callable[[], Outcome]:
    connections, seconds = options.connections, options.seconds
    if options.what in _OVER_RESP:
        port = server.resp_port if isinstance(server, Conure) else server.port
        fill(port)
        if options.what == _MIX:
            return partial(mixed, port, connections, options.depth, seconds, _WRITES)
        load = RedisLoad(workspace, port, options.what, connections, MIX_KEYS, options.depth)
        load.calibrate()
        return partial(load.run, seconds)
    rate = load_records(server.port, options.records)
    note(f"loaded {options.records:,} records, {kilo(rate)} a second")
    if options.what == "put":
        requests = random_puts(options.records, 1, _REQUESTS)
    else:
        chosen = Keyspace.sample(options.records, 1, _REQUESTS)
        requests = (CONURE.get(Keyspace.key(n)).render() for n in chosen)
    path = workspace.path("requests")
    write_requests(path, requests)
    return partial(wrk, workspace, server.port, path, connections, seconds)
