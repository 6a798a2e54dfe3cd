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
POST     /join          makes a node a member; ``?dry_run=true`` says what that would mean
POST     /remove        ends a node's membership; ``?dry_run=true`` likewise, ``?force=true``
POST     /leader        hands leadership over to ``ID``, or to whoever is most up to date
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
4. What only the leader can do is answered 307 by the others, or given to ``API.forward``.
5. Each answer to a stale read says in ``X-Conure-Last-Contact`` how many milliseconds ago this
   node last heard a leader, or ``never``. With ``max_stale`` an older contact is a 503.

``handle`` and ``flush`` are called by the reactor thread only; what is given to the backend as a
callback may be called from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import ceil
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
    Unavailable,
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
    "Forward",
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
_LAST_CONTACT = "X-Conure-Last-Contact"
_DURATION = re.compile(rb"(?:\d{1,15}(?:\.\d{1,9})?(?:ms|s|m|h))+")
_DURATION_PART = re.compile(rb"([\d.]+)(ms|s|m|h)")
_SECONDS = {b"ms": 1e-3, b"s": 1.0, b"m": 60.0, b"h": 3600.0}

Fields = tuple[tuple[str, str], ...]

Command = tuple[bytes, bytes | None]
"""A key and its new value; None deletes the key."""

WriteReply = Callable[[int, int, ConureError | None], None]
"""Told that commands *start* to *stop* of a batch ended so: None is done, else why not."""

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""

Check = tuple[str, bool, str]
"""A readiness check: its name, whether it passes, what it found."""

Forward = Callable[[Request, str, Callable[[int], None]], None]
"""Answers a request with what the server at a base URL says, and tells the status it answered.

Never blocks and never raises; called from any thread.
"""


class Backend(Protocol):
    """What the routes need of a node. The reactor thread calls; nothing here may block long."""

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
        """Commit the commands in order; *reply* covers each of them exactly once."""

    def confirm_read(self, reply: Reply) -> None:
        """Call *reply* once the local state holds every write acknowledged before now."""

    def get_all(self, keys: Sequence[bytes]) -> list[bytes | ConureError | None]:
        """Return each key's value in this node's own state, None, or why it can't be read.

        Raises nothing.
        """

    def last_contact(self) -> float | None:
        """Return for how many seconds no leader was heard; 0.0 on the leader, None: never yet."""

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
        """Make a node a member; the same facts again are no change.

        An empty address or role is whatever the node says of itself.
        """

    def remove(self, node_id: str, *, force: bool, reply: Reply) -> None:
        """End a node's membership; *force* even if too few voters of those left answer."""

    def hand_over(self, node_id: str, reply: Reply) -> None:
        """Let another voter lead; an empty ID stands for whoever is most up to date."""

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        """Return what a join would mean, and whether it is allowed. Raises ConureError."""

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        """Return what a removal would mean, and whether it is allowed. Raises ConureError."""

    def status(self) -> dict[str, Any]: ...

    def members(self) -> dict[str, Any]: ...

    def raft_stats(self) -> dict[str, str]: ...

    def liveness(self) -> Check: ...

    def readiness(self) -> list[Check]: ...


