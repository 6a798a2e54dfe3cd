"""What clients may make the server do in one go, or keep: words, closes, memory, slow readers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from conure.net import reactor as reactor_file
from conure.net.reactor import Bounds
from conure.resp import audience as audience_file
from conure.resp.connection import RespConnection
from conure.resp.limits import Limits
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


@pytest.fixture
def tight() -> Iterator[RespService]:
    """A service with little room for what arrives, and what leaves."""
    service = RespService(bounds=Bounds(max_arriving_bytes=200_000, max_leaving_bytes=8 << 20))
    yield service
    service.close()


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (("PUBSUB", "NUMSUB"), 4096),
        (("COMMAND", "INFO"), 512),
        (("COMMAND", "DOCS"), 512),
        (("CLIENT", "LIST", "ID"), 4096),
        (("CLIENT", "KILL"), 4096),
        (("INFO",), 4096),
    ],
)
def test_words_that_are_taken_in_one_go_are_so_many(
    client: RespClient, words: tuple[str, ...], most: int
) -> None:
    found = client.ask(*words, *["1"] * (most - len(words)))
    assert "too many arguments" not in str(found)
    error = client.ask(*words, *["1"] * (most - len(words) + 1))
    assert isinstance(error, ErrorReply)
    assert str(error).startswith("ERR ")
    assert f"the limit is {most:,} words" in str(error)


def test_words_that_are_taken_in_turns_may_be_more(client: RespClient) -> None:
    client.send(command("UNSUBSCRIBE", *["c"] * 10_000) + command("PING"))
    for _ in range(10_000):
        assert client.read() == [b"unsubscribe", b"c", 0]
    assert client.read() == b"PONG"


def test_the_last_filter_of_a_kind_counts(service: RespService, client: RespClient) -> None:
    with service.client() as other:
        number = other.ask("CLIENT", "ID")
        assert client.ask("CLIENT", "KILL", "ID", number + 1, "ID", number) == 1
        assert other.read_to_end() == b""
    with service.client() as other:
        other.ask("SUBSCRIBE", "c")
        kill = ("CLIENT", "KILL", "TYPE", "normal", "TYPE", "pubsub")
        assert client.ask(*kill, "ADDR", "nobody") == 0
        assert client.ask(*kill, "LADDR", "x", "USER", "default") == 0
        assert client.ask(*kill) == 1
        assert other.read_to_end() == b""


def test_many_are_closed_in_turns(service: RespService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_file, "_CLOSING_TIME", 0.0)
    many = [service.client() for _ in range(60)]
    for client in many:
        client.ask("PING")
    with service.client() as other:
        closed = []
        close_doomed = service.reactor._close_doomed

        def count() -> None:
            before = len(service.reactor.connections)
            close_doomed()
            closed.append(before - len(service.reactor.connections))

        service.reactor._close_doomed = count  # type: ignore[method-assign]
        assert other.ask("CLIENT", "KILL", "TYPE", "normal") == 60
        wait_until(lambda: len(service.reactor.connections) == 1)
        assert max(closed) == 1
    for client in many:
        client.close()


def test_deadlines_are_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_file, "_CHECKING_TIME", 0.0)
    service = RespService(limits=Limits(idle_timeout=0.1))
    try:
        many = [service.client() for _ in range(30)]
        for client in many:
            assert client.read_to_end() == b""  # each has been looked at
            client.close()
    finally:
        service.close()


def test_what_is_queued_counts_for_all_clients(tight: RespService) -> None:
    with tight.client() as one, tight.client() as two:
        for client in (one, two):
            client.ask("MULTI")
        assert one.ask("SET", "a", "v" * 60_000) == b"QUEUED"
        error = two.ask("SET", "a", "v" * 60_000)
        assert str(error).startswith("TRYAGAIN ")
        assert str(two.ask("EXEC")).startswith("EXECABORT ")
        assert one.ask("DISCARD") == b"OK"
        two.ask("MULTI")
        assert two.ask("SET", "a", "v" * 60_000) == b"QUEUED"
        assert two.ask("EXEC") == [b"OK"]
        one.ask("MULTI")
        assert one.ask("SET", "a", "v" * 60_000) == b"QUEUED"
        one.ask("RESET")
        assert tight.reactor.arriving == 0


def test_a_queued_command_that_comes_in_pieces_counts_once(tight: RespService) -> None:
    with tight.client() as client:
        client.ask("MULTI")
        whole = command("SET", "a", "v" * 60_000)
        client.send(whole[:-100])
        wait_until(lambda: tight.reactor.arriving > 59_000)
        client.send(whole[-100:])
        assert client.read() == b"QUEUED"


def test_what_is_queued_leaves_room_for_what_arrives(tight: RespService) -> None:
    with tight.client() as one, tight.client() as two, tight.client() as three:
        for client, count in ((one, 3), (two, 2)):
            client.ask("MULTI")
            for _ in range(count):
                client.ask("SET", "a", "v" * 30_000)
        data = command("SET", "b", "v" * 100_000)
        three.send(data[:-1])
        wait_until(lambda: tight.reactor.arriving >= 190_000)
        three.send(data[-1:])
        assert three.read() == b"OK"
        assert str(two.ask("EXEC")).startswith("EXECABORT ")
        assert one.ask("EXEC") == [b"OK"] * 3


def test_watched_keys_count_for_all_clients(tight: RespService) -> None:
    keys = [f"{number:01000}" for number in range(60)]
    with tight.client() as one, tight.client() as two:
        assert one.ask("WATCH", *keys) == b"OK"
        assert str(two.ask("WATCH", *keys)).startswith("TRYAGAIN ")
        assert one.ask("UNWATCH") == b"OK"
        assert two.ask("WATCH", *keys) == b"OK"
    wait_until(lambda: not tight.reactor.connections)
    assert tight.reactor.arriving == 0


def test_names_that_wait_count(tight: RespService) -> None:
    """Who subscribes while the node can't listen yet makes it keep the names."""
    tight.messenger.is_held = True
    clients = [tight.client() for _ in range(8)]
    for number, client in enumerate(clients):
        names = [f"{number}-{each}" * 10 for each in range(8000)]
        client.send(command("SUBSCRIBE", *names))
    refused = [client for client in clients[-3:] if str(client.read()).startswith("TRYAGAIN ")]
    assert refused
    tight.messenger.go_on()
    for client in clients:
        client.close()


