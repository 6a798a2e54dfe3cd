"""Requests counted by route, method and status, and how long they took.

Any thread.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from time import perf_counter
from typing import Final

from conure.http.request import Request
from conure.metrics import Registry
from conure.operations import Counted, Operation

__all__ = ["Counts", "RequestMetrics"]

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("/kv", "GET"): "get",
    ("/kv", "HEAD"): "get",
    ("/kv", "PUT"): "put",
    ("/kv", "DELETE"): "delete",
    ("/kv/incr", "POST"): "put",
    ("/kv/touch", "POST"): "put",
    ("/{key}", "GET"): "get",
    ("/{key}", "HEAD"): "get",
    ("/{key}", "PUT"): "put",
    ("/{key}", "DELETE"): "delete",
}
_DONE = frozenset({"200", "304", "404"})
"""The codes of what was carried out, be it that there is no such key."""


class RequestMetrics:
    """The metrics of requests."""

    def __init__(self, registry: Registry) -> None:
        self._requests = registry.counter_family(
            "conure_http_requests_total",
            "HTTP requests answered, by route, method and status code.",
            ("route", "method", "code"),
        )
        self._durations = registry.histogram_family(
            "conure_http_request_duration_seconds",
            "Time from reading a request to handing over its answer, by route and method.",
            ("route", "method"),
        )

    def note(self, route: str, method: str, status: int, started: float, times: int) -> None:
        """Count requests that were answered together; *started* is the ``Request.started`` of the
        first one."""
        if times:
            self._requests.labels(route, method, str(status)).inc(times)
            self._durations.labels(route, method).observe_same(perf_counter() - started, times)

    def operations(self) -> Iterator[Counted]:
        """Yield how many of the requests that were carried out are which operation."""
        for (route, method, code), count in self._requests.children():
            operation = _OPERATIONS.get((route, method))
            if operation is not None and code in _DONE:
                yield operation, count.value


class Counts:
    """Counts requests. What is at none of the *known* paths counts as *other*."""

    def __init__(
        self, metrics: RequestMetrics, known: Container[str], other: str = "other"
    ) -> None:
        self._known = known
        self._other = other
        self.count_many = metrics.note
        """Counts requests that were answered together; see :meth:`RequestMetrics.note`."""

    def count(self, request: Request, status: int) -> None:
        """Count a request that was answered."""
        self.count_many(
            request.path if request.path in self._known else self._other,
            request.method if request.method in _METHODS else "other",
            status,
            request.started,
            1,
        )
