#!/usr/bin/env python3
"""The shell: all that the client can do, from a terminal or a script.

================================== ===============================================================
``conuresh.py``                    asks for commands, with history and completion
``conuresh.py < file``             carries out one command a line; the worst status of them
``conuresh.py get k``              one command; the value's exact bytes go to standard output
``conuresh.py put k -``            takes the value from standard input
``conuresh.py lock n -- command``  runs a command while it holds a lock
================================== ===============================================================

Exit status: 0 done, 1 not found or refused, 2 wrong usage; of ``lock`` that of its command.

1. An error is one line on standard error and never ends an interactive shell.
2. What is shown on a terminal can't disturb it: control characters appear as escapes. A value goes
   to anything else as exactly the bytes that were stored; one command adds no line end. Lists and
   events are lines with escapes everywhere; as JSON they are exact.
3. Ctrl-C gives up the line or the command, Ctrl-D leaves.
4. A word is an option only where a command has an option of that name; behind ``--`` none is.
5. A line of a script or a terminal is split as a POSIX shell does it, but that JSON is one word
   (conure/client/shellwords.py).

One thread, besides that of a lock. Leaders are followed by the client; the prompt names the server
it talks to.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from conure.client import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    DEFAULT_TTL,
    Client,
    Event,
    Record,
    Watch,
)
from conure.client.shellwords import NotWords, split
from conure.client.texts import fields
from conure.errors import ConureError
from conure.standardio import guarded
from conure.values import COMMAND

__all__ = ["Shell", "main"]

_OK, _FAILED, _USAGE = 0, 1, 2
_HISTORY_LINES = 1000
_LOOK = 0.2  # seconds between two looks at whether a lock is still held


class Option(NamedTuple):
    """What an option's value looks like, and what it is read by; a flag has none."""

    value: str = ""
    read: Callable[[str, str], Any] | None = None


def _duration(name: str, text: str) -> float:
    seconds = COMMAND.parse(text)
    if not seconds:
        raise Usage(f"{name}={text}: write it like 5s or 500ms")
    return seconds


