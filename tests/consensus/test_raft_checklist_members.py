"""Faults that others have shipped in changes of members, and a quiet start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from conure.cluster.membership import arbiters_warning
from conure.consensus.members import Configuration, Outlook, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    Entry,
    Message,
    MessageType,
    State,
)
from conure.errors import (
    Conflict,
    MemberNotFound,
    NotLeader,
    Unavailable,
)
from raft import Raft, RaftOptions, bootstrap
from tests.lab.raft_checks import (
    ELECTION,
    leader_of,
    state_of,
    take,
    visible,
)
from tests.lab.raft_cluster import Cluster, MemoryLog, Node, configuration_of, server

VOTES = {
    MessageType.PRE_VOTE,
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.VOTE,
    MessageType.VOTE_RESPONSE,
}


def suffrage_of(leader: Node, name: str) -> str:
    member = leader.raft.configuration.get(name)
    assert member is not None
    return member.suffrage


def test_no_change_before_an_entry_of_the_term_is_committed() -> None:
    node = Cluster("a", "b", "c")["a"]
    node.campaign()
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        node.step(Message(kind, "b", "a", 2))
    assert node.raft.state is State.LEADER
    with pytest.raises(Unavailable, match="just been elected"):
        node.raft.remove("c")


def test_a_configuration_goes_with_its_entry() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.isolate("a")
    leader.change(lambda: leader.raft.remove("c"))
    assert leader.raft.configuration == configuration_of("a", "b")
    cluster.settle()
    cluster.elect("b")
    cluster.heal()
    cluster.tick_all(2)
    assert leader.raft.configuration == configuration_of("a", "b", "c")


def test_an_unreachable_server_costs_a_lone_voter_nothing() -> None:
    cluster, leader = leader_of("a")
    leader.change(lambda: leader.raft.add_learner(server("z")))
    leader.propose(b"x")
    assert leader.raft.applied_index == 4
    cluster.settle()
    leader.tick(5 * ELECTION)
    with pytest.raises(Unavailable, match="caught up"):
        leader.raft.promote("z")
    assert leader.raft.state is State.LEADER
    leader.change(lambda: leader.raft.remove("z"))
    leader.propose(b"y")
    assert leader.raft.applied_index == 6


def test_a_dead_node_can_be_replaced() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    cluster.add("d").start()
    leader.change(lambda: leader.raft.add_learner(server("d")))
    cluster.tick_all(2)
    leader.change(lambda: leader.raft.promote("d"))
    cluster.settle()
    leader.change(lambda: leader.raft.remove("c"))
    cluster.tick_all(2)
    assert cluster["d"].raft.configuration.voters == ("a", "b", "d")
    assert cluster["d"].raft.commit_index == leader.raft.last_index


def test_a_change_that_would_lose_the_quorum_is_refused() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    with pytest.raises(Conflict, match=r"only 1 of the 2 voters .* 2 must: .* force"):
        leader.raft.remove("b")
    leader.change(lambda: leader.raft.remove("c"))


def test_members_are_told_from_each_other() -> None:
    _, leader = leader_of("a", "b")
    raft = leader.raft
    with pytest.raises(MemberNotFound):
        raft.remove("z")
    with pytest.raises(MemberNotFound):
        raft.promote("z")
    with pytest.raises(Conflict, match="has the address b:7001"):
        raft.add_learner(Server("z", "b:7001"))
    with pytest.raises(Conflict, match="role data"):
        raft.add_learner(server("b", role="arbiter"))
    lone = Cluster("a", arbiters="x").elect("a").raft
    with pytest.raises(Conflict, match="arbiter"):
        lone.remove("a")
    with pytest.raises(Conflict, match="last voter"):
        Cluster("a").elect("a").raft.remove("a")


def test_a_member_may_move_without_losing_its_vote() -> None:
    cluster, leader = leader_of("a", "b", "c")
    moved = Server("b", "elsewhere:7001", "http://elsewhere:8081")
    index = leader.change(lambda: leader.raft.add_learner(moved))
    cluster.settle()
    assert cluster["c"].raft.configuration.get("b") == moved
    assert cluster["c"].raft.configuration.voters == ("a", "b", "c")
    assert leader.change(lambda: leader.raft.add_learner(moved)) == index
    assert leader.raft.last_index == index


def test_members_may_change_places_in_one_entry() -> None:
    cluster, leader = leader_of("a", "b", "c", "d")
    voters = leader.raft.configuration.voters
    swapped = [Server("b", "c:7001", "http://c:8081"), Server("c", "b:7001", "http://b:8081")]
    index = leader.raft.last_index
    leader.change(lambda: leader.raft.move(swapped))
    cluster.settle()
    assert leader.raft.last_index == index + 1
    members = cluster["d"].raft.configuration
    assert [members.get("b"), members.get("c")] == swapped
    assert members.voters == voters
    known = members.get("d")
    assert known is not None
    there = Server("d", "z:7001", "http://z:8081", "nonvoter", "arbiter", "another")
    leader.change(lambda: leader.raft.move([there]))  # its addresses and nothing else of it
    assert leader.raft.configuration.get("d") == replace(
        known, raft_address="z:7001", http_address="http://z:8081"
    )
    cluster.settle()
    with pytest.raises(Conflict, match="one address"):
        leader.raft.move([Server("b", "z:7001")])
    with pytest.raises(MemberNotFound):
        leader.raft.move([Server("z", "z:7001")])


def test_a_removed_leader_steps_down_even_if_nobody_takes_over() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("a"))
    for _ in range(ELECTION):
        assert leader.raft.state is State.LEADER
        while cluster.network:
            cluster.drop(lambda message: message.type is MessageType.TIMEOUT_NOW)
            if cluster.network:
                cluster.deliver(cluster.network.pop(0))
        leader.tick()
    assert state_of(leader.raft) is State.FOLLOWER


def test_a_removed_node_keeps_quiet_once_it_knows() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    cluster["c"].tick(10 * ELECTION)
    assert not cluster.network
    cluster["c"].step(Message(MessageType.HEARTBEAT, "a", "c", 2))
    cluster.network.clear()  # its answer
    cluster["c"].step(Message(MessageType.TIMEOUT_NOW, "a", "c", 2))
    assert not cluster.network


def test_who_was_removed_and_added_again_does_not_stand_for_what_it_was_before() -> None:
    """After a restart it knows of no commit, but that the second change followed on the first.
    A leader that is no voter would be left as it is: it promotes others, when they catch up."""
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.remove("c"))
    cluster.settle()
    leader.change(lambda: leader.raft.add_learner(server("c", "staging")))
    cluster.settle()
    again = cluster["c"]
    assert again.raft.last_index == leader.raft.last_index
    again.crash()
    again.start()
    assert again.raft.commit_index == 0
    again.tick(10 * ELECTION)
    again.step(Message(MessageType.TIMEOUT_NOW, "a", "c", again.raft.term))
    assert not cluster.network
    cluster.tick_all(3)
    assert suffrage_of(leader, "c") == "voter"


def test_an_arbiter_is_sent_positions_and_never_leads() -> None:
    cluster = Cluster("a", "b", arbiters="x")
    leader = cluster.elect("a")
    cluster["b"].crash()
    leader.propose(b"secret")
    cluster.settle()
    assert leader.raft.commit_index == 3  # by the arbiter's acknowledgement
    assert [entry.data for entry in cluster["x"].storage.log if entry.kind == COMMAND] == [b""]
    assert [entry.kind for entry in cluster["x"].storage.log].count(CONFIG) == 1
    leader.crash()
    cluster["x"].tick(10 * ELECTION)
    cluster["x"].campaign()
    assert cluster["x"].raft.state is State.FOLLOWER
    # What that blocks: b lacks the entry, and the arbiter says so. It comes back with a.
    cluster["b"].start()
    cluster.tick_all(5 * ELECTION)
    assert cluster.leader is None
    leader.start()
    cluster.tick_all(5 * ELECTION)
    assert leader.raft.state is State.LEADER
    assert cluster["b"].machine.index == leader.machine.index


def test_an_arbiter_holds_nothing_that_its_leader_may_lose() -> None:
    """Or it is left alone with the longest log, and lets nobody win."""
    cluster = Cluster("a", "b", arbiters="x")
    leader = cluster.elect("a")
    cluster["b"].crash()
    leader.manual_sync = True
    leader.propose(b"one")
    cluster.settle()
    assert cluster["x"].raft.last_index == 2
    leader.sync()
    cluster.settle()
    assert cluster["x"].raft.last_index == leader.raft.commit_index == 3


def test_a_leader_that_its_log_removes_tells_an_arbiter_no_more_than_others_have() -> None:
    """It stands no more when that is committed: an arbiter that has what it alone has besides would
    let nobody win, though no disk is lost."""
    cluster = Cluster("a", "b", arbiters="x")
    stays, removed, arbiter = cluster.elect("b"), cluster["a"], cluster["x"]
    cluster.isolate("x")
    stays.change(lambda: stays.raft.remove("a"))
    cluster.settle()
    assert removed.raft.configuration == configuration_of("b", arbiters="x")
    cluster.heal()
    stays.crash()
    stays.start()
    for node in (stays, arbiter):
        node.tick(ELECTION)
    cluster.drop()
    removed.campaign()
    _deliver(cluster, lambda message: message.type in VOTES)
    assert state_of(removed.raft) is State.LEADER
    index = removed.propose(b"x")
    _deliver(
        cluster,
        lambda message: not (message.entries and message.to == "b" and _last(message) == index),
    )
    assert removed.raft.commit_index == index - 1  # the term's first entry, and the removal
    assert arbiter.raft.last_index == stays.raft.last_index == index - 1
    cluster.drop()
    cluster.isolate("a")
    removed.tick(2 * ELECTION)
    assert state_of(removed.raft) is State.FOLLOWER
    cluster.tick_all(5 * ELECTION)
    assert state_of(stays.raft) is State.LEADER
    cluster.heal()
    cluster.tick_all(5 * ELECTION)
    assert stays.raft.commit_index == stays.raft.last_index >= index


def test_arbiters_alone_commit_nothing_of_a_leader_that_its_log_removes() -> None:
    """It would be acknowledged and on no disk of a member."""
    cluster = Cluster("a", "b", arbiters="xy")
    stays = cluster.elect("b")
    cluster.isolate("x", "y")
    stays.change(lambda: stays.raft.remove("a"))
    cluster.settle()
    cluster.heal()
    stays.crash()
    removed = cluster.elect("a")
    index = removed.propose(b"x")
    cluster.settle()
    assert removed.raft.commit_index < index - 1
    stays.start()
    cluster.tick_all(3 * ELECTION)
    assert state_of(stays.raft) is State.LEADER
    assert stays.raft.commit_index >= index
    assert stays.storage.log[index - stays.storage.first_index].data == b"x"


def test_nor_does_it_tell_an_arbiter_what_only_a_voter_to_be_has() -> None:
    """Whose promotion may come to nothing. With a quorum size (R11) a removed leader may go on."""
    cluster = Cluster("a", "b", "c", arbiters="x", size=3)
    stays, removed, arbiter = cluster.elect("b"), cluster["a"], cluster["x"]
    newcomer = cluster.add("d")
    newcomer.start()
    stays.change(lambda: stays.raft.add_learner(server("d", "nonvoter")))
    cluster.settle()
    cluster.isolate("c", "x")
    stays.change(lambda: stays.raft.remove("a"))
    cluster.settle()
    cluster.heal()
    for name in "bc":
        cluster[name].crash()
    stays.start()
    cluster.elect("a")
    assert removed.raft.configuration == configuration_of(
        "b", "c", arbiters="x", size=2
    ).with_server(server("d", "nonvoter"))
    first = removed.raft.last_index
    assert arbiter.raft.last_index == first > removed.raft.commit_index
    cluster.isolate("b")
    removed.propose(b"x")
    cluster.settle()
    removed.change(lambda: removed.raft.promote("d"))
    cluster.isolate("d")
    cluster.settle()
    assert newcomer.raft.last_index == first + 1
    assert arbiter.raft.last_index == first


def _last(message: Message) -> int:
    return message.entries[-1].index


def _deliver(cluster: Cluster, wanted: Callable[[Message], bool]) -> None:
    """Deliver the messages that are wanted, and those that come of them, until there are none."""
    while found := next((item for item in cluster.network if wanted(item.message)), None):
        cluster.network.remove(found)
        cluster.deliver(found)


@pytest.mark.parametrize(
    ("data", "arbiters", "lost", "is_blocked"),
    [
        ("abc", "", "a", False),
        ("abc", "x", "a", True),  # what three data nodes survive
        ("abcd", "x", "a", False),
        ("abcd", "x", "ab", True),  # as any two of four would
        ("abcde", "", "ab", False),
        ("abcde", "x", "ab", True),
        ("abcde", "x", "a", False),
    ],
)
def test_what_an_arbiter_has_taken_can_block_who_is_left(
    data: str, arbiters: str, lost: str, is_blocked: bool
) -> None:
    """The entry isn't even committed: its leader and the arbiter have it; the leader is lost."""
    cluster = Cluster(*data, arbiters=arbiters)
    leader = cluster.elect("a")
    leader.propose(b"one")
    cluster.drop(lambda message: message.to not in arbiters)
    cluster.settle()
    assert leader.raft.commit_index < leader.raft.last_index
    for name in arbiters:
        assert cluster[name].raft.last_index == leader.raft.last_index
    for name in lost:
        cluster[name].crash()
    cluster.tick_all(10 * ELECTION)
    assert (cluster.leader is None) == is_blocked
    warning = arbiters_warning(leader.raft.configuration)
    assert bool(warning) == (arbiters != "" and len(data) in (3, 5))
    if warning:
        assert f"{len(data)} data nodes and an arbiter can be blocked" in warning


