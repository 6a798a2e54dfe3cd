"""JSON read and written in steps: no text of any content keeps a thread busy for long at a time.

``json`` reads or writes a text in one go, and no other thread runs meanwhile. Here both are
generators that hand control back at the latest after some 64 KiB or a few dozen values; whoever
drives them looks at the clock in between. What stands in a text is judged as ``json`` does: the
strings and numbers in it are read by ``json`` and Python themselves, a slice at a time, and
:func:`read` returns what ``json.loads`` returns or refuses what that refuses, with these bounds:

- a text is UTF-8, perhaps with a byte order mark;
- it has up to :data:`MAX_VALUES` values and names, in up to :data:`MAX_DEPTH` levels;
- a number has up to :data:`MAX_DIGITS` characters, a string as many as the caller says;
- a name stands once in its object, unless the caller says otherwise.

A caller that can do with a long string in parts gets it as a :class:`LongText`: to put millions of
characters together is one long step.

The first three are looked at while reading, before anything is made of what goes beyond them.
:func:`write` gives the text that ``json.dumps`` gives. Nothing here has state: any thread may call
anything.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, utf_8_decode
from collections.abc import Generator, Iterator
from json import dumps
from json.decoder import scanstring  # type: ignore[attr-defined]
from sys import maxsize
from typing import Any, Final, TypeVar

from conure.errors import BadRequest, PayloadTooLarge

__all__ = [
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_VALUES",
    "LongText",
    "Malformed",
    "Steps",
    "all_of",
    "is_blank",
    "read",
    "write",
]

MAX_VALUES: Final = 8192
MAX_DEPTH: Final = 32
MAX_DIGITS: Final = 4300
"""Characters of a number; Python reads none of more digits."""

_T = TypeVar("_T")

Steps = Generator[None, None, _T]
"""Does something in steps of a millisecond at most, and returns what came of it."""

_FIRST, _SLICE = 128, 64 << 10  # bytes of a string that are looked at together: at first, at most
_PER_STEP = 32  # values
_SPACE = re.compile(rb"[ \t\n\r]*")
_NUMBER = re.compile(rb"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_CONSTANTS = {
    b"null": None,
    b"true": True,
    b"false": False,
    b"NaN": float("nan"),
    b"Infinity": float("inf"),
    b"-Infinity": float("-inf"),
}


class Malformed(ValueError):
    """A text that is not JSON. Says why, and at which byte."""


class LongText:
    """A string of a text that is left in the parts in which it was read. No code point is cut."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts


