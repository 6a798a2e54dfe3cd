"""The client of tools/k8s_check.py: runs in a pod of the image, with the image's own client.

``write SERVERS PREFIX``
    Puts keys of its own from several threads until standard input ends, then prints what became
    of them, as JSON. A put that failed or whose outcome is unknown is counted and repeated, which
    is harmless here: nobody else has the key, and the value is the same.

``find SERVERS PREFIX COUNT...``
    Gets what ``write`` counted as acknowledged, and prints how many of these hold their value.

SERVERS are base URLs, separated by commas. Certificates are those that the environment names.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conure.client import Client
from conure.errors import ConureError, OutcomeUnknown

WRITERS = 4
REST_SECONDS = 0.01
FILES = ("ca", "cert", "key")
HAS_FILES = "CONURE_CA" in os.environ


class Writer(threading.Thread):
    """Puts one key after the other; *acknowledged* of them so far."""

    def __init__(self, client: Client, prefix: str, stopping: threading.Event) -> None:
        super().__init__()
        self.acknowledged = 0
        self.unknown = 0
        self.refused: Counter[str] = Counter()
        self.longest_gap = 0.0
        self._client = client
        self._prefix = prefix
        self._stopping = stopping

    def run(self) -> None:
        """Put until told to stop, the last key too."""
        last = time.monotonic()
        while not self._stopping.wait(REST_SECONDS):
            key = f"{self._prefix}-{self.acknowledged}"
            while not self._put(key):
                pass
            self.acknowledged += 1
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now

    def _put(self, key: str) -> bool:
        try:
            self._client.put(key, key)
        except OutcomeUnknown:
            self.unknown += 1
        except ConureError as error:
            self.refused[str(error)] += 1
        else:
            return True
        return False


def client_of(servers: str) -> Client:
    """Return a client of these servers, which asks as the environment says. Close it."""
    given = {name: os.environ[f"CONURE_{name.upper()}"] for name in FILES if HAS_FILES}
    options: dict[str, Any] = given  # an earlier release's client knows none of them
    return Client(servers.split(","), **options)


def write(server: str, prefix: str) -> None:
    """Write until standard input ends."""
    stopping = threading.Event()
    with client_of(server) as client:
        writers = [Writer(client, f"{prefix}-{n}", stopping) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        sys.stdin.read()
        stopping.set()
        for writer in writers:
            writer.join()
    refused = sum((writer.refused for writer in writers), Counter[str]())
    counts = {
        "acknowledged": [writer.acknowledged for writer in writers],
        "unknown": sum(writer.unknown for writer in writers),
        "refused": sum(refused.values()),
        "reasons": sorted(refused),
        "longest_gap": max(writer.longest_gap for writer in writers),
    }
    print(json.dumps(counts))


def find(server: str, prefix: str, counts: list[int]) -> None:
    """Print how many of the acknowledged keys hold their value."""
    keys = [f"{prefix}-{n}-{i}" for n, count in enumerate(counts) for i in range(count)]
    with client_of(server) as client, ThreadPoolExecutor(WRITERS) as pool:
        print(sum(pool.map(lambda key: client.get(key) == key.encode(), keys)))


if __name__ == "__main__":
    task, its_server, its_prefix, *numbers = sys.argv[1:]
    if task == "write":
        write(its_server, its_prefix)
    else:
        find(its_server, its_prefix, [int(number) for number in numbers])
