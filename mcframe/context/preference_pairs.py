"""Preference pairs: two working contexts of one sequence and of equal length, the better one preferred.

The better context has the lower mean NLL after the cursor, which LensNet cannot see. A sign is the target of a
block: +1 if the better context has more detail there. It holds in both contexts of the pair: for a gist, +1 means
expand and -1 stay; for a raw block, +1 means stay and -1 collapse. Signs on the worse context alone would follow from
the level of detail: every gist would have + and every raw block -.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcframe.context.focus_ops import block_means, collapsible, expandable
from mcframe.context.working_context import WorkingContext

Sides = Literal["both", "worse"]


@dataclass(frozen=True)
class PreferencePairs:
    """All P = V * (V - 1) / 2 pairs of the variants of each sequence, with C = sides * blocks scores a pair.

    The first `blocks` of the last dimension belong to the worse context, the others (if any) to the better one.

    Attributes:
        mask: [B, P, C] bool. True where the contexts differ, the block can change and one context is better.
        sign: [B, P, C]. +1 where the better context has more detail, else -1.
        margin_nats: [B, P]. Difference of the mean ΔNLL after the cursor, not negative.
        score: [B, P, C]. LensNet's score, averaged over each block.
    """

    mask: Tensor
    sign: Tensor
    margin_nats: Tensor
    score: Tensor

    @property
    def exists(self) -> Tensor:
        """[B, P] bool: one of the two contexts is preferred."""
        return self.mask.any(dim=-1)


def actionable(context: WorkingContext) -> Tensor:
    """Return [R, blocks] bool: the block can be expanded or collapsed.

    Protected blocks and blocks after the cursor cannot. Blocks on which two valid focuses differ are actionable in
    both contexts, because they are compressed in one of them.
    """
    possible = expandable(context) | collapsible(context)
    return block_means(possible.float(), context) > 0


def pair_indices(variants: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first and the second variant of every pair, each [P]."""
    first, second = torch.triu_indices(variants, variants, 1, device=device).unbind(0)
    return first, second


def preference_pairs(
    context: WorkingContext, tail_delta: Tensor, block_scores: Tensor, variants: int, sides: Sides = "both"
) -> PreferencePairs:
    """Return the preference pairs of variants.

    Args:
        context: The variants, R rows.
        tail_delta: Mean ΔNLL after the cursor [R], in nats; lower is better.
        block_scores: LensNet's scores averaged over each block [R, blocks].
        variants: V.
        sides: The contexts of a pair that carry signs.
    """
    blocks = block_scores.shape[1]
    first, second = pair_indices(variants, block_scores.device)
    delta = tail_delta.view(-1, variants)
    delta_first, delta_second = delta[:, first], delta[:, second]
    worse = torch.where(delta_first > delta_second, first, second)
    better = first + second - worse

    def of(index: Tensor, values: Tensor) -> Tensor:
        return values.view(-1, variants, blocks).gather(1, index[..., None].expand(-1, -1, blocks))

    focus, can_change = context.focus, actionable(context)
    margin = (delta_first - delta_second).abs()
    lod_worse, lod_better = of(worse, focus), of(better, focus)
    # Equally good contexts express no preference: which of them is called worse would be arbitrary.
    differ = (lod_worse != lod_better) & (margin > 0)[..., None]
    sign = torch.where(lod_better < lod_worse, 1.0, -1.0)
    used = [worse] if sides == "worse" else [worse, better]
    return PreferencePairs(
        mask=torch.cat([differ & of(side, can_change) for side in used], dim=-1),
        sign=sign.repeat(1, 1, len(used)),
        margin_nats=margin,
        score=torch.cat([of(side, block_scores) for side in used], dim=-1),
    )


def ranked_correctly(margin: Tensor) -> Tensor:
    """Return 1 where the margin is positive, 0.5 where it is 0, else 0."""
    return torch.where(margin > 0, 1.0, torch.where(margin == 0, 0.5, 0.0))
