"""Base models that break one requirement each, and a conforming one."""

import torch
import torch.nn.functional as F
from torch import nn

from mcframe.hookspecs import BaseModel, HeadShape, causal_attention, rotate
from tests.support.planted import breaks, keeps


@keeps("base")
class OneLayer(BaseModel):
    """A layer of attention with one head."""

    depth = heads = 1

    def __init__(self, shape) -> None:
        super().__init__()
        self.width = self.head_width = 16
        self.vocab_size = shape.vocab_size
        self.positions = shape.positions(HeadShape(1, 16, shape.tree))
        self.table = nn.Embedding(self.vocab_size, 16)
        self.maps = nn.Linear(16, 48, bias=False)
        self.head = nn.Linear(16, self.vocab_size, bias=False)

    def embed(self, tokens):
        return self.table(tokens)

    def states(self, embeddings, context, layer=0):
        final = self.read(embeddings, context.lod, self.positions(context))
        return final, final if layer else embeddings

    def extend(self, embeddings, lod, rotation, cache):
        states = self.read(embeddings, lod, rotation, cache)
        cache.advance(lod.shape[1])
        return states

    def read(self, embeddings, lod, rotation, cache=None):
        query, key, value = self.maps(F.rms_norm(embeddings, (16,)))[:, None].chunk(3, dim=-1)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value, _ = cache.append(0, key, value, lod)
        return embeddings + causal_attention(query, key, value)[:, 0]

    def logits(self, hidden):
        return self.head(hidden).float()


@breaks("B1", "base")
class RoundsLogits(OneLayer):
    """Logits in bfloat16."""

    def logits(self, hidden):
        return self.head(hidden).bfloat16()


@breaks("B1", "base")
class StopsTooEarly(OneLayer):
    """Returns embeddings in place of the states after a layer, where these alone are needed."""

    def states_after(self, embeddings, context, layer):
        return embeddings


@breaks("B2", "base")
class LooksAhead(OneLayer):
    """Every state has a part of the last entry."""

    def states(self, embeddings, context, layer=0):
        final, kept = super().states(embeddings, context, layer)
        return final + 0.1 * embeddings[:, -1:], kept


@breaks("B4", "base")
class ForgetsItsCache(OneLayer):
    """Stores keys and values, and attends to the new ones alone."""

    def extend(self, embeddings, lod, rotation, cache):
        query, key, value = self.maps(F.rms_norm(embeddings, (16,)))[:, None].chunk(3, dim=-1)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        cache.append(0, key, value, lod)
        cache.advance(lod.shape[1])
        return embeddings + causal_attention(query, key, value)[:, 0]


@breaks("B3", "base")
class CutsAtGaps(OneLayer):
    """Takes entries after a gap between positions for another document."""

    def states(self, embeddings, context, layer=0):
        mu, _ = context.positions()
        document = (mu.diff(dim=1, prepend=mu[:, :1]) > 1).cumsum(dim=1)
        same = (document[:, :, None] == document[:, None]) & torch.ones_like(mu[0], dtype=torch.bool).expand(
            mu.shape[1], -1
        ).tril()
        query, key, value = self.maps(F.rms_norm(embeddings, (16,)))[:, None].chunk(3, dim=-1)
        query, key = (rotate(each, *self.positions(context)) for each in (query, key))
        final = embeddings + F.scaled_dot_product_attention(query, key, value, attn_mask=same[:, None])[:, 0]
        return final, final if layer else embeddings


@breaks("B6", "base")
class ReadsAllDocuments(OneLayer):
    """Declares a mask that it does not apply."""

    masks_documents = True


@breaks("B5", "base")
class CutsGradients(OneLayer):
    """Reads embeddings as constants."""

    def states(self, embeddings, context, layer=0):
        final, kept = super().states(embeddings.detach(), context, layer)
        return final, kept if layer else embeddings
