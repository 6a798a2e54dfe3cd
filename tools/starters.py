#!/usr/bin/env python3
"""Writes bin/server and bin/kvctl, which start this clone from anywhere: ``make build``.

    python3 tools/starters.py [--to=FOLDER]

``bin/server`` is ``conuredb.py`` with the profile kvstore, unless the environment names another
one; ``bin/kvctl`` is kvctl. Both take the Python of the clone's virtual environment, if there is
one, or else ``python3``, and give way to it (exec): signals, standard input and the exit status are
its own. They may be linked or copied anywhere; the clone has to stay where it was. FOLDER is bin by
default.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
#!/bin/sh
# Made by `make build`; see tools/starters.py.
set -eu
root={root}
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"""

SERVER = """\
export CONURE_PROFILE="${CONURE_PROFILE-kvstore}"
exec "$python" "$root/conuredb.py" "$@"
"""

# The folder of the clone takes the place of the working directory, which Python would look into.
KVCTL = """\
exec "$python" -c 'import sys
sys.path[0] = sys.argv.pop(1)
from conure.commandline import kvctl
sys.exit(kvctl())' "$root" "$@"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Write what starts this clone.")
    parser.add_argument("--to", type=Path, default=ROOT / "bin", metavar="FOLDER")
    folder = parser.parse_args(argv).to
    folder.mkdir(exist_ok=True)
    for name, text in (("server", SERVER), ("kvctl", KVCTL)):
        path = folder / name
        path.write_text(HEAD.format(root=shlex.quote(str(ROOT))) + text)
        path.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
