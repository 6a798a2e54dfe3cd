"""Those who watch what happens to keys, and long polls.

The writer appends to a :class:`History` (history.py) and goes on. All else is done by one thread,
the *pump* of :class:`Watchers`: it reads the history at its own pace, puts each event into bytes
once, and gives these to every sink that asked for the key. What is written while it works is sent
with the next wave, and between two waves it rests, the longer the more sinks it has served:
watchers cost writes a bounded share of the interpreter, and latency grows instead.

Events are sent as server-sent events (HTML standard, section 9.2)::

    event: put              put, delete or expire
    id: 1207                the revision; 1207.1, 1207.2, ... for all but its last event, if it
    data: {"key":"a",...    has several: key, value (null if it is gone), revision, version; for
                            a watch that asked for it the value before (prev), if it is known

    event: progress         now and then: everything of the range up to this revision was sent
    id: 1300
    data: {"revision":1300}

    event: end              the watch is over, and why; the answer ends after it
    data: {"reason":"..."}

Where one of key and values isn't UTF-8, all are in base64 and ``"encoding":"base64"`` stands beside
them.

1. A watch is given each event of its range from its position on, once, in order, or it is ended.
   Nothing is skipped: a sink that lags is served from the history at its own pace, and its watch
   ends when the history has gone past it. So the last id a client has seen is the position from
   which another watch goes on without loss or repetition (:func:`parse_event_id`).
2. Sinks and replies are called by the pump alone, with no lock held. One that raises ends its own
   watch or poll and no other.

What is public is for any thread, but for ``Watchers.turn``.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from json import JSONEncoder
from time import monotonic, sleep
from typing import Any, Generic, Protocol, TypeVar

from conure.commands import EventKind, as_texts, prefix_end
from conure.errors import Compacted, Unavailable
from conure.metrics import Registry
from conure.state.history import Change, History, Position, View, revision_of

__all__ = [
    "PROGRESS_INTERVAL",
    "Sink",
    "SinkT",
    "Wait",
    "Watch",
    "Watchers",
    "log",
]
PROGRESS_INTERVAL = 5.0  # seconds

_STEP = 1 << 20  # bytes of a wave, or one event
_PART = 64 << 10  # bytes, or one event, that one who is behind is sent at a time
_TURN = 0.005  # seconds for those who catch up, between two looks at what is new
_REST = 0.002  # seconds between two waves at least
_REST_EACH = 20e-6  # seconds for each delivery of a wave; it takes about half of that, all told
_LONGEST_REST = 0.1
_LOOK_AGAIN = 0.02  # seconds after which a sink that lags may have room

_STOPPING = "this node is stopping"
_LOST = "the history has gone past this watch; read the keys again and watch from there"

log = logging.getLogger("conure.watch")
_kind_names = {kind.value: kind.name.lower() for kind in EventKind}
_quote = JSONEncoder(ensure_ascii=False).encode


# -- those who want to know ------------------------------------------------------------------------


class Sink(Protocol):
    """Where the bytes of one watch go: an HTTP ``Stream``, say. The pump calls it.

    A sink that has up to 64 KiB unsent may be given 1 MiB more and an event of any length.
    """

    @property
    def unsent(self) -> int:
        """How many bytes were given to it and are not on their way yet. Never raises."""

    def send(self, data: bytes) -> bool:
        """Take bytes, without blocking. False: it takes no more, and the watch is over."""

    def finish(self) -> None:
        """End the answer in good order."""


SinkT = TypeVar("SinkT", bound=Sink)


class _Interest:
    """In a range of keys, from a position on. The pump's, but for what doesn't change."""

    __slots__ = ("at", "end", "is_live", "is_over", "position", "shows_previous", "start")

    def __init__(self, start: bytes, end: bytes | None, position: Position) -> None:
        assert end is None or start < end
        self.start = start
        self.end = end
        self.position = position
        self.shows_previous = False
        self.at: int | None = None  # the number of the next event to look at, once it is known
        self.is_live = False  # whether it gets what the pump reads; else it is behind, or over
        self.is_over = False


class Watch(_Interest, Generic[SinkT]):
    """A range of keys that is watched; made by :meth:`Watchers.watch`."""

    __slots__ = ("_watchers", "sink")

    def __init__(
        self,
        watchers: Watchers[SinkT],
        start: bytes,
        end: bytes | None,
        position: Position,
        sink: SinkT,
        *,
        shows_previous: bool,
    ) -> None:
        super().__init__(start, end, position)
        self.shows_previous = shows_previous
        self._watchers = watchers
        self.sink = sink

    def cancel(self) -> None:
        """End the watch, because its client has left; the sink may be called a moment longer."""
        self._watchers.cancel(self)


class Wait(_Interest):
    """A long poll; made by :meth:`Watchers.wait_for`."""

    __slots__ = ("_give_up", "deadline", "reply")

    def __init__(
        self,
        give_up: Callable[[Wait], None],
        start: bytes,
        end: bytes | None,
        position: Position,
        deadline: float,
        reply: Callable[[bool], None],
    ) -> None:
        super().__init__(start, end, position)
        self._give_up = give_up
        self.deadline = deadline
        self.reply = reply

    def give_up(self) -> None:
        """Wait no longer: the reply comes now, with False unless it was on its way. Any thread."""
        self._give_up(self)


class _Group(Generic[SinkT]):
    """All who are interested in the same range and are shown the same of it, and what they are to
    be sent in this wave."""

    __slots__ = ("frames", "shows_previous", "waits", "watches")

    def __init__(self, shows_previous: bool) -> None:
        self.shows_previous = shows_previous
        self.watches: dict[Watch[SinkT], SinkT] = {}
        self.waits: dict[Wait, None] = {}
        self.frames: list[bytes] = []

    def members(self) -> list[Watch[SinkT] | Wait]:
        return [*self.watches, *self.waits]


class _Groups(Generic[SinkT]):
    """The groups that a key belongs to, found without looking at all of them.

    A single key costs a look-up, all prefixes one for each length there is, and other ranges a
    comparison each. All of them are *shows_previous* or none is.
    """

    def __init__(self, *, shows_previous: bool = False) -> None:
        self._shows_previous = shows_previous
        self._keys: dict[bytes, _Group[SinkT]] = {}
        self._prefixes: dict[int, dict[bytes, _Group[SinkT]]] = {}
        self._ranges: dict[tuple[bytes, bytes | None], _Group[SinkT]] = {}

    def __bool__(self) -> bool:
        return bool(self._keys or self._prefixes or self._ranges)

    def __iter__(self) -> Iterator[_Group[SinkT]]:
        yield from self._keys.values()
        for table in self._prefixes.values():
            yield from table.values()
        yield from self._ranges.values()

    def of(self, key: bytes) -> list[_Group[SinkT]]:
        """Return the groups of a key."""
        found = [self._keys[key]] if key in self._keys else []
        for length, table in self._prefixes.items():
            if group := table.get(key[:length]):
                found.append(group)
        for (start, end), group in self._ranges.items():
            if start <= key and (end is None or key < end):
                found.append(group)
        return found

    def add(self, interest: Watch[SinkT] | Wait) -> None:
        table, name = self._place(interest)
        group = table.get(name)
        if group is None:
            group = table[name] = _Group(self._shows_previous)
        if isinstance(interest, Watch):
            group.watches[interest] = interest.sink
        else:
            group.waits[interest] = None

    def remove(self, interest: Watch[SinkT] | Wait) -> None:
        table, name = self._place(interest)
        group = table[name]
        if isinstance(interest, Watch):
            del group.watches[interest]
        else:
            del group.waits[interest]
        if not group.watches and not group.waits:
            del table[name]
            if not table and table is not self._keys and table is not self._ranges:
                del self._prefixes[len(interest.start)]

    def _place(self, interest: _Interest) -> tuple[dict[Any, _Group[SinkT]], object]:
        """Return the table of an interest's group, and the group's name in it."""
        start, end = interest.start, interest.end
        if end == start + b"\0":
            return self._keys, start
        if end == prefix_end(start):
            return self._prefixes.setdefault(len(start), {}), start
        return self._ranges, (start, end)


class _Everybody(Generic[SinkT]):
    """The groups of those who are shown the value before, and of all others; used like one."""

    def __init__(self) -> None:
        self._plain: _Groups[SinkT] = _Groups(shows_previous=False)
        self._looking_back: _Groups[SinkT] = _Groups(shows_previous=True)

    def __bool__(self) -> bool:
        return bool(self._plain or self._looking_back)

    def __iter__(self) -> Iterator[_Group[SinkT]]:
        yield from self._plain
        yield from self._looking_back

    def of(self, key: bytes) -> list[_Group[SinkT]]:
        found = self._plain.of(key)
        return found + self._looking_back.of(key) if self._looking_back else found

    def add(self, interest: Watch[SinkT] | Wait) -> None:
        self._for(interest).add(interest)

    def remove(self, interest: Watch[SinkT] | Wait) -> None:
        self._for(interest).remove(interest)

    def _for(self, interest: _Interest) -> _Groups[SinkT]:
        return self._looking_back if interest.shows_previous else self._plain


class Watchers(Generic[SinkT]):
    """Everybody who watches or polls, and the pump that serves them.

    *broadcast* gives the same bytes to many sinks at a lower price, as HTTP's ``broadcast``
    does; it doesn't tell which of them take no more, so whoever learns that cancels the watch.
    While *is_full* says that too much waits to be read by clients, nobody is given events: those
    who are up to date fall behind, and go on from there when there is room.
    Every *progress_interval* seconds, and whenever half of the history has gone by, those who are
    up to date are told how far that is.
    """

    def __init__(
        self,
        history: History,
        registry: Registry,
        *,
        broadcast: Callable[[Sequence[SinkT], bytes], None] | None = None,
        is_full: Callable[[], bool] = bool,
        progress_interval: float = PROGRESS_INTERVAL,
    ) -> None:
        self._history = history
        self._broadcast = broadcast
        self._is_full = is_full
        self._progress_interval = progress_interval
        self._bell = threading.Event()
        self._orders: deque[Callable[[], object]] = deque()  # for the pump, from any thread
        self._lock = threading.Lock()  # no order but a cancellation comes after the stop
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        # All below is the pump's.
        self._at = history.end()  # those in groups have got everything before
        self._groups: _Everybody[SinkT] = _Everybody()
        self._behind: deque[Watch[SinkT] | Wait] = deque()
        self._deadlines: list[tuple[float, int, Wait]] = []  # a heap, with some that are over
        self._numbers = count()
        self._frames: dict[tuple[int, bool], bytes] = {}  # by the event's number, within a turn
        self._deliveries = 0  # in this turn
        self._told = history.revision  # of the last progress
        self._next_progress = monotonic() + progress_interval
        self._watches: dict[Watch[SinkT], None] = {}  # all there are
        self._waits: dict[Wait, None] = {}
        self._sent = registry.counter(
            "conure_watch_events_sent_total", "Events sent, counted for each watch they went to."
        )
        self._dropped = registry.counter(
            "conure_watches_dropped_total",
            "Watches ended because the history had gone past them, or was lost.",
        )
        registry.gauge_callback("conure_watches", "Watches now.", lambda: len(self._watches))
        registry.gauge_callback("conure_long_polls", "Long polls now.", lambda: len(self._waits))
        registry.gauge_callback(
            "conure_history_floor_revision",
            "The revision behind which all events are kept; no watch can begin at it or before.",
            lambda: history.floor,
        )
        registry.gauge_callback(
            "conure_history_events", "Events that are kept.", lambda: history.events
        )
        registry.gauge_callback(
            "conure_history_bytes", "Memory taken by the events kept.", lambda: history.bytes
        )

    def start(self) -> None:
        """Start the pump."""
        self._thread = threading.Thread(target=self._run, name="watch-pump", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Bring those who are up to date to the end of the history, and end everything.

        The others go on elsewhere from where they are. Returns when the pump has ended.
        """
        with self._lock:
            self._is_stopping = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            self._finish()

    def check(self, position: Position) -> None:
        """Raise what speaks against a watch from a position, as long as that can be answered.

        Compacted if it isn't behind the history's floor, Unavailable when stopping. Any thread.
        """
        if self._is_stopping:
            raise Unavailable(_STOPPING)
        floor = self._history.floor
        if position.revision <= floor:
            raise Compacted(floor + 1)

    def keep_previous(self) -> None:
        """From the next entry that is applied let events have the value before. Any thread."""
        self._history.want_previous()

    def watch(
        self,
        start: bytes,
        end: bytes | None,
        position: Position,
        sink: SinkT,
        *,
        shows_previous: bool = False,
    ) -> Watch[SinkT]:
        """Send the events of the keys from *start* up to but not including *end* to a sink.

        None as *end* is without end; ``start + b"\\0"`` is the key alone, ``prefix_end(start)`` all
        that begin with it. All events from *position* on are sent, however old or new, and before
        them a progress event, so that even who has seen none knows where to go on. With
        *shows_previous* they have the value before where it is known (:meth:`keep_previous`).

        What :meth:`check` has not refused may be lost before the pump comes to it; the watch ends
        then like any other. Raises Unavailable when stopping. Any thread; the sink may be called
        before this returns.
        """
        watch = Watch(self, start, end, position, sink, shows_previous=shows_previous)
        self._order(partial(self._add_watch, watch))
        return watch

    def wait_for(
        self,
        start: bytes,
        end: bytes | None,
        after_revision: int,
        deadline: float,
        reply: Callable[[bool], None],
    ) -> Wait:
        """Call *reply* once: with True at the first event of a range after a revision.

        At once if that has happened, or if the history doesn't reach back so far: it may have
        happened then. With False at the *deadline*, in ``time.monotonic()``'s seconds, and when
        stopping. Raises Unavailable if it was stopped before. Any thread; the pump replies.
        """
        position = Position(after_revision + 1)
        wait = Wait(self._give_up, start, end, position, deadline, reply)
        self._order(partial(self._add_wait, wait))
        return wait

    def cancel(self, watch: Watch[SinkT]) -> None:
        """End a watch without telling its sink. Any thread."""
        self._orders.append(partial(self._remove, watch))
        self._bell.set()

    def turn(self) -> float:
        """Serve everybody once and return how many seconds to rest. The pump; a simulation."""
        began = monotonic()
        self._deliveries = 0
        orders = self._orders
        for _ in range(len(orders)):
            orders.popleft()()
        view = self._history.view()
        if self._at < view.first:
            self._lose_all(view)
        self._send_wave(view)
        self._catch_up(view, began + _TURN)
        now = monotonic()
        self._expire(now)
        if self._at == view.end and (now >= self._next_progress or view.middle > self._told):
            self._tell_progress(view.revision, now)
        spent = monotonic() - began
        if not self._deliveries and spent < _REST:
            return 0.0
        return min(max(_REST, self._deliveries * _REST_EACH, spent), _LONGEST_REST)

    # -- the pump --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_stopping:
            self._bell.clear()
            try:
                rest = self.turn()
            except Exception:
                log.exception("delivering events failed")
                self._end_all("internal error; the log of this node has more")
                self._at = self._history.end()
                rest = _LONGEST_REST
            sleep(rest)
            if not (rest and self._behind):
                self._wait()
        self._finish()

    def _wait(self) -> None:
        """Sleep until there is something to do."""
        if self._groups:
            self._history.call_once(self._bell.set)
            if self._history.end() != self._at:
                return
        until = self._next_progress
        if self._deadlines:
            until = min(until, self._deadlines[0][0])
        timeout = max(until - monotonic(), 0.0)
        self._bell.wait(min(timeout, _LOOK_AGAIN) if self._behind else timeout)

    def _finish(self) -> None:
        self._next_progress = 0.0
        while not self._next_progress:  # told to those who are up to date, which they are then
            self.turn()
        self._end_all(_STOPPING)

    def _order(self, order: Callable[[], object]) -> None:
        with self._lock:
            if self._is_stopping:
                raise Unavailable(_STOPPING)
            self._orders.append(order)
        self._bell.set()

    def _give_up(self, wait: Wait) -> None:
        self._orders.append(partial(self._answer, wait, False))
        self._bell.set()

    # -- coming and going ------------------------------------------------------------------------

    def _add_watch(self, watch: Watch[SinkT]) -> None:
        self._watches[watch] = None
        self._behind.append(watch)
        self._send([watch], _progress_frame(watch.position))

    def _add_wait(self, wait: Wait) -> None:
        self._waits[wait] = None
        self._behind.append(wait)
        heappush(self._deadlines, (wait.deadline, next(self._numbers), wait))
        if len(self._deadlines) > 2 * len(self._waits) + 64:
            self._deadlines = [due for due in self._deadlines if not due[2].is_over]
            heapify(self._deadlines)

    def _remove(self, interest: Watch[SinkT] | Wait) -> bool:
        """Take one out, wherever it is; False if that has happened before."""
        if interest.is_over:
            return False
        interest.is_over = True  # and if it is behind, it will be left out there
        if interest.is_live:
            self._groups.remove(interest)
        if isinstance(interest, Watch):
            del self._watches[interest]
        else:
            del self._waits[interest]
        return True

    def _end(self, watch: Watch[SinkT], reason: str) -> None:
        if self._remove(watch):
            data = f'event: end\ndata: {{"reason":{_quote(reason)}}}\n\n'.encode()
            try:
                watch.sink.send(data)
                watch.sink.finish()
            except Exception:
                log.exception("the sink of a watch failed")

    def _answer(self, wait: Wait, has_changed: bool) -> None:
        if self._remove(wait):
            self._deliveries += 1
            try:
                wait.reply(has_changed)
            except Exception:
                log.exception("the reply to a long poll failed")

    def _lose(self, interest: Watch[SinkT] | Wait) -> None:
        if isinstance(interest, Watch):
            self._dropped.inc()
            self._end(interest, _LOST)
        else:
            self._answer(interest, True)

    def _lose_all(self, view: View) -> None:
        """The history has gone past those who were up to date; the others see for themselves."""
        live = [interest for group in self._groups for interest in group.members()]
        for interest in live:
            self._lose(interest)
        self._at = view.first

    def _end_all(self, reason: str) -> None:
        for watch in list(self._watches):
            self._end(watch, reason)
        for wait in list(self._waits):
            self._answer(wait, False)

    def _expire(self, now: float) -> None:
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            self._answer(heappop(deadlines)[2], False)

    # -- sending ---------------------------------------------------------------------------------

    def _send_wave(self, view: View) -> None:
        """Give those who are up to date what is new, as much of it as goes in one step."""
        if not self._groups:
            self._at = view.end
            return
        at = began = self._at
        size = 0
        to_send: list[_Group[SinkT]] = []
        for events, i in view.since(at):
            for group in self._groups.of(events[i][2]):
                for wait in list(group.waits):
                    self._answer(wait, True)
                if group.watches:
                    if not group.frames:
                        to_send.append(group)
                    frame = self._frame(at, events, i, group.shows_previous)
                    group.frames.append(frame)
                    size += len(frame)
            at += 1
            if size >= _STEP:
                break
        self._at = at
        self._frames.clear()
        for group in to_send:
            self._put_slow_behind(group, began)
            self._sent.inc(len(group.frames) * len(group.watches))
            self._send(list(group.watches), b"".join(group.frames))
            group.frames.clear()

    def _put_slow_behind(self, group: _Group[SinkT], at: int) -> None:
        """Let those who haven't taken the waves before go on from here at their own pace."""
        is_full = self._is_full()
        slow = [watch for watch, sink in group.watches.items() if is_full or sink.unsent > _PART]
        for watch in slow:
            self._groups.remove(watch)
            watch.is_live = False
            watch.at = at
            self._behind.append(watch)

    def _catch_up(self, view: View, until: float) -> None:
        """Let those who are behind have a part of what they miss, in turn."""
        for _ in range(len(self._behind)):
            interest = self._behind.popleft()
            if not interest.is_over:
                self._advance(interest, view)
            if monotonic() > until:
                break
        self._frames.clear()

    def _advance(self, interest: Watch[SinkT] | Wait, view: View) -> None:
        """Bring one who is behind nearer to those who are up to date, or among them."""
        at = interest.at
        if at is None and interest.position.revision > view.floor:
            at = view.find(interest.position)
            if at is None:  # not yet written, or not yet known to this node
                self._behind.append(interest)
                return
        if at is None or at < view.first:
            self._lose(interest)
            return
        if isinstance(interest, Watch):
            interest.at = self._read_on(interest, view, at)
        elif any(True for _ in view.matching(interest.start, interest.end, at, self._at)):
            self._answer(interest, True)
        else:
            interest.at = max(at, self._at)
        if interest.is_over:
            return
        if interest.at == self._at:
            interest.is_live = True
            self._groups.add(interest)
        else:
            self._behind.append(interest)

    def _read_on(self, watch: Watch[SinkT], view: View, at: int) -> int:
        """Send a watch the next part of what it misses and return where it goes on."""
        if watch.sink.unsent or self._is_full():
            return at
        frames = []
        size = 0
        stop = max(at, self._at)
        for number, events, i in view.matching(watch.start, watch.end, at, self._at):
            frame = self._frame(number, events, i, watch.shows_previous)
            frames.append(frame)
            size += len(frame)
            if size >= _PART:
                stop = number + 1
                break
        if frames:
            self._sent.inc(len(frames))
            self._send([watch], b"".join(frames))
        return stop

    def _tell_progress(self, revision: int, now: float) -> None:
        self._told = revision
        self._next_progress = now + self._progress_interval
        live = [watch for group in self._groups for watch in group.watches]
        if live:
            self._send(live, _progress_frame(Position(revision + 1)))

    def _send(self, watches: Sequence[Watch[SinkT]], data: bytes) -> None:
        """Give the same bytes to some sinks, and end the watches of those that refuse them."""
        self._deliveries += len(watches)
        if self._broadcast and len(watches) > 1:
            self._broadcast([watch.sink for watch in watches], data)
            return
        for watch in watches:
            try:
                takes_more = watch.sink.send(data)
            except Exception:
                log.exception("the sink of a watch failed")
                takes_more = False
            if not takes_more:  # its client has left, mostly
                self._remove(watch)

    def _frame(self, number: int, events: Sequence[Change], i: int, shows_previous: bool) -> bytes:
        """Return the bytes of an event, made once in a turn."""
        name = number, shows_previous
        frame = self._frames.get(name)
        if frame is None:
            frame = self._frames[name] = _event_frame(events, i, shows_previous)
        return frame


