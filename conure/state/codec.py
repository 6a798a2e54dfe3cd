"""Bytes for commands, their outcomes and the records of a state, and back.

A decoder takes any bytes at all: it returns what an encoder was given or raises
:class:`WireError`, and never allocates more than the bytes it was handed would explain. Every
number is big-endian and unsigned. Nothing here has state: any thread may call anything.

**Command**: the data of a log entry of kind COMMAND. It ends where the entry ends::

    offset size
       0    1   version      01
       1    1   operation    01 put, 02 delete, 03 a transaction (below)
       2    1   flags        00; each later flag says what it adds, an unknown one is an error
       3    2   key length
       5    …   key
       …    …   value        put only

    put "k" = "hi"    01 01 00 0001 6b 6869
    delete "k"        01 02 00 0001 6b

**Transaction**: a command that stands for a commands.Transaction::

       0    3   01 03 00
       3    8   time, in milliseconds
      11    8   window, in milliseconds
      19    1   length of the idempotency key
      20    1   length of the fingerprint
      21    2   number of comparisons
      23    2   number of operations on success
      25    2   number of operations on failure
      27    …   idempotency key, fingerprint
       …    …   the comparisons, the operations

    comparison
       0    1   commands.Target
       1    1   commands.Relation
       2    2   length of the key, not 0
       4    4   length of the operand; a number has 8 bytes
       8    …   key, operand

    operation
       0    1   kind
       1    1   flags
       2    1   a, length of the session's ID
       3    2   b, length of the key
       5    4   c, length of the value
       9    8   number
      17    …   session, key, value

    kind                flags               number  session  key    value
     1  put             1 keep_ttl          ttl              key    value
     2  delete                                               key
     3  delete range    1 has an end        limit            start  end
     4  get                                                  key
     5  range           1 has an end,       limit            start  end
                        2 reverse,
                        4 keys only
     6  increment                           by               key
     7  touch                               ttl              key
     8  acquire         1 has a value               session  key    value
     9  release         1 has a value               session  key    value
    10  open session    1 deletes           ttl     session         name
    11  renew session                               session
    12  end session                                 session
    13  expire                              limit

What a kind doesn't have is 0 or empty. ``by`` is a two's complement.

**Sequential transaction**: a command of version 2 that stands for a commands.Sequential. How a
step looks is stepcodec.py's concern::

       0    3   02 04 00
       3    8   time, in milliseconds
      11    8   window, in milliseconds
      19    4   the longest value there may be, up to MAX_VALUE_BYTES
      23    1   length of the idempotency key
      24    1   length of the fingerprint
      25    2   number of comparisons
      27    2   number of steps
      29    …   idempotency key, fingerprint
       …    …   the comparisons, as above, and the steps

**Outcome**: a commands.Outcome, as the state machine remembers it::

       0    1   version      01
       1    1   flags        1 succeeded, 2 repeated
       2    1   commands.Refusal
       3    1   00
       4    8   revision
      12    8   current
      20    2   length of the refused key
      22    2   number of results
      24    …   refused key
       …    …   the results

    result
       0    1   flags        1 more
       1    8   total
       9    8   number, signed
      17    4   number of items
      21    …   the items

    item
       0    1   flags        1 with its value
       1    2   length of the key
       3    4   length of the value
       7   32   create revision, mod revision, version, expiry: 8 bytes each
      39    …   key, value

That of a sequential transaction is of version 2::

       0    1   version      02
       1   19   as above
      20    8   time, in milliseconds; not 0 if no step was done
      28    2   number of steps done
      30    …   what came of each (stepcodec.py)

**Records**: a piece of a snapshot, column by column like a batch. Nothing is left out of a record,
so that both nodes come to hold the same, down to revisions::

       0    1   version      01
       1    3   00
       4    4   n, the number of records
       8   2n   length of each key, not 0
       …   4n   length of each value
       …  32n   create revision, mod revision, version, expiry of each record: 8 bytes each
       …    …   the keys, then the values

**What a node speaks** (:data:`SPEAKS`) is the newest version of any of these that it reads, or 3
for one that reads configurations with a quorum size, too (members.py). Its greeting says so
(protocol.py), and nothing newer is proposed before all members say that they read it (versions.py):
so an old release and a new one can share a cluster while it is upgraded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Final, NamedTuple

from conure.commands import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    WRITTEN_BYTES,
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Expire,
    Get,
    Increment,
    Item,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Result,
    Sequential,
    Target,
    Touch,
    Transaction,
)
from conure.consensus.messages import COMMAND, Entry
from conure.errors import VersionTooNew, WireError
from conure.state import stepcodec
from conure.steps import Step

__all__ = [
    "LENGTHY_STEPS",
    "MAX_CHUNK_RECORDS",
    "MOST_WRITES",
    "OP_DELETE",
    "OP_PUT",
    "OP_SEQUENTIAL",
    "OP_TRANSACTION",
    "SPEAKS",
    "Checked",
    "Opened",
    "Writes",
    "check_command",
    "check_commands",
    "decode_command",
    "decode_outcome",
    "decode_records",
    "decode_sequential",
    "decode_transaction",
    "decode_writes",
    "encode_delete",
    "encode_outcome",
    "encode_put",
    "encode_records",
    "encode_sequential",
    "encode_transaction",
    "encode_writes",
    "has_outcome",
    "is_lengthy",
    "newest_version",
    "outcome_in_parts",
    "sequential_in_turns",
    "stamp",
]

SPEAKS: Final = 3
"""What this release speaks: 2 are sequential transactions, 3 configurations with a quorum size.
Whoever adds a format with a newer version raises it."""

OP_PUT: Final = 1
OP_DELETE: Final = 2
OP_TRANSACTION: Final = 3
OP_SEQUENTIAL: Final = 4
MAX_CHUNK_RECORDS: Final = 1 << 16
LENGTHY_STEPS: Final = 16
"""Steps and comparisons of a sequential transaction that are done in one go; few, for each of them
may read a long value."""
MOST_WRITES: Final = 500
"""Keys that a sequential transaction sets in one go, if it does nothing else."""

_VERSION, _SEQUENTIAL_VERSION = 1, 2
_LENGTHY_BYTES = 256 << 10
_ENCODED_AT_ONCE = 500  # steps
_DONE_AT_ONCE = 500  # results of steps
_ITEMS_AT_ONCE = 250
_PARTS_AT_ONCE = 3 * _ITEMS_AT_ONCE
assert _LENGTHY_BYTES < WRITTEN_BYTES
_MAX_COMMAND = MAX_VALUE_BYTES + (32 << 20)  # all keys it may have; a frame holds more (records.py)

_COMMAND = struct.Struct(">3sH")
_PUT = bytes((_VERSION, OP_PUT, 0))
_DELETE = bytes((_VERSION, OP_DELETE, 0))
_TRANSACTION = bytes((_VERSION, OP_TRANSACTION, 0))
_SEQUENTIAL = bytes((_SEQUENTIAL_VERSION, OP_SEQUENTIAL, 0))

_TRANSACTION_HEAD = struct.Struct(">3sQQBBHHH")
_SEQUENTIAL_HEAD = struct.Struct(">3sQQIBBHH")
_COMPARE = struct.Struct(">BBHI")
_OPERATION = struct.Struct(">BBBHIQ")
_OUTCOME = struct.Struct(">BBBxQQHH")
_SEQUENTIAL_OUTCOME = struct.Struct(">BBBxQQQH")
_RESULT = struct.Struct(">BQqI")
_ITEM = struct.Struct(">BHIQQQQ")
_NUMBER_BYTES = 8  # of an operand
_LAST_TARGET, _LAST_RELATION = max(Target).value, max(Relation).value
assert not Target.VALUE
_KINDS_WITH_KEY = frozenset((1, 2, 4, 6, 7, 8, 9))
_SUCCEEDED, _REPEATED = 1, 2
_RECORDS = struct.Struct(">B3xI")
_PER_RECORD = 2 + 4 + 4 * 8
assert _COMMAND.size == 5
assert (_TRANSACTION_HEAD.size, _COMPARE.size, _OPERATION.size) == (27, 8, 17)
assert (_OUTCOME.size, _RESULT.size, _ITEM.size) == (24, 21, 39)
assert (_SEQUENTIAL_HEAD.size, _SEQUENTIAL_OUTCOME.size) == (29, 30)


def encode_put(key: bytes, value: bytes) -> bytes:
    """Return the command that sets *key*, of 1 to 65,535 bytes, to *value*."""
    return _COMMAND.pack(_PUT, len(key)) + key + value


def encode_delete(key: bytes) -> bytes:
    """Return the command that removes *key*, of 1 to 65,535 bytes."""
    return _COMMAND.pack(_DELETE, len(key)) + key


def has_outcome(command: bytes) -> bool:
    """Tell whether a command is a transaction of either kind, of which there is an outcome."""
    return command[1] >= OP_TRANSACTION


def stamp(command: bytes, time: int) -> bytes:
    """Return a command with the time, in milliseconds, as of which it is to be carried out: a put
    or a delete as it is, for it has none."""
    if not has_outcome(command):
        return command
    return b"%b%b%b" % (command[:3], time.to_bytes(8, "big"), command[11:])


def decode_command(data: bytes) -> tuple[int, bytes, bytes]:
    """Return a command's operation (OP_PUT or OP_DELETE), key and value.

    For a transaction it is OP_TRANSACTION and nothing; :func:`decode_transaction` reads that. For a
    sequential one it is OP_SEQUENTIAL likewise.
    Raises WireError for a command this version doesn't know; whoever applies commands has to
    stop there, for a replica that skips one is no replica any more (R7).
    """
    if len(data) > _COMMAND.size:  # as _measure, without the call: most are puts
        head, key_length = _COMMAND.unpack_from(data)
        value_at = 5 + key_length
        if head == _PUT and 5 < value_at <= len(data):
            return OP_PUT, data[5:value_at], data[value_at:]
    operation, value_at = _measure(data)
    if operation >= OP_TRANSACTION:
        return operation, b"", b""
    return operation, data[5:value_at], data[value_at:]


class Checked(NamedTuple):
    """What is known of a sequential transaction that was checked: the keys it reads values of."""

    reads: list[bytes]


def check_command(data: bytes) -> Checked | None:
    """Return what is known of a sequential transaction, None of any other command. Raises WireError
    for one that the state machine could not apply.

    That is one that the decoders of commands and transactions don't read, that writes a longer key
    than anybody may have, or makes longer values, or is longer than any. It is looked at before it
    gets into a log: there it would end the node, and again at each start. Nothing is made of it,
    for one message of a leader may bring some ten thousand operations.
    """
    if len(data) > _MAX_COMMAND:
        raise WireError(f"a command of {len(data)} bytes")
    operation, value_at = _measure(data)
    if operation == OP_SEQUENTIAL:
        opened = Opened(data)
        opened.check_compares()
        return Checked(opened.check_steps(MAX_KEY_BYTES))
    if operation == OP_TRANSACTION:
        _check_transaction(data)
    elif value_at > 5 + MAX_KEY_BYTES:
        raise WireError(f"a command with a key of {value_at - 5} bytes")
    return None


def check_commands(entries: Iterable[Entry], speaks: int = SPEAKS) -> int:
    """Check all commands among entries; return the newest of their versions, 1 without one.

    Raises WireError, and VersionTooNew for one that is newer than *speaks*.
    """
    newest, most = b"\1", bytes((speaks,))
    for entry in entries:
        if entry.kind == COMMAND:
            data = entry.data
            if data[:1] > newest:
                newest = data[:1]
                if newest > most:
                    raise VersionTooNew(f"entry {entry.index} of the log", newest[0], speaks)
            check_command(data)
    return newest[0]


def newest_version(commands: Iterable[bytes]) -> int:
    """Return the newest version of encoded commands, of which there are some."""
    return max(command[0] for command in commands)


def _measure(data: bytes) -> tuple[int, int]:
    """Return a command's operation and where its key ends. Raises WireError."""
    try:
        head, key_length = _COMMAND.unpack_from(data)
    except struct.error:
        raise WireError(f"a command of {len(data)} bytes is too short") from None
    value_at = 5 + key_length
    if head == _PUT and 5 < value_at <= len(data):
        return OP_PUT, value_at
    if head == _DELETE and 5 < value_at == len(data):
        return OP_DELETE, value_at
    if head == _TRANSACTION:
        return OP_TRANSACTION, 5
    if head == _SEQUENTIAL:
        return OP_SEQUENTIAL, 5
    raise _unknown_command(head, key_length, len(data))


