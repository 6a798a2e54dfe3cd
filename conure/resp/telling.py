"""What the server tells of itself: INFO, CONFIG, TIME, ROLE, WAIT, MEMORY, OBJECT, LATENCY, DEBUG.

Clients look here before they begin, so what they look for is there, as far as it is true. The
settings are the node's own (``conuredb.py --help``) and can't be set, but for
``notify-keyspace-events``, which is kept until the process ends.

The reactor's thread only.
"""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from conure import VERSION
from conure.errors import ConureError
from conure.resp.answers import Answers
from conure.resp.audience import Audience
from conure.resp.clients import Clients
from conure.resp.connecting import REDIS_VERSION
from conure.resp.connection import RespConnection
from conure.resp.failures import error_text
from conure.resp.globs import Glob
from conure.resp.limits import Limits
from conure.resp.notifying import Notifying
from conure.resp.numbers import parse_integer
from conure.resp.replies import NULL, OK
from conure.resp.table import READS, Command, Handler
from conure.resp.waiters import Pending
from conure.service.backend import Found
from conure.service.requests import Desk

__all__ = ["Telling"]

_SECTIONS = ("server", "clients", "memory", "persistence", "stats", "replication", "cpu",
             "modules", "commandstats", "errorstats", "cluster")  # fmt: skip
_DEFAULT = frozenset(_SECTIONS) - {"commandstats"}
_NO_FREQUENCY = (
    b"-ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that "
    b"when switching between policies at runtime LRU and LFU data will take some time to adjust."
    b"\r\n"
)
_NOTIFY = b"notify-keyspace-events"
_NAME_BYTES = 128  # of a pattern of settings
_RECORD_BYTES = 90  # that a record takes beside its key and value, about


