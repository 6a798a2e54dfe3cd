"""Clusters of real nodes in one thread: a fake network, clock and disk, and much bad luck.

Everything that decides anything is real: driver, core, log, tree, snapshots (node.py and below).
What a seed decides is the world around them::

    Simulation      the events in the order of their time; one random generator for all of them
      Machine       a server: its disk (crashfs.py), its address, and the process that runs on it
        Node        the real one, without its threads: the machine calls tick() and housekeep()
      Network       messages and snapshots between machines; loses, doubles, delays, is cut.
                    A connection has one handshake and lasts while both ends live and believe
                    each other
      clients       write and read a few keys anywhere, and keep the history; some of them do
                    all else that there is (clients.py)
      watchers      see what happens, at any node (watchers.py)
      operator      joins, removes, moves and wipes nodes, hands leadership over; leaders that
                    lose their disk may be back before they are missed
      nemesis       cuts, crashes, pauses, fills, slows down, and sets wall clocks

Whatever takes time in a real process takes none here and keeps the machine *busy*: what it sends
and answers leaves later. Where a node rests amid a checkpoint the others go on, and so do its own
other threads: resting runs the events of that time, inside of the call.

After every step the machine that has just done something is looked at:

==================== ===========================================================================
election safety      at most one leader a term
one vote a term      per life of a data directory; and term and vote are on the disk before any
                     message that says so (R1), entries before their acknowledgement (R2)
log matching         equal index and term mean an equal entry, behind an equal one
state machine safety nobody commits another entry at an index than the first who did
leader completeness  a new leader's log holds all that was committed before
monotonicity         term, commit and applied index never fall while a process lives; the term
                     not even over a restart
R7                   equal applied index means equal digest and, now and then, equal records
leases (R9)          nobody leads in a later term while a node, by its own clock, holds one
clocks               a leader's time follows its monotonic clock, whatever its wall clock does;
                     the state's never falls
belonging            who is connected to members, or holds a log, has been admitted with that data
                     directory; a connection is open exactly as long as both ends would make it
health               no node fails, refuses to start or receives nonsense unless its disk was
                     told to fail; a full disk ends nobody, and keeps nobody from starting who
                     has what it needs for that
==================== ===========================================================================

When the time is up, the faults end. Within a bounded time the cluster has to come back: one leader,
every client served on every key, all data nodes at one index with one digest, trees and logs whole
(liveness); nothing is left that should have expired. The history of each key has to be
linearizable as a register's, the committed log has to explain every answer (linearizability.py)
and be what the nodes have made of it (model.py), and each watcher has to have seen all of it once.
By hand::

    python -m tests.sim --seeds 1000 [--start N] [--jobs 2] [--steps N] [--verbose]
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import logging
import multiprocessing
import random
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zlib import crc32

import btree
from conure.cluster import checkpointing
from conure.cluster import node as node_module
from conure.cluster.node import Node
from conure.cluster.options import APPLY_SECONDS, NodeOptions
from conure.commands import EventKind
from conure.consensus import spares
from conure.consensus.members import Configuration
from conure.consensus.messages import COMMAND, CONFIG, Entry, Message, MessageType, Ready, State
from conure.errors import (
    Conflict,
    ConureError,
    DiskFailed,
    DiskFull,
    MemberNotFound,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
    Unavailable,
)
from conure.metrics import Registry
from conure.peers.frames import decode_message, encode_message
from conure.peers.protocol import Greeting
from conure.peers.transfer import Outgoing
from conure.service import watchers as watchers_module
from conure.service.watchers import Watchers
from conure.state import codec, snapshots
from conure.state.history import History, Position
from conure.storage import writeback
from raft import Raft
from tests.lab.crashfs import SECTOR, CrashFileSystem, CrashMode, FailureKind, SimulatedCrash
from tests.lab.linearizability import DELETE, GET, PUT, Call, Operation, Seen, check_history
from tests.lab.model import Command, agree
from tests.sim.clients import Clients, Done, Lost, Reply, write
from tests.sim.watchers import Poller, Stream, Watcher

__all__ = [
    "BROKEN_DISK",
    "KEYS",
    "Broken",
    "Luck",
    "Machine",
    "Process",
    "Simulation",
    "fake_world",
    "founders",
    "main",
    "play",
]

KEYS = (b"a", b"b", b"c", b"d")
STEPS = 2500
"""Events of the fake world before its faults end: what a short run takes."""

CALM_BEFORE = 30.0
"""Seconds of the fake clock within which a mended cluster has to serve everybody."""

CRASH_MODES: tuple[CrashMode, ...] = ("dropped", "dropped", "kept", "torn", "random")
CALL_TIMEOUT = 1.2
EPOCH = 1_700_000_000.0
"""What an honest wall clock tells at the beginning."""

_BINDING = frozenset(MessageType) - {
    MessageType.PRE_VOTE,
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.AUDIT,
    MessageType.AUDIT_RESPONSE,
}
"""What promises something that has to be on the sender's disk."""

BROKEN_DISK = (DiskFailed, SimulatedCrash)
"""What a node may fail of whose disk was told to fail. That it is full is no reason."""


class Broken(AssertionError):
    """Something that must never happen has happened; str() says what."""


class _Cut(Exception):
    """A connection broke, perhaps behind a piece of a snapshot that has arrived."""

    got_further = False


Process = Generator["float | Pending", Any, None]
"""Something that goes on by itself: it yields seconds to wait or a request to be answered."""


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
    hesitant: bool = False  # whether nodes apply no more in one go than they must

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
        return replace(luck, hesitant=random.Random(f"hesitant/{seed}").random() < 0.3)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value)


# -- the disk ------------------------------------------------------------------------------------


class Disk(CrashFileSystem):
    """A disk that may also lose power in any of its calls, and that takes its time."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.crash_in: int | None = None
        """How many calls from now the power goes off."""

    def count(
        self,
        doing: str,
        poison: Callable[[str], None] | None = None,
        *,
        may_need_space: bool = False,
    ) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in == 0:
                self.kill()
                raise SimulatedCrash(doing)
        super().count(doing, poison, may_need_space=may_need_space)

    def count_sync(self) -> None:
        self._machine.work(self._machine.sync_seconds)
        super().count_sync()

    @property
    def is_dead(self) -> bool:
        return self._dead

    @contextlib.contextmanager
    def without_faults(self) -> Iterator[None]:
        """Let somebody who isn't there look at the files."""
        faults = self.crash_in, self._fail_at
        self.crash_in = self._fail_at = None
        yield
        self.crash_in, self._fail_at = faults

    def kill(self) -> None:
        """Switch the power off: every further call raises SimulatedCrash."""
        self._dead = True

    def after(self, mode: CrashMode, rng: random.Random, machine: Machine) -> Disk:
        """Return what the next boot of a machine finds."""
        survivor = Disk(machine)
        vars(survivor).update(vars(self.after_crash(mode, rng)))
        return survivor


# -- servers -------------------------------------------------------------------------------------


