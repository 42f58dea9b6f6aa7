"""Rotary positions that stay in the trained range over a history of any length.

Distances to the cursor are bounded: in tokens, by a function of the distance of a block, or in entries, by counting
them. Positions are counted from the cursor in integers, so that angles are exact wherever the cursor is.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mcframe.bounds import Positive
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import HeadShape, Positions
from mcframe.modeling.rope import Base, gaussian_rotation


class EntryPositions(Positions):
    """Rotary positions of the index of an entry in its context: a gist of any span takes one position a slot.

    Positions are below the number of entries, however long the history is. They do not depend on the cursor.

    Args:
        base: Base of the rotary frequencies; the longest wavelength is 2 pi times this, in entries. None = the
            frequencies of a pretrained base model, else 10,000.
    """

    bounded = True

    def __init__(self, shape: HeadShape, *, base: Base | None = None) -> None:
        super().__init__()
        self.width, self.frequencies = shape.width, shape.frequencies if base is None else None
        self.base = 10_000.0 if base is None else base

    def forward(self, context: WorkingContext) -> tuple[Tensor, Tensor]:
        """Entries [R, L] -> cosine, sine [R, 1, L, width / 2], float32."""
        index = torch.arange(context.length, device=context.token.device).expand_as(context.token)
        return gaussian_rotation(
            index, index, self.width, base=self.base, smoothing=False, frequencies=self.frequencies
        )


class _BoundedDistance(Positions):
    """Rotary positions at a function of the distance to the cursor.

    The function acts on the start of a block; the offset within the block is linear. So the tokens of a block keep
    their distances to each other, however far it is. Tokens after the cursor keep their positions.
    """

    bounded = True

    def __init__(self, shape: HeadShape, *, base: Base | None = None) -> None:
        super().__init__()
        self.width, self.frequencies = shape.width, shape.frequencies if base is None else None
        self.base = 10_000.0 if base is None else base

    @abstractmethod
    def shortened(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance in use, and its slope, at distances to the cursor in tokens, float32 [R, L]."""

    def forward(self, context: WorkingContext) -> tuple[Tensor, Tensor]:
        """Entries [R, L] -> cosine, sine [R, 1, L, width / 2], float32."""
        tree = context.tree
        _, sigma = context.positions()
        width = context.span.float() / context.slots
        within = context.start % tree.block_size + context.slot * width + (width - 1) / 2
        blocks = (within / tree.block_size).floor()
        block = context.start // tree.block_size + blocks.long()
        distance, slope = self.shortened((tree.cursor - block * tree.block_size).float())
        mu = within - blocks * tree.block_size - distance
        return gaussian_rotation(mu, sigma * slope, self.width, base=self.base, frequencies=self.frequencies)


class LogarithmicPositions(_BoundedDistance):
    """Rotary positions at a distance to the cursor that grows logarithmically where it is large.

    A block at a distance d in tokens is placed at d up to `near`, and beyond at near + near * ln(d / near). The spread
    of a gist is multiplied by the slope of this function.

    Args:
        near: The largest distance that is exact, in tokens.
        base: Base of the rotary frequencies; the longest wavelength is 2 pi times this, in tokens. None = the
            frequencies of a pretrained base model, else 10,000.
    """

    def __init__(self, shape: HeadShape, *, near: Positive = 1024.0, base: Base | None = None) -> None:
        super().__init__(shape, base=base)
        self.near = near

    def shortened(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return near + near * ln(d / near) beyond `near`, and its slope near / d."""
        ratio = (distance / self.near).clamp(min=1.0)
        return distance.clamp(max=self.near) + self.near * ratio.log(), 1 / ratio


class ClampedPositions(_BoundedDistance):
    """Rotary positions at a distance to the cursor of at most `limit`.

    Args:
        limit: The largest distance of a block, in tokens; farther blocks are put there, gists without a spread.
        base: Base of the rotary frequencies; the longest wavelength is 2 pi times this, in tokens. None = the
            frequencies of a pretrained base model, else 10,000.
    """

    def __init__(self, shape: HeadShape, *, limit: Positive = 1024.0, base: Base | None = None) -> None:
        super().__init__(shape, base=base)
        self.limit = limit

    def shortened(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smaller of the distance and `limit`, and its slope, 1 or 0."""
        return distance.clamp(max=self.limit), (distance <= self.limit).float()
