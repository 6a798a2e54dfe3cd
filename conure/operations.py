"""Operations on keys, counted over all fronts, as the metric of another system has them.

``kvstore_operations_total`` has one of three values of its label ``op``:

========== =============================================================================
``get``    what reads keys that it names, or of HTTP a range
``put``    what changes keys that it names
``delete`` what removes keys that it names, or of HTTP a range
========== =============================================================================

An operation is what a client asks for at once: a request of HTTP that was carried out, a command of
RESP, whatever the number of its keys. Nothing is counted for this here: each front has counts of
its own, and says which of them are what. What asks for several kinds, such as a transaction or a
batch, is none of the three.

Fronts are added before anybody renders; any thread may render.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

from conure.metrics import Registry

__all__ = ["Counted", "Operation", "Operations"]

Operation = Literal["put", "get", "delete"]

Counted = tuple[Operation, float]
"""An operation, and how often one of a front's counts has seen it."""

_OPERATIONS: Final[tuple[Operation, ...]] = ("put", "get", "delete")


class Operations:
    """The metric, in *registry*."""

    def __init__(self, registry: Registry) -> None:
        self._fronts: list[Callable[[], Iterable[Counted]]] = []
        registry.labelled_callback(
            "kvstore_operations_total",
            "counter",
            "Requests and commands of all fronts that put, get or delete keys.",
            ("op",),
            self._read,
        )

    def add(self, counted: Callable[[], Iterable[Counted]]) -> None:
        """Count what a front says as well, whose numbers only grow."""
        self._fronts.append(counted)

    def _read(self) -> list[tuple[tuple[str], float]]:
        totals: dict[Operation, float] = dict.fromkeys(_OPERATIONS, 0)
        for counted in self._fronts:
            for operation, count in counted():
                totals[operation] += count
        return [((operation,), total) for operation, total in totals.items()]
