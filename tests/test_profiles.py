"""Profiles: their defaults, what beats them, what names mean with them, and what is refused."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from conure.config import Config, load
from conure.errors import ConfigError
from conure.profiles import KVSTORE, PROFILES
from conure.settings import SETTINGS
from conuredb import main
from tests.lab import forkserver
from tests.lab.process import ROOT

PROFILE = "--profile=kvstore"
NAMES = {setting.name for setting in SETTINGS}


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "conure.yaml"
    path.write_text(text)
    return f"--config={path}"


def addresses(config: Config) -> dict[str, str]:
    """Return where a node listens, by the settings' own names."""
    names = ("http_addr", "rest_addr", "resp_addr", "metrics_addr", "raft_addr")
    return {name: str(getattr(config, name) or "") for name in names}


OURS = {
    "http_addr": "127.0.0.1:8081",
    "rest_addr": ":8080",
    "resp_addr": ":9090",
    "metrics_addr": ":2112",
    "raft_addr": "127.0.0.1:7001",
}

# -- defaults --------------------------------------------------------------------------------------


def test_the_table_knows_the_settings() -> None:
    for profile in PROFILES:
        assert profile.defaults.keys() <= NAMES
        assert set(profile.meanings.values()) <= NAMES
        others = {alias for setting in SETTINGS for alias in (setting.name, setting.alias)}
        assert {*profile.meanings, *profile.called.values()} <= others
        assert set(profile.called) == set(profile.meanings), "what is taken is given back"


def test_the_defaults_of_kvstore() -> None:
    config = load([PROFILE], {})
    assert addresses(config) == OURS
    assert (config.profile, config.engine, config.data_dir) == ("kvstore", "lsm", "./data")
    assert (config.node_id, config.bootstrap, config.max_mem_size) == ("node1", True, 10_000_000)
    assert (config.told_engine, config.told_node_id) == (False, False)
    assert config.follower_mode == "forward"
    for name in KVSTORE.defaults:
        assert config.sources[name] == "profile kvstore"
        assert config.is_default(name)
    plain = load([], {})
    for name in NAMES - set(KVSTORE.defaults) - {"profile"}:
        assert getattr(config, name) == getattr(plain, name)
        assert config.sources[name] == "default"


def test_no_profile_is_as_if_there_were_none() -> None:
    assert load(["--profile="], {}).engine == "btree"
    assert load(["--profile="], {"CONURE_PROFILE": "kvstore"}).engine == "btree"
    assert addresses(load([], {})) == {
        **dict.fromkeys(OURS, ""),
        "http_addr": ":8081",
        "raft_addr": "127.0.0.1:7001",
    }


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        ([PROFILE], {}, ""),
        (["-profile", "kvstore"], {}, ""),
        ([], {"CONURE_PROFILE": "kvstore"}, ""),
        ([], {}, "profile: kvstore\n"),
        ([PROFILE], {"CONURE_PROFILE": ""}, 'profile: ""\n'),
        ([], {"CONURE_PROFILE": "kvstore"}, 'profile: ""\n'),
    ],
)
def test_any_source_names_the_profile(
    argv: list[str], environ: dict[str, str], text: str, tmp_path: Path
) -> None:
    assert addresses(load([yaml_file(tmp_path, text), *argv], environ)) == OURS


# Of each default of the profile, another value, and what it comes to.
BEATEN = {
    "http_addr": ("127.0.0.1:1", ("127.0.0.1", 1)),
    "rest_addr": (":2", ("", 2)),
    "resp_addr": (":3", ("", 3)),
    "metrics_addr": ("", None),
    "engine": ("btree", "btree"),
    "data_dir": ("/d", "/d"),
    "follower_mode": ("redirect", "redirect"),
}


