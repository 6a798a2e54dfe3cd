"""The records of a range, read from an answer as they come. One thread for each iterator."""

from __future__ import annotations

from collections.abc import Iterator

from conure.client.calls import Calls
from conure.client.connections import Answer, ConnectionFailed, pieces
from conure.client.model import Closing, Record, to_object, to_record
from conure.errors import Unavailable

__all__ = ["Items"]


class Items(Closing):
    """Records as of ``revision``, in the order of their keys; see ``Client.items``.

    An iterator, for one thread; ``close`` ends it early.
    """

    def __init__(self, calls: Calls, answer: Answer) -> None:
        self.revision = answer.revision
        self._calls = calls
        self._server = answer.server
        self._stream = answer.stream
        self._lines = pieces(self._stream, b"\n")

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        try:
            return to_record(to_object(next(self._lines)))
        except StopIteration:
            connection = self._stream.let_go()
            if connection is not None:
                self._calls.put_back(self._server, connection)
            raise
        except ConnectionFailed as failure:
            self.close()
            raise Unavailable(
                f"the list broke off ({failure}); read again from where it did, or all of it"
            ) from failure

    def close(self) -> None:
        """End it, however much is left."""
        self._lines.close()
        self._stream.close()
