"""Faults of links that encrypt."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_LINK = ("tests/net/test_tlslink.py",)

MUTATIONS = [
    Mutation(
        "tls: a connection that was cut is taken for whole",
        "conure/net/tlslink.py",
        '        raise ConnectionResetError("the connection ended and',
        '        self._has_ended = True\n        raise BlockingIOError("the connection ended and',
        _LINK,
    ),
    Mutation(
        "tls: all bytes count as sent when some have left",
        "conure/net/tlslink.py",
        "        gone = self._claimed * sent // before",
        "        gone = self._claimed",
        _LINK,
    ),
    Mutation(
        "tls: an end that was said is forgotten",
        "conure/net/tlslink.py",
        """                if not data:
                    self._has_ended = self.pending = True""",
        """                if not data:
                    self._has_ended = True""",
        _LINK,
    ),
    Mutation(
        "tls: what has come is lost to a link that is shut",
        "conure/net/tlslink.py",
        "        while not self._has_ended and (more := self._decrypt(_FETCH)):",
        "        while False and (more := self._decrypt(_FETCH)):",
        _LINK,
    ),
    Mutation(
        "tls: a close says nothing",
        "conure/net/tlslink.py",
        "            if not self._resets:\n                with suppress(OSError):",
        "            if self._resets:\n                with suppress(OSError):",
        _LINK,
    ),
    Mutation(
        "tls: a complaint of the other side is one word in capitals",
        "conure/net/tlsreasons.py",
        "    if name:",
        "    if False:",
        _LINK,
    ),
]
