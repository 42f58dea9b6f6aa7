"""Variants of one long run.

Next to scattered gists, raw neighbours help a model to guess; a run has none, as in a history with a compressed middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.context.focus_ops import bottomk_mask
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import checked_count, distinct, mixes, place, random_order

_START = 1 << 33
"""Salt of the run's place."""


class Contiguous(VariantStrategy):
    """One run of neighbouring blocks is collapsed, at a random position.

    Every position is equally likely; the mix of levels is drawn first.

    Source:
        SpanBERT (Joshi et al., 2020): masked runs instead of scattered tokens.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until the variants of a sequence differ.
    """

    def __init__(self, tree: ContextTree, *, count: int = 2, attempts: int = 6) -> None:
        self.tree, self.count, self.attempts = tree, checked_count("contiguous", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its own sequence's seeds."""
        tree = sequences.tree
        known = mixes(tree, length, seeds.device)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            counts = known[randint(seeds, known.shape[0])]
            allowed = run_starts(counts, tree)
            one = torch.ones_like(seeds)
            start = (
                bottomk_mask(random_keys(hash_combine(seeds, _START), tree.blocks), allowed, one).int().argmax(dim=-1)
            )
            block = torch.arange(tree.blocks, device=seeds.device)
            run = (block >= start[..., None]) & (block < (start + run_blocks(counts, tree))[..., None])
            return place(counts, random_order(seeds, tree), tree, within=run)

        return distinct(draw, seeds, self.attempts)


def run_blocks(counts: Tensor, tree: ContextTree) -> Tensor:
    """Blocks that `counts` [..., levels] nodes cover -> [...]."""
    level = torch.arange(tree.levels, device=counts.device)
    return (counts * torch.pow(tree.block_size, level)).sum(dim=-1)


def run_starts(counts: Tensor, tree: ContextTree) -> Tensor:
    """[..., blocks] bool: a run from there has room for `counts` [..., levels] nodes, aligned and unprotected."""
    start = torch.arange(tree.blocks, device=counts.device)
    end = start + run_blocks(counts, tree)[..., None]
    allowed = (start >= tree.sink) & (end <= tree.cursor // tree.block_size)
    needed = torch.zeros_like(counts[..., :1])
    for lod in range(tree.levels, 0, -1):
        width = tree.block_size ** (lod - 1)
        # A node above is made of block_size nodes of this level.
        needed = needed * tree.block_size + counts[..., lod - 1 : lod]
        whole = end // width - (start + width - 1) // width
        allowed = allowed & ((whole >= needed) | (needed == 0))
    return allowed
