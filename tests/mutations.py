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
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTATIONS", "Mutation"]

ROOT = Path(__file__).parent.parent
WORKERS = 2
TIMEOUT = 300
"""Seconds for all the tests of one mutation; pyproject.toml bounds each test."""

CORE_TESTS = (
    "tests/test_raft_paper.py",
    "tests/test_raft_checklist.py",
    "tests/test_raft_script.py",
    "tests/test_raft_random.py",
    "tests/test_raft_configuration.py",
)

NODE_TESTS = ("tests/test_node.py", "tests/test_node_cluster.py")

TRANSPORT_TESTS = ("tests/test_transport.py", "tests/test_guests.py")

SIMULATION = ("tests/test_sim.py",)


class Mutation(NamedTuple):
    """A fault: *old* text of *file*, found there once, becomes *new*; *tests* must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str] = CORE_TESTS

    def apply(self, root: Path) -> None:
        """Put the fault into the tree at *root*; ValueError if it doesn't apply."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"found {text.count(self.old)} times in {self.file}: {self.old!r}")
        path.write_text(text.replace(self.old, self.new))


MUTATIONS = [
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
    # Elections (R5)
    Mutation(
        "half of an even number is a quorum",
        "raft.py",
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
        "raft.py",
        'server.suffrage == "voter" and server.role == "data"',
        'server.suffrage == "voter"',
    ),
    Mutation(
        "proposals are accepted while leadership is handed over",
        "raft.py",
        'if self._transferee:\n            raise Unavailable("leadership',
        'if not self._transferee == self._transferee:\n            raise Unavailable("leadership',
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
        "if index > self.commit_index and index >= self._term_start:",
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
        "raft.py",
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
        "if self._round_reads or self.commit_index < self._term_start:",
        "if self._round_reads:",
    ),
    Mutation(
        "a lone voter answers a read before its first commit",
        "raft.py",
        "if self._is_alone() and self.commit_index >= self._term_start:",
        "if self._is_alone():",
    ),
    Mutation(
        "a read joins a round that began before it came",
        "raft.py",
        "self._waiting_reads.append(context)",
        "(self._round_reads or self._waiting_reads).append(context)",
    ),
    Mutation(
        "a read is confirmed by fewer than a quorum",
        "raft.py",
        "if self._round_reads and confirmed >= configuration.quorum:",
        "if self._round_reads and confirmed >= configuration.quorum - 1:",
    ),
    Mutation(
        "a read that was held back is confirmed by the round before it",
        "node.py",
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
        'if self.commit_index < self._term_start:\n            raise Unavailable("this',
        'if self.term < 0:\n            raise Unavailable("this',
    ),
    Mutation(
        "a learner votes before it has caught up",
        "raft.py",
        "and progress.match >= self._trail[0]",
        "and progress.match >= 0",
    ),
    Mutation(
        "a removal leaves nobody who could commit",
        "raft.py",
        "if active < quorum and not force:",
        "if active < 1 and not force:",
    ),
    Mutation(
        "a lease outlives a hand-over",
        "raft.py",
        "        self.has_handed_over = True\n",
        "",
    ),
    # The driver
    Mutation(
        "term and vote are never written",
        "node.py",
        "            raft_log.set_hard_state(ready.hard_state)\n",
        "            pass\n",
        NODE_TESTS,
    ),
    Mutation(
        "the log is never synced",
        "node.py",
        "            raft_log.sync()\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "a write is acknowledged although another one took its place",
        "waiting.py",
        "ended = outcomes if is_its_own else lost",
        "ended = outcomes",
        NODE_TESTS,
    ),
    Mutation(
        "a lease lasts longer than an election time-out",
        "node.py",
        "LEASE_SHARE * (self._election_ticks - 1)",
        "2 * LEASE_SHARE * (self._election_ticks - 1)",
        NODE_TESTS,
    ),
    Mutation(
        "a member that lost its disk is spoken to",
        "admission.py",
        "if not is_known and not may_be_behind:",
        "if not is_known and False:",
        NODE_TESTS,
    ),
    Mutation(
        "a replica that differs goes on",
        "node.py",
        "elif digest != message.context and (",
        "elif digest < 0 and (",
        NODE_TESTS,
    ),
    # Transactions, expiry, locks and watches, as a whole cluster shows them
    Mutation(
        "a follower forgets the outcomes of idempotent requests",
        "node.py",
        "            self._history.extend(store.take_events(), last.index)\n",
        "            self._history.extend(store.take_events(), last.index)\n"
        "            if self._raft.state is not State.LEADER:\n"
        '                for key, _ in list(store.tree.items(b"i", b"j")):\n'
        "                    store.tree.delete(key)\n",
        SIMULATION,
    ),
    Mutation(
        "a repetition happens again",
        "store.py",
        "known = self.tree.get(_ANSWER + key) if key else None",
        "known = None",
        SIMULATION,
    ),
    Mutation(
        "the state's clock goes back",
        "store.py",
        "self.clock = max(self.clock, min(transaction.time, LAST_TIME))",
        "self.clock = transaction.time",
        (*SIMULATION, "tests/test_transactions.py"),
    ),
    Mutation(
        "a leader's time follows its wall clock",
        "expiry.py",
        "return max(state_clock, self._base + elapsed)",
        "return max(state_clock, int(self._wall() * 1000))",
        SIMULATION,
    ),
    Mutation(
        "a read finds out that a key has expired",
        "store.py",
        '        """Return the record of a user key as of the applied index, or None."""\n'
        "        return self.tree.get(_USER + key)",
        "        found = self.tree.get(_USER + key)\n"
        "        return None if found and 0 < found.expiry <= self.clock else found",
        SIMULATION,
    ),
    Mutation(
        "a transaction that is refused is told to watchers",
        "store.py",
        "            if refusal:\n",
        "            if refusal:\n"
        '                self._events.append((revision, EventKind.PUT, b"o", b"", 1))\n',
        SIMULATION,
    ),
    Mutation(
        "a fencing token is given twice",
        "store.py",
        "token = holder.token if holder else revision",
        "token = holder.token if holder else revision // 32",
        SIMULATION,
    ),
    Mutation(
        "a comparison is inverted",
        "store.py",
        "(operator.eq, operator.ne, operator.lt, operator.gt)",
        "(operator.eq, operator.ne, operator.gt, operator.lt)",
        SIMULATION,
    ),
    Mutation(
        "a session keeps its locks when its time is over",
        "store.py",
        "            self._drop(_LOCK + key)\n            self._drop(held + key)",
        "            self._drop(held + key)",
        SIMULATION,
    ),
    Mutation(
        "watchers go on behind a snapshot that was installed",
        "node.py",
        "        self._history.reset(meta.index)\n",
        "",
        SIMULATION,
    ),
    Mutation(
        "a watch that goes on sees the last event again",
        "watch.py",
        "if dot else Position(int(revision) + 1)",
        "if dot else Position(int(revision))",
        SIMULATION,
    ),
    Mutation(
        "a poll isn't told of what has happened before",
        "watch.py",
        "elif any(True for _ in view.matching(interest.start, interest.end, at, self._at)):",
        "elif at < 0:",
        SIMULATION,
    ),
    Mutation(
        "a slow watcher misses what it had no room for",
        "watch.py",
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
        "and message.context > self._read_round",
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
        "node.py",
        "newest = self._check_commands(message) if message.entries else 1",
        "newest = 1",
        NODE_TESTS,
    ),
    Mutation(
        "a key that fits in no page gets into the log",
        "wire.py",
        "        if value_at > 5 + MAX_KEY_BYTES:\n",
        "        if value_at > 5 + 65_535:\n",
        NODE_TESTS,
    ),
    Mutation(
        "a transaction is taken unread",
        "wire.py",
        "    transaction = decode_transaction(data)\n    for each",
        "    transaction = Transaction((), ())\n    for each",
        NODE_TESTS,
    ),
    Mutation(
        "a verdict about what was never told ends a replica",
        "node.py",
        "elif digest != message.context and (message.sender == raft.id or self._told == told):",
        "elif digest != message.context:",
        NODE_TESTS,
    ),
    Mutation(
        "a state is announced by who can't lead",
        "node.py",
        "            self._raft.check(header.message)\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "what was received of a state stays for ever",
        "node.py",
        "                and not is_at_rest\n",
        "",
        NODE_TESTS,
    ),
    Mutation(
        "an index of a received state contradicts its records",
        "store.py",
        "        if self._expiring or self._locks:\n",
        "        if self._locks:\n",
        ("tests/test_store.py",),
    ),
    Mutation(
        "a received state is taken unseen",
        "snapshots.py",
        "            self._inspection.look(rows)\n",
        "            pass\n",
        (*NODE_TESTS, "tests/test_snapshots.py"),
    ),
    Mutation(
        "strangers take members' places",
        "guests.py",
        "if strangers and (is_full or len(strangers) >= MAX_STRANGERS):",
        "if strangers and is_full:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "the oldest stranger has to go, whoever opens many",
        "guests.py",
        "if crowd[item[1].source] == most)",
        "if most)",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "strangers' frames take all the room",
        "guests.py",
        "fits = of_strangers + size <= MAX_ARRIVING // 2 + SMALL_FRAME",
        "fits = of_strangers + size <= MAX_ARRIVING + SMALL_FRAME",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a member's frame waits for strangers'",
        "guests.py",
        "                if held + size > MAX_ARRIVING + SMALL_FRAME:\n",
        "                if held < 0:\n",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame takes no room until it is complete",
        "transport.py",
        "if self._needed != before and max(self._needed, before) > SMALL_FRAME:",
        "if self._needed != before and max(self._needed, before) < 0:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame that has begun may take for ever",
        "transport.py",
        "if received and is_stalled(monotonic() - self._begun, received):",
        "if received and is_stalled(0.0, received):",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a connection where nothing has begun is ended for its rest",
        "transport.py",
        "            if not self._buffer:\n                self._begun = monotonic()\n",
        "",
        TRANSPORT_TESTS,
    ),
    # Two releases in one cluster
    Mutation(
        "something is proposed that a member can't read",
        "node.py",
        "        if newest > 1:\n            held = self._that_all_read(held)",
        "        if newest > 9:\n            held = self._that_all_read(held)",
        NODE_TESTS,
    ),
    Mutation(
        "a member that was not heard reads everything",
        "versions.py",
        "            if known is None:\n                raise Conflict(",
        "            if known is None:\n                continue\n                raise Conflict(",
        NODE_TESTS,
    ),
    Mutation(
        "what an earlier life of a member has said counts",
        "versions.py",
        'return version if server.incarnation in ("", incarnation) else None',
        "return version",
        NODE_TESTS,
    ),
    Mutation(
        "nobody is asked what it reads for what all read",
        "versions.py",
        "        if version <= 1:\n            return",
        "        if version <= 0:\n            return",
        NODE_TESTS,
    ),
    Mutation(
        "who reads less than what the log holds takes part",
        "versions.py",
        "if peer.speaks < held:",
        "if peer.speaks < 1:",
        NODE_TESTS,
    ),
    Mutation(
        "what the log holds is forgotten with a restart",
        "store.py",
        "        self._set(_VERSION, newest, index)\n",
        "",
        ("tests/test_store.py", *NODE_TESTS),
    ),
    Mutation(
        "a state of a newer release is opened",
        "store.py",
        "        if self.version > self._speaks:\n",
        "        if self.version > 255:\n",
        ("tests/test_store.py", *NODE_TESTS),
    ),
]


def main(words: list[str]) -> int:
    """Run the mutations whose names contain one of the words; return the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    healthy = Mutation("nothing is changed", "raft.py", "", "")
    tests = sorted({test for mutation in chosen for test in mutation.tests})
    status, said = _run(healthy._replace(tests=tests))
    if status != 0:
        print(f"mend this first, it fails without any fault: {said}")
        return 1
    width = max(len(mutation.name) for mutation in chosen)
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
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
        for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
            shutil.copy(path, root)
        shutil.copytree(ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pyc*"))
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
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1].removeprefix("tests/") if failed else "".join(last)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
