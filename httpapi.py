"""The routes: what each request means, over an interface this module declares itself.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
PUT      /kv            stores ``value`` (parameter or body) under ``key``
GET      /kv            the value; linearizable, or this node's own state with ``stale=true``
DELETE   /kv            removes the key, whether it was there or not
GET      /status        who this node is and whom it follows
GET      /raft/config   the members
GET      /raft/stats    the state of consensus, as strings
POST     /join          makes a node a member
POST     /remove        ends a node's membership
GET      /livez         200 while the process can serve at all; never asks a quorum
GET      /readyz        200 while this node can serve requests; ``?verbose`` lists the checks
GET      /metrics       Prometheus text
GET      /              what there is
======== ============== ========================================================================

1. A write is answered after it is committed and applied (R8); a time-out is 504, since its
   outcome is unknown.
2. All writes of one round of the server become one proposal, and all its linearizable reads
   share one confirmation (R6). The reads are answered and sent before the writes are synced.
3. A request that is refused has changed nothing: every limit is checked before the proposal.

``handle`` and ``flush`` are called by the reactor thread only; what is given to the backend as a
callback may be called from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from errors import (
    BadRequest,
    ConureError,
    KeyNotFound,
    MethodNotAllowed,
    NotFound,
    NotLeader,
    PayloadTooLarge,
    TargetTooLong,
)
from httpserver import Request
from metrics import CONTENT_TYPE as METRICS_TYPE
from metrics import Registry

__all__ = [
    "API",
    "MAX_KEY_BYTES",
    "Backend",
    "Check",
    "Command",
    "MetricsAPI",
    "Reply",
    "WriteReply",
]

MAX_KEY_BYTES = 1024

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
OCTETS = "application/octet-stream"
OK = b"OK\n"

_READS = ("GET", "HEAD")
_ALLOW_READS = ("Allow", ", ".join(_READS))
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_YES, _NO = frozenset({b"true", b"1"}), frozenset({b"false", b"0"})

Command = tuple[bytes, bytes | None]
"""A key and its new value; None deletes the key."""

WriteReply = Callable[[int, int, ConureError | None], None]
"""Told that commands *start* to *stop* of a batch ended so: None is done, else why not."""

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""

Check = tuple[str, bool, str]
"""A readiness check: its name, whether it passes, what it found."""


class Backend(Protocol):
    """What the routes need of a node. The reactor thread calls; nothing here may block long."""

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
        """Commit the commands in order; *reply* covers each of them exactly once."""

    def confirm_read(self, reply: Reply) -> None:
        """Call *reply* once the local state holds every write acknowledged before now."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value in this node's own state."""

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
    ) -> None:
        """Make a node a member; the same facts again are no change."""

    def remove(self, node_id: str, reply: Reply) -> None:
        """End a node's membership."""

    def status(self) -> dict[str, Any]: ...

    def members(self) -> dict[str, Any]: ...

    def raft_stats(self) -> dict[str, str]: ...

    def liveness(self) -> Check: ...

    def readiness(self) -> list[Check]: ...


