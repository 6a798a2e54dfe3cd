"""The ordered merge beside a dict."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from conure.storage.lsm.merging import Group, gathered, live, merged

Model = dict[bytes, bytes]


def groups_of(model: Model, rng: random.Random, *, reverse: bool) -> Iterator[Group]:
    """Cut a sorted source into groups of any sizes, some of them empty."""
    keys = sorted(model)
    cuts = sorted(rng.randrange(len(keys) + 1) for _ in range(rng.randrange(8)))
    parts = [keys[a:b] for a, b in zip([0, *cuts], [*cuts, len(keys)], strict=True)]
    for part in reversed(parts) if reverse else parts:
        if part:
            yield part, [model[key] for key in part]


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_what_a_dict_would_hold(seed: int, reverse: bool) -> None:
    rng = random.Random(seed)
    expected: Model = {}
    sources: list[Iterator[Group]] = []
    for _ in range(rng.randrange(6)):
        among = rng.choice([20, 200])
        low = rng.randrange(100)
        model = {
            b"%03d" % (low + rng.randrange(among)): rng.choice([b"", rng.randbytes(3)])
            for _ in range(rng.randrange(80))
        }
        expected.update(model)
        sources.insert(0, groups_of(model, rng, reverse=reverse))
    found: list[tuple[bytes, bytes]] = []
    for keys, cells in list(merged(sources, reverse=reverse)) if sources else []:
        assert keys == sorted(keys)
        assert keys
        rows = list(zip(keys, cells, strict=True))
        found += rows[::-1] if reverse else rows
    assert found == sorted(expected.items(), reverse=reverse)


def test_a_range_that_only_one_source_has_is_handed_on_as_it_is() -> None:
    lone = ([b"c", b"d"], [b"1", b"2"])
    sources = [iter([([b"a"], [b"0"]), ([b"z"], [b"0"])]), iter([lone])]
    assert [keys for keys, _ in merged(sources)] == [[b"a"], [b"c", b"d"], [b"z"]]


def test_deleted_keys_are_left_out() -> None:
    group = ([b"a", b"b", b"c"], [b"1", b"", b"3"])
    assert live(group) == ([b"a", b"c"], [b"1", b"3"])
    assert live(([b"a"], [b"1"])) == ([b"a"], [b"1"])
    assert live(([b"a"], [b""])) == ([], [])


def test_groups_are_joined_more_and_more() -> None:
    source = [([b"%03d" % number], [b"x"]) for number in range(100)]
    sizes = [len(keys) for keys, _ in gathered(iter(source))]
    assert sizes[:5] == [1, 2, 4, 8, 16]
    assert sum(sizes) == 100
    backwards = [keys for keys, _ in gathered(iter(source[::-1]), reverse=True)]
    assert backwards[:2] == [[b"099"], [b"097", b"098"]]
