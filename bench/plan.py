"""How much is measured: the plans of a full, a short and a quick run."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FULL", "LEAST_RECORDS", "QUICK", "SHORT", "Plan"]

LEAST_RECORDS = 1_000
"""With fewer, ranges and scans don't find theirs."""


@dataclass(frozen=True)
class Plan:
    """The amounts of one run. Durations are in seconds."""

    name: str
    rounds: int
    load_seconds: int  # of one wrk or redis-benchmark run
    connections: tuple[int, ...]  # of every system
    resp_connections: tuple[int, ...]
    many_connections: int  # of ConureDB only
    idle_connections: int
    pairs: int  # interleaved bursts of everything that a ratio with an interval is told of
    engine_sizes: tuple[int, ...]  # records
    overwrites: int  # of each size's records, at most
    single_commits: int  # puts with a commit each
    few_commits: int  # puts in batches of 16
    small_batches: int  # puts in batches of 100
    gets: int
    ranges: int
    node_records: int
    delay_seconds: int  # of a phase at full load
    restart_sizes: tuple[int, ...]  # records
    checkpoint_records: int
    checkpoint_seconds: float  # of one phase at a steady pace
    checkpoint_entries: int  # between two checkpoints
    failovers: int
    steady_seconds: int
    join_sizes: tuple[int, ...]  # records
    join_seconds: float  # of the steady pace before a node joins
    before: str = ""  # a checkout that the part security is compared with

    def rounds_of(self, records: int) -> int:
        """Return how often to measure at this size: once where a round takes minutes."""
        return self.rounds if records < 1_000_000 else 1

    def with_pairs(self, pairs: int) -> Plan:
        """Return a plan of so many pairs, whose bursts are as long as in this one."""
        names = ("single_commits", "few_commits", "small_batches", "gets", "ranges")
        scaled = {name: getattr(self, name) * pairs // self.pairs for name in names}
        return replace(self, pairs=pairs, **scaled)


FULL = Plan(
    name="full",
    rounds=5,
    load_seconds=2,
    connections=(1, 16, 64, 256),
    resp_connections=(1, 64, 256),
    many_connections=1000,
    idle_connections=2000,
    pairs=20,
    engine_sizes=(100_000, 1_000_000, 10_000_000),
    overwrites=2_000_000,
    single_commits=2_000,
    few_commits=8_000,
    small_batches=20_000,
    gets=200_000,
    ranges=5_000,
    node_records=1_000_000,
    delay_seconds=30,
    restart_sizes=(10_000, 100_000, 1_000_000),
    checkpoint_records=1_000_000,
    checkpoint_seconds=10.0,
    checkpoint_entries=5_000,
    failovers=20,
    steady_seconds=600,
    join_sizes=(10_000, 1_000_000),
    join_seconds=10.0,
)

SHORT = replace(
    FULL,
    name="short",
    rounds=2,
    engine_sizes=(100_000, 1_000_000),
    node_records=100_000,
    delay_seconds=20,
    restart_sizes=(10_000, 100_000),
    checkpoint_records=100_000,
    failovers=10,
    steady_seconds=60,
    join_sizes=(10_000, 100_000),
)

QUICK = Plan(
    name="quick",
    rounds=1,
    load_seconds=1,
    connections=(1, 64),
    resp_connections=(1, 64),
    many_connections=1000,
    idle_connections=2000,
    pairs=4,
    engine_sizes=(20_000,),
    overwrites=20_000,
    single_commits=40,
    few_commits=640,
    small_batches=2_000,
    gets=8_000,
    ranges=400,
    node_records=20_000,
    delay_seconds=3,
    restart_sizes=(10_000,),
    checkpoint_records=50_000,
    checkpoint_seconds=4.0,
    checkpoint_entries=2_000,
    failovers=3,
    steady_seconds=10,
    join_sizes=(1_000, 10_000),
    join_seconds=3.0,
)
