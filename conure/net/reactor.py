"""One thread in which every connection rests, with one epoll object.

The reactor knows no protocol: a :class:`FrontEnd` makes a :class:`Connection` of each link that it
is brought, and the reactor tells the connection when there is something to do. There may be several
listeners and several front ends.

A round of the reactor::

    wait -> let all that are readable receive, who hand over every complete request
         -> what takes turns (take_turns): a few milliseconds of it
         -> what ends a round (at_round_end): the reads of the round, then its writes, as one batch
         -> one send per connection: answers to a pipelined run leave together

Each part of a round is bounded in number, bytes or time, and the rest is left to the next round:
whatever clients send and ask for, the registered sockets of others are looked at again within
milliseconds. What is fed to connections (:class:`Source`) is bounded as well: a piece for thousands
of them holds up nobody's request for longer than that.

An error of one connection ends that connection only. What all connections together make us keep
is counted here and bounded by :class:`Bounds`; each front end says what is refused then, and how.

Threads: each method says which thread may call it; connections and front ends are called in the
reactor's own thread, but for :meth:`FrontEnd.accept`. Counters may be read from any thread. The
``lock`` guards what several threads change: what was given to sources, and how many there are. It
is held for a few instructions, or for one loop over the sources of a broadcast; nobody else's code
runs under it.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import inf
from os import sched_yield
from threading import get_ident
from time import perf_counter
from typing import Any, Final, Protocol

from conure.errors import TooManyRequests
from conure.net.link import Link

__all__ = [
    "IN",
    "OUT",
    "SENT_TOGETHER",
    "Bounds",
    "Connection",
    "FrontEnd",
    "Reactor",
    "Source",
    "Turn",
]

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT

SENT_TOGETHER = 256 << 10
"""Bytes of unsent answers that a connection may copy into one piece; with more, it has its turn
of sending after those with less."""

_ROUND = 2048  # requests of a round, about; so many again of those that had to wait
_ROUND_BYTES = 4 << 20  # of bodies that a round takes in, about; no fewer than one body
_ROUND_TIME = 0.006  # seconds of a round in which requests are taken; a quarter of it as above
_VISIT = 0.0005  # seconds of these for one connection, if others wait
_TURNS_TIME = 0.004  # seconds of a round for all that takes turns
_TURN = 0.001  # seconds of these for one, if others wait
_AT_TURNS = 4  # so many take turns, the others wait: what is half done takes memory
_SENT_BYTES = 4 << 20  # that a round sends, about
_SENDING_TIME = 0.004  # seconds of a round in which answers are sent
_WAVE = 64  # sources that are fed in a round
_TICK = 1.0  # seconds between two looks at the deadlines
_AWAKE_FOR_ANSWERS = 300e-6  # seconds that the reactor stays awake while requests are unanswered
_AWAKE_FOR_CLIENTS = 100e-6  # seconds, after a round that has answered all
_FEW = 100  # requests of a round; more are better taken in one go, and their answers too
_CLOSING_TIME = 0.002  # seconds of a round in which connections are closed; as many to drop some
_CHECKING_TIME = 0.002  # seconds of a round in which deadlines are looked at
_DRAIN_TICK = 0.02  # seconds between two looks at what is left while draining


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all connections of a reactor together may make us keep."""

    max_arriving_bytes: int = 256 << 20  # of unfinished requests
    max_leaving_bytes: int = 256 << 20  # of unsent answers and of what sources keep
    max_in_flight: int = 20_000  # requests handed over and unanswered
    max_streams: int = 10_000  # sources and waiting requests, which don't count above


