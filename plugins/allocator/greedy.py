"""Greedy allocator over any number of levels.

Nodes of a level save equally many entries, so the lowest score is the lowest price of an entry.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mcframe.bounds import AnyNumber, NonNegativeInt, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import (
    block_means,
    bottomk_mask,
    compressible_nodes,
    expand_to_blocks,
    first_block,
    group_by_node,
    lengths,
)
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator

_ABOVE_EVERY_SCORE = 3.0


class GreedyAllocator(Allocator):
    """Expands the gists with the highest scores, then collapses the lowest nodes until the budget holds.

    Any number of levels, one level after the other. With one slot or one level the budget is met as closely as any
    context can; with several slots and levels up to one node's worth of entries may stay unused (`hierarchical` uses
    them).

    Source:
        The greedy rule for knapsacks (Dantzig, 1957).

    Args:
        expand_threshold: A gist with a higher score is expanded by one level.
        collapse_threshold: A node with a mean score below minus this is collapsed by one level, budget or not; 1 =
            never.
        replacements: The most nodes that a round expands; None = no limit.
        iterations: Rounds of scoring and allocating.
        cooldown: Rounds for which a changed block is not expanded again and is collapsed last.
        protected_tail: Recent tokens that stay raw, where more than `context.tail`.
        keep_expanded: Collapse nodes that the round expands, or whose score is above expand_threshold, only if the
            others at all levels do not suffice. False = level by level: a block that is expanded alone is the first to
            be collapsed again, although gists elsewhere might be merged.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        expand_threshold: AnyNumber = 0.0,
        collapse_threshold: AnyNumber = 1.0,
        replacements: NonNegativeInt | None = None,
        iterations: Repeats = 2,
        cooldown: NonNegativeInt = 0,
        protected_tail: NonNegativeInt = 0,
        keep_expanded: bool = True,
    ) -> None:
        self.tree = tree
        self.expand_threshold, self.collapse_threshold = expand_threshold, collapse_threshold
        self.replacements, self.iterations, self.cooldown = replacements, iterations, cooldown
        self.protected_tail, self.keep_expanded = protected_tail, keep_expanded
        exact = tree.slots == 1 or tree.levels == 1
        self.fills_budget = exact and collapse_threshold >= 1 and protected_tail <= tree.tail

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]; see the interface. Raises UserError if no context fits the budget."""
        tree = replace(context.tree, tail=max(context.tree.tail, self.protected_tail))
        tree.reachable_length(budget)  # raises UserError if no context fits
        value = block_means(scores.float(), context)
        cooling = torch.zeros_like(value, dtype=torch.bool) if context.age is None else context.age < self.cooldown
        focus = self._expand(context.focus, value, cooling, tree, seeds)
        # Blocks that have just changed are collapsed last; the budget holds all the same.
        order = value + _ABOVE_EVERY_SCORE * cooling
        free = torch.ones_like(cooling)
        kept = (focus != context.focus) | (value > self.expand_threshold)
        for may_collapse in (~kept, free) if self.keep_expanded else (free,):
            for lod in range(1, tree.levels + 1):
                if tree.nodes(lod):
                    excess = lengths(focus, tree) - budget
                    focus = self._collapse(focus, order, excess, tree, lod, seeds, may_collapse)
        return focus

    def noise(self, seeds: Tensor, nodes: int, lod: int) -> Tensor | float:
        """Return an addend to the priorities of nodes [R, nodes]. None here; see `stochastic_greedy`."""
        return 0.0

    def _expand(self, focus: Tensor, value: Tensor, cooling: Tensor, tree: ContextTree, seeds: Tensor) -> Tensor:
        """Lower by one LOD the nodes with the highest scores, each identified by its first block."""
        first = first_block(focus, tree)
        block = torch.arange(focus.shape[1], device=focus.device)
        chosen = (focus > 0) & (value > self.expand_threshold) & ~cooling & (first == block)
        if self.replacements is not None:
            limit = torch.full_like(focus[:, 0], self.replacements)
            chosen = bottomk_mask(-value - self.noise(seeds, tree.blocks, 0), chosen, limit)
        return torch.where(chosen.gather(1, first), focus - 1, focus)

    def _collapse(
        self,
        focus: Tensor,
        value: Tensor,
        excess: Tensor,
        tree: ContextTree,
        lod: int,
        seeds: Tensor,
        may_collapse: Tensor,
    ) -> Tensor:
        """Raise to `lod` the lowest-scored groups one level below, as many as `excess` [R] entries require."""
        together = ((group_by_node(focus, tree, lod) == lod - 1) & group_by_node(may_collapse, tree, lod)).all(dim=-1)
        allowed = together & compressible_nodes(tree, lod, focus.device)
        worth = group_by_node(value, tree, lod).mean(dim=-1)
        gain = tree.block_size * tree.slots_at(lod - 1) - tree.slots
        needed = (excess.clamp(min=0) + gain - 1) // gain
        unwanted = (allowed & (worth < -self.collapse_threshold)).sum(dim=-1)
        order = worth - self.noise(seeds, tree.nodes(lod), lod)
        chosen = bottomk_mask(order, allowed, torch.maximum(needed, unwanted))
        return torch.where(expand_to_blocks(chosen, tree, lod), lod, focus)
