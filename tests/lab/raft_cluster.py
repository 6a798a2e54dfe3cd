"""A cluster of real cores in one thread: memory for disks, a list for the network.

A :class:`Node` is a driver as raft.py asks for one, with the moment of each sync in the test's
hands, so that a crash can lose what was not synced. :class:`Cluster` holds the messages that are on
their way and checks, over everything that every node ever showed it:

==================== ==========================================================================
election safety      at most one leader a term
log matching         equal index and term mean an equal entry, after an equal one
leader completeness  a new leader's log holds all that was committed before
state machine safety no two nodes apply different entries at one index
quorum               whatever a leader commits is durable on a majority of its voters (R2, R3)
arbiters             have nothing that no data voter has on disk, or something later
reads                a read's index covers all commands committed when it began (R6)
monotonicity         terms, commit and match indexes never fall; no second vote in a term (R1)
==================== ==========================================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from conure.consensus.members import Configuration, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    Entry,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
    State,
)
from raft import Raft, RaftOptions, bootstrap

__all__ = [
    "Cluster",
    "Envelope",
    "MemoryLog",
    "Node",
    "configuration_of",
    "describe",
    "describe_entries",
    "describe_server",
    "server",
]


def server(name: str, suffrage: str = "voter", role: str = "data", incarnation: str = "") -> Server:
    """Return a server at addresses made of its name."""
    return Server(name, f"{name}:7001", f"http://{name}:8081", suffrage, role, incarnation)


def configuration_of(*names: str, arbiters: Iterable[str] = (), size: int = 0) -> Configuration:
    """Return a configuration of voters, with a quorum size."""
    return Configuration(
        (*(server(name) for name in names), *(server(name, role="arbiter") for name in arbiters)),
        size,
    )


class MemoryLog:
    """A log that remembers what of it was synced. Cuts and resets are durable at once."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta()
        self.log: list[Entry] = []
        self.durable: list[Entry] = []

    @property
    def first_index(self) -> int:
        return self.snapshot.index + 1

    @property
    def last_index(self) -> int:
        return self.snapshot.index + len(self.log)

    def term(self, index: int) -> int | None:
        if self.first_index <= index <= self.last_index:
            return self.log[index - self.first_index].term
        return self.snapshot.term if index == self.snapshot.index else None

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        assert self.first_index <= low < high <= self.last_index + 1
        found = self.log[low - self.first_index : high - self.first_index]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.data) + 32
            if size > max_bytes and count:
                return found[:count]
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        assert self.first_index <= entries[0].index <= self.last_index + 1
        del self.log[entries[0].index - self.first_index :]
        self.log += entries

    def sync(self) -> None:
        self.durable = list(self.log)

    def crash(self, *, keep: bool) -> None:
        """Lose what was not synced, or find that it had reached the disk all the same."""
        if keep:
            self.durable = list(self.log)
        self.log = list(self.durable)

    def cut(self, meta: SnapshotMeta) -> None:
        gone = meta.index - self.snapshot.index
        del self.log[:gone], self.durable[:gone]
        self.snapshot = meta

    def reset(self, meta: SnapshotMeta) -> None:
        self.snapshot, self.log, self.durable = meta, [], []


@dataclass(frozen=True)
class Machine:
    """A state machine as of an index; the digest stands for its contents."""

    index: int = 0
    term: int = 0
    digest: int = 0
    configuration: bytes = b""

    def apply(self, entry: Entry) -> Machine:
        assert entry.index == self.index + 1, f"{entry} after {self}"
        digest = self.digest
        if entry.kind == COMMAND:
            digest = hash((digest, entry.index, entry.data))
        configuration = entry.data if entry.kind == CONFIG else self.configuration
        return Machine(entry.index, entry.term, digest, configuration)

    @property
    def meta(self) -> SnapshotMeta:
        return SnapshotMeta(self.index, self.term, self.configuration)


