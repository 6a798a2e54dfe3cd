"""Faults at random against real clusters, for as long as asked: ``python -m tests.chaos``.

One plan after the other, each drawn by a seed: how many data nodes there are, whether an arbiter is
beside them, how reads are confirmed, and what may go wrong. A plan is played in rounds of some
seconds on one cluster. In a round, clients write and read through any member, over HTTP and over
RESP, while things are done to members, several at a time and often more than a quorum can bear:

========= ======================================================================================
processes killed (SIGKILL), paused (SIGSTOP), stopped in order, started; leadership handed over
members   removed, by force too, and joined again, as learners too; disks lost
moves     started again on other ports
cuts      packets vanish, both ways or one way
bad links packets wait, overtake each other, and some vanish
disks     full, and empty again
clocks    wall clocks jump
========= ======================================================================================

At the end of a round everything is mended. Then the cluster has to serve within seconds, all
members are voters again and hold the same, nobody's log tells of an exception, no process has ended
by itself, and the history is linearizable.

Links and disks need root, clocks a C compiler; what can't be had is named and left out. A failure
says what was done when, and where the directories, the logs and the history are kept. A seed
repeats its plan and the choice of faults, but not their exact moments: what real processes do is
not repeatable. tests/sim/ is for that.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.lab import engines
from tests.lab.cluster import Cluster, Member, Workload, wait_until
from tests.lab.netns import Impairment, Lab, why_not

FLAGS = (
    "--log-segment-bytes=64KiB",
    "--checkpoint-entries=200",
    "--checkpoint-log-bytes=4KiB",
    "--barrier-timeout=1s",
    "--write-timeout=2s",
)
SHAPES = {"3": (3, False), "5": (5, False), "2+1": (2, True), "4+1": (4, True)}
ROUND_SECONDS = 8.0
MENDED_WITHIN = 60.0  # seconds, for each step of the way back
DISK_BYTES = 8 << 20
CLOCK_JUMPS = (-86_400, -30, -1, 0, 1, 30, 3_600)  # seconds
CLONE_NEWNS = 0x20000

Fault = Callable[[Member], None]


@dataclass(frozen=True)
class Plan:
    """What a seed decides before anything happens."""

    shape: str = "3"
    read_mode: str = "index"
    follower_mode: str = "redirect"
    members: bool = False
    moves: bool = False
    cuts: bool = False
    bad_links: bool = False
    disks: bool = False
    clocks: bool = False
    engine: str = "btree"  # or lsm, or mixed: each member draws

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """Return the plan of a seed."""
        rng = random.Random(f"plan/{seed}")
        return cls(
            shape=rng.choice(list(SHAPES)),
            read_mode=rng.choice(["index", "lease"]),
            follower_mode=rng.choice(["redirect", "forward"]),
            members=rng.random() < 0.6,
            moves=rng.random() < 0.3,
            cuts=rng.random() < 0.6,
            bad_links=rng.random() < 0.5,
            disks=rng.random() < 0.4,
            clocks=rng.random() < 0.4,
            engine=engines.TOLD or rng.choice(["btree", "lsm", "mixed"]),
        )

    def __str__(self) -> str:
        kinds = [field.name for field in fields(self) if getattr(self, field.name) is True]
        return (
            f"{self.shape} nodes, {self.engine}, {self.read_mode} reads, followers "
            f"{self.follower_mode}; processes {' '.join(kinds)}"
        )


class Chaos:
    """A cluster of a plan, and what is done to it in one round."""

    def __init__(self, plan: Plan, cluster: Cluster, lab: Lab | None, rng: random.Random) -> None:
        self.done: list[str] = []
        self._plan = plan
        self._cluster = cluster
        self._lab = lab
        self._rng = rng
        self._ended: set[Member] = set()  # by a fault, and not by itself
        self._wiped: Member | None = None
        # A cluster of three can bear the loss of one member, for whatever reason.
        self._is_small = len(cluster.members) == 3
        self._may_wipe = not self._is_small or rng.random() < 0.5
        self._may_remove = not self._is_small or not self._may_wipe
        self._faults: list[Fault] = [
            self._kill, self._kill, self._start, self._start, self._start, self._pause,
            self._resume, self._resume, self._stop, self._hand_over,
        ]  # fmt: skip
        if plan.members:
            self._faults += [self._remove, self._join, self._join, self._wipe]
        if plan.moves:
            self._faults += [self._move]
        if plan.cuts:
            self._faults += [self._cut, self._cut, self._cut_one_way, self._heal]
        if plan.bad_links:
            self._faults += [self._impair, self._impair, self._heal]
        if plan.disks:
            self._faults += [self._fill, self._fill, self._empty]
        if plan.clocks:
            self._faults += [self._jump]

    def act(self) -> None:
        """Do one thing to one member."""
        self._look()
        member = self._rng.choice(self._cluster.members)
        fault = self._rng.choice(self._faults)
        fault(member)

    def end(self) -> None:
        """Undo everything, and see that the cluster comes back with all its members."""
        self._note("the end of the faults")
        if self._lab is not None:
            self._lab.heal()
        for member in self._cluster.members:
            self._empty(member)
            self._resume(member)
            self._start(member)
        for member in self._cluster.members:
            member.wait_until_listening()
        if self._wiped is not None:
            wait_until(functools.partial(self._is_removed, self._wiped), MENDED_WITHIN)
        for member in self._cluster.members:
            wait_until(functools.partial(self._is_voter, member), MENDED_WITHIN)
        self._cluster.wait_until_voters(len(self._cluster.members))
        self._look()

    def _note(self, what: str, member: Member | None = None) -> None:
        now = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        self.done.append(f"{now} {what}" + (f" {member.name}" if member else ""))

    def _look(self) -> None:
        """See that no process has ended by itself. That its disk is full is no reason, but for the
        start of a new directory."""
        for member in self._cluster.members:
            if not member.is_running and member not in self._ended:
                files = ("identity.json", "conure.db", "raft/snapshot")
                is_new = not all((member.data / name).exists() for name in files)
                assert is_new, f"{member.name} ended by itself"
                assert _ballast(member).exists(), f"{member.name} did not start"
                self._note("could not start, with a full disk:", member)
                self._ended.add(member)

    def _is_voter(self, member: Member) -> bool:
        """Have a member taken back that was removed or made a learner; return whether it is in."""
        leader = self._cluster.leader()
        known = leader.servers().get(member.name, {})
        if known.get("address") == member.raft_address and known["suffrage"] == "voter":
            return bool(member.status().get("leader"))
        leader.post("/join", {"ID": member.name, "RaftAddr": member.raft_address})
        return False

    def _is_removed(self, member: Member) -> bool:
        """Have a wiped member removed, in case it was not when its disk was lost."""
        return self._cluster.leader().post("/remove", {"ID": member.name}).status in (200, 404)

    # -- processes -------------------------------------------------------------------------------

    def _kill(self, member: Member) -> None:
        if member.is_running:
            self._note("kill", member)
            self._ended.add(member)
            member.kill()

    def _start(self, member: Member) -> None:
        """Start it with all others as seeds, because more than a quorum may have moved."""
        if not member.is_running:
            self._note("start", member)
            self._ended.discard(member)
            seeds = [other.url for other in self._cluster.members if other is not member]
            member.launch(f"--join={','.join(seeds)}")

    def _pause(self, member: Member) -> None:
        if member.is_running and not member.is_paused:
            self._note("pause", member)
            member.pause()

    def _resume(self, member: Member) -> None:
        if member.is_paused:
            self._note("resume", member)
            member.resume()

    def _stop(self, member: Member) -> None:
        if member.is_listening and not member.is_paused and not _ballast(member).exists():
            self._note("stop", member)
            self._ended.add(member)
            status = member.terminate()
            assert status == 0, f"{member.name} stopped with status {status}"

    def _move(self, member: Member) -> None:
        if not member.is_running:
            self._note("move", member)
            member.move()
            self._start(member)

    # -- members ---------------------------------------------------------------------------------

    def _hand_over(self, member: Member) -> None:
        self._ask("/leader", {"ID": member.name})

    def _remove(self, member: Member) -> None:
        enough = 2 if self._is_small else 3
        if self._may_remove and len(self._voters()) > enough:
            force = "?force=true" if self._rng.random() < 0.3 else ""
            self._ask(f"/remove{force}", {"ID": member.name})

    def _join(self, member: Member) -> None:
        facts = {"ID": member.name, "RaftAddr": member.raft_address}
        self._ask("/join", {**facts, "NonVoter": self._rng.random() < 0.3})

    def _wipe(self, member: Member) -> None:
        """Lose a disk, once a round and while all others have theirs: it may hold what only one
        of them holds as well, and beside an arbiter and one other data node not even that."""
        voters = self._voters()
        if (
            self._may_wipe
            and self._wiped is None
            and len(self._cluster.running) == len(voters) == len(self._cluster.members)
            and not (self._plan.shape == "2+1" and member is not self._cluster.members[-1])
        ):
            self._note("lose the disk of", member)
            self._wiped = member
            self._ended.add(member)
            member.kill()
            member.wipe()
            self._ask("/remove", {"ID": member.name})

    def _voters(self) -> set[str]:
        for member in self._cluster.running:
            if member.status().get("is_leader"):
                with contextlib.suppress(OSError):
                    return member.voters()
        return set()

    def _ask(self, path: str, facts: dict[str, object]) -> None:
        """Ask whoever leads; the answer does not matter."""
        body = json.dumps(facts).encode()
        for member in self._cluster.running:
            if member.status().get("is_leader"):
                self._note(f"POST {path} {body.decode()} to", member)
                with contextlib.suppress(OSError):
                    member.request("POST", path, body, timeout=2)

    # -- links, disks, clocks --------------------------------------------------------------------

    def _cut(self, member: Member) -> None:
        other = self._rng.choice(self._cluster.members)
        if self._lab is not None and other is not member:
            self._note(f"cut {other.name} and", member)
            self._lab.cut(self._host(member), self._host(other))

    def _cut_one_way(self, member: Member) -> None:
        other = self._rng.choice(self._cluster.members)
        if self._lab is not None and other is not member:
            self._note(f"cut, to {other.name}, from", member)
            self._lab.cut_one_way(self._host(member), self._host(other))

    def _impair(self, member: Member) -> None:
        rng = self._rng
        delay = rng.choice([0.0, 0.005, 0.05, 0.15])
        how = Impairment(delay, rng.random() * delay, rng.choice([0.0, 0.02, 0.1, 0.3]))
        if self._lab is not None:
            self._note(f"{how} from", member)
            self._lab.impair(self._host(member), how)

    def _heal(self, _: Member) -> None:
        if self._lab is not None:
            self._note("heal all links")
            self._lab.heal()

    def _host(self, member: Member) -> int:
        return self._cluster.members.index(member) + 1

    def _fill(self, member: Member) -> None:
        """Leave next to nothing of a disk."""
        self._note("fill the disk of", member)
        with _ballast(member).open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - 4096 * self._rng.choice([0, 0, 1, 20])))

    def _empty(self, member: Member) -> None:
        if _ballast(member).exists():
            self._note("empty the disk of", member)
            _ballast(member).unlink()

    def _jump(self, member: Member) -> None:
        seconds = self._rng.choice(CLOCK_JUMPS)
        self._note(f"{seconds} s on the clock of", member)
        assert member.environ is not None
        Path(member.environ["CLOCK_ORDER"]).write_text(str(seconds))


def main() -> int:
    """Play plans until the time is up; fail at the first failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the first")
    parser.add_argument("--rounds", type=int, default=4, help="of each plan")
    parser.add_argument("--shape", choices=SHAPES, help="this one in place of the drawn ones")
    options = parser.parse_args()
    missing = what_is_missing()
    for kind, reason in missing.items():
        print(f"without {kind}: {reason}")
    deadline = time.monotonic() + 60 * options.minutes
    for seed in itertools.count(options.seed):
        changes: dict[str, Any] = dict.fromkeys(missing, False)
        if options.shape:
            changes["shape"] = options.shape
        plan = replace(Plan.draw(seed), **changes)
        print(f"seed {seed}: {plan}", flush=True)
        play(seed, plan, options.rounds)
        if time.monotonic() > deadline:
            break
    return 0


