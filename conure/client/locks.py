"""Sessions, which a thread renews, and locks, each of which is a session that holds a key.

A lock is lost when its session may have ended by the servers' time, which this file never takes to
be later than it is: a session's life counts from before its opening or renewal was asked for.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from types import TracebackType

from conure.client.calls import Calls
from conure.client.connections import Request, time_left
from conure.client.model import Closing, LockHeld, LockLost, to_object, understanding
from conure.client.texts import (
    Text,
    key_target,
    milliseconds,
    quoted,
    readable,
    session_target,
    to_bytes,
    to_whole,
)
from conure.errors import (
    Conflict,
    ConureError,
    KeyNotFound,
    NotFound,
    PreconditionFailed,
    RequestError,
)

__all__ = ["Lock", "Session", "end_session", "open_session", "renew_session"]

_LONG_POLL = 20.0  # seconds that a lock waits at a time


def open_session(calls: Calls, ttl: float, *, name: str, behavior: str) -> str:
    """Begin a session that ends *ttl* seconds after its last renewal, and return its ID."""
    target = f"/session?ttl={milliseconds(ttl)}&behavior={quoted(behavior, 'behavior')}"
    if name:
        target += "&name=" + quoted(name, "name")
    # One that nobody learned of does no harm, and ends by itself.
    answer = calls.call(Request("POST", target, repeatable=True))
    with understanding:
        return str(to_object(answer.body)["id"])


def renew_session(calls: Calls, session: str, timeout: float | None = None) -> None:
    """Let a session's time begin anew. Raises NotFound if it has ended.

    *timeout*, in seconds, in place of that of the calls, if it is shorter.
    """
    seconds = min(calls.timeout, calls.timeout if timeout is None else timeout)
    calls.call(Request("PUT", session_target(session), repeatable=True, timeout=seconds))


def end_session(calls: Calls, session: str) -> None:
    """End a session. Raises NotFound if it has ended."""
    calls.write("DELETE", session_target(session))


class Session(Closing):
    """A session that a thread renews until it is closed; see ``Client.session``.

    ``id`` is what ``Client.put`` takes to acquire keys. Any thread may call anything.
    """

    def __init__(self, calls: Calls, ttl: float, name: str, behavior: str) -> None:
        self.ttl = ttl
        self._calls = calls
        begun = time.monotonic()
        self.id = open_session(calls, ttl, name=name, behavior=behavior)
        self._until = begun + ttl  # by the servers' time it lasts a little longer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="conure-session", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the session has ended, or could not be renewed in time and may have."""
        return time.monotonic() >= self._until

    def acquire(self, key: Text, value: Text = b"", *, if_revision: int | None = None) -> int:
        """Hold *key*, set its value, and return the fencing token.

        Raises Conflict if another session holds it, NotFound if this one has ended, and
        PreconditionFailed.
        """
        target = f"{key_target(key)}&acquire={quoted(self.id, 'session')}"
        if if_revision is not None:
            target += f"&cas={to_whole(if_revision, 'if_revision')}"
        answer = self._calls.write("PUT", target, to_bytes(value, "value"))
        with understanding:
            return int(answer.field("X-Conure-Fencing-Token"))

    def release(self, key: Text, value: Text | None = None) -> None:
        """Let go of *key*, and set its value unless that is None.

        Raises Conflict if it isn't held.
        """
        target = f"{key_target(key)}&release={quoted(self.id, 'session')}"
        self._calls.write("PUT", target, None if value is None else to_bytes(value, "value"))

    def close(self) -> None:
        """End the session. Raises NotFound if it has ended by itself."""
        self._ended.set()
        self._thread.join()
        self._until = 0.0
        end_session(self._calls, self.id)

    def _renew(self) -> None:
        pause = self.ttl / 3
        while not self._ended.wait(pause):
            begun = time.monotonic()
            if begun >= self._until:
                return
            try:
                renew_session(self._calls, self.id, timeout=self._until - begun)
            except RequestError:  # it is no more
                self._until = 0.0
                return
            except ConureError:
                pause = self.ttl / 20
            else:
                self._until = begun + self.ttl
                pause = self.ttl / 3


class Lock:
    """A lock for a ``with`` block; see ``Client.lock``. For one thread, again and again.

    Those who wait are woken when it is let go, and whoever comes first gets it.
    """

    def __init__(self, calls: Calls, name: bytes, ttl: float, timeout: float | None) -> None:
        self._calls = calls
        self._name = name
        self._ttl = ttl
        self._timeout = timeout
        self._session: Session | None = None

    @property
    def lost(self) -> bool:
        """Whether it is not held, or may have been lost since."""
        return self._session is None or self._session.lost

    def acquire(self) -> int:
        """Wait for the lock and return its fencing token.

        Raises LockHeld after *timeout*, Conflict if the name is that of a key in other use, and
        Unavailable if the cluster can't be reached.
        """
        if self._session is not None:
            raise RuntimeError("the lock is held already")
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        holder = f"{socket.gethostname()}:{os.getpid()}"
        while True:
            session = Session(self._calls, self._ttl, holder, "delete")
            try:
                token = self._wait(session, holder, deadline)
            except NotFound:  # it was lost while it waited
                continue
            except BaseException:
                with contextlib.suppress(ConureError):  # it ends by itself
                    session.close()
                raise
            self._session = session
            return token

    def release(self) -> None:
        """Let go of it. Raises LockLost, and Unavailable if it will only end by itself."""
        session, self._session = self._session, None
        if session is None:
            raise RuntimeError("the lock is not held")
        try:
            session.close()
        except NotFound as error:
            raise LockLost(
                f"the lock {readable(self._name)} was lost while it was in use; "
                "another one may have held it since"
            ) from error

    def __enter__(self) -> int:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The block's own error says more than what became of the lock.
        with contextlib.suppress(*([ConureError] if error is not None else [])):
            self.release()

    def _wait(self, session: Session, holder: str, deadline: float | None) -> int:
        while True:
            try:
                # It must not exist: the key of a lock goes with it, and other data must not.
                return session.acquire(self._name, holder, if_revision=0)
            except PreconditionFailed:
                self._wait_for_end(deadline)
            except Conflict:  # it is held, and somebody has deleted its key
                self._check_time(deadline)
                time.sleep(random.uniform(0.2, 0.4))

    def _wait_for_end(self, deadline: float | None) -> None:
        """Wait until the key doesn't exist."""
        target = key_target(self._name) + "&meta=true"
        index = None
        while True:
            seconds = 0.0
            if index is not None:
                left = _LONG_POLL if deadline is None else time_left(deadline)
                seconds = min(left, _LONG_POLL)
            wait = "" if index is None else f"&index={index}&wait={milliseconds(seconds)}"
            try:
                answer = self._calls.call(Request("GET", target + wait, is_read=True, wait=seconds))
            except KeyNotFound:
                return
            if "session" not in to_object(answer.body):
                raise Conflict(
                    f"the key {readable(self._name)} exists and no session holds it; "
                    "a lock needs a name of its own"
                )
            index = answer.revision
            self._check_time(deadline)

    def _check_time(self, deadline: float | None) -> None:
        if deadline is not None and not time_left(deadline):
            raise LockHeld(
                f"another one holds the lock {readable(self._name)} (waited {self._timeout:g} s)"
            )
