"""Clusters of real nodes in one thread: a fake network, clock and disk, and much bad luck.

Everything that decides anything is real: driver, core, log, tree, snapshots (node.py and below).
What a seed decides is the world around them; each file knows those above it alone:

============= ====================================================================================
luck          what a seed decides before anything happens
world         time, the events in its order, one random generator for all of them, the trace
disk          crashfs.py's, whose power may go off in any call
machine       a server: its disk, its address, and the process that runs on it
fleet         all machines
checks        what is always true, looked at after every step
network       messages, snapshots and probes between machines, and the connections for them
requests      the way of requests from outside, and the account of what they were answered
registers     clients that write and read a few keys
clients       those that do all else that there is
watchers      those who watch or poll, at any node
membership    joining and removing, until it is done
nemesis       cuts, crashes, pauses, fills, slows down, and sets wall clocks
operator      joins, removes, moves and wipes nodes, hands leadership over
verdict       what has to be true in the end
simulation    all of them put together, and the two phases of a history
seeds         what plays a seed from its beginning to its end
forming       clusters that are begun by a list: a fleet, faults and rules of their own
============= ====================================================================================

When the time is up, the faults end. Within a bounded time the cluster has to come back: one leader,
every client served on every key, all data nodes at one index with one digest. By hand::

    python -m tests.sim --seeds 1000 [--start N] [--jobs 2] [--steps N] [--verbose]

No node may fail, refuse to start or receive nonsense, unless its disk was told to fail; a full disk
ends nobody, and keeps nobody from starting who has what it needs for that.
"""
