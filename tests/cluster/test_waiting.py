"""How writes and reads that wait are answered: each command once, by what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from conure.cluster.pending import Read, Reads, Write, Writes
from conure.commands import Committed, Outcome
from conure.consensus.messages import COMMAND, Entry
from conure.errors import ConureError, OutcomeUnknown, Unavailable

Outcomes = list[type[ConureError] | str | None]


def waiting(writes: Writes, term: int, first: int, count: int, deadline: float = 9.0) -> Outcomes:
    outcomes: Outcomes = ["unanswered"] * count

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        assert 0 <= start < stop <= count
        if isinstance(ended, Committed):
            assert ended.first == first
        for position in range(start, stop):
            assert outcomes[position] == "unanswered"
            outcomes[position] = None if isinstance(ended, Committed) else type(ended)

    writes.add(term, first, count, reply, deadline)
    return outcomes


def held(writes: Writes, *commands: bytes, deadline: float = 9.0) -> list[ConureError]:
    errors: list[ConureError] = []

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        assert (start, stop) == (0, len(commands))
        assert isinstance(ended, ConureError)
        errors.append(ended)

    writes.gather(Write(list(commands), reply, deadline))
    return errors


def run(answers: Sequence[Callable[[], None]]) -> None:
    for answer in answers:
        answer()


def entries(first: int, *terms: int) -> list[Entry]:
    return [Entry(term, index, COMMAND, b"") for index, term in enumerate(terms, first)]


def test_a_batch_is_answered_as_far_as_it_is_applied() -> None:
    writes = Writes()
    first, second = waiting(writes, 2, 5, 3), waiting(writes, 2, 8, 1)
    run(writes.applied(entries(5, 2, 2), {}))
    assert first == [None, None, "unanswered"]
    run(writes.applied(entries(7, 2, 2), {}))
    assert (first, second) == ([None] * 3, [None])
    assert not writes


def test_what_came_of_transactions_goes_to_their_batch_and_none_other() -> None:
    writes = Writes()
    told: list[tuple[int, int, Committed | ConureError]] = []
    writes.add(2, 5, 2, lambda *answer: told.append(answer), 9.0)
    writes.add(2, 7, 1, lambda *answer: told.append(answer), 9.0)
    lost = waiting(writes, 3, 8, 1)
    outcomes = {6: Outcome(6, True), 7: Outcome(7, False), 8: Outcome(8, True)}
    run(writes.applied(entries(5, 2, 2, 2, 4), outcomes))
    assert [
        (start, stop, ended.first, ended.outcomes.get(ended.first + start))
        for start, stop, ended in told
        if isinstance(ended, Committed)
    ] == [(0, 1, 5, None), (1, 2, 5, outcomes[6]), (0, 1, 7, outcomes[7])]
    assert lost == [Unavailable]  # though something was done at its index


def test_what_another_leader_put_in_its_place_tells_what_was_lost() -> None:
    writes = Writes()
    mixed, later = waiting(writes, 2, 5, 3), waiting(writes, 2, 8, 2)
    run(writes.applied(entries(5, 2, 2, 3), {}))
    assert mixed == [None, None, Unavailable]
    assert later == ["unanswered"] * 2
    run(writes.applied(entries(8, 3, 3), {}))
    assert later == [Unavailable] * 2


def test_an_old_slice_says_nothing_good_of_a_later_write_at_its_index() -> None:
    """Elected again, the node has proposed where it had proposed before, and lost again."""
    writes = Writes()
    old, later = waiting(writes, 1, 10, 11), waiting(writes, 3, 12, 1)
    run(writes.applied(entries(10, *[1] * 11), {}))
    assert (old, later) == ([None] * 11, [Unavailable])


def test_a_batch_of_a_later_term_waits_for_its_own_entries() -> None:
    writes = Writes()
    lost, kept = waiting(writes, 2, 5, 1), waiting(writes, 4, 7, 1)
    run(writes.applied(entries(5, 3, 4), {}))
    assert (lost, kept) == ([Unavailable], ["unanswered"])
    run(writes.applied(entries(7, 4), {}))
    assert kept == [None]


def test_what_a_snapshot_hides_or_time_ends_is_of_unknown_outcome() -> None:
    writes = Writes()
    hidden, late, ended = (
        waiting(writes, 2, 5, 3),
        waiting(writes, 2, 8, 1, deadline=1.0),
        waiting(writes, 2, 9, 1),
    )
    run(writes.skipped(6))
    run(writes.expired(1.0))
    assert (hidden, late, ended) == ([OutcomeUnknown] * 3, [OutcomeUnknown], ["unanswered"])
    run(writes.ended(Unavailable("over")))
    assert ended == [Unavailable]
    assert not writes


def test_what_is_held_back_is_released_once_and_in_order() -> None:
    writes = Writes()
    held(writes, b"a", b"bc")
    held(writes, b"def")
    assert writes.gathered_bytes == 6
    assert not writes  # nothing is proposed
    assert [each.commands for each in writes.take()] == [[b"a", b"bc"], [b"def"]]
    assert writes.gathered_bytes == 0
    assert list(writes.take()) == []
    run(writes.expired(99.0) + writes.ended(Unavailable("over")))


def test_commands_count_until_they_are_answered() -> None:
    writes = Writes()
    assert writes.count == 0
    waiting(writes, 1, 5, 3)
    held(writes, b"a", b"b")
    assert writes.count == 5
    run(writes.applied(entries(5, 1, 1), {}))
    assert writes.count == 3
    run(writes.ended(Unavailable("over")))
    assert writes.count == 0


def test_of_what_is_held_back_it_is_known_that_it_did_not_happen() -> None:
    writes = Writes()
    proposed = waiting(writes, 2, 5, 1, deadline=1.0)
    late, ended = held(writes, b"a", b"b", deadline=1.0), held(writes, b"cd", deadline=2.0)
    run(writes.expired(1.0))
    assert proposed == [OutcomeUnknown]
    assert [type(error) for error in late] == [Unavailable]
    assert writes.gathered_bytes == 2
    run(writes.skipped(99) + writes.applied(entries(5, 3), {}))
    assert ended == []
    run(writes.ended(OutcomeUnknown("it may have happened")))
    assert [type(error) for error in ended] == [Unavailable]
    assert "not begun" in str(ended[0])
    assert writes.gathered_bytes == 0


def test_reads_wait_for_their_confirmation_and_for_their_index() -> None:
    reads = Reads()
    answers: list[tuple[str, ConureError | None]] = []

    def read(name: str, index: int | None, deadline: float = 9.0) -> Read:
        made = Read(lambda error: answers.append((name, error)), deadline, index=index)
        reads.add(made)
        return made

    first, second = read("first", None), read("second", 7)
    run(reads.applied(6))
    assert answers == []
    first.index = 6
    run(reads.applied(6))
    assert answers == [("first", None)]
    error = Unavailable("lost")
    run(reads.lost(first, error))  # answered before
    run(reads.lost(second, error))
    assert answers[1:] == [("second", error)]
    read("third", None, deadline=1.0)
    run(reads.expired(1.0))
    assert "no quorum" in str(answers[2][1])
    read("fourth", 9, deadline=2.0)
    run(reads.expired(2.0))
    assert "this node is behind" in str(answers[3][1])


def test_reads_that_are_held_are_released_once_and_end_like_the_others() -> None:
    reads = Reads()
    answers: list[tuple[str, ConureError | None]] = []

    def hold(name: str, deadline: float, requests: int = 1) -> Read:
        made = Read(lambda error: answers.append((name, error)), deadline, requests)
        reads.gather(made)
        return made

    assert (reads.gathered_count, reads.count) == (0, 0)
    first, second = hold("first", 1.0, 3), hold("second", 2.0)
    assert (reads.gathered_count, reads.count) == (2, 4)
    run(reads.expired(1.0))
    assert [name for name, _ in answers] == ["first"]
    assert reads.count == 1
    assert reads.take() == [first, second]  # who has expired is asked for in vain
    assert reads.gathered_count == 0
    assert reads.take() == []
    first.index = second.index = 5
    run(reads.applied(5))
    assert answers[1:] == [("second", None)]
    hold("third", 3.0)
    run(reads.ended(Unavailable("over")))
    assert answers[2][0] == "third"
    assert isinstance(answers[2][1], Unavailable)
    assert reads.gathered_count == 0


def test_what_is_held_is_released_in_parts() -> None:
    writes = Writes()
    for name in (b"aa", b"bb", b"cc", b"dd"):
        held(writes, name, name)
    assert [each.commands for each in writes.take(3)] == [[b"aa", b"aa"], [b"bb", b"bb"]]
    assert (writes.gathered_count, writes.gathered_bytes) == (4, 8)
    assert [each.commands for each in writes.take(9, 1)] == [[b"cc", b"cc"]]
    assert [each.commands for each in writes.take()] == [[b"dd", b"dd"]]
    assert (writes.take(), writes.gathered_bytes) == ([], 0)


def test_a_bug_of_one_front_costs_the_other_no_answer() -> None:
    told: list[ConureError | None] = []

    def fail(_: ConureError | None) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Read(told.append, 9.0, kept=fail, kept_requests=1).answer(None)
    assert told == [None]
