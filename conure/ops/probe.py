"""The probe: asks one URL of a server, for kubelet and for a container's HEALTHCHECK.

``python3 -m conure.ops.probe https://127.0.0.1:8081/readyz --ca=FILE`` ends with status 0 if the
answer is 200, and with 1 and one line that says why if it is anything else or none; with 2 for
wrong usage. It does what kubelet's own probe can't: it makes sure of the server by a CA, and shows
a certificate where the server asks for one.

1. All of it takes the time limit at most, however slowly the answer comes, and of the answer no
   more than :data:`MOST` bytes are read.
2. No redirect is followed: the answer is about this server or about none.
3. The files may be named by the environment as well: CONURE_CA, CONURE_CERT, CONURE_KEY and
   CONURE_TLS_NAME, as for the shell. Flags beat them.

It runs every few seconds, so it imports little, and ``ssl`` only for https. Main thread.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final, NamedTuple

from conure.errors import ConfigError
from conure.net.dialled import Dialled, name_to_check
from conure.tlswords import ASKING, TLS_ALERT, why_failed
from conure.values import COMMAND, authority_of, is_https, split_base_url, split_location

__all__ = ["main"]

MOST: Final = 16 << 10
"""Bytes of an answer that are looked at: of a longer one the status is enough."""

_OK, _FAILED, _USAGE = 0, 1, 2
_TIMEOUT: Final = 2.0  # seconds
_SHOWN: Final = 200  # characters of what a server says

_HELP: Final = """\
usage: python3 -m conure.ops.probe URL [--ca=FILE] [--cert=FILE --key=FILE]
           [--tls-name=NAME | --insecure-name] [--timeout=2s]

Asks for a URL, such as http://127.0.0.1:8081/readyz. Exit status: 0 if the answer is 200, 1 if it
is anything else or none, 2 for wrong usage.

  --ca=FILE        CA certificates that an https server is checked by; none: the system's
  --cert=FILE      certificate to show to a server that asks for one, and
  --key=FILE       its key, unless that is in the same file
  --tls-name=NAME  the name that the server's certificate has to bear; none: the URL's host
  --insecure-name  let it bear any name, as long as the CA has signed it
  --timeout=2s     the time for all of it

CONURE_CA, CONURE_CERT, CONURE_KEY and CONURE_TLS_NAME stand for flags that aren't there.
"""

_VARIABLES: Final = {
    "ca": "CONURE_CA",
    "cert": "CONURE_CERT",
    "key": "CONURE_KEY",
    "tls-name": "CONURE_TLS_NAME",
}


_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d{1,9})(?=\r|$)")


class _Usage(Exception):
    """The command line isn't one; says what would be."""


class _Failed(Exception):
    """The server isn't well, or can't be asked; says why."""


class _Options(NamedTuple):
    """Whom to ask for what, and how."""

    server: str
    target: str
    files: Mapping[str, str]
    checks_names: bool
    timeout: float


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out a command line (without the program's name); return the exit status."""
    try:
        if {"--help", "-h"}.intersection(argv):
            print(_HELP, end="")
            return _OK
        options = _parse(argv, environ)
        line = _ask(options)
    except (_Usage, ConfigError) as error:
        _complain(str(error))
        return _USAGE
    except _Failed as error:
        _complain(f"{argv[0] if argv else ''}: {error}")
        return _FAILED
    print(line)
    return _OK


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> _Options:
    files = {name: environ.get(variable, "") for name, variable in _VARIABLES.items()}
    timeout, checks_names, url = _TIMEOUT, True, ""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if url:
                raise _Usage(f"{word}: one URL is asked for; see --help")
            url = word
        elif word == "--insecure-name":
            checks_names = False
        elif name in (*files, "timeout"):
            if not equals and not rest:
                raise _Usage(f"--{name} needs a value; see --help")
            value = value if equals else rest.pop(0)
            if name != "timeout":
                files[name] = value
                continue
            seconds = COMMAND.parse(value)
            if not seconds or seconds > 3600:
                raise _Usage(f"--timeout={value}: write it like 500ms or 2s")
            timeout = seconds
        else:
            raise _Usage(f"{word}: no such option; see --help")
    try:
        server, target = split_location(url)
    except ValueError:
        raise _Usage(f"{url!r} is no URL; write it like http://127.0.0.1:8081/readyz") from None
    target = target if target.startswith("/") else f"/{target}"
    return _Options(server, target, files, checks_names, timeout)


def _ask(options: _Options) -> str:
    """Return what a server that is well says, in one line. Raises _Failed and ConfigError."""
    try:
        answer = _exchange(options)
    except TimeoutError:
        raise _Failed(f"no answer within {options.timeout:g} s") from None
    except OSError as error:
        why = why_failed(error, ASKING) or (error.strerror or str(error)).lower()
        raise _Failed(why) from error
    if answer.startswith(TLS_ALERT):
        raise _Failed("it speaks TLS; write the URL with https://")
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not words[0].startswith(b"HTTP/1.") or len(words) < 2:
        raise _Failed("what it answers is no HTTP" if answer else "it closes the connection")
    text = body.decode(errors="replace").strip().partition("\n")[0][:_SHOWN]
    said = "".join(char for char in text if char.isprintable())
    if words[1] != b"200":
        status = words[1][:3].decode("ascii", "replace")
        raise _Failed(f"it answers {status}" + (f": {said}" if said else ""))
    return said or "OK"


def _exchange(options: _Options) -> bytes:
    """Return an answer, or as much of it as has to be looked at. Raises OSError."""
    server = options.server
    host, port = split_base_url(server)
    begun = monotonic()
    dialled = Dialled.connect(host, port, options.timeout)
    dialled.deadline = begun + options.timeout
    try:
        if is_https(server):
            files = options.files
            # By its name: it imports ssl, which nobody needs to wait for who asks without it.
            tls = importlib.import_module("conure.clienttls").ClientTls(
                files["ca"], files["cert"], files["key"], checks_names=options.checks_names
            )
            dialled.secure(tls.context(), files["tls-name"] or name_to_check(host))
        dialled.sendall(
            f"GET {options.target} HTTP/1.1\r\nHost: {authority_of(server)}\r\n"
            "User-Agent: conure-probe\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while not _is_enough(answer) and (more := dialled.recv(MOST)):
            answer += more
        return answer
    finally:
        dialled.close()


def _is_enough(answer: bytes) -> bool:
    """Tell whether an answer is whole by the length that it names, or too long to be read on."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head) if end else None
    return len(answer) >= MOST or (length is not None and len(body) >= int(length[1]))


def _complain(line: str) -> None:
    print(f"probe: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
