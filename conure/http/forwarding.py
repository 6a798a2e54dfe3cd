"""Forwarding: a follower asks the leader on behalf of a client that can't, or won't, go there.

A request waits in one queue for one of a few threads. Each thread keeps a connection to the
leader, sends the request there as the client wrote it (query string and body byte for byte, and
the header fields that matter) and relays the answer likewise. A wait for a change is over by then:
this node has done it, and the leader is asked what there is.

=========================================== ========================= =========================
what happened                               read                      write
=========================================== ========================= =========================
no byte of the request was sent             once more, then 503       once more, then 503
the connection was lost after sending       once more, then 503       504, the outcome is unknown
no answer in time                           503                       504, the outcome is unknown
a redirect: it leads no more                503                       503
too much waits already, or this node stops  503                       503
=========================================== ========================= =========================

1. A forwarded request carries ``X-Conure-Forwarded`` with the ID of the node that passed it on. A
   request that has it is not passed on again: while leadership moves, two nodes may take each
   other for the leader.
2. A write is sent at most once. So it uses a connection that rested only if there is no doubt that
   the leader keeps it open: it rested for a moment, and nothing has come in since.
3. What waits is bounded in number, bytes and time.

Threads: ``forward`` may be called from any thread and never blocks; ``start`` and ``stop`` belong
to whoever made the forwarder. The lock guards the queue and is never held during input or output.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from http.client import HTTPException
from time import monotonic
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from conure.errors import ConureError, OutcomeUnknown, Unavailable
from conure.http.server import Request
from conure.metrics import Registry
from conure.net.outbound import Answer, Line, encode_request

__all__ = ["FORWARDED", "Forwarder"]

FORWARDED = "X-Conure-Forwarded"
"""The header field that marks a request as passed on (1)."""

THREADS = 16
MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 << 20
MAX_ANSWER_BYTES = 128 << 20
CONNECT_TIMEOUT = 1.0
MARGIN = 1.0
"""Seconds that an answer may take longer than the leader's own limit: the way there and back."""

LONGEST_REST = 1.0
"""Seconds after which a connection that rests is not used for a write any more (2)."""

_READS = frozenset({"GET", "HEAD"})
_RELAYED = frozenset({"allow", "etag", "retry-after"})  # and X-Conure-*
_PASSED_ON = ("Accept", "If-Match", "If-None-Match", "Idempotency-Key", "X-Request-Id")
_WAITING = frozenset({b"index", b"wait"})
_STOPPING = "this node is stopping; ask another server"