def _unknown_command(head: bytes, key_length: int, size: int) -> WireError:
    version, operation, flags = head
    if not 0 < version <= _SEQUENTIAL_VERSION:
        known_here = _SEQUENTIAL_VERSION
        return WireError(f"a command of format version {version}; this version knows {known_here}")
    known = (OP_PUT, OP_DELETE, OP_TRANSACTION) if version == _VERSION else (OP_SEQUENTIAL,)
    if operation not in known:
        return WireError(f"an unknown command operation {operation}; a newer version wrote it")
    if flags:
        return WireError(f"unknown command flags {flags:#04x}; a newer version wrote them")
    if not 0 < key_length <= size - 5:
        return WireError(f"a key of {key_length} bytes in a command of {size} bytes")
    return WireError("a delete command with bytes behind its key")


def encode_transaction(transaction: Transaction) -> bytes:
    """Return the command that stands for a transaction.

    It has up to 65,535 comparisons and as many operations in either branch. Keys have 1 to 65,535
    bytes; session IDs, the idempotency key and its fingerprint up to 255. Numbers have 64 bits,
    and none but an increment is negative.
    """
    compares, success, failure, time, idempotency_key, fingerprint, window = transaction
    parts = [
        _TRANSACTION_HEAD.pack(
            _TRANSACTION,
            time,
            window,
            len(idempotency_key),
            len(fingerprint),
            len(compares),
            len(success),
            len(failure),
        ),
        idempotency_key,
        fingerprint,
    ]
    parts += _encode_compares(compares)
    for operation in chain(success, failure):
        kind, flags, number, session, key, value = _fields(operation)
        head = _OPERATION.pack(kind, flags, len(session), len(key), len(value), number)
        parts += (head, session, key, value)
    return b"".join(parts)


