"""LensNet that compares entries with the most recent ones, at a cost that grows with the number of entries alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.bounds import Count, Positive, Size
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import LensNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.layers import rms_norm


class MatchingLensNet(LensNet):
    """The dot product of an entry's key with a query that is pooled from the last entries before the cursor.

    Keys are of embeddings that are standardised over the entries of their level: the mean is subtracted and the rest is
    divided by its root mean square, so that what most entries have in common does not hide the others. The score is a
    tanh of the product, with a gain and a bias of each level. Distances do not matter.

    Source:
        Landmark attention (Mohtashami and Jaggi, 2023); the common component is removed as by Arora et al. (2017).

    Args:
        recent: Entries before the cursor that make the query.
        width: Width of keys and queries; None = the model's.
        gain: Initial factor of the product at every level.
    """

    def __init__(
        self, shape: ModelShape, *, recent: Count = 1, width: Size | None = None, gain: Positive = 1.0
    ) -> None:
        super().__init__()
        own = shape.width if width is None else width
        self.recent = recent
        self.query, self.key = nn.Linear(shape.width, own), nn.Linear(shape.width, own, bias=False)
        self.key.weight.data.copy_(self.query.weight.data)  # at first similar content matches
        self.gain_embed = nn.Parameter(torch.full((shape.tree.levels + 1,), gain))
        self.bias_embed = nn.Parameter(torch.zeros(shape.tree.levels + 1))
        self.weight_embed = nn.Linear(shape.width, 1) if recent > 1 else None

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables of levels, and a thin map."""
        return group_parameters(self, embedding=[self.gain_embed, self.bias_embed, self.weight_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] in [-1, 1] of embeddings [R, L, D]."""
        query = rms_norm(self.query(self._query(context, rms_norm(embeddings))))
        similarity = (self.key(_standardised(context, embeddings)) * query).mean(dim=-1)
        return torch.tanh(self.gain_embed[context.lod] * similarity + self.bias_embed[context.lod])

    def _query(self, context: WorkingContext, x: Tensor) -> Tensor:
        """Return the weighted mean of the last valid entries [R, 1, D]."""
        count = context.valid.sum(dim=1, keepdim=True)
        index = count - 1 - torch.arange(self.recent, device=x.device)
        last = x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        if self.weight_embed is None:
            return last
        weight = self.weight_embed(last).squeeze(-1).masked_fill(index < 0, -torch.inf)
        weight = torch.where(count > 0, weight, 0.0).softmax(dim=1)
        return (weight[..., None] * last).sum(dim=1, keepdim=True)


def _standardised(context: WorkingContext, x: Tensor) -> Tensor:
    """Return entries [R, L, D] without the mean of their level, divided by the root mean square of what is left."""
    found = torch.zeros_like(x)
    for lod in range(context.tree.levels + 1):
        same = (context.valid & (context.lod == lod))[..., None]
        count = same.sum(dim=1, keepdim=True).clamp(min=1)
        centred = torch.where(same, x - torch.where(same, x, 0.0).sum(dim=1, keepdim=True) / count, 0.0)
        square = centred.square().mean(dim=2, keepdim=True).sum(dim=1, keepdim=True) / count
        found = found + centred * (square + 1e-12).rsqrt()
    return found
