"""Messages that are published to channels: from any node to the leader, and from there to all.

The leader numbers messages, from 1 on in each of its terms, and keeps the last ones for a moment.
A node whose clients listen asks it for those *after a number* (peers/calls.py); who has them all is
answered when there is another one, or after LISTEN seconds. So a standing call costs a node without
listeners nothing, and what is published while it is under way travels together.

1. A message is heard at most once, and in the order of its number. Nothing of it is in the log.
2. Whoever has missed a number is told: its audience is *lost*, all of it, and subscribes anew. That
   is so when the window has moved on, the connection was lost, or another one leads, or the same
   one in another term, and where a leader leads no more.
3. A message is sent again only if nothing has come of it: its leader leads no more, or couldn't be
   asked. What was sent and not answered may have been heard.
4. Who listens is told so when nothing is missed any more that is published from then on.
5. A message is answered once its leader knows that nobody else led when it was numbered, as for a
   read (R6): so a leader that is cut off publishes nothing to half of the audience and calls that
   done. One confirmation serves all messages that came before it.
6. The window is no larger than it is, so who publishes more than the others can be handed is
   refused: while a node that has asked within PATIENCE lacks more than half a window. A node whose
   audience is busy asks for nothing until it has room.
7. Without a leader a message waits for one for a moment, and is refused then.

Everything here belongs to the holder of the node's lock; the methods that take it say so. The
audience is called with the lock held, which is what keeps its order: it must only take note.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from conure.cluster.monitor import Monitor
from conure.cluster.pending import Read
from conure.cluster.standing import Standing
from conure.cluster.versions import Versions
from conure.cluster.window import ANSWER_BYTES, Window, size_of
from conure.commands import MAX_VALUE_BYTES
from conure.consensus.messages import State
from conure.errors import ConureError, NotLeader, OutcomeUnknown, Unavailable, WireError
from conure.metrics import Registry
from conure.peers.calling import CallReply
from conure.peers.calls import (
    FROM_NOW,
    MAX_MESSAGES,
    Answer,
    AnswerKind,
    Call,
    CallKind,
    Message,
    decode_error,
    decode_heard,
    decode_index,
    decode_messages,
    encode_error,
    encode_heard,
    encode_index,
    encode_messages,
)
from conure.peers.protocol import CALLS_SINCE, Greeting
from raft import Raft

__all__ = ["LISTEN", "MAX_CHANNEL_BYTES", "Audience", "Messages"]

MAX_OUTBOX_BYTES = 16 << 20
"""Bytes of messages that may wait to be sent to the leader."""

LISTEN = 3.0
"""Seconds after which who listens is answered, even if there is nothing new."""

MARGIN = 2.0
"""Seconds that an answer may take longer: the way there and back."""

MAX_CHANNEL_BYTES = 1 << 16
"""Of what another node names as a channel: more than any front takes from a client."""

_MOST = 1 << 62  # no number comes near it

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""


class Audience(Protocol):
    """Those who listen at this node. Called with the node's lock held, in order: an audience takes
    note, and does all else later, in a thread of its own."""

    def deliver(self, messages: Sequence[Message]) -> None:
        """Hand messages to whoever listens to their channels."""

    def lose(self) -> None:
        """Note that a message may have been missed, by all who listen by now."""

    @property
    def is_busy(self) -> bool:
        """Whether so much waits to be handed out that nothing more should be asked for."""


class Lines(Protocol):
    """The part of the transport that asks others."""

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        """Ask a node; see ``Transport.call``. Never blocks."""


class _Listening(NamedTuple):
    """A node that has heard all there is, and waits for more."""

    after: int
    answer: Callable[[Answer], None]
    until: float


class _Published(NamedTuple):
    """A message that is to be sent to the leader; refused after *until* if there is none."""

    message: Message
    reply: Reply
    until: float


class _Unsure(NamedTuple):
    """Who has published in a term and isn't answered yet."""

    term: int
    replies: list[Reply]


