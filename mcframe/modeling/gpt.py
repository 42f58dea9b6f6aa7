"""The base model: a compact causal GPT that reads embeddings of mixed level of detail.

Pre-norm without learned gains, rotary positions with QK-norm before the rotation, squared ReLU, no biases, untied
head. `12 * depth * width**2 + 2 * vocabulary * width` parameters, and a row of width for each LOD.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcframe.context.geometry import Geometry
from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.modeling.rope import gaussian_rotation, rotate

LOGITS_AT_ONCE = 2**28
"""Logits held at a time; more are computed in chunks and again in the backward pass (1 GiB in float32)."""


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, whole: at ZeRO 3 a rank holds none of them, and DeepSpeed notes how many there are."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension (Zhang and Sennrich, 2019), without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


class Attention(nn.Module):
    """Causal self-attention. Queries and keys are normalised before they are rotated, or the damping is undone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [R, L, D], cosine and sine [R or 1, 1, L, D / heads / 2] -> [R, L, D]."""
        rows, length, width = x.shape
        shape = (rows, length, self.heads, width // self.heads)
        query = rotate(rms_norm(self.query(x).view(shape).transpose(1, 2)), cosine, sine)
        key = rotate(rms_norm(self.key(x).view(shape).transpose(1, 2)), cosine, sine)
        value = self.value(x).view(shape).transpose(1, 2)
        # Filling stands at the right, so the causal mask alone keeps every real entry from seeing it.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class Block(nn.Module):
    """Attention and a four times wider squared-ReLU network (So et al., Primer, 2021), both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [R, L, D] -> [R, L, D]."""
        x = x + self.attention(rms_norm(x), cosine, sine)
        out: Tensor = x + self.down(F.relu(self.up(rms_norm(x))).square())
        return out


class GPT(nn.Module):
    """The base model.

    depth, width, heads      layers, embedding width D, attention heads
    vocab_size               rows of the embedding and of the head; None takes the tokenizer's
    rope_base                longest wavelength of the rotary positions, in tokens over 2 pi
    placement, smoothing     where a gist stands in its span, and whether its spread damps the rotation
    activation_checkpointing recompute each block in the backward pass (non-reentrant)
    """

    def __init__(
        self,
        geometry: Geometry,
        tokenizer_vocab_size: int,
        /,
        *,
        depth: int,
        width: int,
        heads: int,
        vocab_size: int | None = None,
        rope_base: float = 10_000.0,
        placement: Literal["centre", "start", "end"] = "centre",
        smoothing: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = _checked_vocab_size(vocab_size, tokenizer_vocab_size)
        if width % (2 * heads):
            raise UserError(
                f"gpt.width = {width} does not divide into gpt.heads = {heads} heads of even width",
                remedy=f"choose gpt.heads so that gpt.width is a multiple of {2 * heads}",
            )
        self.depth, self.width, self.heads = depth, width, heads
        self.rope_base, self.placement, self.smoothing = rope_base, placement, smoothing
        self.activation_checkpointing = activation_checkpointing
        self.token_embed = nn.Embedding(self.vocab_size, width)
        self.lod_embed = nn.Embedding(geometry.levels + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.lm_head = nn.Linear(width, self.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform with variance 1 / fan-in; what writes to the residual stream starts at zero."""
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.zeros_(self.lod_embed.weight)
        nn.init.normal_(self.lm_head.weight, std=0.02 / math.sqrt(self.width / 256))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -math.sqrt(3 / module.in_features), math.sqrt(3 / module.in_features))
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.down.weight)

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters that take part in matrix products for every token: blocks and head."""
        return parameter_count(self.blocks) + parameter_count(self.lm_head)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] -> embeddings [B, T, D], the LOD0 rows of the node table."""
        embeddings: Tensor = self.token_embed(tokens)
        return embeddings

    def hidden(self, embeddings: Tensor, context: WorkingContext) -> Tensor:
        """Final hidden states [R, L, D] of working contexts whose embeddings are [R, L, D].

        `context` may have a single row that stands for all.
        """
        # Normalising the input throws a gist's norm away; the LOD embedding is added behind it.
        x = rms_norm(embeddings) + self.lod_embed(context.lod)
        mu, sigma = context.positions(self.placement)
        cosine, sine = gaussian_rotation(
            mu, sigma, self.width // self.heads, base=self.rope_base, smoothing=self.smoothing
        )
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cosine, sine, use_reentrant=False)
            else:
                x = block(x, cosine, sine)
        return rms_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocabulary], float32."""
        logits: Tensor = self.lm_head(hidden).float()
        return logits

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats, float32 [R, L], of targets [R, L] given hidden states [R, L, D].

        Logits of a large vocabulary are never all in memory: chunks of rows are recomputed in the backward pass.
        """
        rows = max(1, LOGITS_AT_ONCE // self.vocab_size)
        flat, flat_targets = hidden.flatten(0, -2), targets.flatten()
        if flat.shape[0] <= rows:
            return self._nll(flat, flat_targets).view(targets.shape)
        chunks = zip(torch.split(flat, rows), torch.split(flat_targets, rows), strict=True)
        parts = [checkpoint(self._nll, part, target, use_reentrant=False) for part, target in chunks]
        return torch.cat(parts).view(targets.shape)

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(hidden), targets, reduction="none")


def _checked_vocab_size(vocab_size: int | None, tokenizer_vocab_size: int) -> int:
    if vocab_size is None:
        return tokenizer_vocab_size
    if vocab_size < tokenizer_vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer_vocab_size:,} entries but gpt.vocab_size is {vocab_size:,}",
            remedy=f"set gpt.vocab_size = {tokenizer_vocab_size}, or None to take the tokenizer's",
        )
    return vocab_size
