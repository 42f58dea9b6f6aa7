"""A gist should know which tokens it stands for, whatever their order.

From each LOD1 gist a linear map and the base model's own head give one distribution over the vocabulary; the loss is
its mean NLL of the block's tokens (the bag-of-words loss of Zhao et al., arXiv 1703.10960, for latent variables). Far
cheaper than reconstruction, which tells the tokens in order.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView


class BagOfTokens(Loss):
    """NLL in nats of a block's tokens under one prediction from its gist; more than one slot are averaged.

    weight  against next-token losses of weight 1
    """

    name = "bag_of_tokens"
    needs = "gists"

    def __init__(self, shape: ModelShape, *, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        self.map = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, view: StepView) -> LossTerm:
        """Loss [B]."""
        tree, table = view.tree, view.table
        assert table is not None
        offset, nodes = tree.offset(1), tree.nodes(1)
        gists = table[:, offset : offset + nodes * tree.slots].unflatten(1, (nodes, tree.slots)).mean(dim=2)
        known = self.map(F.rms_norm(gists, gists.shape[-1:]))
        blocks = view.baseline.inputs[:, : nodes * tree.block_size].unflatten(1, (nodes, tree.block_size))
        log_share = view.logits(known).log_softmax(dim=-1)
        return LossTerm(-log_share.gather(2, blocks).mean(dim=(1, 2)))
