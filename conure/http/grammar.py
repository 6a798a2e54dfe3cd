"""The grammar of RFC 9112: heads, header fields, targets, bodies, and how answers begin.

Functions and classes on bytes; no socket, no connection, no thread of their own, no application.
What can't be taken raises :class:`Refusal`.

H3  How the bytes of a connection were split on their way never changes an answer: what is checked
    of a head or a body that isn't complete is checked in the same order as in one that is.
H6  A request whose end is not beyond doubt (RFC 9112 section 6.3) is refused; connection.py closes
    then, and reads nothing after it as a request.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from conure.errors import BadRequest
from conure.http.head import Head, Headers, elements
from conure.http.limits import Limits
from conure.values import Authority, parse_authority

__all__ = [
    "LAST_CHUNK",
    "LONGEST_METHOD",
    "METHODS",
    "PHRASES",
    "READS",
    "ChunkedBody",
    "Refusal",
    "SizedBody",
    "TLSRefusal",
    "body_too_large",
    "check_extent",
    "cut_id",
    "decode_path",
    "frame_chunk",
    "is_token",
    "parse_head",
    "render_start",
    "render_stream_start",
    "show",
    "target_too_long",
    "unquote",
]

_MAX_FIELDS = 100
_LINE_EXTRA = 64  # bytes of a request line besides the target: method, spaces, version
_MAX_CHUNK_LINE = 4096
_MAX_EXTENSIONS = 16 << 10  # bytes of chunk extensions in one body
_TLS_HANDSHAKE = 22  # the type of the first record of a client that speaks TLS
_CHUNKS = 1024  # of a body that are decoded in a round

LONGEST_METHOD: Final = 32
"""Bytes of a method's name; RFC 9110 knows none beyond 9."""
LAST_CHUNK: Final = b"0\r\n\r\n"

_TOKEN_BYTES = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_FIELD_PATTERN = rb"[" + _TOKEN_BYTES + rb"]+:[\t -~\x80-\xff]*\r\n"
is_token = re.compile(rb"[" + _TOKEN_BYTES + rb"]+").fullmatch
_is_field = re.compile(_FIELD_PATTERN).fullmatch
_are_fields = re.compile(rb"(?:" + _FIELD_PATTERN + rb")*").fullmatch
_is_absolute = re.compile(rb"(?i:https?)://([^/@]+)(/.*)?").fullmatch
_is_chunk_line = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t ]*[" + _TOKEN_BYTES + rb"][\t -~\x80-\xff]*)?)\r\n"
).fullmatch
_find_id = re.compile(
    rb"\r\n(?i:X-Request-Id):[ \t]*([!-~](?:[ -~]{0,126}[!-~])?)[ \t]*(?=\r\n)"
).search
_names_id = re.compile(rb"\n(?i:X-Request-Id):").search
_token_octets = frozenset(c for c in range(256) if is_token(bytes([c])))

PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
READS: Final = {"GET", "HEAD"}
"""Methods that only read; the safe ones of RFC 9110 section 9.2.1 are a few more."""
_SAFE = {*READS, "OPTIONS", "TRACE"}
METHODS: Final = {
    name.encode(): (name, name in _SAFE)
    for name in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "POST", "DELETE", "PATCH")
}
"""The usual methods as they are sent: each as text, and whether it is safe."""
_OCTETS = {
    (high + low).encode(): bytes([int(high + low, 16)])
    for high in "0123456789abcdefABCDEF"
    for low in "0123456789abcdefABCDEF"
}


