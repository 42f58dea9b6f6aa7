"""LensNet without parameters: scores from the uncompressed pass's own NLL."""

from __future__ import annotations

from torch import Tensor

from mcframe.bounds import Positive
from mcframe.context.entry_nll import counts
from mcframe.context.focus_ops import block_means
from mcframe.context.step_metrics import masked_mean
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import LensNet, ModelShape
from mcframe_plugins.lensnet.features import known_nll

_LEAST_DEVIATION = 1e-4
"""In nats; smaller differences between blocks are rounding errors."""


class SurpriseLensNet(LensNet):
    """A baseline: the higher the uncompressed NLL of a block, the higher its score. No parameters.

    The score is `tanh(z / scale)`. z is the distance of the block's mean NLL from the mean block of its context, in
    standard deviations; 0 where all blocks are alike. The NLL is that of the block's own tokens before the cursor, so
    no later token is read; that of a gist is the mean over all tokens that it covers. In training the uncompressed pass
    exists already; refocusing runs it once more.

    Source:
        Selective Context (Li et al., 2023), LLMLingua (Jiang et al., 2023).

    Args:
        scale: Standard deviations at which a score is tanh(1) = 0.76.
    """

    reads_nll = True

    def __init__(self, shape: ModelShape, *, scale: Positive = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] from `context.nll`, in the dtype of the embeddings."""
        blocks = context.focus.shape[1]
        scored = counts(context)
        fraction = block_means(scored.float(), context)
        nll = block_means(known_nll(context).float() * scored, context) / fraction.clamp(min=1e-6)
        known = fraction > 0
        centred = nll - masked_mean(nll, known, dim=1)[:, None]
        deviation = masked_mean(centred.square(), known, dim=1).sqrt()[:, None]
        scores = (centred / (self.scale * deviation.clamp(min=_LEAST_DEVIATION)) * known).tanh()
        block = context.start // context.tree.block_size
        found = scores.gather(1, block.clamp(max=blocks - 1)) * (block < blocks)
        return found.to(embeddings.dtype)
