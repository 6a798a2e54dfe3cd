"""The service: several fronts in one round, and no way past the gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest

from conure.commands import (
    Acquire,
    Committed,
    Delete,
    EndSession,
    Operation,
    Put,
    Release,
    Transaction,
)
from conure.errors import ConureError, Forbidden, NotLeader, NotRead, Unavailable
from conure.http.request import Request
from conure.metrics import Registry
from conure.service import requests as requests_module
from conure.service import slices as slices_module
from conure.service.backend import Command, Found, KeyValueBackend, WriteReply
from conure.service.freshness import STALE, Contact, Freshness
from conure.service.gate import Action, AllowAll, Caller, Gate, steps_of
from conure.service.limits import Limits
from conure.service.quoting import shortened, shown
from conure.service.requests import Desk, Requests
from conure.service.watchers import Watchers
from conure.state.history import History
from httpapi import API
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.lineproto import Line, LineFront, Refer
from tests.lab.process import Answer

LEADER = NotLeader("10.0.0.9:7001", "n9", "http://10.0.0.9:8081")


def requests_of(backend: KeyValueBackend, gate: Gate | None = None) -> Requests:
    watchers: Watchers[object] = Watchers(History(), Registry())  # type: ignore[type-var]
    limits = Limits(value_bytes=1000, range_items=1000)
    return Requests(backend, gate or AllowAll(), watchers, limits, max_workers=2)


@pytest.fixture(name="requests")
def _requests(backend: FakeBackend) -> Requests:
    return requests_of(backend)


def end(requests: Requests) -> None:
    """End a round, the writes after the reads."""
    while requests.end_round():
        pass


def ask(requests: Requests, front: LineFront, text: str) -> str:
    """Say a line in a round of its own."""
    line = front.say(text)
    end(requests)
    return line.answer


# -- a front of its own ----------------------------------------------------------------------------


def test_put_get_scan(requests: Requests) -> None:
    front = LineFront(requests)
    assert ask(requests, front, "GET a") == "NONE"
    assert ask(requests, front, "PUT a one value") == "OK 1"
    assert ask(requests, front, "PUT b 2") == "OK 2"
    assert ask(requests, front, "GET a") == "VALUE one value"
    assert ask(requests, front, "SCAN ") == "ITEMS a=one value b=2"
    assert ask(requests, front, "SCAN b") == "ITEMS b=2"
    assert ask(requests, front, "FLY a") == "ERROR there is no 'FLY a'"


def test_a_follower_refers_to_the_leader(requests: Requests, backend: FakeBackend) -> None:
    front = LineFront(requests)
    backend.error = LEADER
    for text in ("PUT a 1", "GET a", "SCAN a"):
        assert ask(requests, front, text) == "NOTLEADER http://10.0.0.9:8081"
    backend.error = Unavailable("no quorum")
    for text in ("PUT a 1", "GET a", "SCAN a"):
        assert ask(requests, front, text) == "ERROR no quorum"
    assert backend.values == {}


def test_reads_are_answered_before_writes(requests: Requests, backend: FakeBackend) -> None:
    front = LineFront(requests)
    write, read = front.say("PUT a 1"), front.say("GET a")
    assert requests.end_round() is True
    assert (read.answer, write.answer, backend.batches) == ("NONE", "", [])
    assert requests.end_round() is False
    assert (write.answer, backend.batches) == ("OK 1", [[(b"a", b"1")]])


# -- several fronts --------------------------------------------------------------------------------


class Gathering(FakeBackend):
    """Tells the ends of writes when it is told to, in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.reply: WriteReply

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        self.batches.append(list(commands))
        self.reply = reply


