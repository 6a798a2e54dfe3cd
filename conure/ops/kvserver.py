"""What kvctl asks of a server about its keys, over RESP: put, get, delete, scan, watch, ttl, dump.

1. A read is as true as the server's: linearizable. What reads many keys does so page by page, and
   what others write meanwhile may or may not be seen.
2. After a write that got no reply, or one that nobody can read, the outcome is unknown, and the
   error says so.
3. Nothing is repeated, and no other server is looked for.
4. Pages come in the order of the keys. A cursor that the server has forgotten goes on a little
   before its place; what comes twice by that is left out.

What kvctl asks about a server itself stands in kvhealth.py. Imported by the starter (kvctl.py) once
a server is to be asked. For the main thread.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from conure.commands import MAX_VALUE_BYTES
from conure.net.dialled import name_to_check
from conure.ops.kvhealth import examine, show_figures
from conure.ops.kvoutput import Output, complain, fields_of, shown_duration
from conure.ops.kvwords import Failed, Line
from conure.ops.respclient import (
    ErrorReply,
    Garbled,
    NoAnswer,
    Reply,
    RespClient,
    Securing,
    dial,
    server_says,
)

__all__ = ["run"]

_PAGE: Final = 500  # keys that a server looks at in one go
_BATCH: Final = 16  # keys that are asked for at a time: commands of 33 KiB at most
_MOST_REPEATED: Final = 100  # pages, one after the other, without a key that is new
_IDLE: Final = 15.0  # seconds without an event after which the server is asked whether it is there
_KEYSPACE: Final = b"__keyspace@0__:"
_NOTIFY: Final = b"notify-keyspace-events"
_LETTERS: Final = "Kg$x"  # what watch needs of them: del, set and expired, by key
_SPECIAL: Final = b"*?[\\"  # in a pattern

_REFUSED: Final[Mapping[str, str]] = {
    "compact": "a server's engine merges and frees what is old by itself; "
    "--data-dir=DIR compacts a stopped node's directory",
    "tables": "a server doesn't show its files; --data-dir=DIR shows those of a stopped node, "
    "and /metrics of a running one how many there are",
}


def run(line: Line, output: Output) -> int:
    """Carry out a command; return the exit status. Raises Failed and ConureError."""
    if line.command in _REFUSED:
        raise Failed(_REFUSED[line.command])
    if line.options.get("reverse"):
        raise Failed("a server goes through its keys upwards only; with --data-dir both ways are")
    stream = dial(line.host, line.port, line.timeout, _securing(line))
    try:
        with RespClient(stream, line.address, line.timeout) as server:
            server.greet()
            return _ACTIONS[line.command](server, line, output)
    except ErrorReply as error:
        raise Failed(server_says(line.address, error)) from error


def _securing(line: Line) -> Securing | None:
    """Return what begins TLS with the server, if it is to be asked by that. Raises ConfigError."""
    if line.tls is None:
        return None
    # By its name: it imports ssl, which nobody needs to wait for who asks without it.
    tls = importlib.import_module("conure.clienttls").ClientTls(
        line.tls.ca, line.tls.cert, line.tls.key
    )
    name = line.tls.name or name_to_check(line.host)
    return lambda dialled: dialled.secure(tls.context(), name)


# -- one key ---------------------------------------------------------------------------------------


def _put(server: RespClient, line: Line, output: Output) -> int:
    key, value = line.arguments
    content = _standard_input() if value == "-" else os.fsencode(value)
    if len(content) > MAX_VALUE_BYTES:
        raise Failed(f"the value has more than {MAX_VALUE_BYTES >> 20} MiB, which no server stores")
    words = [b"SET", os.fsencode(key), content]
    ttl = line.options.get("ttl")
    if ttl is not None:
        words += [b"PX", b"%d" % max(1, round(ttl * 1000))]
    if _write(server, words) != b"OK":
        raise _strange(server, "SET")
    if output.as_json:
        output.json({"ok": True})
    else:
        output.line("OK")
    return 0


def _get(server: RespClient, line: Line, output: Output) -> int:
    key = os.fsencode(line.arguments[0])
    if not output.as_json:
        value = server.ask(b"GET", key)
        if value is None:
            raise Failed("key not found")
        if not isinstance(value, bytes):
            raise _strange(server, "GET")
        output.value(value)
        return 0
    for found in _records(server, [key]):
        output.json(found.fields())
        return 0
    raise Failed("key not found")


def _delete(server: RespClient, line: Line, output: Output) -> int:
    count = _write(server, [b"DEL", *map(os.fsencode, line.arguments)])
    if not isinstance(count, int):
        raise _strange(server, "DEL")
    if output.as_json:
        output.json({"deleted": count})
    else:
        output.line(str(count))
    return 0


def _ttl(server: RespClient, line: Line, output: Output) -> int:
    key = os.fsencode(line.arguments[0])
    left = server.ask(b"PTTL", key)
    if not isinstance(left, int):
        raise _strange(server, "PTTL")
    if left == -2:
        raise Failed("key not found")
    if output.as_json:
        output.json({**fields_of(key), "ttl": None if left < 0 else left / 1000})
    else:
        output.line("never" if left < 0 else shown_duration(left))
    return 0


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise Failed("standard input is closed; give the value as a word")
    return sys.stdin.buffer.read(MAX_VALUE_BYTES + 1)


def _write(server: RespClient, words: Sequence[bytes]) -> Reply:
    try:
        return server.write(*words)
    except KeyboardInterrupt:
        complain("interrupted; the write may or may not have been carried out")
        raise


# -- many keys -------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A record that a server has: *left* are the milliseconds it lives, None: for ever."""

    key: bytes
    value: bytes
    left: int | None

    def fields(self) -> dict[str, Any]:
        ttl = {} if self.left is None else {"ttl": self.left / 1000}
        return {**fields_of(self.key, self.value), **ttl}


