"""The metrics of a node: what ``/metrics`` shows of its core, its log and its engine.

What is a number somewhere already is read when the page is asked for, in the thread that renders,
without a lock. The two histograms are observed by the threads that write the log, the two counters
of stalls by those that write. What only one kind of engine tells of itself comes from its stats
(engine.Figure), under the names that stand there. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from conure.consensus.messages import State
from conure.consensus.raftlog import RaftLog
from conure.metrics import BATCH_SIZES, Counter, Histogram, Registry
from conure.state.machine import Store
from raft import Raft

__all__ = ["Observed", "add_forming", "add_gauges"]


class Observed(NamedTuple):
    """What has to be observed while it happens."""

    sync_seconds: Histogram
    batch_sizes: Histogram
    stalls: Counter
    stall_seconds: Counter


def add_gauges(
    registry: Registry, raft: Raft, raft_log: RaftLog, store: Store, engine: str
) -> Observed:
    """Add a node's metrics to the registry; *engine* is the name of the kind that keeps its
    records. Once a node, before anybody renders."""
    observed = Observed(
        registry.histogram(
            "conure_log_sync_duration_seconds", "Time a sync of the log took, in seconds."
        ),
        registry.histogram(
            "conure_write_batch_size",
            "Commands that were committed together, with one sync.",
            BATCH_SIZES,
        ),
        registry.counter(
            "conure_write_stalls_total",
            "Rounds of writes that were slowed down for what is written to disk behind them.",
        ),
        registry.counter("conure_write_stall_seconds_total", "For how long they were, in seconds."),
    )
    gauge = registry.gauge_callback
    gauge("conure_raft_term", "Current term.", lambda: raft.term)
    gauge("conure_raft_is_leader", "1 on the leader.", lambda: int(raft.state == State.LEADER))
    gauge("conure_raft_commit_index", "Last committed index.", lambda: raft.commit_index)
    gauge("conure_raft_applied_index", "Last applied index.", lambda: store.applied_index)
    gauge(
        "conure_raft_quorum_size",
        "How many data voters are to hold an entry before it is committed; 0: a majority decides.",
        lambda: raft.configuration.quorum_size,
    )
    gauge("conure_log_size_bytes", "Live bytes in the log.", lambda: raft_log.size_bytes)
    gauge("conure_log_segments", "Files of the log.", lambda: raft_log.segments)
    gauge(
        "conure_db_size_bytes",
        "Size of the files with the records.",
        lambda: store.stats().file_bytes,
    )
    gauge("conure_db_free_bytes", "What nothing needs in them.", lambda: store.stats().free_bytes)
    gauge("conure_db_records", "Keys of users.", lambda: store.records)
    gauge(
        "conure_db_depth",
        "In how many places, one after the other, a key is looked for.",
        lambda: store.stats().depth,
    )
    registry.labelled_callback(
        "conure_engine_info",
        "gauge",
        "1, for the engine that keeps the records.",
        ("engine",),
        lambda: [((engine,), 1)],
    )
    _add_figures(registry, store)
    return observed


def add_forming(registry: Registry, missing: Callable[[], Sequence[str]]) -> None:
    """Add what a node shows that looks for the others of its list; *missing* returns the addresses
    of those that it waits for, without a lock. Once a node, before anybody renders."""
    registry.gauge_callback(
        "conure_forming",
        "1 while this node looks for the others of its list (peers) to form a cluster.",
        lambda: int(bool(missing())),
    )
    registry.labelled_callback(
        "conure_forming_waits_for",
        "gauge",
        "1 for each address of the list whose node has yet to show the same members.",
        ("address",),
        lambda: [((address,), 1) for address in missing()],
    )


def _add_figures(registry: Registry, store: Store) -> None:
    """Add what only this kind of engine tells of itself."""
    added: set[str] = set()
    for figure in store.stats().figures():
        metric = figure.metric
        if not metric or metric in added:
            continue
        added.add(metric)
        read = partial(_readings, store, metric)
        if figure.label is not None:
            kind = "counter" if figure.is_counter else "gauge"
            registry.labelled_callback(metric, kind, figure.help, (figure.label[0],), read)
        else:
            add = registry.counter_callback if figure.is_counter else registry.gauge_callback
            add(metric, figure.help, partial(_reading, store, metric))


def _readings(store: Store, metric: str) -> list[tuple[tuple[str, ...], float]]:
    """Return the values of a metric by the value of its label."""
    figures = store.stats().figures()
    return [
        ((each.label[1],), each.value) for each in figures if each.metric == metric and each.label
    ]


def _reading(store: Store, metric: str) -> float:
    return next(each.value for each in store.stats().figures() if each.metric == metric)
