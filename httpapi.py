"""The API: which path is answered by what, and the routes of the cluster and of health.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
…        /kv, /kv/…     keys: keys.py; /kv/batch and /txn: transactions.py
…        /session       what holds locks: sessions.py
GET      /watch         the changes of keys, as they happen: streaming.py
GET      /backup        everything, as of one revision: streaming.py
GET      /status        who this node is and whom it follows
GET      /raft/config   the members
GET      /raft/stats    the state of consensus, as strings
POST     /join          makes a node a member; ``?dry_run=true`` says what that would mean
POST     /remove        ends a node's membership; ``?dry_run=true`` likewise, ``?force=true``
POST     /leader        hands leadership over to ``ID``, or to whoever is most up to date
POST     /quorum        changes how many data voters a write needs; ``?dry_run=true`` likewise
GET      /livez         200 while the process can serve at all; never asks a quorum
GET      /readyz        200 while this node can serve requests; ``?verbose`` lists the checks
GET      /metrics       Prometheus text
GET      /openapi.json  what there is, as an OpenAPI document: openapi.py
GET      /              what there is
======== ============== ========================================================================

What only the leader can do is answered 307 by the others, or passed on to it: referrals.py.

``handle`` and ``flush`` are called by the reactor thread only; what is given to the backend as a
callback may be called from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from conure.errors import BadRequest, ConureError, MethodNotAllowed, NotFound, NotLeader
from conure.http import openapi
from conure.http.answers import JSON, OK, TEXT, Answers
from conure.http.commits import Commits
from conure.http.counts import Counts, RequestMetrics
from conure.http.documents import json_object
from conure.http.keys import KeyValues
from conure.http.parameters import flag
from conure.http.referrals import HTTPReferral
from conure.http.request import Request
from conure.http.sessions import Sessions
from conure.http.streaming import Streams
from conure.http.transactions import Transactions
from conure.metrics import CONTENT_TYPE as METRICS_TYPE
from conure.metrics import Registry
from conure.service.backend import KeyValueBackend, Reply
from conure.service.limits import Limits
from conure.service.once import Once
from conure.service.quoting import shortened
from conure.service.requests import Requests
from conure.values import MAX_QUORUM_SIZE, is_address, is_base_url

__all__ = [
    "API",
    "PROBES",
    "PUBLIC",
    "SHORT_BODIES",
    "Backend",
    "Check",
    "MetricsAPI",
]

SHORT_BODIES: Final = dict.fromkeys(
    ("/join", "/remove", "/leader", "/quorum", "/session"), 64 << 10
)
"""Bytes of a body, where a short one says all there is to say: for the server's ``Limits``."""

PROBES = frozenset({"/livez", "/readyz"})
"""What is answered even to those for whose connections there is no room."""

PUBLIC = PROBES | {"/", "/openapi.json"}
"""What pages of any origin may read: nothing of what is stored, nor of who stores it."""

_READS = ("GET", "HEAD")
_ALLOW_READS = b"Allow: %b\r\n" % ", ".join(_READS).encode()
_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_INCARNATION = re.compile(r"[0-9a-f]{32}")

Check = tuple[str, bool, str]
"""A readiness check: its name, whether it passes, what it found."""


