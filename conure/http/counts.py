"""Requests counted by route, method and status, and how long they took.

Any thread.
"""

from __future__ import annotations

from collections.abc import Container
from time import perf_counter

from conure.http.request import Request
from conure.metrics import Registry

__all__ = ["Counts", "RequestMetrics"]

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


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
