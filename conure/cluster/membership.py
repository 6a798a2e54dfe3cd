"""Changes of membership that somebody asked for, pursued until they are committed.

The core takes one change at a time and refuses what can't be begun just now (R4). What users want
is an answer: done, or why not. A :class:`Change` is tried at every look until the core takes it,
and is finished when the committed members show it; so a change that waits for another one, for a
learner that catches up, or for a leader that has just been elected needs no retry by its user.

1. Nothing is proposed before the node that is to join has been reached at the address it is said
   to have, and has shown that it is the one: its ID, its cluster, its role, its data directory.
   A member that nobody can reach would cost the quorum a voter (thesis 4.2).
2. A change that was proposed and whose commit was not seen is *unknown*, and says so.

Everything here belongs to whoever holds the node's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from conure.cluster.pending import Reply
from conure.consensus.members import Configuration, Outlook, Server
from conure.consensus.messages import State
from conure.errors import Conflict, ConureError, NotLeader, OutcomeUnknown, Unavailable
from conure.peers.protocol import Greeting
from raft import Raft

__all__ = [
    "Change",
    "Changes",
    "arbiters_warning",
    "newcomer",
    "preview_join",
    "preview_remove",
    "resembles",
]


@dataclass(slots=True)
class Change:
    """Something the core is to do, and how to see that it has happened.

    *attempt* asks the core for it; while that raises Unavailable it is tried again. *is_done*
    looks at the committed members. *late* is the answer when *deadline* has passed and the core
    has taken it, but nothing shows it yet.
    """

    attempt: Callable[[], object]
    is_done: Callable[[Configuration], bool]
    reply: Reply
    deadline: float
    late: Callable[[Configuration], ConureError | None]
    needs_leadership: bool = True
    is_begun: bool = False
    hindrance: Unavailable | None = None


class Changes:
    """All changes that are being pursued."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._changes: list[Change] = []

    def __bool__(self) -> bool:
        return bool(self._changes)

    def add(self, change: Change) -> None:
        """Take a change up; :meth:`pursue` begins it."""
        self._changes.append(change)

    def pursue(
        self, members: Configuration, now: float
    ) -> Iterator[tuple[Reply, ConureError | None]]:
        """Go on with every change; yield the replies of those that ended, with what to tell.

        *members* are the committed ones. Call it after each commit and each tick, and drive the
        core behind it.
        """
        changes, self._changes = self._changes, []
        for change in changes:
            try:
                if not change.is_begun:
                    self._begin(change)
                if change.is_begun and change.is_done(members):
                    yield change.reply, None
                elif (
                    change.is_begun
                    and change.needs_leadership
                    and self._raft.state is not State.LEADER
                ):
                    raise OutcomeUnknown(
                        "leadership was lost before the change was committed; see /raft/config"
                    )
                elif now < change.deadline:
                    self._changes.append(change)
                elif change.hindrance is not None:
                    raise change.hindrance
                else:
                    yield change.reply, change.late(members)
            except ConureError as error:
                yield change.reply, error

    def end(self) -> list[Reply]:
        """Give all of them up; return whom to tell."""
        replies = [change.reply for change in self._changes]
        self._changes.clear()
        return replies

    def _begin(self, change: Change) -> None:
        """Ask the core for it. Raises what speaks against it for good."""
        try:
            change.attempt()
        except NotLeader:
            raise
        except Unavailable as error:
            change.hindrance = error  # for now: another look may find it gone
        else:
            change.is_begun, change.hindrance = True, None


