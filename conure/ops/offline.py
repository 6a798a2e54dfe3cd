"""The commands for a node that doesn't run: restore, check, stats, dump, compact.

============================ ===================================================================
command                      does
============================ ===================================================================
``restore FILE [settings]``  makes a data directory, and a new cluster, from a backup (backup.py)
``check DIR``                reads a whole data directory and proves that it is in order
``stats DIR``                tells what is in it, as text or with ``--json`` as an object
``dump DIR``                 writes the users' records to standard output, one JSON object a line
``compact DIR``              writes the records anew, in smaller files (compacting.py)
============================ ===================================================================

1. ``check``, ``stats`` and ``dump`` change nothing but the lock file (stopped.py): the code that a
   start would run sees what it would make of the directory, and the disk doesn't.
2. They hold the directory's lock meanwhile; a server that runs there is named and left alone.
3. The records are as of the last checkpoint. After a clean stop that is everything. After a crash
   the log holds more, and how much is said; a start applies it.
4. What a line of ``dump`` has stands in reports.py, and is the same in kvctl.
5. The engine is the one that ``identity.json`` names; ``restore`` alone is told by ``--engine``.
6. ``compact`` reads the log like the others. Before it opens the records it finishes what a start
   would finish, on the disk.

Exit status: 0 if all is well, 1 for anything that isn't, 2 for a command that can't be used.

Everything here belongs to the main thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from conure.commands import prefix_end
from conure.config import load
from conure.errors import ConfigError, StorageError
from conure.fileio import OsFileSystem
from conure.ops.progress import ProgressLine
from conure.ops.reports import examine, facts_of, lines_of, note_of
from conure.ops.stopped import Stopped
from conure.settings import SETTINGS
from conure.state.backup import Progress, restore
from conure.storage.engines import kind_named

__all__ = ["COMMANDS", "run"]

COMMANDS: Final = ("restore", "check", "stats", "dump", "compact")

_RESTORE_SETTINGS = (
    "profile", "data_dir", "node_id", "raft_addr", "http_addr", "raft_advertise", "http_advertise",
    "engine", "page_size", "config",
)  # fmt: skip
_RESTORE_FLAGS = [
    flag for setting in SETTINGS if setting.name in _RESTORE_SETTINGS for flag in setting.flags
]


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out a command line that begins with one of COMMANDS; return the exit status.

    Raises ConfigError for a command line that can't be used, other ConureErrors for what it finds,
    and SystemExit(0) for ``--help``.
    """
    options = _parse(argv)
    progress = ProgressLine(quiet=options.quiet)
    status = 0
    try:
        status = _carry_out(options, environ, progress)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        why = f"{options.command} was interrupted; nothing is lost, and it can be run again"
        raise StorageError(why) from None
    finally:
        progress.end()
    return status


def _carry_out(
    options: argparse.Namespace, environ: Mapping[str, str], progress: ProgressLine
) -> int:
    if options.command == "restore":
        return _restore(options, environ, progress)
    with contextlib.closing(Stopped(OsFileSystem(), options.directory, progress)) as stopped:
        if options.command == "check":
            return _check(stopped, progress, quiet=options.quiet)
        if options.command == "stats":
            return _stats(stopped, as_json=options.json)
        if options.command == "compact":
            return _compact(stopped, progress, quiet=options.quiet)
        return _dump(stopped, os.fsencode(options.prefix), progress)


