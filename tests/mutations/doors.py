"""Faults of protected mode, of origins that may ask, and of rates."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "doors: who comes from the address that it asks is of another machine",
        "conure/protection.py",
        "    return ip.is_loopback or ip == _ip(local)",
        "    return ip.is_loopback",
        ("tests/test_protection.py",),
    ),
    Mutation(
        "doors: everybody is of this machine",
        "conure/protection.py",
        "    return ip.is_loopback or ip == _ip(local)",
        "    return True",
        ("tests/test_protection.py",),
    ),
    Mutation(
        "doors: who has gone is let in",
        "conure/protection.py",
        "            return True  # it has gone, wherever it came from",
        "            return False",
        ("tests/test_protection.py",),
    ),
    Mutation(
        "doors: the log hears of each that is barred",
        "conure/protection.py",
        "        if now - self._told_at >= _TOLD_AGAIN:",
        "        if True:",
        ("tests/test_protection.py",),
    ),
    Mutation(
        "doors: whoever is barred may ask with any method where it may ask at all",
        "conure/http/guarded.py",
        "is_for_all = request.method in READS and request.path in self.front.door.always",
        "is_for_all = request.path in self.front.door.always",
        ("tests/http/test_guarded.py",),
    ),
    Mutation(
        "doors: whoever is barred may send a body",
        "conure/http/guarded.py",
        "        if not is_for_all or request.body:",
        "        if not is_for_all:",
        ("tests/http/test_guarded.py",),
    ),
    Mutation(
        "rates: a body in chunks costs nothing",
        "conure/http/guarded.py",
        "                self.visitor.owe(len(body.content) - before)",
        "                pass",
        ("tests/http/test_guarded.py",),
    ),
    Mutation(
        "rates: probes are counted",
        "conure/http/guarded.py",
        "        if request.method in READS and request.path in self.front.probes:\n"
        "            return True\n",
        "",
        ("tests/http/test_guarded.py",),
    ),
    Mutation(
        "rates: a run of commands counts as one",
        "conure/resp/guarded.py",
        "        allowed = self.visitor.take(run.size, size)",
        "        allowed = self.visitor.take(1, size) and run.size",
        ("tests/resp/test_guarded.py",),
    ),
    Mutation(
        "rates: what is refused of a run is left out in silence",
        "conure/resp/guarded.py",
        "        self.backlog.append(refused)\n",
        "",
        ("tests/resp/test_guarded.py",),
    ),
    Mutation(
        "rates: buckets fill without an end",
        "conure/net/rates.py",
        "buckets.requests = min(self._requests, buckets.requests + elapsed * self._requests)",
        "buckets.requests += elapsed * self._requests",
        ("tests/net/test_rates.py",),
    ),
    Mutation(
        "rates: all clients are remembered",
        "conure/net/rates.py",
        "            if len(self._buckets) > self._most:",
        "            if False:",
        ("tests/net/test_rates.py",),
    ),
    Mutation(
        "rates: a certificate's name is not asked for again",
        "conure/net/rates.py",
        '        return f"={principal}" if principal else self._address',
        "        return self._address",
        ("tests/net/test_rates.py",),
    ),
    Mutation(
        "border: a cluster across machines is cut off by an upgrade",
        "conure/cluster/border.py",
        "        return self._is_guarded and not self._is_across",
        "        return self._is_guarded",
        ("tests/cluster/test_border.py",),
    ),
    Mutation(
        "border: the node's own address makes a cluster reach across",
        "conure/cluster/border.py",
        "            if server.id != node_id and elsewhere(server.raft_address)",
        "            if elsewhere(server.raft_address)",
        ("tests/cluster/test_border.py",),
    ),
    Mutation(
        "border: a node of another machine is added",
        "conure/cluster/border.py",
        "        if self.is_closed and self._elsewhere(address):\n            raise",
        "        if False:\n            raise",
        ("tests/cluster/test_border.py",),
    ),
]
