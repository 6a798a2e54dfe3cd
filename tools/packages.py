#!/usr/bin/env python3
"""Makes what runs without a clone, a wheel or an archive: ``make wheel`` and ``make pyz``.

    python3 tools/packages.py wheel [--to=FOLDER]    conuredb-VERSION-py3-none-any.whl, for pip
    python3 tools/packages.py pyz [--to=FOLDER]      conuredb.pyz, for any Python that is new enough

Both are made of a copy, so nothing is left in the clone and nothing old gets in. FOLDER is build
by default. The wheel is built by the setuptools of this interpreter (requirements-dev.txt) without
asking any network; the archive takes nothing but Python. Exit status: 0, or that of what failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "config.example.yaml")
"""What the build reads besides the code, and what a wheel has for people."""

MAIN = """\
import conure.commandline

conure.commandline.archive()
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the wheel or the archive.")
    parser.add_argument("kind", choices=("wheel", "pyz"))
    parser.add_argument("--to", type=Path, default=ROOT / "build", metavar="FOLDER")
    options = parser.parse_args(argv)
    options.to.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        stage = Path(folder) / "conuredb"
        lay_out(stage)
        if options.kind == "wheel":
            return make_wheel(stage, options.to)
        make_archive(stage, options.to / "conuredb.pyz")
    return 0


def lay_out(stage: Path) -> None:
    """Copy the code."""
    shutil.copytree(ROOT / "conure", stage / "conure", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, stage)


def make_wheel(stage: Path, folder: Path) -> int:
    """Build a wheel into *folder*; return the exit status of pip."""
    for name in BESIDE:
        shutil.copy(ROOT / name, stage)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, f"--wheel-dir={folder}"]
    return subprocess.run([*build, str(stage)], check=False).returncode  # noqa: S603


def make_archive(stage: Path, target: Path) -> None:
    """Make an archive that a Python runs as it is, or that a shell runs by its first line."""
    (stage / "__main__.py").write_text(MAIN)
    zipapp.create_archive(stage, target, interpreter="/usr/bin/env python3", compressed=True)


if __name__ == "__main__":
    sys.exit(main())
