"""How an HTTP request gets to the leader: its client is sent there, or this node asks for it.

Any thread; nothing here blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Final

from conure.errors import NotLeader
from conure.http.counts import Counts
from conure.http.request import Request
from conure.values import is_base_url

__all__ = ["Forward", "HTTPReferral", "PassOn", "Redirect"]

Forward = Callable[[Request, str, Callable[[int], None]], None]
"""Answers a request with what the server at a base URL says, and tells the status it answered.

Never blocks and never raises; called from any thread.
"""

_JSON = "application/json"


class Redirect:
    """Sends clients to the leader, with a 307."""

    passes_on: Final = False

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def refer(self, request: Request, error: NotLeader, fields: bytes = b"") -> bool:
        """Answer with where the leader is, and with these header fields; False if nobody knows."""
        # What an older log or an older release says of the leader may be no address: nothing is
        # made of that, a header field least of all.
        if not is_base_url(error.leader_http):
            return False
        target = request.path  # a route's path: nothing in it needs encoding
        if request.query:
            target += "?" + request.query.decode("latin-1")
        body = {
            "leader": error.leader,
            "leader_id": error.leader_id,
            "leader_http": error.leader_http,
        }
        fields += b"Location: %b\r\n" % (error.leader_http.removesuffix("/") + target).encode(
            "latin-1"
        )
        request.respond(307, json.dumps(body).encode() + b"\n", _JSON, fields)
        self._counts.count(request, 307)
        return True


class PassOn:
    """Has *forward* ask the leader."""

    passes_on: Final = True

    def __init__(self, forward: Forward, counts: Counts) -> None:
        self._forward = forward
        self._counts = counts

    def refer(self, request: Request, error: NotLeader, fields: bytes = b"") -> bool:  # noqa: ARG002
        """Answer with what the leader says, which has header fields of its own; False if nobody
        knows where it is."""
        if not is_base_url(error.leader_http):
            return False
        self._forward(request, error.leader_http, partial(self._counts.count, request))
        return True


HTTPReferral = Redirect | PassOn
