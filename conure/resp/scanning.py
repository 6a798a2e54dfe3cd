"""Commands about all keys: SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHDB and FLUSHALL.

**Cursors.** Keys are in order, and a cursor names the key after which a scan goes on, so a key that
is there all the time is found, whatever else comes and goes. A cursor is a number of 53 bits, since
some clients read it as a floating-point number::

    bits 21 to 52   the first four bytes of that key
    bits  0 to 20   a serial number

The last 10,000 cursors are kept with their keys. Another one, of another node or from before, goes
on from the first key with those four bytes: some keys come twice, which SCAN may do, and none is
left out.

What takes long is done in turns, from a pinned state. FLUSHALL deletes in parts, each an entry of
its own: it is not atomic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from random import Random
from typing import Final

from conure.commands import DeleteRange, Outcome, Transaction, prefix_end
from conure.errors import BadRequest, ConureError
from conure.resp.answers import Answers
from conure.resp.connection import RespConnection
from conure.resp.failures import INTERNAL
from conure.resp.globs import Glob
from conure.resp.numbers import parse_integer
from conure.resp.replies import OK
from conure.resp.table import ALONE, READS, Command
from conure.resp.waiters import Pending, begin
from conure.service.backend import State
from conure.service.limits import Limits
from conure.service.refusals import error_of
from conure.service.requests import Desk
from conure.service.turns import Turns

__all__ = ["Cursors", "Scanning"]

_KEPT_CURSORS: Final = 10_000
_SERIALS: Final = 1 << 21
_COUNT: Final = 10  # keys that SCAN looks at, unless it is told how many
_MOST_COUNT: Final = 500  # that it looks at in one go, whatever it is told
_STEP: Final = 200  # keys of a step of KEYS
_SOME: Final = 16  # keys of which RANDOMKEY takes one
_COSTLY_STEP: Final = 8  # with a pattern that takes long
_COSTLY_COUNT: Final = 16  # keys that SCAN looks at with such a one
_MOST_FOUND: Final = 64 << 20  # bytes of the keys that KEYS may find
_SYNTAX: Final = "ERR syntax error"
_NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"


def _cursor(word: bytes) -> int | None:
    """Return a cursor, which has 64 bits and no sign: a foreign one may have all of them."""
    if word.isdigit() and len(word) <= 20 and int(word) < 1 << 64:
        return int(word)
    return None


class Cursors:
    """The cursors that were given last, each with the key after which it goes on."""

    def __init__(self) -> None:
        self._keys: OrderedDict[int, bytes] = OrderedDict()
        self._serial = 0

    def give(self, key: bytes) -> int:
        """Return a cursor that goes on after a key."""
        self._serial = self._serial % (_SERIALS - 1) + 1
        cursor = int.from_bytes(key[:4].ljust(4, b"\0")) * _SERIALS + self._serial
        self._keys[cursor] = key
        if len(self._keys) > _KEPT_CURSORS:
            self._keys.popitem(last=False)
        return cursor

    def start_of(self, cursor: int) -> bytes:
        """Return where a scan goes on: the first key that may come next."""
        key = self._keys.get(cursor)
        if key is not None:
            return key + b"\0"
        return (cursor // _SERIALS & 0xFFFFFFFF).to_bytes(4).rstrip(b"\0")


class Scanning:
    """The commands. The reactor's thread, but for what is said otherwise."""

    def __init__(self, desk: Desk[Pending], answers: Answers, limits: Limits) -> None:
        self._desk = desk
        self._answers = answers
        self._deleted_items = limits.deleted_items
        self._cursors = Cursors()
        self._random = Random()

    def commands(self) -> list[Command]:
        """Return the rows of the table."""
        read, fast = frozenset({"readonly"}), frozenset({"readonly", "fast"})
        write = frozenset({"write"})
        return [
            Command("scan", -2, self._scan, "Iterates over the key names in the database.",
                    flags=read, group="generic", since="2.8.0", lane=READS, in_multi="refuse"),
            Command("keys", 2, self._keys, "Returns all key names that match a pattern.",
                    flags=read, group="generic", lane=READS, in_multi="refuse"),
            Command("dbsize", 1, self._dbsize, "Returns the number of keys in the database.",
                    flags=fast, group="server", lane=READS, in_multi="refuse"),
            Command("randomkey", 1, self._randomkey, "Returns a random key name.",
                    flags=read, group="generic", lane=READS, in_multi="refuse"),
            Command("flushdb", -1, self._flush, "Removes all keys, in parts.",
                    flags=write, group="server", lane=ALONE, in_multi="refuse"),
            Command("flushall", -1, self._flush, "Removes all keys, in parts.",
                    flags=write, group="server", lane=ALONE, in_multi="refuse"),
        ]  # fmt: skip

    # -- SCAN ------------------------------------------------------------------------------------

    def _scan(self, client: RespConnection, words: list[bytes]) -> None:
        cursor = _cursor(words[1])
        if cursor is None:
            client.fail("ERR invalid cursor")
            return
        count, glob, has_type = _COUNT, None, True
        if len(words) % 2:
            client.fail(_SYNTAX)
            return
        for option, value in zip(words[2::2], words[3::2], strict=True):
            match option.upper():
                case b"COUNT":
                    given = parse_integer(value)
                    if given is None:
                        client.fail(_NOT_AN_INTEGER)
                        return
                    if given < 1:
                        client.fail(_SYNTAX)
                        return
                    count = min(given, _MOST_COUNT)
                case b"MATCH":
                    glob = self._glob(client, value)
                    if glob is None:
                        return
                case b"TYPE":
                    has_type = value.lower() == b"string"
                case _:
                    client.fail(_SYNTAX)
                    return
        pending = Pending(client)
        start = self._cursors.start_of(cursor) if cursor else b""
        end = None
        count = _fewer(count, glob)
        if glob is not None and glob.prefix:
            start = max(start, glob.prefix)
            end = prefix_end(glob.prefix)

        def go_on(state: State) -> Turns:
            found = yield from _first(state.keys_in_turns(start, end), count + 1)
            following = self._cursors.give(found[count - 1]) if len(found) > count else 0
            shown = [key for key in found[:count] if has_type and (not glob or glob.matches(key))]
            replies = client.replies()
            replies.array_of(2)
            replies.bulk(b"%d" % following)
            replies.array_of(len(shown))
            replies.bulks(shown)
            pending.finish(replies.take())
            yield False

        self._look_in_turns(client, pending, go_on)

    def _glob(self, client: RespConnection, pattern: bytes) -> Glob | None:
        """Return a pattern; None: it is refused."""
        try:
            return Glob(pattern)
        except BadRequest as error:
            client.fail(f"ERR {error}")
            return None

    # -- KEYS, DBSIZE, RANDOMKEY -----------------------------------------------------------------

    def _keys(self, client: RespConnection, words: list[bytes]) -> None:
        glob = self._glob(client, words[1])
        if glob is None:
            return
        pending = Pending(client)

        def go_on(state: State) -> Turns:
            found: list[bytes] = []
            size = 0
            end = prefix_end(glob.prefix) if glob.prefix else None
            keys = state.keys_in_turns(glob.prefix, end)
            step = _COSTLY_STEP if glob.is_costly else _STEP
            while some := _until_pause(keys, step):
                shown = [key for key in some if key is not None and glob.matches(key)]
                found += shown
                more = sum(map(len, shown)) + 64 * len(shown)
                size += more
                pending.hold(more)
                if size > _MOST_FOUND or pending.room < 0:
                    raise BadRequest("too many keys match; use SCAN")
                yield False
            replies = client.replies()
            replies.array_of(len(found))
            for start in range(0, len(found), _STEP):
                replies.bulks(found[start : start + _STEP])
                pending.pieces.append(replies.take())  # to join all of it would take long
                yield False
            pending.unpark()
            pending.finish(replies.take())

        self._look_in_turns(client, pending, go_on)

    def _dbsize(self, client: RespConnection, _: list[bytes]) -> None:
        pending = Pending(client)

        def go_on(state: State) -> Turns:
            counted = 0
            for so_far in state.count(b"", None):
                counted = so_far
                yield False
            pending.finish(b":%d\r\n" % counted)

        self._look_in_turns(client, pending, go_on)

    def _randomkey(self, client: RespConnection, _: list[bytes]) -> None:
        pending = Pending(client)

        def go_on(state: State) -> Turns:
            replies = client.replies()
            replies.bulk((yield from self._any_key(state)))
            pending.finish(replies.take())
            yield False

        self._look_in_turns(client, pending, go_on)

    def _any_key(self, state: State) -> Generator[bool | None, None, bytes | None]:
        """Return, in turns, one of some keys after a place between the first and the last key that
        chance has found; after the last come the first ones. Those after a gap come up more often,
        unless all keys are among the some."""
        first = yield from _first(state.keys_in_turns(b"", None), 1)
        last = yield from _first(state.keys_in_turns(b"", None, reverse=True), 1)
        if not first or not last:
            return None
        shared = 0
        low_key, high_key = first[0], last[0]
        while (
            shared < len(low_key) and low_key[shared : shared + 1] == high_key[shared : shared + 1]
        ):
            shared += 1
        low, high = (
            int.from_bytes(key[shared : shared + 8].ljust(8, b"\0")) for key in (low_key, high_key)
        )
        place = low_key[:shared] + self._random.randint(low, high).to_bytes(8)
        some = yield from _first(state.keys_in_turns(place, None), _SOME)
        some += yield from _first(state.keys_in_turns(b"", place), _SOME - len(some))
        return self._random.choice(some)

    # -- FLUSHALL --------------------------------------------------------------------------------

    def _flush(self, client: RespConnection, words: list[bytes]) -> None:
        if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"SYNC", b"ASYNC")):
            client.fail(_SYNTAX)
            return
        pending = Pending(client)
        pending.is_alone = True
        client.begin(pending)
        begin(pending, self._delete_part(pending))

    def _delete_part(self, pending: Pending) -> Turns:
        whole = Transaction((), (DeleteRange(b"", None, self._deleted_items),))

        def ended(outcome: Outcome | ConureError) -> None:  # any thread
            if isinstance(outcome, ConureError):
                self._answers.failed(pending, outcome)
            elif outcome.refusal:
                self._answers.failed(pending, error_of(outcome))
            elif len(outcome.results) > 1 and outcome.results[1].items:
                begin(pending, self._delete_part(pending))
            else:
                pending.client.reactor.post(pending.finish, OK)

        self._desk.delete_part(pending, whole, ended)
        yield True  # the round is ended, and the part looked up

    # -- private ---------------------------------------------------------------------------------

    def _look(
        self, client: RespConnection, pending: Pending, look: Callable[[State], None]
    ) -> None:
        """Have a state looked at, quickly."""

        def look_once(state: State) -> Turns:
            look(state)
            yield False

        self._look_in_turns(client, pending, look_once)

    def _look_in_turns(
        self,
        client: RespConnection,
        pending: Pending,
        go_on: Callable[[State], Turns],
    ) -> None:
        """Have a state looked at in turns, once it may be read."""

        def look(_: object) -> None:  # any thread
            begin(pending, self._with_state(pending, go_on))

        client.begin(pending)
        try:
            self._desk.look(pending, b"", None, client.session.freshness, look)
        except ConureError as error:
            pending.fail(self._answers.text_of(error))

    def _with_state(self, pending: Pending, go_on: Callable[[State], Turns]) -> Turns:
        with closing(self._desk.backend.pin()) as state:
            for step in go_on(state):
                if pending.client.is_closed:
                    pending.fail(INTERNAL)  # nobody hears it
                    return
                yield step


def _first(keys: Iterator[bytes | None], count: int) -> Generator[bool | None, None, list[bytes]]:
    """Return, in turns, the first *count* keys."""
    found: list[bytes] = []
    if count > 0:
        for key in keys:
            if key is None:
                yield False
                continue
            found.append(key)
            if len(found) == count:
                break
    return found


def _until_pause(keys: Iterator[bytes | None], most: int) -> list[bytes | None]:
    """Return the next keys, up to *most* of them and the first pause, which comes last."""
    some: list[bytes | None] = []
    for key in keys:
        some.append(key)
        if key is None or len(some) >= most:
            break
    return some


def _fewer(count: int, glob: Glob | None) -> int:
    """Return how many keys are compared with a pattern in one go, where so many are asked for."""
    return min(count, _COSTLY_COUNT) if glob is not None and glob.is_costly else count
