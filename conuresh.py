#!/usr/bin/env python3
"""The shell: put, get and delete from a terminal or a script, over the client.

================================== ===============================================================
``conuresh.py``                    asks for commands, with history and completion
``conuresh.py < file``             carries out one command a line; 1 if any of them failed
``conuresh.py get k``              one command; the value's exact bytes go to standard output
``conuresh.py put k -``            takes the value from standard input
================================== ===============================================================

Exit status: 0 done, 1 not found or refused, 2 wrong usage.

1. An error is one line on standard error and never ends an interactive shell.
2. What is shown on a terminal can't disturb it: control characters appear as escapes. Anything
   that isn't a terminal gets exactly the bytes that were stored; one command adds no line end.
3. Ctrl-C gives up the line or the command, Ctrl-D leaves.

One thread. Leaders are followed by the client; the prompt names the server it talks to.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from client import DEFAULT_SERVER, DEFAULT_TIMEOUT, Client
from errors import ConureError

__all__ = ["Shell", "main"]

_OK, _FAILED, _USAGE = 0, 1, 2
_HISTORY_LINES = 1000
_TIMEOUT = re.compile(r"(\d{1,6}(?:\.\d+)?)(ms|s|m)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Command(NamedTuple):
    """What there is to know about a command; its arguments are the words of ``usage``."""

    usage: str
    summary: str
    details: str = ""

    @property
    def arguments(self) -> int:
        return len(self.usage.split()) - 1


COMMANDS = {
    "put": Command(
        "put <key> <value>",
        "store a value",
        "Put quotes around what holds spaces: put greeting 'hello world'.\n"
        "On the command line of conuresh itself, - as the value stands for standard input.",
    ),
    "get": Command("get <key>", "show a value"),
    "delete": Command("delete <key>", "remove a key, whether it exists or not"),
    "status": Command(
        "status", "show what the server says of itself", "The server is the one that was named."
    ),
    "help": Command("help [command]", "show the commands, or more about one"),
    "exit": Command("exit", "leave; so do quit and Ctrl-D"),
    "quit": Command("quit", "leave"),
}

_HELP = f"""\
usage: conuresh.py [--server=URL] [--timeout=DURATION] [command ...]

Without a command it asks for commands. With one it carries that out and ends with status
0 (done), 1 (not found or refused) or 2 (wrong usage).

  --server=URL        a server of the cluster, {DEFAULT_SERVER} if none is named;
                      may be given several times, or as a comma-separated list,
                      or in the environment as CONURE_SERVER
  --timeout=DURATION  how long a command may take with all its retries (default: \
{DEFAULT_TIMEOUT:g}s)
  --help              print this

commands:
"""


class Usage(Exception):
    """The command or the command line isn't one; says what would be."""


class Failed(Exception):
    """The command was not carried out, or not known to be; says why."""


class Leave(Exception):
    """The user wants to leave the shell."""


class Shell:
    """Carries out commands over *client*. *one_shot* is set for a command of the command line."""

    def __init__(self, client: Client, one_shot: bool) -> None:
        self._client = client
        self._one_shot = one_shot
        self._prefix = "conuresh: " if one_shot else ""
        self._actions: dict[str, Callable[..., None]] = {
            "put": self._put,
            "get": self._get,
            "delete": self._delete,
            "status": self._status,
            "help": self._help,
        }

    def run(self, words: Sequence[str]) -> int:
        """Carry out one command and return its exit status; errors are told on standard error.

        Raises Leave for ``exit`` and OSError if the output can't be written.
        """
        try:
            self._dispatch(words)
        except Usage as error:
            _complain(f"{self._prefix}{error}")
            return _USAGE
        except (Failed, ConureError) as error:
            _complain(f"{self._prefix}{error}")
            return _FAILED
        return _OK

    def interact(self) -> int:
        """Ask for commands at the terminal until the user leaves."""
        with _line_editing():
            _write("ConureDB shell. help shows the commands, Ctrl-D leaves.\n")
            while True:
                before = self._client.leader
                try:
                    line = input(f"{before.removeprefix('http://')}> ")
                except KeyboardInterrupt:
                    _write("\n")
                    continue
                except EOFError:
                    _write("\n")
                    return _OK
                try:
                    self.run_line(line)
                except KeyboardInterrupt:
                    _complain("\ninterrupted; a write may or may not have been carried out")
                except Leave:
                    return _OK
                if self._client.leader != before:
                    _write(f"(now talking to {self._client.leader})\n")

    def run_script(self, lines: Iterable[str]) -> int:
        """Carry out one command a line and return the worst exit status."""
        worst = _OK
        for line in lines:
            try:
                worst = max(worst, self.run_line(line))
            except Leave:
                break
        return worst

    def run_line(self, line: str) -> int:
        """Carry out a line, split into words as a POSIX shell does it."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            _complain(f"{self._prefix}{str(error).lower()}; every quote needs its counterpart")
            return _USAGE
        return self.run(words) if words else _OK

    # -- the commands ------------------------------------------------------------------------------

    def _dispatch(self, words: Sequence[str]) -> None:
        name, *arguments = words
        command = COMMANDS.get(name)
        if command is None:
            raise Usage(f"{name}: no such command; try help")
        if len(arguments) != command.arguments and name != "help":
            quotes = "; put quotes around what holds spaces" if command.arguments else ""
            raise Usage(f"usage: {command.usage}{quotes}")
        if name in ("exit", "quit"):
            raise Leave
        self._actions[name](*arguments)

    def _put(self, key: str, value: str) -> None:
        from_input = self._one_shot and value == "-"
        content = sys.stdin.buffer.read() if from_input else os.fsencode(value)
        self._client.put(os.fsencode(key), content)
        _write("OK\n")

    def _get(self, key: str) -> None:
        value = self._client.get(os.fsencode(key))
        if value is None:
            raise Failed("key not found")
        if sys.stdout.isatty():
            _write(_printable(value.decode("utf-8", "backslashreplace"), keep="\n\t") + "\n")
        else:
            _write(value if self._one_shot else value + b"\n")

    def _delete(self, key: str) -> None:
        self._client.delete(os.fsencode(key))
        _write("OK\n")

    def _status(self) -> None:
        _write(json.dumps(self._client.status(), indent=2) + "\n")

    def _help(self, *names: str) -> None:
        if not names:
            _write(_command_list())
            return
        if len(names) > 1 or names[0] not in COMMANDS:
            raise Usage(f"{' '.join(names)}: no such command; try help")
        command = COMMANDS[names[0]]
        _write(f"{command.usage}\n  {command.summary}\n")
        if command.details:
            _write(f"{command.details}\n")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the shell for a command line (without the program's name); return the exit status."""
    if sys.stdin is None or sys.stdout is None:
        _complain("conuresh: standard input and output have to be open")
        return _FAILED
    try:
        return _run(argv, environ)
    except BrokenPipeError:  # whoever read the output has gone
        _forget_output()
        return _FAILED
    except OSError as error:
        _forget_output()
        _complain(f"conuresh: can't read the input or write the output: {error.strerror}")
        return _FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        options = _options(argv, environ)
        if options is None:
            _write(_HELP + _command_list())
            return _OK
        servers, timeout, words = options
        client = Client(servers, timeout)
    except (Usage, ConureError) as error:
        _complain(f"conuresh: {error}")
        return _USAGE
    with client:
        shell = Shell(client, one_shot=bool(words))
        if words:
            with contextlib.suppress(Leave):
                return shell.run(words)
            return _OK
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # keys and values may be any bytes
        if sys.stdin.isatty() and sys.stdout.isatty():
            return shell.interact()
        return shell.run_script(sys.stdin)


