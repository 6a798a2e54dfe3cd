"""The configuration: one frozen, validated object made from four sources.

A setting has one name, and every way of giving it is derived from that name and the one table of
settings.py. The further down, the stronger:

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
import platform
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conure import VERSION
from conure.errors import ConfigError
from conure.profiles import KVSTORE, NONE, PROFILES, Profile, profile_of
from conure.settings import FALSE, SETTINGS, TRUE, Setting, flag_of, parse_boolean, variable_of
from conure.values import Address, bracketed, host_of

__all__ = ["Config", "load"]

# What Kubernetes puts into every pod's environment for a service named "conure" or "conure-…".
_KUBERNETES = re.compile(
    r"CONURE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
# Read by those who ask a server: the shell, kvctl, the probe, scaling.
_OTHER_PROGRAMS = frozenset(
    {"CONURE_SERVER", "CONURE_CA", "CONURE_CERT", "CONURE_KEY", "CONURE_TLS_NAME"}
)


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
    protected_mode: bool
    cors_origins: tuple[str, ...]
    rate_limit: int
    rate_limit_bytes: int
    tls_cert: str
    tls_key: str
    tls_client_ca: str
    tls_client_auth: str
    tls_min_version: str
    tls_ca: str
    tls_auto: bool
    peer_tls_cert: str
    peer_tls_key: str
    peer_tls_ca: str
    cluster_secret_file: str
    peer_auth: str
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

    @property
    def has_tls(self) -> bool:
        """Whether clients are served by TLS."""
        return bool(self.tls_cert) or self.tls_auto

    @property
    def asks_clients(self) -> bool:
        """Whether every client has to prove who it is."""
        return self.has_tls and self.tls_client_auth == "require"

    @property
    def asks_peers(self) -> bool:
        """Whether nodes can prove to each other that they belong together."""
        return self.peer_auth != "open"

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
        return f"{'https' if self.has_tls else 'http'}://{bracketed(host)}:{bound_port}"

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
    values.setdefault("tls_client_auth", "require" if values["tls_client_ca"] else "none")
    proves = values["cluster_secret_file"] or values["peer_tls_cert"]
    values.setdefault("peer_auth", "require" if proves else "open")
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
    _check_tls(config)
    _check_peer_auth(config)
    return config


_BY_NAME = {setting.name: setting for setting in SETTINGS}
_BY_ANY_NAME = _BY_NAME | {setting.alias: setting for setting in SETTINGS if setting.alias}
_PROFILES = {profile.name: profile for profile in (NONE, *PROFILES)}


def _shown(value: object) -> str:
    if isinstance(value, tuple) and not isinstance(value, Address):
        return ",".join(value)
    return "" if value is None else str(value)


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


def _read_environment(environ: Mapping[str, str]) -> _Said:
    variables = {name: variable_of(name) for name in _BY_ANY_NAME}
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
        flag = flag_of(name)
        if not equals:
            text = "true" if setting.parse is parse_boolean else _following(setting, flag, rest)
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
    if argument.lower() in TRUE | FALSE and "=" not in before:
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
    return f"; did you mean {flag_of(close[0]) if kind == 'flag' else close[0]}?"


def _strangers(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {variable_of(name) for name in _BY_ANY_NAME} | _OTHER_PROGRAMS
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
                f"a list of peers forms a cluster by itself; leave out {flag_of(name)} "
                f"({config.sources[name]})",
            )


def _check_tls(config: Config) -> None:
    """What TLS for clients takes is there whole, or not at all."""
    _check_pair(config, "tls_cert", "tls_key")
    if config.tls_auto:
        for name in ("tls_cert", "tls_client_ca"):
            if getattr(config, name):
                raise _error(config, "tls_auto", f"it makes its own; leave out {flag_of(name)}")
    if config.tls_client_ca and not config.tls_cert:
        raise _error(config, "tls_client_ca", "it is used with TLS; name --tls-cert and --tls-key")
    if config.tls_client_auth != "none" and not (config.tls_client_ca or config.tls_auto):
        why = "certificates of clients are checked by a CA; name its file with --tls-client-ca"
        raise _error(config, "tls_client_auth", why)
    if config.tls_client_auth == "none" and config.tls_client_ca:
        why = "nobody is asked for a certificate then; leave out one of the two"
        raise _error(config, "tls_client_ca", f"with --tls-client-auth=none {why}")


def _check_peer_auth(config: Config) -> None:
    """Nodes that are to prove themselves have what it takes."""
    _check_pair(config, "peer_tls_cert", "peer_tls_key")
    _check_pair(config, "peer_tls_cert", "peer_tls_ca")
    if config.asks_peers and not (config.cluster_secret_file or config.peer_tls_cert):
        raise _error(
            config,
            "peer_auth",
            f"{config.peer_auth} takes --cluster-secret-file, or --peer-tls-cert, --peer-tls-key "
            "and --peer-tls-ca",
        )


def _check_pair(config: Config, one: str, other: str) -> None:
    for name, missing in ((one, other), (other, one)):
        if getattr(config, name) and not getattr(config, missing):
            raise _error(config, name, f"it needs {flag_of(missing)} beside it")


def _error(config: Config, name: str, why: str) -> ConfigError:
    return ConfigError(config.called(name), config.sources[name], why)


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
        lines.append(f"  {setting.flag}{f'[{value}]' if setting.parse is parse_boolean else value}")
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
    return [*lines, *[f"  {flag_of(name)}={KVSTORE.defaults[name]}" for name in others]]
