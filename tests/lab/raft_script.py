"""Scripts of consensus: a command, a line of dashes, and the trace that is expected of it.

A script in testdata/raft/ plays on a :class:`~tests.lab.raft_cluster.Cluster`. A line that begins
with ``#`` is a comment; a block is one command, ``----``, what it shows, and an empty line::

    propose a hello
    ----
    a→b APPEND term=2 log=2/2 commit=2 [3/2:hello]

======================== ==================================================================
option name value        a RaftOption of the nodes to come
nodes a b [x=arbiter]    found a cluster; electing takes 3 to 5 ticks
new d                    start a node with an empty disk
elect a                  make a the leader of all it reaches, without a trace
campaign a, tick a [n]   a stands for election; n ticks of time
tick-all [n]             n ticks for all, delivering after each
propose a one two        one batch of commands
read a name              a linearizable read
deliver [a→b] [TYPE]     deliver all such messages, and what follows from them, in order
drop [a→b] [TYPE]        lose all such messages that are on their way
isolate a b, heal        cut the ways between these and the others; mend all
manual-sync a, sync a    hold syncs back; sync
crash a [keep], start a  lose (or keep) what was not synced; start again from disk
cut a                    checkpoint and cut the log
add-learner a d          and stage, promote, transfer: ask leader a for it
remove a d [force]       ask leader a to remove d
unreachable a b          tell a that its messages to b are lost
status, log a, progress a what the nodes look like
======================== ==================================================================

``python -m tests.lab.raft_script --rewrite [file ...]`` writes what happens into the files; read
the difference before keeping it. ``CONURE_REWRITE=1`` makes the test do the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from conure.consensus.members import Configuration
from conure.consensus.messages import Message
from conure.errors import ConureError
from raft import RaftOptions
from tests.lab.raft_cluster import Cluster, Node, describe_entries, describe_server, server

SCRIPTS = Path(__file__).parents[1] / "testdata" / "raft"


def play(text: str) -> str:
    """Return the script with the trace that it gives now."""
    script = _Script()
    output: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        output.append(line)
        if not line or line.startswith("#"):
            continue
        if next(lines) != "----":
            raise ValueError(f"no ---- behind {line!r}")
        output += ["----", *script.run(line), ""]
        for expected in lines:
            if not expected:
                break
    return "\n".join(output).rstrip("\n") + "\n"


class _Script:
    def __init__(self) -> None:
        self.cluster: Cluster
        self.trace: list[str] = []
        self.options = RaftOptions("", election_ticks=3)

    def run(self, line: str) -> list[str]:
        """Run one command and return what it shows."""
        self.trace = []
        name, *arguments = line.split()
        command: Callable[..., None] = getattr(self, "do_" + name.replace("-", "_"))
        try:
            command(*arguments)
        except ConureError as refusal:
            self.trace.append(f"{type(refusal).__name__}: {refusal}")
        return self.trace or ["ok"]

    def node(self, name: str) -> Node:
        return self.cluster[name]

    def do_option(self, name: str, value: str) -> None:
        values: dict[str, Any] = {name: int(value)}
        self.options = replace(self.options, **values)

    def do_nodes(self, *names: str) -> None:
        arbiters = [name.removesuffix("=arbiter") for name in names if name.endswith("=arbiter")]
        voters = [name for name in names if not name.endswith("=arbiter")]
        self.cluster = Cluster(*voters, arbiters=arbiters, options=self.options)
        self.cluster.trace = self.trace_line
        self.do_status()

    def trace_line(self, line: str) -> None:
        self.trace.append(line)

    def do_new(self, name: str) -> None:
        self.cluster.add(name).start()

    def do_elect(self, name: str) -> None:
        self.cluster.elect(name)
        self.trace = []

    def do_campaign(self, name: str) -> None:
        self.node(name).campaign()

    def do_tick(self, name: str, count: str = "1") -> None:
        self.node(name).tick(int(count))

    def do_tick_all(self, count: str = "1") -> None:
        self.cluster.tick_all(int(count))

    def do_propose(self, name: str, *commands: str) -> None:
        self.node(name).propose(*(command.encode() for command in commands))

    def do_read(self, name: str, context: str) -> None:
        self.node(name).read(context)

    def do_deliver(self, *wanted: str) -> None:
        network = self.cluster.network
        position = 0
        while position < len(network):
            if _matches(network[position].message, wanted):
                self.cluster.deliver(network.pop(position))
                position = 0
            else:
                position += 1

    def do_drop(self, *wanted: str) -> None:
        lost = self.cluster.drop(lambda message: _matches(message, wanted))
        self.trace.append(f"{len(lost)} lost")

    def do_isolate(self, *names: str) -> None:
        self.cluster.isolate(*names)

    def do_heal(self) -> None:
        self.cluster.heal()

    def do_manual_sync(self, name: str) -> None:
        self.node(name).manual_sync = True

    def do_sync(self, name: str) -> None:
        self.node(name).sync()

    def do_crash(self, name: str, keep: str = "") -> None:
        self.node(name).crash(keep=keep == "keep")

    def do_start(self, name: str) -> None:
        self.node(name).start()

    def do_cut(self, name: str) -> None:
        self.node(name).cut()

    def do_add_learner(self, leader: str, name: str) -> None:
        node = self.node(leader)
        node.change(lambda: node.raft.add_learner(server(name)))

    def do_stage(self, leader: str, name: str) -> None:
        node = self.node(leader)
        node.change(lambda: node.raft.add_learner(server(name, "staging")))

    def do_promote(self, leader: str, name: str) -> None:
        node = self.node(leader)
        node.change(lambda: node.raft.promote(name))

    def do_remove(self, leader: str, name: str, force: str = "") -> None:
        node = self.node(leader)
        node.change(lambda: node.raft.remove(name, force=force == "force"))

    def do_transfer(self, leader: str, to: str) -> None:
        node = self.node(leader)
        node.raft.transfer_leadership(to)
        node.drive()

    def do_unreachable(self, leader: str, name: str) -> None:
        node = self.node(leader)
        node.raft.report_unreachable(name)
        node.drive()

    def do_status(self) -> None:
        for node in self.cluster.nodes.values():
            raft = node.raft
            if node.up:
                self.trace.append(
                    f"{node.id} {raft.state} term={raft.term} vote={raft.vote or '-'} "
                    f"leader={raft.leader_id or '-'} commit={raft.commit_index} "
                    f"last={raft.last_index}/{raft.last_term} {_members(raft.configuration)}"
                )
            else:
                self.trace.append(f"{node.id} down")

    def do_log(self, name: str) -> None:
        storage = self.node(name).storage
        behind = f"behind {storage.snapshot.index}/{storage.snapshot.term} "
        self.trace.append(behind + describe_entries(storage.log))

    def do_progress(self, name: str) -> None:
        for other, progress in self.node(name).raft.progress.items():
            self.trace.append(
                f"{other} {progress.state} match={progress.match} next={progress.next} "
                f"inflight={list(progress.inflight)}"
            )


def _matches(message: Message, wanted: tuple[str, ...]) -> bool:
    way = f"{message.sender}→{message.to}"
    return all(re.fullmatch(want.replace("*", ".*"), way) if "→" in want
               else want == message.type.name for want in wanted)  # fmt: skip


def _members(configuration: Configuration) -> str:
    return "{" + " ".join(map(describe_server, configuration.servers)) + "}"


def rewrite(paths: list[Path]) -> None:
    """Write what happens into the scripts."""
    for path in paths:
        path.write_text(play(path.read_text()))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--rewrite"]:
        sys.exit("usage: python -m tests.lab.raft_script --rewrite [file ...]")
    rewrite([Path(name) for name in sys.argv[2:]] or sorted(SCRIPTS.glob("*.txt")))
