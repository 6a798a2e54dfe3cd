"""How a command ends when its standard output or input does: the same for conuresh.py and kvctl.

Whoever reads the output may have seen enough and go; of that nothing is said. What else can't be
read or written is one line. The exit status is 1 for both, and 128 and the signal's number after
Ctrl-C. Called once, by the main thread of a process that ends with the status it gets.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["guarded"]

_FAILED: Final = 1


def guarded(run: Callable[[], int], complain: Callable[[str], None]) -> int:
    """Return the exit status of *run*, or of its end by its streams; *complain* says why."""
    try:
        return run()
    except BrokenPipeError:  # whoever read the output has gone
        _forget_output()
        return _FAILED
    except OSError as error:
        _forget_output()
        complain(f"can't read the input or write the output: {error.strerror}")
        return _FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _forget_output() -> None:
    """Let the interpreter's last flush of standard output succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
