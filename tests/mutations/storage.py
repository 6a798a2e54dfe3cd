"""Faults of the tree, its pages and the data directory."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "a checkpoint leaves the pages of removed values behind",
        "btree.py",
        "        self._move_tail()\n        self.maintain(inf)\n",
        "        self._move_tail()\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "who writes long values frees none",
        "btree.py",
        "            self._spilled.reclaim(2 + 2 * len(value) // self._capacity)\n",
        "            pass\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "an identity's new name is not synced",
        "conure/storage/datadir.py",
        '        self.fs.rename(path + ".new", path)\n        self.fs.sync_directory(self.path)\n',
        '        self.fs.rename(path + ".new", path)\n',
        ("tests/storage/test_datadir.py",),
    ),
    Mutation(
        "what a killed process wrote last is not synced by the next one",
        "pager.py",
        "            file.sync()\n            meta, older",
        "            meta, older",
        ("tests/storage/test_btree_crash.py",),
    ),
    Mutation(
        "a meta page may be on disk before the pages that it names",
        "pager.py",
        "            self.sync()  # S2: the data before the meta page that names it\n",
        "",
        ("tests/storage/test_pager.py", "tests/storage/test_btree_crash.py"),
    ),
    Mutation(
        "a page is given away while the older meta page reaches it",
        "pager.py",
        "        self.pin(older.epoch)\n",
        "",
        ("tests/storage/test_pager.py", "tests/storage/test_btree_crash.py"),
    ),
    Mutation(
        "a packed leaf's cells are looked for where its keys end one too late",
        "conure/storage/pages.py",
        "    key_end = keys_at + _U16.unpack_from(page, _BASE + behind)[0]\n",
        "    key_end = keys_at + _U16.unpack_from(page, _BASE + before)[0]\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "a separator may be the key before it",
        "conure/storage/cells.py",
        "return right[: at + 1]",
        "return right[:at]",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "check() overlooks a page in two places",
        "conure/storage/treecheck.py",
        "        if self._seen[number]:\n",
        "        if self._seen[number] > 1:\n",
        ("tests/storage/test_btree_check.py",),
    ),
    Mutation(
        "check() overlooks a page that would be given away",
        "conure/storage/treecheck.py",
        "        if not self._pager.is_in_tree(number):\n",
        "        if number < 0:\n",
        ("tests/storage/test_btree_check.py",),
    ),
    Mutation(
        "check() overlooks a key beyond its separator",
        "conure/storage/treecheck.py",
        "if keys and high is not None and keys[-1] >= high:",
        "if keys and high is not None and keys[-1] > high:",
        ("tests/storage/test_btree_check.py",),
    ),
    Mutation(
        "check() overlooks a lost page",
        "conure/storage/treecheck.py",
        "        if lost >= 0:\n",
        "        if lost > self._report.pages:\n",
        ("tests/storage/test_btree_check.py",),
    ),
    Mutation(
        "a reader's nodes are changed under it",
        "conure/storage/bufferpool.py",
        "if self.readers or number not in self._ring:",
        "if number not in self._ring:",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "lists take the room of pages",
        "conure/storage/bufferpool.py",
        "        return needed + self._limit // _SPARED <= self._limit",
        "        return needed > 0",
        ("tests/storage/test_btree_space.py",),
    ),
    Mutation(
        "lists are packed though there is room for them",
        "conure/storage/bufferpool.py",
        "            if not self._has_spare(len(page.keys), page.used + NODE_BYTES):",
        "            if page.keys:",
        ("tests/storage/test_btree_space.py",),
    ),
    Mutation(
        "pages are dropped where lists could be packed",
        "conure/storage/bufferpool.py",
        "            if self._has_many_lists(2):",
        "            if not self._ring:",
        ("tests/storage/test_btree_space.py",),
    ),
    Mutation(
        "a closed state goes on being read",
        "conure/storage/snapshot.py",
        "        if not self._open:\n",
        "        if self._open is None:\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
            "tests/storage/test_engine.py",
        ),
    ),
    Mutation(
        "a range begins with the leaf after its first",
        "conure/storage/search.py",
        "node.children[bisect_right(node.keys, start) : last + 1]",
        "node.children[bisect_right(node.keys, start) + bool(start) : last + 1]",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
            "tests/storage/test_engine.py",
        ),
    ),
    Mutation(
        "an aborted checkpoint forgets its pages",
        "conure/storage/writeback.py",
        "            self._pool.thaw()\n",
        "            pass\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "pages that are loaded show what was there before",
        "conure/storage/bufferpool.py",
        "            for number in numbers:\n                self._drop_stale(number)\n",
        "",
        ("tests/storage/test_engine.py",),
    ),
    Mutation(
        "a checkpoint that is over is given up",
        "conure/storage/writeback.py",
        "        if self._is_over:\n",
        "        if self._is_over is None:\n",
        ("tests/storage/test_engine.py",),
    ),
    Mutation(
        "a load that failed keeps its pages",
        "conure/storage/bulkload.py",
        "                self._pager.free(number, pool.epoch, pool.epoch)\n",
        "                pass\n",
        ("tests/storage/test_btree_crash.py", "tests/storage/test_engine.py"),
    ),
    Mutation(
        "the pages of a removed value are never found",
        "conure/storage/spilled.py",
        "        self._replaced.append((key, ref))\n",
        "        pass\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
            "tests/storage/test_engine.py",
        ),
    ),
    Mutation(
        "keys that come in order leave half-full leaves behind",
        "conure/storage/layout.py",
        "            ends[0] = len(sizes) - 1\n",
        "            pass\n",
        (
            "tests/storage/test_btree.py",
            "tests/storage/test_btree_space.py",
        ),
    ),
    Mutation(
        "a directory of another engine looks as older versions know it",
        "conure/storage/datadir.py",
        "    version = FORMAT if identity.engine == _BTREE else FORMAT_WITH_ENGINE\n",
        "    version = FORMAT\n",
        ("tests/storage/test_datadir.py",),
    ),
    Mutation(
        "a directory is opened as one of another engine",
        "conure/storage/datadir.py",
        '    if engine not in ("", identity.engine) and role == "data":\n',
        "    if False:\n",
        ("tests/storage/test_datadir.py",),
    ),
    Mutation(
        "an engine that nobody knows is taken for another",
        "conure/storage/engines.py",
        "        return KINDS[name]\n",
        "        return KINDS.get(name, KINDS[BTREE])\n",
        ("tests/storage/test_engine.py",),
    ),
    Mutation(
        "a state that was put in place may be undone by a power failure",
        "btree.py",
        '        fs.sync_directory(os.path.dirname(place) or ".")\n',
        "",
        ("tests/storage/test_engine.py",),
    ),
]
