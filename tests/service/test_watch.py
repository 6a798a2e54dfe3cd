"""Past events and watches: each once and in order, whoever comes, lags, leaves and comes back."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import Event, EventKind, prefix_end
from conure.errors import BadRequest, Compacted, Unavailable
from conure.metrics import Registry
from conure.service import watchers as watchers_module
from conure.service.watchers import Watch, Watchers
from conure.state.history import Change, History, Position, parse_event_id

ALL = (b"", None)


class Message(NamedTuple):
    """A server-sent event, as a client is given it."""

    event: str
    id: str
    data: dict[str, object]


def parsed(stream: bytes) -> list[Message]:
    """Read a stream as HTML's section 9.2.6 says; what isn't complete is left out."""
    messages = []
    fields: dict[str, str] = {"id": ""}
    complete = stream[: stream.rfind(b"\n\n") + 2]
    for line in complete.decode().split("\n")[:-1]:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            messages.append(Message(fields["event"], fields["id"], json.loads(fields["data"])))
    return messages


def change_of(message: Message) -> Change:
    """The event that a message tells of."""
    data = message.data
    assert {"key", "value", "revision", "version"} <= data.keys() <= {*_FIELDS}

    def decoded(text: object) -> bytes:
        assert isinstance(text, str)
        return base64.b64decode(text) if data.get("encoding") == "base64" else text.encode()

    value = b"" if data["value"] is None else decoded(data["value"])
    revision, version = data["revision"], data["version"]
    assert isinstance(revision, int)
    assert isinstance(version, int)
    kind = EventKind[message.event.upper()]
    change = (revision, kind, decoded(data["key"]), value, version)
    if "prev" not in data:
        return change
    return (*change, None if data["prev"] is None else decoded(data["prev"]))


_FIELDS = ("key", "value", "revision", "version", "encoding", "prev")


class FakeSink:
    """Keeps what it is sent, and takes no more than it is told to."""

    def __init__(self) -> None:
        self.data = b""
        self.unsent = 0
        self.takes_more = True
        self.is_finished = False

    def send(self, data: bytes) -> bool:
        assert not self.is_finished
        self.data += data
        return self.takes_more

    def finish(self) -> None:
        self.is_finished = True

    @property
    def messages(self) -> list[Message]:
        return parsed(self.data)

    @property
    def changes(self) -> list[Change]:
        return [change_of(m) for m in self.messages if m.event in ("put", "delete", "expire")]


class BrokenSink(FakeSink):
    def send(self, data: bytes) -> bool:
        raise OSError("broken")


def put(revision: int, key: bytes = b"k", value: bytes = b"v") -> Change:
    return Event(revision, EventKind.PUT, key, value, 1)


def fill(history: History, last: int, key: bytes = b"k") -> None:
    """Append puts up to a revision, one in each."""
    for revision in range(history.revision + 1, last + 1):
        history.extend([put(revision, key)], revision)


@pytest.fixture
def history() -> History:
    return History()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def watchers(history: History, registry: Registry) -> Watchers[FakeSink]:
    """Without a pump: ``turn`` is called by the test."""
    return Watchers(history, registry)


@pytest.fixture
def pumped(watchers: Watchers[FakeSink]) -> Iterator[Watchers[FakeSink]]:
    """With its pump."""
    watchers.start()
    yield watchers
    watchers.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [time.monotonic()]
    monkeypatch.setattr(watchers_module, "monotonic", lambda: now[0])
    return now


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def reading(registry: Registry, name: str) -> float:
    lines = registry.render().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


# -- the model -------------------------------------------------------------------------------------

KEYS = [b"", b"a", b"a\0", b"ab", b"abc", b"b", b"b/\xff", b"b/\xff\xff", b"c/\xe4", b"c/d"]
bounds = st.sampled_from(KEYS)
RANGES = st.one_of(
    bounds.map(lambda key: (key, key + b"\0")),
    bounds.map(lambda prefix: (prefix, prefix_end(prefix))),
    st.tuples(bounds, bounds.map(lambda key: key + b"~")).filter(lambda pair: pair[0] < pair[1]),
    bounds.map(lambda key: (key, None)),
)


class Client:
    """Watches a range, and comes back when it is cut off."""

    def __init__(
        self, start: bytes, end: bytes | None, position: Position, *, shows_previous: bool = False
    ) -> None:
        self.shows_previous = shows_previous
        self.start = start
        self.end = end
        self.began = position
        self.position = position
        self.received: list[Change] = []
        self.is_lost = False
        self.sink = FakeSink()
        self.watch: Watch[FakeSink] | None = None

    def connect(self, watchers: Watchers[FakeSink]) -> None:
        self.sink = FakeSink()
        try:
            watchers.check(self.position)
        except Compacted:
            self.is_lost = True
            return
        self.watch = watchers.watch(
            self.start, self.end, self.position, self.sink, shows_previous=self.shows_previous
        )

    def cut(self, at: int) -> None:
        """Let what was sent end at a byte, and remember where that leaves us."""
        last = FakeSink()
        last.data = self.sink.data[:at]  # no more of it: the pump may still be sending
        self.received += last.changes
        for message in last.messages:
            if message.id:
                self.position = parse_event_id(message.id)
        if self.watch:
            self.watch.cancel()
            self.watch = None
        self.sink = FakeSink()

    def wants(self, revision: int, number: int, key: bytes) -> bool:
        is_inside = self.start <= key and (self.end is None or key < self.end)
        return is_inside and (revision, number) >= self.began


class World:
    """A history, watchers, some clients, and all that has ever happened."""

    def __init__(self, history: History, progress_interval: float) -> None:
        self.history = history
        self.watchers: Watchers[FakeSink] = Watchers(
            history, Registry(), progress_interval=progress_interval
        )
        self.clients: list[Client] = []
        self.log: list[tuple[int, Change]] = []  # the number within the revision, from 0 on

    def extend(self, revisions: list[list[tuple[bytes, EventKind]]]) -> None:
        events: list[Change] = []
        revision = self.history.revision
        for changes in revisions:
            revision += 1
            for number, (key, kind) in enumerate(changes):
                value = f"é{revision}".encode() if kind == EventKind.PUT else b""
                change: Change = Event(revision, kind, key, value, number)
                if revision % 3:  # else it isn't known
                    change = (*change, None if number % 2 else f"ü{revision}".encode())
                events.append(change)
                self.log.append((number, events[-1]))
        self.history.extend(events, revision)

    def join(self, start: bytes, end: bytes | None, back: int, skip: int) -> None:
        revision = max(self.history.revision + 2 - back, self.history.floor + 1)
        shows_previous = len(self.clients) % 2 == 1
        client = Client(start, end, Position(revision, skip), shows_previous=shows_previous)
        client.connect(self.watchers)
        self.clients.append(client)

    def come_back(self, client: Client, at: int) -> None:
        client.cut(at)
        if not client.is_lost:
            client.connect(self.watchers)

    def check(self) -> None:
        """What each client has received is what it should have, without a gap."""
        for _ in range(len(self.log) + 20):
            self.watchers.turn()
        for client in self.clients:
            ended = any(message.event == "end" for message in client.sink.messages)
            received = [*client.received, *client.sink.changes]
            expected = [
                change if client.shows_previous else change[:5]
                for number, change in self.log
                if client.wants(change[0], number, change[2])
            ]
            if ended or client.is_lost:
                assert received == expected[: len(received)]
                assert client.sink.is_finished == ended
            else:
                assert received == expected


CHANGES = st.tuples(st.sampled_from(KEYS), st.sampled_from(EventKind))
JOIN = st.tuples(st.just("join"), RANGES, st.integers(0, 12), st.integers(0, 3))
ACTIONS = st.one_of(
    st.tuples(st.just("extend"), st.lists(st.lists(CHANGES, max_size=4), max_size=6)),
    st.tuples(st.just("extend"), st.lists(st.lists(CHANGES, min_size=1), min_size=1)),
    JOIN,
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("cut"), st.integers(0, 9), st.integers(0, 3000)),
    st.tuples(st.just("slow"), st.integers(0, 9), st.booleans()),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(JOIN, max_size=3),
    st.lists(ACTIONS, min_size=15, max_size=30),
    st.sampled_from([20, 60, 1000]),
    st.sampled_from([1, 150, 1 << 20]),
    st.sampled_from([0.0, 5.0]),
)
def test_everybody_gets_every_event_once_and_in_order(
    first: list[tuple[object, ...]],
    steps: list[tuple[object, ...]],
    window: int,
    part: int,
    interval: float,
) -> None:
    """Whatever the window, the positions, and where connections are cut (1, 2)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchers_module, "_STEP", part)
        patch.setattr(watchers_module, "_PART", part)
        patch.setattr("conure.state.history._SCAN", 2)
        patch.setattr("conure.state.history._BLOCKS", 4)
        world = World(History(window), interval)
        for step in (*first, *steps):
            match step:
                case ("extend", list(revisions)):
                    world.extend(revisions)
                case ("join", (bytes(start), end), int(back), int(skip)):
                    assert end is None or isinstance(end, bytes)
                    world.join(start, end, back, skip)
                case ("turn", int(times)):
                    for _ in range(times):
                        world.watchers.turn()
                case ("cut", int(who), int(at)) if world.clients:
                    world.come_back(world.clients[who % len(world.clients)], at)
                case ("slow", int(who), bool(is_slow)) if world.clients:
                    sink = world.clients[who % len(world.clients)].sink
                    sink.unsent = part + 1 if is_slow else 0
        for client in world.clients:
            client.sink.unsent = 0
        world.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(RANGES, st.booleans()), min_size=1, max_size=30), st.sampled_from(KEYS))
