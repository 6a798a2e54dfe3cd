"""The commands and options of kvctl: one table, by which words are read, explained and completed.

Who reads a command line by it is kvwords.py, and kvcompletion.py lets shells complete it. What
reads the value of an option says in one line what a value looks like. Nothing here has state; any
thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from conure.values import COMMAND, split_address

__all__ = [
    "ADDRESS_VARIABLE",
    "COMMANDS",
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT",
    "FILES",
    "GENERAL",
    "OPTIONS",
    "SHELLS",
    "TLS",
    "Command",
    "Option",
    "Usage",
    "read_address",
]

DEFAULT_ADDRESS: Final = "127.0.0.1:9090"
"""Where a server of the kvstore profile speaks RESP."""

ADDRESS_VARIABLE: Final = "KVCTL_ADDR"
"""The variable of the environment that names another default."""

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds without progress after which a server counts as lost: longer than an election takes."""

SHELLS: Final = ("bash", "zsh", "fish")

_MAX_TTL: Final = 3650 * 86_400.0  # seconds, as /kv has it
_MAX_TIMEOUT: Final = 86_400.0  # seconds


class Usage(Exception):
    """The command line isn't one; says what would be. The exit status is 2."""


class Option(NamedTuple):
    """What an option's *value* looks like, "" for a flag, and what reads it, given both."""

    value: str
    summary: str
    read: Callable[[str, str], Any] | None = None


class Command(NamedTuple):
    """What there is to know about a command. *arguments* are words such as ``KEY``, ``[PREFIX]``
    and ``KEY...``. *at* says what it asks: a server, a directory, both or nothing."""

    arguments: str
    summary: str
    options: tuple[str, ...] = ()
    details: str = ""
    at: str = "server, directory"

    def bounds(self) -> tuple[int, float]:
        """Return how many arguments there have to be, and how many there may be."""
        words = self.arguments.split()
        optional = sum(word.startswith("[") for word in words)
        return len(words) - optional, math.inf if self.arguments.endswith("...") else len(words)


def _duration(name: str, text: str) -> float:
    seconds = COMMAND.parse(text)
    if not seconds:
        raise Usage(f"--{name}={text}: write it like 500ms, 30s, 5m or 1h30m")
    return seconds


def _ttl(name: str, text: str) -> float:
    seconds = _duration(name, text)
    if seconds > _MAX_TTL:
        raise Usage(
            f"--{name}={text}: 3650d is the most; leave it out for a key that never expires"
        )
    return seconds


def _timeout(name: str, text: str) -> float:
    seconds = _duration(name, text)
    if seconds > _MAX_TIMEOUT:
        raise Usage(f"--{name}={text}: 24h is the most")
    return seconds


