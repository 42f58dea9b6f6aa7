"""Lengths that working contexts of a tree can have, in closed form.

Let a context compress U blocks. If all of them are nodes of LOD 1, it saves K - G entries a block. A merge replaces K
sibling nodes by their parent, and saves G (K - 1) entries more. With c(l) compressible nodes at LOD l, U is a number up
to c(1), and the number of merges any number up to M(U), the sum of min(c(l), U // K^(l-1)) over l from 2 on: nodes of
one level can be merged until too few of them are left for a parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mcframe.context.context_tree import ContextTree

MOST_MIXES = 16_384
"""Mixes of levels that are enumerated; of more, some are chosen evenly."""


def merges_within(tree: ContextTree, nodes: Any, lod: int) -> Any:
    """Return the most merges to levels above `lod` of this number of nodes at `lod`, an integer or an array."""
    above = range(lod + 1, tree.levels + 1)
    return sum(np.minimum(tree.compressible_nodes(each), nodes // tree.block_size ** (each - lod)) for each in above)


def most_saving(tree: ContextTree) -> int:
    """Return the entries that the shortest context saves."""
    blocks = tree.compressible_nodes(1)
    return tree.saving(1) * blocks + _of_a_merge(tree) * int(merges_within(tree, blocks, 1))


def smallest_saving(tree: ContextTree, least: int) -> int | None:
    """Return the smallest saving of a context that is at least `least`; None if there is none."""
    least, block, merge = max(0, least), tree.saving(1), _of_a_merge(tree)
    most = min(tree.compressible_nodes(1), -(-least // block))
    # Further below, the same savings come back with more merges.
    period = merge // gcd(block, merge)
    found = []
    for blocks in range(most, max(-1, most - period - 1), -1):
        merges = max(0, -(-(least - block * blocks) // merge))
        if merges <= merges_within(tree, blocks, 1):
            found.append(block * blocks + merge * merges)
    return min(found, default=None)


def mixes(tree: ContextTree, saving: int) -> tuple[tuple[int, ...], ...]:
    """Return the mixes of nodes that save this much: `mix[l - 1]` is the number of nodes at LOD l.

    All of them, sorted by the highest level first; or an even choice, if there could be more than `MOST_MIXES`.
    """
    levels = range(2, tree.levels + 1)
    counts = [min(tree.compressible_nodes(lod), saving // tree.saving(lod)) + 1 for lod in levels]
    limit = None if prod(counts) <= MOST_MIXES else max(2, int(MOST_MIXES ** (1 / len(counts))))
    free = [tree.compressible_nodes(lod) for lod in range(1, tree.levels + 1)]
    return tuple(_mixes(tree, saving, free, tree.levels, limit))


def _mixes(tree: ContextTree, saving: int, free: list[int], lod: int, limit: int | None) -> Iterator[tuple[int, ...]]:
    """Yield the mixes of levels up to `lod` that save `saving`, with `free` nodes left at each level."""
    one = tree.saving(lod)
    if lod == 1:
        if saving % one == 0 and saving // one <= free[0]:
            yield (saving // one,)
        return
    # A node of this level saves one merge more than its children.
    below = tree.saving(1) * free[0] + _of_a_merge(tree) * sum(free[1 : lod - 1])
    first = max(0, -(-(saving - below) // _of_a_merge(tree)))
    numbers = range(first, min(free[lod - 1], saving // one) + 1)
    if lod == 2:  # LOD1 saves the rest only if it divides
        numbers = numbers[_offset(numbers, saving, one, tree.saving(1)) :: _step(one, tree.saving(1))]
    for number in _evenly(numbers, limit):
        left = [each - number * tree.block_size ** (lod - 1 - at) for at, each in enumerate(free[: lod - 1])]
        for mix in _mixes(tree, saving - number * one, left, lod - 1, limit):
            yield (*mix, number)


def _step(one: int, other: int) -> int:
    """Return after how many nodes that save `one` the rest divides by `other` again."""
    return other // gcd(one, other)


def _offset(numbers: range, saving: int, one: int, other: int) -> int:
    """Return the index of the first number whose rest divides by `other`; beyond the end if there is none."""
    period = numbers[: _step(one, other)]
    return next((at for at, number in enumerate(period) if (saving - number * one) % other == 0), len(numbers))


def _evenly(numbers: range, limit: int | None) -> list[int] | range:
    """Return the numbers, or `limit` of them, spread evenly with both ends."""
    if limit is None or len(numbers) <= limit:
        return numbers
    return [numbers[at * (len(numbers) - 1) // (limit - 1)] for at in range(limit)]


def usable_levels(tree: ContextTree, low: int, high: int) -> dict[int, int]:
    """Return for each LOD the most nodes of it in a context that saves from `low` to `high` entries."""
    block, merge, blocks = tree.saving(1), _of_a_merge(tree), np.arange(tree.compressible_nodes(1) + 1)
    least = np.maximum(0, -((block * blocks - low) // merge))
    most = np.minimum(merges_within(tree, blocks, 1), (high - block * blocks) // merge)
    kept = least <= most
    blocks, least, most = blocks[kept], least[kept], most[kept]
    each = (_most_at_level(tree, lod, blocks, least, most) for lod in range(1, tree.levels + 1))
    return {lod: int(nodes.max(initial=0)) for lod, nodes in enumerate(each, start=1)}


def _most_at_level(tree: ContextTree, lod: int, blocks: Any, least: Any, most: Any) -> Any:
    """Return the most nodes at `lod` in a context of these blocks with `least` to `most` merges, by block count.

    Nodes at `lod` that are children of merged ones are not counted. `parents` is the number of those: the fewer, the
    more nodes remain, and the fewer merges are possible.
    """
    size = tree.block_size
    groups = np.minimum(tree.compressible_nodes(lod), blocks // size ** (lod - 1))
    within = sum(
        np.minimum(tree.compressible_nodes(each), blocks // size ** (each - 1)) for each in range(2, lod)
    )  # merges below `lod`
    inside = (size ** (lod - 1) - 1) // (size - 1)  # merges in one node
    limit = 0 * blocks
    if lod < tree.levels:
        limit = np.minimum(tree.compressible_nodes(lod + 1), groups // size)

    def counted(parents: Any) -> tuple[Any, Any]:
        """Return the nodes at `lod`, children included, and the most merges with them."""
        more = parents + within + merges_within(tree, parents, lod + 1)
        if lod == 1:
            return groups, more
        nodes = np.minimum(groups, (np.minimum(most, groups + more) - parents) // inside)
        return nodes, nodes + more

    parents = _first(lambda parents: counted(parents)[1] >= least, limit)
    nodes, merges = counted(np.minimum(parents, limit))
    return np.where((parents <= limit) & (merges >= least), np.maximum(0, nodes - size * parents), 0)


def _first(holds: Callable[[Any], Any], limit: Any) -> Any:
    """Return the smallest number up to `limit` for which a monotonic condition holds, else `limit` + 1."""
    low, high = 0 * limit, limit + 1
    while (low < high).any():
        middle = (low + high) // 2
        found = holds(middle)
        low, high = np.where(found | (low >= high), low, middle + 1), np.where(found & (low < high), middle, high)
    return low


def _of_a_merge(tree: ContextTree) -> int:
    """Return the entries that a merge of K nodes saves: the slots of K - 1 nodes."""
    return tree.slots * (tree.block_size - 1)
