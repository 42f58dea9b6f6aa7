"""Substitutes for gists: the block dropped, its mean embedding, the gist of another document.

Every substitute has the same focus and the same targets as the gists it is compared with; see docs/concepts.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext, own_children

Condition = Literal["full", "gist", "drop", "mean", "swap"]
"""What stands for a collapsed block: its tokens, its gist, nothing, its mean embedding, another document's gist."""

CONDITIONS: tuple[Condition, ...] = ("full", "drop", "mean", "swap", "gist")


def drop_gists(context: WorkingContext) -> WorkingContext:
    """The context with its gists dropped: the tokens that are raw, in order, at their own positions.

    Rows keep L entries; the rest is padding at the right.
    """
    raw = context.valid & (context.lod == 0)
    rank = raw.cumsum(dim=1)
    size = context.length
    index = torch.where(raw, rank - 1, size)
    token = torch.zeros_like(context.token)
    token = torch.cat((token, token[:, :1]), dim=1).scatter(1, index, context.token)[:, :size]
    valid = torch.arange(size, device=token.device) < rank[:, -1:]
    return replace(
        context, token=torch.where(valid, token, 0), lod=torch.zeros_like(context.lod), valid=valid, padded=True
    )


def slot_means(children: Tensor, slots: int, sizes: Tensor | None = None) -> Tensor:
    """Mean over the stretch of children that each slot stands for: [..., C, D] -> [..., slots, D].

    Child c of C belongs to slot `c * slots // C`, so stretches tile the block as evenly as they can. A child counts
    `sizes` [C] times, by default once.
    """
    count = children.shape[-2]
    slot = torch.arange(count, device=children.device) * slots // count
    member = (slot == torch.arange(slots, device=children.device)[:, None]).to(children.dtype)
    if sizes is not None:
        member = member * sizes
    return (member / member.sum(dim=1, keepdim=True)) @ children


def mean_gists(children: Tensor, tree: ContextTree, lod: int) -> Tensor:
    """Means over the tokens of each slot: children [..., K * slots(lod - 1), D] -> [..., G, D].

    Children of unequal stretches count by their tokens, so that means of means are means of token embeddings.
    """
    slots, span = tree.slots_at(lod - 1), tree.span(lod - 1)
    edges = -(torch.arange(slots + 1, device=children.device) * -span // slots)  # first token of each slot, rounded up
    return slot_means(children, tree.slots, edges.diff().repeat(tree.block_size).to(children.dtype))


def mean_table(tokens: Tensor, tree: ContextTree, documents: Tensor | None = None) -> Tensor:
    """The node table whose gists are mean embeddings: tokens [B, T, D] -> [B, table_rows, D].

    With the document of every token [B, T], embeddings of other documents than the node's are 0.
    """
    levels = [tokens]
    for lod in range(1, tree.levels + 1):
        if nodes := tree.nodes(lod):
            size = tree.block_size * tree.slots_at(lod - 1)
            children = levels[-1][:, : nodes * size].reshape(len(tokens), nodes, size, -1)
            if documents is not None:
                children = torch.where(own_children(documents, tree, lod, size), children, 0.0)
            levels.append(mean_gists(children, tree, lod).flatten(1, 2))
    return torch.cat(levels, dim=1)


def swap_gists(table: Tensor, tree: ContextTree, swap: Tensor) -> Tensor:
    """Return the node table with the gists of another sequence. Tokens stay.

    Args:
        table: [B, rows, D].
        tree: shape of the contexts.
        swap: [B] int64, the sequence whose gists each sequence reads.

    Returns:
        [B, rows, D].
    """
    tokens = tree.offset(1)
    return torch.cat((table[:, :tokens], table[swap, tokens:]), dim=1)


def scatter_to_targets(values: Tensor, context: WorkingContext, missing: float = torch.nan) -> Tensor:
    """Values of predicting entries [R, L] at the position of their target: [R, T], `missing` where nothing predicts.

    Position t holds the value for token t + 1 under every focus, so that conditions can be subtracted.
    """
    window = context.tree.window
    index = torch.where(context.predicts, context.end - 1, window)
    empty = values.new_full((values.shape[0], window + 1), missing)
    return empty.scatter(1, index, values)[:, :window]


def distance_after(lod: Tensor, tree: ContextTree) -> tuple[Tensor, Tensor]:
    """For each token position: tokens since the end of the nearest collapsed span on its left, and that span's LOD.

    lod [R, T] is the LOD of every token (`block_lods_to_tokens`) -> (distance [R, T], LOD [R, T]); -1 and 0 where no
    span stands on the left, and inside spans.
    """
    position = torch.arange(lod.shape[1], device=lod.device).expand_as(lod)
    ended = torch.where(lod > 0, position, -1).cummax(dim=1).values  # last compressed token at or before t
    exists = (ended >= 0) & (lod == 0)
    nearest = lod.gather(1, ended.clamp(min=0))
    return torch.where(exists, position - ended - 1, -1), torch.where(exists, nearest, 0)
