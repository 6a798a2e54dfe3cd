"""transactions.py and plans.py: what is queued is done as one, or not at all."""

from __future__ import annotations

from threading import Event
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import Sequential
from conure.errors import NotLeader, OutcomeUnknown
from conure.resp import lcs, transactions
from conure.resp.limits import Limits
from conure.resp.words import TOO_MUCH
from conure.service.limits import MAX_STEPS
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService

ABORTED = ErrorReply("EXECABORT Transaction discarded because of previous errors.")


def test_a_transaction_is_one_entry(service: RespService, client: RespClient) -> None:
    client.send(
        command("MULTI")
        + command("SET", "a", 1)
        + command("INCR", "a")
        + command("GET", "a")
        + command("PING")
        + command("MGET", "a", "b")
        + command("EXEC")
    )
    assert [client.read() for _ in range(6)] == [b"OK"] + [b"QUEUED"] * 5
    assert client.read() == [b"OK", 2, b"2", b"PONG", [b"2", None]]
    assert [len(batch) for batch in service.backend.batches] == [1]
    (sequential,) = service.backend.batches[0]
    assert isinstance(sequential, Sequential)
    assert len(sequential.steps) == 5


def test_a_step_that_fails_is_an_error_of_its_own(client: RespClient) -> None:
    client.ask("SET", "a", "x")
    client.ask("MULTI")
    assert client.ask("INCR", "a") == b"QUEUED"
    assert client.ask("SET", "b", 1, "FOO") == b"QUEUED"
    assert client.ask("INCR", "c") == b"QUEUED"
    assert client.ask("EXEC") == [
        ErrorReply("ERR value is not an integer or out of range"),
        ErrorReply("ERR syntax error"),
        1,
    ]


