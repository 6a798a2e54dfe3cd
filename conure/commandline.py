"""The commands of an installation: ``conuredb``, ``conuresh``, ``kvctl``, and those of the pyz.

A wheel brings one name for programs to import, ``conure``. The files that a clone has on its step
(conuredb.py, conuresh.py, raft.py and others) travel in conure/_step/, where nobody finds them by
accident: only a command puts that folder on the path of its own process, in front, so that there
they win and elsewhere they shadow nobody's ``raft`` or ``pager``. In an archive they stand at its
root, where Python has put the path already.

They are named by strings here, because they can be imported only after the path is set; so nothing
under the roof depends on the step. For the main thread of a program that has just been started.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import importlib
import os
import sys
from types import ModuleType

__all__ = ["archive", "conuredb", "conuresh", "kvctl", "step"]


def step() -> str:
    """Return the folder of the files that are started: in a wheel, or beside ``conure/``."""
    roof = os.path.dirname(os.path.abspath(__file__))
    travelling = os.path.join(roof, "_step")
    return travelling if os.path.isdir(travelling) else os.path.dirname(roof)


def conuredb() -> int:
    """Run the server, or one of its commands; return the exit status."""
    return int(_started("conuredb").main())


def conuresh() -> int:
    """Run the shell; return the exit status."""
    return int(_started("conuresh").main(sys.argv[1:], os.environ))


def kvctl() -> int:
    """Run kvctl, for a server or a stopped directory; return the exit status."""
    return int(_started("conure.ops.kvctl").main(sys.argv[1:], os.environ))


def archive() -> None:
    """Run the shell if the first word after the archive's name is ``sh``, kvctl if it is that, or
    else the server."""
    other = {"sh": conuresh, "kvctl": kvctl}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if other is not None:
        del sys.argv[1]
        sys.exit(other())
    sys.exit(conuredb())


def _started(name: str) -> ModuleType:
    place = step()
    if place not in sys.path:
        sys.path.insert(0, place)
    return importlib.import_module(name)
