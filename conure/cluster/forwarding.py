"""What a node that doesn't lead asks of the leader for its own clients: writes, reads, changes.

Writes wait in one queue and travel as calls (peers/calls.py), one at a time: while one is under
way the others gather, as they do on a leader.

1. **Order.** No write is sent before those ahead of it were answered, or can't be sent any more.
   A call names the term of the leader that it is for, and no other one takes it. So one that is
   still on its way to a former leader is either in the log of those who followed it, ahead of
   whatever they were sent later, or comes to nothing.
2. **Once.** A write goes on to another leader only if nothing has come of it: the leader said that
   it leads no more, or nothing of the call was sent. What was sent and not answered is of unknown
   outcome.
3. **Time.** A write has as long as one at the leader. What was not sent by then was not begun.
4. **Without a leader** requests wait for one, a moment that most elections are shorter than, and
   are refused then. So clients that try again at once are held instead of being answered thousands
   of times a second. The same goes while the leader can't be reached.

Reads ask for one index for all of them, and are answered from this node's own state once that has
got there (thesis 6.4). The index counts only if whoever confirmed it is still the one that this
node follows, in the same term and life of its data directory, and was asked after the reads. It is
safe to ask again, and that is done, until their time is over. Reads that were taken in are answered
in their order, whoever leads in between.

A node that comes to lead takes what waits into its own log, in its order.

Everything here belongs to the holder of the node's lock, but for :meth:`Forwarding.change` and what
the transport calls, which take it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from conure.cluster.monitor import CallLater, Monitor
from conure.cluster.pending import Read, Reads, Write, WriteReply, shifted
from conure.cluster.standing import Standing
from conure.cluster.versions import Versions
from conure.commands import Committed
from conure.consensus.members import SIZED, Server
from conure.consensus.messages import State
from conure.errors import (
    Conflict,
    ConureError,
    DiskFull,
    NotLeader,
    OutcomeUnknown,
    TooManyRequests,
    Unavailable,
    WireError,
)
from conure.metrics import Registry
from conure.peers.calling import CallReply
from conure.peers.calls import (
    MAX_CALL_BYTES,
    MAX_COMMANDS,
    Answer,
    AnswerKind,
    Call,
    CallKind,
    decode_error,
    decode_facts,
    decode_index,
    decode_outcomes,
    encode_commands,
    encode_facts,
    encode_index,
)
from conure.peers.protocol import CALLS_SINCE
from conure.state import codec
from conure.state.machine import Store
from raft import Raft

__all__ = ["CALL_BYTES", "FactsReply", "Forwarding", "Lines"]

CALL_BYTES = MAX_CALL_BYTES // 2
"""Bytes of commands after which a call takes no more of them; what is taken last may have as many,
and a command more."""

MAX_WAITING_BYTES = 64 << 20
"""Commands that may wait to be sent, about."""

GRACE = 0.25
"""Seconds for a former leader to answer what it was sent, until others are asked of the new one."""

MARGIN = 0.5
"""Seconds that an answer may take longer than the leader's own limit: the way there and back."""

ASK_AGAIN = 0.05
"""Seconds until who said that it leads no more is asked again, if nobody else is heard of."""

GATHER = 100e-6
"""Seconds that requests wait for those of clients who have just been answered, and again so many as
long as more of them come."""

LONGEST_GATHER = 1e-3
"""Seconds that they wait at most."""

MAX_CHANGES = 16
"""Changes of members that may be asked for at a time."""

_SIZES = frozenset({"resize", "preview resize"})

FactsReply = Callable[[Mapping[str, Any] | ConureError], None]
"""Told what came of a change of members, or of asking what it would be."""


class Lines(Protocol):
    """The part of the transport that asks others."""

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        """Ask a node; see ``Transport.call``. Never blocks."""


@dataclass(slots=True, eq=False)
class _Part:
    """Commands of one write, as many as one call takes."""

    commands: list[bytes]
    reply: WriteReply
    deadline: float
    until: float  # when it has waited for a leader for long enough

    def answer(self, error: ConureError) -> Callable[[], None]:
        return partial(self.reply, 0, len(self.commands), error)