class Forwarder:
    """Passes requests on to the leader. *node_id* marks them.

    *timeout* is how many seconds the leader may take for a request, *idle_timeout* how long it
    keeps a resting connection open.
    """

    def __init__(
        self, node_id: str, registry: Registry, *, timeout: float, idle_timeout: float
    ) -> None:
        self._node_id = node_id
        self._timeout = timeout + MARGIN
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[_Task] = deque()
        self._waiting_bytes = 0
        self._stopping = False
        longest_rest = min(LONGEST_REST, idle_timeout / 2)
        self._lines = [
            Line(connect_timeout=CONNECT_TIMEOUT, longest_rest=longest_rest) for _ in range(THREADS)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(line,), name=f"forward-{number}", daemon=True)
            for number, line in enumerate(self._lines)
        ]
        self._codes = registry.counter_family(
            "conure_forwarded_requests_total",
            "Requests that were to be passed on to the leader, by the status that was answered.",
            ("code",),
        )
        self._durations = registry.histogram(
            "conure_forward_duration_seconds",
            "Time from taking a request in for passing it on to its answer.",
        )
        registry.gauge_callback(
            "conure_forward_waiting_requests",
            "Requests that wait for a thread to pass them on to the leader.",
            lambda: len(self._waiting),
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads. What waits is answered 503, and what is under way is cut off."""
        with self._changed:
            self._stopping = True
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for task in waiting:
            self._fail(task, Unavailable(_STOPPING))
        for line in self._lines:
            line.cut()
        for thread in self._threads:
            thread.join(CONNECT_TIMEOUT)  # longer only in the DNS; what comes of it is cut off

    def forward(self, request: Request, server: str, answered: Callable[[int], None]) -> None:
        """Answer *request* with what the server at a base URL says; tell *answered* the status.

        Any thread; never blocks and never raises.
        """
        task = _Task(request, server, answered, monotonic())
        refusal = self._refusal(task) or self._enqueue(task)
        if refusal:
            self._fail(task, Unavailable(refusal))

    # -- the queue ---------------------------------------------------------------------------------

    def _refusal(self, task: _Task) -> str:
        before = task.request.headers.get(FORWARDED)
        if before is None:
            return ""
        return f"{before[:128]} took this node for the leader, and it is not; try again shortly"

    def _enqueue(self, task: _Task) -> str:
        """Take a task into the queue, or return why not."""
        with self._changed:
            if self._stopping:
                return _STOPPING
            size = self._waiting_bytes + task.size
            if len(self._waiting) >= MAX_WAITING or size > MAX_WAITING_BYTES:
                return "too much waits to be passed on to the leader; try again shortly"
            self._waiting.append(task)
            self._waiting_bytes = size
            self._changed.notify()
            return ""

    def _next(self) -> _Task | None:
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                self._changed.wait()
            task = self._waiting.popleft()
            self._waiting_bytes -= task.size
            return task

    # -- a thread of the pool ----------------------------------------------------------------------

    def _run(self, line: Line) -> None:
        while (task := self._next()) is not None:
            try:
                answer = self._ask(line, task)
            except ConureError as error:
                self._fail(task, error)
            else:
                self._count(task, answer.status)
                task.request.respond(*answer)
        line.close()

    def _ask(self, line: Line, task: _Task) -> _Relayed:
        """Return the leader's answer. Raises Unavailable or OutcomeUnknown."""
        now = monotonic()
        if now - task.since > self._timeout:
            raise Unavailable("the leader takes too long for those who wait; try again shortly")
        is_read = task.request.method in _READS
        message = self._encode(task)
        deadline = now + self._timeout
        is_last = False
        while True:
            try:
                answer = line.exchange(
                    task.server, message, deadline, most=MAX_ANSWER_BYTES, is_safe=is_read
                )
            except (OSError, HTTPException) as error:
                problem = f"passing this on to {task.server} failed ({_describe(error)})"
                if line.was_sent and not is_read:
                    raise OutcomeUnknown(
                        f"{problem}; the write may or may not have been carried out"
                    ) from error
                if is_last or monotonic() >= deadline:
                    raise Unavailable(f"{problem}; try again shortly") from error
                is_last = True
                continue
            if 300 <= answer.status < 400 and answer.status != 304:
                raise Unavailable(f"{task.server} leads no more; try again shortly")
            return _relay(answer)

    def _encode(self, task: _Task) -> bytes:
        request = task.request
        # A HEAD is asked as a GET: our own server leaves the body out and says how long it is.
        method = "GET" if request.method == "HEAD" else request.method
        target = request.path.encode()  # a route's path: nothing in it needs encoding
        if request.query:
            target += b"?" + _without_wait(request.query)
        fields = [
            (name, value) for name in _PASSED_ON if (value := request.headers.get(name)) is not None
        ]
        fields.append((FORWARDED, self._node_id))
        return encode_request(method, task.server, target, fields, request.body)

    def _fail(self, task: _Task, error: ConureError) -> None:
        self._count(task, error.status)
        task.request.fail(error)

    def _count(self, task: _Task, status: int) -> None:
        task.answered(status)
        self._codes.labels(str(status)).inc()
        self._durations.observe(monotonic() - task.since)


class _Task(NamedTuple):
    request: Request
    server: str
    answered: Callable[[int], None]
    since: float

    @property
    def size(self) -> int:
        return len(self.request.query) + len(self.request.body)


class _Relayed(NamedTuple):
    """What :meth:`Request.respond` takes."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...]


def _relay(answer: Answer) -> _Relayed:
    """Return what of an answer is relayed to the client."""
    fields = tuple(
        (name, _one_line(value))
        for name, value in answer.headers
        if name.lower() in _RELAYED or name.lower().startswith("x-conure-")
    )
    content_type = _one_line(answer.header("content-type", "text/plain"))
    return _Relayed(answer.status, answer.body, content_type, fields)


def _without_wait(query: bytes) -> bytes:
    """Return a query without its wait for a change, however the names of that are written."""
    pairs = query.split(b"&")
    kept = [p for p in pairs if unquote_to_bytes(p.partition(b"=")[0]) not in _WAITING]
    return query if len(kept) == len(pairs) else b"&".join(kept)


def _one_line(value: str) -> str:
    return " ".join(value.split())


def _describe(error: OSError | HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
