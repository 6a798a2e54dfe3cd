"""The Python client: speaks to any server of a cluster, finds the leader, keeps connections.

    from client import Client

    with Client(["http://10.0.0.5:8081", "http://10.0.0.6:8081"]) as db:
        db.put("greeting", "hello")
        assert db.get("greeting") == b"hello"

What it repeats on its own, within the time limit, and what it never does:

========================================= ============================== =====================
what happened                             reads                          writes
========================================= ============================== =====================
no byte of the request was sent           repeated                       repeated
307, the leader is elsewhere              followed                       followed
503, nothing was changed                  repeated                       repeated
the connection was lost after sending     repeated                       OutcomeUnknown
504 or another 5xx, or no answer in time  repeated (500, 501, 507: no)   OutcomeUnknown
4xx, 501, 507                             the matching error             the matching error
========================================= ============================== =====================

1. A write whose outcome isn't known is never sent again: the first one may have been committed,
   and a second one would undo what somebody else wrote in between. Only the caller can tell
   whether repeating it is harmless.
2. Every server that was named is asked in turn, beginning with the last known leader. Before a
   server is asked a second time the client waits, longer each time, and not in step with others.
3. Redirects are followed to ``http`` addresses only, and only their host and port are used.
4. A resting connection is looked at before it is used again. One that the server has closed is
   dropped then, while no byte is on its way.

Threads: any number may share a client. Connections rest in a pool; a request takes one out, or
opens one if there is none, and puts it back, so there are as many as there were requests at one
time. The lock guards the pool and is never held during input or output.
"""

from __future__ import annotations

import json
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from errors import (
    BadRequest,
    ConfigError,
    Conflict,
    ConureError,
    DiskFull,
    KeyNotFound,
    MemberNotFound,
    NotImplementedHere,
    OutcomeUnknown,
    PayloadTooLarge,
    RequestError,
    TargetTooLong,
    Unavailable,
)

__all__ = ["DEFAULT_SERVER", "DEFAULT_TIMEOUT", "Client"]

DEFAULT_SERVER = "http://127.0.0.1:8081"
DEFAULT_TIMEOUT = 5.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds
_NOT_A_SERVER = "this is not what a ConureDB server answers; check the server's address"
_URL = re.compile(
    r"http://(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)"
    r"(?::(\d{1,5}))?([/?][^\s]*)?",
    re.ASCII,
)
_ERRORS: dict[int, Callable[[str], ConureError]] = {
    400: BadRequest,
    409: Conflict,
    413: PayloadTooLarge,
    414: TargetTooLong,
    501: NotImplementedHere,
    507: DiskFull,
}


