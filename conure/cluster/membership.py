"""Changes of membership that somebody asked for, pursued until they are committed.

The core takes one change at a time and refuses what can't be begun just now (R4). What users want
is an answer: done, or why not. A :class:`Change` is tried at every look until the core takes it,
and is finished when the committed members show it; so a change that waits for another one, for a
learner that catches up, or for a leader that has just been elected needs no retry by its user.

1. Nothing is proposed before the node that is to join has been reached at the address it is said
   to have, and has shown that it is the one: its ID, its cluster, its role, its data directory.
   A member that nobody can reach would cost the quorum a voter (thesis 4.2).
2. A change that was proposed and whose commit was not seen is *unknown*, and says so.

:class:`Membership` is what the routes ask; it takes the node's lock itself. All else here belongs
to whoever holds that lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from conure.cluster.border import Border
from conure.cluster.checkpointing import Upkeep
from conure.cluster.greetings import Admission, Roads
from conure.cluster.monitor import Monitor
from conure.cluster.pending import Reply
from conure.cluster.roster import Roster
from conure.cluster.standing import Standing
from conure.cluster.status import commit_rule
from conure.consensus.members import Configuration, Outlook, Server
from conure.consensus.messages import State
from conure.errors import (
    Conflict,
    ConureError,
    NotLeader,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from conure.peers.joins import Applicant
from conure.peers.protocol import Greeting
from raft import Raft

__all__ = [
    "Change",
    "Changes",
    "Membership",
    "arbiters_warning",
    "facts_of",
    "newcomer",
    "preview_join",
    "preview_remove",
    "preview_resize",
    "resembles",
]


log = logging.getLogger("conure.node")


@dataclass(slots=True)
class Change:
    """Something the core is to do, and how to see that it has happened.

    *attempt* asks the core for it and returns the index of the entry that makes it, if there is
    one; while it raises Unavailable it is tried again. *is_done* looks at the committed members, as
    of that entry at least: what is asked for may be what an earlier change, not committed yet, is
    about to end. *late* is the answer when *deadline* has passed and the core has taken it, but
    nothing shows it yet.
    """

    attempt: Callable[[], int | None]
    is_done: Callable[[Configuration], bool]
    reply: Reply
    deadline: float
    late: Callable[[Configuration], ConureError | None]
    needs_leadership: bool = True
    is_begun: bool = False
    index: int = 0
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
        core after it.
        """
        changes, self._changes = self._changes, []
        for change in changes:
            try:
                if not change.is_begun:
                    self._begin(change)
                is_applied = self._raft.applied_index >= change.index
                if change.is_begun and is_applied and change.is_done(members):
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
            index = change.attempt()
        except NotLeader:
            raise
        except Unavailable as error:
            change.hindrance = error  # for now: another look may find it gone
        else:
            change.is_begun, change.index, change.hindrance = True, index or 0, None


