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
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol, cast

from conure.metrics import Histogram
from conure.net.link import Link
from conure.net.outlet import Outlet
from conure.net.reactor import IN, OUT, Reactor
from conure.protection import Door
from conure.resp.failures import INTERNAL, error_reply
from conure.resp.grammar import ProtocolError, Reader, Run
from conure.resp.limits import Limits
from conure.resp.lone import Lone
from conure.resp.replies import Replies
from conure.resp.session import Session
from conure.resp.table import ALONE, ANY, READS, WRITES, Command, Handler
from conure.resp.waiters import Pending

__all__ = ["Front", "RespConnection"]

log = logging.getLogger("conure.resp")

READING, WAITING, FINISHED, LINGERING, CLOSED = range(5)

_READ_SIZE: Final = 64 << 10
_FIRST_RUN: Final = 16  # reads of a new connection that are taken before the first is answered
_LINGER_TIME: Final = 2.0  # seconds
_LINGER_BYTES: Final = 16 << 20
_CROWDED: Final = "TRYAGAIN too many commands are under way, try again shortly"


class Front(Protocol):
    """What a connection asks of the front end that made it. Reactor thread only."""

    limits: Limits
    commands: dict[bytes, Command]
    durations: Histogram  # of commands that wait for the service
    door: Door  # who is barred

    def find(self, name: bytes) -> Command | None:
        """Return the command of a name that isn't written as in ``commands``."""

    def refuse(
        self, connection: RespConnection, command: Command | None, words: list[bytes]
    ) -> bool:
        """Answer what names no *command*, or has too few words or too many for it; return False if
        the connection is to end without a reply."""

    def abort(self, connection: RespConnection) -> None:
        """Note that a command was refused that a transaction was to queue."""

    def queue(self, connection: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Do what a command means in a session that isn't plain; False, having done nothing, if
        that is the same as ever."""

    def note_error(self, why: str) -> None:
        """Note bytes that were no command."""

    def note_slow(
        self, connection: RespConnection, words: list[bytes], count: int, started: float
    ) -> None:
        """Note a command, or *count* like it, whose answer took from a time until now: long."""

    def release(self, connection: RespConnection) -> None:
        """Let another connection have the place of one."""


class RespConnection(Outlet):
    """One client's bytes and unanswered commands. Reactor thread only, once it is adopted."""

    __slots__ = (
        "address",
        "backlog",
        "begun",
        "captured",
        "created",
        "discarded",
        "ended",
        "front",
        "id",
        "is_resumed",
        "lane",
        "last_command",
        "lone",
        "parked",
        "place",
        "reader",
        "run",
        "session",
        "state",
        "unanswered",
        "waiting",
        "words",
    )

    def __init__(
        self, reactor: Reactor, front: Front, link: Link, address: str, place: str, number: int
    ) -> None:
        super().__init__(reactor, link)
        self.front = front
        self.place = place  # whose place it has
        self.id = number
        self.address = address
        self.state = READING
        self.ended = False  # the client sent its last byte
        self.reader = Reader(front.limits.max_command_bytes)
        self.backlog: deque[list[bytes] | Run] = deque()  # read and not handed over
        self.session = Session()
        self.waiting: deque[Pending] = deque()  # unanswered, or answered before their turn
        self.lone: Lone | None = None  # who answers a command that alone is under way
        self.unanswered = 0  # answers that those need, about
        self.lane = ANY  # of those
        self.run = _FIRST_RUN  # how many reads may be among them
        self.parked = 0  # bytes of a command that is arriving, as the reactor counts them
        self.created = self.touched
        self.begun = self.touched  # the first byte of a command that isn't complete
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
        if self.lone is not None:
            self.settle()
        if not data:
            self.ended = True
            self.state = FINISHED
            self.take_no_more()
            return
        reactor = self.reactor
        reactor.bytes_in += len(data)
        if not self.out:  # to send is no excuse for not reading
            self.touched = reactor.now
            if not self.waiting and self.session.is_plain:
                words = self.reader.take_lone(data)
                if words is not None:
                    self._take_lone(words)
                    return
        if self.reader.is_empty:
            self.begun = reactor.now
        self.reader.feed(data)
        self.advance()

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
            self.take_no_more()
            return
        reader = self.reader
        reader.rest()
        if reader.held or self.parked:
            self._count_arriving()
        if self.state == READING and not self.interest & IN:
            self.listen_for(self.interest | IN)

    # -- what commands call ----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to the client any more."""
        return self.state == CLOSED

    @property
    def principal(self) -> str:
        """Whom the client's certificate names; empty if there is none."""
        return self.link.principal

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

    def begin_lone(self, lone: Lone) -> None:
        """Let the reply come from the waiter of lone commands, as nothing else is under way."""
        self.lone = lone
        self.reactor.in_flight += 1

    def note_skipped(self) -> None:
        """Note that the reply of a command was skipped, if it was to be."""
        session = self.session
        if session.skips:
            session.skips -= 1
            session.refresh()

    def end(self) -> None:
        """Take no further command; close when all are answered."""
        if self.state < FINISHED:
            self.state = FINISHED

    # -- what comes back: replies in their turn --------------------------------------------------

    def complete(self, pending: Pending) -> None:
        """Note that a command has all its answers, and let the replies leave whose turn it is."""
        self.reactor.in_flight -= pending.count
        self.unanswered -= pending.count
        self.observe(pending.started, pending.count)
        if self.is_slow(pending.started):
            self.front.note_slow(self, pending.words, pending.count, pending.started)
        pending.words = []  # its reply may have to wait for its turn
        waiting = self.waiting
        while waiting and not waiting[0].missing:
            pending = waiting.popleft()
            if pending.parked:
                pending.unpark()
                self.run = 1  # one by one, until values are short again
            if not pending.is_muted:
                self.put_all(pending.pieces)
            if pending.tail:
                self.put_all(pending.tail)
        if not (waiting or self.out):  # nothing is sent, so nobody would take it up
            self._go_on()

    def observe(self, started: float, count: int) -> None:
        """Count so many commands that took from a time until now."""
        self.front.durations.observe_same(perf_counter() - started, count)

    def is_slow(self, started: float) -> bool:
        """Tell whether what takes from a time until now is slow."""
        return perf_counter() - started > self.front.limits.slow_command

    def answer(self, reply: bytes) -> None:
        """Send the reply of the lone command, which nothing in ``waiting`` is before or after."""
        self.lone = None
        self.put(reply)

    def settle(self) -> Pending:
        """Make the lone command wait like any other, since something is to come after it, or its
        reply is a long one, or a late one; return what waits."""
        assert self.lone is not None
        assert not self.waiting
        lone, self.lone = self.lone, None
        pending = lone.stand_in_for(self)
        pending.words = self.words
        self.waiting.append(pending)
        self.unanswered += pending.count
        return pending

    # -- what the reactor calls: output, time and the end ----------------------------------------

    def feed(self) -> None:
        """Nothing is fed to it: no command has a reply without an end."""

    def push(self, data: bytes) -> None:
        """Send what is no reply: a message, between two replies, and whatever CLIENT REPLY says."""
        if self.state < LINGERING:
            if not self.out:
                self.touched = self.reactor.now  # it has had nothing to read so far
            self.put(data)

    def after_send(self) -> None:
        """Take up what waited for all replies to have left."""
        if self.state and not (self.waiting or self.out):
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
        elif self.waiting or self.lone is not None:
            self.touched = self.begun = now  # time that the service takes isn't the client's
        elif not self.reader.is_empty:
            if now - self.begun > limits.request_timeout:
                self._refuse("the command took too long to arrive")
                self.take_no_more()
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
        is_busy = self.waiting or self.lone is not None or self.out or self.backlog
        if self.state == READING and not is_busy:
            self.close()

    def close(self) -> None:
        """Let go of the link; what is unanswered or unsent is dropped."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        self.ended = True
        self.drop_output()
        for pending in self.waiting:
            pending.unpark()
        self.waiting.clear()  # their answers still count, when they come
        self.lone = None
        self.backlog.clear()
        self.reader.clear()
        self._count_arriving()
        self.front.release(self)  # first: who sees that it is gone may have its place
        del self.reactor.connections[self.descriptor]  # before the number can be used again
        self.link.close()

    # -- private ---------------------------------------------------------------------------------

    def _hand_over_all(self) -> None:
        """Hand over commands until there is none, or one has to wait. Raises ProtocolError."""
        reactor = self.reactor
        take = self._taker()
        backlog = self.backlog
        while self.state == READING:
            found = backlog.popleft() if backlog else take()
            if found is None:
                return
            self.begun = reactor.now  # what follows has begun by now at the earliest
            if self.pending and self.must_send():
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

    def _taker(self) -> Callable[[], list[bytes] | Run | None]:
        """Return what takes what has come next, or None."""
        return self.reader.take

    def _take_lone(self, words: list[bytes]) -> None:
        """Do the one command that has come, while nothing else is under way."""
        command = self.front.commands.get(words[0])
        if command is None or command.lone is None or len(words) != command.least:
            self.backlog.append(words)
            self.advance()
            return
        self.lane = command.lane
        self._do(command, command.lone, words)

    def _hand_over(self, found: list[bytes] | Run) -> bool:
        """Do a command, or as much of a run as can be done together; return False if that has to
        wait. What is left goes to the backlog."""
        front = self.front
        session = self.session
        name = found[0] if type(found) is list else cast("Run", found).name
        command = front.commands.get(name) or front.find(name)
        if type(found) is not list:
            run = cast("Run", found)
            if not (command and command.run and command.takes(run) and session.is_plain):
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
                self._do_found(command, found)
        if session.skips:
            self.note_skipped()
        return True

    def _may_join(self) -> bool:
        """Tell whether a read may be done among the writes that are unanswered."""
        is_short = self.unanswered < self.front.limits.max_pipelined
        return self.lane is WRITES and is_short

    def _join(self, join: Handler, command: Command, found: list[bytes] | Run) -> None:
        """Do a read among writes."""
        for words in [found] if type(found) is list else _apart(cast("Run", found)):
            self._do(command, join, words)

    def _do(self, command: Command, handle: Handler, words: list[bytes]) -> None:
        reactor = self.reactor
        reactor.requests += 1
        command.calls += 1
        self.last_command = command.name
        self.words = words
        try:
            if reactor.in_flight > reactor.most_in_flight:
                self.fail(_CROWDED)
            else:
                handle(self, words)
        except Exception:
            log.exception("%s failed", command.name)
            self.fail(INTERNAL)

    def _do_found(self, command: Command, found: list[bytes] | Run) -> None:
        if type(found) is list:
            self._do(command, command.handle, found)
        else:
            self._do_all(command, cast("Run", found))

    def _do_all(self, command: Command, run: Run) -> None:
        assert command.run is not None
        reactor = self.reactor
        reactor.requests += run.size
        command.calls += run.size
        self.last_command = command.name
        self.words = [run.name]
        try:
            if reactor.in_flight > reactor.most_in_flight:
                for _ in range(run.size):
                    self.fail(_CROWDED)
            else:
                command.run(self, run)
        except Exception:
            log.exception("%s failed", command.name)
            self.fail(INTERNAL)

    def _must_wait(self, lane: int) -> bool:
        return (
            lane is not self.lane
            or lane is ALONE
            or self.unanswered >= (self.run if lane is READS else self.front.limits.max_pipelined)
        )

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
            self.take_no_more()

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
        self.listen_for(IN)

    def _reply_in_turn(self, data: bytes) -> None:
        if self.waiting:
            self.waiting[-1].tail.append(data)
        elif self.state < LINGERING:
            self.put(data)

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
        self.listen_for(self.interest & ~IN)

    def take_no_more(self) -> None:
        """Forget what has come and was not taken; end, unless replies are still to be sent."""
        self.reader.clear()
        self.backlog.clear()
        self._count_arriving()
        if self.state == FINISHED:
            self.listen_for(self.interest & ~IN)
            if not (self.waiting or self.out):
                self._go_on()


def _cut(run: Run, size: int) -> tuple[list[bytes] | Run, Run]:
    """Return the first commands of a run, and the rest."""
    rest = Run(run.name, [column[size:] for column in run.columns], run.size - size)
    return run.head(size), rest


def _apart(run: Run) -> list[list[bytes]]:
    """Return the commands of a run one by one."""
    if not run.columns:
        return [[run.name] for _ in range(run.size)]
    return [[run.name, *words] for words in zip(*run.columns, strict=True)]
