"""A record as the JSON that a path of REST shows, and errors there.

::

    {"key": "user123", "value": "Saurab", "ttl": 3599.972}
    {"key": "/wA=", "value": "/wA=", "encoding": "base64"}
    {"error": "key not found"}

``ttl``, in seconds, is there only where the key expires. As everywhere in this API's JSON, key and
value are both text or, if either isn't UTF-8, both base64. Nothing here has state: any thread may
call anything.
"""

from __future__ import annotations

import json
from base64 import b64encode
from codecs import getincrementaldecoder
from json.encoder import encode_basestring_ascii
from typing import Final

from conure.http.jsonsteps import Steps
from conure.http.request import Body
from conure.http.restrequests import Named

__all__ = ["render_error", "show", "show_in_steps"]

_JSON = "application/json"
_SLICE: Final = 48 << 10
"""Bytes of a value that are shown in one step; so many that base64 needs no filling within."""

_decoder = getincrementaldecoder("utf-8")


def show(named: Named, value: bytes, ttl: float | None) -> bytes:
    """Return a record whose value is short; *ttl* in seconds, None for ever."""
    if named.opening:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            pass
        else:
            ending = b"}\n" if ttl is None else _ending(ttl)
            return named.opening + encode_basestring_ascii(text).encode() + ending
    opening, ending = _around_base64(named, ttl)
    return b"".join((opening, b64encode(value), ending))


def show_in_steps(named: Named, value: bytes, ttl: float | None) -> Steps[Body]:
    """Return a record likewise whose value may be long."""
    pieces = (yield from _as_text(value)) if named.opening else None
    if pieces is not None:
        return Body([named.opening, b'"', *pieces, b'"', _ending(ttl)])
    pieces = []
    for at in range(0, len(value), _SLICE):
        pieces.append(b64encode(value[at : at + _SLICE]))
        yield
    opening, ending = _around_base64(named, ttl)
    return Body([opening, *pieces, ending])


def render_error(
    status: int,  # noqa: ARG001 - the answer has it
    message: str,
    accept: str | None = None,  # noqa: ARG001 - whatever is asked for, it is JSON
    title: str | None = None,  # noqa: ARG001
) -> tuple[bytes, str]:
    """Return the body of an error's answer and its content type; see ``request.RenderError``."""
    message = " ".join(message.split()).encode(errors="backslashreplace").decode()
    return json.dumps({"error": message}).encode() + b"\n", _JSON


def _as_text(value: bytes) -> Steps[list[bytes] | None]:
    """Return a value as what stands between the quotes of a string; None if it isn't UTF-8."""
    decoder = _decoder()
    pieces = []
    try:
        for at in range(0, len(value), _SLICE):
            text = decoder.decode(value[at : at + _SLICE], at + _SLICE >= len(value))
            pieces.append(encode_basestring_ascii(text)[1:-1].encode())
            yield
    except UnicodeDecodeError:
        return None
    return pieces


def _around_base64(named: Named, ttl: float | None) -> tuple[bytes, bytes]:
    """Return what stands before and behind a value in base64."""
    opening = b'{"key": "%b", "value": "' % b64encode(named.key)
    return opening, b'", "encoding": "base64"' + _ending(ttl)


def _ending(ttl: float | None) -> bytes:
    return b"}\n" if ttl is None else b', "ttl": %b}\n' % json.dumps(ttl).encode()