class Broken(FakeBackend):
    """Has a bug."""

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        raise AssertionError("a bug of writes")

    def confirm_read(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a bug of reads")


@pytest.mark.parametrize("texts", [("PUT a 1", "PUT b 2"), ("GET a", "SCAN b")])
def test_a_bug_at_the_end_of_a_round_is_told_to_all_its_fronts(texts: tuple[str, ...]) -> None:
    requests = requests_of(Broken())
    lines = [LineFront(requests).say(text) for text in texts]
    with pytest.raises(AssertionError, match="a bug of"):
        end(requests)
    assert [line.answer for line in lines] == ["ERROR a bug: "] * 2


def test_the_writes_of_all_fronts_are_one_proposal() -> None:
    backend = Gathering()
    requests = requests_of(backend)
    fronts = [LineFront(requests) for _ in range(3)]
    lines = [
        fronts[n % 2].say(f"PUT k{n} {n}", connection=n) for n in range(6)
    ]  # the third front has nothing to say
    end(requests)
    assert backend.batches == [[(b"k%d" % n, b"%d" % n) for n in (0, 2, 4, 1, 3, 5)]]
    committed = Committed(11, {})
    backend.reply(0, 2, committed)
    assert [line.answer for line in lines] == ["OK 11", "", "OK 12", "", "", ""]
    backend.reply(2, 5, committed)
    backend.reply(5, 6, LEADER)
    assert [line.answer for line in lines] == [
        "OK 11", "OK 14", "OK 12", "OK 15", "OK 13", "NOTLEADER http://10.0.0.9:8081"
    ]  # fmt: skip


def test_the_reads_of_all_fronts_share_a_confirmation(
    requests: Requests, backend: FakeBackend
) -> None:
    backend.values = {b"a": b"1", b"b": b"2"}
    one, two = LineFront(requests), LineFront(requests)
    lines = [one.say("GET a"), one.say("GET b"), two.say("GET a"), two.say("GET c")]
    lines += [one.say("SCAN a"), two.say("SCAN b"), two.say("PUT d 4"), one.say("PUT e 5")]
    assert requests.end_round() is True
    assert (backend.confirmations, backend.reads) == (1, [[b"a", b"b"], [b"a", b"c"]])
    assert [line.answer for line in lines[:6]] == [
        "VALUE 1", "VALUE 2", "VALUE 1", "NONE", "ITEMS a=1", "ITEMS b=2"
    ]  # fmt: skip
    assert backend.batches == []
    late = one.say("PUT f 6")  # of the next round, after what is left of this one
    assert requests.end_round() is False
    assert backend.batches == [[(b"e", b"5"), (b"f", b"6"), (b"d", b"4")]]
    assert [line.answer for line in (*lines[6:], late)] == ["OK 5", "OK 3", "OK 4"]
    backend.error = Unavailable("no quorum")
    lines = [one.say("GET a"), two.say("GET a"), two.say("SCAN a")]
    end(requests)
    assert [line.answer for line in lines] == ["ERROR no quorum"] * 3


def test_what_fronts_pass_on_comes_after_what_others_refuse(
    requests: Requests, backend: FakeBackend
) -> None:
    """In one proposal; a node that doesn't lead refuses the first of it, and only that."""
    on, off = LineFront(requests, passes_on=True), LineFront(requests)
    lines = [on.say("PUT a 1"), off.say("PUT b 2"), on.say("PUT c 3"), off.say("PUT d 4")]
    end(requests)
    assert backend.batches == [[(b"b", b"2"), (b"d", b"4"), (b"a", b"1"), (b"c", b"3")]]
    assert backend.kept == [2]
    assert [line.answer for line in lines] == ["OK 3", "OK 1", "OK 4", "OK 2"]
    for front in (on, off):
        front.say("PUT a 1")
        end(requests)
    assert backend.kept == [2, 0, 1]
    lines = [on.say("GET a"), off.say("GET b"), on.say("SCAN c"), off.say("PUT e 5")]
    assert requests.end_round() is True
    assert [line.answer for line in lines] == ["VALUE 1", "VALUE 2", "ITEMS c=3", ""]
    assert (backend.confirmations, backend.passed_on) == (1, 1)
    late = on.say("PUT f 6")
    assert requests.end_round() is False
    assert backend.kept[3:] == [1]
    assert (lines[3].answer, late.answer) == ("OK 7", "OK 8")


def test_a_wait_and_a_deletion_in_parts_are_passed_on(backend: FakeBackend) -> None:
    backend.values = {b"a": b"1", b"b": b"2", b"c": b"3"}
    service = Service(backend, forward=True)
    assert service.request("GET", "/kv?key=a&index=0&wait=1ms").body == b"1"
    deleted = service.request("DELETE", "/kv?prefix=&limit=2")
    assert json.loads(deleted.body) == {"deleted": 2, "more": True}
    assert backend.kept == [0]
    assert backend.passed_on == backend.confirmations == 3
    service.close()


def test_http_and_lines_are_in_one_round(
    monkeypatch: pytest.MonkeyPatch, backend: FakeBackend
) -> None:
    said: list[Line] = []
    handle = API.handle

    def say_a_line_and_handle(api: API, request: Request) -> None:
        said.append(front.say(f"{request.method} line{' 1' * (request.method == 'PUT')}"))
        handle(api, request)

    monkeypatch.setattr(API, "handle", say_a_line_and_handle)
    service = Service(backend)
    front = LineFront(service.requests)
    put = service.request("PUT", "/kv?key=http&value=2")
    assert backend.batches == [[(b"http", b"2"), (b"line", b"1")]]
    assert (put.headers["x-conure-index"], said.pop().answer) == ("1", "OK 2")
    assert service.request("GET", "/kv?key=line").body == b"1"
    assert (backend.confirmations, backend.reads) == (1, [[b"line"]] * 2)
    assert said.pop().answer == "VALUE 1"
    service.close()


def test_what_comes_with_a_write_comes_back_to_its_front(backend: FakeBackend) -> None:
    """By position, however many writes of other fronts are ahead."""
    requests = requests_of(backend)
    lines, noting = LineFront(requests), Noting()
    desk = requests.for_front(noting, Refer())
    lines.say("PUT a 1")
    first, second = Line(), Line()
    desk.write(first, (b"b", b"2"))
    desk.write(second, (b"c", b"3"), "my own answer")
    end(requests)
    assert noting.seen == [(first, 2, None), (second, 3, "my own answer")]


class Noting(LineFront):
    """Notes what is written, and who asks for what with which contact."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def written(
        self,
        lines: Sequence[Line],
        answers: Mapping[int, object],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        assert isinstance(ended, Committed)
        self.seen += [(lines[n], ended.first + n, answers.get(n)) for n in range(start, stop)]

    def found(
        self, lines: Sequence[Line], records: Sequence[Found], index: int, contact: Contact | None
    ) -> None:
        self.seen.append((len(lines), contact))

    def failed(self, line: Line, error: ConureError, contact: Contact | None = None) -> None:
        self.seen.append((type(error), contact))


def test_long_values_of_several_fronts_are_read_in_slices(
    monkeypatch: pytest.MonkeyPatch, requests: Requests, backend: FakeBackend
) -> None:
    monkeypatch.setattr(slices_module, "SLICE_BYTES", 50_000)
    backend.values = {b"%d" % n: b"%d" % n * 30_000 for n in range(6)}
    fronts = [LineFront(requests), LineFront(requests)]
    lines = [fronts[n % 2].say(f"GET {n}", connection=n) for n in range(6)]
    end(requests)
    assert [line.answer for line in lines] == [f"VALUE {f'{n}' * 30_000}" for n in range(6)]
    assert len(backend.reads) == 4


def test_a_bug_in_a_late_read_is_told_to_those_who_wait(
    monkeypatch: pytest.MonkeyPatch, requests: Requests, backend: FakeBackend
) -> None:
    monkeypatch.setattr(slices_module, "SLICE_BYTES", 0)
    backend.values = {b"a": b"1" * 30_000}
    front = LineFront(requests)
    line = front.say("GET a")
    get_all = backend.get_all

    def broken(keys: Sequence[bytes], most: int, longest: int) -> tuple[int, list[Found]]:
        if backend.reads:
            raise ValueError("a bug")
        get_all(keys, most, longest)
        return 1, [NotRead() for _ in keys]

    monkeypatch.setattr(backend, "get_all", broken)
    with pytest.raises(ValueError, match="a bug"):
        end(requests)
    assert line.answer == "ERROR a bug: "


class Breaking(LineFront):
    """Has a bug: it answers the first of its lines, and raises."""

    def written(self, lines: Sequence[Line], *others: Any) -> None:
        self.broken(lines[others[1]], "late")
        raise ValueError("a bug in what is written")

    def found(self, lines: Sequence[Line], *_: Any) -> None:
        self.broken(lines[0], "late")
        raise ValueError("a bug in what is found")

    def failed(self, line: Line, *_: Any) -> None:
        raise ValueError("a bug in what has failed")


class Speechless(Breaking):
    """Has another one in what tells of bugs."""

    def broken(self, line: Line, how: str = "") -> None:
        raise ValueError("a bug in what is broken")


@pytest.mark.parametrize("kind", [Breaking, Speechless])
def test_a_bug_of_one_front_costs_another_no_answer(
    requests: Requests,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    kind: type[LineFront],
) -> None:
    """Whoever brings the replies, it hears nothing of it: everybody is answered once."""
    backend.values = {b"a": b"1"}
    fronts = [LineFront(requests), kind(requests), LineFront(requests)]
    bug = "" if kind is Speechless else "ERROR a bug: "
    late = bug and f"{bug}late"
    for text, good in (("GET a", "VALUE 1"), ("PUT b 2", "OK {}")):
        said = [fronts[n % 3].say(text) for n in range(6)]
        end(requests)
        answers = [line.answer for line in said]
        assert answers[1::3] == [late, bug]
        right = [good.format(index) for index in (2, 6, 3, 7)]
        assert [answers[n] for n in (0, 2, 3, 5)] == right
    assert [len(batch) for batch in backend.batches] == [6]
    backend.error = LEADER
    for text, first in (("GET a", bug), ("PUT b 2", late), ("SCAN a", bug)):
        said = [fronts[n % 3].say(text) for n in range(6)]
        end(requests)
        answers = [line.answer for line in said]
        assert answers[1::3] == [first, bug]
        assert {*answers[::3], *answers[2::3]} == {"NOTLEADER http://10.0.0.9:8081"}
    assert {record.name for record in caplog.records} == {"conure.service"}


# -- how old what is found may be ------------------------------------------------------------------


def test_a_stale_read_has_a_bound(backend: FakeBackend) -> None:
    requests = requests_of(backend)
    front = Noting()
    desk = requests.for_front(front, Refer())
    bounded = Freshness(is_stale=True, limit=2.0)
    backend.contact = 1.5
    desk.get(Line(), b"a", bounded)
    desk.get(Line(), b"a", STALE)
    desk.get(Line(), b"a")
    desk.get(Line(), b"a", Freshness(is_stale=False))  # equal to what it may not be taken for
    end(requests)
    assert front.seen == [(2, Contact(1.5)), (2, None)]
    backend.contact = 2.5
    with pytest.raises(Unavailable, match=r"2\.500 s ago, 0\.500 s over max_stale"):
        desk.get(Line(), b"a", bounded)
    backend.contact = None
    with pytest.raises(Unavailable, match="no leader since it was started"):
        desk.get(Line(), b"a", bounded)
    desk.look(Line(), b"", None, bounded, lambda _: None)
    assert front.seen[2:] == [(Unavailable, Contact(None))]


# -- what messages quote ---------------------------------------------------------------------------


def test_a_message_quotes_one_line_of_what_was_sent() -> None:
    assert shortened("x" * 100) == repr("x" * 100)
    assert shortened("x" * 101) == repr("x" * 100) + "…"
    assert shown(b"two\nlines\xff") == r"'two\nlines" + "\ufffd'"


# -- the gate --------------------------------------------------------------------------------------

SECRET = b"secret/"


class Denying:
    """Denies all that touches a prefix, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, Action, bytes, bytes | None]] = []

    def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
        self.asked.append((who, action, start, end))
        if start < b"secret0" and (end is None or end > SECRET):
            raise Forbidden(f"{who.name} may not {action.value} what is secret")


