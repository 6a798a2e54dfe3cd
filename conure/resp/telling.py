"""What clients look at of the server: CONFIG, TIME, ROLE, WAIT, MEMORY, OBJECT, LATENCY, DEBUG.

Clients look here before they begin, so what they look for is there, as far as it is true. The
settings are the node's own (``conuredb.py --help``) and can't be set, but for
``notify-keyspace-events``, which is kept until the process ends.

The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conure.errors import ConureError
from conure.resp.answers import Answers
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

_NO_FREQUENCY = (
    b"-ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that "
    b"when switching between policies at runtime LRU and LFU data will take some time to adjust."
    b"\r\n"
)
_NOT_AN_INTEGER = "ERR value is not an integer or out of range"
_SYNTAX = "ERR syntax error"
_NOTIFY = b"notify-keyspace-events"
_NAME_BYTES = 128  # of a pattern of settings
_RECORD_BYTES = 90  # that a record takes beside its key and value, about


class Telling:
    """The commands. *status* is what ``GET /status`` shows; any thread."""

    def __init__(
        self,
        desk: Desk[Pending],
        answers: Answers,
        limits: Limits,
        status: Callable[[], Mapping[str, Any]],
        notifying: Notifying,
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._status = status
        self._notifying = notifying
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
                "graph": (3, self._graph, "Is refused: there is nothing to draw."),
                "histogram": (-2, self._no_histograms, "Returns nothing: see /metrics."),
                "doctor": (2, self._doctor, "Says that all is well."),
            }),
            Command("debug", -2, self._debug, "Is refused.", flags=admin, group="server"),
        ]  # fmt: skip

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

    def _graph(self, client: RespConnection, words: list[bytes]) -> None:
        event = words[2][:_NAME_BYTES].decode("utf-8", "surrogateescape")
        client.fail(f"ERR No samples available for event '{event}'")

    def _no_histograms(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.map_of(0)
        client.reply(replies.take())

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
        timeout = parse_integer(words[2])
        if parse_integer(words[1]) is None:
            client.fail(_NOT_AN_INTEGER)
        elif timeout is None:
            client.fail("ERR timeout is not an integer or out of range")
        elif timeout < 0:
            client.fail("ERR timeout is negative")
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
            client.fail(_SYNTAX)
            return
        samples = parse_integer(words[4]) if len(words) == 5 else 0
        if samples is None:
            client.fail(_NOT_AN_INTEGER)
        elif samples < 0:
            client.fail(_SYNTAX)
        else:
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
