"""Focuses that evaluations impose: nodes of one level collapsed at random, or those of the lowest values."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import random_keys
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks


def nodes_to_collapse(tree: ContextTree, lod: int, target: int) -> int:
    """Return how many nodes at `lod`, and no others, must be collapsed for at most `target` entries.

    More than `ContextTree.compressible_nodes(lod)` means that the target is out of reach.
    """
    return max(0, -((target - tree.window) // tree.saving(lod)))


def entries(tree: ContextTree, fraction: float) -> int:
    """Return a fraction of the window in entries, rounded down but for floating-point error."""
    return int(fraction * tree.window + 1e-9)


def collapse_lowest(values: Tensor, tree: ContextTree, lod: int, count: int) -> Tensor:
    """Return the focus [..., blocks] int64 in which the `count` nodes of the lowest values are collapsed.

    Protected nodes are never collapsed; of equal values the left one is collapsed first.

    Args:
        values: [..., nodes(lod)].
        tree: Shape of the context.
        lod: Level of the nodes.
        count: Number of nodes.
    """
    allowed = compressible_nodes(tree, lod, values.device).expand_as(values)
    mask = bottomk_mask(values, allowed, torch.full(values.shape[:-1], count, device=values.device))
    return expand_to_blocks(mask, tree, lod).long() * lod


def random_focus(seeds: Tensor, tree: ContextTree, lod: int, count: int) -> Tensor:
    """Return a focus [..., blocks] for each seed [...], with a random set of `count` nodes at `lod` collapsed."""
    return collapse_lowest(random_keys(seeds, tree.nodes(lod)), tree, lod, count)
