"""kill -9 of the leader, and the time until the next put is accepted.

Nothing else is asked of the cluster meanwhile. From the kill on a put of a key of its own starts
every 10 ms, at the survivors in turn and without waiting for the earlier ones; a survivor that
names another leader is believed. The time ends with the first put that is accepted. Then the
killed node is started again, and the next kill waits until all nodes have caught up and rested.
At the end every put that was accepted is read back.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from urllib.parse import urlsplit

from bench.clusters import Cluster, start_conure, start_etcd
from bench.plan import Plan
from bench.report import Section
from bench.servers import CONURE, GATEWAY, Api, Server, ask, conure_missing, etcd_missing
from bench.workspace import BenchError, Workspace, note

__all__ = ["run"]

_POLL = 0.01  # seconds
_REST = 2.0  # seconds: more than any election timeout
_ANSWER = 2.0  # seconds a poll waits for its answer
_GIVE_UP = 30.0  # seconds
_MEDIAN_GOAL, _MAX_GOAL = 0.7, 1.5  # seconds


def run(plan: Plan, workspace: Workspace) -> Section:
    """Measure both clusters, one after the other: nothing else may keep the machine busy."""
    section = Section("Failover after kill -9 of the leader")
    kinds: list[tuple[str, Api, Callable[[Workspace], Cluster[Server]], str]] = [
        ("ConureDB", CONURE, start_conure, conure_missing()),
        ("etcd", GATEWAY, start_etcd, etcd_missing()),
    ]
    rows = []
    for name, api, start, missing in kinds:
        if missing:
            section.text(f"Skipped: {missing}.")
            note(f"skipped: {missing}")
            continue
        cluster = start(workspace)
        times = list(_failovers(cluster, api, plan.failovers))
        cluster.stop()
        shown = [f"{value:.2f}" for value in (min(times), median(times), max(times))]
        rows.append([name, str(len(times)), *shown])
        if api is CONURE:
            section.at_most("kill to the next put, median", median(times), _MEDIAN_GOAL, "s")
            section.at_most("kill to the next put, longest", max(times), _MAX_GOAL, "s")
    section.table(
        "Seconds from the kill to the next accepted put, three nodes with default settings",
        ["cluster", "kills", "min", "median", "max"],
        rows,
    )
    section.text("At the end every accepted put was read back.")
    return section


def _failovers(cluster: Cluster[Server], api: Api, count: int) -> Iterator[float]:
    polls = _Polls(api)
    for number in range(count):
        leader = cluster.leader()
        time.sleep(_REST)
        if cluster.leader() is not leader:
            raise BenchError(f"{leader.name} lost its leadership without a cause")
        survivors = [member.port for member in cluster.members if member is not leader]
        killed = time.perf_counter()
        leader.kill()
        seconds = polls.first_accepted(survivors) - killed
        note(f"{api.name}, kill {number + 1}: {seconds:.2f} s without {leader.name}")
        yield seconds
        leader.start()
    _verify(api, cluster.leader().port, polls.accepted)


class _Polls:
    """Puts that don't wait for each other. ``accepted`` has the keys of those that succeeded."""

    def __init__(self, api: Api) -> None:
        self.accepted: list[str] = []
        self._api = api
        self._numbers = itertools.count()
        self._success = threading.Event()
        self._times: list[float] = []  # when puts were accepted after the latest kill

    def first_accepted(self, ports: list[int]) -> float:
        """Put at the *ports* in turn; return the time when the first was accepted."""
        self._success.clear()
        self._times.clear()
        began = time.monotonic()
        threads = []
        for port in itertools.cycle(ports):
            key = f"poll-{next(self._numbers):06}"
            threads.append(threading.Thread(target=self._put, args=(port, key)))
            threads[-1].start()
            if self._success.wait(_POLL):
                break
            if time.monotonic() - began > _GIVE_UP:
                raise BenchError(f"no put was accepted for {_GIVE_UP:.0f} s after the kill")
        for thread in threads:
            thread.join()
        return min(self._times)

    def _put(self, port: int, key: str) -> None:
        request = self._api.put(key, key)
        try:
            status, body = ask(port, request, _ANSWER)
            if status == http.HTTPStatus.TEMPORARY_REDIRECT:
                hint = urlsplit(json.loads(body)["leader_http"])
                status, _ = ask(hint.port or 80, request, _ANSWER)
        except (OSError, http.client.HTTPException):
            return  # the leader that it was sent to is dead, or nobody leads yet
        if status == http.HTTPStatus.OK:
            self.accepted.append(key)
            self._times.append(time.perf_counter())
            self._success.set()


def _verify(api: Api, port: int, keys: list[str]) -> None:
    for key in keys:
        status, body = ask(port, api.get(key))
        if status != http.HTTPStatus.OK or api.value(body) != key:
            raise BenchError(f"{key} was accepted and is gone: {status} {body[:200]!r}")
