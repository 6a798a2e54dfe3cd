"""What goes beyond put and get: range reads, batches, conditional writes and watches, on one node.

Range reads are measured beside etcd's JSON gateway: 100 records a request of 10,000 that share a
prefix, 25-byte values. Of batches the time from the first byte to the answer counts. A watch's
delay is the time from a put's answer, which is about its commit, to the event at the watcher: both
are taken in this process, which reads all watchers' sockets itself.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from bench.loads import Outcome, write_requests, wrk, wrk_missing
from bench.plan import Plan
from bench.report import Ratio, Section, kilo, quantile
from bench.servers import (
    CONURE,
    GATEWAY,
    Conure,
    Etcd,
    Request,
    ask,
    conure_missing,
    etcd_missing,
)
from bench.workspace import BenchError, Workspace, note

__all__ = ["run"]

_KEYS = 10_000
_RANGE = 100
_COUNTS = (16, 64)  # connections
_LINES = 5_000  # of a batch
_BATCHES = 20
_WATCHERS, _CROWD = 100, 5_000
_PUTS, _PACE = 200, 0.02  # how many are watched, and the seconds between them
_QUIET = 5.0  # seconds after which an event that has not come is missed


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure ConureDB, and etcd where both can be asked the same."""
    if missing := wrk_missing() or conure_missing():
        raise BenchError(missing)
    section = Section("Ranges, batches, conditions and watches, one node")
    conure = Conure(workspace)
    conure.start()
    etcd = None
    if missing := etcd_missing():
        section.text(f"Skipped: {missing}.")
    else:
        etcd = Etcd(workspace)
        etcd.start()
    try:
        loaded = _load(conure.port)
        _ranges(plan, workspace, section, conure, etcd)
        _batches(section, loaded)
        _writes(plan, workspace, section, conure)
        _watches(section, conure.port)
    finally:
        conure.stop()
        if etcd is not None:
            etcd.stop()
    return section


# -- ranges and batches --------------------------------------------------------------------------


def _load(port: int) -> list[float]:
    """Store batches over one connection, and return how many records a second each one made."""
    rates = []
    for batch in range(_BATCHES):
        first = batch * _LINES
        lines = [
            json.dumps({"key": f"load-{n:08}", "value": f"value-{n:019}"})
            for n in range(first, first + _LINES)
        ]
        request = Request("POST", "/kv/batch", "\n".join(lines).encode(), "application/x-ndjson")
        started = time.perf_counter()
        status, body = ask(port, request)
        rates.append(_LINES / (time.perf_counter() - started))
        if status != 200 or json.loads(body)["written"] != _LINES:
            raise BenchError(f"a batch was answered with {status}: {body[:200]!r}")
    return rates


def _batches(section: Section, rates: Sequence[float]) -> None:
    goal = 100_000
    section.target(
        f"batches of {_LINES:,} records over one connection, records a second",
        f">= {kilo(goal)}",
        f"{kilo(median(rates))} ({kilo(min(rates))} - {kilo(max(rates))})",
        met=median(rates) >= goal,
    )


def _ranges(
    plan: Plan, workspace: Workspace, section: Section, conure: Conure, etcd: Etcd | None
) -> None:
    starts = [f"range-{n:06}" for n in range(0, _KEYS - _RANGE, 37)]
    ours = [Request("GET", f"/kv?from={start}&to=range-~&limit={_RANGE}") for start in starts]
    theirs = [GATEWAY.get(start) for start in starts]
    theirs = [_ranged(request) for request in theirs]
    loads = [("ConureDB", conure.port, ours)]
    for n in range(_KEYS):
        _store(conure.port, CONURE.put(f"range-{n:06}", f"value-{n:019}"))
        if etcd is not None:
            _store(etcd.port, GATEWAY.put(f"range-{n:06}", f"value-{n:019}"))
    if etcd is not None:
        loads.append((GATEWAY.name, etcd.port, theirs))
    for name, port, requests in loads:
        status, body = ask(port, requests[0])
        found = json.loads(body)
        if status != 200 or len(found.get("items") or found.get("kvs") or ()) != _RANGE:
            raise BenchError(f"{name} answered a range with {status}: {body[:200]!r}")
    outcomes: dict[tuple[str, int], list[Outcome]] = {}
    for number in range(plan.rounds):
        for count in _COUNTS:
            for name, port, requests in loads[:: 1 if number % 2 else -1]:
                path = workspace.path("ranges")
                write_requests(path, [request.render() for request in requests])
                outcome = wrk(workspace, port, path, count, plan.load_seconds)
                outcomes.setdefault((name, count), []).append(outcome)
                note(f"{name}, range of {_RANGE}, {count}: {kilo(outcome.rate)}/s")
    section.table(
        f"Ranges of {_RANGE} records: requests a second (median / p99 latency in ms)",
        ["system", *map(str, _COUNTS)],
        [[name, *(_shown(outcomes[name, count]) for count in _COUNTS)] for name, _, _ in loads],
    )
    if etcd is not None:
        for count in _COUNTS:
            mine, other = (
                [outcome.rate for outcome in outcomes[name, count]] for name, _, _ in loads
            )
            section.at_least(f"ranges at {count}, than the gateway", Ratio.of(mine, other), 1.0)


