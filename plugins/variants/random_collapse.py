"""Random nodes are collapsed until the context has the asked length, every set as likely as any other.

Where several mixes of levels have that length (33 gists of LOD1 save what one of LOD2 saves at K = 32), one is drawn
first, so that each usable level is trained.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mcframe.context.focus import compressible_nodes, lowest, over_blocks, over_nodes
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import below, mix, priorities
from mcframe.errors import UserError
from mcframe.hookspecs import Sequences, VariantStrategy

_REDRAW = 1 << 32
"""Salts of repeated draws, beyond the levels and blocks that salt the first."""


class RandomCollapse(VariantStrategy):
    """`count` random focuses a sequence; a repeated one is drawn again, up to `attempts` times in all."""

    def __init__(self, geometry: Geometry, *, count: int = 2, attempts: int = 6) -> None:
        if count < 1:
            raise UserError(
                f"variants.random_collapse.count is {count}; it must be at least 1",
                remedy="for no variants, set run.variants = @variants.none",
            )
        self.geometry, self.count, self.attempts = geometry, count, attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its own sequence's seeds."""
        geometry = sequences.geometry
        mixes = _mixes(geometry, length, seeds.device)
        focus = _draw(seeds, mixes, geometry)
        for attempt in range(1, self.attempts):
            again = _draw(mix(seeds, _REDRAW + attempt), mixes, geometry)
            focus = torch.where(_repeated(focus)[..., None], again, focus)
        return focus


@lru_cache(maxsize=256)
def _mixes(geometry: Geometry, length: int, device: torch.device) -> Tensor:
    """[mixes, levels] node counts that give this length; kept on the device so that no step copies them."""
    reached, mixes = geometry.reachable(length)
    if reached != length:
        raise ValueError(f"no working context has exactly {length} entries; the nearest below has {reached}")
    return torch.tensor(mixes, device=device)


def _draw(seeds: Tensor, mixes: Tensor, geometry: Geometry) -> Tensor:
    """One random focus for each seed [B, V] -> [B, V, blocks]; higher levels are placed first."""
    counts = mixes[below(seeds, mixes.shape[0])]
    focus = seeds.new_zeros(*seeds.shape, geometry.blocks)
    for lod in range(geometry.levels, 0, -1):
        if geometry.nodes(lod) == 0:
            continue
        free = (over_nodes(focus, geometry, lod) == 0).all(dim=-1)
        allowed = free & compressible_nodes(geometry, lod, seeds.device)
        order = priorities(mix(seeds, lod), geometry.nodes(lod))
        chosen = lowest(order, allowed, counts[..., lod - 1])
        focus = torch.where(over_blocks(chosen, geometry, lod), lod, focus)
    return focus


def _repeated(focus: Tensor) -> Tensor:
    """[B, V] bool: an earlier variant of the same sequence has the same focus."""
    same = (focus[:, :, None] == focus[:, None, :]).all(dim=-1)
    return same.tril(diagonal=-1).any(dim=-1)