class Node:
    """A server: a core, a log, a state machine with checkpoints, and its driver."""

    def __init__(self, cluster: Cluster, options: RaftOptions) -> None:
        self.cluster = cluster
        self.options = options
        self.id = options.node_id
        self.storage = MemoryLog()
        self.checkpoint = Machine()
        self.machine = Machine()
        self.manual_sync = False
        self.up = False
        self.starts = 0
        self.unsynced: list[Ready] = []
        self.received: Machine | None = None
        self.pending_reads: list[tuple[int, object]] = []
        self.answered: list[tuple[object, int]] = []
        self.lost_reads: list[object] = []
        self.raft: Raft
        self.is_arbiter = False
        self.shown: object = None

    # -- running ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Make a core of what is on disk."""
        assert not self.up
        self.up = True
        self.starts += 1
        self.machine = self.checkpoint
        self.raft = Raft(
            self.options,
            self.storage,
            self.storage.hard_state,
            self.machine.index,
            Configuration.decode(self.machine.configuration),
            random.Random(f"{self.cluster.seed}/{self.id}/{self.starts}"),
        )
        self.drive()

    def crash(self, *, keep: bool = False) -> None:
        """Stop at once; what was not synced is lost, unless *keep*."""
        self.up = False
        self.unsynced = []
        self.pending_reads = []
        self.storage.crash(keep=keep)

    def drive(self) -> None:
        """Carry out every Ready, in the order of the duties."""
        while (ready := self.raft.ready()) is not None:
            self.cluster.observe(self, ready)
            trace = self.cluster.trace
            if ready.hard_state is not None:
                self.storage.hard_state = ready.hard_state
                trace(f"{self.id} saves term={ready.hard_state.term} vote={ready.hard_state.vote}")
            for message in ready.messages:
                self.cluster.post(self, message)
            if ready.snapshot is not None:
                assert self.received is not None
                assert self.received.meta == ready.snapshot
                self.machine = self.checkpoint = self.received
                self.storage.reset(ready.snapshot)
                trace(f"{self.id} installs {ready.snapshot.index}/{ready.snapshot.term}")
            if ready.entries:
                self.storage.append(ready.entries)
                trace(f"{self.id} appends {describe_entries(ready.entries)}")
            if ready.must_persist:
                self.unsynced.append(ready)
                if not self.manual_sync:
                    self._sync()
            for entry in ready.committed:
                self.machine = self.machine.apply(entry)
                self.cluster.observe_applied(self, entry)
            if ready.committed:
                trace(f"{self.id} applies {describe_entries(ready.committed)}")
                self.raft.applied(ready.committed[-1].index)
            self.pending_reads += ((read.index, read.context) for read in ready.reads)
            self.lost_reads += ready.lost_reads
            for context in ready.lost_reads:
                trace(f"{self.id} loses read {context}")
            self._answer_reads()
        self.cluster.check_node(self)
        shown = (self.raft.state, self.raft.term, self.raft.leader_id)
        if shown != self.shown:
            self.shown = shown
            state, term, leader = shown
            trace = self.cluster.trace
            trace(f"{self.id} is {state} in term {term}, leader {leader or 'unknown'}")

    def sync(self) -> None:
        """Sync the log and tell the core about everything that was waiting for it."""
        self._sync()
        self.drive()

    def _sync(self) -> None:
        waiting, self.unsynced = self.unsynced, []
        self.storage.sync()
        for ready in waiting:
            self.raft.persisted(ready)

    def _answer_reads(self) -> None:
        for index, context in list(self.pending_reads):
            if index <= self.machine.index:
                self.pending_reads.remove((index, context))
                self.answered.append((context, index))
                self.cluster.trace(f"{self.id} answers read {context} at {index}")

    # -- input -----------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        self.raft.step(message)
        self.drive()

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.raft.tick()
            self.drive()

    def campaign(self) -> None:
        self.raft.campaign()
        self.drive()

    def propose(self, *commands: bytes) -> int:
        index = self.raft.propose(commands)
        self.drive()
        return index

    def read(self, context: object) -> None:
        self.cluster.begin_read(context)
        index = self.raft.read_index(context)
        if index is not None:
            self.cluster.check_read(context, index)
            self.pending_reads.append((index, context))
            self._answer_reads()
        self.drive()

    def change(self, change: Callable[[], int]) -> int:
        index = change()
        self.drive()
        return index

    def cut(self) -> None:
        """Checkpoint the state machine, and cut the log up to it."""
        if self.machine.index > self.storage.snapshot.index:
            self.checkpoint = self.machine
            self.storage.cut(self.machine.meta)


@dataclass
class Envelope:
    """A message on its way, with the contents of the snapshot it announces."""

    message: Message
    machine: Machine | None = None


