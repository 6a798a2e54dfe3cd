"""What a caller gets and says: records, events, results, comparisons, operations, two exceptions.

The client's vocabulary, and the only reader of what servers say in JSON: what isn't what was to be
expected is a ConureError and never a KeyError. Nothing here asks a server. Any thread.
"""

from __future__ import annotations

import contextlib
import json
from base64 import b64decode
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from conure.client.texts import (
    Json,
    Text,
    key_and_value,
    milliseconds,
    to_bytes,
    to_whole,
)
from conure.errors import Conflict, ConureError

__all__ = [
    "NOT_A_SERVER",
    "Closing",
    "Event",
    "LockHeld",
    "LockLost",
    "Op",
    "Page",
    "Record",
    "TxnResult",
    "to_event",
    "to_object",
    "to_record",
    "to_result",
    "understanding",
    "when",
]

NOT_A_SERVER = "this is not what a ConureDB server answers; check the server's address"


class LockHeld(Conflict):
    """Another one held the lock for as long as was waited for it."""

    title = "lock held"


class LockLost(ConureError):
    """The lock's session ended while the lock was in use: somebody else may have got it since.

    What was done under it may have met with what the other one did, unless fencing tokens were
    checked.
    """

    title = "lock lost"


class Record(NamedTuple):
    """A key and what is stored under it.

    *value* is b"" where it wasn't asked for; *ttl* in seconds, None: for ever. *session* and
    *fencing_token* say who holds the key, if anybody does; only ``Client.record`` asks for them.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    ttl: float | None = None
    session: str | None = None
    fencing_token: int | None = None


class Event(NamedTuple):
    """A change of a key: *kind* is put, delete or expire; *value* is None if it is gone.

    *previous* is the value before, of a watch that asked for it: None if there was no key, or if it
    isn't known.
    """

    revision: int
    kind: str
    key: bytes
    value: bytes | None
    version: int
    previous: bytes | None = None


class Page(NamedTuple):
    """What a range in a transaction has found; *more*: its limit cut it short."""

    items: list[Record]
    more: bool


class TxnResult(NamedTuple):
    """How a transaction ended: which branch was taken, and what each of its operations did.

    A deletion has the number of keys, a range a :class:`Page`, anything else the record it found
    or left, None if there is none; its value is only there where it was read.
    """

    succeeded: bool
    revision: int
    results: list[Record | Page | int | None]


def when(
    key: Text,
    relation: str = "=",
    *,
    value: Text | None = None,
    version: int | None = None,
    create_revision: int | None = None,
    mod_revision: int | None = None,
    exists: bool | None = None,
) -> Json:
    """Return a comparison for ``Client.txn``: of one thing, to which *key*'s has that *relation*.

    *relation* is ``=``, ``!=``, ``<`` or ``>``: ``when("k", ">", version=3)``.
    """
    compare = key_and_value(key, value)
    for name, operand in (
        ("version", version),
        ("create_revision", create_revision),
        ("mod_revision", mod_revision),
        ("exists", exists),
    ):
        if operand is not None:
            compare[name] = operand
    if relation != "=":
        compare["relation"] = relation
    return compare


class Op:
    """The operations of ``Client.txn``, as the JSON that ``POST /txn`` takes."""

    @staticmethod
    def put(key: Text, value: Text, *, ttl: float | None = None, keep_ttl: bool = False) -> Json:
        """Set a key; *ttl* in seconds."""
        body = key_and_value(key, to_bytes(value, "value"))
        if ttl is not None:
            body["ttl"] = milliseconds(ttl)
        if keep_ttl:
            body["keepttl"] = True
        return {"put": body}

    @staticmethod
    def get(key: Text) -> Json:
        """Read a key."""
        return {"get": key_and_value(key)}

    @staticmethod
    def delete(key: Text) -> Json:
        """Remove a key, if it is there."""
        return {"delete": key_and_value(key)}

    @staticmethod
    def delete_prefix(prefix: str) -> Json:
        """Remove all keys that begin with *prefix*."""
        return {"delete": {"prefix": to_bytes(prefix, "prefix").decode()}}

    @staticmethod
    def range(
        prefix: str, *, limit: int = 100, reverse: bool = False, keys_only: bool = False
    ) -> Json:
        """Read the first keys that begin with *prefix*, or with *reverse* the last ones."""
        text = to_bytes(prefix, "prefix").decode()
        return {"range": {"prefix": text, "limit": limit, "reverse": reverse, "keys": keys_only}}

    @staticmethod
    def increment(key: Text, by: int = 1) -> Json:
        """Add to a number; what it comes to is told by a ``get`` after it."""
        return {"incr": {**key_and_value(key), "by": to_whole(by, "by")}}

    @staticmethod
    def touch(key: Text, ttl: float) -> Json:
        """Let a key expire in *ttl* seconds, 0: never."""
        return {"touch": {**key_and_value(key), "ttl": milliseconds(ttl)}}


class Closing:
    """Something that a ``with`` block closes."""

    def close(self) -> None:
        """End it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The block's own error says more than what became of its end.
        with contextlib.suppress(*([ConureError] if error is not None else [])):
            self.close()


class _Understanding:
    """Raises ConureError for an answer that isn't what was to be expected."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            raise ConureError(NOT_A_SERVER) from error


understanding = _Understanding()  # one for all: it has no state
"""Makes ConureErrors of what goes wrong in its block while an answer is read."""


def to_object(body: bytes) -> Json:
    """Return the object that an answer is as JSON. Raises ConureError."""
    with understanding:
        value = json.loads(body)
    if not isinstance(value, dict):
        raise ConureError(NOT_A_SERVER)
    return value


def to_record(shown: Mapping[str, Any]) -> Record:
    """Return the record that a server shows. Raises ConureError."""
    with understanding:
        key, value = _from_texts(shown)
        return Record(
            key,
            value or b"",
            shown["create_revision"],
            shown["mod_revision"],
            shown["version"],
            shown.get("ttl"),
            shown.get("session"),
            shown.get("fencing_token"),
        )


def to_event(kind: str, data: Mapping[str, Any]) -> Event:
    """Return the event that a server tells. Raises ConureError."""
    with understanding:
        key, value = _from_texts(data)
        previous = _from_text(data, "prev")
        return Event(data["revision"], kind, key, value, data["version"], previous)


def _from_texts(shown: Mapping[str, Any]) -> tuple[bytes, bytes | None]:
    key = _from_text(shown, "key")
    if key is None:
        raise KeyError("key")
    return key, _from_text(shown, "value")


def _from_text(shown: Mapping[str, Any], name: str) -> bytes | None:
    """Return the bytes that a field stands for, None if it isn't there or is null."""
    text = shown.get(name)
    if text is None:
        return None
    decoded: bytes = b64decode(text) if shown.get("encoding") == "base64" else text.encode()
    return decoded


def to_result(shown: Any) -> Record | Page | int | None:
    """Return what an operation of a transaction did, for ``TxnResult``."""
    if shown is None:
        return None
    if "items" in shown:
        return Page([to_record(each) for each in shown["items"]], shown["more"])
    return int(shown["deleted"]) if "deleted" in shown else to_record(shown)