def test_a_key_belongs_to_the_ranges_that_contain_it(
    ranges: list[tuple[tuple[bytes, bytes | None], bool]], key: bytes
) -> None:
    """And a range that nobody is interested in any more leaves nothing behind."""
    groups: watchers_module._Groups[FakeSink] = watchers_module._Groups()
    waits = [
        watchers_module.Wait(
            lambda wait: None, start, end, Position(1), 0.0, lambda has_changed: None
        )
        for (start, end), _ in ranges
    ]
    for wait in waits:
        groups.add(wait)
    for wait, (_, stays) in zip(waits, ranges, strict=True):
        if not stays:
            groups.remove(wait)
    found = [wait for group in groups.of(key) for wait in group.waits]
    assert len(found) == len(set(found))
    assert set(found) == {
        wait
        for wait, ((start, end), stays) in zip(waits, ranges, strict=True)
        if stays and start <= key and (end is None or key < end)
    }
    for wait, (_, stays) in zip(waits, ranges, strict=True):
        if stays:
            groups.remove(wait)
    assert not groups


# -- the history -----------------------------------------------------------------------------------


def test_the_history_keeps_to_its_bounds_and_knows_where_it_begins() -> None:
    history = History(max_events=100, max_bytes=1 << 20)
    fill(history, 1000)
    assert 90 <= history.events <= 100
    assert history.floor == 1000 - history.events
    assert history.revision == 1000
    history.extend([put(1001, value=bytes(1 << 20))], 1001)
    assert history.view().blocks[-1].events[-1][0] == 1001, "it stays until something follows it"
    fill(history, 1002)
    assert (history.floor, history.events) == (1001, 1)
    assert history.bytes < 1000


