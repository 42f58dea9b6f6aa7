"""The best focus of all, exactly: dynamic programming over what every node of the tree saves.

Each block may be raw or belong to a gist of any level; all choices together must save enough entries. That is a
multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11) whose classes are nested
in a tree. A table says, for a node and for every number of entries that it might save, the most it can be worth; two
neighbours' tables join in one (max, +) convolution. All rows and all nodes of a level are joined at once, in as many
rounds as a level has doublings; nothing loops over blocks and nothing is read back to the host.

Time and memory grow with the square of `window / unit`, where `unit` divides what every level saves: K - 1 with one
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

_STAYS = 1e-9
"""Added for every block that stays as it is: decides between contexts of one worth, and nothing else."""


def best_focus(
    value: Tensor, focus: Tensor, finest: Tensor, budget: int, tree: ContextTree, kept: Sequence[float]
) -> Tensor:
    """Of the longest focuses within `budget` entries the one worth most; of several, one that changes least.

    value [R, blocks]: what a raw block is worth; kept: the share of it that is left at LOD 0, 1, ..., levels
    focus [R, blocks] int64: the present one; finest [R, blocks] int64: no block gets more detail than this
    -> [R, blocks] int64. Raises UserError where nothing fits the budget.
    """
    tree.reachable(budget)  # says so where nothing fits
    deepest = max(lod for lod in range(1, tree.levels + 1) if tree.nodes(lod))
    # Filled up to whole nodes of the highest level with blocks that are worth nothing and stay raw.
    spare = -tree.blocks % tree.block_size ** (deepest - 1)
    value, focus, finest = F.pad(value.double(), (0, spare)), F.pad(focus, (0, spare)), F.pad(finest, (0, spare))
    unit = gcd(*(tree.saving(lod) for lod in range(1, deepest + 1)))
    steps = [tree.saving(lod) // unit for lod in range(1, deepest + 1)]
    table = torch.where(finest == 0, value * kept[0] + _STAYS * (focus == 0), -torch.inf)[..., None]
    gists, shares = [], []
    for lod in range(1, deepest + 1):
        if lod > 1:
            table, share = _joined(table.unflatten(1, (-1, tree.block_size)))
            shares.append(share)
        worth = torch.where(finest <= lod, value * kept[lod] + _STAYS * (focus == lod), -torch.inf)
        table, better = _with_gist(table, _of_nodes(worth, tree, lod), steps[lod - 1])
        gists.append(better)
    whole, top = _joined(table)
    saved = torch.arange(whole.shape[-1], device=whole.device)
    enough = saved * unit >= tree.window - budget
    # The longest context is the one that saves least of those that save enough.
    least = torch.where(whole.isfinite() & enough, saved, whole.shape[-1]).amin(dim=-1)
    state, found = _shared(least, top, table.shape[1]), torch.zeros_like(focus)
    for lod in range(deepest, 0, -1):
        chosen = gists[lod - 1] & (state == steps[lod - 1])
        over = chosen.repeat_interleave(tree.block_size ** (lod - 1), dim=1)
        found = torch.where(over & (found == 0), lod, found)
        if lod > 1:  # below a gist nothing is saved again
            state = _shared(torch.where(chosen, 0, state), shares[lod - 2], tree.block_size).flatten(1)
    return found[:, : tree.blocks]


def entry_fractions(tree: ContextTree) -> list[float]:
    """Entries of a block at LOD 0, 1, ..., as shares of those it has raw."""
    return [tree.slots_at(lod) / tree.span(lod) for lod in range(tree.levels + 1)]


def _of_nodes(worth: Tensor, tree: ContextTree, lod: int) -> Tensor:
    """Sums of `worth` [R, blocks] over the nodes at `lod` [R, nodes]; -inf where a node may not be compressed."""
    total = worth.unflatten(1, (-1, tree.block_size ** (lod - 1))).sum(dim=2)
    allowed = compressible_nodes(tree, lod, worth.device)
    return torch.where(F.pad(allowed, (0, total.shape[1] - allowed.shape[0])), total, -torch.inf)


def _with_gist(table: Tensor, worth: Tensor, saves: int) -> tuple[Tensor, Tensor]:
    """The table [R, nodes, S] with one choice more: a gist of `worth` [R, nodes]. And where that is the better one."""
    table = F.pad(table, (0, max(0, saves + 1 - table.shape[-1])), value=-torch.inf)
    better = worth > table[..., saves]
    table[..., saves] = torch.where(better, worth, table[..., saves])
    return table, better


def _joined(table: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Tables [..., n, S] of neighbours -> the table [..., n * (S - 1) + 1] of all, and how each round shared it out."""
    size, rounds = table.shape[-2] * (table.shape[-1] - 1) + 1, []
    while table.shape[-2] > 1:
        if table.shape[-2] % 2:
            neighbour = torch.full_like(table[..., :1, :], -torch.inf)
            neighbour[..., 0] = 0.0
            table = torch.cat((table, neighbour), dim=-2)
        table, left = _pairs(table[..., 0::2, :], table[..., 1::2, :])
        table = table[..., :size]
        rounds.append(left[..., :size])
    return table[..., 0, :], rounds


def _pairs(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(max, +) convolution of tables [..., S]: the best sum [..., 2 S - 1], and what the left one saves in it."""
    size = left.shape[-1]
    # The window that ends at s holds what the right one is worth where the left one saves size - 1, ..., 1, 0.
    against = F.pad(right, (size - 1, size - 1), value=-torch.inf).unfold(-1, size, 1)
    best, place = (against + left.flip(-1)[..., None, :]).max(dim=-1)
    return best, size - 1 - place


def _shared(state: Tensor, rounds: list[Tensor], count: int) -> Tensor:
    """What each of `count` neighbours saves [..., count] where all together save `state` [...]."""
    state = state[..., None]
    counts = [count, *(left.shape[-2] for left in rounds)]
    for left, below in zip(reversed(rounds), reversed(counts[:-1]), strict=True):
        first = left.gather(-1, state[..., None])[..., 0].minimum(state)  # a state that cannot be is nobody's choice
        state = torch.stack((first, state - first), dim=-1).flatten(-2)[..., :below]
    return state
