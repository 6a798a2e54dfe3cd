"""What is always true of nodes, looked at after every step of the machine that has just acted.

==================== ===========================================================================
election safety      at most one leader a term
one vote a term      per life of a data directory; and term and vote are on the disk before any
                     message that says so (R1), entries before their acknowledgement (R2)
log matching         equal index and term mean an equal entry, after an equal one
state machine safety nobody commits another entry at an index than the first who did
leader completeness  a new leader's log holds all that was committed before
monotonicity         term, commit and applied index never fall while a process lives; the term
                     not even over a restart
commits (R3, R11)    what a leader commits, a majority of the voters has on disk, and as many data
                     voters as the quorum size asks for, itself among them if it is a voter
R7                   equal applied index means equal digest and, now and then, equal records
leases (R9)          nobody leads in a later term while a node, by its own clock, holds one
clocks               a leader's time follows its monotonic clock, whatever its wall clock does;
                     the state's never falls
belonging            who holds a log has been admitted with that data directory
==================== ===========================================================================

Who may be connected to whom the network looks after (network.py); that no node fails or refuses
to start, the machine itself (machine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from zlib import crc32

from conure.consensus.members import Configuration
from conure.consensus.messages import COMMAND, CONFIG, Entry, Message, MessageType, Ready, State
from conure.consensus.raftlog import RaftLog
from conure.errors import ProtocolViolation
from conure.state import codec
from raft import Raft
from tests.lab.model import Command
from tests.sim.fleet import Fleet
from tests.sim.machine import EPOCH, Machine
from tests.sim.world import World

__all__ = ["Checks"]

_BINDING = frozenset(MessageType) - {
    MessageType.PRE_VOTE,
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.AUDIT,
    MessageType.AUDIT_RESPONSE,
}
"""What promises something that has to be on the sender's disk."""


@dataclass
class _Seen:
    """The last look at a machine; numbers are the highest seen."""

    lives: int = 0  # of its disk
    term: int = 0  # on that disk
    commit: int = 0  # in this generation
    applied: int = 0
    led: int = 0  # the last term it was seen leading
    clock: tuple[int, float, int] = (0, 0.0, 0)  # term, moment and time
    uses_reserve: bool = False  # of its log
    waits: bool = False  # for room


