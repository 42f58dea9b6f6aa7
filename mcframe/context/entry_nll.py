"""Mean uncompressed NLL, in nats, of the tokens before the cursor that an entry or a block covers.

NLL at position t is for predicting token t + 1. The first token of a window is no target. Tokens from the cursor on are
excluded, so that nothing after the cursor can change a score. Where documents are masked, so are tokens of another
document than the entry's, and the separator that begins a document: the document before it predicts it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext


def mean_entry_nll(nll: Tensor, context: WorkingContext) -> Tensor:
    """Mean over the tokens that each entry's node covers: nll [B, T] -> [R, L] float32, detached.

    Row r reads sequence r // (R // B). 0 where none of the tokens counts.
    """
    rows = context.focus.shape[0]
    each = nll.detach().repeat_interleave(rows // nll.shape[0], dim=0)
    return _means(each, context.start, context.end, context.tree, context.documents)


def mean_block_nll(nll: Tensor, tree: ContextTree) -> Tensor:
    """Mean over each block's tokens: nll [n, T] -> [n, blocks] float32, detached; 0 where none of them counts."""
    first = torch.arange(tree.blocks, device=nll.device) * tree.block_size
    first = first.expand(nll.shape[0], -1)
    return _means(nll.detach(), first, first + tree.block_size, tree)


def counts(context: WorkingContext) -> Tensor:
    """[R, L] bool: the entry covers a token before the cursor that is a target."""
    return context.valid & (context.end > 1) & (context.start < context.tree.cursor)


def _means(nll: Tensor, start: Tensor, end: Tensor, tree: ContextTree, documents: Tensor | None = None) -> Tensor:
    """Means over tokens `start` to `end` - 1, both [n, m]: differences of running sums, in float64 to keep tokens."""
    position = torch.arange(tree.window, device=nll.device)
    counted = ((position > 0) & (position < tree.cursor)).expand_as(nll)
    if documents is not None:
        begins = documents.diff(dim=1, prepend=documents[:, :1]) != 0
        counted = counted & ~begins
        first = torch.where(begins, position, 0).cummax(dim=1).values  # first token of each token's document
        start = torch.maximum(start, first.gather(1, end - 1))
    of_token = torch.where(counted, F.pad(nll[:, :-1], (1, 0)), 0.0).double()
    total = F.pad(of_token.cumsum(dim=1), (1, 0))
    number = F.pad(counted.cumsum(dim=1), (1, 0))
    count = number.gather(1, end) - number.gather(1, start)
    mean = (total.gather(1, end) - total.gather(1, start)) / count.clamp(min=1)
    return mean.float()