class Telling:
    """The commands. *commands* is the table, *status* what ``GET /status`` shows; any thread."""

    def __init__(
        self,
        desk: Desk[Pending],
        answers: Answers,
        clients: Clients,
        limits: Limits,
        commands: Mapping[bytes, Command],
        status: Callable[[], Mapping[str, Any]],
        audience: Audience,
        notifying: Notifying,
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._clients = clients
        self._commands = commands
        self._status = status
        self._audience = audience
        self._notifying = notifying
        self._begun = perf_counter()
        self._settings = {
            b"maxmemory": b"0",
            b"maxmemory-policy": b"noeviction",
            b"maxclients": b"%d" % limits.max_connections,
            b"timeout": b"%d" % limits.idle_timeout,
            b"databases": b"1",
            b"save": b"",
            b"appendonly": b"yes",
            b"appendfsync": b"always",
            b"proto-max-bulk-len": b"%d" % limits.max_command_bytes,
            b"slowlog-log-slower-than": b"%d" % (limits.slow_command * 1e6),
            b"slowlog-max-len": b"128",
        }

    def commands(self) -> list[Command]:
        """Return the rows of the table."""
        quick, admin = frozenset({"loading", "stale", "fast"}), frozenset({"admin", "loading"})
        return [
            Command("info", -1, self._info, "Returns information about the server.",
                    flags=frozenset({"loading", "stale"}), group="server"),
            Command("time", 1, self._time, "Returns the server time.",
                    flags=quick, group="server", since="2.6.0"),
            Command("role", 1, self._role, "Returns the replication role.",
                    flags=quick | {"noscript"}, group="server", since="2.8.12"),
            Command("wait", 3, self._wait, "Returns at once: what is acknowledged is replicated.",
                    flags=frozenset({"noscript"}), group="generic", since="3.0.0"),
            _container("config", "server", "2.0.0", admin, {
                "get": (-3, self._config_get, "Returns configuration parameters."),
                "set": (-4, self._config_set, "Sets notify-keyspace-events; little else."),
                "resetstat": (2, self._ok, "Does nothing."),
                "rewrite": (2, self._config_rewrite, "Is refused."),
            }),
            _container("memory", "server", "4.0.0", frozenset({"readonly"}), {
                "usage": (-3, self._memory_usage, "Estimates the memory usage of a key."),
                "doctor": (2, self._doctor, "Says that all is well."),
            }, lanes={"usage": READS}, keys={"usage": (2, 2, 1)}),
            _container("object", "generic", "2.2.3", frozenset({"readonly"}), {
                "encoding": (3, self._object, "Returns the internal encoding of a key."),
                "freq": (3, self._object, "Is refused: nothing is counted."),
                "idletime": (3, self._object, "Returns 0: reads aren't noted."),
                "refcount": (3, self._object, "Returns 1."),
            }, lanes=dict.fromkeys(("encoding", "freq", "idletime", "refcount"), READS),
                keys=dict.fromkeys(("encoding", "freq", "idletime", "refcount"), (2, 2, 1))),
            _container("latency", "server", "2.8.13", admin | {"stale"}, {
                "latest": (2, self._nothing, "Returns nothing: no spikes are sampled."),
                "history": (3, self._nothing, "Returns nothing."),
                "reset": (-2, self._zero, "Returns 0."),
                "doctor": (2, self._doctor, "Says that all is well."),
            }),
            Command("debug", -2, self._debug, "Is refused.", flags=admin, group="server"),
        ]  # fmt: skip

    # -- INFO ------------------------------------------------------------------------------------

    def _info(self, client: RespConnection, words: list[bytes]) -> None:
        asked = {word.lower().decode("latin-1") for word in words[1:]} or {"default"}
        shown: set[str] = set()
        if asked & {"all", "everything"}:
            shown |= set(_SECTIONS)
        if "default" in asked:
            shown |= _DEFAULT
        shown |= asked
        parts = [
            f"# {name.capitalize()}\r\n"
            + "".join(f"{key}:{value}\r\n" for key, value in self._section(name, client).items())
            for name in _SECTIONS
            if name in shown
        ]
        replies = client.replies()
        replies.verbatim("\r\n".join(parts).encode())
        client.reply(replies.take())

    def _section(self, name: str, client: RespConnection) -> Mapping[str, object]:
        uptime = int(perf_counter() - self._begun)
        reactor = client.reactor
        match name:
            case "server":
                return {
                    "redis_version": REDIS_VERSION,
                    "conuredb_version": VERSION,
                    "redis_mode": "standalone",
                    "os": f"{platform.system()} {platform.release()} {platform.machine()}",
                    "arch_bits": 64,
                    "multiplexing_api": "epoll",
                    "run_id": self._status().get("node_id", ""),
                    "uptime_in_seconds": uptime,
                    "uptime_in_days": uptime // 86_400,
                }
            case "clients":
                return {
                    "connected_clients": len(self._clients),
                    "maxclients": self._settings[b"maxclients"].decode(),
                    "blocked_clients": 0,
                    "pubsub_clients": self._audience.subscribers,
                }
            case "memory":
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                return {
                    "used_memory": peak,
                    "used_memory_rss": peak,
                    "used_memory_peak": peak,
                    "maxmemory": 0,
                    "maxmemory_policy": "noeviction",
                }
            case "persistence":
                return {
                    "loading": 0,
                    "async_loading": 0,
                    "aof_enabled": 1,
                    "aof_last_write_status": "ok",
                    "rdb_bgsave_in_progress": 0,
                    "aof_rewrite_in_progress": 0,
                }
            case "stats":
                return {
                    "total_commands_processed": sum(each.calls for each in self._rows()),
                    "total_net_input_bytes": reactor.bytes_in,
                    "total_net_output_bytes": reactor.bytes_out,
                    "evicted_keys": 0,
                    "pubsub_channels": self._audience.channels,
                    "pubsub_patterns": self._audience.patterns,
                    "pubsubshard_channels": self._audience.shards,
                }
            case "replication":
                status = self._status()
                return {
                    "role": "master",
                    "connected_slaves": 0,
                    "master_failover_state": "no-failover",
                    "master_replid": status.get("cluster_id", ""),
                    "master_repl_offset": status.get("applied_index", 0),
                    "conuredb_is_leader": int(bool(status.get("is_leader"))),
                    "conuredb_leader_id": status.get("leader_id", ""),
                }
            case "cpu":
                used = resource.getrusage(resource.RUSAGE_SELF)
                return {
                    "used_cpu_sys": f"{used.ru_stime:.6f}",
                    "used_cpu_user": f"{used.ru_utime:.6f}",
                }
            case "commandstats":
                return {
                    f"cmdstat_{each.name}": f"calls={each.calls}"
                    for each in self._rows()
                    if each.calls
                }
            case "cluster":
                return {"cluster_enabled": 0}
        return {}

    def _rows(self) -> list[Command]:
        own = {id(each): each for each in self._commands.values()}.values()
        return [row for each in own for row in (each, *each.subcommands.values())]

    # -- CONFIG ----------------------------------------------------------------------------------

    def _config_get(self, client: RespConnection, words: list[bytes]) -> None:
        found: dict[bytes, bytes] = {}
        settings = self._settings | {_NOTIFY: self._notifying.text.encode()}
        for word in words[2:34]:
            if len(word) > _NAME_BYTES:
                client.fail(f"ERR a pattern of settings has {_NAME_BYTES} bytes at most")
                return
            glob = Glob(word.lower())
            found |= {name: value for name, value in settings.items() if glob.matches(name)}
        replies = client.replies()
        replies.map_of(len(found))
        for name, value in found.items():
            replies.bulk(name)
            replies.bulk(value)
        client.reply(replies.take())

    def _config_set(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) % 2:
            client.fail("ERR wrong number of arguments for 'config|set' command")
            return
        letters = None
        for name, value in zip(words[2::2], words[3::2], strict=True):
            if name.lower() == _NOTIFY:
                letters = self._notifying.parse(value)
                if letters is None:
                    client.fail(
                        "ERR CONFIG SET failed (possibly related to argument "
                        "'notify-keyspace-events') - Invalid event class character. Use "
                        "'Ag$lshzxeKEtmdn'."
                    )
                    return
                continue
            known = self._settings.get(name.lower())
            shown = name[:128].decode("utf-8", "surrogateescape")
            if known is None:
                client.fail(f"ERR Unknown option or number of arguments for CONFIG SET - '{shown}'")
                return
            if known != value:
                client.fail(
                    f"ERR CONFIG SET failed (possibly related to argument '{shown}') - "
                    "can't set immutable config"
                )
                return
        if letters is not None:
            self._notifying.want(letters)
        client.reply(OK)

    def _config_rewrite(self, client: RespConnection, _: list[bytes]) -> None:
        client.fail("ERR The server is running without a config file")

    # -- short ones ------------------------------------------------------------------------------

    def _ok(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(OK)

    def _nothing(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b"*0\r\n")

    def _zero(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b":0\r\n")

    def _time(self, client: RespConnection, _: list[bytes]) -> None:
        seconds, rest = divmod(self._desk.backend.time(), 1000)
        replies = client.replies()
        replies.array_of(2)
        replies.bulk(b"%d" % seconds)
        replies.bulk(b"%d" % (rest * 1000))
        client.reply(replies.take())

    def _role(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.array_of(3)
        replies.bulk(b"master")
        replies.integer(self._status().get("applied_index", 0))
        replies.array_of(0)
        client.reply(replies.take())

    def _wait(self, client: RespConnection, words: list[bytes]) -> None:
        if any(parse_integer(word) is None for word in words[1:]):
            client.fail("ERR value is not an integer or out of range")
        else:
            self._zero(client, words)

    def _doctor(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.verbatim(b"Nothing to tell: see /metrics of this node.")
        client.reply(replies.take())

    def _debug(self, client: RespConnection, _: list[bytes]) -> None:
        client.fail("ERR DEBUG command not allowed")

    # -- about one key ---------------------------------------------------------------------------

    def _memory_usage(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) not in (3, 5) or (len(words) == 5 and words[3].upper() != b"SAMPLES"):
            client.fail("ERR syntax error")
            return
        self._look(client, words[2], _usage)

    def _object(self, client: RespConnection, words: list[bytes]) -> None:
        self._look(client, words[2], _FACTS[words[1].lower()])

    def _look(
        self, client: RespConnection, key: bytes, show: Callable[[bytes, bytes], bytes]
    ) -> None:
        pending = _OneKey(client, key, show, NULL[client.session.protocol])
        client.begin(pending)
        try:
            self._desk.get(pending, key, client.session.freshness)
        except ConureError as error:
            pending.fail(self._answers.text_of(error))


class _OneKey(Pending):
    """A fact about one key."""

    __slots__ = ("_key", "_null", "_show")

    def __init__(
        self,
        client: RespConnection,
        key: bytes,
        show: Callable[[bytes, bytes], bytes],
        null: bytes,
    ) -> None:
        super().__init__(client)
        self._key = key
        self._show = show
        self._null = null

    def take_found(self, records: Sequence[Found]) -> None:
        (record,) = records
        if record is None:
            self.finish(self._null)
        elif isinstance(record, ConureError):
            self.fail(error_text(record))
        else:
            self.finish(self._show(self._key, record.value))


def _usage(key: bytes, value: bytes) -> bytes:
    return b":%d\r\n" % (len(key) + len(value) + _RECORD_BYTES)


def _encoding(key: bytes, value: bytes) -> bytes:
    del key
    name = b"embstr" if len(value) <= 44 else b"raw"
    if parse_integer(value) is not None:
        name = b"int"
    return b"$%d\r\n%b\r\n" % (len(name), name)


_FACTS: dict[bytes, Callable[[bytes, bytes], bytes]] = {
    b"encoding": _encoding,
    b"freq": lambda _, __: _NO_FREQUENCY,
    b"idletime": lambda _, __: b":0\r\n",
    b"refcount": lambda _, __: b":1\r\n",
}


def _container(
    name: str,
    group: str,
    since: str,
    flags: frozenset[str],
    rows: Mapping[str, tuple[int, Handler, str]],
    *,
    lanes: Mapping[str, int] | None = None,
    keys: Mapping[str, tuple[int, int, int]] | None = None,
) -> Command:
    """Return a command that is nothing without its subcommands."""
    lanes, keys = lanes or {}, keys or {}
    subcommands = {
        word: Command(
            f"{name}|{word}",
            arity,
            handle,
            text,
            flags=flags,
            group=group,
            since=since,
            lane=lanes.get(word, 0),
            keys=keys.get(word, (0, 0, 0)),
            in_multi="refuse" if word in lanes else "queue",
        )
        for word, (arity, handle, text) in rows.items()
    }
    first = next(iter(rows.values()))[1]
    summary = f"A container for {name} commands."
    return Command(
        name, -2, first, summary, flags=flags, group=group, since=since, subcommands=subcommands
    )
