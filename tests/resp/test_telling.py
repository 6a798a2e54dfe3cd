"""info.py, telling.py and catalog.py: what clients look for before they begin."""

from __future__ import annotations

import pytest

from conure.resp import catalog
from conure.resp.replies import Replies
from conure.resp.table import Command
from tests.lab.respclient import ErrorReply, RespClient
from tests.lab.respservice import RespService


def test_info(service: RespService, client: RespClient) -> None:
    client.ask("SET", "k", "v")
    text = client.ask("INFO").decode()
    facts = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
    assert facts["loading"] == "0"
    assert facts["redis_version"].startswith("7.")
    assert (facts["connected_clients"], facts["role"]) == ("1", "master")
    assert int(facts["total_commands_processed"]) >= 1
    assert client.ask("INFO", "server").startswith(b"# Server\r\nredis_version:")
    assert client.ask("INFO", "nothing") == b""
    assert b"cmdstat_set:calls=1\r\n" in client.ask("INFO", "everything")
    assert client.ask("INFO", "cpu", "cluster").count(b"#") == 2


def test_info_of_keys_clients_and_memory(service: RespService, client: RespClient) -> None:
    """What ``redis-cli --stat`` and monitors read."""

    def facts() -> dict[str, str]:
        lines = client.ask("INFO").decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    assert "db0" not in facts()
    service.backend.values = {b"k%d" % number: b"v" for number in range(300)}
    with service.client() as other:
        assert other.ask("PING") == b"PONG"
    found = facts()
    assert found["db0"] == "keys=300,expires=0,avg_ttl=0"
    assert found["total_connections_received"] == "2"
    assert (found["connected_clients"], found["blocked_clients"]) in (("1", "0"), ("2", "0"))
    assert 1 << 20 < int(found["used_memory"]) <= int(found["used_memory_peak"])
    assert float(found["used_memory_human"].removesuffix("M")) > 1
    assert client.ask("INFO", "KEYSPACE") == b"# Keyspace\r\ndb0:keys=300,expires=0,avg_ttl=0\r\n"
    assert client.ask("INFO", "cpu").startswith(b"# CPU\r\nused_cpu_sys:")


def test_config(client: RespClient) -> None:
    assert client.ask("CONFIG", "GET", "appendonly") == [b"appendonly", b"yes"]
    assert client.ask("CONFIG", "GET", "save", "APPEND*") == [
        *(b"save", b"", b"appendonly", b"yes", b"appendfsync", b"always")
    ]
    assert client.ask("CONFIG", "GET", "nothing") == []
    assert client.ask("CONFIG", "SET", "appendonly", "yes") == b"OK"
    assert client.ask("CONFIG", "RESETSTAT") == b"OK"


