"""Which sequences exchange their gists: neighbours whose blocks come from different documents."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.focus import compressible_nodes
from mcframe.context.geometry import Geometry
from mcframe.hookspecs import HeldOut


def neighboured(held: HeldOut, geometry: Geometry) -> HeldOut | None:
    """The sequences in an order in which 2i and 2i + 1 can exchange gists; None where no two can.

    No block that may be collapsed shares a document with the same block of the neighbour. Sequences that find no
    partner are left out.
    """
    order = matched(*block_documents(held, geometry))
    if not order.numel():
        return None
    return taken(held, order)


def taken(held: HeldOut, rows: Tensor) -> HeldOut:
    """The sequences `rows`, in that order."""
    evidence = None if held.evidence is None else held.evidence[rows]
    return HeldOut(held.tokens[rows], held.documents[rows], held.scored[rows], evidence, held.chance)


def block_documents(held: HeldOut, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """First and last document of each block that may be collapsed, both [n, free blocks].

    Documents of a sequence grow from left to right.
    """
    size, free = geometry.block_size, compressible_nodes(geometry, 1, held.tokens.device)
    blocks = held.documents[:, : geometry.blocks * size].reshape(-1, geometry.blocks, size)[:, free]
    return blocks[..., 0], blocks[..., -1]


def matched(first: Tensor, last: Tensor) -> Tensor:
    """[m] rows in pairs, 2i and 2i + 1, of which no block (interval `first`..`last` [n, blocks]) overlaps.

    Far rows are tried first: in a stream neighbouring windows share documents. Greedy, every row at most once.
    """
    count = first.shape[0]
    open_rows = torch.ones(count, dtype=torch.bool)
    pairs: list[tuple[int, int]] = []
    half = count // 2
    for offset in (*range(half, count), *range(half - 1, 0, -1)):
        left, right = torch.arange(count - offset), torch.arange(offset, count)
        overlap = ((first[left] <= last[right]) & (first[right] <= last[left])).any(dim=1)
        for i in (~overlap & open_rows[left] & open_rows[right]).nonzero().flatten().tolist():
            j = i + offset
            if open_rows[i] and open_rows[j]:
                open_rows[i] = open_rows[j] = False
                pairs.append((i, j))
        if int(open_rows.sum()) < 2:
            break
    return torch.tensor(sorted(pairs), dtype=torch.long).flatten()
