"""What HTTP does with a request that only the leader can serve: redirect the client, or pass it on.

Passing on is the service's, and what is left to be answered here is what it can't: where nobody
leads, and on an arbiter, which has no records to answer a read from. The front of paths
(rest.py) never redirects: its clients know no other address of the cluster. Any thread; nothing
here blocks.
"""

from __future__ import annotations

import json

from conure.errors import NotLeader
from conure.http.counts import Counts
from conure.http.request import Request
from conure.values import is_base_url

__all__ = ["Forwarding", "HTTPReferral"]

_JSON = "application/json"


class Forwarding:
    """The referral of a front that sends no client anywhere else."""

    passes_on = True

    def refer(self, request: Request, error: NotLeader, fields: bytes = b"") -> bool:  # noqa: ARG002
        """Leave it to the error."""
        return False


class HTTPReferral:
    """Sends clients to the leader, with a 307, unless *passes_on* has this node ask it."""

    def __init__(self, counts: Counts, *, passes_on: bool) -> None:
        self._counts = counts
        self.passes_on = passes_on

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
