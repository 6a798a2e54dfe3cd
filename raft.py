"""Raft consensus as a pure state machine: messages, proposals and ticks in, a `Ready` out.

There is no socket, thread, clock or file in here. A *driver* brings every input, asks for
:meth:`Raft.ready` and does what it says, in the order that :class:`Ready` lays down; storage is
only read, through :class:`Storage`. The same inputs (and the same injected ``random.Random``)
give the same outputs, which is what lets a simulator run whole clusters in one thread.

The algorithm is that of Ongaro and Ousterhout, "In Search of an Understandable Consensus
Algorithm" (*paper*), and of Ongaro's dissertation "Consensus: Bridging Theory and Practice"
(*thesis*); the sections of :class:`Raft` follow the paper's order and cite them.

The rules it keeps, by number:

R1 Term and vote are durable before a message that depends on them leaves: the driver's first
   duty. A candidate counts its own vote only when it is durable.
R2 An entry is durable before it is acknowledged: acknowledgements are made by
   :meth:`Raft.persisted`, and the leader counts its own log only as far as it was reported.
R3 Only entries of the current term are committed by counting (paper 5.4.2, figure 8).
R4 One membership change at a time, none before an entry of this term is on the disks of a
   majority, as the change before it has to be; a configuration counts from the moment it is
   appended, and goes when its entry is truncated. A new server is a learner until it has caught
   up, and its leader makes it a voter then, if it was added as "staging". It is known by its
   incarnation: a member that has lost its disk, and with it what it voted and acknowledged, is
   another server under the same name, and is removed before it comes back. Only answers of the
   incarnation that was admitted count.
R5 Pre-vote, leader stickiness and check-quorum: a node that was cut off or removed disturbs
   nobody, and a leader that hears no quorum for an election time-out steps down.
R6 No linearizable read before the term's first entry is committed; the round that confirms a
   read begins after the read has come in. A follower that asks for one says itself that it follows
   this leader, in this term and later than its read: that is its answer to a round.
R9 A lease: a read round that a quorum has confirmed means that nobody else leads for
   ``election_ticks`` counted from before the round began, as long as this node leads on in its
   term and has not begun to hand over. (R7, R8 and R10 are the driver's: docs/architecture.md.)
R11 With a quorum size N, an entry is committed when besides the majority (R3) min(N, number of data
   voters) data voters have it on disk, the leader among them if it is a voter: counted, like the
   majority, by the latest configuration in the log (R4), and as long as that one's own entry is not
   among what is committed, by those before it as well. Nothing else asks for N.

Why R11 harms nothing: what it commits, a majority holds, so all that is said of committed entries
goes for it. What it adds: whichever N - 1 of those data voters lose their disks, one is left that
holds the entry. That stays so while members come and go, because a configuration is committed by
its own rule, and with it all before it; one that comes to nothing has let nothing through that the
rule before it would not. So as long as nobody lowers N, at any later time as many data voters of
the last committed configuration were given the entry. N - 1 lost disks leave one with it, and not
necessarily a majority that elects it.
R4 and R5 ask for majorities only: where a data voter is lost for good, whoever is elected commits
nothing before N is lowered or that member removed, and has to be able to begin just that. All that
R4 protects is that quorums of neighbouring configurations meet, for which a majority is enough.

Why R9 holds, by induction over the terms. Another leader needs the votes of a quorum of its own
latest configuration. At least one of those voters has made a promise that forbids it:

- Who answers the round has heard it in this term, after it began, and has joined no later term.
  From then on it is loyal (R5): for ``election_ticks`` it neither campaigns nor follows a candidate
  into a later term, unless the leader of the term before that has handed over. If that was this
  leader, the lease is void; if it was another one, that one led within the time, which the
  induction excludes. What a node said to a pre-vote earlier binds nobody.
- Learners and arbiters keep the promise like any voter, so it counts as soon as they are voters.
  Only voters of the configuration that confirms the round are counted, and the leader itself only
  while it is one: it keeps the promise by leading on.
- A restart forgets the promise, so a node helps nobody for its first ``quiet_ticks`` (R5). A voter
  that has lost its disk has no configuration and votes for nobody, and comes back as another
  server (R4). An installed snapshot changes what a node holds, not whom it follows.
- Members change by one voter at a time, so each quorum of a configuration meets each quorum of its
  neighbours. Let C be the configuration that confirms the round. All later changes are made by
  this leader, and a majority of its own has acknowledged each before the next is appended (R4),
  after the round began; and an APPEND binds like a heartbeat. A candidate that wins holds all that
  a majority held (paper 5.4.3), the first entry of this term included (R6). So its
  configuration is C, or a neighbour of C or of one whose quorum has acknowledged it. No change of
  members voids a lease.

The unit is the tick, and the first one after a promise may be a short one: a driver counts
``election_ticks - 1``, less what clocks may differ by. Who has a shorter time-out promises less:
a lease is as long as the shortest of all members allows.

An **arbiter** is a voter without data: it is sent entries without their commands, so its log
holds positions only. It counts in elections and commits and never leads. The price: an entry
may be committed on the leader and an arbiter alone, and if that leader is then lost for good,
the arbiter rightly refuses every shorter log. The cluster waits (loses no write) until the old
leader, or another data node that holds the entry, is back. So that one of them always can be, an
arbiter is sent only what a data voter holds durably: its leader or, where that one's own log says
that it is removed, any other. And a leader beside an arbiter can't remove itself: it hands over
first. A role never changes, not even by leaving: an arbiter's directory holds no data that another
role could begin with.

A **node without room** for its log (:meth:`note_room`) stands for election only
when two more election time-outs have brought no other leader: what it leads can be read but not
written. A leader that can't make its own entries durable hands over to a voter that has.

Time is counted in ticks. One caller at a time: the driver's lock guards every method.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from conure.consensus.logview import LogView
from conure.consensus.members import SIZED, Configuration, Outlook, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    HardState,
    Message,
    MessageType,
    ReadState,
    Ready,
    SnapshotMeta,
    State,
    Storage,
)
from conure.errors import (
    Conflict,
    CorruptionError,
    MemberNotFound,
    NotLeader,
    ProtocolViolation,
    Unavailable,
    VersionTooNew,
)
from conure.values import is_address, is_base_url

__all__ = [
    "Progress",
    "Raft",
    "RaftOptions",
    "Replication",
    "bootstrap",
]
_MAX_WAITING: Final = 64  # entries that wait for room, in a log that is to win an election

# What no correct node comes near, however long its cluster lives: what is beyond is refused before
# it leaves no room to count on (terms and indexes are written with 64 bits).
_NUMBER_BITS: Final = 62  # of a term or an index
_MAX_LEAP: Final = 1 << 32  # by how much a term may be ahead of the own one
_MAX_NAME_BYTES: Final = 255  # of an ID or an incarnation: messages have a byte for its length
_MAX_MEMBERS_BYTES: Final = 1 << 20  # of all configurations in one message


class Replication(StrEnum):
    """How a leader feeds a follower."""

    PROBE = "probe"  # one message at a time, until it is known where the logs agree
    PIPELINE = "pipeline"  # entries follow each other without waiting for answers
    SNAPSHOT = "snapshot"  # nothing, until a snapshot has arrived or failed


@dataclass(slots=True)
class Progress:
    """What a leader knows of another server. Read it for statistics; only the core writes it.

    ``match``: its log equals the leader's up to here, durably; it never falls. ``next``: the
    entry to send next, always behind ``match``. ``heard``: the tick of its last answer.
    """

    server: Server
    match: int
    next: int
    heard: int
    state: Replication = Replication.PROBE
    due: bool = True  # an append goes out at the next Ready, even an empty one
    inflight: deque[int] = field(default_factory=deque)  # PIPELINE: last index of each message
    sent: int = 0  # the tick of the last append; it isn't repeated before the next one
    confirmed: int = 0  # the last read round it answered


@dataclass(slots=True)
class _Leadership:
    """What a node knows and owes as the leader of one term: made on its election, dropped when it
    leads no more. Only the core reads and writes it."""

    term_start: int  # the index of its NOOP
    trail: deque[int]  # the last index at each tick, for an election time-out
    secured: int = 0  # the last index of this term that a majority holds durably (R4)
    progress: dict[str, Progress] = field(default_factory=dict)  # of the other servers
    has_handed_over: bool = False  # see Raft.transfer_leadership()
    transferee: str = ""
    transfer_deadline: int = 0
    patient_until: int = 0  # check-quorum gives those who are left time to answer
    uncommitted: deque[tuple[int, int]] = field(default_factory=deque)
    """The last index and the bytes of each proposal."""
    uncommitted_bytes: int = 0
    read_round: int = 0
    round_index: int = 0
    is_in_round: bool = False
    round_reads: list[object] = field(default_factory=list)
    """Confirmed by the round that is on its way."""
    waiting_reads: list[object] = field(default_factory=list)
    """They share the next one."""
    # The driver's clock before a round that renews the lease (R9): of the next one, of the one that
    # is on its way, and of the last that was confirmed.
    next_renewal: float | None = None
    round_renewal: float | None = None
    lease_since: float | None = None


@dataclass(frozen=True, slots=True)
class RaftOptions:
    """Settings of one node.

    A follower that hears no leader for between ``election_ticks`` and twice as many campaigns; a
    leader sends heartbeats every ``heartbeat_ticks``. ``max_inflight`` messages of up to
    ``max_append_bytes`` may be on their way to one follower, but only ``max_catch_up`` of them
    with entries that it missed earlier. Proposals are refused while ``max_uncommitted_bytes`` of
    commands wait for their quorum. For its first ``quiet_ticks`` (the first of them may be a
    short one) a node helps nobody to win an election: a leader that it answered before a restart
    may still answer reads by what that promised. ``incarnation`` is that of its own disk.
    """

    node_id: str
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_inflight: int = 64
    max_catch_up: int = 2
    max_append_bytes: int = 256 << 10
    max_uncommitted_bytes: int = 64 << 20
    quiet_ticks: int = 0
    incarnation: str = ""


def bootstrap(configuration: Configuration) -> tuple[HardState, Entry]:
    """Return what makes an empty log the beginning of a cluster with these members.

    Every founding member may write the same; it is term 1, as if all had elected a leader that
    appended the configuration and left. A node that is going to be joined writes nothing.
    """
    assert any(map(configuration.may_lead, configuration.voters)), "nobody could lead"
    return HardState(1, ""), Entry(1, 1, CONFIG, configuration.encode())


_NOBODY: Final[Mapping[str, Progress]] = {}  # whom a follower feeds

# -- the node ------------------------------------------------------------------------------------

_FROM_LEADER = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT})
_REQUESTS = {
    MessageType.PRE_VOTE: MessageType.PRE_VOTE_RESPONSE,
    MessageType.VOTE: MessageType.VOTE_RESPONSE,
}
_ANSWERS = frozenset(
    {
        MessageType.PRE_VOTE_RESPONSE,
        MessageType.VOTE_RESPONSE,
        MessageType.APPEND_RESPONSE,
        MessageType.HEARTBEAT_RESPONSE,
    }
)


class Raft:
    """The consensus of one node. One caller at a time; nothing here blocks.

    *storage* holds the log and *hard_state* what was last made durable of it. *applied* is the
    last index that the state machine holds durably, *configuration* the members as of it (an
    empty one for a node that was never a member). *rng* draws the election time-outs.
    *check_format* raises Conflict for a version of encoded members that one of them can't read.
    """

    def __init__(
        self,
        options: RaftOptions,
        storage: Storage,
        hard_state: HardState,
        applied: int,
        configuration: Configuration,
        rng: random.Random,
        *,
        check_format: Callable[[int, Configuration], None] | None = None,
    ) -> None:
        self.options = options
        self.id = options.node_id
        self.term, self.vote = hard_state
        self.state = State.FOLLOWER
        self.leader_id = ""  # "" while none is known
        self.leader_incarnation = ""  # under which that one leads; "" where it isn't known
        self.commit_index = applied
        self.applied_index = applied
        self.configuration = configuration  # the latest in the log, committed or not (R4)
        self._has_room = True  # whether the disk takes more of the log

        self._check_format = check_format
        self._log = LogView(storage)
        assert storage.snapshot.index <= applied <= self._log.last_index
        self._configurations = [(applied, configuration)]  # the committed one and those behind
        self._sized_at = applied if configuration.quorum_size else 0
        self._rng = rng
        self._handlers: dict[MessageType, Callable[[Message], None]] = {
            MessageType.PRE_VOTE: self._on_vote_request,
            MessageType.PRE_VOTE_RESPONSE: self._on_pre_vote_response,
            MessageType.VOTE: self._on_vote_request,
            MessageType.VOTE_RESPONSE: self._on_vote_response,
            MessageType.APPEND: self._on_append,
            MessageType.APPEND_RESPONSE: self._on_append_response,
            MessageType.HEARTBEAT: self._on_heartbeat,
            MessageType.HEARTBEAT_RESPONSE: self._on_heartbeat_response,
            MessageType.SNAPSHOT: self._on_snapshot,
            MessageType.TIMEOUT_NOW: self._on_timeout_now,
        }

        # Time, in ticks.
        self._now = 0
        self._elapsed = 0  # since a leader was heard or an election began; since a heartbeat
        self._timeout = 0
        self._reset_timer()

        # Elections: who answered what, in this campaign.
        self._votes: dict[str, bool] = {}

        # A follower: how far the log equals the leader's, and how far the leader was told so.
        self._verified = 0
        self._acknowledged = 0

        # A leader; None on all others.
        self._leading: _Leadership | None = None

        # Collected for the next Ready.
        self._saved = hard_state
        self._messages: list[Message] = []
        self._reads: list[ReadState] = []
        self._lost_reads: list[object] = []
        self._install: SnapshotMeta | None = None
        self._handed_out = applied  # the last committed entry given to the driver
        self._announce_configuration = True
        self._adopt(_configurations_in(self._log.scan(applied + 1, options.max_append_bytes)))

    # -- input -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one unit of time pass."""
        self._now += 1
        self._elapsed += 1
        if self._leading is not None:
            self._tick_leader(self._leading)
        elif self._elapsed >= self._timeout + self._reluctance():
            self.leader_id = ""
            self._reset_timer()
            self.campaign()

    def step(self, message: Message) -> None:
        """Take a message from another node. One that is late, lost or doubled does no harm.

        Nor does an answer of a former life: it counts only if the sender's incarnation is the one
        that this node's configuration admitted (R4), whoever hands it over. From whom requests and
        a leader's messages are taken at all is the driver's to decide, at the handshake.

        Raises what :meth:`check` raises; nothing has changed then.
        """
        kind = message.type
        if message.to != self.id or message.sender == self.id or kind not in self._handlers:
            return  # an address that has changed hands; a matter between drivers
        if kind in _ANSWERS and not self.has_admitted(message):
            return
        self.check(message)
        if kind is MessageType.TIMEOUT_NOW and not self.follows(message):
            return  # it would depose the leader, and win by force
        if message.term < self.term:
            self._answer_late(message)
            return
        if message.term > self.term:
            if kind in _REQUESTS and not message.force and self._is_loyal():
                return  # R5: who still has a leader helps nobody to depose it
            if kind in _ANSWERS and self.state is State.FOLLOWER and self._is_loyal():
                return  # nor does a late answer to what it asked before it had that leader
            if kind is MessageType.PRE_VOTE or (
                kind is MessageType.PRE_VOTE_RESPONSE and not message.reject
            ):
                pass  # about a term that nobody has entered yet
            else:
                self._become_follower(message.term)
        if kind in _FROM_LEADER:
            self._follow(message.sender, message.incarnation)
        self._handlers[kind](message)

    def has_admitted(self, message: Message) -> bool:
        """Tell whether the sender of an answer is the member of that name, with the data directory
        it was admitted with (R4). A message that says nothing of its sender's is believed."""
        if not message.incarnation:
            return True
        leading = self._leading  # and the sender may be on its way out
        progress = None if leading is None else leading.progress.get(message.sender)
        server = progress.server if progress else self.configuration.get(message.sender)
        return server is not None and server.incarnation in ("", message.incarnation)

    def follows(self, message: Message) -> bool:
        """Tell whether the sender leads the term of the message, this node's own, as far as this
        node knows, with the data directory that it leads with."""
        lives = {self.leader_incarnation, message.incarnation} - {""}
        leads = message.sender == self.leader_id and message.term == self.term
        return leads and len(lives) < 2

    def check(self, message: Message) -> None:
        """Raise ProtocolViolation for a message that no correct node sends; nothing changes.

        For the driver, before it does something for the message's sake; :meth:`step` begins with
        it. Members in a format that this release doesn't read are among it: no correct leader
        proposes what a member can't read.
        """
        sizes = message.term | message.index | message.log_term | message.commit | message.hint
        if message.snapshot is not None:
            sizes |= message.snapshot.index | message.snapshot.term
        if sizes >> _NUMBER_BITS or message.term > self.term + _MAX_LEAP:
            raise ProtocolViolation(
                f"{message.sender} sent a {message.type.name} with a term or an index that no "
                f"cluster gets to: term {message.term}, {self.term} here, index {message.index}"
            )
        if message.type in _FROM_LEADER:
            if message.term >= self.term:
                self._refuse_impossible(message)
        elif (
            message.type is MessageType.HEARTBEAT_RESPONSE
            and message.term == self.term
            and self._leading is not None
            and message.sender in self._leading.progress
            and message.context > self._leading.read_round
        ):
            raise ProtocolViolation(f"{message.sender} answers a question that was never asked")

    def campaign(self) -> None:
        """Start an election now, if this node may lead. A lone voter does so when it starts."""
        if self.state is State.LEADER or not self._may_campaign():
            return
        alone = ((), (self.id,))
        if self._is_quiet() and any(c.voters not in alone for _, c in self._configurations):
            return  # its own vote is one as well
        if self._is_alone():
            self._become_candidate(force=False)
        else:
            self._become_pre_candidate()

    def found(self, configuration: Configuration) -> None:
        """Begin a cluster with these members, in the empty log of a node that was never a member:
        what :func:`bootstrap` says becomes durable with the next Ready. Every founding member may
        be told so at any time after they have agreed, also one that a leader of the cluster has
        written to, as long as it has sent no entry."""
        hard_state, entry = bootstrap(configuration)
        assert self._log.last_index == 0
        assert not self.configuration.servers
        assert not self.vote  # who knows no configuration doesn't vote
        if self.term < hard_state.term:
            self._become_follower(hard_state.term)
        self._log.append([entry])
        self._adopt(_configurations_in([entry]))

    def propose(self, commands: Sequence[bytes]) -> int:
        """Append commands to the log, as one batch; return the index of the first.

        They are committed once a Ready hands them out with this term. Raises NotLeader or
        Unavailable, and has changed nothing then.
        """
        assert commands
        leading = self._check_leading()
        if leading.uncommitted_bytes >= self.options.max_uncommitted_bytes:
            raise Unavailable("too many writes wait for a quorum; try again shortly")
        term = self.term
        first = self._log.last_index + 1
        self._log.append([Entry(term, i, COMMAND, data) for i, data in enumerate(commands, first)])
        size = sum(map(len, commands))
        leading.uncommitted.append((self._log.last_index, size))
        leading.uncommitted_bytes += size
        return first

    def read_index(self, context: object) -> int | None:
        """Ask for the index a linearizable read has to wait for (R6; thesis 6.4).

        A lone voter is answered at once: at any state that has applied the returned index.
        Otherwise None, and *context* comes back in ``Ready.reads`` or ``Ready.lost_reads``; all
        that come in while one round is on its way share the next. Raises NotLeader.
        """
        leading = self._leading
        if leading is None:
            raise self._not_leader()
        if self._is_alone() and self.commit_index >= leading.term_start:
            return self.commit_index
        leading.waiting_reads.append(context)
        return None

    @property
    def state_index(self) -> int:
        """The index that a read has to see to see all that is committed: the commit index, but
        for entries behind it that say nothing of the state and aren't durable here, so that they
        can't be applied. A leader without room for its own no-op reads by what was there."""
        log, index = self._log, self.commit_index
        while index > log.persisted and index >= log.offset and log.kind(index) != COMMAND:
            index -= 1
        return index

    @property
    def may_read(self) -> bool:
        """Whether this node leads and has committed an entry of its term, without which there is
        no linearizable read (R6)."""
        return self._leading is not None and self.commit_index >= self._leading.term_start

    def is_confirmed_by(self, node_id: str, incarnation: str) -> bool:
        """Tell whether this leader may read without a round because somebody else asks it to, who
        says that he follows it in this term (R6).

        He said so after his reads had come in, and may have been heard much later: it counts that
        he had voted in no later term by then, as this leader has not by now. Whoever was elected in
        one before that holds what is committed here, so its configuration is the latest one or, if
        a change is under way, the one before (R4). If the two are a quorum of the latest, each
        quorum of either has one of them: nobody was.
        """
        configuration = self.configuration
        server = configuration.get(node_id)
        if server is None or server.incarnation not in ("", incarnation):
            return False
        both = sum(each in configuration.voters for each in {self.id, node_id})
        return self.may_read and both >= configuration.quorum

    @property
    def is_confirming(self) -> bool:
        """Whether a read round is on its way: a read that is asked for now has to wait for it."""
        return self._leading is not None and self._leading.is_in_round

    def renew_lease(self, now: float) -> None:
        """Let the next read round renew this leader's lease (R9); a leader alone needs none.

        *now* is what the driver's monotonic clock shows. Nothing happens where no lease would
        be granted: nobody leads here, or leadership was handed over in this term.
        """
        leading = self._leading
        if leading is not None and not leading.has_handed_over and not self._is_alone():
            leading.next_renewal = now

    @property
    def lease_since(self) -> float | None:
        """Since when, by the driver's clock, nobody else leads for an election time-out (R9).

        None where nothing says so: this node does not lead, no round has been confirmed in this
        term, or leadership was handed over in it. The time-out is the shortest of the voters'.
        """
        leading = self._leading
        return None if leading is None or leading.has_handed_over else leading.lease_since

    def persisted(self, ready: Ready) -> None:
        """Take note that the hard state, snapshot and entries of *ready* are durable."""
        log = self._log
        if ready.snapshot is not None:
            self.applied_index = max(self.applied_index, ready.snapshot.index)
            log.installed(ready.snapshot)
        if ready.entries and ready.epoch == log.epoch:
            log.persisted = ready.entries[-1].index
        if self._leading is not None:
            self._advance_commit(self._leading)
        elif self.state is State.CANDIDATE and ready.hard_state == (self.term, self.id):
            self._count_vote(self.id, granted=True)
        elif self.leader_id and min(self._verified, log.persisted) > self._acknowledged:
            self._acknowledge()

    def applied(self, index: int) -> None:
        """Take note that the state machine has applied everything up to *index*."""
        assert self.applied_index <= index <= self._handed_out
        self.applied_index = index
        self._log.trim(index)

    def note_room(self, has_room: bool) -> None:
        """Take note whether the disk takes more of the log, as far as the driver knows."""
        self._has_room = has_room

    def report_unreachable(self, node_id: str) -> None:
        """Take note that messages to the node were probably lost: it is probed again."""
        progress = None if self._leading is None else self._leading.progress.get(node_id)
        if progress is not None and progress.state is Replication.PIPELINE:
            self._probe(progress, progress.match + 1)

    def report_snapshot(self, node_id: str, index: int | None) -> None:
        """Take note that the node has installed a snapshot up to *index*, or with None that the
        transfer has failed; it is tried again when the node answers an election time-out later:
        one that refuses it, for want of room say, isn't asked without end."""
        progress = None if self._leading is None else self._leading.progress.get(node_id)
        if progress is not None and progress.state is Replication.SNAPSHOT:
            self._probe(progress, max(progress.match, index or 0) + 1)
            if index is None:
                progress.due = False
                progress.sent = self._now + self.options.election_ticks

    # -- output ----------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Return what the driver has to do now, or None. Each thing is handed out once."""
        log, leading = self._log, self._leading
        if leading is not None:
            if leading.waiting_reads or leading.next_renewal is not None:
                self._begin_read_round(leading)
            self._replicate(leading)
        committed = min(self.commit_index, log.persisted)
        unsaved = (self.term, self.vote) != self._saved
        if not (
            self._messages
            or log.written < log.last_index
            or committed > self._handed_out
            or unsaved
            or self._reads
            or self._lost_reads
            or self._announce_configuration
            or self._install is not None
        ):
            return None
        ready = Ready(epoch=log.epoch)
        if unsaved:
            ready.hard_state = self._saved = HardState(self.term, self.vote)
        if self._announce_configuration:
            ready.configuration, self._announce_configuration = self.configuration, False
        if self._messages:
            ready.messages, self._messages = self._messages, []
        if self._install is not None:
            ready.snapshot, self._install = self._install, None
        if log.written < log.last_index:
            ready.entries = log.unwritten()
        elif committed > self._handed_out:
            ready.committed = log.slice(
                self._handed_out + 1, committed + 1, self.options.max_append_bytes
            )
            self._handed_out = ready.committed[-1].index
        if self._reads or self._lost_reads:
            ready.reads, self._reads = self._reads, []
            ready.lost_reads, self._lost_reads = self._lost_reads, []
        return ready

    @property
    def progress(self) -> Mapping[str, Progress]:
        """What a leader knows of the other servers; on all others nothing."""
        return _NOBODY if self._leading is None else self._leading.progress

    @property
    def is_handing_over(self) -> bool:
        """Whether this node leads and takes no proposals: see :meth:`transfer_leadership`."""
        return self._leading is not None and bool(self._leading.transferee)

    @property
    def has_handed_over(self) -> bool:
        """Whether this node leads and has begun to hand over: see :meth:`transfer_leadership`."""
        return self._leading is not None and self._leading.has_handed_over

    @property
    def last_index(self) -> int:
        """The index of the last entry in the log, durable or not."""
        return self._log.last_index

    @property
    def last_term(self) -> int:
        """The term of the last entry in the log."""
        return self._log.last_term

    @property
    def speaks(self) -> int:
        """What a node has to speak to read the members in this log (codec.SPEAKS), as far as it was
        written since this node started."""
        is_held = self._sized_at and self._sized_at >= self._log.storage.first_index
        return SIZED if is_held else self.configuration.speaks

    @property
    def ticks(self) -> int:
        """Ticks since the start; see :meth:`have_answered`."""
        return self._now

    @property
    def last_contact(self) -> int | None:
        """Ticks since the leader was last heard; 0 on the leader, None without a leader."""
        if not self.leader_id:
            return None
        return 0 if self.state is State.LEADER else self._elapsed

    # -- leader election (paper 5.2, 5.4.1; thesis 4.2.3, 9.6) -----------------------------------

    def _may_campaign(self) -> bool:
        """Learners, arbiters, strangers and nodes amid an installation don't (R5).

        A member whose removal isn't known to be committed still may: its log may be the only one
        that lets anybody win (thesis 4.2.2). It needs the votes of a configuration without it.
        A removal that another change follows is committed (R4): who was added again after that is
        a learner, whatever it was before.
        An earlier life of its own that it meets in the log gives it no right (R4): a founder that
        lost its disk would find itself the only voter there. Nor does one whose no-ops of so many
        terms wait for room.
        """
        log = self._log
        if not self._has_room and log.last_index - log.persisted >= _MAX_WAITING:
            return False
        mine = ("", self.options.incarnation)
        return log.installing is None and any(
            server.incarnation in mine
            for _, configuration in self._configurations[-2:]
            for server in configuration.servers
            if server.id == self.id and configuration.may_lead(self.id)
        )

    def _is_loyal(self) -> bool:
        """Tell whether a leader may rely on this node to elect no other one (R5)."""
        return (
            self.state is State.LEADER
            or (self.leader_id != "" and self._elapsed < self.options.election_ticks)
            or self._is_quiet()
        )

    def _is_quiet(self) -> bool:
        return self._now < self.options.quiet_ticks

    def _reset_timer(self) -> None:
        """Begin an election time-out anew, with a new length."""
        self._elapsed = 0
        ticks = self.options.election_ticks
        self._timeout = ticks + self._rng.randrange(ticks)

    def _reluctance(self) -> int:
        """Return for how many more ticks others may stand first: what has no room can be read, but
        not written. Somebody has to lead if no other can."""
        return 0 if self._has_room else 2 * self.options.election_ticks

    def _become_follower(self, term: int, leader_id: str = "", incarnation: str = "") -> None:
        assert term >= self.term
        if term > self.term:
            self.term, self.vote = term, ""
        self.state = State.FOLLOWER
        self.leader_id, self.leader_incarnation = leader_id, incarnation
        self._reset_timer()
        self._verified = self._acknowledged = 0
        leading, self._leading = self._leading, None
        if leading is not None:
            self._lost_reads += leading.round_reads + leading.waiting_reads

    def _become_pre_candidate(self) -> None:
        """Ask whether an election could be won, before disturbing anyone with a new term."""
        self.state = State.PRE_CANDIDATE
        self.leader_id = ""
        self._reset_timer()
        self._votes = {self.id: True}
        self._request_votes(MessageType.PRE_VOTE, self.term + 1, force=False)

    def _become_candidate(self, *, force: bool) -> None:
        self.state = State.CANDIDATE
        self.leader_id = ""
        self.term += 1
        self.vote = self.id
        self._reset_timer()
        self._votes = {}  # its own is counted when it is durable (R1)
        self._request_votes(MessageType.VOTE, self.term, force=force)

    def _request_votes(self, kind: MessageType, term: int, *, force: bool) -> None:
        log = self._log
        for voter in self.configuration.voters:
            if voter != self.id:
                self._send(
                    kind,
                    voter,
                    term=term,
                    index=log.last_index,
                    log_term=log.last_term,
                    force=force,
                )

    def _on_vote_request(self, message: Message) -> None:
        """Grant at most one vote a term, to a log at least as complete (paper 5.4.1).

        A node that knows no configuration doesn't vote: it may be a voter that has lost its disk.
        """
        log = self._log
        complete = (message.log_term, message.index) >= (log.last_term, log.last_index)
        if message.type is MessageType.PRE_VOTE:
            free = message.term > self.term
        else:
            free = self.vote == message.sender or (self.vote == "" and self.leader_id == "")
        if self._is_quiet() and not message.force:
            free = False
        if not (free and complete and self.configuration.servers):
            self._send(_REQUESTS[message.type], message.sender, reject=True)
        elif message.type is MessageType.PRE_VOTE:
            self._send(MessageType.PRE_VOTE_RESPONSE, message.sender, term=message.term)
        else:
            self.vote = message.sender
            self._reset_timer()
            self._send(MessageType.VOTE_RESPONSE, message.sender)

    def _on_pre_vote_response(self, message: Message) -> None:
        if self.state is State.PRE_CANDIDATE and (message.reject or message.term == self.term + 1):
            self._count_vote(message.sender, granted=not message.reject)

    def _on_vote_response(self, message: Message) -> None:
        if self.state is State.CANDIDATE:
            self._count_vote(message.sender, granted=not message.reject)

    def _count_vote(self, node_id: str, *, granted: bool) -> None:
        self._votes.setdefault(node_id, granted)
        answers = [self._votes.get(voter) for voter in self.configuration.voters]
        if answers.count(True) >= self.configuration.quorum:
            if self.state is State.PRE_CANDIDATE:
                self._become_candidate(force=False)
            else:
                self._become_leader()
        elif answers.count(False) > len(answers) - self.configuration.quorum:
            self._become_follower(self.term)

    def _become_leader(self) -> None:
        assert self.state is State.CANDIDATE
        self.state = State.LEADER
        self.leader_id, self.leader_incarnation = self.id, self.options.incarnation
        self._elapsed = 0
        start = self._log.last_index + 1
        trail = deque([start], maxlen=self.options.election_ticks)
        self._leading = leading = _Leadership(start, trail)
        self._track_servers(leading)
        for progress in leading.progress.values():
            progress.heard = self._now  # time to answer, before check-quorum looks
        # Nothing of an earlier term is committed, no read answered and no member changed before
        # an entry of this term is (R3, R4, R6). So there is one at once.
        self._log.append([Entry(self.term, start, NOOP, b"")])

    def _answer_late(self, message: Message) -> None:
        """Answer from a later term, where silence could last for ever.

        A leader or candidate of an earlier term that reaches us must learn of ours: with
        pre-vote and stickiness no other message would ever carry it there.
        """
        if message.type in _REQUESTS:
            self._send(_REQUESTS[message.type], message.sender, reject=True)
        elif message.type in _FROM_LEADER:
            self._send(MessageType.APPEND_RESPONSE, message.sender, reject=True)

    def _tick_leader(self, leading: _Leadership) -> None:
        leading.trail.append(self._log.last_index)
        is_patient = self._now <= leading.patient_until
        if not is_patient and self._count_active(self.configuration) < self.configuration.quorum:
            self._become_follower(self.term)  # R5: a new leader may exist, out of reach
            return
        if leading.transferee and self._now >= leading.transfer_deadline:
            leading.transferee = ""
            if self._is_removed():
                self._become_follower(self.term)
                return
        if self._elapsed >= self.options.heartbeat_ticks:
            self._elapsed = 0
            self._send_heartbeats(leading)
        self._promote_staged(leading)
        if not self._has_room and self._now % self.options.election_ticks == 0:
            self._defer(leading)

    def _defer(self, leading: _Leadership) -> None:
        """Hand over to a voter that has made durable what waits for room here, if there is one."""
        successor = self._successor(leading) if not leading.transferee else ""
        if successor and leading.progress[successor].match > self._log.persisted:
            self.transfer_leadership(successor)

    def _count_active(self, configuration: Configuration) -> int:
        """Return how many voters of it have answered within an election time-out."""
        return sum(map(self._has_answered, configuration.voters))

    def _has_answered(self, node_id: str) -> bool:
        """Tell whether a voter has answered within an election time-out, or is this one."""
        progress = self.progress.get(node_id)
        return node_id == self.id or (progress is not None and self._is_active(progress))

    def _is_active(self, progress: Progress) -> bool:
        return self._now - progress.heard <= self.options.election_ticks

    # -- log replication, the leader's side (paper 5.3) ------------------------------------------

    def _replicate(self, leading: _Leadership) -> None:
        """Send new entries to whoever can take them, and probes where they are due.

        A commit alone is no reason to write: the next entries tell it, or the next heartbeat.
        """
        last = self._log.last_index
        for progress in leading.progress.values():
            if progress.next <= last:
                while progress.state is Replication.PIPELINE and self._has_more(progress):
                    self._send_append(progress)
            if progress.due and progress.state is not Replication.SNAPSHOT:
                self._send_append(progress)

    def _last_for(self, progress: Progress) -> int:
        """An arbiter holds nothing that no data voter holds durably, or it might be left with the
        longest log of all, and nobody could ever win. A leader that isn't one any more doesn't
        count: it was elected by a log that removes it, and once that is committed it stands no
        more, whatever it holds. Nor does one that the latest change makes a voter."""
        log, members = self._log, self.configuration
        if progress.server.role != "arbiter":
            return log.last_index
        if members.may_lead(self.id):
            return log.persisted
        _, before = self._configurations[-2:][0]
        stay = filter(before.may_lead, members.data_voters)
        return max((self.progress[voter].match for voter in stay), default=0)

    def _has_more(self, progress: Progress) -> bool:
        """Who is far behind is fed from the disk, and no faster than it takes: to read a whole
        log for it at once would keep the leader from everybody else, its heartbeats first."""
        options = self.options
        is_near = progress.next >= self._log.offset
        return progress.next <= self._last_for(progress) and len(progress.inflight) < (
            options.max_inflight if is_near else options.max_catch_up
        )

    def _send_append(self, progress: Progress) -> None:
        log = self._log
        previous = progress.next - 1
        previous_term = log.term(previous)
        if previous_term is None or progress.next < log.storage.first_index:
            self._send_snapshot(progress)
            return
        entries: Sequence[Entry] = ()
        if self._has_more(progress):
            last = self._last_for(progress)
            entries = log.slice(progress.next, last + 1, self.options.max_append_bytes)
            if progress.server.role == "arbiter":
                entries = [
                    Entry(e.term, e.index, e.kind, b"" if e.kind == COMMAND else e.data)
                    for e in entries
                ]
        message = Message(
            MessageType.APPEND,
            self.id,
            progress.server.id,
            self.term,
            previous,
            previous_term,
            self.commit_index,
            incarnation=self.options.incarnation,
        )
        message.entries = entries
        self._messages.append(message)
        progress.due = False
        progress.sent = self._now
        if entries and progress.state is Replication.PIPELINE:
            progress.next = entries[-1].index + 1
            progress.inflight.append(entries[-1].index)

    def _send_snapshot(self, progress: Progress) -> None:
        """The entries are cut away: only a snapshot helps (paper 7). Not a dead node, nor one
        that is being removed: what its state would be says nothing of that yet."""
        self._probe(progress, progress.next)
        progress.due = False
        node_id = progress.server.id
        if self._is_active(progress) and self.configuration.get(node_id) is not None:
            progress.state = Replication.SNAPSHOT
            self._send(MessageType.SNAPSHOT, node_id, snapshot=self._log.base)

    def _send_heartbeats(self, leading: _Leadership) -> None:
        for node_id, progress in leading.progress.items():
            self._send(
                MessageType.HEARTBEAT,
                node_id,
                commit=min(progress.match, self.commit_index),
                context=leading.read_round,
            )

    def _on_append_response(self, message: Message) -> None:
        leading = self._leading
        if leading is None or message.index > self._log.last_index:
            return
        progress = leading.progress.get(message.sender)
        if progress is None:
            return
        progress.heard = self._now
        if message.reject:
            self._on_rejection(progress, message)
            return
        if message.index < progress.match:
            return  # reordered
        progress.match = message.index
        progress.next = max(progress.next, message.index + 1)
        if progress.state is Replication.PIPELINE:
            while progress.inflight and progress.inflight[0] <= message.index:
                progress.inflight.popleft()
        elif (
            progress.state is Replication.PROBE
            or message.index + 1 >= self._log.storage.first_index
        ):
            progress.state = Replication.PIPELINE
            progress.next = message.index + 1
        if message.sender == leading.transferee and progress.match == self._log.last_index:
            self._send(MessageType.TIMEOUT_NOW, message.sender)
        if message.index > self.commit_index:
            self._advance_commit(leading)

    def _on_rejection(self, progress: Progress, message: Message) -> None:
        """Go back to where the logs may agree, skipping a term at a time (paper 5.3).

        A rejection that was overtaken by later answers says nothing any more: ``next`` never
        goes back behind ``match``, and a snapshot on its way is left alone. Nor is one of
        ``match`` itself answered at once: who has lost its disk would refuse that for ever.
        """
        if progress.state is Replication.PIPELINE and message.index > progress.match:
            self._probe(progress, progress.match + 1)
        elif (
            progress.state is Replication.PROBE
            and progress.match < message.index == progress.next - 1
        ):
            hint = min(message.hint, message.index)
            agreed = self._log.last_up_to_term(progress.match, hint, message.log_term)
            self._probe(progress, min(agreed + 1, message.index))

    def _probe(self, progress: Progress, next_index: int) -> None:
        progress.state = Replication.PROBE
        progress.next = next_index
        progress.due = True
        progress.inflight.clear()

    def _on_heartbeat_response(self, message: Message) -> None:
        leading = self._leading
        progress = None if leading is None else leading.progress.get(message.sender)
        if leading is None or progress is None:
            return
        progress.heard = self._now
        if progress.match < self._log.last_index and progress.sent < self._now:
            progress.due = True  # it answers and lags: what was sent may be lost
        progress.confirmed = max(progress.confirmed, message.context)
        self._confirm_reads(leading)

    def _advance_commit(self, leading: _Leadership) -> None:
        """Commit what a majority holds durably, if it is of this term (R3; paper 5.4.2), and has
        its copies (R11)."""
        configuration = self.configuration
        matches = sorted(self._matches(leading, configuration.voters))
        index = matches[-configuration.quorum]
        if index >= leading.term_start:
            leading.secured = max(leading.secured, index)
        index = self._last_with_copies(leading, index)
        if index > self.commit_index and index >= leading.term_start:
            self._commit(index)
            while leading.uncommitted and leading.uncommitted[0][0] <= index:
                leading.uncommitted_bytes -= leading.uncommitted.popleft()[1]
            if self._is_removed() and not leading.transferee:
                self._leave(leading)

    def _matches(self, leading: _Leadership, voters: Iterable[str]) -> list[int]:
        """Return up to where each of the voters holds the log durably."""
        return [
            self._log.persisted if voter == self.id else leading.progress[voter].match
            for voter in voters
        ]

    def _last_with_copies(self, leading: _Leadership, index: int) -> int:
        """Return up to where what a majority holds, up to *index*, is held by as many data voters
        as the quorum size asks for (R11).

        A configuration whose own entry isn't among that may come to nothing yet, and with it a
        lower size. Until then those before it count as well.
        """
        for start, configuration in reversed(self._configurations):
            if configuration.copies:
                index = min(index, self._held_by_data_voters(leading, configuration))
            if index >= start:
                break
        return index

    def _held_by_data_voters(self, leading: _Leadership, configuration: Configuration) -> int:
        """Return up to where so many data voters as have to hold the log durably, the leader among
        them unless it is leaving (R11)."""
        matches = sorted(self._matches(leading, configuration.data_voters))
        index = matches[-configuration.copies]
        return min(index, self._log.persisted) if configuration.may_lead(self.id) else index

    # -- log replication, the follower's side (paper 5.3) ----------------------------------------

    def _follow(self, leader_id: str, incarnation: str) -> None:
        """Accept the sender of a leader's message as the leader of this term."""
        if self.state is State.FOLLOWER and self.leader_id == leader_id:
            self._elapsed = 0
        else:
            self._become_follower(self.term, leader_id, incarnation)

    def _refuse_impossible(self, message: Message) -> None:
        """Raise ProtocolViolation for what no leader of the message's term sends."""
        if message.term == self.term and self.leader_id not in ("", message.sender):
            raise ProtocolViolation(
                f"{message.sender} says that it leads term {self.term}, and so does "
                f"{self.leader_id}: a node has lost what it voted"
            )
        if message.term == self.term and self.leader_id and not self.follows(message):
            raise ProtocolViolation(
                f"{message.sender} says that it leads term {self.term} with another data directory"
            )
        entries, meta = message.entries, message.snapshot
        members = [entry.data for entry in entries if entry.kind == CONFIG]
        if meta is not None:
            members.append(meta.configuration)
        if members:
            _refuse_impossible_members(message.sender, members)
        terms = [message.log_term, *[entry.term for entry in entries], message.term]
        if (
            (message.type is MessageType.SNAPSHOT and meta is None)
            or (meta is not None and meta.term > message.term)
            or (entries and entries[0].index != message.index + 1)
            or (entries and entries[-1].index != message.index + len(entries))
            or terms != sorted(terms)
        ):
            raise ProtocolViolation(f"{message.sender} sent a malformed {message.type.name}")

    def _on_append(self, message: Message) -> None:
        log = self._log
        entries = message.entries
        last = message.index + len(entries)
        if message.index < self.commit_index:
            last = self.commit_index  # late; all that is committed agrees anyhow
        elif log.term(message.index) != message.log_term:
            hint = min(message.index, log.last_index)
            hint = log.last_up_to_term(self.commit_index, hint, message.log_term)
            self._send(
                MessageType.APPEND_RESPONSE,
                message.sender,
                index=message.index,
                reject=True,
                hint=hint,
                log_term=log.term(hint) or 0,
            )
            return
        else:
            self._append_missing(entries)
            self._commit(min(message.commit, last))
        self._verified = max(self._verified, last)
        if last <= log.persisted:
            self._acknowledge()
        # else persisted() does (R2)

    def _append_missing(self, entries: Sequence[Entry]) -> None:
        """Append what the log lacks, and truncate only on a real conflict."""
        log = self._log
        if not entries or log.term(entries[-1].index) == entries[-1].term:
            return  # all there: equal index and term mean equal logs up to here
        if entries[0].index <= log.last_index:
            entries = entries[
                next(i for i, e in enumerate(entries) if log.term(e.index) != e.term) :
            ]
            first = entries[0].index
            if first <= log.last_index:
                assert first > self.commit_index, "a committed entry was replaced"
                log.truncate(first)
                self._forget_configurations(first)
        log.append(entries)
        self._adopt(_configurations_in(entries))

    def _acknowledge(self) -> None:
        self._acknowledged = min(self._verified, self._log.persisted)
        self._messages.append(
            Message(
                MessageType.APPEND_RESPONSE,
                self.id,
                self.leader_id,
                self.term,
                self._acknowledged,
                incarnation=self.options.incarnation,
            )
        )

    def _on_heartbeat(self, message: Message) -> None:
        self._commit(min(message.commit, self._log.last_index))
        self._send(MessageType.HEARTBEAT_RESPONSE, message.sender, context=message.context)

    def _commit(self, index: int) -> None:
        if index > self.commit_index:
            assert index <= self._log.last_index
            self.commit_index = index
            if len(self._configurations) > 1:
                self._drop_old_configurations()

    # -- snapshots (paper 7) ---------------------------------------------------------------------

    def _on_snapshot(self, message: Message) -> None:
        """Install a snapshot, unless the log has got as far without it."""
        meta, log = message.snapshot, self._log
        assert meta is not None
        if meta.index > self.commit_index and log.term(meta.index) == meta.term:
            self._commit(meta.index)  # the entries are here: keep them and what follows
        elif meta.index > self.commit_index:
            configuration = Configuration.decode(meta.configuration)
            log.restore(meta)
            self.commit_index = self._handed_out = meta.index
            self._configurations = [(meta.index, configuration)]
            self._sized_at = meta.index if configuration.quorum_size else 0
            self._adopt_configuration()
            self._install = meta
        self._verified = max(self._verified, self.commit_index)
        if self._verified <= log.persisted:
            self._acknowledge()

    # -- membership (paper 6; thesis 4) ----------------------------------------------------------

    def add_learner(self, server: Server) -> int:
        """Add a server that counts in no quorum yet, or give a member its new addresses.

        Returns the index whose commit makes the change; asked again with the same facts, the
        index of the configuration that has them. A new server becomes "staging" if *server*
        says so and "nonvoter" otherwise; a member keeps its suffrage, except that a nonvoter may
        become "staging". Raises NotLeader, Unavailable (R4: another change is under way) and
        what :meth:`check_addition` raises.
        """
        return self._change(self._check_leading(), self.check_addition(server))

    def move(self, moved: Sequence[Server]) -> int:
        """Give members their new addresses, all in one entry: two may have changed places.

        No member comes, goes or gets a vote by it, so R4 holds whatever their number. Returns and
        raises what :meth:`add_learner` does, and MemberNotFound; Conflict as well if one of them
        would be where another member is.
        """
        leading = self._check_leading()
        members = self.configuration
        for server in moved:
            known = self._member(server.id)
            here = replace(
                known, raft_address=server.raft_address, http_address=server.http_address
            )
            members = members.with_server(here)
        places = [server.raft_address for server in members.servers]
        if any(places.count(server.raft_address) > 1 for server in moved):
            raise Conflict("two members would have one address")
        return self._change(leading, members)

    def promote(self, node_id: str) -> int:
        """Make a learner a voter; see :meth:`add_learner` for what is returned and raised.

        Unavailable as well while it has not caught up (thesis 4.2.1) or doesn't answer.
        """
        leading = self._check_leading()
        server = self._member(node_id)
        if server.suffrage != "voter" and not self.caught_up(node_id):
            raise Unavailable(f"{node_id} has not caught up with the log yet; try again shortly")
        members = self.configuration.with_server(replace(server, suffrage="voter"))
        return self._change(leading, members)

    def remove(self, node_id: str, *, force: bool = False) -> int:
        """Remove a member, this one too; see :meth:`add_learner` for what is returned and raised.

        A leader that removes itself leads until that is committed, without counting itself, and
        hands over. Raises what :meth:`check_removal` raises. Those on whom it then depends, and
        who didn't answer before a removal by *force*, have an election time-out to do so.
        """
        leading = self._check_leading()
        index = self._change(leading, self.check_removal(node_id, force=force))
        if force:
            leading.patient_until = self._now + self.options.election_ticks
        return index

    def resize(self, quorum_size: int) -> int:
        """Change the quorum size, 0 for none; see :meth:`add_learner` for what is returned and
        raised, and :meth:`check_size`. Raised, it counts at once, for what isn't committed yet as
        well; lowered, from its own entry on (R11), which whoever is dead need not have."""
        return self._change(self._check_leading(), self.check_size(quorum_size))

    def check_addition(self, server: Server) -> Configuration:
        """Return the members as :meth:`add_learner` would leave them; nothing changes.

        Raises NotLeader, Unavailable (leadership is being handed over, or the server's removal
        isn't committed yet) and Conflict: a role changes, an address is another member's, or the
        server isn't the one that is known by this id (R4: its disk was replaced).
        """
        self._check_leading()
        known = self.configuration.get(server.id)
        if known is None and any(c.get(server.id) for _, c in self._configurations):
            # What it had acknowledged before would count for it, whatever has become of its disk.
            raise Unavailable(f"the removal of {server.id} isn't committed yet; try again shortly")
        if known is not None and known.role != server.role:
            raise Conflict(f"{server.id} is of the role {known.role}; remove it first")
        if known is not None and known.incarnation not in ("", server.incarnation):
            raise Conflict(f"{server.id} is a member with another data directory; remove it first")
        for other in self.configuration.servers:
            if other.id != server.id and other.raft_address == server.raft_address:
                raise Conflict(f"{other.id} has the address {other.raft_address}; remove it first")
        suffrage = "nonvoter" if known is None else known.suffrage
        if suffrage == "nonvoter" and server.suffrage == "staging":
            suffrage = "staging"
        return self.configuration.with_server(replace(server, suffrage=suffrage))

    def check_removal(self, node_id: str, *, force: bool = False) -> Configuration:
        """Return the members as :meth:`remove` would leave them; nothing changes.

        Raises NotLeader, Unavailable (leadership is being handed over), MemberNotFound, and
        Conflict when nobody would be left that could lead, or might be able to (an arbiter may
        hold more than every data node but a leader), or, unless *force*, when too few of the
        voters that stay answer to commit anything.
        """
        self._check_leading()
        self._member(node_id)
        if node_id == self.id and any(s.role == "arbiter" for s in self.configuration.servers):
            raise Conflict(f"{node_id} leads, beside an arbiter; hand leadership over first")
        rest = self.configuration.without(node_id)
        if not any(map(rest.may_lead, rest.voters)):
            raise Conflict(f"{node_id} is the last voter that holds data and can't be removed")
        after = self.outlook(rest)
        if after.active < after.quorum and not force:
            raise Conflict(
                f"only {after.active} of the {after.voters} voters besides {node_id} answer and "
                f"{after.quorum} must: nothing could be written any more; start the others first, "
                "or insist with force"
            )
        if not after.commits and not force:
            raise Conflict(
                f"only {after.active_data} of the data voters besides {node_id} answer, and by the "
                f"quorum size of {rest.quorum_size} {after.copies} must: nothing could be written "
                "any more; lower it first (POST /quorum), start the others, or insist with force"
            )
        return rest

    def check_size(self, quorum_size: int) -> Configuration:
        """Return the members as :meth:`resize` would leave them; nothing changes.

        Raises NotLeader, Unavailable (leadership is being handed over), and Conflict for a size
        beyond the number of data voters, for one that changes nothing, because any majority has as
        many data voters, for one that would keep writes waiting: too few data voters answer or, if
        it is raised, hold what was in the log an election time-out ago; and if a member can't read
        a size.
        """
        self._check_leading()
        members = self.configuration
        sized = members.sized(quorum_size)
        if sized == members or not quorum_size:
            return sized
        data = len(members.data_voters)
        if quorum_size > data:
            raise Conflict(f"a quorum size of {quorum_size} is beyond the {data} data voters")
        if quorum_size <= members.majority_copies:
            raise Conflict(
                f"a quorum size of {quorum_size} changes nothing: any majority of these "
                f"{len(members.voters)} voters has {members.majority_copies} data voters or more; "
                "with a size of null a majority alone decides"
            )
        if quorum_size > members.copies:
            able = sum(map(self._keeps_up, members.data_voters))
            if able < quorum_size:
                raise Conflict(
                    f"only {able} of the data voters have caught up and a quorum size of "
                    f"{quorum_size} needs as many: writes would wait for the others"
                )
        elif self.outlook(sized).active_data < quorum_size:
            raise Conflict(
                f"only {self.outlook(sized).active_data} of the data voters answer: writes would "
                f"go on waiting with a quorum size of {quorum_size}; lower it further"
            )
        self._refuse_unreadable(sized)
        return sized

    def _keeps_up(self, node_id: str) -> bool:
        """Tell whether a voter has caught up, or this leader with itself."""
        leading = self._leading
        if node_id == self.id and leading is not None:
            return self._log.persisted >= leading.trail[0]
        return self.caught_up(node_id)

    def outlook(self, configuration: Configuration | None = None) -> Outlook:
        """Return how the members would fare, or these others; who isn't a member yet counts as
        one that doesn't answer. Raises NotLeader: nobody else hears the voters."""
        if self.state is not State.LEADER:
            raise self._not_leader()
        members = self.configuration if configuration is None else configuration
        active_data = sum(map(self._has_answered, members.data_voters)) if members.copies else 0
        return Outlook(
            len(members.voters),
            members.quorum,
            self._count_active(members),
            members.copies,
            active_data,
        )

    @property
    def lacks_copies(self) -> bool:
        """Whether this node leads and so few data voters answer that nothing is committed, though a
        majority of the voters may be there (R11)."""
        if self._leading is None or not self.configuration.copies:
            return False
        return self.outlook().active_data < self.configuration.copies

    def have_answered(self, configuration: Configuration, since: int) -> bool:
        """Tell whether as many of these members have answered after tick *since* as commit
        something. Who has died counts as active for an election time-out more; with this a change
        can wait for certainty."""
        others = self.progress
        answered = {
            voter
            for voter in configuration.voters
            if voter == self.id or (voter in others and others[voter].heard > since)
        }
        copies = len(answered.intersection(configuration.data_voters))
        return len(answered) >= configuration.quorum and copies >= configuration.copies

    def _promote_staged(self, leading: _Leadership) -> None:
        """Make a voter of a staging server that has caught up, one at a time (R4)."""
        if leading.transferee or self._is_changing(leading) or not leading.secured:
            return
        for server in self.configuration.servers:
            if server.suffrage == "staging" and self.caught_up(server.id):
                with suppress(Conflict):  # see _check_format
                    self.promote(server.id)
                return

    def caught_up(self, node_id: str) -> bool:
        """Return whether a server answers and holds all that was in the log an election time-out
        ago: becoming a voter, it would delay no commit for longer (thesis 4.2.1)."""
        leading = self._leading
        progress = None if leading is None else leading.progress.get(node_id)
        return (
            leading is not None
            and progress is not None
            and self._is_active(progress)
            and progress.match >= leading.trail[0]
        )

    def slowest_match(self) -> int:
        """Return how far the slowest server that answers holds the log durably, as known here;
        the last index where nobody is behind. For who cuts the log: it will be asked for more."""
        matches = (p.match for p in self.progress.values() if self._is_active(p))
        return min(matches, default=self._log.last_index)

    def transfer_leadership(self, to: str = "") -> None:
        """Hand leadership to a member that may lead, or to the one with the longest log.

        No proposal is accepted until the target has taken over or an election time-out has
        passed (thesis 3.10). Raises NotLeader, MemberNotFound, Conflict (it can't lead) and
        Unavailable (nobody to take over).

        ``has_handed_over`` is true from then on as long as this node leads in this term: who was
        asked to take over may still be elected whenever it gets the message, whatever others
        have promised to this leader. There is no lease any more (R9).
        """
        leading = self._leading
        if leading is None:
            raise self._not_leader()
        to = to or self._successor(leading)
        if not to:
            raise Unavailable("there is no other voter that could take over")
        self._member(to)
        if not self.configuration.may_lead(to):
            raise Conflict(f"{to} can't lead: it is a learner or an arbiter")
        if to == self.id:
            leading.transferee = ""
            return
        leading.transferee = to
        leading.has_handed_over = True
        leading.transfer_deadline = self._now + self.options.election_ticks
        if leading.progress[to].match == self._log.last_index:
            self._send(MessageType.TIMEOUT_NOW, to)

    def _on_timeout_now(self, _: Message) -> None:
        """Campaign at once, without a pre-vote: the leader itself asks for it."""
        if self.state is State.FOLLOWER and self._may_campaign():
            self._become_candidate(force=True)

    def _successor(self, leading: _Leadership) -> str:
        """Return the active voter with the longest log that may lead, or ""."""
        able = [
            (progress.match, node_id)
            for node_id, progress in leading.progress.items()
            if self.configuration.may_lead(node_id) and self._is_active(progress)
        ]
        return max(able)[1] if able else ""

    def _leave(self, leading: _Leadership) -> None:
        """Hand over, now that this leader's own removal is committed (thesis 4.2.2)."""
        successor = self._successor(leading)
        if successor:
            self.transfer_leadership(successor)  # _tick_leader() ends it if nothing comes of it
        else:
            self._become_follower(self.term)

    def _change(self, leading: _Leadership, configuration: Configuration) -> int:
        """Append a configuration, one member or addresses away from the last one (R4)."""
        if configuration == self.configuration:
            return self._configurations[-1][0]
        if not leading.secured:
            raise Unavailable("this leader has just been elected; try again shortly")
        if self._is_changing(leading):
            raise Unavailable("another change of members is under way; try again shortly")
        index = self._log.last_index + 1
        entry = Entry(self.term, index, CONFIG, configuration.encode())
        self._refuse_unreadable(configuration)
        found = _configurations_in([entry])  # may raise, so before anything has changed
        self._log.append([entry])
        self._adopt(found)
        return index

    def _refuse_unreadable(self, configuration: Configuration) -> None:
        """Raise Conflict for a configuration in a format that one of its members can't read."""
        if self._check_format is not None:
            self._check_format(configuration.speaks, configuration)

    def _is_changing(self, leading: _Leadership) -> bool:
        """Tell whether the latest configuration isn't on the disks of a majority yet (R4)."""
        return self._configurations[-1][0] > max(leading.secured, self.commit_index)

    def _is_removed(self) -> bool:
        is_committed = self._configurations[-1][0] <= self.commit_index
        return self.configuration.get(self.id) is None and is_committed

    def _adopt(self, found: list[tuple[int, Configuration]]) -> None:
        """A configuration counts from the moment it is in the log (R4)."""
        if found:
            self._configurations += found
            sized = [index for index, configuration in found if configuration.quorum_size]
            self._sized_at = max([self._sized_at, *sized])
            self._adopt_configuration()

    def _forget_configurations(self, first: int) -> None:
        """Entries from *first* on were truncated, and their configurations with them (R4)."""
        if self._configurations[-1][0] >= first:
            self._configurations = [item for item in self._configurations if item[0] < first]
            self._adopt_configuration()

    def _drop_old_configurations(self) -> None:
        """Keep the last committed configuration and what is behind it."""
        while len(self._configurations) > 1 and self._configurations[1][0] <= self.commit_index:
            del self._configurations[0]
        if self._leading is not None:
            for node_id, progress in self._leading.progress.items():
                if self.configuration.get(node_id) is None:
                    self._send_append(progress)  # it hears of the commit, and keeps quiet
            self._track_servers(self._leading)

    def _adopt_configuration(self) -> None:
        self.configuration = self._configurations[-1][1]
        self._announce_configuration = True
        if self._leading is not None:
            self._track_servers(self._leading)
            # With fewer voters, those who have answered may be a quorum.
            self._confirm_reads(self._leading)

    def _track_servers(self, leading: _Leadership) -> None:
        """Have a Progress for each member; a removed one is kept until that is committed."""
        known, leading.progress = leading.progress, {}
        for _, configuration in self._configurations:
            for server in configuration.servers:
                if server.id == self.id:
                    continue
                progress = known.get(server.id)
                if progress is None:
                    silent = self._now - self.options.election_ticks - 1
                    progress = Progress(server, 0, self._log.last_index + 1, silent)
                    known[server.id] = progress
                progress.server = server
                leading.progress[server.id] = progress

    def _member(self, node_id: str) -> Server:
        server = self.configuration.get(node_id)
        if server is None:
            raise MemberNotFound(f"no member has the ID {node_id}; see /raft/config")
        return server

    # -- linearizable reads (thesis 6.4) ---------------------------------------------------------

    def _is_alone(self) -> bool:
        return self.configuration.voters == (self.id,)

    def _begin_read_round(self, leading: _Leadership) -> None:
        """Take the commit index, then ask whether this is still the leader (R6)."""
        if leading.is_in_round or self.commit_index < leading.term_start:
            return
        leading.is_in_round = True
        leading.read_round += 1
        leading.round_index = self.state_index
        leading.round_reads, leading.waiting_reads = leading.waiting_reads, []
        leading.round_renewal, leading.next_renewal = leading.next_renewal, None
        self._send_heartbeats(leading)
        self._confirm_reads(leading)

    def _confirm_reads(self, leading: _Leadership) -> None:
        """Answer the reads of this round, and renew the lease, if a quorum has answered (R9)."""
        configuration = self.configuration
        confirmed = sum(
            voter == self.id or leading.progress[voter].confirmed >= leading.read_round
            for voter in configuration.voters
        )
        if leading.is_in_round and confirmed >= configuration.quorum:
            leading.is_in_round = False
            index = leading.round_index
            self._reads += [ReadState(index, context) for context in leading.round_reads]
            leading.round_reads = []
            if leading.round_renewal is not None:
                leading.lease_since = leading.round_renewal

    # -- helpers ---------------------------------------------------------------------------------

    def _send(self, kind: MessageType, to: str, *, term: int | None = None, **fields: Any) -> None:
        term = self.term if term is None else term
        stamp = self.options.incarnation
        self._messages.append(Message(kind, self.id, to, term, incarnation=stamp, **fields))

    def _check_leading(self) -> _Leadership:
        """Return what this node has as a leader that takes proposals and changes of members."""
        leading = self._leading
        if leading is None:
            raise self._not_leader()
        if leading.transferee:
            raise Unavailable("leadership is being handed over; try again shortly")
        return leading

    def _not_leader(self) -> NotLeader:
        leader = self.configuration.get(self.leader_id)
        if leader is None:
            return NotLeader()
        return NotLeader(leader.raft_address, leader.id, leader.http_address)