class Cluster:
    """Nodes, the messages between them, and what must be true of them all."""

    def __init__(
        self,
        *names: str,
        seed: int = 0,
        arbiters: Iterable[str] = (),
        options: RaftOptions | None = None,
        size: int = 0,
    ) -> None:
        self.seed = seed
        self.options = options or RaftOptions("")
        self.nodes: dict[str, Node] = {}
        self.network: list[Envelope] = []
        self.cut_links: set[tuple[str, str]] = set()
        self.trace: Callable[[str], None] = lambda _: None

        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._entries: dict[tuple[int, int], tuple[int, int, bytes | None]] = {}
        self._committed: dict[int, int] = {}  # index: term of the entry
        self._committed_in: dict[int, int] = {}  # index: term of the leader that committed it
        self._last_committed = 0
        self._machines: dict[int, tuple[int, int]] = {}  # index: term and digest
        self._reads: dict[object, int] = {}
        self._high: dict[tuple[str, int], tuple[int, int]] = {}  # node, start: term, commit
        self._matches: dict[tuple[str, int, str], int] = {}

        founders = configuration_of(*names, arbiters=arbiters, size=size)
        for member in founders.servers:
            node = self.add(member.id, arbiter=member.role == "arbiter")
            node.storage.hard_state, entry = bootstrap(founders)
            node.storage.append([entry])
            node.storage.sync()
        self._remember([entry], 0, whole=True)
        for node in self.nodes.values():
            node.start()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def add(self, name: str, *, arbiter: bool = False) -> Node:
        """Make a node with an empty disk. It isn't running yet."""
        node = self.nodes[name] = Node(self, replace(self.options, node_id=name))
        node.is_arbiter = arbiter
        return node

    # -- the network -----------------------------------------------------------------------------

    def post(self, sender: Node, message: Message) -> None:
        """Put a message on its way, if it is one that may leave now."""
        disk, kind = sender.storage, message.type
        if kind not in (MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESPONSE):
            assert disk.hard_state.term >= message.term, f"R1: {describe(message)}"
        if kind is MessageType.VOTE_RESPONSE and not message.reject:
            assert disk.hard_state == (message.term, message.to), f"R1: {describe(message)}"
        if kind is MessageType.APPEND_RESPONSE and not message.reject:
            durable = disk.snapshot.index + len(disk.durable)
            assert message.index <= durable, f"R2: {describe(message)}"
        machine = None
        if message.type is MessageType.SNAPSHOT:
            sender.cut()
            machine = sender.checkpoint
            message = replace(message, snapshot=machine.meta)
        self.trace(describe(message))
        self.network.append(Envelope(message, machine))

    def deliver(self, envelope: Envelope) -> None:
        """Hand over a message, unless its way is cut or its receiver is down."""
        message = envelope.message
        receiver = self.nodes.get(message.to)
        delivered = (
            receiver is not None
            and receiver.up
            and (message.sender, message.to) not in self.cut_links
        )
        if delivered:
            assert receiver is not None
            receiver.received = envelope.machine or receiver.received
            receiver.step(message)
        if envelope.machine is not None:
            self.report_snapshot(envelope, arrived=delivered)

    def report_snapshot(self, envelope: Envelope, *, arrived: bool) -> None:
        """Tell the sender how the transfer of a snapshot ended."""
        sender = self.nodes[envelope.message.sender]
        assert envelope.machine is not None
        if sender.up:
            sender.raft.report_snapshot(
                envelope.message.to, envelope.machine.index if arrived else None
            )
            sender.drive()

    def settle(self, rounds: int = 20_000) -> None:
        """Deliver messages in order, until there are none."""
        for _ in range(rounds):
            if not self.network:
                return
            self.deliver(self.network.pop(0))
        raise AssertionError("the cluster doesn't come to rest")

    def drop(self, wanted: Callable[[Message], bool] = lambda _: True) -> list[Message]:
        """Lose the messages that are wanted, and return them."""
        lost = [item for item in self.network if wanted(item.message)]
        self.network = [item for item in self.network if not wanted(item.message)]
        for envelope in lost:
            if envelope.machine is not None:
                self.report_snapshot(envelope, arrived=False)
        return [envelope.message for envelope in lost]

    def isolate(self, *names: str) -> None:
        """Cut the ways between these nodes and all others."""
        for one in names:
            for other in set(self.nodes) - set(names):
                self.cut_links |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.cut_links.clear()

    # -- what tests ask for ----------------------------------------------------------------------

    def elect(self, name: str) -> Node:
        """Make the node the leader of all it can reach, and let them know."""
        node = self.nodes[name]
        others = [
            other
            for other in self.nodes.values()
            if other.up and other is not node and (other.id, name) not in self.cut_links
        ]
        leaders = [other for other in others if other.raft.state is State.LEADER]
        if leaders:
            leaders[0].raft.transfer_leadership(name)
            leaders[0].drive()
        else:
            before = list(self.network)
            for other in others:
                other.tick(self.options.election_ticks)  # nobody hears a leader any more (R5)
            self.network = before  # and nobody else has asked for votes
            node.campaign()
        self.settle()
        assert node.raft.state is State.LEADER
        node.tick(self.options.heartbeat_ticks)  # and all know that its NOOP is committed
        self.settle()
        return node

    def tick_all(self, count: int = 1) -> None:
        """Let time pass everywhere, delivering after each tick."""
        for _ in range(count):
            for node in self.nodes.values():
                if node.up:
                    node.tick()
            self.settle()

    @property
    def leader(self) -> Node | None:
        """The leader of the highest term, among the running nodes."""
        leaders = [n for n in self.nodes.values() if n.up and n.raft.state is State.LEADER]
        return max(leaders, key=lambda node: node.raft.term) if leaders else None

    # -- what must be true -----------------------------------------------------------------------

    def begin_read(self, context: object) -> None:
        """It has to see the last command that was committed before."""
        index = self._last_committed
        while index > 0:
            entry = self._entries.get((index, self._committed.get(index, 0)))
            if entry is None or entry[1] == COMMAND:
                break
            index -= 1
        self._reads[context] = index

    def check_read(self, context: object, index: int) -> None:
        assert index >= self._reads[context], f"read {context} at {index} is stale (R6)"

    def observe(self, node: Node, ready: Ready) -> None:
        """Take note of what a node is about to write, send and apply."""
        if ready.hard_state is not None and ready.hard_state.vote:
            term, vote = ready.hard_state
            assert self._votes.setdefault((node.id, term), vote) == vote, (
                f"{node.id} voted twice in term {term} (R1)"
            )
        if ready.entries:
            first = ready.entries[0].index
            before = node.storage.term(first - 1)
            if ready.snapshot is not None and ready.snapshot.index == first - 1:
                before = ready.snapshot.term
            assert before is not None, f"{node.id} leaves a gap before {first}"
            self._remember(ready.entries, before, whole=not node.is_arbiter)
            if node.is_arbiter:
                self._check_supply(node, ready.entries[-1])
        for read in ready.reads:
            self.check_read(read.context, read.index)

    def _check_supply(self, arbiter: Node, last: Entry) -> None:
        """Nobody wins the vote of an arbiter by a log that ends before its own."""
        voters = arbiter.raft.configuration.data_voters
        disks = [self.nodes[voter].storage for voter in voters]
        ends = [disk.durable[-1] if disk.durable else disk.snapshot for disk in disks]
        assert any((end.term, end.index) >= (last.term, last.index) for end in ends), (
            f"{arbiter.id} has {last.index} of {last.term}, and none of {voters} has it on disk"
        )

    def observe_applied(self, node: Node, entry: Entry) -> None:
        assert self._committed.setdefault(entry.index, entry.term) == entry.term, (
            f"{node.id} applies {entry}, others something else"
        )
        self._last_committed = max(self._last_committed, entry.index)
        if not node.is_arbiter:
            seen = (node.machine.term, node.machine.digest)
            assert self._machines.setdefault(entry.index, seen) == seen, (
                f"{node.id} has another state at {entry.index}"
            )

    def check_node(self, node: Node) -> None:
        """Check a node whenever its driver has come to rest."""
        raft = node.raft
        high = (node.id, node.starts)
        term, commit = self._high.get(high, (0, 0))
        assert raft.term >= term
        assert commit <= raft.commit_index <= raft.last_index
        self._high[high] = (raft.term, raft.commit_index)
        if raft.state is not State.LEADER:
            return
        for name in self.nodes.keys() - raft.progress.keys():
            self._matches.pop((node.id, raft.term, name), None)  # removed: begins anew if added
        for name, progress in raft.progress.items():
            assert self._matches.get((node.id, raft.term, name), 0) <= progress.match
            assert progress.match < progress.next <= raft.last_index + 1
            self._matches[node.id, raft.term, name] = progress.match
        leader = self._leaders.setdefault(raft.term, node.id)
        if leader != node.id:
            raise AssertionError(f"{leader} and {node.id} both lead term {raft.term}")
        self._check_complete(node)
        if raft.commit_index > commit:
            self._check_quorum(node)
            # Committed is what a leader says is committed, applied anywhere or not.
            for index in range(max(commit, node.storage.snapshot.index) + 1, raft.commit_index + 1):
                term_there = node.storage.term(index)
                assert term_there is not None
                assert self._committed.setdefault(index, term_there) == term_there
                self._committed_in.setdefault(index, raft.term)
            self._last_committed = max(self._last_committed, raft.commit_index)

    def _check_complete(self, node: Node) -> None:
        for index in range(node.storage.first_index, self._last_committed + 1):
            if self._committed_in.get(index, node.raft.term) < node.raft.term:
                assert node.storage.term(index) == self._committed[index], (
                    f"leader {node.id} of term {node.raft.term} lacks the committed entry {index}"
                )

    def _check_quorum(self, node: Node) -> None:
        index = node.raft.commit_index
        term = node.storage.term(index)
        assert term == node.raft.term, f"{node.id} committed an entry of term {term} (R3)"
        configuration = node.raft.configuration
        holders = []
        for voter in configuration.voters:
            storage = self.nodes[voter].storage
            position = index - storage.first_index
            if position < 0 or (
                position < len(storage.durable) and storage.durable[position].term == term
            ):
                holders.append(voter)
        assert len(holders) > len(configuration.voters) // 2, (
            f"{node.id} committed {index}, durable on {holders} of {configuration.voters} (R2)"
        )
        if configuration.quorum_size:
            voting = [s for s in configuration.servers if s.suffrage == "voter"]
            data = [s.id for s in voting if s.role == "data"]
            kept = [name for name in holders if name in data]
            assert len(kept) >= min(configuration.quorum_size, len(data)), (
                f"{node.id} committed {index}, durable on {kept} of the data voters {data}, with a "
                f"quorum size of {configuration.quorum_size} (R11)"
            )
            assert node.id in kept or node.id not in data, f"{node.id} lacks {index} itself (R11)"

    def _remember(self, entries: Sequence[Entry], before: int, *, whole: bool) -> None:
        for entry in entries:
            data = entry.data if whole else None
            seen = self._entries.setdefault((entry.index, entry.term), (before, entry.kind, data))
            if data is None or seen[2] is None:
                assert seen[:2] == (before, entry.kind), f"log matching is broken at {entry}"
            else:
                assert seen == (before, entry.kind, data), f"log matching is broken at {entry}"
            before = entry.term