@pytest.mark.parametrize("where", ["file", "environment", "flag"])
@pytest.mark.parametrize("profile_in", ["file", "environment", "flag"])
@pytest.mark.parametrize("name", KVSTORE.defaults)
def test_any_source_beats_the_profile_wherever_that_is_named(
    name: str, where: str, profile_in: str, tmp_path: Path
) -> None:
    text, value = BEATEN[name]
    written = KVSTORE.called.get(name, name)
    lines: list[str] = []
    argv: list[str] = []
    environ: dict[str, str] = {}
    for given, said, place in ((written, text, where), ("profile", "kvstore", profile_in)):
        if place == "file":
            lines.append(f'{given}: "{said}"')
        elif place == "environment":
            environ[f"CONURE_{given.upper()}"] = said
        else:
            argv.append(f"--{given.replace('_', '-')}={said}")
    config = load([yaml_file(tmp_path, "\n".join(lines)), *argv], environ)
    assert getattr(config, name) == value
    assert not config.is_default(name)
    others = {each: address for each, address in OURS.items() if each != name}
    assert others.items() <= addresses(config).items()


def test_the_file_loses_to_the_environment_and_that_to_a_flag(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "http_addr: f:1\ntcp_addr: f:2\nreplication_addr: f:3")
    environ = {"CONURE_REST_ADDR": "e:1", "CONURE_RESP_ADDR": "e:2"}
    config = load([PROFILE, file, "-http-addr=a:1"], environ)
    found = addresses(config)
    assert (found["rest_addr"], found["resp_addr"], found["raft_addr"]) == ("a:1", "e:2", "f:3")
    assert config.sources["rest_addr"] == "flag --http-addr"
    assert config.sources["raft_addr"] == f"{tmp_path}/conure.yaml line 3"


# -- names -----------------------------------------------------------------------------------------

FLAGS = {
    "-data-dir": ("data_dir", "/d", "/d"),
    "-max-mem-size": ("max_mem_size", "1MB", 1_000_000),
    "-http-addr": ("rest_addr", ":18080", ("", 18080)),
    "-api-addr": ("http_addr", ":18081", ("", 18081)),
    "-tcp-addr": ("resp_addr", ":19090", ("", 19090)),
    "-metrics-addr": ("metrics_addr", ":12112", ("", 12112)),
    "-node-id": ("node_id", "n7", "n7"),
    "-replication-addr": ("raft_addr", "h:10001", ("h", 10001)),
    "-peers": ("peers", "h:10002,i:10003", ("h:10002", "i:10003")),
    "-quorum-size": ("quorum_size", "2", 2),
}


@pytest.mark.parametrize(
    ("flag", "dash", "between"),
    list(itertools.product(FLAGS, ("", "-"), ("=", " "))),
    ids=lambda value: value,
)
def test_its_flags_take_one_dash_or_two_and_their_values_either_way(
    flag: str, dash: str, between: str
) -> None:
    name, text, value = FLAGS[flag]
    config = load([PROFILE, *f"{dash}{flag}{between}{text}".split(" ")], {})
    assert getattr(config, name) == value
    assert config.sources[name] == f"flag -{flag}"
    assert all(config.is_default(each) for each in OURS if each != name)


def test_aliases_mean_the_same_without_the_profile() -> None:
    for flag, (name, text, value) in FLAGS.items():
        if flag != "-http-addr":
            assert getattr(load([f"{flag}={text}"], {}), name) == value
    assert load(["-http-addr=:18080"], {}).http_addr == ("", 18080)
    config = load([], {"CONURE_API_ADDR": ":1", "CONURE_TCP_ADDR": ":2"})
    assert (config.http_addr, config.resp_addr) == (("", 1), ("", 2))
    assert config.ignored_environment == ()


@pytest.mark.parametrize("place", ["file", "environment", "flag"])
def test_http_addr_means_rest_addr_in_every_place(place: str, tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "http_addr: h:1\napi_addr: a:2" if place == "file" else "")
    environ = {"CONURE_HTTP_ADDR": "h:1", "CONURE_API_ADDR": "a:2"}
    flags = ["--http-addr=h:1", "--api-addr=a:2"]
    argv = [PROFILE, file, *(flags if place == "flag" else [])]
    config = load(argv, environ if place == "environment" else {})
    assert (config.rest_addr, config.http_addr) == (("h", 1), ("a", 2))


