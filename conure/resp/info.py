"""INFO: what the server tells of itself, by section.

Monitors and ``redis-cli --stat`` read it by names of Redis; those are there whose facts are true
here. What is stored is told of this node's own state, without asking the leader.

The reactor's thread only.
"""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any

from conure import VERSION
from conure.resp.audience import Audience
from conure.resp.clients import Clients
from conure.resp.connecting import REDIS_VERSION
from conure.resp.connection import RespConnection
from conure.resp.limits import Limits
from conure.resp.table import Command

__all__ = ["Info"]

_SECTIONS = ("server", "clients", "memory", "persistence", "stats", "replication", "cpu",
             "modules", "commandstats", "errorstats", "cluster", "keyspace")  # fmt: skip
_DEFAULT = frozenset(_SECTIONS) - {"commandstats"}
_TITLES = {"cpu": "CPU"}
_PAGE = resource.getpagesize()

Facts = Mapping[str, object]


class Info:
    """The command. *commands* is the table; *status* returns what ``GET /status`` shows, and
    *key_count* how many keys there are."""

    def __init__(
        self,
        clients: Clients,
        limits: Limits,
        commands: Mapping[bytes, Command],
        status: Callable[[], Mapping[str, Any]],
        key_count: Callable[[], int],
        audience: Audience,
    ) -> None:
        self._clients = clients
        self._limits = limits
        self._commands = commands
        self._status = status
        self._key_count = key_count
        self._audience = audience
        self._begun = perf_counter()

    def command(self) -> Command:
        """Return the row of the table."""
        flags = frozenset({"loading", "stale"})
        text = "Returns information about the server."
        return Command("info", -1, self._info, text, flags=flags, group="server")

    def _info(self, client: RespConnection, words: list[bytes]) -> None:
        asked = {word.lower().decode("latin-1") for word in words[1:]} or {"default"}
        shown: set[str] = set()
        if asked & {"all", "everything"}:
            shown |= set(_SECTIONS)
        if "default" in asked:
            shown |= _DEFAULT
        shown |= asked
        parts = [
            f"# {_TITLES.get(name, name.capitalize())}\r\n"
            + "".join(f"{key}:{value}\r\n" for key, value in self._section(name, client).items())
            for name in _SECTIONS
            if name in shown
        ]
        replies = client.replies()
        replies.verbatim("\r\n".join(parts).encode())
        client.reply(replies.take())

    def _section(self, name: str, client: RespConnection) -> Facts:
        match name:
            case "server":
                return self._server()
            case "clients":
                return {
                    "connected_clients": len(self._clients),
                    "maxclients": self._limits.max_connections,
                    "blocked_clients": 0,
                    "pubsub_clients": self._audience.subscribers,
                }
            case "memory":
                return _memory()
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
                    "total_connections_received": self._clients.accepted,
                    "total_commands_processed": sum(each.calls for each in self._rows()),
                    "total_net_input_bytes": client.reactor.bytes_in,
                    "total_net_output_bytes": client.reactor.bytes_out,
                    "evicted_keys": 0,
                    "pubsub_channels": self._audience.channels,
                    "pubsub_patterns": self._audience.patterns,
                    "pubsubshard_channels": self._audience.shards,
                }
            case "replication":
                return self._replication()
            case "cpu":
                used = resource.getrusage(resource.RUSAGE_SELF)
                return {
                    "used_cpu_sys": f"{used.ru_stime:.6f}",
                    "used_cpu_user": f"{used.ru_utime:.6f}",
                }
            case "commandstats":
                rows = (each for each in self._rows() if each.calls)
                return {f"cmdstat_{each.name}": f"calls={each.calls}" for each in rows}
            case "cluster":
                return {"cluster_enabled": 0}
            case "keyspace":
                count = self._key_count()  # nobody counts those that expire; clients look for three
                return {"db0": f"keys={count},expires=0,avg_ttl=0"} if count else {}
        return {}

    def _server(self) -> Facts:
        uptime = int(perf_counter() - self._begun)
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

    def _replication(self) -> Facts:
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

    def _rows(self) -> Iterator[Command]:
        own = {id(each): each for each in self._commands.values()}.values()
        for row in own:
            yield row
            yield from row.subcommands.values()


def _memory() -> Facts:
    """Return what the process has of the machine's memory."""
    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[1]) * _PAGE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "used_memory": used,
        "used_memory_human": f"{used / (1 << 20):.2f}M",
        "used_memory_rss": used,
        "used_memory_peak": max(peak, used),
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
    }
