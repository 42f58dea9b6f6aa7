"""A bidirectional transformer over the working context before the cursor, with features of each entry.

It reads what an entry says (its embedding, detached by the framework) and what it is: its level of detail, how much
it covers, and how far it lies from the cursor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.hookspecs import LensNet, ModelShape
from mcframe_plugins.layers import Layer, rms_norm

_WAVES = 8


def entry_features(context: WorkingContext) -> Tensor:
    """What an entry is, float32 [R, L, 3 + 2 * waves]: log span, slots, log distance to the cursor, and waves of it."""
    cursor = context.geometry.cursor
    span = context.span.float()
    distance = (cursor - context.end).clamp(min=0).float()
    near = torch.log1p(distance) / math.log1p(max(cursor, 1))
    octave = torch.pow(2.0, torch.arange(_WAVES, device=distance.device))
    angle = (distance / max(cursor, 1))[..., None] * octave * math.pi
    plain = torch.stack((span.log2() / 8, span / context.slots / context.geometry.block_size, near), dim=-1)
    return torch.cat((plain, angle.sin(), angle.cos()), dim=-1)


class TransformerLensNet(LensNet):
    """Transformer over entries, one score each through tanh.

    layers, heads   transformer layers and attention heads
    width           its own width; None takes the model's
    """

    def __init__(self, shape: ModelShape, *, layers: int = 2, heads: int = 4, width: int | None = None) -> None:
        super().__init__()
        own = shape.width if width is None else width
        if own % heads:
            raise UserError(
                f"lensnet.transformer.heads = {heads} does not divide its width of {own}",
                remedy="choose lensnet.transformer.width as a multiple of lensnet.transformer.heads",
            )
        # Names that hold "embed" are trained by AdamW, not by Muon: tables and thin maps.
        self.lod_embed = nn.Parameter(torch.randn(shape.geometry.levels + 1, own) * 0.02)
        self.read = nn.Linear(shape.width, own, bias=False)
        self.feature_embed = nn.Linear(3 + 2 * _WAVES, own)
        self.layers = nn.ModuleList(Layer(own, heads) for _ in range(layers))
        self.score_embed = nn.Linear(own, 1)

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """embeddings [R, L, D] -> scores [R, L] in [-1, 1]."""
        features = entry_features(context).to(embeddings.dtype)
        x = self.read(rms_norm(embeddings)) + self.feature_embed(features) + self.lod_embed[context.lod]
        mask = context.valid[:, None, None, :] if context.padded else None
        for layer in self.layers:
            x = layer(x, mask=mask)
        scores: Tensor = self.score_embed(rms_norm(x)).squeeze(-1).tanh()
        return scores
