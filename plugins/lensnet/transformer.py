"""A bidirectional transformer over the working context before the cursor, with features of each entry.

It reads what an entry says (its embedding, detached by the framework) and what it is (`features`). A small encoder that
looks both ways and scores every element of a context is how LLMLingua-2 (Pan et al., 2024) compresses prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.hookspecs import LensNet, ModelShape, ParamGroup, group_parameters
from mcframe_plugins.layers import Layer, rms_norm
from mcframe_plugins.lensnet.features import entry_features, feature_count


class TransformerLensNet(LensNet):
    """Transformer over entries, one score each through tanh.

    layers, heads   transformer layers and attention heads
    width           its own width; None takes the model's
    surprise        reads also how hard the uncompressed model found each entry's tokens; see `surprise`
    """

    def __init__(
        self, shape: ModelShape, *, layers: int = 2, heads: int = 4, width: int | None = None, surprise: bool = False
    ) -> None:
        super().__init__()
        self.reads_nll = surprise
        own = shape.width if width is None else width
        if own % heads:
            raise UserError(
                f"lensnet.transformer.heads = {heads} does not divide its width of {own}",
                binding="lensnet.transformer.heads",
                remedy="choose lensnet.transformer.width as a multiple of lensnet.transformer.heads",
            )
        self.lod_embed = nn.Parameter(torch.randn(shape.tree.levels + 1, own) * 0.02)
        self.read = nn.Linear(shape.width, own, bias=False)
        self.feature_embed = nn.Linear(feature_count(surprise), own)
        self.layers = nn.ModuleList(Layer(own, heads) for _ in range(layers))
        self.score_embed = nn.Linear(own, 1)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: tables and thin maps."""
        return group_parameters(self, embedding=[self.lod_embed, self.feature_embed, self.score_embed])

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """embeddings [R, L, D] -> scores [R, L] in [-1, 1]."""
        features = entry_features(context, surprise=self.reads_nll).to(embeddings.dtype)
        x = self.read(rms_norm(embeddings)) + self.feature_embed(features) + self.lod_embed[context.lod]
        mask = context.valid[:, None, None, :] if context.padded else None
        for layer in self.layers:
            x = layer(x, mask=mask)
        scores: Tensor = self.score_embed(rms_norm(x)).squeeze(-1).tanh()
        return scores
