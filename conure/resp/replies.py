"""Replies as bytes: RESP2 and RESP3, one encoder for both.

What a reply is made of, and what stands on the wire for it (``\\r\\n`` ends each line)::

    meaning             RESP2               RESP3
    simple string       +OK                 +OK
    error               -ERR what           -ERR what
    integer             :42                 :42
    bulk string         $3, then abc        $3, then abc
    no value            $-1                 _
    no array            *-1                 _
    array of n          *n                  *n
    map of n pairs      *2n                 %n
    set of n            *n                  ~n
    push of n           *n                  >n
    double              $3, then 1.5        ,1.5
    boolean             :1                  #t
    verbatim text       $4, then text       =8, then txt:text
    big number          $2, then 42         (42

``[1, "a", nothing]`` is ``*3 :1 $1 a $-1`` in RESP2, and ends in ``_`` in RESP3. An array, map, set
or push is its head, followed by as many replies as the head says: whoever writes one writes those.

Nothing here knows a connection. An encoder belongs to whoever has made it, in any one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf, isnan
from typing import Final

__all__ = ["NULL", "OK", "RESP2", "RESP3", "Replies", "double_text"]

RESP2: Final = 2
RESP3: Final = 3

OK: Final = b"+OK\r\n"
NULL: Final = {RESP2: b"$-1\r\n", RESP3: b"_\r\n"}
"""What stands for a value that isn't there, by protocol."""

_NULL_ARRAY: Final = {RESP2: b"*-1\r\n", RESP3: b"_\r\n"}
_INTEGERS: Final = tuple(b":%d\r\n" % number for number in range(1024))
_WHOLE: Final = 1 << 53  # doubles below are whole numbers to the last digit


class Replies:
    """Writes replies of one protocol, in order. :meth:`take` returns their bytes."""

    __slots__ = ("_pieces", "protocol")

    def __init__(self, protocol: int = RESP2) -> None:
        assert protocol in NULL, protocol
        self.protocol = protocol
        self._pieces: list[bytes] = []

    def take(self) -> bytes:
        """Return all that was written since the last call."""
        pieces = self._pieces
        found = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return found

    # -- single values

    def ok(self) -> None:
        """Write ``+OK``."""
        self._pieces.append(OK)

    def simple(self, text: bytes) -> None:
        """Write a simple string, which is one line."""
        assert b"\r" not in text, text
        assert b"\n" not in text, text
        self._pieces.append(b"+%b\r\n" % text)

    def error(self, text: str) -> None:
        """Write an error, its code first: ``ERR no such key``. Line ends in it become spaces."""
        line = text.replace("\r", " ").replace("\n", " ")
        self._pieces.append(b"-%b\r\n" % line.encode("utf-8", "surrogateescape"))

    def integer(self, number: int) -> None:
        """Write an integer of 64 bits, signed."""
        if 0 <= number < 1024:
            self._pieces.append(_INTEGERS[number])
        else:
            assert -(1 << 63) <= number < 1 << 63, number
            self._pieces.append(b":%d\r\n" % number)

    def bulk(self, value: bytes | None) -> None:
        """Write a string of any bytes; None: there is no value."""
        if value is None:
            self.null()
        else:
            self._pieces += (b"$%d\r\n" % len(value), value, b"\r\n")

    def null(self) -> None:
        """Write that there is no value."""
        self._pieces.append(NULL[self.protocol])

    def null_array(self) -> None:
        """Write that there is no array, as an EXEC whose watched keys have changed does."""
        self._pieces.append(_NULL_ARRAY[self.protocol])

    def double(self, number: float) -> None:
        """Write a floating-point number."""
        text = double_text(number)
        if self.protocol == RESP3:
            self._pieces.append(b",%b\r\n" % text)
        else:
            self.bulk(text)

    def boolean(self, value: bool) -> None:
        """Write true or false; in RESP2 as 1 or 0."""
        if self.protocol == RESP3:
            self._pieces.append(b"#t\r\n" if value else b"#f\r\n")
        else:
            self._pieces.append(_INTEGERS[value])

    def big_number(self, number: int) -> None:
        """Write an integer of any size."""
        if self.protocol == RESP3:
            self._pieces.append(b"(%d\r\n" % number)
        else:
            self.bulk(b"%d" % number)

    def verbatim(self, text: bytes, kind: bytes = b"txt") -> None:
        """Write text that is meant to be shown as it is; *kind* is ``txt`` or ``mkd``."""
        assert len(kind) == 3, kind
        if self.protocol == RESP3:
            self._pieces.append(b"=%d\r\n%b:%b\r\n" % (len(text) + 4, kind, text))
        else:
            self.bulk(text)

    # -- heads, each followed by what they count

    def array_of(self, count: int) -> None:
        """Begin an array of *count* replies."""
        self._pieces.append(b"*%d\r\n" % count)

    def map_of(self, count: int) -> None:
        """Begin a map of *count* pairs: twice as many replies, each key before its value."""
        if self.protocol == RESP3:
            self._pieces.append(b"%%%d\r\n" % count)
        else:
            self.array_of(2 * count)

    def set_of(self, count: int) -> None:
        """Begin a set of *count* replies."""
        if self.protocol == RESP3:
            self._pieces.append(b"~%d\r\n" % count)
        else:
            self.array_of(count)

    def push(self, count: int) -> None:
        """Begin a push of *count* replies: what comes without having been asked for."""
        if self.protocol == RESP3:
            self._pieces.append(b">%d\r\n" % count)
        else:
            self.array_of(count)

    # -- several

    def bulks(self, values: Iterable[bytes | None]) -> None:
        """Write strings one after the other, without a head."""
        for value in values:
            self.bulk(value)

    def raw(self, data: bytes) -> None:
        """Write what is encoded already, by an encoder of the same protocol."""
        self._pieces.append(data)


def double_text(number: float) -> bytes:
    """Return a floating-point number as the shortest decimal that is read back as the same one:
    ``3``, ``0.1``, ``1e+30``, ``inf``, ``-inf``, ``nan``."""
    if isnan(number):
        return b"nan"
    if isinf(number):
        return b"inf" if number > 0 else b"-inf"
    if number == int(number) and abs(number) < _WHOLE:
        return b"-0" if number == 0 and str(number)[0] == "-" else b"%d" % int(number)
    return repr(number).encode()