def _ranged(request: Request) -> Request:
    """Return the gateway's get as a request for the keys from there on."""
    body = json.loads(request.body)
    body |= {"range_end": "cmFuZ2Utfg==", "limit": _RANGE}  # up to range-~
    return Request("POST", "/v3/kv/range", json.dumps(body).encode(), "application/json")


def _store(port: int, request: Request) -> None:
    status, body = ask(port, request)
    if status not in {200, 201}:
        raise BenchError(f"a put was answered with {status}: {body[:200]!r}")


def _shown(outcomes: Sequence[Outcome]) -> str:
    rate, p50, p99 = (
        median(getattr(outcome, name) for outcome in outcomes) for name in ("rate", "p50", "p99")
    )
    return f"{kilo(rate)} ({p50:.1f} / {p99:.1f})"


# -- writes --------------------------------------------------------------------------------------


def _writes(plan: Plan, workspace: Workspace, section: Section, conure: Conure) -> None:
    chance = random.Random(1)
    keys = [f"key-{chance.randrange(1000):06}" for _ in range(1000)]
    value = "value-of-twenty-five-bytes"[:25]
    kinds = {
        "put": [CONURE.put(key, value) for key in keys],
        "put with ttl": [
            Request("PUT", f"/kv?key=ttl-{key}&ttl=1h", value.encode()) for key in keys
        ],
        "put if it exists": [
            Request("POST", "/txn", _guarded(key, value), "application/json") for key in keys
        ],
        "increment": [Request("POST", f"/kv/incr?key=n-{key}") for key in keys],
    }
    rates: dict[str, list[Outcome]] = {}
    for number in range(plan.rounds):
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            path = workspace.path("writes")
            write_requests(path, [request.render() for request in kinds[kind]])
            outcome = wrk(workspace, conure.port, path, 64, plan.load_seconds)
            rates.setdefault(kind, []).append(outcome)
            note(f"{kind}: {kilo(outcome.rate)}/s")
    section.table(
        "Writes at 64 connections: requests a second (median / p99 latency in ms)",
        ["write", "ConureDB"],
        [[kind, _shown(rates[kind])] for kind in kinds],
    )


def _guarded(key: str, value: str) -> bytes:
    return json.dumps(
        {
            "compare": [{"key": key, "exists": True}],
            "success": [{"put": {"key": key, "value": value}}],
        }
    ).encode()


# -- watches -------------------------------------------------------------------------------------


def _watches(section: Section, port: int) -> None:
    alone, _ = _watched_puts(port, 0)
    few, delays = _watched_puts(port, _WATCHERS)
    many, crowd = _watched_puts(port, _CROWD)
    rows = [["none", _times(alone), "-"]]
    rows += [
        [f"{count:,}", _times(puts), _times(found)]
        for count, puts, found in ((_WATCHERS, few, delays), (_CROWD, many, crowd))
    ]
    section.table(
        f"Puts of one key, {1 / _PACE:.0f} a second, beside watchers of it: median / p99 in ms",
        ["watchers", "put", "event, from the put's answer"],
        rows,
    )
    p99 = quantile(delays, 0.99) * 1000
    section.at_most(f"event at {_WATCHERS} watchers, p99", p99, 50.0, "ms")


def _times(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1000:.2f} / {quantile(seconds, 0.99) * 1000:.2f}"


def _watched_puts(port: int, watchers: int) -> tuple[list[float], list[float]]:
    """Return the times of puts at a steady pace, and of their events at all watchers."""
    note(f"puts beside {watchers} watchers")
    puts: list[float] = []
    delays: list[float] = []
    with _watching(port, watchers) as selector, _connected(port) as writer:
        for n in range(_PUTS):
            due = time.perf_counter() + _PACE
            value = f"w{watchers}-{n:06}"
            started = time.perf_counter()
            writer.sendall(CONURE.put("watched", value).render())
            if not writer.recv(65536).startswith(b"HTTP/1.1 200"):
                raise BenchError("a watched put was not answered with 200")
            answered = time.perf_counter()
            puts.append(answered - started)
            delays += _events(selector, value.encode(), watchers, answered)
            time.sleep(max(0.0, due - time.perf_counter()))
    return puts, delays


def _events(
    selector: selectors.BaseSelector, value: bytes, watchers: int, since: float
) -> Iterator[float]:
    """Yield how long after a put's answer its event came to each watcher."""
    missing = watchers
    while missing:
        ready = selector.select(_QUIET)
        if not ready:
            raise BenchError(f"{missing} of {watchers} watchers have missed an event")
        for key, _ in ready:
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
            if not data:
                raise BenchError("a watch has ended")
            if value in data:
                missing -= 1
                yield max(0.0, time.perf_counter() - since)


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


@contextmanager
def _watching(port: int, count: int) -> Iterator[selectors.BaseSelector]:
    """Hold watches of one key that have all begun."""
    request = Request("GET", "/watch?key=watched").render()
    watches = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(count):
                watch = socket.create_connection(("127.0.0.1", port), timeout=10)
                watches.append(watch)
                watch.sendall(request)
            for watch in watches:
                data = b""
                while b"event: progress" not in data:
                    data += watch.recv(65536)
                selector.register(watch, selectors.EVENT_READ)
            yield selector
        finally:
            for watch in watches:
                watch.close()
