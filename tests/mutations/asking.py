"""Faults of whoever asks a server by TLS."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_CLIENT = ("tests/client/test_tls.py",)
_JOINING = ("tests/cluster/test_discovery.py",)

MUTATIONS = [
    Mutation(
        "what all sessions of a call hold is counted in one turn",
        "conure/cluster/serving.py",
        "                    if counted == COUNTED_AT_ONCE:\n",
        "                    if counted == 10 * COUNTED_AT_ONCE:\n",
        ("tests/cluster/test_forwarding.py",),
    ),
    Mutation(
        "a call is refused whose sessions' keys are still counted",
        "conure/cluster/serving.py",
        "                    if self._store.holdings(lock.session, lock.key) is None:\n"
        "                        return False\n",
        "                    if self._store.holdings(lock.session, lock.key) is None:\n"
        "                        return True\n",
        ("tests/cluster/test_forwarding.py",),
    ),
    Mutation(
        "a redirect leads from https to http",
        "conure/values.py",
        "    return None if is_https(server) and not is_https(leader) else leader\n",
        "    return leader\n",
        (*_CLIENT, *_JOINING),
    ),
    Mutation(
        "a stream of TLS that was cut is taken for whole",
        "conure/net/dialled.py",
        "                suppress_ragged_eofs=False,\n",
        "",
        _CLIENT,
    ),
    Mutation(
        "why a server has refused a certificate is lost with the connection",
        "conure/net/dialled.py",
        "            if not self._has_received:\n                self._socket.recv(1)\n",
        "            pass\n",
        ("tests/net/test_dialled.py",),
    ),
    Mutation(
        "a refusal at the end of a handshake leaves the outcome unknown",
        "conure/client/connections.py",
        "            if is_refusal(error):  # by TLS",
        "            if not error:  # by TLS",
        _CLIENT,
    ),
    Mutation(
        "a client waits for a certificate to become another one",
        "conure/client/calls.py",
        "            if self._untrusted.issuperset(servers):\n",
        "            if not self._untrusted:\n",
        _CLIENT,
    ),
    Mutation(
        "whoever has a certificate of the CA may be any server",
        "conure/clienttls.py",
        "        context.check_hostname = self._checks_names\n",
        "        context.check_hostname = False\n",
        _CLIENT,
    ),
    Mutation(
        "a CA that was renewed is never read again",
        "conure/clienttls.py",
        "            if stamps != self._stamps:\n",
        "            if stamps is None:\n",
        _CLIENT,
    ),
    Mutation(
        "an expired certificate is taken for one of another CA",
        "conure/tlswords.py",
        "    10: ",
        "    110: ",
        _CLIENT,
    ),
    Mutation(
        "a session is used with another context than its own",
        "conure/client/connections.py",
        "known is not None and known[0] is context else None",
        "known is None else None",
        _CLIENT,
    ),
    Mutation(
        "a founder of https is known by a base URL of http",
        "conure/cluster/founders.py",
        '    scheme = "https" if https else "http"\n',
        '    scheme = "http"\n',
        ("tests/cluster/test_founders.py",),
    ),
    Mutation(
        "a node that joins shows no certificate",
        "conure/security/asking.py",
        "    tls = ClientTls(ca, cert, key)\n",
        "    tls = ClientTls(ca)\n",
        ("tests/system/test_asking.py",),
    ),
    Mutation(
        "the probe is content with any answer",
        "conure/ops/probe.py",
        '    if words[1] != b"200":\n',
        '    if words[1] == b"":\n',
        ("tests/ops/test_probe.py",),
    ),
    Mutation(
        "the probe takes any authority's word",
        "conure/ops/probe.py",
        'files["ca"], files["cert"]',
        '"", files["cert"]',
        ("tests/ops/test_probe.py",),
    ),
    Mutation(
        "kvctl reads on as if an encrypted server had closed",
        "conure/ops/respclient.py",
        '            if "speaks TLS" in str(told):',
        '            if "speaks TLS" in told.code:',
        ("tests/system/test_asking.py",),
    ),
    Mutation(
        "kvctl lets a key live for longer than /kv does",
        "conure/ops/kvcommands.py",
        "    if seconds > _MAX_TTL:\n",
        "    if seconds < 0:\n",
        ("tests/ops/test_kvctl.py",),
    ),
]
