"""Engines that take turns: all are open, each in its own process, and one works at a time.

Between its turns an engine's process group is stopped (SIGSTOP), threads and workers included:
nobody merges files in somebody else's time, nor gets time for it that isn't counted.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.contender import LOG_FOLDER
from bench.engine_process import Answer
from bench.footprint import Footprint, written_bytes
from bench.samples import write_keys
from bench.workspace import BenchError, Talker, Workspace

__all__ = ["RunningEngine", "in_turns", "start_engines"]

_LOOK = 0.05  # seconds between two looks at the memory of who works
_PATIENCE = 7_200.0  # seconds for one operation


class RunningEngine:
    """An engine's process, stopped but while :meth:`call` waits for it."""

    def __init__(self, workspace: Workspace, name: str, keys: str, parent: str) -> None:
        self.name = name
        self.directory = os.path.join(parent, name.replace(" ", "-").replace("+", "and"))
        os.mkdir(self.directory)
        argv = [sys.executable, "-m", "bench.engine_process", name, keys, self.directory]
        self._process: Talker = workspace.converse("engine", argv)
        self.memory = Footprint(self._process.pid)
        self.written = 0  # bytes that the disk has written in its turns, by whomever

    def call(self, operation: str, **arguments: Any) -> Answer:
        """Let it carry out an operation of ``engine_process.py``. Raises BenchError."""
        before = written_bytes(self.directory)
        self._process.send(json.dumps({"operation": operation, **arguments}))
        os.killpg(self._process.pid, signal.SIGCONT)
        deadline = time.monotonic() + _PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.output, selectors.EVENT_READ)
            while not selector.select(_LOOK):
                self.memory.sample()
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.name}: {operation} takes too long")
        answer = json.loads(self._process.receive())
        self.memory.sample()
        os.killpg(self._process.pid, signal.SIGSTOP)
        self.written += written_bytes(self.directory) - before
        if "error" in answer:
            raise BenchError(answer["error"])
        return Answer(**answer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def files(self) -> int:
        """How many bytes its files have, but for those of a Raft log, which keeps room for more."""
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(self.directory)
            for name in names
            if os.path.basename(folder) != LOG_FOLDER
        )

    def end(self) -> None:
        """End the process; what was closed before is whole."""
        self._process.kill()
        self._process.wait()


def start_engines(
    workspace: Workspace, names: Sequence[str], records: int
) -> tuple[list[RunningEngine], str]:
    """Start engines that share *records* keys; return them, and the directory of it all."""
    parent = workspace.directory("engines")
    keys = os.path.join(parent, "keys")
    write_keys(keys, records)
    return [RunningEngine(workspace, name, keys, parent) for name in names], parent


def in_turns(
    engines: Sequence[RunningEngine], bursts: int, burst: Callable[[RunningEngine, int], Answer]
) -> dict[str, list[Answer]]:
    """Let each engine do *burst* after *burst*, in an order that moves on; return them by name."""
    done: dict[str, list[Answer]] = {engine.name: [] for engine in engines}
    for number in range(bursts):
        turn = number % len(engines)
        for engine in (*engines[turn:], *engines[:turn]):
            done[engine.name].append(burst(engine, number))
    return done