class Checks:
    """What was seen, of all nodes and for ever."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._expect = world.expect
        self._fleet = fleet
        self._listeners: list[Callable[[str], None]] = []
        self.compares_digests = True
        self.admitted: set[str] = set()
        """The incarnations of all nodes that were ever members."""
        self.last_committed = 0
        """The highest index that anybody has committed."""
        self._seen: dict[str, _Seen] = {}
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._entries: dict[tuple[int, int], tuple[int, int, bytes | None]] = {}
        self._committed: dict[int, tuple[int, int]] = {}  # index: term of the entry, seen in term
        self._digests: dict[int, int] = {}
        self._contents: dict[int, int] = {}
        self._logs: dict[str, RaftLog] = {}  # by incarnation, of disks that were lost as well

    def forget(self) -> None:
        """Forget all logs: those who held them have lost their disks, every one."""
        for facts in (self._leaders, self._votes, self._entries, self._committed):
            facts.clear()
        self._digests.clear()
        self._contents.clear()
        self.last_committed = 0

    def tell_of_admissions(self, tell: Callable[[str], None]) -> None:
        """Call this with the name of a node whenever a log admits its data directory."""
        self._listeners.append(tell)

    def watch(self, machine: Machine) -> None:
        """See what a core hands to its driver and what it is given, in a process that begins."""
        before = self._seen.get(machine.name, _Seen())
        self._seen[machine.name] = _Seen(
            lives=machine.lives,
            term=before.term if before.lives == machine.lives else 0,
            uses_reserve=before.uses_reserve,
            waits=before.waits,
        )
        raft = machine.raft
        self._logs[machine.incarnation] = machine.log
        counted = raft.commit_index  # what it finds committed, others have counted
        luck = self._world.luck
        raft.options = replace(
            raft.options, max_inflight=luck.max_inflight, max_append_bytes=luck.max_append_bytes
        )
        for configuration in machine.configurations:
            self.admitted.update(server.incarnation for server in configuration.servers)
        ready, step = raft.ready, raft.step
        is_arbiter = machine.role == "arbiter"

        def watched_ready() -> Ready | None:
            nonlocal counted
            if raft.commit_index > counted:  # and no other configuration came since
                counted = raft.commit_index
                if raft.state is State.LEADER:
                    self._check_copies(machine, counted)
            found = ready()
            if found is not None:
                self._observe(machine, is_arbiter, found)
            return found

        def watched_step(message: Message) -> None:
            try:
                step(message)
            except ProtocolViolation as error:
                self._world.fail(f"{machine.name} was sent nonsense: {message}", error)
                raise

        expiries = machine.expiries
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
            self._world.counts["snapshots installed"] += 1
            self._world.trace(f"{name} installs {ready.snapshot.index}/{ready.snapshot.term}")
        if ready.entries:
            index = ready.entries[0].index - 1
            before = machine.raft._log.term(index)  # the node's may wait for room
            if before is None:
                self._world.fail(f"{name} leaves a gap before {index + 1}")
                return
            self._remember(name, ready.entries, before, is_arbiter)
        for entry in ready.committed:
            self._commit(machine, entry.index, entry.term)

    def _check_copies(self, leader: Machine, index: int) -> None:
        """Count the disks that hold what a leader has just committed (R2, R3, R11), those that were
        lost after they had it, too. Only what disks hold is asked, not what the leader knows."""
        members, term = leader.configurations[-1], leader.raft._log.term(index)
        voters = [server for server in members.servers if server.suffrage == "voter"]
        holders = [server.id for server in voters if self._holds(server.incarnation, index, term)]
        data = [server.id for server in voters if server.role == "data"]
        kept = [name for name in data if name in holders]
        what = f"{leader.name} commits {index} of {term}, on the disks of {holders}"
        self._expect(2 * len(holders) > len(voters), f"{what} (R3)")
        if members.quorum_size:
            self._world.counts["commits of a quorum size"] += 1
            needed = min(members.quorum_size, len(data))
            self._expect(len(kept) >= needed, f"{what}, and {needed} of {data} need it (R11)")
            is_there = leader.name in kept or leader.name not in data
            self._expect(is_there, f"{what}, not its own (R11)")

    def _holds(self, incarnation: str, index: int, term: int | None) -> bool:
        log = self._logs.get(incarnation)
        if log is None or log._synced < index:
            return False
        return index <= log.snapshot.index or log.term(index) == term

    def _remember(self, name: str, entries: Iterable[Entry], before: int, is_arbiter: bool) -> None:
        """Compare entries with the ones of the same index and term that others have (log matching).

        An arbiter has no data of commands, so nothing is compared with what it has of them.
        """
        known = self._entries
        for entry in entries:
            key = (entry.index, entry.term)
            if key not in known:
                self._note_admissions(entry)
            data = None if is_arbiter and entry.kind == COMMAND else entry.data
            fact = (before, entry.kind, data)
            seen = known.setdefault(key, fact)
            if seen != fact:
                if seen[:2] != fact[:2] or None not in (seen[2], data):
                    self._world.fail(f"{name} has {entry} behind term {before}, others {seen}")
                elif seen[2] is None:
                    known[key] = fact
            before = entry.term

    def _note_admissions(self, entry: Entry) -> None:
        """Take note of the disks that an entry admits, if it is a configuration."""
        servers = Configuration.decode(entry.data).servers if entry.kind == CONFIG else ()
        for server in servers:
            if server.incarnation not in self.admitted:
                self.admitted.add(server.incarnation)
                for tell in self._listeners:
                    tell(server.id)

    def _commit(self, machine: Machine, index: int, term: int) -> None:
        seen = self._committed.setdefault(index, (term, machine.raft.term))
        self._expect(
            seen[0] == term,
            f"{machine.name} commits {index} of term {term}, others had one of term {seen[0]}",
        )
        self.last_committed = max(self.last_committed, index)

    def check_message(self, machine: Machine, message: Message) -> None:
        """See that what a message says is on the disk before it leaves (R1, R2).

        A vote may also be covered by a later term: it can't be given again after that either.
        """
        log, kind, name = machine.log, message.type, machine.name
        if kind not in _BINDING:
            return
        term, vote = log.hard_state
        self._expect(message.term <= term, f"{name} speaks of term {message.term} (R1)")
        if message.reject:
            return
        if kind is MessageType.VOTE or kind is MessageType.VOTE_RESPONSE:
            choice = name if kind is MessageType.VOTE else message.to
            first = self._votes.setdefault((machine.incarnation, message.term), choice)
            self._expect(first == choice, f"{name} votes for {first} and {choice} (R1)")
            self._expect(message.term < term or vote == choice, f"{name} votes from memory (R1)")
        elif kind is MessageType.APPEND_RESPONSE:
            self._expect(message.index <= log._synced, f"{name} acknowledges too much (R2)")

    def _check_time(self, machine: Machine, time: int) -> None:
        """Compare what a leader takes for the time with what it did before in its term."""
        term, clock, state = machine.raft.term, machine.clock(), machine.store.clock
        seen = self._seen[machine.name]
        before_term, before_clock, before = seen.clock
        seen.clock = term, clock, time
        self._expect(time >= state, f"{machine.name} goes back to {time} from {state}")
        if before_term == term:
            most = max(state, before + int((clock - before_clock) * 1000) + 1)
            self._expect(
                before <= time <= most, f"{machine.name} goes from {before} to {time}, not {most}"
            )
        luck = self._world.luck
        if not (luck.skew or luck.jump or luck.drift):
            # Its wall clock tells a quarter of a microsecond at best, and may have rounded it up
            # when the term began: so the latest time that it may take is one of a moment ahead.
            now = int((EPOCH + self._world.now + 1e-6) * 1000)
            self._expect(time <= now, f"{machine.name} takes {time} for the time at {now}")

    def inspect(self, machine: Machine) -> None:
        """Look at a node that has come to rest."""
        raft, store, log = machine.raft, machine.store, machine.log
        name, seen = machine.name, self._seen[machine.name]
        term = log.hard_state.term  # what isn't on the disk yet may be lost
        self._expect(raft.term >= term >= seen.term, f"{name} fell back to term {term}")
        self._expect(raft.commit_index >= seen.commit, f"{name} takes a commit back")
        self._expect(
            seen.applied <= store.applied_index <= raft.commit_index <= raft.last_index,
            f"{name}: applied {seen.applied}, {store.applied_index}, commit {raft.commit_index}",
        )
        seen.term, seen.commit = term, raft.commit_index
        self._expect(
            raft.last_index == 0 or machine.incarnation in self.admitted,
            f"{name} was sent a log, and has never been admitted with the disk it has now",
        )
        self._note_room(machine, seen)
        if store.applied_index > seen.applied and machine.role == "data":
            seen.applied = store.applied_index
            if self.compares_digests:
                digest = self._digests.setdefault(seen.applied, store.digest)
                self._expect(digest == store.digest, f"{name} differs at {seen.applied} (R7)")
            if seen.applied % 16 == 0:
                self.check_contents(machine)
        if raft.state is State.LEADER:
            if seen.led != raft.term:
                seen.led = raft.term
                self._check_new_leader(machine)
            self._check_progress(raft)
            secured = raft._leading.secured if raft._leading is not None else 0
            self._world.counts["commits that wait for copies"] += secured > raft.commit_index
            self._check_leases()

    def check_contents(self, machine: Machine) -> None:
        """Compare a node's records with those that others had at the same index (R7).

        Not amid an entry that is applied in turns: the engine has half of it, and nobody sees it
        (R10).
        """
        if machine.store.is_amid:
            return
        content = 0
        with machine.disk.without_faults():
            for key, record in machine.store.engine.items():
                content = crc32(repr((key, *record)).encode(), content)
        applied = self._seen[machine.name].applied
        seen = self._contents.setdefault(applied, content)
        self._expect(seen == content, f"{machine.name} has other records at {applied} (R7)")

    def _note_room(self, machine: Machine, seen: _Seen) -> None:
        counts, waits = self._world.counts, machine.has_no_room
        uses_reserve = any(segment.is_reserve for segment in machine.log._segments[-1:])
        counts["logs that go on in the reserve"] += uses_reserve > seen.uses_reserve
        counts["logs that wait for room"] += waits > seen.waits
        seen.uses_reserve, seen.waits = uses_reserve, waits

    def _check_new_leader(self, machine: Machine) -> None:
        raft, name = machine.raft, machine.name
        leader = self._leaders.setdefault(raft.term, name)
        self._expect(leader == name, f"{leader} and {name} both lead term {raft.term}")
        self._expect(machine.role == "data", f"{name} leads without data")
        member = raft.configuration.get(name)  # None amid its own removal
        self._expect(member is None or member.suffrage == "voter", f"{name} leads as a learner")
        self._world.counts["elections"] += 1
        self._world.trace(f"{name} leads term {raft.term}")
        for index in range(machine.log.first_index, self.last_committed + 1):
            term, seen_in = self._committed.get(index, (0, raft.term))
            if seen_in < raft.term:
                self._expect(
                    raft._log.term(index) == term,
                    f"{name} leads term {raft.term} without the committed entry {index}",
                )

    def _check_leases(self) -> None:
        """See that no lease is held by whoever is not the latest of those who lead (R9)."""
        leading = [m for m in self._fleet.all() if m.up and m.raft.state is State.LEADER]
        latest = max(m.raft.term for m in leading)
        for other in leading:
            if other.raft.term < latest:
                self._world.counts["leaders of two terms at once"] += 1
                self._expect(
                    not other.holds_lease,
                    f"{other.name} holds a lease of term {other.raft.term}, though somebody leads "
                    f"term {latest} (R9)",
                )

    def _check_progress(self, raft: Raft) -> None:
        """See that what a leader counts is on the disk of the one it counts it for (R2)."""
        for name, progress in raft.progress.items():
            machine = self._fleet.machines.get(name)
            if (
                progress.match == 0
                or machine is None
                or not machine.up
                or machine.incarnation != progress.server.incarnation
                or machine.raft.term != raft.term  # a later leader may have cut it off
            ):
                continue
            log = machine.log
            self._expect(progress.match <= log._synced, f"{name} lacks {progress.match} (R2)")
            mine, others = raft._log.term(progress.match), log.term(progress.match)
            self._expect(
                None in (mine, others) or mine == others,
                f"{raft.id} takes {name} to hold {progress.match} of term {mine}, not {others}",
            )

    def term_of(self, index: int) -> int:
        """Return the term of the entry that was committed at an index."""
        return self._committed[index][0]

    def commands(self, founded: int) -> dict[int, Command]:
        """Return all commands that were committed after the index *founded*, by index."""
        found: dict[int, Command] = {}
        for index, (term, _) in self._committed.items():
            if index <= founded:
                continue
            _, kind, data = self._entries[index, term]
            if kind == COMMAND:
                assert data is not None, "nobody but arbiters has had it"
                op, key, value = codec.decode_command(data)
                if op == codec.OP_SEQUENTIAL:
                    found[index] = codec.decode_sequential(data)
                elif op == codec.OP_TRANSACTION:
                    found[index] = codec.decode_transaction(data)
                else:
                    found[index] = (key, value if op == codec.OP_PUT else None)
        return found
