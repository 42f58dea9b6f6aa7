"""The base model: a compact causal GPT that reads embeddings of mixed level of detail.

Pre-norm without learned gains, QK-norm before positions rotate, squared ReLU, no biases, untied head.
`12 * depth * width**2 + 2 * vocabulary * width` parameters, and a row of width for each LOD.
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcframe.bounds import AnyNumber, Count, Size
from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError
from mcframe.hookspecs import (
    BaseModel,
    BaseShape,
    HeadShape,
    KVCache,
    ParamGroup,
    TrainableModule,
    causal_attention,
    document_mask,
    group_parameters,
    rotate,
)
from mcframe.interfaces.base_model import parameter_count


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension (Zhang and Sennrich, 2019), without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


class Attention(TrainableModule):
    """Causal self-attention. Queries and keys are normalised before they are rotated, or the damping is undone.

    With `gist_bias` every level of detail above 0 has a learned bias a head, added to the attention logit of its keys.
    """

    def __init__(self, width: Size, heads: Size, head_width: Size, levels: int, gist_bias: float | None) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        inner = heads * head_width
        self.gist_bias_embed = (
            None if gist_bias is None else nn.Parameter(torch.full((levels, heads), float(gist_bias)))
        )
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: the biases of gists are a table."""
        return group_parameters(self, embedding=[self.gist_bias_embed])

    def forward(
        self,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        lod: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """x [R, L, D], cosine and sine [R or 1, 1 or H, L, head_width / 2], lod [R or 1, L] -> [R, L, D].

        `mask` is that of `document_mask`. With a cache, R = 1 and the entries follow those in the cache; `layer` is
        the index there.
        """
        rows, length, _ = x.shape
        shape = (rows, length, self.heads, self.head_width)
        query = rotate(rms_norm(self.query(x).view(shape).transpose(1, 2)), cosine, sine)
        key = rotate(rms_norm(self.key(x).view(shape).transpose(1, 2)), cosine, sine)
        value = self.value(x).view(shape).transpose(1, 2)
        if cache is not None:
            key, value, lod = cache.append(layer, key, value, lod)
        # Filling stands at the right, so the causal mask alone keeps every real entry from seeing it.
        if self.gist_bias_embed is None:
            mixed = causal_attention(query, key, value, mask=mask)
        else:
            mixed = _biased_attention(query, key, value, F.pad(self.gist_bias_embed, (0, 0, 1, 0))[lod], mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
        return out


def _biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention with a bias [R or 1, L, H] on the logit of each key.

    The bias travels as one more dimension of queries (1) and keys, so that every fused kernel serves; widths stay a
    multiple of eight.
    """
    width = query.shape[-1]
    more = _filling(width)
    bias = (bias * math.sqrt(width)).transpose(1, 2).unsqueeze(-1).to(key.dtype).expand(*key.shape[:-1], 1)
    query = F.pad(torch.cat((query, torch.ones_like(query[..., :1])), dim=-1), (0, more - 1))
    key = F.pad(torch.cat((key, bias), dim=-1), (0, more - 1))
    value = F.pad(value, (0, more))
    return causal_attention(query, key, value, scale=1 / math.sqrt(width), mask=mask)[..., :width]


def _filling(width: int) -> int:
    """Columns that a biased head has more."""
    return 8 - width % 8


class Block(nn.Module):
    """Attention and a four times wider squared-ReLU network (So et al., Primer, 2021), both residual."""

    def __init__(self, width: Size, heads: Size, head_width: Size, levels: int, gist_bias: float | None) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_width, levels, gist_bias)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        lod: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """x [R, L, D] -> [R, L, D]; see `Attention`."""
        x = x + self.attention(rms_norm(x), cosine, sine, lod, mask, cache, layer)
        out: Tensor = x + self.down(F.relu(self.up(rms_norm(x))).square())
        return out


class GPT(BaseModel):
    """The base model: a decoder-only transformer over the entries of a working context.

    Args:
        depth: Layers.
        width: Embedding width D; a multiple of twice the heads.
        heads: Attention heads.
        head_width: Width of a head, an even number; None = width / heads. Content is matched by the slow half of a
            head's rotary frequencies, so a head narrower than 64 is slow to learn look-ups.
        vocab_size: Rows of embedding and head, at least the tokenizer's; None = the tokenizer's.
        gist_bias: Initial value of the learned attention bias of gists, one a level, layer and head, in logits; None =
            no bias. With -8 gists are unseen until training finds a use for them.
        activation_checkpointing: Recompute layers in the backward pass (non-reentrant): less memory, more time.
    """

    masks_documents = True

    def __init__(
        self,
        shape: BaseShape,
        /,
        *,
        depth: Size,
        width: Size,
        heads: Size,
        head_width: Size | None = None,
        vocab_size: Count | None = None,
        gist_bias: AnyNumber | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        tree = shape.tree
        self.vocab_size = _checked_vocab_size(vocab_size, shape.vocab_size)
        if head_width is None and width % (2 * heads):
            raise UserError(
                f"gpt.width = {width} does not divide into gpt.heads = {heads} heads of even width",
                binding="gpt.width",
                remedy=f"choose gpt.heads so that gpt.width is a multiple of {2 * heads}, or set gpt.head_width",
            )
        self.head_width = width // heads if head_width is None else head_width
        if self.head_width < 2 or self.head_width % 2:
            raise UserError(
                f"gpt.head_width is {self.head_width}; rotary positions turn pairs, so it must be even",
                binding="gpt.head_width",
                remedy="set gpt.head_width to an even number, for example 64",
            )
        self.depth, self.width, self.heads = depth, width, heads
        self.activation_checkpointing = activation_checkpointing
        self.positions = shape.positions(HeadShape(heads, self.head_width, tree))
        self.token_embed = nn.Embedding(self.vocab_size, width)
        self.lod_embed = nn.Embedding(tree.levels + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, self.head_width, tree.levels, gist_bias) for _ in range(depth))
        self.lm_head = nn.Linear(width, self.vocab_size, bias=False)
        self.reset_parameters()

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings of a small model."""
        return {"depth": 2, "width": 16, "heads": 2}

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

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: the head is an embedding table as well."""
        return group_parameters(self, embedding=[self.lm_head])

    @property
    def attention_width(self) -> int:
        """Width of all heads together, filling included; what attention costs is proportional to it."""
        biased = self.blocks[0].get_submodule("attention").gist_bias_embed is not None
        return self.heads * (self.head_width + (_filling(self.head_width) if biased else 0))

    @property
    def block_parameters(self) -> int:
        """Parameters of the blocks that take part in matrix products for every token: all but the biases of gists."""
        return sum(parameter_count(each) for each in self.blocks.modules() if isinstance(each, nn.Linear))

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters that take part in matrix products for every token: blocks and head."""
        return self.block_parameters + parameter_count(self.lm_head)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] -> embeddings [B, T, D], the LOD0 rows of the node table."""
        embeddings: Tensor = self.token_embed(tokens)
        return embeddings

    def states(self, embeddings: Tensor, context: WorkingContext, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Final hidden states, and the states after `layer` blocks (0: the embeddings as they came). Both [R, L, D]."""
        x, kept = self._through(embeddings, context, layer, self.depth)
        return rms_norm(x), kept

    def states_after(self, embeddings: Tensor, context: WorkingContext, layer: int) -> Tensor:
        """States after `layer` blocks [R, L, D], without the blocks that follow."""
        return self._through(embeddings, context, layer, layer)[1] if layer else embeddings

    def _through(self, embeddings: Tensor, context: WorkingContext, layer: int, last: int) -> tuple[Tensor, Tensor]:
        """States after `last` blocks, at least 1, before the norm, and those after `layer`."""
        kept = embeddings
        # Normalising the input throws a gist's norm away; the LOD embedding is added after it.
        x = rms_norm(embeddings) + self.lod_embed(context.lod)
        cosine, sine = self.positions(context)
        mask = document_mask(context.document)
        for number, block in enumerate(islice(self.blocks, last), start=1):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cosine, sine, context.lod, mask, use_reentrant=False)
            else:
                x = block(x, cosine, sine, context.lod, mask)
            if number == layer:
                kept = x
        return x, kept

    def extend(self, embeddings: Tensor, lod: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache) -> Tensor:
        """Return the final hidden states [1, n, D] of entries that follow those in the cache, and store them there.

        Equal to the last n states of `hidden` for all entries.

        Args:
            embeddings: Of the new entries [1, n, D].
            lod: Their levels of detail [1, n].
            rotation: Their cosines and sines [1, 1 or H, n, head_width / 2], as `positions` returns them.
            cache: Keys and values of the entries before them.
        """
        x = rms_norm(embeddings) + self.lod_embed(lod)
        for layer, block in enumerate(self.blocks):
            x = block(x, *rotation, lod, None, cache, layer)
        cache.advance(lod.shape[1])
        return rms_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocabulary], float32."""
        logits: Tensor = self.lm_head(hidden).float()
        return logits


def _checked_vocab_size(vocab_size: Count | None, tokenizer_vocab_size: int) -> int:
    if vocab_size is None:
        return tokenizer_vocab_size
    if vocab_size < tokenizer_vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer_vocab_size:,} entries but gpt.vocab_size is {vocab_size:,}",
            remedy=f"set gpt.vocab_size = {tokenizer_vocab_size}, or None to take the tokenizer's",
            binding="gpt.vocab_size",
        )
    return vocab_size
