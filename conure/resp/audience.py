"""Who has subscribed to what, and messages on their way to them.

A message goes to the subscribers of its channel, and then to those of each pattern that its channel
matches, once for each. One to a *shard channel* goes to the subscribers of that alone: in a cluster
of Redis it would stay in a shard, of which there is one here. Nodes tell each other which of both
it is by the first byte of its *topic*, and the channel is the rest of that::

    63 6e 65 77 73   c: the channel "news"
    73 6e 65 77 73   s: the shard channel "news"

That may be thousands, so messages wait in a queue and are handed out in
steps, some milliseconds in each round of the reactor; what was said of one (``PUBLISH``'s count) is
a place in the same queue.

1. A client gets the messages of a channel in the order in which they came here, and none before its
   subscription is confirmed or after its end is.
2. Who may have missed a message is disconnected; it subscribes again. So is whoever doesn't read:
   with more than ``max_unread_bytes`` unsent, or with anything unsent for a second while
   subscribers have so much to read that others have to wait: to read a little now and then is not
   enough.
3. Messages that wait count with what clients have yet to read (``Reactor.leaving``), and so does
   each one that is sent, for every subscriber. While that is half of what it may be, and
   subscribers have half of that to read, the rest waits. A queue that is full of messages loses
   them, and the subscribers with them.

The reactor's thread, but for :meth:`Audience.deliver` and :meth:`Audience.lose`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple, Protocol

from conure.errors import BadRequest, ConureError
from conure.net.reactor import OUT, Reactor
from conure.resp.connection import RespConnection
from conure.resp.globs import Glob
from conure.resp.limits import Limits
from conure.resp.replies import Replies

__all__ = ["MESSAGE_BYTES", "Audience", "Kind", "Messenger", "Subscribed", "topic_of"]

MESSAGE_BYTES: Final = 128
"""Bytes that a message counts for beside its own, and the name of a subscription."""

_SHARE: Final = 0.002  # seconds of a round
_SENT: Final = 128  # connections that are to be sent to, after which a round hands out no more
_STEP: Final = 32  # clients between two looks at the time
_PATTERNS: Final = 16  # patterns between two looks at the time
_FEW_CHANNELS: Final = 8  # channels and patterns whose clients are given a message, likewise
_KNOWN_MATCHES: Final = 50_000  # channels and patterns of which is known that they match
_FEW_MATCHES: Final = 64  # that are counted at once
_LOOK_AGAIN: Final = 0.0005  # seconds, while there is no room
_SUM_AGAIN: Final = 0.01  # seconds between two sums of what subscribers have unread
_PARTS: Final = 256  # of a table
_RELIEF: Final = 0.25  # seconds between two looks at who doesn't read
_PATIENCE: Final = 1.0  # seconds to read all there is, while others have to wait

Message = tuple[bytes, bytes]
"""A topic, and what is published there."""


class Kind(Enum):
    """What a client subscribes to; the value is how the names of commands and replies begin."""

    CHANNEL = b""
    PATTERN = b"p"
    SHARD = b"s"


_TOPICS: Final = {b"c": Kind.CHANNEL, b"s": Kind.SHARD}
_FIRST: Final = {kind: first for first, kind in _TOPICS.items()}


def topic_of(kind: Kind, channel: bytes) -> bytes:
    """Return the topic of a channel, or of a shard channel."""
    return _FIRST[kind] + channel


class Messenger(Protocol):
    """What the audience asks of the node. Any thread."""

    def attach(self, audience: Audience) -> None:
        """Hand messages to an audience, which only takes note of them."""

    def publish(self, topic: bytes, message: bytes, reply: Callable[..., None]) -> None:
        """Publish a message; *reply* is told None, or the ConureError why not; any thread."""

    def listen(self, ready: Callable[..., None]) -> None:
        """Hand messages over from now on; *ready* is told likewise, when none is missed any more,
        and only takes note."""

    def rest(self) -> None:
        """Hand no messages over any more."""


class Subscribed:
    """What one client has subscribed to."""

    __slots__ = ("bytes", "names", "since")

    def __init__(self) -> None:
        self.since = 0.0  # when the client had nothing unread for the last time
        self.names: dict[Kind, dict[bytes, None]] = {kind: {} for kind in Kind}
        self.bytes = 0

    @property
    def channels(self) -> Collection[bytes]:
        """The channels."""
        return self.names[Kind.CHANNEL]

    @property
    def patterns(self) -> Collection[bytes]:
        """The patterns."""
        return self.names[Kind.PATTERN]

    @property
    def shards(self) -> Collection[bytes]:
        """The shard channels."""
        return self.names[Kind.SHARD]

    def count(self, kind: Kind) -> int:
        """Return how many there are as clients are told: those of shards are counted apart."""
        if kind is Kind.SHARD:
            return len(self.shards)
        return len(self.channels) + len(self.patterns)

    @property
    def all(self) -> int:
        """How many there are of all kinds."""
        return sum(map(len, self.names.values()))


class _Channel:
    """The subscribers of a channel, or of a pattern, which has a *glob*."""

    __slots__ = ("clients", "glob", "kind", "name")

    def __init__(self, kind: Kind, name: bytes, glob: Glob | None) -> None:
        self.kind = kind
        self.name = name
        self.glob = glob
        self.clients: dict[RespConnection, None] = {}


class _Table:
    """Channels by name, in parts: to look at a million of them at once would take too long."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: list[dict[bytes, _Channel]] = [{} for _ in range(_PARTS)]
        self.size = 0

    def get(self, name: bytes) -> _Channel | None:
        return self._parts[hash(name) % _PARTS].get(name)

    def add(self, channel: _Channel) -> None:
        """Add one of a name that isn't there."""
        self._parts[hash(channel.name) % _PARTS][channel.name] = channel
        self.size += 1

    def remove(self, name: bytes) -> None:
        del self._parts[hash(name) % _PARTS][name]
        self.size -= 1

    def parts(self) -> Iterator[list[_Channel]]:
        """Yield all channels, some at a time; whatever comes and goes meanwhile, each one that
        stays once."""
        for part in self._parts:
            yield [*part.values()]


