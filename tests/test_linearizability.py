"""The checker itself: histories known to be good or bad, and any small one beside brute force."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizability import (
    DELETE,
    GET,
    PUT,
    Operation,
    Violation,
    check_history,
    explain,
)

A, B, C = b"a", b"b", b"c"


Call = tuple[str, bytes | None, int, int | None]


def history(*calls: Call) -> list[Operation]:
    """Return calls on one key, each by a client of its own."""
    return [
        Operation(client, kind, b"k", value, invoked, returned)
        for client, (kind, value, invoked, returned) in enumerate(calls)
    ]


GOOD: dict[str, list[Call]] = {
    "nothing at all": [],
    "a get of what was never put": [(GET, None, 1, 2)],
    "a put and a get": [(PUT, A, 1, 2), (GET, A, 3, 4)],
    "a get amid a put sees the old value": [(PUT, A, 1, 4), (GET, None, 2, 3)],
    "a get amid a put sees the new value": [(PUT, A, 1, 4), (GET, A, 2, 3)],
    "the order of the ends is not the order of effects": [
        (PUT, A, 1, 10),
        (PUT, B, 2, 3),
        (GET, B, 4, 5),
        (GET, A, 6, 7),
    ],
    "a delete takes the value away": [(PUT, A, 1, 2), (DELETE, None, 3, 4), (GET, None, 5, 6)],
    "an unknown put that happened": [(PUT, A, 1, None), (GET, A, 2, 3)],
    "an unknown put that never happened": [(PUT, A, 1, None), (GET, None, 2, 3)],
    "an unknown put that happened late": [
        (PUT, A, 1, None),
        (GET, None, 2, 3),
        (PUT, B, 4, 5),
        (GET, B, 6, 7),
        (GET, A, 8, 9),
    ],
    "an unknown delete that happened late": [
        (PUT, A, 1, 2),
        (DELETE, None, 3, None),
        (GET, A, 4, 5),
        (GET, None, 6, 7),
    ],
    "two unknown deletes, both used": [
        (DELETE, None, 1, None),
        (DELETE, None, 2, None),
        (PUT, A, 3, 4),
        (GET, None, 5, 6),
        (PUT, B, 7, 8),
        (GET, None, 9, 10),
    ],
    "a get without an answer": [(PUT, A, 1, 2), (GET, None, 3, None), (GET, A, 4, 5)],
}

BAD: dict[str, list[Call]] = {
    "a value nobody wrote": [(PUT, A, 1, 2), (GET, B, 3, 4)],
    "a get before its put": [(GET, A, 1, 2), (PUT, A, 3, 4)],
    "a get before its unknown put": [(GET, A, 1, 2), (PUT, A, 3, None)],
    "a lost write": [(PUT, A, 1, 2), (GET, None, 3, 4)],
    "a stale read": [(PUT, A, 1, 2), (PUT, B, 3, 4), (GET, A, 5, 6)],
    "new, then old": [(PUT, A, 1, 2), (PUT, B, 3, 10), (GET, B, 4, 5), (GET, A, 6, 7)],
    "two readers disagree about the order": [
        (PUT, A, 1, 10),
        (PUT, B, 2, 11),
        (GET, A, 3, 4),
        (GET, B, 5, 6),
        (GET, A, 7, 8),
    ],
    "a deleted value is back": [
        (PUT, A, 1, 2),
        (DELETE, None, 3, 4),
        (GET, None, 5, 6),
        (GET, A, 7, 8),
    ],
    "an unknown put that happened twice": [
        (PUT, A, 1, None),
        (GET, A, 2, 3),
        (PUT, B, 4, 5),
        (GET, B, 6, 7),
        (GET, A, 8, 9),
    ],
    "one unknown delete, used twice": [
        (DELETE, None, 1, None),
        (PUT, A, 3, 4),
        (GET, None, 5, 6),
        (PUT, B, 7, 8),
        (GET, None, 9, 10),
    ],
    "an unknown delete before its begin": [
        (PUT, A, 1, 2),
        (GET, None, 3, 4),
        (DELETE, None, 5, None),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert explain(history(*GOOD[name])) is None


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found_and_explained(name: str) -> None:
    found = explain(history(*BAD[name]))
    assert found is not None
    assert "not linearizable: client" in found


def test_keys_are_registers_of_their_own() -> None:
    calls = [
        Operation(0, PUT, b"x", A, 1, 2),
        Operation(0, PUT, b"y", B, 3, 4),
        Operation(0, GET, b"x", A, 5, 6),
    ]
    check_history(calls)
    with pytest.raises(Violation, match="b'y'"):
        check_history([*calls, Operation(1, GET, b"y", None, 7, 8)])


def test_a_long_history_takes_no_long_search() -> None:
    """Six clients, all calls of a round open at once, a quarter of the puts unknown."""
    calls: list[Call] = []
    for turn in range(100):
        for client in range(6):
            begin = turn * 20 + client
            end = None if (turn + client) % 4 == 0 else turn * 20 + 10 + client
            calls.append((PUT, b"%d.%d" % (turn, client), begin, end))
    assert explain(history(*calls)) is None


# -- beside brute force --------------------------------------------------------------------------


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Up to six calls whose begins and ends are shuffled; values are unique, gets guess."""
    count = draw(st.integers(1, 6))
    moments = draw(st.permutations(range(1, 2 * count + 1)))
    calls: list[Call] = []
    for number in range(count):
        invoked, returned = sorted(moments[2 * number : 2 * number + 2])
        kind = draw(st.sampled_from([PUT, PUT, DELETE, GET, GET]))
        value: bytes | None = None
        if kind == PUT:
            value = b"%d" % number
        elif kind == GET:
            value = draw(st.sampled_from([None, *(b"%d" % other for other in range(count))]))
        known = draw(st.booleans()) or draw(st.booleans())
        calls.append((kind, value, invoked, returned if known else None))
    return history(*calls)


def orders(calls: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Yield each order of all ended calls and any of the unknown writes that time allows."""
    ended = [call for call in calls if call.returned is not None]
    unknown = [call for call in calls if call.returned is None and call.kind != GET]
    for size in range(len(unknown) + 1):
        for some in combinations(unknown, size):
            for order in permutations([*ended, *some]):
                if not any(
                    later.returned is not None and later.returned < earlier.invoked
                    for earlier, later in combinations(order, 2)
                ):
                    yield order


def is_legal(order: tuple[Operation, ...]) -> bool:
    value = None
    for call in order:
        if call.kind == GET:
            if call.value != value:
                return False
        else:
            value = call.value
    return True


@settings(max_examples=400, deadline=None)
@given(small_histories())
def test_any_small_history_beside_brute_force(calls: list[Operation]) -> None:
    assert (explain(calls) is None) == any(map(is_legal, orders(calls)))
