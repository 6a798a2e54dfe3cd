"""connecting.py, clients.py, slowlog.py: what clients say of themselves, and ask about others."""

from __future__ import annotations

import time

import pytest

from conure.resp.limits import Limits
from tests.lab.respclient import ErrorReply, RespClient, Verbatim, command
from tests.lab.respservice import RespService

NAMES = "ERR Client names cannot contain spaces, newlines or special characters."
WRONG = "WRONGPASS invalid username-password pair or user is disabled."


def test_hello(client: RespClient) -> None:
    told = client.ask("HELLO")
    assert isinstance(told, list)
    facts = dict(zip(told[::2], told[1::2], strict=True))
    assert facts[b"server"] == b"redis"
    assert (facts[b"proto"], facts[b"mode"], facts[b"role"]) == (2, b"standalone", b"master")
    assert client.ask("HELLO", 3, "AUTH", "default", "any", "SETNAME", "me")[b"proto"] == 3
    assert client.ask("CLIENT", "GETNAME") == b"me"
    assert client.ask("HELLO", 2)[4:6] == [b"proto", 2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("HELLO", 4), "NOPROTO unsupported protocol version"),
        (("HELLO", "x"), "ERR Protocol version is not an integer or out of range"),
        (("HELLO", 3, "FOO"), "ERR Syntax error in HELLO option 'FOO'"),
        (("HELLO", 3, "SETNAME", "a b"), NAMES),
        (("HELLO", 3, "AUTH", "bob", "x"), WRONG),
        (("AUTH", "bob", "x"), WRONG),
        (("AUTH", "x", "y", "z"), "ERR syntax error"),
        (("SELECT", 1), "ERR DB index is out of range"),
        (("SELECT", "x"), "ERR value is not an integer or out of range"),
        (("PING", 1, 2), "ERR wrong number of arguments for 'ping' command"),
        (("CLIENT", "SETNAME", "a b"), NAMES),
        (("CLIENT", "SETINFO", "foo", "x"), "ERR Unrecognized option 'foo'"),
        (("CLIENT", "SETINFO", "LIB-NAME", "a b"), NAMES.replace("Client names", "lib-name")),
        (("CLIENT", "REPLY", "x"), "ERR syntax error"),
        (("CLIENT", "NO-EVICT", "x"), "ERR syntax error"),
        (("CLIENT", "KILL", "1.2.3.4:5"), "ERR No such client"),
        (("CLIENT", "KILL", "ID", "x"), "ERR client-id should be greater than 0"),
        (("CLIENT", "KILL", "FOO", "x"), "ERR syntax error"),
        (("CLIENT", "KILL", "USER", "bob"), "ERR No such user 'bob'"),
        (("CLIENT", "KILL", "TYPE", "x"), "ERR Unknown client type 'x'"),
        (("CLIENT", "LIST", "TYPE", "x"), "ERR Unknown client type 'x'"),
        (("CLIENT", "LIST", "ID", "x"), "ERR Invalid client ID"),
        (("SLOWLOG", "GET", "-2"), "ERR count should be greater than or equal to -1"),
        (("SLOWLOG", "GET", "x"), "ERR count should be greater than or equal to -1"),
    ],
)  # fmt: skip
def test_what_is_refused(client: RespClient, words: tuple[str | int, ...], text: str) -> None:
    assert client.ask(*words) == ErrorReply(text)
    assert client.ask("PING") == b"PONG"


def test_simple_ones(client: RespClient) -> None:
    assert client.ask("PING") == b"PONG"
    assert client.ask("PING", "a\r\nb") == b"a\r\nb"
    assert client.ask("ECHO", "x") == b"x"
    assert client.ask("SELECT", 0) == b"OK"
    assert client.ask("AUTH", "default", "") == b"OK"
    assert client.ask("CLIENT", "NO-TOUCH", "ON") == b"OK"
    assert client.ask("CLIENT", "GETREDIR") == -1
    assert client.ask("CLIENT", "HELP")[0].startswith(b"CLIENT <subcommand>")


def test_clients_are_listed(service: RespService, client: RespClient) -> None:
    assert client.ask("CLIENT", "SETNAME", "first") == b"OK"
    assert client.ask("CLIENT", "SETINFO", "lib-name", "redis-py") == b"OK"
    assert client.ask("CLIENT", "SETINFO", "lib-ver", "8.0") == b"OK"
    with service.client() as other:
        number = other.ask("CLIENT", "ID")
        lines = client.ask("CLIENT", "LIST").splitlines()
        assert len(lines) == 2
        assert b" name=first " in lines[0]
        assert b"lib-name=redis-py lib-ver=8.0" in lines[0]
        assert lines[1].startswith(b"id=%d " % number)
        assert client.ask("CLIENT", "LIST", "ID", number, 99).count(b"\n") == 1
        assert client.ask("CLIENT", "LIST", "TYPE", "pubsub") == b""
        assert client.ask("HELLO", 3)[b"proto"] == 3
        info = client.ask("CLIENT", "INFO")
        assert type(info) is Verbatim
        assert info.count(b" resp=3 ") == 1


