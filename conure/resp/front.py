"""RESP put together: the table of commands, over the one service, behind a front end.

Made once, before the reactor's first round; see :class:`Resp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conure.net.reactor import Reactor
from conure.resp.answers import Answers, Forwarding
from conure.resp.clients import Clients
from conure.resp.connecting import Connecting
from conure.resp.frontend import RespFront
from conure.resp.limits import Limits
from conure.resp.slowlog import SlowLog
from conure.resp.strings import PlainStrings
from conure.resp.table import READS, WRITES, Command
from conure.resp.transactions import Transactions
from conure.resp.waiters import Pending
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Desk, Requests

__all__ = ["Resp"]


class Resp:
    """The front of RESP: *front* is what a listener accepts for.

    *status* returns what ``GET /status`` shows, for INFO and ROLE; any thread.
    """

    def __init__(
        self,
        reactor: Reactor,
        requests: Requests,
        request_limits: RequestLimits,
        limits: Limits,
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        answers = Answers(reactor, lambda: bool(status()["member"]))
        desk: Desk[Pending] = requests.for_front(answers, Forwarding())
        clients = Clients()
        slow_log = SlowLog(desk.backend.time)
        transactions = Transactions()
        plain = PlainStrings(desk, request_limits, _refuse, _refuse)
        commands = [
            *Connecting(clients, transactions.leave).commands(),
            Command("get", 2, plain.get, "", lane=READS, run=plain.get_all, keys=(1, 1, 1)),
            Command("set", -3, plain.put, "", lane=WRITES, run=plain.put_all, keys=(1, 1, 1)),
            slow_log.command(),
        ]
        self.commands = commands
        table = _by_name(commands)
        self.front = RespFront(
            reactor, limits, clients, table, transactions, slow_log, requests.end_round
        )
        self.clients = clients


def _refuse(client: Any, words: list[bytes]) -> None:
    del words
    client.fail("ERR syntax error")


def _by_name(commands: Iterable[Command]) -> dict[bytes, Command]:
    table: dict[bytes, Command] = {}
    for command in commands:
        for name in (command.name, command.name.upper()):
            assert name.encode() not in table, name
            table[name.encode()] = command
    return table
