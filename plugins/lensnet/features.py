"""Features of entries apart from their content: level of detail, span, and distance to the cursor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcframe.context.working_context import WorkingContext

_WAVES = 8


def entry_features(context: WorkingContext, *, surprise: bool = False) -> Tensor:
    """Return the features of every entry, float32 [R, L, feature_count(surprise)].

    Log span, slots, log distance to the cursor, and waves of that distance; with `surprise` also log(1 + nats) of the
    uncompressed NLL of the entry's tokens (`context.nll`).
    """
    cursor = context.tree.cursor
    span = context.span.float()
    distance = (cursor - context.end).clamp(min=0).float()
    near = torch.log1p(distance) / math.log1p(max(cursor, 1))
    octave = torch.pow(2.0, torch.arange(_WAVES, device=distance.device))
    angle = (distance / max(cursor, 1))[..., None] * octave * math.pi
    plain = [span.log2() / 8, span / context.slots / context.tree.block_size, near]
    if surprise:
        plain.append(known_nll(context).log1p())
    return torch.cat((torch.stack(plain, dim=-1), angle.sin(), angle.cos()), dim=-1)


def feature_count(surprise: bool) -> int:
    """Return the number of features of an entry."""
    return 3 + 2 * _WAVES + surprise


def known_nll(context: WorkingContext) -> Tensor:
    """Return `context.nll` [R, L]. Raises ValueError if the LensNet does not declare that it reads it."""
    if context.nll is None:
        raise ValueError("expected context.nll, got None. Set `reads_nll = True` in the LensNet.")
    return context.nll