class Machine:
    """A server: a disk that stays, and a process that comes and goes (each one a generation)."""

    def __init__(self, world: Simulation, name: str, role: str, *, bootstrap: bool = False) -> None:
        self.world = world
        self.name = name
        self.role = role
        self.bootstrap = bootstrap
        self.disk = Disk(self)
        self.host = name
        self.rate = 1.0
        self.generation = 0
        self.lives = 0  # of its disk
        self.node: Node
        self.transport: Peers
        self.up = False
        self.stays_down = False  # until somebody boots it
        self.paused = False
        self.is_voter = True  # what it is to be, once it is a member
        self.is_wiped = False  # lost its disk, and was not removed and joined again since
        self.excuses: tuple[type[BaseException], ...] = ()  # what it may fail of just now
        self.may_end = False  # of a start that a full disk has refused
        self.uses_reserve = self.waits = False  # of its log, for room
        self.keeping = False  # amid housekeep()
        self.busy_until = 0.0
        self.sync_seconds = 0.0002
        self.inbox: list[tuple[Peers, Message]] = []
        self.draining = False
        self.waiting: list[Callable[[], None]] = []  # what came in during a pause
        self.term = self.commit = self.applied = 0  # the highest seen, in this generation
        self.election_timeout = world.luck.election_timeout
        self.history = History()
        self.watchers: Watchers[Stream]
        self.streams: dict[Stream, None] = {}
        self.turns = 0  # of the watchers' pump
        self.wall_offset = 0.0
        self.read_clock = (0, 0.0, 0)  # term, moment and time of the last look
        self.judged_by: tuple[object, ...] = ()  # what its connections depend on, as last seen
        self.led = 0  # the last term it was seen leading
        self.failure: BaseException | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:7001"

    @property
    def raft(self) -> Raft:
        return self.node._raft

    @property
    def incarnation(self) -> str:
        return self.node._directory.identity.incarnation

    def clock(self) -> float:
        return self.world.now * self.rate + 1000.0

    def wall(self) -> float:
        return EPOCH + self.world.now * self.rate + self.wall_offset

    def work(self, seconds: float) -> None:
        """Take time: what the process does from here on happens later."""
        self.busy_until = max(self.busy_until, self.world.now) + seconds

    # -- life ------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the process. Where its disk lets it down it stays down, to be started again."""
        assert not self.up
        world, luck = self.world, self.world.luck
        self.generation += 1
        generation = self.generation
        self.inbox, self.draining, self.waiting = [], False, []
        self.commit = self.applied = self.led = 0
        self.read_clock = (0, 0.0, 0)
        self.failure = None
        self.paused = self.keeping = self.may_end = False
        self.transport = Peers(self)
        world.trace(f"{self.name} boots at {self.address}")
        options = NodeOptions(
            node_id=self.name,
            told_node_id=True,
            data_dir="/data",
            raft_address=self.address,
            http_address=f"http://{self.host}:8081",
            bootstrap=self.bootstrap,
            version="sim",
            role=self.role,
            election_timeout=self.election_timeout,
            read_mode="lease" if luck.lease else "index",
            barrier_timeout=0.6,
            write_timeout=0.9,
            page_size=512,
            cache_bytes=1 << 16,
            log_segment_bytes=luck.segment_bytes,
            checkpoint_log_bytes=1 << 14,
            checkpoint_entries=luck.checkpoint_entries,
            checkpoint_interval=5.0,
            apply_seconds=0.0 if luck.hesitant else APPLY_SECONDS,
        )
        self.up = True
        rng = random.Random(f"{world.seed}/{self.name}/{generation}")
        self.run(self._open, options, rng, generation)
        if not self.up:
            return
        world.start(self._discover(generation))
        world.after(rng.random() * node_module.TICK, partial(self._tick, generation))
        world.after(rng.random() * node_module.HOUSEKEEPING, partial(self._housekeep, generation))

    def _open(self, options: NodeOptions, rng: random.Random, generation: int) -> None:
        transport: Any = self.transport
        registry = Registry()
        self.history = History(self.world.luck.history)
        asked_for_room = self.disk.failure_is_due or self.disk.copies_on_write
        try:
            self.node = Node.open(
                options,
                self.disk,
                transport,
                registry,
                partial(self._on_failure, generation),
                self.history,
                clock=self.clock,
                wall=self.wall,
                rng=rng,
                call_later=partial(self._call_later, generation),
            )
            self.watchers = Watchers(
                self.history, registry, broadcast=_broadcast, progress_interval=0.5
            )
            self.world.watch(self)
            self.node.recover()
        except (ConureError, SimulatedCrash) as error:
            if isinstance(error, DiskFull) and (asked_for_room or self._lacks_something()):
                self.world.counts["starts that a full disk refused"] += 1
                self.may_end = True
            elif not isinstance(error, SimulatedCrash) and not self._is_excused(error):
                self.world.fail(f"{self.name} doesn't start", error)
            self.failure = error

    def _lacks_something(self) -> bool:
        """Tell whether the disk has less on it than a start on a full disk needs."""
        files = ("identity.json", "conure.db", "raft/snapshot")
        if not all(self.disk.exists(f"/data/{name}") for name in files):
            return True
        return not any(name.endswith(".reserve") for name in self.disk.list("/data/raft"))

    def _call_later(self, generation: int, action: Callable[[], None], seconds: float) -> None:
        """In no fixed order with what else comes, as where clients and peers are many."""
        seconds += self.world.rng.choice([0.0, 0.0, 0.001, 0.02])
        act = partial(self.run, action)
        self.world.after(seconds, partial(self._catch_up, generation, act))

    def _on_failure(self, generation: int) -> None:
        if generation == self.generation:
            self.failure = self.node._standing.failure

    def _is_excused(self, error: BaseException) -> bool:
        return self.disk.is_dead or isinstance(error, self.excuses)

    def crash(self) -> None:
        """Lose power."""
        if self.up:
            self.disk.kill()
            self._end()

    def stop(self) -> None:
        """End the process in an orderly way: it writes a checkpoint."""
        generation = self.generation
        try:
            self.run(self.watchers.stop)
            self.run(self.node.stop)
        except ConureError as error:
            if not self._is_excused(error):
                self.world.fail(f"{self.name} can't stop", error)
        if generation == self.generation:
            self.world.trace(f"{self.name} stops")
            self._gone()
            self.disk.restart_process()

    def _end(self) -> None:
        """The process is over: by loss of power, or because the node has failed."""
        rng = self.world.rng
        if not self.disk.is_dead and rng.random() < 0.5:
            self.world.trace(f"{self.name} ends")
            self._gone()
            self.disk.restart_process()
            return
        mode = rng.choice(CRASH_MODES)
        self.world.trace(f"{self.name} crashes, unsynced bytes {mode}")
        self.world.counts["crashes"] += 1
        self._gone()
        self.disk = self.disk.after(mode, rng, self)

    def _gone(self) -> None:
        """The process has ended; somebody will start it again."""
        self.up = False
        self.generation += 1
        self.busy_until = self.world.now
        for stream in list(self.streams):
            stream.break_off()
        self.world.after(self.world.rng.choice([0.05, 0.3, 1.0]), self._boot_again)

    def _boot_again(self) -> None:
        if not self.up and not self.stays_down:
            self.boot()

    def wipe(self) -> None:
        """Replace the disk by an empty one. The machine has to be down."""
        assert not self.up
        self.world.trace(f"{self.name} loses its disk")
        self.world.counts["wiped disks"] += 1
        self.world.network.lost_disk(self.name)
        self.disk = Disk(self)
        self.term = 0
        self.lives += 1
        self.is_wiped = True

    # -- input -----------------------------------------------------------------------------------

    def run(self, what: Callable[..., Any], *args: Any) -> Any:
        """Have the process do something, and look at it when it has come to rest.

        Returns None when the machine has died of it; a ConureError is passed on.
        """
        generation = self.generation
        self.world.running.append((self, generation))
        try:
            return what(*args)
        except SimulatedCrash:
            return None
        finally:
            self.world.running.pop()
            if generation == self.generation:
                self._settle()

    def _settle(self) -> None:
        world = self.world
        if world.broken is not None:
            raise world.broken
        if self.disk.is_dead:
            self._end()
        elif self.failure is not None:
            if not self.may_end and not self._is_excused(self.failure):
                world.fail(f"{self.name} has failed", self.failure)
            self._end()
        elif self.up:
            world.inspect(self)

    def when_free(self, what: Callable[[], None]) -> None:
        """Call it now, or when a pause or other work is over; never, if the process ends."""
        if self.paused:
            self.waiting.append(what)
        elif self.busy_until > self.world.now:
            self.world.at(self.busy_until, partial(self._catch_up, self.generation, what))
        else:
            what()

    def pause(self) -> None:
        """Stop the process without ending it (SIGSTOP); the world goes on."""
        self.world.trace(f"{self.name} pauses")
        self.world.counts["pauses"] += 1
        self.paused = True

    def resume(self, generation: int) -> None:
        if generation == self.generation and self.paused:
            self.world.trace(f"{self.name} goes on")
            self.paused = False
            waiting, self.waiting = self.waiting, []
            self.world.rng.shuffle(waiting)
            for what in waiting:
                self.world.after(0.0, partial(self._catch_up, generation, what))

    def _catch_up(self, generation: int, what: Callable[[], None]) -> None:
        if generation == self.generation:
            self.when_free(what)

    def take(self, source: Peers, message: Message) -> None:
        """A message has arrived. All that came from one peer since the last look go together."""
        self.inbox.append((source, message))
        if not self.draining:
            self.draining = True
            self.when_free(self._drain)

    def _drain(self) -> None:
        self.draining = False
        while self.inbox:
            source = self.inbox[0][0]
            messages = [message for sender, message in self.inbox if sender is source]
            self.inbox = [item for item in self.inbox if item[0] is not source]
            generation = self.generation
            self.run(self.node.receive, messages)
            if generation != self.generation:
                return

    def _tick(self, generation: int) -> None:
        if generation != self.generation:
            return
        self.world.after(node_module.TICK / self.rate, partial(self._tick, generation))
        if not self.paused and self.busy_until <= self.world.now:
            self.run(self.node.tick)
            if generation == self.generation and self.world.rng.random() < 0.7:
                self.run(self.watchers.turn)
                self.turns += 1

    def _discover(self, generation: int) -> Process:
        """Ask others to add this node, as joining.py does.

        Without seeds only a member asks, which may have been moved, perhaps before it knew that it
        is one, or call others at addresses they have left. That is what its operator does then.
        """
        world = self.world
        while True:
            yield 0.2 + 0.4 * world.rng.random()
            if generation != self.generation:
                return
            if self.paused or not self.node.wants_to_join():
                continue
            if world.luck.seeds or world.is_listed(self.name):
                yield from world.join(self, voter=self.is_voter, patience=1.0, is_itself=True)

    def _housekeep(self, generation: int) -> None:
        if generation != self.generation:
            return
        if not self.paused and not self.keeping and self.busy_until <= self.world.now:
            self.keeping = True
            try:
                self.run(self.node.housekeep)
            finally:
                if generation == self.generation:
                    self.keeping = False
        self.world.after(node_module.HOUSEKEEPING / self.rate, partial(self._housekeep, generation))


def _waits(machine: Machine) -> bool:
    """Tell whether something that a node has to write waits for room, though time may pass before
    it finds that there is some: it looks once a second."""
    return bool(machine.node._room.unwritten) or machine.node._room.stalled is not None


# -- the network ---------------------------------------------------------------------------------


class Peers:
    """The twin of transport.Transport: one process's way to the others."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.generation = machine.generation
        self.life = machine.lives
        self.addresses: dict[str, str] = {}
        self.transfers: set[str] = set()
        self.port = 7001
        self.host: Any = None

    @property
    def is_alive(self) -> bool:
        return self.generation == self.machine.generation and not self.machine.disk.is_dead

    def start(self) -> None:
        """Nothing to do: there are no threads."""

    def close(self) -> None:
        """Nothing to do: the machine's generation ends with the process."""

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self.addresses = dict(peers)

    def send(self, message: Message) -> None:
        if self.is_alive:
            self.machine.world.network.send(self, message)

    def connect(self, node_ids: Iterable[str]) -> None: ...

    def judge(
        self, believes: Callable[[Greeting, str], bool], expects: Callable[[Greeting], bool]
    ) -> None:
        self.machine.world.network.judge(self, believes, expects)

    def send_snapshot(self, outgoing: Outgoing) -> None:
        if self.is_alive:
            self.machine.world.start(self.machine.world.network.transfer(self, outgoing))

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        if self.is_alive:
            self.machine.world.start(
                self.machine.world.network.probe(self, address, node_id, reply, known_as)
            )


_Way = tuple[Peers, str, str]
"""Whose connection it is, to which node, at which address."""


