"""Which sequences exchange their gists: neighbours that come from different documents."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import EvalData


def neighboured(held: EvalData, tree: ContextTree) -> EvalData | None:
    """The sequences in an order in which 2i and 2i + 1 can exchange gists; None where no two can.

    Nothing that may be collapsed, or that a gist may have read to its left, shares a document with the neighbour's.
    Sequences that find no partner are left out.
    """
    first, last = documents_before_cursor(held, tree)
    order = matched(first, last)
    if not order.numel():
        return None
    pairs = order.view(-1, 2)
    apart = (last[pairs[:, 0]] < first[pairs[:, 1]]) | (last[pairs[:, 1]] < first[pairs[:, 0]])
    assert bool(apart.all()), "a gist would be swapped with one of its own document"
    return taken(held, order)


def taken(held: EvalData, rows: Tensor) -> EvalData:
    """The sequences `rows`, in that order."""
    evidence = None if held.evidence is None else held.evidence[rows]
    return EvalData(held.tokens[rows], held.documents[rows], held.loss_mask[rows], evidence, held.chance)


def documents_before_cursor(held: EvalData, tree: ContextTree) -> tuple[Tensor, Tensor]:
    """First and last document of each sequence up to the last block that may be collapsed, both [n].

    Documents of a sequence grow from left to right.
    """
    end = max(1, tree.cursor // tree.block_size * tree.block_size)
    return held.documents[:, 0], held.documents[:, end - 1]


def matched(first: Tensor, last: Tensor) -> Tensor:
    """[m] rows in pairs, 2i and 2i + 1, whose intervals `first`..`last` [n] do not overlap.

    Far rows are tried first: in a stream neighbouring windows share documents. Greedy, every row at most once.
    """
    count = first.shape[0]
    free = torch.ones(count, dtype=torch.bool)
    pairs: list[tuple[int, int]] = []
    half = count // 2
    for offset in (*range(half, count), *range(half - 1, 0, -1)):
        left, right = torch.arange(count - offset), torch.arange(offset, count)
        overlap = (first[left] <= last[right]) & (first[right] <= last[left])
        for i in (~overlap & free[left] & free[right]).nonzero().flatten().tolist():
            j = i + offset
            if free[i] and free[j]:
                free[i] = free[j] = False
                pairs.append((i, j))
        if int(free.sum()) < 2:
            break
    return torch.tensor(sorted(pairs), dtype=torch.long).flatten()
