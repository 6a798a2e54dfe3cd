#!/usr/bin/env python3
"""Redis' own tests against a server of this checkout: what ``make redis-check`` runs.

The suite is a program that is called with the host and the port of a server whose data it may
erase, and with the variable ``REDIS_SKIP``: a file that has the names of tests to leave out, one a
line. Such a program runs, in the folder with redis' source and for each UNIT of type/string,
type/incr, expire, scan, keyspace, protocol and quit::

    ./runtest --host $1 --port $2 --singledb --ignore-encoding --ignore-digest --clients 1 --durable
        --tags '-slow -needs:debug -needs:repl -needs:save' --skipfile "$REDIS_SKIP"
        --single unit/UNIT

The server takes ports of the system's choice; its data and its log are in a temporary
directory.

Exit status: that of the suite; 1 if the server ended, or its log has a traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ROOT / "tests" / "resp" / "redis-skip.txt"
SERVED = re.compile(r"RESP is served at (\S+):(\d+)$", re.MULTILINE)
START_SECONDS = 60.0


def main() -> int:
    """Run the tests."""
    parser = argparse.ArgumentParser(prog="redis_check.py", description=main.__doc__)
    parser.add_argument("suite", help="the program that runs the tests")
    parser.add_argument("units", nargs="*", help="units of the tests in place of all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conuredb-redis-") as directory:
        log = Path(directory) / "log"
        command = [
            sys.executable, str(ROOT / "conuredb.py"), "--bootstrap",
            f"--data-dir={directory}/data", "--http-addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0",
            "--resp-addr=127.0.0.1:0", "--max-value-bytes=8MiB",
        ]  # fmt: skip
        with log.open("wb") as file, subprocess.Popen(command, stderr=file) as server:  # noqa: S603
            try:
                host, port = _address(log)
                environ = {**os.environ, "REDIS_SKIP": str(SKIPPED)}
                suite = [options.suite, host, port, *options.units]
                status = subprocess.run(suite, env=environ, check=False).returncode  # noqa: S603
                has_ended = server.poll() is not None
            finally:
                server.terminate()
        text = log.read_text()
    if has_ended or "Traceback" in text:
        print(f"the server failed; its log:\n{text}", file=sys.stderr)
        return 1
    return status


def _address(log: Path) -> tuple[str, str]:
    """Return where the server speaks RESP, once its log tells that."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = SERVED.search(log.read_text())
        if found:
            return found[1], found[2]
        time.sleep(0.05)
    sys.exit(f"the server does not serve RESP:\n{log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
