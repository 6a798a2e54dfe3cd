"""Faults of forming a cluster by a list, in every wing that has a part of it."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

STORIES = ("tests/cluster/test_forming.py",)
FACTS = ("tests/cluster/test_founders.py",)
HISTORIES = ("tests/sim/test_forming.py",)
FORMATIONS = ("tests/consensus/test_formation.py",)
WIRE = ("tests/peers/test_forming.py",)

MUTATIONS = [
    Mutation(
        "an answer to what was asked before counts as showing the same",
        "conure/cluster/forming.py",
        'found.digest == self._digest != "" and span == self._span',
        'found.digest == self._digest != ""',
        STORIES,
    ),
    Mutation(
        "whatever digest another founder shows counts",
        "conure/cluster/forming.py",
        'found.digest == self._digest != "" and span == self._span',
        'self._digest != "" and span == self._span',
        STORIES,
    ),
    Mutation(
        "what was shown goes on counting when the members have changed",
        "conure/cluster/forming.py",
        "            self._span += 1\n",
        "",
        STORIES,
    ),
    Mutation(
        "a founder that shows something else now still counts",
        "conure/cluster/forming.py",
        "        peer.agreed = self._span if is_agreed else 0\n",
        "        peer.agreed = self._span if is_agreed else peer.agreed\n",
        STORIES,
    ),
    Mutation(
        "one founder that shows the same is enough",
        "conure/cluster/forming.py",
        "        if formation is not None and all(\n",
        "        if formation is not None and any(\n",
        STORIES,
    ),
    Mutation(
        "the cluster of a former life is adopted",
        "conure/cluster/forming.py",
        "        if server is None or server.incarnation != own.incarnation:\n",
        "        if server is None:\n",
        STORIES,
    ),
    Mutation(
        "a cluster is adopted whose ID isn't that of its founders",
        "conure/cluster/forming.py",
        "        if cluster_id_of(formation) != found.cluster_id:\n",
        "        if not found.cluster_id:\n",
        STORIES,
    ),
    Mutation(
        "nobody adopts the cluster that it was formed with",
        "conure/cluster/forming.py",
        "        if formation is None or self._directory.identity.cluster_id:\n",
        "        if formation is None or self._digest != digest_of(formation):\n",
        STORIES,
    ),
    Mutation(
        "a node that has begun a cluster goes on showing a digest",
        "conure/cluster/forming.py",
        '        return self._digest if self.is_wanted else ""\n',
        "        return self._digest\n",
        STORIES,
    ),
    Mutation(
        "a cluster ID that found no room is never written",
        "conure/cluster/forming.py",
        '        """Ask who is due; write what waited for room. At every tick."""\n'
        "        self._settle()\n",
        '        """Ask who is due; write what waited for room. At every tick."""\n',
        STORIES,
    ),
    Mutation(
        "a node asks to be joined to whichever of two clusters comes first",
        "conure/cluster/forming.py",
        "        if len({shown.cluster_id for shown in met}) != 1:\n",
        "        if not met:\n",
        STORIES,
    ),
    Mutation(
        "questions never become rare",
        "conure/cluster/forming.py",
        "            peer.pause = min(1.5 * peer.pause, LONGEST_PAUSE)\n",
        "",
        STORIES,
    ),
    Mutation(
        "who asks is never asked back sooner",
        "conure/cluster/forming.py",
        "            self._hints[question.node_id] = hint\n            self._hurry(FIRST_PAUSE)\n",
        "            self._hints[question.node_id] = hint\n",
        STORIES,
    ),
    Mutation(
        "the questions of any number of strangers are remembered",
        "conure/cluster/forming.py",
        "            if len(self._hints) >= MAX_HINTS:\n                self._hints.clear()\n",
        "",
        STORIES,
    ),
    Mutation(
        "a node that is on its own list waits for itself",
        "conure/cluster/forming.py",
        "            self._meet_itself(address)\n            return\n",
        "            pass\n",
        STORIES,
    ),
    Mutation(
        "two nodes of one ID form a cluster",
        "conure/cluster/founders.py",
        "        if peer.node_id in places:\n",
        "        if peer.node_id in places and peer.cluster_id:\n",
        FACTS,
    ),
    Mutation(
        "any node may answer where another one is listed",
        "conure/cluster/founders.py",
        '        if listed[at] not in ("", peer.node_id):\n',
        "        if not listed:\n",
        FACTS,
    ),
    Mutation(
        "a node of a cluster is a founder",
        "conure/cluster/founders.py",
        "        if peer.cluster_id:\n",
        "        if not peer.node_id:\n",
        FACTS,
    ),
    Mutation(
        "founders may differ in the quorum size",
        "conure/cluster/founders.py",
        "        if peer.quorum_size != own.quorum_size:\n",
        "        if not peer.node_id:\n",
        FACTS,
    ),
    Mutation(
        "a founder may say that it is elsewhere than it is listed",
        "conure/cluster/founders.py",
        '        if peer.raft_address not in ("", at):\n',
        "        if not at:\n",
        FACTS,
    ),
    Mutation(
        "founders may list this node at different addresses",
        "conure/cluster/founders.py",
        "    if len(addresses) > 1:\n",
        "    if len(addresses) > len(listed) + 1:\n",
        FACTS,
    ),
    Mutation(
        "a founder may lack what this node lists",
        "conure/cluster/founders.py",
        "    if unknown:\n",
        "    if unknown and not listed:\n",
        FACTS,
    ),
    Mutation(
        "arbiters alone begin a cluster",
        "conure/consensus/formation.py",
        "    if not data:\n",
        "    if not count:\n",
        FORMATIONS,
    ),
    Mutation(
        "a quorum size is taken that can't be had",
        "conure/consensus/formation.py",
        "    if members.quorum_size > data:\n",
        "    if members.quorum_size > count:\n",
        FORMATIONS,
    ),
    Mutation(
        "a learner is a founder",
        "conure/consensus/formation.py",
        'if server.suffrage != "voter" or not server.incarnation:',
        "if not server.incarnation:",
        FORMATIONS,
    ),
    Mutation(
        "a founder needs no address",
        "conure/consensus/formation.py",
        "        if not is_address(server.raft_address):\n",
        "        if not server.id:\n",
        FORMATIONS,
    ),
    Mutation(
        "the digest of a formation is taken of something else",
        "conure/consensus/formation.py",
        "sha256(_TAG + formation.encode())",
        "sha256(formation.encode())",
        FORMATIONS,
    ),
    Mutation(
        "a node that forms may list any number of peers",
        "conure/peers/forming.py",
        "    if not isinstance(peers, list) or len(peers) >= MAX_FOUNDERS:\n",
        "    if not isinstance(peers, list):\n",
        WIRE,
    ),
    Mutation(
        "what is no address may be on a list",
        "conure/peers/forming.py",
        "all(isinstance(peer, str) and is_address(peer) for peer in peers)",
        "all(isinstance(peer, str) for peer in peers)",
        WIRE,
    ),
    Mutation(
        "another version of how a cluster is formed is taken for this one",
        "conure/peers/forming.py",
        'fields.get("protocol") != PROTOCOL or fields.get("forming") != _VERSION',
        'fields.get("protocol") != PROTOCOL',
        WIRE,
    ),
    Mutation(
        "a question of a node that forms is answered only where it may connect",
        "conure/peers/accepting.py",
        '            if hello.get("kind") == FORMING:\n',
        '            if hello.get("kind") == FORMING and "to" in hello:\n',
        WIRE,
    ),
    Mutation(
        "a question to who forms leaves its socket open",
        "conure/peers/dialling.py",
        '                found = Unavailable(f"doesn\'t answer: {sockets.reason(error)}")\n'
        "            finally:\n                self.hang_up(sock)\n",
        '                found = Unavailable(f"doesn\'t answer: {sockets.reason(error)}")\n',
        WIRE,
    ),
    Mutation(
        "a node whose log has begun a cluster takes another one's ID",
        "conure/cluster/greetings.py",
        "        if not mine.cluster_id and self._raft.configuration.servers:\n",
        "        if not mine.node_id:\n",
        STORIES,
    ),
    Mutation(
        "a formed cluster that a crash left without its ID gets one of its own",
        "conure/cluster/opening.py",
        "    if len(founders.servers) > 1:\n",
        "    if len(founders.servers) > 99:\n",
        STORIES,
    ),
    Mutation(
        "a formation that came to nothing is shown as that of the cluster",
        "conure/cluster/opening.py",
        '    return formation if cluster_id in ("", cluster_id_of(formation)) else None\n',
        "    return formation\n",
        STORIES,
    ),
    Mutation(
        "a formation's bytes aren't checked",
        "conure/storage/datadir.py",
        "        if content[: _FORMATION_HEADER.size] != _formation_header(formation):\n",
        "        if not content:\n",
        ("tests/storage/test_datadir.py",),
    ),
    Mutation(
        "a formation is begun in term 0",
        "raft.py",
        "        self._become_follower(hard_state.term)\n        self._log.append([entry])\n",
        "        self._log.append([entry])\n",
        STORIES,
    ),
]
