"""Variants that LensNet itself would choose, with noise; no gradient flows through the choice.

Random focuses rarely contain the mistakes of a trained scorer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import gumbel, hash_combine, randint, random_keys, uniform
from mcframe.context.focus_ops import group_by_node
from mcframe.errors import UserError
from mcframe.hookspecs import Sequences, VariantStrategy
from mcframe_plugins.variants.drawing import checked_count, distinct, mixes, place

_RANDOM, _NOISE = 1 << 33, 1 << 34
"""Salts of the choice of random variants and of the noise."""
_MORE_NOISE = 0.25


class LensGuided(VariantStrategy):
    """LensNet's own choice with noise: the nodes with the lowest mean scores plus noise are collapsed.

    LensNet is trained on contexts like its own. The mix of levels is drawn first.

    Source:
        Stochastic Beams (Kool et al., 2019): sampling without replacement by Gumbel noise.

    Args:
        count: Variants V of a sequence; 1 has no preference pairs.
        temperature: Scale of the Gumbel noise on scores in [-1, 1]; 0 = exactly the lowest.
        random_fraction: Fraction of variants that ignore the scores, so that all blocks are still tried.
        attempts: Draws in all, until the variants of a sequence differ; each with more noise.
    """

    needs_scores = True

    def __init__(
        self,
        tree: ContextTree,
        *,
        count: int = 2,
        temperature: float = 0.25,
        random_fraction: float = 0.25,
        attempts: int = 6,
    ) -> None:
        if temperature < 0:
            raise UserError(
                f"variants.lens_guided.temperature is {temperature}; it cannot be negative",
                binding="variants.lens_guided.temperature",
                remedy="set it to 0 to follow the scores exactly, or above",
            )
        if not 0 <= random_fraction <= 1:
            raise UserError(
                f"variants.lens_guided.random_fraction is {random_fraction}; it must lie between 0 and 1",
                binding="variants.lens_guided.random_fraction",
                remedy="choose a share, for example 0.25",
            )
        self.tree, self.count, self.attempts = tree, checked_count("lens_guided", count), attempts
        self.temperature, self.random_fraction = temperature, random_fraction

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses [B, V, blocks] of exactly `length` entries; each a function of its sequence's seeds and scores."""
        if scores is None:
            raise ValueError("lens_guided needs the scores of the uncompressed context")
        tree = sequences.tree
        known = mixes(tree, length, seeds.device)
        value = block_scores(scores.detach(), tree)[:, None]

        def draw(seeds: Tensor, attempt: int) -> Tensor:
            ignored = (uniform(hash_combine(seeds, _RANDOM)) < self.random_fraction)[..., None]
            # Noise alone, at any scale above 0, makes every set as likely as any other.
            scale = torch.where(ignored, 1.0, self.temperature + _MORE_NOISE * attempt)

            def order(lod: int) -> Tensor:
                noise = gumbel(random_keys(hash_combine(seeds, _NOISE + lod), tree.nodes(lod)))
                wanted = group_by_node(value, tree, lod).mean(dim=-1)
                return torch.where(ignored, 0.0, wanted) - scale * noise

            return place(known[randint(seeds, known.shape[0])], order, tree)

        return distinct(draw, seeds, self.attempts)


def block_scores(scores: Tensor, tree: ContextTree) -> Tensor:
    """Mean score of every raw block before the cursor: scores [B, cursor] -> float64 [B, blocks], 0 behind it."""
    whole = tree.cursor // tree.block_size
    values = scores[:, : whole * tree.block_size].double()
    means = values.reshape(scores.shape[0], whole, tree.block_size).mean(dim=-1)
    return F.pad(means, (0, tree.blocks - whole))
