"""The words of kvctl: what a command line says, and what help says of the commands.

1. An option is written with one dash or two, and its value after ``=`` or as the next word; options
   may stand before the command and behind it.
2. A word that begins with a dash is an option, unless it is ``-``, a number, or stands behind
   ``--``. So no key is ever taken for an option, or an option that was mistyped for a key.
3. Either a server is named or a directory (:class:`Line`), never both.

Nothing here asks a server or opens a file, and what can't be used is a kvcommands.Usage. Any
thread.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from conure.ops.kvcommands import (
    ADDRESS_VARIABLE,
    COMMANDS,
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    GENERAL,
    OPTIONS,
    SHELLS,
    TLS,
    Usage,
    read_address,
)
from conure.values import bracketed

__all__ = ["Failed", "Line", "TlsWords", "help_of", "help_text", "parse"]

_NUMBER: Final = re.compile(r"-[0-9]*\.?[0-9]+")


class Failed(Exception):
    """What was asked for was not found or is refused; says why, and what to do. Status 1."""


class TlsWords(NamedTuple):
    """How a server is asked by TLS: files as PEM, "" where nobody has named one, and the *name* it
    has to bear, "": that of its address."""

    ca: str
    cert: str
    key: str
    name: str


class Line(NamedTuple):
    """What a command line asks for.

    *command* is one of COMMANDS, ``help`` or ``version``. *options* are those of the command, by
    their names. *data_dir* is "" where a server is asked: at *host*, a bare address or a name, and
    *port*, and by TLS if *tls* is there. *timeout* is in seconds.
    """

    command: str
    arguments: Sequence[str]
    options: Mapping[str, Any]
    host: str
    port: int
    data_dir: str
    timeout: float
    as_json: bool
    tls: TlsWords | None = None

    @property
    def address(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Line:
    """Return what the words behind the program's name ask for. Raises Usage."""
    words, options = _sorted_out(argv)
    if "version" in options:
        return _line("version", [], {}, options, environ)
    name = words.pop(0) if words else ""
    if "help" in options:
        words, name = [name] if name else [], "help"
    if not name:
        raise Usage("say what to do; kvctl --help lists the commands")
    command = COMMANDS.get(name)
    if command is None:
        raise Usage(f"{name}: no such command{_nearest(name, COMMANDS, '')}")
    own = {each: value for each, value in options.items() if each not in GENERAL}
    for each in own:
        if each not in command.options:
            raise Usage(f"{name} has no option --{each}; usage: {_synopsis(name)}")
    least, most = command.bounds()
    if not least <= len(words) <= most:
        hint = "; put quotes around what holds spaces" if len(words) > most > 0 else ""
        raise Usage(f"usage: {_synopsis(name)}{hint}")
    if name in ("help", "completion"):
        _check_word(name, words)
    return _line(name, words, own, options, environ)


def help_text() -> str:
    """Return the help about everything."""
    general = [(f"--{name}{_after(name)}", OPTIONS[name].summary) for name in GENERAL]
    commands = [(_usage(name), command.summary) for name, command in COMMANDS.items()]
    return (
        "usage: kvctl [options] COMMAND [arguments]\n\n"
        "Asks a ConureDB server that speaks RESP, or looks into the data directory of a stopped\n"
        "node. Exit status: 0 done, 1 not found or refused, 2 wrong usage.\n\n"
        f"commands:\n{_columns(commands)}\noptions, with one dash or two:\n{_columns(general)}\n"
        "kvctl help COMMAND tells more. Behind -- no word is an option.\n"
    )


def help_of(name: str) -> str:
    """Return the help about one of COMMANDS."""
    command = COMMANDS[name]
    options = [(f"--{each}{_after(each)}", OPTIONS[each].summary) for each in command.options]
    return (
        f"usage: {_synopsis(name)}\n\n{command.summary[0].upper()}{command.summary[1:]}.\n"
        + (f"{command.details}\n" if command.details else "")
        + (f"asks: {command.at}\n" if command.at else "")
        + (f"\n{_columns(options)}" if options else "")
    )


# -- private ---------------------------------------------------------------------------------------


def _sorted_out(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words that aren't options, and the options by name (1, 2)."""
    words: list[str] = []
    options: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return words + rest, options
        if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
            words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = "help" if name == "h" else name
        option = OPTIONS.get(name)
        if option is None:
            hint = _nearest(name, OPTIONS, "--") or "; kvctl --help lists them"
            raise Usage(f"{word}: no such option{hint}; behind -- it would be no option")
        if option.read is None and equals:
            raise Usage(f"--{name} takes no value")
        if option.read is not None and not equals:
            if not rest:
                raise Usage(f"--{name} needs a value, {option.value}")
            value = rest.pop(0)
        if name in options and option.read is not None:
            raise Usage(f"--{name} is there twice; name it once")
        options[name] = True if option.read is None else option.read(name, value)
    return words, options


def _line(
    name: str,
    words: Sequence[str],
    own: Mapping[str, Any],
    options: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Line:
    if "addr" in options and "data-dir" in options:
        raise Usage("--addr names a server and --data-dir a directory; name one of them")
    by_tls = [each for each in TLS if each in options]
    if by_tls and "data-dir" in options:
        raise Usage(f"--{by_tls[0]} is about a server and --data-dir names a directory")
    host, port = "", 0
    if name in COMMANDS and COMMANDS[name].at and "data-dir" not in options:
        default = environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        host, port = options.get("addr") or read_address(ADDRESS_VARIABLE, default)
    return Line(
        name,
        words,
        own,
        host,
        port,
        options.get("data-dir", ""),
        options.get("timeout", DEFAULT_TIMEOUT),
        options.get("json", False),
        _tls_words(options, environ) if by_tls else None,
    )


def _tls_words(options: Mapping[str, Any], environ: Mapping[str, str]) -> TlsWords:
    # The key of the environment is none of a certificate that was named here.
    key = "" if "cert" in options else environ.get("CONURE_KEY", "")
    return TlsWords(
        options.get("ca") or environ.get("CONURE_CA", ""),
        options.get("cert") or environ.get("CONURE_CERT", ""),
        options.get("key") or key,
        options.get("tls-name") or environ.get("CONURE_TLS_NAME", ""),
    )


def _check_word(name: str, words: Sequence[str]) -> None:
    known: Iterable[str] = SHELLS if name == "completion" else COMMANDS
    for word in words:
        if word not in known:
            kind = "shell that is completed" if name == "completion" else "command"
            raise Usage(f"{word}: no such {kind}{_nearest(word, known, '')}")


def _nearest(word: str, known: Iterable[str], dashes: str) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), 1, 0.6)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


def _usage(name: str) -> str:
    return f"{name} {COMMANDS[name].arguments}".rstrip()


def _synopsis(name: str) -> str:
    options = [f"[--{each}{_after(each)}]" for each in COMMANDS[name].options]
    return " ".join(["kvctl", _usage(name), *options])


def _after(name: str) -> str:
    value = OPTIONS[name].value
    return f"={value}" if value else ""


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "".join(f"  {left:{width}}  {right}\n" for left, right in rows)