class Refusal(Exception):
    """A request that can't be taken; the connection ends with the answer (H6)."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.method = "GET"
        self.request_id = ""


class TLSRefusal(Refusal):
    """The client speaks TLS, and here nobody does."""

    def __init__(self) -> None:
        super().__init__(400, "this port speaks no TLS; use http:// in place of https://")


def parse_head(tail: bytes, limits: Limits) -> Head:
    """Parse a head from its version on: ``HTTP/1.1 CRLF fields CRLF``. Raises Refusal."""
    version, _, block = tail.partition(b"\r\n")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version):
            raise Refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0 only")
        raise Refusal(400, "malformed request line; it is METHOD SP TARGET SP HTTP/1.1")
    headers = Headers(_parse_fields(block[:-2]))
    head = Head(version[5:].decode(), headers)
    head.size = len(tail)
    host = headers.get("host")
    if host is None and head.version == "1.1":
        raise Refusal(400, "the Host header field is missing")
    if host is not None:
        head.authority = parse_authority(host)
        if head.authority is None:
            raise Refusal(400, "malformed Host header field")
    _frame(head, limits)
    if head.expects and elements(headers.get("expect", "")) != {"100-continue"}:
        raise Refusal(417, "the only expectation this server meets is 100-continue", headers)
    head.plain = not (head.chunked or head.length or head.close)
    return head


def cut_id(block: bytes) -> tuple[str, bytes]:
    """Return the ID that header fields give their request, and the fields without it.

    Each request has another ID, and else the same head as many; so that one can be looked up.
    """
    match = _find_id(block)
    if match is None:
        return "", block
    rest = block[: match.start()] + block[match.end() :]
    return ("", block) if _names_id(rest) else (match[1].decode(), rest)


def check_extent(
    data: bytes, position: int, end: int, limits: Limits, seen: int = 0, block: int = 0
) -> int:
    """Refuse a head that is too long or has a bare line feed; *end* < 0: as far as it has come.

    Looks at the same bytes in the same order whether the head is complete or not (H3). What was
    found to be right before isn't looked at again: *seen* bytes of the head, of which *block* are
    its first line, or none if that wasn't complete. Returns the length of the first line, if it is.
    """
    longest = limits.max_target_bytes + _LINE_EXTRA
    if not block:
        if data[position] == _TLS_HANDSHAKE:
            raise TLSRefusal
        if data[position] not in _token_octets:
            raise Refusal(400, "this isn't HTTP: a request begins with its method")
        line_end = data.find(b"\n", position + seen, position + longest + 2)
        if line_end < 0:
            if len(data) - position >= longest + 2:
                raise target_too_long(limits)
            return 0
        if data[line_end - 1] != 13:
            raise Refusal(400, "a line that ends in a bare LF; lines end in CRLF")
        block = line_end + 1 - position
    stop = position + block + limits.max_header_bytes + 2
    start = position + max(block, seen)
    _refuse_bare_line_feed(data, start, stop if end < 0 else min(stop, end))
    if (len(data) if end < 0 else end + 3) >= stop:
        raise Refusal(431, f"the header is over the limit of {limits.max_header_bytes} bytes")
    return block


def decode_path(method: str, path: bytes) -> tuple[bytes, Authority | None]:
    """Return the path of a target, percent-decoded; and whom it names, in absolute form. Raises
    Refusal."""
    if path == b"*" and method == "OPTIONS":
        return path, None
    authority = None
    if path[:1] != b"/":
        match = _is_absolute(path)
        authority = parse_authority(match[1].decode("latin-1")) if match else None
        if match is None or authority is None or not authority.host:
            raise Refusal(400, "malformed request target; it begins with /")
        path = match[2] or b"/"
    try:
        return unquote(path), authority
    except BadRequest as error:
        raise Refusal(400, str(error)) from error


def target_too_long(limits: Limits) -> Refusal:
    return Refusal(414, f"the request target is over the limit of {limits.max_target_bytes} bytes")


def body_too_large(path: str, head: Head, limits: Limits) -> Refusal:
    """Return the refusal of a body at *path* that is over its limit."""
    most = limits.max_body_bytes_at.get(path)
    if most is None:
        return _too_large(limits.max_body_bytes, head.headers)
    refusal = _too_large(most, head.headers, f" for {path}")
    refusal.request_id = head.request_id
    return refusal


def unquote(coded: bytes) -> bytes:
    first, *rest = coded.split(b"%")
    try:
        return first + b"".join([_OCTETS[part[:2]] + part[2:] for part in rest])
    except KeyError:
        raise BadRequest("a % that two hexadecimal digits don't follow; write % as %25") from None


def show(name: bytes, most: int = 100) -> str:
    shown = repr(name[:most].decode("utf-8", "backslashreplace"))
    return shown if len(name) <= most else f"{shown}…"


# -- bodies ---------------------------------------------------------------------------------------


class SizedBody:
    """Gathers a body whose length is known."""

    __slots__ = ("content", "done", "missing")

    paused = False

    def __init__(self, length: int) -> None:
        self.content = bytearray()
        self.missing = length
        self.done = False

    def feed(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return the position after it."""
        piece = data[position : position + self.missing]
        self.content += piece
        self.missing -= len(piece)
        self.done = self.missing == 0
        return position + len(piece)


