"""LensNet that finds the blocks with rare words of the most recent entries, without training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.bounds import Count, Fraction, NonNegative, Positive
from mcframe.context.focus_ops import block_means
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import LensNet, ModelShape, ParamGroup, group_parameters

_LEAST = 1e-4
"""Smaller similarities are rounding errors."""


class WhitenedLensNet(LensNet):
    """Compares blocks with the mean of the last entries, after whitening with the context's own covariance.

    Directions common to many entries count little, those of rare words much, so that equal rare words make a block
    similar, raw or as the mean of its embeddings (`@gistnet.mean`). Similarities are divided by the highest of those
    before the last entries; the score is a tanh of the quotient with a gain and a bias of each level. At first a block
    with more than half of the highest similarity has a score above 0; `recency` lets late ones pass with less.

    Source:
        Whitened sentence embeddings (Su et al., 2021; arXiv 2103.15316), and the weights of rare words of BM25
        (Robertson and Zaragoza, 2009).

    Args:
        recent: Entries before the cursor that blocks are compared with.
        ridge: Variance added in every direction, in units of the mean variance of a direction.
        spread: A block has at least this fraction of the similarity of the block before it: the statement about
            a name follows it.
        recency: Similarity that the last block has in addition, in units of the highest, and the first has not.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        recent: Count = 32,
        ridge: Positive = 0.1,
        spread: Fraction = 0.9,
        recency: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        self.recent, self.ridge, self.spread, self.recency = recent, ridge, spread, recency
        self.gain_embed = nn.Parameter(torch.full((shape.tree.levels + 1,), 4.0))
        self.bias_embed = nn.Parameter(torch.full((shape.tree.levels + 1,), -2.0))

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of levels."""
        return group_parameters(self, embedding=[self.gain_embed, self.bias_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] in [-1, 1] of embeddings [R, L, D]."""
        tokens = (context.span / context.slots * context.valid)[..., None].float()
        x = embeddings.float()
        x = (x - _mean(x, tokens)) * context.valid[..., None]
        count = context.valid.sum(dim=1, keepdim=True)
        last = context.valid & (torch.arange(context.length, device=x.device) >= count - self.recent)
        similarity = self._similarity(x, tokens, _mean(x, last[..., None].float()))
        by_block = self._by_block(context, similarity, last)
        block = context.start // context.tree.block_size
        found = by_block.gather(1, block.clamp(max=by_block.shape[1] - 1))
        found = torch.where(block < by_block.shape[1], found, 1.0)
        scores = torch.tanh(self.gain_embed[context.lod] * found + self.bias_embed[context.lod])
        return scores.to(embeddings.dtype)

    def _by_block(self, context: WorkingContext, similarity: Tensor, last: Tensor) -> Tensor:
        """Return the similarity of blocks [R, blocks], as a fraction of the highest before those of the last entries.

        Args:
            context: R rows.
            similarity: Of entries [R, L].
            last: The entries that they are compared with [R, L].
        """
        tree, recent = context.tree, block_means(last.float(), context) > 0
        own = block_means(similarity, context).clamp(min=0.0).masked_fill(recent, 0.0)
        block = torch.arange(own.shape[1], device=own.device)
        highest = own.masked_fill(block < tree.sink, 0.0).amax(dim=1, keepdim=True)
        spread = torch.maximum(own, self.spread * nn.functional.pad(own[:, :-1], (1, 0)))
        relative = (spread / highest.clamp(min=_LEAST)).clamp(max=1.0).masked_fill(recent, 1.0)
        return relative + self.recency * block / max(1, tree.cursor // tree.block_size)

    def _similarity(self, x: Tensor, tokens: Tensor, query: Tensor) -> Tensor:
        """Return the whitened dot products [R, L] of entries x [R, L, D] with a query [R, 1, D].

        The covariance is that of tokens: a mean of n tokens stands for n, and varies by 1 / n of what a token does, so
        that its weight is n * n. The covariance for a gist excludes the gist (Sherman and Morrison, 1950): otherwise it
        would whiten away its own words.
        """
        weights = tokens.square() / tokens.sum(dim=1, keepdim=True).clamp(min=1.0)
        covariance = (x * weights).transpose(1, 2) @ x
        variance = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        ridge = (self.ridge * variance + 1e-12) * torch.eye(x.shape[-1], device=x.device)
        # solve would wait for the device to report errors; with a ridge there are none.
        solved = torch.linalg.solve_ex(covariance + ridge, x.transpose(1, 2))[0].transpose(1, 2)
        own = torch.where(tokens > 1, weights * x * solved, 0.0).sum(dim=-1)
        similarity: Tensor = (solved * query).sum(dim=-1) / (1 - own).clamp(min=1e-3)
        return similarity


def _mean(x: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean [R, 1, D] of x [R, L, D], 0 without weights [R, L, 1]."""
    return (weights * x).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
