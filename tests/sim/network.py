"""The network of the fake world: messages, calls, snapshots and probes between machines.

It loses, doubles and delays them, and is cut. A connection has one handshake and lasts while both
ends live and believe each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from conure.consensus.messages import Message
from conure.consensus.records import FRAME_HEADER_BYTES
from conure.errors import ConureError, OutcomeUnknown, Refused, Unavailable
from conure.peers.calling import CallReply
from conure.peers.calls import Answer, Call, decode_answer, decode_call, encode_answer, encode_call
from conure.peers.forming import (
    Question,
    Shown,
    check_question,
    check_shown,
    encode_question,
    encode_shown,
)
from conure.peers.frames import decode_message, encode_message
from conure.peers.protocol import Greeting
from conure.peers.transfer import Outgoing
from conure.values import is_address
from tests.sim.checks import Checks
from tests.sim.fleet import Fleet
from tests.sim.machine import Machine
from tests.sim.world import Process, World

__all__ = ["Network"]


class _Cut(Exception):
    """A connection broke, perhaps after a piece of a snapshot that has arrived."""

    got_further = False


class Peers:
    """The twin of transport.Transport: one process's way to the others."""

    def __init__(self, network: Network, machine: Machine) -> None:
        self.machine = machine
        self.addresses: dict[str, str] = {}
        """Where the others are, by name."""
        self.transfers: set[str] = set()
        """To whom snapshots are on their way."""
        self._network = network
        self._generation = machine.generation

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._generation == self.machine.generation and not self.machine.disk.is_dead

    def start(self) -> None:
        """Nothing to do: there are no threads."""

    def close(self) -> None:
        """Nothing to do: the machine's generation ends with the process."""

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self.addresses = dict(peers)

    def send(self, message: Message) -> None:
        if self.is_alive:
            self._network.send(self, message)

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        return self.is_alive and self._network.call(self, to, call, reply, seconds)

    def connect(self, node_ids: Iterable[str]) -> None: ...

    def judge(
        self, believes: Callable[[Greeting, str], bool], expects: Callable[[Greeting], bool]
    ) -> None:
        self._network.judge(self, believes, expects)

    def send_snapshot(self, outgoing: Outgoing) -> None:
        if self.is_alive:
            self._network.transfer(self, outgoing)

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        if self.is_alive:
            self._network.probe(self, address, node_id, reply, known_as)

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        if self.is_alive:
            self._network.ask(self, address, question, reply)


