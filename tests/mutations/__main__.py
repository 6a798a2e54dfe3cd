"""Deliberate faults, each of which the tests must notice: a test of the tests.

Each :class:`Mutation` is one replacement in one file: a fault that some Raft implementation has
had, or that a hasty change would make. It is put into a copy of the tree, and the tests chosen
for it run there until the first one fails::

    python -m tests.mutations              all of them, two at a time; some minutes
    python -m tests.mutations quorum read  those whose names contain one of these words

One line each says which test caught it. Exit status 1 if one survived, broke the tests instead
of failing them, or no longer applies: its old text must be found exactly once, so that a fault
follows the code it is about. The tests are run on an unchanged copy first: what fails there
says nothing about a fault. Any interpreter with the development tools will do.

The faults stand in a file for each wing of the code. Every module has one
(tests/test_mutations.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]
WORKERS = 2
UNCOPIED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "data")
TIMEOUT = 300
"""Seconds for all the tests of one mutation; pyproject.toml bounds each test."""


def main(words: list[str]) -> int:
    """Run the mutations whose names contain one of the words; return the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if not chosen:
        print(f"no mutation's name contains {' or '.join(map(repr, words))}")
        return 2
    width = max(len(mutation.name) for mutation in chosen)
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        healthy = Mutation("nothing is changed", "raft.py", "", "")
        suites = sorted({tuple(mutation.tests) for mutation in chosen})
        for status, said in pool.map(_run, [healthy._replace(tests=suite) for suite in suites]):
            if status != 0:
                print(f"mend this first, it fails without any fault: {said}")
                return 1
        for mutation, (status, said) in zip(chosen, pool.map(_run, chosen), strict=True):
            verdict = {0: "SURVIVED", 1: said}.get(status, f"BROKEN: {said}")
            print(f"{mutation.name:{width}}  {verdict}", flush=True)
            bad += status != 1
    print(f"{len(chosen) - bad} of {len(chosen)} caught")
    return 1 if bad else 0


def _run(mutation: Mutation) -> tuple[int, str]:
    """Return pytest's exit status on a mutated copy (1: a test failed), and which test that was."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = Path(folder)
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*UNCOPIED), dirs_exist_ok=True)
        if mutation.old:
            try:
                mutation.apply(root)
            except ValueError as error:
                return 2, str(error)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "--hypothesis-seed=1"]
        try:
            done = subprocess.run(
                [*command, *mutation.tests],
                cwd=root,
                # A .pyc of a same-sized fault of the same second would be taken for this one's.
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return 1, f"no end within {TIMEOUT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1].removeprefix("tests/") if failed else "".join(last)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
