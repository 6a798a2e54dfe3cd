"""A server of the fake world: a disk that stays, and a process that comes and goes.

The node is the real one, without its threads: the machine calls tick() and housekeep(), and gives
it what arrives. Whatever takes time in a real process takes none here and keeps the machine *busy*:
what it sends and answers leaves later. Where a node rests amid a checkpoint the others go on, and
so do its own other threads: resting runs the events of that time, inside of the call.

What surrounds a machine it knows by what is written here: the roads to the others, and the checks
that look at it whenever it has come to rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from conure.cluster import node as node_module
from conure.cluster.expiring import Expiries
from conure.cluster.greetings import Admission
from conure.cluster.node import Node, Peers
from conure.cluster.options import APPLY_SECONDS, NodeOptions
from conure.consensus.members import Configuration
from conure.consensus.messages import Message
from conure.consensus.raftlog import RaftLog
from conure.errors import ConureError, DiskFailed, DiskFull
from conure.metrics import Registry
from conure.service import watchers as watchers_module
from conure.service.watchers import Watchers
from conure.state.history import History
from conure.state.machine import Store
from conure.state.snapshots import IncomingSnapshot
from raft import Raft
from tests.lab.crashfs import CrashMode, SimulatedCrash
from tests.sim.disk import Disk
from tests.sim.world import Process, World

__all__ = ["BROKEN_DISK", "EPOCH", "SYNC_SECONDS", "Machine", "Sink"]

CRASH_MODES: tuple[CrashMode, ...] = ("dropped", "dropped", "kept", "torn", "random")
EPOCH = 1_700_000_000.0
"""What an honest wall clock tells at the beginning."""

SYNC_SECONDS = 0.0002
"""How long a sync takes on a disk that is well."""

BROKEN_DISK = (DiskFailed, SimulatedCrash)
"""What a node may fail of whose disk was told to fail. That it is full is no reason."""


class Sink(watchers_module.Sink, Protocol):
    """A connection to somebody who watches."""

    def break_off(self) -> None:
        """End it, because the process is gone."""


class Roads(Protocol):
    """What a machine wants of the network."""

    def peers_of(self, machine: Machine) -> Peers:
        """Return the way to the others for a process that begins now."""

    def lost_disk(self, name: str) -> None:
        """Take note that a machine is another one from now on."""

    def inspect(self, machine: Machine) -> None:
        """Look at a node that has come to rest."""


class Checks(Protocol):
    """What wants to see a machine."""

    def watch(self, machine: Machine) -> None:
        """See from here on what a node does that has just been opened."""

    def inspect(self, machine: Machine) -> None:
        """Look at a node that has come to rest."""


class Machine:
    """A server: a disk that stays, and a process that comes and goes (each one a generation)."""

    def __init__(
        self,
        world: World,
        name: str,
        role: str,
        roads: Roads,
        checks: Checks,
        discover: Callable[[Machine, int], Process],
        *,
        bootstrap: bool = False,
    ) -> None:
        self._world = world
        self._roads = roads
        self._checks = checks
        self._discover = discover
        self.name = name
        self.role = role
        self.bootstrap = bootstrap
        self.disk = Disk(self._sync)
        self.host = name
        self.rate = 1.0  # of both its clocks
        self.wall_offset = 0.0  # seconds by which its wall clock is ahead of an honest one
        self.election_timeout = world.luck.election_timeout
        self.generation = 0
        self.lives = 0  # of its disk
        self.peers: tuple[str, ...] = ()  # the others of a cluster that is to be formed
        self.quorum_size = 0  # that it is started with
        self.http_port = 8081
        self.is_wildcard = False  # whether it leaves it to the others where it is
        self.node: Node
        self.up = False
        self.stays_down = False  # until somebody boots it
        self.paused = False
        self.is_voter = True  # what it is to be, once it is a member
        self.is_wiped = False  # lost its disk, and was not removed and joined again since
        self.excuses: tuple[type[BaseException], ...] = ()  # what it may fail of just now
        self.keeping = False  # amid housekeep()
        self.busy_until = 0.0
        self.sync_seconds = SYNC_SECONDS
        self._may_end = False  # of a start that a full disk has refused
        self._inbox: list[tuple[object, Message]] = []
        self._draining = False
        self._waiting: list[Callable[[], None]] = []  # what came in during a pause
        self.history = History()
        self.watchers: Watchers[Sink]
        self.streams: dict[Sink, None] = {}
        self.turns = 0  # of the watchers' pump
        self.failure: BaseException | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:7001"

    def clock(self) -> float:
        """Tell the time of its monotonic clock."""
        return self._world.now * self.rate + 1000.0

    def wall(self) -> float:
        """Tell the time of its wall clock."""
        return EPOCH + self._world.now * self.rate + self.wall_offset

    # -- what is inside of the node, for those who look at it ------------------------------------

    @property
    def raft(self) -> Raft:
        return self.node._raft

    @property
    def configurations(self) -> list[Configuration]:
        """The committed configuration, and those after it."""
        return [configuration for _, configuration in self.raft._configurations]

    @property
    def log(self) -> RaftLog:
        return self.node._log

    @property
    def store(self) -> Store:
        return self.node._store

    @property
    def expiries(self) -> Expiries:
        return self.node._expiries

    @property
    def admission(self) -> Admission:
        return self.node._admission

    @property
    def incarnation(self) -> str:
        return self.node._directory.identity.incarnation

    @property
    def cluster_id(self) -> str:
        return self.node._directory.identity.cluster_id

    @property
    def shown_digest(self) -> str:
        """The formation that a node shows which forms a cluster, or ""."""
        return self.node._forming._shown_digest()

    @property
    def waits_for(self) -> str:
        """Whom a node waits for that forms a cluster."""
        return self.node._forming.waits_for()

    @property
    def incoming(self) -> IncomingSnapshot | None:
        """The snapshot that is coming in."""
        return self.node._transfers.incoming

    @property
    def has_no_room(self) -> bool:
        """Whether the node knows that its log has no room."""
        return self.node._upkeep.is_waiting

    @property
    def holds_lease(self) -> bool:
        """Whether the node would answer reads by itself."""
        return self.node._holds_lease()

    @property
    def members(self) -> Configuration:
        """The members as of what the node has applied."""
        return self.node._roster.members

    @property
    def waits_for_room(self) -> bool:
        """Whether something that the node has to write waits for room, though time may pass before
        it finds that there is some: it looks once a second."""
        return bool(self.node._room.unwritten) or self.node._room.stalled is not None

    # -- life ------------------------------------------------------------------------------------

    def insert(self, disk: Disk) -> None:
        """Have it find on its disk what another one holds. The machine has to be down."""
        assert not self.up
        self.disk = disk.after("kept", self._world.rng, self._sync)

    def boot(self) -> None:
        """Start the process. Where its disk lets it down it stays down, to be started again."""
        assert not self.up
        world, luck = self._world, self._world.luck
        self.generation += 1
        generation = self.generation
        self._inbox, self._draining, self._waiting = [], False, []
        self.failure = None
        self.paused = self.keeping = self._may_end = False
        world.trace(f"{self.name} boots at {self.address}")
        options = NodeOptions(
            node_id=self.name,
            told_node_id=True,
            data_dir="/data",
            raft_address="" if self.is_wildcard else self.address,
            http_address="" if self.is_wildcard else f"http://{self.host}:{self.http_port}",
            http_port=self.http_port,
            peers=self.peers,
            quorum_size=self.quorum_size,
            bootstrap=self.bootstrap,
            version="sim",
            role=self.role,
            election_timeout=self.election_timeout,
            read_mode="lease" if luck.lease else "index",
            barrier_timeout=0.6,
            write_timeout=0.9,
            engine=luck.engine(self.name, self.lives),
            page_size=512,
            cache_bytes=1 << 16,
            memtable_bytes=4000,
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
        world.start(self._discover(self, generation))
        world.after(rng.random() * node_module.TICK, partial(self._tick, generation))
        world.after(rng.random() * node_module.HOUSEKEEPING, partial(self._housekeep, generation))

    def _open(self, options: NodeOptions, rng: random.Random, generation: int) -> None:
        registry = Registry()
        self.history = History(self._world.luck.history)
        asked_for_room = self.disk.failure_is_due or self.disk.copies_on_write
        try:
            self.node = Node.open(
                options,
                self.disk,
                self._roads.peers_of(self),
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
            self._checks.watch(self)
            self.node.recover()
        except (ConureError, SimulatedCrash) as error:
            if isinstance(error, DiskFull) and (asked_for_room or self._lacks_something()):
                self._world.counts["starts that a full disk refused"] += 1
                self._may_end = True
            elif not isinstance(error, SimulatedCrash) and not self._is_excused(error):
                self._world.fail(f"{self.name} doesn't start", error)
            self.failure = error

    def _lacks_something(self) -> bool:
        """Tell whether the disk has less on it than a start on a full disk needs."""
        files = ("identity.json", "conure.db", "raft/snapshot")
        if not all(self.disk.exists(f"/data/{name}") for name in files):
            return True
        return not any(name.endswith(".reserve") for name in self.disk.list("/data/raft"))

    def _call_later(self, generation: int, action: Callable[[], None], seconds: float) -> None:
        """In no fixed order with what else comes, as where clients and peers are many."""
        seconds += self._world.rng.choice([0.0, 0.0, 0.001, 0.02])
        act = partial(self.run, action)
        self._world.after(seconds, partial(self._catch_up, generation, act))

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
                self._world.fail(f"{self.name} can't stop", error)
        if generation == self.generation:
            self._world.trace(f"{self.name} stops")
            self._gone()
            self.disk.restart_process()

    def _end(self) -> None:
        """The process is over: by loss of power, or because the node has failed."""
        rng = self._world.rng
        if not self.disk.is_dead and rng.random() < 0.5:
            self._world.trace(f"{self.name} ends")
            self._gone()
            self.disk.restart_process()
            return
        mode = rng.choice(CRASH_MODES)
        self._world.trace(f"{self.name} crashes, unsynced bytes {mode}")
        self._world.counts["crashes"] += 1
        self._gone()
        self.disk = self.disk.after(mode, rng, self._sync)

    def _gone(self) -> None:
        """The process has ended; somebody will start it again."""
        self.up = False
        self.generation += 1
        self.busy_until = self._world.now
        for stream in list(self.streams):
            stream.break_off()
        self._world.after(self._world.rng.choice([0.05, 0.3, 1.0]), self.boot_again)

    def boot_again(self) -> None:
        """Start the process, unless it runs or is to stay down."""
        if not self.up and not self.stays_down:
            self.boot()

    def wipe(self) -> None:
        """Replace the disk by an empty one. The machine has to be down."""
        assert not self.up
        self._world.trace(f"{self.name} loses its disk")
        self._world.counts["wiped disks"] += 1
        self._roads.lost_disk(self.name)
        self.disk = Disk(self._sync)
        self.lives += 1
        self.is_wiped = True

    def mend(self) -> None:
        """End all that is wrong with it, and let it run."""
        self.disk.mend()
        self.excuses = ()
        self.sync_seconds = SYNC_SECONDS
        self.resume(self.generation)
        if not self.up:
            self.boot()

    # -- input -----------------------------------------------------------------------------------

    def run(self, what: Callable[..., Any], *args: Any) -> Any:
        """Have the process do something, and look at it when it has come to rest.

        Returns None when the machine has died of it; a ConureError is passed on.
        """
        generation = self.generation
        self._world.running.append(partial(self._rest, generation))
        try:
            return what(*args)
        except SimulatedCrash:
            return None
        finally:
            self._world.running.pop()
            if generation == self.generation:
                self._settle()

    def _settle(self) -> None:
        world = self._world
        world.check()
        if self.disk.is_dead:
            self._end()
        elif self.failure is not None:
            if not self._may_end and not self._is_excused(self.failure):
                world.fail(f"{self.name} has failed", self.failure)
            self._end()
        elif self.up:
            self._checks.inspect(self)
            self._roads.inspect(self)

    def _rest(self, generation: int, seconds: float) -> None:
        """Let time pass, and more of it as long as the process is paused."""
        self._world.run_for(seconds)
        while self.paused and generation == self.generation:
            self._world.run_for(0.01)
        if generation != self.generation:
            raise SimulatedCrash("the process is gone")

    def _sync(self) -> None:
        """Take time for a sync: what the process does from here on happens later."""
        self.busy_until = max(self.busy_until, self._world.now) + self.sync_seconds

    def when_free(self, what: Callable[[], None]) -> None:
        """Call it now, or when a pause or other work is over; never, if the process ends."""
        if self.paused:
            self._waiting.append(what)
        elif self.busy_until > self._world.now:
            self._world.at(self.busy_until, partial(self._catch_up, self.generation, what))
        else:
            what()

    def pause(self) -> None:
        """Stop the process without ending it (SIGSTOP); the world goes on."""
        self._world.trace(f"{self.name} pauses")
        self._world.counts["pauses"] += 1
        self.paused = True

    def resume(self, generation: int) -> None:
        """End a pause of that generation, if it is still one."""
        if generation == self.generation and self.paused:
            self._world.trace(f"{self.name} goes on")
            self.paused = False
            waiting, self._waiting = self._waiting, []
            self._world.rng.shuffle(waiting)
            for what in waiting:
                self._world.after(0.0, partial(self._catch_up, generation, what))

    def _catch_up(self, generation: int, what: Callable[[], None]) -> None:
        if generation == self.generation:
            self.when_free(what)

    def take(self, source: object, message: Message) -> None:
        """A message has arrived. All that came from one peer since the last look go together."""
        self._inbox.append((source, message))
        if not self._draining:
            self._draining = True
            self.when_free(self._drain)

    def forget(self, source: object) -> None:
        """Drop what has come from one peer and was not looked at yet."""
        self._inbox = [item for item in self._inbox if item[0] is not source]

    def _drain(self) -> None:
        self._draining = False
        while self._inbox:
            source = self._inbox[0][0]
            messages = [message for sender, message in self._inbox if sender is source]
            self.forget(source)
            generation = self.generation
            self.run(self.node.receive, messages)
            if generation != self.generation:
                return

    def _tick(self, generation: int) -> None:
        if generation != self.generation:
            return
        self._world.after(node_module.TICK / self.rate, partial(self._tick, generation))
        if not self.paused and self.busy_until <= self._world.now:
            self.run(self.node.tick)
            if generation == self.generation and self._world.rng.random() < 0.7:
                self.run(self.watchers.turn)
                self.turns += 1

    def _housekeep(self, generation: int) -> None:
        if generation != self.generation:
            return
        if not self.paused and not self.keeping and self.busy_until <= self._world.now:
            self.keeping = True
            try:
                self.run(self.node.housekeep)
            finally:
                if generation == self.generation:
                    self.keeping = False
        self._world.after(
            node_module.HOUSEKEEPING / self.rate, partial(self._housekeep, generation)
        )


def _broadcast(streams: Sequence[Sink], data: bytes) -> None:
    for stream in streams:
        stream.send(data)