def test_a_staging_server_becomes_a_voter_by_itself() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.tick_all(3)
    assert suffrage_of(leader, "d") == "staging"  # it doesn't even run
    assert leader.raft.configuration.quorum == 2
    cluster.add("d").start()
    cluster.tick_all(2)
    assert suffrage_of(leader, "d") == "voter"
    assert cluster["d"].raft.configuration.voters == ("a", "b", "c", "d")


def test_a_learner_that_answers_but_lags_is_not_promoted() -> None:
    """It would make every commit wait for what it still has to be sent (thesis 4.2.1)."""
    options = RaftOptions("", max_inflight=1, max_append_bytes=40)
    cluster = Cluster("a", "b", options=options)
    leader = cluster.elect("a")
    leader.propose(*[b"x"] * 50)
    cluster.settle()
    leader.tick(ELECTION)
    cluster.settle()
    cluster.add("c").start()
    leader.change(lambda: leader.raft.add_learner(server("c", "staging")))
    for _ in range(5 * ELECTION):
        leader.tick()
        leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "b", "a", 2))
        leader.step(Message(MessageType.HEARTBEAT_RESPONSE, "c", "a", 2))
        cluster.drop(lambda message: message.to == "c")
        with pytest.raises(Unavailable, match="caught up"):
            leader.raft.promote("c")
    assert suffrage_of(leader, "c") == "staging"
    cluster.tick_all(2)
    assert suffrage_of(leader, "c") == "voter"


