"""Shared parts of the strategies: mixes of levels, selection of nodes by priority, repeated draws.

A strategy assigns a priority to every node, and the nodes with the lowest ones are collapsed, higher levels first. All
random numbers are hashes of a variant's seed, so that no other row, rank or micro-batch matters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mcframe.bounds import Repeats, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.context.focus_ops import bottomk_mask, compressible_nodes, expand_to_blocks, group_by_node
from mcframe.hookspecs import Sequences, VariantStrategy

_REDRAW = 1 << 32
"""Salts of repeated draws, different from the levels and blocks that salt the first one."""

Order = Callable[[int], Tensor]
"""Map of a LOD to priorities [..., nodes(lod)]; the lowest go first."""


class DrawnVariants(VariantStrategy):
    """Variants that are drawn until those of a sequence differ.

    Args:
        count: Variants V of a sequence.
        attempts: Draws in all.
    """

    name: str
    """Its name in gin files, for errors."""
    coarsest_first = False
    """Whether mixes are sorted by their nodes at the highest LOD, then at the one below, and so on, descending."""
    redraws_together = False
    """Whether all variants of a sequence are drawn again if one of them repeats another."""

    def __init__(self, tree: ContextTree, *, count: Size = 2, attempts: Repeats = 6) -> None:
        self.tree, self.count, self.attempts = tree, count, attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Return focuses [B, V, blocks] of exactly `length` entries, each a function of its own sequence's seeds."""
        tree = sequences.tree
        known = mixes(tree, length, seeds.device, self.coarsest_first)
        focus = self.draw(seeds, 0, known, tree, scores)
        for attempt in range(1, self.attempts):
            again = self.draw(hash_combine(seeds, _REDRAW + attempt), attempt, known, tree, scores)
            repeats = repeated(focus)
            if self.redraws_together:
                repeats = repeats.any(dim=1, keepdim=True)
            focus = torch.where(repeats[..., None], again, focus)
        return focus

    @abstractmethod
    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks].

        Args:
            seeds: Seeds of this draw [B, V].
            attempt: Number of the draw, from 0.
            known: Node counts [mixes, levels] of the mixes of the requested length.
            tree: The tree of the sequences.
            scores: Scores of the uncompressed context [B, cursor], if `needs_scores`.
        """


@lru_cache(maxsize=256)
def mixes(tree: ContextTree, length: int, device: torch.device, coarsest_first: bool = False) -> Tensor:
    """Return the node counts [mixes, levels] that have this length, kept on the device so that no step copies them."""
    reached, found = tree.reachable(length)
    if reached != length:
        raise ValueError(f"no working context has exactly {length} entries; the nearest below has {reached}")
    if coarsest_first:
        found = tuple(sorted(found, key=lambda counts: counts[::-1], reverse=True))
    return torch.tensor(found, device=device)


# torch.compile would trace through the cache, and build the tensor in every step.
vars(mixes.__wrapped__)["_dynamo_marked_constant"] = True


def random_order(seeds: Tensor, tree: ContextTree) -> Order:
    """Return priorities that are hashes of the seeds [...] of the variants."""
    return lambda lod: random_keys(hash_combine(seeds, lod), tree.nodes(lod))


def collapse(counts: Tensor, order: Order, tree: ContextTree, within: Tensor | None = None) -> Tensor:
    """Return a focus [..., blocks] that collapses `counts` [..., levels] nodes of every level, higher levels first.

    Args:
        counts: Nodes of each level.
        order: Priorities of the nodes of a level.
        tree: The tree.
        within: Blocks that may be collapsed, bool [..., blocks]. Default: all.
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
    """Return whether an earlier variant of the same sequence has the same focus [B, V, blocks], bool [B, V]."""
    same = (focus[:, :, None] == focus[:, None, :]).all(dim=-1)
    return same.tril(diagonal=-1).any(dim=-1)
