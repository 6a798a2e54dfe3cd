"""The cluster secret: a file that all nodes share, and what it proves and seals.

The file has one secret a line, each of 32 bytes at least, and ends wherever it likes. The first one
is used when this node dials, and any of them is accepted from others: that is how a secret is
changed without a pause. Surrounding blanks and empty lines don't count. Nothing of a secret is ever
logged or told, not even its length.

**Proof.** Both ends of a connection show that they hold the secret and say nothing else before. D
has dialled, A has accepted; ``V`` is the version, ``43 44 42 01`` ("CDB", 1)::

    D to A   offset 0: V (4)    4: nonce D (32)
    A to D   offset 0: V (4)    4: nonce A (32)
    D to A   HMAC-SHA-256(secret, V ‖ "D" ‖ nonce D ‖ nonce A)  (32)
    A to D   HMAC-SHA-256(secret, V ‖ "A" ‖ nonce D ‖ nonce A)  (32)

What one end shows is no proof of the other one, nor of any other connection: role and both nonces
are in it. A proves itself by the very secret that D did.

**Keys.** One for each direction, by HKDF-SHA-256 (RFC 5869)::

    PRK      = HKDF-Extract(salt = nonce D ‖ nonce A, IKM = secret)
    key D, A = HKDF-Expand(PRK, V ‖ "keys of what D sends, and A", 64), 32 bytes each

**Records.** All that follows is sealed by the key of its direction. Numbers are big-endian::

       0    4   length of the payload, 65536 at most; 0: nothing more will come
       4    n   payload
     4+n   16   HMAC-SHA-256(key, counter (8) ‖ length (4) ‖ payload), its first half

    "hi", as the first record of key 00 01 … 1f:
    00000002 6869 ecc9b5e4700749c39a559fcaac6aa3b7

The counter is 0 for the first record and travels nowhere: a record that is altered, left out, sent
twice or in another place, or comes from the other direction fails. The seal hides nothing.

It proves who holds the secret, and not which node that is. Functions and objects without a lock:
each :class:`Seal` belongs to one thread at a time, and any thread may call anything else.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

from conure.security.reloading import GivenFile

__all__ = [
    "ACCEPTOR",
    "DIALLER",
    "HELLO_BYTES",
    "MAX_PAYLOAD",
    "NONCE_BYTES",
    "PROOF_BYTES",
    "RECORD_BYTES",
    "VERSION",
    "Nonces",
    "Seal",
    "expand",
    "extract",
    "prove",
    "seals_of",
    "secrets_in",
    "who_proved",
]

VERSION: Final = b"CDB\x01"
"""The first bytes that each end says."""

NONCE_BYTES: Final = 32
HELLO_BYTES: Final = len(VERSION) + NONCE_BYTES
PROOF_BYTES: Final = 32

DIALLER: Final = b"D"
ACCEPTOR: Final = b"A"
"""The roles of the two ends."""

MAX_PAYLOAD: Final = 64 << 10
"""Bytes of a record's payload."""

RECORD_BYTES: Final = 20
"""What a record has beside its payload."""

_LEAST_BYTES: Final = 32  # of a secret
_MOST_SECRETS: Final = 8  # of a file: each stranger's proof is held against all of them
_TAG_BYTES: Final = 16
_HASH_BYTES: Final = 32
_BLOCK_BYTES: Final = 64  # of SHA-256
_COUNTER: Final = Struct(">Q")
_LENGTH: Final = Struct(">I")
_BEGUN: Final = Struct(">QI")  # counter, length: what is hashed begins so
_KEYS: Final = b"keys of what D sends, and A"
assert _LENGTH.size + _TAG_BYTES == RECORD_BYTES
assert sha256().block_size == _BLOCK_BYTES


# -- the file --------------------------------------------------------------------------------------