def test_a_learner_for_good_is_not_promoted() -> None:
    cluster, leader = leader_of("a", "b")
    cluster.add("c").start()
    leader.change(lambda: leader.raft.add_learner(server("c")))
    cluster.tick_all(2 * ELECTION)
    assert leader.raft.caught_up("c")
    assert suffrage_of(leader, "c") == "nonvoter"


def test_staging_servers_are_promoted_one_at_a_time() -> None:
    cluster, leader = leader_of("a", "b", "c")
    for joining in (server("d", "staging"), server("e", "staging")):
        cluster.add(joining.id).start()
        leader.change(partial(leader.raft.add_learner, joining))
        cluster.settle()
    leader.tick()
    cluster.drop(lambda message: message.type is MessageType.HEARTBEAT)
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "staging"]
    leader.tick(2)
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "staging"]
    cluster.settle()
    leader.tick()
    assert [suffrage_of(leader, name) for name in "de"] == ["voter", "voter"]


def test_nobody_is_promoted_while_leadership_is_handed_over() -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster.add("d").start()
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.settle()
    leader.raft.transfer_leadership("b")
    leader.tick()
    assert suffrage_of(leader, "d") == "staging"


def test_the_next_leader_promotes_whom_the_last_one_added() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.change(lambda: leader.raft.add_learner(server("d", "staging")))
    cluster.settle()
    cluster.add("d").start()
    leader.crash()
    new = cluster["b"]
    cluster.isolate("b")
    new.tick(2 * ELECTION)
    for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        new.step(Message(kind, "c", "b", 3))
    cluster.drop()
    new.tick()
    assert state_of(new.raft) is State.LEADER
    assert suffrage_of(new, "d") == "staging"  # nothing of this term is committed (R4)
    cluster.heal()
    cluster.tick_all(3)
    assert suffrage_of(new, "d") == "voter"


