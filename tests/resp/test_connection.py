"""connection.py: the order of replies, what is bounded, and how connections end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import inf

import pytest

from conure.errors import DiskFull, NotLeader, OutcomeUnknown, Unavailable
from conure.net import reactor as reactor_module
from conure.net.reactor import OUT
from conure.resp.limits import Limits
from conure.resp.waiters import Gets
from conure.service.backend import Command, WriteReply
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_get_and_set(client: RespClient) -> None:
    assert client.ask("GET", "k") is None
    assert client.ask("SET", "k", b"v\r\n\x00") == b"OK"
    assert client.ask("get", "k") == b"v\r\n\x00"
    assert client.ask("gEt", "k") == b"v\r\n\x00"
    client.send(b"SET k 'two words'\r\nGET k\r\n")
    assert [client.read(), client.read()] == [b"OK", b"two words"]


def test_a_pipeline_is_answered_in_its_order(service: RespService, client: RespClient) -> None:
    """Whatever is in it; and a read sees the writes before it."""
    chance = random.Random(7)
    expected: list[object] = []
    data = b""
    values: dict[str, bytes] = {}
    for number in range(2000):
        key = f"k{chance.randrange(5)}"
        kind = chance.randrange(6)
        if kind < 3:
            data += command("GET", key)
            expected.append(values.get(key))
        elif kind < 5:
            values[key] = b"%d" % number
            data += command("SET", key, values[key])
            expected.append(b"OK")
        else:
            data += command("ECHO", number)
            expected.append(b"%d" % number)
    client.send(data)
    assert [client.read() for _ in expected] == expected


def test_a_pipeline_of_writes_is_one_batch(service: RespService, client: RespClient) -> None:
    client.send(b"".join(command("SET", f"k{n}", n) for n in range(100)))
    assert [client.read() for _ in range(100)] == [b"OK"] * 100
    assert len(service.backend.batches) == 1
    client.send(command("GET", "k1") * 100)
    assert [client.read() for _ in range(100)] == [b"1"] * 100
    # A new connection's reads are few at first: how long the values are isn't known.
    assert 1 < service.backend.confirmations < 6
    before = service.backend.confirmations
    client.send(command("GET", "k1") * 100)
    assert [client.read() for _ in range(100)] == [b"1"] * 100
    assert service.backend.confirmations <= before + 2
    assert service.backend.reads == [[b"k1"]] * service.backend.confirmations


def test_replies_in_resp3(client: RespClient) -> None:
    assert client.ask("HELLO", 3)[b"proto"] == 3
    client.send(command("GET", "k"))
    assert client.socket.recv(100) == b"_\r\n"


def test_a_bug_in_one_answer_is_told_and_ends_nothing(
    service: RespService, client: RespClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Gets, "take_found", None)
        client.send(command("GET", "k") * 2 + command("ECHO", "x"))
        assert [client.read() for _ in range(3)] == [
            *[ErrorReply("ERR internal error; the log of this node has more")] * 2,
            b"x",
        ]
    assert client.ask("GET", "k") is None


def test_what_another_thread_tells_is_handed_over(service: RespService, client: RespClient) -> None:
    """A node answers late, and from its timer's thread."""
    backend = service.backend
    threads = []

    def write_later(
        commands: Sequence[Command],
        reply: WriteReply,
        kept: int | None = None,
    ) -> None:
        ended = backend.apply(commands)
        thread = threading.Thread(target=reply, args=(0, len(commands), ended))
        threads.append(thread)
        thread.start()

    backend.write = write_later  # type: ignore[method-assign]
    client.send(command("SET", "k", "v") * 3 + command("GET", "k"))
    assert [client.read() for _ in range(4)] == [b"OK", b"OK", b"OK", b"v"]
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotLeader(), "CLUSTERDOWN no leader is known, try again"),
        (DiskFull("full"), "OOM full"),
        (Unavailable("soon"), "TRYAGAIN soon"),
    ],
)
def test_errors_are_told_by_code(
    service: RespService, client: RespClient, error: Exception, text: str
) -> None:
    service.backend.error = error  # type: ignore[assignment]
    client.send(command("SET", "k", "v") * 2 + command("GET", "k") * 2)
    assert [client.read() for _ in range(4)] == [ErrorReply(text)] * 4


