"""A byte stream that is encrypted by TLS, with the manners of a non-blocking socket.

OpenSSL never sees the socket: it reads from one piece of memory and writes to another
(``ssl.MemoryBIO``), and :class:`TlsLink` carries bytes between these and the socket. So a call
never waits, and what OpenSSL wants to read or write is no business of whoever uses the link::

    socket ─recv─▶ held ─feed─▶ incoming ─┐
                                          ├─ SSLObject ─▶ what is received, from what is sent
    socket ◀─send─ unsent ◀── outgoing ◀──┘

- The handshake is done by the first calls of ``receive``, within their time. Until it is done
  nothing can be sent, and :attr:`TlsLink.deadline` says when it is to be given up. The server's
  side makes no object of OpenSSL before the first byte has come: who only connects costs a socket.
- The end of the stream without the alert that says so (close_notify) is a ConnectionResetError,
  since anybody on the way can close a TCP connection (RFC 8446 section 6.1).
- What one call decrypts is bounded in records, not only in bytes: each may cost as much as a change
  of keys, and in 64 KiB there is room for thousands.
- OpenSSL is given, and gives, one record's worth of bytes at a time, about: its pieces of memory
  keep the size that they once had, for as long as the connection lasts.

Nothing is logged here, and no file is read: contexts are made elsewhere (``ssl.SSLContext``), and
*failed* is told of handshakes that came to nothing. Renegotiation and compression are for the
context to switch off.

Threads: one may receive while another one sends; each call holds the link's own lock, under which
nobody else's code runs but *failed*.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from socket import SHUT_WR, socket
from threading import Lock
from time import perf_counter, time
from typing import Any, Final, NoReturn

from conure.net.sockets import reset_on_close
from conure.net.tlsreasons import reason_of

__all__ = ["HANDSHAKE_TIME", "HandshakeFailed", "ServerLinks", "TlsLink"]

HANDSHAKE_TIME: Final = 10.0
"""Seconds from a connection to the end of its handshake."""

_FETCH: Final = 64 << 10  # bytes that are read from the socket at a time
_RECORD: Final = (
    16 << 10
)  # bytes of a record, about: what OpenSSL is given, or asked for, at a time
_HEADER: Final = 5  # bytes of a record: type, version (2), length (2)
_MOST_RECORDS: Final = 64  # that one call decrypts
_TOGETHER: Final = 64 << 10  # bytes that are encrypted before the socket is tried
_MOST_SENT: Final = 256 << 10  # bytes that one call encrypts
_MOST_UNSENT: Final = 256 << 10  # encrypted bytes that wait for the socket; see _send_own
_HANDSHAKE: Final = 22  # the type of the first record of every handshake
_NAMES: Final = ("DNS", "URI")  # kinds of a certificate's names by which somebody may be known


class HandshakeFailed(ConnectionError):
    """There is no connection, and why, in words for a log; the cause is OpenSSL's error."""


class ServerLinks:
    """Makes the links of a listener: each with the *context* of that moment, and *time* seconds for
    its handshake. *failed* is told the client's address, and why its handshake came to nothing.
    The rest is :class:`TlsLink`'s. Any thread."""

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        plain_reply: bytes,
        failed: Callable[[str, str], None],
        time: float = HANDSHAKE_TIME,
    ) -> None:
        self._context = context
        self._plain_reply = plain_reply
        self._failed = failed
        self._time = time

    def __call__(self, accepted: socket, peer: Any) -> TlsLink:
        """Make the link of an accepted socket; see ``listener.MakeLink``."""
        return TlsLink(
            accepted,
            self._context(),
            server_side=True,
            deadline=perf_counter() + self._time,
            plain_reply=self._plain_reply,
            failed=partial(self._failed, peer[0]),
        )


