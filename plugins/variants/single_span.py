"""Counterfactuals of one span: a random focus that all variants share, and one more span that each has for itself.

Two variants thus differ by collapsing one span instead of another, at equal length, and the difference of their losses
speaks of those two spans alone: the least noisy thing that a preference pair can say. It is what the
evaluation's oracle measures, one block at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.focus import compressible_nodes, lowest, over_blocks, over_nodes
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import below, mix, priorities, uniform
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import Order, checked_count, distinct, mixes, place, random_order

_LEVEL = 1 << 33
"""Salt of the level whose spans are swapped."""


class SingleSpan(VariantStrategy):
    """Variant 0 is a random focus; each other one has one span of it raw and another span of that size collapsed.

    The span that is given up is the same for all variants of a sequence, so that every two of them differ in two spans
    and agree in all else. With several levels, the level is drawn among those with spans enough to swap in. Where a
    focus has too few, the whole sequence is drawn again.

    count     variants a sequence
    attempts  draws in all until the variants of a sequence differ
    """

    def __init__(self, geometry: Geometry, *, count: int = 2, attempts: int = 6) -> None:
        self.geometry, self.count, self.attempts = geometry, checked_count("single_span", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; a function of their sequence's first seed."""
        geometry = sequences.geometry
        known = mixes(geometry, length, seeds.device)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            first = seeds[:, :1]
            order = random_order(first, geometry)
            shared = place(known[below(first, known.shape[0])], order, geometry)
            number = torch.arange(seeds.shape[1], device=seeds.device)
            levels = range(1, geometry.levels + 1)
            found = [_swapped(shared, number, order, geometry, lod) for lod in levels if geometry.nodes(lod)]
            enough = torch.stack([variety for _, variety in found], dim=-1)
            tie = uniform(priorities(mix(first, _LEVEL), len(found)))
            level = (enough + tie).argmax(dim=-1)[..., None, None].expand(-1, len(number), 1, geometry.blocks)
            return torch.stack([focus for focus, _ in found], dim=2).gather(2, level)[:, :, 0]

        return distinct(draw, seeds, self.attempts, together=True)


def _swapped(shared: Tensor, number: Tensor, order: Order, geometry: Geometry, lod: int) -> tuple[Tensor, Tensor]:
    """Swap one node at `lod` of the focus `shared` [B, 1, blocks] for the `number[v]`-th free one; 0 swaps nothing.

    -> focus [B, V, blocks], and how many of the swaps differ [B, 1]. Where too few nodes are free, swaps repeat.
    """
    of_node = over_nodes(shared, geometry, lod)
    collapsed = (of_node == lod).all(dim=-1)
    free = (of_node == 0).all(dim=-1) & compressible_nodes(geometry, lod, shared.device)
    available = free.sum(dim=-1) * collapsed.any(dim=-1)
    nth = torch.where(number > 0, (number - 1) % available.clamp(min=1) + 1, 0) * (available > 0)
    given_up = lowest(order(lod), collapsed, (nth > 0).long())
    added = lowest(order(lod), free, nth) & ~lowest(order(lod), free, (nth - 1).clamp(min=0))
    focus = torch.where(over_blocks(given_up, geometry, lod), 0, shared)
    return torch.where(over_blocks(added, geometry, lod), lod, focus), available.clamp(max=len(number) - 1)
