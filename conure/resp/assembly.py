"""RESP put together: the table of commands, over the one service, behind a front end.

Made once, before the reactor's first round; see :class:`Resp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from conure.metrics import Registry
from conure.net.rates import Rates
from conure.net.reactor import Reactor
from conure.protection import OPEN, Door
from conure.resp.answers import Answers, Forwarding
from conure.resp.audience import Audience, Messenger
from conure.resp.catalog import Catalog
from conure.resp.clients import Clients
from conure.resp.connecting import Connecting
from conure.resp.connection import RespConnection
from conure.resp.frontend import RespFront
from conure.resp.helping import help_of
from conure.resp.info import Info
from conure.resp.limits import Limits
from conure.resp.messaging import Messaging
from conure.resp.meters import add_metrics, durations_of, operations
from conure.resp.notifying import Notifying
from conure.resp.plans import Plans
from conure.resp.scanning import Scanning
from conure.resp.slowlog import SlowLog
from conure.resp.strings import PlainGets, PlainMsets, PlainSets
from conure.resp.table import Command
from conure.resp.telling import Telling
from conure.resp.transactions import Transactions
from conure.resp.verbs import VERBS
from conure.resp.waiters import Pending
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Desk, Requests
from conure.state.history import History

__all__ = ["Resp"]


class Resp:
    """The front of RESP: *front* is what a listener accepts for.

    *status* returns what ``GET /status`` shows, for INFO and ROLE; any thread. *messenger* brings
    messages to channels, and *history* tells what happened to keys. *door* says who is barred, and
    *rates* how often a client may ask, None: any number.
    """

    def __init__(
        self,
        reactor: Reactor,
        requests: Requests,
        request_limits: RequestLimits,
        limits: Limits,
        status: Callable[[], Mapping[str, Any]],
        registry: Registry,
        messenger: Messenger,
        history: History,
        door: Door = OPEN,
        rates: Rates | None = None,
    ) -> None:
        answers = Answers(reactor, lambda: bool(status()["member"]))
        desk: Desk[Pending] = requests.for_front(answers, Forwarding())
        clients = Clients()
        slow_log = SlowLog(desk.backend.time)
        plans = Plans(reactor, desk, answers, request_limits)
        transactions = Transactions(desk, answers, plans, limits)
        audience = Audience(reactor, limits, messenger)
        messaging = Messaging(desk, answers, audience, messenger, request_limits)
        notifying = Notifying(reactor, history, audience)
        modes = _Modes(messaging, transactions, audience)
        table: dict[bytes, Command] = {}
        catalog = Catalog(table)
        data = [plans.command_of(verb) for verb in VERBS.values()]
        for command in data:
            _hasten(command, desk, request_limits)
        _enter(
            table,
            [
                *Connecting(clients, modes.leave).commands(),
                *_contained(data),
                *transactions.commands(),
                *messaging.commands(),
                *Scanning(desk, answers, request_limits).commands(),
                *Telling(desk, answers, limits, status, notifying).commands(),
                Info(clients, limits, table, status, desk.backend.key_count, audience).command(),
                catalog.command(),
                slow_log.command(),
            ],
        )
        self.front = RespFront(
            reactor,
            limits,
            clients,
            table,
            modes,
            slow_log,
            requests.end_round,
            durations_of(registry),
            door,
            rates,
        )
        self.clients = clients
        self.audience = audience
        """Who has subscribed to channels. The reactor's thread."""
        self.operations = partial(operations, self.front)
        """Tells how many commands were operations on keys. Any thread."""
        add_metrics(registry, self.front, clients, audience)


class _Modes:
    """What commands mean in sessions that aren't plain; see ``frontend.Modes``."""

    def __init__(
        self, messaging: Messaging, transactions: Transactions, audience: Audience
    ) -> None:
        self._messaging = messaging
        self._transactions = transactions
        self._audience = audience
        self.abort = transactions.abort

    def take(self, client: RespConnection, command: Command, words: list[bytes]) -> bool:
        return self._messaging.take(client, command, words) or self._transactions.take(
            client, command, words
        )

    def leave(self, client: RespConnection) -> None:
        self._transactions.leave(client)
        self._audience.leave(client)


def _hasten(command: Command, desk: Desk[Pending], limits: RequestLimits) -> None:
    """Give GET, SET and MSET their fast ways."""
    if command.name == "get":
        reads = PlainGets(desk, command.handle)
        command.handle, command.run, command.lone = reads.get, reads.get_all, reads.get_alone
    elif command.name == "set":
        writes = PlainSets(desk, limits, command.handle)
        command.handle, command.run, command.lone = writes.put, writes.put_all, writes.put_alone
    elif command.name == "mset":
        command.handle = PlainMsets(desk, limits, command.handle).put


def _contained(commands: Iterable[Command]) -> Iterator[Command]:
    """Yield commands, those with two names in containers."""
    containers: dict[str, dict[str, Command]] = {}
    for command in commands:
        container, bar, name = command.name.partition("|")
        if bar:
            containers.setdefault(container, {})[name] = command
        else:
            yield command
    for container, parts in containers.items():
        first = next(iter(parts.values()))
        yield Command(
            container,
            -2,
            first.handle,
            f"A container for {container} commands.",
            group=first.group,
            since=first.since,
            subcommands=parts,
        )


def _enter(table: dict[bytes, Command], commands: Iterable[Command]) -> None:
    """Enter commands into a table, by their names in lower and in upper case."""
    for command in commands:
        if command.subcommands and b"help" not in command.subcommands:
            command.subcommands[b"help"] = help_of(command)
        for name in (command.name, command.name.upper()):
            assert name.encode() not in table, name
            table[name.encode()] = command