def describe(message: Message) -> str:
    """Return a message as one line of a trace."""
    parts = [f"{message.sender}→{message.to} {message.type.name} term={message.term}"]
    kind = message.type
    if kind in (MessageType.VOTE, MessageType.PRE_VOTE, MessageType.APPEND):
        parts.append(f"log={message.index}/{message.log_term}")
    if kind is MessageType.APPEND_RESPONSE:
        parts.append(f"index={message.index}")
    if kind in (MessageType.APPEND, MessageType.HEARTBEAT):
        parts.append(f"commit={message.commit}")
    if message.reject:
        parts.append("reject")
        if kind is MessageType.APPEND_RESPONSE:
            parts.append(f"hint={message.hint}/{message.log_term}")
    if message.context:
        parts.append(f"round={message.context}")
    if message.force:
        parts.append("force")
    if message.snapshot is not None:
        parts.append(f"snapshot={message.snapshot.index}/{message.snapshot.term}")
    if message.entries:
        parts.append(describe_entries(message.entries))
    return " ".join(parts)


def describe_entries(entries: Sequence[Entry]) -> str:
    """Return entries as a list in one line."""
    return "[" + " ".join(map(describe_entry, entries)) + "]"


def describe_server(member: Server) -> str:
    """Return a member's id, with ? for a learner, + for a staging one and ! for an arbiter."""
    marks = {"voter": "", "nonvoter": "?", "staging": "+", "data": "", "arbiter": "!"}
    return member.id + marks[member.suffrage] + marks[member.role]


def describe_entry(entry: Entry) -> str:
    """Return an entry as index/term and what is in it."""
    if entry.kind == CONFIG:
        names = [describe_server(one) for one in Configuration.decode(entry.data).servers]
        return f"{entry.index}/{entry.term}:{{{' '.join(names)}}}"
    text = entry.data.decode() if entry.kind == COMMAND else "noop"
    return f"{entry.index}/{entry.term}:{text}"