def test_short_ones(service: RespService, client: RespClient) -> None:
    seconds, _ = client.ask("TIME")
    assert seconds == b"%d" % (service.backend.now // 1000)
    assert client.ask("ROLE") == [b"master", 0, []]
    assert client.ask("WAIT", 1, 100) == 0
    assert client.ask("LATENCY", "LATEST") == []
    assert client.ask("LATENCY", "RESET") == 0
    assert client.ask("LATENCY", "HISTOGRAM", "get") == []
    client.ask("SET", "n", 12)
    client.ask("SET", "s", "short")
    client.ask("SET", "l", "x" * 100)
    assert [client.ask("OBJECT", "ENCODING", k) for k in "nslx"] == [
        b"int",
        b"embstr",
        b"raw",
        None,
    ]
    assert client.ask("OBJECT", "IDLETIME", "n") == 0
    assert client.ask("OBJECT", "REFCOUNT", "n") == 1
    assert client.ask("MEMORY", "USAGE", "l") > 100
    assert client.ask("MEMORY", "USAGE", "x", "SAMPLES", 5) is None


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (("CONFIG", "SET", "foo", "1"), "ERR Unknown option or number of arguments for CONFIG SET"),
        (("CONFIG", "SET", "save", "1"), "ERR CONFIG SET failed"),
        (("CONFIG", "SET", "a", "b", "c"), "ERR wrong number of arguments for 'config|set'"),
        (("CONFIG", "REWRITE"), "ERR The server is running without a config file"),
        (("DEBUG", "SLEEP", "1"), "ERR DEBUG command not allowed"),
        (("OBJECT", "FREQ", "k"), "ERR An LFU maxmemory policy is not selected"),
        (("WAIT", "x", "1"), "ERR value is not an integer"),
        (("MEMORY", "USAGE", "k", "x"), "ERR syntax error"),
        (("COMMAND", "GETKEYS", "foo"), "ERR Invalid command specified"),
        (("COMMAND", "GETKEYS", "get"), "ERR Invalid number of arguments"),
        (("COMMAND", "GETKEYS", "ping"), "ERR The command has no key arguments"),
        (("COMMAND", "GETKEYS", "SPUBLISH", "a", "b"), "ERR The command has no key arguments"),
        (("LATENCY", "GRAPH", "a"), "ERR No samples available for event 'a'"),
        (("WAIT", "1", "-1"), "ERR timeout is negative"),
        (("MEMORY", "USAGE", "k", "SAMPLES", "-1"), "ERR syntax error"),
        (("COMMAND", "LIST", "x"), "ERR syntax error"),
    ],
)
def test_what_is_refused(client: RespClient, words: tuple[str, ...], start: str) -> None:
    client.ask("SET", "k", "v")
    error = client.ask(*words)
    assert isinstance(error, ErrorReply)
    assert str(error).startswith(start)


def test_the_table_of_commands(client: RespClient) -> None:
    count = client.ask("COMMAND", "COUNT")
    rows = client.ask("COMMAND")
    assert len(rows) == count
    names = client.ask("COMMAND", "LIST")
    assert sorted(names) == sorted(row[0] for row in rows)
    (row, missing) = client.ask("COMMAND", "INFO", "get", "foo")
    assert missing is None
    assert row[:2] == [b"get", 2]
    assert row[3:6] == [1, 1, 1]
    assert b"readonly" in row[2]
    docs = client.ask("COMMAND", "DOCS", "get", "foo")
    assert docs[0] == b"get"
    assert docs[1][:2] == [b"summary", b"Returns a value."] or docs[1][0] == b"summary"
    assert client.ask("COMMAND", "GETKEYS", "MSET", "a", 1, "b", 2) == [b"a", b"b"]
    assert client.ask("COMMAND", "GETKEYS", "EVALSHA", "x", 2, "a", "b", 1) == [b"a", b"b"]
    assert client.ask("COMMAND", "GETKEYS", "EVAL", "x", 9, "a") == []
    assert client.ask("COMMAND", "GETKEYS", "OBJECT", "freq", "a") == [b"a"]
    assert b"publish" in client.ask("COMMAND", "LIST", "FILTERBY", "ACLCAT", "pubsub")
    assert b"scan" in client.ask("COMMAND", "LIST", "FILTERBY", "PATTERN", "s*")
    assert b"set" in client.ask("COMMAND", "LIST", "FILTERBY", "ACLCAT", "write")
    client.ask("HELLO", 3)
    assert client.ask("COMMAND", "DOCS", "client")[b"client"][b"subcommands"][b"client|id"]
    assert len(client.ask("COMMAND", "DOCS")) == count


@pytest.mark.parametrize("word", ["INFO", "DOCS"])
def test_what_is_told_of_a_command_is_written_once(
    client: RespClient, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """However often it is asked for: hundreds of CLIENT would take longer than a round may."""
    written: list[str] = []
    write = catalog._specify_keys if word == "INFO" else catalog._document

    def note(replies: Replies, command: Command) -> None:
        written.append(command.name)
        write(replies, command)

    name = "_specify_keys" if word == "INFO" else "_document"
    monkeypatch.setattr(catalog, name, note)
    for protocol in (2, 3):
        client.ask("HELLO", protocol)
        written.clear()
        for count in (1, 500):
            found = client.ask("COMMAND", word, *["client"] * count)
            assert len(found) in (count, 2 * count, 1)  # a map of RESP3 has each name once
        assert len(written) == len(set(written)) > 10
