"""What locked doors cost: TLS for clients, handshakes, proofs between nodes, all of it left off.

=================== =============================================================================
left off            a node and three of this checkout beside those of another (``--before``)
TLS                 kept-alive connections by TLS beside plain ones, of ConureDB, etcd and redis
handshakes          connections a second that do nothing but shake hands, by ``openssl s_time``
newcomers           the delays of clients while others connect by TLS, 200 a second
between nodes       three nodes whose peers prove nothing, a secret, certificates
=================== =============================================================================

All servers of one comparison are up and take turns at bursts, so each ratio is one of pairs. wrk
and redis-benchmark encrypt on the same two cores: what a client pays is in these figures, and is
the same for every server.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from statistics import median

from bench.clusters import Cluster, start_conure
from bench.keys import Keys, keys_missing, make_keys
from bench.loads import Outcome, RedisLoad, wrk_missing
from bench.pairs import Paired, of_medians
from bench.pipeline import paced
from bench.plan import Plan
from bench.report import Section, kilo, quantile
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import (
    CONURE,
    GATEWAY,
    V2,
    Conure,
    Etcd,
    Redis,
    etcd_missing,
    redis_missing,
)
from bench.systems import BUSY, GET, KEYS, PUT, HttpSystem, key
from bench.workspace import BenchError, Workspace, note

__all__ = ["run"]

_SECONDS = 1  # of a burst
_LONGER = 2  # seconds of a burst that begins with handshakes, or whose delays are compared
_COMMANDS = {PUT: "SET", GET: "GET"}
_CLIENTS = 3  # processes of openssl that shake hands
_NEWCOMERS = 200  # a second
_PACE = 500.0  # requests a second of clients beside whom newcomers come
_OPEN, _SECRET, _CERTIFICATES = "peers prove nothing", "a secret", "certificates"
_NOW, _BEFORE = "this checkout", "the one before"
_PLAIN, _TLS = "", ", TLS"

_LEAST_UNLOCKED = 0.98  # times what it was before
_LEAST_BY_TLS = 0.6  # times plain
_LEAST_HANDSHAKES = 1_000  # a second
_MOST_BESIDE_NEWCOMERS = 2.0  # times the delay without them
_LEAST_PROVED = 0.9  # times what it is between nodes that prove nothing

_Bursts = dict[str, list[Outcome]]


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure all of it that there is. Raises BenchError when wrk, redis or openssl is missing."""
    if missing := wrk_missing() or redis_missing() or keys_missing():
        raise BenchError(missing)
    section = Section("Locked doors")
    keys = make_keys(workspace)
    if plan.before:
        _left_off(plan, workspace, section)
    else:
        section.text("Nothing is compared with a checkout before: none was named (`--before`).")
    _kept_alive(plan, workspace, section, keys)
    _handshakes(plan, workspace, section, keys)
    _newcomers(plan, workspace, section, keys)
    _between_nodes(plan, workspace, section, keys)
    return section


# -- everything left off ---------------------------------------------------------------------------


def _left_off(plan: Plan, workspace: Workspace, section: Section) -> None:
    rows = []
    checkouts = {_NOW: "", _BEFORE: plan.before}
    with ExitStack() as stack:
        nodes = {
            name: stack.enter_context(_node(workspace, checkout=checkout))
            for name, checkout in checkouts.items()
        }
        for operation, command in _COMMANDS.items():
            by_http = {name: _over_http(workspace, node.port) for name, node in nodes.items()}
            rows.append((f"one node, {operation}", _bursts(plan, by_http, operation)))
            by_resp = {name: _over_resp(workspace, node.resp_port) for name, node in nodes.items()}
            rows.append((f"one node, {command} over RESP", _bursts(plan, by_resp, operation)))
    with ExitStack() as stack:
        clusters = {
            name: stack.enter_context(_three(workspace, checkout=checkout))
            for name, checkout in checkouts.items()
        }
        for operation in _COMMANDS:
            loads = {name: _of_leader(workspace, each) for name, each in clusters.items()}
            rows.append((f"three nodes, {operation}", _bursts(plan, loads, operation)))
    _tabulate(
        section,
        f"Everything left off, {BUSY} connections: requests a second (p99 in ms)",
        [_NOW, _BEFORE],
        rows,
    )
    for what, found in rows:
        ratio = _ratio(found, _NOW, _BEFORE)
        section.reaches(f"{what}, nothing locked, than before", ratio, _LEAST_UNLOCKED)