def test_a_transaction_of_as_many_steps_as_one_may_have(
    service: RespService, client: RespClient
) -> None:
    """It is checked, encoded and answered in turns, is one entry, and nothing overtakes it."""
    queued = [command("INCR", f"n{n % 3}") for n in range(MAX_STEPS)]
    client.send(b"".join([command("MULTI"), *queued, command("EXEC"), command("GET", "n0")]))
    assert client.read() == b"OK"
    assert {client.read() for _ in queued} == {b"QUEUED"}
    assert client.read() == [n // 3 + 1 for n in range(MAX_STEPS)]
    assert client.read() == b"%d" % (-(-MAX_STEPS // 3))
    assert [len(batch) for batch in service.backend.batches] == [1]


@pytest.mark.parametrize("name", ["MSET", "MSETNX"])
def test_many_keys_are_set_at_once(service: RespService, client: RespClient, name: str) -> None:
    count = MAX_STEPS // (1 if name == "MSET" else 2)  # each is looked at, and set
    pairs = [word for n in range(count) for word in (f"k{n}", f"v{n}")]
    client.send(command(name, *pairs) + command("GET", f"k{count - 1}"))
    assert client.read() == (b"OK" if name == "MSET" else 1)
    assert client.read() == b"v%d" % (count - 1)
    assert client.ask("DBSIZE") == count
    assert [len(batch) for batch in service.backend.batches] == [1]
    refused = client.ask(name, *pairs, "one", "more")
    assert isinstance(refused, ErrorReply)
    assert "may have 10,000 steps" in str(refused)


def test_replies_are_silenced_amid_a_transaction_as_in_redis(client: RespClient) -> None:
    def run(*commands: tuple[str, ...]) -> bytes:
        client.ask("MULTI")
        for words in commands:
            assert client.ask(*words) == b"QUEUED"
        client.send(command("EXEC") + command("CLIENT", "REPLY", "ON") + command("ECHO", "the end"))
        found = b""
        while not found.endswith(b"the end\r\n"):
            found += client.socket.recv(1 << 16)
        return found.removesuffix(b"+OK\r\n$7\r\nthe end\r\n")

    off, on, get = ("CLIENT", "REPLY", "OFF"), ("CLIENT", "REPLY", "ON"), ("ECHO", "x")
    for echo in (get, ("GET", "k")):
        client.ask("SET", "k", "x")
        assert run(echo, off, echo) == b"*3\r\n$1\r\nx\r\n"
        assert run(off, echo, on, echo) == b"*4\r\n+OK\r\n$1\r\nx\r\n"
    skipped = run(get, ("CLIENT", "REPLY", "SKIP"), get)
    assert skipped == b"*3\r\n$1\r\nx\r\n$1\r\nx\r\n"


def test_what_is_refused(client: RespClient) -> None:
    assert client.ask("EXEC") == ErrorReply("ERR EXEC without MULTI")
    assert client.ask("DISCARD") == ErrorReply("ERR DISCARD without MULTI")
    assert client.ask("MULTI") == b"OK"
    assert client.ask("MULTI") == ErrorReply("ERR MULTI calls can not be nested")
    assert client.ask("WATCH", "k") == ErrorReply("ERR WATCH inside MULTI is not allowed")
    assert client.ask("EXEC") == []
    for bad in (["FOO"], ["GET"], ["SCAN", "0"], ["CLIENT", "FOO"]):
        assert client.ask("MULTI") == b"OK"
        assert isinstance(client.ask(*bad), ErrorReply)
        assert client.ask("SET", "k", "v") == b"QUEUED"
        assert client.ask("EXEC") == ABORTED
    assert client.ask("GET", "k") is None
    assert client.ask("MULTI") == b"OK"
    assert client.ask("SET", "k", "v") == b"QUEUED"
    assert client.ask("DISCARD") == b"OK"
    assert client.ask("GET", "k") is None


@pytest.mark.parametrize("protocol", [2, 3])
def test_watched_keys_that_change(service: RespService, protocol: int) -> None:
    with service.client() as client, service.client() as other:
        client.ask("HELLO", protocol)
        for change in (["SET", "k", 1], ["DEL", "k"], ["SET", "new", 1]):
            other.ask("DEL", "new")
            client.ask("SET", "k", "before")
            assert client.ask("WATCH", "k", "new") == b"OK"
            other.ask(*change)
            client.ask("MULTI")
            client.ask("SET", "k", "mine")
            assert client.ask("EXEC") is None
            assert client.ask("GET", "k") != b"mine"
        assert client.ask("WATCH", "k", "k2") == b"OK"
        client.ask("MULTI")
        client.ask("SET", "k", "mine")
        assert client.ask("EXEC") == [b"OK"]
        client.ask("WATCH", "k")
        assert other.ask("EXPIRE", "k", 100) == 1  # the same value, of the same revision
        client.ask("MULTI")
        assert client.ask("EXEC") == []
        client.ask("WATCH", "k")
        other.ask("SET", "k", 2)
        assert client.ask("UNWATCH") == b"OK"
        client.ask("MULTI")
        assert client.ask("EXEC") == []
        client.ask("WATCH", "k")
        other.ask("SET", "k", 2)
        client.ask("MULTI")
        assert client.ask("EXEC") is None


@pytest.mark.parametrize("key", ["", "k" * 1025, "k" * 70_000])
def test_a_key_that_nobody_may_have_is_not_watched(client: RespClient, key: str) -> None:
    """A comparison of it would end every node that applies the entry."""
    assert client.ask("WATCH", "good", key) == ErrorReply(
        f"ERR a key has 1 to 1,024 bytes, and this one {len(key):,}"
    )
    client.ask("MULTI")
    client.ask("SET", "k", 1)
    assert client.ask("EXEC") == [b"OK"]


@pytest.mark.parametrize("frame", [([], []), (["INCR x"], []), (["MULTI"], ["EXEC"])])
def test_replies_that_take_long_hold_up_nobody(
    service: RespService,
    client: RespClient,
    monkeypatch: pytest.MonkeyPatch,
    frame: tuple[list[str], list[str]],
) -> None:
    has_begun, is_sent, is_answered, waited = Event(), Event(), Event(), list[bool]()

    def takes_long(*_: bytes) -> lcs.Subsequence:
        has_begun.set()
        assert is_sent.wait(20)
        sleep(0.01)  # longer than turns may take in one round
        if len(waited) >= 2:  # the round after the first one sends the reply to PING
            waited.append(is_answered.wait(20))
        waited.append(True)
        return lcs.Subsequence(b"", [])

    monkeypatch.setattr(lcs, "longest", takes_long)
    first, last = frame
    commands = [*first, *["LCS a b"] * 4, *last]
    with service.client() as other:
        client.send(b"".join(command(*each.split()) for each in commands))
        assert has_begun.wait(20)
        other.send(command("PING"))
        is_sent.set()
        assert other.read() == b"PONG"
        is_answered.set()
    replies = [client.read() for _ in commands]
    assert replies[-1] == ([b""] * 4 if last else b"")
    assert len(waited) > 4
    assert all(waited)


def test_what_a_transaction_asks_of_the_server_is_bounded(
    client: RespClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "READ_BYTES", 3990)
    for before in ([], ["INCR x"]):
        commands = ["MULTI", *before, *["ECHO " + "v" * 990] * 20, "GET x", "EXEC", "PING"]
        client.send(b"".join(command(*each.split()) for each in commands))
        *_, replies, last = [client.read() for _ in commands]
        assert replies[len(before) :][:-1] == [b"v" * 990] * 4 + [ErrorReply(TOO_MUCH)] * 16
        assert last == b"PONG"


@pytest.mark.parametrize("others", [1, 40])
def test_a_command_reads_as_much_as_an_entry(client: RespClient, others: int) -> None:
    """Of one value, too, that it asks for again and again."""
    names = [f"k{number % others}" for number in range(40)]
    for name in names[:others]:
        client.ask("SET", name, bytes(1 << 20))
    assert len(client.ask("MGET", *names[:8], "none")) == 9
    for before in ([], [command("INCR", "x")]):
        for count in (9, 40):
            client.send(b"".join([*before, command("MGET", *names[:count])]))
            replies = [client.read() for _ in (*before, "MGET")]
            assert replies[-1] == ErrorReply(TOO_MUCH)
    assert client.ask("EXISTS", *names) == 40  # shows none of them


def test_a_pipeline_watches_and_forgets(client: RespClient) -> None:
    client.send(
        command("WATCH", "k")
        + command("UNWATCH")
        + command("SET", "k", 1)
        + command("MULTI")
        + command("GET", "k")
        + command("EXEC")
    )
    assert [client.read() for _ in range(5)] == [b"OK", b"OK", b"OK", b"OK", b"QUEUED"]
    assert client.read() == [b"1"]


@pytest.mark.parametrize("error", [NotLeader(), OutcomeUnknown("x")])
def test_an_exec_that_fails_is_one_error(
    service: RespService, client: RespClient, error: NotLeader | OutcomeUnknown
) -> None:
    service.backend.error = error
    client.ask("MULTI")
    client.ask("SET", "k", 1)
    assert isinstance(client.ask("EXEC"), ErrorReply)
    service.backend.error = None
    assert client.ask("SET", "k", 1) == b"OK"
    assert service.backend.error is None


def test_a_queue_is_bounded() -> None:
    service = RespService(limits=Limits(max_queued=10, max_watched=3, max_command_bytes=4000))
    with service.client() as client:
        client.ask("MULTI")
        for _ in range(10):
            assert client.ask("SET", "k", "v") == b"QUEUED"
        assert client.ask("SET", "k", "v") == ErrorReply(
            "ERR the transaction is too large, the limit is 10 commands"
        )
        assert client.ask("EXEC") == ABORTED
        client.ask("MULTI")
        assert client.ask("DEL", *"abcdefghijk") == ErrorReply(
            "ERR the transaction is too large, the limit is 10 steps"
        )
        assert client.ask("EXEC") == ABORTED
        client.ask("MULTI")
        assert client.ask("SET", "k", "v" * 3000) == b"QUEUED"
        assert client.ask("SET", "k", "v" * 1000) == ErrorReply(
            "ERR the transaction is too large, the limit is 4,000 bytes"
        )
        assert client.ask("DISCARD") == b"OK"
        assert client.ask("WATCH", "a", "b", "c") == b"OK"
        assert client.ask("WATCH", "a", "b") == b"OK"
        assert client.ask("WATCH", "d") == ErrorReply(
            "ERR too many keys are watched, the limit is 3"
        )
    service.close()


def test_reads_among_writes_are_one_batch(service: RespService, client: RespClient) -> None:
    """A pipeline of both has one sync."""
    client.send(b"".join(command("SET", "k", n) + command("GET", "k") for n in range(50)))
    expected = [reply for n in range(50) for reply in (b"OK", b"%d" % n)]
    assert [client.read() for _ in range(100)] == expected
    assert len(service.backend.batches) == 1
    assert service.backend.confirmations == 0


KEYS = st.sampled_from(["a", "b", "c"])
COMMANDS = st.one_of(
    st.tuples(st.just("SET"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("GET"), KEYS),
    st.tuples(st.just("INCR"), KEYS),
    st.tuples(st.just("DEL"), KEYS),
)


def model(values: dict[str, int], words: tuple[str | int, ...]) -> object:
    """Do a command to a dict; return its reply."""
    name, key, *rest = words
    assert isinstance(key, str)
    match name:
        case "SET":
            values[key] = int(rest[0])
            return b"OK"
        case "GET":
            return b"%d" % values[key] if key in values else None
        case "INCR":
            values[key] = values.get(key, 0) + 1
            return values[key]
    return int(values.pop(key, None) is not None)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.lists(KEYS, max_size=2),
            st.lists(COMMANDS, max_size=6),
            st.lists(COMMANDS, max_size=2),
        ),
        max_size=6,
    )
)
def test_watched_transactions_beside_a_model(
    rounds: list[tuple[list[str], list[tuple[str | int, ...]], list[tuple[str | int, ...]]]],
) -> None:
    """One client watches, another one changes keys, and the first one's transaction is all or
    nothing."""
    service = RespService()
    values: dict[str, int] = {}
    with service.client() as client, service.client() as other:
        for watched, mine, others in rounds:
            if watched:
                assert client.ask("WATCH", *watched) == b"OK"
            before = dict.fromkeys(values, 0)
            changed = dict(before)  # a key that isn't there again is as it was
            for number, words in enumerate(others, 1):
                assert other.ask(*words) == model(values, words)
                if words[0] in ("SET", "INCR"):
                    changed[str(words[1])] = number
                elif words[0] == "DEL":
                    changed.pop(str(words[1]), None)
            client.ask("MULTI")
            for words in mine:
                assert client.ask(*words) == b"QUEUED"
            if any(before.get(key) != changed.get(key) for key in watched):
                assert client.ask("EXEC") is None
            else:
                assert client.ask("EXEC") == [model(values, words) for words in mine]
    service.close()
