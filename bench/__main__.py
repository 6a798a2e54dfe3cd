"""The command line of the benchmarks; see ``bench/__init__.py``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from dataclasses import replace

from bench import (
    checkpoint_part,
    cluster_part,
    engine_part,
    failover_part,
    features_part,
    http_part,
    join_part,
    node_part,
    pairs_command,
    resp_part,
    restart_part,
    security_part,
    steady_part,
)
from bench.plan import FULL, LEAST_RECORDS, QUICK, SHORT
from bench.report import facts, write_results
from bench.servers import Conure, find_interpreter
from bench.workspace import BenchError, Workspace, note, raise_file_limit

_PARTS = {
    "http": http_part.run,
    "engines": engine_part.run,
    "features": features_part.run,
    "node": node_part.run,
    "resp": resp_part.run,
    "restart": restart_part.run,
    "checkpoint": checkpoint_part.run,
    "cluster": cluster_part.run,
    "failover": failover_part.run,
    "steady": steady_part.run,
    "join": join_part.run,
    "security": security_part.run,
}
_RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "RESULTS.md")


def main() -> int:
    """Run the parts that were asked for; return the exit status.

    A target that isn't met is reported and is no failure; a part that could not be measured is.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise_file_limit()
    if sys.argv[1:2] == ["pairs"]:
        return _pairs(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure ConureDB.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(_PARTS)}")
    parser.add_argument("--short", action="store_true", help="two rounds, up to 100 k records")
    parser.add_argument("--quick", action="store_true", help="one short round, a rough look only")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    parser.add_argument("--python", help="what ConureDB runs on; default: the system's, if it can")
    parser.add_argument(
        "--records", type=int, nargs="+", metavar="N", help="sizes for the part engines"
    )
    parser.add_argument(
        "--before", default="", metavar="CHECKOUT", help="what the part security is compared with"
    )
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in _PARTS]:
        parser.error(f"no part is called {unknown[0]}; there are {', '.join(_PARTS)}")
    if options.quick and options.write:
        parser.error("results are not written from a quick run; leave out --quick")
    if options.python and not shutil.which(options.python):
        parser.error(f"--python: there is no program {options.python}")
    Conure.interpreter = options.python or find_interpreter()
    plan = QUICK if options.quick else SHORT if options.short else FULL
    plan = replace(plan, before=options.before)
    if options.records:
        if min(options.records) < LEAST_RECORDS:
            parser.error(f"--records: at least {LEAST_RECORDS:,}")
        plan = replace(plan, engine_sizes=tuple(options.records))
    failed = False
    for name in options.parts or _PARTS:
        note(f"part {name}")
        try:
            with Workspace() as workspace:
                provenance = facts(plan, workspace)
                section = _PARTS[name](plan, workspace)
        except BenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        rendered = section.render(provenance)
        print(rendered, flush=True)
        if options.write:
            write_results(_RESULTS, [(section.title, rendered)])
    return 1 if failed else 0


def _pairs(arguments: list[str]) -> int:
    Conure.interpreter = find_interpreter()
    try:
        return pairs_command.main(arguments)
    except BenchError as error:
        print(f"pairs: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
