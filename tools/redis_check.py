#!/usr/bin/env python3
"""Redis' own tests against a server of this checkout: what ``make redis-check`` runs.

The suite is the folder with the source of redis 7.0 (Debian: ``apt-get source redis``), whose
``runtest`` needs ``tclsh``. A copy of it runs each unit with the tests left out that
``tests/resp/redis-skip.txt`` names::

    $ make redis-check REDIS_SUITE=redis-7.0.15
    ok      unit/type/string: 58 passed, 0 failed, 16 left out
    …

Or it is a program that is called with the host and the port of a server whose data it may erase,
the units if some are named, and the variable ``REDIS_SKIP`` for that file.

The server takes ports of the system's choice; its data and its log are in a temporary
directory.

Exit status: that of the program, or 1 if a unit failed; 1 if the server ended, or its log has a
traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ROOT / "tests" / "resp" / "redis-skip.txt"
SERVED = re.compile(r"RESP is served at (\S+):(\d+)$", re.MULTILINE)
START_SECONDS = 60.0
UNITS = ("type/string", "type/incr", "expire", "scan", "keyspace", "protocol", "quit", "multi",
         "pubsub")  # fmt: skip
RUNTEST = ("./runtest", "--singledb", "--ignore-encoding", "--ignore-digest", "--durable",
           "--clients", "1", "--tags", "-slow -needs:debug -needs:repl -needs:save",
           "--skipfile", str(SKIPPED))  # fmt: skip
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SHOWN_LINES = 40  # of a unit that failed


def main() -> int:
    """Run the tests."""
    parser = argparse.ArgumentParser(prog="redis_check.py", description=main.__doc__)
    parser.add_argument("suite", help="the folder of redis' source, or a program")
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
                if Path(options.suite).is_dir():
                    source = Path(directory) / "suite"
                    _copy(Path(options.suite), source)
                    units = options.units or UNITS
                    status = max([_run_unit(source, host, port, unit) for unit in units])
                else:
                    status = _run_program(options.suite, host, port, options.units)
                has_ended = server.poll() is not None
            finally:
                server.terminate()
        text = log.read_text()
    if has_ended or "Traceback" in text:
        print(f"the server failed; its log:\n{text}", file=sys.stderr)
        return 1
    return status


def _run_program(program: str, host: str, port: str, units: list[str]) -> int:
    environ = {**os.environ, "REDIS_SKIP": str(SKIPPED)}
    command = [program, host, port, *units]
    return subprocess.run(command, env=environ, check=False).returncode  # noqa: S603


def _copy(source: Path, place: Path) -> None:
    """Copy what the tests are: they write beside themselves."""
    if not (source / "runtest").is_file():
        sys.exit(f"{source} is no source of redis: it has no file named runtest")
    shutil.copytree(source / "tests", place / "tests")
    shutil.copy(source / "runtest", place)


def _run_unit(source: Path, host: str, port: str, unit: str) -> int:
    """Run the tests of a unit and print how many passed; return 1 if any failed. Each unit is a run
    of its own, as a command that isn't offered ends a run."""
    command = [*RUNTEST, "--host", host, "--port", port, "--single", f"unit/{unit}"]
    done = subprocess.run(  # noqa: S603
        command, cwd=source, check=False, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = COLOURS.sub("", done.stdout).splitlines()
    passed, failed, skipped, ignored = (
        sum(line.startswith(f"[{mark}]") for line in lines)
        for mark in ("ok", "err", "skip", "ignore")
    )
    status = int(done.returncode != 0 or failed > 0)
    told = f"unit/{unit}: {passed} passed, {failed} failed, {skipped + ignored} left out"
    print(f"{'failed' if status else 'ok':7} {told}", flush=True)
    if status:
        marks = [n for n, line in enumerate(lines) if line.startswith(("[err]", "[exception]"))]
        start = marks[0] if marks else max(0, len(lines) - SHOWN_LINES)
        print("\n".join(f"        {line}" for line in lines[start : start + SHOWN_LINES]))
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
