"""Focuses that evaluations impose: nodes collapsed at random, or those of the lowest values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys, uniform
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node


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


def collapse_as_many(values: Tensor, like: Tensor, tree: ContextTree) -> Tensor:
    """Return the focus with as many nodes of each level as another, those of the lowest mean values.

    The highest level is filled first.

    Args:
        values: [n, blocks].
        like: [n, blocks] the valid focus with which entries are to be compared.
        tree: Shape of the context.

    Returns:
        [n, blocks] int64. Each row unrolls to as many entries of each level as that of `like`.
    """
    focus = torch.zeros_like(like)
    for lod in range(tree.levels, 0, -1):
        count = (like == lod).sum(dim=-1) // tree.block_size ** (lod - 1)
        free = compressible_nodes(tree, lod, like.device) & (group_by_node(focus, tree, lod) == 0).all(dim=-1)
        mask = bottomk_mask(group_by_node(values, tree, lod).mean(dim=-1), free, count)
        focus = torch.where(expand_to_blocks(mask, tree, lod), lod, focus)
    return focus


def shuffle_nodes(focus: Tensor, seeds: Tensor, tree: ContextTree) -> Tensor:
    """Return focuses [n, V, blocks] of the same nodes at random locations, for a focus [n, blocks] and seeds [n, V].

    At each level, from the highest that occurs, nodes are exchanged with all that they contain: within their parent,
    and nodes whose parent may not be collapsed with each other. An allocator that treats such nodes alike makes, from
    scores without information, the original and the shuffled focus with equal probability. If only LOD1 occurs, every
    set of as many blocks is equally likely.
    """
    highest = int(focus.max())
    focus = focus[:, None].expand(*seeds.shape, -1)
    for lod in range(highest, 0, -1):
        group = _exchangeable(tree, lod, highest, focus.device)
        keys = random_keys(seeds if lod == 1 else hash_combine(seeds, lod), group.shape[0])
        parts = group_by_node(focus, tree, lod)
        # Without this order the result would be as random, but another than that of `random_focus` at one level.
        fullest_first = group - parts.double().mean(dim=-1) / (highest + 1)
        source = fullest_first.argsort(dim=-1, stable=True)[..., None].expand_as(parts)
        location = (group + uniform(keys)).argsort(dim=-1)[..., None].expand_as(parts)
        moved = torch.empty_like(parts).scatter_(-2, location, parts.gather(-2, source)).flatten(-2)
        focus = torch.cat((moved, focus[..., moved.shape[-1] :]), dim=-1)
    return focus


def _exchangeable(tree: ContextTree, lod: int, highest: int, device: torch.device) -> Tensor:
    """Return [nodes(lod)] float64, equal for nodes that exchange their contents in `shuffle_nodes`."""
    node = torch.arange(tree.nodes(lod), device=device)
    parent = node // tree.block_size
    inside = F.pad(compressible_nodes(tree, lod + 1, device), (0, 1))[parent] & (lod < highest)
    group = torch.where(inside, parent, -1)
    return torch.where(compressible_nodes(tree, lod, device), group, node.shape[0] + node).double()
