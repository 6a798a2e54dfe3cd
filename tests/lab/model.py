"""A model of the state machine in plain dictionaries, to be held beside the real one."""

from __future__ import annotations

import operator
from typing import Any

from conure.commands import (
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Event,
    EventKind,
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
from conure.state.machine import Session, Store
from conure.storage.engine import Record
from tests.lab import stepmodel

__all__ = ["Command", "Model", "agree"]

INT64 = (1 << 63) - 1
Command = tuple[bytes, bytes | None] | Transaction | Sequential


class Model:
    """What the store should do, in dictionaries and without an index.

    ``run`` is one entry of the log; ``revision`` the index of the last one, to be set by whoever
    leaves some out.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.records: dict[bytes, Record] = {}
        self.sessions: dict[bytes, Session] = {}
        self.locks: dict[bytes, tuple[bytes, int]] = {}
        self.answers: dict[bytes, tuple[bytes, Outcome, int]] = {}
        self.events: list[Event] = []
        self.revision = 0
        self.begun = False
        self.version = 1

    def run(self, command: Command) -> Outcome | None:
        self.revision += 1
        if isinstance(command, Sequential):
            self.version = 2
        if isinstance(command, Transaction | Sequential):
            return self.transact(command)
        key, value = command
        if value is None:
            self.remove(key, EventKind.DELETE)
        else:
            self.write(key, value, 0)
        return None

    def transact(self, transaction: Transaction | Sequential) -> Outcome:
        self.begun = True
        self.clock = max(self.clock, transaction.time)
        key = transaction.idempotency_key
        if key in self.answers:
            fingerprint, outcome, _ = self.answers[key]
            if fingerprint != transaction.fingerprint:
                return Outcome(self.revision, False, refusal=Refusal.KEY_REUSED)
            return outcome._replace(repeated=True)
        if isinstance(transaction, Sequential):
            outcome = self.sequence(transaction)
        else:
            outcome = self.decide(transaction)
        if key:
            expiry = max(1, self.clock + transaction.window)
            self.answers[key] = transaction.fingerprint, outcome, expiry
        return outcome

    def sequence(self, whole: Sequential) -> Outcome:
        unmet = [each for each in whole.compares if not self.holds(each)]
        if unmet:
            found = self.records.get(unmet[0].key)
            current = found.mod_revision if found else 0
            return Outcome(self.revision, False, current=current, time=self.clock)
        before = dict(self.records)
        values = {key: (each.value, each.expiry) for key, each in self.records.items()}
        changed: list[bytes] = []

        def written(key: bytes) -> None:
            changed.append(key)
            if key in values:
                old = self.records.get(key, Record(b"", self.revision, 0, 0))
                create, version = old.create_revision, old.version + 1
                self.records[key] = Record(values[key][0], create, self.revision, version)
            else:
                del self.records[key]

        done = stepmodel.take(whole.steps, values, self.clock, whole.longest, written)
        for key, (_, expiry) in values.items():
            self.records[key] = self.records[key]._replace(expiry=expiry)
        for key in dict.fromkeys(changed):
            if key in self.records:
                now = self.records[key]
                self.events.append(Event(self.revision, EventKind.PUT, key, now.value, now.version))
            elif key in before:
                self.events.append(Event(self.revision, EventKind.DELETE, key, b"", 0))
        return Outcome(self.revision, True, done=tuple(done), time=self.clock)

    def decide(self, transaction: Transaction) -> Outcome:
        unmet = [each for each in transaction.compares if not self.holds(each)]
        branch = transaction.failure if unmet else transaction.success
        for operation in branch:
            if why := self.refusal(operation):
                key = getattr(operation, "key", b"")
                return Outcome(self.revision, False, refusal=why, refused_key=key)
        current = 0
        if unmet and unmet[0].key in self.records:
            current = self.records[unmet[0].key].mod_revision
        results = []
        for operation in branch:
            possible = not self.refusal(operation)
            results.append(self.do(operation) if possible else Result())
        return Outcome(self.revision, not unmet, tuple(results), current=current)

    def holds(self, compare: Compare) -> bool:
        record = self.records.get(compare.key)
        if compare.target is Target.VALUE:
            if record is None:
                return compare.relation is Relation.NOT_EQUAL
            found: Any = record.value
        elif record is None:
            found = 0
        else:
            found = {
                Target.VERSION: record.version,
                Target.CREATE_REVISION: record.create_revision,
                Target.MOD_REVISION: record.mod_revision,
            }[compare.target]
        relations = {
            Relation.EQUAL: operator.eq,
            Relation.NOT_EQUAL: operator.ne,
            Relation.LESS: operator.lt,
            Relation.GREATER: operator.gt,
        }
        return bool(relations[compare.relation](found, compare.operand))

    def refusal(self, operation: Operation) -> Refusal:
        match operation:
            case Acquire(_, session, _) | RenewSession(session) | EndSession(session) if (
                session not in self.sessions
            ):
                return Refusal.SESSION_NOT_FOUND
            case Acquire(key, session) if self.locks.get(key, (session,))[0] != session:
                return Refusal.HELD_BY_ANOTHER
            case Release(key, session) if self.locks.get(key, (None,))[0] != session:
                return Refusal.NOT_THE_HOLDER
            case DeleteRange(start, end, limit) if 0 < limit < len(self.keys(start, end)):
                return Refusal.TOO_MANY_KEYS
            case Touch(key) if key not in self.records:
                return Refusal.KEY_NOT_FOUND
            case DeleteRange(start, end, limit) if 0 < limit < len(self.keys(start, end)):
                return Refusal.TOO_MANY_KEYS
            case Increment(key, by):
                digits = self.records[key].value if key in self.records else b"0"
                if not digits.removeprefix(b"-").isdigit() or int(digits) < -INT64 - 1:
                    return Refusal.NOT_A_NUMBER
                if not -INT64 - 1 <= int(digits) + by <= INT64:
                    return Refusal.NUMBER_TOO_LARGE
        return Refusal.NONE

    def do(self, operation: Operation) -> Result:  # noqa: C901 - all of them at a glance
        match operation:
            case Put(key, value, ttl, keep_ttl):
                old = self.records.get(key)
                expiry = (old.expiry if old else 0) if keep_ttl else self.after(ttl)
                return Result(items=self.write(key, value, expiry))
            case Delete(key):
                return Result(self.remove(key, EventKind.DELETE))
            case DeleteRange(start, end):
                keys = self.keys(start, end)
                return Result(sum(self.remove(key, EventKind.DELETE) for key in keys))
            case Get(key):
                if key in self.records:
                    return Result(1, items=(Item(key, *self.records[key]),))
            case Range(start, end, limit, reverse, keys_only):
                keys = sorted(self.keys(start, end), reverse=reverse)
                found = [Item(key, *self.records[key]) for key in keys[:limit]]
                if keys_only:
                    found = [item._replace(value=None) for item in found]
                return Result(len(found), len(keys) > limit, tuple(found))
            case Increment(key, by):
                old = self.records.get(key)
                total = int(old.value if old else 0) + by
                items = self.write(key, b"%d" % total, old.expiry if old else 0)
                return Result(items=items, number=total)
            case Touch(key, ttl):
                record = self.records[key] = self.records[key]._replace(expiry=self.after(ttl))
                return Result(1, items=(Item(key, None, *record[1:]),))
            case Acquire(key, session, value):
                _, token = self.locks.setdefault(key, (session, self.revision))
                if value is not None:
                    return Result(items=self.write(key, value, 0), number=token)
                left = [Item(key, None, *self.records[key][1:])] if key in self.records else []
                return Result(items=tuple(left), number=token)
            case Release(key, session, value):
                del self.locks[key]
                return Result(items=() if value is None else self.write(key, value, 0))
            case OpenSession(session, ttl, deletes, name):
                expiry = max(1, self.clock + ttl)
                self.sessions[session] = Session(session, ttl, deletes, name, expiry)
            case RenewSession(session):
                _, ttl, deletes, name, _ = self.sessions[session]
                expiry = max(1, self.clock + ttl)
                self.sessions[session] = Session(session, ttl, deletes, name, expiry)
            case EndSession(session):
                return Result(self.end(session, EventKind.DELETE))
            case Expire(limit):
                return self.expire(limit)
        return Result()

    def expire(self, limit: int) -> Result:
        due = sorted(each for each in self.expiring() if each[0] <= self.clock)
        ended, left = 0, limit
        while ended < len(due) and left > 0:
            _, name, what = due[ended]
            ended += 1
            left -= 1
            if what == "key":
                self.remove(name, EventKind.EXPIRE)
            elif what == "session":
                left -= self.end(name, EventKind.EXPIRE)
            else:
                del self.answers[name]
        return Result(ended, ended < len(due[: limit + 1]))

    def expiring(self) -> list[tuple[int, bytes, str]]:
        keys = [(each.expiry, key, "key") for key, each in self.records.items() if each.expiry]
        answers = [(each[2], key, "outcome") for key, each in self.answers.items()]
        return [*keys, *answers, *((s.expiry, s.id, "session") for s in self.sessions.values())]

    def end(self, session: bytes, kind: EventKind) -> int:
        keys = sorted(key for key, (holder, _) in self.locks.items() if holder == session)
        for key in keys:
            del self.locks[key]
            if self.sessions[session].deletes:
                self.remove(key, kind)
        del self.sessions[session]
        return len(keys)

    def keys(self, start: bytes, end: bytes | None) -> list[bytes]:
        return sorted(key for key in self.records if start <= key and (end is None or key < end))

    def after(self, ttl: int) -> int:
        return self.clock + ttl if ttl else 0

    def write(self, key: bytes, value: bytes, expiry: int) -> tuple[Item, ...]:
        old = self.records.get(key) or Record(b"", self.revision, 0, 0)
        version = old.version + 1
        record = Record(value, old.create_revision, self.revision, version, expiry)
        self.records[key] = record
        self.events.append(Event(self.revision, EventKind.PUT, key, value, version))
        return (Item(key, None, *record[1:]),)

    def remove(self, key: bytes, kind: EventKind) -> bool:
        if self.records.pop(key, None) is None:
            return False
        self.events.append(Event(self.revision, kind, key, b"", 0))
        return True

    def tree_keys(self) -> set[bytes]:
        """Return every key that the tree should have, whatever it is for."""
        index = {"key": b"e", "session": b"t", "outcome": b"j"}
        held = {
            b"h%c%s%s" % (len(session), session, key) for key, (session, _) in self.locks.items()
        }
        return {
            *((b"c",) if self.begun else ()),
            *((b"v",) if self.version > 1 else ()),
            *(index[what] + at.to_bytes(8, "big") + key for at, key, what in self.expiring()),
            *held,
            *(b"i" + key for key in self.answers),
            *(b"k" + key for key in self.records),
            *(b"l" + key for key in self.locks),
            *(b"s" + session for session in self.sessions),
        }


def agree(store: Store, model: Model) -> None:
    """Assert that the store holds what the model does, and nothing else."""
    assert {key for key, _ in store.engine.items()} == model.tree_keys()
    assert {key[1:]: record for key, record in store.engine.items(b"k", b"l")} == model.records
    found = [store.session(key[1:]) for key, _ in store.engine.items(b"s", b"t")]
    assert found == sorted(model.sessions.values())
    held = [key[1:] for key, _ in store.engine.items(b"l", b"m")]
    assert {key: store.holder(key) for key in held} == model.locks
    assert (store.clock, store.records) == (model.clock, len(model.records))
    assert store.next_due() == min([each[0] for each in model.expiring()], default=None)
