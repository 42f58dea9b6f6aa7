"""Bag-of-tokens loss: far cheaper than reconstruction, which predicts the tokens in order."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mcframe.bounds import NonNegative
from mcframe.context.step_metrics import masked_mean
from mcframe.context.working_context import own_children
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class BagOfTokens(Loss):
    """A gist predicts which tokens its block holds, in any order.

    A linear map of each LOD1 gist and the base model's head make one distribution over the vocabulary; the loss is the
    mean NLL in nats of the block's tokens. The slots of a gist are averaged.

    Source:
        Bag-of-words loss (Zhao et al., arXiv 1703.10960).

    Args:
        weight: Factor in the total.
    """

    name, needs, compares = "bag_of_tokens", ("variants", "gists"), False

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.1) -> None:
        super().__init__()
        self.weight = weight
        self.map = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean NLL of each sequence [B]."""
        tree, table = view.tree, view.with_table()
        offset, nodes = tree.offset(1), tree.nodes(1)
        gists = table[:, offset : offset + nodes * tree.slots].unflatten(1, (nodes, tree.slots)).mean(dim=2)
        hidden = self.map(F.rms_norm(gists, gists.shape[-1:]))
        blocks = view.uncompressed.inputs[:, : nodes * tree.block_size].unflatten(1, (nodes, tree.block_size))
        log_probability = view.logits(hidden).log_softmax(dim=-1)
        nll = -log_probability.gather(2, blocks)
        if view.documents is None:
            return LossTerm(nll.mean(dim=(1, 2)))
        return LossTerm(masked_mean(nll, own_children(view.documents, tree, 1, tree.block_size)[..., 0], dim=(1, 2)))
