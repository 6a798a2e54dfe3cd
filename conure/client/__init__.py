"""The Python client: speaks to any server of a cluster, finds the leader, keeps connections.

    from conure.client import Client, Op, when

    with Client(["http://10.0.0.5:8081", "http://10.0.0.6:8081"]) as db:
        revision = db.put("greeting", "hello")
        assert db.get("greeting") == b"hello"
        db.put("greeting", "good day", if_revision=revision)
        db.txn(compare=[when("stock", exists=True)], success=[Op.increment("stock", -1)])
        with db.lock("jobs/1", ttl=15) as token:
            ...
        for event in db.watch(prefix="config/"):
            print(event.key, event.value)

What it repeats on its own, within the time limit, and what it never does:

========================================= ================= ================= ==================
what happened                             reads             plain writes      writes with a key
========================================= ================= ================= ==================
no byte of the request was sent           repeated          repeated          repeated
307, the leader is elsewhere              followed          followed          followed
503, 429, nothing was changed             repeated          repeated          repeated
the connection was lost after sending     repeated          OutcomeUnknown    repeated
502, 504, or no answer in time            repeated          OutcomeUnknown    repeated
a certificate is no good, on either side  the error         the error         the error
500 and any other 5xx                     the error         OutcomeUnknown    repeated
4xx, 501, 507                             the error         the error         the error
========================================= ================= ================= ==================

The *key* is an ``Idempotency-Key``: the cluster remembers for some minutes what became of it, and
gives the same answer to a repetition, after a change of leader too. All writes carry one that are
transactions for the server in any case: conditional ones, those with a time to live, increments,
batches, transactions and the like. A plain ``put`` or ``delete`` of a key does with
``exactly_once=True`` only: it is then a transaction with an outcome to be remembered, of which a
server carries out about a quarter as many a second, and a lone one takes about 0.3 ms longer.

1. A write without a key whose outcome isn't known is never sent again: the first one may have been
   committed, and a second one would undo what somebody else wrote in between. Only the caller can
   tell whether repeating it is harmless. One with a key is OutcomeUnknown at the end of the time
   limit, if it was sent and never answered.
2. Every server that was named is asked in turn, beginning with the last known leader. Before a
   server is asked a second time the client waits, longer each time, and not in step with others;
   after a 429 as long as the server has asked for.
3. Redirects are followed to base URLs only, never from https to http, and only their scheme, host
   and port are used.
4. A resting connection is looked at before it is used again. One that the server has closed is
   dropped then, while no byte is on its way.
5. By https nothing is sent to a server before it has proved who it is, and an answer or a stream
   that ends before the server has said so is a broken one.
6. What is streamed (``items``, ``watch``, ``backup``) has a connection of its own meanwhile. The
   time limit is for its beginning; then it may last, as long as something comes every 15 s.

Threads: any number may share a client. Connections rest in a pool between requests, so there are as
many as there were requests at one time. Each :class:`Session`, and so each lock, has a thread that
renews it.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
from conure.client.calls import DEFAULT_SERVER
from conure.client.client import DEFAULT_TIMEOUT, DEFAULT_TTL, Client
from conure.client.locks import Lock, Session
from conure.client.model import Event, LockHeld, LockLost, Op, Page, Record, TxnResult, when
from conure.client.ranges import Items
from conure.client.watches import Watch

__all__ = [
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT",
    "DEFAULT_TTL",
    "Client",
    "Event",
    "Items",
    "Lock",
    "LockHeld",
    "LockLost",
    "Op",
    "Page",
    "Record",
    "Session",
    "TxnResult",
    "Watch",
    "when",
]
