"""What was parsed or rendered before: clients repeat themselves, and so do answers.

A front end has one :class:`Known`. The connections look into ``heads``, ``targets`` and ``starts``
themselves, which is what makes a usual request cheap, and call a method for what isn't there. All
three are bounded in number and in the size of what is kept.

H8  Nothing is done for a browser under a name that isn't the server's, nor for a foreign web page:
    origins.py. It is judged once for each header block, and a head that is refused isn't kept.

Reactor thread only. Nothing here waits, sends or knows a connection.
"""

from __future__ import annotations

import re
from email.utils import formatdate

from conure.http.grammar import (
    LONGEST_METHOD,
    METHODS,
    Refusal,
    check_extent,
    cut_id,
    decode_path,
    is_token,
    parse_head,
    render_start,
    target_too_long,
)
from conure.http.head import NO_HEAD, Head, Headers, RequestTarget
from conure.http.limits import Limits
from conure.http.origins import Access

__all__ = ["Known"]

_KNOWN_HEADS = 1024
_KNOWN_HEAD_BYTES = 2048
_KNOWN_TARGETS = 4096
_KNOWN_TARGET_BYTES = 128
_KNOWN_STARTS = 1024


class Known:
    """Heads and targets by the bytes that they were sent as, and the beginnings of answers."""

    def __init__(self, limits: Limits, access: Access) -> None:
        self.heads: dict[bytes, Head] = {}
        self.targets: dict[bytes, RequestTarget] = {}
        self.starts: dict[tuple[int, str, int], bytes] = {}  # of answers, rendered this second
        self.date = b""  # of answers
        self._limits = limits
        self._access = access
        # ASCII that can be seen; a fragment, from # on, is the client's own (RFC 9112 section 3.2).
        self._is_target = re.compile(rb"[!\"$-~]{1,%d}" % limits.max_target_bytes).fullmatch
        self.renew_date()

    def renew_date(self) -> None:
        """Have answers show the time of now; once a second."""
        self.date = formatdate(usegmt=True).encode()
        self.starts.clear()

    def parse(self, data: bytes, position: int, end: int) -> tuple[str, bool, bytes, Head]:
        """Parse the head in data[position:end]: method, safety, target, header block.

        Raises Refusal.
        """
        check_extent(data, position, end - 4, self._limits)
        block = data[position:end]
        parts = block[: block.find(b"\r\n")].split(b" ")
        if len(parts) != 3 or not is_token(parts[0]):
            raise Refusal(400, "malformed request line; it is METHOD SP TARGET SP HTTP/1.1")
        method, target, _ = parts
        if len(method) > LONGEST_METHOD:
            raise Refusal(501, "this server knows no method with a name as long as this")
        name, safe = METHODS.get(method) or (method.decode(), False)
        tail = block[len(method) + len(target) + 2 :]
        try:
            head = self.heads.get(tail) or self._learn(tail)
            if not self._is_target(target):
                if len(target) > self._limits.max_target_bytes:
                    raise target_too_long(self._limits)
                raise Refusal(400, "malformed request target; write other characters as %XX")
            if name == "CONNECT":
                raise Refusal(501, "this server is no proxy", head.headers)
        except Refusal as refusal:
            refusal.method = name
            refusal.request_id, _ = cut_id(tail)
            raise
        return name, safe, target, head

    def check_target(self, target: bytes, data: bytes, position: int, end: int) -> None:
        """Raise Refusal for a target of a head in data[position:end] that can't be one."""
        if not self._is_target(target):
            self.parse(data, position, end)  # raises, with the words for what is wrong

    def resolve(self, method: str, target: bytes, head: Head) -> tuple[RequestTarget, Head]:
        """Return what a target says that isn't known yet; and the head, judged by whom the target
        names if it does (RFC 9112 section 3.2.2). Raises Refusal."""
        path, _, query = target.partition(b"?")
        try:
            octets, authority = decode_path(method, path)
        except Refusal as refusal:
            refusal.request_id = head.request_id
            raise
        found = RequestTarget(octets, query, authority)
        # "*" is no path for most methods, and who is asked in absolute form is looked at each time.
        if len(target) <= _KNOWN_TARGET_BYTES and path != b"*" and authority is None:
            if len(self.targets) >= _KNOWN_TARGETS:
                self.targets.clear()
            self.targets[target] = found
        if authority is not None:
            head = head.copy()
            head.judge(self._access, authority)
        return found, head

    def head_of_refused(self, headers: Headers | None, request_id: str) -> Head:
        """Return a head that says whose answer a refusal is, as far as that is known."""
        head = NO_HEAD
        shared = self._access.share(headers.get("origin") if headers is not None else None)
        if shared:
            head = head.copy()
            head.returned = shared
            head.said = shared + head.said
        return head.with_id(request_id) if request_id else head

    def render_start(self, status: int, content_type: str, length: int) -> bytes:
        """Render how an answer begins, up to its other fields, and keep it for this second."""
        start = render_start(status, content_type, length, self.date)
        if len(self.starts) < _KNOWN_STARTS:
            self.starts[status, content_type, length] = start
        return start

    def _learn(self, tail: bytes) -> Head:
        request_id, rest = cut_id(tail)
        if request_id:
            return (self.heads.get(rest) or self._learn(rest)).with_id(request_id)
        head = parse_head(tail, self._limits)
        head.judge(self._access, head.authority)
        # One that is refused isn't kept: the names of this server may change.
        is_short = len(tail) <= _KNOWN_HEAD_BYTES
        if is_short and "x-request-id" not in head.headers and head.judgement is None:
            if len(self.heads) >= _KNOWN_HEADS:
                self.heads.clear()
            self.heads[tail] = head
        return head