class Backend(KeyValueBackend, Protocol):
    """What the routes need of a node. The reactor thread calls; nothing here may block long."""

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
        incarnation: str,
    ) -> None:
        """Make a node a member; the same facts again are no change.

        An empty address or role is whatever the node says of itself. *incarnation* is that of its
        data directory, which a node names that asks for itself, or "".
        """

    def remove(
        self, node_id: str, *, force: bool, reply: Reply, note: Callable[[str], None]
    ) -> None:
        """End a node's membership; *force* even if too few voters of those left answer. *note* is
        told before *reply* if it has lowered the quorum size; any thread."""

    def resize(self, quorum_size: int, reply: Reply) -> None:
        """Change the quorum size; 0: a majority of the voters decides alone."""

    def referral(self) -> NotLeader | None:
        """Return whom writes are to be asked of, if that isn't this node."""

    def hand_over(self, node_id: str, reply: Reply) -> None:
        """Let another voter lead; an empty ID stands for whoever is most up to date."""

    def pass_on(
        self,
        change: str,
        facts: Mapping[str, Any],
        reply: Callable[[Mapping[str, Any] | ConureError], None],
    ) -> None:
        """Ask the leader for a ``join``, ``remove``, ``resize`` or ``hand over``, or what one would
        mean, such as a ``preview join``; *reply* is told by any thread: nothing if it is done, or a
        ``note`` about it."""

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        """Return what a join would mean, and whether it is allowed. Raises ConureError."""

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        """Return what a removal would mean, and whether it is allowed. Raises ConureError."""

    def preview_resize(self, quorum_size: int) -> dict[str, Any]:
        """Return what a quorum size would mean, and whether it is allowed. Raises ConureError."""

    def status(self) -> dict[str, Any]: ...

    def members(self) -> dict[str, Any]: ...

    def raft_stats(self) -> dict[str, str]: ...

    def liveness(self) -> Check: ...

    def readiness(self) -> list[Check]: ...


