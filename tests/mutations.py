"""Deliberate faults, each of which the tests must notice: a test of the tests.

Each :class:`Mutation` is one replacement in one file: a fault that some Raft implementation has
had, or that a hasty change would make. It is put into a copy of the tree, and the tests chosen
for it run there until the first one fails::

    python -m tests.mutations              all of them, two at a time; some minutes
    python -m tests.mutations quorum read  those whose names contain one of these words

One line each says which test caught it. Exit status 1 if one survived, broke the tests instead
of failing them, or no longer applies: its old text must be found exactly once, so that a fault
follows the code it is about. The tests are run on an unchanged copy first: what fails there
says nothing about a fault. Any interpreter with the development tools will do.

Here are the faults of the core, its driver and whole clusters; mutations_around.py has those of
everything else. Every module has one (tests/test_mutations.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation import (
    ACCESS_TESTS,
    ADMISSION_TESTS,
    CLUSTER_TESTS,
    FULL_DISK_TESTS,
    JSON_TESTS,
    LEASE_TESTS,
    LOG_TESTS,
    NODE_TESTS,
    ROUTE_TESTS,
    SIMULATION,
    TRANSPORT_TESTS,
    Mutation,
)
from tests.mutations_around import AROUND

__all__ = ["MUTATIONS", "Mutation"]

ROOT = Path(__file__).parent.parent
WORKERS = 2
UNCOPIED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "data")
TIMEOUT = 300
"""Seconds for all the tests of one mutation; pyproject.toml bounds each test."""

MUTATIONS = [
    *AROUND,
    # Votes and persistence (R1, R2)
    Mutation(
        "a vote within a known term is answered but not saved",
        "raft.py",
        "unsaved = (self.term, self.vote) != self._saved",
        "unsaved = self.term != self._saved.term",
    ),
    Mutation(
        "two votes in one term",
        "raft.py",
        'free = self.vote == message.sender or (self.vote == "" and self.leader_id == "")',
        'free = self.leader_id == ""',
    ),
    Mutation(
        "a candidate counts its own vote before it is durable",
        "raft.py",
        "self._votes = {}  # its own",
        "self._votes = {self.id: True}  # its own",
    ),
    Mutation(
        "a node that lost its disk votes",
        "raft.py",
        "if not (free and complete and self.configuration.servers):",
        "if not (free and complete):",
    ),
    Mutation(
        "a follower acknowledges more than it has synced",
        "raft.py",
        "self._acknowledged = min(self._verified, self._log.persisted)",
        "self._acknowledged = self._verified",
    ),
    Mutation(
        "a leader counts what it has not synced",
        "raft.py",
        "self._log.persisted if voter == self.id else",
        "self._log.last_index if voter == self.id else",
    ),
    Mutation(
        "a late sync of entries that were replaced counts",
        "raft.py",
        "if ready.entries and ready.epoch == log.epoch:",
        "if ready.entries:",
    ),
    Mutation(
        "a replaced disk is taken for the old one",
        "raft.py",
        'known.incarnation not in ("", server.incarnation)',
        'known.incarnation == "none"',
    ),
    Mutation(
        "any late sync counts a candidate's own vote",
        "raft.py",
        "elif self.state is State.CANDIDATE and ready.hard_state == (self.term, self.id):",
        "elif self.state is State.CANDIDATE:",
    ),
    # Elections (R5)
    Mutation(
        "half of an even number is a quorum",
        "conure/consensus/members.py",
        'put(self, "quorum", len(self.voters) // 2 + 1)',
        'put(self, "quorum", (len(self.voters) + 1) // 2)',
    ),
    Mutation(
        "a pre-vote ignores the log",
        "raft.py",
        "complete = (message.log_term, message.index) >= (log.last_term, log.last_index)",
        "complete = (message.log_term, message.index) >= (log.last_term, log.last_index)\n"
        "        complete = complete or message.type is MessageType.PRE_VOTE",
    ),
    Mutation(
        "a longer log wins over a later one",
        "raft.py",
        "complete = (message.log_term, message.index) >= (log.last_term, log.last_index)",
        "complete = (message.index, message.log_term) >= (log.last_index, log.last_term)",
    ),
    Mutation(
        "who hears a leader helps to depose it",
        "raft.py",
        "if kind in _REQUESTS and not message.force and self._is_loyal():",
        "if kind in _REQUESTS and not message.force and self._is_quiet():",
    ),
    Mutation(
        "a node that has just started votes",
        "raft.py",
        "return self._now < self.options.quiet_ticks",
        "return False",
    ),
    Mutation(
        "a leader without a quorum never steps down",
        "raft.py",
        "self._count_active(self.configuration) < self.configuration.quorum:",
        "self._count_active(self.configuration) < 1:",
    ),
    Mutation(
        "an arbiter may lead",
        "conure/consensus/members.py",
        'server.suffrage == "voter" and server.role == "data"',
        'server.suffrage == "voter"',
    ),
    Mutation(
        "proposals are accepted while leadership is handed over",
        "raft.py",
        'if leading.transferee:\n            raise Unavailable("leadership',
        'if leading.transferee == "-":\n            raise Unavailable("leadership',
    ),
    # Replication and commit (R3)
    Mutation(
        "one answer too few commits",
        "raft.py",
        "index = matches[-configuration.quorum]",
        "index = matches[1 - configuration.quorum]",
    ),
    Mutation(
        "an entry of an earlier term is committed by counting",
        "raft.py",
        "if index > self.commit_index and index >= leading.term_start:",
        "if index > self.commit_index:",
    ),
    Mutation(
        "a follower commits what was not compared",
        "raft.py",
        "self._commit(min(message.commit, last))",
        "self._commit(min(message.commit, log.last_index))",
    ),
    Mutation(
        "a heartbeat commits what a follower may not match",
        "raft.py",
        "commit=min(progress.match, self.commit_index)",
        "commit=self.commit_index",
    ),
    Mutation(
        "an append that is late truncates what followed",
        "raft.py",
        "            return  # all there",
        "            if entries:\n"
        "                log.truncate(entries[-1].index + 1)\n"
        "            return  # all there",
    ),
    Mutation(
        "the consistency check is left out",
        "raft.py",
        "elif log.term(message.index) != message.log_term:",
        "elif log.term(message.index) is None:",
    ),
    Mutation(
        "a late answer takes a match back",
        "raft.py",
        "        if message.index < progress.match:\n            return  # reordered\n",
        "",
    ),
    Mutation(
        "a late rejection walks back behind a match",
        "raft.py",
        "and progress.match < message.index == progress.next - 1",
        "and message.index == progress.next - 1",
    ),
    Mutation(
        "an arbiter is sent what its leader may lose",
        "raft.py",
        'return log.persisted if progress.server.role == "arbiter" else log.last_index',
        "return log.last_index",
    ),
    Mutation(
        "an idle follower never hears of the last commit",
        "raft.py",
        "self._commit(min(message.commit, self._log.last_index))",
        "pass",
    ),
    Mutation(
        "the last slice of the log outlives a truncation",
        "conure/consensus/logview.py",
        "        self._last_slice = (0, 0, [])\n        del self.recent[max(",
        "        del self.recent[max(",
    ),
    # Snapshots
    Mutation(
        "a snapshot keeps a log that contradicts it",
        "raft.py",
        "if meta.index > self.commit_index and log.term(meta.index) == meta.term:",
        "if meta.index > self.commit_index and log.term(meta.index) is not None:",
    ),
    Mutation(
        "a stale snapshot is installed",
        "raft.py",
        "        elif meta.index > self.commit_index:\n            configuration =",
        "        else:\n            configuration =",
    ),
    # Reads (R6)
    Mutation(
        "a read is answered before the term's first commit",
        "raft.py",
        "if leading.is_in_round or self.commit_index < leading.term_start:",
        "if leading.is_in_round:",
    ),
    Mutation(
        "a lone voter answers a read before its first commit",
        "raft.py",
        "if self._is_alone() and self.commit_index >= leading.term_start:",
        "if self._is_alone():",
    ),
    Mutation(
        "a read joins a round that began before it came",
        "raft.py",
        "leading.waiting_reads.append(context)",
        "(leading.round_reads or leading.waiting_reads).append(context)",
    ),
    Mutation(
        "a read is confirmed by fewer than a quorum",
        "raft.py",
        "if leading.is_in_round and confirmed >= configuration.quorum:",
        "if leading.is_in_round and confirmed >= configuration.quorum - 1:",
    ),
    Mutation(
        "a read that was held back is confirmed by the round before it",
        "conure/cluster/pacing.py",
        "read.index = self._raft.read_index(read)\n            except NotLeader as error:",
        "read.index = self._raft.commit_index\n            except NotLeader as error:",
        (*NODE_TESTS, *SIMULATION),
    ),
    # Members (R4)
    Mutation(
        "a change of members counts for its leader only when the next one comes",
        "raft.py",
        "        self._log.append([entry])\n        self._adopt(found)",
        "        self._log.append([entry])\n        self._configurations += found",
    ),
    Mutation(
        "a configuration stays when its entry is truncated",
        "raft.py",
        "                self._forget_configurations(first)\n",
        "",
    ),
    Mutation(
        "two changes of members at once",
        "raft.py",
        'if self._is_changing():\n            raise Unavailable("another',
        'if self.term < 0:\n            raise Unavailable("another',
    ),
    Mutation(
        "a change of members before the term's first commit",
        "raft.py",
        'if self.commit_index < leading.term_start:\n            raise Unavailable("this',
        'if self.term < 0:\n            raise Unavailable("this',
    ),
    Mutation(
        "a learner votes before it has caught up",
        "raft.py",
        "and progress.match >= leading.trail[0]",
        "and progress.match >= 0",
    ),
    Mutation(
        "who was removed and added again stands for what it was before",
        "raft.py",
        "self._configurations[-2:]\n",
        "self._configurations\n",
    ),
    Mutation(
        "a removal leaves nobody who could commit",
        "raft.py",
        "if active < quorum and not force:",
        "if active < 1 and not force:",
    ),
    # Leases (R9)
    Mutation(
        "a lease outlives a hand-over",
        "raft.py",
        "        leading.has_handed_over = True\n",
        "",
    ),
    Mutation(
        "a hand-over voids no lease that is held",
        "raft.py",
        "leading is None or leading.has_handed_over else leading.lease_since",
        "leading is None else leading.lease_since",
        LEASE_TESTS,
    ),
    Mutation(
        "a lease outlives its term",
        "raft.py",
        "leading, self._leading = self._leading, None",
        "leading = self._leading",
        LEASE_TESTS,
    ),
    Mutation(
        "who follows a leader is loyal for half a time-out",
        "raft.py",
        'or (self.leader_id != "" and self._elapsed < self.options.election_ticks)',
        'or (self.leader_id != "" and self._elapsed < self.options.election_ticks // 2)',
        LEASE_TESTS,
    ),
    Mutation(
        "who follows a leader is loyal for a tick too few",
        "raft.py",
        'or (self.leader_id != "" and self._elapsed < self.options.election_ticks)',
        'or (self.leader_id != "" and self._elapsed < self.options.election_ticks - 1)',
        LEASE_TESTS,
    ),
    Mutation(
        "who was restarted is loyal for a tick too few",
        "raft.py",
        "return self._now < self.options.quiet_ticks",
        "return self._now < self.options.quiet_ticks - 1",
        LEASE_TESTS,
    ),
    Mutation(
        "a follower campaigns a tick too early",
        "raft.py",
        "self._timeout = ticks + self._rng.randrange(ticks)",
        "self._timeout = ticks - 1 + self._rng.randrange(ticks)",
        LEASE_TESTS,
    ),
    Mutation(
        "a leader that is removed confirms with its own voice",
        "raft.py",
        "            for voter in configuration.voters\n        )\n        if leading.is_in_round",
        "            for voter in {*configuration.voters, self.id}\n"
        "        )\n"
        "        if leading.is_in_round",
        LEASE_TESTS,
    ),
    Mutation(
        "a learner confirms",
        "raft.py",
        "            for voter in configuration.voters\n        )\n        if leading.is_in_round",
        "            for voter in [server.id for server in configuration.servers]\n"
        "        )\n"
        "        if leading.is_in_round",
        LEASE_TESTS,
    ),
    Mutation(
        "a lease counts from the next round",
        "raft.py",
        "leading.round_renewal, leading.next_renewal = leading.next_renewal, None",
        "leading.round_renewal = leading.next_renewal",
        LEASE_TESTS,
    ),
    Mutation(
        "an entry of a leader does not bind a follower like a heartbeat",
        "raft.py",
        "        if kind in _FROM_LEADER:\n            self._follow(message.sender, ",
        "        if kind is MessageType.HEARTBEAT or not self.leader_id:\n"
        "            self._follow(message.sender, ",
        LEASE_TESTS,
    ),
    Mutation(
        "a lease lasts for a tick too many",
        "conure/cluster/leases.py",
        "return LEASE_SHARE * (ticks - 1) * self._tick",
        "return LEASE_SHARE * ticks * self._tick",
        NODE_TESTS,
    ),
    Mutation(
        "a lease lasts to the end of the time-out",
        "conure/cluster/leases.py",
        "return LEASE_SHARE * (ticks - 1) * self._tick",
        "return (ticks - 1) * self._tick",
        NODE_TESTS,
    ),
    Mutation(
        "a lease holds at the moment at which it ends",
        "conure/cluster/leases.py",
        "self._clock() < since + self.seconds",
        "self._clock() <= since + self.seconds",
        NODE_TESTS,
    ),
    Mutation(
        "a lease is longer than a voter with a shorter time-out promises",
        "conure/cluster/leases.py",
        "min([self._own, *told])",
        "self._own",
        NODE_TESTS,
    ),
    Mutation(
        "who is about to be removed counts for no lease",
        "conure/cluster/leases.py",
        "followers = [progress.server for progress in self._raft.progress.values()]",
        "followers = self._raft.configuration.servers",
        NODE_TESTS,
    ),
    Mutation(
        "another directory's time-out counts for a member",
        "conure/cluster/leases.py",
        "        if server.incarnation:\n",
        "        if not server.id:\n",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a member that comes back with another directory isn't told about",
        "conure/cluster/leases.py",
        "and life not in self._logged:",
        "and node_id not in dict(self._logged):",
        CLUSTER_TESTS,
    ),
    Mutation(
        "anybody hands leadership over",
        "raft.py",
        "        if kind is MessageType.TIMEOUT_NOW and not self.follows(message):\n",
        "        if kind is MessageType.TIMEOUT_NOW and message.sender != self.leader_id:\n",
    ),
    Mutation(
        "a hand-over of a later term deposes the leader",
        "raft.py",
        "leads = message.sender == self.leader_id and message.term == self.term",
        "leads = message.term >= self.term",
    ),
    Mutation(
        "a former life of a member answers an audit",
        "conure/cluster/digests.py",
        "if is_of_this_term and raft.has_admitted(message):",
        "if is_of_this_term:",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a former life of the leader audits",
        "conure/cluster/digests.py",
        "if not raft.follows(message) or digest is None:",
        "if message.sender != raft.leader_id or digest is None:",
        CLUSTER_TESTS,
    ),
    Mutation(
        "who only looks is taken at its word",
        "conure/cluster/node.py",
        '            if kind != "probe":\n                self._lease.hear(peer)',
        "            self._lease.hear(peer)",
        NODE_TESTS,
    ),
    # The driver
    Mutation(
        "term and vote are never written",
        "conure/cluster/room.py",
        "            self._log.set_hard_state(ready.hard_state)\n",
        "            pass\n",
        NODE_TESTS,
    ),
    Mutation(
        "messages leave before term and vote are durable",
        "conure/cluster/node.py",
        "        if ready.hard_state is not None and not self._room.save(ready):\n",
        "        for message in ready.messages:\n"
        "            if message.type is not MessageType.SNAPSHOT:\n"
        "                self._peers.send(message)\n"
        "        ready.messages = [m for m in ready.messages if m.type is MessageType.SNAPSHOT]\n"
        "        if ready.hard_state is not None and not self._room.save(ready):\n",
        ("tests/cluster/test_node.py",),
    ),
    Mutation(
        "a transfer that was given up is installed",
        "conure/cluster/transfers.py",
        "            if may_install and incoming is self.incoming:",
        "            if may_install:",
        NODE_TESTS,
    ),
    Mutation(
        "the end of a transfer that was given up ends the one after it",
        "conure/cluster/transfers.py",
        "            if incoming is self.incoming:\n                self.incoming = None",
        "            self.incoming = None",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a leader that was displaces the state that the present one sends",
        "conure/cluster/transfers.py",
        "                or header.message.term < self._raft.term\n",
        "",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a state that is not needed is received",
        "conure/cluster/transfers.py",
        "            if meta.index <= self._raft.commit_index:\n                return None\n",
        "",
        CLUSTER_TESTS,
    ),
    Mutation(
        "an installed state does not tell who the members are",
        "conure/cluster/transfers.py",
        "        self._history.reset(meta.index)\n        self._roster.adopt()\n",
        "        self._history.reset(meta.index)\n",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a write waits for what is hidden in a snapshot",
        "conure/cluster/transfers.py",
        "        self._monitor.finished += self._writes.skipped(meta.index)\n",
        "",
        CLUSTER_TESTS,
    ),
    Mutation(
        "the log is cut behind a state that is on its way",
        "conure/cluster/transfers.py",
        "self._raft.slowest_match(), *self.outgoing.values(), self._log.last_index",
        "self._raft.slowest_match(), self._log.last_index",
        CLUSTER_TESTS,
    ),
    Mutation(
        "who is about to stop stands for election",
        "conure/cluster/node.py",
        "not self._standing.is_stopping or self._raft.state is State.LEADER",
        "not False",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a join that waited is begun though the log holds more by then",
        "conure/cluster/membership.py",
        "            self._check_peer(found)  # what the log holds may have risen since\n",
        "",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a removed node knows nobody for its clients",
        "conure/cluster/standing.py",
        " or self._roster.left_to\n",
        "\n",
        CLUSTER_TESTS,
    ),
    Mutation(
        "what a leader was told in another term decides who differs",
        "conure/cluster/node.py",
        "                self._audits.forget()\n",
        "",
        CLUSTER_TESTS,
    ),
    Mutation(
        "anybody decides that a replica differs",
        "conure/cluster/digests.py",
        "if not raft.follows(message) or digest is None:",
        "if digest is None:",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a replica differs by the word of an earlier term",
        "raft.py",
        "leads = message.sender == self.leader_id and message.term == self.term",
        "leads = message.sender == self.leader_id",
        CLUSTER_TESTS,
    ),
    Mutation(
        "half of the replicas are right before all have answered",
        "conure/cluster/digests.py",
        "if 2 * counted[right] <= replicas and",
        "if 2 * counted[right] < replicas and",
        ("tests/cluster/test_divergence.py",),
    ),
    Mutation(
        "who was removed and added again stays out",
        "conure/cluster/roster.py",
        "self.was_removed, self.left_to = False, None",
        "self.left_to = None",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a removal relies on who may have died",
        "conure/cluster/membership.py",
        "if not force and not self._raft.have_answered(rest, asked):",
        "if not force and not self._raft.have_answered(rest, asked - 100):",
        CLUSTER_TESTS,
    ),
    Mutation(
        "an answer counts that may be older than the question",
        "raft.py",
        "others[voter].heard > since)",
        "others[voter].heard >= since)",
        ("tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py",),
    ),
    Mutation(
        "a stale read is as fresh as any message",
        "conure/cluster/node.py",
        "if raft.leader_id == message.sender:\n            self._heard",
        "if raft.leader_id:\n            self._heard",
        CLUSTER_TESTS,
    ),
    Mutation(
        "a leader that lost its office counts from when it began",
        "conure/cluster/node.py",
        "self._heard = self._clock()  # up to now it was this node that led",
        "pass",
        CLUSTER_TESTS,
    ),
    Mutation(
        "what expires next is remembered of the state before a snapshot",
        "conure/state/machine.py",
        "        self._due = None\n        record = engine.get(_VERSION)",
        '        self._due = getattr(self, "_due", None)\n        record = engine.get(_VERSION)',
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "the log is never synced",
        "conure/cluster/room.py",
        "                raft_log.sync()\n",
        "",
        NODE_TESTS,
    ),
    # Full disks
    Mutation(
        "clients' writes use what was begun in the reserve",
        "conure/consensus/raftlog.py",
        "            if last.end + nbytes <= last.size and not last.is_reserve:\n",
        "            if last.end + nbytes <= last.size:\n",
        LOG_TESTS,
    ),
    Mutation(
        "what was begun in the reserve is forgotten by a restart",
        "conure/consensus/logfiles.py",
        "*facts, self.is_reserve)",
        "*facts, 0)",
        LOG_TESTS,
    ),
    Mutation(
        "the log goes on in the reserve although there is room",
        "conure/consensus/raftlog.py",
        "            or self._segments[-1].is_reserve\n",
        "",
        LOG_TESTS,
    ),
    Mutation(
        "commands use up the whole reserve",
        "conure/consensus/raftlog.py",
        "spared = RESERVE_FILES // 2 if commands else 0",
        "spared = 0",
        LOG_TESTS,
    ),
    Mutation(
        "entries that conflict are added behind those they replace",
        "conure/consensus/raftlog.py",
        "if last and last.is_reserve and last.has_room(size) and first > self.last_index:",
        "if last and last.is_reserve and last.has_room(size):",
        LOG_TESTS,
    ),
    Mutation(
        "a snapshot of the log finds no room in the reserve",
        "conure/consensus/raftlog.py",
        "path = None if had_room else self._spares.take_reserve(len(data))",
        "path = None",
        LOG_TESTS,
    ),
    Mutation(
        "a file loses its room before it is written",
        "conure/consensus/logfiles.py",
        "        file.pwrite(data, 0)  # first, so that room that the file has isn't lost\n",
        "        file.truncate(0)\n        file.pwrite(data, 0)\n",
        LOG_TESTS,
    ),
    Mutation(
        "a file of the reserve is written while it may still be one",
        "conure/consensus/raftlog.py",
        "self._fs.sync_directory(self._directory)  # before its zeros go, its old name has to",
        "pass",
        LOG_TESTS,
    ),
    Mutation(
        "a spare is made of a segment whose name may still be there",
        "conure/consensus/spares.py",
        "self._fs.sync_directory(self._directory)  # before its bytes go, its old name has to",
        "pass",
        LOG_TESTS,
    ),
    Mutation(
        "a record that was on the disk once is cut off as torn",
        "conure/consensus/logscan.py",
        "        if record.first_index - record.unsynced > index:\n",
        "        if record.first_index - record.unsynced > index + 1:\n",
        LOG_TESTS,
    ),
    Mutation(
        "what waits for room ends the node",
        "conure/cluster/room.py",
        "            return False\n        return True\n\n    def _put_off",
        "            raise\n        return True\n\n    def _put_off",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a node waits on for what a snapshot has made void",
        "conure/cluster/room.py",
        "if not self._upkeep.is_waiting or self._clock() < self._write_again_at:",
        "if not self.unwritten or self._clock() < self._write_again_at:",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what waits for room is overtaken",
        "conure/cluster/room.py",
        "if self.unwritten or not self._write(ready):",
        "if not self._write(ready):",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what waits for room is reported as written",
        "conure/cluster/room.py",
        "        else:\n            self._raft.persisted(ready)\n",
        "        self._raft.persisted(ready)\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a vote waits for the entries that wait for room",
        "conure/cluster/room.py",
        "        if ready.hard_state is not None:  # it is durable already: see save\n",
        "        if False:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a follower takes more while it waits for room",
        "conure/cluster/intake.py",
        "if self._room.unwritten or len(self._applying.backlog)",
        "if len(self._applying.backlog)",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "writes wait behind what waits for room",
        "conure/cluster/proposing.py",
        "(pacing.is_busy() and not self._room.unwritten)",
        "pacing.is_busy()",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what a vote says leaves before there was room for it",
        "conure/cluster/node.py",
        " and not self._room.save(ready):\n            return\n",
        ":\n            self._room.save(ready)\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a node goes on before term and vote found room",
        "conure/cluster/node.py",
        "not self._standing.is_working or self._room.stalled is not None\n",
        "not self._standing.is_working\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "entries that the log has already need room",
        "conure/cluster/intake.py",
        "                missing = self._log.missing(message.entries)\n",
        "                missing = message.entries\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "behind a gap no leader is told where the logs agree",
        "conure/cluster/intake.py",
        "            if message.entries and message.index <= last:\n",
        "            if message.entries:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "who joins on a full disk ends",
        "conure/cluster/intake.py",
        "            return self._admission.hears(messages)\n        except DiskFull as error:\n",
        "            return self._admission.hears(messages)\n        except KeyError as error:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a replica that differs starts again where its disk was full",
        "conure/cluster/digests.py",
        "                self._log.give_up_reserve()  # this log is written to no more\n",
        "",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a full disk ends expiry",
        "conure/cluster/expiring.py",
        "        elif self._upkeep.obstacle is None and self._log.may_use_reserve(",
        "        elif False and self._log.may_use_reserve(",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "an arbiter on a full disk cuts its log no sooner",
        "conure/cluster/checkpointing.py",
        "            self.shortage is None or elapsed < DISK_FULL_RETRY\n",
        "            True\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "who has no room stands like anybody else",
        "raft.py",
        "return 0 if self._has_room else 2 * self.options.election_ticks",
        "return 0",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "who has no room never stands",
        "raft.py",
        "return 0 if self._has_room else 2 * self.options.election_ticks",
        "return 0 if self._has_room else 1 << 30",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "a leader without room keeps its office",
        "raft.py",
        "            self._defer(leading)\n",
        "            pass\n",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "leaders without room hand over to each other without end",
        "raft.py",
        "if successor and leading.progress[successor].match > self._log.persisted:",
        "if successor:",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "a read does not wait for a command that is committed and not written here",
        "raft.py",
        "index >= log.offset and log.kind(index) != COMMAND:",
        "index >= log.offset:",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "no-ops of any number of terms wait for room",
        "raft.py",
        "if not self._has_room and log.last_index - log.persisted >= _MAX_WAITING:",
        "if False:",
        (*FULL_DISK_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "a write is acknowledged although another one took its place",
        "conure/cluster/pending.py",
        "ended = outcomes if is_its_own else lost",
        "ended = outcomes",
        NODE_TESTS,
    ),
    Mutation(
        "a member that lost its disk is spoken to",
        "conure/cluster/greetings.py",
        "return known is not None and _is_same(known, peer)",
        "return known is not None",
        NODE_TESTS,
    ),
    # Who belongs here
    Mutation(
        "an answer of a former disk counts",
        "raft.py",
        "if kind in _ANSWERS and not self.has_admitted(message):",
        "if False:",
        ADMISSION_TESTS,
    ),
    Mutation(
        "an answer of a former disk counts, as simulation shows",
        "raft.py",
        "if kind in _ANSWERS and not self.has_admitted(message):",
        "if False:",
        SIMULATION,
    ),
    Mutation(
        "an emptied leader is taken for the one that is followed",
        "conure/cluster/greetings.py",
        "raft.leader_id == peer.node_id and raft.leader_incarnation == peer.incarnation",
        "raft.leader_id == peer.node_id",
        ADMISSION_TESTS,
    ),
    Mutation(
        "an emptied leader is taken for the one that is followed, as simulation shows",
        "conure/cluster/greetings.py",
        "raft.leader_id == peer.node_id and raft.leader_incarnation == peer.incarnation",
        "raft.leader_id == peer.node_id",
        SIMULATION,
    ),
    Mutation(
        "a node that may be behind believes anybody",
        "conure/cluster/greetings.py",
        "raft.state is not State.LEADER and known_as == mine.incarnation",
        "raft.state is not State.LEADER",
        ADMISSION_TESTS,
    ),
    Mutation(
        "a node that may be behind believes nobody it doesn't know",
        "conure/cluster/greetings.py",
        "raft.state is not State.LEADER and known_as == mine.incarnation",
        "False",
        ADMISSION_TESTS,
    ),
    Mutation(
        "who is behind can't answer whom it has believed",
        "conure/cluster/greetings.py",
        "return leads or (met is not None and met.incarnation == peer.incarnation)",
        "return leads",
        ADMISSION_TESTS,
    ),
    Mutation(
        "a cluster is joined by anybody's message",
        "conure/cluster/greetings.py",
        "if not mine.cluster_id and any(message.type in _FROM_LEADER for message in messages):",
        "if not mine.cluster_id:",
        ADMISSION_TESTS,
    ),
    Mutation(
        "connections are not looked at again when roles change",
        "conure/cluster/node.py",
        "                self._admission.judge()\n",
        "",
        ADMISSION_TESTS,
    ),
    Mutation(
        "connections are not looked at again when members change, as simulation shows",
        "conure/cluster/greetings.py",
        "        self._book.adopt(configuration, now)\n"
        "        self._tell_peers()\n"
        "        self.judge()\n",
        "        self._book.adopt(configuration, now)\n        self._tell_peers()\n",
        SIMULATION,
    ),
    Mutation(
        "a leader gives a member the address of another disk",
        "conure/cluster/greetings.py",
        "if known is None or not _is_same(known, greeting):",
        "if known is None:",
        ADMISSION_TESTS,
    ),
    Mutation(
        "a leader lets a member have another one's address",
        "conure/cluster/greetings.py",
        "        _leave_where_it_was_known(moved, configuration)\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "members that changed places are moved one by one",
        "conure/cluster/greetings.py",
        "            self._raft.move(list(moved.values()))",
        "            self._raft.move(list(moved.values())[:1])",
        NODE_TESTS,
    ),
    Mutation(
        "two members have one address",
        "raft.py",
        "if any(places.count(server.raft_address) > 1 for server in moved):",
        "if not places:",
        ("tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py",),
    ),
    Mutation(
        "who moves may get a vote by it",
        "raft.py",
        "            members = members.with_server(here)\n",
        "            members = members.with_server(server)\n",
        ("tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py",),
    ),
    Mutation(
        "nobody moves while two others are at one address",
        "raft.py",
        "if any(places.count(server.raft_address) > 1 for server in moved):",
        "if len(set(places)) < len(places):",
        NODE_TESTS,
    ),
    Mutation(
        "a leader ends over addresses that it can't make known",
        "conure/cluster/greetings.py",
        "        except (Conflict, Unavailable) as error:",
        "        except Unavailable as error:",
        NODE_TESTS,
    ),
    Mutation(
        "a refusal names the cluster",
        "conure/cluster/greetings.py",
        'self._of_another_cluster(peer), "it belongs to another cluster"',
        "self._of_another_cluster(peer)",
        ADMISSION_TESTS,
    ),
    Mutation(
        "who is refused reads the log",
        "conure/peers/protocol.py",
        "error.told if isinstance(error, Refused) else str(error)",
        "str(error)",
        ("tests/peers/test_transport_messages.py", "tests/peers/test_transport_handshakes.py", "tests/peers/test_transport_snapshots.py",),
    ),
    Mutation(
        "a message says itself whose it is",
        "conure/peers/inbox.py",
        "message.incarnation = self._peer.incarnation",
        "message.incarnation = message.incarnation or self._peer.node_id",
        ("tests/peers/test_transport_messages.py", "tests/peers/test_transport_handshakes.py", "tests/peers/test_transport_snapshots.py",),
    ),
    Mutation(
        "who has dialled is not judged again",
        "conure/peers/accepting.py",
        "if not believes(item[1].greeting, item[1].known_as)",
        "if not believes(item[1].greeting, item[1].known_as) and False",
        ("tests/peers/test_transport_messages.py", "tests/peers/test_transport_handshakes.py", "tests/peers/test_transport_snapshots.py",),
    ),
    Mutation(
        "what has arrived by a closed connection is handed over",
        "conure/peers/accepting.py",
        "inbox.has_ended.set()  # what has arrived",
        "pass  # what has arrived",
        ("tests/peers/test_transport_messages.py", "tests/peers/test_transport_handshakes.py", "tests/peers/test_transport_snapshots.py",),
    ),
    Mutation(
        "a join that waits takes its node for the voter that it was when it asked",
        "conure/cluster/membership.py",
        "        _refuse_demotion(known, voter=voter)\n    return server",
        "        _refuse_demotion(known, voter=voter)\n"
        "        server = replace(server, suffrage=known.suffrage)\n"
        "    return server",
        NODE_TESTS,
    ),
    Mutation(
        "nobody is warned of an arbiter beside three data nodes",
        "conure/cluster/membership.py",
        "if for_certain >= alone:",
        "if True:",
        (*NODE_TESTS, "tests/consensus/test_raft_checklist.py", "tests/consensus/test_raft_checklist_members.py", "tests/consensus/test_raft_checklist_log.py"),
    ),
    Mutation(
        "a replica that differs goes on",
        "conure/cluster/digests.py",
        "elif digest != message.context and (",
        "elif digest < 0 and (",
        NODE_TESTS,
    ),
    # Transactions, expiry, locks and watches, as a whole cluster shows them
    Mutation(
        "a follower forgets the outcomes of idempotent requests",
        "conure/cluster/applying.py",
        "            self._history.extend(store.take_events(), store.applied_index)\n",
        "            self._history.extend(store.take_events(), store.applied_index)\n"
        "            if self._raft.state is not State.LEADER:\n"
        '                for key, _ in list(store.engine.items(b"i", b"j")):\n'
        "                    store.engine.delete(key)\n",
        SIMULATION,
    ),
    Mutation(
        "a repetition happens again",
        "conure/state/machine.py",
        "known = self.engine.get(_ANSWER + key) if key else None",
        "known = None",
        SIMULATION,
    ),
    Mutation(
        "the state's clock goes back",
        "conure/state/machine.py",
        "self.clock = max(self.clock, min(transaction.time, LAST_TIME))",
        "self.clock = transaction.time",
        (*SIMULATION, "tests/http/test_transactions.py"),
    ),
    Mutation(
        "a leader's time follows its wall clock",
        "conure/state/leaderclock.py",
        "return max(state_clock, self._base + elapsed)",
        "return max(state_clock, int(self._wall() * 1000))",
        SIMULATION,
    ),
    Mutation(
        "a read finds out that a key has expired",
        "conure/state/machine.py",
        '        """Return the record of a user key as of the applied index, or None."""\n'
        "        return self.engine.get(_USER + key)",
        "        found = self.engine.get(_USER + key)\n"
        "        return None if found and 0 < found.expiry <= self.clock else found",
        SIMULATION,
    ),
    Mutation(
        "a transaction that is refused is told to watchers",
        "conure/state/machine.py",
        "            if refusal:\n",
        "            if refusal:\n"
        '                self._events.append((revision, EventKind.PUT, b"o", b"", 1))\n',
        SIMULATION,
    ),
    Mutation(
        "a fencing token is given twice",
        "conure/state/machine.py",
        "token = holder.token if holder else revision",
        "token = holder.token if holder else revision // 32",
        SIMULATION,
    ),
    Mutation(
        "a comparison is inverted",
        "conure/state/machine.py",
        "(operator.eq, operator.ne, operator.lt, operator.gt)",
        "(operator.eq, operator.ne, operator.gt, operator.lt)",
        SIMULATION,
    ),
    Mutation(
        "a session keeps its locks when its time is over",
        "conure/state/machine.py",
        "            self._drop(_LOCK + key)\n            self._drop(held + key)",
        "            self._drop(held + key)",
        SIMULATION,
    ),
    Mutation(
        "watchers go on behind a snapshot that was installed",
        "conure/cluster/transfers.py",
        "        self._history.reset(meta.index)\n",
        "",
        SIMULATION,
    ),
    Mutation(
        "a watch that goes on sees the last event again",
        "conure/state/history.py",
        "if dot else Position(int(revision) + 1)",
        "if dot else Position(int(revision))",
        SIMULATION,
    ),
    Mutation(
        "a poll isn't told of what has happened before",
        "conure/service/watchers.py",
        "elif any(True for _ in view.matching(interest.start, interest.end, at, self._at)):",
        "elif at < 0:",
        SIMULATION,
    ),
    Mutation(
        "a slow watcher misses what it had no room for",
        "conure/service/watchers.py",
        "            watch.at = at\n",
        "            watch.at = self._at\n",
        SIMULATION,
    ),
    # What a member that lies, or a stranger, may send
    Mutation(
        "a term leaves no room to count on",
        "raft.py",
        "if sizes >> _NUMBER_BITS or message.term > self.term + _MAX_LEAP:",
        "if message.term > self.term + _MAX_LEAP:",
    ),
    Mutation(
        "a term leaps as far as it likes",
        "raft.py",
        "if sizes >> _NUMBER_BITS or message.term > self.term + _MAX_LEAP:",
        "if sizes >> _NUMBER_BITS:",
    ),
    Mutation(
        "an index in a snapshot leaves no room to count on",
        "raft.py",
        "            sizes |= message.snapshot.index | message.snapshot.term\n",
        "            pass\n",
    ),
    Mutation(
        "an answer for reads that were not asked about counts",
        "raft.py",
        "and message.context > self._leading.read_round",
        "and message.context < 0",
    ),
    Mutation(
        "a member at no address gets into the log",
        "raft.py",
        "if not is_address(server.raft_address) or (url and not is_base_url(url)):",
        "if not is_address(server.raft_address):",
    ),
    Mutation(
        "a configuration without members is taken",
        "raft.py",
        "        if not servers:\n            raise ProtocolViolation",
        "        if servers is None:\n            raise ProtocolViolation",
    ),
    Mutation(
        "a command that can't be applied gets into the log",
        "conure/cluster/node.py",
        "newest = self._intake.check_commands(message) if message.entries else 1",
        "newest = 1",
        NODE_TESTS,
    ),
    Mutation(
        "a key that fits in no page gets into the log",
        "conure/state/codec.py",
        "        if value_at > 5 + MAX_KEY_BYTES:\n",
        "        if value_at > 5 + 65_535:\n",
        NODE_TESTS,
    ),
    Mutation(
        "a transaction is taken unread",
        "conure/state/codec.py",
        "    transaction = decode_transaction(data)\n    for each",
        "    transaction = Transaction((), ())\n    for each",
        NODE_TESTS,
    ),
    Mutation(
        "a verdict about what was never told ends a replica",
        "conure/cluster/digests.py",
        "elif digest != message.context and (message.sender == raft.id or self._told == told):",
        "elif digest != message.context:",
        NODE_TESTS,
    ),
    Mutation(
        "a state is announced by who can't lead",
        "conure/cluster/transfers.py",
        "            self._raft.check(header.message)\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "what was received of a state stays for ever",
        "conure/cluster/transfers.py",
        "                and not is_at_rest\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "an index of a received state contradicts its records",
        "conure/state/machine.py",
        "        if self._expiring or self._locks:\n",
        "        if self._locks:\n",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "a received state may miscount its own records",
        "conure/state/machine.py",
        "        if self._own != self._counted:\n",
        "        if self._own < self._counted:\n",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "the clock of a received state leaves no time behind it",
        "conure/state/machine.py",
        "            is_sound &= clock <= LAST_TIME\n",
        "",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "a received session has a longer ID than what it holds can name",
        "conure/state/machine.py",
        "is_sound = len(key) <= 1 + 255 and size >= _SESSION_HEAD.size",
        "is_sound = size >= _SESSION_HEAD.size",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "a received lock has a fencing token that no outcome can hold",
        "conure/state/machine.py",
        "is_sound = is_name and is_token and 8 <= size",
        "is_sound = is_name and 8 <= size",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "a received state has keys that nobody may have",
        "conure/state/machine.py",
        "            elif not 1 < len(key) <= 1 + MAX_KEY_BYTES:\n",
        "            elif len(key) == 1:\n",
        ("tests/state/test_store.py",),
    ),
    Mutation(
        "a follower without room makes it wait for every message",
        "conure/cluster/intake.py",
        "self._log.reserve(size + ENTRY_OVERHEAD * len(entries), may_make=may_make)",
        "self._log.reserve(size + ENTRY_OVERHEAD * len(entries))",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what goes into the reserve tries every time to go elsewhere",
        "conure/consensus/raftlog.py",
        "for may_make in (False, True) if self._spares.is_cramped else (True,):",
        "for may_make in (True,):",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a snapshot is installed in a term that isn't durable",
        "conure/cluster/transfers.py",
        "self._standing.is_working and not self._is_stalled()\n",
        "self._standing.is_working\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a snapshot is begun in a term that isn't durable",
        "conure/cluster/transfers.py",
        "                or self._is_stalled()\n",
        "",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a received state takes the room of the log",
        "conure/state/snapshots.py",
        "        if size + self._keep_free > free:\n",
        "        if size > free:\n",
        ("tests/state/test_snapshots.py",),
    ),
    Mutation(
        "more records may be announced than the disk has room for",
        "conure/state/snapshots.py",
        "        self._check_room(_LEAST_RECORD * header.records)\n",
        "",
        ("tests/state/test_snapshots.py",),
    ),
    Mutation(
        "a state that is sent for ever fills the disk",
        "conure/state/snapshots.py",
        "        self._check_room(len(chunk))\n",
        "",
        ("tests/state/test_snapshots.py",),
    ),
    Mutation(
        "a node lets a received state have all of its disk",
        "conure/cluster/transfers.py",
        "            keep_free=self._log.wanted_bytes,\n",
        "",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "who says not which node it is may speak",
        "conure/peers/protocol.py",
        "        if not 0 < len(said[name].encode()) <= MAX_NODE_ID_BYTES:\n",
        "        if len(said[name].encode()) > MAX_NODE_ID_BYTES:\n",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a received state is taken unseen",
        "conure/state/snapshots.py",
        "            self._inspection.look(rows)\n",
        "            pass\n",
        (*NODE_TESTS, "tests/state/test_snapshots.py"),
    ),
    Mutation(
        "strangers take members' places",
        "conure/peers/guests.py",
        "if strangers and (is_full or len(strangers) >= MAX_STRANGERS):",
        "if strangers and is_full:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "the oldest stranger has to go, whoever opens many",
        "conure/peers/guests.py",
        "if crowd[item[1].source] == most)",
        "if most)",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "strangers' frames take all the room",
        "conure/peers/guests.py",
        "fits = of_strangers + size <= MAX_ARRIVING // 2 + SMALL_FRAME",
        "fits = of_strangers + size <= MAX_ARRIVING + SMALL_FRAME",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a member's frame waits for strangers'",
        "conure/peers/guests.py",
        "                if taken + size > MAX_ARRIVING + SMALL_FRAME:\n",
        "                if taken < 0:\n",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame takes no room until it is complete",
        "conure/peers/inbox.py",
        "if self._needed != before and max(self._needed, before) > SMALL_FRAME:",
        "if self._needed != before and max(self._needed, before) < 0:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame that has begun may take for ever",
        "conure/peers/inbox.py",
        "if received and is_stalled(monotonic() - self._begun, received):",
        "if received and is_stalled(0.0, received):",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a connection where nothing has begun is ended for its rest",
        "conure/peers/inbox.py",
        "            if not self._buffer:\n                self._begun = monotonic()\n",
        "",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a port beyond the last one is an address",
        "conure/values.py",
        "0 < int(port) < 1 << 16 and",
        "0 < int(port) and",
        ("tests/client/test_endpoints.py",),
    ),
    Mutation(
        "a Python that is too old is taken",
        "conure/oldpython.py",
        "if tuple(version[:2]) >= NEEDED:",
        "if tuple(version[:1]) >= NEEDED[:1]:",
        ("tests/test_oldpython.py",),
    ),
    # Two releases in one cluster
    Mutation(
        "something is proposed that a member can't read",
        "conure/cluster/proposing.py",
        "        if newest > 1:\n            gathered = self._that_all_read(gathered)",
        "        if newest > 9:\n            gathered = self._that_all_read(gathered)",
        NODE_TESTS,
    ),
    Mutation(
        "a member that was not heard reads everything",
        "conure/cluster/versions.py",
        "            if known is None:\n                raise Conflict(",
        "            if known is None:\n                continue\n                raise Conflict(",
        NODE_TESTS,
    ),
    Mutation(
        "what an earlier life of a member has said counts",
        "conure/cluster/versions.py",
        "        if server.incarnation:\n",
        "        if not server.id:\n",
        NODE_TESTS,
    ),
    Mutation(
        "nobody is asked what it reads for what all read",
        "conure/cluster/versions.py",
        "        if version <= 1:\n            return",
        "        if version <= 0:\n            return",
        NODE_TESTS,
    ),
    Mutation(
        "who reads less than what the log holds takes part",
        "conure/cluster/versions.py",
        "if peer.speaks < held:",
        "if peer.speaks < 1:",
        NODE_TESTS,
    ),
    Mutation(
        "what the log holds is forgotten with a restart",
        "conure/state/machine.py",
        "        self._set(_VERSION, newest, index)\n",
        "",
        ("tests/state/test_store.py", *NODE_TESTS),
    ),
    Mutation(
        "a state of a newer release is opened",
        "conure/state/machine.py",
        "        if self.version > self._speaks:\n",
        "        if self.version > 255:\n",
        ("tests/state/test_store.py", *NODE_TESTS),
    ),
    # Who is answered: names, web pages, places, bodies that are still to come (H5, H8)
    Mutation(
        "http: a dot at the end makes another name",
        "conure/values.py",
        '    return Authority(host.removesuffix("."), port)',
        "    return Authority(host, port)",
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: any name is answered to",
        "conure/http/origins.py",
        "        if asked is not None and asked.host not in self.names:",
        "        if asked is not None and asked.host in ():",
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: an escaped dot is none",
        "conure/http/origins.py",
        "        if not is_host_name(host):\n            return False\n",
        "",
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: a name that ends like an allowed one is allowed",
        "conure/http/origins.py",
        'self._ends = tuple(p.removeprefix("*") for',
        'self._ends = tuple(p.removeprefix("*").removeprefix(".") for',
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: a foreign origin with a friendly Sec-Fetch-Site is ours",
        "conure/http/origins.py",
        "    if page is None or page.host != asked.host or not page.host:",
        "    if site is None and (page is None or page.host != asked.host):",
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: another port is the same origin",
        "conure/http/origins.py",
        "    return (page.port or default) != (asked.port or default)",
        "    return False",
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: a page of the same site is ours",
        "conure/http/origins.py",
        '        return site not in (None, "none", "same-origin")',
        '        return site not in (None, "none", "same-origin", "same-site")',
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: https is http",
        "conure/http/origins.py",
        '    if scheme == "https" and site != "same-origin":',
        '    if scheme == "https" and site == "cross-site":',
        ("tests/http/test_origins.py",),
    ),
    Mutation(
        "http: the target's authority is not judged",
        "conure/http/known.py",
        "            head.judge(self._access, authority)\n        return found, head",
        "        return found, head",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a refused head is remembered",
        "conure/http/known.py",
        " and head.judgement is None:\n",
        ":\n",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a request ID hides the judgement",
        "conure/http/head.py",
        "        head.unusual = self.unusual\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: pages may write to public paths",
        "conure/http/server.py",
        "        is_public = request.method in READS and request.path",
        "        is_public = request.path",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: public pages are public under any name",
        "conure/http/server.py",
        "        return judgement[0] != 403 or not is_public",
        "        return not is_public",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: streams let browsers guess",
        "conure/http/grammar.py",
        '        "X-Content-Type-Options: nosniff\\r\\n"\n    )\n',
        "    )\n",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: the reserve answers anything",
        "conure/http/connection.py",
        "        if not is_probe or request.body:",
        "        if request.body:",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: the reserve reads bodies",
        "conure/http/connection.py",
        "    def _begin_body(self, request: Request, moved_on: bool) -> None: "
        " # noqa: ARG002\n        raise self._refusal(request)\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: the reserve keeps connections",
        "conure/http/connection.py",
        "        request.head = request.head.closing()\n"
        "        super()._hand_over(request, more, handle)",
        "        super()._hand_over(request, more, handle)",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: time in the reserve begins with each byte",
        "conure/http/connection.py",
        "        self.begun = begun  # its time is counted from its adoption\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: nobody gives way in the reserve",
        "conure/http/server.py",
        "            reactor.post(self._make_room)",
        "            pass",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: the reserve has no end",
        "conure/http/server.py",
        "        if len(self.reserved) >= 2 * places.reserve:",
        "        if len(self.reserved) >= 1000 * places.reserve:",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a place is not given back",
        "conure/http/connection.py",
        "            self.front.release(self)  # first: who sees that it is gone "
        "may have its place\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a client has as many places as there are",
        "conure/net/places.py",
        "        most = self.ordinary if client == _UNCOUNTED else self.share",
        "        most = self.ordinary",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: the reserve may be taken",
        "conure/net/places.py",
        " or self._total >= self.ordinary:",
        " or self._total >= self.ordinary + self.reserve:",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: each IPv6 address is a client",
        "conure/net/places.py",
        "            return str(ip_network((ip, 64), strict=False))",
        "            return str(ip)",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: a mapped address is another client",
        "conure/net/places.py",
        "            ip = ip.ipv4_mapped or ip",
        "            pass",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: a slow head is searched from its beginning",
        "conure/http/connection.py",
        "        begin = max(self.seen - 3, 0)  # the end of the first head isn't before that",
        "        begin = 0",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a slow head's end is missed",
        "conure/http/connection.py",
        "        begin = max(self.seen - 3, 0)  # the end of the first head isn't before that",
        "        begin = self.seen",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a slow head is checked from its beginning",
        "conure/http/connection.py",
        "seen, line = (0, 0) if position or not self.seen else (self.seen, self.line)",
        "seen, line = 0, 0",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a slow trailer is searched from its beginning",
        "conure/http/grammar.py",
        "            self._seen = len(data) - position\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: a split line end is a bare line feed",
        "conure/http/grammar.py",
        "        start -= 1  # the place where a look ended before may be between the two",
        "        pass",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: broadcasts count for nothing",
        "conure/http/stream.py",
        "            if not part.holders:\n"
        "                reactor.queued += size\n"
        "            part.holders += 1",
        "            part.holders += 1",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: the first to take a broadcast frees it",
        "conure/http/stream.py",
        "        part.holders -= 1\n        if not part.holders:\n",
        "        part.holders -= 1\n        if True:\n",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: who keeps too much is never ended",
        "conure/net/reactor.py",
        "        if self.is_full():\n            self._relieve()\n",
        "",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: the fastest streams are ended",
        "conure/net/reactor.py",
        "        blocked.sort(key=lambda pair: pair[0])",
        "        blocked.sort(key=lambda pair: -pair[0])",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: as much moves on when it is full",
        "conure/http/stream.py",
        "        most = _SMALL_PIECE if reactor.is_full() else _STREAM_PIECE",
        "        most = _STREAM_PIECE",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: what all have is moved as a whole",
        "conure/http/stream.py",
        "            if part.holders > 1 or self._offset:",
        "            if self._offset:",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "http: what has left of a long answer is kept until all has",
        "conure/http/connection.py",
        'out[0] = bytes(rest) if len(rest) * 2 < len(cast("bytes", rest.obj)) else rest',
        "out[0] = rest",
        ("tests/http/test_httpserver_rfc.py", "tests/http/test_httpserver_clients.py", "tests/http/test_httpserver_rounds.py",),
    ),
    Mutation(
        "http: long reads are admitted whatever streams keep",
        "conure/http/connection.py",
        "        if self.safe and reactor.is_full(size):",
        "        if self.safe and reactor.leaving + size > reactor.bounds.max_leaving_bytes:",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "watch: events are sent while too much waits",
        "conure/service/watchers.py",
        "if is_full or sink.unsent > _PART]",
        "if sink.unsent > _PART]",
        ("tests/service/test_watch.py",),
    ),
    Mutation(
        "watch: who is behind is sent events while too much waits",
        "conure/service/watchers.py",
        "        if watch.sink.unsent or self._is_full():",
        "        if watch.sink.unsent:",
        ("tests/service/test_watch.py",),
    ),
    Mutation(
        "kv: a spent stream empties a key",
        "conure/http/keys.py",
        "            value = request.body or _empty_value(request)\n",
        "            value = request.body\n",
        ("tests/http/test_httpapi.py",),
    ),
    Mutation(
        "kv: a spent stream with a ttl empties a key",
        "conure/http/keys.py",
        "                value = _empty_value(request)\n",
        "                pass\n",
        ("tests/http/test_httpapi.py",),
    ),
    Mutation(
        "kv: a lock empties its key",
        "conure/http/keys.py",
        '        given = value if b"value" in query or request.body else None',
        "        given = value",
        ("tests/http/test_httpapi.py",),
    ),
    Mutation(
        "kv: a follower waits for a body that it sends on",
        "httpapi.py",
        "        return None if referral is None else partial(self._answers.fail, error=referral)",
        "        return None",
        ("tests/http/test_httpapi.py",),
    ),
    Mutation(
        "kv: a node that passes on redirects streams",
        "httpapi.py",
        "        if self._referral.passes_on or request.method in _READS:",
        "        if request.method in _READS:",
        ("tests/http/test_httpapi.py",),
    ),
    Mutation(
        "http: an early answer keeps the connection",
        "conure/http/connection.py",
        "        request.head = request.head.closing()\n"
        "        self._hand_over(request, False, action)",
        "        self._hand_over(request, False, action)",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: an early answer is taken back soon",
        "conure/http/connection.py",
        "        self.patience = limits.request_timeout\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "http: an early answer is taken back by a long body",
        "conure/http/connection.py",
        "        self.discarded = -limits.max_body_bytes  # so much more may come\n",
        "",
        ACCESS_TESTS,
    ),
    Mutation(
        "settings: allowed hosts reach nobody",
        "conuredb.py",
        "        names = Names(config.allowed_hosts, own, self._known_as)",
        "        names = Names((), own, self._known_as)",
        ("tests/system/test_conuredb.py",),
    ),
    Mutation(
        "settings: own names reach nobody",
        "conuredb.py",
        "        own = (*config.own_hosts(), socket.gethostname())",
        "        own = (socket.gethostname(),)",
        ("tests/system/test_conuredb.py",),
    ),
    Mutation(
        "settings: trusted proxies reach nobody",
        "conuredb.py",
        "            trusted_proxies=config.trusted_proxies,\n",
        "",
        ("tests/system/test_conuredb.py",),
    ),
    Mutation(
        "start: too few files to serve with are a traceback",
        "conuredb.py",
        "                raise self._taken(setting, address, error) from error\n\n"
        "    def _serve_clients",
        "                raise\n\n    def _serve_clients",
        ("tests/system/test_conuredb.py",),
    ),
    Mutation(
        "start: a reactor that serves nobody stays open",
        "conuredb.py",
        "            reactor.close()\n",
        "            pass\n",
        ("tests/system/test_conuredb.py",),
    ),
    Mutation(
        "settings: the cluster's name of a node reaches nobody",
        "conuredb.py",
        "own, self._known_as)",
        "own)",
        ("tests/system/test_conuredb.py",),
    ),
    # One client against all
    Mutation(
        "turns: values are read in one step",
        "conure/http/jsonsteps.py",
        "return self._values % _PER_STEP == 0",
        "return False",
        JSON_TESTS,
    ),
    Mutation(
        "turns: values of JSON are not counted",
        "conure/http/jsonsteps.py",
        "if self._values > MAX_VALUES:",
        "if self._values < 0:",
        JSON_TESTS,
    ),
    Mutation(
        "turns: a pair of surrogates is cut in two",
        "conure/http/jsonsteps.py",
        "        piece = piece[:-6]  # the other half may follow",
        "        pass  # the other half may follow",
        JSON_TESTS,
    ),
    Mutation(
        "turns: an escaped backslash begins an escape",
        "conure/http/jsonsteps.py",
        'return (len(before) - len(before.rstrip(b"\\\\"))) % 2 == 0',
        "return True",
        JSON_TESTS,
    ),
    Mutation(
        "turns: blank lines of a batch are free",
        "conure/http/documents.py",
        "        elif not line or line.isspace():\n            continue",
        "        elif not line or line.isspace():\n            number -= 1\n            continue",
        JSON_TESTS,
    ),
    Mutation(
        "each deletion of a range may delete what all may",
        "conure/http/documents.py",
        "// max(1, ranges))",
        "// 1)",
        JSON_TESTS,
    ),
    Mutation(
        "a change writes any number of bytes",
        "conure/service/limits.py",
        "        if size > self.change_bytes:\n",
        "        if size < 0:\n",
        JSON_TESTS,
    ),
    Mutation(
        "a batch that is one change has any number of lines",
        "conure/http/transactions.py",
        "            if len(lines) > MAX_KEYED_LINES:\n",
        "            if len(lines) > MAX_BATCH_LINES:\n",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: a batch is one part",
        "conure/service/requests.py",
        "if taken >= PART_LINES or size >= PART_BYTES:",
        "if taken < 0:",
        ROUTE_TESTS,
    ),
    Mutation(
        "net: what a link has decrypted is left until more comes",
        "conure/net/reactor.py",
        "                if connection.link.pending:\n"
        "                    self._note_pending(connection)\n",
        "",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: who begins to listen again forgets what its link has decrypted",
        "conure/net/reactor.py",
        "        if link.pending:\n            self._note_pending(connection)\n",
        "",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: what nobody wants to read is looked at without end",
        "conure/net/reactor.py",
        "        if connection.interest & IN and self.connections",
        "        if self.connections",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: only the first front end ends a round",
        "conure/net/reactor.py",
        "        self._round_ends = (*self._round_ends, action)",
        "        self._round_ends = self._round_ends or (action,)",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: a link that was cut ends as any other",
        "conure/net/link.py",
        "        reset_on_close(self.socket, resets=resets)",
        "        reset_on_close(self.socket, resets=False)",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: who comes last when the reactor has ended keeps the process from ending",
        "conure/net/listener.py",
        "                except (OSError, ValueError):",
        "                except OSError:",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: clients in the backlog are left there",
        "conure/net/listener.py",
        "            for _ in range(_BACKLOG):",
        "            for _ in range(0):",
        ("tests/http/test_httpserver_rfc.py", "tests/http/test_httpserver_clients.py", "tests/http/test_httpserver_rounds.py",),
    ),
    Mutation(
        "net: nobody asks whether silent machines are there",
        "conure/net/sockets.py",
        "    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n",
        "",
        ("tests/http/test_streams_order.py", "tests/http/test_streams_many.py",),
    ),
    Mutation(
        "turns: a request overtakes the one that takes turns before it",
        "conure/http/connection.py",
        "            or self.working\n",
        "",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: steps go on until they end",
        "conure/http/request.py",
        "if is_done_for_now:",
        "if is_done_for_now is None:",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: a client that has left is worked for",
        "conure/http/request.py",
        "if self._alone and request.client.is_closed:",
        "if request.client.descriptor < -1:",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: a body that is being read counts for nothing",
        "conure/http/request.py",
        "            reactor.arriving += size\n",
        "            reactor.arriving += 0\n",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: a round takes requests for any time",
        "conure/http/connection.py",
        "if may_be_late and position and perf_counter() > reactor.leave:",
        "if not position and perf_counter() < 0:",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: tiny chunks are decoded in one go",
        "conure/http/grammar.py",
        "if chunks > _CHUNKS:",
        "if chunks < 0:",
        ROUTE_TESTS,
    ),
    Mutation(
        "turns: the length of a body at its path isn't looked at",
        "conure/http/connection.py",
        "        if length > self.front.limits.max_body_bytes_at.get(request.path, length):",
        "        if length < 0:",
        ROUTE_TESTS,
    ),
    Mutation(
        "a round reads a key for each who asks",
        "conure/service/slices.py",
        "wanted = list(dict.fromkeys(keys))",
        "wanted = list(keys)",
        ROUTE_TESTS,
    ),
    Mutation(
        "a round reads all long values in one go",
        "conure/cluster/reading.py",
        "if left <= 0 and self._is_longer(key, longest):",
        "if left < -(1 << 60) and self._is_longer(key, longest):",
        ("tests/cluster/test_node.py",),
    ),
    Mutation(
        "long values are read though there is no room for them",
        "conure/service/slices.py",
        "most = 0 if blocked is None else SLICE_BYTES",
        "most = SLICE_BYTES",
        ROUTE_TESTS,
    ),
    Mutation(
        "an answer overtakes a long one of its connection",
        "conure/service/slices.py",
        "if blocked and waiter.connection in blocked:",
        "if blocked is None:",
        ROUTE_TESTS,
    ),
    Mutation(
        "a batch that lost its leader half-way is redirected",
        "conure/http/transactions.py",
        "if is_begun and isinstance(error, NotLeader):",
        "if not is_first and isinstance(error, NotLeader):",
        ROUTE_TESTS,
    ),
    Mutation(
        "who sends many requests at once has a round for itself",
        "conure/net/reactor.py",
        "self.leave = min(self.until, now + visit)",
        "self.leave = self.until",
        ("tests/http/test_httpserver_rfc.py", "tests/http/test_httpserver_clients.py", "tests/http/test_httpserver_rounds.py",),
    ),
    Mutation(
        "all that is gathered is proposed in one go",
        "conure/cluster/pending.py",
        "while self._gathered and commands > 0 and size > 0:",
        "while self._gathered:",
        ("tests/cluster/test_waiting.py",),
    ),
    # What is committed takes turns
    Mutation(
        "all that is committed is applied in one go",
        "conure/cluster/applying.py",
        "outcomes = store.apply(entries, lambda: clock() >= until)",
        "outcomes = store.apply(entries)",
        ("tests/cluster/test_node.py",),
    ),
    Mutation(
        "a follower without time to apply takes any number of entries",
        "conure/cluster/intake.py",
        "if self._room.unwritten or len(self._applying.backlog) > MAX_UNAPPLIED:",
        "if self._room.unwritten:",
        CLUSTER_TESTS,
    ),
    Mutation(
        "more is proposed than is applied",
        "conure/cluster/pacing.py",
        "        if self._applying.backlog:\n            return True\n        raft = self._raft",
        "        raft = self._raft",
        ("tests/cluster/test_node.py",),
    ),
    Mutation(
        "an installed state is followed by what it has already",
        "conure/cluster/transfers.py",
        "        self._applying.backlog.clear()  # the state has all of them\n",
        "",
        CLUSTER_TESTS,
    ),
]


def main(words: list[str]) -> int:
    """Run the mutations whose names contain one of the words; return the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if not chosen:
        print(f"no mutation's name contains {' or '.join(map(repr, words))}")
        return 2
    width = max(len(mutation.name) for mutation in chosen)
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        healthy = Mutation("nothing is changed", "raft.py", "", "")
        suites = sorted({tuple(mutation.tests) for mutation in chosen})
        for status, said in pool.map(_run, [healthy._replace(tests=suite) for suite in suites]):
            if status != 0:
                print(f"mend this first, it fails without any fault: {said}")
                return 1
        for mutation, (status, said) in zip(chosen, pool.map(_run, chosen), strict=True):
            verdict = {0: "SURVIVED", 1: said}.get(status, f"BROKEN: {said}")
            print(f"{mutation.name:{width}}  {verdict}", flush=True)
            bad += status != 1
    print(f"{len(chosen) - bad} of {len(chosen)} caught")
    return 1 if bad else 0


def _run(mutation: Mutation) -> tuple[int, str]:
    """Return pytest's exit status on a mutated copy (1: a test failed), and which test that was."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = Path(folder)
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*UNCOPIED), dirs_exist_ok=True)
        if mutation.old:
            try:
                mutation.apply(root)
            except ValueError as error:
                return 2, str(error)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "--hypothesis-seed=1"]
        try:
            done = subprocess.run(
                [*command, *mutation.tests],
                cwd=root,
                # A .pyc of a same-sized fault of the same second would be taken for this one's.
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return 1, f"no end within {TIMEOUT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1].removeprefix("tests/") if failed else "".join(last)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