def decode_transaction(data: bytes) -> Transaction:
    """Return the transaction that a command stands for.

    Raises WireError for anything that :func:`encode_transaction` of this version doesn't make.
    """
    try:
        head, time, window, a, b, n, successes, failures = _TRANSACTION_HEAD.unpack_from(data)
        if head != _TRANSACTION:
            raise WireError("a command that is no transaction of this version")
        fingerprint_at = _TRANSACTION_HEAD.size + a
        at = fingerprint_at + b
        compares, at = _decode_compares(data, at, n)
        operations = []
        for _ in range(successes + failures):
            operation, at = _decode_operation(data, at)
            operations.append(operation)
    except (struct.error, ValueError) as error:
        raise WireError(f"a malformed transaction: {error}") from error
    if at != len(data):
        raise WireError(f"a transaction of {at} bytes in a command of {len(data)} bytes")
    return Transaction(
        tuple(compares),
        tuple(operations[:successes]),
        tuple(operations[successes:]),
        time,
        data[_TRANSACTION_HEAD.size : fingerprint_at],
        data[fingerprint_at : fingerprint_at + b],
        window,
    )


def encode_sequential(sequential: Sequential) -> bytes:
    """Return the command that stands for a sequential transaction.

    It has up to 65,535 comparisons and as many steps; the rest is as in
    :func:`encode_transaction`. The numbers of steps are signed, of 64 bits.
    """
    head = _sequential_head(sequential)
    return b"".join([*head, *stepcodec.encode_steps(sequential.steps)])


