"""The metrics of a node: what ``/metrics`` shows of its core, its log and its tree.

What is a number somewhere already is read when the page is asked for, in the thread that renders,
without a lock. The two histograms are observed by the threads that write the log. Nothing here
changes anything.
"""

from __future__ import annotations

from typing import NamedTuple

from conure.consensus.messages import State
from conure.consensus.raftlog import RaftLog
from conure.metrics import BATCH_SIZES, Histogram, Registry
from conure.state.machine import Store
from raft import Raft

__all__ = ["Histograms", "add_gauges"]


class Histograms(NamedTuple):
    """What has to be observed while it happens."""

    sync_seconds: Histogram
    batch_sizes: Histogram


def add_gauges(registry: Registry, raft: Raft, raft_log: RaftLog, store: Store) -> Histograms:
    """Add a node's metrics to the registry. Once a node, before anybody renders."""
    histograms = Histograms(
        registry.histogram(
            "conure_log_sync_duration_seconds", "Time a sync of the log took, in seconds."
        ),
        registry.histogram(
            "conure_write_batch_size",
            "Commands that were committed together, with one sync.",
            BATCH_SIZES,
        ),
    )
    gauge, counter = registry.gauge_callback, registry.counter_callback
    gauge("conure_raft_term", "Current term.", lambda: raft.term)
    gauge("conure_raft_is_leader", "1 on the leader.", lambda: int(raft.state == State.LEADER))
    gauge("conure_raft_commit_index", "Last committed index.", lambda: raft.commit_index)
    gauge("conure_raft_applied_index", "Last applied index.", lambda: store.applied_index)
    gauge("conure_log_size_bytes", "Live bytes in the log.", lambda: raft_log.size_bytes)
    gauge("conure_log_segments", "Files of the log.", lambda: raft_log.segments)
    gauge(
        "conure_db_size_bytes",
        "Size of the tree's file.",
        lambda: store.stats().file_bytes,
    )
    gauge("conure_db_free_bytes", "Free pages in it.", lambda: store.stats().free_bytes)
    gauge("conure_db_records", "Keys of users.", lambda: store.records)
    gauge("conure_db_depth", "Levels of the tree.", lambda: store.stats().depth)
    gauge(
        "conure_db_unwritten_pages",
        "Changed pages that wait for the next checkpoint.",
        lambda: store.stats().unwritten_pages,
    )
    gauge("conure_page_cache_bytes", "Pages in memory.", lambda: store.stats().cache_bytes)
    counter(
        "conure_page_cache_hits_total",
        "Pages found there.",
        lambda: store.stats().cache_hits,
    )
    counter(
        "conure_page_cache_misses_total",
        "Pages read from the file.",
        lambda: store.stats().cache_misses,
    )
    counter(
        "conure_page_cache_evictions_total",
        "Pages dropped to make room.",
        lambda: store.stats().evictions,
    )
    return histograms
