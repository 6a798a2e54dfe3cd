"""Benchmarks: ConureDB beside etcd, redis, sqlite3, LMDB, LevelDB and RocksDB, measured in one run.

    python -m bench                 every part (about five hours, two of them for 10 M records)
    python -m bench http engines    some parts
    python -m bench --short         every part with less of everything, about an hour
    python -m bench --quick         every part in some minutes, for a rough look only
    python -m bench --write         every part, and the results go into bench/RESULTS.md
    python -m bench pairs …         one comparison of two; ``python -m bench pairs --help``

How the figures are made comparable:

1. All figures of one comparison come from one run on one machine. The systems take turns
   (A B C, B C A, ...) within each measurement; every figure is the median of the rounds.
2. A ratio of rounds is the ratio of the medians; the range behind it spans the ratios of the single
   rounds. A ratio of pairs has an interval of 95 % behind it, and meets a goal if that reaches it
   (``pairs.py``).
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
``records``         numbered records in servers: loading many and reading them back
``loads``           wrk (``replay.lua`` is its script), h2load and redis-benchmark
``pipeline``        clients of our own: a pipelined loader and one that keeps a steady pace
``pairs``           what interleaved bursts say of a ratio, and how sure that is
``footprint``       memory and bytes written of a process and its children
``contender``       what is asked of every storage engine
``ours, peers``     ConureDB's engines and those of others, so that they can be asked that
``engines``         all of them by name
``samples``         numbered records for them
``engine_process``  one of them in a process of its own, told what to do
``turns``           several of them that take turns
``engine_part``     the storage engines in process
``server_turns``    servers that take turns
``resp_load``       gets and sets in one mix over RESP
``pairs_command``   the command for one comparison
``node_part``       a node with each storage engine: puts, loads, delays, memory
``resp_part``       RESP: one node and three beside redis and HTTP
``http_part``       one node: throughput and latency over HTTP
``features_part``   one node: ranges, batches, conditional writes, watches
``restart_part``    kill -9 under load, and the time until the node serves again
``checkpoint_part`` what a checkpoint costs the writes beside it
``cluster_part``    three nodes: throughput and latency over HTTP
``failover_part``   kill -9 of the leader, and the time until the next put is accepted
``steady_part``     three nodes under full load for minutes: no election without a cause
``join_part``       a node joins while puts go on
``keys``            certificates, and a cluster's secret
``newcomers``       clients that connect by TLS, one after the other, as servers are measured beside
``security_part``   what TLS and proofs between nodes cost
=================== ==========================================================================
"""
