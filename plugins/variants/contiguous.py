"""Variants of one long run.

Next to scattered gists, raw neighbours help a model to guess; a run has none, as in a history with a compressed middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.context.focus_ops import bottomk_mask
from mcframe_plugins.variants.drawing import DrawnVariants, collapse, random_order

_START = 1 << 33
"""Salt of the position of the run."""


class Contiguous(DrawnVariants):
    """One run of neighbouring blocks is collapsed, at a random position.

    Every position is equally likely; the mix of levels is drawn first.

    Source:
        SpanBERT (Joshi et al., 2020): masked runs instead of scattered tokens.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        attempts: Draws in all, until the variants of a sequence differ.
    """

    name = "contiguous"

    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks] of one run each."""
        counts = known[randint(seeds, known.shape[0])]
        order = random_keys(hash_combine(seeds, _START), tree.blocks)
        chosen = bottomk_mask(order, run_starts(counts, tree), torch.ones_like(seeds))
        start = chosen.int().argmax(dim=-1, keepdim=True)
        block = torch.arange(tree.blocks, device=seeds.device)
        run = (block >= start) & (block < start + run_blocks(counts, tree)[..., None])
        return collapse(counts, random_order(seeds, tree), tree, within=run)


def run_blocks(counts: Tensor, tree: ContextTree) -> Tensor:
    """Return the number of blocks [...] that `counts` [..., levels] nodes cover."""
    level = torch.arange(tree.levels, device=counts.device)
    return (counts * torch.pow(tree.block_size, level)).sum(dim=-1)


def run_starts(counts: Tensor, tree: ContextTree) -> Tensor:
    """Return whether a run from each block has room for `counts` [..., levels] nodes, bool [..., blocks].

    Nodes are aligned, and no protected block is collapsed.
    """
    start = torch.arange(tree.blocks, device=counts.device)
    end = start + run_blocks(counts, tree)[..., None]
    allowed = (start >= tree.sink) & (end <= tree.cursor // tree.block_size)
    needed = torch.zeros_like(counts[..., :1])
    for lod in range(tree.levels, 0, -1):
        width = tree.block_size ** (lod - 1)
        # A node one level up consists of block_size nodes of this level.
        needed = needed * tree.block_size + counts[..., lod - 1 : lod]
        complete = end // width - (start + width - 1) // width
        allowed = allowed & ((complete >= needed) | (needed == 0))
    return allowed