@dataclass(slots=True, eq=False)
class _Sent:
    """A call under way: its parts, which of its commands have an answer, until when it counts."""

    leader: tuple[str, int]  # its ID and term
    parts: list[_Part]
    transactions: frozenset[int]  # those of its commands that have an outcome each
    answered: bytearray  # 1 for each command that is
    deadline: float
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Asked:
    """Reads that a leader was asked to confirm."""

    leader: tuple[str, int]
    incarnation: str
    reads: list[Read]


class Forwarding:
    """Asks the leader for the node whose core is *raft* and whose reads wait in *reads*.

    *take_over* is given the writes that wait when this node comes to lead, and *confirm* its reads,
    one by one. *write_timeout*, *change_timeout* and *leader_wait* (4) are in seconds, by *clock*.
    """

    def __init__(
        self,
        raft: Raft,
        store: Store,
        reads: Reads,
        standing: Standing,
        versions: Versions,
        lines: Lines,
        monitor: Monitor,
        clock: Callable[[], float],
        call_later: CallLater,
        take_over: Callable[[Write], None],
        confirm: Callable[[Read], None],
        registry: Registry,
        *,
        write_timeout: float,
        read_timeout: float,
        leader_wait: float,
        change_timeout: float,
    ) -> None:
        self._raft = raft
        self._store = store
        self._reads = reads
        self._standing = standing
        self._versions = versions
        self._lines = lines
        self._monitor = monitor
        self._clock = clock
        self._call_later = call_later
        self._take_over = take_over
        self._confirm = confirm
        self._write_timeout = write_timeout
        self._read_timeout = read_timeout
        self._leader_wait = leader_wait
        self._change_timeout = change_timeout

        self._waiting: deque[_Part] = deque()
        self._waiting_bytes = 0
        self._sent: list[_Sent] = []  # under way, the oldest first
        self._newest: _Sent | None = None  # nothing was sent after it, nor proposed here
        self._unasked: list[Read] = []
        self._asked: _Asked | None = None
        self._changes = 0  # under way
        self._refused_by = "", 0  # ID and term of who doesn't lead, or can't be reached
        self._ask_again_at = 0.0
        self._changed_at = 0.0  # when this node came to follow another one
        self._crowd = 0  # requests that the last answers were for
        self._is_pausing = False  # until those who were answered have asked again
        self._seen = 0  # requests that waited at the last look at whether more come
        self._pause_until = 0.0

        self._codes = registry.counter_family(
            "conure_forwarded_requests_total",
            "Requests that were passed on to the leader, by the status of what came of it.",
            ("code",),
        )
        self._durations = registry.histogram(
            "conure_forward_duration_seconds",
            "Time from taking requests in for passing them on to what came of it.",
        )
        registry.gauge_callback(
            "conure_forward_waiting_requests",
            "Requests that wait to be passed on to the leader.",
            self._count_waiting,
        )

    # -- what is asked for -----------------------------------------------------------------------

    def write(self, write: Write) -> None:
        """Pass a write on, behind those that wait; or refuse it, if nobody can be asked."""
        error = None if self._waiting or self._sent else self._refusal()
        if self._waiting_bytes > MAX_WAITING_BYTES:
            error = Unavailable("too much waits to be passed on to the leader; try again shortly")
        if error is not None:
            self._count(error.status, len(write.commands))
            self._monitor.finished.append(write.answer(error))
            return
        self.take_back(write)
        self._end_pause_if_all_are_back()
        self.go_on()

    def take_back(self, write: Write) -> None:
        """Let a write wait that this node, having lost its leadership, has not proposed."""
        until = min(self._clock() + self._leader_wait, write.deadline)
        for part in _parts_of(write._replace(reply=self._counted(write.reply)), until):
            self._waiting.append(part)
            self._waiting_bytes += _size_of(part)

    def read(self, read: Read) -> None:
        """Have a read confirmed, or refuse it, if nobody can be asked."""
        read.reply = self._counted_read(read.reply, read.requests)
        error = None if self._unasked or self._asked else self._refusal()
        if error is not None:
            self._monitor.finished.append(partial(read.answer, error))
            return
        read.patience = min(self._clock() + self._leader_wait, read.deadline)
        self._reads.add(read)
        self._unasked.append(read)
        self._end_pause_if_all_are_back()
        self.go_on()

    def resume(self, read: Read) -> None:
        """Have a read confirmed by the next leader that this one, having lost its leadership, has
        not confirmed; it waits already."""
        read.index = None
        read.patience = min(self._clock() + self._leader_wait, read.deadline)
        self._unasked.append(read)

    def change(self, name: str, facts: Mapping[str, Any], reply: FactsReply) -> None:
        """Ask the leader for a change of members. Any thread; takes the lock. *reply* is told what
        came of it: any thread."""
        with self._monitor:
            error = self._obstacle()
            if error is None and self._changes >= MAX_CHANGES:
                error = TooManyRequests("too many changes are being passed on; try again shortly")
            asked = self._leader()
            if error is None and name in _SIZES and asked is not None:
                error = self._refusal_of_sizes(asked)
            if error is None:
                leader, term = self._raft.leader_id, self._raft.term
                call = Call(CallKind.CHANGE, term, encode_facts({"change": name, **facts}))
                told = partial(self._on_changed, leader, reply)
                self._changes += 1
                if self._lines.call(leader, call, told, self._change_timeout):
                    return
                self._changes -= 1
                error = _not_reached(leader)
            self._count(error.status, 1)
            self._monitor.finished.append(partial(reply, error))

    # -- what happens meanwhile ------------------------------------------------------------------

    def note_role(self) -> None:
        """Take note that this node leads, or follows another one, or nobody."""
        self._changed_at = self._clock()
        self._ask_again_at = 0.0
        self._is_pausing = False
        self.go_on()

    def go_on(self) -> None:
        """Send what can be sent; or take it over, if this node leads."""
        if self._raft.state is State.LEADER:
            self._lead()
        elif self._waiting or self._unasked or self._asked:
            leader = self._leader()
            if leader is None:
                return
            if (obstacle := self._obstacle()) is not None:
                self._refuse_all(obstacle)
            self._send_writes(leader)
            self._ask(leader)

    def expire(self, now: float) -> None:
        """Answer those whose time is up."""
        finished = self._monitor.finished
        why = self._refusal_of_late()
        if why is not None:
            while self._waiting and self._waiting[0].until <= now:
                finished.append(self._pop().answer(why))
            self._refuse([read for read in self._unasked if read.patience <= now], why)
            self._unasked = [read for read in self._unasked if read.patience > now]
        while self._waiting and self._waiting[0].deadline <= now:
            late = Unavailable("no leader has taken the write in time; it was not begun")
            finished.append(self._pop().answer(late))
        for sent in [each for each in self._sent if each.deadline <= now]:
            self._end(
                sent,
                OutcomeUnknown(
                    "the leader has not answered in time; the write may "
                    "still be carried out, so read before repeating it"
                ),
            )
        self._unasked = [read for read in self._unasked if read.deadline > now]

    def end(self, error: ConureError) -> None:
        """Answer all writes; of those that only waited it is known that they did not happen."""
        finished = self._monitor.finished
        nothing_happened = Unavailable(f"this write was not begun: {error}")
        while self._waiting:
            finished.append(self._pop().answer(nothing_happened))
        for sent in [*self._sent]:
            self._end(sent, error)
        self._unasked.clear()
        self._asked = None

    # -- private: who is asked -------------------------------------------------------------------

    def _leader(self) -> Server | None:
        """Return the leader that this node, a member, follows."""
        members = self._raft.configuration
        if members.get(self._raft.id) is None:
            return None
        return members.get(self._raft.leader_id)

    def _obstacle(self) -> ConureError | None:
        """Return why nobody can be asked now."""
        leader = self._leader()
        if leader is None:
            return self._standing.not_leader()
        if (self._versions.of(leader) or 1) < CALLS_SINCE:
            return Unavailable(
                f"the leader {leader.id} runs a release that takes no requests from other nodes; "
                "ask it itself, or upgrade it"
            )
        return None

    def _refusal_of_sizes(self, leader: Server) -> ConureError | None:
        """Return why a leader can't be asked about the quorum size: its release knows none."""
        if (self._versions.of(leader) or 1) < SIZED:
            return Conflict(f"{leader.id} leads and knows no quorum size; upgrade it")
        return None

    def _refusal(self) -> ConureError | None:
        """Return why a request is refused at once: a member that knows no leader waits for one."""
        is_member = self._raft.configuration.get(self._raft.id) is not None
        return None if is_member and not self._raft.leader_id else self._obstacle()

    def _refusal_of_late(self) -> ConureError | None:
        """Return what is told to who has waited for a leader for long enough; None: there is one.

        Who leads itself takes over what waits, and is no follower with a leader to be asked.
        """
        if self._raft.state is State.LEADER:
            return None
        leader = self._leader()
        return self._standing.not_leader() if leader is None else None

    def _refuse_all(self, error: ConureError) -> None:
        """Refuse all that waits to be asked for, or was asked of a former leader: the present one
        takes no calls."""
        while self._waiting:
            self._monitor.finished.append(self._pop().answer(error))
        asked, self._asked = self._asked, None
        reads = [*(asked.reads if asked else ()), *self._unasked]
        self._unasked = []
        self._refuse(reads, error)

    def _is_refusing(self, leader: Server) -> bool:
        """Tell whether the leader has just said that it isn't one, or couldn't be reached."""
        same = self._refused_by == (leader.id, self._raft.term)
        return same and self._clock() < self._ask_again_at

    def _lead(self) -> None:
        """Take over what waits: this node leads."""
        self._newest = None  # what it proposes now comes after all that was sent
        while self._waiting:
            part = self._pop()
            self._take_over(Write(part.commands, part.reply, part.deadline, passes_on=True))
        asked, self._asked = self._asked, None
        reads = [*(asked.reads if asked else ()), *self._unasked]
        self._unasked = []
        for read in [read for read in reads if self._reads.withdraw(read)]:
            try:
                self._confirm(read)
            except ConureError as error:
                self._monitor.finished.append(partial(read.answer, error))

    # -- private: writes -------------------------------------------------------------------------

    def _send_writes(self, leader: Server) -> None:
        now, key = self._clock(), (leader.id, self._raft.term)
        if not self._waiting or self._is_pausing or self._is_refusing(leader):
            return
        if self._sent and (self._sent[-1].leader == key or now < self._changed_at + GRACE):
            return
        self._refuse_newer(leader)
        parts: list[_Part] = []
        count = size = 0
        while self._waiting and size < CALL_BYTES:
            if count + len(self._waiting[0].commands) > MAX_COMMANDS:
                break
            part = self._pop()
            parts.append(part)
            count += len(part.commands)
            size += _size_of(part)
        if not parts:
            return
        seconds = self._write_timeout + MARGIN
        commands = [command for part in parts for command in part.commands]
        transactions = frozenset(n for n, each in enumerate(commands) if codec.has_outcome(each))
        sent = _Sent(key, parts, transactions, bytearray(count), parts[-1].deadline + MARGIN)
        self._sent.append(sent)
        self._newest = sent
        call = Call(CallKind.WRITE, self._raft.term, encode_commands(commands))
        if not self._lines.call(leader.id, call, partial(self._on_written, sent), seconds):
            self._note_refusal(key)
            self._send_again(sent, _not_reached(leader.id))

    def _refuse_newer(self, leader: Server) -> None:
        """Refuse what waits first and is of a format that the leader doesn't read."""
        speaks = self._versions.of(leader) or 1
        while self._waiting and codec.newest_version(self._waiting[0].commands) > speaks:
            error = Conflict(
                f"this needs a newer format version than {speaks}, which {leader.id} reads; "
                "upgrade it"
            )
            self._monitor.finished.append(self._pop().answer(error))

    def _on_written(self, sent: _Sent, answer: Answer | ConureError) -> None:
        """Take a part of the answer to a call, or why there is none. Takes the lock."""
        with self._monitor:
            if sent.is_over:
                return
            try:
                self._take_answer(sent, answer)
            except WireError:
                self._end(sent, OutcomeUnknown("the leader's answer can't be read"))
                raise
            finally:
                self.go_on()

    def _take_answer(self, sent: _Sent, answer: Answer | ConureError) -> None:
        """Take a part of an answer, or why there is none. Raises WireError."""
        if isinstance(answer, OutcomeUnknown):
            self._end(sent, answer)
            return
        if isinstance(answer, ConureError):  # nothing of it was sent
            self._note_refusal(sent.leader)
            self._send_again(sent, answer)
            return
        kind, start, stop = answer.kind, answer.start, answer.stop
        size = len(sent.answered)
        is_new = stop <= size and not any(sent.answered[start:stop])
        if answer.term != sent.leader[1] or not is_new:
            raise WireError(f"an answer for {start} to {stop} of {size} commands")
        if answer.is_last != (sent.answered.count(0) == stop - start):
            raise WireError("an answer that ends where it doesn't")
        if kind is AnswerKind.FAILED:
            error = decode_error(answer.body)
            if isinstance(error, NotLeader) and stop - start == size:
                self._note_refusal(sent.leader)
                self._send_again(sent, error)
                return
            if isinstance(error, DiskFull):  # whose disk? not this node's
                error = DiskFull(f"the leader {sent.leader[0]} has no room: {error}")
            self._distribute(sent, start, stop, error)
        elif kind is AnswerKind.COMMITTED:
            first, encoded = decode_outcomes(answer.body)
            if encoded.keys() != {n for n in sent.transactions if start <= n < stop}:
                raise WireError("outcomes of other commands than have one")
            outcomes = {
                first + position: codec.decode_outcome(outcome)
                for position, outcome in encoded.items()
            }
            self._distribute(sent, start, stop, Committed(first, outcomes))
        else:
            raise WireError(f"an answer of kind {kind} to a write")
        if answer.is_last:
            self._finish(sent)
            self._pause(size)

    def _distribute(
        self, sent: _Sent, start: int, stop: int, ended: Committed | ConureError
    ) -> None:
        """Tell each part what came of its commands among those from *start* to *stop*."""
        begin = 0
        for part in sent.parts:
            end = begin + len(part.commands)
            first, last = max(start, begin), min(stop, end)
            if first < last:
                told = ended
                if isinstance(ended, Committed):
                    told = Committed(ended.first + begin, ended.outcomes)
                answer = partial(part.reply, first - begin, last - begin, told)
                self._monitor.finished.append(answer)
            begin = end
        sent.answered[start:stop] = bytes([1]) * (stop - start)

    def _send_again(self, sent: _Sent, why: ConureError) -> None:
        """Let a call that nothing has come of wait once more, ahead of all others (1, 2)."""
        if sent is not self._newest:
            self._end(
                sent,
                Unavailable(f"the leader changed before this was taken; nothing happened ({why})"),
            )
        else:
            self._finish(sent)
            now = self._clock()
            for part in sent.parts:
                if part.until <= now:
                    self._monitor.finished.append(part.answer(why))
            again = [part for part in sent.parts if part.until > now]
            self._waiting.extendleft(reversed(again))
            self._waiting_bytes += sum(map(_size_of, again))

    def _end(self, sent: _Sent, error: ConureError) -> None:
        size = len(sent.answered)
        while (start := sent.answered.find(0)) >= 0:
            stop = sent.answered.find(1, start)
            self._distribute(sent, start, size if stop < 0 else stop, error)
        self._finish(sent)

    def _finish(self, sent: _Sent) -> None:
        sent.is_over = True
        self._sent.remove(sent)

    def _pop(self) -> _Part:
        part = self._waiting.popleft()
        self._waiting_bytes -= _size_of(part)
        return part

    # -- private: reads --------------------------------------------------------------------------

    def _ask(self, leader: Server) -> None:
        raft, key = self._raft, (leader.id, self._raft.term)
        asked = self._asked
        if asked is not None and asked.leader != key:  # its word counts no more
            self._unasked[:0] = asked.reads
            asked = self._asked = None
        if asked or not self._unasked or self._is_pausing or self._is_refusing(leader):
            return
        asked = self._asked = _Asked(key, raft.leader_incarnation, self._unasked)
        self._unasked = []
        call = Call(CallKind.CONFIRM, raft.term, encode_index(self._store.applied_index))
        told, seconds = partial(self._on_confirmed, asked), self._read_timeout + MARGIN
        if not self._lines.call(leader.id, call, told, seconds):
            self._asked = None
            self._ask_later(asked, _not_reached(leader.id))

    def _on_confirmed(self, asked: _Asked, answer: Answer | ConureError) -> None:
        """Take a leader's word, if it still counts. Takes the lock."""
        with self._monitor:
            if asked is not self._asked:
                return
            self._asked = None
            try:
                self._take_word(asked, answer)
            except WireError:
                self._refuse(asked.reads, Unavailable("the leader's answer can't be read"))
                raise
            finally:
                self.go_on()

    def _take_word(self, asked: _Asked, answer: Answer | ConureError) -> None:
        """Take a leader's word for reads, or let them wait once more. Raises WireError."""
        if isinstance(answer, ConureError):  # lost, or not sent
            self._ask_later(asked, Unavailable(f"the read was not confirmed: {answer}"))
        elif not answer.is_last:
            raise WireError("a part of an answer to a read")
        elif answer.kind is AnswerKind.CONFIRMED:
            self._take_index(asked, answer)
        elif answer.kind is AnswerKind.FAILED:
            error = decode_error(answer.body)
            if isinstance(error, NotLeader):
                self._note_refusal(asked.leader)
                self._unasked[:0] = asked.reads
            else:
                self._refuse(asked.reads, error)
        else:
            raise WireError(f"an answer of kind {answer.kind} to a read")

    def _ask_later(self, asked: _Asked, why: ConureError) -> None:
        """Let reads wait once more that nobody could be asked about, but for those that have waited
        for long enough."""
        self._note_refusal(asked.leader)
        now = self._clock()
        self._unasked[:0] = [read for read in asked.reads if read.patience > now]
        self._refuse([read for read in asked.reads if read.patience <= now], why)

    def _take_index(self, asked: _Asked, answer: Answer) -> None:
        """Let reads wait for an index, if it is the word of whom this node follows. Raises
        WireError."""
        raft, index = self._raft, decode_index(answer.body)
        following = (raft.leader_id, raft.term), raft.leader_incarnation
        if answer.term != raft.term or following != (asked.leader, asked.incarnation):
            self._unasked[:0] = asked.reads
            return
        for read in asked.reads:
            read.index = index
        self._monitor.finished += self._reads.applied(self._store.applied_index)
        self._pause(sum([read.requests for read in asked.reads]))

    def _note_refusal(self, leader: tuple[str, int]) -> None:
        """Take note that who was asked doesn't lead in that term, or can't be reached."""
        self._refused_by = leader
        self._ask_again_at = self._clock() + ASK_AGAIN

    def _refuse(self, reads: list[Read], error: ConureError) -> None:
        for read in reads:
            self._monitor.finished += self._reads.lost(read, error)

    # -- private: changes of members -------------------------------------------------------------

    def _on_changed(self, leader: str, reply: FactsReply, answer: Answer | ConureError) -> None:
        """Tell what came of a change. Takes the lock."""
        told: Mapping[str, Any] | ConureError
        with self._monitor.lock:
            self._changes -= 1
        try:
            told = _told_of_change(leader, answer)
        except WireError:
            told = OutcomeUnknown("the leader's answer can't be read; see /raft/config")
            raise
        finally:
            self._count(told.status if isinstance(told, ConureError) else 200, 1)
            reply(told)

    # -- private: those who were answered --------------------------------------------------------

    def _pause(self, crowd: int) -> None:
        """Wait a moment for what comes of those who are answered now: one call for all of them is
        faster than two for halves."""
        self._crowd = max(crowd, self._crowd) if self._is_pausing else crowd
        self._is_pausing = True
        self._monitor.finished.append(partial(self._call_later, self._end_pause_soon, 0.0))

    def _count_waiting(self) -> int:
        writes = sum([len(part.commands) for part in self._waiting])
        return writes + sum([read.requests for read in self._unasked])

    def _end_pause_if_all_are_back(self) -> None:
        if self._is_pausing and self._count_waiting() >= self._crowd:
            self._is_pausing = False

    def _end_pause_soon(self) -> None:
        """The answers have been sent: wait for the next requests, if there are any by now. Takes
        the lock."""
        with self._monitor.lock:
            self._seen = self._count_waiting()
            self._is_pausing &= self._seen > 0
            self._pause_until = self._clock() + LONGEST_GATHER
            is_pausing = self._is_pausing
        if is_pausing:
            self._call_later(self._end_pause, GATHER)

    def _end_pause(self) -> None:
        """Send what has come, unless more has come since the last look. Takes the lock."""
        with self._monitor:
            before, self._seen = self._seen, self._count_waiting()
            goes_on = before < self._seen and self._clock() < self._pause_until
            self._is_pausing &= goes_on
            is_pausing = self._is_pausing
            if not is_pausing and self._standing.is_working:
                self.go_on()
        if is_pausing:
            self._call_later(self._end_pause, GATHER)

    # -- private: what is counted ----------------------------------------------------------------

    def _counted(self, reply: WriteReply) -> WriteReply:
        begun = self._clock()

        def counted(start: int, stop: int, ended: Committed | ConureError) -> None:
            status = ended.status if isinstance(ended, ConureError) else 200
            self._count(status, stop - start, begun)
            reply(start, stop, ended)

        return counted

    def _counted_read(
        self, reply: Callable[[ConureError | None], None], requests: int
    ) -> Callable[[ConureError | None], None]:
        begun = self._clock()

        def counted(error: ConureError | None) -> None:
            self._count(200 if error is None else error.status, requests, begun)
            reply(error)

        return counted

    def _count(self, status: int, times: int, begun: float | None = None) -> None:
        self._codes.labels(str(status)).inc(times)
        if begun is not None:
            self._durations.observe_same(self._clock() - begun, times)


