"""What the strategies share: which mixes of levels have a length, placing them by priority, drawing again.

A strategy gives every node a priority; the nodes with the lowest are collapsed, higher levels first. All random
numbers are hashes of a variant's seed, so that no other row, rank or micro-batch matters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node
from mcframe.errors import UserError

_REDRAW = 1 << 32
"""Salts of repeated draws, beyond the levels and blocks that salt the first."""

Order = Callable[[int], Tensor]
"""LOD -> priorities [..., nodes(lod)]; the lowest go first."""


def checked_count(name: str, count: int) -> int:
    """`count`; raises UserError where a strategy would propose nothing."""
    if count < 1:
        raise UserError(
            f"variants.{name}.count is {count}; it must be at least 1",
            binding=f"variants.{name}.count",
            remedy="for no variants, set run.variants = @variants.none",
        )
    return count


@lru_cache(maxsize=256)
def mixes(tree: ContextTree, length: int, device: torch.device, coarsest_first: bool = False) -> Tensor:
    """[mixes, levels] node counts that give this length; kept on the device so that no step copies them.

    `coarsest_first`: sorted by the number of nodes at the highest LOD, then at the one below, and so on, falling.
    """
    reached, found = tree.reachable(length)
    if reached != length:
        raise ValueError(f"no working context has exactly {length} entries; the nearest below has {reached}")
    if coarsest_first:
        found = tuple(sorted(found, key=lambda counts: counts[::-1], reverse=True))
    return torch.tensor(found, device=device)


def random_order(seeds: Tensor, tree: ContextTree) -> Order:
    """Every node's priority is a hash of its variant's seed [...]."""
    return lambda lod: random_keys(hash_combine(seeds, lod), tree.nodes(lod))


def place(counts: Tensor, order: Order, tree: ContextTree, within: Tensor | None = None) -> Tensor:
    """Collapse `counts` [..., levels] nodes of every level -> focus [..., blocks]; higher levels are placed first.

    within [..., blocks] bool: nothing outside is collapsed.
    """
    focus = counts.new_zeros(*counts.shape[:-1], tree.blocks)
    for lod in range(tree.levels, 0, -1):
        if tree.nodes(lod) == 0:  # the window is shorter than one node of this level
            continue
        free = (group_by_node(focus, tree, lod) == 0).all(dim=-1)
        allowed = free & compressible_nodes(tree, lod, counts.device)
        if within is not None:
            allowed = allowed & group_by_node(within, tree, lod).all(dim=-1)
        chosen = bottomk_mask(order(lod), allowed, counts[..., lod - 1])
        focus = torch.where(expand_to_blocks(chosen, tree, lod), lod, focus)
    return focus


def repeated(focus: Tensor) -> Tensor:
    """[B, V] bool: an earlier variant of the same sequence has the same focus [B, V, blocks]."""
    same = (focus[:, :, None] == focus[:, None, :]).all(dim=-1)
    return same.tril(diagonal=-1).any(dim=-1)


def distinct(draw: Callable[[Tensor, int], Tensor], seeds: Tensor, attempts: int, *, together: bool = False) -> Tensor:
    """`draw(seeds [B, V], attempt)` -> focus [B, V, blocks]; what repeats is drawn again, `attempts` times in all.

    together: where one variant repeats another, all variants of the sequence are drawn again.
    """
    focus = draw(seeds, 0)
    for attempt in range(1, attempts):
        again = draw(hash_combine(seeds, _REDRAW + attempt), attempt)
        replace = repeated(focus)
        if together:
            replace = replace.any(dim=1, keepdim=True)
        focus = torch.where(replace[..., None], again, focus)
    return focus
