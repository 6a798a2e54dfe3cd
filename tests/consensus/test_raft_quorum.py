"""The quorum size (R11): what a commit needs, how that is changed, and what no change may block."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conure.consensus.members import Configuration, Outlook
from conure.consensus.messages import Message, MessageType, State
from conure.errors import Conflict, NotLeader, Unavailable
from raft import Raft, RaftOptions
from tests.lab.raft_checks import ELECTION
from tests.lab.raft_cluster import Cluster, Node, configuration_of, server


def begun(
    data: str, size: int, *, arbiters: str = "", learner: str = "", leader: str = "a"
) -> tuple[Cluster, Node]:
    """A cluster that was founded with a quorum size, and its leader."""
    options = RaftOptions("", election_ticks=ELECTION)
    cluster = Cluster(*data, arbiters=arbiters, options=options, size=size)
    node = cluster.elect(leader)
    if learner:
        cluster.add(learner).start()
        node.change(lambda: node.raft.add_learner(server(learner, "nonvoter")))
        cluster.settle()
        cluster.tick_all(2)
    return cluster, node


def lose(cluster: Cluster, *names: str) -> None:
    """Let nodes die, and time pass until it is noticed."""
    for name in names:
        cluster[name].crash()
    cluster.tick_all(ELECTION + 1)


@pytest.mark.parametrize(
    ("data", "arbiters", "learner", "size", "holders", "commits"),
    [
        pytest.param("abc", "", "", 0, "ab", True, id="a majority without a size"),
        pytest.param("abc", "", "", 0, "bc", True, id="which need not have the leader"),
        pytest.param("abc", "", "", 3, "ab", False, id="a majority below the size"),
        pytest.param("abc", "", "", 3, "abc", True, id="all of them"),
        pytest.param("abcde", "", "", 4, "abc", False, id="one too few"),
        pytest.param("abcde", "", "", 4, "abcd", True, id="as many as the size"),
        pytest.param("abcde", "", "", 4, "bcde", False, id="as many, and not the leader"),
        pytest.param("abcde", "", "", 2, "ab", False, id="as many, and no majority"),
        pytest.param("ab", "x", "", 0, "ax", True, id="an arbiter in a majority"),
        pytest.param("ab", "x", "", 2, "ax", False, id="an arbiter is no copy"),
        pytest.param("ab", "x", "", 2, "ab", True, id="two copies without the arbiter"),
        pytest.param("abc", "x", "", 3, "abx", False, id="a majority with an arbiter"),
        pytest.param("abc", "", "d", 3, "abd", False, id="a learner is no copy"),
        pytest.param("abc", "", "", 5, "abc", True, id="a size beyond those that there are"),
        pytest.param("abc", "", "", 5, "ab", False, id="which still means all of them"),
    ],
)
def test_what_a_commit_needs(
    data: str, arbiters: str, learner: str, size: int, holders: str, commits: bool
) -> None:
    cluster, leader = begun(data, size, arbiters=arbiters, learner=learner)
    for name in data + arbiters + learner:
        if name not in holders and name != "a":
            cluster.isolate(name)
    leader.manual_sync = "a" not in holders
    index = leader.propose(b"x")
    cluster.settle()
    assert (leader.raft.commit_index >= index) is commits
    cluster.heal()
    leader.manual_sync = False
    leader.sync()
    cluster.tick_all(2)
    assert leader.raft.commit_index >= index


def test_elections_reads_and_staying_leader_ask_for_a_majority_only() -> None:
    cluster, leader = begun("abc", 3)
    leader.read("before")
    cluster.settle()
    lose(cluster, "c")
    cluster.tick_all(5 * ELECTION)
    assert leader.raft.state is State.LEADER
    leader.read("after")
    cluster.settle()
    assert [context for context, _ in leader.answered] == ["before", "after"]
    lost = leader.propose(b"x")
    cluster.settle()
    assert leader.raft.commit_index < lost
    assert leader.raft.lacks_copies
    other = cluster.elect("b")
    assert other.raft.state is State.LEADER
    assert not other.raft.may_read  # its first entry waits for three


def test_the_founders_size_counts_as_soon_as_there_are_so_many() -> None:
    cluster, leader = begun("a", 3)
    for name in "bcd":
        cluster.add(name).start()
        leader.change(lambda name=name: leader.raft.add_learner(server(name, "staging")))  # type: ignore[misc]
        cluster.settle()
        cluster.tick_all(3)
        members = leader.raft.configuration
        assert members.quorum_size == 3
        assert members.copies == min(3, len(members.voters))
    assert leader.raft.configuration.voters == ("a", "b", "c", "d")


def test_a_size_is_refused_that_changes_nothing_or_can_not_be_had() -> None:
    _, leader = begun("abc", 0)
    raft = leader.raft
    with pytest.raises(Conflict, match="changes nothing: any majority of these 3 voters"):
        raft.resize(2)
    with pytest.raises(Conflict, match="beyond the 3 data voters"):
        raft.resize(4)
    assert raft.check_size(3).quorum_size == 3
    with pytest.raises(NotLeader):
        Cluster("a", "b")["a"].raft.resize(2)


@pytest.mark.parametrize(
    ("data", "arbiters", "changes_nothing"),
    [("abc", "", 2), ("abcd", "", 3), ("abcde", "", 3), ("ab", "x", 1), ("abc", "x", 2),
     ("abcd", "x", 2), ("a", "x", 1), ("abc", "xyz", 1)],
)  # fmt: skip
def test_what_any_majority_has(data: str, arbiters: str, changes_nothing: int) -> None:
    """However many arbiters are in it; and never without the leader beside an arbiter."""
    members = configuration_of(*data, arbiters=arbiters)
    assert members.majority_copies == changes_nothing


def test_two_copies_beside_an_arbiter_change_something() -> None:
    cluster, leader = begun("ab", 0, arbiters="x")
    leader.change(lambda: leader.raft.resize(2))
    cluster.settle()
    assert leader.raft.configuration.copies == 2
    assert cluster["b"].raft.configuration == leader.raft.configuration


def test_raising_waits_for_nobody_but_is_refused_while_one_is_behind() -> None:
    cluster, leader = begun("abc", 0)
    lose(cluster, "c")
    leader.propose(b"x")
    cluster.tick_all(ELECTION + 2)
    with pytest.raises(Conflict, match="only 2 of the data voters have caught up"):
        leader.raft.resize(3)
    cluster["c"].start()
    cluster.tick_all(ELECTION + 2)
    index = leader.change(lambda: leader.raft.resize(3))
    cluster.settle()
    assert leader.raft.commit_index >= index


def test_a_raised_size_counts_for_itself() -> None:
    """It is in the log, so what is before it is committed by it as well."""
    cluster, leader = begun("abcde", 0)
    cluster.isolate("d", "e")
    index = leader.change(lambda: leader.raft.resize(5))
    cluster.settle()
    assert leader.raft.commit_index < index
    cluster.heal()
    cluster.tick_all(2)
    assert leader.raft.commit_index >= index


def test_lowering_commits_without_the_dead_what_waited_for_them() -> None:
    cluster, leader = begun("abcde", 5)
    lose(cluster, "d")
    index = leader.propose(b"x")
    cluster.settle()
    assert leader.raft.commit_index < index
    with pytest.raises(Conflict, match="changes nothing"):
        leader.raft.resize(3)
    leader.change(lambda: leader.raft.resize(4))
    cluster.settle()
    assert leader.raft.commit_index > index
    lose(cluster, "e")
    with pytest.raises(Conflict, match="only 3 of the data voters have caught up"):
        leader.raft.resize(5)
    waiting = leader.propose(b"y")
    cluster.settle()
    leader.change(lambda: leader.raft.resize(0))
    cluster.settle()
    assert leader.raft.commit_index > waiting
    assert leader.raft.configuration.quorum_size == 0


@pytest.mark.parametrize(
    "lower",
    [
        pytest.param(lambda raft: raft.resize(0), id="it is set"),
        pytest.param(lambda raft: raft.remove("c"), id="a data voter is removed"),
    ],
)
def test_a_lower_size_counts_from_its_own_entry_on(lower: Callable[[Raft], int]) -> None:
    """What it let through before that would be short of copies if it came to nothing."""
    cluster, leader = begun("abc", 3)
    cluster.isolate("c")
    index = leader.propose(b"x")
    cluster.settle()
    leader.change(lambda: lower(leader.raft))
    assert leader.raft.progress["b"].match == index
    assert leader.raft.commit_index < index
    cluster.settle()
    assert leader.raft.commit_index > index


def test_lowering_to_what_the_living_can_not_meet_is_refused() -> None:
    cluster, leader = begun("abcdefg", 7)
    lose(cluster, "e", "f")
    with pytest.raises(Conflict, match="only 5 of the data voters answer"):
        leader.raft.resize(6)
    leader.change(lambda: leader.raft.resize(5))
    cluster.settle()
    assert leader.raft.commit_index == leader.raft.last_index


def test_the_removal_of_a_dead_voter_commits_without_it_and_lowers_the_size() -> None:
    cluster, leader = begun("abc", 3)
    lose(cluster, "c")
    index = leader.propose(b"x")
    cluster.settle()
    assert leader.raft.commit_index < index
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    assert leader.raft.commit_index > index
    assert leader.raft.configuration.quorum_size == 2
    leader.change(lambda: leader.raft.remove("b"))
    cluster.settle()
    assert leader.raft.configuration == configuration_of("a")


@pytest.mark.parametrize("arbiters", ["", "x"])
def test_a_new_leader_can_do_without_the_dead_one_though_it_commits_nothing_yet(
    arbiters: str,
) -> None:
    """Its first entry waits for the dead, and R4 asks that a majority has it, no more: otherwise
    nobody could ever take the dead out."""
    cluster, _ = begun("ab" if arbiters else "abc", 2 if arbiters else 3, arbiters=arbiters)
    cluster["a"].crash()
    leader = cluster.elect("b")
    cluster.tick_all(ELECTION)
    assert leader.raft.commit_index < leader.raft.last_index
    leader.change(lambda: leader.raft.remove("a"))
    cluster.settle()
    leader.read("x")
    cluster.settle()
    assert [context for context, _ in leader.answered] == ["x"]
    assert leader.raft.commit_index == leader.raft.last_index


def test_a_change_that_waits_for_copies_blocks_no_other_one() -> None:
    cluster, leader = begun("abcde", 0)
    cluster.isolate("d", "e")
    index = leader.change(lambda: leader.raft.resize(5))
    cluster.settle()
    assert leader.raft.commit_index < index
    leader.change(lambda: leader.raft.resize(0))
    cluster.settle()
    assert leader.raft.commit_index == leader.raft.last_index


def test_no_change_before_a_majority_has_the_one_before_it() -> None:
    cluster, leader = begun("abc", 0)
    cluster.isolate("a")
    leader.change(lambda: leader.raft.resize(3))
    with pytest.raises(Unavailable, match="another change"):
        leader.raft.resize(0)
    with pytest.raises(Unavailable, match="another change"):
        leader.raft.remove("c")


def test_a_size_goes_with_its_entry() -> None:
    cluster, leader = begun("abc", 0)
    cluster.isolate("a")
    leader.change(lambda: leader.raft.resize(3))
    assert leader.raft.configuration.copies == 3
    cluster.settle()
    cluster.elect("b")
    cluster.heal()
    cluster.tick_all(2)
    assert leader.raft.configuration == configuration_of("a", "b", "c")


def test_who_is_removed_comes_back_only_when_that_is_committed() -> None:
    """What it had acknowledged would count for it, whatever has become of its disk."""
    cluster, leader = begun("abcde", 4)
    lose(cluster, "d", "e")
    leader.change(lambda: leader.raft.remove("e", force=True))
    cluster.settle()
    assert leader.raft.commit_index < leader.raft.last_index
    with pytest.raises(Unavailable, match="the removal of e isn't committed yet"):
        leader.raft.add_learner(server("e", "staging"))
    leader.change(lambda: leader.raft.resize(0))
    cluster.settle()
    leader.change(lambda: leader.raft.add_learner(server("e", "staging")))
    assert leader.raft.progress["e"].match == 0


def test_a_leader_that_leaves_is_not_counted_and_does_not_wait_for_itself() -> None:
    cluster, leader = begun("abc", 3)
    leader.manual_sync = True
    leader.change(lambda: leader.raft.remove("a"))
    cluster.settle()
    cluster.tick_all(2)
    left = cluster.leader
    assert left is not None
    assert left.id != "a"
    assert left.raft.configuration == configuration_of("b", "c", size=2)


def test_a_removal_that_would_stop_writes_is_refused() -> None:
    cluster, leader = begun("abcde", 4)
    lose(cluster, "d", "e")
    with pytest.raises(Conflict, match="by the quorum size of 4 4 must"):
        leader.raft.remove("e")
    leader.change(lambda: leader.raft.remove("e", force=True))
    cluster.settle()
    assert leader.raft.commit_index < leader.raft.last_index
    leader.change(lambda: leader.raft.remove("d"))
    cluster.settle()
    assert leader.raft.commit_index == leader.raft.last_index
    assert leader.raft.configuration == configuration_of("a", "b", "c", size=3)


def test_the_outlook_counts_copies() -> None:
    cluster, leader = begun("abcde", 4)
    raft = leader.raft
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=5, copies=4, active_data=5)
    assert (raft.outlook().tolerates, raft.outlook().commits) == (1, True)
    lose(cluster, "e")
    assert (raft.outlook().tolerates, raft.outlook().commits) == (0, True)
    lose(cluster, "d")
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=3, copies=4, active_data=3)
    assert (raft.outlook().tolerates, raft.outlook().commits) == (0, False)
    assert raft.lacks_copies
    assert not raft.have_answered(raft.configuration, raft.ticks - 2)
    assert raft.have_answered(raft.configuration.sized(0), raft.ticks - 2)
    assert Outlook(5, 3, 4).commits
    assert not Outlook(5, 3, 2).commits


def test_a_snapshot_brings_the_size() -> None:
    cluster, leader = begun("abc", 0)
    cluster["c"].crash()
    leader.change(lambda: leader.raft.resize(0))
    for number in range(5):
        leader.propose(b"%d" % number)
    cluster.settle()
    cluster["c"].start()
    cluster.tick_all(ELECTION + 2)
    leader.change(lambda: leader.raft.resize(3))
    cluster.settle()
    cluster.add("d").start()
    leader.cut()
    leader.change(lambda: leader.raft.add_learner(server("d", "nonvoter")))
    cluster.settle()
    cluster.tick_all(3)
    newcomer = cluster["d"]
    assert newcomer.storage.snapshot.index > 1
    assert Configuration.decode(newcomer.storage.snapshot.configuration).quorum_size == 3
    assert newcomer.raft.configuration.quorum_size == 3
    assert newcomer.raft.speaks == 3


def test_the_log_says_what_has_to_be_read_until_it_is_cut() -> None:
    cluster, leader = begun("abc", 0)
    assert leader.raft.speaks == 1
    leader.change(lambda: leader.raft.resize(3))
    cluster.settle()
    assert leader.raft.speaks == 3
    leader.change(lambda: leader.raft.resize(0))
    cluster.settle()
    assert leader.raft.speaks == 3
    leader.cut()
    assert leader.raft.speaks == 1
    assert leader.raft.configuration.encode()[0] == 1


def test_what_a_leader_of_an_earlier_term_counted_counts_for_no_later_one() -> None:
    """An acknowledgement of the term before is none of this one (R3 goes on beside R11)."""
    cluster, leader = begun("abc", 3)
    cluster.isolate("c")
    leader.propose(b"x")
    cluster.settle()
    term = leader.raft.term
    other = cluster.elect("b")
    late = Message(MessageType.APPEND_RESPONSE, "c", "b", term, index=other.raft.last_index)
    other.step(late)
    assert other.raft.commit_index < other.raft.last_index
