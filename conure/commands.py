"""The vocabulary of writes: what one log entry may ask of the state machine, and what came of it.

Each entry that changes records is one command, and its log index is the one *revision* of all it
does. A plain put or delete is a command of its own (codec.py); everything else is a
:class:`Transaction`: comparisons, and operations for either way they may end. A conditional put
is a transaction of one comparison and one put, a lock's acquisition one of one operation.
What has to be done step by step is a :class:`Sequential`, whose rules stand in steps.py.

1. A transaction is all or nothing: when one of its operations is refused, none has happened.
2. What an operation depends on stands in it, the time too (``Transaction.time``): every node comes
   to the same end (R7).
3. No two operations of a branch write the same key, so each can be judged by the state before.

Nothing here has state: any thread may use anything.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from conure.steps import Done, Step

__all__ = [
    "MAX_HELD",
    "MAX_KEY_BYTES",
    "MAX_VALUE_BYTES",
    "READ_BYTES",
    "WRITTEN_BYTES",
    "Acquire",
    "Committed",
    "Compare",
    "Delete",
    "DeleteRange",
    "EndSession",
    "Event",
    "EventKind",
    "Expire",
    "Get",
    "Increment",
    "Item",
    "OpenSession",
    "Operation",
    "Outcome",
    "Put",
    "Range",
    "Refusal",
    "Relation",
    "Release",
    "RenewSession",
    "Result",
    "Sequential",
    "Target",
    "Touch",
    "Transaction",
    "as_text",
    "as_texts",
    "prefix_end",
]

MAX_KEY_BYTES: Final = 1024
"""The longest key anybody may have; the pages of every store have room for it."""

MAX_HELD: Final = 1_000
"""Keys that a session holds, about: who asks for many at a time may get some more."""

MAX_VALUE_BYTES: Final = 64 << 20
"""The longest value that any node may be set to take (``max_value_bytes``), and the values of one
command together: no entry makes a longer one."""

READ_BYTES: Final = 8 << 20
"""What the reads of one transaction return, about; every node holds it in memory, and with an
idempotency key it becomes one record. The value that goes beyond it is the last one."""

WRITTEN_BYTES: Final = 2 << 20
"""What the steps of one sequential transaction write, at least: one value may always be as long as
the entry allows (``Sequential.longest``)."""


class Target(IntEnum):
    """What of a key is compared. A key that doesn't exist has version and revisions 0, no value."""

    VALUE = 0
    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3


class Relation(IntEnum):
    """How it has to stand to the operand."""

    EQUAL = 0
    NOT_EQUAL = 1
    LESS = 2
    GREATER = 3


class Compare(NamedTuple):
    """A condition on a key; *operand* is bytes for a value, else a number.

    No relation but NOT_EQUAL holds between the value of a key that doesn't exist and an operand.
    """

    key: bytes
    target: Target
    relation: Relation
    operand: bytes | int


# -- operations ----------------------------------------------------------------------------------


class Put(NamedTuple):
    """Set a key. *ttl* in milliseconds, 0 for ever; *keep_ttl* leaves the expiry as it is."""

    key: bytes
    value: bytes
    ttl: int = 0
    keep_ttl: bool = False


class Delete(NamedTuple):
    """Remove a key, if it is there."""

    key: bytes


class DeleteRange(NamedTuple):
    """Remove all keys from *start* up to but not including *end*; None: without end.

    Refused if there are more than *limit*, unless that is 0.
    """

    start: bytes
    end: bytes | None
    limit: int = 0


class Get(NamedTuple):
    """Read a key, as the operations before this one have left it."""

    key: bytes


class Range(NamedTuple):
    """Read up to *limit* keys from *start* up to but not including *end*, or down from there."""

    start: bytes
    end: bytes | None
    limit: int
    reverse: bool = False
    keys_only: bool = False


class Increment(NamedTuple):
    """Add to a value that is a decimal number of 64 bits, signed; 0 if there is none.

    The expiry stays. Refused if the value is no such number, or the sum isn't.
    """

    key: bytes
    by: int


class Touch(NamedTuple):
    """Set when a key expires and nothing else; *ttl* in milliseconds, 0: never.

    Refused if the key doesn't exist.
    """

    key: bytes
    ttl: int


class Acquire(NamedTuple):
    """Let a session hold a key, and set its value unless that is None.

    Refused if another session holds it, or this one doesn't exist.
    """

    key: bytes
    session: bytes
    value: bytes | None


class Release(NamedTuple):
    """Let go of a key, and set its value unless that is None. Refused to all but its holder."""

    key: bytes
    session: bytes
    value: bytes | None


class OpenSession(NamedTuple):
    """Begin a session under an unused random ID, to end *ttl* milliseconds after its last renewal.

    What it holds at its end is let go, or with *deletes* removed.
    """

    session: bytes
    ttl: int
    deletes: bool
    name: bytes


class RenewSession(NamedTuple):
    """Let a session's time begin anew. Refused if it doesn't exist."""

    session: bytes


class EndSession(NamedTuple):
    """End a session. Refused if it doesn't exist."""

    session: bytes


