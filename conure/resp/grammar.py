"""Requests of RESP as bytes: what clients send, cut into commands.

A command is an array of bulk strings, or a line of words, which is what people type (*inline*)::

    *2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n      the words GET and key
    GET "a key" 'b'\\r\\n                     the words GET, a key and b

A :class:`Reader` is fed what a connection receives and gives the words of each command; or a *run*,
which is commands in a row that have the same name and the same number of words, column by column,
since clients repeat themselves. What is there of a command stays in the reader, and no byte of it
is looked at twice. How bytes were cut on their way never changes a command or an error.

What comes from outside is bounded before it is held: the length of a line, of a word, of a command
with a fixed price for each of its words, and how many words are announced. Bytes that are no
command raise :class:`ProtocolError`, worded as Redis 7 does; nothing after them is read.

Knows no command, socket or clock. A reader belongs to one thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from conure.resp.numbers import parse_integer

__all__ = ["LINE_BYTES", "MAX_RUN", "WORD_PRICE", "ProtocolError", "Reader", "Run", "split_line"]

LINE_BYTES: Final = 64 << 10
"""The longest line, be it an inline command or a number."""

MAX_RUN: Final = 128
"""Commands of one run at most."""

WORD_PRICE: Final = 64
"""Bytes that a word counts for beside its own: an object costs as much."""

_MAX_WORDS: Final = 1 << 20  # of a command, as they are announced
_WINDOW: Final = 8 << 10  # bytes that are cut into lines in one go
_STRIDES: Final = {b"*%d" % count: 2 * count + 1 for count in range(1, 129)}  # lines of a command
_LONE_LINES: Final = 8  # that are looked for first: a SET, and the beginning of another command
_SIZES: Final = tuple(b"$%d" % size for size in range(_WINDOW + 1))
_ESCAPED: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_SPACES: Final = b" \t\n\v\f\r\0"


class ProtocolError(Exception):
    """Bytes that are no command; ``str()`` is what is wrong, without ``Protocol error: ``."""


class Run(NamedTuple):
    """So many commands in a row (*size*, more than one), all of the same *name*: the other words
    of the command at position *i* are the *i*-th of each of the *columns*."""

    name: bytes
    columns: list[list[bytes]]
    size: int

    def head(self, size: int) -> list[bytes] | Run:
        """Return the first *size* commands; a single one isn't a run."""
        if size == 1:
            return [self.name, *(column[0] for column in self.columns)]
        return Run(self.name, [column[:size] for column in self.columns], size)