def encode_writes(keys: Sequence[bytes], values: Sequence[bytes], longest: int) -> bytes:
    """Return the same as :func:`encode_sequential` of a transaction that only sets *keys* to
    *values*, without its time, in a fraction of the time that it takes to make one."""
    head = _SEQUENTIAL_HEAD.pack(_SEQUENTIAL, 0, 0, longest, 0, 0, 0, len(keys))
    return b"".join([head, *stepcodec.encode_writes(keys, values)])


def sequential_in_turns(sequential: Sequential) -> Iterator[bytes]:
    """Yield nothing where something else may have its turn, and the same at last."""
    parts = _sequential_head(sequential)
    for start in range(0, len(sequential.steps), _ENCODED_AT_ONCE):
        parts += stepcodec.encode_steps(sequential.steps[start : start + _ENCODED_AT_ONCE])
        yield b""
    yield b"".join(parts)


def _sequential_head(sequential: Sequential) -> list[bytes]:
    """Return what stands before the steps."""
    compares, steps, longest, time, idempotency_key, fingerprint, window = sequential
    head = _SEQUENTIAL_HEAD.pack(
        _SEQUENTIAL,
        time,
        window,
        longest,
        len(idempotency_key),
        len(fingerprint),
        len(compares),
        len(steps),
    )
    return [head, idempotency_key, fingerprint, *_encode_compares(compares)]


def decode_sequential(data: bytes) -> Sequential:
    """Return the sequential transaction that a command stands for.

    Raises WireError for anything that :func:`encode_sequential` of this version doesn't make.
    """
    opened = Opened(data)
    compares = tuple(opened.compares())
    return Sequential(
        compares,
        tuple(opened.steps()),
        opened.longest,
        opened.time,
        opened.idempotency_key,
        opened.fingerprint,
        opened.window,
    )


