"""HELP of containers: what their subcommands are, from the rows of the table.

An unknown subcommand is answered by the advice to try HELP, so every container has one: its own, or
the one that is made here, of a line for each subcommand and one for what it does.

The reactor's thread only.
"""

from __future__ import annotations

from functools import partial

from conure.resp.connection import RespConnection
from conure.resp.table import Command

__all__ = ["help_of", "misused"]


def help_of(container: Command) -> Command:
    """Return the row of the HELP of a container that has none; it tells of the subcommands that the
    container has when it is asked."""
    assert b"help" not in container.subcommands, container.name
    return Command(
        f"{container.name}|help",
        2,
        partial(_help, container),
        "Returns helpful text about the subcommands.",
        flags=frozenset({"loading", "stale"}),
        group=container.group,
        since="5.0.0",
    )


def misused(words: list[bytes]) -> str:
    """Return the error for a subcommand that takes fewer words than these."""
    container, name = (word[:128].decode("utf-8", "surrogateescape") for word in words[:2])
    return (
        f"ERR unknown subcommand or wrong number of arguments for '{name}'. "
        f"Try {container.upper()} HELP."
    )


def _help(container: Command, client: RespConnection, _: list[bytes]) -> None:
    name = container.name.upper()
    lines = [f"{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
    for word, row in container.subcommands.items():
        lines += [word.decode().upper(), f"    {row.summary}"]
    replies = client.replies()
    replies.array_of(len(lines))
    for line in lines:
        replies.simple(line.encode())
    client.reply(replies.take())