# -- the command line ----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are ConfigErrors, one line each."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        raise ConfigError(command, "command line", f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    command, *rest = argv
    about = {
        "restore": "Makes a data directory from a backup: a new cluster of one node.",
        "check": "Reads the data directory of a stopped node and proves that it is in order.",
        "stats": "Tells what is in the data directory of a stopped node.",
        "dump": "Writes the records of a stopped node to standard output, a JSON object a line.",
        "compact": "Writes the records of a stopped node anew, so that their files get smaller. It "
        "needs as much room on the disk as the records take.",
    }[command]
    parser = _Parser(prog=f"conuredb.py {command}", description=about, allow_abbrev=False)
    parser.set_defaults(command=command)
    parser.set_defaults(quiet=False)
    if command in ("restore", "check", "compact"):
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    if command == "dump":
        parser.add_argument("--quiet", action="store_true", help="show no progress")
    if command == "restore":
        parser.add_argument("file", metavar="FILE", help="what GET /backup has answered")
        for setting in SETTINGS:
            if setting.name in _RESTORE_SETTINGS:
                default = f" (default: {setting.default})" if setting.default else ""
                for flag in setting.flags:  # with a profile they may mean different settings
                    parser.add_argument(
                        flag, dest=flag, metavar=setting.placeholder, help=setting.help + default
                    )
        return parser.parse_args(rest)
    parser.add_argument("directory", metavar="DIR", help="the node's data_dir")
    if command == "stats":
        parser.add_argument("--json", action="store_true", help="print a JSON object")
    if command == "dump":
        parser.add_argument("--prefix", default="", help="only the keys that begin with this")
    return parser.parse_args(rest)


# -- restore -------------------------------------------------------------------------------------


def _restore(
    options: argparse.Namespace, environ: Mapping[str, str], progress: ProgressLine
) -> int:
    given = {flag: getattr(options, flag, None) for flag in _RESTORE_FLAGS}
    config = load([f"{flag}={text}" for flag, text in given.items() if text is not None], environ)
    if config.role != "data":
        why = "a backup holds records, and an arbiter keeps none; restore a data node"
        raise ConfigError("role", config.sources["role"], why)
    raft_address = config.raft_advertised(config.raft_addr.port)
    if not raft_address:
        why = "the restored node begins a cluster of its own; name --raft-advertise"
        raise ConfigError("raft_addr", config.sources["raft_addr"], why)
    try:
        made = restore(
            OsFileSystem(),
            options.file,
            config.data_dir,
            node_id=config.node_id,
            raft_address=raft_address,
            http_address=config.http_advertised(config.http_addr.port),
            kind=kind_named(config.engine),
            page_size=config.page_size,
            progress=progress,
        )
    except FileNotFoundError:
        raise ConfigError("FILE", "command line", f"there is no file {options.file}") from None
    finally:
        progress.end()
    if not options.quiet:
        header, identity = made.header, made.identity
        taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(header.taken / 1000))
        own = made.census.describe_own()
        print(
            f"restored {made.census.records:,} records as of revision {header.index}, "
            f"taken {taken} from node {header.node_id} of cluster {header.cluster_id}\n"
            + (f"beside them {own}\n" if own else "")
            + f"{config.data_dir} belongs to node {identity.node_id} of the new cluster "
            f"{identity.cluster_id}; start it with\n"
            f"  python3 conuredb.py --data-dir={shlex.quote(config.data_dir)}"
        )
    return 0


# -- check, stats, dump, compact -----------------------------------------------------------------


def _check(stopped: Stopped, progress: ProgressLine, *, quiet: bool) -> int:
    lines, faults = examine(stopped)
    progress.end()
    if not quiet:
        print("\n".join(lines if faults else [*lines, "all in order"]))
    for fault in faults:
        print(f"conuredb: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _stats(stopped: Stopped, *, as_json: bool) -> int:
    facts = facts_of(stopped)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}".rstrip())
    return 0


def _dump(stopped: Stopped, prefix: bytes, progress: Progress) -> int:
    store, behind = stopped.open_records()
    if behind:
        print(f"conuredb: {note_of(store, behind)}", file=sys.stderr)
    written = 0
    state = store.snapshot()
    for lines in lines_of(state.items(prefix, prefix_end(prefix))):
        sys.stdout.buffer.write(b"".join(lines))
        written += len(lines)
        if not prefix and not sys.stdout.isatty():
            progress("dumping", written, store.records)
    state.close()
    return 0


def _compact(stopped: Stopped, progress: ProgressLine, *, quiet: bool) -> int:
    compacted = stopped.compact(progress)
    progress.end()
    if not quiet:
        saved = compacted.before - compacted.after
        print(
            f"{stopped.path}: {compacted.records:,} records, {compacted.before:,} bytes before, "
            f"{compacted.after:,} after" + ("" if saved else ": nothing to be saved")
        )
    return 0
