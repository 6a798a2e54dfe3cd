"""Benchmarks: ConureDB beside etcd, redis, sqlite3 and LMDB, measured in one run.

    python -m bench                 every part (about an hour and a half)
    python -m bench http btree      some parts
    python -m bench --short         every part with less of everything, about twenty minutes
    python -m bench --quick         every part in a few minutes, for a rough look only
    python -m bench --write         every part, and the results go into bench/RESULTS.md

How the figures are made comparable:

1. All figures of one comparison come from one run on one machine. The systems take turns
   (A B C, B C A, ...) within each measurement; every figure is the median of the rounds.
2. A ratio is the ratio of the medians; the range behind it spans the ratios of the single rounds.
3. Everybody's writes are durable: a write is acknowledged after its fdatasync.
4. A load that meets an error, or leaves something else behind than it wrote, ends the run.
5. ConureDB runs on the system's Python if that can run it (``--python=…`` names another one). That
   is built as the one in the container image is, with profile-guided and link-time optimisation.
   A build without (what ``./configure && make`` gives) serves up to 13 % fewer requests a second.
6. Data lies on a real disk below ``build/bench``; processes are ended by id however the run ends.

=================== ==========================================================================
``plan``            how much is measured: the full, the short and the quick plan
``workspace``       directories, ports and processes of a run
``report``          medians, ratios, tables, targets and ``RESULTS.md``
``servers``         starting ConureDB, etcd and redis, and speaking to them
``clusters``        three of them that agree on a leader
``systems``         the rows of a table over HTTP: what each is asked, and their figures
``records``         numbered records: loading many and reading them back
``loads``           wrk (``replay.lua`` is its script), h2load and redis-benchmark
``pipeline``        clients of our own: a pipelined loader and one that keeps a steady pace
``engines``         the B-tree, sqlite3 and LMDB behind one interface, each in its own process
``http_part``       one node: throughput and latency over HTTP
``features_part``   one node: ranges, batches, conditional writes, watches
``btree_part``      the storage engine in process
``restart_part``    kill -9 under load, and the time until the node serves again
``checkpoint_part`` what a checkpoint costs the writes beside it
``cluster_part``    three nodes: throughput and latency over HTTP
``failover_part``   kill -9 of the leader, and the time until the next put is accepted
``steady_part``     three nodes under full load for minutes: no election without a cause
``join_part``       a node joins while puts go on
=================== ==========================================================================
"""