class Opened:
    """A sequential transaction that is decoded while it is carried out: the fields but comparisons
    and steps, which are read once, the comparisons first.

    Raises WireError, then or at what is malformed.
    """

    __slots__ = (
        "_at",
        "_compares",
        "_data",
        "_steps",
        "fingerprint",
        "idempotency_key",
        "longest",
        "time",
        "window",
    )

    def __init__(self, data: bytes) -> None:
        try:
            head, time, window, longest, a, b, n, count = _SEQUENTIAL_HEAD.unpack_from(data)
        except struct.error as error:
            raise WireError(f"a malformed sequential transaction: {error}") from error
        if head != _SEQUENTIAL:
            raise WireError("a command that is no sequential transaction of this version")
        if longest > MAX_VALUE_BYTES:  # a step of some bytes could make a value of so many
            raise WireError(f"a sequential transaction with values of {longest} bytes")
        fingerprint_at = _SEQUENTIAL_HEAD.size + a
        self._data = data
        self._compares, self._steps = n, count
        self._at = fingerprint_at + b
        self.longest: int = longest
        self.time: int = time
        self.idempotency_key = data[_SEQUENTIAL_HEAD.size : fingerprint_at]
        self.fingerprint = data[fingerprint_at : self._at]
        self.window: int = window

    def compares(self) -> Iterator[Compare]:
        """Yield the comparisons."""
        try:
            for _ in range(self._compares):
                compare, self._at = _decode_compare(self._data, self._at)
                yield compare
        except (struct.error, ValueError) as error:
            raise WireError(f"a malformed sequential transaction: {error}") from error

    def check_compares(self) -> None:
        """Check the comparisons instead."""
        try:
            self._at = _check_compares(self._data, self._at, self._compares)
        except struct.error as error:
            raise WireError(f"a malformed sequential transaction: {error}") from error

    def steps(self) -> Iterator[Step]:
        """Yield the steps; the last one ends where the command does."""
        try:
            yield from stepcodec.decode_steps(self._data, self._at, self._steps)
        except struct.error as error:
            raise WireError(f"a malformed sequential transaction: {error}") from error

    def check_steps(self, longest: int) -> list[bytes]:
        """Check the steps instead, whose keys have *longest* bytes at most; return the keys that
        they read the values of."""
        try:
            return stepcodec.check_steps(self._data, self._at, self._steps, longest)
        except struct.error as error:
            raise WireError(f"a malformed sequential transaction: {error}") from error


class Writes(NamedTuple):
    """A sequential transaction that only sets keys, each once, as many as there are *values*."""

    time: int
    keys: Sequence[bytes]
    values: Sequence[bytes]


def decode_writes(data: bytes) -> Writes | None:
    """Return what a command of OP_SEQUENTIAL stands for, if that is to set some keys, whatever they
    have: all these steps can be done, and in one go. None of any other."""
    if len(data) > _LENGTHY_BYTES or len(data) < _SEQUENTIAL_HEAD.size:
        return None
    _, time, _, longest, a, b, n, count = _SEQUENTIAL_HEAD.unpack_from(data)
    if a or b or n or not 0 < count <= MOST_WRITES or longest > MAX_VALUE_BYTES:
        return None
    found = stepcodec.decode_writes(data, _SEQUENTIAL_HEAD.size, count)
    if found is None:
        return None
    keys, values = found
    if len(set(keys)) < count or max(map(len, values)) > longest:
        return None
    return Writes(time, keys, values)


def is_lengthy(data: bytes) -> bool:
    """Tell whether a command of OP_SEQUENTIAL may ask for more than should be done in one go."""
    if len(data) < _SEQUENTIAL_HEAD.size:
        return False
    *_, compares, steps = _SEQUENTIAL_HEAD.unpack_from(data)
    return bool(compares + steps > LENGTHY_STEPS) or len(data) > _LENGTHY_BYTES


def _encode_compares(compares: Sequence[Compare]) -> list[bytes]:
    parts: list[bytes] = []
    for key, target, relation, operand in compares:
        assert key  # in a log it would end every node
        given = operand if isinstance(operand, bytes) else operand.to_bytes(8, "big")
        parts += (_COMPARE.pack(target, relation, len(key), len(given)), key, given)
    return parts


def _decode_compares(data: bytes, at: int, count: int) -> tuple[list[Compare], int]:
    compares = []
    for _ in range(count):
        compare, at = _decode_compare(data, at)
        compares.append(compare)
    return compares, at