def test_the_two_lines_of_a_cluster_by_a_list_are_taken_as_they_stand() -> None:
    for own, other in ((1, 2), (2, 1)):
        line = f"-node-id node{own} -replication-addr :1000{own} -peers node{other}:1000{other}"
        config = load([PROFILE, *line.split(), "-quorum-size", "2"], {})
        assert (config.node_id, config.raft_addr) == (f"node{own}", ("", 10000 + own))
        assert (config.peers, config.quorum_size) == ((f"node{other}:1000{other}",), 2)
        assert (config.bootstrap, config.seeds) == (False, ())


def test_a_name_given_twice_counts_as_the_last_time_it_is_given() -> None:
    config = load([PROFILE, "-http-addr=:1", "-http-addr", ":2", "--http_addr=:3"], {})
    assert config.rest_addr == ("", 3)


def test_two_flags_of_one_setting_may_say_the_same() -> None:
    assert load([PROFILE, "-http-addr=:1", "--rest-addr=:1"], {}).rest_addr == ("", 1)
    assert load(["-tcp-addr=:1", "--resp-addr", ":1"], {}).resp_addr == ("", 1)


def test_settings_are_described_as_the_profile_calls_them() -> None:
    lines = load([PROFILE, "-http-addr=:1"], {}).describe()
    assert "api_addr = 127.0.0.1:8081 (profile kvstore)" in lines
    assert "rest_addr = :1 (flag --http-addr)" in lines
    assert not any(line.startswith("http_addr") for line in lines)
    assert "http_addr = :8081 (default)" in load([], {}).describe()


# -- what is refused -------------------------------------------------------------------------------

WRONG: list[tuple[list[str], dict[str, str], str, str]] = [
    # flags, variables, what stands in a file, what is said
    (["--profile=kvstor"], {}, "", "'kvstor' is no profile; there is kvstore"),
    ([], {"CONURE_PROFILE": "redis"}, "", "environment CONURE_PROFILE"),
    ([], {}, "profile: [kvstore]", "line 1"),
    (["--profile"], {}, "", "write --profile=NAME"),
    (["--profle=kvstore"], {}, "", "did you mean --profile?"),
    ([PROFILE, "-tcp-adr=:1"], {}, "", "did you mean --tcp-addr?"),
    ([PROFILE, "-http-addr=:1", "-rest-addr=:2"], {}, "",
     "rest_addr (flag --rest-addr): flag --http-addr says it, too; keep one of them (in"),
    ([PROFILE, "-http-addr=:1", "-rest-addr=:2"], {}, "",
     "(in profile kvstore http_addr is rest_addr)"),
    (["-http-addr=:1", "-api-addr=:2"], {}, "", "api_addr (flag --api-addr): flag --http-addr"),
    (["-tcp-addr=:1", "-resp-addr=:2"], {}, "", "flag --tcp-addr says it, too"),
    (["-replication-addr=a:1", "-raft-addr=b:1"], {}, "", "flag --replication-addr says it, too"),
    ([], {"CONURE_PROFILE": "kvstore", "CONURE_HTTP_ADDR": ":1", "CONURE_REST_ADDR": ":1"}, "",
     "environment CONURE_HTTP_ADDR says it, too"),
    ([], {"CONURE_TCP_ADDR": ":1", "CONURE_RESP_ADDR": ":1"}, "", "says it, too"),
    ([], {}, "profile: kvstore\nhttp_addr: h:1\nrest_addr: h:1", "line 2 says it, too"),
    ([PROFILE], {}, "http_addr: h:1\nrest_addr: h:1", "line 1 says it, too"),
    ([], {}, "resp_addr: h:1\ntcp_addr: h:1", "line 1 says it, too"),
    ([], {}, "replication_addr: h:1\nraft_addr: h:1", "line 1 says it, too"),
    ([], {}, "http_addr: h:1\napi_addr: h:1", "line 1 says it, too"),
    ([PROFILE, "-http-addr=:9090"], {}, "",
     "rest_addr (flag --http-addr): :9090 is taken by resp_addr"),
    ([PROFILE, "-http-addr=:8081"], {}, "",
     "rest_addr (flag --http-addr): :8081 is taken by api_addr"),
    ([PROFILE, "-api-addr=:8080"], {}, "", "api_addr (flag --api-addr): :8080 is taken by rest"),
    ([PROFILE, "-tcp-addr=:2112"], {}, "", "resp_addr (flag --tcp-addr): :2112 is taken by metr"),
    ([PROFILE, "-tcp-addr=:1", "-metrics-addr=:1"], {}, "", ":1 is taken by"),
    ([PROFILE, "-replication-addr=127.0.0.1:8080"], {}, "", "8080 is taken by rest_addr"),
    ([PROFILE, "-http-addr=h:1", "-tcp-addr=i:1", "-metrics-addr=i:1"], {}, "",
     "i:1 is taken by"),
    ([PROFILE, "-http-addr=8080"], {}, "", "rest_addr (flag --http-addr): 8080 is a port"),
    ([PROFILE, "-api-addr="], {}, "", "api_addr (flag --api-addr)"),
    ([PROFILE, "-replication-addr=:10001"], {}, "", "--raft-advertise=<this host>:10001"),
    ([PROFILE, "-peers=h:1", "--bootstrap"], {}, "", "leave out --bootstrap (flag --bootstrap)"),
    ([PROFILE, "-peers=h:1", "--join=http://h:2"], {}, "", "leave out --seeds (flag --join)"),
    ([PROFILE, "-peers=h"], {}, "", "write it like"),
    ([PROFILE, "-peers"], {}, "", "write --peers=ADDRESSES"),
    ([PROFILE, "-quorum-size=1"], {}, "", "use 2 to 1000"),
    ([PROFILE, "-max-mem-size=10"], {}, "", "64KiB to 4GiB"),
    ([PROFILE, "-max-mem-size"], {}, "", "write --max-mem-size=SIZE"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "environ", "text", "said"), WRONG)