class API:
    """The application behind the HTTP server: routes requests, gathers a round's work.

    *max_value_bytes* bounds a value. *registry* takes the request metrics and is what
    ``/metrics`` shows. *version* is shown by ``/``.
    """

    def __init__(self, registry: Registry, *, max_value_bytes: int, version: str) -> None:
        self.backend: Backend  # set by who composes the two, before the first request
        self._registry = registry
        self._max_value_bytes = max_value_bytes
        self._version = version
        self._commands: list[Command] = []
        self._writers: list[Request] = []
        self._keys: list[bytes] = []
        self._readers: list[Request] = []
        self._requests = registry.counter_family(
            "conure_http_requests_total",
            "HTTP requests answered, by route, method and status code.",
            ("route", "method", "code"),
        )
        self._durations = registry.histogram_family(
            "conure_http_request_duration_seconds",
            "Time from reading a request to handing over its answer, by route and method.",
            ("route", "method"),
        )
        self._routes: dict[str, dict[str, Callable[[Request], None]]] = {
            "/kv": {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete},
            "/status": _readable(self._status),
            "/raft/config": _readable(self._members),
            "/raft/stats": _readable(self._raft_stats),
            "/join": {"POST": self._join},
            "/remove": {"POST": self._remove},
            "/livez": _readable(self._livez),
            "/readyz": _readable(self._readyz),
            "/metrics": _readable(self._metrics),
            "/": _readable(self._index),
        }

    def handle(self, request: Request) -> None:
        """Answer a request, or take it into this round's reads or writes."""
        try:
            methods = self._routes.get(request.path)
            if methods is None:
                raise NotFound("there is nothing at this path; GET / lists what there is")
            action = methods.get(request.method)
            if action is None:
                raise MethodNotAllowed(request.method, sorted(methods))
            action(request)
        except ConureError as error:
            self._fail(request, error)

    def flush(self) -> bool:
        """End a round: confirm its reads together, then commit its writes as one batch."""
        if self._readers:
            readers, self._readers = self._readers, []
            keys, self._keys = self._keys, []
            self.backend.confirm_read(partial(self._read, readers, keys))
            if self._writers:
                return True
        if self._writers:
            writers, self._writers = self._writers, []
            commands, self._commands = self._commands, []
            self.backend.write(commands, partial(self._written, writers))
        return False

    # -- keys and values -------------------------------------------------------------------------

    def _put(self, request: Request) -> None:
        query = request.parameters()
        key = _key(query)
        value = query.get(b"value")
        if value is None:
            value = request.body
        if len(value) > self._max_value_bytes:
            raise PayloadTooLarge(
                f"the value has {len(value):,} bytes; the limit is {self._max_value_bytes:,} "
                "(max_value_bytes)"
            )
        self._commands.append((key, value))
        self._writers.append(request)

    def _delete(self, request: Request) -> None:
        self._commands.append((_key(request.parameters()), None))
        self._writers.append(request)

    def _get(self, request: Request) -> None:
        query = request.parameters()
        key = _key(query)
        if len(query) > 1 and _flag(query, b"stale"):
            self._read([request], [key], None)
        else:
            self._keys.append(key)
            self._readers.append(request)

    def _written(
        self, requests: list[Request], start: int, stop: int, error: ConureError | None
    ) -> None:
        done = requests[start:stop]
        if error is not None:
            for request in done:
                self._fail(request, error)
            return
        for request in done:
            request.respond(200, OK, TEXT)
        puts = sum(request.method == "PUT" for request in done)
        self._count("/kv", "PUT", 200, done[0].started, puts)
        self._count("/kv", "DELETE", 200, done[0].started, len(done) - puts)

    def _read(self, requests: list[Request], keys: list[bytes], error: ConureError | None) -> None:
        if error is not None:
            for request in requests:
                self._fail(request, error)
            return
        get = self.backend.get
        found = 0
        for request, key in zip(requests, keys, strict=True):
            try:
                value = get(key)
            except ConureError as failure:  # a damaged page, say: the other keys can be read
                self._fail(request, failure)
                continue
            if value is None:
                self._fail(request, KeyNotFound())
            else:
                found += 1
                request.respond(200, value, OCTETS)
        self._count("/kv", "GET", 200, requests[0].started, found)

    # -- the cluster -----------------------------------------------------------------------------

    def _status(self, request: Request) -> None:
        self._respond_json(request, self.backend.status())

    def _members(self, request: Request) -> None:
        self._respond_json(request, self.backend.members())

    def _raft_stats(self, request: Request) -> None:
        self._respond_json(request, self.backend.raft_stats())

    def _join(self, request: Request) -> None:
        facts = _json_object(request, '{"ID": "node2", "RaftAddr": "10.0.0.2:7001"}')
        role = _text_field(facts, "Role", "data")
        if role not in ("data", "arbiter"):
            raise BadRequest(f"Role is {_shortened(role)}; it has to be data or arbiter")
        nonvoter = facts.get("NonVoter", False)
        if not isinstance(nonvoter, bool):
            raise BadRequest("NonVoter has to be true or false")
        self.backend.join(
            _node_id(facts),
            _host_and_port("RaftAddr", _text_field(facts, "RaftAddr")),
            _base_url("HTTPAddr", _text_field(facts, "HTTPAddr", "")),
            voter=not nonvoter,
            role=role,
            reply=partial(self._changed, request),
        )

    def _remove(self, request: Request) -> None:
        facts = _json_object(request, '{"ID": "node2"}')
        self.backend.remove(_node_id(facts), partial(self._changed, request))

    def _changed(self, request: Request, error: ConureError | None) -> None:
        if error is not None:
            self._fail(request, error)
        else:
            self._respond(request, 200, OK, TEXT)

    # -- health and metrics ----------------------------------------------------------------------

    def _livez(self, request: Request) -> None:
        self._respond_checks(request, [self.backend.liveness()])

    def _readyz(self, request: Request) -> None:
        self._respond_checks(request, self.backend.readiness())

    def _metrics(self, request: Request) -> None:
        self._respond(request, 200, self._registry.render(), METRICS_TYPE)

    def _index(self, request: Request) -> None:
        lines = [f"ConureDB {self._version}"]
        lines += [
            f"  {' '.join(method for method in methods if method != 'HEAD'):<14} {path}"
            for path, methods in self._routes.items()
        ]
        self._respond(request, 200, "\n".join(lines).encode() + b"\n", TEXT)

    # -- answers ---------------------------------------------------------------------------------

    def _respond_checks(self, request: Request, checks: list[Check]) -> None:
        passed = all(ok for _, ok, _ in checks)
        if b"verbose" in request.parameters() or not passed:
            lines = [f"[{'+' if ok else '-'}] {name} {found}" for name, ok, found in checks]
            body = "\n".join(lines).encode() + b"\n"
        else:
            body = OK
        self._respond(request, 200 if passed else 503, body, TEXT)

    def _respond_json(self, request: Request, facts: object) -> None:
        self._respond(request, 200, json.dumps(facts).encode() + b"\n", JSON)

    def _respond(self, request: Request, status: int, body: bytes, content_type: str) -> None:
        request.respond(status, body, content_type)
        self._count(request.path, request.method, status, request.started, 1)

    def _fail(self, request: Request, error: ConureError) -> None:
        """Answer with an error: to the leader, if that is what is wrong."""
        if isinstance(error, NotLeader) and error.leader_http:
            body = {
                "leader": error.leader,
                "leader_id": error.leader_id,
                "leader_http": error.leader_http,
            }
            target = request.path  # a route's path: nothing in it needs encoding
            if request.query:
                target += "?" + request.query.decode("latin-1")
            request.respond(
                status := 307,
                json.dumps(body).encode() + b"\n",
                JSON,
                (("Location", error.leader_http + target),),
            )
        else:
            headers: tuple[tuple[str, str], ...] = ()
            if isinstance(error, MethodNotAllowed):
                headers = (("Allow", ", ".join(error.allowed)),)
            status = error.status
            request.fail(error, headers=headers)
        known = request.path in self._routes
        self._count(
            request.path if known else "other",
            request.method if request.method in _METHODS else "other",
            status,
            request.started,
            1,
        )

    def _count(self, route: str, method: str, status: int, started: float, times: int) -> None:
        if times:
            self._requests.labels(route, method, str(status)).inc(times)
            self._durations.labels(route, method).observe_same(perf_counter() - started, times)


