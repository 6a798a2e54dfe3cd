"""Benchmarks: ConureDB beside etcd, redis, sqlite3 and LMDB, measured in one run.

    python -m bench                 every part (about half an hour)
    python -m bench http btree      some parts
    python -m bench --short         every part with less of everything, about ten minutes
    python -m bench --quick         every part in about a minute, for a rough look only
    python -m bench --write         every part, and the results go into bench/RESULTS.md

How the figures are made comparable:

1. All figures of one comparison come from one run on one machine. The systems take turns
   (A B C, B C A, ...) within each measurement; every figure is the median of the rounds.
2. A ratio is the ratio of the medians; the range behind it spans the ratios of the single rounds.
3. Everybody's writes are durable: a write is acknowledged after its fdatasync.
4. A load that meets an error, or leaves something else behind than it wrote, ends the run.
5. Data lies on a real disk below ``build/bench``; processes are ended by id however the run ends.

=================== ==========================================================================
``plan``            how much is measured: the full and the quick plan
``workspace``       directories, ports and processes of a run
``report``          medians, ratios, tables, targets and ``RESULTS.md``
``servers``         starting ConureDB, etcd and redis, and speaking to them
``loads``           wrk and redis-benchmark (``replay.lua`` is wrk's script)
``pipeline``        clients of our own: a pipelined loader and one that keeps a steady pace
``engines``         the B-tree, sqlite3 and LMDB behind one interface, each in its own process
``http_part``       throughput and latency over HTTP
``btree_part``      the storage engine in process
``restart_part``    kill -9 under load, and the time until the node serves again
``checkpoint_part`` what a checkpoint costs the writes beside it
=================== ==========================================================================
"""
