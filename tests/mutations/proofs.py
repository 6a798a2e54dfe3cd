"""Faults in what nodes prove to each other: the secret, certificates, sealed streams."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_PROVING = ("tests/peers/test_proving.py",)
_SEALED = ("tests/peers/test_sealedlink.py",)
_SECRET = ("tests/security/test_secret.py",)

MUTATIONS = [
    Mutation(
        "who proves nothing is let in where proofs are required",
        "conure/peers/proving.py",
        "        if self.mode == REQUIRE:  # (P1)\n",
        "        if self.mode == REQUIRE and first != b'\\0':  # (P1)\n",
        _PROVING,
    ),
    Mutation(
        "a stranger's proof is as good as any",
        "conure/peers/proving.py",
        "    secret = who_proved(secrets, DIALLER, nonces, shown)\n",
        "    secret = who_proved(secrets, DIALLER, nonces, shown) or secrets[0]\n",
        _PROVING,
    ),
    Mutation(
        "who is dialled need not prove anything",
        "conure/peers/proving.py",
        "    if who_proved([secret], ACCEPTOR, nonces, shown) is None:\n",
        "    if not shown:\n",
        _PROVING,
    ),
    Mutation(
        "a certificate proves any node",
        "conure/peers/proving.py",
        "    if link.proof == CERTIFICATE and node_id not in link.names:  # (P2)\n",
        "    if link.proof == CERTIFICATE and not link.names:  # (P2)\n",
        _PROVING,
    ),
    Mutation(
        "who is sought may be shown by another node's certificate",
        "conure/peers/dialling.py",
        "                if node_id:\n                    check_name(link, node_id)  # (P2)\n",
        "",
        _PROVING,
    ),
    Mutation(
        "who answers a question may have another node's certificate",
        "conure/peers/dialling.py",
        "                check_name(link, found.node_id)  # (P2)\n",
        "",
        _PROVING,
    ),
    Mutation(
        "who has dialled may have another node's certificate",
        "conure/peers/accepting.py",
        "        check_name(caller.link, node_id)  # (P2)\n",
        "",
        _PROVING,
    ),
    Mutation(
        "who has proved itself is a stranger until its greeting, and after it",
        "conure/peers/accepting.py",
        "        if link.proof:\n            with self._lock:\n",
        "        if not link:\n            with self._lock:\n",
        _PROVING,
    ),
    Mutation(
        "a node waits for a proof without end",
        "conure/peers/proving.py",
        "    theirs = _nonce_of(sockets.read_exactly(link, HELLO_BYTES, deadline))\n",
        "    theirs = _nonce_of(sockets.read_exactly(link, HELLO_BYTES, deadline + 3600))\n",
        _PROVING,
    ),
    Mutation(
        "it is logged again and again that somebody is let in without a proof",
        "conure/peers/news.py",
        "            self._told.add(what)\n",
        "            self._told.discard(what)\n",
        _PROVING,
    ),
    Mutation(
        "what was altered is handed over",
        "conure/peers/sealedlink.py",
        "if not record or not self._receiving.proves(record):",
        "if not record or self._receiving.proves(record) is None:",
        _SEALED,
    ),
    Mutation(
        "a stream that was cut off has ended in order",
        "conure/peers/sealedlink.py",
        "            self._is_broken = True\n            raise ConnectionResetError(_CUT)\n",
        "            return\n",
        _SEALED,
    ),
    Mutation(
        "what comes after the end of a stream is passed over",
        "conure/peers/sealedlink.py",
        "        if self._has_ended and at < held:\n",
        "        if self._has_ended and at > held:\n",
        _SEALED,
    ),
    Mutation(
        "a sealed record that was not taken as a whole is sealed again",
        "conure/peers/sealedlink.py",
        "            done = self._left_size\n            if not self._flush():\n",
        "            self._left = memoryview(b'')\n            if self._flush() is None:\n",
        _SEALED,
    ),
    Mutation(
        "a record may be of any length",
        "conure/security/secret.py",
        "size + RECORD_BYTES if size <= MAX_PAYLOAD else -1",
        "size + RECORD_BYTES",
        _SECRET,
    ),
    Mutation(
        "a record may come twice",
        "conure/security/secret.py",
        "        tag.update(hashed.digest())\n        self._counter += 1\n        return hmac",
        "        tag.update(hashed.digest())\n        return hmac",
        _SECRET,
    ),
    Mutation(
        "both directions have one key",
        "conure/security/secret.py",
        "Seal(both[:_HASH_BYTES]), Seal(both[_HASH_BYTES:])",
        "Seal(both[:_HASH_BYTES]), Seal(both[:_HASH_BYTES])",
        _SECRET,
    ),
    Mutation(
        "what one end has shown proves the other one",
        "conure/security/secret.py",
        "hmac.digest(secret, VERSION + role + nonces",
        "hmac.digest(secret, VERSION + DIALLER + nonces",
        _SECRET,
    ),
    Mutation(
        "a short secret will do",
        "conure/security/secret.py",
        "if secret and len(secret) < _LEAST_BYTES:",
        "if secret and len(secret) < 16:",
        _SECRET,
    ),
    Mutation(
        "a node's certificate is asked of nobody who dials it",
        "conure/security/nodes.py",
        'ServerTls(cert, key, ca, "require", "1.3")',
        'ServerTls(cert, key, ca, "request", "1.3")',
        ("tests/security/test_nodes.py",),
    ),
    Mutation(
        "a secret is read once",
        "conure/security/nodes.py",
        "    watcher.add(read_again.look)\n",
        "",
        ("tests/security/test_nodes.py",),
    ),
]