def test_only_what_may_have_changed_something_is_of_unknown_outcome(
    service: RespService, client: RespClient
) -> None:
    """A read among writes is proposed with them, and has done nothing whatever became of it."""
    service.backend.error = OutcomeUnknown("late")
    words = [("SET", "k", "v"), ("GET", "k"), ("INCR", "n"), ("STRLEN", "k"), ("MULTI",)]
    words += [("GET", "k"), ("EXEC",), ("MULTI",), ("GET", "k"), ("DEL", "k"), ("EXEC",)]
    client.send(b"".join(command(*each) for each in words))
    unknown = ErrorReply("UNKNOWN the write may or may not have happened: late")
    unread = ErrorReply("TRYAGAIN the read was not answered, try again")
    replies = [client.read() for _ in words]
    assert [each for each in replies if each not in (b"OK", b"QUEUED")] == [
        *(unknown, unread, unknown, unread, unread, unknown)
    ]


def test_bytes_that_are_no_command_are_told_in_their_turn(client: RespClient) -> None:
    client.send(command("SET", "k", "v") + command("GET", "k") + b"*1\r\n?" + b"x" * 100_000)
    assert [client.read() for _ in range(3)] == [
        b"OK", b"v", ErrorReply("ERR Protocol error: expected '$', got '?'")
    ]  # fmt: skip
    assert client.read_to_end() == b""


