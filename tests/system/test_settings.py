"""Every setting reaches what it sets: the composition, with everything it composes played.

A setting that is added to config.py needs a row here, which says where it has to arrive.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest

import conuredb
from conure.config import load
from conure.fileio import OsFileSystem
from conure.net.rates import Rates
from conure.settings import SETTINGS
from conure.storage.datadir import DataDirectory
from conure.values import Address
from conuredb import UNWRITTEN_SHARE, Process, main

MIB = 1 << 20


class Received:
    """What conuredb.py hands to what it puts together, by the name it knows it by."""

    PLAYED = ("API", "FrontTls", "History", "HTTPServer", "Joiner", "Listener", "MetricsAPI",
              "Node", "NodeProofs", "Reactor", "Requests", "Resp", "Rest", "Transport", "Watchers",
              "bind", "gc", "signal", "tls_for_asking")  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self.PLAYED:
            setattr(self, name, MagicMock(name=name))
            monkeypatch.setattr(conuredb, name, getattr(self, name))
        self.HTTPServer.return_value.port = 8181
        self.bind.return_value.getsockname.return_value = ("", 8181)
        self.Transport.return_value.port = 7171
        monkeypatch.setattr(conuredb, "raise_file_limit", lambda: 1 << 40)
        monkeypatch.setattr(conuredb, "others_who_may_write", lambda _: "")
        monkeypatch.setattr(Process, "_wait_for_a_reason", lambda _: "the test")

    def __getattr__(self, name: str) -> MagicMock:
        raise AttributeError(name)

    @property
    def node(self) -> Any:
        """The node's options."""
        return self.Node.open.call_args.args[0]

    @property
    def kv(self) -> Any:
        """The limits of records."""
        return self.API.call_args.args[4]

    @property
    def http(self) -> Any:
        """The limits of the API's server, the first that is made."""
        return self.HTTPServer.call_args_list[0].args[2]

    @property
    def resp(self) -> Any:
        """The limits of RESP; None if it isn't served."""
        return self.Resp.call_args and self.Resp.call_args.args[3]

    @property
    def rest(self) -> Any:
        """The limits of REST's server, the last that is made."""
        return self.HTTPServer.call_args_list[-1].args[2]

    @property
    def access(self) -> Any:
        """Whom the API's server answers."""
        return self.HTTPServer.call_args_list[0].args[4]

    @property
    def names(self) -> Any:
        """The names that the API's server answers to."""
        return self.access.names

    @property
    def tls(self) -> Any:
        """The configuration that TLS of the fronts is made by; None if there is none."""
        return self.FrontTls.call_args and self.FrontTls.call_args.args[0]

    @property
    def proofs(self) -> Any:
        """The configuration that what nodes prove themselves by is made by."""
        return self.NodeProofs.call_args.args[0]

    @property
    def addresses(self) -> list[Any]:
        return [call.args[0] for call in self.bind.call_args_list]

    @property
    def seeds(self) -> Any:
        return self.Joiner.call_args and self.Joiner.call_args.args[0]()

    @property
    def drained(self) -> Any:
        return self.HTTPServer.return_value.drain.call_args.args[0]


class Row(NamedTuple):
    """*text* is no setting's default, and *value* is what *where* shows then."""

    text: str
    where: Callable[[Received], object]
    value: object
    others: tuple[str, ...] = ()  # flags without which it would set nothing


def limits_of(rates: Rates | None) -> str:
    return rates.describe() if rates else ""


UNGUARDED = ("--protected-mode=false",)
RESP = ("--resp-addr=:9190",)
REST = ("--rest-addr=:8180",)
TLS = ("--tls-cert=/other.pem", "--tls-key=/other.key")
PEER_TLS = ("--peer-tls-cert=/n.pem", "--peer-tls-key=/n.key", "--peer-tls-ca=/n-ca.pem")
CLIENT_CA = (*TLS, "--tls-client-ca=/other-ca.pem")

