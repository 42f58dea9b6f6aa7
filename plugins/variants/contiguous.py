"""One run of neighbouring blocks is collapsed, at a random place.

Scattered gists leave raw neighbours from which a model can guess what is missing; a run leaves none, as in a long
history whose middle is compressed. Masking runs instead of scattered tokens is SpanBERT's (Joshi et al., 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.focus import lowest
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import below, mix, priorities
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import checked_count, distinct, mixes, place, random_order

_START = 1 << 33
"""Salt of the run's place."""


class Contiguous(VariantStrategy):
    """One contiguous run a variant, every place as likely as any other; the mix of levels is drawn first.

    count     variants a sequence
    attempts  draws in all until the variants of a sequence differ
    """

    def __init__(self, geometry: Geometry, *, count: int = 2, attempts: int = 6) -> None:
        self.geometry, self.count, self.attempts = geometry, checked_count("contiguous", count), attempts

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its own sequence's seeds."""
        geometry = sequences.geometry
        known = mixes(geometry, length, seeds.device)

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            counts = known[below(seeds, known.shape[0])]
            allowed = run_starts(counts, geometry)
            one = torch.ones_like(seeds)
            start = lowest(priorities(mix(seeds, _START), geometry.blocks), allowed, one).int().argmax(dim=-1)
            block = torch.arange(geometry.blocks, device=seeds.device)
            run = (block >= start[..., None]) & (block < (start + run_blocks(counts, geometry))[..., None])
            return place(counts, random_order(seeds, geometry), geometry, within=run)

        return distinct(draw, seeds, self.attempts)


def run_blocks(counts: Tensor, geometry: Geometry) -> Tensor:
    """Blocks that `counts` [..., levels] nodes cover -> [...]."""
    level = torch.arange(geometry.levels, device=counts.device)
    return (counts * torch.pow(geometry.block_size, level)).sum(dim=-1)


def run_starts(counts: Tensor, geometry: Geometry) -> Tensor:
    """[..., blocks] bool: a run from there has room for `counts` [..., levels] nodes, aligned and unprotected."""
    start = torch.arange(geometry.blocks, device=counts.device)
    end = start + run_blocks(counts, geometry)[..., None]
    allowed = (start >= geometry.sink) & (end <= geometry.cursor // geometry.block_size)
    needed = torch.zeros_like(counts[..., :1])
    for lod in range(geometry.levels, 0, -1):
        width = geometry.block_size ** (lod - 1)
        # A node above is made of block_size nodes of this level.
        needed = needed * geometry.block_size + counts[..., lod - 1 : lod]
        whole = end // width - (start + width - 1) // width
        allowed = allowed & ((whole >= needed) | (needed == 0))
    return allowed
