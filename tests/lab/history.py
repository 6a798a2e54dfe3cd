"""Earlier states of this project, taken out of its history."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.lab.process import ROOT

__all__ = ["archived"]


def archived(commit: str, place: Path) -> Path:
    """Put what a commit holds into a place, and return its server's script; skip the test where the
    history isn't here."""
    try:
        archive = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "archive", commit],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the history of this project isn't here: {error}")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(place, filter="data")
    return place / "conuredb.py"
