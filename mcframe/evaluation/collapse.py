"""Focuses that evaluations impose: nodes of one level collapsed at random, or those of lowest value."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import random_keys
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks


def nodes_to_collapse(tree: ContextTree, lod: int, target: int) -> int:
    """How many nodes at `lod`, and nothing else, must be collapsed for at most `target` entries.

    It may be more than `ContextTree.compressible_nodes(lod)`: then the target is out of reach.
    """
    return max(0, -((target - tree.window) // tree.saving(lod)))


def entries(tree: ContextTree, fraction: float) -> int:
    """A fraction of the window in entries; a hair of rounding must not cost one."""
    return int(fraction * tree.window + 1e-9)


def collapse_lowest(values: Tensor, tree: ContextTree, lod: int, count: int) -> Tensor:
    """The focus that keeps what is worth most: `count` nodes of the lowest values are collapsed, all else is raw.

    values [..., nodes(lod)] -> [..., blocks] int64. Protected nodes are never collapsed; of equals the left one goes
    first.
    """
    allowed = compressible_nodes(tree, lod, values.device).expand_as(values)
    chosen = bottomk_mask(values, allowed, torch.full(values.shape[:-1], count, device=values.device))
    return expand_to_blocks(chosen, tree, lod).long() * lod


def random_focus(seeds: Tensor, tree: ContextTree, lod: int, count: int) -> Tensor:
    """`count` random nodes at `lod` collapsed, each set as likely as any other: seeds [...] -> [..., blocks] int64."""
    return collapse_lowest(random_keys(seeds, tree.nodes(lod)), tree, lod, count)
