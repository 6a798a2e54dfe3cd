"""lone.py: lone commands get the bytes that they would get otherwise, whatever comes after them."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from sys import maxsize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import ConureError, Forbidden, Unavailable
from conure.resp.connection import RespConnection
from conure.resp.failures import error_reply
from conure.resp.limits import Limits
from conure.resp.lone import LoneGets
from conure.resp.waiters import Pending
from conure.service.backend import Command, Reply, WriteReply
from conure.service.gate import Action, Caller
from tests.lab.httpservice import FakeBackend
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService


class SlowBackend(FakeBackend):
    """Confirms and commits when it is told to, in the order of being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.held: deque[Callable[[], None]] = deque()
        self.is_slow = True

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        self.held.append(partial(super().write, list(commands), reply, kept))
        self._answer_if_fast()

    def confirm_read(
        self,
        reply: Reply,
        requests: int = 1,
        *,
        passes_on: bool = False,
        kept: Reply | None = None,
        kept_requests: int = 0,
    ) -> None:
        confirm = partial(super().confirm_read, reply, requests, passes_on=passes_on)
        self.held.append(partial(confirm, kept=kept, kept_requests=kept_requests))
        self._answer_if_fast()

    def answer_all(self) -> None:
        while self.held:
            self.held.popleft()()

    def _answer_if_fast(self) -> None:
        if not self.is_slow:
            self.answer_all()


@pytest.fixture
def slow() -> Iterator[RespService]:
    service = RespService(SlowBackend())
    yield service
    slow_of(service).is_slow = False
    slow_of(service).answer_all()
    service.close()


def slow_of(service: RespService) -> SlowBackend:
    assert isinstance(service.backend, SlowBackend)
    return service.backend


def sync(client: RespClient) -> None:
    """Wait until whatever was sent before, by anybody, has been taken."""
    assert client.ask("PING") == b"PONG"


def deliver(service: RespService, client: RespClient, data: bytes, other: RespClient) -> None:
    """Send, and wait until that has been taken."""
    reactor = service.reactor
    wanted = reactor.bytes_in + len(data)
    client.send(data)
    deadline = time.monotonic() + 20
    while reactor.bytes_in < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.0001)
    sync(other)


def in_one_round(service: RespService, *sends: Callable[[], None]) -> None:
    """Have several clients send so that one round takes all of it, in that order."""
    goes_on, waits = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        assert goes_on.wait(20)

    service.reactor.post(wait)
    assert waits.wait(20)
    for send in sends:
        send()
    goes_on.set()


def without_lane(service: RespService) -> RespService:
    for each in service.resp.front.commands.values():
        each.lone = None
    return service


WORDS = st.sampled_from(
    [
        *(
            (b"GET", b"k"),
            (b"GET", b"k"),
            (b"SET", b"k", b"v"),
            (b"SET", b"k", b"w"),
            (b"get", b"l"),
        ),
        *((b"SET", b"l", b"x" * 40_000), (b"SET", b"k", b"v", b"NX"), (b"GET", b""), (b"GET",)),
        *((b"PING",), (b"ECHO", b"e"), (b"INCR", b"n"), (b"MGET", b"k", b"l"), (b"DEL", b"k")),
        *((b"HELLO", b"3"), (b"HELLO", b"2"), (b"CLIENT", b"REPLY", b"SKIP"), (b"RESET",)),
        *((b"CLIENT", b"REPLY", b"OFF"), (b"CLIENT", b"REPLY", b"ON"), (b"MULTI",), (b"EXEC",)),
        *((b"READONLY",), (b"READWRITE",), (b"SET", b"k"), (b"NOTHING",), (b"WATCH", b"k")),
    ]
)
SENT = st.lists(WORDS, min_size=1, max_size=3)
STEPS = st.lists(st.tuples(st.integers(0, 2), st.none() | SENT | SENT), min_size=1, max_size=12)
"""Who sends what at once; None: what is asked for by then is answered."""