ROWS = {
    "config": [Row("{config}", lambda r: r.node.node_id, "from-the-file")],
    "profile": [
        Row("kvstore", lambda r: r.node.engine, "lsm"),
        Row("kvstore", lambda r: r.API.call_args.kwargs["forward"], True),
    ],
    "node_id": [
        Row("n9", lambda r: r.node.node_id, "n9"),
        Row("n9", lambda r: r.node.told_node_id, True),
    ],
    "data_dir": [Row("/elsewhere", lambda r: r.node.data_dir, "/elsewhere")],
    "raft_addr": [
        Row("10.0.0.9:7009", lambda r: r.Transport.call_args.args[0], Address("10.0.0.9", 7009)),
        Row("10.0.0.9:0", lambda r: r.node.raft_address, "10.0.0.9:7171"),
    ],
    "http_addr": [
        Row("10.0.0.9:8009", lambda r: r.addresses, [Address("10.0.0.9", 8009)]),
        Row("10.0.0.9:0", lambda r: r.node.http_address, "http://10.0.0.9:8181"),
    ],
    "raft_advertise": [Row("db9:7009", lambda r: r.node.raft_address, "db9:7009")],
    "http_advertise": [Row("http://db9:8009", lambda r: r.node.http_address, "http://db9:8009")],
    "metrics_addr": [Row(":9100", lambda r: r.addresses[1:], [Address("", 9100)])],
    "resp_addr": [Row(":9190", lambda r: r.addresses[1:], [Address("", 9190)])],
    "rest_addr": [Row(":8180", lambda r: r.addresses[1:], [Address("", 8180)])],
    "resp_max_connections": [Row("77", lambda r: r.resp.max_connections, 77, RESP)],
    "resp_idle_timeout": [Row("7s", lambda r: r.resp.idle_timeout, 7.0, RESP)],
    "bootstrap": [Row("false", lambda r: r.node.bootstrap, False)],
    "seeds": [Row("http://a:1,b:2", lambda r: r.seeds, ("http://a:1", "b:2"), UNGUARDED)],
    "peers": [Row("a:1,n2@b:2", lambda r: r.node.peers, ("a:1", "n2@b:2"), UNGUARDED)],
    "role": [Row("arbiter", lambda r: r.node.role, "arbiter")],
    "quorum_size": [Row("3", lambda r: r.node.quorum_size, 3)],
    "engine": [
        Row("lsm", lambda r: r.node.engine, "lsm"),
        Row("btree", lambda r: r.node.told_engine, True),
    ],
    "follower_mode": [
        Row("forward", lambda r: r.API.call_args.kwargs["forward"], True),
    ],
    "read_mode": [Row("lease", lambda r: r.node.read_mode, "lease")],
    "election_timeout": [Row("500ms", lambda r: r.node.election_timeout, 0.5)],
    "barrier_timeout": [
        Row("4s", lambda r: r.node.barrier_timeout, 4.0),
    ],
    "write_timeout": [
        Row("11s", lambda r: r.node.write_timeout, 11.0),
    ],
    "max_value_bytes": [
        Row("2MiB", lambda r: r.kv.value_bytes, 2 * MIB),
        Row("50MiB", lambda r: r.http.max_body_bytes, 50 * MIB),
        Row("50MiB", lambda r: r.rest.max_body_bytes, 50 * MIB, REST),
        Row("2MiB", lambda r: r.Rest.call_args.args[3].value_bytes, 2 * MIB, REST),
        Row("50MiB", lambda r: r.resp.max_command_bytes, 50 * MIB, RESP),
    ],
    "page_size": [Row("8192", lambda r: r.node.page_size, 8192)],
    "cache_bytes": [
        Row("3MiB", lambda r: r.node.cache_bytes, 3 * MIB),
        Row("3MiB", lambda r: r.node.max_unwritten_bytes, UNWRITTEN_SHARE * 3 * MIB),
    ],
    "max_mem_size": [Row("3MB", lambda r: r.node.memtable_bytes, 3_000_000)],
    "lsm_reads": [Row("pread", lambda r: r.node.mapped_reads, False)],
    "checkpoint_log_bytes": [Row("5MiB", lambda r: r.node.checkpoint_log_bytes, 5 * MIB)],
    "checkpoint_entries": [Row("77", lambda r: r.node.checkpoint_entries, 77)],
    "checkpoint_interval": [Row("7s", lambda r: r.node.checkpoint_interval, 7.0)],
    "log_segment_bytes": [Row("2MiB", lambda r: r.node.log_segment_bytes, 2 * MIB)],
    "max_body_bytes": [
        Row("17MiB", lambda r: r.http.max_body_bytes, 17 * MIB),
        Row("17MiB", lambda r: r.resp.max_command_bytes, 17 * MIB, RESP),
    ],
    "max_connections": [
        Row("77", lambda r: r.http.max_connections, 77),
        Row("77", lambda r: r.rest.max_connections, 77, REST),
    ],
    "trusted_proxies": [
        Row("192.0.2.0/24", lambda r: r.http.trusted_proxies, ("192.0.2.0/24",)),
        Row("192.0.2.0/24", lambda r: r.resp.trusted_proxies, ("192.0.2.0/24",), RESP),
    ],
    "allowed_hosts": [Row("db.example", lambda r: "db.example" in r.names, True)],
    "tls_cert": [Row("/a.pem", lambda r: r.tls.tls_cert, "/a.pem", TLS)],
    "tls_key": [Row("/a.key", lambda r: r.tls.tls_key, "/a.key", TLS)],
    "tls_client_ca": [
        Row("/ca.pem", lambda r: r.tls.tls_client_ca, "/ca.pem", TLS),
        Row("/ca.pem", lambda r: r.tls.tls_client_auth, "require", TLS),
    ],
    "tls_client_auth": [Row("request", lambda r: r.tls.tls_client_auth, "request", CLIENT_CA)],
    "tls_min_version": [Row("1.2", lambda r: r.tls.tls_min_version, "1.2", TLS)],
    "peer_tls_cert": [Row("/p.pem", lambda r: r.proofs.peer_tls_cert, "/p.pem", PEER_TLS)],
    "peer_tls_key": [Row("/p.key", lambda r: r.proofs.peer_tls_key, "/p.key", PEER_TLS)],
    "peer_tls_ca": [Row("/p-ca.pem", lambda r: r.proofs.peer_tls_ca, "/p-ca.pem", PEER_TLS)],
    "cluster_secret_file": [
        Row("/secret", lambda r: r.proofs.cluster_secret_file, "/secret"),
        Row("/secret", lambda r: r.Transport.call_args.args[2].mode, "require"),
    ],
    "peer_auth": [
        Row("offer", lambda r: r.Transport.call_args.args[2].mode, "offer", PEER_TLS),
    ],
    "tls_ca": [Row("/ca.pem", lambda r: r.tls_for_asking.call_args.args[0].tls_ca, "/ca.pem")],
    "tls_auto": [
        Row("true", lambda r: r.tls and r.tls.tls_auto, True),
        Row("true", lambda r: r.node.http_address, "https://127.0.0.1:8181"),
    ],
    "protected_mode": [
        Row("false", lambda r: r.access.door.is_closed, False),
        Row("false", lambda r: r.Resp.call_args.args[8].is_closed, False, RESP),
        Row("false", lambda r: r.node.is_guarded, False),
    ],
    "cors_origins": [
        Row("https://a.example", lambda r: r.access.origins, {"https://a.example"}),
    ],
    "rate_limit": [
        Row("7", lambda r: limits_of(r.access.rates), "7 requests a second for each client"),
        Row("7", lambda r: limits_of(r.Resp.call_args.args[9]),
            "7 requests a second for each client", RESP),
    ],
    "rate_limit_bytes": [
        Row("7KiB", lambda r: limits_of(r.access.rates),
            "7KiB of them a second for each client"),
    ],
    "max_requests_in_flight": [Row("77", lambda r: r.http.max_requests_in_flight, 77)],
    "max_watches": [Row("7", lambda r: r.http.max_streams, 7 + 16)],
    "max_scans": [
        Row("3", lambda r: r.http.max_streams, 10_000 + 3),
        Row("3", lambda r: r.Requests.call_args.kwargs["max_workers"], 3),
    ],
    "max_range_items": [Row("77", lambda r: r.kv.range_items, 77)],
    "watch_history_bytes": [
        Row("2MiB", lambda r: r.History.call_args.kwargs["max_bytes"], 2 * MIB)
    ],
    "idempotency_window": [
        Row("7s", lambda r: r.API.call_args.kwargs["idempotency_window"], 7000),
        Row("7s", lambda r: r.Rest.call_args.kwargs["idempotency_window"], 7000, REST),
    ],
    "slow_request": [
        Row("7s", lambda r: r.http.slow_request, 7.0),
        Row("7s", lambda r: r.resp.slow_command, 7.0, RESP),
    ],
    "request_timeout": [
        Row("7s", lambda r: r.http.request_timeout, 7.0),
        Row("7s", lambda r: r.resp.request_timeout, 7.0, RESP),
    ],
    "idle_timeout": [
        Row("7s", lambda r: r.http.idle_timeout, 7.0),
    ],
    "shutdown_timeout": [Row("7s", lambda r: r.drained, 7.0)],
    "log_level": [Row("error", lambda _: logging.getLogger().level, logging.ERROR)],
    "log_format": [
        Row("json", lambda _: type(logging.getLogger().handlers[0].formatter).__name__,
            "JSONFormatter")
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the composition changes in this process, put right."""
    root, interval = logging.getLogger(), sys.getswitchinterval()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.setswitchinterval(interval)


def received(*flags: str) -> Received:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("CONURE_")]:
            monkeypatch.delenv(name)
        seen = Received(monkeypatch)
        assert main(flags) == 0
    return seen


def test_tables_are_left_their_open_files(tmp_path: Path) -> None:
    fs, lsm = OsFileSystem(), str(tmp_path / "lsm")
    DataDirectory.open(fs, lsm, "n1", told_node_id=True, engine="lsm").close()
    new = str(tmp_path / "new")
    for flags, most in (
        ([f"--data-dir={new}"], 832),
        ([f"--data-dir={new}", "--engine=lsm"], 320),
        ([f"--data-dir={lsm}"], 320),
    ):
        process = Process(load(flags, {}))
        process._bound_connections(1024)
        assert process._max_connections == most


def test_every_setting_has_a_row() -> None:
    assert ROWS.keys() == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name} {number}")
        for name, rows in ROWS.items()
        for number, row in enumerate(rows)
    ],
)
def test_a_setting_reaches_what_it_sets(name: str, row: Row, tmp_path: Path) -> None:
    text = row.text
    if name == "config":
        pytest.importorskip("yaml")
        (tmp_path / "settings.yaml").write_text("node_id: from-the-file\n")
        text = str(tmp_path / "settings.yaml")
    flag = f"--{name.replace('_', '-')}={text}"
    assert row.where(received(*row.others, flag)) == row.value
    assert row.where(received(*row.others)) != row.value, "that is so by default"