def _scan(server: RespClient, line: Line, output: Output) -> int:
    limit = line.options.get("limit")
    for keys in _pages(server, line, limit):
        if line.options.get("values"):
            for found in _records(server, keys):
                if output.as_json:
                    output.json(found.fields())
                else:
                    output.line(found.key, found.value)
        else:
            for key in keys:
                if output.as_json:
                    output.json(fields_of(key))
                else:
                    output.line(key)
    return 0


def _dump(server: RespClient, line: Line, output: Output) -> int:
    for keys in _pages(server, line, None):
        for found in _records(server, keys):
            output.json(found.fields())
    return 0


def _pages(server: RespClient, line: Line, limit: int | None) -> Iterator[list[bytes]]:
    """Yield the keys that begin with the prefix, *limit* at most, a page at a time (4)."""
    prefix = os.fsencode(line.arguments[0]) if line.arguments else b""
    ascends = b"conuredb_version" in server.greeting
    cursor, last, left = b"0", b"", limit
    repeated = 0
    while left is None or left > 0:
        count = _PAGE if left is None else min(left, _PAGE)
        reply = server.ask(
            b"SCAN", cursor, b"MATCH", _literally(prefix) + b"*", b"COUNT", b"%d" % count
        )
        match reply:
            case [bytes(cursor), list(keys)] if all(isinstance(key, bytes) for key in keys):
                pass
            case _:
                raise _strange(server, "SCAN")
        if ascends:
            keys = [key for key in keys if key > last]
            last = keys[-1] if keys else last
            repeated = 0 if keys else repeated + 1
            if repeated == _MOST_REPEATED:
                raise _strange(server, "SCAN")
        if left is not None:
            keys = keys[:left]
            left -= len(keys)
        yield keys
        if cursor == b"0":
            return


def _records(server: RespClient, keys: Sequence[bytes]) -> Iterator[_Found]:
    """Yield the records of some keys, but for those that are gone meanwhile."""
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        replies = server.ask_each(
            [words for key in batch for words in ((b"GET", key), (b"PTTL", key))]
        )
        for key in batch:
            value, left = next(replies), next(replies)  # no more than one value at a time
            for reply in (value, left):
                if isinstance(reply, ErrorReply):
                    raise reply
            if not isinstance(value, bytes | None) or not isinstance(left, int):
                raise _strange(server, "GET and PTTL")
            if value is not None and left != -2:
                yield _Found(key, value, left if left >= 0 else None)


def _strange(server: RespClient, command: str) -> Garbled:
    """Return what to say of a reply that a command can't have."""
    return Garbled(f"{server.name} answers {command} by something else than what that returns")


def _literally(prefix: bytes) -> bytes:
    """Return a pattern that stands for nothing but *prefix*."""
    return b"".join(b"\\%c" % byte if byte in _SPECIAL else b"%c" % byte for byte in prefix)


# -- watch -----------------------------------------------------------------------------------------


def _watch(server: RespClient, line: Line, output: Output) -> int:
    prefix = os.fsencode(line.arguments[0]) if line.arguments else b""
    _let_notify(server)
    server.tell(b"PSUBSCRIBE", _KEYSPACE + _literally(prefix) + b"*")
    try:
        for key, event in _events(server):
            if output.as_json:
                output.json({"event": event.decode("utf-8", "backslashreplace"), **fields_of(key)})
            else:
                output.line(event, key)
            output.flush()
    except (NoAnswer, Garbled) as error:
        raise Failed(f"{error}; events may have been missed, so read the keys again") from error
    except KeyboardInterrupt:  # that is how it ends
        if output.is_terminal:
            output.write("\n")
    return 0


def _let_notify(server: RespClient) -> None:
    """See to it that the node notifies of what happens to keys."""
    match server.ask(b"CONFIG", b"GET", _NOTIFY):
        case [bytes(), bytes(text)]:  # RESP2
            pass
        case {b"notify-keyspace-events": bytes(text)}:
            pass
        case _:
            raise _strange(server, "CONFIG GET")
    letters = text.decode("latin-1")
    there = {*letters, *(_LETTERS[1:] if "A" in letters else "")}
    missing = "".join(letter for letter in _LETTERS if letter not in there)
    if missing:
        server.ask(b"CONFIG", b"SET", _NOTIFY, (letters + missing).encode("latin-1"))
        complain(f"{server.name} notifies of keys from now on, until it is restarted")


def _events(server: RespClient) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and what happens to them, for ever."""
    is_asked = False
    while True:
        try:
            message = server.message(server.timeout if is_asked else _IDLE)
        except TimeoutError:
            if is_asked:
                raise NoAnswer(f"{server.name} is silent") from None
            is_asked = True
            server.tell(b"PING")
            continue
        is_asked = False
        match message:
            case ErrorReply():
                raise message
            case [b"pmessage", bytes(), bytes(channel), bytes(event)]:
                yield channel.removeprefix(_KEYSPACE), event


_ACTIONS: Final[Mapping[str, Callable[[RespClient, Line, Output], int]]] = {
    "put": _put,
    "get": _get,
    "delete": _delete,
    "scan": _scan,
    "watch": _watch,
    "ttl": _ttl,
    "stats": show_figures,
    "check": examine,
    "dump": _dump,
}
