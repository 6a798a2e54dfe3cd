"""config.py: four sources, their precedence, and an error that names setting, source and remedy."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import re
import subprocess
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure import VERSION
from conure.config import Config, load
from conure.errors import ConfigError
from conure.settings import SETTINGS
from conure.values import Address

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "config.example.yaml"
DERIVED = {"told_node_id", "told_engine", "ignored_environment", "sources"}


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "conure.yaml"
    path.write_text(text)
    return f"--config={path}"


def error_of(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ or {})
    assert "\n" not in str(caught.value)
    return caught.value


# -- the table -------------------------------------------------------------------------------------


def test_the_table_and_the_fields_agree_in_name_and_type() -> None:
    hints = typing.get_type_hints(Config)
    fields = {field.name for field in dataclasses.fields(Config)}
    assert {setting.name for setting in SETTINGS} == fields - DERIVED
    defaults = load([], {})
    for name in fields - DERIVED:
        kind = typing.get_origin(hints[name]) or hints[name]
        if kind is types.UnionType:
            kind = hints[name]
        assert isinstance(getattr(defaults, name), kind), name


def test_documented_defaults() -> None:
    c = load([], {})
    assert (c.node_id, c.data_dir, c.config) == ("node1", "./data", "")
    assert (c.raft_addr, c.http_addr) == (("127.0.0.1", 7001), ("", 8081))
    assert (c.bootstrap, c.barrier_timeout, c.write_timeout) == (True, 3.0, 10.0)
    assert (c.max_value_bytes, c.page_size, c.cache_bytes) == (1 << 20, 4096, 64 << 20)
    assert (c.log_segment_bytes, c.checkpoint_log_bytes) == (4 << 20, 32 << 20)
    assert (c.metrics_addr, c.raft_advertise, c.http_advertise) == (None, None, "")
    assert (c.seeds, c.role, c.follower_mode, c.read_mode) == ((), "data", "redirect", "index")
    assert c.election_timeout == 0.4
    assert (c.engine, c.max_mem_size, c.lsm_reads) == ("btree", 10_000_000, "map")
    assert not c.told_engine
    assert set(c.sources.values()) == {"default"}
    assert not c.told_node_id
    assert c.ignored_environment == ()


def test_a_config_never_changes() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load([], {}).node_id = "other"  # type: ignore[misc]


def test_example_file_shows_every_setting_with_its_default() -> None:
    example = load([f"--config={EXAMPLE}"], {})
    defaults = load([], {})
    for setting in SETTINGS:
        if setting.name != "config":
            assert example.sources[setting.name].startswith(f"{EXAMPLE} line "), setting.name
            assert getattr(example, setting.name) == getattr(defaults, setting.name), setting.name
    text = EXAMPLE.read_text()
    for setting in SETTINGS:
        if setting.name != "config" and setting.default:
            comment = rf"# Default: {re.escape(setting.default)}\b[^\n]*\n"
            value = rf"{setting.name}: {re.escape(setting.default)}\n"
            assert re.search(comment + value, text), f"{setting.name}: comment and value differ"


# -- sources ---------------------------------------------------------------------------------------


def test_precedence_flag_environment_yaml_default(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "node_id: y\ndata_dir: y\nhttp_addr: y:1\n")
    c = load([file, "--node-id=f"], {"CONURE_NODE_ID": "e", "CONURE_DATA_DIR": "e"})
    assert (c.node_id, c.data_dir, c.http_addr) == ("f", "e", ("y", 1))
    assert c.raft_addr == ("127.0.0.1", 7001)
    assert c.sources["node_id"] == "flag --node-id"
    assert c.sources["data_dir"] == "environment CONURE_DATA_DIR"
    assert c.sources["http_addr"] == f"{tmp_path}/conure.yaml line 3"
    assert c.sources["raft_addr"] == "default"
    assert f"http_addr = y:1 ({tmp_path}/conure.yaml line 3)" in c.describe()


def test_the_file_can_be_named_by_the_environment_and_overruled_by_the_flag(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("node_id: a\n")
    (tmp_path / "b").write_text("node_id: b\n")
    assert load([], {"CONURE_CONFIG": str(tmp_path / "a")}).node_id == "a"
    c = load([f"--config={tmp_path / 'b'}"], {"CONURE_CONFIG": str(tmp_path / "a")})
    assert (c.node_id, c.config) == ("b", str(tmp_path / "b"))
    assert load([], {"CONURE_CONFIG": ""}).node_id == "node1"


@pytest.mark.parametrize(
    "argv",
    [
        ["--http-addr=h:1"], ["--http-addr", "h:1"], ["-http-addr=h:1"], ["-http-addr", "h:1"],
        ["--http_addr=h:1"], ["-http_addr", "h:1"], ["--http-addr=x:9", "--http-addr=h:1"],
    ],
)  # fmt: skip
def test_ways_to_write_a_flag(argv: list[str]) -> None:
    assert load(argv, {}).http_addr == ("h", 1)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--bootstrap"], True), (["-bootstrap"], True), (["--bootstrap=true"], True),
        (["--bootstrap=false"], False), (["-bootstrap=0"], False), (["--bootstrap=FALSE"], False),
        (["--bootstrap", "--node-id=a"], True), (["--node-id=a"], False), ([], True),
        (["--join=http://a:1"], False), (["--bootstrap", "--join=http://a:1"], True),
        (["--seeds="], True), (["--role=data"], True), (["--role=arbiter"], False),
    ],
)  # fmt: skip
def test_bootstrap(argv: list[str], expected: bool) -> None:
    assert load(argv, {}).bootstrap is expected


def test_a_node_that_was_told_its_name_does_not_bootstrap_by_default(tmp_path: Path) -> None:
    for argv, environ in (
        (["--node-id=node1"], {}),
        ([], {"CONURE_NODE_ID": "node1"}),
        ([yaml_file(tmp_path, "node_id: node1")], {}),
    ):
        c = load(argv, environ)
        assert c.told_node_id
        assert not c.bootstrap
    assert load(["--node-id=n", "--bootstrap"], {}).bootstrap


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load(["--data-dir=/a=b"], {}).data_dir == "/a=b"


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    assert load(["--data-dir=~/db"], {}).data_dir == "/home/x/db"


def test_strangers_in_the_environment_are_collected_but_not_those_of_kubernetes() -> None:
    c = load([], {
        "CONURE_DATADIR": "x", "CONURE_SEED": "x", "CONURE_SERVER": "http://a:1", "PATH": "/bin",
        "CONURE_CA": "x", "CONURE_CERT": "x", "CONURE_KEY": "x", "CONURE_TLS_NAME": "x",
        "CONURE_PORT": "tcp://10.0.0.1:8081", "CONURE_SERVICE_HOST": "10.0.0.1",
        "CONURE_SERVICE_PORT": "8081", "CONURE_SERVICE_PORT_HTTP": "8081",
        "CONURE_PORT_8081_TCP": "tcp://10.0.0.1:8081", "CONURE_PORT_8081_TCP_ADDR": "10.0.0.1",
        "CONURE_PORT_8081_TCP_PORT": "8081", "CONURE_PORT_8081_TCP_PROTO": "tcp",
        "CONURE_HEADLESS_SERVICE_HOST": "None", "CONURE_HEADLESS_PORT": "x",
    })  # fmt: skip
    assert c.ignored_environment == ("CONURE_DATADIR", "CONURE_SEED")
    assert not c.told_node_id


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3), ("500ms", 0.5), ("1m30s", 90), ("1h", 3600), ("1.5s", 1.5), ("2000us", 0.002)],
)
def test_durations(text: str, seconds: float) -> None:
    assert load([f"--barrier-timeout={text}"], {}).barrier_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096), ("1b", 1), ("64KiB", 65536), ("1MB", 10**6), ("1 mib", 1 << 20),
        ("64Mi", 64 << 20), ("2kb", 2000),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert load([f"--max-value-bytes={text}"], {}).max_value_bytes == size


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", ()),
        ("http://a:1", ("http://a:1",)),
        ("http://a:1,http://b-2.example.net:2/", ("http://a:1", "http://b-2.example.net:2")),
        (" http://[::1]:1 , ,http://a,", ("http://[::1]:1", "http://a:80")),
        ("http://a:80,http://a/", ("http://a:80",)),
        ("a:7001,http://a:1, A:7001,[::1]:7", ("a:7001", "http://a:1", "[::1]:7")),
    ],
)
def test_seeds(text: str, seeds: tuple[str, ...]) -> None:
    assert load([f"--seeds={text}"], {}).seeds == seeds
    assert f"seeds = {','.join(seeds)} (flag --seeds)" in load([f"--seeds={text}"], {}).describe()


def test_seeds_are_also_called_join(tmp_path: Path) -> None:
    a, b = ("http://a:1",), ("http://b:1",)
    for argv, environ, source in (
        (["--join", "http://a:1"], {}, "flag --join"),
        (["-join=http://a:1"], {"CONURE_SEEDS": "http://b:1"}, "flag --join"),
        ([], {"CONURE_JOIN": "http://a:1"}, "environment CONURE_JOIN"),
        ([], {"CONURE_SEEDS": "http://a:1"}, "environment CONURE_SEEDS"),
        ([yaml_file(tmp_path, "join: http://a:1")], {}, f"{tmp_path}/conure.yaml line 1"),
    ):
        c = load(argv, environ)
        assert (c.seeds, c.sources["seeds"]) == (a, source)
        assert c.ignored_environment == ()
    assert load(["--join=http://a:1", "--join=http://b:1"], {}).seeds == b, "the last one counts"
    assert load(["--seeds=http://a:1", "--join=http://a:1"], {}).seeds == a, "they say the same"


def test_seeds_by_two_names_from_one_source_are_refused(tmp_path: Path) -> None:
    error = error_of(["--seeds=http://a:1", "--join=http://b:1"])
    assert (error.setting, error.source) == ("join", "flag --join")
    assert "flag --seeds" in error.why
    error = error_of([], {"CONURE_SEEDS": "http://a:1", "CONURE_JOIN": "http://a:1"})
    assert (error.setting, error.source) == ("join", "environment CONURE_JOIN")
    assert "CONURE_SEEDS" in error.why
    error = error_of([yaml_file(tmp_path, "seeds: http://a:1\njoin: http://a:1")])
    assert (error.setting, error.source) == ("join", f"{tmp_path}/conure.yaml line 2")
    assert "line 1" in error.why


@pytest.mark.parametrize(
    ("text", "peers"),
    [
        ("", ()),
        ("db2:7001", ("db2:7001",)),
        ("n2@DB2:7001, n3@[::1]:7001,", ("n2@db2:7001", "n3@[::1]:7001")),
    ],
)
def test_peers(text: str, peers: tuple[str, ...]) -> None:
    c = load([f"--peers={text}"], {})
    assert c.peers == peers
    assert c.bootstrap == (not peers)


def test_who_has_peers_may_leave_its_host_to_them() -> None:
    c = load(["--raft-addr=:7001", "--http-addr=:8081", "--peers=db2:7001"], {})
    assert c.raft_advertised(7001) == c.http_advertised(8081) == ""
    c = load(["--raft-addr=:7001", "--http-addr=db1:8081", "--peers=db2:7001"], {})
    assert c.http_advertised(8081) == "http://db1:8081"
    c = load(["--raft-addr=:7001", "--raft-advertise=db1:7001", "--peers=db2:7001"], {})
    assert (c.raft_advertised(7001), c.http_advertised(8081)) == ("db1:7001", "http://db1:8081")


def test_peers_begin_a_cluster_by_themselves() -> None:
    for flag in ("--bootstrap", "--join=http://a:1"):
        error = error_of(["--peers=db2:7001", flag])
        assert (error.setting, error.source) == ("peers", "flag --peers")
        assert "a list of peers forms a cluster by itself" in error.why
    assert not load(["--peers=db2:7001", "--bootstrap=false"], {}).bootstrap
    many = ",".join(f"db{number}:7001" for number in range(40))
    assert "40 nodes are too many" in error_of([f"--peers={many}"]).why


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("db.example.com", ("db.example.com",)),
        (" DB.Example.Com. , .inside.example,*.below.example,", (
            "db.example.com", ".inside.example", "*.below.example")),
        ("a.b,A.B", ("a.b",)),
        ("*", ("*",)),
    ],
)  # fmt: skip
def test_allowed_hosts(text: str, hosts: tuple[str, ...]) -> None:
    assert load([f"--allowed-hosts={text}"], {}).allowed_hosts == hosts


@pytest.mark.parametrize(
    ("text", "proxies"),
    [
        ("", ()),
        ("10.0.0.7", ("10.0.0.7/32",)),
        ("10.0.0.0/24, fd00::/64,10.0.0.0/24", ("10.0.0.0/24", "fd00::/64")),
    ],
)
def test_trusted_proxies(text: str, proxies: tuple[str, ...]) -> None:
    assert load([f"--trusted-proxies={text}"], {}).trusted_proxies == proxies


def test_hosts_that_name_this_node() -> None:
    argv = ["--raft-addr=raft.example:7001", "--http-addr=http.example:8081"]
    argv += ["--http-advertise=http://out.example", "--raft-advertise=in.example:7001"]
    argv += ["--metrics-addr=metrics.example:9100", "--seeds=http://one.example:8081,http://two:80"]
    assert set(load(argv, {}).own_hosts()) == {
        *("raft.example", "http.example", "out.example", "in.example", "metrics.example"),
        *("one.example", "two"),
    }


def test_an_arbiter_can_not_begin_a_cluster() -> None:
    error = error_of(["--role=arbiter", "--bootstrap"])
    assert (error.setting, error.source) == ("bootstrap", "flag --bootstrap")
    assert "--seeds" in error.why
    assert load(["--role=arbiter", "--bootstrap=false"], {}).role == "arbiter"


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        (":8081", ("", 8081), ":8081"),
        ("[::1]:8081", ("::1", 8081), "[::1]:8081"),
        ("[::]:0", ("::", 0), "[::]:0"),
        ("db-1.example.net:65535", ("db-1.example.net", 65535), "db-1.example.net:65535"),
    ],
)
def test_addresses(text: str, address: tuple[str, int], shown: str) -> None:
    parsed = load([f"--http-addr={text}"], {}).http_addr
    assert parsed == address
    assert str(parsed) == shown


BAD_VALUES = [
    ("node_id", "", "1 to 128"),
    ("node_id", "a b", "1 to 128"),
    ("node_id", "nöde", "1 to 128"),
    ("node_id", "x" * 129, "1 to 128"),
    ("data_dir", "", "./data"),
    ("raft_addr", "7001", "write :7001"),
    ("raft_addr", "127.0.0.1", "write it like"),
    ("raft_addr", "127.0.0.1:65536", "0 to 65535"),
    ("raft_addr", "127.0.0.1:٣", "write it like"),
    ("http_addr", "::1:8081", "brackets"),
    ("http_addr", "[::1:8081", "brackets"),
    ("http_addr", "[example]:8081", "IPv6"),
    ("http_addr", "http://127.0.0.1:8081", "URL"),
    ("http_addr", "", "write it like"),
    ("metrics_addr", "9100", "write :9100"),
    ("raft_advertise", ":7001", "nobody can connect"),
    ("raft_advertise", "0.0.0.0:7001", "nobody can connect"),
    ("raft_advertise", "db1:0", "nobody can connect"),
    ("peers", ":7002", "name the other node's host and port"),
    ("peers", "db2:0", "name the other node's host and port"),
    ("peers", "db2", "write it like"),
    ("peers", "a b@db2:7001", "no node ID"),
    ("peers", "n2@db2:7001,n3@db2:7001", "listed twice"),
    ("peers", "db2:7001,db3:7001, DB2:7001", "db2:7001 is listed twice"),
    ("peers", "n2@db2:7001,n2@db2:7001", "db2:7001 is listed twice"),
    ("peers", "n2@db2:7001,n2@db3:7001", "n2 is listed twice"),
    ("http_advertise", "db1:8081", "http://10.0.0.5:8081"),
    ("http_advertise", "ftp://db1:8081", "base URL"),
    ("http_advertise", "http://db1:8081/kv", "base URL"),
    ("http_advertise", "http://user@db1:8081", "base URL"),
    ("http_advertise", "http://[::]:8081", "nobody can connect"),
    ("seeds", "a", "no host and port"),
    ("seeds", ":7001", "nobody can connect"),
    ("seeds", "a:0", "nobody can connect"),
    ("seeds", "http://a:1;http://b:1", "base URL"),
    ("seeds", "http://a:1,http://:8081", "base URL"),
    ("seeds", "http://a:1,http://0.0.0.0:8081", "nobody can connect"),
    ("role", "voter", "data, arbiter"),
    ("follower_mode", "proxy", "redirect, forward"),
    ("read_mode", "Lease", "index, lease"),
    ("election_timeout", "99ms", "100ms to 1m"),
    ("election_timeout", "61s", "100ms to 1m"),
    ("election_timeout", "400", "write 400s"),
    ("bootstrap", "maybe", "true nor false"),
    ("bootstrap", "", "true nor false"),
    ("barrier_timeout", "3", "write 3s"),
    ("barrier_timeout", "3 s", "like 3s"),
    ("barrier_timeout", "-3s", "like 3s"),
    ("barrier_timeout", "0s", "1ms to 1h"),
    ("barrier_timeout", "2h", "1ms to 1h"),
    ("barrier_timeout", "1e3s", "like 3s"),
    ("max_value_bytes", "0", "1 to 64MiB"),
    ("max_value_bytes", "65MiB", "1 to 64MiB"),
    ("max_value_bytes", "1.5MiB", "like 4096"),
    ("max_value_bytes", "1 potato", "like 4096"),
    ("max_value_bytes", "-1", "like 4096"),
    ("page_size", "5000", "power of two"),
    ("page_size", "2048", "4KiB to 64KiB"),
    ("page_size", "128KiB", "4KiB to 64KiB"),
    ("checkpoint_entries", "0", "1 to"),
    ("checkpoint_entries", "1k", "whole number"),
    ("max_connections", "1_000", "whole number"),
    ("allowed_hosts", "a.b,http://c.d", "without a scheme or a port"),
    ("allowed_hosts", "c.d:8081", "without a scheme or a port"),
    ("allowed_hosts", "*d", "write it like"),
    ("trusted_proxies", "10.0.0.0/24,proxy", "write it like 10.0.0.7"),
    ("trusted_proxies", "10.0.0.1/24", "host bits set"),
    ("log_level", "trace", "debug, info, warning, error"),
    ("log_format", "JSON", "text, json"),
]


@pytest.mark.parametrize(("name", "text", "remedy"), BAD_VALUES)
def test_a_bad_value_names_setting_source_and_remedy(name: str, text: str, remedy: str) -> None:
    flag = "--" + name.replace("_", "-")
    error = error_of([f"{flag}={text}"])
    assert (error.setting, error.source) == (name, f"flag {flag}")
    assert remedy in error.why
    variable = f"CONURE_{name.upper()}"
    error = error_of([], {variable: text})
    assert (error.setting, error.source) == (name, f"environment {variable}")
    assert remedy in error.why


@pytest.mark.parametrize(
    ("argv", "setting", "why"),
    [
        (["serve"], "serve", "not expected here"),
        (["--", "a"], "--", "not expected here"),
        (["-"], "-", "not expected here"),
        (["--bootstrap", "false"], "false", "--bootstrap=false"),
        (["--http-adr=:1"], "--http-adr", "did you mean --http-addr?"),
        (["--joins=http://a:1"], "--joins", "did you mean --join?"),
        (["--join"], "seeds", "write --join=SEEDS"),
        (["--http"], "--http", "no such flag"),  # no abbreviations
        (["---node-id=a"], "---node-id", "no such flag"),
        (["--xyzzy"], "--xyzzy", "--help"),
        (["--data-dir"], "data_dir", "--data-dir=DIRECTORY"),
        (["--data-dir", "--bootstrap"], "data_dir", "no value"),
    ],
)
def test_a_bad_command_line(argv: list[str], setting: str, why: str) -> None:
    error = error_of(argv)
    assert error.setting == setting
    assert why in error.why


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=12) | st.sampled_from([s.flag for s in SETTINGS]), max_size=4))
def test_no_command_line_ends_in_anything_but_a_config_or_its_error(argv: list[str]) -> None:
    if any(arg.lstrip("-") in ("h", "help", "version") or "config" in arg for arg in argv):
        return
    with contextlib.suppress(ConfigError):
        load(argv, {})


def test_addresses_that_exclude_each_other() -> None:
    error = error_of(["--raft-addr=127.0.0.1:9000", "--http-addr=:9000"])
    assert error.setting == "http_addr"
    assert "raft_addr" in error.why
    assert error_of(["--metrics-addr=:8081"]).setting == "metrics_addr"
    assert error_of(["--resp-addr=:8081"]).setting == "resp_addr"
    assert error_of(["--rest-addr=:8081"]).setting == "rest_addr"
    assert error_of(["--resp-addr=:9090", "--rest-addr=127.0.0.1:9090"]).setting == "rest_addr"
    advertised = "--raft-advertise=10.0.0.1:9000"
    for everywhere in (":9000", "0.0.0.0:9000", "[::]:9000"):
        error = error_of([f"--raft-addr={everywhere}", advertised, "--http-addr=127.0.0.1:9000"])
        assert error.setting == "http_addr"
        assert "is taken by raft_addr" in error.why
    load(["--raft-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"], {})
    load(["--raft-addr=10.0.0.1:9000", "--http-addr=10.0.0.2:9000"], {})


def test_a_raft_address_that_nobody_can_connect_to_needs_an_advertised_one() -> None:
    error = error_of(["--raft-addr=0.0.0.0:7005"])
    assert error.setting == "raft_addr"
    assert "--raft-advertise=<this host>:7005" in error.why
    load(["--raft-addr=:7005", "--raft-advertise=db1:7005"], {})


@pytest.mark.parametrize(
    ("argv", "raft", "http"),
    [
        ([], "127.0.0.1:5001", "http://127.0.0.1:5002"),
        (["--http-addr=10.0.0.9:0"], "127.0.0.1:5001", "http://10.0.0.9:5002"),
        (["--raft-addr=10.0.0.5:0"], "10.0.0.5:5001", "http://10.0.0.5:5002"),
        (["--raft-addr=[::1]:0", "--http-addr=[::]:0"], "[::1]:5001", "http://[::1]:5002"),
        (
            ["--raft-addr=:7001", "--raft-advertise=db1:7701"],
            "db1:7701",
            "http://db1:5002",
        ),
        (["--http-advertise=http://db1/"], "127.0.0.1:5001", "http://db1:80"),
        (["--http-advertise=http://[::1]:9/"], "127.0.0.1:5001", "http://[::1]:9"),
    ],
)
def test_advertised_addresses(argv: list[str], raft: str, http: str) -> None:
    c = load(argv, {})
    assert c.raft_advertised(5001) == raft
    assert c.http_advertised(5002) == http


def test_wildcards() -> None:
    assert all(Address(host, 1).is_wildcard for host in ("", "0.0.0.0", "::", "0:0::0"))
    assert not any(Address(host, 1).is_wildcard for host in ("127.0.0.1", "::1", "localhost"))


# -- YAML ------------------------------------------------------------------------------------------


def test_yaml_numbers_booleans_and_text(tmp_path: Path) -> None:
    c = load([yaml_file(tmp_path, """
        max_connections: 5
        checkpoint_entries: "6"
        bootstrap: yes
        node_id: "5"
        page_size: 0x2000
        http_addr: "[::1]:9"
        barrier_timeout: 1m30s
        metrics_addr: ''
    """)], {})  # fmt: skip
    assert (c.max_connections, c.checkpoint_entries, c.bootstrap) == (5, 6, True)
    assert (c.node_id, c.page_size, c.http_addr) == ("5", 8192, ("::1", 9))
    assert (c.barrier_timeout, c.metrics_addr) == (90, None)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_yaml_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert load([yaml_file(tmp_path, text)], {}).node_id == "node1"


@pytest.mark.parametrize(
    ("text", "setting", "line", "why"),
    [
        ("\nnode_id: 5", "node_id", 2, "quotes"),
        ("node_id: 007", "node_id", 1, "quotes"),
        ("node_id: yes", "node_id", 1, "quotes"),
        ("node_id: 2024-01-01", "node_id", 1, "date"),
        ("node_id:", "node_id", 1, "missing"),
        ("data_dir: [a]", "data_dir", 1, "list"),
        ("data_dir: {a: b}", "data_dir", 1, "dict"),
        ("http_addr: 8081", "http_addr", 1, "write :8081"),
        ("barrier_timeout: 3", "barrier_timeout", 1, "write 3s"),
        ("bootstrap: 2", "bootstrap", 1, "true nor false"),
        ("max_connections: 1.5", "max_connections", 1, "whole number"),
        ("max_connections: true", "max_connections", 1, "whole number"),
        ("log_level: off", "log_level", 1, "debug, info"),
        ("\n\nhttp_adr: a", "http_adr", 3, "did you mean http_addr?"),
        ("http-addr: a", "http-addr", 1, "did you mean http_addr?"),
        ("5: a", "5", 1, "no such setting"),
        ("config: a", "config", 1, "remove the line"),
        ("node_id: a\nlog_level: info\nnode_id: b", "node_id", 3, "line 1"),
        ("- node_id", "config", 1, "name: value"),
        ("just text", "config", 1, "name: value"),
        ("node_id: a\n  b: c", "config", 2, "not valid YAML"),
        ("node_id: 'a", "config", 1, "not valid YAML"),
        ("node_id: a\n---\nnode_id: b", "config", 2, "not valid YAML"),
        ("node_id: !!python/object:os.system x", "config", 1, "not valid YAML"),
    ],
)
def test_bad_yaml_names_file_and_line(
    tmp_path: Path, text: str, setting: str, line: int, why: str
) -> None:
    error = error_of([yaml_file(tmp_path, text)])
    assert error.setting == setting
    assert error.source == f"{tmp_path}/conure.yaml line {line}"
    assert why in error.why


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "date").write_text("node_id: 2024-13-45")
    assert "No such file" in error_of([f"--config={tmp_path}/missing"]).why
    assert "directory" in error_of([f"--config={tmp_path}"]).why
    assert "not a YAML file" in error_of([f"--config={tmp_path}/binary"]).why
    assert "not valid YAML" in error_of([f"--config={tmp_path}/date"]).why


def test_missing_pyyaml_names_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_yaml(name: str, *args: object) -> object:
        if name == "yaml":
            raise ImportError(name)
        return real_import(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    error = error_of([yaml_file(tmp_path, "node_id: a")])
    assert "pip install pyyaml" in error.why
    assert load(["--node-id=a"], {}).node_id == "a"


def test_yaml_is_imported_only_for_a_file() -> None:
    code = (
        "import sys; from conure.config import load; load([], {}); sys.exit('yaml' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
def test_help_lists_every_setting_with_its_default(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(["--node-id=a", flag], {})
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for setting in SETTINGS:
        assert re.search(rf"{setting.flag}\[?={setting.placeholder}\]?\n", text)
        assert f"(default: {setting.default})" in text or not setting.default
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii(), "a terminal may know nothing else"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(["--version"], {})
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"ConureDB {VERSION} (Python ")
    assert VERSION.count(".") == 2


# -- who may connect -------------------------------------------------------------------------------

TLS = ["--tls-cert=c", "--tls-key=k"]
PEER_TLS = ["--peer-tls-cert=c", "--peer-tls-key=k", "--peer-tls-ca=a"]
SECRET = ["--cluster-secret-file=s"]


@pytest.mark.parametrize(
    ("argv", "client_auth", "peer_auth"),
    [
        ([], "none", "open"),
        (TLS, "none", "open"),
        ([*TLS, "--tls-client-ca=a"], "require", "open"),
        ([*TLS, "--tls-client-ca=a", "--tls-client-auth=request"], "request", "open"),
        (["--tls-auto"], "none", "open"),
        (["--tls-auto", "--tls-client-auth=require"], "require", "open"),
        (SECRET, "none", "require"),
        (PEER_TLS, "none", "require"),
        ([*SECRET, "--peer-auth=offer"], "none", "offer"),
        ([*SECRET, *PEER_TLS, "--peer-auth=open"], "none", "open"),
    ],
)
def test_who_has_to_prove_who_they_are(argv: list[str], client_auth: str, peer_auth: str) -> None:
    c = load(argv, {})
    assert (c.tls_client_auth, c.peer_auth) == (client_auth, peer_auth)
    assert c.has_tls == any(
        "tls-cert=" in flag or "auto" in flag for flag in argv if "peer" not in flag
    )
    assert c.asks_clients == (client_auth == "require")
    assert c.asks_peers == (peer_auth != "open")
    assert c.http_advertised(1).startswith("https://" if c.has_tls else "http://127")


@pytest.mark.parametrize(
    ("argv", "name", "why"),
    [
        (["--tls-cert=c"], "tls_cert", "--tls-key"),
        (["--tls-key=k"], "tls_key", "--tls-cert"),
        (["--tls-client-ca=a"], "tls_client_ca", "--tls-cert"),
        ([*TLS, "--tls-client-auth=require"], "tls_client_auth", "--tls-client-ca"),
        ([*TLS, "--tls-client-ca=a", "--tls-client-auth=none"], "tls_client_ca", "leave out one"),
        ([*TLS, "--tls-auto"], "tls_auto", "leave out --tls-cert"),
        (["--peer-tls-cert=c"], "peer_tls_cert", "--peer-tls-key"),
        (["--peer-tls-cert=c", "--peer-tls-key=k"], "peer_tls_cert", "--peer-tls-ca"),
        (["--peer-tls-ca=a"], "peer_tls_ca", "--peer-tls-cert"),
        (["--peer-auth=require"], "peer_auth", "--cluster-secret-file"),
        (["--peer-auth=offer"], "peer_auth", "--peer-tls-cert"),
        (["--cors-origins=example.com"], "cors_origins", "https://admin.example.com"),
        (["--tls-min-version=1.1"], "tls_min_version", "1.2"),
    ],
)
def test_half_of_what_security_takes_is_refused(argv: list[str], name: str, why: str) -> None:
    error = error_of(argv)
    assert error.setting == name
    assert why in error.why


def test_origins_are_written_as_browsers_write_them() -> None:
    given = "--cors-origins=HTTPS://Admin.Example.com:443/, http://localhost:3000,http://[::1]:80"
    expected = ("https://admin.example.com", "http://localhost:3000", "http://[::1]")
    assert load([given], {}).cors_origins == expected
