"""The same entries on both engines, one the other's oracle: digests, outcomes, events, records, and
what goes to another node, byte for byte (R7)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from conure.commands import Delete, Expire, Outcome, Put, Touch, Transaction
from conure.consensus.messages import Entry, Message, MessageType
from conure.state.machine import Store
from conure.state.snapshots import OutgoingSnapshot
from conure.storage.engine import EngineKind, EngineOptions
from conure.storage.engines import KINDS, kind_named
from tests.http.test_transactions import COMMANDS, entries
from tests.lab.crashfs import CrashFileSystem
from tests.lab.model import Command

PLACE = "/home/conure.db"
SMALL = EngineOptions(page_size=512, cache_bytes=1 << 16, long_value=100, table_bytes=1500)


class Replica:
    """A store on one kind of engine, with checkpoints, merges and restarts of its own."""

    def __init__(self, kind: EngineKind, rng: random.Random) -> None:
        self.kind = kind
        self.rng = rng
        self.fs = CrashFileSystem()
        self.fs.make_directory("/home")
        self.outcomes: dict[int, Outcome] = {}
        self.events: list[object] = []
        self.reopen()

    def reopen(self) -> None:
        engine = self.kind.open(self.fs, PLACE, SMALL, create=True)
        self.store = Store(engine, b"", keeps_events=True)

    def follow(self, log: Sequence[Entry], longest: int = 6) -> None:
        """Apply a log to its end, however it comes."""
        store, rng = self.store, self.rng
        while store.applied_index < len(log):
            at = store.applied_index
            found = store.apply(log[at : at + rng.randrange(1, longest)])
            for index, outcome in found.items():
                assert self.outcomes.setdefault(index, outcome) == outcome
            store.take_events()
            if rng.random() < 0.3:
                running = store.begin_checkpoint()
                while not running.step(0.0):
                    store.engine.compact(0.0)
                if rng.random() < 0.8:
                    running.finish()
                running.abort()
            if rng.random() < 0.3:
                store.engine.compact(0.01)
            if rng.random() < 0.1:
                store.close()
                self.fs = self.fs.after_crash("dropped")
                self.reopen()
                store = self.store

    def sent(self) -> list[bytes]:
        """Return the state as it goes to another node."""
        message = Message(MessageType.SNAPSHOT, "n1", "n2", 1)
        outgoing = OutgoingSnapshot(message, self.store.snapshot())
        chunks = list(outgoing.chunks(b""))
        outgoing.close()
        return [*chunks, b"%d" % outgoing.header.digest, b"%d" % outgoing.header.records]


def agree(log: Sequence[Entry], seed: int, longest: int = 6) -> None:
    replicas = []
    for name in sorted(KINDS):
        rng = random.Random(f"{seed} {name}")
        straight, winding = (Replica(kind_named(name), rng) for _ in range(2))
        while straight.store.applied_index < len(log):
            straight.outcomes.update(straight.store.apply(log[straight.store.applied_index :]))
        straight.events = list(straight.store.take_events())
        winding.follow(log, longest)
        replicas += [straight, winding]
    first = replicas[0]
    records = list(first.store.engine.items())
    for other in replicas[1:]:
        assert other.store.digest == first.store.digest
        assert other.outcomes == first.outcomes
        assert list(other.store.engine.items()) == records
        assert list(other.store.engine.scan(reverse=True)) == records[::-1]
        assert list(other.store.engine.keys()) == [key for key, _ in records]
        assert other.store.next_due() == first.store.next_due()
        assert other.store.census() == first.store.census()
        assert other.sent() == first.sent()
        other.store.engine.check()
    assert replicas[2].events == first.events


@settings(deadline=None, max_examples=60)
@given(COMMANDS, COMMANDS)
def test_both_make_the_same_of_any_commands(commands: list[Command], more: list[Command]) -> None:
    agree(entries(1, commands + more), len(commands))


@pytest.mark.parametrize("seed", range(3))
def test_both_make_the_same_of_many_keys(seed: int) -> None:
    """So many that the tree has three levels and the tables two or three."""
    rng = random.Random(seed)
    commands: list[Command] = []
    for number in range(1500):
        key = b"%03d" % rng.randrange(400)
        what = rng.randrange(12)
        if what < 7:
            commands.append((key, rng.randbytes(rng.choice([0, 9, 40, 90, 300]))))
        elif what < 9:
            commands.append((key, None))
        elif what == 9:
            put = Put(key, rng.randbytes(20), rng.randrange(1, 40), False)
            commands.append(Transaction((), (put,), time=number))
        elif what == 10:
            commands.append(Transaction((), (Touch(key, 25), Delete(key + b"x")), time=number))
        else:
            commands.append(Transaction((), (Expire(3),), time=number))
    agree(entries(1, commands), seed, longest=80)