def _configurations_in(entries: Iterable[Entry]) -> list[tuple[int, Configuration]]:
    """Return the configurations among the entries; CorruptionError for one that can't be read."""
    return [
        (entry.index, Configuration.decode(entry.data)) for entry in entries if entry.kind == CONFIG
    ]


def _refuse_impossible_members(sender: str, configurations: Sequence[bytes]) -> None:
    """Raise ProtocolViolation for encoded configurations that no leader sends.

    What the log holds already is not asked: addresses in it may be older than the rule for them.
    """
    if sum(map(len, configurations)) > _MAX_MEMBERS_BYTES:
        raise ProtocolViolation(f"{sender} sent more members than a cluster can have")
    for encoded in configurations:
        try:
            servers = Configuration.decode(encoded).servers
        except (CorruptionError, VersionTooNew) as error:
            why = error.why if isinstance(error, CorruptionError) else str(error)
            raise ProtocolViolation(
                f"{sender} sent a configuration that can't be read: {why}"
            ) from None
        if not servers:
            raise ProtocolViolation(f"{sender} sent a configuration without a member")
        for server in servers:
            names = server.id, server.incarnation
            if not all(len(n.encode()) <= _MAX_NAME_BYTES and n.isprintable() for n in names):
                raise ProtocolViolation(
                    f"{sender} sent a member {server.id[:100]!r}, whose name no message can have"
                )
            url = server.http_address
            if not is_address(server.raft_address) or (url and not is_base_url(url)):
                raise ProtocolViolation(
                    f"{sender} sent a member at {server.raft_address!r}, {url!r}: "
                    "these are no addresses"
                )