def _decode_compare(data: bytes, at: int) -> tuple[Compare, int]:
    target, relation, key_length, length = _COMPARE.unpack_from(data, at)
    key_at = at + _COMPARE.size
    operand_at = key_at + key_length
    end = operand_at + length
    is_number = target != Target.VALUE
    if not key_length or end > len(data) or (is_number and length != 8):
        raise WireError(f"a comparison of a key of {key_length} bytes with {length} bytes")
    operand = data[operand_at:end]
    return Compare(
        data[key_at:operand_at],
        Target(target),
        Relation(relation),
        int.from_bytes(operand, "big") if is_number else operand,
    ), end


def _decode_operation(data: bytes, at: int) -> tuple[Operation, int]:
    kind, flags, a, b, c, number = _OPERATION.unpack_from(data, at)
    key_at = at + _OPERATION.size + a
    value_at = key_at + b
    end = value_at + c
    if end > len(data) or (kind in _KINDS_WITH_KEY and not b):
        raise WireError(f"an operation of kind {kind} with a key of {b} bytes, ends at {end}")
    session, key, value = data[key_at - a : key_at], data[key_at:value_at], data[value_at:end]
    operation = _operation(kind, flags, number, session, key, value)
    if _fields(operation) != (kind, flags, number, session, key, value):
        raise WireError(f"an operation of kind {kind} with something it can't have")
    return operation, end


class _Rule(NamedTuple):
    """What a kind of operation may have: flags up to *flags*, and a value in any case, or only with
    the first flag."""

    flags: int = 0
    number: bool = False
    session: bool = False
    key: bool = False
    needs_key: bool = False
    value: bool = False
    value_with_flag: bool = False


_RULES = {
    1: _Rule(1, number=True, key=True, needs_key=True, value=True),
    2: _Rule(key=True, needs_key=True),
    3: _Rule(1, number=True, key=True, value_with_flag=True),
    4: _Rule(key=True, needs_key=True),
    5: _Rule(7, number=True, key=True, value_with_flag=True),
    6: _Rule(number=True, key=True, needs_key=True),
    7: _Rule(number=True, key=True, needs_key=True),
    8: _Rule(1, session=True, key=True, needs_key=True, value_with_flag=True),
    9: _Rule(1, session=True, key=True, needs_key=True, value_with_flag=True),
    10: _Rule(1, number=True, session=True, value=True),
    11: _Rule(session=True),
    12: _Rule(session=True),
    13: _Rule(number=True),
}


def _check_transaction(data: bytes) -> None:
    """Check that :func:`decode_transaction` can read a command, and that no operation has a longer
    key than anybody may have; make none of them. Raises WireError."""
    try:
        _, _, _, a, b, n, successes, failures = _TRANSACTION_HEAD.unpack_from(data)
        at = _check_compares(data, _TRANSACTION_HEAD.size + a + b, n)
        at = _check_operations(data, at, successes + failures)
    except struct.error as error:
        raise WireError(f"a malformed transaction: {error}") from error
    if at != len(data):
        raise WireError(f"a transaction of {at} bytes in a command of {len(data)} bytes")


def _check_operations(data: bytes, at: int, count: int) -> int:
    """Check operations and return where they end. Raises WireError, struct.error."""
    unpack, size, head_size = _OPERATION.unpack_from, len(data), _OPERATION.size
    for _ in range(count):
        kind, flags, a, b, c, number = unpack(data, at)
        rule = _RULES.get(kind)
        if rule is None:
            raise WireError(f"an unknown kind of operation {kind}; a newer version wrote it")
        at += head_size + a + b + c
        most, has_number, has_session, has_key, needs_key, has_value, with_flag = rule
        if at > size or (needs_key and not 0 < b <= MAX_KEY_BYTES):
            raise WireError(f"an operation of kind {kind} with a key of {b} bytes, ends at {at}")
        if (
            flags > most
            or (number and not has_number)
            or (a and not has_session)
            or (b and not has_key)
            or (c and not (has_value or (with_flag and flags & 1)))
        ):
            raise WireError(f"an operation of kind {kind} with something it can't have")
    return at


def _check_compares(data: bytes, at: int, count: int) -> int:
    """Check comparisons and return where they end. Raises WireError, struct.error."""
    unpack, size, head_size = _COMPARE.unpack_from, len(data), _COMPARE.size
    for _ in range(count):
        target, relation, key_length, length = unpack(data, at)
        at += head_size + key_length + length
        if (
            not key_length
            or at > size
            or (target and length != _NUMBER_BYTES)
            or target > _LAST_TARGET
            or relation > _LAST_RELATION
        ):
            raise WireError(f"a comparison of a key of {key_length} bytes with {length} bytes")
    return at


