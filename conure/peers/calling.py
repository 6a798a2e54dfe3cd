"""The way to one node for calls: what waits for it, the connection, and who waits for an answer.

The connection is dialled when there is something to ask, by the thread of the way, and stays. Calls
are sent in the order of :meth:`CallWay.call`, and an answer is believed only from the connection
that its call was sent on. Each call has an end: the last part of its answer, or

- Unavailable: nothing of it was sent, so nothing has happened, or
- OutcomeUnknown: it was sent, or part of it, and the connection was lost before its answer.

``_lock`` guards all attributes; no other lock is taken under it, and nobody is called.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from conure.errors import ConureError, OutcomeUnknown, Unavailable, WireError
from conure.metrics import Counter
from conure.peers.calls import Answer, Call, decode_answer, encode_call
from conure.peers.dialling import Dialler
from conure.peers.line import Line, Registrar
from conure.peers.sockets import reason

__all__ = ["MAX_CALLS", "CallReply", "CallWay"]

MAX_CALLS = 64
"""Calls to one node that may be under way, or wait for a connection."""

CallReply = Callable[[Answer | ConureError], None]
"""Told each part of an answer, or why there is none. Any thread; raises WireError for an answer
that its call can't have: that ends the connection, and it is told nothing more."""

log = logging.getLogger("conure.transport")


class _Asked(NamedTuple):
    reply: CallReply
    until: float  # when no answer is worth waiting for any more


class _Waiting(NamedTuple):
    call: Call
    asked: _Asked


class CallWay:
    """The way to the node *node_id*. *sent* and *received* count bytes; *registrar* reads answers,
    or the way's own thread does."""

    def __init__(
        self,
        node_id: str,
        address: str,
        dialler: Dialler,
        sent: Counter,
        received: Counter,
        registrar: Registrar | None,
    ) -> None:
        self._id = node_id
        self._dialler = dialler
        self._sent = sent
        self._received = received
        self._registrar = registrar
        self._changed = threading.Condition(threading.Lock())
        self._lock = self._changed
        self._address = address
        self._waiting: deque[_Waiting] = deque()  # for a connection
        self._asked: dict[int, _Asked] = {}  # over the connection, by number
        self._number = 0
        self._line: Line | None = None
        self._is_closed = False
        self._trouble = ""  # what was logged; the thread's own

    def call(self, call: Call, reply: CallReply, seconds: float) -> bool:
        """Ask; *reply* is told how that ends. False: there is no room for it, and it is told
        nothing. Who is not answered within so many seconds gives the connection up. Any thread;
        never blocks and calls nobody."""
        asked = _Asked(reply, monotonic() + seconds)
        with self._lock:
            if self._is_closed or len(self._asked) + len(self._waiting) >= MAX_CALLS:
                return False
            if self._line is None or not self._send(self._line, call, asked):
                self._waiting.append(_Waiting(call, asked))
                self._changed.notify()
        return True

    def move(self, address: str) -> None:
        """Dial another address from now on. Any thread."""
        with self._lock:
            if address == self._address:
                return
            self._address = address
            line = self._line
        if line is not None:
            line.end(None)

    def close(self) -> None:
        """End the thread and the connection. Any thread; doesn't wait for that."""
        with self._lock:
            self._is_closed = True
            line = self._line
            self._changed.notify()
        if line is not None:
            line.end(None)

    def run(self) -> None:
        """Dial when there is something to ask, and keep the connection, until closed; the way's own
        thread."""
        stopping = Unavailable("this node is stopping, or asks that one nothing more")
        while self._await_calls():
            try:
                self._converse()
            except ConureError as error:
                self._give_up(error)
        self._give_up(stopping)

    # -- private ---------------------------------------------------------------------------------

    def _await_calls(self) -> bool:
        """Sleep until something is to be asked; False: it never will be."""
        with self._lock:
            while not (self._waiting or self._is_closed):
                self._changed.wait()
            return not self._is_closed

    def _converse(self) -> None:
        """Dial, and send what waits; return when the connection has ended. Raises ConureError."""
        with self._lock:
            address = self._address
        link, _ = self._dialler.dial("calls", address, self._id)
        why = "it was closed"
        try:
            line = Line(link, self._take, self._sent, self._received, look=self._look)
            with self._lock:
                self._line = line
                while self._waiting and self._send(line, *self._waiting[0]):
                    self._waiting.popleft()
                if self._is_closed:
                    line.has_ended.set()
            log.debug("connected to %s at %s for calls", self._id, address)
            self._trouble = ""
            line.run(self._registrar)
            why = str(line.error or why)
        except OSError as error:  # no file descriptor is left, say
            why = reason(error)
            raise Unavailable(why) from error
        finally:
            with self._lock:
                self._line = None
                lost, self._asked = self._asked, {}
            self._tell_lost(lost, self._dialler.hang_up(link) or why)

    def _tell_lost(self, lost: dict[int, _Asked], why: str) -> None:
        """Tell all who have asked over a connection that it has ended."""
        log.debug("lost the connection to %s for calls: %s", self._id, why)
        error = OutcomeUnknown(
            f"the connection to the leader {self._id} was lost before it answered ({why}); the "
            "write may or may not have been carried out"
        )
        for asked in lost.values():
            self._tell(asked.reply, error)

    def _give_up(self, error: ConureError) -> None:
        """Tell all that wait for a connection that there is none."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            is_closed = self._is_closed
        if not is_closed and str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("no connection to %s for calls: %s", self._id, error)
        told = Unavailable(f"the leader {self._id} can't be asked: {error}")
        for each in waiting:
            self._tell(each.asked.reply, told)

    def _send(self, line: Line, call: Call, asked: _Asked) -> bool:
        """Send a call, with the lock; False if nothing of it was sent."""
        self._number += 1
        self._asked[self._number] = asked
        if line.send(encode_call(self._number, call)):
            return True
        del self._asked[self._number]
        return False

    def _take(self, payloads: Sequence[bytes]) -> None:
        """Hand answers to those who have asked. Raises WireError."""
        for payload in payloads:
            number, answer = decode_answer(payload)
            with self._lock:
                asked = self._asked.get(number)
                if answer.is_last:
                    self._asked.pop(number, None)
            if asked is None:
                raise WireError("an answer to what was not asked, or is answered already")
            try:
                asked.reply(answer)
            except WireError:
                self._forget(number)
                raise

    def _forget(self, number: int) -> None:
        """Tell nothing more to who has refused an answer."""
        with self._lock:
            if number in self._asked:
                del self._asked[number]

    def _look(self) -> None:
        """Raise WireError if a call has waited for too long."""
        now = monotonic()
        with self._lock:
            is_late = any(asked.until < now for asked in self._asked.values())
        if is_late:
            raise WireError("no answer in time")

    def _tell(self, reply: CallReply, error: ConureError) -> None:
        try:
            reply(error)
        except Exception:
            log.exception("the end of a call was not taken")
