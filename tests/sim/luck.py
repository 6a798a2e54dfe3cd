"""What a seed decides before anything happens: how large a cluster is, and what it has to bear."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

from tests.lab import engines

__all__ = ["KEYS", "Luck"]

KEYS = (b"a", b"b", b"c", b"d")
"""The keys of the plain clients; the luck says how many of them are used."""


@dataclass(frozen=True)
class Luck:
    """What a seed decides before anything happens. Faults in times a second, delays in seconds."""

    data_nodes: int = 3
    arbiter: bool = False
    loss: float = 0.0  # of a message
    doubling: float = 0.0  # of a message
    straggling: float = 0.0  # of a message: the chance that it takes up to half a second
    delay: float = 0.001
    in_order: bool = True  # whether messages between two nodes overtake each other
    drift: float = 0.0  # how much faster or slower than 1 a clock may be
    cut: float = 0.0
    crash: float = 0.0
    crash_amid: float = 0.0  # in some call of the file system
    blackout: float = 0.0  # of all machines at once
    stop: float = 0.0
    pause: float = 0.0
    fill: float = 0.0
    fail: float = 0.0  # a file call fails for good
    flood: float = 0.0  # many disks fill at once, for long
    slow: float = 0.0
    disconnect: float = 0.0
    members: float = 0.0
    wipes_leaders: bool = False
    late: bool = False  # whether what a former life of a disk has sent may be taken in late
    seeds: bool = False  # whether nodes that are no members ask to become some
    lease: bool = False
    election_timeout: float = 0.4
    uneven: bool = False  # whether election time-outs differ
    pause_and_crash: float = 0.0  # some machines are paused, and another one loses power then
    ahead: int = 0  # how many revisions a watcher waits for before its first event
    encoded: bool = False  # whether messages travel as bytes
    clients: int = 3
    others: int = 0  # clients that do all the rest
    watchers: int = 0
    pollers: int = 0
    history: int = 200_000  # events that a node keeps
    skew: float = 0.0  # seconds by which wall clocks differ at first
    jump: float = 0.0  # of a wall clock
    keys: int = 3
    think: float = 0.05
    checkpoint_entries: int = 40
    segment_bytes: int = 4096
    chunk_bytes: int = 300
    max_inflight: int = 64
    max_append_bytes: int = 1 << 20
    forward: bool = False  # whether followers pass on what only the leader can do
    hesitant: bool = False  # whether nodes apply no more in one go than they must
    quorum_size: int = 0  # at the beginning; if it isn't 0, it is changed now and then
    engines: int = 0  # 0: the B-tree everywhere, 1: the LSM engine; else each machine draws by it

    @classmethod
    def draw(cls, seed: int) -> Luck:
        """Return the luck of a seed; most kinds of it are absent from most seeds."""
        rng = random.Random(f"luck/{seed}")

        def maybe(chance: float, *values: float) -> float:
            return rng.choice(values) if rng.random() < chance else 0.0

        arbiter = rng.random() < 0.2
        luck = cls(
            data_nodes=rng.choice([2, 2, 4]) if arbiter else rng.choice([3, 3, 3, 4, 5]),
            arbiter=arbiter,
            loss=maybe(0.5, 0.005, 0.03, 0.15),
            doubling=maybe(0.3, 0.01, 0.1),
            straggling=maybe(0.4, 0.002, 0.02, 0.1),
            delay=rng.choice([0.0003, 0.001, 0.005, 0.02]),
            in_order=rng.random() < 0.5,
            drift=maybe(0.5, 0.001, 0.05),
            cut=maybe(0.5, 0.1, 0.5, 1.5),
            crash=maybe(0.5, 0.1, 0.5, 1.0),
            crash_amid=maybe(0.5, 0.1, 0.5, 1.0),
            blackout=maybe(0.2, 0.1, 0.3),
            stop=maybe(0.3, 0.1, 0.4),
            pause=maybe(0.4, 0.1, 0.5),
            fill=maybe(0.2, 0.1, 0.3),
            fail=maybe(0.2, 0.1, 0.3),
            slow=maybe(0.2, 0.1, 0.5),
            disconnect=maybe(0.4, 0.2, 1.0),
            members=maybe(0.6, 0.5, 1.0, 3.0),
            seeds=rng.random() < 0.5,
            lease=rng.random() < 0.4,
            election_timeout=rng.choice([0.2, 0.4]),
            encoded=rng.random() < 0.2,
            clients=rng.randint(1, 4),
            others=rng.choice([0, 1, 2, 3]),
            watchers=rng.choice([0, 0, 1, 3]),
            pollers=rng.choice([0, 0, 2]),
            history=rng.choice([40, 200_000, 200_000]),
            skew=maybe(0.5, 0.1, 30.0),
            jump=maybe(0.4, 0.3, 2.0),
            keys=rng.randint(1, len(KEYS)),
            think=rng.choice([0.02, 0.05, 0.1]),
            checkpoint_entries=rng.choice([5, 20, 60]),
            segment_bytes=rng.choice([1024, 2048, 8192]),
            chunk_bytes=rng.choice([1, 300, 256 << 10]),
            max_inflight=rng.choice([1, 2, 64]),
            max_append_bytes=rng.choice([60, 400, 1 << 20]),
            flood=maybe(0.25, 0.1, 0.4),
        )
        if rng.random() < 0.25:
            late = rng.random() < 0.7
            luck = replace(luck, wipes_leaders=True, late=late, members=max(luck.members, 0.5))
        rng = random.Random(f"more luck/{seed}")
        luck = replace(
            luck,
            uneven=rng.random() < 0.2,
            pause_and_crash=maybe(0.3, 0.1, 0.5),
            ahead=rng.choice([0, 0, 30]),
        )
        if luck.lease:  # what can break it is a leader cut off or paused, where many go on reading
            cut, pause = max(luck.cut, 1.0), max(luck.pause, 0.5)
            luck = replace(luck, cut=cut, pause=pause, clients=6, keys=1, think=0.01)
        # Drawn last, so that what a seed was is left as it was.
        luck = replace(luck, hesitant=random.Random(f"hesitant/{seed}").random() < 0.3)
        luck = replace(luck, quorum_size=_quorum_size(seed, luck.data_nodes, arbiter))
        drawn = random.Random(f"engines/{seed}").choice([0, 0, 1, 1, 2, 3, 4, 5])
        return replace(
            luck,
            engines={"btree": 0, "lsm": 1}.get(engines.TOLD, drawn),
            forward=random.Random(f"forward/{seed}").random() < 0.4,
        )

    def engine(self, name: str, life: int) -> str:
        """Return the engine that a machine has in a life of its disk."""
        if self.engines < 2:
            return ("btree", "lsm")[self.engines]
        return random.Random(f"engine/{self.engines}/{name}/{life}").choice(["btree", "lsm"])

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value)


def _quorum_size(seed: int, data_nodes: int, arbiter: bool) -> int:
    """Return a quorum size that changes something in a cluster of these founders, or mostly 0."""
    rng = random.Random(f"quorum size/{seed}")
    least = (data_nodes + arbiter) // 2 + 1 - arbiter
    sizes = range(max(least, 1) + 1, data_nodes + 1)
    return rng.choice(sizes) if sizes and rng.random() < 0.4 else 0