def _fields(  # noqa: C901 - there is a case for each kind
    operation: Operation,
) -> tuple[int, int, int, bytes, bytes, bytes]:
    """Return kind, flags, number, session, key and value of an operation's encoding."""
    match operation:
        case Put(key, value, ttl, keep_ttl):
            return 1, 1 if keep_ttl else 0, ttl, b"", key, value
        case Delete(key):
            return 2, 0, 0, b"", key, b""
        case DeleteRange(start, end, limit):
            return 3, 0 if end is None else 1, limit, b"", start, end or b""
        case Get(key):
            return 4, 0, 0, b"", key, b""
        case Range(start, end, limit, reverse, keys_only):
            flags = (2 if reverse else 0) | (4 if keys_only else 0)
            return 5, flags if end is None else flags | 1, limit, b"", start, end or b""
        case Increment(key, by):
            return 6, 0, by % (1 << 64), b"", key, b""
        case Touch(key, ttl):
            return 7, 0, ttl, b"", key, b""
        case Acquire(key, session, given):
            return 8, 0 if given is None else 1, 0, session, key, given or b""
        case Release(key, session, given):
            return 9, 0 if given is None else 1, 0, session, key, given or b""
        case OpenSession(session, ttl, deletes, name):
            return 10, 1 if deletes else 0, ttl, session, b"", name
        case RenewSession(session):
            return 11, 0, 0, session, b"", b""
        case EndSession(session):
            return 12, 0, 0, session, b"", b""
        case Expire(limit):
            return 13, 0, limit, b"", b"", b""


