"""The list of mutations: each applies, and no module is without one. What catches them is a run
of its own, ``python -m tests.mutations``."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import Mutation
from tests.test_imports import FILES, ROOT

UNMUTATED: dict[str, str] = {
    "conure/cluster/options.py": "facts: tests/system/test_settings.py sees that each arrives",
    "conure/storage/engine.py": "values and protocols: there is nothing to do wrong",
    "conure/consensus/messages.py": "values and protocols: there is nothing to do wrong",
    "conure/service/backend.py": "protocols",
    "conure/service/front.py": "protocols",
    "conure/service/referral.py": "a protocol",
    "conure/http/limits.py": "numbers: the tests of whoever keeps to them give others",
    "conure/resp/limits.py": "numbers: the tests of whoever keeps to them give others",
    "conure/resp/verb.py": "values: there is nothing to do wrong",
}
"""Modules that need no mutation, and why."""


def is_template(mutation: Mutation) -> bool:
    """Whether a mutation is of a chart, and no Python."""
    return mutation.file.startswith("charts/")


def test_every_module_has_a_mutation() -> None:
    modules = {str(path.relative_to(ROOT)) for path in FILES.values() if path.stem != "__init__"}
    mutated = {mutation.file for mutation in MUTATIONS if not is_template(mutation)}
    assert mutated <= modules
    assert modules - mutated == UNMUTATED.keys()


def test_no_two_mutations_have_one_name() -> None:
    names = Counter(mutation.name for mutation in MUTATIONS)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies(mutation: Mutation, tmp_path: Path) -> None:
    (tmp_path / mutation.file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / mutation.file, tmp_path / mutation.file)
    mutation.apply(tmp_path)  # its old text is there exactly once
    changed = (tmp_path / mutation.file).read_text()
    assert changed != (ROOT / mutation.file).read_text()
    if not is_template(mutation):
        compile(changed, mutation.file, "exec")
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).is_file()
