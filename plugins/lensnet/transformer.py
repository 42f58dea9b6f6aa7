"""LensNet with attention over the working context before the cursor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.bounds import Size, SizeOrZero
from mcframe.context.working_context import WorkingContext
from mcframe.errors import require
from mcframe.hookspecs import LensNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.layers import Layer, rms_norm
from mcframe_plugins.lensnet.features import entry_features, feature_count


class TransformerLensNet(LensNet):
    """A small bidirectional transformer over the entries, with features of level, span and distance.

    It reads each entry's embedding, detached by the framework, and its features. The score is a tanh.

    Source:
        LLMLingua-2 (Pan et al., 2024): a small encoder scores every element of a prompt.

    Args:
        layers: Transformer layers.
        heads: Attention heads; must divide its width.
        width: Its own width; None = the model's.
        surprise: Read also the uncompressed NLL of each entry's tokens, as the LensNet `surprise` does.
    """

    masks_documents = True

    def __init__(
        self,
        shape: ModelShape,
        *,
        layers: SizeOrZero = 2,
        heads: Size = 4,
        width: Size | None = None,
        surprise: bool = False,
    ) -> None:
        super().__init__()
        self.reads_nll = surprise
        own = shape.width if width is None else width
        divides = heads >= 1 and own % heads == 0
        require(divides, "lensnet.transformer.heads", heads, f"a divisor of its width, {own}")
        self.lod_embed = nn.Parameter(torch.randn(shape.tree.levels + 1, own) * 0.02)
        self.read = nn.Linear(shape.width, own, bias=False)
        self.feature_embed = nn.Linear(feature_count(surprise), own)
        self.layers = nn.ModuleList(Layer(own, heads) for _ in range(layers))
        self.score_embed = nn.Linear(own, 1)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables and thin maps."""
        return group_parameters(self, embedding=[self.lod_embed, self.feature_embed, self.score_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] in [-1, 1] of embeddings [R, L, D]."""
        features = entry_features(context, surprise=self.reads_nll).to(embeddings.dtype)
        x = self.read(rms_norm(embeddings)) + self.feature_embed(features) + self.lod_embed[context.lod]
        mask = context.valid[:, None, None, :] if context.padded else None
        if (document := context.document) is not None:
            same = (document[:, None, :, None] == document[:, None, None, :]) & context.valid[:, None, None, :]
            mask = same | torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)  # no row without a key
        for layer in self.layers:
            x = layer(x, mask=mask)
        scores: Tensor = self.score_embed(rms_norm(x)).squeeze(-1).tanh()
        return scores
