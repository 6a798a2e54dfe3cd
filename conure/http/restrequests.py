"""What a request to a path of REST says: its key, what its header fields ask for, its value.

A key is everything behind the first slash of the path, percent-decoded: slashes in it, ``%2F``
among them, are bytes of it like any others. ``?`` begins the query. ``PUT /user123`` with the
Content-Type of JSON or of a form (which is what ``curl -d`` sends), or without one, has a body as
this, ``ttl`` and ``encoding`` being optional::

    {"value": "Saurab", "ttl": 3600, "encoding": "base64"}

With any other Content-Type the body itself is the value. Which of both it is depends on nothing
else, least of all on what the body looks like.

Nothing here has state but what :func:`wishes_of` notes in header blocks and :func:`named_by` in
targets: many requests share them. The reactor thread only. What can't be understood is BadRequest.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from conure.commands import MAX_KEY_BYTES
from conure.errors import BadRequest, TargetTooLong
from conure.http import documents
from conure.http.head import Headers
from conure.http.jsonsteps import Steps
from conure.http.mediatypes import parse_content_type, prefers
from conure.http.parameters import Conditions, Query
from conure.http.request import Request
from conure.service.limits import Limits
from conure.service.quoting import shortened

__all__ = ["Named", "Wishes", "named_by", "read_short", "read_value", "wishes_of"]

_JSON, _FORM = "application/json", "application/x-www-form-urlencoded"
_OCTETS = "application/octet-stream"
_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii"})

_AS_IT_IS = f"to store a body as it is, send it with Content-Type: {_OCTETS}"

# The shortest form, which most clients send: a value, nothing escaped in it.
_is_plain_body = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"value"[ \t\r\n]*:[ \t\r\n]*"([^"\\\x00-\x1f]*)"[ \t\r\n]*\}[ \t\r\n]*'
).fullmatch


class Wishes(Conditions):
    """What the header fields of a request ask for.

    ``is_json`` says whether its body is an object that has the value, and not the value itself;
    ``fault`` why it is neither, if it is; ``octets`` whether it wants to get the value alone;
    ``is_bare`` that it has no conditions and no Idempotency-Key.
    """

    __slots__ = ("fault", "is_bare", "is_json", "octets")

    def __init__(self, headers: Headers) -> None:
        super().__init__(headers)
        self.is_bare = self.if_match is self.if_none_match is self.idempotency_key is None
        self.octets = prefers(headers.get("accept") or "", _JSON, _OCTETS)
        self.fault = ""
        field = headers.get("content-type") or _JSON
        try:
            name, charset = parse_content_type(field)
        except BadRequest as error:
            self.is_json, self.fault = False, str(error)
            return
        self.is_json = name in (_JSON, _FORM)
        if self.is_json and charset not in _CHARSETS:
            self.fault = f"JSON is UTF-8, and not {shortened(charset)}; {_AS_IT_IS}"


class Named(NamedTuple):
    """The key that a path is, and its query.

    *opening* is how the JSON of its record begins, up to the value; empty if the key isn't UTF-8.
    """

    key: bytes
    query: Query
    opening: bytes


def wishes_of(headers: Headers) -> Wishes:
    """Read the header fields, once for all requests that send the same ones."""
    wishes = Wishes(headers)
    headers.note = wishes
    return wishes


def named_by(request: Request) -> Named:
    """Read path and query, once for all requests with the same target. Raises TargetTooLong."""
    key = request.target.octets[1:]
    if not key:
        raise BadRequest("the key is missing; it is what follows the first slash, as in /user123")
    if len(key) > MAX_KEY_BYTES:
        raise TargetTooLong(f"the key has {len(key):,} bytes; the limit is {MAX_KEY_BYTES:,}")
    try:
        opening = b'{"key": %b, "value": ' % encode_basestring_ascii(key.decode()).encode()
    except UnicodeDecodeError:
        opening = b""
    named = Named(key, request.parameters(), opening)
    request.target.note = named
    return named


def read_short(body: bytes, limits: Limits) -> bytes | None:
    """Return the value of a body of JSON that has nothing else, written in the shortest way; None
    if :func:`read_value` has to look at it. Raises PayloadTooLarge."""
    if len(body) > documents.INLINE_BYTES or (match := _is_plain_body(body)) is None:
        return None
    value: bytes = match[1]
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError:
            return None
    return limits.check_value(value)


def read_value(body: bytes, limits: Limits) -> Steps[tuple[bytes, int]]:
    """Return the value and the time to live in milliseconds, 0 for ever, that a body of JSON says.

    Raises BadRequest, and PayloadTooLarge past a limit.
    """
    try:
        return (yield from documents.parse_value(body, limits))
    except BadRequest as error:
        raise BadRequest(f"{error}; {_AS_IT_IS}") from error
