"""Attribution loss.

Credit goes to single blocks, because a score of the uncompressed context cannot depend on what a variant collapses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.bounds import NonNegative, Temperature
from mcframe.context.context_tree import ContextTree
from mcframe.context.preference_pairs import pair_indices, ranked_correctly
from mcframe.context.step_metrics import StepMetrics, masked_sum
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Loss, LossTerm, ModelShape, StepView

DECLARED_METRICS = {
    "mc/attribution_agreement":
        ("fraction", "higher", "mc/preference_agreement of scores of the uncompressed context, summed over blocks"),
}  # fmt: skip


class Attribution(Loss):
    """Sums of uncompressed scores over what a context collapses rank a pair. Needs two variants or more.

    softplus(-margin * max(1, m) / temperature) * tanh(m). LensNet scores the uncompressed sequence once, in one more
    pass. The margin of a pair is by how much the worse context collapses more score; m is by how much more it loses,
    divided by the scale of preferences (`lens_targets`).

    Source:
        Datamodels (Ilyas et al., 2022), ContextCite (Cohen-Wang et al., 2024).

    Args:
        weight: Factor in the total.
        temperature: Divides the margin.
    """

    name, needs = "attribution", ("variants", "scores", "pairs", "uncompressed_scores")

    def __init__(self, shape: ModelShape, *, weight: NonNegative = 0.1, temperature: Temperature = 1.0) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, view: StepView) -> LossTerm:
        """Return the mean over the pairs of each sequence [B]; metric `mc/attribution_agreement`."""
        lens = view.with_lens()
        assert lens.uncompressed is not None
        margin, nats = attribution_margin(lens.uncompressed, lens.prefix, lens.tail_delta, view.seeds.shape[1])
        loss = pair_loss(margin, nats / lens.scale_nats, self.temperature).mean(dim=1)
        agreement = masked_sum(ranked_correctly(margin), nats > 0)
        return LossTerm(loss, StepMetrics(means={"mc/attribution_agreement": agreement}))


def pair_loss(margin: Tensor, scaled: Tensor, temperature: float) -> Tensor:
    """Return the loss of each pair [B, P] from its margin and its scaled difference of ΔNLL, not negative."""
    logit = margin * scaled.clamp(min=1.0) / temperature
    return F.softplus(-logit) * torch.tanh(scaled)


def attribution_margin(
    block_scores: Tensor, context: WorkingContext, tail_delta: Tensor, variants: int
) -> tuple[Tensor, Tensor]:
    """Return by how much the worse context of each pair collapses more score, and by how much more it loses.

    A block's score is weighted by the entries that its level saves, so a constant added to all scores cancels between
    contexts of equal length.

    Args:
        block_scores: Scores of the uncompressed sequence, averaged over each block [B, blocks].
        context: The variants, R rows.
        tail_delta: Mean ΔNLL of each variant after the cursor [R], in nats.
        variants: V.

    Returns:
        The margin [B, P] in units of score, and the difference of ΔNLL [B, P] in nats, not negative. Both are 0 for
        equal contexts.
    """
    first, second = pair_indices(variants, block_scores.device)
    focus = context.focus.view(-1, variants, context.focus.shape[1])
    collapsed = (entries_saved(focus, context.tree, block_scores.dtype) * block_scores[:, None]).sum(dim=-1)
    delta = tail_delta.view(-1, variants)
    differ = (focus[:, first] != focus[:, second]).any(dim=-1)
    lost = torch.where(differ, delta[:, first] - delta[:, second], 0.0)
    return lost.sign() * (collapsed[:, first] - collapsed[:, second]), lost.abs()


def entries_saved(focus: Tensor, tree: ContextTree, dtype: torch.dtype) -> Tensor:
    """Return the entries that each block's level saves, in units of LOD1's saving: 0 for raw, 1 at LOD1."""
    size, slots = tree.block_size, tree.slots
    saved = size - slots * torch.pow(float(size), 1 - focus.to(dtype))
    return torch.where(focus > 0, saved / (size - slots), 0.0)
