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
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import Order, checked_count, distinct, mixes, place, random_order

_LEVEL = 1 << 33
"""Salt of the level whose spans are swapped."""


class SingleSpan(VariantStrategy):
    """Variants that differ in one span each: counterfactuals of one span at equal length.

    Variant 0 is a random focus; each other one has one span of it raw and another span of that size collapsed. The raw
    span is the same for all, so every two variants of a sequence differ in two spans and agree in all else. With
    several levels, the level is drawn among those with enough spans to swap; a focus with too few is drawn again.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until a focus has enough spans to swap.
    """

    def __init__(self, tree: ContextTree, *, count: int = 2, attempts: int = 6) -> None:
        self.tree, self.count, self.attempts = tree, checked_count("single_span", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; a function of their sequence's first seed."""
        tree = sequences.tree
        known = mixes(tree, length, seeds.device)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            first = seeds[:, :1]
            order = random_order(first, tree)
            shared = place(known[randint(first, known.shape[0])], order, tree)
            number = torch.arange(seeds.shape[1], device=seeds.device)
            levels = range(1, tree.levels + 1)
            found = [_swapped(shared, number, order, tree, lod) for lod in levels if tree.nodes(lod)]
            enough = torch.stack([variety for _, variety in found], dim=-1)
            tie = uniform(random_keys(hash_combine(first, _LEVEL), len(found)))
            level = (enough + tie).argmax(dim=-1)[..., None, None].expand(-1, len(number), 1, tree.blocks)
            return torch.stack([focus for focus, _ in found], dim=2).gather(2, level)[:, :, 0]

        return distinct(draw, seeds, self.attempts, together=True)


def _swapped(shared: Tensor, number: Tensor, order: Order, tree: ContextTree, lod: int) -> tuple[Tensor, Tensor]:
    """Swap one node at `lod` of the focus `shared` [B, 1, blocks] for the `number[v]`-th free one; 0 swaps nothing.

    -> focus [B, V, blocks], and how many of the swaps differ [B, 1]. Where too few nodes are free, swaps repeat.
    """
    of_node = group_by_node(shared, tree, lod)
    collapsed = (of_node == lod).all(dim=-1)
    free = (of_node == 0).all(dim=-1) & compressible_nodes(tree, lod, shared.device)
    available = free.sum(dim=-1) * collapsed.any(dim=-1)
    nth = torch.where(number > 0, (number - 1) % available.clamp(min=1) + 1, 0) * (available > 0)
    given_up = bottomk_mask(order(lod), collapsed, (nth > 0).long())
    added = bottomk_mask(order(lod), free, nth) & ~bottomk_mask(order(lod), free, (nth - 1).clamp(min=0))
    focus = torch.where(expand_to_blocks(given_up, tree, lod), 0, shared)
    return torch.where(expand_to_blocks(added, tree, lod), lod, focus), available.clamp(max=len(number) - 1)
