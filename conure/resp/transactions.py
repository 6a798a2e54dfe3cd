"""MULTI, EXEC, DISCARD, WATCH and UNWATCH."""

from __future__ import annotations

from conure.resp.connection import RespConnection
from conure.resp.table import Command

__all__ = ["Transactions"]


class Transactions:
    """What commands mean between MULTI and EXEC."""

    def take(self, client: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Leave it as it is."""
        del client, command, words
        return False

    def abort(self, client: RespConnection) -> None:
        """There is nothing."""
        del client

    def leave(self, client: RespConnection) -> None:
        """There is nothing."""
        del client
