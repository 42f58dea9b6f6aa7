"""Operations on a focus, block by block: validity, legal actions, scores averaged over each block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext


def compressible_nodes(tree: ContextTree, lod: int, device: torch.device) -> Tensor:
    """[nodes(lod)] bool: the node holds no protected token."""
    width = int(tree.block_size ** (lod - 1))
    node = torch.arange(tree.nodes(lod), device=device)
    last = tree.cursor // tree.block_size
    return (node * width >= tree.sink) & ((node + 1) * width <= last)


def is_valid(focus: Tensor, tree: ContextTree) -> Tensor:
    """[R] bool: LODs are known, compressed nodes are complete and aligned, and no protected block is compressed.

    focus [R, blocks].
    """
    valid = ((focus >= 0) & (focus <= tree.levels)).all(dim=1)
    for lod in range(1, tree.levels + 1):
        width, nodes = tree.block_size ** (lod - 1), tree.nodes(lod)
        inside = group_by_node(focus == lod, tree, lod)
        allowed = compressible_nodes(tree, lod, focus.device)
        complete = inside.all(dim=2) & allowed
        valid &= (complete | ~inside.any(dim=2)).all(dim=1)
        valid &= ~(focus[:, nodes * width :] == lod).any(dim=1)
    return valid


def lengths(focus: Tensor, tree: ContextTree) -> Tensor:
    """[R] entries that each valid focus [R, blocks] unrolls to."""
    saved = torch.zeros(focus.shape[0], dtype=torch.long, device=focus.device)
    for lod in range(1, tree.levels + 1):
        nodes = (focus == lod).sum(dim=1) // tree.block_size ** (lod - 1)
        saved += nodes * tree.saving(lod)
    return tree.window - saved


def first_block(focus: Tensor, tree: ContextTree) -> Tensor:
    """[R, blocks] the first block of the node that covers each block."""
    width = torch.pow(tree.block_size, (focus - 1).clamp(min=0))
    block = torch.arange(focus.shape[1], device=focus.device)
    return block - block % width


def block_means(values: Tensor, context: WorkingContext) -> Tensor:
    """Mean of `values` [R, L] over the entries of the node (or of the raw block) that covers each block.

    -> [R, blocks]; 0 where the context has no entry there (blocks after the cursor). Differentiable in `values`.
    """
    tree = context.tree
    rows, blocks = context.focus.shape
    # Tokens beyond the last complete block, and padding, go to a column of their own.
    block = torch.where(context.valid, (context.start // tree.block_size).clamp(max=blocks), blocks)
    zeros = values.new_zeros(rows, blocks + 1)
    total = zeros.scatter_add(1, block, values)
    count = zeros.scatter_add(1, block, torch.ones_like(values))
    mean = total / count.clamp(min=1)
    return mean.gather(1, first_block(context.focus, tree))


def expandable(context: WorkingContext) -> Tensor:
    """[R, L] bool: the entry is a gist, so that there is something to expand."""
    return context.valid & (context.lod > 0)


def collapsible(context: WorkingContext) -> Tensor:
    """[R, L] bool: the entry's node can become part of a node one level up.

    False for the top level, for protected tokens, and where the parent would hold a protected block.
    """
    tree = context.tree
    result = torch.zeros_like(context.valid)
    for lod in range(tree.levels):
        nodes = tree.nodes(lod + 1)
        if nodes == 0:  # the window is shorter than one node of that level
            continue
        parent = context.start // tree.span(lod + 1)
        allowed = compressible_nodes(tree, lod + 1, context.focus.device)[parent.clamp(max=nodes - 1)]
        result |= (context.lod == lod) & (parent < nodes) & allowed
    return context.valid & result


def group_by_node(per_block: Tensor, tree: ContextTree, lod: int) -> Tensor:
    """Blocks grouped into the complete nodes at `lod`: [..., blocks] -> [..., nodes, blocks per node]."""
    nodes, width = tree.nodes(lod), int(tree.block_size ** (lod - 1))
    return per_block[..., : nodes * width].reshape(*per_block.shape[:-1], nodes, width)


def expand_to_blocks(per_node: Tensor, tree: ContextTree, lod: int) -> Tensor:
    """A mask over the nodes at `lod`, spread over their blocks: bool [..., nodes] -> [..., blocks]."""
    width = int(tree.block_size ** (lod - 1))
    spread = per_node.repeat_interleave(width, dim=-1)
    return F.pad(spread, (0, tree.blocks - spread.shape[-1]))


def bottomk_mask(values: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Mask of the `count` [...] lowest of `values` [..., n] where `allowed`; ties go to the left.

    Fewer where fewer are allowed.
    """
    barred = torch.where(allowed, values.double(), torch.inf)
    rank = barred.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (rank < count[..., None]) & allowed