class Connection(Protocol):
    """What the reactor knows of a connection. Reactor thread only, once it is adopted.

    A method that raises OSError ends the connection, and so does any other exception, which is
    logged. A connection that has something to send puts itself on ``Reactor.dirty``, one that has
    to wait on ``Reactor.resumed``, and each counts in the reactor's counters what it does.
    """

    @property
    def link(self) -> Link:
        """What it reads from and writes to."""

    @property
    def interest(self) -> int:
        """The events that epoll reports of it; see :meth:`Reactor.change_interest`."""

    @property
    def pending(self) -> int:
        """Bytes that it has to send and that the link hasn't taken."""

    def receive(self) -> None:
        """Read once and hand over what is complete. BlockingIOError: there was nothing."""

    def react(self, event: int) -> None:
        """Do what an event other than plain readability asks for; raises as :meth:`receive`."""

    def resume(self) -> None:
        """Take up the requests that had to wait."""

    def feed(self) -> None:
        """Take the next piece from the source whose turn it is."""

    def send(self) -> None:
        """Send what the link takes; the rest waits until it takes more."""

    def check_deadlines(self) -> None:
        """Refuse, or close, what took too long."""

    def blocked_since(self) -> float | None:
        """Tell since when a source's bytes wait for a client that takes none; None: they don't."""

    def drop(self) -> None:
        """Close because the client takes nothing."""

    def close_if_idle(self) -> None:
        """Close if nothing is under way."""

    def close(self) -> None:
        """Let go of the link, and leave ``Reactor.connections`` before its descriptor is free."""


class FrontEnd(Protocol):
    """Who speaks with clients."""

    def accept(self, link: Link, peer: Any) -> Connection | None:
        """Make a connection, or None: it is turned away. The accepting thread; doesn't block."""

    def release(self, connection: Any) -> None:
        """Forget a connection that was accepted and could not be registered. Same thread."""

    def tick(self) -> None:
        """Do what is to be done each second. Reactor thread; doesn't raise."""


class Source(Protocol):
    """What is fed to a connection piece by piece, such as an answer without a length."""

    def unqueue(self) -> Connection | None:
        """Note that it is no longer in ``Reactor.ready``; return whom to feed, if it is its turn.

        Reactor thread only.
        """


class Turn(Protocol):
    """What keeps a processor busy for long, carried on in turns. Reactor thread only."""

    def go_on(self, until: float) -> bool | None:
        """Carry on, to that time by ``perf_counter`` or less.

        Return whether it may go on in this round; None if it is over. Doesn't raise.
        """

    def end(self) -> None:
        """Let go of everything; it is over."""


