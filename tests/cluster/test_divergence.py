"""Who is found to differ, by the digests of those that have answered."""

from __future__ import annotations

from conure.cluster.digests import Audit

GOOD, BAD = 1, 2


def audit(*followers: str, digest: int = GOOD) -> Audit:
    made = Audit()
    made.ask("n1", followers, 10, digest)
    return made


def test_a_follower_that_differs_from_the_majority_is_found() -> None:
    found = audit("n2", "n3")
    found.answer("n2", 10, GOOD)
    found.answer("n3", 10, BAD)
    assert found.deviants() == ["n3"]
    assert found.right_digest == GOOD


def test_a_leader_that_differs_from_the_majority_is_found() -> None:
    found = audit("n2", "n3", digest=BAD)
    found.answer("n2", 10, GOOD)
    found.answer("n3", 10, GOOD)
    assert found.deviants() == ["n1"]
    assert found.right_digest == GOOD


def test_a_wrong_leader_does_not_condemn_the_first_follower_that_answers() -> None:
    found = audit("n2", "n3", digest=BAD)
    found.answer("n2", 10, GOOD)
    assert found.differs
    assert found.deviants() == []


def test_a_majority_need_not_wait_for_the_rest() -> None:
    found = audit("n2", "n3", "n4", "n5")
    for node_id, digest in (("n2", GOOD), ("n3", BAD), ("n4", GOOD)):
        found.answer(node_id, 10, digest)
    assert found.deviants() == ["n3"]


def test_half_of_the_replicas_are_no_majority() -> None:
    found = audit("n2", "n3", "n4")
    found.answer("n2", 10, GOOD)
    found.answer("n3", 10, BAD)
    assert found.differs
    assert found.deviants() == []
    found.answer("n4", 10, GOOD)
    assert found.deviants() == ["n3"]


def test_the_leader_is_right_in_a_draw_of_all() -> None:
    found = audit("n2")
    found.answer("n2", 10, BAD)
    assert found.deviants() == ["n2"]


def test_only_who_was_asked_is_heard_and_only_on_what_was_asked() -> None:
    found = audit("n2", "n3")
    found.answer("n2", 9, BAD)
    found.answer("stranger", 10, BAD)
    assert not found.differs
    assert found.deviants() == []
    nobody = Audit()
    nobody.answer("n2", 0, BAD)
    assert nobody.deviants() == []