class API:
    """The application behind the HTTP server: routes requests, and answers those of the cluster.

    *requests* is the service that all fronts share, *limits* bounds what a request carries, and the
    outcome of a request with an Idempotency-Key is remembered for *idempotency_window*
    milliseconds. *metrics* counts the requests, *registry* is what ``/metrics`` shows and *version*
    what ``/`` does. Followers pass requests on if they *forward*, or else redirect.
    *resp* and *rest* are where RESP and REST are served, for ``/status``; empty: nowhere.
    """

    def __init__(
        self,
        backend: Backend,
        requests: Requests,
        registry: Registry,
        metrics: RequestMetrics,
        limits: Limits,
        *,
        idempotency_window: int = 600_000,
        forward: bool = False,
        version: str,
        resp: str = "",
        rest: str = "",
    ) -> None:
        self._backend = backend
        self._fronts = {"resp": resp, "rest": rest}
        self._requests = requests
        self._registry = registry
        self._version = version
        self._routes: dict[str, dict[str, Callable[[Request], None]]] = {}
        counts = Counts(metrics, self._routes)
        self._referral = HTTPReferral(counts, passes_on=forward)
        self._answers = answers = Answers(backend, counts, self._referral)
        desk = requests.for_front(answers, self._referral)
        commits = Commits(desk, Once(idempotency_window), answers.fail)
        streams = Streams(desk, answers, limits)
        self._routes |= {
            **KeyValues(desk, answers, commits, limits, streams.send_range).routes(),
            **Transactions(desk, answers, commits, limits).routes(),
            **Sessions(desk, answers, commits).routes(),
            **streams.routes(),
            "/status": _readable(self._status),
            "/raft/config": _readable(self._members),
            "/raft/stats": _readable(self._raft_stats),
            "/join": {"POST": self._join},
            "/remove": {"POST": self._remove},
            "/leader": {"POST": self._hand_over},
            "/quorum": {"POST": self._resize},
            "/livez": _readable(self._livez),
            "/readyz": _readable(self._readyz),
            "/metrics": _readable(self._metrics),
            "/openapi.json": _readable(self._openapi),
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
            self._answers.fail(request, error)

    def without_body(self, request: Request) -> Callable[[Request], None] | None:
        """Return what redirects a write whose body is still to come, if this node will.

        The body could be one that its client can send only once.
        """
        if self._referral.passes_on or request.method in _READS:
            return None
        if request.method not in self._routes.get(request.path, ()):
            return None
        referral = self._backend.referral()
        return None if referral is None else partial(self._answers.fail, error=referral)

    def flush(self) -> bool:
        """End a round; see ``Rounds.end``."""
        return self._requests.end_round()

    # -- the cluster -----------------------------------------------------------------------------

    def _status(self, request: Request) -> None:
        status = self._backend.status()
        status |= {front: address for front, address in self._fronts.items() if address}
        self._respond_json(request, status)

    def _members(self, request: Request) -> None:
        self._respond_json(request, self._backend.members())

    def _raft_stats(self, request: Request) -> None:
        self._respond_json(request, self._backend.raft_stats())

    def _join(self, request: Request) -> None:
        is_dry_run = flag(request.parameters(), b"dry_run")
        facts = json_object(request.body, '{"ID": "node2", "RaftAddr": "10.0.0.2:7001"}')
        node_id = _node_id(facts)
        raft_address = _host_and_port("RaftAddr", _text_field(facts, "RaftAddr"))
        http_address = _base_url("HTTPAddr", _text_field(facts, "HTTPAddr", ""))
        voter = not _boolean_field(facts, "NonVoter")
        role = _text_field(facts, "Role", "")
        if role not in ("", "data", "arbiter"):
            raise BadRequest(f"Role is {shortened(role)}; it has to be data or arbiter")
        if is_dry_run:
            self._preview(
                request,
                partial(self._backend.preview_join, node_id, voter=voter, role=role),
                "preview join",
                {"id": node_id, "voter": voter, "role": role},
            )
            return
        incarnation = _incarnation(_text_field(facts, "Incarnation", ""))
        told = {
            "id": node_id,
            "raft": raft_address,
            "http": http_address,
            "voter": voter,
            "role": role,
            "incarnation": incarnation,
        }
        self._backend.join(
            node_id,
            raft_address,
            http_address,
            voter=voter,
            role=role,
            reply=partial(self._changed, request, "join", told),
            incarnation=incarnation,
        )

    def _remove(self, request: Request) -> None:
        query = request.parameters()
        is_dry_run, force = flag(query, b"dry_run"), flag(query, b"force")
        facts = json_object(request.body, '{"ID": "node2"}')
        node_id = _node_id(facts)
        force = _boolean_field(facts, "Force") or force
        if is_dry_run:
            preview = partial(self._backend.preview_remove, node_id)
            self._preview(request, preview, "preview remove", {"id": node_id})
        else:
            told = {"id": node_id, "force": force}
            notes: list[str] = []
            reply = partial(self._changed, request, "remove", told, notes=notes)
            self._backend.remove(node_id, force=force, reply=reply, note=notes.append)

    def _hand_over(self, request: Request) -> None:
        facts = json_object(request.body, '{"ID": "node2"}, or nothing') if request.body else {}
        node_id = _node_id(facts) if "ID" in facts else ""
        reply = partial(self._changed, request, "hand over", {"id": node_id})
        self._backend.hand_over(node_id, reply)

    def _resize(self, request: Request) -> None:
        is_dry_run = flag(request.parameters(), b"dry_run")
        size = _quorum_size(json_object(request.body, '{"size": 3}'))
        if is_dry_run:
            preview = partial(self._backend.preview_resize, size)
            self._preview(request, preview, "preview resize", {"size": size})
        else:
            reply = partial(self._changed, request, "resize", {"size": size})
            self._backend.resize(size, reply)

    def _preview(
        self,
        request: Request,
        preview: Callable[[], dict[str, Any]],
        change: str,
        facts: Mapping[str, Any],
    ) -> None:
        """Answer with what a change would mean, as the leader knows it."""
        try:
            self._respond_json(request, preview())
        except NotLeader as error:
            self._refer_change(request, error, change, facts)

    def _changed(
        self,
        request: Request,
        change: str,
        facts: Mapping[str, Any],
        error: ConureError | None,
        *,
        notes: Sequence[str] = (),
    ) -> None:
        """Answer a request for a change of members, with what there is to note; any thread."""
        if isinstance(error, NotLeader):
            self._refer_change(request, error, change, facts)
        elif error is not None:
            self._answers.fail(request, error)
        else:
            self._respond_done(request, notes)

    def _refer_change(
        self, request: Request, error: NotLeader, change: str, facts: Mapping[str, Any]
    ) -> None:
        if self._referral.passes_on:
            self._backend.pass_on(change, facts, partial(self._passed_on, request))
        else:
            self._answers.fail(request, error)

    def _passed_on(self, request: Request, found: Mapping[str, Any] | ConureError) -> None:
        """Answer with what the leader says of a change; any thread."""
        if isinstance(found, ConureError):
            self._answers.fail(request, found)
        elif "note" in found:
            self._respond_done(request, [str(found["note"])])
        elif found:
            self._respond_json(request, found)
        else:
            self._respond_done(request, ())

    # -- health and metrics ----------------------------------------------------------------------

    def _livez(self, request: Request) -> None:
        self._respond_checks(request, [self._backend.liveness()])

    def _readyz(self, request: Request) -> None:
        self._respond_checks(request, self._backend.readiness())

    def _metrics(self, request: Request) -> None:
        self._respond(request, 200, self._registry.render(), METRICS_TYPE)

    def _openapi(self, request: Request) -> None:
        self._respond(request, 200, openapi.document(self._version), JSON)

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

    def _respond_done(self, request: Request, notes: Sequence[str]) -> None:
        body = OK + b"".join(note.encode(errors="backslashreplace") + b"\n" for note in notes)
        self._respond(request, 200, body, TEXT)

    def _respond_json(self, request: Request, facts: object) -> None:
        self._respond(request, 200, json.dumps(facts).encode() + b"\n", JSON)

    def _respond(self, request: Request, status: int, body: bytes, content_type: str) -> None:
        self._answers.respond(request, body, content_type, status=status)


class MetricsAPI:
    """Only ``GET /metrics``, for an address of its own. Reactor thread of its server only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def handle(self, request: Request) -> None:
        """Answer a request."""
        if request.path != "/metrics":
            request.fail(NotFound("only /metrics is served at this address"))
        elif request.method not in ("GET", "HEAD"):
            request.fail(MethodNotAllowed(request.method, _READS), headers=_ALLOW_READS)
        else:
            request.respond(200, self._registry.render(), METRICS_TYPE)

    def flush(self) -> bool:
        """Do nothing: every request has been answered at once."""
        return False


def _readable(action: Callable[[Request], None]) -> dict[str, Callable[[Request], None]]:
    return {"GET": action, "HEAD": action}


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
            f"ID is {shortened(node_id)}; "
            "it has to be 1 to 128 letters, digits, dots, dashes or underscores"
        )
    return node_id


def _quorum_size(facts: dict[str, Any]) -> int:
    """Return the size that a body names, 0 for null."""
    if set(facts) != {"size"}:
        raise BadRequest('the body has to be {"size": N} and nothing else, or {"size": null}')
    size = facts["size"]
    if size is None or (type(size) is int and size == 0):
        return 0
    if type(size) is not int or not 2 <= size <= MAX_QUORUM_SIZE:
        raise BadRequest(
            f"size has to be a whole number from 2 to {MAX_QUORUM_SIZE}, or null or 0 where a "
            "majority of the voters is to decide alone"
        )
    return size


def _host_and_port(name: str, address: str) -> str:
    if not is_address(address):
        raise BadRequest(
            f"{name} is {shortened(address)}; it has to be host:port, such as 10.0.0.2:7001"
        )
    return address


def _incarnation(text: str) -> str:
    if text and not _INCARNATION.fullmatch(text):
        raise BadRequest(
            f"Incarnation is {shortened(text)}; it has to be 32 hexadecimal digits, as in the "
            "identity.json of the node's data directory"
        )
    return text


def _base_url(name: str, url: str) -> str:
    """Return a URL that redirects can begin with; empty if there is none."""
    if url and not is_base_url(url):
        raise BadRequest(
            f"{name} is {shortened(url)}; it has to be a base URL, such as http://10.0.0.2:8081"
        )
    return url