def _options(
    argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[str], float, list[str]] | None:
    """Return servers, time limit and command; None if help is asked for."""
    servers: list[str] = []
    timeout = DEFAULT_TIMEOUT
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        name = name.lstrip("-")
        if name in ("help", "h"):
            return None
        if name not in ("server", "timeout"):
            raise Usage(f"--{name}: no such option; try --help")
        if not equals:
            if not rest:
                raise Usage(f"--{name} needs a value; try --help")
            value = rest.pop(0)
        if name == "server":
            servers += value.split(",")
        else:
            timeout = _duration(value)
    if not servers:
        servers = environ.get("CONURE_SERVER", DEFAULT_SERVER).split(",")
    return servers, timeout, rest


def _duration(text: str) -> float:
    match = _TIMEOUT.fullmatch(text)
    if match is None or (seconds := float(match[1]) * _SECONDS[match[2]]) <= 0:
        raise Usage(f"--timeout={text}: write it like 5s or 500ms")
    return seconds


def _command_list() -> str:
    return "".join(f"  {command.usage:<20} {command.summary}\n" for command in COMMANDS.values())


# -- the terminal ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Give ``input`` a history and completion, as far as this Python has readline."""
    try:
        import readline  # noqa: PLC0415  # some builds of Python have none
    except ImportError:
        yield
        return
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.set_completer_delims(" \t")
    readline.set_completer(lambda text, state: _completion(readline.get_line_buffer(), text, state))
    readline.set_history_length(_HISTORY_LINES)
    history = _history_file()
    with contextlib.suppress(OSError):  # there is none yet, or it isn't ours to read
        readline.read_history_file(history)
    try:
        yield
    finally:
        os.umask(0o077)  # values are nobody else's business
        with contextlib.suppress(OSError):  # a history is a comfort, not a duty
            readline.write_history_file(history)


def _completion(line: str, text: str, state: int) -> str | None:
    """Return the *state*-th word that could end *line*, whose last word begins with *text*."""
    before = line.split()[: None if line.endswith((" ", "\t")) or not line else -1]
    if before and before != ["help"]:
        return None
    words = [f"{name} " for name in COMMANDS if name.startswith(text)]
    return words[state] if state < len(words) else None


def _history_file() -> str:
    folder = os.environ.get("XDG_STATE_HOME")
    if folder:
        return os.path.join(folder, "conuresh_history")
    return os.path.expanduser("~/.conuresh_history")


def _write(data: str | bytes) -> None:
    if isinstance(data, str):
        data = data.encode(sys.stdout.encoding, "backslashreplace")
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _complain(line: str) -> None:
    if sys.stderr is None:  # closed; print would take standard output in its place
        return
    with contextlib.suppress(OSError):  # there is no other place to say it
        print(_printable(line, keep="\n"), file=sys.stderr, flush=True)


def _printable(text: str, keep: str) -> str:
    """Return *text* with escapes for all that a terminal could take for a command."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def _forget_output() -> None:
    """Let the interpreter's last flush of standard output succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
