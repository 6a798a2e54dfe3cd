"""COMMAND: the table of commands as clients ask for it, in the shape of Redis 7.

What is told of a command is written once and kept, by protocol: a client may ask for hundreds of
commands at once, and of some there is much to be told.

The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from conure.errors import BadRequest
from conure.resp.connection import RespConnection
from conure.resp.globs import Glob
from conure.resp.replies import Replies
from conure.resp.table import Command, Handler

__all__ = ["Catalog"]

_GROUP_CATEGORIES = {
    "connection": "connection", "generic": "keyspace", "scripting": "scripting",
    "pubsub": "pubsub", "string": "string", "transactions": "transaction",
}  # fmt: skip


Teller = Callable[[Replies, Command], None]

_MOST_WORDS = 512  # of which each may be a name with much to be told of it


class Catalog:
    """Tells of *commands*, a table by name that is complete before the first client comes."""

    def __init__(self, commands: Mapping[bytes, Command]) -> None:
        self._commands = commands
        self._kept: dict[tuple[Teller, int, str], bytes] = {}

    def command(self) -> Command:
        """Return the row of the table."""
        flags = frozenset({"loading", "stale"})

        def row(name: str, arity: int, handle: Handler, text: str, since: str) -> Command:
            return Command(
                f"command|{name}",
                arity,
                handle,
                text,
                flags=flags,
                group="server",
                since=since,
                most=_MOST_WORDS,
            )

        rows = [
            row("count", 2, self._count, "Returns a count of commands.", "2.8.13"),
            row("docs", -2, self._docs, "Returns documentary information.", "7.0.0"),
            row("info", -2, self._info, "Returns information about commands.", "2.8.13"),
            row("list", -2, self._list, "Returns a list of command names.", "7.0.0"),
            row("getkeys", -3, self._get_keys, "Extracts the key names.", "2.8.13"),
        ]
        return Command(
            "command",
            -1,
            self._all,
            "Returns detailed information about all commands.",
            flags=flags,
            group="server",
            since="2.8.13",
            subcommands={each.name.partition("|")[2]: each for each in rows},
        )

    def _rows(self) -> list[Command]:
        return list({id(each): each for each in self._commands.values()}.values())

    def _find(self, name: bytes) -> Command | None:
        first, bar, second = name.lower().partition(b"|")
        found = self._commands.get(first)
        return found.subcommands.get(second) if found and bar else found

    def _all(self, client: RespConnection, _: list[bytes]) -> None:
        self._show(client, self._rows())

    def _info(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) == 2:
            self._show(client, self._rows())
        else:
            self._show(client, map(self._find, words[2:]))

    def _show(self, client: RespConnection, commands: Iterable[Command | None]) -> None:
        rows = list(commands)
        replies = client.replies()
        replies.array_of(len(rows))
        for command in rows:
            if command is None:
                replies.null_array()
            else:
                replies.raw(self._told(_describe, client.session.protocol, command))
        client.reply(replies.take())

    def _count(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b":%d\r\n" % len(self._rows()))

    def _docs(self, client: RespConnection, words: list[bytes]) -> None:
        rows = self._rows() if len(words) == 2 else list(map(self._find, words[2:]))
        found = [each for each in rows if each is not None]
        replies = client.replies()
        replies.map_of(len(found))
        for command in found:
            replies.raw(self._told(_document, client.session.protocol, command))
        client.reply(replies.take())

    def _told(self, tell: Teller, protocol: int, command: Command) -> bytes:
        """Return what is written of a command."""
        key = tell, protocol, command.name
        told = self._kept.get(key)
        if told is None:
            replies = Replies(protocol)
            tell(replies, command)
            told = self._kept[key] = replies.take()
        return told

    def _list(self, client: RespConnection, words: list[bytes]) -> None:
        rows = self._rows()
        if len(words) == 5 and words[2].lower() == b"filterby":
            kind, value = words[3].lower(), words[4]
            if kind == b"pattern":
                try:
                    glob = Glob(value.lower())
                except BadRequest as error:
                    client.fail(f"ERR {error}")
                    return
                rows = [each for each in rows if glob.matches(each.name.encode())]
            elif kind == b"aclcat":
                name = value.decode("latin-1").lower()
                rows = [each for each in rows if f"@{name}" in _categories(each)]
            elif kind == b"module":
                rows = []
            else:
                client.fail("ERR syntax error")
                return
        elif len(words) > 2:
            client.fail("ERR syntax error")
            return
        replies = client.replies()
        replies.array_of(len(rows))
        replies.bulks(each.name.encode() for each in rows)
        client.reply(replies.take())

    def _get_keys(self, client: RespConnection, words: list[bytes]) -> None:
        command = self._find(words[2])
        if command is not None and command.subcommands and len(words) > 3:
            command = command.subcommands.get(words[3].lower())
        if command is None:
            client.fail("ERR Invalid command specified")
            return
        has_keys = bool(command.keys[0]) and command.group != "pubsub"  # channels are none
        if not (has_keys or command.counts_keys):
            client.fail("ERR The command has no key arguments")
            return
        if not command.takes(words[2:]):
            client.fail("ERR Invalid number of arguments specified for command")
            return
        keys = command.keys_of(words[2:])
        replies = client.replies()
        replies.array_of(len(keys))
        replies.bulks(keys)
        client.reply(replies.take())


def _categories(command: Command) -> list[str]:
    found = [
        f"@{flag}"
        for flag, mark in (("write", "write"), ("read", "readonly"), ("admin", "admin"))
        if mark in command.flags
    ]
    found.append("@fast" if "fast" in command.flags else "@slow")
    category = _GROUP_CATEGORIES.get(command.group)
    return [*found, f"@{category}"] if category else found


def _describe(replies: Replies, command: Command) -> None:
    """Write the ten facts that COMMAND INFO tells of a command."""
    first, last, step = command.keys
    replies.array_of(10)
    replies.bulk(command.name.encode())
    replies.integer(command.arity)
    replies.set_of(len(command.flags))
    for flag in sorted(command.flags):
        replies.simple(flag.encode())
    for number in (first, last, step):
        replies.integer(number)
    categories = _categories(command)
    replies.set_of(len(categories))
    for category in categories:
        replies.simple(category.encode())
    replies.array_of(0)  # tips
    _specify_keys(replies, command)
    replies.array_of(len(command.subcommands))
    for each in command.subcommands.values():
        _describe(replies, each)


def _specify_keys(replies: Replies, command: Command) -> None:
    """Write where the keys are, in the newer form."""
    first, last, step = command.keys
    if command.counts_keys:
        first = 2
    if not first:
        replies.array_of(0)
        return
    replies.array_of(1)
    replies.map_of(3)
    replies.bulk(b"flags")
    may_write = "write" in command.flags or command.counts_keys
    flags = [b"RW", b"access"] if may_write else [b"RO", b"access"]
    if command.group == "pubsub":
        flags = [b"not_key"]
    replies.set_of(len(flags))
    for flag in flags:
        replies.simple(flag)
    replies.bulk(b"begin_search")
    replies.map_of(2)
    replies.bulk(b"type")
    replies.bulk(b"index")
    replies.bulk(b"spec")
    replies.map_of(1)
    replies.bulk(b"index")
    replies.integer(first)
    replies.bulk(b"find_keys")
    replies.map_of(2)
    replies.bulk(b"type")
    replies.bulk(b"keynum" if command.counts_keys else b"range")
    replies.bulk(b"spec")
    replies.map_of(3)
    if command.counts_keys:
        numbers = ((b"keynumidx", 0), (b"firstkey", 1), (b"keystep", 1))
    else:
        behind = last - first if last > 0 else last
        numbers = ((b"lastkey", behind), (b"keystep", step), (b"limit", 0))
    for name, number in numbers:
        replies.bulk(name)
        replies.integer(number)


def _document(replies: Replies, command: Command) -> None:
    """Write what COMMAND DOCS tells of a command."""
    replies.bulk(command.name.encode())
    replies.map_of(4 if command.subcommands else 3)
    for name, value in (
        (b"summary", command.summary),
        (b"since", command.since),
        (b"group", command.group),
    ):
        replies.bulk(name)
        replies.bulk(value.encode())
    if command.subcommands:
        replies.bulk(b"subcommands")
        replies.map_of(len(command.subcommands))
        for each in command.subcommands.values():
            _document(replies, each)