def test_adding_again_never_takes_a_vote_away() -> None:
    cluster, leader = leader_of("a", "b")

    def add(name: str, suffrage: str) -> str:
        leader.change(lambda: leader.raft.add_learner(server(name, suffrage)))
        cluster.settle()
        return suffrage_of(leader, name)

    assert [add("b", suffrage) for suffrage in ("nonvoter", "staging")] == ["voter", "voter"]
    assert [add("c", suffrage) for suffrage in ("voter", "nonvoter")] == ["nonvoter", "nonvoter"]
    assert [add("c", suffrage) for suffrage in ("staging", "nonvoter")] == ["staging", "staging"]


def test_a_member_with_another_disk_is_not_taken_for_itself() -> None:
    """It would vote and acknowledge as if it had not forgotten what it did before."""
    cluster, leader = leader_of("a", "b", "c")
    raft = leader.raft

    def add(incarnation: str) -> None:
        leader.change(lambda: raft.add_learner(server("c", incarnation=incarnation)))
        cluster.settle()

    add("first")  # the founders' directories may not have been known yet
    add("first")
    for other in ("second", ""):
        with pytest.raises(Conflict, match="another data directory; remove it first"):
            raft.add_learner(server("c", incarnation=other))
    leader.change(lambda: raft.remove("c"))
    cluster.settle()
    add("second")
    member = raft.configuration.get("c")
    assert member is not None
    assert (member.incarnation, member.suffrage) == ("second", "nonvoter")


