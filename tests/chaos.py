"""Faults at random against a real cluster, for as long as asked: ``python -m tests.chaos``.

Rounds of some seconds each. In a round, clients write and read while members are killed, paused,
stopped, moved, wiped, removed and cut off, several at a time and often more than a quorum can
bear. At its end everything is healed, and then: the cluster serves within seconds, all members
hold the same, and the whole history is linearizable.

The network is cut in namespaces where that is possible (root and ``ip``). A failure prints the
round with its faults and every log, and keeps the directories; the seed repeats the faults, but
not their exact moments: what real processes do is not repeatable, tests/sim.py is for that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster import Cluster, Member, Workload, wait_until
from tests.netns import Lab, why_not

FLAGS = (
    "--log-segment-bytes=64KiB",
    "--checkpoint-entries=200",
    "--checkpoint-log-bytes=4KiB",
    "--barrier-timeout=1s",
    "--write-timeout=2s",
)
ROUND_SECONDS = 8.0


class Chaos:
    """A cluster and what is done to it; one object a round."""

    def __init__(self, cluster: Cluster, lab: Lab | None, choice: random.Random) -> None:
        self._cluster = cluster
        self._lab = lab
        self._choice = choice
        self.done: list[str] = []
        self._wiped: Member | None = None
        self._faults: list[Callable[[Member], None]] = [
            self._kill, self._kill, self._start, self._start, self._pause, self._resume,
            self._stop, self._move, self._hand_over, self._remove, self._wipe,
        ]  # fmt: skip
        if lab is not None:
            self._faults += [self._cut, self._cut, self._cut_one_way, self._heal]

    def act(self) -> None:
        """Do one thing to one member."""
        member = self._choice.choice(self._cluster.members)
        fault = self._choice.choice(self._faults)
        self.done.append(f"{fault.__name__.strip('_')} {member.name}")
        fault(member)

    def end(self) -> None:
        """Undo everything, and see that the cluster comes back with all its members."""
        if self._lab is not None:
            self._lab.heal()
        for member in self._cluster.members:
            if member.is_paused:
                member.resume()
            if not member.is_running:
                member.launch()
        for member in self._cluster.members:
            member.wait_until_listening()
        if self._wiped is not None:
            wait_until(functools.partial(self._is_removed, self._wiped), 60)
        for member in self._cluster.members:
            wait_until(functools.partial(self._is_member, member), 60)
        self._cluster.wait_until_voters(len(self._cluster.members))

    def _is_member(self, member: Member) -> bool:
        """Have a member taken back that was removed; return whether it is in."""
        leader = self._cluster.leader()
        if leader.servers().get(member.name, {}).get("address") == member.raft_address:
            return bool(member.status().get("leader"))
        leader.post("/join", {"ID": member.name, "RaftAddr": member.raft_address})
        return False

    def _is_removed(self, member: Member) -> bool:
        """Have a wiped member removed, in case it was not when its disk was lost."""
        return self._cluster.leader().post("/remove", {"ID": member.name}).status in (200, 404)

    # -- the faults ------------------------------------------------------------------------------

    def _kill(self, member: Member) -> None:
        if member.is_running:
            member.kill()

    def _start(self, member: Member) -> None:
        if not member.is_running:
            member.launch()

    def _pause(self, member: Member) -> None:
        if member.is_running and not member.is_paused:
            member.pause()

    def _resume(self, member: Member) -> None:
        if member.is_paused:
            member.resume()

    def _stop(self, member: Member) -> None:
        if member.is_listening and not member.is_paused:
            status = member.terminate()
            assert status == 0, f"{member.name} stopped with status {status}"

    def _move(self, member: Member) -> None:
        if not member.is_running and self._lab is None:
            member.move()
            member.launch()

    def _hand_over(self, member: Member) -> None:
        self._ask("/leader", member)

    def _remove(self, member: Member) -> None:
        if len(self._voters()) > 3:
            self._ask("/remove", member)

    def _wipe(self, member: Member) -> None:
        """Lose a disk, once a round: two at a time might lose what only those two had."""
        all_run = len(self._cluster.running) == len(self._cluster.members)
        if all_run and len(self._voters()) > 3 and self._wiped is None:
            self._wiped = member
            member.kill()
            member.wipe()
            self._ask("/remove", member)

    def _cut(self, member: Member) -> None:
        other = self._choice.choice(self._cluster.members)
        if self._lab is not None and other is not member:
            self._lab.cut(self._number(member), self._number(other))

    def _cut_one_way(self, member: Member) -> None:
        other = self._choice.choice(self._cluster.members)
        if self._lab is not None and other is not member:
            self._lab.cut_one_way(self._number(member), self._number(other))

    def _heal(self, member: Member) -> None:
        if self._lab is not None:
            self._lab.heal()

    def _number(self, member: Member) -> int:
        return self._cluster.members.index(member) + 1

    def _voters(self) -> set[str]:
        for member in self._cluster.running:
            if member.status().get("is_leader"):
                return member.voters()
        return set()

    def _ask(self, path: str, member: Member) -> None:
        """Ask whoever leads; the answer does not matter."""
        body = json.dumps({"ID": member.name}).encode()
        for asked in self._cluster.running:
            if asked.status().get("is_leader"):
                with contextlib.suppress(OSError):
                    asked.request("POST", path, body, timeout=2)


def main() -> int:
    """Run rounds until the time is up; return 1 at the first failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--read-mode", choices=["index", "lease"], default="index")
    options = parser.parse_args()
    reason = why_not()
    network = f"not cut ({reason})" if reason else "cut in namespaces"
    print(f"seed {options.seed}, {options.nodes} nodes, network {network}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="conuredb-chaos-"))
    deadline = time.monotonic() + 60 * options.minutes
    choice = random.Random(options.seed)
    flags = (*FLAGS, f"--read-mode={options.read_mode}")
    with contextlib.ExitStack() as stack:
        lab = None
        if not reason:
            lab = stack.enter_context(contextlib.closing(Lab(options.nodes)))
            stack.enter_context(lab.enter())
        cluster = stack.enter_context(Cluster(directory, *flags, lab=lab))
        cluster.start(options.nodes)
        for number in itertools.count(1):
            chaos = Chaos(cluster, lab, choice)
            try:
                run_round(cluster, chaos, choice, number)
            except BaseException:
                print(f"round {number} failed after: {', '.join(chaos.done)}")
                print(f"the directories are in {directory}", flush=True)
                raise
            if time.monotonic() > deadline:
                break
    return 0


def run_round(cluster: Cluster, chaos: Chaos, choice: random.Random, number: int) -> None:
    """Faults under load, the end of all faults, the checks."""
    with Workload(cluster, clients=6, keys=5, prefix=b"%d" % number) as load:
        end = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < end:
            chaos.act()
            time.sleep(choice.uniform(0, 0.6))
        healed_at = time.monotonic()
        chaos.end()
        load.wait_for_writes(50)
        took = time.monotonic() - healed_at
    load.check()
    cluster.wait_until_equal()
    for member in cluster.members:
        assert "Traceback" not in member.whole_text, f"a traceback in the log of {member.name}"
    unknown = sum(operation.returned is None for operation in load.history)
    print(
        f"round {number}: {len(load.history):,} operations, {unknown} of unknown outcome, "
        f"{len(chaos.done)} faults, {len(load.leaders)} terms with a leader, "
        f"well after {took:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