@dataclass(eq=False)
class _Line:
    """A connection for calls, who waits for an answer on it, and what has arrived and waits for the
    process. What is lost on it holds up all behind it, in either direction, until it breaks."""

    connection: Connection
    asked: dict[int, CallReply] = field(default_factory=dict)
    calls: deque[Callable[[], object]] = field(default_factory=deque)
    answers: deque[Callable[[], object]] = field(default_factory=deque)
    is_stuck: bool = False
    is_broken: bool = False


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

    def __init__(self, world: World, fleet: Fleet, checks: Checks) -> None:
        self._world = world
        self._fleet = fleet
        self._checks = checks
        self.cut: set[tuple[str, str]] = set()
        """From whom to whom nothing gets through."""
        self.astray: dict[tuple[str, str], str] = {}
        """Where a name leads that leads astray, by the machine that looks it up and the address.
        Only questions of who forms a cluster are led so."""
        self._peers: dict[str, Peers] = {}  # of the process that runs or was the last, by machine
        self._judged_by: dict[str, tuple[object, ...]] = {}  # what it depends on, as last seen
        self._connections: dict[_Way, Connection] = {}
        self._transfers: dict[Connection, None] = {}  # those of snapshots
        self._lines: dict[_Way, _Line] = {}
        self._numbers = 0  # of calls
        self._in_order: dict[tuple[_Line, bool], float] = {}  # when the last of a line arrives
        self._recent: dict[str, deque[tuple[Connection, Message]]] = {}  # messages, by machine
        self._former: dict[str, list[tuple[Connection, Message]]] = {}  # of disks that were lost
        self._not_before: dict[_Way, float] = {}  # back-off after a failed dial
        self._last: dict[tuple[str, str], float] = {}  # when the last message arrives, in order
        checks.tell_of_admissions(self._admitted_again)

    # -- what a machine wants of it (machine.Roads) ----------------------------------------------

    def peers_of(self, machine: Machine) -> Peers:
        """Return the way to the others for a process that begins now."""
        peers = self._peers[machine.name] = Peers(self, machine)
        return peers

    def inspect(self, machine: Machine) -> None:
        """See that a process has closed what it wouldn't open now, if that may have changed."""
        raft = machine.raft
        judged_by = (raft.state, raft.leader_id, raft.configuration)
        if judged_by != self._judged_by.get(machine.name):
            self._judged_by[machine.name] = judged_by
            self._check(self._peers[machine.name])

    # -- faults ----------------------------------------------------------------------------------

    def heal(self) -> None:
        """Let everybody reach everybody."""
        self.cut.clear()
        self._not_before.clear()

    def disconnect(self) -> None:
        """Break one connection: what is on its way on it is lost."""
        asked = [way for way, line in self._lines.items() if line.asked]
        if asked and self._world.rng.random() < 0.7:
            way = self._world.rng.choice(asked)
            self._world.trace(f"the line {way[0].machine.name}→{way[1]} breaks")
            self._hang_up(way)
        elif self._connections:
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
        for way, line in list(self._lines.items()):
            if line.connection.is_refused(judge, believes, expects):
                self._hang_up(way)
        for way, connection in list(self._connections.items()):
            if connection.is_refused(judge, believes, expects):
                self._world.counts["connections judged and closed"] += 1
                self._world.trace(f"{way[0].machine.name}→{way[1]} is closed: judged again")
                self._break(way)

    def _check(self, judge: Peers) -> None:
        admission = judge.machine.admission
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
        """Put a message on its way, if it isn't lost."""
        world, luck = self._world, self._world.luck
        self._checks.check_message(source.machine, message)
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

    # -- calls -----------------------------------------------------------------------------------

    def call(self, source: Peers, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        """Let a process ask another one; False: it doesn't know where that is."""
        address = source.addresses.get(to)
        if address is None:
            return False
        world = self._world
        world.counts["calls"] += 1
        way = (source, to, address)
        line = self._lines.get(way)
        if line is None:  # what is sent while it is being dialled arrives by and by
            world.after(self.latency(source.machine), partial(self._dial, way, call, reply))
        else:
            self._send_call(way, line, call, reply)
        world.after(seconds, partial(self._give_up, way, reply))
        return True

    def _dial(self, way: _Way, call: Call, reply: CallReply) -> None:
        source, to, address = way
        line = self._lines.get(way)
        try:
            if line is None:
                connection = self.connect("calls", source, address, to)
                line = self._lines[way] = _Line(connection)
        except (_Cut, ConureError):
            self._tell_end(source, reply, Unavailable("it can't be reached"))
        else:
            self._send_call(way, line, call, reply)

    def _send_call(self, way: _Way, line: _Line, call: Call, reply: CallReply) -> None:
        self._numbers += 1
        line.asked[self._numbers] = reply
        payload = encode_call(self._numbers, call)[FRAME_HEADER_BYTES:]
        self._carry(way, line, partial(self._take_call, way, line, payload), is_answer=False)

    def _carry(
        self, way: _Way, line: _Line, arrive: Callable[[], None], *, is_answer: bool
    ) -> None:
        """Bring something over a line, in order; or lose it, and the line with it."""
        world, luck = self._world, self._world.luck
        source, target = line.connection.source, line.connection.target
        sender = target if is_answer else source
        when = max(
            world.now + self.latency(sender.machine), self._in_order.get((line, is_answer), 0.0)
        )
        self._in_order[line, is_answer] = when
        if not world.mending and world.rng.random() < luck.loss / 2:
            world.at(when, partial(self._hang_up, way, line))
        else:
            world.at(when, arrive)

    def _take_call(self, way: _Way, line: _Line, payload: bytes) -> None:
        source, target = line.connection.source, line.connection.target
        if line.is_broken or not target.is_alive:
            self._hang_up(way, line)
            return
        if line.is_stuck or (source.machine.name, target.machine.name) in self.cut:
            line.is_stuck = True
            return
        number, call = decode_call(payload)
        self._world.trace(f"{source.machine.name}→{target.machine.name} call {call.kind.name}")

        def give(answer: Answer) -> None:
            if target.is_alive and not line.is_broken:
                told = encode_answer(number, answer)[FRAME_HEADER_BYTES:]
                take = partial(self._take_answer, way, line, told)
                self._carry(way, line, take, is_answer=True)

        def serve() -> None:
            if not line.is_broken:
                machine.run(machine.node.called, line.connection.caller, call, give)

        machine = target.machine
        line.calls.append(serve)
        machine.when_free(partial(_go_on, target, line.calls))

    def _take_answer(self, way: _Way, line: _Line, payload: bytes) -> None:
        source, target = line.connection.source, line.connection.target
        if line.is_broken:
            return
        if line.is_stuck or (target.machine.name, source.machine.name) in self.cut:
            line.is_stuck = True
            return
        number, answer = decode_answer(payload)
        reply = line.asked.pop(number) if answer.is_last else line.asked[number]
        line.answers.append(partial(source.machine.run, reply, answer))
        source.machine.when_free(partial(_go_on, source, line.answers))

    def _tell_end(self, source: Peers, reply: CallReply, error: ConureError) -> None:
        def tell() -> None:
            if source.is_alive:
                source.machine.run(reply, error)

        self._world.after(0.001, lambda: source.machine.when_free(tell))  # by a thread of its own

    def _give_up(self, way: _Way, reply: CallReply) -> None:
        line = self._lines.get(way)
        if line is not None and reply in line.asked.values():
            self._hang_up(way, line)

    def _hang_up(self, way: _Way, line: _Line | None = None) -> None:
        """End a line: who waits for an answer gets none."""
        if line is not None and self._lines.get(way) is not line:
            return
        line = self._lines.pop(way, None)
        if line is not None:
            line.is_broken = True
            self._world.counts["lines lost"] += 1
            for reply in line.asked.values():
                lost = OutcomeUnknown("the connection was lost before its answer")
                self._tell_end(way[0], reply, lost)

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

    def _admitted_again(self, name: str) -> None:
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
        machine = next((one for one in self._fleet.all() if one.address == address), None)
        if machine is None or not machine.up or machine.paused or not source.is_alive:
            raise _Cut
        names = (source.machine.name, machine.name)
        if names in self.cut or names[::-1] in self.cut:
            raise _Cut
        target, node = self._peers[machine.name], source.machine.node
        if known_as is None:
            known_as = node.known_as(to)
        made = Connection(source, target, node.greeting(), known_as, machine.node.greeting())
        if not is_address(made.caller.raft_address):
            raise _Cut  # it waits for the others to say where it is: protocol.py
        try:
            machine.run(machine.node.admit, kind, to, made.caller, known_as)
            if not target.is_alive or not is_address(made.answerer.raft_address):
                raise _Cut
            if kind != "probe":
                source.machine.run(node.recognise, to, made.answerer)
        except Refused as error:
            world.counts["refused connections"] += 1
            world.trace(f"{names[0]}→{names[1]} {kind} refused")
            world.explain(f"  because {error}")
            raise
        if not (source.is_alive and target.is_alive):
            raise _Cut
        if kind != "probe":
            for judge in (source, target):
                what = f"{names[0]}→{names[1]} {kind} would be closed by {judge.machine.name}"
                admission = judge.machine.admission
                is_refused = made.is_refused(judge, admission.believes, admission.expects)
                world.expect(not is_refused, what)
            for end in (made.caller, made.answerer):
                world.expect(
                    end.incarnation in self._checks.admitted,
                    f"{names[0]}→{names[1]} {kind} though {end.node_id} was never admitted",
                )
        return made

    def _break(self, way: _Way) -> None:
        source, to, _ = way
        target = self._connections.pop(way).target
        target.machine.forget(source)
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
    ) -> None:
        """Let a process ask who is at an address."""
        self._world.start(self._probe(source, address, node_id, reply, known_as))

    def _probe(
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

    def ask(
        self,
        source: Peers,
        address: str,
        question: Question,
        reply: Callable[[Shown | ConureError], None],
    ) -> None:
        """Let a process that forms a cluster ask who is at an address."""
        self._world.start(self._ask(source, address, question, reply))

    def _ask(
        self,
        source: Peers,
        address: str,
        question: Question,
        reply: Callable[[Shown | ConureError], None],
    ) -> Process:
        """Each way takes its time, or more of it than anybody expects, and may lose what is said;
        the asker finds out about that late."""
        world, luck = self._world, self._world.luck
        found: Shown | ConureError
        yield self.latency(source.machine)
        try:
            if not world.mending and world.rng.random() < luck.loss:
                raise _Cut
            target, shown = self._put(source, address, question)
            yield self.latency(target.machine)
            if not world.mending and world.rng.random() < luck.straggling:
                world.counts["late answers to who forms"] += 1
                yield world.rng.uniform(0.0, 3.0)
            names = (target.machine.name, source.machine.name)
            if names in self.cut or (not world.mending and world.rng.random() < luck.loss):
                raise _Cut
            found = check_shown(encode_shown(shown))
        except _Cut:
            yield 0.2
            found = Unavailable(f"{address} can't be reached")
        except Refused as error:
            found = error
        if source.is_alive:
            source.machine.when_free(lambda: source.machine.run(reply, found))

    def _put(self, source: Peers, address: str, question: Question) -> tuple[Peers, Shown]:
        """Put a question to who is at an address; return who answers. Raises _Cut, and Refused."""
        there = self.astray.get((source.machine.name, address), address)
        if there != address:
            self._world.counts["names that led astray"] += 1
        machine = next((one for one in self._fleet.all() if one.address == there), None)
        if machine is None or not machine.up or machine.paused or not source.is_alive:
            raise _Cut
        if (source.machine.name, machine.name) in self.cut:
            raise _Cut
        target = self._peers[machine.name]
        shown = machine.run(machine.node.asked, check_question(encode_question(question)))
        if shown is None or not target.is_alive:
            raise _Cut
        self._world.counts["questions of who forms"] += 1
        return target, shown

    # -- snapshots -------------------------------------------------------------------------------

    def transfer(self, source: Peers, outgoing: Outgoing) -> None:
        """Let a process send a snapshot."""
        self._world.start(self._transfer(source, outgoing))

    def _transfer(self, source: Peers, outgoing: Outgoing) -> Process:
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


def _go_on(peers: Peers, arrived: deque[Callable[[], object]]) -> None:
    """Take what has arrived next on a line: in order, whatever else happens to a process first."""
    take = arrived.popleft()
    if peers.is_alive:
        take()
