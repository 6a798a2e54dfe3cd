"""The table of settings: what there is to set, what each value may look like, and its default.

One row is all there is to know about a setting; where values come from, and what they mean
together, is for config.py. What a value that can't be used is told is a ValueError here, with the
reason and the remedy.

Any thread may call anything.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from conure.commands import MAX_VALUE_BYTES
from conure.profiles import profile_of
from conure.values import (
    MAX_FOUNDERS,
    MAX_QUORUM_SIZE,
    Address,
    parse_base_url,
    parse_listening_address,
    parse_origin,
    parse_pattern,
    parse_seconds,
    parse_size,
    show_size,
)

__all__ = ["FALSE", "SETTINGS", "TRUE", "Setting", "flag_of", "parse_boolean", "variable_of"]

TRUE = frozenset({"true", "t", "1", "yes", "on"})
FALSE = frozenset({"false", "f", "0", "no", "off"})
"""What is written for the two."""

_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
        return flag_of(self.name)

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags that give it; with a profile the first may mean another setting."""
        return tuple(map(flag_of, filter(None, (self.name, self.alias))))

    @property
    def variable(self) -> str:
        return variable_of(self.name)


def flag_of(name: str) -> str:
    """Return the flag that gives a setting."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the variable of the environment that gives a setting."""
    return "CONURE_" + name.upper()


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


def parse_boolean(text: str) -> bool:
    lower = text.lower()
    if lower not in TRUE and lower not in FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return lower in TRUE


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


def _seed(text: str) -> str:
    """Return the base URL of a member, or the address of its Raft port."""
    if "://" in text:
        return parse_base_url(text)
    address = parse_listening_address(text.lower())
    if address.is_wildcard or address.port == 0:
        raise ValueError(f"nobody can connect to {text}; name a member's host and port")
    return str(address)


def _peer(text: str) -> str:
    node_id, at, written = text.rpartition("@")
    address = parse_listening_address(written.lower())
    if address.is_wildcard or address.port == 0:
        raise ValueError(f"nobody can connect to {text}; name the other node's host and port")
    return f"{_node_id(node_id)}@{address}" if at else str(address)


def _peers(text: str) -> tuple[str, ...]:
    peers = tuple(_peer(part.strip()) for part in text.split(",") if part.strip())
    if len(peers) > MAX_FOUNDERS:
        raise ValueError(f"{len(peers)} nodes are too many; a cluster of {MAX_FOUNDERS} is formed")
    told = [peer.rpartition("@")[::2] for peer in peers]
    for what in [*[address for _, address in told], *[node_id for node_id, _ in told if node_id]]:
        if sum(what in each for each in told) > 1:
            raise ValueError(f"{what} is listed twice; list each node once")
    return peers


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        why = "write it like 10.0.0.7, 10.0.0.0/24 or fd00::/64"
        raise ValueError(f"{text!r} is no address or network ({error}); {why}") from None


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
    _S("protected_mode", "BOOLEAN", "true",
       "while nobody has to prove who they are, refuse clients and nodes of other machines",
       parse_boolean),
    _S("cors_origins", "ORIGINS", "",
       "origins, comma-separated, of web pages that may ask, such as https://admin.example.com",
       _listed(parse_origin)),
    _S("rate_limit", "COUNT", "0",
       "requests a second that one client may send for long; more are 429; 0: any number",
       _count(0, 10**9)),
    _S("rate_limit_bytes", "SIZE", "0",
       "bytes a second that one client's requests may have for long; 0: any number",
       _size(0, _TIB)),
    _S("tls_cert", "FILE", "",
       "certificate, and its chain, as PEM: clients are served by TLS at every address then", _text,
       is_name=True),
    _S("tls_key", "FILE", "", "the private key of tls_cert, as PEM", _text, is_name=True),
    _S("tls_client_ca", "FILE", "", "CA certificates, as PEM, by which clients' are checked", _text,
       is_name=True),
    _S("tls_client_auth", "MODE", None,
       "certificates of clients: none, request (checked where there is one) or require "
       "(default: require with tls_client_ca, else none)",
       _choice("none", "request", "require")),
    _S("tls_min_version", "VERSION", "1.3", "the oldest TLS that is spoken: 1.2 or 1.3",
       _choice("1.2", "1.3")),
    _S("tls_ca", "FILE", "",
       "CA certificates, as PEM, by which servers are checked that this node asks; "
       "empty: the system's",
       _text, is_name=True),
    _S("tls_auto", "BOOLEAN", "false",
       "for a trial: make a CA and certificates in data_dir, and serve by TLS with them",
       parse_boolean),
    _S("peer_tls_cert", "FILE", "",
       "certificate, as PEM, by which this node proves to others that it is node_id", _text,
       is_name=True),
    _S("peer_tls_key", "FILE", "", "the private key of peer_tls_cert, as PEM", _text,
       is_name=True),
    _S("peer_tls_ca", "FILE", "", "CA certificates, as PEM, by which the others' are checked",
       _text, is_name=True),
    _S("cluster_secret_file", "FILE", "",
       "file with the secret by which nodes know each other, 32 bytes at least; "
       "further lines are accepted, too",
       _text, is_name=True),
    _S("peer_auth", "MODE", None,
       "whether other nodes have to prove themselves: open (no), offer (where both can), require "
       "(default: require with cluster_secret_file or peer_tls_cert, else open)",
       _choice("open", "offer", "require")),
    _S("bootstrap", "BOOLEAN", None,
       "make a one-node cluster if there is no state yet (default: true only for a data node "
       "without node_id, seeds and peers)", parse_boolean),
    _S("seeds", "SEEDS", "",
       "members, comma-separated, that this node asks to add it: base URLs, or HOST:PORT of their "
       "Raft ports; also --join",
       _listed(_seed), alias="join"),
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