def what_is_missing() -> dict[str, str]:
    """Return the kinds of faults that can't be had here, and why."""
    missing = {"cuts": why_not(), "bad_links": why_not(to_impair=True)}
    if shutil.which("cc") is None:
        missing["clocks"] = "clocks that jump need a C compiler"
    if os.geteuid() != 0:
        missing["disks"] = "small disks need root"
    elif ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        missing["disks"] = f"small disks can't be made here: {os.strerror(ctypes.get_errno())}"
    else:  # what is mounted from here on is seen by this process and its children only
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    return {kind: reason for kind, reason in missing.items() if reason}


def engine_of(name: str, seed: int, plan: Plan) -> str:
    """Return the engine of a member."""
    if plan.engine != "mixed":
        return plan.engine
    return random.Random(f"engine/{seed}/{name}").choice(["btree", "lsm"])


def play(seed: int, plan: Plan, rounds: int) -> None:
    """Play the rounds of a plan on a new cluster."""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_directory(f"conuredb-chaos-{seed}-"))
        lab = None
        data_nodes, has_arbiter = SHAPES[plan.shape]
        names = [f"node{number + 1}" for number in range(data_nodes + has_arbiter)]
        if plan.cuts or plan.bad_links:
            lab = stack.enter_context(contextlib.closing(Lab(len(names))))
            stack.enter_context(lab.enter())
        if plan.disks:
            for name in names:
                stack.enter_context(_small_disk(directory / f"disk-{name}", directory / name))
        modes = (f"--read-mode={plan.read_mode}", f"--follower-mode={plan.follower_mode}")
        cluster = Cluster(directory, *FLAGS, *modes, lab=lab, logs=directory, resp=True)
        stack.enter_context(cluster)
        environ = _jumping_clock(directory) if plan.clocks else {}
        for number, name in enumerate(names):
            member = cluster.add(
                *(["--role=arbiter"] if number == data_nodes else []),
                f"--engine={engine_of(name, seed, plan)}",
                environ={**environ, "CLOCK_ORDER": str(directory / f"clock-{name}")},
            )
            if plan.disks:
                member.data = directory / f"disk-{name}" / "data"
        cluster.start(len(names))
        for number in range(1, rounds + 1):
            play_round(Chaos(plan, cluster, lab, rng), cluster, rng, number, directory)


