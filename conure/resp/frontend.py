"""The front end of RESP: makes connections of links, and hands their commands to the table.

What stands in the table is put together by assembly.py; the listener and the reactor are net's, and
shared with HTTP where there is that, too. A cross-protocol attack from a web page begins with POST
or a Host: such a connection is dropped without a reply, as Redis does.

Threads: accepting is done by the listener's, everything else by the reactor's; counters may be read
from any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from conure.metrics import Histogram
from conure.net.link import Link
from conure.net.places import Places
from conure.net.rates import Rates
from conure.net.reactor import Reactor
from conure.protection import Door
from conure.resp.clients import Clients
from conure.resp.connection import RespConnection
from conure.resp.failures import INTERNAL
from conure.resp.guarded import BarredConnection, CountedConnection
from conure.resp.limits import Limits
from conure.resp.slowlog import SlowLog
from conure.resp.table import Command

__all__ = ["SPEAKS_TLS", "Modes", "RespFront"]

SPEAKS_TLS = b"-ERR this port speaks TLS\r\n"
"""What a client is sent that speaks plain RESP to a port that speaks TLS."""

log = logging.getLogger("conure.resp")

_FULL = b"-ERR max number of clients reached\r\n"
_SHOWN_NAME, _SHOWN_WORDS = 128, 128  # bytes of an unknown command, and of its words
_FOREIGN = frozenset({b"post", b"host:"})
_ERRORS_LOGGED = 5  # in a tick


class Modes(Protocol):
    """What commands mean in sessions that aren't plain. Reactor thread only."""

    def take(self, client: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Do that; False, having done nothing, if it is the same as ever."""

    def abort(self, client: RespConnection) -> None:
        """Note that a command was refused."""

    def leave(self, client: RespConnection) -> None:
        """Forget what a client has begun: it has gone."""


class RespFront:
    """The front end. *commands* are by name, in upper and in lower case; *end_round* is the
    service's. *door* says who is barred, *rates* how often a client may ask, None: any number."""

    def __init__(
        self,
        reactor: Reactor,
        limits: Limits,
        clients: Clients,
        commands: Mapping[bytes, Command],
        modes: Modes,
        slow_log: SlowLog,
        end_round: Callable[[], bool],
        durations: Histogram,
        door: Door,
        rates: Rates | None,
    ) -> None:
        self.limits = limits
        self.door = door
        self.commands = dict(commands)
        self.durations = durations
        self.refused = 0
        """Connections for which there was no place."""
        self.protocol_errors = 0
        self.slow_commands = 0
        self._reactor = reactor
        self._clients = clients
        self._modes = modes
        self._slow_log = slow_log
        self.abort = modes.abort
        self._rates = rates
        self._places = Places(limits.max_connections, limits.trusted_proxies)
        self._errors = 0  # since the last tick
        self._end_round = end_round
        reactor.serve(self)
        reactor.at_round_end(self.flush)

    # -- the accepting thread --------------------------------------------------------------------

    def accept(self, link: Link, peer: Any) -> RespConnection | None:
        """Make a connection of a link, or turn it away."""
        place = self._places.take(peer[0])
        if place is None:
            self.refused += 1
            try:
                link.send(_FULL)
            except OSError:
                log.debug("%s left before it was turned away", peer[0])
            return None
        host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
        number = self._clients.next_number()
        address = f"{host}:{peer[1]}"
        facts = self._reactor, self, link, address, place, number
        connection: RespConnection
        if self.door.bars(peer[0], link.local_address):
            connection = BarredConnection(*facts)
        elif self._rates is not None:
            visitor = self._rates.visitor(peer[0], partial(getattr, link, "principal"))
            connection = CountedConnection(*facts, visitor)
        else:
            connection = RespConnection(*facts)
        self._clients.add(connection)
        return connection

    # -- any thread ------------------------------------------------------------------------------

    def release(self, connection: RespConnection) -> None:
        """Let another connection have the place of one."""
        self._clients.remove(connection)
        self._modes.leave(connection)
        self._places.give_back(connection.place)

    # -- the reactor thread ----------------------------------------------------------------------

    def tick(self) -> None:
        """Tell of the errors that were too many to be logged."""
        if self._errors > _ERRORS_LOGGED:
            log.info("%d more clients sent what is no command", self._errors - _ERRORS_LOGGED)
        self._errors = 0

    def flush(self) -> bool:
        """Have what is asked for in a round carried out; answer what is left of it if that fails.
        Does nothing where another front has done it."""
        try:
            return self._end_round()
        except Exception:
            log.exception("ending a round failed")
            for connection in self._clients.all():
                if connection.lone is not None:
                    connection.settle()
                for pending in list(connection.waiting):
                    while pending.missing and pending.started == self._reactor.now:
                        pending.fail(INTERNAL)
            return False

    def find(self, name: bytes) -> Command | None:
        """Return the command of a name in upper and lower case."""
        return self.commands.get(name.lower()) if len(name) < 64 else None

    def queue(self, connection: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Do what a command means in a session that isn't plain; see ``connection.Front``."""
        return self._modes.take(connection, command, words)

    def refuse(
        self, connection: RespConnection, command: Command | None, words: list[bytes]
    ) -> bool:
        """Answer what names no command, or has too few words or too many; see
        ``connection.Front``."""
        if command is None and words[0].lower() in _FOREIGN:
            self.note_error("a request of HTTP")
            return False
        self._modes.abort(connection)
        if command is None:
            connection.fail(_unknown(words))
        elif command.subcommands and len(words) > 1:
            name = _shown(words[1])
            container = command.name.upper()
            connection.fail(f"ERR unknown subcommand '{name}'. Try {container} HELP.")
        elif len(words) > command.most:
            connection.fail(
                f"ERR too many arguments for '{command.name}' command, the limit is "
                f"{command.most:,} words"
            )
        else:
            connection.fail(f"ERR wrong number of arguments for '{command.name}' command")
        return True

    def note_error(self, why: str) -> None:
        """Count bytes that were no command, and log some."""
        self.protocol_errors += 1
        self._errors += 1
        if self._errors <= _ERRORS_LOGGED:
            log.info("a client sent what is no command: %s", why)

    def note_slow(
        self, connection: RespConnection, words: list[bytes], count: int, started: float
    ) -> None:
        """Keep a command whose answer took long."""
        self.slow_commands += count
        took = perf_counter() - started
        name = connection.session.name or connection.principal.encode()
        self._slow_log.add(connection.address, name, words, took)


def _unknown(words: list[bytes]) -> str:
    shown = ""
    for word in words[1:]:
        if len(shown) >= _SHOWN_WORDS:
            break
        shown += f"'{_shown(word[: _SHOWN_WORDS - len(shown)])}' "
    name = _shown(words[0][:_SHOWN_NAME])
    return f"ERR unknown command '{name}', with args beginning with: {shown}"


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