def all_of(steps: Generator[object, None, _T]) -> _T:
    """Do all steps at once; return what came of them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def read(
    text: bytes, *, longest: int = maxsize, whole: int = maxsize, repeats: bool = False
) -> Steps[Any]:
    """Return what a text stands for; a string in it has up to *longest* characters, and one of more
    than *whole* is a LongText, but for names, which have no more.

    Of a name that is given twice the last value counts with *repeats*. Raises Malformed,
    BadRequest for a name given twice, PayloadTooLarge beyond a bound.
    """
    return _Reader(text, longest, whole, repeats=repeats).read()


def is_blank(text: bytes) -> Steps[bool]:
    """Return whether there is nothing but white space in a text."""
    at = 0
    while at < len(text):
        if text[at : at + _SLICE].strip():
            return False
        at += _SLICE
        yield
    return True


def write(value: Any) -> Iterator[bytes]:
    """Yield the text for a value that ``json.dumps`` can write, in pieces of about 64 KiB.

    A piece may be empty: it is a step all the same.
    """
    pieces: list[str] = []
    size = 0
    for piece in _pieces(value):
        pieces.append(piece)
        size += len(piece)
        if size >= _SLICE or len(pieces) >= _PER_STEP:
            yield "".join(pieces).encode()
            pieces.clear()
            size = 0
    yield "".join(pieces).encode()


# -- private: reading ----------------------------------------------------------------------------


class _Reader:
    """Reads one text, and knows how far it has come."""

    def __init__(self, text: bytes, longest: int, whole: int, *, repeats: bool) -> None:
        self._text = text
        self._at = len(BOM_UTF8) if text.startswith(BOM_UTF8) else 0
        self._longest = longest
        self._whole = whole
        self._repeats = repeats
        self._values = 0

    def read(self) -> Steps[Any]:
        found = yield from self._value(MAX_DEPTH)
        if (yield from self._next()):
            raise self._wrong("there is more behind the value")
        return found

    def _value(self, levels: int) -> Steps[Any]:
        first = yield from self._next()
        if self._count_one():
            yield
        if first in (b"{", b"["):
            if not levels:
                raise BadRequest(f"JSON of more than {MAX_DEPTH} levels; send a flatter one")
            self._at += 1
            if first == b"{":
                return (yield from self._object(levels - 1))
            return (yield from self._list(levels - 1))
        if first == b'"':
            return (yield from self._string())
        return self._scalar()

    def _object(self, levels: int) -> Steps[dict[str, Any]]:
        found: dict[str, Any] = {}
        first = yield from self._next()
        while first != b"}":
            if first != b'"':
                raise self._wrong("a name in double quotes is missing")
            if self._count_one():
                yield
            name = yield from self._string()
            if isinstance(name, LongText):
                raise PayloadTooLarge(f"a name of more than {self._whole:,} characters in the body")
            if name in found and not self._repeats:
                raise BadRequest(f"{name[:100]!r} is given twice in the body; give it once")
            if (yield from self._next()) != b":":
                raise self._wrong("a colon is missing")
            self._at += 1
            found[name] = yield from self._value(levels)
            first = yield from self._follow(b"}", b'"')
        self._at += 1
        return found

    def _list(self, levels: int) -> Steps[list[Any]]:
        found: list[Any] = []
        first = yield from self._next()
        while first != b"]":
            found.append((yield from self._value(levels)))
            first = yield from self._follow(b"]", b"")
        self._at += 1
        return found

    def _follow(self, end: bytes, beginning: bytes) -> Steps[bytes]:
        """Return what follows an element: the end, or after a comma the beginning of another."""
        following = yield from self._next()
        if following == end:
            return end
        if following != b",":
            raise self._wrong(f"a comma or a {end.decode()} is missing")
        self._at += 1
        following = yield from self._next()
        if following == end or (beginning and following != beginning):
            raise self._wrong("an element is missing behind the comma")
        return following

    def _next(self) -> Steps[bytes]:
        """Pass over white space; return the byte after it, empty at the end."""
        text, at = self._text, self._at
        while text[at : at + 1] in _BLANK:
            match = _SPACE.match(text, at, at + _SLICE)
            assert match is not None
            at = match.end()
            if at == len(text):
                break
            yield
        self._at = at
        return text[at : at + 1]

    def _count_one(self) -> bool:
        """Count a value or a name; return whether a step is over."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise PayloadTooLarge(
                f"more than {MAX_VALUES:,} values and names in one JSON text; send less at a time"
            )
        return self._values % _PER_STEP == 0

    def _scalar(self) -> Any:
        text, at = self._text, self._at
        for name, constant in _CONSTANTS.items():
            if text.startswith(name, at):
                self._at += len(name)
                return constant
        match = _NUMBER.match(text, at, at + MAX_DIGITS + 1)
        if match is None:
            raise self._wrong("a value is missing")
        number = match[0]
        if len(number) > MAX_DIGITS:
            raise Malformed(f"a number of more than {MAX_DIGITS:,} characters at byte {at}")
        self._at = match.end()
        is_whole = match[2] is match[3] is None
        return int(number) if is_whole else float(number)

    def _string(self) -> Steps[str | LongText]:
        """Read the string that begins here: slices of it, each up to where nothing is cut."""
        text = self._text
        begin = at = self._at + 1
        size, length = _FIRST, 0
        found: list[str] = []
        while True:
            piece = text[at : at + size]
            is_last = at + size >= len(text)
            try:
                inside, used = utf_8_decode(piece if is_last else _whole(piece), "strict", is_last)
                part, end = scanstring(f'{inside}"', 0, True)
            except ValueError as error:
                reason = getattr(error, "reason", None) or getattr(error, "msg", error)
                raise Malformed(f"{reason}, in the string at byte {begin - 1}") from error
            found.append(part)
            length += len(part)
            if length > self._longest:
                raise PayloadTooLarge(
                    f"a string of more than {self._longest:,} characters at byte {begin - 1}: "
                    "more than any value may have (max_value_bytes)"
                )
            if end <= len(inside):
                self._at = at + len(inside[:end].encode())
                return "".join(found) if length <= self._whole else LongText(found)
            if is_last:
                raise Malformed(f"a string without an end at byte {begin - 1}")
            at += used
            size = min(8 * size, _SLICE)
            yield

    def _wrong(self, what: str) -> Malformed:
        return Malformed(f"{what} at byte {self._at}")


_BLANK = frozenset((b" ", b"\t", b"\n", b"\r"))


def _whole(piece: bytes) -> bytes:
    """Return a piece of a string without the escape at its end that may go on after it."""
    last = piece.rfind(b"\\", len(piece) - 6)
    if last >= 0 and _begins_escape(piece, last):
        size = 6 if piece[last + 1 : last + 2] == b"u" else 2
        if last + size > len(piece):
            piece = piece[:last]
    if _HIGH_SURROGATE.search(piece, len(piece) - 6) and _begins_escape(piece, len(piece) - 6):
        piece = piece[:-6]  # the other half may follow
    return piece


def _begins_escape(piece: bytes, at: int) -> bool:
    """Tell whether the backslash there isn't itself escaped: an even number stands before it."""
    before = piece[:at]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0


# -- private: writing ----------------------------------------------------------------------------


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) > _SLICE:
        yield '"'
        for at in range(0, len(value), _SLICE):
            yield dumps(value[at : at + _SLICE])[1:-1]
        yield '"'
    elif isinstance(value, dict) and not all(map(_is_short, value.values())):
        before = "{"
        for name, each in value.items():
            yield f"{before}{dumps(name)}: "
            yield from _pieces(each)
            before = ", "
        yield "}"
    elif isinstance(value, list) and value:
        before = "["
        for each in value:
            yield before
            yield from _pieces(each)
            before = ", "
        yield "]"
    else:
        yield dumps(value)


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict | list) and (
        not isinstance(value, str) or len(value) <= _SLICE
    )
