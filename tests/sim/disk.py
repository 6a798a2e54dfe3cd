"""The disk of a machine in the fake world: crashfs.py's, whose power may go off in any call."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

__all__ = ["Disk"]


class Disk(CrashFileSystem):
    """A disk that may also lose power in any of its calls; *on_sync* lets a sync take its time."""

    def __init__(self, on_sync: Callable[[], None]) -> None:
        super().__init__()
        self._on_sync = on_sync
        self.crash_in: int | None = None
        """How many calls from now the power goes off."""

    def count(
        self,
        doing: str,
        poison: Callable[[str], None] | None = None,
        *,
        may_need_space: bool = False,
    ) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in == 0:
                self.kill()
                raise SimulatedCrash(doing)
        super().count(doing, poison, may_need_space=may_need_space)

    def count_sync(self) -> None:
        self._on_sync()
        super().count_sync()

    @property
    def is_dead(self) -> bool:
        """Whether the power is off."""
        return self._dead

    @contextlib.contextmanager
    def without_faults(self) -> Iterator[None]:
        """Let somebody who isn't there look at the files."""
        faults = self.crash_in, self._fail_at
        self.crash_in = self._fail_at = None
        yield
        self.crash_in, self._fail_at = faults

    def kill(self) -> None:
        """Switch the power off: every further call raises SimulatedCrash."""
        self._dead = True

    def mend(self) -> None:
        """From here on it has room, and no call of it fails."""
        self.set_capacity(None)
        self.copies_on_write = False
        self.fail_call(None)
        self.crash_in = None

    def after(self, mode: CrashMode, rng: random.Random, on_sync: Callable[[], None]) -> Disk:
        """Return what the next boot of a machine finds."""
        survivor = Disk(on_sync)
        vars(survivor).update(vars(self.after_crash(mode, rng)))
        return survivor