def said(service: RespService, steps: list[tuple[int, list[tuple[bytes, ...]] | None]]) -> object:
    """Return all that three clients are answered; each has keys of its own."""
    backend = slow_of(service)
    backend.is_slow = True
    with ExitStack() as stack:
        other = stack.enter_context(service.client())
        clients = [stack.enter_context(service.client()) for _ in range(3)]
        for number, sent in steps:
            if sent is None:
                backend.answer_all()
            else:
                own = b"%d" % number
                data = b"".join(
                    command(*(word + own if word in (b"k", b"l", b"n") else word for word in words))
                    for words in sent
                )
                deliver(service, clients[number], data, other)
        backend.is_slow = False
        service.reactor.post(backend.answer_all)
        for each in clients:
            each.socket.shutdown(socket.SHUT_WR)
        found = [each.read_to_end() for each in clients]
        assert other.ask("FLUSHALL") == b"OK"
        return found


def test_the_lane_changes_no_byte(slow: RespService) -> None:
    plain = without_lane(RespService(SlowBackend()))

    @settings(deadline=None, max_examples=120)
    @given(STEPS)
    def run(steps: list[tuple[int, list[tuple[bytes, ...]] | None]]) -> None:
        assert said(slow, steps) == said(plain, steps)

    run()
    plain.close()


def test_lone_commands_of_a_round_are_one_read_and_one_batch(service: RespService) -> None:
    clients = [service.client() for _ in range(20)]
    for each in clients:
        sync(each)
    before = service.reactor.requests
    sets = [partial(each.send, command("SET", f"k{n}", n)) for n, each in enumerate(clients)]
    in_one_round(service, *sets)
    assert [each.read() for each in clients] == [b"OK"] * 20
    assert len(service.backend.batches) == 1
    gets = [partial(each.send, command("GET", f"k{n}")) for n, each in enumerate(clients)]
    in_one_round(service, *gets)
    assert [each.read() for each in clients] == [b"%d" % n for n in range(20)]
    assert service.backend.confirmations == 1
    assert service.reactor.requests == before + 40
    page = service.registry.render().decode()
    assert "conure_resp_command_duration_seconds_count 40" in page
    assert 'conure_resp_commands_total{command="get"} 20' in page
    for each in clients:
        each.close()


def test_lone_commands_and_pipelines_share_a_round(service: RespService) -> None:
    service.backend.values = {b"k%d" % n: b"%d" % n for n in range(9)}
    clients = [service.client() for _ in range(5)]
    for each in clients:
        sync(each)
    sent = [("k0",), ("k5", "k6"), ("k1",), ("k2",), ("k3",)]
    data = [b"".join(command("GET", key) for key in keys) for keys in sent]
    in_one_round(service, *map(partial, [each.send for each in clients], data))
    for each, keys in zip(clients, sent, strict=True):
        assert [each.read() for _ in keys] == [key[1:].encode() for key in keys]
        each.close()
    assert service.backend.confirmations == 1


def test_nobody_waits_for_the_long_values_of_others(service: RespService) -> None:
    backend = service.backend
    backend.values = {b"a": b"x" * (1 << 20), b"b": b"y" * 100_000, b"c": b"z"}
    clients = [service.client() for _ in range(6)]
    for each in clients:
        sync(each)
    answered: list[list[bool]] = []
    get_all = backend.get_all

    def note(keys: Sequence[bytes], most: int = maxsize, longest: int = 0) -> object:
        some = [service.resp.clients.get(number) for number in range(1, 7)]
        answered.append([each is not None and not (each.waiting or each.lone) for each in some])
        return get_all(keys, most, longest)

    backend.get_all = note  # type: ignore[method-assign, assignment]
    gets = [partial(c.send, command("GET", k)) for c, k in zip(clients, "cabcbc", strict=True)]
    in_one_round(service, *gets)
    found = [each.read() for each in clients]
    assert [len(each) for each in found] == [1, 1 << 20, 100_000, 1, 100_000, 1]
    assert answered == [[False] * 6, [True, True, False, True, False, True]]
    sync(clients[0])
    assert service.reactor.in_flight == 0
    for each in clients:
        each.close()