class Membership:
    """Joins, removals and hand-overs, for the node whose core is *raft*.

    *greeting* is what the node says of itself; *hear* notes what a node reads that was recognised,
    and raises Refused where that isn't enough; *check_peer* raises Refused where it isn't any more.
    *drive* carries out what the core asks for. *write_timeout* and *election_timeout* are in
    seconds, by *clock*.
    """

    def __init__(
        self,
        raft: Raft,
        changes: Changes,
        roads: Roads,
        admission: Admission,
        roster: Roster,
        standing: Standing,
        upkeep: Upkeep,
        border: Border,
        monitor: Monitor,
        clock: Callable[[], float],
        write_timeout: float,
        election_timeout: float,
        *,
        greeting: Callable[[], Greeting],
        hear: Callable[[Greeting], None],
        check_peer: Callable[[Greeting], None],
        drive: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._changes = changes
        self._roads = roads
        self._admission = admission
        self._roster = roster
        self._standing = standing
        self._upkeep = upkeep
        self._border = border
        self._monitor = monitor
        self._clock = clock
        self._write_timeout = write_timeout
        self._election_timeout = election_timeout
        self._greeting = greeting
        self._hear = hear
        self._check_peer = check_peer
        self._drive = drive

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
        incarnation: str = "",
    ) -> None:
        """Make a node a member, after asking it who it is; *reply* is told once it is one.

        A voter begins as a learner. If it takes long to catch up, the answer comes before that,
        and the leader makes it a voter as soon as it has. Without a leader nothing can change,
        but a member that asks from a new address is found there from now on: there may be no
        leader because nobody knew where the others had gone.

        *incarnation* is the node's own, if it is known: a node that was a member before believes
        who asks by that, though all whom it knew have left.
        """
        refusal: ConureError | None = None
        with self._monitor.lock:
            try:
                self._standing.refuse_if_not_leading()
            except ConureError as error:
                refusal = error
            is_lost = not self._raft.leader_id and self._raft.configuration.get(node_id) is not None
        if node_id != self._raft.id and (refusal is None or is_lost):
            try:
                self._border.check_newcomer(node_id, raft_address)
            except Conflict as error:
                reply(error)
                return
        if refusal is not None:
            if is_lost and node_id != self._raft.id:
                found = partial(self._on_found, node_id, reply, refusal)
                self._roads.probe(raft_address, node_id, found, self._known_as(node_id))
            else:
                reply(refusal)
            return
        asked = partial(
            self._on_probed,
            node_id,
            raft_address,
            http_address,
            voter=voter,
            role=role,
            reply=reply,
        )
        if node_id == self._raft.id:
            asked(self._greeting())
        else:
            self._roads.probe(raft_address, node_id, asked, incarnation or self._known_as(node_id))

    def remove(
        self, node_id: str, *, force: bool, reply: Reply, note: Callable[[str], None]
    ) -> None:
        """End a node's membership; *reply* is told once that is committed, and *note* before that
        if it has lowered the quorum size.

        *force* insists although too few of the others answer at this moment.
        """

        asked = self._raft.ticks
        lowered: list[str] = []

        def ended(error: ConureError | None) -> None:
            if error is None:
                for text in lowered:
                    log.warning("with the removal of %s %s", node_id, text)
                    note(text)
            reply(error)

        def attempt() -> int | None:
            configuration = self._raft.configuration
            if configuration.get(node_id) is None and self._roster.members.get(node_id) is not None:
                return None  # on its way out already
            rest = self._raft.check_removal(node_id, force=force)
            if not force and not self._raft.have_answered(rest, asked):
                raise Unavailable("too few of the members that stay have answered in time")
            index = self._raft.remove(node_id, force=force)
            lowered.extend(_lowered(configuration, rest))
            return index

        self._pursue(
            Change(
                attempt,
                lambda members: members.get(node_id) is None,
                ended,
                self._clock() + self._write_timeout,
                lambda _: OutcomeUnknown(
                    f"the removal of {node_id} was not committed in time; see GET /raft/config"
                ),
            )
        )

    def resize(self, quorum_size: int, reply: Reply) -> None:
        """Change the quorum size, 0 for none; *reply* is told once that is committed."""
        self._pursue(
            Change(
                partial(self._raft.resize, quorum_size),
                lambda members: members.quorum_size == quorum_size,
                reply,
                self._clock() + self._write_timeout,
                lambda _: OutcomeUnknown(
                    "the quorum size was not changed in time; see GET /raft/config"
                ),
            )
        )

    def hand_over(self, node_id: str, reply: Reply) -> None:
        """Hand leadership to a member, or with "" to the most up to date; told when it has it."""

        self._pursue(
            Change(
                partial(self._raft.transfer_leadership, node_id),
                lambda _: (
                    self._raft.leader_id == node_id
                    or (not node_id and self._raft.leader_id not in ("", self._raft.id))
                ),
                reply,
                self._clock() + 2 * self._election_timeout + 1.0,
                lambda _: Unavailable(f"{node_id or 'nobody'} has not taken over; try again"),
                needs_leadership=False,
            )
        )

    def resign(self, timeout: float) -> None:
        """Hand leadership over, if this node has it and somebody can take it, within some seconds.
        Waits for that: for the main thread alone."""
        with self._monitor.lock:
            if self._raft.state is not State.LEADER or len(self._raft.configuration.voters) < 2:
                return
        ended = threading.Event()
        outcome: list[ConureError | None] = []

        def reply(error: ConureError | None) -> None:
            outcome.append(error)
            ended.set()

        self.hand_over("", reply)
        if not ended.wait(timeout) or outcome[0] is not None:
            why = outcome[0] if outcome else "nobody took it in time"
            log.warning("leadership was not handed over: %s", why)

    def _pursue(self, change: Change) -> None:
        """Take a change up; its reply is told how it ends. Takes the lock."""
        with self._monitor:
            try:
                self._standing.refuse_if_not_leading()
                if change.needs_leadership and self._upkeep.is_waiting:
                    assert self._upkeep.shortage is not None
                    raise self._upkeep.shortage
            except ConureError as error:
                self._monitor.finished.append(partial(change.reply, error))
            else:
                self._changes.add(change)
                self._drive()

    def _on_probed(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        found: Greeting | ConureError,
        *,
        voter: bool,
        role: str,
        reply: Reply,
    ) -> None:
        """Go on with a join, now that it is known who is at the address."""
        if isinstance(found, ConureError):
            reply(Conflict(f"{node_id} was not added: {found}"))
            return
        try:
            with self._monitor.lock:
                self._admission.check_newcomer(node_id, found)
                self._hear(found)
            server = newcomer(
                found,
                self._raft.configuration.get(node_id),
                raft_address=raft_address,
                http_address=http_address,
                voter=voter,
                role=role,
            )
        except (Conflict, Refused) as error:
            reply(Conflict(f"{node_id} was not added: {error}"))
            return

        def attempt() -> int:
            self._check_peer(found)  # what the log holds may have risen since
            return self._raft.add_learner(server)

        self._pursue(
            Change(
                attempt,
                lambda members: resembles(members.get(node_id), server),
                reply,
                self._clock() + self._write_timeout,
                lambda members: (
                    None  # a learner, and a voter as soon as it has caught up
                    if members.get(node_id) == server
                    else OutcomeUnknown(
                        f"{node_id} was not made a member in time; see GET /raft/config"
                    )
                ),
            )
        )

    def _on_found(
        self, node_id: str, reply: Reply, refusal: ConureError, found: Greeting | ConureError
    ) -> None:
        """Take note where a member is, though nothing else can be done for it now."""
        if isinstance(found, Greeting):
            try:
                with self._monitor.lock:
                    self._admission.check_newcomer(node_id, found)
                    if self._standing.is_working and found.cluster_id:
                        self._admission.meet(found)
            except Refused as error:
                refusal = Conflict(str(error))
        reply(refusal)

    def _known_as(self, node_id: str) -> str:
        with self._monitor.lock:
            return self._admission.known_as(node_id)


