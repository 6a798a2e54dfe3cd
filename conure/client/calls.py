"""One request to whoever can answer it: servers, redirects, repetitions, pauses, errors.

What is repeated and what never is, and in which cases the outcome is unknown, stands in the table
at the head of the package; ``_Attempts`` and ``_error`` are that table. Used by all of the client
that asks a server. Nothing here knows what a request means, but for the words of a few refusals.
Any thread.
"""

from __future__ import annotations

import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from http.client import HTTPException

from conure.client.connections import (
    Answer,
    Connection,
    ConnectionFailed,
    Pool,
    Request,
    describe,
    time_left,
)
from conure.client.model import NOT_A_SERVER, to_object
from conure.client.texts import Json
from conure.clienttls import ClientTls
from conure.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    Conflict,
    ConureError,
    DiskFull,
    KeyNotFound,
    KeyReused,
    MemberNotFound,
    NotFound,
    NotImplementedHere,
    OutcomeUnknown,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    TargetTooLong,
    TooManyRequests,
    Unavailable,
    Untrusted,
)
from conure.tlswords import is_refusal
from conure.values import is_https, parse_server, redirected_to

__all__ = ["DEFAULT_SERVER", "FIRST_PAUSE", "LONGEST_PAUSE", "Calls"]

DEFAULT_SERVER = "http://127.0.0.1:8081"

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds before a server is asked a second time; each pause is twice the one before, at most."""

_CONNECT_TIME = 1.0  # seconds
_NO_SESSION = "there is no such session"
_ERRORS: dict[int, Callable[[str], ConureError]] = {
    400: BadRequest,
    409: Conflict,
    413: PayloadTooLarge,
    414: TargetTooLong,
    501: NotImplementedHere,
    507: DiskFull,
}


class Calls:
    """Asks the servers of a cluster; *timeout*, in seconds, bounds each call with all its retries.

    *servers* are base URLs, of which the first is asked first. With *exactly_once* plain writes
    carry an Idempotency-Key as well. *tls* makes what servers of https are asked by, once there is
    one. Any thread. Raises ConfigError for a server that is none, and for files that are no good.
    """

    def __init__(
        self,
        servers: Sequence[str],
        timeout: float,
        *,
        exactly_once: bool,
        tls: Callable[[], ClientTls] = ClientTls,
    ) -> None:
        if not servers:
            raise ConfigError("server", "none given", f"name one, such as {DEFAULT_SERVER}")
        self.servers = [_base_url(server) for server in servers]
        self.timeout = timeout
        self.leader = self.nearest = self.servers[0]
        """Who is asked first for what only a leader does, and for what anybody does."""
        self._exactly_once = exactly_once
        self._lock = threading.Lock()  # guards the next two
        self._make_tls = tls
        self._tls: ClientTls | None = None
        self._pool = Pool(self.trust)
        if any(map(is_https, self.servers)):
            self.trust()

    def read_object(self, target: str, *, any_server: bool = True) -> Json:
        """Return the JSON object that a GET is answered by. Raises ConureError, as ``call``."""
        return to_object(
            self.call(Request("GET", target, is_read=True, any_server=any_server)).body
        )

    def write(
        self, method: str, target: str, body: bytes | None = None, *, is_plain: bool = False
    ) -> Answer:
        """Carry out a write, with an Idempotency-Key unless it is a plain one."""
        if is_plain and not self._exactly_once:
            return self.call(Request(method, target, body))
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self.call(Request(method, target, body, headers=key, repeatable=True))

    def call(self, request: Request, server: str = "") -> Answer:
        """Return the answer 200, after as many attempts as are safe and in time.

        *server* is asked first, or whoever is best. Raises the ConureError that the answer stands
        for, Unavailable if nobody has answered and nothing was changed, and OutcomeUnknown.
        """
        seconds = self.timeout if request.timeout is None else request.timeout
        attempts = _Attempts(request, seconds + request.wait)
        server = server or (self.nearest if request.any_server else self.leader)
        while True:
            attempts.begin(server)
            try:
                answer = self._exchange(server, request, attempts.deadline)
            except ConnectionFailed as failure:
                attempts.take_failure(server, failure, self.servers)
                server = self._after(server, request)
                continue
            if answer.status == 200:
                self._remember(server, request)
                return answer
            if answer.status == 307:
                leader = redirected_to(answer.field("Location"), server)
                attempts.problem = f"{server} redirects to {answer.field('Location') or 'nowhere'}"
                server = leader or self._after(server, request)
                continue
            error = _error(answer, request)
            attempts.take_error(error)
            # Nobody else can take the load off a leader.
            if request.any_server or not isinstance(error, TooManyRequests):
                server = self._after(server, request)

    def following(self, server: str) -> str:
        """Return the server that was named after *server*; the first after the last."""
        position = self.servers.index(server) + 1 if server in self.servers else 0
        return self.servers[position % len(self.servers)]

    def put_back(self, server: str, connection: Connection) -> None:
        """Let the connection of a stream rest that was read to its end."""
        self._pool.put_back(server, connection)

    def close(self) -> None:
        """Close the connections that rest, and those in use when their call ends."""
        self._pool.close()

    def trust(self) -> ClientTls:
        """Return what servers of https are asked by; it is made once. Raises ConfigError."""
        with self._lock:
            if self._tls is None:
                self._tls = self._make_tls()
            return self._tls

    def _after(self, server: str, request: Request) -> str:
        """Return whom to ask after *server* has failed; a leader that failed is forgotten."""
        following = self.following(server)
        self._remember(following, request)
        return following

    def _remember(self, server: str, request: Request) -> None:
        if request.any_server:
            self.nearest = server
        else:
            self.leader = server

    def _exchange(self, server: str, request: Request, deadline: float) -> Answer:
        connection = self._pool.take(server)
        # A server that hangs must leave time to ask another one, as long as that is allowed.
        alone = len(self.servers) == 1 and server == self.servers[0]
        left = time_left(deadline)
        share = left if alone else request.wait + max(left - request.wait, 0.0) / 2
        # Behind one address there may be several servers: the next attempt meets another one.
        connection.limit(min(share, _CONNECT_TIME))
        try:
            connection.open()
            connection.limit(
                share if request.is_read or request.repeatable else time_left(deadline)
            )
            answer = connection.exchange(request)
        except (OSError, HTTPException) as error:
            connection.close()
            why, was_sent = describe(error), connection.was_sent
            raise ConnectionFailed(why, was_sent, is_refusal=is_refusal(error)) from error
        except BaseException:  # such as KeyboardInterrupt: the answer is still to come
            connection.close()
            raise
        if answer.opened is not None:
            pass  # whoever reads it closes it
        elif answer.status == 503:
            connection.close()
        else:
            self._pool.put_back(server, connection)
        return answer


class _Attempts:
    """The attempts at one request: how long there is, and what came of them so far."""

    def __init__(self, request: Request, seconds: float) -> None:
        self._request = request
        self._seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.problem = ""
        self._kind: type[Unavailable] = Unavailable
        self._is_unsure = False  # an attempt may have done it
        self._asked: set[str] = set()
        self._untrusted: set[str] = set()
        self._pause = FIRST_PAUSE
        self._least_pause = 0.0

    def begin(self, server: str) -> None:
        """Wait, if this one was asked before. Raises what is the case when the time is over."""
        if server in self._asked:
            pause = max(self._pause * random.uniform(0.5, 1.0), self._least_pause)
            time.sleep(min(pause, time_left(self.deadline)))
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._least_pause = 0.0
            self._asked.clear()
        self._asked.add(server)
        if self.problem and not time_left(self.deadline):
            problem = f"{self.problem} (gave up after {self._seconds:g} s)"
            raise _unknown(problem) if self._is_unsure else self._kind(problem)

    def take_failure(self, server: str, failure: ConnectionFailed, servers: Sequence[str]) -> None:
        """Take note of a lost connection. Raises OutcomeUnknown, or Untrusted if none of *servers*
        can be trusted, if that is the end."""
        self.problem = problem = f"{server}: {failure}"
        self._kind = Unavailable
        if not failure.is_refusal:
            self._untrusted.discard(server)
        elif not self._is_unsure:
            self._untrusted.add(server)
            if self._untrusted.issuperset(servers):
                raise Untrusted(problem) from failure
        if failure.was_sent and not self._request.is_read:
            if not self._request.repeatable:
                raise _unknown(problem) from failure
            self._is_unsure = True

    def take_error(self, error: ConureError) -> None:
        """Take note of an error that was answered; raise it if it is the end."""
        if isinstance(error, OutcomeUnknown) and self._request.repeatable:
            self._is_unsure = True
        elif self._is_unsure and isinstance(error, DiskFull | NotImplementedHere):
            raise _unknown(str(error)) from error  # that is true of this attempt only
        elif not isinstance(error, Unavailable):
            raise error
        self.problem = str(error)
        self._kind = Unavailable
        if isinstance(error, TooManyRequests):
            self._kind = TooManyRequests
            self._least_pause = error.retry_after


# -- servers ---------------------------------------------------------------------------------------


def _base_url(server: str) -> str:
    try:
        return parse_server(server)
    except ValueError as error:
        why = f"{error}; write it like {DEFAULT_SERVER}"
        raise ConfigError("server", repr(server), why) from None


# -- errors ----------------------------------------------------------------------------------------


def _unknown(problem: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{problem}; the write may or may not have been carried out")


def _error(answer: Answer, request: Request) -> ConureError:
    """Return the exception for an answer that is neither success nor redirect."""
    status = answer.status
    line = answer.body[:1000].decode(errors="replace").strip().partition("\n")[0]
    message = line or f"the server answered {status} and no reason"
    if 400 <= status < 500:
        return _refusal(answer, request, message)
    if status in _ERRORS:
        return _ERRORS[status](message)
    if status == 503 or (status in (502, 504) and request.is_read):
        return Unavailable(message)
    if status >= 500 and not request.is_read:
        return OutcomeUnknown(message)
    return ConureError(message if status >= 500 else NOT_A_SERVER)


def _not_found(message: str, request: Request) -> ConureError:
    if request.target.startswith("/kv") and message == "key not found":
        return KeyNotFound()
    if message.startswith(_NO_SESSION):
        return NotFound(message)
    return MemberNotFound(message) if request.method == "POST" else RequestError(NOT_A_SERVER)


def _refusal(answer: Answer, request: Request, message: str) -> ConureError:
    status = answer.status
    oldest = re.search(r"\brevision (\d+)", message) if status == 410 else None
    if oldest:
        return Compacted(int(oldest[1]))
    if status == 404:
        return _not_found(message, request)
    if status == 412:
        revision = answer.field("ETag").strip('"')
        return PreconditionFailed(int(revision) if revision.isdecimal() else 0)
    if status == 422:
        return KeyReused()
    if status == 429:
        seconds = answer.field("Retry-After")
        return TooManyRequests(message, int(seconds) if seconds.isdecimal() else 1)
    return _ERRORS.get(status, RequestError)(message)