def play_round(
    chaos: Chaos, cluster: Cluster, rng: random.Random, number: int, directory: Path
) -> None:
    """Faults under load, the end of all faults, the checks."""
    load = Workload(cluster, clients=4, resp_clients=4, keys=5, prefix=b"%d" % number)
    try:
        with load:
            end = time.monotonic() + ROUND_SECONDS
            while time.monotonic() < end:
                chaos.act()
                time.sleep(rng.uniform(0, 0.6))
            healed_at = time.monotonic()
            chaos.end()
            load.wait_for_writes(50)
            took = time.monotonic() - healed_at
        load.check()
        cluster.wait_until_equal()
        for member in cluster.members:
            assert "Traceback" not in member.whole_text, f"a traceback in the log of {member.name}"
    except BaseException:
        (directory / "history").write_text("\n".join(map(str, load.history)))
        print("\n".join([f"round {number} failed after", *chaos.done]))
        raise
    unknown = sum(operation.returned is None for operation in load.history)
    print(
        f"  round {number}: {len(load.history):,} operations, {unknown} of unknown outcome, "
        f"{len(chaos.done)} faults, {len(load.leaders)} terms with a leader, "
        f"well after {took:.1f} s",
        flush=True,
    )


@contextlib.contextmanager
def _directory(prefix: str) -> Iterator[Path]:
    """A directory that is removed after the block, or named if the block fails."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield directory
    except BaseException:
        print(f"directories, logs and history are kept in {directory}", flush=True)
        raise
    shutil.rmtree(directory)


@contextlib.contextmanager
def _small_disk(point: Path, kept: Path) -> Iterator[None]:
    """A disk of its own at *point*; what is on it is copied to *kept* if the block fails."""
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", point], check=True)
    try:
        yield
    except BaseException:
        shutil.copytree(point, kept)
        raise
    finally:
        subprocess.run(["umount", point], check=True)


def _ballast(member: Member) -> Path:
    """What fills a member's disk."""
    return member.data.parent / "ballast"


def _jumping_clock(directory: Path) -> dict[str, str]:
    """Return the environment in which a process has a clock that CLOCK_ORDER can set."""
    library = directory / "clocklib.so"
    source = Path(__file__).parent / "lab" / "clocklib.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


if __name__ == "__main__":
    sys.exit(main())