def test_what_is_known_of_patterns_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience_file, "_KNOWN_MATCHES", 100)
    service = RespService()
    try:
        with service.client() as client, service.client() as publisher:
            client.send(command("PSUBSCRIBE", *[f"*{'*' * each}" for each in range(20)]))
            for _ in range(20):
                client.read()
            audience = service.resp.audience
            for number in range(40):
                assert publisher.ask("PUBLISH", f"c{number}", "m") == 20
                for _ in range(20):
                    assert client.read()[2:] == [b"c%d" % number, b"m"]
                assert audience._matches == sum(
                    len(each) + 1 for each in audience._matched.values()
                )
                assert audience._matches <= 100
    finally:
        service.close()


def test_a_message_for_many_patterns_is_handed_out_in_steps(
    service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has few subscribers, so it is not by these that steps are counted."""
    monkeypatch.setattr(audience_file, "_SHARE", 0.0)
    audience = service.resp.audience
    steps: list[int] = []
    hand_out = audience._pump

    def pump() -> None:
        before = audience.delivered
        hand_out()
        steps.append(audience.delivered - before)

    monkeypatch.setattr(audience, "_pump", pump)
    with service.client() as client, service.client() as publisher:
        client.send(command("PSUBSCRIBE", *[f"*{'*' * each}" for each in range(100)]))
        for _ in range(100):
            client.read()
        assert publisher.ask("PUBLISH", "c", "m") == 100
        for _ in range(100):
            assert client.read()[2:] == [b"c", b"m"]
    assert max(steps) <= 8


def test_who_reads_a_little_now_and_then_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    service = RespService(bounds=Bounds(max_leaving_bytes=8 << 20))
    monkeypatch.setattr(audience_file, "_PATIENCE", 0.2)
    monkeypatch.setattr(audience_file, "_RELIEF", 0.02)
    slow = []
    for _ in range(6):
        client = service.client()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.ask("SUBSCRIBE", "large")
        client.socket.settimeout(0.001)
        slow.append(client)
    ended = Event()

    def drip() -> None:
        while not ended.wait(0.01):
            for each in slow:
                try:
                    each.socket.recv(2000)
                except OSError:
                    continue

    thread = Thread(target=drip)
    thread.start()
    try:
        with service.client() as quick, service.client() as publisher:
            quick.ask("SUBSCRIBE", "small")
            while not service.resp.audience.dropped:
                publisher.ask("PUBLISH", "large", "m" * (1 << 19))
            while publisher.ask("PUBLISH", "small", "m") != 1:  # refused: too much is queued
                pass
            assert quick.read() == [b"message", b"small", b"m"]
    finally:
        ended.set()
        thread.join()
        for client in slow:
            client.close()
        service.close()


def test_those_who_read_nothing_are_disconnected_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = RespService(bounds=Bounds(max_leaving_bytes=8 << 20))
    audience = service.resp.audience
    monkeypatch.setattr(audience_file, "_PATIENCE", 0.0)
    monkeypatch.setattr(audience_file, "_RELIEF", 0.02)
    monkeypatch.setattr(audience_file, "_SHARE", 0.0)
    drop = audience._drop
    rounds: list[float] = []

    def note(client: RespConnection) -> None:
        rounds.append(service.reactor.now)
        drop(client)

    monkeypatch.setattr(audience, "_drop", note)
    with ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(service.client())
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.ask("SUBSCRIBE", "large")
        publisher = stack.enter_context(service.client())
        while len(rounds) < 2:
            publisher.ask("PUBLISH", "large", "m" * (1 << 19))
        assert len(set(rounds)) == len(rounds)
    service.close()


def test_what_others_do_not_read_holds_up_no_message(tight: RespService) -> None:
    with tight.client() as client, tight.client() as publisher:
        client.ask("SUBSCRIBE", "c")
        tight.reactor.leaving += 6 << 20  # as answers to others have
        assert publisher.ask("PUBLISH", "c", "m") == 1
        assert client.read() == [b"message", b"c", b"m"]
        tight.reactor.leaving -= 6 << 20


def test_a_refused_command_keeps_no_words(service: RespService, client: RespClient) -> None:
    """Its reply may have to wait behind one that takes long."""
    client.ask("PING")
    publish = service.messenger.publish
    held: list[Callable[..., None]] = []

    def hold(channel: bytes, message: bytes, reply: Callable[..., None]) -> None:
        if held:
            publish(channel, message, reply)
        else:
            held.append(reply)

    service.messenger.publish = hold  # type: ignore[method-assign]
    client.send(command("PUBLISH", "c", "first") + command("PUBLISH", "c", "m" * 1000) * 9)
    (connection,) = service.resp.clients.all()
    wait_until(lambda: [each.missing for each in connection.waiting] == [1] + [0] * 9)
    assert [len(each.words) for each in connection.waiting] == [3] + [0] * 9
    held[0](None)
    assert [client.read() for _ in range(10)] == [0] * 10