class Reactor:
    """The thread in which every connection rests.

    *on_fatal* is told, in that thread, when it ended by an exception: nobody is served then, and
    the process should end. *name* is what its thread and its log are called.
    """

    def __init__(
        self, bounds: Bounds, on_fatal: Callable[[BaseException], None], name: str
    ) -> None:
        self.bounds = bounds
        self.ident = 0  # of the thread
        self.now = perf_counter()  # of this round
        self.draining = False
        self.connections: dict[int, Connection] = {}  # by descriptor
        self.dirty: list[Connection] = []  # to be sent to at the end of the round
        self.resumed: list[Connection] = []  # to be taken up again in the next round
        self.late: dict[int, int] = {}  # events that a round had no time for, or epoll never tells
        self.registered: dict[int, Callable[[], None]] = {}  # sockets of others: see register
        self.later: deque[tuple[float, Callable[[], None]]] = deque()  # when due; see call_later
        self.turns: deque[Turn] = deque()  # the first _AT_TURNS of them are under way
        self.turned: list[Turn] = []  # whose turn it was in this round
        self.until = inf  # when this round has taken in requests for long enough
        self.leave = inf  # when it has taken enough of those of one connection
        self.bulk = 0  # bytes of bodies that this round has taken in
        self.requests = self.bytes_in = self.bytes_out = 0
        self.taken = 0  # requests, in the last round
        self.is_prompt = False  # the last wait was a short one
        self.in_flight = 0  # requests handed over and unanswered, but for those that wait
        self.most_in_flight = bounds.max_in_flight
        self.arriving = 0  # bytes of unfinished bodies
        self.leaving = 0  # bytes of unsent answers
        self.lock = threading.Lock()  # see the module's docstring; guards the next four
        self.streams = 0  # sources that are not over, and requests that wait
        self.streams_dropped = 0
        self.ready: deque[Source] = deque()  # to be fed
        self.queued = 0  # bytes that sources have yet to take; those of a broadcast count once
        self.progress = threading.Condition()  # for those who wait for sources to be sent
        self.tell_waiting = False
        self.epoll = select.epoll()
        self._name = name
        self.log = logging.getLogger(f"conure.{name}")
        self._on_fatal = on_fatal
        self._fronts: tuple[FrontEnd, ...] = ()
        self._round_ends: tuple[Callable[[], bool], ...] = ()
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._woken = False
        self._next_tick = 0.0
        self._doomed: deque[Connection] = deque()
        self._unchecked: deque[Connection] = deque()  # of this tick
        self._blocked: deque[Connection] = deque()  # to be dropped until there is room
        self._cut = False  # drain() ran out of time
        self._done = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.epoll.register(self._wakened.fileno(), IN)

    # -- any thread

    def serve(self, front: FrontEnd) -> None:
        """Serve what *front* accepts, too; before the first of its connections is adopted."""
        self._fronts = (*self._fronts, front)

    def at_round_end(self, action: Callable[[], bool]) -> None:
        """Have *action* called at the end of each round that has taken requests or given turns.

        It finishes what the requests began. True asks for another call, before which the answers
        given so far are sent: a client can read while the next part keeps the thread busy. It
        doesn't raise: that would end the reactor. Actions are called in the order of coming here.
        """
        self._round_ends = (*self._round_ends, action)

    def start(self) -> threading.Thread:
        """Start the thread, unless it was started before; return it."""
        with self._start_lock:
            if self._thread is None:
                name = f"{self._name}-reactor"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            return self._thread

    def post(self, action: Callable[..., None], *arguments: object) -> None:
        """Have *action* called in the reactor thread, with one wake-up for a burst.

        It doesn't raise: that would end the reactor.
        """
        self._posted.append((action, arguments))
        if not self._woken:
            self.wake()

    def register(self, descriptor: int, action: Callable[[], None]) -> None:
        """Call *action* whenever a socket that isn't a client's has input.

        What is answered in there leaves at the end of the same round, and no other thread has to
        be woken for it. *action* takes some of the input; it neither waits nor raises: that would
        end the reactor. It may be called once more than there is input. Raises OSError.
        """
        with contextlib.suppress(ValueError):  # the reactor has ended: nobody reads any more
            self.epoll.register(descriptor, IN)
        self.registered[descriptor] = action

    def unregister(self, descriptor: int) -> None:
        """Undo :meth:`register`, before the socket is closed."""
        del self.registered[descriptor]
        with contextlib.suppress(OSError, ValueError):  # the reactor has ended
            self.epoll.unregister(descriptor)

    def call_later(self, action: Callable[[], None], seconds: float) -> None:
        """Call *action* at the end of a round, the next one at the earliest: when what is answered
        by now has been sent, and what clients have asked meanwhile is taken.

        *seconds* may be 0 and are less than a millisecond: the reactor doesn't sleep until then.
        *action* doesn't raise, nor wait for anything.
        """
        self.later.append((perf_counter() + seconds, action))
        self.wake_up()

    def begin_stream(self) -> None:
        """Count one more source or waiting request. Raises TooManyRequests."""
        with self.lock:
            if self.streams >= self.bounds.max_streams:
                raise TooManyRequests("too many streams are open; try again shortly")
            self.streams += 1

    def is_full(self, more: int = 0) -> bool:
        """Tell whether too much waits to be read by clients, with so many bytes more; what it
        finds may be different a moment later."""
        return self.leaving + self.queued + more > self.bounds.max_leaving_bytes

    def wake_up(self) -> None:
        """End the wait of the reactor, unless that was done already or this is its thread."""
        if not self._woken and get_ident() != self.ident:
            self.wake()

    def wake(self) -> None:
        """Let the next wait of the reactor end at once."""
        self._woken = True
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody is left to wake
            self._waker.send(b"!")

    def drain(self, timeout: float) -> bool:
        """Finish what is in flight, close everything, end the thread; nobody may accept any more.

        Idle connections are closed at once. After *timeout* seconds the rest is cut off. Returns
        whether nothing had to be. Not from the reactor's own thread.
        """
        thread = self.start()
        self.draining = True
        self.wake()
        finished = self._done.wait(timeout)
        if not finished:
            self._cut = True
            self.wake()
        thread.join()
        return finished

    def close(self) -> None:
        """Let go of the reactor's own descriptors; for one that was never started."""
        self.epoll.close()
        self._waker.close()
        self._wakened.close()

    # -- the accepting thread

    def adopt(self, front: FrontEnd, link: Link, peer: Any) -> None:
        """Take in a new connection of *front*, or close the link if it is turned away.

        Raises OSError, and ValueError when the reactor has just ended; the link is open then.
        """
        connection = front.accept(link, peer)
        if connection is None:
            link.close()
            return
        descriptor = link.descriptor
        self.connections[descriptor] = connection
        try:
            self.epoll.register(descriptor, connection.interest)
        except (OSError, ValueError):  # ValueError: the reactor has just ended
            del self.connections[descriptor]
            front.release(connection)
            raise

    # -- the reactor thread

    def change_interest(self, connection: Connection) -> None:
        """Have epoll report what the connection is interested in now. Raises OSError."""
        link = connection.link
        interest = connection.interest
        self.epoll.modify(link.descriptor, interest | OUT if link.stalled else interest)
        if link.pending:
            self._note_pending(connection)

    def end_wait(self) -> None:
        """Count a waiting request among those in flight again."""
        self.in_flight += 1
        with self.lock:
            self.streams -= 1

    def is_crowded(self) -> bool:
        """Return whether so much waits for clients that reads are taken one by one."""
        return self.leaving > self.bounds.max_leaving_bytes // 2

    def guard(self, action: Callable[[], None], connection: Connection) -> None:
        """Call a method of a connection, which ends if that fails."""
        try:
            action()
        except OSError:
            connection.close()
        except Exception:
            self.log.exception("a connection failed")
            connection.close()

    def close_soon(self, connections: Iterable[Connection]) -> None:
        """Close connections, in the order of coming here, as many in each round as there is time
        for: to close thousands takes longer than others should wait."""
        self._doomed += connections

    def take_turns(self, turn: Turn) -> None:
        """Carry something on, from the next round's turns on."""
        self.turns.append(turn)

    def round(self) -> bool:
        """Wait, then carry one round through; return whether there is to be another.

        Raises only what is no single connection's and no front end's fault.
        """
        draining = self.draining
        later = [self.later.popleft() for _ in range(len(self.later))]
        events = self._wait(later)
        if self.late:
            events = [*{**self.late, **dict(events)}.items()]  # in the order of their coming
            self.late = {}
        self.now = perf_counter()
        requests = self.requests
        self.bulk = 0
        if self.now >= self._next_tick:
            self._tick()
        if self.resumed:
            self._resume()
        self._receive(events)
        if self.turns:
            self._take_turns()
        if self.requests != requests or self.turned:
            for action in self._round_ends:
                while action():
                    self._send()
            self.turned.clear()
        self.taken = self.requests - requests
        if later:
            self._act(later)
        if self.ready:
            self._feed_sources()
        self._send()
        if self._doomed or self._unchecked or self._blocked:
            self._relieve()
            self._check_deadlines()
            self._close_doomed()
        if self.tell_waiting:
            self._tell_waiting()
        return not (draining and self._is_drained())

    # -- private

    def _run(self) -> None:
        self.ident = get_ident()
        failure: BaseException | None = None
        try:
            while self.round():
                pass
        except BaseException as error:
            self.log.critical("the reactor ended", exc_info=True)
            failure = error
        finally:
            for connection in list(self.connections.values()):
                connection.close()
            self._take_posted()  # with no connection left: what begins now is over
            self._tell_waiting()
            self.close()
            self._done.set()
        if failure is not None:
            self._on_fatal(failure)

    def _wait(self, later: Collection[tuple[float, Any]]) -> list[tuple[int, int]]:
        """Wait for input, awake for a while if it has come at once the last time.

        To fall asleep and be woken takes longer than a client on this machine takes to ask again,
        and a good part of what a quorum takes. Whoever wants the processor gets it meanwhile.
        """
        poll = self.epoll.poll
        if self.resumed or self.ready or self.dirty or self.turns or self.late:
            return poll(0)
        if self._doomed or self._unchecked or self._blocked:
            return poll(0)
        begun = perf_counter()
        awake = _AWAKE_FOR_ANSWERS if self.in_flight else _AWAKE_FOR_CLIENTS
        if later:
            until = min([due for due, _ in later])
        elif self.is_prompt and max(self.taken, self.in_flight) <= _FEW:
            until = begun + awake
        else:
            until = begun
        while not (events := poll(0)) and perf_counter() < until:
            sched_yield()
        if not (events or later):
            events = poll(_DRAIN_TICK if self.draining else _TICK)
        self.is_prompt = perf_counter() - begun < awake
        return events

    def _act(self, later: Iterable[tuple[float, Callable[[], None]]]) -> None:
        now = perf_counter()
        for due, action in later:
            if due <= now:
                action()
            else:
                self.later.append((due, action))

    def _resume(self) -> None:
        last = self.requests + _ROUND
        self.until = perf_counter() + _ROUND_TIME / 4
        resumed, self.resumed = self.resumed, []
        visit = max(_VISIT, _ROUND_TIME / 4 / len(resumed))
        for number, connection in enumerate(resumed):
            if self._is_over(last, visit):
                self.resumed += resumed[number:]
                return
            self.guard(connection.resume, connection)

    def _is_over(self, last: int, visit: float) -> bool:
        """Tell whether the round has taken in enough: peers must not wait long for the next one.
        If not, a connection has so many seconds for a *visit*: nor must others."""
        now = perf_counter()
        self.leave = min(self.until, now + visit)
        return self.requests >= last or self.bulk >= _ROUND_BYTES or now > self.until

    def _receive(self, events: list[tuple[int, int]]) -> None:
        connections = self.connections
        last = self.requests + _ROUND
        self.until = until = self.now + _ROUND_TIME
        visit = max(_VISIT, _ROUND_TIME / (len(events) or 1))
        for descriptor, event in events:
            connection = connections.get(descriptor)
            if connection is None:
                self.registered.get(descriptor, self._take_posted)()
                continue
            # As _is_over, which would be a call for each request.
            now = perf_counter()
            if now > until or self.requests >= last or self.bulk >= _ROUND_BYTES:
                self.late[descriptor] = event
                continue
            leave = now + visit
            if leave > until:
                leave = until
            self.leave = leave
            try:
                if event == IN:
                    connection.receive()
                else:
                    self._react(connection, event)
                if connection.link.pending:
                    self._note_pending(connection)
            except BlockingIOError:
                # Readable no more, the event was an older connection's; or it told of a part of
                # something encrypted.
                self._look_at(connection)
            except OSError:
                connection.close()
            except Exception:
                self.log.exception("a connection failed")
                connection.close()

    def _react(self, connection: Connection, event: int) -> None:
        """Do what an event asks for of a connection, or of its link."""
        link = connection.link
        if event & OUT and link.stalled:
            link.flush()
            self.change_interest(connection)
            event &= connection.interest | ~OUT
        if event == IN:
            connection.receive()
        elif event:
            connection.react(event)

    def _look_at(self, connection: Connection) -> None:
        """See to what a link that has nothing to be received keeps, or wants to send by itself."""
        keeps, is_stalled = connection.link.pending, connection.link.stalled
        if keeps:
            self._note_pending(connection)
        if is_stalled:
            try:
                self.change_interest(connection)
            except OSError:
                connection.close()

    def _note_pending(self, connection: Connection) -> None:
        """Read again in the next round what epoll won't announce, if the connection wants it."""
        descriptor = connection.link.descriptor
        if connection.interest & IN and self.connections.get(descriptor) is connection:
            self.late[descriptor] = IN

    def _feed_sources(self) -> None:
        """Feed as many of the sources that are ready as a round has time for."""
        ready = self.ready
        for _ in range(min(len(ready), _WAVE)):
            connection = ready.popleft().unqueue()
            if connection is not None:
                self.guard(connection.feed, connection)

    def _tell_waiting(self) -> None:
        self.tell_waiting = False
        with self.progress:
            self.progress.notify_all()

    def _take_turns(self) -> None:
        """Carry on what takes turns, for as long as a round has time for it; once at least."""
        until = perf_counter() + _TURNS_TIME
        turns = self.turns
        ended_early: list[Turn] = []
        while turns:
            turn = turns.popleft()
            self.turned.append(turn)
            goes_on = turn.go_on(perf_counter() + _TURN)
            if goes_on is None:
                turn.end()
            elif goes_on:
                turns.insert(_AT_TURNS - 1, turn)
            else:
                ended_early.append(turn)
            if self.bulk >= _ROUND_BYTES or perf_counter() > until:
                break
        turns.extendleft(reversed(ended_early))

    def _send(self) -> None:
        """Send what a round has time for; the rest in the next one.

        Who is sent little doesn't wait for all who are sent much; one of those has its turn though.
        """
        if not self.dirty:
            return
        dirty, self.dirty = self.dirty, []
        last = self.bytes_out + _SENT_BYTES
        until = perf_counter() + _SENDING_TIME
        if len(dirty) > _FEW:
            long = [each for each in dirty if each.pending > SENT_TOGETHER]
            dirty = [each for each in dirty if each.pending <= SENT_TOGETHER]
            for each in long[:1]:
                self.guard(each.send, each)
            dirty += long[1:]
        for number, connection in enumerate(dirty):
            if self.bytes_out >= last or perf_counter() > until:
                self.dirty = dirty[number:] + self.dirty
                break
            try:  # as guard, which would be a call for each answer
                connection.send()
            except OSError:
                connection.close()
            except Exception:
                self.log.exception("a connection failed")
                connection.close()

    def _take_posted(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        self._woken = False
        posted = self._posted
        while posted:
            action, arguments = posted.popleft()
            action(*arguments)

    def _tick(self) -> None:
        self._next_tick = self.now + _TICK
        for front in self._fronts:
            front.tick()
        if self.is_full() and not self._blocked:
            self._blocked += self._find_blocked()
        if not self._unchecked:
            self._unchecked += list(self.connections.values())  # others may be added meanwhile

    def _check_deadlines(self) -> None:
        """Look at the deadlines of as many connections as a round has time for."""
        until = perf_counter() + _CHECKING_TIME
        unchecked = self._unchecked
        while unchecked:
            connection = unchecked.popleft()
            if self.connections.get(connection.link.descriptor) is connection:  # still
                late = connection.link.deadline < self.now
                self.guard(connection.close if late else connection.check_deadlines, connection)
            if perf_counter() > until:
                return

    def _close_doomed(self) -> None:
        until = perf_counter() + _CLOSING_TIME
        while self._doomed:
            connection = self._doomed.popleft()
            self.guard(connection.close, connection)
            if perf_counter() > until:
                return

    def _find_blocked(self) -> list[Connection]:
        """Return whom sources feed and who have taken nothing, those first for whom this is so for
        the longest."""
        blocked = [
            (since, connection)
            for connection in self.connections.values()
            if (since := connection.blocked_since()) is not None
        ]
        blocked.sort(key=lambda pair: pair[0])
        return [connection for _, connection in blocked]

    def _relieve(self) -> None:
        """Drop those who were found to be blocked and still are, until there is room again: as many
        in each round as there is time for."""
        until = perf_counter() + _CLOSING_TIME
        blocked = self._blocked
        while blocked:
            if not self.is_full(self.bounds.max_leaving_bytes // 4):
                blocked.clear()
                return
            connection = blocked.popleft()
            is_there = self.connections.get(connection.link.descriptor) is connection
            if is_there and connection.blocked_since() is not None:
                self.guard(connection.drop, connection)
            if perf_counter() > until:
                return

    def _is_drained(self) -> bool:
        if not self.late:
            for connection in list(self.connections.values()):
                connection.close_if_idle()
        return self._cut or not self.connections
