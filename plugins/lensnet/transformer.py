"""A bidirectional transformer over the working context before the cursor, with features of each entry.

It reads what an entry says (its embedding, detached by the framework) and what it is: its level of detail, how much
it covers, and how far it lies from the cursor.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.hookspecs import LensNet, ModelShape

_WAVES = 8


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


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


class _Layer(nn.Module):
    """Bidirectional self-attention and a feed-forward network, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [R, L, W], mask [R, 1, 1, L] bool or None -> [R, L, W]."""
        normed = _norm(x)
        query, key, value = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(_norm(query), _norm(key), value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.relu(self.up(_norm(x))).square())
        return out


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
        self.layers = nn.ModuleList(_Layer(own, heads) for _ in range(layers))
        self.score_embed = nn.Linear(own, 1)

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """embeddings [R, L, D] -> scores [R, L] in [-1, 1]."""
        features = entry_features(context).to(embeddings.dtype)
        x = self.read(_norm(embeddings)) + self.feature_embed(features) + self.lod_embed[context.lod]
        mask = context.valid[:, None, None, :] if context.padded else None
        for layer in self.layers:
            x = layer(x, mask)
        scores: Tensor = self.score_embed(_norm(x)).squeeze(-1).tanh()
        return scores
