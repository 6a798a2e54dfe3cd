"""The configuration: one frozen, validated object made from four sources.

A setting has one name, and every way of giving it is derived from that name and the one table
:data:`SETTINGS`. The further down, the stronger:

=========== ==================================== ======================================
source      how ``http_addr`` is written         remarks
=========== ==================================== ======================================
default     ``:8081``                            the table below
YAML file   ``http_addr: :8081``                 named by ``config``; needs PyYAML
environment ``CONURE_HTTP_ADDR=:8081``           an empty variable is an empty value
flag        ``--http-addr=:8081``                also ``--http-addr :8081``, ``-http_addr …``
=========== ==================================== ======================================

Rules for values, the same whatever the source:

1. Durations carry units: ``3s``, ``500ms``, ``1m30s``. A plain number is refused.
2. Sizes are bytes: ``4096``, ``64KiB``, ``1MB`` (decimal), ``2GiB``.
3. Addresses are ``host:port``, ``:port`` (every interface) or ``[::1]:port``; port 0 lets the
   system choose.
4. In YAML the text that a flag takes is taken as well, and numbers and booleans stand for
   themselves; but a name (``node_id``, ``data_dir`` …) has to be text, because YAML has already
   rewritten what looks like a number (``007`` is 7) before anyone can read it.
5. Some settings have another name as well (``seeds`` is ``join``, too), in each of the three
   places. Both names in one place are refused, unless they are flags that say the same.
6. A ``profile`` has defaults of its own, which any source beats. With ``kvstore``, wherever that
   was given, ``http_addr`` means ``rest_addr`` in all three places: profiles.py.
7. Whatever can't be used is a :class:`~errors.ConfigError` that names setting, source and remedy.

Everything here runs before the first thread starts; a :class:`Config` never changes and any
thread may read it.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import platform
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conure import VERSION
from conure.commands import MAX_VALUE_BYTES
from conure.errors import ConfigError
from conure.profiles import KVSTORE, NONE, PROFILES, Profile, profile_of
from conure.values import (
    MAX_FOUNDERS,
    MAX_QUORUM_SIZE,
    Address,
    bracketed,
    host_of,
    parse_base_url,
    parse_listening_address,
    parse_pattern,
    parse_seconds,
    parse_size,
    show_size,
)

__all__ = ["SETTINGS", "Config", "Setting", "load"]

_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_TRUE = frozenset({"true", "t", "1", "yes", "on"})
_FALSE = frozenset({"false", "f", "0", "no", "off"})
_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# What Kubernetes puts into every pod's environment for a service named "conure" or "conure-…".
_KUBERNETES = re.compile(
    r"CONURE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_OTHER_PROGRAMS = frozenset({"CONURE_SERVER"})  # read by the shell


class Setting(NamedTuple):
    """One row of the table: everything there is to know about a setting.

    ``default`` is written as a user would write it; None means that it depends on another
    setting, and ``help`` says how. ``parse`` turns text into the value or raises ValueError
    with the reason and the remedy. ``is_name`` marks what YAML must not turn into a number.
    ``alias`` is another name that means the same, empty if there is none.
    """

    name: str
    placeholder: str
    default: str | None
    help: str
    parse: Callable[[str], object]
    is_name: bool = False
    alias: str = ""

    @property
    def flag(self) -> str:
        return _flag(self.name)

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags that give it; with a profile the first may mean another setting."""
        return tuple(map(_flag, filter(None, (self.name, self.alias))))

    @property
    def variable(self) -> str:
        return _variable(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one node. Durations are in seconds, sizes in bytes.

    *http_addr* is where ``/kv`` is served, with a profile, too, whatever that calls it.
    ``told_node_id`` says whether any source gave a ``node_id``, ``told_engine`` the same of
    ``engine``. ``ignored_environment`` holds the ``CONURE_*`` variables that are no setting and
    not Kubernetes' own either, worth a line in the log. ``sources`` says for each setting where
    its value came from.
    """

    config: str
    profile: str
    node_id: str
    data_dir: str
    raft_addr: Address
    http_addr: Address
    raft_advertise: Address | None
    http_advertise: str
    metrics_addr: Address | None
    resp_addr: Address | None
    rest_addr: Address | None
    allowed_hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    bootstrap: bool
    seeds: tuple[str, ...]
    peers: tuple[str, ...]
    role: str
    quorum_size: int
    engine: str
    follower_mode: str
    read_mode: str
    election_timeout: float
    barrier_timeout: float
    write_timeout: float
    max_value_bytes: int
    page_size: int
    cache_bytes: int
    max_mem_size: int
    lsm_reads: str
    checkpoint_log_bytes: int
    checkpoint_entries: int
    checkpoint_interval: float
    log_segment_bytes: int
    max_body_bytes: int
    max_connections: int
    resp_max_connections: int
    max_requests_in_flight: int
    max_watches: int
    max_scans: int
    max_range_items: int
    watch_history_bytes: int
    idempotency_window: float
    slow_request: float
    request_timeout: float
    idle_timeout: float
    resp_idle_timeout: float
    shutdown_timeout: float
    log_level: str
    log_format: str
    told_node_id: bool
    told_engine: bool
    ignored_environment: tuple[str, ...]
    sources: Mapping[str, str]

    def raft_advertised(self, bound_port: int) -> str:
        """Return the ``host:port`` that peers connect to; *bound_port* is the one listened on.

        "" where that is for the lists of the others to say.
        """
        if self.raft_advertise is None and self.raft_addr.is_wildcard:
            return ""
        return str(self.raft_advertise or Address(self.raft_addr.host, bound_port))

    def http_advertised(self, bound_port: int) -> str:
        """Return the base URL that clients are sent to, such as ``http://10.0.0.5:8081``.

        An HTTP address that names every interface is advertised with the Raft address' host:
        that one is reachable by definition. "" where it is not known yet.
        """
        if self.http_advertise:
            return self.http_advertise
        raft = self.raft_advertise or self.raft_addr
        if self.http_addr.is_wildcard and raft.is_wildcard:
            return ""
        host = raft.host if self.http_addr.is_wildcard else self.http_addr.host
        return f"http://{bracketed(host)}:{bound_port}"

    def own_hosts(self) -> tuple[str, ...]:
        """Return the hosts by which these settings name this node, or may name it.

        Seeds are among them: the same ones may be given to all nodes.
        """
        addresses = (
            self.http_addr,
            self.raft_addr,
            self.raft_advertise,
            self.metrics_addr,
            self.rest_addr,
        )
        urls = (self.http_advertise, *self.seeds)
        hosts = [address.host for address in addresses if address is not None]
        return (*hosts, *[host_of(url) for url in urls])

    def called(self, name: str) -> str:
        """Return the name by which this profile's users give a setting."""
        return _PROFILES[self.profile].called.get(name, name)

    def is_default(self, name: str) -> bool:
        """Tell whether no source gave a setting: it has its default, or the profile's."""
        return self.sources[name] in ("default", f"profile {self.profile}")

    def describe(self) -> list[str]:
        """Return one line a setting: name, value, source. For the log at level debug."""
        return [
            f"{self.called(name)} = {_shown(getattr(self, name))} ({self.sources[name]})"
            for name in _BY_NAME
        ]


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration for a command line (without the program's name).

    Raises ConfigError for anything that can't be used. ``--help`` and ``--version`` print and
    raise SystemExit(0).
    """
    flags = _read_flags(argv)
    variables = _read_environment(environ)
    file = flags.get("config") or variables.get("config")
    lines = _read_yaml(file) if file and file.text else {}
    profile = _profile_in(flags, variables, lines)
    given: dict[str, _Given] = {}
    for said, may_agree in ((lines, False), (variables, False), (flags, True)):
        given |= _by_setting(said, profile, may_agree=may_agree)

    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        text, source = given.get(setting.name) or _default_of(setting, profile)
        sources[setting.name] = source
        if text is None:
            continue
        try:
            values[setting.name] = setting.parse(text)
        except ValueError as error:
            name = profile.called.get(setting.name, setting.name)
            raise ConfigError(name, source, str(error)) from None

    told_node_id = "node_id" in given
    values.setdefault(
        "bootstrap",
        not (told_node_id or values["seeds"] or values["peers"]) and values["role"] == "data",
    )
    config = Config(
        told_node_id=told_node_id,
        told_engine="engine" in given,
        ignored_environment=_strangers(environ),
        sources=sources,
        **values,  # type: ignore[arg-type]  # the table and the fields agree: a test holds them to it
    )
    _check_addresses(config)
    _check_role(config)
    _check_peers(config)
    return config


# -- what values may look like ---------------------------------------------------------------------


def _text(text: str) -> str:
    return text


def _node_id(text: str) -> str:
    if not _NODE_ID.fullmatch(text):
        raise ValueError(
            f"{text!r} is no node ID; use 1 to 128 letters, digits, dots, dashes and underscores"
        )
    return text


def _directory(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no directory name; name one, such as ./data")
    return os.path.expanduser(text)


def _boolean(text: str) -> bool:
    lower = text.lower()
    if lower not in _TRUE and lower not in _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return lower in _TRUE


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _duration(minimum: str, maximum: str) -> Callable[[str], float]:
    low, high = parse_seconds(minimum), parse_seconds(maximum)

    def parse(text: str) -> float:
        seconds = parse_seconds(text)
        if not low <= seconds <= high:
            raise ValueError(f"{text} is out of range; use {minimum} to {maximum}")
        return seconds

    return parse


def _size(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        size = parse_size(text)
        if not minimum <= size <= maximum:
            raise ValueError(
                f"{text} is out of range; use {show_size(minimum)} to {show_size(maximum)}"
            )
        return size

    return parse


def _page_size(text: str) -> int:
    size = _size(4 * _KIB, 64 * _KIB)(text)  # or the longest keys would not fit into a page
    if size & (size - 1):
        raise ValueError(f"{text} is no power of two; use 4096, 8192 … 65536")
    return size


def _count(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise ValueError(f"{text!r} is no whole number")
        if not minimum <= int(text) <= maximum:
            raise ValueError(f"{text} is out of range; use {minimum} to {maximum}")
        return int(text)

    return parse


def _quorum_size(text: str) -> int:
    return _count(2, MAX_QUORUM_SIZE)(text) if text else 0


def _optional_address(text: str) -> Address | None:
    return parse_listening_address(text) if text else None


def _reachable_address(text: str) -> Address | None:
    address = _optional_address(text)
    if address is not None and (address.is_wildcard or address.port == 0):
        raise ValueError(f"nobody can connect to {text}; name this node's host and port")
    return address


def _optional_base_url(text: str) -> str:
    return parse_base_url(text) if text else ""


def _listed(parse: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    """Return what parses a list with commas, each of its parts once."""

    def parse_all(text: str) -> tuple[str, ...]:
        parts = [parse(part.strip()) for part in text.split(",") if part.strip()]
        return tuple(dict.fromkeys(parts))

    return parse_all


def _peer(text: str) -> str:
    node_id, at, written = text.rpartition("@")
    address = parse_listening_address(written.lower())
    if address.is_wildcard or address.port == 0:
        raise ValueError(f"nobody can connect to {text}; name the other node's host and port")
    return f"{_node_id(node_id)}@{address}" if at else str(address)


def _peers(text: str) -> tuple[str, ...]:
    peers = _listed(_peer)(text)
    if len(peers) > MAX_FOUNDERS:
        raise ValueError(f"{len(peers)} nodes are too many; a cluster of {MAX_FOUNDERS} is formed")
    addresses = [peer.rpartition("@")[2] for peer in peers]
    for address in addresses:
        if addresses.count(address) > 1:
            raise ValueError(f"{address} is listed twice; list each node once")
    return peers


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        why = "write it like 10.0.0.7, 10.0.0.0/24 or fd00::/64"
        raise ValueError(f"{text!r} is no address or network ({error}); {why}") from None


def _shown(value: object) -> str:
    if isinstance(value, tuple) and not isinstance(value, Address):
        return ",".join(value)
    return "" if value is None else str(value)


# -- the table -------------------------------------------------------------------------------------

_S = Setting
SETTINGS: tuple[Setting, ...] = (
    _S("config", "FILE", "", "YAML file with settings (needs PyYAML)", _text, is_name=True),
    _S("profile", "NAME", "", "kvstore: other defaults, see the end of this; empty: none",
       profile_of, is_name=True),
    _S("node_id", "ID", "node1", "this node's name, the same after every restart", _node_id,
       is_name=True),
    _S("data_dir", "DIRECTORY", "./data", "where this node keeps everything; one node each",
       _directory, is_name=True),
    _S("raft_addr", "ADDRESS", "127.0.0.1:7001",
       "where peers are listened to; also --replication-addr",
       parse_listening_address, alias="replication_addr"),
    _S("http_addr", "ADDRESS", ":8081", "where the HTTP API is served; also --api-addr",
       parse_listening_address, alias="api_addr"),
    _S("raft_advertise", "ADDRESS", "",
       "the address peers connect to; empty: raft_addr, which then has to name a host",
       _reachable_address),
    _S("http_advertise", "URL", "",
       "the base URL clients are redirected to; empty: made from http_addr", _optional_base_url),
    _S("metrics_addr", "ADDRESS", "", "serve /metrics here too; empty: only on http_addr",
       _optional_address),
    _S("resp_addr", "ADDRESS", "",
       "serve RESP here, the protocol of Redis clients; empty: nowhere; also --tcp-addr",
       _optional_address, alias="tcp_addr"),
    _S("rest_addr", "ADDRESS", "", "serve REST here, each key a path of its own; empty: nowhere",
       _optional_address),
    _S("allowed_hosts", "NAMES", "",
       "names, comma-separated, under which this node is asked besides its own; "
       ".example.com: with all below it; *: any",
       _listed(parse_pattern)),
    _S("trusted_proxies", "ADDRESSES", "",
       "addresses and networks, comma-separated, of proxies: each has as many connections as "
       "it needs",
       _listed(_network)),
    _S("bootstrap", "BOOLEAN", None,
       "make a one-node cluster if there is no state yet (default: true only for a data node "
       "without node_id, seeds and peers)", _boolean),
    _S("seeds", "URLS", "",
       "base URLs of members, comma-separated, that this node asks to add it; also --join",
       _listed(parse_base_url), alias="join"),
    _S("peers", "ADDRESSES", "",
       "Raft addresses, comma-separated, HOST:PORT or ID@HOST:PORT, of the other nodes with which "
       "this one forms a new cluster; each has a list of its others",
       _peers),
    _S("role", "ROLE", "data",
       "data keeps the records; arbiter keeps none and only votes",
       _choice("data", "arbiter")),
    _S("quorum_size", "COUNT", "",
       "a cluster that is made here commits nothing before so many data voters have it on disk; "
       "empty: a majority of the voters decides. Later: POST /quorum",
       _quorum_size),
    _S("engine", "ENGINE", "btree",
       "what keeps the records: btree, lsm; fixed when data_dir is made, and if none is asked for "
       "an existing data_dir has its own",
       _choice("btree", "lsm")),
    _S("follower_mode", "MODE", "redirect",
       "how a follower treats requests for the leader: redirect, forward",
       _choice("redirect", "forward")),
    _S("read_mode", "MODE", "index",
       "before a linearizable read: index (ask a majority) or lease (trust the clocks)",
       _choice("index", "lease")),
    _S("election_timeout", "DURATION", "400ms",
       "a follower that hears no leader for once to twice this long stands for election",
       _duration("100ms", "1m")),
    _S("barrier_timeout", "DURATION", "3s", "how long a linearizable read may wait",
       _duration("1ms", "1h")),
    _S("write_timeout", "DURATION", "10s",
       "how long a write may wait; after that its outcome is unknown", _duration("1ms", "1h")),
    _S("max_value_bytes", "SIZE", "1MiB", "the largest value", _size(1, MAX_VALUE_BYTES)),
    _S("page_size", "SIZE", "4096", "page of the tree's file; fixed when the file is made",
       _page_size),
    _S("cache_bytes", "SIZE", "64MiB", "memory for pages of the tree", _size(_MIB, _TIB)),
    _S("max_mem_size", "SIZE", "10MB", "lsm: the memtable before it is flushed",
       _size(64 * _KIB, 4 * _GIB)),
    _S("lsm_reads", "MODE", "map",
       "lsm: how files are read: map (into memory) or pread (slower; a disk that fails is an error "
       "and not the end of the process)",
       _choice("map", "pread")),
    _S("checkpoint_log_bytes", "SIZE", "32MiB", "checkpoint after this much log",
       _size(4 * _KIB, _TIB)),
    _S("checkpoint_entries", "COUNT", "50000", "checkpoint after this many log entries",
       _count(1, 10**9)),
    _S("checkpoint_interval", "DURATION", "60s", "checkpoint after this time, if anything changed",
       _duration("10ms", "24h")),
    _S("log_segment_bytes", "SIZE", "4MiB", "size of one file of the log", _size(64 * _KIB, _GIB)),
    _S("max_body_bytes", "SIZE", "16MiB",
       "the largest body of a request, for transactions and batches", _size(_KIB, 64 * _MIB)),
    _S("max_connections", "COUNT", "10000", "HTTP connections at one time", _count(1, 1_000_000)),
    _S("resp_max_connections", "COUNT", "10000", "RESP connections at one time",
       _count(1, 1_000_000)),
    _S("max_requests_in_flight", "COUNT", "20000", "requests being worked on at one time",
       _count(1, 1_000_000)),
    _S("max_watches", "COUNT", "10000", "watches and waits for a change at one time",
       _count(1, 1_000_000)),
    _S("max_scans", "COUNT", "16", "long reads at one time: large ranges, counts and backups",
       _count(1, 1000)),
    _S("max_range_items", "COUNT", "10000", "records in one JSON answer",
       _count(1, 1_000_000)),
    _S("watch_history_bytes", "SIZE", "64MiB", "memory for the events that watches can resume from",
       _size(64 * _KIB, _TIB)),
    _S("idempotency_window", "DURATION", "10m",
       "how long an outcome is remembered by its Idempotency-Key",
       _duration("1s", "24h")),
    _S("slow_request", "DURATION", "1s", "requests that take longer are logged",
       _duration("1ms", "1h")),
    _S("request_timeout", "DURATION", "30s", "from a request's first byte to its last",
       _duration("10ms", "1h")),
    _S("idle_timeout", "DURATION", "120s", "how long a connection may rest between requests",
       _duration("10ms", "24h")),
    _S("resp_idle_timeout", "DURATION", "1h",
       "how long a RESP connection may rest between commands",
       _duration("10ms", "24h")),
    _S("shutdown_timeout", "DURATION", "8s", "how long a stop waits for requests in flight",
       _duration("1ms", "1h")),
    _S("log_level", "LEVEL", "info", "debug, info, warning or error",
       _choice("debug", "info", "warning", "error")),
    _S("log_format", "FORMAT", "text", "text or json", _choice("text", "json")),
)  # fmt: skip

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_BY_ANY_NAME = _BY_NAME | {setting.alias: setting for setting in SETTINGS if setting.alias}
_PROFILES = {profile.name: profile for profile in (NONE, *PROFILES)}


# -- the sources -----------------------------------------------------------------------------------


class _Given(NamedTuple):
    text: str | None
    source: str


_Said = dict[str, _Given]
"""What one source gives, by the names that stand there."""


def _profile_in(*sources: _Said) -> Profile:
    """Return the profile that the first of the sources names that names one."""
    for said in sources:
        if "profile" in said:
            text, source = said["profile"]
            try:
                return _PROFILES[profile_of(text or "")]
            except ValueError as error:
                raise ConfigError("profile", source, str(error)) from None
    return NONE


def _default_of(setting: Setting, profile: Profile) -> _Given:
    if setting.name in profile.defaults:
        return _Given(profile.defaults[setting.name], f"profile {profile.name}")
    return _Given(setting.default, "default")


def _by_setting(said: _Said, profile: Profile, *, may_agree: bool) -> dict[str, _Given]:
    """Return what one source gives by the settings that its names mean; no two names mean the same
    one, unless they *may agree* and do."""
    found: dict[str, _Given] = {}
    for name, given in said.items():
        meant = profile.meanings.get(name) or _BY_ANY_NAME[name].name
        other = found.setdefault(meant, given)
        if other is given or (may_agree and other.text == given.text):
            continue
        why = f"{other.source} says it, too; keep one of them"
        if name in profile.meanings or meant in profile.meanings.values():
            taken = ", ".join(f"{name} is {meant}" for name, meant in profile.meanings.items())
            why += f" (in profile {profile.name} {taken})"
        raise ConfigError(name, given.source, why)
    return found


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return "CONURE_" + name.upper()


def _read_environment(environ: Mapping[str, str]) -> _Said:
    variables = {name: _variable(name) for name in _BY_ANY_NAME}
    return {
        name: _Given(environ[variable], f"environment {variable}")
        for name, variable in variables.items()
        if variable in environ
    }


def _read_flags(argv: Sequence[str]) -> _Said:
    given: _Said = {}
    rest = iter(argv)
    before = ""
    for argument in rest:
        written, equals, text = argument.partition("=")
        name = written.removeprefix("-").removeprefix("-").replace("-", "_")
        if written == name or not name:
            raise ConfigError(argument, "command line", _stray(argument, before))
        if name in ("help", "h"):
            print(_help())
            raise SystemExit(0)
        if name == "version":
            print(f"ConureDB {VERSION} (Python {platform.python_version()})")
            raise SystemExit(0)
        setting = _BY_ANY_NAME.get(name)
        if setting is None:
            raise ConfigError(written, "command line", "no such flag" + _nearest(name, "flag"))
        flag = _flag(name)
        if not equals:
            text = "true" if setting.parse is _boolean else _following(setting, flag, rest)
        given[name] = _Given(text, f"flag {flag}")
        before = argument
    return given


def _following(setting: Setting, flag: str, rest: Iterator[str]) -> str:
    text = next(rest, None)
    if text is None or text.startswith("-"):
        why = f"no value given; write {flag}={setting.placeholder}"
        raise ConfigError(setting.name, f"flag {flag}", why)
    return text


def _stray(argument: str, before: str) -> str:
    if argument.lower() in _TRUE | _FALSE and "=" not in before:
        return f"a true-or-false flag takes its value with an =; write {before}={argument}"
    return "not expected here; settings are given as --name=value (see --help)"


def _read_yaml(file: _Given) -> _Said:
    path = file.text or ""
    try:
        import yaml  # noqa: PLC0415  # nobody without a YAML file has to have PyYAML
    except ImportError:
        raise ConfigError(
            "config",
            file.source,
            "reading YAML needs PyYAML; install it with: python3 -m pip install pyyaml "
            "(or give the settings as flags or CONURE_* variables)",
        ) from None
    try:
        with open(path, "rb") as stream:
            loader = yaml.SafeLoader(stream.read())
    except OSError as error:
        why = f"{path} can't be read: {error.strerror}; name a YAML file"
        raise ConfigError("config", file.source, why) from None
    except yaml.YAMLError as error:
        raise ConfigError("config", path, f"not a YAML file: {_one_line(error)}") from None

    given: _Said = {}
    try:
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return given
        if not isinstance(root, yaml.MappingNode):
            why = "settings are expected, one `name: value` a line"
            raise ConfigError("config", f"{path} line {root.start_mark.line + 1}", why)
        for key_node, value_node in root.value:
            source = f"{path} line {key_node.start_mark.line + 1}"
            name = str(loader.construct_object(key_node, deep=True))
            setting = _setting_of_key(name, source, given)
            value = loader.construct_object(value_node, deep=True)
            given[name] = _Given(_yaml_text(setting, value, source), source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        source = path if mark is None else f"{path} line {mark.line + 1}"
        raise ConfigError("config", source, f"not valid YAML: {_one_line(error)}") from None
    except ValueError as error:  # a date that does not exist, and the like
        raise ConfigError("config", path, f"not valid YAML: {error}") from None
    return given


def _setting_of_key(name: str, source: str, given: Mapping[str, _Given]) -> Setting:
    if name == "config":
        raise ConfigError(name, source, "a file can't name another one; remove the line")
    setting = _BY_ANY_NAME.get(name)
    if setting is None:
        raise ConfigError(name, source, "no such setting" + _nearest(name, "key"))
    before = given.get(name)
    if before is not None:
        raise ConfigError(name, source, f"given before in {before.source}; keep one of them")
    return setting


def _yaml_text(setting: Setting, value: object, source: str) -> str:
    """Return what a user would have written on the command line for a value read from YAML."""
    if isinstance(value, str):
        return value
    if value is None:
        why = 'the value is missing; give one, or "" for an empty one, or remove the line'
    elif not isinstance(value, (bool, int, float)):
        why = f"YAML reads this as a {type(value).__name__}; write a single value, in quotes"
    elif setting.is_name:
        why = f'YAML reads this as {value}, not as text; put it in quotes, like "node5"'
    else:
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise ConfigError(setting.name, source, why)


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(str(problem).split())


def _nearest(name: str, kind: str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), _BY_ANY_NAME, 1, 0.6)
    if not close:
        return "; --help lists them all"
    return f"; did you mean {_flag(close[0]) if kind == 'flag' else close[0]}?"


def _strangers(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {_variable(name) for name in _BY_ANY_NAME} | _OTHER_PROGRAMS
    return tuple(
        sorted(
            name
            for name in environ
            if name.startswith("CONURE_") and name not in known and not _KUBERNETES.fullmatch(name)
        )
    )


# -- what settings mean together -------------------------------------------------------------------


def _check_addresses(config: Config) -> None:
    if config.raft_addr.is_wildcard and config.raft_advertise is None and not config.peers:
        port = config.raft_addr.port or 7001
        raise ConfigError(
            "raft_addr",
            config.sources["raft_addr"],
            f"{config.raft_addr} listens on every interface, and peers need one address to "
            f"connect to; name it with --raft-advertise=<this host>:{port}",
        )
    listening = {"raft_addr": config.raft_addr, "http_addr": config.http_addr}
    for name in ("metrics_addr", "resp_addr", "rest_addr"):
        optional: Address | None = getattr(config, name)
        if optional is not None:
            listening[name] = optional
    taken: dict[int, list[tuple[str, Address]]] = {}
    for name, address in listening.items():
        others = taken.setdefault(address.port, [])
        for other, where in others:
            same_host = address.host == where.host or address.is_wildcard or where.is_wildcard
            if address.port != 0 and same_host:
                raise _taken(config, name, other)
        others.append((name, address))


def _taken(config: Config, name: str, other: str) -> ConfigError:
    """Return what is wrong where two settings name one port: with the one that somebody gave."""
    if config.is_default(name) and not config.is_default(other):
        name, other = other, name
    why = f"{getattr(config, name)} is taken by {config.called(other)}; use another port"
    return ConfigError(config.called(name), config.sources[name], why)


def _check_role(config: Config) -> None:
    if config.bootstrap and config.role == "arbiter":
        raise ConfigError(
            "bootstrap",
            config.sources["bootstrap"],
            "an arbiter keeps no records and can't begin a cluster; bootstrap a data node, and "
            "let the arbiter join it with --seeds",
        )


def _check_peers(config: Config) -> None:
    """The nodes of a list form their cluster together: none of them begins or joins another."""
    if not config.peers:
        return
    for name, wanted in (("bootstrap", config.bootstrap), ("seeds", bool(config.seeds))):
        if wanted:
            raise ConfigError(
                "peers",
                config.sources["peers"],
                f"a list of peers forms a cluster by itself; leave out {_flag(name)} "
                f"({config.sources[name]})",
            )


def _help() -> str:
    lines = [
        "usage: python3 conuredb.py [--name=value ...]",
        "       python3 conuredb.py COMMAND ... (each has a --help of its own)",
        "       commands: restore FILE, check DIR, stats DIR, dump DIR, compact DIR",
        "",
        "Runs one ConureDB node. Without any flag: a cluster of one node that keeps its data",
        "in ./data and answers at http://127.0.0.1:8081.",
        "",
        "Every setting can be given as a flag, as an environment variable (http_addr is",
        "CONURE_HTTP_ADDR) or as a key of the YAML file; flags win over variables, and those over",
        "the file. Durations look like 3s, 500ms or 1m30s, sizes like 4096, 64KiB or 1MB.",
        "config.example.yaml describes what each setting costs.",
        "",
    ]
    for setting in SETTINGS:
        default = f" (default: {setting.default})" if setting.default else ""
        value = f"={setting.placeholder}"
        lines.append(f"  {setting.flag}{f'[{value}]' if setting.parse is _boolean else value}")
        lines += textwrap.wrap(
            setting.help + default, 90, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    lines += ["  --version", "      print the version", "  --help", "      print this"]
    return "\n".join([*lines, "", *_help_on_kvstore()])


def _help_on_kvstore() -> list[str]:
    """Return the section about the profile, for those who know its flags from elsewhere."""
    flags = (
        ("-data-dir", "data_dir", "where this node keeps everything"),
        ("-max-mem-size", "max_mem_size", "the memtable before it is flushed"),
        ("-http-addr", "rest_addr", "REST: GET, PUT and DELETE of /KEY; also --rest-addr"),
        ("-tcp-addr", "resp_addr", "RESP, for Redis clients; also --resp-addr"),
        ("-metrics-addr", "metrics_addr", "/metrics and nothing else"),
        ("-api-addr", "http_addr", "/kv, /status and all that is at --http-addr elsewhere"),
        ("-node-id", "node_id", "this node's name"),
        ("-replication-addr", "raft_addr", "where peers are listened to; also --raft-addr"),
        ("-peers", "peers", "the others' replication addresses, of a new cluster"),
        ("-quorum-size", "quorum_size", "how many nodes a write has to be on"),
    )
    lines = [
        "Profile kvstore (--profile=kvstore, or bin/server, which `make build` makes)",
        "",
        "It changes defaults; any flag, variable or key beats it. --http-addr means --rest-addr",
        "with it, as a variable and as a key, too. Flags take one dash or two, as everywhere:",
        "",
    ]
    for flag, name, about in flags:
        default = _default_of(_BY_NAME[name], KVSTORE).text or _BY_NAME[name].placeholder
        lines.append(f"  {flag} {default}".ljust(36) + about)
    others = ("engine", "follower_mode")
    return [*lines, *[f"  {_flag(name)}={KVSTORE.defaults[name]}" for name in others]]
