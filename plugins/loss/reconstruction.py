"""Reconstruction of blocks from their gists.

Several neighbouring blocks at once are harder than one, so a curriculum starts with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mcframe.bounds import Count, NonNegative, PositiveFraction
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.context.step_metrics import StepMetrics, masked_mean, masked_sum
from mcframe.context.working_context import build_context, own_children, with_documents
from mcframe.errors import UserError
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView

DECLARED_METRICS = {
    "mc/reconstruction_loss": ("nats", "lower", "NLL of a block's tokens predicted from its gist alone"),
}

_SALT = 0x7265636F  # different from the draw of the variants


class Reconstruction(Loss):
    """The base model predicts the tokens of blocks from their gists alone.

    NLL in nats of `[gists of n blocks] [begin] [their tokens]`, each token predicted from the entry before it. The
    learned entry `begin` starts the reconstruction; in an ordinary context the last gist predicts the token after its
    block.

    Source:
        In-context autoencoder (Ge et al., arXiv 2307.06945).

    Args:
        weight: Factor in the total.
        blocks: Neighbouring blocks that are reconstructed at once, one number for each equal stage of training; at most
            the blocks of a window.
        fraction: Fraction of a sequence's blocks that are reconstructed in a step.
    """

    name, needs, part, compares = "reconstruction", ("variants", "gists"), "gistnet", False

    def __init__(
        self,
        shape: ModelShape,
        *,
        weight: NonNegative = 1.0,
        blocks: Annotated[Sequence[Count], Field(min_length=1)] = (1, 2, 4),
        fraction: PositiveFraction = 0.5,
    ) -> None:
        super().__init__()
        name, nodes = "loss.reconstruction", shape.tree.nodes(1)
        if max(blocks) > nodes:
            raise UserError(
                f"{name}.blocks: expected at most the {nodes} blocks of a window, got {max(blocks)}",
                remedy=f"set {name}.blocks to numbers from 1 to {nodes}",
            )
        self.weight, self.stages, self.fraction = weight, tuple(blocks), fraction
        self.begin_embed = nn.Parameter(torch.randn(shape.width) * 0.02)

    def begin_step(self, progress: float) -> None:
        """Set the stage of the curriculum."""
        self.stage = min(int(progress * len(self.stages)), len(self.stages) - 1)

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean NLL of each sequence [B]."""
        nll = self.reconstruct(view)
        known = torch.ones_like(nll, dtype=torch.bool) if view.documents is None else ~nll.isnan()
        figure = masked_sum(nll, known)
        return LossTerm(masked_mean(nll, known, dim=(1, 2)), StepMetrics(means={"mc/reconstruction_loss": figure}))

    def reconstruct(self, view: StepView) -> Tensor:
        """Return the NLL in nats, float32 [B, groups, blocks * K], of groups of neighbouring LOD1 blocks.

        The first seed of each sequence selects its groups. NaN for tokens of a document that its block's gist does not
        cover: where documents are masked, it covers the last one of the block.
        """
        tree, table, blocks, tokens = view.tree, view.with_table(), self.stages[self.stage], view.uncompressed.inputs
        size, groups = blocks * tree.block_size, tree.nodes(1) // blocks
        count = max(1, round(groups * self.fraction))
        group = random_keys(hash_combine(view.seeds[:, 0], _SALT), groups).argsort(dim=-1)[:, :count]
        offset, slots = tree.offset(1), tree.slots * blocks
        gists = _select(table[:, offset : offset + groups * slots], group, slots)
        embeddings = _select(table[:, : groups * size], group, size)
        begin = self.begin_embed.to(gists.dtype).expand(gists.shape[0], 1, -1)
        # A context of n gists followed by as many raw blocks has exactly the entries and positions needed here.
        doubled = replace(tree, window=2 * size, levels=1, tail=size, sink=0)
        focus = torch.arange(2 * blocks, device=table.device).lt(blocks).long()[None]
        context = build_context(focus, doubled, slots + size)
        if (documents := view.documents) is not None:
            own = _select(documents[:, : groups * size, None], group, size)[..., 0]
            context = with_documents(context, torch.cat((own, own[:, :1], own[:, :-1]), dim=1))
        hidden = view.run_base(torch.cat((gists, begin, embeddings[:, :-1]), dim=1), context)
        nll = view.nll(hidden[:, slots:], _select(tokens[:, : groups * size, None], group, size)[..., 0])
        if documents is not None:
            covered = own_children(documents, tree, 1, tree.block_size).flatten(1, 2)
            nll = torch.where(_select(covered[:, : groups * size], group, size)[..., 0], nll, torch.nan)
        return nll.view(*group.shape, size)


def _select(values: Tensor, group: Tensor, size: int) -> Tensor:
    """Select groups [B, n] of `size` neighbouring rows of values [B, groups * size, D] -> [B * n, size, D]."""
    grouped = values.reshape(values.shape[0], -1, size, values.shape[-1])
    index = group[..., None, None].expand(-1, -1, size, values.shape[-1])
    return grouped.gather(1, index).flatten(0, 1)
