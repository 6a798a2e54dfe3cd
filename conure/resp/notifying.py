"""Notifications of what happens to keys, as messages: ``notify-keyspace-events`` of Redis.

They are made of this node's own history (conure/state/history.py), which says that a key was put,
deleted or has expired, whichever command did it, for all protocols: the events ``set``, ahead of it
``new`` if the key wasn't there, ``del`` and ``expired``. A new expiry alone is none of them. While
no letter says which are wanted, the history isn't looked at.

======= ============================================================================================
letter  means
======= ============================================================================================
K       to the channel ``__keyspace@0__:`` and the key: the name of the event
E       to the channel ``__keyevent@0__:`` and the name of the event: the key
g       ``del``
$       ``set``
x       ``expired``
n       ``new``
A       all of them but n, and those that don't happen here
======= ============================================================================================

One of K and E is needed, and one of the others. Those of lists, sets, hashes and so on are taken
and have no events. A node that has not kept what happened (it was sent a snapshot, or is far
behind) disconnects its subscribers.

The reactor's thread, but for what the history calls.
"""

from __future__ import annotations

from typing import Final

from conure.commands import EventKind
from conure.net.reactor import Reactor
from conure.resp.audience import Audience, Kind, topic_of
from conure.state.history import History

__all__ = ["Notifying"]

_STEP: Final = 128  # events of a round
_PAUSE: Final = 0.0005  # seconds, while too many messages wait
_CLASSES: Final = "g$lshzxetdmn"
_ALL: Final = "g$lshzxetd"  # what A stands for
_EVENTS: Final = {
    EventKind.PUT.value: ("$", b"set"),
    EventKind.DELETE.value: ("g", b"del"),
    EventKind.EXPIRE.value: ("x", b"expired"),
}


class Notifying:
    """Reads the history for an audience, while somebody has said what of it is wanted."""

    def __init__(self, reactor: Reactor, history: History, audience: Audience) -> None:
        self._reactor = reactor
        self._history = history
        self._audience = audience
        self._letters: frozenset[str] = frozenset()
        self._at = 0  # the number of the next event
        self._is_reading = False  # or waits to be rung
        self._is_due = False  # it reads in the next round

    @property
    def text(self) -> str:
        """What is wanted, as Redis writes it."""
        letters = self._letters
        shown = "A" if letters.issuperset(_ALL) else "".join(c for c in _ALL if c in letters)
        return shown + "".join(c for c in "KEmn" if c in letters)

    @staticmethod
    def parse(text: bytes) -> frozenset[str] | None:
        """Return the letters of a text; None for what isn't one."""
        letters = set(text.decode("latin-1"))
        if "A" in letters:
            letters = letters - {"A"} | set(_ALL)
        return frozenset(letters) if letters <= {*_CLASSES, *"KE"} else None

    def want(self, letters: frozenset[str]) -> None:
        """Notify of what letters say from now on."""
        self._letters = letters
        if self._is_wanted and not self._is_reading:
            self._at = self._history.end()
            self._is_reading = True
            self._wait()

    # -- private ----------------------------------------------------------------------------------

    @property
    def _is_wanted(self) -> bool:
        return bool(self._letters & {"K", "E"} and self._letters & set(_CLASSES))

    def _wait(self) -> None:
        """Go on when there is another event."""
        self._history.call_once(self._ring)
        if self._history.end() != self._at:
            self._go_on(0.0)

    def _ring(self) -> None:
        """Be told by the writer that there is one."""
        self._reactor.post(self._go_on, 0.0)

    def _go_on(self, seconds: float) -> None:
        if not self._is_due:
            self._is_due = True
            self._reactor.call_later(self._read, seconds)

    def _read(self) -> None:
        """Make messages of the next events, and go on with those after them."""
        self._is_due = False
        if not self._is_wanted or self._reactor.draining:
            self._is_reading = False
            return
        view = self._history.view()
        if self._at < view.first:
            self._at = view.end
            self._audience.lose_all()
        if not self._audience.subscribers:
            self._at = view.end
        elif self._audience.is_busy:
            self._go_on(_PAUSE)
            return
        messages: list[tuple[bytes, bytes]] = []
        last = min(view.end, self._at + _STEP)
        for events, place in view.since(self._at):
            if self._at >= last:
                break
            self._at += 1
            event = events[place]
            messages += self._messages(event[1], event[2], event[4])
        self._audience.take(messages)
        if self._at < view.end:
            self._go_on(0.0)
        else:
            self._wait()

    def _messages(self, kind: int, key: bytes, version: int) -> list[tuple[bytes, bytes]]:
        letter, name = _EVENTS[kind]
        names = [name] if letter in self._letters else []
        if "n" in self._letters and kind == EventKind.PUT.value and version == 1:
            names.insert(0, b"new")
        found = []
        for each in names:
            if "K" in self._letters:
                found.append((topic_of(Kind.CHANNEL, b"__keyspace@0__:" + key), each))
            if "E" in self._letters:
                found.append((topic_of(Kind.CHANNEL, b"__keyevent@0__:" + each), key))
        return found
