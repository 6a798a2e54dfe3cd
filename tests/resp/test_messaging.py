"""messaging.py, audience.py and notifying.py: who hears what, and who is disconnected."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from conure.errors import NotLeader, OutcomeUnknown
from conure.net.reactor import Bounds
from conure.resp import audience as audience_file
from conure.resp.audience import Kind
from conure.resp.limits import Limits
from tests.lab.respclient import ErrorReply, Push, RespClient, command
from tests.lab.respservice import RespService


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


def is_closed(client: RespClient) -> bool:
    """Read to the end, which has to come."""
    try:
        client.read_to_end()
    except ConnectionResetError:
        return True
    return True


def subscriber(service: RespService, *names: str, protocol: int = 2) -> RespClient:
    """Return a client that has subscribed: to patterns, if they have a star."""
    client = service.client()
    if protocol == 3:
        client.ask("HELLO", 3)
    for number, name in enumerate(names, 1):
        kind = "PSUBSCRIBE" if "*" in name else "SUBSCRIBE"
        assert client.ask(kind, name) == [kind.lower().encode(), name.encode(), number]
    return client


# -- who hears what --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_message_goes_to_channel_and_patterns(service: RespService, protocol: int) -> None:
    with (
        service.client() as publisher,
        subscriber(service, "news", "n*", "*x*", protocol=protocol) as client,
    ):
        assert publisher.ask("PUBLISH", "news", "hello") == 2
        found = [client.read(), client.read()]
        assert found == [[b"message", b"news", b"hello"], [b"pmessage", b"n*", b"news", b"hello"]]
        assert all(isinstance(each, Push) for each in found) == (protocol == 3)
        assert publisher.ask("PUBLISH", "nothing", "x") == 1
        assert client.read() == [b"pmessage", b"n*", b"nothing", b"x"]
        assert publisher.ask("PUBLISH", "quiet", b"\x00\r\n") == 0
        assert service.messenger.published[-1] == (b"cquiet", b"\x00\r\n")


def test_counts_and_ends_of_subscriptions(service: RespService, client: RespClient) -> None:
    client.send(command("SUBSCRIBE", "a", "b", "a") + command("PSUBSCRIBE", "a*"))
    assert [client.read() for _ in range(4)] == [
        [b"subscribe", b"a", 1],
        [b"subscribe", b"b", 2],
        [b"subscribe", b"a", 2],
        [b"psubscribe", b"a*", 3],
    ]
    assert client.ask("UNSUBSCRIBE", "c") == [b"unsubscribe", b"c", 3]
    assert client.ask("UNSUBSCRIBE", "a") == [b"unsubscribe", b"a", 2]
    assert client.ask("UNSUBSCRIBE") == [b"unsubscribe", b"b", 1]
    assert client.ask("UNSUBSCRIBE") == [b"unsubscribe", None, 1]
    assert client.ask("PUNSUBSCRIBE") == [b"punsubscribe", b"a*", 0]
    assert client.ask("PUNSUBSCRIBE") == [b"punsubscribe", None, 0]
    assert client.ask("GET", "k") is None
    wait_until(lambda: not service.messenger.listening)


def test_only_some_commands_in_resp2(service: RespService) -> None:
    with subscriber(service, "c") as client, service.client() as other:
        error = client.ask("GET", "k")
        assert str(error) == (
            "ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
            "are allowed in this context"
        )
        assert str(client.ask("CLIENT", "ID")).startswith("ERR Can't execute 'client id'")
        assert client.ask("PING") == [b"pong", b""]
        assert client.ask("PING", "x") == [b"pong", b"x"]
        assert b" sub=1 psub=0 " in other.ask("CLIENT", "LIST", "TYPE", "pubsub")
        assert b" sub=1 " not in other.ask("CLIENT", "LIST", "TYPE", "normal")
        assert client.ask("RESET") == b"RESET"
        assert client.ask("GET", "k") is None
        assert other.ask("PUBLISH", "c", "m") == 0
        assert client.ask("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]
        assert client.ask("QUIT") == b"OK"
        assert is_closed(client)


def test_any_command_in_resp3(service: RespService) -> None:
    with subscriber(service, "c", protocol=3) as client:
        assert client.ask("SET", "k", "v") == b"OK"
        assert client.ask("PING") == b"PONG"
        client.send(command("PUBLISH", "c", "m") + command("GET", "k"))
        found = [client.read() for _ in range(3)]
        assert Push([b"message", b"c", b"m"]) in found
        assert [each for each in found if not isinstance(each, Push)] == [1, b"v"]
        assert client.ask("HELLO", 2)[5] == 2
        assert isinstance(client.ask("GET", "k"), ErrorReply)  # it can't tell messages from replies


def test_shard_channels_are_apart(service: RespService, client: RespClient) -> None:
    with subscriber(service, "c", "c*") as listener, service.client() as shard:
        shard.send(command("SSUBSCRIBE", "c", "d") + command("SUBSCRIBE", "x"))
        found = [shard.read() for _ in range(3)]
        assert found == [
            [b"ssubscribe", b"c", 1],
            [b"ssubscribe", b"d", 2],
            [b"subscribe", b"x", 1],
        ]
        assert client.ask("SPUBLISH", "c", "of a shard") == 1
        assert client.ask("PUBLISH", "c", "of all") == 2
        assert client.ask("SPUBLISH", "x", "nobody") == 0
        assert shard.read() == [b"smessage", b"c", b"of a shard"]
        assert listener.read() == [b"message", b"c", b"of all"]
        assert sorted(client.ask("PUBSUB", "SHARDCHANNELS")) == [b"c", b"d"]
        assert client.ask("PUBSUB", "SHARDCHANNELS", "[d]") == [b"d"]
        assert client.ask("PUBSUB", "SHARDNUMSUB", "c", "x") == [b"c", 1, b"x", 0]
        assert b"pubsubshard_channels:2\r" in client.ask("INFO")
        assert b" sub=1 psub=0 ssub=2 " in client.ask("CLIENT", "LIST", "TYPE", "pubsub")
        assert isinstance(shard.ask("GET", "k"), ErrorReply)
        assert shard.ask("UNSUBSCRIBE") == [b"unsubscribe", b"x", 0]
        assert shard.ask("SUNSUBSCRIBE", "c") == [b"sunsubscribe", b"c", 1]
        assert shard.ask("SUNSUBSCRIBE") == [b"sunsubscribe", b"d", 0]
        assert shard.ask("SUNSUBSCRIBE") == [b"sunsubscribe", None, 0]
        assert shard.ask("GET", "k") is None
        assert client.ask("MULTI") == b"OK"
        assert client.ask("SPUBLISH", "d", "m") == b"QUEUED"
        assert client.ask("EXEC") == [0]
    wait_until(lambda: not service.messenger.listening)
    assert client.ask("PUBSUB", "SHARDCHANNELS") == []


def test_topics_that_nobody_knows_are_passed_over(service: RespService) -> None:
    with subscriber(service, "c") as client:
        service.resp.audience.deliver([(b"", b"m"), (b"xc", b"m"), (b"cc", b"the one")])
        assert client.read() == [b"message", b"c", b"the one"]


def test_messages_come_whatever_client_reply_says(service: RespService) -> None:
    with service.client() as client, service.client() as other:
        client.ask("HELLO", 3)
        client.send(command("CLIENT", "REPLY", "OFF") + command("SUBSCRIBE", "c"))
        assert client.read() == [b"subscribe", b"c", 1]
        other.ask("PUBLISH", "c", "m")
        assert client.read() == [b"message", b"c", b"m"]


def test_a_confirmation_keeps_its_turn(service: RespService, client: RespClient) -> None:
    client.send(command("FLUSHALL") + command("CLIENT", "LIST") + command("SUBSCRIBE", "c"))
    assert client.read() == b"OK"
    assert b"cmd=client|list" in client.read()
    assert client.read() == [b"subscribe", b"c", 1]


def test_pubsub(service: RespService, client: RespClient) -> None:
    with subscriber(service, "a", "b", "x*"), subscriber(service, "a"):
        assert sorted(client.ask("PUBSUB", "CHANNELS")) == [b"a", b"b"]
        assert client.ask("PUBSUB", "CHANNELS", "[b-z]") == [b"b"]
        assert client.ask("PUBSUB", "NUMSUB", "a", "b", "c") == [b"a", 2, b"b", 1, b"c", 0]
        assert client.ask("PUBSUB", "NUMSUB") == []
        assert client.ask("PUBSUB", "NUMPAT") == 1
        text = client.ask("INFO")
        for line in (b"pubsub_channels:2\r", b"pubsub_patterns:1\r", b"pubsub_clients:2\r"):
            assert line in text
    wait_until(lambda: client.ask("PUBSUB", "CHANNELS") == [])
    assert client.ask("PUBSUB", "NUMPAT") == 0
    assert str(client.ask("PUBSUB", "SHOUT")).startswith("ERR unknown subcommand 'SHOUT'")


def test_publish_in_multi(service: RespService, client: RespClient) -> None:
    with subscriber(service, "c", "c*") as listener:
        client.ask("MULTI")
        assert client.ask("SET", "k", "v") == b"QUEUED"
        assert client.ask("PUBLISH", "c", "m") == b"QUEUED"
        error = client.ask("SUBSCRIBE", "c")
        assert str(error) == "ERR SUBSCRIBE is not allowed inside a transaction"
        client.ask("DISCARD")
        client.ask("MULTI")
        client.ask("SET", "k", "v")
        client.ask("PUBLISH", "c", "m")
        assert client.ask("EXEC") == [b"OK", 1]
        assert listener.read() == [b"message", b"c", b"m"]
        assert listener.read() == [b"pmessage", b"c*", b"c", b"m"]


def test_beside_a_model(service: RespService) -> None:
    """Clients come and go; each gets the messages of its subscriptions, in order."""
    random = Random(7)
    names = ["a", "b", "ab", "ba", "a*", "*b", "*", "b*a"]
    fits: dict[str, Callable[[str], bool]] = {
        "a*": lambda c: c.startswith("a"),
        "*b": lambda c: c.endswith("b"),
        "*": lambda _: True,
        "b*a": lambda c: len(c) > 1 and c[0] == "b" and c[-1] == "a",
    }
    clients: list[tuple[RespClient, set[str]]] = [(service.client(), set[str]()) for _ in range(6)]
    with service.client() as publisher:
        for step in range(150):
            client, own = random.choice(clients)
            name = random.choice(names)
            kind = "P" if name in fits else ""
            ending = "UNSUBSCRIBE" if name in own else "SUBSCRIBE"
            own ^= {name}
            assert client.ask(kind + ending, name)[1:] == [name.encode(), len(own)]
            channel = random.choice(["a", "b", "ab", "ba", "c"])
            expected: list[Counter[Any]] = []
            for _, own in clients:
                found = Counter[Any]([None] if channel in own else [])
                found.update(each for each in own if each in fits and fits[each](channel))
                expected.append(found)
            count = publisher.ask("PUBLISH", channel, str(step))
            assert count == sum(map(Counter.total, expected))
            for (client, _), found in zip(clients, expected, strict=True):
                for _ in range(found.total()):
                    *head, got, message = client.read()
                    assert (got, message) == (channel.encode(), str(step).encode())
                    key = head[1].decode() if head[0] == b"pmessage" else None
                    assert found[key] == 1
                    del found[key]
        for client, _ in clients:
            client.close()


# -- the node says no, or not yet ------------------------------------------------------------------


def test_a_subscription_waits_until_messages_are_heard(service: RespService) -> None:
    service.messenger.is_held = True
    with service.client() as client, service.client() as other:
        client.send(command("SUBSCRIBE", "c") + command("PING"))
        wait_until(lambda: bool(service.messenger.held))
        assert other.ask("PUBSUB", "NUMSUB", "c") == [b"c", 0]
        service.messenger.go_on()
        assert client.read() == [b"subscribe", b"c", 1]
        assert client.read() == [b"pong", b""]
        assert other.ask("PUBLISH", "c", "m") == 1
        assert client.read() == [b"message", b"c", b"m"]


def test_who_leaves_before_that_is_forgotten(service: RespService) -> None:
    service.messenger.is_held = True
    with service.client() as client:
        client.send(command("SUBSCRIBE", "c"))
        wait_until(lambda: bool(service.messenger.held))
    wait_until(lambda: all(each.ended for each in service.resp.clients.all()))
    service.messenger.go_on()
    wait_until(lambda: not (service.messenger.listening or service.reactor.connections))
    assert service.resp.audience.subscribers == 0


def test_errors_of_the_node(service: RespService, client: RespClient) -> None:
    service.messenger.error = NotLeader()
    text = "CLUSTERDOWN no leader is known, try again"
    assert str(client.ask("SUBSCRIBE", "c")) == text
    assert str(client.ask("PUBLISH", "c", "m")) == text
    service.messenger.error = OutcomeUnknown("lost")
    assert str(client.ask("PUBLISH", "c", "m")).startswith("UNKNOWN ")
    service.messenger.error = None
    assert client.ask("PUBLISH", "c", "m") == 0
    assert client.ask("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]


def test_who_may_have_missed_a_message_is_disconnected(service: RespService) -> None:
    clients = [subscriber(service, "c", protocol=2 + number % 2) for number in range(20)]
    with service.client() as other:
        service.resp.audience.lose()
        assert all(is_closed(client) for client in clients)
        assert other.ask("PUBLISH", "c", "m") == 0
        with subscriber(service, "c") as again:
            assert other.ask("PUBLISH", "c", "m") == 1
            assert again.read() == [b"message", b"c", b"m"]
    for client in clients:
        client.close()


# -- bounds ----------------------------------------------------------------------------------------


def small(**changes: Any) -> RespService:
    return RespService(limits=Limits(**changes))


def test_bounds_of_subscriptions() -> None:
    service = small(max_subscriptions=4, max_patterns=2, max_all_patterns=3)
    try:
        with service.client() as one, service.client() as two:
            for client, words in (
                (one, ("SUBSCRIBE", *"abcde")),
                (one, ("PSUBSCRIBE", "a*", "b*", "c*")),
                (one, ("SUBSCRIBE", "x" * 2049)),
                (one, ("PSUBSCRIBE", "x" * 1025)),
                (two, ("PUBLISH", "x" * 2049, "m")),
                (two, ("PUBLISH", "x", "m" * ((1 << 20) + 1))),
            ):
                assert str(client.ask(*words)).startswith("ERR "), words[0]
            one.send(command("SUBSCRIBE", "a", "b") + command("PSUBSCRIBE", "a*", "b*"))
            assert [one.read()[2] for _ in range(4)] == [1, 2, 3, 4]
            assert one.ask("SUBSCRIBE", "a")[2] == 4  # which it has
            assert str(one.ask("SUBSCRIBE", "c")).startswith("ERR a connection may have 4 subscr")
            assert two.ask("PSUBSCRIBE", "a*")[2] == 1
            assert two.ask("PSUBSCRIBE", "c*")[2] == 2
        with subscriber(service, "a*") as three:
            wait_until(lambda: service.resp.audience.subscribers == 1)
            assert service.resp.audience.subscriptions == 1
            assert three.ask("PUNSUBSCRIBE")[2] == 0
            assert service.resp.audience._bytes == 0
    finally:
        service.close()


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("kind", ["", "P"])
def test_many_names_are_read_in_turns(service: RespService, kind: str, is_held: bool) -> None:
    names = [f"{number}{'*' * bool(kind)}" for number in range(1000)]
    with service.client() as client, service.client() as other:
        if is_held:
            service.messenger.is_held = True
        else:
            other.ask("SUBSCRIBE", "x")
        client.send(command(f"{kind}SUBSCRIBE", *names) + command("PING"))
        if is_held:
            wait_until(lambda: bool(service.messenger.held))
            service.messenger.go_on()
        for number, name in enumerate(names, 1):
            assert client.read()[1:] == [name.encode(), number]
        assert client.read() == [b"pong", b""]
        with service.client() as publisher:
            assert publisher.ask("PUBLISH", "0", "m") == 1
        assert client.read()[-2:] == [b"0", b"m"]
        client.send(command(f"{kind}UNSUBSCRIBE") + command("PING"))
        assert [client.read()[2] for _ in names] == [*range(999, -1, -1)]
        assert client.read() == b"PONG"
        assert service.resp.audience.subscribers == (0 if is_held else 1)


def test_long_patterns_hold_up_nobody(service: RespService, client: RespClient) -> None:
    with service.client() as hostile:
        patterns = [b"*%b%d*" % (b"[ab]" * 200, number) for number in range(200)]
        hostile.send(command("PSUBSCRIBE", *patterns))
        answered = 0
        while service.resp.audience.patterns < len(patterns):
            assert client.ask("PING") == b"PONG"
            answered += 1
        assert answered > 10  # while patterns were read
        assert client.ask("PUBLISH", "a" * 2048, "m") == 0


def test_a_subscriber_that_reads_nothing_is_disconnected() -> None:
    service = small(max_unread_bytes=1 << 20)
    try:
        with (
            subscriber(service, "c") as slow,
            subscriber(service, "c") as quick,
            service.client() as publisher,
        ):
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            message = b"m" * (64 << 10)
            sent = 0
            while service.resp.audience.dropped == 0:
                assert publisher.ask("PUBLISH", "c", message) in (1, 2)
                assert quick.read()[2] == message
                sent += 1
                assert sent < 1000
            assert publisher.ask("PUBLISH", "c", "last") == 1
            assert quick.read()[2] == b"last"
        assert b"conure_resp_subscribers_dropped_total 1\n" in service.registry.render()
    finally:
        service.close()


def test_more_than_there_is_room_for_waits() -> None:
    """A large message for many takes more than may wait to be read at a time."""
    service = RespService(bounds=Bounds(max_leaving_bytes=4 << 20))
    try:
        clients = [subscriber(service, "c") for _ in range(30)]
        with service.client() as publisher:
            message = b"m" * (1 << 20)
            most = []
            for _ in range(3):
                assert publisher.ask("PUBLISH", "c", message) == 30
                for client in clients:
                    assert client.read()[2] == message
                    most.append(service.reactor.leaving)
            assert max(most) < 8 << 20
        for client in clients:
            client.close()
    finally:
        service.close()


def test_a_queue_that_is_full() -> None:
    service = small(max_queued_bytes=1000)
    try:
        with subscriber(service, "c") as client, service.client() as publisher:
            publisher.send(command("PUBLISH", "c", "m" * 500) * 100)
            found = [publisher.read() for _ in range(100)]
            assert all(each in (0, 1) or str(each).startswith("TRYAGAIN ") for each in found)
            service.resp.audience.deliver([(b"cc", b"m" * 100)] * 100)
            assert is_closed(client)
    finally:
        service.close()


def test_many_subscribers_hold_up_nobody(service: RespService) -> None:
    """One message for thousands is handed out in steps."""
    many = [subscriber(service, "c") for _ in range(400)]
    steps: list[int] = []
    hand_out = service.resp.audience._pump

    def pump() -> None:
        before = service.resp.audience.delivered
        hand_out()
        steps.append(service.resp.audience.delivered - before)

    service.resp.audience._pump = pump  # type: ignore[method-assign]
    share, audience_file._SHARE = audience_file._SHARE, 0.0  # type: ignore[misc]
    try:
        with service.client() as publisher:
            assert publisher.ask("PUBLISH", "c", "m") == 400
            assert [client.read()[2] for client in many] == [b"m"] * 400
    finally:
        audience_file._SHARE = share  # type: ignore[misc]
    assert max(steps) <= 32
    for client in many:
        client.close()


def test_who_unsubscribes_meanwhile_hears_nothing(service: RespService) -> None:
    many = [subscriber(service, "c") for _ in range(40)]
    audience = service.resp.audience
    hand_out = audience._pump
    ended: list[bool] = []

    def pump() -> None:
        hand_out()
        if audience.delivered == 32 and not ended:
            ended.append(True)
            for each in service.resp.clients.all():
                audience.unsubscribe(each, Kind.CHANNEL, b"c")

    audience._pump = pump  # type: ignore[method-assign]
    share, audience_file._SHARE = audience_file._SHARE, 0.0  # type: ignore[misc]
    try:
        with service.client() as publisher:
            assert publisher.ask("PUBLISH", "c", "m") == 40
            wait_until(lambda: bool(ended) and audience._job_bytes == 0)
            assert audience.delivered == 32
    finally:
        audience_file._SHARE = share  # type: ignore[misc]
    for client in many:
        client.close()


def test_storms_of_subscribers_leave_nothing(service: RespService) -> None:
    with service.client() as publisher:
        for number in range(200):
            client = service.client()
            client.send(
                command("SUBSCRIBE", "a", f"b{number}") + command("PSUBSCRIBE", f"*{number}")
            )
            if number % 3:
                client.read()
            publisher.send(command("PUBLISH", "a", "m"))
            client.close()
        for _ in range(200):
            assert isinstance(publisher.read(), int)
        wait_until(lambda: service.resp.audience.subscribers == 0)
        audience = service.resp.audience
        assert (audience.subscriptions, audience.channels, audience.patterns) == (0, 0, 0)
        assert (audience._bytes, audience._job_bytes) == (0, 0)


def test_a_subscriber_may_be_silent() -> None:
    service = small(idle_timeout=0.2)
    try:
        with subscriber(service, "c") as client, service.client() as other:
            assert is_closed(other)
            with service.client() as publisher:
                assert publisher.ask("PUBLISH", "c", "m") == 1
            assert client.read() == [b"message", b"c", b"m"]
    finally:
        service.close()


# -- notifications ---------------------------------------------------------------------------------


def test_notifications(service: RespService, client: RespClient) -> None:
    with subscriber(service, "__key*") as listener:
        client.ask("SET", "before", "1")
        assert client.ask("CONFIG", "GET", "notify*") == [b"notify-keyspace-events", b""]
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "KEA") == b"OK"
        assert client.ask("CONFIG", "GET", "notify*") == [b"notify-keyspace-events", b"AKE"]
        for words in (("SET", "k", "v"), ("INCR", "n"), ("RENAME", "k", "l"), ("DEL", "l")):
            client.ask(*words)
        seen = [tuple(listener.read()[2:]) for _ in range(10)]
        assert seen[:4] == [
            (b"__keyspace@0__:k", b"set"),
            (b"__keyevent@0__:set", b"k"),
            (b"__keyspace@0__:n", b"set"),
            (b"__keyevent@0__:set", b"n"),
        ]
        assert {*seen[4:8]} == {
            (b"__keyspace@0__:k", b"del"),
            (b"__keyevent@0__:del", b"k"),
            (b"__keyspace@0__:l", b"set"),
            (b"__keyevent@0__:set", b"l"),
        }
        assert seen[8:] == [(b"__keyspace@0__:l", b"del"), (b"__keyevent@0__:del", b"l")]
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "En") == b"OK"
        client.ask("SET", "n", "w")
        client.ask("SET", "k", "v")
        assert listener.read()[2:] == [b"__keyevent@0__:new", b"k"]
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "Kn$") == b"OK"
        for change in (("EXPIRE", "k", 100), ("PERSIST", "k"), ("GETEX", "k", "EX", 100)):
            client.ask(*change)  # no events
        client.ask("INCR", "m")
        assert [listener.read()[2:] for _ in range(2)] == [
            [b"__keyspace@0__:m", b"new"],
            [b"__keyspace@0__:m", b"set"],
        ]
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "Kx") == b"OK"
        client.ask("SET", "k", "v")
        service.backend.history.extend([(1000, 2, b"k", b"", 0)], 1000)
        assert listener.read()[2:] == [b"__keyspace@0__:k", b"expired"]
        error = client.ask("CONFIG", "SET", "notify-keyspace-events", "Kq")
        assert str(error).startswith("ERR CONFIG SET failed")
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "") == b"OK"


def test_many_notifications_come_in_order(service: RespService, client: RespClient) -> None:
    with subscriber(service, "__keyevent@0__:set") as listener:
        client.ask("CONFIG", "SET", "notify-keyspace-events", "E$")
        for start in range(0, 3000, 500):
            client.send(b"".join(command("SET", start + n, "v") for n in range(500)))
            for _ in range(500):
                assert client.read() == b"OK"
        assert [listener.read()[2] for _ in range(3000)] == [b"%d" % n for n in range(3000)]


def test_who_has_lost_the_history_is_disconnected(service: RespService, client: RespClient) -> None:
    with subscriber(service, "__keyevent@0__:set") as listener:
        client.ask("CONFIG", "SET", "notify-keyspace-events", "E$")
        client.ask("SET", "a", "v")
        assert listener.read()[2] == b"a"
        service.history.reset(service.backend.store.applied_index)
        assert is_closed(listener)