class Client:
    """A connection to a cluster. *timeout*, in seconds, bounds each call with all its retries.

    *servers* are base URLs. Keys and values are bytes, or text that is sent as UTF-8. Every
    method may be called from any thread and raises a :class:`~errors.ConureError`:
    ``Unavailable`` if nobody could answer in time (and nothing was changed), ``OutcomeUnknown``
    for a write that may or may not have happened, or what the server said.

    Raises ConfigError for a server that is no base URL.
    """

    def __init__(
        self, servers: str | Sequence[str] = DEFAULT_SERVER, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        named = [servers] if isinstance(servers, str) else list(servers)
        if not named:
            raise ConfigError("server", "none given", f"name one, such as {DEFAULT_SERVER}")
        self._servers = [_base_url(server) for server in named]
        self._timeout = timeout
        self._leader = self._nearest = self._servers[0]
        self._lock = threading.Lock()
        self._resting: dict[str, list[_Connection]] = {}
        self._closed = False

    @property
    def leader(self) -> str:
        """The base URL of the server that is asked first for what only a leader does."""
        return self._leader

    def put(self, key: str | bytes, value: str | bytes) -> None:
        """Store *value* under *key*."""
        self._call(_Request("PUT", _kv(key), _bytes(value)))

    def get(
        self, key: str | bytes, stale: bool = False, max_stale: float | None = None
    ) -> bytes | None:
        """Return the value of *key*, or None.

        The read is linearizable; with *stale* it is what the server that is asked knows, which
        may be old, but needs neither a leader nor a quorum. *max_stale* goes with *stale*: only
        servers that heard the leader within so many seconds may answer.
        """
        target = _kv(key) + "&stale=true" * stale
        if max_stale is not None:
            target += f"&max_stale={round(max_stale * 1000)}ms"
        request = _Request("GET", target, is_read=True, any_server=stale)
        try:
            return self._call(request)
        except KeyNotFound:
            return None

    def delete(self, key: str | bytes) -> None:
        """Remove *key*, whether it exists or not."""
        self._call(_Request("DELETE", _kv(key)))

    def status(self) -> dict[str, Any]:
        """Return what the first server that answers says of itself (``GET /status``)."""
        return self._read_object("/status")

    def raft_config(self) -> dict[str, Any]:
        """Return the members of the cluster (``GET /raft/config``)."""
        return self._read_object("/raft/config")

    def raft_stats(self) -> dict[str, Any]:
        """Return the state of consensus at the first server that answers (``GET /raft/stats``)."""
        return self._read_object("/raft/stats")

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str = "",
        *,
        voter: bool = True,
        role: str = "",
    ) -> None:
        """Make a node a member: *raft_address* is host:port, *http_address* a base URL.

        What is left empty is what the node says of itself.
        """
        facts: dict[str, Any] = {"ID": node_id, "RaftAddr": raft_address}
        if http_address:
            facts["HTTPAddr"] = http_address
        if not voter:
            facts["NonVoter"] = True
        if role:
            facts["Role"] = role
        self._call(_Request("POST", "/join", json.dumps(facts).encode()))

    def remove(self, node_id: str, *, force: bool = False) -> None:
        """End a node's membership. Raises MemberNotFound for an ID nobody has.

        Raises Conflict if too few of the voters that would be left answer at this moment; *force*
        insists.
        """
        facts: dict[str, Any] = {"ID": node_id}
        if force:
            facts["Force"] = True
        self._call(_Request("POST", "/remove", json.dumps(facts).encode()))

    def hand_over(self, node_id: str = "") -> None:
        """Let another voter lead: the one named, or whoever is most up to date."""
        facts = {"ID": node_id} if node_id else {}
        self._call(_Request("POST", "/leader", json.dumps(facts).encode()))

    def close(self) -> None:
        """Close the connections that rest; those in use are closed when their call ends."""
        with self._lock:
            self._closed = True
            resting, self._resting = self._resting, {}
        for connections in resting.values():
            for connection in connections:
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- one call ----------------------------------------------------------------------------------

    def _read_object(self, target: str) -> dict[str, Any]:
        body = self._call(_Request("GET", target, is_read=True, any_server=True))
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConureError(_NOT_A_SERVER)
        return value

    def _call(self, request: _Request) -> bytes:
        """Return the body of the answer 200, after as many attempts as are safe and in time."""
        deadline = time.monotonic() + self._timeout
        server = self._nearest if request.any_server else self._leader
        asked: set[str] = set()
        pause = _FIRST_PAUSE
        problem = ""
        while True:
            if server in asked:
                time.sleep(min(pause * random.uniform(0.5, 1.0), _left(deadline)))
                pause = min(pause * 2, _LONGEST_PAUSE)
                asked.clear()
            asked.add(server)
            if problem and not _left(deadline):
                raise Unavailable(f"{problem} (gave up after {self._timeout:g} s)")
            try:
                answer = self._exchange(server, request, deadline)
            except _ConnectionFailed as failure:
                problem = f"{server}: {failure}"
                if failure.was_sent and not request.is_read:
                    raise OutcomeUnknown(
                        f"{problem}; the write may or may not have been carried out"
                    ) from failure
                server = self._after(server, request)
                continue
            if answer.status == 200:
                self._remember(server, request)
                return answer.body
            if answer.status == 307:
                leader = _redirected(answer.location)
                problem = f"{server} redirects to {answer.location or 'nowhere'}"
                server = leader or self._after(server, request)
                continue
            error = _error(answer, request)
            if not isinstance(error, Unavailable):
                raise error
            problem = str(error)
            server = self._after(server, request)

    def _after(self, server: str, request: _Request) -> str:
        """Return whom to ask after *server* has failed; a leader that failed is forgotten."""
        position = self._servers.index(server) + 1 if server in self._servers else 0
        following = self._servers[position % len(self._servers)]
        self._remember(following, request)
        return following

    def _remember(self, server: str, request: _Request) -> None:
        if request.any_server:
            self._nearest = server
        else:
            self._leader = server

    # -- one exchange on one connection ------------------------------------------------------------

    def _exchange(self, server: str, request: _Request, deadline: float) -> _Answer:
        connection = self._take(server)
        # A server that hangs must leave time to ask another one, as long as that is allowed.
        alone = len(self._servers) == 1 and server == self._servers[0]
        share = _left(deadline) if alone else _left(deadline) / 2
        connection.limit(share)
        try:
            connection.open()
            connection.limit(share if request.is_read else _left(deadline))
            answer = connection.exchange(request)
        except (OSError, HTTPException) as error:
            connection.close()
            raise _ConnectionFailed(_describe(error), connection.was_sent) from error
        except BaseException:  # such as KeyboardInterrupt: the answer is still to come
            connection.close()
            raise
        self._put_back(server, connection)
        return answer

    def _take(self, server: str) -> _Connection:
        while True:
            with self._lock:
                resting = self._resting.get(server)
                if not resting:
                    break
                connection = resting.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        host, _, port = server.removeprefix("http://").rpartition(":")
        return _Connection(host.strip("[]"), int(port))

    def _put_back(self, server: str, connection: _Connection) -> None:
        if connection.sock is None:  # the server asked for it to be closed
            return
        with self._lock:
            if not self._closed:
                self._resting.setdefault(server, []).append(connection)
                return
        connection.close()