def test_clients_are_ended(service: RespService, client: RespClient) -> None:
    with service.client() as other:
        number = other.ask("CLIENT", "ID")
        assert client.ask("CLIENT", "KILL", "ID", number) == 1
        assert other.read_to_end() == b""
    with service.client() as other:
        line = other.ask("CLIENT", "INFO")
        address = line.split(b"addr=")[1].split()[0]
        assert client.ask("CLIENT", "KILL", address) == b"OK"
        assert other.read_to_end() == b""
    with service.client() as other:
        assert other.ask("PING") == b"PONG"
        assert client.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == 1
        assert client.ask("CLIENT", "KILL", "MAXAGE", 1000) == 0
    assert client.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no") == 1
    assert client.read_to_end() == b""


def test_a_client_that_wants_no_replies(client: RespClient) -> None:
    client.send(
        command("CLIENT", "REPLY", "OFF")
        + command("SET", "k", "v") * 3
        + command("PING")
        + command("FOO")
        + command("CLIENT", "REPLY", "ON")
        + command("CLIENT", "REPLY", "SKIP")
        + command("GET", "k")
        + command("GET", "k")
        + command("CLIENT", "REPLY", "SKIP")
        + command("FOO")
        + command("PING")
    )
    assert [client.read() for _ in range(3)] == [b"OK", b"v", b"PONG"]


def test_reset(client: RespClient) -> None:
    assert client.ask("HELLO", 3, "SETNAME", "x")[b"proto"] == 3
    assert client.ask("READONLY") == b"OK"
    assert client.ask("RESET") == b"RESET"
    assert client.ask("CLIENT", "GETNAME") is None
    client.send(command("GET", "nothing"))
    assert client.socket.recv(100) == b"$-1\r\n"


def test_readonly_asks_no_leader(service: RespService, client: RespClient) -> None:
    assert client.ask("SET", "k", "v") == b"OK"
    assert client.ask("READONLY") == b"OK"
    assert client.ask("GET", "k") == b"v"
    assert service.backend.confirmations == 0
    assert client.ask("READWRITE") == b"OK"
    assert client.ask("GET", "k") == b"v"
    assert service.backend.confirmations == 1


def test_slow_commands_are_kept() -> None:
    service = RespService(limits=Limits(slow_command=-1.0))
    with service.client() as client:
        assert client.ask("SET", "k", b"x" * 1000) == b"OK"
        assert client.ask("GET", "k") == b"x" * 1000
        assert client.ask("SLOWLOG", "LEN") == 2
        newest, oldest = client.ask("SLOWLOG", "GET")
        assert newest[0] == 1
        assert newest[3] == [b"GET", b"k"]
        assert oldest[3] == [b"SET", b"k", b"x" * 128 + b"... (872 more bytes)"]
        assert len(client.ask("SLOWLOG", "GET", 1)) == 1
        assert client.ask("SLOWLOG", "RESET") == b"OK"
        assert client.ask("SLOWLOG", "GET", -1) == []
        for _ in range(200):
            client.ask("GET", "k")
        assert client.ask("SLOWLOG", "LEN") == 128
    service.close()


def test_many_connections_are_listed(service: RespService) -> None:
    clients = [service.client() for _ in range(300)]
    assert clients[-1].ask("PING") == b"PONG"
    deadline = time.monotonic() + 20
    while len(service.resp.clients) < 300:
        assert time.monotonic() < deadline
    assert clients[0].ask("CLIENT", "LIST").count(b"\n") == 300
    for each in clients:
        each.close()


def test_metrics(service: RespService, client: RespClient) -> None:
    client.send(command("SET", "k", "v") * 5)
    assert [client.read() for _ in range(5)] == [b"OK"] * 5
    assert client.ask("CLIENT", "ID") == 1
    with service.client() as other:
        other.send(b"*x\r\n")
        other.read_to_end()
    page = service.registry.render().decode().splitlines()
    for line in (
        'conure_resp_commands_total{command="set"} 5',
        'conure_resp_commands_total{command="client|id"} 1',
        "conure_resp_command_duration_seconds_count 5",
        "conure_resp_connections_accepted_total 2",
        "conure_resp_connections_refused_total 0",
        "conure_resp_protocol_errors_total 1",
    ):
        assert line in page


def test_who_watches_reads_what_a_leader_confirms(service: RespService, client: RespClient) -> None:
    """Or EXEC would compare a revision that is newer than what was read."""
    backend = service.backend
    assert client.ask("READONLY") == b"OK"
    assert client.ask("WATCH", "k") == b"OK"
    before = backend.confirmations
    client.ask("GET", "k")
    assert backend.confirmations == before + 1
    for end in (("UNWATCH",), ("RESET",)):
        client.ask("READONLY")
        client.ask("WATCH", "k")
        client.ask(*end)
        client.ask("READONLY")
        before = backend.confirmations
        client.ask("GET", "k")
        assert backend.confirmations == before, end