class _Question:
    """A standing call to the leader of a term; one that isn't the last one counts no more."""

    __slots__ = ("after", "key")

    def __init__(self, key: tuple[str, int], after: int) -> None:
        self.key = key
        self.after = after


class Messages:
    """The messages of the node whose core is *raft*. *timeout* is how many seconds a listener waits
    for a leader, and *patience* a message, by *clock*. *confirm* has it confirmed that this node
    leads, with the lock held, and raises ConureError; *drive* carries out what comes of that."""

    def __init__(
        self,
        raft: Raft,
        standing: Standing,
        versions: Versions,
        lines: Lines,
        monitor: Monitor,
        clock: Callable[[], float],
        confirm: Callable[[Read], None],
        drive: Callable[[], None],
        registry: Registry,
        *,
        timeout: float,
        patience: float,
    ) -> None:
        self._raft = raft
        self._standing = standing
        self._versions = versions
        self._lines = lines
        self._monitor = monitor
        self._clock = clock
        self._confirm = confirm
        self._drive = drive
        self._timeout = timeout
        self._patience = patience
        self._audience: Audience | None = None
        # As the leader of _term; 0: of none.
        self._term = 0
        self._window = Window()
        self._unsure = _Unsure(0, [])  # who isn't answered, and waits for the next confirmation
        self._confirming: _Unsure | None = None
        self._listening: dict[str, _Listening] = {}  # by node
        # For this node's own clients.
        self._is_wanted = False
        self._heard: tuple[str, int] | None = None  # whose messages are heard, and of which term
        self._question: _Question | None = None
        self._next: _Question | None = None  # to be asked when the audience has room
        self._ready: list[tuple[Reply, float]] = []  # who wait for that, and until when
        self._outbox: deque[_Published] = deque()
        self._outbox_bytes = 0
        self._sent: list[_Published] = []  # under way
        self._sent_to = "", 0  # the leader, and its term
        self._published = registry.counter(
            "conure_messages_published_total",
            "Messages to channels that this node has numbered, as the leader.",
        )
        self._lost = registry.counter(
            "conure_messages_lost_total",
            "Times that messages may have been missed, and all subscribers were disconnected.",
        )
        registry.gauge_callback(
            "conure_messages_window_bytes",
            "Bytes of messages that are kept for other nodes.",
            lambda: self._window.bytes,
        )

    # -- for this node's own clients; any thread, they take the lock ------------------------------

    def attach(self, audience: Audience) -> None:
        """Hand messages to an audience. Once, before anybody listens."""
        assert self._audience is None
        self._audience = audience

    def publish(self, channel: bytes, message: bytes, reply: Reply) -> None:
        """Publish a message; *reply* is told when that is done (5), by any thread."""
        with self._monitor:
            try:
                self._standing.refuse_if_failed()
                if self._raft.state is State.LEADER:
                    self._number([(channel, message)], reply)
                    self._drive()
                    return
                if self._must_wait():
                    self._append((channel, message), reply)
                    return
                self._leader()
                self._append((channel, message), reply)
                self._send()
            except ConureError as error:
                self._monitor.finished.append(partial(reply, error))

    def listen(self, ready: Reply) -> None:
        """Hand messages to the audience from now on; *ready* is told when nothing is missed any
        more, by any thread, with the lock held: it must only take note."""
        with self._monitor:
            try:
                self._standing.refuse_if_failed()
            except ConureError as error:
                ready(error)
                return
            self._is_wanted = True
            self._ready.append((ready, self._clock() + self._timeout))
            self.go_on()

    def rest(self) -> None:
        """Hand nothing to the audience any more, since nobody listens."""
        with self._monitor:
            self._stop_listening()

    # -- what happens meanwhile -------------------------------------------------------------------

    def go_on(self) -> None:
        """Look at who leads, and at the time."""
        is_leading = self._raft.state is State.LEADER and self._standing.is_working
        self._lead(self._raft.term if is_leading else 0)
        self._lose_if_over()
        now = self._clock()
        for name, each in list(self._listening.items()):
            if each.until <= now:
                del self._listening[name]
                self._tell(each.answer, each.after, [])
        if self._standing.is_working:
            self._seek()
            if self._next is not None:
                self._ask_next()
            self._end_sent_if_over()
            if self._outbox and not self._sent:
                self._send_or_refuse()
        late = [ready for ready, until in self._ready if until <= now]
        self._ready = [each for each in self._ready if each[1] > now]
        for ready in late:
            ready(self._obstacle() or Unavailable("the leader has not answered in time"))

    def end(self, error: ConureError) -> None:
        """Answer all who wait: the node has ended."""
        replies = [each.reply for each in (*self._sent, *self._outbox)]
        for reply in [*replies, *self._unsure.replies]:
            self._monitor.finished.append(partial(reply, error))
        self._outbox.clear()
        self._unsure = _Unsure(0, [])
        self._sent, self._outbox_bytes = [], 0
        ready, self._ready = self._ready, []
        for tell, _ in ready:
            tell(error)
        self._lead(0)
        self._stop_listening()

    # -- what other nodes ask of the leader; the thread that reads calls --------------------------

    def take(self, peer: Greeting, call: Call, answer: Callable[[Answer], None]) -> None:
        """Serve a call of an admitted node; takes the lock. Raises WireError for one that no node
        makes."""
        term = call.term
        messages: list[Message] = []
        after = 0
        if call.kind is CallKind.PUBLISH:
            messages = decode_messages(call.body)
            _check(messages)
        else:
            after = decode_index(call.body)
        with self._monitor:
            try:
                self._standing.refuse_if_not_leading()
                if self._raft.term != term:
                    raise NotLeader
                if call.kind is CallKind.PUBLISH:
                    self._number(messages, partial(_tell_published, answer, term))
                    self._drive()
                else:
                    self._hear(peer.node_id, after, answer)
            except ConureError as error:
                told = Answer(AnswerKind.FAILED, term, encode_error(error))
                self._monitor.finished.append(partial(answer, told))

    # -- private: leading -------------------------------------------------------------------------

    def _lead(self, term: int) -> None:
        """Lead in a term, or in none: no message of another one is handed out any more."""
        if term == self._term:
            return
        for each in self._listening.values():
            told = Answer(AnswerKind.FAILED, self._term, encode_error(NotLeader()))
            self._monitor.finished.append(partial(each.answer, told))
        self._listening.clear()
        self._window = Window()
        self._tell_unsure(self._unsure, NotLeader())
        self._unsure = _Unsure(term, [])
        self._term = term

    def _number(self, messages: Sequence[Message], reply: Reply) -> None:
        """Number messages and hand them out; tell *reply* when that is sure (5). Raises
        Unavailable."""
        self._lead(self._raft.term)
        if self._window.is_outrun(self._clock()):
            raise Unavailable("more is published than nodes can be told; try again shortly")
        self._take(messages)
        self._unsure.replies.append(reply)
        self._make_sure()

    def _make_sure(self) -> None:
        """Have it confirmed that this node leads, for all who wait for that (5)."""
        if self._confirming is not None or not self._unsure.replies:
            return
        confirming = self._confirming = self._unsure
        self._unsure = _Unsure(confirming.term, [])
        told = partial(self._on_sure, confirming)
        read = Read(told, self._clock() + self._timeout, len(confirming.replies))
        try:
            self._confirm(read)
        except ConureError as error:
            self._confirming = None
            self._tell_unsure(confirming, error)

    def _on_sure(self, confirming: _Unsure, error: ConureError | None) -> None:
        """Answer those whose messages are confirmed, or not. Takes the lock."""
        with self._monitor:
            self._confirming = None
            self._tell_unsure(confirming, error)
            if self._standing.is_working:
                self._make_sure()
                self._drive()

    def _tell_unsure(self, unsure: _Unsure, error: ConureError | None) -> None:
        if error is None and unsure.term != self._raft.term:
            error = NotLeader()
        told = error and OutcomeUnknown(
            "this node may have led no more when it published this; some may have missed it"
        )
        for reply in unsure.replies:
            self._monitor.finished.append(partial(reply, told))

    def _take(self, messages: Sequence[Message]) -> None:
        """Number messages, and hand them out."""
        self._lose_if_over()
        self._window.add(messages)
        self._published.inc(len(messages))
        if self._heard is not None and self._audience is not None:
            self._audience.deliver(messages)
        listening, self._listening = self._listening, {}
        for name, each in listening.items():
            self._tell_next(name, each.after, each.answer)

    def _hear(self, name: str, after: int, answer: Callable[[Answer], None]) -> None:
        """Let a node hear what comes after a number. Raises Unavailable if it has missed some."""
        self._lead(self._raft.term)
        former = self._listening.pop(name, None)
        if former is not None:
            self._tell(former.answer, former.after, [])
        last = self._window.last
        if after == FROM_NOW:
            self._window.note_place(name, last, self._clock())
            self._tell(answer, last, [])
        elif after == last:
            self._window.note_place(name, last, self._clock())
            self._listening[name] = _Listening(after, answer, self._clock() + LISTEN)
        else:
            self._tell_next(name, after, answer)

    def _tell_next(self, name: str, after: int, answer: Callable[[Answer], None]) -> None:
        """Tell a node what comes after a number, as much as one answer takes."""
        some = self._window.after(after)
        if some is None:
            self._window.forget_place(name)
            told = encode_error(Unavailable("messages were missed"))
            self._monitor.finished.append(
                partial(answer, Answer(AnswerKind.FAILED, self._term, told))
            )
            return
        self._window.note_place(name, after + len(some), self._clock())
        self._tell(answer, after + len(some), some)

    def _tell(
        self, answer: Callable[[Answer], None], last: int, messages: Sequence[Message]
    ) -> None:
        told = Answer(AnswerKind.HEARD, self._term, encode_heard(last, messages))
        self._monitor.finished.append(partial(answer, told))

    # -- private: listening -----------------------------------------------------------------------

    def _leader(self) -> str:
        """Return the leader that this node, a member, follows. Raises ConureError."""
        members = self._raft.configuration
        leader = members.get(self._raft.leader_id)
        if members.get(self._raft.id) is None or leader is None:
            raise self._standing.not_leader()
        if (self._versions.of(leader) or 1) < CALLS_SINCE:
            raise Unavailable(
                f"the leader {leader.id} runs a release that knows no messages; upgrade it"
            )
        return leader.id

    def _must_wait(self) -> bool:
        """Tell whether this node, a member, knows no leader, and none refuses to be asked."""
        is_member = self._raft.configuration.get(self._raft.id) is not None
        return is_member and not self._raft.leader_id

    def _obstacle(self) -> ConureError | None:
        """Return why nobody can be asked now."""
        try:
            self._leader()
        except ConureError as error:
            return error
        return None

    def _lose_if_over(self) -> None:
        """Lose the audience if what it hears comes from who leads no more (2)."""
        if self._heard is None:
            return
        leader, term = self._heard
        current = self._raft.leader_id, self._raft.term
        is_own = leader == self._raft.id
        if (current[0] and current != self._heard) or (is_own and self._term != term):
            self._lose()

    def _lose(self) -> None:
        self._lost.inc()
        ready = self._ready  # these have subscribed to nothing yet
        self._stop_listening()
        self._ready, self._is_wanted = ready, bool(ready)
        if self._audience is not None:
            self._audience.lose()

    def _stop_listening(self) -> None:
        self._is_wanted = False
        self._heard = self._question = self._next = None

    def _seek(self) -> None:
        """Begin to hear the messages of whoever leads, if that is wanted."""
        if not self._is_wanted:
            return
        if self._heard is None:
            if self._term:
                self._begin_hearing((self._raft.id, self._term))
                return
            key = self._raft.leader_id, self._raft.term
            if self._question is not None and self._question.key == key:
                return
            self._question = None
            if self._obstacle() is None:
                self._ask(_Question(key, FROM_NOW))
        if self._heard is not None:
            self._tell_ready()

    def _begin_hearing(self, key: tuple[str, int]) -> None:
        self._heard = key
        self._tell_ready()

    def _tell_ready(self) -> None:
        ready, self._ready = self._ready, []
        for tell, _ in ready:
            tell(None)

    def _ask(self, question: _Question) -> None:
        leader, term = question.key
        self._question = question
        call = Call(CallKind.LISTEN, term, encode_index(question.after))
        told = partial(self._on_heard, question)
        if not self._lines.call(leader, call, told, LISTEN + MARGIN):
            self._on_silence(question)

    def _on_silence(self, question: _Question) -> None:
        """Take note that a question has no answer: ask again at the next tick, or give up."""
        self._question = None
        if self._heard == question.key:
            self._lose()

    def _on_heard(self, question: _Question, answer: Answer | ConureError) -> None:
        """Take messages, or why there are none. Takes the lock."""
        with self._monitor:
            if question is not self._question:
                return
            try:
                self._take_heard(question, answer)
            except WireError:
                self._on_silence(question)
                raise

    def _take_heard(self, question: _Question, answer: Answer | ConureError) -> None:
        """Take what is heard, and ask for more. Raises WireError."""
        if isinstance(answer, ConureError) or answer.kind is AnswerKind.FAILED:
            self._on_silence(question)
            return
        if answer.kind is not AnswerKind.HEARD or answer.term != question.key[1]:
            raise WireError(f"an answer of kind {answer.kind} to who listens")
        last, messages = decode_heard(answer.body)
        if question.after == FROM_NOW:
            if messages or last > _MOST:
                raise WireError("messages that nobody has asked for")
        elif question.after + len(messages) != last:
            raise WireError(f"{len(messages)} messages between {question.after} and {last}")
        self._lose_if_over()
        if question is not self._question:
            return
        if self._heard is None:
            self._begin_hearing(question.key)
        if messages and self._audience is not None:
            self._audience.deliver(messages)
        self._question, self._next = None, _Question(question.key, last)
        self._ask_next()

    def _ask_next(self) -> None:
        """Ask for more, unless the audience has no room for it yet (6)."""
        question = self._next
        if question is not None and not (self._audience and self._audience.is_busy):
            self._next = None
            self._ask(question)

    # -- private: publishing ----------------------------------------------------------------------

    def _append(self, message: Message, reply: Reply) -> None:
        """Let a message wait until it is sent. Raises Unavailable."""
        if self._outbox_bytes > MAX_OUTBOX_BYTES:
            raise Unavailable("too many messages wait for the leader; try again shortly")
        self._outbox.append(_Published(message, reply, self._clock() + self._patience))
        self._outbox_bytes += size_of(message)

    def _send_or_refuse(self) -> None:
        """Send what waits; or number it here, if this node leads by now; or refuse it."""
        try:
            if self._term:
                for each in self._pop_all():
                    self._number_or_refuse(each)
            elif self._must_wait():
                self._refuse_late()
            else:
                self._send()
        except ConureError as error:
            for each in self._pop_all():
                self._monitor.finished.append(partial(each.reply, error))

    def _number_or_refuse(self, each: _Published) -> None:
        try:
            self._number([each.message], each.reply)
        except ConureError as error:
            self._monitor.finished.append(partial(each.reply, error))

    def _refuse_late(self) -> None:
        """Refuse what has waited for a leader for long enough (7)."""
        now = self._clock()
        while self._outbox and self._outbox[0].until <= now:
            late = self._outbox.popleft()
            self._outbox_bytes -= size_of(late.message)
            self._monitor.finished.append(partial(late.reply, self._standing.not_leader()))

    def _pop_all(self) -> list[_Published]:
        outbox = [*self._outbox]
        self._outbox.clear()
        self._outbox_bytes = 0
        return outbox

    def _send(self) -> None:
        """Send messages, as many as one call takes, unless some are under way. Raises
        ConureError."""
        if self._sent:
            return
        leader, term = self._leader(), self._raft.term
        sent: list[_Published] = []
        size = 0
        while self._outbox and size < ANSWER_BYTES and len(sent) < MAX_MESSAGES:
            sent.append(self._outbox.popleft())
            size += size_of(sent[-1].message)
        self._outbox_bytes -= size
        call = Call(CallKind.PUBLISH, term, encode_messages([each.message for each in sent]))
        self._sent, self._sent_to = sent, (leader, term)
        if not self._lines.call(leader, call, partial(self._on_sent, sent), self._timeout + MARGIN):
            self._end_sent(Unavailable(f"the leader {leader} can't be asked now"))

    def _on_sent(self, sent: list[_Published], answer: Answer | ConureError) -> None:
        """Tell what came of messages. Takes the lock."""
        with self._monitor:
            if sent is not self._sent:
                return
            try:
                error = _error_of(answer)
                was_sent = isinstance(answer, Answer | OutcomeUnknown)
                if isinstance(error, NotLeader) or not was_sent:
                    self._take_back(sent, error)
                    return  # the next tick looks who leads by then
                self._end_sent(error)
            except WireError:
                self._end_sent(OutcomeUnknown("the leader's answer can't be read"))
                raise
            if self._outbox:
                self._send_or_refuse()

    def _take_back(self, sent: list[_Published], why: ConureError | None) -> None:
        """Let messages wait for a leader again that nothing has come of, ahead of all others, but
        for those that have waited for long enough (7)."""
        now = self._clock()
        self._sent = []
        for each in sent:
            if each.until <= now:
                self._monitor.finished.append(partial(each.reply, why))
        again = [each for each in sent if each.until > now]
        self._outbox.extendleft(reversed(again))
        self._outbox_bytes += sum(size_of(each.message) for each in again)

    def _end_sent_if_over(self) -> None:
        """Wait no longer for the answer of who was asked, if another one leads."""
        current = self._raft.leader_id, self._raft.term
        if self._sent and current[0] and current != self._sent_to:
            self._end_sent(OutcomeUnknown("the leader changed before it said what came of this"))

    def _end_sent(self, error: ConureError | None) -> None:
        sent, self._sent = self._sent, []
        for each in sent:
            self._monitor.finished.append(partial(each.reply, error))


def _error_of(answer: Answer | ConureError) -> ConureError | None:
    """Return why messages were not published. Raises WireError."""
    if isinstance(answer, ConureError):
        return answer
    if answer.kind is AnswerKind.FAILED:
        return decode_error(answer.body)
    if answer.kind is not AnswerKind.PUBLISHED:
        raise WireError(f"an answer of kind {answer.kind} to messages")
    return None


def _tell_published(answer: Callable[[Answer], None], term: int, error: ConureError | None) -> None:
    if error is None:
        answer(Answer(AnswerKind.PUBLISHED, term, b""))
    else:
        answer(Answer(AnswerKind.FAILED, term, encode_error(error)))


def _check(messages: Sequence[Message]) -> None:
    """Raise WireError for what no client can publish: an answer has room for the longest value."""
    for channel, message in messages:
        if len(channel) > MAX_CHANNEL_BYTES or len(message) > MAX_VALUE_BYTES:
            raise WireError(f"a message of {len(message)} bytes to a channel of {len(channel)}")
