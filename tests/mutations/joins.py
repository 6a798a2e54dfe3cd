"""Faults of joins over the Raft port, in every wing that has a part of it."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

WIRE = ("tests/peers/test_joins.py",)
STORIES = ("tests/cluster/test_applicants.py",)
ASKING = ("tests/cluster/test_discovery.py",)

MUTATIONS = [
    Mutation(
        "a node may ask to be added at what is no address",
        "conure/peers/joins.py",
        "    if not is_address(raft_address):\n",
        "    if not raft_address:\n",
        WIRE,
    ),
    Mutation(
        "a refusal of who asked over the Raft port is taken for a yes",
        "conure/peers/joins.py",
        "    if not added:\n",
        "    if not added and not why:\n",
        WIRE,
    ),
    Mutation(
        "who has proved nothing is added where others prove themselves",
        "conure/peers/proving.py",
        "return self.mode == OPEN and (self.takes_anybody or",
        "return self.mode != REQUIRE and (self.takes_anybody or",
        WIRE,
    ),
    Mutation(
        "whoever reaches the Raft port may ask to be added",
        "conure/peers/accepting.py",
        "            if not self._security.lets_apply(caller.link, caller.sock):  # (P4)\n",
        "            if not self._security:\n",
        WIRE,
    ),
    Mutation(
        "whoever has gone was on this machine",
        "conure/peers/sockets.py",
        "        return False  # it has gone\n",
        "        return True  # it has gone\n",
        WIRE,
    ),
    Mutation(
        "any number of nodes that ask to be added have a thread each",
        "conure/peers/accepting.py",
        "        if not self._applicants.acquire(blocking=False):\n",
        "        if self._applicants.acquire(blocking=False) and False:\n",
        WIRE,
    ),
    Mutation(
        "a stop waits for what is decided about a node that asks to be added",
        "conure/peers/accepting.py",
        "            if stopping.is_set() or monotonic() > deadline:\n",
        "            if monotonic() > deadline:\n",
        WIRE,
    ),
    Mutation(
        "who waits for an answer over the Raft port can't be stopped",
        "conure/peers/dialling.py",
        "        for end in ends:\n            sockets.shut(end.sock)\n\n    def close",
        "        for end in ends:\n            assert end.sock\n\n    def close",
        WIRE,
    ),
    Mutation(
        "a follower that is asked over the Raft port refuses, though its leader would not",
        "conure/cluster/node.py",
        "            if isinstance(error, NotLeader):\n                self.pass_on(",
        "            if isinstance(error, NotLeader) and not reply:\n                self.pass_on(",
        STORIES,
    ),
    Mutation(
        "a node that asks for itself is known by its name alone",
        "conure/cluster/node.py",
        "            is_itself = applicant.incarnation == self._directory.identity.incarnation\n",
        "            is_itself = bool(applicant.incarnation)\n",
        STORIES,
    ),
    Mutation(
        "a seed without a scheme is asked by HTTP",
        "conure/cluster/joining.py",
        '                if "://" in seed:\n',
        "                if seed:\n",
        ASKING,
    ),
    Mutation(
        "who was answered 403 isn't told the way on",
        "conure/cluster/joining.py",
        "            if status == HTTPStatus.FORBIDDEN:\n",
        "            if status == HTTPStatus.UNAUTHORIZED:\n",
        ASKING,
    ),
    Mutation(
        "a node that forms asks the cluster it has found by HTTP alone",
        "conure/cluster/forming.py",
        "filter(None, [*met, *urls])",
        "filter(None, urls)",
        ("tests/cluster/test_forming.py",),
    ),
]