def test_a_revision_is_kept_or_dropped_as_a_whole() -> None:
    history = History(max_events=10)
    for revision in range(1, 50):
        history.extend([put(revision, b"%d" % n) for n in range(7)], revision)
        view = history.view()
        kept = [event[0] for block in view.blocks for event in block.events]
        assert kept == [r for r in range(view.floor + 1, revision + 1) for _ in range(7)]


def test_entries_without_events_move_the_revision_only(history: History) -> None:
    fill(history, 3)
    history.extend((), 7)
    assert (history.floor, history.revision, history.events) == (0, 7, 3)
    fill(history, 8)
    assert history.revision == 8


def test_an_installed_snapshot_leaves_no_history(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    fill(history, 3)
    history.reset(10)
    assert (history.floor, history.revision, history.events, history.bytes) == (10, 10, 0, 0)
    with pytest.raises(Compacted) as caught:
        watchers.check(Position(10))
    assert caught.value.oldest == 11
    assert caught.value.status == 410
    watchers.check(Position(11))


# -- what is sent ----------------------------------------------------------------------------------


def test_the_bytes_of_events(history: History, watchers: Watchers[FakeSink]) -> None:
    sink = FakeSink()
    watchers.watch(*ALL, Position(1), sink)
    history.extend([Event(1, EventKind.PUT, b"a", 'ü "\n'.encode(), 3)], 1)
    history.extend(
        [
            Event(2, EventKind.DELETE, b"a", b"", 0),
            Event(2, EventKind.EXPIRE, b"b", b"", 0),
            Event(2, EventKind.PUT, b"c", b"\xff", 1),
        ],
        3,
    )
    watchers.turn()
    head, body = b'event: progress\nid: 0\ndata: {"revision":0}\n\n', sink.data
    assert body.startswith(head)
    assert body.removeprefix(head).decode() == (
        'event: put\nid: 1\ndata: {"key":"a","value":"ü \\"\\n","revision":1,"version":3}\n\n'
        'event: delete\nid: 2.1\ndata: {"key":"a","value":null,"revision":2,"version":0}\n\n'
        'event: expire\nid: 2.2\ndata: {"key":"b","value":null,"revision":2,"version":0}\n\n'
        'event: put\nid: 2\ndata: {"key":"Yw==","value":"/w==","encoding":"base64",'
        '"revision":2,"version":1}\n\n'
    )


def test_the_value_before_is_for_who_asked_for_it(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    """Of the same range and at the same time, and only where it is known."""
    plain, looking_back, late = FakeSink(), FakeSink(), FakeSink()
    watchers.watch(*ALL, Position(1), plain)
    watchers.watch(*ALL, Position(1), looking_back, shows_previous=True)
    watchers.turn()
    history.extend([(1, EventKind.PUT, b"a", b"1", 1)], 1)  # before it was kept
    history.want_previous()
    history.extend([(2, EventKind.PUT, b"a", b"2", 2, b"1")], 2)
    history.extend([(3, EventKind.DELETE, b"a", b"", 0, b"\xff"),
                    (3, EventKind.PUT, b"b", b"new", 1, None)], 3)  # fmt: skip
    watchers.turn()
    watchers.watch(*ALL, Position(1), late, shows_previous=True)
    watchers.turn()
    assert looking_back.data.partition(b"\n\n")[2].decode() == (
        'event: put\nid: 1\ndata: {"key":"a","value":"1","revision":1,"version":1}\n\n'
        'event: put\nid: 2\ndata: {"key":"a","value":"2","revision":2,"version":2,"prev":"1"}\n\n'
        'event: delete\nid: 3.1\ndata: {"key":"YQ==","value":null,"encoding":"base64",'
        '"revision":3,"version":0,"prev":"/w=="}\n\n'
        'event: put\nid: 3\ndata: {"key":"b","value":"new","revision":3,"version":1,"prev":null}'
        "\n\n"
    )
    assert late.data == looking_back.data
    assert len(plain.changes) == 4
    assert b"prev" not in plain.data
    assert b"base64" not in plain.data


def test_a_value_before_counts_against_the_bytes_of_the_history(history: History) -> None:
    history.want_previous()
    history.extend([(1, EventKind.PUT, b"k", b"v", 2, bytes(1000))], 1)
    history.extend([(2, EventKind.DELETE, b"k", b"", 0, None)], 2)
    history.extend([(3, EventKind.DELETE, b"k", b"", 0)], 3)
    assert history.bytes == 3 * 200 + 4 + 1000
    small = History(max_bytes=1600)
    small.want_previous()
    for revision in range(1, 100):
        small.extend([(revision, EventKind.PUT, b"k", b"v", 2, bytes(500))], revision)
        assert small.bytes <= 1600
    assert small.floor == 97


def test_ids_lead_behind_their_events() -> None:
    assert parse_event_id("7") == Position(8)
    assert parse_event_id("7.2") == Position(7, 2)
    for text in ("", ".", "7.", ".2", "-1", "7.2.1", "x", "\uff17", "1e3", " 7", "1" * 20):
        with pytest.raises(BadRequest):
            parse_event_id(text)


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"a/") == b"a0"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None
    assert prefix_end(b"") is None


def test_a_position_of_the_future_is_waited_for(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    sink = FakeSink()
    watchers.watch(*ALL, Position(4, 1), sink)
    watchers.turn()
    fill(history, 3)
    watchers.turn()
    assert sink.messages == [Message("progress", "4.1", {"revision": 3})]
    history.extend([put(4, b"a"), put(4, b"b")], 4)
    watchers.turn()
    assert sink.changes == [put(4, b"b")]


def test_progress_is_told_at_intervals_and_before_a_client_falls_out(
    watchers: Watchers[FakeSink], clock: list[float]
) -> None:
    history = History(max_events=64)
    watchers = Watchers(history, Registry(), progress_interval=5)
    sink = FakeSink()
    watchers.watch(b"quiet", b"quiet\0", Position(1), sink)
    watchers.turn()
    clock[0] += 5
    watchers.turn()
    assert [message.id for message in sink.messages] == ["0", "0"]
    for _ in range(500):
        fill(history, history.revision + 3)
        watchers.turn()
        watchers.check(parse_event_id(sink.messages[-1].id))
    assert len(sink.messages) < 200


# -- those who lag or fail -------------------------------------------------------------------------


def test_a_slow_sink_goes_at_its_own_pace(history: History, watchers: Watchers[FakeSink]) -> None:
    slow, fast = FakeSink(), FakeSink()
    for sink in (slow, fast):
        watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    slow.unsent = 1 << 20
    for revision in range(1, 11):
        history.extend([put(revision, value=bytes(100_000))], revision)
        watchers.turn()
    assert len(fast.changes) == 10
    assert slow.changes == []
    slow.unsent = 0
    sizes = []
    for _ in range(12):
        watchers.turn()
        sizes.append(len(slow.data))
    assert slow.changes == fast.changes
    one = len(fast.data) // 10
    assert max(after - before for before, after in pairwise(sizes)) < 2 * one
    fill(history, 11)
    watchers.turn()
    assert slow.changes == fast.changes


def test_a_sink_that_lags_too_far_is_told_and_ended(registry: Registry) -> None:
    history = History(max_events=32)
    watchers: Watchers[FakeSink] = Watchers(history, registry)
    slow, fast = FakeSink(), FakeSink()
    for sink in (slow, fast):
        watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    slow.unsent = 1 << 20
    for _ in range(50):
        fill(history, history.revision + 1)
        watchers.turn()
    assert slow.changes == []
    assert slow.messages[-1].event == "end"
    assert "gone past" in str(slow.messages[-1].data["reason"])
    assert slow.is_finished
    assert [change[0] for change in fast.changes] == list(range(1, 51))
    assert reading(registry, "conure_watches") == 1
    assert reading(registry, "conure_watches_dropped_total") == 1
    assert reading(registry, "conure_watch_events_sent_total") == 50
    # What is kept is the newest, and everything after the floor.
    kept = reading(registry, "conure_history_events")
    assert 0 < kept <= 32
    assert reading(registry, "conure_history_floor_revision") == 50 - kept
    assert kept * len(b"kv") < reading(registry, "conure_history_bytes") < kept * 1000


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_sink_that_fails_ends_only_its_own_watch(
    history: History,
    watchers: Watchers[FakeSink],
    registry: Registry,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    fine, refusing = FakeSink(), FakeSink()
    refusing.takes_more = when == "later"
    for sink in (refusing, BrokenSink(), fine):
        watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    refusing.takes_more = False
    for revision in (1, 2):
        fill(history, revision)
        watchers.turn()
    assert [change[0] for change in fine.changes] == [1, 2]
    assert len(refusing.changes) == (when == "later")
    assert [record.message for record in caplog.records] == ["the sink of a watch failed"]
    assert reading(registry, "conure_watches") == 1
    assert reading(registry, "conure_watches_dropped_total") == 0  # they went by themselves


def test_a_defect_of_the_pump_ends_all_watches_and_not_the_pump(
    history: History, pumped: Watchers[FakeSink], caplog: pytest.LogCaptureFixture
) -> None:
    class Defect(FakeSink):
        @property
        def unsent(self) -> int:
            raise RuntimeError("a bug")

        @unsent.setter
        def unsent(self, value: int) -> None:
            pass

    sink, other = Defect(), FakeSink()
    for each in (sink, other):
        pumped.watch(*ALL, Position(1), each)
    fill(history, 1)
    until(lambda: sink.is_finished and other.is_finished)
    assert "internal error" in str(other.messages[-1].data["reason"])
    assert "delivering events failed" in caplog.text
    after = FakeSink()
    pumped.watch(*ALL, Position(1), after)
    until(lambda: after.changes == [put(1)])


def test_a_broadcast_serves_many_and_who_is_gone_is_cancelled(history: History) -> None:
    calls: list[tuple[list[FakeSink], bytes]] = []
    closed: list[FakeSink] = []

    def broadcast(sinks: Sequence[FakeSink], data: bytes) -> None:
        calls.append((list(sinks), data))
        closed.extend(sink for sink in sinks if not sink.send(data))

    watchers = Watchers(history, Registry(), broadcast=broadcast)
    sinks = [FakeSink() for _ in range(4)]
    watches = {sink: watchers.watch(b"k", b"k\0", Position(1), sink) for sink in sinks}
    watchers.turn()
    sinks[0].takes_more = False
    history.extend([put(1), put(1, b"other")], 1)
    history.extend([put(2)], 2)
    watchers.turn()
    (receivers, data), *rest = calls
    assert receivers == sinks
    assert [change_of(message) for message in parsed(data)] == [put(1), put(2)]
    assert not rest
    watches[closed[0]].cancel()
    fill(history, 3)
    watchers.turn()
    assert calls[-1][0] == sinks[1:]
    assert closed == [sinks[0]]


def test_nobody_is_sent_events_while_too_much_waits(history: History) -> None:
    """Who is up to date falls behind and goes on from there: nothing is lost, nothing repeated."""
    is_full = False
    calls: list[bytes] = []

    def broadcast(sinks: Sequence[FakeSink], data: bytes) -> None:
        calls.append(data)
        for sink in sinks:
            sink.send(data)

    watchers: Watchers[FakeSink] = Watchers(
        history, Registry(), broadcast=broadcast, is_full=lambda: is_full
    )
    sinks = [FakeSink() for _ in range(3)]
    for sink in sinks:
        watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    history.extend([put(1)], 1)
    watchers.turn()
    is_full = True
    for revision in (2, 3):
        history.extend([put(revision)], revision)
        watchers.turn()
        watchers.turn()
    assert all(sink.changes == [put(1)] for sink in sinks)
    is_full = False
    watchers.turn()
    history.extend([put(4)], 4)
    watchers.turn()
    watchers.turn()
    for sink in sinks:
        assert sink.changes == [put(1), put(2), put(3), put(4)]
    watchers.stop()


# -- ends ------------------------------------------------------------------------------------------


def test_the_pump_rests_after_a_long_look_at_what_concerns_nobody(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    """Whoever writes gets the interpreter for as long as the pump had it."""
    watchers.watch(b"other", b"other\0", Position(1), FakeSink())
    watchers.turn()
    history.extend([put(1, b"%d" % n) for n in range(50_000)], 1)
    began = time.monotonic()
    rest = watchers.turn()
    assert 0 < rest <= time.monotonic() - began
    assert watchers.turn() == 0


def test_a_cancelled_watch_is_sent_nothing_more(
    history: History, watchers: Watchers[FakeSink], registry: Registry
) -> None:
    sink = FakeSink()
    watch_ = watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    watch_.cancel()
    watch_.cancel()
    fill(history, 1)
    watchers.turn()
    assert sink.changes == []
    assert not sink.is_finished
    assert reading(registry, "conure_watches") == 0
    assert reading(registry, "conure_watches_dropped_total") == 0


def test_an_installed_snapshot_ends_all_watches(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    """Even that of a client which had seen everything: what came between is not known here."""
    live, lagging, future = FakeSink(), FakeSink(), FakeSink()
    replies: list[bool] = []
    watchers.watch(*ALL, Position(1), live)
    watchers.watch(*ALL, Position(1), lagging)
    watchers.watch(*ALL, Position(20), future)
    watchers.wait_for(*ALL, 2, time.monotonic() + 60, replies.append)
    fill(history, 2)
    lagging.unsent = 1
    watchers.turn()
    history.reset(10)
    fill(history, 20)
    watchers.turn()
    for sink in (live, lagging):
        assert sink.messages[-1].event == "end"
        assert sink.is_finished
    assert len(live.changes) == 2
    assert replies == [True]
    assert future.changes == [put(20)]


def test_the_stop_sends_everything_first(history: History, registry: Registry) -> None:
    watchers: Watchers[FakeSink] = Watchers(history, registry)
    watchers.start()
    sink = FakeSink()
    replies: list[bool] = []
    watchers.watch(b"k", b"k\0", Position(1), sink)
    watchers.wait_for(b"other", b"other\0", 0, time.monotonic() + 60, replies.append)
    fill(history, 1)
    until(lambda: len(sink.changes) == 1)
    fill(history, 1000)
    history.extend((), 1001)
    watchers.stop()
    assert len(sink.changes) == 1000
    assert [message.event for message in sink.messages[-2:]] == ["progress", "end"]
    assert sink.messages[-2].id == "1001"
    assert sink.is_finished
    assert replies == [False]
    with pytest.raises(Unavailable):
        watchers.check(Position(1002))
    with pytest.raises(Unavailable):
        watchers.watch(*ALL, Position(1002), FakeSink())
    with pytest.raises(Unavailable):
        watchers.wait_for(*ALL, 0, 0.0, replies.append)
    assert reading(registry, "conure_watches") == 0


# -- long polls ------------------------------------------------------------------------------------


def test_a_poll_is_answered_by_the_first_event_of_its_range(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    replies: dict[str, list[bool]] = {"seen": [], "next": [], "other": [], "future": []}
    far = time.monotonic() + 60
    fill(history, 5)
    watchers.wait_for(b"k", b"k\0", 4, far, replies["seen"].append)
    watchers.wait_for(b"k", b"k\0", 5, far, replies["next"].append)
    watchers.wait_for(b"x", b"x\0", 0, far, replies["other"].append)
    watchers.wait_for(b"k", b"k\0", 7, far, replies["future"].append)
    watchers.turn()
    assert replies == {"seen": [True], "next": [], "other": [], "future": []}
    for last in (6, 7, 8):
        fill(history, last)
        watchers.turn()
        assert replies["future"] == ([True] if last == 8 else [])
    assert replies == {"seen": [True], "next": [True], "other": [], "future": [True]}


def test_a_poll_is_not_answered_by_what_is_only_being_sent(
    history: History, watchers: Watchers[FakeSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump may be far behind the writer; what counts is the revision."""
    monkeypatch.setattr(watchers_module, "_STEP", 1)
    sink = FakeSink()
    replies: list[bool] = []
    watchers.watch(*ALL, Position(1), sink)
    watchers.turn()
    fill(history, 5)
    watchers.wait_for(*ALL, 5, time.monotonic() + 60, replies.append)
    for _ in range(6):
        watchers.turn()
    assert len(sink.changes) == 5
    assert not replies
    fill(history, 6)
    watchers.turn()
    assert replies == [True]


def test_a_poll_from_before_the_history_is_answered_at_once(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    replies: list[str] = []
    history.reset(10)
    far = time.monotonic() + 60
    watchers.wait_for(*ALL, 9, far, lambda has_changed: replies.append(f"9 {has_changed}"))
    watchers.wait_for(*ALL, 10, far, lambda has_changed: replies.append(f"10 {has_changed}"))
    watchers.turn()
    assert replies == ["9 True"]


def test_a_poll_ends_at_its_deadline(
    history: History, watchers: Watchers[FakeSink], registry: Registry, clock: list[float]
) -> None:
    replies: list[tuple[int, bool]] = []

    def reply_to(number: int) -> Callable[[bool], None]:
        return lambda has_changed: replies.append((number, has_changed))

    waits = [watchers.wait_for(*ALL, 0, clock[0] + n, reply_to(n)) for n in (3, 1, 2)]
    watchers.turn()
    clock[0] += 1.5
    watchers.turn()
    assert replies == [(1, False)]
    waits[2].give_up()
    waits[2].give_up()
    watchers.turn()
    assert replies == [(1, False), (2, False)]
    clock[0] += 5
    watchers.turn()
    waits[0].give_up()
    fill(history, 1)
    watchers.turn()
    assert replies == [(1, False), (2, False), (3, False)]
    assert reading(registry, "conure_long_polls") == 0


def test_ten_thousand_polls_of_one_key(
    history: History, pumped: Watchers[FakeSink], registry: Registry
) -> None:
    replies: list[bool] = []
    waits = [
        pumped.wait_for(b"k", b"k\0", 0, time.monotonic() + 60, replies.append)
        for _ in range(10_000)
    ]
    for wait in waits[:100]:
        wait.give_up()
    until(lambda: reading(registry, "conure_long_polls") == 9900)
    assert replies == [False] * 100
    fill(history, 1)
    until(lambda: len(replies) == 10_000)
    assert all(replies[100:])
    assert reading(registry, "conure_long_polls") == 0


def test_polls_that_are_over_are_forgotten_long_before_their_deadline(
    history: History, watchers: Watchers[FakeSink]
) -> None:
    replies: list[bool] = []
    for revision in range(1, 1001):
        watchers.wait_for(*ALL, revision - 1, time.monotonic() + 60, replies.append)
        fill(history, revision)
        watchers.turn()
    assert replies == [True] * 1000
    assert len(watchers._deadlines) < 100


def test_a_reply_that_raises_harms_nobody_else(
    history: History, watchers: Watchers[FakeSink], caplog: pytest.LogCaptureFixture
) -> None:
    replies: list[bool] = []

    def raising(has_changed: bool) -> None:
        raise RuntimeError("a bug")

    for reply in (raising, replies.append):
        watchers.wait_for(*ALL, 0, time.monotonic() + 60, reply)
    watchers.turn()
    fill(history, 1)
    watchers.turn()
    assert replies == [True]
    assert "the reply to a long poll failed" in caplog.text


# -- with threads ----------------------------------------------------------------------------------


def test_clients_come_and_go_while_a_writer_writes(
    history: History, pumped: Watchers[FakeSink], registry: Registry
) -> None:
    last = 8_000
    clients = [Client(b"k%d" % (n % 4), b"k%d\0" % (n % 4), Position(1)) for n in range(12)]
    for client in clients:
        client.connect(pumped)

    def write() -> None:
        for first in range(1, last + 1, 10):
            revisions = range(first, first + 10)
            history.extend([put(r, b"k%d" % (r % 4)) for r in revisions], first + 9)
            time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    turns = 0
    while writer.is_alive():
        client = clients[turns % len(clients)]
        client.cut(len(client.sink.data))
        client.connect(pumped)
        turns += 1
        time.sleep(0.002)
    writer.join()

    def seen(client: Client) -> list[int]:
        return [change[0] for change in (*client.received, *client.sink.changes)]

    for number, client in enumerate(clients):
        expected = [r for r in range(1, last + 1) if r % 4 == number % 4]
        until(lambda client=client, expected=expected: len(seen(client)) >= len(expected))  # type: ignore[misc]
        assert seen(client) == expected
    assert reading(registry, "conure_watch_events_sent_total") >= last * 3


def test_an_event_that_comes_as_the_pump_falls_asleep_wakes_it() -> None:
    class Racing(History):
        def call_once(self, ring: Callable[[], None]) -> None:
            if self.revision < 10:
                fill(self, self.revision + 1)
            super().call_once(ring)

    watchers: Watchers[FakeSink] = Watchers(Racing(), Registry(), progress_interval=1000)
    watchers.start()
    sink = FakeSink()
    watchers.watch(*ALL, Position(1), sink)
    until(lambda: len(sink.changes) == 10)
    watchers.stop()


def test_an_idle_pump_is_woken_at_once(history: History, pumped: Watchers[FakeSink]) -> None:
    """By a write, a newcomer, a deadline and a snapshot; none waits for the next progress."""
    sink = FakeSink()
    replies: list[bool] = []
    began = time.monotonic()
    pumped.watch(*ALL, Position(1), sink)
    until(lambda: bool(sink.data))
    for revision in range(1, 6):
        time.sleep(0.01)
        fill(history, revision)
        until(lambda: len(sink.changes) == revision)  # noqa: B023 - called within the round
    pumped.wait_for(b"x", None, 5, time.monotonic() + 0.05, replies.append)
    until(lambda: replies == [False])
    history.reset(9)
    until(lambda: sink.is_finished)
    assert time.monotonic() - began < watchers_module.PROGRESS_INTERVAL
