"""What the B-tree tells of itself beyond what every engine does (engine.EngineStats).

Pure facts, taken by ``btree.py``; what their names are in ``stats DIR`` and in the metrics stands
here and nowhere else. Nothing here reads or counts anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conure.storage.engine import EngineStats, Figure

__all__ = ["TreeStats"]


@dataclass(slots=True)
class TreeStats(EngineStats):
    """Figures of a tree; sizes are in bytes.

    Cache hits and misses are those of point reads. *unwritten_pages* wait for a checkpoint, and
    *txid* is the number of the last durable one.
    """

    pages: int
    free_pages: int
    cache_bytes: int
    recent_bytes: int
    cache_hits: int
    cache_misses: int
    evictions: int
    unwritten_pages: int
    txid: int

    def figures(self) -> Sequence[Figure]:
        """Return them as they are shown."""
        return (
            Figure("page_size", "", "Size of a page.", self.page_size),
            Figure("pages", "", "Pages of the file.", self.pages),
            Figure("free_pages", "", "Pages that nothing needs.", self.free_pages),
            Figure(
                "",
                "conure_db_unwritten_pages",
                "Changed pages that wait for the next checkpoint.",
                self.unwritten_pages,
            ),
            Figure("", "conure_page_cache_bytes", "Pages in memory.", self.cache_bytes),
            Figure(
                "",
                "conure_record_cache_bytes",
                "Records that were read lately, in memory.",
                self.recent_bytes,
            ),
            Figure(
                "",
                "conure_page_cache_hits_total",
                "Pages found there.",
                self.cache_hits,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_page_cache_misses_total",
                "Pages read from the file.",
                self.cache_misses,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_page_cache_evictions_total",
                "Pages dropped to make room.",
                self.evictions,
                is_counter=True,
            ),
        )