@pytest.fixture(name="gate")
def _gate() -> Denying:
    return Denying()


@pytest.fixture(name="guarded")
def _guarded(backend: FakeBackend, gate: Denying) -> Iterator[Service]:
    backend.values = {b"secret/k": b"1", b"open": b"2"}
    backend.batches.clear()
    backend.reads.clear()
    service = Service(backend, gate=gate, value_bytes=1000)
    yield service
    service.close()


def lines(*keys: str) -> bytes:
    return b"\n".join(json.dumps({"key": key, "value": "v"}).encode() for key in keys)


def txn(**parts: list[object]) -> bytes:
    return json.dumps(parts).encode()


GET_OPEN = {"get": {"key": "open"}}
SESSION = "0" * 32
ENTRANCES: list[tuple[str, str, bytes]] = [
    ("PUT", "/kv?key=secret/k&value=9", b""),
    ("PUT", "/kv?key=secret/k", b"9"),
    ("PUT", "/kv?key=secret/k&value=9&cas=1", b""),
    ("PUT", "/kv?key=secret/k&value=9&ttl=1h", b""),
    ("PUT", f"/kv?key=secret/k&acquire={SESSION}", b""),
    ("PUT", f"/kv?key=secret/k&release={SESSION}", b""),
    ("GET", "/kv?key=secret/k", b""),
    ("HEAD", "/kv?key=secret/k", b""),
    ("GET", "/kv?key=secret/k&stale=true", b""),
    ("GET", "/kv?key=secret/k&stale=true&max_stale=1h", b""),
    ("GET", "/kv?key=secret/k&meta=true", b""),
    ("GET", "/kv?key=secret/k&index=0&wait=1ms", b""),
    ("GET", "/kv?key=secret/k&index=0&wait=1ms&stale=true", b""),
    ("GET", "/kv?prefix=", b""),
    ("GET", "/kv?prefix=secret", b""),
    ("GET", "/kv?from=a&to=z&limit=1000", b""),
    ("GET", "/kv?from=a&after=b&stale=true", b""),
    ("GET", "/kv?to=t&reverse=true&keys=true", b""),
    ("GET", "/kv/count", b""),
    ("GET", "/kv/count?prefix=secret/k", b""),
    ("DELETE", "/kv?key=secret/k", b""),
    ("DELETE", "/kv?key=secret/k&cas=1", b""),
    ("DELETE", "/kv?prefix=s", b""),
    ("DELETE", "/kv?prefix=s&limit=1", b""),
    ("POST", "/kv/incr?key=secret/k", b""),
    ("POST", "/kv/incr?key=secret/k&by=2&ttl=1h", b""),
    ("POST", "/kv/touch?key=secret/k&ttl=1h", b""),
    ("POST", "/kv/batch", lines("a", "secret/k", "b")),
    ("POST", "/kv/batch", lines(*(f"a{n}" for n in range(1200)), "secret/k")),
    ("POST", "/kv/batch", b'{"key": "a", "value": "v"}\n{"key": "secret/k", "delete": true}'),
    ("POST", "/kv/batch", b'{"key": "secret/k", "value": "v", "ttl": "1h"}'),
    ("POST", "/txn", txn(compare=[{"key": "secret/k", "version": 1}], success=[GET_OPEN])),
    ("POST", "/txn", txn(success=[GET_OPEN, {"get": {"key": "secret/k"}}])),
    ("POST", "/txn", txn(success=[GET_OPEN], failure=[{"range": {"prefix": "secret/"}}])),
    ("POST", "/txn", txn(success=[{"put": {"key": "secret/k", "value": "9"}}])),
    ("POST", "/txn", txn(success=[{"delete": {"key": "secret/k"}}])),
    ("POST", "/txn", txn(success=[{"delete": {"from": "a", "to": "z"}}])),
    ("POST", "/txn", txn(success=[{"incr": {"key": "secret/k"}}])),
    ("POST", "/txn", txn(success=[{"touch": {"key": "secret/k", "ttl": 0}}])),
    ("GET", "/watch", b""),
    ("GET", "/watch?key=secret/k&from=1", b""),
    ("GET", "/watch?prefix=secret&prev=true", b""),
    ("GET", "/watch?prefix=secret&prev=true&from=1", b""),
    ("GET", "/backup", b""),
]