class _Job(NamedTuple):
    """A message to be handed out, or, without one, a channel whose subscribers are counted."""

    kind: Kind
    channel: bytes
    message: bytes | None
    told: Callable[[int], None] | None


class Audience:
    """All subscribers of one front end."""

    def __init__(self, reactor: Reactor, limits: Limits, messenger: Messenger) -> None:
        self._reactor = reactor
        self._limits = limits
        self._messenger = messenger
        self._tables = {kind: _Table() for kind in Kind}
        self._clients: dict[RespConnection, Subscribed] = {}
        self._count = 0  # of subscriptions
        self._bytes = 0  # of their names
        self._waiting = 0  # for listen()
        self._version = 0  # of the patterns
        self._matched: OrderedDict[bytes, list[_Channel]] = OrderedDict()  # patterns, by channel
        self._matches = 0  # of all channels there
        self._jobs: deque[_Job] = deque()
        self._job_bytes = 0
        self._steps: Iterator[bool] = iter(())  # of the job that is under way
        self._is_pumping = False
        self._next_relief = 0.0
        self._owed = 0  # bytes that subscribers have unread at most; see _is_crowded
        self._next_sum = 0.0
        self.is_heard = False
        """Whether no message is missed that is published from now on."""
        self.delivered = 0
        self.dropped = 0
        """Subscribers that were disconnected because they didn't read."""
        messenger.attach(self)

    # -- any thread -------------------------------------------------------------------------------

    def deliver(self, messages: Sequence[Message]) -> None:
        """Take note of messages; they are handed out by the reactor."""
        self._reactor.post(self.take, messages)

    def lose(self) -> None:
        """Take note that all who have subscribed may have missed a message."""
        self._reactor.post(self.lose_all)

    # -- who has subscribed -----------------------------------------------------------------------

    @property
    def subscribers(self) -> int:
        """How many clients have subscribed."""
        return len(self._clients)

    @property
    def channels(self) -> int:
        """How many channels have subscribers."""
        return self._tables[Kind.CHANNEL].size

    @property
    def patterns(self) -> int:
        """How many different patterns are subscribed to."""
        return self._tables[Kind.PATTERN].size

    @property
    def shards(self) -> int:
        """How many shard channels have subscribers."""
        return self._tables[Kind.SHARD].size

    @property
    def subscriptions(self) -> int:
        """How many subscriptions there are."""
        return self._count

    def names(self, kind: Kind) -> Iterator[list[bytes]]:
        """Yield the channels of a kind that have subscribers, some at a time."""
        for part in self._tables[kind].parts():
            yield [each.name for each in part]

    def count_of(self, kind: Kind, channel: bytes) -> int:
        """Return how many have subscribed to a channel by its name."""
        found = self._tables[kind].get(channel)
        return len(found.clients) if found else 0

    def names_of(self, client: RespConnection, kind: Kind) -> list[bytes]:
        """Return what a client has subscribed to."""
        subscribed = self._clients.get(client)
        return [*subscribed.names[kind]] if subscribed else []

    def count_for(self, client: RespConnection, kind: Kind) -> int:
        """Return how many subscriptions a client has, as it is told."""
        subscribed = self._clients.get(client)
        return subscribed.count(kind) if subscribed else 0

    def check(self, client: RespConnection, kind: Kind, names: Iterable[bytes]) -> None:
        """Raise BadRequest if a client can't subscribe to names as well: there are too many."""
        limits = self._limits
        subscribed = self._clients.get(client) or Subscribed()
        own, table = subscribed.names[kind], self._tables[kind]
        new = {name for name in names if name not in own}
        size = sum(map(len, new)) + len(new) * MESSAGE_BYTES
        patterns = len(new) if kind is Kind.PATTERN else 0
        if (
            subscribed.all + len(new) > limits.max_subscriptions
            or subscribed.bytes + size
            > limits.max_subscribed_bytes + limits.max_subscriptions * MESSAGE_BYTES
            or len(subscribed.patterns) + patterns > limits.max_patterns
        ):
            raise BadRequest(
                f"a connection may have {limits.max_subscriptions:,} subscriptions, "
                f"{limits.max_patterns:,} patterns among them, and "
                f"{limits.max_subscribed_bytes:,} bytes of their names"
            )
        patterns = sum(table.get(name) is None for name in new) if patterns else 0
        if (
            self._count + len(new) > limits.max_all_subscriptions
            or self._bytes + size > limits.max_all_subscribed_bytes
            or self.patterns + patterns > limits.max_all_patterns
        ):
            raise BadRequest("this node has too many subscriptions; unsubscribe from some")

    def subscribe(self, client: RespConnection, kind: Kind, name: bytes, glob: Glob | None) -> int:
        """Subscribe a client, after :meth:`check`, to a pattern with its *glob*; return how many
        subscriptions it has."""
        subscribed = self._clients.get(client)
        if subscribed is None:
            subscribed = self._clients[client] = Subscribed()
            client.session.subscriptions = subscribed
            client.session.refresh()
        own, table = subscribed.names[kind], self._tables[kind]
        if name not in own:
            own[name] = None
            found = table.get(name)
            if found is None:
                found = _Channel(kind, name, glob)
                table.add(found)
                if glob is not None:
                    self._forget_matched()
            found.clients[client] = None
            self._note(subscribed, 1, len(name))
        return subscribed.count(kind)

    def unsubscribe(self, client: RespConnection, kind: Kind, name: bytes) -> int:
        """Undo that; return how many subscriptions the client still has."""
        subscribed = self._clients.get(client)
        if subscribed is None:
            return 0
        own, table = subscribed.names[kind], self._tables[kind]
        if name in own:
            del own[name]
            self._remove(client, name, table)
            self._note(subscribed, -1, -len(name))
        if not subscribed.all:
            self._forget(client)
        return subscribed.count(kind)

    def leave(self, client: RespConnection) -> None:
        """Undo all subscriptions of a client."""
        subscribed = self._clients.get(client)
        if subscribed is None:
            return
        for kind, own in subscribed.names.items():
            for name in own:
                self._remove(client, name, self._tables[kind])
            self._note(subscribed, -len(own), -sum(map(len, own)))
        self._forget(client)

    def lose_all(self) -> None:
        """Disconnect all who have subscribed."""
        if self.is_heard:
            self.is_heard = False
            self._messenger.rest()
        self._reactor.close_soon(self._clients)
        self._tables, self._clients = {kind: _Table() for kind in Kind}, {}
        self._forget_matched()
        self._count = self._bytes = 0

    def listen(self, ready: Callable[[ConureError | None], None]) -> None:
        """Have messages handed over; *ready* is told None when none is missed any more that is
        published from then on, or why that can't be."""
        self._waiting += 1
        self._messenger.listen(partial(self._reactor.post, self._take_ready, ready))

    # -- messages ---------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether too many messages wait to be handed out."""
        return self._job_bytes > self._limits.max_queued_bytes

    @property
    def is_busy(self) -> bool:
        """Whether half as many wait."""
        return 2 * self._job_bytes > self._limits.max_queued_bytes

    def take(self, messages: Sequence[Message]) -> None:
        """Take in messages that are to be handed out."""
        if not self._clients or self._reactor.draining:
            return
        for topic, message in messages:
            kind = _TOPICS.get(topic[:1])
            if kind is not None:  # or a later release knows of other topics
                self._add(_Job(kind, topic[1:], message, None))
        if self._job_bytes > 2 * self._limits.max_queued_bytes:
            self.lose_all()

    def count(self, channel: bytes, told: Callable[[int], None]) -> None:
        """Tell how many subscribers a message to a channel has, behind the messages that wait."""
        matched = self._matched.get(channel) if self.patterns else ()
        if self._reactor.draining or (matched is not None and len(matched) <= _FEW_MATCHES):
            own = self.count_of(Kind.CHANNEL, channel)
            told(own + sum(len(each.clients) for each in matched or ()))
        else:
            self._add(_Job(Kind.CHANNEL, channel, None, told))

    # -- private ----------------------------------------------------------------------------------

    def _note(self, subscribed: Subscribed, count: int, size: int) -> None:
        size += count * MESSAGE_BYTES
        subscribed.bytes += size
        self._bytes += size
        self._count += count

    def _remove(self, client: RespConnection, name: bytes, table: _Table) -> None:
        found = table.get(name)
        assert found is not None
        del found.clients[client]
        if not found.clients:
            table.remove(name)
            if found.glob is not None:
                self._forget_matched()

    def _forget(self, client: RespConnection) -> None:
        del self._clients[client]
        client.session.subscriptions = None
        client.session.refresh()
        self._rest_if_empty()

    def _take_ready(
        self, ready: Callable[[ConureError | None], None], error: ConureError | None
    ) -> None:
        self._waiting -= 1
        self.is_heard |= error is None
        ready(error)
        self._rest_if_empty()

    def _rest_if_empty(self) -> None:
        """Ask for no more messages where nobody has subscribed, or is about to."""
        if self.is_heard and not (self._clients or self._waiting):
            self.is_heard = False
            self._messenger.rest()

    def _forget_matched(self) -> None:
        self._matched.clear()
        self._matches = 0
        self._version += 1

    def _add(self, job: _Job) -> None:
        size = _size_of(job)
        self._jobs.append(job)
        self._job_bytes += size
        self._reactor.leaving += size
        self._go_on()

    def _go_on(self, seconds: float = 0.0) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            self._reactor.call_later(self._pump, seconds)

    def _pump(self) -> None:
        """Do as much as a round has time for."""
        self._is_pumping = False
        until = perf_counter() + _SHARE
        reactor = self._reactor
        if reactor.draining:
            self._end_jobs()
        while True:
            for must_wait in self._steps:
                if must_wait or perf_counter() > until or len(reactor.dirty) > _SENT:
                    self._go_on(_LOOK_AGAIN if must_wait else 0.0)
                    return
            if not self._jobs:
                return
            self._steps = self._carry_out(self._jobs.popleft())

    def _end_jobs(self) -> None:
        """Hand nothing out any more: all connections are about to be closed."""
        self._steps = iter(())
        for job in self._jobs:
            if job.told is not None:
                job.told(self.count_of(job.kind, job.channel))
        self._jobs.clear()
        self._reactor.leaving -= self._job_bytes
        self._job_bytes = 0

    def _carry_out(self, job: _Job) -> Iterator[bool]:
        """Hand a message out, or count its subscribers, in steps; yield whether there is no room
        for more."""
        kind, channel, message, told = job
        matched: list[_Channel] = []
        if self.patterns and kind is Kind.CHANNEL:
            yield from self._match(channel, matched)
        if told is not None:
            told(self.count_of(kind, channel) + sum(len(each.clients) for each in matched))
        if message is not None:
            own = self._tables[kind].get(channel)
            for number, each in enumerate([*([own] if own else []), *matched], 1):
                yield from self._hand_out(each, channel, message)
                if number % _FEW_CHANNELS == 0:  # of which each may have few clients
                    while self._is_crowded():
                        yield True
                    yield False
        size = _size_of(job)
        self._job_bytes -= size
        self._reactor.leaving -= size
        yield False

    def _match(self, channel: bytes, matched: list[_Channel]) -> Iterator[bool]:
        """Find the patterns that a channel matches."""
        known = self._matched.get(channel)
        if known is not None:
            matched += known
            return
        version = self._version
        patterns = [each for part in self._tables[Kind.PATTERN].parts() for each in part]
        for number, each in enumerate(patterns, 1):
            assert each.glob is not None
            if each.glob.matches(channel):
                matched.append(each)
            if each.glob.is_costly or number % _PATTERNS == 0:
                yield False
        if version == self._version:
            self._matched[channel] = [*matched]
            self._matches += len(matched) + 1
            while self._matches > _KNOWN_MATCHES:
                _, oldest = self._matched.popitem(last=False)
                self._matches -= len(oldest) + 1

    def _hand_out(self, to: _Channel, channel: bytes, message: bytes) -> Iterator[bool]:
        frames: dict[int, bytes] = {}
        for number, client in enumerate([*to.clients], 1):
            if client in to.clients:  # still
                protocol = client.session.protocol
                frame = frames.get(protocol)
                if frame is None:
                    frame = frames[protocol] = _frame(protocol, to, channel, message)
                while self._must_send_first(client, frame):
                    yield True
                self._give(client, frame)
            if number % _STEP == 0 or len(message) > _STEP << 10:
                while self._is_crowded():
                    yield True
                yield False

    def _give(self, client: RespConnection, frame: bytes) -> None:
        if client.is_last:
            return
        if self._is_too_much(client, frame):
            self._drop(client)
        else:
            subscribed = self._clients.get(client)
            if not client.pending and subscribed is not None:
                subscribed.since = self._reactor.now
            client.push(frame)
            self._owed += len(frame)
            self.delivered += 1

    def _is_too_much(self, client: RespConnection, frame: bytes) -> bool:
        unread = client.pending
        return unread > 0 and unread + len(frame) > self._limits.max_unread_bytes

    def _must_send_first(self, client: RespConnection, frame: bytes) -> bool:
        """Tell whether a client has so much unsent only because it wasn't its turn yet."""
        return self._is_too_much(client, frame) and not client.interest & OUT

    def _drop(self, client: RespConnection) -> None:
        self.dropped += 1
        self._reactor.guard(client.close, client)

    def _is_crowded(self) -> bool:
        """Tell whether subscribers have so much to read that messages have to wait; disconnect now
        and then who keeps others waiting: who has not read all that it had for some time."""
        reactor = self._reactor
        most = reactor.bounds.max_leaving_bytes // 2
        if reactor.leaving - self._job_bytes <= most:
            return False
        if reactor.now >= self._next_sum:  # what was sent since isn't owed any more
            self._next_sum = reactor.now + _SUM_AGAIN
            self._owed = sum(client.pending for client in self._clients)
        if self._owed <= most // 2:
            return False  # others' clients have it to read, and may do as they like
        if reactor.now >= self._next_relief:
            self._next_relief = reactor.now + _RELIEF
            self._relieve()
        return True

    def _relieve(self) -> None:
        """Disconnect who has not read all that it had for some time: as many as a round has time
        for, the others in the next."""
        now = self._reactor.now
        until = perf_counter() + _SHARE
        for client, subscribed in [*self._clients.items()]:
            if client.interest & OUT and now - subscribed.since > _PATIENCE:
                self._drop(client)
                if perf_counter() > until:
                    self._next_relief = now + _LOOK_AGAIN
                    return


def _frame(protocol: int, to: _Channel, channel: bytes, message: bytes) -> bytes:
    """Return a message as a client is sent it."""
    replies = Replies(protocol)
    replies.push(3 if to.glob is None else 4)
    replies.bulk(to.kind.value + b"message")
    if to.glob is not None:
        replies.bulk(to.name)
    replies.bulk(channel)
    replies.bulk(message)
    return replies.take()


def _size_of(job: _Job) -> int:
    return len(job.channel) + len(job.message or b"") + MESSAGE_BYTES
