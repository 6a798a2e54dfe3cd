"""The scripts of testdata/raft/, each against the trace it holds (see tests/lab/raft_script.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.raft_script import SCRIPTS, play, rewrite


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    if os.environ.get("CONURE_REWRITE"):
        rewrite([path])
    assert play(path.read_text()) == path.read_text()


def test_a_script_fails_on_another_trace() -> None:
    text = "nodes a\n----\na leads at once\n"
    assert play(text) != text
