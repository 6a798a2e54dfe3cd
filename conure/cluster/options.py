"""What a node has to be told before it opens its data directory.

Pure facts, frozen: whoever composes the process fills them in (conuredb.py, or a test), and every
file of this wing may read them. Nothing is computed and nothing is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass

from conure.state import codec

__all__ = ["APPLY_SECONDS", "NodeOptions"]

APPLY_SECONDS = 0.004
"""Seconds for which committed entries are applied in one go; more of them take turns with all else
that the reactor does."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node has to be told. Times in seconds, sizes in bytes.

    *peers* are the others of a cluster that is to be formed, each ``host:port`` or
    ``ID@host:port``. With those *raft_address* may be "": where the others list this node; and
    *http_address*: the same host, and *http_port*, by *https* or not. *is_guarded* says that nodes
    prove nothing to each other, and that those of other machines are kept out of a new cluster for
    it (border.py).
    """

    node_id: str
    told_node_id: bool
    data_dir: str
    raft_address: str
    http_address: str
    bootstrap: bool
    version: str
    role: str = "data"
    quorum_size: int = 0
    peers: tuple[str, ...] = ()
    is_guarded: bool = False
    http_port: int = 0
    https: bool = False
    engine: str = "btree"
    told_engine: bool = False
    election_timeout: float = 0.4
    read_mode: str = "index"
    barrier_timeout: float = 3.0
    write_timeout: float = 10.0
    page_size: int = 4096
    cache_bytes: int = 64 << 20
    memtable_bytes: int = 10_000_000
    mapped_reads: bool = True
    workers: bool = False
    log_segment_bytes: int = 4 << 20
    checkpoint_log_bytes: int = 32 << 20
    checkpoint_entries: int = 50_000
    checkpoint_interval: float = 60.0
    max_unwritten_bytes: int = 256 << 20
    speaks: int = codec.SPEAKS
    apply_seconds: float = APPLY_SECONDS
