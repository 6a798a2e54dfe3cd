"""kvctl: a key-value store's command for people and scripts, for a server or a stopped directory.

=================================== ==========================================================
``kvctl put mykey myvalue``         asks the server at ``--addr``, 127.0.0.1:9090 unless named
``kvctl --data-dir=./data tables``  opens the data directory of a node that doesn't run
``kvctl completion bash``           asks nobody
=================================== ==========================================================

Exit status: 0 done, 1 not found or refused, 2 wrong usage, 130 interrupted (but ``watch``, which
ends so, 0); the same as those of conuresh.py. An error is one line on standard error. Who has seen
enough may close the pipe; nothing is said of that.

The words are read by kvwords.py. Then one of two files is imported, by its name: kvserver.py, which
needs sockets and little else, or kvstopped.py, which needs the engines. So asking a server starts
in the time that Python takes, and no import stands in a function. Started by commandline.py, by
``bin/kvctl``, or as ``python3 -m conure.ops.kvctl`` in a clone. Main thread.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from conure import VERSION
from conure.errors import ConfigError, ConureError
from conure.ops.kvcommands import Usage
from conure.ops.kvcompletion import script_for
from conure.ops.kvoutput import Output, complain
from conure.ops.kvwords import Failed, Line, help_of, help_text, parse
from conure.standardio import guarded

__all__ = ["main"]

_DONE, _FAILED, _USAGE = 0, 1, 2
_SERVER, _STOPPED = "conure.ops.kvserver", "conure.ops.kvstopped"


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out a command line (without the program's name); return the exit status."""
    if sys.stdout is None:
        complain("standard output has to be open")
        return _FAILED
    return guarded(lambda: _run(argv, environ), complain)


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        line = parse(argv, environ)
        output = Output(as_json=line.as_json)
        status = _carry_out(line, output)
        output.flush()
    except (Usage, ConfigError) as error:
        complain(str(error))
        return _USAGE
    except (Failed, ConureError) as error:
        sys.stdout.flush()  # what was found before comes first
        complain(str(error))
        return _FAILED
    return status


def _carry_out(line: Line, output: Output) -> int:
    if line.command == "version":
        output.line(f"kvctl of ConureDB {VERSION}")
    elif line.command == "completion":
        output.write(script_for(line.arguments[0]))
    elif line.command == "help":
        output.write(help_of(line.arguments[0]) if line.arguments else help_text())
    else:
        place = importlib.import_module(_STOPPED if line.data_dir else _SERVER)
        return int(place.run(line, output))
    return _DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