@pytest.mark.parametrize(("method", "target", "body"), ENTRANCES)
def test_no_entrance_is_past_the_gate(
    guarded: Service, backend: FakeBackend, gate: Denying, method: str, target: str, body: bytes
) -> None:
    answer = guarded.request(method, target, body)
    assert answer.status == 403
    assert b"is secret" in answer.body or method == "HEAD"
    assert backend.values == {b"secret/k": b"1", b"open": b"2"}
    assert (backend.batches, backend.reads, backend.confirmations) == ([], [], 0)
    who = gate.asked[-1][0]
    assert who.name == "anonymous"
    assert who.address.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        (method, target.replace("secret", "open"), body.replace(b"secret", b"open"))
        for method, target, body in ENTRANCES
        if "secret" in target or b"secret" in body
        if "/watch" not in target
    ],
)
def test_what_the_gate_does_not_deny_is_done(
    guarded: Service, gate: Denying, method: str, target: str, body: bytes
) -> None:
    assert guarded.request(method, target, body).status in (200, 404, 409, 412)
    assert gate.asked


def test_repetitions_and_keyed_batches_are_asked_about(
    guarded: Service, backend: FakeBackend
) -> None:
    body = lines("a", "secret/k")
    for _ in range(2):
        assert guarded.request("POST", "/kv/batch", body, Idempotency_Key="x").status == 403
    assert backend.batches == []