def secrets_in(file: GivenFile) -> tuple[bytes, ...]:
    """Return the secrets of a file, the one for dialling first.

    Raises ConfigError, which names the setting and where it was given, and nothing of a secret.
    """
    secrets: list[bytes] = []
    for number, line in enumerate(file.read().split(b"\n"), 1):
        secret = line.strip()
        if secret and len(secret) < _LEAST_BYTES:
            raise file.error(
                f"has a line {number} that is shorter than {_LEAST_BYTES} bytes; make a secret by: "
                "openssl rand -hex 32"
            )
        if secret and secret not in secrets:
            secrets.append(secret)
        if len(secrets) > _MOST_SECRETS:
            raise file.error(
                f"has more than {_MOST_SECRETS} secrets; take out those that nobody uses any more"
            )
    if not secrets:
        raise file.error(f"has no secret in it; make one: openssl rand -hex 32 > {file.path}")
    return tuple(secrets)


# -- proofs and keys -------------------------------------------------------------------------------


class Nonces(NamedTuple):
    """What both ends of a connection have drawn."""

    dialler: bytes
    acceptor: bytes


def prove(secret: bytes, role: bytes, nonces: Nonces) -> bytes:
    """Return what shows that the end with that *role* holds the secret."""
    return hmac.digest(secret, VERSION + role + nonces.dialler + nonces.acceptor, "sha256")


def who_proved(secrets: Sequence[bytes], role: bytes, nonces: Nonces, shown: bytes) -> bytes | None:
    """Return the secret by which the other end, in that *role*, has proved itself; None: by none.

    All are compared, each in constant time.
    """
    found = None
    for secret in secrets:
        if hmac.compare_digest(prove(secret, role, nonces), shown):
            found = secret
    return found


def extract(salt: bytes, material: bytes) -> bytes:
    """HKDF-Extract of RFC 5869 section 2.2, by SHA-256."""
    return hmac.digest(salt or bytes(_HASH_BYTES), material, "sha256")


def expand(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand of RFC 5869 section 2.3, by SHA-256: up to 255 * 32 bytes."""
    assert 0 < size <= 255 * _HASH_BYTES
    block, output = b"", b""
    number = 0
    while len(output) < size:
        number += 1
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        output += block
    return output[:size]


def seals_of(secret: bytes, nonces: Nonces) -> tuple[Seal, Seal]:
    """Return the seals of what the dialler sends, and of what the acceptor does."""
    key = extract(nonces.dialler + nonces.acceptor, secret)
    both = expand(key, VERSION + _KEYS, 2 * _HASH_BYTES)
    return Seal(both[:_HASH_BYTES]), Seal(both[_HASH_BYTES:])


class Seal:
    """The records of one direction, in their order: sealed by the one end, proved by the other."""

    __slots__ = ("_counter", "_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        # HMAC (RFC 2104) by hand: both blocks of the key are hashed once and not for each record,
        # which halves the cost of a short one.
        assert len(key) <= _BLOCK_BYTES
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(bytes([each ^ 0x36 for each in padded]))
        self._outer = sha256(bytes([each ^ 0x5C for each in padded]))
        self._counter = 0

    def seal(self, payload: bytes | memoryview) -> bytes:
        """Return the next record: of a payload of MAX_PAYLOAD bytes at most; none is the last."""
        assert len(payload) <= MAX_PAYLOAD
        begun = b"".join((_BEGUN.pack(self._counter, len(payload)), payload))
        self._counter += 1
        hashed = self._inner.copy()
        hashed.update(begun)
        tag = self._outer.copy()
        tag.update(hashed.digest())
        return begun[_COUNTER.size :] + tag.digest()[:_TAG_BYTES]

    def length(self, head: bytes | memoryview) -> int:
        """Return the bytes of a whole record that begins like that; -1: it is no record's."""
        (size,) = _LENGTH.unpack_from(head)
        return size + RECORD_BYTES if size <= MAX_PAYLOAD else -1

    def proves(self, record: memoryview) -> bool:
        """Tell whether that is the next record, whole and as it was sealed."""
        hashed = self._inner.copy()
        hashed.update(_COUNTER.pack(self._counter))
        hashed.update(record[:-_TAG_BYTES])
        tag = self._outer.copy()
        tag.update(hashed.digest())
        self._counter += 1
        return hmac.compare_digest(tag.digest()[:_TAG_BYTES], record[-_TAG_BYTES:])
