"""What kvctl asks about a server itself: its figures, and whether it is in order.

``check`` sees from outside what can be seen there: that the node answers, that it knows a leader,
that a majority confirms a read, and, where the user says so, that a write is committed, found and
gone again. The key of that write is drawn at random and expires by itself, should kvctl be killed.
What is on the node's disk is for ``check`` with ``--data-dir`` (kvstopped.py).

Called by kvserver.py. For the main thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, NamedTuple

from conure.errors import ConureError
from conure.ops.kvoutput import Output
from conure.ops.kvwords import Failed, Line
from conure.ops.respclient import ErrorReply, Reply, RespClient, server_says

__all__ = ["examine", "show_figures"]

_PROBE: Final = b"kvctl:check:"  # how keys of check begin
_PROBE_MS: Final = b"60000"  # for which one outlives a kvctl that is killed


def show_figures(server: RespClient, line: Line, output: Output) -> int:  # noqa: ARG001
    sections = _sections(server.ask(b"INFO"))
    if output.as_json:
        output.json(sections)
        return 0
    for number, (name, facts) in enumerate(sections.items()):
        if facts:
            output.write(f"{chr(10) if number else ''}# {name}\n")
            output.pairs(facts)
    return 0


def _sections(reply: Reply) -> dict[str, dict[str, Any]]:
    """Return what INFO tells: facts by section and name, whole numbers as such."""
    sections: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    text = reply.decode("utf-8", "backslashreplace") if isinstance(reply, bytes) else ""
    for line in text.splitlines():
        if line.startswith("#"):
            facts = sections.setdefault(line[1:].strip().lower(), {})
        elif ":" in line:
            name, _, fact = line.partition(":")
            facts[name] = int(fact) if fact.isdecimal() and len(fact) < 19 else fact
    return sections


class _Check(NamedTuple):
    """What came of one step of a check; *is_well* is None if it was not tried."""

    name: str
    is_well: bool | None
    seconds: float
    found: str


def examine(server: RespClient, line: Line, output: Output) -> int:
    steps: list[tuple[str, Callable[[RespClient], str]]] = [
        ("answers", _look_at_node), ("leader", _look_at_leader), ("read", _try_read),
    ]  # fmt: skip
    if line.options.get("write"):
        steps.append(("write", _try_write))
    checks = [_tried(name, step, server) for name, step in steps]
    if not line.options.get("write"):
        checks.append(_Check("write", None, 0.0, "not tried; --write does"))
    is_well = all(check.is_well is not False for check in checks)
    if output.as_json:
        output.json({"ok": is_well, "checks": [
            {"check": each.name, "ok": each.is_well, "ms": round(each.seconds * 1000, 3),
             "found": each.found} for each in checks
        ]})  # fmt: skip
    else:
        words = {True: "ok", False: "FAILED", None: "-"}
        output.table(
            [(each.name, words[each.is_well], _milliseconds(each), each.found) for each in checks],
            right=(2,),
        )
    if not is_well:
        failed = ", ".join(each.name for each in checks if each.is_well is False)
        raise Failed(f"{line.address} is not in order: {failed}")
    return 0


def _tried(name: str, step: Callable[[RespClient], str], server: RespClient) -> _Check:
    begun = perf_counter()
    try:
        found, is_well = step(server), True
    except ErrorReply as error:
        found, is_well = server_says(server.name, error), False
    except (Failed, ConureError) as error:
        found, is_well = str(error), False
    return _Check(name, is_well, perf_counter() - begun, found)


def _milliseconds(check: _Check) -> str:
    return "" if check.is_well is None else f"{check.seconds * 1000:.1f} ms"


def _look_at_node(server: RespClient) -> str:
    facts = _sections(server.ask(b"INFO", b"server")).get("server", {})
    release = facts.get("conuredb_version")
    who = f"node {facts.get('run_id', '')}, ConureDB {release}" if release else "no ConureDB"
    return f"{who}, RESP{server.protocol}"


def _look_at_leader(server: RespClient) -> str:
    facts = _sections(server.ask(b"INFO", b"replication")).get("replication", {})
    leader = facts.get("conuredb_leader_id", "")
    if not leader:
        raise Failed("none is known; see whether a majority of the voters runs")
    return f"{leader}, this node" if facts.get("conuredb_is_leader") else str(leader)


def _try_read(server: RespClient) -> str:
    server.ask(b"GET", _PROBE + os.urandom(8).hex().encode())
    return "linearizable, of a key that isn't there"


def _try_write(server: RespClient) -> str:
    key = _PROBE + os.urandom(8).hex().encode()
    value = os.urandom(16).hex().encode()
    server.write(b"SET", key, value, b"NX", b"PX", _PROBE_MS)
    found = server.ask(b"GET", key)
    server.write(b"DEL", key)
    if found != value:
        raise Failed("a value that was stored was not found")
    return f"{key.decode()} stored, read and deleted"
