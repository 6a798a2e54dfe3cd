"""One client's connection: its bytes, its unanswered commands, and the order of both.

The life of a connection:

============= ==================================================================================
``READING``   commands are read as their bytes come
``WAITING``   a command waits until earlier ones are answered, or until replies are sent
``FINISHED``  no further command is taken: the client or an error ended it; replies still go out
``LINGERING`` all is sent and our side is shut; input is thrown away so that the client can read
``CLOSED``    the link is gone; answers that still come are dropped
============= ==================================================================================

1. Replies leave a connection in the order of its commands.
2. A command is handed over only while all unanswered ones are of its own lane, reads or writes: a
   run of SETs is one batch, and a GET after a SET sees it. What needs neither is done at once.
3. An error of one connection ends that connection only.
4. What a client may make us keep is bounded (limits.py): the bytes of a command that isn't
   complete, commands that are unanswered, replies that it doesn't read.
5. A round has so much time for one connection; what else has come waits for the next.

The grammar is grammar.py's; which command is done by what says the :class:`Front`. A connection
belongs to the reactor's thread, once it is adopted; nothing in it waits.
"""

from __future__ import annotations

import logging
from collections import deque
from time import perf_counter
from typing import Final, Protocol, cast

from conure.metrics import Histogram
from conure.net.link import Link
from conure.net.reactor import IN, OUT, SENT_TOGETHER, Reactor
from conure.resp.failures import INTERNAL, error_reply
from conure.resp.grammar import ProtocolError, Reader, Run
from conure.resp.limits import Limits
from conure.resp.replies import Replies
from conure.resp.session import Session
from conure.resp.table import ALONE, ANY, READS, WRITES, Command, Handler
from conure.resp.waiters import Pending

__all__ = ["Front", "RespConnection"]

log = logging.getLogger("conure.resp")

READING, WAITING, FINISHED, LINGERING, CLOSED = range(5)

_READ_SIZE: Final = 64 << 10
_OUTPUT_HIGH: Final = 1 << 20  # with more than this unsent, no further command is taken
_FIRST_RUN: Final = 16  # reads of a new connection that are taken before the first is answered
_MOST_PIECES: Final = 64  # of a send that copies nothing
_LINGER_TIME: Final = 2.0  # seconds
_LINGER_BYTES: Final = 16 << 20


