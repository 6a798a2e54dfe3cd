"""What a node does with a request that only the leader can serve.

Each front brings its own way: to send the client there, or to ask the leader on its behalf.
Protocols only: nothing here runs.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from conure.errors import NotLeader
from conure.service.front import Waiter

__all__ = ["Referral"]

_WaiterT_contra = TypeVar("_WaiterT_contra", bound=Waiter, contravariant=True)


class Referral(Protocol[_WaiterT_contra]):
    """How the waiters of a front get to the leader."""

    @property
    def passes_on(self) -> bool:
        """Whether this node asks the leader itself, instead of sending the client there."""

    def refer(self, waiter: _WaiterT_contra, error: NotLeader) -> bool:
        """Answer a waiter by way of the leader whom *error* names; False if that can't be: it is
        to be answered with the error. Any thread; never blocks and never raises."""