def _operation(  # noqa: C901 - there is a case for each kind
    kind: int, flags: int, number: int, session: bytes, key: bytes, value: bytes
) -> Operation:
    """Return the operation of these fields, whether or not they have something too much."""
    given = value if flags & 1 else None
    match kind:
        case 1:
            return Put(key, value, number, flags == 1)
        case 2:
            return Delete(key)
        case 3:
            return DeleteRange(key, given, number)
        case 4:
            return Get(key)
        case 5:
            return Range(key, given, number, bool(flags & 2), bool(flags & 4))
        case 6:
            return Increment(key, number - (number >> 63 << 64))
        case 7:
            return Touch(key, number)
        case 8:
            return Acquire(key, session, given)
        case 9:
            return Release(key, session, given)
        case 10:
            return OpenSession(session, number, flags == 1, value)
        case 11:
            return RenewSession(session)
        case 12:
            return EndSession(session)
        case 13:
            return Expire(number)
    raise WireError(f"an unknown kind of operation {kind}; a newer version wrote it")


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the bytes of an outcome."""
    return b"".join(outcome_in_parts(outcome))


def outcome_in_parts(outcome: Outcome) -> Iterator[bytes]:
    """Yield the bytes of an outcome in parts, each made in a millisecond or less, so that something
    else may have its turn in between."""
    revision, succeeded, results, refusal, refused_key, current, repeated, done, time = outcome
    flags = (_SUCCEEDED if succeeded else 0) | (_REPEATED if repeated else 0)
    if done or time:
        assert not results
        assert not refused_key
        head = _SEQUENTIAL_OUTCOME.pack(
            _SEQUENTIAL_VERSION, flags, refusal, revision, current, time, len(done)
        )
        yield b"".join([head, *stepcodec.encode_done(done[:_DONE_AT_ONCE])])
        for start in range(_DONE_AT_ONCE, len(done), _DONE_AT_ONCE):
            yield b"".join(stepcodec.encode_done(done[start : start + _DONE_AT_ONCE]))
        return
    parts = [
        _OUTCOME.pack(_VERSION, flags, refusal, revision, current, len(refused_key), len(results)),
        refused_key,
    ]
    for total, more, items, number in results:
        parts.append(_RESULT.pack(1 if more else 0, total, number, len(items)))
        for start in range(0, len(items), _ITEMS_AT_ONCE):
            for key, value, *numbers in items[start : start + _ITEMS_AT_ONCE]:
                known = value is not None
                parts += (
                    _ITEM.pack(1 if known else 0, len(key), len(value or b""), *numbers),
                    key,
                    value or b"",
                )
            if len(parts) >= _PARTS_AT_ONCE:
                yield b"".join(parts)
                parts.clear()
    if parts:
        yield b"".join(parts)


def decode_outcome(data: bytes) -> Outcome:
    """Return what :func:`encode_outcome` was given.

    Raises WireError for anything that it doesn't make.
    """
    try:
        if data[:1] == _SEQUENTIAL[:1]:
            return _decode_sequential_outcome(data)
        version, flags, refusal, revision, current, key_length, n = _OUTCOME.unpack_from(data)
        if version != _VERSION or data[3] or flags & ~(_SUCCEEDED | _REPEATED):
            raise WireError(f"an outcome of format version {version}, flags {flags:#04x}")
        at = _OUTCOME.size + key_length
        results = []
        for _ in range(n):
            result, at = _decode_result(data, at)
            results.append(result)
        why = Refusal(refusal)
    except (struct.error, ValueError) as error:
        raise WireError(f"a malformed outcome: {error}") from error
    if at != len(data):
        raise WireError(f"an outcome of {at} bytes in {len(data)} bytes")
    refused_key = data[_OUTCOME.size : _OUTCOME.size + key_length]
    return Outcome(
        revision,
        bool(flags & _SUCCEEDED),
        tuple(results),
        why,
        refused_key,
        current,
        bool(flags & _REPEATED),
    )


def _decode_sequential_outcome(data: bytes) -> Outcome:
    _, flags, refusal, revision, current, time, n = _SEQUENTIAL_OUTCOME.unpack_from(data)
    done, at = stepcodec.decode_done(data, _SEQUENTIAL_OUTCOME.size, n)
    if data[3] or flags & ~(_SUCCEEDED | _REPEATED) or at != len(data) or not (n or time):
        raise WireError(f"an outcome of {n} steps, flags {flags:#04x}, {at} bytes in {len(data)}")
    return Outcome(
        revision,
        bool(flags & _SUCCEEDED),
        refusal=Refusal(refusal),
        current=current,
        repeated=bool(flags & _REPEATED),
        done=tuple(done),
        time=time,
    )


def _decode_result(data: bytes, at: int) -> tuple[Result, int]:
    more, total, number, n = _RESULT.unpack_from(data, at)
    at += _RESULT.size
    if more > 1 or n * _ITEM.size > len(data) - at:
        raise WireError(f"a result of {n} items, flags {more:#04x}")
    items = []
    for _ in range(n):
        known, key_length, length, *numbers = _ITEM.unpack_from(data, at)
        value_at = at + _ITEM.size + key_length
        end = value_at + length
        if known > 1 or end > len(data) or (length and not known):
            raise WireError(f"an item of {key_length} and {length} bytes, flags {known:#04x}")
        key = data[value_at - key_length : value_at]
        items.append(Item(key, data[value_at:end] if known else None, *numbers))
        at = end
    return Result(total, more == 1, tuple(items), number), at


def encode_records(items: Sequence[tuple[bytes, bytes, int, int, int, int]]) -> bytes:
    """Return the bytes of at most MAX_CHUNK_RECORDS records.

    Each is its key (1 to 65,535 bytes), value, create revision, mod revision, version and expiry.
    """
    n = len(items)
    assert n <= MAX_CHUNK_RECORDS
    keys = [item[0] for item in items]
    values = [item[1] for item in items]
    lengths = struct.pack(f">{n}H{n}I", *map(len, keys), *map(len, values))
    numbers = struct.pack(f">{4 * n}Q", *chain.from_iterable([item[2:] for item in items]))
    return b"".join([_RECORDS.pack(_VERSION, n), lengths, numbers, *keys, *values])


def decode_records(payload: bytes) -> list[tuple[bytes, bytes, int, int, int, int]]:
    """Return what :func:`encode_records` was given.

    Raises WireError for anything that it doesn't make. The order of keys is not looked at.
    """
    try:
        version, n = _RECORDS.unpack_from(payload)
    except struct.error:
        raise WireError(f"records in {len(payload)} bytes") from None
    if version != _VERSION:
        raise WireError(f"records of format version {version}; this version knows {_VERSION}")
    keys_at = _RECORDS.size + n * _PER_RECORD
    if n > MAX_CHUNK_RECORDS or keys_at > len(payload) or any(payload[1:4]):
        raise WireError(f"{n} records in {len(payload)} bytes")
    lengths = struct.unpack_from(f">{n}H{n}I", payload, _RECORDS.size)
    bounds = list(accumulate(lengths, initial=keys_at))
    if bounds[-1] != len(payload) or 0 in lengths[:n]:
        raise WireError("records whose lengths don't add up")
    pieces = [payload[a:b] for a, b in pairwise(bounds)]
    numbers = struct.unpack_from(f">{4 * n}Q", payload, _RECORDS.size + 6 * n)
    columns = (pieces[:n], pieces[n:], *(numbers[i::4] for i in range(4)))
    return list(zip(*columns, strict=True))