class Front(Protocol):
    """What a connection asks of the front end that made it. Reactor thread only."""

    limits: Limits
    commands: dict[bytes, Command]
    durations: Histogram  # of commands that wait for the service

    def find(self, name: bytes) -> Command | None:
        """Return the command of a name that isn't written as in ``commands``."""

    def refuse(
        self, connection: RespConnection, command: Command | None, words: list[bytes]
    ) -> bool:
        """Answer what names no *command*, or has too few words or too many for it; return False if
        the connection is to end without a reply."""

    def queue(self, connection: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Do what a command means in a session that isn't plain; False, having done nothing, if
        that is the same as ever."""

    def note_error(self, why: str) -> None:
        """Note bytes that were no command."""

    def note_slow(self, connection: RespConnection, pending: Pending) -> None:
        """Note a command whose answer took long."""

    def release(self, connection: RespConnection) -> None:
        """Let another connection have the place of one."""


class RespConnection:
    """One client's bytes and unanswered commands. Reactor thread only, once it is adopted."""

    __slots__ = (
        "address",
        "backlog",
        "begun",
        "captured",
        "created",
        "descriptor",
        "discarded",
        "ended",
        "front",
        "id",
        "interest",
        "is_resumed",
        "lane",
        "last_command",
        "link",
        "out",
        "parked",
        "pending",
        "place",
        "reactor",
        "reader",
        "receive_bytes",
        "run",
        "send_bytes",
        "session",
        "state",
        "touched",
        "unanswered",
        "waiting",
        "words",
    )

    def __init__(
        self, reactor: Reactor, front: Front, link: Link, address: str, place: str, number: int
    ) -> None:
        self.reactor = reactor
        self.front = front
        self.place = place  # whose place it has
        self.id = number
        self.address = address
        self.link = link
        self.descriptor = link.descriptor
        self.receive_bytes = link.receive
        self.send_bytes = link.send
        self.state = READING
        self.ended = False  # the client sent its last byte
        self.interest = IN
        self.reader = Reader(front.limits.max_command_bytes)
        self.backlog: deque[list[bytes] | Run] = deque()  # read and not handed over
        self.session = Session()
        self.waiting: deque[Pending] = deque()  # unanswered, or answered before their turn
        self.unanswered = 0  # answers that those need, about
        self.lane = ANY  # of those
        self.run = _FIRST_RUN  # how many reads may be among them
        self.out: list[bytes | memoryview] = []
        self.pending = 0  # bytes in out
        self.parked = 0  # bytes of a command that is arriving, as the reactor counts them
        self.created = self.touched = self.begun = perf_counter()
        self.last_command = ""
        self.captured: list[bytes] | None = None  # replies that aren't sent
        self.words: list[bytes] = []  # of the command that is handed over
        self.is_resumed = False  # it is to be taken up in the next round
        self.discarded = 0  # bytes, while lingering

    # -- what the reactor calls: input -----------------------------------------------------------

    def receive(self) -> None:
        """Read once and hand over what is complete. Raises OSError."""
        if self.state != READING:
            self._receive_out_of_turn()
            return
        data = self.receive_bytes(_READ_SIZE)
        if not data:
            self.ended = True
            self.state = FINISHED
            self._take_no_more()
            return
        reactor = self.reactor
        reactor.bytes_in += len(data)
        if not self.out:  # to send is no excuse for not reading
            self.touched = reactor.now
        self.reader.feed(data)
        self.advance()

    def react(self, event: int) -> None:
        """Do what an event other than plain readability asks for. Raises OSError."""
        if event & OUT:
            self.reactor.dirty.append(self)
        if event & IN:
            self.receive()
        elif not event & OUT:  # an error or the end of both directions, while nothing is read
            self.receive_bytes(1)  # raises BlockingIOError if it is an older connection's
            self.close()

    def resume(self) -> None:
        """Take up the commands that had to wait; more reads at a time while values are short."""
        self.is_resumed = False
        self.run = min(2 * self.run, self.front.limits.max_pipelined)
        if self.state == WAITING:
            self.advance()

    def advance(self) -> None:
        """Hand over every complete command, as far as their order and the time allow."""
        self.state = READING
        try:
            self._hand_over_all()
        except ProtocolError as error:
            self._refuse(str(error))
        if self.state >= FINISHED:
            self._take_no_more()
            return
        reader = self.reader
        reader.rest()
        if reader.held or self.parked:
            self._count_arriving()
        if self.state == READING:
            if reader.is_empty:
                self.begun = self.reactor.now
            if not self.interest & IN:
                self._listen_for(self.interest | IN)

    # -- what commands call ----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to the client any more."""
        return self.state == CLOSED

    @property
    def is_last(self) -> bool:
        """Whether no command after this one is taken any more."""
        return self.state >= FINISHED

    def replies(self) -> Replies:
        """Return an encoder of the client's protocol."""
        return Replies(self.session.protocol)

    def reply(self, data: bytes) -> None:
        """Send the reply of a command that waits for nothing, in its turn."""
        if self.captured is not None:
            self.captured.append(data)
        elif self.session.is_plain or not self.session.is_muted:
            self._reply_in_turn(data)

    def capture(self, handle: Handler, words: list[bytes]) -> bytes:
        """Do a command that waits for nothing, and return its reply instead of sending it."""
        self.captured = []
        try:
            handle(self, words)
            return b"".join(self.captured)
        finally:
            self.captured = None

    def fail(self, text: str) -> None:
        """Send an error likewise; *text* begins with its code."""
        self.reply(error_reply(text))

    def begin(self, pending: Pending) -> None:
        """Let a command's reply wait for the service, in its turn."""
        pending.is_muted = not self.session.is_plain and self.session.is_muted
        pending.words = self.words
        self.waiting.append(pending)
        self.unanswered += pending.count
        self.reactor.in_flight += pending.count

    def end(self) -> None:
        """Take no further command; close when all are answered."""
        if self.state < FINISHED:
            self.state = FINISHED

    # -- what comes back: replies in their turn --------------------------------------------------

    def complete(self, pending: Pending) -> None:
        """Note that a command has all its answers, and let the replies leave whose turn it is."""
        self.reactor.in_flight -= pending.count
        self.unanswered -= pending.count
        took = perf_counter() - pending.started
        self.front.durations.observe_same(took, pending.count)
        if took > self.front.limits.slow_command:
            self.front.note_slow(self, pending)
        pending.words = []  # its reply may have to wait for its turn
        waiting = self.waiting
        while waiting and not waiting[0].missing:
            pending = waiting.popleft()
            if pending.parked:
                pending.unpark()
                self.run = 1  # one by one, until values are short again
            if not pending.is_muted:
                self._put(pending.pieces)
            if pending.tail:
                self._put(pending.tail)
        if not (waiting or self.out):  # nothing is sent, so nobody would take it up
            self._go_on()

    # -- what the reactor calls: output, time and the end ----------------------------------------

    def feed(self) -> None:
        """Nothing is fed to it: no command has a reply without an end."""

    def push(self, data: bytes) -> None:
        """Send what is no reply: a message, between two replies, and whatever CLIENT REPLY says."""
        if self.state < LINGERING:
            if not self.out:
                self.touched = self.reactor.now  # it has had nothing to read so far
            self._put((data,))

    def send(self) -> None:
        """Send what the socket takes; the rest waits until it takes more. Raises OSError."""
        out = self.out
        if not out:
            return
        sent, is_full = self._offer(out)
        reactor = self.reactor
        reactor.bytes_out += sent
        if sent < self.pending:
            if sent or not self.interest & OUT:
                self.touched = reactor.now
            self._drop_sent(sent)
            if is_full:
                self._listen_for(self.interest | OUT)
            else:
                reactor.dirty.append(self)  # the next round sends more
            return
        out.clear()
        reactor.leaving -= self.pending
        self.pending = 0
        if self.interest & OUT:
            self._listen_for(self.interest & ~OUT)
        if self.state and not self.waiting:
            self._go_on()

    def check_deadlines(self) -> None:
        """Close what took too long. Raises OSError."""
        limits = self.front.limits
        now = self.reactor.now
        if self.state == LINGERING:
            if now - self.touched > _LINGER_TIME:
                self.close()
        elif self.out:
            if now - self.touched > limits.write_timeout:
                self.drop()
        elif self.waiting:
            self.touched = self.begun = now  # time that the service takes isn't the client's
        elif not self.reader.is_empty:
            if now - self.begun > limits.request_timeout:
                self._refuse("the command took too long to arrive")
                self._take_no_more()
        elif now - self.touched > limits.idle_timeout and self.session.subscriptions is None:
            self.close()

    def blocked_since(self) -> float | None:
        """Tell since when messages wait for a client that takes none."""
        is_blocked = self.session.subscriptions is not None and self.interest & OUT
        return self.touched if is_blocked else None

    def drop(self) -> None:
        """Close because the client takes nothing."""
        self.close()

    def close_if_idle(self) -> None:
        """Close if nothing is under way; while draining."""
        if self.state == READING and not (self.waiting or self.out or self.backlog):
            self.close()

    def close(self) -> None:
        """Let go of the link; what is unanswered or unsent is dropped."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        self.ended = True
        reactor = self.reactor
        reactor.leaving -= self.pending
        self.pending = 0
        self.out.clear()
        for pending in self.waiting:
            pending.unpark()
        self.waiting.clear()  # their answers still count, when they come
        self.backlog.clear()
        self.reader.clear()
        self._count_arriving()
        self.front.release(self)  # first: who sees that it is gone may have its place
        del reactor.connections[self.descriptor]  # before the number can be used again
        self.link.close()

    # -- private ---------------------------------------------------------------------------------

    def _hand_over_all(self) -> None:
        """Hand over commands until there is none, or one has to wait. Raises ProtocolError."""
        reactor = self.reactor
        take = self.reader.take
        backlog = self.backlog
        while self.state == READING:
            found = backlog.popleft() if backlog else take()
            if found is None:
                return
            if self.pending and self._must_send():
                backlog.appendleft(found)
                self.state = WAITING
                return
            if not self._hand_over(found):
                self.state = WAITING
                return
            if self.state == READING and perf_counter() > reactor.leave:
                if backlog or not self.reader.is_empty:
                    self._wait_a_round()
                return

    def _hand_over(self, found: list[bytes] | Run) -> bool:
        """Do a command, or as much of a run as can be done together; return False if that has to
        wait. What is left goes to the backlog."""
        front = self.front
        session = self.session
        name = found[0] if type(found) is list else cast("Run", found).name
        command = front.commands.get(name) or front.find(name)
        if type(found) is not list:
            run = cast("Run", found)
            if command is None or command.run is None or not session.is_plain:
                self.backlog.extendleft(reversed(_apart(run)))
                found = self.backlog.popleft()
            elif command.lane is READS and run.size > self.run:
                found, rest = _cut(run, self.run)
                self.backlog.appendleft(rest)
        if type(found) is list and command is not None and command.subcommands and len(found) > 1:
            command = command.subcommands.get(found[1].lower(), command)
        if command is None or not command.takes(found):
            self.reactor.requests += 1
            if not front.refuse(self, command, cast("list[bytes]", found)):
                self.close()
        elif self.waiting and self.waiting[-1].is_alone:
            self.backlog.appendleft(found)
            return False
        elif not session.is_plain and front.queue(self, command, cast("list[bytes]", found)):
            self.reactor.requests += 1
            command.calls += 1
        else:
            lane = command.lane
            if lane and self.waiting and self._must_wait(lane):
                if not (command.join and self._may_join()):
                    self.backlog.appendleft(found)
                    return False
                self._join(command.join, command, found)
            else:
                self.lane = lane or self.lane
                self._do(command, command.handle, found)
        if session.skips:
            session.skips -= 1
            session.refresh()
        return True

    def _may_join(self) -> bool:
        """Tell whether a read may be done among the writes that are unanswered."""
        is_short = self.unanswered < self.front.limits.max_pipelined
        return self.lane is WRITES and is_short

    def _join(self, join: Handler, command: Command, found: list[bytes] | Run) -> None:
        """Do a read among writes."""
        for words in [found] if type(found) is list else _apart(cast("Run", found)):
            self._do(command, join, words)

    def _do(self, command: Command, handle: Handler, found: list[bytes] | Run) -> None:
        reactor = self.reactor
        count = 1 if type(found) is list else cast("Run", found).size
        reactor.requests += count
        command.calls += count
        self.last_command = command.name
        self.words = found if type(found) is list else [cast("Run", found).name]
        try:
            if reactor.in_flight > reactor.most_in_flight:
                for _ in range(count):
                    self.fail("TRYAGAIN too many commands are under way, try again shortly")
            elif type(found) is list:
                handle(self, found)
            else:
                assert command.run is not None
                command.run(self, cast("Run", found))
        except Exception:
            log.exception("%s failed", command.name)
            self.fail(INTERNAL)

    def _must_wait(self, lane: int) -> bool:
        return (
            lane is not self.lane
            or lane is ALONE
            or self.unanswered >= (self.run if lane is READS else self.front.limits.max_pipelined)
        )

    def _must_send(self) -> bool:
        reactor = self.reactor
        return self.pending > _OUTPUT_HIGH or reactor.leaving > reactor.bounds.max_leaving_bytes

    def _refuse(self, why: str) -> None:
        """Answer what is no command, and take nothing more."""
        self.front.note_error(why)
        self._reply_in_turn(error_reply(f"ERR Protocol error: {why}"))
        self.state = FINISHED

    def _count_arriving(self) -> None:
        """Count the bytes of an unfinished command with those of all connections; end this one if
        they are too many."""
        reactor = self.reactor
        held = self.reader.held
        reactor.arriving += held - self.parked
        self.parked = held
        if held and reactor.arriving > reactor.bounds.max_arriving_bytes:
            self._reply_in_turn(error_reply("TRYAGAIN too much is being sent at once"))
            self.state = FINISHED
            self._take_no_more()

    def _wait_a_round(self) -> None:
        self.state = WAITING
        self.is_resumed = True
        self.reactor.resumed.append(self)

    def _go_on(self) -> None:
        """Take up what waited for all replies to have left, the end too."""
        if self.state == WAITING:
            if not self.is_resumed:  # or a round would have time for it twice
                self._wait_a_round()
        elif self.state == FINISHED:
            self._finish()

    def _finish(self) -> None:
        if self.ended:
            self.close()
            return
        self.link.shut()
        self.state = LINGERING
        self.touched = self.reactor.now
        self._listen_for(IN)

    def _reply_in_turn(self, data: bytes) -> None:
        if self.waiting:
            self.waiting[-1].tail.append(data)
        elif self.state < LINGERING:
            self._put((data,))

    def _put(self, pieces: list[bytes] | tuple[bytes, ...]) -> None:
        """Send pieces at the end of the round."""
        if not self.out:
            self.reactor.dirty.append(self)
        self.out += pieces
        size = sum(map(len, pieces))
        self.pending += size
        self.reactor.leaving += size

    def _offer(self, out: list[bytes | memoryview]) -> tuple[int, bool]:
        """Give output to the socket; return how much it took, and whether it takes no more."""
        try:
            if self.pending > SENT_TOGETHER:
                pieces = out[:_MOST_PIECES]
                sent = self.link.send_pieces(pieces)
                return sent, sent < sum(map(len, pieces))
            if len(out) > 1:
                out[:] = (b"".join(out),)
            return self.send_bytes(out[0]), True
        except BlockingIOError:
            return 0, True

    def _drop_sent(self, sent: int) -> None:
        """Forget bytes of the output that the socket took, fewer than there are."""
        self.pending -= sent
        self.reactor.leaving -= sent
        out = self.out
        gone = 0
        while sent >= len(out[gone]):
            sent -= len(out[gone])
            gone += 1
        del out[:gone]
        if sent:
            rest = memoryview(out[0])[sent:]
            # A view keeps all its bytes, those that have left too, and only the rest is counted.
            out[0] = bytes(rest) if len(rest) * 2 < len(cast("bytes", rest.obj)) else rest

    def _receive_out_of_turn(self) -> None:
        if self.state == LINGERING:
            data = self.receive_bytes(_READ_SIZE)
            self.discarded += len(data)
            if not data or self.discarded > _LINGER_BYTES:
                self.close()
            return
        if self.state == WAITING and self.reader.unread < _READ_SIZE:
            data = self.receive_bytes(_READ_SIZE)
            self.reactor.bytes_in += len(data)
            if data:
                self.reader.feed(data)
                return
            self.ended = True  # it is read again when what waits has been taken up
        self._listen_for(self.interest & ~IN)

    def _take_no_more(self) -> None:
        """Forget what has come and was not taken; end, unless replies are still to be sent."""
        self.reader.clear()
        self.backlog.clear()
        self._count_arriving()
        if self.state == FINISHED:
            self._listen_for(self.interest & ~IN)
            if not (self.waiting or self.out):
                self._go_on()

    def _listen_for(self, interest: int) -> None:
        """Change the events that the connection is told of. Raises OSError."""
        if interest != self.interest:
            self.interest = interest
            self.reactor.change_interest(self)


def _cut(run: Run, size: int) -> tuple[list[bytes] | Run, Run]:
    """Return the first commands of a run, and the rest."""
    columns = run.columns
    rest = Run(run.name, [column[size:] for column in columns], run.size - size)
    if size == 1:
        return [run.name, *(column[0] for column in columns)], rest
    return Run(run.name, [column[:size] for column in columns], size), rest


def _apart(run: Run) -> list[list[bytes]]:
    """Return the commands of a run one by one."""
    if not run.columns:
        return [[run.name] for _ in range(run.size)]
    return [[run.name, *words] for words in zip(*run.columns, strict=True)]
