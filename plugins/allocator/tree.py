"""The best focus of all, exactly: dynamic programming over the entries that every node of the tree saves.

Each block may be raw or belong to a gist of any level, and all choices together must save enough entries. That is a
multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11) whose classes are nested
in a tree. A table holds, for a node and every number of entries that it might save, the highest value that it can keep.
The tables of two neighbours are joined by one (max, +) convolution. All rows and all nodes of a level are joined at
once, in as many rounds as the level has doublings. Nothing loops over blocks or synchronises with the host.

Time and memory grow with the square of `window / unit`, where `unit` divides the saving of every level: K - 1 with one
slot (66 steps of saving at run10's 2,048 tokens), and down to 1 with several.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import compressible_nodes

_UNCHANGED = 1e-9
"""Added for every block that keeps its level: it decides only between contexts of equal value."""


def best_focus(
    value: Tensor, focus: Tensor, finest: Tensor, budget: int, tree: ContextTree, kept: Sequence[float]
) -> Tensor:
    """Return the longest focus within the budget; of several the most valuable, and of those one that changes least.

    Args:
        value: The value of each raw block [R, blocks].
        focus: The present focus, int64 [R, blocks].
        finest: The lowest LOD that each block may have, int64 [R, blocks].
        budget: The most entries.
        tree: The tree.
        kept: The fraction of a block's value that is left at LOD 0, 1, ..., levels.

    Returns:
        The focus, int64 [R, blocks].

    Raises:
        UserError: No context fits the budget.
    """
    tree.reachable_length(budget)  # raises UserError if no context fits
    deepest = max(lod for lod in range(1, tree.levels + 1) if tree.nodes(lod))
    # Padded to complete nodes of the highest level by blocks of no value, which stay raw.
    padding = (0, -tree.blocks % tree.block_size ** (deepest - 1))
    value, focus, finest = F.pad(value.double(), padding), F.pad(focus, padding), F.pad(finest, padding)
    unit = gcd(*(tree.saving(lod) for lod in range(1, deepest + 1)))
    steps = [tree.saving(lod) // unit for lod in range(1, deepest + 1)]
    table = torch.where(finest == 0, value * kept[0] + _UNCHANGED * (focus == 0), -torch.inf)[..., None]
    gists, joins = [], []
    for lod in range(1, deepest + 1):
        if lod > 1:
            table, rounds = _join(table.unflatten(1, (-1, tree.block_size)))
            joins.append(rounds)
        worth = torch.where(finest <= lod, value * kept[lod] + _UNCHANGED * (focus == lod), -torch.inf)
        table, better = _with_gist(table, _sum_by_node(worth, tree, lod), steps[lod - 1])
        gists.append(better)
    best, top = _join(table)
    saved = torch.arange(best.shape[-1], device=best.device)
    enough = saved * unit >= tree.window - budget
    # The longest context is the one that saves least of those that save enough.
    least = torch.where(best.isfinite() & enough, saved, best.shape[-1]).amin(dim=-1)
    state, found = _split(least, top, table.shape[1]), torch.zeros_like(focus)
    for lod in range(deepest, 0, -1):
        chosen = gists[lod - 1] & (state == steps[lod - 1])
        over = chosen.repeat_interleave(tree.block_size ** (lod - 1), dim=1)
        found = torch.where(over & (found == 0), lod, found)
        if lod > 1:  # the nodes below a gist save nothing more
            state = _split(torch.where(chosen, 0, state), joins[lod - 2], tree.block_size).flatten(1)
    return found[:, : tree.blocks]


def entry_fractions(tree: ContextTree) -> list[float]:
    """Return the entries of a block at LOD 0, 1, ..., as fractions of its entries when raw."""
    return [tree.slots_at(lod) / tree.span(lod) for lod in range(tree.levels + 1)]


def _sum_by_node(worth: Tensor, tree: ContextTree, lod: int) -> Tensor:
    """Return sums of `worth` [R, blocks] over the nodes at `lod` [R, nodes]; -inf if a node may not be compressed."""
    total = worth.unflatten(1, (-1, tree.block_size ** (lod - 1))).sum(dim=2)
    allowed = compressible_nodes(tree, lod, worth.device)
    return torch.where(F.pad(allowed, (0, total.shape[1] - allowed.shape[0])), total, -torch.inf)


def _with_gist(table: Tensor, worth: Tensor, saving: int) -> tuple[Tensor, Tensor]:
    """Return the table [R, nodes, S] with a gist of `worth` [R, nodes] as another choice, and where it is better."""
    table = F.pad(table, (0, max(0, saving + 1 - table.shape[-1])), value=-torch.inf)
    better = worth > table[..., saving]
    table[..., saving] = torch.where(better, worth, table[..., saving])
    return table, better


def _join(table: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the joint table [..., n * (S - 1) + 1] of tables [..., n, S] of neighbours, and the splits of each round.

    A split holds the saving of the left one of two neighbours for each joint saving; see `_split`.
    """
    size, rounds = table.shape[-2] * (table.shape[-1] - 1) + 1, []
    while table.shape[-2] > 1:
        if table.shape[-2] % 2:
            neighbour = torch.full_like(table[..., :1, :], -torch.inf)
            neighbour[..., 0] = 0.0
            table = torch.cat((table, neighbour), dim=-2)
        table, left = _convolve(table[..., 0::2, :], table[..., 1::2, :])
        table = table[..., :size]
        rounds.append(left[..., :size])
    return table[..., 0, :], rounds


def _convolve(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (max, +) convolution [..., 2 S - 1] of tables [..., S], and the saving of the left one in it."""
    size = left.shape[-1]
    # The window that ends at s holds the right values for left savings of size - 1, ..., 1, 0.
    against = F.pad(right, (size - 1, size - 1), value=-torch.inf).unfold(-1, size, 1)
    best, index = (against + left.flip(-1)[..., None, :]).max(dim=-1)
    return best, size - 1 - index


def _split(state: Tensor, rounds: list[Tensor], count: int) -> Tensor:
    """Return the saving of each of `count` neighbours [..., count] that together save `state` [...]."""
    state = state[..., None]
    counts = [count, *(left.shape[-2] for left in rounds)]
    for left, below in zip(reversed(rounds), reversed(counts[:-1]), strict=True):
        first = left.gather(-1, state[..., None])[..., 0].minimum(state)  # impossible states are never chosen
        state = torch.stack((first, state - first), dim=-1).flatten(-2)[..., :below]
    return state
