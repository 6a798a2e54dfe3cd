"""What ``BTree.check()`` claims to notice, one by one: the structure is damaged in each way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from btree import BTree
from conure.errors import CorruptionError
from conure.storage.pages import Inner, Leaf
from tests.lab.crashfs import CrashFileSystem


def grown() -> BTree:
    """A tree of three levels that no checkpoint has written: its nodes are at hand."""
    tree = BTree.open(CrashFileSystem(), "db", page_size=256, cache_bytes=8000)
    for number in range(300):
        tree.put(b"%04d" % number, b"v" * (400 if number % 50 == 0 else 10), number + 1)
    assert tree.stats().depth == 3
    report = tree.check()
    assert report.kinds["overflow"] == 12
    return tree


def root(tree: BTree) -> Inner:
    found = tree._pool.unwritten[tree._root]
    assert isinstance(found, Inner)
    return found


def lowest(tree: BTree) -> Inner:
    """The first node above leaves."""
    found = tree._pool.unwritten[root(tree).children[0]]
    assert isinstance(found, Inner)
    return found


def leaf(tree: BTree, at: int = 1) -> Leaf:
    """A leaf in lists."""
    found = tree._pool.unwritten[lowest(tree).children[at]]
    assert isinstance(found, Leaf)
    if found.page:
        found.unpack()
    return found


def name_a_page_behind_the_end(tree: BTree) -> None:
    root(tree).children[-1] = 1_000_000


def name_a_page_twice(tree: BTree) -> None:
    root(tree).children[-1] = root(tree).children[0]


def free_a_page_that_is_used(tree: BTree) -> None:
    tree._pager.free(leaf(tree).number, 0, 1)
    tree._pager._waiting.clear()  # it is in no list of free pages either


def lose_a_page(tree: BTree) -> None:
    tree._pager.allocate()


def put_a_node_on_another_level(tree: BTree) -> None:
    lowest(tree).level = 2


def swap_two_keys(tree: BTree) -> None:
    keys = leaf(tree).keys
    keys[0], keys[1] = keys[1], keys[0]


def repeat_a_key(tree: BTree) -> None:
    keys = leaf(tree).keys
    keys[1] = keys[0]


def begin_below_the_separator(tree: BTree) -> None:
    leaf(tree).keys[0] = b"0000"


def end_behind_the_separator(tree: BTree) -> None:
    leaf(tree).keys[-1] = b"9999"


def end_at_the_separator(tree: BTree) -> None:
    """Which is the first key of the next leaf, or would be."""
    leaf(tree).keys[-1] = lowest(tree).keys[1]


def swap_two_separators(tree: BTree) -> None:
    keys = lowest(tree).keys
    keys[0], keys[1] = keys[1], keys[0]


def fill_a_node_too_full(tree: BTree) -> None:
    leaf(tree).used = tree._capacity + 1


def store_an_empty_key(tree: BTree) -> None:
    leaf(tree, 0).keys[0] = b""


def empty_a_leaf(tree: BTree) -> None:
    found = leaf(tree)
    found.keys.clear()
    found.cells.clear()


def lose_a_record(tree: BTree) -> None:
    found = leaf(tree)
    del found.keys[0], found.cells[0]


def give_two_records_one_value(tree: BTree) -> None:
    cells = leaf(tree, 0).cells
    cells[1] = cells[0]


def free_a_page_of_the_file(tree: BTree) -> None:
    tree.checkpoint(300, 1)
    tree.check()
    node = tree._pool.load(tree._root)
    while isinstance(node, Inner):
        node = tree._pool.load(node.children[0])
    tree._pager.free(node.number, 0, 1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (name_a_page_behind_the_end, "the page is not in the file (S4)"),
        (name_a_page_twice, "the page is in two places (S4)"),
        (free_a_page_of_the_file, "the page is in two places (S4)"),
        (give_two_records_one_value, "the page is not the next one of its value"),
        (free_a_page_that_is_used, "the page is used and would be given away (S4)"),
        (lose_a_page, "the page is neither used nor free (S4)"),
        (put_a_node_on_another_level, "the page is not of the level it should be"),
        (swap_two_keys, "the keys are out of order"),
        (repeat_a_key, "the keys are out of order"),
        (begin_below_the_separator, "the keys are out of order"),
        (swap_two_separators, "the keys are out of order"),
        (end_at_the_separator, "a key is beyond its parent's separator"),
        (end_behind_the_separator, "a key is beyond its parent's separator"),
        (fill_a_node_too_full, "the node is over-full or has an empty key"),
        (store_an_empty_key, "the node is over-full or has an empty key"),
        (empty_a_leaf, "the leaf is empty"),
        (lose_a_record, "the tree has 299 records and should have 300"),
    ],
)
def test_each_damage_is_named(damage: Callable[[BTree], None], named: str) -> None:
    tree = grown()
    damage(tree)
    with pytest.raises(CorruptionError) as found:
        tree.check()
    assert found.value.why == named
    assert found.value.file == "db"
    assert found.value.offset % 256 == 0
