"""Data commands of RESP on a state machine, without a server: words in, a reply's bytes out."""

from __future__ import annotations

import time

from conure.commands import Outcome, Sequential
from conure.consensus.messages import Entry, EntryKind
from conure.resp.replies import Replies
from conure.resp.verb import Context, Plan, ReplyError
from conure.resp.verbs import VERBS
from conure.service.limits import Limits
from conure.state import codec
from conure.state.machine import Store
from conure.steps import Done, Step, evaluate, reads_only
from conure.storage.engine import EngineOptions
from conure.storage.engines import BTREE, kind_named
from tests.lab.crashfs import CrashFileSystem

__all__ = ["VerbMachine"]


class VerbMachine:
    """A store and the table of verbs. *now* is the time in milliseconds, None: the clock's."""

    def __init__(self, *, value_bytes: int = 1 << 20, now: int | None = None) -> None:
        fs = CrashFileSystem()
        engine = kind_named(BTREE).open(fs, "/conure.db", EngineOptions(), create=True)
        self.store = Store(engine, b"", keeps_events=True)
        self.limits = Limits(value_bytes=value_bytes, range_items=1000)
        self.now = now

    def run(self, *words: bytes, protocol: int = 2) -> bytes:
        """Do a command as a front does it outside of MULTI."""
        replies = Replies(protocol)
        try:
            plan = self.plan(*words)
            plan.reply(self._results(plan), replies)
        except ReplyError as error:
            replies.error(str(error))
        return replies.take()

    def run_all(self, commands: list[list[bytes]], protocol: int = 2) -> bytes:
        """Do commands as EXEC does: in one entry. Returns the array of their replies."""
        plans = [self.plan(*words) for words in commands]
        outcome = self.sequence([step for plan in plans for step in plan.steps])
        replies = Replies(protocol)
        replies.array_of(len(plans))
        at = 0
        for plan in plans:
            plan.reply(outcome.done[at : at + len(plan.steps)], replies)
            at += len(plan.steps)
        return replies.take()

    def can_plan(self, words: list[bytes]) -> bool:
        """Tell whether a command is well formed."""
        try:
            self.plan(*words)
        except ReplyError:
            return False
        return True

    def plan(self, *words: bytes) -> Plan:
        """Return what a command asks for. Raises ReplyError."""
        name = words[0].decode().lower()
        rest = words[1:]
        if name in ("script", "function"):
            name = f"{name} {words[1].decode().lower()}"
            rest = words[2:]
        verb = VERBS[name]
        count = len(words)
        if count != verb.arity and (verb.arity > 0 or count < -verb.arity):
            raise ReplyError(f"ERR wrong number of arguments for '{verb.name}' command")
        return verb.plan(rest, Context(self.limits, self.time()))

    def time(self) -> int:
        return int(time.time() * 1000) if self.now is None else self.now

    def sequence(self, steps: list[Step]) -> Outcome:
        """Do steps in one entry."""
        whole = Sequential((), tuple(steps), self.limits.value_bytes, self.time())
        self.limits.check_steps(whole.steps, ())
        index = self.store.applied_index + 1
        entry = Entry(1, index, EntryKind.COMMAND, codec.encode_sequential(whole))
        return self.store.apply([entry])[index]

    def _results(self, plan: Plan) -> list[Done]:
        if reads_only(plan.steps):
            records = [self.store.get(step.key) for step in plan.steps]
            return evaluate(plan.steps, records, self.time())
        return list(self.sequence(list(plan.steps)).done)
