"""What a caller hands in, as the server takes it: bytes, query strings, JSON, batches of lines.

For the other files of the client and for the shell. Nothing here asks a server or keeps a state,
and nothing reads an answer (model.py). What can't be sent is a TypeError that names the argument.
Any thread.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

__all__ = [
    "Json",
    "Text",
    "batches",
    "fields",
    "key_and_value",
    "key_target",
    "milliseconds",
    "quoted",
    "range_target",
    "readable",
    "session_target",
    "to_bytes",
    "to_whole",
]

Text: TypeAlias = str | bytes | bytearray | memoryview
"""Bytes, or text that is sent as UTF-8. Anything else as a key or value is a TypeError."""

Json: TypeAlias = dict[str, Any]
"""An object of JSON."""

_BATCH_RECORDS, _BATCH_BYTES = 500, 512 << 10


def to_bytes(text: Text, argument: str) -> bytes:
    """Return the bytes of a key or value. Raises TypeError, which names the argument."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"{argument} has to be str or bytes, not {type(text).__name__}")


def to_whole(number: int, argument: str) -> int:
    """Return a whole number as it is. Raises TypeError, which names the argument."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{argument} has to be int, not {type(number).__name__}")
    return number


def quoted(text: Text, argument: str) -> str:
    """Return what stands for *text* in a query string. Raises TypeError."""
    return quote(to_bytes(text, argument), safe="")


def readable(text: bytes) -> str:
    """Return what stands for a key in a message."""
    return repr(text.decode(errors="backslashreplace"))


def milliseconds(seconds: float, argument: str = "ttl") -> str:
    """Return a number of seconds as a duration that servers read. Raises TypeError."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{argument} has to be a number of seconds, not {type(seconds).__name__}")
    return f"{round(seconds * 1000)}ms"


def key_target(key: Text, path: str = "/kv") -> str:
    """Return the request target about one key. Raises TypeError."""
    return f"{path}?key={quoted(key, 'key')}"


def session_target(session: str) -> str:
    """Return the request target about one session. Raises TypeError."""
    return "/session?id=" + quoted(session, "session")


def range_target(
    path: str, prefix: Text | None, start: Text | None = None, end: Text | None = None
) -> str:
    """Return the request target about a range; without bounds it is all there is.

    Raises TypeError.
    """
    if start is None and end is None and prefix is None:
        prefix = ""
    given = (("prefix", prefix, "prefix"), ("from", start, "start"), ("to", end, "end"))
    query = [
        f"{name}={quoted(text, argument)}" for name, text, argument in given if text is not None
    ]
    return f"{path}?{'&'.join(query)}"


def fields(named: Mapping[str, bytes]) -> Json:
    """Return bytes as fields of an object; all of them in base64 if one isn't UTF-8."""
    try:
        return {name: text.decode() for name, text in named.items()}
    except UnicodeDecodeError:
        coded: Json = {name: b64encode(text).decode() for name, text in named.items()}
        return {**coded, "encoding": "base64"}


def key_and_value(key: Text, value: Text | None = None) -> Json:
    """Return key and value as fields of an object."""
    named = {"key": to_bytes(key, "key")}
    if value is not None:
        named["value"] = to_bytes(value, "value")
    return fields(named)


def batches(
    records: Iterable[tuple[Text, Text | None] | tuple[Text, Text | None, float | None]],
) -> Iterator[tuple[int, bytes]]:
    """Yield batches for ``POST /kv/batch``; no key is twice in one, as an atomic batch has it."""
    lines: list[bytes] = []
    keys: set[str] = set()
    size = 0
    for key, value, *more in records:
        record = key_and_value(key, value)
        if value is None:
            record["delete"] = True
        elif more and more[0] is not None:
            record["ttl"] = milliseconds(more[0])
        line = json.dumps(record).encode() + b"\n"
        name = ("" if "encoding" not in record else "=") + record["key"]
        if lines and (
            len(lines) == _BATCH_RECORDS or size + len(line) > _BATCH_BYTES or name in keys
        ):
            yield len(lines), b"".join(lines)
            lines.clear()
            keys.clear()
            size = 0
        lines.append(line)
        keys.add(name)
        size += len(line)
    if lines:
        yield len(lines), b"".join(lines)