class _Request(NamedTuple):
    method: str
    target: str
    body: bytes | None = None
    is_read: bool = False
    any_server: bool = False  # not only the leader can answer


class _Answer(NamedTuple):
    status: int
    body: bytes
    location: str


class _ConnectionFailed(Exception):
    def __init__(self, why: str, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent


class _Socket(socket.socket):
    """Waits for input up to one moment, in however many pieces it comes."""

    deadline = 0.0

    def recv_into(self, *args: Any, **named: Any) -> int:
        left = _left(self.deadline)
        if not left:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*args, **named)


class _Connection(HTTPConnection):
    """A connection that knows whether any byte of the current request has left."""

    was_sent = False
    sock: Any  # None, or a _Socket
    _parts: list[bytes]

    def limit(self, seconds: float) -> None:
        """Let connecting, sending and the whole of an answer take so long from now."""
        self.timeout = max(seconds, 0.001)
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
            self.sock.deadline = time.monotonic() + self.timeout

    def connect(self) -> None:
        super().connect()
        plain = self.sock
        self.sock = _Socket(plain.family, plain.type, plain.proto, plain.detach())

    def open(self) -> None:
        self.was_sent = False
        if self.sock is None:
            self.connect()  # sets TCP_NODELAY

    def is_quiet(self) -> bool:
        """Whether the resting connection is open and nothing has come in unasked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, request: _Request) -> _Answer:
        self._parts = []
        self.request(request.method, request.target, request.body)
        data = b"".join(self._parts)  # the server meets head and body in one round
        try:
            count = self.sock.send(data)  # if this fails the kernel has taken nothing
            self.was_sent = True
            self.sock.sendall(memoryview(data)[count:])
        except (BrokenPipeError, ConnectionResetError):
            # A server may refuse a body while it is being sent; its reason can still be read.
            if not self.was_sent:
                raise
        response = self.getresponse()
        return _Answer(response.status, response.read(), response.getheader("Location", ""))

    def send(self, data: Any) -> None:
        """Take what the base class would send; ``exchange`` sends it at once."""
        self._parts.append(data)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _kv(key: str | bytes) -> str:
    return "/kv?key=" + quote(_bytes(key), safe="")


def _base_url(server: str) -> str:
    match = _URL.fullmatch(server)
    if match is None or match[3] not in (None, "/") or not 0 < int(match[2] or 80) < 65536:
        raise ConfigError("server", repr(server), f"no base URL; write it like {DEFAULT_SERVER}")
    return f"http://{match[1]}:{match[2] or 80}"


def _redirected(location: str) -> str | None:
    """Return the server a redirect names, or None for one that can't be trusted or followed."""
    match = _URL.fullmatch(location)
    try:
        return _base_url(location.removesuffix(match[3] or "")) if match else None
    except ConfigError:
        return None


def _describe(error: OSError | HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _error(answer: _Answer, request: _Request) -> ConureError:
    """Return the exception for an answer that is neither success nor redirect."""
    status = answer.status
    line = answer.body[:1000].decode(errors="replace").strip().partition("\n")[0]
    message = line or f"the server answered {status} and no reason"
    if status == 404:
        if request.target.startswith("/kv") and line == "key not found":
            return KeyNotFound()
        return MemberNotFound(message) if request.method == "POST" else RequestError(_NOT_A_SERVER)
    if status in _ERRORS:
        return _ERRORS[status](message)
    if 400 <= status < 500:
        return RequestError(message)
    if status == 503 or (status in (502, 504) and request.is_read):
        return Unavailable(message)
    if status >= 500 and not request.is_read:
        return OutcomeUnknown(message)
    return ConureError(message if status >= 500 else _NOT_A_SERVER)