@pytest.mark.parametrize("data", [b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", b"Host: a\r\nPING\r\n"])
def test_requests_of_a_web_page_are_dropped(client: RespClient, data: bytes) -> None:
    client.send(data)
    assert client.read_to_end() == b""


def test_one_byte_at_a_time(client: RespClient) -> None:
    for byte in command("SET", "k", "v") + b"GET k\r\n" + command("PING"):
        client.send(bytes([byte]))
    assert [client.read() for _ in range(3)] == [b"OK", b"v", b"PONG"]


def test_a_hundred_thousand_pings_hold_up_nobody(
    service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor_module, "_ROUND_TIME", 0.006)
    taken: list[tuple[float, int]] = []
    resumed: list[int] = []

    def note_round() -> bool:
        taken.append((time.thread_time(), service.reactor.requests))
        resumed.append(len(service.reactor.resumed))
        return False

    with service.client() as many, service.client() as one:
        assert one.ask("PING") == b"PONG"
        service.reactor.at_round_end(note_round)
        sender = threading.Thread(target=many.send, args=(b"PING\r\n" * 100_000,))
        sender.start()
        for _ in range(100_000):
            assert many.read() == b"PONG"
        sender.join()
        assert one.ask("PING") == b"PONG"
    rounds = pairwise(taken)
    assert max(later[0] - earlier[0] for earlier, later in rounds) < 0.03  # all take a third of 1 s
    assert len(taken) > 40
    assert max(resumed) == 1


def test_a_reader_that_does_not_read_is_not_served_on(service: RespService) -> None:
    service.backend.values = {b"k": b"x" * 100_000}
    with service.client() as rude, service.client() as other:
        rude.send(command("GET", "k") * 300)
        wait_for(lambda: service.resp.clients.get(1) is not None)
        connection = service.resp.clients.get(1)
        assert connection is not None
        wait_for(lambda: connection.pending > 0 and bool(connection.interest & OUT))
        for _ in range(50):
            assert other.ask("PING") == b"PONG"
            assert service.reactor.leaving < 2 << 20
        assert [len(rude.read()) for _ in range(300)] == [100_000] * 300


def test_there_are_so_many_places(service: RespService) -> None:
    service.close()
    full = RespService(limits=Limits(max_connections=4))
    clients = [full.client() for _ in range(2)]
    assert [each.ask("PING") for each in clients] == [b"PONG", b"PONG"]
    with full.client() as late:
        assert late.read() == ErrorReply("ERR max number of clients reached")
        assert late.read_to_end() == b""
    clients.pop().close()
    wait_for(lambda: len(full.resp.clients) == 1)
    with full.client() as again:
        assert again.ask("PING") == b"PONG"
    clients.pop().close()
    full.close()


@pytest.mark.parametrize(
    ("limits", "data", "told"),
    [
        (Limits(idle_timeout=0.01), b"", b""),
        (
            Limits(request_timeout=0.01),
            b"*2\r\n$3\r\nGET\r\n",
            b"-ERR Protocol error: the command took too long to arrive\r\n",
        ),
    ],
)
def test_who_takes_too_long_is_closed(limits: Limits, data: bytes, told: bytes) -> None:
    service = RespService(limits=limits)
    with service.client() as client:
        client.send(data)
        assert client.read_to_end() == told
    service.close()


def test_time_counts_from_the_first_byte_of_a_command(
    service: RespService, client: RespClient
) -> None:
    reactor = service.reactor
    reactor.post(partial(setattr, reactor, "_next_tick", inf))  # deadlines are looked at here
    assert client.ask("PING") == b"PONG"
    (connection,) = service.resp.clients.all()

    def send(data: bytes) -> None:
        """Send while whatever was there before is old."""
        reactor.post(partial(setattr, connection, "begun", -1e6))
        wait_for(lambda: connection.begun == -1e6)
        wanted = reactor.bytes_in + len(data)
        client.send(data)
        wait_for(lambda: reactor.bytes_in == wanted)
        reactor.post(connection.check_deadlines)

    data = command("SET", "k", "v" * 100)
    send(data[:50])
    send(data[50:] + data[:50])  # the next one begins
    send(data[50:])
    assert [client.read(), client.read()] == [b"OK"] * 2
    assert client.ask("GET", "k") == b"v" * 100
    send(data[:50])
    send(data[50:60])
    late = b"-ERR Protocol error: the command took too long to arrive\r\n"
    assert client.read_to_end() == late


@pytest.mark.parametrize("words", [("GET",), ("GET", "a", "b"), ("SET", "k"), ("SET",)])
def test_each_of_many_that_are_wrong_is_refused(client: RespClient, words: tuple[str, ...]) -> None:
    client.send(command(*words) * 3 + command("PING"))
    name = words[0].lower()
    refusal = ErrorReply(f"ERR wrong number of arguments for '{name}' command")
    assert [client.read() for _ in range(4)] == [refusal] * 3 + [b"PONG"]


def test_what_arrives_is_bounded() -> None:
    service = RespService(limits=Limits(max_command_bytes=1000))
    with service.client() as client:
        client.send(command("SET", "k", b"x" * 900))
        assert client.read() == b"OK"
        client.send(b"*2\r\n$3\r\nGET\r\n$1001\r\n")
        assert client.read() == ErrorReply("ERR Protocol error: invalid bulk length")
    service.close()


def test_quit_is_answered_after_all_before_it(client: RespClient) -> None:
    client.send(command("SET", "k", "v") + command("QUIT") + command("GET", "k"))
    assert client.read_to_end() == b"+OK\r\n+OK\r\n"


def test_what_has_come_is_answered_before_a_stop(service: RespService) -> None:
    clients = [service.client() for _ in range(20)]
    for each in clients:
        assert each.ask("PING") == b"PONG"
        each.send(command("SET", "k", "v") * 500)
    for each in clients:
        assert each.read() == b"OK"
    service.close()
    for each in clients:
        rest = each.read_to_end()
        assert rest == b"+OK\r\n" * (len(rest) // 5)
        each.close()


def test_unknown_commands_and_counts(client: RespClient) -> None:
    assert client.ask("FOO", "a", "b c") == ErrorReply(
        "ERR unknown command 'FOO', with args beginning with: 'a' 'b c' "
    )
    assert client.ask("GET") == ErrorReply("ERR wrong number of arguments for 'get' command")
    assert client.ask("CLIENT", "FOO") == ErrorReply(
        "ERR unknown subcommand 'FOO'. Try CLIENT HELP."
    )
    assert client.ask("CLIENT") == ErrorReply("ERR wrong number of arguments for 'client' command")
    assert client.ask("CLIENT", "SETNAME") == ErrorReply(
        "ERR wrong number of arguments for 'client|setname' command"
    )


def test_values_have_a_limit_in_a_pipeline_too() -> None:
    service = RespService(value_bytes=100)
    with service.client() as client:
        client.send(command("SET", "k", b"x" * 100) * 2 + command("SET", "k", b"x" * 101) * 3)
        assert [client.read() for _ in range(2)] == [b"OK"] * 2
        assert all(isinstance(client.read(), ErrorReply) for _ in range(3))
        client.send(command("SET", "k" * 1025, "v") * 2 + command("GET", "") * 2)
        assert all(isinstance(client.read(), ErrorReply) for _ in range(2))
        assert len([client.read() for _ in range(2)]) == 2
        assert client.ask("GET", "k") == b"x" * 100
    service.close()
