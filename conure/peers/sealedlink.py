"""A byte stream that is sealed by the cluster secret: every byte as it was sent, in its place.

:class:`SealedLink` is a link over another one. What is sent becomes records (security/secret.py
draws them), and of what comes nothing is handed over before the record that it is in has been
proved. The first record that isn't the next one as it was sealed ends the link for good, and so
does the end of the stream without the record that says so: what was altered, repeated, left out,
put elsewhere or cut off is never taken for what was sent (P3). It hides nothing.

Threads: one may receive while another one sends; each does that without a lock. Whoever closes it
does so when nobody else uses it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Final

from conure.net.link import Link
from conure.security.secret import MAX_PAYLOAD, RECORD_BYTES, Seal

__all__ = ["SealedLink"]

_SPACE: Final = 2 * (MAX_PAYLOAD + RECORD_BYTES)  # bytes that are read at a time; a whole record
_HEAD: Final = 4  # bytes of a record by which its length is known
_BROKEN: Final = "what came was altered on its way, or is not what was sent next"
_CUT: Final = "the stream was cut off"


class SealedLink:
    """A :class:`~conure.net.link.Link` over *link*, whose other end has proved itself.

    *sending* seals what is sent, *receiving* proves what comes.
    """

    __slots__ = (
        "_has_ended",
        "_held",
        "_is_broken",
        "_is_shut",
        "_left",
        "_left_size",
        "_link",
        "_ready",
        "_receive_raw",
        "_receiving",
        "_send_raw",
        "_sending",
        "_space",
        "descriptor",
    )

    stalled: Final = False
    deadline: Final = inf
    principal: Final = ""
    names: Final[frozenset[str]] = frozenset()
    proof: Final = "secret"

    def __init__(self, link: Link, sending: Seal, receiving: Seal) -> None:
        self._link = link
        self._receive_raw, self._send_raw = link.receive_into, link.send
        self._sending = sending
        self._receiving = receiving
        self.descriptor = link.descriptor
        self._is_broken = False
        # Of whoever receives.
        self._space = memoryview(bytearray(_SPACE))
        self._held = 0  # bytes at its beginning that are no whole record yet
        self._ready = memoryview(b"")  # proved, and not handed over yet
        self._has_ended = False  # the other side has said that nothing more will come
        # Of whoever sends.
        self._left = memoryview(b"")  # of a record that the other link has not taken as a whole
        self._left_size = 0  # bytes of its payload
        self._is_shut = False

    def local_address(self) -> str:
        """Return the IP address that this end has. Raises OSError."""
        return self._link.local_address()

    @property
    def pending(self) -> bool:
        """Whether proved bytes wait here; see :class:`~conure.net.link.Link`."""
        return bool(self._ready) or self._link.pending

    def receive(self, size: int) -> bytes:
        """Return at most *size* bytes; none at the end of the stream. Raises OSError."""
        if not self._ready:
            self._read()
        data = bytes(self._ready[:size])
        self._ready = self._ready[size:]
        return data

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Do as :meth:`receive`, into a buffer; return how many bytes that was."""
        if not self._ready:
            self._read()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def send(self, data: bytes | memoryview) -> int:
        """Seal and send what can be sent at once; return how many bytes have left, sealed.

        BlockingIOError: none. Whoever sends again offers the bytes that have not left first.
        """
        if self._is_broken:
            raise ConnectionAbortedError(_BROKEN)
        if self._is_shut:
            raise BrokenPipeError("nothing can be sent after the end")
        done = 0
        size = len(data)
        if size <= MAX_PAYLOAD and not self._left:  # as most are
            return self._send_record(data)
        if self._left:
            assert size >= self._left_size, "other bytes than those that have not left"
            done = self._left_size
            if not self._flush():
                raise BlockingIOError
        while done < size:
            try:
                done += self._send_record(memoryview(data)[done : done + MAX_PAYLOAD])
            except BlockingIOError:
                if not done:
                    raise
                break
        return done

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Do as :meth:`send` with several pieces in a row."""
        return self.send(b"".join(pieces))

    def flush(self) -> None:
        """Return: nothing is sent but what somebody has sent."""

    def shut(self) -> None:
        """Say, sealed, that nothing more will be sent. Raises OSError: BlockingIOError if bytes
        that were sent before have not left."""
        if not (self._is_shut or self._is_broken):
            if self._left and not self._flush():
                raise BlockingIOError
            self._is_shut = True
            self._left = memoryview(self._sending.seal(b""))
            self._flush()
        self._link.shut()

    def reset_on_close(self, *, resets: bool) -> None:
        """Say whether :meth:`close` shows as a broken connection. Raises OSError."""
        self._link.reset_on_close(resets=resets)

    def close(self) -> None:
        """Let go of the socket; the other side is told if that needs no waiting."""
        with suppress(OSError):
            self.shut()
        self._link.close()

    # -- private ---------------------------------------------------------------------------------

    def _send_record(self, payload: bytes | memoryview) -> int:
        """Seal and send this; return its size. BlockingIOError: not all of it has left."""
        if not payload:
            return 0
        record = self._sending.seal(payload)
        try:
            sent = self._send_raw(record)
        except BlockingIOError:
            sent = 0
        if sent < len(record):
            self._left, self._left_size = memoryview(record)[sent:], len(payload)
            raise BlockingIOError
        return len(payload)

    def _flush(self) -> bool:
        """Send what is left of a record; tell whether all of it has gone."""
        try:
            self._left = self._left[self._send_raw(self._left) :]
        except BlockingIOError:
            return False
        return not self._left

    def _read(self) -> None:
        """Read once, and have what is proved ready. BlockingIOError: nothing is."""
        if self._is_broken:
            raise ConnectionAbortedError(_BROKEN)
        if self._has_ended:
            return
        size = self._receive_raw(self._space[self._held :])
        if not size:
            self._is_broken = True
            raise ConnectionResetError(_CUT)
        self._held += size
        self._ready = self._prove()
        if not (self._ready or self._has_ended):
            raise BlockingIOError

    def _prove(self) -> memoryview:
        """Return the payloads of the whole records that are held; the rest moves to the front."""
        space, held, at = self._space, self._held, 0
        size = self._receiving.length(space) if held >= _HEAD else 0
        if size == held > RECORD_BYTES:  # one record, as most reads bring: no byte is moved
            self._check(space[:size])
            self._held = 0
            return space[_HEAD : size - RECORD_BYTES + _HEAD]
        payloads: list[memoryview] = []
        while held - at >= _HEAD and not self._has_ended:
            size = self._receiving.length(space[at:])
            if size > held - at:
                break
            self._check(space[at : at + max(size, 0)])
            at += size
            if size == RECORD_BYTES:
                self._has_ended = True
            payloads.append(space[at - size + _HEAD : at - RECORD_BYTES + _HEAD])
        ready = memoryview(b"".join(payloads))
        if self._has_ended and at < held:
            self._is_broken = True
            raise ConnectionAbortedError(_BROKEN)
        self._held = held - at
        space[: self._held] = bytes(space[at:held])
        return ready

    def _check(self, record: memoryview) -> None:
        """Raise ConnectionAbortedError, for good, if that is not the next record (P3)."""
        if not record or not self._receiving.proves(record):
            self._is_broken = True
            raise ConnectionAbortedError(_BROKEN)
