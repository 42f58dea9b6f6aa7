"""Variants that LensNet would choose, with noise; no gradient flows through the choice.

Random focuses rarely contain the mistakes of a trained LensNet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.bounds import Fraction, NonNegative, Repeats, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import gumbel, hash_combine, randint, random_keys, uniform
from mcframe.context.focus_ops import group_by_node
from mcframe_plugins.variants.drawing import DrawnVariants, collapse

_RANDOM, _NOISE = 1 << 33, 1 << 34
"""Salts of the choice of random variants and of the noise."""
_MORE_NOISE = 0.25


class LensGuided(DrawnVariants):
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

    name, needs_scores = "lens_guided", True

    def __init__(
        self,
        tree: ContextTree,
        *,
        count: Size = 2,
        temperature: NonNegative = 0.25,
        random_fraction: Fraction = 0.25,
        attempts: Repeats = 6,
    ) -> None:
        super().__init__(tree, count=count, attempts=attempts)
        self.temperature, self.random_fraction = temperature, random_fraction

    def draw(self, seeds: Tensor, attempt: int, known: Tensor, tree: ContextTree, scores: Tensor | None) -> Tensor:
        """Return focuses [B, V, blocks] that collapse nodes with low scores plus noise."""
        if scores is None:
            raise ValueError("variants.lens_guided: expected scores of the uncompressed context, got None")
        value = block_scores(scores.detach(), tree)[:, None]
        ignored = (uniform(hash_combine(seeds, _RANDOM)) < self.random_fraction)[..., None]
        # Noise alone, at any scale above 0, makes all sets equally likely.
        scale = torch.where(ignored, 1.0, self.temperature + _MORE_NOISE * attempt)

        def order(lod: int) -> Tensor:
            noise = gumbel(random_keys(hash_combine(seeds, _NOISE + lod), tree.nodes(lod)))
            score = group_by_node(value, tree, lod).mean(dim=-1)
            return torch.where(ignored, 0.0, score) - scale * noise

        return collapse(known[randint(seeds, known.shape[0])], order, tree)


def block_scores(scores: Tensor, tree: ContextTree) -> Tensor:
    """Return the mean score of every raw block before the cursor, float64 [B, blocks], and 0 after it.

    Args:
        scores: Scores of the uncompressed entries [B, cursor].
        tree: The tree.
    """
    complete = tree.cursor // tree.block_size
    means = scores[:, : complete * tree.block_size].double().unflatten(1, (complete, tree.block_size)).mean(dim=-1)
    return F.pad(means, (0, tree.blocks - complete))
