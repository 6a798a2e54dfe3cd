"""What a request says before its body: its header fields and its target, as objects.

Clients repeat themselves, so many requests share one :class:`Head` and one :class:`RequestTarget`
(known.py keeps them). Neither is ever changed for one request: who needs another head makes a copy.
grammar.py makes them out of bytes. A head carries the judgement of origins.py (H8), which is made
once for each header block. Any thread may read; ``note`` is the application's.
"""

from __future__ import annotations

from typing import Any, Final

from conure.http.origins import Access, Judgement
from conure.values import Authority

__all__ = ["CLOSE", "NO_HEAD", "NO_TARGET", "Head", "Headers", "RequestTarget", "elements"]

CLOSE: Final = b"Connection: close\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"


class Headers:
    """The header fields of a request: names in any case, values as they were sent.

    Requests that send the same fields share one object. ``note`` is the application's: what it
    has made of the fields, so that it need not do so again.
    """

    __slots__ = ("_fields", "note")

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields
        self.note: Any = None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a field's value (ISO 8859-1); fields of the same name are joined by commas."""
        return self._fields.get(name.lower(), default)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields


class RequestTarget:
    """What a request's target says. Requests with the same one share it, and so its ``note``,
    which is the application's as that of the header fields is.

    ``octets`` are the path, percent-decoded, any bytes; ``path`` is the same as text, in which what
    isn't UTF-8 is replaced."""

    __slots__ = ("authority", "note", "octets", "path", "query")

    def __init__(self, octets: bytes, query: bytes, authority: Authority | None = None) -> None:
        self.octets = octets
        self.path = octets.decode("utf-8", "replace")
        self.query = query
        self.authority = authority  # of a target in absolute form; it counts instead of Host
        self.note: Any = None


class Head:
    """What a request's version and header block say. Shared by all requests with the same one."""

    __slots__ = (
        "authority",
        "chunked",
        "close",
        "expects",
        "headers",
        "is_preflight",
        "judgement",
        "length",
        "plain",
        "request_id",
        "returned",
        "said",
        "size",
        "unusual",
        "version",
    )

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self.headers = headers
        self.chunked = False
        self.length = 0
        options = elements(headers.get("connection", ""))
        self.close = "close" in options or (version == "1.0" and "keep-alive" not in options)
        self.size = 0  # bytes, as it was sent
        self.request_id = ""
        self.is_preflight = False  # whether a browser asks what a page that may ask may send
        self.returned = b""  # the header lines that tell whose answer it is: of which request by
        # its ID, and for the pages of which origin
        persistence = CLOSE if self.close else _KEEP_ALIVE if version == "1.0" else b""
        self.said = persistence  # the header lines of its answer: `returned`, and this one
        self.expects = version == "1.1" and "expect" in headers
        self.plain = False  # whether the request ends with its head and the connection goes on
        self.authority: Authority | None = None  # what Host says
        self.judgement: Judgement | None = None  # why the request is refused, if it is
        self.unusual = self.close  # whether there is more to do than to hand the request over

    def judge(self, access: Access, authority: Authority | None) -> None:
        """Find out whether a browser may ask this, of whom *authority* names; and what it has to
        hear for its page to be told."""
        headers = self.headers
        origin = headers.get("origin")
        self.judgement = access.judge(authority, origin, headers.get("sec-fetch-site"))
        is_asked = origin in access.origins and "access-control-request-method" in headers
        self.is_preflight = is_asked and self.judgement is None
        self.unusual = self.close or self.judgement is not None or self.is_preflight
        if access.origins and not self.returned:  # judged again, it is for the same page
            self.returned = access.share(origin)
            self.said = self.returned + self.said

    def copy(self) -> Head:
        """Return a head of the same fields, to be changed for one request alone."""
        head = Head(self.version, self.headers)
        for name in Head.__slots__:
            setattr(head, name, getattr(self, name))
        return head

    def closing(self) -> Head:
        """Return what this head is if the connection ends with the answer."""
        head = self.copy()
        head.close = head.unusual = True
        head.said = head.returned + CLOSE
        return head

    def with_id(self, request_id: str) -> Head:
        """Return what this head is with an ``X-Request-Id`` in it."""
        headers = Headers({**self.headers._fields, "x-request-id": request_id})
        head = Head(self.version, headers)
        head.chunked, head.length, head.plain = self.chunked, self.length, self.plain
        head.authority, head.judgement = self.authority, self.judgement
        head.unusual = self.unusual
        head.is_preflight = self.is_preflight
        head.size = self.size + len(request_id)
        head.request_id = request_id
        head.returned = self.returned + f"X-Request-Id: {request_id}\r\n".encode()
        head.said = head.returned + head.said
        return head


def elements(value: str | None) -> set[str]:
    """Return the elements of a comma-separated list, in lower case."""
    return {element.strip(" \t") for element in (value or "").lower().split(",")}


NO_HEAD: Final = Head("1.0", Headers({}))
NO_TARGET: Final = RequestTarget(b"", b"")
"""Of what is refused before either is known."""