@dataclass(eq=False)
class Connection:
    """What was said at the handshake, and whether either end has closed it for that since."""

    source: Peers
    target: Peers
    caller: Greeting
    known_as: str
    answerer: Greeting
    is_dropped: bool = False

    def is_refused(
        self,
        judge: Peers,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> bool:
        """Tell whether one process would not have it any more."""
        return (self.target is judge and not believes(self.caller, self.known_as)) or (
            self.source is judge and not expects(self.answerer)
        )


class Network:
    """Messages on their way, and who can reach whom."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.cut: set[tuple[str, str]] = set()
        self._connections: dict[_Way, Connection] = {}
        self._transfers: dict[Connection, None] = {}  # those of snapshots
        self._recent: dict[str, deque[tuple[Connection, Message]]] = {}  # messages, by machine
        self._former: dict[str, list[tuple[Connection, Message]]] = {}  # of disks that were lost
        self._not_before: dict[_Way, float] = {}  # back-off after a failed dial
        self._last: dict[tuple[str, str], float] = {}  # when the last message arrives, in order

    def heal(self) -> None:
        self.cut.clear()
        self._not_before.clear()

    def disconnect(self) -> None:
        """Break one connection: what is on its way on it is lost."""
        if self._connections:
            way = self._world.rng.choice(list(self._connections))
            self._world.trace(f"the connection {way[0].machine.name}→{way[2]} breaks")
            self._break(way)

    def judge(
        self,
        judge: Peers,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> None:
        """Close what one process wouldn't have any more."""
        for transfer in self._transfers:
            transfer.is_dropped |= transfer.is_refused(judge, believes, expects)
        for way, connection in list(self._connections.items()):
            if connection.is_refused(judge, believes, expects):
                self._world.counts["connections judged and closed"] += 1
                self._world.trace(f"{way[0].machine.name}→{way[1]} is closed: judged again")
                self._break(way)

    def check(self, judge: Peers) -> None:
        """See that a process has closed what it wouldn't open now."""
        admission = judge.machine.node._admission
        for way, connection in self._connections.items():
            self._world.expect(
                not connection.is_refused(judge, admission.believes, admission.expects),
                f"{judge.machine.name} keeps {way[0].machine.name}→{way[1]}, which it would refuse",
            )

    def latency(self, machine: Machine) -> float:
        """Return how long from now something takes that a machine sends now."""
        world, luck = self._world, self._world.luck
        late = max(0.0, machine.busy_until - world.now)
        if not world.mending and world.rng.random() < luck.straggling:
            return late + world.rng.random() * 0.5
        return late + luck.delay * (0.5 + world.rng.random())

    def send(self, source: Peers, message: Message) -> None:
        world, luck = self._world, self._world.luck
        world.check_message(source.machine, message)
        address = source.addresses.get(message.to)
        if address is None:
            return
        world.counts["messages"] += 1
        if luck.encoded:
            message = decode_message(encode_message(message))
        copies = 1
        if not world.mending:
            chance = world.rng.random()
            copies = 0 if chance < luck.loss else 2 if chance > 1 - luck.doubling else 1
        connection = self._connections.get((source, message.to, address))
        if connection is not None and luck.late:
            recent = self._recent.setdefault(source.machine.name, deque(maxlen=20))
            recent.append((connection, message))
        for _ in range(copies):
            when = world.now + self.latency(source.machine)
            if luck.in_order:
                way = (source.machine.name, message.to)
                when = self._last[way] = max(when, self._last.get(way, 0.0))
            world.at(when, partial(self._arrive, source, message, address))

    def _arrive(self, source: Peers, message: Message, address: str) -> None:
        world = self._world
        way = (source, message.to, address)
        connection = self._connections.get(way)
        if connection is None or not connection.target.is_alive:
            if not source.is_alive or self._not_before.get(way, 0.0) > world.now:
                return
            if connection is not None:
                self._break(way)
            try:
                connection = self.connect("messages", source, address, message.to)
            except (_Cut, ConureError):
                self._not_before[way] = world.now + 0.05 + 0.1 * world.rng.random()
                self._tell_unreachable(source, message.to)
                return
            self._connections[way] = connection
        target = connection.target
        if (source.machine.name, target.machine.name) in self.cut:
            return
        world.trace(
            f"{message.sender}→{message.to} {message.type.name} {message.term} {message.index} "
            f"{message.log_term} {message.commit} {message.hint} {len(message.entries)}"
            f"{' reject' if message.reject else ''}"
        )
        message.incarnation = connection.caller.incarnation
        target.machine.take(source, message)

    def lost_disk(self, name: str) -> None:
        """A machine has lost its disk. What it sent last may be taken in late: within seconds, or
        when it is admitted again."""
        world = self._world
        for connection, message in self._recent.pop(name, ()):
            if world.rng.random() < 0.5:
                take = partial(self._take_late, connection, message)
                world.after(world.rng.uniform(0.0, 2.0), take)
            else:
                self._former.setdefault(name, []).append((connection, message))

    def admitted_again(self, name: str) -> None:
        """A machine with a new disk is a member by the log of a leader."""
        for connection, message in self._former.pop(name, ()):
            take = partial(self._take_late, connection, message)
            self._world.after(self._world.rng.uniform(0.0, 0.05), take)

    def _take_late(self, connection: Connection, message: Message) -> None:
        """Take a message in that had been read when its connection was closed: as a thread may
        that waits for the node."""
        if connection.target.is_alive:
            self._world.counts["messages of former lives"] += 1
            self._world.trace(f"{message.sender}→{message.to} {message.type.name} late")
            message.incarnation = connection.caller.incarnation
            connection.target.machine.take(connection.source, message)

    def connect(
        self, kind: str, source: Peers, address: str, to: str, known_as: str | None = None
    ) -> Connection:
        """Shake hands with who answers at the address. Raises _Cut, or Refused."""
        world = self._world
        machine = next((one for one in world.machines.values() if one.address == address), None)
        if machine is None or not machine.up or machine.paused or not source.is_alive:
            raise _Cut
        names = (source.machine.name, machine.name)
        if names in self.cut or names[::-1] in self.cut:
            raise _Cut
        target, node = machine.transport, source.machine.node
        if known_as is None:
            known_as = node.known_as(to)
        made = Connection(source, target, node.greeting(), known_as, machine.node.greeting())
        try:
            machine.run(machine.node.admit, kind, to, made.caller, known_as)
            if not target.is_alive:
                raise _Cut
            if kind != "probe":
                source.machine.run(node.recognise, to, made.answerer)
        except Refused as error:
            world.counts["refused connections"] += 1
            world.trace(f"{names[0]}→{names[1]} {kind} refused")
            if world.verbose:
                world.trace(f"  because {error}")
            raise
        if not (source.is_alive and target.is_alive):
            raise _Cut
        if kind != "probe":
            for judge in (source, target):
                what = f"{names[0]}→{names[1]} {kind} would be closed by {judge.machine.name}"
                admission = judge.machine.node._admission
                is_refused = made.is_refused(judge, admission.believes, admission.expects)
                world.expect(not is_refused, what)
            for end in (made.caller, made.answerer):
                world.expect(
                    end.incarnation in world.admitted,
                    f"{names[0]}→{names[1]} {kind} though {end.node_id} was never admitted",
                )
        return made

    def _break(self, way: _Way) -> None:
        source, to, _ = way
        target = self._connections.pop(way).target
        target.machine.inbox = [item for item in target.machine.inbox if item[0] is not source]
        self._tell_unreachable(source, to)

    def _tell_unreachable(self, source: Peers, to: str) -> None:
        def tell() -> None:
            if source.is_alive:
                source.machine.run(source.machine.node.unreachable, to)

        self._world.after(0.001, lambda: source.machine.when_free(tell))

    def probe(
        self,
        source: Peers,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> Process:
        yield self.latency(source.machine)
        answer: Greeting | ConureError
        try:
            answer = self.connect("probe", source, address, node_id, known_as).answerer
        except _Cut:
            yield 0.2
            answer = Unavailable(f"{address} can't be reached")
        except Refused as error:
            answer = error
        yield self.latency(source.machine)
        if source.is_alive:
            source.machine.when_free(lambda: source.machine.run(reply, answer))

    # -- snapshots -------------------------------------------------------------------------------

    def transfer(self, source: Peers, outgoing: Outgoing) -> Process:
        """Send a snapshot; over several connections, if they break."""
        header = outgoing.header
        to = header.message.to
        snapshot = header.message.snapshot
        assert snapshot is not None
        index: int | None = None
        world = self._world
        world.counts["snapshots begun"] += 1
        if to in source.transfers:
            outgoing.close()
            yield 0.0
        else:
            source.transfers.add(to)
            attempts = 0  # in a row, none of which got further
            while attempts < 5:
                attempts += 1
                yield self.latency(source.machine)
                if not source.is_alive:
                    return
                try:
                    yield from self._stream(source, outgoing, source.addresses.get(to, ""))
                except _Cut as cut:
                    attempts = 0 if cut.got_further else attempts
                    yield 0.05
                except ConureError as error:
                    world.trace(f"{source.machine.name}→{to} snapshot ends: {type(error).__name__}")
                    break
                else:
                    index = snapshot.index
                    world.counts["snapshots"] += 1
                    break
            outgoing.close()
            source.transfers.discard(to)
        if source.is_alive:
            world.trace(f"{source.machine.name}→{to} snapshot {snapshot.index} ends: {index}")
            source.machine.run(source.machine.node.snapshot_sent, to, index)

    def _stream(self, source: Peers, outgoing: Outgoing, address: str) -> Process:
        """Send a snapshot over one connection. Raises _Cut, and what the receiver raises."""
        connection = self.connect("snapshot", source, address, outgoing.header.message.to)
        self._transfers[connection] = None
        try:
            yield from self._pour(connection, outgoing)
        finally:
            del self._transfers[connection]

    def _pour(self, connection: Connection, outgoing: Outgoing) -> Process:
        source, target = connection.source, connection.target
        machine = target.machine
        outgoing.header.message.incarnation = connection.caller.incarnation
        incoming = machine.run(machine.node.begin_snapshot, outgoing.header)
        if incoming is None:
            if not target.is_alive:
                raise _Cut
            return
        got_further = False
        try:
            last = incoming.resume_after()
            self._world.counts["resumed snapshots"] += bool(last)
            chunks = outgoing.chunks(last)
            while (chunk := source.machine.run(next, chunks, None)) is not None:
                yield from self._hold(connection)
                machine.run(incoming.add, chunk)
                got_further = True
            yield from self._hold(connection)
            machine.run(incoming.finish)
            yield from self._hold(connection)
        except _Cut as cut:
            cut.got_further = got_further
            if target.is_alive:
                self._world.counts["interrupted snapshots"] += 1
                machine.run(incoming.interrupted)
            raise

    def _hold(self, connection: Connection) -> Process:
        """Let a piece of a snapshot travel. Raises _Cut when it doesn't arrive."""
        world, source, target = self._world, connection.source, connection.target
        yield self.latency(source.machine)
        while target.is_alive and (target.machine.keeping or target.machine.paused):
            yield 0.01  # it waits for a checkpoint to end, or for the process to go on
        names = (source.machine.name, target.machine.name)
        is_cut = names in self.cut or names[::-1] in self.cut
        if is_cut or connection.is_dropped or not (source.is_alive and target.is_alive):
            raise _Cut
        if not world.mending and world.rng.random() < world.luck.loss + world.luck.disconnect / 5:
            raise _Cut


# -- requests from outside -----------------------------------------------------------------------


def _broadcast(streams: Sequence[Stream], data: bytes) -> None:
    for stream in streams:
        stream.send(data)


class Pending:
    """A request on its way: its answers, one for each of *size* commands."""

    def __init__(self, world: Simulation, size: int) -> None:
        self._world = world
        self.answers: list[Any] = [Lost("no answer came")] * size
        self._missing = size
        self._waiting: Process | None = None

    def wait(self, process: Process) -> None:
        """Let a process go on with the answers when all have come, or when it is too late."""
        self._waiting = process
        self._world.after(CALL_TIMEOUT, self._go_on)

    def answer(self, start: int, stop: int, answers: Sequence[object]) -> None:
        """Take the answers to some of the commands: errors, or what was done or read."""
        if self._waiting is None:
            return
        self.answers[start:stop] = answers
        self._missing -= stop - start
        if self._missing == 0:
            self._go_on()

    def _go_on(self) -> None:
        process, self._waiting = self._waiting, None
        if process is not None:
            self._world.go_on(process, self.answers)


def _read(keys: Sequence[bytes], stale: bool) -> Callable[[Node, Reply], None]:
    """Return the request for the records of keys, as httpapi.py puts it; each comes with the
    revision of the state that has it."""

    def call(node: Node, reply: Reply) -> None:
        def confirmed(error: ConureError | None) -> None:
            if error is not None:
                reply(0, len(keys), [error] * len(keys))
                return
            index, records = node.get_all(keys)
            for position, found in enumerate(records):
                answer = found if isinstance(found, ConureError) else (index, found)
                reply(position, position + 1, [answer])

        if stale:
            confirmed(None)
        else:
            node.confirm_read(confirmed)

    return call


def _administer(request: Callable[[Node, Callable[[object], None]], None]) -> Any:
    """Return a request with one answer."""
    return lambda node, reply: request(node, lambda answer: reply(0, 1, [answer]))


class Simulation:
    """One history, as its seed decides it. A failure raises Broken, or linearizability's error."""

    def __init__(self, seed: int, luck: Luck, *, verbose: bool = False) -> None:
        self.seed = seed
        self.luck = luck
        self.verbose = verbose
        self.rng = random.Random(f"sim/{seed}")
        self.now = 0.0
        self.steps = 0
        self.mending = False
        self.compares_digests = True
        self.broken: Broken | None = None
        self.running: list[tuple[Machine, int]] = []
        self.machines: dict[str, Machine] = {}
        self.network = Network(self)
        self.others = Clients(self)
        self.watchers: list[Watcher] = []
        self.pollers: list[Poller] = []
        self.keys = KEYS[: luck.keys]
        self.counts: Counter[str] = Counter()
        self.trace_hash = 0
        self.history: dict[int, Operation] = {}  # by one of its moments
        self._recent: deque[str] = deque(maxlen=80)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0  # of the last event
        self._moment = 0  # of the clients' clock
        self._values = 0
        self._refused: set[bytes] = set()
        self._favourites: dict[int, str] = {}
        self._late_readers = 0
        self._owners: dict[str, str] = {}  # of hosts, now or at last: machines

        # What was seen, of all nodes and for ever.
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._entries: dict[tuple[int, int], tuple[int, int, bytes | None]] = {}
        self._committed: dict[int, tuple[int, int]] = {}  # index: term of the entry, seen in term
        self._last_committed = 0
        self._founded = 0  # entries up to here are from before; there are no commands among them
        self._digests: dict[int, int] = {}
        self._contents: dict[int, int] = {}
        self.admitted: set[str] = set()  # incarnations

    def add(self, name: str, role: str = "data", *, bootstrap: bool = False) -> Machine:
        """Add a machine with an empty disk; it is down."""
        machine = Machine(self, name, role, bootstrap=bootstrap)
        machine.rate = 1.0 + self.luck.drift * self.rng.uniform(-1, 1)
        machine.wall_offset = self.luck.skew * self.rng.uniform(-1, 1)
        if self.luck.uneven:
            machine.election_timeout = self.rng.choice([0.2, 0.4, 0.8])
        self.counts["arbiters"] += role == "arbiter"
        self.machines[name] = machine
        self._owners[name] = name
        return machine

    # -- time ------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Have something happen at a time that has not passed yet."""
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.now + seconds, what)

    def start(self, process: Process) -> None:
        """Let a process begin."""
        self.go_on(process, None)

    def go_on(self, process: Process, value: object) -> None:
        try:
            wanted = process.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Pending):
            wanted.wait(process)
        else:
            self.after(wanted, partial(self.go_on, process, None))

    def step(self) -> None:
        """Let the next thing happen."""
        when, _, what = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.steps += 1
        what()
        if self.broken is not None:
            raise self.broken

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.now = max(self.now, end)

    def run_until(self, what: Callable[[], bool], seconds: float = CALM_BEFORE) -> bool:
        """Let time pass until something is true; tell whether that was in time."""
        end = self.now + seconds
        while not what():
            if self.now > end:
                return False
            self.step()
        return True

    def rest(self, seconds: float) -> None:
        """What a node calls for sleep(): the others, and its own other threads, go on."""
        machine, generation = self.running[-1]
        self.run_for(seconds)
        while machine.paused and generation == machine.generation:
            self.run_for(0.01)
        if generation != machine.generation:
            raise SimulatedCrash("the process is gone")

    # -- what is always true ---------------------------------------------------------------------

    def trace(self, line: str) -> None:
        self.trace_hash = crc32(line.encode(), self.trace_hash)
        self._recent.append(f"{self.now:9.4f} {line}")
        if self.verbose:
            print(self._recent[-1])

    def fail(self, what: str, error: BaseException | None = None) -> None:
        """Note that something must not have happened; the step at hand ends with it."""
        if self.broken is None:
            if error is not None:
                what += ": " + "".join(traceback.format_exception(error))
            recent = "\n".join(self._recent)
            self.broken = Broken(f"{what}\nat {self.now:.4f} s, behind\n{recent}")

    def expect(self, truth: bool, what: str) -> None:
        if not truth:
            self.fail(what)

    def watch(self, machine: Machine) -> None:
        """See what a core hands to its driver and what it is given."""
        raft = machine.raft
        luck = self.luck
        raft.options = replace(
            raft.options, max_inflight=luck.max_inflight, max_append_bytes=luck.max_append_bytes
        )
        for _, configuration in raft._configurations:
            self.admitted.update(server.incarnation for server in configuration.servers)
        ready, step = raft.ready, raft.step
        is_arbiter = machine.role == "arbiter"

        def watched_ready() -> Ready | None:
            found = ready()
            if found is not None:
                self._observe(machine, is_arbiter, found)
            return found

        def watched_step(message: Message) -> None:
            try:
                step(message)
            except ProtocolViolation as error:
                self.fail(f"{machine.name} was sent nonsense: {message}", error)
                raise

        expiries = machine.node._expiries
        time = expiries.time

        def watched_time() -> int:
            found = time()
            self._check_time(machine, found)
            return found

        expiries.time = watched_time  # type: ignore[method-assign]
        raft.ready = watched_ready  # type: ignore[method-assign]
        raft.step = watched_step  # type: ignore[method-assign]

    def _observe(self, machine: Machine, is_arbiter: bool, ready: Ready) -> None:
        name = machine.name
        if ready.snapshot is not None:
            self.counts["snapshots installed"] += 1
            self.trace(f"{name} installs {ready.snapshot.index}/{ready.snapshot.term}")
        if ready.entries:
            index = ready.entries[0].index - 1
            before = machine.raft._log.term(index)  # the node's may wait for room
            if before is None:
                self.fail(f"{name} leaves a gap before {index + 1}")
                return
            self._remember(name, ready.entries, before, is_arbiter)
        for entry in ready.committed:
            self._commit(machine, entry.index, entry.term)

    def _remember(self, name: str, entries: Iterable[Entry], before: int, is_arbiter: bool) -> None:
        """Compare entries with the ones of the same index and term that others have (log matching).

        An arbiter has no data of commands, so nothing is compared with what it has of them.
        """
        known = self._entries
        for entry in entries:
            key = (entry.index, entry.term)
            if entry.kind == CONFIG and key not in known:
                for server in Configuration.decode(entry.data).servers:
                    if server.incarnation not in self.admitted:
                        self.admitted.add(server.incarnation)
                        self.network.admitted_again(server.id)
            data = None if is_arbiter and entry.kind == COMMAND else entry.data
            fact = (before, entry.kind, data)
            seen = known.setdefault(key, fact)
            if seen != fact:
                if seen[:2] != fact[:2] or None not in (seen[2], data):
                    self.fail(f"{name} has {entry} behind term {before}, others {seen}")
                elif seen[2] is None:
                    known[key] = fact
            before = entry.term

    def _commit(self, machine: Machine, index: int, term: int) -> None:
        seen = self._committed.setdefault(index, (term, machine.raft.term))
        self.expect(
            seen[0] == term,
            f"{machine.name} commits {index} of term {term}, others had one of term {seen[0]}",
        )
        self._last_committed = max(self._last_committed, index)

    def check_message(self, machine: Machine, message: Message) -> None:
        """See that what a message says is on the disk before it leaves (R1, R2).

        A vote may also be covered by a later term: it can't be given again after that either.
        """
        log, kind, name = machine.node._log, message.type, machine.name
        if kind not in _BINDING:
            return
        term, vote = log.hard_state
        self.expect(message.term <= term, f"{name} speaks of term {message.term} (R1)")
        if message.reject:
            return
        if kind is MessageType.VOTE or kind is MessageType.VOTE_RESPONSE:
            choice = name if kind is MessageType.VOTE else message.to
            first = self._votes.setdefault((machine.incarnation, message.term), choice)
            self.expect(first == choice, f"{name} votes for {first} and {choice} (R1)")
            self.expect(message.term < term or vote == choice, f"{name} votes from memory (R1)")
        elif kind is MessageType.APPEND_RESPONSE:
            self.expect(message.index <= log._synced, f"{name} acknowledges too much (R2)")

    def _check_time(self, machine: Machine, time: int) -> None:
        """Compare what a leader takes for the time with what it did before in its term."""
        term, clock, state = machine.raft.term, machine.clock(), machine.node._store.clock
        before_term, before_clock, before = machine.read_clock
        machine.read_clock = term, clock, time
        self.expect(time >= state, f"{machine.name} goes back to {time} from {state}")
        if before_term == term:
            most = max(state, before + int((clock - before_clock) * 1000) + 1)
            self.expect(
                before <= time <= most, f"{machine.name} goes from {before} to {time}, not {most}"
            )
        luck = self.luck
        if not (luck.skew or luck.jump or luck.drift):
            # Its wall clock tells a quarter of a microsecond at best, and may have rounded it up
            # when the term began: so the latest time that it may take is one of a moment ahead.
            now = int((EPOCH + self.now + 1e-6) * 1000)
            self.expect(time <= now, f"{machine.name} takes {time} for the time at {now}")

    def inspect(self, machine: Machine) -> None:
        """Look at a node that has come to rest."""
        node = machine.node
        raft, store = node._raft, node._store
        name = machine.name
        term = node._log.hard_state.term  # what isn't on the disk yet may be lost
        self.expect(raft.term >= term >= machine.term, f"{name} fell back to term {term}")
        self.expect(raft.commit_index >= machine.commit, f"{name} takes a commit back")
        self.expect(
            machine.applied <= store.applied_index <= raft.commit_index <= raft.last_index,
            f"{name}: applied {machine.applied}, {store.applied_index}, commit {raft.commit_index}",
        )
        machine.term, machine.commit = term, raft.commit_index
        self.expect(
            raft.last_index == 0 or machine.incarnation in self.admitted,
            f"{name} was sent a log, and has never been admitted with the disk it has now",
        )
        uses_reserve = any(segment.is_reserve for segment in node._log._segments[-1:])
        self.counts["logs that go on in the reserve"] += uses_reserve > machine.uses_reserve
        self.counts["logs that wait for room"] += node._upkeep.is_waiting > machine.waits
        machine.uses_reserve, machine.waits = uses_reserve, node._upkeep.is_waiting
        if store.applied_index > machine.applied and machine.role == "data":
            machine.applied = store.applied_index
            if self.compares_digests:
                digest = self._digests.setdefault(machine.applied, store.digest)
                self.expect(digest == store.digest, f"{name} differs at {machine.applied} (R7)")
            if machine.applied % 16 == 0:
                self.check_contents(machine)
        judged_by = (raft.state, raft.leader_id, raft.configuration)
        if judged_by != machine.judged_by:
            machine.judged_by = judged_by
            self.network.check(machine.transport)
        if raft.state is State.LEADER:
            if machine.led != raft.term:
                machine.led = raft.term
                self._check_new_leader(machine)
            self._check_progress(raft)
            self._check_leases()

    def check_contents(self, machine: Machine) -> None:
        """Compare a node's records with those that others had at the same index (R7)."""
        content = 0
        with machine.disk.without_faults():
            for key, record in machine.node._store.engine.items():
                content = crc32(repr((key, *record)).encode(), content)
        seen = self._contents.setdefault(machine.applied, content)
        self.expect(seen == content, f"{machine.name} has other records at {machine.applied} (R7)")

    def _check_new_leader(self, machine: Machine) -> None:
        raft, name = machine.raft, machine.name
        leader = self._leaders.setdefault(raft.term, name)
        self.expect(leader == name, f"{leader} and {name} both lead term {raft.term}")
        self.expect(machine.role == "data", f"{name} leads without data")
        member = raft.configuration.get(name)  # None amid its own removal
        self.expect(member is None or member.suffrage == "voter", f"{name} leads as a learner")
        self.counts["elections"] += 1
        self.trace(f"{name} leads term {raft.term}")
        for index in range(machine.node._log.first_index, self._last_committed + 1):
            term, seen_in = self._committed.get(index, (0, raft.term))
            if seen_in < raft.term:
                self.expect(
                    raft._log.term(index) == term,
                    f"{name} leads term {raft.term} without the committed entry {index}",
                )

    def _check_leases(self) -> None:
        """See that no lease is held by whoever is not the latest of those who lead (R9)."""
        leading = [m for m in self.machines.values() if m.up and m.raft.state is State.LEADER]
        latest = max(m.raft.term for m in leading)
        for other in leading:
            if other.raft.term < latest:
                self.counts["leaders of two terms at once"] += 1
                self.expect(
                    not other.node._holds_lease(),
                    f"{other.name} holds a lease of term {other.raft.term}, though somebody leads "
                    f"term {latest} (R9)",
                )

    def _check_progress(self, raft: Raft) -> None:
        """See that what a leader counts is on the disk of the one it counts it for (R2)."""
        for name, progress in raft.progress.items():
            machine = self.machines.get(name)
            if (
                progress.match == 0
                or machine is None
                or not machine.up
                or machine.incarnation != progress.server.incarnation
                or machine.raft.term != raft.term  # a later leader may have cut it off
            ):
                continue
            log = machine.node._log
            self.expect(progress.match <= log._synced, f"{name} lacks {progress.match} (R2)")
            mine, others = raft._log.term(progress.match), log.term(progress.match)
            self.expect(
                None in (mine, others) or mine == others,
                f"{raft.id} takes {name} to hold {progress.match} of term {mine}, not {others}",
            )

    # -- clients ---------------------------------------------------------------------------------

    def request(
        self, machine: Machine, call: Callable[[Node, Reply], None], size: int = 1
    ) -> Pending:
        """Send a request to a machine; yield what is returned to get the answers."""
        pending = Pending(self, size)
        delay = self.luck.delay

        def reply(start: int, stop: int, answers: Sequence[object]) -> None:
            if generation != machine.generation or machine.disk.is_dead:
                return
            if self.mending or self.rng.random() >= self.luck.loss:
                when = max(self.now, machine.busy_until) + delay
                self.at(when, partial(pending.answer, start, stop, answers))

        def arrive() -> None:
            if machine.up and generation == machine.generation:
                machine.run(call, machine.node, reply)

        generation = machine.generation
        if machine.up:
            self.after(delay, lambda: machine.when_free(arrive))
        else:
            refusal = Unavailable("the connection was refused")
            self.after(delay, partial(pending.answer, 0, size, [refusal] * size))
        return pending

    def client(self, number: int) -> Process:
        """Write and read, with a little time to think, until the faults end."""
        rng, luck = self.rng, self.luck
        keys = self.keys
        while not self.mending:
            yield rng.expovariate(1 / luck.think)
            some = rng.sample(keys, min(len(keys), rng.choice([1, 1, 1, 2, 3])))
            chance = rng.random()
            if chance < 0.45:
                yield from self.write(number, [(key, self.new_value()) for key in some])
            elif chance < 0.55:
                yield from self.write(number, [(key, None) for key in some])
            else:
                yield from self.read(number, some, stale=chance > 0.95)

    def write(
        self, client: int, commands: Sequence[tuple[bytes, bytes | None]]
    ) -> Generator[Pending, Any, bool]:
        """Put and delete once; tell whether all of it is known to have happened."""
        machine = self.machine_for(client)
        begun = []
        for key, value in commands:
            kind = DELETE if value is None else PUT
            begun.append(self.next_moment())
            self.history[begun[-1]] = Operation(client, kind, key, value, begun[-1], None)
        answers = yield self.request(machine, write(commands), len(commands))
        for moment, command, answer in zip(begun, commands, answers, strict=True):
            value = command[1]
            if isinstance(answer, Done):
                done = replace(self.history[moment], returned=self.next_moment())
                self.history[moment] = done
                self.others.note(Call(client, moment, 0, answer.revision, command))
                self.counts["writes"] += 1
            elif isinstance(answer, (Lost, OutcomeUnknown)):
                self.counts["unknown writes"] += 1
            else:  # refused, and so without any effect
                del self.history[moment]
                self.counts["writes that a full disk refused"] += isinstance(answer, DiskFull)
                if value is not None:
                    self._refused.add(value)
        self.learn(client, answers[0])
        return all(isinstance(answer, Done) for answer in answers)

    def read(
        self, client: int, keys: Sequence[bytes], *, stale: bool = False
    ) -> Generator[Pending, Any, bool]:
        """Get once; tell whether all was found out."""
        machine = self.machine_for(client)
        moment = self.next_moment()
        answers = yield self.request(machine, _read(keys, stale), len(keys))
        for key, answer in zip(keys, answers, strict=True):
            if not isinstance(answer, tuple):
                continue
            index, record = answer
            value = record.value if record else None
            seen = (Seen("records", key, record),)
            self.others.note(Call(client, moment, 0, index, seen=seen, is_stale=stale))
            self.expect(value not in self._refused, f"{value!r} is there, but was refused")
            if stale:
                self.counts["stale reads"] += 1
            else:
                self.counts["reads by lease" if self.luck.lease else "reads"] += 1
                end = self.next_moment()
                self.history[end] = Operation(client, GET, key, value, moment, end)
        self.learn(client, answers[0])
        return all(isinstance(answer, tuple) for answer in answers)

    def machine_for(self, client: int) -> Machine:
        name = self._favourites.get(client)
        if name is None or self.rng.random() < 0.05:
            name = self.rng.choice(list(self.machines))
        return self.machines[name]

    def learn(self, client: int, answer: object) -> None:
        """Follow a hint to the leader; ask anybody after any other failure."""
        if isinstance(answer, NotLeader) and answer.leader_id in self.machines:
            self._favourites[client] = answer.leader_id
        elif isinstance(answer, ConureError):
            self._favourites.pop(client, None)

    def new_value(self) -> bytes:
        self._values += 1
        size = self.rng.choice([0, 0, 10, 10, 100, 700])
        return b"%d:" % self._values + b"." * size

    def next_moment(self) -> int:
        self._moment += 1
        return self._moment

    # -- the operator ----------------------------------------------------------------------------

    def ask_leader(
        self, request: Callable[[Node, Callable[[object], None]], None], patience: float = 5.0
    ) -> Generator[float | Pending, Any, ConureError | None]:
        """Ask for a change until it is done or refused for good; return the last answer."""
        end = self.now + patience
        hint = ""
        while True:
            machine = self.machines.get(hint) or self.rng.choice(list(self.machines.values()))
            (answer,) = yield self.request(machine, _administer(request))
            refused = isinstance(answer, MemberNotFound) or (
                isinstance(answer, Conflict) and not self.mending
            )
            if answer is None or refused or self.now > end:
                return answer  # type: ignore[no-any-return]
            hint = answer.leader_id if isinstance(answer, NotLeader) else ""
            if not hint:
                yield 0.1

    def join(
        self,
        machine: Machine,
        *,
        voter: bool = True,
        patience: float = 5.0,
        is_itself: bool = False,
    ) -> Generator[float | Pending, Any, ConureError | None]:
        """Make a machine a member; one that asks by itself names its data directory."""
        answer = yield from self.ask_leader(
            lambda node, reply: node.join(
                machine.name,
                machine.address,
                "",
                voter=voter,
                role="",
                reply=reply,
                incarnation=machine.incarnation if is_itself else "",
            ),
            patience,
        )
        self.trace(f"{machine.name} joins: {type(answer).__name__}")
        if self.verbose:
            self.trace(f"  {answer}")
        return answer

    def remove(
        self, name: str, *, force: bool = False, patience: float = 5.0
    ) -> Generator[float | Pending, Any, ConureError | None]:
        """End a machine's membership."""
        answer = yield from self.ask_leader(
            lambda node, reply: node.remove(name, force=force, reply=reply), patience
        )
        self.trace(f"{name} is removed: {type(answer).__name__}")
        if self.verbose:
            self.trace(f"  {answer}")
        return answer

    def operator(self) -> Process:
        """Change who the members are, one thing after the other, until the faults end."""
        rng = self.rng
        while not self.mending:
            yield rng.expovariate(self.luck.members)
            tasks = [
                self._grow,
                self._promote,
                self._shrink,
                self._hand_over,
                self._wipe,
                self._move,
            ]
            tasks += [self._wipe_leader] * 4 * self.luck.wipes_leaders
            task = rng.choice(tasks)
            if not self.mending:
                yield from task()

    def _members(self) -> list[str]:
        """Return the members as one of the nodes that are up knows them."""
        up = [machine for machine in self.machines.values() if machine.up]
        if not up:
            return []
        return [server.id for server in self.rng.choice(up).raft.configuration.servers]

    def _grow(self) -> Process:
        members = self._members()
        if not members or len(members) > self.luck.data_nodes + 1:
            return
        outside = [m for name, m in self.machines.items() if name not in members]
        machine = self.rng.choice([*outside, None])
        if machine is None and len(self.machines) < 8:
            role = "arbiter" if self.rng.random() < 0.2 else "data"
            machine = self.add(f"n{len(self.machines) + 1}", role)
        if machine is None or self._is_lost(machine):
            return
        if not machine.up:
            machine.boot()
        machine.is_voter = self.rng.random() < 0.6
        yield from self.join(machine, voter=machine.is_voter)

    def _promote(self) -> Process:
        """Make a voter of a learner; mend() sees to it that it becomes one."""
        learners = self._learners()
        if not learners:
            return
        machine = self.rng.choice(learners)
        machine.is_voter = True
        answer = yield from self.join(machine)
        self.counts["learners promoted"] += answer is None

    def _learners(self) -> list[Machine]:
        """Return the machines that somebody takes for a learner."""
        names = {
            server.id
            for machine in self.machines.values()
            if machine.up
            for server in machine.raft.configuration.servers
            if server.suffrage == "nonvoter"
        }
        return [machine for name, machine in self.machines.items() if name in names]

    def _shrink(self) -> Process:
        members = self._members()
        if len(members) <= 2 or any(map(self._is_lost, self.machines.values())):
            return
        name = self.rng.choice(members)
        others = [self.machines[other] for other in members if other != name]
        if self.rng.random() < 0.4:
            yield from self._bring_down(self.rng.sample(others, len(others) // 2))
        if self.rng.random() < 0.3:
            self._cut_and_crash_soon()
        answer = yield from self.remove(name)
        if isinstance(answer, Conflict) and not self.mending:  # too few of the others answer
            answer = yield from self.remove(name, force=True)
            self.counts["forced removals"] += answer is None
        if answer is None and self.rng.random() < 0.5:
            yield 0.3
            if not self.mending:
                self.machines[name].crash()

    def _cut_and_crash_soon(self) -> None:
        """Let the network be cut and somebody lose power while a member is being removed."""

        def strike(fault: Callable[[Machine], None]) -> None:
            machine = self.rng.choice(list(self.machines.values()))
            if machine.up and not self.mending:
                fault(machine)

        self.counts["removals amid cuts and crashes"] += 1
        for fault in (self._cut, Machine.crash):
            self.after(self.rng.uniform(0.0, 0.1), partial(strike, fault))

    def _bring_down(self, machines: Sequence[Machine]) -> Process:
        """Crash machines that stay down for so long that their leader notices."""

        def bring_up() -> None:
            for machine in machines:
                machine.stays_down = False
                machine._boot_again()

        for machine in machines:
            machine.stays_down = True
            machine.crash()
        self.after(self.luck.election_timeout * self.rng.uniform(2, 5), bring_up)
        yield self.luck.election_timeout * 1.5

    def _hand_over(self) -> Process:
        members = self._members()
        to = self.rng.choice([*members, ""]) if members else ""
        answer = yield from self.ask_leader(lambda node, reply: node.hand_over(to, reply), 1.0)
        self.trace(f"leadership to {to or 'anybody'}: {type(answer).__name__}")

    def _wipe(self) -> Process:
        """Lose a disk, and replace the member by itself with the new one."""
        machine = self.rng.choice(list(self.machines.values()))
        if not self._can_be_spared(machine):
            return
        machine.crash()
        machine.wipe()
        yield self.rng.random()
        if not machine.up:
            machine.boot()
        yield from self.replace(machine, 4.0)

    def _wipe_leader(self) -> Process:
        """Let the leader lose its disk and be back before the others miss it. It is replaced later,
        when they may have elected somebody."""
        machine = self.leader()
        if machine is None or not self._can_be_spared(machine):
            return
        machine.crash()
        machine.wipe()
        self.counts["wiped leaders"] += 1
        yield self.luck.election_timeout * self.rng.random() / 2
        if not machine.up:
            machine.boot()
        yield self.luck.election_timeout * self.rng.uniform(0, 6)
        if not self.mending:
            yield from self.replace(machine, 4.0)

    def replace(
        self, machine: Machine, patience: float = 5.0
    ) -> Generator[float | Pending, Any, ConureError | None]:
        """Remove and join a machine that has lost its disk."""
        answer = yield from self.remove(machine.name, patience=patience)
        if answer is None or isinstance(answer, MemberNotFound):
            answer = yield from self.join(machine, patience=patience)
        return answer

    def _is_lost(self, machine: Machine) -> bool:
        """Tell whether a machine has lost its disk and is still a member with the old one."""
        if machine.is_wiped and machine.up:
            members = [
                other.node._roster.members.get(machine.name)
                for other in self.machines.values()
                if other.up
            ]
            known = [server.incarnation for server in members if server is not None]
            machine.is_wiped = machine.incarnation not in known
        return machine.is_wiped

    def _can_be_spared(self, lost: Machine) -> bool:
        """Tell whether a cluster survives the loss of a disk, as a careful operator would see it.

        All others have to be up, and be a quorum of every configuration that anybody has, also
        with this one as a voter: a learner that answered a moment ago may be made one now. Beside
        an arbiter no data node can be spared: what it and the arbiter have committed alone would
        be gone for ever (raft.py says so).
        """
        others = [machine for machine in self.machines.values() if machine is not lost]
        if lost.keeping or not lost.up or not all(m.up and not self._is_lost(m) for m in others):
            return False
        for machine in self.machines.values():
            for _, configuration in machine.raft._configurations:
                remaining = set(configuration.voters) - {lost.name}
                is_member = configuration.get(lost.name) is not None
                if not remaining or 2 * len(remaining) <= len(remaining) + is_member:
                    return False
                roles = [server.role for server in configuration.servers]
                if "arbiter" in roles and lost.role == "data":
                    return False
        return True

    def _move(self) -> Process:
        """Restart a machine at another address, if the others can learn of that.

        They do when it calls them; an arbiter calls nobody. Two may move at once, one of them to
        where the other one was.
        """
        machines = list(self.machines.values())
        known = [
            self.machines[server.id].address == server.raft_address
            for other in machines
            if other.up
            for server in other.raft.configuration.servers
        ]
        moving = self.rng.sample(machines, self.rng.choice([1, 1, min(2, len(machines))]))
        if not all(known) or any(m.keeping or m.role == "arbiter" for m in moving):
            return
        for machine in moving:
            machine.crash()
        taken = {machine.host for machine in machines}
        free = [name for name in (*self.machines, "h1", "h2", "h3") if name not in taken]
        hosts = [machine.host for machine in moving[1:]] + [self.rng.choice(free)]
        for machine, host in zip(moving, hosts, strict=True):
            self.counts["re-used addresses"] += self._owners.get(host, machine.name) != machine.name
            self._owners[host] = machine.name
            machine.host = host
        yield 0.1 * self.rng.random()
        for machine in moving:
            if not machine.up:
                machine.boot()

    # -- the nemesis -----------------------------------------------------------------------------

    def nemesis(self) -> Process:
        """Do what the luck says, until the faults end."""
        luck = self.luck
        faults: list[tuple[float, Callable[[Machine], None]]] = [
            (luck.cut, self._cut),
            (luck.crash, lambda machine: machine.crash()),
            (luck.crash_amid, self._crash_amid),
            (luck.blackout, self._black_out),
            (luck.stop, self._stop),
            (luck.pause, self._pause),
            (luck.pause_and_crash, self._pause_and_crash),
            (luck.fill, self._fill),
            (luck.flood, self._flood),
            (luck.fail, self._fail_disk),
            (luck.slow, self._slow_down),
            (luck.disconnect, lambda _: self.network.disconnect()),
            (luck.jump, self._set_clock),
        ]
        rates = [rate for rate, _ in faults]
        total = sum(rates)
        while total and not self.mending:
            yield self.rng.expovariate(total)
            (fault,) = self.rng.choices([fault for _, fault in faults], rates)
            machine = self.rng.choice(list(self.machines.values()))
            if self.rng.random() < 0.3:  # whose faults matter most
                machine = self.leader() or machine
            if not self.mending and machine.up:
                fault(machine)

    def _cut(self, machine: Machine) -> None:
        """Cut some links: around one machine, between two groups, one way or both."""
        names = list(self.machines)
        self.counts["partitions"] += 1
        group = (
            {machine.name}
            if self.rng.random() < 0.5
            else {name for name in names if self.rng.random() < 0.5}
        )
        one_way = self.rng.random()
        links = [
            (a, b)
            for a in names
            for b in names
            if (a in group) != (b in group) and (one_way < 0.6 or (a in group) == (one_way < 0.8))
        ]
        if self.rng.random() < 0.2:
            links = [link for link in links if self.rng.random() < 0.5]
        self.network.cut.update(links)
        self.trace(f"{len(links)} links are cut around {sorted(group)}")

        def heal() -> None:
            self.trace("links are mended")
            self.network.cut.difference_update(links)

        self.after(self.rng.uniform(0.1, 2.0), heal)

    def _crash_amid(self, machine: Machine) -> None:
        machine.disk.crash_in = self.rng.randint(1, 40)

    def _black_out(self, _: Machine) -> None:
        self.trace("everything loses power")
        for machine in self.machines.values():
            machine.crash()

    def _stop(self, machine: Machine) -> None:
        if not machine.keeping and not machine.paused:
            machine.stop()

    def _pause(self, machine: Machine) -> None:
        if not machine.paused:
            machine.pause()
            election = self.luck.election_timeout * self.rng.uniform(1, 2)  # a lease ends before
            seconds = self.rng.choice([0.1, 0.5, 1.5, election])
            self.after(seconds, partial(self._wake, machine, machine.generation))

    def _wake(self, machine: Machine, generation: int) -> None:
        """End a pause; somebody reads there at once, who may have read elsewhere before."""
        machine.resume(generation)
        if generation == machine.generation and not self.mending:
            self._late_readers += 1
            reader = 1000 + self._late_readers
            self._favourites[reader] = machine.name
            self.counts["reads after a pause"] += 1
            self.start(self._read_once(reader))

    def _read_once(self, client: int) -> Process:
        yield from self.read(client, [self.rng.choice(self.keys)])

    def _pause_and_crash(self, machine: Machine) -> None:
        """Pause some of the others, and let this one lose power amid that."""
        others = [m for m in self.machines.values() if m is not machine and m.up]
        for other in self.rng.sample(others, self.rng.randint(0, len(others))):
            self._pause(other)
        generation = machine.generation

        def crash() -> None:
            if generation == machine.generation and not self.mending:
                machine.crash()

        self.counts["power losses amid pauses"] += 1
        self.after(self.rng.uniform(0.0, 0.5), crash)

    def _fill(self, machine: Machine) -> None:
        """Let the disk be almost full, for a while."""
        self._fill_for(machine, self.rng.uniform(0.5, 5.0))

    def _flood(self, _: Machine) -> None:
        """Let many disks be almost full for so long that much else happens meanwhile."""
        seconds = self.rng.uniform(5.0, 30.0)
        machines = list(self.machines.values())
        for machine in self.rng.sample(machines, self.rng.randint(1, len(machines))):
            self._fill_for(machine, seconds)

    def _fill_for(self, machine: Machine, seconds: float) -> None:
        """Somebody else takes all room but a little, perhaps whatever is given back as well."""
        machine.disk.set_capacity(
            machine.disk.used_bytes() + SECTOR * self.rng.choice([0, 0, 1, 10, 40])
        )
        machine.disk.copies_on_write = self.rng.random() < 0.2
        is_greedy = self.rng.random() < 0.5
        end = self.now + seconds
        self.counts["full disks"] += 1
        self.trace(f"the disk of {machine.name} fills for {seconds:.1f} s")

        def go_on() -> None:
            disk = machine.disk
            if self.mending or self.now >= end:
                disk.set_capacity(None)
                disk.copies_on_write = False
                return
            if is_greedy and (capacity := disk.capacity) is not None:
                disk.set_capacity(min(capacity, disk.used_bytes()))
            self.after(min(0.1, end - self.now), go_on)

        go_on()

    def _fail_disk(self, machine: Machine) -> None:
        """Let one of the next file calls fail for good, or find no room."""
        kinds: list[FailureKind] = ["io", "full", "half"]
        kind = self.rng.choice(kinds)
        machine.disk.fail_call(self.rng.randint(1, 30), kind)
        if kind != "full":  # half a meta page is no lack of room any more (S1)
            machine.excuses = BROKEN_DISK
        self.counts["disk faults"] += 1
        self.trace(f"the disk of {machine.name} fails")

    def _slow_down(self, machine: Machine) -> None:
        machine.sync_seconds = self.rng.choice([0.005, 0.05])
        self.after(self.rng.uniform(0.5, 2.0), lambda: setattr(machine, "sync_seconds", 0.0002))

    def _set_clock(self, machine: Machine) -> None:
        """Let a wall clock jump."""
        machine.wall_offset += self.rng.choice([-3600.0, -3.0, 0.5, 3.0, 3600.0])
        self.counts["wall clocks set"] += 1
        self.trace(f"the clock of {machine.name} is {machine.wall_offset:.3f} s ahead")

    # -- the two phases --------------------------------------------------------------------------

    def begin(self, roles: Sequence[str]) -> None:
        """Begin a cluster from nothing: one node that is joined by the others."""
        for number, role in enumerate(roles, 1):
            machine = self.add(f"n{number}", role, bootstrap=number == 1)
            machine.boot()
            if number > 1:
                self.finish(self.join(machine), f"{machine.name} can't join")
        self.settle()

    def restore(self, disks: Iterable[tuple[str, str, Disk]]) -> None:
        """Begin with machines that have these disks."""
        for name, role, disk in disks:
            machine = self.add(name, role)
            machine.disk = disk.after("kept", self.rng, machine)
            machine.boot()
            self._founded = max(self._founded, machine.raft.last_index)

    def settle(self) -> None:
        """Let time pass until all members agree."""
        if not self.run_until(self._agrees):
            raise Broken(f"the nodes don't agree: {self._states()}")

    def run(self, steps: int) -> None:
        """Let the faults happen for a while."""
        for number in range(self.luck.clients):
            self.start(self.client(number))
        for number in range(self.luck.others):
            self.start(self.others.client(100 + number))
        ranges = [(b"", None), (b"n", b"p"), (b"t", b"t\0")]
        for number in range(self.luck.watchers):
            ahead = self.luck.ahead if number else 0
            begin = Position(self._founded + 1 + ahead)
            watcher = Watcher(self, f"w{number + 1}", *ranges[number], begin)
            self.watchers.append(watcher)
            watcher.connect()
        self.pollers = [Poller(self, key) for key in (b"a", b"n")[: self.luck.pollers]]
        for poller in self.pollers:
            self.start(poller.poll())
        if self.luck.members:
            self.start(self.operator())
        self.start(self.nemesis())
        while self.steps < steps:
            self.step()

    def mend(self) -> None:
        """End the faults; see that everything comes back, and that nothing was lost."""
        self.trace("the faults end")
        self.mending = True
        self.network.heal()
        for machine in self.machines.values():
            machine.disk.set_capacity(None)
            machine.disk.copies_on_write = False
            machine.disk.fail_call(None)
            machine.disk.crash_in = None
            machine.excuses = ()
            machine.sync_seconds = 0.0002
            machine.resume(machine.generation)
            if not machine.up:
                machine.boot()
        for machine in list(self.machines.values()):
            if self._is_lost(machine):
                self.finish(self.replace(machine, CALM_BEFORE), f"{machine.name} doesn't come back")
        for machine in self._learners():
            if machine.is_voter:
                self.finish(self.join(machine), f"{machine.name} doesn't become a voter")
        for client in range(self.luck.clients):
            self.finish(self._farewell(client), f"client {client} isn't served")
        if self.luck.others:
            self.finish(self.others.count_to_the_end(0), "nobody counts")
        if not self.run_until(lambda: not self._is_overdue()):
            raise Broken(f"something doesn't expire: {self._states()}")
        self.settle()
        end = Position(self._last_committed + 1)
        if not self.run_until(lambda: self._have_seen(end)):
            raise Broken(f"{[(each.name, each.position) for each in self.watchers]} wait for {end}")
        self.settle()
        self._check_end()
        if self.broken is not None:
            raise self.broken

    def _have_seen(self, end: Position) -> bool:
        """Tell whether all watchers have got so far; those who watch at no member go elsewhere."""
        leader = self.leader()
        if leader is not None:
            for watcher in self.watchers:
                machine = watcher.machine
                if machine and leader.raft.configuration.get(machine.name) is None:
                    watcher.hang_up()
        return all(watcher.position >= end for watcher in self.watchers)

    def _is_overdue(self) -> bool:
        """Tell whether something is still there a while after its time."""
        leader = self.leader()
        if leader is None:
            return True
        due = leader.node._store.next_due()
        return due is not None and due < leader.node.time() - 500

    def _check_end(self) -> None:
        """See that everybody is what it was to be, and that trees and logs are whole."""
        leader = self.leader()
        assert leader is not None
        for server in leader.raft.configuration.servers:
            is_as_asked = server.suffrage == "voter" or not self.machines[server.id].is_voter
            self.expect(is_as_asked, f"{server.id} was to become a voter")
        for machine in self.machines.values():
            if machine.up and not machine.keeping:
                machine.node._log.check()
                if machine.role == "data":
                    machine.node._store.engine.check()
                    self.check_contents(machine)
        if self.broken is not None:
            raise self.broken
        check_history(self.history.values())
        log = self._commands()
        model = self.others.check(log, leader.node)
        agree(leader.node._store, model)
        for watcher in self.watchers:
            watcher.check(model.events)
        for poller in self.pollers:
            poller.check(model.events)
        self.counts["keys expired"] += sum(e.kind is EventKind.EXPIRE for e in model.events)

    def _commands(self) -> dict[int, Command]:
        """Return all commands that were committed, by index."""
        found: dict[int, Command] = {}
        for index, (term, _) in self._committed.items():
            if index <= self._founded:
                continue
            _, kind, data = self._entries[index, term]
            if kind == COMMAND:
                assert data is not None, "nobody but arbiters has had it"
                op, key, value = codec.decode_command(data)
                if op == codec.OP_TRANSACTION:
                    found[index] = codec.decode_transaction(data)
                else:
                    found[index] = (key, value if op == codec.OP_PUT else None)
        return found

    def finish(self, process: Generator[Any, Any, object], otherwise: str) -> None:
        """Let a process come to its end. Raises Broken if it takes too long or ends badly."""
        ended: list[object] = []

        def wrapped() -> Process:
            ended.append((yield from process))

        self.start(wrapped())
        if not self.run_until(lambda: bool(ended)) or isinstance(ended[0], ConureError):
            raise Broken(f"{otherwise}: {ended} {self._states()}")

    def _farewell(self, client: int) -> Process:
        """Write and read every key, as often as it takes."""
        for key in KEYS[: self.luck.keys]:
            while not (yield from self.write(client, [(key, self.new_value())])):
                yield 0.05
            while not (yield from self.read(client, [key])):
                yield 0.05

    def leader(self) -> Machine | None:
        """Return the one machine that leads in the highest term, if there is one."""
        led = [m for m in self.machines.values() if m.up and m.raft.state is State.LEADER]
        return max(led, key=lambda machine: machine.raft.term, default=None)

    def is_listed(self, name: str) -> bool:
        """Tell whether any node that runs takes this one for a member."""
        return any(
            machine.up and machine.raft.configuration.get(name) is not None
            for machine in self.machines.values()
        )

    def _agrees(self) -> bool:
        """Tell whether all members follow one leader, at one index, with one digest, and what no
        node had room for is on its disk by now."""
        leader = self.leader()
        if leader is None or any(
            machine.up and _waits(machine) for machine in self.machines.values()
        ):
            return False
        raft = leader.raft
        last = raft.last_index
        for server in raft.configuration.servers:
            machine = self.machines[server.id]
            node = machine.node
            if (
                not machine.up
                or machine.incarnation != server.incarnation
                or machine.address != server.raft_address
                or server.suffrage == "staging"
                or node._raft.leader_id != leader.name
                or node._store.applied_index != last
                or (server.role == "data" and node._store.digest != leader.node._store.digest)
            ):
                return False
        return True

    def _states(self) -> str:
        lines = [""]
        for machine in self.machines.values():
            if not machine.up:
                lines.append(f"{machine.name} is down")
                continue
            raft = machine.raft
            members = " ".join(f"{s.id}:{s.suffrage}" for s in raft.configuration.servers)
            lines.append(
                f"{machine.name} {machine.address} {raft.state} of {raft.leader_id} "
                f"term {raft.term} log {raft.last_index}/{raft.last_term} "
                f"commit {raft.commit_index} applied {machine.node._store.applied_index} "
                f"wiped {machine.is_wiped} members {members}"
            )
        return "\n".join(lines)


# -- seeds ---------------------------------------------------------------------------------------

_templates: dict[tuple[int, bool], list[tuple[str, str, Disk]]] = {}


def founders(data_nodes: int, arbiter: bool) -> list[tuple[str, str, Disk]]:
    """Return the disks of a cluster that was begun, joined and stopped in order; made once."""
    key = (data_nodes, arbiter)
    if key not in _templates:
        with fake_world() as use:
            world = Simulation(0, Luck(data_nodes, arbiter))
            use(world)
            world.begin(["data"] * data_nodes + ["arbiter"] * arbiter)
            for machine in world.machines.values():
                machine.stop()
        _templates[key] = [(m.name, m.role, m.disk) for m in world.machines.values()]
    return _templates[key]


@contextlib.contextmanager
def fake_world() -> Iterator[Callable[[Simulation], None]]:
    """Put what a process asks of its surroundings into the hands of the simulation that is named.

    A checkpoint measures how long it works; here each look at the clock takes half a millisecond.
    """
    world: Simulation
    looks = 0

    def use(simulation: Simulation) -> None:
        nonlocal world, looks
        world, looks = simulation, 0
        snapshots.CHUNK_BYTES = simulation.luck.chunk_bytes

    def sleep(seconds: float) -> None:
        world.rest(seconds)

    def monotonic() -> float:
        return world.now

    def perf_counter() -> float:
        nonlocal looks
        looks += 1
        return looks * 0.0005

    def exception(what: str) -> None:
        """The node goes on when a reply fails; here that is a failure, but for a power cut."""
        error = sys.exc_info()[1]
        if not isinstance(error, SimulatedCrash):
            world.fail(what, error)

    logger = logging.getLogger("conure")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            mock.patch.object(node_module, "sleep", sleep),
            mock.patch.object(node_module, "JOIN_AFTER", 1.0),
            mock.patch.object(node_module.log, "exception", exception),
            mock.patch.object(checkpointing, "sleep", sleep),
            mock.patch.object(spares, "RESERVE_BYTES", 1024),  # so that it comes to an end
            mock.patch.object(btree, "time", SimpleNamespace(perf_counter=perf_counter)),
            mock.patch.object(writeback, "time", SimpleNamespace(perf_counter=perf_counter)),
            mock.patch.object(snapshots, "CHUNK_BYTES", 300),
            mock.patch.object(watchers_module, "monotonic", monotonic),
            mock.patch.object(watchers_module, "_PART", 300),  # so that some are behind
            mock.patch.object(watchers_module, "_STEP", 1000),
        ):
            yield use
    finally:
        logger.setLevel(level)


def play(seed: int, steps: int = STEPS, *, verbose: bool = False) -> Simulation:
    """Play one seed to its end; a failure names the seed, its luck and how to repeat it."""
    luck = Luck.draw(seed)
    with fake_world() as use:
        world = Simulation(seed, luck, verbose=verbose)
        use(world)
        try:
            world.restore(founders(luck.data_nodes, luck.arbiter))
            world.run(steps)
            world.mend()
        except Exception as error:
            error.add_note(f"seed {seed}: {luck}")
            error.add_note(
                f"repeat with: python -m tests.sim --start {seed} --seeds 1 --steps {steps}"
            )
            raise
    return world


def _play_some(seeds: Sequence[int], steps: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    counts: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        try:
            world = play(seed, steps)
        except Exception as error:  # noqa: BLE001 - every one of them is a finding
            failures.append((seed, "".join(traceback.format_exception(error))))
        else:
            counts.update(world.counts)
            counts["seconds"] += int(world.now)
            counts["steps"] += world.steps
        counts["seeds"] += 1
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Play many seeds.")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--verbose", action="store_true", help="show each event; for one seed")
    arguments = parser.parse_args()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    if arguments.verbose:
        for seed in seeds:
            world = play(seed, arguments.steps, verbose=True)
            print(dict(world.counts), f"trace {world.trace_hash:08x}")
        return 0
    started = time.monotonic()
    groups = [seeds[first : first + 10] for first in range(0, len(seeds), 10)]
    counts: Counter[str] = Counter()
    failed: list[int] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        for some, failures in pool.imap(partial(_play_some, steps=arguments.steps), groups):
            counts.update(some)
            for seed, text in failures:
                print(text)
                failed.append(seed)
    seconds = counts.pop("seconds", 0)
    print(f"{seconds / 3600:.2f} hours simulated in {time.monotonic() - started:.1f} s")
    for name, count in sorted(counts.items()):
        print(f"{count:12,d} {name}")
    print(f"failing seeds: {failed or 'none'}")
    return 1 if failed else 0
