"""The list of mutations: each applies, and no module is without one. None is run here."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutation import Mutation
from tests.mutations import MUTATIONS
from tests.process import ROOT

UNMUTATED: dict[str, str] = {}
"""Modules that need no mutation, and why."""


def test_every_module_has_a_mutation() -> None:
    modules = {path.name for path in ROOT.glob("*.py")}
    mutated = {mutation.file for mutation in MUTATIONS}
    assert mutated <= modules
    assert modules - mutated == UNMUTATED.keys()


def test_no_two_mutations_have_one_name() -> None:
    names = Counter(mutation.name for mutation in MUTATIONS)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("mutation", [pytest.param(each, id=each.name) for each in MUTATIONS])
def test_a_mutation_can_be_applied(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1, "its old text has to be found exactly once"
    assert mutation.old != mutation.new
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).is_file()
