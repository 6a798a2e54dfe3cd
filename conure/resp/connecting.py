"""Commands about the connection itself: who is there, how it is spoken, and when it ends.

HELLO, AUTH, PING, ECHO, SELECT, QUIT, RESET, CLIENT …, READONLY and READWRITE. There is one
database, and no password yet. The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from conure import VERSION
from conure.errors import Unavailable
from conure.resp.clients import Clients, describe
from conure.resp.connection import RespConnection
from conure.resp.numbers import parse_integer
from conure.resp.replies import OK, RESP2, RESP3
from conure.resp.table import Command, Handler
from conure.resp.waiters import Pending, begin
from conure.service.turns import Turns

__all__ = ["REDIS_VERSION", "Connecting"]

REDIS_VERSION = "7.4.0"
"""The version of Redis whose semantics are offered: clients choose by it what they send."""

_SYNTAX = "ERR syntax error"
_NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. "  # noqa: S105
    "Are you sure your configuration is correct?"
)
_WRONG_PASSWORD = "WRONGPASS invalid username-password pair or user is disabled."  # noqa: S105
_NOT_PLAIN = "cannot contain spaces, newlines or special characters."
_LEAST_INT, _MOST_INT = -(1 << 31), (1 << 31) - 1
_MANY = 64  # lines of CLIENT LIST in a step
_KINDS = (b"normal", b"master", b"replica", b"slave", b"pubsub")


class Connecting:
    """The commands; *leave* is told of a client that resets what it had begun."""

    def __init__(self, clients: Clients, leave: Callable[[RespConnection], None]) -> None:
        self._clients = clients
        self._leave = leave

    def commands(self) -> list[Command]:
        """Return the rows of the table."""
        fast = frozenset({"noscript", "loading", "stale", "fast"})
        quick = frozenset({"loading", "stale", "fast"})
        return [
            Command("hello", -1, self._hello, "Handshakes with the server.",
                    flags=fast | {"no_auth"}, since="6.0.0", in_multi="now"),
            Command("auth", -2, self._auth, "Authenticates the connection.",
                    flags=fast | {"no_auth"}, in_multi="now"),
            Command("ping", -1, self._ping, "Returns the server's liveliness response.",
                    flags=frozenset({"fast"})),
            Command("echo", 2, self._echo, "Returns the given string.", flags=quick),
            Command("select", 2, self._select, "Changes the selected database.", flags=quick),
            Command("quit", -1, self._quit, "Closes the connection.",
                    flags=fast | {"no_auth"}, in_multi="now"),
            Command("reset", 1, self._reset, "Resets the connection.",
                    flags=fast | {"no_auth"}, since="6.2.0", in_multi="now"),
            Command("readonly", 1, self._readonly, "Reads this node's own state from now on.",
                    flags=quick, group="cluster", since="3.0.0"),
            Command("readwrite", 1, self._readwrite, "Ends what READONLY began.",
                    flags=quick, group="cluster", since="3.0.0"),
            Command("client", -2, _never, "A container for client connection commands.",
                    since="2.4.0", subcommands=self._of_client()),
        ]  # fmt: skip

    def _of_client(self) -> dict[str, Command]:
        flags = frozenset({"noscript", "loading", "stale"})

        def row(name: str, arity: int, handle: Handler, summary: str, since: str) -> Command:
            return Command(f"client|{name}", arity, handle, summary, flags=flags, since=since)

        rows = [
            row("setname", 3, self._set_name, "Sets the connection name.", "2.6.9"),
            row("getname", 2, self._get_name, "Returns the name of the connection.", "2.6.9"),
            row("setinfo", 4, self._set_info, "Sets information about the library.", "7.2.0"),
            row("id", 2, self._tell_id, "Returns the number of the connection.", "5.0.0"),
            row("info", 2, self._info, "Returns information about the connection.", "6.2.0"),
            row("list", -2, self._list, "Lists open connections.", "2.4.0"),
            row("kill", -3, self._kill, "Terminates open connections.", "2.4.0"),
            row("no-evict", 3, self._take_on_or_off, "Does nothing: nobody is evicted.", "7.0.0"),
            row("no-touch", 3, self._take_on_or_off, "Does nothing: nothing is touched.", "7.2.0"),
            row("reply", 3, self._set_reply, "Tells whether to reply to commands.", "3.2.0"),
            row("getredir", 2, self._tell_redirection, "Returns -1: nothing is tracked.", "6.0.0"),
            row("help", 2, self._help, "Returns helpful text about the subcommands.", "5.0.0"),
        ]
        return {each.name.partition("|")[2]: each for each in rows}

    # -- how it is spoken ------------------------------------------------------------------------

    def _hello(self, client: RespConnection, words: list[bytes]) -> None:
        session = client.session
        protocol = session.protocol
        name = None
        at = 2
        if len(words) > 1:
            number = parse_integer(words[1])
            if number is None:
                client.fail("ERR Protocol version is not an integer or out of range")
                return
            if number not in (RESP2, RESP3):
                client.fail("NOPROTO unsupported protocol version")
                return
            protocol = number
        while at < len(words):
            option = words[at].upper()
            if option == b"AUTH" and at + 2 < len(words):
                if words[at + 1] != b"default":
                    client.fail(_WRONG_PASSWORD)
                    return
                at += 3
            elif option == b"SETNAME" and at + 1 < len(words):
                name = words[at + 1]
                if not _is_plain(name):
                    client.fail(f"ERR Client names {_NOT_PLAIN}")
                    return
                at += 2
            else:
                client.fail(f"ERR Syntax error in HELLO option '{_shown(words[at])}'")
                return
        session.protocol = protocol
        session.refresh()
        if name is not None:
            session.name = name
        replies = client.replies()
        replies.map_of(8)
        for key, value in (
            (b"server", b"redis"),
            (b"version", REDIS_VERSION.encode()),
            (b"proto", protocol),
            (b"id", client.id),
            (b"mode", b"standalone"),
            (b"role", b"master"),
            (b"conuredb_version", VERSION.encode()),
        ):
            replies.bulk(key)
            if isinstance(value, int):
                replies.integer(value)
            else:
                replies.bulk(value)
        replies.bulk(b"modules")
        replies.array_of(0)
        client.reply(replies.take())

    def _auth(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) > 3:
            client.fail(_SYNTAX)
        elif len(words) == 2:
            client.fail(_NO_PASSWORD)
        elif words[1] == b"default":
            client.reply(OK)  # who has no password may say any
        else:
            client.fail(_WRONG_PASSWORD)

    def _select(self, client: RespConnection, words: list[bytes]) -> None:
        number = parse_integer(words[1])
        if number is None:
            client.fail("ERR value is not an integer or out of range")
        elif not _LEAST_INT <= number <= _MOST_INT:
            client.fail(
                f"ERR value is out of range, value must between {_LEAST_INT} and {_MOST_INT}"
            )
        elif number:
            client.fail("ERR DB index is out of range")
        else:
            client.reply(OK)

    def _readonly(self, client: RespConnection, _: list[bytes]) -> None:
        client.session.read_here(stale=True)
        client.reply(OK)

    def _readwrite(self, client: RespConnection, _: list[bytes]) -> None:
        client.session.read_here(stale=False)
        client.reply(OK)

    # -- whether it is there ---------------------------------------------------------------------

    def _ping(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) > 2:
            client.fail("ERR wrong number of arguments for 'ping' command")
            return
        replies = client.replies()
        if len(words) > 1:
            replies.bulk(words[1])
        else:
            replies.simple(b"PONG")
        client.reply(replies.take())

    def _echo(self, client: RespConnection, words: list[bytes]) -> None:
        replies = client.replies()
        replies.bulk(words[1])
        client.reply(replies.take())

    def _quit(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(OK)
        client.end()

    def _reset(self, client: RespConnection, _: list[bytes]) -> None:
        self._leave(client)
        client.session.reset()
        client.reply(b"+RESET\r\n")

    # -- CLIENT ----------------------------------------------------------------------------------

    def _set_name(self, client: RespConnection, words: list[bytes]) -> None:
        if _is_plain(words[2]):
            client.session.name = words[2]
            client.reply(OK)
        else:
            client.fail(f"ERR Client names {_NOT_PLAIN}")

    def _get_name(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.bulk(client.session.name or None)
        client.reply(replies.take())

    def _set_info(self, client: RespConnection, words: list[bytes]) -> None:
        field, value = words[2].lower(), words[3]
        if field not in (b"lib-name", b"lib-ver"):
            client.fail(f"ERR Unrecognized option '{_shown(words[2])}'")
        elif not _is_plain(value):
            client.fail(f"ERR {field.decode()} {_NOT_PLAIN}")
        else:
            if field == b"lib-name":
                client.session.lib_name = value
            else:
                client.session.lib_version = value
            client.reply(OK)

    def _tell_id(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.integer(client.id)
        client.reply(replies.take())

    def _tell_redirection(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b":-1\r\n")

    def _info(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.verbatim(describe(client))
        client.reply(replies.take())

    def _list(self, client: RespConnection, words: list[bytes]) -> None:
        choice = _Choice()
        numbers: list[int] = []
        if len(words) == 4 and words[2].lower() == b"type":
            choice.kind = words[3].lower()
            if choice.kind not in _KINDS:
                client.fail(f"ERR Unknown client type '{_shown(words[3])}'")
                return
        elif len(words) > 3 and words[2].lower() == b"id":
            numbers = [parse_integer(word) or 0 for word in words[3:]]
            if min(numbers) < 1:
                client.fail("ERR Invalid client ID")
                return
        elif len(words) > 2:
            client.fail(_SYNTAX)
            return
        pending = Pending(client)
        client.begin(pending)
        begin(pending, self._show(client, pending, choice, numbers))

    def _show(
        self, client: RespConnection, pending: Pending, choice: _Choice, numbers: list[int]
    ) -> Turns:
        """Show the clients of some numbers, or all; looked up here, when it is their turn."""
        if numbers:
            named = [self._clients.get(number) for number in numbers]
            some = [each for each in named if each is not None]
        else:
            some = self._clients.all()
        lines = []
        for number, each in enumerate(some, 1):
            if not each.is_closed and choice.fits(each):
                lines.append(describe(each))
                pending.hold(len(lines[-1]))
            if number % _MANY == 0:
                if pending.room < 0:
                    raise Unavailable("too much waits to be read by clients; try again shortly")
                yield False
        pending.unpark()
        replies = client.replies()
        replies.verbatim(b"".join(lines))
        pending.finish(replies.take())

    def _kill(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) == 3:
            address = _shown(words[2])
            found = [each for each in self._clients.all() if each.address == address]
            if found:
                client.reply(OK)
                self._end(client, found)
            else:
                client.fail("ERR No such client")
            return
        choice = self._choose(client, words)
        if choice is None:
            return
        if choice.number:  # one at most
            named = self._clients.get(choice.number)
            some = [named] if named is not None else []
        else:
            some = self._clients.all()
        chosen = [each for each in some if choice.fits(each)]
        client.reply(b":%d\r\n" % len(chosen))
        self._end(client, chosen)

    def _choose(self, client: RespConnection, words: list[bytes]) -> _Choice | None:
        """Return what the filters of CLIENT KILL say, the last of each kind; None: they are
        refused."""
        choice = _Choice()
        choice.spared = client
        if len(words) % 2:
            client.fail(_SYNTAX)
            return None
        for option, value in zip(words[2::2], words[3::2], strict=True):
            text = _narrow(choice, client, option.lower(), value)
            if text:
                client.fail(text)
                return None
        return choice

    def _end(self, client: RespConnection, some: list[RespConnection]) -> None:
        if client in some:
            client.end()  # it reads the reply first
        client.reactor.close_soon(each for each in some if each is not client)

    def _take_on_or_off(self, client: RespConnection, words: list[bytes]) -> None:
        if words[2].lower() in (b"on", b"off"):
            client.reply(OK)
        else:
            client.fail(_SYNTAX)

    def _set_reply(self, client: RespConnection, words: list[bytes]) -> None:
        session = client.session
        match words[2].lower():
            case b"on":
                session.silent = False
                session.skips = 0
                session.refresh()
                client.reply(OK)
            case b"off":
                session.silent = True
                session.refresh()
            case b"skip":
                if not session.silent:
                    # The next command is skipped: EXEC's own has its reply by then.
                    session.skips = 2 if client.captured is None else 1
                    session.refresh()
            case _:
                client.fail(_SYNTAX)

    def _help(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        lines = [
            "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "GETNAME, GETREDIR, ID, INFO, NO-EVICT (ON|OFF), NO-TOUCH (ON|OFF)",
            "KILL <ip:port> | [ID <id>] [ADDR <ip:port>] [TYPE (NORMAL|PUBSUB)]",
            "    [MAXAGE <seconds>] [SKIPME (YES|NO)]",
            "LIST [TYPE (NORMAL|PUBSUB)] [ID <id> ...]",
            "REPLY (ON|OFF|SKIP), SETINFO (LIB-NAME|LIB-VER) <value>, SETNAME <name>",
        ]
        replies.array_of(len(lines))
        for line in lines:
            replies.simple(line.encode())
        client.reply(replies.take())


def _never(client: RespConnection, words: list[bytes]) -> None:
    """Stand for a command that is nothing without a subcommand."""
    raise AssertionError(f"{words[0]!r} of {client}")


class _Choice:
    """Some clients, by what each of them has to be: looked through once, whatever is asked for."""

    def __init__(self) -> None:
        self.number = 0
        self.address: str | None = None
        self.kind: bytes | None = None
        self.before: float | None = None  # when it came at the latest
        self.spared: RespConnection | None = None
        self.is_nobody = False

    def fits(self, client: RespConnection) -> bool:
        """Tell whether a client is one of them: there are subscribers, and normal ones."""
        kind = b"normal" if client.session.subscriptions is None else b"pubsub"
        return not (
            self.is_nobody
            or client is self.spared
            or (self.number and client.id != self.number)
            or self.address not in (None, client.address)
            or self.kind not in (None, kind)
            or (self.before is not None and client.created > self.before)
        )


def _narrow(choice: _Choice, client: RespConnection, option: bytes, value: bytes) -> str:
    """Heed one filter of CLIENT KILL; return the error if it is none."""
    match option:
        case b"id":
            choice.number = parse_integer(value) or 0
            return "" if choice.number > 0 else "ERR client-id should be greater than 0"
        case b"addr":
            choice.address = _shown(value)
        case b"laddr":
            choice.is_nobody = True
        case b"user":  # everybody is the one there is
            return "" if value == b"default" else f"ERR No such user '{_shown(value)}'"
        case b"type":
            choice.kind = value.lower()
            return "" if choice.kind in _KINDS else f"ERR Unknown client type '{_shown(value)}'"
        case b"maxage":
            age = parse_integer(value)
            if age is None or age < 1:
                return "ERR maxage is not an integer or out of range"
            choice.before = client.reactor.now - age
        case b"skipme" if value.lower() in (b"yes", b"no"):
            choice.spared = client if value.lower() == b"yes" else None
        case _:
            return _SYNTAX
    return ""


def _is_plain(name: bytes) -> bool:
    return all(33 <= byte <= 126 for byte in name)


def _shown(word: bytes) -> str:
    return word[:128].decode("utf-8", "surrogateescape")
