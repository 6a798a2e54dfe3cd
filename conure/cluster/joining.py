"""Discovery: a node without a cluster or a leader asks the seeds to add it, however long it takes.

The node says who it is with ``POST /join`` to each seed in turn, follows a redirect to the leader,
and pauses after a round in which nobody could help: longer each time, and not in step with others
that were started at the same moment. A seed that says yes is not the end of it: the node is a
member when it knows so itself, from the log. Until then it asks again, which changes nothing.

1. Nothing is asked while the node needs nothing; that is looked at about once a second.
2. What a seed says is logged when it is not what it said before.
3. A seed may be this node itself, a stranger or nobody: each is passed over.

Threads: one of its own, which calls ``facts`` and ``needed`` too. ``start`` and ``stop`` belong to
whoever made the joiner.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import socket
import threading
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from time import monotonic
from typing import Any

from conure.errors import ConureError, Unavailable

__all__ = ["Joiner"]

LOOK = 1.0
"""Seconds between two looks at whether anything is needed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two rounds, of which half is up to chance; each is twice the one before."""

CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 15.0
"""Seconds for an answer: a join is answered when a majority has agreed."""

LONGEST_EXCHANGE = 20.0
"""Seconds for all of it, however slowly it comes: the next seed may be a better one."""

STOP_TIMEOUT = 0.5
MAX_REDIRECTS = 3
MAX_ANSWER_BYTES = 4096

_LOCATION = re.compile(r"(http://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?)(?:[/?].*)?")

log = logging.getLogger("conure.discovery")


class Joiner:
    """Asks *seeds*, base URLs, to make this node a member while it needs that.

    *facts* returns what ``POST /join`` takes, *needed* whether this node has to be added.
    """

    def __init__(
        self,
        seeds: Sequence[str],
        facts: Callable[[], dict[str, Any]],
        needed: Callable[[], bool],
    ) -> None:
        self._seeds = tuple(seeds)
        self._facts = facts
        self._needed = needed
        self._told: dict[str, str] = {}
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None  # of the latest attempt
        self._thread = threading.Thread(target=self._run, name="joiner", daemon=True)

    def start(self) -> None:
        """Start asking, as soon as it is needed."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking, at once; an attempt that is under way is cut off or comes to nothing."""
        self._stopping.set()
        if self._socket is not None:
            _cut(self._socket)
        self._thread.join(STOP_TIMEOUT)  # longer only for a connection that is still being made

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        pause, again_at = FIRST_PAUSE, monotonic()
        while not self._stopping.is_set():
            if not self._needed():
                pause, again_at = FIRST_PAUSE, monotonic()
            elif monotonic() >= again_at:
                self._ask_all()
                again_at = monotonic() + pause * random.uniform(0.5, 1.0)
                pause = min(2 * pause, LONGEST_PAUSE)
            self._stopping.wait(min(LOOK, max(0.0, again_at - monotonic()) or LOOK))

    def _ask_all(self) -> None:
        """Ask each seed until one has agreed."""
        body = json.dumps(self._facts()).encode()
        for seed in self._seeds:
            if self._stopping.is_set():
                return
            try:
                self._ask(seed, body)
            except ConureError as refusal:
                self._tell(seed, f"did not add this node: {refusal}", logging.WARNING)
            except (OSError, HTTPException) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._tell(seed, f"can't be asked: {why}", logging.INFO)
            else:
                self._tell(seed, "has added this node to its cluster", logging.INFO)
                return

    def _ask(self, server: str, body: bytes) -> None:
        """Ask one server, or whom it redirects to. Raises what keeps this node outside."""
        for _ in range(MAX_REDIRECTS):
            status, location, line = self._post(server, body)
            if status == 200 and line == "OK":
                return
            match = _LOCATION.fullmatch(location) if status == 307 else None
            if match is None:
                raise Unavailable(line or f"it answered {status}")
            server = match[1]
        raise Unavailable("it redirects in a circle")

    def _post(self, server: str, body: bytes) -> tuple[int, str, str]:
        """Return the status, the target of a redirect and the first line of what was said."""
        connection = HTTPConnection(server.removeprefix("http://"), timeout=CONNECT_TIMEOUT)
        with contextlib.closing(connection):
            try:
                connection.connect()
            except (ValueError, OverflowError) as error:  # a name with an empty label, say
                raise OSError("there can be no such address") from error
            self._socket = connection.sock
            if self._stopping.is_set():  # looked at after the socket can be seen by stop()
                raise Unavailable("this node is stopping")
            connection.sock.settimeout(ANSWER_TIMEOUT)
            limit = threading.Timer(LONGEST_EXCHANGE, _cut, [connection.sock])
            limit.daemon = True
            limit.start()
            try:
                connection.request("POST", "/join", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read(MAX_ANSWER_BYTES).decode(errors="replace")
            except ValueError as error:
                raise OSError("its answer is malformed") from error
            finally:
                limit.cancel()
        line = "".join(filter(str.isprintable, text.strip().partition("\n")[0]))
        return response.status, response.getheader("Location", ""), line

    def _tell(self, seed: str, what: str, level: int) -> None:
        if self._told.get(seed) != what and not self._stopping.is_set():
            self._told[seed] = what
            log.log(level, "seed %s %s", seed, what)


def _cut(sock: socket.socket) -> None:
    """End what a thread waits for at a socket."""
    with contextlib.suppress(OSError):  # closed a moment ago
        sock.shutdown(socket.SHUT_RDWR)
