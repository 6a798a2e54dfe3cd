"""The load generators: wrk and redis-benchmark, each with one thread.

Both are told what to send, run for a few seconds and return an :class:`Outcome`. A run that met an
error has no outcome: it raises :class:`~bench.workspace.BenchError`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from bench.workspace import BenchError, Workspace

__all__ = ["Outcome", "redis_benchmark", "write_requests", "wrk", "wrk_missing"]

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "replay.lua")
_CALIBRATION = 2_000  # requests that tell redis-benchmark how many fill the time
_SLACK = 60.0  # seconds a load generator may take longer than it was told to


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests a second, and the latency's median and 99th percentile in milliseconds."""

    rate: float
    p50: float
    p99: float


def write_requests(path: str, requests: Iterable[bytes]) -> None:
    """Write the file that ``replay.lua`` reads: each entry is sent with one write."""
    with open(path, "wb") as file:
        file.writelines(b"%d\n%b" % (len(request), request) for request in requests)


def wrk(workspace: Workspace, port: int, requests: str, connections: int, seconds: int) -> Outcome:
    """Send the requests of a file over keep-alive connections for *seconds*."""
    printed = workspace.run(
        [
            "wrk",
            "--threads=1",
            f"--connections={connections}",
            f"--duration={seconds}s",
            "--timeout=10s",
            f"--script={_SCRIPT}",
            f"http://127.0.0.1:{port}/",
            "--",
            requests,
        ],
        seconds + _SLACK,
    )
    summary = json.loads(printed.splitlines()[-1])
    if summary["failed"] or summary["broken"] or not summary["requests"]:
        raise BenchError(f"the load {os.path.basename(requests)} met errors: {summary}")
    return Outcome(summary["requests"] / summary["seconds"], summary["p50"], summary["p99"])


def redis_benchmark(
    workspace: Workspace, port: int, command: str, connections: int, seconds: int, keys: int
) -> Outcome:
    """Send SET or GET of 25-byte values without pipelining for about *seconds*."""

    def run(requests: int) -> dict[str, str]:
        printed = workspace.run(
            [
                "redis-benchmark",
                *("-p", str(port)),
                *("-c", str(connections)),
                *("-n", str(requests)),
                *("-r", str(keys)),
                *("-d", "25"),
                *("-t", command.lower()),
                "--csv",
            ],
            seconds + _SLACK,
        )
        return next(csv.DictReader(io.StringIO(printed)))

    rate = float(run(max(_CALIBRATION, connections * 10))["rps"])
    row = run(max(_CALIBRATION, round(rate * seconds)))
    return Outcome(float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]))


def wrk_missing() -> str:
    """Return what to do about a missing wrk, or an empty string."""
    return "" if shutil.which("wrk") else "wrk is missing: apt-get install wrk"
