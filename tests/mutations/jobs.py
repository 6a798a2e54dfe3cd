"""Faults of flushes and merges, of what is picked, believed, and done in a process."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

JOBS = ("tests/storage/lsm/test_jobs.py",)
ORDERS = ("tests/storage/lsm/test_orders.py",)
PICKING = ("tests/storage/lsm/test_picking.py",)
VERIFYING = ("tests/storage/lsm/test_verifying.py",)
WORKERS = ("tests/storage/lsm/test_workers.py",)

MUTATIONS = [
    Mutation(
        "a merge lets the oldest record win",
        "conure/storage/lsm/jobs.py",
        "for run in job.inputs[::-1]]",
        "for run in job.inputs]",
        JOBS,
    ),
    Mutation(
        "a merge drops tombstones that hide something",
        "conure/storage/lsm/jobs.py",
        "        if not firsts:\n",
        "        if True:\n",
        JOBS,
    ),
    Mutation(
        "a merge copies tombstones that hide nothing",
        "conure/storage/lsm/jobs.py",
        "    copies = not has_tombstones and not any(",
        "    copies = not any(",
        JOBS,
    ),
    Mutation(
        "a merge copies references and forgets to what",
        "conure/storage/lsm/jobs.py",
        " and not any(table.blobs for table in tables)\n",
        "\n",
        JOBS,
    ),
    Mutation(
        "a tombstone of the last key of an older table goes",
        "conure/storage/lsm/jobs.py",
        "after = bisect_left(lasts, keys[at])",
        'after = bisect_left(lasts, keys[at] + b"\\0")',
        JOBS,
    ),
    Mutation(
        "what a job wrote is believed before its folder is synced",
        "conure/storage/lsm/jobs.py",
        "            self._fs.sync_directory(self._folder)\n",
        "            pass\n",
        JOBS,
    ),
    Mutation(
        "a merge that fails leaves its files behind",
        "conure/storage/lsm/jobs.py",
        "                writer.abort()\n",
        "                pass\n",
        JOBS,
    ),
    Mutation(
        "values stay in a blob file that is emptied",
        "conure/storage/lsm/jobs.py",
        "                if file is not None:\n",
        "                if file is None:\n",
        JOBS,
    ),
    Mutation(
        "a discarded job takes another's files along",
        "conure/storage/lsm/jobs.py",
        "        stem == job.stem\n        and kind",
        "        kind",
        JOBS,
    ),
    Mutation(
        "a merge is done in one go",
        "conure/storage/lsm/jobs.py",
        "                if unyielded >= _SLICE_RECORDS:\n                    unyielded = 0\n"
        "                    yield\n        return",
        "                pass\n        return",
        JOBS,
    ),
    Mutation(
        "a frame is believed without its checksum",
        "conure/storage/lsm/orders.py",
        "            if crc32(view[8:end]) != checksum:\n",
        "            if checksum is None:\n",
        ("tests/storage/lsm/test_orders.py",),
    ),
    Mutation(
        "a frame may be as long as it says",
        "conure/storage/lsm/orders.py",
        "            if size > self._max_body:\n",
        "            if size < 0:\n",
        ("tests/storage/lsm/test_orders.py",),
    ),
    Mutation(
        "the answer to another job is taken",
        "conure/storage/lsm/orders.py",
        '        if facts["serial"] != serial:\n            raise ValueError("the answer',
        '        if facts["serial"] is None:\n            raise ValueError("the answer',
        ORDERS,
    ),
    Mutation(
        "newer tables of level 0 are merged before older ones",
        "conure/storage/lsm/picking.py",
        "        chosen = self._levels[0][-_L0_INPUTS:]\n",
        "        chosen = self._levels[0][:_L0_DUE]\n",
        PICKING,
    ),
    Mutation(
        "tombstones are said to hide nothing",
        "conure/storage/lsm/picking.py",
        "            for below in range(level + 1, LAST_LEVEL + 1)\n",
        "            for below in range(level + 1, LAST_LEVEL)\n",
        PICKING,
    ),
    Mutation(
        "level 0 takes the next level along however large that is",
        "conure/storage/lsm/picking.py",
        "                is_light = self._sizes[level] <= _ALONG * size\n",
        "                is_light = bool(size)\n",
        PICKING,
    ),
    Mutation(
        "what goes along leaves behind what it overlaps itself",
        "conure/storage/lsm/picking.py",
        "        while count < len(inputs):",
        "        while not count:",
        PICKING,
    ),
    Mutation(
        "a job may be of any size",
        "conure/storage/lsm/picking.py",
        " or sum(table.size for table in inputs) > self._most_bytes:",
        ":",
        PICKING,
    ),
    Mutation(
        "tombstones stay when there is nothing else to do",
        "conure/storage/lsm/picking.py",
        "            size + sum(table.tombstones for table in level) * self._record_bytes\n",
        "            size + 0.0 * len(level)\n",
        PICKING,
    ),
    Mutation(
        "dead blob files wait for an idle time",
        "conure/storage/lsm/picking.py",
        "        if not idle and self._dead <= _MUCH_DEAD * self._blob_bytes:\n",
        "        if not idle:\n",
        PICKING,
    ),
    Mutation(
        "a result's balance is believed",
        "conure/storage/lsm/verifying.py",
        "        _prove_balance(job, result, feed)\n",
        "",
        VERIFYING,
    ),
    Mutation(
        "a result may name any file",
        "conure/storage/lsm/verifying.py",
        "        _prove_names(job, result)\n",
        "",
        VERIFYING,
    ),
    Mutation(
        "keys that did not go in come out",
        "conure/storage/lsm/verifying.py",
        "    if result.tables[0].first < first or before > last:\n",
        "    if before > last:\n",
        VERIFYING,
    ),
    Mutation(
        "a table's bytes are believed",
        "conure/storage/lsm/verifying.py",
        "            yield from table.prove_bytes()\n",
        "            yield\n",
        VERIFYING,
    ),
    Mutation(
        "references to new values are believed",
        "conure/storage/lsm/verifying.py",
        "                    file.beginning(key, ref, 0)\n",
        "                    pass\n",
        VERIFYING,
    ),
    Mutation(
        "a worker outlives its node",
        "conure/storage/lsm/worker.py",
        "    while os.getppid() == parent and not hangup.poll(BEAT * 1000):\n",
        "    while not hangup.poll(BEAT * 1000):\n",
        WORKERS,
    ),
    Mutation(
        "a worker that is busy doesn't see that its node is gone",
        "conure/storage/lsm/worker.py",
        "    hangup.register(line.source, 0)\n",
        "",
        WORKERS,
    ),
    Mutation(
        "a signal to everybody ends the worker",
        "conure/storage/lsm/worker.py",
        "        signal.signal(number, signal.SIG_IGN)\n",
        "        signal.signal(number, signal.SIG_DFL)\n",
        WORKERS,
    ),
    Mutation(
        "a stopped worker is waited for",
        "conure/storage/lsm/workers.py",
        "        if self._outcome is None and self._silence > self._patience:\n",
        "        if self._outcome is None and self._silence < 0:\n",
        WORKERS,
    ),
    Mutation(
        "processes that have failed are never tried again",
        "conure/storage/lsm/workers.py",
        "self._strikes >= _STRIKES and monotonic() - self._struck_at < _AFTER_STRIKES:",
        "self._strikes >= _STRIKES:",
        WORKERS,
    ),
    Mutation(
        "a worker that removes its own files fails its node's disk",
        "conure/storage/lsm/jobs.py",
        "        if fs.exists(path):\n            raise\n",
        "        raise\n",
        ("tests/storage/lsm/test_jobs.py",),
    ),
    Mutation(
        "a full pipe holds up the node",
        "conure/storage/lsm/workers.py",
        "        os.set_blocking(self._to, False)\n",
        "        os.set_blocking(self._to, True)\n",
        WORKERS,
    ),
    Mutation(
        "time in which nobody listened counts as silence",
        "conure/storage/lsm/workers.py",
        "            self._silence = 0.0 if heard else self._silence + min(now - self._looked_at, "
        "_GLIMPSE)\n",
        "            self._silence = 0.0 if heard else self._silence + now - self._looked_at\n",
        WORKERS,
    ),
    Mutation(
        "a lost worker's files are left behind",
        "conure/storage/lsm/workers.py",
        "        if not isinstance(self._outcome, JobResult):\n            self._discard()\n",
        "        pass\n",
        WORKERS,
    ),
    Mutation(
        "an answer is taken before all was sent",
        "conure/storage/lsm/workers.py",
        "            if kind is Kind.DONE and self._source is None:\n",
        "            if kind is Kind.DONE:\n",
        WORKERS,
    ),
    Mutation(
        "a worker imports what lies about",
        "conure/storage/lsm/workers.py",
        '"-I", "-S", "-B"',
        '"-S", "-B"',
        WORKERS,
    ),
]