class ChunkedBody:
    """Decodes a chunked body (RFC 9112 section 7.1); extensions and trailers are thrown away.

    ``paused`` says that there was too much in one feed, and that what follows is to be fed later.
    """

    __slots__ = (
        "_extensions",
        "_head",
        "_left",
        "_limits",
        "_most",
        "_path",
        "_seen",
        "_state",
        "content",
        "done",
        "paused",
    )

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self, path: str, head: Head, limits: Limits) -> None:
        self.content = bytearray()
        self.done = False
        self.paused = False
        self._path = path
        self._head = head
        self._limits = limits
        self._most = limits.max_body_bytes_at.get(path, limits.max_body_bytes)
        self._state = self._SIZE
        self._left = 0
        self._extensions = 0
        self._seen = 0  # bytes of the trailer that were looked at

    def feed(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return the position after what could be used.

        Raises Refusal.
        """
        chunks = 0
        self.paused = False
        while not self.done:
            if self._state == self._SIZE:
                following = self._read_size(data, position)
                chunks += 1
                if chunks > _CHUNKS:
                    self.paused = following > position
                    return following
            elif self._state == self._DATA:
                piece = data[position : position + self._left]
                self.content += piece
                self._left -= len(piece)
                position += len(piece)
                if self._left:
                    return position
                self._state = self._DATA_END
                continue
            elif self._state == self._DATA_END:
                following = self._read_data_end(data, position)
            else:
                following = self._read_trailer(data, position)
            if following == position:
                return position
            position = following
        return position

    def _read_size(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position, position + _MAX_CHUNK_LINE) + 1
        if not end:
            if len(data) - position >= _MAX_CHUNK_LINE:
                raise Refusal(400, "a chunk's first line is too long")
            return position
        match = _is_chunk_line(data, position, end)
        if not match:
            raise Refusal(400, "malformed chunk size")
        self._extensions += len(match[2])
        if self._extensions > _MAX_EXTENSIONS:
            raise Refusal(400, "too many chunk extensions")
        self._left = int(match[1], 16)
        if len(self.content) + self._left > self._most:
            raise body_too_large(self._path, self._head, self._limits)
        self._state = self._DATA if self._left else self._TRAILER
        return end

    def _read_data_end(self, data: bytes, position: int) -> int:
        mark = data[position : position + 2]
        if len(mark) < 2:
            return position
        if mark != b"\r\n":
            raise Refusal(400, "a chunk that is longer than its size says")
        self._state = self._SIZE
        return position + 2

    def _read_trailer(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        most = position + self._limits.max_header_bytes
        end = data.find(b"\r\n\r\n", position + max(self._seen - 3, 0), most)
        _refuse_bare_line_feed(data, position + self._seen, end if end >= 0 else most)
        if end < 0:
            if len(data) >= most:
                raise Refusal(431, "the trailer section is too long")
            self._seen = len(data) - position
            return position
        _parse_fields(data[position : end + 2])
        self.done = True
        return end + 4


# -- answers --------------------------------------------------------------------------------------


def render_start(status: int, content_type: str, length: int, date: bytes) -> bytes:
    line = _render_line(status, date)
    if status in (204, 304):  # it has no body, and tells nothing of the one there would be
        return line.encode()
    return f"{line}Content-Type: {content_type}\r\nContent-Length: {length}\r\n".encode()


def render_stream_start(status: int, content_type: str, date: bytes, chunked: bool) -> bytes:
    line = _render_line(status, date)
    coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
    return f"{line}Content-Type: {content_type}\r\n{coding}".encode()


def frame_chunk(data: bytes) -> bytes:
    """Return *data* as a chunk (RFC 9112 section 7.1); it isn't empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# -- private --------------------------------------------------------------------------------------


def _parse_fields(block: bytes) -> dict[str, str]:
    """Parse header fields, each with its line end (RFC 9112 section 5). Raises Refusal."""
    if block.count(b"\r\n") > _MAX_FIELDS:
        raise Refusal(431, f"more than {_MAX_FIELDS} header fields")
    if not _are_fields(block):
        raise Refusal(400, _what_is_wrong(block))
    fields: dict[str, str] = {}
    for line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in fields:
            if name == "host":
                raise Refusal(400, "more than one Host header field")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    return fields


def _what_is_wrong(block: bytes) -> str:
    for line in block.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return "a header field is folded over two lines; put it on one"
        if not _is_field(line + b"\r\n"):
            name, colon, _ = line.partition(b":")
            if not colon:
                return "a header field without a colon"
            if name[-1:] in (b" ", b"\t"):
                return "white space before the colon of a header field"
            break
    return "a character in a header field that isn't allowed there"


def _frame(head: Head, limits: Limits) -> None:
    """Find out where the body ends (RFC 9112 section 6.3). Raises Refusal (H6)."""
    headers = head.headers
    length = headers.get("content-length")
    codings = headers.get("transfer-encoding")
    if codings is not None:
        if length is not None:
            raise Refusal(400, "both Content-Length and Transfer-Encoding; send one of them")
        if head.version == "1.0":
            raise Refusal(400, "Transfer-Encoding in an HTTP/1.0 request")
        if codings.lower() != "chunked":
            if elements(codings) - {"chunked", ""}:
                raise Refusal(501, "the only transfer coding this server knows is chunked", headers)
            raise Refusal(400, "malformed Transfer-Encoding header field")
        head.chunked = True
    elif length is not None:
        if not (length.isascii() and length.isdigit()):
            raise Refusal(400, "malformed Content-Length header field, or more than one")
        digits = length.lstrip("0")
        if len(digits) > 18 or int(digits or "0") > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes, headers)
        head.length = int(digits or "0")


def _too_large(most: int, headers: Headers, where: str = "") -> Refusal:
    return Refusal(413, f"the body is over the limit of {most} bytes{where}", headers)


def _refuse_bare_line_feed(data: bytes, start: int, stop: int) -> None:
    if data[start - 1 : start + 1] == b"\r\n":
        start -= 1  # the place where a look ended before may be between the two
    if data.count(b"\n", start, stop) != data.count(b"\r\n", start, stop):
        raise Refusal(400, "a line that ends in a bare LF; lines end in CRLF")


def _render_line(status: int, date: bytes) -> str:
    """Render how every answer begins. No browser is to guess what type of content it has."""
    phrase = PHRASES.get(status, "")
    return (
        f"HTTP/1.1 {status} {phrase}\r\nDate: {date.decode()}\r\n"
        "X-Content-Type-Options: nosniff\r\n"
    )