class Expire(NamedTuple):
    """End what is due at the transaction's time, the first *limit* of it: keys, sessions, and the
    remembered outcomes of idempotent requests."""

    limit: int


Operation = (
    Put
    | Delete
    | DeleteRange
    | Get
    | Range
    | Increment
    | Touch
    | Acquire
    | Release
    | OpenSession
    | RenewSession
    | EndSession
    | Expire
)


class Transaction(NamedTuple):
    """Operations, chosen by comparisons: *success* if all of them hold, else *failure*.

    *time* is the leader's, in milliseconds since the Unix epoch; the state machine's clock never
    goes back to it. With an *idempotency_key* the outcome is remembered for *window* milliseconds,
    and a repetition with the same *fingerprint* gets it again and changes nothing.
    """

    compares: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()
    time: int = 0
    idempotency_key: bytes = b""
    fingerprint: bytes = b""
    window: int = 0


class Sequential(NamedTuple):
    """Steps that are done in order, if all comparisons hold before the first; else nothing is done.

    No value may be of more than *longest* bytes, which are MAX_VALUE_BYTES at most. The rest is as
    in a :class:`Transaction`.
    """

    compares: tuple[Compare, ...]
    steps: tuple[Step, ...]
    longest: int
    time: int = 0
    idempotency_key: bytes = b""
    fingerprint: bytes = b""
    window: int = 0


# -- what came of it -----------------------------------------------------------------------------


class Refusal(IntEnum):
    """Why a transaction changed nothing though its comparisons were no obstacle to it."""

    NONE = 0
    NOT_A_NUMBER = 1
    NUMBER_TOO_LARGE = 2
    KEY_NOT_FOUND = 3
    SESSION_NOT_FOUND = 4
    HELD_BY_ANOTHER = 5
    NOT_THE_HOLDER = 6
    KEY_REUSED = 7  # the idempotency key, for another request
    TOO_MANY_KEYS = 8


class EventKind(IntEnum):
    """What happened to a key."""

    PUT = 0
    DELETE = 1
    EXPIRE = 2


class Event(NamedTuple):
    """A change of one key, as watchers see it; *value* is b"" and *version* 0 if it is gone.

    Events of one revision stand in the order of its operations. A sixth item, where there is one,
    is the value before: None if there was no key.
    """

    revision: int
    kind: EventKind
    key: bytes
    value: bytes
    version: int


class Item(NamedTuple):
    """A key and its record as an operation found or left it; *value* None if it wasn't asked for,
    or was too much for one transaction.

    *expiry* in milliseconds since the Unix epoch, 0: never.
    """

    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int
    version: int
    expiry: int = 0


class Result(NamedTuple):
    """What one operation did.

    *total*: how many keys it removed, found (of a range: all there are, within *limit*) or ended;
    *more*: whether a limit cut it short, or a get's value was left out; *items*: what a get or
    range read, what a put, an increment, a touch or an acquisition left; *number*: an increment's
    sum, or the fencing token of an acquisition.
    """

    total: int = 0
    more: bool = False
    items: tuple[Item, ...] = ()
    number: int = 0


class Outcome(NamedTuple):
    """How a transaction ended, sequential or not.

    *revision* is the log index of the entry that did it: of the first one, if this is the answer to
    a repetition (*repeated*). *results* has one for each operation of the branch that was taken;
    none if it was refused. *refused_key* names whose operation that was. Of a comparison that
    failed, *current* is what its key's revision is, 0 if there is none.

    Of a sequential transaction *done* has what came of each step, instead of *results*, and nothing
    if a comparison failed; *time* is what the state's clock was set to by then, 0 of any other.
    """

    revision: int
    succeeded: bool
    results: tuple[Result, ...] = ()
    refusal: Refusal = Refusal.NONE
    refused_key: bytes = b""
    current: int = 0
    repeated: bool = False
    done: tuple[Done, ...] = ()
    time: int = 0


class Committed(NamedTuple):
    """Commands that were committed and applied together.

    The command at position *i* of its batch has the revision *first* + *i*. *outcomes* has those
    of the transactions among them, by revision.
    """

    first: int
    outcomes: Mapping[int, Outcome]


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the end of the range of all keys that begin with *prefix*; None: without end."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def as_text(key: bytes, value: bytes | None) -> tuple[str, str | None, bool]:
    """Return a key and its value as they stand in JSON, and whether as base64.

    Both are UTF-8, or both base64. None as a value stays None.
    """
    try:
        return key.decode(), None if value is None else value.decode(), False
    except UnicodeDecodeError:
        return b64encode(key).decode(), None if value is None else b64encode(value).decode(), True


def as_texts(*parts: bytes | None) -> tuple[list[str | None], bool]:
    """Return keys and values as they stand in one object of JSON, and whether as base64.

    All are UTF-8, or all base64. None stays None.
    """
    try:
        return [None if part is None else part.decode() for part in parts], False
    except UnicodeDecodeError:
        return [None if part is None else b64encode(part).decode() for part in parts], True
