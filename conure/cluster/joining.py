"""Discovery: a node without a cluster or a leader asks the seeds to add it, however long it takes.

The node says who it is to each seed in turn: with ``POST /join``, where that is a base URL, and it
follows a redirect to the leader then; over the Raft port (conure/peers/joins.py), where it is
``HOST:PORT``. It pauses after a round in which nobody could help: longer each time, and not in step
with others that were started at the same moment. A seed that says yes is not the end of it: the
node is a member when it knows so itself, from the log. Until then it asks again, which changes
nothing.

1. Nothing is asked while the node needs nothing; that is looked at about once a second.
2. What a seed says is logged when it is not what it said before.
3. A seed may be this node itself, a stranger or nobody: each is passed over.

Threads: one of its own, which calls ``seeds``, ``facts`` and ``needed`` too. ``start`` and ``stop``
belong to whoever made the joiner.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPException
from time import monotonic
from typing import Any, Protocol

from conure.errors import ConureError, Unavailable
from conure.net.outbound import Line, MalformedAnswer, encode_request
from conure.peers.joins import Applicant
from conure.tlswords import JOINING, why_failed
from conure.values import redirected_to

__all__ = ["Joiner", "Roads"]

LOOK = 1.0
"""Seconds between two looks at whether anything is needed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two rounds, of which half is up to chance; each is twice the one before."""

CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 15.0
"""Seconds without a byte of an answer: a join is answered when a majority has agreed."""

LONGEST_EXCHANGE = 20.0
"""Seconds for all of it, however slowly it comes: the next seed may be a better one."""

STOP_TIMEOUT = 0.5
MAX_REDIRECTS = 3
MAX_ANSWER_BYTES = 4096

log = logging.getLogger("conure.discovery")

_BY_RAFT_PORT = (
    "a member can be asked over its Raft port as well: name that as the seed, HOST:PORT without "
    "http://"
)


class Roads(Protocol):
    """The part of the transport by which a member is asked over its Raft port."""

    def join(self, address: str, applicant: Applicant) -> None:
        """Ask whoever is there to add a node; returns when that is done. Raises ConureError."""

    def give_up_joining(self) -> None:
        """End what :meth:`join` waits for. Any thread."""


class Joiner:
    """Asks seeds to make this node a member while it needs that.

    *seeds* returns where they are as of now, *facts* what ``POST /join`` takes, *needed* whether
    this node has to be added. A seed without a scheme is asked by *roads*, for *applicant*; *tls*
    is for those of https.
    """

    def __init__(
        self,
        seeds: Callable[[], Sequence[str]],
        facts: Callable[[], dict[str, Any]],
        needed: Callable[[], bool],
        tls: Callable[[], ssl.SSLContext] | None = None,
        *,
        roads: Roads,
        applicant: Callable[[], Applicant],
    ) -> None:
        self._seeds = seeds
        self._facts = facts
        self._needed = needed
        self._roads = roads
        self._applicant = applicant
        self._told: dict[str, str] = {}
        self._stopping = threading.Event()
        self._line = Line(connect_timeout=CONNECT_TIMEOUT, tls=tls)
        self._thread = threading.Thread(target=self._run, name="joiner", daemon=True)

    def start(self) -> None:
        """Start asking, as soon as it is needed."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking, at once; an attempt that is under way is cut off or comes to nothing."""
        self._stopping.set()
        self._line.cut()
        self._roads.give_up_joining()
        self._thread.join(STOP_TIMEOUT)  # longer only for a connection that is still being made

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        pause, again_at = FIRST_PAUSE, monotonic()
        while not self._stopping.is_set():
            if not self._seeds() or not self._needed():
                pause, again_at = FIRST_PAUSE, monotonic()
            elif monotonic() >= again_at:
                self._ask_all()
                again_at = monotonic() + pause * random.uniform(0.5, 1.0)
                pause = min(2 * pause, LONGEST_PAUSE)
            self._stopping.wait(min(LOOK, max(0.0, again_at - monotonic()) or LOOK))

    def _ask_all(self) -> None:
        """Ask each seed until one has agreed."""
        seeds = self._seeds()
        body = json.dumps(self._facts()).encode()
        for seed in seeds:
            if self._stopping.is_set():
                return
            try:
                if "://" in seed:
                    self._ask(seed, body)
                else:
                    self._roads.join(seed, self._applicant())
            except ConureError as refusal:
                self._tell(seed, f"did not add this node: {refusal}", logging.WARNING)
            except (OSError, HTTPException) as error:
                why = why_failed(error, JOINING)
                level = logging.WARNING if why else logging.INFO  # nobody mends that by waiting
                why = why or getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._tell(seed, f"can't be asked: {why}", level)
            else:
                self._tell(seed, "has added this node to its cluster", logging.INFO)
                return

    def _ask(self, server: str, body: bytes) -> None:
        """Ask one server, or whom it redirects to. Raises what keeps this node outside."""
        for _ in range(MAX_REDIRECTS):
            status, location, line = self._post(server, body)
            if status == 200 and line == "OK":
                return
            leader = redirected_to(location, server) if status == 307 else None
            if status == HTTPStatus.FORBIDDEN:
                raise Unavailable(f"{line}; {_BY_RAFT_PORT}")
            if leader is None:
                raise Unavailable(line or f"it answered {status}")
            server = leader
        raise Unavailable("it redirects in a circle")

    def _post(self, server: str, body: bytes) -> tuple[int, str, str]:
        """Return the status, the target of a redirect and the first line of what was said."""
        fields = [("Content-Type", "application/json")]
        message = encode_request("POST", server, b"/join", fields, body)
        try:
            answer = self._line.exchange(
                server,
                message,
                monotonic() + LONGEST_EXCHANGE,
                most=MAX_ANSWER_BYTES,
                silence=ANSWER_TIMEOUT,
                may_cut_short=True,
            )
        except MalformedAnswer as error:
            raise OSError("its answer is malformed") from error
        text = answer.body.decode(errors="replace")
        line = "".join(filter(str.isprintable, text.strip().partition("\n")[0]))
        return answer.status, answer.header("location", ""), line

    def _tell(self, seed: str, what: str, level: int) -> None:
        if self._told.get(seed) != what and not self._stopping.is_set():
            self._told[seed] = what
            log.log(level, "seed %s %s", seed, what)