def test_members_are_set_apart_by_the_reactor_alone(
    slow: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = slow_of(slow)
    backend.values = {b"a": b"x" * (1 << 20), b"b": b"y" * 100_000, b"c": b"z"}
    threads = []
    settle = RespConnection.settle

    def note(client: RespConnection) -> Pending:
        threads.append(threading.get_ident())
        return settle(client)

    monkeypatch.setattr(RespConnection, "settle", note)
    clients = [slow.client() for _ in range(6)]
    with slow.client() as other:
        for each in (*clients, other):
            sync(each)
        gets = [partial(c.send, command("GET", k)) for c, k in zip(clients, "cabcbc", strict=True)]
        in_one_round(slow, *gets)
        sync(other)
        backend.answer_all()  # in this thread
        found = [each.read() for each in clients]
        assert [len(each) for each in found] == [1, 1 << 20, 100_000, 1, 100_000, 1]
        sync(other)
        assert slow.reactor.in_flight == 0
    assert set(threads) == {slow.reactor.ident}
    for each in clients:
        each.close()


def test_a_lone_command_after_others_waits_for_them(slow: RespService) -> None:
    backend = slow_of(slow)
    backend.confirm_read = partial(FakeBackend.confirm_read, backend)  # type: ignore[method-assign]
    with slow.client() as client, slow.client() as other:
        sync(other)
        deliver(slow, client, command("SET", "k", "v") * 2, other)
        deliver(slow, client, command("GET", "k"), other)
        backend.is_slow = False
        slow.reactor.post(backend.answer_all)
        assert [client.read() for _ in range(3)] == [b"OK", b"OK", b"v"]


def test_each_round_has_a_waiter_of_its_own(service: RespService, client: RespClient) -> None:
    for _ in range(3):
        assert client.ask("GET", "k") is None
    lone = [each for each in gc.get_objects() if type(each) is LoneGets]
    assert [len(each._members) for each in lone if each.client.reactor is service.reactor] == [1]


def test_what_follows_a_lone_command_waits_for_its_reply(slow: RespService) -> None:
    backend = slow_of(slow)
    with slow.client() as client, slow.client() as other:
        sync(other)
        for words in (("SET", "k", "v"), ("PING",), ("GET", "k")):
            deliver(slow, client, command(*words), other)
        assert slow.reactor.in_flight == 2
        client.socket.settimeout(0.02)
        with pytest.raises(TimeoutError):
            client.socket.recv(1)
        client.socket.settimeout(20)
        backend.is_slow = False
        slow.reactor.post(backend.answer_all)
        assert [client.read() for _ in range(3)] == [b"OK", b"PONG", b"v"]
        sync(other)
        assert slow.reactor.in_flight == 0


def test_who_has_gone_is_answered_nothing_and_counts_no_more(slow: RespService) -> None:
    backend = slow_of(slow)
    with slow.client() as stays, slow.client() as other:
        with slow.client() as goes, slow.client() as settles:
            for each in (goes, stays, settles):
                sync(each)
            in_one_round(
                slow,
                *(partial(each.send, command("GET", "k")) for each in (goes, stays, settles)),
            )
            sync(other)
            deliver(slow, settles, command("PING"), other)
            for each in (goes, settles):  # a reset, not an end, which could wait for its reply
                linger = struct.pack("ii", 1, 0)
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        deadline = time.monotonic() + 20
        while len(slow.resp.clients) > 2:
            assert time.monotonic() < deadline
            sync(other)
        assert slow.reactor.in_flight == 3
        backend.answer_all()
        assert stays.read() is None
        sync(other)
        assert slow.reactor.in_flight == 0


def test_a_client_that_sends_no_more_has_its_lone_reply(slow: RespService) -> None:
    with slow.client() as client, slow.client() as other:
        sync(other)
        deliver(slow, client, command("SET", "k", "v"), other)
        client.socket.shutdown(socket.SHUT_WR)
        sync(other)
        slow_of(slow).answer_all()
        assert client.read_to_end() == b"+OK\r\n"


def test_a_lone_command_is_answered_before_a_stop() -> None:
    service = RespService(SlowBackend())
    backend = slow_of(service)
    with service.client() as client, service.client() as other:
        sync(other)
        deliver(service, client, command("SET", "k", "v"), other)

        def answer_when_others_are_gone() -> None:
            assert other.read_to_end() == b""
            backend.answer_all()

        answers = threading.Thread(target=answer_when_others_are_gone)
        answers.start()
        service.close()
        answers.join()
        assert client.read_to_end() == b"+OK\r\n"


@pytest.mark.parametrize("words", [("GET", "k"), ("SET", "k", "v")])
def test_an_error_is_told_to_each(service: RespService, words: tuple[str, ...]) -> None:
    service.backend.error = Unavailable("soon")
    clients = [service.client() for _ in range(3)]
    for each in clients:
        sync(each)
    in_one_round(service, *(partial(each.send, command(*words)) for each in clients))
    assert [each.read() for each in clients] == [ErrorReply("TRYAGAIN soon")] * 3
    for each in clients:
        each.close()


def test_a_bug_in_the_answer_of_many_is_told_to_each(
    service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [service.client() for _ in range(3)]
    for each in clients:
        sync(each)
    with monkeypatch.context() as patch:
        patch.setattr(LoneGets, "take_found", None)
        in_one_round(service, *(partial(each.send, command("GET", "k")) for each in clients))
        internal = ErrorReply("ERR internal error; the log of this node has more")
        assert [each.read() for each in clients] == [internal] * 3
    for each in clients:
        assert each.ask("GET", "k") is None
        each.close()


def test_a_bug_amid_the_answer_of_many_counts_each_once(
    slow: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = slow_of(slow)
    backend.values = {b"a": b"1", b"b": b"2"}
    backend.damaged = b"c"
    clients = [slow.client() for _ in range(3)]
    with slow.client() as other:
        for each in (*clients, other):
            sync(each)
        gets = [partial(c.send, command("GET", k)) for c, k in zip(clients, "abc", strict=True)]
        in_one_round(slow, *gets)
        sync(other)
        deliver(slow, clients[1], command("PING"), other)
        assert slow.reactor.in_flight == 3
        left = ["a bug"]

        def reply_of(error: ConureError | str) -> bytes:
            if left:
                raise ValueError(left.pop())
            return error_reply(error)

        monkeypatch.setattr("conure.resp.lone.error_reply", reply_of)
        slow.reactor.post(backend.answer_all)
        assert clients[0].read() == b"1"
        assert [clients[1].read() for _ in range(2)] == [b"2", b"PONG"]
        internal = ErrorReply("ERR internal error; the log of this node has more")
        assert clients[2].read() == internal
        sync(other)
        assert slow.reactor.in_flight == 0
    for each in clients:
        each.close()


def test_a_round_that_fails_is_told_to_each(
    service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [service.client() for _ in range(3)]
    for each in clients:
        sync(each)

    def fail() -> bool:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(service.resp.front, "_end_round", fail)
        in_one_round(
            service,
            partial(clients[0].send, command("SET", "k", 1) * 2),
            *(partial(each.send, command("SET", "k", 1)) for each in clients[1:]),
        )
        internal = ErrorReply("ERR internal error; the log of this node has more")
        assert [each.read() for each in (*clients, clients[0])] == [internal] * 4
    for each in clients:  # what the round asked for comes with the next, and is nobody's
        assert each.ask("SET", "k", 2) == b"OK"
        each.close()


def test_who_may_not_ask_costs_others_nothing() -> None:
    refused: list[str] = []

    class Refusing:
        def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
            if start == b"no":
                refused.append(who.address)
                raise Forbidden("not yours")

    service = RespService(gate=Refusing())
    service.backend.values = {b"a": b"1", b"b": b"2"}
    clients = [service.client() for _ in range(3)]
    for each in clients:
        sync(each)
    addresses = [f"127.0.0.1:{each.socket.getsockname()[1]}" for each in clients]
    keys = ("a", "no", "b")
    gets = [partial(c.send, command("GET", k)) for c, k in zip(clients, keys, strict=True)]
    in_one_round(service, *gets)
    refusal = ErrorReply("NOPERM not yours")
    assert [each.read() for each in clients] == [b"1", refusal, b"2"]
    sets = [partial(c.send, command("SET", k, 7)) for c, k in zip(clients, keys, strict=True)]
    in_one_round(service, *sets)
    assert [each.read() for each in clients] == [b"OK", refusal, b"OK"]
    assert refused == [addresses[1]] * 2
    one = clients[0]
    one.send(b"".join(command("GET", key) for key in keys))
    assert [one.read() for _ in keys] == [b"7", refusal, b"7"]
    one.send(b"".join(command("SET", key, 8) for key in keys))
    assert [one.read() for _ in keys] == [b"OK", refusal, b"OK"]
    assert one.ask("GET", "b") == b"8"
    for each in clients:
        each.close()
    service.close()


def test_a_bug_of_the_gate_costs_others_nothing() -> None:
    class Failing:
        def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
            if start == b"bug":
                raise ValueError("a bug")

    service = RespService(gate=Failing())
    service.backend.values = {b"a": b"1", b"b": b"2"}
    clients = [service.client() for _ in range(3)]
    for each in clients:
        sync(each)
    keys = ("a", "bug", "b")
    internal = ErrorReply("ERR internal error; the log of this node has more")
    gets = [partial(c.send, command("GET", k)) for c, k in zip(clients, keys, strict=True)]
    in_one_round(service, *gets)
    assert [each.read() for each in clients] == [b"1", internal, b"2"]
    sets = [partial(c.send, command("SET", k, 7)) for c, k in zip(clients, keys, strict=True)]
    in_one_round(service, *sets)
    assert [each.read() for each in clients] == [b"OK", internal, b"OK"]
    for each in clients:
        each.close()
    service.close()


def test_lone_commands_that_were_slow_are_logged() -> None:
    service = RespService(limits=Limits(slow_command=0.0))
    with service.client() as client:
        assert client.ask("SET", "k", "v") == b"OK"
        assert client.ask("GET", "k") == b"v"
        entries = client.ask("SLOWLOG", "GET")
        assert [each[3] for each in entries] == [[b"GET", b"k"], [b"SET", b"k", b"v"]]
        assert service.resp.front.slow_commands == 2
        assert client.ask("SET", "k", "x" * 20_000) == b"OK"
        assert len(client.ask("GET", "k")) == 20_000
    assert service.resp.front.slow_commands == 4
    service.close()


def test_a_long_value_is_counted_until_it_has_left(service: RespService) -> None:
    service.backend.values = {b"k": b"x" * 3_000_000}
    with service.client() as rude, service.client() as other:
        rude.send(command("GET", "k"))
        deadline = time.monotonic() + 20
        while not service.reactor.leaving:
            assert time.monotonic() < deadline
            sync(other)
        assert len(rude.read()) == 3_000_000
        sync(other)
        assert service.reactor.leaving == 0
        connection = service.resp.clients.get(1)
        assert connection is not None
        assert connection.run == 1  # its reads are taken one by one, until values are short again


def test_too_many_lone_commands_are_refused(slow: RespService) -> None:
    slow.reactor.most_in_flight = 1
    clients = [slow.client() for _ in range(4)]
    for each in clients:
        sync(each)
    in_one_round(slow, *(partial(each.send, command("GET", "k")) for each in clients))
    crowded = ErrorReply("TRYAGAIN too many commands are under way, try again shortly")
    assert [each.read() for each in clients[2:]] == [crowded] * 2
    slow_of(slow).answer_all()
    assert [each.read() for each in clients[:2]] == [None] * 2
    for each in clients:
        each.close()


def test_a_session_that_is_not_plain_has_no_lane(service: RespService, client: RespClient) -> None:
    with service.client() as other:
        sync(other)
        for words in (("CLIENT", "REPLY", "OFF"), ("GET", "k"), ("SET", "k", "v")):
            deliver(service, client, command(*words), other)
        assert client.ask("CLIENT", "REPLY", "ON") == b"OK"
    assert client.ask("MULTI") == b"OK"
    assert client.ask("GET", "k") == b"QUEUED"
    assert client.ask("EXEC") == [b"v"]
