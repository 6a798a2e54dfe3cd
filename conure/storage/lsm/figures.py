"""What the LSM engine tells of itself beyond what every engine does (engine.EngineStats).

Pure facts, taken by ``lsmengine.py``; what their names are in ``stats DIR`` and in the metrics
stands here and nowhere else. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conure.storage.engine import EngineStats, Figure

__all__ = ["LSMStats", "Written"]


@dataclass(slots=True)
class Written:
    """What was written since the engine was opened: jobs, and bytes of files."""

    flushes: int = 0
    flush_bytes: int = 0
    compactions: int = 0
    compaction_bytes: int = 0


@dataclass(slots=True)
class LSMStats(EngineStats):
    """Figures of an LSM engine; sizes are in bytes. *tables* has number and bytes by level;
    *keeps_garbage* says that a damaged file keeps others from being removed."""

    memtable_bytes: int
    tables: Sequence[tuple[int, int]]
    blob_bytes: int
    blob_dead_bytes: int
    index_bytes: int
    runs: int
    written: Written
    keeps_garbage: bool

    def figures(self) -> Sequence[Figure]:
        """Return them as they are shown."""
        written = self.written
        levels = [("level", str(level)) for level in range(len(self.tables))]
        flushed = written.flush_bytes  # none yet: merges of what was there before amplify nothing
        amplification = (flushed + written.compaction_bytes) / flushed if flushed else 0.0
        return (
            Figure(
                "memtable_bytes",
                "conure_lsm_memtable_bytes",
                "Changes in memory that no checkpoint has written.",
                self.memtable_bytes,
            ),
            *(
                Figure(
                    f"tables_level_{label[1]}",
                    "conure_lsm_tables",
                    "Tables by level.",
                    count,
                    label=label,
                )
                for label, (count, _) in zip(levels, self.tables, strict=True)
            ),
            *(
                Figure(
                    f"table_bytes_level_{label[1]}",
                    "conure_lsm_table_bytes",
                    "Bytes of the tables by level.",
                    size,
                    label=label,
                )
                for label, (_, size) in zip(levels, self.tables, strict=True)
            ),
            Figure(
                "",
                "kvstore_memtable_size_bytes",
                "The same as conure_lsm_memtable_bytes.",
                self.memtable_bytes,
            ),
            Figure(
                "",
                "kvstore_sstable_count",
                "Tables of all levels: the sum of conure_lsm_tables.",
                sum(count for count, _ in self.tables),
            ),
            Figure("runs", "conure_lsm_runs", "Places to look a key up in on disk.", self.runs),
            Figure(
                "index_bytes",
                "conure_lsm_index_bytes",
                "Indexes of tables in memory.",
                self.index_bytes,
            ),
            Figure("blob_bytes", "conure_lsm_blob_bytes", "Files of long values.", self.blob_bytes),
            Figure(
                "blob_dead_bytes",
                "conure_lsm_blob_dead_bytes",
                "Long values that no table refers to.",
                self.blob_dead_bytes,
            ),
            Figure(
                "",
                "conure_lsm_keeps_garbage",
                "1 while a file that can't be read keeps files that nothing needs; the log has it.",
                int(self.keeps_garbage),
            ),
            Figure(
                "",
                "conure_lsm_flushes_total",
                "Memtables written as tables.",
                written.flushes,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_lsm_compactions_total",
                "Merges of tables.",
                written.compactions,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_lsm_flush_bytes_total",
                "Bytes written by flushes.",
                written.flush_bytes,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_lsm_compaction_bytes_total",
                "Bytes written by merges.",
                written.compaction_bytes,
                is_counter=True,
            ),
            Figure(
                "",
                "conure_lsm_write_amplification",
                "Bytes written by flushes and merges for each byte of flushes.",
                amplification,
            ),
        )
