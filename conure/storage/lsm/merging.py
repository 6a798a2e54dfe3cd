"""The ordered merge: several sorted sources of keys and cells seen as one, in either direction.

A source is an iterator of *groups*: keys and their cells in two lists of one length, the keys
ascending within a group in both directions; groups follow one another upwards, or downwards if
*reverse*. Of a key that several sources have, the newest source's cell counts. The merge hands out
groups of the same form: as they are where only one source has keys in a range, with newer keys
inserted where these are few, and from a dict otherwise.

A cell that is TOMBSTONE stands for a deleted key. :func:`merged` passes it on.

Pure: no file, no lock; any thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final, TypeAlias

__all__ = ["Group", "gathered", "live", "merged"]

Group: TypeAlias = tuple[list[bytes], list[bytes]]

_MOST_GATHERED: Final = 16  # groups of a source that are joined in a long scan
_FEW: Final = 4  # times as many older keys: then it costs less to insert the newer ones


class _Head:
    """What has been taken from one source, and what of it is still to be merged."""

    __slots__ = ("cells", "first", "keys", "last", "source")

    def __init__(self, source: Iterator[Group]) -> None:
        self.source = source
        self.keys: list[bytes] = []
        self.cells: list[bytes] = []
        self.first = self.last = 0  # the part that is left: first <= place < last

    def refill(self) -> bool:
        """Take the next group; tell whether there was one."""
        group = next(self.source, None)
        while group is not None:
            self.keys, self.cells = group
            self.first, self.last = 0, len(self.keys)
            if self.last:
                return True
            group = next(self.source, None)
        return False


def merged(sources: Sequence[Iterator[Group]], *, reverse: bool = False) -> Iterator[Group]:
    """Merge sources, the newest first. Deleted keys are passed on."""
    if len(sources) == 1:
        return sources[0]
    return _merged([gathered(source, reverse=reverse) for source in sources], reverse)


def _merged(sources: Sequence[Iterator[Group]], reverse: bool) -> Iterator[Group]:
    heads = [head for head in map(_Head, sources) if head.refill()]
    while len(heads) > 1:
        parts = _taken_down(heads) if reverse else _taken_up(heads)
        if len(parts) == 1:
            yield parts[0]
        else:
            *newer, oldest = parts
            if sum([len(keys) for keys, _ in newer]) * _FEW > len(oldest[0]):
                yield _sorted(parts)
            else:
                yield _inserted(oldest, newer[0] if len(newer) == 1 else _sorted(newer))
        for head in heads:
            if head.first >= head.last and not head.refill():
                heads = [each for each in heads if each is not head]
    for head in heads:
        yield head.keys[head.first : head.last], head.cells[head.first : head.last]
        yield from head.source


def _sorted(parts: Sequence[Group]) -> Group:
    found: dict[bytes, bytes] = {}
    for keys, cells in reversed(parts):
        found.update(zip(keys, cells, strict=True))
    keys = sorted(found)
    return keys, list(map(found.__getitem__, keys))


def _inserted(older: Group, newer: Group) -> Group:
    keys, cells = older
    all_keys: list[bytes] = []
    all_cells: list[bytes] = []
    at, size = 0, len(keys)
    for key, cell in zip(*newer, strict=True):
        there = bisect_left(keys, key, at)
        all_keys += keys[at:there]
        all_cells += cells[at:there]
        all_keys.append(key)
        all_cells.append(cell)
        at = there + 1 if there < size and keys[there] == key else there
    all_keys += keys[at:]
    all_cells += cells[at:]
    return all_keys, all_cells


def _taken_up(heads: list[_Head]) -> list[Group]:
    """Take from each head what is not above the least of their last keys."""
    bound = min([head.keys[head.last - 1] for head in heads])
    parts = []
    for head in heads:
        keys, first = head.keys, head.first
        if keys[first] <= bound:
            end = bisect_right(keys, bound, first, head.last)
            parts.append((keys[first:end], head.cells[first:end]))
            head.first = end
    return parts


def _taken_down(heads: list[_Head]) -> list[Group]:
    """Take from each head what is not below the greatest of their first keys."""
    bound = max([head.keys[head.first] for head in heads])
    parts = []
    for head in heads:
        keys, last = head.keys, head.last
        if keys[last - 1] >= bound:
            start = bisect_left(keys, bound, head.first, last)
            parts.append((keys[start:last], head.cells[start:last]))
            head.last = start
    return parts


def gathered(groups: Iterator[Group], *, reverse: bool = False) -> Iterator[Group]:
    """Join groups of one source, more and more of them: a merge costs less with longer ones, and a
    short scan less with short ones."""
    for turn in count(2):
        wanted = min(turn // 2, _MOST_GATHERED)
        keys: list[bytes] = []
        cells: list[bytes] = []
        joined = 0
        for more, their_cells in groups:
            if not joined:
                keys, cells = more, their_cells
            elif reverse:
                keys, cells = more + keys, their_cells + cells
            else:
                keys, cells = keys + more, cells + their_cells
            joined += 1
            if joined >= wanted:
                break
        if not joined:
            return
        yield keys, cells


def live(group: Group) -> Group:
    """Return a group without its deleted keys."""
    keys, cells = group
    if all(cells):
        return group
    there = [at for at, cell in enumerate(cells) if cell]
    return [keys[at] for at in there], [cells[at] for at in there]
