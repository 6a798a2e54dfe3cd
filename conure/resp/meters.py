"""The metrics of RESP. Callbacks run in the thread that renders the page."""

from __future__ import annotations

from collections.abc import Iterator

from conure.metrics import Histogram, Registry
from conure.operations import Counted
from conure.resp.audience import Audience
from conure.resp.clients import Clients
from conure.resp.frontend import RespFront
from conure.resp.table import READS, Command

__all__ = ["add_metrics", "durations_of", "operations"]

_DELETIONS = frozenset({"del", "delex", "getdel", "unlink"})


def durations_of(registry: Registry) -> Histogram:
    """Return where the durations of commands are counted."""
    return registry.histogram(
        "conure_resp_command_duration_seconds",
        "From a command that asks for the store to its answer.",
    )


def add_metrics(registry: Registry, front: RespFront, clients: Clients, audience: Audience) -> None:
    """Show what a front end counts."""
    registry.gauge_callback(
        "conure_resp_connections", "Open RESP connections.", lambda: len(clients)
    )
    registry.counter_callback(
        "conure_resp_connections_accepted_total",
        "RESP connections accepted, and given a place.",
        lambda: clients.accepted,
    )
    registry.counter_callback(
        "conure_resp_connections_refused_total",
        "RESP connections for which there was no place.",
        lambda: front.refused,
    )
    registry.labelled_callback(
        "conure_resp_commands_total",
        "counter",
        "Commands, by name; of those that were used.",
        ("command",),
        lambda: _calls(front),
    )
    registry.counter_callback(
        "conure_resp_slow_commands_total",
        "Commands whose answer took longer than slow_request.",
        lambda: front.slow_commands,
    )
    registry.counter_callback(
        "conure_resp_protocol_errors_total",
        "Connections that were ended for what is no command.",
        lambda: front.protocol_errors,
    )

    registry.gauge_callback(
        "conure_resp_subscribers",
        "Connections that have subscribed to channels or patterns.",
        lambda: audience.subscribers,
    )
    registry.gauge_callback(
        "conure_resp_subscriptions",
        "Their subscriptions.",
        lambda: audience.subscriptions,
    )
    registry.counter_callback(
        "conure_resp_messages_delivered_total",
        "Messages to channels, counted for each subscriber that they were sent to.",
        lambda: audience.delivered,
    )
    registry.counter_callback(
        "conure_resp_subscribers_dropped_total",
        "Subscribers that were disconnected because they didn't read.",
        lambda: audience.dropped,
    )


def operations(front: RespFront) -> Iterator[Counted]:
    """Yield how many of the commands are which operation: those of the store that name keys."""
    for command in _commands(front):
        if command.plan is None or not command.keys[0]:
            continue
        if command.name in _DELETIONS:
            yield "delete", command.calls
        else:
            yield "get" if command.lane == READS else "put", command.calls


def _calls(front: RespFront) -> Iterator[tuple[tuple[str], float]]:
    for command in _commands(front):
        if command.calls:
            yield (command.name,), command.calls


def _commands(front: RespFront) -> Iterator[Command]:
    """Yield all commands, each once."""
    for command in {id(each): each for each in front.commands.values()}.values():
        yield from (command, *command.subcommands.values())