def test_a_session_that_would_delete_what_is_denied_is_not_ended_by_others(
    guarded: Service, backend: FakeBackend, gate: Denying
) -> None:
    """What it holds by then is known to the log alone."""

    def begin(behavior: str) -> str:
        answer: Answer = guarded.request("POST", f"/session?ttl=1h&behavior={behavior}")
        return str(json.loads(answer.body)["id"])

    deleting, releasing = begin("delete"), begin("release")
    for session in (deleting, releasing):
        assert guarded.request("PUT", f"/kv?key=secret/k&acquire={session}").status == 403
        assert guarded.request("GET", f"/session?id={session}").status == 200
        assert guarded.request("PUT", f"/session?id={session}").status == 200
    gate.asked.clear()
    assert guarded.request("DELETE", f"/session?id={deleting}").status == 403
    assert [action for _, action, *_ in gate.asked] == [Action.SESSION, Action.WRITE]
    assert guarded.request("DELETE", f"/session?id={SESSION}").status == 403  # nobody knows it
    assert guarded.request("DELETE", f"/session?id={releasing}").status == 200
    assert backend.store.session(deleting.encode()) is not None


def test_what_a_session_holds_is_told_to_nobody_who_may_not_lock(
    monkeypatch: pytest.MonkeyPatch, guarded: Service, backend: FakeBackend
) -> None:
    """Not even by another refusal."""
    monkeypatch.setattr(requests_module, "MAX_HELD", 0)
    target = f"acquire={SESSION}"
    assert guarded.request("PUT", f"/kv?key=open&{target}").status == 409
    assert guarded.request("PUT", f"/kv?key=secret/k&{target}").status == 403
    assert backend.batches == []