class TlsLink:
    """TLS over a connected socket, which is made non-blocking before; a :class:`~link.Link`.

    *server_side* waits for the other side's first word, the client's side looks for *hostname* in
    the certificate if *context* says so. *deadline* is by ``perf_counter``. *received* are bytes
    that were read from the socket before. A client that doesn't speak TLS is sent *plain_reply*.
    *failed* is told, in words, why a handshake that had begun came to nothing; it doesn't raise,
    and it is called by whoever has called this link.
    """

    __slots__ = (
        "_claimed",
        "_context",
        "_error",
        "_failed",
        "_has_ended",
        "_held",
        "_hostname",
        "_incoming",
        "_lock",
        "_object",
        "_outgoing",
        "_plain_reply",
        "_ready",
        "_resets",
        "_rest",
        "_server_side",
        "_shakes",
        "_unsent",
        "deadline",
        "descriptor",
        "names",
        "pending",
        "principal",
        "proof",
        "socket",
    )

    def __init__(
        self,
        connected: socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        deadline: float,
        hostname: str = "",
        received: bytes = b"",
        plain_reply: bytes = b"",
        failed: Callable[[str], None] | None = None,
    ) -> None:
        self.socket = connected
        self.descriptor = connected.fileno()
        self.pending = False
        self.deadline = deadline
        self.principal = ""
        self.names: frozenset[str] = frozenset()
        self.proof = ""
        self._context = context
        self._server_side = server_side
        self._hostname = hostname
        self._plain_reply = plain_reply
        self._failed = failed
        self._lock = Lock()
        self._shakes = True  # the handshake isn't done
        self._object: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        self._held = received  # from the socket, not yet given to OpenSSL
        self._rest = 0  # bytes to come of the record that OpenSSL has a part of
        self._ready = b""  # decrypted before it was asked for
        self._unsent = b""  # encrypted, for the socket
        self._claimed = 0  # bytes that became of these and were not yet reported as sent
        self._has_ended = False  # the other side has said that nothing more will come
        self._error: Callable[[], OSError] | None = None  # makes what the next call raises
        self._resets = False

    @property
    def stalled(self) -> bool:
        """Whether bytes of the link's own wait for the socket; see :class:`~link.Link`."""
        return bool(self._unsent) and not self._claimed

    def local_address(self) -> str:
        """Return the IP address that this end has. Raises OSError."""
        return str(self.socket.getsockname()[0])

    def handshake(self) -> None:
        """Carry the handshake on. BlockingIOError: it isn't done, and wants input, or, while the
        link is :attr:`stalled`, output. Raises HandshakeFailed and other OSErrors."""
        with self._lock:
            if self._shakes:
                self._shake()

    def receive(self, size: int) -> bytes:
        """Return at most *size* bytes; see :class:`~link.Link`."""
        with self._lock:
            if self._shakes:
                self._shake()
            elif self._unsent and not self._claimed:
                self._flush()
            if self.pending:
                data = self._read(size)
                if data or self._has_ended:
                    return data
            self._fetch()
            data = self._read(size)
            if not (data or self._has_ended):
                raise BlockingIOError
            return data

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Do as :meth:`receive` into a buffer."""
        data = self.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        """Send what can be sent at once; see :class:`~link.Link`. Raises OSError: before the
        handshake is done, too."""
        with self._lock:
            return self._send(data)

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Do as :meth:`send` with several pieces in a row."""
        with self._lock:
            return self._send(_join(pieces, _MOST_SENT))

    def flush(self) -> None:
        """Send what is the link's own as far as that can be done at once. Raises OSError."""
        with self._lock:
            if self._unsent and not self._claimed:
                self._flush()

    def shut(self) -> None:
        """Say that nothing more will be sent, in words of TLS, too. Raises OSError."""
        with self._lock:
            self._say_end()
            self.socket.shutdown(SHUT_WR)

    def reset_on_close(self, *, resets: bool) -> None:
        """Say whether :meth:`close` shows as a broken connection. Raises OSError."""
        reset_on_close(self.socket, resets=resets)
        self._resets = resets

    def close(self) -> None:
        """Let go of the socket; the other side is told if that needs no waiting."""
        with self._lock:
            if not self._resets:
                with suppress(OSError):
                    self._say_end()
            self.socket.close()
        if self._shakes and self._object is not None and perf_counter() >= self.deadline:
            self._tell("the handshake took too long")

    # -- the handshake ---------------------------------------------------------------------------

    def _shake(self) -> None:
        """Carry the handshake on, by what one read brings. Raises BlockingIOError if that isn't
        enough."""
        if self._error is not None:
            raise self._error()
        if self._unsent:
            self._flush()
        if self._object is None:
            self._begin()
        assert self._object is not None
        records = 0
        has_fetched = False
        while True:
            try:
                self._object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._send_own()
                fed = self._feed(_MOST_RECORDS - records)
                if not fed and records < _MOST_RECORDS and not has_fetched:
                    self._fetch()
                    has_fetched = True
                elif not fed:
                    self.pending = records >= _MOST_RECORDS and bool(self._held)
                    raise BlockingIOError from None
                records += fed
            except ssl.SSLError as error:
                self._give_up(reason_of(error), error)
        self._note_peer()
        self._send_own()
        self._shakes = False
        self.deadline = inf
        self.pending = True  # more may have come with the last of it

    def _begin(self) -> None:
        """Make OpenSSL's object: the server's once the client has begun to speak TLS."""
        if self._server_side:
            if not self._held:
                self._held = self._receive_raw()
            if self._held[0] != _HANDSHAKE:
                self._turn_away()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = self._context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=self._server_side,
            server_hostname=None if self._server_side else self._hostname or None,
        )

    def _turn_away(self) -> NoReturn:
        """Tell a client that doesn't speak TLS, in its own tongue."""
        with suppress(OSError):
            self.socket.send(self._plain_reply)
            self.socket.shutdown(SHUT_WR)
        self._give_up("it speaks plain text, and this port speaks TLS (https)", None)

    def _note_peer(self) -> None:
        """Note who the other side is, by its certificate, if it was asked for one and has one."""
        assert self._object is not None
        if self._context.verify_mode is ssl.CERT_NONE:
            return
        certificate = self._object.getpeercert()
        if not certificate:
            return
        expiry = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        if self._object.session_reused and time() > expiry:  # which OpenSSL doesn't look at again
            self._give_up("its certificate has expired since the session began", None)
        alternatives: Any = certificate.get("subjectAltName", ())
        names = [name for kind, name in alternatives if kind in _NAMES]
        if not alternatives:
            names = _common_names(certificate)
        # Names go into logs and lists: what can't be printed is none, and stands for nobody.
        names = [name for name in names if name.isprintable()]
        others = [name for _, name in alternatives if name.isprintable()]
        self.principal = next(iter((*names, *others)), "")
        self.names = frozenset(names)
        self.proof = "certificate"

    def _give_up(self, why: str, cause: Exception | None) -> NoReturn:
        """End a handshake; the other side is told what TLS tells."""
        if self._object is not None:
            with suppress(OSError):
                self._send_own()
        self._error = partial(HandshakeFailed, why)
        self._tell(why)
        raise self._error() from cause

    def _tell(self, why: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(why)

    # -- what comes ------------------------------------------------------------------------------

    def _receive_raw(self) -> bytes:
        """Return what has come, one byte at least. Raises BlockingIOError and ConnectionError."""
        raw = self.socket.recv(_FETCH)
        if raw:
            return raw
        if self._shakes and self._object is not None:
            self._give_up(
                "the other side closed the connection before the handshake was done", None
            )
        raise ConnectionResetError("the connection ended and the other side didn't say so")

    def _fetch(self) -> None:
        """Read from the socket, and give OpenSSL the first records of it."""
        self.pending = False
        raw = self._receive_raw()
        size = len(raw)
        if (
            not (self._held or self._rest)
            and _HEADER <= size <= _RECORD
            and size == _HEADER + (raw[3] << 8 | raw[4])
        ):  # one record: the one request of a client that waits for its answer
            self._incoming.write(raw)
            return
        self._held += raw
        self._feed(1)

    def _feed(self, most: int) -> int:
        """Give OpenSSL so many records of what is held, at most; a part of one counts, too, and is
        given as it comes. Return how many they were."""
        held, size = self._held, len(self._held)
        end = min(self._rest, size)
        rest = self._rest - end
        count = 1 if end else 0
        while not rest and count < most and end + _HEADER <= size:
            length = _HEADER + (held[end + 3] << 8 | held[end + 4])
            if end and end + length > _RECORD:
                break
            count += 1
            end += length
            if end > size:
                end, rest = size, end - size
        if end:
            self._incoming.write(held[:end])
            self._held = held[end:]
            self._rest = rest
        return count

    def _read(self, size: int) -> bytes:
        """Return what has come and is decrypted, or can be; nothing if that is no whole record."""
        if self._ready:
            data, self._ready = self._ready[:size], self._ready[size:]
            return data
        return self._decrypt(size)

    def _decrypt(self, size: int) -> bytes:
        if self._error is not None:
            raise self._error()
        assert self._object is not None
        read, incoming = self._object.read, self._incoming
        pieces: list[bytes] = []
        left, records = size, 0
        self.pending = False
        try:
            while left:
                try:
                    data = read(left)
                except ssl.SSLWantReadError:
                    fed = self._feed(_MOST_RECORDS - records)
                    records += fed
                    if not fed:
                        self.pending = bool(self._held) and records >= _MOST_RECORDS
                        break
                    continue
                if not data:
                    self._has_ended = self.pending = True
                    break
                pieces.append(data)
                left -= len(data)
                if not (incoming.pending or self._held):
                    break
            if not left:
                self.pending = bool(self._object.pending() or incoming.pending or self._held)
        except ssl.SSLZeroReturnError:
            self._has_ended = self.pending = True
        except ssl.SSLError as error:
            self._note_error(error)
            if not pieces:
                assert self._error is not None
                raise self._error() from error
        if self._outgoing.pending:
            self._send_own()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _note_error(self, error: ssl.SSLError) -> None:
        """Keep what the next call raises: what was decrypted before is handed out first."""
        self._error = partial(ConnectionResetError, f"TLS: {reason_of(error)}")
        self.pending = True
        with suppress(OSError):
            self._send_own()

    # -- what goes -------------------------------------------------------------------------------

    def _send(self, data: bytes | memoryview) -> int:
        """Encrypt and send; return how many bytes of *data* have left."""
        if self._shakes:
            raise ConnectionAbortedError("nothing can be sent before the handshake is done")
        if self._error is not None:
            raise self._error()
        done = self._flush() if self._unsent else 0
        size = min(len(data), _MOST_SENT)
        while done < size and not self._unsent:
            try:
                pieces = self._encrypt(data, done, min(done + _TOGETHER, size))
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {reason_of(error)}") from error
            self._claimed = min(_TOGETHER, size - done)
            self._unsent = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            done += self._flush()
        if not done and size:
            raise BlockingIOError
        return done

    def _encrypt(self, data: bytes | memoryview, start: int, end: int) -> list[bytes]:
        """Return the records of a part of *data*."""
        assert self._object is not None
        write, outgoing = self._object.write, self._outgoing
        if start == 0 and end == len(data) and end <= _RECORD:
            write(data)
            return [outgoing.read()]
        pieces = []
        view = memoryview(data)
        for position in range(start, end, _RECORD):
            write(view[position : min(position + _RECORD, end)])
            pieces.append(outgoing.read())
        return pieces

    def _flush(self) -> int:
        """Send what is unsent; return how many bytes that makes of those that were not reported.

        While encrypted bytes are left, one of these is left as well: whoever has been told that all
        is sent need not come again.
        """
        before = len(self._unsent)
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            return 0
        gone = self._claimed * sent // before
        self._claimed -= gone
        self._unsent = self._unsent[sent:]
        return gone

    def _send_own(self) -> None:
        """Send what OpenSSL has to say by itself: of a handshake, new keys, an alert.

        Who makes it speak and doesn't listen ends by that: nothing else bounds it.
        """
        own = self._outgoing.read()
        if own:
            self._unsent += own
            if len(self._unsent) > _MOST_UNSENT:
                raise ConnectionResetError("the other side reads nothing of what it asks for")
            if not self._claimed:
                self._flush()

    def _say_end(self) -> None:
        """Send close_notify, unless bytes before it wait, or the connection is broken."""
        if self._shakes or self._object is None or self._unsent or self._error is not None:
            return
        # OpenSSL would take what it has of data and has not decrypted for the other side's mistake.
        while not self._has_ended and (more := self._decrypt(_FETCH)):
            self._ready += more
        self.pending = True
        with suppress(ssl.SSLError):  # SSLWantReadError: the other side goes on, as it may
            self._object.unwrap()
        self._send_own()


def _join(pieces: Iterable[bytes | memoryview], most: int) -> bytes:
    """Return the first *most* bytes of pieces, or a little more than that."""
    taken: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        taken.append(piece[: most - size])
        size += len(taken[-1])
        if size >= most:
            break
    return b"".join(taken)


def _common_names(certificate: dict[str, Any]) -> list[str]:
    """Return the common names of a certificate as ``getpeercert`` shows it."""
    parts = [part for relative in certificate.get("subject", ()) for part in relative]
    return [value for kind, value in parts if kind == "commonName"]
