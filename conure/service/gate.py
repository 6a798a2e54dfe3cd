"""Who may do what: the one question that every entry point of the service asks first.

A :class:`Gate` is asked with who calls, what is about to be done and to which keys, before anything
has happened: a request that is refused has changed nothing. What a command means for keys is
spelled out here (:func:`steps_of`), for all protocols alike:

- a comparison reads its key, and so does each operation whose outcome shows what was stored:
  an acquisition, too, and a put that keeps the time there was; so does a watch with values before;
- a step of a sequential transaction reads its key if its outcome depends on what was stored, and
  one that moves a record writes both keys;
- an acquisition writes its key, so a session holds no key that its caller may not delete;
- what a session with the behavior ``delete`` holds is removed when it ends, and which keys that
  will be is known only when the log comes to it: who ends one has to be allowed all keys.

Nothing here has state: any thread may use anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol

from conure.commands import (
    Acquire,
    Delete,
    DeleteRange,
    EndSession,
    Get,
    Increment,
    OpenSession,
    Operation,
    Put,
    Range,
    Release,
    RenewSession,
    Sequential,
    Touch,
    Transaction,
)
from conure.service.backend import Command
from conure.steps import ALWAYS, Check, Erase, Life, Look, Move, Read, Write
from conure.steps import Step as SequentialStep

__all__ = ["ANONYMOUS", "NO_KEYS", "Action", "AllowAll", "Caller", "Gate", "Step", "steps_of"]

ANONYMOUS = "anonymous"
"""The name of a caller who has said no other."""

NO_KEYS = (b"", b"")
"""The range of what concerns no key."""

_ALL_KEYS = (b"", None)
_BLIND = (Life.FOREVER, Life.TTL, Life.AT)  # expiries that don't depend on the one there is


class Caller(NamedTuple):
    """Who asks: a name, and the address and port of the connection, for a log."""

    name: str
    address: str


class Action(Enum):
    """What is done to a range of keys."""

    READ = "read"
    WRITE = "write"
    WATCH = "watch"
    SESSION = "session"  # begun, seen, renewed or ended: of no key
    BACKUP = "backup"
    PUBLISH = "publish"  # to a channel, which stands where keys do
    LISTEN = "listen"  # to a channel, or to all that begin as a pattern does


class Gate(Protocol):
    """Decides who may do what. The reactor thread only; must not block."""

    def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
        """Return if *who* may do that to all keys from *start* up to but not including *end*,
        None: without end. Raises Forbidden."""


class AllowAll:
    """The gate that lets everybody pass. The service does not even ask it."""

    def allow(self, who: Caller, action: Action, start: bytes, end: bytes | None) -> None:
        """Return."""


Step = tuple[Action, bytes, bytes | None]
"""What is done to the keys from the first up to but not including the second; None: without end."""


def steps_of(command: Command, deletes: Callable[[bytes], bool]) -> Iterator[Step]:
    """Yield what a command does to which keys, or may do, whichever way it ends.

    *deletes* tells whether the keys that a session holds may be removed with it.
    """
    assert not isinstance(command, bytes), "the gate is asked before a command is encoded"
    if not isinstance(command, Transaction | Sequential):
        yield (Action.WRITE, *_only(command[0]))
        return
    for compare in command.compares:
        yield (Action.READ, *_only(compare.key))
    if isinstance(command, Sequential):
        for step in command.steps:
            yield from _steps_of_step(step)
        return
    for operation in (*command.success, *command.failure):
        yield from _steps_of_operation(operation, deletes)


def _steps_of_operation(operation: Operation, deletes: Callable[[bytes], bool]) -> Iterator[Step]:
    match operation:
        case Get(key):
            yield (Action.READ, *_only(key))
        case Range(start, end):
            yield (Action.READ, start, end)
        case DeleteRange(start, end):
            yield (Action.WRITE, start, end)
        case Increment(key) | Touch(key) | Acquire(key) | Put(key, keep_ttl=True):
            yield (Action.READ, *_only(key))
            yield (Action.WRITE, *_only(key))
        case Put(key) | Delete(key) | Release(key):
            yield (Action.WRITE, *_only(key))
        case EndSession(session):
            yield (Action.SESSION, *NO_KEYS)
            if deletes(session):
                yield (Action.WRITE, *_ALL_KEYS)
        case OpenSession() | RenewSession():
            yield (Action.SESSION, *NO_KEYS)
        case _:  # what nodes propose to themselves is no request
            raise AssertionError(operation)


def _steps_of_step(step: SequentialStep) -> Iterator[Step]:
    """Yield what a step does. That it was there is told of each key that is written or removed."""
    only = _only(step.key)
    match step:
        case Read() | Look() | Check():
            yield (Action.READ, *only)
        case Write(_, _, condition, (life, _)) if condition == ALWAYS and life in _BLIND:
            yield (Action.WRITE, *only)
        case Erase(_, condition) if condition == ALWAYS:
            yield (Action.WRITE, *only)
        case Move(_, target, _, copies):
            yield (Action.READ, *only)
            if not copies:
                yield (Action.WRITE, *only)
            yield (Action.READ, *_only(target))
            yield (Action.WRITE, *_only(target))
        case _:
            yield (Action.READ, *only)
            yield (Action.WRITE, *only)


def _only(key: bytes) -> tuple[bytes, bytes]:
    return key, key + b"\0"
