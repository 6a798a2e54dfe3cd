"""Those who watch in the fake world: each reconnects wherever and whenever its connection breaks.

Real are the history and the pump of the service; a :class:`Stream` stands for the connection. What
is on its way when that breaks arrives in part, down to half an event. A watcher goes on from the
last event that it has read as a whole, at any node. Where that one's history doesn't reach back so
far, the watcher begins anew, which makes another *segment*.

Each segment has to be what the log says about its keys and its revisions: nothing is missing, comes
twice or in another order. A :class:`Poller` asks for the next change of a key instead, and has to
be told the truth, once and in time.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from conure.commands import Event, EventKind
from conure.errors import Compacted, Unavailable
from conure.service.watchers import Watch
from conure.state.history import Position, parse_event_id
from tests.sim.fleet import Fleet
from tests.sim.machine import Machine, Sink
from tests.sim.network import Network
from tests.sim.world import Process, World

__all__ = ["Poller", "Stream", "Watcher"]

PATIENCE = 1.0  # seconds without an answer after which a watcher tries elsewhere


class Stream:
    """The twin of httpserver.Stream: a connection from a machine to a watcher."""

    def __init__(self, world: World, network: Network, watcher: Watcher, machine: Machine) -> None:
        self._world = world
        self._network = network
        self.watch: Watch[Sink] | None = None
        self.machine = machine
        self._watcher = watcher
        self._generation = machine.generation
        self._under_way: deque[bytes | None] = deque()  # None is the end
        self._last_arrival = 0.0
        self.is_over = False

    @property
    def unsent(self) -> int:
        return sum(len(data) for data in self._under_way if data)

    def send(self, data: bytes) -> bool:
        if not self.is_over:
            self._put(data)
        return not self.is_over

    def finish(self) -> None:
        if not self.is_over:
            self._put(None)

    def break_off(self) -> None:
        """End the connection; some of what is on its way still arrives."""
        if self.is_over:
            return
        rest = b"".join([data for data in self._under_way if data])
        self._close()
        self._watcher.take(rest[: self._world.rng.randint(0, len(rest))])
        self._watcher.go_elsewhere(self)

    def _put(self, data: bytes | None) -> None:
        world = self._world
        self._under_way.append(data)
        when = world.now + self._network.latency(self.machine)
        self._last_arrival = max(when, self._last_arrival)
        world.at(self._last_arrival, self._arrive)

    def _arrive(self) -> None:
        if self.is_over:
            return
        data = self._under_way.popleft()
        if data is None:
            self._close()
            self._watcher.go_elsewhere(self)
        else:
            self._watcher.take(data)

    def _close(self) -> None:
        self.is_over = True
        self.machine.streams.pop(self, None)
        if self.watch is not None and self._generation == self.machine.generation:
            self.watch.cancel()


@dataclass
class _Segment:
    """What was read without a gap, from *begin* up to but not including *end*."""

    begin: Position
    end: Position
    events: list[Event] = field(default_factory=list)


class Watcher:
    """A client that watches the keys from *start* up to but not including *end*.

    It begins at *position*.
    """

    def __init__(
        self,
        world: World,
        fleet: Fleet,
        network: Network,
        name: str,
        start: bytes,
        end: bytes | None,
        position: Position,
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._network = network
        self.name = name
        self._range = start, end
        self._segments = [_Segment(position, position)]
        self._buffer = b""
        self._stream: Stream | None = None
        self._attempts = 0

    @property
    def position(self) -> Position:
        """Everything before it has been read."""
        return self._segments[-1].end

    @property
    def machine(self) -> Machine | None:
        """Where it is connected, if it is."""
        return self._stream.machine if self._stream else None

    def connect(self) -> None:
        """Begin to watch at some machine, where the last connection has left off."""
        world = self._world
        self._attempts += 1
        attempt = self._attempts
        data_nodes = [machine for machine in self._fleet.all() if machine.role == "data"]
        machine = world.rng.choice(data_nodes)
        generation = machine.generation

        def arrive() -> None:
            if machine.up and generation == machine.generation and attempt == self._attempts:
                machine.run(self._open, machine)

        def give_up() -> None:
            if attempt == self._attempts and self._stream is None:
                self.connect()

        if machine.up:
            world.after(world.luck.delay, lambda: machine.when_free(arrive))
        world.after(PATIENCE if machine.up else 0.1, give_up)

    def go_elsewhere(self, stream: Stream) -> None:
        """The connection is over."""
        if stream is self._stream:
            self._stream = None
            self._attempts += 1
            self._world.after(0.02, self.connect)

    def hang_up(self) -> None:
        """End the connection, if there is one."""
        if self._stream is not None:
            self._stream.break_off()

    def take(self, data: bytes) -> None:
        """Read what has arrived; half an event is kept until its other half comes."""
        *frames, self._buffer = (self._buffer + data).split(b"\n\n")
        for frame in frames:
            lines = [line.partition(": ") for line in frame.decode().split("\n")]
            self._read({name: value for name, _, value in lines})

    def check(self, events: Sequence[Event]) -> None:
        """See that every segment has exactly those of all events that belong to it."""
        start, end = self._range
        numbered: list[tuple[Position, Event]] = []
        for event in events:
            is_next = bool(numbered) and numbered[-1][0].revision == event.revision
            skip = numbered[-1][0].skip + 1 if is_next else 0
            numbered.append((Position(event.revision, skip), event))
        for segment in self._segments:
            expected = [
                event
                for position, event in numbered
                if segment.begin <= position < segment.end
                and start <= event.key
                and (end is None or event.key < end)
            ]
            self._world.expect(
                segment.events == expected,
                f"{self.name} has seen {segment}, but what has happened is {expected}",
            )
            self._world.counts["events watched"] += len(expected)

    def _open(self, machine: Machine) -> None:
        position = self.position
        try:
            machine.watchers.check(position)
        except Compacted as error:
            self._world.trace(f"{self.name} has lost what is before {error.oldest}")
            self._world.counts["histories lost"] += 1
            begin = max(Position(error.oldest), position)
            self._segments.append(_Segment(begin, begin))
            self._go_on_later()
            return
        except Unavailable:
            self._go_on_later()
            return
        self._world.trace(f"{self.name} watches at {machine.name} from {position}")
        self._world.counts["watches"] += 1
        self._buffer = b""
        stream = self._stream = Stream(self._world, self._network, self, machine)
        machine.streams[stream] = None
        stream.watch = machine.watchers.watch(*self._range, position, stream)
        if not self._world.mending:
            self._world.after(self._world.rng.expovariate(0.7), stream.break_off)

    def _go_on_later(self) -> None:
        """Try again, perhaps elsewhere."""
        self._attempts += 1
        self._world.after(0.05, self.connect)

    def _read(self, fields: dict[str, str]) -> None:
        kind, world, segment = fields["event"], self._world, self._segments[-1]
        if kind == "end":
            return
        position = parse_event_id(fields["id"])
        world.trace(f"{self.name} reads {kind} {fields['id']}")
        if kind == "progress":
            world.expect(position >= segment.end, f"{self.name} falls back to {position}")
        else:
            world.expect(position > segment.end, f"{self.name} reads {fields} again")
            data = json.loads(fields["data"])
            segment.events.append(
                Event(
                    data["revision"],
                    EventKind[kind.upper()],
                    data["key"].encode(),
                    (data["value"] or "").encode(),
                    data["version"],
                )
            )
        segment.end = max(segment.end, position)


class Poller:
    """A client that polls one key, at any node, one long poll after the other."""

    def __init__(self, world: World, fleet: Fleet, key: bytes) -> None:
        self._world = world
        self._fleet = fleet
        self._key = key
        self._after = 0  # it wants to know of changes after this revision
        self._told: list[tuple[bool, int, int]] = []  # whether there was one, between revisions

    def poll(self) -> Process:
        """Poll until the faults end."""
        world, rng = self._world, self._world.rng
        while not world.mending:
            yield 0.05 * rng.random()
            machine = rng.choice(self._fleet.all())
            if machine.role == "data" and machine.up and not machine.paused:
                yield from self._ask(machine, rng.choice([0.05, 0.3, 1.0]))

    def check(self, events: Sequence[Event]) -> None:
        """See that every answer was true."""
        revisions = [event.revision for event in events if event.key == self._key]
        for told, after, until in self._told:
            is_true = any(after < revision <= until for revision in revisions)
            self._world.expect(is_true is told, f"{self._key!r} from {after} to {until}: {told}")
            self._world.counts["polls told of a change" if told else "polls told of none"] += 1

    def _ask(self, machine: Machine, seconds: float) -> Process:
        """Wait for a change, as long as the process lives."""
        world, history, watchers = self._world, machine.history, machine.watchers
        after = max(self._after, history.floor)
        answers: list[bool] = []

        def reply(has_changed: bool) -> None:
            answers.append(has_changed)
            world.trace(f"a poll of {self._key!r} behind {after} ends: {has_changed}")
            world.expect(len(answers) == 1, "a poll is answered twice")
            self._after = history.revision
            # All may have been forgotten, or not all be looked through yet: both prove nothing.
            is_known = history.floor <= after if has_changed else watchers._at == history.end()
            if is_known:
                self._told.append((has_changed, after, history.revision))

        deadline = world.now + seconds
        generation = machine.generation
        try:
            watchers.wait_for(self._key, self._key + b"\0", after, deadline, reply)
        except Unavailable:
            return
        enough: int | None = None  # turns of the pump, by when it has answered
        while not answers and generation == machine.generation and not world.mending:
            if enough is None and world.now > deadline:
                enough = machine.turns + 2
            world.expect(enough is None or machine.turns < enough, "a poll is not answered")
            yield 0.1