@pytest.mark.parametrize(
    ("operation", "reads"),
    [
        (Acquire(b"k", b"s", None), True),
        (Acquire(b"k", b"s", b"v"), True),
        (Put(b"k", b"v", keep_ttl=True), True),
        (Put(b"k", b"v", 5), False),
        (Delete(b"k"), False),
        (Release(b"k", b"s", b"v"), False),
    ],
)
def test_what_shows_what_was_stored_has_to_be_allowed_to_read(
    operation: Operation, reads: bool
) -> None:
    steps = list(steps_of(Transaction((), (operation,)), lambda _: True))
    one = b"k", b"k\0"
    assert steps == [(Action.READ, *one)] * reads + [(Action.WRITE, *one)]


def test_a_watch_that_shows_what_was_before_reads(backend: FakeBackend, gate: Denying) -> None:
    front = LineFront(requests_of(backend))
    desk = requests_of(backend, gate).for_front(front, Refer())
    for shows_previous in (False, True):
        gate.asked.clear()
        desk.watch(Line(), b"a", b"b", shows_previous=shows_previous)
        asked = [Action.WATCH, Action.READ] if shows_previous else [Action.WATCH]
        assert [each[1:] for each in gate.asked] == [(action, b"a", b"b") for action in asked]


@pytest.mark.parametrize(
    "enter",
    [
        lambda desk: desk.write(Line(), (b"secret/k", b"9")),
        lambda desk: desk.write(Line(), Transaction((), (Put(b"secret/k", b"9"),))),
        lambda desk: desk.write(Line(), Transaction((), (EndSession(SESSION.encode()),))),
        lambda desk: desk.get(Line(), b"secret/k"),
        lambda desk: desk.get(Line(), b"secret/k", STALE),
        lambda desk: desk.look(Line(), b"", None, STALE, lambda _: None),
        lambda desk: desk.wait(Line(), b"secret/k", 0, 0.0, STALE, lambda _: None),
        lambda desk: desk.watch(Line(), b"", None, shows_previous=False),
        lambda desk: desk.back_up(Line(), lambda *_: None),
        lambda desk: desk.check_holdings(Line(), SESSION.encode(), b"secret/k"),
    ],
)
def test_no_front_gets_past_the_gate(
    backend: FakeBackend, gate: Denying, enter: Callable[[Desk[Line]], object]
) -> None:
    requests = requests_of(backend, gate)
    front = LineFront(requests)
    with pytest.raises(Forbidden, match="a line may not"):
        enter(requests.for_front(front, Refer()))
    end(requests)
    assert (backend.batches, backend.reads, backend.confirmations) == ([], [], 0)
    assert front.say("GET secret/k").answer == "ERROR a line may not read what is secret"
    with closing(backend.store.snapshot()) as state:
        assert list(state.items()) == []
