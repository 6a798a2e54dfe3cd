"""guarded: connections of other machines in protected mode, and clients that are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conure.net.rates import Rates
from conure.protection import Door
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService

DOOR = Door("resp_addr", "--resp-addr=127.0.0.1:9090")
LIMITED = "ERR rate limit: {} requests a second for each client; try again in {} s"


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(door: Door | None = None, rates: Rates | None = None) -> Iterator[RespService]:
    service = RespService(door=door, rates=rates) if door else RespService(rates=rates)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def limited(requests: int, size: int = 0) -> Iterator[tuple[RespService, RespClient, Clock]]:
    clock = Clock()
    rates = Rates(requests, size, clock=clock)
    with serving(rates=rates) as service, service.visitor() as client:
        yield service, client, clock


def too_many(requests: int, seconds: int = 1) -> ErrorReply:
    return ErrorReply(LIMITED.format(requests, seconds))


# -- protected mode ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        command("PING"),
        command("GET", "k"),
        command("HELLO", 3) + command("CLIENT", "SETNAME", "a"),
        command("AUTH", "x"),
        command("QUIT"),
        b"PING\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"*1\r\n$999999\r\nhalf a command",
        b"\xff\xfe nothing at all",
        command("SET", "k", 60_000 * "v"),
    ],
)
def test_another_machine_hears_why_it_is_denied_whatever_it_says(data: bytes) -> None:
    with serving(DOOR) as service, service.visitor() as client:
        client.send(data)
        assert client.read_to_end() == f"-DENIED {DOOR.why}\r\n".encode()
        assert service.backend.store.records == 0
        assert service.resp.front.protocol_errors == 0


def test_this_machine_is_served_all_the_while() -> None:
    with serving(DOOR) as service, service.client() as ours, service.visitor() as client:
        assert ours.ask("SET", "k", "v") == b"OK"
        client.send(command("GET", "k"))
        assert isinstance(client.read(), ErrorReply)
        with pytest.raises(EOFError):
            client.read()
        assert ours.ask("GET", "k") == b"v"
        with service.visitor("127.0.0.9") as other:
            assert other.ask("GET", "k") == b"v"


def test_one_that_says_nothing_may_leave_again() -> None:
    with serving(DOOR) as service:
        service.visitor().close()
        with service.visitor() as client:
            client.socket.shutdown(1)
            assert client.read_to_end() == b""


# -- rates ---------------------------------------------------------------------------------------


def test_commands_are_counted_one_by_one_and_the_connection_stays() -> None:
    with limited(3) as (service, client, clock):
        assert [client.ask("PING") for _ in range(2)] == [b"PONG"] * 2
        assert client.ask("SET", "k", "v") == b"OK"
        assert client.ask("GET", "k") == too_many(3)
        assert client.ask("SET", "k", "w") == too_many(3)
        assert client.ask("NONSENSE") == too_many(3)
        clock.now += 1
        assert client.ask("GET", "k") == b"v"
        with service.visitor() as other:
            assert [other.ask("GET", "k") for _ in range(3)] == [b"v", b"v", too_many(3)]
        with service.client() as ours:
            assert {ours.ask("GET", "k") for _ in range(20)} == {b"v"}


@pytest.mark.parametrize("allowed", [1, 2, 5])
@pytest.mark.parametrize("words", [("SET", "k", "v"), ("GET", "k"), ("PING",)])
def test_of_a_pipeline_the_first_are_done(words: tuple[str, ...], allowed: int) -> None:
    with limited(allowed) as (service, client, _):
        client.send(9 * command(*words) + command("SET", "last", "1"))
        replies = [client.read() for _ in range(10)]
        assert too_many(allowed) not in replies[:allowed]
        assert replies[allowed:] == [too_many(allowed)] * (10 - allowed)
        with service.client() as ours:
            assert ours.ask("EXISTS", "last") == 0


def test_what_is_mixed_is_answered_in_its_order() -> None:
    clock = Clock()
    with serving(rates=Rates(6, clock=clock)) as service, service.visitor() as client:
        run = [("SET", "a", "1"), ("SET", "b", "2"), ("GET", "a"), ("PING",), ("INCR", "a"),
               ("GET", "b"), ("GET", "a"), ("PING",), ("SET", "a", "9")]  # fmt: skip
        client.send(b"".join(command(*words) for words in run))
        replies = [client.read() for _ in run]
        assert replies == [b"OK", b"OK", b"1", b"PONG", 2, b"2"] + [too_many(6)] * 3
        clock.now += 1
        assert client.ask("GET", "a") == b"2"


def test_each_that_a_transaction_queues_is_counted_and_none_is_left_out_in_silence() -> None:
    with limited(4) as (_, client, clock):
        client.send(
            command("MULTI") + 2 * command("INCR", "a") + command("EXEC") + command("GET", "a")
        )
        assert [client.read() for _ in range(5)] == [
            *(b"OK", b"QUEUED", b"QUEUED", [1, 2], too_many(4))
        ]
        clock.now += 1
        client.send(command("MULTI") + 9 * command("INCR", "a"))
        assert [client.read() for _ in range(10)][4:] == [too_many(4)] * 6
        clock.now += 2
        assert isinstance(reply := client.ask("EXEC"), ErrorReply)
        assert str(reply).startswith("EXECABORT")
        assert client.ask("GET", "a") == b"2"


def test_bytes_are_counted() -> None:
    with limited(0, 1000) as (_, client, clock):
        assert client.ask("SET", "k", 5000 * "v") == b"OK"
        reply = client.ask("PING")
        assert isinstance(reply, ErrorReply)
        assert "1000 of them a second" in str(reply)
        assert "in 5 s" in str(reply)
        clock.now += 5
        client.send(300 * command("SET", "k", "vvvv"))
        replies = [client.read() for _ in range(300)]
        assert replies[0] == b"OK"
        assert "rate limit" in str(client.ask("PING"))


def test_a_skipped_reply_is_skipped() -> None:
    with limited(2) as (_, client, clock):
        client.send(command("CLIENT", "REPLY", "SKIP") + command("PING") + command("PING"))
        assert client.read() == too_many(2)
        clock.now += 1
        client.send(command("PING") + command("CLIENT", "REPLY", "SKIP") + 2 * command("PING"))
        assert [client.read(), client.read()] == [b"PONG", too_many(2)]


def test_what_a_subscriber_hears_is_not_counted() -> None:
    with limited(2) as (service, client, _):
        assert client.ask("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]
        with service.client() as ours:
            for number in range(20):
                assert ours.ask("PUBLISH", "c", number) == 1
        assert [client.read()[2] for _ in range(20)] == [b"%d" % n for n in range(20)]
