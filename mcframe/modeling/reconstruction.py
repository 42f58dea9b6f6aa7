"""Reconstruction: the base model reads gists and nothing else, and tells their blocks token by token.

What a gist must keep is thus trained directly, whether or not the text that follows needs it (in-context autoencoder,
Ge et al., arXiv 2307.06945). Several neighbouring blocks at once are harder than one: a curriculum starts with one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.context.working_context import build_context
from mcframe.modeling.gpt import GPT

_SALT = 0x7265636F  # this draw is not the one that chose the variants


class Reconstruction(nn.Module):
    """`[gists of n blocks] [begin] [their tokens]`, each token predicted from the entry before it.

    The learned entry `begin` says that now the blocks are to be told: the last gist of an ordinary context predicts
    what comes after it instead.
    """

    def __init__(self, width: int, tree: ContextTree, share: float) -> None:
        super().__init__()
        self.tree, self.share = tree, share
        self.begin_embed = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, gpt: GPT, table: Tensor, tokens: Tensor, blocks: int, seeds: Tensor) -> Tensor:
        """NLL in nats, float32 [B, groups, blocks * K], of groups of `blocks` neighbouring LOD1 blocks.

        table [B, rows, D]; tokens [B, T]; seeds [B] choose which groups, `share` of them.
        """
        tree, size = self.tree, blocks * self.tree.block_size
        groups = tree.nodes(1) // blocks
        count = max(1, round(groups * self.share))
        group = random_keys(hash_combine(seeds, _SALT), groups).argsort(dim=-1)[:, :count]
        offset, slots = tree.offset(1), tree.slots * blocks
        gists = _pick(table[:, offset : offset + groups * slots], group, slots)
        embeddings = _pick(table[:, : groups * size], group, size)
        begin = self.begin_embed.to(gists.dtype).expand(gists.shape[0], 1, -1)
        # A context of n gists followed by as many raw blocks has just the entries and the positions that are wanted.
        told = replace(tree, window=2 * size, levels=1, tail=size, sink=0)
        focus = torch.arange(2 * blocks, device=table.device).lt(blocks).long()[None]
        context = build_context(focus, told, slots + size)
        hidden = gpt.hidden(torch.cat((gists, begin, embeddings[:, :-1]), dim=1), context)
        nll = gpt.nll(hidden[:, slots:], _pick(tokens[:, : groups * size, None], group, size)[..., 0])
        return nll.view(*group.shape, size)


def _pick(values: Tensor, group: Tensor, size: int) -> Tensor:
    """Groups [B, n] of `size` neighbouring rows of values [B, groups * size, D] -> [B * n, size, D]."""
    grouped = values.reshape(values.shape[0], -1, size, values.shape[-1])
    index = group[..., None, None].expand(-1, -1, size, values.shape[-1])
    return grouped.gather(1, index).flatten(0, 1)
