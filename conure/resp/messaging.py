"""SUBSCRIBE, PSUBSCRIBE, SSUBSCRIBE and their ends, PUBLISH, SPUBLISH and PUBSUB.

A client of RESP2 that has subscribed may only go on subscribing, and PING, QUIT or RESET; one of
RESP3 may do all it likes, and messages come to it as pushes, between two replies.

A subscription is confirmed when no message is missed any more that is published from then on; at a
node that doesn't lead the first one has to wait for the leader's word. A message is published when
all writes that the client has sent before are answered. The number that PUBLISH is answered with is
that of this node's own subscribers. In MULTI a message is published when EXEC is answered, and it
counts who has subscribed to the very channel. Nobody subscribes in MULTI: to wait for the leader's
word would come between what is committed and its answer.

A shard channel is a channel in a namespace of its own, which no pattern matches.

The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from conure.commands import prefix_end
from conure.errors import BadRequest, ConureError, Unavailable
from conure.resp.answers import Answers
from conure.resp.audience import MESSAGE_BYTES, Audience, Kind, Messenger, topic_of
from conure.resp.connection import RespConnection
from conure.resp.failures import error_text
from conure.resp.globs import Glob
from conure.resp.helping import misused
from conure.resp.replies import Replies
from conure.resp.table import ALONE, MESSAGES, Command
from conure.resp.waiters import Pending, begin
from conure.service.gate import Action
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Desk
from conure.service.turns import Turns

__all__ = ["MAX_CHANNEL_BYTES", "Messaging"]

MAX_CHANNEL_BYTES: Final = 2_048
"""Of the name of a channel: that of a key's notifications has more than the key."""

_ALLOWED: Final = frozenset(
    {
        *("subscribe", "unsubscribe", "psubscribe", "punsubscribe"),
        *("ssubscribe", "sunsubscribe", "quit", "reset"),
    }
)
_STEP: Final = 200  # channels of a step
_MOST_WORDS: Final = 16_384  # of a command whose words are taken in steps
_SHORT: Final = 512  # bytes of names that are read at once
_HELP: Final = (
    b"PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    b"CHANNELS [<pattern>]",
    b"    Return the channels of this node that match a pattern.",
    b"NUMPAT",
    b"    Return number of subscriptions to patterns.",
    b"NUMSUB [<channel> ...]",
    b"    Return the number of subscribers for the specified channels.",
    b"SHARDCHANNELS [<pattern>]",
    b"    Return the shard channels of this node that match a pattern.",
    b"SHARDNUMSUB [<shardchannel> ...]",
    b"    Return the number of subscribers for the specified shard channels.",
)