def test_force_skips_the_refusal_for_want_of_voters_and_nothing_else() -> None:
    cluster, leader = leader_of("a", "b", "c")
    raft = leader.raft
    with pytest.raises(MemberNotFound):
        raft.remove("z", force=True)
    with pytest.raises(Conflict, match="last voter"):
        Cluster("a").elect("a").raft.remove("a", force=True)
    with pytest.raises(Conflict, match="arbiter"):
        Cluster("a", arbiters="x").elect("a").raft.remove("a", force=True)
    with pytest.raises(NotLeader):
        cluster["b"].raft.remove("c", force=True)
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    leader.change(lambda: raft.remove("b", force=True))
    assert raft.configuration.voters == ("a", "c")
    with pytest.raises(Unavailable, match="under way"):
        raft.add_learner(server("d"))
    cluster["c"].start()
    cluster.tick_all(3 * ELECTION)
    assert cluster.leader is not None
    assert cluster.leader.raft.configuration.voters == ("a", "c")


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_forced_removal_leaves_the_rest_an_election_time_out_to_answer(comes_back: bool) -> None:
    cluster, leader = leader_of("a", "b", "c")
    cluster["c"].crash()
    cluster.tick_all(ELECTION + 1)
    leader.change(lambda: leader.raft.remove("b", force=True))
    leader.tick(ELECTION - 1)
    assert leader.raft.state is State.LEADER
    if comes_back:
        cluster["c"].start()
    leader.tick()
    cluster.settle()
    leader.tick()
    assert (leader.raft.state is State.LEADER) is comes_back


