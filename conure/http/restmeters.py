"""The metrics of the server that serves REST; its requests count with those of the API, under a
route of their own (restanswers.py). Callbacks run in the thread that renders the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from conure.metrics import Registry

__all__ = ["Counted", "add_rest_metrics"]


class Counted(Protocol):
    """What a server counts. Any thread."""

    @property
    def connections_open(self) -> int: ...

    @property
    def connections_accepted(self) -> int: ...

    @property
    def slow_requests(self) -> int: ...

    @property
    def refused(self) -> Mapping[int, int]: ...


def add_rest_metrics(registry: Registry, server: Counted) -> None:
    """Show what a server counts."""
    registry.gauge_callback(
        "conure_rest_connections", "Open REST connections.", lambda: server.connections_open
    )
    registry.counter_callback(
        "conure_rest_connections_accepted_total",
        "REST connections accepted.",
        lambda: server.connections_accepted,
    )
    registry.labelled_callback(
        "conure_rest_refused_total",
        "counter",
        "Requests and connections of REST refused before they reached a key, by status code.",
        ("code",),
        lambda: [((str(status),), count) for status, count in server.refused.items()],
    )
    registry.counter_callback(
        "conure_rest_slow_requests_total",
        "REST requests that took longer than slow_request.",
        lambda: server.slow_requests,
    )