def _event_frame(events: Sequence[Change], i: int, shows_previous: bool) -> bytes:
    event = events[i]
    revision, kind, key, value, version = event[:5]
    event_id = str(revision)
    if i + 1 < len(events) and events[i + 1][0] == revision:
        event_id += f".{i + 1 - bisect_left(events, revision, key=revision_of)}"
    known = event[5:] if shows_previous else ()
    texts, is_base64 = as_texts(key, value if kind == EventKind.PUT else None, *known)
    encoding = ',"encoding":"base64"' if is_base64 else ""
    key_json, value_json, *previous = ["null" if t is None else _quote(t) for t in texts]
    previous_json = f',"prev":{previous[0]}' if previous else ""
    return (
        f"event: {_kind_names[kind]}\nid: {event_id}\n"
        f'data: {{"key":{key_json},"value":{value_json}{encoding},'
        f'"revision":{revision},"version":{version}{previous_json}}}\n\n'
    ).encode()


def _progress_frame(position: Position) -> bytes:
    """Say that everything before a position was sent; its ID leads back to the same."""
    revision, skip = position
    event_id = f"{revision}.{skip}" if skip else f"{revision - 1}"
    return f'event: progress\nid: {event_id}\ndata: {{"revision":{revision - 1}}}\n\n'.encode()