class Messaging:
    """The commands, and what others mean to a client of RESP2 that has subscribed."""

    def __init__(
        self,
        desk: Desk[Pending],
        answers: Answers,
        audience: Audience,
        messenger: Messenger,
        limits: RequestLimits,
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._audience = audience
        self._messenger = messenger
        self._limits = limits

    def commands(self) -> list[Command]:
        """Return the rows of the table."""
        flags = frozenset({"pubsub", "noscript", "loading", "stale"})
        row = partial(Command, group="pubsub", since="2.0.0", most=_MOST_WORDS)
        told = {"group": "pubsub", "since": "2.8.0", "flags": flags - {"noscript"}}
        return [
            row("subscribe", -2, self._subscribe, "Listens for messages published to channels.",
                flags=flags, lane=ALONE, in_multi="refuse"),
            row("psubscribe", -2, self._psubscribe,
                "Listens for messages published to channels that match patterns.",
                flags=flags, lane=ALONE, in_multi="refuse"),
            row("ssubscribe", -2, self._ssubscribe,
                "Listens for messages published to shard channels.", since="7.0.0",
                flags=flags, lane=ALONE, in_multi="refuse", keys=(1, -1, 1)),
            row("unsubscribe", -1, partial(self._unsubscribe, Kind.CHANNEL),
                "Stops listening to messages posted to channels.",
                flags=flags, lane=ALONE, in_multi="refuse"),
            row("punsubscribe", -1, partial(self._unsubscribe, Kind.PATTERN),
                "Stops listening to messages published to channels that match patterns.",
                flags=flags, lane=ALONE, in_multi="refuse"),
            row("sunsubscribe", -1, partial(self._unsubscribe, Kind.SHARD),
                "Stops listening to messages posted to shard channels.", since="7.0.0",
                flags=flags, lane=ALONE, in_multi="refuse", keys=(1, -1, 1)),
            row("publish", 3, partial(self._publish, Kind.CHANNEL),
                "Posts a message to a channel.",
                flags=flags - {"noscript"} | {"fast"}, lane=MESSAGES),
            row("spublish", 3, partial(self._publish, Kind.SHARD),
                "Posts a message to a shard channel.", since="7.0.0",
                flags=flags - {"noscript"} | {"fast"}, lane=MESSAGES, keys=(1, 1, 1)),
            Command("pubsub", -2, self._numpat, "A container for Pub/Sub commands.",
                    group="pubsub", since="2.8.0", flags=flags - {"noscript"}, subcommands={
                "channels": Command("pubsub|channels", -2,
                                    partial(self._tell_channels, Kind.CHANNEL),
                                    "Returns the channels that have subscribers at this node.",
                                    in_multi="refuse", **told),  # type: ignore[arg-type]
                "shardchannels": Command("pubsub|shardchannels", -2,
                                         partial(self._tell_channels, Kind.SHARD),
                                         "Returns the shard channels that have some.",
                                         in_multi="refuse", **told),  # type: ignore[arg-type]
                "numsub": Command("pubsub|numsub", -2, partial(self._numsub, Kind.CHANNEL),
                                  "Returns counts of subscribers of channels.",
                                  **told),  # type: ignore[arg-type]
                "shardnumsub": Command("pubsub|shardnumsub", -2,
                                       partial(self._numsub, Kind.SHARD),
                                       "Returns counts of subscribers of shard channels.",
                                       **told),  # type: ignore[arg-type]
                "numpat": Command("pubsub|numpat", 2, self._numpat,
                                  "Returns a count of unique patterns.",
                                  **told),  # type: ignore[arg-type]
                "help": Command("pubsub|help", 2, self._help,
                                "Returns helpful text about the subcommands.",
                                **told),  # type: ignore[arg-type]
            }),
        ]  # fmt: skip

    # -- what others mean (frontend.Modes) --------------------------------------------------------

    def take(self, client: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Refuse what a client of RESP2 may not do that has subscribed; answer its PING; return
        False for anything else."""
        if not client.session.only_listens or command.name in _ALLOWED:
            return False
        if command.name == "ping" and len(words) <= 2:
            replies = client.replies()
            replies.array_of(2)
            replies.bulk(b"pong")
            replies.bulk(words[1] if len(words) > 1 else b"")
            client.reply(replies.take())
            return True
        name = command.name.replace("|", " ")
        client.fail(
            f"ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / "
            "RESET are allowed in this context"
        )
        return True

    # -- subscribing ------------------------------------------------------------------------------

    def _subscribe(self, client: RespConnection, words: list[bytes]) -> None:
        self._begin(client, Kind.CHANNEL, words[1:])

    def _psubscribe(self, client: RespConnection, words: list[bytes]) -> None:
        self._begin(client, Kind.PATTERN, words[1:])

    def _ssubscribe(self, client: RespConnection, words: list[bytes]) -> None:
        self._begin(client, Kind.SHARD, words[1:])

    def _begin(self, client: RespConnection, kind: Kind, names: list[bytes]) -> None:
        pending = _Alone(client)
        steps = self._prepare(client, pending, kind, names)
        if self._audience.is_heard and _is_short(names):
            try:
                for _ in steps:
                    pass
            except ConureError as error:
                client.fail(error_text(error))
        else:
            pending.begin()
            begin(pending, steps)

    def _prepare(
        self, client: RespConnection, pending: _Alone, kind: Kind, names: list[bytes]
    ) -> Turns:
        """Read names, and subscribe to them once messages are heard."""
        globs = kind is Kind.PATTERN
        found: list[Glob | None] = []
        for number, name in enumerate(names, 1):
            _check_channel(name)
            found.append(glob := Glob(name) if globs else None)
            self._permit(pending, name, glob)
            if globs or number % _STEP == 0:
                yield False
        self._audience.check(client, kind, names)
        pending.hold(sum(map(len, names)) + len(names) * MESSAGE_BYTES)
        if pending.room < 0:
            raise Unavailable("too much waits to be read by clients; try again shortly")
        if self._audience.is_heard:
            yield from self._enter(client, pending, kind, names, found)
        else:
            self._audience.listen(partial(self._go_on, client, pending, kind, names, found))

    def _permit(self, pending: Pending, name: bytes, glob: Glob | None) -> None:
        """Raise Forbidden unless a client may listen there."""
        if glob is None or glob.literal is not None:
            start = name if glob is None else glob.prefix
            self._desk.permit(pending, Action.LISTEN, start, start + b"\0")
        else:
            end = prefix_end(glob.prefix) if glob.prefix else None
            self._desk.permit(pending, Action.LISTEN, glob.prefix, end)

    def _go_on(
        self,
        client: RespConnection,
        pending: _Alone,
        kind: Kind,
        names: list[bytes],
        globs: Sequence[Glob | None],
        error: ConureError | None,
    ) -> None:
        """Subscribe a client, now that messages are heard."""
        if error is not None:
            pending.fail(self._answers.text_of(error))
            return
        try:
            self._audience.check(client, kind, names)  # others came meanwhile
        except BadRequest as why:
            pending.fail(error_text(why))
            return
        steps = self._enter(client, pending, kind, names, globs)
        if next(steps, None) is not None:  # the first now, or nobody would be listened for
            begin(pending, steps)

    def _enter(
        self,
        client: RespConnection,
        pending: _Alone,
        kind: Kind,
        names: list[bytes],
        globs: Sequence[Glob | None],
    ) -> Turns:
        """Subscribe a client, and confirm it: of each name before the first message."""
        replies = client.replies()
        done = kind.value + b"subscribe"
        for number, (name, glob) in enumerate(zip(names, globs, strict=True), 1):
            if client.is_last:  # it has left meanwhile
                break
            count = self._audience.subscribe(client, kind, name, glob)
            _confirm(replies, done, name, count)
            if number % _STEP == 0:
                client.push(replies.take())
                yield False
        client.push(replies.take())
        pending.end()

    def _unsubscribe(self, kind: Kind, client: RespConnection, words: list[bytes]) -> None:
        names = words[1:] or self._audience.names_of(client, kind)
        pending = _Alone(client)
        steps = self._leave(client, pending, kind, names)
        if len(names) <= _STEP:
            for _ in steps:
                pass
        else:
            pending.begin()
            begin(pending, steps)

    def _leave(
        self, client: RespConnection, pending: _Alone, kind: Kind, names: list[bytes]
    ) -> Turns:
        replies = client.replies()
        done = kind.value + b"unsubscribe"
        for number, name in enumerate(names, 1):
            count = self._audience.unsubscribe(client, kind, name)
            _confirm(replies, done, name, count)
            if number % _STEP == 0:
                client.push(replies.take())
                yield False
        if not names:
            _confirm(replies, done, None, self._audience.count_for(client, kind))
        client.push(replies.take())
        pending.end()

    # -- PUBLISH ----------------------------------------------------------------------------------

    def _publish(self, kind: Kind, client: RespConnection, words: list[bytes]) -> None:
        _, channel, message = words
        pending = Pending(client)
        try:
            _check_channel(channel)
            most = self._limits.value_bytes
            if len(message) > most:
                raise BadRequest(f"the message has {len(message):,} bytes; the limit is {most:,}")
            self._desk.permit(pending, Action.PUBLISH, channel, channel + b"\0")
        except ConureError as error:
            client.fail(error_text(error))
            return
        if self._audience.is_full:
            client.fail("TRYAGAIN too many messages are under way, try again shortly")
        elif client.captured is not None:
            self._messenger.publish(topic_of(kind, channel), message, _ignore)
            client.reply(b":%d\r\n" % self._audience.count_of(kind, channel))
        else:
            client.begin(pending)
            told = partial(client.reactor.post, self._published, pending, kind, channel)
            self._messenger.publish(topic_of(kind, channel), message, told)

    def _published(
        self, pending: Pending, kind: Kind, channel: bytes, error: ConureError | None
    ) -> None:
        if error is not None:
            pending.fail(self._answers.text_of(error))
        elif kind is Kind.SHARD:
            pending.finish(b":%d\r\n" % self._audience.count_of(kind, channel))
        else:
            self._audience.count(channel, lambda count: pending.finish(b":%d\r\n" % count))

    # -- PUBSUB -----------------------------------------------------------------------------------

    def _tell_channels(self, kind: Kind, client: RespConnection, words: list[bytes]) -> None:
        if len(words) > 3:
            client.fail(misused(words))
            return
        try:
            glob = Glob(words[2]) if len(words) == 3 else None
        except BadRequest as error:
            client.fail(f"ERR {error}")
            return
        pending = Pending(client)
        client.begin(pending)
        begin(pending, self._find(client, pending, kind, glob))

    def _find(
        self, client: RespConnection, pending: Pending, kind: Kind, glob: Glob | None
    ) -> Turns:
        found: list[bytes] = []
        step = _STEP if glob is None or not glob.is_costly else 8
        for names in self._audience.names(kind):
            for start in range(0, len(names), step):
                some = names[start : start + step]
                shown = [name for name in some if glob is None or glob.matches(name)]
                found += shown
                pending.hold(sum(map(len, shown)) + 64 * len(shown))
                if pending.room < 0:
                    raise BadRequest("too many channels match")
                yield False
        replies = client.replies()
        replies.array_of(len(found))
        for start in range(0, len(found), _STEP):
            replies.bulks(found[start : start + _STEP])
            yield False
        pending.unpark()
        pending.finish(replies.take())

    def _numsub(self, kind: Kind, client: RespConnection, words: list[bytes]) -> None:
        replies = client.replies()
        replies.array_of(2 * len(words[2:]))
        for name in words[2:]:
            replies.bulk(name)
            replies.integer(self._audience.count_of(kind, name))
        client.reply(replies.take())

    def _numpat(self, client: RespConnection, _: list[bytes]) -> None:
        client.reply(b":%d\r\n" % self._audience.patterns)

    def _help(self, client: RespConnection, _: list[bytes]) -> None:
        replies = client.replies()
        replies.array_of(len(_HELP))
        for line in _HELP:
            replies.simple(line)
        client.reply(replies.take())


class _Alone(Pending):
    """A change of subscriptions, which is confirmed by pushes: they come whatever CLIENT REPLY
    says. What the client sends after it waits, once it has *begun*."""

    __slots__ = ("_connection", "_has_begun")

    def __init__(self, client: RespConnection) -> None:
        super().__init__(client)
        self._connection = client
        self._has_begun = False

    def begin(self) -> None:
        """Let it wait."""
        self.is_alone = self._has_begun = True
        self._connection.begin(self)

    def hold(self, size: int) -> None:
        """Count bytes that are kept while it waits; see ``Pending.hold``."""
        if self._has_begun:
            super().hold(size)

    def end(self) -> None:
        """All is confirmed."""
        if self._has_begun:
            self.finish(b"")


def _is_short(names: list[bytes]) -> bool:
    """Tell whether names are quickly read, patterns too."""
    return len(names) <= _STEP and sum(map(len, names)) <= _SHORT


def _confirm(replies: Replies, kind: bytes, name: bytes | None, count: int) -> None:
    replies.push(3)
    replies.bulk(kind)
    replies.bulk(name)
    replies.integer(count)


def _check_channel(name: bytes) -> None:
    """Raise BadRequest for a name that is too long."""
    if len(name) > MAX_CHANNEL_BYTES:
        raise BadRequest(
            f"the channel's name has {len(name):,} bytes; the limit is {MAX_CHANNEL_BYTES:,}"
        )


def _ignore(error: ConureError | None) -> None:
    """Take it that a message of a transaction may not have been published: that is answered."""