class Reader:
    """Cuts what one client sends into commands, of *most_bytes* each, about."""

    __slots__ = (
        "_cut_bytes",
        "_data",
        "_lines",
        "_missing",
        "_most_bytes",
        "_next",
        "_one_by_one",
        "_parts",
        "_position",
        "_seen",
        "_short",
        "_words",
        "held",
    )

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._data = b""  # received; up to _position it is done with
        self._position = 0
        self._seen = 0  # bytes from there on in which no line ends
        self._lines: list[bytes] = []  # of what begins at _position, as far as it is cut
        self._cut_bytes = 0  # all of them together
        self._next = 0  # which of them is the first of the next command
        self._one_by_one = False  # a command of this data is none of the common ones
        # Of a command that isn't complete: its words so far, how many there are to come; of a word
        # that isn't, its parts, and how many bytes are to come, its line end too.
        self._words: list[bytes] | None = None
        self._missing = 0
        self._parts: list[bytes] = []
        self._short = 0
        self.held = 0
        """Bytes that the command which isn't complete counts for, but for the last lines of it."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of any command."""
        return self._words is None and not self.unread

    @property
    def unread(self) -> int:
        """Bytes that were received and belong to no run yet, nor to :attr:`held`."""
        unread = len(self._data) - self._position
        if self._lines:
            unread -= sum(map(len, self._lines[: self._next])) + 2 * self._next
        return unread

    def feed(self, data: bytes) -> None:
        """Take bytes that were received, after those before them."""
        if self._lines:
            self._settle()
        rest = self._data[self._position :] if self._position < len(self._data) else b""
        self._data = rest + data if rest else data
        self._position = 0
        self._one_by_one = False

    def take_lone(self, data: bytes) -> list[bytes] | None:
        """Return the words of the one common command that was received, if it is all there is; None
        otherwise, and it is to be fed."""
        if self._data or self._words is not None or len(data) > _WINDOW:
            return None
        lines = data.split(b"\r\n", _LONE_LINES)
        last = len(lines) - 1
        stride = _STRIDES.get(lines[0], 0)
        if stride > _LONE_LINES == last:
            lines = data.split(b"\r\n", stride + 1)
            last = len(lines) - 1
        if not stride or stride != last or lines[last]:
            return None
        words = lines[2::2]
        at = 1
        for word in words:
            if lines[at] != _SIZES[len(word)]:
                return None
            at += 2
        return words

    def rest(self) -> None:
        """Let go of what was read ahead: nothing is taken for a while."""
        if self._lines:
            self._settle()
        if self._position:
            self._data = self._data[self._position :]
            self._position = 0

    def clear(self) -> None:
        """Forget everything: nothing is taken any more."""
        self._data = b""
        self._position = self._seen = self._next = self._missing = self._short = self.held = 0
        self._lines = []
        self._words = None
        self._parts = []

    def take(self) -> list[bytes] | Run | None:
        """Return the words of the next command, or a run, or None until there is more to read.
        Raises ProtocolError."""
        while True:
            if self._lines or self._cut():
                found = self._take_common()
                if found is not None:
                    return found
            if self._position >= len(self._data):
                return None
            words = self._take_one()
            if words is None or words:
                return words

    # -- common commands: many lines in one go ---------------------------------------------------

    def _cut(self) -> bool:
        """Cut what follows into lines, if that is of use; return whether it was."""
        data, position = self._data, self._position
        size = len(data)
        if position == size or self._one_by_one or self._words is not None or self._seen:
            return False
        is_all = position == 0 and size <= _WINDOW
        window = data if is_all else data[position : position + _WINDOW]
        self._lines = window.split(b"\r\n")
        self._cut_bytes = len(window)
        return True

    def _take_common(self) -> list[bytes] | Run | None:
        """Return a command, or several that are alike; None: what follows is to be read one by one,
        or to be cut anew.

        A line end within a word would be taken for the end of the word, so lengths are compared.
        """
        lines, first = self._lines, self._next
        head = lines[first]
        stride = _STRIDES.get(head, 0)
        end = first + stride
        last = len(lines) - 1  # that line is not complete
        if not stride or end > last:
            # A command that is longer than all that was cut is read by itself; if it is none of
            # the common ones, so are those after it.
            self._one_by_one = not stride and first < last
            self._settle()
            if first and first < last:
                return self._take_common() if self._cut() else None
            return None
        name = lines[first + 2]
        following = end + stride
        if following <= last and lines[end] == head and lines[end + 2] == name:
            return self._take_alike(head, name, stride)
        words = lines[first + 2 : end : 2]
        if lines[first + 1 : end : 2] != [_SIZES[len(word)] for word in words]:
            self._settle()
            self._one_by_one = True
            return None
        if end == last and not lines[last]:
            self._position += self._cut_bytes
            self._lines = []
            self._next = 0
        else:
            self._next = end
        return words

    def _take_alike(self, head: bytes, name: bytes, stride: int) -> list[bytes] | Run | None:
        """Return as many commands as are alike, at least the first two of which seem to be."""
        lines, first = self._lines, self._next
        count = min((len(lines) - 1 - first) // stride, MAX_RUN)
        end = first + count * stride
        if (
            lines[first:end:stride].count(head) < count
            or lines[first + 2 : end : stride].count(name) < count
        ):
            end = first + 2 * stride
            while lines[end] == head and lines[end + 2] == name:
                end += stride
            count = (end - first) // stride
        columns: list[list[bytes]] = []
        for line in range(first + 1, first + stride, 2):
            words = lines[line + 1 : end : stride]
            if lines[line:end:stride] != [_SIZES[len(word)] for word in words]:
                self._settle()
                self._one_by_one = True
                return None
            columns.append(words)
        del columns[0]
        self._next = end
        return Run(name, columns, count)

    def _settle(self) -> None:
        """Forget what was cut into lines ahead; what was taken of it is done with."""
        lines = self._lines
        if lines:
            if self._next == len(lines) - 1:
                self._position += self._cut_bytes - len(lines[-1])
            else:
                done = lines[: self._next]
                self._position += sum(map(len, done)) + 2 * len(done)
            self._lines = []
            self._next = 0

    # -- any command: one after the other --------------------------------------------------------

    def _take_one(self) -> list[bytes] | None:
        """Return the words of the next command, none if it has none, or None until there is more.
        Raises ProtocolError."""
        if self._words is None:
            if self._data[self._position] != 42:  # no *
                if self._data[self._position] == 22:  # the type of TLS's handshake records
                    raise ProtocolError("a TLS handshake, and this port speaks no TLS")
                line = self._line(b"\n", "too big inline request")
                return None if line is None else split_line(line)
            line = self._line(b"\r\n", "too big mbulk count string")
            if line is None:
                return None
            count = parse_integer(line[1:])
            if count is None or count > _MAX_WORDS:
                raise ProtocolError("invalid multibulk length")
            if count <= 0:
                return []
            self._words = []
            self._missing = count
        while self._missing:
            if not (self._short or self._begin_word()):
                return None
            if not self._go_on_with_word():
                return None
        words, self._words = self._words, None
        self.held = 0
        return words

    def _begin_word(self) -> bool:
        """Read how long the next word is; return whether that is there. Raises ProtocolError."""
        if self._position >= len(self._data):
            return False
        kind = self._data[self._position]
        if kind != 36:  # no $
            shown = chr(kind) if 32 <= kind < 127 else f"\\x{kind:02x}"
            raise ProtocolError(f"expected '$', got '{shown}'")
        line = self._line(b"\r\n", "too big bulk count string")
        if line is None:
            return False
        size = parse_integer(line[1:])
        if size is None or not 0 <= size <= self._most_bytes:
            raise ProtocolError("invalid bulk length")
        self.held += size + WORD_PRICE
        if self.held > self._most_bytes + WORD_PRICE * 4:
            raise ProtocolError(f"too big request, the limit is {self._most_bytes} bytes")
        self._short = size + 2
        return True

    def _go_on_with_word(self) -> bool:
        """Take what there is of a word; return whether that is all. Raises ProtocolError."""
        part = self._data[self._position : self._position + self._short]
        self._position += len(part)
        self._short -= len(part)
        if self._short or self._parts:
            self._parts.append(part)
        if self._short:
            return False
        if self._parts:
            part = b"".join(self._parts)
            self._parts = []
        if not part.endswith(b"\r\n"):
            raise ProtocolError("expected a line end after a bulk")
        assert self._words is not None
        self._words.append(part[:-2])
        self._missing -= 1
        return True

    def _line(self, end: bytes, too_long: str) -> bytes | None:
        """Return the next line, without its *end*, or None until it is there. Raises ProtocolError,
        with *too_long*."""
        data, position = self._data, self._position
        found = data.find(end, position + max(self._seen - 1, 0), position + LINE_BYTES + len(end))
        if found < 0:
            self._seen = len(data) - position
            if self._seen > LINE_BYTES + 1:
                raise ProtocolError(too_long)
            return None
        self._seen = 0
        self._position = found + len(end)
        return data[position:found]


def split_line(line: bytes) -> list[bytes]:
    """Return the words of an inline command. A word may be quoted: "…" knows escapes such as
    \\\\n and \\\\x41, '…' only \\\\'. Raises ProtocolError."""
    if not (b'"' in line or b"'" in line):
        return line.replace(b"\0", b" ").split()
    words: list[bytes] = []
    position, size = 0, len(line)
    while True:
        while position < size and line[position] in _SPACES:
            position += 1
        if position == size:
            return words
        word, position = _take_word(line, position)
        words.append(word)


def _take_word(line: bytes, position: int) -> tuple[bytes, int]:
    """Return the word at a position, and what comes after. Raises ProtocolError."""
    word = bytearray()
    size = len(line)
    quote = 0
    while position < size:
        byte = line[position]
        if not quote:
            if byte in _SPACES:
                break
            if byte in b"\"'":
                quote = byte
            else:
                word.append(byte)
            position += 1
            continue
        if byte == quote:
            if position + 1 < size and line[position + 1] not in _SPACES:
                raise ProtocolError("unbalanced quotes in request")
            return bytes(word), position + 1
        if byte == 92 and position + 1 < size:
            piece, position = _take_escape(line, position, quote)
            word += piece
            continue
        word.append(byte)
        position += 1
    if quote:
        raise ProtocolError("unbalanced quotes in request")
    return bytes(word), position


def _take_escape(line: bytes, position: int, quote: int) -> tuple[bytes, int]:
    """Return what a backslash within quotes stands for, and the position after it."""
    following = line[position + 1 : position + 2]
    if quote == 39:  # '
        return (b"'", position + 2) if following == b"'" else (b"\\", position + 1)
    digits = line[position + 2 : position + 4]
    if following == b"x" and len(digits) == 2 and digits.isalnum():
        try:
            return bytes.fromhex(digits.decode()), position + 4
        except ValueError:  # no hexadecimal digits: an x
            pass
    return _ESCAPED.get(following, following), position + 2