def test_the_outlook_counts_who_answers() -> None:
    cluster, leader = leader_of("a", "b", "c", "d", "e")
    raft = leader.raft
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=5)
    assert raft.outlook().tolerates == 2
    cluster["e"].crash()
    cluster.tick_all(ELECTION + 1)
    assert raft.outlook() == Outlook(voters=5, quorum=3, active=4)
    assert raft.outlook().tolerates == 1
    assert raft.outlook(raft.check_removal("e")) == Outlook(voters=4, quorum=3, active=4)
    assert raft.outlook(raft.check_removal("d")) == Outlook(voters=4, quorum=3, active=3)
    assert raft.outlook(raft.check_addition(server("f"))) == raft.outlook()
    assert Outlook(voters=3, quorum=2, active=1).tolerates == 0
    with pytest.raises(NotLeader):
        cluster["b"].raft.outlook()


def test_an_answer_of_the_tick_in_which_it_was_asked_for_may_be_an_older_one() -> None:
    cluster, leader = leader_of("a", "b", "c")
    leader.tick()
    cluster.settle()
    asked = leader.raft.ticks
    assert not leader.raft.have_answered(leader.raft.configuration, asked)
    leader.tick()
    assert not leader.raft.have_answered(leader.raft.configuration, asked)
    cluster.settle()
    assert leader.raft.have_answered(leader.raft.configuration, asked)


def test_a_dry_run_changes_nothing() -> None:
    cluster, leader = leader_of("a", "b", "c")
    before = visible(leader.raft)
    assert leader.raft.check_removal("c") == configuration_of("a", "b")
    added = leader.raft.check_addition(server("d", "staging"))
    assert added == leader.raft.configuration.with_server(server("d", "staging"))
    for check in (cluster["b"].raft.check_removal, leader.raft.check_removal):
        with pytest.raises((NotLeader, MemberNotFound)):
            check("z")
    assert visible(leader.raft) == before
    assert leader.raft.ready() is None


QUIET = ELECTION + 1


def restarted(*voters: str) -> Raft:
    """Return a core that votes and campaigns no earlier than a promise of its last life ends."""
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of(*voters))
    storage.append([entry])
    storage.sync()
    options = RaftOptions("a", quiet_ticks=QUIET)
    raft = Raft(options, storage, storage.hard_state, 0, Configuration(), random.Random(1))
    take(raft)
    return raft


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("kind", [MessageType.VOTE, MessageType.PRE_VOTE])
def test_a_node_that_has_just_started_elects_nobody(kind: MessageType, term: int) -> None:
    """The leader that it answered before may still read by its lease, of this term or the last."""
    raft = restarted("a", "b", "c")
    request = Message(kind, "b", "a", term, index=1, log_term=1)
    for _ in range(QUIET):
        raft.step(request)
        ready = raft.ready()
        assert ready is None or [message.reject for message in ready.messages] == [True]
        assert (raft.term, raft.vote) == (1, "")
        raft.tick()
    request.term = 2
    raft.step(request)
    granted = [m for m in take(raft).messages if m.sender == "a" and m.to == "b" and not m.reject]
    assert granted


def test_a_quiet_node_follows_its_leaders_wish() -> None:
    raft = restarted("a", "b", "c")
    raft.step(Message(MessageType.VOTE, "b", "a", 2, index=1, log_term=1, force=True))
    assert (raft.term, raft.vote) == (2, "b")


def test_a_quiet_node_does_not_stand_itself() -> None:
    """Its own vote is one of those that elect another leader."""
    raft = restarted("a", "b", "c")
    raft.campaign()
    assert raft.state is State.FOLLOWER
    for _ in range(QUIET):
        assert raft.state is State.FOLLOWER
        raft.tick()
    raft.campaign()
    assert state_of(raft) is State.PRE_CANDIDATE


def test_a_lone_voter_starts_at_once_unless_it_was_not_alone() -> None:
    raft = restarted("a")
    raft.campaign()
    assert raft.state is State.CANDIDATE
    storage = MemoryLog()
    storage.hard_state, entry = bootstrap(configuration_of("a", "b"))
    storage.append([entry, Entry(1, 2, CONFIG, configuration_of("a").encode())])
    storage.sync()
    options = RaftOptions("a", quiet_ticks=QUIET)
    raft = Raft(options, storage, storage.hard_state, 0, Configuration(), random.Random(1))
    raft.campaign()
    assert state_of(raft) is State.FOLLOWER
