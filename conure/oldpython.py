"""Tells in one line that this Python is too old; imported by each program before all else.

Whatever has to be told by it is read by the old Python first: this file and those that import it
(conuredb.py, conuresh.py, commandline.py, kvctl.py, scaling.py, client/__init__.py) keep to a
syntax that Python 3.7 can read, and import it before anything that can't be read or found there.
tests/test_imports.py holds them to it.

Its import ends a program of ours with status 2. To a program that imports the client it is an
ImportError.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["NEEDED", "complaint"]

NEEDED = (3, 11)
"""The oldest Python that will do."""


def complaint(version: Sequence[int | str], executable: str) -> str:
    """Return what is wrong with a Python of this ``sys.version_info``, "" if nothing is."""
    if tuple(version[:2]) >= NEEDED:
        return ""
    needed, found = (".".join(map(str, each[:2])) for each in (NEEDED, version))
    return f"ConureDB needs Python {needed} or newer, and this is Python {found} ({executable})"


_complaint = complaint(sys.version_info, sys.executable)
if _complaint:
    _roof = os.path.dirname(os.path.realpath(__file__))
    _program = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "")
    if os.path.dirname(_program) not in (os.path.dirname(_roof), os.path.join(_roof, "ops")):
        raise ImportError(_complaint)
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {_complaint}\n")
    sys.exit(2)