def _parts_of(write: Write, until: float) -> Iterator[_Part]:
    """Cut a write into parts that a call has room for."""
    commands = write.commands
    start = size = 0
    for position, command in enumerate(commands):
        if position - start == MAX_COMMANDS or (position > start and size >= CALL_BYTES):
            reply = shifted(write.reply, start)
            yield _Part(commands[start:position], reply, write.deadline, until)
            start, size = position, 0
        size += len(command)
    yield _Part(commands[start:], shifted(write.reply, start), write.deadline, until)


def _size_of(part: _Part) -> int:
    return sum(map(len, part.commands))


def _told_of_change(leader: str, answer: Answer | ConureError) -> Mapping[str, Any] | ConureError:
    """Return what a client is told of a change. Raises WireError."""
    if isinstance(answer, ConureError):
        return answer
    if not answer.is_last:
        raise WireError("a part of an answer to a change")
    if answer.kind is AnswerKind.CHANGED:
        return decode_facts(answer.body)
    if answer.kind is not AnswerKind.FAILED:
        raise WireError(f"an answer of kind {answer.kind} to a change")
    error = decode_error(answer.body)
    if isinstance(error, NotLeader):
        return Unavailable(f"{leader} leads no more; try again shortly")
    return error


def _not_reached(leader: str) -> Unavailable:
    return Unavailable(f"the leader {leader} can't be asked now; try again shortly")
