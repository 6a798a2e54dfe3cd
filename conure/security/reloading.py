"""What is made of files, and made again when they change.

A :class:`Reloaded` keeps what was made last: a file that is missing for a moment, half written, or
doesn't fit another one changes nothing, and is told once. A :class:`Watcher` looks at all of them
about once a second, and at once when :meth:`Watcher.hurry` says so. Files count as changed when
one of them, followed through links, is another one, or has another size or time of change.

Nobody is disconnected by that: what was made before is used by who has it.

Threads: the watcher's own makes things anew; ``Reloaded.value`` may be read from any.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, Generic, NamedTuple, TypeVar

from conure.errors import ConfigError

__all__ = ["GivenFile", "Reloaded", "Watcher", "warn_of_mode"]

T = TypeVar("T")

_LOOK: Final = 1.0  # seconds between two looks
_MOST_BYTES: Final = 1 << 20  # of a file
_NOT_OWNER: Final = 0o077  # bits of a file's mode: what others than its owner may do
_WRITERS_OR_OTHERS: Final = 0o037  # the same, but for its group's reading it

log = logging.getLogger("conure.security")


class GivenFile(NamedTuple):
    """A file that a setting names; *source* is where the setting was given."""

    setting: str
    source: str
    path: str

    def read(self) -> bytes:
        """Return what is in it. Raises ConfigError."""
        try:
            with open(self.path, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise self.error(f"can't be read: {error.strerror or error}") from error
        if len(content) > _MOST_BYTES:
            raise self.error(f"has more than {_MOST_BYTES:,} bytes; is it the right file?")
        return content

    def error(self, why: str) -> ConfigError:
        """Return what is wrong with the file, for whoever has named it."""
        return ConfigError(self.setting, self.source, f"{self.path} {why}")


def warn_of_mode(file: GivenFile) -> None:
    """Warn of a key or a secret that others may read. A group may where the owner isn't this
    process' user: that is how secrets are mounted in containers."""
    found = os.stat(file.path)
    is_ours = found.st_uid == os.geteuid()
    if found.st_mode & (_NOT_OWNER if is_ours else _WRITERS_OR_OTHERS):
        log.warning(
            "%s (%s) may be read or written by others than its owner; chmod 600 it",
            *(file.path, file.setting),
        )


class Reloaded(Generic[T]):
    """What *make* makes of *files*; *make* raises ConfigError, and so does the first time."""

    def __init__(self, files: Sequence[GivenFile], make: Callable[[], T]) -> None:
        self.files = files
        self.reloads = 0
        """How often it was made anew. Any thread."""
        self._make = make
        self._seen = self._look()
        self.value: T = make()

    def look(self) -> bool:
        """Make it anew if a file has changed; return whether that has been done. One thread at a
        time."""
        # Before anything is read: what changes from now on is seen by the next look.
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        paths = ", ".join(file.path for file in self.files)
        try:
            self.value = self._make()
        except (ConfigError, OSError) as error:  # OSError: it is gone since it was read
            log.error("what was read before stays in use, since %s", error)
            return False
        self.reloads += 1
        log.info("read again: %s", paths)
        return True

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_signature(file.path) for file in self.files]


class Watcher:
    """The thread that looks whether files have changed, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self._looks: list[Callable[[], object]] = []
        self._woken: SimpleQueue[bool] = SimpleQueue()  # True: look; False: end
        self._thread: threading.Thread | None = None

    @property
    def has_work(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._looks)

    def add(self, look: Callable[[], object]) -> None:
        """Call *look* about once a second, in the watcher's thread. Before :meth:`start`."""
        self._looks.append(look)

    def start(self) -> None:
        """Begin to look, if there is anything to look at."""
        if self._looks:
            self._thread = threading.Thread(target=self._run, name="files", daemon=True)
            self._thread.start()

    def hurry(self) -> None:
        """Have all files looked at at once. Any thread, and a signal's handler: takes no lock."""
        self._woken.put(True)

    def stop(self) -> None:
        """End the thread, and wait for it."""
        if self._thread is not None:
            self._woken.put(False)
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            for look in self._looks:
                look()

    def _wait(self) -> bool:
        try:
            return self._woken.get(timeout=_LOOK)
        except Empty:
            return True


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
