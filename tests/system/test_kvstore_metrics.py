"""The metrics under the names of another system: what counts as which operation, by every front."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.process import ServerProcess, resp_port, rest_port, running, wait_until
from tests.lab.respclient import RespClient

NAMES = {
    "kvstore_memtable_size_bytes": ("gauge", ()),
    "kvstore_sstable_count": ("gauge", ()),
    "kvstore_operations": ("counter", ("op",)),
}


def page(server: ServerProcess) -> str:
    return server.request("GET", "/metrics").body.decode()


def operations(server: ServerProcess) -> dict[str, int]:
    """Return how many there were of which."""
    return {
        op: int(server.metric(f'kvstore_operations_total{{op="{op}"}}'))
        for op in ("put", "get", "delete")
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    own = [f"--{front}-addr=127.0.0.1:0" for front in ("api", "tcp", "metrics")]
    with running(tmp_path / "data", "--profile=kvstore", "--bootstrap", *own) as process:
        wait_until(lambda: process.request("GET", "/readyz").status == 200)
        yield process


def test_the_names_and_what_is_said_of_them(server: ServerProcess) -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(page(server))
        if family.name.startswith("kvstore_")
    }
    assert families.keys() == NAMES.keys()
    for name, (kind, labels) in NAMES.items():
        assert families[name].type == kind
        assert families[name].documentation
        assert {tuple(sample.labels) for sample in families[name].samples} == {labels}
    assert 'kvstore_operations_total{op="put"} 0' in page(server), "all three, from the start"


def test_requests_are_counted_that_were_carried_out(server: ServerProcess) -> None:
    server.put("a", b"1")
    server.put("a", b"2")
    server.request("POST", "/kv/incr?key=a")
    server.request("POST", "/kv/touch?key=a&ttl=60s")
    assert server.get("a").body == b"3"
    assert server.get("nothing").status == 404
    server.request("HEAD", "/kv?key=a")
    server.request("DELETE", "/kv?key=a")
    assert operations(server) == {"put": 4, "get": 3, "delete": 1}
    assert server.request("PUT", "/kv?key=").status == 400
    assert server.request("POST", "/kv/touch?key=gone&ttl=60s").status == 404
    server.request("GET", "/kv/count")
    server.request("POST", "/txn", b'{"success": [{"put": {"key": "t", "value": "v"}}]}')
    assert operations(server) == {"put": 5, "get": 3, "delete": 1}


def test_keys_as_paths_are_counted_beside_them(server: ServerProcess) -> None:
    api, server.port = server.port, rest_port(server)
    assert server.request("PUT", "/a", b'{"value": "1"}').status == 200
    assert server.request("PUT", "/kv", b'{"value": "a key like any other"}').status == 200
    assert server.request("PUT", "/a", b"nonsense").status == 400
    assert server.request("GET", "/a").status == 200
    assert server.request("HEAD", "/a").status == 200
    assert server.request("DELETE", "/a").status == 200
    assert server.request("DELETE", "/a").status == 404
    server.port = api
    assert operations(server) == {"put": 2, "get": 2, "delete": 2}


def test_commands_of_redis_clients_are_counted_beside_them(server: ServerProcess) -> None:
    with RespClient(resp_port(server)) as client:
        for words in (
            ("SET", "a", "1"), ("MSET", "b", "1", "c", "2"), ("INCR", "a"), ("EXPIRE", "a", "9"),
            ("GET", "a"), ("MGET", "a", "b"), ("EXISTS", "a"), ("STRLEN", "a"),
            ("GETDEL", "b"), ("DEL", "c"), ("UNLINK", "d"),
            ("PING",), ("DBSIZE",), ("SCAN", "0"), ("INFO",),
        ):  # fmt: skip
            client.ask(*words)
        client.ask("MULTI")
        client.ask("SET", "x", "1")
        client.ask("EXEC")
    assert operations(server) == {"put": 5, "get": 4, "delete": 3}
    server.put("y", b"1")
    assert operations(server)["put"] == 6


def test_the_memtable_and_the_tables_are_counted(tmp_path: Path) -> None:
    flags = ("--engine=lsm", "--checkpoint-entries=10", "--checkpoint-interval=24h")
    with running(tmp_path / "data", "--bootstrap", *flags) as server:
        server.put("k", b"v" * 1000)
        assert 1000 < server.metric("kvstore_memtable_size_bytes") < 3000
        assert server.metric("kvstore_sstable_count") == 0
        for _ in range(10):
            server.put("k", b"v" * 1000)
        wait_until(lambda: server.metric("kvstore_sstable_count") >= 1)
        total = sum(
            sample.value
            for family in text_string_to_metric_families(page(server))
            if family.name == "conure_lsm_tables"
            for sample in family.samples
        )
        assert server.metric("kvstore_sstable_count") == total


def test_a_tree_has_neither_of_them(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--bootstrap", "--engine=btree") as server:
        assert "kvstore_memtable" not in page(server)
        assert "kvstore_sstable" not in page(server)
        assert "kvstore_operations_total" in page(server)


def test_a_redirect_is_no_operation(tmp_path: Path) -> None:
    """Whoever it leads to counts the request."""
    with (
        running(tmp_path / "1", "--bootstrap", "--node-id=n1") as leader,
        running(tmp_path / "2", "--node-id=n2", f"--seeds={leader.url}") as follower,
    ):
        wait_until(lambda: follower.request("GET", "/readyz").status == 200)
        assert follower.put("k", b"v").status == 307
        assert operations(follower)["put"] == 0
        assert leader.put("k", b"v").status == 200
        assert operations(leader)["put"] == 1
