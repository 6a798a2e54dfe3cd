"""The load generators: wrk, h2load and redis-benchmark, each with one thread.

All are told what to send, run for a few seconds and return an :class:`Outcome`. A run that met an
error has no outcome: it raises :class:`~bench.workspace.BenchError`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.report import quantile
from bench.workspace import BenchError, Workspace

__all__ = [
    "Grpc",
    "Outcome",
    "RedisLoad",
    "begin_wrk",
    "h2load",
    "h2load_missing",
    "redis_benchmark",
    "write_requests",
    "wrk",
    "wrk_missing",
]

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "replay.lua")
_CALIBRATION = 1_000  # requests that tell redis-benchmark how many fill the time
_SLACK = 60.0  # seconds a load generator may take longer than it was told to


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests a second, and percentiles of the latency in milliseconds.

    redis-benchmark doesn't tell ``p999``.
    """

    rate: float
    p50: float
    p99: float
    p999: float | None = None


class Grpc(NamedTuple):
    """The outcome of a gRPC load, the number of answers, and the bytes of all their messages."""

    outcome: Outcome
    answers: int
    bytes: int


def write_requests(path: str, requests: Iterable[bytes]) -> None:
    """Write the file that ``replay.lua`` reads: each entry is sent with one write."""
    with open(path, "wb") as file:
        file.writelines(b"%d\n%b" % (len(request), request) for request in requests)


def wrk(
    workspace: Workspace,
    port: int,
    requests: str,
    connections: int,
    seconds: int,
    *,
    tls: bool = False,
) -> Outcome:
    """Send the requests of a file over keep-alive connections for *seconds*."""
    return begin_wrk(workspace, port, requests, connections, seconds, tls=tls)()


def begin_wrk(
    workspace: Workspace,
    port: int,
    requests: str,
    connections: int,
    seconds: int,
    *,
    tls: bool = False,
) -> Callable[[], Outcome]:
    """Begin what :func:`wrk` does; what is returned waits for its end."""
    end = workspace.begin(
        [
            "wrk",
            "--threads=1",
            f"--connections={connections}",
            f"--duration={seconds}s",
            "--timeout=10s",
            f"--script={_SCRIPT}",
            f"{'https' if tls else 'http'}://127.0.0.1:{port}/",
            "--",
            requests,
        ]
    )

    def outcome() -> Outcome:
        summary = json.loads(end(seconds + _SLACK).splitlines()[-1])
        if summary["failed"] or summary["broken"] or not summary["requests"]:
            raise BenchError(f"the load {os.path.basename(requests)} met errors: {summary}")
        rate = summary["requests"] / summary["seconds"]
        return Outcome(rate, summary["p50"], summary["p99"], summary["p999"])

    return outcome


def h2load(
    workspace: Workspace, port: int, method: str, message: bytes, connections: int, seconds: int
) -> Grpc:
    """Call a gRPC method with one message over and over, one call at a time on a connection.

    h2load knows nothing of gRPC, whose errors come in trailers: the caller has to see from the
    answers' bytes, or from what is stored, that the calls succeeded.
    """
    body, log = workspace.path("message"), workspace.path("latencies")
    with open(body, "wb") as file:
        file.write(b"\0" + len(message).to_bytes(4, "big") + message)
    printed = workspace.run(
        [
            "h2load",
            "--threads=1",
            f"--clients={connections}",
            "--max-concurrent-streams=1",
            f"--duration={seconds}",
            f"--data={body}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"--log-file={log}",
            f"http://127.0.0.1:{port}/{method}",
        ],
        seconds + _SLACK,
    )
    with open(log, encoding="ascii") as file:
        rows = [line.split() for line in file]
    os.remove(log)
    counted = re.search(r"(\d+) succeeded, 0 failed, 0 errored, 0 timeout", printed)
    data = re.search(r"\((\d+)\) data", printed)
    if not counted or not data or int(counted[1]) != len(rows) or not rows:
        raise BenchError(f"the load {method} met errors: {printed[-2000:]}")
    times = [int(microseconds) / 1e3 for _, _, microseconds in rows]
    percentiles = [quantile(times, q) for q in (0.5, 0.99, 0.999)]
    return Grpc(Outcome(len(rows) / seconds, *percentiles), len(rows), int(data[1]))


def redis_benchmark(
    workspace: Workspace, port: int, command: str, connections: int, seconds: int, keys: int
) -> Outcome:
    """Send SET or GET without pipelining for about *seconds*."""
    load = RedisLoad(workspace, port, command, connections, keys)
    load.calibrate()
    return load.run(seconds)


class RedisLoad:
    """A load of redis-benchmark: SET, GET or MSET (of 10 keys) with 25-byte values.

    *depth* commands are under way on each connection. redis-benchmark is told a number of
    commands and no time: the load remembers how many a second there were the last time.
    """

    def __init__(
        self,
        workspace: Workspace,
        port: int,
        command: str,
        connections: int,
        keys: int,
        depth: int = 1,
        *,
        tls: bool = False,
    ) -> None:
        self._workspace = workspace
        self._argv = [
            "redis-benchmark",
            *("-p", str(port)),
            *("-c", str(connections)),
            *("-r", str(keys)),
            *("-d", "25"),
            *("-P", str(depth)),
            *("-t", command.lower()),
            *(("--tls", "--insecure") if tls else ()),
            "--csv",
        ]
        self._under_way = connections * depth
        self._rate = 0.0

    def calibrate(self) -> None:
        """Find out how many commands fill a second."""
        self._run(max(_CALIBRATION, 10 * self._under_way), _SLACK)

    def run(self, seconds: float) -> Outcome:
        """Send commands for about *seconds*."""
        return self._run(max(2 * self._under_way, round(self._rate * seconds)), seconds + _SLACK)

    def _run(self, commands: int, timeout: float) -> Outcome:
        printed = self._workspace.run([*self._argv, "-n", str(commands)], timeout)
        row = next(csv.DictReader(io.StringIO(printed)))
        self._rate = float(row["rps"])
        return Outcome(self._rate, float(row["p50_latency_ms"]), float(row["p99_latency_ms"]))


def h2load_missing() -> str:
    """Return what to do about a missing h2load, or an empty string."""
    return "" if shutil.which("h2load") else "h2load is missing: apt-get install nghttp2-client"


def wrk_missing() -> str:
    """Return what to do about a missing wrk, or an empty string."""
    return "" if shutil.which("wrk") else "wrk is missing: apt-get install wrk"
