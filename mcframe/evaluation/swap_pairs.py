"""Pairs of sequences that exchange their gists: neighbours from different documents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import EvalData


def paired(data: EvalData, tree: ContextTree) -> EvalData | None:
    """Return the sequences in an order in which 2i and 2i + 1 can exchange gists; None if no two can.

    The two have no document in common up to the last block that may be collapsed.
    Sequences without a partner are dropped.
    """
    order = matched(*documents_before_cursor(data, tree))
    if not order.numel():
        return None
    evidence = None if data.evidence is None else data.evidence[order]
    return replace(
        data, tokens=data.tokens[order], documents=data.documents[order], loss_mask=data.loss_mask[order],
        evidence=evidence,
    )  # fmt: skip


def documents_before_cursor(data: EvalData, tree: ContextTree) -> tuple[Tensor, Tensor]:
    """Return the first and the last document of each sequence up to the last block that may be collapsed, both [n].

    Numbers of documents increase within a sequence.
    """
    end = max(1, tree.cursor // tree.block_size * tree.block_size)
    return data.documents[:, 0], data.documents[:, end - 1]


def matched(first: Tensor, last: Tensor) -> Tensor:
    """Return [m] rows in pairs, 2i and 2i + 1, whose intervals `first`..`last` [n] do not overlap.

    Greedy, each row at most once. Distant rows are tried first, because neighbouring windows of a stream often come
    from one document.
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