# -- TLS, connections kept alive -------------------------------------------------------------------


def _kept_alive(plan: Plan, workspace: Workspace, section: Section, keys: Keys) -> None:
    rows: list[tuple[str, _Bursts]] = []
    ratios: list[list[str]] = []
    doors = {_PLAIN: None, _TLS: keys}
    with ExitStack() as stack:
        nodes = {d: stack.enter_context(_node(workspace, keys=k)) for d, k in doors.items()}
        redis = _redis(workspace, stack, doors)
        etcd = _etcd(workspace, stack, doors)
        if not redis:
            section.text("Skipped: this machine's redis was built without TLS.")
        if not etcd:
            section.text(f"Skipped: {etcd_missing()}.")
        for operation, command in _COMMANDS.items():
            loads: dict[str, _Load] = {}
            for door in doors:
                tls, port = door == _TLS, nodes[door].port
                loads[f"ConureDB, HTTP{door}"] = _over_http(
                    workspace, port, tls=tls, seconds=_LONGER
                )
                resp = nodes[door].resp_port
                loads[f"ConureDB, RESP{door}"] = _over_resp(
                    workspace, resp, tls=tls, seconds=_LONGER
                )
                if redis:
                    loads[f"redis{door}"] = _over_resp(
                        workspace, redis[door].port, tls=tls, seconds=_LONGER
                    )
                for api in (GATEWAY, V2) if etcd else ():
                    system = HttpSystem(workspace, api, etcd[door].port, tls=tls)
                    loads[f"{api.name}{door}"] = _of_system(system, _LONGER)
            found = _bursts(plan, loads, operation)
            rows.append((f"{operation} ({command})", found))
            for name in loads:
                if not name.endswith(_TLS):
                    ratio = _ratio(found, name + _TLS, name)
                    ratios.append([name, operation, str(ratio)])
                    if name.startswith("ConureDB"):
                        what = f"{name}, {operation}, by TLS than plain"
                        section.reaches(what, ratio, _LEAST_BY_TLS)
    names = list(rows[0][1])
    caption = f"TLS, {BUSY} connections kept alive: requests a second (p99 in ms)"
    _tabulate(section, caption, names, rows)
    section.table("By TLS, as a multiple of plain", ["system", "operation", "ratio"], ratios)


def _redis(
    workspace: Workspace, stack: ExitStack, doors: dict[str, Keys | None]
) -> dict[str, Redis]:
    """Start a redis behind each door; none if it knows no TLS."""
    started = {}
    for door, keys in doors.items():
        try:
            redis = started[door] = Redis(workspace, keys)
        except BenchError as error:
            if door == _PLAIN:
                raise
            note(f"redis by TLS: {error}")
            return {}
        stack.callback(redis.stop)
    return started


def _etcd(workspace: Workspace, stack: ExitStack, doors: dict[str, Keys | None]) -> dict[str, Etcd]:
    """Start an etcd behind each door; none if there is no etcd."""
    if etcd_missing():
        return {}
    started = {}
    for door, keys in doors.items():
        etcd = started[door] = Etcd(workspace, keys=keys)
        etcd.start()
        stack.callback(etcd.stop)
    return started


# -- handshakes ------------------------------------------------------------------------------------


