"""A client of RESP for kvctl: one connection, one command after the other, nothing believed.

The protocol is that of Redis, in version 3 where the server speaks it and in 2 otherwise. A command
is an array of bulk strings; a reply begins with a byte that tells what it is, and ends with CRLF:

=========== ====================================================================================
``+`` ``-`` a line; an error, whose first word is its code
``:`` ``,`` ``#`` ``_`` ``(`` a whole number, a float, ``t`` or ``f``, nothing, a large number
``$`` ``=`` a length, and so many bytes; ``=`` has four more before them that say what they are
``*`` ``~`` a count, and so many replies
``%``       a count, and twice so many replies: keys and values
``>``       like ``*``: what nobody asked for, a message to a subscriber
=========== ====================================================================================

1. What a server sends is bounded before it is kept: :data:`MAX_LINE`, :data:`MAX_BULK`, and for a
   whole reply :data:`MAX_REPLY`, :data:`MAX_ITEMS` and :data:`MAX_DEPTH`. Nothing is allotted for a
   length that was only claimed. What goes beyond, or isn't RESP, is a :class:`Garbled`, and the
   connection is of no use any more.
2. No wait is without an end: each 64 KiB sent and each received have the time-out of their own, so
   that neither silence nor single bytes keep the caller. Messages that come before a reply count
   with it, in time and in bytes.
3. After a failure nobody knows whether the server has carried out the command: a write is sent by
   :meth:`RespClient.write`, which says so.

4. By TLS a stream that ends before the server has said so is broken (net/dialled.py).

A password in the greeting would be the business of :meth:`RespClient.greet`. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Protocol, Self, TypeAlias

from conure.commands import MAX_VALUE_BYTES
from conure.errors import ConureError, OutcomeUnknown, ProtocolViolation, Unavailable
from conure.net.dialled import Dialled
from conure.tlswords import TLS_ALERT, why_failed

__all__ = [
    "MAX_BULK",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "MAX_LINE",
    "MAX_REPLY",
    "ErrorReply",
    "Garbled",
    "NoAnswer",
    "Push",
    "Reply",
    "RespClient",
    "Securing",
    "Stream",
    "dial",
    "server_says",
]

MAX_LINE: Final = 64 << 10
MAX_BULK: Final = MAX_VALUE_BYTES
"""The longest value that a server can store."""
MAX_REPLY: Final = MAX_BULK + (16 << 20)
MAX_ITEMS: Final = 100_000
MAX_DEPTH: Final = 8

_PIECE: Final = 64 << 10
_ITEM_BYTES: Final = 64  # that an item takes beside its own
_DIGITS: Final = 20
_SPEAKS_TLS: Final = "it speaks TLS; add --tls, or --ca with the file of its CA"

_REMEDIES: Final[Mapping[str, str]] = {
    "CLUSTERDOWN": "nothing has happened; start a majority of the voters, or ask another node",
    "LOADING": "this node is no member of a cluster yet; join it, or ask another node",
    "OOM": "free some space on the leader's disk",
    "TRYAGAIN": "nothing has happened; repeat it shortly",
    "NOAUTH": "this kvctl sends no password",
    "NOPERM": "this kvctl sends no password",
}

Reply: TypeAlias = "bytes | int | float | bool | list[Any] | dict[Any, Any] | ErrorReply | None"


class ErrorReply(ConureError):
    """The server has refused a command; ``code`` is the first word of what it says."""

    title = "refused by the server"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class NoAnswer(Unavailable):
    """The server can't be reached, doesn't answer in time or has closed the connection."""


class Garbled(ProtocolViolation):
    """What came is no reply, or goes beyond what one may be."""


class Push(list[Any]):
    """A message that nobody asked for (RESP3)."""


Securing: TypeAlias = Callable[[Dialled], None]
"""Begins TLS on a connection; raises OSError if that fails."""


class Stream(Protocol):
    """The bytes in both directions: a connection, plain or by TLS."""

    def settimeout(self, value: float, /) -> None: ...
    def send(self, data: memoryview, /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


def dial(host: str, port: int, timeout: float, securing: Securing | None = None) -> Stream:
    """Connect within *timeout* seconds, and begin TLS, if there is what does, within as many.

    Raises NoAnswer.
    """
    try:
        dialled = Dialled.connect(host, port, timeout)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise NoAnswer(
            f"can't connect to {host} port {port}: {why.lower()}; name a running server by --addr, "
            "which has to serve RESP there (--resp-addr)"
        ) from error
    if securing is not None:
        dialled.settimeout(timeout)
        try:
            securing(dialled)
        except OSError as error:
            dialled.close()
            why = why_failed(error) or error.strerror or str(error) or type(error).__name__
            raise NoAnswer(f"can't ask {host} port {port} by TLS: {why}") from error
    return dialled


class RespClient:
    """A connection to the server *name*, which errors are told by. Close it."""

    def __init__(self, stream: Stream, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self.protocol = 2
        self.greeting: dict[bytes, Reply] = {}
        """What the server has told of itself, if it speaks RESP3."""
        self._stream = stream
        self._buffer = bytearray()
        self._at = 0  # where what wasn't read begins
        self._left = 0  # what a reply may still take, in bytes
        self._items = 0  # and in replies within it
        self._until = 0.0
        self._fresh = 0  # bytes that came since the time was renewed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; nothing is said."""
        self._stream.close()

    def greet(self) -> None:
        """Agree on the protocol. Raises NoAnswer, Garbled and ErrorReply."""
        # RESP skips an empty line. It ends the head of a request of HTTP, whose server answers.
        hello = _encoded([b"HELLO", b"3", b"SETNAME", b"kvctl"]) + b"\r\n"
        (told,) = self._replies(self._send(hello), 1)
        if isinstance(told, ErrorReply):
            if "speaks TLS" in str(told):  # which it says in plain text
                raise self._garbled(_SPEAKS_TLS)
            if told.code not in ("NOPROTO", "ERR"):
                raise told
            return  # it is of a time before, or without, version 3
        if not isinstance(told, dict):
            raise self._garbled("HELLO is answered by something else than a map")
        self.protocol = 3
        self.greeting = told

    def ask(self, *words: bytes) -> Reply:
        """Send a command and return its reply. Raises ErrorReply, NoAnswer and Garbled."""
        (reply,) = self.ask_each([words])
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    def ask_each(self, commands: Sequence[Sequence[bytes]]) -> Iterator[Reply]:
        """Send commands one behind the other, and yield the replies as they come, errors, too.

        All of them are sent before the first reply is read: together they have to be so few bytes
        that the server takes them while nobody reads, some ten KiB. Every reply has to be read
        before anything else is asked. Raises NoAnswer and Garbled.
        """
        yield from self._replies(self._send(b"".join(map(_encoded, commands))), len(commands))

    def write(self, *words: bytes) -> Reply:
        """Send a command that changes something and return its reply (3).

        Raises ErrorReply and OutcomeUnknown.
        """
        try:
            return self.ask(*words)
        except (NoAnswer, Garbled) as error:
            raise OutcomeUnknown(
                f"{error}; the write may or may not have been carried out: read before you "
                "repeat it"
            ) from error

    def tell(self, *words: bytes) -> None:
        """Send a command and leave its reply to :meth:`message`. Raises NoAnswer."""
        broken = self._send(_encoded(words))
        if broken is not None:
            raise broken

    def message(self, patience: float) -> Reply:
        """Return whatever comes next; TimeoutError if nothing does for so many seconds.

        Raises NoAnswer and Garbled.
        """
        if self._at == len(self._buffer):
            self._until = monotonic() + patience
            self._fill()
        return self._reply(self.timeout)

    # -- sending -----------------------------------------------------------------------------------

    def _send(self, data: bytes) -> NoAnswer | None:
        """Send all of it; return what went wrong, since the server may have said more of it."""
        rest = memoryview(data)
        try:
            self._stream.settimeout(self.timeout)
            while rest:
                rest = rest[self._stream.send(rest[:_PIECE]) :]
        except TimeoutError:
            return self._no_answer(f"took nothing for {self.timeout:g} s")
        except OSError as error:
            why = why_failed(error) or error.strerror or error
            return self._no_answer(f"has closed the connection ({why})")
        return None

    # -- replies -----------------------------------------------------------------------------------

    def _replies(self, broken: NoAnswer | None, count: int) -> Iterator[Reply]:
        """Yield the next replies; *broken* is what went wrong as the commands were sent."""
        for _ in range(count):
            try:
                reply = self._reply(self.timeout)
                while isinstance(reply, Push):  # which has its time and its bytes of the reply's
                    reply = self._reply(self.timeout, anew=False)
            except NoAnswer:
                if broken is not None:  # the server has had enough, and hasn't said of what
                    raise broken from None
                raise
            yield reply

    def _reply(self, patience: float, *, anew: bool = True) -> Reply:
        if anew:
            self._left, self._items = MAX_REPLY, MAX_ITEMS
            self._renew(patience)
        try:
            return self._one(0)
        except TimeoutError:
            raise self._no_answer(f"has not answered within {patience:g} s") from None

    def _one(self, depth: int) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        match kind:
            case b"+":
                return rest
            case b"-":
                return ErrorReply(rest.decode("utf-8", "backslashreplace"))
            case b":" | b"(":
                return self._number(rest)
            case b",":
                return self._float(rest)
            case b"#" if rest in (b"t", b"f"):
                return rest == b"t"
            case b"_" if not rest:
                return None
            case b"$" | b"=":
                return self._bulk(rest, is_verbatim=kind == b"=")
            case b"*" | b"~" | b"%" | b">":
                return self._many(kind, rest, depth)
        if line.startswith(b"HTTP/"):
            raise self._garbled("it speaks HTTP; name the address of RESP (--resp-addr) by --addr")
        raise self._garbled(f"a reply begins with {bytes(line[:20])!r}")

    def _number(self, text: bytes) -> int:
        digits = text[1:] if text[:1] in (b"-", b"+") else text
        if not digits.isdigit() or len(digits) > _DIGITS:
            raise self._garbled(f"{text[:30]!r} is no number")
        return int(text)

    def _float(self, text: bytes) -> float:
        try:
            return float(text)
        except ValueError:
            raise self._garbled(f"{text[:30]!r} is no number") from None

    def _bulk(self, text: bytes, *, is_verbatim: bool) -> bytes | None:
        size = self._number(text)
        if size < 0:
            return None
        if size > MAX_BULK:
            raise self._garbled(f"a value of {size:,} bytes, which no server can store")
        self._take_from_budget(size)
        self._need(size + 2)
        end = self._at + size
        value = bytes(self._buffer[self._at : end])
        if self._buffer[end : end + 2] != b"\r\n":
            raise self._garbled("a value doesn't end where it should")
        self._at = end + 2
        return value[4:] if is_verbatim else value

    def _many(self, kind: bytes, text: bytes, depth: int) -> Reply:
        count = self._number(text)
        if count < 0:
            return None
        if depth == MAX_DEPTH:
            raise self._garbled("a reply within too many others")
        count *= 2 if kind == b"%" else 1
        self._items -= count
        if self._items < 0:
            raise self._garbled(f"a reply of more than {MAX_ITEMS:,} parts")
        parts = [self._one(depth + 1) for _ in range(count)]
        if kind != b"%":
            return Push(parts) if kind == b">" else parts
        try:
            return dict(zip(parts[::2], parts[1::2], strict=True))
        except TypeError:
            raise self._garbled("a map has a list among its keys") from None

    # -- bytes -------------------------------------------------------------------------------------

    def _line(self) -> bytes:
        """Return the next line without its end."""
        begin = self._at
        while (end := self._buffer.find(b"\r\n", begin)) < 0:
            if len(self._buffer) - self._at > MAX_LINE:
                raise self._garbled("a line doesn't end")
            searched = len(self._buffer) - self._at
            self._fill()
            begin = self._at + max(0, searched - 1)
        line = bytes(self._buffer[self._at : end])
        self._take_from_budget(len(line) + _ITEM_BYTES)
        self._at = end + 2
        return line

    def _need(self, size: int) -> None:
        """Return once so many bytes are there."""
        while len(self._buffer) - self._at < size:
            self._fill()

    def _fill(self) -> None:
        """Receive something. Raises TimeoutError and NoAnswer."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        left = self._until - monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            self._stream.settimeout(left)
            more = self._stream.recv(_PIECE)
        except TimeoutError:
            raise
        except OSError as error:
            why = why_failed(error) or error.strerror
            raise self._no_answer(f"has broken the connection ({why})") from error
        if not more:
            if self._buffer.startswith(TLS_ALERT):
                raise self._garbled(_SPEAKS_TLS)
            raise self._no_answer("has closed the connection")
        self._buffer += more
        self._fresh += len(more)
        if self._fresh >= _PIECE:
            self._renew(self.timeout)

    def _renew(self, seconds: float) -> None:
        self._until = monotonic() + seconds
        self._fresh = 0

    def _take_from_budget(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise self._garbled(f"a reply of more than {MAX_REPLY:,} bytes")

    def _no_answer(self, what: str) -> NoAnswer:
        return NoAnswer(f"{self.name} {what}")

    def _garbled(self, what: str) -> Garbled:
        return Garbled(f"{self.name} sent what is no RESP: {what}")


def server_says(name: str, error: ErrorReply) -> str:
    """Return what a server has refused, for people, and what to do about it."""
    text = str(error).removeprefix("ERR ")
    remedy = _REMEDIES.get(error.code)
    return f"{name} answers: {text}" + (f" ({remedy})" if remedy else "")


def _encoded(words: Iterable[bytes]) -> bytes:
    """Return a command as it is sent."""
    parts = list(words)
    return b"".join(
        [b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)]
    )