def facts_of(applicant: Applicant) -> dict[str, Any]:
    """Return what a leader is told of a node that asks to be added (serving.py)."""
    return {
        "id": applicant.node_id,
        "raft": applicant.raft_address,
        "http": applicant.http_address,
        "voter": True,
        "role": applicant.role,
        "incarnation": applicant.incarnation,
    }


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
        holds_data = bool(after.copies) and server.role == "data"
        after = after._replace(active=after.active + 1)
        after = after._replace(active_data=after.active_data + holds_data)
    reason = ""
    if after.active < after.quorum:
        reason = (
            f"only {after.active} of {after.voters} voters answer and a quorum is {after.quorum}"
        )
    elif not after.commits:
        reason = f"only {after.active_data} data voters answer and a write needs {after.copies}"
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


def preview_resize(raft: Raft, quorum_size: int) -> dict[str, Any]:
    """Return the same for another quorum size, 0 for none; the warning is of what is given up for
    it. Raises NotLeader and Unavailable."""
    reason = ""
    try:
        raft.check_size(quorum_size)
    except Conflict as refusal:
        reason = str(refusal)
    before, members = raft.outlook(), raft.configuration.sized(quorum_size)
    shown = _shown(raft.outlook(members), reason, members)
    lost = before.tolerates - shown["tolerates"]
    if not reason and lost > 0:
        shown["warning"] = (
            f"of the voters that answer {shown['tolerates']} may fail until nothing is written any "
            f"more, now {before.tolerates}"
        )
    return shown


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


def _lowered(before: Configuration, after: Configuration) -> list[str]:
    """Say that a removal lowers the quorum size, if it does."""
    if after.quorum_size == before.quorum_size:
        return []
    was, left, size = before.quorum_size, len(after.data_voters), after.quorum_size or "none"
    return [f"the quorum size was lowered from {was} to {size}: the data voters are {left} now"]


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
        **commit_rule(members),
    }