def _handshakes(plan: Plan, workspace: Workspace, section: Section, keys: Keys) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(_node(workspace, keys=keys))
        ports = {"ConureDB, HTTP": node.port, "ConureDB, RESP": node.resp_port}
        others: dict[str, Redis | Etcd] = {}
        others |= _redis(workspace, stack, {"redis": keys})
        others |= _etcd(workspace, stack, {"etcd": keys})
        ports |= {name: server.port for name, server in others.items()}
        contestants = [
            Contestant(name, partial(_shake_hands, workspace, port)) for name, port in ports.items()
        ]
        found = bursts_in_turns(contestants, max(1, plan.pairs // 2))
    section.table(
        f"Handshakes a second, TLS 1.3, ECDSA P-256, {_CLIENTS} clients at a time",
        ["server", "median", "lowest", "highest"],
        [
            [name, *(kilo(f(rates(bursts))) for f in (median, min, max))]
            for name, bursts in found.items()
        ],
    )
    for name in ("ConureDB, HTTP", "ConureDB, RESP"):
        rate = median(rates(found[name]))
        goal = f">= {_LEAST_HANDSHAKES:,} a second"
        what = f"{name}: handshakes"
        section.target(what, goal, f"{kilo(rate)} a second", met=rate >= _LEAST_HANDSHAKES)


def _shake_hands(workspace: Workspace, port: int) -> Outcome:
    """Let clients connect, shake hands and leave, one connection after the other each."""
    argv = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-tls1_3"]
    began = time.perf_counter()
    ends = [workspace.begin([*argv, "-time", str(_SECONDS)]) for _ in range(_CLIENTS)]
    count = 0
    for end in ends:
        printed = re.search(r"(\d+) connections in \d+ real seconds", end(_SECONDS + 30))
        if not printed or not int(printed[1]):
            raise BenchError(f"openssl s_time shook no hands at port {port}")
        count += int(printed[1])
    elapsed = time.perf_counter() - began
    return Outcome(count / elapsed, 1e3 * _CLIENTS * elapsed / count, 0.0)


# -- who is beside newcomers -----------------------------------------------------------------------


def _newcomers(plan: Plan, workspace: Workspace, section: Section, keys: Keys) -> None:
    with _node(workspace, keys=keys) as node:
        busy = _over_http(workspace, node.port, tls=True, seconds=_LONGER)
        gets = [CONURE.get(key(n)).render() for n in range(KEYS)]

        def at_pace(_: str) -> Outcome:
            delays = paced(node.port, cycle(gets), _PACE, _LONGER, tls=True)
            return Outcome(_PACE, *(1e3 * quantile(delays, q) for q in (0.5, 0.99, 0.999)))

        rows = []
        for what, load in ((f"{_PACE:.0f} gets a second", at_pace), (f"{BUSY} busy clients", busy)):
            alone, beside = "alone", f"beside {_NEWCOMERS} newcomers a second"
            contestants = [
                Contestant(alone, partial(load, GET)),
                Contestant(beside, partial(_beside, workspace, node.port, partial(load, GET))),
            ]
            found = bursts_in_turns(contestants, plan.pairs)
            rows.append((what, found))
            p99 = {name: [each.p99 for each in bursts] for name, bursts in found.items()}
            ratio = of_medians(p99[beside], p99[alone])
            told = f"{what} by TLS, p99, {beside} than {alone}"
            section.stays_within(told, ratio, _MOST_BESIDE_NEWCOMERS)
    caption = "Newcomers by TLS, each with a handshake: the others' requests a second (p99 in ms)"
    _tabulate(section, caption, [alone, beside], rows)


def _beside(workspace: Workspace, port: int, load: Callable[[], Outcome]) -> Outcome:
    """Carry out a load while newcomers come."""
    argv = [sys.executable, "-m", "bench.newcomers", str(port), str(_NEWCOMERS)]
    end = workspace.begin([*argv, str(_LONGER + 1)])
    time.sleep(0.5)  # until the first ones come
    outcome = load()
    came = int(end(60.0))
    if came < _NEWCOMERS * _LONGER:
        raise BenchError(f"only {came} newcomers were served")
    return outcome


# -- proofs between nodes --------------------------------------------------------------------------


def _between_nodes(plan: Plan, workspace: Workspace, section: Section, keys: Keys) -> None:
    proofs = {
        _OPEN: [],
        _SECRET: [f"--cluster-secret-file={keys.secret}"],
        _CERTIFICATES: [
            f"--peer-tls-cert={keys.certificate}",
            f"--peer-tls-key={keys.key}",
            f"--peer-tls-ca={keys.ca}",
        ],
    }
    rows = []
    with ExitStack() as stack:
        clusters = {
            name: stack.enter_context(_three(workspace, flags=flags))
            for name, flags in proofs.items()
        }
        for operation in _COMMANDS:
            loads = {name: _of_leader(workspace, each) for name, each in clusters.items()}
            rows.append((operation, _bursts(plan, loads, operation)))
    caption = f"Three nodes, {BUSY} connections at the leader: requests a second (p99 in ms)"
    _tabulate(section, caption, list(proofs), rows)
    for operation, found in rows:
        for name in (_SECRET, _CERTIFICATES):
            what = f"three nodes, {operation}, {name} than where {_OPEN}"
            section.reaches(what, _ratio(found, name, _OPEN), _LEAST_PROVED)


# -- what all of them share ------------------------------------------------------------------------

_Load = Callable[[str], Outcome]
"""One burst of an operation."""


def _bursts(plan: Plan, loads: dict[str, _Load], operation: str) -> _Bursts:
    note(f"{operation}: {', '.join(loads)}")
    contestants = [Contestant(name, partial(load, operation)) for name, load in loads.items()]
    return bursts_in_turns(contestants, plan.pairs)


def _ratio(found: _Bursts, ours: str, theirs: str) -> Paired:
    return of_medians(rates(found[ours]), rates(found[theirs]))


def _tabulate(
    section: Section, caption: str, names: Sequence[str], rows: Sequence[tuple[str, _Bursts]]
) -> None:
    def shown(bursts: Sequence[Outcome]) -> str:
        return f"{kilo(median(rates(bursts)))} ({median(each.p99 for each in bursts):.1f})"

    table = [[what, *(shown(found[name]) for name in names)] for what, found in rows]
    section.table(caption, ["", *names], table)


@contextmanager
def _node(
    workspace: Workspace, *, keys: Keys | None = None, checkout: str = ""
) -> Iterator[Conure]:
    node = Conure(workspace, resp=True, keys=keys, checkout=checkout)
    node.start()
    yield node
    node.stop()


@contextmanager
def _three(
    workspace: Workspace, *, flags: Sequence[str] = (), checkout: str = ""
) -> Iterator[Cluster[Conure]]:
    cluster = start_conure(workspace, flags=flags, checkout=checkout)
    yield cluster
    cluster.stop()


def _of_system(system: HttpSystem, seconds: int) -> _Load:
    """Return bursts of a server that has all keys."""
    system.begin_round(0)
    return lambda operation: system.load(operation, BUSY, seconds)


def _over_http(
    workspace: Workspace, port: int, *, tls: bool = False, seconds: int = _SECONDS
) -> _Load:
    return _of_system(HttpSystem(workspace, CONURE, port, tls=tls), seconds)


def _over_resp(
    workspace: Workspace, port: int, *, tls: bool = False, seconds: int = _SECONDS
) -> _Load:
    loads = {
        operation: RedisLoad(workspace, port, command, BUSY, KEYS, tls=tls)
        for operation, command in _COMMANDS.items()
    }
    for load in loads.values():
        load.calibrate()
    return lambda operation: loads[operation].run(seconds)


def _of_leader(workspace: Workspace, cluster: Cluster[Conure]) -> _Load:
    """Return bursts at whoever leads, each done again if an election disturbed it."""
    load = _over_http(workspace, cluster.leader().port)
    return lambda operation: cluster.under_one_leader(lambda: load(operation))
