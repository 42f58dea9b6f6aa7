"""LensNet that scores each entry alone: a baseline for attention over entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.bounds import Size
from mcframe.context.working_context import WorkingContext
from mcframe.errors import require
from mcframe.hookspecs import LensNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.layers import rms_norm
from mcframe_plugins.lensnet.features import entry_features, feature_count


class MLPLensNet(LensNet):
    """A network that scores each entry alone, from level, span and age; optionally its surprise and its embedding.

    A network with squared ReLU, then tanh. No entry reads another.

    Source:
        Learned eviction: LRB (Song et al., 2020).

    Args:
        hidden: Width of its layers.
        layers: Hidden layers, 1 or more.
        surprise: Read also the uncompressed NLL of the entry's tokens, as the LensNet `surprise` does.
        embeddings: Read the entry's embedding in addition to its features.
    """

    masks_documents = True

    def __init__(
        self,
        shape: ModelShape,
        *,
        hidden: Size = 64,
        layers: Size = 2,
        surprise: bool = False,
        embeddings: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"hidden": hidden, "layers": layers}.items():
            require(value >= 1, f"lensnet.mlp.{name}", value, "1 or more")
        self.reads_nll = surprise
        self.lod_embed = nn.Parameter(torch.randn(shape.tree.levels + 1, hidden) * 0.02)
        self.feature_embed = nn.Linear(feature_count(surprise), hidden)
        self.read = nn.Linear(shape.width, hidden, bias=False) if embeddings else None
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(layers - 1))
        self.score_embed = nn.Linear(hidden, 1)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables and thin maps."""
        return group_parameters(self, embedding=[self.lod_embed, self.feature_embed, self.score_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] in [-1, 1] of embeddings [R, L, D]."""
        features = entry_features(context, surprise=self.reads_nll).to(embeddings.dtype)
        x = self.feature_embed(features) + self.lod_embed[context.lod]
        if self.read is not None:
            x = x + self.read(rms_norm(embeddings))
        for layer in self.layers:
            x = x + layer(F.relu(rms_norm(x)).square())
        scores: Tensor = self.score_embed(F.relu(rms_norm(x)).square()).squeeze(-1).tanh()
        return scores