def newcomer(
    greeting: Greeting,
    known: Server | None,
    *,
    raft_address: str,
    http_address: str,
    voter: bool,
    role: str,
) -> Server:
    """Return the server a join asks for, after comparing it with what the node says of itself.

    It is to be added as a learner even if it is a voter: that leaves it its vote, and by the time
    the core takes it, it may be none any more. Raises Conflict, with the reason and the remedy.
    """
    node_id = greeting.node_id
    if role and role != greeting.role:
        raise Conflict(
            f"{node_id} runs with the role {greeting.role}, not {role}; "
            f"start it with --role={role} and an empty data directory"
        )
    if raft_address != greeting.raft_address:
        raise Conflict(
            f"{node_id} says that peers reach it at {greeting.raft_address}, not {raft_address}; "
            f"name that address, or start it with --raft-advertise={raft_address}"
        )
    if http_address not in ("", greeting.http_address):
        raise Conflict(
            f"{node_id} says that clients reach it at {greeting.http_address}, not "
            f"{http_address}; leave HTTPAddr out, or start it with --http-advertise={http_address}"
        )
    server = Server(
        node_id,
        greeting.raft_address,
        greeting.http_address,
        "staging" if voter else "nonvoter",
        greeting.role,
        greeting.incarnation,
    )
    if known is not None:
        _refuse_demotion(known, voter=voter)
    return server


def resembles(known: Server | None, wanted: Server) -> bool:
    """Tell whether a member is what was asked for: the same node, addresses and suffrage."""
    if known is None:
        return False
    suffrage = "voter" if wanted.suffrage == "staging" else wanted.suffrage
    return known == replace(wanted, suffrage=suffrage)


def preview_join(raft: Raft, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
    """Return what a dry run of a join shows: the quorum with this member, what it would survive,
    why not, if it would be refused, and what speaks against it. Raises NotLeader.

    A node that is no member yet counts as one that answers: it will have been asked by then.
    """
    configuration = raft.configuration
    known = configuration.get(node_id)
    suffrage = "voter" if voter else "nonvoter"
    server = replace(known or Server(node_id, "", role=role or "data"), suffrage=suffrage)
    members = configuration.with_server(server)
    after = raft.outlook(members)
    if known is None and voter:
        after = after._replace(active=after.active + 1)
    reason = ""
    if after.active < after.quorum:
        reason = (
            f"only {after.active} of {after.voters} voters answer and a quorum is {after.quorum}"
        )
    if known is not None:
        try:
            _refuse_demotion(known, voter=voter)
        except Conflict as refusal:
            reason = str(refusal)
        if role not in ("", known.role):
            reason = f"{node_id} is of the role {known.role}; remove it first"
    return _shown(after, reason, members)


def preview_remove(raft: Raft, node_id: str) -> dict[str, Any]:
    """Return the same for a removal. Raises NotLeader, MemberNotFound and Unavailable."""
    reason = ""
    try:
        raft.check_removal(node_id)
    except Conflict as refusal:
        reason = str(refusal)
    rest = raft.configuration.without(node_id)
    return _shown(raft.outlook(rest), reason, rest)


def arbiters_warning(members: Configuration) -> str:
    """Say how arbiters make a cluster weaker than its data nodes would be alone, or "".

    An arbiter refuses every log without what it has acknowledged, and can't supply it. So those
    data nodes that lack it have to be a quorum without any arbiter: of d data nodes and a arbiters
    d - quorum(d + a) data nodes may be lost for certain, of the data nodes alone d - quorum(d).
    """
    data = sum(map(members.may_lead, members.voters))
    for_certain, alone = max(data - members.quorum, 0), data - (data // 2 + 1)
    if for_certain >= alone:
        return ""
    arbiters = len(members.voters) - data
    others = "an arbiter" if arbiters == 1 else f"{arbiters} arbiters"
    return (
        f"{data} data nodes and {others} can be blocked by the loss of {for_certain + 1} of the "
        f"data nodes, where {data} data nodes alone survive the loss of {alone}: nobody can be "
        "elected while an arbiter has taken an entry that all data nodes which are left lack"
    )


def _refuse_demotion(known: Server, *, voter: bool) -> None:
    if not voter and known.suffrage != "nonvoter":
        raise Conflict(f"{known.id} is a voter already; remove it before it joins as a learner")


def _shown(after: Outlook, reason: str, members: Configuration) -> dict[str, Any]:
    return {
        "allowed": not reason,
        "reason": reason,
        "warning": arbiters_warning(members),
        "voters": after.voters,
        "quorum": after.quorum,
        "active": after.active,
        "tolerates": after.tolerates,
    }
