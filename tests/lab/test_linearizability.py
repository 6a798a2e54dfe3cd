"""The checker itself: histories known to be good or bad, and any small one beside brute force."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import (
    Compare,
    Expire,
    Get,
    Increment,
    Outcome,
    Put,
    Relation,
    Target,
    Transaction,
)
from conure.storage.engine import Record
from tests.lab.linearizability import (
    DELETE,
    GET,
    PUT,
    Call,
    Operation,
    Seen,
    Violation,
    check_calls,
    check_history,
    explain,
)
from tests.lab.model import Command, Model

A, B, C = b"a", b"b", b"c"


Short = tuple[str, bytes | None, int, int | None]


def history(*calls: Short) -> list[Operation]:
    """Return calls on one key, each by a client of its own."""
    return [
        Operation(client, kind, b"k", value, invoked, returned)
        for client, (kind, value, invoked, returned) in enumerate(calls)
    ]


GOOD: dict[str, list[Short]] = {
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

BAD: dict[str, list[Short]] = {
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
    calls: list[Short] = []
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
    calls: list[Short] = []
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


# -- with revisions --------------------------------------------------------------------------------

CAS = Transaction((Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 5),), (Put(b"k", B, ttl=9),))
COUNT = Transaction((), (Increment(b"n", 1),), idempotency_key=b"once", fingerprint=b"f", window=99)
LOG: dict[int, Command] = {
    5: (b"k", A),
    7: CAS._replace(time=100),
    8: COUNT._replace(time=100),
    9: COUNT._replace(time=101),
    12: Transaction((), (Expire(9),), time=109),
    13: (b"l", C),
}


def told(revision: int) -> Outcome | None:
    """Return what the client of an entry was told."""
    model = Model()
    outcomes = {}
    for index, command in LOG.items():
        model.revision = index - 1
        outcomes[index] = model.run(command)
    return outcomes[revision]


def wrote(revision: int, invoked: int, returned: int, **changes: object) -> Call:
    command = LOG[revision]
    if isinstance(command, Transaction):
        command = command._replace(time=0)
    facts = {"command": command, "outcome": told(revision)} | changes
    return Call(0, invoked, returned, revision, **facts)  # type: ignore[arg-type]


def saw(revision: int, invoked: int, returned: int, key: bytes, found: object) -> Call:
    return Call(1, invoked, returned, revision, seen=(Seen("records", key, found),))


FIRST = Record(A, 5, 5, 1)
EXPIRING = Record(B, 5, 7, 2, 109)
RIGHT: dict[str, list[Call]] = {
    "everything in order": [
        wrote(5, 1, 2),
        wrote(7, 3, 4),
        saw(7, 5, 6, b"k", EXPIRING),
        wrote(8, 7, 8),
        wrote(9, 7, 9),
        saw(11, 10, 11, b"k", EXPIRING),
        saw(12, 12, 13, b"k", None),
        wrote(13, 14, 15),
    ],
    "later revisions return first": [wrote(8, 1, 9), wrote(7, 2, 4), wrote(13, 3, 5)],
    "a read sees what has not returned yet": [wrote(5, 1, 9), saw(5, 2, 3, b"k", FIRST)],
    "two reads of one state": [saw(5, 2, 3, b"l", None), saw(5, 4, 5, b"l", None)],
    "a repetition counts from its first attempt": [wrote(8, 1, 2), wrote(13, 3, 4), wrote(9, 1, 6)],
    "a stale read": [
        wrote(13, 1, 2),
        Call(1, 3, 4, 5, seen=(Seen("range", (b"", None), [(b"k", FIRST)]),), is_stale=True),
    ],
}
WRONG: dict[str, list[Call]] = {
    "a read of an old state": [wrote(7, 1, 2), saw(5, 3, 4, b"k", FIRST)],
    "a read that goes back behind another one": [
        saw(13, 1, 2, b"n", Record(b"1", 8, 8, 1)),
        saw(12, 3, 4, b"n", Record(b"1", 8, 8, 1)),
    ],
    "a write in front of one that had returned": [wrote(7, 1, 2), wrote(5, 3, 4)],
    "a write in front of what a stale read saw": [
        Call(1, 1, 2, 7, seen=(Seen("records", b"l", None),), is_stale=True),
        wrote(5, 3, 4),
    ],
    "a repetition in front of its first attempt": [wrote(13, 1, 2), wrote(9, 3, 4)],
    "a record of another time": [saw(7, 1, 2, b"k", EXPIRING._replace(expiry=110))],
    "an expired key is back": [saw(13, 1, 2, b"k", EXPIRING)],
    "a key expires before its time": [saw(11, 1, 2, b"k", None)],
    "a stale read of what never was": [
        Call(1, 1, 2, 13, seen=(Seen("records", b"k", EXPIRING),), is_stale=True)
    ],
    "a lock that nobody holds": [Call(1, 1, 2, 13, seen=(Seen("locks", b"k", (b"s", 1)),))],
    "another outcome": [wrote(7, 1, 2, outcome=Outcome(7, False, current=5))],
    "a repetition that counts again": [wrote(9, 1, 2, outcome=told(8))],
    "another command": [wrote(7, 1, 2, command=CAS._replace(success=(Put(b"k", C, ttl=9),)))],
    "a write without an entry": [Call(0, 1, 2, 6, (b"k", A))],
    "a write behind the end": [Call(0, 1, 2, 99, (b"k", A))],
}


@pytest.mark.parametrize("name", RIGHT)
def test_calls_that_the_log_explains(name: str) -> None:
    model = check_calls(RIGHT[name], LOG)
    assert model.records == {b"l": Record(C, 13, 13, 1), b"n": Record(b"1", 8, 8, 1)}


@pytest.mark.parametrize("name", WRONG)
def test_calls_that_it_does_not_explain(name: str) -> None:
    with pytest.raises(Violation):
        check_calls(WRONG[name], LOG)


def test_what_was_refused_is_not_in_the_log() -> None:
    never = Transaction((), (Get(b"k"),), fingerprint=b"never")
    check_calls([], LOG, {never})
    with pytest.raises(Violation, match="refused"):
        check_calls([], {**LOG, 14: never._replace(time=7)}, {never})