def test_what_makes_no_sense_is_one_line_and_status_2(
    argv: Sequence[str],
    environ: Mapping[str, str],
    text: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    file = [yaml_file(tmp_path, text)] if text else []
    assert main([*file, *argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"conuredb: [^\n]+\n", printed.err)
    assert said in printed.err


def test_an_address_that_is_taken_is_named_as_the_profile_calls_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        api = f"--api-addr=127.0.0.1:{taken.getsockname()[1]}"
        words = [str(ROOT / "conuredb.py"), PROFILE, f"--data-dir={tmp_path}/data", api]
        done = forkserver.run(words, timeout=30)
    assert (done.returncode, done.stdout) == (2, b"")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"conuredb: api_addr (flag --api-addr): can't listen on ")
    assert not (tmp_path / "data").exists()


def test_a_port_is_compared_with_each_that_has_it() -> None:
    """Two hosts may share one, and a third is still held against both of them."""
    names = ("-metrics-addr", "-tcp-addr", "-http-addr")
    for hosts in itertools.product((1, 2), repeat=3):
        with pytest.raises(ConfigError):
            load([PROFILE, *[f"{n}=10.0.0.{h}:1" for n, h in zip(names, hosts, strict=True)]], {})
    load([PROFILE, *[f"{name}=10.0.0.{host}:1" for host, name in enumerate(names)]], {})


# -- help ------------------------------------------------------------------------------------------


def test_help_has_a_section_for_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(["-h"], {})
    assert stopped.value.code == 0
    _, found, section = capsys.readouterr().out.partition("\nProfile kvstore ")
    assert found
    for flag, (name, _, _) in FLAGS.items():
        default = KVSTORE.defaults.get(name, "")
        assert re.search(rf"(?m)^  {flag} {re.escape(default)}", section), flag
    assert "--engine=lsm" in section
