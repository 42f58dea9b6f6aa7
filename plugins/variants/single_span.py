"""Counterfactuals of one span.

The difference of two variants' losses depends on two spans alone: the target of a preference pair with least noise. The
evaluation's oracle measures the same, one block at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys, uniform
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node
from mcframe_plugins.variants.drawing import DrawnVariants, Order, collapse, random_order

_LEVEL = 1 << 33
"""Salt of the level whose spans are swapped."""


class SingleSpan(DrawnVariants):
    """Variants that differ in one span each: counterfactuals of one span at equal length.

    Variant 0 is a random focus; each other one has one span of it raw and another span of that size collapsed. The raw
    span is the same for all, so every two variants of a sequence differ in two spans and agree in all else. With
    several levels, the level is drawn among those with enough spans to swap; a focus with too few is drawn again.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until a focus has enough spans to swap.
    """

    name, redraws_together = "single_span", True

    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks], a function of the first seed of each sequence."""
        first = seeds[:, :1]
        order = random_order(first, tree)
        common = collapse(known[randint(first, known.shape[0])], order, tree)
        number = torch.arange(seeds.shape[1], device=seeds.device)
        levels = range(1, tree.levels + 1)
        swaps = [_swap_spans(common, number, order, tree, lod) for lod in levels if tree.nodes(lod)]
        enough = torch.stack([variety for _, variety in swaps], dim=-1)
        tie = uniform(random_keys(hash_combine(first, _LEVEL), len(swaps)))
        level = (enough + tie).argmax(dim=-1)[..., None, None].expand(-1, len(number), 1, tree.blocks)
        return torch.stack([focus for focus, _ in swaps], dim=2).gather(2, level)[:, :, 0]


def _swap_spans(common: Tensor, number: Tensor, order: Order, tree: ContextTree, lod: int) -> tuple[Tensor, Tensor]:
    """Swap one node at `lod` of the focus `common` [B, 1, blocks] for the `number[v]`-th free one; 0 swaps nothing.

    Returns:
        Focuses [B, V, blocks], and the number of swaps that differ [B, 1]. With too few free nodes, swaps repeat.
    """
    of_node = group_by_node(common, tree, lod)
    collapsed = (of_node == lod).all(dim=-1)
    free = (of_node == 0).all(dim=-1) & compressible_nodes(tree, lod, common.device)
    available = free.sum(dim=-1) * collapsed.any(dim=-1)
    nth = torch.where(number > 0, (number - 1) % available.clamp(min=1) + 1, 0) * (available > 0)
    expanded = bottomk_mask(order(lod), collapsed, (nth > 0).long())
    added = bottomk_mask(order(lod), free, nth) & ~bottomk_mask(order(lod), free, (nth - 1).clamp(min=0))
    focus = torch.where(expand_to_blocks(expanded, tree, lod), 0, common)
    return torch.where(expand_to_blocks(added, tree, lod), lod, focus), available.clamp(max=len(number) - 1)