def _count(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or not int(text):
        raise Usage(f"--{name}={text}: it has to be a whole number from 1 on")
    return int(text)


def read_address(name: str, text: str) -> tuple[str, int]:
    """Return a bare host and a port, where *name* tells a user who has named them. Raises Usage."""
    try:
        host, port = split_address(f"127.0.0.1{text}" if text.startswith(":") else text)
    except ValueError:
        port = 0
    if not port:
        raise Usage(f"{name} {text!r} is no address; write it like 127.0.0.1:9090 or [::1]:9090")
    return host, port


def _addr(name: str, text: str) -> tuple[str, int]:
    return read_address(f"--{name}", text)


def _place(name: str, text: str) -> str:
    if not text:
        raise Usage(f"--{name} is empty; name the data directory of a stopped node")
    return text


def _named(name: str, text: str) -> str:
    if not text:
        raise Usage(f"--{name} is empty; leave it out, or give it a value")
    return text


OPTIONS: Final[Mapping[str, Option]] = {
    "addr": Option(
        "HOST:PORT",
        f"where the server speaks RESP ({DEFAULT_ADDRESS}, or {ADDRESS_VARIABLE})",
        _addr,
    ),
    "data-dir": Option("DIR", "open the data directory of a stopped node instead", _place),
    "timeout": Option(
        "DURATION", f"how long to wait for a server ({DEFAULT_TIMEOUT:g}s)", _timeout
    ),
    "tls": Option("", "ask the server by TLS; so do the next four"),
    "ca": Option(
        "FILE", "CA that the server is checked by (or CONURE_CA; none: those of the system)", _named
    ),
    "cert": Option("FILE", "certificate to show to a server that asks (or CONURE_CERT)", _named),
    "key": Option("FILE", "its key, if that is in another file (or CONURE_KEY)", _named),
    "tls-name": Option("NAME", "the name that the server has to bear (or CONURE_TLS_NAME)", _named),
    "json": Option("", "print JSON: an object, or one a line"),
    "help": Option("", "show this, or more about a command"),
    "version": Option("", "show the version"),
    "ttl": Option("DURATION", "let the key expire, such as in 30s or 5m", _ttl),
    "limit": Option("N", "stop after so many keys", _count),
    "reverse": Option("", "from the last key to the first (with --data-dir)"),
    "values": Option("", "show values, too"),
    "write": Option("", "store, read and delete a key of its own as well (a server)"),
}

TLS: Final = ("tls", "ca", "cert", "key", "tls-name")
"""The options by any of which a server is asked by TLS."""

FILES: Final = ("ca", "cert", "key")
"""Those whose values are files."""

GENERAL: Final = ("addr", "data-dir", *TLS, "timeout", "json", "help", "version")
"""The options that every command takes."""

COMMANDS: Final[Mapping[str, Command]] = {
    "put": Command(
        "KEY VALUE",
        "store a value",
        ("ttl",),
        "The value - stands for standard input. OK means that it is on the disks of a majority.\n"
        "With --data-dir it is refused: the other replicas would never hear of it.",
        "server",
    ),
    "get": Command(
        "KEY",
        "show a value",
        details="A pipe or a file gets the exact bytes; a terminal is spared control characters.",
    ),
    "delete": Command(
        "KEY...",
        "remove keys, and show how many there were",
        details="All of them at once or none. With --data-dir it is refused, like put.",
        at="server",
    ),
    "scan": Command(
        "[PREFIX]",
        "show the keys, in their order",
        ("limit", "reverse", "values"),
        "A line each; control characters appear as escapes, --json is exact. A directory is shown\n"
        "as of one moment, a server page by page while others write.",
    ),
    "watch": Command(
        "[PREFIX]",
        "show what happens to keys, until Ctrl-C",
        details="A line each: set, del or expired, and the key. The node is told to notify of\n"
        "keys (CONFIG SET notify-keyspace-events), if it doesn't yet, until it is restarted. When\n"
        "events may have been missed the connection ends, and kvctl with status 1.",
        at="server",
    ),
    "ttl": Command(
        "KEY",
        "show how long a key still lives",
        details="never: it doesn't expire. Of a directory by this machine's clock.",
    ),
    "stats": Command(
        "",
        "show figures",
        details="Of a server what INFO tells; of a directory those of log and engine.",
    ),
    "check": Command(
        "",
        "see whether all is in order",
        ("write",),
        "Of a server: it answers, knows a leader, and can read, which a majority has to confirm;\n"
        "--write stores a key for a moment, too. Of a directory: every byte is read and proved.",
    ),
    "compact": Command(
        "",
        "write the records of a stopped node anew, in smaller files",
        details="A server needs no such thing: its engine merges and frees what is old by itself.",
        at="directory",
    ),
    "tables": Command(
        "",
        "show what the records of a stopped node lie in",
        details="Of the LSM engine its tables by level, with the ranges of their keys; of the\n"
        "B-tree the figures of the tree. <e> and the like are records of the store's own.",
        at="directory",
    ),
    "dump": Command(
        "[PREFIX]",
        "write all records as JSON, one a line",
        details="conuresh load takes it. A directory's records have their revisions, too.",
    ),
    "completion": Command(
        "SHELL",
        "print what lets bash, zsh or fish complete all this",
        details='eval "$(kvctl completion bash)", likewise zsh; kvctl completion fish | source.',
        at="",
    ),
    "help": Command("[COMMAND]", "show the commands, or more about one", at=""),
}
