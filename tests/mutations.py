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

SIMULATION = ("tests/test_sim.py",)

LOG_TESTS = ("tests/test_raftlog.py", "tests/test_raftlog_crash.py")

FULL_DISK_TESTS = ("tests/test_full_disk.py",)


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
        "            self._log.set_hard_state(ready.hard_state)\n",
        "            pass\n",
        NODE_TESTS,
    ),
    Mutation(
        "the log is never synced",
        "node.py",
        "                raft_log.sync()\n",
        "",
        NODE_TESTS,
    ),
    # Full disks
    Mutation(
        "clients' writes use what was begun in the reserve",
        "raftlog.py",
        "            if last.end + nbytes <= last.size and not last.is_reserve:\n",
        "            if last.end + nbytes <= last.size:\n",
        LOG_TESTS,
    ),
    Mutation(
        "what was begun in the reserve is forgotten by a restart",
        "raftlog.py",
        "*facts, self.is_reserve)",
        "*facts, 0)",
        LOG_TESTS,
    ),
    Mutation(
        "the log goes on in the reserve although there is room",
        "raftlog.py",
        "            or self._segments[-1].is_reserve\n",
        "",
        LOG_TESTS,
    ),
    Mutation(
        "commands use up the whole reserve",
        "raftlog.py",
        "spared = RESERVE_FILES // 2 if commands else 0",
        "spared = 0",
        LOG_TESTS,
    ),
    Mutation(
        "entries that conflict are added behind those they replace",
        "raftlog.py",
        "if last and last.is_reserve and last.has_room(size) and first > self.last_index:",
        "if last and last.is_reserve and last.has_room(size):",
        LOG_TESTS,
    ),
    Mutation(
        "a snapshot of the log finds no room in the reserve",
        "raftlog.py",
        "path = None if had_room else self._take_reserve(len(data))",
        "path = None",
        LOG_TESTS,
    ),
    Mutation(
        "a file loses its room before it is written",
        "raftlog.py",
        "        file.pwrite(data, 0)  # first, so that room that the file has isn't lost\n",
        "        file.truncate(0)\n        file.pwrite(data, 0)\n",
        LOG_TESTS,
    ),
    Mutation(
        "a file of the reserve is written while it may still be one",
        "raftlog.py",
        "self._fs.sync_directory(self._directory)  # before its zeros go, its old name has to",
        "pass",
        LOG_TESTS,
    ),
    Mutation(
        "what waits for room ends the node",
        "node.py",
        "            return False\n        return True\n\n    def _put_off",
        "            raise\n        return True\n\n    def _put_off",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a node waits on for what a snapshot has made void",
        "node.py",
        "if not self._upkeep.is_waiting or self._clock() < self._write_again_at:",
        "if not self._unwritten or self._clock() < self._write_again_at:",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what waits for room is overtaken",
        "node.py",
        "if self._unwritten or not self._write(ready):",
        "if not self._write(ready):",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what waits for room is reported as written",
        "node.py",
        "            else:\n                raft.persisted(ready)\n",
        "            raft.persisted(ready)\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a vote waits for the entries that wait for room",
        "node.py",
        "        if ready.hard_state is not None:  # it is durable already: see _save\n",
        "        if False:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a follower takes more while it waits for room",
        "node.py",
        "            if self._unwritten:\n                return [message",
        "            if False:\n                return [message",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "writes wait behind what waits for room",
        "node.py",
        "(self._is_busy() and not self._unwritten)",
        "self._is_busy()",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "what a vote says leaves before there was room for it",
        "node.py",
        "        if ready.hard_state is not None and not self._save(ready):\n            return\n",
        "        if ready.hard_state is not None:\n            self._save(ready)\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a node goes on before term and vote found room",
        "node.py",
        "if not self._is_working or self._stalled is not None:",
        "if not self._is_working:",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "entries that the log has already need room",
        "node.py",
        "                missing = self._log.missing(message.entries)\n",
        "                missing = message.entries\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "behind a gap no leader is told where the logs agree",
        "node.py",
        "            if message.entries and message.index <= last:\n",
        "            if message.entries:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "who joins on a full disk ends",
        "node.py",
        "            return self._admission.hears(sender)\n        except DiskFull as error:\n",
        "            return self._admission.hears(sender)\n        except KeyError as error:\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a replica that differs starts again where its disk was full",
        "node.py",
        "                self._log.give_up_reserve()  # this log is written to no more\n",
        "",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "a full disk ends expiry",
        "node.py",
        "        elif self._upkeep.obstacle is None and self._log.may_use_reserve(",
        "        elif False and self._log.may_use_reserve(",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "an arbiter on a full disk cuts its log no sooner",
        "upkeep.py",
        "            self.shortage is None or elapsed < DISK_FULL_RETRY\n",
        "            True\n",
        FULL_DISK_TESTS,
    ),
    Mutation(
        "who has no room stands like anybody else",
        "raft.py",
        "return 0 if self.has_room else 2 * self.options.election_ticks",
        "return 0",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
    ),
    Mutation(
        "who has no room never stands",
        "raft.py",
        "return 0 if self.has_room else 2 * self.options.election_ticks",
        "return 0 if self.has_room else 1 << 30",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
    ),
    Mutation(
        "a leader without room keeps its office",
        "raft.py",
        "            self._defer()\n",
        "            pass\n",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
    ),
    Mutation(
        "leaders without room hand over to each other without end",
        "raft.py",
        "if successor and self.progress[successor].match > self._log.persisted:",
        "if successor:",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
    ),
    Mutation(
        "a read does not wait for a command that is committed and not written here",
        "raft.py",
        "index >= log.offset and log.kind(index) != COMMAND:",
        "index >= log.offset:",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
    ),
    Mutation(
        "no-ops of any number of terms wait for room",
        "raft.py",
        "if not self.has_room and log.last_index - log.persisted >= _MAX_WAITING:",
        "if False:",
        (*FULL_DISK_TESTS, "tests/test_raft_checklist.py"),
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
        "elif digest != message.context:",
        "elif digest < 0:",
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