class MetricsAPI:
    """Only ``GET /metrics``, for an address of its own. Reactor thread of its server only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def handle(self, request: Request) -> None:
        """Answer a request."""
        if request.path != "/metrics":
            request.fail(NotFound("only /metrics is served at this address"))
        elif request.method not in ("GET", "HEAD"):
            request.fail(MethodNotAllowed(request.method, _READS), headers=(_ALLOW_READS,))
        else:
            request.respond(200, self._registry.render(), METRICS_TYPE)

    def flush(self) -> bool:
        """Do nothing: every request has been answered at once."""
        return False


def _readable(action: Callable[[Request], None]) -> dict[str, Callable[[Request], None]]:
    return {"GET": action, "HEAD": action}


def _key(query: dict[bytes, bytes]) -> bytes:
    key = query.get(b"key")
    if not key:
        raise BadRequest("the key is missing; name it in the query: /kv?key=K")
    if len(key) > MAX_KEY_BYTES:
        raise TargetTooLong(f"the key has {len(key):,} bytes; the limit is {MAX_KEY_BYTES:,}")
    return key


def _flag(query: dict[bytes, bytes], name: bytes) -> bool:
    value = query.get(name, b"false")
    if value in _YES:
        return True
    if value in _NO:
        return False
    raise BadRequest(
        f"{name.decode()} is {_shortened(value.decode(errors='replace'))}; "
        "it has to be true or false"
    )


def _json_object(request: Request, example: str) -> dict[str, Any]:
    try:
        facts = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error}); send {example}") from error
    if not isinstance(facts, dict):
        raise BadRequest(f"the body has to be a JSON object; send {example}")
    return facts


def _text_field(facts: dict[str, Any], name: str, default: str | None = None) -> str:
    value = facts.get(name, default)
    if not isinstance(value, str):
        raise BadRequest(f"{name} is missing or not a string")
    return value


def _node_id(facts: dict[str, Any]) -> str:
    node_id = _text_field(facts, "ID")
    if not _NODE_ID.fullmatch(node_id):
        raise BadRequest(
            f"ID is {_shortened(node_id)}; "
            "it has to be 1 to 128 letters, digits, dots, dashes or underscores"
        )
    return node_id


def _host_and_port(name: str, address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) < 65536:
        raise BadRequest(
            f"{name} is {_shortened(address)}; it has to be host:port, such as 10.0.0.2:7001"
        )
    return address


def _base_url(name: str, url: str) -> str:
    """Return a URL that redirects can begin with; empty if there is none."""
    address = url.removeprefix("http://")
    match = _ADDRESS.fullmatch(address)
    if url and (match is None or address == url or not 0 < int(match[1]) < 65536):
        raise BadRequest(
            f"{name} is {_shortened(url)}; it has to be a base URL, such as http://10.0.0.2:8081"
        )
    return url


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"
