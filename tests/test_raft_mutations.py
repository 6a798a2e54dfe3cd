"""The faults of tests/mutations.py still apply; whether the tests catch them is its own run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies(mutation: Mutation, tmp_path: Path) -> None:
    shutil.copy(ROOT / mutation.file, tmp_path)
    mutation.apply(tmp_path)
    changed = (tmp_path / mutation.file).read_text()
    assert changed != (ROOT / mutation.file).read_text()
    compile(changed, mutation.file, "exec")
