"""Swapping allocator: detail goes to the highest scores as far as lower scores pay for it.

`greedy` expands every gist above a threshold. Where most gists are above it, the entries that this costs are taken from
the blocks that were expanded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.bounds import Fraction, NonNegativeInt, Repeats
from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import (
    block_means,
    compressible_nodes,
    first_block,
    group_by_node,
    lengths,
)
from mcframe.context.working_context import WorkingContext
from mcframe_plugins.allocator.greedy import GreedyAllocator

_NEVER = 9.0
"""Above every score."""


class SwapAllocator(GreedyAllocator):
    """Expands gists by one level in the order of their scores, as long as nodes of lower scores pay the entries.

    A node pays if each of its blocks has a lower score. What is above the lowest expanded score is collapsed only if
    nothing else is left; so is a block that became raw in the rounds before, because scores of raw tokens and of gists
    differ.

    Source:
        The greedy rule for knapsacks (Dantzig, 1957), with a price for each expansion.

    Args:
        expand_threshold: Only gists with a higher score are expanded.
        settled: Rounds for which a block that became raw is collapsed last.
        iterations: Rounds of scoring and allocating.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        expand_threshold: Fraction = 0.0,
        settled: NonNegativeInt = 16,
        iterations: Repeats = 2,
    ) -> None:
        super().__init__(tree, expand_threshold=expand_threshold, iterations=iterations)
        self.settled = settled

    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """Return the focus [R, blocks]; see the interface. Raises UserError if no context fits the budget."""
        tree = context.tree
        tree.reachable_length(budget)  # raises UserError if no context fits
        value = block_means(scores.float(), context)
        new = torch.zeros_like(value, dtype=torch.bool)
        if context.age is not None:
            new = (context.focus == 0) & (context.age < self.settled)
        chosen = self._affordable(context.focus, torch.where(new, _NEVER, value), budget, tree)
        focus = torch.where(chosen, context.focus - 1, context.focus)
        lowest = torch.where(chosen, value, _NEVER).amin(dim=1, keepdim=True)
        kept = chosen | new
        for may_collapse in (~kept & (value < lowest), ~kept, torch.ones_like(kept)):
            for lod in range(1, tree.levels + 1):
                if tree.nodes(lod):
                    excess = lengths(focus, tree) - budget
                    focus = self._collapse(focus, value, excess, tree, lod, seeds, may_collapse)
        return focus

    def _affordable(self, focus: Tensor, value: Tensor, budget: int, tree: ContextTree) -> Tensor:
        """Return the blocks [R, blocks] whose nodes are expanded: the highest scores, until one costs too much."""
        first = first_block(focus, tree)
        candidate = (focus > 0) & (value > self.expand_threshold)
        candidate &= first == torch.arange(focus.shape[1], device=focus.device)
        ranked, order = torch.where(candidate, value, -_NEVER).sort(dim=1, descending=True, stable=True)
        cost = torch.where(candidate, torch.where(focus > 1, tree.slots * (tree.block_size - 1), tree.saving(1)), 0)
        price, saving = self._payers(focus, value, tree)
        paid = F.pad(saving.cumsum(dim=1), (1, 0)).gather(1, torch.searchsorted(price, ranked.contiguous()))
        free = (budget - lengths(focus, tree)).clamp(min=0)[:, None]
        enough = cost.gather(1, order).cumsum(dim=1) <= free + paid
        expanded = candidate.gather(1, order) & enough.long().cumprod(dim=1).bool()
        return torch.zeros_like(candidate).scatter(1, order, expanded).gather(1, first)

    def _payers(self, focus: Tensor, value: Tensor, tree: ContextTree) -> tuple[Tensor, Tensor]:
        """Return the nodes that may be collapsed by one level, by price: the highest score in each, and its saving.

        Returns:
            Both [R, n], in ascending order of the price; a node that may not be collapsed saves nothing.
        """
        prices, savings = [], []
        for lod in range(1, tree.levels + 1):
            if tree.nodes(lod):
                together = (group_by_node(focus, tree, lod) == lod - 1).all(dim=-1)
                allowed = together & compressible_nodes(tree, lod, focus.device)
                highest = group_by_node(value, tree, lod).amax(dim=-1)
                prices.append(torch.where(allowed, highest, _NEVER))
                savings.append(allowed * (tree.block_size * tree.slots_at(lod - 1) - tree.slots))
        price, order = torch.cat(prices, dim=1).sort(dim=1)
        return price, torch.cat(savings, dim=1).gather(1, order)