class API:
    """The application behind the HTTP server: routes requests, gathers a round's work.

    *max_value_bytes* bounds a value. *registry* takes the request metrics and is what
    ``/metrics`` shows. *version* is shown by ``/``. Whoever composes them sets ``backend`` before
    the first request, and ``forward`` if followers are to pass requests on instead of redirecting.
    """

    def __init__(self, registry: Registry, *, max_value_bytes: int, version: str) -> None:
        self.backend: Backend
        self.forward: Forward | None = None
        self._registry = registry
        self._max_value_bytes = max_value_bytes
        self._version = version
        self._commands: list[Command] = []
        self._writers: list[Request] = []
        self._keys: list[bytes] = []
        self._readers: list[Request] = []
        self._stale: list[tuple[Request, bytes, float | None]] = []
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
            "/leader": {"POST": self._hand_over},
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
        """End a round: answer its reads together, then commit its writes as one batch."""
        has_read = False
        if self._stale:
            stale, self._stale = self._stale, []
            self._read_stale(stale)
            has_read = True
        if self._readers:
            readers, self._readers = self._readers, []
            keys, self._keys = self._keys, []
            self.backend.confirm_read(partial(self._confirmed, readers, keys))
            has_read = True
        if self._writers and not has_read:
            writers, self._writers = self._writers, []
            commands, self._commands = self._commands, []
            self.backend.write(commands, partial(self._written, writers))
        return bool(self._writers)

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
        if len(query) > 1:
            limit = _max_stale(query)
            if _flag(query, b"stale"):
                self._stale.append((request, key, limit))
                return
            if limit is not None:
                raise BadRequest("max_stale bounds a stale read; add stale=true, or leave it out")
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

    def _confirmed(
        self, requests: list[Request], keys: list[bytes], error: ConureError | None
    ) -> None:
        if error is None:
            self._read(requests, keys)
            return
        for request in requests:
            self._fail(request, error)

    def _read_stale(self, stale: list[tuple[Request, bytes, float | None]]) -> None:
        # Asked before the records are read: what is read is at least as new as this contact.
        contact = self.backend.last_contact()
        fields = ((_LAST_CONTACT, "never" if contact is None else str(ceil(contact * 1000))),)
        requests: list[Request] = []
        keys: list[bytes] = []
        for request, key, limit in stale:
            if limit is None or (contact is not None and contact <= limit):
                requests.append(request)
                keys.append(key)
            else:
                self._fail(request, _too_stale(contact, limit), fields)
        if requests:
            self._read(requests, keys, fields)

    def _read(self, requests: list[Request], keys: list[bytes], fields: Fields = ()) -> None:
        found = 0
        values = self.backend.get_all(keys)
        for request, value in zip(requests, values, strict=True):
            if isinstance(value, bytes):
                found += 1
                request.respond(200, value, OCTETS, fields)
            else:  # an error, such as a damaged page: the other keys can be read all the same
                self._fail(request, KeyNotFound() if value is None else value, fields)
        self._count("/kv", "GET", 200, requests[0].started, found)

    # -- the cluster -----------------------------------------------------------------------------

    def _status(self, request: Request) -> None:
        self._respond_json(request, self.backend.status())

    def _members(self, request: Request) -> None:
        self._respond_json(request, self.backend.members())

    def _raft_stats(self, request: Request) -> None:
        self._respond_json(request, self.backend.raft_stats())

    def _join(self, request: Request) -> None:
        is_dry_run = _flag(request.parameters(), b"dry_run")
        facts = _json_object(request, '{"ID": "node2", "RaftAddr": "10.0.0.2:7001"}')
        node_id = _node_id(facts)
        raft_address = _host_and_port("RaftAddr", _text_field(facts, "RaftAddr"))
        http_address = _base_url("HTTPAddr", _text_field(facts, "HTTPAddr", ""))
        voter = not _boolean_field(facts, "NonVoter")
        role = _text_field(facts, "Role", "")
        if role not in ("", "data", "arbiter"):
            raise BadRequest(f"Role is {_shortened(role)}; it has to be data or arbiter")
        if is_dry_run:
            self._respond_json(request, self.backend.preview_join(node_id, voter=voter, role=role))
        else:
            reply = partial(self._changed, request)
            self.backend.join(
                node_id, raft_address, http_address, voter=voter, role=role, reply=reply
            )

    def _remove(self, request: Request) -> None:
        query = request.parameters()
        is_dry_run, force = _flag(query, b"dry_run"), _flag(query, b"force")
        facts = _json_object(request, '{"ID": "node2"}')
        node_id = _node_id(facts)
        force = _boolean_field(facts, "Force") or force
        if is_dry_run:
            self._respond_json(request, self.backend.preview_remove(node_id))
        else:
            self.backend.remove(node_id, force=force, reply=partial(self._changed, request))

    def _hand_over(self, request: Request) -> None:
        facts = _json_object(request, '{"ID": "node2"}, or nothing') if request.body else {}
        node_id = _node_id(facts) if "ID" in facts else ""
        self.backend.hand_over(node_id, partial(self._changed, request))

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
        self._count_one(request, status)

    def _fail(self, request: Request, error: ConureError, fields: Fields = ()) -> None:
        """Answer with an error: by way of the leader, if that is what is wrong."""
        if isinstance(error, NotLeader) and error.leader_http:
            if self.forward is not None:
                self.forward(request, error.leader_http, partial(self._count_one, request))
                return
            self._redirect(request, error, fields)
            status = 307
        else:
            if isinstance(error, MethodNotAllowed):
                fields = (*fields, ("Allow", ", ".join(error.allowed)))
            status = error.status
            request.fail(error, headers=fields)
        self._count_one(request, status)

    def _redirect(self, request: Request, error: NotLeader, fields: Fields) -> None:
        target = request.path  # a route's path: nothing in it needs encoding
        if request.query:
            target += "?" + request.query.decode("latin-1")
        body = {
            "leader": error.leader,
            "leader_id": error.leader_id,
            "leader_http": error.leader_http,
        }
        fields = (*fields, ("Location", error.leader_http + target))
        request.respond(307, json.dumps(body).encode() + b"\n", JSON, fields)

    def _count_one(self, request: Request, status: int) -> None:
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


def _max_stale(query: dict[bytes, bytes]) -> float | None:
    text = query.get(b"max_stale")
    return None if text is None else _seconds(text)


@lru_cache(64)
def _seconds(text: bytes) -> float:
    if not _DURATION.fullmatch(text):
        shown = _shortened(text.decode(errors="replace"))
        raise BadRequest(f"max_stale is {shown}; it has to be a duration, such as 5s or 500ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def _too_stale(contact: float | None, limit: float) -> Unavailable:
    if contact is None:
        found = "this node has heard no leader since it was started"
    else:
        over = contact - limit
        found = f"this node last heard a leader {contact:.3f} s ago, {over:.3f} s over max_stale"
    return Unavailable(f"{found}; ask another server, or allow for more")


def _json_object(request: Request, example: str) -> dict[str, Any]:
    try:
        facts = json.loads(request.body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error}); send {example}") from error
    if not isinstance(facts, dict):
        raise BadRequest(f"the body has to be a JSON object; send {example}")
    return facts


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in pairs:
        if name in facts:
            raise BadRequest(f"{_shortened(name)} is given twice in the body; give it once")
        facts[name] = value
    return facts


def _boolean_field(facts: dict[str, Any], name: str) -> bool:
    value = facts.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} has to be true or false")
    return value


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
