"""What the checks of image and charts are made of: steps with a line each, commands, waiting.

A check is a list of steps in order, each of which stands on the one before it, so the first that
fails ends the check: :class:`Failed` says why.

One thread, which may have others beside it.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["ROOT", "Failed", "run", "step", "until"]

ROOT = Path(__file__).resolve().parent.parent

COMMAND_SECONDS = 600.0
LOOK_SECONDS = 0.2


class Failed(Exception):
    """A promise that is not kept, or a command that could not do its work; str() says which."""


@contextlib.contextmanager
def step(what: str) -> Iterator[Callable[[str], None]]:
    """Print one line about the block: OK or failed, *what*, the facts it told, and its seconds.

    Yields the function that takes such a fact. Passes on whatever is raised within.
    """
    facts: list[str] = []
    started = time.monotonic()
    outcome = "failed"
    try:
        yield facts.append
        outcome = "OK"
    finally:
        details = f": {', '.join(facts)}" if facts else ""
        print(f"{outcome:<6} {what}{details} ({time.monotonic() - started:.1f} s)", flush=True)


def run(*command: str, stdin: bytes | None = None, status: int = 0) -> str:
    """Run a command in the project's folder and return what it printed, without the last newline.

    If it is to fail, that is what it printed as its error. Raises Failed, with all it said, if it
    does not end with *status*.
    """
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=ROOT,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        raise Failed(f"{command[0]} can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)} takes longer than {COMMAND_SECONDS:.0f} s") from error
    if done.returncode != status:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise Failed(f"{' '.join(command)} ended with status {done.returncode}:\n{said[-4000:]}")
    printed = done.stderr if status else done.stdout
    return printed.decode(errors="replace").removesuffix("\n")


def until(what: str, condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until *condition* is true; a Failed that it raises counts as not yet.

    Raises Failed, with *what* was waited for, after *seconds*.
    """
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if condition():
                return
        except Failed as error:
            last = f"; at last: {error}"
        if time.monotonic() >= deadline:
            raise Failed(f"waited {seconds:.0f} s in vain for {what}{last}")
        time.sleep(LOOK_SECONDS)