def _number(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        raise Usage(f"{name}={text}: it has to be a whole number")
    return int(text)


def _key_bytes(_: str, text: str) -> bytes:
    return os.fsencode(text)


def _text(_: str, text: str) -> str:
    return text


OPTIONS = {
    "--ttl": Option("30s", _duration),
    "--keep-ttl": Option(),
    "--if-revision": Option("N", _number),
    "--acquire": Option("SESSION", _text),
    "--release": Option("SESSION", _text),
    "--prefix": Option("P", _key_bytes),
    "--keys": Option(),
    "--limit": Option("N", _number),
    "--reverse": Option(),
    "--json": Option(),
    "--from": Option("REVISION", _number),
    "--prev": Option(),
    "--wait": Option("10s", _duration),
    "--name": Option("NAME", _text),
    "--behavior": Option("delete", _text),
}


class Command(NamedTuple):
    """What there is to know about a command; its arguments are the words of ``usage``."""

    usage: str
    summary: str
    options: tuple[str, ...] = ()
    details: str = ""

    def arguments(self) -> tuple[int, float]:
        """Return how many there have to be, and how many there may be."""
        words = [word for word in self.usage.split()[1:] if word != "--"]
        optional = sum(word.startswith("[") for word in words)
        return len(words) - optional, math.inf if self.usage.endswith("...>") else len(words)

    def synopsis(self) -> str:
        options = [f"[{name} {OPTIONS[name].value}".rstrip() + "]" for name in self.options]
        before, dashes, after = self.usage.partition(" -- ")
        return " ".join([before, *options]) + dashes + after


COMMANDS = {
    "put": Command(
        "put <key> <value>",
        "store a value",
        ("--ttl", "--keep-ttl", "--if-revision", "--acquire", "--release"),
        "The key expires after --ttl, or never; with --keep-ttl when it would have anyway.\n"
        "With --if-revision it is only stored if that is the key's revision (see info), and with\n"
        "0 only if the key doesn't exist. --acquire and --release name a session, see session.\n"
        "Put quotes around what holds spaces: put greeting 'hello world'. In a line of this shell\n"
        'JSON needs none, and is stored as it stands: put user {"name": "Ada"}.\n'
        "On the command line of conuresh itself, - as the value stands for standard input.",
    ),
    "get": Command("get <key>", "show a value"),
    "info": Command(
        "info <key>",
        "show a key's value, revisions, time to live and holder",
        details="It is JSON; mod_revision is what --if-revision takes.",
    ),
    "delete": Command(
        "delete <key>",
        "remove a key, whether it exists or not",
        ("--if-revision", "--prefix"),
        "With --prefix and no key it removes all keys that begin so, and shows how many; at once,\n"
        "or if they are more than a server deletes at once (5,000) in parts.",
    ),
    "incr": Command(
        "incr <key> [<by>]",
        "add 1 or another number, and show the sum",
        ("--ttl",),
        "A key that isn't there counts as 0, and expires after --ttl, or never.",
    ),
    "touch": Command("touch <key> <ttl>", "let a key expire in 30s, say, or with 0s never"),
    "list": Command(
        "list [<prefix>]",
        "show keys and their values",
        ("--keys", "--limit", "--reverse", "--json"),
        "A line each, key and value with a tab between; --keys leaves the values out.\n"
        "As --json it has everything, and is what load takes.",
    ),
    "count": Command("count [<prefix>]", "show how many keys there are"),
    "watch": Command(
        "watch <key>",
        "show what happens to a key, until Ctrl-C",
        ("--prefix", "--from", "--prev", "--json"),
        "With --prefix and no key it is about all keys that begin so; --prefix '' about all.\n"
        "It begins now, or at the revision --from. A line each: what, revision, key, value.\n"
        "With --prev --json each has the value before, too, where the server knows it.",
    ),
    "txn": Command(
        "txn [<file>]",
        "carry out a transaction",
        details="The file, or standard input, is JSON with compare, success and failure, such as\n"
        '  {"compare": [{"key": "k", "mod_revision": 9}],\n'
        '   "success": [{"put": {"key": "k", "value": "v"}}, {"get": {"key": "n"}}]}\n'
        "The exit status is 1 if the comparisons didn't hold.",
    ),
    "load": Command(
        "load <file>",
        "store many records",
        details="Each line is JSON, such as\n"
        '  {"key": "k", "value": "v", "ttl": "30s"}  or  {"key": "k", "delete": true}\n'
        "What list --json shows can be loaded. - stands for standard input.",
    ),
    "lock": Command(
        "lock <name> -- <command...>",
        "run a command while holding a lock",
        ("--ttl", "--wait"),
        "It waits for the lock, up to --wait. The command finds the fencing token in the\n"
        "environment as CONURE_FENCING_TOKEN, and its exit status is that of this one. If this\n"
        f"machine vanishes the lock is free after --ttl ({DEFAULT_TTL:g}s); if the lock is lost "
        "the command is ended.",
    ),
    "session": Command(
        "session <action> [<id>]",
        "open, show, renew or end a session",
        ("--ttl", "--name", "--behavior"),
        "session open shows the ID of a new one, which ends unless it is renewed within --ttl\n"
        f"({DEFAULT_TTL:g}s). What it holds at its end is let go, or with --behavior delete "
        "removed.",
    ),
    "backup": Command(
        "backup <file>",
        "write a backup of everything",
        details="python3 conuredb.py restore makes a cluster of it. The file is there when it is\n"
        "whole. - stands for standard output.",
    ),
    "status": Command(
        "status",
        "show what the server says of itself",
        details="The server is the one that was named.",
    ),
    "help": Command("help [<command>]", "show the commands, or more about one"),
    "exit": Command("exit", "leave; so do quit and Ctrl-D"),
    "quit": Command("quit", "leave"),
}

_HELP = f"""\
usage: conuresh.py [--server=URL] [--ca=FILE] [--timeout=DURATION] [command ...]

Without a command it asks for commands. With one it carries that out and ends with status
0 (done), 1 (not found or refused) or 2 (wrong usage). "help get" tells more about get.

  --server=URL        a server of the cluster, {DEFAULT_SERVER} if none is named;
                      may be given several times, or as a comma-separated list,
                      or in the environment as CONURE_SERVER
  --ca=FILE           CA certificates, as PEM, that https servers are checked by, or CONURE_CA;
                      none: the system's
  --cert=FILE         certificate to show to servers that ask for one, or CONURE_CERT
  --key=FILE          its key, if that is in another file, or CONURE_KEY
  --tls-name=NAME     the name that servers have to bear if it isn't the URL's, or CONURE_TLS_NAME
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
        self._actions: dict[str, Callable[..., int | None]] = {
            "put": self._put,
            "get": self._get,
            "info": self._info,
            "delete": self._delete,
            "incr": self._increment,
            "touch": self._touch,
            "list": self._list,
            "count": self._count,
            "watch": self._watch,
            "txn": self._transact,
            "load": self._load,
            "lock": self._lock,
            "session": self._session,
            "backup": self._backup,
            "status": self._status,
            "help": self._help,
        }

    def run(self, words: Sequence[str]) -> int:
        """Carry out one command and return its exit status; errors are told on standard error.

        Raises Leave for ``exit`` and OSError if the output can't be written.
        """
        try:
            return self._dispatch(words) or _OK
        except Usage as error:
            _complain(f"{self._prefix}{error}")
            return _USAGE
        except (Failed, ConureError) as error:
            _complain(f"{self._prefix}{error}")
            return _FAILED

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
        """Carry out a line (5); a blank one is done."""
        try:
            words = split(line)
        except NotWords as error:
            _complain(f"{self._prefix}{error}")
            return _USAGE
        return self.run(words) if words else _OK

    # -- the commands ------------------------------------------------------------------------------

    def _dispatch(self, words: Sequence[str]) -> int | None:
        name, *rest = words
        command = COMMANDS.get(name)
        if command is None:
            raise Usage(f"{name}: no such command; try help")
        arguments, options = _parse(command, rest)
        least, most = command.arguments()
        if "prefix" in options:  # in place of the key
            least = most = 0
        if not least <= len(arguments) <= most:
            quotes = "; put quotes around what holds spaces" if most else ""
            raise Usage(f"usage: {command.synopsis()}{quotes}")
        if name in ("exit", "quit"):
            raise Leave
        return self._actions[name](*arguments, **options)

    def _put(self, key: str, value: str, **options: Any) -> None:
        from_input = self._one_shot and value == "-"
        content = sys.stdin.buffer.read() if from_input else os.fsencode(value)
        self._client.put(os.fsencode(key), content, **options)
        _write("OK\n")

    def _get(self, key: str) -> None:
        value = self._client.get(os.fsencode(key))
        if value is None:
            raise Failed("key not found")
        if sys.stdout.isatty():
            _write(_printable(value.decode("utf-8", "backslashreplace"), keep="\n\t") + "\n")
        else:
            _write(value if self._one_shot else value + b"\n")

    def _info(self, key: str) -> None:
        record = self._client.record(os.fsencode(key))
        if record is None:
            raise Failed("key not found")
        _write(json.dumps(_shown_record(record), indent=2) + "\n")

    def _delete(
        self, key: str = "", *, prefix: bytes | None = None, if_revision: int | None = None
    ) -> None:
        if prefix is None:
            self._client.delete(os.fsencode(key), if_revision=if_revision)
            _write("OK\n")
        elif if_revision is None:
            _write(f"{self._client.delete_prefix(prefix)}\n")
        else:
            raise Usage("--if-revision is about one key; name it in place of --prefix")

    def _increment(self, key: str, by: str = "1", *, ttl: float | None = None) -> None:
        _write(f"{self._client.increment(os.fsencode(key), _number('by', by), ttl=ttl)}\n")

    def _touch(self, key: str, ttl: str) -> None:
        seconds = 0.0 if ttl == "0s" else _duration("ttl", ttl)
        if not self._client.touch(os.fsencode(key), seconds):
            raise Failed("key not found")
        _write("OK\n")

    def _list(
        self,
        prefix: str = "",
        *,
        keys: bool = False,
        limit: int | None = None,
        reverse: bool = False,
        json: bool = False,
    ) -> None:
        items = self._client.items(
            os.fsencode(prefix), limit=limit, reverse=reverse, keys_only=keys
        )
        with items:
            for record in items:
                if json:
                    _write_json(_shown_record(record, with_value=not keys))
                else:
                    _write_columns(record.key, *([] if keys else [record.value]))

    def _count(self, prefix: str = "") -> None:
        _write(f"{self._client.count(os.fsencode(prefix))}\n")

    def _watch(self, key: str | None = None, *, json: bool = False, **options: Any) -> None:
        start, prefix = options.get("from", 0), options.get("prefix")
        prev = options.get("prev", False)
        if prev and not json:
            raise Usage("--prev is shown with --json only")
        name = None if key is None else os.fsencode(key)
        try:
            with self._client.watch(name, prefix=prefix, start_revision=start, prev=prev) as watch:
                _show_events(watch, as_json=json)
        except KeyboardInterrupt:  # that is how it ends
            _end_line()

    def _transact(self, file: str = "-") -> int:
        text = self._read(file)
        try:
            transaction = json.loads(text)
        except ValueError as error:
            raise Failed(f"{file} is not JSON: {error}") from error
        if not isinstance(transaction, dict):
            raise Failed(f"{file} has to be a JSON object; see help txn")
        result = self._client.transact(transaction)
        _write(json.dumps(result, indent=2) + "\n")
        return _OK if result["succeeded"] else _FAILED

    def _load(self, file: str) -> None:
        if file == "-" and self._one_shot:
            _write(f"{self._client.load(_records(sys.stdin.buffer))}\n")
            return
        try:
            with open(file, "rb") as lines:
                _write(f"{self._client.load(_records(lines))}\n")
        except OSError as error:
            raise Failed(f"{file}: {error.strerror}") from error

    def _lock(
        self,
        name: str,
        *command: str,
        ttl: float = DEFAULT_TTL,
        wait: float | None = None,
    ) -> int:
        # A shell that is told to end lets go of the lock, and takes the command with it.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            lock = self._client.lock(os.fsencode(name), ttl, wait)
            with lock as token:
                return _run_command(command, token, lambda: lock.lost)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _session(
        self,
        action: str,
        session: str = "",
        *,
        ttl: float = DEFAULT_TTL,
        name: str = "",
        behavior: str = "release",
    ) -> None:
        if action not in ("open", "show", "renew", "end") or bool(session) == (action == "open"):
            raise Usage("usage: session open, or session show|renew|end <id>; see help session")
        if action == "open":
            _write(self._client.open_session(ttl, name=name, behavior=behavior) + "\n")
        elif action == "show":
            _write(json.dumps(self._client.session_info(session), indent=2) + "\n")
        else:
            (self._client.renew_session if action == "renew" else self._client.end_session)(session)
            _write("OK\n")

    def _backup(self, file: str) -> None:
        tell = _tell_progress if sys.stderr is not None and sys.stderr.isatty() else None
        if file == "-" and self._one_shot:
            self._client.backup(sys.stdout.buffer, tell)
            sys.stdout.flush()
            return
        try:
            revision = self._client.backup(file, tell)
        except OSError as error:
            raise Failed(f"{file}: {error.strerror}") from error
        finally:
            if tell:
                _complain("")
        _write(f"OK, as of revision {revision}\n")

    def _status(self) -> None:
        _write(json.dumps(self._client.status(), indent=2) + "\n")

    def _help(self, name: str = "") -> None:
        if not name:
            _write(_command_list())
            return
        if name not in COMMANDS:
            raise Usage(f"{name}: no such command; try help")
        command = COMMANDS[name]
        _write(f"{command.synopsis()}\n  {command.summary}\n")
        if command.details:
            _write(f"{command.details}\n")

    def _read(self, file: str) -> bytes:
        if file == "-":
            if not self._one_shot:
                raise Usage("name a file; standard input is where the commands come from")
            return sys.stdin.buffer.read()
        try:
            with open(file, "rb") as content:
                return content.read()
        except OSError as error:
            raise Failed(f"{file}: {error.strerror}") from error


# -- the command line ------------------------------------------------------------------------------


def _parse(command: Command, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments of a command, and its options by the names that Python has for them."""
    arguments: list[str] = []
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        name, equals, value = word.partition("=")
        if name not in command.options:
            arguments.append(word)
            continue
        read = OPTIONS[name].read
        if read is None and equals:
            raise Usage(f"{name} takes no value")
        if read is not None and not equals:
            if not rest:
                raise Usage(f"{name} needs a value; usage: {command.synopsis()}")
            value = rest.pop(0)
        options[name[2:].replace("-", "_")] = True if read is None else read(name, value)
    return arguments, options


def _run_command(command: Sequence[str], token: int, is_lost: Callable[[], bool]) -> int:
    """Run a command under a lock and return its exit status, as a POSIX shell has it."""
    try:
        process = subprocess.Popen(  # noqa: S603  # that is what was asked for
            command, env={**os.environ, "CONURE_FENCING_TOKEN": str(token)}
        )
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    was_lost = False
    try:
        while True:
            try:
                status = process.wait(_LOOK)
                break
            except subprocess.TimeoutExpired:
                if is_lost() and not was_lost:
                    was_lost = True
                    _complain(f"the lock is lost; ending {command[0]}")
                    process.terminate()
            except KeyboardInterrupt:  # the command at the same terminal has got it as well
                _end_line()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the shell for a command line (without the program's name); return the exit status."""
    if sys.stdin is None or sys.stdout is None:
        _complain("conuresh: standard input and output have to be open")
        return _FAILED
    return guarded(lambda: _run(argv, environ), lambda why: _complain(f"conuresh: {why}"))


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        options = _options(argv, environ)
        if options is None:
            _write(_HELP + _command_list())
            return _OK
        servers, timeout, tls, words = options
        client = Client(servers, timeout, **tls)
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


class _Tls(TypedDict):
    """What Client takes for servers of https."""

    ca: str
    cert: str
    key: str
    tls_name: str


def _options(
    argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[str], float, _Tls, list[str]] | None:
    """Return servers, time limit, what TLS takes, and command; None if help is asked for."""
    servers: list[str] = []
    tls = _Tls(
        ca=environ.get("CONURE_CA", ""),
        cert=environ.get("CONURE_CERT", ""),
        key=environ.get("CONURE_KEY", ""),
        tls_name=environ.get("CONURE_TLS_NAME", ""),
    )
    timeout = DEFAULT_TIMEOUT
    given_key = ""
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        name = name.lstrip("-")
        if name in ("help", "h"):
            return None
        if name not in ("server", "timeout", "ca", "cert", "key", "tls-name"):
            raise Usage(f"--{name}: no such option; try --help")
        if not equals:
            if not rest:
                raise Usage(f"--{name} needs a value; try --help")
            value = rest.pop(0)
        if name == "server":
            servers += value.split(",")
        elif name == "timeout":
            timeout = _duration("--timeout", value)
        elif name == "tls-name":
            tls["tls_name"] = value
        elif name == "cert":  # whose key is not the one of the environment's
            tls["cert"], tls["key"] = value, given_key
        elif name == "key":
            tls["key"] = given_key = value
        else:
            tls["ca"] = value
    if not servers:
        servers = environ.get("CONURE_SERVER", DEFAULT_SERVER).split(",")
    return servers, timeout, tls, rest


def _command_list() -> str:
    return "".join(f"  {command.usage:<28} {command.summary}\n" for command in COMMANDS.values())


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
    if not before or before == ["help"]:
        candidates: Iterable[str] = COMMANDS
    elif before[0] in COMMANDS and text.startswith("-") and "--" not in before:
        candidates = COMMANDS[before[0]].options
    else:
        return None
    words = [f"{name} " for name in candidates if name.startswith(text)]
    return words[state] if state < len(words) else None


def _history_file() -> str:
    folder = os.environ.get("XDG_STATE_HOME")
    if folder:
        return os.path.join(folder, "conuresh_history")
    return os.path.expanduser("~/.conuresh_history")


# -- records and events as JSON --------------------------------------------------------------------


def _records(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None, float | None]]:
    """Yield what the lines of a file say, for ``Client.load``."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            decode = b64decode if record.get("encoding") == "base64" else str.encode
            key = decode(record["key"])
            value = None if record.get("delete") else decode(record["value"])
            ttl = record.get("ttl")
            seconds = _duration("ttl", ttl) if isinstance(ttl, str) else ttl
        except (ValueError, TypeError, KeyError, AttributeError, Usage) as error:
            raise Failed(
                f"line {number} is no record ({error}); see help load. Those before it may have "
                "been stored"
            ) from error
        yield key, value, seconds


def _shown_record(record: Record, *, with_value: bool = True) -> dict[str, Any]:
    """Return a record as the server shows it."""
    texts = {"key": record.key} | ({"value": record.value} if with_value else {})
    shown = fields(texts)
    facts = record._asdict()
    for name in ("create_revision", "mod_revision", "version", "ttl", "session", "fencing_token"):
        if facts[name] is not None:
            shown[name] = facts[name]
    return shown


def _shown_event(event: Event) -> dict[str, Any]:
    found = {"key": event.key, "value": event.value, "prev": event.previous}
    return {
        "event": event.kind,
        "revision": event.revision,
        **fields({name: text for name, text in found.items() if text is not None}),
        "version": event.version,
    }


# -- output ----------------------------------------------------------------------------------------


def _show_events(watch: Watch, *, as_json: bool) -> None:
    for event in watch:
        if as_json:
            _write_json(_shown_event(event))
        else:
            columns = [event.kind.encode(), str(event.revision).encode(), event.key]
            _write_columns(*columns, *([] if event.value is None else [event.value]))


def _write_json(found: object) -> None:
    _write(json.dumps(found) + "\n")


def _write_columns(*columns: bytes) -> None:
    """Write a line of columns that anything may be in."""
    shown = (_printable(each.decode("utf-8", "backslashreplace"), keep="") for each in columns)
    _write("\t".join(shown) + "\n")


def _end_line() -> None:
    """Go to a new line, after the ^C that a terminal shows."""
    if sys.stdout.isatty():
        _write("\n")


def _tell_progress(size: int) -> None:
    print(f"\r{size:,} bytes", end="", file=sys.stderr, flush=True)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
